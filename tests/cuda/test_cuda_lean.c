/* The small kernel, for few ids and for plans of pairs: what it takes, what it must leave to the
 * general step, and a placement that changes its kind under a graph. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "world.h"

/* ---- plans ---- */

/* Results of lplb_cuda_solve on the device. */
typedef struct results {
    int64_t *counts, *split, *loads;
    float *share;
} results;

static void results_create(const world *w, results *r) {
    r->counts = gpu_copy(NULL, w->placement->experts, sizeof(int64_t));
    r->split = gpu_copy(NULL, w->placement->slots, sizeof(int64_t));
    r->loads = gpu_copy(NULL, w->placement->ranks, sizeof(int64_t));
    r->share = gpu_copy(NULL, w->placement->slots, sizeof(float));
}

static void results_destroy(results *r) {
    gpu_free(r->counts);
    gpu_free(r->split);
    gpu_free(r->loads);
    gpu_free(r->share);
}

static lplb_cuda_problem problem_with(const world *w, const results *r) {
    return (lplb_cuda_problem){.struct_size = sizeof(lplb_cuda_problem),
                               .source_counts = w->device_counts,
                               .counts = r->counts,
                               .split = r->split,
                               .loads = r->loads,
                               .share = r->share};
}

static void check_equal(const void *device, const void *expected, int64_t n, size_t bytes,
                        const char *what, const char *of) {
    void *got = malloc((size_t)n * bytes + 1);
    gpu_fetch(got, device, n, bytes);
    CHECK(memcmp(got, expected, (size_t)n * bytes) == 0, "%s: %s differ", what, of);
    free(got);
}

/* The last plan against the CPU's of w->tokens. */
static void check_results(const world *w, lplb_cuda_planner *planner, const results *r,
                          const char *what) {
    int64_t E = w->placement->experts, n = w->hosts.offset[E];
    float *share = malloc((size_t)n * sizeof *share);
    lplb_plan plan = {.split = w->split, .loads = w->loads};
    lplb_plan_input input = {.tokens = w->tokens};
    lplb_cuda_report report;
    OK(lplb_plan_solve(w->planner, &input, &plan));
    for (int64_t e = 0; e < E; e++)
        for (int64_t h = w->hosts.offset[e]; h < w->hosts.offset[e + 1]; h++)
            share[h] = w->tokens[e] ? (float)((double)w->split[h] / (double)w->tokens[e]) : 0;
    check_report(planner, what);
    OK(lplb_cuda_report_read(planner, gpu_stream(), &report));
    CHECK(report.outcome == (int)plan.outcome && report.max_load == plan.max_load &&
              report.sweeps == plan.sweeps && report.augmentations == plan.augmentations &&
              (double)report.bound_numerator / (double)report.bound_denominator == plan.bound,
          "%s: report of max load %lld, %d sweeps, expected %lld, %d", what,
          (long long)report.max_load, report.sweeps, (long long)plan.max_load, plan.sweeps);
    check_equal(r->counts, w->tokens, E, sizeof(int64_t), what, "counts");
    check_equal(r->split, w->split, n, sizeof(int64_t), what, "tokens of hosts");
    check_equal(r->loads, w->loads, w->placement->ranks, sizeof(int64_t), what, "loads");
    check_equal(r->share, share, n, sizeof(float), what, "shares");
    free(share);
}

/* Sources in one round, in several, and counts that need 64 bits. */
static void test_solve_sources(void) {
    static const char *const shapes[] = {"cube8x2", "cube4groups", "hypercube16x2", "single-copies",
                                         "one-rank"};
    static const int32_t sources[] = {1, 2, 9, 20};
    for (int i = 0; i < 20; i++) {
        world w;
        results r;
        char what[100];
        snprintf(what, sizeof what, "%s, %d sources", shapes[i / 4], sources[i % 4]);
        world_create(shapes[i / 4], i % 3, sources[i % 4], 300, &w);
        world_draw(&w, (uint64_t)i);
        results_create(&w, &r);
        lplb_cuda_planner *planner = make_planner(&w, 0, 0);
        lplb_cuda_problem problem = problem_with(&w, &r);
        OK(lplb_cuda_solve(planner, &problem, gpu_stream()));
        check_results(&w, planner, &r, what);
        int64_t at = (sources[i % 4] - 1) * (int64_t)w.placement->experts, more = INT64_C(1) << 40;
        w.counts[at] += more;
        w.tokens[0] += more;
        gpu_put(w.device_counts, w.counts, sources[i % 4] * (int64_t)w.placement->experts,
                sizeof(int64_t));
        OK(lplb_cuda_solve(planner, &problem, gpu_stream()));
        check_results(&w, planner, &r, what);
        lplb_cuda_planner_destroy(planner);
        results_destroy(&r);
        world_destroy(&w);
    }
}

