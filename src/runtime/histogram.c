#include "runtime/histogram.h"

#include <math.h>

/* 1..15 have a bucket each; above, the leading bit and the four behind it. */
static int bucket_of(int64_t value) {
    if (value < 16) return (int)value;
    int top = 63 - __builtin_clzll((uint64_t)value);
    return (top - 3) * 16 + (int)(value >> (top - 4) & 15);
}

static double upper_end(int bucket) {
    if (bucket < 16) return bucket;
    int top = bucket / 16 + 3;
    return ldexp(16 + bucket % 16 + 1, top - 4) - 1;
}

static double lower_end(int bucket) {
    if (bucket < 16) return bucket;
    return ldexp(16 + bucket % 16, bucket / 16 - 1);
}

void lplb__histogram_add(lplb__histogram *h, int64_t value) {
    if (value < 1) return;
    if (!h->count || value < h->min) h->min = value;
    if (value > h->max) h->max = value;
    h->count++;
    h->sum += (double)value;
    h->squares += (double)value * (double)value;
    h->bucket[bucket_of(value)]++;
}

double lplb__histogram_percentile(const lplb__histogram *h, double p) {
    int64_t rank = (int64_t)ceil(p * (double)h->count), seen = 0;
    if (!h->count) return 0;
    if (rank < 1) rank = 1;
    for (int b = 0; b < LPLB__BUCKETS; b++) {
        seen += h->bucket[b];
        if (seen < rank) continue;
        double middle = (lower_end(b) + upper_end(b)) / 2;
        return middle < (double)h->min   ? (double)h->min
               : middle > (double)h->max ? (double)h->max
                                         : middle;
    }
    return (double)h->max;
}

int64_t lplb__histogram_below(const lplb__histogram *h, double limit) {
    int64_t n = 0;
    for (int b = 0; b < LPLB__BUCKETS && upper_end(b) <= limit; b++) n += h->bucket[b];
    return n;
}
