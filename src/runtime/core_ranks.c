/* Ranks that die and return, and mappings that the host brings: what is in force at once. */
#include <math.h>
#include <string.h>

#include "runtime/core.h"

/* Survivors keep what they hold; whether that serves is in usable. */
static lplb_status recover(lplb__core *c) {
    int32_t live = lplb__live_slots(&c->slots);
    int32_t missing = live < c->config.experts ? c->config.experts - live : 0;
    bool known = lplb_tracker_mean(c->tracker, LPLB_STAGE_ALL, c->mean) == LPLB_OK;
    lplb__copy_map(c->repair, c->active);
    c->n_lost = 0;
    for (int32_t layer = 0; layer < c->config.layers; layer++) {
        const float *mean = c->mean + (int64_t)layer * c->config.experts;
        for (int32_t e = 0; known && e < c->config.experts; e++)
            c->expert_load[e] = (int64_t)floor((double)mean[e] * 1024 + 0.5);
        c->n_lost +=
            lplb__recover_layer(&c->slots, layer, lplb__row(c->repair, layer),
                                known ? c->expert_load : NULL, c->copies, c->lost + c->n_lost);
        int32_t *row = lplb__row(c->active, layer);
        for (int32_t r = 0; r < c->config.ranks; r++)
            for (int32_t p = c->slots.offset[r]; c->dead[r] && p < c->slots.offset[r + 1]; p++)
                row[p] = -1;
    }
    c->usable = !c->n_lost && !missing;
    c->repair_wanted = 1;
    c->repair_step = c->now;
    if (c->usable) {
        lplb__core_all_shares(c);
        c->stats.recoveries++;
        lplb__core_event(c, LPLB_EVENT_RECOVERED, LPLB_OK,
                         "%d ranks alive cover every expert, nothing moved",
                         lplb__live_ranks(&c->slots));
        return LPLB_OK;
    }
    lplb_status status = lplb__describe_lost(c->lost, c->n_lost, missing);
    lplb_event *event = lplb__core_event(c, LPLB_EVENT_LOST, status, "%s", lplb_error_message());
    event->moves = c->n_lost;
    c->slots_missing = missing;
    c->retry_step = c->now; /* the loading of lost experts begins when the discards are done */
    return status;
}

static void note_ranks(lplb__core *c, const uint8_t *dead) {
    for (int32_t r = 0; r < c->config.ranks; r++) {
        if (!dead[r] == !c->dead[r]) continue;
        lplb_event *event =
            dead[r]
                ? lplb__core_event(c, LPLB_EVENT_RANK_DEAD, LPLB_REMOTE, "rank %d died", r)
                : lplb__core_event(c, LPLB_EVENT_RANK_BACK, LPLB_OK, "rank %d is back, empty", r);
        event->rank = r;
        c->dead[r] = dead[r] != 0;
    }
    c->stats.dead_ranks = c->config.ranks - lplb__live_ranks(&c->slots);
}

lplb_status lplb__core_set_dead(lplb__core *c, const uint8_t *dead) {
    bool changed = false;
    for (int32_t r = 0; r < c->config.ranks; r++) changed = changed || !dead[r] != !c->dead[r];
    if (!changed)
        return c->usable ? LPLB_OK : lplb__describe_lost(c->lost, c->n_lost, c->slots_missing);
    note_ranks(c, dead);
    c->job_stale = c->job_running;
    if (c->moving && c->staged_layers) {
        c->doing = LPLB__DISCARDING;
        c->at = 0;
    } else {
        c->doing = LPLB__IDLE;
        c->chunk_layers = 0;
    }
    if (c->moving)
        lplb__core_event(c, LPLB_EVENT_MOVE_FAILED, LPLB_REMOTE,
                         "ranks changed while layers were being moved");
    c->moving = 0;
    lplb_status status = recover(c);
    c->announce = c->usable;
    return status;
}

lplb_status lplb__core_reset(lplb__core *c, const lplb_placement *placement) {
    LPLB_TRY(lplb__core_check_mapping(c, placement));
    c->doing = c->moving && c->staged_layers ? LPLB__DISCARDING : LPLB__IDLE;
    c->at = 0;
    c->moving = 0;
    c->job_stale = c->job_running;
    lplb__copy_map(c->active, placement);
    lplb__core_all_shares(c);
    c->usable = 1;
    c->n_lost = 0;
    c->announce = 1;
    c->last_variance = c->last_loss = -1;
    lplb__core_event(c, LPLB_EVENT_RESET, LPLB_OK, "the host brought a mapping of its own");
    return LPLB_OK;
}
