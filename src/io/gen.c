/* Synthetic routing.
 *
 * Sampling topk experts without replacement in proportion to their weights (the Plackett-Luce
 * model) by drawing with replacement from an alias table (Walker 1977; Vose 1991) and drawing again
 * on a repetition. Weights become integers before the table is made, so a last-bit difference
 * between two machines' exp or pow cannot be seen in the trace; every (step, layer) has its own
 * random numbers, so threads cannot be seen either. */
#include <lplb/gen.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "base/threads.h"
#include "io/trace_build.h"

enum { DRAWS_BEFORE_SCAN = 64, DEFAULT_BATCH = 4096 };

/* Streams of random numbers: steps and layers count from 0, weights come from their own range. */
#define WEIGHT_STREAM ((uint64_t)1 << 62)
#define STEP_STREAM   ((uint64_t)1 << 61)

typedef struct sampler {
    double *weight;      /* [E] */
    double *shifted;     /* [E] */
    uint64_t *units;     /* [E] integer weights, sum below 2^62 */
    uint64_t *threshold; /* [E] of 2^64: below it the column's own expert, else its alias */
    int32_t *alias;      /* [E] */
    int32_t *small, *large;
    uint64_t total;
} sampler;

typedef struct generator {
    const lplb_gen_config *config;
    lplb_trace *trace;
    int64_t batch, steps;
    double *base;      /* [L][E], sum 1 in each layer, or all zero */
    double *base_end;  /* [L][E] or NULL */
    uint8_t *hot;      /* [L][E] or NULL */
    sampler *samplers; /* [threads] */
} generator;

/* ---- weights ---- */

static void normalise(double *weight, int32_t n) {
    double sum = 0;
    for (int32_t e = 0; e < n; e++) sum += weight[e];
    for (int32_t e = 0; e < n && sum > 0; e++) weight[e] /= sum;
}

