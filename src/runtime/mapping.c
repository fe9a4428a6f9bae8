/* Mappings of one layer: what may be used, what stays, what moves, what survives. */
#include "runtime/mapping.h"

#include <lplb/runtime.h>
#include <stdio.h>
#include <string.h>

#include "base/bits.h"
#include "base/mem.h"
#include "runtime/pack.h"

int32_t lplb__live_ranks(const lplb__slots *s) {
    int32_t live = 0;
    for (int32_t r = 0; r < s->ranks; r++) live += !lplb__is_dead(s, r);
    return live;
}

int32_t lplb__live_slots(const lplb__slots *s) {
    int32_t live = 0;
    for (int32_t r = 0; r < s->ranks; r++)
        if (!lplb__is_dead(s, r)) live += s->offset[r + 1] - s->offset[r];
    return live;
}

static lplb_status validate_rank(const lplb__slots *s, int32_t layer, int32_t rank,
                                 const int32_t *row, bool full, uint64_t *seen) {
    for (int32_t p = s->offset[rank]; p < s->offset[rank + 1]; p++) {
        if (row[p] < -1 || row[p] >= s->experts)
            return LPLB_FAIL(LPLB_RANGE, "layer %d, slot %d: expert %d is outside [-1, %d)", layer,
                             p, row[p], s->experts);
        if (row[p] >= 0 && lplb__is_dead(s, rank))
            return LPLB_FAIL(LPLB_INVALID,
                             "layer %d, slot %d: expert %d is on rank %d, which is "
                             "dead",
                             layer, p, row[p], rank);
        if (row[p] < 0 && full && !lplb__is_dead(s, rank))
            return LPLB_FAIL(LPLB_INVALID, "layer %d: slot %d of rank %d is empty", layer, p, rank);
        if (row[p] >= 0) lplb__bit_set(seen, row[p]);
    }
    return LPLB_OK;
}

lplb_status lplb__validate_layer(const lplb__slots *s, int32_t layer, const int32_t *row, bool full,
                                 uint64_t *seen) {
    memset(seen, 0, (size_t)lplb__bit_words(s->experts) * sizeof *seen);
    for (int32_t r = 0; r < s->ranks; r++) LPLB_TRY(validate_rank(s, layer, r, row, full, seen));
    for (int32_t e = 0; e < s->experts; e++)
        if (!lplb__bit_test(seen, e))
            return LPLB_FAIL(LPLB_INVALID, "layer %d: expert %d has no slot", layer, e);
    return LPLB_OK;
}

void lplb__round_robin_layer(const lplb__slots *s, int32_t *row) {
    int32_t next = 0;
    for (int32_t r = 0; r < s->ranks; r++)
        for (int32_t p = s->offset[r]; p < s->offset[r + 1]; p++) {
            row[p] = lplb__is_dead(s, r) ? -1 : next;
            if (row[p] >= 0) next = (next + 1) % s->experts;
        }
}

void lplb__align_layer(const lplb__slots *s, const int32_t *from, const int32_t *to, int32_t *out,
                       int32_t *taken) {
    for (int32_t r = 0; r < s->ranks; r++) {
        int32_t low = s->offset[r], high = s->offset[r + 1], n_left = 0;
        /* taken: what remains of the rank's new experts, in order */
        memcpy(taken, to + low, (size_t)(high - low) * sizeof *taken);
        int32_t n = high - low;
        for (int32_t p = low; p < high; p++) {
            int32_t k = 0;
            while (k < n && (taken[k] != from[p] || taken[k] < 0)) k++;
            if (k == n) {
                out[p] = -2; /* to be filled */
            } else {
                out[p] = from[p];
                taken[k] = -2;
            }
        }
        for (int32_t k = 0; k < n; k++)
            if (taken[k] != -2) taken[n_left++] = taken[k];
        int32_t next = 0;
        for (int32_t p = low; p < high; p++)
            if (out[p] == -2) out[p] = taken[next++];
    }
}

static int32_t rank_of_slot(const lplb__slots *s, int32_t slot) {
    int32_t low = 0, high = s->ranks - 1; /* last rank whose offset <= slot and that has slots */
    while (low < high) {
        int32_t middle = low + (high - low + 1) / 2;
        if (s->offset[middle] <= slot) low = middle;
        else high = middle - 1;
    }
    return low;
}

