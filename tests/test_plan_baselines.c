/* The baselines: small examples worked by hand, and what must hold for every instance. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <lplb/plan.h>
#include <stdlib.h>
#include <string.h>

#include "cases/cases.h"
#include "cases/oracle.h"
#include "plan/plan.h"

/* Runs one baseline on a problem; split must have room. */
static int32_t solve(const lplb_hosts *hosts, const int64_t *speed, const int64_t *tokens,
                     const int64_t *fixed, lplb_solver solver, int64_t *split) {
    lplb__arena arena = {0};
    lplb__baselines b;
    int32_t sweeps = -1;
    int64_t *zero = calloc((size_t)hosts->ranks, sizeof *zero);
    lplb__baselines_reserve(hosts, &arena);
    assert_int_equal(lplb__arena_create(&arena), LPLB_OK);
    lplb__baselines_init(&b, hosts, &arena);
    lplb__batch batch = {
        .hosts = hosts, .speed = speed, .tokens = tokens, .fixed = fixed ? fixed : zero};
    lplb__baselines_solve(&b, solver, &batch, split, &sweeps);
    lplb__arena_destroy(&arena);
    free(zero);
    return sweeps;
}

/* Three ranks; expert 0 on {2, 0, 1}, expert 1 on {1, 0}, expert 2 on {2} only. */
static int64_t offset[] = {0, 3, 5, 6};
static int32_t rank[] = {2, 0, 1, 1, 0, 2};
static const lplb_hosts small = {3, 3, offset, rank};

static void expect_split(lplb_solver solver, const int64_t *speed, const int64_t *tokens,
                         const int64_t *fixed, const int64_t *wanted) {
    int64_t split[6];
    memset(split, 0x55, sizeof split);
    solve(&small, speed, tokens, fixed, solver, split);
    for (int i = 0; i < 6; i++) assert_int_equal(split[i], wanted[i]);
}

static void test_even_by_hand(void **state) {
    (void)state;
    /* the remainder goes to the lower ranks, wherever they stand in the list */
    expect_split(LPLB_SOLVER_EVEN, NULL, (int64_t[]){8, 5, 4}, NULL, (int64_t[]){2, 3, 3, 2, 3, 4});
    expect_split(LPLB_SOLVER_EVEN, NULL, (int64_t[]){1, 0, 0}, NULL, (int64_t[]){0, 1, 0, 0, 0, 0});
}

static void test_greedy_by_hand(void **state) {
    (void)state;
    /* order 0 (9), 1 (5), 2 (4): 0 -> rank 0 (all empty), 1 -> rank 1, 2 -> rank 2 */
    expect_split(LPLB_SOLVER_GREEDY, NULL, (int64_t[]){9, 5, 4}, NULL,
                 (int64_t[]){0, 9, 0, 5, 0, 4});
    /* fixed loads count: 0 -> rank 1 */
    expect_split(LPLB_SOLVER_GREEDY, NULL, (int64_t[]){9, 5, 4}, (int64_t[]){3, 1, 2},
                 (int64_t[]){0, 0, 9, 0, 5, 4});
    /* equal tokens: the lower expert first, so 1 finds rank 0 taken */
    expect_split(LPLB_SOLVER_GREEDY, NULL, (int64_t[]){5, 5, 0}, NULL,
                 (int64_t[]){0, 5, 0, 5, 0, 0});
    /* rank 2 is four times as fast: 9/4 is below 9/1 */
    expect_split(LPLB_SOLVER_GREEDY, (int64_t[]){1, 1, 4}, (int64_t[]){9, 5, 4}, NULL,
                 (int64_t[]){9, 0, 0, 0, 5, 4});
}

static void test_waterfill_by_hand(void **state) {
    (void)state;
    /* 0: 3 each; 1: rises ranks 0 and 1 from 3 to 5.5: 3 and 2; 2 has no choice */
    expect_split(LPLB_SOLVER_WATERFILL, NULL, (int64_t[]){9, 5, 4}, NULL,
                 (int64_t[]){3, 3, 3, 2, 3, 4});
    /* from 7, 0, 2: level 5.5 over ranks 1 and 2 */
    expect_split(LPLB_SOLVER_WATERFILL, NULL, (int64_t[]){9, 0, 0}, (int64_t[]){7, 0, 2},
                 (int64_t[]){3, 0, 6, 0, 0, 0});
    /* speeds 1, 1, 4: 12 tokens rise every rank to 2 */
    expect_split(LPLB_SOLVER_WATERFILL, (int64_t[]){1, 1, 4}, (int64_t[]){12, 0, 0}, NULL,
                 (int64_t[]){8, 2, 2, 0, 0, 0});
    /* level 13/6: floors 8, 2, 2, and the last token raises the fast rank least */
    expect_split(LPLB_SOLVER_WATERFILL, (int64_t[]){1, 1, 4}, (int64_t[]){13, 0, 0}, NULL,
                 (int64_t[]){9, 2, 2, 0, 0, 0});
}

static void test_balance_by_hand(void **state) {
    (void)state;
    /* even: 3,3,3 | 3,2 | 0 -> loads 6, 5, 3; pair (0,2) of expert 0 moves 1 -> 5, 5, 4 */
    expect_split(LPLB_SOLVER_BALANCE, NULL, (int64_t[]){9, 5, 0}, NULL,
                 (int64_t[]){4, 2, 3, 2, 3, 0});
    int64_t split[6];
    assert_int_equal(solve(&small, NULL, (int64_t[]){9, 5, 0}, NULL, LPLB_SOLVER_BALANCE, split),
                     2);
    /* a share cannot become negative: rank 2 is full whatever expert 0 does */
    expect_split(LPLB_SOLVER_BALANCE, NULL, (int64_t[]){6, 0, 100}, NULL,
                 (int64_t[]){0, 3, 3, 0, 0, 100});
}

