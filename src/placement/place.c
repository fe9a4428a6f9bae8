/* lplb_place: checks what is asked, sums the loads, and calls the algorithm. */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/mem.h"
#include "placement/search.h"

static const char *algorithm_name(lplb_place_algorithm algorithm) {
    static const char *const names[] = {"eplb", "topology", "search"};
    return names[algorithm];
}

/* ---- checks ---- */

static lplb_status check_loads(const lplb__place_task *task) {
    for (int64_t s = 0; s < task->samples; s++) {
        if (task->weight && !(isfinite(task->weight[s]) && task->weight[s] >= 0))
            return LPLB_FAIL(LPLB_RANGE, "weight %g of sample %lld must be finite and not negative",
                             task->weight[s], (long long)s);
        for (int32_t layer = 0; layer < task->layers; layer++) {
            const int64_t *row = lplb__task_row(task, s, layer);
            int64_t sum = 0;
            for (int32_t e = 0; e < task->experts; e++) {
                if (row[e] < 0)
                    return LPLB_FAIL(LPLB_RANGE,
                                     "sample %lld, layer %d, expert %d: load %lld is "
                                     "negative",
                                     (long long)s, layer, e, (long long)row[e]);
                if (row[e] > LPLB_MAX_TOKENS / task->samples - sum)
                    return LPLB_FAIL(LPLB_OVERFLOW,
                                     "layer %d: the loads add up to more than 2^62 tokens", layer);
                sum += row[e];
            }
        }
    }
    return LPLB_OK;
}

static lplb_status check_ranks(const lplb_place_config *c, int32_t experts) {
    int64_t free_slots = 0;
    int32_t alive = 0;
    for (int32_t r = 0; r < c->ranks; r++) {
        if (c->speed && (c->speed[r] < 1 || c->speed[r] > LPLB_MAX_SPEED))
            return LPLB_FAIL(LPLB_RANGE, "speed %lld of rank %d is outside [1, %d]",
                             (long long)c->speed[r], r, LPLB_MAX_SPEED);
        if (c->dead_ranks && c->dead_ranks[r]) continue;
        alive++;
        free_slots += c->slots_per_rank ? c->slots_per_rank[r] : c->slots / c->ranks;
    }
    if (!alive) return LPLB_FAIL(LPLB_INFEASIBLE, "all %d ranks are dead", c->ranks);
    if (free_slots < experts)
        return LPLB_FAIL(LPLB_INFEASIBLE,
                         "%d ranks alive have %lld slots for %d experts: %lld slots are missing",
                         alive, (long long)free_slots, experts, (long long)(experts - free_slots));
    return LPLB_OK;
}

static lplb_status check_from(const lplb_place_config *c, const lplb__place_task *task) {
    if (!c->from) return LPLB_OK;
    if (c->from->layers != task->layers || c->from->experts != task->experts)
        return LPLB_FAIL(LPLB_INVALID,
                         "the present placement has %d layers of %d experts, the load %d of %d",
                         c->from->layers, c->from->experts, task->layers, task->experts);
    return lplb_placement_validate(c->from);
}

/* What only the search can do is refused by the others, never ignored. */
static lplb_status check_only_search(const lplb_place_config *c) {
    const char *name = algorithm_name(c->algorithm), *what = NULL;
    if (c->algorithm == LPLB_PLACE_SEARCH) return LPLB_OK;
    if (c->from) what = "start from a present placement";
    for (int32_t r = 1; r < c->ranks; r++) {
        if (c->speed && c->speed[r] != c->speed[0]) what = "take ranks of different speed";
        if (c->slots_per_rank && c->slots_per_rank[r] != c->slots_per_rank[0])
            what = "take unequal slots per rank";
    }
    if (what) return LPLB_FAIL(LPLB_UNSUPPORTED, "%s cannot %s; `search` can", name, what);
    return LPLB_OK;
}

static lplb_status check_task(const lplb__place_task *task) {
    const lplb_place_config *c = task->config;
    if (c->struct_size != sizeof *c)
        return LPLB_FAIL(LPLB_INVALID,
                         "config.struct_size is %zu, must be %zu (set it to "
                         "sizeof(lplb_place_config))",
                         c->struct_size, sizeof *c);
    if ((unsigned)c->algorithm > LPLB_PLACE_SEARCH)
        return LPLB_FAIL(LPLB_INVALID, "algorithm %d does not exist", (int)c->algorithm);
    if (task->samples < 1)
        return LPLB_FAIL(LPLB_INVALID, "at least one sample of loads is needed, not %lld",
                         (long long)task->samples);
    if (c->nodes < 0 || c->groups < 0 || c->batch_tokens < 0 || c->topk < 0 || c->effort < 0)
        return LPLB_FAIL(LPLB_INVALID,
                         "nodes, groups, batch_tokens, topk and effort must not be negative");
    if (c->work < 0) return LPLB_FAIL(LPLB_RANGE, "work %lld is negative", (long long)c->work);
    if (!(c->move_cost >= 0 && c->move_cost <= 1e6))
        return LPLB_FAIL(LPLB_RANGE, "move_cost %g is outside [0, 1e6]", c->move_cost);
    if (c->exact_split < 0 || c->exact_split > 2)
        return LPLB_FAIL(LPLB_INVALID, "exact_split is 0, 1 or 2, not %d", c->exact_split);
    if (c->topology && c->algorithm != LPLB_PLACE_TOPOLOGY)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "%s has no use for a topology",
                         algorithm_name(c->algorithm));
    LPLB_TRY(check_ranks(c, task->experts));
    LPLB_TRY(check_only_search(c));
    LPLB_TRY(check_from(c, task));
    return check_loads(task);
}

