/* Weights and optimizer state that move between ranks during training leave the training as it is:
 * losses equal one rank's (1e-9 over 100 steps in double, 1e-4 over 20 in float), the gradient of
 * every parameter too (1e-5 in the first step, in double also in the last), whatever places the
 * copies, and for any moves at all, some of them thrown away; copies of an expert stay
 * identical to the bit. Run under mpirun. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "base/rng.h"
#include "fixture.h"

#ifdef LPLB_TRAIN_F64
enum { STEPS = 100 };
static const double loss_bound = 1e-9;
#else
enum { STEPS = 20 };
static const double loss_bound = 1e-4;
#endif
enum { SEQUENCES = 8 };

static double alone[STEPS], alone_norm[STEPS];

/* Gradients of one rank alone in the first and the last step: of replicated parameters as in the
 * layout, of experts by [layer][expert]. */
enum { FIRST, LAST, KEPT };
static real *alone_grad[KEPT], *alone_expert[KEPT];

static void keep_gradients(const trainer *t, int which) {
    const experts *x = t->model->experts;
    int64_t items = t->model->layout.items;
    int64_t expert_items = (int64_t)x->placement->layers * x->local_slots * x->expert_items;
    must(LPLB_CALLOC(alone_grad[which], items));
    must(LPLB_CALLOC(alone_expert[which], expert_items)); /* slots are experts on one rank */
    memcpy(alone_grad[which], t->model->grad, sizeof(real) * (size_t)items);
    memcpy(alone_expert[which], x->gradient, sizeof(real) * (size_t)expert_items);
    double sum = 0; /* the norm counts every logical expert once */
    for (int64_t i = 0; i < items; i++) sum += pow((double)t->model->grad[i], 2);
    for (int64_t i = 0; i < expert_items; i++) sum += pow((double)x->gradient[i], 2);
    double norm = alone_norm[t->step - 1];
    assert_true(fabs(norm - sqrt(sum)) <= 1e-5 * norm);
}

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
        alone_norm[i] = r.grad_norm;
        if (i == 0) keep_gradients(t, FIRST);
        if (i == STEPS - 1) keep_gradients(t, LAST);
    }
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

/* By the norm of the difference, so that single small numbers do not decide. */
static void compare_gradient(const char *what, const char *name, const real *own, const real *other,
                             int64_t n, double bound) {
    double difference = 0, sum = 0;
    for (int64_t i = 0; i < n; i++) {
        difference += pow((double)own[i] - (double)other[i], 2);
        sum += pow((double)other[i], 2);
    }
    if (sqrt(difference) > bound * sqrt(sum))
        fail_msg("%s: gradient of %s is %.3g off, of a norm of %.6g", what, name, sqrt(difference),
                 sqrt(sum));
}

static void compare_gradients(const char *what, const trainer *t, int which, double bound) {
    const model *m = t->model;
    const experts *x = m->experts;
    for (int32_t i = 0; i < m->layout.n_params; i++) {
        const param *p = &m->layout.param[i];
        compare_gradient(what, p->name, m->grad + p->offset, alone_grad[which] + p->offset,
                         p->rows * p->cols, bound);
    }
    for (int32_t l = 0; l < x->placement->layers; l++)
        for (int32_t s = 0; s < x->local_slots; s++) {
            char name[64];
            const int32_t *map = x->placement->physical_to_logical + l * x->placement->slots;
            int32_t e = map[x->first_slot + s];
            int64_t own = (int64_t)l * x->local_slots + s,
                    other = (int64_t)l * m->config.experts + e;
            snprintf(name, sizeof name, "expert %d of layer %d", e, l);
            compare_gradient(what, name, x->gradient + own * x->expert_items,
                             alone_expert[which] + other * x->expert_items, x->expert_items, bound);
        }
}

/* still: no layer has switched at the end of the step, slots hold the gradients of their experts.
 */
static void compare(const char *what, const trainer *t, const step_report *r, bool still) {
    int i = (int)r->step;
    double error = fabs(r->loss - alone[i]) / alone[i];
    if (error > loss_bound || (i == 0 && fabs(r->grad_norm - alone_norm[0]) > 1e-5 * alone_norm[0]))
        fail_msg("%s, step %d: loss %.15g, norm %.9g; one rank has %.15g, %.9g", what, i, r->loss,
                 r->grad_norm, alone[i], alone_norm[i]);
    if (i == 0) compare_gradients(what, t, FIRST, sizeof(real) == 8 ? 1e-12 : 1e-5);
    if (i == STEPS - 1 && sizeof(real) == 8 && still) compare_gradients(what, t, LAST, 1e-5);
}

static trainer *open_trainer(balance_mode mode, int64_t every, int32_t expert_ranks,
                             int32_t redundant) {
    trainer_config c = small_config(STEPS, SEQUENCES);
    trainer *t;
    c.micro_batch = SEQUENCES / world->size;
    c.expert_ranks = expert_ranks;
    c.redundant = redundant;
    c.mode = mode;
    c.rebalance_every = every;
    must(trainer_create(&c, world, &text, &t));
    return t;
}

/* The manager decides. Returns how many copies it moved. */
static int64_t train_managed(balance_mode mode, int32_t expert_ranks, int32_t redundant) {
    static const char *const name[] = {"none", "eplb", "lplb", "search"};
    lplb_manager_stats stats = {0};
    int64_t switched = 0;
    trainer *t = open_trainer(mode, 5, expert_ranks, redundant);
    for (int i = 0; i < STEPS; i++) {
        step_report r;
        must(trainer_step(t, &r));
        if (t->balancer) lplb_manager_get_stats(t->balancer->manager, &stats);
        compare(name[mode], t, &r, stats.layers_switched == switched);
        switched = stats.layers_switched;
        if (i % 7 == 0) check_copies(t);
    }
    assert_int_equal(stats.move_failures + stats.worker_failures + stats.refused, 0);
    trainer_destroy(t);
    return stats.moves;
}

