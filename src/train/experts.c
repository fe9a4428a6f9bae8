#include "train/experts.h"

#include <string.h>
#include <time.h>

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- creation ---- */

lplb_status expert_maps_create(const experts *x, const lplb_placement *placement, int32_t layer,
                               expert_maps *maps) {
    *maps = (expert_maps){0};
    LPLB_TRY(
        lplb_dispatcher_create(placement, layer, x->group->size, NULL, NULL, 1, &maps->dispatcher));
    lplb_plan_config config = {.struct_size = sizeof config,
                               .hosts = *lplb_dispatcher_hosts(maps->dispatcher),
                               .solver = x->solver};
    lplb_status status = lplb_planner_create(&config, &maps->planner);
    if (status != LPLB_OK) expert_maps_destroy(maps);
    return status;
}

void expert_maps_destroy(expert_maps *maps) {
    lplb_dispatcher_destroy(maps->dispatcher);
    lplb_planner_destroy(maps->planner);
    *maps = (expert_maps){0};
}

void experts_use_maps(experts *x, int32_t layer, const int32_t *physical_to_logical,
                      expert_maps *maps) {
    lplb_placement *p = x->placement;
    memcpy(p->physical_to_logical + (int64_t)layer * p->slots, physical_to_logical,
           sizeof(int32_t) * (size_t)p->slots);
    expert_maps_destroy(&x->maps[layer]);
    x->maps[layer] = *maps;
    *maps = (expert_maps){0};
}

static void drop_maps(experts *x) {
    for (int32_t l = 0; x->placement && x->maps && l < x->placement->layers; l++)
        expert_maps_destroy(&x->maps[l]);
    lplb_placement_destroy(x->placement);
    x->placement = NULL;
}

lplb_status experts_use_placement(experts *x, const lplb_placement *placement) {
    lplb_placement *copy;
    LPLB_TRY(lplb_placement_validate(placement));
    LPLB_TRY(lplb_placement_copy(placement, &copy));
    drop_maps(x);
    x->placement = copy;
    for (int32_t l = 0; l < copy->layers; l++)
        LPLB_TRY(expert_maps_create(x, copy, l, &x->maps[l]));
    x->first_slot = copy->rank_offset[x->group->rank];
    return LPLB_OK;
}

static lplb_status allocate(experts *x, int32_t moe_layers, int32_t slots) {
    int64_t E = x->config->experts, G = x->group->size;
    LPLB_TRY(LPLB_CALLOC(x->maps, moe_layers));
    LPLB_TRY(LPLB_CALLOC(x->split, slots));
    LPLB_TRY(LPLB_CALLOC(x->weight, moe_layers * x->local_slots * x->expert_items));
    LPLB_TRY(LPLB_CALLOC(x->gradient, moe_layers * x->local_slots * x->expert_items));
    x->kept_weight = (kept *)(void *)x->weight;
    if (x->ops->rounds) {
        char *rounded;
        LPLB_TRY(LPLB_CALLOC(rounded, moe_layers * x->local_slots * x->expert_items *
                                          (int64_t)x->ops->kept_bytes));
        x->kept_weight = (kept *)(void *)rounded;
    }
    LPLB_TRY(LPLB_CALLOC(x->count, E));
    LPLB_TRY(LPLB_CALLOC(x->all_counts, G * E));
    LPLB_TRY(LPLB_CALLOC(x->slot_count, slots));
    LPLB_TRY(LPLB_CALLOC(x->all_slot_counts, G * slots));
    LPLB_TRY(LPLB_CALLOC(x->tokens, E));
    LPLB_TRY(LPLB_CALLOC(x->plan, moe_layers));
    LPLB_TRY(LPLB_CALLOC(x->plan_loads, moe_layers * G));
    LPLB_TRY(LPLB_CALLOC(x->plain_loads, moe_layers * G));
    for (int32_t l = 0; l < moe_layers; l++) {
        x->plan[l].split = x->split;
        x->plan[l].loads = x->plan_loads + l * G;
    }
    return LPLB_OK;
}

