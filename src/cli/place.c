#include "cli/place.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORST_LAYERS = 5, CANDIDATES = 4 };

typedef struct spread {
    double mean, max;
} spread;

/* What one layer's placement leaves: its bottleneck on the summed load, and the copy that would
 * help most. */
typedef struct advice {
    int32_t layer;
    double bound, better; /* imbalance of the best split: now, and with one more copy */
    int32_t expert, rank; /* that copy; -1 = none helps */
    uint64_t *bottleneck;
} advice;

typedef struct place_work {
    const char *name;
    place_request request;
    lplb_trace *trace;
    lplb_placement *from, *placement;
    lplb_topology *topology;
    int32_t *slots_per_rank;
    uint8_t *dead;
    int64_t *load; /* [samples][L][E] */
    int64_t samples;
    int64_t placed; /* the first of them */
    spread even, exact;
    lplb_move *moves;
    int64_t n_moves;
    advice advice[WORST_LAYERS];
    int32_t n_advice;
} place_work;

/* ---- input ---- */

/* "a,b,c": numbers in [low, high]; returns how many, or -1 after a message. */
static int64_t read_list(const char *name, const char *option, const char *text, int64_t low,
                         int64_t high, int32_t *out, int64_t capacity) {
    int64_t n = 0;
    for (const char *at = text;;) {
        char *end;
        long long value = strtoll(at, &end, 10);
        if (end == at || (*end && *end != ',') || value < low || value > high || n == capacity) {
            cli_fail(name, EXIT_USAGE, "%s wants at most %lld numbers from %lld to %lld, not '%s'",
                     option, (long long)capacity, (long long)low, (long long)high, text);
            return -1;
        }
        out[n++] = (int32_t)value;
        if (!*end) return n;
        at = end + 1;
    }
}

static int read_lists(place_work *w) {
    lplb_place_config *c = &w->request.config;
    int32_t *list = cli_need((size_t)c->ranks, sizeof *list);
    if (w->request.slots_per_rank) {
        int64_t sum = 0, n = read_list(w->name, "--slots-per-rank", w->request.slots_per_rank, 0,
                                       1 << 20, list, c->ranks);
        bool fine = n >= 0;
        for (int64_t r = 0; r < n; r++) sum += list[r];
        if (fine && n != c->ranks)
            fine = cli_fail(w->name, EXIT_USAGE, "--slots-per-rank has %lld numbers for %d ranks",
                            (long long)n, c->ranks) < 0;
        if (fine && c->slots && c->slots != sum)
            fine = cli_fail(w->name, EXIT_USAGE, "--slots-per-rank adds up to %lld, --slots is %d",
                            (long long)sum, c->slots) < 0;
        if (!fine) {
            free(list);
            return EXIT_USAGE;
        }
        c->slots = (int32_t)sum;
        w->slots_per_rank = list;
        c->slots_per_rank = list;
        list = cli_need((size_t)c->ranks, sizeof *list);
    }
    int code = EXIT_OK;
    if (w->request.dead_ranks) {
        int64_t n = read_list(w->name, "--dead-ranks", w->request.dead_ranks, 0, c->ranks - 1, list,
                              c->ranks);
        w->dead = cli_need((size_t)c->ranks, 1);
        for (int64_t i = 0; i < n; i++) w->dead[list[i]] = 1;
        c->dead_ranks = w->dead;
        if (n < 0) code = EXIT_USAGE;
    }
    free(list);
    return code;
}

/* Counts of every batch; a trace shorter than one batch counts as one. */
static void count_batches(place_work *w) {
    const lplb_trace *t = w->trace;
    int64_t cells = (int64_t)t->layers * t->experts;
    if (t->kind == LPLB_TRACE_COUNTS) {
        w->samples = t->steps;
        w->load = cli_need((size_t)(w->samples * cells), sizeof *w->load);
        memcpy(w->load, t->counts, sizeof *w->load * (size_t)(w->samples * cells));
        return;
    }
    int64_t batch = w->request.config.batch_tokens;
    w->samples = t->tokens / batch > 0 ? t->tokens / batch : 1;
    if (batch > t->tokens) batch = t->tokens;
    w->load = cli_need((size_t)(w->samples * cells), sizeof *w->load);
    for (int64_t s = 0; s < w->samples; s++)
        for (int32_t l = 0; l < t->layers; l++)
            lplb_trace_count(t, l, s * batch, batch, NULL,
                             w->load + s * cells + (int64_t)l * t->experts);
}

