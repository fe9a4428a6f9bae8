/* Traces in JSON: {"logical_count": [L][E] or [S][L][E]}. */
#include <stdio.h>

#include "io/json.h"
#include "io/trace_build.h"

/* Depth of nested lists and the extent of each level along their first items. */
static int list_shape(const json_t *value, int64_t *shape, int max_dims) {
    int dims = 0;
    for (; json_is_array(value); value = json_array_get(value, 0)) {
        if (dims == max_dims) return max_dims + 1;
        shape[dims++] = (int64_t)json_array_size(value);
    }
    return dims;
}

static lplb_status read_matrix(const json_t *matrix, const char *name, const char *path,
                               lplb_trace *trace, int64_t step) {
    if (json_array_size(matrix) != (size_t)trace->layers)
        return LPLB_FAIL(LPLB_FORMAT, "%s: %s has %zu layers, the first one has %d", name, path,
                         json_array_size(matrix), trace->layers);
    for (int32_t l = 0; l < trace->layers; l++) {
        const json_t *row = json_array_get(matrix, (size_t)l);
        if (json_array_size(row) != (size_t)trace->experts)
            return LPLB_FAIL(LPLB_FORMAT, "%s: %s[%d] has %zu experts, the first one has %d", name,
                             path, l, json_array_size(row), trace->experts);
        for (int32_t e = 0; e < trace->experts; e++) {
            char where[160];
            snprintf(where, sizeof where, "%s[%d][%d]", path, l, e);
            LPLB_TRY(
                lplb__json_whole(json_array_get(row, (size_t)e), name, where, 0, LPLB__MAX_TOTAL,
                                 &trace->counts[(step * trace->layers + l) * trace->experts + e]));
        }
    }
    return LPLB_OK;
}

static lplb_status read_logical_count(const json_t *list, const char *name,
                                      const lplb_trace_options *options, lplb_trace **out) {
    int64_t shape[3] = {0};
    int dims = list_shape(list, shape, 3);
    if (dims != 2 && dims != 3)
        return LPLB_FAIL(LPLB_FORMAT,
                         "%s: logical_count must be [layers][experts] or "
                         "[steps][layers][experts]",
                         name);
    bool summed = dims == 2;
    LPLB_TRY(lplb__trace_create_counts(name, summed ? 1 : shape[0], shape[summed ? 0 : 1],
                                       shape[summed ? 1 : 2], options, out));
    for (int64_t s = 0; s < (*out)->steps; s++) {
        char path[64];
        if (summed) snprintf(path, sizeof path, "logical_count");
        else snprintf(path, sizeof path, "logical_count[%lld]", (long long)s);
        LPLB_TRY(read_matrix(summed ? list : json_array_get(list, (size_t)s), name, path, *out, s));
    }
    LPLB_TRY(lplb__trace_check_counts(name, *out, options));
    return lplb__trace_describe(*out, "%.200s: logical_count [%lld][%d][%d]", name,
                                (long long)(*out)->steps, (*out)->layers, (*out)->experts);
}

lplb_status lplb__trace_from_json(const char *text, int64_t bytes, const char *name,
                                  const lplb_trace_options *options, lplb_trace **out) {
    json_t *document;
    LPLB_TRY(lplb__json_parse(text, bytes, name, NULL, &document));
    const json_t *list = json_object_get(document, "logical_count");
    lplb_trace *trace = NULL;
    lplb_status status;
    if (list) status = read_logical_count(list, name, options, &trace);
    else status = LPLB_FAIL(LPLB_FORMAT, "%s: JSON without the key logical_count", name);
    json_decref(document);
    if (status != LPLB_OK) {
        lplb_trace_destroy(trace);
        trace = NULL;
    }
    *out = trace;
    return status;
}
