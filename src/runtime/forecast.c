/* Forecaster: additive Holt-Winters on the shares of experts, judged against persistence.
 *
 *   season' = s[k],  forecast = level + damping * trend + season'         (k = the block's season)
 *   level   = a (x - season') + (1 - a) (level + damping * trend)
 *   trend   = b (level - level_before) + (1 - b) damping * trend
 *   s[k]    = c (x - level) + (1 - c) season'
 * (Holt 1957, Winters 1960; damping: Gardner and McKenzie, Management Science 31(10), 1985.) */
#include <lplb/tracker.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/mem.h"
#include "runtime/pack.h"

static const uint64_t FORECASTER_MAGIC = 0x6c706c62666f72u; /* "lplbfor" */
enum { PACK_KIND = 0x464f52, PACK_VERSION = 1, DEFAULT_BLOCK = 100, JUDGED_AT_LEAST = 4 };
static const double ERROR_ALPHA = 0.1; /* weight of the newest block in the errors */

struct lplb_forecaster {
    uint64_t magic;
    lplb_forecaster_config config;
    lplb__arena arena;
    int64_t cells;
    float *block;                            /* [L][E] tokens of the block under way */
    float *last;                             /* [L][E] shares of the last block */
    float *level, *trend;                    /* [L][E] */
    float *season;                           /* [period][L][E] */
    float *forecast;                         /* [L][E] for the block under way */
    int64_t *blocks;                         /* [L] blocks with tokens so far */
    int64_t *judged;                         /* [L] blocks compared */
    double *model_error, *persistence_error; /* [L] decayed means */
    int64_t in_block;                        /* batches of the block under way */
    int64_t season_index;
};

static lplb_status check_fraction(const char *name, double *value, double fallback, bool one) {
    if (*value == 0) *value = fallback;
    if (!(*value > 0 && (*value < 1 || (one && *value == 1))))
        return LPLB_FAIL(LPLB_RANGE, "%s %g is outside (0, 1%c", name, *value, one ? ']' : ')');
    return LPLB_OK;
}

static lplb_status fill_config(const lplb_forecaster_config *given, lplb_forecaster_config *c) {
    if (given->struct_size != sizeof *given)
        return LPLB_FAIL(LPLB_INVALID,
                         "config.struct_size is %zu, must be sizeof(lplb_forecaster_config) = %zu",
                         given->struct_size, sizeof *given);
    *c = *given;
    if (c->layers < 1 || c->experts < 1)
        return LPLB_FAIL(LPLB_INVALID, "a forecaster needs layers and experts, not %d and %d",
                         c->layers, c->experts);
    if ((int64_t)c->layers * c->experts > INT32_MAX)
        return LPLB_FAIL(LPLB_RANGE, "%d layers of %d experts are more than a forecaster holds",
                         c->layers, c->experts);
    if (c->block < 0 || c->period < 0 || c->period == 1)
        return LPLB_FAIL(LPLB_RANGE,
                         "block %d, period %d: blocks are of 1 or more batches, a "
                         "season of 2 or more blocks (0 = none)",
                         c->block, c->period);
    if (!c->block) c->block = DEFAULT_BLOCK;
    if (!c->period && c->season != 0)
        return LPLB_FAIL(LPLB_INVALID, "smoothing of the season without a period; leave it 0");
    LPLB_TRY(check_fraction("level", &c->level, 0.5, false));
    LPLB_TRY(check_fraction("trend", &c->trend, 0.2, false));
    LPLB_TRY(check_fraction("season", &c->season, 0.2, false));
    return check_fraction("damping", &c->damping, 0.98, true);
}

static void *block_of(lplb__arena *arena, int64_t count, size_t item_bytes) {
    if (arena->base) return lplb__arena_take(arena, count, item_bytes);
    lplb__arena_reserve(arena, count, item_bytes);
    return NULL;
}

