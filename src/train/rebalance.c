#include "train/rebalance.h"

#include <string.h>

#include "base/clock.h"

/* ---- what the manager asks of the host ---- */

/* All of the world, not of one replica: replicas decide and switch together. */
static lplb_status agree(void *user, uint64_t digest, int32_t ok, int32_t *all_ok) {
    balancer *b = user;
    lplb__group *world = b->grid->world;
    uint64_t mine[2] = {digest, (uint64_t)(ok != 0)};
    LPLB_TRY(world->table->all_gather(world, mine, b->votes, sizeof mine));
    *all_ok = 1;
    for (int r = 0; r < world->size; r++)
        if (!b->votes[2 * r + 1] || b->votes[2 * r] != b->votes[0]) *all_ok = 0;
    return LPLB_OK;
}

static lplb_status stage(void *user, int32_t layer, const lplb_move *moves, int64_t n) {
    return mover_stage(((balancer *)user)->mover, layer, moves, n);
}

static lplb_status staged(void *user, int32_t layer) {
    (void)layer; /* one at a time */
    return mover_staged(((balancer *)user)->mover);
}

/* Layers that were not staged are announced after a reset: the experts lie so already. */
static void commit(void *user, int32_t layer, const int32_t *physical_to_logical) {
    mover *v = ((balancer *)user)->mover;
    if (v->layer == layer) mover_commit(v, physical_to_logical);
}

static void discard(void *user, int32_t layer) {
    (void)layer;
    mover_discard(((balancer *)user)->mover);
}

/* LPLB's topologies, which the manager does not place by itself; on its worker thread. */
static lplb_status place_topology(void *user, const lplb_place_config *config, const int64_t *load,
                                  int64_t samples, int32_t layers, int32_t n_experts,
                                  const double *weight_of_sample, lplb_placement **out) {
    const balancer *b = user;
    lplb_place_config own = {.struct_size = sizeof own,
                             .algorithm = LPLB_PLACE_TOPOLOGY,
                             .ranks = config->ranks,
                             .slots = config->slots,
                             .seed = b->config.seed, /* the same topology again: fewer moves */
                             .threads = config->threads};
    return lplb_place(&own, load, samples, layers, n_experts, weight_of_sample, out);
}

/* ---- life ---- */

/* Whether the mode can place these experts on these ranks at all, known before training. */
static lplb_status try_placing(const balancer *b) {
    const lplb_placement *p = b->experts->placement;
    lplb_place_config config = {.struct_size = sizeof config,
                                .algorithm = b->config.mode == MODE_EPLB   ? LPLB_PLACE_EPLB
                                             : b->config.mode == MODE_LPLB ? LPLB_PLACE_TOPOLOGY
                                                                           : LPLB_PLACE_SEARCH,
                                .ranks = p->ranks,
                                .slots = p->slots,
                                .threads = 1};
    int64_t *load;
    lplb_placement *placement = NULL;
    LPLB_TRY(LPLB_CALLOC(load, p->experts));
    for (int32_t e = 0; e < p->experts; e++) load[e] = 1;
    lplb_status status = lplb_place(&config, load, 1, 1, p->experts, NULL, &placement);
    lplb_placement_destroy(placement);
    lplb__free(load);
    return status;
}

/* EPLB adopts whatever it finds, as in engines; the others must gain. A layer a step: its weights
 * travel during the step after the one that staged them. */
