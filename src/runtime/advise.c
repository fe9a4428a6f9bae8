/* Advice: measures of the loads, then placements tried on batches that they were not made from. */
#define _POSIX_C_SOURCE 200809L
#include <lplb/advise.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"

enum { JUDGED = 16, LEAST_REDUNDANT = 4, MOST_REDUNDANT = 8, TIMED = 64 };

typedef struct advisor {
    const lplb_trace *trace;
    lplb_advise_config config;
    lplb_advice *out;
    int32_t layers, experts;
    int64_t cells;
    int64_t *load;  /* [L][E] to place by */
    int64_t *batch; /* [JUDGED][L][E] to judge by */
    double *by_sample;
    int64_t *later; /* [L][E] loads that batches are drawn from */
    double *weight; /* [E] */
    int32_t base;   /* slots of the curve's first point */
} advisor;

/* ---- loads ---- */

static lplb_status check(advisor *a) {
    lplb_advise_config *c = &a->config;
    if (c->struct_size != sizeof *c)
        return LPLB_FAIL(LPLB_INVALID,
                         "config.struct_size is %zu, must be sizeof(lplb_advise_config) = %zu",
                         c->struct_size, sizeof *c);
    if (c->ranks < 1 || c->ranks > LPLB_MAX_RANKS)
        return LPLB_FAIL(LPLB_RANGE, "%d ranks; from 1 to %d are possible", c->ranks,
                         LPLB_MAX_RANKS);
    int32_t least = (a->experts + c->ranks - 1) / c->ranks;
    a->base = c->slots ? c->slots : least * c->ranks;
    if (a->base < a->experts || a->base % c->ranks)
        return LPLB_FAIL(LPLB_INVALID,
                         "%d slots: %d ranks of the same number of slots, which hold %d experts, "
                         "have %d, %d, ... slots",
                         a->base, c->ranks, a->experts, least * c->ranks, (least + 1) * c->ranks);
    if (c->nodes < 0 || (c->nodes > 1 && c->ranks % c->nodes))
        return LPLB_FAIL(LPLB_INVALID, "%d ranks do not divide by %d nodes", c->ranks, c->nodes);
    if (c->batch_tokens < 0 || c->topk < 0 || c->expert_bytes < 0 || !(c->token_ns >= 0) ||
        !(c->plan_us >= 0))
        return LPLB_FAIL(LPLB_RANGE, "sizes and times must not be negative");
    if (c->most_redundant < 0 || c->most_redundant >= LPLB_ADVICE_POINTS)
        return LPLB_FAIL(LPLB_RANGE, "%d redundant slots a rank; up to %d can be tried",
                         c->most_redundant, LPLB_ADVICE_POINTS - 1);
    if (!c->nodes) c->nodes = 1;
    if (!c->batch_tokens) c->batch_tokens = 4096;
    if (a->trace->kind == LPLB_TRACE_TOPK) c->topk = a->trace->topk;
    else if (!c->topk) c->topk = 8;
    int32_t own = a->base / c->ranks;
    if (c->most_redundant) return LPLB_OK;
    c->most_redundant = own < MOST_REDUNDANT ? own : MOST_REDUNDANT;
    if (own < LEAST_REDUNDANT && own + LEAST_REDUNDANT <= a->experts)
        c->most_redundant = LEAST_REDUNDANT; /* one or two would not show where it flattens */
    return LPLB_OK;
}

/* The first half to place by, the second to draw batches from; one sum serves for both. */
static void read_loads(advisor *a) {
    const lplb_trace *t = a->trace;
    int64_t items = t->kind == LPLB_TRACE_TOPK ? t->tokens : t->steps, half = items / 2;
    a->out->held_out = items >= 2;
    for (int32_t l = 0; l < a->layers; l++) {
        int64_t *early = a->load + (int64_t)l * a->experts;
        int64_t *late = a->later + (int64_t)l * a->experts;
        lplb_trace_count(t, l, 0, half ? half : items, NULL, early);
        lplb_trace_count(t, l, half, items - half, NULL, late);
    }
}

/* Batches of so many tokens: recorded ones, evenly spaced over the second half, where the record
 * has tokens and enough of them; else multinomial draws from its loads. */
