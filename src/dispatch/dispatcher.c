/* Making a dispatcher: everything it will ever need, in one arena. */
#include <stdlib.h>
#include <string.h>

#include "dispatch/dispatch.h"

static lplb_status check_arguments(const lplb_placement *placement, int32_t layer, int32_t sources,
                                   const int32_t *source_rank) {
    if (!placement) return LPLB_FAIL(LPLB_INVALID, "the placement is NULL");
    if (layer < 0 || layer >= placement->layers)
        return LPLB_FAIL(LPLB_RANGE, "layer %d is outside [0, %d)", layer, placement->layers);
    if (sources < 1) return LPLB_FAIL(LPLB_RANGE, "%d sources; at least one is needed", sources);
    for (int32_t s = 0; source_rank && s < sources; s++)
        if (source_rank[s] < 0 || source_rank[s] >= placement->ranks)
            return LPLB_FAIL(LPLB_RANGE, "source %d lives on rank %d, outside [0, %d)", s,
                             source_rank[s], placement->ranks);
    return LPLB_OK;
}

static void take_everything(lplb_dispatcher *d, int64_t P, int64_t threads, bool reserve) {
    int64_t E = d->experts, G = d->ranks;
    /* most hosts of one expert: no more than ranks or slots */
    int64_t hosts = G < P ? G : P;
#define TAKE(field, count)                                                                         \
    do {                                                                                           \
        if (reserve) lplb__arena_reserve(&d->arena, (count), sizeof *d->field);                    \
        else d->field = lplb__arena_take(&d->arena, (count), sizeof *d->field);                    \
    } while (0)
    TAKE(offset, E + 1);
    TAKE(rank, P);
    TAKE(slot, P);
    TAKE(slot_begin, P + 1);
    TAKE(source_rank, d->sources);
    TAKE(node, G);
    TAKE(rank_begin, G + 1);
    TAKE(source_by_rank, d->sources);
    TAKE(node_begin, G + 1);
    TAKE(source_by_node, d->sources);
    TAKE(local, E);
    TAKE(segment, P + E);
    TAKE(segment_begin, E);
    TAKE(total, E);
    TAKE(before, E);
    TAKE(source_left, d->sources);
    TAKE(host_left, hosts);
    TAKE(taken, hosts);
    TAKE(taken_before, hosts);
    TAKE(node_cursor, G);
    TAKE(chunk_count, threads * E);
    TAKE(chunk_bad, threads);
    TAKE(cursor, threads * (E + 1));
#undef TAKE
}

/* Lists hosts and slots of every expert. Slots of a rank are contiguous, so each expert's slots in
 * ascending order meet its hosts in ascending order. */
static lplb_status list_hosts(lplb_dispatcher *d, const lplb_placement *placement, int32_t layer) {
    const int32_t *expert_of = placement->physical_to_logical + (int64_t)layer * placement->slots;
    int64_t *count = d->total, *next = d->before; /* scratch */
    for (int32_t p = 0; p < placement->slots; p++) {
        if (expert_of[p] < -1 || expert_of[p] >= d->experts)
            return LPLB_FAIL(LPLB_RANGE, "layer %d, slot %d holds expert %d, outside [-1, %d)",
                             layer, p, expert_of[p], d->experts);
        if (expert_of[p] >= 0) count[expert_of[p]]++;
    }
    int64_t in_use = 0;
    for (int32_t e = 0; e < d->experts; e++) {
        if (count[e] == 0)
            return LPLB_FAIL(LPLB_INVALID, "layer %d has no slot for expert %d", layer, e);
        next[e] = in_use;
        in_use += count[e];
    }
    for (int32_t p = 0; p < placement->slots; p++)
        if (expert_of[p] >= 0) d->slot[next[expert_of[p]]++] = p;
    int64_t h = 0, i = 0;
    for (int32_t e = 0; e < d->experts; e++) {
        d->offset[e] = h;
        for (int32_t rank = 0, last = -1; i < next[e]; i++) {
            while (d->slot[i] >= placement->rank_offset[rank + 1]) rank++;
            if (rank == last) continue;
            d->rank[h] = last = rank;
            d->slot_begin[h++] = i;
        }
    }
    d->offset[d->experts] = h;
    d->slot_begin[h] = i;
    memset(count, 0, (size_t)d->experts * sizeof *count);
    return LPLB_OK;
}

