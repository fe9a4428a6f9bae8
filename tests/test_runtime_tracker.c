/* Load trackers and the forecaster against plain definitions in double precision. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <lplb/tracker.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "cases/count_alloc.h"

enum { L = 3, E = 13, CELLS = L * E };

static lplb_tracker *make(lplb_tracker_config config) {
    config.struct_size = sizeof config;
    config.layers = L;
    config.experts = E;
    lplb_tracker *tracker;
    assert_int_equal(lplb_tracker_create(&config, &tracker), LPLB_OK);
    return tracker;
}

/* Log-normal counts; now and then a layer, or all of it, is zero. */
static void draw(lplb__rng *rng, int64_t *counts) {
    int all_zero = lplb__rng_below(rng, 12) == 0;
    for (int l = 0; l < L; l++) {
        int zero = all_zero || lplb__rng_below(rng, 8) == 0;
        for (int e = 0; e < E; e++)
            counts[l * E + e] = zero ? 0 : (int64_t)floor(100 * exp(lplb__rng_normal(rng)));
    }
}

static int layer_zero(const int64_t *row) {
    int64_t total = 0;
    for (int e = 0; e < E; e++) total += row[e];
    return total == 0;
}

/* The definition: weights (1 - alpha)^age over the batches in which the layer had tokens. */
static void weighted(int64_t (*history)[CELLS], int n, double alpha, int layer, int e, double *mean,
                     double *variance) {
    double weight = 1, total = 0, first = 0, second = 0;
    for (int b = n - 1; b >= 0; b--) {
        const int64_t *row = history[b] + layer * E;
        if (layer_zero(row)) continue;
        total += weight;
        first += weight * (double)row[e];
        second += weight * (double)row[e] * (double)row[e];
        weight *= 1 - alpha;
    }
    *mean = total > 0 ? first / total : 0;
    *variance = total > 0 ? second / total - *mean * *mean : 0;
}

static void near(double got, double want, double scale) {
    if (fabs(got - want) > 2e-4 * (fabs(want) + scale)) fail_msg("got %.9g, want %.9g", got, want);
}

static void test_ewma(void **state) {
    (void)state;
    enum { N = 150 };
    static int64_t history[N][CELLS];
    static const double alphas[] = {0.01, 0.05, 0.3, 1};
    for (int a = 0; a < 4; a++) {
        lplb_tracker *t = make((lplb_tracker_config){.alpha = alphas[a]});
        lplb__rng rng;
        lplb__rng_seed(&rng, 7, (uint64_t)a);
        for (int n = 0; n < N; n++) {
            draw(&rng, history[n]);
            assert_int_equal(lplb_tracker_update(t, (lplb_stage)(n % 2), history[n]), LPLB_OK);
        }
        float mean[CELLS], variance[CELLS];
        assert_int_equal(lplb_tracker_mean(t, LPLB_STAGE_ALL, mean), LPLB_OK);
        assert_int_equal(lplb_tracker_variance(t, LPLB_STAGE_ALL, variance), LPLB_OK);
        int64_t counts[CELLS];
        assert_int_equal(lplb_tracker_counts(t, LPLB_STAGE_ALL, 100, counts), LPLB_OK);
        for (int i = 0; i < CELLS; i++) {
            double want_mean, want_variance;
            weighted(history, N, alphas[a], i / E, i % E, &want_mean, &want_variance);
            near((double)mean[i], want_mean, 1);
            near((double)variance[i], want_variance, want_mean * want_mean + 1);
            near((double)counts[i], 100 * want_mean, 100);
        }
        lplb_tracker_destroy(t);
    }
}