static void make_batches(advisor *a, int64_t tokens) {
    const lplb_trace *t = a->trace;
    int64_t half = t->tokens / 2, room = t->tokens - half - tokens;
    bool recorded = t->kind == LPLB_TRACE_TOPK && room >= 0;
    for (int64_t k = 0; k < JUDGED; k++)
        for (int32_t l = 0; l < a->layers; l++) {
            int64_t *out = a->batch + (k * a->layers + l) * a->experts;
            if (recorded) {
                lplb_trace_count(t, l, half + k * room / (JUDGED - 1), tokens, NULL, out);
                continue;
            }
            const int64_t *late = a->later + (int64_t)l * a->experts;
            double sum = 0;
            for (int32_t e = 0; e < a->experts; e++) sum += a->weight[e] = (double)late[e];
            memset(out, 0, (size_t)a->experts * sizeof *out);
            lplb__rng rng;
            lplb__rng_seed(&rng, a->config.seed, (uint64_t)(k * a->layers + l));
            if (sum > 0)
                lplb__rng_multinomial(&rng, tokens * a->config.topk, a->weight, a->experts, out);
        }
}

static void measure_loads(advisor *a) {
    lplb_advice_measures *m = &a->out->measures;
    int32_t G = a->config.ranks;
    for (int32_t l = 0; l < a->layers; l++) {
        const int64_t *early = a->load + (int64_t)l * a->experts;
        const int64_t *late = a->later + (int64_t)l * a->experts;
        double sum = 0, squares = 0, most = 0, most_rank = 0, rank = 0;
        int32_t first = 0, r = 0; /* ranks in order, the first E mod G with an expert more */
        for (int32_t e = 0; e < a->experts; e++) {
            double x = (double)early[e] + (double)late[e];
            sum += x;
            squares += x * x;
            most = x > most ? x : most;
            if (e == first) rank = 0, first += a->experts / G + (r++ < a->experts % G);
            rank += x;
            most_rank = rank > most_rank ? rank : most_rank;
        }
        if (!(sum > 0)) continue;
        double mean = sum / a->experts, variance = squares / a->experts - mean * mean;
        double cv = sqrt(variance > 0 ? variance : 0) / mean;
        double hottest = most / mean, contiguous = most_rank * a->config.ranks / sum;
        m->cv += cv;
        m->hottest += hottest;
        m->contiguous += contiguous;
        m->worst_cv = cv > m->worst_cv ? cv : m->worst_cv;
        m->worst_hottest = hottest > m->worst_hottest ? hottest : m->worst_hottest;
        m->worst_contiguous = contiguous > m->worst_contiguous ? contiguous : m->worst_contiguous;
        m->layers++;
    }
    if (!m->layers) return;
    m->cv /= m->layers;
    m->hottest /= m->layers;
    m->contiguous /= m->layers;
}

static void apply_rules(advisor *a) {
    int32_t E = a->experts;
    double cv = a->out->measures.cv;
    int32_t most = E / 4 < 32 ? E / 4 : 32;
    a->out->rule_groups = E <= 8 ? 2 : E <= 32 ? 4 : E <= 128 ? 8 : most;
    a->out->rule_redundant = cv < 0.3 ? E / 16 : cv < 0.6 ? E / 8 : E / 4;
}

/* ---- trying ---- */

static lplb_status judge(advisor *a, const lplb_placement *p, lplb_solver solver, double *out) {
    double sum = 0;
    int64_t n = 0, pairs = (int64_t)JUDGED * a->layers;
    LPLB_TRY(
        lplb_placement_imbalance(p, a->batch, JUDGED, solver, a->config.threads, a->by_sample));
    for (int64_t i = 0; i < pairs; i++)
        if (a->by_sample[i] > 0) sum += a->by_sample[i], n++;
    *out = n ? sum / (double)n : 0;
    return LPLB_OK;
}

static lplb_status place(advisor *a, lplb_place_algorithm algorithm, const lplb_topology *topology,
                         int32_t redundant, int32_t groups, lplb_placement **out) {
    lplb_place_config c = {.struct_size = sizeof c,
                           .algorithm = algorithm,
                           .topology = topology,
                           .ranks = a->config.ranks,
                           .slots = a->base + a->config.ranks * redundant,
                           .nodes = groups > 1 ? a->config.nodes : 1,
                           .groups = groups,
                           .max_moves = -1,
                           .seed = a->config.seed,
                           .threads = a->config.threads};
    return lplb_place(&c, a->load, 1, a->layers, a->experts, NULL, out);
}

static lplb_status try_redundancy(advisor *a) {
    lplb_advice *out = a->out;
    make_batches(a, a->config.batch_tokens);
    for (int32_t d = 0; d <= a->config.most_redundant; d++) {
        lplb_advice_point *point = &out->point[out->points++];
        lplb_placement *p;
        LPLB_TRY(place(a, LPLB_PLACE_EPLB, NULL, d, 1, &p));
        point->redundant = d;
        point->slots = p->slots;
        point->bytes = a->config.expert_bytes * d * out->measures.layers;
        lplb_status status = judge(a, p, LPLB_SOLVER_EVEN, &point->even);
        if (status == LPLB_OK) status = judge(a, p, LPLB_SOLVER_EXACT, &point->exact);
        lplb_placement_destroy(p);
        LPLB_TRY(status);
    }
    double least = out->point[0].exact;
    for (int32_t i = 0; i < out->points; i++)
        if (out->point[i].exact < least) least = out->point[i].exact;
    while (out->point[out->knee].exact - least > 0.1 * (out->point[0].exact - least)) out->knee++;
    return LPLB_OK;
}