static const lplb_solver baselines[] = {LPLB_SOLVER_EVEN, LPLB_SOLVER_GREEDY, LPLB_SOLVER_WATERFILL,
                                        LPLB_SOLVER_BALANCE};
enum { N_BASELINES = 4 };

static void check_instance(const plan_instance *p, const char *name, uint64_t seed) {
    const lplb_hosts *h = &p->hosts;
    lplb_plan_input input = {p->tokens, p->fixed, NULL};
    lplb_plan plan = {.split = p->split, .outcome = LPLB_OUTCOME_FEASIBLE};
    oracle_bound bound = {{0, 1}, 0, {0, 1}, 0};
    if (h->ranks <= 12) oracle_subsets(h, p->speed, &input, &bound);
    for (int k = 0; k < N_BASELINES; k++) {
        memset(p->split, 0x55, (size_t)h->offset[h->experts] * sizeof *p->split);
        solve(h, p->speed, p->tokens, p->fixed, baselines[k], p->split);
        lplb_fraction top = {0, 1};
        plan.max_load = 0;
        for (int32_t r = 0; r < h->ranks; r++) p->loads[r] = p->fixed ? p->fixed[r] : 0;
        for (int64_t i = 0; i < h->offset[h->experts]; i++) p->loads[h->rank[i]] += p->split[i];
        for (int32_t r = 0; r < h->ranks; r++) {
            lplb_fraction load = {p->loads[r], p->speed ? p->speed[r] : 1};
            if (fraction_less(top, load)) top = load;
            if (p->loads[r] > plan.max_load) plan.max_load = p->loads[r];
        }
        lplb_status status = lplb_plan_check(h, p->speed, &input, &plan);
        if (status != LPLB_OK || fraction_less(top, bound.integer)) {
            print_error("%s seed %llu solver %d: %s\n", name, (unsigned long long)seed,
                        (int)baselines[k], status ? lplb_error_message() : "below the optimum");
            fail();
        }
    }
}

static void test_every_split_is_valid(void **state) {
    (void)state;
    plan_instance p;
    for (int i = 0; i < n_plan_cases; i++)
        for (uint64_t seed = 0; seed < 3; seed++) {
            instance_create(&plan_cases[i], seed, &p);
            check_instance(&p, plan_cases[i].name, seed);
            instance_destroy(&p);
        }
    for (uint64_t seed = 0; seed < 2000; seed++) {
        instance_random(seed, LPLB_MAX_TOKENS, &p);
        check_instance(&p, "random", seed);
        instance_destroy(&p);
    }
}

/* An expert on every rank, alone: pouring and balancing find the optimum. */
static void test_one_expert_everywhere(void **state) {
    (void)state;
    enum { G = 9 };
    int64_t one[] = {0, G}, tokens[1], fixed[G], speed[G], split[G];
    int32_t ranks[G];
    lplb_hosts hosts = {G, 1, one, ranks};
    for (int64_t n = 0; n < 400; n++) {
        for (int r = 0; r < G; r++) {
            ranks[r] = (r * 4 + 3) % G;
            fixed[r] = r * r * n % 23;
            speed[r] = r * n % 5 ? 1 + r * n % 5 : 100;
        }
        tokens[0] = n * 3;
        oracle_bound bound;
        lplb_plan_input input = {tokens, fixed, NULL};
        oracle_subsets(&hosts, speed, &input, &bound);
        solve(&hosts, speed, tokens, fixed, LPLB_SOLVER_WATERFILL, split);
        for (int i = 0; i < G; i++) {
            int32_t r = ranks[i];
            lplb_fraction load = {fixed[r] + split[i], speed[r]};
            if (split[i] > 0) assert_false(fraction_less(bound.integer, load));
        }
    }
}

/* The order in which hosts are listed changes nothing. */
static void test_host_order_is_irrelevant(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 300; seed++) {
        plan_instance p, q;
        instance_random(seed, 1 << 20, &p);
        instance_random(seed, 1 << 20, &q);
        const lplb_hosts *h = &p.hosts;
        for (int32_t e = 0; e < h->experts; e++)
            for (int64_t i = h->offset[e], j = h->offset[e + 1] - 1; i < j; i++, j--) {
                int32_t swapped = q.rank[i];
                q.rank[i] = q.rank[j];
                q.rank[j] = swapped;
            }
        for (int k = 0; k < N_BASELINES; k++) {
            solve(h, p.speed, p.tokens, p.fixed, baselines[k], p.split);
            solve(&q.hosts, q.speed, q.tokens, q.fixed, baselines[k], q.split);
            for (int32_t e = 0; e < h->experts; e++)
                for (int64_t i = h->offset[e]; i < h->offset[e + 1]; i++)
                    assert_int_equal(p.split[i], q.split[h->offset[e] + h->offset[e + 1] - 1 - i]);
        }
        instance_destroy(&p);
        instance_destroy(&q);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_even_by_hand),
        cmocka_unit_test(test_greedy_by_hand),
        cmocka_unit_test(test_waterfill_by_hand),
        cmocka_unit_test(test_balance_by_hand),
        cmocka_unit_test(test_every_split_is_valid),
        cmocka_unit_test(test_one_expert_everywhere),
        cmocka_unit_test(test_host_order_is_irrelevant),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
