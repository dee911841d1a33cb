/* Packed matrices times one to eight vectors on a GPU, with what lies around them fused in.
 *
 *   y[n] = W x[n], n < m ≤ 8
 *
 * Decoding is bound by reading W, so the kernel is built around an uninterrupted stream: each warp
 * copies ahead into a ring of its own in shared memory (cp.async), across tiles too, and on sm_90
 * begins before the kernel that makes x has ended (programmatic dependent launch).
 * The products go through the tensor cores (mma.m16n8k16, sm_80 and newer): they are idle anyway,
 * the vectors fill one column each, and unpacking 4-bit weights to bfloat16 takes seven integer
 * operations for eight weights.
 *
 * Layout: tiles of 16 rows; within a tile, stages of 2 × 32 lanes × 16 bytes. Lane (g, t) =
 * (lane / 4, lane % 4) holds rows g and g + 8. Columns of 16 bytes, by scheme:
 *   dense  16: bf16 of (g, 4t), (g, 4t+1), (g+8, 4t), (g+8, 4t+1), (g, 4t+2), …, (g+8, 4t+3)
 *   int8   32: two blocks of 16; bytes (g, 4t), (g+8, 4t), (g, 4t+1), (g+8, 4t+1), then 4t+2, 4t+3
 *   int4   64: four blocks of 16; half-byte i of (0 … 3) holds columns 4t, 4t of rows g, g+8 and
 *              4t+2 of both, half-byte i + 4 the column after it; after the 1024 bytes, for each
 *              group of the stage's 128 columns, 16 scales or 16 pairs (scale, minimum), float16
 * Codes are unsigned. A 4-bit code q in the low bits of 0x4300 is the bfloat16 number 128 + q; what
 * that adds is taken off with the sum of the inputs, which one more mma against ones gives for free.
 *
 * m16n8k16's order of k within a unit is ours to choose, so x is read in its natural order.
 */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "attention.cuh"
#include "device.cuh"

constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int DEPTH = 6;                /* stages of the ring */
constexpr int STAGED = 24 * 1024;       /* bytes of inputs that are copied to shared memory */

enum Scheme { DENSE = 0, INT8 = 1, INT4 = 2 };
enum Output { STORE = 0, GATED = 1, PER_LAYER = 2, BEST = 3 };

struct Gemv {
    const uint4 *weights;
    const float *scales; /* int8: [tiles, 16] */
    const __nv_bfloat16 *x; /* [m, columns] */
    float *y;               /* STORE: [m, rows] */
    __nv_bfloat16 *out;   /* GATED: [m, rows / 2]; PER_LAYER: [m, rows] */
    const float *partner; /* PER_LAYER: [m, partner_stride], multiplied with gelu(y) */
    float *best;          /* BEST: [teams, 8], and where */
    int *best_at;
    int scheme, asymmetric, tiles, rows, columns, group, m, output, silu, partner_stride, grid;
    int share; /* warps that work on a tile together: 1, 2, 4 or 8 */
};

__device__ __forceinline__ void copy_ahead(void *to, const void *from) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(at), "l"(from));
}

__device__ __forceinline__ void end_of_stage() { asm volatile("cp.async.commit_group;"); }

__device__ __forceinline__ void wait_for_stage() { /* the oldest of DEPTH */
    asm volatile("cp.async.wait_group %0;" ::"n"(DEPTH - 1) : "memory");
}

__device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                    uint32_t a3, uint2 b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b.x), "r"(b.y));
}

/* Four half-bytes, 16 bits apart in pairs, as two bfloat16 numbers 128 + q. */
__device__ __forceinline__ uint32_t magic(uint32_t v) {
    uint32_t r;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(v), "r"(0x000f000fu), "r"(0x43004300u));
    return r;
}

__device__ __forceinline__ float gelu(float x) {
    float inner = 1.5957691216f * (x + 0.044715f * x * x * x);
    return x / (1.0f + __expf(-inner));
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + __expf(-x)); }

