/* Locality and shares on the device against dispatch on the CPU, id by id. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "gpu.h"

enum { MAX_IDS = 1500, MAX_SOURCES = 24 };

/* A placement, sources that live anywhere, and their ids. */
typedef struct world {
    lplb_placement *placement;
    gpu_hosts hosts;
    int32_t sources;
    int32_t *source_rank, *node; /* [S]; [G] or NULL */
    int64_t n[MAX_SOURCES];
    int64_t *ids;             /* [S][MAX_IDS] */
    int64_t *counts, *tokens; /* [S][E], [E] */
    int64_t *split;           /* [hosts] */
    lplb_planner *planner;
    lplb_dispatcher *dispatcher;
    int64_t *device_counts, *device_split, *device_ids, *device_out;
} world;

static void world_create(const lplb_hosts *hosts, uint64_t seed, world *w) {
    lplb__rng rng;
    memset(w, 0, sizeof *w);
    lplb__rng_seed(&rng, seed, 11);
    w->placement = gpu_placement(hosts, (int32_t)lplb__rng_below(&rng, 4));
    gpu_hosts_create(w->placement, &w->hosts);
    int32_t G = w->placement->ranks, E = w->placement->experts;
    bool every_rank = G <= MAX_SOURCES && lplb__rng_below(&rng, 3) == 0;
    w->sources = every_rank ? G : 1 + (int32_t)lplb__rng_below(&rng, MAX_SOURCES);
    w->source_rank = calloc(MAX_SOURCES, sizeof *w->source_rank);
    for (int32_t s = 0; s < w->sources; s++)
        w->source_rank[s] = every_rank ? s : (int32_t)lplb__rng_below(&rng, (uint64_t)G);
    uint64_t nodes = lplb__rng_below(&rng, 5);
    if (nodes) w->node = calloc((size_t)G, sizeof *w->node);
    for (int32_t r = 0; nodes && r < G; r++)
        w->node[r] = (int32_t)lplb__rng_below(&rng, nodes) * 7 - 9;
    w->ids = calloc((size_t)w->sources * MAX_IDS, sizeof *w->ids);
    w->counts = calloc((size_t)w->sources * (size_t)E, sizeof *w->counts);
    w->tokens = calloc((size_t)E, sizeof *w->tokens);
    w->split = calloc((size_t)w->hosts.offset[E], sizeof *w->split);
    lplb_plan_config plan = {.struct_size = sizeof plan, .hosts = w->hosts.hosts};
    OK(lplb_planner_create(&plan, &w->planner));
    OK(lplb_dispatcher_create(w->placement, 0, w->sources, every_rank ? NULL : w->source_rank,
                              w->node, 1, &w->dispatcher));
    w->device_counts = gpu_copy(NULL, (int64_t)w->sources * E, 8);
    w->device_split = gpu_copy(NULL, w->hosts.offset[E], 8);
    w->device_ids = gpu_copy(NULL, MAX_IDS, 8);
    w->device_out = gpu_copy(NULL, MAX_IDS, 8);
    if (every_rank) {
        free(w->source_rank);
        w->source_rank = NULL;
    }
}

static void world_destroy(world *w) {
    void *host[] = {w->source_rank, w->node, w->ids, w->counts, w->tokens, w->split};
    for (int i = 0; i < 6; i++) free(host[i]);
    void *device[] = {w->device_counts, w->device_split, w->device_ids, w->device_out};
    for (int i = 0; i < 4; i++) gpu_free(device[i]);
    lplb_dispatcher_destroy(w->dispatcher);
    lplb_planner_destroy(w->planner);
    gpu_hosts_destroy(&w->hosts);
    lplb_placement_destroy(w->placement);
}

/* Each source has its own number of ids, perhaps none, and its own favourites. */
static void draw_ids(world *w, uint64_t seed) {
    lplb__rng rng;
    int64_t E = w->placement->experts;
    lplb__rng_seed(&rng, seed, 12);
    memset(w->tokens, 0, (size_t)E * sizeof *w->tokens);
    for (int32_t s = 0; s < w->sources; s++) {
        bool none = lplb__rng_below(&rng, 5) == 0;
        uint64_t favourite = lplb__rng_below(&rng, (uint64_t)E);
        w->n[s] = none ? 0 : (int64_t)lplb__rng_below(&rng, MAX_IDS + 1);
        for (int64_t i = 0; i < w->n[s]; i++) {
            double u = lplb__rng_uniform(&rng);
            uint64_t e = ((uint64_t)(u * u * u * (double)E) + favourite) % (uint64_t)E;
            w->ids[s * MAX_IDS + i] = lplb__rng_below(&rng, 20) == 0 ? -1 : (int64_t)e;
        }
        int64_t *counts = w->counts + s * E;
        OK(lplb_count_experts(w->ids + s * MAX_IDS, LPLB_INT64, w->n[s], (int32_t)E, 1, counts));
        for (int64_t e = 0; e < E; e++) w->tokens[e] += counts[e];
    }
    gpu_put(w->device_counts, w->counts, w->sources * E, 8);
}

