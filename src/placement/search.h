/* The search for a placement, one layer at a time: assignments of experts to slots, the batches
 * they are scored on, and the score, which follows single changes cheaply. docs/placement.md
 * describes the whole. */
#ifndef LPLB_PLACEMENT_SEARCH_H
#define LPLB_PLACEMENT_SEARCH_H

#include <stdbool.h>

#include "base/rng.h"
#include "placement/placement.h"

/* Batches are scored side by side, this many in a block. */
enum { LPLB__LANES = 16 };

/* ---- batches.c: what a layer is scored on ---- */

typedef struct lplb__batches {
    int32_t count, padded; /* padded to a multiple of LPLB__LANES; padding has weight 0 */
    float *load;           /* [E][padded] whole numbers, 2^22 to 2^24 in a batch: sums are exact */
    float *mean;           /* [padded] load per unit of speed over the ranks alive */
    float *weight;         /* [padded] share of the objective; adds up to 1 */
} lplb__batches;

/* ---- one layer's problem ---- */

typedef struct lplb__layer {
    int32_t index, ranks, experts, slots;
    const int32_t *rank_offset; /* [G+1] */
    const int64_t *speed;       /* [G] or NULL */
    int32_t *slot_rank;         /* [P] */
    int32_t *usable;            /* [n_usable] slots on ranks alive, at most E a rank */
    int32_t n_usable;
    int32_t *alive; /* [n_alive] ranks with usable slots */
    int32_t n_alive;
    int32_t *home, *node; /* [E], [G]: expert e only on ranks of node home[e]; or NULL */
    uint8_t *was;         /* [E][G] pairs of the present placement, or NULL */
    int64_t max_moves;    /* INT64_MAX = no limit */
    double move_cost;     /* imbalance that a move must gain to be worth it */
    bool even;            /* score by the even split instead of the optimum */
    int64_t work;         /* units that the search may cost; 0 = by iterations */
    double *typical;      /* [E] mean share of a batch's load */
    lplb__batches batches;
} lplb__layer;

lplb_status lplb__batches_create(lplb__layer *layer, const lplb__place_task *task);
void lplb__batches_destroy(lplb__batches *batches);

/* ---- assignment.c ---- */

typedef struct lplb__assignment {
    int32_t *slot;   /* [P] expert or -1 */
    int32_t *copies; /* [E] */
    int32_t *first;  /* [E] a slot of the expert, -1 = none; the others follow by next */
    int32_t *next;   /* [P] */
    uint8_t *has;    /* [E][G] */
    int64_t moves;   /* pairs that were not there before */
} lplb__assignment;

lplb_status lplb__assignment_create(const lplb__layer *layer, lplb__assignment *a);
void lplb__assignment_destroy(lplb__assignment *a);
void lplb__assignment_copy(const lplb__layer *layer, const lplb__assignment *from,
                           lplb__assignment *to);
void lplb__assignment_clear(const lplb__layer *layer, lplb__assignment *a);
/* expert -1 empties the slot. */
void lplb__assignment_set(const lplb__layer *layer, lplb__assignment *a, int32_t slot,
                          int32_t expert);
/* Takes over a map [P'] over ranks with these offsets, dropping what does not fit. */
void lplb__assignment_import(const lplb__layer *layer, lplb__assignment *a, const int32_t *map,
                             const int32_t *rank_offset, int32_t ranks);
/* Gives every expert a slot and fills what is free within the budget, heaviest copies first. */
lplb_status lplb__assignment_complete(const lplb__layer *layer, lplb__assignment *a);
/* May the expert live on the rank, where it does not live yet? */
bool lplb__assignment_allows(const lplb__layer *layer, const lplb__assignment *a, int32_t expert,
                             int32_t rank);

/* ---- score.c ---- */

/* Slot `slot` gets expert `put` in place of what it holds, a spare copy or nothing; or, with
 * other >= 0, the two slots swap their experts. */
typedef struct lplb__change {
    int32_t slot, other;
    int32_t old, put; /* experts that leave and come to `slot`; old -1 = it was free */
} lplb__change;

typedef struct lplb__score lplb__score;
lplb_status lplb__score_create(lplb__score **out, lplb__layer *layer);
void lplb__score_destroy(lplb__score *s);
/* Solves every batch for the assignment and returns its true score. */
lplb_status lplb__score_refresh(lplb__score *s, const lplb__assignment *a, double *score);
/* Score after a change that the assignment already has; something above `limit` if above it. */
double lplb__score_try(lplb__score *s, const lplb__assignment *a, const lplb__change *change,
                       double limit);
/* Takes over the change that was tried last. */
void lplb__score_apply(lplb__score *s);
/* Load of a rank for its speed in batch b. */
float lplb__score_rank(const lplb__score *s, int32_t rank, int32_t b);
/* What a change does to the fuller of the two ranks of these slots, summed over a block of batches
 * and with no split but theirs changed: cheap, to choose among changes before one is tried. `from`
 * gives its expert or, without swap, a part of its tokens to `to`. */
double lplb__score_guess(lplb__score *s, const lplb__assignment *a, int32_t from, int32_t to,
                         bool swap, int32_t block);
/* Work so far in units of about a nanosecond: a function of what was computed, not of time. */
int64_t lplb__score_work(const lplb__score *s);

/* ---- anneal.c ---- */

/* Improves a complete assignment in place and returns its score; iterations count only where the
 * layer sets no limit to the work. */
lplb_status lplb__anneal(lplb__score *s, const lplb__layer *layer, lplb__assignment *a,
                         lplb__rng *rng, int64_t iterations, double *score);

/* ---- search.c ---- */

lplb_status lplb__search(const lplb__place_task *task, const lplb_placement *out);

#endif
