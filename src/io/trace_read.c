/* Recognises a trace file by its content. */
#define _POSIX_C_SOURCE 200809L
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "io/recognise.h"
#include "io/trace_build.h"

static lplb_status refuse_layout(const char *name) {
    return LPLB_FAIL(LPLB_INVALID, "%s: a layout is for arrays (npy, npz, safetensors)", name);
}

static lplb_status read_arrays(const lplb__input *input, const lplb_trace_options *options,
                               lplb_status (*open)(const lplb__input *, lplb__arrays *),
                               lplb_trace **out) {
    lplb__arrays arrays;
    LPLB_TRY(open(input, &arrays));
    lplb_status status;
    if (lplb__is_statistics(&arrays))
        status = options && options->layout
                     ? refuse_layout(input->name)
                     : lplb__trace_from_statistics(&arrays, 1, input->name, 0, options, out);
    else status = lplb__trace_from_arrays(&arrays, options, out);
    lplb__arrays_close(&arrays);
    return status;
}

static lplb_status read_json(const lplb__input *input, const lplb_trace_options *options,
                             lplb_trace **out) {
    char *text;
    LPLB_TRY(lplb__input_load(input, &text));
    lplb_status status = lplb__trace_from_json(text, input, options, out);
    lplb__free(text);
    return status;
}

lplb_status lplb__trace_read_input(const lplb__input *input, const lplb_trace_options *options,
                                   lplb_trace **out) {
    *out = NULL;
    lplb__content content;
    LPLB_TRY(lplb__recognise(input, &content));
    if (options && options->layout && (content == LPLB__JSON || content == LPLB__TEXT))
        return refuse_layout(input->name);
    switch (content) {
    case LPLB__NPY: return read_arrays(input, options, lplb__arrays_open_npy, out);
    case LPLB__ZIP: return read_arrays(input, options, lplb__arrays_open_npz, out);
    case LPLB__SAFETENSORS: return read_arrays(input, options, lplb__arrays_open_safetensors, out);
    case LPLB__JSON: return read_json(input, options, out);
    case LPLB__TEXT: return lplb__trace_from_csv(input, options, out);
    }
    return LPLB_FAIL(LPLB_INTERNAL, "unknown content");
}

lplb_status lplb__trace_read_memory(const void *data, int64_t bytes, const char *name,
                                    const lplb_trace_options *options, lplb_trace **out) {
    lplb__input input;
    lplb__input_memory(data, bytes, name, lplb__trace_max_bytes(options), &input);
    return lplb__trace_read_input(&input, options, out);
}

lplb_status lplb_trace_read(const char *path, const lplb_trace_options *options, lplb_trace **out) {
    *out = NULL;
    struct stat info;
    if (stat(path, &info) == 0 && S_ISDIR(info.st_mode)) {
        if (options && options->layout) return refuse_layout(path);
        return lplb__trace_from_folder(path, options, out);
    }
    lplb__input input;
    LPLB_TRY(lplb__input_open(path, lplb__trace_max_bytes(options), &input));
    lplb_status status = lplb__trace_read_input(&input, options, out);
    lplb__input_close(&input);
    return status;
}
