/* Plan and dispatch on a GPU, one call a step, fit for graph capture (docs/gpu.md). In the library
 * lplb_cuda; needs no CUDA headers.
 *
 * A step is count -> solve -> map: the router's ids become slots of the placement. Its split is, to
 * the last token, that of lplb_plan_solve (exact, even), and its slots are those of
 * lplb_dispatch_map. Every call below that takes a stream only launches work there: no allocation,
 * no synchronisation, no use of the default stream; all of it may be captured into a graph. What
 * goes wrong on the device lands in the planner's report and never stops the stream.
 *
 * Pointers marked "device" must be readable (or writable) by the planner's device, and aligned to
 * their elements. Calls made while the thread's device is another one change it by cudaSetDevice,
 * and back before they return. One step of a planner at a time: steps on several streams must be
 * ordered by events. struct_size must be this header's sizeof, exactly, until version 1.0: another
 * one is refused with both sizes. What would be ignored is refused, too: a field that its solver,
 * or locality = 0, does not use must stay 0. */
#ifndef LPLB_CUDA_H
#define LPLB_CUDA_H

#include <lplb/dispatch.h>
#include <lplb/placement.h>
#include <lplb/plan.h>

LPLB_BEGIN_DECLS

typedef void *lplb_cuda_stream; /* a cudaStream_t */

typedef struct lplb_cuda_planner lplb_cuda_planner;
typedef struct lplb_cuda_comm lplb_cuda_comm; /* lplb/cuda_comm.h */

/* Zero-initialise, set struct_size. Arrays are copied. */
typedef struct lplb_cuda_config {
    size_t struct_size;
    int32_t device;                  /* CUDA ordinal */
    const lplb_placement *placement; /* its experts, slots and ranks stay fixed */
    int32_t layer;
    const int64_t *speed; /* [G] or NULL = all 1 */
    /* Sources are numbered 0..S-1: ranks, or chunks of a rank's tokens. */
    int32_t sources;            /* S, 0 = 1 */
    const int32_t *source_rank; /* [S] rank each source lives on, NULL = source s on rank s */
    const int32_t *node;        /* [G] or NULL = one node; used with locality */
    lplb_solver solver;         /* EXACT, EVEN or IPM */
    lplb_ipm_options ipm;
    double tolerance; /* as in lplb_plan_config: keep the even split when it is that good */
    double reuse;     /* plan cache: keep the shares of the last plan while the shares of experts
                         and of `fixed` in the batch differ from those it was made for by at most
                         this much in total (sum of |w/W - w'/W'| over both, 0 to 2); 0 = never.
                         Batches without tokens are neither kept nor reused */
    int32_t locality; /* nonzero: tokens stay on their source's rank, then node, where the split
                         allows it, as lplb_dispatch_prepare; the split is the same without. Needs
                         source_rank, unless there is a source for every rank */
    int64_t max_ids;  /* most ids of a step */
    int32_t n_sms;    /* multiprocessors a step may use; 0 = all */
    /* lplb_cuda_run then shares the counts of the communicator's ranks, which are the sources
     * (sources 0 or their number). It must outlive the planner. NULL = source_counts are given */
    lplb_cuda_comm *comm;
} lplb_cuda_config;

/* Allocates everything, on the device too. LPLB_DEVICE with CUDA's message; LPLB_UNSUPPORTED for
 * combinations and sizes that do not exist. */
LPLB_API lplb_status lplb_cuda_planner_create(const lplb_cuda_config *config,
                                              lplb_cuda_planner **out);
/* Waits for the device; NULL is fine. */
LPLB_API void lplb_cuda_planner_destroy(lplb_cuda_planner *planner);
/* Bytes of device memory that the planner holds. */
LPLB_API int64_t lplb_cuda_planner_bytes(const lplb_cuda_planner *planner);

/* Replaces the placement for the steps that follow in the stream, those of graphs captured before
 * included. Same numbers of experts, slots and ranks. Not to be captured: LPLB_STATE, and the
 * capture goes on unharmed. Allocates on the host; waits for the update before, if that is still on
 * its way. A placement that is refused changes nothing. */
LPLB_API lplb_status lplb_cuda_planner_update(lplb_cuda_planner *planner,
                                              const lplb_placement *placement, int32_t layer,
                                              lplb_cuda_stream stream);

/* The ids of one step. Zero-initialise, set struct_size. */
typedef struct lplb_cuda_ids {
    size_t struct_size;
    const void *ids; /* device [n] of INT32 or INT64, on a border of its items; -1 = no selection */
    lplb_dtype ids_dtype;
    void *out; /* device [n] of INT32 or INT64, likewise; ids itself when the widths agree, else no
                  part of it */
    lplb_dtype out_dtype;
    int64_t n;               /* at most max_ids */
    const int64_t *n_device; /* device scalar: that many tokens of `topk` ids are used in place of
                                n, clipped to [0, n]; or NULL */
    int32_t topk;            /* with n_device, 0 = 1 */
    int32_t source;          /* whose ids these are */
} lplb_cuda_ids;

