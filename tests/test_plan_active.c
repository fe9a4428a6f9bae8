/* Activated experts, tiles and the price of an active expert, against every split of tiny problems
 * and against what must hold on all shapes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "cases/cases.h"
#include "cases/oracle.h"

static lplb_plan solve(plan_instance *p, lplb_plan_config config, const char *what, uint64_t seed) {
    lplb_planner *planner;
    lplb_plan plan = {.split = p->split, .loads = p->loads, .certificate = p->certificate};
    lplb_plan_input input = {p->tokens, p->fixed, NULL};
    config.struct_size = sizeof config;
    config.hosts = p->hosts;
    config.speed = p->speed;
    if (lplb_planner_create(&config, &planner) != LPLB_OK ||
        lplb_plan_solve(planner, &input, &plan) != LPLB_OK)
        fail_msg("%s, seed %llu: %s", what, (unsigned long long)seed, lplb_error_message());
    lplb_planner_destroy(planner);
    lplb_plan checked = plan; /* the verifier proves optimality for the tokens objective only */
    checked.outcome = LPLB_OUTCOME_FEASIBLE;
    if (lplb_plan_check(&p->hosts, p->speed, &input, &checked) != LPLB_OK)
        fail_msg("%s, seed %llu: %s", what, (unsigned long long)seed, lplb_error_message());
    return plan;
}

/* max over ranks of sum of ceil(x/tile)*tile + activation, over speed; from the definition. */
static double cost_of(const plan_instance *p, const int64_t *split, int64_t tile,
                      int64_t activation) {
    double most = 0;
    for (int32_t r = 0; r < p->hosts.ranks; r++) {
        int64_t cost = p->fixed ? (p->fixed[r] + tile - 1) / tile * tile : 0;
        for (int64_t i = 0; i < p->offset[p->hosts.experts]; i++)
            if (p->rank[i] == r && split[i] > 0)
                cost += (split[i] + tile - 1) / tile * tile + activation;
        most = fmax(most, (double)cost / (double)(p->speed ? p->speed[r] : 1));
    }
    return most;
}

static int64_t active_of(const plan_instance *p, const int64_t *split) {
    int64_t most = 0;
    for (int32_t r = 0; r < p->hosts.ranks; r++) {
        int64_t count = 0;
        for (int64_t i = 0; i < p->offset[p->hosts.experts]; i++)
            count += p->rank[i] == r && split[i] > 0;
        if (count > most) most = count;
    }
    return most;
}

/* The least count, from the rank sets of the problem with one token an expert. */
static int64_t least_active(const plan_instance *p) {
    int64_t *one = calloc((size_t)p->hosts.experts + 1, sizeof *one);
    for (int32_t e = 0; e < p->hosts.experts; e++) one[e] = p->tokens[e] > 0;
    lplb_plan_input input = {one, NULL, NULL};
    oracle_bound bound;
    oracle_subsets(&p->hosts, NULL, &input, &bound);
    free(one);
    return bound.integer.numerator / bound.integer.denominator;
}

static const lplb_plan_config active = {.objective = LPLB_OBJECTIVE_ACTIVE};

static void test_active_is_least(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 500; seed++) {
        plan_instance p;
        instance_random(seed, INT64_C(1) << seed % 40, &p);
        if (p.hosts.ranks > 12) {
            instance_destroy(&p);
            continue;
        }
        lplb_plan plan = solve(&p, active, "random", seed);
        assert_int_equal(plan.outcome, LPLB_OUTCOME_OPTIMAL);
        assert_int_equal(active_of(&p, p.split), least_active(&p));
        assert_true(plan.objective == (double)least_active(&p));
        assert_true(plan.bound == plan.objective);
        instance_destroy(&p);
    }
}

/* The second step must pay: tokens end up nearer the optimum than with whole experts. */
static void test_active_spreads_tokens(void **state) {
    (void)state;
    double excess = 0, whole_excess = 0;
    for (uint64_t seed = 0; seed < 50; seed++) {
        plan_instance p;
        instance_create(find_plan_case("eplb32"), seed, &p);
        lplb_plan tokens = solve(&p, (lplb_plan_config){0}, "tokens", seed);
        lplb_plan greedy = solve(&p, (lplb_plan_config){.solver = LPLB_SOLVER_GREEDY}, "", seed);
        lplb_plan plan = solve(&p, active, "active", seed);
        assert_true(plan.max_load >= tokens.max_load);
        excess += (double)plan.max_load / (double)tokens.max_load - 1;
        whole_excess += (double)greedy.max_load / (double)tokens.max_load - 1;
        instance_destroy(&p);
    }
    if (excess > whole_excess) fail_msg("%g above the optimum, greedy %g", excess, whole_excess);
}

