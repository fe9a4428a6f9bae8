/* Dispatch: ns per id of counting, preparing and mapping, beside a plain copy of the same ids.
 *   bench_dispatch [--json] */
#define _POSIX_C_SOURCE 200809L
#include <lplb/lplb.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/rng.h"

enum { RANKS = 8, REPEATS = 101 };

typedef struct shape {
    int64_t ids;
    int32_t experts, slots;
    bool hot; /* half of the ids go to one expert */
} shape;

static const shape shapes[] = {
    {4096, 256, 288, false}, {65536, 256, 288, false},   {65536, 256, 288, true},
    {65536, 32, 48, false},  {1 << 20, 256, 288, false},
};

typedef struct figures {
    double copy, count, prepare_us, map, map_in_place;
} figures;

static void check(lplb_status status) {
    if (status == LPLB_OK) return;
    fprintf(stderr, "bench_dispatch: %s\n", lplb_error_message());
    exit(1);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values) {
    qsort(values, REPEATS, sizeof *values, by_value);
    return values[REPEATS / 2];
}

static figures measure(const shape *s, int32_t threads) {
    lplb__rng rng;
    lplb__rng_seed(&rng, 1, 0);
    lplb_placement *placement;
    check(lplb_placement_create(1, s->experts, s->slots, RANKS, NULL, &placement));
    lplb_placement_fill_trivial(placement);
    lplb_dispatcher *d;
    check(lplb_dispatcher_create(placement, 0, RANKS, NULL, NULL, threads, &d));
    const lplb_hosts *hosts = lplb_dispatcher_hosts(d);
    int64_t *ids = calloc((size_t)s->ids, sizeof *ids), *out = calloc((size_t)s->ids, sizeof *out);
    int64_t *counts = calloc((size_t)(RANKS * s->experts), sizeof *counts);
    int64_t *split = calloc((size_t)s->slots, sizeof *split);
    for (int64_t i = 0; i < s->ids; i++)
        ids[i] = s->hot && lplb__rng_below(&rng, 2) ? 3 : lplb__rng_below(&rng, s->experts);
    for (int32_t r = 0; r < RANKS; r++)
        check(lplb_dispatch_count(d, ids, LPLB_INT64, s->ids, counts + r * s->experts));
    for (int32_t e = 0; e < s->experts; e++) {
        int64_t left = RANKS * counts[e], n = hosts->offset[e + 1] - hosts->offset[e];
        for (int64_t h = hosts->offset[e]; n > 0; h++, n--) left -= split[h] = left / n;
    }
    static double time[5][REPEATS];
    for (int k = 0; k < REPEATS; k++) {
        int64_t t[6];
        t[0] = lplb__now_ns();
        memcpy(out, ids, (size_t)s->ids * sizeof *ids);
        t[1] = lplb__now_ns();
        check(lplb_dispatch_count(d, ids, LPLB_INT64, s->ids, counts));
        t[2] = lplb__now_ns();
        check(lplb_dispatch_prepare(d, counts, split, 0, 0));
        t[3] = lplb__now_ns();
        check(lplb_dispatch_map(d, ids, LPLB_INT64, s->ids, out, LPLB_INT64));
        t[4] = lplb__now_ns();
        memcpy(out, ids, (size_t)s->ids * sizeof *ids);
        int64_t start = lplb__now_ns();
        check(lplb_dispatch_map(d, out, LPLB_INT64, s->ids, out, LPLB_INT64));
        t[5] = lplb__now_ns();
        for (int i = 0; i < 4; i++) time[i][k] = (double)(t[i + 1] - t[i]);
        time[4][k] = (double)(t[5] - start);
    }
    free(ids), free(out), free(counts), free(split);
    lplb_dispatcher_destroy(d);
    lplb_placement_destroy(placement);
    double n = (double)s->ids;
    return (figures){median(time[0]) / n, median(time[1]) / n, median(time[2]) / 1e3,
                     median(time[3]) / n, median(time[4]) / n};
}

int main(int argc, char **argv) {
    bool json = argc > 1 && !strcmp(argv[1], "--json");
    int32_t threads[] = {1, 2};
    if (json) printf("{\"schema\":\"lplb.bench_dispatch/1\",\"rows\":[");
    else
        printf("int64 ids from 8 sources, medians of %d; ns per id, prepare in us\n"
               "%9s %8s %5s %8s  %6s %6s %6s %9s  %8s\n",
               REPEATS, "ids", "experts", "hot", "threads", "copy", "count", "map", "in place",
               "prepare");
    for (size_t i = 0; i < 2 * (sizeof shapes / sizeof shapes[0]); i++) {
        const shape *s = &shapes[i / 2];
        figures f = measure(s, threads[i % 2]);
        if (json)
            printf("%s{\"ids\":%lld,\"experts\":%d,\"hot\":%s,\"threads\":%d,\"copy_ns\":%.4f,"
                   "\"count_ns\":%.4f,\"map_ns\":%.4f,\"map_in_place_ns\":%.4f,"
                   "\"prepare_us\":%.3f}",
                   i ? "," : "", (long long)s->ids, s->experts, s->hot ? "true" : "false",
                   threads[i % 2], f.copy, f.count, f.map, f.map_in_place, f.prepare_us);
        else
            printf("%9lld %8d %5s %8d  %6.2f %6.2f %6.2f %9.2f  %8.1f\n", (long long)s->ids,
                   s->experts, s->hot ? "yes" : "no", threads[i % 2], f.copy, f.count, f.map,
                   f.map_in_place, f.prepare_us);
    }
    if (json) printf("]}\n");
    return 0;
}
