/* How long plan and whole steps take on a GPU, beside floors of the same run: what the launch, the
 * reading and writing of the ids, and their counting cost at least.
 *
 * Every figure is of graph replays: a graph of CHAIN steps, one after another, replayed REPLAYS
 * times; the median replay divided by CHAIN. Plans are measured on BATCHES fresh batches each, of
 * which the median and the 90th percentile are given. `--json` prints one document. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "cuda/step.h"
#include "floors.h"
#include "tests/cuda/gpu.h"

enum { CHAIN = 20, REPLAYS = 15, BATCHES = 31, STEP_BATCHES = 9 };

static int json, rows_printed;

static int compare_double(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double percentile(double *values, int n, double p) {
    qsort(values, (size_t)n, sizeof *values, compare_double);
    int i = (int)ceil(p * n) - 1;
    return values[i < 0 ? 0 : i];
}

/* p90 = 0: there is one figure only; target 0: none. */
static void print_row(const char *name, double us, double p90, double target, const char *more) {
    if (json)
        printf("%s\n{\"name\":\"%s\",\"us\":%.3f,\"p90_us\":%.3f,\"target_us\":%g,\"note\":\"%s\"}",
               rows_printed++ ? "," : "[", name, us, p90, target, more);
    else printf("%-46s %8.2f %8.2f %8.1f  %s\n", name, us, p90, target, more);
    fflush(stdout);
}

/* ---- graphs ---- */

typedef void body(void *context, cudaStream_t stream);

static double time_graph(body *work, void *context) {
    cudaStream_t stream = gpu_stream();
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t begin, end;
    double us[REPLAYS];
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < CHAIN; i++) work(context, stream);
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CUDA(cudaEventCreate(&begin));
    CUDA(cudaEventCreate(&end));
    for (int i = -2; i < REPLAYS; i++) {
        float ms;
        CUDA(cudaEventRecord(begin, stream));
        CUDA(cudaGraphLaunch(exec, stream));
        CUDA(cudaEventRecord(end, stream));
        CUDA(cudaStreamSynchronize(stream));
        CUDA(cudaEventElapsedTime(&ms, begin, end));
        if (i >= 0) us[i] = (double)ms * 1e3 / CHAIN;
    }
    CUDA(cudaEventDestroy(begin));
    CUDA(cudaEventDestroy(end));
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    return percentile(us, REPLAYS, 0.5);
}

/* ---- where the time goes: only in a build with LPLB_CUDA_STAMPS ---- */

#ifdef LPLB_CUDA_STAMPS
static void print_stamps(const lplb_cuda_planner *planner, const char *name) {
    static const char *const stages[] = {"begin",       "count", "share", "totals",
                                         "plan|number", "wait",  "ways",  "map|results"};
    lplb__cuda_memory memory;
    gpu_fetch(&memory, lplb_cuda_report_address(planner), 1, sizeof memory);
    for (int role = 0; role < 2; role++) {
        printf("  %s, cycles of %s:", name, role ? "the first id warp" : "the first planning warp");
        int64_t last = memory.stamp[role][0];
        for (int i = 1; i <= 8; i++) {
            if (memory.stamp[role][i] < last) continue; /* not passed in this step */
            printf(" %s %lld", stages[i - 1], (long long)(memory.stamp[role][i] - last));
            last = memory.stamp[role][i];
        }
        printf("\n");
    }
}
#else
#define print_stamps(planner, name) ((void)0)
#endif

/* ---- floors ---- */

typedef struct floor_case {
    int kind, blocks, cluster, threads;
    size_t shared_bytes;
    int64_t n;
    int64_t *in, *out;
    uint32_t *count;
} floor_case;

static void floor_body(void *context, cudaStream_t stream) {
    floor_case *f = context;
    switch (f->kind) {
    case 0: floor_empty(f->blocks, f->cluster, f->threads, f->shared_bytes, stream); break;
    case 1: floor_cluster_barriers(2, f->cluster, f->threads, stream); break;
    case 2: floor_copy(f->in, f->out, f->n, stream); break;
    default: floor_histogram(f->in, f->n, 256, f->count, stream); break;
    }
}

static void random_ids(int64_t *ids, int64_t n, int32_t experts, uint64_t seed) {
    lplb__rng rng;
    double *weight = malloc((size_t)experts * sizeof *weight), sum = 0;
    lplb__rng_seed(&rng, seed, 1);
    for (int32_t e = 0; e < experts; e++) sum += weight[e] = exp(0.7 * lplb__rng_normal(&rng));
    for (int64_t i = 0; i < n; i++) {
        double u = lplb__rng_uniform(&rng) * sum;
        int32_t e = 0;
        while (e < experts - 1 && (u -= weight[e]) > 0) e++;
        ids[i] = e;
    }
    free(weight);
}