static void test_window(void **state) {
    (void)state;
    enum { N = 90, W = 17 };
    static int64_t history[N][CELLS];
    lplb_tracker *t = make((lplb_tracker_config){.kind = LPLB_TRACKER_WINDOW, .window = W});
    lplb__rng rng;
    lplb__rng_seed(&rng, 8, 0);
    int64_t kept[N], n_kept = 0; /* batches that are not all zero */
    for (int n = 0; n < N; n++) {
        draw(&rng, history[n]);
        assert_int_equal(lplb_tracker_update(t, LPLB_STAGE_DECODE, history[n]), LPLB_OK);
        if (!layer_zero(history[n]) || !layer_zero(history[n] + E) ||
            !layer_zero(history[n] + 2 * E))
            kept[n_kept++] = n;
        float mean[CELLS], variance[CELLS];
        assert_int_equal(lplb_tracker_mean(t, LPLB_STAGE_ALL, mean), LPLB_OK);
        assert_int_equal(lplb_tracker_variance(t, LPLB_STAGE_ALL, variance), LPLB_OK);
        for (int i = 0; i < CELLS; i++) {
            double sum = 0, squares = 0, used = 0;
            for (int64_t k = n_kept > W ? n_kept - W : 0; k < n_kept; k++) {
                const int64_t *batch = history[kept[k]];
                if (layer_zero(batch + i / E * E)) continue;
                used++;
                sum += (double)batch[i];
                squares += (double)batch[i] * (double)batch[i];
            }
            double want = used ? sum / used : 0;
            near((double)mean[i], want, 1);
            near((double)variance[i], used ? squares / used - want * want : 0, want * want + 1);
        }
    }
    lplb_tracker_stats stats;
    lplb_tracker_get_stats(t, &stats);
    assert_int_equal(stats.batches, n_kept);
    assert_int_equal(stats.zero, N - n_kept);
    lplb_tracker_destroy(t);
}

static void test_stages(void **state) {
    (void)state;
    enum { N = 200 };
    static int64_t history[LPLB_STAGES][N][CELLS];
    int n_stage[LPLB_STAGES] = {0, 0};
    lplb_tracker *t = make((lplb_tracker_config){.kind = LPLB_TRACKER_STAGES});
    lplb__rng rng;
    lplb__rng_seed(&rng, 9, 0);
    double rate = 0, rate_weight = 0;
    for (int n = 0; n < N; n++) {
        int s = lplb__rng_below(&rng, 5) == 0 ? LPLB_STAGE_PREFILL : LPLB_STAGE_DECODE;
        int64_t *batch = history[s][n_stage[s]];
        for (int i = 0; i < CELLS; i++) batch[i] = (s == LPLB_STAGE_PREFILL ? 5000 : 10) * (i + 1);
        batch[n % CELLS] += 7;
        n_stage[s]++;
        assert_int_equal(lplb_tracker_update(t, (lplb_stage)s, batch), LPLB_OK);
        rate += 0.05 * ((s == LPLB_STAGE_PREFILL) - rate);
        rate_weight += 0.05 * (1 - rate_weight);
    }
    rate /= rate_weight;
    float one[LPLB_STAGES][CELLS], all[CELLS];
    assert_int_equal(lplb_tracker_mean(t, LPLB_STAGE_PREFILL, one[0]), LPLB_OK);
    assert_int_equal(lplb_tracker_mean(t, LPLB_STAGE_DECODE, one[1]), LPLB_OK);
    assert_int_equal(lplb_tracker_mean(t, LPLB_STAGE_ALL, all), LPLB_OK);
    for (int i = 0; i < CELLS; i++) {
        double mean[2], variance;
        weighted(history[0], n_stage[0], 0.15, i / E, i % E, &mean[0], &variance);
        weighted(history[1], n_stage[1], 0.05, i / E, i % E, &mean[1], &variance);
        near((double)one[0][i], mean[0], 1);
        near((double)one[1][i], mean[1], 1);
        near((double)all[i], rate * mean[0] + (1 - rate) * mean[1], 1);
    }
    lplb_tracker_destroy(t);
}

