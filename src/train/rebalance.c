#include "train/rebalance.h"

#include <string.h>

#include "base/clock.h"

/* ---- moving ---- */

typedef struct layer_move {
    trainer *t;
    const lplb_placement *from, *to;
    int32_t layer;
    int64_t items;                  /* of an expert */
    int64_t *send_rows, *recv_rows; /* [ranks] */
    int64_t *cursor;                /* [ranks] */
    buffer send, recv, kept;        /* rows of weights and both moments: 3 * items */
} layer_move;

static int32_t rank_of(const lplb_placement *p, int32_t slot) {
    int32_t r = 0;
    while (slot >= p->rank_offset[r + 1]) r++;
    return r;
}

static const int32_t *row_of(const lplb_placement *p, int32_t layer) {
    return p->physical_to_logical + (int64_t)layer * p->slots;
}

/* Lowest slot of expert on rank before the move, or -1. */
static int32_t slot_on(const layer_move *m, int32_t rank, int32_t expert) {
    const int32_t *map = row_of(m->from, m->layer);
    for (int32_t p = m->from->rank_offset[rank]; p < m->from->rank_offset[rank + 1]; p++)
        if (map[p] == expert) return p;
    return -1;
}

/* Where rank gets expert from: its own slot, else the lowest slot that holds it. */
static int32_t source_slot(const layer_move *m, int32_t rank, int32_t expert) {
    const int32_t *map = row_of(m->from, m->layer);
    int32_t own = slot_on(m, rank, expert);
    for (int32_t p = 0; own < 0 && p < m->from->slots; p++)
        if (map[p] == expert) return p;
    return own;
}

/* The three arrays of a local slot, one after the other, to or from a row. */
static void copy_row(layer_move *m, int32_t slot, real *row, bool to_row) {
    experts *x = m->t->model->experts;
    optimizer *o = m->t->optimizer;
    int64_t at = ((int64_t)m->layer * x->local_slots + slot - x->first_slot) * m->items;
    real *parts[3] = {x->weight + at, o->expert_m1 + at, o->expert_m2 + at};
    size_t bytes = sizeof(real) * (size_t)m->items;
    for (int i = 0; i < 3; i++) {
        if (to_row) memcpy(row + i * m->items, parts[i], bytes);
        else memcpy(parts[i], row + i * m->items, bytes);
    }
}

static void start_rows(layer_move *m, const int64_t *rows, int ranks) {
    int64_t row = 0;
    for (int r = 0; r < ranks; r++) {
        m->cursor[r] = row;
        row += rows[r];
    }
}

/* Slots in ascending order: the order of rows between any two ranks is the same on both. */
static int64_t count_rows(layer_move *m, int me, int ranks) {
    const int32_t *map = row_of(m->to, m->layer);
    int64_t crossing = 0;
    memset(m->send_rows, 0, sizeof(int64_t) * (size_t)ranks);
    memset(m->recv_rows, 0, sizeof(int64_t) * (size_t)ranks);
    for (int32_t p = 0; p < m->to->slots; p++) {
        if (map[p] < 0) continue;
        int32_t target = rank_of(m->to, p);
        int32_t source = rank_of(m->from, source_slot(m, target, map[p]));
        if (source == target) continue;
        crossing++;
        if (source == me) m->send_rows[target]++;
        if (target == me) m->recv_rows[source]++;
    }
    return crossing;
}

static lplb_status move_layer(layer_move *m, rebalance_report *report) {
    experts *x = m->t->model->experts;
    lplb__group *group = x->group;
    int me = group->rank, ranks = group->size;
    const int32_t *map = row_of(m->to, m->layer);
    int64_t row = 3 * m->items, sent = 0, received = 0;
    report->moved_slots += count_rows(m, me, ranks);
    for (int r = 0; r < ranks; r++) {
        sent += m->send_rows[r];
        received += m->recv_rows[r];
    }
    LPLB_TRY(buffer_need(&m->send, sent * row));
    LPLB_TRY(buffer_need(&m->recv, received * row));
    LPLB_TRY(buffer_need(&m->kept, x->local_slots * row));
    for (int32_t s = 0; s < x->local_slots; s++)
        copy_row(m, x->first_slot + s, m->kept.data + s * row, true);
    start_rows(m, m->send_rows, ranks);
    for (int32_t p = 0; p < m->to->slots; p++) {
        int32_t target = rank_of(m->to, p),
                source = map[p] < 0 ? -1 : source_slot(m, target, map[p]);
        if (source < 0 || rank_of(m->from, source) != me || target == me) continue;
        memcpy(m->send.data + m->cursor[target]++ * row,
               m->kept.data + (source - x->first_slot) * row, sizeof(real) * (size_t)row);
    }
    LPLB_TRY(group->table->all_to_all_rows(group, m->send.data, m->send_rows, m->recv.data,
                                           m->recv_rows, row * (int64_t)sizeof(real)));
    start_rows(m, m->recv_rows, ranks);
    for (int32_t p = m->to->rank_offset[me]; p < m->to->rank_offset[me + 1]; p++) {
        if (map[p] < 0) continue;
        int32_t source = source_slot(m, me, map[p]), holder = rank_of(m->from, source);
        real *from = holder == me ? m->kept.data + (source - x->first_slot) * row
                                  : m->recv.data + m->cursor[holder]++ * row;
        copy_row(m, p, from, false);
    }
    return LPLB_OK;
}

