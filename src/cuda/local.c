/* Locality on the host side: the sources by rank and by node, as dispatch on the CPU has them. */
#include <string.h>

#include "base/mem.h"
#include "cuda/planner.h"
#include "dispatch/dispatch.h"

static int32_t *append(int32_t *to, const int32_t *from, int64_t n) {
    memcpy(to, from, (size_t)n * sizeof *to);
    return to + n;
}

static lplb_status list_sources(lplb_cuda_planner *p, const lplb_dispatcher *d) {
    int64_t G = d->ranks, S = d->sources;
    if (!d->has_locality)
        return LPLB_FAIL(LPLB_INVALID,
                         "locality needs the rank of each of the %d sources: give source_rank",
                         d->sources);
    p->step.local.nodes = d->nodes;
    p->local.n = 3 * S + 2 * G + 1 + d->nodes + 1;
    LPLB_TRY(LPLB_CALLOC(p->local.numbers, p->local.n));
    int32_t *to = append(p->local.numbers, d->source_rank, S);
    to = append(to, d->node, G);
    to = append(to, d->rank_begin, G + 1);
    to = append(to, d->source_by_rank, S);
    to = append(to, d->node_begin, d->nodes + 1);
    append(to, d->source_by_node, S);
    return LPLB_OK;
}

lplb_status lplb__cuda_local_init(lplb_cuda_planner *p, const lplb_cuda_config *config) {
    lplb_dispatcher *d;
    if (!config->locality) return LPLB_OK;
    LPLB_TRY(lplb_dispatcher_create(config->placement, config->layer, p->sources,
                                    config->source_rank, config->node, 1, &d));
    lplb_status status = list_sources(p, d);
    lplb_dispatcher_destroy(d);
    return status;
}

void lplb__cuda_local_place(lplb_cuda_planner *p, const int32_t *numbers) {
    lplb__cuda_local *local = &p->step.local;
    int64_t G = p->step.ranks, S = p->sources;
    local->source_rank = numbers;
    local->node = numbers + S;
    local->rank_begin = local->node + G;
    local->source_by_rank = local->rank_begin + G + 1;
    local->node_begin = local->source_by_rank + S;
    local->source_by_node = local->node_begin + local->nodes + 1;
}
