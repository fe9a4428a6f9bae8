/* Ratio mode: a source splits its own tokens by shares, without knowing the others' counts. */
#include <assert.h>
#include <math.h>

#include "dispatch/dispatch.h"

static double clipped(float share) { return share > 1 ? 1 : share > 0 ? share : 0; }

/* In [0, 1): where this (source, expert) starts on the wheel of roundings. The R2 sequence
 * (Roberts, 2018, powers of the plastic number) spreads the starts evenly over sources and over
 * experts, so that shares of many small sources add up to the right totals. */
static double wheel_start(int32_t source, int32_t e) {
    double at = 0.7548776662466927 * source + 0.5698402909980532 * e;
    return at - floor(at);
}

/* Each host gets the floor of share * count; the tokens left over are dealt by systematic
 * sampling: walk the fractions, one token each time their sum passes a whole number. */
static void prepare_expert(lplb_dispatcher *d, int32_t e, const float *share, int64_t count,
                           int32_t source) {
    int64_t hosts = d->offset[e + 1] - d->offset[e], left = count, last = -1;
    double sum = 0, wheel = wheel_start(source, e);
    share += d->offset[e];
    for (int64_t h = 0; h < hosts; h++) sum += clipped(share[h]);
#define FAIR(h) ((sum > 0 ? clipped(share[h]) / sum : 1.0 / (double)hosts) * (double)count)
    for (int64_t h = 0; h < hosts; h++) {
        d->taken[h] = (int64_t)FAIR(h);
        left -= d->taken[h];
    }
    for (int64_t h = 0; h < hosts && left > 0; h++) {
        double fraction = FAIR(h) - (double)d->taken[h];
        wheel += fraction;
        if (wheel >= 1) {
            wheel -= 1;
            d->taken[h]++;
            left--;
        } else if (fraction > 0) {
            last = h;
        }
    }
#undef FAIR
    if (left > 0) { /* the fractions' sum was rounded down across a whole number */
        assert(left == 1 && last >= 0);
        d->taken[last]++;
    }
    lplb__segments_begin(d, e);
    for (int64_t h = 0; h < hosts; h++)
        lplb__segments_add(d, d->offset[e] + h, d->taken[h], 0, d->taken[h]);
    lplb__segments_end(d);
}

/* With more tokens the rounding of doubles would no longer vanish beside one token. */
static const int64_t max_local_tokens = (int64_t)1 << 40;

lplb_status lplb_dispatch_prepare_ratio(lplb_dispatcher *d, const float *share,
                                        const int64_t *local_counts, int32_t source) {
    d->prepared = false;
    if (source < 0 || source >= d->sources)
        return LPLB_FAIL(LPLB_RANGE, "source %d is outside [0, %d)", source, d->sources);
    for (int32_t e = 0; e < d->experts; e++) {
        if (local_counts[e] < 0 || local_counts[e] > max_local_tokens)
            return LPLB_FAIL(LPLB_RANGE, "%lld tokens of expert %d are outside [0, 2^40]",
                             (long long)local_counts[e], e);
        for (int64_t h = d->offset[e]; h < d->offset[e + 1]; h++)
            if (isnan(share[h]))
                return LPLB_FAIL(LPLB_INVALID, "the share of expert %d on rank %d is NaN", e,
                                 d->rank[h]);
        d->local[e] = local_counts[e];
        prepare_expert(d, e, share, local_counts[e], source);
    }
    d->prepared = true;
    return LPLB_OK;
}
