/* Weights and optimizer state that move between ranks during training, for every way of placing
 * copies, leave the training as it is: losses equal one rank's (1e-9 over 100 steps in double, 1e-4
 * over 20 in float), and copies of an expert stay identical to the bit. Run under mpirun. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "fixture.h"
#include "train/rebalance.h"

#ifdef LPLB_TRAIN_F64
enum { STEPS = 100 };
static const double loss_bound = 1e-9;
#else
enum { STEPS = 20 };
static const double loss_bound = 1e-4;
#endif
enum { SEQUENCES = 8, ALGORITHMS = 3 };

static double alone[STEPS], first_norm;

static int algorithms = ALGORITHMS; /* that this build can place with */

static void train_alone(void) {
    trainer_config c = small_config(STEPS, SEQUENCES);
    lplb__group *self;
    trainer *t;
    must(lplb__group_self(&self));
    must(trainer_create(&c, self, &text, &t));
    for (int i = 0; i < STEPS; i++) {
        step_report r;
        must(trainer_step(t, &r));
        alone[i] = r.loss;
        if (i == 0) first_norm = r.grad_norm;
    }
    if (trainer_can_rebalance(t, LPLB_PLACE_SEARCH) == LPLB_UNSUPPORTED) algorithms--;
    trainer_destroy(t);
    self->table->destroy(self);
}

/* Sends every slot's weights and moments to all and compares slots of one expert. */
static void check_copies(const trainer *t) {
    const experts *x = t->model->experts;
    const lplb_placement *p = x->placement;
    int64_t row = x->local_slots * x->expert_items;
    real *all = lplb__malloc(sizeof(real) * (size_t)(row * x->group->size));
    const real *states[] = {x->weight, t->optimizer->expert_m1, t->optimizer->expert_m2};
    assert_non_null(all);
    for (int32_t l = 0; l < p->layers; l++)
        for (int s = 0; s < 3; s++) {
            must(x->group->table->all_gather(x->group, states[s] + l * row, all,
                                             row * (int64_t)sizeof(real)));
            const int32_t *map = p->physical_to_logical + (int64_t)l * p->slots;
            for (int32_t a = 0; a < p->slots; a++)
                for (int32_t b = 0; b < a; b++)
                    if (map[a] >= 0 && map[a] == map[b])
                        assert_memory_equal(all + a * x->expert_items, all + b * x->expert_items,
                                            sizeof(real) * (size_t)x->expert_items);
        }
    lplb__free(all);
}

/* Every 7 steps a new placement by the next algorithm. */
static const lplb_place_algorithm algorithm[ALGORITHMS] = {LPLB_PLACE_EPLB, LPLB_PLACE_TOPOLOGY,
                                                           LPLB_PLACE_SEARCH};

static void train_moving(int32_t expert_ranks, int32_t redundant, int first, int64_t *moved) {
    trainer_config c = small_config(STEPS, SEQUENCES);
    trainer *t;
    c.micro_batch = SEQUENCES / world->size;
    c.expert_ranks = expert_ranks;
    c.redundant = redundant;
    must(trainer_create(&c, world, &text, &t));
    for (int i = 0; i < STEPS; i++) {
        step_report r;
        must(trainer_step(t, &r));
        double error = fabs(r.loss - alone[i]) / alone[i];
        if (error > loss_bound || (i == 0 && fabs(r.grad_norm - first_norm) > 1e-5 * first_norm))
            fail_msg("algorithm %d, step %d: loss %.15g, norm %.9g; one rank has %.15g, %.9g",
                     first, i, r.loss, r.grad_norm, alone[i], first_norm);
        if (i % 7 != 3) continue;
        rebalance_report moves;
        must(trainer_rebalance(t, algorithm[(first + i / 7) % algorithms], &moves));
        *moved += moves.moved_slots;
        check_copies(t);
    }
    trainer_destroy(t);
}

static void test_every_mode(void **state) {
    (void)state;
    int64_t moved = 0;
    int runs = STEPS > 20 ? 1 : algorithms; /* all take turns in the long run */
    for (int a = 0; a < runs; a++) train_moving(0, world->size == 4 ? 2 : 1, a, &moved);
    if (world->size > 1) assert_true(moved > 0);
}

static void test_replicas(void **state) {
    (void)state;
    int64_t moved = 0;
    if (world->size % 2) skip();
    train_moving(world->size / 2, 1, 1, &moved);
}

static int run_all(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_mode),
        cmocka_unit_test(test_replicas),
    };
    train_alone();
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(int argc, char **argv) { return run_on_ranks(argc, argv, run_all); }
