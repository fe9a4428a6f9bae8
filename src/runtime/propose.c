/* The decision: which layers get a new mapping, and whether it is worth their moves. */
#include "runtime/propose.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"

static lplb__slots slots_of(const lplb_manager_config *config, const lplb__job *job) {
    return (lplb__slots){job->from->experts, job->from->slots,       job->from->ranks,
                         config->nodes,      job->from->rank_offset, job->dead};
}

static int32_t *row_of(const lplb_placement *p, int32_t layer) {
    return p->physical_to_logical + (int64_t)layer * p->slots;
}

/* A placement looks better on the batches that it was fitted to than on the next ones, so every
 * other batch is kept for judging. With few of them all serve for both. */
enum { FEW_SAMPLES = 8 };

/* How many serve for judging; 1 where only a sum is known. */
static int64_t judged_samples(const lplb__job *job) {
    if (job->samples >= FEW_SAMPLES) return job->samples / 2;
    return job->samples ? job->samples : 1;
}
static bool is_placed(const lplb__job *job, int64_t sample) {
    return job->samples < FEW_SAMPLES || sample % 2 == 0;
}

/* ---- judging ---- */

static int32_t ranks_in_use(const lplb_placement *p, const int32_t *row) {
    int32_t used = 0;
    for (int32_t r = 0; r < p->ranks; r++) {
        int32_t s = p->rank_offset[r];
        while (s < p->rank_offset[r + 1] && row[s] < 0) s++;
        used += s < p->rank_offset[r + 1];
    }
    return used;
}

/* [judged][L][E], in out->chosen_load where they do not lie so already. */
static const int64_t *judged_loads(const lplb__job *job, lplb__proposal *out) {
    int64_t cells = (int64_t)job->from->layers * job->from->experts, n = 0;
    if (!job->samples) return job->load;
    if (job->samples < FEW_SAMPLES) return job->sample;
    for (int64_t k = 1; k < job->samples; k += 2)
        memcpy(out->chosen_load + n++ * cells, job->sample + k * cells,
               (size_t)cells * sizeof *job->sample);
    return out->chosen_load;
}

/* Imbalance by (judged sample, layer) over the ranks that are alive: a rank that came back empty
 * counts as idle here, while lplb_placement_imbalance leaves it out. */
static lplb_status judge(const lplb_manager_config *config, const lplb__job *job,
                         lplb__proposal *out, const lplb_placement *placement, double *by_sample) {
    lplb__slots s = slots_of(config, job);
    int64_t samples = judged_samples(job);
    int32_t live = lplb__live_ranks(&s);
    LPLB_TRY(lplb_placement_imbalance(placement, judged_loads(job, out), samples,
                                      config->even_split ? LPLB_SOLVER_EVEN : LPLB_SOLVER_EXACT,
                                      config->threads, by_sample));
    for (int32_t layer = 0; layer < placement->layers; layer++) {
        int32_t used = ranks_in_use(placement, row_of(placement, layer));
        if (used == live) continue;
        for (int64_t k = 0; k < samples; k++)
            by_sample[k * placement->layers + layer] *= (double)live / used;
    }
    return LPLB_OK;
}

/* Mean over the samples in which the layer had tokens; 0 if there is none. */
static double layer_mean(const lplb__job *job, const double *by_sample, int32_t layer) {
    double sum = 0;
    int64_t n = 0, samples = judged_samples(job);
    for (int64_t k = 0; k < samples; k++) {
        double value = by_sample[k * job->from->layers + layer];
        if (value > 0) sum += value, n++;
    }
    return n ? sum / (double)n : 0;
}

static void layer_means(const lplb__job *job, const double *by_sample, double *out) {
    for (int32_t layer = 0; layer < job->from->layers; layer++)
        out[layer] = layer_mean(job, by_sample, layer);
}

/* ---- placing ---- */

