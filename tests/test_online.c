/* Online replay against the plain replay, against EPLB done by hand, and against itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <lplb/gen.h>
#include <lplb/online.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cases/run_cli.h"

enum { L = 2, E = 16, G = 4, D = 2, P = E + G * D, B = 64, STEPS = 300 };

static lplb_trace *drifting_trace(void) {
    static int64_t from[L * E], to[L * E];
    for (int i = 0; i < L * E; i++) {
        from[i] = 1 + (i * 7) % 23;
        to[i] = 1 + (i * 5 + 3) % 29;
    }
    lplb_gen_config config = {.struct_size = sizeof config,
                              .layers = L,
                              .experts = E,
                              .topk = 2,
                              .tokens = STEPS * B,
                              .batch_tokens = B,
                              .base = LPLB_GEN_LOADS,
                              .load = from,
                              .load_end = to,
                              .seed = 3};
    lplb_trace *trace;
    assert_int_equal(lplb_gen(&config, &trace), LPLB_OK);
    return trace;
}

static lplb_online_result *run(const lplb_trace *trace, const char *policy, int32_t threads,
                               double history) {
    lplb_online_config config = {.struct_size = sizeof config,
                                 .replay = {.struct_size = sizeof(lplb_replay_config),
                                            .ranks = G,
                                            .redundant = D,
                                            .batch_tokens = B,
                                            .all_layers = 1,
                                            .history = history,
                                            .policy = policy ? &policy : NULL,
                                            .policies = policy != NULL,
                                            .threads = threads},
                                 .points = 30,
                                 .keep_events = 1};
    lplb_online_result *result;
    lplb_status status = lplb_online(trace, &config, &result);
    if (status != LPLB_OK) fail_msg("%s", lplb_error_message());
    return result;
}

/* A mapping that never moves is what the plain replay measures. */
static void test_still(void **state) {
    (void)state;
    lplb_trace *trace = drifting_trace();
    static const char *const names[] = {"none+even", "none+exact"};
    for (int i = 0; i < 2; i++) {
        lplb_replay_config config = {.struct_size = sizeof config,
                                     .ranks = G,
                                     .redundant = D,
                                     .batch_tokens = B,
                                     .all_layers = 1,
                                     .history = 0.25,
                                     .policy = &names[i],
                                     .policies = 1,
                                     .threads = 1};
        lplb_replay_result *plain;
        assert_int_equal(lplb_replay(trace, &config, &plain), LPLB_OK);
        lplb_online_result *online = run(trace, names[i], 1, 0.25);
        assert_int_equal(online->measured, plain->measured);
        assert_true(fabs(online->policy[0].imbalance.mean - plain->policy[0].imbalance.mean) <
                    1e-9);
        assert_true(online->policy[0].imbalance.p99 == plain->policy[0].imbalance.p99);
        assert_true(online->policy[0].imbalance.max == plain->policy[0].imbalance.max);
        assert_int_equal(online->policy[0].moved_slots, 0);
        lplb_replay_result_destroy(plain);
        lplb_online_result_destroy(online);
    }
    lplb_trace_destroy(trace);
}

/* Published EPLB every 50 steps on the sum of the 50 before, moves counted by lplb_placement. */
static void test_periodic_eplb(void **state) {
    (void)state;
    lplb_trace *trace = drifting_trace();
    lplb_online_result *online = run(trace, "eplb:every=50", 1, -1);
    lplb_placement *now, *next;
    assert_int_equal(lplb_placement_create(L, E, P, G, NULL, &now), LPLB_OK);
    assert_int_equal(lplb_placement_create(L, E, P, G, NULL, &next), LPLB_OK);
    lplb_placement_fill_trivial(now);
    int64_t moves = 0, rearrangements = 0;
    /* The manager's first step is 0, so it decides after step 50, 100, ... with 50 in its window;
     * each is adopted 25 steps later and in force after one more. */
    for (int64_t at = 50; at + 26 < STEPS; at += 50) {
        float load[L * E];
        for (int l = 0; l < L; l++) {
            int64_t counts[E];
            lplb_trace_count(trace, l, (at - 49) * B, 50 * B, NULL, counts);
            for (int e = 0; e < E; e++) load[l * E + e] = (float)counts[e];
        }
        assert_int_equal(lplb_eplb_rebalance_experts(load, L, E, P, 1, 1, G,
                                                     next->physical_to_logical, NULL, NULL),
                         LPLB_OK);
        int64_t n;
        assert_int_equal(lplb_placement_moves(now, next, NULL, 0, &n), LPLB_OK);
        moves += n;
        rearrangements++;
        lplb_placement *swap = now;
        now = next;
        next = swap;
    }
    assert_int_equal(online->policy[0].rearrangements, rearrangements);
    assert_int_equal(online->policy[0].moved_slots, moves);
    assert_int_equal(online->policy[0].curve_moves[online->points - 1], moves);
    lplb_placement_destroy(now);
    lplb_placement_destroy(next);
    lplb_online_result_destroy(online);
    lplb_trace_destroy(trace);
}