/* Ranks in couples: each has its own experts, the next of its partner's after them. */
static lplb_placement *couples(int32_t experts, int32_t slots, int32_t ranks) {
    lplb_placement *placement = NULL;
    int32_t each = slots / ranks, own = experts / ranks;
    OK(lplb_placement_create(1, experts, slots, ranks, NULL, &placement));
    for (int32_t r = 0; r < ranks; r++)
        for (int32_t k = 0; k < each; k++)
            placement->physical_to_logical[r * each + k] =
                k < own ? r * own + k : (r ^ 1) * own + (k - own);
    OK(lplb_placement_validate(placement));
    return placement;
}

/* More experts than the block takes at a time. */
static void test_solve_many_experts(void) {
    world w;
    results r;
    world_create_on(couples(1280, 1312, 16), 2, 3000, &w);
    results_create(&w, &r);
    lplb_cuda_planner *planner = make_planner(&w, 0, 0);
    lplb_cuda_problem problem = problem_with(&w, &r);
    for (uint64_t seed = 1; seed < 4; seed++) {
        world_draw(&w, seed);
        OK(lplb_cuda_solve(planner, &problem, gpu_stream()));
        check_results(&w, planner, &r, "many experts");
    }
    lplb_cuda_planner_destroy(planner);
    results_destroy(&r);
    world_destroy(&w);
}

static void test_solve_bad_counts(void) {
    static const struct {
        int64_t value;
        lplb_status code;
    } cases[] = {{-1, LPLB_RANGE},
                 {INT64_MIN, LPLB_RANGE},
                 {INT64_MAX, LPLB_OVERFLOW},
                 {LPLB_MAX_TOKENS, LPLB_OVERFLOW}};
    world w;
    results r;
    lplb_cuda_report report;
    world_create("cube4groups", 0, 3, 500, &w);
    world_draw(&w, 1);
    results_create(&w, &r);
    lplb_cuda_planner *planner = make_planner(&w, 0, 0);
    lplb_cuda_problem problem = problem_with(&w, &r);
    int64_t E = w.placement->experts, at = 2 * E + 77;
    for (int i = 0; i < 4; i++) {
        int64_t saved = w.counts[at];
        w.counts[at] = cases[i].value;
        w.counts[77] += cases[i].value == LPLB_MAX_TOKENS; /* the total decides */
        gpu_put(w.device_counts, w.counts, 3 * E, sizeof(int64_t));
        w.counts[77] -= cases[i].value == LPLB_MAX_TOKENS;
        w.counts[at] = saved;
        OK(lplb_cuda_solve(planner, &problem, gpu_stream()));
        OK(lplb_cuda_report_read(planner, gpu_stream(), &report));
        CHECK(lplb_cuda_report_status(&report) == cases[i].code && report.outcome == -1,
              "count %lld: %s, outcome %d", (long long)cases[i].value, lplb_error_message(),
              report.outcome);
        OK(lplb_cuda_report_clear(planner, gpu_stream()));
    }
    gpu_put(w.device_counts, w.counts, 3 * E, sizeof(int64_t));
    OK(lplb_cuda_solve(planner, &problem, gpu_stream()));
    check_results(&w, planner, &r, "good counts again");
    lplb_cuda_planner_destroy(planner);
    results_destroy(&r);
    world_destroy(&w);
}

/* ---- whole steps ---- */

static void run_small(const char *shape, int32_t twice, int64_t n, lplb_dtype in, lplb_dtype out,
                      bool in_place) {
    world w;
    id_arrays arrays;
    char what[100];
    snprintf(what, sizeof what, "%s twice %d, %lld ids", shape, twice, (long long)n);
    world_create(shape, twice, 1, n, &w);
    lplb_cuda_planner *planner = make_planner(&w, 0, 0);
    id_arrays_create(n, in, out, in_place, &arrays);
    lplb_cuda_problem problem = problem_of(&w);
    results r;
    results_create(&w, &r);
    problem.counts = r.counts;
    problem.split = r.split;
    problem.loads = r.loads;
    problem.share = r.share;
    for (uint64_t seed = 1; seed < 3; seed++) {
        world_draw(&w, seed);
        put_ids(&arrays, w.ids);
        OK(lplb_cuda_run(planner, &arrays.arguments, &problem, gpu_stream()));
        check_slots(&arrays, w.slots, n, what);
        check_results(&w, planner, &r, what);
    }
    results_destroy(&r);
    id_arrays_destroy(&arrays);
    lplb_cuda_planner_destroy(planner);
    world_destroy(&w);
}

static void test_run_small(void) {
    static const int64_t sizes[] = {0, 1, 127, 128, 129, 700, 1024, 2048};
    static const char *const shapes[] = {"cube8x2", "single-copies", "one-rank", "hypercube16x2"};
    lplb_dtype types[] = {LPLB_INT64, LPLB_INT32};
    for (int i = 0; i < 8; i++) {
        run_small("cube4groups", 0, sizes[i], types[i & 1], types[i >> 1 & 1], false);
        run_small(shapes[i % 4], i % 3, sizes[i], types[i & 1], types[i & 1], true);
    }
}

