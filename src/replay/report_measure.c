#include <string.h>

#include "base/mem.h"
#include "replay/report.h"

enum {
    MOST_COLUMNS = 200,
    FEWEST_COLUMNS = 48, /* before layers are left out instead */
    MOST_HEAT_ROWS = 256,
    MOST_SLOTS = 8192
};
/* Characters that all details together may take, so that the file stays below 3 MB. */
static const int64_t detail_budget = 2000000;

static int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }

/* Characters that one layer's details take with that many columns: see report_data.c. */
static int64_t layer_cost(const lplb__report *report, int64_t columns) {
    const lplb_replay_result *r = report->result;
    int64_t cost = 0;
    for (int32_t p = 0; p < r->policies; p++) {
        cost += 6 * columns;
        if (r->policy[p].loads) cost += 2 * columns * report->heat_rows;
        if (!report->placements || !r->policy[p].placement) continue;
        cost += 4 * (int64_t)r->policy[p].placement->slots + 6 * (int64_t)r->ranks;
    }
    return cost + (report->placements ? 6 * (int64_t)r->experts : 0);
}

static double layer_mean(const lplb__report *report, int32_t layer) {
    return report->result->policy[report->baseline].layer_mean[layer];
}

/* The most uneven layers under the baseline, ties to the lower one, in ascending order. */
static void choose_details(lplb__report *report) {
    int32_t layers = report->result->layers, n = 0;
    for (int32_t layer = 0; layer < layers; layer++) {
        int32_t worse = 0;
        for (int32_t other = 0; other < layers; other++) {
            double difference = layer_mean(report, other) - layer_mean(report, layer);
            worse += difference > 0 || (difference == 0 && other < layer);
        }
        if (worse >= report->details) continue;
        if (worse == 0) report->worst_detail = n;
        report->detail[n++] = layer;
    }
}

static void choose_policies(lplb__report *report) {
    const lplb_replay_result *r = report->result;
    report->baseline = 0;
    for (int32_t p = r->policies - 1; p >= 0; p--)
        if (!strncmp(r->policy[p].policy, "none", 4) && r->policy[p].placement)
            report->baseline = p;
    report->best = report->baseline;
    for (int32_t p = 0; p < r->policies; p++)
        if (r->policy[p].placement &&
            r->policy[p].imbalance.mean < r->policy[report->best].imbalance.mean)
            report->best = p;
}

lplb_status lplb__report_measure(lplb__report *report) {
    const lplb_replay_result *r = report->result;
    choose_policies(report);
    report->heat_rows = (int32_t)minimum(r->ranks, MOST_HEAT_ROWS);
    int64_t slots = 0;
    for (int32_t p = 0; p < r->policies; p++)
        if (r->policy[p].placement) slots += r->policy[p].placement->slots;
    report->placements = slots > 0 && slots <= (int64_t)MOST_SLOTS * r->policies;

    int64_t columns = minimum(r->measured, MOST_COLUMNS);
    while (columns > FEWEST_COLUMNS && r->layers * layer_cost(report, columns) > detail_budget)
        columns = columns * 15 / 16;
    report->columns = (int32_t)columns;
    int64_t cost = layer_cost(report, columns);
    report->details = (int32_t)minimum(r->layers, cost ? detail_budget / cost : r->layers);
    if (report->details < 1) report->details = 1;
    LPLB_TRY(LPLB_CALLOC(report->detail, report->details));
    choose_details(report);
    return LPLB_OK;
}