/* Threads and company change nothing; curves say what the figures say. */
static void test_repeats(void **state) {
    (void)state;
    lplb_trace *trace = drifting_trace();
    lplb_online_result *a = run(trace, "manager:algorithm=eplb,interval=40,min=20+exact", 1, -1);
    lplb_online_result *b = run(trace, "manager:algorithm=eplb,interval=40,min=20+exact", 3, -1);
    const lplb_online_policy *p = &a->policy[0], *q = &b->policy[0];
    assert_memory_equal(&p->imbalance, &q->imbalance, sizeof p->imbalance);
    assert_int_equal(p->events, q->events);
    for (int64_t i = 0; i < p->events; i++) assert_string_equal(p->event[i].text, q->event[i].text);
    assert_true(p->events > 3);
    assert_memory_equal(p->curve, q->curve, sizeof(double) * 30);
    double mean = 0;
    for (int i = 0; i < 30; i++) {
        mean += p->curve[i] / 30; /* points of equal length, no empty layers */
        assert_true(i == 0 || p->curve_moves[i] >= p->curve_moves[i - 1]);
        assert_int_equal(a->point_step[i], i * 10);
    }
    assert_true(fabs(mean - p->imbalance.mean) < 1e-9);
    lplb_online_result_destroy(a);
    lplb_online_result_destroy(b);
    lplb_trace_destroy(trace);
}