/* Layers worth a new placement; returns how many. */
static int32_t choose_layers(const lplb_manager_config *config, const lplb__job *job,
                             lplb__proposal *out) {
    int32_t n = 0;
    for (int32_t layer = 0; layer < job->from->layers; layer++)
        if (job->repair || config->always || out->before[layer] > config->keep_below)
            out->chosen[n++] = layer;
    return n;
}

/* The chosen layers of the present mapping as a placement of their own. */
static lplb_status extract(const lplb__job *job, const lplb__proposal *out, int32_t n,
                           lplb_placement **part) {
    const lplb_placement *p = job->from;
    int32_t *per_rank;
    LPLB_TRY(LPLB_CALLOC(per_rank, p->ranks));
    for (int32_t r = 0; r < p->ranks; r++) per_rank[r] = p->rank_offset[r + 1] - p->rank_offset[r];
    lplb_status status = lplb_placement_create(n, p->experts, p->slots, p->ranks, per_rank, part);
    lplb__free(per_rank);
    for (int32_t i = 0; status == LPLB_OK && i < n; i++)
        memcpy(row_of(*part, i), row_of(p, out->chosen[i]), (size_t)p->slots * sizeof(int32_t));
    return status;
}

/* Moves that a layer may make: when ranks came back their slots must be filled too. */
static int64_t move_limit(const lplb_manager_config *config, const lplb__job *job) {
    return job->repair ? -1 : config->max_moves_per_layer;
}

/* The batches to place for, of the chosen layers only: [samples][n][E]. EPLB knows sums alone. */
static int64_t gather_chosen(const lplb__job *job, bool search, lplb__proposal *out, int32_t n) {
    int64_t E = job->from->experts, samples = search && job->samples ? job->samples : 1, placed = 0;
    for (int64_t k = 0; k < samples; k++) {
        const int64_t *from = job->load;
        if (search && job->samples) from = job->sample + k * job->from->layers * E;
        if (search && job->samples && !is_placed(job, k)) continue;
        for (int32_t i = 0; i < n; i++)
            memcpy(out->chosen_load + (placed * n + i) * E, from + out->chosen[i] * E,
                   (size_t)E * sizeof *from);
        placed++;
    }
    return placed;
}

static lplb_status place_chosen(const lplb_manager_config *config, const lplb__job *job,
                                lplb__proposal *out, int32_t n, lplb_placement **placed) {
    const lplb_placement *p = job->from;
    lplb_placement *part = NULL;
    bool search = config->algorithm == LPLB_PLACE_SEARCH;
    if (search) LPLB_TRY(extract(job, out, n, &part));
    int64_t samples = gather_chosen(job, search, out, n);
    lplb_place_config place = {.struct_size = sizeof place,
                               .algorithm = config->algorithm,
                               .ranks = p->ranks,
                               .slots = p->slots,
                               .slots_per_rank = config->slots_per_rank,
                               .nodes = config->nodes,
                               .groups = config->groups,
                               .topology = config->topology,
                               .from = part,
                               .max_moves = move_limit(config, job),
                               .dead_ranks = job->dead,
                               .batch_tokens = search ? job->selections : 0,
                               .seed = config->seed + (uint64_t)job->step,
                               .effort = config->effort,
                               .threads = config->threads,
                               .exact_split = search ? 1 + (config->even_split != 0) : 0,
                               .samples_as_are = search && samples > 1,
                               .move_cost = search && !job->repair ? config->move_cost : 0,
                               .work = search ? config->work : 0};
    const lplb_manager_hooks *hooks = &config->hooks;
    lplb_status status =
        hooks->place ? hooks->place(hooks->user, &place, out->chosen_load, samples, n, p->experts,
                                    NULL, placed)
                     : lplb_place(&place, out->chosen_load, samples, n, p->experts, NULL, placed);
    lplb_placement_destroy(part);
    return status;
}

