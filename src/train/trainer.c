#include "train/trainer.h"

#include <string.h>

#include "base/clock.h"

enum { PHASE_LANE = 0 }; /* of rank 0's trace; the manager's worker has its own */

void trainer_config_default(trainer_config *c) {
    *c = (trainer_config){
        .global_batch = 16, .micro_batch = 2, .overlap = 1, .bucket_items = 1 << 18, .seed = 1};
    model_config_default(&c->model);
    optimizer_config_default(&c->optimizer);
}

/* ---- set up ---- */

static lplb_status check_batches(const trainer_config *c, int ranks) {
    if (c->global_batch < 1 || c->global_batch % ranks)
        return LPLB_FAIL(LPLB_INVALID,
                         "a global batch of %lld sequences does not divide over %d "
                         "ranks",
                         (long long)c->global_batch, ranks);
    if (c->micro_batch < 1 || c->global_batch / ranks % c->micro_batch)
        return LPLB_FAIL(LPLB_INVALID,
                         "%lld sequences a rank do not divide into micro-batches of %lld",
                         (long long)(c->global_batch / ranks), (long long)c->micro_batch);
    return LPLB_OK;
}

static lplb_status make_grid(trainer *t, lplb__group *world) {
    int expert_ranks = t->config.expert_ranks ? t->config.expert_ranks : world->size;
    if (expert_ranks < 1 || world->size % expert_ranks)
        return LPLB_FAIL(LPLB_INVALID, "%d expert-parallel ranks do not divide %d ranks",
                         expert_ranks, world->size);
    t->grid.world = world;
    LPLB_TRY(world->table->split(world, world->rank / expert_ranks, &t->grid.expert));
    return world->table->split(world, world->rank % expert_ranks, &t->grid.replica);
}

lplb_status trainer_create(const trainer_config *config, lplb__group *world, const corpus *text,
                           trainer **out) {
    trainer *t;
    *out = NULL;
    LPLB_TRY(check_batches(config, world->size));
    LPLB_TRY(LPLB_CALLOC(t, 1));
    t->config = *config;
    t->local_sequences = config->global_batch / world->size;
    model_options options = {.max_batch = config->micro_batch,
                             .redundant = config->redundant,
                             .solver = config->solver,
                             .locality = config->locality,
                             .world = world,
                             .kept = config->kept,
                             .seed = config->seed};
    int64_t tokens = t->local_sequences * config->model.context;
    lplb_status status = LPLB_OK;
    if (text) status = sampler_create(text, config->model.context, config->seed, &t->sampler);
    if (status == LPLB_OK) status = make_grid(t, world);
    if (status == LPLB_OK)
        status = model_create(&config->model, &options, t->grid.expert, &t->model);
    if (status == LPLB_OK) status = optimizer_create(&config->optimizer, t->model, &t->optimizer);
    if (status == LPLB_OK)
        status =
            reducer_create(t->model, &t->grid, config->bucket_items, config->overlap, &t->reducer);
    if (status == LPLB_OK) status = LPLB_CALLOC(t->token, tokens);
    if (status == LPLB_OK) status = LPLB_CALLOC(t->target, tokens);
    if (status == LPLB_OK) status = LPLB_CALLOC(t->first, tokens);
    if (status == LPLB_OK) {
        balance_config balance = {config->mode, config->rebalance_every, config->seed,
                                  config->monitor};
        status = balancer_create(&balance, t->model, t->optimizer, &t->grid, &t->balancer);
    }
    if (status != LPLB_OK) {
        trainer_destroy(t);
        return status;
    }
    *out = t;
    return LPLB_OK;
}

void trainer_destroy(trainer *t) {
    if (!t) return;
    /* After a failure other ranks may still send to and read from what is here: it stays until the
     * process ends, which it is about to. */
    if (t->failed) {
        balancer_abandon(t->balancer);
        return;
    }
    balancer_settle(t->balancer);
    balancer_destroy(t->balancer);
    reducer_destroy(t->reducer);
    optimizer_destroy(t->optimizer);
    model_destroy(t->model);
    sampler_destroy(&t->sampler);
    if (t->grid.expert) t->grid.expert->table->destroy(t->grid.expert);
    if (t->grid.replica) t->grid.replica->table->destroy(t->grid.replica);
    lplb__free(t->token);
    lplb__free(t->target);
    lplb__free(t->first);
    lplb__free(t);
}

/* ---- a step ---- */

