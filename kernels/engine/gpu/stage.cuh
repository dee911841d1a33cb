/* Packed matrices, piece by piece: how a tile lies in memory, products with up to eight vectors.
 *
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
 * that adds is taken off with the sum of the inputs, which all tiles share.
 *
 * m16n8k16's order of k within a unit is ours to choose, so x is read in its natural order.
 */
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "device.cuh"
#include "norm.cuh"

enum Scheme { DENSE = 0, INT8 = 1, INT4 = 2 };
enum Output { STORE = 0, GATED = 1, PER_LAYER = 2, BEST = 3 };

struct Gemv {
    const uint4 *weights;
    const float *scales; /* int8: [tiles, 16] */
    const __nv_bfloat16 *x; /* [m, columns]; null: what `before` makes */
    float *y;               /* STORE: [m, rows], or halves [2, MOST, rows] */
    __nv_bfloat16 *out;   /* GATED: [m, rows / 2]; PER_LAYER: [m, rows] */
    const float *partner; /* PER_LAYER: [m, partner_stride], multiplied with gelu(y) */
    float *best;          /* BEST: [teams, 8], and where */
    int *best_at;
    int scheme, asymmetric, tiles, rows, columns, group, m, output, silu, partner_stride, grid;
    int share;  /* warps that work on a tile together: 1, 2, 4 or 8 */
    int halved; /* 1: each half of a tile's columns is added up by itself */
    Norm before;
};

/* Weights are read once a step: what is cached goes before anything else does. */
__device__ __forceinline__ uint64_t read_once() {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ __forceinline__ void copy_ahead(void *to, const void *from, uint64_t policy) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::256B [%0], [%1], 16, %2;" ::"r"(at),
                 "l"(from), "l"(policy));
}

__device__ __forceinline__ void end_of_stage() { asm volatile("cp.async.commit_group;"); }

template <int DEPTH>
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

/* A warp's sums over its part of a tile, of lane (g, t): rows g, g + 8, vectors 2t, 2t + 1. */
template <int SCHEME>
struct Sums {
    float y[4] = {}, high[4] = {};

    /* Leave them in [16 rows, stride], and begin anew. */
    __device__ __forceinline__ void hand_in(float *rows, int stride, int m) {
        int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (SCHEME == DENSE) y[i] += high[i];
            if (SCHEME == INT8) y[i] = fmaf(16.0f, high[i], y[i]);
            int n = 2 * t + i % 2;
            if (n < m) rows[(g + 8 * (i / 2)) * stride + n] = y[i];
            y[i] = high[i] = 0.0f;
        }
    }
};

/* One stage: 2 × 16 bytes per lane, and for int4 its groups' scales. GROUPS: per 128 columns. */
template <int SCHEME, bool ASYMMETRIC, int GROUPS>
struct Stage {
    static constexpr int DEPTH = SCHEME == DENSE ? 8 : 6; /* of a warp's ring */
    static constexpr int COLUMNS = SCHEME == DENSE ? 32 : SCHEME == INT8 ? 64 : 128;
    static constexpr int TABLES = SCHEME == INT4 ? GROUPS * 16 * (ASYMMETRIC ? 4 : 2) : 0;
    static constexpr int BYTES = 1024 + TABLES;
    static constexpr int GROUP = SCHEME == INT4 ? 128 / GROUPS : COLUMNS; /* that share a sum */
    uint4 weights[2][32];
    uint8_t tables[TABLES ? TABLES : 16];

    __device__ __forceinline__ void copy(const uint8_t *from, uint64_t policy) {
        int lane = threadIdx.x % 32;
        copy_ahead(&weights[0][lane], from + 16 * lane, policy);
        copy_ahead(&weights[1][lane], from + 512 + 16 * lane, policy);
        if (TABLES && lane < TABLES / 16)
            copy_ahead(tables + 16 * lane, from + 1024 + 16 * lane, policy);
    }

    /* Add a group's part; row: of the tile; x: the inputs' sums, of both vectors. */
    __device__ __forceinline__ void apply(int group, int row, float *y, const float *c,
                                          const float *x) const {
        float scale, offset; /* offset: what the codes' 128 and, if symmetric, their 8 adds */
        if (ASYMMETRIC) {
            __half2 pair = ((const __half2 *)tables)[group * 16 + row];
            scale = __low2float(pair), offset = fmaf(-128.0f, scale, __high2float(pair));
        } else {
            scale = __half2float(((const __half *)tables)[group * 16 + row]);
            offset = -136.0f * scale;
        }
        /* Written out: a compiler that fuses one vector's otherwise than another's rounds otherwise. */
        y[0] = fmaf(offset, x[0], fmaf(scale, c[0], y[0]));
        y[1] = fmaf(offset, x[1], fmaf(scale, c[1], y[1]));
    }

