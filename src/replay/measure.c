/* The measured batches, driven through every policy. Work is cut into (layer, run of batches)
 * items; all of it is integers or lands in its own place, so threads change nothing. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "replay/replay.h"

/* Batches of one item: planners are made once an item, and must not cost more than solving. */
enum { ITEM_BATCHES = 64 };

typedef struct tally {
    int64_t moved_tokens, internode_tokens, not_converged;
} tally;

/* One worker's arrays; what it has for the item at hand. */
typedef struct scratch {
    lplb__arena arena;
    int64_t *sources, *before; /* [G][E], [G+1][E] */
    int64_t *offset;           /* [policies][E+1] */
    int32_t *rank;             /* [policies][most slots] */
    lplb_hosts *hosts;         /* [policies] */
    int32_t *slots_of_host;    /* [policies][most slots] */
    lplb_planner **planner;    /* [policies], NULL for ideal and even */
    int64_t *split, *loads;    /* [most slots], [G] */
    int64_t *tiled, *active;   /* [G] */
    lplb__flow flow;
} scratch;

typedef struct measurement {
    lplb__replay *run;
    int64_t chunks; /* items of a layer */
    int32_t most_slots;
    int32_t *first_rank; /* [nodes+1] */
    scratch *worker;     /* [threads] */
    tally *tally;        /* [items][policies] */
    float *plan_us;      /* [policies][L][measured] */
    double *pair_us;     /* the same: predicted time; NULL without a model */
} measurement;

static int64_t pairs(const lplb__replay *run) {
    return (int64_t)run->layers * run->result->measured;
}

/* ---- one pair ---- */

static void count_pair(const measurement *m, scratch *s, int32_t layer, int64_t batch) {
    const lplb__replay *run = m->run;
    int64_t G = run->ranks, E = run->experts;
    lplb__replay_sources(run, layer, run->history + batch, s->sources);
    for (int64_t i = 0; i < G * E; i++) s->before[E + i] = s->before[i] + s->sources[i];
    memcpy(run->result->counts + (layer * run->result->measured + batch) * E, s->before + G * E,
           (size_t)E * sizeof(int64_t));
}

static double predict(const measurement *m, const scratch *s, int32_t i) {
    const lplb_gpu_model *model = m->run->config.gpu_model;
    lplb__gpu_loads(model, &s->hosts[i], s->split, s->tiled, s->active);
    double gemm = 0, link = 0;
    for (int32_t r = 0; r < m->run->ranks; r++) {
        double g = lplb__gpu_gemm_us(model, (double)s->tiled[r], (double)s->active[r]);
        double l = lplb__gpu_link_us(model, s->flow.on_node[r] - s->flow.on_rank[r],
                                     s->loads[r] - s->flow.on_node[r]);
        if (g > gemm) gemm = g;
        if (l > link) link = l;
    }
    return model->us_per_layer + (m->run->policy[i].solves ? model->us_per_plan : 0) + gemm + link;
}

/* What could not be better: perfectly even ranks, every token at home. */
static void ideal_pair(const measurement *m, int32_t i, int64_t pair, const int64_t *tokens,
                       int64_t total) {
    lplb__replay *run = m->run;
    lplb_policy_result *result = &run->result->policy[i];
    int64_t G = run->ranks, most = (total + G - 1) / G, active = 0;
    result->pair_imbalance[pair] = (double)most / ((double)total / (double)G);
    for (int32_t e = 0; e < run->experts; e++) active += tokens[e] > 0;
    if (m->pair_us)
        m->pair_us[i * pairs(run) + pair] =
            run->config.gpu_model->us_per_layer +
            lplb__gpu_gemm_us(run->config.gpu_model, (double)most, (double)active / (double)G);
    for (int64_t r = 0; r < G && result->loads; r++)
        result->loads[pair * G + r] = total / G + (r < total % G);
}

/* What engines do that choose among an expert's copies blindly: each copy gets an even share, the
 * extra tokens the lower slots. Where a rank holds two copies of an expert, that differs from an
 * even split over its hosts. */
void lplb__even_over_slots(const lplb_hosts *hosts, const int32_t *slots_of_host,
                           const int64_t *tokens, int64_t *split) {
    for (int32_t e = 0; e < hosts->experts; e++) {
        int64_t slots = 0, first = 0;
        for (int64_t h = hosts->offset[e]; h < hosts->offset[e + 1]; h++) slots += slots_of_host[h];
        int64_t each = tokens[e] / slots, extra = tokens[e] % slots;
        for (int64_t h = hosts->offset[e]; h < hosts->offset[e + 1]; h++) {
            int64_t end = first + slots_of_host[h];
            split[h] = each * slots_of_host[h] + (end < extra ? end : extra) -
                       (first < extra ? first : extra);
            first = end;
        }
    }
}