/* ---- tiles: every split of tiny problems ---- */

static void try_splits(plan_instance *p, int64_t *split, int32_t e, int64_t i, int64_t left,
                       int64_t tile, int64_t activation, double *best) {
    if (e == p->hosts.experts) {
        *best = fmin(*best, cost_of(p, split, tile, activation));
        return;
    }
    int last = i + 1 == p->offset[e + 1];
    for (int64_t n = last ? left : 0; n <= left; n++) {
        split[i] = n;
        try_splits(p, split, e + last, i + 1, last ? p->tokens[e + 1] : left - n, tile, activation,
                   best);
    }
}

static void make_tiny(lplb__rng *rng, plan_instance *p) {
    static int64_t offset[5], tokens[5], fixed[3], speed[3], split[16], loads[3];
    static int32_t rank[16];
    static uint64_t certificate[1];
    int32_t G = 2 + (int32_t)lplb__rng_below(rng, 2), E = 1 + (int32_t)lplb__rng_below(rng, 4);
    for (int32_t e = 0; e < E; e++) {
        int64_t mask = 1 + lplb__rng_below(rng, (1 << G) - 1), n = offset[e];
        for (int32_t r = 0; r < G; r++)
            if (mask >> r & 1) rank[n++] = r;
        offset[e + 1] = n;
        tokens[e] = lplb__rng_below(rng, 9);
    }
    tokens[E] = 0;
    for (int32_t r = 0; r < G; r++) {
        fixed[r] = lplb__rng_below(rng, 5);
        speed[r] = 1 + lplb__rng_below(rng, 3);
    }
    *p = (plan_instance){.hosts = {G, E, offset, rank},
                         .offset = offset,
                         .rank = rank,
                         .tokens = tokens,
                         .fixed = lplb__rng_below(rng, 2) ? fixed : NULL,
                         .speed = lplb__rng_below(rng, 2) ? speed : NULL,
                         .split = split,
                         .loads = loads,
                         .certificate = certificate};
}

static void expect_close(double a, double b, const char *what, uint64_t seed) {
    if (fabs(a - b) > 1e-12 * fabs(b))
        fail_msg("%s, seed %llu: %.17g, expected %.17g", what, (unsigned long long)seed, a, b);
}

static void test_tiles_are_exact(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 1500; seed++) {
        plan_instance p;
        lplb__rng rng;
        int64_t split[16];
        lplb__rng_seed(&rng, seed, 0);
        make_tiny(&rng, &p);
        int64_t tile = 2 + lplb__rng_below(&rng, 4);
        double best = INFINITY;
        try_splits(&p, split, 0, 0, p.tokens[0], tile, 0, &best);
        lplb_plan plan = solve(&p, (lplb_plan_config){.tile = tile}, "tiles", seed);
        expect_close(cost_of(&p, p.split, tile, 0), best, "cost", seed);
        expect_close(plan.objective, best, "objective", seed);
        expect_close(plan.bound, best, "bound", seed);
        assert_int_equal(plan.outcome, LPLB_OUTCOME_OPTIMAL);
    }
}

/* The heuristic: its bound holds, its objective is what its split costs, and it is rarely off. */
static void test_activation(void **state) {
    (void)state;
    int missed = 0, proved = 0;
    enum { PROBLEMS = 1500 };
    for (uint64_t seed = 0; seed < PROBLEMS; seed++) {
        plan_instance p;
        lplb__rng rng;
        int64_t split[16];
        lplb__rng_seed(&rng, seed, 1);
        make_tiny(&rng, &p);
        int64_t tile = lplb__rng_below(&rng, 4), activation = 1 + lplb__rng_below(&rng, 6);
        int64_t unit = tile > 1 ? tile : 1;
        double best = INFINITY;
        try_splits(&p, split, 0, 0, p.tokens[0], unit, activation, &best);
        lplb_plan plan = solve(&p, (lplb_plan_config){.tile = tile, .activation = activation},
                               "activation", seed);
        expect_close(plan.objective, cost_of(&p, p.split, unit, activation), "objective", seed);
        if (!(plan.bound <= best * (1 + 1e-12)) || !(plan.objective >= best * (1 - 1e-12)))
            fail_msg("seed %llu: bound %g, best %g, objective %g", (unsigned long long)seed,
                     plan.bound, best, plan.objective);
        if (plan.outcome == LPLB_OUTCOME_OPTIMAL) {
            expect_close(plan.objective, best, "claimed optimum", seed);
            proved++;
        }
        missed += plan.objective > best * (1 + 1e-12);
    }
    if (missed > PROBLEMS / 20) fail_msg("%d of %d above the optimum", missed, PROBLEMS);
    assert_true(proved > PROBLEMS / 4);
}

