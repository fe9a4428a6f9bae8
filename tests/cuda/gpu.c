#include "gpu.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int failures;
static const int max_shown = 20;

void gpu_fail(const char *file, int line, const char *format, ...) {
    va_list arguments;
    if (failures++ >= max_shown) return;
    printf("  %s:%d: ", file, line);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
}

int gpu_main(const gpu_test *tests, int n, int argc, char **argv) {
    int failed = 0, ran = 0;
    for (int i = 0; i < n; i++) {
        struct timespec start, end;
        if (argc > 1 && !strstr(tests[i].name, argv[1])) continue;
        int before = failures;
        clock_gettime(CLOCK_MONOTONIC, &start);
        tests[i].run();
        clock_gettime(CLOCK_MONOTONIC, &end);
        double seconds =
            (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) * 1e-9;
        printf("%s %s (%.2f s)\n", failures == before ? "ok    " : "FAILED", tests[i].name,
               seconds);
        fflush(stdout);
        failed += failures != before;
        ran++;
    }
    printf("%d tests, %d failed\n", ran, failed);
    return failed ? 1 : 0;
}

int gpu_effort(int n) {
    const char *percent = getenv("LPLB_GPU_EFFORT");
    int part = percent ? (int)((long)n * atoi(percent) / 100) : n;
    return part > 0 ? part : 1;
}

void *gpu_copy(const void *from, int64_t n, size_t bytes) {
    void *device = NULL;
    CUDA(cudaMalloc(&device, (size_t)n * bytes + 1));
    CUDA(cudaMemset(device, 0, (size_t)n * bytes));
    if (from) gpu_put(device, from, n, bytes);
    CUDA(cudaDeviceSynchronize());
    return device;
}

void gpu_fetch(void *to, const void *device, int64_t n, size_t bytes) {
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaMemcpy(to, device, (size_t)n * bytes, cudaMemcpyDeviceToHost));
}

void gpu_put(void *device, const void *from, int64_t n, size_t bytes) {
    CUDA(cudaDeviceSynchronize()); /* our stream does not wait for the default one, nor it for ours
                                    */
    CUDA(cudaMemcpy(device, from, (size_t)n * bytes, cudaMemcpyHostToDevice));
    CUDA(cudaDeviceSynchronize()); /* the copy may still be on its way to the device */
}

void gpu_free(void *device) { CUDA(cudaFree(device)); }

cudaStream_t gpu_stream(void) {
    static cudaStream_t stream;
    if (!stream) CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}

lplb_placement *gpu_placement(const lplb_hosts *hosts, int32_t twice) {
    int64_t n = hosts->offset[hosts->experts];
    int32_t *per_rank = calloc((size_t)hosts->ranks, sizeof *per_rank), slots = 0;
    int32_t *next = calloc((size_t)hosts->ranks, sizeof *next);
    for (int64_t h = 0; h < n; h++) {
        int32_t copies = twice && h % twice == 0 ? 2 : 1;
        per_rank[hosts->rank[h]] += copies;
        slots += copies;
    }
    lplb_placement *placement = NULL;
    OK(lplb_placement_create(1, hosts->experts, slots, hosts->ranks, per_rank, &placement));
    for (int32_t r = 0; r < hosts->ranks; r++) next[r] = placement->rank_offset[r];
    for (int32_t e = 0; e < hosts->experts; e++)
        for (int64_t h = hosts->offset[e]; h < hosts->offset[e + 1]; h++)
            for (int k = twice && h % twice == 0 ? 2 : 1; k > 0; k--)
                placement->physical_to_logical[next[hosts->rank[h]]++] = e;
    free(per_rank);
    free(next);
    return placement;
}

void gpu_hosts_create(const lplb_placement *placement, gpu_hosts *out) {
    out->offset = calloc((size_t)placement->experts + 1, sizeof *out->offset);
    out->rank = calloc((size_t)placement->slots, sizeof *out->rank);
    OK(lplb_placement_hosts(placement, 0, out->offset, out->rank, &out->hosts));
}

void gpu_hosts_destroy(gpu_hosts *hosts) {
    free(hosts->offset);
    free(hosts->rank);
}
