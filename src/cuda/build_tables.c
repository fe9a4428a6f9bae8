#include "cuda/build_tables.h"

#include <stdbool.h>
#include <string.h>

#include "base/mem.h"
#include "cuda/ipm.h"
#include "plan/exact_layout.h"

static uint32_t take(uint32_t *bytes, int64_t count, size_t item_bytes) {
    uint32_t at = *bytes;
    *bytes += (uint32_t)(((size_t)count * item_bytes + 15) / 16 * 16);
    return at;
}

lplb_status lplb__cuda_size_tables(int32_t experts, int32_t slots, int32_t ranks,
                                   lplb__cuda_tables *t) {
    if (experts < 1 || experts > LPLB__CUDA_MAX_EXPERTS)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "%d experts; the GPU takes 1 to %d", experts,
                         LPLB__CUDA_MAX_EXPERTS);
    if (slots < 1 || slots > LPLB__CUDA_MAX_SLOTS)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "%d slots; the GPU takes 1 to %d", slots,
                         LPLB__CUDA_MAX_SLOTS);
    if (ranks < 1 || ranks > LPLB__CUDA_MAX_RANKS)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "%d ranks; the GPU takes 1 to %d", ranks,
                         LPLB__CUDA_MAX_RANKS);
    int64_t components = ranks / 2 + 1, rows = slots / 2 < experts ? slots / 2 : experts;
    /* groups are less than twice their hosts; every row may leave part of a chunk empty */
    int64_t chunks = 2 * slots / LPLB__CUDA_LANES + rows + 1;
    uint32_t bytes = 0;
    take(&bytes, 1, sizeof(lplb__cuda_header));
    t->expert = take(&bytes, experts, sizeof(lplb__cuda_expert));
    t->rank_id = take(&bytes, ranks, sizeof(uint16_t));
    t->component_of = take(&bytes, ranks, sizeof(uint16_t));
    t->component = take(&bytes, components, sizeof(lplb__cuda_component));
    t->host = take(&bytes, slots, sizeof(lplb__cuda_host));
    t->segment = take(&bytes, slots, sizeof(lplb__cuda_segment));
    t->hot_bytes = bytes;
    t->speed = take(&bytes, ranks, sizeof(int64_t));
    t->edge =
        take(&bytes, components * LPLB__CUDA_PAIR_COLOURS * LPLB__CUDA_LANES, sizeof(uint32_t));
    t->row = take(&bytes, rows + 1, sizeof(uint32_t));
    t->chunk = take(&bytes, chunks, sizeof(uint8_t));
    t->lane = take(&bytes, chunks * LPLB__CUDA_LANES, sizeof(lplb__cuda_lane));
    t->set = take(&bytes, experts, sizeof(lplb__cuda_set));
    t->set_chunks = slots / 2 < LPLB__CUDA_SET_CHUNKS ? slots / 2 : LPLB__CUDA_SET_CHUNKS;
    if (slots > LPLB__CUDA_SET_SLOTS) t->set_chunks = 0;
    t->own_chunk = take(&bytes, t->set_chunks, sizeof(uint32_t));
    t->movable = take(&bytes, experts, sizeof(uint16_t));
    t->first_movable = take(&bytes, components + 1, sizeof(uint16_t));
    t->rank_host = take(&bytes, slots, sizeof(uint16_t));
    t->first_host = take(&bytes, ranks + 1, sizeof(uint16_t));
    t->lean_lane = take(&bytes, lplb__cuda_lean_groups(ranks) * LPLB__CUDA_LANES,
                        sizeof(lplb__cuda_lean_lane));
    t->lean_expert = take(&bytes, experts, sizeof(lplb__cuda_lean_expert));
    t->bytes = bytes;
    return LPLB_OK;
}

/* The placement of one layer, unfolded. */
typedef struct builder {
    const lplb__cuda_tables *tables;
    unsigned char *block;
    lplb__cuda_header *header;
    const lplb_placement *placement;
    const int32_t *expert_of; /* [P] */
    lplb_hosts hosts;
    int64_t *offset;    /* [E+1] */
    int32_t *rank;      /* [P] */
    int32_t *slot;      /* [P] by expert, ascending */
    int32_t *slot_of;   /* [E+1] first slot of each expert in slot */
    int32_t *number_of; /* [components] among those with movable experts, or -1 */
    lplb__arena arena;
} builder;

#define SECTION(b, name, type) ((type *)((b)->block + (b)->tables->name))

