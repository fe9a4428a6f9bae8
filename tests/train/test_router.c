/* The router against its definitions, worked out again from its scores: selection with and without
 * bias, balance losses over a sequence, a micro-batch and all ranks (Fedus et al., 2021), z loss
 * (Zoph et al., 2022), bias update (Wang et al., 2024). Run under mpirun. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "base/rng.h"
#include "fixture.h"
#include "train/router.h"

enum { N = 24, E = 6, K = 2, SEQUENCES = 8, STEPS = 4, MOST = 64 };

/* ---- selection ---- */

typedef struct storage {
    real logit[N * E], score[N * E], log_sum[N], gate[N * K];
    int32_t choice[N * K], kept[N * K], order[N * K];
    int64_t count[E];
} storage;

static routing routing_of(storage *s) {
    return (routing){.logit = s->logit,
                     .score = s->score,
                     .log_sum = s->log_sum,
                     .gate = s->gate,
                     .choice = s->choice,
                     .kept = s->kept,
                     .count = s->count,
                     .order = s->order};
}

static model_config config_of(int router) {
    model_config c;
    model_config_default(&c);
    c.experts = E;
    c.topk = K;
    c.router = router;
    return c;
}

/* The bias chooses; the gates are the scores without it. An expert is chosen if fewer than K others
 * are ahead of it: higher, or as high and of lower number. */
static void test_selection(void **state) {
    (void)state;
    static storage s;
    lplb__rng rng;
    for (uint64_t seed = 0; seed < 60; seed++) {
        model_config c = config_of(seed % 2 ? ROUTER_SIGMOID : ROUTER_SOFTMAX);
        real bias[E];
        int64_t count[E] = {0};
        lplb__rng_seed(&rng, seed, 3);
        for (int i = 0; i < N * E; i++) s.logit[i] = (real)lplb__rng_below(&rng, 4);
        for (int i = 0; i < E; i++) bias[i] = (real)(0.25 * (double)lplb__rng_below(&rng, 3));
        bool biased = seed % 3 != 0;
        routing r = routing_of(&s);
        route_forward(&c, biased ? bias : NULL, N, &r);
        for (int n = 0; n < N; n++) {
            double sum = 0;
            for (int k = 0; k < K; k++) sum += (double)s.score[n * E + s.choice[n * K + k]];
            for (int e = 0; e < E; e++) {
                int ahead = 0, at = -1;
                real own = s.score[n * E + e] + (biased ? bias[e] : 0);
                for (int i = 0; i < E; i++) {
                    real other = s.score[n * E + i] + (biased ? bias[i] : 0);
                    ahead += other > own || (other == own && i < e);
                }
                for (int k = 0; k < K; k++)
                    if (s.choice[n * K + k] == e) at = k;
                assert_int_equal(at, ahead < K ? ahead : -1);
                if (at < 0) continue;
                count[e]++;
                double gate = (double)s.score[n * E + e] / sum;
                assert_true(fabs((double)s.gate[n * K + at] - gate) < 1e-12);
            }
        }
        assert_memory_equal(count, s.count, sizeof count);
    }
}

/* Uniform probabilities, whatever was chosen: the balance loss of a token is its coefficient. */
static void test_uniform(void **state) {
    (void)state;
    static storage s;
    model_config c = config_of(ROUTER_SOFTMAX);
    c.aux_coeff = 0.03;
    c.z_coeff = 0.5;
    memset(s.logit, 0, sizeof s.logit);
    routing r = routing_of(&s);
    route_forward(&c, NULL, N, &r);
    real slope[E];
    for (int e = 0; e < E; e++) slope[e] = (real)(c.aux_coeff * E * (double)s.count[e] / (N * K));
    route_losses weights = {.slope = slope, .scope_tokens = N, .inverse_tokens = 1};
    double balance, z;
    route_loss(&c, &weights, N, &r, &balance, &z);
    assert_true(fabs(balance / N - c.aux_coeff) < 1e-12);
    assert_true(fabs(z / N - c.z_coeff * pow(log(E), 2)) < 1e-12);
}

static void test_bias_update(void **state) {
    (void)state;
    lplb__rng rng;
    for (uint64_t seed = 0; seed < 200; seed++) {
        int64_t count[E], total = 0;
        real bias[E], before[E];
        lplb__rng_seed(&rng, seed, 4);
        for (int e = 0; e < E; e++) {
            total += count[e] = (int64_t)lplb__rng_below(&rng, 5);
            before[e] = bias[e] = (real)lplb__rng_uniform(&rng);
        }
        route_update_bias(bias, count, E, 0.01);
        for (int e = 0; e < E; e++) {
            double away = (double)total / E - (double)count[e];
            double step = count[e] * E == total ? 0 : away > 0 ? 0.01 : -0.01;
            assert_true(fabs((double)(bias[e] - before[e]) - step) < 1e-12);
        }
    }
}

/* ---- losses of a step over ranks ---- */

typedef struct seen {
    double balance, z;   /* sums over this rank's tokens and layers */
    int64_t count[MOST]; /* [layers][E] choices of the step on this rank */
} seen;

/* The balance loss of the tokens of one scope: coeff * E * sum_i f_i P_i for each of them. counts:
 * of the choices that f is made of, out of `choices`. */
