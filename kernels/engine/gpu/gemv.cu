/* Packed matrices times one to eight vectors on a GPU, with what lies around them fused in.
 *
 *   y[n] = W x[n], n < m ≤ 8
 *
 * Decoding is bound by reading W, so the kernel is built around an uninterrupted stream: each warp
 * copies ahead into a ring of its own in shared memory (cp.async), across tiles too, and on sm_90
 * begins before the kernel that makes x has ended (programmatic dependent launch).
 * stage.cuh says how a matrix is laid out and multiplied, inputs.cuh what it meets.
 */
#include "attention.cuh"
#include "inputs.cuh"
#include "norm.cuh"
#include "stage.cuh"

/* SHARE warps work on a tile together; the others of the block on other tiles. */
template <int SHARE>
__device__ __forceinline__ void meet(int team) {
    if constexpr (SHARE == 1) __syncwarp();
    else asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "r"(32 * SHARE) : "memory");
}

template <class Weights, int SHARE, bool STAGED>
__global__ void __launch_bounds__(THREADS, 3) gemv_kernel(const Gemv p) {
    constexpr int SCHEME = Weights::SCHEME, TEAMS = WARPS / SHARE;
    constexpr int ITEMS = 16 * MOST / (32 * SHARE) > 0 ? 16 * MOST / (32 * SHARE) : 1;
    extern __shared__ __align__(16) uint8_t dynamic[];
    __shared__ float parts[2][WARPS][16][MOST + 1];
    __shared__ __align__(16) uint8_t nothing[Weights::STEP];
    int warp = threadIdx.x / 32;
    int team = warp / SHARE, part = warp % SHARE, member = threadIdx.x % (32 * SHARE);
    const int halved = SCHEME == DENSE ? p.halved : 0; /* others' tiles are shorter */
    int stages = p.columns / Weights::COLUMNS >> halved, stride = gridDim.x * TEAMS;
    int first = blockIdx.x * TEAMS + team, units = p.tiles << halved; /* tiles, or halves */

    /* The warp's copies, one after the other, across its tiles: so many of each, so many tiles. */
    Ring<Weights> ring(dynamic);
    int each = part < stages ? (stages - part + SHARE - 1) / SHARE : 0;
    int turns = first < units ? (units - first + stride - 1) / stride : 0;
    int to_copy = each * turns, left = each;
    const uint8_t *from =
        (const uint8_t *)p.weights + ((size_t)first * stages + part) * Weights::BYTES;
    size_t jump = ((size_t)stride * stages - each * SHARE) * Weights::BYTES;
    auto next = [&]() -> const uint8_t * {
        if (to_copy == 0) return nullptr;
        const uint8_t *now = from;
        from += SHARE * Weights::BYTES, to_copy--;
        if (--left == 0) left = each, from += jump;
        return now;
    };
    ring.fill(next); /* weights wait for nobody */
    launch_dependents();
    if (STAGED && !p.x) Normer<THREADS, NORM_MOST, false>::prefetch(p.before);
    if (threadIdx.x < Weights::STEP / 4) ((uint32_t *)nothing)[threadIdx.x] = 0;
    wait_for_inputs();
    uint8_t *kept = dynamic + WARPS * ring.AROUND;
    uint8_t *elsewhere = SCHEME == DENSE ? (uint8_t *)p.x : p.fixed;
    Inputs<Weights> inputs{STAGED ? kept : elsewhere, p.m, p.columns};
    if (STAGED && p.x) inputs.take_in(p);
    else if (STAGED) inputs.make(p.before, blockIdx.x == 0, (float *)parts);
    __syncthreads();

    Reader<Weights> reader(inputs, nothing);
    Sums<SCHEME> sums;
    float best[ITEMS];
    int best_at[ITEMS], turn = 0;
    for (int i = 0; i < ITEMS; i++) best[i] = -INFINITY, best_at[i] = 0x7fffffff;

    Beside at_first[ITEMS]; /* on its way while the first tile is multiplied */
#pragma unroll
    for (int item = 0; item < ITEMS; item++) {
        int at = member + item * 32 * SHARE;
        int row = (first >> halved) * 16 + at % 16;
        if (first < units) at_first[item].template load<SCHEME>(p, row, at / 16);
    }

    auto finish = [&](int unit) { /* add up the team's parts, and do what comes after */
        int tile = unit >> halved;
        sums.hand_in(parts[turn][warp][0], MOST + 1, p.m);
        meet<SHARE>(team);
#pragma unroll
        for (int item = 0; item < ITEMS; item++) {
            int at = member + item * 32 * SHARE, r = at % 16, n = at / 16, row = tile * 16 + r;
            if (n >= p.m) continue;
            Beside beside = at_first[item];
            if (unit != first) beside.load<SCHEME>(p, row, n);
            float value = 0.0f;
            for (int w = 0; w < SHARE; w++) value += parts[turn][team * SHARE + w][r][n];
            value *= beside.scale;
            if (p.output != BEST) put(p, tile, unit & halved, r, n, value, beside);
            else if (row < p.rows && value > best[item]) best[item] = value, best_at[item] = row;
        }
        turn ^= 1;
    };

    for (int unit = first; unit < units; unit += stride) {
        int stage = (unit & halved) * stages + part;
        for (int i = 0; i < each; i++, stage += SHARE)
            reader.multiply(ring.pop_and_push(next()), stage, sums);
        finish(unit);
    }
    if (p.output != BEST) return;
#pragma unroll
    for (int item = 0; item < ITEMS; item++) {
        int at = member + item * 32 * SHARE, n = at / 16;
        if (n >= p.m) continue;
        unsigned together = __activemask();
        for (int reach = 8; reach; reach /= 2) {
            float other = __shfl_down_sync(together, best[item], reach, 16);
            int other_at = __shfl_down_sync(together, best_at[item], reach, 16);
            if (other > best[item] || (other == best[item] && other_at < best_at[item]))
                best[item] = other, best_at[item] = other_at;
        }
        if (at % 16 == 0) {
            p.best[first * MOST + n] = best[item];
            p.best_at[first * MOST + n] = best_at[item];
        }
    }
}

