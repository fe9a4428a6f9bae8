/* The trace struct: making, checking, counting. */
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "io/trace_build.h"

void lplb_trace_destroy(lplb_trace *trace) {
    if (!trace) return;
    lplb__free(trace->topk_ids);
    lplb__free(trace->counts);
    lplb__free(trace->sequence_start);
    lplb__free(trace->layer_id);
    lplb__free(trace->source);
    lplb__free(trace);
}

int64_t lplb__trace_max_bytes(const lplb_trace_options *options) {
    return options && options->max_bytes > 0 ? options->max_bytes : LPLB__DEFAULT_MAX_BYTES;
}

/* Bytes of an a x b x c array of items, or a refusal. */
static lplb_status check_extents(const char *name, const char *const *axis, const int64_t *extent,
                                 int64_t item_bytes, const lplb_trace_options *options) {
    int64_t limit = lplb__trace_max_bytes(options), bytes = item_bytes;
    for (int i = 0; i < 3; i++) {
        if (extent[i] < 1) return LPLB_FAIL(LPLB_RANGE, "%s holds no %s", name, axis[i]);
        if (i > 0 && extent[i] > INT32_MAX)
            return LPLB_FAIL(LPLB_RANGE, "%s holds %lld %s, at most %d are possible", name,
                             (long long)extent[i], axis[i], INT32_MAX);
        if (extent[i] > limit / bytes)
            return LPLB_FAIL(LPLB_RANGE,
                             "%s: %lld %s x %lld %s x %lld %s need more than the limit of %lld "
                             "bytes",
                             name, (long long)extent[0], axis[0], (long long)extent[1], axis[1],
                             (long long)extent[2], axis[2], (long long)limit);
        bytes *= extent[i];
    }
    return LPLB_OK;
}

static lplb_status create(lplb_trace_kind kind, int64_t layers, lplb_trace **out) {
    lplb_trace *trace;
    LPLB_TRY(LPLB_CALLOC(trace, 1));
    trace->kind = kind;
    trace->layers = (int32_t)layers;
    lplb_status status = LPLB_CALLOC(trace->layer_id, layers);
    if (status != LPLB_OK) {
        lplb_trace_destroy(trace);
        return status;
    }
    for (int32_t i = 0; i < trace->layers; i++) trace->layer_id[i] = i;
    *out = trace;
    return LPLB_OK;
}

lplb_status lplb__trace_create_topk(const char *name, int64_t tokens, int64_t layers, int64_t topk,
                                    const lplb_trace_options *options, lplb_trace **out) {
    static const char *const axis[] = {"tokens", "layers", "selections a token"};
    int64_t extent[] = {tokens, layers, topk};
    *out = NULL;
    LPLB_TRY(check_extents(name, axis, extent, 2, options));
    lplb_trace *trace;
    LPLB_TRY(create(LPLB_TRACE_TOPK, layers, &trace));
    trace->tokens = tokens;
    trace->topk = (int32_t)topk;
    lplb_status status = LPLB_CALLOC(trace->topk_ids, tokens * layers * topk);
    if (status != LPLB_OK) lplb_trace_destroy(trace);
    else *out = trace;
    return status;
}

lplb_status lplb__trace_create_counts(const char *name, int64_t steps, int64_t layers,
                                      int64_t experts, const lplb_trace_options *options,
                                      lplb_trace **out) {
    static const char *const axis[] = {"steps", "layers", "experts"};
    int64_t extent[] = {steps, layers, experts};
    *out = NULL;
    LPLB_TRY(check_extents(name, axis, extent, 8, options));
    lplb_trace *trace;
    LPLB_TRY(create(LPLB_TRACE_COUNTS, layers, &trace));
    trace->steps = steps;
    trace->experts = (int32_t)experts;
    lplb_status status = LPLB_CALLOC(trace->counts, steps * layers * experts);
    if (status != LPLB_OK) lplb_trace_destroy(trace);
    else *out = trace;
    return status;
}

lplb_status lplb__trace_describe(lplb_trace *trace, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    lplb__free(trace->source);
    LPLB_TRY(LPLB_CALLOC(trace->source, strlen(text) + 1));
    strcpy(trace->source, text);
    return LPLB_OK;
}

lplb_status lplb__trace_check_counts(const char *name, const lplb_trace *trace,
                                     const lplb_trace_options *options) {
    if (options && options->experts && options->experts != trace->experts)
        return LPLB_FAIL(LPLB_INVALID, "%s has %d experts, not the %d that were announced", name,
                         trace->experts, options->experts);
    for (int32_t l = 0; l < trace->layers; l++) {
        int64_t total = 0;
        for (int64_t s = 0; s < trace->steps; s++) {
            const int64_t *row = trace->counts + (s * trace->layers + l) * trace->experts;
            for (int32_t e = 0; e < trace->experts; e++) {
                if (row[e] < 0)
                    return LPLB_FAIL(LPLB_RANGE,
                                     "%s: step %lld, layer %d, expert %d: count %lld "
                                     "is negative",
                                     name, (long long)s, l, e, (long long)row[e]);
                if (row[e] > LPLB__MAX_TOTAL - total)
                    return LPLB_FAIL(LPLB_OVERFLOW,
                                     "%s: layer %d: the counts up to step %lld, expert %d pass "
                                     "2^62",
                                     name, l, (long long)s, e);
                total += row[e];
            }
        }
    }
    return LPLB_OK;
}

