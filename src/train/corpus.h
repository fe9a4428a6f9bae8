/* Text as bytes, documents separated by a zero byte, and the order in which its windows are read.
 */
#ifndef LPLB_TRAIN_CORPUS_H
#define LPLB_TRAIN_CORPUS_H

#include <stdint.h>

#include "base/error.h"

enum { CORPUS_SEPARATOR = 0, CORPUS_VOCAB = 256 };

typedef struct corpus {
    uint8_t *byte; /* [bytes] */
    int64_t bytes, capacity;
    int64_t documents;
} corpus;

void corpus_destroy(corpus *c);
/* Appends one document and a separator; zero bytes inside become spaces. */
lplb_status corpus_add(corpus *c, const void *text, int64_t bytes);
/* The bytes of [first, bytes) move to `tail`: held-out text. */
lplb_status corpus_split(corpus *c, int64_t first, corpus *tail);

/* Windows of context + 1 bytes in a seeded order, a pure function of (seed, sequence number). */
typedef struct sampler {
    const corpus *corpus;
    int64_t context, windows, epoch;
    uint64_t seed;
    int32_t *order; /* [windows] of the present epoch */
} sampler;

/* LPLB_INVALID when the corpus is shorter than one window. */
lplb_status sampler_create(const corpus *c, int64_t context, uint64_t seed, sampler *out);
void sampler_destroy(sampler *s);
/* Sequence `number` (0, 1, ... over all epochs): token, target, first as in struct batch,
 * [context]. A target is not counted (-1) where it would be the first byte of the next document.
 * Returns the number of counted targets. */
int64_t sampler_read(sampler *s, int64_t number, int32_t *token, int32_t *target, int32_t *first);

#endif
