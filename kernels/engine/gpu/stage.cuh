/* Packed matrices, piece by piece: how a tile lies in memory, products with up to eight vectors.
 *
 * The products go through the tensor cores (mma.sync, sm_80 and newer): they are idle anyway, and
 * unpack nothing. A bfloat16 matrix meets a vector in each column of the product. Codes meet inputs
 * in fixed point (inputs.cuh): each is two signed bytes, 256 high + low, in two columns, so that one
 * product has four vectors. int8 goes in as it lies; of int4, one operation picks four codes of a row
 * from a word of two rows, and the upper half-bytes count sixteenfold. Integers add up exactly, so
 * all vectors round alike, wherever they stand.
 *
 * Layout: tiles of 16 rows; within a tile, stages of 2 × 32 lanes × 16 bytes. Lane (g, t) =
 * (lane / 4, lane % 4) holds rows g and g + 8. Columns of 16 bytes, by scheme:
 *   dense  16: bf16 of (g, 4t), (g, 4t+1), (g+8, 4t), (g+8, 4t+1), (g, 4t+2), …, (g+8, 4t+3)
 *   int8   32: signed; four bytes each of (g, 8t …), (g+8, 8t …), (g, 8t+4 …), (g+8, 8t+4 …)
 *   int4   64: two blocks of 32, each two words for 8t … and 8t+4 …; a word's four bytes have four
 *              columns of row g in the lower half-bytes and of row g+8 in the upper ones; unsigned;
 *              after the 1024 bytes, for each group of the stage's 128 columns, 16 scales or 16
 *              pairs (scale, minimum), float16
 *
 * The order of k within a product is ours to choose; inputs.cuh lays inputs out to match.
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
    const __nv_bfloat16 *x; /* [m, columns]; null: what `before` makes; m is 1 then */
    uint8_t *fixed;         /* codes: room for x in fixed point, if a block has none */
    float *y;               /* STORE: [m, rows], or halves [2, MOST, rows] */
    __nv_bfloat16 *out;     /* GATED: [m, rows / 2]; PER_LAYER: [m, rows] */
    const float *partner;   /* PER_LAYER: [m, partner_stride], multiplied with gelu(y) */
    float *best;            /* BEST: [teams, 8], and where */
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

/* Products of four bytes each, whose sums are exact; A is signed or, as half-bytes are, unsigned. */
template <bool SIGNED>
__device__ __forceinline__ void mma(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                    uint2 b) {
#define PRODUCT(TYPE)                                                                        \
    asm("mma.sync.aligned.m16n8k32.row.col.s32." TYPE ".s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, " \
        "{%8,%9}, {%0,%1,%2,%3};"                                                            \
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])                                     \
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b.x), "r"(b.y))
    if (SIGNED) PRODUCT("s8");
    else PRODUCT("u8");
#undef PRODUCT
}

__device__ __forceinline__ float gelu(float x) {
    float inner = 1.5957691216f * (x + 0.044715f * x * x * x);
    return x / (1.0f + __expf(-inner));
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + __expf(-x)); }

/* A warp's sums over its part of a tile, of lane (g, t): rows g, g + 8 of two vectors each, which
 * are 2t, 2t + 1 of a dense matrix, t, t + 4 of one of codes.
 */
template <int SCHEME>
struct Sums {
    float y[4] = {}, high[4] = {};

    /* Leave them in [16 rows, stride], and begin anew. */
    __device__ __forceinline__ void hand_in(float *rows, int stride, int m) {
        int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (SCHEME == DENSE) y[i] += high[i];
            int n = SCHEME == DENSE ? 2 * t + i % 2 : t + 4 * (i / 2);
            int row = g + 8 * (SCHEME == DENSE ? i / 2 : i % 2);
            if (n < m) rows[row * stride + n] = y[i];
            y[i] = high[i] = 0.0f;
        }
    }
};

