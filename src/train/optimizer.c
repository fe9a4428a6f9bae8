#include "train/optimizer.h"

#include <string.h>

void optimizer_config_default(optimizer_config *c) {
    *c = (optimizer_config){.rate = 1e-3,
                            .min_rate = 1e-4,
                            .beta1 = 0.9,
                            .beta2 = 0.95,
                            .eps = 1e-8,
                            .weight_decay = 0.1,
                            .clip = 1,
                            .warmup_steps = 20,
                            .steps = 300,
                            .decay_steps = 60};
}

lplb_status optimizer_config_check(const optimizer_config *c) {
    if (!(c->rate > 0) || !(c->min_rate >= 0) || c->min_rate > c->rate)
        return LPLB_FAIL(LPLB_INVALID,
                         "learning rate %g, at the end %g: both positive, the second "
                         "not larger",
                         c->rate, c->min_rate);
    if (!(c->beta1 >= 0 && c->beta1 < 1) || !(c->beta2 >= 0 && c->beta2 < 1) || !(c->eps > 0))
        return LPLB_FAIL(LPLB_INVALID, "beta1 %g and beta2 %g must be in [0, 1), eps %g above 0",
                         c->beta1, c->beta2, c->eps);
    if (!(c->weight_decay >= 0) || !(c->clip >= 0))
        return LPLB_FAIL(LPLB_INVALID, "weight_decay %g and clip %g cannot be negative",
                         c->weight_decay, c->clip);
    if (c->steps < 1 || c->schedule_steps < 0)
        return LPLB_FAIL(LPLB_INVALID,
                         "steps is %lld, must be positive; schedule-steps is %lld, 0 "
                         "for the same",
                         (long long)c->steps, (long long)c->schedule_steps);
    int64_t decay = c->schedule == SCHEDULE_WSD ? c->decay_steps : 0, total = schedule_steps(c);
    if (c->warmup_steps < 0 || decay < 0 || c->warmup_steps > total - decay)
        return LPLB_FAIL(LPLB_INVALID,
                         "%lld steps with %lld of warm-up and %lld of decay do not fit together "
                         "(--steps or --schedule-steps, --warmup-steps, --decay-steps)",
                         (long long)total, (long long)c->warmup_steps, (long long)decay);
    return LPLB_OK;
}

int64_t schedule_steps(const optimizer_config *c) {
    return c->schedule_steps ? c->schedule_steps : c->steps;
}

double learning_rate(const optimizer_config *c, int64_t step) {
    if (step < c->warmup_steps) return c->rate * (double)(step + 1) / (double)c->warmup_steps;
    double span = c->rate - c->min_rate;
    if (c->schedule == SCHEDULE_COSINE) {
        double left = (double)(schedule_steps(c) - c->warmup_steps);
        double done = left > 0 ? (double)(step - c->warmup_steps) / left : 1;
        if (done > 1) done = 1;
        return c->min_rate + span * 0.5 * (1 + cos(3.14159265358979323846 * done));
    }
    int64_t into = step - (schedule_steps(c) - c->decay_steps);
    if (into <= 0 || c->decay_steps == 0) return c->rate;
    double done = (double)into / (double)c->decay_steps;
    return c->rate - span * (done > 1 ? 1 : done);
}

static int64_t expert_total(const model *m) {
    return (int64_t)m->layout.moe_layers * m->experts->local_slots * m->experts->expert_items;
}

lplb_status optimizer_create(const optimizer_config *config, const model *m, optimizer **out) {
    *out = NULL;
    LPLB_TRY(optimizer_config_check(config));
    optimizer *o;
    LPLB_TRY(LPLB_CALLOC(o, 1));
    o->config = *config;
    lplb_status status = LPLB_CALLOC(o->m1, m->layout.items);
    if (status == LPLB_OK) status = LPLB_CALLOC(o->m2, m->layout.items);
    if (status == LPLB_OK) status = LPLB_CALLOC(o->expert_m1, expert_total(m));
    if (status == LPLB_OK) status = LPLB_CALLOC(o->expert_m2, expert_total(m));
    if (status != LPLB_OK) {
        optimizer_destroy(o);
        return status;
    }
    *out = o;
    return LPLB_OK;
}

void optimizer_destroy(optimizer *o) {
    if (!o) return;
    void *blocks[] = {o->m1, o->m2, o->expert_m1, o->expert_m2};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) lplb__free(blocks[i]);
    lplb__free(o);
}

/* ---- norm and step ---- */

static const real *local_gradient(const experts *x, int32_t layer, int32_t slot) {
    return x->gradient + ((int64_t)layer * x->local_slots + slot - x->first_slot) * x->expert_items;
}

lplb_status optimizer_norm(const model *m, const grid *g, double *norm) {
    const experts *x = m->experts;
    double sum = m->ops->square_sum(m->grad, m->layout.items), of_experts = 0;
    for (int32_t l = 0; l < m->layout.moe_layers; l++) {
        const int32_t *expert_of =
            x->placement->physical_to_logical + (int64_t)l * x->placement->slots;
        for (int32_t s = x->first_slot; s < x->first_slot + x->local_slots; s++) {
            bool lowest = expert_of[s] >= 0;
            for (int32_t p = 0; p < s && lowest; p++) lowest = expert_of[p] != expert_of[s];
            if (lowest) of_experts += m->ops->square_sum(local_gradient(x, l, s), x->expert_items);
        }
    }
    LPLB_TRY(g->expert->table->all_reduce_sum(g->expert, &of_experts, 1, ELEMENT_DOUBLE));
    *norm = sqrt(sum + of_experts);
    return LPLB_OK;
}

static adamw_step step_of(const optimizer_config *c, int64_t step, double scale, bool decay) {
    double rate = learning_rate(c, step);
    return (adamw_step){.rate = rate,
                        .beta1 = c->beta1,
                        .beta2 = c->beta2,
                        .eps = c->eps,
                        .shrink = decay ? 1 - rate * c->weight_decay : 1,
                        .correct1 = 1 / (1 - pow(c->beta1, (double)step + 1)),
                        .correct2 = 1 / (1 - pow(c->beta2, (double)step + 1)),
                        .scale = scale};
}

void optimizer_update_rows(const optimizer *o, const ops *table, int64_t step, double scale,
                           real *weight, const real *gradient, real *m1, real *m2, int64_t n) {
    adamw_step a = step_of(&o->config, step, scale, true);
    table->adamw(&a, weight, NULL, gradient, m1, m2, n);
}

void optimizer_step(optimizer *o, model *m, int64_t step, double scale) {
    adamw_step plain = step_of(&o->config, step, scale, false);
    adamw_step decaying = step_of(&o->config, step, scale, true);
    for (int32_t i = 0; i < m->layout.n_params; i++) {
        const param *p = &m->layout.param[i];
        m->ops->adamw(p->decay ? &decaying : &plain, m->param + p->offset,
                      kept_at(m->ops, m->weight, p->offset), m->grad + p->offset, o->m1 + p->offset,
                      o->m2 + p->offset, p->rows * p->cols);
    }
    m->ops->adamw(&decaying, m->experts->weight, m->experts->kept_weight, m->experts->gradient,
                  o->expert_m1, o->expert_m2, expert_total(m));
}
