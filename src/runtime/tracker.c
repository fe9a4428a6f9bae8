/* Load trackers: windows and exponentially weighted moving averages with their variance. */
#include <lplb/tracker.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/mem.h"
#include "runtime/pack.h"
#include "runtime/tracker.h"

static const uint64_t TRACKER_MAGIC = 0x6c706c62747261u; /* "lplbtra" */
enum { PACK_KIND = 0x54524b, PACK_VERSION = 1, DEFAULT_WINDOW = 1000, DEFAULT_SAMPLES = 8 };

/* What one stage remembers. Loads are kept as float32: whole up to 2^24, then to 24 bits. */
typedef struct series {
    double alpha;     /* EWMA */
    double *weight;   /* [L] EWMA: sum of the weights given so far, rising from 0 towards 1 */
    float *mean;      /* [L][E] EWMA */
    float *variance;  /* [L][E] EWMA */
    float *ring;      /* [window][L][E] WINDOW */
    uint8_t *known;   /* [window][L] the layer had tokens */
    double *sum;      /* [L][E] WINDOW */
    double *squares;  /* [L][E] WINDOW: sum of squares; whole below 2^53, so nothing builds up */
    int32_t *n_known; /* [L] */
    int64_t batches, stride; /* every stride-th batch is kept as a sample */
    float *sample;           /* [samples][L][E], a ring */
    int64_t sampled;
} series;

struct lplb_tracker {
    uint64_t magic;
    lplb_tracker_config config; /* defaults filled in */
    lplb__arena arena;
    int32_t n_series;
    int64_t cells; /* L * E */
    series series[LPLB_STAGES];
    double rate[LPLB_STAGES], rate_weight; /* decayed fraction of batches of each stage */
    float *incoming;                       /* [L][E] the batch being fed */
    double *total;                         /* [L] its tokens */
    int64_t *scattered;                    /* [L][E] pairs added up, zero between calls */
    lplb_tracker_stats stats;
};

/* ---- creation ---- */

static lplb_status check_alpha(const char *name, double *alpha, bool used, double fallback) {
    if (!used && *alpha != 0)
        return LPLB_FAIL(LPLB_INVALID, "this kind of tracker has no %s; leave it 0", name);
    if (*alpha == 0) *alpha = fallback;
    if (used && !(*alpha > 0 && *alpha <= 1))
        return LPLB_FAIL(LPLB_RANGE, "%s %g is outside (0, 1]", name, *alpha);
    return LPLB_OK;
}

static lplb_status fill_config(const lplb_tracker_config *given, lplb_tracker_config *config) {
    if (given->struct_size != sizeof *given)
        return LPLB_FAIL(LPLB_INVALID,
                         "config.struct_size is %zu, must be sizeof(lplb_tracker_config) = %zu",
                         given->struct_size, sizeof *given);
    *config = *given;
    if ((unsigned)config->kind > LPLB_TRACKER_STAGES)
        return LPLB_FAIL(LPLB_INVALID, "tracker kind %d does not exist", (int)config->kind);
    if (config->layers < 1 || config->experts < 1)
        return LPLB_FAIL(LPLB_INVALID, "a tracker needs layers and experts, not %d and %d",
                         config->layers, config->experts);
    if ((int64_t)config->layers * config->experts > INT32_MAX)
        return LPLB_FAIL(LPLB_RANGE, "%d layers of %d experts are more than a tracker holds",
                         config->layers, config->experts);
    bool windowed = config->kind == LPLB_TRACKER_WINDOW;
    bool staged = config->kind == LPLB_TRACKER_STAGES;
    if (config->window < 0 || (!windowed && config->window))
        return LPLB_FAIL(LPLB_INVALID, "window %d: a window tracker wants at least 1, others 0",
                         config->window);
    if (windowed && !config->window) config->window = DEFAULT_WINDOW;
    LPLB_TRY(check_alpha("alpha", &config->alpha, config->kind == LPLB_TRACKER_EWMA, 0.05));
    LPLB_TRY(check_alpha("prefill_alpha", &config->prefill_alpha, staged, 0.15));
    LPLB_TRY(check_alpha("decode_alpha", &config->decode_alpha, staged, 0.05));
    if (!config->samples) config->samples = DEFAULT_SAMPLES;
    if (config->samples < 0) config->samples = 0;
    return LPLB_OK;
}

