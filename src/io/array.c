#include "io/array.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <zip.h>

#include "base/mem.h"

void lplb__array_describe(const lplb__array *array, char *text, size_t bytes) {
    int used = snprintf(text, bytes, "%.60s%s%s ", array->name, *array->name ? " " : "",
                        array->numeric ? lplb_dtype_name(array->dtype) : array->type);
    for (int32_t d = 0; d < array->dims && used >= 0 && (size_t)used < bytes; d++)
        used += snprintf(text + used, bytes - (size_t)used, "[%lld]", (long long)array->shape[d]);
}

const lplb__array *lplb__arrays_find(const lplb__arrays *arrays, const char *name) {
    for (int64_t i = 0; i < arrays->n; i++)
        if (!strcmp(arrays->array[i].name, name)) return &arrays->array[i];
    return NULL;
}

void lplb__arrays_close(lplb__arrays *arrays) {
    for (int64_t i = 0; i < arrays->n; i++) lplb__free(arrays->array[i].name);
    lplb__free(arrays->array);
    if (arrays->archive) zip_discard(arrays->archive);
    *arrays = (lplb__arrays){0};
}

lplb_status lplb__items_open(const lplb__arrays *arrays, const lplb__array *array,
                             lplb__items *out) {
    *out = (lplb__items){.array = array};
    if (!array->numeric)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "%s: %s holds %s, numbers are wanted",
                         arrays->input->name, *array->name ? array->name : "the array",
                         array->type);
    int64_t bytes = array->items * lplb_dtype_bytes(array->dtype);
    const char *name = *array->name ? array->name : arrays->input->name;
    lplb__stream_range(arrays->input, array->position, bytes, name, &out->stream);
    int64_t chunk = array->items < LPLB__ITEMS_CHUNK ? array->items : LPLB__ITEMS_CHUNK;
    LPLB_TRY(LPLB_CALLOC(out->raw, chunk * 8));
    if (array->zip_index < 0) return LPLB_OK;

    lplb_status status = LPLB_OK;
    out->stream.entry = zip_fopen_index(arrays->archive, (zip_uint64_t)array->zip_index, 0);
    if (!out->stream.entry)
        LPLB_FAIL_GOTO(status, failed, LPLB_FORMAT, "%s: cannot open %s: %s", arrays->input->name,
                       name, zip_strerror(arrays->archive));
    for (int64_t skip = array->position; skip > 0;) { /* the npy header again */
        char header[512];
        int64_t n = skip < (int64_t)sizeof header ? skip : (int64_t)sizeof header;
        LPLB_TRY_GOTO(status, lplb__stream_read_exact(&out->stream, header, n), failed);
        skip -= n;
    }
    return LPLB_OK;
failed:
    lplb__items_close(out);
    return status;
}

void lplb__items_close(lplb__items *items) {
    lplb__stream_close(&items->stream);
    lplb__free(items->raw);
    items->raw = NULL;
}

static void swap_bytes(unsigned char *raw, int64_t n, int32_t width) {
    for (int64_t i = 0; i < n; i++, raw += width)
        for (int32_t a = 0, b = width - 1; a < b; a++, b--) {
            unsigned char t = raw[a];
            raw[a] = raw[b];
            raw[b] = t;
        }
}

static double half_to_double(uint16_t half) {
    int exponent = (half >> 10) & 31, mantissa = half & 1023;
    double value;
    if (exponent == 31) value = mantissa ? NAN : INFINITY;
    else if (exponent == 0) value = ldexp(mantissa, -24);
    else value = ldexp(mantissa + 1024, exponent - 25);
    return half & 0x8000 ? -value : value;
}

/* Returns the index of the first value that is not a whole number below 2^62, or n. */
static int64_t to_int64(lplb_dtype dtype, const unsigned char *raw, int64_t n, int64_t *values) {
#define COPY_AS(type)                                                                              \
    for (int64_t i = 0; i < n; i++) {                                                              \
        type item;                                                                                 \
        memcpy(&item, raw + i * (int64_t)sizeof item, sizeof item);                                \
        values[i] = (int64_t)item;                                                                 \
    }                                                                                              \
    return n
#define COPY_FLOATS(type, convert)                                                                 \
    for (int64_t i = 0; i < n; i++) {                                                              \
        type item;                                                                                 \
        memcpy(&item, raw + i * (int64_t)sizeof item, sizeof item);                                \
        double value = convert(item);                                                              \
        if (!(fabs(value) <= 0x1p62) || value != floor(value)) return i;                           \
        values[i] = (int64_t)value;                                                                \
    }                                                                                              \
    return n
    switch (dtype) {
    case LPLB_INT8: COPY_AS(int8_t);
    case LPLB_BOOL:
    case LPLB_UINT8: COPY_AS(uint8_t);
    case LPLB_INT16: COPY_AS(int16_t);
    case LPLB_UINT16: COPY_AS(uint16_t);
    case LPLB_INT32: COPY_AS(int32_t);
    case LPLB_UINT32: COPY_AS(uint32_t);
    case LPLB_INT64: COPY_AS(int64_t);
    case LPLB_UINT64:
        memcpy(values, raw, (size_t)n * 8);
        for (int64_t i = 0; i < n; i++)
            if (values[i] < 0) return i;
        return n;
    case LPLB_FLOAT16: COPY_FLOATS(uint16_t, half_to_double);
    case LPLB_FLOAT32: COPY_FLOATS(float, (double));
    case LPLB_FLOAT64: COPY_FLOATS(double, (double));
    }
    return 0;
#undef COPY_AS
#undef COPY_FLOATS
}

