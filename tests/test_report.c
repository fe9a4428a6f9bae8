/* The HTML report: one file that loads nothing, holds well-formed data, and takes no harm from
 * hostile names. What it looks like is for eyes. */
#include <jansson.h>
#include <lplb/replay.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/mem.h"
#include "base/rng.h"
#include "cases/run_cli.h"

static char *duplicate(const char *text) {
    char *copy = lplb__malloc(strlen(text) + 1);
    assert_non_null(copy);
    return strcpy(copy, text);
}

#define TAKE(pointer, count) assert_int_equal(LPLB_CALLOC(pointer, count), LPLB_OK)

/* Loads of one (layer, batch) from its counts, each expert split evenly over its slots; sharper
 * policies get theirs blended with the mean. */
static void fill_loads(const lplb_replay_result *r, const lplb_placement *placement, int32_t layer,
                       const int64_t *counts, double blend, int64_t *loads) {
    int64_t total = 0;
    for (int32_t e = 0; e < r->experts; e++) total += counts[e];
    for (int32_t rank = 0; rank < r->ranks; rank++) {
        double load = 0;
        for (int32_t s = placement->rank_offset[rank]; s < placement->rank_offset[rank + 1]; s++) {
            int32_t expert = placement->physical_to_logical[(int64_t)layer * r->slots + s];
            int32_t copies = r->slots / r->experts + (expert < r->slots % r->experts);
            load += (double)counts[expert] / copies;
        }
        loads[rank] = (int64_t)(blend * (double)total / r->ranks + (1 - blend) * load);
    }
}

static void fill_policy(lplb_replay_result *r, int32_t p, const char *name, bool placed) {
    lplb_policy_result *policy = &r->policy[p];
    double blend = (double)p / (r->policies > 1 ? r->policies - 1 : 1), sum = 0;
    policy->policy = duplicate(name);
    lplb_placement *placement;
    assert_int_equal(
        lplb_placement_create(r->layers, r->experts, r->slots, r->ranks, NULL, &placement),
        LPLB_OK);
    lplb_placement_fill_trivial(placement);
    TAKE(policy->pair_imbalance, r->layers * r->measured);
    TAKE(policy->layer_mean, r->layers);
    TAKE(policy->layer_max, r->layers);
    TAKE(policy->loads, r->layers * r->measured * r->ranks);
    for (int64_t i = 0; i < r->layers * r->measured; i++) {
        int64_t *loads = policy->loads + i * r->ranks, most = 0, total = 0;
        int32_t layer = (int32_t)(i / r->measured);
        fill_loads(r, placement, layer, r->counts + i * r->experts, blend, loads);
        for (int32_t rank = 0; rank < r->ranks; rank++) {
            total += loads[rank];
            most = loads[rank] > most ? loads[rank] : most;
        }
        double imbalance = total ? (double)most * r->ranks / (double)total : 0;
        policy->pair_imbalance[i] = imbalance;
        policy->layer_mean[layer] += imbalance / (double)r->measured;
        if (imbalance > policy->layer_max[layer]) policy->layer_max[layer] = imbalance;
        if (imbalance > policy->imbalance.max) policy->imbalance.max = imbalance;
        sum += imbalance;
    }
    policy->imbalance.mean = policy->imbalance.p50 = sum / (double)(r->layers * r->measured);
    policy->imbalance.p99 = policy->imbalance.max;
    policy->balancedness = policy->imbalance.mean > 0 ? 1 / policy->imbalance.mean : 0;
    policy->place_seconds = 0.001 * p;
    policy->has_plan_time = p > 1;
    policy->plan_us_p50 = 1.5;
    policy->plan_us_p99 = 2.5;
    policy->moved_tokens = 1000 * p;
    policy->moved_slots = 10 * p;
    policy->has_prediction = 1;
    policy->ms_per_layer = policy->imbalance.mean;
    policy->tokens_per_s = 1e6 / (1 + policy->imbalance.mean);
    policy->redundant_bytes = (int64_t)1 << 32;
    if (placed) policy->placement = placement;
    else lplb_placement_destroy(placement);
}

