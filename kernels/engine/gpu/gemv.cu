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

constexpr int WARPS = 8, THREADS = 32 * WARPS, MOST = 8; /* vectors */
constexpr int BATCH = 4;                                 /* loads in flight per lane, twice */
constexpr int WIDEST = 16;                               /* hidden size over THREADS, at most */

enum Scheme { DENSE = 0, INT8 = 1, INT4 = 2 };
enum Output { STORE = 0, GATED = 1, PER_LAYER = 2, BEST = 3 };

struct Gemv {
    const uint4 *weights;
    const void *scales; /* int4: half (scale) or half2 (scale, minimum) [tiles, groups, 16];
                           int8: float [tiles, 16] */
    /* Inputs: either bfloat16 [m, columns], or what makes them from the residual stream. */
    const __nv_bfloat16 *x;
    const float *residual, *delta, *delta_norm, *input_norm;
    float *new_residual;
    float eps, residual_scale;
    /* Outputs. */
    float *y;             /* STORE: [m, rows] */
    __nv_bfloat16 *out;   /* GATED: [m, rows / 2]; PER_LAYER: [m, rows] */
    const float *partner; /* PER_LAYER: [m, partner_stride], multiplied with gelu(y) */
    float *best;          /* BEST: [grid, 8], and where */
    int *best_at;
    int scheme, asymmetric, tiles, rows, columns, group, m, output, silu, partner_stride, grid;
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
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
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

__device__ float block_sum(float value, float *shared) {
    for (int reach = 16; reach; reach /= 2) value += __shfl_xor_sync(~0u, value, reach);
    __syncthreads(); /* the last sum has been read */
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    float total = 0.0f;
    for (int w = 0; w < WARPS; w++) total += shared[w];
    return total;
}

/* residual + norm(delta), scaled, kept by block 0; its norm goes to shared memory as bfloat16. */
__device__ void prepare(const Gemv &p, __nv_bfloat16 *ready, float *shared) {
    int size = p.columns;
    for (int n = 0; n < p.m; n++) {
        float x[WIDEST], d[WIDEST], sum = 0.0f;
#pragma unroll
        for (int i = 0; i < WIDEST; i++) {
            int at = threadIdx.x + i * THREADS;
            bool in = at < size;
            x[i] = in ? p.residual[n * size + at] : 0.0f;
            d[i] = in && p.delta ? p.delta[n * size + at] : 0.0f;
            sum += d[i] * d[i];
        }
        if (p.delta) {
            float scale = p.delta_norm ? rsqrtf(block_sum(sum, shared) / size + p.eps) : 1.0f;
#pragma unroll
            for (int i = 0; i < WIDEST; i++) {
                int at = threadIdx.x + i * THREADS;
                if (at >= size) continue;
                float weight = p.delta_norm ? p.delta_norm[at] : 1.0f;
                x[i] = (x[i] + d[i] * scale * weight) * p.residual_scale;
            }
        }
        sum = 0.0f;
#pragma unroll
        for (int i = 0; i < WIDEST; i++) {
            int at = threadIdx.x + i * THREADS;
            if (at < size && blockIdx.x == 0 && p.new_residual) p.new_residual[n * size + at] = x[i];
            sum += x[i] * x[i];
        }
        float scale = p.input_norm ? rsqrtf(block_sum(sum, shared) / size + p.eps) : 1.0f;
#pragma unroll
        for (int i = 0; i < WIDEST; i++) {
            int at = threadIdx.x + i * THREADS;
            if (at >= size) continue;
            float weight = p.input_norm ? p.input_norm[at] : 1.0f;
            ready[n * size + at] = __float2bfloat16(x[i] * scale * weight);
        }
    }
    __syncthreads();
}

template <int SCHEME, bool ASYMMETRIC, bool FINE>
struct Stream {
    static constexpr int COLUMNS = SCHEME == DENSE ? 16 : SCHEME == INT8 ? 32 : 64;
    static constexpr int TABLES = SCHEME == INT4 ? (FINE ? 4 : 2) : 1;
    uint4 weights[BATCH];
    uint32_t table[BATCH][TABLES]; /* (scale, minimum) of rows g and g + 8, per group */

