/* The interior-point method: its bound and its objective around the true optimum, its acceptance
 * rule, its rounding, and what it refuses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cases/cases.h"
#include "cases/lp.h"
#include "cases/oracle.h"

static lplb_plan solve(plan_instance *p, lplb_solver solver, lplb_ipm_options options,
                       const char *what, uint64_t seed) {
    lplb_plan_config config = {.struct_size = sizeof config,
                               .hosts = p->hosts,
                               .speed = p->speed,
                               .solver = solver,
                               .ipm = options};
    lplb_planner *planner;
    lplb_plan plan = {.split = p->split, .loads = p->loads, .certificate = p->certificate};
    lplb_plan_input input = {p->tokens, p->fixed, NULL};
    if (lplb_planner_create(&config, &planner) != LPLB_OK ||
        lplb_plan_solve(planner, &input, &plan) != LPLB_OK ||
        lplb_plan_check(&p->hosts, p->speed, &input, &plan) != LPLB_OK)
        fail_msg("%s, seed %llu: %s", what, (unsigned long long)seed, lplb_error_message());
    lplb_planner_destroy(planner);
    return plan;
}

/* Rounding moves less than one token per expert with a choice on a rank. */
static double rounding_room(const plan_instance *p) {
    int64_t most = 0;
    memset(p->loads, 0, sizeof(int64_t) * (size_t)p->hosts.ranks);
    for (int32_t e = 0; e < p->hosts.experts; e++)
        for (int64_t i = p->offset[e]; i < p->offset[e + 1]; i++) p->loads[p->rank[i]]++;
    for (int32_t r = 0; r < p->hosts.ranks; r++)
        if (p->loads[r] > most) most = p->loads[r];
    return (double)most;
}

/* bound <= optimum <= fractional objective = bound * (1 + gap), all within rounding. */
static void check_around(const lplb_plan *plan, double optimum, double room, const char *what,
                         uint64_t seed) {
    double fractional = plan->bound * (1 + plan->ipm_gap);
    if (!(plan->bound <= optimum * (1 + 1e-12)) || !(fractional >= optimum * (1 - 1e-12)) ||
        !(plan->objective <= fractional * (1 + 1e-12) + room))
        fail_msg("%s, seed %llu: bound %.17g, optimum %.17g, fractional %.17g, rounded %.17g", what,
                 (unsigned long long)seed, plan->bound, optimum, fractional, plan->objective);
}

/* Down to 1e-12 it must converge: the elimination without subtraction and the refined differences
 * of prices are there for that. */
static void test_converged_on_random(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 800; seed++) {
        plan_instance p;
        instance_random(seed, seed % 2 ? INT64_C(1) << 40 : 10000, &p);
        lplb_plan_input input = {p.tokens, p.fixed, NULL};
        oracle_bound truth;
        oracle_subsets(&p.hosts, p.speed, &input, &truth);
        double optimum = (double)truth.fractional.numerator / (double)truth.fractional.denominator;
        double room = rounding_room(&p), tolerance = seed % 3 ? 1e-9 : 1e-12;
        lplb_plan plan =
            solve(&p, LPLB_SOLVER_IPM, (lplb_ipm_options){.tolerance = tolerance}, "random", seed);
        if (optimum > 0) check_around(&plan, optimum, room, "random", seed);
        if (plan.outcome != LPLB_OUTCOME_FEASIBLE || plan.ipm_gap > tolerance * 1.01 + 1e-15)
            fail_msg("seed %llu: outcome %d, gap %g", (unsigned long long)seed, (int)plan.outcome,
                     plan.ipm_gap);
        instance_destroy(&p);
    }
}

static void test_shapes(void **state) {
    (void)state;
    for (int i = 0; i < n_plan_cases; i++) {
        const plan_case *shape = &plan_cases[i];
        if (shape->ranks > 64) continue;
        for (uint64_t seed = 0; seed < 3; seed++) {
            plan_instance p;
            instance_create(shape, seed, &p);
            double room = rounding_room(&p), optimum = 0;
            if (lp_available()) {
                lplb_plan_input input = {p.tokens, p.fixed, NULL};
                lp *problem = lp_create(&p.hosts, p.speed);
                optimum = lp_solve(problem, &input);
                lp_destroy(problem);
            }
            for (int published = 0; published < 2 - (p.speed != NULL); published++) {
                lplb_ipm_options options = {.published = published};
                lplb_plan plan = solve(&p, LPLB_SOLVER_IPM, options, shape->name, seed);
                if (lp_available() && optimum > 0) {
                    /* CLP's own tolerance is 1e-7 */
                    lplb_plan loose = plan;
                    loose.bound *= 1 - 1e-6;
                    loose.ipm_gap += 3e-6;
                    check_around(&loose, optimum, room, shape->name, seed);
                }
                assert_true(plan.rejected == (published && plan.outcome != LPLB_OUTCOME_FEASIBLE));
                if (published && plan.sweeps) assert_int_equal(plan.sweeps, 5);
            }
            instance_destroy(&p);
        }
    }
}

