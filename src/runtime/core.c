/* The rebalance manager as a state machine; core.h says how it is driven. */
#include "runtime/core.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "runtime/pack.h"

static const char *const event_names[] = {
#define EVENT_NAME(name, text) text,
    LPLB_EVENT_MAP(EVENT_NAME)
#undef EVENT_NAME
};

const char *lplb_event_name(lplb_event_kind kind) {
    return (unsigned)kind < LPLB_EVENT_KINDS ? event_names[kind] : "unknown";
}

lplb_event *lplb__core_event(lplb__core *core, lplb_event_kind kind, lplb_status status,
                             const char *format, ...) {
    lplb_event *event = &core->event[core->n_events++ % LPLB__EVENTS];
    *event =
        (lplb_event){.step = core->now, .kind = kind, .status = status, .layer = -1, .rank = -1};
    va_list args;
    va_start(args, format);
    vsnprintf(event->text, sizeof event->text, format, args);
    va_end(args);
    return event;
}

static void keep_error(char *text, size_t bytes) {
    const char *message = lplb_error_message();
    snprintf(text, bytes, "%s", *message ? message : "no reason given");
}

/* ---- steps and the interval ---- */

double lplb__most_credit(const lplb__core *c) {
    int64_t a_layer = c->config.max_moves_per_layer;
    if (a_layer < 0 || a_layer > c->config.slots) a_layer = c->config.slots;
    return (double)(a_layer * c->config.layers);
}

static void save_credit(lplb__core *c, int64_t steps) {
    double slots = (double)c->config.layers * c->config.slots, most = lplb__most_credit(c);
    if (c->config.move_rate < 0) return;
    c->credit += c->config.move_rate * slots * (double)steps / 1000;
    if (c->credit > most) c->credit = most;
}

/* A decision is dear, so it waits until an eighth of what can be saved up is there. */
static bool has_credit(const lplb__core *c) {
    double enough = lplb__most_credit(c) / 8;
    return c->config.move_rate < 0 || c->credit >= (enough < 1 ? 1 : enough);
}

static int64_t move_budget(const lplb__core *c) {
    int64_t budget = c->config.max_moves > 0 ? c->config.max_moves : INT64_MAX;
    if (c->config.move_rate < 0) return budget;
    int64_t credit = (int64_t)c->credit;
    return credit < budget ? credit : budget;
}

lplb_status lplb__core_feed(lplb__core *c, int64_t step, lplb_stage stage, const int64_t *counts,
                            const float *loads) {
    if (step <= c->now)
        return LPLB_FAIL(LPLB_INVALID, "step %lld does not come after step %lld", (long long)step,
                         (long long)c->now);
    if (stage != LPLB_STAGE_PREFILL && stage != LPLB_STAGE_DECODE)
        return LPLB_FAIL(LPLB_INVALID, "stage %d: a batch is LPLB_STAGE_PREFILL or _DECODE",
                         (int)stage);
    if (c->now < 0) { /* the clock starts here */
        c->last_decision = step;
        c->next_decision = step + c->interval;
        c->next_check = step + c->config.min_interval;
    } else save_credit(c, step - c->now);
    c->now = step;
    if (!counts && !loads) return lplb_tracker_mark(c->tracker, LPLB_BATCH_MISSING);
    lplb_status status = counts ? lplb_tracker_update(c->tracker, stage, counts)
                                : lplb_tracker_update_real(c->tracker, stage, loads);
    if (status != LPLB_OK) {
        /* One event for a run of bad batches, not one each. */
        if (!c->refusing_loads)
            lplb__core_event(c, LPLB_EVENT_LOADS_REFUSED, status, "%s", lplb_error_message());
        c->refusing_loads = 1;
        c->stats.loads_refused++;
        return lplb_tracker_mark(c->tracker, LPLB_BATCH_MISSING);
    }
    c->refusing_loads = 0;
    return c->forecaster && counts ? lplb_forecaster_update(c->forecaster, counts) : LPLB_OK;
}

