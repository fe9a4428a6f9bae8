/* lplb replay and lplb explain on the bundled recordings: documents, tables, refusals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cases/run_cli.h"
#include "documented.h"

#define TRACE  LPLB_SOURCE_DIR "/data/gpt-oss-20b/token_topk.npz"
#define COUNTS LPLB_SOURCE_DIR "/data/olmoe-mixtral-prefill/olmoe_c4.json"

static json_t *parse(const run_result *r) {
    json_error_t error;
    if (r->code != 0) fail_msg("exit code %d: %s", r->code, r->err);
    assert_string_equal(r->err, ""); /* no progress in a pipe */
    json_t *document = json_loads(r->out, JSON_REJECT_DUPLICATES, &error);
    if (!document) fail_msg("line %d: %s in %s", error.line, error.text, r->out);
    return document;
}

static double real(const json_t *object, const char *key) {
    assert_true(json_is_number(at(object, key)));
    return json_number_value(at(object, key));
}

static int64_t whole(const json_t *object, const char *key) {
    assert_true(json_is_integer(at(object, key)));
    return json_integer_value(at(object, key));
}

static void check_policy(const json_t *p, const char *name, bool solves) {
    assert_string_equal(json_string_value(at(p, "policy")), name);
    const json_t *d = at(p, "imbalance");
    assert_true(real(d, "mean") >= 1 && real(d, "p50") <= real(d, "p99"));
    assert_true(real(d, "p99") <= real(d, "max") && real(d, "mean") <= real(d, "max"));
    assert_true(real(p, "balancedness") > 0 && real(p, "balancedness") <= 1);
    assert_true(solves == json_is_object(at(p, "plan_us")));
    if (solves) assert_true(real(at(p, "plan_us"), "p50") <= real(at(p, "plan_us"), "p99"));
    assert_true(whole(p, "moved_tokens") >= 0 && whole(p, "moved_slots") >= 0);
    assert_int_equal(whole(p, "not_converged"), 0);
    assert_true(real(p, "place_seconds") >= 0);
}

static void test_replay_json(void **state) {
    (void)state;
    static const char *const names[] = {"none", "eplb", "eplb+exact", "lplb", "ideal"};
    run_result r;
    run_cli(&r, NULL, "replay", "--json", "--ranks", "8", "--redundant", "2", "--batch-tokens",
            "512", "--policy", names[0], "--policy", names[1], "--policy", names[2], "--policy",
            names[3], "--policy", names[4], TRACE, NULL);
    json_t *document = parse(&r), *trace = at(document, "trace"), *p, *l;
    assert_string_equal(json_string_value(at(document, "schema")), "lplb.replay/1");
    check_documented(document, "lplb.replay/1");
    assert_int_equal(whole(trace, "tokens"), 66854);
    assert_int_equal(whole(trace, "layers"), 24);
    assert_int_equal(whole(trace, "experts"), 32);
    assert_int_equal(whole(trace, "topk"), 4);
    assert_int_equal(whole(trace, "batches"), 130);
    assert_int_equal(whole(trace, "measured"), 65);
    assert_int_equal(whole(document, "ranks"), 8);
    assert_int_equal(json_array_size(at(document, "policies")), 5);
    size_t i, k;
    double last = 10;
    json_array_foreach(at(document, "policies"), i, p) {
        check_policy(p, names[i], i == 2 || i == 3);
        assert_true(json_is_null(at(p, "predicted")));
        assert_int_equal(json_array_size(at(p, "per_layer")), 24);
        double sum = 0;
        json_array_foreach(at(p, "per_layer"), k, l) {
            assert_int_equal(whole(l, "layer"), (int)k);
            assert_true(real(l, "mean") <= real(l, "max"));
            sum += real(l, "mean") / 24;
        }
        assert_true(fabs(sum - real(at(p, "imbalance"), "mean")) < 1e-9);
        assert_true(sum < last); /* in this order each is better than the one before */
        last = sum;
    }
    json_decref(document);
    run_free(&r);
}

/* Without --policy: the six that the help promises, search no worse than the others. */
static void test_replay_defaults(void **state) {
    (void)state;
    static const char *const names[] = {"none", "eplb",         "eplb+exact",
                                        "lplb", "search+exact", "ideal"};
    run_result r;
    run_cli(&r, NULL, "replay", "--json", "--ranks", "8", "--redundant", "2", "--layers", "23",
            "--batch-tokens", "512", TRACE, NULL);
    json_t *document = parse(&r), *p;
    double mean[6];
    size_t i;
    assert_int_equal(json_array_size(at(document, "policies")), 6);
    json_array_foreach(at(document, "policies"), i, p) {
        check_policy(p, names[i], i >= 2 && i <= 4);
        mean[i] = real(at(p, "imbalance"), "mean");
    }
    assert_true(mean[4] <= mean[2] + 0.002 && mean[4] <= mean[3] + 0.002);
    json_decref(document);
    run_free(&r);
}

