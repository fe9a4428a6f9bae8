/* Traces from arrays of numbers: npy, npz and safetensors. Which array holds what is told by its
 * name; a bare array only by its type, its dimensions or the caller's layout. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "io/trace_build.h"

typedef enum layout { NO_LAYOUT, TK, TLK, LTK, SLTK, LE, SLE } layout;

static const struct {
    const char *name;
    int32_t dims;
    bool counts;
} layouts[] = {[NO_LAYOUT] = {"", 0, false}, [TK] = {"TK", 2, false},     [TLK] = {"TLK", 3, false},
               [LTK] = {"LTK", 3, false},    [SLTK] = {"SLTK", 4, false}, [LE] = {"LE", 2, true},
               [SLE] = {"SLE", 3, true}};
enum { N_LAYOUTS = sizeof layouts / sizeof layouts[0] };

/* Keys under which engines and this library save routing, with the layout that each of them means
 * when the array has three dimensions. */
static const struct {
    const char *name;
    layout three;
} keys[] = {{"topk_ids", TLK},           {"routed_experts", TLK},
            {"topk_idx", TLK},           {"topk_indices", TLK},
            {"topk_ids_of_layer", LTK},  {"logical_count", SLE},
            {"expert_count", SLE},       {"counts", SLE},
            {"logical_expert_load", SLE}};
enum { N_KEYS = sizeof keys / sizeof keys[0] };

/* No model has so many layers: a second axis above this is a token axis. */
enum { MAX_PLAUSIBLE_LAYERS = 512 };

typedef struct reader {
    const lplb__arrays *arrays;
    const char *name; /* of the file */
    const lplb_trace_options *options;
    const lplb__array *main; /* ids or counts */
    layout layout;
    int64_t *sequence; /* values of seq_len or sequence_id, or NULL */
    int64_t sequence_items;
    bool sequence_is_length;
    int64_t *layer_id; /* or NULL */
    int64_t layer_ids;
    int64_t experts;  /* stated by the file or the caller, 0 if not */
    int64_t tokens;   /* of ids */
    bool interleaved; /* sequence ids come back after others */
} reader;

static layout layout_of_key(const char *key, int32_t dims) {
    for (int i = 0; i < N_KEYS; i++) {
        if (strcmp(keys[i].name, key)) continue;
        if (dims == 3) return keys[i].three;
        if (dims == 2) return layouts[keys[i].three].counts ? LE : TK;
        if (dims == 4 && !layouts[keys[i].three].counts) return SLTK;
    }
    return NO_LAYOUT;
}

static bool is_key(const char *name) {
    for (int i = 0; i < N_KEYS; i++)
        if (!strcmp(keys[i].name, name)) return true;
    return false;
}

static lplb_status find_main(reader *r) {
    for (int k = 0; k < N_KEYS && !r->main; k++)
        r->main = lplb__arrays_find(r->arrays, keys[k].name);
    if (r->main) return LPLB_OK;
    if (lplb__arrays_find(r->arrays, "placement"))
        return LPLB_FAIL(LPLB_FORMAT, "%s holds a placement, not a trace", r->name);
    if (r->arrays->n == 1) {
        r->main = &r->arrays->array[0];
        return LPLB_OK;
    }
    char found[256] = "";
    size_t used = 0;
    for (int64_t i = 0; i < r->arrays->n && used < sizeof found; i++)
        used += (size_t)snprintf(found + used, sizeof found - used, "%s%.40s", i ? ", " : "",
                                 r->arrays->array[i].name);
    return LPLB_FAIL(LPLB_FORMAT, "%s: no array is named topk_ids or logical_count; found: %s",
                     r->name, found);
}