lplb_status experts_create(const model_config *config, const ops *table, lplb__group *group,
                           int32_t moe_layers, int64_t expert_items, int32_t redundant,
                           lplb_solver solver, bool locality, experts **out) {
    int64_t slots = config->experts + (int64_t)group->size * redundant;
    *out = NULL;
    if (slots % group->size)
        return LPLB_FAIL(LPLB_INVALID,
                         "%d experts do not divide over %d ranks; choose a multiple of %d",
                         config->experts, group->size, group->size);
    experts *x;
    LPLB_TRY(LPLB_CALLOC(x, 1));
    x->config = config;
    x->ops = table;
    x->group = group;
    x->solver = solver;
    x->locality = locality;
    x->expert_items = expert_items;
    x->local_slots = (int32_t)(slots / group->size);
    lplb_placement *placement = NULL;
    lplb_status status = allocate(x, moe_layers, (int32_t)slots);
    if (status == LPLB_OK)
        status = lplb_placement_create(moe_layers, config->experts, (int32_t)slots, group->size,
                                       NULL, &placement);
    if (status == LPLB_OK) {
        lplb_placement_fill_trivial(placement);
        status = experts_use_placement(x, placement);
    }
    lplb_placement_destroy(placement);
    if (status != LPLB_OK) {
        experts_destroy(x);
        return status;
    }
    *out = x;
    return LPLB_OK;
}

void experts_destroy(experts *x) {
    if (!x) return;
    drop_maps(x);
    if (x->ops->rounds) lplb__free(x->kept_weight);
    void *blocks[] = {x->maps,   x->split,      x->weight,     x->gradient,
                      x->count,  x->all_counts, x->slot_count, x->all_slot_counts,
                      x->tokens, x->plan,       x->plan_loads, x->plain_loads};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) lplb__free(blocks[i]);
    buffer *buffers[] = {&x->send, &x->recv, &x->hidden, &x->dgate, &x->dup, &x->draft};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) buffer_free(buffers[i]);
    lplb__free(x);
}

void experts_clear_times(experts *x) {
    x->plan_seconds = x->expert_cpu_seconds = x->dispatch_seconds = x->comm_seconds = 0;
    x->comm_bytes = x->moved_tokens = 0;
}

lplb_status expert_tape_create(const experts *x, expert_tape *tape) {
    int64_t G = x->group->size;
    *tape = (expert_tape){0};
    LPLB_TRY(LPLB_CALLOC(tape->send_rows, G));
    LPLB_TRY(LPLB_CALLOC(tape->recv_rows, G));
    LPLB_TRY(LPLB_CALLOC(tape->slot_rows, x->local_slots));
    return LPLB_CALLOC(tape->segment, x->local_slots * G);
}

void expert_tape_destroy(expert_tape *tape) {
    lplb__free(tape->position);
    lplb__free(tape->send_rows);
    lplb__free(tape->recv_rows);
    lplb__free(tape->slot_rows);
    lplb__free(tape->segment);
    buffer_free(&tape->input);
    buffer_free(&tape->gate);
    buffer_free(&tape->up);
    buffer_free(&tape->output);
}

/* ---- who goes where ---- */

/* Shares the counts, plans, and maps chosen[] to slots: position[] holds slots after this. */
static lplb_status choose_slots(experts *x, int32_t layer, const int32_t *chosen, int64_t copies,
                                expert_tape *tape) {
    int32_t E = x->config->experts, G = x->group->size;
    lplb_plan *plan = &x->plan[layer];
    LPLB_TRY(lplb_count_experts(chosen, LPLB_INT32, copies, E, 1, x->count));
    LPLB_TRY(x->group->table->all_gather(x->group, x->count, x->all_counts,
                                         E * (int64_t)sizeof(int64_t)));
    memset(x->tokens, 0, sizeof(int64_t) * (size_t)E);
    memset(x->plain_loads + layer * G, 0, sizeof(int64_t) * (size_t)G);
    for (int32_t s = 0; s < G; s++)
        for (int32_t e = 0; e < E; e++) x->tokens[e] += x->all_counts[s * E + e];
    for (int32_t e = 0; e < E; e++) x->plain_loads[layer * G + (int64_t)e * G / E] += x->tokens[e];
    double start = now(CLOCK_MONOTONIC);
    lplb_plan_input input = {x->tokens, NULL, x->locality ? x->all_counts : NULL};
    LPLB_TRY(lplb_plan_solve(x->maps[layer].planner, &input, plan));
    double planned = now(CLOCK_MONOTONIC);
    LPLB_TRY(lplb_dispatch_prepare(x->maps[layer].dispatcher, x->all_counts, plan->split,
                                   x->group->rank, x->locality));
    LPLB_TRY(lplb_dispatch_map(x->maps[layer].dispatcher, chosen, LPLB_INT32, copies,
                               tape->position, LPLB_INT32));
    x->plan_seconds += planned - start;
    x->dispatch_seconds += now(CLOCK_MONOTONIC) - planned;
    return LPLB_OK;
}