/* With base NULL this adds up the arena, else it hands out the blocks: one list for both. */
static void *block(lplb__arena *arena, int64_t count, size_t item_bytes) {
    if (arena->base) return lplb__arena_take(arena, count, item_bytes);
    lplb__arena_reserve(arena, count, item_bytes);
    return NULL;
}

static void lay_out(lplb_tracker *t) {
    const lplb_tracker_config *c = &t->config;
    lplb__arena *arena = &t->arena;
    for (int32_t s = 0; s < t->n_series; s++) {
        series *one = &t->series[s];
        if (c->kind == LPLB_TRACKER_WINDOW) {
            one->ring = block(arena, c->window * t->cells, sizeof *one->ring);
            one->known = block(arena, (int64_t)c->window * c->layers, sizeof *one->known);
            one->sum = block(arena, t->cells, sizeof *one->sum);
            one->squares = block(arena, t->cells, sizeof *one->squares);
            one->n_known = block(arena, c->layers, sizeof *one->n_known);
        } else {
            one->weight = block(arena, c->layers, sizeof *one->weight);
            one->mean = block(arena, t->cells, sizeof *one->mean);
            one->variance = block(arena, t->cells, sizeof *one->variance);
        }
        one->sample = block(arena, c->samples * t->cells, sizeof *one->sample);
    }
    t->incoming = block(arena, t->cells, sizeof *t->incoming);
    t->total = block(arena, c->layers, sizeof *t->total);
    t->scattered = block(arena, t->cells, sizeof *t->scattered);
}

lplb_status lplb_tracker_create(const lplb_tracker_config *config, lplb_tracker **out) {
    *out = NULL;
    lplb_tracker_config filled;
    LPLB_TRY(fill_config(config, &filled));
    lplb_tracker *t;
    LPLB_TRY(LPLB_CALLOC(t, 1));
    t->magic = TRACKER_MAGIC;
    t->config = filled;
    t->cells = (int64_t)filled.layers * filled.experts;
    t->n_series = filled.kind == LPLB_TRACKER_STAGES ? LPLB_STAGES : 1;
    double alphas[LPLB_STAGES] = {filled.alpha, filled.alpha};
    if (filled.kind == LPLB_TRACKER_STAGES) {
        alphas[LPLB_STAGE_PREFILL] = filled.prefill_alpha;
        alphas[LPLB_STAGE_DECODE] = filled.decode_alpha;
    }
    for (int32_t s = 0; s < t->n_series; s++) {
        series *one = &t->series[s];
        one->alpha = alphas[s];
        /* An EWMA weighs batches like a window of 2 / alpha - 1. */
        double memory = filled.kind == LPLB_TRACKER_WINDOW ? filled.window : 2 / one->alpha - 1;
        double stride = filled.samples ? floor(memory / filled.samples) : 1;
        one->stride = stride < 1 ? 1 : stride > 1e9 ? (int64_t)1e9 : (int64_t)stride;
    }
    lay_out(t);
    lplb_status status = lplb__arena_create(&t->arena);
    if (status != LPLB_OK) {
        lplb__free(t);
        return status;
    }
    lay_out(t);
    *out = t;
    return LPLB_OK;
}

void lplb_tracker_destroy(lplb_tracker *tracker) {
    if (!tracker) return;
    lplb__arena_destroy(&tracker->arena);
    tracker->magic = 0;
    lplb__free(tracker);
}

/* ---- feeding ---- */

/* a = the newest batch's share of all weight so far. With normalised weights w_i,
 *   mean' = mean + a (x - mean),  variance' = (1 - a) (variance + a (x - mean)^2)
 * (West, Communications of the ACM 22(9), 1979), exact from the first batch on. */
static void ewma_row(float *restrict mean, float *restrict variance, const float *restrict x,
                     int32_t n, float a) {
    float keep = 1 - a;
    for (int32_t i = 0; i < n; i++) {
        float difference = x[i] - mean[i], step = a * difference;
        mean[i] += step;
        variance[i] = keep * (variance[i] + difference * step);
    }
}

