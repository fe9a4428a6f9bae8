/* The manager's state: its memory, and the mapping it begins with. */
#include <string.h>

#include "base/bits.h"
#include "runtime/core.h"

static void *block(lplb__arena *arena, int64_t count, size_t item_bytes) {
    if (arena->base) return lplb__arena_take(arena, count, item_bytes);
    lplb__arena_reserve(arena, count, item_bytes);
    return NULL;
}

/* Called twice: adds the arena up, then hands it out. */
static void lay_out(lplb__core *c) {
    lplb__arena *a = &c->arena;
    int64_t L = c->config.layers, E = c->config.experts, P = c->config.slots, G = c->config.ranks;
    int64_t samples = c->config.tracker.samples < 0 ? 0 : c->config.tracker.samples;
    if (c->config.tracker.kind == LPLB_TRACKER_STAGES) samples *= LPLB_STAGES;
    c->dead = block(a, G, 1);
    c->job.dead = block(a, G, 1);
    c->job.load = block(a, L * E, sizeof(int64_t));
    c->job.samples = samples; /* the capacity, until the first request */
    c->job.sample = block(a, samples * L * E, sizeof(int64_t));
    lplb__proposal *p = &c->proposal;
    p->before = block(a, L, sizeof(double));
    p->after = block(a, L, sizeof(double));
    p->moves = block(a, L, sizeof(int64_t));
    p->take = block(a, L, 1);
    for (int i = 0; i < 2; i++)
        p->by_sample[i] = block(a, (samples ? samples : 1) * L, sizeof(double));
    p->chosen = block(a, L, sizeof(int32_t));
    p->chosen_load = block(a, (samples ? samples : 1) * L * E, sizeof(int64_t));
    p->row = block(a, P, sizeof(int32_t));
    p->taken = block(a, P, sizeof(int32_t));
    p->seen = block(a, lplb__bit_words(E), sizeof(uint64_t));
    p->diff.head = block(a, E, sizeof(int32_t));
    p->diff.brought = block(a, E, sizeof(int32_t));
    p->diff.next = block(a, P, sizeof(int32_t));
    p->diff.sends = block(a, G, sizeof(int32_t));
    p->move = block(a, P, sizeof(lplb_move));
    c->diff.head = block(a, E, sizeof(int32_t));
    c->diff.brought = block(a, E, sizeof(int32_t));
    c->diff.next = block(a, P, sizeof(int32_t));
    c->diff.sends = block(a, G, sizeof(int32_t));
    c->move = block(a, P, sizeof(lplb_move));
    c->seen = block(a, lplb__bit_words(E), sizeof(uint64_t));
    c->todo = block(a, L, 1);
    c->chunk = block(a, L, sizeof(int32_t));
    c->lost = block(a, L * E, sizeof(lplb_move));
    c->mean = block(a, L * E, sizeof(float));
    c->variance = block(a, L * E, sizeof(float));
    c->slot_share = block(a, L * P, sizeof(float));
    c->copies = block(a, E, sizeof(int32_t));
    c->layer_flag = block(a, L, 1);
    c->expert_load = block(a, E, sizeof(int64_t));
    c->event = block(a, LPLB__EVENTS, sizeof(lplb_event));
}

static lplb_status create_parts(lplb__core *c, const lplb_manager_config *given) {
    lplb_manager_config *config = &c->config;
    lay_out(c);
    LPLB_TRY(lplb__arena_create(&c->arena));
    lay_out(c);
    c->sample_capacity = c->job.samples;
    lplb_placement **maps[] = {&c->active, &c->repair, &c->proposal.to, &c->job.from};
    for (int i = 0; i < 4; i++)
        LPLB_TRY(lplb_placement_create(config->layers, config->experts, config->slots,
                                       config->ranks, config->slots_per_rank, maps[i]));
    if (config->slots_per_rank) {
        int32_t *copy;
        LPLB_TRY(LPLB_CALLOC(copy, config->ranks));
        memcpy(copy, given->slots_per_rank, (size_t)config->ranks * sizeof *copy);
        config->slots_per_rank = c->slots_per_rank = copy;
    }
    if (config->algorithm == LPLB_PLACE_TOPOLOGY) {
        const lplb_topology *t = given->topology;
        int32_t redundant = (config->slots - config->experts) / config->ranks;
        LPLB_TRY(t ? lplb_topology_from_r2o(t->r2o, t->group_size, t->redundant, &c->topology)
                   : lplb_topology_create("", config->ranks, redundant, &c->topology));
        config->topology = c->topology;
    }
    LPLB_TRY(lplb_tracker_create(&config->tracker, &c->tracker));
    if (given->forecaster) {
        lplb_forecaster_config f = *given->forecaster;
        if ((f.layers && f.layers != config->layers) || (f.experts && f.experts != config->experts))
            return LPLB_FAIL(LPLB_INVALID,
                             "the forecaster has %d layers of %d experts, the "
                             "manager %d of %d",
                             f.layers, f.experts, config->layers, config->experts);
        f.layers = config->layers;
        f.experts = config->experts;
        LPLB_TRY(lplb_forecaster_create(&f, &c->forecaster));
    }
    config->forecaster = NULL; /* the caller's; ours is the object */
    return LPLB_OK;
}

