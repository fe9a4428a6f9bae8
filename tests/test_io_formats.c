/* Traces in every other format: JSON, JSON lines, CSV, safetensors, statistics folders; and the
 * property that what is written is read back. */
#define _XOPEN_SOURCE 700
#include "io_helpers.h"

typedef struct text_case {
    const char *text;
    int64_t steps, layers, experts, last; /* last = the last count */
    lplb_status status;
    const char *part;
} text_case;

static void run_cases(const text_case *cases, size_t n) {
    for (size_t i = 0; i < n; i++) {
        lplb_trace *trace;
        lplb_trace_options options = {.max_bytes = 1 << 20};
        lplb_status status = lplb__trace_read_memory(cases[i].text, (int64_t)strlen(cases[i].text),
                                                     "x", &options, &trace);
        if (cases[i].status != LPLB_OK) {
            expect_failure(status, cases[i].status, cases[i].part);
            assert_null(trace);
            continue;
        }
        if (status != LPLB_OK) fail_msg("%s: %s", cases[i].text, lplb_error_message());
        assert_int_equal(trace->kind, LPLB_TRACE_COUNTS);
        assert_int_equal(trace->steps, cases[i].steps);
        assert_int_equal(trace->layers, cases[i].layers);
        assert_int_equal(trace->experts, cases[i].experts);
        assert_int_equal(trace->counts[trace->steps * trace->layers * trace->experts - 1],
                         cases[i].last);
        lplb_trace_destroy(trace);
    }
}

static void test_json(void **state) {
    (void)state;
    static const text_case cases[] = {
        {"{\"logical_count\": [[1, 2.0], [3, 4]]}", 1, 2, 2, 4, LPLB_OK, NULL},
        {" \n{\"logical_count\": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]}", 2, 2, 2, 8, LPLB_OK, NULL},
        {"{\"a\": {\"b\": \"]\\\"}\"}, \"logical_count\": [[1]], \"z\": 1e3}", 1, 1, 1, 1, LPLB_OK,
         NULL},
        {"{\"logical_count\": [[1, 2]]}\n{\"logical_count\": [[3, 4]]}\n", 2, 1, 2, 4, LPLB_OK,
         NULL},
        {"{\"logical_count\": [[1, 2], [3]]}", 0, 0, 0, 0, LPLB_FORMAT,
         "logical_count[1] has 1 numbers"},
        {"{\"logical_count\": [[1, 2], [3, 4.5]]}", 0, 0, 0, 0, LPLB_RANGE,
         "logical_count[1][1] is 4.5"},
        {"{\"logical_count\": [[1, 2], [3, -4]]}", 0, 0, 0, 0, LPLB_RANGE,
         "logical_count[1][1] is -4"},
        {"{\"logical_count\": [[1, 2], [3, null]]}", 0, 0, 0, 0, LPLB_FORMAT, "is null"},
        {"{\"logical_count\": [[[1]], [[1, 2]]]}", 0, 0, 0, 0, LPLB_FORMAT, "the first one"},
        {"{\"logical_count\": []}", 0, 0, 0, 0, LPLB_FORMAT, "list of lists"},
        {"{\"logical_count\": [[[[1]]]]}", 0, 0, 0, 0, LPLB_FORMAT, "a list, a whole number"},
        {"{\"logical_count\": [[4611686018427387904, 1]]}", 0, 0, 0, 0, LPLB_OVERFLOW, "2^62"},
        {"{\"logical_count\": [[99999999999999999999, 1]]}", 0, 0, 0, 0, LPLB_FORMAT, "integer"},
        {"{\"logical_count\": [[1, 2],\n [3, x]]}", 0, 0, 0, 0, LPLB_FORMAT, "line 2"},
        {"{\"logical_count\": [[1, 2]", 0, 0, 0, 0, LPLB_FORMAT, "line 1"},
        {"{\"logical_count\": [[1, 2]]} x", 0, 0, 0, 0, LPLB_FORMAT, "byte 28"},
        {"{\"logical_count\": [[1, 2]], \"layer_id\": [1, 2]}", 0, 0, 0, 0, LPLB_FORMAT,
         "2 numbers for 1 layers"},
        {"{\"other\": 1}", 0, 0, 0, 0, LPLB_FORMAT, "logical_count"},
        {"{\"physical_to_logical_map\": [[0]]}", 0, 0, 0, 0, LPLB_FORMAT, "holds a placement"},
        {"{}", 0, 0, 0, 0, LPLB_FORMAT, "without logical_count"},
        {"[]", 0, 0, 0, 0, LPLB_FORMAT, "no counts"},
        {"[1]", 0, 0, 0, 0, LPLB_FORMAT, "without"},
        {"", 0, 0, 0, 0, LPLB_FORMAT, "empty"},
    };
    run_cases(cases, sizeof cases / sizeof cases[0]);
}