static void feed_ewma(lplb_tracker *t, series *one) {
    int32_t E = t->config.experts;
    for (int32_t layer = 0; layer < t->config.layers; layer++) {
        if (!(t->total[layer] > 0)) continue;
        int64_t row = (int64_t)layer * E;
        one->weight[layer] += one->alpha * (1 - one->weight[layer]);
        ewma_row(one->mean + row, one->variance + row, t->incoming + row, E,
                 (float)(one->alpha / one->weight[layer]));
    }
}

static void slide_row(double *restrict sum, double *restrict squares, float *restrict old,
                      const float *restrict x, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        double in = (double)x[i], out = (double)old[i];
        sum[i] += in - out;
        squares[i] += in * in - out * out;
        old[i] = x[i];
    }
}

static void feed_window(lplb_tracker *t, series *one) {
    int32_t E = t->config.experts, L = t->config.layers;
    int64_t place = one->batches % t->config.window;
    float *ring = one->ring + place * t->cells;
    uint8_t *known = one->known + place * L;
    for (int32_t layer = 0; layer < L; layer++) {
        int64_t row = (int64_t)layer * E;
        uint8_t now = t->total[layer] > 0;
        one->n_known[layer] += now - known[layer];
        known[layer] = now;
        slide_row(one->sum + row, one->squares + row, ring + row, t->incoming + row, E);
    }
}

static lplb_status check_stage(const lplb_tracker *t, lplb_stage stage) {
    if (t->magic != TRACKER_MAGIC) return LPLB_FAIL(LPLB_INVALID, "not a tracker, or destroyed");
    if (stage != LPLB_STAGE_PREFILL && stage != LPLB_STAGE_DECODE)
        return LPLB_FAIL(LPLB_INVALID, "stage %d: a batch is LPLB_STAGE_PREFILL or _DECODE",
                         (int)stage);
    return LPLB_OK;
}

/* incoming and total hold a batch that has passed the checks. */
static void feed(lplb_tracker *t, lplb_stage stage) {
    int32_t zero_layers = 0;
    for (int32_t layer = 0; layer < t->config.layers; layer++)
        zero_layers += !(t->total[layer] > 0);
    if (zero_layers == t->config.layers) {
        t->stats.zero++;
        return;
    }
    t->stats.batches++;
    t->stats.stage[stage]++;
    t->stats.zero_layers += zero_layers;
    series *one = &t->series[t->n_series > 1 ? stage : 0];
    if (t->config.kind == LPLB_TRACKER_WINDOW) feed_window(t, one);
    else feed_ewma(t, one);
    if (t->config.samples && one->batches % one->stride == 0) {
        memcpy(one->sample + one->sampled % t->config.samples * t->cells, t->incoming,
               (size_t)t->cells * sizeof *t->incoming);
        one->sampled++;
    }
    one->batches++;
    if (t->n_series > 1) {
        double a = t->config.decode_alpha;
        for (int32_t s = 0; s < t->n_series; s++) t->rate[s] += a * ((s == stage) - t->rate[s]);
        t->rate_weight += a * (1 - t->rate_weight);
    }
}

/* Loads one row; the bits of all values together show whether one was out of range. */
static uint64_t load_row(const int64_t *restrict counts, float *restrict x, int32_t n,
                         double *total) {
    uint64_t bits = 0, sum = 0;
    for (int32_t i = 0; i < n; i++) {
        bits |= (uint64_t)counts[i];
        sum += (uint64_t)counts[i];
        x[i] = (float)(int32_t)counts[i];
    }
    *total = (double)sum;
    return bits;
}

lplb_status lplb_tracker_update(lplb_tracker *t, lplb_stage stage, const int64_t *counts) {
    LPLB_TRY(check_stage(t, stage));
    int32_t E = t->config.experts;
    uint64_t bits = 0;
    for (int32_t layer = 0; layer < t->config.layers; layer++) {
        int64_t row = (int64_t)layer * E;
        bits |= load_row(counts + row, t->incoming + row, E, &t->total[layer]);
    }
    if (bits <= LPLB_TRACKER_MAX_COUNT) {
        feed(t, stage);
        return LPLB_OK;
    }
    t->stats.refused++;
    int64_t bad = 0;
    while ((uint64_t)counts[bad] <= LPLB_TRACKER_MAX_COUNT) bad++;
    return LPLB_FAIL(LPLB_RANGE, "layer %lld, expert %lld: count %lld is outside [0, %d]",
                     (long long)(bad / E), (long long)(bad % E), (long long)counts[bad],
                     LPLB_TRACKER_MAX_COUNT);
}