static void set_interval(lplb__core *c, int64_t interval, const char *why) {
    const lplb_manager_config *config = &c->config;
    if (interval < config->min_interval) interval = config->min_interval;
    if (interval > config->max_interval) interval = config->max_interval;
    if (interval == c->interval) return;
    lplb__core_event(c, LPLB_EVENT_INTERVAL, LPLB_OK, "%lld steps, before %lld: %s",
                     (long long)interval, (long long)c->interval, why);
    c->interval = interval;
    c->next_decision = c->last_decision + interval;
}

/* Balance is lost when the loss grew, since the last decision, by the factor and by more than a
 * grain. */
static bool balance_lost(const lplb__core *c, double loss) {
    static const double GRAIN = 0.005;
    return c->last_loss >= 0 && loss > c->last_loss * c->config.shorter_above &&
           loss > c->last_loss + GRAIN && 1 + loss > c->config.keep_below;
}

static void check_interval(lplb__core *c) {
    double variance, loss;
    c->next_check = c->now + c->config.min_interval;
    lplb__core_measured(c, &variance, &loss);
    bool known = c->last_variance >= 0;
    if (c->config.mode == LPLB_INTERVAL_ADAPTIVE) {
        if (balance_lost(c, loss)) /* a first mapping that nobody chose is left at once */
            set_interval(c, c->last_loss > 0 ? c->interval / 2 : c->config.min_interval,
                         "balance is being lost");
        else if (known && variance > c->config.shorter_above * c->last_variance)
            set_interval(c, c->interval / 2, "loads vary more");
        else if (known && variance < c->config.longer_below * c->last_variance)
            set_interval(c, c->interval * 2, "loads vary less");
    }
    c->last_variance = variance;
    if (c->last_loss < 0) c->last_loss = loss;
    c->stats.variance = variance;
    c->stats.balance_loss = loss;
}

void lplb__core_step(lplb__core *c) {
    c->stats.steps++;
    lplb__core_measure(c, false);
    if (c->now >= c->next_check) check_interval(c);
}

/* ---- the request ---- */

/* How many batches' load to place for: as a window has them, so that whole counts stay whole, else
 * as many as make about 20 bits a layer. */
static double load_batches(const lplb__core *c, double selections) {
    lplb_tracker_stats stats;
    lplb_tracker_get_stats(c->tracker, &stats);
    const lplb_tracker_config *t = &c->config.tracker;
    int64_t window = t->window ? t->window : 1000; /* the tracker's default */
    if (t->kind == LPLB_TRACKER_WINDOW)
        return (double)(stats.batches < window ? stats.batches : window);
    double batches = 1048576.0 / selections;
    return batches < 1 ? 1 : batches > 1e6 ? 1e6 : batches;
}

/* The mean over layers with load of a batch's selections. */
static double mean_selections(lplb__core *c) {
    int32_t E = c->config.experts, n = 0;
    double sum = 0;
    for (int32_t layer = 0; layer < c->config.layers; layer++) {
        double total = 0;
        for (int32_t e = 0; e < E; e++) total += (double)c->mean[(int64_t)layer * E + e];
        n += total > 0;
        sum += total;
    }
    return n ? sum / n : 0;
}

/* In layers where the forecast has proved better, the same tokens in the shares it foresees: of the
 * mean, and of every batch kept. */
static lplb_status use_forecast(lplb__core *c) {
    int32_t E = c->config.experts;
    lplb__job *job = &c->job;
    float *share = c->variance; /* scratch */
    LPLB_TRY(lplb_forecaster_predict(c->forecaster, share, c->layer_flag));
    for (int32_t layer = 0; layer < c->config.layers; layer++) {
        int64_t row = (int64_t)layer * E, *load = job->load + row, total = 0;
        for (int32_t e = 0; e < E; e++) total += load[e];
        for (int32_t e = 0; c->layer_flag[layer] && e < E; e++) {
            double foreseen = (double)share[row + e] * (double)total;
            for (int64_t k = 0; k < job->samples && load[e] > 0; k++) {
                int64_t *one = job->sample + k * c->cells + row + e;
                *one = (int64_t)floor((double)*one * foreseen / (double)load[e] + 0.5);
            }
            load[e] = (int64_t)floor(foreseen + 0.5);
        }
    }
    return LPLB_OK;
}

