/* The report's JSON document, schema lplb.report/1. Numbers carry as many digits as a screen can
 * show; the table of policies beside it has more. */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "replay/report.h"

/* Quantiles shown of a distribution. */
enum { MOST_QUANTILES = 200 };

static const lplb_policy_result *policy_at(const lplb__report *report, int32_t p) {
    return &report->result->policy[p];
}

/* First measured batch of a column; the page computes the same. */
static int64_t column_start(const lplb__report *report, int64_t column) {
    return column * report->result->measured / report->columns;
}

static void put_comma(FILE *out, int64_t i) {
    if (i) fputc(',', out);
}

static void put_numbers(FILE *out, const char *name, const double *value, int64_t n) {
    fprintf(out, "\"%s\":[", name);
    for (int64_t i = 0; i < n; i++) {
        put_comma(out, i);
        lplb__put_number(out, value[i], 5);
    }
    fputc(']', out);
}

static void put_integers(FILE *out, const char *name, const int32_t *value, int64_t n) {
    fprintf(out, "\"%s\":[", name);
    for (int64_t i = 0; i < n; i++) {
        put_comma(out, i);
        fprintf(out, "%d", value[i]);
    }
    fputc(']', out);
}

/* Mean imbalance of each column over its batches and layers [first, last]; 0 without load. */
static void put_time(const lplb__report *report, int32_t p, int32_t first, int32_t last) {
    FILE *out = report->out;
    int64_t measured = report->result->measured;
    fputs("\"time\":[", out);
    for (int32_t c = 0; c < report->columns; c++) {
        double sum = 0;
        int64_t pairs = 0;
        for (int32_t layer = first; layer <= last; layer++) {
            const double *pair = policy_at(report, p)->pair_imbalance + layer * measured;
            for (int64_t b = column_start(report, c); b < column_start(report, c + 1); b++) {
                sum += pair[b];
                pairs += pair[b] > 0;
            }
        }
        put_comma(out, c);
        lplb__put_number(out, pairs ? sum / (double)pairs : 0, 5);
    }
    fputc(']', out);
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static lplb_status put_quantiles(const lplb__report *report, int32_t p) {
    const lplb_replay_result *r = report->result;
    int64_t pairs = r->layers * r->measured, n = 0;
    double *value;
    LPLB_TRY(LPLB_CALLOC(value, pairs));
    for (int64_t i = 0; i < pairs; i++)
        if (policy_at(report, p)->pair_imbalance[i] > 0)
            value[n++] = policy_at(report, p)->pair_imbalance[i];
    qsort(value, (size_t)n, sizeof *value, compare_doubles);
    int64_t shown = n < MOST_QUANTILES ? n : MOST_QUANTILES;
    fputs("\"quantiles\":[", report->out);
    for (int64_t i = 0; i < shown; i++) {
        /* nearest rank of (i + 1) / shown: the last one is the maximum */
        put_comma(report->out, i);
        lplb__put_number(report->out, value[((i + 1) * n + shown - 1) / shown - 1], 5);
    }
    fputc(']', report->out);
    lplb__free(value);
    return LPLB_OK;
}

static int64_t sum_of(const int64_t *value, int64_t n) {
    int64_t total = 0;
    for (int64_t i = 0; i < n; i++) total += value[i];
    return total;
}

/* Highest load over the batch's mean among the ranks of a row and the batches of a column. */
static double heat_of(const lplb__report *report, const int64_t *loads, int32_t row,
                      int32_t column) {
    int64_t ranks = report->result->ranks;
    int64_t first = row * ranks / report->heat_rows, end = (row + 1) * ranks / report->heat_rows;
    double most = 0;
    for (int64_t b = column_start(report, column); b < column_start(report, column + 1); b++) {
        const int64_t *load = loads + b * ranks;
        double mean = (double)sum_of(load, ranks) / (double)ranks;
        for (int64_t rank = first; rank < end && mean > 0; rank++)
            most = fmax(most, (double)load[rank] / mean);
    }
    return most;
}

/* Two characters a cell, row after row: 4,096 steps of 1/512 of the mean load. */
static void put_heat(const lplb__report *report, const int64_t *loads) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    fputs(",\"heat\":\"", report->out);
    for (int32_t row = 0; row < report->heat_rows; row++)
        for (int32_t c = 0; c < report->columns; c++) {
            int step = (int)fmin(4095, 512 * heat_of(report, loads, row, c) + 0.5);
            fputc(digits[step / 64], report->out);
            fputc(digits[step % 64], report->out);
        }
    fputc('"', report->out);
}

