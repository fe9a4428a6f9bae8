/* The exact planner against enumeration of all rank sets, and its promises: certificate,
 * determinism, no allocation per batch. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "cases/cases.h"
#include "cases/oracle.h"

static lplb_planner *new_planner(const plan_instance *in, lplb_plan_config extra) {
    extra.struct_size = sizeof extra;
    extra.hosts = in->hosts;
    extra.speed = in->speed;
    lplb_planner *planner = NULL;
    if (lplb_planner_create(&extra, &planner) != LPLB_OK) fail_msg("%s", lplb_error_message());
    return planner;
}

static lplb_plan solve(lplb_planner *planner, plan_instance *in, const char *what, uint64_t seed) {
    lplb_plan plan = {.split = in->split, .loads = in->loads, .certificate = in->certificate};
    lplb_plan_input input = {in->tokens, in->fixed, NULL};
    if (lplb_plan_solve(planner, &input, &plan) != LPLB_OK ||
        lplb_plan_check(&in->hosts, in->speed, &input, &plan) != LPLB_OK)
        fail_msg("%s, seed %llu: %s", what, (unsigned long long)seed, lplb_error_message());
    assert_int_equal(plan.outcome, LPLB_OUTCOME_OPTIMAL);
    return plan;
}

static void expect_equal(lplb_fraction a, lplb_fraction b, const char *what, uint64_t seed) {
    if (fraction_less(a, b) || fraction_less(b, a))
        fail_msg("%s, seed %llu: %lld/%lld against %lld/%lld", what, (unsigned long long)seed,
                 (long long)a.numerator, (long long)a.denominator, (long long)b.numerator,
                 (long long)b.denominator);
}

/* Plan and bound of a random small problem against all rank sets. */
static void compare_with_enumeration(uint64_t seed, int64_t max_tokens) {
    plan_instance in;
    instance_random(seed, max_tokens, &in);
    lplb_plan_input input = {in.tokens, in.fixed, NULL};
    oracle_bound truth;
    oracle_subsets(&in.hosts, in.speed, &input, &truth);
    lplb_planner *planner = new_planner(&in, (lplb_plan_config){0});
    lplb_plan plan = solve(planner, &in, "random", seed);
    lplb_bound bound;
    uint64_t bottleneck = 0;
    if (lplb_plan_bound(&in.hosts, in.speed, &input, &bound, &bottleneck) != LPLB_OK)
        fail_msg("seed %llu: %s", (unsigned long long)seed, lplb_error_message());
    expect_equal(bound.fractional, truth.fractional, "fractional bound", seed);
    expect_equal(bound.integer, truth.integer, "integer bound", seed);
    double integer = (double)truth.integer.numerator / (double)truth.integer.denominator;
    assert_true(plan.objective <= integer * (1 + 1e-15));
    if (!in.speed) assert_int_equal(plan.max_load, bound.integer_bound);
    if (bottleneck != truth.bottleneck)
        fail_msg("seed %llu: bottleneck %llx, enumeration finds %llx", (unsigned long long)seed,
                 (unsigned long long)bottleneck, (unsigned long long)truth.bottleneck);
    lplb_planner_destroy(planner);
    instance_destroy(&in);
}

static void test_small_problems(void **state) {
    (void)state;
    static const int64_t magnitudes[] = {3, 40, 5000, INT64_C(1) << 40, INT64_C(1) << 52};
    for (uint64_t seed = 1; seed <= 1500; seed++)
        compare_with_enumeration(seed, magnitudes[seed % 5]);
}

static void test_case_table(void **state) {
    (void)state;
    for (int c = 0; c < n_plan_cases; c++) {
        plan_instance in;
        instance_create(&plan_cases[c], 1, &in);
        lplb_planner *planner = new_planner(&in, (lplb_plan_config){0});
        for (uint64_t seed = 2; seed < 12; seed++) {
            instance_redraw(&plan_cases[c], seed, &in);
            solve(planner, &in, plan_cases[c].name, seed);
        }
        lplb_planner_destroy(planner);
        instance_destroy(&in);
    }
}