/* What to place for, and the batches to judge by. LPLB_STATE when no load is known. */
static lplb_status gather_loads(lplb__core *c) {
    lplb__job *job = &c->job;
    LPLB_TRY(lplb_tracker_mean(c->tracker, LPLB_STAGE_ALL, c->mean));
    double selections = mean_selections(c);
    if (!(selections > 0)) return LPLB_FAIL(LPLB_STATE, "no load has been seen");
    job->selections = (int64_t)ceil(selections);
    LPLB_TRY(
        lplb_tracker_counts(c->tracker, LPLB_STAGE_ALL, load_batches(c, selections), job->load));
    LPLB_TRY(lplb_tracker_samples(c->tracker, LPLB_STAGE_ALL, c->sample_capacity, job->sample,
                                  &job->samples));
    return c->forecaster ? use_forecast(c) : LPLB_OK;
}

static void decided(lplb__core *c) {
    c->last_decision = c->now;
    c->next_decision = c->now + c->interval;
    c->last_loss = -1; /* the next check says what to compare with */
}

static void skip(lplb__core *c, const char *why, double before) {
    c->stats.skipped++;
    lplb_event *event = lplb__core_event(c, LPLB_EVENT_SKIP, LPLB_OK, "%s", why);
    event->before = event->after = before;
}

static void begin_request(lplb__core *c) {
    decided(c);
    c->stats.requests++;
    c->job_stale = 0;
    c->adopt_step = c->now + c->config.adopt_lag;
    c->start_status = LPLB_OK;
    c->doing = LPLB__STARTING;
    c->requested_repair = c->repair_wanted;
    c->repair_wanted = 0;
    lplb__core_event(c, LPLB_EVENT_REQUEST, LPLB_OK, "%s, to be adopted at step %lld",
                     c->requested_repair ? "ranks changed" : "the interval is over",
                     (long long)c->adopt_step);
    if (c->job_busy) { /* its buffers are not ours; other ranks may do better and must be met */
        c->start_status = LPLB_TIMEOUT;
        snprintf(c->start_text, sizeof c->start_text,
                 "the worker is still busy with an earlier request");
        return;
    }
    lplb__job *job = &c->job;
    job->step = c->now;
    job->interval = c->interval;
    job->budget = move_budget(c);
    job->repair = c->requested_repair;
    memcpy(job->dead, c->dead, (size_t)c->config.ranks);
    lplb__copy_map(job->from, c->active);
    if (gather_loads(c) !=
        LPLB_OK) { /* ranks changed before any load came: all experts count the same */
        for (int64_t i = 0; i < c->cells; i++) job->load[i] = 1;
        job->selections = c->config.experts;
        job->samples = 0;
    }
}

/* ---- the answer ---- */

/* Every row that would be taken, as all ranks must have it. */
static uint64_t proposal_digest(const lplb__core *c) {
    const lplb__proposal *p = &c->proposal;
    uint64_t hash = lplb__hash(&c->job.step, sizeof c->job.step, 0);
    hash = lplb__hash(p->take, (size_t)c->config.layers, hash);
    hash ^= lplb_mapping_digest(c->active);
    return lplb__hash(p->to->physical_to_logical,
                      (size_t)c->config.layers * (size_t)c->config.slots * sizeof(int32_t), hash);
}

static lplb_status check_proposal(lplb__core *c) {
    const lplb__proposal *p = &c->proposal;
    for (int32_t layer = 0; layer < c->config.layers; layer++) {
        const int32_t *row = lplb__row(p->to, layer);
        LPLB_TRY(lplb__validate_layer(&c->slots, layer, row, p->take[layer], c->seen));
        if (!p->take[layer] &&
            memcmp(row, lplb__row(c->active, layer), (size_t)c->config.slots * sizeof *row))
            return LPLB_FAIL(LPLB_CHECK_FAILED, "layer %d was to stay but has another mapping",
                             layer);
    }
    return LPLB_OK;
}