static double copy_floor(int64_t n) {
    floor_case f = {.kind = 2, .n = n};
    f.in = gpu_copy(NULL, n, 8);
    f.out = gpu_copy(NULL, n, 8);
    double us = time_graph(floor_body, &f);
    gpu_free(f.in);
    gpu_free(f.out);
    return us;
}

static void print_floors(void) {
    floor_case launches[] = {{0, 1, 1, 1024, 150 << 10, 0, NULL, NULL, NULL},
                             {0, 16, 16, 1024, 150 << 10, 0, NULL, NULL, NULL},
                             {0, 120, 8, 1024, 150 << 10, 0, NULL, NULL, NULL},
                             {1, 16, 16, 1024, 0, 0, NULL, NULL, NULL}};
    const char *names[] = {"floor: launch of 1 block", "floor: launch of a cluster of 16",
                           "floor: launch of 15 clusters of 8",
                           "floor: a cluster of 16, 2 barriers"};
    for (int i = 0; i < 4; i++) print_row(names[i], time_graph(floor_body, &launches[i]), 0, 0, "");
    for (int64_t n = 65536; n <= 1 << 20; n *= 16) {
        char name[100];
        int64_t *ids = malloc((size_t)n * 8);
        random_ids(ids, n, 256, 1);
        floor_case f = {.kind = 3, .n = n};
        f.in = gpu_copy(ids, n, 8);
        f.count = gpu_copy(NULL, 256, 4);
        snprintf(name, sizeof name, "floor: histogram of %lld int64 ids", (long long)n);
        print_row(name, time_graph(floor_body, &f), 0, 0, "");
        snprintf(name, sizeof name, "floor: copy of %lld int64 ids", (long long)n);
        print_row(name, copy_floor(n), 0, 0, "");
        gpu_free(f.in);
        gpu_free(f.count);
        free(ids);
    }
}

/* ---- plans ---- */

typedef struct solve_case {
    lplb_cuda_planner *planner;
    lplb_cuda_problem problem;
} solve_case;

static void solve_body(void *context, cudaStream_t stream) {
    solve_case *s = context;
    OK(lplb_cuda_solve(s->planner, &s->problem, stream));
}

/* What a plan's objective before rounding and its fullest rank have above the optimum. */
typedef struct ipm_gap {
    double objective;
    int64_t tokens;
} ipm_gap;

static void widen_gap(ipm_gap *gap, const plan_instance *instance, const lplb_cuda_report *report) {
    lplb_bound bound;
    lplb_plan_input input = {.tokens = instance->tokens};
    OK(lplb_plan_bound(&instance->hosts, NULL, &input, &bound, NULL));
    double best = (double)bound.fractional.numerator / (double)bound.fractional.denominator;
    gap->objective = fmax(gap->objective, report->ipm_objective / best - 1);
    if (report->max_load - bound.integer_bound > gap->tokens)
        gap->tokens = report->max_load - bound.integer_bound;
}

static void bench_solve(const char *name, lplb_solver solver, lplb_ipm_options ipm, double target) {
    const plan_case *shape = find_plan_case(name);
    plan_instance instance;
    solve_case s = {.problem = {.struct_size = sizeof s.problem}};
    instance_create(shape, 1, &instance);
    lplb_placement *placement = gpu_placement(&instance.hosts, 0);
    lplb_cuda_config config = {
        .struct_size = sizeof config, .placement = placement, .solver = solver, .ipm = ipm};
    OK(lplb_cuda_planner_create(&config, &s.planner));
    int64_t hosts = instance.hosts.offset[shape->experts];
    int64_t *tokens = gpu_copy(NULL, shape->experts, 8);
    s.problem.source_counts = tokens;
    s.problem.split = gpu_copy(NULL, hosts, 8);
    double us[BATCHES], sweeps[BATCHES], moves[BATCHES];
    ipm_gap gap = {0, 0};
    for (int b = 0; b < BATCHES; b++) {
        lplb_cuda_report report;
        instance_redraw(shape, (uint64_t)b + 2, &instance);
        gpu_put(tokens, instance.tokens, shape->experts, 8);
        us[b] = time_graph(solve_body, &s);
        OK(lplb_cuda_report_read(s.planner, gpu_stream(), &report));
        sweeps[b] = report.sweeps;
        moves[b] = report.augmentations;
        if (solver == LPLB_SOLVER_IPM) widen_gap(&gap, &instance, &report);
    }
    double p50 = percentile(us, BATCHES, 0.5), p90 = percentile(us, BATCHES, 0.9);
    char label[100], more[100];
    snprintf(label, sizeof label, "%s%s %s", lplb_solver_name(solver),
             ipm.published ? ":published" : "", name);
    snprintf(more, sizeof more, "%g sweeps, %g moves, %lld bytes", percentile(sweeps, BATCHES, 0.5),
             percentile(moves, BATCHES, 0.5), (long long)lplb_cuda_planner_bytes(s.planner));
    if (solver == LPLB_SOLVER_IPM)
        snprintf(more, sizeof more, "%g iterations, at most %.1e above the optimum, %lld tokens",
                 percentile(sweeps, BATCHES, 0.5), gap.objective, (long long)gap.tokens);
    print_row(label, p50, p90, target, more);
    print_stamps(s.planner, name);
    gpu_free(tokens);
    gpu_free(s.problem.split);
    lplb_cuda_planner_destroy(s.planner);
    lplb_placement_destroy(placement);
    instance_destroy(&instance);
}

