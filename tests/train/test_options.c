/* Options from flags and YAML with the place of every mistake; the router's capacity. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/rng.h"
#include "train/blas.h"
#include "train/identity.h"
#include "train/options.h"
#include "train/router.h"

static lplb_status read_yaml(run_options *o, const char *yaml) {
    char path[] = "/tmp/lplb-options-XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(write(file, yaml, strlen(yaml)), (ssize_t)strlen(yaml));
    close(file);
    lplb_status status = run_options_read(o, path);
    remove(path);
    return status;
}

static void test_yaml(void **state) {
    (void)state;
    run_options o;
    run_options_default(&o);
    assert_int_equal(read_yaml(&o, "model:\n  layers: 3\n  tied: false\nrouter: {aux: sequence}\n"
                                   "balance:\n  mode: search\n  redundant: 2\n"
                                   "train: {rate: 2.5e-3, text: 'a b'}\n"),
                     LPLB_OK);
    assert_int_equal(o.trainer.model.layers, 3);
    assert_int_equal(o.trainer.model.tied, 0);
    assert_int_equal(o.trainer.model.aux, AUX_SEQUENCE);
    assert_int_equal(o.trainer.mode, MODE_SEARCH);
    assert_true(o.trainer.optimizer.rate == 2.5e-3);
    assert_string_equal(o.text, "a b");
    assert_int_equal(run_options_check(&o), LPLB_OK);
}

static void test_yaml_mistakes(void **state) {
    (void)state;
    static const struct {
        const char *yaml, *word;
    } cases[] = {
        {"model:\n  layers: x\n", "line 2, column 3"},
        {"model:\n  layer: 3\n", "line 2, column 3"},
        {"model:\n  heads: 99999999999\n", "whole number"},
        {"router:\n  aux: sometimes\n", "none|sequence|batch|global"},
        {"train:\n  steps: 5\nmodel: 7\n", "line 3, column 8"},
        {"train:\n  model.steps: 5\n", "line 2"},
        {"model:\n  layers: [1, 2]\n", "line 2, column 11"},
        {"model: {layers: 3\n", "line 2"},
        {"- a\n", "sections"},
        {"", "sections"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        run_options o;
        run_options_default(&o);
        assert_int_not_equal(read_yaml(&o, cases[i].yaml), LPLB_OK);
        if (!strstr(lplb_error_message(), cases[i].word))
            fail_msg("case %zu: '%s' lacks '%s'", i, lplb_error_message(), cases[i].word);
    }
}

/* The dump of any options reads back as the same dump. */
static void test_dump(void **state) {
    (void)state;
    char *first = NULL, *second = NULL;
    size_t bytes;
    run_options o, again;
    run_options_default(&o);
    run_options_default(&again);
    assert_int_equal(run_options_set(&o, "router.bias-rate", "0.1"), LPLB_OK);
    assert_int_equal(run_options_set(&o, "text", "a \"quoted\" \\ name"), LPLB_OK);
    assert_int_equal(run_options_set(&o, "resume", "yes"), LPLB_OK);
    FILE *out = open_memstream(&first, &bytes);
    run_options_write(&o, out);
    fclose(out);
    if (read_yaml(&again, first) != LPLB_OK) fail_msg("%s", lplb_error_message());
    out = open_memstream(&second, &bytes);
    run_options_write(&again, out);
    fclose(out);
    assert_string_equal(first, second);
    free(first);
    free(second);
}