/* names: NULL-terminated; the last policy has no placement. */
static lplb_replay_result *make_result(const char *const *names, int32_t layers, int64_t measured,
                                       int32_t ranks, int32_t experts) {
    lplb_replay_result *r;
    TAKE(r, 1);
    *r = (lplb_replay_result){.tokens = 4096 * 2 * measured,
                              .batches = 2 * measured,
                              .measured = measured,
                              .layers = layers,
                              .first_layer = 3,
                              .experts = experts,
                              .topk = 4,
                              .ranks = ranks,
                              .slots = experts + 2 * ranks,
                              .nodes = 2,
                              .batch_tokens = 4096};
    while (names[r->policies]) r->policies++;
    TAKE(r->policy, r->policies);
    TAKE(r->counts, layers * measured * experts);
    lplb__rng rng;
    lplb__rng_seed(&rng, 7, 0);
    for (int64_t i = 0; i < layers * measured * experts; i++)
        r->counts[i] = lplb__rng_below(&rng, i % experts < 3 ? 2000 : 500);
    for (int32_t p = 0; p < r->policies; p++)
        fill_policy(r, p, names[p], p + 1 < r->policies || r->policies == 1);
    return r;
}

/* The report of a result as text; checks what holds for every report. */
static char *write_and_read(const lplb_replay_result *result, const char *title, size_t *bytes) {
    char *dir = scratch_create();
    lplb_status status = lplb_report_write(result, title, path_join(dir, "report"));
    if (status != LPLB_OK) fail_msg("%s", lplb_error_message());
    char *text = read_text(path_join(path_join(dir, "report"), "report.html"), bytes);
    assert_non_null(text);
    scratch_remove(dir);
    return text;
}

static int count_of(const char *text, const char *part) {
    int n = 0;
    for (const char *at = text; (at = strstr(at, part)) != NULL; at += strlen(part)) n++;
    return n;
}

/* The JSON document inside; an independent parser must take it. */
static json_t *parse_data(const char *text) {
    static const char start[] = "<script type=\"application/json\" id=\"data\">";
    const char *from = strstr(text, start);
    assert_non_null(from);
    from += sizeof start - 1;
    const char *to = strstr(from, "</script>");
    assert_non_null(to);
    json_error_t error;
    json_t *document = json_loadb(from, (size_t)(to - from), JSON_REJECT_DUPLICATES, &error);
    if (!document) fail_msg("line %d: %s", error.line, error.text);
    return document;
}

static const char *const usual[] = {"none",         "eplb+even", "eplb+exact", "topology+exact",
                                    "search+exact", "ideal",     NULL};

static void test_data(void **state) {
    (void)state;
    lplb_replay_result *r = make_result(usual, 5, 9, 4, 8);
    char *text = write_and_read(r, "A title", NULL);
    json_t *data = parse_data(text), *policies = json_object_get(data, "policies");
    assert_string_equal(json_string_value(json_object_get(data, "schema")), "lplb.report/1");
    assert_int_equal(json_array_size(policies), 6);
    assert_int_equal(json_integer_value(json_object_get(data, "baseline")), 0);
    assert_int_equal(json_integer_value(json_object_get(data, "best")), 4);
    for (size_t p = 0; p < 6; p++) {
        json_t *policy = json_array_get(policies, p);
        assert_string_equal(json_string_value(json_object_get(policy, "name")), usual[p]);
        json_t *time = json_object_get(policy, "time"), *detail = json_object_get(policy, "detail");
        assert_int_equal(json_array_size(time), 9);
        assert_int_equal(json_array_size(json_object_get(policy, "layer_mean")), 5);
        assert_int_equal(json_array_size(detail), 5);
        for (size_t b = 0; b < 9; b++) { /* few batches: every column is one of them */
            double mean = 0;
            for (int layer = 0; layer < 5; layer++)
                mean += r->policy[p].pair_imbalance[layer * 9 + b] / 5;
            assert_true(json_number_value(json_array_get(time, b)) - mean < 1e-3);
        }
        json_t *quantiles = json_object_get(policy, "quantiles");
        size_t last = json_array_size(quantiles) - 1;
        assert_float_equal(json_number_value(json_array_get(quantiles, last)),
                           r->policy[p].imbalance.max, 1e-3);
        const char *heat = json_string_value(json_object_get(json_array_get(detail, 0), "heat"));
        assert_int_equal(strlen(heat), 2 * 4 * 9);
        json_t *slots = json_object_get(json_array_get(detail, 0), "slots");
        assert_int_equal(json_array_size(slots), p < 5 ? 16 : 0);
    }
    json_decref(data);
    free(text);
    lplb_replay_result_destroy(r);
}

