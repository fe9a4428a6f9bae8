/* Two helpers that are offered and measured, not recommended: a batch size that follows the step
 * time, and a cache of plans. docs/runtime.md says what they brought on recorded traffic. */
#ifndef LPLB_TUNING_H
#define LPLB_TUNING_H

#include <lplb/plan.h>
#include <lplb/status.h>
#include <stdint.h>

LPLB_BEGIN_DECLS

/* ---- Adaptive batch size ---- */

/* Grows while steps are short, shrinks when they are long. A change needs `patience` steps in a row
 * that ask for it, and the band between the two times asks for none, so that it does not hunt. */
typedef struct lplb_batch_sizer {
    int64_t size;                           /* tokens of the next batch */
    int64_t least, most;                    /* bounds */
    int64_t grow_below_ns, shrink_above_ns; /* 0 = 2 ms and 10 ms */
    double factor;                          /* of a change, above 1; 0 = 1.25 */
    int32_t patience;                       /* 0 = 3 */
    int32_t streak;        /* so many steps in a row asked for: > 0 more, < 0 less */
    int64_t grown, shrunk; /* changes so far */
} lplb_batch_sizer;
/* Fills defaults; LPLB_RANGE names what cannot be. */
LPLB_API lplb_status lplb_batch_sizer_init(lplb_batch_sizer *sizer);
/* After a step of step_ns; returns size. */
LPLB_API int64_t lplb_batch_sizer_update(lplb_batch_sizer *sizer, int64_t step_ns);

/* ---- Plan cache ---- */

/* Plans by quantised counts, the least recently used one goes. A hit with other counts than those
 * planned scales the cached split to them (largest remainder): valid, but with no claim of
 * optimality. Equal speeds, no fixed tokens, no sources. One thread at a time. */
typedef struct lplb_plan_cache_config {
    size_t struct_size;
    lplb_hosts hosts; /* as of the planner; copied */
    int64_t capacity; /* plans */
    int64_t quantum;  /* tokens; 1 = only equal counts hit */
} lplb_plan_cache_config;

typedef struct lplb_plan_cache_stats {
    int64_t lookups, hits, exact_hits, evictions, plans;
} lplb_plan_cache_stats;

typedef struct lplb_plan_cache lplb_plan_cache;
LPLB_API lplb_status lplb_plan_cache_create(const lplb_plan_cache_config *config,
                                            lplb_plan_cache **out);
LPLB_API void lplb_plan_cache_destroy(lplb_plan_cache *cache);
/* As lplb_plan_solve; *hit (may be NULL) says whether the cache answered. certificate of a hit is
 * not filled: its outcome is LPLB_OUTCOME_FEASIBLE and its bound -inf. Allocates nothing. */
LPLB_API lplb_status lplb_plan_cache_solve(lplb_plan_cache *cache, lplb_planner *planner,
                                           const lplb_plan_input *input, lplb_plan *plan,
                                           int32_t *hit);
LPLB_API void lplb_plan_cache_get_stats(const lplb_plan_cache *cache, lplb_plan_cache_stats *stats);

LPLB_END_DECLS

#endif
