#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { ARENA_ALIGN = 64 };

static void *default_alloc(size_t bytes, void *user) {
    (void)user;
    return malloc(bytes);
}
static void *default_realloc(void *block, size_t bytes, void *user) {
    (void)user;
    return realloc(block, bytes);
}
static void default_free(void *block, void *user) {
    (void)user;
    free(block);
}

static lplb_allocator allocator = {default_alloc, default_realloc, default_free, NULL};

void lplb_set_allocator(const lplb_allocator *replacement) {
    static const lplb_allocator fallback = {default_alloc, default_realloc, default_free, NULL};
    allocator = replacement ? *replacement : fallback;
}

void *lplb__malloc(size_t bytes) { return allocator.alloc(bytes ? bytes : 1, allocator.user); }
void *lplb__realloc(void *block, size_t bytes) {
    return allocator.realloc(block, bytes ? bytes : 1, allocator.user);
}
void lplb__free(void *block) {
    if (block) allocator.free(block, allocator.user);
}

lplb_status lplb__calloc(void **out, int64_t count, size_t item_bytes) {
    *out = NULL;
    if (count < 0 || (uint64_t)count > SIZE_MAX / 2 / (item_bytes ? item_bytes : 1))
        return LPLB_FAIL(LPLB_NO_MEMORY, "cannot allocate %lld items of %zu bytes",
                         (long long)count, item_bytes);
    size_t bytes = (size_t)count * item_bytes;
    *out = lplb__malloc(bytes);
    if (!*out) return LPLB_FAIL(LPLB_NO_MEMORY, "cannot allocate %zu bytes", bytes);
    memset(*out, 0, bytes ? bytes : 1);
    return LPLB_OK;
}

static size_t rounded(int64_t count, size_t item_bytes) {
    size_t bytes = (size_t)count * item_bytes;
    return (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
}

void lplb__arena_reserve(lplb__arena *arena, int64_t count, size_t item_bytes) {
    if (count < 0 || (uint64_t)count > (SIZE_MAX / 4) / (item_bytes ? item_bytes : 1))
        arena->total_bytes = SIZE_MAX / 2; /* makes create fail */
    else if (arena->total_bytes < SIZE_MAX / 4) arena->total_bytes += rounded(count, item_bytes);
}

lplb_status lplb__arena_create(lplb__arena *arena) {
    size_t bytes = arena->total_bytes + ARENA_ALIGN;
    if (arena->total_bytes >= SIZE_MAX / 4 || !(arena->base = lplb__malloc(bytes)))
        return LPLB_FAIL(LPLB_NO_MEMORY, "cannot allocate an arena of %zu bytes",
                         arena->total_bytes);
    memset(arena->base, 0, bytes);
    arena->used_bytes = 0;
    return LPLB_OK;
}

void *lplb__arena_take(lplb__arena *arena, int64_t count, size_t item_bytes) {
    uintptr_t start = ((uintptr_t)arena->base + ARENA_ALIGN - 1) & ~(uintptr_t)(ARENA_ALIGN - 1);
    void *block = (void *)(start + arena->used_bytes);
    arena->used_bytes += rounded(count, item_bytes);
    assert(arena->used_bytes <= arena->total_bytes);
    return block;
}

void lplb__arena_destroy(lplb__arena *arena) {
    lplb__free(arena->base);
    *arena = (lplb__arena){0};
}
