/* Which rank sets bind most often, and which experts make them. */
#include <stdlib.h>
#include <string.h>

#include "replay/analysis.h"

typedef struct group {
    const lplb__binding *first; /* its bindings follow each other */
    int64_t pairs;
    double excess; /* mean */
} group;

static int by_set(const void *a_, const void *b_) {
    const lplb__binding *a = a_, *b = b_;
    int order = memcmp(a->set, b->set, (size_t)a->words * sizeof *a->set);
    return order ? order : (a->batch > b->batch) - (a->batch < b->batch);
}

/* Most pairs, largest excess, layer, lower ranks. */
static int by_weight(const void *a_, const void *b_) {
    const group *a = a_, *b = b_;
    if (a->pairs != b->pairs) return a->pairs < b->pairs ? 1 : -1;
    if (a->excess != b->excess) return a->excess < b->excess ? 1 : -1;
    if (a->first->layer != b->first->layer) return a->first->layer - b->first->layer;
    for (int32_t w = 0; w < a->first->words; w++) {
        uint64_t differ = a->first->set[w] ^ b->first->set[w];
        if (differ) return a->first->set[w] & (differ & -differ) ? -1 : 1;
    }
    return 0;
}

static int64_t group_layer(lplb__layer_analysis *layer, group *out) {
    int64_t n = 0;
    qsort(layer->binding, (size_t)layer->limited, sizeof *layer->binding, by_set);
    for (int64_t i = 0; i < layer->limited; i++) {
        const lplb__binding *b = &layer->binding[i];
        if (i == 0 || memcmp(b->set, b[-1].set, (size_t)b->words * sizeof *b->set))
            out[n++] = (group){.first = b};
        out[n - 1].pairs++;
        out[n - 1].excess += b->excess;
    }
    for (int64_t i = 0; i < n; i++) out[i].excess /= (double)out[i].pairs;
    return n;
}

typedef struct weighed {
    int32_t expert;
    int64_t tokens;
} weighed;

static int by_tokens(const void *a_, const void *b_) {
    const weighed *a = a_, *b = b_;
    if (a->tokens != b->tokens) return a->tokens < b->tokens ? 1 : -1;
    return a->expert - b->expert;
}

/* Experts of the set, heaviest first over the batches in which it binds. */
static lplb_status list_experts(const lplb__analysis_run *run, const lplb_hosts *hosts,
                                const group *g, lplb_bottleneck *out) {
    weighed *list;
    int32_t n = 0;
    LPLB_TRY(LPLB_CALLOC(list, hosts->experts));
    for (int32_t e = 0; e < hosts->experts; e++) {
        if (!lplb__confined(hosts, e, g->first->set)) continue;
        list[n].expert = e;
        for (int64_t i = 0; i < g->pairs; i++)
            list[n].tokens += lplb__analysis_tokens(run, out->layer, g->first[i].batch)[e];
        n++;
    }
    qsort(list, (size_t)n, sizeof *list, by_tokens);
    lplb_status status = LPLB_CALLOC(out->expert, n);
    if (status == LPLB_OK) status = LPLB_CALLOC(out->expert_tokens, n);
    for (int32_t i = 0; i < n && status == LPLB_OK; i++) {
        out->expert[i] = list[i].expert;
        out->expert_tokens[i] = list[i].tokens;
    }
    out->n_experts = n;
    lplb__free(list);
    return status;
}

static lplb_status describe(const lplb__analysis_run *run, const group *g, int64_t *offset,
                            int32_t *rank, lplb_bottleneck *out) {
    lplb_hosts hosts;
    out->layer = g->first->layer;
    out->pairs = g->pairs;
    out->excess = g->excess;
    LPLB_TRY(lplb_placement_hosts(run->policy->placement, out->layer, offset, rank, &hosts));
    LPLB_TRY(LPLB_CALLOC(out->rank, hosts.ranks));
    for (int32_t r = 0; r < hosts.ranks; r++)
        if (lplb__has_rank(g->first->set, r)) out->rank[out->n_ranks++] = r;
    return list_experts(run, &hosts, g, out);
}

lplb_status lplb__list_bottlenecks(const lplb__analysis_run *run, lplb_analysis *out) {
    group *groups = NULL;
    int64_t *offset = NULL, n = 0;
    int32_t *rank = NULL;
    lplb_status status = LPLB_CALLOC(groups, out->limited);
    if (status == LPLB_OK) status = LPLB_CALLOC(offset, run->result->experts + 1);
    if (status == LPLB_OK) status = LPLB_CALLOC(rank, run->policy->placement->slots);
    for (int32_t i = 0; i < run->layers && status == LPLB_OK; i++)
        n += group_layer(&run->layer[i], groups + n);
    if (status == LPLB_OK) {
        qsort(groups, (size_t)n, sizeof *groups, by_weight);
        out->n_sets = n;
        out->sets = (int32_t)(n < run->max_sets ? n : run->max_sets);
        status = LPLB_CALLOC(out->set, out->sets);
    }
    for (int32_t i = 0; i < out->sets && status == LPLB_OK; i++)
        status = describe(run, &groups[i], offset, rank, &out->set[i]);
    lplb__free(rank);
    lplb__free(offset);
    lplb__free(groups);
    return status;
}