    __device__ __forceinline__ void load(const Gemv &p, int tile, int batch, int units) {
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
            int unit = warp + WARPS * (batch * BATCH + j);
            if (unit >= units) continue;
            weights[j] = stream(p.weights + ((size_t)tile * units + unit) * 32 + lane);
            if constexpr (SCHEME == INT4) {
                int groups = p.columns / p.group, row = lane / 4;
#pragma unroll
                for (int part = 0; part < TABLES / 2; part++) {
                    int group = FINE ? unit * 2 + part : unit * 64 / p.group;
                    size_t at = ((size_t)tile * groups + group) * 16 + row;
                    if constexpr (ASYMMETRIC) {
                        const uint32_t *pairs = (const uint32_t *)p.scales;
                        table[j][2 * part] = __ldg(pairs + at);
                        table[j][2 * part + 1] = __ldg(pairs + at + 8);
                    } else {
                        const uint16_t *single = (const uint16_t *)p.scales;
                        table[j][2 * part] = __ldg(single + at);
                        table[j][2 * part + 1] = __ldg(single + at + 8);
                    }
                }
            }
        }
    }

    __device__ __forceinline__ void apply(uint32_t entry, float *y, const float *c,
                                          const float *s) const {
        __half2 pair = *(__half2 *)&entry;
        float scale = __low2float(pair);
        float minimum = ASYMMETRIC ? __high2float(pair) : -8.0f * scale;
        y[0] += scale * (c[0] - 128.0f * s[0]) + minimum * s[0];
        y[1] += scale * (c[1] - 128.0f * s[1]) + minimum * s[1];
    }

    __device__ __forceinline__ void multiply(const Gemv &p, const __nv_bfloat16 *x, int batch,
                                             int units, float (&y)[4], float (&high)[4],
                                             float (&sums)[4]) const {
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        const __nv_bfloat16 *mine = x + (size_t)g * p.columns + 4 * t;
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
            int unit = warp + WARPS * (batch * BATCH + j);
            if (unit >= units) continue;
            uint2 b[COLUMNS / 16];
#pragma unroll
            for (int s = 0; s < COLUMNS / 16; s++)
                b[s] = g < p.m ? *(const uint2 *)(mine + unit * COLUMNS + 16 * s) : uint2{0, 0};
            const uint4 w = weights[j];
            if constexpr (SCHEME == DENSE) {
                mma(y, w.x, w.y, w.z, w.w, b[0]);
            } else if constexpr (SCHEME == INT8) {
                const uint32_t v[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
                for (int s = 0; s < 2; s++) {
                    uint32_t first = v[2 * s], second = v[2 * s + 1];
                    mma(y, magic(first), magic(first >> 8), magic(second), magic(second >> 8),
                        b[s]);
                    mma(high, magic(first >> 4), magic(first >> 12), magic(second >> 4),
                        magic(second >> 12), b[s]);
                    mma(sums, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u, b[s]);
                }
            } else {
                const uint32_t v[4] = {w.x, w.y, w.z, w.w};
                float c[4] = {}, sum[4] = {};
#pragma unroll
                for (int s = 0; s < 4; s++) {
                    mma(c, magic(v[s]), magic(v[s] >> 4), magic(v[s] >> 8), magic(v[s] >> 12),
                        b[s]);
                    mma(sum, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u, b[s]);
                    if (s == 3 || (FINE && s == 1)) {
                        int part = FINE && s == 3 ? 2 : 0;
                        apply(table[j][part], y, c, sum);
                        apply(table[j][part + 1], y + 2, c + 2, sum + 2);
#pragma unroll
                        for (int i = 0; i < 4; i++) c[i] = sum[i] = 0.0f;
                    }
                }
            }
        }
    }
};