/* What the caller's layout, the key, the item type and the dimensions say together. */
static lplb_status find_layout(reader *r) {
    const lplb__array *a = r->main;
    char shape[160];
    lplb__array_describe(a, shape, sizeof shape);
    if (!a->numeric || a->dtype == LPLB_BOOL)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "%s: %s: neither expert ids nor counts", r->name, shape);
    bool real = a->dtype >= LPLB_FLOAT16;
    const char *wanted = r->options ? r->options->layout : NULL;
    if (wanted) {
        for (int i = TK; i < N_LAYOUTS; i++)
            if (!strcmp(layouts[i].name, wanted)) r->layout = (layout)i;
        if (r->layout == NO_LAYOUT)
            return LPLB_FAIL(LPLB_INVALID, "layout '%s' is none of TK, TLK, LTK, SLTK, LE, SLE",
                             wanted);
        if (layouts[r->layout].dims != a->dims)
            return LPLB_FAIL(LPLB_INVALID, "%s: %s does not have the %d dimensions of layout %s",
                             r->name, shape, layouts[r->layout].dims, wanted);
    } else if (is_key(a->name)) {
        r->layout = layout_of_key(a->name, a->dims);
    } else if (real) {
        r->layout = a->dims == 2 ? LE : a->dims == 3 ? SLE : NO_LAYOUT; /* ids are no floats */
    } else if (a->dims == 4) {
        r->layout = SLTK;
    } else if (a->dims == 2 || a->dims == 3) {
        return LPLB_FAIL(LPLB_INVALID,
                         "%s: %s can be read in several ways; say which with "
                         "--layout %s (T tokens, L layers, K selections, S steps, E "
                         "experts)",
                         r->name, shape, a->dims == 2 ? "TK or LE" : "TLK, LTK or SLE");
    }
    if (r->layout == NO_LAYOUT)
        return LPLB_FAIL(LPLB_FORMAT, "%s: %s has no meaning with %d dimensions", r->name, shape,
                         a->dims);
    if (real && !layouts[r->layout].counts)
        return LPLB_FAIL(LPLB_FORMAT, "%s: %s: expert ids must be integers", r->name, shape);
    return LPLB_OK;
}

/* An optional vector beside the main array. */
static lplb_status read_vector(const reader *r, const char *key, int64_t max_items, int64_t **out,
                               int64_t *items) {
    const lplb__array *array = lplb__arrays_find(r->arrays, key);
    if (!array || *out) return LPLB_OK;
    if (array->dims > 1)
        return LPLB_FAIL(LPLB_FORMAT, "%s: %s has %d dimensions, a vector is wanted", r->name, key,
                         array->dims);
    int64_t limit = lplb__trace_max_bytes(r->options) / (int64_t)sizeof **out;
    LPLB_TRY(lplb__array_read(r->arrays, array, max_items < limit ? max_items : limit, out));
    *items = array->items;
    return LPLB_OK;
}

static lplb_status read_companions(reader *r) {
    static const char *const expert_keys[] = {"experts", "num_experts", "n_routed_experts"};
    r->experts = r->options ? r->options->experts : 0;
    for (size_t i = 0; i < sizeof expert_keys / sizeof expert_keys[0]; i++) {
        int64_t *value = NULL, items = 0;
        LPLB_TRY(read_vector(r, expert_keys[i], 1, &value, &items));
        int64_t stated = items == 1 ? *value : 0;
        lplb__free(value);
        if (items == 0) continue;
        if (stated < 1 || stated > INT32_MAX)
            return LPLB_FAIL(LPLB_RANGE, "%s: %s is %lld", r->name, expert_keys[i],
                             (long long)stated);
        if (r->experts && r->experts != stated)
            return LPLB_FAIL(LPLB_INVALID, "%s: %s is %lld, not the %lld that were announced",
                             r->name, expert_keys[i], (long long)stated, (long long)r->experts);
        r->experts = stated;
    }
    LPLB_TRY(read_vector(r, "layer_id", r->main->items, &r->layer_id, &r->layer_ids));
    if (layouts[r->layout].counts) return LPLB_OK;
    LPLB_TRY(read_vector(r, "seq_len", r->main->items, &r->sequence, &r->sequence_items));
    r->sequence_is_length = r->sequence != NULL;
    return read_vector(r, "sequence_id", r->main->items, &r->sequence, &r->sequence_items);
}

/* Tokens that the companion arrays speak of, -1 if they do not. */
static int64_t sequence_tokens(const reader *r) {
    if (!r->sequence) return -1;
    if (!r->sequence_is_length) return r->sequence_items;
    int64_t total = 0;
    for (int64_t i = 0; i < r->sequence_items; i++) {
        if (r->sequence[i] < 0 || r->sequence[i] > r->main->items - total) return 0;
        total += r->sequence[i];
    }
    return total;
}

