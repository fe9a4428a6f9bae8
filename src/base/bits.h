/* Bit sets as arrays of 64-bit words. */
#ifndef LPLB_BASE_BITS_H
#define LPLB_BASE_BITS_H

#include <stdbool.h>
#include <stdint.h>

static inline int64_t lplb__bit_words(int64_t bits) { return (bits + 63) / 64; }
static inline bool lplb__bit_test(const uint64_t *set, int64_t i) {
    return set[i >> 6] >> (i & 63) & 1;
}
static inline void lplb__bit_set(uint64_t *set, int64_t i) {
    set[i >> 6] |= (uint64_t)1 << (i & 63);
}
static inline void lplb__bit_clear(uint64_t *set, int64_t i) {
    set[i >> 6] &= ~((uint64_t)1 << (i & 63));
}
/* Index of the lowest set bit of a nonzero word. */
static inline int lplb__bit_lowest(uint64_t word) { return __builtin_ctzll(word); }
static inline int lplb__bit_count(uint64_t word) { return __builtin_popcountll(word); }

#endif
