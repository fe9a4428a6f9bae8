/* The independent verifier. It recomputes everything from the definition and shares no code with
 * the solvers, so that a common mistake cannot hide.
 *
 * The proof of optimality, for any speeds: let t = max over r of load_r / s_r. A split with a
 * smaller objective gives every rank at most ceil(t * s_r) - 1 tokens. If these numbers, summed
 * over a rank set S, are less than the W(S) tokens that must stay inside S (its fixed load, and the
 * experts hosted nowhere else), no such split exists. With equal speeds this says
 * ceil(W(S) / |S|) = max_load. docs/math.md shows that such a set always exists at the optimum. */
#include <inttypes.h>
#include <lplb/plan.h>
#include <math.h>

#include "base/mem.h"

__extension__ typedef __int128 wide;

static lplb_status check_hosts(const lplb_hosts *hosts, int32_t *seen /* [G] zeroed */) {
    if (hosts->offset[0] != 0)
        return LPLB_FAIL(LPLB_INVALID, "hosts: offset[0] is %" PRId64 ", not 0", hosts->offset[0]);
    for (int32_t e = 0; e < hosts->experts; e++) {
        if (hosts->offset[e + 1] <= hosts->offset[e])
            return LPLB_FAIL(LPLB_INVALID, "hosts: expert %d has no host", e);
        for (int64_t i = hosts->offset[e]; i < hosts->offset[e + 1]; i++) {
            int32_t r = hosts->rank[i];
            if (r < 0 || r >= hosts->ranks)
                return LPLB_FAIL(LPLB_RANGE, "hosts: expert %d is on rank %d, outside [0, %d)", e,
                                 r, hosts->ranks);
            if (seen[r] == e + 1)
                return LPLB_FAIL(LPLB_INVALID, "hosts: expert %d is on rank %d twice", e, r);
            seen[r] = e + 1;
        }
    }
    return LPLB_OK;
}

static lplb_status check_input(const lplb_hosts *hosts, const int64_t *speed,
                               const lplb_plan_input *input) {
    wide total = 0;
    for (int32_t r = 0; r < hosts->ranks; r++) {
        if (speed && (speed[r] < 1 || speed[r] > LPLB_MAX_SPEED))
            return LPLB_FAIL(LPLB_RANGE, "speed of rank %d is %" PRId64 ", outside [1, %d]", r,
                             speed[r], LPLB_MAX_SPEED);
        if (!input->fixed) continue;
        if (input->fixed[r] < 0)
            return LPLB_FAIL(LPLB_RANGE, "fixed load of rank %d is %" PRId64 ", negative", r,
                             input->fixed[r]);
        total += input->fixed[r];
    }
    for (int32_t e = 0; e < hosts->experts; e++) {
        if (input->tokens[e] < 0)
            return LPLB_FAIL(LPLB_RANGE, "expert %d has %" PRId64 " tokens, negative", e,
                             input->tokens[e]);
        total += input->tokens[e];
    }
    if (total > LPLB_MAX_TOKENS)
        return LPLB_FAIL(LPLB_OVERFLOW, "the problem has more than 2^62 tokens");
    return LPLB_OK;
}

/* Every expert's split adds up; load becomes what the split and the fixed tokens make. */
static lplb_status check_split(const lplb_hosts *hosts, const lplb_plan_input *input,
                               const lplb_plan *plan, int64_t *load) {
    for (int32_t r = 0; r < hosts->ranks; r++) load[r] = input->fixed ? input->fixed[r] : 0;
    for (int32_t e = 0; e < hosts->experts; e++) {
        wide sum = 0;
        for (int64_t i = hosts->offset[e]; i < hosts->offset[e + 1]; i++) {
            if (plan->split[i] < 0)
                return LPLB_FAIL(LPLB_CHECK_FAILED,
                                 "expert %d gives rank %d a negative number of tokens, %" PRId64, e,
                                 hosts->rank[i], plan->split[i]);
            sum += plan->split[i];
        }
        if (sum != input->tokens[e])
            return LPLB_FAIL(LPLB_CHECK_FAILED,
                             "the split of expert %d sums to %s than its %" PRId64 " tokens", e,
                             sum > input->tokens[e] ? "more" : "less", input->tokens[e]);
        for (int64_t i = hosts->offset[e]; i < hosts->offset[e + 1]; i++)
            load[hosts->rank[i]] += plan->split[i];
    }
    return LPLB_OK;
}

static lplb_status check_loads(const lplb_hosts *hosts, const lplb_plan *plan,
                               const int64_t *load) {
    int64_t most = 0;
    for (int32_t r = 0; r < hosts->ranks; r++) {
        if (plan->loads && plan->loads[r] != load[r])
            return LPLB_FAIL(LPLB_CHECK_FAILED,
                             "loads[%d] is %" PRId64 ", the split makes %" PRId64, r,
                             plan->loads[r], load[r]);
        if (load[r] > most) most = load[r];
    }
    if (plan->max_load != most)
        return LPLB_FAIL(LPLB_CHECK_FAILED, "max_load is %" PRId64 ", the split makes %" PRId64,
                         plan->max_load, most);
    /* written so that a NaN fails */
    if (!(plan->bound <= plan->objective * (1 + 1e-12)))
        return LPLB_FAIL(LPLB_CHECK_FAILED, "the lower bound %.17g exceeds the objective %.17g",
                         plan->bound, plan->objective);
    return LPLB_OK;
}

