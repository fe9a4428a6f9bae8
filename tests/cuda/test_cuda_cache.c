/* The plan cache: which batches keep the shares of an earlier one. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "world.h"

static void test_cache(void) {
    world w;
    id_arrays arrays;
    lplb_cuda_report report;
    world_create("eplb32", 0, 1, 20000, &w);
    lplb_cuda_planner *planner = make_planner(&w, 0, 0.2);
    id_arrays_create(w.n, LPLB_INT64, LPLB_INT64, false, &arrays);
    lplb_cuda_problem problem = problem_of(&w);
    world_draw(&w, 1);
    for (int k = 0; k < 4; k++) {
        /* 0: plans; 1: the same batch; 2: a similar one; 3: another */
        if (k == 2) world_draw(&w, 2);
        if (k == 3)
            for (int64_t i = 0; i < w.n; i++) w.ids[i] = i % 7;
        put_ids(&arrays, w.ids);
        OK(lplb_cuda_run(planner, &arrays.arguments, &problem, gpu_stream()));
        check_report(planner, "cache");
        OK(lplb_cuda_report_read(planner, gpu_stream(), &report));
        CHECK(report.reused == (k == 1 || k == 2), "batch %d: reused %d", k, report.reused);
        if (k < 2) check_slots(&arrays, w.slots, w.n, "cache");
        check_valid(&w, &arrays, "cache");
        int64_t best = 0;
        for (int32_t r = 0; r < w.placement->ranks; r++)
            if (w.loads[r] > best) best = w.loads[r];
        if (k == 2)
            CHECK((double)report.max_load < 1.3 * (double)best, "reused shares: %lld, best %lld",
                  (long long)report.max_load, (long long)best);
    }
    OK(lplb_cuda_planner_update(planner, w.placement, 0, gpu_stream()));
    OK(lplb_cuda_run(planner, &arrays.arguments, &problem, gpu_stream()));
    OK(lplb_cuda_report_read(planner, gpu_stream(), &report));
    CHECK(!report.reused, "an update must forget the plan");
    id_arrays_destroy(&arrays);
    lplb_cuda_planner_destroy(planner);
    world_destroy(&w);
}

/* A step of the world's ids; its report. */
static lplb_cuda_report run_step(lplb_cuda_planner *planner, id_arrays *arrays,
                                 const lplb_cuda_problem *problem, const int64_t *ids) {
    lplb_cuda_report report = {.outcome = -1};
    put_ids(arrays, ids);
    OK(lplb_cuda_run(planner, &arrays->arguments, problem, gpu_stream()));
    check_report(planner, "a step with the cache");
    OK(lplb_cuda_report_read(planner, gpu_stream(), &report));
    return report;
}

/* Batches without tokens, of no ids or of none that counts, first and in between: neither kept nor
 * reused, and the plan that is kept stays. */
static void test_empty_batches(void) {
    world w;
    id_arrays arrays;
    world_create("eplb32", 0, 1, 3000, &w);
    lplb_cuda_problem problem = problem_of(&w);
    int64_t *none = malloc((size_t)w.n * sizeof *none);
    for (int64_t i = 0; i < w.n; i++) none[i] = -1;
    world_draw(&w, 1);
    for (int no_ids = 0; no_ids < 2; no_ids++) {
        lplb_cuda_planner *planner = make_planner(&w, 0, 0.2);
        id_arrays_create(w.n, LPLB_INT64, LPLB_INT64, false, &arrays);
        for (int k = 0; k < 4; k++) {
            arrays.arguments.n = no_ids ? 0 : w.n;
            CHECK(!run_step(planner, &arrays, &problem, none).reused, "batch %d was empty", k);
            arrays.arguments.n = w.n;
            lplb_cuda_report report = run_step(planner, &arrays, &problem, w.ids);
            CHECK(report.reused == (k > 0), "batch %d: reused %d", k, report.reused);
            check_slots(&arrays, w.slots, w.n, "after an empty batch");
        }
        id_arrays_destroy(&arrays);
        lplb_cuda_planner_destroy(planner);
    }
    free(none);
    world_destroy(&w);
}

/* Counts and fixed tokens, planned on both sides. */
typedef struct pair_of_sides {
    world w;
    lplb_cuda_planner *planner;
    int64_t *fixed, *kept, *kept_fixed; /* of this batch; of the one whose plan is kept */
    int64_t *device_tokens, *device_fixed;
    int64_t kept_total; /* 0: none is */
} pair_of_sides;

/* Whether the kept plan's batch is within `reuse` of this one, which must not be a close call. */
static bool is_near(const pair_of_sides *s, double reuse) {
    double distance = 0, all = 0, movable = 0, kept = (double)s->kept_total;
    int32_t E = s->w.placement->experts, G = s->w.placement->ranks;
    for (int32_t e = 0; e < E; e++) movable += (double)s->w.tokens[e];
    for (int32_t r = 0; r < G; r++) all += (double)s->fixed[r];
    all += movable;
    if (s->kept_total == 0 || movable == 0) return false;
    for (int32_t e = 0; e < E; e++)
        distance += fabs((double)s->w.tokens[e] / all - (double)s->kept[e] / kept);
    for (int32_t r = 0; r < G; r++)
        distance += fabs((double)s->fixed[r] / all - (double)s->kept_fixed[r] / kept);
    CHECK(fabs(distance - reuse) > 1e-4, "distance %g: draw other numbers", distance);
    return distance <= reuse;
}

