/* Typed arrays of numbers inside npy files, npz archives and safetensors files. */
#ifndef LPLB_IO_ARRAY_H
#define LPLB_IO_ARRAY_H

#include <lplb/dispatch.h>
#include <stdbool.h>
#include <stdint.h>

#include "io/input.h"

enum { LPLB__MAX_DIMS = 8, LPLB__MAX_ARRAYS = 1 << 20 };

typedef struct lplb__array {
    char *name;    /* key in the archive; "" for a bare npy file */
    char type[24]; /* as the file spells it, for messages */
    bool numeric;  /* dtype is set; text, objects and complex numbers are not */
    lplb_dtype dtype;
    bool swapped; /* bytes of each item are in the other order than this machine's */
    bool fortran; /* first index runs fastest */
    int32_t dims;
    int64_t shape[LPLB__MAX_DIMS];
    int64_t items;     /* product of shape */
    int64_t position;  /* of the first item, in the input or in the entry */
    int64_t zip_index; /* -1: the items lie in the input itself */
} lplb__array;

typedef struct lplb__arrays {
    const lplb__input *input;
    struct zip *archive; /* for npz */
    int64_t n;
    lplb__array *array;
} lplb__arrays;

/* Reads the headers only. */
lplb_status lplb__arrays_open_npy(const lplb__input *input, lplb__arrays *out);
lplb_status lplb__arrays_open_npz(const lplb__input *input, lplb__arrays *out);
lplb_status lplb__arrays_open_safetensors(const lplb__input *input, lplb__arrays *out);
void lplb__arrays_close(lplb__arrays *arrays);
const lplb__array *lplb__arrays_find(const lplb__arrays *arrays, const char *name);

/* "topk_ids uint8 [162219][24][4]" */
void lplb__array_describe(const lplb__array *array, char *text, size_t bytes);

/* Header of an npy file at the start of the stream; position is set to the header's length. */
lplb_status lplb__npy_parse(lplb__stream *stream, lplb__array *out);
/* Writes the header (v1.0) to out, at most LPLB__NPY_HEADER_BYTES; returns its length. */
enum { LPLB__NPY_HEADER_BYTES = 256 };
size_t lplb__npy_header(lplb_dtype dtype, int32_t dims, const int64_t *shape, char *out);

/* Sequential items of an array as int64; floats must be whole numbers. */
typedef struct lplb__items {
    const lplb__array *array;
    lplb__stream stream;
    int64_t next; /* index of the item that comes next, in file order */
    unsigned char *raw;
} lplb__items;

enum { LPLB__ITEMS_CHUNK = 16384 };
lplb_status lplb__items_open(const lplb__arrays *arrays, const lplb__array *array,
                             lplb__items *out);
/* The next min(n, what is left) items, n <= LPLB__ITEMS_CHUNK. Fails with item and byte. */
lplb_status lplb__items_read(lplb__items *items, int64_t n, int64_t *values);
void lplb__items_close(lplb__items *items);

/* All items of a small array in C order, LPLB_RANGE above max_items. Free with lplb__free. */
lplb_status lplb__array_read(const lplb__arrays *arrays, const lplb__array *array,
                             int64_t max_items, int64_t **out);

/* Visits the array in file order and gives every item's offset under strides [dims]: the value of
 * index (i0, i1, ...) belongs at sum of i_d * stride[d]. Items come in runs: values[i], the item
 * number first + i of the file, belongs at offset + i * step. */
typedef lplb_status (*lplb__item_visitor)(void *context, int64_t offset, int64_t step,
                                          const int64_t *values, int64_t n, int64_t first);
lplb_status lplb__array_scatter(const lplb__arrays *arrays, const lplb__array *array,
                                const int64_t *stride, lplb__item_visitor visit, void *context);

/* ---- writing, atomic ---- */

typedef struct lplb__tensor {
    const char *name;
    lplb_dtype dtype;
    int32_t dims;
    int64_t shape[LPLB__MAX_DIMS];
    const void *items;
} lplb__tensor;

int64_t lplb__tensor_bytes(const lplb__tensor *tensor);
lplb_status lplb__npy_write(const char *path, const lplb__tensor *tensor);
/* The same tensors give the same file, byte by byte. */
lplb_status lplb__npz_write(const char *path, const lplb__tensor *tensor, int32_t n);
lplb_status lplb__safetensors_write(const char *path, const lplb__tensor *tensor, int32_t n);

#endif