/* This rank's sequences of the global batch, in the order that one rank alone would see them. */
static int64_t read_batch(trainer *t) {
    int64_t T = t->config.model.context, counted = 0;
    int64_t number = t->step * t->config.global_batch + t->grid.world->rank * t->local_sequences;
    for (int64_t i = 0; i < t->local_sequences; i++)
        counted += sampler_read(&t->sampler, number + i, t->token + i * T, t->target + i * T,
                                t->first + i * T);
    return counted;
}

static void add_imbalance(const trainer *t, step_report *report) {
    const experts *x = t->model->experts;
    int32_t G = x->group->size, layers = x->placement->layers;
    for (int32_t l = 0; l < layers; l++) {
        int64_t before = 0, after = 0, total = 0;
        for (int32_t r = 0; r < G; r++) {
            int64_t plain = x->plain_loads[l * G + r], planned = x->plan_loads[l * G + r];
            before = plain > before ? plain : before;
            after = planned > after ? planned : after;
            total += plain;
        }
        if (total == 0) continue;
        report->imbalance_before += (double)before * G / (double)total / layers;
        report->imbalance_after += (double)after * G / (double)total / layers;
    }
}

static lplb_status run_micro_batches(trainer *t, const batch *whole, losses *sum,
                                     step_report *report) {
    int64_t T = t->config.model.context, n = t->local_sequences / t->config.micro_batch;
    for (int64_t i = 0; i < n; i++) {
        int64_t at = i * t->config.micro_batch * T;
        batch b = *whole;
        losses own;
        b.B = t->config.micro_batch;
        b.token = t->token + at;
        b.target = t->target + at;
        b.first = t->first + at;
        int64_t begin = lplb_range_begin("forward");
        LPLB_TRY(model_forward(t->model, &b, &own));
        lplb_range_end(t->config.monitor, "forward", PHASE_LANE, begin);
        add_imbalance(t, report);
        if (t->after_forward) LPLB_TRY(t->after_forward(t, &b, t->after_forward_user));
        if (i == n - 1) reducer_begin(t->reducer);
        begin = lplb_range_begin("backward");
        LPLB_TRY(model_backward(t->model, &b));
        lplb_range_end(t->config.monitor, "backward", PHASE_LANE, begin);
        sum->cross_entropy += own.cross_entropy;
        sum->balance += own.balance;
        sum->z += own.z;
        sum->dropped += own.dropped;
    }
    report->imbalance_before /= (double)n;
    report->imbalance_after /= (double)n;
    return LPLB_OK;
}

/* Sums over ranks and turns them into per-token figures. */
static lplb_status finish_report(trainer *t, const batch *whole, const losses *sum,
                                 step_report *report) {
    lplb__group *world = t->grid.world;
    experts *x = t->model->experts;
    double cpu = x->expert_cpu_seconds;
    double sums[5] = {sum->cross_entropy, sum->balance, sum->z, (double)sum->dropped, cpu};
    double mine[2] = {cpu, t->config.stop ? (double)*t->config.stop : 0};
    double *all = lplb__malloc(sizeof mine * (size_t)world->size);
    if (!all) return LPLB_FAIL(LPLB_NO_MEMORY, "no memory for %d numbers", world->size);
    lplb_status status = world->table->all_reduce_sum(world, sums, 5, ELEMENT_DOUBLE);
    if (status == LPLB_OK) status = world->table->all_gather(world, mine, all, sizeof mine);
    for (int r = 0; r < world->size && status == LPLB_OK; r++) {
        if (all[2 * r] > report->expert_cpu_max) report->expert_cpu_max = all[2 * r];
        if (all[2 * r + 1] > 0) report->stop = (int32_t)all[2 * r + 1];
    }
    lplb__free(all);
    report->loss = sums[0] / whole->tokens;
    report->balance = sums[1] / whole->routed;
    report->z = sums[2] / whole->routed;
    report->dropped = (int64_t)sums[3];
    report->expert_cpu_mean = sums[4] / world->size;
    report->tokens = (int64_t)whole->tokens;
    int64_t plans = t->model->layout.moe_layers * (t->local_sequences / t->config.micro_batch);
    report->plan_us = 1e6 * x->plan_seconds / (double)plans;
    return status;
}

