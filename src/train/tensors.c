#include "train/tensors.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/mem.h"

/* ---- writing ---- */

lplb_status tensor_writer_open(tensor_writer *w, const char *path) {
    *w = (tensor_writer){.header = json_object()};
    if (!w->header) return LPLB_FAIL(LPLB_NO_MEMORY, "no memory for the header of %s", path);
    return lplb__output_open(path, &w->output);
}

lplb_status tensor_declare(tensor_writer *w, const char *name, const char *code, int64_t rows,
                           int64_t cols, int64_t item_bytes) {
    int64_t end = w->offset + rows * cols * item_bytes;
    json_t *shape = rows == 1 ? json_pack("[I]", (json_int_t)cols)
                              : json_pack("[I, I]", (json_int_t)rows, (json_int_t)cols);
    json_t *entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", code, "shape", shape, "data_offsets",
                              (json_int_t)w->offset, (json_int_t)end);
    if (!entry || json_object_set_new(w->header, name, entry))
        return LPLB_FAIL(LPLB_NO_MEMORY, "no memory to declare %s", name);
    w->offset = end;
    return LPLB_OK;
}

lplb_status tensor_put(tensor_writer *w, const void *data, int64_t bytes) {
    if (fwrite(data, 1, (size_t)bytes, w->output.file) != (size_t)bytes)
        return LPLB_FAIL(LPLB_IO, "%s: %s", w->output.path, strerror(errno));
    for (int64_t at = 0; at < bytes;) {
        uInt n = bytes - at > 1 << 30 ? 1 << 30 : (uInt)(bytes - at);
        w->crc = (uint32_t)crc32(w->crc, (const unsigned char *)data + at, n);
        at += n;
    }
    return LPLB_OK;
}

static const char own_sum[] = "lplb.crc32";
enum { OWN_SUM_BYTES = 4 };

lplb_status tensor_declare_sum(tensor_writer *w) {
    return tensor_declare(w, own_sum, "U8", 1, OWN_SUM_BYTES, 1);
}

lplb_status tensor_put_sum(tensor_writer *w) {
    unsigned char sum[OWN_SUM_BYTES];
    for (int i = 0; i < OWN_SUM_BYTES; i++) sum[i] = (unsigned char)(w->crc >> (8 * i));
    return tensor_put(w, sum, sizeof sum);
}

lplb_status tensor_put_header(tensor_writer *w, json_t *metadata) {
    if (!metadata || json_object_set_new(w->header, "__metadata__", metadata))
        return LPLB_FAIL(LPLB_NO_MEMORY, "no memory for the metadata of %s", w->output.path);
    char *text = json_dumps(w->header, JSON_COMPACT);
    if (!text) return LPLB_FAIL(LPLB_NO_MEMORY, "no memory for the header of %s", w->output.path);
    uint64_t bytes = strlen(text), padded = (bytes + 7) / 8 * 8; /* readers want 8-byte starts */
    unsigned char length[8];
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)(padded >> (8 * i));
    lplb_status status = tensor_put(w, length, 8);
    if (status == LPLB_OK) status = tensor_put(w, text, (int64_t)bytes);
    if (status == LPLB_OK) status = tensor_put(w, "        ", (int64_t)(padded - bytes));
    free(text);
    return status;
}

lplb_status tensor_writer_close(tensor_writer *w, lplb_status status) {
    if (status == LPLB_OK) status = lplb__output_commit(&w->output);
    else lplb__output_abort(&w->output);
    json_decref(w->header);
    w->header = NULL;
    return status;
}

/* ---- reading ---- */

