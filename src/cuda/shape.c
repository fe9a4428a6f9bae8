#include "cuda/shape.h"

static uint32_t take(uint32_t *bytes, int64_t count, size_t item_bytes) {
    uint32_t at = *bytes;
    *bytes += (uint32_t)(((size_t)count * item_bytes + 15) / 16 * 16);
    return at;
}

void lplb__cuda_share_memory(const lplb__cuda_step *step, int32_t threads, int32_t cluster,
                             lplb__cuda_shared *s) {
    int64_t E = step->experts, P = step->slots, G = step->ranks, warps = threads / 32;
    int64_t components = G / 2 + 1, hot_bytes = step->tables.hot_bytes;
    int64_t solver_warps = step->solver_warps;
    int64_t rows = cluster > 2 ? cluster : 2;
    uint32_t bytes = 0;
    s->state = take(&bytes, 1, LPLB__CUDA_STATE_BYTES);
    s->tables = take(&bytes, hot_bytes, 1);
    s->edges = take(&bytes, solver_warps * LPLB__CUDA_PAIR_COLOURS * LPLB__CUDA_LANES,
                    sizeof(uint32_t));
    s->tokens = take(&bytes, E, sizeof(int64_t));
    s->before = take(&bytes, E, sizeof(int64_t));
    s->own = take(&bytes, E, sizeof(uint32_t));
    s->base = take(&bytes, E, sizeof(uint32_t));
    s->mine = take(&bytes, E, sizeof(int32_t));
    s->way = take(&bytes, E, 16);
    s->end = take(&bytes, P, sizeof(int32_t));
    s->slot = take(&bytes, P, sizeof(uint16_t));
    s->rows = take(&bytes, rows * E, sizeof(uint32_t));
    s->seen = take(&bytes, warps * (E + 1), sizeof(uint32_t));
    s->number = take(&bytes, warps * (E + 2), sizeof(uint16_t));
    s->kept = take(&bytes, (int64_t)LPLB__CUDA_KEPT_IDS * threads, sizeof(uint32_t));
    s->load = take(&bytes, G, sizeof(int64_t));
    s->x = take(&bytes, P, sizeof(int64_t));
    s->saved_load = take(&bytes, G, sizeof(int64_t));
    s->saved_x = take(&bytes, P, sizeof(int64_t));
    s->capacity = take(&bytes, G, sizeof(int64_t));
    s->level = take(&bytes, 2 * G + 2 * LPLB__CUDA_LANES, sizeof(int64_t));
    s->key = take(&bytes, G + 1, sizeof(uint64_t));
    s->depth = take(&bytes, G, sizeof(uint16_t));
    s->owner = take(&bytes, G, sizeof(int32_t));
    s->status = take(&bytes, components, sizeof(uint32_t));
    s->limits = take(&bytes, components, 2 * sizeof(int64_t));
    s->result = take(&bytes, 1, 3 * sizeof(int64_t));
    s->bytes = bytes;
}

/* A block alone needs no barrier between blocks; a cluster's costs less than that of a grid. */
enum { SINGLE_BLOCK_IDS = 2048, CLUSTER_BLOCK_IDS = 2048, GRID_CLUSTER = 8 };

lplb__cuda_shape lplb__cuda_choose_shape(const lplb__cuda_room *room, int64_t n,
                                         int64_t block_ids) {
    lplb__cuda_shape one = {1, 1};
    if (n <= SINGLE_BLOCK_IDS) return one;
    int32_t largest = 1;
    for (int32_t c = 2; c <= LPLB__CUDA_MAX_CLUSTER && c <= room->sms; c *= 2) {
        if (!room->clusters[c]) continue;
        largest = c;
        if (n <= (int64_t)c * CLUSTER_BLOCK_IDS) break;
    }
    /* one tile a block, if a cluster can have that; beyond, more clusters */
    lplb__cuda_shape cluster = {largest, 1};
    if (n <= largest * block_ids) return cluster;
    int32_t c = room->clusters[GRID_CLUSTER] ? GRID_CLUSTER : largest;
    lplb__cuda_shape grid = {c, c > 1 ? room->clusters[c] : room->blocks};
    if (grid.clusters > room->sms / c) grid.clusters = room->sms / c;
    int64_t needed = (n + c * block_ids - 1) / (c * block_ids);
    if (grid.clusters > needed && needed > 0) grid.clusters = (int32_t)needed;
    return grid.clusters * c > largest ? grid : cluster;
}