/* ---- steps ---- */

typedef struct step_case {
    lplb_cuda_planner *planner;
    lplb_cuda_problem problem;
    lplb_cuda_ids ids;
} step_case;

static void step_body(void *context, cudaStream_t stream) {
    step_case *s = context;
    OK(lplb_cuda_run(s->planner, &s->ids, &s->problem, stream));
}

/* ranks in groups of a cube, or of a ring where there are fewer than 8; experts spread evenly, two
 * redundant slots a rank, or one in a ring. */
static lplb_placement *cube_placement(int32_t experts, int32_t ranks) {
    lplb_topology *topology = NULL;
    lplb_placement *placement = NULL;
    int32_t redundant = ranks % 8 == 0 ? 2 : 1;
    int64_t *load = malloc((size_t)experts * sizeof *load);
    for (int32_t e = 0; e < experts; e++) load[e] = 1 + e % 7;
    OK(lplb_topology_create(redundant == 2 ? "cube" : "ring", ranks, redundant, &topology));
    lplb_place_config config = {.struct_size = sizeof config,
                                .algorithm = LPLB_PLACE_TOPOLOGY,
                                .ranks = ranks,
                                .slots = experts + ranks * redundant,
                                .topology = topology};
    OK(lplb_place(&config, load, 1, 1, experts, NULL, &placement));
    lplb_topology_destroy(topology);
    free(load);
    return placement;
}

static void bench_step(const char *name, int64_t tokens, int32_t topk, int32_t experts,
                       int32_t ranks, int32_t n_sms, double target) {
    int64_t n = tokens * topk, *ids = malloc((size_t)n * 8);
    lplb_placement *placement = cube_placement(experts, ranks);
    step_case s = {.problem = {.struct_size = sizeof s.problem}};
    lplb_cuda_config config = {
        .struct_size = sizeof config, .placement = placement, .max_ids = n, .n_sms = n_sms};
    OK(lplb_cuda_planner_create(&config, &s.planner));
    s.ids = (lplb_cuda_ids){.struct_size = sizeof s.ids,
                            .ids = gpu_copy(NULL, n, 8),
                            .ids_dtype = LPLB_INT64,
                            .out = gpu_copy(NULL, n, 8),
                            .out_dtype = LPLB_INT64,
                            .n = n};
    double us[STEP_BATCHES];
    for (int b = 0; b < STEP_BATCHES; b++) {
        random_ids(ids, n, experts, (uint64_t)b + 1);
        gpu_put((void *)s.ids.ids, ids, n, 8);
        us[b] = time_graph(step_body, &s);
    }
    lplb_cuda_report report;
    OK(lplb_cuda_report_read(s.planner, gpu_stream(), &report));
    OK(lplb_cuda_report_status(&report));
    char more[100];
    double p50 = percentile(us, STEP_BATCHES, 0.5);
    snprintf(more, sizeof more, "%.1f M tokens/s, %lld bytes", (double)tokens / p50,
             (long long)lplb_cuda_planner_bytes(s.planner));
    print_row(name, p50, percentile(us, STEP_BATCHES, 0.9), target, more);
    print_stamps(s.planner, name);
    gpu_free((void *)s.ids.ids);
    gpu_free(s.ids.out);
    lplb_cuda_planner_destroy(s.planner);
    lplb_placement_destroy(placement);
    free(ids);
}

