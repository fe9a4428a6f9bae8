/* The verifier against brute force on problems small enough to try every split, and against every
 * way of corrupting a right plan. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <lplb/plan.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "cases/oracle.h"

enum { MAX_RANKS = 4, MAX_EXPERTS = 4, MAX_HOSTS = MAX_RANKS * MAX_EXPERTS };

/* A problem with at most 4 ranks, 4 experts and a handful of tokens, and its optimal plan. */
typedef struct tiny {
    lplb_hosts hosts;
    int64_t offset[MAX_EXPERTS + 1], tokens[MAX_EXPERTS], fixed[MAX_RANKS], speed[MAX_RANKS];
    int32_t rank[MAX_HOSTS];
    int64_t split[MAX_HOSTS], loads[MAX_RANKS];
    uint64_t certificate[1];
    int has_speeds;
    lplb_plan_input input;
    lplb_plan plan;
} tiny;

static void make_tiny(uint64_t seed, tiny *t) {
    lplb__rng rng;
    memset(t, 0, sizeof *t);
    lplb__rng_seed(&rng, seed, 0);
    int32_t G = 1 + (int32_t)lplb__rng_below(&rng, MAX_RANKS);
    int32_t E = 1 + (int32_t)lplb__rng_below(&rng, MAX_EXPERTS);
    for (int32_t e = 0; e < E; e++) {
        int64_t mask = 1 + lplb__rng_below(&rng, (1 << G) - 1), n = t->offset[e];
        for (int32_t r = 0; r < G; r++)
            if (mask >> r & 1) t->rank[n++] = r;
        t->offset[e + 1] = n;
        t->tokens[e] = lplb__rng_below(&rng, 7);
    }
    int has_fixed = (int)lplb__rng_below(&rng, 2);
    t->has_speeds = (int)lplb__rng_below(&rng, 2);
    for (int32_t r = 0; r < G; r++) {
        if (has_fixed) t->fixed[r] = lplb__rng_below(&rng, 5);
        t->speed[r] = t->has_speeds ? 1 + lplb__rng_below(&rng, 5) : 1;
    }
    t->hosts = (lplb_hosts){G, E, t->offset, t->rank};
    t->input = (lplb_plan_input){t->tokens, has_fixed ? t->fixed : NULL, NULL};
    t->plan.split = t->split;
    t->plan.loads = t->loads;
    t->plan.certificate = t->certificate;
}

static lplb_fraction objective_of(const tiny *t, const int64_t *split, int64_t *loads) {
    lplb_fraction top = {0, 1};
    memcpy(loads, t->fixed, sizeof t->fixed);
    for (int64_t i = 0; i < t->offset[t->hosts.experts]; i++) loads[t->rank[i]] += split[i];
    for (int32_t r = 0; r < t->hosts.ranks; r++) {
        lplb_fraction load = {loads[r], t->speed[r]};
        if (fraction_less(top, load)) top = load;
    }
    return top;
}

/* Tries every split, host by host. */
static void try_splits(tiny *t, int64_t *split, int32_t expert, int64_t host, int64_t left,
                       lplb_fraction *best) {
    if (expert == t->hosts.experts) {
        int64_t loads[MAX_RANKS];
        lplb_fraction objective = objective_of(t, split, loads);
        if (best->denominator && !fraction_less(objective, *best)) return;
        *best = objective;
        memcpy(t->split, split, sizeof t->split);
        return;
    }
    if (host + 1 == t->offset[expert + 1]) {
        split[host] = left;
        int64_t next = expert + 1 < t->hosts.experts ? t->tokens[expert + 1] : 0;
        try_splits(t, split, expert + 1, host + 1, next, best);
        return;
    }
    for (int64_t n = 0; n <= left; n++) {
        split[host] = n;
        try_splits(t, split, expert, host + 1, left - n, best);
    }
}

static void set_results(tiny *t) {
    lplb_fraction objective = objective_of(t, t->split, t->loads);
    t->plan.outcome = LPLB_OUTCOME_OPTIMAL;
    t->plan.objective = (double)objective.numerator / (double)objective.denominator;
    t->plan.bound = t->plan.objective;
    t->plan.max_load = 0;
    for (int32_t r = 0; r < t->hosts.ranks; r++)
        if (t->loads[r] > t->plan.max_load) t->plan.max_load = t->loads[r];
}

