/* Dispatch: from the router's logical ids to physical slots, realising a plan exactly.
 *
 * Sources (ranks, or chunks of one rank's tokens) are numbered 0..S-1. Given the counts of every
 * source and the plan, each source maps its own ids without talking to the others, and over all
 * sources every (expert, host) receives exactly the planned number of tokens.
 *
 * The rule (canonical, see docs/math.md): the tokens of an expert are numbered source by source, in
 * each source in the order of the flattened topk_ids; its slots, hosts ascending and slots
 * ascending, take consecutive intervals of that numbering. A host with several slots of the expert
 * gives each an even share, the extra ones to the lower slots. With locality, each source first
 * fills its own rank's host, then hosts of its own node, then the rest. */
#ifndef LPLB_DISPATCH_H
#define LPLB_DISPATCH_H

#include <lplb/placement.h>
#include <lplb/plan.h>
#include <lplb/status.h>
#include <stdint.h>

LPLB_BEGIN_DECLS

typedef enum lplb_dtype {
    LPLB_INT8,
    LPLB_UINT8,
    LPLB_INT16,
    LPLB_UINT16,
    LPLB_INT32,
    LPLB_UINT32,
    LPLB_INT64,
    LPLB_UINT64,
    LPLB_FLOAT16,
    LPLB_FLOAT32,
    LPLB_FLOAT64,
    LPLB_BOOL
} lplb_dtype;
LPLB_API int32_t lplb_dtype_bytes(lplb_dtype dtype);
LPLB_API const char *lplb_dtype_name(lplb_dtype dtype); /* "int64" */

/* counts[e] = number of ids equal to e. ids: n values of INT32 or INT64, -1 = no selection.
 * LPLB_RANGE names the first position whose id is outside [-1, experts). */
LPLB_API lplb_status lplb_count_experts(const void *ids, lplb_dtype dtype, int64_t n,
                                        int32_t experts, int32_t threads, int64_t *counts);
/* (More than 262,144 ids a thread: it starts threads, which allocates; lplb_dispatch_count keeps
 * its threads.) */

typedef struct lplb_dispatcher lplb_dispatcher;

/* For one layer of a placement. sources = number of sources; source_rank [S] = the rank each source
 * lives on (NULL: S must equal ranks or locality is off); node [G] or NULL. Allocates everything.
 * threads: 0 = all; the result does not depend on it. */
LPLB_API lplb_status lplb_dispatcher_create(const lplb_placement *placement, int32_t layer,
                                            int32_t sources, const int32_t *source_rank,
                                            const int32_t *node, int32_t threads,
                                            lplb_dispatcher **out);
LPLB_API void lplb_dispatcher_destroy(lplb_dispatcher *dispatcher);
/* The hosts as the plan must see them; valid while the dispatcher lives. */
LPLB_API const lplb_hosts *lplb_dispatcher_hosts(const lplb_dispatcher *dispatcher);

/* lplb_count_experts with the dispatcher's threads: counts [E] of this source. No allocation. */
LPLB_API lplb_status lplb_dispatch_count(lplb_dispatcher *dispatcher, const void *ids,
                                         lplb_dtype dtype, int64_t n, int64_t *counts);

/* Prepares the mapping of one source. source_counts [S][E]; split as in lplb_plan for
 * lplb_dispatcher_hosts; locality nonzero: local first. LPLB_INVALID when split and counts do not
 * add up. No allocation. */
LPLB_API lplb_status lplb_dispatch_prepare(lplb_dispatcher *dispatcher,
                                           const int64_t *source_counts, const int64_t *split,
                                           int32_t source, int32_t locality);
/* Ratio mode: share [offset[E]] = fraction of each expert's tokens for each host, >= 0 (clipped to
 * [0, 1], normalised per expert; NaN refused, all-zero = even); local_counts [E] of this source,
 * each at most 2^40. Each host of each expert gets floor or ceiling of share x local count; which
 * of them depends on source, so that the roundings of many sources cancel out. */
LPLB_API lplb_status lplb_dispatch_prepare_ratio(lplb_dispatcher *dispatcher, const float *share,
                                                 const int64_t *local_counts, int32_t source);

/* Maps n ids of the prepared source: out[i] = slot, -1 for -1. ids and out: INT32 or INT64, chosen
 * separately; in place when the widths agree. The ids must be the ones that were counted:
 * LPLB_INVALID names the expert whose count differs (out is then unspecified); LPLB_RANGE for ids
 * outside [-1, E). No allocation. */
LPLB_API lplb_status lplb_dispatch_map(lplb_dispatcher *dispatcher, const void *ids,
                                       lplb_dtype ids_dtype, int64_t n, void *out,
                                       lplb_dtype out_dtype);

LPLB_END_DECLS

#endif
