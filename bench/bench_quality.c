/* One table on the same loads: LPLB's interior-point method as published and converged, the
 * baselines and the exact planner. Imbalance = fullest rank over mean, gap = fullest rank over that
 * of the optimum, minus 1; "refused" = share of problems on which the method rejected its own
 * answer, did not converge, or returned something that the verifier refuses; time = median of one
 * plan on one core.
 *
 * Synthetic loads always; recorded ones from the folder in LPLB_DATA (or --data DIR): the first
 * half of a trace makes the placement, the second is planned; summed loads are redrawn as batches.
 * --json prints one document. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <lplb/placement.h>
#include <lplb/trace.h>

#include "base/clock.h"
#include "base/rng.h"
#include "cases/cases.h"

static const struct {
    const char *name;
    lplb_solver solver;
    int published;
} methods[] = {
    {"ipm:published", LPLB_SOLVER_IPM, 1}, {"ipm", LPLB_SOLVER_IPM, 0},
    {"balance", LPLB_SOLVER_BALANCE, 0},   {"waterfill", LPLB_SOLVER_WATERFILL, 0},
    {"greedy", LPLB_SOLVER_GREEDY, 0},     {"even", LPLB_SOLVER_EVEN, 0},
    {"exact", LPLB_SOLVER_EXACT, 0},
};
enum { METHODS = sizeof methods / sizeof methods[0], EXACT = METHODS - 1 };

typedef struct tally {
    int64_t problems, refused;
    double imbalance, gap, worst_gap;
    double *us; /* [problems] */
} tally;

typedef struct table {
    int json, rows;
} table;

static void fail(const char *what) {
    fprintf(stderr, "bench_quality: %s: %s\n", what, lplb_error_message());
    exit(1);
}

/* The planners of one placement, and room for their answers. */
typedef struct bench {
    lplb_hosts hosts;
    lplb_planner *planner[METHODS];
    int64_t *split, *loads;
    uint64_t *certificate;
} bench;

static void bench_open(bench *b, const lplb_hosts *hosts) {
    b->hosts = *hosts;
    for (int m = 0; m < METHODS; m++) {
        lplb_plan_config config = {.struct_size = sizeof config,
                                   .hosts = *hosts,
                                   .solver = methods[m].solver,
                                   .ipm = {.published = methods[m].published}};
        if (lplb_planner_create(&config, &b->planner[m]) != LPLB_OK) fail(methods[m].name);
    }
    b->split = malloc(sizeof(int64_t) * (size_t)hosts->offset[hosts->experts]);
    b->loads = malloc(sizeof(int64_t) * (size_t)hosts->ranks);
    b->certificate = malloc(sizeof(uint64_t) * (size_t)(hosts->ranks / 64 + 1));
    if (!b->split || !b->loads || !b->certificate) abort();
}

static void bench_close(bench *b) {
    for (int m = 0; m < METHODS; m++) lplb_planner_destroy(b->planner[m]);
    free(b->split);
    free(b->loads);
    free(b->certificate);
}

/* Plans one batch by every method. Batches without tokens say nothing. */
static void bench_batch(bench *b, const int64_t *tokens, tally *sums) {
    lplb_plan_input input = {tokens, NULL, NULL};
    int64_t max_load[METHODS], total = 0;
    for (int32_t e = 0; e < b->hosts.experts; e++) total += tokens[e];
    if (total == 0) return;
    for (int m = 0; m < METHODS; m++) {
        tally *t = &sums[m];
        lplb_plan plan = {.split = b->split, .loads = b->loads, .certificate = b->certificate};
        int64_t start = lplb__now_ns();
        if (lplb_plan_solve(b->planner[m], &input, &plan) != LPLB_OK) fail(methods[m].name);
        double us = (double)(lplb__now_ns() - start) / 1e3;
        if ((t->problems & (t->problems - 1)) == 0) { /* grow at powers of two */
            t->us = realloc(t->us, sizeof(double) * (size_t)(2 * t->problems + 1));
            if (!t->us) abort();
        }
        t->us[t->problems++] = us;
        t->refused += plan.outcome == LPLB_OUTCOME_NOT_CONVERGED ||
                      lplb_plan_check(&b->hosts, NULL, &input, &plan) != LPLB_OK;
        max_load[m] = plan.max_load;
        t->imbalance += (double)plan.max_load * b->hosts.ranks / (double)total;
    }
    for (int m = 0; m < METHODS; m++) {
        double gap = (double)max_load[m] / (double)max_load[EXACT] - 1;
        sums[m].gap += gap;
        sums[m].worst_gap = fmax(sums[m].worst_gap, gap);
    }
}