/* One rank's step of 32 whose counts were gathered; with locality, in nodes of 8. */
static void bench_sources(int32_t locality) {
    enum { RANKS = 32, EXPERTS = 256, IDS = 8192 };
    int32_t node[RANKS];
    int64_t *ids = malloc(IDS * 8), *counts = malloc(RANKS * EXPERTS * 8);
    lplb_placement *placement = cube_placement(EXPERTS, RANKS);
    step_case s = {.problem = {.struct_size = sizeof s.problem}};
    for (int r = 0; r < RANKS; r++) node[r] = r / 8;
    lplb_cuda_config config = {.struct_size = sizeof config,
                               .placement = placement,
                               .sources = RANKS,
                               .node = node,
                               .locality = locality,
                               .max_ids = IDS};
    OK(lplb_cuda_planner_create(&config, &s.planner));
    s.ids = (lplb_cuda_ids){.struct_size = sizeof s.ids,
                            .ids = gpu_copy(NULL, IDS, 8),
                            .ids_dtype = LPLB_INT64,
                            .out = gpu_copy(NULL, IDS, 8),
                            .out_dtype = LPLB_INT64,
                            .n = IDS,
                            .source = RANKS / 2};
    s.problem.source_counts = gpu_copy(NULL, RANKS * EXPERTS, 8);
    double us[STEP_BATCHES];
    for (int b = 0; b < STEP_BATCHES; b++) {
        for (int r = 0; r < RANKS; r++) {
            random_ids(ids, IDS, EXPERTS, (uint64_t)(b * RANKS + r));
            OK(lplb_count_experts(ids, LPLB_INT64, IDS, EXPERTS, 1, counts + r * EXPERTS));
            if (r == s.ids.source) gpu_put((void *)s.ids.ids, ids, IDS, 8);
        }
        gpu_put((void *)s.problem.source_counts, counts, RANKS * EXPERTS, 8);
        us[b] = time_graph(step_body, &s);
    }
    lplb_cuda_report report;
    OK(lplb_cuda_report_read(s.planner, gpu_stream(), &report));
    OK(lplb_cuda_report_status(&report));
    print_row(
        locality ? "step 1024 x top-8, 32 sources, locality" : "step 1024 x top-8, 32 sources",
        percentile(us, STEP_BATCHES, 0.5), percentile(us, STEP_BATCHES, 0.9), 0, "of one source");
    gpu_free((void *)s.ids.ids);
    gpu_free(s.ids.out);
    gpu_free((void *)s.problem.source_counts);
    lplb_cuda_planner_destroy(s.planner);
    lplb_placement_destroy(placement);
    free(ids);
    free(counts);
}

int main(int argc, char **argv) {
    json = argc > 1 && strcmp(argv[1], "--json") == 0;
    if (!json) printf("%-46s %8s %8s %8s\n", "microseconds", "median", "p90", "target");
    print_floors();
    static const struct {
        const char *name;
        double target;
    } plans[] = {{"cube4groups", 3}, {"cube8x2", 0}, {"hypercube16x2", 6}, {"torus4x8", 0},
                 {"eplb32", 0},      {"eplb64", 40}, {"eplb320", 300}};
    const lplb_ipm_options none = {0}, published = {.published = 1};
    for (int i = 0; i < 7; i++)
        bench_solve(plans[i].name, LPLB_SOLVER_EXACT, none, plans[i].target);
    for (int i = 0; i < 6; i++) bench_solve(plans[i].name, LPLB_SOLVER_IPM, none, 0);
    for (int i = 0; i < 3; i++) bench_solve(plans[i].name, LPLB_SOLVER_IPM, published, 0);
    bench_solve("cube4groups", LPLB_SOLVER_EVEN, none, 0);
    bench_step("step 8192 x top-8, 256 experts, 4 cubes", 8192, 8, 256, 32, 0, 10);
    bench_step("step 131072 x top-8, 256 experts, 4 cubes", 131072, 8, 256, 32, 0,
               2 * copy_floor(1 << 20) + 8);
    bench_step("step 512 x top-2, 16 experts, 8 ranks", 512, 2, 16, 8, 0, 7);
    bench_step("step 256 x top-2, 16 experts, 8 ranks", 256, 2, 16, 8, 0, 0);
    bench_step("step 512 x top-2, 32 experts, 8 ranks", 512, 2, 32, 8, 0, 0);
    bench_step("step 1024 x top-4, 64 experts, 8 ranks", 1024, 4, 64, 8, 0, 0);
    bench_step("step 128 x top-8, 256 experts, 4 cubes", 128, 8, 256, 32, 0, 0);
    bench_step("step 8192 x top-8, 4 SMs", 8192, 8, 256, 32, 4, 0);
    for (int32_t locality = 0; locality < 2; locality++) bench_sources(locality);
    if (json) printf("]\n");
    return 0;
}
