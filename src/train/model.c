#include "train/model.h"

#include <string.h>

#include "base/rng.h"

/* ---- memory ---- */

/* Everything is laid out twice: first to add up (taking false), then to take. */
#define FIELD(pointer, items)                                                                      \
    do {                                                                                           \
        if (taking) (pointer) = lplb__arena_take(&m->arena, (items), sizeof *(pointer));           \
        else lplb__arena_reserve(&m->arena, (items), sizeof *(pointer));                           \
    } while (0)
#define KEPT(pointer, items)                                                                       \
    do {                                                                                           \
        int64_t bytes = (items) * (int64_t)m->ops->kept_bytes;                                     \
        if (taking) (pointer) = lplb__arena_take(&m->arena, bytes, 1);                             \
        else lplb__arena_reserve(&m->arena, bytes, 1);                                             \
    } while (0)

static void lay_out_layer(model *m, int32_t l, layer_tape *t, bool taking) {
    const model_config *c = &m->config;
    int64_t N = m->max_batch * c->context, D = c->width, E = c->experts, K = c->topk;
    int64_t kv = D / c->heads * c->kv_heads;
    const struct layer_params *p = &m->layout.layer[l];
    FIELD(t->in, N * D);
    KEPT(t->norm1, N * D);
    FIELD(t->rstd1, N);
    FIELD(t->q, N * D);
    FIELD(t->k, N * kv);
    FIELD(t->v, N * kv);
    FIELD(t->log_sum, N * c->heads);
    KEPT(t->mixed, N * D);
    FIELD(t->middle, N * D);
    KEPT(t->norm2, N * D);
    FIELD(t->rstd2, N);
    KEPT(t->gate, N * p->ffn_width);
    KEPT(t->up, N * p->ffn_width);
    if (p->moe < 0) return;
    FIELD(t->route.logit, N * E);
    FIELD(t->route.score, N * E);
    FIELD(t->route.log_sum, N);
    FIELD(t->route.gate, N * K);
    FIELD(t->route.choice, N * K);
    FIELD(t->route.kept, N * K);
    t->route.order = m->order;
    FIELD(t->route.count, E);
}

static void lay_out(model *m, bool taking) {
    const model_config *c = &m->config;
    int64_t N = m->max_batch * c->context, D = c->width, E = c->experts, K = c->topk;
    int64_t kv = D / c->heads * c->kv_heads, T = c->context, M = m->layout.moe_layers;
    int64_t widest = c->dense_layers ? c->dense_width : 0;
    if (c->shared_width > widest) widest = c->shared_width;
    FIELD(m->param, m->layout.items);
    FIELD(m->grad, m->layout.items);
    FIELD(m->bias, M * E);
    FIELD(m->step_count, M * E);
    FIELD(m->tape, c->layers);
    FIELD(m->order, N * K);
    for (int32_t l = 0; l < c->layers; l++) {
        layer_tape dummy;
        lay_out_layer(m, l, taking ? &m->tape[l] : &dummy, taking);
    }
    FIELD(m->final, N * D);
    KEPT(m->final_norm, N * D);
    FIELD(m->final_rstd, N);
    FIELD(m->logit, N * c->vocab);
    FIELD(m->position, N);
    FIELD(m->rotation, T * (D / c->heads));
    FIELD(m->slope, M * m->max_batch * E);
    FIELD(m->scope_count, m->max_batch * E);
    FIELD(m->dstream, N * D);
    FIELD(m->dnorm, N * D);
    FIELD(m->dmixed, N * D);
    FIELD(m->dq, N * D);
    FIELD(m->dk, N * kv);
    FIELD(m->dv, N * kv);
    FIELD(m->scores, 2 * ATTENTION_ROWS * T);
    KEPT(m->hidden, N * widest);
    KEPT(m->dgate, N * widest);
    KEPT(m->dup, N * widest);
    FIELD(m->dlogit, N * E);
    FIELD(m->dchoice, N * K);
    if (m->ops->rounds) {
        int64_t most = c->vocab > widest ? c->vocab : widest;
        KEPT(m->weight, m->layout.items);
        KEPT(m->operand, N * (most > D ? most : D));
        FIELD(m->dhidden, 2 * N * widest);
    } else if (taking) {
        m->weight = (kept *)(void *)m->param;
        m->dhidden = (real *)(void *)m->hidden;
    }
}

#undef FIELD
#undef KEPT

