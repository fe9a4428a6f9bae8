/* Counts how often the exact planner is wrong, by two independent judges: the verifier with the
 * plan's own certificate, and an LP solver's fractional optimum. */
#ifndef LPLB_TESTS_EXACTNESS_H
#define LPLB_TESTS_EXACTNESS_H

#include "cases/cases.h"

typedef struct exactness {
    int64_t problems;
    int64_t failed;      /* the planner returned an error */
    int64_t infeasible;  /* the split, the loads or max_load are wrong */
    int64_t uncertified; /* not OPTIMAL, or the certificate proves nothing */
    int64_t compared;    /* problems that the LP solver solved too */
    int64_t unsolved;    /* problems that it did not */
    int64_t
        disagreeing; /* objective below the LP's optimum, or above it by more than integrality */
    double worst_excess; /* (objective - LP optimum) * least speed, in tokens; < 1 by theory */
} exactness;

/* Plans the instance with the exact planner and judges the result; with_lp needs lp_available.
 * Returns nonzero if anything was wrong. */
int exactness_judge(exactness *sum, plan_instance *instance, int with_lp);

#endif
