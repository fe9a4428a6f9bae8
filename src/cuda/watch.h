/* Rows gathered by somebody else's all-gather, and the thread that ends it when a rank is missing:
 * NCCL and its like wait for ever, and the host may be waiting for the stream at that time. */
#ifndef LPLB_CUDA_WATCH_H
#define LPLB_CUDA_WATCH_H

#include <cuda_runtime_api.h>
#include <lplb/cuda.h>
#include <stdbool.h>
#include <stdint.h>

/* An all-gather that can be put on a stream. */
typedef struct lplb__cuda_gatherer {
    lplb_status (*all_gather)(void *state, const void *send, void *receive, int64_t bytes,
                              lplb_cuda_stream stream);
    /* From another thread: ends what waits on the device, without the other ranks. */
    void (*abort)(void *state);
    void (*destroy)(void *state); /* or NULL; not after abort */
    void *state;
} lplb__cuda_gatherer;

typedef struct lplb__cuda_watch lplb__cuda_watch;

/* beat: host memory that the device writes, the number of the last turn that was counted and, once
 * its rows have come and were used, the same number again. If the second lags behind for longer
 * than the timeout, the gatherer is aborted. Takes over the gatherer unless it fails. */
lplb_status lplb__cuda_watch_create(const lplb__cuda_gatherer *gatherer, const uint64_t *beat,
                                    uint64_t timeout_ns, int32_t device, lplb__cuda_watch **out);
/* Gathers, and LPLB_OK without having done so once the gatherer was aborted. */
lplb_status lplb__cuda_watch_gather(lplb__cuda_watch *watch, const void *send, void *receive,
                                    int64_t bytes, cudaStream_t stream);
bool lplb__cuda_watch_aborted(const lplb__cuda_watch *watch);
/* Destroys the gatherer too, unless it was aborted. beat may be freed afterwards. NULL is fine. */
void lplb__cuda_watch_destroy(lplb__cuda_watch *watch);

#endif
