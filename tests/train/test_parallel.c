/* Training on several ranks, with and without copies of experts, with replicas of the
 * expert-parallel group, equals training on one rank: losses to 1e-9 over the steps, in double.
 * Every rank computes the reference for itself. Run under mpirun with 1, 2 or 4 ranks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "base/rng.h"
#include "fixture.h"

enum { STEPS = 12, SEQUENCES = 8 };

static void train(const trainer_config *config, lplb__group *group, step_report *report) {
    trainer *t;
    must(trainer_create(config, group, &text, &t));
    for (int i = 0; i < STEPS; i++) must(trainer_step(t, &report[i]));
    trainer_destroy(t);
}

static void compare(const char *what, trainer_config config) {
    step_report alone[STEPS], together[STEPS];
    lplb__group *self;
    trainer_config reference = config;
    reference.micro_batch = SEQUENCES; /* one balance-loss scope, as all ranks have together */
    reference.expert_ranks = reference.redundant = 0;
    must(lplb__group_self(&self));
    train(&reference, self, alone);
    config.micro_batch = SEQUENCES / world->size;
    train(&config, world, together);
    for (int i = 0; i < STEPS; i++) {
        double loss = fabs(together[i].loss - alone[i].loss) / alone[i].loss;
        double norm = fabs(together[i].grad_norm - alone[i].grad_norm) / alone[i].grad_norm;
        if (loss > 1e-9 || norm > 1e-7)
            fail_msg("%s, step %d: loss %.15g, norm %.12g; one rank has %.15g, %.12g", what, i,
                     together[i].loss, together[i].grad_norm, alone[i].loss, alone[i].grad_norm);
    }
    assert_true(alone[STEPS - 1].loss < alone[0].loss);
    self->table->destroy(self);
}

static void test_expert_parallel(void **state) {
    (void)state;
    trainer_config c = small_config(STEPS, SEQUENCES);
    compare("experts over the ranks", c);
    c.redundant = 1;
    compare("a copy more on each rank", c);
    c.redundant = 2;
    c.solver = LPLB_SOLVER_EVEN;
    compare("two copies more, even split", c);
    c.solver = LPLB_SOLVER_EXACT;
    c.locality = true;
    compare("two copies more, local first", c);
}

/* Replicas have summed the same numbers in the same order: all they have is equal to the bit. */
static void check_replicas(const trainer *t) {
    const experts *x = t->model->experts;
    const lplb__group *replica = t->grid.replica;
    int64_t items = t->model->layout.items;
    int64_t expert_items = (int64_t)x->placement->layers * x->local_slots * x->expert_items;
    const struct {
        const real *state;
        int64_t items;
    } part[] = {{t->model->param, items},    {t->optimizer->m1, items},
                {t->optimizer->m2, items},   {t->model->grad, items},
                {x->weight, expert_items},   {t->optimizer->expert_m1, expert_items},
                {x->gradient, expert_items}, {t->optimizer->expert_m2, expert_items}};
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        int64_t bytes = part[i].items * (int64_t)sizeof(real);
        char *all = lplb__malloc((size_t)(bytes * replica->size));
        assert_non_null(all);
        must(replica->table->all_gather(t->grid.replica, part[i].state, all, bytes));
        for (int r = 1; r < replica->size; r++)
            assert_memory_equal(all, all + r * bytes, (size_t)bytes);
        lplb__free(all);
    }
}

static void test_equal_replicas(void **state) {
    (void)state;
    trainer_config c = small_config(STEPS, SEQUENCES);
    trainer *t;
    c.expert_ranks = world->size > 1 ? world->size / 2 : 1;
    c.redundant = 1;
    c.mode = MODE_EPLB;
    c.rebalance_every = 4;
    c.micro_batch = SEQUENCES / world->size;
    must(trainer_create(&c, world, &text, &t));
    for (int i = 0; i < STEPS; i++) {
        step_report r;
        must(trainer_step(t, &r));
        check_replicas(t);
    }
    trainer_destroy(t);
}

/* ---- tokens in any order ---- */

enum { TOKENS = 40 };

typedef struct tokens {
    real in[TOKENS * 32], dout[TOKENS * 32], gate[TOKENS * 8];
    int32_t kept[TOKENS * 8];
    real out[TOKENS * 32], din[TOKENS * 32], dgate[TOKENS * 8];
} tokens;

/* Through the experts of layer 0 and back; gradient: of this rank's slots. */
static void pass(trainer *t, tokens *v, real *gradient) {
    experts *x = t->model->experts;
    memset(v->out, 0, sizeof v->out);
    memset(v->din, 0, sizeof v->din);
    model_zero_gradients(t->model);
    must(experts_forward(x, 0, (const kept *)(const void *)v->in, v->kept, v->gate, TOKENS,
                         &t->model->tape[0].experts, v->out));
    must(experts_backward(x, 0, v->dout, v->gate, TOKENS, &t->model->tape[0].experts, v->dgate,
                          v->din));
    memcpy(gradient, x->gradient, sizeof(real) * (size_t)(x->local_slots * x->expert_items));
}

