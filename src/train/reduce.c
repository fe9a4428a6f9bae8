#include "train/reduce.h"

#include <string.h>

static const lplb__element real_element = sizeof(real) == 8 ? ELEMENT_DOUBLE : ELEMENT_FLOAT;

/* ---- life ---- */

static lplb_status allocate(reducer *r) {
    const model *m = r->model;
    int32_t layers = m->layout.moe_layers, ranks = m->group->size;
    LPLB_TRY(LPLB_CALLOC(r->bucket, m->layout.items / r->bucket_items + 1));
    LPLB_TRY(LPLB_CALLOC(r->cursor, ranks));
    LPLB_TRY(LPLB_CALLOC(r->sum, layers));
    for (int32_t l = 0; l < layers; l++) {
        LPLB_TRY(LPLB_CALLOC(r->sum[l].send_rows, ranks));
        LPLB_TRY(LPLB_CALLOC(r->sum[l].recv_rows, ranks));
    }
    return LPLB_OK;
}

static lplb_status make_groups(reducer *r, const grid *g) {
    LPLB_TRY(g->expert->table->split(g->expert, 0, &r->there));
    LPLB_TRY(g->expert->table->split(g->expert, 0, &r->back));
    LPLB_TRY(g->replica->table->split(g->replica, 0, &r->replica));
    return g->world->table->split(g->world, 0, &r->world);
}

lplb_status reducer_create(model *m, const grid *g, int64_t bucket_items, bool overlap,
                           reducer **out) {
    reducer *r;
    *out = NULL;
    if (bucket_items < 1)
        return LPLB_FAIL(LPLB_INVALID, "buckets of %lld gradients", (long long)bucket_items);
    LPLB_TRY(LPLB_CALLOC(r, 1));
    r->model = m;
    r->bucket_items = bucket_items;
    r->overlap = overlap;
    lplb_status status = allocate(r);
    if (status == LPLB_OK) status = make_groups(r, g);
    if (status != LPLB_OK) {
        reducer_destroy(r);
        return status;
    }
    *out = r;
    return LPLB_OK;
}

void reducer_destroy(reducer *r) {
    if (!r) return;
    for (int32_t l = 0; r->sum && l < r->model->layout.moe_layers; l++) {
        lplb__free(r->sum[l].send_rows);
        lplb__free(r->sum[l].recv_rows);
        buffer_free(&r->sum[l].send);
        buffer_free(&r->sum[l].recv);
    }
    lplb__group *groups[] = {r->there, r->back, r->replica, r->world};
    for (int i = 0; i < 4; i++)
        if (groups[i]) groups[i]->table->destroy(groups[i]);
    lplb__free(r->sum);
    lplb__free(r->cursor);
    lplb__free(r->bucket);
    lplb__free(r);
}

/* ---- copies of experts ---- */

static int32_t rank_of_slot(const lplb_placement *p, int32_t slot) {
    int32_t r = 0;
    while (slot >= p->rank_offset[r + 1]) r++;
    return r;
}

/* Visits every slot of a layer that holds a further copy of an expert, by (expert, slot): the order
 * in which rows travel, known to all ranks. */
typedef struct copy_walk {
    const lplb_placement *placement;
    const int32_t *expert_of; /* [slots] */
    int32_t expert, slot;     /* the copy */
    int32_t first;            /* the expert's lowest slot */
} copy_walk;

static bool next_copy(copy_walk *w) {
    const lplb_placement *p = w->placement;
    for (; w->expert < p->experts; w->expert++, w->slot = w->first = -1)
        while (++w->slot < p->slots) {
            if (w->expert_of[w->slot] != w->expert) continue;
            if (w->first >= 0) return true;
            w->first = w->slot;
        }
    return false;
}

static copy_walk start_walk(const reducer *r, int32_t layer) {
    const lplb_placement *p = r->model->experts->placement;
    const int32_t *map = p->physical_to_logical + (int64_t)layer * p->slots;
    return (copy_walk){.placement = p, .expert_of = map, .slot = -1, .first = -1};
}

