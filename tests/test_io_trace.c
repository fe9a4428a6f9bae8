/* Traces in npy and npz, and counting: random traces are written and read back, and arrays are
 * checked against headers and bytes put together here. */
#define _XOPEN_SOURCE 700
#include "io_helpers.h"

/* ---- files put together by hand ---- */

static size_t npy_image(char *out, const char *dictionary, const void *items, size_t bytes) {
    size_t n = strlen(dictionary);
    memcpy(out, "\x93NUMPY\x01\x00", 8);
    out[8] = (char)(n & 255);
    out[9] = (char)(n >> 8);
    memcpy(out + 10, dictionary, n);
    if (bytes) memcpy(out + 10 + n, items, bytes);
    return 10 + n + bytes;
}

static lplb_status read_npy(const char *dictionary, const void *items, size_t bytes,
                            const char *layout, lplb_trace **out) {
    char image[4096];
    size_t n = npy_image(image, dictionary, items, bytes);
    lplb_trace_options options = {.layout = layout, .max_bytes = 1 << 20};
    return lplb__trace_read_memory(image, (int64_t)n, "x.npy", &options, out);
}

static void test_item_types(void **state) {
    (void)state;
    static const struct {
        const char *descr;
        unsigned char items[2][8];
        int bytes;
    } types[] = {
        {"|i1", {{3}, {0}}, 1},          {"|u1", {{3}, {0}}, 1},
        {"<i2", {{3, 0}, {0, 0}}, 2},    {">i2", {{0, 3}, {0, 0}}, 2},
        {"<u2", {{3, 0}, {0, 0}}, 2},    {"<i4", {{3}, {0}}, 4},
        {">i4", {{0, 0, 0, 3}, {0}}, 4}, {"<u4", {{3}, {0}}, 4},
        {"<i8", {{3}, {0}}, 8},          {">u8", {{0, 0, 0, 0, 0, 0, 0, 3}, {0}}, 8},
        {"=i4", {{3}, {0}}, 4},
    };
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        char dictionary[128];
        unsigned char items[16];
        snprintf(dictionary, sizeof dictionary,
                 "{'descr': '%s', 'fortran_order': False, 'shape': (1, 2), }\n", types[i].descr);
        memcpy(items, types[i].items[0], (size_t)types[i].bytes);
        memcpy(items + types[i].bytes, types[i].items[1], (size_t)types[i].bytes);
        lplb_trace *trace;
        expect_ok(read_npy(dictionary, items, 2 * (size_t)types[i].bytes, "TK", &trace));
        assert_int_equal(trace->experts, 4);
        assert_int_equal(trace->topk_ids[0], 3);
        assert_int_equal(trace->topk_ids[1], 0);
        lplb_trace_destroy(trace);
    }
}

static void test_floats(void **state) {
    (void)state;
    const char *shape = "{'descr': '%s', 'fortran_order': False, 'shape': (1, 2)}";
    char dictionary[128];
    lplb_trace *trace;
    snprintf(dictionary, sizeof dictionary, shape, "<f4");
    float good[2] = {16777216.0f, 0}, bad[2] = {1, 2.5f};
    expect_ok(read_npy(dictionary, good, sizeof good, NULL, &trace));
    assert_int_equal(trace->kind, LPLB_TRACE_COUNTS);
    assert_int_equal(trace->counts[0], 16777216);
    lplb_trace_destroy(trace);
    expect_failure(read_npy(dictionary, bad, sizeof bad, NULL, &trace), LPLB_RANGE, "item 1");
    expect_failure(read_npy(dictionary, good, sizeof good, "TK", &trace), LPLB_FORMAT, "integers");
    snprintf(dictionary, sizeof dictionary, shape, "<f2");
    uint16_t half[2] = {0x4900, 0x7bff}; /* 10 and 65504 */
    expect_ok(read_npy(dictionary, half, sizeof half, NULL, &trace));
    assert_int_equal(trace->counts[0], 10);
    assert_int_equal(trace->counts[1], 65504);
    lplb_trace_destroy(trace);
    snprintf(dictionary, sizeof dictionary, shape, "<f8");
    double negative[2] = {-1, 2};
    expect_failure(read_npy(dictionary, negative, sizeof negative, NULL, &trace), LPLB_RANGE,
                   "negative");
}

