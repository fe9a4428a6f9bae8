/* Writing npz: arrays are added, the finished archive is written atomically. */
#ifndef LPLB_IO_NPZ_H
#define LPLB_IO_NPZ_H

#include <lplb/dispatch.h>

#include "base/error.h"

typedef struct lplb__npz_writer lplb__npz_writer;

lplb_status lplb__npz_create(lplb__npz_writer **out);
/* Copies the items. The same arrays give the same archive, byte by byte. */
lplb_status lplb__npz_add(lplb__npz_writer *writer, const char *name, lplb_dtype dtype,
                          int32_t dims, const int64_t *shape, const void *items);
/* Writes and destroys the writer, also on failure. */
lplb_status lplb__npz_finish(lplb__npz_writer *writer, const char *path);
void lplb__npz_destroy(lplb__npz_writer *writer);

#endif
