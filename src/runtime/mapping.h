/* Operations on one layer's slots; callers bring the scratch memory. */
#ifndef LPLB_RUNTIME_MAPPING_H
#define LPLB_RUNTIME_MAPPING_H

#include <lplb/placement.h>
#include <stdbool.h>

/* What slots belong to which rank. */
typedef struct lplb__slots {
    int32_t experts, slots, ranks, nodes;
    const int32_t *offset; /* [G+1] */
    const uint8_t *dead;   /* [G] or NULL */
} lplb__slots;

static inline bool lplb__is_dead(const lplb__slots *s, int32_t rank) {
    return s->dead && s->dead[rank];
}
int32_t lplb__live_slots(const lplb__slots *s);
int32_t lplb__live_ranks(const lplb__slots *s);

/* seen [(E + 63) / 64] of scratch. */
lplb_status lplb__validate_layer(const lplb__slots *s, int32_t layer, const int32_t *row, bool full,
                                 uint64_t *seen);
void lplb__round_robin_layer(const lplb__slots *s, int32_t *row);
/* taken [P] of scratch; may be in place (out == to). */
void lplb__align_layer(const lplb__slots *s, const int32_t *from, const int32_t *to, int32_t *out,
                       int32_t *taken);

typedef struct lplb__diff_scratch {
    int32_t *head, *next; /* [E], [P]: slots of each expert in `from` */
    int32_t *sends;       /* [G] */
    int32_t *brought;     /* [E] last rank that a move of this list brought it to */
} lplb__diff_scratch;
/* The slots that change and hold an expert afterwards, ascending; each from the nearest and least
 * asked rank that holds it. Returns how many; *crossing of them come from another rank or from a
 * checkpoint. moves [P]. */
int64_t lplb__diff_layer(const lplb__slots *s, int32_t layer, const int32_t *from,
                         const int32_t *to, lplb__diff_scratch *scratch, lplb_move *moves,
                         int64_t *crossing);

/* row keeps what live ranks hold; experts without a copy get slots. copies [E] of scratch. Writes
 * their moves (capacity E); returns how many. With too few live slots row is left with the
 * survivors and moves have slot -1. load [E] or NULL. */
int64_t lplb__recover_layer(const lplb__slots *s, int32_t layer, int32_t *row, const int64_t *load,
                            int32_t *copies, lplb_move *lost);
/* Raises LPLB_INFEASIBLE with the first of them by name. */
lplb_status lplb__describe_lost(const lplb_move *lost, int64_t n, int32_t missing_slots);

#endif
