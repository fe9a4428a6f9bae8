/* The manager's state as bytes: all that later decisions depend on, and the counts of them. Times
 * and events are of the process that saw them: with neither, a restored manager saves the same
 * bytes as one that was never interrupted. */
#include <string.h>

#include "runtime/core.h"
#include "runtime/pack.h"

enum { PACK_KIND = 0x4d4752, PACK_VERSION = 4 };

/* Of everything that decides, so that a state is not continued under other rules. */
static uint64_t config_digest(const lplb_manager_config *c, const int32_t *offset) {
    const int64_t whole[] = {c->layers,
                             c->experts,
                             c->ranks,
                             c->slots,
                             c->nodes,
                             c->groups,
                             c->mode,
                             c->interval,
                             c->min_interval,
                             c->max_interval,
                             c->adopt_lag,
                             c->algorithm,
                             c->even_split,
                             c->effort,
                             c->max_moves_per_layer,
                             c->work,
                             c->late,
                             c->max_moves,
                             c->always,
                             (int64_t)c->seed,
                             c->expert_bytes,
                             c->layers_per_chunk,
                             c->moves_per_chunk,
                             c->move_lag,
                             c->load_lost};
    const double real[] = {c->shorter_above, c->longer_below,     c->keep_below, c->min_gain,
                           c->exposed,       c->link_bytes_per_s, c->token_ns,   c->hysteresis,
                           c->move_rate,     c->move_cost};
    uint64_t hash = lplb__hash(whole, sizeof whole, 0);
    hash = lplb__hash(real, sizeof real, hash);
    if (c->topology)
        hash = lplb__hash(c->topology->r2o,
                          (size_t)c->topology->group_size * (size_t)c->topology->redundant *
                              sizeof *c->topology->r2o,
                          hash);
    return lplb__hash(offset, ((size_t)c->ranks + 1) * sizeof *offset, hash);
}

typedef lplb_status (*field_visit)(void *context, void *data, size_t bytes);

static lplb_status write_field(void *context, void *data, size_t bytes) {
    lplb__pack(context, data, bytes);
    return LPLB_OK;
}
static lplb_status read_field(void *context, void *data, size_t bytes) {
    return lplb__unpack(context, data, bytes);
}

#define VISIT(pointer, count)                                                                      \
    LPLB_TRY(visit(context, (pointer), (size_t)(count) * sizeof *(pointer)))
#define VISIT_ONE(field) LPLB_TRY(visit(context, &(field), sizeof(field)))

static lplb_status visit_job(lplb__core *c, field_visit visit, void *context) {
    int64_t L = c->config.layers, P = c->config.slots;
    VISIT_ONE(c->job_running);
    VISIT_ONE(c->job_stale);
    VISIT_ONE(c->adopt_step);
    VISIT_ONE(c->job.step);
    VISIT_ONE(c->job.interval);
    VISIT_ONE(c->job.budget);
    VISIT_ONE(c->job.repair);
    VISIT_ONE(c->job.selections);
    VISIT_ONE(c->job.samples);
    VISIT(c->job.from->physical_to_logical, L * P);
    VISIT(c->job.dead, c->config.ranks);
    VISIT(c->job.load, c->cells);
    VISIT(c->job.sample, c->sample_capacity * c->cells);
    return LPLB_OK;
}

static lplb_status visit_counts(lplb__core *c, field_visit visit, void *context) {
    lplb_manager_stats counts = c->stats;
    counts.place_ns = counts.wait_ns = counts.waits = counts.longest_wait_ns = 0;
    VISIT_ONE(counts);
    counts.place_ns = c->stats.place_ns;
    counts.wait_ns = c->stats.wait_ns;
    counts.waits = c->stats.waits;
    counts.longest_wait_ns = c->stats.longest_wait_ns;
    c->stats = counts;
    return LPLB_OK;
}

