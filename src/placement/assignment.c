/* Assignments of experts to slots: never two copies of an expert on one rank, every expert
 * somewhere. */
#include <string.h>

#include "base/mem.h"
#include "placement/search.h"

lplb_status lplb__assignment_create(const lplb__layer *layer, lplb__assignment *a) {
    *a = (lplb__assignment){0};
    LPLB_TRY(LPLB_CALLOC(a->slot, layer->slots));
    LPLB_TRY(LPLB_CALLOC(a->copies, layer->experts));
    LPLB_TRY(LPLB_CALLOC(a->first, layer->experts));
    LPLB_TRY(LPLB_CALLOC(a->next, layer->slots));
    LPLB_TRY(LPLB_CALLOC(a->has, (int64_t)layer->experts * layer->ranks));
    lplb__assignment_clear(layer, a);
    return LPLB_OK;
}

void lplb__assignment_destroy(lplb__assignment *a) {
    lplb__free(a->slot);
    lplb__free(a->copies);
    lplb__free(a->first);
    lplb__free(a->next);
    lplb__free(a->has);
}

void lplb__assignment_copy(const lplb__layer *layer, const lplb__assignment *from,
                           lplb__assignment *to) {
    memcpy(to->slot, from->slot, (size_t)layer->slots * sizeof *to->slot);
    memcpy(to->copies, from->copies, (size_t)layer->experts * sizeof *to->copies);
    memcpy(to->first, from->first, (size_t)layer->experts * sizeof *to->first);
    memcpy(to->next, from->next, (size_t)layer->slots * sizeof *to->next);
    memcpy(to->has, from->has, (size_t)layer->experts * (size_t)layer->ranks);
    to->moves = from->moves;
}

void lplb__assignment_clear(const lplb__layer *layer, lplb__assignment *a) {
    for (int32_t s = 0; s < layer->slots; s++) a->slot[s] = -1;
    for (int32_t e = 0; e < layer->experts; e++) a->first[e] = -1;
    memset(a->copies, 0, (size_t)layer->experts * sizeof *a->copies);
    memset(a->has, 0, (size_t)layer->experts * (size_t)layer->ranks);
    a->moves = 0;
}

void lplb__assignment_set(const lplb__layer *layer, lplb__assignment *a, int32_t slot,
                          int32_t expert) {
    int32_t rank = layer->slot_rank[slot], old = a->slot[slot];
    if (old >= 0) {
        int64_t pair = (int64_t)old * layer->ranks + rank;
        int32_t *link = &a->first[old];
        while (*link != slot) link = &a->next[*link];
        *link = a->next[slot];
        a->has[pair] = 0;
        a->copies[old]--;
        a->moves -= layer->was && !layer->was[pair];
    }
    a->slot[slot] = expert;
    if (expert >= 0) {
        int64_t pair = (int64_t)expert * layer->ranks + rank;
        a->next[slot] = a->first[expert];
        a->first[expert] = slot;
        a->has[pair] = 1;
        a->copies[expert]++;
        a->moves += layer->was && !layer->was[pair];
    }
}

bool lplb__assignment_allows(const lplb__layer *layer, const lplb__assignment *a, int32_t expert,
                             int32_t rank) {
    return !a->has[(int64_t)expert * layer->ranks + rank] &&
           (!layer->home || layer->home[expert] == layer->node[rank]);
}

/* Slots keep their place within the rank where they can; repeated experts leave theirs free. */
void lplb__assignment_import(const lplb__layer *layer, lplb__assignment *a, const int32_t *map,
                             const int32_t *rank_offset, int32_t ranks) {
    lplb__assignment_clear(layer, a);
    for (int32_t i = 0; i < layer->n_usable; i++) {
        int32_t slot = layer->usable[i], rank = layer->slot_rank[slot];
        if (rank >= ranks) continue;
        int32_t source = rank_offset[rank] + slot - layer->rank_offset[rank];
        if (source >= rank_offset[rank + 1]) continue;
        int32_t e = map[source];
        if (e >= 0 && lplb__assignment_allows(layer, a, e, rank))
            lplb__assignment_set(layer, a, slot, e);
    }
}

/* ---- completing ---- */

