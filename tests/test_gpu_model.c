/* The cost model of a GPU: reading it, and what a replay predicts with it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <lplb/lplb.h>
#include <math.h>
#include <string.h>

#include "cases/run_cli.h"
#include "replay/replay.h"

static void assert_near(double value, double expected) {
    if (fabs(value - expected) > 1e-9 * fmax(1, fabs(expected)))
        fail_msg("%.12g, expected %.12g", value, expected);
}

static const char model_text[] =
    "{\"schema\": \"lplb.gpu_model/1\", \"name\": \"by hand\", \"tokens\": [0, 4, 8],"
    " \"us\": [1, 2, 6], \"tile\": 2, \"us_per_active_expert\": 0.5, \"us_per_layer\": 10,"
    " \"us_per_plan\": 3, \"dispatch_bytes\": 1000, \"combine_bytes\": 3000, \"gb_per_s\": 2,"
    " \"internode_gb_per_s\": 1}";

static lplb_gpu_model *read_model(const char *dir, const char *text) {
    lplb_gpu_model *model;
    if (lplb_gpu_model_read(write_text(dir, "model.json", text), &model) != LPLB_OK)
        fail_msg("%s", lplb_error_message());
    return model;
}

static void test_table(void **state) {
    lplb_gpu_model *model = read_model(*state, model_text);
    assert_near(lplb__gpu_gemm_us(model, 0, 0), 1);
    assert_near(lplb__gpu_gemm_us(model, 2, 0), 1.5);
    assert_near(lplb__gpu_gemm_us(model, 4, 3), 3.5);
    assert_near(lplb__gpu_gemm_us(model, 6, 0), 4);
    assert_near(lplb__gpu_gemm_us(model, 10, 0), 8); /* beyond the table its last slope */
    assert_near(lplb__gpu_link_us(model, 1, 0), 2);  /* 4,000 bytes at 2 GB/s */
    assert_near(lplb__gpu_link_us(model, 2, 3), 4 + 12);
    lplb_gpu_model_destroy(model);
    model = read_model(*state, "{\"schema\":\"lplb.gpu_model/1\",\"tokens\":[0,9],\"us\":[0,9]}");
    assert_near(lplb__gpu_gemm_us(model, 5, 7), 5);
    assert_near(lplb__gpu_link_us(model, 5, 7), 0);
    lplb_gpu_model_destroy(model);
    lplb_gpu_model_destroy(NULL);
}

/* One batch of 4 tokens on 2 ranks of 2 nodes: expert 0 (rank 0) gets 3, expert 3 (rank 1) one. */
static void test_prediction(void **state) {
    lplb_gpu_model *model = read_model(*state, model_text);
    int16_t ids[] = {0, 0, 0, 3};
    int32_t id = 0;
    lplb_trace trace = {.kind = LPLB_TRACE_TOPK,
                        .layers = 1,
                        .experts = 4,
                        .topk = 1,
                        .tokens = 4,
                        .topk_ids = ids,
                        .layer_id = &id};
    const char *policies[] = {"none", "none+exact", "ideal"};
    lplb_replay_config config = {.struct_size = sizeof config,
                                 .ranks = 2,
                                 .nodes = 2,
                                 .batch_tokens = 4,
                                 .all_layers = 1,
                                 .policy = policies,
                                 .policies = 3,
                                 .gpu_model = model,
                                 .expert_bytes = 100};
    lplb_replay_result *r;
    assert_int_equal(lplb_replay(&trace, &config, &r), LPLB_OK);
    /* rank 0: 3 tokens in 2 tiles = 4, one active expert: 2 + 0.5; it takes in one token from the
     * other node: 4 us; rank 1 takes in none */
    double us = 10 + 2.5 + 4;
    assert_near(r->policy[0].ms_per_layer, us / 1e3);
    assert_near(r->policy[0].tokens_per_s, 4 / (us / 1e6));
    assert_near(r->policy[1].ms_per_layer, (us + 3) / 1e3); /* a plan costs */
    /* two tokens and one active expert a rank */
    assert_near(r->policy[2].ms_per_layer, (10 + 1.5 + 0.5) / 1e3);
    assert_int_equal(r->policy[0].internode_tokens, 1);
    assert_int_equal(r->policy[0].redundant_bytes, 0);
    assert_int_equal(r->policy[0].has_prediction, 1);
    lplb_replay_result_destroy(r);
    lplb_gpu_model_destroy(model);
}