/* From slots to rows in send order (by slot, then token), and how many rows go and come. */
static lplb_status order_rows(experts *x, int64_t copies, expert_tape *tape) {
    int32_t G = x->group->size, P = x->placement->slots;
    memset(x->slot_count, 0, sizeof(int64_t) * (size_t)P);
    for (int64_t i = 0; i < copies; i++)
        if (tape->position[i] >= 0) x->slot_count[tape->position[i]]++;
    LPLB_TRY(x->group->table->all_gather(x->group, x->slot_count, x->all_slot_counts,
                                         P * (int64_t)sizeof(int64_t)));
    int64_t row = 0;
    for (int32_t r = 0; r < G; r++) {
        tape->send_rows[r] = -row;
        for (int32_t p = x->placement->rank_offset[r]; p < x->placement->rank_offset[r + 1]; p++) {
            int64_t n = x->slot_count[p];
            x->slot_count[p] = row; /* from here on: next row of the slot */
            row += n;
        }
        tape->send_rows[r] += row;
    }
    tape->copies = row;
    for (int64_t i = 0; i < copies; i++)
        if (tape->position[i] >= 0) tape->position[i] = (int32_t)x->slot_count[tape->position[i]]++;
    tape->rows = 0;
    memset(tape->recv_rows, 0, sizeof(int64_t) * (size_t)G);
    for (int32_t s = 0; s < x->local_slots; s++) {
        tape->slot_rows[s] = 0;
        for (int32_t r = 0; r < G; r++) {
            int64_t n = x->all_slot_counts[(int64_t)r * P + x->first_slot + s];
            tape->segment[s * G + r] = n;
            tape->slot_rows[s] += n;
            tape->recv_rows[r] += n;
        }
        tape->rows += tape->slot_rows[s];
        if (tape->slot_rows[s] > tape->most_slot_rows) tape->most_slot_rows = tape->slot_rows[s];
    }
    if (tape->rows > tape->most_rows) tape->most_rows = tape->rows;
    return LPLB_OK;
}

/* ---- rows between ranks ---- */

/* Room for `items` kept numbers. */
static lplb_status need(const experts *x, buffer *b, int64_t items) {
    return buffer_need(b, (items * (int64_t)x->ops->kept_bytes + (int64_t)sizeof(real) - 1) /
                              (int64_t)sizeof(real));
}

static kept *at(const experts *x, const buffer *b, int64_t item) {
    return kept_at(x->ops, (const kept *)(const void *)b->data, item);
}

/* Received rows lie by source, then slot; the experts want them by slot, then source. */
static void regroup(const experts *x, const expert_tape *tape, kept *by_slot, kept *by_source,
                    bool to_slots) {
    int64_t D = x->config->width, G = x->group->size, slot_row = 0;
    for (int32_t s = 0; s < x->local_slots; s++) {
        int64_t source_start = 0;
        for (int32_t r = 0; r < G; r++) {
            int64_t source_row = source_start, n = tape->segment[s * G + r];
            for (int32_t t = 0; t < s; t++) source_row += tape->segment[t * G + r];
            size_t bytes = x->ops->kept_bytes * (size_t)(n * D);
            kept *a = kept_at(x->ops, by_slot, slot_row * D);
            kept *b = kept_at(x->ops, by_source, source_row * D);
            if (n) memcpy(to_slots ? a : b, to_slots ? b : a, bytes);
            slot_row += n;
            source_start += tape->recv_rows[r];
        }
    }
}

/* Rows of D numbers between the ranks, timed: waiting for slower ranks counts. */
static lplb_status exchange(experts *x, const kept *send, const int64_t *sent, kept *recv,
                            const int64_t *received) {
    int64_t row_bytes = x->config->width * (int64_t)x->ops->kept_bytes, rows = 0;
    double start = now(CLOCK_MONOTONIC);
    LPLB_TRY(x->group->table->all_to_all_rows(x->group, send, sent, recv, received, row_bytes));
    x->comm_seconds += now(CLOCK_MONOTONIC) - start;
    for (int r = 0; r < x->group->size; r++)
        if (r != x->group->rank) rows += sent[r] + received[r];
    x->comm_bytes += rows * row_bytes;
    return LPLB_OK;
}