static void test_refusals(void **state) {
    (void)state;
    lplb_trace *trace = drifting_trace();
    static const struct {
        const char *policy, *says;
    } wrong[] = {
        {"dance", "there are none, fixed, eplb, manager"},
        {"none:every=3", "takes no options"},
        {"eplb:every=0", "whole number from 1"},
        {"eplb:gain=1", "eplb has no option 'gain'"},
        {"manager:colour=1", "manager has no option 'colour'"},
        {"manager:alpha=2", "from 1e-06 to 1"},
        {"manager:keep", "needs a value"},
        {"manager:season=3", "needs forecast"},
        {"manager:work=0", "whole number"},
        {"manager:algorithm=magic", "search, eplb or topology"},
        {"manager+magic", "magic"},
        {"fixed+exact:locality=1", "locality"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        lplb_online_config config = {.struct_size = sizeof config,
                                     .replay = {.struct_size = sizeof(lplb_replay_config),
                                                .ranks = G,
                                                .redundant = D,
                                                .batch_tokens = B,
                                                .all_layers = 1,
                                                .policy = &wrong[i].policy,
                                                .policies = 1}};
        lplb_online_result *result;
        assert_int_equal(lplb_online(trace, &config, &result), LPLB_INVALID);
        if (!strstr(lplb_error_message(), wrong[i].says))
            fail_msg("'%s' does not say '%s'", lplb_error_message(), wrong[i].says);
        assert_null(result);
    }
    lplb_trace_destroy(trace);
}

static char *read_page(const char *path) {
    static const size_t most = 1 << 20;
    char *text = calloc(most + 1, 1);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_true(fread(text, 1, most, file) < most);
    fclose(file);
    return text;
}

/* What steps would wait: all of placing where they take no time and the lag is one of them, nothing
 * where they are long; the monitor shows the first manager; a forecaster changes what is placed. */
static void test_waits_and_monitor(void **state) {
    (void)state;
    lplb_trace *trace = drifting_trace();
    static const char *const names[] = {"eplb:every=50", "manager:lag=1,interval=50,min=25",
                                        "manager:lag=1,interval=50,min=25,forecast=5"};
    lplb_monitor *monitor;
    lplb_monitor_config m = {.struct_size = sizeof m, .ranks = G};
    assert_int_equal(lplb_monitor_create(&m, &monitor), LPLB_OK);
    for (int i = 0; i < 2; i++) {
        lplb_online_config config = {.struct_size = sizeof config,
                                     .replay = {.struct_size = sizeof(lplb_replay_config),
                                                .ranks = G,
                                                .redundant = D,
                                                .batch_tokens = B,
                                                .all_layers = 1,
                                                .history = -1,
                                                .policy = names,
                                                .policies = 3,
                                                .threads = 1},
                                     .step_ns = i ? 1e15 : 1,
                                     .monitor = i ? NULL : monitor};
        lplb_online_result *result;
        assert_int_equal(lplb_online(trace, &config, &result), LPLB_OK);
        const lplb_online_policy *p = &result->policy[1];
        assert_true(p->place_seconds > 0 && p->stats.adopt_lag == 1);
        if (i) assert_true(p->wait_seconds == 0);
        else assert_true(p->wait_seconds > 0.9 * p->place_seconds);
        assert_true(p->wait_seconds <= p->place_seconds);
        lplb_monitor_summary summary;
        lplb_monitor_get(monitor, &summary, NULL);
        assert_int_equal(summary.steps, STEPS);
        assert_int_equal(summary.tokens, (int64_t)STEPS * B * 2 * L);
        if (!i) assert_int_equal(summary.manager.moves, p->stats.moves);
        if (!i) assert_true(fabs(summary.imbalance[3].mean - p->imbalance.mean) < 1e-9);
        lplb_online_result_destroy(result);
    }
    lplb_monitor_destroy(monitor);
    lplb_trace_destroy(trace);
}

static void test_command(void **state) {
    (void)state;
    char *dir = scratch_create();
    lplb_trace *trace = drifting_trace();
    const char *path = path_join(dir, "t.npz");
    assert_int_equal(lplb_trace_write(trace, path), LPLB_OK);
    run_result r;
    run_cli(&r, NULL, "replay", "--online", "--ranks", "4", "--redundant", "2", "--batch-tokens",
            "64", "--policy", "eplb:every=100", "--policy", "fixed+exact", "--json", path, NULL);
    assert_int_equal(r.code, 0);
    json_t *document = json_loads(r.out, 0, NULL);
    assert_non_null(document);
    assert_string_equal(json_string_value(json_object_get(document, "schema")),
                        "lplb.replay_online/1");
    const json_t *first = json_array_get(json_object_get(document, "policies"), 0);
    assert_int_equal(json_array_size(json_object_get(json_object_get(first, "curve"), "step")),
                     100);
    assert_true(json_integer_value(json_object_get(first, "moved_slots")) > 0);
    assert_true(json_array_size(json_object_get(first, "events")) > 2);
    json_decref(document);
    run_free(&r);
    run_cli(&r, NULL, "replay", "--online", "--ranks", "4", "--redundant", "2", "--batch-tokens",
            "64", "--policy", "fixed", path, NULL);
    assert_int_equal(r.code, 0);
    assert_non_null(strstr(r.out, "Imbalance over time"));
    run_free(&r);
    run_cli(&r, NULL, "replay", "--online", "--ranks", "4", "--gpu-model", path, path, NULL);
    assert_int_equal(r.code, 2);
    run_free(&r);
    run_cli(&r, NULL, "replay", "--online", "--ranks", "4", "--redundant", "2", "--batch-tokens",
            "64", "--policy", "fixed", "--report", dir, path, NULL);
    assert_int_equal(r.code, 0);
    run_free(&r);
    char *page = read_page(path_join(dir, "report.html"));
    assert_non_null(strstr(page, "<td>fixed</td>"));
    char *start = strstr(page, "id=\"data\">"), *end = start ? strstr(start, "</script>") : NULL;
    assert_non_null(end);
    *end = '\0';
    document = json_loads(strchr(start, '>') + 1, 0, NULL);
    assert_non_null(document);
    assert_string_equal(json_string_value(json_object_get(document, "schema")),
                        "lplb.report_online/1");
    assert_int_equal(json_integer_value(json_object_get(document, "slots")), L * P);
    const json_t *fixed = json_array_get(json_object_get(document, "policies"), 0);
    assert_int_equal(json_array_size(json_object_get(fixed, "imbalance")), 100);
    assert_int_equal(json_array_size(json_object_get(fixed, "moves")), 100);
    json_decref(document);
    free(page);
    run_cli(&r, NULL, "replay", "--online", "--ranks", "4", "--redundant", "2", "--batch-tokens",
            "64", "--policy", "manager", "--metrics-port", "0", "--step-ms", "5", path, NULL);
    assert_int_equal(r.code, 0);
    assert_non_null(strstr(r.err, "metrics at http://127.0.0.1:"));
    assert_non_null(strstr(r.out, "at 5 ms a step"));
    run_free(&r);
    run_cli(&r, NULL, "replay", "--token-ns", "4", "--ranks", "4", path, NULL);
    assert_int_equal(r.code, 2);
    assert_non_null(strstr(r.err, "need --online"));
    run_free(&r);
    lplb_trace_destroy(trace);
    scratch_remove(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_still),
        cmocka_unit_test(test_periodic_eplb),
        cmocka_unit_test(test_repeats),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_waits_and_monitor),
        cmocka_unit_test(test_command),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