static lplb_status list_slots(builder *b) {
    const lplb_placement *p = b->placement;
    for (int32_t s = 0; s < p->slots; s++) {
        int32_t e = b->expert_of[s];
        if (e < -1 || e >= p->experts)
            return LPLB_FAIL(LPLB_RANGE, "slot %d holds expert %d, outside [-1, %d)", s, e,
                             p->experts);
        if (e >= 0) b->slot_of[e + 1]++;
    }
    for (int32_t e = 0; e < p->experts; e++) {
        if (b->slot_of[e + 1] == 0) return LPLB_FAIL(LPLB_INVALID, "no slot holds expert %d", e);
        b->slot_of[e + 1] += b->slot_of[e];
    }
    int32_t *next = b->number_of; /* free until the layout is known */
    memcpy(next, b->slot_of, (size_t)p->experts * sizeof *next);
    for (int32_t s = 0; s < p->slots; s++)
        if (b->expert_of[s] >= 0) b->slot[next[b->expert_of[s]]++] = s;
    return LPLB_OK;
}

/* Slots of a rank are contiguous, so an expert's slots meet its hosts in ascending order. */
static void list_experts(builder *b) {
    const lplb_placement *p = b->placement;
    lplb__cuda_expert *expert = SECTION(b, expert, lplb__cuda_expert);
    lplb__cuda_host *host = SECTION(b, host, lplb__cuda_host);
    lplb__cuda_segment *segment = SECTION(b, segment, lplb__cuda_segment);
    int32_t h = 0, choices = 0;
    for (int32_t e = 0; e < p->experts; e++) {
        int32_t first = b->slot_of[e], end = b->slot_of[e + 1];
        b->offset[e] = h;
        for (int32_t i = first, rank = 0, last = -1; i < end; i++) {
            while (b->slot[i] >= p->rank_offset[rank + 1]) rank++;
            if (rank != last) {
                b->rank[h] = last = rank;
                host[h++] = (lplb__cuda_host){.expert = (uint16_t)e, .first_segment = (uint16_t)i};
            }
            segment[i] = (lplb__cuda_segment){.slot = (uint16_t)b->slot[i],
                                              .expert = (uint16_t)e,
                                              .host = (uint16_t)(h - 1),
                                              .nth = host[h - 1].slots++};
        }
        expert[e] =
            (lplb__cuda_expert){.first_host = (uint16_t)b->offset[e],
                                .hosts = (uint16_t)(h - b->offset[e]),
                                .first_segment = (uint16_t)first,
                                .segments = (uint16_t)(end - first),
                                .choice = (uint16_t)choices,
                                .slot = {(uint16_t)b->slot[first],
                                         (uint16_t)b->slot[end - first > 1 ? first + 1 : first]}};
        b->header->segmented += end - first > 2;
        if (expert[e].hosts > 1) choices += expert[e].hosts;
    }
    b->offset[p->experts] = h;
    b->hosts = (lplb_hosts){p->ranks, p->experts, b->offset, b->rank};
    b->header->hosts = h;
    b->header->segments = b->slot_of[p->experts];
}

static void list_ranks(builder *b, const lplb__exact_layout *layout, const int64_t *speed) {
    int32_t G = b->placement->ranks;
    uint16_t *rank_id = SECTION(b, rank_id, uint16_t);
    uint16_t *component_of = SECTION(b, component_of, uint16_t);
    int64_t *speed_at = SECTION(b, speed, int64_t);
    lplb__cuda_component *component = SECTION(b, component, lplb__cuda_component);
    for (int32_t q = 0; q < G; q++) {
        int32_t r = layout->rank_id[q];
        rank_id[q] = (uint16_t)r;
        speed_at[q] = speed ? speed[r] : 1;
        b->header->total_speed += speed_at[q];
        b->header->speeds |= speed_at[q] != speed_at[0];
    }
    b->header->first_speed = speed_at[0];
    memset(component_of, 0xff, sizeof(uint16_t) * (size_t)G);
    for (int32_t c = 0; c < layout->components; c++) {
        const lplb__component *from = &layout->component[c];
        b->number_of[c] = from->movables ? b->header->components++ : -1;
        if (!from->movables) continue;
        for (int32_t q = 0; q < from->ranks; q++)
            component_of[from->first_rank + q] = (uint16_t)b->number_of[c];
        int32_t colours = layout->movable[from->first_movable + from->movables - 1].colour + 1;
        component[b->number_of[c]] =
            (lplb__cuda_component){.first_rank = (uint16_t)from->first_rank,
                                   .ranks = (uint16_t)from->ranks,
                                   .colours = (uint16_t)colours,
                                   .first_movable = (uint16_t)from->first_movable,
                                   .movables = (uint16_t)from->movables};
    }
    lplb__cuda_expert *expert = SECTION(b, expert, lplb__cuda_expert);
    lplb__cuda_host *host = SECTION(b, host, lplb__cuda_host);
    for (int32_t h = 0; h < b->header->hosts; h++)
        host[h].rank = (uint16_t)layout->position[b->rank[h]];
    for (int32_t e = 0; e < b->placement->experts; e++)
        expert[e].rank = host[expert[e].first_host].rank;
}