/* Every rank comes here at the same step, because they agreed that not all are done. */
static void postpone(lplb__core *c) {
    bool mine = c->chunk_status != LPLB_OK;
    c->adopt_step = c->now + c->config.adopt_lag;
    c->stats.postponed++;
    c->doing = LPLB__IDLE;
    lplb__core_event(c, LPLB_EVENT_POSTPONED, mine ? LPLB_TIMEOUT : LPLB_DISAGREE,
                     "%s worker is not done with the placement; adoption at step %lld",
                     mine ? "this rank's" : "another rank's", (long long)c->adopt_step);
}

/* The worker has answered, or could not. */
static void take_job(lplb__core *c, lplb_status status) {
    c->job_running = 0;
    c->chunk_text[0] = '\0';
    c->chunk_status = status != LPLB_OK ? status : c->start_status;
    bool worked = c->chunk_status == LPLB_OK;
    if (c->start_status != LPLB_OK)
        snprintf(c->chunk_text, sizeof c->chunk_text, "%s", c->start_text);
    else if (!worked) keep_error(c->chunk_text, sizeof c->chunk_text);
    if (worked) {
        c->stats.place_ns += c->proposal.place_ns;
        if (c->proposal.status != LPLB_OK) {
            c->chunk_status = c->proposal.status;
            memcpy(c->chunk_text, c->proposal.text, sizeof c->chunk_text);
            worked = false;
        }
    }
    if (!worked) {
        c->stats.worker_failures++;
        lplb__core_event(c, LPLB_EVENT_WORKER_FAILED, c->chunk_status, "%s", c->chunk_text);
    }
    if (c->job_stale) {
        c->stats.refused++;
        lplb__core_event(c, LPLB_EVENT_REFUSE, LPLB_STATE, "ranks changed since the request");
        c->doing = LPLB__IDLE;
        return;
    }
    if (worked && (c->chunk_status = check_proposal(c)) != LPLB_OK)
        keep_error(c->chunk_text, sizeof c->chunk_text);
    c->doing = LPLB__AGREEING_PLACEMENT;
}

static void begin_moving(lplb__core *c, lplb_placement *target, int32_t repairing) {
    c->moving = 1;
    c->repairing = repairing;
    c->target = target;
    c->chunk_layers = c->staged_layers = 0;
    c->target_moves = 0;
    c->target_switched = 0;
}

static void refuse(lplb__core *c, lplb_status agreed) {
    bool mine = c->chunk_status != LPLB_OK;
    c->stats.refused++;
    lplb__core_event(c, LPLB_EVENT_REFUSE, mine ? c->chunk_status : agreed, "%s",
                     mine ? c->chunk_text : "another rank refused it or has another mapping");
    if (!c->requested_repair) return;
    c->repair_wanted = 1; /* still */
    c->repair_step = c->now + c->config.min_interval;
}

static void decide(lplb__core *c, lplb_status agreed) {
    const lplb__proposal *p = &c->proposal;
    c->doing = LPLB__IDLE;
    if (c->chunk_status != LPLB_OK || agreed != LPLB_OK) {
        refuse(c, agreed);
        return;
    }
    c->stats.predicted_before = p->mean_before;
    c->stats.predicted_after = p->mean_after;
    if (!p->layers) {
        skip(c, p->text, p->mean_before);
        if (c->config.mode == LPLB_INTERVAL_ADAPTIVE && !c->requested_repair)
            set_interval(c, c->interval * 2, "there was nothing to gain");
        return;
    }
    int64_t moves = 0;
    memcpy(c->todo, p->take, (size_t)c->config.layers);
    for (int32_t layer = 0; layer < c->config.layers; layer++)
        if (p->take[layer]) moves += p->moves[layer];
    c->stats.adopted++;
    lplb_event *event =
        lplb__core_event(c, LPLB_EVENT_ADOPT, LPLB_OK,
                         "%d layers, %lld moves, predicted imbalance %.4f, now "
                         "%.4f",
                         p->layers, (long long)moves, p->mean_after, p->mean_before);
    event->layers = p->layers;
    event->moves = moves;
    event->before = p->mean_before;
    event->after = p->mean_after;
    begin_moving(c, p->to, 0);
}