/* A rank that holds the expert now; -1 if none that lives does. */
static int32_t find_source(const lplb__slots *s, const lplb__diff_scratch *scratch, int32_t expert,
                           int32_t rank) {
    int32_t per_node = s->nodes > 1 ? (s->ranks + s->nodes - 1) / s->nodes : s->ranks;
    int32_t best = -1;
    bool best_far = false;
    for (int32_t q = scratch->head[expert]; q >= 0; q = scratch->next[q]) {
        int32_t holder = rank_of_slot(s, q);
        if (lplb__is_dead(s, holder)) continue;
        if (holder == rank) return rank;
        bool far = holder / per_node != rank / per_node;
        if (best < 0 || far < best_far ||
            (far == best_far && scratch->sends[holder] < scratch->sends[best])) {
            best = holder;
            best_far = far;
        }
    }
    return best;
}

int64_t lplb__diff_layer(const lplb__slots *s, int32_t layer, const int32_t *from,
                         const int32_t *to, lplb__diff_scratch *scratch, lplb_move *moves,
                         int64_t *crossing) {
    for (int32_t e = 0; e < s->experts; e++) scratch->head[e] = scratch->brought[e] = -1;
    memset(scratch->sends, 0, (size_t)s->ranks * sizeof *scratch->sends);
    for (int32_t q = s->slots - 1; q >= 0; q--) { /* so that lists ascend */
        if (from[q] < 0) continue;
        scratch->next[q] = scratch->head[from[q]];
        scratch->head[from[q]] = q;
    }
    int64_t n = 0;
    *crossing = 0;
    for (int32_t r = 0; r < s->ranks; r++)
        for (int32_t p = s->offset[r]; p < s->offset[r + 1]; p++) {
            int32_t e = to[p];
            if (e < 0 || e == from[p]) continue;
            int32_t source = scratch->brought[e] == r ? r : find_source(s, scratch, e, r);
            if (source != r) {
                ++*crossing;
                if (source >= 0) scratch->sends[source]++;
            }
            scratch->brought[e] = r;
            moves[n++] = (lplb_move){layer, p, e, r, source};
        }
    return n;
}

/* The live slot whose content may go for a lost expert: an empty one, else the redundant copy
 * that leaves the least load on each remaining copy of its expert. -1 if there is none. */
static int32_t spare_slot(const lplb__slots *s, const int32_t *row, const int64_t *load,
                          const int32_t *copies) {
    int32_t best = -1;
    double best_load = 0;
    for (int32_t r = 0; r < s->ranks; r++) {
        if (lplb__is_dead(s, r)) continue;
        for (int32_t p = s->offset[r]; p < s->offset[r + 1]; p++) {
            if (row[p] < 0) return p;
            if (copies[row[p]] < 2) continue;
            double left = (load ? (double)load[row[p]] : 1) / (copies[row[p]] - 1);
            if (best < 0 || left < best_load) best = p, best_load = left;
        }
    }
    return best;
}

int64_t lplb__recover_layer(const lplb__slots *s, int32_t layer, int32_t *row, const int64_t *load,
                            int32_t *copies, lplb_move *lost) {
    memset(copies, 0, (size_t)s->experts * sizeof *copies);
    for (int32_t r = 0; r < s->ranks; r++)
        for (int32_t p = s->offset[r]; p < s->offset[r + 1]; p++) {
            if (lplb__is_dead(s, r)) row[p] = -1;
            else if (row[p] >= 0) copies[row[p]]++;
        }
    bool enough = lplb__live_slots(s) >= s->experts;
    int64_t n = 0;
    for (int32_t e = 0; e < s->experts; e++)
        if (!copies[e]) lost[n++] = (lplb_move){layer, -1, e, -1, -1};
    for (int64_t i = 0; enough && i < n; i++) {
        int32_t p = spare_slot(s, row, load, copies);
        if (row[p] >= 0) copies[row[p]]--;
        row[p] = lost[i].expert;
        copies[lost[i].expert] = 1;
        lost[i].slot = p;
        lost[i].rank = rank_of_slot(s, p);
    }
    return n;
}

/* ---- public forms over all layers ---- */

static lplb__slots slots_of(const lplb_placement *p, const uint8_t *dead) {
    return (lplb__slots){p->experts, p->slots, p->ranks, 1, p->rank_offset, dead};
}

static int32_t *row_of(const lplb_placement *p, int32_t layer) {
    return p->physical_to_logical + (int64_t)layer * p->slots;
}

lplb_status lplb_mapping_validate(const lplb_placement *placement, const uint8_t *dead,
                                  int32_t full) {
    enum { WORDS = 512 }; /* experts of up to 32768 without memory of its own */
    lplb__slots s = slots_of(placement, dead);
    uint64_t few[WORDS], *seen = few;
    if (lplb__bit_words(s.experts) > WORDS) LPLB_TRY(LPLB_CALLOC(seen, lplb__bit_words(s.experts)));
    lplb_status status = LPLB_OK;
    for (int32_t layer = 0; status == LPLB_OK && layer < placement->layers; layer++)
        status = lplb__validate_layer(&s, layer, row_of(placement, layer), full, seen);
    if (seen != few) lplb__free(seen);
    return status;
}

