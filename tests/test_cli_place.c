/* lplb place: the published EPLB example, the move budget, dead ranks, refusals. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>
#include <cmocka.h>

#include "cases/run_cli.h"

#define OLMOE      LPLB_SOURCE_DIR "/data/olmoe-mixtral-prefill/olmoe_c4.json"
#define OLMOE_CODE LPLB_SOURCE_DIR "/data/olmoe-mixtral-prefill/olmoe_github.json"

static char *folder;

static int make_folder(void **state) {
    (void)state;
    folder = scratch_create();
    return folder == NULL;
}
static int drop_folder(void **state) {
    (void)state;
    scratch_remove(folder);
    return 0;
}

static json_t *json_of(const run_result *r) {
    json_error_t error;
    json_t *document = json_loads(r->out, 0, &error);
    if (!document) fail_msg("no JSON: %s\n%s", r->out, r->err);
    return document;
}

/* github.com/deepseek-ai/EPLB, README: 12 experts, 16 slots, 4 groups, 2 nodes, 8 GPUs. */
static void test_published_example(void **state) {
    (void)state;
    static const int expected[2][16] = {{5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1},
                                        {7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}};
    const char *load = write_text(folder, "load.json",
                                  "{\"logical_count\": "
                                  "[[90,132,40,61,104,165,39,4,73,56,183,86],"
                                  "[20,107,104,64,19,197,187,157,172,86,16,27]]}");
    run_result r;
    run_cli(&r, NULL, "place", "--json", "--algorithm", "eplb", "--load", load, "--ranks", "8",
            "--slots", "16", "--groups", "4", "--nodes", "2", NULL);
    assert_int_equal(r.code, 0);
    json_t *out = json_of(&r), *map = json_object_get(out, "physical_to_logical_map");
    for (size_t l = 0; l < 2; l++)
        for (size_t p = 0; p < 16; p++)
            assert_int_equal(json_integer_value(json_array_get(json_array_get(map, l), p)),
                             expected[l][p]);
    assert_int_equal(json_integer_value(json_object_get(out, "n_moves")), 0);
    json_decref(out);
    run_free(&r);
}

/* A file written by one call is where the next starts; the budget a layer is kept. */
static void test_moves(void **state) {
    (void)state;
    const char *placement = path_join(folder, "placement.json");
    run_result r;
    run_cli(&r, NULL, "place", "--algorithm", "search", "--load", OLMOE, "--ranks", "8", "--slots",
            "80", "-o", placement, NULL);
    assert_int_equal(r.code, 0);
    assert_non_null(strstr(r.out, "exact plan"));
    run_free(&r);
    run_cli(&r, NULL, "place", "--json", "--algorithm", "search", "--load", OLMOE_CODE, "--ranks",
            "8", "--slots", "80", "--from", placement, "--max-moves", "7", "--expert-bytes", "10",
            NULL);
    assert_int_equal(r.code, 0);
    json_t *out = json_of(&r), *moves = json_object_get(out, "moves");
    json_int_t n = json_integer_value(json_object_get(out, "n_moves")), of_layer[3] = {0};
    assert_int_equal(json_array_size(moves), n);
    assert_int_equal(json_integer_value(json_object_get(out, "moved_bytes")), 10 * n);
    for (size_t i = 0; i < json_array_size(moves); i++)
        of_layer[json_integer_value(json_object_get(json_array_get(moves, i), "layer"))]++;
    for (int l = 0; l < 3; l++) assert_true(of_layer[l] <= 7);
    json_decref(out);
    run_free(&r);
}

