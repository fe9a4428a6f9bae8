/* What the two forms of the interior-point method share: the problem cut into parts that have no
 * expert in common, each a linear program of its own (LPLB's groups are such parts). */
#ifndef LPLB_PLAN_IPM_H
#define LPLB_PLAN_IPM_H

#include "plan/plan.h"

enum { IPM_MAX_ROWS = 2048 }; /* ranks + experts with a choice; the matrices have rows^2 entries */

/* The ranks [rank0, rank0 + ranks) and experts [expert0, expert0 + experts) of the lists below. */
typedef struct ipm_part {
    int32_t rank0, ranks, expert0, experts;
} ipm_part;

/* Experts with one host are fixed load. R others have C hosts together; a column is one host. */
struct lplb__ipm {
    const lplb_hosts *hosts;
    lplb_ipm_options options; /* defaults filled in */
    int32_t parts;
    ipm_part *part;
    int32_t *rank;   /* [G] ranks, part by part, ascending within a part */
    int32_t *expert; /* [R] likewise */
    int64_t *column; /* [R+1] first column of each expert of the list */
    int64_t *host;   /* [C] index into the split, ascending rank within an expert */
    int32_t *row;    /* [C] the rank's row within its part */
    int64_t *total;  /* [G] fixed tokens, those of single-host experts included, by list position */

    /* scaled so that numbers are near 1; by list position */
    double *fixed, *speed, *load, *slack; /* [G] */
    double *tokens;                       /* [R] */
    double *share, *best;                 /* [C] sum to 1 within an expert */
    double *price;                        /* [G] multipliers of the ranks, >= 0 */

    /* converged form */
    double *change;                      /* [C] */
    double *correction, *right, *excess; /* [G] */
    double *matrix;                      /* [G][G] */

    /* published form, with NC = rows and NV = columns + ranks + 2 of the largest part */
    float *normal;             /* [NC][NC] */
    float *x, *direction;      /* [NV] */
    float *artificial, *bound; /* [NC] Big-M's column; right-hand side b */
    float *y;                  /* [NC] */

    uint64_t *remainder; /* [G] */
};

/* What a part's linear program came to, in units of its scale. */
typedef struct ipm_result {
    double objective; /* max load/speed of the shares, -- before rounding */
    double bound;     /* no split has less; -inf if the multipliers say nothing */
    int32_t iterations;
    int converged;
} ipm_result;

/* The largest load / speed that the shares make; fills load. */
double lplb__ipm_objective(lplb__ipm *ipm, const ipm_part *part, const double *share);
/* Lagrange: for prices u >= 0 with sum of u_r s_r = 1, no split has an objective below
 * sum of u_r fixed_r + sum of w_e min over hosts of u. Scales price to that sum. */
double lplb__ipm_bound(lplb__ipm *ipm, const ipm_part *part);

/* Solve one part from its scaled fixed, speed, tokens; leave shares. */
ipm_result lplb__ipm_converge(lplb__ipm *ipm, const ipm_part *part);
ipm_result lplb__ipm_publish(lplb__ipm *ipm, const ipm_part *part);

#endif