/* One stage: 2 × 16 bytes per lane, and for int4 its groups' scales. GROUPS: per 128 columns. */
template <int SCHEME, bool ASYMMETRIC, int GROUPS>
struct Stage {
    static constexpr int COLUMNS = SCHEME == DENSE ? 32 : SCHEME == INT8 ? 64 : 128;
    static constexpr int TABLES = SCHEME == INT4 ? GROUPS * 16 * (ASYMMETRIC ? 4 : 2) : 0;
    static constexpr int BYTES = 1024 + TABLES;
    uint4 weights[2][32];
    uint8_t tables[TABLES ? TABLES : 16];

    __device__ __forceinline__ void copy(const uint8_t *from) {
        int lane = threadIdx.x % 32;
        copy_ahead(&weights[0][lane], from + 16 * lane);
        copy_ahead(&weights[1][lane], from + 512 + 16 * lane);
        if (TABLES && lane < TABLES / 16) copy_ahead(tables + 16 * lane, from + 1024 + 16 * lane);
    }

    /* Add a group's part; row: of the tile. */
    __device__ __forceinline__ void apply(int group, int row, float *y, const float *c,
                                          const float *s) const {
        float scale, offset; /* offset: what the codes' 128 and, if symmetric, their 8 adds */
        if (ASYMMETRIC) {
            __half2 pair = ((const __half2 *)tables)[group * 16 + row];
            scale = __low2float(pair), offset = __high2float(pair) - 128.0f * scale;
        } else {
            scale = __half2float(((const __half *)tables)[group * 16 + row]);
            offset = -136.0f * scale;
        }
        y[0] += scale * c[0] + offset * s[0];
        y[1] += scale * c[1] + offset * s[1];
    }