/* ---- moving ---- */

static void find_moves(lplb__core *c, int32_t layer, int64_t *n, int64_t *crossing) {
    *n = lplb__diff_layer(&c->slots, layer, lplb__row(c->active, layer),
                          lplb__row(c->target, layer), &c->diff, c->move, crossing);
}

/* The next layers within the limits of a chunk; false when none is left. */
static bool form_chunk(lplb__core *c) {
    c->chunk_layers = c->staged_layers = 0;
    c->chunk_moves = 0;
    c->chunk_status = LPLB_OK;
    int32_t most = c->repairing ? c->config.layers : c->config.layers_per_chunk;
    int64_t most_moves = c->repairing ? INT64_MAX : c->config.moves_per_chunk;
    for (int32_t layer = 0; layer < c->config.layers && c->chunk_layers < most; layer++) {
        if (!c->todo[layer]) continue;
        int64_t n, crossing;
        find_moves(c, layer, &n, &crossing);
        if (c->chunk_layers && c->chunk_moves + crossing > most_moves) break;
        c->chunk[c->chunk_layers++] = layer;
        c->chunk_moves += crossing;
    }
    return c->chunk_layers > 0;
}

static void end_moving(lplb__core *c) {
    lplb_event *event =
        lplb__core_event(c, LPLB_EVENT_DONE, LPLB_OK, "%lld layers switched, %lld moves",
                         (long long)c->target_switched, (long long)c->target_moves);
    event->layers = c->target_switched;
    event->moves = c->target_moves;
    c->moving = 0;
    c->doing = LPLB__IDLE;
    /* What the interval was measured against has changed. */
    c->last_variance = c->last_loss = -1;
}

static uint64_t chunk_digest(const lplb__core *c) {
    uint64_t hash = lplb__hash(&c->now, sizeof c->now, (uint64_t)c->repairing);
    return lplb__hash(c->chunk, (size_t)c->chunk_layers * sizeof *c->chunk, hash);
}

static void chunk_failed(lplb__core *c, lplb_status agreed) {
    bool mine = c->chunk_status != LPLB_OK;
    c->stats.move_failures++;
    lplb_event *event =
        lplb__core_event(c, LPLB_EVENT_MOVE_FAILED, mine ? c->chunk_status : agreed, "%s",
                         mine ? c->chunk_text : "another rank could not move its part");
    event->layers = c->chunk_layers;
    event->moves = c->chunk_moves;
    if (c->chunk_layers == 1) event->layer = c->chunk[0];
    for (int32_t i = 0; i < c->chunk_layers; i++) c->todo[c->chunk[i]] = 0;
    c->doing = LPLB__DISCARDING;
    c->at = 0;
    if (!c->repairing) return;
    c->moving = 0;
    c->retry_step = c->now + c->config.min_interval;
}

static void count_switch(lplb__core *c) {
    c->stats.layers_switched += c->chunk_layers;
    c->stats.moves += c->chunk_moves;
    c->stats.moved_bytes += c->chunk_moves * c->config.expert_bytes;
    c->credit -= (double)c->chunk_moves;
    if (c->credit < 0) c->credit = 0; /* repairs are not limited */
    c->target_moves += c->chunk_moves;
    c->target_switched += c->chunk_layers;
}

static void repair_succeeded(lplb__core *c) {
    lplb__copy_map(c->active, c->repair);
    lplb__core_all_shares(c);
    c->stats.loaded += c->n_lost;
    c->stats.recoveries++;
    count_switch(c);
    lplb_event *event = lplb__core_event(c, LPLB_EVENT_RECOVERED, LPLB_OK,
                                         "%lld lost experts were loaded", (long long)c->n_lost);
    event->moves = c->n_lost;
    c->n_lost = 0;
    c->usable = 1;
    c->moving = 0;
    c->doing = LPLB__ANNOUNCING;
    c->at = 0;
}

