#include "world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

/* Takes the placement over. */
void world_create_on(lplb_placement *placement, int32_t sources, int64_t n, world *w) {
    memset(w, 0, sizeof *w);
    w->placement = placement;
    gpu_hosts_create(w->placement, &w->hosts);
    int64_t E = w->placement->experts, S = sources;
    w->sources = sources;
    w->n = n;
    w->ids = calloc((size_t)(S * n + 1), sizeof(int64_t));
    w->slots = calloc((size_t)(S * n + 1), sizeof(int64_t));
    w->counts = calloc((size_t)(S * E), sizeof(int64_t));
    w->tokens = calloc((size_t)E, sizeof(int64_t));
    w->split = calloc((size_t)w->hosts.offset[E], sizeof(int64_t));
    w->loads = calloc((size_t)w->placement->ranks, sizeof(int64_t));
    w->device_counts = gpu_copy(NULL, S * E, sizeof(int64_t));
    lplb_plan_config config = {.struct_size = sizeof config, .hosts = w->hosts.hosts};
    OK(lplb_planner_create(&config, &w->planner));
    int32_t *rank = calloc((size_t)S, sizeof *rank);
    for (int32_t s = 0; s < sources; s++) rank[s] = s % w->placement->ranks;
    OK(lplb_dispatcher_create(w->placement, 0, sources, rank, NULL, 1, &w->dispatcher));
    free(rank);
}

void world_create(const char *shape, int32_t twice, int32_t sources, int64_t n, world *w) {
    plan_instance instance;
    instance_create(find_plan_case(shape), 7, &instance);
    world_create_on(gpu_placement(&instance.hosts, twice), sources, n, w);
    instance_destroy(&instance);
}

void world_destroy(world *w) {
    void *host[] = {w->ids, w->slots, w->counts, w->tokens, w->split, w->loads};
    for (int i = 0; i < 6; i++) free(host[i]);
    gpu_free(w->device_counts);
    lplb_dispatcher_destroy(w->dispatcher);
    lplb_planner_destroy(w->planner);
    gpu_hosts_destroy(&w->hosts);
    lplb_placement_destroy(w->placement);
}

/* Skewed ids, now and then none; then counts, plan and slots by the CPU. */
void world_draw(world *w, uint64_t seed) {
    lplb__rng rng;
    int64_t E = w->placement->experts;
    lplb__rng_seed(&rng, seed, 1);
    memset(w->tokens, 0, (size_t)E * sizeof *w->tokens);
    for (int64_t i = 0; i < w->sources * w->n; i++) {
        double u = lplb__rng_uniform(&rng);
        w->ids[i] = lplb__rng_below(&rng, 16) == 0 ? -1 : (int64_t)(u * u * (double)E);
    }
    for (int32_t s = 0; s < w->sources; s++) {
        int64_t *counts = w->counts + s * E;
        OK(lplb_count_experts(w->ids + s * w->n, LPLB_INT64, w->n, (int32_t)E, 1, counts));
        for (int64_t e = 0; e < E; e++) w->tokens[e] += counts[e];
    }
    lplb_plan plan = {.split = w->split, .loads = w->loads};
    lplb_plan_input input = {.tokens = w->tokens};
    OK(lplb_plan_solve(w->planner, &input, &plan));
    for (int32_t s = 0; s < w->sources; s++) {
        OK(lplb_dispatch_prepare(w->dispatcher, w->counts, w->split, s, 0));
        OK(lplb_dispatch_map(w->dispatcher, w->ids + s * w->n, LPLB_INT64, w->n,
                             w->slots + s * w->n, LPLB_INT64));
    }
    gpu_put(w->device_counts, w->counts, w->sources * E, sizeof(int64_t));
}

lplb_cuda_planner *make_planner(const world *w, int32_t n_sms, double reuse) {
    lplb_cuda_planner *planner = NULL;
    lplb_cuda_config config = {.struct_size = sizeof config,
                               .placement = w->placement,
                               .sources = w->sources,
                               .reuse = reuse,
                               .max_ids = w->n,
                               .n_sms = n_sms};
    OK(lplb_cuda_planner_create(&config, &planner));
    return planner;
}

static void *narrowed(const int64_t *from, int64_t n) {
    int32_t *to = malloc((size_t)n * sizeof *to + 1);
    for (int64_t i = 0; i < n; i++) to[i] = (int32_t)from[i];
    return to;
}

void put_ids(id_arrays *a, const int64_t *ids) {
    if (a->arguments.ids_dtype == LPLB_INT64) {
        gpu_put(a->ids, ids, a->n, sizeof(int64_t));
        return;
    }
    void *narrow = narrowed(ids, a->n);
    gpu_put(a->ids, narrow, a->n, sizeof(int32_t));
    free(narrow);
}

void id_arrays_create(int64_t n, lplb_dtype in, lplb_dtype out, bool in_place, id_arrays *a) {
    a->n = n;
    a->ids = gpu_copy(NULL, n, sizeof(int64_t));
    a->out = in_place ? a->ids : gpu_copy(NULL, n, sizeof(int64_t));
    a->arguments = (lplb_cuda_ids){.struct_size = sizeof(lplb_cuda_ids),
                                   .ids = a->ids,
                                   .ids_dtype = in,
                                   .out = a->out,
                                   .out_dtype = out,
                                   .n = n};
}

void id_arrays_destroy(id_arrays *a) {
    if (a->out != a->ids) gpu_free(a->out);
    gpu_free(a->ids);
}