static void plan_split(world *w) {
    lplb_plan plan = {.split = w->split};
    lplb_plan_input input = {.tokens = w->tokens};
    OK(lplb_plan_solve(w->planner, &input, &plan));
}

/* Any split of the tokens, far from balanced. */
static void draw_split(world *w, uint64_t seed) {
    lplb__rng rng;
    lplb__rng_seed(&rng, seed, 13);
    for (int32_t e = 0; e < w->placement->experts; e++) {
        int64_t left = w->tokens[e], end = w->hosts.offset[e + 1];
        for (int64_t h = w->hosts.offset[e]; h < end; h++) {
            w->split[h] = (int64_t)lplb__rng_below(&rng, (uint64_t)left + 1);
            if (h + 1 == end || lplb__rng_below(&rng, 6) == 0) w->split[h] = left;
            left -= w->split[h];
        }
    }
    gpu_put(w->device_split, w->split, w->hosts.offset[w->placement->experts], 8);
}

static lplb_cuda_planner *make_planner(const world *w) {
    lplb_cuda_planner *planner = NULL;
    lplb_cuda_config config = {.struct_size = sizeof config,
                               .placement = w->placement,
                               .sources = w->sources,
                               .source_rank = w->source_rank,
                               .node = w->node,
                               .locality = 1,
                               .max_ids = MAX_IDS};
    OK(lplb_cuda_planner_create(&config, &planner));
    return planner;
}

static lplb_cuda_ids put_ids(const world *w, int32_t source) {
    gpu_put(w->device_ids, w->ids + source * MAX_IDS, w->n[source], 8);
    return (lplb_cuda_ids){.struct_size = sizeof(lplb_cuda_ids),
                           .ids = w->device_ids,
                           .ids_dtype = LPLB_INT64,
                           .out = w->device_out,
                           .out_dtype = LPLB_INT64,
                           .n = w->n[source],
                           .source = source};
}

/* The dispatcher is prepared for the source. */
static void check_slots(const world *w, lplb_cuda_planner *planner, int32_t source,
                        const char *what, uint64_t seed) {
    int64_t n = w->n[source], *slots = malloc(MAX_IDS * 8 + 8), *got = malloc(MAX_IDS * 8 + 8);
    lplb_cuda_report report;
    OK(lplb_cuda_report_read(planner, gpu_stream(), &report));
    OK(lplb_cuda_report_status(&report));
    OK(lplb_dispatch_map(w->dispatcher, w->ids + source * MAX_IDS, LPLB_INT64, n, slots,
                         LPLB_INT64));
    gpu_fetch(got, w->device_out, n, 8);
    for (int64_t i = 0; i < n; i++) {
        if (slots[i] == got[i]) continue;
        CHECK(false, "%s seed %llu, source %d of %d: id %lld of expert %lld to %lld, expected %lld",
              what, (unsigned long long)seed, source, w->sources, (long long)i,
              (long long)w->ids[source * MAX_IDS + i], (long long)got[i], (long long)slots[i]);
        break;
    }
    free(slots);
    free(got);
}

static void compare(world *w, lplb_cuda_planner *planner, const char *name, uint64_t seed) {
    lplb_cuda_problem problem = {.struct_size = sizeof problem, .source_counts = w->device_counts};
    draw_ids(w, seed);
    for (int any = 0; any < 2; any++) {
        if (any) draw_split(w, seed);
        else plan_split(w);
        for (int32_t s = 0; s < w->sources; s++) {
            lplb_cuda_ids ids = put_ids(w, s);
            if (w->sources == 1) problem.source_counts = NULL;
            if (any)
                OK(lplb_cuda_map(planner, &ids, w->device_counts, w->device_split, gpu_stream()));
            else OK(lplb_cuda_run(planner, &ids, &problem, gpu_stream()));
            OK(lplb_dispatch_prepare(w->dispatcher, w->counts, w->split, s, 1));
            check_slots(w, planner, s, name, seed);
        }
    }
}

