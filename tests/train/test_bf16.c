/* Products of bf16: gradients near those of float, what is kept is always the weights rounded,
 * copies and replicas identical to the bit, several ranks near one, resuming bit-equal, and
 * checkpoints that go from float to bf16 and back. Run under mpirun; skipped where the processor or
 * the build has no bf16. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fixture.h"
#include "train/checkpoint.h"

enum { STEPS = 14, STOP = 6, SEQUENCES = 8 };

static bool available;

static trainer_config config_of(kept_kind kind, int ranks) {
    trainer_config c = small_config(STEPS, SEQUENCES);
    c.micro_batch = SEQUENCES / ranks;
    c.kept = kind;
    c.model.shared_width = 16;
    c.model.dense_layers = 1;
    c.model.layers = 3;
    c.model.dense_width = 40;
    return c;
}

static trainer *open_trainer(const trainer_config *c, lplb__group *group) {
    trainer *t;
    must(trainer_create(c, group, &text, &t));
    return t;
}

static double relative(const real *a, const real *b, int64_t n) {
    double difference = 0, sum = 0;
    for (int64_t i = 0; i < n; i++) {
        difference += pow((double)a[i] - (double)b[i], 2);
        sum += pow((double)b[i], 2);
    }
    return sqrt(difference) / sqrt(sum);
}

/* To nearest, ties to even, by looking for it: what truncation leaves, or the next above. */
static uint16_t nearest(float x) {
    uint32_t bits, below, above;
    float low, high;
    memcpy(&bits, &x, sizeof bits);
    below = bits & 0xffff0000;
    above = below + 0x10000;
    memcpy(&low, &below, sizeof low);
    memcpy(&high, &above, sizeof high);
    double down = fabs((double)x - (double)low), up = fabs((double)high - (double)x);
    bool even = !(below >> 16 & 1);
    return (uint16_t)((down < up || (down == up && even) ? below : above) >> 16);
}

static void test_rounding(void **state) {
    (void)state;
    const ops *o;
    real special[] = {0, -0.0f, 1, -1, 3.3895314e38f, 1e-40f, INFINITY, -INFINITY, NAN};
    uint16_t kept_special[9];
    enum { MANY = 4000 };
    static real x[MANY], back[MANY];
    static uint16_t y[MANY];
    if (!available) skip();
    must(ops_cpu(KEPT_BF16, &o));
    for (int i = 0; i < MANY; i++) {
        uint32_t bits = 0x3f800000u + (uint32_t)i * 0x2a51u; /* ties and all that lies between */
        memcpy(&x[i], &bits, sizeof bits);
        if (i % 2) x[i] = -x[i];
    }
    o->keep((kept *)(void *)y, x, MANY);
    o->widen(back, (kept *)(void *)y, MANY);
    for (int i = 0; i < MANY; i++) {
        assert_int_equal(y[i], nearest((float)x[i]));
        assert_true(fabs((double)back[i] - (double)x[i]) <= fabs((double)x[i]) / 256);
    }
    o->keep((kept *)(void *)kept_special, special, 9);
    o->widen(back, (kept *)(void *)kept_special, 9);
    for (int i = 0; i < 4; i++) assert_true(back[i] == special[i]);
    assert_true(isinf(back[6]) && back[7] == -INFINITY && isnan(back[8]));
}

/* All experts for every token, so that no choice can turn on a rounding. */
static void test_gradients(void **state) {
    (void)state;
    if (!available) skip();
    lplb__group *self;
    must(lplb__group_self(&self));
    trainer *t[2];
    for (int kind = 0; kind < 2; kind++) {
        trainer_config c = config_of((kept_kind)kind, 1);
        step_report r;
        c.model.topk = c.model.experts;
        t[kind] = open_trainer(&c, self);
        must(trainer_step(t[kind], &r));
    }
    const model *a = t[0]->model, *b = t[1]->model;
    for (int32_t i = 0; i < a->layout.n_params; i++) {
        const param *p = &a->layout.param[i];
        double error = relative(b->grad + p->offset, a->grad + p->offset, p->rows * p->cols);
        if (error > 0.03 || error == 0) fail_msg("gradient of %s: %.3g off", p->name, error);
    }
    double error = relative(b->experts->gradient, a->experts->gradient,
                            a->layout.moe_layers * a->config.experts * a->layout.expert_items);
    if (error > 0.03 || error == 0) fail_msg("gradient of the experts: %.3g off", error);
    trainer_destroy(t[0]);
    trainer_destroy(t[1]);
    self->table->destroy(self);
}

static void check_rounded(const trainer *t) {
    const model *m = t->model;
    const experts *x = m->experts;
    const uint16_t *of_params = (const uint16_t *)(const void *)m->weight;
    const uint16_t *of_experts = (const uint16_t *)(const void *)x->kept_weight;
    for (int32_t i = 0; i < m->layout.n_params; i++)
        for (int64_t j = 0; j < m->layout.param[i].rows * m->layout.param[i].cols; j++) {
            int64_t at = m->layout.param[i].offset + j;
            assert_int_equal(of_params[at], nearest((float)m->param[at]));
        }
    int64_t n = (int64_t)x->placement->layers * x->local_slots * x->expert_items;
    for (int64_t i = 0; i < n; i++) assert_int_equal(of_experts[i], nearest((float)x->weight[i]));
}