static void test_redundant_bytes(void **state) {
    (void)state;
    int64_t counts[2 * 8];
    for (int i = 0; i < 16; i++) counts[i] = i + 1;
    int32_t id = 0;
    lplb_trace trace = {.kind = LPLB_TRACE_COUNTS,
                        .layers = 1,
                        .experts = 8,
                        .steps = 2,
                        .counts = counts,
                        .layer_id = &id};
    const char *policies[] = {"eplb", "none"};
    lplb_replay_config config = {.struct_size = sizeof config,
                                 .ranks = 4,
                                 .redundant = 1,
                                 .all_layers = 1,
                                 .history = -1,
                                 .policy = policies,
                                 .policies = 2,
                                 .expert_bytes = 1000};
    lplb_replay_result *r;
    assert_int_equal(lplb_replay(&trace, &config, &r), LPLB_OK);
    assert_int_equal(r->policy[0].redundant_bytes, 4000);
    assert_int_equal(r->policy[1].redundant_bytes, 0);
    assert_int_equal(r->policy[0].has_prediction, 1);
    assert_near(r->policy[0].ms_per_layer, 0);
    lplb_replay_result_destroy(r);
}

static void test_errors(void **state) {
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"[]", "schema"},
        {"{\"schema\":\"lplb.gpu_model/2\"}", "schema"},
        {"{\"schema\":\"lplb.gpu_model/1\"}", "arrays of equal length"},
        {"{\"schema\":\"lplb.gpu_model/1\",\"tokens\":[0],\"us\":[0]}", "arrays of equal length"},
        {"{\"schema\":\"lplb.gpu_model/1\",\"tokens\":[0,1],\"us\":[0]}", "equal length"},
        {"{\"schema\":\"lplb.gpu_model/1\",\"tokens\":[1,2],\"us\":[0,1]}", "begin with 0"},
        {"{\"schema\":\"lplb.gpu_model/1\",\"tokens\":[0,0],\"us\":[0,1]}", "rise"},
        {"{\"schema\":\"lplb.gpu_model/1\",\"tokens\":[0,1],\"us\":[1,0]}", "falls"},
        {"{\"schema\":\"lplb.gpu_model/1\",\"tokens\":[0,1],\"us\":[0,-1]}", "number from 0"},
        {"{\"schema\":\"lplb.gpu_model/1\",\"tokens\":[0,\"1\"],\"us\":[0,1]}", "\"tokens\""},
        {"{\"schema\":\"lplb.gpu_model/1\",\"tokens\":[0,1],\"us\":[0,1],\"tile\":1.5}", "tile"},
        {"{\"schema\":\"lplb.gpu_model/1\",\"tokens\":[0,1],\"us\":[0,1],\"tile\":0}", "tile"},
        {"{\"schema\":\"lplb.gpu_model/1\",\"tokens\":[0,1],\"us\":[0,1],\"gb_per_s\":0}",
         "gb_per_s"},
        {"{\"schema\":\"lplb.gpu_model/1\",\"tokens\":[0,1],\"us\":[0,1],\"speed\":1}",
         "unknown key \"speed\""},
        {"{\"schema\":", "model.json"},
    };
    lplb_gpu_model *model;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(
            lplb_gpu_model_read(write_text(*state, "model.json", cases[i].text), &model),
            LPLB_FORMAT);
        assert_null(model);
        if (!strstr(lplb_error_message(), cases[i].message))
            fail_msg("%s: \"%s\" lacks \"%s\"", cases[i].text, lplb_error_message(),
                     cases[i].message);
    }
    assert_int_equal(lplb_gpu_model_read("/nowhere/model.json", &model), LPLB_IO);
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
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_prediction),
        cmocka_unit_test(test_redundant_bytes),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