lplb_status tensor_reader_open(tensor_reader *r, const char *path) {
    unsigned char length[8];
    uint64_t bytes = 0;
    enum { MOST = 256 << 20 };
    *r = (tensor_reader){.file = NULL};
    if (snprintf(r->path, sizeof r->path, "%s", path) >= (int)sizeof r->path)
        return LPLB_FAIL(LPLB_INVALID, "the file name '%.40s...' is too long", path);
    r->file = fopen(r->path, "rb");
    if (!r->file) return LPLB_FAIL(LPLB_IO, "%s: %s", r->path, strerror(errno));
    fseeko(r->file, 0, SEEK_END);
    r->bytes = ftello(r->file);
    rewind(r->file);
    bool read = fread(length, 1, 8, r->file) == 8;
    for (int i = 0; i < 8 && read; i++) bytes |= (uint64_t)length[i] << (8 * i);
    if (!read || bytes > MOST || (int64_t)bytes + 8 > r->bytes)
        return LPLB_FAIL(LPLB_FORMAT, "%s: no safetensors file, or cut short", r->path);
    char *text = lplb__malloc(bytes + 1);
    if (!text) return LPLB_FAIL(LPLB_NO_MEMORY, "no memory for the header of %s", r->path);
    json_error_t error;
    r->header = fread(text, 1, bytes, r->file) == bytes
                    ? json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error)
                    : NULL;
    lplb__free(text);
    r->data = 8 + (int64_t)bytes;
    if (!json_is_object(r->header))
        return LPLB_FAIL(LPLB_FORMAT, "%s: the header is no JSON object", r->path);
    return LPLB_OK;
}

void tensor_reader_close(tensor_reader *r) {
    if (r->file) fclose(r->file);
    json_decref(r->header);
    r->file = NULL;
    r->header = NULL;
}

const char *tensor_metadata(const tensor_reader *r, const char *name) {
    return json_string_value(json_object_get(json_object_get(r->header, "__metadata__"), name));
}

/* CRC-32 of the first `bytes` of the file. */
static uint32_t sum_of(tensor_reader *r, int64_t bytes) {
    unsigned char block[65536];
    uint32_t crc = 0;
    rewind(r->file);
    while (bytes > 0) {
        size_t most = bytes < (int64_t)sizeof block ? (size_t)bytes : sizeof block;
        size_t n = fread(block, 1, most, r->file);
        if (n == 0) break;
        crc = (uint32_t)crc32(crc, block, (uInt)n);
        bytes -= (int64_t)n;
    }
    return crc;
}

static lplb_status compare_sums(tensor_reader *r, int64_t bytes, int64_t expected) {
    uint32_t crc = sum_of(r, bytes);
    if ((int64_t)crc == expected) return LPLB_OK;
    return LPLB_FAIL(LPLB_FORMAT, "%s: damaged, its checksum is %08x instead of %08x", r->path, crc,
                     (unsigned)expected);
}

lplb_status tensor_check_sum(tensor_reader *r, int64_t expected) {
    return compare_sums(r, r->bytes, expected);
}

bool tensor_exists(const tensor_reader *r, const char *name) {
    return json_object_get(r->header, name) != NULL;
}

/* Type and place of a tensor that is there and inside the file. */
static lplb_status find(const tensor_reader *r, const char *name, const char **dtype,
                        int64_t *first, int64_t *bytes) {
    json_int_t begin = -1, end = -1;
    json_t *entry = json_object_get(r->header, name);
    if (!entry ||
        json_unpack(entry, "{s:s, s:[I, I]}", "dtype", dtype, "data_offsets", &begin, &end))
        return LPLB_FAIL(LPLB_FORMAT, "%s: no tensor %s: a file of another model", r->path, name);
    if (begin < 0 || end < begin || end > r->bytes - r->data)
        return LPLB_FAIL(LPLB_FORMAT, "%s: %s lies outside the file", r->path, name);
    *first = begin;
    *bytes = end - begin;
    return LPLB_OK;
}

static lplb_status read_at(tensor_reader *r, const char *name, int64_t first, int64_t bytes,
                           void *out) {
    if (fseeko(r->file, r->data + first, SEEK_SET) ||
        fread(out, 1, (size_t)bytes, r->file) != (size_t)bytes)
        return LPLB_FAIL(LPLB_IO, "%s: cannot read %s", r->path, name);
    return LPLB_OK;
}

