/* Routing traces: what a router chose, token by token or summed. */
#ifndef LPLB_TRACE_H
#define LPLB_TRACE_H

#include <lplb/dispatch.h>
#include <lplb/placement.h>
#include <lplb/status.h>
#include <stdint.h>

LPLB_BEGIN_DECLS

typedef enum lplb_trace_kind {
    LPLB_TRACE_TOPK = 0,  /* ids per token */
    LPLB_TRACE_COUNTS = 1 /* counts per step */
} lplb_trace_kind;

typedef struct lplb_trace {
    lplb_trace_kind kind;
    int32_t layers, experts, topk; /* topk 0 for counts */
    int64_t tokens;                /* T; 0 for counts */
    int64_t steps;                 /* S for counts; 0 for topk */
    int16_t *topk_ids;             /* [T][L][K], -1 = no selection; so experts <= 32767 */
    int64_t *counts;               /* [S][L][E] */
    int64_t sequences;             /* number of sequences, 0 if unknown */
    int64_t *sequence_start;       /* [sequences + 1] first token of each, or NULL */
    int32_t *layer_id;             /* [L] the model's layer number of each row */
    char *source;                  /* what was read, one line for people */
} lplb_trace;

/* What the caller knows beyond the file. Zero-initialise. */
typedef struct lplb_trace_options {
    int32_t experts;    /* 0 = from the file, or the largest id + 1 */
    const char *layout; /* "TK", "TLK", "LTK", "SLTK", "LE" or "SLE" for bare arrays; NULL = the
                           file must leave no doubt */
    int64_t max_bytes;  /* refuse to hold more than this decoded; 0 = 8 GiB */
} lplb_trace_options;

/* Reads a file or a folder, recognised by content and keys (docs/formats.md lists the formats).
 * LPLB_IO, LPLB_FORMAT (with byte or row), LPLB_UNSUPPORTED (with what helps instead). */
LPLB_API lplb_status lplb_trace_read(const char *path, const lplb_trace_options *options,
                                     lplb_trace **out);
LPLB_API void lplb_trace_destroy(lplb_trace *trace);
/* Writes atomically; the format by the ending: .npz, .npy, .json, .csv, .safetensors. */
LPLB_API lplb_status lplb_trace_write(const lplb_trace *trace, const char *path);

/* Counts of the tokens order[first..first+n) (NULL order: consecutive) of one layer: [E]. */
LPLB_API void lplb_trace_count(const lplb_trace *trace, int32_t layer, int64_t first, int64_t n,
                               const int64_t *order, int64_t *counts);

/* Placement files of the engines; format is recognised when reading. ranks 0 = from the file (an
 * error if the file does not say). */
LPLB_API lplb_status lplb_placement_read(const char *path, int32_t ranks, lplb_placement **out);
typedef enum lplb_placement_format {
    LPLB_PLACEMENT_SGLANG = 0,      /* {"physical_to_logical_map": [L][P], ...} */
    LPLB_PLACEMENT_VLLM = 1,        /* offline EPLB map */
    LPLB_PLACEMENT_TRTLLM = 2,      /* moe_load_balancer.yaml */
    LPLB_PLACEMENT_VLLM_ASCEND = 3, /* expert_map_path JSON */
    LPLB_PLACEMENT_OMNI = 4,        /* npy or npz (by the ending) [ranks][L][E] 0/1 */
    LPLB_PLACEMENT_LPLB = 5         /* "lplb.placement/1": also empty slots and unequal ranks */
} lplb_placement_format;
/* LPLB_UNSUPPORTED when the format cannot hold it (empty slots, unequal ranks). Atomic. */
LPLB_API lplb_status lplb_placement_write(const lplb_placement *placement,
                                          lplb_placement_format format, const char *path);

LPLB_END_DECLS

#endif
