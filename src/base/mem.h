/* Memory: every allocation goes through the replaceable allocator; long-lived objects take all
 * they will ever need in one arena when they are created, so that per-batch calls allocate
 * nothing. Exported for liblplb_cuda, which shares the allocator. */
#ifndef LPLB_BASE_MEM_H
#define LPLB_BASE_MEM_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

LPLB_API void *lplb__malloc(size_t bytes);
LPLB_API void *lplb__realloc(void *block, size_t bytes);
LPLB_API void lplb__free(void *block); /* NULL is fine */

/* Zeroed array of count items; fails on overflow and count < 0. count 0 gives a valid pointer. */
LPLB_API lplb_status lplb__calloc(void **out, int64_t count, size_t item_bytes);
#define LPLB_CALLOC(pointer, count)                                                                \
    lplb__calloc((void **)&(pointer), (int64_t)(count), sizeof *(pointer))

/* Two-pass arena: first add up with lplb__arena_reserve, then create, then take in any order.
 * All blocks are zeroed and aligned to 64 bytes. */
typedef struct lplb__arena {
    unsigned char *base;
    size_t used_bytes, total_bytes;
} lplb__arena;

LPLB_API void lplb__arena_reserve(lplb__arena *arena, int64_t count, size_t item_bytes);
LPLB_API lplb_status lplb__arena_create(lplb__arena *arena);
LPLB_API void *lplb__arena_take(lplb__arena *arena, int64_t count, size_t item_bytes);
LPLB_API void lplb__arena_destroy(lplb__arena *arena);

#endif
