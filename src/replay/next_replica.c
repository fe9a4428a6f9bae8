/* Which one more copy of an expert would help a layer most: copies of the experts that make its
 * bottlenecks are tried on ranks with room, and the batches solved again. */
#include <stdlib.h>
#include <string.h>

#include "replay/analysis.h"

/* Above this many ranks a solve takes long and fewer candidates are tried. */
enum { FEW_RANKS = 16, CANDIDATES_FEW = 8, CANDIDATES_MANY = 4 };

typedef struct trial {
    const lplb__analysis_run *run;
    const lplb_hosts *hosts;
    int32_t layer;
    int64_t *batch, batches; /* on which candidates are tried */
    int64_t *offset;         /* [E+1] of the hosts with one more copy */
    int32_t *rank;           /* [slots+1] */
    int64_t *split, *loads, *load_sum;
    double *score;            /* [E] tokens in bottlenecks */
    int32_t *expert, *target; /* candidates, most promising first */
} trial;

/* Mean of max load / mean load over the trial batches under the exact split; adds the loads up. */
static lplb_status solve_all(trial *t, const lplb_hosts *hosts, double *mean) {
    const lplb_plan_config config = {.struct_size = sizeof config, .hosts = *hosts};
    lplb_planner *planner;
    LPLB_TRY(lplb_planner_create(&config, &planner));
    memset(t->load_sum, 0, (size_t)hosts->ranks * sizeof *t->load_sum);
    lplb_status status = LPLB_OK;
    double sum = 0;
    for (int64_t i = 0; i < t->batches && status == LPLB_OK; i++) {
        lplb_plan_input input = {.tokens = lplb__analysis_tokens(t->run, t->layer, t->batch[i])};
        lplb_plan plan = {.split = t->split, .loads = t->loads};
        status = lplb_plan_solve(planner, &input, &plan);
        int64_t total = 0;
        for (int32_t r = 0; r < hosts->ranks; r++) {
            total += t->loads[r];
            t->load_sum[r] += t->loads[r];
        }
        sum += (double)plan.max_load * hosts->ranks / (double)total;
    }
    lplb_planner_destroy(planner);
    *mean = sum / (double)t->batches;
    return status;
}

/* hosts plus one more of expert e on rank r, ascending. */
static lplb_hosts with_copy(const trial *t, int32_t e, int32_t r) {
    const lplb_hosts *from = t->hosts;
    int64_t at = from->offset[e], n = from->offset[from->experts];
    while (at < from->offset[e + 1] && from->rank[at] < r) at++;
    memcpy(t->rank, from->rank, (size_t)at * sizeof *t->rank);
    t->rank[at] = r;
    memcpy(t->rank + at + 1, from->rank + at, (size_t)(n - at) * sizeof *t->rank);
    for (int32_t i = 0; i <= from->experts; i++) t->offset[i] = from->offset[i] + (i > e);
    return (lplb_hosts){
        .ranks = from->ranks, .experts = from->experts, .offset = t->offset, .rank = t->rank};
}

static bool hosted(const lplb_hosts *hosts, int32_t e, int32_t r) {
    for (int64_t h = hosts->offset[e]; h < hosts->offset[e + 1]; h++)
        if (hosts->rank[h] == r) return true;
    return false;
}

/* Evenly spaced, with and without a bottleneck, so that the gain found is the gain of the
 * layer. */
static void choose_batches(trial *t) {
    const lplb__analysis_run *run = t->run;
    int64_t loaded = 0, want = run->max_trials < run->batches ? run->max_trials : run->batches;
    for (int64_t k = 0; k < want; k++) {
        int64_t b = run->first_batch + k * run->batches / want;
        const int64_t *tokens = lplb__analysis_tokens(run, t->layer, b);
        int32_t e = 0;
        while (e < t->hosts->experts && tokens[e] == 0) e++;
        if (e < t->hosts->experts) t->batch[loaded++] = b;
    }
    t->batches = loaded;
}

/* The n first of [0, count) by falling key, ties to the lower index. */
static void pick(const double *key, int32_t count, int32_t n, int32_t *out) {
    for (int32_t k = 0; k < n; k++) {
        int32_t best = -1;
        for (int32_t i = 0; i < count; i++) {
            bool taken = false;
            for (int32_t j = 0; j < k; j++) taken |= out[j] == i;
            if (!taken && (best < 0 || key[i] > key[best])) best = i;
        }
        out[k] = best;
    }
}

static lplb_status try_all(trial *t, const lplb__layer_analysis *layer, lplb_next_replica *best) {
    const lplb_hosts *hosts = t->hosts;
    int32_t G = hosts->ranks, E = hosts->experts;
    int32_t most = G <= FEW_RANKS ? CANDIDATES_FEW : CANDIDATES_MANY;
    int32_t experts = most < E ? most : E, targets = most < G ? most : G;
    for (int64_t i = 0; i < layer->limited; i++) {
        const lplb__binding *b = &layer->binding[i];
        const int64_t *tokens = lplb__analysis_tokens(t->run, t->layer, b->batch);
        for (int32_t e = 0; e < E; e++)
            if (lplb__confined(hosts, e, b->set)) t->score[e] += (double)tokens[e];
    }
    pick(t->score, E, experts, t->expert);
    LPLB_TRY(solve_all(t, hosts, &best->before));
    for (int32_t r = 0; r < G; r++) t->score[r] = -(double)t->load_sum[r];
    pick(t->score, G, targets, t->target);
    best->after = best->before;
    for (int32_t i = 0; i < experts * targets; i++) {
        int32_t e = t->expert[i / targets], r = t->target[i % targets];
        if (hosted(hosts, e, r)) continue;
        lplb_hosts more = with_copy(t, e, r);
        double after;
        LPLB_TRY(solve_all(t, &more, &after));
        if (after < best->after) {
            best->after = after;
            best->expert = e;
            best->rank = r;
        }
    }
    return LPLB_OK;
}

lplb_status lplb__find_replica(const lplb__analysis_run *run, const lplb_hosts *hosts,
                               int32_t layer, lplb__layer_analysis *out) {
    int64_t E = hosts->experts, G = hosts->ranks, copies = hosts->offset[E] + 1;
    lplb__arena arena = {0};
    trial t = {.run = run, .hosts = hosts, .layer = layer};
    for (int pass = 0; pass < 2; pass++) {
#define TAKE(field, count)                                                                         \
    do {                                                                                           \
        if (pass == 0) lplb__arena_reserve(&arena, (count), sizeof *t.field);                      \
        else t.field = lplb__arena_take(&arena, (count), sizeof *t.field);                         \
    } while (0)
        TAKE(batch, run->max_trials);
        TAKE(offset, E + 1);
        TAKE(rank, copies);
        TAKE(split, copies);
        TAKE(loads, G);
        TAKE(load_sum, G);
        TAKE(score, E > G ? E : G);
        TAKE(expert, CANDIDATES_FEW);
        TAKE(target, CANDIDATES_FEW);
#undef TAKE
        if (pass == 0) LPLB_TRY(lplb__arena_create(&arena));
    }
    choose_batches(&t);
    out->replica = (lplb_next_replica){.layer = layer, .expert = -1, .rank = -1};
    lplb_status status = t.batches ? try_all(&t, out, &out->replica) : LPLB_OK;
    out->has_replica = out->replica.expert >= 0;
    lplb__arena_destroy(&arena);
    return status;
}
