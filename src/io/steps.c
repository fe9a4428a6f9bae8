/* Counts that arrive step by step, and small helpers for sorted lists of step and layer numbers. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "io/trace_build.h"

lplb_status lplb__steps_add(lplb__steps *steps, int64_t layers, int64_t experts, int64_t **out) {
    if (steps->steps == 0) {
        steps->layers = layers;
        steps->experts = experts;
    }
    if (steps->layers != layers || steps->experts != experts)
        return LPLB_FAIL(LPLB_FORMAT, "%s: step %lld is [%lld][%lld], the first one [%lld][%lld]",
                         steps->name, (long long)steps->steps, (long long)layers,
                         (long long)experts, (long long)steps->layers, (long long)steps->experts);
    int64_t limit = lplb__trace_max_bytes(steps->options) / (int64_t)sizeof *steps->counts;
    if (layers < 1 || experts < 1 || layers > INT32_MAX || experts > INT32_MAX ||
        experts > limit / layers || steps->steps + 1 > limit / layers / experts)
        return LPLB_FAIL(LPLB_RANGE,
                         "%s: %lld steps of [%lld][%lld] counts pass the limit of %lld "
                         "bytes",
                         steps->name, (long long)steps->steps + 1, (long long)layers,
                         (long long)experts, (long long)lplb__trace_max_bytes(steps->options));
    int64_t step_items = layers * experts;
    if (steps->steps == steps->capacity) {
        int64_t capacity = steps->capacity ? 2 * steps->capacity : 1;
        if (capacity > limit / step_items) capacity = limit / step_items;
        int64_t *grown =
            lplb__realloc(steps->counts, (size_t)(capacity * step_items) * sizeof *steps->counts);
        if (!grown)
            return LPLB_FAIL(LPLB_NO_MEMORY, "cannot hold %lld steps of %s", (long long)capacity,
                             steps->name);
        steps->counts = grown;
        steps->capacity = capacity;
    }
    *out = steps->counts + steps->steps++ * step_items;
    memset(*out, 0, (size_t)step_items * sizeof **out);
    return LPLB_OK;
}

lplb_status lplb__steps_finish(lplb__steps *steps, lplb_trace **out) {
    *out = NULL;
    if (steps->steps == 0) return LPLB_FAIL(LPLB_FORMAT, "%s holds no counts", steps->name);
    lplb_trace *trace;
    LPLB_TRY(lplb__trace_create_counts(steps->name, 1, steps->layers, steps->experts,
                                       steps->options, &trace));
    lplb__free(trace->counts);
    trace->counts = steps->counts;
    trace->steps = steps->steps;
    steps->counts = NULL;
    lplb_status status = lplb__trace_check_counts(steps->name, trace, steps->options);
    if (status != LPLB_OK) lplb_trace_destroy(trace);
    else *out = trace;
    return status;
}

void lplb__steps_discard(lplb__steps *steps) {
    lplb__free(steps->counts);
    steps->counts = NULL;
}

static int compare(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

int64_t lplb__sort_unique(int64_t *values, int64_t n) {
    if (n == 0) return 0;
    qsort(values, (size_t)n, sizeof *values, compare);
    int64_t kept = 1;
    for (int64_t i = 1; i < n; i++)
        if (values[i] != values[kept - 1]) values[kept++] = values[i];
    return kept;
}

int64_t lplb__position(const int64_t *sorted, int64_t n, int64_t value) {
    const int64_t *found = bsearch(&value, sorted, (size_t)n, sizeof value, compare);
    return found - sorted;
}
