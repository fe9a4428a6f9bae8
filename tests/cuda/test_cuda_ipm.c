/* The interior-point method on the device against the CPU's, the exact optimum, and itself in a
 * whole step. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "gpu.h"

/* One placement, planned on both sides. */
typedef struct both {
    lplb_placement *placement;
    gpu_hosts hosts;
    const int64_t *speed;
    lplb_planner *cpu;
    lplb_cuda_planner *gpu;
    int64_t *tokens, *fixed, *split, *loads; /* device */
    int64_t *cpu_split, *gpu_split, *gpu_loads;
    int64_t n;
} both;

static void both_create(const plan_instance *instance, const lplb_ipm_options *options, both *b) {
    memset(b, 0, sizeof *b);
    b->placement = gpu_placement(&instance->hosts, 0);
    gpu_hosts_create(b->placement, &b->hosts);
    b->n = b->hosts.offset[b->placement->experts];
    b->speed = instance->speed;
    lplb_plan_config cpu = {.struct_size = sizeof cpu,
                            .hosts = b->hosts.hosts,
                            .speed = instance->speed,
                            .solver = LPLB_SOLVER_IPM,
                            .ipm = *options};
    lplb_cuda_config gpu = {.struct_size = sizeof gpu,
                            .placement = b->placement,
                            .speed = instance->speed,
                            .solver = LPLB_SOLVER_IPM,
                            .ipm = *options};
    OK(lplb_planner_create(&cpu, &b->cpu));
    OK(lplb_cuda_planner_create(&gpu, &b->gpu));
    int64_t G = b->placement->ranks;
    b->tokens = gpu_copy(NULL, b->placement->experts, sizeof(int64_t));
    b->fixed = gpu_copy(NULL, G, sizeof(int64_t));
    b->split = gpu_copy(NULL, b->n, sizeof(int64_t));
    b->loads = gpu_copy(NULL, G, sizeof(int64_t));
    b->cpu_split = calloc((size_t)b->n, sizeof(int64_t));
    b->gpu_split = calloc((size_t)b->n, sizeof(int64_t));
    b->gpu_loads = calloc((size_t)G, sizeof(int64_t));
}

static void both_destroy(both *b) {
    void *device[] = {b->tokens, b->fixed, b->split, b->loads};
    for (int i = 0; i < 4; i++) gpu_free(device[i]);
    void *host[] = {b->cpu_split, b->gpu_split, b->gpu_loads};
    for (int i = 0; i < 3; i++) free(host[i]);
    lplb_cuda_planner_destroy(b->gpu);
    lplb_planner_destroy(b->cpu);
    gpu_hosts_destroy(&b->hosts);
    lplb_placement_destroy(b->placement);
}

static void plan_on_gpu(both *b, const plan_instance *instance, lplb_cuda_report *report) {
    gpu_put(b->tokens, instance->tokens, b->placement->experts, sizeof(int64_t));
    if (instance->fixed) gpu_put(b->fixed, instance->fixed, b->placement->ranks, sizeof(int64_t));
    lplb_cuda_problem problem = {.struct_size = sizeof problem,
                                 .source_counts = b->tokens,
                                 .fixed = instance->fixed ? b->fixed : NULL,
                                 .split = b->split,
                                 .loads = b->loads};
    OK(lplb_cuda_solve(b->gpu, &problem, gpu_stream()));
    OK(lplb_cuda_report_read(b->gpu, gpu_stream(), report));
    gpu_fetch(b->gpu_split, b->split, b->n, sizeof(int64_t));
    gpu_fetch(b->gpu_loads, b->loads, b->placement->ranks, sizeof(int64_t));
}

/* A valid plan, with a bound below the optimum and an objective above it; when it has converged,
 * both are the optimum, and rounding has added less than a token an expert. */
