/* Writes traces; the format is chosen by the file's ending. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "io/array.h"
#include "io/output.h"
#include "io/trace_build.h"

/* The arrays of a trace as npz and safetensors name them. */
enum { MAX_TENSORS = 4 };
typedef struct tensors {
    lplb__tensor tensor[MAX_TENSORS];
    int32_t n;
    void *ids;
    int64_t *length; /* [sequences] */
} tensors;

static void add(tensors *t, const char *name, lplb_dtype dtype, int32_t dims, const int64_t *shape,
                const void *items) {
    lplb__tensor *tensor = &t->tensor[t->n++];
    *tensor = (lplb__tensor){.name = name, .dtype = dtype, .dims = dims, .items = items};
    for (int32_t d = 0; d < dims; d++) tensor->shape[d] = shape[d];
}

/* Ids in the smallest type that holds them: one byte usually. */
static lplb_status pack_ids(const lplb_trace *trace, lplb_dtype *dtype, void **out) {
    int64_t n = trace->tokens * trace->layers * trace->topk;
    int32_t smallest = 0;
    for (int64_t i = 0; i < n; i++)
        if (trace->topk_ids[i] < smallest) smallest = trace->topk_ids[i];
    *dtype = LPLB_INT16;
    if (trace->experts <= 256 && smallest == 0) *dtype = LPLB_UINT8;
    if (trace->experts <= 128 && smallest < 0) *dtype = LPLB_INT8;
    LPLB_TRY(lplb__calloc(out, n, (size_t)lplb_dtype_bytes(*dtype)));
    if (*dtype == LPLB_INT16) {
        memcpy(*out, trace->topk_ids, (size_t)n * 2);
    } else {
        unsigned char *bytes = *out;
        for (int64_t i = 0; i < n; i++) bytes[i] = (unsigned char)trace->topk_ids[i];
    }
    return LPLB_OK;
}

static lplb_status list_tensors(const lplb_trace *trace, tensors *t) {
    int64_t layers = trace->layers;
    if (trace->kind == LPLB_TRACE_TOPK) {
        lplb_dtype dtype;
        LPLB_TRY(pack_ids(trace, &dtype, &t->ids));
        add(t, "topk_ids", dtype, 3, (int64_t[]){trace->tokens, layers, trace->topk}, t->ids);
        if (trace->sequences) {
            LPLB_TRY(LPLB_CALLOC(t->length, trace->sequences));
            for (int64_t i = 0; i < trace->sequences; i++)
                t->length[i] = trace->sequence_start[i + 1] - trace->sequence_start[i];
            add(t, "seq_len", LPLB_INT64, 1, &trace->sequences, t->length);
        }
        add(t, "experts", LPLB_INT32, 0, NULL, &trace->experts);
    } else {
        add(t, "logical_count", LPLB_INT64, 3, (int64_t[]){trace->steps, layers, trace->experts},
            trace->counts);
    }
    add(t, "layer_id", LPLB_INT32, 1, &layers, trace->layer_id);
    return LPLB_OK;
}

/* {"logical_count": [L][E]} for one step, as --init-expert-location of SGLang takes it, else
 * [S][L][E]; "layer_id" only where the layers are not simply numbered. */
static lplb_status write_json(const lplb_trace *trace, const char *path) {
    lplb__output output;
    LPLB_TRY(lplb__output_open(path, &output));
    FILE *file = output.file;
    bool numbered = true;
    for (int32_t l = 0; l < trace->layers; l++) numbered &= trace->layer_id[l] == l;
    fprintf(file, "{\"logical_count\": %s", trace->steps > 1 ? "[\n" : "");
    const int64_t *count = trace->counts;
    for (int64_t s = 0; s < trace->steps; s++) {
        fprintf(file, "%s[", s ? ",\n" : "");
        for (int32_t l = 0; l < trace->layers; l++) {
            fprintf(file, "%s[", l ? ",\n" : "");
            for (int32_t e = 0; e < trace->experts; e++)
                fprintf(file, "%s%lld", e ? ", " : "", (long long)*count++);
            putc(']', file);
        }
        putc(']', file);
    }
    if (trace->steps > 1) putc(']', file);
    if (!numbered) {
        fprintf(file, ",\n\"layer_id\": [");
        for (int32_t l = 0; l < trace->layers; l++)
            fprintf(file, "%s%d", l ? ", " : "", trace->layer_id[l]);
        putc(']', file);
    }
    fprintf(file, "}\n");
    return lplb__output_commit(&output);
}

/* Zeros are left out, but for the last expert of every step and layer: so the extents survive. */
static lplb_status write_csv(const lplb_trace *trace, const char *path) {
    lplb__output output;
    LPLB_TRY(lplb__output_open(path, &output));
    fprintf(output.file, "step,layer,expert,count\n");
    const int64_t *count = trace->counts;
    for (int64_t s = 0; s < trace->steps; s++)
        for (int32_t l = 0; l < trace->layers; l++)
            for (int32_t e = 0; e < trace->experts; e++, count++)
                if (*count || e == trace->experts - 1)
                    fprintf(output.file, "%lld,%d,%d,%lld\n", (long long)s, trace->layer_id[l], e,
                            (long long)*count);
    return lplb__output_commit(&output);
}

/* CSV knows layers only by their numbers. */
static lplb_status check_layer_order(const lplb_trace *trace, const char *path) {
    for (int32_t l = 1; l < trace->layers; l++)
        if (trace->layer_id[l] <= trace->layer_id[l - 1])
            return LPLB_FAIL(LPLB_UNSUPPORTED, "%s: layer numbers do not ascend (%d after %d)",
                             path, trace->layer_id[l], trace->layer_id[l - 1]);
    return LPLB_OK;
}

lplb_status lplb_trace_write(const lplb_trace *trace, const char *path) {
    LPLB_TRY(lplb__trace_validate(trace));
    const char *dot = strrchr(path, '.');
    const char *ending = dot && !strchr(dot, '/') ? dot + 1 : "";
    bool json = !strcmp(ending, "json"), csv = !strcmp(ending, "csv");
    if ((json || csv) && trace->kind == LPLB_TRACE_TOPK)
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "%s: JSON and CSV hold counts; count the tokens first, "
                         "or write .npz",
                         path);
    if (json) return write_json(trace, path);
    if (csv) {
        LPLB_TRY(check_layer_order(trace, path));
        return write_csv(trace, path);
    }
    bool npz = !strcmp(ending, "npz"), npy = !strcmp(ending, "npy");
    if (!npz && !npy && strcmp(ending, "safetensors"))
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "%s: a trace is written as .npz, .npy, .safetensors, "
                         ".json or .csv",
                         path);
    tensors t = {0};
    lplb_status status = list_tensors(trace, &t);
    if (status == LPLB_OK)
        status = npz   ? lplb__npz_write(path, t.tensor, t.n)
                 : npy ? lplb__npy_write(path, t.tensor)
                       : lplb__safetensors_write(path, t.tensor, t.n);
    lplb__free(t.ids);
    lplb__free(t.length);
    return status;
}
