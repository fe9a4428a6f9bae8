/* The trainer's number type. lplb-train computes in float, lplb-train-f64 in
 * double (exactness tests); both are built from the same sources. */
#ifndef LPLB_TRAIN_REAL_H
#define LPLB_TRAIN_REAL_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef LPLB_TRAIN_F64
typedef double real;
#define REAL_NAME "f64"
static inline real real_exp(real x) { return exp(x); }
static inline real real_sqrt(real x) { return sqrt(x); }
#else
typedef float real;
#define REAL_NAME "f32"
static inline real real_sqrt(real x) { return sqrtf(x); }

/* exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2, with a polynomial for exp(r) (Cephes,
 * Moshier): 2 ulp, and without branches or calls, so that loops over it become vector code. Below
 * -87 the result is exp(-87), above 88 exp(88); not a number stays so. */
static inline real real_exp(real x) {
    const float rounder =
        12582912.0f; /* 1.5 * 2^23: adding it leaves the integer in the low bits */
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504088896341f + rounder, n = shifted - rounder;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}
#endif

/* Loops that are worth versions for wider vectors, chosen when the program starts. Results are the
 * same: no sums are reordered and nothing is fused. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__) &&       \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define REAL_WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define REAL_WIDE
#endif

#endif