static void agreed_moves(lplb__core *c, lplb_status agreed) {
    if (c->chunk_status != LPLB_OK || agreed != LPLB_OK) {
        chunk_failed(c, agreed);
    } else if (c->repairing) {
        repair_succeeded(c);
    } else {
        c->doing = LPLB__COMMITTING;
        c->at = 0;
    }
}

static void end_commit(lplb__core *c) {
    count_switch(c);
    lplb_event *event =
        lplb__core_event(c, LPLB_EVENT_SWITCH, LPLB_OK, "layers %d to %d, %d of them", c->chunk[0],
                         c->chunk[c->chunk_layers - 1], c->chunk_layers);
    event->layers = c->chunk_layers;
    event->moves = c->chunk_moves;
    for (int32_t i = 0; i < c->chunk_layers; i++) c->todo[c->chunk[i]] = 0;
    c->chunk_layers = c->staged_layers = 0;
    c->doing = LPLB__IDLE;
}

/* ---- what to do now ---- */

static void begin_repair(lplb__core *c) {
    memset(c->todo, 0, (size_t)c->config.layers);
    for (int64_t i = 0; i < c->n_lost; i++) c->todo[c->lost[i].layer] = 1;
    begin_moving(c, c->repair, 1);
}

static bool has_loads(const lplb__core *c) {
    lplb_tracker_stats stats;
    lplb_tracker_get_stats(c->tracker, &stats);
    return stats.batches > 0;
}

/* In the order in which they must be done. */
static void find_due(lplb__core *c) {
    if (c->restart_job) {
        c->restart_job = 0;
        c->doing = LPLB__STARTING;
    } else if (c->restage) {
        c->restage = 0;
        c->doing = LPLB__STAGING;
        c->at = 0;
    } else if (c->announce) {
        c->announce = 0;
        c->doing = LPLB__ANNOUNCING;
        c->at = 0;
    } else if (!c->usable && !c->moving && !c->slots_missing && c->n_lost && c->config.load_lost &&
               c->now >= c->retry_step) {
        begin_repair(c);
        find_due(c);
    } else if (c->moving && !c->chunk_layers) {
        if (form_chunk(c)) {
            c->doing = LPLB__STAGING;
            c->at = 0;
            c->chunk_step = c->now;
        } else {
            end_moving(c);
            find_due(c);
        }
    } else if (c->moving && c->now >= c->chunk_step + (c->repairing ? 0 : c->config.move_lag)) {
        c->doing = LPLB__FINISHING;
        c->at = 0;
    } else if (c->job_running && !c->moving && c->now >= c->adopt_step) {
        /* putting off has an end: then the wait, which has one, too */
        bool patient = c->now - c->last_decision < c->config.max_interval + c->config.adopt_lag;
        c->doing = c->config.late == LPLB_LATE_POSTPONE && patient ? LPLB__ASKING : LPLB__TAKING;
    } else if (!c->job_running && !c->moving && c->usable &&
               ((c->repair_wanted && c->now >= c->repair_step) ||
                (c->now >= c->next_decision && has_loads(c) && has_credit(c)))) {
        begin_request(c);
    }
}

/* Leaves states that are through all their layers. */
static bool pass_ends(lplb__core *c) {
    if (c->doing == LPLB__STAGING && (c->at == c->chunk_layers || c->chunk_status != LPLB_OK)) {
        c->doing = LPLB__IDLE;
    } else if (c->doing == LPLB__FINISHING &&
               (c->at == c->chunk_layers || c->chunk_status != LPLB_OK)) {
        c->doing = LPLB__AGREEING_MOVES;
    } else if (c->doing == LPLB__COMMITTING && c->at == c->chunk_layers) {
        end_commit(c);
    } else if (c->doing == LPLB__DISCARDING && c->at == c->staged_layers) {
        c->chunk_layers = c->staged_layers = 0;
        c->doing = LPLB__IDLE;
    } else if (c->doing == LPLB__ANNOUNCING && c->at == c->config.layers) {
        c->chunk_layers = c->staged_layers = 0;
        c->doing = LPLB__IDLE;
    } else {
        return false;
    }
    return true;
}

