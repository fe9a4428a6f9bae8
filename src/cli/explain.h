/* What lplb explain says about one batch of one layer, whether it came from a problem or a trace.
 */
#ifndef LPLB_CLI_EXPLAIN_H
#define LPLB_CLI_EXPLAIN_H

#include "cli/cli.h"

typedef struct explanation {
    int32_t ranks;
    int32_t layer;                   /* -1 for a problem */
    int64_t batch;                   /* in the whole trace */
    int64_t first_batch, last_batch; /* measured ones */
    const char *before_name, *after_name;
    int64_t *before, *after; /* [ranks] tokens */
    const int64_t *speed;    /* [ranks] or NULL = all 1 */
    int64_t tokens;
    double mean;         /* tokens per unit of speed */
    double lower_bound;  /* the same: no split can do better */
    bool limited;        /* lower_bound is above the mean, so there is a bottleneck */
    bool *in_bottleneck; /* [ranks] */
    int32_t n_experts;   /* those that live only inside the bottleneck and have tokens */
    int32_t *expert;
    int64_t *expert_tokens;
    bool has_copy; /* one more copy that lowers the bound */
    int32_t copy_expert, copy_rank;
    double copy_before, copy_after; /* lower bound / mean */
} explanation;

void explanation_init(explanation *x, int32_t ranks, int32_t experts);
/* Keeps the experts in falling order of tokens. */
void explanation_add_expert(explanation *x, int32_t expert, int64_t tokens);
void explanation_free(explanation *x);

/* Prints it; analysis and result NULL for a problem. Returns an exit code. */
int explanation_show(const char *name, const explanation *x, const lplb_analysis *analysis,
                     const lplb_replay_result *result, bool json);

#endif
