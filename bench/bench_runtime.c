#define _POSIX_C_SOURCE 200809L /* clock_gettime */
/* What the runtime costs a step that does not rebalance, one core: feeding trackers and the
 * forecaster, and a manager's whole step, with and without the check of its interval. Medians and
 * 99th percentiles. `--json` prints one document. */
#include <lplb/runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/rng.h"
#include "cases/count_alloc.h"

enum { L = 58, E = 256, G = 32, P = 288, CELLS = L * E, BATCHES = 16, RUNS = 3000 };

static int64_t *batches; /* [BATCHES][L][E] */
static lplb_tracker *tracker;
static lplb_forecaster *forecaster;
static lplb_manager *manager;
static int64_t manager_step;

static void check(lplb_status status) {
    if (status == LPLB_OK) return;
    fprintf(stderr, "bench_runtime: %s\n", lplb_error_message());
    exit(1);
}

static void feed_tracker(const int64_t *counts) {
    check(lplb_tracker_update(tracker, LPLB_STAGE_DECODE, counts));
}
static void feed_forecaster(const int64_t *counts) {
    check(lplb_forecaster_update(forecaster, counts));
}
static void step_manager(const int64_t *counts) {
    check(lplb_manager_step(manager, manager_step++, LPLB_STAGE_DECODE, counts));
}

static int compare_int64(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int json, rows;

static void measure(const char *name, void (*body)(const int64_t *)) {
    static int64_t ns[RUNS];
    int64_t allocations = count_alloc_calls();
    for (int i = 0; i < RUNS; i++) {
        const int64_t *counts = batches + (int64_t)(i % BATCHES) * CELLS;
        int64_t start = lplb__now_ns();
        body(counts);
        ns[i] = lplb__now_ns() - start;
    }
    allocations = count_alloc_calls() - allocations;
    qsort(ns, RUNS, sizeof *ns, compare_int64);
    if (json)
        printf("%s{\"what\":\"%s\",\"ns_p50\":%lld,\"ns_p99\":%lld,\"allocations\":%lld}",
               rows++ ? "," : "", name, (long long)ns[RUNS / 2], (long long)ns[RUNS / 100 * 99],
               (long long)allocations);
    else
        printf("%-44s %8.1f %8.1f %8lld\n", name, (double)ns[RUNS / 2] / 1e3,
               (double)ns[RUNS / 100 * 99] / 1e3, (long long)allocations);
}

static void make_manager(int64_t min_interval) {
    lplb_manager_destroy(manager);
    manager_step = 0;
    /* No decision falls into the measured steps. */
    lplb_manager_config config = {.struct_size = sizeof config,
                                  .layers = L,
                                  .experts = E,
                                  .ranks = G,
                                  .slots = P,
                                  .interval = 1000000,
                                  .min_interval = min_interval,
                                  .mode = LPLB_INTERVAL_PERIODIC};
    check(lplb_manager_create(&config, &manager));
}

static void draw_batches(void) {
    lplb__rng rng;
    double weight[E];
    lplb__rng_seed(&rng, 1, 0);
    batches = malloc(sizeof *batches * BATCHES * CELLS);
    for (int64_t row = 0; row < (int64_t)BATCHES * L; row++) {
        for (int e = 0; e < E; e++) weight[e] = exp(lplb__rng_normal(&rng));
        lplb__rng_multinomial(&rng, 4096 * 8, weight, E, batches + row * E);
    }
}

static void run_all(void) {
    static const struct {
        const char *name;
        lplb_tracker_config config;
    } trackers[] = {
        {"tracker, ewma", {.kind = LPLB_TRACKER_EWMA}},
        {"tracker, stages", {.kind = LPLB_TRACKER_STAGES}},
        {"tracker, window of 1000", {.kind = LPLB_TRACKER_WINDOW}},
    };
    for (int i = 0; i < 3; i++) {
        lplb_tracker_config config = trackers[i].config;
        config.struct_size = sizeof config;
        config.layers = L;
        config.experts = E;
        check(lplb_tracker_create(&config, &tracker));
        measure(trackers[i].name, feed_tracker);
        lplb_tracker_destroy(tracker);
    }
    lplb_forecaster_config config = {.struct_size = sizeof config, .layers = L, .experts = E};
    check(lplb_forecaster_create(&config, &forecaster));
    measure("forecaster", feed_forecaster);
    lplb_forecaster_destroy(forecaster);
    make_manager(100);
    measure("manager, a step", step_manager);
    make_manager(1);
    measure("manager, all layers checked every step", step_manager);
    lplb_manager_destroy(manager);
}

int main(int argc, char **argv) {
    json = argc == 2 && !strcmp(argv[1], "--json");
    if (argc > 1 && !json) {
        fprintf(stderr, "usage: bench_runtime [--json]\n");
        return 2;
    }
    count_alloc_install();
    draw_batches();
    if (json)
        printf("{\"schema\":\"lplb.bench_runtime/1\",\"layers\":%d,\"experts\":%d,\"runs\":%d,"
               "\"cases\":[",
               L, E, RUNS);
    else
        printf("%d layers of %d experts, one core, %d runs\n%-44s %8s %8s %8s\n", L, E, RUNS, "",
               "p50 us", "p99 us", "allocs");
    run_all();
    if (json) printf("]}\n");
    free(batches);
    return 0;
}
