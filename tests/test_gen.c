/* Synthetic routing: the same for any number of threads and on every machine, distributed as
 * asked, and impossible requests refused. */
#define _XOPEN_SOURCE 700
#include "io_helpers.h"

#include <lplb/gen.h>
#include <math.h>

static lplb_gen_config small_config(void) {
    return (lplb_gen_config){.struct_size = sizeof(lplb_gen_config),
                             .kind = LPLB_TRACE_COUNTS,
                             .layers = 2,
                             .experts = 16,
                             .topk = 2,
                             .tokens = 8192,
                             .batch_tokens = 512,
                             .seed = 1,
                             .threads = 1};
}

static lplb_trace *generate(const lplb_gen_config *config) {
    lplb_trace *trace;
    expect_ok(lplb_gen(config, &trace));
    return trace;
}

static uint64_t digest(const void *data, size_t bytes) { /* FNV-1a */
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const uint8_t *)data)[i]) * 0x100000001b3u;
    return hash;
}

static void test_same_everywhere(void **state) {
    (void)state;
    lplb_gen_config c = small_config();
    c.kind = LPLB_TRACE_TOPK;
    c.sigma = 1.2;
    c.rotate_every = 3;
    c.burst_probability = 0.2;
    c.burst_factor = 10;
    c.zero_probability = 0.1;
    c.tokens = 5000; /* a short last step */
    lplb_trace *one = generate(&c);
    c.threads = 3;
    lplb_trace *three = generate(&c);
    assert_same(one, three);
    size_t bytes = (size_t)(one->tokens * one->layers * one->topk) * sizeof *one->topk_ids;
    /* Recorded on x86-64; any other little-endian machine must give the same bytes. */
    assert_int_equal(digest(one->topk_ids, bytes), 0x7d83436589c2f574);
    c.kind = LPLB_TRACE_COUNTS; /* the counts of the same tokens */
    lplb_trace *counts = generate(&c);
    assert_int_equal(counts->steps, 10);
    for (int64_t s = 0; s < counts->steps; s++)
        for (int32_t l = 0; l < 2; l++) {
            int64_t wanted[16], n = s < 9 ? 512 : 5000 - 9 * 512;
            lplb_trace_count(one, l, s * 512, n, NULL, wanted);
            assert_memory_equal(counts->counts + (s * 2 + l) * 16, wanted, sizeof wanted);
        }
    c.seed = 2;
    lplb_trace *other = generate(&c);
    assert_memory_not_equal(counts->counts, other->counts, 10 * 2 * 16 * sizeof(int64_t));
    lplb_trace_destroy(one);
    lplb_trace_destroy(three);
    lplb_trace_destroy(counts);
    lplb_trace_destroy(other);
}

static void test_distinct(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        lplb_gen_config c = small_config();
        c.kind = LPLB_TRACE_TOPK;
        c.seed = seed;
        c.tokens = 300;
        c.topk = (int32_t)(1 + seed % 16); /* up to all experts */
        c.sigma = seed % 3 ? 8 : 0;        /* so uneven that drawing repeats */
        lplb_trace *trace = generate(&c);
        for (int64_t i = 0; i < trace->tokens * trace->layers; i++) {
            uint32_t seen = 0;
            for (int32_t k = 0; k < c.topk; k++) {
                int id = trace->topk_ids[i * c.topk + k];
                assert_true(id >= 0 && id < 16 && !(seen >> id & 1));
                seen |= 1u << id;
            }
        }
        lplb_trace_destroy(trace);
    }
}

/* Counts of all steps of layer 0. */
static void total_counts(const lplb_trace *trace, int64_t *counts) {
    lplb_trace_count(trace, 0, 0, trace->steps, NULL, counts);
}

/* Selected with probability p in n tokens: within 6 standard deviations. */
static void assert_share(int64_t count, int64_t n, double p) {
    double mean = (double)n * p, deviation = sqrt(mean * (1 - p));
    if (fabs((double)count - mean) > 6 * deviation + 1)
        fail_msg("%lld of %lld, expected %.1f +- %.1f", (long long)count, (long long)n, mean,
                 deviation);
}