lplb_status trainer_move_experts(trainer *t, const lplb_placement *placement,
                                 rebalance_report *report) {
    experts *x = t->model->experts;
    int64_t start = lplb__now_ns();
    const lplb_placement *from = x->placement;
    if (placement->layers != from->layers || placement->slots != from->slots ||
        placement->ranks != from->ranks || placement->experts != from->experts)
        return LPLB_FAIL(LPLB_INVALID, "the new placement has another shape than the present one");
    LPLB_TRY(lplb_placement_validate(placement));
    layer_move m = {.t = t, .from = from, .to = placement, .items = x->expert_items};
    lplb_status status = LPLB_CALLOC(m.send_rows, x->group->size);
    if (status == LPLB_OK) status = LPLB_CALLOC(m.recv_rows, x->group->size);
    if (status == LPLB_OK) status = LPLB_CALLOC(m.cursor, x->group->size);
    for (; m.layer < placement->layers && status == LPLB_OK; m.layer++)
        status = move_layer(&m, report);
    if (status == LPLB_OK) status = experts_use_placement(x, placement);
    lplb__free(m.send_rows);
    lplb__free(m.recv_rows);
    lplb__free(m.cursor);
    buffer_free(&m.send);
    buffer_free(&m.recv);
    buffer_free(&m.kept);
    report->moved_bytes = report->moved_slots * 3 * x->expert_items * (int64_t)sizeof(real);
    report->move_seconds = (double)(lplb__now_ns() - start) * 1e-9;
    return status;
}

/* ---- deciding ---- */

static lplb_status place(const trainer *t, lplb_place_algorithm algorithm, lplb_placement **out) {
    const experts *x = t->model->experts;
    lplb_place_config config = {.struct_size = sizeof config,
                                .algorithm = algorithm,
                                .ranks = x->group->size,
                                .slots = x->placement->slots,
                                .from = algorithm == LPLB_PLACE_SEARCH ? x->placement : NULL,
                                .max_moves = -1,
                                .batch_tokens = t->config.micro_batch * t->config.model.context *
                                                x->group->size,
                                .topk = t->config.model.topk,
                                .seed = t->config.seed,
                                .threads = 1};
    return lplb_place(&config, t->window, 1, x->placement->layers, x->placement->experts, NULL,
                      out);
}

lplb_status trainer_can_rebalance(const trainer *t, lplb_place_algorithm algorithm) {
    lplb_placement *placement = NULL;
    lplb_status status = place(t, algorithm, &placement);
    lplb_placement_destroy(placement);
    return status;
}

lplb_status trainer_rebalance(trainer *t, lplb_place_algorithm algorithm,
                              rebalance_report *report) {
    const experts *x = t->model->experts;
    lplb__group *world = t->grid.world;
    int64_t start = lplb__now_ns(), cells = (int64_t)x->placement->layers * x->placement->slots;
    lplb_placement *placement = NULL, *shared = NULL;
    *report = (rebalance_report){0};
    int32_t status = LPLB_OK;
    if (world->rank == 0) status = place(t, algorithm, &placement);
    LPLB_TRY(lplb_placement_copy(x->placement, &shared));
    if (placement)
        memcpy(shared->physical_to_logical, placement->physical_to_logical,
               sizeof(int32_t) * (size_t)cells);
    lplb_placement_destroy(placement);
    lplb_status sent = world->table->broadcast(world, &status, sizeof status, 0);
    if (sent == LPLB_OK)
        sent = world->table->broadcast(world, shared->physical_to_logical,
                                       cells * (int64_t)sizeof(int32_t), 0);
    if (sent == LPLB_OK && status != LPLB_OK)
        sent = world->rank == 0 ? (lplb_status)status
                                : LPLB_FAIL(LPLB_REMOTE, "rank 0 could not compute a placement");
    report->place_seconds = (double)(lplb__now_ns() - start) * 1e-9;
    if (sent == LPLB_OK) sent = trainer_move_experts(t, shared, report);
    lplb_placement_destroy(shared);
    if (sent == LPLB_OK)
        memset(t->window, 0,
               sizeof(int64_t) * (size_t)(x->placement->layers * (int64_t)x->placement->experts));
    return sent;
}
