/* safetensors (huggingface.co/docs/safetensors): 8 bytes little-endian header length, a JSON object
 * {"name": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}}, then the data
 * that the offsets count in. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "io/array.h"
#include "io/json.h"
#include "io/output.h"

enum { MAX_HEADER = 100000000 }; /* the format's own limit */

static const struct {
    const char *name;
    lplb_dtype dtype;
} types[] = {{"I8", LPLB_INT8},     {"U8", LPLB_UINT8},    {"I16", LPLB_INT16},
             {"U16", LPLB_UINT16},  {"I32", LPLB_INT32},   {"U32", LPLB_UINT32},
             {"I64", LPLB_INT64},   {"U64", LPLB_UINT64},  {"F16", LPLB_FLOAT16},
             {"F32", LPLB_FLOAT32}, {"F64", LPLB_FLOAT64}, {"BOOL", LPLB_BOOL}};
enum { N_TYPES = sizeof types / sizeof types[0] };

static bool big_endian(void) {
    const uint16_t one = 1;
    return *(const unsigned char *)&one == 0;
}

static lplb_status read_shape(const json_t *shape, const char *name, lplb__array *out) {
    size_t dims = json_array_size(shape);
    if (!json_is_array(shape) || dims > LPLB__MAX_DIMS)
        return LPLB_FAIL(LPLB_FORMAT, "%s: %.80s: a shape of at most %d numbers is wanted", name,
                         out->name, LPLB__MAX_DIMS);
    int64_t span = 1; /* of the nonzero extents, so that no stride overflows either */
    out->dims = (int32_t)dims;
    out->items = 1;
    for (size_t d = 0; d < dims; d++) {
        int64_t extent;
        LPLB_TRY(lplb__json_whole(json_array_get(shape, d), name, "shape", 0, (int64_t)1 << 56,
                                  &extent));
        if (extent && span > ((int64_t)1 << 56) / extent)
            return LPLB_FAIL(LPLB_FORMAT, "%s: %.80s: the shape has more than 2^56 items", name,
                             out->name);
        span *= extent ? extent : 1;
        out->shape[d] = extent;
        out->items *= extent;
    }
    return LPLB_OK;
}

static lplb_status read_tensor(const lplb__input *input, int64_t data, const char *key,
                               const json_t *entry, lplb__array *out) {
    const char *name = input->name;
    size_t length = strlen(key);
    LPLB_TRY(LPLB_CALLOC(out->name, length + 1));
    memcpy(out->name, key, length);
    out->zip_index = -1;
    const char *type = json_string_value(json_object_get(entry, "dtype"));
    if (!type) return LPLB_FAIL(LPLB_FORMAT, "%s: %.80s has no dtype", name, key);
    snprintf(out->type, sizeof out->type, "%s", type);
    for (int i = 0; i < N_TYPES; i++)
        if (!strcmp(types[i].name, type)) {
            out->numeric = true;
            out->dtype = types[i].dtype;
        }
    out->swapped = big_endian();
    LPLB_TRY(read_shape(json_object_get(entry, "shape"), name, out));
    const json_t *offsets = json_object_get(entry, "data_offsets");
    int64_t begin, end, size = input->bytes - data;
    LPLB_TRY(
        lplb__json_whole(json_array_get(offsets, 0), name, "data_offsets[0]", 0, size, &begin));
    LPLB_TRY(
        lplb__json_whole(json_array_get(offsets, 1), name, "data_offsets[1]", begin, size, &end));
    out->position = data + begin;
    if (out->numeric && end - begin != out->items * lplb_dtype_bytes(out->dtype))
        return LPLB_FAIL(LPLB_FORMAT,
                         "%s: %.80s: %lld items of %s do not fill the %lld bytes from "
                         "byte %lld on",
                         name, key, (long long)out->items, type, (long long)(end - begin),
                         (long long)out->position);
    return LPLB_OK;
}

