/* Traces of counts in JSON, one document or one in each line:
 *     {"logical_count": [L][E] or [S][L][E]}                        (SGLang, this library)
 *     {"load_history": [{"logical_expert_load": [L][E]}, ...]}       (vLLM load dumps)
 *     {"expert_load": [L][P], "p2l_map": [L][P], ...}                (vLLM eplb_load_stats records)
 * Every document adds its steps in order. Records of another record_type carry no counts. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "io/json.h"
#include "io/trace_build.h"

typedef struct reader {
    const char *name;
    lplb__json_cursor *cursor;
    lplb__steps steps;
    int64_t *layer_id; /* from the key layer_id, or NULL */
    int64_t layer_ids;
} reader;

/* Rows and columns of a list of lists of equal length. */
static lplb_status matrix_shape(const reader *r, const json_t *matrix, const char *path,
                                int64_t *rows, int64_t *columns) {
    *rows = (int64_t)json_array_size(matrix);
    *columns = (int64_t)json_array_size(json_array_get(matrix, 0));
    if (*rows == 0 || *columns == 0)
        return LPLB_FAIL(LPLB_FORMAT, "%s: %s must be a list of lists of numbers", r->name, path);
    for (int64_t i = 0; i < *rows; i++) {
        const json_t *row = json_array_get(matrix, (size_t)i);
        if (!json_is_array(row) || (int64_t)json_array_size(row) != *columns)
            return LPLB_FAIL(LPLB_FORMAT, "%s: %s[%lld] has %zu numbers, %s[0] has %lld", r->name,
                             path, (long long)i, json_array_size(row), path, (long long)*columns);
    }
    return LPLB_OK;
}

static lplb_status cell(const reader *r, const json_t *matrix, const char *path, int64_t row,
                        int64_t column, int64_t low, int64_t high, int64_t *out) {
    const json_t *value = json_array_get(json_array_get(matrix, (size_t)row), (size_t)column);
    if (json_is_integer(value)) { /* nearly always: do not spend time on the message's path */
        *out = json_integer_value(value);
        if (*out >= low && *out <= high) return LPLB_OK;
    }
    char where[160];
    snprintf(where, sizeof where, "%s[%lld][%lld]", path, (long long)row, (long long)column);
    return lplb__json_whole(value, r->name, where, low, high, out);
}

static lplb_status add_logical(reader *r, const json_t *matrix, const char *path) {
    int64_t layers, experts, *counts;
    LPLB_TRY(matrix_shape(r, matrix, path, &layers, &experts));
    LPLB_TRY(lplb__steps_add(&r->steps, layers, experts, &counts));
    for (int64_t l = 0; l < layers; l++)
        for (int64_t e = 0; e < experts; e++)
            LPLB_TRY(cell(r, matrix, path, l, e, 0, LPLB__MAX_TOTAL, &counts[l * experts + e]));
    return LPLB_OK;
}

