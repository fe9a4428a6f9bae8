/* Writes traces; the format is chosen by the file's ending. */
#include <string.h>

#include "base/mem.h"
#include "io/npz.h"
#include "io/trace_build.h"

/* Ids in the smallest type that holds them: uint8 halves the usual archive. */
static lplb_status pack_ids(const lplb_trace *trace, lplb_dtype *dtype, void **out) {
    int64_t n = trace->tokens * trace->layers * trace->topk;
    int32_t smallest = 0;
    for (int64_t i = 0; i < n; i++)
        if (trace->topk_ids[i] < smallest) smallest = trace->topk_ids[i];
    *dtype = LPLB_INT16;
    if (trace->experts <= 256 && smallest == 0) *dtype = LPLB_UINT8;
    if (trace->experts <= 128 && smallest < 0) *dtype = LPLB_INT8;
    LPLB_TRY(lplb__calloc(out, n, *dtype == LPLB_INT16 ? 2 : 1));
    if (*dtype == LPLB_INT16) {
        memcpy(*out, trace->topk_ids, (size_t)n * 2);
    } else {
        unsigned char *bytes = *out;
        for (int64_t i = 0; i < n; i++) bytes[i] = (unsigned char)trace->topk_ids[i];
    }
    return LPLB_OK;
}

static lplb_status add_sequences(lplb__npz_writer *writer, const lplb_trace *trace) {
    if (!trace->sequences) return LPLB_OK;
    int64_t *length;
    LPLB_TRY(LPLB_CALLOC(length, trace->sequences));
    for (int64_t i = 0; i < trace->sequences; i++)
        length[i] = trace->sequence_start[i + 1] - trace->sequence_start[i];
    lplb_status status = lplb__npz_add(writer, "seq_len", LPLB_INT64, 1, &trace->sequences, length);
    lplb__free(length);
    return status;
}

static lplb_status write_npz(const lplb_trace *trace, const char *path) {
    lplb__npz_writer *writer;
    LPLB_TRY(lplb__npz_create(&writer));
    void *ids = NULL;
    lplb_status status;
    int64_t layers = trace->layers;
    if (trace->kind == LPLB_TRACE_TOPK) {
        lplb_dtype dtype;
        int64_t shape[3] = {trace->tokens, layers, trace->topk};
        LPLB_TRY_GOTO(status, pack_ids(trace, &dtype, &ids), failed);
        LPLB_TRY_GOTO(status, lplb__npz_add(writer, "topk_ids", dtype, 3, shape, ids), failed);
        LPLB_TRY_GOTO(status, add_sequences(writer, trace), failed);
        LPLB_TRY_GOTO(
            status, lplb__npz_add(writer, "experts", LPLB_INT32, 0, NULL, &trace->experts), failed);
    } else {
        int64_t shape[3] = {trace->steps, layers, trace->experts};
        LPLB_TRY_GOTO(status,
                      lplb__npz_add(writer, "logical_count", LPLB_INT64, 3, shape, trace->counts),
                      failed);
    }
    LPLB_TRY_GOTO(
        status, lplb__npz_add(writer, "layer_id", LPLB_INT32, 1, &layers, trace->layer_id), failed);
    lplb__free(ids);
    return lplb__npz_finish(writer, path);
failed:
    lplb__free(ids);
    lplb__npz_destroy(writer);
    return status;
}

lplb_status lplb_trace_write(const lplb_trace *trace, const char *path) {
    const char *dot = strrchr(path, '.');
    if (dot && !strcmp(dot, ".npz")) return write_npz(trace, path);
    return LPLB_FAIL(LPLB_UNSUPPORTED, "%s: a trace is written as .npz", path);
}
