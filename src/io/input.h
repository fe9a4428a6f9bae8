/* Bytes to parse: a file, a pipe or memory, read by position; and streams over parts of it.
 *
 * Files are read with pread, never mapped: a file that shrinks while it is read then gives an
 * error instead of a signal, and a big array never needs to be in memory twice. */
#ifndef LPLB_IO_INPUT_H
#define LPLB_IO_INPUT_H

#include <stdint.h>

#include "base/error.h"

/* Decoded data above this is refused unless the caller says otherwise. */
#define LPLB__DEFAULT_MAX_BYTES ((int64_t)8 << 30)

typedef struct lplb__input {
    const char *name;          /* for messages; belongs to the caller */
    int fd;                    /* -1 when in memory */
    const unsigned char *data; /* NULL when a file */
    unsigned char *owned;      /* what was read from a pipe */
    int64_t bytes;
    int64_t max_bytes; /* what readers of this input may hold at once */
} lplb__input;

/* path may name a pipe; at most max_bytes are then taken into memory. max_bytes 0 = the default. */
lplb_status lplb__input_open(const char *path, int64_t max_bytes, lplb__input *out);
void lplb__input_memory(const void *data, int64_t bytes, const char *name, int64_t max_bytes,
                        lplb__input *out);
/* Exactly [offset, offset + bytes), else LPLB_FORMAT with the byte where the data ends. */
lplb_status lplb__input_read(const lplb__input *input, int64_t offset, void *buffer, int64_t bytes);
void lplb__input_close(lplb__input *input);

/* A sequential reader of a range of the input, or of a zip entry. */
struct zip_file;
typedef struct lplb__stream {
    const lplb__input *input;
    int64_t position, end;  /* of the input, when entry is NULL */
    struct zip_file *entry; /* decompressed bytes when not NULL */
    const char *name;       /* for messages */
    int64_t done;           /* bytes given out so far */
} lplb__stream;

void lplb__stream_range(const lplb__input *input, int64_t position, int64_t bytes, const char *name,
                        lplb__stream *out);
/* Fills the buffer as far as there are bytes; *got < bytes only at the end. */
lplb_status lplb__stream_read(lplb__stream *stream, void *buffer, int64_t bytes, int64_t *got);
/* All of it or LPLB_FORMAT with the byte where the data ends. */
lplb_status lplb__stream_read_exact(lplb__stream *stream, void *buffer, int64_t bytes);
void lplb__stream_close(lplb__stream *stream);

/* The whole input in memory, plus a closing zero byte; refused above input->max_bytes. */
lplb_status lplb__input_load(const lplb__input *input, char **out);

#endif
