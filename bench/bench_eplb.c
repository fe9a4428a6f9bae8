#define _POSIX_C_SOURCE 200809L /* clock_gettime */
/* How long EPLB's placement takes on one core: medians over runs, with and without the
 * logical-to-physical table. `--json` prints one document. */
#include <lplb/placement.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/rng.h"

static const struct {
    const char *name;
    int32_t layers, experts, slots, groups, nodes, ranks;
} cases[] = {
    {"global", 58, 256, 288, 1, 1, 32},       {"hierarchical", 58, 256, 288, 8, 4, 32},
    {"hierarchical", 58, 256, 320, 8, 8, 64}, {"global", 61, 256, 288, 1, 1, 144},
    {"hierarchical", 48, 128, 160, 8, 1, 8},  {"global", 24, 32, 48, 1, 1, 8},
    {"global", 16, 64, 80, 1, 1, 8},          {"global", 60, 512, 640, 1, 1, 64},
};
enum { N_CASES = sizeof cases / sizeof *cases, RUNS = 101 };

static int compare_int64(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Median over fresh log-normal loads (sigma 1), so that no branch pattern is learnt. */
static int64_t median_ns(int c, int tables) {
    int32_t L = cases[c].layers, E = cases[c].experts, P = cases[c].slots;
    float *weight = malloc((size_t)(L * E) * sizeof *weight);
    int32_t *p2l = malloc((size_t)(L * P) * sizeof *p2l);
    int32_t *count = malloc((size_t)(L * E) * sizeof *count);
    int32_t *l2p = malloc((size_t)L * (size_t)E * (size_t)(P - E + 1) * sizeof *l2p);
    int64_t ns[RUNS];
    lplb__rng rng;
    lplb__rng_seed(&rng, 1, (uint64_t)c);
    for (int run = 0; run < RUNS; run++) {
        for (int32_t i = 0; i < L * E; i++)
            weight[i] = (float)floor(1e4 * exp(lplb__rng_normal(&rng)));
        int64_t start = lplb__now_ns();
        lplb_status status = lplb_eplb_rebalance_experts(
            weight, L, E, P, cases[c].groups, cases[c].nodes, cases[c].ranks, p2l,
            tables ? l2p : NULL, tables ? count : NULL);
        ns[run] = lplb__now_ns() - start;
        if (status != LPLB_OK) {
            fprintf(stderr, "bench_eplb: %s\n", lplb_error_message());
            exit(1);
        }
    }
    free(weight);
    free(p2l);
    free(count);
    free(l2p);
    qsort(ns, RUNS, sizeof *ns, compare_int64);
    return ns[RUNS / 2];
}

int main(int argc, char **argv) {
    int json = argc == 2 && !strcmp(argv[1], "--json");
    if (argc > 1 && !json) {
        fprintf(stderr, "usage: bench_eplb [--json]\n");
        return 2;
    }
    printf(json ? "{\"schema\":\"lplb.bench_eplb/1\",\"runs\":%d,\"cases\":["
                : "EPLB placement on one core, median of %d runs\n"
                  "form          layers experts slots groups nodes ranks   map us  us/layer  "
                  "with tables us\n",
           RUNS);
    for (int c = 0; c < N_CASES; c++) {
        int64_t map = median_ns(c, 0), tables = median_ns(c, 1);
        if (json)
            printf("%s{\"form\":\"%s\",\"layers\":%d,\"experts\":%d,\"slots\":%d,\"groups\":%d,"
                   "\"nodes\":%d,\"ranks\":%d,\"map_ns\":%lld,\"map_ns_per_layer\":%lld,"
                   "\"tables_ns\":%lld}",
                   c ? "," : "", cases[c].name, cases[c].layers, cases[c].experts, cases[c].slots,
                   cases[c].groups, cases[c].nodes, cases[c].ranks, (long long)map,
                   (long long)(map / cases[c].layers), (long long)tables);
        else
            printf("%-13s %6d %7d %5d %6d %5d %5d %8.1f %9.2f %15.1f\n", cases[c].name,
                   cases[c].layers, cases[c].experts, cases[c].slots, cases[c].groups,
                   cases[c].nodes, cases[c].ranks, (double)map / 1e3,
                   (double)map / 1e3 / cases[c].layers, (double)tables / 1e3);
    }
    if (json) printf("]}\n");
    return 0;
}