/* Fixed loads far above the experts' leave single precision no digits: the acceptance rule refuses,
 * and the plan is the even split and says so. What it accepts is near the optimum, as published. */
static void test_published_rule(void **state) {
    (void)state;
    lplb_ipm_options published = {.published = 1}, none = {0};
    for (uint64_t seed = 0; seed < 100; seed++) {
        plan_instance p;
        instance_create(find_plan_case("hypercube16x2"), seed, &p);
        lplb_plan plan = solve(&p, LPLB_SOLVER_IPM, published, "hypercube16x2", seed);
        lplb_plan best = solve(&p, LPLB_SOLVER_EXACT, none, "hypercube16x2", seed);
        assert_int_equal(plan.rejected, 0);
        assert_true(plan.objective <= 1.15 * best.objective);
        p.fixed = calloc((size_t)p.hosts.ranks, sizeof *p.fixed);
        for (int32_t r = 0; r < p.hosts.ranks; r++)
            p.fixed[r] = (int64_t)(seed + 1 + (uint64_t)r) << 40;
        plan = solve(&p, LPLB_SOLVER_IPM, published, "with fixed loads", seed);
        lplb_plan even = solve(&p, LPLB_SOLVER_EVEN, none, "with fixed loads", seed);
        assert_true(plan.rejected);
        assert_int_equal(plan.outcome, LPLB_OUTCOME_NOT_CONVERGED);
        assert_int_equal(plan.max_load, even.max_load);
        instance_destroy(&p);
    }
}

/* Groups without an expert in common are programs of their own: the split of each is what it would
 * be alone. */
static void test_parts_are_independent(void **state) {
    (void)state;
    plan_instance whole, one;
    for (int published = 0; published < 2; published++) {
        instance_create(find_plan_case("cube4groups"), 5, &whole);
        lplb_ipm_options options = {.published = published};
        solve(&whole, LPLB_SOLVER_IPM, options, "whole", 5);
        for (int32_t group = 0; group < 4; group++) {
            instance_create(find_plan_case("cube4groups"), 5, &one);
            /* other groups empty; the published scale is the largest expert of all, so keep one */
            int32_t largest = 0;
            for (int32_t e = 0; e < one.hosts.experts; e++)
                if (one.tokens[e] > one.tokens[largest]) largest = e;
            for (int32_t e = 0; e < one.hosts.experts; e++)
                if (one.rank[one.offset[e]] / 8 != group && !(published && e == largest))
                    one.tokens[e] = 0;
            solve(&one, LPLB_SOLVER_IPM, options, "group", 5);
            for (int32_t e = 0; e < one.hosts.experts; e++)
                for (int64_t i = one.offset[e]; i < one.offset[e + 1]; i++)
                    if (one.rank[one.offset[e]] / 8 == group)
                        assert_int_equal(one.split[i], whole.split[i]);
            instance_destroy(&one);
        }
        instance_destroy(&whole);
    }
}

static void test_listing_is_irrelevant(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 100; seed++) {
        plan_instance p, q;
        instance_random(seed, 1 << 20, &p);
        instance_random(seed, 1 << 20, &q);
        for (int32_t e = 0; e < p.hosts.experts; e++)
            for (int64_t i = p.offset[e], j = p.offset[e + 1] - 1; i < j; i++, j--) {
                int32_t swapped = q.rank[i];
                q.rank[i] = q.rank[j];
                q.rank[j] = swapped;
            }
        solve(&p, LPLB_SOLVER_IPM, (lplb_ipm_options){0}, "listed", seed);
        solve(&q, LPLB_SOLVER_IPM, (lplb_ipm_options){0}, "reversed", seed);
        for (int32_t e = 0; e < p.hosts.experts; e++)
            for (int64_t i = p.offset[e]; i < p.offset[e + 1]; i++)
                assert_int_equal(p.split[i], q.split[p.offset[e] + p.offset[e + 1] - 1 - i]);
        instance_destroy(&p);
        instance_destroy(&q);
    }
}