static void test_replay_predicted(void **state) {
    json_t *example = documented("lplb.gpu_model/1");
    char *text = json_dumps(example, 0);
    const char *model = write_text(*state, "model.json", text);
    json_decref(example);
    free(text);
    run_result r;
    run_cli(&r, NULL, "replay", "--json", "--ranks", "4", "--redundant", "1", "--layers", "3-4",
            "--policy", "lplb", "--policy", "ideal", "--gpu-model", model, "--expert-bytes",
            "1000000", "--nodes", "2", TRACE, NULL);
    json_t *document = parse(&r);
    check_documented(document, "lplb.replay/1");
    const json_t *p = at(json_array_get(at(document, "policies"), 0), "predicted");
    assert_true(real(p, "ms_per_layer") > 0);
    assert_true(real(p, "tokens_per_s") > 0);
    assert_int_equal(whole(p, "redundant_bytes"), 4 * 2 * 1000000);
    assert_true(whole(p, "internode_tokens") > 0);
    const json_t *ideal = at(json_array_get(at(document, "policies"), 1), "predicted");
    assert_true(real(ideal, "ms_per_layer") < real(p, "ms_per_layer"));
    const json_t *layers = at(json_array_get(at(document, "policies"), 0), "per_layer");
    assert_int_equal(whole(json_array_get(layers, 1), "layer"), 4);
    json_decref(document);
    run_free(&r);
    run_cli(&r, NULL, "replay", "--ranks", "4", "--redundant", "1", "--layers", "3", "--policy",
            "lplb", "--gpu-model", model, TRACE, NULL);
    assert_int_equal(r.code, 0);
    assert_non_null(strstr(r.out, "ms per layer"));
    run_free(&r);
}

static void test_replay_text(void **state) {
    run_result r;
    run_cli(&r, NULL, "replay", "--ranks", "8", "--redundant", "2", "--policy", "none", "--policy",
            "lplb", "--policy", "eplb+ipm:published", "--order", "interleave", "--report", *state,
            TRACE, NULL);
    assert_int_equal(r.code, 0);
    assert_string_equal(r.err, "");
    static const char *const parts[] = {
        "66854",     "16 batches of 4,096 tokens", "48 expert slots", "\n> lplb ",
        "\n  none ", "lplb is the most even",      "report.html"};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (!strstr(r.out, parts[i])) fail_msg("no \"%s\" in:\n%s", parts[i], r.out);
    assert_null(strchr(r.out, '\033'));
    run_free(&r);
    char *report = read_text(path_join(*state, "report.html"), NULL);
    assert_non_null(report);
    assert_int_equal(strncmp(report, "<!DOCTYPE html>", 15), 0);
    free(report);
}

static void test_replay_counts(void **state) {
    (void)state;
    run_result r;
    run_cli(&r, NULL, "replay", "--json", "--ranks", "8", "--history", "0", "--policy", "none",
            "--policy", "ideal", COUNTS, NULL);
    json_t *document = parse(&r), *trace = at(document, "trace");
    assert_int_equal(whole(trace, "tokens"), 0);
    assert_int_equal(whole(trace, "batches"), 1);
    assert_int_equal(whole(trace, "measured"), 1);
    assert_int_equal(whole(trace, "experts"), 64);
    json_decref(document);
    run_free(&r);
}

typedef struct refusal {
    const char *arguments[12];
    const char *message;
} refusal;

static void check_refusals(const refusal *cases, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const char *const *a = cases[i].arguments;
        run_result r;
        run_cli(&r, NULL, a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11],
                NULL);
        if (r.code != 2) fail_msg("%s: exit code %d", cases[i].message, r.code);
        assert_string_equal(r.out, "");
        if (!strstr(r.err, cases[i].message))
            fail_msg("no \"%s\" in \"%s\"", cases[i].message, r.err);
        run_free(&r);
    }
}