lplb_status lplb_tracker_update_real(lplb_tracker *t, lplb_stage stage, const float *loads) {
    LPLB_TRY(check_stage(t, stage));
    int32_t E = t->config.experts;
    for (int64_t i = 0; i < t->cells; i++) {
        if (loads[i] >= 0 && loads[i] <= (float)LPLB_TRACKER_MAX_COUNT) continue; /* not a NaN */
        t->stats.refused++;
        return LPLB_FAIL(LPLB_RANGE, "layer %lld, expert %lld: load %g is outside [0, %d]",
                         (long long)(i / E), (long long)(i % E), (double)loads[i],
                         LPLB_TRACKER_MAX_COUNT);
    }
    memcpy(t->incoming, loads, (size_t)t->cells * sizeof *loads);
    for (int32_t layer = 0; layer < t->config.layers; layer++) {
        double total = 0;
        for (int32_t e = 0; e < E; e++) total += (double)loads[(int64_t)layer * E + e];
        t->total[layer] = total;
    }
    feed(t, stage);
    return LPLB_OK;
}

static lplb_status scatter(lplb_tracker *t, const int64_t *first, const int32_t *expert,
                           const int64_t *tokens) {
    int32_t E = t->config.experts;
    for (int32_t layer = 0; layer < t->config.layers; layer++) {
        if (first[layer + 1] < first[layer])
            return LPLB_FAIL(LPLB_INVALID, "layer %d: its pairs end before they begin", layer);
        int64_t *row = t->scattered + (int64_t)layer * E;
        for (int64_t i = first[layer]; i < first[layer + 1]; i++) {
            if (expert[i] < 0 || expert[i] >= E)
                return LPLB_FAIL(LPLB_RANGE, "layer %d: expert %d is outside [0, %d)", layer,
                                 expert[i], E);
            if (tokens[i] < 0 || tokens[i] > LPLB_TRACKER_MAX_COUNT - row[expert[i]])
                return LPLB_FAIL(LPLB_RANGE,
                                 "layer %d, expert %d: %lld more tokens than %lld are "
                                 "outside [0, %d]",
                                 layer, expert[i], (long long)tokens[i], (long long)row[expert[i]],
                                 LPLB_TRACKER_MAX_COUNT);
            row[expert[i]] += tokens[i];
        }
    }
    return LPLB_OK;
}

lplb_status lplb_tracker_update_pairs(lplb_tracker *t, lplb_stage stage, const int64_t *first,
                                      const int32_t *expert, const int64_t *tokens) {
    LPLB_TRY(check_stage(t, stage));
    lplb_status status = scatter(t, first, expert, tokens);
    if (status == LPLB_OK) status = lplb_tracker_update(t, stage, t->scattered);
    else t->stats.refused++;
    memset(t->scattered, 0, (size_t)t->cells * sizeof *t->scattered);
    return status;
}

lplb_status lplb_tracker_mark(lplb_tracker *t, lplb_batch_mark mark) {
    if (t->magic != TRACKER_MAGIC) return LPLB_FAIL(LPLB_INVALID, "not a tracker, or destroyed");
    if (mark != LPLB_BATCH_DUMMY && mark != LPLB_BATCH_MISSING)
        return LPLB_FAIL(LPLB_INVALID, "batch mark %d does not exist", (int)mark);
    ++*(mark == LPLB_BATCH_DUMMY ? &t->stats.dummy : &t->stats.missing);
    return LPLB_OK;
}

void lplb_tracker_get_stats(const lplb_tracker *tracker, lplb_tracker_stats *stats) {
    *stats = tracker->stats;
}

/* ---- reading ---- */

