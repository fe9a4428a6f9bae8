/* The search: its promises on every shape, and that it beats EPLB and LPLB where they lose. */
#include <lplb/placement.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/rng.h"

enum { LAYERS = 2, EXPERTS = 24, RANKS = 6, SLOTS = 36, SAMPLES = 24 };

static int64_t load[SAMPLES][LAYERS][EXPERTS];

/* Skewed loads whose hot experts change from sample to sample. */
static void fill_loads(uint64_t seed) {
    lplb__rng rng;
    lplb__rng_seed(&rng, seed, 0);
    double base[LAYERS][EXPERTS];
    for (int l = 0; l < LAYERS; l++)
        for (int e = 0; e < EXPERTS; e++) base[l][e] = exp(lplb__rng_normal(&rng));
    for (int s = 0; s < SAMPLES; s++)
        for (int l = 0; l < LAYERS; l++)
            for (int e = 0; e < EXPERTS; e++)
                load[s][l][e] = (int64_t)(100 * base[l][e] * exp(0.5 * lplb__rng_normal(&rng)));
}

static int setup(void **state) {
    (void)state;
    fill_loads(1);
    return 0;
}

static lplb_place_config make_config(void) {
    return (lplb_place_config){.struct_size = sizeof(lplb_place_config),
                               .algorithm = LPLB_PLACE_SEARCH,
                               .ranks = RANKS,
                               .slots = SLOTS,
                               .max_moves = -1,
                               .threads = 1};
}

static lplb_placement *place(const lplb_place_config *config) {
    lplb_placement *p;
    if (lplb_place(config, &load[0][0][0], SAMPLES, LAYERS, EXPERTS, NULL, &p) != LPLB_OK)
        fail_msg("%s", lplb_error_message());
    assert_int_equal(lplb_placement_validate(p), LPLB_OK);
    return p;
}

static void expect_no_repeats(const lplb_placement *p) {
    for (int l = 0; l < p->layers; l++)
        for (int r = 0; r < p->ranks; r++)
            for (int a = p->rank_offset[r]; a < p->rank_offset[r + 1]; a++)
                for (int b = p->rank_offset[r]; b < a; b++) {
                    const int32_t *map = p->physical_to_logical + (int64_t)l * p->slots;
                    if (map[a] >= 0 && map[a] == map[b])
                        fail_msg("layer %d, rank %d: expert %d twice", l, r, map[a]);
                }
}

static double mean_imbalance(const lplb_placement *p, lplb_solver solver) {
    double out[SAMPLES * LAYERS], sum = 0;
    assert_int_equal(lplb_placement_imbalance(p, &load[0][0][0], SAMPLES, solver, 1, out), LPLB_OK);
    for (int i = 0; i < SAMPLES * LAYERS; i++) sum += out[i];
    return sum / (SAMPLES * LAYERS);
}

static void test_beats_eplb_and_topology(void **state) {
    (void)state;
    lplb_place_config c = make_config();
    lplb_placement *search = place(&c);
    c.algorithm = LPLB_PLACE_EPLB;
    lplb_placement *eplb = place(&c);
    c.algorithm = LPLB_PLACE_TOPOLOGY;
    lplb_placement *topology = place(&c);
    double ours = mean_imbalance(search, LPLB_SOLVER_EXACT);
    expect_no_repeats(search);
    assert_true(ours <= mean_imbalance(eplb, LPLB_SOLVER_EXACT) + 0.002);
    assert_true(ours <= mean_imbalance(topology, LPLB_SOLVER_EXACT) + 0.002);
    for (int i = 0; i < LAYERS * SLOTS; i++) assert_true(search->physical_to_logical[i] >= 0);
    lplb_placement_destroy(search);
    lplb_placement_destroy(eplb);
    lplb_placement_destroy(topology);
}

static void test_threads_and_seed(void **state) {
    (void)state;
    lplb_place_config c = make_config();
    lplb_placement *one = place(&c);
    c.threads = 3;
    lplb_placement *three = place(&c);
    assert_memory_equal(one->physical_to_logical, three->physical_to_logical,
                        LAYERS * SLOTS * sizeof(int32_t));
    lplb_placement_destroy(one);
    lplb_placement_destroy(three);
}

static void test_budget_of_moves(void **state) {
    (void)state;
    lplb_place_config c = make_config();
    c.algorithm = LPLB_PLACE_EPLB;
    lplb_placement *from = place(&c);
    fill_loads(2); /* another workload */
    double worst = 10;
    for (int budget = 0; budget <= 12; budget += 4)
        for (int split = 1; split <= 2; split++) {
            c = make_config();
            c.from = from;
            c.max_moves = budget;
            c.exact_split = split;
            lplb_placement *p = place(&c);
            for (int l = 0; l < LAYERS; l++) {
                lplb_move moves[SLOTS * LAYERS];
                int64_t n, here = 0;
                lplb_placement_moves(from, p, moves, SLOTS * LAYERS, &n);
                for (int64_t i = 0; i < n; i++) here += moves[i].layer == l;
                if (here > budget) fail_msg("%d moves, budget %d", (int)here, budget);
            }
            if (budget == 0)
                assert_memory_equal(from->physical_to_logical, p->physical_to_logical,
                                    LAYERS * SLOTS * sizeof(int32_t));
            if (split == 1 && budget % 12 == 0) {
                double imbalance = mean_imbalance(p, LPLB_SOLVER_EXACT);
                assert_true(imbalance <= worst + 1e-9);
                worst = imbalance;
            }
            lplb_placement_destroy(p);
        }
    lplb_placement_destroy(from);
    fill_loads(1);
}