/* Loads of physical slots: the copies of an expert are added up. */
static lplb_status add_physical(reader *r, const json_t *load, const json_t *map) {
    int64_t layers, slots, map_layers, map_slots, experts = 0, *counts, expert, tokens;
    LPLB_TRY(matrix_shape(r, load, "expert_load", &layers, &slots));
    LPLB_TRY(matrix_shape(r, map, "p2l_map", &map_layers, &map_slots));
    if (layers != map_layers || slots != map_slots)
        return LPLB_FAIL(LPLB_FORMAT, "%s: expert_load is [%lld][%lld], p2l_map is [%lld][%lld]",
                         r->name, (long long)layers, (long long)slots, (long long)map_layers,
                         (long long)map_slots);
    for (int64_t l = 0; l < layers; l++)
        for (int64_t p = 0; p < slots; p++) {
            LPLB_TRY(cell(r, map, "p2l_map", l, p, -1, INT32_MAX - 1, &expert));
            if (expert >= experts) experts = expert + 1;
        }
    LPLB_TRY(lplb__steps_add(&r->steps, layers, experts, &counts));
    for (int64_t l = 0; l < layers; l++)
        for (int64_t p = 0; p < slots; p++) {
            LPLB_TRY(cell(r, map, "p2l_map", l, p, -1, INT32_MAX - 1, &expert));
            LPLB_TRY(cell(r, load, "expert_load", l, p, 0, LPLB__MAX_TOTAL, &tokens));
            if (expert < 0 && tokens > 0)
                return LPLB_FAIL(LPLB_FORMAT,
                                 "%s: expert_load[%lld][%lld] is %lld, but the slot is empty",
                                 r->name, (long long)l, (long long)p, (long long)tokens);
            if (expert < 0) continue;
            int64_t *count = &counts[l * experts + expert];
            if (tokens > LPLB__MAX_TOTAL - *count)
                return LPLB_FAIL(LPLB_OVERFLOW, "%s: layer %lld, expert %lld passes 2^62", r->name,
                                 (long long)l, (long long)expert);
            *count += tokens;
        }
    return LPLB_OK;
}

static lplb_status add_record(reader *r, const json_t *record) {
    const json_t *logical = json_object_get(record, "logical_expert_load");
    const json_t *physical = json_object_get(record, "expert_load");
    const json_t *map = json_object_get(record, "p2l_map");
    if (!map) map = json_object_get(record, "physical_to_logical_map");
    if (logical) return add_logical(r, logical, "logical_expert_load");
    if (physical && map) return add_physical(r, physical, map);
    if (physical)
        return LPLB_FAIL(LPLB_FORMAT,
                         "%s: expert_load counts slots; p2l_map must say which expert "
                         "each holds",
                         r->name);
    if (map) return LPLB_FAIL(LPLB_FORMAT, "%s holds a placement, not a trace", r->name);
    if (json_is_string(json_object_get(record, "record_type"))) return LPLB_OK;
    return LPLB_FAIL(LPLB_FORMAT,
                     "%s: JSON without logical_count, load_history, "
                     "logical_expert_load or expert_load",
                     r->name);
}

/* [L][E], or [S][L][E] whose steps are parsed one at a time. */
static lplb_status read_logical_count(reader *r) {
    lplb__json_cursor ahead = *r->cursor;
    bool deep = lplb__json_take(&ahead, '[') && lplb__json_take(&ahead, '[') &&
                lplb__json_peek(&ahead) == '[';
    json_t *value;
    lplb_status status = LPLB_OK;
    if (!deep) {
        LPLB_TRY(lplb__json_value(r->cursor, &value));
        status = add_logical(r, value, "logical_count");
        json_decref(value);
        return status;
    }
    (void)lplb__json_take(r->cursor, '[');
    for (int64_t step = 0; status == LPLB_OK; step++) {
        bool more;
        char path[48];
        LPLB_TRY(lplb__json_next(r->cursor, ']', step == 0, &more));
        if (!more) break;
        LPLB_TRY(lplb__json_value(r->cursor, &value));
        snprintf(path, sizeof path, "logical_count[%lld]", (long long)step);
        status = add_logical(r, value, path);
        json_decref(value);
    }
    return status;
}

/* [{...}, ...] */
static lplb_status read_history(reader *r) {
    if (!lplb__json_take(r->cursor, '[')) return lplb__json_expected(r->cursor, "a list of steps");
    lplb_status status = LPLB_OK;
    for (bool first = true; status == LPLB_OK; first = false) {
        bool more;
        json_t *record;
        LPLB_TRY(lplb__json_next(r->cursor, ']', first, &more));
        if (!more) break;
        LPLB_TRY(lplb__json_value(r->cursor, &record));
        status = add_record(r, record);
        json_decref(record);
    }
    return status;
}