lplb_status tensor_get(tensor_reader *r, const char *name, const char *code, int64_t items,
                       int64_t item_bytes, void *out) {
    const char *dtype = NULL;
    int64_t first = 0, bytes = 0;
    LPLB_TRY(find(r, name, &dtype, &first, &bytes));
    if (strcmp(dtype, code) || bytes != items * item_bytes)
        return LPLB_FAIL(LPLB_FORMAT, "%s: %s is %s of %lld bytes, this model has %s of %lld bytes",
                         r->path, name, dtype, (long long)bytes, code,
                         (long long)(items * item_bytes));
    return read_at(r, name, first, bytes, out);
}

lplb_status tensor_check_own_sum(tensor_reader *r) {
    unsigned char sum[OWN_SUM_BYTES];
    int64_t behind = r->bytes - OWN_SUM_BYTES, expected = 0;
    if (!tensor_exists(r, own_sum))
        return LPLB_FAIL(LPLB_FORMAT, "%s: has no checksum of its own", r->path);
    if (fseeko(r->file, behind, SEEK_SET) || fread(sum, 1, sizeof sum, r->file) != sizeof sum)
        return LPLB_FAIL(LPLB_IO, "%s: %s", r->path, strerror(errno));
    for (int i = 0; i < OWN_SUM_BYTES; i++) expected |= (int64_t)sum[i] << (8 * i);
    return compare_sums(r, behind, expected);
}

/* ---- other numbers than ours ---- */

static float half_value(uint16_t h) {
    float sign = h & 0x8000 ? -1 : 1;
    int exponent = h >> 10 & 31, fraction = h & 1023;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * ldexpf((float)fraction, -24);
    return sign * ldexpf((float)(1024 + fraction), exponent - 25);
}

static double value_at(const unsigned char *data, int64_t i, int64_t item_bytes, bool brain) {
    uint16_t half;
    uint32_t bits;
    float single;
    double wide;
    if (item_bytes == 8) {
        memcpy(&wide, data + 8 * i, 8);
        return wide;
    }
    if (item_bytes == 4) {
        memcpy(&single, data + 4 * i, 4);
        return (double)single;
    }
    memcpy(&half, data + 2 * i, 2);
    if (!brain) return (double)half_value(half);
    bits = (uint32_t)half << 16; /* the upper half of a float */
    memcpy(&single, &bits, 4);
    return (double)single;
}

static lplb_status check_shape(const tensor_reader *r, const char *name, int64_t rows,
                               int64_t cols) {
    const json_t *shape = json_object_get(json_object_get(r->header, name), "shape");
    size_t n = json_array_size(shape);
    int64_t last = n ? json_integer_value(json_array_get(shape, n - 1)) : -1;
    int64_t first = n == 2 ? json_integer_value(json_array_get(shape, 0)) : 1;
    if ((n == 2 || (n == 1 && rows == 1)) && first == rows && last == cols) return LPLB_OK;
    return LPLB_FAIL(LPLB_FORMAT, "%s: %s has another shape than this model's [%lld][%lld]",
                     r->path, name, (long long)rows, (long long)cols);
}

lplb_status tensor_get_real(tensor_reader *r, const char *name, int64_t rows, int64_t cols,
                            real *out) {
    static const struct {
        const char *code;
        int64_t bytes;
    } kinds[] = {{"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}};
    const char *dtype = NULL;
    int64_t first = 0, bytes = 0, item = 0, items = rows * cols;
    LPLB_TRY(find(r, name, &dtype, &first, &bytes));
    LPLB_TRY(check_shape(r, name, rows, cols));
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (!strcmp(kinds[i].code, dtype)) item = kinds[i].bytes;
    if (!item || bytes != items * item)
        return LPLB_FAIL(LPLB_FORMAT, "%s: %s is %s of %lld bytes; F64, F32, F16, BF16 are read",
                         r->path, name, dtype, (long long)bytes);
    if (!strcmp(dtype, REAL_CODE)) return read_at(r, name, first, bytes, out);
    unsigned char *raw = lplb__malloc((size_t)bytes);
    if (!raw) return LPLB_FAIL(LPLB_NO_MEMORY, "no memory to read %s", name);
    lplb_status status = read_at(r, name, first, bytes, raw);
    for (int64_t i = 0; i < items && status == LPLB_OK; i++)
        out[i] = (real)value_at(raw, i, item, *dtype == 'B');
    lplb__free(raw);
    return status;
}