void check_slots(const id_arrays *a, const int64_t *expected, int64_t n, const char *what) {
    bool wide = a->arguments.out_dtype == LPLB_INT64;
    void *out = malloc((size_t)n * 8 + 1);
    gpu_fetch(out, a->out, n, wide ? 8 : 4);
    for (int64_t i = 0; i < n; i++) {
        int64_t slot = wide ? ((int64_t *)out)[i] : ((int32_t *)out)[i];
        if (slot == expected[i]) continue;
        CHECK(false, "%s: slot %lld of id %lld, expected %lld", what, (long long)slot, (long long)i,
              (long long)expected[i]);
        break;
    }
    free(out);
}

/* Every id still gets a slot of its own expert. */
void check_valid(const world *w, const id_arrays *arrays, const char *what) {
    int64_t *out = malloc((size_t)w->n * 8);
    gpu_fetch(out, arrays->out, w->n, 8);
    for (int64_t i = 0; i < w->n; i++) {
        bool ok = w->ids[i] < 0 ? out[i] == -1
                                : out[i] >= 0 && out[i] < w->placement->slots &&
                                      w->placement->physical_to_logical[out[i]] == w->ids[i];
        if (ok) continue;
        CHECK(false, "%s: id %lld went to slot %lld", what, (long long)w->ids[i],
              (long long)out[i]);
        break;
    }
    free(out);
}

lplb_cuda_problem problem_of(const world *w) {
    return (lplb_cuda_problem){.struct_size = sizeof(lplb_cuda_problem),
                               .source_counts = w->sources > 1 ? w->device_counts : NULL};
}

void check_report(lplb_cuda_planner *planner, const char *what) {
    lplb_cuda_report report;
    OK(lplb_cuda_report_read(planner, gpu_stream(), &report));
    if (lplb_cuda_report_status(&report) != LPLB_OK)
        CHECK(false, "%s: %s", what, lplb_error_message());
}

cudaGraphExec_t end_capture(cudaStream_t stream) {
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CUDA(cudaGraphDestroy(graph));
    return exec;
}

/* Some experts give a copy to others, which then have three: no longer pairs. */
lplb_placement *with_triples(const lplb_placement *from) {
    lplb_placement *placement = NULL;
    OK(lplb_placement_copy(from, &placement));
    int32_t *count = calloc((size_t)from->experts, sizeof *count), changed = 0;
    int32_t *slots = placement->physical_to_logical;
    lplb_placement_replica_count(from, count);
    for (int32_t p = 0; p < from->slots && changed < 6; p++) {
        int32_t e = slots[p], f = slots[(p + 100) % from->slots];
        if (count[e] != 2 || count[f] != 2 || e == f) continue;
        slots[p] = f;
        count[e]--;
        count[f]++;
        changed++;
    }
    free(count);
    OK(lplb_placement_validate(placement));
    return placement;
}

void check_numbers_on_the_device(int64_t most, const int64_t *tokens, int n_tokens) {
    world w;
    id_arrays arrays;
    world_create("cube8x2", 0, 1, most, &w);
    lplb_cuda_planner *planner = make_planner(&w, 0, 0);
    id_arrays_create(w.n, LPLB_INT64, LPLB_INT64, false, &arrays);
    int64_t *n_device = gpu_copy(NULL, 1, sizeof(int64_t)), all = w.n;
    lplb_cuda_problem problem = problem_of(&w);
    problem.counts = gpu_copy(NULL, w.placement->experts, sizeof(int64_t));
    int64_t *counts = calloc((size_t)w.placement->experts, sizeof *counts);
    int64_t *untouched = calloc((size_t)all, sizeof *untouched), *out = calloc((size_t)all, 8);
    for (int64_t at = 0; at < all; at++) untouched[at] = -7 - at;
    arrays.arguments.n_device = n_device;
    arrays.arguments.topk = 8;
    for (int i = 0; i < n_tokens; i++) {
        w.n = tokens[i] < 0 ? 0 : tokens[i] * 8 < all ? tokens[i] * 8 : all;
        world_draw(&w, (uint64_t)i);
        put_ids(&arrays, w.ids);
        gpu_put(arrays.out, untouched, all, sizeof(int64_t));
        gpu_put(n_device, &tokens[i], 1, sizeof(int64_t));
        OK(lplb_cuda_run(planner, &arrays.arguments, &problem, gpu_stream()));
        check_report(planner, "n on the device");
        check_slots(&arrays, w.slots, w.n, "n on the device");
        gpu_fetch(counts, problem.counts, w.placement->experts, sizeof(int64_t));
        gpu_fetch(out, arrays.out, all, sizeof(int64_t));
        for (int32_t e = 0; e < w.placement->experts; e++)
            CHECK(counts[e] == w.counts[e], "%lld tokens: %lld ids of expert %d, expected %lld",
                  (long long)tokens[i], (long long)counts[e], e, (long long)w.counts[e]);
        for (int64_t at = w.n; at < all; at++)
            CHECK(out[at] == untouched[at], "%lld tokens: id %lld was mapped", (long long)tokens[i],
                  (long long)at);
    }
    gpu_free(problem.counts);
    free(untouched);
    free(counts);
    free(out);
    gpu_free(n_device);
    id_arrays_destroy(&arrays);
    lplb_cuda_planner_destroy(planner);
    world_destroy(&w);
}
