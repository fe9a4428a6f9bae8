#include "train/config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

void model_config_default(model_config *c) {
    *c = (model_config){.layers = 4,
                        .width = 128,
                        .heads = 4,
                        .kv_heads = 4,
                        .vocab = 256,
                        .context = 256,
                        .experts = 8,
                        .topk = 2,
                        .expert_width = 256,
                        .dense_width = 512,
                        .tied = 1,
                        .router = ROUTER_SOFTMAX,
                        .normalize_gates = 1,
                        .aux = AUX_GLOBAL,
                        .aux_coeff = 1e-2,
                        .z_coeff = 1e-3,
                        .drop = DROP_PROBS,
                        .rope_theta = 10000,
                        .norm_eps = 1e-5,
                        .init_std = 0.02};
}

static lplb_status check_positive(const char *field, int64_t value, int64_t most) {
    if (value >= 1 && value <= most) return LPLB_OK;
    return LPLB_FAIL(LPLB_INVALID, "model.%s is %lld, must be from 1 to %lld", field,
                     (long long)value, (long long)most);
}

lplb_status model_config_check(const model_config *c) {
    LPLB_TRY(check_positive("layers", c->layers, 1024));
    LPLB_TRY(check_positive("width", c->width, 65536));
    LPLB_TRY(check_positive("heads", c->heads, c->width));
    LPLB_TRY(check_positive("kv_heads", c->kv_heads, c->heads));
    LPLB_TRY(check_positive("vocab", c->vocab, 1 << 24));
    LPLB_TRY(check_positive("context", c->context, 1 << 20));
    LPLB_TRY(check_positive("experts", c->experts, 32767));
    LPLB_TRY(check_positive("topk", c->topk, c->experts));
    LPLB_TRY(check_positive("expert_width", c->expert_width, 1 << 20));
    if (c->width % c->heads || c->width / c->heads % 2 || c->width / c->heads > 512)
        return LPLB_FAIL(LPLB_INVALID,
                         "model.width %d over model.heads %d must be an even head width of at most "
                         "512",
                         c->width, c->heads);
    if (c->heads % c->kv_heads)
        return LPLB_FAIL(LPLB_INVALID, "model.kv_heads %d must divide model.heads %d", c->kv_heads,
                         c->heads);
    if (c->dense_layers < 0 || c->dense_layers >= c->layers)
        return LPLB_FAIL(
            LPLB_INVALID,
            "model.dense_layers is %d; at least one of the %d layers must have experts",
            c->dense_layers, c->layers);
    if (c->dense_layers > 0) LPLB_TRY(check_positive("dense_width", c->dense_width, 1 << 20));
    if (c->shared_width < 0)
        return LPLB_FAIL(LPLB_INVALID, "model.shared_width is %d, 0 for none", c->shared_width);
    if (!(c->aux_coeff >= 0) || !(c->z_coeff >= 0) || !(c->bias_rate >= 0) ||
        !(c->capacity_factor >= 0))
        return LPLB_FAIL(LPLB_INVALID, "the router's coefficients cannot be negative");
    return LPLB_OK;
}

/* ---- parameters ---- */

static int64_t add(param_layout *p, const char *name, int layer, int64_t rows, int64_t cols,
                   double std) {
    param *q = &p->param[p->n_params++];
    if (layer >= 0) snprintf(q->name, sizeof q->name, "model.layers.%d.%s.weight", layer, name);
    else snprintf(q->name, sizeof q->name, "%s.weight", name);
    q->offset = p->items;
    q->rows = rows;
    q->cols = cols;
    q->std = (float)std;
    q->decay = std >= 0;
    p->items += (rows * cols + 15) / 16 * 16; /* 64-byte rows of float */
    return q->offset;
}

static void add_ffn(param_layout *p, const model_config *c, int l, const char *prefix,
                    int32_t width, double out_std) {
    char name[48];
    struct layer_params *q = &p->layer[l];
    q->ffn_width = width;
    snprintf(name, sizeof name, "%s.gate_proj", prefix);
    q->gate = add(p, name, l, width, c->width, c->init_std);
    snprintf(name, sizeof name, "%s.up_proj", prefix);
    q->up = add(p, name, l, width, c->width, c->init_std);
    snprintf(name, sizeof name, "%s.down_proj", prefix);
    q->down = add(p, name, l, c->width, width, out_std);
}

lplb_status param_layout_create(const model_config *c, param_layout *p) {
    *p = (param_layout){0};
    LPLB_TRY(LPLB_CALLOC(p->param, 3 + 10 * (int64_t)c->layers));
    LPLB_TRY(LPLB_CALLOC(p->layer, c->layers));
    int64_t D = c->width, d = D / c->heads;
    /* Projections into the residual stream start smaller, as in GPT-2: 1 / sqrt(2 L). */
    double out_std = c->init_std / sqrt(2.0 * c->layers);
    p->expert_items = 3 * (int64_t)c->expert_width * D;
    p->embedding = add(p, "model.embed_tokens", -1, c->vocab, D, c->init_std);
    for (int l = 0; l < c->layers; l++) {
        struct layer_params *q = &p->layer[l];
        q->router = q->gate = q->up = q->down = -1;
        q->norm1 = add(p, "input_layernorm", l, 1, D, -1);
        q->wq = add(p, "self_attn.q_proj", l, D, D, c->init_std);
        q->wk = add(p, "self_attn.k_proj", l, c->kv_heads * d, D, c->init_std);
        q->wv = add(p, "self_attn.v_proj", l, c->kv_heads * d, D, c->init_std);
        q->wo = add(p, "self_attn.o_proj", l, D, D, out_std);
        q->norm2 = add(p, "post_attention_layernorm", l, 1, D, -1);
        q->moe = l < c->dense_layers ? -1 : p->moe_layers++;
        if (q->moe < 0) {
            add_ffn(p, c, l, "mlp", c->dense_width, out_std);
            continue;
        }
        q->router = add(p, "mlp.gate", l, c->experts, D, c->init_std);
        if (c->shared_width) add_ffn(p, c, l, "mlp.shared_expert", c->shared_width, out_std);
    }
    p->final_norm = add(p, "model.norm", -1, 1, D, -1);
    p->head = c->tied ? p->embedding : add(p, "lm_head", -1, c->vocab, D, c->init_std);
    return LPLB_OK;
}

void param_layout_destroy(param_layout *p) {
    lplb__free(p->param);
    lplb__free(p->layer);
    *p = (param_layout){0};
}