static void test_distribution(void **state) {
    (void)state;
    /* Loads 1..4: first draw w/10; second, after the first was i: w/(10 - w_i). */
    static const int64_t load[4] = {1, 2, 3, 4};
    lplb_gen_config c = small_config();
    c.layers = 1;
    c.experts = 4;
    c.tokens = 200000;
    c.base = LPLB_GEN_LOADS;
    c.load = load;
    int64_t counts[4];
    lplb_trace *trace = generate(&c);
    total_counts(trace, counts);
    for (int e = 0; e < 4; e++) {
        double p = (double)load[e] / 10;
        for (int first = 0; first < 4; first++)
            if (first != e)
                p += (double)load[first] / 10 * (double)load[e] / (double)(10 - load[first]);
        assert_share(counts[e], c.tokens, p);
    }
    lplb_trace_destroy(trace);
    c.topk = 1;
    trace = generate(&c);
    total_counts(trace, counts);
    for (int e = 0; e < 4; e++) assert_share(counts[e], c.tokens, (double)load[e] / 10);
    lplb_trace_destroy(trace);
    /* Drift: half the tokens come from the far weights, summed over all steps. */
    static const int64_t end[4] = {10, 0, 0, 0};
    c.load_end = end;
    trace = generate(&c);
    total_counts(trace, counts);
    for (int e = 0; e < 4; e++)
        assert_share(counts[e], c.tokens, 0.5 * (double)load[e] / 10 + 0.5 * (double)end[e] / 10);
    assert_int_equal(trace->counts[(trace->steps - 1) * 4 + 1], 0); /* arrived */
    lplb_trace_destroy(trace);
    /* Multinomial: shares are the weights' however many a token selects. */
    c.load_end = NULL;
    c.topk = 3;
    c.multinomial = 1;
    trace = generate(&c);
    total_counts(trace, counts);
    for (int e = 0; e < 4; e++) assert_share(counts[e], 3 * c.tokens, (double)load[e] / 10);
    assert_int_equal(counts[0] + counts[1] + counts[2] + counts[3], 3 * c.tokens);
    lplb_trace_destroy(trace);
    c.kind = LPLB_TRACE_TOPK;
    assert_int_equal(lplb_gen(&c, &trace), LPLB_INVALID);
}