static bool same_shape(const lplb_placement *a, const lplb_placement *b) {
    return a->layers == b->layers && a->experts == b->experts && a->slots == b->slots &&
           a->ranks == b->ranks &&
           !memcmp(a->rank_offset, b->rank_offset, ((size_t)a->ranks + 1) * sizeof *a->rank_offset);
}

void lplb__copy_map(lplb_placement *to, const lplb_placement *from) {
    memcpy(to->physical_to_logical, from->physical_to_logical,
           (size_t)to->layers * (size_t)to->slots * sizeof(int32_t));
}

lplb_status lplb__core_check_mapping(lplb__core *c, const lplb_placement *p) {
    if (!same_shape(p, c->active))
        return LPLB_FAIL(LPLB_INVALID,
                         "the mapping has %d layers, %d experts, %d slots on %d "
                         "ranks, not %d, %d, %d on %d (or other slots per rank)",
                         p->layers, p->experts, p->slots, p->ranks, c->active->layers,
                         c->active->experts, c->active->slots, c->active->ranks);
    for (int32_t layer = 0; layer < p->layers; layer++)
        LPLB_TRY(lplb__validate_layer(&c->slots, layer, lplb__row(p, layer), false, c->seen));
    return LPLB_OK;
}

void lplb__core_all_shares(lplb__core *c) {
    for (int32_t layer = 0; layer < c->config.layers; layer++) lplb__core_shares(c, layer);
}

/* The mapping given, or round robin where there is none or it cannot be used. */
static void first_mapping(lplb__core *c, const lplb_placement *initial) {
    lplb_status status = initial ? lplb__core_check_mapping(c, initial) : LPLB_OK;
    if (initial && status == LPLB_OK) {
        lplb__copy_map(c->active, initial);
        lplb__core_event(c, LPLB_EVENT_START, LPLB_OK, "the mapping given");
        c->last_loss = -1;
    } else {
        for (int32_t layer = 0; layer < c->config.layers; layer++)
            lplb__round_robin_layer(&c->slots, lplb__row(c->active, layer));
        c->stats.fallbacks += initial != NULL;
        c->last_loss = 0; /* nobody's choice: any loss is one to act on */
        lplb__core_event(c, initial ? LPLB_EVENT_FALLBACK : LPLB_EVENT_START, status,
                         initial ? "round robin, because %s" : "round robin%s",
                         initial ? lplb_error_message() : "");
    }
    c->usable = 1;
    lplb__core_all_shares(c);
}

lplb_status lplb__core_create(const lplb_manager_config *given, lplb__core **out) {
    *out = NULL;
    lplb_manager_config config;
    LPLB_TRY(lplb__fill_manager_config(given, &config));
    lplb__core *c;
    LPLB_TRY(LPLB_CALLOC(c, 1));
    c->config = config;
    c->cells = (int64_t)config.layers * config.experts;
    lplb_status status = create_parts(c, given);
    if (status != LPLB_OK) {
        lplb__core_destroy(c);
        return status;
    }
    c->slots = (lplb__slots){config.experts, config.slots,           config.ranks,
                             config.nodes,   c->active->rank_offset, c->dead};
    c->now = -1;
    c->interval = config.interval;
    c->last_variance = -1;
    c->credit = lplb__most_credit(c);
    c->config.initial = NULL;
    first_mapping(c, given->initial);
    *out = c;
    return LPLB_OK;
}

void lplb__core_destroy(lplb__core *c) {
    if (!c) return;
    lplb_tracker_destroy(c->tracker);
    lplb_forecaster_destroy(c->forecaster);
    lplb_placement_destroy(c->active);
    lplb_placement_destroy(c->repair);
    lplb_placement_destroy(c->proposal.to);
    lplb_placement_destroy(c->job.from);
    lplb_topology_destroy(c->topology);
    lplb__free(c->slots_per_rank);
    lplb__arena_destroy(&c->arena);
    lplb__free(c);
}
