/* What the readers of traces share: making the struct under a memory limit, and finishing it. */
#ifndef LPLB_IO_TRACE_BUILD_H
#define LPLB_IO_TRACE_BUILD_H

#include <lplb/trace.h>

#include "io/array.h"
#include "io/input.h"

/* Totals of a layer over all steps stay below this, so that no sum of counts overflows. */
#define LPLB__MAX_TOTAL ((int64_t)1 << 62)

enum { LPLB__MAX_EXPERT_IDS = 32767 }; /* topk_ids are int16 */

int64_t lplb__trace_max_bytes(const lplb_trace_options *options);

/* Zeroed; layer_id = 0..L-1. LPLB_RANGE when the extents are impossible or above the limit. */
lplb_status lplb__trace_create_topk(const char *name, int64_t tokens, int64_t layers, int64_t topk,
                                    const lplb_trace_options *options, lplb_trace **out);
lplb_status lplb__trace_create_counts(const char *name, int64_t steps, int64_t layers,
                                      int64_t experts, const lplb_trace_options *options,
                                      lplb_trace **out);
/* One line for people, kept as trace->source. */
lplb_status lplb__trace_describe(lplb_trace *trace, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Counts are >= 0 and no layer's total passes LPLB__MAX_TOTAL; a wanted number of experts agrees.
 */
lplb_status lplb__trace_check_counts(const char *name, const lplb_trace *trace,
                                     const lplb_trace_options *options);
/* Ids are in [-1, experts); experts 0 is replaced by the largest id + 1. */
lplb_status lplb__trace_check_ids(const char *name, lplb_trace *trace, int64_t experts);
/* Extents, ids or counts, sequences of a trace that a caller made. */
lplb_status lplb__trace_validate(const lplb_trace *trace);

/* Counts whose number of steps is not known before they are read. Zero-initialise with name and
 * options. */
typedef struct lplb__steps {
    const char *name;
    const lplb_trace_options *options;
    int64_t layers, experts; /* set by the first step */
    int64_t steps, capacity;
    int64_t *counts; /* [capacity][layers][experts] */
} lplb__steps;

/* A zeroed [layers][experts] for the next step. */
lplb_status lplb__steps_add(lplb__steps *steps, int64_t layers, int64_t experts, int64_t **out);
/* Checks the counts and moves them into a trace. */
lplb_status lplb__steps_finish(lplb__steps *steps, lplb_trace **out);
void lplb__steps_discard(lplb__steps *steps);

/* Sorts and removes repetitions; returns how many remain. */
int64_t lplb__sort_unique(int64_t *values, int64_t n);
/* Position of a value that is known to be in the sorted list. */
int64_t lplb__position(const int64_t *sorted, int64_t n, int64_t value);

/* ---- the formats ---- */

lplb_status lplb__trace_from_arrays(const lplb__arrays *arrays, const lplb_trace_options *options,
                                    lplb_trace **out);
/* text: the input's bytes, with a zero behind them. */
lplb_status lplb__trace_from_json(const char *text, const lplb__input *input,
                                  const lplb_trace_options *options, lplb_trace **out);
lplb_status lplb__trace_from_csv(const lplb__input *input, const lplb_trace_options *options,
                                 lplb_trace **out);
/* TensorRT-LLM: keys "{iteration}_{layer}" of every file, added up. */
bool lplb__is_statistics(const lplb__arrays *arrays);
lplb_status lplb__trace_from_statistics(const lplb__arrays *files, int64_t n, const char *name,
                                        int64_t experts, const lplb_trace_options *options,
                                        lplb_trace **out);
lplb_status lplb__trace_from_folder(const char *path, const lplb_trace_options *options,
                                    lplb_trace **out);

/* What lplb_trace_read does with anything but folders; the second form is for bytes in memory. */
lplb_status lplb__trace_read_input(const lplb__input *input, const lplb_trace_options *options,
                                   lplb_trace **out);
lplb_status lplb__trace_read_memory(const void *data, int64_t bytes, const char *name,
                                    const lplb_trace_options *options, lplb_trace **out);

#endif
