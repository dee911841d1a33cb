/* The residual stream moved on, and normed for the matrices to come.
 *
 * By a kernel of its own, a block per vector, or by each block of the matrix that comes next: one
 * launch less, whose weights are on their way while the kernel before it still runs. Both add up in
 * the same order.
 */
#pragma once
#include <cuda_bf16.h>

#include "device.cuh"

struct Norm {
    const float *residual, *delta, *delta_norm, *norm; /* [m, size], [m, size], [size], [size] */
    float *new_residual;
    __nv_bfloat16 *out; /* [m, size]; unused if a matrix comes next */
    float eps, scale;
    int size;
};

template <int THREADS, int SIZE>
struct Normer { /* of vectors of at most SIZE, a multiple of 8; a thread has every so many chunks */
    static constexpr int CHUNKS = SIZE / 8 / THREADS, WARPS = THREADS / 32;
    float x[CHUNKS][8], scale;

    /* The norms' weights don't wait for anybody. */
    static __device__ __forceinline__ void prefetch(const Norm &p) {
        const float *both[2] = {p.delta_norm, p.norm};
#pragma unroll
        for (int i = 0; i < 2 * CHUNKS; i++) {
            int at = 8 * (threadIdx.x + i / 2 * THREADS);
            if (both[i % 2] && at < p.size)
                asm volatile("prefetch.global.L2 [%0];" ::"l"(both[i % 2] + at));
        }
    }

    /* x: (residual + norm(delta)) · scale of vector n, kept if `keeps`; scale: what norms it.
     *
     * Both norms from one pass: the sum's squares follow from those of its parts and their product.
     */
    __device__ __forceinline__ void run(const Norm &p, int n, bool keeps, float (*shared)[WARPS]) {
        size_t row = (size_t)n * p.size;
        float d[CHUNKS][8], own[CHUNKS][8], sums[4] = {};
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            read(x[c], p.residual + row, c, p.size, 0.0f);
            read(d[c], p.delta ? p.delta + row : nullptr, c, p.size, 0.0f);
            read(own[c], p.delta_norm, c, p.size, 1.0f);
        }
#pragma unroll
        for (int i = 0; i < 8 * CHUNKS; i++) {
            float a = x[i / 8][i % 8], b = d[i / 8][i % 8], c = b * own[i / 8][i % 8];
            d[i / 8][i % 8] = c;
            /* Written out, so that both kernels round in the same places. */
            sums[0] = fmaf(b, b, sums[0]), sums[1] = fmaf(a, a, sums[1]);
            sums[2] = fmaf(a, c, sums[2]), sums[3] = fmaf(c, c, sums[3]);
        }
        add_up(sums, shared);
        float by = p.delta_norm ? rsqrtf(__fadd_rn(sums[0] / p.size, p.eps)) : 1.0f;
        float square = fmaf(by, fmaf(by, sums[3], 2.0f * sums[2]), sums[1]) * p.scale * p.scale;
        square = fmaxf(square, 0.0f); /* where the parts cancel out, rounding may leave less */
        scale = p.norm ? rsqrtf(__fadd_rn(square / p.size, p.eps)) : 1.0f;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
#pragma unroll
            for (int i = 0; i < 8; i++) x[c][i] = fmaf(by, d[c][i], x[c][i]) * p.scale;
            int at = 8 * (threadIdx.x + c * THREADS);
            if (!keeps || !p.new_residual || at >= p.size) continue;
            float4 *to = (float4 *)(p.new_residual + row + at);
            to[0] = {x[c][0], x[c][1], x[c][2], x[c][3]};
            to[1] = {x[c][4], x[c][5], x[c][6], x[c][7]};
        }
    }

    /* Chunk c of the normed vector; zeros beyond its end. */
    __device__ __forceinline__ uint4 chunk(const Norm &p, int c) const {
        float by[8];
        read(by, p.norm, c, p.size, 1.0f);
        __nv_bfloat162 two[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            two[i] = __floats2bfloat162_rn(x[c][2 * i] * scale * by[2 * i],
                                           x[c][2 * i + 1] * scale * by[2 * i + 1]);
        return *(const uint4 *)two;
    }

  private:
    static __device__ __forceinline__ void read(float (&into)[8], const float *from, int c,
                                                int size, float otherwise) {
        int at = 8 * (threadIdx.x + c * THREADS);
        float4 one = {otherwise, otherwise, otherwise, otherwise}, two = one;
        if (from && at < size) {
            one = *(const float4 *)(from + at);
            two = *(const float4 *)(from + at + 4);
        }
        into[0] = one.x, into[1] = one.y, into[2] = one.z, into[3] = one.w;
        into[4] = two.x, into[5] = two.y, into[6] = two.z, into[7] = two.w;
    }

    static __device__ __forceinline__ void add_up(float (&sums)[4], float (*shared)[WARPS]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sums[i] = warp_sum(sums[i]);
            if (threadIdx.x % 32 == 0) shared[i][threadIdx.x / 32] = sums[i];
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sums[i] = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) sums[i] += shared[i][w];
        }
        __syncthreads(); /* before the next vector's */
    }
};