/* The series to read, or NULL for all of a tracker with stages. */
static lplb_status find_series(const lplb_tracker *t, lplb_stage stage, const series **out) {
    *out = NULL;
    if (t->magic != TRACKER_MAGIC) return LPLB_FAIL(LPLB_INVALID, "not a tracker, or destroyed");
    if (stage != LPLB_STAGE_ALL && (int)stage != LPLB_STAGE_PREFILL &&
        (int)stage != LPLB_STAGE_DECODE)
        return LPLB_FAIL(LPLB_INVALID, "stage %d does not exist", (int)stage);
    if (t->n_series == 1) {
        if (stage != LPLB_STAGE_ALL)
            return LPLB_FAIL(LPLB_UNSUPPORTED, "this tracker keeps no stages apart; read "
                                               "LPLB_STAGE_ALL or make one of kind STAGES");
        *out = &t->series[0];
    } else if (stage != LPLB_STAGE_ALL) {
        *out = &t->series[stage];
    }
    return LPLB_OK;
}

static float stage_rate(const lplb_tracker *t, int32_t s) {
    return t->rate_weight > 0 ? (float)(t->rate[s] / t->rate_weight) : 0;
}

static void layer_mean(const lplb_tracker *t, const series *one, int32_t layer, float *mean) {
    int32_t E = t->config.experts;
    int64_t row = (int64_t)layer * E;
    if (one && t->config.kind == LPLB_TRACKER_WINDOW) {
        int32_t n = one->n_known[layer];
        for (int32_t e = 0; e < E; e++) mean[e] = n ? (float)(one->sum[row + e] / n) : 0;
    } else if (one) {
        memcpy(mean, one->mean + row, (size_t)E * sizeof *mean);
    } else {
        const float *of[LPLB_STAGES] = {t->series[0].mean + row, t->series[1].mean + row};
        float rate[LPLB_STAGES] = {stage_rate(t, 0), stage_rate(t, 1)};
        for (int32_t e = 0; e < E; e++) mean[e] = rate[0] * of[0][e] + rate[1] * of[1][e];
    }
}

static void layer_variance(const lplb_tracker *t, const series *one, int32_t layer,
                           float *variance) {
    int32_t E = t->config.experts;
    int64_t row = (int64_t)layer * E;
    if (one && t->config.kind == LPLB_TRACKER_WINDOW) {
        int32_t n = one->n_known[layer];
        for (int32_t e = 0; e < E; e++) {
            double mean = n ? one->sum[row + e] / n : 0;
            double spread = n ? one->squares[row + e] / n - mean * mean : 0;
            variance[e] = spread > 0 ? (float)spread : 0;
        }
    } else if (one) {
        memcpy(variance, one->variance + row, (size_t)E * sizeof *variance);
    } else { /* law of total variance over the stages */
        const series *of = t->series;
        float rate[LPLB_STAGES] = {stage_rate(t, 0), stage_rate(t, 1)};
        for (int32_t e = 0; e < E; e++) {
            float difference = of[0].mean[row + e] - of[1].mean[row + e];
            variance[e] = rate[0] * of[0].variance[row + e] + rate[1] * of[1].variance[row + e] +
                          rate[0] * rate[1] * difference * difference;
        }
    }
}

void lplb__tracker_layer(const lplb_tracker *t, int32_t layer, float *mean, float *variance) {
    const series *one = t->n_series == 1 ? &t->series[0] : NULL;
    layer_mean(t, one, layer, mean);
    layer_variance(t, one, layer, variance);
}

lplb_status lplb_tracker_mean(const lplb_tracker *t, lplb_stage stage, float *mean) {
    const series *one;
    LPLB_TRY(find_series(t, stage, &one));
    for (int32_t layer = 0; layer < t->config.layers; layer++)
        layer_mean(t, one, layer, mean + (int64_t)layer * t->config.experts);
    return LPLB_OK;
}

lplb_status lplb_tracker_variance(const lplb_tracker *t, lplb_stage stage, float *variance) {
    const series *one;
    LPLB_TRY(find_series(t, stage, &one));
    for (int32_t layer = 0; layer < t->config.layers; layer++)
        layer_variance(t, one, layer, variance + (int64_t)layer * t->config.experts);
    return LPLB_OK;
}

