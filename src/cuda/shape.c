#include "cuda/shape.h"

static uint32_t take(uint32_t *bytes, int64_t count, size_t item_bytes) {
    uint32_t at = *bytes;
    *bytes += (uint32_t)(((size_t)count * item_bytes + 15) / 16 * 16);
    return at;
}

/* What only the planner uses, until the split is known. */
static void take_for_plan(const lplb__cuda_step *step, uint32_t *bytes, lplb__cuda_shared *s) {
    int64_t P = step->slots, G = step->ranks, components = G / 2 + 1;
    s->edges = take(bytes, (int64_t)step->solver_warps * LPLB__CUDA_PAIR_COLOURS * LPLB__CUDA_LANES,
                    sizeof(uint32_t));
    s->set_hosts = take(bytes, (int64_t)step->tables.set_chunks * LPLB__CUDA_LANES, 16);
    s->saved_load = take(bytes, G, sizeof(int64_t));
    s->saved_x = take(bytes, P, sizeof(int64_t));
    s->capacity = take(bytes, G, sizeof(int64_t));
    s->level = take(bytes, 2 * G + 2 * LPLB__CUDA_LANES, sizeof(int64_t));
    s->key = take(bytes, G + 1, sizeof(uint64_t));
    s->depth = take(bytes, G, sizeof(uint16_t));
    s->owner = take(bytes, G, sizeof(int32_t));
    s->status = take(bytes, components, sizeof(uint32_t));
    s->limits = take(bytes, components, 2 * sizeof(int64_t));
    s->result = take(bytes, 1, 3 * sizeof(int64_t));
}

/* What only mapping uses, once the split is known. */
static void take_for_map(const lplb__cuda_step *step, uint32_t *bytes, lplb__cuda_shared *s) {
    int64_t E = step->experts, P = step->slots;
    int64_t choices = step->local.nodes ? LPLB__CUDA_CHOICES(E, P) : 0;
    s->end = take(bytes, P, sizeof(int32_t));
    s->slot = take(bytes, step->local.nodes ? P : 0, sizeof(uint16_t));
    s->local_room = take(bytes, choices, sizeof(int64_t));
    s->local_before = take(bytes, choices, sizeof(int64_t));
    s->local_taken = take(bytes, choices, sizeof(int32_t));
    if (*bytes < LPLB__CUDA_LEAN_BYTES) *bytes = LPLB__CUDA_LEAN_BYTES; /* they lie at 0 */
    s->way = take(bytes, E + 1, sizeof(int64_t));
}

void lplb__cuda_share_memory(const lplb__cuda_step *step, int32_t threads, lplb__cuda_shared *s) {
    int64_t E = step->experts, P = step->slots, G = step->ranks;
    int64_t id_warps = threads / LPLB__CUDA_LANES - step->solver_warps;
    /* A barrier lies between the two, so they have the same place. */
    uint32_t plan_end = 0, map_end = 0;
    take_for_plan(step, &plan_end, s);
    take_for_map(step, &map_end, s);
    uint32_t bytes = plan_end > map_end ? plan_end : map_end;
    s->state = take(&bytes, 1, LPLB__CUDA_STATE_BYTES);
    s->tables = take(&bytes, step->tables.hot_bytes, 1);
    s->tokens = take(&bytes, E, sizeof(int64_t));
    s->before = take(&bytes, E, sizeof(int64_t));
    s->own = take(&bytes, E, sizeof(uint32_t));
    s->base = take(&bytes, E, sizeof(uint32_t));
    s->mine = take(&bytes, E, sizeof(int32_t));
    s->load = take(&bytes, G, sizeof(int64_t));
    s->x = take(&bytes, P, sizeof(int64_t));
    s->seen = take(&bytes, id_warps * LPLB__CUDA_SEEN_STRIDE(E), sizeof(uint32_t));
    s->number = take(&bytes, id_warps * LPLB__CUDA_NUMBER_STRIDE(E), sizeof(uint16_t));
    s->kept = take(&bytes, id_warps * LPLB__CUDA_LANES * LPLB__CUDA_KEPT_IDS, sizeof(uint32_t));
    s->bytes = bytes;
}

/* A block alone need not share its counts; many share among them what each id costs. */
enum {
    SINGLE_BLOCK_IDS = 2048,
    BLOCK_IDS = 1024,
    IDS_OF_A_THREAD = 4,
    LEAST_ID_WARPS = 4,
    NO_ID_WARPS = 12 /* without ids: more hands to read counts and write results */
};

static int32_t id_warps(int64_t n, int64_t blocks, int32_t most) {
    int64_t ids = (n + blocks - 1) / blocks, of_a_warp = IDS_OF_A_THREAD * LPLB__CUDA_LANES;
    int64_t warps = (ids + of_a_warp - 1) / of_a_warp;
    if (warps < LEAST_ID_WARPS) warps = n ? LEAST_ID_WARPS : NO_ID_WARPS;
    return warps < most ? (int32_t)warps : most;
}

lplb__cuda_shape lplb__cuda_choose_shape(int64_t n, int32_t most_blocks, int32_t most_id_warps) {
    int64_t blocks = n <= SINGLE_BLOCK_IDS ? 1 : (n + BLOCK_IDS - 1) / BLOCK_IDS;
    if (blocks > most_blocks) blocks = most_blocks;
    return (lplb__cuda_shape){(int32_t)blocks, id_warps(n, blocks, most_id_warps)};
}
