/* Seeded random numbers, the same on every machine: xoshiro256++ (Blackman and Vigna, 2019) seeded
 * by splitmix64. Not for cryptography. One generator per thread. */
#ifndef LPLB_BASE_RNG_H
#define LPLB_BASE_RNG_H

#include <stdint.h>

typedef struct lplb__rng {
    uint64_t state[4];
} lplb__rng;

/* stream separates generators that share a seed (one per layer, say). */
void lplb__rng_seed(lplb__rng *rng, uint64_t seed, uint64_t stream);
uint64_t lplb__rng_next(lplb__rng *rng);
double lplb__rng_uniform(lplb__rng *rng);               /* [0, 1), 53 bits */
int64_t lplb__rng_below(lplb__rng *rng, int64_t bound); /* [0, bound), unbiased; bound > 0 */
double lplb__rng_normal(lplb__rng *rng);                /* mean 0, variance 1 */
int64_t lplb__rng_binomial(lplb__rng *rng, int64_t trials, double p);

/* counts[i] ~ multinomial(trials, weight[i] / sum of weights); weights >= 0, finite, sum > 0. */
void lplb__rng_multinomial(lplb__rng *rng, int64_t trials, const double *weight, int64_t n,
                           int64_t *counts);

#endif