static void keep_topology(lplb_advice *out, const char *name, int32_t redundant, double exact) {
    if (out->topologies == LPLB_ADVICE_TOPOLOGIES) return;
    int32_t at = out->topologies++;
    for (; at > 0 && out->topology[at - 1].exact > exact; at--)
        out->topology[at] = out->topology[at - 1];
    snprintf(out->topology[at].name, sizeof out->topology[at].name, "%.39s", name);
    out->topology[at].redundant = redundant;
    out->topology[at].exact = exact;
}

/* Those that exist for this number of ranks and have at most the knee's slots; that one does not
 * exist is no failure. A topology pays only where the curve's own point is not more even. */
static lplb_status try_topologies(advisor *a) {
    int32_t G = a->config.ranks, knee = a->out->point[a->out->knee].redundant;
    char names[LPLB_ADVICE_TOPOLOGIES][40] = {"ring", "cube", "hypercube"};
    int n = 3;
    if (a->base != a->experts) return LPLB_OK; /* ranks do not divide the experts */
    for (int32_t m = 2; m <= G / 2 && n < LPLB_ADVICE_TOPOLOGIES; m++)
        if (G % m == 0) snprintf(names[n++], sizeof names[0], "torus:%dx%d", m, G / m);
    for (int i = 0; i < n; i++) {
        lplb_topology *topology;
        int32_t redundant = i == 0 ? 1 : 2;
        if (redundant > knee || redundant > a->experts / G ||
            lplb_topology_create(names[i], G, redundant, &topology) != LPLB_OK)
            continue;
        lplb_placement *p;
        double exact;
        lplb_status status = place(a, LPLB_PLACE_TOPOLOGY, topology, redundant, 1, &p);
        lplb_topology_destroy(topology);
        if (status != LPLB_OK) continue;
        status = judge(a, p, LPLB_SOLVER_EXACT, &exact);
        lplb_placement_destroy(p);
        LPLB_TRY(status);
        keep_topology(a->out, names[i], redundant, exact);
    }
    a->out->topology_pays =
        a->out->topologies && a->out->topology[0].exact <= a->out->point[a->out->knee].exact;
    return LPLB_OK;
}

/* EPLB's hierarchical form with the numbers of groups that nodes and experts allow, beside the
 * global one; nothing to choose on one node. */
static lplb_status try_groups(advisor *a) {
    lplb_advice *out = a->out;
    int32_t nodes = a->config.nodes;
    for (int32_t k = 1; nodes > 1 && k <= a->experts; k = k == 1 ? nodes : 2 * k) {
        if (a->experts % k) continue;
        lplb_placement *p;
        lplb_advice_groups one = {.groups = k};
        LPLB_TRY(place(a, LPLB_PLACE_EPLB, NULL, out->point[out->knee].redundant, k, &p));
        lplb_status status = judge(a, p, LPLB_SOLVER_EVEN, &one.even);
        if (status == LPLB_OK) status = judge(a, p, LPLB_SOLVER_EXACT, &one.exact);
        lplb_placement_destroy(p);
        LPLB_TRY(status);
        int32_t at = out->group_counts++;
        for (; at > 0 && out->group[at - 1].exact > one.exact; at--)
            out->group[at] = out->group[at - 1];
        out->group[at] = one;
        if (out->group_counts == LPLB_ADVICE_GROUPS) break;
    }
    return LPLB_OK;
}

/* ---- does planning pay ---- */

static int compare_int64(const void *x, const void *y) {
    int64_t a = *(const int64_t *)x, b = *(const int64_t *)y;
    return (a > b) - (a < b);
}

static lplb_status time_solver(advisor *a, const lplb_placement *p, int32_t layer, int64_t *offset,
                               int32_t *rank, int64_t *split, double *us) {
    lplb_plan_config config = {.struct_size = sizeof config};
    LPLB_TRY(lplb_placement_hosts(p, layer, offset, rank, &config.hosts));
    lplb_planner *planner;
    LPLB_TRY(lplb_planner_create(&config, &planner));
    int64_t ns[TIMED];
    lplb_status status = LPLB_OK;
    for (int i = 0; i < TIMED && status == LPLB_OK; i++) {
        lplb_plan_input input = {.tokens = a->batch + ((int64_t)(i % JUDGED) * a->layers + layer) *
                                                          a->experts};
        lplb_plan plan = {.split = split};
        int64_t start = lplb__now_ns();
        status = lplb_plan_solve(planner, &input, &plan);
        ns[i] = lplb__now_ns() - start;
    }
    lplb_planner_destroy(planner);
    qsort(ns, TIMED, sizeof *ns, compare_int64);
    *us = (double)ns[TIMED / 2] / 1e3;
    return status;
}

