/* The sequence in which tokens are replayed, and what its batches count. */
#include <string.h>

#include "base/rng.h"
#include "replay/replay.h"

/* One token of each sequence in turn; sequences that have ended drop out. */
static lplb_status interleave(const lplb_trace *trace, int64_t *order) {
    if (trace->sequences < 1 || !trace->sequence_start)
        return LPLB_FAIL(LPLB_INVALID, "order interleave needs to know where sequences begin "
                                       "(seq_len or sequence_id), and the trace does not say");
    int64_t *alive, count = 0, at = 0;
    LPLB_TRY(LPLB_CALLOC(alive, trace->sequences));
    for (int64_t s = 0; s < trace->sequences; s++) alive[count++] = s;
    for (int64_t round = 0; count > 0; round++) {
        int64_t still = 0;
        for (int64_t i = 0; i < count; i++) {
            int64_t token = trace->sequence_start[alive[i]] + round;
            if (token >= trace->sequence_start[alive[i] + 1]) continue;
            order[at++] = token;
            alive[still++] = alive[i];
        }
        count = still;
    }
    lplb__free(alive);
    return LPLB_OK;
}

static void shuffle(int64_t tokens, uint64_t seed, int64_t *order) {
    lplb__rng rng;
    lplb__rng_seed(&rng, seed, 0);
    for (int64_t i = 0; i < tokens; i++) { /* Fisher and Yates, inside out */
        int64_t k = lplb__rng_below(&rng, i + 1);
        order[i] = order[k];
        order[k] = i;
    }
}

lplb_status lplb__replay_order(lplb__replay *run) {
    const lplb_trace *trace = run->trace;
    int64_t items = trace->kind == LPLB_TRACE_TOPK ? trace->tokens : trace->steps;
    switch (run->config.order) {
    case LPLB_ORDER_RECORDED: return LPLB_OK;
    case LPLB_ORDER_INTERLEAVE:
        if (trace->kind == LPLB_TRACE_COUNTS) break;
        LPLB_TRY(LPLB_CALLOC(run->order, items));
        return interleave(trace, run->order);
    case LPLB_ORDER_SHUFFLE:
        LPLB_TRY(LPLB_CALLOC(run->order, items));
        shuffle(items, run->config.seed, run->order);
        return LPLB_OK;
    }
    return LPLB_FAIL(LPLB_UNSUPPORTED, "order %d needs a trace of tokens, not of counts",
                     (int)run->config.order);
}

static void spread_counts(const lplb__replay *run, int32_t layer, int64_t batch, int64_t *sources) {
    int64_t G = run->ranks, E = run->experts;
    int64_t *row = sources + (G - 1) * E; /* the counts, until the last source's turn */
    lplb_trace_count(run->trace, run->first_layer + layer, batch, 1, run->order, row);
    for (int64_t e = 0; e < E; e++) {
        int64_t each = row[e] / G, extra = row[e] % G;
        for (int64_t s = 0; s < G; s++) sources[s * E + e] = each + (s < extra);
    }
}

void lplb__replay_sources(const lplb__replay *run, int32_t layer, int64_t batch, int64_t *sources) {
    if (run->trace->kind == LPLB_TRACE_COUNTS) {
        spread_counts(run, layer, batch, sources);
        return;
    }
    int64_t B = run->batch_tokens, G = run->ranks, first = 0;
    for (int64_t s = 0; s < G; s++) {
        int64_t end = ((s + 1) * B + G - 1) / G; /* first i with floor(i*G/B) > s */
        lplb_trace_count(run->trace, run->first_layer + layer, batch * B + first, end - first,
                         run->order, sources + s * run->experts);
        first = end;
    }
}

static lplb_status count_history(int64_t batch, int worker, void *context) {
    lplb__replay *run = context;
    int64_t B = run->batch_tokens ? run->batch_tokens : 1;
    for (int32_t l = 0; l < run->layers; l++)
        lplb_trace_count(run->trace, run->first_layer + l, batch * B, B, run->order,
                         run->history_counts + (batch * run->layers + l) * run->experts);
    if (worker == 0)
        lplb__replay_progress(run, 0.1 * (double)batch / (double)run->history, "counting");
    return LPLB_OK;
}

lplb_status lplb__replay_history(lplb__replay *run) {
    LPLB_TRY(LPLB_CALLOC(run->history_counts, run->history * run->layers * run->experts));
    return lplb__pool_run(run->pool, run->history, count_history, run);
}
