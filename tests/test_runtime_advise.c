/* Advice on loads whose answer is known. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <lplb/advise.h>
#include <lplb/gen.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "cases/run_cli.h"

static lplb_trace *make(double sigma) {
    lplb_gen_config config = {.struct_size = sizeof config,
                              .layers = 3,
                              .experts = 64,
                              .topk = 4,
                              .tokens = 16384,
                              .sigma = sigma,
                              .seed = 5};
    lplb_trace *trace;
    assert_int_equal(lplb_gen(&config, &trace), LPLB_OK);
    return trace;
}

static void advise(const lplb_trace *trace, double token_ns, double plan_us, lplb_advice *out) {
    lplb_advise_config config = {.struct_size = sizeof config,
                                 .ranks = 8,
                                 .batch_tokens = 1024,
                                 .expert_bytes = 1000,
                                 .token_ns = token_ns,
                                 .plan_us = plan_us};
    lplb_status status = lplb_advise(trace, &config, out);
    if (status != LPLB_OK) fail_msg("%s", lplb_error_message());
}

static void test_advice(void **state) {
    (void)state;
    lplb_trace *skewed = make(1), *level = make(0);
    lplb_advice a, b;
    advise(skewed, 100, 5, &a);
    advise(level, 100, 5, &b);
    assert_true(a.measures.cv > 0.6 && b.measures.cv < 0.1);
    assert_int_equal(a.rule_redundant, 16);
    assert_int_equal(b.rule_redundant, 4);
    assert_int_equal(a.rule_groups, 8);
    assert_int_equal(a.held_out, 1);
    assert_int_equal(a.points, 9);
    assert_true(a.knee >= 1 && a.point[a.knee].exact < a.point[0].exact - 0.05);
    for (int i = 0; i < a.points; i++) {
        assert_int_equal(a.point[i].slots, 64 + 8 * i);
        assert_int_equal(a.point[i].bytes, 3000 * i);
        assert_true(a.point[i].exact >= 1 && a.point[i].exact <= a.point[i].even + 1e-9);
    }
    assert_true(fabs(a.point[0].even - a.point[0].exact) < 1e-9); /* no copies, no choice */
    for (int i = 1; i < a.topologies; i++)
        assert_true(a.topology[i].exact >= a.topology[i - 1].exact);
    assert_true(a.break_even_tokens > 0);
    advise(skewed, 100, 1e6, &b); /* a plan that takes a second never pays */
    assert_true(b.break_even_tokens == 0);
    advise(skewed, 0, 0, &b);
    assert_true(b.plan_measured && b.plan_us > 0 && b.break_even_tokens == 0);
    lplb_advise_config wrong = {.struct_size = sizeof wrong, .ranks = 8, .slots = 68};
    assert_int_equal(lplb_advise(skewed, &wrong, &b), LPLB_INVALID);
    assert_non_null(strstr(lplb_error_message(), "64, 72, ... slots"));
    lplb_trace_destroy(skewed);
    lplb_trace_destroy(level);
}

/* Ranks that do not divide the experts: the curve begins with what they need. */
static void test_any_ranks(void **state) {
    (void)state;
    lplb_trace *trace = make(1);
    lplb_advice a;
    lplb_advise_config config = {.struct_size = sizeof config, .ranks = 7, .batch_tokens = 1024};
    assert_int_equal(lplb_advise(trace, &config, &a), LPLB_OK);
    assert_int_equal(a.point[0].slots, 70);
    assert_int_equal(a.topologies + a.topology_pays, 0);
    assert_true(a.point[0].exact >= 1 && a.measures.contiguous >= 1);
    config.slots = 84;
    assert_int_equal(lplb_advise(trace, &config, &a), LPLB_OK);
    assert_int_equal(a.point[0].slots, 84);
    lplb_trace_destroy(trace);
}

/* What is recommended is never worse than another figure of the same advice with as many slots,
 * over seeded loads of many shapes. */