static void lay_out(lplb_forecaster *f) {
    float **rows[] = {&f->block, &f->last, &f->level, &f->trend, &f->forecast};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        *rows[i] = block_of(&f->arena, f->cells, sizeof(float));
    f->season = block_of(&f->arena, f->cells * f->config.period, sizeof *f->season);
    f->blocks = block_of(&f->arena, f->config.layers, sizeof *f->blocks);
    f->judged = block_of(&f->arena, f->config.layers, sizeof *f->judged);
    f->model_error = block_of(&f->arena, f->config.layers, sizeof *f->model_error);
    f->persistence_error = block_of(&f->arena, f->config.layers, sizeof *f->persistence_error);
}

lplb_status lplb_forecaster_create(const lplb_forecaster_config *config, lplb_forecaster **out) {
    *out = NULL;
    lplb_forecaster_config filled;
    LPLB_TRY(fill_config(config, &filled));
    lplb_forecaster *f;
    LPLB_TRY(LPLB_CALLOC(f, 1));
    f->magic = FORECASTER_MAGIC;
    f->config = filled;
    f->cells = (int64_t)filled.layers * filled.experts;
    lay_out(f);
    lplb_status status = lplb__arena_create(&f->arena);
    if (status != LPLB_OK) {
        lplb__free(f);
        return status;
    }
    lay_out(f);
    *out = f;
    return LPLB_OK;
}

void lplb_forecaster_destroy(lplb_forecaster *forecaster) {
    if (!forecaster) return;
    lplb__arena_destroy(&forecaster->arena);
    forecaster->magic = 0;
    lplb__free(forecaster);
}

/* ---- the model ---- */

static float clip_share(float share) { return share < 0 ? 0 : share > 1 ? 1 : share; }

/* The errors of this block's forecast and of "as the last block". */
static void judge(lplb_forecaster *f, int32_t layer, const float *x) {
    int64_t row = (int64_t)layer * f->config.experts;
    double model = 0, persistence = 0;
    for (int32_t e = 0; e < f->config.experts; e++) {
        model += fabs((double)clip_share(f->forecast[row + e]) - (double)x[e]);
        persistence += fabs((double)f->last[row + e] - (double)x[e]);
    }
    double a = f->judged[layer]++ ? ERROR_ALPHA : 1;
    f->model_error[layer] += a * (model - f->model_error[layer]);
    f->persistence_error[layer] += a * (persistence - f->persistence_error[layer]);
}

/* Before a whole season has been seen there is none to add: the level follows the last block and
 * season[] collects the shares, which then become deviations from their mean. */
static void learn_first_season(lplb_forecaster *f, int32_t layer, const float *x) {
    int32_t E = f->config.experts, period = f->config.period;
    int64_t row = (int64_t)layer * E;
    memcpy(f->level + row, x, (size_t)E * sizeof *x);
    memset(f->trend + row, 0, (size_t)E * sizeof *x);
    if (!period) return;
    memcpy(f->season + f->season_index * f->cells + row, x, (size_t)E * sizeof *x);
    if (f->blocks[layer] + 1 < period) return;
    for (int32_t e = 0; e < E; e++) {
        float mean = 0;
        for (int32_t k = 0; k < period; k++) mean += f->season[k * f->cells + row + e];
        mean /= (float)period;
        for (int32_t k = 0; k < period; k++) f->season[k * f->cells + row + e] -= mean;
        f->level[row + e] = mean;
    }
}

static void learn(lplb_forecaster *f, int32_t layer, const float *x) {
    int64_t row = (int64_t)layer * f->config.experts;
    float a = (float)f->config.level, b = (float)f->config.trend, c = (float)f->config.season;
    float damping = (float)f->config.damping;
    float *season = f->config.period ? f->season + f->season_index * f->cells + row : NULL;
    for (int32_t e = 0; e < f->config.experts; e++) {
        float seasonal = season ? season[e] : 0, before = f->level[row + e];
        float drift = damping * f->trend[row + e];
        float level = a * (x[e] - seasonal) + (1 - a) * (before + drift);
        f->trend[row + e] = b * (level - before) + (1 - b) * drift;
        f->level[row + e] = level;
        if (season) season[e] = c * (x[e] - level) + (1 - c) * seasonal;
    }
}