static real *local_gradient(const experts *x, int32_t layer, int32_t slot) {
    return x->gradient + ((int64_t)layer * x->local_slots + slot - x->first_slot) * x->expert_items;
}

/* Row starts of each peer in a buffer laid out by peer; returns the number of rows. */
static int64_t set_cursors(reducer *r, const int64_t *rows) {
    int64_t row = 0;
    for (int p = 0; p < r->there->size; p++) {
        r->cursor[p] = row;
        row += rows[p];
    }
    return row;
}

/* False if no expert of the layer has a second slot on any rank: all ranks see the same. */
static bool count_rows(reducer *r, int32_t layer) {
    expert_sum *s = &r->sum[layer];
    int me = r->there->rank;
    bool any = false;
    memset(s->send_rows, 0, sizeof(int64_t) * (size_t)r->there->size);
    memset(s->recv_rows, 0, sizeof(int64_t) * (size_t)r->there->size);
    for (copy_walk w = start_walk(r, layer); next_copy(&w); any = true) {
        int32_t owner = rank_of_slot(w.placement, w.first);
        int32_t holder = rank_of_slot(w.placement, w.slot);
        if (holder == me) s->send_rows[owner]++;
        if (owner == me) s->recv_rows[holder]++;
    }
    return any;
}

/* Rows of my copies, laid out by their owner: packed from or unpacked to the gradients. */
static void move_copies(reducer *r, int32_t layer, bool pack) {
    const experts *x = r->model->experts;
    size_t bytes = sizeof(real) * (size_t)x->expert_items;
    set_cursors(r, r->sum[layer].send_rows);
    for (copy_walk w = start_walk(r, layer); next_copy(&w);) {
        if (rank_of_slot(w.placement, w.slot) != r->there->rank) continue;
        int64_t at = r->cursor[rank_of_slot(w.placement, w.first)]++;
        real *row = r->sum[layer].send.data + at * x->expert_items;
        real *gradient = local_gradient(x, layer, w.slot);
        if (pack) memcpy(row, gradient, bytes);
        else memcpy(gradient, row, bytes);
    }
}

/* The owner of an expert adds the copies' gradients to its own in slot order; the second pass
 * writes the sum over the rows that go back. */
static void sum_at_owner(reducer *r, int32_t layer, bool second_pass) {
    const experts *x = r->model->experts;
    set_cursors(r, r->sum[layer].recv_rows);
    for (copy_walk w = start_walk(r, layer); next_copy(&w);) {
        if (rank_of_slot(w.placement, w.first) != r->there->rank) continue;
        int64_t at = r->cursor[rank_of_slot(w.placement, w.slot)]++;
        real *row = r->sum[layer].recv.data + at * x->expert_items;
        real *sum = local_gradient(x, layer, w.first);
        if (second_pass) memcpy(row, sum, sizeof(real) * (size_t)x->expert_items);
        else
            for (int64_t i = 0; i < x->expert_items; i++) sum[i] += row[i];
    }
}

/* ---- the three legs of a layer's experts ---- */

static lplb_status set_out(reducer *r, int32_t layer) {
    const experts *x = r->model->experts;
    expert_sum *s = &r->sum[layer];
    s->request = NULL;
    r->n_there++;
    if (!count_rows(r, layer)) return LPLB_OK;
    LPLB_TRY(buffer_need(&s->send, set_cursors(r, s->send_rows) * x->expert_items));
    LPLB_TRY(buffer_need(&s->recv, set_cursors(r, s->recv_rows) * x->expert_items));
    move_copies(r, layer, true);
    return r->there->table->start_all_to_all_rows(
        r->there, s->send.data, s->send_rows, s->recv.data, s->recv_rows,
        x->expert_items * (int64_t)sizeof(real), &s->request);
}

static lplb_status turn_back(reducer *r, int32_t layer) {
    const experts *x = r->model->experts;
    expert_sum *s = &r->sum[layer];
    s->request = NULL;
    r->n_back++;
    if (!count_rows(r, layer)) return LPLB_OK;
    sum_at_owner(r, layer, false);
    sum_at_owner(r, layer, true);
    return r->back->table->start_all_to_all_rows(
        r->back, s->recv.data, s->recv_rows, s->send.data, s->send_rows,
        x->expert_items * (int64_t)sizeof(real), &s->request);
}