static void keep(pair_of_sides *s) {
    int64_t movable = 0, all = 0;
    int32_t E = s->w.placement->experts, G = s->w.placement->ranks;
    for (int32_t e = 0; e < E; e++) movable += s->w.tokens[e];
    for (int32_t r = 0; r < G; r++) all += s->fixed[r];
    if (movable == 0) return;
    memcpy(s->kept, s->w.tokens, (size_t)E * sizeof *s->kept);
    memcpy(s->kept_fixed, s->fixed, (size_t)G * sizeof *s->fixed);
    s->kept_total = all + movable;
}

static void plan_on_both_sides(pair_of_sides *s, double reuse, int k) {
    world *w = &s->w;
    lplb_cuda_report report = {.outcome = -1};
    bool near = is_near(s, reuse);
    gpu_put(s->device_tokens, w->tokens, w->placement->experts, sizeof(int64_t));
    gpu_put(s->device_fixed, s->fixed, w->placement->ranks, sizeof(int64_t));
    lplb_cuda_problem problem = {
        .struct_size = sizeof problem, .source_counts = s->device_tokens, .fixed = s->device_fixed};
    OK(lplb_cuda_solve(s->planner, &problem, gpu_stream()));
    check_report(s->planner, "fixed tokens");
    OK(lplb_cuda_report_read(s->planner, gpu_stream(), &report));
    CHECK((report.reused != 0) == near, "batch %d: reused %d, expected %d", k, report.reused, near);
    if (near) return;
    lplb_plan plan = {.split = w->split, .loads = w->loads};
    lplb_plan_input input = {.tokens = w->tokens, .fixed = s->fixed};
    OK(lplb_plan_solve(w->planner, &input, &plan));
    CHECK(report.max_load == plan.max_load, "batch %d: max load %lld, expected %lld", k,
          (long long)report.max_load, (long long)plan.max_load);
    keep(s);
}

/* What is fixed belongs to the batch, as the experts' tokens do; also beyond 32 bits. */
static void test_fixed(void) {
    enum { BATCHES = 60 };
    const double reuse = 0.15;
    pair_of_sides s = {.kept_total = 0};
    lplb__rng rng;
    lplb__rng_seed(&rng, 3, 9);
    world_create("eplb32", 0, 1, 10, &s.w);
    int32_t E = s.w.placement->experts, G = s.w.placement->ranks;
    s.planner = make_planner(&s.w, 0, reuse);
    s.fixed = calloc((size_t)G, sizeof *s.fixed);
    s.kept_fixed = calloc((size_t)G, sizeof *s.fixed);
    s.kept = calloc((size_t)E, sizeof *s.kept);
    s.device_tokens = gpu_copy(NULL, E, sizeof(int64_t));
    s.device_fixed = gpu_copy(NULL, G, sizeof(int64_t));
    for (int32_t e = 0; e < E; e++) s.w.tokens[e] = 50 + e;
    for (int k = 0; k < BATCHES; k++) {
        int64_t scale = k < BATCHES / 2 ? 1 : INT64_C(1) << 40;
        int kind = k < 2 ? k : (int)lplb__rng_below(&rng, 4);
        int32_t r = (int32_t)lplb__rng_below(&rng, (uint64_t)G);
        int32_t e = (int32_t)lplb__rng_below(&rng, (uint64_t)E);
        if (kind == 1) s.fixed[r] = (400 + (int64_t)lplb__rng_below(&rng, 900)) * scale;
        if (kind == 2) s.w.tokens[e] = (int64_t)lplb__rng_below(&rng, 800) * scale;
        if (kind == 3) memset(s.fixed, 0, (size_t)G * sizeof *s.fixed);
        plan_on_both_sides(&s, reuse, k);
    }
    memset(s.w.tokens, 0, (size_t)E * sizeof *s.w.tokens);
    s.fixed[0] = 77;
    plan_on_both_sides(&s, reuse, BATCHES);
    lplb_cuda_planner_destroy(s.planner);
    void *host[] = {s.fixed, s.kept_fixed, s.kept}, *device[] = {s.device_tokens, s.device_fixed};
    for (int i = 0; i < 3; i++) free(host[i]);
    for (int i = 0; i < 2; i++) gpu_free(device[i]);
    world_destroy(&s.w);
}

/* Plans of the interior-point method are kept as those of others are. */
static void test_ipm(void) {
    world w;
    id_arrays arrays;
    lplb_cuda_planner *planner = NULL;
    world_create("cube8x2", 0, 1, 3000, &w);
    world_draw(&w, 1);
    lplb_cuda_config config = {.struct_size = sizeof config,
                               .placement = w.placement,
                               .solver = LPLB_SOLVER_IPM,
                               .reuse = 0.1,
                               .max_ids = w.n};
    OK(lplb_cuda_planner_create(&config, &planner));
    id_arrays_create(w.n, LPLB_INT64, LPLB_INT64, false, &arrays);
    lplb_cuda_problem problem = problem_of(&w);
    int64_t most = 0;
    for (int k = 0; k < 3; k++) {
        lplb_cuda_report report = run_step(planner, &arrays, &problem, w.ids);
        CHECK(report.reused == (k > 0), "ipm, batch %d: reused %d", k, report.reused);
        CHECK(k == 0 || report.max_load == most, "ipm: max load %lld, at first %lld",
              (long long)report.max_load, (long long)most);
        most = report.max_load;
        check_valid(&w, &arrays, "ipm");
    }
    id_arrays_destroy(&arrays);
    lplb_cuda_planner_destroy(planner);
    world_destroy(&w);
}

int main(int argc, char **argv) {
    const gpu_test tests[] = {{"cache", test_cache},
                              {"empty_batches", test_empty_batches},
                              {"fixed", test_fixed},
                              {"ipm", test_ipm}};
    return gpu_main(tests, (int)(sizeof tests / sizeof tests[0]), argc, argv);
}