static lplb_status open_inputs(place_work *w) {
    place_request *r = &w->request;
    lplb_status status = lplb_trace_read(r->load, &r->trace, &w->trace);
    if (status != LPLB_OK) return status;
    if (w->trace->kind == LPLB_TRACE_TOPK) {
        if (!r->config.batch_tokens) r->config.batch_tokens = 4096;
        r->config.topk = w->trace->topk;
    }
    count_batches(w);
    if (r->from) status = lplb_placement_read(r->from, r->config.ranks, &w->from);
    if (status == LPLB_OK && r->topology) {
        int32_t spare = r->config.slots - w->trace->experts;
        status = lplb_topology_open(r->topology, r->config.ranks,
                                    spare > 0 ? spare / r->config.ranks : 0, &w->topology);
    }
    r->config.from = w->from;
    r->config.topology = w->topology;
    return status;
}

/* ---- prediction ---- */

static lplb_status measure(const place_work *w, lplb_solver solver, spread *out) {
    int64_t first = w->placed < w->samples ? w->placed : 0; /* not seen, where there are any */
    int64_t n = (w->samples - first) * w->trace->layers, counted = 0;
    const int64_t *load = w->load + first * w->trace->layers * w->trace->experts;
    double *imbalance = cli_need((size_t)n, sizeof *imbalance);
    lplb_status status = lplb_placement_imbalance(w->placement, load, w->samples - first, solver,
                                                  w->request.config.threads, imbalance);
    *out = (spread){0, 0};
    for (int64_t i = 0; i < n && status == LPLB_OK; i++) {
        if (imbalance[i] <= 0) continue; /* no load */
        counted++;
        out->mean += imbalance[i];
        if (imbalance[i] > out->max) out->max = imbalance[i];
    }
    if (counted) out->mean /= (double)counted;
    free(imbalance);
    return status;
}

static lplb_status find_moves(place_work *w) {
    if (!w->from) return LPLB_OK;
    lplb_status status = lplb_placement_moves(w->from, w->placement, NULL, 0, &w->n_moves);
    if (status != LPLB_OK) return status;
    w->moves = cli_need((size_t)w->n_moves, sizeof *w->moves);
    return lplb_placement_moves(w->from, w->placement, w->moves, w->n_moves, &w->n_moves);
}

/* ---- advice: what limits the worst layers ---- */

typedef struct layer_problem {
    lplb_hosts hosts;
    int64_t *offset, *tokens; /* [E+1], [E] */
    int32_t *rank;            /* [P + 1] */
    uint64_t *set;
    double mean;
} layer_problem;

static double imbalance_of(const layer_problem *p, const lplb_bound *bound) {
    return (double)bound->fractional.numerator / (double)bound->fractional.denominator / p->mean;
}

static bool in_set(const uint64_t *set, int32_t r) { return set[r / 64] >> (r % 64) & 1; }

/* Imbalance with one more copy of expert on rank; the hosts are changed and changed back. */
static lplb_status try_copy(layer_problem *p, int32_t expert, int32_t rank, double *imbalance) {
    lplb_plan_input input = {p->tokens, NULL, NULL};
    lplb_bound bound;
    int64_t at = p->offset[expert + 1], n = p->offset[p->hosts.experts];
    memmove(p->rank + at + 1, p->rank + at, sizeof *p->rank * (size_t)(n - at));
    p->rank[at] = rank;
    for (int32_t e = expert + 1; e <= p->hosts.experts; e++) p->offset[e]++;
    lplb_status status = lplb_plan_bound(&p->hosts, NULL, &input, &bound, NULL);
    for (int32_t e = expert + 1; e <= p->hosts.experts; e++) p->offset[e]--;
    memmove(p->rank + at, p->rank + at + 1, sizeof *p->rank * (size_t)(n - at));
    *imbalance = imbalance_of(p, &bound);
    return status;
}

