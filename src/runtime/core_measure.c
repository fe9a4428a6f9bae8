/* What the adaptive interval looks at: how much loads vary, and how much balance is lost. Both from
 * the tracker alone, in a few passes over [L][E] and [L][P]. */
#include <string.h>

#include "runtime/core.h"
#include "runtime/tracker.h"

/* Fraction of its expert's tokens that each slot serves under the even split: hosts share evenly,
 * and slots of one host share that evenly. */
void lplb__core_shares(lplb__core *core, int32_t layer) {
    const lplb__slots *s = &core->slots;
    const int32_t *row = lplb__row(core->active, layer);
    float *share = core->slot_share + (int64_t)layer * s->slots;
    int32_t *hosts = core->copies;
    memset(hosts, 0, (size_t)s->experts * sizeof *hosts);
    for (int32_t r = 0; r < s->ranks; r++)
        for (int32_t p = s->offset[r]; p < s->offset[r + 1]; p++) {
            if (row[p] < 0) continue;
            int32_t on_rank = 0;
            bool first = true;
            for (int32_t q = s->offset[r]; q < s->offset[r + 1]; q++) {
                on_rank += row[q] == row[p];
                first = first && !(q < p && row[q] == row[p]);
            }
            hosts[row[p]] += first;
            share[p] = 1 / (float)on_rank;
        }
    for (int32_t p = 0; p < s->slots; p++)
        share[p] = row[p] < 0 ? 0 : share[p] / (float)hosts[row[p]];
}

static double imbalance_of_mean(const lplb__core *core, int32_t layer, const float *mean,
                                double total) {
    const lplb__slots *s = &core->slots;
    const int32_t *row = lplb__row(core->active, layer);
    const float *share = core->slot_share + (int64_t)layer * s->slots;
    double most = 0;
    for (int32_t r = 0; r < s->ranks; r++) {
        double load = 0;
        for (int32_t p = s->offset[r]; p < s->offset[r + 1]; p++)
            if (row[p] >= 0) load += (double)(mean[row[p]] * share[p]);
        if (load > most) most = load;
    }
    return most * lplb__live_ranks(s) / total;
}

/* Four chains, so that additions need not wait for each other; the order is fixed. */
static double sum_row(const float *row, int32_t n) {
    double sum[4] = {0, 0, 0, 0};
    int32_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (int k = 0; k < 4; k++) sum[k] += (double)row[i + k];
    for (; i < n; i++) sum[0] += (double)row[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* A few layers a step, so that no step pays for all of them; what is left at the end of the period
 * (steps may be skipped) is done then. */
void lplb__core_measure(lplb__core *core, bool all) {
    int32_t E = core->slots.experts, L = core->config.layers;
    int64_t period = core->config.min_interval;
    int32_t until = all ? L : core->measured_layers + (int32_t)((L + period - 1) / period);
    for (; core->measured_layers < L && core->measured_layers < until; core->measured_layers++) {
        int32_t layer = core->measured_layers;
        lplb__tracker_layer(core->tracker, layer, core->mean, core->variance);
        double total = sum_row(core->mean, E);
        if (!(total > 0)) continue;
        core->measured_variance += sum_row(core->variance, E) / (total * total);
        core->measured_loss += imbalance_of_mean(core, layer, core->mean, total) - 1;
        core->measured_known++;
    }
}

void lplb__core_measured(lplb__core *core, double *variance, double *loss) {
    lplb__core_measure(core, true);
    int32_t n = core->measured_known ? core->measured_known : 1;
    *variance = core->measured_variance / n;
    *loss = core->measured_loss / n;
    core->measured_layers = core->measured_known = 0;
    core->measured_variance = core->measured_loss = 0;
}
