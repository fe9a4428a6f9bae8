/* The npy header: numpy.org/doc/stable/reference/generated/numpy.lib.format.html, versions 1 to 3:
 * magic "\x93NUMPY", two version bytes, length (2 bytes in version 1, else 4, little-endian), then
 * a Python dictionary literal with the keys descr, fortran_order and shape. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "io/array.h"
#include "io/output.h"

enum { MAX_HEADER = 65536, MAX_ITEMS_LOG2 = 56 };

typedef struct header_parser {
    const char *text;
    int64_t at, end;   /* in text */
    int64_t text_byte; /* position of text in the file */
    const char *name;
} header_parser;

static lplb_status bad_header(const header_parser *p, const char *wanted) {
    return LPLB_FAIL(LPLB_FORMAT, "%s: npy header, byte %lld: %s expected", p->name,
                     (long long)(p->text_byte + p->at), wanted);
}

static void skip_blanks(header_parser *p) {
    while (p->at < p->end && strchr(" \t\r\n", p->text[p->at]) && p->text[p->at]) p->at++;
}

static bool take(header_parser *p, const char *token) {
    skip_blanks(p);
    int64_t n = (int64_t)strlen(token);
    if (p->end - p->at < n || memcmp(p->text + p->at, token, (size_t)n)) return false;
    p->at += n;
    return true;
}

/* A quoted text without escapes. */
static lplb_status take_text(header_parser *p, char *out, size_t bytes) {
    skip_blanks(p);
    if (p->at >= p->end || (p->text[p->at] != '\'' && p->text[p->at] != '"'))
        return bad_header(p, "a quoted text");
    char quote = p->text[p->at++];
    size_t used = 0;
    while (p->at < p->end && p->text[p->at] != quote) {
        if (used + 1 >= bytes || p->text[p->at] == '\\') return bad_header(p, "a short text");
        out[used++] = p->text[p->at++];
    }
    out[used] = '\0';
    return take(p, quote == '"' ? "\"" : "'") ? LPLB_OK : bad_header(p, "the closing quote");
}

static lplb_status take_shape(header_parser *p, lplb__array *out) {
    if (!take(p, "(")) return bad_header(p, "the shape's (");
    out->items = 1;
    int64_t span = 1; /* product of the nonzero extents, so that no stride overflows either */
    while (!take(p, ")")) {
        skip_blanks(p);
        int64_t value = 0, digits = 0;
        for (; p->at < p->end && p->text[p->at] >= '0' && p->text[p->at] <= '9'; digits++) {
            value = 10 * value + (p->text[p->at++] - '0');
            if (value >> MAX_ITEMS_LOG2) return bad_header(p, "a smaller extent");
        }
        if (!digits) return bad_header(p, "an extent or )");
        take(p, "L"); /* Python 2 wrote long integers so */
        if (out->dims == LPLB__MAX_DIMS) return bad_header(p, "at most 8 dimensions");
        out->shape[out->dims++] = value;
        if (value && span > ((int64_t)1 << MAX_ITEMS_LOG2) / value)
            return bad_header(p, "a smaller array");
        span *= value ? value : 1;
        out->items *= value;
        skip_blanks(p);
        if (!take(p, ",") && p->at < p->end && p->text[p->at] != ')')
            return bad_header(p, ", or )");
    }
    return LPLB_OK;
}

/* By lplb_dtype. */
static const char *const codes[] = {
    [LPLB_INT8] = "i1",    [LPLB_UINT8] = "u1",   [LPLB_INT16] = "i2",   [LPLB_UINT16] = "u2",
    [LPLB_INT32] = "i4",   [LPLB_UINT32] = "u4",  [LPLB_INT64] = "i8",   [LPLB_UINT64] = "u8",
    [LPLB_FLOAT16] = "f2", [LPLB_FLOAT32] = "f4", [LPLB_FLOAT64] = "f8", [LPLB_BOOL] = "b1"};

static char native_order(void) {
    const uint16_t one = 1;
    return *(const unsigned char *)&one == 1 ? '<' : '>';
}

static void set_type(lplb__array *out) {
    const char *code = out->type;
    char order = '=';
    if (*code && strchr("<>|=", *code)) order = *code++;
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++)
        if (!strcmp(code, codes[i])) {
            out->numeric = true;
            out->dtype = (lplb_dtype)i;
        }
    out->swapped = (order == '<' || order == '>') && order != native_order();
}