/* The split depends on the batch alone: not on earlier batches, nor on the planner that made it. */
static void test_no_memory_of_the_past(void **state) {
    (void)state;
    for (int c = 0; c < n_plan_cases; c++) {
        plan_instance a, b;
        instance_create(&plan_cases[c], 5, &a);
        instance_create(&plan_cases[c], 5, &b);
        lplb_planner *used = new_planner(&a, (lplb_plan_config){0});
        for (uint64_t seed = 50; seed < 55; seed++) {
            instance_redraw(&plan_cases[c], seed, &a);
            solve(used, &a, plan_cases[c].name, seed);
        }
        instance_redraw(&plan_cases[c], 5, &a);
        instance_redraw(&plan_cases[c], 5, &b);
        lplb_planner *fresh = new_planner(&b, (lplb_plan_config){0});
        solve(used, &a, plan_cases[c].name, 5);
        solve(fresh, &b, plan_cases[c].name, 5);
        size_t bytes = sizeof(int64_t) * (size_t)a.hosts.offset[a.hosts.experts];
        assert_memory_equal(a.split, b.split, bytes);
        lplb_planner_destroy(used);
        lplb_planner_destroy(fresh);
        instance_destroy(&a);
        instance_destroy(&b);
    }
}

/* Two ranks, three ranks, by hand. */
static void test_by_hand(void **state) {
    (void)state;
    int64_t offset[] = {0, 2, 3, 5}, tokens[] = {10, 4, 7}, split[5], loads[3];
    int32_t rank[] = {1, 0, 0, 2, 1}; /* hosts in any order */
    lplb_plan_config config = {.struct_size = sizeof config, .hosts = {3, 3, offset, rank}};
    lplb_planner *planner;
    assert_int_equal(lplb_planner_create(&config, &planner), LPLB_OK);
    lplb_plan plan = {.split = split, .loads = loads};
    assert_int_equal(lplb_plan_solve(planner, &(lplb_plan_input){tokens, NULL, NULL}, &plan), 0);
    assert_int_equal(plan.max_load, 7); /* 21 tokens on 3 ranks */
    assert_int_equal(split[0] + split[1], 10);
    assert_int_equal(split[1], 3); /* rank 0 has 4 of its own */
    assert_int_equal(split[2], 4);
    assert_int_equal(split[3], 7);
    lplb_planner_destroy(planner);
}

static void test_cost_tables(void **state) {
    (void)state;
    /* random monotone tables: compare with trying every split of two experts */
    lplb__rng rng;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        lplb__rng_seed(&rng, seed, 0);
        enum { N = 30 };
        double cost[3 * N];
        for (int r = 0; r < 3; r++)
            for (int n = 0; n < N; n++)
                cost[r * N + n] = (n ? cost[r * N + n - 1] : 0) + (double)lplb__rng_below(&rng, 4);
        int64_t offset[] = {0, 2, 4}, split[4], loads[3];
        int32_t rank[] = {0, 1, 1, 2};
        int64_t tokens[] = {lplb__rng_below(&rng, 15), lplb__rng_below(&rng, 15)};
        double best = 1e30;
        for (int64_t a = 0; a <= tokens[0]; a++)
            for (int64_t b = 0; b <= tokens[1]; b++) {
                double t0 = cost[a], t1 = cost[N + tokens[0] - a + b];
                double t2 = cost[2 * N + tokens[1] - b];
                double worst = t0 > t1 ? t0 : t1;
                worst = worst > t2 ? worst : t2;
                if (worst < best) best = worst;
            }
        lplb_plan_config config = {.struct_size = sizeof config,
                                   .hosts = {3, 2, offset, rank},
                                   .objective = LPLB_OBJECTIVE_COST,
                                   .cost = cost,
                                   .cost_entries = N};
        lplb_planner *planner;
        assert_int_equal(lplb_planner_create(&config, &planner), LPLB_OK);
        lplb_plan plan = {.split = split, .loads = loads};
        if (lplb_plan_solve(planner, &(lplb_plan_input){tokens, NULL, NULL}, &plan) != LPLB_OK)
            fail_msg("seed %llu: %s", (unsigned long long)seed, lplb_error_message());
        if (plan.objective != best || plan.bound != best)
            fail_msg("seed %llu: objective %g, bound %g, best %g", (unsigned long long)seed,
                     plan.objective, plan.bound, best);
        lplb_planner_destroy(planner);
    }
}

