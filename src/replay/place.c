/* The placements of the policies, made from the history; equal ones are made once. */
#define _POSIX_C_SOURCE 200809L
#include <string.h>

#include "base/clock.h"
#include "replay/replay.h"

/* More samples of history than this do not make a search wiser, only slower; evenly spaced ones are
 * taken. */
enum { MAX_SEARCH_SAMPLES = 320 };

lplb_status lplb__replay_contiguous(const lplb__replay *run, lplb_placement **out) {
    int32_t *per_rank;
    LPLB_TRY(LPLB_CALLOC(per_rank, run->ranks));
    for (int32_t r = 0; r < run->ranks; r++)
        per_rank[r] = run->experts / run->ranks + (r < run->experts % run->ranks);
    lplb_status status =
        lplb_placement_create(run->layers, run->experts, run->experts, run->ranks, per_rank, out);
    lplb__free(per_rank);
    if (status == LPLB_OK) lplb_placement_fill_trivial(*out);
    return status;
}

/* Sum of the history [L][E]. */
static lplb_status sum_history(const lplb__replay *run, int64_t **out) {
    int64_t n = (int64_t)run->layers * run->experts;
    LPLB_TRY(LPLB_CALLOC(*out, n));
    for (int64_t b = 0; b < run->history; b++)
        for (int64_t i = 0; i < n; i++) (*out)[i] += run->history_counts[b * n + i];
    return LPLB_OK;
}

/* Counts of whole history batches, or, from tokens, of runs of an eighth of a batch: the search
 * wants the real noise of batches smaller than those served (docs/placement.md). */
static lplb_status sample_history(const lplb__replay *run, int64_t samples, int64_t **out) {
    int64_t n = (int64_t)run->layers * run->experts, run_tokens = run->batch_tokens / 8;
    bool runs = run->trace->kind == LPLB_TRACE_TOPK && run_tokens > 0;
    LPLB_TRY(LPLB_CALLOC(*out, samples * n));
    for (int64_t k = 0; k < samples; k++) {
        int64_t *counts = *out + k * n;
        if (!runs) {
            memcpy(counts, run->history_counts + k * run->history / samples * n,
                   (size_t)n * sizeof *counts);
            continue;
        }
        int64_t first = k * (run->history * 8) / samples * run_tokens;
        for (int32_t l = 0; l < run->layers; l++)
            lplb_trace_count(run->trace, run->first_layer + l, first, run_tokens, run->order,
                             counts + (int64_t)l * run->experts);
    }
    return LPLB_OK;
}

static lplb_status compute(const lplb__replay *run, const lplb__policy *policy, const char *name,
                           lplb_placement **out) {
    const lplb_replay_config *c = &run->config;
    if (run->history < 1)
        return LPLB_FAIL(LPLB_INVALID,
                         "policy '%s' is placed by history, and floor(%g x %lld batches) leaves "
                         "none: give more history or smaller batches",
                         name, c->history, (long long)run->batches);
    lplb_place_config place = {.struct_size = sizeof place,
                               .ranks = run->ranks,
                               .slots = run->slots,
                               .nodes = run->nodes,
                               .groups = c->groups,
                               .max_moves = -1,
                               .batch_tokens = run->batch_tokens,
                               .topk = run->trace->topk,
                               .seed = c->seed,
                               .threads = c->threads};
    bool search = policy->kind == LPLB__KIND_SEARCH;
    place.algorithm = search                                ? LPLB_PLACE_SEARCH
                      : policy->kind == LPLB__KIND_TOPOLOGY ? LPLB_PLACE_TOPOLOGY
                                                            : LPLB_PLACE_EPLB;
    place.exact_split = policy->solves ? 1 : 2;
    lplb_topology *topology = NULL;
    int64_t *load = NULL, samples = 1;
    lplb_status status = LPLB_OK;
    if (policy->kind == LPLB__KIND_TOPOLOGY)
        status = lplb_topology_open(c->topology, run->ranks,
                                    (run->slots - run->experts) / run->ranks, &topology);
    place.topology = topology;
    if (search) {
        bool runs = run->trace->kind == LPLB_TRACE_TOPK && run->batch_tokens >= 8;
        samples = runs ? run->history * 8 : run->history;
        if (samples > MAX_SEARCH_SAMPLES) samples = MAX_SEARCH_SAMPLES;
    }
    if (status == LPLB_OK)
        status = search ? sample_history(run, samples, &load) : sum_history(run, &load);
    if (status == LPLB_OK)
        status = lplb_place(&place, load, samples, run->layers, run->experts, NULL, out);
    lplb__free(load);
    lplb_topology_destroy(topology);
    if (status == LPLB_OK) return LPLB_OK;
    return LPLB_FAIL(status, "policy '%s': %s", name, lplb_error_message());
}