/* The heaviest experts that live only in the bottleneck, on each rank outside it. */
static lplb_status best_copy(layer_problem *p, advice *a) {
    int32_t chosen[CANDIDATES];
    for (int k = 0; k < CANDIDATES; k++) {
        chosen[k] = -1;
        for (int32_t e = 0; e < p->hosts.experts; e++) {
            bool inside = true, taken = false;
            for (int64_t i = p->offset[e]; i < p->offset[e + 1] && inside; i++)
                inside = in_set(a->bottleneck, p->rank[i]);
            for (int j = 0; j < k; j++) taken |= chosen[j] == e;
            if (inside && !taken && (chosen[k] < 0 || p->tokens[e] > p->tokens[chosen[k]]))
                chosen[k] = e;
        }
        for (int32_t r = 0; r < p->hosts.ranks && chosen[k] >= 0; r++) {
            double imbalance;
            if (in_set(a->bottleneck, r)) continue;
            lplb_status status = try_copy(p, chosen[k], r, &imbalance);
            if (status != LPLB_OK) return status;
            if (imbalance >= a->better) continue;
            a->better = imbalance;
            a->expert = chosen[k];
            a->rank = r;
        }
    }
    return LPLB_OK;
}

static lplb_status open_layer(const place_work *w, int32_t layer, layer_problem *p, advice *a) {
    int32_t E = w->trace->experts;
    lplb_bound bound;
    double total = 0;
    memset(p->tokens, 0, sizeof *p->tokens * (size_t)E);
    for (int64_t s = 0; s < w->samples; s++)
        for (int32_t e = 0; e < E; e++)
            p->tokens[e] += w->load[(s * w->trace->layers + layer) * E + e];
    for (int32_t e = 0; e < E; e++) total += (double)p->tokens[e];
    p->mean = total / w->placement->ranks;
    *a = (advice){.layer = layer, .expert = -1, .rank = -1, .bottleneck = p->set, .bound = 0};
    if (total == 0) return LPLB_OK;
    lplb_status status = lplb_placement_hosts(w->placement, layer, p->offset, p->rank, &p->hosts);
    lplb_plan_input input = {p->tokens, NULL, NULL};
    if (status == LPLB_OK) status = lplb_plan_bound(&p->hosts, NULL, &input, &bound, p->set);
    if (status == LPLB_OK) a->bound = a->better = imbalance_of(p, &bound);
    return status;
}

/* Keeps the layers with the highest bounds, worst first. */
static void keep_worst(place_work *w, const advice *a, size_t set_bytes) {
    int32_t at = w->n_advice;
    while (at > 0 && w->advice[at - 1].bound < a->bound) at--;
    if (at == WORST_LAYERS || a->bound <= 1.0005) return;
    if (w->n_advice == WORST_LAYERS) free(w->advice[--w->n_advice].bottleneck);
    memmove(&w->advice[at + 1], &w->advice[at], sizeof *a * (size_t)(w->n_advice - at));
    w->n_advice++;
    w->advice[at] = *a;
    w->advice[at].bottleneck = cli_need(set_bytes, 1);
    memcpy(w->advice[at].bottleneck, a->bottleneck, set_bytes);
}

static lplb_status advise(place_work *w) {
    int32_t E = w->trace->experts, G = w->placement->ranks;
    size_t set_bytes = (size_t)((G + 63) / 64) * 8;
    layer_problem p = {.offset = cli_need((size_t)E + 2, sizeof *p.offset),
                       .tokens = cli_need((size_t)E, sizeof *p.tokens),
                       .rank = cli_need((size_t)w->placement->slots + 2, sizeof *p.rank),
                       .set = cli_need(set_bytes, 1)};
    lplb_status status = LPLB_OK;
    for (int32_t l = 0; l < w->placement->layers && status == LPLB_OK; l++) {
        advice a;
        status = open_layer(w, l, &p, &a);
        if (status == LPLB_OK) keep_worst(w, &a, set_bytes);
    }
    for (int32_t i = 0; i < w->n_advice && status == LPLB_OK; i++) {
        advice again;
        status = open_layer(w, w->advice[i].layer, &p, &again);
        if (status == LPLB_OK) status = best_copy(&p, &w->advice[i]);
    }
    free(p.offset);
    free(p.tokens);
    free(p.rank);
    free(p.set);
    return status;
}

