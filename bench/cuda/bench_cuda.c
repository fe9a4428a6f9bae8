/* How long plan and whole steps take on a GPU, beside floors of the same run: what the launch, the
 * reading and writing of the ids, and their counting cost at least.
 *
 * Every figure is of graph replays: a graph of CHAIN steps, one after another, replayed REPLAYS
 * times; the median replay divided by CHAIN. Plans are measured on BATCHES fresh batches each, of
 * which the median and the 90th percentile are given. The floor of a plan is the launch of a block,
 * that of a step a copy of its ids, launch included, or where they are few the launch. `--json`
 * prints one document; a text leaves out the rows that do not have it in their names, floors and
 * several sources apart. */
#include <lplb/trace.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "cuda/step.h"
#include "floors.h"
#include "gpu.h"

enum { CHAIN = 20, REPLAYS = 15, BATCHES = 31, STEP_BATCHES = 9 };

static int json, rows_printed;
static const char *only = ""; /* rows that have it in their names */

static int wanted(const char *name) { return strstr(name, only) != NULL; }

static int compare_double(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double percentile(double *values, int n, double p) {
    qsort(values, (size_t)n, sizeof *values, compare_double);
    int i = (int)ceil(p * n) - 1;
    return values[i < 0 ? 0 : i];
}

/* One result; p90, goal, floor = 0: there is none. */
static void print_row(const char *name, double us, double p90, double goal, double floor,
                      const char *more) {
    double ratio = floor > 0 ? us / floor : 0;
    if (json)
        printf("%s\n{\"name\":\"%s\",\"us\":%.3f,\"p90_us\":%.3f,\"goal_us\":%.3g,"
               "\"floor_us\":%.3f,\"ratio\":%.3f,\"note\":\"%s\"}",
               rows_printed++ ? "," : "[", name, us, p90, goal, floor, ratio, more);
    else
        printf("%-44s %8.2f %8.2f %8.1f %8.2f %7.2f  %s\n", name, us, p90, goal, floor, ratio,
               more);
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
/* Of each stage: cycles in the first block, and the most in any. */
static void print_stamps(const lplb_cuda_planner *planner, const char *name) {
    enum { BLOCKS = LPLB__CUDA_MAX_BLOCKS, POINTS = 10 };
    static const char *const stages[POINTS - 1] = {"begin|number", "wait",   "hand over",
                                                   "share",        "totals", "plan",
                                                   "wait",         "ways",   "map|results"};
    static lplb__cuda_memory memory;
    gpu_fetch(&memory, lplb_cuda_report_address(planner), 1, sizeof memory);
    for (int role = 0; role < 2; role++) {
        printf("  %s, cycles of %s:", name, role ? "the first id warp" : "the first planning warp");
        for (int i = 1; i < POINTS; i++) {
            int64_t first = 0, most = 0;
            for (int b = 0; b < BLOCKS; b++) {
                const int64_t *stamp = memory.stamp[b][role];
                int before = i - 1;
                while (before > 0 && stamp[before] < stamp[0]) before--;
                int64_t took = stamp[i] - stamp[before]; /* < 0: not passed in this step */
                if (b == 0) first = took;
                if (took > most) most = took;
            }
            if (first > 0)
                printf(" %s %lld-%lld", stages[i - 1], (long long)first, (long long)most);
        }
        printf("\n");
    }
}
#else
#define print_stamps(planner, name) ((void)0)
#endif

/* ---- floors ---- */

typedef enum floor_kind { LAUNCH, CLUSTER_BARRIERS, GRID_BARRIERS, COPY, HISTOGRAM } floor_kind;

typedef struct floor_case {
    floor_kind kind;
    int blocks, cluster; /* COPY, HISTOGRAM: unused */
    int64_t n;           /* ids, or barriers */
    int64_t *in, *out;
    uint32_t *count;
} floor_case;

enum { FLOOR_THREADS = 640, FLOOR_SHARED_BYTES = 150 << 10, FLOOR_EXPERTS = 256 };

static void floor_body(void *context, cudaStream_t stream) {
    floor_case *f = context;
    switch (f->kind) {
    case LAUNCH:
        floor_empty(f->blocks, f->cluster, FLOOR_THREADS, FLOOR_SHARED_BYTES, stream);
        break;
    case CLUSTER_BARRIERS:
        floor_cluster_barriers((int)f->n, f->cluster, FLOOR_THREADS, stream);
        break;
    case GRID_BARRIERS:
        floor_grid_barriers((int)f->n, f->blocks, FLOOR_THREADS, f->count, stream);
        break;
    case COPY: floor_copy(f->in, f->out, f->n, stream); break;
    case HISTOGRAM: floor_histogram(f->in, f->n, FLOOR_EXPERTS, f->count, stream); break;
    }
}

/* Ids of lognormal popularity, sigma 0.7. */
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

static double time_floor(floor_case f) {
    int64_t ids = f.kind >= COPY ? f.n : 0;
    int64_t *from = malloc((size_t)ids * 8 + 1);
    random_ids(from, ids, FLOOR_EXPERTS, 1);
    f.in = gpu_copy(from, ids, 8);
    f.out = gpu_copy(NULL, ids, 8);
    f.count = gpu_copy(NULL, FLOOR_EXPERTS, 4);
    double us = time_graph(floor_body, &f);
    gpu_free(f.in);
    gpu_free(f.out);
    gpu_free(f.count);
    free(from);
    return us;
}

static double launch_floor, copy_64k, copy_1m;

static void print_floors(void) {
    static const floor_case none;
    floor_case f = none;
    f.blocks = f.cluster = 1;
    launch_floor = time_floor(f);
    print_row("floor: launch of a block", launch_floor, 0, 0, 0, "640 threads, 150 KB shared");
    f.blocks = f.cluster = 16;
    print_row("floor: launch of a cluster of 16", time_floor(f), 0, 0, 0, "");
    f.blocks = 120, f.cluster = 8;
    print_row("floor: launch of 15 clusters of 8", time_floor(f), 0, 0, 0, "");
    f = (floor_case){.kind = CLUSTER_BARRIERS, .cluster = 16, .n = 10};
    double ten = time_floor(f);
    f.n = 0;
    print_row("floor: barrier of a cluster of 16", (ten - time_floor(f)) / 10, 0, 0, 0, "");
    f = (floor_case){.kind = GRID_BARRIERS, .blocks = 120, .n = 10};
    ten = time_floor(f);
    f.n = 0;
    print_row("floor: barrier of a grid of 120 blocks", (ten - time_floor(f)) / 10, 0, 0, 0, "");
    for (int64_t n = 65536; n <= 1 << 20; n *= 16) {
        char name[100];
        snprintf(name, sizeof name, "floor: histogram of %lld int64 ids", (long long)n);
        print_row(name, time_floor((floor_case){.kind = HISTOGRAM, .n = n}), 0, 0, 0,
                  "launch included");
        snprintf(name, sizeof name, "floor: copy of %lld int64 ids", (long long)n);
        double us = time_floor((floor_case){.kind = COPY, .n = n});
        print_row(name, us, 0, 0, 0, "launch included");
        if (n == 65536) copy_64k = us;
        else copy_1m = us;
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

static const lplb_ipm_options no_options;

typedef struct drawn_batches {
    const plan_case *shape; /* or NULL: */
    const double *weight;   /* [E] batches are drawn from, and their */
    int64_t selections;
    plan_instance *instance; /* its tokens take the batch */
} drawn_batches;

static void draw_batch(const drawn_batches *d, uint64_t seed) {
    lplb__rng rng;
    if (d->shape) {
        instance_redraw(d->shape, seed, d->instance);
        return;
    }
    lplb__rng_seed(&rng, seed, 0);
    lplb__rng_multinomial(&rng, d->selections, d->weight, d->instance->hosts.experts,
                          d->instance->tokens);
}

/* Fresh batches, each timed. */
static void time_batches(const char *label, lplb_solver solver, lplb_ipm_options ipm,
                         const lplb_placement *placement, int64_t hosts, const drawn_batches *drawn,
                         double goal) {
    if (!wanted(label)) return;
    solve_case s = {.problem = {.struct_size = sizeof s.problem}};
    lplb_cuda_config config = {
        .struct_size = sizeof config, .placement = placement, .solver = solver, .ipm = ipm};
    if (lplb_cuda_planner_create(&config, &s.planner) != LPLB_OK) {
        fprintf(stderr, "%s: left out: %s\n", label, lplb_error_message());
        return;
    }
    int64_t *tokens = gpu_copy(NULL, placement->experts, 8);
    s.problem.source_counts = tokens;
    s.problem.split = gpu_copy(NULL, hosts, 8);
    double us[BATCHES], sweeps[BATCHES], moves[BATCHES];
    ipm_gap gap = {0, 0};
    for (int b = 0; b < BATCHES; b++) {
        lplb_cuda_report report;
        draw_batch(drawn, (uint64_t)b + 2);
        gpu_put(tokens, drawn->instance->tokens, placement->experts, 8);
        us[b] = time_graph(solve_body, &s);
        OK(lplb_cuda_report_read(s.planner, gpu_stream(), &report));
        sweeps[b] = report.sweeps;
        moves[b] = report.augmentations;
        if (solver == LPLB_SOLVER_IPM) widen_gap(&gap, drawn->instance, &report);
    }
    double p50 = percentile(us, BATCHES, 0.5), p90 = percentile(us, BATCHES, 0.9);
    char more[100];
    long long bytes = (long long)lplb_cuda_planner_bytes(s.planner);
    if (solver == LPLB_SOLVER_IPM)
        snprintf(more, sizeof more, "%g iterations, %.1e and %lld tokens above, %lld bytes",
                 percentile(sweeps, BATCHES, 0.5), gap.objective, (long long)gap.tokens, bytes);
    else
        snprintf(more, sizeof more, "%g sweeps, %g moves, %lld bytes",
                 percentile(sweeps, BATCHES, 0.5), percentile(moves, BATCHES, 0.5), bytes);
    print_row(label, p50, p90, goal, launch_floor, more);
    print_stamps(s.planner, label);
    gpu_free(tokens);
    gpu_free(s.problem.split);
    lplb_cuda_planner_destroy(s.planner);
}

static void bench_solve(const char *name, lplb_solver solver, lplb_ipm_options ipm, double goal) {
    plan_instance instance;
    drawn_batches drawn = {.shape = find_plan_case(name), .instance = &instance};
    char label[100];
    instance_create(drawn.shape, 1, &instance);
    lplb_placement *placement = gpu_placement(&instance.hosts, 0);
    snprintf(label, sizeof label, "%s%s %s", lplb_solver_name(solver),
             ipm.published ? ":published" : "", name);
    time_batches(label, solver, ipm, placement, instance.hosts.offset[instance.hosts.experts],
                 &drawn, goal);
    lplb_placement_destroy(placement);
    instance_destroy(&instance);
}

/* EPLB's placement of a layer of DeepSeek-V3 on 64 ranks, 320 slots, for one recorded workload, and
 * batches drawn from the same. Without the recordings the row is left out. */
static void bench_deepseek(lplb_solver solver, double goal) {
    enum { LAYER = 30, SELECTIONS = 131072, RANKS = 64, SLOTS = 320 };
    char path[4096], label[100];
    lplb_trace *trace = NULL;
    lplb_placement *placement = NULL;
    plan_instance instance = {0};
    gpu_hosts hosts;
    if (!getenv("LPLB_DATA")) return;
    snprintf(path, sizeof path, "%s/deepseek_v3/decode_in2000out100.json", getenv("LPLB_DATA"));
    OK(lplb_trace_read(path, NULL, &trace));
    if (!trace) return;
    int32_t E = trace->experts;
    double *weight = malloc((size_t)E * sizeof *weight);
    const int64_t *load = trace->counts + (int64_t)LAYER * E;
    for (int32_t e = 0; e < E; e++) weight[e] = (double)load[e];
    lplb_place_config config = {.struct_size = sizeof config,
                                .algorithm = LPLB_PLACE_EPLB,
                                .ranks = RANKS,
                                .slots = SLOTS,
                                .max_moves = -1};
    OK(lplb_place(&config, load, 1, 1, E, NULL, &placement));
    gpu_hosts_create(placement, &hosts);
    instance.hosts = hosts.hosts;
    instance.tokens = calloc((size_t)E, sizeof(int64_t));
    drawn_batches drawn = {.weight = weight, .selections = SELECTIONS, .instance = &instance};
    snprintf(label, sizeof label, "%s DeepSeek-V3, EPLB, 64 ranks 320 slots",
             lplb_solver_name(solver));
    time_batches(label, solver, no_options, placement, hosts.offset[E], &drawn, goal);
    free(instance.tokens);
    gpu_hosts_destroy(&hosts);
    lplb_placement_destroy(placement);
    lplb_trace_destroy(trace);
    free(weight);
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
                       int32_t ranks, int32_t n_sms, double goal, double floor) {
    if (!wanted(name)) return;
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
    print_row(name, p50, percentile(us, STEP_BATCHES, 0.9), goal, floor, more);
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
                               .node = locality ? node : NULL,
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
    print_row(locality ? "step 1024 x top-8, 32 sources, locality"
                       : "step 1024 x top-8, 32 sources",
              percentile(us, STEP_BATCHES, 0.5), percentile(us, STEP_BATCHES, 0.9), 0, launch_floor,
              "of one source");
    gpu_free((void *)s.ids.ids);
    gpu_free(s.ids.out);
    gpu_free((void *)s.problem.source_counts);
    lplb_cuda_planner_destroy(s.planner);
    lplb_placement_destroy(placement);
    free(ids);
    free(counts);
}

static void print_plans(void) {
    const lplb_ipm_options published = {.published = 1};
    static const struct {
        const char *name;
        double goal;
    } plans[] = {{"cube4groups", 3}, {"cube8x2", 0}, {"hypercube16x2", 6}, {"torus4x8", 0},
                 {"eplb32", 0},      {"eplb64", 40}, {"eplb320", 300}};
    enum { N = sizeof plans / sizeof plans[0] };
    for (int i = 0; i < N; i++)
        bench_solve(plans[i].name, LPLB_SOLVER_EXACT, no_options, plans[i].goal);
    bench_deepseek(LPLB_SOLVER_EXACT, 40);
    bench_solve("cube4groups", LPLB_SOLVER_EVEN, no_options, 0);
    for (int i = 0; i < N - 1; i++) /* the last one is too large */
        bench_solve(plans[i].name, LPLB_SOLVER_IPM, no_options, 0);
    for (int i = 0; i < 3; i++) bench_solve(plans[i].name, LPLB_SOLVER_IPM, published, 0);
    bench_deepseek(LPLB_SOLVER_IPM, 0);
}

static void print_steps(void) {
    double small = launch_floor;
    bench_step("step 8192 x top-8, 256 experts, 4 cubes", 8192, 8, 256, 32, 0, 10, copy_64k);
    bench_step("step 131072 x top-8, 256 experts, 4 cubes", 131072, 8, 256, 32, 0, 2 * copy_1m + 8,
               copy_1m);
    bench_step("step 512 x top-2, 16 experts, 8 ranks", 512, 2, 16, 8, 0, 7, small);
    bench_step("step 256 x top-2, 16 experts, 8 ranks", 256, 2, 16, 8, 0, 0, small);
    bench_step("step 512 x top-2, 32 experts, 8 ranks", 512, 2, 32, 8, 0, 0, small);
    bench_step("step 1024 x top-4, 64 experts, 8 ranks", 1024, 4, 64, 8, 0, 0, small);
    bench_step("step 128 x top-8, 256 experts, 4 cubes", 128, 8, 256, 32, 0, 0, small);
    bench_step("step 8192 x top-8, 4 multiprocessors", 8192, 8, 256, 32, 4, 0, copy_64k);
    bench_sources(0);
    bench_sources(1);
}

int main(int argc, char **argv) {
    json = argc > 1 && strcmp(argv[1], "--json") == 0;
    if (argc > 1 + json) only = argv[1 + json];
    if (!json)
        printf("%-44s %8s %8s %8s %8s %7s\n", "microseconds", "median", "p90", "goal", "floor",
               "ratio");
    print_floors();
    print_plans();
    print_steps();
    if (json) printf("]\n");
    return 0;
}