    /* x: at this stage's columns, of this lane's vector; null where there is none. */
    __device__ __forceinline__ void multiply(const __nv_bfloat16 *x, float (&y)[4],
                                             float (&high)[4], float (&sums)[4]) const {
        constexpr uint32_t ONES = 0x3f803f80u;
        int lane = threadIdx.x % 32, g = lane / 4;
        float c[4] = {}, sum[4] = {};
#pragma unroll
        for (int part = 0; part < 2; part++) {
            uint4 w = weights[part][lane];
            const uint32_t v[4] = {w.x, w.y, w.z, w.w};
            uint2 b[COLUMNS / 32];
#pragma unroll
            for (int s = 0; s < COLUMNS / 32; s++)
                b[s] = x ? *(const uint2 *)(x + part * COLUMNS / 2 + 16 * s) : uint2{0, 0};
            if constexpr (SCHEME == DENSE) {
                mma(part ? high : y, v[0], v[1], v[2], v[3], b[0]);
            } else if constexpr (SCHEME == INT8) {
#pragma unroll
                for (int s = 0; s < 2; s++) {
                    uint32_t one = v[2 * s], two = v[2 * s + 1];
                    mma(y, magic(one), magic(one >> 8), magic(two), magic(two >> 8), b[s]);
                    mma(high, magic(one >> 4), magic(one >> 12), magic(two >> 4), magic(two >> 12),
                        b[s]);
                    mma(sums, ONES, ONES, ONES, ONES, b[s]);
                }
            } else {
#pragma unroll
                for (int s = 0; s < 4; s++) {
                    mma(c, magic(v[s]), magic(v[s] >> 4), magic(v[s] >> 8), magic(v[s] >> 12),
                        b[s]);
                    mma(sum, ONES, ONES, ONES, ONES, b[s]);
                    int block = 4 * part + s, size = 8 / GROUPS; /* blocks of 16 to a group */
                    if (block % size == size - 1) {
                        apply(block / size, g, y, c, sum);
                        apply(block / size, g + 8, y + 2, c + 2, sum + 2);
#pragma unroll
                        for (int i = 0; i < 4; i++) c[i] = sum[i] = 0.0f;
                    }
                }
            }
        }
    }
};

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
    float y[4] = {}, high[4] = {}, sums[4] = {};
    float best[ITEMS];
    int best_at[ITEMS], turn = 0;
    for (int i = 0; i < ITEMS; i++) best[i] = -INFINITY, best_at[i] = 0x7fffffff;

    auto finish = [&](int tile) { /* add up the team's parts, and do what comes after */
        for (int i = 0; i < 4; i++) {
            if (SCHEME == DENSE) y[i] += high[i];
            if (SCHEME == INT8) y[i] += 16.0f * high[i] - 2304.0f * sums[i];
            int n = 2 * t + i % 2;
            if (n < p.m) parts[turn][warp][g + 8 * (i / 2)][n] = y[i];
            y[i] = high[i] = sums[i] = 0.0f;
        }
        meet<SHARE>(team);
#pragma unroll
        for (int item = 0; item < ITEMS; item++) {
            int at = member + item * 32 * SHARE, r = at % 16, n = at / 16, row = tile * 16 + r;
            if (n >= p.m) continue;
            float value = 0.0f;
            for (int w = 0; w < SHARE; w++) value += parts[turn][team * SHARE + w][r][n];
            if constexpr (SCHEME == INT8) value *= p.scales[row];
            unsigned together = __activemask();
            float other = __shfl_down_sync(together, value, 8, 16);
            if (p.output == STORE) {
                if (row < p.rows) p.y[(size_t)n * p.rows + row] = value;
            } else if (p.output == GATED) {
                float gate = p.silu ? silu(value) : gelu(value);
                int column = tile * 8 + r;
                if (r < 8 && column < p.rows / 2)
                    p.out[(size_t)n * (p.rows / 2) + column] = __float2bfloat16(gate * other);
            } else if (p.output == PER_LAYER) {
                if (row < p.rows) {
                    float scaled = gelu(value) * p.partner[(size_t)n * p.partner_stride + row];
                    p.out[(size_t)n * p.rows + row] = __float2bfloat16(scaled);
                }
            } else if (row < p.rows && value > best[item]) {
                best[item] = value, best_at[item] = row;
            }
        }
        turn ^= 1;
    };

    if (works) {
        int tile = first, stage = part, slot = 0;
        while (tile < p.tiles) {
            int last = slot ? slot - 1 : DEPTH - 1;
            __syncwarp(); /* all lanes are done with the slot that is filled next */
            fetch(last);
            wait_for_stage();
            if (Weights::TABLES) __syncwarp(); /* the scales were copied by other lanes */
            ring[slot].multiply(mine ? mine + stage * Weights::COLUMNS : nullptr, y, high, sums);
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

/* The residual stream moved on, and normed for the matrices to come: one block per vector. */
struct Norm {
    const float *residual, *delta, *delta_norm, *norm;
    float *new_residual;
    __nv_bfloat16 *out;
    float eps, scale;
    int size;
};

constexpr int NORM_THREADS = 512, NORM_MOST = 4096 / NORM_THREADS;

__device__ float block_sum(float value, float *shared) {
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < NORM_THREADS / 32; w++) total += shared[w];
    return total;
}

__global__ void __launch_bounds__(NORM_THREADS) norm_kernel(const Norm p) {
    __shared__ float first[NORM_THREADS / 32], second[NORM_THREADS / 32];
    launch_dependents();
    float own[NORM_MOST], input[NORM_MOST], x[NORM_MOST], d[NORM_MOST];
#pragma unroll
    for (int i = 0; i < NORM_MOST; i++) { /* the weights don't wait */
        int at = threadIdx.x + i * NORM_THREADS;
        own[i] = at < p.size && p.delta_norm ? p.delta_norm[at] : 1.0f;
        input[i] = at < p.size && p.norm ? p.norm[at] : 1.0f;
    }
    wait_for_inputs();
    size_t row = (size_t)blockIdx.x * p.size;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < NORM_MOST; i++) {
        int at = threadIdx.x + i * NORM_THREADS;
        x[i] = at < p.size ? p.residual[row + at] : 0.0f;
        d[i] = at < p.size && p.delta ? p.delta[row + at] : 0.0f;
        sum += d[i] * d[i];
    }
    float scale = p.delta_norm ? rsqrtf(block_sum(sum, first) / p.size + p.eps) : 1.0f;
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < NORM_MOST; i++) {
        if (p.delta) x[i] = (x[i] + d[i] * scale * own[i]) * p.scale;
        sum += x[i] * x[i];
    }
    scale = p.norm ? rsqrtf(block_sum(sum, second) / p.size + p.eps) : 1.0f;
#pragma unroll
    for (int i = 0; i < NORM_MOST; i++) {
        int at = threadIdx.x + i * NORM_THREADS;
        if (at >= p.size) continue;
        if (p.new_residual) p.new_residual[row + at] = x[i];
        p.out[row + at] = __float2bfloat16(x[i] * scale * input[i]);
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
