/* Files of named tensors in the safetensors format: 8 bytes with the length of a JSON header, the
 * header with type, shape and place of every tensor, and the numbers.
 * (https://huggingface.co/docs/safetensors) */
#ifndef LPLB_TRAIN_TENSORS_H
#define LPLB_TRAIN_TENSORS_H

#include <jansson.h>
#include <stdbool.h>

#include "io/output.h"
#include "train/real.h"

enum { TENSOR_NAME_BYTES = 160, TENSOR_PATH_BYTES = 1024 };

#ifdef LPLB_TRAIN_F64
#define REAL_CODE "F64"
#else
#define REAL_CODE "F32"
#endif

typedef struct tensor_writer {
    lplb__output output;
    json_t *header;
    int64_t offset; /* of the data of the next tensor declared */
    uint32_t crc;   /* zlib's, of everything put so far */
} tensor_writer;

/* All tensors are declared, in the order of their data; then comes the header, then the data. */
lplb_status tensor_writer_open(tensor_writer *w, const char *path);
/* One row: the shape is [cols]. */
lplb_status tensor_declare(tensor_writer *w, const char *name, const char *code, int64_t rows,
                           int64_t cols, int64_t item_bytes);
/* metadata: strings by name; the reference is taken. */
lplb_status tensor_put_header(tensor_writer *w, json_t *metadata);
lplb_status tensor_put(tensor_writer *w, const void *data, int64_t bytes);
/* The last tensor of a file, [4] bytes: the CRC-32 of all that is before it, little-endian, so that
 * the file alone says whether it is whole. */
lplb_status tensor_declare_sum(tensor_writer *w);
lplb_status tensor_put_sum(tensor_writer *w);
/* Commits the file if status is LPLB_OK, else removes it; returns the first failure. */
lplb_status tensor_writer_close(tensor_writer *w, lplb_status status);

typedef struct tensor_reader {
    char path[TENSOR_PATH_BYTES];
    FILE *file;
    json_t *header;
    int64_t data, bytes; /* start of the data, size of the file */
} tensor_reader;

lplb_status tensor_reader_open(tensor_reader *r, const char *path);
void tensor_reader_close(tensor_reader *r);
/* A string of the metadata, NULL if it is not there. */
const char *tensor_metadata(const tensor_reader *r, const char *name);
/* LPLB_FORMAT when the whole file has another CRC-32. */
lplb_status tensor_check_sum(tensor_reader *r, int64_t expected);
/* LPLB_FORMAT when the file ends otherwise than with the sum of what is before it. */
lplb_status tensor_check_own_sum(tensor_reader *r);
bool tensor_exists(const tensor_reader *r, const char *name);
/* A whole tensor of `items` numbers of exactly this type. */
lplb_status tensor_get(tensor_reader *r, const char *name, const char *code, int64_t items,
                       int64_t item_bytes, void *out);
/* A matrix [rows][cols] (one row: [cols]) of F64, F32, F16 or BF16 numbers, as reals. */
lplb_status tensor_get_real(tensor_reader *r, const char *name, int64_t rows, int64_t cols,
                            real *out);

#endif
