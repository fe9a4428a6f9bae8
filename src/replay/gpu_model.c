/* A measured cost model of one GPU: the time of a MoE layer from what each rank has to do. */
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "replay/replay.h"

/* Memory that reading a model may take, most of it the JSON tree. */
enum { MAX_MODEL_BYTES = 128 << 20, MAX_POINTS = 65536 };

typedef struct reader {
    const char *path;
    const json_t *document;
} reader;

static lplb_status number(const reader *r, const json_t *value, const char *key, double low,
                          double *out) {
    double x = json_number_value(value);
    if (!json_is_number(value) || !isfinite(x) || x < low || x > 1e15)
        return LPLB_FAIL(LPLB_FORMAT, "%s: \"%s\" must be a number from %g to 1e15", r->path, key,
                         low);
    *out = x;
    return LPLB_OK;
}

static lplb_status optional(const reader *r, const char *key, double low, double missing,
                            double *out) {
    const json_t *value = json_object_get(r->document, key);
    *out = missing;
    return value ? number(r, value, key, low, out) : LPLB_OK;
}

static lplb_status read_table(const reader *r, lplb_gpu_model *model) {
    const json_t *tokens = json_object_get(r->document, "tokens");
    const json_t *us = json_object_get(r->document, "us");
    size_t n = json_array_size(tokens);
    if (n < 2 || n > MAX_POINTS || json_array_size(us) != n)
        return LPLB_FAIL(LPLB_FORMAT,
                         "%s: \"tokens\" and \"us\" must be arrays of equal length, from 2 to %d",
                         r->path, MAX_POINTS);
    LPLB_TRY(LPLB_CALLOC(model->tokens, n));
    LPLB_TRY(LPLB_CALLOC(model->us, n));
    model->points = (int32_t)n;
    for (size_t i = 0; i < n; i++) {
        LPLB_TRY(number(r, json_array_get(tokens, i), "tokens", 0, &model->tokens[i]));
        LPLB_TRY(number(r, json_array_get(us, i), "us", 0, &model->us[i]));
        if (i == 0 ? model->tokens[0] != 0 : model->tokens[i] <= model->tokens[i - 1])
            return LPLB_FAIL(LPLB_FORMAT,
                             "%s: \"tokens\"[%zu] = %g: they must begin with 0 and "
                             "rise",
                             r->path, i, model->tokens[i]);
        if (i > 0 && model->us[i] < model->us[i - 1])
            return LPLB_FAIL(LPLB_FORMAT, "%s: \"us\"[%zu] = %g falls", r->path, i, model->us[i]);
    }
    return LPLB_OK;
}

static lplb_status read_links(const reader *r, lplb_gpu_model *model) {
    double dispatch, combine, inside, between;
    LPLB_TRY(optional(r, "dispatch_bytes", 0, 0, &dispatch));
    LPLB_TRY(optional(r, "combine_bytes", 0, 0, &combine));
    LPLB_TRY(optional(r, "gb_per_s", 1e-3, INFINITY, &inside));
    LPLB_TRY(optional(r, "internode_gb_per_s", 1e-3, inside, &between));
    model->us_per_selection = (dispatch + combine) / (inside * 1e3);
    model->us_per_selection_internode = (dispatch + combine) / (between * 1e3);
    return LPLB_OK;
}

static lplb_status check_keys(const reader *r) {
    static const char *const keys[] = {"schema",        "name",
                                       "tokens",        "us",
                                       "tile",          "us_per_layer",
                                       "us_per_plan",   "dispatch_bytes",
                                       "combine_bytes", "us_per_active_expert",
                                       "gb_per_s",      "internode_gb_per_s"};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)r->document, key, value) {
        size_t i = 0, n = sizeof keys / sizeof keys[0];
        while (i < n && strcmp(key, keys[i])) i++;
        if (i == n) return LPLB_FAIL(LPLB_FORMAT, "%s: unknown key \"%s\"", r->path, key);
    }
    return LPLB_OK;
}

static lplb_status read_model(const reader *r, lplb_gpu_model *model) {
    const char *schema = json_string_value(json_object_get(r->document, "schema"));
    if (!schema || strcmp(schema, "lplb.gpu_model/1"))
        return LPLB_FAIL(LPLB_FORMAT, "%s: \"schema\" must be \"lplb.gpu_model/1\"", r->path);
    LPLB_TRY(check_keys(r));
    LPLB_TRY(read_table(r, model));
    double tile;
    LPLB_TRY(optional(r, "tile", 1, 1, &tile));
    model->tile = (int64_t)tile;
    if (tile != (double)model->tile || tile > 1 << 20)
        return LPLB_FAIL(LPLB_FORMAT, "%s: \"tile\" must be a whole number up to 2^20", r->path);
    LPLB_TRY(optional(r, "us_per_active_expert", 0, 0, &model->us_per_active_expert));
    LPLB_TRY(optional(r, "us_per_layer", 0, 0, &model->us_per_layer));
    LPLB_TRY(optional(r, "us_per_plan", 0, 0, &model->us_per_plan));
    return read_links(r, model);
}

lplb_status lplb__gpu_model_parse(const lplb__input *input, lplb_gpu_model **out) {
    *out = NULL;
    json_t *document = NULL;
    lplb_gpu_model *model = NULL;
    LPLB_TRY(lplb__json_load(input, &document));
    lplb_status status = LPLB_CALLOC(model, 1);
    if (status == LPLB_OK) status = read_model(&(reader){input->name, document}, model);
    json_decref(document);
    if (status == LPLB_OK) *out = model;
    else lplb_gpu_model_destroy(model);
    return status;
}

lplb_status lplb_gpu_model_read(const char *path, lplb_gpu_model **out) {
    lplb__input input;
    *out = NULL;
    LPLB_TRY(lplb__input_open(path, MAX_MODEL_BYTES, &input));
    lplb_status status = lplb__gpu_model_parse(&input, out);
    lplb__input_close(&input);
    return status;
}

void lplb_gpu_model_destroy(lplb_gpu_model *model) {
    if (!model) return;
    lplb__free(model->tokens);
    lplb__free(model->us);
    lplb__free(model);
}

void lplb__gpu_loads(const lplb_gpu_model *model, const lplb_hosts *hosts, const int64_t *split,
                     int64_t *tiled, int64_t *active) {
    memset(tiled, 0, (size_t)hosts->ranks * sizeof *tiled);
    memset(active, 0, (size_t)hosts->ranks * sizeof *active);
    for (int64_t h = 0; h < hosts->offset[hosts->experts]; h++) {
        int32_t r = hosts->rank[h];
        tiled[r] += (split[h] + model->tile - 1) / model->tile * model->tile;
        active[r] += split[h] > 0;
    }
}

double lplb__gpu_gemm_us(const lplb_gpu_model *model, double tokens, double active_experts) {
    int32_t low = 0, high = model->points - 1; /* the segment; the last one goes on for ever */
    while (high - low > 1) {
        int32_t middle = (low + high) / 2;
        if (model->tokens[middle] <= tokens) low = middle;
        else high = middle;
    }
    double slope = (model->us[high] - model->us[low]) / (model->tokens[high] - model->tokens[low]);
    return model->us[low] + slope * (tokens - model->tokens[low]) +
           model->us_per_active_expert * active_experts;
}

double lplb__gpu_link_us(const lplb_gpu_model *model, int64_t from_node, int64_t from_elsewhere) {
    return model->us_per_selection * (double)from_node +
           model->us_per_selection_internode * (double)from_elsewhere;
}