static void test_shapes(void **state) {
    (void)state;
    for (int i = 0; i < n_plan_cases; i++) {
        plan_instance p;
        const char *name = plan_cases[i].name;
        instance_create(&plan_cases[i], 2, &p);
        lplb_plan tokens = solve(&p, (lplb_plan_config){0}, name, 2);
        double split_cost = cost_of(&p, p.split, 64, 100);
        lplb_plan tiles = solve(&p, (lplb_plan_config){.tile = 64}, name, 2);
        expect_close(tiles.objective, cost_of(&p, p.split, 64, 0), name, 2);
        assert_true(tiles.objective >= tokens.objective * (1 - 1e-12));
        lplb_plan both = solve(&p, (lplb_plan_config){.tile = 64, .activation = 100}, name, 2);
        expect_close(both.objective, cost_of(&p, p.split, 64, 100), name, 2);
        assert_true(both.objective >= both.bound * (1 - 1e-12));
        assert_true(both.objective <= split_cost * (1 + 1e-12));
        instance_destroy(&p);
    }
}

static void expect_refusal(lplb_status wanted, lplb_plan_config config, const char *message) {
    int64_t offset[] = {0, 1};
    int32_t rank[] = {0};
    lplb_planner *planner;
    config.struct_size = sizeof config;
    config.hosts = (lplb_hosts){1, 1, offset, rank};
    assert_int_equal(lplb_planner_create(&config, &planner), wanted);
    if (!strstr(lplb_error_message(), message)) fail_msg("%s", lplb_error_message());
}

static void test_refusals(void **state) {
    (void)state;
    expect_refusal(LPLB_RANGE, (lplb_plan_config){.tile = -1}, "tile -1");
    expect_refusal(LPLB_RANGE, (lplb_plan_config){.activation = -2}, "activation -2");
    expect_refusal(LPLB_UNSUPPORTED, (lplb_plan_config){.tile = 2, .solver = LPLB_SOLVER_EVEN},
                   "not even");
    expect_refusal(LPLB_UNSUPPORTED, (lplb_plan_config){.tile = 2, .tolerance = 1.1}, "tolerance");
    expect_refusal(LPLB_UNSUPPORTED,
                   (lplb_plan_config){.tile = 2, .objective = LPLB_OBJECTIVE_ACTIVE},
                   "tokens objective");
    expect_refusal(
        LPLB_UNSUPPORTED,
        (lplb_plan_config){.objective = LPLB_OBJECTIVE_ACTIVE, .solver = LPLB_SOLVER_BALANCE},
        "only the exact solver");
    expect_refusal(LPLB_INVALID, (lplb_plan_config){.objective = (lplb_objective)7}, "objective 7");

    int64_t offset[] = {0, 1}, tokens[] = {LPLB_MAX_TOKENS - 1}, sources[] = {LPLB_MAX_TOKENS - 1};
    int32_t rank[] = {0};
    int64_t split[1];
    lplb_plan_config config = {
        .struct_size = sizeof config, .hosts = {1, 1, offset, rank}, .tile = 64};
    lplb_plan plan = {.split = split};
    lplb_plan_input input = {tokens, NULL, NULL};
    lplb_planner *planner;
    assert_int_equal(lplb_planner_create(&config, &planner), LPLB_OK);
    assert_int_equal(lplb_plan_solve(planner, &input, &plan), LPLB_OVERFLOW);
    input.sources = sources;
    assert_int_equal(lplb_plan_solve(planner, &input, &plan), LPLB_UNSUPPORTED);
    lplb_planner_destroy(planner);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_active_is_least), cmocka_unit_test(test_active_spreads_tokens),
        cmocka_unit_test(test_tiles_are_exact), cmocka_unit_test(test_activation),
        cmocka_unit_test(test_shapes),          cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