/* W(S): the fixed load of S and the tokens of the experts whose hosts all lie in S. */
static wide inside_tokens(const lplb_hosts *hosts, const lplb_plan_input *input,
                          const uint64_t *set) {
    wide tokens = 0;
    for (int32_t r = 0; r < hosts->ranks; r++)
        if (input->fixed && (set[r / 64] >> (r % 64) & 1)) tokens += input->fixed[r];
    for (int32_t e = 0; e < hosts->experts; e++) {
        int64_t i = hosts->offset[e];
        while (i < hosts->offset[e + 1] && (set[hosts->rank[i] / 64] >> (hosts->rank[i] % 64) & 1))
            i++;
        if (i == hosts->offset[e + 1]) tokens += input->tokens[e];
    }
    return tokens;
}

static lplb_status check_optimal(const lplb_hosts *hosts, const int64_t *speed,
                                 const lplb_plan_input *input, const lplb_plan *plan,
                                 const int64_t *load) {
    int64_t top = 0, top_speed = 1; /* the objective as a fraction */
    for (int32_t r = 0; r < hosts->ranks; r++) {
        int64_t s = speed ? speed[r] : 1;
        if ((wide)load[r] * top_speed > (wide)top * s) {
            top = load[r];
            top_speed = s;
        }
    }
    double objective = (double)top / (double)top_speed;
    if (!(fabs(plan->objective - objective) <= 1e-12 * objective))
        return LPLB_FAIL(LPLB_CHECK_FAILED, "objective is %.17g, the loads make %.17g",
                         plan->objective, objective);
    if (top == 0) return LPLB_OK; /* nothing can be below zero */
    if (!plan->certificate)
        return LPLB_FAIL(LPLB_CHECK_FAILED, "the plan claims to be optimal without a certificate");
    wide room = 0;
    for (int32_t r = 0; r < (hosts->ranks + 63) / 64 * 64; r++) {
        if (!(plan->certificate[r / 64] >> (r % 64) & 1)) continue;
        if (r >= hosts->ranks)
            return LPLB_FAIL(LPLB_CHECK_FAILED, "the certificate names rank %d of %d", r,
                             hosts->ranks);
        wide s = speed ? speed[r] : 1;
        room += ((wide)top * s + top_speed - 1) / top_speed - 1;
    }
    wide inside = inside_tokens(hosts, input, plan->certificate);
    if (room >= inside)
        return LPLB_FAIL(LPLB_CHECK_FAILED,
                         "the certificate proves nothing: its ranks must hold %" PRId64
                         " tokens and have room for that below the objective %.17g",
                         (int64_t)inside, objective);
    return LPLB_OK;
}

lplb_status lplb_plan_check(const lplb_hosts *hosts, const int64_t *speed,
                            const lplb_plan_input *input, const lplb_plan *plan) {
    if (!hosts || !input || !plan || !hosts->offset || (hosts->experts > 0 && !hosts->rank) ||
        (hosts->experts > 0 && (!input->tokens || !plan->split)))
        return LPLB_FAIL(LPLB_INVALID, "hosts, input, plan and their arrays must not be NULL");
    if (hosts->ranks < 1 || hosts->ranks > LPLB_MAX_RANKS || hosts->experts < 0)
        return LPLB_FAIL(LPLB_RANGE, "hosts: %d ranks and %d experts; ranks must be in [1, %d]",
                         hosts->ranks, hosts->experts, LPLB_MAX_RANKS);
    int32_t *seen = NULL;
    int64_t *load = NULL;
    lplb_status status;
    LPLB_TRY_GOTO(status, LPLB_CALLOC(seen, hosts->ranks), done);
    LPLB_TRY_GOTO(status, LPLB_CALLOC(load, hosts->ranks), done);
    LPLB_TRY_GOTO(status, check_hosts(hosts, seen), done);
    LPLB_TRY_GOTO(status, check_input(hosts, speed, input), done);
    LPLB_TRY_GOTO(status, check_split(hosts, input, plan, load), done);
    LPLB_TRY_GOTO(status, check_loads(hosts, plan, load), done);
    if ((int)plan->outcome < LPLB_OUTCOME_OPTIMAL || plan->outcome > LPLB_OUTCOME_NOT_CONVERGED)
        LPLB_FAIL_GOTO(status, done, LPLB_CHECK_FAILED, "%d is no outcome", (int)plan->outcome);
    if (plan->outcome == LPLB_OUTCOME_OPTIMAL)
        LPLB_TRY_GOTO(status, check_optimal(hosts, speed, input, plan, load), done);
done:
    lplb__free(load);
    lplb__free(seen);
    return status;
}