static void test_layouts(void **state) {
    (void)state;
    /* Items 0..23 of shape (2, 3, 4): where item (a, b, c) must land in [T][L][K]. */
    int32_t items[24];
    for (int i = 0; i < 24; i++) items[i] = i;
    for (int fortran = 0; fortran < 2; fortran++) {
        for (int ltk = 0; ltk < 2; ltk++) {
            char dictionary[128];
            snprintf(dictionary, sizeof dictionary,
                     "{'shape': (2, 3, 4), 'descr': '<i4', 'fortran_order': %s}",
                     fortran ? "True" : "False");
            lplb_trace *trace;
            expect_ok(read_npy(dictionary, items, sizeof items, ltk ? "LTK" : "TLK", &trace));
            assert_int_equal(trace->tokens, ltk ? 3 : 2);
            assert_int_equal(trace->layers, ltk ? 2 : 3);
            for (int a = 0; a < 2; a++)
                for (int b = 0; b < 3; b++)
                    for (int c = 0; c < 4; c++) {
                        int t = ltk ? b : a, l = ltk ? a : b;
                        int value = fortran ? a + 2 * b + 6 * c : 12 * a + 4 * b + c;
                        assert_int_equal(trace->topk_ids[(t * trace->layers + l) * 4 + c], value);
                    }
            lplb_trace_destroy(trace);
        }
    }
    lplb_trace *trace;
    expect_failure(read_npy("{'shape': (2, 3, 4), 'descr': '<i4', 'fortran_order': False}", items,
                            sizeof items, NULL, &trace),
                   LPLB_INVALID, "--layout TLK, LTK or SLE");
    expect_ok(read_npy("{'shape': (2, 3, 2, 2), 'descr': '<i4', 'fortran_order': False}", items,
                       sizeof items, NULL, &trace)); /* steps, layers, tokens, k */
    assert_int_equal(trace->tokens, 4);
    for (int s = 0; s < 2; s++)
        for (int l = 0; l < 3; l++)
            for (int t = 0; t < 2; t++)
                for (int k = 0; k < 2; k++)
                    assert_int_equal(trace->topk_ids[((s * 2 + t) * 3 + l) * 2 + k],
                                     ((s * 3 + l) * 2 + t) * 2 + k);
    lplb_trace_destroy(trace);
}

static void test_bad_npy(void **state) {
    (void)state;
    static const struct {
        const char *dictionary;
        size_t bytes;
        lplb_status status;
        const char *part;
    } bad[] = {
        {"{'descr': '<i4', 'fortran_order': False, 'shape': (1, 2)}", 7, LPLB_FORMAT, "announces"},
        {"{'descr': '<i4', 'fortran_order': False, 'shape': (1, 2)}", 9, LPLB_FORMAT, "announces"},
        {"{'descr': '<i4', 'fortran_order': False, 'shape': (1, 2)", 8, LPLB_FORMAT, "byte"},
        {"{'descr': '<i4', 'fortran_order': False}", 8, LPLB_FORMAT, "shape"},
        {"{'descr': '<i4', 'fortran_order': 7, 'shape': (1, 2)}", 8, LPLB_FORMAT, "True"},
        {"{'descr': '<c8', 'fortran_order': False, 'shape': (1, 2)}", 16, LPLB_UNSUPPORTED, "<c8"},
        {"{'descr': '|O', 'fortran_order': False, 'shape': (1, 2)}", 16, LPLB_UNSUPPORTED, "|O"},
        {"{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (1, 2)}", 8, LPLB_UNSUPPORTED,
         "records"},
        {"{'descr': '<i4', 'fortran_order': False, 'shape': (-1, 2)}", 8, LPLB_FORMAT, "extent"},
        {"{'descr': '<i4', 'fortran_order': False, 'shape': (99999999999, 99999999999)}", 8,
         LPLB_FORMAT, "smaller"},
        {"{'descr': '<i4', 'fortran_order': False, 'shape': (99999999999999999999, 2)}", 8,
         LPLB_FORMAT, "smaller"},
        {"{'descr': '|i1', 'fortran_order': False, 'shape': (0, 36028797018963968, 2)}", 0,
         LPLB_INVALID, "--layout"},
        {"{'descr': '<i4', 'fortran_order': False, 'shape': (1, 1, 1, 1, 1, 1, 1, 1, 1)}", 4,
         LPLB_FORMAT, "8 dimensions"},
        {"", 0, LPLB_FORMAT, "{ expected"},
    };
    unsigned char items[16] = {0};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        lplb_trace *trace;
        expect_failure(read_npy(bad[i].dictionary, items, bad[i].bytes, NULL, &trace),
                       bad[i].status, bad[i].part);
        assert_null(trace);
    }
}