static void test_combinations(void **state) {
    (void)state;
    static const struct {
        const char *name, *value, *word;
    } cases[] = {
        {"redundant", "2", "mode none"},
        {"mode", "eplb", "redundant"},
        {"heads", "5", "even head width"},
        {"topk", "9", "topk"},
        {"solver", "exact:tolerance=1.1", "locality"},
        {"resume", "true", "checkpoint"},
        {"generate", "x", "checkpoint"},
        {"warmup-steps", "400", "warm-up"},
        {"held-out", "1", "held-out"},
        {"rate", "-1", "learning rate"},
        {"schedule-steps", "-1", "schedule-steps"},
        {"checkpoint-step", "4", "--resume, --generate"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        run_options o;
        run_options_default(&o);
        assert_int_equal(run_options_set(&o, cases[i].name, cases[i].value), LPLB_OK);
        assert_int_not_equal(run_options_check(&o), LPLB_OK);
        if (!strstr(lplb_error_message(), cases[i].word))
            fail_msg("%s: '%s' lacks '%s'", cases[i].name, lplb_error_message(), cases[i].word);
    }
}

/* ---- capacity ---- */

enum { N = 40, E = 6, K = 2 };

typedef struct storage {
    real logit[N * E], score[N * E], log_sum[N], gate[N * K];
    int32_t choice[N * K], kept[N * K], order[N * K];
    int64_t count[E];
} storage;

static routing routing_of(storage *s) {
    return (routing){.logit = s->logit,
                     .score = s->score,
                     .log_sum = s->log_sum,
                     .gate = s->gate,
                     .choice = s->choice,
                     .kept = s->kept,
                     .count = s->count,
                     .order = s->order};
}

/* By counting: a choice goes if too many of its expert's choices are better. */
static void check_drops(const model_config *c, const storage *full, const storage *s,
                        int64_t dropped, int64_t capacity) {
    int64_t seen = 0;
    for (int i = 0; i < N * K; i++) {
        int64_t better = 0;
        for (int j = 0; j < N * K; j++) {
            if (full->choice[j] != full->choice[i] || j == i) continue;
            bool ahead = c->drop == DROP_PROBS && full->gate[j] != full->gate[i]
                             ? full->gate[j] > full->gate[i]
                             : j < i;
            better += ahead;
        }
        bool goes = better >= capacity;
        seen += goes;
        assert_int_equal(s->kept[i], goes ? -1 : full->choice[i]);
        assert_true(s->gate[i] == (goes ? 0 : full->gate[i]));
    }
    assert_int_equal(dropped, seen);
}

static void test_capacity(void **state) {
    (void)state;
    lplb__rng rng;
    for (uint64_t seed = 0; seed < 200; seed++) {
        static storage full, dropping;
        model_config c;
        model_config_default(&c);
        c.experts = E;
        c.topk = K;
        lplb__rng_seed(&rng, seed, 1);
        for (int i = 0; i < N * E; i++) /* few values, so that ties are many */
            full.logit[i] = dropping.logit[i] =
                (real)lplb__rng_below(&rng, 4) + (real)(i % E == 0 ? seed % 3 : 0);
        routing a = routing_of(&full), b = routing_of(&dropping);
        route_forward(&c, NULL, N, &a);
        assert_int_equal(a.dropped, 0);
        c.capacity_factor = 0.1 + 0.2 * (double)(seed % 7);
        c.drop = seed % 2 ? DROP_PROBS : DROP_POSITION;
        route_forward(&c, NULL, N, &b);
        int64_t capacity = (int64_t)ceil((double)(N * K) / E * c.capacity_factor);
        check_drops(&c, &full, &dropping, b.dropped, capacity);
    }
}

/* The vectors of FIPS 180-4's examples, and a length on each side of the padding's edges. */
static void test_digest(void **state) {
    (void)state;
    char hex[SHA256_HEX_BYTES], many[1000];
    sha256_hex("abc", 3, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    sha256_hex("", 0, hex);
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56, hex);
    assert_string_equal(hex, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    memset(many, 'a', sizeof many);
    sha256_hex(many, 1000, hex);
    assert_string_equal(hex, "41edece42d63e8d9bf515a9ba6932e1c20cbc9f5a5d134645adb5db1b9737ea3");
    sha256_hex(many, 64, hex);
    assert_string_equal(hex, "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb");
}

/* Defaults as a person would write them. */
static void test_help(void **state) {
    (void)state;
    char *help = NULL;
    size_t bytes;
    FILE *out = open_memstream(&help, &bytes);
    run_options_help(out);
    fclose(out);
    static const char *const lines[] = {"(0.001)", "(1e-08)", "(0.95)", "(10000)", "(0.02)"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        assert_non_null(strstr(help, lines[i]));
    assert_null(strstr(help, "0000000"));
    assert_null(strstr(help, "9999999"));
    free(help);
}

/* The length of the schedule is its own where it is given: more steps do not change the rates of
 * those that were taken. */
static void test_schedule(void **state) {
    (void)state;
    optimizer_config shorter, longer;
    optimizer_config_default(&shorter);
    shorter.steps = 100;
    for (int wsd = 0; wsd < 2; wsd++) {
        shorter.schedule = wsd ? SCHEDULE_WSD : SCHEDULE_COSINE;
        longer = shorter;
        longer.steps = 150;
        assert_true(learning_rate(&longer, 90) > learning_rate(&shorter, 90));
        longer.schedule_steps = 100;
        for (int64_t step = 0; step < 100; step++)
            assert_true(learning_rate(&longer, step) == learning_rate(&shorter, step));
        for (int64_t step = 100; step < 150; step++)
            assert_true(fabs(learning_rate(&longer, step) - longer.min_rate) < 1e-15);
        assert_int_equal(optimizer_config_check(&longer), LPLB_OK);
        longer.schedule_steps = 10; /* shorter than the warm-up */
        assert_int_equal(optimizer_config_check(&longer), LPLB_INVALID);
    }
}

/* Only what differs, as the options are written. */
static void test_differences(void **state) {
    (void)state;
    char out[CHANGES_BYTES] = "";
    assert_false(identity_differences("a=1 b=2", "a=1 b=2", out, sizeof out));
    assert_string_equal(out, "");
    assert_true(
        identity_differences("a=1 kv_heads=2 d=x", "a=1 kv_heads=4 c=5 d=xy", out, sizeof out));
    assert_string_equal(out, "kv-heads was 2 and is 4, c was not recorded and is 5, d was x and is "
                             "xy");
    char small[20] = "";
    assert_true(identity_differences("a=1", "a=2 b=3", small, sizeof small));
    assert_true(strlen(small) < sizeof small);
    model_config stored = {0}, c;
    model_config_default(&c);
    c.router = ROUTER_SIGMOID;
    c.rope_theta = 1e5 / 3;
    identity_model(&c, out);
    assert_int_equal(identity_read_model(out, &stored), LPLB_OK);
    char again[IDENTITY_BYTES];
    identity_model(&stored, again);
    assert_string_equal(out, again);
    assert_int_equal(identity_read_model("layers=2", &stored), LPLB_FORMAT);
}

static void test_core(void **state) {
    (void)state;
    assert_string_equal(blas_better_core("Haswell", true), "SKYLAKEX");
    assert_string_equal(blas_better_core("Zen", true), "SKYLAKEX");
    assert_null(blas_better_core("Haswell", false));
    assert_null(blas_better_core("SkylakeX", true));
    assert_null(blas_better_core("Cooperlake", true));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_digest),        cmocka_unit_test(test_help),
        cmocka_unit_test(test_schedule),      cmocka_unit_test(test_differences),
        cmocka_unit_test(test_core),          cmocka_unit_test(test_yaml),
        cmocka_unit_test(test_yaml_mistakes), cmocka_unit_test(test_dump),
        cmocka_unit_test(test_combinations),  cmocka_unit_test(test_capacity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
