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
    void *blocks[] = {x->maps,   x->split,      x->weight,     x->gradient,
                      x->count,  x->all_counts, x->slot_count, x->all_slot_counts,
                      x->tokens, x->plan,       x->plan_loads, x->plain_loads};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) lplb__free(blocks[i]);
    buffer *buffers[] = {&x->send, &x->recv, &x->hidden, &x->dgate, &x->dup};
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

/* Shares the counts, plans, and maps kept[] to slots: position[] holds slots after this. */
static lplb_status choose_slots(experts *x, int32_t layer, const int32_t *kept, int64_t copies,
                                expert_tape *tape) {
    int32_t E = x->config->experts, G = x->group->size;
    lplb_plan *plan = &x->plan[layer];
    LPLB_TRY(lplb_count_experts(kept, LPLB_INT32, copies, E, 1, x->count));
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
    LPLB_TRY(lplb_dispatch_map(x->maps[layer].dispatcher, kept, LPLB_INT32, copies, tape->position,
                               LPLB_INT32));
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

/* Received rows lie by source, then slot; the experts want them by slot, then source. */
static void regroup(const experts *x, const expert_tape *tape, real *by_slot, real *by_source,
                    bool to_slots) {
    int64_t D = x->config->width, G = x->group->size, slot_row = 0;
    for (int32_t s = 0; s < x->local_slots; s++) {
        int64_t source_start = 0;
        for (int32_t r = 0; r < G; r++) {
            int64_t source_row = source_start, n = tape->segment[s * G + r];
            for (int32_t t = 0; t < s; t++) source_row += tape->segment[t * G + r];
            size_t bytes = sizeof(real) * (size_t)(n * D);
            if (n && to_slots) memcpy(by_slot + slot_row * D, by_source + source_row * D, bytes);
            if (n && !to_slots) memcpy(by_source + source_row * D, by_slot + slot_row * D, bytes);
            slot_row += n;
            source_start += tape->recv_rows[r];
        }
    }
}

/* Rows of D numbers between the ranks, timed: waiting for slower ranks counts. */
static lplb_status exchange(experts *x, const real *send, const int64_t *sent, real *recv,
                            const int64_t *received) {
    int64_t row_bytes = x->config->width * (int64_t)sizeof(real), rows = 0;
    double start = now(CLOCK_MONOTONIC);
    LPLB_TRY(x->group->table->all_to_all_rows(x->group, send, sent, recv, received, row_bytes));
    x->comm_seconds += now(CLOCK_MONOTONIC) - start;
    for (int r = 0; r < x->group->size; r++)
        if (r != x->group->rank) rows += sent[r] + received[r];
    x->comm_bytes += rows * row_bytes;
    return LPLB_OK;
}

/* x->send (send order) to rows by slot. */
static lplb_status send_rows(experts *x, const expert_tape *tape, real *by_slot) {
    int64_t D = x->config->width;
    LPLB_TRY(buffer_need(&x->recv, tape->rows * D));
    LPLB_TRY(exchange(x, x->send.data, tape->send_rows, x->recv.data, tape->recv_rows));
    regroup(x, tape, by_slot, x->recv.data, true);
    return LPLB_OK;
}

/* Rows by slot back to where they came from, in send order. */
static lplb_status return_rows(experts *x, const expert_tape *tape, real *by_slot, real *out) {
    int64_t D = x->config->width;
    LPLB_TRY(buffer_need(&x->recv, tape->rows * D));
    regroup(x, tape, by_slot, x->recv.data, false);
    return exchange(x, x->recv.data, tape->recv_rows, out, tape->send_rows);
}

/* ---- forward ---- */

static real *slot_weight(experts *x, int32_t layer, int32_t s) {
    return x->weight + ((int64_t)layer * x->local_slots + s) * x->expert_items;
}

static lplb_status compute_forward(experts *x, int32_t layer, expert_tape *tape, real *out) {
    int64_t D = x->config->width, F = x->config->expert_width, row = 0;
    LPLB_TRY(buffer_need(&tape->gate, tape->rows * F));
    LPLB_TRY(buffer_need(&tape->up, tape->rows * F));
    LPLB_TRY(buffer_need(&x->hidden, tape->rows * F));
    double start = now(CLOCK_THREAD_CPUTIME_ID);
    for (int32_t s = 0; s < x->local_slots; s++) {
        int64_t n = tape->slot_rows[s];
        const real *w = slot_weight(x, layer, s), *in = tape->input.data + row * D;
        real *gate = tape->gate.data + row * F, *up = tape->up.data + row * F;
        real *hidden = x->hidden.data + row * F;
        matmul_forward(gate, in, w, n, F, D, 0);
        matmul_forward(up, in, w + F * D, n, F, D, 0);
        x->ops->swiglu_forward(hidden, gate, up, n * F);
        matmul_forward(out + row * D, hidden, w + 2 * F * D, n, D, F, 0);
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

lplb_status experts_forward(experts *x, int32_t layer, const real *in, const int32_t *kept,
                            const real *gate, int64_t N, expert_tape *tape, real *out) {
    int64_t D = x->config->width, K = x->config->topk;
    LPLB_TRY(need_positions(tape, N * K));
    LPLB_TRY(choose_slots(x, layer, kept, N * K, tape));
    LPLB_TRY(order_rows(x, N * K, tape));
    x->moved_tokens += tape->copies - tape->send_rows[x->group->rank];
    LPLB_TRY(buffer_need(&x->send, tape->copies * D));
    LPLB_TRY(buffer_need(&tape->input, tape->rows * D));
    LPLB_TRY(buffer_need(&tape->output, tape->copies * D));
    for (int64_t i = 0; i < N * K; i++)
        if (tape->position[i] >= 0)
            memcpy(x->send.data + tape->position[i] * D, in + i / K * D, sizeof(real) * (size_t)D);
    LPLB_TRY(send_rows(x, tape, tape->input.data));
    LPLB_TRY(buffer_need(&x->dgate, tape->rows * D)); /* free in the forward: the outputs */
    LPLB_TRY(compute_forward(x, layer, tape, x->dgate.data));
    LPLB_TRY(return_rows(x, tape, x->dgate.data, tape->output.data));
    for (int64_t i = 0; i < N * K; i++) {
        if (tape->position[i] < 0) continue;
        const real *row = tape->output.data + tape->position[i] * D;
        real *sum = out + i / K * D;
        for (int64_t j = 0; j < D; j++) sum[j] += gate[i] * row[j];
    }
    return LPLB_OK;
}

/* ---- backward ---- */

/* Of the rows dout (by slot): gradients of the weights, and of the input, in place of dout. */
static lplb_status compute_backward(experts *x, int32_t layer, expert_tape *tape, real *dout) {
    int64_t D = x->config->width, F = x->config->expert_width, row = 0;
    LPLB_TRY(buffer_need(&x->hidden, tape->rows * F));
    LPLB_TRY(buffer_need(&x->dup, 2 * tape->most_slot_rows * F));
    double start = now(CLOCK_THREAD_CPUTIME_ID);
    for (int32_t s = 0; s < x->local_slots; s++) {
        int64_t n = tape->slot_rows[s];
        const real *w = slot_weight(x, layer, s), *in = tape->input.data + row * D;
        real *g = x->gradient + (w - x->weight), *d = dout + row * D;
        real *gate = tape->gate.data + row * F, *up = tape->up.data + row * F;
        real *hidden = x->hidden.data, *dgate = x->dup.data, *dup = dgate + n * F;
        x->ops->swiglu_forward(hidden, gate, up, n * F);
        matmul_backward_weight(g + 2 * F * D, d, hidden, n, D, F);
        matmul_backward_input(hidden, d, w + 2 * F * D, n, D, F, 0);
        x->ops->swiglu_backward(dgate, dup, hidden, gate, up, n * F);
        matmul_backward_weight(g, dgate, in, n, F, D);
        matmul_backward_weight(g + F * D, dup, in, n, F, D);
        matmul_backward_input(d, dgate, w, n, F, D, 0);
        matmul_backward_input(d, dup, w + F * D, n, F, D, 1);
        row += n;
    }
    x->expert_cpu_seconds += now(CLOCK_THREAD_CPUTIME_ID) - start;
    return LPLB_OK;
}

lplb_status experts_backward(experts *x, int32_t layer, const real *dout, const real *gate,
                             int64_t N, expert_tape *tape, real *dgate, real *din) {
    int64_t D = x->config->width, K = x->config->topk;
    LPLB_TRY(buffer_need(&x->send, tape->copies * D));
    for (int64_t i = 0; i < N * K; i++) {
        dgate[i] = 0;
        if (tape->position[i] < 0) continue;
        const real *row = tape->output.data + tape->position[i] * D, *d = dout + i / K * D;
        real *send = x->send.data + tape->position[i] * D, dot = 0;
        for (int64_t j = 0; j < D; j++) {
            dot += d[j] * row[j];
            send[j] = gate[i] * d[j];
        }
        dgate[i] = dot;
    }
    LPLB_TRY(buffer_need(&x->dgate, tape->rows * D));
    LPLB_TRY(send_rows(x, tape, x->dgate.data));
    LPLB_TRY(compute_backward(x, layer, tape, x->dgate.data));
    LPLB_TRY(return_rows(x, tape, x->dgate.data, x->send.data));
    for (int64_t i = 0; i < N * K; i++) {
        if (tape->position[i] < 0) continue;
        const real *row = x->send.data + tape->position[i] * D;
        real *sum = din + i / K * D;
        for (int64_t j = 0; j < D; j++) sum[j] += row[j];
    }
    return LPLB_OK;
}