static void test_every_mode(void **state) {
    (void)state;
    int32_t redundant = world->size == 4 ? 2 : 1; /* what lplb's default topologies want */
    train_managed(MODE_NONE, 0, 0);
    assert_true(train_managed(MODE_SEARCH, 0, redundant) > 0);
    assert_true(train_managed(MODE_EPLB, 0, redundant) > 0);
    if (world->size > 2) assert_true(train_managed(MODE_LPLB, 0, redundant) > 0);
}

/* ---- any moves ---- */

enum { MOST_SLOTS = 64 };

/* Every expert somewhere, the rest at random, in any order. */
static void random_row(lplb__rng *rng, const lplb_placement *p, int32_t *row) {
    for (int32_t s = 0; s < p->slots; s++)
        row[s] = s < p->experts ? s : (int32_t)lplb__rng_below(rng, (uint64_t)p->experts);
    for (int32_t s = p->slots - 1; s > 0; s--) {
        int32_t other = (int32_t)lplb__rng_below(rng, (uint64_t)s + 1), old = row[s];
        row[s] = row[other];
        row[other] = old;
    }
}

static bool holds(const lplb_placement *p, const int32_t *row, int32_t rank, int32_t expert) {
    for (int32_t s = p->rank_offset[rank]; s < p->rank_offset[rank + 1]; s++)
        if (row[s] == expert) return true;
    return false;
}

/* Sources: the rank itself where it can, else any rank that has the expert. */
static int64_t list_moves(lplb__rng *rng, const lplb_placement *p, int32_t layer,
                          const int32_t *from, const int32_t *to, lplb_move *move) {
    int64_t n = 0;
    for (int32_t r = 0; r < p->ranks; r++)
        for (int32_t s = p->rank_offset[r]; s < p->rank_offset[r + 1]; s++) {
            if (to[s] == from[s]) continue;
            bool here = holds(p, from, r, to[s]);
            for (int64_t i = 0; i < n; i++)
                if (move[i].rank == r && move[i].expert == to[s]) here = true;
            int32_t source = here ? r : (int32_t)lplb__rng_below(rng, (uint64_t)p->ranks);
            while (!here && !holds(p, from, source, to[s])) source = (source + 1) % p->ranks;
            move[n++] = (lplb_move){layer, s, to[s], r, source};
        }
    return n;
}

/* One rank cannot stage: none of its group does, and nothing has changed. */
static bool fail_to_stage(mover *v, int32_t layer, lplb_move *move, int64_t n) {
    int32_t source = move[n - 1].source_rank;
    bool mine = world->rank == world->size - 1, one_group = v->weights->size == world->size;
    if (mine) move[n - 1].source_rank = -1;
    lplb_status status = mover_stage(v, layer, move, n);
    if (mine) assert_int_equal(status, LPLB_UNSUPPORTED);
    else if (one_group) assert_int_equal(status, LPLB_REMOTE);
    assert_false(v->travelling && (mine || one_group));
    mover_discard(v);
    move[n - 1].source_rank = source;
    return true;
}

/* Staged after one step, switched or thrown away after a later one, or at once. */
static void train_random(uint64_t seed, int32_t expert_ranks, int32_t redundant) {
    /* a manager that never has time to decide */
    trainer *t = open_trainer(MODE_SEARCH, 10 * STEPS, expert_ranks, redundant);
    const lplb_placement *p = t->model->experts->placement;
    mover *v = t->balancer->mover;
    lplb__rng rng;
    int32_t row[MOST_SLOTS];
    lplb_move move[MOST_SLOTS];
    int64_t switched = 0, discarded = 0;
    bool failed = false;
    lplb__rng_seed(&rng, seed, 0);
    assert_true(p->slots <= MOST_SLOTS);
    for (int i = 0; i < STEPS; i++) {
        step_report r;
        must(trainer_step(t, &r));
        compare("random moves", t, &r, true);
        uint64_t dice = lplb__rng_below(&rng, 4);
        if (v->layer >= 0 && dice < 2) {
            must(mover_staged(v));
            mover_commit(v, row);
            switched++;
            check_copies(t);
        } else if (v->layer >= 0 && dice == 2) {
            mover_discard(v);
            discarded++;
        }
        if (v->layer >= 0) continue;
        int32_t layer = (int32_t)lplb__rng_below(&rng, (uint64_t)p->layers);
        random_row(&rng, p, row);
        int64_t n =
            list_moves(&rng, p, layer, p->physical_to_logical + layer * p->slots, row, move);
        assert_true(n > 0);
        if (!failed && i > STEPS / 3) failed = fail_to_stage(v, layer, move, n);
        must(mover_stage(v, layer, move, n));
    }
    assert_true(switched > 2 && discarded > 0 && failed);
    trainer_destroy(t);
}

static void test_any_moves(void **state) {
    (void)state;
    print_message("seeds 21, 22\n");
    train_random(21, 0, 2);
    if (world->size == 4) train_random(22, world->size / 2, 2);
}

static void test_replicas(void **state) {
    (void)state;
    if (world->size < 4) skip(); /* a replica of one rank has nobody to move to */
    assert_true(train_managed(MODE_EPLB, world->size / 2, 1) > 0);
}

static int run_all(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_mode),
        cmocka_unit_test(test_any_moves),
        cmocka_unit_test(test_replicas),
    };
    train_alone();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    for (int i = 0; i < KEPT; i++) {
        lplb__free(alone_grad[i]);
        lplb__free(alone_expert[i]);
    }
    return failed;
}

int main(int argc, char **argv) { return run_on_ranks(argc, argv, run_all); }
