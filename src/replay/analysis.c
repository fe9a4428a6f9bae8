/* What limits a policy: the bottleneck of every batch, and what would widen it. */
#include "replay/analysis.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_SETS = 10, DEFAULT_TRIALS = 16 };

/* Bound and bottleneck of one batch. */
static lplb_status look_at(const lplb__analysis_run *run, const lplb_hosts *hosts, int32_t layer,
                           int64_t batch, lplb__layer_analysis *out) {
    const lplb_plan_input input = {.tokens = lplb__analysis_tokens(run, layer, batch)};
    int64_t total = 0;
    for (int32_t e = 0; e < hosts->experts; e++) total += input.tokens[e];
    if (total == 0) return LPLB_OK;
    uint64_t *set = out->sets + (batch - run->first_batch) * run->words;
    lplb_bound bound;
    LPLB_TRY(lplb_plan_bound(hosts, NULL, &input, &bound, set));
    double mean = (double)total / hosts->ranks;
    double least = (double)bound.fractional.numerator / (double)bound.fractional.denominator / mean;
    out->pairs++;
    out->bound_sum += least;
    out->imbalance_sum += run->policy->pair_imbalance[layer * run->result->measured + batch];
    __int128 above = (__int128)bound.fractional.numerator * hosts->ranks -
                     (__int128)total * bound.fractional.denominator;
    if (above > 0)
        out->binding[out->limited++] = (lplb__binding){
            .set = set, .words = run->words, .layer = layer, .batch = batch, .excess = least - 1};
    return LPLB_OK;
}

static lplb_status analyse_layer(int64_t item, int worker, void *context) {
    (void)worker;
    const lplb__analysis_run *run = context;
    const lplb_placement *placement = run->policy->placement;
    int32_t layer = run->first_layer + (int32_t)item;
    lplb__layer_analysis *out = &run->layer[item];
    int64_t *offset = NULL;
    int32_t *rank = NULL;
    lplb_hosts hosts;
    lplb_status status = LPLB_CALLOC(offset, placement->experts + 1);
    if (status == LPLB_OK) status = LPLB_CALLOC(rank, placement->slots);
    if (status == LPLB_OK) status = LPLB_CALLOC(out->sets, run->batches * run->words);
    if (status == LPLB_OK) status = LPLB_CALLOC(out->binding, run->batches);
    if (status == LPLB_OK) status = lplb_placement_hosts(placement, layer, offset, rank, &hosts);
    for (int64_t b = 0; b < run->batches && status == LPLB_OK; b++)
        status = look_at(run, &hosts, layer, run->first_batch + b, out);
    if (status == LPLB_OK && out->limited > 0) status = lplb__find_replica(run, &hosts, layer, out);
    lplb__free(rank);
    lplb__free(offset);
    return status;
}

static int by_gain(const void *a_, const void *b_) {
    const lplb_next_replica *a = a_, *b = b_;
    double x = a->before - a->after, y = b->before - b->after;
    return x != y ? (x < y) - (x > y) : a->layer - b->layer;
}

static lplb_status sum_up(const lplb__analysis_run *run, lplb_analysis *out) {
    LPLB_TRY(LPLB_CALLOC(out->layer_bound, run->result->layers));
    LPLB_TRY(LPLB_CALLOC(out->replica, run->layers));
    for (int32_t i = 0; i < run->layers; i++) {
        const lplb__layer_analysis *l = &run->layer[i];
        out->pairs += l->pairs;
        out->limited += l->limited;
        out->imbalance += l->imbalance_sum;
        out->bound += l->bound_sum;
        if (l->pairs) out->layer_bound[run->first_layer + i] = l->bound_sum / (double)l->pairs;
        if (l->has_replica) out->replica[out->replicas++] = l->replica;
    }
    if (out->pairs) {
        out->imbalance /= (double)out->pairs;
        out->bound /= (double)out->pairs;
    }
    qsort(out->replica, (size_t)out->replicas, sizeof *out->replica, by_gain);
    return lplb__list_bottlenecks(run, out);
}

static lplb_status check(const lplb_replay_result *result, int32_t policy,
                         const lplb_analysis_config *c) {
    if (c->struct_size != sizeof(lplb_analysis_config))
        return LPLB_FAIL(LPLB_INVALID,
                         "config.struct_size is %zu, must be %zu (set it to "
                         "sizeof(lplb_analysis_config))",
                         c->struct_size, sizeof(lplb_analysis_config));
    if (policy < 0 || policy >= result->policies)
        return LPLB_FAIL(LPLB_RANGE, "policy %d is outside [0, %d)", policy, result->policies);
    if (!result->policy[policy].placement)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "policy '%s' places nothing that could be a bottleneck",
                         result->policy[policy].policy);
    if (c->layer < -1 || c->layer >= result->layers)
        return LPLB_FAIL(LPLB_RANGE, "layer row %d is outside [0, %d)", c->layer, result->layers);
    if (c->batch < -1 || c->batch >= result->measured)
        return LPLB_FAIL(LPLB_RANGE, "measured batch %lld is outside [0, %lld)",
                         (long long)c->batch, (long long)result->measured);
    if (c->max_sets < 0 || c->max_trials < 0)
        return LPLB_FAIL(LPLB_RANGE, "max_sets %d and max_trials %d must not be negative",
                         c->max_sets, c->max_trials);
    return LPLB_OK;
}

lplb_status lplb_replay_analyze(const lplb_replay_result *result, int32_t policy,
                                const lplb_analysis_config *config, lplb_analysis **out) {
    *out = NULL;
    LPLB_TRY(check(result, policy, config));
    lplb__analysis_run run = {.result = result,
                              .policy = &result->policy[policy],
                              .first_layer = config->layer < 0 ? 0 : config->layer,
                              .layers = config->layer < 0 ? result->layers : 1,
                              .first_batch = config->batch < 0 ? 0 : config->batch,
                              .batches = config->batch < 0 ? result->measured : 1,
                              .max_sets = config->max_sets ? config->max_sets : DEFAULT_SETS,
                              .max_trials =
                                  config->max_trials ? config->max_trials : DEFAULT_TRIALS,
                              .words = (result->ranks + 63) / 64};
    lplb_analysis *analysis = NULL;
    lplb__pool *pool = NULL;
    lplb_status status = LPLB_CALLOC(analysis, 1);
    if (status == LPLB_OK) status = LPLB_CALLOC(run.layer, run.layers);
    if (status == LPLB_OK) status = lplb__pool_create(config->threads, &pool);
    if (status == LPLB_OK) status = lplb__pool_run(pool, run.layers, analyse_layer, &run);
    if (status == LPLB_OK) status = sum_up(&run, analysis);
    lplb__pool_destroy(pool);
    for (int32_t i = 0; run.layer && i < run.layers; i++) {
        lplb__free(run.layer[i].sets);
        lplb__free(run.layer[i].binding);
    }
    lplb__free(run.layer);
    if (status == LPLB_OK) *out = analysis;
    else lplb_analysis_destroy(analysis);
    return status;
}

void lplb_analysis_destroy(lplb_analysis *analysis) {
    if (!analysis) return;
    for (int32_t i = 0; analysis->set && i < analysis->sets; i++) {
        lplb__free(analysis->set[i].rank);
        lplb__free(analysis->set[i].expert);
        lplb__free(analysis->set[i].expert_tokens);
    }
    lplb__free(analysis->set);
    lplb__free(analysis->replica);
    lplb__free(analysis->layer_bound);
    lplb__free(analysis);
}
