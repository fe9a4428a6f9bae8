/* Load trackers: what each expert of each layer has been asked for lately.
 *
 * A tracker is made once and fed every batch; feeding allocates nothing. Values are tokens
 * (selections) a batch. Batches that say nothing about routing are marked, not counted: dummy runs,
 * batches whose counts were lost, and layers without a token. Not thread-safe. */
#ifndef LPLB_TRACKER_H
#define LPLB_TRACKER_H

#include <lplb/status.h>
#include <stdint.h>

LPLB_BEGIN_DECLS

/* Most tokens of one expert in one batch. */
enum { LPLB_TRACKER_MAX_COUNT = 2147483647 };

typedef enum lplb_tracker_kind {
    LPLB_TRACKER_EWMA = 0,   /* exponentially weighted moving average, O(L E) memory */
    LPLB_TRACKER_WINDOW = 1, /* mean over the last `window` batches, O(window L E) memory */
    LPLB_TRACKER_STAGES = 2  /* one EWMA for prefill and one for decode batches */
} lplb_tracker_kind;

typedef enum lplb_stage {
    LPLB_STAGE_ALL = -1, /* when reading: stages together, as they have been arriving */
    LPLB_STAGE_PREFILL = 0,
    LPLB_STAGE_DECODE = 1
} lplb_stage;
enum { LPLB_STAGES = 2 };

/* Zero-initialise, set struct_size. A field that the kind does not use must stay 0. */
typedef struct lplb_tracker_config {
    size_t struct_size;
    lplb_tracker_kind kind;
    int32_t layers, experts; /* L, E */
    int32_t window;          /* WINDOW: batches; 0 = 1000 */
    double alpha;            /* EWMA: weight of the newest batch in (0, 1]; 0 = 0.05 */
    double prefill_alpha;    /* STAGES; 0 = 0.15 */
    double decode_alpha;     /* STAGES; 0 = 0.05 */
    int32_t samples;         /* past batches kept whole for covariance; 0 = 8, < 0 = none */
} lplb_tracker_config;

typedef enum lplb_batch_mark {
    LPLB_BATCH_DUMMY = 0,  /* ran to keep ranks in step, its routing means nothing */
    LPLB_BATCH_MISSING = 1 /* ran, but its counts are not known */
} lplb_batch_mark;

typedef struct lplb_tracker_stats {
    int64_t batches;              /* counted */
    int64_t stage[LPLB_STAGES];   /* of them by stage; trackers without stages count as told */
    int64_t zero, dummy, missing; /* marked */
    int64_t zero_layers;          /* layers without a token in counted batches */
    int64_t refused;              /* batches refused for a value out of range */
} lplb_tracker_stats;

typedef struct lplb_tracker lplb_tracker;
LPLB_API lplb_status lplb_tracker_create(const lplb_tracker_config *config, lplb_tracker **out);
LPLB_API void lplb_tracker_destroy(lplb_tracker *tracker);

/* One batch: counts [L][E] in [0, LPLB_TRACKER_MAX_COUNT]. A batch of zeros is marked as zero. On
 * LPLB_RANGE, which names layer and expert, nothing has changed. stage: PREFILL or DECODE; kinds
 * other than STAGES keep them together. */
LPLB_API lplb_status lplb_tracker_update(lplb_tracker *tracker, lplb_stage stage,
                                         const int64_t *counts);
/* The same from loads that need not be whole; NaN and infinities are refused. */
LPLB_API lplb_status lplb_tracker_update_real(lplb_tracker *tracker, lplb_stage stage,
                                              const float *loads);
/* The same from pairs: the pairs of layer l are first[l]..first[l+1]; an expert may come again. */
LPLB_API lplb_status lplb_tracker_update_pairs(lplb_tracker *tracker, lplb_stage stage,
                                               const int64_t *first, const int32_t *expert,
                                               const int64_t *tokens);
LPLB_API lplb_status lplb_tracker_mark(lplb_tracker *tracker, lplb_batch_mark mark);

LPLB_API void lplb_tracker_get_stats(const lplb_tracker *tracker, lplb_tracker_stats *stats);

/* Mean load of a batch, and its variance over batches with the same weights: [L][E]. Zeros where
 * nothing was counted. LPLB_STAGE_ALL of a STAGES tracker weighs the stages by how often batches of
 * each came (decayed). A single stage of another kind is LPLB_UNSUPPORTED. */
