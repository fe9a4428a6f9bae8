/* How a step is cut into blocks, and a block's shared memory into arrays. */
#ifndef LPLB_CUDA_SHAPE_H
#define LPLB_CUDA_SHAPE_H

#include "base/error.h"
#include "cuda/step.h"

/* The arrays of a block of `threads` threads, by the step's sizes, tables and solver_warps. */
void lplb__cuda_share_memory(const lplb__cuda_step *step, int32_t threads,
                             lplb__cuda_shared *shared);

/* A launch: each block has so many warps besides the planning ones. */
typedef struct lplb__cuda_shape {
    int32_t blocks, id_warps;
} lplb__cuda_shape;

/* The fastest known shape for n ids, with at most so many blocks and warps for ids; it has no fewer
 * blocks than that of fewer ids. */
lplb__cuda_shape lplb__cuda_choose_shape(int64_t n, int32_t most_blocks, int32_t most_id_warps);

#endif