lplb_status lplb_tracker_counts(const lplb_tracker *t, lplb_stage stage, double batches,
                                int64_t *counts) {
    const series *one;
    LPLB_TRY(find_series(t, stage, &one));
    if (!(batches > 0 && batches <= 1e6))
        return LPLB_FAIL(LPLB_RANGE, "the load of %g batches; from above 0 to 1e6", batches);
    int32_t E = t->config.experts;
    for (int64_t i = 0; i < t->cells; i++) {
        double mean = 0;
        for (int32_t s = 0; s < t->n_series; s++) {
            const series *part = &t->series[s];
            double factor = one ? part == one : (double)stage_rate(t, s);
            if (t->config.kind != LPLB_TRACKER_WINDOW) mean += factor * (double)part->mean[i];
            else if (part->n_known[i / E]) mean += factor * part->sum[i] / part->n_known[i / E];
        }
        counts[i] = (int64_t)floor(mean * batches + 0.5);
    }
    return LPLB_OK;
}

lplb_status lplb_tracker_samples(const lplb_tracker *t, lplb_stage stage, int64_t capacity,
                                 int64_t *counts, int64_t *samples) {
    const series *one;
    *samples = 0;
    LPLB_TRY(find_series(t, stage, &one));
    for (int32_t s = 0; s < t->n_series; s++) {
        const series *part = &t->series[s];
        if (one && part != one) continue;
        int64_t kept = part->sampled < t->config.samples ? part->sampled : t->config.samples;
        for (int64_t k = part->sampled - kept; k < part->sampled && *samples < capacity; k++) {
            const float *from = part->sample + k % t->config.samples * t->cells;
            int64_t *to = counts + (*samples)++ * t->cells;
            for (int64_t i = 0; i < t->cells; i++) to[i] = (int64_t)floor((double)from[i] + 0.5);
        }
    }
    return LPLB_OK;
}

lplb_status lplb_tracker_covariance(const lplb_tracker *t, lplb_stage stage, int32_t layer,
                                    int32_t capacity, float *factor, int32_t *rank) {
    const series *one;
    *rank = 0;
    LPLB_TRY(find_series(t, stage, &one));
    if (!one)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "covariance is kept stage by stage; name the stage");
    if (layer < 0 || layer >= t->config.layers)
        return LPLB_FAIL(LPLB_RANGE, "layer %d is outside [0, %d)", layer, t->config.layers);
    int32_t E = t->config.experts;
    int64_t kept = one->sampled < t->config.samples ? one->sampled : t->config.samples;
    if (kept < 2) return LPLB_OK;
    if (capacity < kept)
        return LPLB_FAIL(LPLB_RANGE, "the factor has %lld rows, %d were given", (long long)kept,
                         capacity);
    float scale = (float)(1 / sqrt((double)kept - 1));
    for (int32_t e = 0; e < E; e++) {
        const float *column = one->sample + (int64_t)layer * E + e;
        double mean = 0;
        for (int64_t k = 0; k < kept; k++) mean += (double)column[k * t->cells];
        mean /= (double)kept;
        for (int64_t k = 0; k < kept; k++)
            factor[k * E + e] = (float)((double)column[k * t->cells] - mean) * scale;
    }
    *rank = (int32_t)kept;
    return LPLB_OK;
}

/* ---- saving ---- */

typedef lplb_status (*field_visit)(void *context, void *data, size_t bytes);

