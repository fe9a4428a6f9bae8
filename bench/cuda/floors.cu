#include "floors.h"

__global__ void empty_kernel(int n) {
#if __CUDA_ARCH__ >= 900
    for (int i = 0; i < n; i++)
        asm volatile("barrier.cluster.arrive.release.aligned;\n"
                     "barrier.cluster.wait.acquire.aligned;" ::
                         : "memory");
#endif
}

/* Each block adds one an arrival; the last launch's arrivals make whole rounds of gridDim.x. */
__global__ void grid_kernel(int n, uint32_t *arrived) {
    for (int i = 0; i < n; i++) {
        __syncthreads();
        if (threadIdx.x == 0) {
            uint32_t before, now;
            asm volatile("atom.add.acq_rel.gpu.u32 %0, [%1], 1;"
                         : "=r"(before)
                         : "l"(arrived)
                         : "memory");
            uint32_t round = before / gridDim.x;
            do
                asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(now) : "l"(arrived) : "memory");
            while (now / gridDim.x == round);
        }
        __syncthreads();
    }
}

__global__ void copy_kernel(const int64_t *in, int64_t *out, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = in[i];
}

__global__ void histogram_kernel(const int64_t *in, int64_t n, int experts, uint32_t *count) {
    extern __shared__ uint32_t own[];
    for (int e = threadIdx.x; e < experts; e += blockDim.x) own[e] = 0;
    __syncthreads();
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i < n; i += (int64_t)gridDim.x * blockDim.x) atomicAdd(&own[in[i]], 1u);
    __syncthreads();
    for (int e = threadIdx.x; e < experts; e += blockDim.x)
        if (own[e]) atomicAdd(&count[e], own[e]);
}

static void launch_empty(int n, int blocks, int cluster, int threads, size_t shared_bytes,
                         cudaStream_t stream) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = (unsigned)cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)blocks);
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = cluster > 1;
    cudaFuncSetAttribute(empty_kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    cudaFuncSetAttribute(empty_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         (int)shared_bytes);
    cudaLaunchKernelEx(&config, empty_kernel, n);
}

void floor_empty(int blocks, int cluster, int threads, size_t shared_bytes, cudaStream_t stream) {
    launch_empty(0, blocks, cluster, threads, shared_bytes, stream);
}

void floor_cluster_barriers(int n, int cluster, int threads, cudaStream_t stream) {
    launch_empty(n, cluster, cluster, threads, 0, stream);
}

void floor_grid_barriers(int n, int blocks, int threads, uint32_t *arrived, cudaStream_t stream) {
    grid_kernel<<<blocks, threads, 0, stream>>>(n, arrived);
}

void floor_copy(const int64_t *in, int64_t *out, int64_t n, cudaStream_t stream) {
    int blocks = (int)((n + 511) / 512);
    copy_kernel<<<blocks, 512, 0, stream>>>(in, out, n);
}

void floor_histogram(const int64_t *in, int64_t n, int experts, uint32_t *count,
                     cudaStream_t stream) {
    int needed = (int)((n + 1023) / 1024), blocks = needed < 132 ? needed : 132;
    histogram_kernel<<<blocks, 1024, (size_t)experts * 4, stream>>>(in, n, experts, count);
}
