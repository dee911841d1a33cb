/* Packed matrices times one to eight vectors on a GPU, with what lies around them fused in.
 *
 *   y[n] = W x[n], n < m ≤ 8
 *
 * Decoding is bound by reading W, so the kernel is built around an uninterrupted stream: each warp
 * copies ahead into a ring of its own in shared memory (cp.async), across tiles too, and on sm_90
 * begins before the kernel that makes x has ended (programmatic dependent launch).
 * stage.cuh says how a matrix is laid out and multiplied.
 */
#include "attention.cuh"
#include "norm.cuh"
#include "stage.cuh"

constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int NORM_MOST = 4096;   /* of a vector that is normed */
constexpr int MOST_STAGED = 24 * 1024; /* bytes of inputs that are copied to shared memory */

/* SHARE warps work on a tile together; the others of the block on other tiles. */
template <int SHARE>
__device__ __forceinline__ void meet(int team) {
    if constexpr (SHARE == 1) __syncwarp();
    else asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "r"(32 * SHARE) : "memory");
}

/* x [m, columns] goes to shared memory, if there is room, with the sums of its groups, which take
 * off what the codes' offsets add: [m, groups], of one order whatever m is.
 */
template <int COLUMNS>
struct Inputs {
    static constexpr int LANES = COLUMNS / 8; /* that have a group's columns */
    __nv_bfloat16 *x;
    float *sums;

    /* 8 inputs, of all lanes together. */
    __device__ __forceinline__ void put(int chunk, bool inside, uint4 inputs) const {
        if (x && inside) ((uint4 *)x)[chunk] = inputs;
        if constexpr (LANES > 0) {
            const uint32_t v[4] = {inputs.x, inputs.y, inputs.z, inputs.w};
            float sum = 0.0f;
#pragma unroll
            for (int j = 0; j < 4; j++)
                sum += __uint_as_float(v[j] << 16) + __uint_as_float(v[j] & 0xffff0000u);
            for (int reach = LANES / 2; reach; reach /= 2)
                sum += __shfl_xor_sync(~0u, sum, reach);
            if (inside && chunk % LANES == 0) sums[chunk / LANES] = sum;
        }
    }

    __device__ __forceinline__ void take_in(const Gemv &p) const {
        constexpr int AT_ONCE = MOST_STAGED / 16 / THREADS; /* loads under way together */
        int chunks = p.m * p.columns / 8;
        for (int start = 0; start < chunks; start += AT_ONCE * THREADS) {
            uint4 held[AT_ONCE];
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                int at = start + j * THREADS + threadIdx.x;
                held[j] = at < chunks ? ((const uint4 *)p.x)[at] : uint4{0, 0, 0, 0};
            }
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                int at = start + j * THREADS + threadIdx.x;
                if (at / 32 * 32 < chunks) put(at, at < chunks, held[j]); /* a warp together */
            }
        }
    }

    __device__ __forceinline__ void make(const Gemv &p, float *shared) const {
        int chunks = p.columns / 8;
        for (int n = 0; n < p.m; n++) {
            constexpr bool AFTER_DENSE = COLUMNS == 0; /* only dense matrices leave halves */
            Normer<THREADS, NORM_MOST, AFTER_DENSE> normer;
            normer.run(p.before, n, blockIdx.x == 0, shared);
#pragma unroll
            for (int c = 0; c < normer.CHUNKS; c++) {
                int at = threadIdx.x + c * THREADS;
                if (at / 32 * 32 < chunks) put(n * chunks + at, at < chunks, normer.chunk(c));
            }
        }
    }
};

