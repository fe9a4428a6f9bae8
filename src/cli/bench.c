#define _POSIX_C_SOURCE 200809L
#include "cli/bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/cli.h"

enum { BATCHES = 64, MOST_RUNS = 100000, FEWEST_RUNS = 5 };

/* ---- random numbers: splitmix64 (Steele, Lea and Flood, 2014) and Box-Muller ---- */

static uint64_t next_random(uint64_t *state) {
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static double uniform(uint64_t *state) { return (double)(next_random(state) >> 11) * 0x1.0p-53; }

static double normal(uint64_t *state) {
    double radius = sqrt(-2 * log(1 - uniform(state)));
    return radius * cos(6.283185307179586 * uniform(state));
}

/* ---- time ---- */

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* One step of what is measured; which numbers the batch. */
typedef lplb_status (*bench_step)(void *context, int64_t which);

static lplb_status measure(double seconds, bench_step step, void *context, bench_timing *out) {
    double *us = cli_need(MOST_RUNS, sizeof *us), start = now_us();
    lplb_status status = step(context, 0); /* caches and branches warm up */
    int64_t n = 0;
    while (status == LPLB_OK && n < MOST_RUNS &&
           (n < FEWEST_RUNS || now_us() - start < seconds * 1e6)) {
        double before = now_us();
        status = step(context, n);
        us[n++] = now_us() - before;
    }
    if (status == LPLB_OK) {
        qsort(us, (size_t)n, sizeof *us, compare_doubles);
        *out = (bench_timing){n, us[(n + 1) / 2 - 1], us[(99 * n + 99) / 100 - 1]};
    }
    free(us);
    return status;
}

/* ---- a shape's placement and batches ---- */

typedef struct bench_case {
    lplb_placement *placement;
    lplb_hosts hosts;
    int64_t *offset;        /* [E+1] */
    int32_t *rank;          /* [P] */
    float *weight;          /* [E] expected share of each expert, times E */
    int64_t *tokens;        /* [BATCHES][E] */
    int64_t *split, *loads; /* [P], [G] */
    uint64_t *certificate;  /* [(G + 63) / 64] */
} bench_case;

static void free_case(bench_case *c) {
    lplb_placement_destroy(c->placement);
    free(c->offset);
    free(c->rank);
    free(c->weight);
    free(c->tokens);
    free(c->split);
    free(c->loads);
    free(c->certificate);
}

/* Each rank's own experts, then copies of its neighbours' along the topology. */
static lplb_status place_topology(const bench_shape *shape, lplb_placement *placement) {
    int32_t own = shape->experts / shape->ranks, redundant = shape->slots / shape->ranks - own;
    lplb_topology *topology;
    lplb_status status = lplb_topology_create(shape->topology, shape->ranks, redundant, &topology);
    if (status != LPLB_OK) return status;
    for (int32_t r = 0; r < shape->ranks; r++) {
        int32_t *slot = placement->physical_to_logical + placement->rank_offset[r];
        int32_t inside = r % topology->group_size, base = r - inside;
        for (int32_t k = 0; k < own; k++) slot[k] = r * own + k;
        for (int32_t k = 0; k < redundant; k++) {
            int32_t from = topology->r2o[inside * topology->redundant + k % topology->redundant];
            slot[own + k] = (base + from) * own + k;
        }
    }
    lplb_topology_destroy(topology);
    return LPLB_OK;
}

static lplb_status place(const bench_shape *shape, bench_case *c) {
    lplb_status status =
        lplb_placement_create(1, shape->experts, shape->slots, shape->ranks, NULL, &c->placement);
    if (status != LPLB_OK) return status;
    if (shape->topology) status = place_topology(shape, c->placement);
    else
        status = lplb_eplb_rebalance_experts(c->weight, 1, shape->experts, shape->slots, 1, 1,
                                             shape->ranks, c->placement->physical_to_logical, NULL,
                                             NULL);
    if (status != LPLB_OK) return status;
    return lplb_placement_hosts(c->placement, 0, c->offset, c->rank, &c->hosts);
}

/* Log-normal loads; a batch strays from them as a count does from its mean. */
static lplb_status make_case(const bench_shape *shape, const bench_options *options,
                             bench_case *c) {
    size_t experts = (size_t)shape->experts;
    memset(c, 0, sizeof *c);
    c->offset = cli_need(experts + 1, sizeof *c->offset);
    c->rank = cli_need((size_t)shape->slots, sizeof *c->rank);
    c->weight = cli_need(experts, sizeof *c->weight);
    c->tokens = cli_need(BATCHES * experts, sizeof *c->tokens);
    c->split = cli_need((size_t)shape->slots, sizeof *c->split);
    c->loads = cli_need((size_t)shape->ranks, sizeof *c->loads);
    c->certificate = cli_need(((size_t)shape->ranks + 63) / 64, sizeof *c->certificate);
    uint64_t state = options->seed;
    double sum = 0;
    for (size_t e = 0; e < experts; e++) {
        c->weight[e] = (float)exp(options->sigma * normal(&state));
        sum += c->weight[e];
    }
    double scale = (double)options->batch_tokens * options->topk * shape->ranks / sum;
    for (size_t i = 0; i < BATCHES * experts; i++) {
        double mean = c->weight[i % experts] * scale;
        double count = floor(mean + sqrt(mean) * normal(&state) + 0.5);
        c->tokens[i] = count > 0 ? (int64_t)count : 0;
    }
    return place(shape, c);
}

/* ---- plan ---- */

typedef struct plan_context {
    bench_case *c;
    lplb_planner *planner;
    lplb_plan plan;
} plan_context;

static lplb_status step_plan(void *context, int64_t which) {
    plan_context *p = context;
    lplb_plan_input input = {.tokens = p->c->tokens + which % BATCHES * p->c->hosts.experts};
    return lplb_plan_solve(p->planner, &input, &p->plan);
}

/* Quality over the batches, beside the time. */
static lplb_status grade(plan_context *p, bench_plan *out) {
    out->imbalance = 0;
    out->worst = 0;
    for (int64_t b = 0; b < BATCHES; b++) {
        lplb_status status = step_plan(p, b);
        if (status != LPLB_OK) return status;
        double total = 0;
        for (int32_t r = 0; r < p->c->hosts.ranks; r++) total += (double)p->plan.loads[r];
        if (total > 0)
            out->imbalance +=
                (double)p->plan.max_load * p->c->hosts.ranks / total / (double)BATCHES;
        if ((int32_t)p->plan.outcome > out->worst) out->worst = (int32_t)p->plan.outcome;
    }
    return LPLB_OK;
}

lplb_status bench_solver(const bench_shape *shape, const bench_options *options, const char *solver,
                         bench_plan *out) {
    bench_case c;
    plan_context context = {.c = &c};
    lplb_status status = make_case(shape, options, &c);
    lplb_plan_config config = {.struct_size = sizeof config, .hosts = c.hosts};
    if (status == LPLB_OK) status = lplb_plan_parse_solver(solver, &config, NULL);
    if (status == LPLB_OK) status = lplb_planner_create(&config, &context.planner);
    if (status == LPLB_OK) {
        context.plan =
            (lplb_plan){.split = c.split, .loads = c.loads, .certificate = c.certificate};
        status = measure(options->seconds, step_plan, &context, &out->time);
        if (status == LPLB_OK) status = grade(&context, out);
        lplb_planner_destroy(context.planner);
    }
    free_case(&c);
    return status;
}

/* ---- EPLB ---- */

typedef struct eplb_context {
    const bench_shape *shape;
    int32_t layers;
    float *weight, *weight_copy; /* [L][E] */
    int32_t *map, *map_copy;     /* [L][P] */
} eplb_context;

static lplb_status step_eplb(void *context, int64_t which) {
    eplb_context *c = context;
    const bench_shape *s = c->shape;
    (void)which;
    return lplb_eplb_rebalance_experts(c->weight, c->layers, s->experts, s->slots, 1, 1, s->ranks,
                                       c->map, NULL, NULL);
}

static lplb_status step_eplb_floor(void *context, int64_t which) {
    eplb_context *c = context;
    (void)which;
    memcpy(c->weight_copy, c->weight,
           (size_t)c->layers * (size_t)c->shape->experts * sizeof *c->weight);
    memcpy(c->map_copy, c->map, (size_t)c->layers * (size_t)c->shape->slots * sizeof *c->map);
    return LPLB_OK;
}

lplb_status bench_eplb(const bench_shape *shape, const bench_options *options, bench_timing *eplb,
                       bench_timing *floor) {
    size_t weights = (size_t)options->layers * (size_t)shape->experts;
    size_t slots = (size_t)options->layers * (size_t)shape->slots;
    eplb_context c = {.shape = shape,
                      .layers = options->layers,
                      .weight = cli_need(weights, sizeof *c.weight),
                      .weight_copy = cli_need(weights, sizeof *c.weight_copy),
                      .map = cli_need(slots, sizeof *c.map),
                      .map_copy = cli_need(slots, sizeof *c.map_copy)};
    uint64_t state = options->seed;
    for (size_t i = 0; i < weights; i++)
        c.weight[i] = floorf((float)(1e4 * exp(options->sigma * normal(&state))));
    lplb_status status = measure(options->seconds, step_eplb, &c, eplb);
    if (status == LPLB_OK) status = measure(options->seconds / 4, step_eplb_floor, &c, floor);
    free(c.weight);
    free(c.weight_copy);
    free(c.map);
    free(c.map_copy);
    return status;
}

/* ---- dispatch ---- */

typedef struct dispatch_context {
    lplb_dispatcher *dispatcher;
    int64_t n, *ids, *out; /* [n] */
    int64_t *counts;       /* [G][E]: every source has the same */
    const int64_t *split;
} dispatch_context;

static lplb_status step_count(void *context, int64_t which) {
    dispatch_context *c = context;
    (void)which;
    return lplb_dispatch_count(c->dispatcher, c->ids, LPLB_INT64, c->n, c->counts);
}

static lplb_status step_prepare(void *context, int64_t which) {
    dispatch_context *c = context;
    (void)which;
    return lplb_dispatch_prepare(c->dispatcher, c->counts, c->split, 0, 0);
}

static lplb_status step_map(void *context, int64_t which) {
    dispatch_context *c = context;
    (void)which;
    return lplb_dispatch_map(c->dispatcher, c->ids, LPLB_INT64, c->n, c->out, LPLB_INT64);
}

static lplb_status step_copy(void *context, int64_t which) {
    dispatch_context *c = context;
    (void)which;
    memcpy(c->out, c->ids, (size_t)c->n * sizeof *c->ids);
    return LPLB_OK;
}

/* ids with the case's expert weights. */
static void draw_ids(const bench_case *c, const bench_options *options, int64_t n, int64_t *ids) {
    int32_t experts = c->hosts.experts;
    double *sum = cli_need((size_t)experts + 1, sizeof *sum);
    for (int32_t e = 0; e < experts; e++) sum[e + 1] = sum[e] + c->weight[e];
    uint64_t state = options->seed + 1;
    for (int64_t i = 0; i < n; i++) {
        double at = uniform(&state) * sum[experts];
        int32_t low = 0, high = experts - 1;
        while (low < high) {
            int32_t middle = (low + high) / 2;
            if (sum[middle + 1] > at) high = middle;
            else low = middle + 1;
        }
        ids[i] = low;
    }
    free(sum);
}

/* Counts of all sources and the exact plan for them. */
static lplb_status plan_ids(bench_case *c, dispatch_context *d) {
    const lplb_hosts *hosts = lplb_dispatcher_hosts(d->dispatcher);
    lplb_status status = step_count(d, 0);
    if (status != LPLB_OK) return status;
    for (int32_t e = 0; e < hosts->experts; e++) {
        c->tokens[e] = d->counts[e] * hosts->ranks;
        for (int32_t s = 1; s < hosts->ranks; s++)
            d->counts[(int64_t)s * hosts->experts + e] = d->counts[e];
    }
    lplb_plan_config config = {.struct_size = sizeof config, .hosts = *hosts};
    plan_context p = {
        .c = c, .plan = {.split = c->split, .loads = c->loads, .certificate = c->certificate}};
    status = lplb_planner_create(&config, &p.planner);
    if (status != LPLB_OK) return status;
    status = step_plan(&p, 0);
    lplb_planner_destroy(p.planner);
    d->split = c->split;
    return status;
}

lplb_status bench_dispatcher(const bench_shape *shape, const bench_options *options,
                             bench_dispatch *out) {
    bench_case c;
    size_t n = (size_t)options->batch_tokens * (size_t)options->topk;
    dispatch_context d = {
        .n = (int64_t)n,
        .ids = cli_need(n, sizeof *d.ids),
        .out = cli_need(n, sizeof *d.out),
        .counts = cli_need((size_t)shape->ranks * (size_t)shape->experts, sizeof *d.counts)};
    lplb_status status = make_case(shape, options, &c);
    if (status == LPLB_OK)
        status = lplb_dispatcher_create(c.placement, 0, shape->ranks, NULL, NULL, options->threads,
                                        &d.dispatcher);
    if (status == LPLB_OK) {
        out->ids = d.n;
        draw_ids(&c, options, d.n, d.ids);
        status = plan_ids(&c, &d);
        double each = options->seconds / 4;
        if (status == LPLB_OK) status = measure(each, step_prepare, &d, &out->prepare);
        if (status == LPLB_OK) status = measure(each, step_map, &d, &out->map);
        if (status == LPLB_OK) status = measure(each, step_count, &d, &out->count);
        if (status == LPLB_OK) status = measure(each, step_copy, &d, &out->floor);
    }
    lplb_dispatcher_destroy(d.dispatcher);
    free_case(&c);
    free(d.ids);
    free(d.out);
    free(d.counts);
    return status;
}