/* A three-dimensional key may still hold the other order: the companions tell. */
static lplb_status settle_order(reader *r) {
    const int64_t *shape = r->main->shape;
    if (r->layout != TLK && r->layout != LTK) return LPLB_OK;
    if (r->options && r->options->layout) return LPLB_OK;
    int64_t tokens = sequence_tokens(r);
    bool tlk = (tokens < 0 || tokens == shape[0]) && (!r->layer_id || r->layer_ids == shape[1]);
    bool ltk = (tokens < 0 || tokens == shape[1]) && (!r->layer_id || r->layer_ids == shape[0]);
    if (r->layout == TLK && !tlk && ltk) r->layout = LTK;
    if (r->layout == LTK && !ltk && tlk) r->layout = TLK;
    if (tlk != ltk) return LPLB_OK;
    int64_t layers = r->layout == TLK ? shape[1] : shape[0];
    if (layers > MAX_PLAUSIBLE_LAYERS)
        return LPLB_FAIL(LPLB_INVALID,
                         "%s: %s as %s would have %lld layers; say which axis is "
                         "which with --layout TLK or LTK",
                         r->name, r->main->name, layouts[r->layout].name, (long long)layers);
    return LPLB_OK;
}

/* ---- the values ---- */

typedef struct id_store {
    const reader *reader;
    int16_t *ids;
    int64_t row; /* ids of a token */
} id_store;

static lplb_status store_ids(void *context, int64_t offset, int64_t step, const int64_t *values,
                             int64_t n, int64_t first) {
    const id_store *store = context;
    int16_t *ids = store->ids + offset;
    uint64_t outside = 0; /* id + 1 must be in [0, 32767]; looked into only when some is not */
    for (int64_t i = 0; i < n; i++) {
        outside |= ((uint64_t)values[i] + 1) & ~(uint64_t)LPLB__MAX_EXPERT_IDS;
        ids[i * step] = (int16_t)values[i];
    }
    if (!outside) return LPLB_OK;
    int64_t i = 0;
    while (((uint64_t)values[i] + 1) <= LPLB__MAX_EXPERT_IDS) i++;
    return LPLB_FAIL(LPLB_RANGE, "%s: token %lld: expert id %lld (item %lld) is outside [-1, %d)",
                     store->reader->name, (long long)((offset + i * step) / store->row),
                     (long long)values[i], (long long)(first + i), LPLB__MAX_EXPERT_IDS);
}

/* Signs and totals are checked with their step and layer afterwards. */
static lplb_status store_counts(void *context, int64_t offset, int64_t step, const int64_t *values,
                                int64_t n, int64_t first) {
    (void)first;
    int64_t *counts = (int64_t *)context + offset;
    for (int64_t i = 0; i < n; i++) counts[i * step] = values[i];
    return LPLB_OK;
}

static lplb_status read_ids(reader *r, lplb_trace **out) {
    const int64_t *n = r->main->shape;
    int64_t steps = 1, layers = 1, topk = n[r->main->dims - 1];
    switch (r->layout) {
    case TK: r->tokens = n[0]; break;
    case TLK: r->tokens = n[0], layers = n[1]; break;
    case LTK: layers = n[0], r->tokens = n[1]; break;
    default: steps = n[0], layers = n[1], r->tokens = n[2]; break;
    }
    /* Strides of the axes as the file has them, in the trace's [step, token][layer][k]. */
    int64_t row = layers * topk, step = r->tokens * row;
    int64_t stride[4] = {0};
    switch (r->layout) {
    case TK: stride[0] = row, stride[1] = 1; break;
    case TLK: stride[0] = row, stride[1] = topk, stride[2] = 1; break;
    case LTK: stride[0] = topk, stride[1] = row, stride[2] = 1; break;
    default: stride[0] = step, stride[1] = topk, stride[2] = row, stride[3] = 1; break;
    }
    r->tokens *= steps;
    LPLB_TRY(lplb__trace_create_topk(r->name, r->tokens, layers, topk, r->options, out));
    id_store store = {.reader = r, .ids = (*out)->topk_ids, .row = row};
    LPLB_TRY(lplb__array_scatter(r->arrays, r->main, stride, store_ids, &store));
    return lplb__trace_check_ids(r->name, *out, r->experts);
}

static lplb_status read_counts(reader *r, lplb_trace **out) {
    const int64_t *n = r->main->shape;
    bool summed = r->layout == LE;
    int64_t steps = summed ? 1 : n[0], layers = n[summed ? 0 : 1], experts = n[summed ? 1 : 2];
    LPLB_TRY(lplb__trace_create_counts(r->name, steps, layers, experts, r->options, out));
    int64_t stride[3] = {layers * experts, experts, 1};
    LPLB_TRY(lplb__array_scatter(r->arrays, r->main, summed ? stride + 1 : stride, store_counts,
                                 (*out)->counts));
    if (r->experts && r->experts != experts)
        return LPLB_FAIL(LPLB_INVALID, "%s has %lld experts, not the %lld that were announced",
                         r->name, (long long)experts, (long long)r->experts);
    return lplb__trace_check_counts(r->name, *out, r->options);
}