static void assert_near(const real *a, const real *b, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        assert_true(fabs((double)a[i] - (double)b[i]) <= 1e-11 * (1 + fabs((double)b[i])));
}

static void test_any_order(void **state) {
    (void)state;
    static tokens v, w;
    trainer_config c = small_config(STEPS, SEQUENCES);
    trainer *t;
    lplb__rng rng;
    int32_t order[TOKENS];
    c.micro_batch = SEQUENCES / world->size;
    must(trainer_create(&c, world, &text, &t));
    int64_t D = c.model.width, K = c.model.topk;
    int64_t items = t->model->experts->local_slots * t->model->experts->expert_items;
    real *plain = lplb__malloc(sizeof(real) * (size_t)items);
    real *shuffled = lplb__malloc(sizeof(real) * (size_t)items);
    assert_true(plain && shuffled && D <= 32 && K <= 8);
    lplb__rng_seed(&rng, 3, (uint64_t)world->rank);
    for (int64_t i = 0; i < TOKENS * D; i++) {
        v.in[i] = (real)lplb__rng_normal(&rng);
        v.dout[i] = (real)lplb__rng_normal(&rng);
    }
    for (int64_t i = 0; i < TOKENS * K; i++) { /* uneven, and some dropped */
        int64_t e = lplb__rng_below(&rng, (uint64_t)(1 + lplb__rng_below(&rng, 8)));
        v.kept[i] = i % 11 == 3 ? -1 : (int32_t)((e + i % K * 3) % 8);
        v.gate[i] = v.kept[i] < 0 ? 0 : (real)lplb__rng_uniform(&rng);
    }
    for (int32_t i = 0; i < TOKENS; i++) {
        int32_t j = (int32_t)lplb__rng_below(&rng, (uint64_t)i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    for (int32_t i = 0; i < TOKENS; i++) {
        memcpy(w.in + i * D, v.in + order[i] * D, sizeof(real) * (size_t)D);
        memcpy(w.dout + i * D, v.dout + order[i] * D, sizeof(real) * (size_t)D);
        memcpy(w.kept + i * K, v.kept + order[i] * K, sizeof(int32_t) * (size_t)K);
        memcpy(w.gate + i * K, v.gate + order[i] * K, sizeof(real) * (size_t)K);
    }
    pass(t, &v, plain);
    pass(t, &w, shuffled);
    for (int32_t i = 0; i < TOKENS; i++) {
        assert_near(w.out + i * D, v.out + order[i] * D, D);
        assert_near(w.din + i * D, v.din + order[i] * D, D);
        assert_near(w.dgate + i * K, v.dgate + order[i] * K, K);
    }
    assert_near(shuffled, plain, items);
    lplb__free(plain);
    lplb__free(shuffled);
    trainer_destroy(t);
}

static void test_replicas(void **state) {
    (void)state;
    trainer_config c = small_config(STEPS, SEQUENCES);
    c.expert_ranks = world->size > 1 ? world->size / 2 : 1;
    compare("replicas of the expert-parallel group", c);
    c.redundant = 1;
    compare("replicas with copies", c);
}

static void test_routers(void **state) {
    (void)state;
    trainer_config c = small_config(STEPS, SEQUENCES);
    c.redundant = 1;
    c.model.router = ROUTER_SIGMOID;
    c.model.aux = AUX_SEQUENCE;
    c.model.bias_rate = 1e-2;
    c.model.shared_width = 16;
    c.model.dense_layers = 1;
    c.model.dense_width = 40;
    compare("sigmoid router with selection bias, shared expert, dense layer", c);
}

/* Collectives with sizes that do not divide, against sums known in advance. */
static void test_sums(void **state) {
    (void)state;
    for (int64_t n = 0; n < 23; n++) {
        double x[23];
        int64_t y[23];
        for (int64_t i = 0; i < n; i++) {
            x[i] = (double)(1 << world->rank) + (double)i; /* a double count would show */
            y[i] = (int64_t)1 << (10 * world->rank);
        }
        must(world->table->all_reduce_sum(world, x, n, ELEMENT_DOUBLE));
        must(world->table->all_reduce_sum(world, y, n, ELEMENT_INT64));
        for (int64_t i = 0; i < n; i++) {
            int64_t sum = 0;
            for (int r = 0; r < world->size; r++) sum += (int64_t)1 << (10 * r);
            assert_true(x[i] == (double)((1 << world->size) - 1) + (double)(i * world->size));
            assert_true(y[i] == sum);
        }
    }
}

static int run_all(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums),           cmocka_unit_test(test_expert_parallel),
        cmocka_unit_test(test_replicas),       cmocka_unit_test(test_routers),
        cmocka_unit_test(test_equal_replicas), cmocka_unit_test(test_any_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(int argc, char **argv) { return run_on_ranks(argc, argv, run_all); }
