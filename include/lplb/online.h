/* Online replay: a trace as a live system would serve it, step by step, with the balancing runtime
 * deciding when experts move. */
#ifndef LPLB_ONLINE_H
#define LPLB_ONLINE_H

#include <lplb/monitor.h>
#include <lplb/replay.h>
#include <lplb/runtime.h>

LPLB_BEGIN_DECLS

/* Zero-initialise, set struct_size here and in replay. */
typedef struct lplb_online_config {
    size_t struct_size;
    /* ranks, redundant or slots, nodes, groups, batch_tokens, order, layers, seed, threads,
     * expert_bytes and progress as in lplb_replay. history: fraction of the steps that run but are
     * not measured (0 when < 0). policy: "PLACEMENT[:option=value,...][+SOLVER[:option=value,...]]"
     * with none      contiguous, no redundancy, never moved fixed     round robin over all slots,
     * never moved eplb      published EPLB, every placement adopted whole: every=N steps (1000)
     * from the mean load of the last window=N (as every), or adaptive manager   the rebalance
     * manager: every=N or adaptive (default), alpha=X or window=N, samples=N, moves=N a layer,
     * budget=N a rebalance, rate=X, cost=X, gain=X, keep=X, lag=N, interval=N, min=N, max=N,
     * algorithm=search|eplb|topology, effort=N, work=N
     * (-1 = no limit), forecast=N (a forecaster with blocks of N steps), season=N (of N blocks) 0
     * policies: eplb:every=500, eplb:every=1000, eplb:adaptive and manager, each +even and +exact.
     * All but none start from the same round-robin mapping. */
    lplb_replay_config replay;
    int32_t points;          /* of the curves; 0 = 100 */
    double link_bytes_per_s; /* with replay.expert_bytes and token_ns: the manager weighs gain */
    double token_ns;         /* against the cost of moving */
    int32_t keep_events;     /* nonzero: fill lplb_online_policy.event */
    double step_ns;          /* how long the steps are taken to be, for adopt_lag and for what they
                                would have waited; 0 = 10 ms */
    lplb_monitor *monitor; /* shows the first `manager` policy, or else the first `eplb`; or NULL */
} lplb_online_config;

typedef struct lplb_online_policy {
    char *policy, *placement_name, *solver_name;
    lplb_distribution imbalance; /* over measured (layer, step) pairs with load */
    double balancedness;         /* mean over the pairs of mean / max */
    int64_t moved_slots;         /* all moves made, a (layer, rank, expert) each */
    int64_t rearrangements;      /* placements adopted, whole or in part */
    lplb_manager_stats stats;    /* zero without a manager */
    double place_seconds;        /* deciding and placing, on one core */
    double wait_seconds;         /* of it what did not fit into adopt_lag steps of step_ns: with the
                                    worker of a live system steps would have waited so long */
    double *curve;        /* [points] mean imbalance of the steps of each point, 0 = no load */
    int64_t *curve_moves; /* [points] moves made until its end */
    int64_t events;
    lplb_event *event; /* [events] all of them, with keep_events */
} lplb_online_policy;

typedef struct lplb_online_result {
    int64_t steps, measured; /* the last `measured` steps are */
    int32_t layers, first_layer, experts, topk, ranks, slots, nodes;
    int64_t batch_tokens;
    int32_t points;
    int64_t *point_step; /* [points] first step of each */
    int32_t policies;
    lplb_online_policy *policy;
    double seconds;
} lplb_online_result;

LPLB_API lplb_status lplb_online(const lplb_trace *trace, const lplb_online_config *config,
                                 lplb_online_result **out);
LPLB_API void lplb_online_result_destroy(lplb_online_result *result);
/* One self-contained HTML file report.html in dir (made if missing): the table of policies,
 * imbalance over time, moves over time. */
LPLB_API lplb_status lplb_online_report_write(const lplb_online_result *result, const char *title,
                                              const char *dir);

LPLB_END_DECLS

#endif