static lplb_status parse_dictionary(header_parser *p, lplb__array *out) {
    bool seen[3] = {false, false, false};
    if (!take(p, "{")) return bad_header(p, "{");
    while (!take(p, "}")) {
        char key[32];
        LPLB_TRY(take_text(p, key, sizeof key));
        if (!take(p, ":")) return bad_header(p, ":");
        int which = !strcmp(key, "descr")           ? 0
                    : !strcmp(key, "fortran_order") ? 1
                    : !strcmp(key, "shape")         ? 2
                                                    : -1;
        if (which < 0 || seen[which]) return bad_header(p, "descr, fortran_order and shape");
        seen[which] = true;
        if (which == 0) {
            skip_blanks(p);
            if (p->at < p->end && p->text[p->at] == '[')
                return LPLB_FAIL(LPLB_UNSUPPORTED,
                                 "%s: arrays of records are not read; save one "
                                 "array per field",
                                 p->name);
            LPLB_TRY(take_text(p, out->type, sizeof out->type));
            set_type(out);
        } else if (which == 1) {
            out->fortran = take(p, "True");
            if (!out->fortran && !take(p, "False")) return bad_header(p, "True or False");
        } else {
            LPLB_TRY(take_shape(p, out));
        }
        skip_blanks(p);
        if (!take(p, ",") && p->at < p->end && p->text[p->at] != '}')
            return bad_header(p, ", or }");
    }
    if (!seen[0] || !seen[1] || !seen[2]) return bad_header(p, "descr, fortran_order and shape");
    return LPLB_OK;
}

lplb_status lplb__npy_parse(lplb__stream *stream, lplb__array *out) {
    unsigned char start[12];
    LPLB_TRY(lplb__stream_read_exact(stream, start, 10));
    if (memcmp(start, "\x93NUMPY", 6))
        return LPLB_FAIL(LPLB_FORMAT, "%s: no npy array: byte 0 is not \\x93NUMPY", stream->name);
    int version = start[6];
    if (version < 1 || version > 3)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "%s: npy version %d, 1 to 3 are read", stream->name,
                         version);
    int64_t bytes = start[8] | start[9] << 8, position = 10;
    if (version > 1) {
        LPLB_TRY(lplb__stream_read_exact(stream, start + 10, 2));
        bytes |= (int64_t)start[10] << 16 | (int64_t)start[11] << 24;
        position = 12;
    }
    if (bytes > MAX_HEADER)
        return LPLB_FAIL(LPLB_FORMAT, "%s: npy header of %lld bytes, at most %d are read",
                         stream->name, (long long)bytes, MAX_HEADER);
    char *text;
    LPLB_TRY(LPLB_CALLOC(text, bytes + 1));
    lplb_status status = lplb__stream_read_exact(stream, text, bytes);
    if (status == LPLB_OK) {
        header_parser parser = {
            .text = text, .end = bytes, .text_byte = position, .name = stream->name};
        status = parse_dictionary(&parser, out);
    }
    lplb__free(text);
    out->position = position + bytes;
    return status;
}

size_t lplb__npy_header(lplb_dtype dtype, int32_t dims, const int64_t *shape, char *out) {
    char *text = out + 10;
    size_t limit = LPLB__NPY_HEADER_BYTES - 10;
    size_t used =
        (size_t)snprintf(text, limit, "{'descr': '%c%s', 'fortran_order': False, 'shape': (",
                         lplb_dtype_bytes(dtype) == 1 ? '|' : native_order(), codes[dtype]);
    for (int32_t d = 0; d < dims; d++)
        used += (size_t)snprintf(text + used, limit - used, "%lld%s", (long long)shape[d],
                                 dims == 1      ? ","
                                 : d + 1 < dims ? ", "
                                                : "");
    used += (size_t)snprintf(text + used, limit - used, "), }");
    while ((used + 11) % 64) text[used++] = ' '; /* the items start at a multiple of 64 */
    text[used++] = '\n';
    memcpy(out, "\x93NUMPY\x01\x00", 8);
    out[8] = (char)(used & 255);
    out[9] = (char)(used >> 8);
    return used + 10;
}

lplb_status lplb__arrays_open_npy(const lplb__input *input, lplb__arrays *out) {
    *out = (lplb__arrays){.input = input};
    lplb__stream stream;
    lplb__stream_range(input, 0, input->bytes, input->name, &stream);
    lplb_status status;
    LPLB_TRY(LPLB_CALLOC(out->array, 1));
    out->n = 1;
    lplb__array *array = out->array;
    array->zip_index = -1;
    LPLB_TRY_GOTO(status, LPLB_CALLOC(array->name, 1), failed);
    LPLB_TRY_GOTO(status, lplb__npy_parse(&stream, array), failed);
    if (array->numeric) {
        int64_t wanted = array->position + array->items * lplb_dtype_bytes(array->dtype);
        if (wanted != input->bytes)
            LPLB_FAIL_GOTO(status, failed, LPLB_FORMAT,
                           "%s: the npy header announces %lld bytes, the file has %lld",
                           input->name, (long long)wanted, (long long)input->bytes);
    }
    return LPLB_OK;
failed:
    lplb__arrays_close(out);
    return status;
}

lplb_status lplb__npy_write(const char *path, const lplb__tensor *tensor) {
    char header[LPLB__NPY_HEADER_BYTES];
    size_t bytes = lplb__npy_header(tensor->dtype, tensor->dims, tensor->shape, header);
    lplb__output output;
    LPLB_TRY(lplb__output_open(path, &output));
    fwrite(header, 1, bytes, output.file);
    fwrite(tensor->items, 1, (size_t)lplb__tensor_bytes(tensor), output.file);
    return lplb__output_commit(&output);
}