static void describe_layer(lplb__core *c, lplb__action *action) {
    bool all = c->doing == LPLB__ANNOUNCING;
    action->layer = all ? c->at : c->chunk[c->at];
    if (c->doing == LPLB__STAGING) {
        int64_t crossing;
        find_moves(c, action->layer, &action->n_moves, &crossing);
        action->moves = c->move;
        action->kind = LPLB__STAGE;
    } else if (c->doing == LPLB__FINISHING) {
        action->kind = LPLB__FINISH;
    } else if (c->doing == LPLB__DISCARDING) {
        action->kind = LPLB__DISCARD;
    } else {
        int32_t *row = lplb__row(c->active, action->layer);
        if (!all) {
            memcpy(row, lplb__row(c->target, action->layer), (size_t)c->config.slots * sizeof *row);
            lplb__core_shares(c, action->layer);
        }
        action->row = row;
        action->kind = LPLB__COMMIT;
    }
}

bool lplb__core_next(lplb__core *c, lplb__action *action) {
    do {
        if (c->doing == LPLB__IDLE) find_due(c);
        if (c->doing == LPLB__IDLE) return false;
    } while (pass_ends(c));
    *action = (lplb__action){.layer = -1};
    switch (c->doing) {
    case LPLB__STARTING: action->kind = LPLB__START_JOB; break;
    case LPLB__ASKING: action->kind = LPLB__ASK_JOB; break;
    case LPLB__TAKING: action->kind = LPLB__TAKE_JOB; break;
    case LPLB__AGREEING_DONE:
        action->kind = LPLB__AGREE;
        action->ok = c->chunk_status == LPLB_OK;
        action->digest = lplb__hash(&c->adopt_step, sizeof c->adopt_step, 0);
        break;
    case LPLB__AGREEING_PLACEMENT:
    case LPLB__AGREEING_MOVES:
        action->kind = LPLB__AGREE;
        action->ok = c->chunk_status == LPLB_OK;
        /* without ok there is nothing to compare, and a late worker may still be writing it */
        if (action->ok)
            action->digest =
                c->doing == LPLB__AGREEING_MOVES ? chunk_digest(c) : proposal_digest(c);
        break;
    default: describe_layer(c, action);
    }
    return true;
}

static void layer_failed(lplb__core *c, lplb_status status, const char *what) {
    c->chunk_status = status;
    char reason[160];
    keep_error(reason, sizeof reason);
    snprintf(c->chunk_text, sizeof c->chunk_text, "layer %d could not be %s: %s", c->chunk[c->at],
             what, reason);
}

void lplb__core_answer(lplb__core *c, lplb_status status) {
    switch (c->doing) {
    case LPLB__STARTING:
        c->job_running = 1;
        if (status != LPLB_OK && c->start_status == LPLB_OK) {
            c->start_status = status;
            keep_error(c->start_text, sizeof c->start_text);
        }
        c->doing = LPLB__IDLE;
        break;
    case LPLB__ASKING:
        c->chunk_status = status;
        c->doing = LPLB__AGREEING_DONE;
        break;
    case LPLB__AGREEING_DONE:
        if (status == LPLB_OK) c->doing = LPLB__TAKING;
        else postpone(c);
        break;
    case LPLB__TAKING: take_job(c, status); break;
    case LPLB__AGREEING_PLACEMENT: decide(c, status); break;
    case LPLB__AGREEING_MOVES: agreed_moves(c, status); break;
    case LPLB__STAGING:
        c->staged_layers = c->at + 1; /* one that failed half way has to be thrown away too */
        if (status != LPLB_OK) layer_failed(c, status, "staged");
        else c->at++;
        break;
    case LPLB__FINISHING:
        if (status != LPLB_OK) layer_failed(c, status, "moved");
        else c->at++;
        break;
    case LPLB__COMMITTING:
    case LPLB__DISCARDING:
    case LPLB__ANNOUNCING: c->at++; break;
    case LPLB__IDLE: break;
    }
}
