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
    lplb_advise_config wrong = {.struct_size = sizeof wrong, .ranks = 7};
    assert_int_equal(lplb_advise(skewed, &wrong, &b), LPLB_INVALID);
    lplb_trace_destroy(skewed);
    lplb_trace_destroy(level);
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
        cmocka_unit_test(test_command),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