static void foresee(lplb_forecaster *f, int32_t layer) {
    int64_t row = (int64_t)layer * f->config.experts;
    float damping = (float)f->config.damping;
    bool seasonal = f->config.period && f->blocks[layer] >= f->config.period;
    int64_t next = seasonal ? (f->season_index + 1) % f->config.period : 0;
    const float *season = seasonal ? f->season + next * f->cells + row : NULL;
    for (int32_t e = 0; e < f->config.experts; e++)
        f->forecast[row + e] =
            f->level[row + e] + damping * f->trend[row + e] + (season ? season[e] : 0);
}

/* One layer's shares of the block that ends. */
static void take_block(lplb_forecaster *f, int32_t layer, float *x, double total) {
    int32_t E = f->config.experts;
    int64_t first = f->config.period ? f->config.period : 1; /* blocks of the first season */
    for (int32_t e = 0; e < E; e++) x[e] = (float)((double)x[e] / total);
    if (f->blocks[layer]) judge(f, layer, x);
    if (f->blocks[layer] < first) learn_first_season(f, layer, x);
    else learn(f, layer, x);
    f->blocks[layer]++;
    memcpy(f->last + (int64_t)layer * E, x, (size_t)E * sizeof *x);
}

static void end_block(lplb_forecaster *f) {
    int32_t E = f->config.experts;
    for (int32_t layer = 0; layer < f->config.layers; layer++) {
        float *x = f->block + (int64_t)layer * E;
        double total = 0;
        for (int32_t e = 0; e < E; e++) total += (double)x[e];
        if (total > 0) take_block(f, layer, x, total);
        else if (f->blocks[layer] < f->config.period) f->blocks[layer] = 0; /* a gap: begin anew */
        if (f->blocks[layer]) foresee(f, layer);
    }
    memset(f->block, 0, (size_t)f->cells * sizeof *f->block);
    f->in_block = 0;
    if (f->config.period) f->season_index = (f->season_index + 1) % f->config.period;
}

lplb_status lplb_forecaster_update(lplb_forecaster *f, const int64_t *counts) {
    if (f->magic != FORECASTER_MAGIC)
        return LPLB_FAIL(LPLB_INVALID, "not a forecaster, or destroyed");
    uint64_t bits = 0;
    for (int64_t i = 0; i < f->cells; i++) bits |= (uint64_t)counts[i];
    if (bits > LPLB_TRACKER_MAX_COUNT) {
        int64_t bad = 0;
        while ((uint64_t)counts[bad] <= LPLB_TRACKER_MAX_COUNT) bad++;
        return LPLB_FAIL(LPLB_RANGE, "layer %lld, expert %lld: count %lld is outside [0, %d]",
                         (long long)(bad / f->config.experts), (long long)(bad % f->config.experts),
                         (long long)counts[bad], LPLB_TRACKER_MAX_COUNT);
    }
    for (int64_t i = 0; i < f->cells; i++) f->block[i] += (float)(int32_t)counts[i];
    if (++f->in_block == f->config.block) end_block(f);
    return LPLB_OK;
}

static bool model_is_better(const lplb_forecaster *f, int32_t layer) {
    return f->judged[layer] >= JUDGED_AT_LEAST &&
           f->model_error[layer] < f->persistence_error[layer];
}

