/* SHA-256 (FIPS 180-4), so that a text has the digest that sha256sum prints, without starting a
 * program in the middle of an MPI job. */
#ifndef LPLB_TRAIN_SHA256_H
#define LPLB_TRAIN_SHA256_H

#include <stdint.h>

enum { SHA256_HEX_BYTES = 65 };

/* Lower-case hexadecimal digits and a zero. */
void sha256_hex(const void *data, int64_t bytes, char hex[SHA256_HEX_BYTES]);

#endif
