#include "cases/oracle.h"

#include <assert.h>
#include <stdlib.h>

__extension__ typedef __int128 wide;

int fraction_less(lplb_fraction a, lplb_fraction b) {
    return (wide)a.numerator * b.denominator < (wide)b.numerator * a.denominator;
}

/* W(S) for every S: add up equal masks, then sums over subsets, one bit at a time. */
static int64_t *inside_tokens(const lplb_hosts *hosts, const lplb_plan_input *input) {
    int64_t sets = INT64_C(1) << hosts->ranks;
    int64_t *inside = calloc((size_t)sets, sizeof *inside);
    if (!inside) abort();
    for (int32_t r = 0; r < hosts->ranks && input->fixed; r++)
        inside[INT64_C(1) << r] += input->fixed[r];
    for (int32_t e = 0; e < hosts->experts; e++) {
        int64_t mask = 0;
        for (int64_t i = hosts->offset[e]; i < hosts->offset[e + 1]; i++)
            mask |= INT64_C(1) << hosts->rank[i];
        inside[mask] += input->tokens[e];
    }
    for (int32_t r = 0; r < hosts->ranks; r++)
        for (int64_t set = 0; set < sets; set++)
            if (set >> r & 1) inside[set] += inside[set ^ (INT64_C(1) << r)];
    return inside;
}

/* The least fraction t >= start with sum over S of floor(t*s_r) >= tokens. Starting at W(S)/s(S)
 * less than |S| tokens are missing, and every step to the next multiple of some 1/s_r adds one. */
static lplb_fraction least_integer(const int64_t *speed, int32_t ranks, int64_t set, int64_t tokens,
                                   lplb_fraction t) {
    for (;;) {
        wide room = 0;
        lplb_fraction next = {0, 0};
        for (int32_t r = 0; r < ranks; r++) {
            if (!(set >> r & 1)) continue;
            int64_t s = speed ? speed[r] : 1;
            wide floor = (wide)t.numerator * s / t.denominator;
            lplb_fraction candidate = {(int64_t)floor + 1, s};
            room += floor;
            if (!next.denominator || fraction_less(candidate, next)) next = candidate;
        }
        if (room >= tokens) return t;
        t = next;
    }
}

static int smaller_set(int64_t a, int64_t b) {
    int size_a = __builtin_popcountll((uint64_t)a), size_b = __builtin_popcountll((uint64_t)b);
    if (size_a != size_b) return size_a < size_b;
    int64_t differ = a ^ b;
    return (differ & -differ & a) != 0;
}

void oracle_subsets(const lplb_hosts *hosts, const int64_t *speed, const lplb_plan_input *input,
                    oracle_bound *out) {
    assert(hosts->ranks <= ORACLE_MAX_RANKS);
    int64_t *inside = inside_tokens(hosts, input);
    *out = (oracle_bound){{0, 1}, 0, {0, 1}, 0};
    for (int64_t set = 1; set < INT64_C(1) << hosts->ranks; set++) {
        if (inside[set] == 0) continue;
        lplb_fraction t = {inside[set], 0};
        for (int32_t r = 0; r < hosts->ranks; r++)
            if (set >> r & 1) t.denominator += speed ? speed[r] : 1;
        int larger = fraction_less(out->fractional, t);
        if (larger ||
            (!fraction_less(t, out->fractional) && smaller_set(set, (int64_t)out->bottleneck))) {
            out->fractional = t;
            out->bottleneck = (uint64_t)set;
        }
        t = least_integer(speed, hosts->ranks, set, inside[set], t);
        if (fraction_less(out->integer, t)) {
            out->integer = t;
            out->certificate = (uint64_t)set;
        }
    }
    free(inside);
}
