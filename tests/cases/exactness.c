#include "cases/exactness.h"

#include <math.h>

#include "cases/lp.h"

/* CLP works to 1e-7 on the scaled problem; above 2^40 tokens that says too little to be asked. */
static const double LP_TOLERANCE = 1e-6;

static lplb_status plan(plan_instance *in, const lplb_plan_input *input, lplb_plan *out) {
    lplb_plan_config config = {
        .struct_size = sizeof config, .hosts = in->hosts, .speed = in->speed};
    lplb_planner *planner;
    lplb_status status = lplb_planner_create(&config, &planner);
    if (status != LPLB_OK) return status;
    *out = (lplb_plan){.split = in->split, .loads = in->loads, .certificate = in->certificate};
    status = lplb_plan_solve(planner, input, out);
    lplb_planner_destroy(planner);
    return status;
}

/* The least t with sum over S of floor(t s_r) >= W(S) for all S is at most the largest
 * (W(S) + |S|) / s(S), so less than one token at the slowest speed lies between the two optima. */
static int compare(exactness *sum, plan_instance *in, const lplb_plan_input *input,
                   double objective) {
    lp *problem = lp_create(&in->hosts, in->speed);
    double optimum = lp_solve(problem, input);
    lp_destroy(problem);
    if (optimum < 0) {
        sum->unsolved++;
        return 0;
    }
    int64_t slowest = in->speed ? in->speed[0] : 1;
    for (int32_t r = 1; in->speed && r < in->hosts.ranks; r++)
        if (in->speed[r] < slowest) slowest = in->speed[r];
    double excess = (objective - optimum) * (double)slowest;
    double noise = LP_TOLERANCE * (1 + optimum * (double)slowest);
    sum->compared++;
    sum->worst_excess = fmax(sum->worst_excess, excess);
    if (excess >= -noise && excess <= 1 + noise) return 0;
    sum->disagreeing++;
    return 1;
}

int exactness_judge(exactness *sum, plan_instance *in, int with_lp) {
    lplb_plan result;
    lplb_plan_input input = {in->tokens, in->fixed, NULL};
    sum->problems++;
    if (plan(in, &input, &result) != LPLB_OK) {
        sum->failed++;
        return 1;
    }
    int wrong = 0;
    lplb_plan claim = result;
    claim.outcome = LPLB_OUTCOME_FEASIBLE;
    if (lplb_plan_check(&in->hosts, in->speed, &input, &claim) != LPLB_OK) {
        sum->infeasible++;
        wrong = 1;
    } else if (result.outcome != LPLB_OUTCOME_OPTIMAL ||
               lplb_plan_check(&in->hosts, in->speed, &input, &result) != LPLB_OK) {
        sum->uncertified++;
        wrong = 1;
    }
    if (with_lp) wrong |= compare(sum, in, &input, result.objective);
    return wrong;
}