static void test_advice_agrees_with_its_figures(void **state) {
    (void)state;
    static const int32_t ranks[] = {4, 6, 8, 16, 32};
    int pays = 0;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        lplb_gen_config gen = {.struct_size = sizeof gen,
                               .layers = 1,
                               .experts = 96,
                               .topk = 4,
                               .tokens = 4096,
                               .sigma = 0.2 * (double)(1 + seed % 8),
                               .seed = seed};
        lplb_trace *trace;
        assert_int_equal(lplb_gen(&gen, &trace), LPLB_OK);
        lplb_advise_config config = {.struct_size = sizeof config,
                                     .ranks = ranks[seed % 5],
                                     .nodes = seed % 3 ? 2 : 1,
                                     .batch_tokens = 512,
                                     .most_redundant = 1 + (int32_t)(seed % 3),
                                     .token_ns = 100,
                                     .plan_us = (double)(seed % 7 + 1),
                                     .threads = 1};
        lplb_advice a;
        assert_int_equal(lplb_advise(trace, &config, &a), LPLB_OK);
        double knee = a.point[a.knee].exact, least = knee;
        for (int i = 0; i < a.points; i++)
            if (a.point[i].exact < least) least = a.point[i].exact;
        assert_true(knee - least <= 0.1 * (a.point[0].exact - least) + 1e-12);
        for (int i = 0; i < a.topologies; i++) {
            assert_true(a.topology[i].redundant <= a.point[a.knee].redundant);
            assert_true(a.topology[i].exact >= a.topology[0].exact);
        }
        if (a.topology_pays) assert_true(a.topology[0].exact <= knee);
        else assert_true(!a.topologies || a.topology[0].exact > knee);
        pays += a.topology_pays;
        assert_true((a.group_counts > 0) == (config.nodes > 1));
        bool global = false;
        for (int i = 0; i < a.group_counts; i++) {
            assert_true(a.group[i].exact >= a.group[0].exact);
            if (a.group[i].groups == 1) global = fabs(a.group[i].exact - knee) < 1e-12;
        }
        assert_true(global || !a.group_counts);
        for (int i = 0; i < a.batches; i++) /* planning is said to pay where its gain is above */
            if (a.break_even_tokens > 0 && (double)a.batch[i].tokens >= a.break_even_tokens) {
                assert_true(a.batch[i].gain_us >= a.plan_us);
                break;
            }
        lplb_trace_destroy(trace);
    }
    print_message("a topology was recommended in %d of 40\n", pays);
}

static void test_command(void **state) {
    (void)state;
    char *dir = scratch_create();
    lplb_trace *trace = make(1);
    const char *path = path_join(dir, "t.npz");
    assert_int_equal(lplb_trace_write(trace, path), LPLB_OK);
    run_result r;
    run_cli(&r, NULL, "advise", "--json", "--ranks", "8", "--token-ns", "100", path, NULL);
    assert_int_equal(r.code, 0);
    json_t *document = json_loads(r.out, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(document, "schema")), "lplb.advise/1");
    const json_t *stage = json_array_get(json_object_get(document, "stages"), 0), *item;
    size_t i;
    json_array_foreach(json_object_get(stage, "recommendations"), i, item) {
        assert_true(json_string_length(json_object_get(item, "recommendation")) > 0);
        assert_true(json_string_length(json_object_get(item, "reason")) > 0);
        assert_true(json_is_number(json_object_get(item, "figure")));
    }
    assert_true(i >= 5);
    json_decref(document);
    run_free(&r);
    run_cli(&r, NULL, "advise", "--ranks", "8", "--stage", "nonsense", NULL);
    assert_int_equal(r.code, 2);
    run_free(&r);
    run_cli(&r, NULL, "advise", path, NULL);
    assert_int_equal(r.code, 2);
    assert_non_null(strstr(r.err, "--ranks"));
    run_free(&r);
    lplb_trace_destroy(trace);
    scratch_remove(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_advice),
        cmocka_unit_test(test_any_ranks),
        cmocka_unit_test(test_advice_agrees_with_its_figures),
        cmocka_unit_test(test_command),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