template <int SCHEME, bool ASYMMETRIC, bool FINE>
__global__ void __launch_bounds__(THREADS, 3) gemv_kernel(const Gemv p) {
    extern __shared__ __nv_bfloat16 ready[];
    __shared__ float parts[2][WARPS][16][MOST + 1], shared[WARPS];
    typedef Stream<SCHEME, ASYMMETRIC, FINE> Batch;
    int units = p.columns / Batch::COLUMNS;
    int batches = (units + WARPS * BATCH - 1) / (WARPS * BATCH);
    Batch now, next;
    int tile = blockIdx.x, batch = 0;
    if (tile < p.tiles) now.load(p, tile, 0, units); /* weights don't wait for anybody */
    launch_dependents();
    wait_for_inputs();
    const __nv_bfloat16 *x = p.x;
    if (!x) {
        prepare(p, ready, shared);
        x = ready;
    }
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    float y[4] = {}, high[4] = {}, sums[4] = {};
    float best = -INFINITY;
    int best_at = 0, turn = 0;
    while (tile < p.tiles) {
        int next_tile = tile, next_batch = batch + 1;
        if (next_batch == batches) next_batch = 0, next_tile += gridDim.x;
        if (next_tile < p.tiles) next.load(p, next_tile, next_batch, units);
        now.multiply(p, x, batch, units, y, high, sums);
        if (next_tile != tile) { /* the tile is complete: add up the warps' parts */
            if constexpr (SCHEME == INT8)
                for (int i = 0; i < 4; i++) y[i] += 16.0f * high[i] - 2304.0f * sums[i];
            for (int i = 0; i < 4; i++) {
                int n = 2 * t + i % 2;
                if (n < p.m) parts[turn][warp][g + 8 * (i / 2)][n] = y[i];
                y[i] = high[i] = sums[i] = 0.0f;
            }
            __syncthreads();
            int r = threadIdx.x % 16, n = threadIdx.x / 16, row = tile * 16 + r;
            if (n < p.m) {
                float value = 0.0f;
                for (int w = 0; w < WARPS; w++) value += parts[turn][w][r][n];
                if constexpr (SCHEME == INT8) value *= ((const float *)p.scales)[row];
                float other = __shfl_down_sync(__activemask(), value, 8, 16);
                if (p.output == STORE) {
                    if (row < p.rows) p.y[(size_t)n * p.rows + row] = value;
                } else if (p.output == GATED) {
                    float gate = p.silu ? silu(value) : gelu(value);
                    int at = tile * 8 + r;
                    if (r < 8 && at < p.rows / 2)
                        p.out[(size_t)n * (p.rows / 2) + at] = __float2bfloat16(gate * other);
                } else if (p.output == PER_LAYER) {
                    float scaled = gelu(value) * p.partner[(size_t)n * p.partner_stride + row];
                    if (row < p.rows) p.out[(size_t)n * p.rows + row] = __float2bfloat16(scaled);
                } else if (row < p.rows && value > best) {
                    best = value, best_at = row;
                }
            }
            turn ^= 1;
        }
        now = next;
        tile = next_tile, batch = next_batch;
    }
    if (p.output == BEST && threadIdx.x / 16 < p.m) {
        for (int reach = 8; reach; reach /= 2) {
            float other = __shfl_down_sync(__activemask(), best, reach, 16);
            int other_at = __shfl_down_sync(__activemask(), best_at, reach, 16);
            if (other > best || (other == best && other_at < best_at))
                best = other, best_at = other_at;
        }
        if (threadIdx.x % 16 == 0) {
            p.best[blockIdx.x * MOST + threadIdx.x / 16] = best;
            p.best_at[blockIdx.x * MOST + threadIdx.x / 16] = best_at;
        }
    }
}

/* The best of all blocks' bests, and what follows from it: the token is fed back at once. */
struct Choice {
    const float *best;
    const int *best_at;
    int grid, m;
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
    for (int i = lane; i < p.grid; i += 32) {
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
    if (shared > 48 * 1024)
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     (int)shared);
    if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, args);
    return (int)error;
}

extern "C" int gemv_launch(const Gemv *p, int dependent, void *queue) {
    size_t shared = p->x ? 0 : (size_t)p->m * p->columns * sizeof(__nv_bfloat16);
    cudaStream_t in = (cudaStream_t)queue;
#define LAUNCH(...) launch(gemv_kernel<__VA_ARGS__>, *p, p->grid, THREADS, shared, dependent, in)
    if (p->scheme == DENSE) return LAUNCH(DENSE, false, false);
    if (p->scheme == INT8) return LAUNCH(INT8, false, false);
    bool fine = p->group == 32;
    if (p->asymmetric) return fine ? LAUNCH(INT4, true, true) : LAUNCH(INT4, true, false);
    return fine ? LAUNCH(INT4, false, true) : LAUNCH(INT4, false, false);
#undef LAUNCH
}

extern "C" int choose_launch(const Choice *p, int dependent, void *queue) {
    return launch(choose_kernel, *p, 1, 32 * MOST, 0, dependent, (cudaStream_t)queue);
}

extern "C" const char *error_name(int error) { return cudaGetErrorString((cudaError_t)error); }