static void test_ids_out_of_range(void **state) {
    (void)state;
    const char *shape = "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 2)}";
    int32_t high[4] = {0, 1, 40000, 2}, low[4] = {0, -1, 1, -2};
    lplb_trace *trace;
    expect_failure(read_npy(shape, high, sizeof high, "TK", &trace), LPLB_RANGE, "token 1");
    expect_failure(read_npy(shape, low, sizeof low, "TK", &trace), LPLB_RANGE, "-2");
    char image[256];
    int32_t ids[4] = {0, 1, 7, 2};
    size_t n = npy_image(image, shape, ids, sizeof ids);
    lplb_trace_options options = {.layout = "TK", .experts = 7};
    expect_failure(lplb__trace_read_memory(image, (int64_t)n, "x", &options, &trace), LPLB_RANGE,
                   "token 1, layer 0: expert 7");
    options.experts = 40000;
    expect_failure(lplb__trace_read_memory(image, (int64_t)n, "x", &options, &trace),
                   LPLB_UNSUPPORTED, "ids allow 32767");
    options.experts = 9;
    expect_ok(lplb__trace_read_memory(image, (int64_t)n, "x", &options, &trace));
    assert_int_equal(trace->experts, 9);
    lplb_trace_destroy(trace);
}

/* ---- the arrays beside the ids ---- */

typedef struct companions {
    int64_t shape[3];
    const char *key, *sequence_key; /* of the ids; "seq_len" or "sequence_id" or NULL */
    int64_t sequence[8], sequence_items;
    int64_t layer_ids; /* 0 = no layer_id */
} companions;

static lplb_status read_with(const companions *c, lplb_trace **out) {
    static const uint8_t ids[8192];
    static const int32_t layer_id[8] = {5, 6, 7, 8, 9, 10, 11, 12};
    lplb__tensor tensors[3] = {{.name = c->key,
                                .dtype = LPLB_UINT8,
                                .dims = 3,
                                .shape = {c->shape[0], c->shape[1], c->shape[2]},
                                .items = ids}};
    int32_t n = 1;
    if (c->sequence_key)
        tensors[n++] = (lplb__tensor){.name = c->sequence_key,
                                      .dtype = LPLB_INT64,
                                      .dims = 1,
                                      .shape = {c->sequence_items},
                                      .items = c->sequence};
    if (c->layer_ids)
        tensors[n++] = (lplb__tensor){.name = "layer_id",
                                      .dtype = LPLB_INT32,
                                      .dims = 1,
                                      .shape = {c->layer_ids},
                                      .items = layer_id};
    expect_ok(lplb__npz_write(in_folder("companions.npz"), tensors, n));
    return lplb_trace_read(in_folder("companions.npz"), NULL, out);
}

