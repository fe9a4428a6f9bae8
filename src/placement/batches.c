/* The batches that a layer's placement is scored on.
 *
 * A placement that is perfect on the recorded batches is not the one that serves the next hour
 * best: with as many slots as there are to choose, the search fits the accidents of the record. It
 * is scored on batches of an eighth of the served size instead, whose routing is noisier and more
 * one-sided than what will be served. Runs of consecutive steps carry the real, correlated noise
 * and are used where the samples are fine enough; coarser samples are thinned: each expert's load
 * is scaled by a log-normal factor (topics drift together, counting noise alone is too mild), then
 * an eighth of a batch is drawn. */
#include <string.h>

#include "base/mem.h"
#include "placement/search.h"

enum {
    BATCHES_SMALL = 320, /* most batches of a layer with few ranks, */
    BATCHES_LARGE = 64,  /* and with many, where each costs a max-flow now and then */
    PER_EXPERT = 16,     /* selections per expert of a scored batch when its size is unknown: an
                            eighth of 4,096 tokens of top 8 over 256 experts */
    SERVED_TO_SCORED = 8
};

/* exp(0.5 z) at the midpoints of 16 equal slices of the normal distribution: a log-normal factor of
 * sigma 0.5 without libm, whose last digits differ between machines. */
static const double spread_factor[16] = {0.3940, 0.5174, 0.6035, 0.6783, 0.7486, 0.8178,
                                         0.8882, 0.9616, 1.0400, 1.1259, 1.2228, 1.3358,
                                         1.4743, 1.6570, 1.9329, 2.5380};

/* Consecutive samples of equal weight, taken as one. */
typedef struct group {
    int64_t first, count, total;
    double weight;
} group;

typedef struct batch_plan {
    group *groups; /* [samples] */
    int64_t n_groups;
    int64_t used;  /* groups that are scored, evenly spaced */
    int64_t draws; /* batches from each of them */
    int64_t size;  /* selections to draw; 0 = the group as it is */
} batch_plan;

static int64_t sample_total(const lplb__place_task *task, int64_t sample, int32_t layer) {
    const int64_t *row = lplb__task_row(task, sample, layer);
    int64_t sum = 0;
    for (int32_t e = 0; e < task->experts; e++) sum += row[e];
    return sum;
}

/* Groups of at least `least` selections. */
static void make_groups(batch_plan *plan, const lplb__place_task *task, int32_t layer,
                        int64_t least) {
    group *open = NULL;
    double last_weight = 0;
    plan->n_groups = 0;
    for (int64_t s = 0; s < task->samples; s++) {
        double weight = task->weight ? task->weight[s] : 1;
        int64_t total = sample_total(task, s, layer);
        if (weight == 0 || total == 0) continue;
        if (!open || open->total >= least || weight != last_weight) {
            open = &plan->groups[plan->n_groups++];
            *open = (group){.first = s};
        }
        open->count = s + 1 - open->first;
        open->total += total;
        open->weight += weight;
        last_weight = weight;
    }
}

/* Selections of a scored batch. Without a batch size several samples count as served batches; of a
 * single sum nothing is known. */
static int64_t scored_size(const lplb__place_task *task, int64_t total, int64_t samples) {
    const lplb_place_config *c = task->config;
    int64_t topk = c->topk ? c->topk : 1;
    if (!c->batch_tokens && samples == 1) return (int64_t)PER_EXPERT * task->experts;
    if (!c->batch_tokens) return total / samples / SERVED_TO_SCORED + 1;
    if (c->batch_tokens > LPLB_MAX_TOKENS / 4 / topk) return LPLB_MAX_TOKENS / 4;
    return c->batch_tokens * topk / SERVED_TO_SCORED + 1;
}

static void plan_batches(batch_plan *plan, const lplb__layer *layer, const lplb__place_task *task) {
    int64_t most = layer->n_alive > 16 ? BATCHES_LARGE : BATCHES_SMALL, total = 0;
    make_groups(plan, task, layer->index, 1);
    for (int64_t g = 0; g < plan->n_groups; g++) total += plan->groups[g].total;
    plan->draws = 1;
    if (layer->even || task->config->samples_as_are) {
        if (plan->n_groups > most) make_groups(plan, task, layer->index, total / most + 1);
    } else {
        int64_t size = scored_size(task, total, plan->n_groups);
        /* a run that adds up to just below the size must not swallow another sample */
        make_groups(plan, task, layer->index, size - size / 4);
        if (total / plan->n_groups > size + size / 2) {
            plan->size = size;
            plan->draws = most / plan->n_groups;
        }
    }
    plan->used = plan->n_groups < most ? plan->n_groups : most;
    if (plan->draws < 1) plan->draws = 1;
}