LPLB_API lplb_status lplb_tracker_mean(const lplb_tracker *tracker, lplb_stage stage, float *mean);
LPLB_API lplb_status lplb_tracker_variance(const lplb_tracker *tracker, lplb_stage stage,
                                           float *variance);
/* The mean as the whole numbers that lplb_place takes: round(mean * batches). */
LPLB_API lplb_status lplb_tracker_counts(const lplb_tracker *tracker, lplb_stage stage,
                                         double batches, int64_t *counts);

/* Batches kept whole, oldest first, evenly spread over what the tracker remembers: counts
 * [capacity][L][E], of which *samples are filled. capacity >= config.samples takes all. */
LPLB_API lplb_status lplb_tracker_samples(const lplb_tracker *tracker, lplb_stage stage,
                                          int64_t capacity, int64_t *counts, int64_t *samples);
/* Low-rank covariance of one layer from these samples: covariance = factor^T factor, with factor
 * [*rank][E], row k = (sample k - their mean) / sqrt(samples - 1). capacity in rows. */
LPLB_API lplb_status lplb_tracker_covariance(const lplb_tracker *tracker, lplb_stage stage,
                                             int32_t layer, int32_t capacity, float *factor,
                                             int32_t *rank);

/* State as bytes, for the host's own checkpoint: the same build of the library on a machine of the
 * same byte order restores it bit for bit into a tracker of the same configuration. Damaged or
 * foreign bytes: LPLB_FORMAT, and the tracker is as it was. */
LPLB_API size_t lplb_tracker_save_bytes(const lplb_tracker *tracker);
LPLB_API lplb_status lplb_tracker_save(const lplb_tracker *tracker, void *buffer, size_t capacity);
LPLB_API lplb_status lplb_tracker_restore(lplb_tracker *tracker, const void *buffer, size_t bytes);

/* ---- Forecaster: tomorrow's share of each expert ----
 *
 * Additive Holt-Winters on the share of each expert in its layer, over blocks of batches: level,
 * damped trend and, with a period, one season of `period` blocks (O(period L E) memory). It judges
 * itself: each block is forecast one block ahead and compared with what the previous block would
 * have said; a layer's forecast is used only while its error is the smaller one. */

typedef struct lplb_forecaster_config {
    size_t struct_size;
    int32_t layers, experts;
    int32_t block;  /* batches a block; 0 = 100 */
    int32_t period; /* blocks a season (24 blocks of an hour: a day); 0 = no season */
    double level;   /* smoothing of level, trend and season in (0, 1); 0 = 0.5, 0.2, 0.2 */
    double trend, season;
    double damping; /* of the trend a block ahead, in (0, 1]; 0 = 0.98 */
} lplb_forecaster_config;

typedef struct lplb_forecaster lplb_forecaster;
LPLB_API lplb_status lplb_forecaster_create(const lplb_forecaster_config *config,
                                            lplb_forecaster **out);
LPLB_API void lplb_forecaster_destroy(lplb_forecaster *forecaster);
/* counts as lplb_tracker_update; layers without tokens are left out of the block. */
LPLB_API lplb_status lplb_forecaster_update(lplb_forecaster *forecaster, const int64_t *counts);
/* Shares of the next block [L][E], each layer summing to 1 (or 0 before its first block): the
 * forecast where it has been better than persistence, else the last block. used [L] (may be NULL)
 * says which. */
LPLB_API lplb_status lplb_forecaster_predict(const lplb_forecaster *forecaster, float *share,
                                             uint8_t *used);
/* Decayed mean over blocks of sum over experts of |forecast - share|, in [0, 2], of one layer: of
 * the model and of "as the last block"; both NaN before two blocks could be compared. */
LPLB_API lplb_status lplb_forecaster_error(const lplb_forecaster *forecaster, int32_t layer,
                                           double *model, double *persistence);
LPLB_API size_t lplb_forecaster_save_bytes(const lplb_forecaster *forecaster);
LPLB_API lplb_status lplb_forecaster_save(const lplb_forecaster *forecaster, void *buffer,
                                          size_t capacity);
LPLB_API lplb_status lplb_forecaster_restore(lplb_forecaster *forecaster, const void *buffer,
                                             size_t bytes);

LPLB_END_DECLS

#endif