/* Pairs, whole counts and real loads are three ways to say the same. */
static void test_feeds_agree(void **state) {
    (void)state;
    lplb_tracker *by[3];
    for (int i = 0; i < 3; i++) by[i] = make((lplb_tracker_config){.alpha = 0.1});
    lplb__rng rng;
    lplb__rng_seed(&rng, 10, 0);
    for (int n = 0; n < 40; n++) {
        int64_t counts[CELLS], first[L + 1] = {0}, tokens[2 * CELLS];
        int32_t expert[2 * CELLS];
        float real[CELLS];
        int64_t k = 0;
        draw(&rng, counts);
        for (int l = 0; l < L; l++) {
            for (int e = E - 1; e >= 0; e--) {
                int64_t c = counts[l * E + e], part = c / 3;
                real[l * E + e] = (float)c;
                if (!c) continue;
                expert[k] = e, tokens[k++] = part;
                expert[k] = e, tokens[k++] = c - part;
            }
            first[l + 1] = k;
        }
        assert_int_equal(lplb_tracker_update(by[0], LPLB_STAGE_DECODE, counts), LPLB_OK);
        assert_int_equal(lplb_tracker_update_pairs(by[1], LPLB_STAGE_DECODE, first, expert, tokens),
                         LPLB_OK);
        assert_int_equal(lplb_tracker_update_real(by[2], LPLB_STAGE_DECODE, real), LPLB_OK);
    }
    float mean[3][CELLS];
    for (int i = 0; i < 3; i++) lplb_tracker_mean(by[i], LPLB_STAGE_ALL, mean[i]);
    assert_memory_equal(mean[0], mean[1], sizeof mean[0]);
    assert_memory_equal(mean[0], mean[2], sizeof mean[0]);
    for (int i = 0; i < 3; i++) lplb_tracker_destroy(by[i]);
}

static void expect_unchanged(lplb_tracker *t, const void *before, size_t bytes) {
    unsigned char *now = malloc(bytes);
    assert_int_equal(lplb_tracker_save(t, now, bytes), LPLB_OK);
    /* Everything but the statistics, which are the last field, and the checksum. */
    assert_memory_equal(now, before, bytes - sizeof(lplb_tracker_stats) - 8);
    free(now);
}

static void test_refusals(void **state) {
    (void)state;
    lplb_tracker *t = make((lplb_tracker_config){.alpha = 0.5});
    int64_t counts[CELLS];
    float real[CELLS];
    for (int i = 0; i < CELLS; i++) counts[i] = i, real[i] = (float)i;
    assert_int_equal(lplb_tracker_update(t, LPLB_STAGE_DECODE, counts), LPLB_OK);
    size_t bytes = lplb_tracker_save_bytes(t);
    void *before = malloc(bytes);
    assert_int_equal(lplb_tracker_save(t, before, bytes), LPLB_OK);

    static const int64_t bad[] = {-1, INT64_MIN, (int64_t)1 << 31, INT64_MAX};
    for (int i = 0; i < 4; i++) {
        counts[2 * E + 5] = bad[i];
        assert_int_equal(lplb_tracker_update(t, LPLB_STAGE_DECODE, counts), LPLB_RANGE);
        assert_non_null(strstr(lplb_error_message(), "layer 2, expert 5"));
    }
    const float bad_real[] = {-1.0f, NAN, INFINITY, -INFINITY, 1e20f};
    for (int i = 0; i < 5; i++) {
        real[E + 4] = bad_real[i];
        assert_int_equal(lplb_tracker_update_real(t, LPLB_STAGE_DECODE, real), LPLB_RANGE);
        assert_non_null(strstr(lplb_error_message(), "layer 1, expert 4"));
    }
    int64_t first[L + 1] = {0, 2, 2, 2}, tokens[2] = {2000000000, 2000000000};
    int32_t expert[2] = {3, 3};
    assert_int_equal(lplb_tracker_update_pairs(t, LPLB_STAGE_DECODE, first, expert, tokens),
                     LPLB_RANGE);
    expert[1] = E;
    assert_int_equal(lplb_tracker_update_pairs(t, LPLB_STAGE_DECODE, first, expert, tokens),
                     LPLB_RANGE);
    assert_int_equal(lplb_tracker_update(t, LPLB_STAGE_ALL, counts), LPLB_INVALID);
    assert_int_equal(lplb_tracker_mark(t, LPLB_BATCH_DUMMY), LPLB_OK);
    assert_int_equal(lplb_tracker_mark(t, LPLB_BATCH_MISSING), LPLB_OK);
    assert_int_equal(lplb_tracker_mark(t, (lplb_batch_mark)9), LPLB_INVALID);
    memset(counts, 0, sizeof counts);
    assert_int_equal(lplb_tracker_update(t, LPLB_STAGE_DECODE, counts), LPLB_OK);
    expect_unchanged(t, before, bytes);
    lplb_tracker_stats stats;
    lplb_tracker_get_stats(t, &stats);
    assert_int_equal(stats.batches, 1);
    assert_int_equal(stats.refused, 11);
    assert_int_equal(stats.dummy, 1);
    assert_int_equal(stats.missing, 1);
    assert_int_equal(stats.zero, 1);
    free(before);

    float mean[CELLS];
    assert_int_equal(lplb_tracker_mean(t, LPLB_STAGE_DECODE, mean), LPLB_UNSUPPORTED);
    lplb_tracker_destroy(t);

    static const lplb_tracker_config wrong[] = {
        {.kind = LPLB_TRACKER_EWMA, .window = 4},
        {.kind = LPLB_TRACKER_WINDOW, .alpha = 0.1},
        {.kind = LPLB_TRACKER_EWMA, .alpha = 1.5},
        {.kind = LPLB_TRACKER_EWMA, .alpha = NAN},
        {.kind = LPLB_TRACKER_WINDOW, .window = -1},
        {.kind = LPLB_TRACKER_STAGES, .alpha = 0.1},
        {.kind = (lplb_tracker_kind)7},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        lplb_tracker_config config = wrong[i];
        config.struct_size = sizeof config;
        config.layers = L, config.experts = E;
        assert_int_not_equal(lplb_tracker_create(&config, &t), LPLB_OK);
        assert_null(t);
    }
}