static double balance_of(const model_config *c, const routing *r, int64_t from, int64_t tokens,
                         const int64_t *count, int64_t choices) {
    double sum = 0;
    for (int32_t i = 0; i < c->experts; i++) {
        double p = 0;
        for (int64_t n = from; n < from + tokens; n++) {
            double all = 0;
            for (int32_t j = 0; j < c->experts; j++) all += (double)r->score[n * c->experts + j];
            p += (double)r->score[n * c->experts + i] / all;
        }
        sum += (double)count[i] / (double)choices * p; /* P_i times the tokens */
    }
    return c->aux_coeff * c->experts * sum;
}

static void count_scope(const model_config *c, const routing *r, int64_t from, int64_t tokens,
                        int64_t *count) {
    memset(count, 0, sizeof *count * (size_t)c->experts);
    for (int64_t i = from * c->topk; i < (from + tokens) * c->topk; i++) count[r->choice[i]]++;
}

static lplb_status look(trainer *t, const batch *b, void *user) {
    seen *s = user;
    const model_config *c = &t->model->config;
    lplb__group *all = t->grid.world;
    int64_t T = c->context, tokens = b->B * T, count[MOST];
    for (int32_t l = 0; l < c->layers; l++) {
        const routing *r = &t->model->tape[l].route;
        count_scope(c, r, 0, tokens, count);
        for (int32_t e = 0; e < c->experts; e++) s->count[l * c->experts + e] += count[e];
        for (int64_t n = 0; n < tokens; n++) {
            double sum = 0;
            for (int32_t e = 0; e < c->experts; e++)
                sum += exp((double)r->logit[n * c->experts + e]);
            s->z += c->z_coeff * pow(log(sum), 2);
        }
        if (c->aux == AUX_SEQUENCE)
            for (int64_t i = 0; i < b->B; i++) {
                count_scope(c, r, i * T, T, count);
                s->balance += balance_of(c, r, i * T, T, count, T * c->topk);
            }
        if (c->aux == AUX_BATCH) s->balance += balance_of(c, r, 0, tokens, count, tokens * c->topk);
        if (c->aux != AUX_GLOBAL) continue;
        LPLB_TRY(all->table->all_reduce_sum(all, count, c->experts, ELEMENT_INT64));
        s->balance += balance_of(c, r, 0, tokens, count, all->size * tokens * c->topk);
    }
    return LPLB_OK;
}

static void check_bias(const trainer *t, const seen *own, const real *before) {
    const model_config *c = &t->model->config;
    int64_t count[MOST];
    memcpy(count, own->count, sizeof count);
    must(world->table->all_reduce_sum(world, count, c->layers * c->experts, ELEMENT_INT64));
    for (int32_t l = 0; l < c->layers; l++) {
        int64_t total = 0;
        for (int32_t e = 0; e < c->experts; e++) total += count[l * c->experts + e];
        for (int32_t e = 0; e < c->experts; e++) {
            int64_t at = l * c->experts + e, away = total - count[at] * c->experts;
            double step = c->bias_rate * (double)((away > 0) - (away < 0));
            assert_true(fabs((double)(t->model->bias[at] - before[at]) - step) < 1e-12);
        }
    }
}

static void check_losses(trainer_config *c) {
    trainer *t;
    real before[MOST];
    c->global_batch = SEQUENCES * 2; /* two micro-batches a rank and more */
    c->micro_batch = SEQUENCES / world->size;
    must(trainer_create(c, world, &text, &t));
    assert_true(c->model.layers * c->model.experts <= MOST);
    for (int i = 0; i < STEPS; i++) {
        seen s = {0};
        step_report r;
        t->after_forward = look;
        t->after_forward_user = &s;
        memcpy(before, t->model->bias, sizeof(real) * (size_t)(c->model.layers * c->model.experts));
        must(trainer_step(t, &r));
        double sums[2] = {s.balance, s.z}, tokens = (double)(c->global_batch * c->model.context);
        must(world->table->all_reduce_sum(world, sums, 2, ELEMENT_DOUBLE));
        if (fabs(r.balance - sums[0] / tokens) > 1e-11 || fabs(r.z - sums[1] / tokens) > 1e-11)
            fail_msg("aux %d, step %d: balance %.12g, z %.12g; by definition %.12g, %.12g",
                     (int)c->model.aux, i, r.balance, r.z, sums[0] / tokens, sums[1] / tokens);
        assert_true(r.balance > 0 && r.z > 0);
        if (c->model.bias_rate > 0) check_bias(t, &s, before);
    }
    trainer_destroy(t);
}

static void test_losses(void **state) {
    (void)state;
    static const int scope[] = {AUX_SEQUENCE, AUX_BATCH, AUX_GLOBAL};
    for (int i = 0; i < 3; i++) {
        trainer_config c = small_config(STEPS, SEQUENCES);
        c.model.aux = scope[i];
        c.model.router = i == 1 ? ROUTER_SIGMOID : ROUTER_SOFTMAX;
        c.model.aux_coeff = 0.05;
        c.model.z_coeff = 0.01;
        c.model.bias_rate = i == 2 ? 0 : 1e-3;
        c.model.capacity_factor = i == 0 ? 0.9 : 0; /* counts are those before dropping */
        check_losses(&c);
    }
}

static int run_all(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_selection),
        cmocka_unit_test(test_uniform),
        cmocka_unit_test(test_bias_update),
        cmocka_unit_test(test_losses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(int argc, char **argv) { return run_on_ranks(argc, argv, run_all); }