/* Copies within the expert-parallel group, and replicas of the group: the same bits. */
static void check_copies(const trainer *t) {
    const experts *x = t->model->experts;
    const lplb_placement *p = x->placement;
    int64_t row = x->local_slots * x->expert_items, items = t->model->layout.items;
    real *all = lplb__malloc(sizeof(real) * (size_t)((row + items) * world->size));
    assert_non_null(all);
    for (int32_t l = 0; l < p->layers; l++) {
        must(x->group->table->all_gather(x->group, x->weight + l * row, all,
                                         row * (int64_t)sizeof(real)));
        const int32_t *map = p->physical_to_logical + (int64_t)l * p->slots;
        for (int32_t a = 0; a < p->slots; a++)
            for (int32_t b = 0; b < a; b++)
                if (map[a] >= 0 && map[a] == map[b])
                    assert_memory_equal(all + a * x->expert_items, all + b * x->expert_items,
                                        sizeof(real) * (size_t)x->expert_items);
    }
    must(world->table->all_gather(world, t->model->param, all, items * (int64_t)sizeof(real)));
    for (int r = 1; r < world->size; r++)
        assert_memory_equal(all, all + r * items, sizeof(real) * (size_t)items);
    lplb__free(all);
}

/* Near one rank and near float; not equal, for a sum in another order may round otherwise. */
static void test_ranks(void **state) {
    (void)state;
    if (!available) skip();
    lplb__group *self;
    double loss[3][STEPS];
    must(lplb__group_self(&self));
    for (int kind = 0; kind < 3; kind++) { /* float on one rank; bf16 on one rank; on all */
        bool together = kind == 2;
        trainer_config c = config_of(kind ? KEPT_BF16 : KEPT_REAL, together ? world->size : 1);
        if (together && world->size > 1) {
            c.redundant = 1;
            c.mode = MODE_EPLB;
            c.rebalance_every = 5;
            c.expert_ranks = world->size > 2 ? world->size / 2 : world->size;
        }
        trainer *t = open_trainer(&c, together ? world : self);
        for (int i = 0; i < STEPS; i++) {
            step_report r;
            must(trainer_step(t, &r));
            loss[kind][i] = r.loss;
            if (kind == 1 && i % 5 == 0) check_rounded(t);
            if (together && i % 3 == 0) {
                check_rounded(t);
                check_copies(t);
            }
        }
        trainer_destroy(t);
    }
    for (int i = 0; i < STEPS; i++) {
        double of_float = fabs(loss[1][i] - loss[0][i]) / loss[0][i];
        double of_ranks = fabs(loss[2][i] - loss[1][i]) / loss[1][i];
        if (of_float > 1e-2 || of_ranks > (i ? 1e-2 : 1e-4))
            fail_msg("step %d: float %.7g, bf16 %.7g, on %d ranks %.7g", i, loss[0][i], loss[1][i],
                     world->size, loss[2][i]);
    }
    assert_true(loss[1][STEPS - 1] < loss[1][0]);
    self->table->destroy(self);
}

static void same_weights(const trainer *a, const trainer *b) {
    const experts *x = a->model->experts, *y = b->model->experts;
    assert_memory_equal(a->model->param, b->model->param,
                        sizeof(real) * (size_t)a->model->layout.items);
    assert_memory_equal(
        x->weight, y->weight,
        sizeof(real) * (size_t)(x->placement->layers * (int64_t)x->local_slots * x->expert_items));
}

static void make_folder(char *folder, size_t bytes) {
    if (world->rank == 0) {
        snprintf(folder, bytes, "/tmp/lplb-bf16-%ld", (long)getpid());
        assert_int_equal(mkdir(folder, 0700), 0);
    }
    must(world->table->broadcast(world, folder, (int64_t)bytes, 0));
}

static void test_checkpoints(void **state) {
    (void)state;
    char folder[64] = "", command[100];
    double straight[STEPS];
    step_report r;
    if (!available) skip();
    make_folder(folder, sizeof folder);
    trainer_config c = config_of(KEPT_BF16, world->size), of_float = config_of(KEPT_REAL, 1);
    of_float.micro_batch = c.micro_batch;
    trainer *a = open_trainer(&c, world), *b = open_trainer(&c, world);
    trainer *f = open_trainer(&of_float, world);
    while (a->step < STEPS) {
        if (a->step == STOP) must(checkpoint_save(a, folder));
        must(trainer_step(a, &r));
        straight[r.step] = r.loss;
    }
    must(checkpoint_load(b, folder, 0, true, NULL));
    must(checkpoint_load(f, folder, 0, true, NULL));
    same_weights(f, b);
    while (b->step < STEPS) {
        must(trainer_step(b, &r));
        assert_true(r.loss == straight[r.step]);
    }
    same_weights(a, b);
    /* in float for a step, and back */
    must(trainer_step(f, &r));
    assert_true(fabs(r.loss - straight[STOP]) < 1e-2 * straight[STOP]);
    must(checkpoint_save(f, folder));
    must(checkpoint_load(b, folder, 0, true, NULL));
    same_weights(f, b);
    check_rounded(b);
    must(trainer_step(b, &r));
    assert_true(fabs(r.loss - straight[STOP + 1]) < 1e-2 * straight[STOP + 1]);
    trainer_destroy(a);
    trainer_destroy(b);
    trainer_destroy(f);
    must(world->table->barrier(world));
    snprintf(command, sizeof command, "rm -r %s", folder);
    if (world->rank == 0) assert_int_equal(system(command), 0);
}

static int run_all(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_ranks),
        cmocka_unit_test(test_checkpoints),
    };
    available = gemm_bf16_check() == LPLB_OK;
    if (!available && world->rank == 0) print_message("skipped: %s\n", lplb_error_message());
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(int argc, char **argv) { return run_on_ranks(argc, argv, run_all); }
