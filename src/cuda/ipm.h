/* What the interior-point kernel needs besides a step (ipm.cuh), and how much of it fits. */
#ifndef LPLB_CUDA_IPM_H
#define LPLB_CUDA_IPM_H

#include <stdint.h>

enum {
    LPLB__CUDA_IPM_THREADS = 512,
    LPLB__CUDA_IPM_WARPS = LPLB__CUDA_IPM_THREADS / 32,
    LPLB__CUDA_IPM_RANKS = 128, /* of a component, converged: the matrix is in shared memory */
    LPLB__CUDA_IPM_ROWS = 192   /* ranks and experts of a component, published: likewise */
};

/* Options, and offsets in bytes into the block's shared memory. Positions of ranks as in the
 * tables; an array of hosts has room for all slots. */
typedef struct lplb__cuda_ipm {
    double tolerance, step;
    int32_t published, iterations;
    uint32_t result;  /* what all components come to */
    uint32_t partial; /* double [warps][2] of a team's reductions */
    /* scaled so that numbers are near 1 */
    uint32_t fixed, speed, load, slack; /* double [G] */
    uint32_t price, correction;         /* double [G] */
    uint32_t right, inverse;            /* double [G] */
    uint32_t weight;                    /* double [E] */
    uint32_t share, next, best, change; /* double [P] */
    uint32_t contribution;              /* double [P] by column (ipm_converge.cuh) */
    uint32_t column, first;             /* [P], uint16 [G+1] */
    uint32_t rows;                      /* float [4][G+E], published */
    uint32_t matrix; /* [teams][n][n | 1]: double, n ranks; published: float, n ranks and experts */
} lplb__cuda_ipm;

#endif
