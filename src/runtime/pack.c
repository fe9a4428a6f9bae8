#include "runtime/pack.h"

#include <string.h>

typedef struct header {
    uint32_t order, kind, version, zero;
    uint64_t bytes; /* all of it, checksum included */
} header;

static const uint32_t BYTE_ORDER_WORD = 0x6c706c62; /* "lplb" */

/* Words of 8 bytes at a time, so that a megabyte takes well under a millisecond; the tail is
 * padded with its length. */
uint64_t lplb__hash(const void *data, size_t bytes, uint64_t seed) {
    const unsigned char *at = data;
    uint64_t hash = 0xcbf29ce484222325u ^ seed, word;
    size_t left = bytes;
    for (; left >= 8; at += 8, left -= 8) {
        memcpy(&word, at, 8);
        hash = (hash ^ word) * 0x100000001b3u;
        hash ^= hash >> 32; /* FNV alone lets high bits touch only high bits */
    }
    word = 0;
    if (left) memcpy(&word, at, left);
    hash = (hash ^ word) * 0x100000001b3u;
    hash = (hash ^ bytes) * 0x100000001b3u;
    return hash ^ hash >> 29;
}

void lplb__pack(lplb__packer *packer, const void *data, size_t bytes) {
    if (packer->buffer && packer->capacity >= packer->used &&
        packer->capacity - packer->used >= bytes && bytes)
        memcpy(packer->buffer + packer->used, data, bytes);
    packer->used += bytes;
}

void lplb__pack_begin(lplb__packer *packer, void *buffer, size_t capacity, uint32_t kind,
                      uint32_t version) {
    *packer = (lplb__packer){buffer, capacity, 0};
    header head = {.order = BYTE_ORDER_WORD, .kind = kind, .version = version};
    lplb__pack(packer, &head, sizeof head);
}

lplb_status lplb__pack_end(lplb__packer *packer) {
    size_t total = packer->used + sizeof(uint64_t);
    if (!packer->buffer) {
        packer->used = total;
        return LPLB_OK;
    }
    if (total > packer->capacity)
        return LPLB_FAIL(LPLB_RANGE, "the state takes %zu bytes, the buffer has %zu", total,
                         packer->capacity);
    uint64_t bytes = total;
    memcpy(packer->buffer + offsetof(header, bytes), &bytes, sizeof bytes);
    uint64_t sum = lplb__hash(packer->buffer, packer->used, 0);
    lplb__pack(packer, &sum, sizeof sum);
    return LPLB_OK;
}

lplb_status lplb__unpack_begin(lplb__unpacker *unpacker, const void *buffer, size_t bytes,
                               uint32_t kind, uint32_t version, const char *what) {
    header head;
    uint64_t sum;
    if (bytes < sizeof head + sizeof sum)
        return LPLB_FAIL(LPLB_FORMAT, "%zu bytes are too few for the state of a %s", bytes, what);
    memcpy(&head, buffer, sizeof head);
    if (head.order != BYTE_ORDER_WORD)
        return LPLB_FAIL(LPLB_FORMAT, "not a saved state, or one of a machine of other byte order");
    if (head.kind != kind)
        return LPLB_FAIL(LPLB_FORMAT, "a saved state, but not that of a %s", what);
    if (head.version != version)
        return LPLB_FAIL(LPLB_FORMAT, "state of a %s in version %u; this library reads %u", what,
                         head.version, version);
    if (head.bytes != bytes)
        return LPLB_FAIL(LPLB_FORMAT, "state of a %s: %zu bytes given, %llu were saved", what,
                         bytes, (unsigned long long)head.bytes);
    memcpy(&sum, (const unsigned char *)buffer + bytes - sizeof sum, sizeof sum);
    if (sum != lplb__hash(buffer, bytes - sizeof sum, 0))
        return LPLB_FAIL(LPLB_FORMAT, "state of a %s: its checksum is wrong, it is damaged", what);
    unpacker->at = (const unsigned char *)buffer + sizeof head;
    unpacker->end = (const unsigned char *)buffer + bytes - sizeof sum;
    return LPLB_OK;
}

lplb_status lplb__unpack(lplb__unpacker *unpacker, void *data, size_t bytes) {
    if ((size_t)(unpacker->end - unpacker->at) < bytes)
        return LPLB_FAIL(LPLB_FORMAT, "saved state ends %zu bytes too early",
                         bytes - (size_t)(unpacker->end - unpacker->at));
    if (bytes) memcpy(data, unpacker->at, bytes);
    unpacker->at += bytes;
    return LPLB_OK;
}

lplb_status lplb__unpack_end(const lplb__unpacker *unpacker) {
    if (unpacker->at != unpacker->end)
        return LPLB_FAIL(LPLB_FORMAT, "saved state has %zu bytes too many",
                         (size_t)(unpacker->end - unpacker->at));
    return LPLB_OK;
}