static lplb_status check(const tiny *t) {
    return lplb_plan_check(&t->hosts, t->has_speeds ? t->speed : NULL, &t->input, &t->plan);
}

static void expect(lplb_status wanted, const tiny *t, const char *message, uint64_t seed) {
    lplb_error_clear();
    lplb_status status = check(t);
    if (status != wanted || (message && !strstr(lplb_error_message(), message))) {
        print_error("seed %llu: %s \"%s\", expected %s \"%s\"\n", (unsigned long long)seed,
                    lplb_status_name(status), lplb_error_message(), lplb_status_name(wanted),
                    message ? message : "");
        fail();
    }
}

static void solve_tiny(uint64_t seed, tiny *t, lplb_fraction *best) {
    int64_t split[MAX_HOSTS] = {0};
    make_tiny(seed, t);
    *best = (lplb_fraction){0, 0};
    try_splits(t, split, 0, 0, t->tokens[0], best);
    set_results(t);
}

/* The best of all splits is what the best rank set allows, and that set convinces the verifier;
 * one token more on the fullest rank and no set does. */
static void test_optimum_is_proved(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 3000; seed++) {
        tiny t;
        lplb_fraction best;
        oracle_bound bound;
        solve_tiny(seed, &t, &best);
        oracle_subsets(&t.hosts, t.has_speeds ? t.speed : NULL, &t.input, &bound);
        if (fraction_less(best, bound.integer) || fraction_less(bound.integer, best)) {
            print_error("seed %llu: splits and rank sets disagree\n", (unsigned long long)seed);
            fail();
        }
        t.certificate[0] = bound.certificate;
        expect(LPLB_OK, &t, NULL, seed);
    }
}

/* Any valid split that is not optimal is refused whatever set it comes with, and accepted when it
 * claims no optimality. */
static void test_no_set_proves_a_worse_split(void **state) {
    (void)state;
    int tried = 0;
    for (uint64_t seed = 0; seed < 2000; seed++) {
        tiny t;
        lplb_fraction best;
        solve_tiny(seed, &t, &best);
        memset(t.split, 0, sizeof t.split);
        for (int32_t e = 0; e < t.hosts.experts; e++) t.split[t.offset[e]] = t.tokens[e];
        set_results(&t);
        int64_t loads[MAX_RANKS];
        if (!fraction_less(best, objective_of(&t, t.split, loads))) continue;
        tried++;
        for (uint64_t set = 0; set < UINT64_C(1) << t.hosts.ranks; set++) {
            t.certificate[0] = set;
            expect(LPLB_CHECK_FAILED, &t, "proves nothing", seed);
        }
        t.plan.outcome = LPLB_OUTCOME_FEASIBLE;
        expect(LPLB_OK, &t, NULL, seed);
    }
    assert_true(tried > 300);
}

static void test_corrupted_plans(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 500; seed++) {
        tiny good, t;
        lplb_fraction best;
        oracle_bound bound;
        solve_tiny(seed, &good, &best);
        oracle_subsets(&good.hosts, good.has_speeds ? good.speed : NULL, &good.input, &bound);
        good.certificate[0] = bound.certificate;
#define MUTATE(message, change)                                                                    \
    do {                                                                                           \
        t = good;                                                                                  \
        t.hosts.offset = t.offset, t.hosts.rank = t.rank, t.plan.split = t.split;                  \
        t.plan.loads = t.loads, t.plan.certificate = t.certificate, t.input.tokens = t.tokens;     \
        if (t.input.fixed) t.input.fixed = t.fixed;                                                \
        change;                                                                                    \
        expect(LPLB_CHECK_FAILED, &t, message, seed);                                              \
    } while (0)
        int64_t n = good.offset[good.hosts.experts];
        for (int64_t i = 0; i < n; i++) {
            MUTATE("more than its", t.split[i]++);
            if (good.split[i] > 0) MUTATE("less than its", t.split[i]--);
            MUTATE("negative", t.split[i] = -1);
            MUTATE("", t.split[i] = INT64_MAX);
        }
        for (int32_t e = 0; e < good.hosts.experts; e++)
            if (good.offset[e + 1] - good.offset[e] > 1)
                MUTATE("negative number", t.split[t.offset[e]] = -1 - t.split[t.offset[e] + 1];
                       t.split[t.offset[e] + 1] = good.tokens[e] - t.split[t.offset[e]]);
        for (int32_t r = 0; r < good.hosts.ranks; r++) MUTATE("loads[", t.loads[r]++);
        MUTATE("max_load", t.plan.max_load++);
        MUTATE("max_load", t.plan.max_load--);
        MUTATE("is no outcome", t.plan.outcome = (lplb_outcome)4);
        MUTATE("lower bound", t.plan.bound += 1);
        MUTATE("lower bound", t.plan.bound = NAN);
        MUTATE("objective", t.plan.objective += 1e-6; t.plan.bound = -INFINITY);
        if (best.numerator == 0) continue;
        MUTATE("without a certificate", t.plan.certificate = NULL);
        MUTATE("proves nothing", t.certificate[0] = 0);
        MUTATE("certificate names rank", t.certificate[0] |= UINT64_C(1) << 63);
#undef MUTATE
    }
}