static lplb_status refuse_item(const lplb__items *items, const unsigned char *raw, int64_t at) {
    const lplb__array *array = items->array;
    int64_t item = items->next + at;
    int32_t width = lplb_dtype_bytes(array->dtype);
    long long byte = (long long)(array->position + item * width);
    double value = 0;
    if (array->dtype == LPLB_UINT64)
        return LPLB_FAIL(LPLB_RANGE, "%s: item %lld at byte %lld is 2^63 or more",
                         items->stream.name, (long long)item, byte);
    raw += at * width;
    if (array->dtype == LPLB_FLOAT64) {
        memcpy(&value, raw, sizeof value);
    } else if (array->dtype == LPLB_FLOAT32) {
        float single;
        memcpy(&single, raw, sizeof single);
        value = single;
    } else {
        uint16_t half;
        memcpy(&half, raw, sizeof half);
        value = half_to_double(half);
    }
    return LPLB_FAIL(LPLB_RANGE, "%s: item %lld at byte %lld is %g, not a whole number of 62 bits",
                     items->stream.name, (long long)item, byte, value);
}

lplb_status lplb__items_read(lplb__items *items, int64_t n, int64_t *values) {
    const lplb__array *array = items->array;
    int32_t width = lplb_dtype_bytes(array->dtype);
    if (n > array->items - items->next) n = array->items - items->next;
    LPLB_TRY(lplb__stream_read_exact(&items->stream, items->raw, n * width));
    if (array->swapped) swap_bytes(items->raw, n, width);
    int64_t good = to_int64(array->dtype, items->raw, n, values);
    if (good < n) return refuse_item(items, items->raw, good);
    items->next += n;
    return LPLB_OK;
}

/* The axes of an array in file order, the one that runs fastest last; neighbours that one stride
 * walks through are one axis. */
typedef struct walk {
    int64_t extent[LPLB__MAX_DIMS], step[LPLB__MAX_DIMS], index[LPLB__MAX_DIMS];
    int32_t dims; /* at least 1 */
    int64_t offset;
} walk;

static walk begin_walk(const lplb__array *array, const int64_t *stride) {
    walk w = {.extent = {1}};
    for (int32_t d = 0; d < array->dims; d++) {
        int32_t from = array->fortran ? array->dims - 1 - d : d;
        int64_t extent = array->shape[from], step = stride[from];
        if (w.dims > 0 && w.step[w.dims - 1] == step * extent) {
            w.extent[w.dims - 1] *= extent;
            w.step[w.dims - 1] = step;
        } else {
            w.extent[w.dims] = extent;
            w.step[w.dims++] = step;
        }
    }
    if (w.dims == 0) w.dims = 1; /* a single number */
    return w;
}

/* n items further, at most to the end of the fastest axis. */
static void advance(walk *w, int64_t n) {
    int32_t d = w->dims - 1;
    w->offset += n * w->step[d];
    w->index[d] += n;
    for (; d > 0 && w->index[d] == w->extent[d]; d--) {
        w->offset += w->step[d - 1] - w->step[d] * w->extent[d];
        w->index[d] = 0;
        w->index[d - 1]++;
    }
}

lplb_status lplb__array_scatter(const lplb__arrays *arrays, const lplb__array *array,
                                const int64_t *stride, lplb__item_visitor visit, void *context) {
    if (array->items == 0) return LPLB_OK;
    walk w = begin_walk(array, stride);
    int64_t *values = NULL, chunk = array->items;
    if (chunk > LPLB__ITEMS_CHUNK) chunk = LPLB__ITEMS_CHUNK;
    lplb__items items = {0};
    lplb_status status;
    LPLB_TRY_GOTO(status, lplb__items_open(arrays, array, &items), done);
    LPLB_TRY_GOTO(status, LPLB_CALLOC(values, chunk), done);
    for (int64_t item = 0; item < array->items;) {
        int64_t n = array->items - item;
        if (n > chunk) n = chunk;
        LPLB_TRY_GOTO(status, lplb__items_read(&items, n, values), done);
        for (int64_t i = 0; i < n;) {
            int64_t run = w.extent[w.dims - 1] - w.index[w.dims - 1];
            if (run > n - i) run = n - i;
            LPLB_TRY_GOTO(
                status, visit(context, w.offset, w.step[w.dims - 1], values + i, run, item), done);
            advance(&w, run);
            i += run;
            item += run;
        }
    }
done:
    lplb__items_close(&items);
    lplb__free(values);
    return status;
}

static lplb_status store_items(void *context, int64_t offset, int64_t step, const int64_t *values,
                               int64_t n, int64_t first) {
    (void)first;
    int64_t *out = (int64_t *)context + offset;
    for (int64_t i = 0; i < n; i++) out[i * step] = values[i];
    return LPLB_OK;
}

lplb_status lplb__array_read(const lplb__arrays *arrays, const lplb__array *array,
                             int64_t max_items, int64_t **out) {
    *out = NULL;
    if (array->items > max_items)
        return LPLB_FAIL(LPLB_RANGE, "%s: %s has %lld items, at most %lld are wanted",
                         arrays->input->name, array->name, (long long)array->items,
                         (long long)max_items);
    int64_t stride[LPLB__MAX_DIMS], product = 1;
    for (int32_t d = array->dims - 1; d >= 0; d--) {
        stride[d] = product;
        product *= array->shape[d];
    }
    int64_t *values;
    LPLB_TRY(LPLB_CALLOC(values, array->items));
    lplb_status status = lplb__array_scatter(arrays, array, stride, store_items, values);
    if (status != LPLB_OK) lplb__free(values);
    else *out = values;
    return status;
}

int64_t lplb__tensor_bytes(const lplb__tensor *tensor) {
    int64_t bytes = lplb_dtype_bytes(tensor->dtype);
    for (int32_t d = 0; d < tensor->dims; d++) bytes *= tensor->shape[d];
    return bytes;
}
