/* The per-batch plan: how each expert's tokens split over the ranks that host a copy of it.
 *
 * Given integer counts w_e >= 0, the hosts H(e), fixed loads and rank speeds s_r, choose integers
 * x[e][r] >= 0 with sum over r in H(e) of x[e][r] = w_e that minimise max over r of load_r / s_r.
 * docs/math.md derives the duality certificate and the algorithms.
 *
 * A planner is made once for a placement and used every batch: lplb_plan_solve allocates nothing,
 * is deterministic (the same integers on every machine), and is safe to call from one thread at a
 * time per planner. */
#ifndef LPLB_PLAN_H
#define LPLB_PLAN_H

#include <lplb/status.h>
#include <stdint.h>

LPLB_BEGIN_DECLS

enum { LPLB_MAX_RANKS = 65536, LPLB_MAX_SPEED = 2147483647 };
/* Tokens of one problem, fixed ones included, must not exceed this. */
#define LPLB_MAX_TOKENS ((int64_t)1 << 62)

/* The ranks that host each expert, as compressed rows. */
typedef struct lplb_hosts {
    int32_t ranks;         /* G, 1..LPLB_MAX_RANKS */
    int32_t experts;       /* E, >= 0 */
    const int64_t *offset; /* [E+1], offset[0] = 0, increasing: every expert has a host */
    const int32_t *rank;   /* [offset[E]], in [0, G), distinct within an expert */
} lplb_hosts;

typedef enum lplb_solver {
    LPLB_SOLVER_EXACT = 0,     /* integral optimum with certificate */
    LPLB_SOLVER_IPM = 1,       /* LPLB's interior-point method, converged, rounded */
    LPLB_SOLVER_EVEN = 2,      /* as evenly as integers allow, remainder to lower ranks */
    LPLB_SOLVER_GREEDY = 3,    /* by falling tokens, each wholly to its least loaded host */
    LPLB_SOLVER_WATERFILL = 4, /* same order, each poured so that the lowest loads rise first */
    LPLB_SOLVER_BALANCE = 5    /* pairwise balancing from the even split, at most 64 sweeps */
} lplb_solver;

/* "exact", "ipm", "ipm:published", "even", "greedy", "waterfill", "balance". */
LPLB_API const char *lplb_solver_name(lplb_solver solver);

/* The interior-point method's options. Zero-initialised = converged defaults. */
typedef struct lplb_ipm_options {
    int32_t iterations; /* at most; 0 = 50 */
    double tolerance;   /* relative gap to stop at; 0 = 1e-9 */
    double step;        /* fraction of the way to the boundary in (0, 1); 0 = 0.999 */
    int32_t published;  /* nonzero: 5 iterations, float32, LPLB's acceptance rule */
} lplb_ipm_options;

typedef enum lplb_objective {
    LPLB_OBJECTIVE_TOKENS = 0, /* max load / speed */
    LPLB_OBJECTIVE_COST = 1,   /* max cost[r][load] from a monotone table per rank */
    LPLB_OBJECTIVE_ACTIVE = 2  /* max number of experts with tokens on a rank, then tokens */
} lplb_objective;

/* Options of a planner. Set struct_size = sizeof(lplb_plan_config) and zero the rest. Arrays are
 * copied. */
typedef struct lplb_plan_config {
    size_t struct_size;
    lplb_hosts hosts;
    const int64_t *speed; /* [G], 1..LPLB_MAX_SPEED, or NULL = all 1 */
    const int32_t *node;  /* [G], any ids, or NULL = one node; used with sources */
    lplb_solver solver;
    lplb_objective objective;
    const double *cost; /* [G][cost_entries] for LPLB_OBJECTIVE_COST: cost[r][n] = time of rank r
                           with n tokens, finite, non-decreasing; more tokens than
                           cost_entries - 1 do not fit on a rank */
    int64_t cost_entries;
    int64_t tile;       /* > 1: a rank's load counts whole tiles of each expert (grouped GEMM);
                           objective is then max over ranks of sum of ceil(x/tile)*tile over
                           speed, fixed tokens counting as one expert; still exact */
    int64_t activation; /* tokens that an expert with any tokens costs its rank on top (>= 0);
                           with it the problem is NP-hard and the plan is a heuristic */
    double tolerance;   /* 0 = always solve; >= 1: keep the even split when its max load/speed is
                           within tolerance times the mean */
    lplb_ipm_options ipm;
} lplb_plan_config;

/* One batch. */
typedef struct lplb_plan_input {
    const int64_t *tokens;  /* [E], >= 0 */
    const int64_t *fixed;   /* [G], >= 0, tokens that cannot move; NULL = none */
    const int64_t *sources; /* [G][E], tokens by source rank, summing to tokens[e] for every e with
                               sources; NULL = locality plays no part */
} lplb_plan_input;