static lplb_status create_manager(balancer *b) {
    const lplb_placement *p = b->experts->placement;
    const balance_config *c = &b->config;
    bool even = b->experts->solver == LPLB_SOLVER_EVEN;
    lplb_manager_config config = {
        .struct_size = sizeof config,
        .layers = p->layers,
        .experts = p->experts,
        .ranks = p->ranks,
        .slots = p->slots,
        .initial = NULL, /* round robin is how the experts lie, and a bad start left soon */
        .tracker = {.alpha = 2.0 / (double)(c->every + 1)},
        .mode = LPLB_INTERVAL_ADAPTIVE,
        .interval = c->every,
        .min_interval = (c->every + 4) / 5,
        .max_interval = c->every,
        .adopt_lag = c->every < 10 ? 1 : 2,
        .algorithm = c->mode == MODE_SEARCH ? LPLB_PLACE_SEARCH : LPLB_PLACE_EPLB,
        .even_split = even,
        .max_moves_per_layer = c->mode == MODE_SEARCH ? -1 : 0,
        .always = c->mode == MODE_EPLB,
        .seed = c->seed,
        .layers_per_chunk = 1,
        .move_lag = 1,
        .worker_timeout_s = -1, /* time must not decide: all ranks wait for all placements */
        .hooks = {b, agree, stage, staged, commit, discard, NULL,
                  c->mode == MODE_LPLB ? place_topology : NULL},
        .monitor = c->monitor};
    return lplb_manager_create(&config, &b->manager);
}

static lplb_status check_start(const balancer *b) {
    const lplb_placement *own = b->experts->placement, *theirs;
    LPLB_TRY(lplb_manager_placement(b->manager, &theirs));
    return lplb_mapping_digest(own) == lplb_mapping_digest(theirs)
               ? LPLB_OK
               : LPLB_FAIL(LPLB_INTERNAL, "the experts do not lie as the manager begins");
}

lplb_status balancer_create(const balance_config *config, model *m, optimizer *o, const grid *g,
                            balancer **out) {
    balancer *b;
    *out = NULL;
    if (config->mode == MODE_NONE || config->every == 0) return LPLB_OK;
    LPLB_TRY(LPLB_CALLOC(b, 1));
    b->config = *config;
    b->grid = g;
    b->experts = m->experts;
    lplb_status status = LPLB_CALLOC(b->votes, 2 * (int64_t)g->world->size);
    if (status == LPLB_OK) status = try_placing(b);
    if (status == LPLB_OK) status = mover_create(m, o, g->expert, &b->mover);
    if (status == LPLB_OK) status = create_manager(b);
    if (status == LPLB_OK) status = check_start(b);
    if (status != LPLB_OK) {
        balancer_destroy(b);
        return status;
    }
    *out = b;
    return LPLB_OK;
}

void balancer_destroy(balancer *b) {
    if (!b) return;
    lplb_manager_destroy(b->manager);
    mover_destroy(b->mover);
    lplb__free(b->votes);
    lplb__free(b);
}

void balancer_abandon(balancer *b) {
    if (!b) return;
    lplb_manager_destroy(b->manager);
    b->manager = NULL;
}

/* ---- in the loop ---- */

static double seconds_since(int64_t start) { return (double)(lplb__now_ns() - start) * 1e-9; }

lplb_status balancer_gradients(balancer *b) { return b ? mover_follow(b->mover) : LPLB_OK; }

lplb_status balancer_update(balancer *b, int64_t step, double scale) {
    if (!b) return LPLB_OK;
    int64_t start = lplb__now_ns();
    lplb_status status = mover_update(b->mover, step, scale);
    b->move_seconds += seconds_since(start);
    return status;
}

lplb_status balancer_step(balancer *b, int64_t step, const int64_t *choices) {
    if (!b) return LPLB_OK;
    int64_t start = lplb__now_ns();
    lplb_status status = lplb_manager_step(b->manager, step, LPLB_STAGE_PREFILL, choices);
    b->move_seconds += seconds_since(start);
    return status;
}

void balancer_settle(balancer *b) {
    if (b && b->mover->layer >= 0) mover_discard(b->mover);
}

/* ---- checkpoints ---- */

int64_t balancer_save_bytes(const balancer *b) {
    return b ? (int64_t)lplb_manager_save_bytes(b->manager) : 0;
}

lplb_status balancer_save(const balancer *b, void *state, int64_t bytes) {
    return lplb_manager_save(b->manager, state, (size_t)bytes);
}

lplb_status balancer_restore(balancer *b, const void *state, int64_t bytes) {
    if (!b) return LPLB_OK;
    balancer_settle(b);
    if (state) {
        lplb_status status = lplb_manager_restore(b->manager, state, (size_t)bytes);
        if (status != LPLB_FORMAT) return status;
    }
    return lplb_manager_reset(b->manager, b->experts->placement);
}