/* ---- output ---- */

static json_t *int_array(const int32_t *values, int64_t n) {
    json_t *array = json_array();
    for (int64_t i = 0; i < n; i++) json_array_append_new(array, json_integer(values[i]));
    return array;
}

static json_t *spread_json(const spread *s) {
    return json_pack("{s:f, s:f}", "mean", s->mean, "max", s->max);
}

static json_t *moves_json(const place_work *w) {
    json_t *array = json_array();
    for (int64_t i = 0; i < w->n_moves; i++) {
        const lplb_move *m = &w->moves[i];
        json_array_append_new(array, json_pack("{s:i, s:i, s:i, s:i, s:i}", "layer", m->layer,
                                               "slot", m->slot, "expert", m->expert, "rank",
                                               m->rank, "source_rank", m->source_rank));
    }
    return array;
}

static json_t *advice_json(const place_work *w) {
    json_t *array = json_array();
    for (int32_t i = 0; i < w->n_advice; i++) {
        const advice *a = &w->advice[i];
        json_t *ranks = json_array(), *copy = json_null();
        for (int32_t r = 0; r < w->placement->ranks; r++)
            if (in_set(a->bottleneck, r)) json_array_append_new(ranks, json_integer(r));
        if (a->expert >= 0)
            copy = json_pack("{s:i, s:i, s:f}", "expert", a->expert, "rank", a->rank, "imbalance",
                             a->better);
        json_array_append_new(array,
                              json_pack("{s:i, s:f, s:o, s:o}", "layer", a->layer, "imbalance",
                                        a->bound, "bottleneck", ranks, "next_copy", copy));
    }
    return array;
}

static int print_json(const place_work *w) {
    const lplb_placement *p = w->placement;
    int32_t *count = cli_need((size_t)p->layers * (size_t)p->experts, sizeof *count);
    int32_t X = lplb_placement_replica_count(p, count);
    size_t cells = (size_t)p->layers * (size_t)p->experts * (size_t)X;
    int32_t *slots = cli_need(cells, sizeof *slots);
    lplb_status status = lplb_placement_logical_to_physical(p, X, slots);
    json_t *physical = json_array(), *logical = json_array(), *replicas = json_array();
    for (int32_t l = 0; l < p->layers; l++) {
        json_t *layer = json_array();
        for (int32_t e = 0; e < p->experts; e++)
            json_array_append_new(layer, int_array(slots + ((int64_t)l * p->experts + e) * X, X));
        json_array_append_new(logical, layer);
        json_array_append_new(physical,
                              int_array(p->physical_to_logical + (int64_t)l * p->slots, p->slots));
        json_array_append_new(replicas, int_array(count + (int64_t)l * p->experts, p->experts));
    }
    free(count);
    free(slots);
    json_t *out = json_pack("{s:s, s:s, s:o, s:o, s:o, s:{s:o, s:o}, s:o, s:I, s:o}", "schema",
                            "lplb.place/1", "algorithm", w->request.algorithm,
                            "physical_to_logical_map", physical, "logical_to_physical_map", logical,
                            "replica_count", replicas, "imbalance", "even", spread_json(&w->even),
                            "exact", spread_json(&w->exact), "moves", moves_json(w), "n_moves",
                            (json_int_t)w->n_moves, "explanation", advice_json(w));
    if (w->request.expert_bytes)
        json_object_set_new(out, "moved_bytes", json_integer(w->n_moves * w->request.expert_bytes));
    if (status != LPLB_OK) {
        json_decref(out);
        return cli_fail_status(w->name, status);
    }
    return cli_print_json(out);
}