static void test_companions(void **state) {
    (void)state;
    static const struct {
        companions given;
        int64_t tokens, sequences; /* tokens 0: refused with `part` */
        const char *part;
    } cases[] = {
        {{{5, 3, 2}, "topk_ids", NULL, {0}, 0, 0}, 5, 0, NULL},
        {{{3, 5, 2}, "topk_ids_of_layer", NULL, {0}, 0, 0}, 5, 0, NULL},
        {{{5, 3, 2}, "topk_ids", "seq_len", {2, 0, 3}, 3, 0}, 5, 3, NULL},
        {{{3, 5, 2}, "topk_ids", "seq_len", {2, 3}, 2, 0}, 5, 2, NULL}, /* so it is [L][T][K] */
        {{{3, 5, 2}, "topk_ids", NULL, {0}, 0, 3}, 5, 0, NULL},
        {{{5, 3, 2}, "topk_ids_of_layer", NULL, {0}, 0, 3}, 5, 0, NULL},
        {{{5, 3, 2}, "topk_ids", "sequence_id", {7, 7, 1, 1, 2}, 5, 3}, 5, 3, NULL},
        {{{5, 3, 2}, "topk_ids", "sequence_id", {7, 1, 7, 1, 2}, 5, 0},
         5,
         0,
         NULL},                                                      /* interleaved */
        {{{3, 3, 2}, "topk_ids", "seq_len", {3}, 1, 3}, 3, 1, NULL}, /* T = L: the key's order */
        {{{5, 3, 2}, "topk_ids", "seq_len", {2, 2}, 2, 0}, 0, 0, "speaks of 4 tokens"},
        {{{5, 3, 2}, "topk_ids", "seq_len", {-1, 6}, 2, 0}, 0, 0, "seq_len"},
        {{{5, 3, 2}, "topk_ids", "sequence_id", {1, 1}, 2, 0}, 0, 0, "speaks of 2 tokens"},
        {{{5, 3, 2}, "topk_ids", NULL, {0}, 0, 4}, 0, 0, "layer_id has 4"},
        {{{4, 600, 2}, "topk_ids", NULL, {0}, 0, 0}, 0, 0, "600 layers"},
        {{{5, 3, 2}, "unknown", "seq_len", {5}, 1, 0}, 0, 0, "found: unknown, seq_len"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        lplb_trace *trace;
        lplb_status status = read_with(&cases[i].given, &trace);
        if (cases[i].tokens == 0) {
            if (status == LPLB_OK) fail_msg("case %zu was not refused", i);
            assert_non_null(strstr(lplb_error_message(), cases[i].part));
            continue;
        }
        if (status != LPLB_OK) fail_msg("case %zu: %s", i, lplb_error_message());
        assert_int_equal(trace->tokens, cases[i].tokens);
        assert_int_equal(trace->sequences, cases[i].sequences);
        assert_int_equal(trace->layer_id[0], cases[i].given.layer_ids ? 5 : 0);
        if (trace->sequences)
            assert_int_equal(trace->sequence_start[trace->sequences], trace->tokens);
        lplb_trace_destroy(trace);
    }
}

static void test_npz_round_trip(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 40; seed++) {
        lplb_trace *trace = random_trace(seed, seed % 2 ? LPLB_TRACE_COUNTS : LPLB_TRACE_TOPK);
        expect_ok(lplb_trace_write(trace, in_folder("a.npz")));
        lplb_trace *back;
        lplb_status status = lplb_trace_read(in_folder("a.npz"), NULL, &back);
        if (status != LPLB_OK)
            fail_msg("seed %llu: %s", (unsigned long long)seed, lplb_error_message());
        assert_same(trace, back);
        lplb_trace_destroy(trace);
        lplb_trace_destroy(back);
    }
}

static void test_count(void **state) {
    (void)state;
    for (uint64_t seed = 100; seed < 160; seed++) {
        lplb_trace *trace = random_trace(seed, seed % 2 ? LPLB_TRACE_COUNTS : LPLB_TRACE_TOPK);
        int64_t rows = trace->kind == LPLB_TRACE_TOPK ? trace->tokens : trace->steps;
        lplb__rng rng;
        lplb__rng_seed(&rng, seed, 1);
        int64_t first = lplb__rng_below(&rng, rows), n = lplb__rng_below(&rng, rows - first + 1);
        int64_t order[64];
        for (int64_t i = 0; i < rows; i++) order[i] = lplb__rng_below(&rng, rows);
        int64_t *wanted = calloc((size_t)trace->experts, sizeof *wanted);
        int64_t *counts = calloc((size_t)trace->experts, sizeof *counts);
        for (int use_order = 0; use_order < 2; use_order++)
            for (int32_t l = 0; l < trace->layers; l++) {
                memset(wanted, 0, (size_t)trace->experts * sizeof *wanted);
                for (int64_t i = first; i < first + n; i++) {
                    int64_t row = (use_order ? order[i] : i) * trace->layers + l;
                    for (int32_t k = 0; k < trace->topk; k++) {
                        int id = trace->topk_ids[row * trace->topk + k];
                        if (id >= 0) wanted[id]++;
                    }
                    for (int32_t e = 0; trace->counts && e < trace->experts; e++)
                        wanted[e] += trace->counts[row * trace->experts + e];
                }
                memset(counts, 255, (size_t)trace->experts * sizeof *counts);
                lplb_trace_count(trace, l, first, n, use_order ? order : NULL, counts);
                assert_memory_equal(counts, wanted, (size_t)trace->experts * sizeof *counts);
            }
        free(wanted);
        free(counts);
        lplb_trace_destroy(trace);
    }
}

