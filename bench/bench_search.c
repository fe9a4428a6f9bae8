/* What the search brings: imbalance of `search+exact` on the second half of recorded traces against
 * EPLB and LPLB with optimal splits, and imbalance against moved slots when the load shifts.
 * Needs the recordings: LPLB_DATA names their folder. `--json` prints one document. */
#define _POSIX_C_SOURCE 200809L /* clock_gettime */
#include <lplb/placement.h>
#include <lplb/trace.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

enum { RANKS = 8, REDUNDANT = 2, RUNS_A_BATCH = 8, SAMPLES_MAX = 320 };

static const struct {
    const char *name, *file;
    int64_t batch_tokens;
} cases[] = {
    {"gpt-oss-20b", "gpt_oss_20b/token_topk.npz", 512},
    {"gpt-oss-20b", "gpt_oss_20b/token_topk.npz", 4096},
    {"olmoe general", "olmoe_decode/general.npz", 256},
    {"olmoe general", "olmoe_decode/general.npz", 1024},
    {"olmoe coding", "olmoe_decode/coding.npz", 256},
    {"olmoe coding", "olmoe_decode/coding.npz", 1024},
};
enum { N_CASES = sizeof cases / sizeof *cases };

static const char *data;
static int json;

static void need(lplb_status status) {
    if (status == LPLB_OK) return;
    fprintf(stderr, "bench_search: %s\n", lplb_error_message());
    exit(1);
}

static lplb_trace *open_trace(const char *file) {
    char path[4096];
    lplb_trace *trace;
    lplb_trace_options options = {0};
    snprintf(path, sizeof path, "%s/%s", data, file);
    need(lplb_trace_read(path, &options, &trace));
    return trace;
}

/* counts [samples][L][E] of `tokens` tokens each, evenly spaced over [first, first + all). */
static int64_t *count(const lplb_trace *t, int64_t first, int64_t all, int64_t tokens, int64_t most,
                      int64_t *samples) {
    int64_t runs = all / tokens;
    *samples = runs < most ? runs : most;
    int64_t *counts = calloc((size_t)(*samples * t->layers * t->experts), sizeof *counts);
    if (!counts) exit(1);
    for (int64_t s = 0; s < *samples; s++)
        for (int32_t l = 0; l < t->layers; l++)
            lplb_trace_count(t, l, first + s * runs / *samples * tokens, tokens, NULL,
                             counts + (s * t->layers + l) * t->experts);
    return counts;
}

/* Mean over the (sample, layer) pairs with load. */
static double mean_imbalance(const lplb_placement *p, const int64_t *load, int64_t samples,
                             lplb_solver solver) {
    int64_t n = samples * p->layers, loaded = 0;
    double *out = malloc((size_t)n * sizeof *out), sum = 0;
    if (!out) exit(1);
    need(lplb_placement_imbalance(p, load, samples, solver, 0, out));
    for (int64_t i = 0; i < n; i++) {
        sum += out[i];
        loaded += out[i] > 0;
    }
    free(out);
    return sum / (double)loaded;
}

static double place_and_measure(lplb_place_config config, const lplb_trace *t,
                                const int64_t *history, int64_t n, const int64_t *measured,
                                int64_t m, double *seconds) {
    lplb_placement *p;
    int64_t start = lplb__now_ns();
    need(lplb_place(&config, history, n, t->layers, t->experts, NULL, &p));
    *seconds = (double)(lplb__now_ns() - start) * 1e-9;
    double imbalance = mean_imbalance(p, measured, m, LPLB_SOLVER_EXACT);
    lplb_placement_destroy(p);
    return imbalance;
}

static void run_case(int i, double *better_excess, double *search_excess) {
    lplb_trace *t = open_trace(cases[i].file);
    int64_t B = cases[i].batch_tokens, batches = t->tokens / B, half = batches / 2, n, all, m;
    int64_t *runs = count(t, 0, half * B, B / RUNS_A_BATCH, SAMPLES_MAX, &n);
    int64_t *history = count(t, 0, half * B, B, INT64_MAX, &all);
    int64_t *measured = count(t, half * B, (batches - half) * B, B, INT64_MAX, &m);
    lplb_place_config c = {.struct_size = sizeof c,
                           .ranks = RANKS,
                           .slots = t->experts + RANKS * REDUNDANT,
                           .batch_tokens = B,
                           .topk = t->topk,
                           .max_moves = -1};
    double seconds;
    double eplb = place_and_measure(c, t, history, all, measured, m, &seconds);
    c.algorithm = LPLB_PLACE_TOPOLOGY;
    double lplb = place_and_measure(c, t, history, all, measured, m, &seconds);
    c.algorithm = LPLB_PLACE_SEARCH;
    double search = place_and_measure(c, t, runs, n, measured, m, &seconds);
    double better = eplb < lplb ? eplb : lplb;
    *better_excess += better - 1;
    *search_excess += search - 1;
    printf(json ? "%s{\"trace\":\"%s\",\"batch_tokens\":%lld,\"eplb_exact\":%.5f,\"lplb\":%.5f,"
                  "\"search_exact\":%.5f,\"place_seconds\":%.2f}"
                : "%s%-14s %6lld %11.4f %8.4f %13.4f %8.2f\n",
           json && i ? "," : "", cases[i].name, (long long)B, eplb, lplb, search, seconds);
    fflush(stdout);
    free(runs);
    free(history);
    free(measured);
    lplb_trace_destroy(t);
}