static void check_plan(const both *b, const plan_instance *instance, const lplb_cuda_report *report,
                       bool published, const char *what) {
    lplb_plan_input input = {.tokens = instance->tokens, .fixed = instance->fixed};
    lplb_bound bound;
    lplb_plan plan = {.split = b->gpu_split,
                      .loads = b->gpu_loads,
                      .outcome = LPLB_OUTCOME_FEASIBLE,
                      .max_load = report->max_load,
                      .bound = report->ipm_bound};
    OK(lplb_plan_bound(&b->hosts.hosts, b->speed, &input, &bound, NULL));
    for (int32_t r = 0; r < b->placement->ranks; r++)
        plan.objective =
            fmax(plan.objective, (double)b->gpu_loads[r] / (double)(b->speed ? b->speed[r] : 1));
    if (lplb_plan_check(&b->hosts.hosts, b->speed, &input, &plan) != LPLB_OK)
        CHECK(false, "%s: %s", what, lplb_error_message());
    double best = bound.fractional.numerator
                      ? (double)bound.fractional.numerator / (double)bound.fractional.denominator
                      : 0;
    CHECK(report->ipm_objective >= best * (1 - 1e-12),
          "%s: objective %.17g below the optimum %.17g", what, report->ipm_objective, best);
    CHECK(report->ipm_bound <= best * (1 + 1e-12), "%s: bound %.17g above the optimum %.17g", what,
          report->ipm_bound, best);
    if (report->outcome != LPLB_OUTCOME_FEASIBLE || published) return;
    for (int32_t r = 0; r < b->placement->ranks; r++) {
        double most = best * (1 + 2e-9) * (double)(b->speed ? b->speed[r] : 1);
        CHECK((double)b->gpu_loads[r] <= most + b->placement->experts, "%s: %lld tokens on rank %d",
              what, (long long)b->gpu_loads[r], r);
    }
}

/* Early iterations are well conditioned: the same shares but for rounding, which in the published
 * form's single precision is thousandths of an expert's tokens. */
static void compare_splits(const both *b, const plan_instance *instance, double tolerance,
                           const char *what) {
    for (int32_t e = 0; e < b->placement->experts; e++)
        for (int64_t h = b->hosts.offset[e]; h < b->hosts.offset[e + 1]; h++) {
            double allowed = 1 + tolerance * (double)instance->tokens[e];
            if (fabs((double)(b->gpu_split[h] - b->cpu_split[h])) <= allowed) continue;
            CHECK(false, "%s: split[%lld] is %lld, the CPU's %lld of %lld", what, (long long)h,
                  (long long)b->gpu_split[h], (long long)b->cpu_split[h],
                  (long long)instance->tokens[e]);
            return;
        }
}

static void compare(both *b, const plan_instance *instance, const lplb_ipm_options *options,
                    const char *name, uint64_t seed) {
    char what[120];
    snprintf(what, sizeof what, "%s seed %llu, %d iterations%s", name, (unsigned long long)seed,
             options->iterations, options->published ? ", published" : "");
    lplb_plan plan = {.split = b->cpu_split};
    lplb_plan_input input = {.tokens = instance->tokens, .fixed = instance->fixed};
    lplb_cuda_report report;
    OK(lplb_plan_solve(b->cpu, &input, &plan));
    plan_on_gpu(b, instance, &report);
    CHECK(report.error == 0, "%s: error %llx", what, (unsigned long long)report.error);
    CHECK(report.outcome == (int)plan.outcome, "%s: outcome %d, the CPU's %d", what, report.outcome,
          (int)plan.outcome);
    CHECK(abs(report.sweeps - plan.sweeps) <= 1 + plan.sweeps / 4,
          "%s: %d iterations, the CPU's %d", what, report.sweeps, plan.sweeps);
    double objective = plan.bound * (1 + plan.ipm_gap);
    double tolerance = options->published ? 5e-3 : 1e-7; /* as of the shares below */
    CHECK(fabs(report.ipm_objective - objective) <= tolerance * objective,
          "%s: objective %.17g, the CPU's %.17g", what, report.ipm_objective, objective);
    if (options->iterations || options->published)
        compare_splits(b, instance, options->published ? 5e-3 : 1e-9, what);
    check_plan(b, instance, &report, options->published != 0, what);
}

static void compare_case(const plan_case *shape, lplb_ipm_options options, uint64_t seed,
                         int batches) {
    plan_instance instance;
    both b;
    instance_create(shape, seed, &instance);
    both_create(&instance, &options, &b);
    for (int i = 0; i < batches; i++) {
        compare(&b, &instance, &options, shape->name, seed * 1000 + (uint64_t)i);
        instance_redraw(shape, seed * 1000 + (uint64_t)i + 1, &instance);
    }
    both_destroy(&b);
    instance_destroy(&instance);
}

static void compare_cases(lplb_ipm_options options, int32_t ranks, int placements, int batches) {
    for (int c = 0; c < n_plan_cases; c++)
        for (int k = 0; plan_cases[c].ranks <= ranks && k < gpu_effort(placements); k++) {
            if (options.published && plan_cases[c].speeds) continue;
            compare_case(&plan_cases[c], options, 300 + (uint64_t)k, gpu_effort(batches));
        }
}