lplb_status lplb__trace_check_ids(const char *name, lplb_trace *trace, int64_t experts) {
    if (experts > LPLB__MAX_EXPERT_IDS)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "%s: %lld experts, ids allow %d", name,
                         (long long)experts, LPLB__MAX_EXPERT_IDS);
    int64_t row = (int64_t)trace->layers * trace->topk, n = trace->tokens * row;
    int32_t largest = -1, smallest = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t id = trace->topk_ids[i];
        if (id > largest) largest = id;
        if (id < smallest) smallest = id;
    }
    if (largest < 0 && experts == 0)
        return LPLB_FAIL(LPLB_RANGE, "%s selects no expert at all; say how many there are", name);
    if (experts == 0) experts = largest + 1;
    if (largest >= experts || smallest < -1) {
        int64_t i = 0;
        while (trace->topk_ids[i] < experts && trace->topk_ids[i] >= -1) i++;
        return LPLB_FAIL(LPLB_RANGE, "%s: token %lld, layer %lld: expert %d is outside [-1, %lld)",
                         name, (long long)(i / row), (long long)(i % row / trace->topk),
                         trace->topk_ids[i], (long long)experts);
    }
    trace->experts = (int32_t)experts;
    return LPLB_OK;
}

lplb_status lplb__trace_validate(const lplb_trace *trace) {
    bool topk = trace->kind == LPLB_TRACE_TOPK;
    int64_t rows = topk ? trace->tokens : trace->steps;
    if (trace->layers < 1 || trace->experts < 1 || rows < 1 || (topk && trace->topk < 1) ||
        !(topk ? (const void *)trace->topk_ids : (const void *)trace->counts))
        return LPLB_FAIL(LPLB_INVALID, "a trace of %lld rows, %d layers, %d experts",
                         (long long)rows, trace->layers, trace->experts);
    int64_t n = topk ? rows * trace->layers * trace->topk : 0;
    for (int64_t i = 0; i < n; i++)
        if (trace->topk_ids[i] < -1 || trace->topk_ids[i] >= trace->experts)
            return LPLB_FAIL(LPLB_RANGE, "token %lld: expert %d is outside [-1, %d)",
                             (long long)(i / trace->layers / trace->topk), trace->topk_ids[i],
                             trace->experts);
    for (int64_t i = 0; i < trace->sequences; i++)
        if (trace->sequence_start[i + 1] < trace->sequence_start[i] ||
            trace->sequence_start[i] < 0 || trace->sequence_start[i + 1] > rows)
            return LPLB_FAIL(LPLB_INVALID, "sequence %lld has no valid extent", (long long)i);
    return topk ? LPLB_OK : lplb__trace_check_counts("the trace", trace, NULL);
}

/* ---- counting ---- */

/* Tokens of a batch repeat the same few hot experts, and an increment must wait for the previous
 * one of the same counter to be stored; two interleaved tables halve that wait. One more counter
 * before each table takes the -1. */
enum { TABLE_EXPERTS = 1024, TOKENS_A_FLUSH = 1 << 16 };

static void count_tokens(const lplb_trace *trace, int32_t layer, int64_t first, int64_t n,
                         const int64_t *order, int64_t *counts) {
    const int64_t row = (int64_t)trace->layers * trace->topk;
    const int32_t topk = trace->topk, experts = trace->experts;
    const int16_t *ids = trace->topk_ids + (int64_t)layer * topk;
    uint32_t table[2][TABLE_EXPERTS + 1];
    for (int t = 0; t < 2; t++) memset(table[t], 0, ((size_t)experts + 1) * sizeof table[t][0]);
    uint32_t *even = table[0] + 1, *odd = table[1] + 1;
    for (int64_t i = 0; i < n; i++) {
        const int16_t *token = ids + (order ? order[first + i] : first + i) * row;
        int32_t k = 0;
        for (; k + 1 < topk; k += 2) {
            even[token[k]]++;
            odd[token[k + 1]]++;
        }
        if (k < topk) even[token[k]]++;
    }
    for (int32_t e = 0; e < experts; e++) counts[e] += (int64_t)even[e] + odd[e];
}

static void count_tokens_wide(const lplb_trace *trace, int32_t layer, int64_t first, int64_t n,
                              const int64_t *order, int64_t *counts) {
    const int64_t row = (int64_t)trace->layers * trace->topk;
    for (int64_t i = 0; i < n; i++) {
        const int16_t *token = trace->topk_ids + (order ? order[first + i] : first + i) * row +
                               (int64_t)layer * trace->topk;
        for (int32_t k = 0; k < trace->topk; k++)
            if (token[k] >= 0) counts[token[k]]++;
    }
}

void lplb_trace_count(const lplb_trace *trace, int32_t layer, int64_t first, int64_t n,
                      const int64_t *order, int64_t *counts) {
    memset(counts, 0, (size_t)trace->experts * sizeof *counts);
    if (trace->kind == LPLB_TRACE_COUNTS) {
        for (int64_t i = 0; i < n; i++) {
            int64_t step = order ? order[first + i] : first + i;
            const int64_t *row = trace->counts + (step * trace->layers + layer) * trace->experts;
            for (int32_t e = 0; e < trace->experts; e++) counts[e] += row[e];
        }
    } else if (trace->experts > TABLE_EXPERTS) {
        count_tokens_wide(trace, layer, first, n, order, counts);
    } else {
        for (int64_t done = 0; done < n; done += TOKENS_A_FLUSH)
            count_tokens(trace, layer, first + done,
                         n - done < TOKENS_A_FLUSH ? n - done : TOKENS_A_FLUSH, order, counts);
    }
}