/* A restored tracker goes on bit for bit; damaged bytes are refused and change nothing. */
static void test_save(void **state) {
    (void)state;
    static const lplb_tracker_config kinds[] = {
        {.kind = LPLB_TRACKER_EWMA, .alpha = 0.1},
        {.kind = LPLB_TRACKER_WINDOW, .window = 9, .samples = 3},
        {.kind = LPLB_TRACKER_STAGES, .samples = -1},
    };
    for (int k = 0; k < 3; k++) {
        lplb_tracker *a = make(kinds[k]), *b = make(kinds[k]), *other = make(kinds[(k + 1) % 3]);
        lplb__rng rng;
        lplb__rng_seed(&rng, 11, (uint64_t)k);
        int64_t counts[CELLS];
        for (int n = 0; n < 31; n++) {
            draw(&rng, counts);
            lplb_tracker_update(a, (lplb_stage)(n % 2), counts);
        }
        size_t bytes = lplb_tracker_save_bytes(a);
        unsigned char *saved = malloc(bytes), *fresh = malloc(bytes), *after = malloc(bytes);
        assert_int_equal(lplb_tracker_save(a, saved, bytes - 1), LPLB_RANGE);
        assert_int_equal(lplb_tracker_save(a, saved, bytes), LPLB_OK);
        assert_int_equal(lplb_tracker_save(b, fresh, bytes), LPLB_OK);
        for (int i = 0; i < 200; i++) {
            int64_t at = lplb__rng_below(&rng, (int64_t)bytes);
            saved[at] ^= (unsigned char)(1 + lplb__rng_below(&rng, 255));
            assert_int_equal(lplb_tracker_restore(b, saved, bytes), LPLB_FORMAT);
            lplb_tracker_save(a, saved, bytes);
        }
        assert_int_equal(lplb_tracker_restore(b, saved, bytes - 8), LPLB_FORMAT);
        assert_int_equal(lplb_tracker_restore(b, saved, 3), LPLB_FORMAT);
        assert_int_equal(lplb_tracker_restore(other, saved, bytes), LPLB_FORMAT);
        lplb_tracker_save(b, after, bytes);
        assert_memory_equal(fresh, after, bytes);

        assert_int_equal(lplb_tracker_restore(b, saved, bytes), LPLB_OK);
        for (int n = 0; n < 31; n++) {
            draw(&rng, counts);
            lplb_tracker_update(a, (lplb_stage)(n % 2), counts);
            lplb_tracker_update(b, (lplb_stage)(n % 2), counts);
        }
        lplb_tracker_save(a, saved, bytes);
        lplb_tracker_save(b, after, bytes);
        assert_memory_equal(saved, after, bytes);
        free(saved), free(fresh), free(after);
        lplb_tracker_destroy(a), lplb_tracker_destroy(b), lplb_tracker_destroy(other);
    }
}

