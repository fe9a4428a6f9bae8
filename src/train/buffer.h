/* A growable array of numbers: its size depends on the routing, so it is enlarged when a batch
 * needs more and keeps what it has. */
#ifndef LPLB_TRAIN_BUFFER_H
#define LPLB_TRAIN_BUFFER_H

#include "base/mem.h"
#include "train/real.h"

typedef struct buffer {
    real *data;
    int64_t capacity;
    int64_t most; /* items ever asked for: what lies beyond was never touched */
} buffer;

/* At least `items` numbers; the content is lost when it grows. */
static inline lplb_status buffer_need(buffer *b, int64_t items) {
    if (items > b->most) b->most = items;
    if (items <= b->capacity) return LPLB_OK;
    int64_t capacity = items + items / 8 + 64;
    lplb__free(b->data);
    *b = (buffer){.most = b->most};
    b->data = lplb__malloc((size_t)capacity * sizeof(real));
    if (!b->data)
        return LPLB_FAIL(LPLB_NO_MEMORY, "cannot allocate %lld numbers of %zu bytes",
                         (long long)capacity, sizeof(real));
    b->capacity = capacity;
    return LPLB_OK;
}

static inline void buffer_free(buffer *b) {
    lplb__free(b->data);
    *b = (buffer){0};
}

#endif