/* x->send (send order) to rows by slot. */
static lplb_status send_rows(experts *x, const expert_tape *tape, kept *by_slot) {
    LPLB_TRY(need(x, &x->recv, tape->rows * x->config->width));
    LPLB_TRY(exchange(x, at(x, &x->send, 0), tape->send_rows, at(x, &x->recv, 0), tape->recv_rows));
    regroup(x, tape, by_slot, at(x, &x->recv, 0), true);
    return LPLB_OK;
}

/* Rows by slot back to where they came from, in send order. */
static lplb_status return_rows(experts *x, const expert_tape *tape, kept *by_slot, kept *out) {
    LPLB_TRY(need(x, &x->recv, tape->rows * x->config->width));
    regroup(x, tape, by_slot, at(x, &x->recv, 0), false);
    return exchange(x, at(x, &x->recv, 0), tape->recv_rows, out, tape->send_rows);
}

/* ---- weights ---- */

static int64_t slot_item(const experts *x, int32_t layer, int32_t s) {
    return ((int64_t)layer * x->local_slots + s) * x->expert_items;
}

void experts_keep_slot(experts *x, int32_t layer, int32_t s) {
    int64_t item = slot_item(x, layer, s);
    x->ops->keep(kept_at(x->ops, x->kept_weight, item), x->weight + item, x->expert_items);
}

void experts_keep_weights(experts *x) {
    for (int32_t l = 0; l < x->placement->layers; l++)
        for (int32_t s = 0; s < x->local_slots; s++) experts_keep_slot(x, l, s);
}

/* gate, up [F][D] and down [D][F] of a slot */
static const kept *slot_matrix(const experts *x, int32_t layer, int32_t s, int matrix) {
    return kept_at(x->ops, x->kept_weight, slot_item(x, layer, s) + matrix * (x->expert_items / 3));
}

/* Products of one slot at a time that are rounded afterwards. */
static lplb_status need_draft(experts *x, const expert_tape *tape) {
    int64_t D = x->config->width, F = x->config->expert_width, widest = 2 * F > D ? 2 * F : D;
    return x->ops->rounds ? buffer_need(&x->draft, tape->most_slot_rows * widest) : LPLB_OK;
}

/* ---- forward ---- */

static lplb_status compute_forward(experts *x, int32_t layer, expert_tape *tape) {
    const ops *o = x->ops;
    int64_t D = x->config->width, F = x->config->expert_width, row = 0;
    LPLB_TRY(need(x, &tape->gate, tape->rows * F));
    LPLB_TRY(need(x, &tape->up, tape->rows * F));
    LPLB_TRY(need(x, &x->hidden, tape->rows * F));
    LPLB_TRY(need_draft(x, tape));
    double start = now(CLOCK_THREAD_CPUTIME_ID);
    for (int32_t s = 0; s < x->local_slots; s++) {
        int64_t n = tape->slot_rows[s];
        const kept *in = at(x, &tape->input, row * D);
        kept *gate = at(x, &tape->gate, row * F), *up = at(x, &tape->up, row * F);
        kept *hidden = at(x, &x->hidden, row * F), *out = at(x, &x->dgate, row * D);
        real *gates = draft(o, gate, x->draft.data), *ups = draft(o, up, x->draft.data + n * F);
        real *outs = draft(o, out, x->draft.data);
        o->linear_forward(gates, in, slot_matrix(x, layer, s, 0), n, F, D, 0);
        o->linear_forward(ups, in, slot_matrix(x, layer, s, 1), n, F, D, 0);
        o->keep(gate, gates, n * F);
        o->keep(up, ups, n * F);
        o->swiglu_forward(hidden, gate, up, n * F);
        o->linear_forward(outs, hidden, slot_matrix(x, layer, s, 2), n, D, F, 0);
        o->keep(out, outs, n * D);
        row += n;
    }
    x->expert_cpu_seconds += now(CLOCK_THREAD_CPUTIME_ID) - start;
    return LPLB_OK;
}

static lplb_status need_positions(expert_tape *tape, int64_t copies) {
    if (copies <= tape->position_capacity) return LPLB_OK;
    lplb__free(tape->position);
    tape->position_capacity = 0;
    LPLB_TRY(LPLB_CALLOC(tape->position, copies));
    tape->position_capacity = copies;
    return LPLB_OK;
}