/* Nothing is loaded from anywhere: the only addresses are names of XML namespaces. */
static void test_self_contained(void **state) {
    (void)state;
    lplb_replay_result *r = make_result(usual, 3, 4, 4, 8);
    char *text = write_and_read(r, "A title", NULL);
    assert_int_equal(count_of(text, "://"), 1);
    assert_int_equal(count_of(text, "http://www.w3.org/2000/svg"), 1);
    assert_null(strstr(text, "<link"));
    assert_null(strstr(text, "<img"));
    assert_null(strstr(text, " src="));
    assert_null(strstr(text, "url("));
    assert_null(strstr(text, "@import"));
    assert_null(strstr(text, "@TABLE@"));
    assert_non_null(strstr(text, "default-src 'none'"));
    assert_int_equal(count_of(text, "<script"), 3);
    assert_int_equal(count_of(text, "</script>"), 3);
    assert_int_equal(count_of(text, "<section"), count_of(text, "</section>"));
    assert_int_equal(count_of(text, "<tr"), count_of(text, "</tr>"));
    free(text);
    lplb_replay_result_destroy(r);
}

static void test_hostile_names(void **state) {
    (void)state;
    static const char evil[] =
        "</script><script>alert(1)</script>\"'&<!--\\ \xff\xc0\x80 \xe2\x80\xa8"
        " caf\xc3\xa9 \x01 <img src=x onerror=alert(2)>";
    const char *const names[] = {"none", "file:</title><b>\"'\\", evil, "ideal", NULL};
    lplb_replay_result *r = make_result(names, 2, 3, 4, 8);
    char *text = write_and_read(r, evil, NULL);
    assert_null(strstr(text, "alert(1)</script>"));
    assert_null(strstr(text, "<img"));
    assert_null(strstr(text, "</title><b>"));
    assert_int_equal(count_of(text, "<script"), 3);
    assert_int_equal(count_of(text, "</title>"), 1);
    assert_null(strchr(text, '\x01'));
    assert_null(strchr(text, '\xff'));
    json_t *data = parse_data(text); /* jansson refuses invalid UTF-8 */
    json_t *policies = json_object_get(data, "policies");
    assert_string_equal(json_string_value(json_object_get(json_array_get(policies, 1), "name")),
                        names[1]);
    const char *read_back = json_string_value(json_object_get(json_array_get(policies, 2), "name"));
    assert_memory_equal(read_back, evil, strlen("</script><script>alert(1)</script>\"'&<!--\\ "));
    assert_non_null(strstr(read_back, "\xe2\x80\xa8"));
    assert_non_null(strstr(read_back, "\xef\xbf\xbd"));
    assert_non_null(strstr(text, "caf\xc3\xa9"));
    json_decref(data);
    free(text);
    lplb_replay_result_destroy(r);
}