/* Every field that changes, in one order for both directions. */
static lplb_status visit_state(lplb_tracker *t, field_visit visit, void *context) {
    const lplb_tracker_config *c = &t->config;
    size_t cells = (size_t)t->cells, layers = (size_t)c->layers, window = (size_t)c->window;
    for (int32_t s = 0; s < t->n_series; s++) {
        series *one = &t->series[s];
        if (c->kind == LPLB_TRACKER_WINDOW) {
            LPLB_TRY(visit(context, one->ring, window * cells * sizeof *one->ring));
            LPLB_TRY(visit(context, one->known, window * layers));
            LPLB_TRY(visit(context, one->sum, cells * sizeof *one->sum));
            LPLB_TRY(visit(context, one->squares, cells * sizeof *one->squares));
            LPLB_TRY(visit(context, one->n_known, layers * sizeof *one->n_known));
        } else {
            LPLB_TRY(visit(context, one->weight, layers * sizeof *one->weight));
            LPLB_TRY(visit(context, one->mean, cells * sizeof *one->mean));
            LPLB_TRY(visit(context, one->variance, cells * sizeof *one->variance));
        }
        LPLB_TRY(visit(context, one->sample, (size_t)c->samples * cells * sizeof *one->sample));
        LPLB_TRY(visit(context, &one->batches, sizeof one->batches));
        LPLB_TRY(visit(context, &one->sampled, sizeof one->sampled));
    }
    LPLB_TRY(visit(context, t->rate, sizeof t->rate));
    LPLB_TRY(visit(context, &t->rate_weight, sizeof t->rate_weight));
    return visit(context, &t->stats, sizeof t->stats);
}

static lplb_status write_field(void *context, void *data, size_t bytes) {
    lplb__pack(context, data, bytes);
    return LPLB_OK;
}
static lplb_status read_field(void *context, void *data, size_t bytes) {
    return lplb__unpack(context, data, bytes);
}

/* What must agree between the one who saved and the one who restores. */
typedef struct shape {
    int32_t kind, layers, experts, window, samples, zero;
    double alpha[LPLB_STAGES];
} shape;

static shape shape_of(const lplb_tracker *t) {
    const lplb_tracker_config *c = &t->config;
    return (shape){.kind = (int32_t)c->kind,
                   .layers = c->layers,
                   .experts = c->experts,
                   .window = c->window,
                   .samples = c->samples,
                   .alpha = {t->series[0].alpha, t->series[1].alpha}};
}

static lplb_status pack_tracker(const lplb_tracker *t, void *buffer, size_t capacity,
                                size_t *bytes) {
    lplb__packer packer;
    shape mine = shape_of(t);
    lplb__pack_begin(&packer, buffer, capacity, PACK_KIND, PACK_VERSION);
    lplb__pack(&packer, &mine, sizeof mine);
    /* Visiting does not change what a packer visits. */
    LPLB_TRY(visit_state((lplb_tracker *)(uintptr_t)t, write_field, &packer));
    LPLB_TRY(lplb__pack_end(&packer));
    *bytes = packer.used;
    return LPLB_OK;
}

size_t lplb_tracker_save_bytes(const lplb_tracker *tracker) {
    size_t bytes = 0;
    return pack_tracker(tracker, NULL, 0, &bytes) == LPLB_OK ? bytes : 0;
}

lplb_status lplb_tracker_save(const lplb_tracker *tracker, void *buffer, size_t capacity) {
    size_t bytes;
    return pack_tracker(tracker, buffer, capacity, &bytes);
}

lplb_status lplb_tracker_restore(lplb_tracker *t, const void *buffer, size_t bytes) {
    lplb__unpacker unpacker;
    LPLB_TRY(lplb__unpack_begin(&unpacker, buffer, bytes, PACK_KIND, PACK_VERSION, "tracker"));
    shape mine = shape_of(t), saved;
    LPLB_TRY(lplb__unpack(&unpacker, &saved, sizeof saved));
    if (memcmp(&mine, &saved, sizeof mine))
        return LPLB_FAIL(LPLB_FORMAT,
                         "the saved tracker is of kind %d with %d layers, %d experts, window %d, "
                         "%d samples, alpha %g and %g; this one %d, %d, %d, %d, %d, %g, %g",
                         saved.kind, saved.layers, saved.experts, saved.window, saved.samples,
                         saved.alpha[0], saved.alpha[1], mine.kind, mine.layers, mine.experts,
                         mine.window, mine.samples, mine.alpha[0], mine.alpha[1]);
    /* The checksum was right and the shape agrees, so the length can only be wrong if the library
     * is: nothing is half restored. */
    if (bytes != lplb_tracker_save_bytes(t))
        return LPLB_FAIL(LPLB_FORMAT, "the saved tracker has %zu bytes, not %zu", bytes,
                         lplb_tracker_save_bytes(t));
    LPLB_TRY(visit_state(t, read_field, &unpacker));
    return lplb__unpack_end(&unpacker);
}