static void test_vllm(void **state) {
    (void)state;
    static const text_case cases[] = {
        {"{\"load_history\": [{\"logical_expert_load\": [[1, 2]]}, {\"t\": 0, "
         "\"logical_expert_load\": [[3, 4]]}]}",
         2, 1, 2, 4, LPLB_OK, NULL},
        /* slots 0 and 2 hold expert 0, so its load is 1 + 4; expert 1 has 2 */
        {"{\"record_type\": \"eplb_load_meta\", \"version\": 1, \"num_ranks\": 2}\n"
         "{\"record_type\": \"eplb_load_stats\", \"step\": 7, \"expert_load\": [[1, 2, 4]], "
         "\"p2l_map\": [[0, 1, 0]]}\n\n"
         "{\"record_type\": \"eplb_load_stats\", \"step\": 8, \"expert_load\": [[1, 2, 4]], "
         "\"p2l_map\": [[1, 0, 1]]}\n",
         2, 1, 2, 5, LPLB_OK, NULL},
        {"{\"expert_load\": [[1, 0]], \"p2l_map\": [[0, -1]]}", 1, 1, 1, 1, LPLB_OK, NULL},
        {"{\"expert_load\": [[1, 2]], \"p2l_map\": [[0, -1]]}", 0, 0, 0, 0, LPLB_FORMAT,
         "slot is empty"},
        {"{\"expert_load\": [[1, 2]], \"p2l_map\": [[0]]}", 0, 0, 0, 0, LPLB_FORMAT,
         "p2l_map is [1][1]"},
        {"{\"expert_load\": [[1, 2]]}", 0, 0, 0, 0, LPLB_FORMAT, "p2l_map must say"},
        {"{\"expert_load\": [[1]], \"p2l_map\": [[2147483640]]}", 0, 0, 0, 0, LPLB_RANGE, "limit"},
        {"{\"load_history\": [{\"x\": 1}]}", 0, 0, 0, 0, LPLB_FORMAT, "without"},
        {"{\"load_history\": 1}", 0, 0, 0, 0, LPLB_FORMAT, "list of steps"},
        {"{\"record_type\": \"eplb_load_meta\"}", 0, 0, 0, 0, LPLB_FORMAT, "no counts"},
    };
    run_cases(cases, sizeof cases / sizeof cases[0]);
}

static void test_csv(void **state) {
    (void)state;
    static const text_case cases[] = {
        {"step,layer,expert,count\n0,3,0,5\n0,3,2,7\n4,5,1,9\n", 2, 2, 3, 0, LPLB_OK, NULL},
        {"\xef\xbb\xbf"
         "count, expert ,step,layer\r\n 5 ,0,0,0\r\n\r\n6.00,1,0,0\r\n",
         1, 1, 2, 6, LPLB_OK, NULL},
        {"step,layer,expert,count\n0,0,0,5\n0,0,0,7", 1, 1, 1, 12, LPLB_OK,
         NULL}, /* ranks add up */
        {"step,layer,expert,count\n0,0,0,-5\n", 0, 0, 0, 0, LPLB_FORMAT, "row 2"},
        {"step,layer,expert,count\n0,0,0,5\n0,0,0,1.5\n", 0, 0, 0, 0, LPLB_FORMAT, "row 3"},
        {"step,layer,expert,count\n0,0,0\n", 0, 0, 0, 0, LPLB_FORMAT, "row 2: 3 fields"},
        {"step,layer,expert,count\n0,0,0,1,2\n", 0, 0, 0, 0, LPLB_FORMAT, "more than four"},
        {"step,layer,expert\n0,0,0\n", 0, 0, 0, 0, LPLB_FORMAT, "row 1"},
        {"step,layer,expert,count,rank\n0,0,0,1,1\n", 0, 0, 0, 0, LPLB_FORMAT, "column 'rank'"},
        {"step,layer,expert,step\n0,0,0,1\n", 0, 0, 0, 0, LPLB_FORMAT, "column 'step'"},
        {"step,layer,expert,count\n", 0, 0, 0, 0, LPLB_FORMAT, "no rows"},
        {"step,layer,expert,count\n0,0,2147483646,1\n", 0, 0, 0, 0, LPLB_RANGE, "limit"},
        {"step,layer,expert,count\n0,0,9999999999,1\n", 0, 0, 0, 0, LPLB_RANGE, "too large"},
        {"step,layer,expert,count\n0,0,0,99999999999999999999\n", 0, 0, 0, 0, LPLB_FORMAT, "row 2"},
        {"step,layer,expert,count\n0,0,0,4611686018427387904\n1,0,0,2\n", 0, 0, 0, 0, LPLB_OVERFLOW,
         "2^62"},
    };
    run_cases(cases, sizeof cases / sizeof cases[0]);
    lplb_trace *trace;
    const char *text = cases[0].text;
    expect_ok(lplb__trace_read_memory(text, (int64_t)strlen(text), "x", NULL, &trace));
    assert_int_equal(trace->layer_id[0], 3);
    assert_int_equal(trace->layer_id[1], 5);
    static const int64_t wanted[] = {5, 0, 7, 0, 0, 0, 0, 0, 0, 0, 9, 0};
    assert_memory_equal(trace->counts, wanted, sizeof wanted);
    lplb_trace_destroy(trace);
}