/* Copies the placed layers to proposal->to, aligned; the others stay. */
static lplb_status merge(const lplb_manager_config *config, const lplb__job *job,
                         lplb__proposal *out, int32_t n, const lplb_placement *placed) {
    const lplb_placement *p = job->from;
    lplb__slots s = slots_of(config, job);
    if (placed->layers != n || placed->experts != p->experts || placed->slots != p->slots ||
        placed->ranks != p->ranks)
        return LPLB_FAIL(LPLB_CHECK_FAILED,
                         "asked for %d layers, %d experts, %d slots, %d ranks and got a placement "
                         "of %d, %d, %d, %d",
                         n, p->experts, p->slots, p->ranks, placed->layers, placed->experts,
                         placed->slots, placed->ranks);
    for (int32_t i = 0; i < n; i++) {
        int32_t layer = out->chosen[i];
        LPLB_TRY(lplb__validate_layer(&s, layer, row_of(placed, i), true, out->seen));
        lplb__align_layer(&s, row_of(p, layer), row_of(placed, i), row_of(out->to, layer),
                          out->taken);
    }
    return LPLB_OK;
}

/* ---- worth ---- */

static void count_moves(const lplb_manager_config *config, const lplb__job *job,
                        lplb__proposal *out) {
    lplb__slots s = slots_of(config, job);
    for (int32_t layer = 0; layer < job->from->layers; layer++)
        lplb__diff_layer(&s, layer, row_of(job->from, layer), row_of(out->to, layer), &out->diff,
                         out->move, &out->moves[layer]);
}

/* Most experts that one rank receives, or sends: the transfers of different ranks overlap. */
static int64_t busiest_rank(const lplb_manager_config *config, const lplb__job *job,
                            lplb__proposal *out, int32_t layer) {
    lplb__slots s = slots_of(config, job);
    int64_t crossing, most = 0, received = 0;
    int64_t n = lplb__diff_layer(&s, layer, row_of(job->from, layer), row_of(out->to, layer),
                                 &out->diff, out->move, &crossing);
    for (int64_t i = 0; i < n; i++) {
        if (i == 0 || out->move[i].rank != out->move[i - 1].rank) received = 0;
        received += out->move[i].source_rank != out->move[i].rank;
        if (received > most) most = received;
    }
    for (int32_t r = 0; r < s.ranks; r++)
        if (out->diff.sends[r] > most) most = out->diff.sends[r];
    return most;
}

/* Is the gain more than the noise of the samples? Paired differences, one standard error. */
static bool gain_is_clear(const lplb__job *job, const lplb__proposal *out, int32_t layer,
                          double min_gain) {
    int64_t n = 0, samples = judged_samples(job);
    int32_t L = job->from->layers;
    double sum = 0, squares = 0;
    for (int64_t k = 0; k < samples; k++) {
        double before = out->by_sample[0][k * L + layer], after = out->by_sample[1][k * L + layer];
        if (!(before > 0)) continue;
        sum += before - after;
        squares += (before - after) * (before - after);
        n++;
    }
    if (!n) return false;
    double mean = sum / (double)n, variance = squares / (double)n - mean * mean;
    double error = n > 1 && variance > 0 ? sqrt(variance / (double)(n - 1)) : 0;
    return mean >= min_gain && mean > error;
}

/* ns saved a step against ns of moving; true where nothing is known of them. */
static bool gain_pays(const lplb_manager_config *config, const lplb__job *job, lplb__proposal *out,
                      int32_t layer) {
    if (!config->expert_bytes) return true;
    lplb__slots s = slots_of(config, job);
    double per_rank = (double)job->selections / lplb__live_ranks(&s);
    double gain_ns = (out->before[layer] - out->after[layer]) * per_rank * config->token_ns *
                     (double)job->interval;
    double cost_ns = (double)busiest_rank(config, job, out, layer) * (double)config->expert_bytes /
                     config->link_bytes_per_s * 1e9 * config->exposed;
    return gain_ns > config->hysteresis * cost_ns;
}

/* Layers by falling gain a move, ties to the lower layer. Insertion: L is small. */
static void sort_by_gain(lplb__proposal *out, int32_t n) {
    for (int32_t i = 1; i < n; i++) {
        int32_t layer = out->chosen[i], k = i;
        double gain = (out->before[layer] - out->after[layer]) / (double)(out->moves[layer] + 1);
        for (; k > 0; k--) {
            int32_t other = out->chosen[k - 1];
            double rival =
                (out->before[other] - out->after[other]) / (double)(out->moves[other] + 1);
            if (rival >= gain) break;
            out->chosen[k] = other;
        }
        out->chosen[k] = layer;
    }
}