lplb_status lplb_forecaster_predict(const lplb_forecaster *f, float *share, uint8_t *used) {
    if (f->magic != FORECASTER_MAGIC)
        return LPLB_FAIL(LPLB_INVALID, "not a forecaster, or destroyed");
    int32_t E = f->config.experts;
    for (int32_t layer = 0; layer < f->config.layers; layer++) {
        int64_t row = (int64_t)layer * E;
        bool better = model_is_better(f, layer);
        double total = 0;
        for (int32_t e = 0; e < E; e++) {
            share[row + e] = better ? clip_share(f->forecast[row + e]) : f->last[row + e];
            total += (double)share[row + e];
        }
        for (int32_t e = 0; better && total > 0 && e < E; e++)
            share[row + e] = (float)((double)share[row + e] / total);
        if (used) used[layer] = better;
    }
    return LPLB_OK;
}

lplb_status lplb_forecaster_error(const lplb_forecaster *f, int32_t layer, double *model,
                                  double *persistence) {
    if (f->magic != FORECASTER_MAGIC)
        return LPLB_FAIL(LPLB_INVALID, "not a forecaster, or destroyed");
    if (layer < 0 || layer >= f->config.layers)
        return LPLB_FAIL(LPLB_RANGE, "layer %d is outside [0, %d)", layer, f->config.layers);
    *model = f->judged[layer] ? f->model_error[layer] : (double)NAN;
    *persistence = f->judged[layer] ? f->persistence_error[layer] : (double)NAN;
    return LPLB_OK;
}

/* ---- saving ---- */

/* The arena holds all arrays and nothing else, and block is its first: it is the state. */
static lplb_status pack_forecaster(const lplb_forecaster *f, void *buffer, size_t capacity,
                                   size_t *bytes) {
    lplb__packer packer;
    lplb__pack_begin(&packer, buffer, capacity, PACK_KIND, PACK_VERSION);
    int32_t shape[4] = {f->config.layers, f->config.experts, f->config.block, f->config.period};
    lplb__pack(&packer, shape, sizeof shape);
    lplb__pack(&packer, &f->in_block, sizeof f->in_block);
    lplb__pack(&packer, &f->season_index, sizeof f->season_index);
    lplb__pack(&packer, f->block, f->arena.total_bytes);
    LPLB_TRY(lplb__pack_end(&packer));
    *bytes = packer.used;
    return LPLB_OK;
}

size_t lplb_forecaster_save_bytes(const lplb_forecaster *forecaster) {
    size_t bytes = 0;
    return pack_forecaster(forecaster, NULL, 0, &bytes) == LPLB_OK ? bytes : 0;
}

lplb_status lplb_forecaster_save(const lplb_forecaster *forecaster, void *buffer, size_t capacity) {
    size_t bytes;
    return pack_forecaster(forecaster, buffer, capacity, &bytes);
}

lplb_status lplb_forecaster_restore(lplb_forecaster *f, const void *buffer, size_t bytes) {
    lplb__unpacker unpacker;
    LPLB_TRY(lplb__unpack_begin(&unpacker, buffer, bytes, PACK_KIND, PACK_VERSION, "forecaster"));
    int32_t mine[4] = {f->config.layers, f->config.experts, f->config.block, f->config.period};
    int32_t saved[4];
    LPLB_TRY(lplb__unpack(&unpacker, saved, sizeof saved));
    if (memcmp(mine, saved, sizeof mine) || bytes != lplb_forecaster_save_bytes(f))
        return LPLB_FAIL(LPLB_FORMAT,
                         "the saved forecaster has %d layers, %d experts, blocks of %d and period "
                         "%d; this one %d, %d, %d and %d",
                         saved[0], saved[1], saved[2], saved[3], mine[0], mine[1], mine[2],
                         mine[3]);
    LPLB_TRY(lplb__unpack(&unpacker, &f->in_block, sizeof f->in_block));
    LPLB_TRY(lplb__unpack(&unpacker, &f->season_index, sizeof f->season_index));
    LPLB_TRY(lplb__unpack(&unpacker, f->block, f->arena.total_bytes));
    return lplb__unpack_end(&unpacker);
}