static void test_replay_refusals(void **state) {
    (void)state;
    static const refusal cases[] = {
        {{"replay", TRACE}, "--ranks is required"},
        {{"replay", "--ranks", "8"}, "give one trace"},
        {{"replay", "--ranks", "0", TRACE}, "--ranks wants a whole number from 1"},
        {{"replay", "--ranks", "8", "/nowhere.npz"}, "/nowhere.npz"},
        {{"replay", "--ranks", "5", TRACE}, "4 ranks would divide the experts"},
        {{"replay", "--ranks", "5", TRACE}, "give slots = 35 (7 a rank)"},
        {{"replay", "--ranks", "5", "--slots", "36", TRACE}, "have 35, 40, ... slots"},
        {{"replay", "--ranks", "5", "--slots", "35", "--redundant", "1", TRACE}, "one of them"},
        {{"replay", "--ranks", "5", "--slots", "35", "--policy", "lplb", TRACE},
         "as many experts on every rank"},
        {{"replay", "--ranks", "8", "--policy", "best", TRACE}, "no placement 'best'"},
        {{"replay", "--ranks", "8", "--order", "sorted", TRACE}, "--order wants recorded"},
        {{"replay", "--ranks", "8", "--layers", "3-", TRACE}, "--layers wants A-B"},
        {{"replay", "--ranks", "8", "--layers", "20-24", TRACE}, "not inside 0-23"},
        {{"replay", "--ranks", "8", "--history", "1", TRACE}, "--history wants"},
        {{"replay", "--ranks", "8", "--policy", "lplb", TRACE}, "at least one redundant"},
        {{"replay", "--ranks", "8", "--batch-tokens", "99999", TRACE}, "66854 tokens, fewer"},
        {{"replay", "--ranks", "8", "--batch-tokens", "64", COUNTS}, "one batch a step"},
        {{"replay", "--ranks", "8", "--gpu-model", COUNTS, TRACE}, "lplb.gpu_model/1"},
        {{"replay", "--ranks", "8", "--redundant", "2", "--topology", "cubic", "--policy", "lplb",
          TRACE},
         "no topology 'cubic'"},
    };
    check_refusals(cases, sizeof cases / sizeof cases[0]);
}

/* 5 ranks for 32 experts: without redundancy two of them have an expert more. */
static void test_any_ranks(void **state) {
    (void)state;
    run_result r;
    run_cli(&r, NULL, "replay", "--json", "--ranks", "5", "--slots", "35", "--layers", "23",
            "--batch-tokens", "512", TRACE, NULL);
    json_t *document = parse(&r), *p;
    size_t i;
    assert_int_equal(whole(document, "slots"), 35);
    assert_int_equal(json_array_size(at(document, "policies")), 5);
    double none = 0;
    json_array_foreach(at(document, "policies"), i, p) {
        double mean = real(at(p, "imbalance"), "mean");
        assert_true(mean >= 1);
        if (i == 0) none = mean;
        else if (i == 3) assert_true(mean < none); /* the search, under the exact plan */
    }
    json_decref(document);
    run_free(&r);
    run_cli(&r, NULL, "replay", "--online", "--json", "--ranks", "5", "--slots", "35", "--layers",
            "23", "--batch-tokens", "512", "--policy", "none", TRACE, NULL);
    document = parse(&r);
    assert_int_equal(whole(document, "slots"), 35);
    json_decref(document);
    run_free(&r);
}

static void check_ranks_and_experts(const json_t *x) {
    size_t i;
    json_t *value;
    assert_true(json_array_size(at(x, "ranks")) > 0);
    json_array_foreach(at(x, "ranks"), i, value) assert_true(json_is_integer(value));
    assert_true(json_array_size(at(x, "experts")) > 0);
}

static void test_explain_json(void **state) {
    (void)state;
    run_result r;
    run_cli(&r, NULL, "explain", "--json", "--ranks", "8", "--redundant", "2", "--batch-tokens",
            "512", "--sets", "4", TRACE, NULL);
    json_t *document = parse(&r), *trace = at(document, "trace"), *set;
    assert_string_equal(json_string_value(at(document, "schema")), "lplb.explain/1");
    check_documented(document, "lplb.explain/1");
    assert_true(whole(document, "batch") >= 65 && whole(document, "batch") < 130);
    assert_int_equal(whole(document, "tokens"), 2048);
    assert_true(real(document, "mean") == 256);
    const json_t *after = at(document, "after"), *before = at(document, "before");
    assert_int_equal(json_array_size(at(after, "loads")), 8);
    assert_int_equal(json_array_size(at(before, "loads")), 8);
    assert_string_equal(json_string_value(at(after, "name")), "lplb");
    /* exact: the fullest rank is the bound, rounded up */
    double most = real(after, "imbalance") * 256, bound = real(document, "lower_bound");
    assert_true(fabs(most - ceil(bound - 1e-9)) < 1e-6);
    check_ranks_and_experts(at(document, "bottleneck"));
    assert_true(real(at(document, "next_copy"), "after") <
                real(at(document, "next_copy"), "before"));
    assert_int_equal(whole(trace, "pairs"), 24 * 65);
    assert_true(whole(trace, "limited") <= whole(trace, "pairs"));
    assert_int_equal(json_array_size(at(trace, "most_often")), 4);
    assert_true(whole(trace, "bottlenecks") > 4);
    size_t i;
    int64_t last = 1 << 30;
    json_array_foreach(at(trace, "most_often"), i, set) {
        check_ranks_and_experts(set);
        assert_true(whole(set, "batches") <= last && real(set, "excess") > 0);
        last = whole(set, "batches");
    }
    assert_true(json_array_size(at(trace, "next_copies")) > 0);
    /* another pair, by name */
    char layer[16], batch[16];
    snprintf(layer, sizeof layer, "%d", (int)whole(document, "layer"));
    snprintf(batch, sizeof batch, "%d", (int)whole(document, "batch"));
    run_result again;
    run_cli(&again, NULL, "explain", "--json", "--ranks", "8", "--redundant", "2", "--batch-tokens",
            "512", "--layer", layer, "--batch", batch, TRACE, NULL);
    json_t *same = parse(&again);
    assert_true(json_equal(at(document, "after"), at(same, "after")));
    assert_true(json_equal(at(document, "bottleneck"), at(same, "bottleneck")));
    json_decref(same);
    json_decref(document);
    run_free(&again);
    run_free(&r);
}

