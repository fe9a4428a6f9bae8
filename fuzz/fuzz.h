/* What the fuzz targets share. A target is one function; docs in CONTRIBUTING.md. */
#ifndef LPLB_FUZZ_H
#define LPLB_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* A promise that the code broke: ends the run like a crash. */
#define FUZZ_ASSERT(condition)                                                                     \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition);          \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* What a reader may hold for one input; seeds are a few hundred bytes. */
enum { FUZZ_MAX_BYTES = 1 << 20 };

#endif
