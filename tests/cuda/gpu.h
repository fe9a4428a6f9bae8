/* What the GPU tests share. No test framework: they also run where there is none. */
#ifndef LPLB_TESTS_CUDA_GPU_H
#define LPLB_TESTS_CUDA_GPU_H

#include <cuda_runtime_api.h>
#include <lplb/cuda.h>

#include "cases/cases.h"

/* Counts a failure and says where; goes on. */
void gpu_fail(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) gpu_fail(__FILE__, __LINE__, __VA_ARGS__);                               \
    } while (0)
#define OK(call)                                                                                   \
    do {                                                                                           \
        lplb_status ok_status_ = (call);                                                           \
        if (ok_status_ != LPLB_OK)                                                                 \
            gpu_fail(__FILE__, __LINE__, "%s: %s", #call, lplb_error_message());                   \
    } while (0)
#define CUDA(call)                                                                                 \
    do {                                                                                           \
        cudaError_t cuda_error_ = (call);                                                          \
        if (cuda_error_ != cudaSuccess)                                                            \
            gpu_fail(__FILE__, __LINE__, "%s: %s", #call, cudaGetErrorString(cuda_error_));        \
    } while (0)

typedef struct gpu_test {
    const char *name;
    void (*run)(void);
} gpu_test;
/* Runs those whose name contains argv[1], or all; prints a line each; the program's exit status. */
int gpu_main(const gpu_test *tests, int n, int argc, char **argv);

/* How much of a long test to do: 1 normally, less in an emulator or under a sanitizer
 * (LPLB_GPU_EFFORT, in percent). At least 1 of n. */
int gpu_effort(int n);

/* Device memory with a copy of n items of `bytes` bytes (from NULL: zeros). */
void *gpu_copy(const void *from, int64_t n, size_t bytes);
void gpu_fetch(void *to, const void *device, int64_t n, size_t bytes);
void gpu_put(void *device, const void *from, int64_t n, size_t bytes);
void gpu_free(void *device);
cudaStream_t gpu_stream(void); /* one for all tests, not the default one */

/* A one-layer placement with a slot for each host, in ascending ranks; every `twice`-th host (0:
 * none) has two slots. Free with lplb_placement_destroy. */
lplb_placement *gpu_placement(const lplb_hosts *hosts, int32_t twice);

/* The hosts as plan and dispatch see them. */
typedef struct gpu_hosts {
    lplb_hosts hosts;
    int64_t *offset;
    int32_t *rank;
} gpu_hosts;
void gpu_hosts_create(const lplb_placement *placement, gpu_hosts *out);
void gpu_hosts_destroy(gpu_hosts *hosts);

#endif