typedef struct node_of_rank {
    int32_t node, rank;
} node_of_rank;

static int by_node(const void *a, const void *b) {
    int32_t x = ((const node_of_rank *)a)->node, y = ((const node_of_rank *)b)->node;
    return (x > y) - (x < y);
}

/* Any node ids become 0, 1, ... */
static lplb_status number_nodes(lplb_dispatcher *d, const int32_t *node) {
    d->nodes = 1;
    if (!node) return LPLB_OK; /* all on node 0 */
    node_of_rank *list;
    LPLB_TRY(LPLB_CALLOC(list, d->ranks));
    for (int32_t r = 0; r < d->ranks; r++) list[r] = (node_of_rank){node[r], r};
    qsort(list, (size_t)d->ranks, sizeof *list, by_node);
    d->nodes = 0;
    for (int32_t i = 0; i < d->ranks; i++) {
        if (i == 0 || list[i].node != list[i - 1].node) d->nodes++;
        d->node[list[i].rank] = d->nodes - 1;
    }
    lplb__free(list);
    return LPLB_OK;
}

/* sources sorted by group (a rank, or with node its node), ascending within; begin [groups+1]. */
static void group_sources(const lplb_dispatcher *d, const int32_t *node, int32_t groups,
                          int32_t *begin, int32_t *sorted) {
#define GROUP(s) (node ? node[d->source_rank[s]] : d->source_rank[s])
    for (int32_t s = 0; s < d->sources; s++) begin[GROUP(s)]++;
    for (int32_t g = 1; g < groups; g++) begin[g] += begin[g - 1]; /* ends, for now */
    begin[groups] = d->sources;
    for (int32_t s = d->sources - 1; s >= 0; s--) sorted[--begin[GROUP(s)]] = s;
#undef GROUP
}

static lplb_status fill(lplb_dispatcher *d, const lplb_placement *placement, int32_t layer,
                        const int32_t *source_rank, const int32_t *node) {
    LPLB_TRY(list_hosts(d, placement, layer));
    d->hosts = (lplb_hosts){
        .ranks = d->ranks, .experts = d->experts, .offset = d->offset, .rank = d->rank};
    d->has_locality = source_rank || d->sources == d->ranks;
    LPLB_TRY(number_nodes(d, node));
    if (!d->has_locality) return LPLB_OK;
    for (int32_t s = 0; s < d->sources; s++) d->source_rank[s] = source_rank ? source_rank[s] : s;
    group_sources(d, NULL, d->ranks, d->rank_begin, d->source_by_rank);
    group_sources(d, d->node, d->nodes, d->node_begin, d->source_by_node);
    return LPLB_OK;
}

lplb_status lplb_dispatcher_create(const lplb_placement *placement, int32_t layer, int32_t sources,
                                   const int32_t *source_rank, const int32_t *node, int32_t threads,
                                   lplb_dispatcher **out) {
    *out = NULL;
    LPLB_TRY(check_arguments(placement, layer, sources, source_rank));
    lplb_dispatcher *d;
    LPLB_TRY(LPLB_CALLOC(d, 1));
    d->ranks = placement->ranks;
    d->experts = placement->experts;
    d->sources = sources;
    lplb_status status = LPLB_OK;
    if (threads != 1) LPLB_TRY_GOTO(status, lplb__pool_create(threads, &d->pool), failed);
    take_everything(d, placement->slots, lplb__pool_threads(d->pool), true);
    LPLB_TRY_GOTO(status, lplb__arena_create(&d->arena), failed);
    take_everything(d, placement->slots, lplb__pool_threads(d->pool), false);
    LPLB_TRY_GOTO(status, fill(d, placement, layer, source_rank, node), failed);
    *out = d;
    return LPLB_OK;
failed:
    lplb_dispatcher_destroy(d);
    return status;
}

void lplb_dispatcher_destroy(lplb_dispatcher *dispatcher) {
    if (!dispatcher) return;
    lplb__pool_destroy(dispatcher->pool);
    lplb__arena_destroy(&dispatcher->arena);
    lplb__free(dispatcher);
}

const lplb_hosts *lplb_dispatcher_hosts(const lplb_dispatcher *dispatcher) {
    return &dispatcher->hosts;
}
