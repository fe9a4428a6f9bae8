/* lplb convert and lplb gen: what they write is what they say, and their exit codes. */
#define _XOPEN_SOURCE 700
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <lplb/lplb.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cases/run_cli.h"
#include "documented.h"

#define GPT_OSS LPLB_SOURCE_DIR "/data/gpt-oss-20b/token_topk.npz"
#define OLMOE   LPLB_SOURCE_DIR "/data/olmoe-mixtral-prefill/olmoe_c4.json"

static char *dir;

static int make_dir(void **state) {
    (void)state;
    dir = scratch_create();
    return 0;
}

static int remove_dir(void **state) {
    (void)state;
    scratch_remove(dir);
    return 0;
}

static void expect(run_result *r, int code, const char *part) {
    if (r->code != code || (part && !strstr(code ? r->err : r->out, part)))
        fail_msg("exit code %d, wanted %d with '%s'; out: %s err: %s", r->code, code,
                 part ? part : "", r->out, r->err);
    if (code) assert_string_equal(r->out, "");
    run_free(r);
}

static lplb_trace *read_back(const char *file) {
    lplb_trace *trace;
    if (lplb_trace_read(path_join(dir, file), NULL, &trace) != LPLB_OK)
        fail_msg("%s: %s", file, lplb_error_message());
    return trace;
}

/* The one document on stdout. */
static json_t *document(run_result *r, const char *schema) {
    json_error_t error;
    assert_int_equal(r->code, 0);
    json_t *root = json_loads(r->out, 0, &error);
    assert_non_null(root);
    assert_string_equal(json_string_value(json_object_get(root, "schema")), schema);
    if (strcmp(json_string_value(json_object_get(root, "kind")), "placement") != 0)
        check_documented(root, schema);
    run_free(r);
    return root;
}

static int64_t number(const json_t *root, const char *key) {
    assert_true(json_is_integer(json_object_get(root, key)));
    return json_integer_value(json_object_get(root, key));
}

static void test_gen(void **state) {
    (void)state;
    run_result r;
    const char *out = path_join(dir, "a.npz");
    run_cli(&r, NULL, "gen", "--json", "--layers", "3", "--experts", "32", "--topk", "4",
            "--tokens", "1000", "--batch-tokens", "300", "--seed", "5", out, NULL);
    json_t *root = document(&r, "lplb.gen/1");
    assert_int_equal(number(root, "steps"), 4);
    assert_int_equal(number(root, "layers"), 3);
    assert_int_equal(number(root, "seed"), 5);
    json_decref(root);
    lplb_trace *trace = read_back("a.npz");
    assert_int_equal(trace->tokens, 1000);
    assert_int_equal(trace->experts, 32);
    assert_int_equal(trace->topk, 4);
    lplb_trace_destroy(trace);
    run_cli(&r, NULL, "gen", "--counts", "--zipf", "1.1", "--tokens", "1000", "--batch-tokens",
            "500", path_join(dir, "a.csv"), NULL);
    expect(&r, 0, "Zipf");
    trace = read_back("a.csv");
    assert_int_equal(trace->steps, 2);
    lplb_trace_destroy(trace);
    run_cli(&r, NULL, "gen", "--load", OLMOE, "--drift-to",
            LPLB_SOURCE_DIR "/data/olmoe-mixtral-prefill/olmoe_github.json", "--tokens", "2000",
            "--hot-rank", "1", "--ranks", "8", "--hot-share", "0.5", "--burst", "0.1", "--zero",
            "0.1", "--rotate-every", "2", "--rotate-by", "8", "--threads", "2",
            path_join(dir, "b.npz"), NULL);
    expect(&r, 0, "recorded loads");
    trace = read_back("b.npz");
    assert_int_equal(trace->layers, 3);
    assert_int_equal(trace->experts, 64);
    lplb_trace_destroy(trace);
}