/* Load of every rank for its speed, by even split of the typical batch. */
static void rank_loads(const lplb__layer *layer, const lplb__assignment *a, double *load) {
    memset(load, 0, (size_t)layer->ranks * sizeof *load);
    for (int32_t i = 0; i < layer->n_usable; i++) {
        int32_t e = a->slot[layer->usable[i]], r = layer->slot_rank[layer->usable[i]];
        if (e >= 0)
            load[r] +=
                layer->typical[e] / a->copies[e] / (double)(layer->speed ? layer->speed[r] : 1);
    }
}

/* The slot for an expert that must be added: a free one, or else one that holds a spare copy, on
 * the least loaded rank; -1 if there is none. */
static int32_t find_slot(const lplb__layer *layer, const lplb__assignment *a, int32_t expert,
                         const double *load) {
    int32_t best = -1;
    double best_cost = 0;
    for (int32_t i = 0; i < layer->n_usable; i++) {
        int32_t slot = layer->usable[i], r = layer->slot_rank[slot], e = a->slot[slot];
        if ((e >= 0 && a->copies[e] < 2) || !lplb__assignment_allows(layer, a, expert, r)) continue;
        double cost = load[r] + (e >= 0 ? 1e3 + layer->typical[e] / a->copies[e] : 0);
        if (best < 0 || cost < best_cost) {
            best = slot;
            best_cost = cost;
        }
    }
    return best;
}

static lplb_status add_missing(const lplb__layer *layer, lplb__assignment *a, double *load) {
    for (;;) {
        int32_t heaviest = -1;
        for (int32_t e = 0; e < layer->experts; e++)
            if (!a->copies[e] && (heaviest < 0 || layer->typical[e] > layer->typical[heaviest]))
                heaviest = e;
        if (heaviest < 0) return LPLB_OK;
        rank_loads(layer, a, load);
        int32_t slot = find_slot(layer, a, heaviest, load);
        if (slot < 0)
            return LPLB_FAIL(LPLB_INFEASIBLE, "layer %d: no slot is left for expert %d",
                             layer->index, heaviest);
        lplb__assignment_set(layer, a, slot, heaviest);
    }
}

/* The expert with the most load per copy that may join the rank, ties to fewer copies. */
static int32_t find_replica(const lplb__layer *layer, const lplb__assignment *a, int32_t rank) {
    int32_t best = -1;
    for (int32_t e = 0; e < layer->experts; e++) {
        if (!lplb__assignment_allows(layer, a, e, rank)) continue;
        double gain = layer->typical[e] * (best < 0 ? 1 : a->copies[best]);
        double best_gain = best < 0 ? -1 : layer->typical[best] * a->copies[e];
        if (gain > best_gain || (gain == best_gain && a->copies[e] < a->copies[best])) best = e;
    }
    return best;
}

static void fill_free(const lplb__layer *layer, lplb__assignment *a, double *load, uint8_t *full) {
    memset(full, 0, (size_t)layer->ranks);
    for (;;) {
        int32_t slot = -1;
        rank_loads(layer, a, load);
        for (int32_t i = 0; i < layer->n_usable; i++) {
            int32_t s = layer->usable[i], r = layer->slot_rank[s];
            if (a->slot[s] < 0 && !full[r] && (slot < 0 || load[r] < load[layer->slot_rank[slot]]))
                slot = s;
        }
        if (slot < 0) return;
        int32_t rank = layer->slot_rank[slot], e = find_replica(layer, a, rank);
        bool is_move = e >= 0 && layer->was && !layer->was[(int64_t)e * layer->ranks + rank];
        if (e < 0 || (is_move && a->moves >= layer->max_moves)) full[rank] = 1;
        else lplb__assignment_set(layer, a, slot, e);
    }
}

lplb_status lplb__assignment_complete(const lplb__layer *layer, lplb__assignment *a) {
    double *load;
    uint8_t *full = NULL;
    LPLB_TRY(LPLB_CALLOC(load, layer->ranks));
    lplb_status status;
    LPLB_TRY_GOTO(status, LPLB_CALLOC(full, layer->ranks), done);
    LPLB_TRY_GOTO(status, add_missing(layer, a, load), done);
    if (a->moves > layer->max_moves)
        LPLB_FAIL_GOTO(status, done, LPLB_INFEASIBLE,
                       "layer %d: %lld moves are needed to give every expert a slot, more than the "
                       "%lld allowed",
                       layer->index, (long long)a->moves, (long long)layer->max_moves);
    fill_free(layer, a, load, full);
done:
    lplb__free(load);
    lplb__free(full);
    return status;
}