/* Every component in a warp: one lane a rank, two hosts an expert, few colours. */
static void lay_out_pairs(builder *b, const lplb__exact_layout *layout) {
    uint32_t *edge = SECTION(b, edge, uint32_t);
    b->header->engine = LPLB__CUDA_ROWS;
    if (b->header->speeds) return;
    for (int32_t m = 0; m < layout->movables; m++) {
        const lplb__movable *expert = &layout->movable[m];
        if (expert->hosts != 2 || expert->colour >= LPLB__CUDA_PAIR_COLOURS ||
            layout->component[expert->component].ranks > LPLB__CUDA_LANES)
            return;
    }
    b->header->engine = LPLB__CUDA_PAIRS;
    for (int32_t m = 0; m < layout->movables; m++) {
        const lplb__movable *expert = &layout->movable[m];
        int32_t first = layout->component[expert->component].first_rank;
        int32_t u = layout->slot_rank[expert->begin] - first;
        int32_t v = layout->slot_rank[expert->begin + 1] - first;
        int32_t row = b->number_of[expert->component] * LPLB__CUDA_PAIR_COLOURS + expert->colour;
        edge[row * LPLB__CUDA_LANES + u] = LPLB__CUDA_EDGE(expert->expert, v, 1);
        edge[row * LPLB__CUDA_LANES + v] = LPLB__CUDA_EDGE(expert->expert, u, 0);
    }
}

/* Every component in a warp: its ranks in a word of 64 bits, a few experts a lane. */
static void lay_out_sets(builder *b, const lplb__exact_layout *layout) {
    lplb__cuda_set *set = SECTION(b, set, lplb__cuda_set);
    for (int32_t m = 0; m < layout->movables; m++) {
        const lplb__movable *expert = &layout->movable[m];
        const lplb__component *component = &layout->component[expert->component];
        if (expert->hosts > LPLB__CUDA_LANES || component->ranks > LPLB__CUDA_SET_RANKS ||
            component->movables > LPLB__CUDA_SET_EXPERTS)
            return;
        set[m] = (lplb__cuda_set){.expert = (uint16_t)expert->expert};
        for (int32_t s = expert->begin; s < expert->begin + expert->hosts; s++)
            set[m].hosts |= UINT64_C(1) << (layout->slot_rank[s] - component->first_rank);
    }
    if (b->header->engine == LPLB__CUDA_ROWS && !b->header->speeds)
        b->header->engine = LPLB__CUDA_SETS;
}

static int32_t width_log2(int32_t hosts) {
    int32_t log2 = 1;
    while (1 << log2 < hosts) log2++;
    return log2 > 5 ? LPLB__CUDA_WIDE : log2;
}

static int32_t lay_out_group(builder *b, const lplb__exact_layout *layout,
                             const lplb__movable *expert, int32_t width, int32_t at) {
    lplb__cuda_lane *lane = SECTION(b, lane, lplb__cuda_lane);
    int32_t lanes = 1 << width, component = b->number_of[expert->component];
    if (width == LPLB__CUDA_WIDE)
        lanes = (expert->hosts + LPLB__CUDA_LANES - 1) / LPLB__CUDA_LANES * LPLB__CUDA_LANES;
    if (at % LPLB__CUDA_LANES == 0)
        SECTION(b, chunk, uint8_t)[at / LPLB__CUDA_LANES] = (uint8_t)(1 << width);
    for (int32_t i = 0; i < lanes; i++, at++) {
        int32_t s = expert->begin + i;
        bool used = i < expert->hosts;
        lane[at] =
            (lplb__cuda_lane){.host = used ? (uint16_t)layout->slot_split[s] : LPLB__CUDA_NO_HOST,
                              .rank = (uint16_t)layout->slot_rank[used ? s : expert->begin],
                              .expert = (uint16_t)expert->expert,
                              .group = (uint16_t)(component << 4 | width)};
    }
    return at;
}

