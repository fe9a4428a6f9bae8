/* The traces' targets: whatever is read must be a whole trace within the memory limit, whatever is
 * refused must say why. */
#ifndef LPLB_FUZZ_TRACE_TARGET_H
#define LPLB_FUZZ_TRACE_TARGET_H

#include <string.h>

#include "fuzz.h"
#include "io/trace_build.h"

static inline void check_trace(const lplb_trace *trace) {
    FUZZ_ASSERT(lplb__trace_validate(trace) == LPLB_OK);
    FUZZ_ASSERT(trace->tokens * trace->layers * trace->topk * 2 <= FUZZ_MAX_BYTES);
    FUZZ_ASSERT(trace->steps * trace->layers * trace->experts * 8 <= FUZZ_MAX_BYTES);
    FUZZ_ASSERT(trace->source && trace->layer_id);
    FUZZ_ASSERT(trace->kind == LPLB_TRACE_COUNTS || trace->experts <= LPLB__MAX_EXPERT_IDS);
    int64_t *counts = calloc((size_t)trace->experts, sizeof *counts);
    if (!counts) return;
    int64_t rows = trace->kind == LPLB_TRACE_TOPK ? trace->tokens : trace->steps;
    lplb_trace_count(trace, trace->layers - 1, 0, rows, NULL, counts);
    int64_t total = 0;
    for (int32_t e = 0; e < trace->experts; e++) {
        FUZZ_ASSERT(counts[e] >= 0 && counts[e] <= LPLB__MAX_TOTAL - total);
        total += counts[e];
    }
    free(counts);
}

static inline void read_trace(const uint8_t *data, size_t bytes, const char *layout) {
    lplb_trace_options options = {.layout = layout, .max_bytes = FUZZ_MAX_BYTES};
    lplb_trace *trace;
    lplb_error_clear();
    lplb_status status = lplb__trace_read_memory(data, (int64_t)bytes, "input", &options, &trace);
    if (status == LPLB_OK) {
        check_trace(trace);
        lplb_trace_destroy(trace);
    } else {
        FUZZ_ASSERT(!trace);
        FUZZ_ASSERT(strlen(lplb_error_message()) > 5);
    }
}

#endif
