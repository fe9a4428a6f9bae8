/* Everything that shapes a model. Filled from a configuration file or flags by train_config.c. */
#ifndef LPLB_TRAIN_CONFIG_H
#define LPLB_TRAIN_CONFIG_H

#include <stdint.h>

#include "base/error.h"

typedef enum router_kind { ROUTER_SOFTMAX, ROUTER_SIGMOID } router_kind;
typedef enum aux_scope { AUX_NONE, AUX_SEQUENCE, AUX_BATCH, AUX_GLOBAL } aux_scope;
typedef enum drop_policy { DROP_PROBS, DROP_POSITION } drop_policy;

typedef struct model_config {
    int32_t layers;       /* L */
    int32_t width;        /* D */
    int32_t heads;        /* H; D / H even */
    int32_t kv_heads;     /* G divides H */
    int32_t vocab;        /* V */
    int32_t context;      /* T tokens of a sequence */
    int32_t experts;      /* E */
    int32_t topk;         /* K */
    int32_t expert_width; /* F, SwiGLU */
    int32_t shared_width; /* of the shared expert, 0 = none */
    int32_t dense_layers; /* the first layers have a dense feed-forward instead of experts */
    int32_t dense_width;  /* of those */
    int32_t tied;         /* nonzero: the head is the embedding */
    router_kind router;
    int32_t normalize_gates; /* nonzero: the K gates of a token add up to 1 */
    aux_scope aux;
    double aux_coeff, z_coeff; /* balance and z losses (0 = none) */
    double bias_rate;          /* loss-free balance: step of the selection bias, 0 = none */
    double capacity_factor;    /* 0 = dropless; else at most ceil(T*K/E * factor) a rank's expert */
    drop_policy drop;
    double rope_theta, norm_eps, init_std;
} model_config;

void model_config_default(model_config *config);
/* LPLB_INVALID with the field and what would fit. */
lplb_status model_config_check(const model_config *config);

/* One tensor of the replicated parameters. */
typedef struct param {
    char name[96]; /* as in safetensors files of common models */
    int64_t offset, rows, cols;
    int32_t decay; /* nonzero: weight decay applies (matrices) */
    float std;     /* of the initial normal distribution; < 0 = all ones */
} param;

/* Where the parameters lie: the replicated ones in one array, an expert in a block of its own. */
typedef struct param_layout {
    int32_t n_params, moe_layers;
    param *param;         /* [n_params] */
    int64_t items;        /* replicated numbers */
    int64_t expert_items; /* 3 * F * D: gate [F][D], up [F][D], down [D][F] */
    /* offsets into the replicated array; per layer */
    int64_t embedding, final_norm, head;
    struct layer_params {
        int64_t norm1, wq, wk, wv, wo, norm2;
        int64_t router;         /* [E][D], -1 in dense layers */
        int64_t gate, up, down; /* dense feed-forward or shared expert, -1 if none */
        int32_t ffn_width;      /* of those */
        int32_t moe;            /* index among the layers with experts, -1 if dense */
    } * layer;                  /* [L] */
} param_layout;

lplb_status param_layout_create(const model_config *config, param_layout *out);
void param_layout_destroy(param_layout *layout);

#endif
