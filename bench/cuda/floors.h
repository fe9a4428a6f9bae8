/* What no step can beat, as kernels of their own. Each puts one launch on the stream. */
#ifndef LPLB_BENCH_CUDA_FLOORS_H
#define LPLB_BENCH_CUDA_FLOORS_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* blocks * threads, in clusters; does nothing. */
void floor_empty(int blocks, int cluster, int threads, size_t shared_bytes, cudaStream_t stream);
/* The same with n barriers of each cluster. */
void floor_cluster_barriers(int n, int cluster, int threads, cudaStream_t stream);
/* n barriers of a whole grid, at most as many blocks as run at a time. *arrived: zero at first. */
void floor_grid_barriers(int n, int blocks, int threads, uint32_t *arrived, cudaStream_t stream);
/* out[i] = in[i]. */
void floor_copy(const int64_t *in, int64_t *out, int64_t n, cudaStream_t stream);
/* count[e] += ids equal to e, E experts. */
void floor_histogram(const int64_t *in, int64_t n, int experts, uint32_t *count,
                     cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