static void fill_rotation(model *m) {
    int64_t d = m->config.width / m->config.heads, half = d / 2;
    for (int64_t i = 0; i < half; i++) {
        double frequency = pow(m->config.rope_theta, -2.0 * (double)i / (double)d);
        for (int64_t t = 0; t < m->config.context; t++) {
            m->rotation[t * d + i] = (real)cos((double)t * frequency);
            m->rotation[t * d + half + i] = (real)sin((double)t * frequency);
        }
    }
}

lplb_status model_create(const model_config *config, const model_options *options,
                         lplb__group *group, model **out) {
    *out = NULL;
    LPLB_TRY(model_config_check(config));
    if (options->max_batch < 1)
        return LPLB_FAIL(LPLB_INVALID, "a micro-batch of %lld sequences",
                         (long long)options->max_batch);
    model *m;
    LPLB_TRY(LPLB_CALLOC(m, 1));
    m->config = *config;
    m->group = group;
    m->world = options->world ? options->world : group;
    m->max_batch = options->max_batch;
    lplb_status status;
    LPLB_TRY_GOTO(status, ops_cpu(options->kept, &m->ops), failed);
    LPLB_TRY_GOTO(status, param_layout_create(&m->config, &m->layout), failed);
    lay_out(m, false);
    LPLB_TRY_GOTO(status, lplb__arena_create(&m->arena), failed);
    lay_out(m, true);
    fill_rotation(m);
    LPLB_TRY_GOTO(status,
                  experts_create(&m->config, m->ops, group, m->layout.moe_layers,
                                 m->layout.expert_items, options->redundant, options->solver,
                                 options->locality, &m->experts),
                  failed);
    for (int32_t l = 0; l < config->layers; l++)
        if (m->layout.layer[l].moe >= 0)
            LPLB_TRY_GOTO(status, expert_tape_create(m->experts, &m->tape[l].experts), failed);
    model_initialise(m, options->seed);
    *out = m;
    return LPLB_OK;
failed:
    model_destroy(m);
    return status;
}

void model_destroy(model *m) {
    if (!m) return;
    for (int32_t l = 0; m->tape && l < m->config.layers; l++)
        if (m->layout.layer[l].moe >= 0) expert_tape_destroy(&m->tape[l].experts);
    experts_destroy(m->experts);
    param_layout_destroy(&m->layout);
    lplb__arena_destroy(&m->arena);
    lplb__free(m);
}

/* ---- weights ---- */

/* Every tensor and every logical expert has a random stream of its own, so that the number of ranks
 * and the placement do not change the model. */
void model_initialise(model *m, uint64_t seed) {
    const model_config *c = &m->config;
    lplb__rng rng;
    memset(m->param, 0, sizeof(real) * (size_t)m->layout.items);
    for (int32_t i = 0; i < m->layout.n_params; i++) {
        const param *p = &m->layout.param[i];
        lplb__rng_seed(&rng, seed, (uint64_t)i);
        for (int64_t j = 0; j < p->rows * p->cols; j++)
            m->param[p->offset + j] =
                p->std < 0 ? 1 : (real)((double)p->std * lplb__rng_normal(&rng));
    }
    experts *x = m->experts;
    int64_t third = (int64_t)c->expert_width * c->width;
    double out_std = c->init_std / sqrt(2.0 * c->layers);
    for (int32_t l = 0; l < m->layout.moe_layers; l++)
        for (int32_t s = 0; s < x->local_slots; s++) {
            int32_t e =
                x->placement
                    ->physical_to_logical[(int64_t)l * x->placement->slots + x->first_slot + s];
            real *w = x->weight + ((int64_t)l * x->local_slots + s) * x->expert_items;
            if (e < 0) continue;
            lplb__rng_seed(&rng, seed, (UINT64_C(1) << 32) + (uint64_t)l * 65536 + (uint64_t)e);
            for (int64_t j = 0; j < x->expert_items; j++)
                w[j] = (real)((j < 2 * third ? c->init_std : out_std) * lplb__rng_normal(&rng));
        }
    model_keep_weights(m);
}

void model_keep_weights(model *m) {
    m->ops->keep(m->weight, m->param, m->layout.items);
    experts_keep_weights(m->experts);
}

void model_zero_gradients(model *m) {
    experts *x = m->experts;
    memset(m->grad, 0, sizeof(real) * (size_t)m->layout.items);
    memset(x->gradient, 0,
           sizeof(real) * (size_t)(m->layout.moe_layers * x->local_slots * x->expert_items));
    memset(m->step_count, 0,
           sizeof(int64_t) * (size_t)(m->layout.moe_layers * (int64_t)m->config.experts));
}

/* ---- forward ---- */