/* Long and wide results are folded; every layer that stays says which one it is. */
static void test_size(void **state) {
    (void)state;
    const char *const names[] = {"none", "eplb", "search+exact", "ideal", NULL};
    lplb_replay_result *r = make_result(names, 40, 700, 64, 128);
    size_t bytes;
    char *text = write_and_read(r, "big", &bytes);
    assert_true(bytes < 3000000);
    json_t *data = parse_data(text);
    assert_in_range(json_integer_value(json_object_get(data, "columns")), 40, 200);
    json_t *rows = json_object_get(data, "detail_rows");
    assert_in_range(json_array_size(rows), 1, 40);
    for (size_t i = 1; i < json_array_size(rows); i++)
        assert_true(json_integer_value(json_array_get(rows, i - 1)) <
                    json_integer_value(json_array_get(rows, i)));
    json_decref(data);
    free(text);
    lplb_replay_result_destroy(r);
}

static void test_empty_and_bad(void **state) {
    (void)state;
    const char *const names[] = {"none", NULL};
    lplb_replay_result *r = make_result(names, 1, 1, 2, 2);
    memset(r->counts, 0, 2 * sizeof *r->counts);
    memset(r->policy[0].loads, 0, 2 * sizeof *r->policy[0].loads);
    memset(r->policy[0].pair_imbalance, 0, sizeof(double));
    r->policy[0].imbalance = (lplb_distribution){0};
    char *text = write_and_read(r, "", NULL);
    assert_non_null(strstr(text, "no load"));
    json_decref(parse_data(text));
    free(text);

    assert_int_equal(lplb_report_write(NULL, "t", "x"), LPLB_INVALID);
    char *dir = scratch_create();
    write_text(dir, "file", "");
    assert_int_equal(lplb_report_write(r, "t", path_join(dir, "file")), LPLB_IO);
    assert_non_null(strstr(lplb_error_message(), "file"));
    assert_int_equal(lplb_report_write(r, "t", path_join(dir, "no/such")), LPLB_IO);
    scratch_remove(dir);
    r->policies = 0;
    assert_int_equal(lplb_report_write(r, "t", "x"), LPLB_INVALID);
    r->policies = 1;
    lplb_replay_result_destroy(r);
}

/* The page's scripts in a real browser, where there is one: every section is drawn, nothing is
 * thrown and nothing is asked of the network. */
static void test_in_browser(void **state) {
    (void)state;
    run_result r;
    const char *const find[] = {"sh", "-c", "command -v chromium || exit 1", NULL};
    run_command(&r, NULL, find);
    bool found = r.code == 0;
    run_free(&r);
    if (!found) {
        print_message("no chromium: skipped\n");
        skip();
    }
    lplb_replay_result *result = make_result(usual, 5, 9, 4, 8);
    char *dir = scratch_create(), profile[4200], url[4200];
    assert_int_equal(lplb_report_write(result, "A title", dir), LPLB_OK);
    snprintf(profile, sizeof profile, "--user-data-dir=%s", path_join(dir, "profile"));
    snprintf(url, sizeof url, "file://%s", path_join(dir, "report.html"));
    const char *const browse[] = {"chromium",
                                  "--headless",
                                  "--no-sandbox",
                                  "--disable-gpu",
                                  "--disable-dev-shm-usage",
                                  "--enable-logging=stderr",
                                  profile,
                                  "--dump-dom",
                                  url,
                                  NULL};
    run_command(&r, NULL, browse);
    assert_int_equal(r.code, 0);
    if (strstr(r.err, "CONSOLE")) fail_msg("%s", r.err);
    /* two line charts, the bars, and what policies cost; two heat maps; 4 ranks on each side */
    assert_true(count_of(r.out, "<svg") > 8);
    assert_int_equal(count_of(r.out, "<canvas"), 2);
    assert_int_equal(count_of(r.out, "class=\"rank\""), 8);
    run_free(&r);
    scratch_remove(dir);
    lplb_replay_result_destroy(result);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_data),          cmocka_unit_test(test_self_contained),
        cmocka_unit_test(test_hostile_names), cmocka_unit_test(test_size),
        cmocka_unit_test(test_empty_and_bad), cmocka_unit_test(test_in_browser),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