lplb_status experts_forward(experts *x, int32_t layer, const kept *in, const int32_t *chosen,
                            const real *gate, int64_t N, expert_tape *tape, real *out) {
    int64_t D = x->config->width, K = x->config->topk;
    LPLB_TRY(need_positions(tape, N * K));
    LPLB_TRY(choose_slots(x, layer, chosen, N * K, tape));
    LPLB_TRY(order_rows(x, N * K, tape));
    x->moved_tokens += tape->copies - tape->send_rows[x->group->rank];
    LPLB_TRY(need(x, &x->send, tape->copies * D));
    LPLB_TRY(need(x, &tape->input, tape->rows * D));
    LPLB_TRY(need(x, &tape->output, tape->copies * D));
    x->ops->gather_rows(at(x, &x->send, 0), in, tape->position, N, K, D);
    LPLB_TRY(send_rows(x, tape, at(x, &tape->input, 0)));
    LPLB_TRY(need(x, &x->dgate, tape->rows * D)); /* free in the forward: the outputs */
    LPLB_TRY(compute_forward(x, layer, tape));
    LPLB_TRY(return_rows(x, tape, at(x, &x->dgate, 0), at(x, &tape->output, 0)));
    x->ops->combine_rows(out, at(x, &tape->output, 0), tape->position, gate, N, K, D);
    return LPLB_OK;
}

/* ---- backward ---- */

/* Of the rows x->dgate (by slot): gradients of the weights, and of the input, in their place. */
static lplb_status compute_backward(experts *x, int32_t layer, expert_tape *tape) {
    const ops *o = x->ops;
    int64_t D = x->config->width, F = x->config->expert_width, row = 0;
    LPLB_TRY(need(x, &x->hidden, tape->rows * F));
    LPLB_TRY(need(x, &x->dup, 2 * tape->most_slot_rows * F));
    LPLB_TRY(need_draft(x, tape));
    double start = now(CLOCK_THREAD_CPUTIME_ID);
    for (int32_t s = 0; s < x->local_slots; s++) {
        int64_t n = tape->slot_rows[s];
        real *g = x->gradient + slot_item(x, layer, s);
        const kept *in = at(x, &tape->input, row * D), *gate = at(x, &tape->gate, row * F);
        const kept *up = at(x, &tape->up, row * F);
        kept *d = at(x, &x->dgate, row * D), *hidden = at(x, &x->hidden, 0);
        kept *dgate = at(x, &x->dup, 0), *dup = at(x, &x->dup, n * F);
        real *dhidden = draft(o, hidden, x->draft.data), *din = draft(o, d, x->draft.data);
        o->swiglu_forward(hidden, gate, up, n * F);
        o->linear_backward_weight(g + 2 * F * D, d, hidden, n, D, F);
        o->linear_backward_input(dhidden, d, slot_matrix(x, layer, s, 2), n, D, F, 0);
        o->swiglu_backward(dgate, dup, dhidden, gate, up, n * F);
        o->linear_backward_weight(g, dgate, in, n, F, D);
        o->linear_backward_weight(g + F * D, dup, in, n, F, D);
        o->linear_backward_input(din, dgate, slot_matrix(x, layer, s, 0), n, F, D, 0);
        o->linear_backward_input(din, dup, slot_matrix(x, layer, s, 1), n, F, D, 1);
        o->keep(d, din, n * D);
        row += n;
    }
    x->expert_cpu_seconds += now(CLOCK_THREAD_CPUTIME_ID) - start;
    return LPLB_OK;
}

lplb_status experts_backward(experts *x, int32_t layer, const real *dout, const real *gate,
                             int64_t N, expert_tape *tape, real *dgate, real *din) {
    int64_t D = x->config->width, K = x->config->topk;
    LPLB_TRY(need(x, &x->send, tape->copies * D));
    x->ops->combine_backward(dgate, at(x, &x->send, 0), dout, at(x, &tape->output, 0),
                             tape->position, gate, N, K, D);
    LPLB_TRY(need(x, &x->dgate, tape->rows * D));
    LPLB_TRY(send_rows(x, tape, at(x, &x->dgate, 0)));
    LPLB_TRY(compute_backward(x, layer, tape));
    LPLB_TRY(return_rows(x, tape, at(x, &x->dgate, 0), at(x, &x->send, 0)));
    x->ops->combine_rows(din, at(x, &x->send, 0), tape->position, NULL, N, K, D);
    return LPLB_OK;
}
