/* The search, layer by layer: sets up the problem, tries the starting points, anneals the best. */
#include <float.h>
#include <string.h>

#include "base/mem.h"
#include "base/threads.h"
#include "placement/search.h"

enum { ITERATIONS_PER_SLOT = 400 };

/* All moves of a layer together cost as much as this imbalance unless the caller says otherwise. */
static const double COST_OF_ALL_MOVES = 0.02;

/* The hierarchical form keeps expert groups inside nodes, which saves traffic between nodes; it is
 * taken unless it costs more imbalance than this. */
static const double HIERARCHICAL_SLACK = 0.01;

/* ---- the problem of a layer ---- */

static void layer_destroy(lplb__layer *layer) {
    lplb__batches_destroy(&layer->batches);
    lplb__free(layer->slot_rank);
    lplb__free(layer->usable);
    lplb__free(layer->alive);
    lplb__free(layer->home);
    lplb__free(layer->node);
    lplb__free(layer->was);
    lplb__free(layer->typical);
}

static void list_slots(lplb__layer *layer, const uint8_t *dead) {
    for (int32_t r = 0; r < layer->ranks; r++) {
        int32_t first = layer->rank_offset[r], used = 0;
        for (int32_t s = first; s < layer->rank_offset[r + 1]; s++) {
            layer->slot_rank[s] = r;
            if ((dead && dead[r]) || used == layer->experts) continue;
            layer->usable[layer->n_usable++] = s;
            used++;
        }
        if (used) layer->alive[layer->n_alive++] = r;
    }
}

static void list_pairs(lplb__layer *layer, const lplb_placement *from) {
    const int32_t *map = lplb__placement_layer(from, layer->index);
    for (int32_t r = 0; r < layer->ranks && r < from->ranks; r++)
        for (int32_t s = from->rank_offset[r]; s < from->rank_offset[r + 1]; s++)
            if (map[s] >= 0) layer->was[(int64_t)map[s] * layer->ranks + r] = 1;
}

static lplb_status layer_create(lplb__layer *layer, const lplb__place_task *task,
                                const lplb_placement *out, int32_t index) {
    const lplb_place_config *c = task->config;
    bool budget = c->from && c->max_moves >= 0;
    *layer = (lplb__layer){.index = index,
                           .ranks = c->ranks,
                           .experts = task->experts,
                           .slots = out->slots,
                           .rank_offset = out->rank_offset,
                           .speed = c->speed,
                           .max_moves = budget ? c->max_moves : INT64_MAX,
                           .even = c->exact_split == 2,
                           .work = c->work};
    LPLB_TRY(LPLB_CALLOC(layer->slot_rank, out->slots));
    LPLB_TRY(LPLB_CALLOC(layer->usable, out->slots));
    LPLB_TRY(LPLB_CALLOC(layer->alive, c->ranks));
    LPLB_TRY(LPLB_CALLOC(layer->typical, task->experts));
    list_slots(layer, c->dead_ranks);
    layer->move_cost = (c->move_cost > 0 ? c->move_cost : COST_OF_ALL_MOVES) / layer->n_usable;
    if (!c->from) return LPLB_OK;
    LPLB_TRY(LPLB_CALLOC(layer->was, (int64_t)task->experts * c->ranks));
    list_pairs(layer, c->from);
    return LPLB_OK;
}

/* ---- one run ---- */

typedef struct search_run {
    const lplb__place_task *task;
    const lplb_placement *out;
    lplb__layer layer;
    lplb__score *score;
    lplb__assignment best, trial;
    int32_t *map;    /* [P] */
    uint8_t *placed; /* [E] */
    lplb__rng rng;
} search_run;

/* Completes the trial and keeps it if it scores better than `best` does. */
static lplb_status try_start(search_run *run, double *best_score) {
    double score;
    LPLB_TRY(lplb__assignment_complete(&run->layer, &run->trial));
    LPLB_TRY(lplb__score_refresh(run->score, &run->trial, &score));
    if (score >= *best_score) return LPLB_OK;
    *best_score = score;
    lplb__assignment_copy(&run->layer, &run->trial, &run->best);
    return LPLB_OK;
}

/* EPLB's or the topology's map of this layer in run->map; *made is false where the shape does not
 * allow it. */
static lplb_status make_map(search_run *run, lplb_place_algorithm algorithm, bool hierarchical,
                            bool *made) {
    lplb_place_config config = *run->task->config;
    lplb__place_task task = *run->task;
    config.algorithm = algorithm;
    config.from = NULL;
    config.speed = NULL;
    if (!hierarchical) config.nodes = config.groups = 1;
    task.config = &config;
    lplb_status status = lplb__place_simple_layer(&task, run->out, run->layer.index, run->map);
    *made = status == LPLB_OK;
    return status == LPLB_NO_MEMORY ? status : LPLB_OK;
}

static void import_map(search_run *run) {
    lplb__assignment_import(&run->layer, &run->trial, run->map, run->layer.rank_offset,
                            run->layer.ranks);
}

