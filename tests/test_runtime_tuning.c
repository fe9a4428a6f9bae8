/* The batch sizer's rules; the plan cache against the planner and the independent checker. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <lplb/tuning.h>
#include <string.h>

#include "base/rng.h"
#include "cases/cases.h"

static void test_batch_sizer(void **state) {
    (void)state;
    lplb_batch_sizer s = {.size = 100, .least = 50, .most = 200};
    assert_int_equal(lplb_batch_sizer_init(&s), LPLB_OK);
    for (int i = 0; i < 50; i++) /* inside the band, or never three in a row: no change */
        assert_int_equal(lplb_batch_sizer_update(&s, i % 3 == 2 ? 5000000 : 1000000), 100);
    for (int i = 0; i < 50; i++)
        assert_int_equal(lplb_batch_sizer_update(&s, i % 2 ? 1000000 : 20000000), 100);
    assert_int_equal(lplb_batch_sizer_update(&s, 5000000), 100);
    for (int i = 0; i < 3; i++) lplb_batch_sizer_update(&s, 1000000);
    assert_int_equal(s.size, 125);
    for (int i = 0; i < 300; i++) lplb_batch_sizer_update(&s, 1000000);
    assert_int_equal(s.size, 200);
    for (int i = 0; i < 300; i++) lplb_batch_sizer_update(&s, 11000000);
    assert_int_equal(s.size, 50);
    static const lplb_batch_sizer wrong[] = {
        {.size = 10, .least = 50, .most = 200},
        {.size = 60, .least = 50, .most = 55},
        {.size = 60, .least = 50, .most = 200, .factor = 1},
        {.size = 60, .least = 50, .most = 200, .grow_below_ns = 20000000},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        s = wrong[i];
        assert_int_equal(lplb_batch_sizer_init(&s), LPLB_RANGE);
    }
}

/* Every answer is a valid plan; with quantum 1 it is the planner's; the table never holds more than
 * its capacity, and forgets the least recently used. */
static void test_plan_cache(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 60; seed++) {
        plan_instance instance;
        instance_create(&plan_cases[seed % (uint64_t)n_plan_cases], seed, &instance);
        const lplb_hosts *hosts = &instance.hosts;
        if (instance.speed || hosts->experts > 300) {
            instance_destroy(&instance);
            continue;
        }
        int64_t quantum = seed % 2 ? 1 : 50;
        lplb_plan_cache_config config = {
            .struct_size = sizeof config, .hosts = *hosts, .capacity = 8, .quantum = quantum};
        lplb_plan_config plan_config = {.struct_size = sizeof plan_config, .hosts = *hosts};
        lplb_plan_cache *cache;
        lplb_planner *planner;
        assert_int_equal(lplb_plan_cache_create(&config, &cache), LPLB_OK);
        assert_int_equal(lplb_planner_create(&plan_config, &planner), LPLB_OK);
        lplb__rng rng;
        lplb__rng_seed(&rng, 51, seed);
        int64_t base[300], tokens[300];
        memcpy(base, instance.tokens, (size_t)hosts->experts * sizeof *base);
        for (int round = 0; round < 60; round++) {
            int64_t shift = lplb__rng_below(&rng, 12); /* few different batches */
            for (int32_t e = 0; e < hosts->experts; e++)
                tokens[e] = base[e] + shift * 100 + (quantum > 1 ? lplb__rng_below(&rng, 2) : 0);
            lplb_plan_input input = {.tokens = tokens};
            lplb_plan plan = {.split = instance.split, .loads = instance.loads};
            int32_t hit;
            assert_int_equal(lplb_plan_cache_solve(cache, planner, &input, &plan, &hit), LPLB_OK);
            if (hit) {
                assert_int_equal(lplb_plan_check(hosts, NULL, &input, &plan), LPLB_OK);
                int64_t max_load = plan.max_load;
                assert_int_equal(lplb_plan_solve(planner, &input, &plan), LPLB_OK);
                assert_true(max_load >= plan.max_load);
                if (quantum == 1) assert_int_equal(max_load, plan.max_load);
            }
        }
        lplb_plan_cache_stats stats;
        lplb_plan_cache_get_stats(cache, &stats);
        assert_int_equal(stats.lookups, 60);
        assert_true(stats.plans <= 8);
        if (quantum == 1) {
            assert_true(stats.hits > 5 && stats.exact_hits == stats.hits);
            assert_int_equal(stats.hits + stats.evictions + stats.plans, 60);
        }
        lplb_plan_input sourced = {.tokens = base, .fixed = base};
        lplb_plan plan = {.split = instance.split};
        assert_int_equal(lplb_plan_cache_solve(cache, planner, &sourced, &plan, NULL),
                         LPLB_UNSUPPORTED);
        lplb_planner_destroy(planner);
        lplb_plan_cache_destroy(cache);
        instance_destroy(&instance);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_sizer),
        cmocka_unit_test(test_plan_cache),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