static void draw_batch(const batch_plan *plan, const lplb__place_task *task,
                       const lplb__layer *layer, const group *g, lplb__rng *rng, double *rate,
                       int64_t *count) {
    int32_t experts = layer->experts;
    memset(count, 0, (size_t)experts * sizeof *count);
    for (int64_t s = g->first; s < g->first + g->count; s++) {
        if (task->weight && task->weight[s] == 0) continue;
        const int64_t *row = lplb__task_row(task, s, layer->index);
        for (int32_t e = 0; e < experts; e++) count[e] += row[e];
    }
    if (!plan->size) return;
    for (int32_t e = 0; e < experts; e++)
        rate[e] = (double)count[e] * spread_factor[lplb__rng_below(rng, 16)];
    lplb__rng_multinomial(rng, plan->size, rate, experts, count);
}

/* Scales a batch by a power of two to a total of 2^22 to 2^24: floats then add it up without
 * rounding. */
static void store_batch(lplb__layer *layer, int32_t b, const int64_t *count, double weight) {
    lplb__batches *batches = &layer->batches;
    int64_t total = 0, scaled = 0, speed = 0;
    int up = 0, down = 0;
    for (int32_t e = 0; e < layer->experts; e++) total += count[e];
    while (total >> down >= (int64_t)1 << 23) down++;
    while (total << up < (int64_t)1 << 22) up++;
    for (int32_t e = 0; e < layer->experts; e++) {
        int64_t w = ((count[e] << up) + ((int64_t)1 << down >> 1)) >> down;
        batches->load[(int64_t)e * batches->padded + b] = (float)w;
        scaled += w;
    }
    for (int32_t i = 0; i < layer->n_alive; i++)
        speed += layer->speed ? layer->speed[layer->alive[i]] : 1;
    batches->mean[b] = (float)((double)scaled / (double)speed);
    batches->weight[b] = (float)weight;
    for (int32_t e = 0; e < layer->experts; e++)
        layer->typical[e] += weight * (double)count[e] / (double)total;
}

static lplb_status fill_batches(lplb__layer *layer, const lplb__place_task *task,
                                const batch_plan *plan) {
    lplb__batches *batches = &layer->batches;
    lplb_status status;
    int64_t *count = NULL;
    double *rate = NULL, all = 0;
    lplb__rng rng;
    lplb__rng_seed(&rng, task->config->seed, 2 * (uint64_t)layer->index + 1);
    LPLB_TRY_GOTO(status, LPLB_CALLOC(count, layer->experts), done);
    LPLB_TRY_GOTO(status, LPLB_CALLOC(rate, layer->experts), done);
    for (int64_t u = 0; u < plan->used; u++)
        all += plan->groups[u * plan->n_groups / plan->used].weight * (double)plan->draws;
    for (int32_t b = 0; b < batches->count; b++) {
        const group *g = &plan->groups[b / plan->draws * plan->n_groups / plan->used];
        draw_batch(plan, task, layer, g, &rng, rate, count);
        store_batch(layer, b, count, g->weight / all);
    }
    for (int32_t b = batches->count; b < batches->padded; b++) batches->mean[b] = 1;
done:
    lplb__free(count);
    lplb__free(rate);
    return status;
}

lplb_status lplb__batches_create(lplb__layer *layer, const lplb__place_task *task) {
    lplb__batches *batches = &layer->batches;
    batch_plan plan = {0};
    lplb_status status;
    LPLB_TRY_GOTO(status, LPLB_CALLOC(plan.groups, task->samples), done);
    plan_batches(&plan, layer, task);
    batches->count = (int32_t)(plan.used * plan.draws);
    batches->padded = (batches->count + LPLB__LANES - 1) / LPLB__LANES * LPLB__LANES;
    LPLB_TRY_GOTO(status, LPLB_CALLOC(batches->load, (int64_t)layer->experts * batches->padded),
                  done);
    LPLB_TRY_GOTO(status, LPLB_CALLOC(batches->mean, batches->padded), done);
    LPLB_TRY_GOTO(status, LPLB_CALLOC(batches->weight, batches->padded), done);
    status = fill_batches(layer, task, &plan);
done:
    lplb__free(plan.groups);
    return status;
}

void lplb__batches_destroy(lplb__batches *batches) {
    lplb__free(batches->load);
    lplb__free(batches->mean);
    lplb__free(batches->weight);
}