static void test_options(void **state) {
    (void)state;
    plan_instance p;
    instance_create(find_plan_case("torus4x8"), 1, &p);
    lplb_plan few = solve(&p, LPLB_SOLVER_IPM, (lplb_ipm_options){.iterations = 3}, "few", 1);
    assert_int_equal(few.outcome, LPLB_OUTCOME_NOT_CONVERGED);
    assert_int_equal(few.sweeps, 3);
    assert_int_equal(few.rejected, 0);
    lplb_plan loose = solve(&p, LPLB_SOLVER_IPM, (lplb_ipm_options){.tolerance = 0.01}, "loose", 1);
    lplb_plan tight = solve(&p, LPLB_SOLVER_IPM, (lplb_ipm_options){0}, "tight", 1);
    lplb_plan small = solve(&p, LPLB_SOLVER_IPM, (lplb_ipm_options){.step = 0.5}, "small", 1);
    assert_int_equal(loose.outcome, LPLB_OUTCOME_FEASIBLE);
    assert_true(loose.ipm_gap <= 0.01);
    assert_true(loose.sweeps < tight.sweeps);
    assert_true(tight.sweeps < small.sweeps);
    instance_destroy(&p);
}

static void expect_refusal(lplb_status wanted, lplb_plan_config config, const char *message) {
    lplb_planner *planner;
    config.struct_size = sizeof config;
    config.solver = LPLB_SOLVER_IPM;
    assert_int_equal(lplb_planner_create(&config, &planner), wanted);
    if (!strstr(lplb_error_message(), message)) fail_msg("%s", lplb_error_message());
}

static void test_refusals(void **state) {
    (void)state;
    int64_t offset[] = {0, 2}, speed[3000];
    int32_t rank[] = {0, 1};
    for (int i = 0; i < 3000; i++) speed[i] = 1;
    lplb_plan_config c = {.hosts = {2, 1, offset, rank}},
                     large = {.hosts = {3000, 1, offset, rank}};
    expect_refusal(LPLB_UNSUPPORTED, large, "more than 2048 rows");
    c.ipm = (lplb_ipm_options){.iterations = -1};
    expect_refusal(LPLB_RANGE, c, "-1 iterations");
    c.ipm = (lplb_ipm_options){.tolerance = 1};
    expect_refusal(LPLB_RANGE, c, "tolerance 1 ");
    c.ipm = (lplb_ipm_options){.tolerance = NAN};
    expect_refusal(LPLB_RANGE, c, "tolerance nan");
    c.ipm = (lplb_ipm_options){.step = 1};
    expect_refusal(LPLB_RANGE, c, "step 1 ");
    c.ipm = (lplb_ipm_options){.published = 1, .iterations = 8};
    expect_refusal(LPLB_INVALID, c, "published form has 5");
    c.ipm = (lplb_ipm_options){.published = 1};
    c.speed = speed;
    expect_refusal(LPLB_UNSUPPORTED, c, "knows no speeds");
}

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
static void plain_free(void *block, void *user) {
    (void)user;
    free(block);
}

static void test_solving_allocates_nothing(void **state) {
    (void)state;
    static const lplb_allocator counting = {counting_alloc, counting_realloc, plain_free, NULL};
    plan_instance p;
    lplb_set_allocator(&counting);
    instance_create(find_plan_case("eplb32"), 1, &p);
    for (int published = 0; published < 2; published++) {
        lplb_plan_config config = {.struct_size = sizeof config,
                                   .hosts = p.hosts,
                                   .solver = LPLB_SOLVER_IPM,
                                   .ipm = {.published = published}};
        lplb_planner *planner;
        lplb_plan plan = {.split = p.split};
        lplb_plan_input input = {p.tokens, NULL, NULL};
        assert_int_equal(lplb_planner_create(&config, &planner), LPLB_OK);
        allocations = 0;
        assert_int_equal(lplb_plan_solve(planner, &input, &plan), LPLB_OK);
        assert_int_equal(allocations, 0);
        lplb_planner_destroy(planner);
    }
    instance_destroy(&p);
    lplb_set_allocator(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_converged_on_random),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_published_rule),
        cmocka_unit_test(test_parts_are_independent),
        cmocka_unit_test(test_listing_is_irrelevant),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_solving_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