static attention_shape shape_of(const model *m, int64_t B) {
    const model_config *c = &m->config;
    return (attention_shape){B, c->context, c->heads, c->kv_heads, c->width / c->heads};
}

static const kept *weight_at(const model *m, int64_t offset) {
    return kept_at(m->ops, m->weight, offset);
}

/* middle = in + wo(attention(norm1(in))) */
static void attention_half(model *m, int32_t l, const batch *b) {
    const model_config *c = &m->config;
    const ops *o = m->ops;
    const struct layer_params *p = &m->layout.layer[l];
    layer_tape *t = &m->tape[l];
    int64_t N = b->B * c->context, D = c->width, d = D / c->heads, kv = d * c->kv_heads;
    o->rmsnorm_forward(t->norm1, t->rstd1, t->in, m->param + p->norm1, N, D, (real)c->norm_eps);
    o->linear_forward(t->q, t->norm1, weight_at(m, p->wq), N, D, D, 0);
    o->linear_forward(t->k, t->norm1, weight_at(m, p->wk), N, kv, D, 0);
    o->linear_forward(t->v, t->norm1, weight_at(m, p->wv), N, kv, D, 0);
    o->rope(t->q, m->position, m->rotation, N, c->heads, d, 0);
    o->rope(t->k, m->position, m->rotation, N, c->kv_heads, d, 0);
    real *mixed = draft(o, t->mixed, m->dmixed);
    o->attention_forward(mixed, t->log_sum, m->scores, t->q, t->k, t->v, b->first,
                         shape_of(m, b->B));
    o->keep(t->mixed, mixed, N * D);
    memcpy(t->middle, t->in, sizeof(real) * (size_t)(N * D));
    o->linear_forward(t->middle, t->mixed, weight_at(m, p->wo), N, D, D, 1);
}

/* out += down(silu(gate(x)) * up(x)) */
static void dense_forward(model *m, int32_t l, int64_t N, real *out) {
    const ops *o = m->ops;
    const struct layer_params *p = &m->layout.layer[l];
    layer_tape *t = &m->tape[l];
    int64_t D = m->config.width, F = p->ffn_width;
    if (p->gate < 0) return;
    real *gate = draft(o, t->gate, m->dhidden), *up = draft(o, t->up, m->dhidden + N * F);
    o->linear_forward(gate, t->norm2, weight_at(m, p->gate), N, F, D, 0);
    o->linear_forward(up, t->norm2, weight_at(m, p->up), N, F, D, 0);
    o->keep(t->gate, gate, N * F);
    o->keep(t->up, up, N * F);
    o->swiglu_forward(m->hidden, t->gate, t->up, N * F);
    o->linear_forward(out, m->hidden, weight_at(m, p->down), N, D, F, 1);
}

static int64_t scope_tokens(const model *m, const batch *b) {
    return m->config.aux == AUX_SEQUENCE ? m->config.context : b->B * m->config.context;
}

/* slope_i = coeff * E * f_i with f_i = count_i / (tokens * K) of the scope, counts before dropping:
 * the loss coeff * E * sum_i f_i P_i is coeff when routing is even (Fedus et al., 2021). */
static lplb_status balance_slopes(model *m, int32_t moe, const batch *b, const routing *r) {
    const model_config *c = &m->config;
    int64_t E = c->experts, N = b->B * c->context, scope = scope_tokens(m, b), tokens = scope;
    memset(m->scope_count, 0, sizeof(int64_t) * (size_t)(N / scope * E));
    for (int64_t i = 0; i < N * c->topk; i++)
        m->scope_count[i / c->topk / scope * E + r->choice[i]]++;
    if (c->aux == AUX_GLOBAL) {
        int64_t all = tokens;
        LPLB_TRY(m->world->table->all_reduce_sum(m->world, m->scope_count, E, ELEMENT_INT64));
        LPLB_TRY(m->world->table->all_reduce_sum(m->world, &all, 1, ELEMENT_INT64));
        tokens = all;
    }
    real *slope = m->slope + moe * m->max_batch * E;
    for (int64_t i = 0; i < N / scope * E; i++)
        slope[i] = (real)(c->aux_coeff * (double)E * (double)m->scope_count[i] /
                          ((double)tokens * c->topk));
    return LPLB_OK;
}

static route_losses losses_of(const model *m, int32_t moe, const batch *b) {
    bool balanced = m->config.aux != AUX_NONE && m->config.aux_coeff > 0;
    return (route_losses){.slope =
                              balanced ? m->slope + moe * m->max_batch * m->config.experts : NULL,
                          .scope_tokens = scope_tokens(m, b),
                          .inverse_tokens = (real)(1 / b->routed)};
}