/* Mean over the batches of each rank's load over the mean load. */
static lplb_status put_rank_load(const lplb__report *report, const int64_t *loads) {
    int64_t ranks = report->result->ranks, measured = report->result->measured;
    double *load;
    LPLB_TRY(LPLB_CALLOC(load, ranks));
    double total = 0;
    for (int64_t b = 0; b < measured; b++)
        for (int64_t rank = 0; rank < ranks; rank++) {
            load[rank] += (double)loads[b * ranks + rank];
            total += (double)loads[b * ranks + rank];
        }
    for (int64_t rank = 0; rank < ranks; rank++)
        load[rank] = total > 0 ? load[rank] * (double)ranks / total : 0;
    fputc(',', report->out);
    put_numbers(report->out, "rank_load", load, ranks);
    lplb__free(load);
    return LPLB_OK;
}

static lplb_status put_detail(const lplb__report *report, int32_t p, int32_t layer) {
    const lplb_replay_result *r = report->result;
    const lplb_policy_result *policy = policy_at(report, p);
    FILE *out = report->out;
    fputc('{', out);
    put_time(report, p, layer, layer);
    const int64_t *loads =
        policy->loads ? policy->loads + (int64_t)layer * r->measured * r->ranks : NULL;
    if (loads) put_heat(report, loads);
    if (report->placements && policy->placement) {
        int64_t slots = policy->placement->slots;
        fputc(',', out);
        put_integers(out, "slots", policy->placement->physical_to_logical + layer * slots, slots);
        if (loads) LPLB_TRY(put_rank_load(report, loads));
    }
    fputc('}', out);
    return LPLB_OK;
}

static void put_bottleneck(FILE *out, const lplb_bottleneck *set) {
    enum { MOST_RANKS = 32, MOST_EXPERTS = 16 };
    fprintf(out, "{\"layer\":%d,\"pairs\":%lld,\"n_experts\":%d,\"excess\":", set->layer,
            (long long)set->pairs, set->n_experts);
    lplb__put_number(out, set->excess, 5);
    fputc(',', out);
    put_integers(out, "ranks", set->rank, set->n_ranks < MOST_RANKS ? set->n_ranks : MOST_RANKS);
    fputc(',', out);
    put_integers(out, "experts", set->expert,
                 set->n_experts < MOST_EXPERTS ? set->n_experts : MOST_EXPERTS);
    fputc('}', out);
}

/* What still limits the policy. */
static lplb_status put_limits(const lplb__report *report, int32_t p) {
    enum { MOST_REPLICAS = 10 };
    FILE *out = report->out;
    if (!policy_at(report, p)->placement) {
        fputs("\"limits\":null", out);
        return LPLB_OK;
    }
    lplb_analysis_config config = {.struct_size = sizeof config, .layer = -1, .batch = -1};
    lplb_analysis *found;
    LPLB_TRY(lplb_replay_analyze(report->result, p, &config, &found));
    fprintf(out, "\"limits\":{\"pairs\":%lld,\"limited\":%lld,\"n_sets\":%lld,\"imbalance\":",
            (long long)found->pairs, (long long)found->limited, (long long)found->n_sets);
    lplb__put_number(out, found->imbalance, 6);
    fputs(",\"bound\":", out);
    lplb__put_number(out, found->bound, 6);
    fputs(",\"sets\":[", out);
    for (int32_t i = 0; i < found->sets; i++) {
        put_comma(out, i);
        put_bottleneck(out, &found->set[i]);
    }
    fputs("],\"replicas\":[", out);
    for (int32_t i = 0; i < found->replicas && i < MOST_REPLICAS; i++) {
        const lplb_next_replica *replica = &found->replica[i];
        put_comma(out, i);
        fprintf(out, "{\"layer\":%d,\"expert\":%d,\"rank\":%d,\"before\":", replica->layer,
                replica->expert, replica->rank);
        lplb__put_number(out, replica->before, 6);
        fputs(",\"after\":", out);
        lplb__put_number(out, replica->after, 6);
        fputc('}', out);
    }
    fputs("]}", out);
    lplb_analysis_destroy(found);
    return LPLB_OK;
}