/* The choices of the whole step over all ranks: for the selection bias, and for placements. */
static lplb_status use_counts(trainer *t) {
    model *m = t->model;
    int64_t E = m->config.experts, n = m->layout.moe_layers * E;
    LPLB_TRY(t->grid.world->table->all_reduce_sum(t->grid.world, m->step_count, n, ELEMENT_INT64));
    for (int32_t l = 0; l < m->layout.moe_layers && m->config.bias_rate > 0; l++)
        route_update_bias(m->bias + l * E, m->step_count + l * E, m->config.experts,
                          m->config.bias_rate);
    return balancer_step(t->balancer, t->step, m->step_count);
}

static lplb_status sum_gradients(trainer *t, step_report *report) {
    int64_t begin = lplb_range_begin("sum gradients");
    LPLB_TRY(reducer_finish(t->reducer));
    LPLB_TRY(balancer_gradients(t->balancer));
    LPLB_TRY(optimizer_norm(t->model, &t->grid, &report->grad_norm));
    lplb_range_end(t->config.monitor, "sum gradients", PHASE_LANE, begin);
    return LPLB_OK;
}

static lplb_status update_weights(trainer *t, step_report *report) {
    int64_t begin = lplb_range_begin("optimizer");
    double clip = t->config.optimizer.clip, scale = 1;
    if (clip > 0 && report->grad_norm > clip) scale = clip / report->grad_norm;
    report->rate = learning_rate(&t->config.optimizer, t->step);
    optimizer_step(t->optimizer, t->model, t->step, scale);
    LPLB_TRY(balancer_update(t->balancer, t->step, scale));
    lplb_range_end(t->config.monitor, "optimizer", PHASE_LANE, begin);
    return LPLB_OK;
}

static lplb_status take_step(trainer *t, step_report *report) {
    int64_t start = lplb__now_ns(), counted = read_batch(t);
    *report = (step_report){.step = t->step};
    LPLB_TRY(t->grid.world->table->all_reduce_sum(t->grid.world, &counted, 1, ELEMENT_INT64));
    batch whole = {.tokens = (double)(counted > 0 ? counted : 1),
                   .routed = (double)(t->config.global_batch * t->config.model.context)};
    losses sum = {0};
    model_zero_gradients(t->model);
    experts_clear_times(t->model->experts);
    LPLB_TRY(run_micro_batches(t, &whole, &sum, report));
    LPLB_TRY(finish_report(t, &whole, &sum, report));
    LPLB_TRY(sum_gradients(t, report));
    if (!isfinite(report->loss) || !isfinite(report->grad_norm))
        return LPLB_FAIL(LPLB_CHECK_FAILED,
                         "step %lld: loss %g, gradient norm %g; lower the learning rate or resume "
                         "from a checkpoint",
                         (long long)t->step, report->loss, report->grad_norm);
    LPLB_TRY(update_weights(t, report));
    LPLB_TRY(use_counts(t));
    t->step++;
    report->seconds = (double)(lplb__now_ns() - start) * 1e-9;
    return LPLB_OK;
}

lplb_status trainer_step(trainer *t, step_report *report) {
    int64_t begin = lplb_range_begin("step");
    lplb_status status = take_step(t, report);
    lplb_range_end(t->config.monitor, "step", PHASE_LANE, begin);
    t->failed = status != LPLB_OK;
    return status;
}

lplb_status trainer_evaluate(trainer *t, const corpus *text, int64_t sequences, double *loss) {
    int64_t T = t->config.model.context, B = t->config.micro_batch, ranks = t->grid.world->size;
    sampler windows;
    LPLB_TRY(sampler_create(text, T, 0, &windows));
    double sums[2] = {0, 0};
    lplb_status status = LPLB_OK;
    /* every rank runs the same number of micro-batches, on its own sequences */
    int64_t rounds = (sequences + ranks * B - 1) / (ranks * B);
    for (int64_t i = 0; i < rounds && status == LPLB_OK; i++) {
        batch b = {B, t->token, t->target, t->first, 1, 1};
        for (int64_t s = 0; s < B; s++)
            sums[1] += (double)sampler_read(&windows, (i * ranks + t->grid.world->rank) * B + s,
                                            t->token + s * T, t->target + s * T, t->first + s * T);
        losses own;
        status = model_forward(t->model, &b, &own);
        sums[0] += own.cross_entropy;
    }
    sampler_destroy(&windows);
    LPLB_TRY(status);
    LPLB_TRY(t->grid.world->table->all_reduce_sum(t->grid.world, sums, 2, ELEMENT_DOUBLE));
    *loss = sums[0] / sums[1];
    return LPLB_OK;
}
