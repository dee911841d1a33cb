/* What the kernels of a step share: beginning before the last one ends, and being launched so. */
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

constexpr int MOST = 8; /* tokens of a step */

/* From here on the next kernel may begin (sm_90: programmatic dependent launch). */
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* What this step's kernels wrote may be read from here on; before, constants, and where a step
 * begins with its tokens, what earlier steps wrote: embedding.py lets nobody begin before. */
__device__ __forceinline__ void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* What a cluster's blocks wrote to each other before they arrived is there after the wait. */
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ float warp_sum(float value) {
    for (int reach = 16; reach; reach /= 2) value += __shfl_xor_sync(~0u, value, reach);
    return value;
}

/* Sums over a warp of COUNT values, a power of two; lane i gets that of value i / (32 / COUNT). Half
 * as many shuffles as for each by itself, or fewer.
 */
template <int COUNT>
__device__ __forceinline__ float warp_sums(float (&values)[COUNT]) {
#pragma unroll
    for (int count = COUNT / 2, reach = 16; count; count /= 2, reach /= 2) {
        bool upper = threadIdx.x & reach;
#pragma unroll
        for (int i = 0; i < count; i++) {
            float give = upper ? values[i] : values[i + count];
            float keep = upper ? values[i + count] : values[i];
            values[i] = keep + __shfl_xor_sync(~0u, give, reach);
        }
    }
    for (int reach = 16 / COUNT; reach; reach /= 2)
        values[0] += __shfl_xor_sync(~0u, values[0], reach);
    return values[0];
}

__device__ __forceinline__ float warp_max(float value) {
    for (int reach = 16; reach; reach /= 2)
        value = fmaxf(value, __shfl_xor_sync(~0u, value, reach));
    return value;
}

/* How a kernel is launched; `attributes` are kept beside it. */
template <class Kernel>
struct Launch {
    Kernel kernel;
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attributes[2];

    Launch(const Launch &) = delete; /* config points into it */

    Launch(Kernel kernel, dim3 grid, int threads, size_t shared, bool dependent, void *queue,
           dim3 cluster = dim3(1))
        : kernel(kernel) {
        config.gridDim = grid, config.blockDim = dim3(threads);
        config.dynamicSmemBytes = shared, config.stream = (cudaStream_t)queue;
        attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[0].val.programmaticStreamSerializationAllowed = 1;
        attributes[1].id = cudaLaunchAttributeClusterDimension;
        attributes[1].val.clusterDim.x = cluster.x, attributes[1].val.clusterDim.y = cluster.y;
        attributes[1].val.clusterDim.z = cluster.z;
        bool clustered = cluster.x * cluster.y * cluster.z > 1;
        config.attrs = attributes, config.numAttrs = dependent ? clustered ? 2 : 1 : 0;
    }

    /* Beside the static part: 48 KB in all need asking, as do clusters of more than 8. */
    cudaError_t prepare() const {
        int shared = (int)config.dynamicSmemBytes;
        cudaError_t error = cudaSuccess;
        if (shared > 32 * 1024)
            error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         shared);
        if (error == cudaSuccess && config.numAttrs > 1)
            error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
        return error;
    }

    /* How many clusters the GPU can run at once; 0 where its parts are too small for one. */
    int clusters() const {
        int count = 0;
        bool fine = prepare() == cudaSuccess &&
                    cudaOccupancyMaxActiveClusters(&count, kernel, &config) == cudaSuccess;
        cudaGetLastError(); /* asking is no error */
        return fine ? count : 0;
    }

    /* Returns a CUDA error. */
    template <class Args>
    int run(const Args &args) const {
        cudaError_t error = prepare();
        if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, args);
        return (int)error;
    }
};

template <class Kernel, class Args>
static int launch(Kernel kernel, const Args &args, dim3 grid, int threads, size_t shared,
                  bool dependent, void *queue) {
    return Launch<Kernel>(kernel, grid, threads, shared, dependent, queue).run(args);
}