static void test_number_of_ids_on_the_device(void) {
    static const int64_t tokens[] = {0, 1, 17, 100, 128, 500, -5};
    check_numbers_on_the_device(1024, tokens, 7);
}

static void test_bad_ids(void) {
    world w;
    id_arrays arrays;
    lplb_cuda_report report;
    world_create("cube8x2", 0, 1, 1000, &w);
    world_draw(&w, 1);
    lplb_cuda_planner *planner = make_planner(&w, 0, 0);
    id_arrays_create(w.n, LPLB_INT64, LPLB_INT64, false, &arrays);
    lplb_cuda_problem problem = problem_of(&w);
    int64_t saved[2] = {w.ids[821], w.ids[77]};
    w.ids[821] = w.placement->experts;
    w.ids[77] = -2;
    put_ids(&arrays, w.ids);
    OK(lplb_cuda_run(planner, &arrays.arguments, &problem, gpu_stream()));
    OK(lplb_cuda_report_read(planner, gpu_stream(), &report));
    CHECK(lplb_cuda_report_status(&report) == LPLB_RANGE &&
              (report.error & LPLB_CUDA_DETAIL_MASK) == LPLB_CUDA_DETAIL_MASK - 77,
          "bad ids: %s", lplb_error_message());
    OK(lplb_cuda_report_clear(planner, gpu_stream()));
    w.ids[821] = saved[0];
    w.ids[77] = saved[1];
    put_ids(&arrays, w.ids);
    OK(lplb_cuda_run(planner, &arrays.arguments, &problem, gpu_stream()));
    check_report(planner, "after bad ids");
    check_slots(&arrays, w.slots, w.n, "after bad ids");
    id_arrays_destroy(&arrays);
    lplb_cuda_planner_destroy(planner);
    world_destroy(&w);
}

/* ---- placements that change under a graph ---- */

/* One graph of a plan and a step; pairs, no pairs, more groups than the graph has warps. */
static void update(int64_t n) {
    enum { PLACEMENTS = 3 };
    world w[PLACEMENTS];
    id_arrays arrays;
    results r;
    cudaStream_t stream = gpu_stream();
    char what[100];
    snprintf(what, sizeof what, "update, %lld ids", (long long)n);
    world_create("cube4groups", 0, 1, n, &w[0]);
    world_create_on(with_triples(w[0].placement), 1, n, &w[1]);
    const lplb_placement *like = w[0].placement; /* in 16 groups of two ranks: */
    world_create_on(couples(like->experts, like->slots, like->ranks), 1, n, &w[2]);
    for (int k = 0; k < PLACEMENTS; k++) world_draw(&w[k], 1);
    for (int first = 0; first < PLACEMENTS; first++) {
        results_create(&w[0], &r);
        lplb_cuda_planner *planner = make_planner(&w[first], 0, 0);
        id_arrays_create(n, LPLB_INT64, LPLB_INT64, false, &arrays);
        put_ids(&arrays, w[0].ids);
        lplb_cuda_problem solve = problem_with(&w[0], &r), run = problem_of(&w[0]);
        CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
        OK(lplb_cuda_run(planner, &arrays.arguments, &run, stream));
        OK(lplb_cuda_solve(planner, &solve, stream));
        cudaGraphExec_t exec = end_capture(stream);
        for (int k = 0; k < 2 * PLACEMENTS; k++) {
            const world *now = &w[k % PLACEMENTS];
            OK(lplb_cuda_planner_update(planner, now->placement, 0, stream));
            CUDA(cudaGraphLaunch(exec, stream));
            check_results(now, planner, &r, what);
            check_slots(&arrays, now->slots, n, what);
        }
        CUDA(cudaGraphExecDestroy(exec));
        id_arrays_destroy(&arrays);
        lplb_cuda_planner_destroy(planner);
        results_destroy(&r);
    }
    for (int k = 0; k < PLACEMENTS; k++) world_destroy(&w[k]);
}

static void test_update(void) {
    update(900);
    update(5000); /* several blocks */
}

int main(int argc, char **argv) {
    const gpu_test tests[] = {{"solve_sources", test_solve_sources},
                              {"solve_many_experts", test_solve_many_experts},
                              {"solve_bad_counts", test_solve_bad_counts},
                              {"run_small", test_run_small},
                              {"number_of_ids_on_the_device", test_number_of_ids_on_the_device},
                              {"bad_ids", test_bad_ids},
                              {"update", test_update}};
    return gpu_main(tests, (int)(sizeof tests / sizeof tests[0]), argc, argv);
}
