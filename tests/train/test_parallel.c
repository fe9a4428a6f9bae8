/* Training on several ranks, with and without copies of experts, with replicas of the
 * expert-parallel group, equals training on one rank: losses to 1e-9 over the steps, in double.
 * Every rank computes the reference for itself. Run under mpirun with 1, 2 or 4 ranks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

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
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_expert_parallel),
        cmocka_unit_test(test_replicas),
        cmocka_unit_test(test_routers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(int argc, char **argv) { return run_on_ranks(argc, argv, run_all); }
