/* The small kernels' tables, and their launches. */
#include <string.h>

#include "cuda/planner.h"

/* ---- tables ---- */

int32_t lplb__cuda_lean_groups(int32_t ranks) {
    int32_t groups = ranks / 2 + (ranks + LPLB__CUDA_LANES - 1) / LPLB__CUDA_LANES;
    return groups < LPLB__CUDA_LEAN_GROUPS ? groups : LPLB__CUDA_LEAN_GROUPS;
}

#define SECTION(tables, block, name, type) ((type *)((block) + (tables)->name))

/* The record of lane l of group g, where its quads lie. */
static void put_lane(const lplb__cuda_tables *t, unsigned char *block, int32_t g, int32_t l,
                     const lplb__cuda_lean_lane *lane) {
    enum { QUAD = sizeof *lane / LPLB__CUDA_LEAN_QUADS };
    unsigned char *group = block + t->lean_lane + (size_t)g * LPLB__CUDA_LANES * sizeof *lane;
    for (int32_t k = 0; k < LPLB__CUDA_LEAN_QUADS; k++)
        memcpy(group + (k * LPLB__CUDA_LANES + l) * QUAD, (const char *)lane + k * QUAD, QUAD);
}

/* Lane l of a component; what belongs to all lanes is in `lane` already. */
static void put_pairs(const lplb__cuda_tables *t, unsigned char *block, int32_t c, int32_t l,
                      lplb__cuda_lean_lane lane) {
    const lplb__cuda_component *component = SECTION(t, block, component, lplb__cuda_component) + c;
    const lplb__cuda_expert *expert = SECTION(t, block, expert, lplb__cuda_expert);
    const uint32_t *edge =
        SECTION(t, block, edge, uint32_t) + (size_t)c * LPLB__CUDA_PAIR_COLOURS * LPLB__CUDA_LANES;
    lane.ranks = (uint8_t)component->ranks;
    lane.colours = (uint8_t)component->colours;
    for (int32_t k = 0; k < LPLB__CUDA_PAIR_COLOURS; k++) lane.partner[k] = (uint8_t)l;
    if (l < component->ranks)
        lane.rank = SECTION(t, block, rank_id, uint16_t)[component->first_rank + l];
    for (int32_t k = 0; k < component->colours; k++) {
        uint32_t e = edge[k * LPLB__CUDA_LANES + l];
        if (!LPLB__CUDA_EDGE_USED(e)) continue;
        bool lower = LPLB__CUDA_EDGE_LOWER(e);
        lane.partner[k] = LPLB__CUDA_EDGE_PARTNER(e);
        lane.lower |= (uint8_t)(lower << k);
        lane.used |= (uint8_t)(1 << k);
        lane.edge[k].expert = LPLB__CUDA_EDGE_EXPERT(e);
        lane.edge[k].host = (uint16_t)(expert[LPLB__CUDA_EDGE_EXPERT(e)].first_host + !lower);
    }
    put_lane(t, block, c, l, &lane);
}

/* What the tables are good for: pairs, few groups; for whole steps, two slots an expert. */
static int32_t lean_kinds(const lplb__cuda_tables *t, unsigned char *block, int32_t groups) {
    const lplb__cuda_header *header = (const lplb__cuda_header *)block;
    const lplb__cuda_expert *expert = SECTION(t, block, expert, lplb__cuda_expert);
    if (header->engine != LPLB__CUDA_PAIRS || header->first_speed != 1 ||
        groups > lplb__cuda_lean_groups(header->ranks))
        return 0;
    for (int32_t e = 0; e < header->experts; e++)
        if (expert[e].segments > 2) return LPLB__CUDA_LEAN_SOLVE;
    return header->experts <= LPLB__CUDA_LEAN_EXPERTS ? LPLB__CUDA_LEAN_SOLVE | LPLB__CUDA_LEAN_STEP
                                                      : LPLB__CUDA_LEAN_SOLVE;
}

/* The n ranks that share no expert, 32 to a group behind the components. */
static void put_alone(const lplb__cuda_tables *t, unsigned char *block, const uint16_t *rank,
                      int32_t n, lplb__cuda_lean_lane lane) {
    int32_t first = ((const lplb__cuda_header *)block)->components;
    for (int32_t i = 0; i < (n + LPLB__CUDA_LANES - 1) / LPLB__CUDA_LANES * LPLB__CUDA_LANES; i++) {
        int32_t l = i % LPLB__CUDA_LANES, left = n - (i - l);
        lane.rank = i < n ? rank[i] : LPLB__CUDA_NO_HOST;
        lane.ranks = (uint8_t)(left < LPLB__CUDA_LANES ? left : LPLB__CUDA_LANES);
        for (int32_t k = 0; k < LPLB__CUDA_PAIR_COLOURS; k++) lane.partner[k] = (uint8_t)l;
        put_lane(t, block, first + i / LPLB__CUDA_LANES, l, &lane);
    }
}

static void put_experts(const lplb__cuda_tables *t, unsigned char *block, const uint16_t *cell) {
    const lplb__cuda_expert *expert = SECTION(t, block, expert, lplb__cuda_expert);
    lplb__cuda_lean_expert *to = SECTION(t, block, lean_expert, lplb__cuda_lean_expert);
    for (int32_t e = 0; e < ((const lplb__cuda_header *)block)->experts; e++)
        to[e] = (lplb__cuda_lean_expert){.cell = expert[e].hosts == 1 ? cell[expert[e].rank]
                                                                      : LPLB__CUDA_NO_HOST,
                                         .host = expert[e].first_host,
                                         .slot = {expert[e].slot[0], expert[e].slot[1]}};
}