/* One stage: 2 × 16 bytes per lane, and for int4 its groups' scales. GROUPS: per 128 columns. */
template <int SCHEME_, bool ASYMMETRIC_, int GROUPS_>
struct Stage {
    static constexpr int SCHEME = SCHEME_, GROUPS = GROUPS_;
    static constexpr bool ASYMMETRIC = ASYMMETRIC_;
    static constexpr int DEPTH = SCHEME == DENSE ? 8 : 6; /* of a warp's ring */
    static constexpr int COLUMNS = SCHEME == DENSE ? 32 : SCHEME == INT8 ? 64 : 128;
    static constexpr int TABLES = SCHEME == INT4 ? GROUPS * 16 * (ASYMMETRIC ? 4 : 2) : 0;
    static constexpr int BYTES = 1024 + TABLES;
    /* Inputs of a stage: bytes of a lane's column; an exponent, and for int4 sums of so many. */
    static constexpr int STEP = SCHEME == DENSE ? 2 * COLUMNS : COLUMNS;
    static constexpr int NUMBERS = SCHEME == DENSE ? 0 : SCHEME == INT8 ? 1 : 1 + GROUPS;
    static constexpr int GROUP = COLUMNS / GROUPS;
    uint4 weights[2][32];
    uint8_t tables[TABLES ? TABLES : 16];

    __device__ __forceinline__ void copy(const uint8_t *from, uint64_t policy) {
        int lane = threadIdx.x % 32;
        copy_ahead(&weights[0][lane], from + 16 * lane, policy);
        copy_ahead(&weights[1][lane], from + 512 + 16 * lane, policy);
        if (TABLES && lane < TABLES / 16)
            copy_ahead(tables + 16 * lane, from + 1024 + 16 * lane, policy);
    }

    /* dense; x: bfloat16 of this lane's vector, or zeros. */
    __device__ __forceinline__ void multiply(const uint8_t *x, Sums<DENSE> &sums) const {
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int part = 0; part < 2; part++) { /* two chains: one hides the other */
            uint4 w = weights[part][lane];
            uint2 b = *(const uint2 *)(x + 32 * part);
            mma(part ? sums.high : sums.y, w.x, w.y, w.z, w.w, b);
        }
    }

    /* codes; x: bytes of this lane's column, or zeros; numbers: of the vector that it gets; y: that
     * vector's sums.
     */
    __device__ __forceinline__ void multiply(const uint8_t *x, const float *numbers,
                                             float *y) const {
        constexpr int BLOCKS = COLUMNS / 32, BLOCKS_OF_GROUP = BLOCKS / GROUPS;
        int lane = threadIdx.x % 32, g = lane / 4;
        uint4 inputs[BLOCKS / 2];
#pragma unroll
        for (int i = 0; i < BLOCKS / 2; i++) inputs[i] = ((const uint4 *)x)[i];
        float exponent = numbers[0];
        int c[4] = {};
#pragma unroll
        for (int block = 0; block < BLOCKS; block++) {
            uint4 both = inputs[block / 2];
            uint2 b = block % 2 ? uint2{both.z, both.w} : uint2{both.x, both.y};
            uint4 w = weights[block * 2 / BLOCKS][lane];
            if constexpr (SCHEME == INT8) {
                mma<true>(c, w.x, w.y, w.z, w.w, b);
            } else {
                uint32_t one = block % 2 ? w.z : w.x, two = block % 2 ? w.w : w.y;
                constexpr uint32_t LOWER = 0x0f0f0f0f, UPPER = 0xf0f0f0f0;
                mma<false>(c, one & LOWER, one & UPPER, two & LOWER, two & UPPER, b);
            }
            if (block % BLOCKS_OF_GROUP != BLOCKS_OF_GROUP - 1) continue;
            float low = (float)(256 * c[0] + c[1]), high = (float)(256 * c[2] + c[3]);
            if constexpr (SCHEME == INT8) {
                y[0] = fmaf(exponent, low, y[0]), y[1] = fmaf(exponent, high, y[1]);
            } else {
                int group = block / BLOCKS_OF_GROUP;
                float sum = numbers[1 + group];
                y[0] = apply(group, g, low * exponent, sum, y[0]);
                y[1] = apply(group, g + 8, high * (exponent * 0.0625f), sum, y[1]);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) c[i] = 0;
        }
    }

  private:
    /* y and a group's part; products: of codes and inputs; sum: of the inputs. */
    __device__ __forceinline__ float apply(int group, int row, float products, float sum,
                                           float y) const {
        float scale, minimum;
        if (ASYMMETRIC) {
            __half2 pair = ((const __half2 *)tables)[group * 16 + row];
            scale = __low2float(pair), minimum = __high2float(pair);
        } else {
            scale = __half2float(((const __half *)tables)[group * 16 + row]);
            minimum = -8.0f * scale;
        }
        /* Written out: a compiler that fuses one vector's otherwise than another's rounds otherwise. */
        return fmaf(minimum, sum, fmaf(scale, products, y));
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