static void import_from(search_run *run) {
    const lplb_placement *from = run->task->config->from;
    lplb__assignment_import(&run->layer, &run->trial, lplb__placement_layer(from, run->layer.index),
                            from->rank_offset, from->ranks);
}

static lplb_status choose_start(search_run *run) {
    double score = DBL_MAX;
    if (run->task->config->from) {
        import_from(run);
        return try_start(run, &score);
    }
    lplb__assignment_clear(&run->layer, &run->trial);
    LPLB_TRY(try_start(run, &score));
    static const lplb_place_algorithm simple[] = {LPLB_PLACE_EPLB, LPLB_PLACE_TOPOLOGY};
    for (int i = 0; i < 2; i++) {
        bool made;
        LPLB_TRY(make_map(run, simple[i], false, &made));
        if (!made) continue;
        import_map(run);
        LPLB_TRY(try_start(run, &score));
    }
    return LPLB_OK;
}

static lplb_status anneal(search_run *run, lplb__assignment *a, double *score) {
    int64_t effort = run->task->config->effort ? run->task->config->effort : 1;
    return lplb__anneal(run->score, &run->layer, a, &run->rng,
                        effort * ITERATIONS_PER_SLOT * run->layer.n_usable, score);
}

/* ---- the hierarchical form ---- */

/* Sets home and node from a map if it keeps every group of experts inside one node. */
static bool find_homes(search_run *run, const int32_t *map, const int32_t *rank_offset,
                       int32_t ranks) {
    const lplb_place_config *c = run->task->config;
    lplb__layer *layer = &run->layer;
    int32_t group_size = layer->experts / c->groups, per_node = layer->ranks / c->nodes;
    if (ranks != layer->ranks) return false;
    for (int32_t e = 0; e < layer->experts; e++) layer->home[e] = -1;
    for (int32_t r = 0; r < ranks; r++) {
        layer->node[r] = r / per_node;
        for (int32_t s = rank_offset[r]; s < rank_offset[r + 1]; s++) {
            if (map[s] < 0) continue;
            int32_t first = map[s] / group_size * group_size;
            if (layer->home[first] >= 0 && layer->home[first] != r / per_node) return false;
            for (int32_t e = first; e < first + group_size; e++) layer->home[e] = r / per_node;
        }
    }
    return true;
}

static lplb_status choose_homes(search_run *run, bool *found) {
    const lplb_place_config *c = run->task->config;
    lplb__layer *layer = &run->layer;
    *found = false;
    if (c->nodes < 2 || c->groups < 1 || c->groups % c->nodes || layer->ranks % c->nodes ||
        layer->experts % c->groups)
        return LPLB_OK;
    LPLB_TRY(LPLB_CALLOC(layer->home, layer->experts));
    LPLB_TRY(LPLB_CALLOC(layer->node, layer->ranks));
    if (c->from) {
        *found = find_homes(run, lplb__placement_layer(c->from, layer->index), c->from->rank_offset,
                            c->from->ranks);
        if (*found) import_from(run);
        return LPLB_OK;
    }
    LPLB_TRY(make_map(run, LPLB_PLACE_EPLB, true, found));
    if (*found) *found = find_homes(run, run->map, layer->rank_offset, layer->ranks);
    if (*found) import_map(run);
    return LPLB_OK;
}

/* Anneals inside the nodes, too, and takes that unless it is clearly worse. */
static lplb_status try_hierarchical(search_run *run, double global_score) {
    bool found;
    double score;
    LPLB_TRY(choose_homes(run, &found));
    if (!found) return LPLB_OK;
    lplb_status status = lplb__assignment_complete(&run->layer, &run->trial);
    if (status == LPLB_INFEASIBLE) return LPLB_OK; /* a node lost too many slots */
    if (status == LPLB_OK) status = anneal(run, &run->trial, &score);
    if (status != LPLB_OK) return status;
    if (score <= global_score + HIERARCHICAL_SLACK)
        lplb__assignment_copy(&run->layer, &run->trial, &run->best);
    return LPLB_OK;
}

/* ---- writing it down ---- */

/* Slots of a rank, first to end, from run->best; old = what `from` has there, NULL if nothing.
 * Experts that stayed keep their slots, the others take what is free in rising order. A slot that
 * held a second copy of an expert and found no better use keeps it. */