static lplb_status read_header(const lplb__input *input, json_t **out, int64_t *data) {
    unsigned char start[8];
    *out = NULL;
    LPLB_TRY(lplb__input_read(input, 0, start, sizeof start));
    uint64_t bytes = 0;
    for (int i = 7; i >= 0; i--) bytes = bytes << 8 | start[i];
    if (bytes > MAX_HEADER || (int64_t)bytes > input->bytes - 8)
        return LPLB_FAIL(LPLB_FORMAT, "%s: a safetensors header of %llu bytes in a file of %lld",
                         input->name, (unsigned long long)bytes, (long long)input->bytes);
    *data = 8 + (int64_t)bytes;
    char *text;
    LPLB_TRY(LPLB_CALLOC(text, (int64_t)bytes + 1));
    lplb_status status = lplb__input_read(input, 8, text, (int64_t)bytes);
    if (status == LPLB_OK) {
        lplb__json_cursor cursor =
            lplb__json_begin(text, (int64_t)bytes, input->name, input->max_bytes);
        status = lplb__json_value(&cursor, out);
        if (status == LPLB_OK) status = lplb__json_end(&cursor);
    }
    lplb__free(text);
    return status;
}

lplb_status lplb__arrays_open_safetensors(const lplb__input *input, lplb__arrays *out) {
    *out = (lplb__arrays){.input = input};
    json_t *header, *entry;
    int64_t data = 0;
    const char *key;
    lplb_status status = read_header(input, &header, &data);
    if (status != LPLB_OK) goto failed;
    if (!json_is_object(header) || json_object_size(header) > LPLB__MAX_ARRAYS)
        LPLB_FAIL_GOTO(status, failed, LPLB_FORMAT,
                       "%s: the safetensors header must be an object of at most %d tensors",
                       input->name, LPLB__MAX_ARRAYS);
    LPLB_TRY_GOTO(status, LPLB_CALLOC(out->array, json_object_size(header)), failed);
    json_object_foreach(header, key, entry) {
        if (!strcmp(key, "__metadata__")) continue;
        out->n++;
        LPLB_TRY_GOTO(status, read_tensor(input, data, key, entry, &out->array[out->n - 1]),
                      failed);
    }
    if (out->n == 0)
        LPLB_FAIL_GOTO(status, failed, LPLB_FORMAT, "%s holds no tensors", input->name);
    json_decref(header);
    return LPLB_OK;
failed:
    json_decref(header);
    lplb__arrays_close(out);
    return status;
}

/* ---- writing ---- */

static const char *type_name(lplb_dtype dtype) {
    for (int i = 0; i < N_TYPES; i++)
        if (types[i].dtype == dtype) return types[i].name;
    return NULL;
}

/* {"name": {"dtype", "shape", "data_offsets"}, ...} of all tensors, one behind the other. */
static json_t *make_header(const lplb__tensor *tensor, int32_t n) {
    json_t *header = json_object();
    int64_t position = 0;
    for (int32_t i = 0; i < n; i++) {
        json_t *shape = json_array();
        for (int32_t d = 0; d < tensor[i].dims; d++)
            json_array_append_new(shape, json_integer(tensor[i].shape[d]));
        int64_t end = position + lplb__tensor_bytes(&tensor[i]);
        json_t *entry =
            json_pack("{s:s, s:o, s:[I, I]}", "dtype", type_name(tensor[i].dtype), "shape", shape,
                      "data_offsets", (json_int_t)position, (json_int_t)end);
        json_object_set_new(header, tensor[i].name, entry);
        position = end;
    }
    return header;
}

lplb_status lplb__safetensors_write(const char *path, const lplb__tensor *tensor, int32_t n) {
    if (big_endian())
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "%s: safetensors is little-endian, this machine is not; "
                         "write .npz",
                         path);
    json_t *header = make_header(tensor, n);
    char *text = json_dumps(header, JSON_COMPACT);
    json_decref(header);
    if (!text) return LPLB_FAIL(LPLB_NO_MEMORY, "cannot make the header of %s", path);
    lplb__output output;
    lplb_status status = lplb__output_open(path, &output);
    if (status == LPLB_OK) {
        size_t length = strlen(text), padded = (length + 7) / 8 * 8; /* data aligned to 8 bytes */
        for (int i = 0; i < 8; i++) putc((int)(padded >> (8 * i) & 255), output.file);
        fprintf(output.file, "%s%*s", text, (int)(padded - length), "");
        for (int32_t i = 0; i < n; i++)
            fwrite(tensor[i].items, 1, (size_t)lplb__tensor_bytes(&tensor[i]), output.file);
        status = lplb__output_commit(&output);
    }
    free(text);
    return status;
}