static lplb_status moe_forward(model *m, int32_t l, const batch *b, real *out, losses *sum) {
    const model_config *c = &m->config;
    const struct layer_params *p = &m->layout.layer[l];
    layer_tape *t = &m->tape[l];
    int64_t N = b->B * c->context;
    const real *x = m->ops->widen(m->dmixed, t->norm2, N * c->width);
    gemm_shape shape = {N, c->experts, c->width, false, true, c->width, c->width, c->experts};
    m->ops->gemm(&shape, x, m->param + p->router, 0, t->route.logit);
    /* without a rate too: a model that was trained with a bias chooses by it */
    m->ops->route_forward(c, m->bias + (int64_t)p->moe * c->experts, N, &t->route);
    for (int32_t e = 0; e < c->experts; e++)
        m->step_count[(int64_t)p->moe * c->experts + e] += t->route.count[e];
    if (c->aux != AUX_NONE) LPLB_TRY(balance_slopes(m, p->moe, b, &t->route));
    route_losses weights = losses_of(m, p->moe, b);
    double balance, z;
    route_loss(c, &weights, N, &t->route, &balance, &z);
    sum->balance += balance;
    sum->z += z;
    sum->dropped += t->route.dropped;
    return experts_forward(m->experts, p->moe, t->norm2, t->route.kept, t->route.gate, N,
                           &t->experts, out);
}

lplb_status model_forward(model *m, const batch *b, losses *out) {
    const model_config *c = &m->config;
    int64_t N = b->B * c->context, D = c->width;
    *out = (losses){0};
    if (b->B < 1 || b->B > m->max_batch)
        return LPLB_FAIL(LPLB_RANGE, "a micro-batch of %lld sequences, created for at most %lld",
                         (long long)b->B, (long long)m->max_batch);
    for (int64_t i = 0; i < N; i++) {
        if (b->token[i] < 0 || b->token[i] >= c->vocab || b->target[i] >= c->vocab)
            return LPLB_FAIL(LPLB_RANGE, "token %d at position %lld is outside [0, %d)",
                             b->token[i], (long long)i, c->vocab);
        m->position[i] = (int32_t)(i % c->context) - b->first[i];
    }
    m->ops->embed_forward(m->tape[0].in, b->token, m->param + m->layout.embedding, N, D);
    for (int32_t l = 0; l < c->layers; l++) {
        layer_tape *t = &m->tape[l];
        real *next = l + 1 < c->layers ? m->tape[l + 1].in : m->final;
        attention_half(m, l, b);
        m->ops->rmsnorm_forward(t->norm2, t->rstd2, t->middle, m->param + m->layout.layer[l].norm2,
                                N, D, (real)c->norm_eps);
        memcpy(next, t->middle, sizeof(real) * (size_t)(N * D));
        dense_forward(m, l, N, next);
        if (m->layout.layer[l].moe >= 0) LPLB_TRY(moe_forward(m, l, b, next, out));
    }
    m->ops->rmsnorm_forward(m->final_norm, m->final_rstd, m->final, m->param + m->layout.final_norm,
                            N, D, (real)c->norm_eps);
    m->ops->linear_forward(m->logit, m->final_norm, weight_at(m, m->layout.head), N, c->vocab, D,
                           0);
    out->cross_entropy =
        m->ops->cross_entropy(m->logit, b->target, N, c->vocab, (real)(1 / b->tokens));
    return LPLB_OK;
}

/* ---- backward ---- */

/* Gradients of one linear layer, from dy[N][out]: dw += dy^T x, dx = dy w + beta dx. */
static void linear_backward(model *m, int64_t at, const kept *dy, const kept *x, int64_t N,
                            int64_t out, int64_t in, real *dx, real beta) {
    m->ops->linear_backward_weight(m->grad + at, dy, x, N, out, in);
    m->ops->linear_backward_input(dx, dy, weight_at(m, at), N, out, in, beta);
}

/* dnorm += ..., from dstream, the gradient of the layer's output */
static void dense_backward(model *m, int32_t l, int64_t N) {
    const ops *o = m->ops;
    const struct layer_params *p = &m->layout.layer[l];
    layer_tape *t = &m->tape[l];
    int64_t D = m->config.width, F = p->ffn_width;
    if (p->gate < 0) return;
    const kept *d = o->operand(m->operand, m->dstream, N * D);
    o->swiglu_forward(m->hidden, t->gate, t->up, N * F);
    linear_backward(m, p->down, d, m->hidden, N, D, F, m->dhidden, 0);
    o->swiglu_backward(m->dgate, m->dup, m->dhidden, t->gate, t->up, N * F);
    linear_backward(m, p->gate, m->dgate, t->norm2, N, F, D, m->dnorm, 1);
    linear_backward(m, p->up, m->dup, t->norm2, N, F, D, m->dnorm, 1);
}