void lplb__cuda_build_lean(const lplb__cuda_tables *t, unsigned char *block) {
    enum { LANES = LPLB__CUDA_LANES, CELLS = LPLB__CUDA_LEAN_GROUPS * LANES };
    lplb__cuda_header *header = (lplb__cuda_header *)block;
    const lplb__cuda_component *component = SECTION(t, block, component, lplb__cuda_component);
    const uint16_t *component_of = SECTION(t, block, component_of, uint16_t);
    const uint16_t *rank_id = SECTION(t, block, rank_id, uint16_t);
    uint16_t cell[CELLS], rank[CELLS]; /* of each position; of those that are alone */
    int32_t alone = 0;
    for (int32_t q = 0; q < header->ranks; q++) alone += component_of[q] == LPLB__CUDA_NO_HOST;
    int32_t groups = header->components + (alone + LANES - 1) / LANES;
    header->lean_kinds = lean_kinds(t, block, groups);
    header->lean_groups = header->lean_kinds ? groups : 0;
    lplb__cuda_lean_lane lane = {.rank = LPLB__CUDA_NO_HOST,
                                 .groups = (uint8_t)header->lean_groups,
                                 .kinds = (uint8_t)header->lean_kinds};
    for (int32_t k = 0; k < LPLB__CUDA_PAIR_COLOURS; k++)
        lane.edge[k].expert = (uint16_t)header->experts;
    for (int32_t i = 0; i < lplb__cuda_lean_groups(header->ranks) * LANES; i++)
        put_lane(t, block, i / LANES, i % LANES, &lane);
    if (!header->lean_kinds) return; /* which every record says */
    alone = 0;
    for (int32_t q = 0; q < header->ranks; q++) {
        int32_t c = component_of[q];
        if (c == LPLB__CUDA_NO_HOST) {
            rank[alone] = rank_id[q];
            cell[q] = (uint16_t)(header->components * LANES + alone++);
        } else {
            cell[q] = (uint16_t)(c * LANES + q - component[c].first_rank);
        }
    }
    for (int32_t i = 0; i < header->components * LANES; i++)
        put_pairs(t, block, i / LANES, i % LANES, lane);
    put_alone(t, block, rank, alone, lane);
    put_experts(t, block, cell);
}

/* ---- launches ---- */

/* A thread has two experts at a time; few warps meet sooner. */
enum { EXPERTS_OF_A_WARP = 64, IDS_OF_A_WARP = LPLB__CUDA_LEAN_ROUNDS * LPLB__CUDA_LANES };

static int32_t solve_warps(const lplb__cuda_header *header) {
    int32_t warps = (header->experts + EXPERTS_OF_A_WARP - 1) / EXPERTS_OF_A_WARP;
    if (warps < header->lean_groups) warps = header->lean_groups;
    return warps < LPLB__CUDA_LEAN_GROUPS ? warps : LPLB__CUDA_LEAN_GROUPS;
}

/* Of the small step's shared memory (lean_step.cuh), with some to spare. */
static int64_t step_bytes(const lplb__cuda_header *header, int64_t id_warps) {
    int64_t words = (LPLB__CUDA_LEAN_GROUPS + 1) * LPLB__CUDA_LANES + 3 * header->experts + 16;
    return 4 * (words + 2 * id_warps * header->experts);
}

void lplb__cuda_choose_lean(const lplb_cuda_planner *p, lplb__cuda_step *s,
                            lplb__cuda_shape *shape) {
    enum { SOLVE = LPLB__CUDA_STAGE_SOLVE };
    enum { ALL = SOLVE | LPLB__CUDA_STAGE_COUNT | LPLB__CUDA_STAGE_MAP };
    const lplb__cuda_header *header = (const lplb__cuda_header *)p->staging;
    if (s->solver != LPLB_SOLVER_EXACT || s->tolerance || s->reuse || s->fixed) return;
    if (s->stages == SOLVE && header->lean_kinds & LPLB__CUDA_LEAN_SOLVE) {
        int32_t warps = solve_warps(header);
        if (warps > p->threads / LPLB__CUDA_LANES) return;
        s->lean.kind = LPLB__CUDA_LEAN_SOLVE;
        if (s->solver_warps > warps) s->solver_warps = warps;
        shape->id_warps = warps - s->solver_warps;
    }
    if (s->stages != ALL || !(header->lean_kinds & LPLB__CUDA_LEAN_STEP) || s->source_counts ||
        s->gathered || s->local.nodes || header->lean_groups > s->solver_warps)
        return;
    if (shape->blocks > 1) {
        s->lean.kind = LPLB__CUDA_LEAN_BLOCKS;
    } else if (!p->comm) {
        int32_t warps = (int32_t)((s->n + IDS_OF_A_WARP - 1) / IDS_OF_A_WARP);
        if (warps < 1) warps = 1;
        if (warps > p->threads / LPLB__CUDA_LANES - s->solver_warps ||
            step_bytes(header, warps) > (int64_t)s->shared.bytes)
            return;
        s->lean.kind = LPLB__CUDA_LEAN_STEP;
        shape->id_warps = warps;
    }
}