static void test_tolerance(void **state) {
    (void)state;
    int64_t offset[] = {0, 2, 3}, split[3], loads[2];
    int32_t rank[] = {0, 1, 0};
    lplb_plan_config config = {
        .struct_size = sizeof config, .hosts = {2, 2, offset, rank}, .tolerance = 1.1};
    lplb_planner *planner;
    assert_int_equal(lplb_planner_create(&config, &planner), LPLB_OK);
    lplb_plan plan = {.split = split, .loads = loads};
    int64_t close[] = {100, 8}; /* even: 58 and 50, mean 54: 1.074 */
    assert_int_equal(lplb_plan_solve(planner, &(lplb_plan_input){close, NULL, NULL}, &plan), 0);
    assert_int_equal(plan.outcome, LPLB_OUTCOME_WITHIN_TOLERANCE);
    assert_int_equal(split[0], 50);
    int64_t far[] = {100, 40};
    assert_int_equal(lplb_plan_solve(planner, &(lplb_plan_input){far, NULL, NULL}, &plan), 0);
    assert_int_equal(plan.outcome, LPLB_OUTCOME_OPTIMAL);
    assert_int_equal(plan.max_load, 70);
    int64_t none[] = {0, 0};
    assert_int_equal(lplb_plan_solve(planner, &(lplb_plan_input){none, NULL, NULL}, &plan), 0);
    assert_int_equal(plan.max_load, 0);
    lplb_planner_destroy(planner);
}

static void test_refusals(void **state) {
    (void)state;
    int64_t offset[] = {0, 2, 3}, split[3];
    int32_t rank[] = {0, 1, 0}, twice[] = {1, 1, 0}, outside[] = {0, 2, 0};
    int64_t hole[] = {0, 0, 3};
    lplb_planner *planner;
    lplb_plan_config good = {.struct_size = sizeof good, .hosts = {2, 2, offset, rank}};
    lplb_plan_config bad = good;
    bad.struct_size = 8;
    assert_int_equal(lplb_planner_create(&bad, &planner), LPLB_INVALID);
    bad = good, bad.hosts.rank = twice;
    assert_int_equal(lplb_planner_create(&bad, &planner), LPLB_INVALID);
    bad = good, bad.hosts.rank = outside;
    assert_int_equal(lplb_planner_create(&bad, &planner), LPLB_RANGE);
    bad = good, bad.hosts.offset = hole;
    assert_int_equal(lplb_planner_create(&bad, &planner), LPLB_INVALID);
    bad = good, bad.speed = (int64_t[]){1, 0};
    assert_int_equal(lplb_planner_create(&bad, &planner), LPLB_RANGE);
    bad = good, bad.tolerance = 0.5;
    assert_int_equal(lplb_planner_create(&bad, &planner), LPLB_RANGE);
    assert_int_equal(lplb_planner_create(&good, &planner), LPLB_OK);
    lplb_plan plan = {.split = split};
    int64_t negative[] = {5, -1}, huge[] = {LPLB_MAX_TOKENS, 1};
    assert_int_equal(lplb_plan_solve(planner, &(lplb_plan_input){negative, NULL, NULL}, &plan),
                     LPLB_RANGE);
    assert_non_null(strstr(lplb_error_message(), "tokens[1] is -1"));
    assert_int_equal(lplb_plan_solve(planner, &(lplb_plan_input){huge, NULL, NULL}, &plan),
                     LPLB_OVERFLOW);
    int64_t most[] = {LPLB_MAX_TOKENS, 0};
    assert_int_equal(lplb_plan_solve(planner, &(lplb_plan_input){most, NULL, NULL}, &plan), 0);
    assert_true(plan.max_load == LPLB_MAX_TOKENS / 2);
    lplb_planner_destroy(planner);
    lplb_planner_destroy(NULL);
}

