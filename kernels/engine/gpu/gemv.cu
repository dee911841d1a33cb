/* Packed matrices times one to eight vectors on a GPU, with what lies around them fused in.
 *
 *   y[n] = W x[n], n < m ≤ 8
 *
 * Decoding is bound by reading W, so the kernel is built around an uninterrupted stream of 16-byte
 * loads: while one batch is multiplied the next is under way, across tiles too, and on sm_90 the
 * first batch is asked for before the kernel that makes x has ended (programmatic dependent launch).
 * The products go through the tensor cores (mma.m16n8k16, sm_80 and newer): they are idle anyway,
 * the vectors fill one column each, and unpacking 4-bit weights to bfloat16 takes seven integer
 * operations for eight weights.
 *
 * Layout: tiles of 16 rows; within a tile, units of 32 lanes × 16 bytes. Lane (g, t) = (lane / 4,
 * lane % 4) holds rows g and g + 8. Columns of a unit, by scheme:
 *   dense  16: bf16 of (g, 4t), (g, 4t+1), (g+8, 4t), (g+8, 4t+1), (g, 4t+2), …, (g+8, 4t+3)
 *   int8   32: two blocks of 16; bytes (g, 4t), (g+8, 4t), (g, 4t+1), (g+8, 4t+1), then 4t+2, 4t+3
 *   int4   64: four blocks of 16; half-byte i of (0 … 3) holds columns 4t, 4t of rows g, g+8 and
 *              4t+2 of both, half-byte i + 4 the column after it
 * Codes are unsigned. A 4-bit code q in the low bits of 0x4300 is the bfloat16 number 128 + q; what
 * that adds is taken off with the sum of the inputs, which one more mma against ones gives for free.
 *
 * m16n8k16's order of k within a unit is ours to choose, so x is read in its natural order.
 */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

constexpr int MOST = 8;                /* vectors */
constexpr int DEPTH = 8;               /* loads in flight per lane */
constexpr int STAGED = 48 * 1024;      /* bytes of inputs that are copied to shared memory */

enum Scheme { DENSE = 0, INT8 = 1, INT4 = 2 };
enum Output { STORE = 0, GATED = 1, PER_LAYER = 2, BEST = 3 };

struct Gemv {
    const uint4 *weights;
    const void *scales; /* int4: half (scale) or half2 (scale, minimum) [tiles, groups, 16];
                           int8: float [tiles, 16] */
    /* Inputs: either bfloat16 [m, columns], or what makes them from the residual stream. */
    const __nv_bfloat16 *x;
    const float *residual, *delta, *delta_norm, *delta_squares, *input_norm;
    float *new_residual;
    float eps, residual_scale;
    /* Outputs. */
    float *y;             /* STORE: [m, rows] */
    float *squares;       /* STORE: [m, tiles], sums of the squares of each tile's outputs; or null */
    __nv_bfloat16 *out;   /* GATED: [m, rows / 2]; PER_LAYER: [m, rows] */
    const float *partner; /* PER_LAYER: [m, partner_stride], multiplied with gelu(y) */
    float *best;          /* BEST: [teams, 8], and where */
    int *best_at;
    int scheme, asymmetric, tiles, rows, columns, group, m, output, silu, partner_stride, grid;
    int share, delta_tiles; /* warps that share a tile: 1, 2, 4 or 8; tiles in delta_squares */
};

__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ uint4 stream(const uint4 *at) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at));
    return v;
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

__device__ __forceinline__ float warp_sum(float value) {
    for (int reach = 16; reach; reach /= 2) value += __shfl_xor_sync(~0u, value, reach);
    return value;
}

/* residual + norm(delta), scaled; kept by block 0. Times the input norm's weight it goes to shared
 * memory as bfloat16. The norm itself is one factor per vector: it waits until the end, when the
 * warps' sums of squares in `squares` [m, WARPS] have long been written. */
template <int WARPS>
__device__ void prepare(const Gemv &p, __nv_bfloat16 *ready, float *squares) {
    int size = p.columns, lane = threadIdx.x % 32;
    for (int n = 0; n < p.m; n++) {
        float scale = 1.0f;
        if (p.delta_norm) { /* each warp adds up the tiles' sums: no barrier */
            float sum = 0.0f;
            for (int i = lane; i < p.delta_tiles; i += 32)
                sum += p.delta_squares[n * p.delta_tiles + i];
            scale = rsqrtf(warp_sum(sum) / size + p.eps);
        }
        float sum = 0.0f;
#pragma unroll 4
        for (int at = 2 * threadIdx.x; at < size; at += 64 * WARPS) {
            float2 x = *(const float2 *)(p.residual + n * size + at);
            if (p.delta) {
                float2 d = *(const float2 *)(p.delta + n * size + at);
                float2 w = p.delta_norm ? *(const float2 *)(p.delta_norm + at) : float2{1, 1};
                x.x = (x.x + d.x * scale * w.x) * p.residual_scale;
                x.y = (x.y + d.y * scale * w.y) * p.residual_scale;
            }
            if (blockIdx.x == 0 && p.new_residual)
                *(float2 *)(p.new_residual + n * size + at) = x;
            sum += x.x * x.x + x.y * x.y;
            float2 w = p.input_norm ? *(const float2 *)(p.input_norm + at) : float2{1, 1};
            *(__nv_bfloat162 *)(ready + n * size + at) = __floats2bfloat162_rn(x.x * w.x, x.y * w.y);
        }
        sum = warp_sum(sum);
        if (lane == 0) squares[n * WARPS + threadIdx.x / 32] = sum;
    }
}