static int compare_double(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_rows(table *out, const char *load, tally *sums) {
    for (int m = 0; m < METHODS; m++) {
        tally *t = &sums[m];
        double n = (double)t->problems;
        if (t->problems == 0) continue;
        qsort(t->us, (size_t)t->problems, sizeof(double), compare_double);
        double us = t->us[(t->problems - 1) / 2];
        if (out->json)
            printf("%s{\"load\":\"%s\",\"method\":\"%s\",\"problems\":%lld,\"imbalance\":%.6f,"
                   "\"gap\":{\"mean\":%.3e,\"worst\":%.3e},\"refused\":%.6f,\"us\":%.3f}",
                   out->rows++ ? "," : "", load, methods[m].name, (long long)t->problems,
                   t->imbalance / n, t->gap / n, t->worst_gap, (double)t->refused / n, us);
        else
            printf("%-38s %-14s %8lld %10.4f %9.3f%% %9.3f%% %8.2f%% %10.1f\n", m ? "" : load,
                   methods[m].name, (long long)t->problems, t->imbalance / n, 100 * t->gap / n,
                   100 * t->worst_gap, 100 * (double)t->refused / n, us);
        free(t->us);
    }
    fflush(stdout);
}

/* ---- synthetic ---- */

static void run_case(table *out, const char *name) {
    enum { PLACEMENTS = 20, BATCHES = 10 };
    const plan_case *shape = find_plan_case(name);
    tally sums[METHODS] = {{0}};
    for (uint64_t p = 0; p < PLACEMENTS; p++) {
        plan_instance in;
        bench b;
        instance_create(shape, p, &in);
        bench_open(&b, &in.hosts);
        for (uint64_t k = 0; k < BATCHES; k++) {
            instance_redraw(shape, 1000 + p * BATCHES + k, &in);
            bench_batch(&b, in.tokens, sums);
        }
        bench_close(&b);
        instance_destroy(&in);
    }
    print_rows(out, name, sums);
}

/* ---- recorded ---- */

static lplb_trace *read_trace(const char *folder, const char *file) {
    char path[4096];
    lplb_trace *trace;
    snprintf(path, sizeof path, "%s/%s", folder, file);
    if (lplb_trace_read(path, NULL, &trace) != LPLB_OK) fail(path);
    return trace;
}

static lplb_placement *place(lplb_place_algorithm algorithm, int32_t ranks, int32_t slots,
                             const int64_t *load, int32_t layers, int32_t experts) {
    lplb_place_config config = {.struct_size = sizeof config,
                                .algorithm = algorithm,
                                .ranks = ranks,
                                .slots = slots,
                                .max_moves = -1};
    lplb_placement *placement;
    if (lplb_place(&config, load, 1, layers, experts, NULL, &placement) != LPLB_OK) fail("place");
    return placement;
}

/* Opens a bench for one layer; the arrays must live as long. */
static void open_layer(bench *b, const lplb_placement *placement, int32_t layer, int64_t *offset,
                       int32_t *rank) {
    lplb_hosts hosts;
    if (lplb_placement_hosts(placement, layer, offset, rank, &hosts) != LPLB_OK) fail("hosts");
    bench_open(b, &hosts);
}

static void *need(int64_t count, size_t bytes) {
    void *block = calloc((size_t)count + 1, bytes);
    if (!block) abort();
    return block;
}

/* Token by token: batches of consecutive tokens from the second half. */
static void run_topk(table *out, const char *folder, const char *file, const char *name,
                     int64_t batch, int32_t ranks, int32_t redundant) {
    lplb_trace *trace = read_trace(folder, file);
    int32_t E = trace->experts, L = trace->layers, slots = E + ranks * redundant;
    int64_t batches = trace->tokens / batch, history = batches / 2;
    int64_t *load = need((int64_t)L * E, sizeof *load), *tokens = need(E, sizeof *tokens);
    int64_t *offset = need(E + 1, sizeof *offset);
    int32_t *rank = need(slots, sizeof *rank);
    tally sums[METHODS] = {{0}};
    for (int32_t l = 0; l < L; l++)
        lplb_trace_count(trace, l, 0, history * batch, NULL, load + (int64_t)l * E);
    lplb_placement *placement = place(LPLB_PLACE_TOPOLOGY, ranks, slots, load, L, E);
    for (int32_t l = 0; l < L; l++) {
        bench b;
        open_layer(&b, placement, l, offset, rank);
        for (int64_t k = history; k < batches; k++) {
            memset(tokens, 0, sizeof(int64_t) * (size_t)E);
            lplb_trace_count(trace, l, k * batch, batch, NULL, tokens);
            bench_batch(&b, tokens, sums);
        }
        bench_close(&b);
    }
    print_rows(out, name, sums);
    lplb_placement_destroy(placement);
    lplb_trace_destroy(trace);
    free(load);
    free(tokens);
    free(offset);
    free(rank);
}

/* Sums: the placement is made for one workload, batches are drawn from another. */
static void run_counts(table *out, const char *folder, const char *placed, const char *served,
                       const char *name, int64_t selections, int32_t ranks, int32_t slots) {
    enum { BATCHES = 5 };
    lplb_trace *history = read_trace(folder, placed), *now = read_trace(folder, served);
    int32_t E = now->experts, L = now->layers;
    double *weight = need(E, sizeof *weight);
    int64_t *offset = need(E + 1, sizeof *offset), *tokens = need(E, sizeof *tokens);
    int32_t *rank = need(slots, sizeof *rank);
    tally sums[METHODS] = {{0}};
    lplb__rng rng;
    lplb__rng_seed(&rng, 1, 0);
    lplb_placement *placement = place(LPLB_PLACE_EPLB, ranks, slots, history->counts, L, E);
    for (int32_t l = 0; l < L; l++) {
        bench b;
        double sum = 0;
        for (int32_t e = 0; e < E; e++) sum += weight[e] = (double)now->counts[(int64_t)l * E + e];
        if (sum == 0) continue; /* a dense layer */
        open_layer(&b, placement, l, offset, rank);
        for (int k = 0; k < BATCHES; k++) {
            lplb__rng_multinomial(&rng, selections, weight, E, tokens);
            bench_batch(&b, tokens, sums);
        }
        bench_close(&b);
    }
    print_rows(out, name, sums);
    lplb_placement_destroy(placement);
    lplb_trace_destroy(history);
    lplb_trace_destroy(now);
    free(weight);
    free(offset);
    free(tokens);
    free(rank);
}

static void run_recorded(table *out, const char *folder) {
    run_topk(out, folder, "gpt_oss_20b/token_topk.npz", "gpt-oss-20b, 512 tokens, cube 8x2", 512, 8,
             2);
    run_topk(out, folder, "gpt_oss_20b/token_topk.npz", "gpt-oss-20b, 4096 tokens, cube 8x2", 4096,
             8, 2);
    run_topk(out, folder, "olmoe_decode/general.npz", "OLMoE general, 256 tokens, cube 8x2", 256, 8,
             2);
    run_topk(out, folder, "olmoe_decode/coding.npz", "OLMoE coding, 256 tokens, cube 8x2", 256, 8,
             2);
    run_counts(out, folder, "deepseek_v3/decode_in2000out100.json",
               "deepseek_v3/decode_in2000out100.json", "DeepSeek-V3, EPLB 32 ranks 288 slots",
               8 * 4096, 32, 288);
    run_counts(out, folder, "deepseek_v3/decode_in2000out100.json",
               "deepseek_v3/decode_in500out1500.json", "DeepSeek-V3, the same, other workload",
               8 * 4096, 32, 288);
}

int main(int argc, char **argv) {
    static const char *const names[] = {
        "cube8x2-g0.3", "cube8x2-g1.0",  "hypercube16x2-g0.3", "hypercube16x2-g1.0",
        "ring8x1-g0.3", "ring8x1-g1.0",  "torus4x8-g0.3",      "torus4x8-g1.0",
        "cube8x2",      "hypercube16x2", "torus4x8",           "eplb64",
    };
    table out = {0, 0};
    const char *folder = getenv("LPLB_DATA");
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--json")) out.json = 1;
        else if (!strcmp(argv[i], "--data") && i + 1 < argc) folder = argv[++i];
        else {
            fprintf(stderr, "bench_quality: unknown option %s; try --json, --data DIR\n", argv[i]);
            return 2;
        }
    }
    if (out.json) printf("{\"schema\":\"lplb.bench_quality/1\",\"rows\":[");
    else
        printf("%-38s %-14s %8s %10s %10s %10s %9s %10s\n", "load", "method", "problems",
               "imbalance", "gap mean", "gap worst", "refused", "median us");
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) run_case(&out, names[i]);
    if (folder) run_recorded(&out, folder);
    else fprintf(stderr, "bench_quality: LPLB_DATA is not set, recorded loads left out\n");
    if (out.json) printf("],\"recorded\":%s}\n", folder ? "true" : "false");
    return 0;
}