static void test_hostile_text(void **state) {
    (void)state;
    lplb_trace *trace;
    lplb_trace_options options = {.max_bytes = 1 << 20};
    size_t n = 1 << 20;
    char *text = malloc(n);
    memset(text, '[', n); /* nesting, in an outer list that is walked and inside one value */
    expect_failure(lplb__trace_read_memory(text, 8192, "deep", &options, &trace), LPLB_FORMAT,
                   "deep");
    expect_failure(lplb__trace_read_memory(text, (int64_t)n, "deep", &options, &trace), LPLB_RANGE,
                   "read as one");
    memcpy(text, "{\"logical_count\": [", 19); /* millions of tiny values */
    for (size_t i = 19; i + 3 < n; i += 3) memcpy(text + i, "[],", 3);
    assert_int_not_equal(lplb__trace_read_memory(text, (int64_t)n, "x", &options, &trace), LPLB_OK);
    memset(text, '1', n); /* a line without end */
    memcpy(text, "step,layer,expert,count\n", 24);
    expect_failure(lplb__trace_read_memory(text, (int64_t)n, "x", &options, &trace), LPLB_FORMAT,
                   "row 2: longer");
    options.max_bytes = 1000; /* more rows than may be held */
    for (size_t i = 24; i + 8 < n; i += 8) memcpy(text + i, "0,0,0,1\n", 8);
    expect_failure(lplb__trace_read_memory(text, (int64_t)n, "x", &options, &trace), LPLB_RANGE,
                   "rows");
    free(text);
    expect_failure(lplb__trace_read_memory("a\0b", 3, "x", NULL, &trace), LPLB_FORMAT, "byte 1");
    expect_failure(lplb__trace_read_memory("\x80\x02\x8a\x0al", 5, "x.pt", NULL, &trace),
                   LPLB_UNSUPPORTED, "lplb.convert");
}

