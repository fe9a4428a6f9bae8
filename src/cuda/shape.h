/* How a step is cut into blocks, and a block's shared memory into arrays. */
#ifndef LPLB_CUDA_SHAPE_H
#define LPLB_CUDA_SHAPE_H

#include "base/error.h"
#include "cuda/step.h"

enum { LPLB__CUDA_MAX_CLUSTER = 16 };

/* The arrays of a block of `threads` threads in clusters of at most `cluster` blocks, by the step's
 * sizes, tables and solver_warps. */
void lplb__cuda_share_memory(const lplb__cuda_step *step, int32_t threads, int32_t cluster,
                             lplb__cuda_shared *shared);

/* A launch: `clusters` clusters of `cluster` blocks, each with so many warps besides the planning
 * ones. */
typedef struct lplb__cuda_shape {
    int32_t cluster, clusters, id_warps;
} lplb__cuda_shape;

/* What the device has room for at a time, with the planner's threads and shared memory. */
typedef struct lplb__cuda_room {
    int32_t blocks;                               /* without clusters */
    int32_t clusters[LPLB__CUDA_MAX_CLUSTER + 1]; /* of 2, 4, 8 or 16 blocks; 0 = none */
    int32_t sms;                                  /* that the step may use */
} lplb__cuda_room;

/* The fastest known shape for n ids, with at most so many warps for ids. */
lplb__cuda_shape lplb__cuda_choose_shape(const lplb__cuda_room *room, int64_t n,
                                         int32_t most_id_warps);

#endif
