/* The planning problem as a linear program for COIN-OR CLP: the oracle for sizes that enumeration
 * cannot reach, and what the exact planner's speed is compared with. Without CLP (LPLB_HAVE_CLP
 * undefined) lp_available is 0 and the rest must not be called. */
#ifndef LPLB_TESTS_LP_H
#define LPLB_TESTS_LP_H

#include <lplb/plan.h>

int lp_available(void);

typedef struct lp lp;
/* Minimise M subject to sum over H(e) of x[e][r] = w_e, load_r - s_r * M <= 0, x >= 0. Experts with
 * one host are folded into the right-hand side, as a careful user would. */
lp *lp_create(const lplb_hosts *hosts, const int64_t *speed);
void lp_destroy(lp *problem);
/* Builds the batch's right-hand side and solves from scratch (dual simplex, no warm start). Returns
 * the fractional optimum t*, or a negative number if CLP does not report optimality. */
double lp_solve(lp *problem, const lplb_plan_input *input);

/* The most tokens that can stay on their source rank, and with those the most on their source node
 * (node ids in [0, G)), when rank r holds at most capacity[r]. Returns 0 if there is no split. At
 * most 2^24 tokens, so that doubles hold the weighted sum. */
int lp_locality(const lplb_hosts *hosts, const int32_t *node, const lplb_plan_input *input,
                const int64_t *capacity, int64_t *local, int64_t *on_node);

#endif
