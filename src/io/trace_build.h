/* What the readers of traces share: making the struct under a memory limit, and finishing it. */
#ifndef LPLB_IO_TRACE_BUILD_H
#define LPLB_IO_TRACE_BUILD_H

#include <jansson.h>
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

/* The formats. */
lplb_status lplb__trace_from_arrays(const lplb__arrays *arrays, const lplb_trace_options *options,
                                    lplb_trace **out);
lplb_status lplb__trace_from_json(const char *text, int64_t bytes, const char *name,
                                  const lplb_trace_options *options, lplb_trace **out);

/* A file's bytes; name is for messages. What lplb_trace_read does for anything but folders. */
lplb_status lplb__trace_read_input(const lplb__input *input, const lplb_trace_options *options,
                                   lplb_trace **out);
lplb_status lplb__trace_read_memory(const void *data, int64_t bytes, const char *name,
                                    const lplb_trace_options *options, lplb_trace **out);

#endif