static void write_rank(const search_run *run, int32_t rank, const int32_t *old, int32_t old_slots,
                       int32_t *slot, int32_t slots) {
    const lplb__layer *layer = &run->layer;
    const uint8_t *has = run->best.has + rank; /* [E] at stride ranks */
    int32_t kept = old_slots < slots ? old_slots : slots, next = 0;
    for (int32_t i = 0; i < slots; i++) slot[i] = -1;
    memset(run->placed, 0, (size_t)layer->experts);
    for (int32_t i = 0; i < kept; i++) {
        int32_t e = old[i];
        if (e < 0 || !has[(int64_t)e * layer->ranks] || run->placed[e]) continue;
        slot[i] = e;
        run->placed[e] = 1;
    }
    for (int32_t e = 0; e < layer->experts; e++) {
        if (!has[(int64_t)e * layer->ranks] || run->placed[e]) continue;
        while (slot[next] >= 0) next++;
        slot[next] = e;
    }
    for (int32_t i = 0; i < kept; i++)
        if (slot[i] < 0 && old[i] >= 0 && has[(int64_t)old[i] * layer->ranks]) slot[i] = old[i];
}

static void write_layer(const search_run *run) {
    const lplb__layer *layer = &run->layer;
    const lplb_placement *from = run->task->config->from;
    const int32_t *old = from ? lplb__placement_layer(from, layer->index) : NULL;
    int32_t *map = run->out->physical_to_logical + (int64_t)layer->index * layer->slots;
    for (int32_t r = 0; r < layer->ranks; r++) {
        bool has_old = old && r < from->ranks;
        int32_t first = layer->rank_offset[r], old_first = has_old ? from->rank_offset[r] : 0;
        write_rank(run, r, has_old ? old + old_first : NULL,
                   has_old ? from->rank_offset[r + 1] - old_first : 0, map + first,
                   layer->rank_offset[r + 1] - first);
    }
}

/* Slots on ranks alive take the experts in turn, as engines start. */
static void write_trivial(const search_run *run, const uint8_t *dead) {
    const lplb__layer *layer = &run->layer;
    int32_t *map = run->out->physical_to_logical + (int64_t)layer->index * layer->slots, n = 0;
    for (int32_t s = 0; s < layer->slots; s++)
        map[s] = dead && dead[layer->slot_rank[s]] ? -1 : n++ % layer->experts;
}

/* ---- layer by layer ---- */

static bool has_load(const lplb__place_task *task, int32_t layer) {
    for (int64_t s = 0; s < task->samples; s++) {
        const int64_t *row = lplb__task_row(task, s, layer);
        if (task->weight && task->weight[s] == 0) continue;
        for (int32_t e = 0; e < task->experts; e++)
            if (row[e] > 0) return true;
    }
    return false;
}

static void run_destroy(search_run *run) {
    lplb__score_destroy(run->score);
    lplb__assignment_destroy(&run->best);
    lplb__assignment_destroy(&run->trial);
    lplb__free(run->map);
    lplb__free(run->placed);
    layer_destroy(&run->layer);
}

static lplb_status run_create(search_run *run, const lplb__place_task *task,
                              const lplb_placement *out, int32_t layer) {
    *run = (search_run){.task = task, .out = out};
    LPLB_TRY(layer_create(&run->layer, task, out, layer));
    LPLB_TRY(lplb__assignment_create(&run->layer, &run->best));
    LPLB_TRY(lplb__assignment_create(&run->layer, &run->trial));
    LPLB_TRY(LPLB_CALLOC(run->map, out->slots));
    return LPLB_CALLOC(run->placed, task->experts);
}

/* Nothing to balance: what is there stays, only lost experts come back. */
static lplb_status place_unloaded(search_run *run) {
    if (!run->task->config->from) {
        write_trivial(run, run->task->config->dead_ranks);
        return LPLB_OK;
    }
    import_from(run);
    LPLB_TRY(lplb__assignment_complete(&run->layer, &run->trial));
    lplb__assignment_copy(&run->layer, &run->trial, &run->best);
    write_layer(run);
    return LPLB_OK;
}

static lplb_status place_loaded(search_run *run) {
    double score;
    LPLB_TRY(lplb__batches_create(&run->layer, run->task));
    LPLB_TRY(lplb__score_create(&run->score, &run->layer));
    lplb__rng_seed(&run->rng, run->task->config->seed, 2 * (uint64_t)run->layer.index);
    LPLB_TRY(choose_start(run));
    LPLB_TRY(anneal(run, &run->best, &score));
    LPLB_TRY(try_hierarchical(run, score));
    write_layer(run);
    return LPLB_OK;
}

typedef struct search_job {
    const lplb__place_task *task;
    const lplb_placement *out;
} search_job;

static lplb_status search_layer(int64_t index, int worker, void *context) {
    (void)worker;
    const search_job *job = context;
    search_run run;
    lplb_status status = run_create(&run, job->task, job->out, (int32_t)index);
    if (status == LPLB_OK)
        status = has_load(job->task, (int32_t)index) ? place_loaded(&run) : place_unloaded(&run);
    run_destroy(&run);
    return status;
}

lplb_status lplb__search(const lplb__place_task *task, const lplb_placement *out) {
    search_job job = {task, out};
    lplb__pool *pool;
    LPLB_TRY(lplb__pool_create(task->config->threads, &pool));
    lplb_status status = lplb__pool_run(pool, task->layers, search_layer, &job);
    lplb__pool_destroy(pool);
    return status;
}