static void test_explain_problem(void **state) {
    (void)state;
    static const char problem[] = "{\"ranks\":3,\"experts\":[{\"tokens\":90,\"hosts\":[0]},"
                                  "{\"tokens\":30,\"hosts\":[0,1]},{\"tokens\":0,\"hosts\":[2]}]}";
    run_result r;
    run_cli(&r, problem, "explain", "--json", "-", NULL);
    json_t *document = parse(&r);
    check_documented(document, "lplb.explain/1");
    assert_true(json_is_null(at(document, "layer")) && json_is_null(at(document, "trace")));
    assert_true(real(document, "lower_bound") == 90);
    json_t *expected =
        json_loads("{\"ranks\":[0],\"experts\":[{\"expert\":0,\"tokens\":90}]}", 0, NULL);
    assert_true(json_equal(at(document, "bottleneck"), expected));
    json_decref(expected);
    expected = json_loads("{\"expert\":0,\"rank\":2,\"before\":2.25,\"after\":1.125}", 0, NULL);
    assert_true(json_equal(at(document, "next_copy"), expected));
    json_decref(expected);
    json_decref(document);
    run_free(&r);
    run_cli(&r, problem, "explain", "-", NULL);
    assert_int_equal(r.code, 0);
    assert_non_null(strstr(r.out, "One more copy of expert 0 on rank 2"));
    run_free(&r);
    run_cli(&r, "{\"ranks\":2,\"experts\":[{\"tokens\":0,\"hosts\":[0]}]}", "explain", "-", NULL);
    assert_int_equal(r.code, 0);
    assert_non_null(strstr(r.out, "There are no tokens"));
    run_free(&r);
}

static void test_explain_text(void **state) {
    (void)state;
    run_result r;
    run_cli(&r, NULL, "explain", "--ranks", "8", "--redundant", "2", "--policy", "eplb", "--layer",
            "5", TRACE, NULL);
    assert_int_equal(r.code, 0);
    static const char *const parts[] = {"layer 5, batch ", "The split of eplb is ",
                                        "most often in the way", "one more copy"};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (!strstr(r.out, parts[i])) fail_msg("no \"%s\" in:\n%s", parts[i], r.out);
    run_free(&r);
}

static void test_explain_refusals(void **state) {
    (void)state;
    static const refusal cases[] = {
        {{"explain"}, "give one trace or one problem"},
        {{"explain", TRACE}, "a trace needs --ranks"},
        {{"explain", COUNTS}, "it has no \"ranks\""},
        {{"explain", "--layer", "2", COUNTS}, "a trace needs --ranks"},
        {{"explain", "--ranks", "8", "--policy", "ideal", TRACE}, "nothing limits ideal"},
        {{"explain", "--ranks", "8", "--policy", "eplb", "--batch", "2", TRACE},
         "batch 2 is not measured; those are 8 to 15"},
        {{"explain", "--ranks", "8", "--policy", "eplb", "--layer", "24", TRACE},
         "not inside 0-23"},
    };
    check_refusals(cases, sizeof cases / sizeof cases[0]);
}

static int setup(void **state) {
    *state = scratch_create();
    return 0;
}

static int teardown(void **state) {
    scratch_remove(*state);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replay_json),      cmocka_unit_test(test_replay_defaults),
        cmocka_unit_test(test_replay_predicted), cmocka_unit_test(test_replay_text),
        cmocka_unit_test(test_replay_counts),    cmocka_unit_test(test_replay_refusals),
        cmocka_unit_test(test_any_ranks),        cmocka_unit_test(test_explain_json),
        cmocka_unit_test(test_explain_problem),  cmocka_unit_test(test_explain_text),
        cmocka_unit_test(test_explain_refusals),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