/* Of the movables [from, end) those of a colour, from a chunk on. Groups of one width after
 * another, wide ones first, so that all are aligned. Returns the chunk behind. */
static int32_t lay_out_row(builder *b, const lplb__exact_layout *layout, int32_t colour,
                           int32_t from, int32_t end, int32_t chunk) {
    lplb__cuda_lane *lane = SECTION(b, lane, lplb__cuda_lane);
    int32_t at = chunk * LPLB__CUDA_LANES;
    for (int32_t width = LPLB__CUDA_WIDE; width >= 1; width--)
        for (int32_t m = from; m < end; m++) {
            const lplb__movable *expert = &layout->movable[m];
            if (expert->colour == colour && width_log2(expert->hosts) == width)
                at = lay_out_group(b, layout, expert, width, at);
        }
    for (; at % LPLB__CUDA_LANES; at++)
        lane[at] = (lplb__cuda_lane){.host = LPLB__CUDA_NO_HOST, .group = 1};
    return at / LPLB__CUDA_LANES;
}

static void lay_out_rows(builder *b, const lplb__exact_layout *layout) {
    uint32_t *row = SECTION(b, row, uint32_t);
    int32_t chunk = 0;
    b->header->rows = b->header->widest_row = 0;
    for (int32_t m = 0; m < layout->movables; m++)
        if (layout->movable[m].colour >= b->header->rows)
            b->header->rows = layout->movable[m].colour + 1;
    for (int32_t colour = 0; colour < b->header->rows; colour++) {
        row[colour] = (uint32_t)chunk;
        if (b->header->engine != LPLB__CUDA_SETS)
            chunk = lay_out_row(b, layout, colour, 0, layout->movables, chunk);
        for (int32_t c = 0; b->header->engine == LPLB__CUDA_SETS && c < layout->components; c++) {
            int32_t from = layout->component[c].first_movable;
            chunk =
                lay_out_row(b, layout, colour, from, from + layout->component[c].movables, chunk);
        }
        if (chunk - (int32_t)row[colour] > b->header->widest_row)
            b->header->widest_row = chunk - (int32_t)row[colour];
    }
    row[b->header->rows] = (uint32_t)chunk;
    b->header->chunks = chunk;
}

/* The chunks of each component, which come by colour. */
static void list_chunks(builder *b) {
    lplb__cuda_component *component = SECTION(b, component, lplb__cuda_component);
    const lplb__cuda_lane *lane = SECTION(b, lane, lplb__cuda_lane);
    const uint8_t *kind = SECTION(b, chunk, uint8_t);
    uint32_t *own = SECTION(b, own_chunk, uint32_t);
    int32_t listed = 0;
    if (b->header->engine != LPLB__CUDA_SETS) return;
    for (int32_t c = 0; c < b->header->components; c++) {
        component[c].first_chunk = (uint16_t)listed;
        for (int32_t k = 0; k < b->header->chunks; k++)
            if (lane[k * LPLB__CUDA_LANES].group >> 4 == c)
                own[listed++] = LPLB__CUDA_OWN_CHUNK(k, kind[k]);
        component[c].chunks = (uint16_t)(listed - component[c].first_chunk);
    }
}

int32_t lplb__cuda_team_warps(int32_t rows) {
    return rows <= 8 ? 1 : rows <= 16 ? 2 : rows <= 32 ? 4 : LPLB__CUDA_IPM_WARPS;
}

/* What the interior-point method goes through: the movable experts of each component, and the hosts
 * of movable experts on each rank, both ascending. */