/* Every field that changes, in one order for both directions. */
static lplb_status visit_state(lplb__core *c, field_visit visit, void *context) {
    int64_t L = c->config.layers, P = c->config.slots;
    VISIT_ONE(c->now);
    VISIT_ONE(c->usable);
    VISIT_ONE(c->retry_step);
    VISIT_ONE(c->interval);
    VISIT_ONE(c->last_decision);
    VISIT_ONE(c->next_decision);
    VISIT_ONE(c->next_check);
    VISIT_ONE(c->credit);
    VISIT_ONE(c->last_variance);
    VISIT_ONE(c->last_loss);
    VISIT_ONE(c->measured_layers);
    VISIT_ONE(c->measured_known);
    VISIT_ONE(c->measured_variance);
    VISIT_ONE(c->measured_loss);
    VISIT_ONE(c->repair_wanted);
    VISIT_ONE(c->requested_repair);
    VISIT_ONE(c->repair_step);
    VISIT_ONE(c->refusing_loads);
    VISIT_ONE(c->announce);
    VISIT_ONE(c->slots_missing);
    VISIT_ONE(c->n_lost);
    VISIT(c->lost, c->cells);
    VISIT(c->dead, c->config.ranks);
    VISIT(c->active->physical_to_logical, L * P);
    VISIT(c->repair->physical_to_logical, L * P);
    VISIT_ONE(c->moving);
    /* Until it is adopted the worker may be writing it, and will do so anew after a restore. */
    bool adopted = visit == read_field || (c->moving && !c->repairing);
    VISIT((adopted ? c->proposal.to : c->active)->physical_to_logical, L * P);
    VISIT(c->todo, L);
    VISIT(c->chunk, L);
    VISIT_ONE(c->chunk_layers);
    VISIT_ONE(c->chunk_step);
    VISIT_ONE(c->chunk_moves);
    VISIT_ONE(c->target_moves);
    VISIT_ONE(c->target_switched);
    LPLB_TRY(visit_counts(c, visit, context));
    return visit_job(c, visit, context);
}

/* The parts that save themselves lie behind the fields, each with its length. */
static lplb_status pack_parts(const lplb__core *c, lplb__packer *packer) {
    size_t bytes[2] = {lplb_tracker_save_bytes(c->tracker),
                       c->forecaster ? lplb_forecaster_save_bytes(c->forecaster) : 0};
    lplb__pack(packer, bytes, sizeof bytes);
    bool room = packer->buffer && packer->used + bytes[0] + bytes[1] <= packer->capacity;
    if (room) {
        LPLB_TRY(lplb_tracker_save(c->tracker, packer->buffer + packer->used, bytes[0]));
        if (c->forecaster)
            LPLB_TRY(lplb_forecaster_save(c->forecaster, packer->buffer + packer->used + bytes[0],
                                          bytes[1]));
    }
    packer->used += bytes[0] + bytes[1];
    return LPLB_OK;
}

lplb_status lplb__core_pack(const lplb__core *c, void *buffer, size_t capacity, size_t *bytes) {
    lplb__packer packer;
    lplb__pack_begin(&packer, buffer, capacity, PACK_KIND, PACK_VERSION);
    uint64_t digest = config_digest(&c->config, c->slots.offset);
    lplb__pack(&packer, &digest, sizeof digest);
    /* Visiting does not change what a packer visits. */
    LPLB_TRY(visit_state((lplb__core *)(uintptr_t)c, write_field, &packer));
    LPLB_TRY(pack_parts(c, &packer));
    LPLB_TRY(lplb__pack_end(&packer));
    *bytes = packer.used;
    return LPLB_OK;
}

lplb_status lplb__core_unpack(lplb__core *c, const void *buffer, size_t bytes) {
    lplb__unpacker unpacker;
    LPLB_TRY(lplb__unpack_begin(&unpacker, buffer, bytes, PACK_KIND, PACK_VERSION, "manager"));
    uint64_t digest;
    LPLB_TRY(lplb__unpack(&unpacker, &digest, sizeof digest));
    size_t mine = 0;
    LPLB_TRY(lplb__core_pack(c, NULL, 0, &mine));
    if (digest != config_digest(&c->config, c->slots.offset) || mine != bytes)
        return LPLB_FAIL(LPLB_FORMAT, "the saved manager has another configuration");
    /* The checksum was right and the configuration is the same: from here on nothing can fail but
     * the parts, and they check before they change; so they go first. */
    lplb__unpacker parts = unpacker;
    size_t tracker = lplb_tracker_save_bytes(c->tracker);
    size_t forecaster = c->forecaster ? lplb_forecaster_save_bytes(c->forecaster) : 0;
    parts.at = parts.end - tracker - forecaster;
    LPLB_TRY(lplb_tracker_restore(c->tracker, parts.at, tracker));
    if (c->forecaster)
        LPLB_TRY(lplb_forecaster_restore(c->forecaster, parts.at + tracker, forecaster));
    LPLB_TRY(visit_state(c, read_field, &unpacker));
    c->doing = LPLB__IDLE;
    c->repairing = 0; /* a repair begins and ends between two steps */
    c->target = c->proposal.to;
    c->start_status = LPLB_OK;
    c->staged_layers = 0;
    c->chunk_status = LPLB_OK;
    c->restart_job = c->job_running;
    c->restage = c->moving && c->chunk_layers > 0;
    for (int32_t layer = 0; layer < c->config.layers; layer++) lplb__core_shares(c, layer);
    lplb__core_event(c, LPLB_EVENT_RESTORED, LPLB_OK, "the state after step %lld",
                     (long long)c->now);
    return LPLB_OK;
}