template <int SCHEME, bool ASYMMETRIC, int GROUPS, int SHARE, bool STAGED>
__global__ void __launch_bounds__(THREADS, 3) gemv_kernel(const Gemv p) {
    constexpr int TEAMS = WARPS / SHARE;
    constexpr int ITEMS = 16 * MOST / (32 * SHARE) > 0 ? 16 * MOST / (32 * SHARE) : 1;
    typedef Stage<SCHEME, ASYMMETRIC, GROUPS> Weights;
    constexpr int DEPTH = Weights::DEPTH, SIZE = sizeof(Weights), AROUND = DEPTH * SIZE;
    extern __shared__ __align__(16) uint8_t dynamic[];
    __shared__ float parts[2][WARPS][16][MOST + 1];
    __shared__ __align__(16) __nv_bfloat16 nothing[Weights::COLUMNS];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int team = warp / SHARE, part = warp % SHARE, member = threadIdx.x % (32 * SHARE);
    const int halved = SCHEME == DENSE ? p.halved : 0; /* others' tiles are shorter */
    int stages = p.columns / Weights::COLUMNS >> halved, stride = gridDim.x * TEAMS;
    int first = blockIdx.x * TEAMS + team, units = p.tiles << halved; /* tiles, or halves */
    uint8_t *ring = dynamic + warp * AROUND;
    float *group_sums = (float *)(dynamic + WARPS * AROUND);
    int num_sums = SCHEME == DENSE ? 0 : p.m * p.columns / Weights::GROUP;
    auto *ready = (__nv_bfloat16 *)(group_sums + (num_sums + 3) / 4 * 4);

    /* The warp's copies, one after the other, across its tiles: so many of each, so many tiles. */
    int each = part < stages ? (stages - part + SHARE - 1) / SHARE : 0;
    int turns = first < units ? (units - first + stride - 1) / stride : 0;
    int to_copy = each * turns, left = each, write_at = 0;
    const uint8_t *from =
        (const uint8_t *)p.weights + ((size_t)first * stages + part) * Weights::BYTES;
    size_t jump = ((size_t)stride * stages - each * SHARE) * Weights::BYTES;
    uint64_t policy = read_once();
    auto copy = [&]() {
        if (to_copy > 0) {
            ((Weights *)(ring + write_at))->copy(from, policy);
            from += SHARE * Weights::BYTES, to_copy--;
            if (--left == 0) left = each, from += jump;
        }
        end_of_stage();
        write_at = write_at == AROUND - SIZE ? 0 : write_at + SIZE;
    };
#pragma unroll
    for (int j = 0; j < DEPTH - 1; j++) copy(); /* weights don't wait for anybody */
    launch_dependents();
    if (STAGED && !p.x) Normer<THREADS, NORM_MOST, false>::prefetch(p.before);
    if (threadIdx.x < Weights::COLUMNS / 2) ((uint32_t *)nothing)[threadIdx.x] = 0;
    wait_for_inputs();
    Inputs<SCHEME == DENSE ? 0 : Weights::GROUP> taken{STAGED ? ready : nullptr, group_sums};
    if (!STAGED || p.x) taken.take_in(p);
    else taken.make(p, (float *)parts);
    __syncthreads();
    const __nv_bfloat16 *x = STAGED ? ready : p.x;

    /* This lane's vector, or zeros; this lane's two vectors' sums. */
    bool mine = g < p.m;
    const __nv_bfloat16 *own = nothing + 4 * t;
    if (mine) own = x + (size_t)g * p.columns + part * Weights::COLUMNS + 4 * t;
    int input_step = mine ? SHARE * Weights::COLUMNS : 0;
    int row_sums = p.columns / Weights::GROUP;
    int one = min(2 * t, p.m - 1), two = min(2 * t + 1, p.m - 1);
    const float *own_sums = group_sums + one * row_sums + part * GROUPS;
    int to_second = (two - one) * row_sums;
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

    for (int unit = first, read_at = 0; unit < units; unit += stride) {
        int skip = (unit & halved) * stages;
        const __nv_bfloat16 *input = own + (mine ? skip * Weights::COLUMNS : 0);
        const float *of_one = own_sums + skip * GROUPS, *of_two = of_one + to_second;
        for (int i = 0; i < each; i++) {
            __syncwarp(); /* all lanes are done with the slot that is filled next */
            copy();
            wait_for_stage<DEPTH>();
            if (Weights::TABLES) __syncwarp(); /* the scales were copied by other lanes */
            ((const Weights *)(ring + read_at))->multiply(input, of_one, of_two, sums);
            read_at = read_at == AROUND - SIZE ? 0 : read_at + SIZE;
            input += input_step, of_one += SHARE * GROUPS, of_two += SHARE * GROUPS;
        }
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

/* The weights as dense bfloat16 [rows, columns], for products with a whole prompt. */
struct Unpack {
    const uint8_t *weights;
    const float *scales;
    __nv_bfloat16 *out;
    int stages, rows, columns, interleaved;
};

template <int SCHEME, bool ASYMMETRIC, int GROUPS>
__global__ void unpack_kernel(const Unpack p) {
    typedef Stage<SCHEME, ASYMMETRIC, GROUPS> Weights;
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
            int column = stage * Weights::COLUMNS + part * Weights::COLUMNS / 2 + 4 * t;
            for (int i = 0; i < 4; i++) {
                if (SCHEME == DENSE) {
                    __nv_bfloat162 two = *(const __nv_bfloat162 *)&v[i];
                    put(i % 2, column + i / 2 * 2, __low2float(two), __high2float(two));
                } else if (SCHEME == INT8) { /* words: blocks 0, 0, 1, 1 of 16 columns */
                    int at = column + i / 2 * 16 + i % 2 * 2;
                    for (int half = 0; half < 2; half++) {
                        float scale = p.scales[tile * 16 + g + 8 * half];
                        int one = v[i] >> (8 * half) & 255, two = v[i] >> (8 * half + 16) & 255;
                        put(half, at, (one - 128) * scale, (two - 128) * scale);
                    }
                } else {
                    int group = (4 * part + i) / (8 / GROUPS);
                    for (int half = 0; half < 2; half++) {
                        int entry = group * 16 + g + 8 * half;
                        const uint8_t *tables = from + 1024;
                        float scale, minimum;
                        if (ASYMMETRIC) {
                            __half2 both = ((const __half2 *)tables)[entry];
                            scale = __low2float(both), minimum = __high2float(both);
                        } else {
                            scale = __half2float(((const __half *)tables)[entry]);
                            minimum = -8.0f * scale;
                        }
                        for (int two = 0; two < 2; two++) {
                            int shift = 4 * (half + 2 * two);
                            int low = v[i] >> shift & 15, high = v[i] >> (shift + 16) & 15;
                            put(half, column + 16 * i + 2 * two, low * scale + minimum,
                                high * scale + minimum);
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

template <int SCHEME, bool ASYMMETRIC, int GROUPS, bool STAGED>
static int launch_shared(const Gemv *p, bool dependent, void *in) {
    typedef Stage<SCHEME, ASYMMETRIC, GROUPS> Weights;
    size_t sums = SCHEME == DENSE ? 0 : (p->m * p->columns / Weights::GROUP + 3) / 4 * 16;
    size_t inputs = STAGED ? (size_t)p->m * p->columns * sizeof(__nv_bfloat16) : 0;
    size_t shared = WARPS * Weights::DEPTH * sizeof(Weights) + sums + inputs;
#define LAUNCH(SHARE)                                                                             \
    launch(gemv_kernel<SCHEME, ASYMMETRIC, GROUPS, SHARE, STAGED>, *p, p->grid, THREADS, shared,  \
           dependent, in)
    switch (p->share) {
        case 1: return LAUNCH(1);
        case 2: return LAUNCH(2);
        case 4: return LAUNCH(4);
        default: return LAUNCH(8);
    }
#undef LAUNCH
}

template <int SCHEME, bool ASYMMETRIC, int GROUPS>
static int launch_packed(const Gemv *p, bool dependent, void *in) {
    bool staged = p->m * p->columns * sizeof(__nv_bfloat16) <= MOST_STAGED;
    return staged ? launch_shared<SCHEME, ASYMMETRIC, GROUPS, true>(p, dependent, in)
                  : launch_shared<SCHEME, ASYMMETRIC, GROUPS, false>(p, dependent, in);
}

extern "C" int gemv_launch(const Gemv *p, int dependent, void *queue) {
    void *in = queue;
    if (p->scheme == DENSE) return launch_packed<DENSE, false, 1>(p, dependent, in);
    if (p->scheme == INT8) return launch_packed<INT8, false, 1>(p, dependent, in);
    switch ((p->group >= 128 ? 0 : p->group == 64 ? 1 : 2) + 3 * p->asymmetric) {
        case 0: return launch_packed<INT4, false, 1>(p, dependent, in);
        case 1: return launch_packed<INT4, false, 2>(p, dependent, in);
        case 2: return launch_packed<INT4, false, 4>(p, dependent, in);
        case 3: return launch_packed<INT4, true, 1>(p, dependent, in);
        case 4: return launch_packed<INT4, true, 2>(p, dependent, in);
        default: return launch_packed<INT4, true, 4>(p, dependent, in);
    }
}

#define UNPACK(...) launch(unpack_kernel<__VA_ARGS__>, *u, p->tiles, THREADS, 0, false, queue)
extern "C" int unpack_launch(const Gemv *p, const Unpack *u, void *queue) {
    if (p->scheme == DENSE) return UNPACK(DENSE, false, 1);
    if (p->scheme == INT8) return UNPACK(INT8, false, 1);
    switch ((p->group >= 128 ? 0 : p->group == 64 ? 1 : 2) + 3 * p->asymmetric) {
        case 0: return UNPACK(INT4, false, 1);
        case 1: return UNPACK(INT4, false, 2);
        case 2: return UNPACK(INT4, false, 4);
        case 3: return UNPACK(INT4, true, 1);
        case 4: return UNPACK(INT4, true, 2);
        default: return UNPACK(INT4, true, 4);
    }
}

extern "C" int choose_launch(const Choice *p, int dependent, void *queue) {
    return launch(choose_kernel, *p, p->m, CHOOSE_THREADS, 0, dependent, queue);
}

extern "C" int norm_launch(const Norm *p, int m, int dependent, void *queue) {
    return launch(norm_kernel, *p, m, THREADS, 0, dependent, queue);
}

extern "C" const char *error_name(int error) { return cudaGetErrorString((cudaError_t)error); }