static bool rows_differ(const lplb__job *job, const lplb__proposal *out, int32_t layer) {
    return memcmp(row_of(job->from, layer), row_of(out->to, layer),
                  (size_t)job->from->slots * sizeof(int32_t)) != 0;
}

/* Marks the layers to take, within the budget of moves; the rest goes back to what it was. */
static void take_layers(const lplb_manager_config *config, const lplb__job *job,
                        lplb__proposal *out, int32_t n) {
    int64_t budget = job->repair ? INT64_MAX : job->budget;
    bool whatever = job->repair || config->always;
    sort_by_gain(out, n);
    for (int32_t i = 0; i < n; i++) {
        int32_t layer = out->chosen[i];
        bool take = rows_differ(job, out, layer) && out->moves[layer] <= budget &&
                    (whatever || (gain_is_clear(job, out, layer, config->min_gain) &&
                                  gain_pays(config, job, out, layer)));
        out->take[layer] = take;
        if (take) budget -= out->moves[layer];
        else
            memcpy(row_of(out->to, layer), row_of(job->from, layer),
                   (size_t)job->from->slots * sizeof(int32_t));
        out->layers += take;
    }
}

static void summarise(const lplb__job *job, lplb__proposal *out) {
    double before = 0, after = 0;
    int32_t n = 0;
    for (int32_t layer = 0; layer < job->from->layers; layer++) {
        if (!(out->before[layer] > 0)) continue;
        before += out->before[layer];
        after += out->take[layer] ? out->after[layer] : out->before[layer];
        n++;
    }
    out->mean_before = n ? before / n : 0;
    out->mean_after = n ? after / n : 0;
}

static lplb_status propose(const lplb_manager_config *config, const lplb__job *job,
                           lplb__proposal *out) {
    LPLB_TRY(judge(config, job, out, job->from, out->by_sample[0]));
    layer_means(job, out->by_sample[0], out->before);
    int32_t n = choose_layers(config, job, out);
    if (!n) {
        summarise(job, out);
        snprintf(out->text, sizeof out->text, "no layer is above an imbalance of %g",
                 config->keep_below);
        return LPLB_OK;
    }
    lplb_placement *placed = NULL;
    LPLB_TRY(place_chosen(config, job, out, n, &placed));
    lplb_status status = merge(config, job, out, n, placed);
    lplb_placement_destroy(placed);
    LPLB_TRY(status);
    LPLB_TRY(judge(config, job, out, out->to, out->by_sample[1]));
    layer_means(job, out->by_sample[1], out->after);
    count_moves(config, job, out);
    take_layers(config, job, out, n);
    summarise(job, out);
    if (!out->layers)
        snprintf(out->text, sizeof out->text, "of %d layers placed anew none is worth its moves",
                 n);
    return LPLB_OK;
}

void lplb__propose(const lplb_manager_config *config, const lplb__job *job, lplb__proposal *out) {
    int32_t L = job->from->layers;
    out->text[0] = '\0';
    out->layers = 0;
    out->mean_before = out->mean_after = 0;
    memset(out->take, 0, (size_t)L);
    memset(out->moves, 0, (size_t)L * sizeof *out->moves);
    memset(out->after, 0, (size_t)L * sizeof *out->after);
    memcpy(out->to->physical_to_logical, job->from->physical_to_logical,
           (size_t)L * (size_t)job->from->slots * sizeof(int32_t));
    int64_t start = lplb__now_ns();
    out->status = propose(config, job, out);
    out->place_ns = lplb__now_ns() - start;
    if (out->status != LPLB_OK) {
        const char *message = lplb_error_message();
        snprintf(out->text, sizeof out->text, "%s", *message ? message : "the place hook failed");
    }
}