static void put_figures(const lplb__report *report, int32_t p) {
    const lplb_policy_result *policy = policy_at(report, p);
    FILE *out = report->out;
    fputs("\"name\":", out);
    lplb__put_string(out, policy->policy);
    fprintf(out, ",\"placed\":%s,\"moved_tokens\":%lld,\"internode_tokens\":%lld,",
            policy->placement ? "true" : "false", (long long)policy->moved_tokens,
            (long long)policy->internode_tokens);
    fprintf(out,
            "\"moved_slots\":%lld,\"slots\":%d,\"place_seconds\":", (long long)policy->moved_slots,
            policy->placement ? policy->placement->slots : 0);
    lplb__put_number(out, policy->place_seconds, 4);
    fputs(",\"plan_us\":", out);
    if (policy->has_plan_time) {
        fputs("{\"p50\":", out);
        lplb__put_number(out, policy->plan_us_p50, 4);
        fputs(",\"p99\":", out);
        lplb__put_number(out, policy->plan_us_p99, 4);
        fputc('}', out);
    } else {
        fputs("null", out);
    }
    fputs(",\"predicted\":", out);
    if (policy->has_prediction) {
        bool timed = policy->tokens_per_s > 0; /* else only the memory is known */
        fputs("{\"ms_per_layer\":", out);
        lplb__put_number(out, timed ? policy->ms_per_layer : NAN, 5);
        fputs(",\"tokens_per_s\":", out);
        lplb__put_number(out, timed ? policy->tokens_per_s : NAN, 6);
        fprintf(out, ",\"redundant_bytes\":%lld}", (long long)policy->redundant_bytes);
    } else {
        fputs("null", out);
    }
}

static lplb_status put_policy(const lplb__report *report, int32_t p) {
    const lplb_replay_result *r = report->result;
    const lplb_policy_result *policy = policy_at(report, p);
    FILE *out = report->out;
    fputc('{', out);
    put_figures(report, p);
    fputc(',', out);
    put_time(report, p, 0, r->layers - 1);
    fputc(',', out);
    LPLB_TRY(put_quantiles(report, p));
    fputc(',', out);
    put_numbers(out, "layer_mean", policy->layer_mean, r->layers);
    fputc(',', out);
    put_numbers(out, "layer_max", policy->layer_max, r->layers);
    fputc(',', out);
    if (report->placements && policy->placement) {
        put_integers(out, "rank_offset", policy->placement->rank_offset, r->ranks + 1);
        fputc(',', out);
    }
    LPLB_TRY(put_limits(report, p));
    fputs(",\"detail\":[", out);
    for (int32_t i = 0; i < report->details; i++) {
        put_comma(out, i);
        LPLB_TRY(put_detail(report, p, report->detail[i]));
    }
    fputs("]}\n", out);
    return LPLB_OK;
}

/* Tokens of every expert over the measured batches, for the layers with details. */
static lplb_status put_expert_tokens(const lplb__report *report) {
    const lplb_replay_result *r = report->result;
    double *tokens;
    LPLB_TRY(LPLB_CALLOC(tokens, r->experts));
    fputs("\"expert_tokens\":[", report->out);
    for (int32_t i = 0; i < report->details && report->placements; i++) {
        const int64_t *counts = r->counts + (int64_t)report->detail[i] * r->measured * r->experts;
        memset(tokens, 0, (size_t)r->experts * sizeof *tokens);
        for (int64_t b = 0; b < r->measured; b++)
            for (int32_t e = 0; e < r->experts; e++)
                tokens[e] += (double)counts[b * r->experts + e];
        fputs(i ? ",[" : "[", report->out);
        for (int32_t e = 0; e < r->experts; e++) {
            put_comma(report->out, e);
            lplb__put_number(report->out, tokens[e], 4);
        }
        fputc(']', report->out);
    }
    fputs("],\n", report->out);
    lplb__free(tokens);
    return LPLB_OK;
}

lplb_status lplb__report_data(const lplb__report *report) {
    const lplb_replay_result *r = report->result;
    FILE *out = report->out;
    int64_t selections = sum_of(r->counts, r->layers * r->measured * r->experts);
    fprintf(out, "{\"schema\":\"lplb.report/1\",\"ranks\":%d,\"nodes\":%d,\"layers\":%d,", r->ranks,
            r->nodes, r->layers);
    fprintf(out, "\"first_layer\":%d,\"experts\":%d,\"topk\":%d,\"measured\":%lld,", r->first_layer,
            r->experts, r->topk, (long long)r->measured);
    fprintf(out, "\"selections\":%lld,\"columns\":%d,\"heat_rows\":%d,", (long long)selections,
            report->columns, report->heat_rows);
    fprintf(out, "\"baseline\":%d,\"best\":%d,\"worst_detail\":%d,", report->baseline, report->best,
            report->worst_detail);
    put_integers(out, "detail_rows", report->detail, report->details);
    fputs(",\n", out);
    LPLB_TRY(put_expert_tokens(report));
    fputs("\"policies\":[\n", out);
    for (int32_t p = 0; p < r->policies; p++) {
        put_comma(out, p);
        LPLB_TRY(put_policy(report, p));
    }
    fputs("]}\n", out);
    return LPLB_OK;
}
