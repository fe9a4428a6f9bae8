/* The decoder-only MoE language model: forward and backward of one micro-batch. */
#ifndef LPLB_TRAIN_MODEL_H
#define LPLB_TRAIN_MODEL_H

#include "train/experts.h"
#include "train/router.h"

/* What one layer keeps from forward to backward. N = B*T tokens. */
typedef struct layer_tape {
    real *in;            /* [N][D] residual stream before the layer */
    kept *norm1;         /* [N][D] */
    real *q, *k, *v;     /* [N][H*d], [N][G*d], after rotation */
    real *log_sum;       /* [B][H][T] of the attention scores */
    kept *mixed;         /* [N][D] attention output before wo */
    real *middle;        /* [N][D] residual stream between the halves */
    kept *norm2;         /* [N][D] */
    real *rstd1, *rstd2; /* [N] of the norms */
    kept *gate, *up;     /* [N][ffn_width] of the dense or shared feed-forward */
    routing route;       /* MoE layers */
    expert_tape experts;
} layer_tape;

typedef struct batch {
    int64_t B;             /* sequences of config.context tokens */
    const int32_t *token;  /* [B][T] */
    const int32_t *target; /* [B][T] next token, -1 = not counted (end of document, padding) */
    const int32_t *first;  /* [B][T] first position of the token's document in its sequence */
    double tokens;         /* targets >= 0 of the whole step, over all ranks and micro-batches */
    double routed;         /* tokens fed in the whole step, likewise */
} batch;

typedef struct losses {
    double cross_entropy; /* sum over this batch's counted tokens */
    double balance, z;    /* sums over this batch's tokens and layers, times their coefficients */
    int64_t dropped;      /* choices over capacity */
} losses;

typedef struct model {
    model_config config;
    param_layout layout;
    const ops *ops;
    lplb__group *group; /* expert-parallel ranks */
    lplb__group *world; /* all ranks: whom the global balance loss counts */
    experts *experts;
    real *param, *grad;  /* [layout.items] */
    kept *weight;        /* [layout.items] param for products; param itself unless ops.rounds */
    real *bias;          /* [moe_layers][E] of the selection; not trained by gradients */
    int64_t *step_count; /* [moe_layers][E] choices of this step, of this rank */
    int64_t max_batch;   /* B */
    layer_tape *tape;    /* [L] */
    real *final, *final_rstd; /* [N][D], [N] */
    kept *final_norm;         /* [N][D] */
    real *logit;              /* [N][V] */
    int32_t *position;        /* [N] position inside the document */
    real *rotation;           /* [T][D/H] cosines and sines of every position */
    real *slope;              /* [moe_layers][scopes][E] of the balance loss */
    int64_t *scope_count;     /* [B][E] */
    /* scratch of the backward */
    real *dstream, *dnorm, *dmixed, *dq, *dk, *dv, *scores; /* [2][ATTENTION_ROWS][T] */
    int32_t *order;                                         /* [N][K] of the router */
    kept *hidden, *dgate, *dup;                             /* [N][widest feed-forward] */
    real *dhidden; /* [2][N][widest] where kept numbers are rounded, else hidden */
    kept *operand; /* [N][widest of all] where they are rounded */
    real *dlogit, *dchoice;
    /* Told in the backward that every gradient of a layer is final as far as this rank goes:
     * config.layers (head and final norm; a tied head waits for the embedding), config.layers - 1,
     * ..., 0, -1 (the embedding). NULL = nobody listens. */
    lplb_status (*layer_done)(void *user, int32_t layer);
    void *layer_done_user;
    lplb__arena arena;
} model;

typedef struct model_options {
    int64_t max_batch; /* B of a micro-batch at most */
    int32_t redundant; /* expert slots a rank beyond E / ranks */
    lplb_solver solver;
    bool locality;
    lplb__group *world; /* NULL = the expert-parallel ranks are all */
    kept_kind kept;     /* what products read */
    uint64_t seed;      /* of the initial weights, which do not depend on the number of ranks */
} model_options;

lplb_status model_create(const model_config *config, const model_options *options,
                         lplb__group *group, model **out);
void model_destroy(model *m);

/* Fresh weights by seed. */
void model_initialise(model *m, uint64_t seed);
/* After weights were set from outside: products read them from here on. */
void model_keep_weights(model *m);

void model_zero_gradients(model *m);
/* Loss sums of this rank's tokens; leaves d logits and the tapes for model_backward. */
lplb_status model_forward(model *m, const batch *b, losses *out);
/* Adds to the gradients of this rank; copies of experts and replicated parameters are not yet
 * summed over ranks. Call once after each model_forward, with the same batch. */
lplb_status model_backward(model *m, const batch *b);

#endif
