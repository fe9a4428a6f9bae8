#define _POSIX_C_SOURCE 200809L /* clock_gettime */
/* What a cache of plans brings on the bundled recording: hit rate, time with and without, and the
 * imbalance that answers from the cache lose. `--json` prints one document. */
#include <lplb/placement.h>
#include <lplb/trace.h>
#include <lplb/tuning.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

enum { RANKS = 8, SLOTS = 48, LAYERS = 4, CAPACITY = 1024 };

typedef struct figures {
    int64_t batches, solve_ns, cache_ns;
    double solved, cached; /* sums of imbalance */
    lplb_plan_cache_stats stats;
} figures;

static void check(lplb_status status) {
    if (status == LPLB_OK) return;
    fprintf(stderr, "bench_plan_cache: %s\n", lplb_error_message());
    exit(1);
}

static void run_layer(const lplb_trace *t, int32_t layer, int64_t tokens, int64_t quantum,
                      figures *f) {
    int64_t E = t->experts, n = t->tokens / tokens, half = n / 2;
    int64_t *counts = calloc((size_t)E, sizeof *counts), split[SLOTS], offset[512];
    int32_t rank[SLOTS];
    lplb_trace_count(t, layer, 0, half * tokens, NULL, counts);
    lplb_place_config place = {
        .struct_size = sizeof place, .ranks = RANKS, .slots = SLOTS, .max_moves = -1};
    lplb_placement *placement;
    check(lplb_place(&place, counts, 1, 1, t->experts, NULL, &placement));
    lplb_plan_config config = {.struct_size = sizeof config};
    check(lplb_placement_hosts(placement, 0, offset, rank, &config.hosts));
    lplb_plan_cache_config cache_config = {.struct_size = sizeof cache_config,
                                           .hosts = config.hosts,
                                           .capacity = CAPACITY,
                                           .quantum = quantum};
    lplb_planner *planner;
    lplb_plan_cache *cache;
    check(lplb_planner_create(&config, &planner));
    check(lplb_plan_cache_create(&cache_config, &cache));
    for (int64_t b = half; b < n; b++) {
        lplb_trace_count(t, layer, b * tokens, tokens, NULL, counts);
        lplb_plan_input input = {.tokens = counts};
        lplb_plan plan = {.split = split};
        double mean = (double)tokens * t->topk / RANKS;
        int64_t start = lplb__now_ns();
        check(lplb_plan_solve(planner, &input, &plan));
        f->solve_ns += lplb__now_ns() - start;
        f->solved += (double)plan.max_load / mean;
        start = lplb__now_ns();
        check(lplb_plan_cache_solve(cache, planner, &input, &plan, NULL));
        f->cache_ns += lplb__now_ns() - start;
        f->cached += (double)plan.max_load / mean;
        f->batches++;
    }
    lplb_plan_cache_stats stats;
    lplb_plan_cache_get_stats(cache, &stats);
    f->stats.lookups += stats.lookups;
    f->stats.hits += stats.hits;
    lplb_plan_cache_destroy(cache);
    lplb_planner_destroy(planner);
    lplb_placement_destroy(placement);
    free(counts);
}

int main(int argc, char **argv) {
    int json = argc == 2 && !strcmp(argv[1], "--json");
    if (argc > 1 && !json) {
        fprintf(stderr, "usage: bench_plan_cache [--json]\n");
        return 2;
    }
    lplb_trace *t;
    lplb_trace_options options = {0};
    check(lplb_trace_read(LPLB_SOURCE_DIR "/data/gpt-oss-20b/token_topk.npz", &options, &t));
    static const int64_t sizes[] = {4, 32, 512}, quanta[] = {1, 4, 16, 64};
    printf(json ? "{\"schema\":\"lplb.bench_plan_cache/1\",\"cases\":["
                : "plan cache of 1024 plans, gpt-oss-20b, 8 ranks, 48 slots, 4 layers\n"
                  "tokens quantum  hits %%  solve us  cached us  imbalance  cached\n");
    int rows = 0;
    for (int s = 0; s < 3; s++)
        for (int q = 0; q < 4; q++) {
            figures f = {0};
            for (int32_t l = 0; l < LAYERS; l++)
                run_layer(t, l * (t->layers - 1) / (LAYERS - 1), sizes[s], quanta[q], &f);
            double n = (double)f.batches, hits = (double)f.stats.hits / (double)f.stats.lookups;
            printf(json ? "%s{\"tokens\":%lld,\"quantum\":%lld,\"hit_rate\":%.4f,\"solve_us\":%.3f,"
                          "\"cached_us\":%.3f,\"imbalance\":%.5f,\"cached_imbalance\":%.5f}"
                        : "%s%6lld %7lld  %6.2f  %8.2f  %9.2f  %9.4f  %6.4f\n",
                   json && rows++ ? "," : "", (long long)sizes[s], (long long)quanta[q],
                   json ? hits : 100 * hits, (double)f.solve_ns / n / 1e3,
                   (double)f.cache_ns / n / 1e3, f.solved / n, f.cached / n);
        }
    if (json) printf("]}\n");
    lplb_trace_destroy(t);
    return 0;
}