/* ---- no allocation per batch ---- */

static int64_t allocations;
static void *counting_alloc(size_t bytes, void *user) {
    (void)user;
    allocations++;
    return malloc(bytes);
}
static void *counting_realloc(void *block, size_t bytes, void *user) {
    (void)user;
    allocations++;
    return realloc(block, bytes);
}
static void counting_free(void *block, void *user) {
    (void)user;
    free(block);
}

static void test_no_allocation(void **state) {
    (void)state;
    lplb_allocator counting = {counting_alloc, counting_realloc, counting_free, NULL};
    lplb_set_allocator(&counting);
    plan_instance in;
    const plan_case *shape = find_plan_case("eplb64");
    instance_create(shape, 1, &in);
    for (int solver = LPLB_SOLVER_EXACT; solver <= LPLB_SOLVER_BALANCE; solver++) {
        if (solver == LPLB_SOLVER_IPM) continue; /* joins with ipm.c */
        lplb_planner *planner = new_planner(&in, (lplb_plan_config){.solver = (lplb_solver)solver});
        int64_t before = allocations;
        for (uint64_t seed = 2; seed < 6; seed++) {
            instance_redraw(shape, seed, &in);
            lplb_plan plan = {.split = in.split};
            lplb_plan_input input = {in.tokens, in.fixed, NULL};
            assert_int_equal(lplb_plan_solve(planner, &input, &plan), LPLB_OK);
        }
        assert_true(before > 0);
        assert_int_equal(allocations, before);
        lplb_planner_destroy(planner);
    }
    instance_destroy(&in);
    lplb_set_allocator(NULL);
}

static void test_solver_text(void **state) {
    (void)state;
    lplb_plan_config config = {0};
    int32_t locality;
    assert_int_equal(lplb_plan_parse_solver("exact:locality=1,tolerance=1.5", &config, &locality),
                     LPLB_OK);
    assert_int_equal(locality, 1);
    assert_true(config.tolerance == 1.5);
    assert_int_equal(lplb_plan_parse_solver("ipm:iterations=7,step=0.5", &config, &locality), 0);
    assert_int_equal(config.solver, LPLB_SOLVER_IPM);
    assert_int_equal(config.ipm.iterations, 7);
    assert_int_equal(locality, 0);
    assert_int_equal(lplb_plan_parse_solver("ipm:published", &config, NULL), LPLB_OK);
    assert_int_equal(config.ipm.iterations, 0);
    static const char *const bad[] = {"",
                                      "exac",
                                      "exact:",
                                      "exact:x=1",
                                      "even:locality=1",
                                      "ipm:published=1",
                                      "ipm:step=2",
                                      "exact,",
                                      "exact:tolerance=",
                                      "greedy:tolerance=nan"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        if (lplb_plan_parse_solver(bad[i], &config, &locality) != LPLB_INVALID)
            fail_msg("'%s' was accepted", bad[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_hand),     cmocka_unit_test(test_small_problems),
        cmocka_unit_test(test_case_table),  cmocka_unit_test(test_no_memory_of_the_past),
        cmocka_unit_test(test_cost_tables), cmocka_unit_test(test_tolerance),
        cmocka_unit_test(test_refusals),    cmocka_unit_test(test_no_allocation),
        cmocka_unit_test(test_solver_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