typedef enum lplb_outcome {
    LPLB_OUTCOME_OPTIMAL = 0,          /* with a checked certificate */
    LPLB_OUTCOME_WITHIN_TOLERANCE = 1, /* the even split, good enough by config.tolerance */
    LPLB_OUTCOME_FEASIBLE = 2,         /* a valid split, no claim of optimality */
    LPLB_OUTCOME_NOT_CONVERGED = 3     /* ipm: iteration limit or rejection; split still valid */
} lplb_outcome;

LPLB_API const char *lplb_outcome_name(lplb_outcome outcome);

/* A fraction numerator / denominator, denominator > 0 (tokens per unit of speed). */
typedef struct lplb_fraction {
    int64_t numerator, denominator;
} lplb_fraction;

/* What lplb_plan_solve fills. The caller owns the arrays; loads and certificate may be NULL. */
typedef struct lplb_plan {
    int64_t *split;        /* [offset[E]] tokens per (expert, host), order of lplb_hosts */
    int64_t *loads;        /* [G] tokens per rank */
    uint64_t *certificate; /* [(G + 63) / 64] bit set of ranks S; with OPTIMAL (tokens objective) no
                              integer split has a smaller max load, because W(S) tokens must stay
                              inside S */
    lplb_outcome outcome;
    int64_t max_load; /* tokens on the fullest rank */
    double objective; /* max load / speed; cost or active count under those objectives */
    double bound;     /* proven lower bound on the integer objective; -inf if none was made */
    int32_t sweeps;   /* work done: balancing sweeps, IPM iterations */
    int32_t augmentations;
    int32_t restarts; /* Newton steps on the bound beyond the first guess */
    int32_t rejected; /* ipm:published: nonzero if its acceptance rule failed (50/50 split) */
    double ipm_gap;   /* ipm: fractional objective over fractional optimum bound, minus 1 */
} lplb_plan;

/* Reads "NAME[:option[=value],...]" into the solver options of config, e.g. "exact:locality=1",
 * "exact:tolerance=1.02", "ipm:published", "ipm:iterations=20,tolerance=1e-6,step=0.9". *locality
 * (may be NULL if it is not wanted: then the option is refused) says whether the caller should give
 * sources. LPLB_INVALID names the word that is not understood and what would be. */
LPLB_API lplb_status lplb_plan_parse_solver(const char *text, lplb_plan_config *config,
                                            int32_t *locality);

typedef struct lplb_planner lplb_planner;

/* LPLB_INVALID, LPLB_RANGE (message names the entry), LPLB_UNSUPPORTED for combinations that do not
 * exist (cost with speed, locality with ipm, ...), LPLB_NO_MEMORY. */
LPLB_API lplb_status lplb_planner_create(const lplb_plan_config *config, lplb_planner **out);
LPLB_API void lplb_planner_destroy(lplb_planner *planner); /* NULL is fine */

/* Solves one batch. LPLB_RANGE for negative tokens, LPLB_OVERFLOW for totals above
 * LPLB_MAX_TOKENS, LPLB_INVALID for sources that do not add up; the plan is then unspecified. */
LPLB_API lplb_status lplb_plan_solve(lplb_planner *planner, const lplb_plan_input *input,
                                     lplb_plan *plan);

/* The fractional optimum t* = max over rank sets S of W(S) / s(S) and its bottleneck: a smallest
 * maximising set, ties by lower ranks; empty when there are no tokens. Tokens objective only.
 * Exact in integers (128-bit inside). Slower than solving; meant for explanation. Allocates. */
typedef struct lplb_bound {
    lplb_fraction fractional;  /* t*; numerator 0 when there are no tokens */
    lplb_fraction integer;     /* integer optimum: least t with sum over S of floor(t*s_r) >= W(S)
                                  for every S */
    int64_t integer_bound;     /* most tokens a rank may hold at that t; with equal speeds the least
                                  possible max_load, max over S of ceil(W(S)/|S|) */
    int64_t bottleneck_tokens; /* W(S) */
    int32_t bottleneck_ranks;  /* |S| */
} lplb_bound;
LPLB_API lplb_status lplb_plan_bound(const lplb_hosts *hosts, const int64_t *speed,
                                     const lplb_plan_input *input, lplb_bound *bound,
                                     uint64_t *bottleneck /* [(G+63)/64] or NULL */);

/* Independent verification, sharing no code with the solvers: every split is non-negative and adds
 * up, loads and max_load are right, the bound is not above the objective; with outcome OPTIMAL the
 * certificate proves it for the tokens objective (plans of another objective are verified with
 * their outcome set to FEASIBLE). Allocates. Returns LPLB_OK or LPLB_CHECK_FAILED with the first
 * violation named; LPLB_INVALID, LPLB_RANGE or LPLB_OVERFLOW when the problem itself is wrong. */
LPLB_API lplb_status lplb_plan_check(const lplb_hosts *hosts, const int64_t *speed,
                                     const lplb_plan_input *input, const lplb_plan *plan);

LPLB_END_DECLS

#endif