static void test_locality_cases(void) {
    static const char *const shapes[] = {"cube8x2",  "eplb32",     "torus4x8", "random16",
                                         "random60", "everywhere", "one-rank", "single-copies"};
    for (int i = 0; i < 8; i++)
        for (uint64_t seed = 0; seed < (uint64_t)gpu_effort(20); seed++) {
            plan_instance instance;
            world w;
            instance_create(find_plan_case(shapes[i]), seed + 40, &instance);
            world_create(&instance.hosts, seed, &w);
            lplb_cuda_planner *planner = make_planner(&w);
            compare(&w, planner, shapes[i], seed);
            lplb_cuda_planner_destroy(planner);
            world_destroy(&w);
            instance_destroy(&instance);
        }
}

static void test_locality_random(void) {
    for (uint64_t seed = 0; seed < (uint64_t)gpu_effort(200); seed++) {
        plan_instance instance;
        world w;
        instance_random(seed, 1000, &instance);
        world_create(&instance.hosts, seed + 1000, &w);
        lplb_cuda_planner *planner = make_planner(&w);
        for (uint64_t k = 0; k < 2; k++) compare(&w, planner, "random", seed * 10 + k);
        lplb_cuda_planner_destroy(planner);
        world_destroy(&w);
        instance_destroy(&instance);
    }
}

/* ---- shares, which take no notice of locality ---- */

static float draw_share(lplb__rng *rng) {
    switch (lplb__rng_below(rng, 6)) {
    case 0: return 0;
    case 1: return -1;
    case 2: return 3;
    case 3: return INFINITY;
    case 4: return 1e-30f;
    default: return (float)lplb__rng_uniform(rng);
    }
}

static void test_shares(void) {
    for (uint64_t seed = 0; seed < (uint64_t)gpu_effort(200); seed++) {
        plan_instance instance;
        world w;
        lplb__rng rng;
        instance_random(seed, 1000, &instance);
        world_create(&instance.hosts, seed + 77, &w);
        draw_ids(&w, seed);
        lplb_cuda_planner *planner = make_planner(&w);
        int64_t hosts = w.hosts.offset[w.placement->experts], E = w.placement->experts;
        float *share = calloc((size_t)hosts, sizeof *share);
        float *device = gpu_copy(NULL, hosts, sizeof *share);
        lplb__rng_seed(&rng, seed, 14);
        for (int64_t h = 0; seed % 4 && h < hosts; h++) /* every fourth: all zero = even */
            share[h] = draw_share(&rng);
        gpu_put(device, share, hosts, sizeof *share);
        for (int32_t s = 0; s < w.sources; s++) {
            lplb_cuda_ids ids = put_ids(&w, s);
            OK(lplb_cuda_map_shares(planner, &ids, device, gpu_stream()));
            OK(lplb_dispatch_prepare_ratio(w.dispatcher, share, w.counts + s * E, s));
            check_slots(&w, planner, s, "shares", seed);
        }
        lplb_cuda_report report;
        lplb_cuda_ids ids = put_ids(&w, 0);
        share[hosts - 1] = NAN;
        gpu_put(device, share, hosts, sizeof *share);
        OK(lplb_cuda_map_shares(planner, &ids, device, gpu_stream()));
        OK(lplb_cuda_report_read(planner, gpu_stream(), &report));
        CHECK(lplb_cuda_report_status(&report) == LPLB_INVALID, "seed %llu: NaN was taken",
              (unsigned long long)seed);
        gpu_free(device);
        free(share);
        lplb_cuda_planner_destroy(planner);
        world_destroy(&w);
        instance_destroy(&instance);
    }
}

static void test_refusals(void) {
    plan_instance instance;
    lplb_cuda_planner *planner = NULL;
    instance_create(find_plan_case("cube8x2"), 3, &instance);
    lplb_placement *placement = gpu_placement(&instance.hosts, 0);
    int32_t rank = 8;
    lplb_cuda_config config = {
        .struct_size = sizeof config, .placement = placement, .sources = 3, .locality = 1};
    CHECK(lplb_cuda_planner_create(&config, &planner) == LPLB_INVALID, "no ranks of sources");
    config.sources = 1;
    config.source_rank = &rank;
    CHECK(lplb_cuda_planner_create(&config, &planner) == LPLB_RANGE, "a rank of a source");
    lplb_placement_destroy(placement);
    instance_destroy(&instance);
}

int main(int argc, char **argv) {
    const gpu_test tests[] = {{"locality_cases", test_locality_cases},
                              {"locality_random", test_locality_random},
                              {"shares", test_shares},
                              {"refusals", test_refusals}};
    return gpu_main(tests, (int)(sizeof tests / sizeof tests[0]), argc, argv);
}
