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
constexpr int DEPTH = 6;          /* stages of the ring */
constexpr int STAGED = 24 * 1024; /* bytes of inputs that are copied to shared memory */

/* SHARE warps work on a tile together; the others of the block on other tiles. */
template <int SHARE>
__device__ __forceinline__ void meet(int team) {
    if constexpr (SHARE == 1) __syncwarp();
    else asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "r"(32 * SHARE) : "memory");
}

template <int SCHEME, bool ASYMMETRIC, int GROUPS, int SHARE>
__global__ void __launch_bounds__(THREADS) gemv_kernel(const Gemv p) {
    constexpr int TEAMS = WARPS / SHARE;
    constexpr int ITEMS = 16 * MOST / (32 * SHARE) > 0 ? 16 * MOST / (32 * SHARE) : 1;
    typedef Stage<SCHEME, ASYMMETRIC, GROUPS> Weights;
    extern __shared__ __align__(16) uint8_t dynamic[];
    __shared__ float parts[2][WARPS][16][MOST + 1];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int team = warp / SHARE, part = warp % SHARE, member = threadIdx.x % (32 * SHARE);
    int stages = p.columns / Weights::COLUMNS, stride = gridDim.x * TEAMS;
    int first = blockIdx.x * TEAMS + team;
    Weights *ring = (Weights *)dynamic + warp * DEPTH;
    __nv_bfloat16 *ready = (__nv_bfloat16 *)((Weights *)dynamic + WARPS * DEPTH);

    /* The warp's copies, one after the other, across its tiles. */
    int ahead_tile = first, ahead = part;
    auto fetch = [&](int slot) {
        if (ahead_tile < p.tiles)
            ring[slot].copy((const uint8_t *)p.weights +
                            ((size_t)ahead_tile * stages + ahead) * Weights::BYTES);
        end_of_stage();
        ahead += SHARE;
        if (ahead >= stages) ahead = part, ahead_tile += stride;
    };
    bool works = part < stages; /* a matrix may be narrower than its team */
    if (works) {
#pragma unroll
        for (int j = 0; j < DEPTH - 1; j++) fetch(j); /* weights don't wait for anybody */
    }
    launch_dependents();
    wait_for_inputs();
    const __nv_bfloat16 *x = p.x;
    int bytes = p.m * p.columns * 2;
    if (bytes <= STAGED) {
        for (int i = threadIdx.x; i < bytes / 16; i += THREADS)
            ((uint4 *)ready)[i] = ((const uint4 *)x)[i];
        x = ready;
        __syncthreads();
    }

    const __nv_bfloat16 *mine = g < p.m ? x + (size_t)g * p.columns + 4 * t : nullptr;
    Sums<SCHEME> sums;
    float best[ITEMS];
    int best_at[ITEMS], turn = 0;
    for (int i = 0; i < ITEMS; i++) best[i] = -INFINITY, best_at[i] = 0x7fffffff;

    auto finish = [&](int tile) { /* add up the team's parts, and do what comes after */
        sums.hand_in(parts[turn][warp][0], MOST + 1, p.m);
        meet<SHARE>(team);
#pragma unroll
        for (int item = 0; item < ITEMS; item++) {
            int at = member + item * 32 * SHARE, r = at % 16, n = at / 16, row = tile * 16 + r;
            if (n >= p.m) continue;
            Beside beside;
            beside.load<SCHEME>(p, row, n);
            float value = 0.0f;
            for (int w = 0; w < SHARE; w++) value += parts[turn][team * SHARE + w][r][n];
            value *= beside.scale;
            if (p.output != BEST) put(p, tile, r, n, value, beside);
            else if (row < p.rows && value > best[item]) best[item] = value, best_at[item] = row;
        }
        turn ^= 1;
    };

    if (works) {
        int tile = first, stage = part, slot = 0;
        while (tile < p.tiles) {
            int last = slot ? slot - 1 : DEPTH - 1;
            __syncwarp(); /* all lanes are done with the slot that is filled next */
            fetch(last);
            wait_for_stage<DEPTH>();
            if (Weights::TABLES) __syncwarp(); /* the scales were copied by other lanes */
            ring[slot].multiply(mine ? mine + stage * Weights::COLUMNS : nullptr, sums);
            slot = slot == DEPTH - 1 ? 0 : slot + 1;
            stage += SHARE;
            if (stage >= stages) {
                finish(tile);
                tile += stride, stage = part;
            }
        }
    } else {
        for (int tile = first; tile < p.tiles; tile += stride) finish(tile);
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

constexpr int NORM_THREADS = 512, NORM_MOST = 4096;

__global__ void __launch_bounds__(NORM_THREADS) norm_kernel(const Norm p) {
    __shared__ float sums[2][NORM_THREADS / 32];
    launch_dependents();
    Normer<NORM_THREADS, NORM_MOST> normer;
    normer.load(p); /* the weights don't wait */
    wait_for_inputs();
    normer.run(p, blockIdx.x, p.out + (size_t)blockIdx.x * p.size, true, sums);
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

__global__ void choose_kernel(const Choice p) {
    launch_dependents();
    wait_for_inputs();
    int n = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (n >= p.m) return;
    float best = -INFINITY;
    int best_at = 0x7fffffff;
    for (int i = lane; i < p.teams; i += 32) {
        float value = p.best[i * MOST + n];
        int at = p.best_at[i * MOST + n];
        if (value > best || (value == best && at < best_at)) best = value, best_at = at;
    }
    for (int reach = 16; reach; reach /= 2) {
        float other = __shfl_xor_sync(~0u, best, reach);
        int other_at = __shfl_xor_sync(~0u, best_at, reach);
        if (other > best || (other == best && other_at < best_at)) best = other, best_at = other_at;
    }
    if (lane) return;
    p.choices[n] = best_at;
    if (!p.inputs) return;
    p.inputs[0] = best_at;
    if (p.history) p.history[(*p.count)++] = best_at;
    *p.position += 1;
}

template <int SCHEME, bool ASYMMETRIC, int GROUPS>
static int launch_shared(const Gemv *p, bool dependent, void *in) {
    size_t inputs = (size_t)p->m * p->columns * sizeof(__nv_bfloat16);
    if (inputs > STAGED) inputs = 0;
    size_t ring = DEPTH * sizeof(Stage<SCHEME, ASYMMETRIC, GROUPS>);
#define LAUNCH(SHARE)                                                                             \
    launch(gemv_kernel<SCHEME, ASYMMETRIC, GROUPS, SHARE>, *p, p->grid, THREADS, \
           inputs + ring * WARPS, dependent, in)
    switch (p->share) {
        case 1: return LAUNCH(1);
        case 2: return LAUNCH(2);
        case 4: return LAUNCH(4);
        default: return LAUNCH(8);
    }
#undef LAUNCH
}

extern "C" int gemv_launch(const Gemv *p, int dependent, void *queue) {
    void *in = queue;
    if (p->scheme == DENSE) return launch_shared<DENSE, false, 1>(p, dependent, in);
    if (p->scheme == INT8) return launch_shared<INT8, false, 1>(p, dependent, in);
    switch ((p->group >= 128 ? 0 : p->group == 64 ? 1 : 2) + 3 * p->asymmetric) {
        case 0: return launch_shared<INT4, false, 1>(p, dependent, in);
        case 1: return launch_shared<INT4, false, 2>(p, dependent, in);
        case 2: return launch_shared<INT4, false, 4>(p, dependent, in);
        case 3: return launch_shared<INT4, true, 1>(p, dependent, in);
        case 4: return launch_shared<INT4, true, 2>(p, dependent, in);
        default: return launch_shared<INT4, true, 4>(p, dependent, in);
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
    return launch(choose_kernel, *p, 1, 32 * MOST, 0, dependent, queue);
}

extern "C" int norm_launch(const Norm *p, int m, int dependent, void *queue) {
    return launch(norm_kernel, *p, m, NORM_THREADS, 0, dependent, queue);
}

extern "C" const char *error_name(int error) { return cudaGetErrorString((cudaError_t)error); }