static void shuffle(lplb__rng *rng, int32_t *order, int32_t n) {
    for (int32_t i = 0; i < n; i++) order[i] = i;
    for (int32_t i = n - 1; i > 0; i--) {
        int32_t j = (int32_t)lplb__rng_below(rng, i + 1), t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
}

static void base_weights(const lplb_gen_config *c, lplb__rng *rng, const int64_t *load,
                         int32_t *order, double *weight) {
    int32_t n = c->experts;
    switch (c->base) {
    case LPLB_GEN_LOGNORMAL:
        for (int32_t e = 0; e < n; e++) weight[e] = exp(c->sigma * lplb__rng_normal(rng));
        break;
    case LPLB_GEN_ZIPF:
        shuffle(rng, order, n);
        for (int32_t i = 0; i < n; i++) weight[order[i]] = pow(i + 1, -c->exponent);
        break;
    case LPLB_GEN_LOADS:
        for (int32_t e = 0; e < n; e++) weight[e] = (double)load[e];
        break;
    }
    normalise(weight, n);
}

static void choose_hot(const lplb_gen_config *c, lplb__rng *rng, int32_t *order, uint8_t *hot) {
    if (c->hot_ranks) {
        int32_t size = c->experts / c->hot_ranks;
        memset(hot + (int64_t)c->hot_rank * size, 1, (size_t)size);
        return;
    }
    shuffle(rng, order, c->experts);
    for (int32_t i = 0; i < c->hot_experts; i++) hot[order[i]] = 1;
}

static lplb_status make_weights(generator *g) {
    const lplb_gen_config *c = g->config;
    int64_t cells = (int64_t)c->layers * c->experts;
    int32_t *order = NULL;
    lplb_status status;
    LPLB_TRY(LPLB_CALLOC(g->base, cells));
    if (c->load_end) LPLB_TRY(LPLB_CALLOC(g->base_end, cells));
    if (c->hot_share > 0) LPLB_TRY(LPLB_CALLOC(g->hot, cells));
    LPLB_TRY_GOTO(status, LPLB_CALLOC(order, c->experts), done);
    for (int32_t l = 0; l < c->layers; l++) {
        int64_t row = (int64_t)l * c->experts;
        lplb__rng rng;
        lplb__rng_seed(&rng, c->seed, WEIGHT_STREAM + (uint64_t)l);
        base_weights(c, &rng, c->load ? c->load + row : NULL, order, g->base + row);
        if (c->load_end) base_weights(c, &rng, c->load_end + row, order, g->base_end + row);
        if (g->hot) choose_hot(c, &rng, order, g->hot + row);
    }
done:
    lplb__free(order);
    return status;
}

/* The hot experts' weights are scaled to the share, the others' to the rest. */
static void apply_hot(const uint8_t *hot, double share, double *weight, int32_t n) {
    double sum[2] = {0, 0};
    for (int32_t e = 0; e < n; e++) sum[hot[e]] += weight[e];
    if (sum[0] <= 0 || sum[1] <= 0) return; /* a layer without load, or nothing to move */
    for (int32_t e = 0; e < n; e++) weight[e] *= hot[e] ? share / sum[1] : (1 - share) / sum[0];
}

/* The weights of one layer in one step. */
static void step_weights(const generator *g, int64_t step, int32_t layer, lplb__rng *rng,
                         sampler *s) {
    const lplb_gen_config *c = g->config;
    int32_t n = c->experts;
    int64_t row = (int64_t)layer * n;
    double far = g->steps > 1 ? (double)step / (double)(g->steps - 1) : 0;
    for (int32_t e = 0; e < n; e++)
        s->shifted[e] = g->base_end ? (1 - far) * g->base[row + e] + far * g->base_end[row + e]
                                    : g->base[row + e];
    if (g->hot) apply_hot(g->hot + row, c->hot_share, s->shifted, n);
    int64_t turns = c->rotate_every ? step / c->rotate_every : 0;
    int32_t shift = (int32_t)(turns % n * (c->rotate_by ? c->rotate_by : 1) % n);
    for (int32_t e = 0; e < n; e++) s->weight[(e + shift) % n] = s->shifted[e];
    if (c->burst_probability > 0) {
        bool burst = lplb__rng_uniform(rng) < c->burst_probability;
        int64_t expert = lplb__rng_below(rng, n);
        if (burst) s->weight[expert] *= c->burst_factor;
    }
}

/* ---- sampling ---- */

/* Integer weights: 2^32 for the largest; what is positive stays positive. */
static void make_units(sampler *s, int32_t n) {
    double largest = 0;
    for (int32_t e = 0; e < n; e++)
        if (s->weight[e] > largest) largest = s->weight[e];
    s->total = 0;
    for (int32_t e = 0; e < n; e++) {
        double units = largest > 0 ? floor(s->weight[e] / largest * 0x1p32 + 0.5) : 0;
        s->units[e] = (uint64_t)units + (units < 1 && s->weight[e] > 0);
        s->total += s->units[e];
    }
}

/* Columns of equal height, total each in units * E, filled from at most two experts; all in
 * integers. units <= 2^32 and E <= 2^20, so nothing overflows. */
static void make_table(sampler *s, int32_t n) {
    uint64_t *height = s->threshold;
    int32_t smalls = 0, larges = 0;
    for (int32_t e = 0; e < n; e++) {
        height[e] = s->units[e] * (uint64_t)n;
        s->alias[e] = e;
        if (height[e] < s->total) s->small[smalls++] = e;
        else s->large[larges++] = e;
    }
    while (smalls > 0 && larges > 0) {
        int32_t low = s->small[--smalls], high = s->large[larges - 1];
        uint64_t own = height[low];
        height[high] -= s->total - own;
        s->alias[low] = high;
        s->threshold[low] = (uint64_t)(((unsigned __int128)own << 64) / s->total);
        if (height[high] < s->total) {
            s->small[smalls++] = high;
            larges--;
        }
    }
    while (larges > 0) s->threshold[s->large[--larges]] = UINT64_MAX; /* full columns */
}

static int32_t draw(const sampler *s, lplb__rng *rng, int32_t n) {
    unsigned __int128 product = (unsigned __int128)lplb__rng_next(rng) * (uint32_t)n;
    int32_t column = (int32_t)(product >> 64);
    return (uint64_t)product < s->threshold[column] ? column : s->alias[column];
}

static bool is_among(const int32_t *ids, int32_t n, int32_t id) {
    for (int32_t i = 0; i < n; i++)
        if (ids[i] == id) return true;
    return false;
}

/* The same distribution by a scan of what is left, for weights so uneven that drawing repeats. */
static int32_t draw_by_scan(const sampler *s, lplb__rng *rng, int32_t n, const int32_t *ids,
                            int32_t taken) {
    uint64_t left = s->total;
    for (int32_t i = 0; i < taken; i++) left -= s->units[ids[i]];
    uint64_t at = (uint64_t)lplb__rng_below(rng, (int64_t)left);
    for (int32_t e = 0; e < n; e++) {
        if (is_among(ids, taken, e)) continue;
        if (at < s->units[e]) return e;
        at -= s->units[e];
    }
    return -1; /* not reached: at < the sum of the units left */
}

static void select_experts(const sampler *s, lplb__rng *rng, int32_t n, int32_t topk,
                           int32_t *ids) {
    for (int32_t k = 0; k < topk; k++) {
        int32_t id = -1;
        for (int tries = 0; tries < DRAWS_BEFORE_SCAN && id < 0; tries++) {
            id = draw(s, rng, n);
            if (is_among(ids, k, id)) id = -1;
        }
        ids[k] = id >= 0 ? id : draw_by_scan(s, rng, n, ids, k);
    }
}

/* ---- steps ---- */

static bool is_zero_step(const generator *g, int64_t step) {
    lplb__rng rng;
    lplb__rng_seed(&rng, g->config->seed, STEP_STREAM + (uint64_t)step);
    return lplb__rng_uniform(&rng) < g->config->zero_probability;
}

/* One layer of one step into the trace; ids: [topk] scratch. */
static lplb_status fill_layer(const generator *g, int64_t step, int32_t layer, sampler *s,
                              int32_t *ids) {
    const lplb_gen_config *c = g->config;
    int32_t n = c->experts, topk = c->topk;
    lplb__rng rng;
    lplb__rng_seed(&rng, c->seed, (uint64_t)step * (uint64_t)c->layers + (uint64_t)layer);
    step_weights(g, step, layer, &rng, s);
    make_units(s, n);
    int64_t first = step * g->batch;
    int64_t tokens = c->tokens - first < g->batch ? c->tokens - first : g->batch;
    int32_t positive = 0;
    for (int32_t e = 0; e < n; e++) positive += s->units[e] > 0;
    if (positive > 0 && positive < topk && !c->multinomial)
        return LPLB_FAIL(LPLB_INVALID, "layer %d has load on %d experts, a token selects %d", layer,
                         positive, topk);
    bool none = positive == 0 || is_zero_step(g, step);
    if (!none) make_table(s, n);
    int64_t *counts =
        g->trace->counts ? g->trace->counts + (step * c->layers + layer) * (int64_t)n : NULL;
    if (c->multinomial) {
        for (int64_t i = 0; !none && i < tokens * topk; i++) counts[draw(s, &rng, n)]++;
        return LPLB_OK;
    }
    for (int64_t t = 0; t < tokens; t++) {
        if (!none) select_experts(s, &rng, n, topk, ids);
        int16_t *out =
            counts ? NULL : g->trace->topk_ids + ((first + t) * c->layers + layer) * (int64_t)topk;
        for (int32_t k = 0; k < topk; k++) {
            if (out) out[k] = none ? -1 : (int16_t)ids[k];
            else if (!none) counts[ids[k]]++;
        }
    }
    return LPLB_OK;
}

static lplb_status fill_step(int64_t step, int worker, void *context) {
    const generator *g = context;
    int32_t *ids;
    LPLB_TRY(LPLB_CALLOC(ids, g->config->topk));
    lplb_status status = LPLB_OK;
    for (int32_t l = 0; l < g->config->layers && status == LPLB_OK; l++)
        status = fill_layer(g, step, l, &g->samplers[worker], ids);
    lplb__free(ids);
    return status;
}

/* ---- configuration ---- */

static lplb_status check_sizes(const lplb_gen_config *c) {
    if (c->struct_size != sizeof *c)
        return LPLB_FAIL(LPLB_INVALID,
                         "config.struct_size is %zu, must be %zu (set it to "
                         "sizeof(lplb_gen_config))",
                         c->struct_size, sizeof *c);
    if (c->kind != LPLB_TRACE_TOPK && c->kind != LPLB_TRACE_COUNTS)
        return LPLB_FAIL(LPLB_INVALID, "kind %d is neither TOPK nor COUNTS", (int)c->kind);
    if (c->multinomial && c->kind != LPLB_TRACE_COUNTS)
        return LPLB_FAIL(LPLB_INVALID, "multinomial draws counts; ids of a token are different "
                                       "experts");
    if (c->layers < 1) return LPLB_FAIL(LPLB_INVALID, "layers is %d, at least 1", c->layers);
    if (c->experts < 1 || c->experts > 1 << 20)
        return LPLB_FAIL(LPLB_INVALID, "experts is %d, from 1 to 2^20", c->experts);
    if (c->kind == LPLB_TRACE_TOPK && c->experts > LPLB__MAX_EXPERT_IDS)
        return LPLB_FAIL(LPLB_INVALID, "experts is %d, ids allow %d", c->experts,
                         LPLB__MAX_EXPERT_IDS);
    if (c->topk < 1 || c->topk > c->experts)
        return LPLB_FAIL(LPLB_INVALID, "topk is %d, from 1 to the %d experts", c->topk, c->experts);
    if (c->tokens < 1 || c->tokens > (int64_t)1 << 40)
        return LPLB_FAIL(LPLB_INVALID, "tokens is %lld, from 1 to 2^40", (long long)c->tokens);
    if (c->batch_tokens < 0)
        return LPLB_FAIL(LPLB_INVALID, "batch_tokens is %lld", (long long)c->batch_tokens);
    return LPLB_OK;
}

static lplb_status check_base(const lplb_gen_config *c) {
    switch (c->base) {
    case LPLB_GEN_LOGNORMAL:
        if (!(c->sigma >= 0 && c->sigma <= 20))
            return LPLB_FAIL(LPLB_INVALID, "sigma is %g, from 0 to 20", c->sigma);
        break;
    case LPLB_GEN_ZIPF:
        if (!(c->exponent >= 0 && c->exponent <= 20))
            return LPLB_FAIL(LPLB_INVALID, "the Zipf exponent is %g, from 0 to 20", c->exponent);
        break;
    case LPLB_GEN_LOADS:
        if (!c->load) return LPLB_FAIL(LPLB_INVALID, "base LOADS without loads");
        break;
    default: return LPLB_FAIL(LPLB_INVALID, "base %d is unknown", (int)c->base);
    }
    if (c->base != LPLB_GEN_LOADS && (c->load || c->load_end))
        return LPLB_FAIL(LPLB_INVALID, "loads are given, but base is not LOADS");
    for (int64_t i = 0; i < (int64_t)c->layers * c->experts && c->load; i++)
        if (c->load[i] < 0 || (c->load_end && c->load_end[i] < 0))
            return LPLB_FAIL(LPLB_INVALID, "layer %lld, expert %lld: a load is negative",
                             (long long)(i / c->experts), (long long)(i % c->experts));
    return LPLB_OK;
}

static lplb_status check_patterns(const lplb_gen_config *c) {
    bool hot = c->hot_experts || c->hot_ranks;
    if (c->hot_experts < 0 || c->hot_experts >= c->experts)
        return LPLB_FAIL(LPLB_INVALID, "hot_experts is %d, below the %d experts", c->hot_experts,
                         c->experts);
    if (c->hot_experts && c->hot_ranks)
        return LPLB_FAIL(LPLB_INVALID, "either hot experts or a hot rank");
    if (c->hot_ranks && (c->hot_ranks < 2 || c->experts % c->hot_ranks))
        return LPLB_FAIL(LPLB_INVALID, "%d experts do not divide over %d ranks (at least 2)",
                         c->experts, c->hot_ranks);
    if (c->hot_rank < 0 || c->hot_rank >= (c->hot_ranks ? c->hot_ranks : 1))
        return LPLB_FAIL(LPLB_INVALID, "hot_rank is %d of %d ranks", c->hot_rank, c->hot_ranks);
    if (hot ? !(c->hot_share > 0 && c->hot_share < 1) : c->hot_share != 0)
        return LPLB_FAIL(LPLB_INVALID,
                         "hot_share is %g; a share above 0 and below 1 belongs to hot "
                         "experts or a hot rank, and only to them",
                         c->hot_share);
    if (c->rotate_every < 0 || c->rotate_by < 0 || (c->rotate_by && !c->rotate_every))
        return LPLB_FAIL(LPLB_INVALID, "rotate_by %d every %lld steps", c->rotate_by,
                         (long long)c->rotate_every);
    if (!(c->burst_probability >= 0 && c->burst_probability <= 1))
        return LPLB_FAIL(LPLB_INVALID, "burst_probability is %g", c->burst_probability);
    if (c->burst_probability > 0 ? !(c->burst_factor >= 1 && c->burst_factor <= 1e6)
                                 : c->burst_factor != 0)
        return LPLB_FAIL(LPLB_INVALID, "burst_factor is %g; 1 to 1000000 with a burst probability",
                         c->burst_factor);
    if (!(c->zero_probability >= 0 && c->zero_probability <= 1))
        return LPLB_FAIL(LPLB_INVALID, "zero_probability is %g", c->zero_probability);
    return LPLB_OK;
}

static lplb_status create_trace(generator *g) {
    const lplb_gen_config *c = g->config;
    lplb_trace_options options = {.max_bytes = c->max_bytes};
    if (c->kind == LPLB_TRACE_TOPK) {
        LPLB_TRY(lplb__trace_create_topk("the trace", c->tokens, c->layers, c->topk, &options,
                                         &g->trace));
        g->trace->experts = c->experts;
    } else {
        LPLB_TRY(lplb__trace_create_counts("the trace", g->steps, c->layers, c->experts, &options,
                                           &g->trace));
    }
    static const char *const names[] = {"log-normal", "Zipf", "recorded loads"};
    return lplb__trace_describe(g->trace,
                                "synthetic: %s, %d layers, %d experts, top %d, %lld "
                                "tokens, seed %llu",
                                names[c->base], c->layers, c->experts, c->topk,
                                (long long)c->tokens, (unsigned long long)c->seed);
}

static lplb_status create_samplers(generator *g, int threads) {
    int32_t n = g->config->experts;
    LPLB_TRY(LPLB_CALLOC(g->samplers, threads));
    for (int i = 0; i < threads; i++) {
        sampler *s = &g->samplers[i];
        LPLB_TRY(LPLB_CALLOC(s->weight, n));
        LPLB_TRY(LPLB_CALLOC(s->shifted, n));
        LPLB_TRY(LPLB_CALLOC(s->units, n));
        LPLB_TRY(LPLB_CALLOC(s->threshold, n));
        LPLB_TRY(LPLB_CALLOC(s->alias, n));
        LPLB_TRY(LPLB_CALLOC(s->small, n));
        LPLB_TRY(LPLB_CALLOC(s->large, n));
    }
    return LPLB_OK;
}

static void destroy(generator *g, int threads) {
    for (int i = 0; i < threads && g->samplers; i++) {
        sampler *s = &g->samplers[i];
        lplb__free(s->weight);
        lplb__free(s->shifted);
        lplb__free(s->units);
        lplb__free(s->threshold);
        lplb__free(s->alias);
        lplb__free(s->small);
        lplb__free(s->large);
    }
    lplb__free(g->samplers);
    lplb__free(g->base);
    lplb__free(g->base_end);
    lplb__free(g->hot);
    lplb_trace_destroy(g->trace);
}

lplb_status lplb_gen(const lplb_gen_config *config, lplb_trace **out) {
    *out = NULL;
    LPLB_TRY(check_sizes(config));
    LPLB_TRY(check_base(config));
    LPLB_TRY(check_patterns(config));
    generator g = {.config = config};
    g.batch = config->batch_tokens ? config->batch_tokens : DEFAULT_BATCH;
    g.steps = (config->tokens - 1) / g.batch + 1;
    lplb__pool *pool = NULL;
    lplb_status status;
    LPLB_TRY_GOTO(status, create_trace(&g), done);
    LPLB_TRY_GOTO(status, make_weights(&g), done);
    LPLB_TRY_GOTO(status, lplb__pool_create(config->threads, &pool), done);
    LPLB_TRY_GOTO(status, create_samplers(&g, lplb__pool_threads(pool)), done);
    LPLB_TRY_GOTO(status, lplb__pool_run(pool, g.steps, fill_step, &g), done);
    *out = g.trace;
    g.trace = NULL;
done:
    destroy(&g, lplb__pool_threads(pool));
    lplb__pool_destroy(pool);
    return status;
}