static void sum_loads(const lplb_hosts *hosts, const int64_t *split, int64_t *loads,
                      int64_t *most) {
    memset(loads, 0, (size_t)hosts->ranks * sizeof *loads);
    for (int64_t h = 0; h < hosts->offset[hosts->experts]; h++) loads[hosts->rank[h]] += split[h];
    *most = 0;
    for (int32_t r = 0; r < hosts->ranks; r++)
        if (loads[r] > *most) *most = loads[r];
}

static lplb_status policy_pair(const measurement *m, scratch *s, int32_t i, int64_t pair,
                               const int64_t *tokens, int64_t total, tally *t) {
    lplb__replay *run = m->run;
    lplb_policy_result *result = &run->result->policy[i];
    const lplb__policy *policy = &run->policy[i];
    lplb_plan_input input = {.tokens = tokens, .sources = policy->locality ? s->sources : NULL};
    lplb_plan plan = {.split = s->split, .loads = s->loads};
    if (policy->solves) {
        int64_t start = lplb__now_ns();
        LPLB_TRY(lplb_plan_solve(s->planner[i], &input, &plan));
        m->plan_us[i * pairs(run) + pair] = (float)(lplb__now_ns() - start) / 1e3f;
    } else {
        lplb__even_over_slots(&s->hosts[i], s->slots_of_host + (int64_t)i * m->most_slots, tokens,
                              s->split);
        sum_loads(&s->hosts[i], s->split, s->loads, &plan.max_load);
    }
    lplb__flow_of_split(&s->flow, &s->hosts[i], s->split, policy->locality);
    int64_t on_rank = 0, on_node = 0;
    for (int32_t r = 0; r < run->ranks; r++) {
        on_rank += s->flow.on_rank[r];
        on_node += s->flow.on_node[r];
    }
    t->moved_tokens += total - on_rank;
    t->internode_tokens += total - on_node;
    t->not_converged += plan.outcome == LPLB_OUTCOME_NOT_CONVERGED;
    result->pair_imbalance[pair] = (double)plan.max_load / ((double)total / (double)run->ranks);
    if (result->loads)
        memcpy(result->loads + pair * run->ranks, s->loads, (size_t)run->ranks * sizeof(int64_t));
    if (m->pair_us) m->pair_us[i * pairs(run) + pair] = predict(m, s, i);
    return LPLB_OK;
}

/* ---- one item ---- */

void lplb__count_slots(const lplb_placement *placement, int32_t layer, const lplb_hosts *hosts,
                       int32_t *slots_of_host) {
    memset(slots_of_host, 0, (size_t)hosts->offset[hosts->experts] * sizeof *slots_of_host);
    const int32_t *expert = placement->physical_to_logical + (int64_t)layer * placement->slots;
    for (int32_t r = 0; r < placement->ranks; r++)
        for (int32_t p = placement->rank_offset[r]; p < placement->rank_offset[r + 1]; p++) {
            if (expert[p] < 0) continue;
            int64_t h = hosts->offset[expert[p]];
            while (hosts->rank[h] != r) h++;
            slots_of_host[h]++;
        }
}

static lplb_status make_planners(const measurement *m, scratch *s, int32_t layer) {
    const lplb__replay *run = m->run;
    for (int32_t i = 0; i < run->result->policies; i++) {
        const lplb_placement *placement = run->result->policy[i].placement;
        if (!placement) continue;
        LPLB_TRY(lplb_placement_hosts(placement, layer, s->offset + i * (run->experts + 1),
                                      s->rank + (int64_t)i * m->most_slots, &s->hosts[i]));
        if (!run->policy[i].solves) {
            lplb__count_slots(placement, layer, &s->hosts[i],
                              s->slots_of_host + (int64_t)i * m->most_slots);
            continue;
        }
        lplb_plan_config config = run->policy[i].plan;
        config.hosts = s->hosts[i];
        config.node = run->node;
        if (lplb_planner_create(&config, &s->planner[i]) != LPLB_OK)
            return LPLB_FAIL(LPLB_INVALID, "policy '%s': %s", run->result->policy[i].policy,
                             lplb_error_message());
    }
    return LPLB_OK;
}

static void drop_planners(const measurement *m, scratch *s) {
    for (int32_t i = 0; i < m->run->result->policies; i++) {
        lplb_planner_destroy(s->planner[i]);
        s->planner[i] = NULL;
    }
}

static lplb_status measure_pair(const measurement *m, scratch *s, int32_t layer, int64_t batch,
                                tally *t) {
    const lplb__replay *run = m->run;
    count_pair(m, s, layer, batch);
    const int64_t *tokens = s->before + (int64_t)run->ranks * run->experts;
    int64_t total = 0, pair = layer * run->result->measured + batch;
    for (int32_t e = 0; e < run->experts; e++) total += tokens[e];
    for (int32_t i = 0; i < run->result->policies && total > 0; i++)
        if (run->policy[i].kind == LPLB__KIND_IDEAL) ideal_pair(m, i, pair, tokens, total);
        else LPLB_TRY(policy_pair(m, s, i, pair, tokens, total, &t[i]));
    return LPLB_OK;
}

