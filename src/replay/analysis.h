/* What the parts of an analysis share. */
#ifndef LPLB_REPLAY_ANALYSIS_H
#define LPLB_REPLAY_ANALYSIS_H

#include <lplb/replay.h>
#include <stdbool.h>

#include "base/mem.h"
#include "base/threads.h"

/* A bottleneck of one batch. */
typedef struct lplb__binding {
    const uint64_t *set; /* [words] */
    int32_t words, layer;
    int64_t batch;
    double excess; /* bound / mean load - 1 */
} lplb__binding;

/* One layer: what was found, and the layer's part of the answer. */
typedef struct lplb__layer_analysis {
    int64_t pairs, limited;
    double imbalance_sum, bound_sum;
    uint64_t *sets;         /* [batches][words] */
    lplb__binding *binding; /* [limited] */
    bool has_replica;
    lplb_next_replica replica;
} lplb__layer_analysis;

typedef struct lplb__analysis_run {
    const lplb_replay_result *result;
    const lplb_policy_result *policy;
    int32_t first_layer, layers; /* rows of the result */
    int64_t first_batch, batches;
    int32_t max_sets, max_trials;
    int32_t words;               /* of a rank set */
    lplb__layer_analysis *layer; /* [layers] */
} lplb__analysis_run;

static inline const int64_t *lplb__analysis_tokens(const lplb__analysis_run *run, int32_t layer,
                                                   int64_t batch) {
    return run->result->counts + (layer * run->result->measured + batch) * run->result->experts;
}

static inline bool lplb__has_rank(const uint64_t *set, int32_t r) {
    return set[r / 64] >> r % 64 & 1;
}

/* True if every host of expert e is in the set. */
static inline bool lplb__confined(const lplb_hosts *hosts, int32_t e, const uint64_t *set) {
    for (int64_t h = hosts->offset[e]; h < hosts->offset[e + 1]; h++)
        if (!lplb__has_rank(set, hosts->rank[h])) return false;
    return true;
}

/* next_replica.c: tries more copies of the experts that make up the layer's bottlenecks. */
lplb_status lplb__find_replica(const lplb__analysis_run *run, const lplb_hosts *hosts,
                               int32_t layer, lplb__layer_analysis *out);

/* bottlenecks.c: the sets of all layers, grouped and the most frequent listed. */
lplb_status lplb__list_bottlenecks(const lplb__analysis_run *run, lplb_analysis *out);

#endif