/* ---- loads ---- */

/* Sum over the samples, weighted, as EPLB's float32. */
static void sum_loads(const lplb__place_task *task, int32_t layer, double *sum, float *load) {
    memset(sum, 0, (size_t)task->experts * sizeof *sum);
    for (int64_t s = 0; s < task->samples; s++) {
        const int64_t *row = lplb__task_row(task, s, layer);
        double weight = task->weight ? task->weight[s] : 1;
        for (int32_t e = 0; e < task->experts; e++) sum[e] += weight * (double)row[e];
    }
    for (int32_t e = 0; e < task->experts; e++) load[e] = (float)sum[e];
}

static bool is_zero(const float *load, int32_t experts) {
    for (int32_t e = 0; e < experts; e++)
        if (load[e] > 0) return false;
    return true;
}

/* Survivors in rank order; returns how many. */
static int32_t list_alive(const lplb_place_config *c, int32_t *alive) {
    int32_t n = 0;
    for (int32_t r = 0; r < c->ranks; r++)
        if (!c->dead_ranks || !c->dead_ranks[r]) alive[n++] = r;
    return n;
}

/* Copies a layer laid out over the survivors' slots to their places. */
static void spread_to_alive(const int32_t *rank_offset, const int32_t *packed, const int32_t *alive,
                            int32_t n_alive, int32_t *map) {
    for (int32_t i = 0; i < n_alive; i++)
        for (int32_t s = rank_offset[alive[i]]; s < rank_offset[alive[i] + 1]; s++)
            map[s] = *packed++;
}

/* ---- EPLB and topology; both have the same slots on every rank ---- */

/* Survivors of a node must be as many as those of any other to keep EPLB's hierarchical form. */
static lplb_status check_nodes_alive(const lplb_place_config *c, const int32_t *alive,
                                     int32_t n_alive) {
    int32_t nodes = c->nodes ? c->nodes : 1, per_node = c->ranks / nodes, count = 0;
    if (c->ranks % nodes)
        return LPLB_FAIL(LPLB_INVALID, "%d ranks do not divide over %d nodes", c->ranks, nodes);
    for (int32_t i = 0; i < n_alive; i++) {
        if (i && alive[i] / per_node != alive[i - 1] / per_node) count = 0;
        if (++count > n_alive / nodes)
            return LPLB_FAIL(LPLB_UNSUPPORTED,
                             "the survivors are spread unevenly over %d nodes; use 1 node, or "
                             "`search`",
                             nodes);
    }
    return LPLB_OK;
}

static lplb_status eplb_layer(const lplb_place_config *c, int32_t experts, int32_t slots,
                              int32_t n_alive, const float *load, int32_t *packed) {
    return lplb_eplb_rebalance_experts(load, 1, experts, slots, c->groups ? c->groups : 1,
                                       c->nodes ? c->nodes : 1, n_alive, packed, NULL, NULL);
}

/* Originals heaviest first on each rank, then redundant slot k = number k of rank r2o[r][k mod D]
 * of the same group of ranks. */
static void add_redundant(const lplb_topology *t, int32_t ranks, int32_t originals, int32_t slots,
                          const int32_t *packed, int32_t *map) {
    for (int32_t r = 0; r < ranks; r++) {
        int32_t group = r / t->group_size * t->group_size;
        memcpy(map + r * slots, packed + r * originals, (size_t)originals * sizeof *map);
        for (int32_t k = 0; k < slots - originals; k++) {
            int32_t from = group + t->r2o[(r - group) * t->redundant + k % t->redundant];
            map[r * slots + originals + k] = packed[from * originals + k];
        }
    }
}

static lplb_status check_topology(const lplb_place_config *c, int32_t experts, int32_t n_alive) {
    const lplb_topology *t = c->topology;
    int32_t originals = experts / c->ranks, redundant = c->slots / c->ranks - originals;
    if (n_alive < c->ranks)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "topology needs every rank alive; `search` does not");
    if (experts % c->ranks)
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "topology needs as many experts on every rank: %d experts do not divide "
                         "by %d ranks",
                         experts, c->ranks);
    if (redundant > originals)
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "topology copies each expert at most once: %d redundant slots a rank are "
                         "more than its %d experts",
                         redundant, originals);
    if (t && c->ranks % t->group_size)
        return LPLB_FAIL(LPLB_INVALID, "%d ranks do not divide into groups of %d, the size of r2o",
                         c->ranks, t->group_size);
    return LPLB_OK;
}

