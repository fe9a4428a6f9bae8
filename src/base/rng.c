#include "base/rng.h"

#include <math.h>

static uint64_t splitmix64(uint64_t *x) {
    uint64_t z = (*x += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t rotl(uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }

void lplb__rng_seed(lplb__rng *rng, uint64_t seed, uint64_t stream) {
    uint64_t x = seed;
    uint64_t mixed = splitmix64(&x) ^ (stream * 0xd1342543de82ef95u + 1);
    for (int i = 0; i < 4; i++) rng->state[i] = splitmix64(&mixed);
}

uint64_t lplb__rng_next(lplb__rng *rng) {
    uint64_t *s = rng->state;
    uint64_t result = rotl(s[0] + s[3], 23) + s[0];
    uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 45);
    return result;
}

double lplb__rng_uniform(lplb__rng *rng) { return (double)(lplb__rng_next(rng) >> 11) * 0x1.0p-53; }

int64_t lplb__rng_below(lplb__rng *rng, int64_t bound) {
    uint64_t n = (uint64_t)bound;
    uint64_t limit = UINT64_MAX - UINT64_MAX % n; /* reject the uneven tail */
    uint64_t x;
    do x = lplb__rng_next(rng);
    while (x >= limit);
    return (int64_t)(x % n);
}

double lplb__rng_normal(lplb__rng *rng) {
    /* Box-Muller, one of the pair; log's argument is in (0, 1]. */
    double u = 1.0 - lplb__rng_uniform(rng);
    double v = lplb__rng_uniform(rng);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

/* Small means by inversion, large ones by halving at a beta-distributed order statistic would be
 * exact; the sum-free BTPE is longer. We use inversion below 30 expected successes and otherwise
 * the normal approximation with rounding, clamped: its error is far below the noise it models. */
int64_t lplb__rng_binomial(lplb__rng *rng, int64_t trials, double p) {
    if (trials <= 0 || p <= 0) return 0;
    if (p >= 1) return trials;
    if (p > 0.5) return trials - lplb__rng_binomial(rng, trials, 1 - p);
    double mean = (double)trials * p;
    if (mean < 30) {
        double q = 1 - p, r = exp((double)trials * log1p(-p)), u = lplb__rng_uniform(rng);
        int64_t k = 0;
        while (u > r && k < trials) {
            u -= r;
            k++;
            r *= ((double)(trials - k + 1) * p) / ((double)k * q);
            if (r < 1e-300 && (double)k > mean) break;
        }
        return k;
    }
    double x = floor(mean + sqrt(mean * (1 - p)) * lplb__rng_normal(rng) + 0.5);
    if (x < 0) x = 0;
    if (x > (double)trials) x = (double)trials;
    return (int64_t)x;
}

void lplb__rng_multinomial(lplb__rng *rng, int64_t trials, const double *weight, int64_t n,
                           int64_t *counts) {
    double left = 0;
    int64_t last = -1;
    for (int64_t i = 0; i < n; i++) {
        left += weight[i];
        if (weight[i] > 0) last = i;
    }
    for (int64_t i = 0; i < n; i++) {
        int64_t k = 0;
        if (i == last) k = trials;
        else if (weight[i] > 0 && trials > 0) k = lplb__rng_binomial(rng, trials, weight[i] / left);
        counts[i] = k;
        trials -= k;
        left -= weight[i];
    }
}