static void print_shift(const char *algorithm, int percent, const lplb_placement *from,
                        const lplb_placement *to, const lplb_trace *load, int loaded) {
    int64_t moves;
    need(lplb_placement_moves(from, to, NULL, 0, &moves));
    double moved = 100.0 * (double)moves / ((double)loaded * to->slots);
    double even = mean_imbalance(to, load->counts, 1, LPLB_SOLVER_EVEN);
    double exact = mean_imbalance(to, load->counts, 1, LPLB_SOLVER_EXACT);
    printf(json ? "%s{\"algorithm\":\"%s\",\"budget_percent\":%d,\"moved_percent\":%.2f,"
                  "\"even\":%.5f,\"exact\":%.5f}"
                : "%s%-10s %7d %9.1f %8.4f %8.4f\n",
           json && percent >= 0 && strcmp(algorithm, "keep") ? "," : "", algorithm, percent, moved,
           even, exact);
    fflush(stdout);
}

/* Layers with load: the model's first ones are dense. */
static int count_loaded(const lplb_trace *t) {
    int loaded = 0;
    for (int32_t l = 0; l < t->layers; l++) {
        int64_t sum = 0;
        for (int32_t e = 0; e < t->experts; e++) sum += t->counts[(int64_t)l * t->experts + e];
        loaded += sum > 0;
    }
    return loaded;
}

static void run_shift(void) {
    static const int percents[] = {0, 5, 10, 20, 40, 100};
    lplb_trace *before = open_trace("deepseek_v3/decode_in2000out100.json");
    lplb_trace *after = open_trace("deepseek_v3/decode_in500out1500.json");
    lplb_place_config c = {.struct_size = sizeof c, .ranks = 32, .slots = 288, .max_moves = -1};
    lplb_placement *from, *to;
    int loaded = count_loaded(after);
    need(lplb_place(&c, before->counts, 1, before->layers, before->experts, NULL, &from));
    print_shift("keep", 0, from, from, after, loaded);
    need(lplb_place(&c, after->counts, 1, after->layers, after->experts, NULL, &to));
    print_shift("eplb", 100, from, to, after, loaded);
    lplb_placement_destroy(to);
    c.algorithm = LPLB_PLACE_SEARCH;
    c.from = from;
    c.exact_split = 2;
    for (size_t i = 0; i < sizeof percents / sizeof *percents; i++) {
        c.max_moves = (int64_t)percents[i] * c.slots / 100;
        need(lplb_place(&c, after->counts, 1, after->layers, after->experts, NULL, &to));
        print_shift("search", percents[i], from, to, after, loaded);
        lplb_placement_destroy(to);
    }
    lplb_placement_destroy(from);
    lplb_trace_destroy(before);
    lplb_trace_destroy(after);
}

int main(int argc, char **argv) {
    json = argc == 2 && !strcmp(argv[1], "--json");
    data = getenv("LPLB_DATA");
    if (argc > 1 && !json) {
        fprintf(stderr, "usage: LPLB_DATA=FOLDER bench_search [--json]\n");
        return 2;
    }
    if (!data) {
        fprintf(stderr, "bench_search: skipped: LPLB_DATA does not name the recordings' folder\n");
        return 0;
    }
    double better = 0, search = 0;
    printf(json ? "{\"schema\":\"lplb.bench_search/1\",\"cases\":["
                : "Mean of max/mean over (layer, batch), second half; 8 ranks, 2 redundant each\n"
                  "trace           batch  eplb+exact     lplb  search+exact  place s\n");
    for (int i = 0; i < N_CASES; i++) run_case(i, &better, &search);
    printf(json ? "],\"better_excess\":%.5f,\"search_excess\":%.5f,\"excess_smaller_percent\":%.1f,"
                  "\"shift\":["
                : "summed excess over 1: better of the two %.4f, search %.4f: %.1f %% smaller\n\n"
                  "DeepSeek-V3, load shifts; 32 ranks, 288 slots\n"
                  "algorithm  budget%%  moved %%     even    exact\n",
           better, search, 100 * (1 - search / better));
    run_shift();
    if (json) printf("]}\n");
    return 0;
}
