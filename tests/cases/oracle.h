/* Answers by other means than the library's: all rank sets, all splits, an LP solver. */
#ifndef LPLB_TESTS_ORACLE_H
#define LPLB_TESTS_ORACLE_H

#include <lplb/plan.h>

enum { ORACLE_MAX_RANKS = 20 };

typedef struct oracle_bound {
    lplb_fraction fractional; /* max over S of W(S)/s(S) */
    uint64_t bottleneck;      /* a smallest maximising set, ties by lower ranks; 0 without tokens */
    lplb_fraction integer;    /* least t with sum over S of floor(t*s_r) >= W(S) for every S */
    uint64_t certificate;     /* a set that forbids any smaller t; 0 without tokens */
} oracle_bound;

/* Enumerates all 2^G - 1 rank sets; G <= ORACLE_MAX_RANKS. */
void oracle_subsets(const lplb_hosts *hosts, const int64_t *speed, const lplb_plan_input *input,
                    oracle_bound *out);

/* a/b < c/d, exactly. */
int fraction_less(lplb_fraction a, lplb_fraction b);

#endif