static lplb_status read_layer_id(reader *r) {
    json_t *list;
    LPLB_TRY(lplb__json_value(r->cursor, &list));
    lplb_status status = LPLB_OK;
    lplb__free(r->layer_id);
    r->layer_ids = (int64_t)json_array_size(list);
    LPLB_TRY_GOTO(status, LPLB_CALLOC(r->layer_id, r->layer_ids), done);
    for (int64_t i = 0; i < r->layer_ids; i++)
        LPLB_TRY_GOTO(status,
                      lplb__json_whole(json_array_get(list, (size_t)i), r->name, "layer_id", 0,
                                       INT32_MAX, &r->layer_id[i]),
                      done);
done:
    json_decref(list);
    return status;
}

static lplb_status read_object(reader *r) {
    json_t *record = json_object(), *value;
    bool more, big = false;
    lplb_status status = LPLB_OK;
    if (!record) return LPLB_FAIL(LPLB_NO_MEMORY, "cannot allocate a JSON object");
    for (bool first = true;; first = false) {
        char key[64];
        LPLB_TRY_GOTO(status, lplb__json_next(r->cursor, '}', first, &more), done);
        if (!more) break;
        LPLB_TRY_GOTO(status, lplb__json_key(r->cursor, key, sizeof key), done);
        if (!strcmp(key, "logical_count")) {
            big = true;
            LPLB_TRY_GOTO(status, read_logical_count(r), done);
        } else if (!strcmp(key, "load_history")) {
            big = true;
            LPLB_TRY_GOTO(status, read_history(r), done);
        } else if (!strcmp(key, "layer_id")) {
            LPLB_TRY_GOTO(status, read_layer_id(r), done);
        } else {
            LPLB_TRY_GOTO(status, lplb__json_value(r->cursor, &value), done);
            if (json_object_set_new(record, key, value) != 0)
                LPLB_FAIL_GOTO(status, done, LPLB_NO_MEMORY, "cannot keep a JSON member");
        }
    }
    if (!big) status = add_record(r, record);
done:
    json_decref(record);
    return status;
}

static lplb_status set_layer_ids(const reader *r, lplb_trace *trace) {
    if (!r->layer_id) return LPLB_OK;
    if (r->layer_ids != trace->layers)
        return LPLB_FAIL(LPLB_FORMAT, "%s: layer_id has %lld numbers for %d layers", r->name,
                         (long long)r->layer_ids, trace->layers);
    for (int32_t l = 0; l < trace->layers; l++) trace->layer_id[l] = (int32_t)r->layer_id[l];
    return LPLB_OK;
}

lplb_status lplb__trace_from_json(const char *text, const lplb__input *input,
                                  const lplb_trace_options *options, lplb_trace **out) {
    lplb__json_cursor cursor = lplb__json_begin(text, input->bytes, input->name, input->max_bytes);
    reader r = {.name = input->name, .cursor = &cursor};
    r.steps = (lplb__steps){.name = input->name, .options = options};
    lplb_trace *trace = NULL;
    lplb_status status = LPLB_OK;
    while (lplb__json_peek(&cursor) != '\0' && status == LPLB_OK) {
        if (cursor.text[cursor.at] == '[') status = read_history(&r);
        else if (lplb__json_take(&cursor, '{')) status = read_object(&r);
        else status = lplb__json_expected(&cursor, "an object");
    }
    if (status == LPLB_OK) status = lplb__json_end(&cursor);
    if (status == LPLB_OK) status = lplb__steps_finish(&r.steps, &trace);
    if (status == LPLB_OK) status = set_layer_ids(&r, trace);
    if (status == LPLB_OK)
        status = lplb__trace_describe(trace, "%.200s: JSON counts [%lld][%d][%d]", input->name,
                                      (long long)trace->steps, trace->layers, trace->experts);
    lplb__steps_discard(&r.steps);
    lplb__free(r.layer_id);
    if (status != LPLB_OK) {
        lplb_trace_destroy(trace);
        trace = NULL;
    }
    *out = trace;
    return status;
}
