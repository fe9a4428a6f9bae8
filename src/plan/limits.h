/* The least time t at which a set of ranks can hold a number of tokens, and what each rank may hold
 * at t. Three kinds: equal speeds (t = tokens), speeds (t = tokens / speed, a fraction compared by
 * cross products), monotone cost tables (t = an entry of a table). */
#ifndef LPLB_PLAN_LIMITS_H
#define LPLB_PLAN_LIMITS_H

#include <lplb/plan.h>
#include <stdbool.h>

#include "base/mem.h"

typedef enum lplb__limit_kind { LIMIT_UNIT, LIMIT_SPEED, LIMIT_COST } lplb__limit_kind;

/* UNIT: numerator tokens. SPEED: numerator / denominator. COST: numerator = the time as a double
 * mapped to an integer of the same order. */
typedef struct lplb__limit {
    int64_t numerator, denominator;
} lplb__limit;

typedef struct lplb__limits {
    lplb__limit_kind kind;
    int32_t ranks;
    int64_t *speed;       /* [G] by position, SPEED only */
    const double **table; /* [G] by position, COST only */
    int64_t cost_entries;
    int64_t *share; /* [G] scratch */
} lplb__limits;

void lplb__limits_reserve(const lplb_hosts *hosts, lplb__arena *arena);
/* rank_id [G]: the rank at each position. The cost table must outlive the limits. */
void lplb__limits_init(lplb__limits *limits, const lplb_hosts *hosts, const int64_t *speed,
                       const double *cost, int64_t cost_entries, const int32_t *rank_id,
                       lplb__arena *arena);

bool lplb__limit_less(const lplb__limits *limits, lplb__limit a, lplb__limit b);
/* Least t at which position q may hold load; LPLB_INFEASIBLE beyond a cost table's end. */
lplb_status lplb__limit_of_load(const lplb__limits *limits, int32_t q, int64_t load,
                                lplb__limit *t);
/* Least t at which the positions of set within [first, first + ranks) hold tokens together. */
lplb_status lplb__limit_of_set(const lplb__limits *limits, const uint64_t *set, int32_t first,
                               int32_t ranks, int64_t tokens, lplb__limit *t);
/* capacity[q] for q in [first, first + ranks). */
void lplb__limit_capacities(const lplb__limits *limits, lplb__limit t, int32_t first, int32_t ranks,
                            int64_t *capacity);
double lplb__limit_value(const lplb__limits *limits, lplb__limit t);

#endif
