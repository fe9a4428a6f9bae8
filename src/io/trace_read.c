/* Recognises a trace file by its content. */
#include <string.h>

#include "base/mem.h"
#include "io/json.h"
#include "io/trace_build.h"

static lplb_status read_arrays(const lplb__input *input, const lplb_trace_options *options,
                               lplb_status (*open)(const lplb__input *, lplb__arrays *),
                               lplb_trace **out) {
    lplb__arrays arrays;
    LPLB_TRY(open(input, &arrays));
    lplb_status status = lplb__trace_from_arrays(&arrays, options, out);
    lplb__arrays_close(&arrays);
    return status;
}

static lplb_status read_text(const lplb__input *input, const lplb_trace_options *options,
                             lplb_trace **out) {
    char *text;
    LPLB_TRY(lplb__input_load(input, lplb__trace_max_bytes(options) / LPLB__JSON_EXPANSION, &text));
    lplb_status status = lplb__trace_from_json(text, input->bytes, input->name, options, out);
    lplb__free(text);
    return status;
}

lplb_status lplb__trace_read_input(const lplb__input *input, const lplb_trace_options *options,
                                   lplb_trace **out) {
    *out = NULL;
    unsigned char start[64] = {0};
    int64_t n = input->bytes < (int64_t)sizeof start ? input->bytes : (int64_t)sizeof start;
    if (n == 0) return LPLB_FAIL(LPLB_FORMAT, "%s is empty", input->name);
    LPLB_TRY(lplb__input_read(input, 0, start, n));
    if (!memcmp(start, "\x93NUMPY", 6))
        return read_arrays(input, options, lplb__arrays_open_npy, out);
    if (!memcmp(start, "PK\003\004", 4) || !memcmp(start, "PK\005\006", 4))
        return read_arrays(input, options, lplb__arrays_open_npz, out);
    int64_t at = 0;
    while (at < n && memchr(" \t\r\n", start[at], 4)) at++;
    if (at < n && (start[at] == '{' || start[at] == '[')) return read_text(input, options, out);
    return LPLB_FAIL(LPLB_FORMAT,
                     "%s is in no known format; it starts with bytes %02x %02x %02x "
                     "%02x",
                     input->name, start[0], start[1], start[2], start[3]);
}

lplb_status lplb__trace_read_memory(const void *data, int64_t bytes, const char *name,
                                    const lplb_trace_options *options, lplb_trace **out) {
    lplb__input input;
    lplb__input_memory(data, bytes, name, &input);
    return lplb__trace_read_input(&input, options, out);
}

lplb_status lplb_trace_read(const char *path, const lplb_trace_options *options, lplb_trace **out) {
    lplb__input input;
    *out = NULL;
    LPLB_TRY(lplb__input_open(path, lplb__trace_max_bytes(options), &input));
    lplb_status status = lplb__trace_read_input(&input, options, out);
    lplb__input_close(&input);
    return status;
}