/* The factor's product is the sample covariance of the batches that were kept. */
static void test_covariance(void **state) {
    (void)state;
    lplb_tracker *t = make((lplb_tracker_config){.alpha = 0.1, .samples = 6});
    lplb__rng rng;
    lplb__rng_seed(&rng, 12, 0);
    int64_t counts[CELLS];
    float factor[8 * E];
    int32_t rank;
    assert_int_equal(lplb_tracker_covariance(t, LPLB_STAGE_ALL, 1, 8, factor, &rank), LPLB_OK);
    assert_int_equal(rank, 0);
    for (int n = 0; n < 50; n++) {
        for (int i = 0; i < CELLS; i++) counts[i] = 1 + lplb__rng_below(&rng, 1000);
        counts[E + 1] = 2 * counts[E]; /* perfectly correlated */
        lplb_tracker_update(t, LPLB_STAGE_DECODE, counts);
    }
    int64_t samples, kept[8 * CELLS];
    assert_int_equal(lplb_tracker_samples(t, LPLB_STAGE_ALL, 8, kept, &samples), LPLB_OK);
    assert_int_equal(samples, 6);
    assert_int_equal(lplb_tracker_covariance(t, LPLB_STAGE_ALL, 1, 8, factor, &rank), LPLB_OK);
    assert_int_equal(rank, 6);
    for (int a = 0; a < E; a++)
        for (int b = 0; b < E; b++) {
            double mean_a = 0, mean_b = 0, want = 0, got = 0;
            for (int k = 0; k < 6; k++) {
                mean_a += (double)kept[k * CELLS + E + a] / 6;
                mean_b += (double)kept[k * CELLS + E + b] / 6;
                got += (double)factor[k * E + a] * (double)factor[k * E + b];
            }
            for (int k = 0; k < 6; k++)
                want += ((double)kept[k * CELLS + E + a] - mean_a) *
                        ((double)kept[k * CELLS + E + b] - mean_b) / 5;
            near(got, want, 1e5);
        }
    lplb_tracker_destroy(t);
}

/* ---- the forecaster ---- */

enum { FE = 8, BLOCK = 10 };

static lplb_forecaster *make_forecaster(int32_t period) {
    lplb_forecaster_config config = {
        .struct_size = sizeof config, .layers = 1, .experts = FE, .block = BLOCK, .period = period};
    lplb_forecaster *f;
    assert_int_equal(lplb_forecaster_create(&config, &f), LPLB_OK);
    return f;
}

/* Shares of 100,000 tokens: kind 0 drifts linearly, 1 has a season of 12 blocks, 2 jumps about. */
static void shares_at(int kind, int block, lplb__rng *rng, int64_t *counts) {
    double weight[FE];
    for (int e = 0; e < FE; e++) {
        double phase = 2 * 3.14159265358979 * (block / 12.0 + e / (double)FE);
        weight[e] = kind == 0   ? 1 + (e % 2 ? 0.008 : -0.008) * block
                    : kind == 1 ? 1 + 0.5 * sin(phase)
                                : exp(0.5 * lplb__rng_normal(rng));
    }
    double sum = 0;
    for (int e = 0; e < FE; e++) sum += weight[e];
    for (int e = 0; e < FE; e++) counts[e] = (int64_t)floor(1e5 * weight[e] / sum);
}

static double forecast_error(int kind, int32_t period, uint8_t *used, double *model,
                             double *persistence) {
    lplb_forecaster *f = make_forecaster(period);
    lplb__rng rng;
    lplb__rng_seed(&rng, 13, (uint64_t)kind);
    int64_t counts[FE];
    float share[FE];
    double error = 0;
    for (int block = 0; block < 100; block++) {
        shares_at(kind, block, &rng, counts);
        double total = 0;
        for (int e = 0; e < FE; e++) total += (double)counts[e];
        assert_int_equal(lplb_forecaster_predict(f, share, used), LPLB_OK);
        double sum = 0;
        for (int e = 0; e < FE; e++) {
            sum += (double)share[e];
            if (block >= 60) error += fabs((double)share[e] - (double)counts[e] / total) / 40;
        }
        assert_true(block == 0 ? sum == 0 : fabs(sum - 1) < 1e-5);
        for (int n = 0; n < BLOCK; n++)
            assert_int_equal(lplb_forecaster_update(f, counts), LPLB_OK);
    }
    assert_int_equal(lplb_forecaster_error(f, 0, model, persistence), LPLB_OK);
    lplb_forecaster_destroy(f);
    return error;
}