static void test_max_bytes(void **state) {
    (void)state;
    int32_t items[24] = {0};
    char image[4096];
    size_t n = npy_image(image, "{'shape': (2, 3, 4), 'descr': '<i4', 'fortran_order': False}",
                         items, sizeof items);
    lplb_trace_options options = {.layout = "TLK", .max_bytes = 47};
    lplb_trace *trace;
    expect_failure(lplb__trace_read_memory(image, (int64_t)n, "x", &options, &trace), LPLB_RANGE,
                   "limit of 47");
    options.max_bytes = 48;
    expect_ok(lplb__trace_read_memory(image, (int64_t)n, "x", &options, &trace));
    lplb_trace_destroy(trace);
}

/* ---- recorded data: the bundled sets always, the others where they are ---- */

static void test_bundled_data(void **state) {
    (void)state;
    lplb_trace *trace;
    expect_ok(lplb_trace_read(LPLB_SOURCE_DIR "/data/gpt-oss-20b/token_topk.npz", NULL, &trace));
    assert_int_equal(trace->tokens, 66854);
    assert_int_equal(trace->layers, 24);
    assert_int_equal(trace->experts, 32);
    assert_int_equal(trace->topk, 4);
    assert_int_equal(trace->sequences, 270);
    for (int64_t i = 0; i < trace->tokens * 24; i++) { /* a router chooses different experts */
        const int16_t *id = trace->topk_ids + 4 * i;
        assert_true(id[0] != id[1] && id[0] != id[2] && id[0] != id[3] && id[1] != id[2] &&
                    id[1] != id[3] && id[2] != id[3]);
    }
    lplb_trace_destroy(trace);
    expect_ok(
        lplb_trace_read(LPLB_SOURCE_DIR "/data/olmoe-mixtral-prefill/olmoe_c4.json", NULL, &trace));
    assert_int_equal(trace->layers, 3);
    assert_int_equal(trace->experts, 64);
    lplb_trace_destroy(trace);
}

static void test_recorded_data(void **state) {
    (void)state;
    const char *data = getenv("LPLB_DATA");
    if (!data) skip();
    char path[512];
    lplb_trace *trace;
    snprintf(path, sizeof path, "%s/gpt_oss_20b/token_topk.npz", data);
    expect_ok(lplb_trace_read(path, NULL, &trace));
    assert_int_equal(trace->tokens, 162219);
    assert_int_equal(trace->layers, 24);
    assert_int_equal(trace->topk, 4);
    assert_int_equal(trace->experts, 32);
    assert_int_equal(trace->sequences, 494);
    assert_int_equal(trace->sequence_start[494], 162219);
    lplb_trace_destroy(trace);
    snprintf(path, sizeof path, "%s/olmoe_decode/general.npz", data);
    expect_ok(lplb_trace_read(path, NULL, &trace));
    assert_int_equal(trace->tokens, 12800);
    assert_int_equal(trace->sequences, 100);
    lplb_trace_destroy(trace);
    snprintf(path, sizeof path, "%s/deepseek_v3/prefill_in512.json", data);
    expect_ok(lplb_trace_read(path, NULL, &trace));
    assert_int_equal(trace->layers, 61);
    assert_int_equal(trace->experts, 256);
    int64_t counts[256], total = 0;
    lplb_trace_count(trace, 0, 0, 1, NULL, counts);
    for (int e = 0; e < 256; e++) total += counts[e];
    assert_int_equal(total, 0); /* a dense layer stays a layer */
    lplb_trace_destroy(trace);
    snprintf(path, sizeof path, "%s/placements_dsv3/prefill_16ranks.npz", data);
    expect_failure(lplb_trace_read(path, NULL, &trace), LPLB_FORMAT, "placement");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_item_types),       cmocka_unit_test(test_floats),
        cmocka_unit_test(test_layouts),          cmocka_unit_test(test_bad_npy),
        cmocka_unit_test(test_ids_out_of_range), cmocka_unit_test(test_npz_round_trip),
        cmocka_unit_test(test_companions),       cmocka_unit_test(test_count),
        cmocka_unit_test(test_max_bytes),        cmocka_unit_test(test_recorded_data),
        cmocka_unit_test(test_bundled_data),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