/* Ranks of a case at most: in an emulator, teams of all warps take long. */
static int32_t most_ranks(void) { return gpu_effort(100) < 100 ? 32 : 128; }

static void test_converged_cases(void) { compare_cases((lplb_ipm_options){0}, most_ranks(), 3, 5); }
static void test_published_cases(void) {
    compare_cases((lplb_ipm_options){.published = 1}, most_ranks() / 2 + 16, 3, 5);
}
/* Many components of many sizes: some teams round their shares while others still look for theirs,
 * which no smaller case of the table has. */
static void test_published_components(void) {
    lplb_ipm_options options = {.published = 1};
    compare_case(find_plan_case("eplb64"), options, 301, gpu_effort(20));
}
static void test_iterations(void) {
    for (int32_t k = 1; k <= gpu_effort(5); k++)
        compare_cases((lplb_ipm_options){.iterations = k, .step = 0.9}, 32, 2, 2);
    compare_cases((lplb_ipm_options){.iterations = 4}, 16, 2, 2);
}

/* More ranks in one component than any case of the table that is not too large. */
static void test_large_component(void) {
    const plan_case shape = {.name = "random100",
                             .shape = SHAPE_RANDOM,
                             .ranks = 100,
                             .experts = 300,
                             .max_copies = 3,
                             .sigma = 1,
                             .mean_tokens = 500,
                             .fixed = 1};
    compare_case(&shape, (lplb_ipm_options){.iterations = gpu_effort(30)}, 1, 1);
    compare_case(find_plan_case("eplb64"), (lplb_ipm_options){.iterations = gpu_effort(30)}, 1, 1);
}

static void test_random(void) {
    static const int64_t sizes[] = {40, 5000, INT64_C(1) << 29, INT64_C(1) << 40, LPLB_MAX_TOKENS};
    lplb_ipm_options options = {0};
    for (int k = 0; k < gpu_effort(1000); k++) {
        plan_instance instance;
        both b;
        instance_random((uint64_t)k, sizes[k % 5], &instance);
        both_create(&instance, &options, &b);
        compare(&b, &instance, &options, "random", (uint64_t)k);
        both_destroy(&b);
        instance_destroy(&instance);
    }
}

/* ---- whole steps ---- */

enum { STEP_IDS = 6000 };

/* Random ids, a few of them none. */
static void draw_ids(int64_t *ids, int32_t experts, uint64_t seed) {
    lplb__rng rng;
    lplb__rng_seed(&rng, seed, 2);
    for (int i = 0; i < STEP_IDS; i++) {
        double u = lplb__rng_uniform(&rng);
        ids[i] = lplb__rng_below(&rng, 20) == 0 ? -1 : (int64_t)(u * u * (double)experts);
    }
}

/* What dispatch on the CPU makes of the split that the device reports. */
static void check_step(const both *b, const int64_t *ids, const int64_t *device_out,
                       lplb_dispatcher *dispatcher, const char *what) {
    int32_t E = b->placement->experts;
    int64_t *counts = calloc((size_t)E, sizeof *counts);
    int64_t *slots = malloc(STEP_IDS * sizeof *slots), *got = malloc(STEP_IDS * sizeof *got);
    OK(lplb_count_experts(ids, LPLB_INT64, STEP_IDS, E, 1, counts));
    gpu_fetch(b->gpu_split, b->split, b->n, sizeof(int64_t));
    gpu_fetch(got, device_out, STEP_IDS, sizeof(int64_t));
    OK(lplb_dispatch_prepare(dispatcher, counts, b->gpu_split, 0, 0));
    OK(lplb_dispatch_map(dispatcher, ids, LPLB_INT64, STEP_IDS, slots, LPLB_INT64));
    CHECK(memcmp(slots, got, STEP_IDS * sizeof *slots) == 0, "%s: slots differ", what);
    free(counts);
    free(slots);
    free(got);
}