/* The first half places, the figures are the other half's: as measured there by itself. */
static void test_history(void **state) {
    (void)state;
    char *dir = scratch_create();
    const char *path = path_join(dir, "t.npz"), *placed = path_join(dir, "p.json");
    run_result r;
    run_cli(&r, NULL, "gen", "--layers", "1", "--experts", "16", "--topk", "2", "--tokens", "6400",
            "--batch-tokens", "64", path, NULL);
    assert_int_equal(r.code, 0);
    run_free(&r);
    run_cli(&r, NULL, "place", "--algorithm", "eplb", "--load", path, "--ranks", "4", "--slots",
            "20", "--batch-tokens", "64", "--history", "0.5", "-o", placed, NULL);
    assert_int_equal(r.code, 0);
    assert_non_null(strstr(r.out, "from 50 batches"));
    assert_non_null(strstr(r.out, "on the other 50"));
    double even = strtod(strstr(r.out, "even split   mean") + 18, NULL);
    run_free(&r);
    char policy[600];
    snprintf(policy, sizeof policy, "file:%s", placed);
    run_cli(&r, NULL, "replay", "--ranks", "4", "--redundant", "1", "--batch-tokens", "64",
            "--history", "0.5", "--policy", policy, "--json", path, NULL);
    assert_int_equal(r.code, 0);
    json_t *document = json_loads(r.out, 0, NULL);
    double mean = json_real_value(json_object_get(
        json_object_get(json_array_get(json_object_get(document, "policies"), 0), "imbalance"),
        "mean"));
    assert_true(fabs(mean - even) < 6e-5);
    json_decref(document);
    run_free(&r);
    scratch_remove(dir);
}

static void test_dead_and_unequal(void **state) {
    (void)state;
    run_result r;
    run_cli(&r, NULL, "place", "--json", "--algorithm", "search", "--load", OLMOE, "--ranks", "4",
            "--slots-per-rank", "30,20,40,34", "--dead-ranks", "1", NULL);
    assert_int_equal(r.code, 0);
    json_t *out = json_of(&r), *map = json_object_get(out, "physical_to_logical_map");
    for (size_t l = 0; l < 3; l++)
        for (size_t p = 30; p < 50; p++)
            assert_int_equal(json_integer_value(json_array_get(json_array_get(map, l), p)), -1);
    json_decref(out);
    run_free(&r);
    run_cli(&r, NULL, "place", "--algorithm", "search", "--load", OLMOE, "--ranks", "4",
            "--slots-per-rank", "30,20,20,20", "--dead-ranks", "0", NULL);
    assert_int_equal(r.code, 2); /* 60 slots for 64 experts */
    assert_non_null(strstr(r.err, "4"));
    run_free(&r);
}

static void test_refusals(void **state) {
    (void)state;
    static const char *const bad[][12] = {
        {"--algorithm", "eplb", "--load", OLMOE, "--ranks", "7", "--slots", "80"},
        {"--algorithm", "magic", "--load", OLMOE, "--ranks", "8", "--slots", "80"},
        {"--algorithm", "eplb", "--load", OLMOE, "--ranks", "8"},
        {"--algorithm", "eplb", "--load", OLMOE, "--slots", "80"},
        {"--algorithm", "eplb", "--load", "/nowhere.json", "--ranks", "8", "--slots", "80"},
        {"--algorithm", "eplb", "--load", OLMOE, "--ranks", "8", "--slots", "56"},
        {"--algorithm", "eplb", "--load", OLMOE, "--ranks", "8", "--slots", "80", "--topology",
         "cube"},
        {"--algorithm", "search", "--load", OLMOE, "--ranks", "8", "--slots", "80", "--max-moves",
         "3"},
        {"--algorithm", "search", "--load", OLMOE, "--ranks", "8", "--slots", "80", "--split",
         "odd"},
        {"--algorithm", "search", "--load", OLMOE, "--ranks", "8", "--slots", "80", "--dead-ranks",
         "8"},
        {"--algorithm", "search", "--load", OLMOE, "--ranks", "2", "--slots-per-rank", "1,2,3"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        run_result r;
        const char *argv[16] = {LPLB_CLI, "place"};
        for (int j = 0; j < 12 && bad[i][j]; j++) argv[2 + j] = bad[i][j];
        run_command(&r, NULL, argv);
        if (r.code != 2 || r.out_bytes || !r.err_bytes)
            fail_msg("case %zu: exit %d, %s", i, r.code, r.err);
        run_free(&r);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_example), cmocka_unit_test(test_moves),
        cmocka_unit_test(test_history),           cmocka_unit_test(test_dead_and_unequal),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, make_folder, drop_folder);
}