static void test_safetensors(void **state) {
    (void)state;
    static const struct {
        const char *header;
        size_t data;
        lplb_status status;
        const char *part;
    } cases[] = {
        {"{\"topk_ids\":{\"dtype\":\"I16\",\"shape\":[1,2,2],\"data_offsets\":[0,8]},"
         "\"__metadata__\":{\"a\":\"b\"}}",
         8, LPLB_OK, NULL},
        {"{\"topk_ids\":{\"dtype\":\"I16\",\"shape\":[1,2,2],\"data_offsets\":[0,8]}}", 7,
         LPLB_RANGE, "data_offsets[1] is 8"},
        {"{\"topk_ids\":{\"dtype\":\"I16\",\"shape\":[1,2,2],\"data_offsets\":[0,6]}}", 8,
         LPLB_FORMAT, "do not fill"},
        {"{\"topk_ids\":{\"dtype\":\"I16\",\"shape\":[1,2,2],\"data_offsets\":[8,0]}}", 8,
         LPLB_RANGE, "data_offsets[1]"},
        {"{\"topk_ids\":{\"dtype\":\"BF16\",\"shape\":[1,2,2],\"data_offsets\":[0,8]}}", 8,
         LPLB_UNSUPPORTED, "BF16"},
        {"{\"topk_ids\":{\"dtype\":\"I16\",\"shape\":[4294967296,4294967296,4294967296],"
         "\"data_offsets\":[0,8]}}",
         8, LPLB_FORMAT, "2^56"},
        {"{\"topk_ids\":{\"dtype\":\"I16\",\"shape\":[1,-2,2],\"data_offsets\":[0,8]}}", 8,
         LPLB_RANGE, "shape is -2"},
        {"{\"topk_ids\":{\"shape\":[1,2,2],\"data_offsets\":[0,8]}}", 8, LPLB_FORMAT, "no dtype"},
        {"{\"__metadata__\":{}}", 0, LPLB_FORMAT, "no tensors"},
        {"{\"a\":1,\"a\":2}", 0, LPLB_FORMAT, "duplicate"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char image[512] = {0};
        size_t n = strlen(cases[i].header);
        image[0] = (char)n;
        memcpy(image + 8, cases[i].header, n);
        lplb_trace *trace;
        lplb_status status =
            lplb__trace_read_memory(image, (int64_t)(8 + n + cases[i].data), "x", NULL, &trace);
        if (cases[i].status == LPLB_OK) {
            expect_ok(status);
            assert_int_equal(trace->layers, 2);
            lplb_trace_destroy(trace);
        } else {
            expect_failure(status, cases[i].status, cases[i].part);
        }
    }
    char huge[16] = {-1, -1, -1, -1, -1, -1, -1, 127, '{'};
    lplb_trace *trace;
    expect_failure(lplb__trace_read_memory(huge, sizeof huge, "x", NULL, &trace), LPLB_FORMAT,
                   "known format");
}

static void test_statistics_folder(void **state) {
    (void)state;
    char path[160], folder_path[128];
    snprintf(folder_path, sizeof folder_path, "%s/stats", folder);
    assert_int_equal(mkdir(folder_path, 0755), 0);
    lplb_trace *trace;
    expect_failure(lplb_trace_read(folder_path, NULL, &trace), LPLB_FORMAT, "without rank");
    int64_t counts[2][4][3]; /* rank, tensor, expert */
    const char *keys[] = {"10_3", "10_4", "11_3", "11_4"};
    for (int r = 0; r < 2; r++) {
        lplb__tensor tensors[4];
        for (int i = 0; i < 4; i++) {
            for (int e = 0; e < 3; e++) counts[r][i][e] = 100 * r + 10 * i + e;
            tensors[i] = (lplb__tensor){.name = keys[i],
                                        .dtype = LPLB_INT64,
                                        .dims = 1,
                                        .shape = {3},
                                        .items = counts[r][i]};
        }
        snprintf(path, sizeof path, "%s/rank%d.safetensors", folder_path, r);
        expect_ok(lplb__safetensors_write(path, tensors, 4));
        snprintf(path, sizeof path, "%s/cooccurrence_rank%d.safetensors", folder_path, r);
        expect_ok(lplb__safetensors_write(path, tensors, 4));
    }
    for (int with_meta = 0; with_meta < 2; with_meta++) {
        if (with_meta) put_file("stats/meta_info.json", "{\"num_experts\": 3}", 18);
        expect_ok(lplb_trace_read(folder_path, NULL, &trace));
        assert_int_equal(trace->steps, 2);
        assert_int_equal(trace->layers, 2);
        assert_int_equal(trace->layer_id[0], 3);
        for (int i = 0; i < 12; i++)
            assert_int_equal(trace->counts[i], 100 + 20 * (i / 3) + 2 * (i % 3));
        lplb_trace_destroy(trace);
    }
    snprintf(path, sizeof path, "%s/rank1.safetensors", folder_path); /* one file alone */
    expect_ok(lplb_trace_read(path, NULL, &trace));
    assert_int_equal(trace->counts[0], 100);
    lplb_trace_destroy(trace);
    put_file("stats/meta_info.json", "{\"num_experts\": 4}", 18);
    expect_failure(lplb_trace_read(folder_path, NULL, &trace), LPLB_FORMAT, "3 items");
}

static void test_round_trips(void **state) {
    (void)state;
    static const char *const files[] = {"a.npz", "a.safetensors", "a.npy", "a.json", "a.csv"};
    for (uint64_t seed = 0; seed < 60; seed++) {
        lplb_trace *trace = random_trace(seed, seed % 2 ? LPLB_TRACE_COUNTS : LPLB_TRACE_TOPK);
        bool topk = trace->kind == LPLB_TRACE_TOPK;
        for (int f = 0; f < 5; f++) {
            lplb_status status = lplb_trace_write(trace, in_folder(files[f]));
            if (topk && f >= 3) {
                expect_failure(status, LPLB_UNSUPPORTED, "hold counts");
                continue;
            }
            expect_ok(status);
            bool bare = f == 2;
            lplb_trace_options options = {.layout = bare ? topk ? "TLK" : "SLE" : NULL,
                                          .experts = bare ? trace->experts : 0};
            lplb_trace *back;
            status = lplb_trace_read(in_folder(files[f]), &options, &back);
            if (status != LPLB_OK)
                fail_msg("seed %llu, %s: %s", (unsigned long long)seed, files[f],
                         lplb_error_message());
            if (bare) { /* npy has no room for the rest */
                memcpy(back->layer_id, trace->layer_id, (size_t)trace->layers * sizeof(int32_t));
                trace->sequences = 0;
            }
            assert_same(trace, back);
            lplb_trace_destroy(back);
        }
        lplb_trace_destroy(trace);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json),        cmocka_unit_test(test_vllm),
        cmocka_unit_test(test_csv),         cmocka_unit_test(test_hostile_text),
        cmocka_unit_test(test_safetensors), cmocka_unit_test(test_statistics_folder),
        cmocka_unit_test(test_round_trips),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
