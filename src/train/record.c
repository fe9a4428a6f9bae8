#include "train/record.h"

#include <string.h>

/* Tokens come as [layer][token] tapes and go out as [token][layer][K], rank after rank: the order
 * in which one rank alone would see the micro-batch. */
static lplb_status record(trainer *t, const batch *b, void *user) {
    recorder *r = user;
    const model *m = t->model;
    lplb__group *world = t->grid.world;
    int64_t K = m->config.topk, N = b->B * m->config.context, M = m->layout.moe_layers;
    int64_t row = M * K;
    for (int32_t l = 0; l < m->config.layers; l++) {
        int64_t moe = m->layout.layer[l].moe;
        for (int64_t i = 0; moe >= 0 && i < N * K; i++)
            r->mine[i / K * row + moe * K + i % K] = (int16_t)m->tape[l].route.choice[i];
    }
    LPLB_TRY(world->table->all_gather(world, r->mine, r->all, N * row * (int64_t)sizeof(int16_t)));
    int64_t tokens = N * world->size;
    r->seen += tokens;
    if (world->rank != 0 || r->tokens + tokens > r->most_tokens) return LPLB_OK;
    if (r->tokens + tokens > r->capacity) {
        int64_t capacity = 2 * (r->tokens + tokens);
        int16_t *grown = lplb__realloc(r->ids, (size_t)(capacity * row) * sizeof *grown);
        if (!grown)
            return LPLB_FAIL(LPLB_NO_MEMORY, "no memory to record %lld tokens",
                             (long long)capacity);
        r->ids = grown;
        r->capacity = capacity;
    }
    memcpy(r->ids + r->tokens * row, r->all, (size_t)(tokens * row) * sizeof *r->ids);
    r->tokens += tokens;
    return LPLB_OK;
}

lplb_status recorder_start(recorder *r, trainer *t, int64_t most_tokens) {
    const model *m = t->model;
    int64_t items = m->max_batch * m->config.context * m->layout.moe_layers * m->config.topk;
    *r = (recorder){.most_tokens = most_tokens > 0 ? most_tokens : INT64_MAX};
    LPLB_TRY(LPLB_CALLOC(r->mine, items));
    LPLB_TRY(LPLB_CALLOC(r->all, items * t->grid.world->size));
    t->after_forward = record;
    t->after_forward_user = r;
    return LPLB_OK;
}

static lplb_status write_trace(const recorder *r, const trainer *t, const char *path) {
    const model *m = t->model;
    int64_t T = m->config.context, sequences = r->tokens / T;
    int64_t *start = NULL;
    int32_t *layer_id = NULL;
    lplb_status status = LPLB_CALLOC(start, sequences + 1);
    if (status == LPLB_OK) status = LPLB_CALLOC(layer_id, m->layout.moe_layers);
    for (int64_t i = 0; i <= sequences && status == LPLB_OK; i++) start[i] = i * T;
    for (int32_t l = 0; l < m->config.layers && status == LPLB_OK; l++)
        if (m->layout.layer[l].moe >= 0) layer_id[m->layout.layer[l].moe] = l;
    lplb_trace trace = {.kind = LPLB_TRACE_TOPK,
                        .layers = m->layout.moe_layers,
                        .experts = m->config.experts,
                        .topk = m->config.topk,
                        .tokens = r->tokens,
                        .topk_ids = r->ids,
                        .sequences = sequences,
                        .sequence_start = start,
                        .layer_id = layer_id};
    if (status == LPLB_OK) status = lplb_trace_write(&trace, path);
    lplb__free(start);
    lplb__free(layer_id);
    return status;
}

lplb_status recorder_write(const recorder *r, const trainer *t, const char *path) {
    if (t->grid.world->rank != 0) return LPLB_OK;
    if (r->tokens == 0) return LPLB_FAIL(LPLB_INVALID, "no tokens were recorded for %s", path);
    return write_trace(r, t, path);
}

void recorder_finish(recorder *r, trainer *t) {
    t->after_forward = NULL;
    lplb__free(r->ids);
    lplb__free(r->mine);
    lplb__free(r->all);
    *r = (recorder){0};
}