lplb_status lplb_mapping_round_robin(lplb_placement *placement, const uint8_t *dead) {
    lplb__slots s = slots_of(placement, dead);
    int32_t live = lplb__live_slots(&s);
    if (live < s.experts)
        return LPLB_FAIL(LPLB_INFEASIBLE, "%d live slots for %d experts: %d slots are missing",
                         live, s.experts, s.experts - live);
    for (int32_t layer = 0; layer < placement->layers; layer++)
        lplb__round_robin_layer(&s, row_of(placement, layer));
    return LPLB_OK;
}

lplb_status lplb_mapping_align(const lplb_placement *from, lplb_placement *to) {
    if (from->layers != to->layers || from->slots != to->slots || from->ranks != to->ranks ||
        memcmp(from->rank_offset, to->rank_offset,
               ((size_t)from->ranks + 1) * sizeof *from->rank_offset))
        return LPLB_FAIL(LPLB_INVALID, "mappings of different shape cannot be aligned");
    lplb__slots s = slots_of(from, NULL);
    int32_t *taken;
    LPLB_TRY(LPLB_CALLOC(taken, 2 * (int64_t)s.slots));
    int32_t *row = taken + s.slots;
    for (int32_t layer = 0; layer < from->layers; layer++) {
        lplb__align_layer(&s, row_of(from, layer), row_of(to, layer), row, taken);
        memcpy(row_of(to, layer), row, (size_t)s.slots * sizeof *row);
    }
    lplb__free(taken);
    return LPLB_OK;
}

uint64_t lplb_mapping_digest(const lplb_placement *p) {
    int32_t shape[4] = {p->layers, p->experts, p->slots, p->ranks};
    uint64_t hash = lplb__hash(shape, sizeof shape, 0);
    hash = lplb__hash(p->rank_offset, ((size_t)p->ranks + 1) * sizeof *p->rank_offset, hash);
    return lplb__hash(p->physical_to_logical,
                      (size_t)p->layers * (size_t)p->slots * sizeof *p->physical_to_logical, hash);
}

/* ---- recovery ---- */

void lplb_recovery_destroy(lplb_recovery *recovery) {
    if (!recovery) return;
    lplb_placement_destroy(recovery->placement);
    lplb__free(recovery->lost);
    lplb__free(recovery);
}

lplb_status lplb__describe_lost(const lplb_move *lost, int64_t n, int32_t missing_slots) {
    char list[120];
    size_t at = 0;
    int64_t named = 0;
    list[0] = '\0';
    for (; named < n && named < 4; named++)
        at += (size_t)snprintf(list + at, sizeof list - at, "%slayer %d expert %d",
                               named ? ", " : "", lost[named].layer, lost[named].expert);
    char more[40] = "";
    if (n > named) snprintf(more, sizeof more, " and %lld more", (long long)(n - named));
    if (missing_slots > 0)
        return LPLB_FAIL(LPLB_INFEASIBLE,
                         "%d slots are missing on the ranks alive; no copy survives of %s%s",
                         missing_slots, n ? list : "none", more);
    return LPLB_FAIL(LPLB_INFEASIBLE, "no copy survives of %s%s: load from a checkpoint", list,
                     more);
}

lplb_status lplb_recover(const lplb_placement *placement, const uint8_t *dead, const int64_t *load,
                         lplb_recovery **out) {
    *out = NULL;
    lplb_status status;
    lplb__slots s = slots_of(placement, dead);
    int32_t live = lplb__live_slots(&s), *copies = NULL;
    lplb_recovery *r;
    LPLB_TRY(LPLB_CALLOC(r, 1));
    LPLB_TRY_GOTO(status, lplb_placement_copy(placement, &r->placement), failed);
    LPLB_TRY_GOTO(status, LPLB_CALLOC(r->lost, (int64_t)placement->layers * s.experts), failed);
    LPLB_TRY_GOTO(status, LPLB_CALLOC(copies, s.experts), failed);
    for (int32_t layer = 0; layer < placement->layers; layer++)
        r->n_lost += lplb__recover_layer(&s, layer, row_of(r->placement, layer),
                                         load ? load + (int64_t)layer * s.experts : NULL, copies,
                                         r->lost + r->n_lost);
    lplb__free(copies);
    r->missing_slots = live < s.experts ? s.experts - live : 0;
    if (r->missing_slots) {
        lplb_placement_destroy(r->placement);
        r->placement = NULL;
    }
    *out = r;
    return r->n_lost || r->missing_slots ? lplb__describe_lost(r->lost, r->n_lost, r->missing_slots)
                                         : LPLB_OK;
failed:
    lplb__free(copies);
    lplb_recovery_destroy(r);
    return status;
}