/* Runs of equal sequence ids. An id that comes back after others was interleaved while recording:
 * the trace then stays in recorded order, without sequences. */
static lplb_status set_runs(reader *r, lplb_trace *trace) {
    int64_t runs = 0, *start = NULL, *first = NULL;
    for (int64_t t = 0; t < trace->tokens; t++)
        runs += t == 0 || r->sequence[t] != r->sequence[t - 1];
    lplb_status status;
    LPLB_TRY_GOTO(status, LPLB_CALLOC(start, runs + 1), done);
    LPLB_TRY_GOTO(status, LPLB_CALLOC(first, runs), done);
    int64_t run = 0;
    for (int64_t t = 0; t < trace->tokens; t++) {
        if (t > 0 && r->sequence[t] == r->sequence[t - 1]) continue;
        first[run] = r->sequence[t];
        start[run++] = t;
    }
    start[runs] = trace->tokens;
    r->interleaved = lplb__sort_unique(first, runs) < runs;
    if (!r->interleaved) {
        trace->sequences = runs;
        trace->sequence_start = start;
        start = NULL;
    }
done:
    lplb__free(first);
    lplb__free(start);
    return status;
}

static lplb_status set_sequences(reader *r, lplb_trace *trace) {
    if (!r->sequence) return LPLB_OK;
    int64_t total = sequence_tokens(r);
    if (total != trace->tokens)
        return LPLB_FAIL(LPLB_FORMAT, "%s: %s speaks of %lld tokens, there are %lld", r->name,
                         r->sequence_is_length ? "seq_len" : "sequence_id", (long long)total,
                         (long long)trace->tokens);
    if (!r->sequence_is_length) return set_runs(r, trace);
    trace->sequences = r->sequence_items;
    LPLB_TRY(LPLB_CALLOC(trace->sequence_start, trace->sequences + 1));
    for (int64_t i = 0; i < trace->sequences; i++)
        trace->sequence_start[i + 1] = trace->sequence_start[i] + r->sequence[i];
    return LPLB_OK;
}

static lplb_status set_layer_ids(const reader *r, lplb_trace *trace) {
    if (!r->layer_id) return LPLB_OK;
    if (r->layer_ids != trace->layers)
        return LPLB_FAIL(LPLB_FORMAT, "%s: layer_id has %lld items for %d layers", r->name,
                         (long long)r->layer_ids, trace->layers);
    for (int32_t i = 0; i < trace->layers; i++) {
        if (r->layer_id[i] < 0 || r->layer_id[i] > INT32_MAX)
            return LPLB_FAIL(LPLB_RANGE, "%s: layer_id[%d] is %lld", r->name, i,
                             (long long)r->layer_id[i]);
        trace->layer_id[i] = (int32_t)r->layer_id[i];
    }
    return LPLB_OK;
}

lplb_status lplb__trace_from_arrays(const lplb__arrays *arrays, const lplb_trace_options *options,
                                    lplb_trace **out) {
    reader r = {.arrays = arrays, .name = arrays->input->name, .options = options};
    lplb_trace *trace = NULL;
    lplb_status status;
    char shape[160];
    LPLB_TRY_GOTO(status, find_main(&r), done);
    LPLB_TRY_GOTO(status, find_layout(&r), done);
    LPLB_TRY_GOTO(status, read_companions(&r), done);
    LPLB_TRY_GOTO(status, settle_order(&r), done);
    LPLB_TRY_GOTO(status, layouts[r.layout].counts ? read_counts(&r, &trace) : read_ids(&r, &trace),
                  done);
    LPLB_TRY_GOTO(status, set_sequences(&r, trace), done);
    LPLB_TRY_GOTO(status, set_layer_ids(&r, trace), done);
    lplb__array_describe(r.main, shape, sizeof shape);
    status =
        lplb__trace_describe(trace, "%.200s: %s as %s%s", r.name, shape, layouts[r.layout].name,
                             r.interleaved ? ", sequences interleaved" : "");
done:
    lplb__free(r.sequence);
    lplb__free(r.layer_id);
    if (status != LPLB_OK) {
        lplb_trace_destroy(trace);
        trace = NULL;
    }
    *out = trace;
    return status;
}
