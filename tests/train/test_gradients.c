/* Every kind of parameter's gradient against central differences of the loss, in double. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "train/model.h"

typedef struct setting {
    const char *name;
    model_config config;
} setting;

static model_config small(void) {
    model_config c;
    model_config_default(&c);
    c.layers = 2;
    c.width = 16;
    c.heads = 4;
    c.kv_heads = 2;
    c.vocab = 23;
    c.context = 12;
    c.experts = 6;
    c.topk = 2;
    c.expert_width = 10;
    c.init_std = 0.3; /* far from flat */
    c.aux_coeff = 0.1;
    c.z_coeff = 0.05;
    return c;
}

enum { B = 2 };
typedef struct fixture {
    model *m;
    lplb__group *group;
    int32_t token[B * 160], target[B * 160], first[B * 160];
    batch batch;
} fixture;

static void open_fixture(fixture *f, const model_config *config, uint64_t seed) {
    assert_int_equal(lplb__group_self(&f->group), LPLB_OK);
    model_options options = {.max_batch = B, .seed = seed, .solver = LPLB_SOLVER_EXACT};
    if (model_create(config, &options, f->group, &f->m) != LPLB_OK)
        fail_msg("%s", lplb_error_message());
    lplb__rng rng;
    lplb__rng_seed(&rng, seed, 7);
    int64_t T = config->context, N = B * T, counted = 0;
    for (int64_t i = 0; i < N; i++) {
        f->token[i] = (int32_t)lplb__rng_below(&rng, config->vocab);
        f->target[i] = (int32_t)lplb__rng_below(&rng, config->vocab);
        f->first[i] = i % T < 5 ? 0 : i % T < 70 ? 5 : 70; /* documents of a sequence */
        if (i % T == 4 || i % T == 69 || i % T == T - 1) f->target[i] = -1;
        counted += f->target[i] >= 0;
    }
    f->batch = (batch){B, f->token, f->target, f->first, (double)counted, (double)N};
}

static void close_fixture(fixture *f) {
    model_destroy(f->m);
    f->group->table->destroy(f->group);
}

static double total_loss(fixture *f) {
    losses l;
    if (model_forward(f->m, &f->batch, &l) != LPLB_OK) fail_msg("%s", lplb_error_message());
    return l.cross_entropy / f->batch.tokens + (l.balance + l.z) / f->batch.routed;
}

/* A few entries of one tensor. */
static void check_tensor(fixture *f, const char *what, const char *tensor, real *w, const real *g,
                         int64_t items, lplb__rng *rng) {
    for (int i = 0; i < 4; i++) {
        int64_t at = lplb__rng_below(rng, items);
        double keep = (double)w[at], h = 1e-5;
        w[at] = (real)(keep + h);
        double above = total_loss(f);
        w[at] = (real)(keep - h);
        double below = total_loss(f);
        w[at] = (real)keep;
        double slope = (above - below) / (2 * h), error = fabs(slope - (double)g[at]);
        if (error > 1e-7 + 1e-5 * fabs(slope))
            fail_msg("%s, %s[%lld]: gradient %.10g, central difference %.10g", what, tensor,
                     (long long)at, (double)g[at], slope);
    }
}

static void check_model(const char *what, const model_config *config, uint64_t seed) {
    fixture f;
    lplb__rng rng;
    lplb__rng_seed(&rng, seed, 9);
    open_fixture(&f, config, seed);
    model *m = f.m;
    model_zero_gradients(m);
    double loss = total_loss(&f);
    assert_true(isfinite(loss));
    if (model_backward(m, &f.batch) != LPLB_OK) fail_msg("%s", lplb_error_message());
    for (int32_t i = 0; i < m->layout.n_params; i++) {
        const param *p = &m->layout.param[i];
        check_tensor(&f, what, p->name, m->param + p->offset, m->grad + p->offset,
                     p->rows * p->cols, &rng);
    }
    experts *x = m->experts;
    int64_t third = x->expert_items / 3;
    for (int32_t s = 0; s < m->layout.moe_layers * x->local_slots; s++)
        for (int part = 0; part < 3; part++) {
            int64_t at = s * x->expert_items + part * third;
            check_tensor(&f, what, "expert", x->weight + at, x->gradient + at, third, &rng);
        }
    close_fixture(&f);
}

static void test_softmax(void **state) {
    (void)state;
    model_config c = small();
    check_model("softmax", &c, 1);
    c.normalize_gates = 0;
    check_model("softmax, gates as they are", &c, 2);
}

static void test_sigmoid(void **state) {
    (void)state;
    model_config c = small();
    c.router = ROUTER_SIGMOID;
    check_model("sigmoid", &c, 3);
    c.aux = AUX_SEQUENCE;
    check_model("sigmoid, sequence balance", &c, 4);
}

static void test_dense_and_shared(void **state) {
    (void)state;
    model_config c = small();
    c.layers = 3;
    c.dense_layers = 1;
    c.dense_width = 20;
    c.shared_width = 14;
    c.tied = 0;
    c.aux = AUX_BATCH;
    check_model("dense layer, shared expert, untied head", &c, 5);
}

/* Several blocks of queries, the last one not full, and documents that begin inside one. */
static void test_long_context(void **state) {
    (void)state;
    model_config c = small();
    c.context = 2 * ATTENTION_ROWS + 13;
    c.bias_rate = 0.01; /* the selection's bias has no gradient and changes none */
    check_model("attention in blocks", &c, 8);
}

static void test_capacity(void **state) {
    (void)state;
    model_config c = small();
    c.capacity_factor = 0.8;
    check_model("capacity, by probability", &c, 6);
    c.drop = DROP_POSITION;
    check_model("capacity, by position", &c, 7);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_softmax),          cmocka_unit_test(test_sigmoid),
        cmocka_unit_test(test_dense_and_shared), cmocka_unit_test(test_long_context),
        cmocka_unit_test(test_capacity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
