/* State as bytes: fields in a fixed order behind a header that says what they are, and a checksum
 * behind them. Byte order is the machine's; the header's word shows it. */
#ifndef LPLB_RUNTIME_PACK_H
#define LPLB_RUNTIME_PACK_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* Writing with buffer NULL only counts. */
typedef struct lplb__packer {
    unsigned char *buffer;
    size_t capacity, used;
} lplb__packer;

void lplb__pack_begin(lplb__packer *packer, void *buffer, size_t capacity, uint32_t kind,
                      uint32_t version);
void lplb__pack(lplb__packer *packer, const void *data, size_t bytes);
/* Adds length and checksum; LPLB_RANGE when the buffer was too small, naming the need. */
lplb_status lplb__pack_end(lplb__packer *packer);

typedef struct lplb__unpacker {
    const unsigned char *at, *end;
} lplb__unpacker;

/* Checks header, length and checksum before anything is taken. */
lplb_status lplb__unpack_begin(lplb__unpacker *unpacker, const void *buffer, size_t bytes,
                               uint32_t kind, uint32_t version, const char *what);
/* Fails when fewer bytes are left. */
lplb_status lplb__unpack(lplb__unpacker *unpacker, void *data, size_t bytes);
lplb_status lplb__unpack_end(const lplb__unpacker *unpacker);

/* FNV-1a, 64 bits: finds damage, not malice. */
uint64_t lplb__hash(const void *data, size_t bytes, uint64_t seed);

#endif