static lplb_status measure_item(int64_t item, int worker, void *context) {
    const measurement *m = context;
    const lplb__replay *run = m->run;
    scratch *s = &m->worker[worker];
    int32_t layer = (int32_t)(item / m->chunks);
    int64_t first = item % m->chunks * ITEM_BATCHES, end = first + ITEM_BATCHES;
    if (end > run->result->measured) end = run->result->measured;
    lplb_status status = make_planners(m, s, layer);
    for (int64_t b = first; b < end && status == LPLB_OK; b++)
        status = measure_pair(m, s, layer, b, m->tally + item * run->result->policies);
    drop_planners(m, s);
    if (worker == 0)
        lplb__replay_progress(run, 0.7 + 0.3 * (double)item / (double)(m->chunks * run->layers),
                              "measuring");
    return status;
}

/* ---- before and after ---- */

static lplb_status make_scratch(const measurement *m, scratch *s) {
    const lplb__replay *run = m->run;
    int64_t G = run->ranks, E = run->experts, n = run->result->policies;
    for (int pass = 0; pass < 2; pass++) {
#define TAKE(field, count)                                                                         \
    do {                                                                                           \
        if (pass == 0) lplb__arena_reserve(&s->arena, (count), sizeof *s->field);                  \
        else s->field = lplb__arena_take(&s->arena, (count), sizeof *s->field);                    \
    } while (0)
        TAKE(sources, G * E);
        TAKE(before, (G + 1) * E);
        TAKE(offset, n * (E + 1));
        TAKE(rank, n * m->most_slots);
        TAKE(slots_of_host, n * m->most_slots);
        TAKE(hosts, n);
        TAKE(planner, n);
        TAKE(split, m->most_slots);
        TAKE(loads, G);
        TAKE(tiled, G);
        TAKE(active, G);
        TAKE(flow.on_rank, G);
        TAKE(flow.on_node, G);
        TAKE(flow.node_left, run->nodes);
#undef TAKE
        if (pass == 0) LPLB_TRY(lplb__arena_create(&s->arena));
    }
    s->flow.node = run->node;
    s->flow.nodes = run->nodes;
    s->flow.sources = s->sources;
    s->flow.before = s->before;
    s->flow.first_rank = m->first_rank;
    return LPLB_OK;
}

static lplb_status prepare(measurement *m) {
    lplb__replay *run = m->run;
    lplb_replay_result *result = run->result;
    int64_t items = m->chunks * run->layers;
    for (int32_t i = 0; i < result->policies; i++) {
        lplb_policy_result *p = &result->policy[i];
        if (p->placement && p->placement->slots > m->most_slots)
            m->most_slots = p->placement->slots;
        LPLB_TRY(LPLB_CALLOC(p->pair_imbalance, pairs(run)));
        if (run->config.keep_loads) LPLB_TRY(LPLB_CALLOC(p->loads, pairs(run) * run->ranks));
    }
    LPLB_TRY(LPLB_CALLOC(result->counts, pairs(run) * run->experts));
    LPLB_TRY(LPLB_CALLOC(m->first_rank, run->nodes + 1));
    for (int32_t n = 0; n <= run->nodes; n++) m->first_rank[n] = n * (run->ranks / run->nodes);
    LPLB_TRY(LPLB_CALLOC(m->tally, items * result->policies));
    LPLB_TRY(LPLB_CALLOC(m->plan_us, result->policies * pairs(run)));
    if (run->config.gpu_model) LPLB_TRY(LPLB_CALLOC(m->pair_us, result->policies * pairs(run)));
    LPLB_TRY(LPLB_CALLOC(m->worker, lplb__pool_threads(run->pool)));
    for (int w = 0; w < lplb__pool_threads(run->pool); w++)
        LPLB_TRY(make_scratch(m, &m->worker[w]));
    return LPLB_OK;
}

static void drop(measurement *m) {
    for (int w = 0; m->worker && w < lplb__pool_threads(m->run->pool); w++)
        lplb__arena_destroy(&m->worker[w].arena);
    void *blocks[] = {m->worker, m->first_rank, m->tally, m->plan_us, m->pair_us};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) lplb__free(blocks[i]);
}

lplb_status lplb__replay_measure(lplb__replay *run) {
    measurement m = {.run = run, .chunks = (run->result->measured - 1) / ITEM_BATCHES + 1};
    lplb_status status = prepare(&m);
    if (status == LPLB_OK)
        status = lplb__pool_run(run->pool, m.chunks * run->layers, measure_item, &m);
    for (int32_t i = 0; i < run->result->policies && status == LPLB_OK; i++) {
        for (int64_t item = 0; item < m.chunks * run->layers; item++) {
            const tally *t = &m.tally[item * run->result->policies + i];
            run->result->policy[i].moved_tokens += t->moved_tokens;
            run->result->policy[i].internode_tokens += t->internode_tokens;
            run->result->policy[i].not_converged += t->not_converged;
        }
        status = lplb__replay_sum_up(run, i, m.plan_us + i * pairs(run),
                                     m.pair_us ? m.pair_us + i * pairs(run) : NULL);
    }
    drop(&m);
    return status;
}