/* Moves that do not bring what they cost are left, so a higher cost never makes more of them. */
static void test_move_cost(void **state) {
    (void)state;
    static const double costs[] = {0.02, 1, 1e6};
    lplb_place_config c = make_config();
    lplb_placement *from = place(&c);
    fill_loads(2);
    int64_t last = INT64_MAX;
    for (int i = 0; i < 3; i++) {
        c = make_config();
        c.from = from;
        c.max_moves = -1;
        c.move_cost = costs[i];
        lplb_placement *p = place(&c);
        int64_t n;
        lplb_placement_moves(from, p, NULL, 0, &n);
        assert_true(n <= last);
        last = n;
        lplb_placement_destroy(p);
    }
    assert_int_equal(last, 0);
    lplb_placement_destroy(from);
    fill_loads(1);
}

/* A limit to the work: still within the budget of moves, better than before, the same with any
 * number of threads; where there is nothing to gain the layer stays. */
static void test_limited_work(void **state) {
    (void)state;
    lplb_place_config c = make_config();
    lplb_placement *from = place(&c);
    fill_loads(3);
    for (int split = 1; split <= 2; split++) {
        lplb_solver solver = split == 2 ? LPLB_SOLVER_EVEN : LPLB_SOLVER_EXACT;
        double before = mean_imbalance(from, solver);
        lplb_placement *p[2];
        for (int i = 0; i < 2; i++) {
            c = make_config();
            c.from = from;
            c.max_moves = 6;
            c.exact_split = split;
            c.samples_as_are = 1;
            c.work = 4000000;
            c.threads = 1 + 3 * i;
            p[i] = place(&c);
            expect_no_repeats(p[i]);
        }
        assert_memory_equal(p[0]->physical_to_logical, p[1]->physical_to_logical,
                            LAYERS * SLOTS * sizeof(int32_t));
        int64_t n;
        lplb_placement_moves(from, p[0], NULL, 0, &n);
        assert_true(n > 0 && n <= 6 * LAYERS);
        assert_true(mean_imbalance(p[0], solver) < before - 0.02);
        lplb_placement_destroy(p[0]);
        lplb_placement_destroy(p[1]);
        c.threads = 1;
        c.move_cost = 1e6;
        p[0] = place(&c);
        assert_memory_equal(p[0]->physical_to_logical, from->physical_to_logical,
                            LAYERS * SLOTS * sizeof(int32_t));
        lplb_placement_destroy(p[0]);
    }
    c.work = -1;
    lplb_placement *none;
    assert_int_equal(lplb_place(&c, &load[0][0][0], SAMPLES, LAYERS, EXPERTS, NULL, &none),
                     LPLB_RANGE);
    lplb_placement_destroy(from);
    fill_loads(1);
}

/* Samples as they are against smaller batches made from them: which is better on those very
 * samples is known. */
static void test_samples_as_they_are(void **state) {
    (void)state;
    double imbalance[2];
    for (int as = 0; as < 2; as++) {
        lplb_place_config c = make_config();
        c.samples_as_are = as;
        lplb_placement *p = place(&c);
        imbalance[as] = mean_imbalance(p, LPLB_SOLVER_EXACT);
        lplb_placement_destroy(p);
    }
    assert_true(imbalance[1] <= imbalance[0] + 1e-9);
}

static void test_uneven_and_dead_ranks(void **state) {
    (void)state;
    int32_t slots[RANKS] = {12, 3, 6, 5, 4, 6};
    int64_t speed[RANKS] = {3, 1, 2, 2, 1, 2};
    uint8_t dead[RANKS] = {0, 0, 0, 1, 0, 0};
    lplb_place_config c = make_config();
    c.slots_per_rank = slots;
    c.speed = speed;
    lplb_placement *p = place(&c);
    expect_no_repeats(p);
    c.from = p;
    c.dead_ranks = dead;
    lplb_placement *repaired = place(&c);
    expect_no_repeats(repaired);
    for (int l = 0; l < LAYERS; l++)
        for (int s = p->rank_offset[3]; s < p->rank_offset[4]; s++)
            assert_int_equal(repaired->physical_to_logical[l * SLOTS + s], -1);
    lplb_placement_destroy(repaired);
    lplb_placement_destroy(p);
    lplb_placement *none;
    memset(dead, 1, sizeof dead);
    dead[0] = 0;
    assert_int_equal(lplb_place(&c, &load[0][0][0], SAMPLES, LAYERS, EXPERTS, NULL, &none),
                     LPLB_INFEASIBLE);
    assert_non_null(strstr(lplb_error_message(), "12 slots are missing"));
}

static void test_layers_without_load(void **state) {
    (void)state;
    for (int s = 0; s < SAMPLES; s++) memset(load[s][0], 0, sizeof load[s][0]);
    lplb_place_config c = make_config();
    lplb_placement *p = place(&c);
    for (int i = 0; i < SLOTS; i++) assert_int_equal(p->physical_to_logical[i], i % EXPERTS);
    lplb_placement_destroy(p);
    fill_loads(1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_beats_eplb_and_topology),
        cmocka_unit_test(test_threads_and_seed),
        cmocka_unit_test(test_budget_of_moves),
        cmocka_unit_test(test_move_cost),
        cmocka_unit_test(test_limited_work),
        cmocka_unit_test(test_samples_as_they_are),
        cmocka_unit_test(test_uneven_and_dead_ranks),
        cmocka_unit_test(test_layers_without_load),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