static void list_movables(builder *b, const lplb__exact_layout *layout) {
    uint16_t *movable = SECTION(b, movable, uint16_t);
    uint16_t *first_movable = SECTION(b, first_movable, uint16_t);
    uint16_t *rank_host = SECTION(b, rank_host, uint16_t);
    uint16_t *first_host = SECTION(b, first_host, uint16_t);
    const lplb__cuda_host *host = SECTION(b, host, lplb__cuda_host);
    const lplb__cuda_expert *expert = SECTION(b, expert, lplb__cuda_expert);
    for (int32_t c = 0, m = 0; c < layout->components; c++) {
        const lplb__component *from = &layout->component[c];
        if (!from->movables) continue;
        int32_t rows = from->ranks + from->movables;
        if (from->ranks > b->header->largest_ranks) b->header->largest_ranks = from->ranks;
        if (rows > b->header->largest_rows) b->header->largest_rows = rows;
        for (int32_t i = 0; i < from->movables; i++)
            movable[m++] = (uint16_t)layout->movable[from->first_movable + i].expert;
        first_movable[b->number_of[c] + 1] = (uint16_t)m;
    }
    b->header->team_warps[0] = lplb__cuda_team_warps(b->header->largest_ranks);
    b->header->team_warps[1] = lplb__cuda_team_warps(b->header->largest_rows);
    for (int32_t h = 0; h < b->header->hosts; h++)
        if (expert[host[h].expert].hosts > 1) first_host[host[h].rank + 1]++;
    for (int32_t q = 0; q < b->placement->ranks; q++) {
        first_host[q + 1] = (uint16_t)(first_host[q + 1] + first_host[q]);
        b->number_of[q] = first_host[q]; /* the components' numbers have served */
    }
    for (int32_t h = 0; h < b->header->hosts; h++)
        if (expert[host[h].expert].hosts > 1) rank_host[b->number_of[host[h].rank]++] = (uint16_t)h;
}

static lplb_status build(builder *b, const int64_t *speed) {
    int32_t G = b->placement->ranks, E = b->placement->experts, P = b->placement->slots;
    int64_t numbers = G > E ? G : E;
    lplb__arena_reserve(&b->arena, E + 1, sizeof *b->offset);
    lplb__arena_reserve(&b->arena, P, sizeof *b->rank);
    lplb__arena_reserve(&b->arena, P, sizeof *b->slot);
    lplb__arena_reserve(&b->arena, E + 1, sizeof *b->slot_of);
    lplb__arena_reserve(&b->arena, numbers, sizeof *b->number_of);
    LPLB_TRY(lplb__arena_create(&b->arena));
    b->offset = lplb__arena_take(&b->arena, E + 1, sizeof *b->offset);
    b->rank = lplb__arena_take(&b->arena, P, sizeof *b->rank);
    b->slot = lplb__arena_take(&b->arena, P, sizeof *b->slot);
    b->slot_of = lplb__arena_take(&b->arena, E + 1, sizeof *b->slot_of);
    b->number_of = lplb__arena_take(&b->arena, numbers, sizeof *b->number_of);
    LPLB_TRY(list_slots(b));
    list_experts(b);
    lplb__arena scratch = {0};
    lplb__exact *exact;
    lplb__exact_reserve(&b->hosts, &scratch);
    LPLB_TRY(lplb__arena_create(&scratch));
    lplb_status status = lplb__exact_init(&exact, &b->hosts, speed, NULL, 0, &scratch);
    if (status == LPLB_OK) {
        lplb__exact_layout layout = lplb__exact_get_layout(exact);
        list_ranks(b, &layout, speed);
        lay_out_pairs(b, &layout);
        lay_out_sets(b, &layout);
        lay_out_rows(b, &layout);
        if (b->header->engine == LPLB__CUDA_SETS && b->header->chunks > b->tables->set_chunks) {
            b->header->engine = LPLB__CUDA_ROWS;
            lay_out_rows(b, &layout);
        }
        list_chunks(b);
        list_movables(b, &layout);
        lplb__cuda_build_lean(b->tables, b->block);
    }
    lplb__arena_destroy(&scratch);
    return status;
}

lplb_status lplb__cuda_build_tables(const lplb__cuda_tables *tables,
                                    const lplb_placement *placement, int32_t layer,
                                    const int64_t *speed, unsigned char *block) {
    if (layer < 0 || layer >= placement->layers)
        return LPLB_FAIL(LPLB_RANGE, "layer %d is outside [0, %d)", layer, placement->layers);
    LPLB_TRY(lplb__check_speed(speed, placement->ranks));
    memset(block, 0, tables->bytes);
    builder b = {.tables = tables,
                 .block = block,
                 .header = (lplb__cuda_header *)block,
                 .placement = placement,
                 .expert_of = placement->physical_to_logical + (int64_t)layer * placement->slots};
    b.header->experts = placement->experts;
    b.header->ranks = placement->ranks;
    lplb_status status = build(&b, speed);
    lplb__arena_destroy(&b.arena);
    return status;
}
