/* What the solvers of src/plan share. A solver has three functions: reserve (adds its scratch to an
 * arena), init (takes it) and solve (no allocation). planner.c owns them and chooses by config. */
#ifndef LPLB_PLAN_PLAN_H
#define LPLB_PLAN_PLAN_H

#include <lplb/plan.h>

#include "base/mem.h"

/* ---- planner.c ---- */
lplb_status lplb__check_hosts(const lplb_hosts *hosts);
lplb_status lplb__check_speed(const int64_t *speed, int32_t ranks);
/* Signs, sources that add up, no overflow; *total = tokens, fixed ones included. */
lplb_status lplb__check_input(const lplb_hosts *hosts, const lplb_plan_input *input,
                              int64_t *total);

/* One validated batch as the solvers see it. */
typedef struct lplb__batch {
    const lplb_hosts *hosts;
    const int64_t *speed;   /* [G] or NULL = all 1 */
    const int32_t *node;    /* [G] or NULL */
    const int64_t *tokens;  /* [E] */
    const int64_t *fixed;   /* [G], never NULL */
    const int64_t *sources; /* [G][E] or NULL */
} lplb__batch;

/* ---- baselines.c ---- */
typedef struct lplb__baselines {
    int64_t *load;    /* [G] */
    int64_t *key;     /* [G] */
    int32_t *order;   /* [E] experts by falling tokens */
    int32_t *pick;    /* [G] ranks of one expert */
    int32_t *by_rank; /* [offset[E]] positions of an expert's hosts by ascending rank */
} lplb__baselines;
void lplb__baselines_reserve(const lplb_hosts *hosts, lplb__arena *arena);
void lplb__baselines_init(lplb__baselines *b, const lplb_hosts *hosts, lplb__arena *arena);
/* even | greedy | waterfill | balance; writes batch split only. sweeps may be NULL. */
void lplb__baselines_solve(lplb__baselines *b, lplb_solver solver, const lplb__batch *batch,
                           int64_t *split, int32_t *sweeps);

/* How much evens out load/speed of two ranks when it moves: half the difference, rounded down, or
 * its like with speeds; negative the other way. */
int64_t lplb__excess(const lplb__batch *batch, const int64_t *load, int32_t from, int32_t to);

/* ---- ipm.c ---- */
typedef struct lplb__ipm lplb__ipm;
void lplb__ipm_reserve(const lplb_plan_config *config, lplb__arena *arena);
lplb_status lplb__ipm_init(lplb__ipm **ipm, const lplb_plan_config *config, lplb__arena *arena);
/* Checks the options; *filled has the defaults in place of zeros. speed may be NULL. */
lplb_status lplb__ipm_check(const lplb_ipm_options *options, const int64_t *speed,
                            lplb_ipm_options *filled);
/* Fills split, outcome (FEASIBLE or NOT_CONVERGED), sweeps, rejected, ipm_gap, bound. */
lplb_status lplb__ipm_solve(lplb__ipm *ipm, const lplb__batch *batch, lplb_plan *plan);

/* ---- locality.c: given capacities that admit a split, the one that keeps most tokens on their
 * source rank, then most on their source node; ties as docs/math.md says ---- */
typedef struct lplb__locality lplb__locality;
void lplb__locality_reserve(const lplb_plan_config *config, lplb__arena *arena);
lplb_status lplb__locality_init(lplb__locality **locality, const lplb_plan_config *config,
                                lplb__arena *arena);
/* capacity [G]: most tokens a rank may have, fixed included. */
lplb_status lplb__locality_solve(lplb__locality *locality, const lplb__batch *batch,
                                 const int64_t *capacity, int64_t *split);

/* ---- exact.c ---- */
typedef struct lplb__exact lplb__exact;
void lplb__exact_reserve(const lplb_hosts *hosts, lplb__arena *arena);
/* speed and cost as in lplb_plan_config; the arrays must outlive the solver. */
lplb_status lplb__exact_init(lplb__exact **exact, const lplb_hosts *hosts, const int64_t *speed,
                             const double *cost, int64_t cost_entries, lplb__arena *arena);
/* Fills split, certificate (if not NULL), max over ranks bound, sweeps, augmentations, restarts and
 * capacity [G] (if not NULL): the optimal capacity of every rank (see docs/math.md). */
lplb_status lplb__exact_solve(lplb__exact *exact, const lplb__batch *batch, lplb_plan *plan,
                              int64_t *capacity);
/* Of the last batch (not with cost tables): t* as a fraction of tokens over speed, and the most
 * tokens that a rank may hold at t*. */
void lplb__exact_limit(const lplb__exact *exact, lplb_fraction *t, int64_t *most_tokens);

/* ---- active.c: LPLB_OBJECTIVE_ACTIVE; exact was made without speeds ---- */
typedef struct lplb__active lplb__active;
void lplb__active_reserve(const lplb_hosts *hosts, lplb__arena *arena);
void lplb__active_init(lplb__active **active, const lplb_hosts *hosts, lplb__exact *exact,
                       const lplb__baselines *baselines, lplb__arena *arena);
/* Fills split, certificate (of the count), outcome, objective = count, bound and the work done. */
lplb_status lplb__active_solve(lplb__active *active, const lplb__batch *batch, lplb_plan *plan);

/* ---- tiles.c: whole tiles and a price for every active expert ---- */
typedef struct lplb__tiles lplb__tiles;
void lplb__tiles_reserve(const lplb_hosts *hosts, lplb__arena *arena);
void lplb__tiles_init(lplb__tiles **tiles, const lplb_plan_config *config, lplb__exact *exact,
                      lplb__baselines *baselines, lplb__arena *arena);
/* Likewise, with objective = largest cost over speed; FEASIBLE unless it meets the bound. */
lplb_status lplb__tiles_solve(lplb__tiles *tiles, const lplb__batch *batch, lplb_plan *plan);

#endif