/* What is planned. Zero-initialise, set struct_size. */
typedef struct lplb_cuda_problem {
    size_t struct_size;
    /* device [S][E]. run: NULL = the ids' own counts are all, or those that comm shares */
    const int64_t *source_counts;
    /* with comm, solve and start: device [E], this rank's counts in place of ids, below 2^31 each
     */
    const int64_t *own_counts;
    const int64_t *fixed; /* device [G] tokens that cannot move, or NULL */
    /* results wanted, or NULL */
    int64_t *counts; /* device [E] of all sources */
    int64_t *split;  /* device [hosts] in the order of lplb_placement_hosts */
    int64_t *loads;  /* device [G] */
    float *share;    /* device [hosts] split / counts, for lplb_cuda_map_shares */
    /* device [S][E] that comm shared, for lplb_cuda_map; only this rank's own after an error */
    int64_t *gathered;
    /* A device scalar, INT32 or INT64, to which every plan adds counter_add unless it met an error
     * or did not converge: LPLB's avail_counter, which counts solved groups. NULL = none */
    void *counter;
    lplb_dtype counter_dtype;
    int32_t counter_add; /* 0 = 1 */
} lplb_cuda_problem;

/* The whole step. With one source, a communicator, or source_counts given. */
LPLB_API lplb_status lplb_cuda_run(lplb_cuda_planner *planner, const lplb_cuda_ids *ids,
                                   const lplb_cuda_problem *problem, lplb_cuda_stream stream);

/* Its pieces. counts: device [E] of this source. */
LPLB_API lplb_status lplb_cuda_count(lplb_cuda_planner *planner, const lplb_cuda_ids *ids,
                                     int64_t *counts, lplb_cuda_stream stream);
LPLB_API lplb_status lplb_cuda_solve(lplb_cuda_planner *planner, const lplb_cuda_problem *problem,
                                     lplb_cuda_stream stream);
/* split: device [hosts] that adds up to the source_counts: device [S][E]. */
LPLB_API lplb_status lplb_cuda_map(lplb_cuda_planner *planner, const lplb_cuda_ids *ids,
                                   const int64_t *source_counts, const int64_t *split,
                                   lplb_cuda_stream stream);
/* Each source on its own, by shares (device [hosts]) of an earlier plan: as
 * lplb_dispatch_prepare_ratio and lplb_dispatch_map. */
LPLB_API lplb_status lplb_cuda_map_shares(lplb_cuda_planner *planner, const lplb_cuda_ids *ids,
                                          const float *share, lplb_cuda_stream stream);

/* Asynchronous form: start puts lplb_cuda_count and lplb_cuda_solve of the ids (or, with ids NULL,
 * lplb_cuda_solve) on `side` after what `stream` holds so far; after join, `stream` waits for them.
 * With a communicator the counts are shared there too; what lplb_cuda_map needs then is
 * problem.gathered and problem.split. Until join, every other step of the planner and its update
 * are LPLB_STATE. Both may be captured, in one graph; joining a plan that was started outside the
 * capture is LPLB_STATE and the capture goes on, and one that was started in another capture is
 * forgotten, as the graph of an abandoned capture is. */
LPLB_API lplb_status lplb_cuda_start(lplb_cuda_planner *planner, const lplb_cuda_ids *ids,
                                     const lplb_cuda_problem *problem, lplb_cuda_stream stream,
                                     lplb_cuda_stream side);
LPLB_API lplb_status lplb_cuda_join(lplb_cuda_planner *planner, lplb_cuda_stream stream);

/* In device memory, written by every step; error stays until it is cleared. */
typedef struct lplb_cuda_report {
    /* 0 = none; else the code (-lplb_status) << 56, and in the bits below LPLB_CUDA_DETAIL_MASK -
     * detail, which is the position of an id, an expert or a rank: the lowest of the gravest kind
     */
    uint64_t error;
    uint64_t steps;  /* plans made */
    int32_t outcome; /* lplb_outcome of the last plan, or -1 after an error */
    int32_t reused;  /* nonzero: it was the cached plan's shares */
    int32_t sweeps, augmentations, restarts; /* as in lplb_plan; ipm: iterations, 0, 0 */
    int32_t unused;
    int64_t max_load;
    int64_t bound_numerator, bound_denominator; /* exact: t*, tokens over speed; else 0/1 */
    double ipm_objective, ipm_bound;            /* fractional, ipm only */
    int64_t reserved[6];                        /* 0: room for what a later version reports */
} lplb_cuda_report;
#define LPLB_CUDA_DETAIL_MASK (((uint64_t)1 << 56) - 1)
/* LPLB_RANGE: added to an expert whose count is meant, and to a rank whose fixed tokens are; the
 * detail without either is the position of an id. */
#define LPLB_CUDA_DETAIL_COUNT ((uint64_t)1 << 48)
#define LPLB_CUDA_DETAIL_FIXED ((uint64_t)1 << 49)

/* Where the report lies: device memory, for kernels and copies of one's own. */
LPLB_API const lplb_cuda_report *lplb_cuda_report_address(const lplb_cuda_planner *planner);
/* Copies it and waits for the stream: outside of captures only. */
LPLB_API lplb_status lplb_cuda_report_read(lplb_cuda_planner *planner, lplb_cuda_stream stream,
                                           lplb_cuda_report *out);
/* LPLB_OK, or the error in a report with a message that names position or expert. */
LPLB_API lplb_status lplb_cuda_report_status(const lplb_cuda_report *report);
/* Forgets the error, in stream order. */
LPLB_API lplb_status lplb_cuda_report_clear(lplb_cuda_planner *planner, lplb_cuda_stream stream);

LPLB_END_DECLS

#endif
