/* lplb doctor and lplb bench: what their documents promise, and what they refuse. */
#include <jansson.h>
#include <lplb/status.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "cases/run_cli.h"
#include "documented.h"

static json_t *parse(const run_result *r) {
    json_error_t error;
    json_t *document = json_loads(r->out, JSON_REJECT_DUPLICATES, &error);
    if (!document) fail_msg("line %d: %s in %s%s", error.line, error.text, r->out, r->err);
    return document;
}

static void test_doctor(void **state) {
    (void)state;
    run_result r;
    run_cli(&r, NULL, "doctor", "--json", NULL);
    assert_int_equal(r.code, 0);
    json_t *document = parse(&r), *system = at(document, "system"), *part;
    check_documented(document, "lplb.doctor/1");
    assert_string_equal(json_string_value(at(document, "version")), lplb_version());
    assert_true(json_integer_value(at(system, "usable_cores")) >= 1);
    assert_true(json_integer_value(at(system, "memory_bytes")) > 0);
    assert_true(json_is_array(at(system, "simd")));
    size_t i;
    json_array_foreach(at(document, "optional"), i, part) {
        assert_true(json_is_string(at(part, "name")));
        assert_true(json_is_boolean(at(part, "found")));
        assert_true(json_is_string(at(part, "for")));
    }
    assert_true(i >= 8);
    assert_true(json_is_true(at(at(document, "planner"), "ok")));
    /* The tokens of experts 0 (900), 1 (100) and 7 (40) live on ranks 0 and 3 only: half each. */
    assert_int_equal(json_integer_value(at(at(document, "planner"), "max_load")), 520);
    /* With a GPU and liblplb_cuda the same plan was made there; without, why not is said. */
    const json_t *cuda = json_array_get(at(document, "backends"), 0);
    if (json_is_true(at(cuda, "available"))) {
        assert_true(json_is_true(at(cuda, "ok")));
        assert_int_equal(json_integer_value(at(cuda, "max_load")), 520);
    } else {
        assert_true(json_is_null(at(cuda, "ok")));
        assert_true(json_string_length(at(cuda, "detail")) > 0);
    }
    json_decref(document);
    run_free(&r);

    run_cli(&r, NULL, "doctor", NULL);
    assert_int_equal(r.code, 0);
    assert_non_null(strstr(r.out, "certificate checked"));
    run_free(&r);
    run_cli(&r, NULL, "doctor", "now", NULL);
    assert_int_equal(r.code, 2);
    run_free(&r);
}

static void check_timing(json_t *timing) {
    assert_true(json_integer_value(at(timing, "runs")) >= 5);
    assert_true(json_real_value(at(timing, "p50")) <= json_real_value(at(timing, "p99")));
}

static void test_bench(void **state) {
    (void)state;
    run_result r;
    run_cli(&r, NULL, "bench", "--json", "--seconds", "0.001", "--ranks", "8", "--experts", "32",
            "--slots", "48", "--topology", "cube", "--solver", "exact", "--solver", "even",
            "--layers", "2", NULL);
    assert_int_equal(r.code, 0);
    json_t *document = parse(&r), *solver;
    check_documented(document, "lplb.bench/1");
    json_t *solvers = at(json_array_get(at(document, "plan"), 0), "solvers");
    assert_int_equal(json_array_size(solvers), 2);
    size_t i;
    json_array_foreach(solvers, i, solver) check_timing(at(solver, "us"));
    double exact = json_real_value(at(json_array_get(solvers, 0), "imbalance"));
    double even = json_real_value(at(json_array_get(solvers, 1), "imbalance"));
    assert_true(exact >= 1 && exact <= even);
    assert_string_equal(json_string_value(at(json_array_get(solvers, 0), "worst_status")),
                        "optimal");
    json_t *dispatch = json_array_get(at(document, "dispatch"), 0);
    assert_int_equal(json_integer_value(at(dispatch, "ids")), 512 * 8);
    check_timing(at(dispatch, "map_us"));
    check_timing(at(json_array_get(at(document, "eplb"), 0), "us"));
    json_decref(document);
    run_free(&r);
}

static void refuse(const char *option, const char *value, const char *because) {
    run_result r;
    run_cli(&r, NULL, "bench", "--ranks", "8", "--experts", "32", option, value, NULL);
    assert_int_equal(r.code, 2);
    if (!strstr(r.err, because)) fail_msg("'%s' does not say '%s'", r.err, because);
    assert_string_equal(r.out, "");
    run_free(&r);
}

static void test_bench_refuses(void **state) {
    (void)state;
    refuse("--seed", "1", "belong together");
    refuse("--slots", "33", "multiple of 8");
    refuse("--slots", "24", "at least the 32");
    refuse("--solver", "oracle", "oracle");
    refuse("--seconds", "-1", "--seconds");
    run_result r;
    run_cli(&r, NULL, "bench", "--ranks", "8", "--experts", "32", "--slots", "48", "--topology",
            "moebius", NULL);
    assert_int_equal(r.code, 2);
    assert_non_null(strstr(r.err, "moebius"));
    assert_string_equal(r.out, "");
    run_free(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_doctor),
        cmocka_unit_test(test_bench),
        cmocka_unit_test(test_bench_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