typedef struct simple_scratch {
    float *load;               /* [E] */
    double *sum;               /* [E] */
    int32_t *alive;            /* [G] */
    int32_t *packed, *layered; /* [P] */
    lplb_topology *topology;   /* the default one, if it was made here */
} simple_scratch;

static void simple_destroy(simple_scratch *s) {
    lplb__free(s->load);
    lplb__free(s->sum);
    lplb__free(s->alive);
    lplb__free(s->packed);
    lplb__free(s->layered);
    lplb_topology_destroy(s->topology);
}

static lplb_status simple_prepare(simple_scratch *s, const lplb__place_task *task,
                                  int32_t *n_alive) {
    const lplb_place_config *c = task->config;
    int32_t redundant = c->slots / c->ranks - task->experts / c->ranks;
    LPLB_TRY(LPLB_CALLOC(s->load, task->experts));
    LPLB_TRY(LPLB_CALLOC(s->sum, task->experts));
    LPLB_TRY(LPLB_CALLOC(s->alive, c->ranks));
    LPLB_TRY(LPLB_CALLOC(s->packed, c->slots));
    LPLB_TRY(LPLB_CALLOC(s->layered, c->slots));
    *n_alive = list_alive(c, s->alive);
    LPLB_TRY(check_nodes_alive(c, s->alive, *n_alive));
    if (c->algorithm != LPLB_PLACE_TOPOLOGY) return LPLB_OK;
    LPLB_TRY(check_topology(c, task->experts, *n_alive));
    if (!c->topology && redundant > 0)
        LPLB_TRY(lplb_topology_create("", c->ranks, redundant, &s->topology));
    return LPLB_OK;
}

static lplb_status simple_layer(simple_scratch *s, const lplb__place_task *task, int32_t layer,
                                int32_t n_alive, const int32_t *rank_offset, int32_t *map) {
    const lplb_place_config *c = task->config;
    int32_t per_rank = c->slots / c->ranks, slots = per_rank * n_alive, experts = task->experts;
    const lplb_topology *topology = c->topology ? c->topology : s->topology;
    sum_loads(task, layer, s->sum, s->load);
    if (is_zero(s->load, experts)) {
        for (int32_t i = 0; i < slots; i++) s->packed[i] = i % experts;
    } else if (c->algorithm == LPLB_PLACE_EPLB) {
        LPLB_TRY(eplb_layer(c, experts, slots, n_alive, s->load, s->packed));
    } else {
        int32_t *out = slots > experts ? s->layered : s->packed;
        LPLB_TRY(eplb_layer(c, experts, experts, n_alive, s->load, out));
        if (slots > experts)
            add_redundant(topology, c->ranks, experts / c->ranks, per_rank, out, s->packed);
    }
    spread_to_alive(rank_offset, s->packed, s->alive, n_alive, map);
    return LPLB_OK;
}

static lplb_status place_simple(const lplb__place_task *task, const lplb_placement *p) {
    simple_scratch s = {0};
    int32_t n_alive;
    lplb_status status = simple_prepare(&s, task, &n_alive);
    for (int32_t layer = 0; status == LPLB_OK && layer < task->layers; layer++)
        status = simple_layer(&s, task, layer, n_alive, p->rank_offset,
                              p->physical_to_logical + (int64_t)layer * p->slots);
    simple_destroy(&s);
    return status;
}

lplb_status lplb__place_simple_layer(const lplb__place_task *task, const lplb_placement *shape,
                                     int32_t layer, int32_t *map) {
    simple_scratch s = {0};
    int32_t n_alive;
    for (int32_t i = 0; i < shape->slots; i++) map[i] = -1;
    LPLB_TRY(check_only_search(task->config));
    lplb_status status = simple_prepare(&s, task, &n_alive);
    if (status == LPLB_OK) status = simple_layer(&s, task, layer, n_alive, shape->rank_offset, map);
    simple_destroy(&s);
    return status;
}

lplb_status lplb_place(const lplb_place_config *config, const int64_t *load, int64_t samples,
                       int32_t layers, int32_t experts, const double *weight_of_sample,
                       lplb_placement **out) {
    *out = NULL;
    lplb__place_task task = {config, load, weight_of_sample, samples, layers, experts};
    lplb_placement *p;
    LPLB_TRY(lplb_placement_create(layers, experts, config->slots, config->ranks,
                                   config->slots_per_rank, &p));
    lplb_status status = check_task(&task);
    if (status == LPLB_OK)
        status = config->algorithm == LPLB_PLACE_SEARCH ? lplb__search(&task, p)
                                                        : place_simple(&task, p);
    if (status == LPLB_OK) *out = p;
    else lplb_placement_destroy(p);
    return status;
}
