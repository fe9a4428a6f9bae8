#include "train/mover.h"

#include <string.h>

/* ---- life ---- */

static lplb_status allocate(mover *v) {
    const experts *x = v->model->experts;
    LPLB_TRY(LPLB_CALLOC(v->send_rows, x->group->size));
    LPLB_TRY(LPLB_CALLOC(v->recv_rows, x->group->size));
    LPLB_TRY(LPLB_CALLOC(v->cursor, x->group->size));
    return LPLB_CALLOC(v->arriving, x->local_slots);
}

lplb_status mover_create(model *m, optimizer *o, lplb__group *expert_ranks, mover **out) {
    mover *v;
    *out = NULL;
    LPLB_TRY(LPLB_CALLOC(v, 1));
    v->model = m;
    v->optimizer = o;
    v->layer = -1;
    lplb_status status = allocate(v);
    if (status == LPLB_OK) status = expert_ranks->table->split(expert_ranks, 0, &v->weights);
    if (status == LPLB_OK) status = expert_ranks->table->split(expert_ranks, 0, &v->gradients);
    if (status != LPLB_OK) {
        mover_destroy(v);
        return status;
    }
    *out = v;
    return LPLB_OK;
}

int64_t mover_items(const mover *v) {
    return v->send.most + v->staged.most + v->send_gradient.most + v->recv_gradient.most;
}

void mover_destroy(mover *v) {
    if (!v) return;
    if (v->weights) v->weights->table->destroy(v->weights);
    if (v->gradients) v->gradients->table->destroy(v->gradients);
    expert_maps_destroy(&v->maps);
    buffer *buffers[] = {&v->send, &v->staged, &v->send_gradient, &v->recv_gradient};
    for (int i = 0; i < 4; i++) buffer_free(buffers[i]);
    lplb__free(v->send_rows);
    lplb__free(v->recv_rows);
    lplb__free(v->cursor);
    lplb__free(v->outgoing);
    lplb__free(v->arriving);
    lplb__free(v);
}

/* ---- who sends what ---- */

static const int32_t *present_row(const mover *v) {
    const lplb_placement *p = v->model->experts->placement;
    return p->physical_to_logical + (int64_t)v->layer * p->slots;
}

/* Lowest slot of this rank that holds the expert now, or -1. */
static int32_t own_slot(const mover *v, int32_t expert) {
    const experts *x = v->model->experts;
    const int32_t *row = present_row(v);
    for (int32_t p = x->first_slot; p < x->first_slot + x->local_slots; p++)
        if (row[p] == expert) return p;
    return -1;
}

static int64_t sum_rows(const int64_t *rows, int ranks) {
    int64_t sum = 0;
    for (int r = 0; r < ranks; r++) sum += rows[r];
    return sum;
}

/* Moves whose source is another rank travel in the order of the list, which both ends know. */
static lplb_status count_rows(mover *v, const lplb_move *moves, int64_t n) {
    int ranks = v->weights->size, me = v->weights->rank;
    memset(v->send_rows, 0, sizeof(int64_t) * (size_t)ranks);
    memset(v->recv_rows, 0, sizeof(int64_t) * (size_t)ranks);
    for (int64_t i = 0; i < n; i++) {
        const lplb_move *move = &moves[i];
        if (move->source_rank < 0)
            return LPLB_FAIL(LPLB_UNSUPPORTED, "expert %d of layer %d is on no rank", move->expert,
                             v->layer);
        if (move->source_rank == me && move->rank != me) v->send_rows[move->rank]++;
        if (move->rank == me && move->source_rank != me) v->recv_rows[move->source_rank]++;
    }
    return LPLB_OK;
}

static void set_cursors(mover *v, const int64_t *rows) {
    int64_t row = 0;
    for (int r = 0; r < v->weights->size; r++) {
        v->cursor[r] = row;
        row += rows[r];
    }
}

static void list_outgoing(mover *v, const lplb_move *moves, int64_t n) {
    int me = v->weights->rank;
    set_cursors(v, v->send_rows);
    for (int64_t i = 0; i < n; i++)
        if (moves[i].source_rank == me && moves[i].rank != me)
            v->outgoing[v->cursor[moves[i].rank]++] = own_slot(v, moves[i].expert);
}

static int64_t staged_row(const mover *v, int32_t expert) {
    for (int32_t i = 0; i < v->arrivals; i++)
        if (v->arriving[i].expert == expert) return v->arriving[i].row;
    return -1;
}

static void list_arrivals(mover *v, const lplb_move *moves, int64_t n) {
    int me = v->weights->rank;
    int64_t next = sum_rows(v->recv_rows, v->weights->size);
    set_cursors(v, v->recv_rows);
    v->arrivals = 0;
    for (int64_t i = 0; i < n; i++) {
        const lplb_move *move = &moves[i];
        if (move->rank != me) continue;
        arrival a = {.slot = move->slot, .expert = move->expert};
        if (move->source_rank != me) a.row = v->cursor[move->source_rank]++;
        else if ((a.row = staged_row(v, a.expert)) < 0) a.row = next++, a.local = true;
        v->arriving[v->arrivals++] = a;
    }
}

/* ---- staging ---- */

/* Room for everything, and the layer's maps after the switch, so that nothing can fail then. The
 * new mapping is the present one with the moves made: no slot becomes empty. */
