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
    const float *residual, *delta; /* [m, size], [m, size] or two of them, `halves` apart */
    const float *delta_norm, *norm; /* [size], or null */
    float *new_residual;
    __nv_bfloat16 *out; /* [m, size]; unused if a matrix comes next */
    float eps, scale;
    int size;
    float inverse_size; /* 1 / size */
    int halves;         /* from delta's first half to its second; 0: it is whole */
};

template <int THREADS, int SIZE, bool HALVES>
struct Normer { /* of vectors of at most SIZE, a multiple of 8; HALVES: delta may be two */
    static constexpr int CHUNKS = SIZE / 8 / THREADS, WARPS = THREADS / 32;
    float x[CHUNKS][8], weights[CHUNKS][8], scale;

    static __device__ __forceinline__ int column(int c) { return 8 * (threadIdx.x + c * THREADS); }

    /* The norms' weights don't wait for anybody. */
    static __device__ __forceinline__ void prefetch(const Norm &p) {
        const float *both[2] = {p.delta_norm, p.norm};
#pragma unroll
        for (int i = 0; i < 2; i++) /* a line of 128 bytes each */
            if (int at = 32 * threadIdx.x; both[i] && at < p.size)
                asm volatile("prefetch.global.L2 [%0];" ::"l"(both[i] + at));
    }

    /* x: (residual + norm(delta)) · scale of vector n, kept if `keeps`; scale: what norms it.
     *
     * Both norms from one pass: the sum's squares follow from those of its parts and their product.
     * Most warps have no chunk but the first, and branch past the others.
     */
    __device__ __forceinline__ void run(const Norm &p, int n, bool keeps, float *shared) {
        size_t row = (size_t)n * p.size;
        float d[CHUNKS][8], sums[4] = {};
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            if (column(c) >= p.size) continue;
            read(x[c], p.residual + row + column(c));
            fill(d[c], 0.0f), fill(weights[c], 1.0f);
            if (p.delta) read(d[c], p.delta + row + column(c));
            if (p.delta_norm) read(weights[c], p.delta_norm + column(c));
        }
        if (HALVES && p.halves) {
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                if (column(c) >= p.size) continue;
                float rest[8];
                read(rest, p.delta + p.halves + row + column(c));
#pragma unroll
                for (int i = 0; i < 8; i++) d[c][i] += rest[i];
            }
        }
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            if (column(c) >= p.size) continue;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float a = x[c][i], b = d[c][i], both = b * weights[c][i];
                d[c][i] = both;
                /* Written out, so that both kernels round in the same places. */
                sums[0] = fmaf(b, b, sums[0]), sums[1] = fmaf(a, a, sums[1]);
                sums[2] = fmaf(a, both, sums[2]), sums[3] = fmaf(both, both, sums[3]);
            }
            fill(weights[c], 1.0f);
            if (p.norm) read(weights[c], p.norm + column(c)); /* while sums are added up */
        }
        add_up(sums, shared);
        float by = p.delta_norm ? rsqrtf(fmaf(sums[0], p.inverse_size, p.eps)) : 1.0f;
        float square = fmaf(by, fmaf(by, sums[3], 2.0f * sums[2]), sums[1]) * p.scale * p.scale;
        square = fmaxf(square, 0.0f); /* where the parts cancel out, rounding may leave less */
        scale = p.norm ? rsqrtf(fmaf(square, p.inverse_size, p.eps)) : 1.0f;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            if (column(c) >= p.size) continue;
#pragma unroll
            for (int i = 0; i < 8; i++) x[c][i] = fmaf(by, d[c][i], x[c][i]) * p.scale;
            if (!keeps || !p.new_residual) continue;
            float4 *to = (float4 *)(p.new_residual + row + column(c));
            to[0] = {x[c][0], x[c][1], x[c][2], x[c][3]};
            to[1] = {x[c][4], x[c][5], x[c][6], x[c][7]};
        }
    }

    /* Chunk c of the normed vector. */
    __device__ __forceinline__ uint4 chunk(int c) const {
        __nv_bfloat162 two[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            two[i] = __floats2bfloat162_rn(x[c][2 * i] * scale * weights[c][2 * i],
                                           x[c][2 * i + 1] * scale * weights[c][2 * i + 1]);
        return *(const uint4 *)two;
    }

  private:
    static __device__ __forceinline__ void fill(float (&into)[8], float value) {
#pragma unroll
        for (int i = 0; i < 8; i++) into[i] = value;
    }

    static __device__ __forceinline__ void read(float (&into)[8], const float *from) {
        float4 one = ((const float4 *)from)[0], two = ((const float4 *)from)[1];
        into[0] = one.x, into[1] = one.y, into[2] = one.z, into[3] = one.w;
        into[4] = two.x, into[5] = two.y, into[6] = two.z, into[7] = two.w;
    }

    static __device__ __forceinline__ void add_up(float (&sums)[4], float *shared) {
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        float sum = warp_sums(sums);
        if (lane % 8 == 0) shared[lane / 8 * WARPS + warp] = sum;
        __syncthreads();
        static_assert(WARPS == 8, "a lane for each sum and warp");
        sum = shared[lane];
        for (int reach = 4; reach; reach /= 2) sum += __shfl_xor_sync(~0u, sum, reach);
#pragma unroll
        for (int i = 0; i < 4; i++) sums[i] = __shfl_sync(~0u, sum, 8 * i);
        __syncthreads(); /* before the next vector's */
    }
};