/* Median time of the exact planner in the middle layer that has load. */
static lplb_status time_plan(advisor *a, const lplb_placement *p) {
    if (a->config.plan_us > 0) {
        a->out->plan_us = a->config.plan_us;
        return LPLB_OK;
    }
    int64_t *offset = NULL, *split = NULL;
    int32_t *rank = NULL;
    lplb_status status;
    LPLB_TRY_GOTO(status, LPLB_CALLOC(offset, a->experts + 1), done);
    LPLB_TRY_GOTO(status, LPLB_CALLOC(split, p->slots), done);
    LPLB_TRY_GOTO(status, LPLB_CALLOC(rank, p->slots), done);
    status = time_solver(a, p, a->layers / 2, offset, rank, split, &a->out->plan_us);
    a->out->plan_measured = 1;
done:
    lplb__free(offset);
    lplb__free(split);
    lplb__free(rank);
    return status;
}

/* Where gain - cost changes sign, linear between the sizes that were tried. */
static void find_break_even(lplb_advice *out) {
    for (int32_t i = 0; i < out->batches; i++) {
        const lplb_advice_batch *b = &out->batch[i];
        if (b->gain_us < out->plan_us) continue;
        out->break_even_tokens = (double)b->tokens;
        if (i == 0) return;
        const lplb_advice_batch *before = &out->batch[i - 1];
        double part = (out->plan_us - before->gain_us) / (b->gain_us - before->gain_us);
        out->break_even_tokens =
            (double)before->tokens + part * (double)(b->tokens - before->tokens);
        return;
    }
}

static lplb_status try_batches(advisor *a) {
    lplb_advice *out = a->out;
    lplb_placement *p;
    LPLB_TRY(place(a, LPLB_PLACE_EPLB, NULL, out->point[out->knee].redundant, 1, &p));
    lplb_status status = time_plan(a, p);
    int64_t tokens = 32;
    for (; out->batches < LPLB_ADVICE_BATCHES && status == LPLB_OK; tokens *= 2) {
        lplb_advice_batch *b = &out->batch[out->batches++];
        b->tokens = tokens;
        make_batches(a, tokens);
        status = judge(a, p, LPLB_SOLVER_EVEN, &b->even);
        if (status == LPLB_OK) status = judge(a, p, LPLB_SOLVER_EXACT, &b->exact);
        b->gain_us = (b->even - b->exact) * (double)tokens * a->config.topk / a->config.ranks *
                     a->config.token_ns / 1e3;
    }
    lplb_placement_destroy(p);
    if (status == LPLB_OK && a->config.token_ns > 0) find_break_even(out);
    return status;
}

static lplb_status advise(advisor *a) {
    LPLB_TRY(check(a));
    LPLB_TRY(LPLB_CALLOC(a->load, a->cells));
    LPLB_TRY(LPLB_CALLOC(a->later, a->cells));
    LPLB_TRY(LPLB_CALLOC(a->weight, a->experts));
    LPLB_TRY(LPLB_CALLOC(a->batch, JUDGED * a->cells));
    LPLB_TRY(LPLB_CALLOC(a->by_sample, (int64_t)JUDGED * a->layers));
    a->out->experts = a->experts;
    a->out->layers = a->layers;
    a->out->ranks = a->config.ranks;
    read_loads(a);
    measure_loads(a);
    if (!a->out->measures.layers) return LPLB_FAIL(LPLB_INVALID, "the record has no tokens");
    apply_rules(a);
    LPLB_TRY(try_redundancy(a));
    LPLB_TRY(try_topologies(a));
    LPLB_TRY(try_groups(a));
    return try_batches(a);
}

lplb_status lplb_advise(const lplb_trace *trace, const lplb_advise_config *config,
                        lplb_advice *out) {
    *out = (lplb_advice){0};
    advisor a = {.trace = trace,
                 .config = *config,
                 .out = out,
                 .layers = trace->layers,
                 .experts = trace->experts,
                 .cells = (int64_t)trace->layers * trace->experts};
    lplb_status status = advise(&a);
    void *blocks[] = {a.load, a.later, a.weight, a.batch, a.by_sample};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) lplb__free(blocks[i]);
    return status;
}
