/* The device's plans against the CPU library's, token by token. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "gpu.h"

/* One placement, planned on both sides. */
typedef struct bench {
    lplb_placement *placement;
    gpu_hosts hosts;
    lplb_planner *cpu;
    lplb_cuda_planner *gpu;
    int64_t *tokens, *fixed, *split, *loads, *counts; /* device */
    int64_t *cpu_split, *cpu_loads, *gpu_split, *gpu_loads;
    int64_t n;
} bench;

static void bench_create(const plan_instance *instance, int32_t twice, lplb_solver solver,
                         double tolerance, bench *b) {
    memset(b, 0, sizeof *b);
    b->placement = gpu_placement(&instance->hosts, twice);
    gpu_hosts_create(b->placement, &b->hosts);
    b->n = b->hosts.offset[b->placement->experts];
    lplb_plan_config cpu = {.struct_size = sizeof cpu,
                            .hosts = b->hosts.hosts,
                            .speed = instance->speed,
                            .solver = solver,
                            .tolerance = tolerance};
    lplb_cuda_config gpu = {.struct_size = sizeof gpu,
                            .placement = b->placement,
                            .speed = instance->speed,
                            .solver = solver,
                            .tolerance = tolerance};
    OK(lplb_planner_create(&cpu, &b->cpu));
    OK(lplb_cuda_planner_create(&gpu, &b->gpu));
    int64_t G = b->placement->ranks;
    b->tokens = gpu_copy(NULL, b->placement->experts, sizeof(int64_t));
    b->fixed = gpu_copy(NULL, G, sizeof(int64_t));
    b->split = gpu_copy(NULL, b->n, sizeof(int64_t));
    b->loads = gpu_copy(NULL, G, sizeof(int64_t));
    b->cpu_split = calloc((size_t)b->n, sizeof(int64_t));
    b->gpu_split = calloc((size_t)b->n, sizeof(int64_t));
    b->cpu_loads = calloc((size_t)G, sizeof(int64_t));
    b->gpu_loads = calloc((size_t)G, sizeof(int64_t));
}

static void bench_destroy(bench *b) {
    void *device[] = {b->tokens, b->fixed, b->split, b->loads};
    for (int i = 0; i < 4; i++) gpu_free(device[i]);
    void *host[] = {b->cpu_split, b->gpu_split, b->cpu_loads, b->gpu_loads};
    for (int i = 0; i < 4; i++) free(host[i]);
    lplb_cuda_planner_destroy(b->gpu);
    lplb_planner_destroy(b->cpu);
    gpu_hosts_destroy(&b->hosts);
    lplb_placement_destroy(b->placement);
}

static void compare_reports(const bench *b, const lplb_plan *plan, const lplb_cuda_report *report,
                            const char *name, uint64_t seed) {
    CHECK(report->error == 0, "%s seed %llu: error %llx", name, (unsigned long long)seed,
          (unsigned long long)report->error);
    CHECK(report->outcome == (int)plan->outcome, "%s seed %llu: outcome %d, expected %d", name,
          (unsigned long long)seed, report->outcome, (int)plan->outcome);
    CHECK(report->max_load == plan->max_load, "%s seed %llu: max load %lld, expected %lld", name,
          (unsigned long long)seed, (long long)report->max_load, (long long)plan->max_load);
    if (plan->outcome != LPLB_OUTCOME_OPTIMAL) return;
    CHECK(report->sweeps == plan->sweeps && report->augmentations == plan->augmentations,
          "%s seed %llu: %d sweeps, %d augmentations, %d restarts; expected %d, %d, %d", name,
          (unsigned long long)seed, report->sweeps, report->augmentations, report->restarts,
          plan->sweeps, plan->augmentations, plan->restarts);
    double bound = (double)report->bound_numerator / (double)report->bound_denominator;
    (void)b;
    CHECK(bound == plan->bound, "%s seed %llu: bound %.17g, expected %.17g", name,
          (unsigned long long)seed, bound, plan->bound);
}