static void print_table(const place_work *w) {
    const lplb_placement *p = w->placement;
    printf("%s: %d layers, %d experts in %d slots on %d ranks, from %lld %s\n",
           w->request.algorithm, p->layers, p->experts, p->slots, p->ranks, (long long)w->placed,
           w->placed == 1 ? "sum of loads" : "batches");
    if (w->trace->kind == LPLB_TRACE_TOPK)
        printf("batches of %lld tokens (--batch-tokens); replay on other batches than these\n",
               (long long)w->request.config.batch_tokens);
    if (w->placed < w->samples)
        printf("imbalance (max / mean of ranks) on the other %lld:\n",
               (long long)(w->samples - w->placed));
    else printf("predicted imbalance (max / mean of ranks) on these loads:\n");
    printf("  even split   mean %.4f   worst %.4f\n", w->even.mean, w->even.max);
    printf("  exact plan   mean %.4f   worst %.4f\n", w->exact.mean, w->exact.max);
    if (w->from) {
        int64_t slots = (int64_t)p->layers * p->slots;
        printf("moves: %lld of %lld slots (%.1f %%)", (long long)w->n_moves, (long long)slots,
               100.0 * (double)w->n_moves / (double)slots);
        if (w->request.expert_bytes)
            printf(", %.3f GB", 1e-9 * (double)w->n_moves * (double)w->request.expert_bytes);
        putchar('\n');
    }
    if (w->n_advice) printf("in the way on the summed loads:\n");
    for (int32_t i = 0; i < w->n_advice; i++) {
        const advice *a = &w->advice[i];
        printf("  layer %d: %.3f at best, because of ranks", a->layer, a->bound);
        for (int32_t r = 0; r < p->ranks; r++)
            if (in_set(a->bottleneck, r)) printf(" %d", r);
        if (a->expert >= 0)
            printf("; a copy of expert %d on rank %d would allow %.3f", a->expert, a->rank,
                   a->better);
        putchar('\n');
    }
    if (w->request.out) printf("written: %s\n", w->request.out);
}

static lplb_status place(place_work *w) {
    const lplb_trace *t = w->trace;
    w->placed = (int64_t)(w->request.history * (double)w->samples);
    if (w->placed < 1) w->placed = 1;
    cli_progress(0, "placing (--work bounds the search)", NULL);
    lplb_status status = lplb_place(&w->request.config, w->load, w->placed, t->layers, t->experts,
                                    NULL, &w->placement);
    if (status == LPLB_OK) cli_progress(0.5, "measuring what was placed", NULL);
    if (status == LPLB_OK) status = measure(w, LPLB_SOLVER_EVEN, &w->even);
    if (status == LPLB_OK) status = measure(w, LPLB_SOLVER_EXACT, &w->exact);
    if (status == LPLB_OK) status = find_moves(w);
    if (status == LPLB_OK) status = advise(w);
    if (status == LPLB_OK && w->request.out)
        status = lplb_placement_write(w->placement, LPLB_PLACEMENT_SGLANG, w->request.out);
    cli_progress(1, "", NULL); /* clears the line */
    return status;
}

int place_run(const char *name, const place_request *request) {
    place_work w = {.name = name, .request = *request};
    int code = read_lists(&w);
    if (code == EXIT_OK) {
        lplb_status status = open_inputs(&w);
        if (status == LPLB_OK) status = place(&w);
        if (status != LPLB_OK) code = cli_fail_status(name, status);
        else if (request->json) code = print_json(&w);
        else print_table(&w);
    }
    for (int32_t i = 0; i < w.n_advice; i++) free(w.advice[i].bottleneck);
    lplb_trace_destroy(w.trace);
    lplb_placement_destroy(w.from);
    lplb_placement_destroy(w.placement);
    lplb_topology_destroy(w.topology);
    free(w.slots_per_rank);
    free(w.dead);
    free(w.load);
    free(w.moves);
    return code;
}