static void test_forecaster(void **state) {
    (void)state;
    uint8_t used;
    double model, persistence;
    double error = forecast_error(0, 0, &used, &model, &persistence); /* trend */
    assert_true(used);
    assert_true(model < 0.5 * persistence);
    assert_true(error < 0.6 * persistence);
    error = forecast_error(1, 12, &used, &model, &persistence); /* season */
    assert_true(used);
    assert_true(model < 0.5 * persistence);
    assert_true(error < 0.6 * persistence);
    /* White noise: the level smooths it, so the model may win, but what is used never does worse
     * than both. */
    error = forecast_error(2, 0, &used, &model, &persistence);
    assert_true(error < 1.2 * fmin(model, persistence));
    assert_int_equal(used, model < persistence);
}

/* A random walk is best forecast by its last value: then the model must not be used. */
static void test_forecaster_steps_back(void **state) {
    (void)state;
    lplb_forecaster *f = make_forecaster(0);
    lplb__rng rng;
    lplb__rng_seed(&rng, 14, 0);
    double weight[FE] = {0};
    int64_t counts[FE];
    uint8_t used;
    int n_used = 0;
    float share[FE];
    for (int block = 0; block < 200; block++) {
        for (int e = 0; e < FE; e++) {
            weight[e] += 0.2 * lplb__rng_normal(&rng);
            counts[e] = (int64_t)floor(1e6 * exp(weight[e]));
        }
        for (int n = 0; n < BLOCK; n++) lplb_forecaster_update(f, counts);
        lplb_forecaster_predict(f, share, &used);
        n_used += used;
    }
    assert_true(n_used < 40);

    size_t bytes = lplb_forecaster_save_bytes(f);
    unsigned char *saved = malloc(bytes), *again = malloc(bytes);
    assert_int_equal(lplb_forecaster_save(f, saved, bytes), LPLB_OK);
    lplb_forecaster *g = make_forecaster(0), *h = make_forecaster(3);
    assert_int_equal(lplb_forecaster_restore(h, saved, bytes), LPLB_FORMAT);
    assert_int_equal(lplb_forecaster_restore(g, saved, bytes), LPLB_OK);
    for (int n = 0; n < 7 * BLOCK + 3; n++) {
        lplb_forecaster_update(f, counts);
        lplb_forecaster_update(g, counts);
    }
    lplb_forecaster_save(f, saved, bytes);
    lplb_forecaster_save(g, again, bytes);
    assert_memory_equal(saved, again, bytes);
    counts[3] = -5;
    assert_int_equal(lplb_forecaster_update(f, counts), LPLB_RANGE);
    free(saved), free(again);
    lplb_forecaster_destroy(f), lplb_forecaster_destroy(g), lplb_forecaster_destroy(h);
}

static void test_no_allocation(void **state) {
    (void)state;
    lplb_tracker *t = make((lplb_tracker_config){.kind = LPLB_TRACKER_STAGES});
    lplb_forecaster_config config = {
        .struct_size = sizeof config, .layers = L, .experts = E, .block = 3, .period = 4};
    lplb_forecaster *f;
    assert_int_equal(lplb_forecaster_create(&config, &f), LPLB_OK);
    lplb__rng rng;
    lplb__rng_seed(&rng, 15, 0);
    int64_t calls = count_alloc_calls(), counts[CELLS];
    for (int n = 0; n < 100; n++) {
        draw(&rng, counts);
        lplb_tracker_update(t, (lplb_stage)(n % 2), counts);
        lplb_forecaster_update(f, counts);
        lplb_tracker_mark(t, LPLB_BATCH_DUMMY);
    }
    assert_int_equal(count_alloc_calls(), calls);
    lplb_tracker_destroy(t);
    lplb_forecaster_destroy(f);
}

int main(void) {
    count_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ewma),
        cmocka_unit_test(test_window),
        cmocka_unit_test(test_stages),
        cmocka_unit_test(test_feeds_agree),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_save),
        cmocka_unit_test(test_covariance),
        cmocka_unit_test(test_forecaster),
        cmocka_unit_test(test_forecaster_steps_back),
        cmocka_unit_test(test_no_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