static lplb_status moe_backward(model *m, int32_t l, const batch *b) {
    const model_config *c = &m->config;
    const struct layer_params *p = &m->layout.layer[l];
    layer_tape *t = &m->tape[l];
    int64_t N = b->B * c->context, D = c->width, E = c->experts;
    LPLB_TRY(experts_backward(m->experts, p->moe, m->dstream, t->route.gate, N, &t->experts,
                              m->dchoice, m->dnorm));
    route_losses weights = losses_of(m, p->moe, b);
    m->ops->route_backward(c, &weights, N, &t->route, m->dchoice, m->dlogit);
    const real *x = m->ops->widen(m->dmixed, t->norm2, N * D);
    gemm_shape weight = {E, D, N, true, false, E, D, D}, input = {N, D, E, false, false, E, D, D};
    m->ops->gemm(&weight, m->dlogit, x, 1, m->grad + p->router);
    m->ops->gemm(&input, m->dlogit, m->param + p->router, 1, m->dnorm);
    return LPLB_OK;
}

static void attention_half_backward(model *m, int32_t l, const batch *b) {
    const model_config *c = &m->config;
    const ops *o = m->ops;
    const struct layer_params *p = &m->layout.layer[l];
    layer_tape *t = &m->tape[l];
    int64_t N = b->B * c->context, D = c->width, d = D / c->heads, kv = d * c->kv_heads;
    linear_backward(m, p->wo, o->operand(m->operand, m->dstream, N * D), t->mixed, N, D, D,
                    m->dmixed, 0);
    o->attention_backward(m->dq, m->dk, m->dv, m->scores, m->dmixed, t->log_sum, t->q, t->k, t->v,
                          b->first, shape_of(m, b->B));
    o->rope(m->dq, m->position, m->rotation, N, c->heads, d, 1);
    o->rope(m->dk, m->position, m->rotation, N, c->kv_heads, d, 1);
    linear_backward(m, p->wq, o->operand(m->operand, m->dq, N * D), t->norm1, N, D, D, m->dnorm, 0);
    linear_backward(m, p->wk, o->operand(m->operand, m->dk, N * kv), t->norm1, N, kv, D, m->dnorm,
                    1);
    linear_backward(m, p->wv, o->operand(m->operand, m->dv, N * kv), t->norm1, N, kv, D, m->dnorm,
                    1);
    o->rmsnorm_backward(m->dstream, m->grad + p->norm1, m->dnorm, t->in, t->rstd1,
                        m->param + p->norm1, N, D);
}

static lplb_status tell_done(const model *m, int32_t layer) {
    return m->layer_done ? m->layer_done(m->layer_done_user, layer) : LPLB_OK;
}

lplb_status model_backward(model *m, const batch *b) {
    const model_config *c = &m->config;
    int64_t N = b->B * c->context, D = c->width;
    linear_backward(m, m->layout.head, m->ops->operand(m->operand, m->logit, N * c->vocab),
                    m->final_norm, N, c->vocab, D, m->dnorm, 0);
    memset(m->dstream, 0, sizeof(real) * (size_t)(N * D));
    m->ops->rmsnorm_backward(m->dstream, m->grad + m->layout.final_norm, m->dnorm, m->final,
                             m->final_rstd, m->param + m->layout.final_norm, N, D);
    LPLB_TRY(tell_done(m, c->layers));
    for (int32_t l = c->layers - 1; l >= 0; l--) {
        const struct layer_params *p = &m->layout.layer[l];
        layer_tape *t = &m->tape[l];
        memset(m->dnorm, 0, sizeof(real) * (size_t)(N * D));
        dense_backward(m, l, N);
        if (p->moe >= 0) LPLB_TRY(moe_backward(m, l, b));
        m->ops->rmsnorm_backward(m->dstream, m->grad + p->norm2, m->dnorm, t->middle, t->rstd2,
                                 m->param + p->norm2, N, D);
        attention_half_backward(m, l, b);
        LPLB_TRY(tell_done(m, l));
    }
    m->ops->embed_backward(m->grad + m->layout.embedding, m->dstream, b->token, N, D);
    return tell_done(m, -1);
}