static void run_steps(const char *shape, double tolerance, double reuse) {
    plan_instance instance;
    both b;
    lplb_ipm_options options = {0};
    lplb_dispatcher *dispatcher;
    lplb_cuda_planner *planner = NULL;
    cudaStream_t stream = gpu_stream(), side;
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    CUDA(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking));
    instance_create(find_plan_case(shape), 3, &instance);
    both_create(&instance, &options, &b);
    OK(lplb_dispatcher_create(b.placement, 0, 1, NULL, NULL, 1, &dispatcher));
    lplb_cuda_config config = {.struct_size = sizeof config,
                               .placement = b.placement,
                               .solver = LPLB_SOLVER_IPM,
                               .tolerance = tolerance,
                               .reuse = reuse,
                               .max_ids = STEP_IDS};
    OK(lplb_cuda_planner_create(&config, &planner));
    int64_t *ids = malloc(STEP_IDS * sizeof *ids);
    int64_t *device_ids = gpu_copy(NULL, STEP_IDS, 8), *out = gpu_copy(NULL, STEP_IDS, 8);
    int64_t *counts = gpu_copy(NULL, b.placement->experts, 8);
    lplb_cuda_ids arguments = {.struct_size = sizeof arguments,
                               .ids = device_ids,
                               .ids_dtype = LPLB_INT64,
                               .out = out,
                               .out_dtype = LPLB_INT64,
                               .n = STEP_IDS};
    lplb_cuda_problem problem = {
        .struct_size = sizeof problem, .counts = counts, .split = b.split, .loads = b.loads};
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    OK(lplb_cuda_run(planner, &arguments, &problem, stream));
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    for (uint64_t k = 0; k < 4; k++) {
        lplb_cuda_report report;
        draw_ids(ids, b.placement->experts, reuse > 0 ? k / 2 : k);
        gpu_put(device_ids, ids, STEP_IDS, 8);
        if (k < 3) {
            CUDA(cudaGraphLaunch(exec, stream));
        } else {
            OK(lplb_cuda_start(planner, &arguments, &problem, stream, side));
            OK(lplb_cuda_join(planner, stream));
            OK(lplb_cuda_map(planner, &arguments, counts, b.split, stream));
        }
        OK(lplb_cuda_report_read(planner, stream, &report));
        OK(lplb_cuda_report_status(&report));
        check_step(&b, ids, out, dispatcher, shape);
        CHECK(report.steps == k + 1, "%llu steps", (unsigned long long)report.steps);
        bool reused = reuse > 0 && k % 2, even = tolerance > 0;
        CHECK(report.reused == reused, "%s: batch %d reused %d", shape, (int)k, report.reused);
        CHECK((report.outcome == LPLB_OUTCOME_WITHIN_TOLERANCE) == even, "%s: outcome %d", shape,
              report.outcome);
    }
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaStreamDestroy(side));
    void *device[] = {device_ids, out, counts};
    for (int i = 0; i < 3; i++) gpu_free(device[i]);
    free(ids);
    lplb_cuda_planner_destroy(planner);
    lplb_dispatcher_destroy(dispatcher);
    both_destroy(&b);
    instance_destroy(&instance);
}

static void test_steps(void) {
    run_steps("cube4groups", 0, 0);
    run_steps("eplb32", 0, 0);
    run_steps("cube8x2", 0, 0.01);
    run_steps("cube8x2", 1000, 0);
}

/* ---- refusals ---- */

static void expect_refusal(const plan_case *shape, lplb_ipm_options options, lplb_status expected) {
    plan_instance instance;
    lplb_cuda_planner *planner = NULL;
    instance_create(shape, 3, &instance);
    lplb_placement *placement = gpu_placement(&instance.hosts, 0);
    lplb_cuda_config config = {.struct_size = sizeof config,
                               .placement = placement,
                               .solver = LPLB_SOLVER_IPM,
                               .ipm = options};
    lplb_status status = lplb_cuda_planner_create(&config, &planner);
    CHECK(status == expected && !planner, "%s: %s", shape->name, lplb_status_name(status));
    lplb_placement_destroy(placement);
    instance_destroy(&instance);
}

static void test_refusals(void) {
    expect_refusal(find_plan_case("eplb320"), (lplb_ipm_options){0}, LPLB_UNSUPPORTED);
    expect_refusal(find_plan_case("cube8x2"), (lplb_ipm_options){.step = 1}, LPLB_RANGE);
    expect_refusal(find_plan_case("cube8x2"), (lplb_ipm_options){.published = 1, .step = 0.5},
                   LPLB_INVALID);
}

int main(int argc, char **argv) {
    const gpu_test tests[] = {{"converged_cases", test_converged_cases},
                              {"published_cases", test_published_cases},
                              {"published_components", test_published_components},
                              {"iterations", test_iterations},
                              {"large_component", test_large_component},
                              {"random", test_random},
                              {"steps", test_steps},
                              {"refusals", test_refusals}};
    return gpu_main(tests, (int)(sizeof tests / sizeof tests[0]), argc, argv);
}