static lplb_status prepare(mover *v, const lplb_move *moves, int64_t n) {
    experts *x = v->model->experts;
    lplb_placement *after;
    LPLB_TRY(count_rows(v, moves, n));
    int64_t sent = sum_rows(v->send_rows, x->group->size), items = x->expert_items;
    int64_t received = sum_rows(v->recv_rows, x->group->size);
    if (sent > v->outgoing_capacity) {
        lplb__free(v->outgoing);
        v->outgoing_capacity = 0;
        LPLB_TRY(LPLB_CALLOC(v->outgoing, sent));
        v->outgoing_capacity = sent;
    }
    list_outgoing(v, moves, n);
    list_arrivals(v, moves, n);
    LPLB_TRY(buffer_need(&v->send, 3 * sent * items));
    LPLB_TRY(buffer_need(&v->send_gradient, sent * items));
    LPLB_TRY(buffer_need(&v->staged, 3 * v->arrivals * items));
    LPLB_TRY(buffer_need(&v->recv_gradient, received * items));
    LPLB_TRY(lplb_placement_copy(x->placement, &after));
    for (int64_t i = 0; i < n; i++)
        after->physical_to_logical[(int64_t)v->layer * after->slots + moves[i].slot] =
            moves[i].expert;
    lplb_status status = expert_maps_create(x, after, v->layer, &v->maps);
    lplb_placement_destroy(after);
    return status;
}

/* The three states of a slot, one after the other, to or from a row of the staging area. */
static void copy_slot(mover *v, int32_t slot, real *row, bool to_row) {
    const experts *x = v->model->experts;
    int64_t items = x->expert_items;
    int64_t at = ((int64_t)v->layer * x->local_slots + slot - x->first_slot) * items;
    real *states[3] = {x->weight + at, v->optimizer->expert_m1 + at, v->optimizer->expert_m2 + at};
    for (int i = 0; i < 3; i++) {
        if (to_row) memcpy(row + i * items, states[i], sizeof(real) * (size_t)items);
        else memcpy(states[i], row + i * items, sizeof(real) * (size_t)items);
    }
}

lplb_status mover_stage(mover *v, int32_t layer, const lplb_move *moves, int64_t n) {
    const experts *x = v->model->experts;
    int64_t row = 3 * x->expert_items;
    v->layer = layer;
    lplb_status status = lplb__group_agree(v->weights, prepare(v, moves, n), "staging experts");
    if (status != LPLB_OK) return status;
    int64_t sent = sum_rows(v->send_rows, x->group->size);
    for (int64_t i = 0; i < sent; i++) copy_slot(v, v->outgoing[i], v->send.data + i * row, true);
    v->moved_bytes += sent * row * (int64_t)sizeof(real);
    v->travelling = true;
    return v->weights->table->start_all_to_all_rows(
        v->weights, v->send.data, v->send_rows, v->staged.data, v->recv_rows,
        row * (int64_t)sizeof(real), &v->weight_request);
}

/* ---- the step in between ---- */

lplb_status mover_follow(mover *v) {
    const experts *x = v->model->experts;
    int64_t items = x->expert_items, sent = sum_rows(v->send_rows, x->group->size);
    if (v->layer < 0) return LPLB_OK;
    for (int64_t i = 0; i < sent; i++) {
        int64_t slot = (int64_t)v->layer * x->local_slots + v->outgoing[i] - x->first_slot;
        memcpy(v->send_gradient.data + i * items, x->gradient + slot * items,
               sizeof(real) * (size_t)items);
    }
    v->moved_bytes += sent * items * (int64_t)sizeof(real);
    v->following = true;
    return v->gradients->table->start_all_to_all_rows(
        v->gradients, v->send_gradient.data, v->send_rows, v->recv_gradient.data, v->recv_rows,
        items * (int64_t)sizeof(real), &v->gradient_request);
}

lplb_status mover_staged(mover *v) {
    if (!v->travelling) return LPLB_OK;
    LPLB_TRY(v->weights->table->wait(v->weights, v->weight_request));
    v->travelling = false;
    return LPLB_OK;
}

static lplb_status gradients_arrived(mover *v) {
    if (!v->following) return LPLB_OK;
    LPLB_TRY(v->gradients->table->wait(v->gradients, v->gradient_request));
    v->following = false;
    return LPLB_OK;
}

lplb_status mover_update(mover *v, int64_t step, double scale) {
    const experts *x = v->model->experts;
    int64_t items = x->expert_items;
    if (v->layer < 0) return LPLB_OK;
    LPLB_TRY(mover_staged(v));
    LPLB_TRY(gradients_arrived(v));
    int64_t received = sum_rows(v->recv_rows, x->group->size);
    for (int64_t i = 0; i < received; i++) {
        real *row = v->staged.data + i * 3 * items;
        optimizer_update_rows(v->optimizer, v->model->ops, step, scale, row,
                              v->recv_gradient.data + i * items, row + items, row + 2 * items,
                              items);
    }
    return LPLB_OK;
}

/* ---- the switch ---- */

void mover_commit(mover *v, const int32_t *physical_to_logical) {
    int64_t row = 3 * v->model->experts->expert_items;
    for (int32_t i = 0; i < v->arrivals; i++) { /* before any slot changes */
        const arrival *a = &v->arriving[i];
        if (a->local) copy_slot(v, own_slot(v, a->expert), v->staged.data + a->row * row, true);
    }
    for (int32_t i = 0; i < v->arrivals; i++) {
        copy_slot(v, v->arriving[i].slot, v->staged.data + v->arriving[i].row * row, false);
        experts_keep_slot(v->model->experts, v->layer,
                          v->arriving[i].slot - v->model->experts->first_slot);
    }
    experts_use_maps(v->model->experts, v->layer, physical_to_logical, &v->maps);
    v->layer = -1;
}

void mover_discard(mover *v) {
    /* A failure here is one of the communication itself, which the next step meets again. */
    (void)mover_staged(v);
    (void)gradients_arrived(v);
    expert_maps_destroy(&v->maps);
    v->layer = -1;
}
