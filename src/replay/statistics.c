/* From what was measured of every (layer, batch) pair to the figures of a policy. */
#include <math.h>
#include <stdlib.h>

#include "replay/replay.h"

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Nearest rank: the smallest value that at least p of all values do not exceed. */
static double percentile(const double *sorted, int64_t n, double p) {
    int64_t rank = (int64_t)ceil(p * (double)n);
    return sorted[rank < 1 ? 0 : rank - 1];
}

lplb_distribution lplb__distribution(double *values, int64_t n) {
    if (n == 0) return (lplb_distribution){0};
    double sum = 0;
    qsort(values, (size_t)n, sizeof *values, ascending);
    for (int64_t i = 0; i < n; i++) sum += values[i];
    return (lplb_distribution){sum / (double)n, percentile(values, n, 0.5),
                               percentile(values, n, 0.99), values[n - 1]};
}

static lplb_status sum_layers(lplb_policy_result *p, int32_t layers, int64_t measured) {
    LPLB_TRY(LPLB_CALLOC(p->layer_mean, layers));
    LPLB_TRY(LPLB_CALLOC(p->layer_max, layers));
    for (int32_t l = 0; l < layers; l++) {
        int64_t n = 0;
        for (int64_t b = 0; b < measured; b++) {
            double x = p->pair_imbalance[l * measured + b];
            p->layer_mean[l] += x;
            if (x > p->layer_max[l]) p->layer_max[l] = x;
            n += x > 0;
        }
        if (n > 0) p->layer_mean[l] /= (double)n;
    }
    return LPLB_OK;
}

/* Tokens that passed through the measured batches; counts without tokens are selections. */
static double measured_tokens(const lplb__replay *run) {
    return (double)(run->batch_tokens * run->result->measured);
}

static void predict(const lplb__replay *run, lplb_policy_result *p, const double *pair_us,
                    int64_t loaded) {
    const lplb_replay_config *c = &run->config;
    p->has_prediction = c->gpu_model || c->expert_bytes > 0;
    int64_t redundant = 0; /* filled slots beyond the first copy of each expert */
    for (int64_t i = 0; p->placement && i < (int64_t)p->placement->slots * run->layers; i++)
        redundant += p->placement->physical_to_logical[i] >= 0;
    if (p->placement) redundant -= (int64_t)run->experts * run->layers;
    p->redundant_bytes = c->expert_bytes * redundant;
    if (!pair_us) return;
    double us = 0;
    for (int64_t i = 0; i < (int64_t)run->layers * run->result->measured; i++) us += pair_us[i];
    if (loaded > 0) p->ms_per_layer = us / 1e3 / (double)loaded;
    if (us > 0) p->tokens_per_s = measured_tokens(run) / (us / 1e6);
}

lplb_status lplb__replay_sum_up(lplb__replay *run, int32_t policy, const float *plan_us,
                                const double *pair_us) {
    lplb_policy_result *p = &run->result->policy[policy];
    int64_t pairs = (int64_t)run->layers * run->result->measured, n = 0;
    double *values;
    LPLB_TRY(LPLB_CALLOC(values, pairs));
    double balancedness = 0;
    for (int64_t i = 0; i < pairs; i++)
        if (p->pair_imbalance[i] > 0) {
            values[n++] = p->pair_imbalance[i];
            balancedness += 1 / p->pair_imbalance[i];
        }
    p->imbalance = lplb__distribution(values, n);
    p->balancedness = n > 0 ? balancedness / (double)n : 0;
    p->has_plan_time = run->policy[policy].solves && n > 0;
    if (p->has_plan_time) {
        n = 0;
        for (int64_t i = 0; i < pairs; i++)
            if (p->pair_imbalance[i] > 0) values[n++] = plan_us[i];
        lplb_distribution time = lplb__distribution(values, n);
        p->plan_us_p50 = time.p50;
        p->plan_us_p99 = time.p99;
    }
    lplb__free(values);
    predict(run, p, pair_us, n);
    return sum_layers(p, run->layers, run->result->measured);
}