/* Whether each block keeps all inputs for itself. */
static bool is_staged(const Gemv *p) {
    return p->m * p->columns * sizeof(__nv_bfloat16) <= MOST_STAGED;
}

/* All of a launch's inputs in fixed point, where a block has no room for them. */
template <class Weights>
__global__ void __launch_bounds__(THREADS) fixed_kernel(const Gemv p) {
    launch_dependents();
    wait_for_inputs();
    Inputs<Weights>{p.fixed, p.m, p.columns}.take_share(p);
}

/* The weights as dense bfloat16 [rows, columns], for products with a whole prompt. */
struct Unpack {
    const uint8_t *weights;
    const float *scales;
    __nv_bfloat16 *out;
    int stages, rows, columns, interleaved;
};

template <class Weights>
__global__ void unpack_kernel(const Unpack p) {
    constexpr int SCHEME = Weights::SCHEME;
    int tile = blockIdx.x, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    auto put = [&](int half, int column, float first, float second) {
        int r = g + 8 * half, row = tile * 16 + r;
        if (p.interleaved) row = tile * 8 + g + half * (p.rows / 2);
        if (row >= p.rows) return;
        *(__nv_bfloat162 *)(p.out + (size_t)row * p.columns + column) =
            __floats2bfloat162_rn(first, second);
    };
    for (int stage = threadIdx.x / 32; stage < p.stages; stage += WARPS) {
        const uint8_t *from = p.weights + ((size_t)tile * p.stages + stage) * Weights::BYTES;
        for (int part = 0; part < 2; part++) {
            uint4 w = *(const uint4 *)(from + 512 * part + 16 * lane);
            const uint32_t v[4] = {w.x, w.y, w.z, w.w};
            int column = stage * Weights::COLUMNS + part * Weights::COLUMNS / 2;
            column += (SCHEME == DENSE ? 4 : 8) * t;
            for (int i = 0; i < 4; i++) {
                if (SCHEME == DENSE) {
                    __nv_bfloat162 two = *(const __nv_bfloat162 *)&v[i];
                    put(i % 2, column + i / 2 * 2, __low2float(two), __high2float(two));
                } else if (SCHEME == INT8) {
                    float scale = p.scales[tile * 16 + g + 8 * (i % 2)];
                    for (int j = 0; j < 4; j += 2)
                        put(i % 2, column + i / 2 * 4 + j, (int8_t)(v[i] >> 8 * j) * scale,
                            (int8_t)(v[i] >> (8 * j + 8)) * scale);
                } else {
                    int group = (2 * part + i / 2) / (4 / Weights::GROUPS);
                    for (int half = 0; half < 2; half++) {
                        int entry = group * 16 + g + 8 * half;
                        const uint8_t *tables = from + 1024;
                        float scale, minimum;
                        if (Weights::ASYMMETRIC) {
                            __half2 both = ((const __half2 *)tables)[entry];
                            scale = __low2float(both), minimum = __high2float(both);
                        } else {
                            scale = __half2float(((const __half *)tables)[entry]);
                            minimum = -8.0f * scale;
                        }
                        for (int j = 0; j < 4; j += 2) {
                            int one = v[i] >> (8 * j + 4 * half) & 15;
                            int two = v[i] >> (8 * j + 8 + 4 * half) & 15;
                            put(half, column + i / 2 * 32 + i % 2 * 4 + j, one * scale + minimum,
                                two * scale + minimum);
                        }
                    }
                }
            }
        }
    }
}