static int descending(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

static void test_zipf_and_lognormal(void **state) {
    (void)state;
    lplb_gen_config c = small_config();
    c.topk = 1;
    c.tokens = 200000;
    c.base = LPLB_GEN_ZIPF;
    c.exponent = 1;
    int64_t counts[256];
    lplb_trace *trace = generate(&c);
    total_counts(trace, counts);
    qsort(counts, 16, sizeof *counts, descending);
    double harmonic = 0;
    for (int i = 1; i <= 16; i++) harmonic += 1.0 / i;
    for (int i = 0; i < 4; i++) assert_share(counts[i], c.tokens, 1.0 / (i + 1) / harmonic);
    lplb_trace_destroy(trace);
    c = small_config();
    c.experts = 256;
    c.topk = 1;
    c.tokens = 1000000;
    c.batch_tokens = 1000000;
    c.sigma = 1;
    trace = generate(&c);
    total_counts(trace, counts);
    double sum = 0, squares = 0;
    for (int e = 0; e < 256; e++) {
        double x = log((double)counts[e] + 0.5);
        sum += x;
        squares += x * x;
    }
    double sigma = sqrt(squares / 256 - sum / 256 * sum / 256);
    assert_true(sigma > 0.8 && sigma < 1.2); /* 256 samples: 1 +- 0.05 */
    lplb_trace_destroy(trace);
}

static void test_hot(void **state) {
    (void)state;
    lplb_gen_config c = small_config();
    c.topk = 1;
    c.tokens = 100000;
    c.hot_experts = 3;
    c.hot_share = 0.6;
    int64_t counts[16];
    lplb_trace *trace = generate(&c);
    total_counts(trace, counts);
    qsort(counts, 16, sizeof *counts, descending);
    assert_share(counts[0] + counts[1] + counts[2], c.tokens, 0.6);
    lplb_trace_destroy(trace);
    c.hot_experts = 0;
    c.hot_ranks = 4;
    c.hot_rank = 2;
    trace = generate(&c);
    total_counts(trace, counts);
    assert_share(counts[8] + counts[9] + counts[10] + counts[11], c.tokens, 0.6);
    lplb_trace_destroy(trace);
}

static void test_time_patterns(void **state) {
    (void)state;
    lplb_gen_config c = small_config();
    c.topk = 1;
    c.hot_ranks = 16;
    c.hot_rank = 5;
    c.hot_share = 0.9;
    c.rotate_every = 2;
    c.rotate_by = 3;
    lplb_trace *trace = generate(&c);
    for (int64_t s = 0; s < trace->steps; s++) {
        int64_t hot = (5 + s / 2 * 3) % 16;
        assert_true(trace->counts[s * 32 + hot] > 512 / 2);
    }
    lplb_trace_destroy(trace);
    c = small_config();
    c.zero_probability = 1;
    trace = generate(&c);
    for (int i = 0; i < 16 * 32; i++) assert_int_equal(trace->counts[i], 0);
    lplb_trace_destroy(trace);
    c.zero_probability = 0;
    c.burst_probability = 1;
    c.burst_factor = 1000;
    trace = generate(&c);
    for (int64_t row = 0; row < trace->steps * 2; row++) { /* one expert in nearly every token */
        int64_t largest = 0;
        for (int e = 0; e < 16; e++)
            if (trace->counts[row * 16 + e] > largest) largest = trace->counts[row * 16 + e];
        assert_true(largest > 500);
    }
    lplb_trace_destroy(trace);
}

static void test_dense_layer(void **state) {
    (void)state;
    static const int64_t load[8] = {0, 0, 0, 0, 1, 1, 1, 1};
    lplb_gen_config c = small_config();
    c.kind = LPLB_TRACE_TOPK;
    c.experts = 4;
    c.base = LPLB_GEN_LOADS;
    c.load = load;
    lplb_trace *trace = generate(&c);
    for (int64_t t = 0; t < trace->tokens; t++) {
        assert_int_equal(trace->topk_ids[t * 4], -1);
        assert_true(trace->topk_ids[t * 4 + 2] >= 0);
    }
    lplb_trace_destroy(trace);
    static const int64_t thin[8] = {0, 0, 0, 1, 1, 1, 1, 1};
    c.load = thin;
    expect_failure(lplb_gen(&c, &trace), LPLB_INVALID, "layer 0 has load on 1 experts");
}

static void test_refusals(void **state) {
    (void)state;
    static const int64_t load[32] = {-1};
    lplb_gen_config good = small_config();
#define REFUSED(change, part)                                                                      \
    do {                                                                                           \
        lplb_gen_config c = good;                                                                  \
        lplb_trace *trace;                                                                         \
        change;                                                                                    \
        expect_failure(lplb_gen(&c, &trace), LPLB_INVALID, part);                                  \
        assert_null(trace);                                                                        \
    } while (0)
    REFUSED(c.struct_size = 8, "struct_size");
    REFUSED(c.layers = 0, "layers");
    REFUSED(c.experts = 0, "experts");
    REFUSED((c.kind = LPLB_TRACE_TOPK, c.experts = 40000), "32767");
    REFUSED(c.topk = 17, "topk is 17");
    REFUSED(c.tokens = 0, "tokens");
    REFUSED(c.batch_tokens = -1, "batch_tokens");
    REFUSED(c.sigma = NAN, "sigma");
    REFUSED((c.base = LPLB_GEN_ZIPF, c.exponent = -1), "Zipf");
    REFUSED(c.base = LPLB_GEN_LOADS, "without loads");
    REFUSED((c.base = LPLB_GEN_LOADS, c.load = load), "negative");
    REFUSED(c.load = load, "base is not LOADS");
    REFUSED(c.hot_share = 0.5, "hot_share");
    REFUSED(c.hot_experts = 3, "hot_share");
    REFUSED((c.hot_experts = 16, c.hot_share = 0.5), "hot_experts");
    REFUSED((c.hot_ranks = 3, c.hot_share = 0.5), "do not divide");
    REFUSED((c.hot_ranks = 4, c.hot_rank = 4, c.hot_share = 0.5), "hot_rank");
    REFUSED(c.rotate_by = 1, "rotate_by");
    REFUSED(c.burst_probability = 2, "burst_probability");
    REFUSED(c.burst_probability = 0.5, "burst_factor");
    REFUSED(c.zero_probability = NAN, "zero_probability");
#undef REFUSED
    lplb_gen_config c = good;
    lplb_trace *trace;
    c.tokens = (int64_t)1 << 40;
    c.kind = LPLB_TRACE_TOPK;
    expect_failure(lplb_gen(&c, &trace), LPLB_RANGE, "limit");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_everywhere),
        cmocka_unit_test(test_distinct),
        cmocka_unit_test(test_distribution),
        cmocka_unit_test(test_zipf_and_lognormal),
        cmocka_unit_test(test_hot),
        cmocka_unit_test(test_time_patterns),
        cmocka_unit_test(test_dense_layer),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