static void test_gen_refusals(void **state) {
    (void)state;
    static const char *const cases[][8] = {
        {"give the file"},
        {"one of --sigma", "--sigma", "1", "--zipf", "1", "x.npz"},
        {"--drift-to needs", "--drift-to", OLMOE, "x.npz"},
        {"gives the layers", "--load", OLMOE, "--layers", "3", "x.npz"},
        {"go together", "--hot-rank", "1", "x.npz"},
        {"--hot-share goes", "--hot-experts", "1", "x.npz"},
        {"needs --burst", "--burst-factor", "3", "x.npz"},
        {"needs --rotate-every", "--rotate-by", "3", "x.npz"},
        {"whole number from 1", "--layers", "0", "x.npz"},
        {"number from 0 to 1", "--zero", "2", "x.npz"},
        {"topk is 65", "--topk", "65", "x.npz"},
        {"a trace is written as", "x.txt"},
        {"count the tokens first", "x.json"},
        {"missing.json", "--load", "missing.json", "x.npz"},
        {"x.npz has", "--load", OLMOE, "--drift-to",
         LPLB_SOURCE_DIR "/data/olmoe-mixtral-prefill/mixtral_c4.json", "x.npz"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *argv[16] = {LPLB_CLI, "gen"};
        int n = 2;
        for (int k = 1; k < 8 && cases[i][k]; k++) argv[n++] = cases[i][k];
        run_result r;
        run_command(&r, NULL, argv);
        const char *part = i + 1 == sizeof cases / sizeof cases[0] ? "64" : cases[i][0];
        expect(&r, 2, part);
    }
}

static void test_convert_traces(void **state) {
    (void)state;
    run_result r;
    run_cli(&r, NULL, "convert", "--json", "--layers", "2-4", GPT_OSS,
            path_join(dir, "c.safetensors"), NULL);
    json_t *root = document(&r, "lplb.convert/1");
    assert_string_equal(json_string_value(json_object_get(root, "kind")), "topk");
    assert_int_equal(number(root, "tokens"), 66854);
    assert_int_equal(number(root, "sequences"), 270);
    assert_int_equal(json_array_size(json_object_get(root, "lost")), 0);
    json_decref(root);
    lplb_trace *whole, *part = read_back("c.safetensors");
    assert_int_equal(lplb_trace_read(GPT_OSS, NULL, &whole), LPLB_OK);
    assert_int_equal(part->layers, 3);
    assert_int_equal(part->layer_id[0], 2);
    int64_t a[32], b[32];
    lplb_trace_count(whole, 3, 0, whole->tokens, NULL, a);
    lplb_trace_count(part, 1, 0, part->tokens, NULL, b);
    assert_memory_equal(a, b, sizeof a);
    lplb_trace_destroy(part);

    run_cli(&r, NULL, "convert", "--batch-tokens", "4096", GPT_OSS, path_join(dir, "c.csv"), NULL);
    expect(&r, 0, "17 steps of counts");
    part = read_back("c.csv");
    assert_int_equal(part->steps, 17);
    lplb_trace_count(whole, 3, 16 * 4096, whole->tokens - 16 * 4096, NULL, a);
    lplb_trace_count(part, 3, 16, 1, NULL, b);
    assert_memory_equal(a, b, sizeof a);
    lplb_trace_destroy(part);
    run_cli(&r, NULL, "convert", "--sum", path_join(dir, "c.csv"), path_join(dir, "c.json"), NULL);
    expect(&r, 0, "1 steps");
    part = read_back("c.json");
    lplb_trace_count(whole, 23, 0, whole->tokens, NULL, a);
    lplb_trace_count(part, 23, 0, 1, NULL, b);
    assert_memory_equal(a, b, sizeof a);
    lplb_trace_destroy(part);
    lplb_trace_destroy(whole);

    run_cli(&r, NULL, "convert", "--json", GPT_OSS, path_join(dir, "c.npy"), NULL);
    root = document(&r, "lplb.convert/1");
    assert_int_equal(json_array_size(json_object_get(root, "lost")), 2);
    json_decref(root);
    run_cli(&r, NULL, "convert", path_join(dir, "c.npy"), path_join(dir, "d.npz"), NULL);
    expect(&r, 2, "--layout");
    run_cli(&r, NULL, "convert", "--layout", "TLK", path_join(dir, "c.npy"),
            path_join(dir, "d.npz"), NULL);
    expect(&r, 0, "66854 tokens, 24 layers, 32 experts");
}

static void test_convert_placements(void **state) {
    (void)state;
    run_result r;
    const char *in = write_text(dir, "p.json",
                                "{\"physical_to_logical_map\": [[0, 1, 2, 0], "
                                "[2, 1, 1, 0]]}");
    static const struct {
        const char *to, *file;
        bool says_ranks;
    } steps[] = {{"trtllm", "p.yaml", false},     {"vllm", "p.jsonl", false},
                 {"vllm-ascend", "a.json", true}, {"omni", "p.npy", true},
                 {"lplb", "l.json", true},        {"sglang", "s.json", false}};
    char first[256], from[256], to[256];
    snprintf(first, sizeof first, "%s", in);
    snprintf(from, sizeof from, "%s", in);
    bool says = false;
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        snprintf(to, sizeof to, "%s", path_join(dir, steps[i].file));
        if (says) run_cli(&r, NULL, "convert", "--to", steps[i].to, from, to, NULL);
        else run_cli(&r, NULL, "convert", "--to", steps[i].to, "--ranks", "2", from, to, NULL);
        expect(&r, 0, "2 layers, 3 experts in 4 slots on 2 ranks");
        snprintf(from, sizeof from, "%s", to);
        says = steps[i].says_ranks;
    }
    char *text = read_text(path_join(dir, "s.json"), NULL);
    json_error_t error;
    json_t *root = json_loads(text, 0, &error);
    assert_int_equal(json_object_size(root), 1); /* SGLang takes no other key */
    json_decref(root);
    free(text);
    run_cli(&r, NULL, "convert", "--json", "--ranks", "2", "--dense-layers", "1", "--layers", "1",
            first, path_join(dir, "t.yaml"), NULL);
    root = document(&r, "lplb.convert/1");
    assert_int_equal(number(root, "layers"), 2);
    assert_int_equal(number(root, "ranks"), 2);
    json_decref(root);
    text = read_text(path_join(dir, "t.yaml"), NULL);
    assert_non_null(strstr(text, "  0: [0, 1, 2, 0]\n  1: [2, 1, 1, 0]\n"));
    assert_null(strstr(text, "ep_size"));
    free(text);
}

