#include "cases/count_alloc.h"

#include <lplb/status.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* The size lies in front of each block, 16 bytes, so that alignment stays malloc's. */
enum { FRONT_BYTES = 16 };
static _Thread_local int64_t calls;
static _Atomic int64_t live_bytes;

static void *counted_alloc(size_t bytes, void *user) {
    (void)user;
    calls++;
    unsigned char *block = malloc(bytes + FRONT_BYTES);
    if (!block) return NULL;
    memcpy(block, &bytes, sizeof bytes);
    live_bytes += (int64_t)bytes;
    return block + FRONT_BYTES;
}

static void counted_free(void *block, void *user) {
    (void)user;
    if (!block) return;
    size_t bytes;
    unsigned char *front = (unsigned char *)block - FRONT_BYTES;
    memcpy(&bytes, front, sizeof bytes);
    live_bytes -= (int64_t)bytes;
    free(front);
}

static void *counted_realloc(void *block, size_t bytes, void *user) {
    void *larger = counted_alloc(bytes, user);
    if (!larger || !block) return larger;
    size_t before;
    memcpy(&before, (unsigned char *)block - FRONT_BYTES, sizeof before);
    memcpy(larger, block, before < bytes ? before : bytes);
    counted_free(block, user);
    return larger;
}

void count_alloc_install(void) {
    static const lplb_allocator counting = {counted_alloc, counted_realloc, counted_free, NULL};
    lplb_set_allocator(&counting);
}

int64_t count_alloc_calls(void) { return calls; }
int64_t count_alloc_live_bytes(void) { return live_bytes; }
