/* Sums over LANES interleaved parts, added up at the end: one order on every machine, and an order
 * that vector instructions can follow, which a plain loop's is not. */
#ifndef LPLB_TRAIN_OPS_SUMS_H
#define LPLB_TRAIN_OPS_SUMS_H

#include "train/real.h"

enum { LANES = 16 };

static inline real add_lanes(const real *lane) {
    real sum[LANES];
    memcpy(sum, lane, sizeof sum);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int j = 0; j < width; j++) sum[j] += sum[j + width];
    return sum[0];
}

static inline real sum_row(const real *x, int64_t n) {
    real lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lane[j] += x[i + j];
    for (int j = 0; i + j < n; j++) lane[j] += x[i + j];
    return add_lanes(lane);
}

static inline real dot_rows(const real *x, const real *y, int64_t n) {
    real lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lane[j] += x[i + j] * y[i + j];
    for (int j = 0; i + j < n; j++) lane[j] += x[i + j] * y[i + j];
    return add_lanes(lane);
}

static inline real top_of(const real *x, int64_t n) {
    real lane[LANES];
    for (int j = 0; j < LANES; j++) lane[j] = x[0];
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    for (int j = 0; i + j < n; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    real top = lane[0];
    for (int j = 1; j < LANES; j++) top = lane[j] > top ? lane[j] : top;
    return top;
}

#endif