__global__ void __launch_bounds__(THREADS) norm_kernel(const Norm p) {
    __shared__ float sums[4 * WARPS];
    launch_dependents();
    Normer<THREADS, NORM_MOST, true> normer;
    normer.prefetch(p);
    wait_for_inputs();
    normer.run(p, blockIdx.x, true, sums);
#pragma unroll
    for (int c = 0; c < normer.CHUNKS; c++) {
        if (normer.column(c) < p.size)
            *(uint4 *)(p.out + (size_t)blockIdx.x * p.size + normer.column(c)) = normer.chunk(c);
    }
}

/* The best of all teams' bests, and what follows from it: the token is fed back at once. */
struct Choice {
    const float *best;
    const int *best_at;
    int teams, m;
    int *choices;  /* [m] */
    int *inputs;   /* the next step's token, or null */
    int *history;  /* choices in order, written at *count; or null */
    int *count;
    int *position; /* moved on by one when a token is fed back */
};

constexpr int CHOOSE_THREADS = 1024;

/* The larger one of two, or the first of equals. */
__device__ __forceinline__ void better(float &best, int &best_at, float value, int at) {
    if (value > best || (value == best && at < best_at)) best = value, best_at = at;
}

__device__ __forceinline__ void best_of_warp(float &best, int &best_at) {
    for (int reach = 16; reach; reach /= 2) {
        float other = __shfl_xor_sync(~0u, best, reach);
        better(best, best_at, other, __shfl_xor_sync(~0u, best_at, reach));
    }
}

