/* What the exact planner makes of a placement, for implementations on other devices that follow its
 * canonical rule: the order in which experts are looked at decides the answer. */
#ifndef LPLB_PLAN_EXACT_LAYOUT_H
#define LPLB_PLAN_EXACT_LAYOUT_H

#include "plan/plan.h"

enum { LPLB__MAX_SWEEPS = 32 };

/* One expert with several hosts. Its slots [begin, begin + hosts) are in ascending rank order. */
typedef struct lplb__movable {
    int32_t component, colour, expert, begin, hosts;
} lplb__movable;

/* Ranks are numbered by component and then by id; such a number is a position. */
typedef struct lplb__component {
    int32_t first_rank, ranks; /* positions [first_rank, first_rank + ranks) */
    int32_t first_movable, movables;
} lplb__component;

/* Points into the planner; valid while it lives. */
typedef struct lplb__exact_layout {
    int32_t components, movables;
    const lplb__component *component; /* [components] */
    const lplb__movable *movable;     /* [movables] by component, colour, expert */
    const int32_t *slot_rank;         /* [slots of movables] position */
    const int64_t *slot_split;        /* [slots of movables] index into the split */
    const int32_t *rank_id;           /* [G] rank at each position */
    const int32_t *position;          /* [G] position of each rank */
} lplb__exact_layout;

lplb__exact_layout lplb__exact_get_layout(const lplb__exact *exact);

#endif