template <int SCHEME, bool ASYMMETRIC, bool FINE>
struct Unit {
    static constexpr int COLUMNS = SCHEME == DENSE ? 16 : SCHEME == INT8 ? 32 : 64;
    static constexpr int TABLES = SCHEME == INT4 ? (FINE ? 4 : 2) : 1;
    uint4 weights;
    uint32_t table[TABLES]; /* (scale, minimum) of rows g and g + 8, per group */

    __device__ __forceinline__ void load(const Gemv &p, int tile, int unit, int units) {
        int lane = threadIdx.x % 32;
        weights = stream(p.weights + ((size_t)tile * units + unit) * 32 + lane);
        if constexpr (SCHEME == INT4) {
            int groups = p.columns / p.group, row = lane / 4;
#pragma unroll
            for (int part = 0; part < TABLES / 2; part++) {
                int group = FINE ? unit * 2 + part : unit * 64 / p.group;
                size_t at = ((size_t)tile * groups + group) * 16 + row;
                if constexpr (ASYMMETRIC) {
                    const uint32_t *pairs = (const uint32_t *)p.scales;
                    table[2 * part] = __ldg(pairs + at);
                    table[2 * part + 1] = __ldg(pairs + at + 8);
                } else {
                    const uint16_t *single = (const uint16_t *)p.scales;
                    table[2 * part] = __ldg(single + at);
                    table[2 * part + 1] = __ldg(single + at + 8);
                }
            }
        }
    }

    __device__ __forceinline__ void apply(uint32_t entry, float *y, const float *c,
                                          const float *s) const {
        __half2 pair = *(__half2 *)&entry;
        float scale = __low2float(pair);
        /* what the codes' 128 and, if symmetric, their 8 adds */
        float offset = ASYMMETRIC ? __high2float(pair) - 128.0f * scale : -136.0f * scale;
        y[0] += scale * c[0] + offset * s[0];
        y[1] += scale * c[1] + offset * s[1];
    }