/* A block per vector. */
__global__ void __launch_bounds__(CHOOSE_THREADS) choose_kernel(const Choice p) {
    __shared__ float bests[32];
    __shared__ int best_ats[32];
    launch_dependents();
    wait_for_inputs();
    int n = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float best = -INFINITY;
    int best_at = 0x7fffffff;
#pragma unroll 4
    for (int i = threadIdx.x; i < p.teams; i += CHOOSE_THREADS)
        better(best, best_at, p.best[i * MOST + n], p.best_at[i * MOST + n]);
    best_of_warp(best, best_at);
    if (lane == 0) bests[warp] = best, best_ats[warp] = best_at;
    __syncthreads();
    if (warp) return;
    best = bests[lane], best_at = best_ats[lane];
    best_of_warp(best, best_at);
    if (lane) return;
    p.choices[n] = best_at;
    if (!p.inputs) return;
    p.inputs[0] = best_at;
    if (p.history) p.history[(*p.count)++] = best_at;
    *p.position += 1;
}

template <class Weights, bool STAGED>
static int launch_shared(const Gemv *p, bool dependent, void *queue) {
    size_t inputs = STAGED ? Inputs<Weights>::bytes(p->m, p->columns) : 0;
    size_t shared = WARPS * Ring<Weights>::AROUND + inputs;
#define LAUNCH(SHARE) \
    launch(gemv_kernel<Weights, SHARE, STAGED>, *p, p->grid, THREADS, shared, dependent, queue)
    switch (p->share) {
        case 1: return LAUNCH(1);
        case 2: return LAUNCH(2);
        case 4: return LAUNCH(4);
        default: return LAUNCH(8);
    }
#undef LAUNCH
}

template <class Type>
struct Of {
    typedef Type Weights;
};

/* Do something with the type of a matrix's stages. */
template <class Do>
static auto with_weights(const Gemv *p, Do act) {
    if (p->scheme == DENSE) return act(Of<Stage<DENSE, false, 1>>());
    if (p->scheme == INT8) return act(Of<Stage<INT8, false, 1>>());
    switch ((p->group >= 128 ? 0 : p->group == 64 ? 1 : 2) + 3 * p->asymmetric) {
        case 0: return act(Of<Stage<INT4, false, 1>>());
        case 1: return act(Of<Stage<INT4, false, 2>>());
        case 2: return act(Of<Stage<INT4, false, 4>>());
        case 3: return act(Of<Stage<INT4, true, 1>>());
        case 4: return act(Of<Stage<INT4, true, 2>>());
        default: return act(Of<Stage<INT4, true, 4>>());
    }
}

/* Bytes that a launch needs for its inputs in fixed point; 0 where a block has room for them. */
extern "C" size_t gemv_room(const Gemv *p) {
    return with_weights(p, [&](auto of) {
        typedef typename decltype(of)::Weights Weights;
        return is_staged(p) || p->scheme == DENSE ? 0 : Inputs<Weights>::bytes(p->m, p->columns);
    });
}

extern "C" int gemv_launch(const Gemv *p, int dependent, void *queue) {
    return with_weights(p, [&](auto of) {
        typedef typename decltype(of)::Weights Weights;
        if (is_staged(p)) return launch_shared<Weights, true>(p, dependent, queue);
        if constexpr (Weights::SCHEME != DENSE) {
            int blocks = (p->m * p->columns / 8 + THREADS - 1) / THREADS;
            int error = launch(fixed_kernel<Weights>, *p, blocks, THREADS, 0, dependent, queue);
            if (error) return error;
        }
        return launch_shared<Weights, false>(p, dependent, queue);
    });
}

extern "C" int unpack_launch(const Gemv *p, const Unpack *u, void *queue) {
    return with_weights(p, [&](auto of) {
        auto kernel = unpack_kernel<typename decltype(of)::Weights>;
        return launch(kernel, *u, p->tiles, THREADS, 0, false, queue);
    });
}

extern "C" int choose_launch(const Choice *p, int dependent, void *queue) {
    return launch(choose_kernel, *p, p->m, CHOOSE_THREADS, 0, dependent, queue);
}

extern "C" int norm_launch(const Norm *p, int m, int dependent, void *queue) {
    return launch(norm_kernel, *p, m, THREADS, 0, dependent, queue);
}

extern "C" const char *error_name(int error) { return cudaGetErrorString((cudaError_t)error); }