static void test_convert_refusals(void **state) {
    (void)state;
    char in[256], out[256], yaml[256];
    snprintf(in, sizeof in, "%s",
             write_text(dir, "q.json", "{\"physical_to_logical_map\": [[0, 1, 0, 0]]}"));
    snprintf(out, sizeof out, "%s", path_join(dir, "q.npz"));
    snprintf(yaml, sizeof yaml, "%s", path_join(dir, "q.yaml"));
    const char *const cases[][8] = {
        {"give the file", in},
        {"What", in, "q"},
        {"no format", "--to", "parquet", in, out},
        {"ends in .csv", "--to", "csv", OLMOE, out},
        {"--sum or --batch-tokens", GPT_OSS, "q.json"},
        {"needs ids", "--batch-tokens", "5", OLMOE, "q.csv"},
        {"one of --sum", "--sum", "--batch-tokens", "5", GPT_OSS, "q.csv"},
        {"has 3 layers", "--layers", "2-3", OLMOE, "q.csv"},
        {"--layers wants", "--layers", "3-2", OLMOE, "q.csv"},
        {"for placements", "--ranks", "2", OLMOE, "q.csv"},
        {"for traces", "--sum", in, yaml},
        {"holds a placement", in, out},
        {"number of ranks", in, yaml},
        {"lplb place", "--ranks", "2", OLMOE, yaml},
        {"two copies of expert 0", "--to", "vllm-ascend", "--ranks", "2", in, yaml},
        {"do not divide", "--ranks", "3", in, yaml},
        {"at most 1000", "--max-bytes", "1000", OLMOE, "q.csv"},
        {"layout is for arrays", "--layout", "SLE", OLMOE, "q.csv"},
        {"none of TK", "--layout", "XY", GPT_OSS, out},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *argv[16] = {LPLB_CLI, "convert"};
        int n = 2;
        for (int k = 1; k < 8 && cases[i][k]; k++) argv[n++] = cases[i][k];
        run_result r;
        run_command(&r, NULL, argv);
        expect(&r, 2, i == 1 ? "should 'q' become" : cases[i][0]);
        assert_null(read_text(yaml, NULL));
    }
}

/* The problem and the answer that docs/formats.md shows. */
static void test_plan_document(void **state) {
    (void)state;
    run_result r;
    run_cli(&r,
            "{\"ranks\":2,\"experts\":[{\"tokens\":90,\"hosts\":[0,1]},"
            "{\"tokens\":30,\"hosts\":[0]}]}",
            "plan", "--json", "-", NULL);
    assert_int_equal(r.code, 0);
    json_t *root = json_loads(r.out, 0, NULL), *example = documented("lplb.plan/1");
    check_shape(root, example, "lplb.plan/1");
    assert_true(json_equal(json_object_get(root, "split"), json_object_get(example, "split")));
    json_decref(root);
    json_decref(example);
    run_free(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gen),
        cmocka_unit_test(test_gen_refusals),
        cmocka_unit_test(test_convert_traces),
        cmocka_unit_test(test_convert_placements),
        cmocka_unit_test(test_convert_refusals),
        cmocka_unit_test(test_plan_document),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