    /* x: of this unit and this lane's vector, or null where there is none. */
    __device__ __forceinline__ void multiply(const __nv_bfloat16 *x, float (&y)[4],
                                             float (&high)[4], float (&sums)[4]) const {
        constexpr uint32_t ONES = 0x3f803f80u;
        uint2 b[COLUMNS / 16];
#pragma unroll
        for (int s = 0; s < COLUMNS / 16; s++)
            b[s] = x ? *(const uint2 *)(x + 16 * s) : uint2{0, 0};
        const uint32_t v[4] = {weights.x, weights.y, weights.z, weights.w};
        if constexpr (SCHEME == DENSE) {
            mma(y, v[0], v[1], v[2], v[3], b[0]);
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
            float c[4] = {}, sum[4] = {};
#pragma unroll
            for (int s = 0; s < 4; s++) {
                mma(c, magic(v[s]), magic(v[s] >> 4), magic(v[s] >> 8), magic(v[s] >> 12), b[s]);
                mma(sum, ONES, ONES, ONES, ONES, b[s]);
                if (s == 3 || (FINE && s == 1)) {
                    int part = FINE && s == 3 ? 2 : 0;
                    apply(table[part], y, c, sum);
                    apply(table[part + 1], y + 2, c + 2, sum + 2);
#pragma unroll
                    for (int i = 0; i < 4; i++) c[i] = sum[i] = 0.0f;
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

template <int SCHEME, bool ASYMMETRIC, bool FINE, int SHARE>
__global__ void __launch_bounds__(SHARE == 8 ? 256 : 128) gemv_kernel(const Gemv p) {
    constexpr int WARPS = SHARE == 8 ? 8 : 4, TEAMS = WARPS / SHARE;
    constexpr int ITEMS = 16 * MOST / (32 * SHARE) > 0 ? 16 * MOST / (32 * SHARE) : 1;
    typedef Unit<SCHEME, ASYMMETRIC, FINE> Weights;
    extern __shared__ __align__(16) __nv_bfloat16 ready[];
    __shared__ float parts[2][WARPS][16][MOST + 1], squares[MOST * WARPS];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int team = warp / SHARE, part = warp % SHARE, member = threadIdx.x % (32 * SHARE);
    int units = p.columns / Weights::COLUMNS, stride = gridDim.x * TEAMS;
    int first = blockIdx.x * TEAMS + team;

    /* The warp's loads, one after the other, across its tiles. */
    Weights ring[DEPTH];
    int ahead_tile = first, ahead = part;
    auto fetch = [&](Weights &slot) {
        while (ahead >= units) ahead = part + (part < units ? 0 : units), ahead_tile += stride;
        if (ahead_tile < p.tiles) slot.load(p, ahead_tile, ahead, units);
        ahead += SHARE;
    };
    bool works = part < units; /* a matrix may be narrower than its team */
    if (works) {
#pragma unroll
        for (int j = 0; j < DEPTH; j++) fetch(ring[j]); /* weights don't wait for anybody */
    }
    launch_dependents();
    wait_for_inputs();
    const __nv_bfloat16 *x = p.x;
    int bytes = p.m * p.columns * 2;
    if (!x) {
        prepare<WARPS>(p, ready, squares);
        x = ready;
    } else if (bytes <= STAGED) {
        for (int i = threadIdx.x; i < bytes / 16; i += 32 * WARPS)
            ((uint4 *)ready)[i] = ((const uint4 *)x)[i];
        x = ready;
    }
    __syncthreads();

    const __nv_bfloat16 *mine = g < p.m ? x + (size_t)g * p.columns + 4 * t : nullptr;
    float y[4] = {}, high[4] = {}, sums[4] = {};
    float best[ITEMS];
    int best_at[ITEMS], turn = 0;
    for (int i = 0; i < ITEMS; i++) best[i] = -INFINITY, best_at[i] = 0x7fffffff;

    auto finish = [&](int tile) { /* add up the team's parts, and do what comes after */
        if constexpr (SCHEME == INT8)
            for (int i = 0; i < 4; i++) y[i] += 16.0f * high[i] - 2304.0f * sums[i];
        for (int i = 0; i < 4; i++) {
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
            if constexpr (SCHEME == INT8) value *= ((const float *)p.scales)[row];
            if (!p.x && p.input_norm) {
                float sum = 0.0f;
                for (int w = 0; w < WARPS; w++) sum += squares[n * WARPS + w];
                value *= rsqrtf(sum / p.columns + p.eps);
            }
            unsigned together = __activemask();
            float other = __shfl_down_sync(together, value, 8, 16);
            if (p.output == STORE) {
                if (row < p.rows) p.y[(size_t)n * p.rows + row] = value;
                if (p.squares) {
                    float sum = row < p.rows ? value * value : 0.0f;
                    for (int reach = 8; reach; reach /= 2)
                        sum += __shfl_xor_sync(together, sum, reach, 16);
                    if (r == 0) p.squares[n * p.tiles + tile] = sum;
                }
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
        int tile = first, unit = part;
        while (tile < p.tiles) {
#pragma unroll
            for (int j = 0; j < DEPTH; j++) {
                if (tile < p.tiles) {
                    ring[j].multiply(mine ? mine + unit * Weights::COLUMNS : nullptr, y, high,
                                     sums);
                    fetch(ring[j]);
                    unit += SHARE;
                    if (unit >= units) {
                        finish(tile);
                        tile += stride, unit = part;
                    }
                }
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

template <class Kernel, class Args>
static int launch(Kernel kernel, const Args &args, int grid, int threads, size_t shared,
                  bool dependent, cudaStream_t queue) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(grid), config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared, config.stream = queue;
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute, config.numAttrs = dependent ? 1 : 0;
    cudaError_t error = cudaSuccess;
    if (shared > 32 * 1024) /* beside the static part, 48 KB in all need asking */
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     (int)shared);
    if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, args);
    return (int)error;
}

template <int SCHEME, bool ASYMMETRIC, bool FINE>
static int launch_shared(const Gemv *p, bool dependent, cudaStream_t in) {
    size_t bytes = (size_t)p->m * p->columns * sizeof(__nv_bfloat16);
    size_t staged = p->x && bytes > STAGED ? 0 : bytes;
#define LAUNCH(SHARE)                                                                        \
    launch(gemv_kernel<SCHEME, ASYMMETRIC, FINE, SHARE>, *p, p->grid, SHARE == 8 ? 256 : 128, \
           staged, dependent, in)
    switch (p->share) {
        case 1: return LAUNCH(1);
        case 2: return LAUNCH(2);
        case 4: return LAUNCH(4);
        default: return LAUNCH(8);
    }
#undef LAUNCH
}

extern "C" int gemv_launch(const Gemv *p, int dependent, void *queue) {
    cudaStream_t in = (cudaStream_t)queue;
    if (p->scheme == DENSE) return launch_shared<DENSE, false, false>(p, dependent, in);
    if (p->scheme == INT8) return launch_shared<INT8, false, false>(p, dependent, in);
    if (p->group == 32)
        return p->asymmetric ? launch_shared<INT4, true, true>(p, dependent, in)
                             : launch_shared<INT4, false, true>(p, dependent, in);
    return p->asymmetric ? launch_shared<INT4, true, false>(p, dependent, in)
                         : launch_shared<INT4, false, false>(p, dependent, in);
}

extern "C" int choose_launch(const Choice *p, int dependent, void *queue) {
    return launch(choose_kernel, *p, 1, 32 * MOST, 0, dependent, (cudaStream_t)queue);
}

extern "C" const char *error_name(int error) { return cudaGetErrorString((cudaError_t)error); }
