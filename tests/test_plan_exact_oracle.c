/* A short run of bench_exactness: certificate and LP solver judge the exact planner. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cases/exactness.h"
#include "cases/lp.h"
#include "cases/oracle.h"

static void judge(exactness *sum, plan_instance *in, const char *what, uint64_t seed) {
    if (exactness_judge(sum, in, lp_available()))
        fail_msg("%s, seed %llu: failed %lld, infeasible %lld, uncertified %lld, disagreeing %lld: "
                 "%s",
                 what, (unsigned long long)seed, (long long)sum->failed, (long long)sum->infeasible,
                 (long long)sum->uncertified, (long long)sum->disagreeing, lplb_error_message());
}

static void test_small(void **state) {
    (void)state;
    exactness sum = {0};
    for (uint64_t seed = 1000000; seed < 1004000; seed++) {
        plan_instance in;
        instance_random(seed, INT64_C(1) << 40, &in);
        judge(&sum, &in, "random", seed);
        instance_destroy(&in);
    }
    if (lp_available()) assert_true(sum.compared > 3900);
}

/* Up to the limit of tokens, by certificate alone: doubles end before. At 5174 and 120962 a fast
 * rank has room for more than 2^63 tokens at the optimum. */
static void test_huge(void **state) {
    (void)state;
    exactness sum = {0};
    for (uint64_t i = 0; i < 3000; i++) {
        plan_instance in;
        uint64_t seed = i == 0 ? 120962 : 5173 + i;
        instance_random(seed, LPLB_MAX_TOKENS, &in);
        if (exactness_judge(&sum, &in, 0))
            fail_msg("seed %llu: %s", (unsigned long long)seed, lplb_error_message());
        instance_destroy(&in);
    }
}

static void test_large(void **state) {
    (void)state;
    static const char *const names[] = {"eplb64", "eplb32-speeds", "random130", "torus4x8-g1.0"};
    exactness sum = {0};
    for (uint64_t seed = 0; seed < 40; seed++) {
        plan_instance in;
        plan_case shape = *find_plan_case(names[seed % 4]);
        if (seed / 4 % 2) shape.mean_tokens = 3;
        instance_create(&shape, seed, &in);
        judge(&sum, &in, shape.name, seed);
        instance_destroy(&in);
    }
}

/* The judge itself: the optimum that CLP finds is the one that all rank sets give. */
static void test_the_lp_itself(void **state) {
    (void)state;
    if (!lp_available()) skip();
    for (uint64_t seed = 0; seed < 500; seed++) {
        plan_instance in;
        oracle_bound bound;
        instance_random(seed, 1 << 20, &in);
        if (in.hosts.ranks <= 10) {
            lplb_plan_input input = {in.tokens, in.fixed, NULL};
            oracle_subsets(&in.hosts, in.speed, &input, &bound);
            double optimum =
                (double)bound.fractional.numerator / (double)bound.fractional.denominator;
            lp *problem = lp_create(&in.hosts, in.speed);
            double found = lp_solve(problem, &input);
            lp_destroy(problem);
            if (!(found >= optimum * (1 - 1e-6) && found <= optimum * (1 + 1e-6)))
                fail_msg("seed %llu: CLP %.12g, rank sets %.12g", (unsigned long long)seed, found,
                         optimum);
        }
        instance_destroy(&in);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small),
        cmocka_unit_test(test_huge),
        cmocka_unit_test(test_large),
        cmocka_unit_test(test_the_lp_itself),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
