/* Counts of positive whole numbers in logarithmic buckets, 16 to an octave: any percentile to
 * within 1/32 of its value in a fixed 8 KB. */
#ifndef LPLB_RUNTIME_HISTOGRAM_H
#define LPLB_RUNTIME_HISTOGRAM_H

#include <stdint.h>

enum { LPLB__BUCKETS = 960 };

typedef struct lplb__histogram {
    int64_t count, min, max;
    double sum, squares;
    int64_t bucket[LPLB__BUCKETS];
} lplb__histogram;

void lplb__histogram_add(lplb__histogram *h, int64_t value); /* values below 1 are left out */
double lplb__histogram_percentile(const lplb__histogram *h, double p); /* 0 when empty */
/* How many values are at most `limit`, to the resolution of the buckets. */
int64_t lplb__histogram_below(const lplb__histogram *h, double limit);

#endif