static void test_wrong_problems(void **state) {
    (void)state;
    int64_t offset[] = {0, 2, 3}, tokens[] = {4, 5}, fixed[] = {0, 1}, speed[] = {1, 2};
    int32_t rank[] = {0, 1, 1};
    int64_t split[] = {4, 0, 5};
    lplb_hosts hosts = {2, 2, offset, rank};
    lplb_plan_input input = {tokens, fixed, NULL};
    lplb_plan plan = {.split = split, .outcome = LPLB_OUTCOME_FEASIBLE, .max_load = 6};
    assert_int_equal(lplb_plan_check(&hosts, speed, &input, &plan), LPLB_OK);
    rank[1] = 0;
    assert_int_equal(lplb_plan_check(&hosts, speed, &input, &plan), LPLB_INVALID);
    assert_non_null(strstr(lplb_error_message(), "rank 0 twice"));
    rank[1] = 2;
    assert_int_equal(lplb_plan_check(&hosts, speed, &input, &plan), LPLB_RANGE);
    rank[1] = 1;
    offset[1] = 0;
    assert_int_equal(lplb_plan_check(&hosts, speed, &input, &plan), LPLB_INVALID);
    assert_non_null(strstr(lplb_error_message(), "expert 0 has no host"));
    offset[1] = 2;
    tokens[0] = -4;
    assert_int_equal(lplb_plan_check(&hosts, speed, &input, &plan), LPLB_RANGE);
    tokens[0] = LPLB_MAX_TOKENS;
    assert_int_equal(lplb_plan_check(&hosts, speed, &input, &plan), LPLB_OVERFLOW);
    tokens[0] = 4;
    speed[1] = 0;
    assert_int_equal(lplb_plan_check(&hosts, speed, &input, &plan), LPLB_RANGE);
    assert_int_equal(lplb_plan_check(NULL, speed, &input, &plan), LPLB_INVALID);
}

/* Beyond 2^53 doubles lose tokens; the verifier must not. */
static void test_near_the_token_limit(void **state) {
    (void)state;
    int64_t offset[] = {0, 2}, tokens[] = {LPLB_MAX_TOKENS}, half = LPLB_MAX_TOKENS / 2;
    int32_t rank[] = {0, 1};
    int64_t split[] = {half, half};
    uint64_t both = 3;
    lplb_hosts hosts = {2, 1, offset, rank};
    lplb_plan_input input = {tokens, NULL, NULL};
    lplb_plan plan = {
        .split = split, .certificate = &both, .max_load = half, .objective = (double)half};
    assert_int_equal(lplb_plan_check(&hosts, NULL, &input, &plan), LPLB_OK);
    split[0]++, split[1]--, plan.max_load++;
    assert_int_equal(lplb_plan_check(&hosts, NULL, &input, &plan), LPLB_CHECK_FAILED);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_optimum_is_proved),
        cmocka_unit_test(test_no_set_proves_a_worse_split),
        cmocka_unit_test(test_corrupted_plans),
        cmocka_unit_test(test_wrong_problems),
        cmocka_unit_test(test_near_the_token_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