    /* x: at this stage's columns, of this lane's vector, or zeros; one, two: sums of the inputs, at
     * this stage's groups, of the vectors whose products this lane gets.
     */
    __device__ __forceinline__ void multiply(const __nv_bfloat16 *x, const float *one,
                                             const float *two, Sums<SCHEME> &sums) const {
        float(&y)[4] = sums.y, (&high)[4] = sums.high;
        int lane = threadIdx.x % 32, g = lane / 4;
        float c[2][4] = {}; /* two chains of products: one hides the other */
#pragma unroll
        for (int part = 0; part < 2; part++) {
            uint4 w = weights[part][lane];
            const uint32_t v[4] = {w.x, w.y, w.z, w.w};
            uint2 b[COLUMNS / 32];
#pragma unroll
            for (int s = 0; s < COLUMNS / 32; s++)
                b[s] = *(const uint2 *)(x + part * COLUMNS / 2 + 16 * s);
            if constexpr (SCHEME == DENSE) {
                mma(part ? high : y, v[0], v[1], v[2], v[3], b[0]);
            } else if constexpr (SCHEME == INT8) {
#pragma unroll
                for (int s = 0; s < 2; s++) {
                    uint32_t one = v[2 * s], two = v[2 * s + 1];
                    mma(y, magic(one), magic(one >> 8), magic(two), magic(two >> 8), b[s]);
                    mma(high, magic(one >> 4), magic(one >> 12), magic(two >> 4), magic(two >> 12),
                        b[s]);
                }
            } else {
#pragma unroll
                for (int s = 0; s < 4; s++) {
                    mma(c[part], magic(v[s]), magic(v[s] >> 4), magic(v[s] >> 8),
                        magic(v[s] >> 12), b[s]);
                    int block = 4 * part + s, size = 8 / GROUPS; /* blocks of 16 to a group */
                    if (GROUPS > 1 && block % size == size - 1) {
                        const float sum[2] = {one[block / size], two[block / size]};
                        apply(block / size, g, y, c[part], sum);
                        apply(block / size, g + 8, y + 2, c[part] + 2, sum);
#pragma unroll
                        for (int i = 0; i < 4; i++) c[part][i] = 0.0f;
                    }
                }
            }
        }
        if constexpr (SCHEME == INT4 && GROUPS == 1) {
#pragma unroll
            for (int i = 0; i < 4; i++) c[0][i] += c[1][i];
            const float sum[2] = {*one, *two};
            apply(0, g, y, c[0], sum);
            apply(0, g + 8, y + 2, c[0] + 2, sum);
        } else if constexpr (SCHEME == INT8) { /* 128 + 16 · 128 of the halves, 128 of the code */
#pragma unroll
            for (int i = 0; i < 4; i++) y[i] = fmaf(-2304.0f, i % 2 ? *two : *one, y[i]);
        }
    }
};

/* What a row's sum for vector n is multiplied with: an int8 row's scale, the layer's own input. */
struct Beside {
    float scale = 1.0f, partner = 0.0f;

    template <int SCHEME>
    __device__ __forceinline__ void load(const Gemv &p, int row, int n) {
        if (n >= p.m) return;
        if (SCHEME == INT8) scale = p.scales[row];
        if (p.output == PER_LAYER && row < p.rows)
            partner = p.partner[(size_t)n * p.partner_stride + row];
    }
};

/* Put row r of a tile where it belongs; the lane 8 further on has the up of this lane's gate. */
__device__ __forceinline__ void put(const Gemv &p, int tile, int half, int r, int n, float value,
                                    const Beside &beside) {
    int row = tile * 16 + r;
    if (p.output == STORE) {
        if (row < p.rows) p.y[(size_t)(half * MOST + n) * p.rows + row] = value;
    } else if (p.output == GATED) {
        float up = __shfl_down_sync(__activemask(), value, 8, 16);
        float gate = p.silu ? silu(value) : gelu(value);
        int column = tile * 8 + r;
        if (r < 8 && column < p.rows / 2)
            p.out[(size_t)n * (p.rows / 2) + column] = __float2bfloat16(gate * up);
    } else if (p.output == PER_LAYER) {
        if (row < p.rows)
            p.out[(size_t)n * p.rows + row] = __float2bfloat16(gelu(value) * beside.partner);
    }
}
