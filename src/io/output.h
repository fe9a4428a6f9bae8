/* Files that appear whole or not at all: written under a temporary name in the same folder, synced,
 * then renamed over the target. A target that is a pipe or device is written directly, there is
 * nothing to rename. */
#ifndef LPLB_IO_OUTPUT_H
#define LPLB_IO_OUTPUT_H

#include <stdio.h>

#include "base/error.h"

typedef struct lplb__output {
    FILE *file;
    char *path;      /* the target, symbolic links followed */
    char *temporary; /* NULL when written directly */
} lplb__output;

lplb_status lplb__output_open(const char *path, lplb__output *out);
/* Takes any failed write to file into account, syncs and renames; when that fails the temporary
 * file is removed. Ends the output either way. */
lplb_status lplb__output_commit(lplb__output *output);
/* Removes the temporary file; does nothing after commit. */
void lplb__output_abort(lplb__output *output);

/* The whole of a file in one call. */
lplb_status lplb__output_write(const char *path, const void *data, size_t bytes);

#endif
