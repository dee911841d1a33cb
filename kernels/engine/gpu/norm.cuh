/* The residual stream moved on, and normed for the matrices to come; by one block per vector. */
#pragma once
#include <cuda_bf16.h>

#include "device.cuh"

struct Norm {
    const float *residual, *delta, *delta_norm, *norm; /* [m, size], [m, size], [size], [size] */
    float *new_residual;
    __nv_bfloat16 *out; /* [m, size] */
    float eps, scale;
    int size;
};

template <int THREADS, int SIZE>
struct Normer { /* of vectors of at most SIZE, a multiple of 4 */
    static constexpr int CHUNKS = (SIZE / 4 + THREADS - 1) / THREADS;
    float4 own[CHUNKS], input[CHUNKS];

    /* The norms' weights, which don't wait for anybody. */
    __device__ __forceinline__ void load(const Norm &p) {
        read(own, p.delta_norm, p.size), read(input, p.norm, p.size);
    }

    /* out [size]: the norm of vector n; its new residual is kept if `keeps`. */
    __device__ __forceinline__ void run(const Norm &p, int n, __nv_bfloat16 *out, bool keeps,
                                        float (*sums)[THREADS / 32]) const {
        size_t row = (size_t)n * p.size;
        float4 x[CHUNKS], d[CHUNKS];
        read(x, p.residual + row, p.size);
        if (p.delta) {
            read(d, p.delta + row, p.size);
            float scale = p.delta_norm ? inverse(d, p, sums[0]) : 1.0f;
#pragma unroll
            for (int i = 0; i < CHUNKS; i++) {
                x[i].x = (x[i].x + d[i].x * scale * own[i].x) * p.scale;
                x[i].y = (x[i].y + d[i].y * scale * own[i].y) * p.scale;
                x[i].z = (x[i].z + d[i].z * scale * own[i].z) * p.scale;
                x[i].w = (x[i].w + d[i].w * scale * own[i].w) * p.scale;
            }
        }
        float scale = p.norm ? inverse(x, p, sums[1]) : 1.0f;
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            int at = threadIdx.x + i * THREADS;
            if (at >= p.size / 4) continue;
            if (keeps && p.new_residual) ((float4 *)(p.new_residual + row))[at] = x[i];
            __nv_bfloat162 two[2] = {
                __floats2bfloat162_rn(x[i].x * scale * input[i].x, x[i].y * scale * input[i].y),
                __floats2bfloat162_rn(x[i].z * scale * input[i].z, x[i].w * scale * input[i].w)};
            ((uint2 *)out)[at] = *(const uint2 *)two;
        }
    }

  private:
    /* Without branches between them, so that all loads are under way at once. */
    static __device__ __forceinline__ void read(float4 (&into)[CHUNKS], const float *from,
                                                int size) {
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) into[i] = {1.0f, 1.0f, 1.0f, 1.0f};
        if (!from) return;
#pragma unroll
        for (int i = 0; i < CHUNKS; i++)
            into[i] = ((const float4 *)from)[min((int)threadIdx.x + i * THREADS, size / 4 - 1)];
    }

    /* 1 / root mean square */
    static __device__ __forceinline__ float inverse(const float4 (&x)[CHUNKS], const Norm &p,
                                                    float *shared) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            float squares = x[i].x * x[i].x + x[i].y * x[i].y + x[i].z * x[i].z + x[i].w * x[i].w;
            if ((int)threadIdx.x + i * THREADS < p.size / 4) sum += squares;
        }
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sum;
        __syncthreads();
        float total = 0.0f;
#pragma unroll
        for (int w = 0; w < THREADS / 32; w++) total += shared[w];
        return rsqrtf(total / p.size + p.eps);
    }
};