static lplb_status sum_replicas(reducer *r, int32_t layer) {
    const experts *x = r->model->experts;
    if (count_rows(r, layer)) move_copies(r, layer, false);
    r->n_replica++;
    return r->replica->table->start_all_reduce_sum(
        r->replica, local_gradient(x, layer, x->first_slot), x->local_slots * x->expert_items,
        real_element, &r->sum[layer].request);
}

/* The request is over: waited for, or found to be so. */
static lplb_status is_over(lplb__group *group, lplb__request *request, bool wait, int *over) {
    *over = 1;
    if (!wait) LPLB_TRY(group->table->progress(group, request, over));
    return *over ? group->table->wait(group, request) : LPLB_OK;
}

/* Moves everything under way on, in the order in which it set out. */
static lplb_status advance(reducer *r, bool wait) {
    int32_t last = r->model->layout.moe_layers - 1;
    int over = 1;
    while (r->n_back < r->n_there) {
        LPLB_TRY(is_over(r->there, r->sum[last - r->n_back].request, wait, &over));
        if (!over) break;
        LPLB_TRY(turn_back(r, last - r->n_back));
    }
    while (r->n_replica < r->n_back) {
        LPLB_TRY(is_over(r->back, r->sum[last - r->n_replica].request, wait, &over));
        if (!over) break;
        LPLB_TRY(sum_replicas(r, last - r->n_replica));
    }
    while (r->buckets_done < r->buckets) {
        LPLB_TRY(is_over(r->world, r->bucket[r->buckets_done], wait, &over));
        if (!over) break;
        r->buckets_done++;
    }
    return LPLB_OK;
}

/* ---- buckets of replicated parameters ---- */

static lplb_status start_bucket(reducer *r, int64_t items) {
    r->low -= items;
    return r->world->table->start_all_reduce_sum(r->world, r->model->grad + r->low, items,
                                                 real_element, &r->bucket[r->buckets++]);
}

/* Gradients from item `final` on are final. */
static lplb_status start_buckets(reducer *r, int64_t final) {
    while (r->low - final >= r->bucket_items) LPLB_TRY(start_bucket(r, r->bucket_items));
    return final == 0 && r->low > 0 ? start_bucket(r, r->low) : LPLB_OK;
}

/* The layout ends with the final norm and, untied, the head; before them the layers, each beginning
 * with its first norm; before those the embedding. */
static int64_t first_item(const param_layout *p, int32_t layer, int32_t layers) {
    return layer == layers ? p->final_norm : layer < 0 ? 0 : p->layer[layer].norm1;
}

static lplb_status start_layer(reducer *r, int32_t layer) {
    const model *m = r->model;
    r->started++;
    LPLB_TRY(start_buckets(r, first_item(&m->layout, layer, m->config.layers)));
    if (layer >= 0 && layer < m->config.layers && m->layout.layer[layer].moe >= 0)
        LPLB_TRY(set_out(r, m->layout.layer[layer].moe));
    return advance(r, false);
}

static lplb_status layer_done(void *user, int32_t layer) { return start_layer(user, layer); }

void reducer_begin(reducer *r) {
    r->n_there = r->n_back = r->n_replica = r->started = 0;
    r->buckets = r->buckets_done = 0;
    r->low = r->model->layout.items;
    r->under_way = true;
    r->model->layer_done = r->overlap ? layer_done : NULL;
    r->model->layer_done_user = r;
}

lplb_status reducer_finish(reducer *r) {
    int32_t layers = r->model->config.layers;
    r->model->layer_done = NULL;
    while (r->started < layers + 2) LPLB_TRY(start_layer(r, layers - r->started));
    LPLB_TRY(advance(r, true));
    for (int32_t l = r->model->layout.moe_layers - 1; l >= 0; l--)
        LPLB_TRY(r->replica->table->wait(r->replica, r->sum[l].request));
    r->under_way = false;
    return LPLB_OK;
}