/* A file holds either the layers of the whole trace or those replayed. */
static lplb_status read_file(const lplb__replay *run, const lplb__policy *policy,
                             lplb_placement **out) {
    lplb_placement *all;
    LPLB_TRY(lplb_placement_read(policy->path, run->ranks, &all));
    lplb_status status = LPLB_OK;
    int32_t first = all->layers == run->layers ? 0 : run->first_layer;
    if (all->layers != run->layers && all->layers != run->trace->layers)
        LPLB_FAIL_GOTO(status, done, LPLB_INVALID, "%s has %d layers, the trace %d", policy->path,
                       all->layers, run->trace->layers);
    if (all->experts != run->experts)
        LPLB_FAIL_GOTO(status, done, LPLB_INVALID, "%s has %d experts, the trace %d", policy->path,
                       all->experts, run->experts);
    LPLB_TRY_GOTO(status, lplb_placement_validate(all), done);
    int32_t *per_rank;
    LPLB_TRY_GOTO(status, LPLB_CALLOC(per_rank, run->ranks), done);
    for (int32_t r = 0; r < run->ranks; r++)
        per_rank[r] = all->rank_offset[r + 1] - all->rank_offset[r];
    status =
        lplb_placement_create(run->layers, run->experts, all->slots, run->ranks, per_rank, out);
    lplb__free(per_rank);
    if (status == LPLB_OK)
        memcpy((*out)->physical_to_logical, all->physical_to_logical + (int64_t)first * all->slots,
               (size_t)run->layers * (size_t)all->slots * sizeof(int32_t));
done:
    lplb_placement_destroy(all);
    return status;
}

static bool same_placement(const lplb__policy *a, const lplb__policy *b) {
    if (strcmp(a->placement_name, b->placement_name)) return false;
    return a->kind != LPLB__KIND_SEARCH || a->solves == b->solves;
}

static lplb_status place_one(lplb__replay *run, int32_t i, const lplb_placement *base) {
    const lplb__policy *policy = &run->policy[i];
    lplb_policy_result *result = &run->result->policy[i];
    if (policy->kind == LPLB__KIND_IDEAL) return LPLB_OK;
    int32_t same = 0;
    while (same < i && !same_placement(policy, &run->policy[same])) same++;
    if (same < i) {
        LPLB_TRY(lplb_placement_copy(run->result->policy[same].placement, &result->placement));
        result->place_seconds = run->result->policy[same].place_seconds;
        result->moved_slots = run->result->policy[same].moved_slots;
        return LPLB_OK;
    }
    int64_t start = lplb__now_ns();
    if (policy->kind == LPLB__KIND_NONE) LPLB_TRY(lplb__replay_contiguous(run, &result->placement));
    else if (policy->kind == LPLB__KIND_FILE) LPLB_TRY(read_file(run, policy, &result->placement));
    else LPLB_TRY(compute(run, policy, result->policy, &result->placement));
    result->place_seconds = (double)(lplb__now_ns() - start) / 1e9;
    run->result->place_seconds += result->place_seconds;
    return lplb_placement_moves(base, result->placement, NULL, 0, &result->moved_slots);
}

lplb_status lplb__replay_place(lplb__replay *run) {
    lplb_placement *base;
    LPLB_TRY(lplb__replay_contiguous(run, &base));
    lplb_status status = LPLB_OK;
    for (int32_t i = 0; i < run->result->policies && status == LPLB_OK; i++) {
        lplb__replay_progress(run, 0.1 + 0.6 * i / run->result->policies,
                              run->result->policy[i].policy);
        status = place_one(run, i, base);
    }
    lplb_placement_destroy(base);
    return status;
}