static void compare(bench *b, const plan_instance *instance, const char *name, uint64_t seed) {
    lplb_plan plan = {.split = b->cpu_split, .loads = b->cpu_loads};
    lplb_plan_input input = {.tokens = instance->tokens, .fixed = instance->fixed};
    OK(lplb_plan_solve(b->cpu, &input, &plan));
    gpu_put(b->tokens, instance->tokens, b->placement->experts, sizeof(int64_t));
    if (instance->fixed) gpu_put(b->fixed, instance->fixed, b->placement->ranks, sizeof(int64_t));
    lplb_cuda_problem problem = {.struct_size = sizeof problem,
                                 .source_counts = b->tokens,
                                 .fixed = instance->fixed ? b->fixed : NULL,
                                 .split = b->split,
                                 .loads = b->loads};
    lplb_cuda_report report;
    OK(lplb_cuda_solve(b->gpu, &problem, gpu_stream()));
    OK(lplb_cuda_report_read(b->gpu, gpu_stream(), &report));
    gpu_fetch(b->gpu_split, b->split, b->n, sizeof(int64_t));
    gpu_fetch(b->gpu_loads, b->loads, b->placement->ranks, sizeof(int64_t));
    for (int64_t i = 0; i < b->n; i++)
        if (b->gpu_split[i] != b->cpu_split[i]) {
            CHECK(false, "%s seed %llu: split[%lld] is %lld, expected %lld", name,
                  (unsigned long long)seed, (long long)i, (long long)b->gpu_split[i],
                  (long long)b->cpu_split[i]);
            break;
        }
    CHECK(memcmp(b->cpu_loads, b->gpu_loads, (size_t)b->placement->ranks * sizeof(int64_t)) == 0,
          "%s seed %llu: loads differ", name, (unsigned long long)seed);
    compare_reports(b, &plan, &report, name, seed);
}

static void compare_cases(lplb_solver solver, double tolerance, int placements, int batches) {
    for (int c = 0; c < n_plan_cases; c++)
        for (int k = 0; k < gpu_effort(placements); k++) {
            plan_instance instance;
            bench b;
            uint64_t seed = 100 + (uint64_t)k;
            instance_create(&plan_cases[c], seed, &instance);
            bench_create(&instance, k % 3 == 2 ? 3 : 0, solver, tolerance, &b);
            for (int i = 0; i < gpu_effort(batches); i++) {
                compare(&b, &instance, plan_cases[c].name, seed * 1000 + (uint64_t)i);
                instance_redraw(&plan_cases[c], seed * 1000 + (uint64_t)i + 1, &instance);
            }
            bench_destroy(&b);
            instance_destroy(&instance);
        }
}

/* What a launch may ask for is of the kernel, not of a planner: a small planner must not take it
 * from a large one. */
static void test_small_after_large(void) {
    enum { LARGE = 0, SMALL = 1, EXPERTS = 1024 };
    const int32_t experts[] = {EXPERTS, 8}, ranks[] = {64, 8};
    lplb_placement *placement[2];
    lplb_cuda_planner *planner[2];
    for (int i = LARGE; i <= SMALL; i++) {
        int32_t slots = experts[i] + ranks[i];
        OK(lplb_placement_create(1, experts[i], slots, ranks[i], NULL, &placement[i]));
        for (int32_t p = 0; p < slots; p++) placement[i]->physical_to_logical[p] = p % experts[i];
        lplb_cuda_config config = {
            .struct_size = sizeof config, .placement = placement[i], .max_ids = 16};
        OK(lplb_cuda_planner_create(&config, &planner[i]));
    }
    int64_t *counts = gpu_copy(NULL, EXPERTS, sizeof(int64_t));
    lplb_cuda_problem problem = {.struct_size = sizeof problem, .source_counts = counts};
    for (int i = LARGE; i <= SMALL; i++) OK(lplb_cuda_solve(planner[i], &problem, gpu_stream()));
    CUDA(cudaStreamSynchronize(gpu_stream()));
    gpu_free(counts);
    for (int i = LARGE; i <= SMALL; i++) {
        lplb_cuda_planner_destroy(planner[i]);
        lplb_placement_destroy(placement[i]);
    }
}

static void test_exact_cases(void) { compare_cases(LPLB_SOLVER_EXACT, 0, 4, 25); }
static void test_even_cases(void) { compare_cases(LPLB_SOLVER_EVEN, 0, 2, 3); }
static void test_tolerance_cases(void) {
    compare_cases(LPLB_SOLVER_EXACT, 1.3, 2, 5);
    compare_cases(LPLB_SOLVER_EVEN, 1.3, 1, 2);
}

static void test_exact_random(void) {
    static const int64_t sizes[] = {40, 5000, INT64_C(1) << 29, INT64_C(1) << 40, LPLB_MAX_TOKENS};
    for (int k = 0; k < gpu_effort(1000); k++) {
        plan_instance instance;
        bench b;
        instance_random((uint64_t)k, sizes[k % 5], &instance);
        bench_create(&instance, k % 4, LPLB_SOLVER_EXACT, 0, &b);
        compare(&b, &instance, "random", (uint64_t)k);
        bench_destroy(&b);
        instance_destroy(&instance);
    }
}

int main(int argc, char **argv) {
    const gpu_test tests[] = {{"small_after_large", test_small_after_large},
                              {"exact_cases", test_exact_cases},
                              {"exact_random", test_exact_random},
                              {"even_cases", test_even_cases},
                              {"tolerance_cases", test_tolerance_cases}};
    return gpu_main(tests, (int)(sizeof tests / sizeof tests[0]), argc, argv);
}
