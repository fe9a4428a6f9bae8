/* The router: which K experts each token goes to, with what weight, and the losses that keep the
 * choice even. N tokens, E experts, K choices. */
#ifndef LPLB_TRAIN_ROUTER_H
#define LPLB_TRAIN_ROUTER_H

#include "train/config.h"
#include "train/real.h"

/* What the forward leaves for the backward. All owned by the caller. */
typedef struct routing {
    real *logit;     /* [N][E] */
    real *score;     /* [N][E] softmax, or sigmoid of the logits */
    real *log_sum;   /* [N] log sum exp of the logits */
    real *gate;      /* [N][K] weight of each choice, 0 where dropped */
    int32_t *choice; /* [N][K] experts by falling selection score, before dropping */
    int32_t *kept;   /* [N][K] the same, -1 where the expert was over capacity */
    int64_t *count;  /* [E] choices per expert, before dropping */
    int32_t *order;  /* [N][K] scratch */
    int64_t dropped;
} routing;

/* Fills score, log_sum, gate, choice, kept, count, dropped from logit. bias [E] is added to the
 * scores for the selection only (NULL = none). Ties to the lower expert. */
void route_forward(const model_config *config, const real *bias, int64_t N, routing *r);

/* The balance losses' weight of each score: slope[s][E] = coeff * E * f_i of scope s (see
 * training: f_i = count_i / (tokens * K)), s = n / scope_tokens. */
typedef struct route_losses {
    const real *slope;    /* [scopes][E] or NULL */
    int64_t scope_tokens; /* tokens of a scope */
    real inverse_tokens;  /* 1 / tokens of the whole step */
} route_losses;

/* Sums over the N tokens, not divided by the number of tokens: balance and z loss. */
void route_loss(const model_config *config, const route_losses *losses, int64_t N, const routing *r,
                double *balance, double *z);

/* dlogit[N][E] overwritten, from dgate[N][K] and the losses. */
void route_backward(const model_config *config, const route_losses *losses, int64_t N,
                    const routing *r, const real *dgate, real *dlogit);

/* bias_i += rate * sign(mean count - count_i) (Wang et al., 2024); count over the whole step. */
void route_update_bias(real *bias, const int64_t *count, int32_t experts, double rate);

#endif
