/* The score of an assignment over all batches, and of its neighbours in about a microsecond.
 *
 * Every batch keeps a split of each expert's tokens over its slots, as even over the ranks as it
 * can be. A change disturbs it, and the experts around the changed ranks are balanced again, pair
 * of hosts by pair of hosts, each pair exactly. That descends on the sum of squared loads, whose
 * least split also has the least maximum; a few sweeps give an upper bound that is close, and a
 * refresh now and then takes the true optimum from the planner. All batches of a block go through
 * the same steps side by side. */
#include <float.h>
#include <string.h>

#if defined(__SSE__)
#include <xmmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "base/mem.h"
#include "placement/search.h"

enum {
    PAIRS_MAX = 96, /* pairs of hosts balanced around a change, beside those of its own experts */
    ROUNDS = 3,     /* how far around: from the changed ranks over this many experts */
    SWEEPS = 4,     /* at once; then the gain is looked at */
    SWEEPS_MAX = 24,
    REFRESH_SWEEPS = 16
};

/* A block whose score falls by less is balanced. */
static const double SETTLED = 3e-5;

/* Units of work, about a nanosecond on a core of an Intel Xeon (Sapphire Rapids): a pair balanced
 * in one sweep of a block, a rank or slot of a block gone through, a guess, an expert's slot in the
 * exact plan of one batch, a try. */
enum { WORK_PAIR = 15, WORK_ROW = 7, WORK_GUESS = 85, WORK_PLANNED = 170, WORK_TRY = 100 };

/* Weight of the variance over ranks beside the maximum: with even splits most changes leave the
 * fullest rank as it is, and this tells the useful ones apart. */
static const float VARIANCE_WEIGHT[2] = {0.03f, 0.5f}; /* optimal, even splits */

/* Four floats side by side; every lane rounds by itself, so results do not depend on the width. */
typedef float v4f __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t v4i __attribute__((vector_size(16)));
enum { PARTS = LPLB__LANES / 4 };
typedef struct lanes {
    v4f part[PARTS];
} lanes;

static inline v4f max4(v4f a, v4f b) {
#if defined(__SSE__)
    return _mm_max_ps(a, b);
#elif defined(__ARM_NEON)
    return vmaxq_f32(a, b);
#else
    for (int i = 0; i < 4; i++) a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
#endif
}

static inline v4f min4(v4f a, v4f b) {
#if defined(__SSE__)
    return _mm_min_ps(a, b);
#elif defined(__ARM_NEON)
    return vminq_f32(a, b);
#else
    for (int i = 0; i < 4; i++) a[i] = a[i] < b[i] ? a[i] : b[i];
    return a;
#endif
}

/* Two hosts of one expert, as indices into the region's ranks and slots. */
typedef struct pair {
    int32_t rank_a, rank_b, slot_a, slot_b;
    float keep_a, keep_b; /* speed_b and speed_a over their sum */
} pair;

struct lplb__score {
    lplb__layer *layer;
    int32_t blocks;
    lanes *load;                  /* [blocks][G] tokens on each rank */
    lanes *split;                 /* [blocks][P] tokens that the slot serves */
    lanes *mean;                  /* [blocks] */
    lanes *weight, *norm, *norm2; /* [blocks] weight, / mean, / mean^2 / speed of all alive */
    double *rest;                 /* [blocks + 1] weight of the batches from this block on */
    float *inverse;               /* [G] 1 / speed */
    /* the region of the last change */
    int32_t *rank_index;           /* [G] index in the region or -1 */
    int32_t *slot_index;           /* [P] likewise */
    int32_t *expert_mark;          /* [E] nonzero = in the region */
    int32_t *rank, *slot, *expert; /* members, [G], [P], [E] */
    int32_t n_ranks, n_slots, n_experts, n_pairs;
    pair *pairs;      /* [3 P] */
    lanes *new_load;  /* [blocks][G] of the region's ranks */
    lanes *new_split; /* [blocks][P] */
    int32_t tried;    /* blocks whose new loads and splits are there */
    /* refresh */
    float *value;    /* [padded] score of each batch at the last refresh, over its mean */
    int32_t *column; /* [padded] order of the batches */
    float *line;     /* [padded] */
    int32_t refreshes;
    int64_t work;                     /* units done */
    int64_t *offset, *tokens, *serve; /* [E+1], [E], [P] */
    int32_t *host, *host_slot;        /* [P] */
};

/* ---- life ---- */

void lplb__score_destroy(lplb__score *s) {
    if (!s) return;
    void *const blocks[] = {s->load,        s->split,     s->mean,    s->weight,     s->norm,
                            s->norm2,       s->rest,      s->inverse, s->rank_index, s->slot_index,
                            s->expert_mark, s->rank,      s->slot,    s->expert,     s->pairs,
                            s->new_load,    s->new_split, s->value,   s->column,     s->line,
                            s->offset,      s->tokens,    s->serve,   s->host,       s->host_slot};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) lplb__free(blocks[i]);
    lplb__free(s);
}

static lplb_status allocate(lplb__score *s) {
    int64_t G = s->layer->ranks, P = s->layer->slots, E = s->layer->experts, n = s->blocks;
    LPLB_TRY(LPLB_CALLOC(s->load, n * G));
    LPLB_TRY(LPLB_CALLOC(s->split, n * P));
    LPLB_TRY(LPLB_CALLOC(s->mean, n));
    LPLB_TRY(LPLB_CALLOC(s->weight, n));
    LPLB_TRY(LPLB_CALLOC(s->norm, n));
    LPLB_TRY(LPLB_CALLOC(s->norm2, n));
    LPLB_TRY(LPLB_CALLOC(s->rest, n + 1));
    LPLB_TRY(LPLB_CALLOC(s->inverse, G));
    LPLB_TRY(LPLB_CALLOC(s->rank_index, G));
    LPLB_TRY(LPLB_CALLOC(s->slot_index, P));
    LPLB_TRY(LPLB_CALLOC(s->expert_mark, E));
    LPLB_TRY(LPLB_CALLOC(s->rank, G));
    LPLB_TRY(LPLB_CALLOC(s->slot, P));
    LPLB_TRY(LPLB_CALLOC(s->expert, E));
    LPLB_TRY(LPLB_CALLOC(s->pairs, 2 * P));
    LPLB_TRY(LPLB_CALLOC(s->new_load, n * G));
    LPLB_TRY(LPLB_CALLOC(s->new_split, n * P));
    LPLB_TRY(LPLB_CALLOC(s->value, n * LPLB__LANES));
    LPLB_TRY(LPLB_CALLOC(s->column, n * LPLB__LANES));
    LPLB_TRY(LPLB_CALLOC(s->line, n * LPLB__LANES));
    LPLB_TRY(LPLB_CALLOC(s->offset, E + 1));
    LPLB_TRY(LPLB_CALLOC(s->tokens, E));
    LPLB_TRY(LPLB_CALLOC(s->serve, P));
    LPLB_TRY(LPLB_CALLOC(s->host, P));
    return LPLB_CALLOC(s->host_slot, P);
}

static double rank_speed(const lplb__layer *layer, int32_t rank) {
    return (double)(layer->speed ? layer->speed[rank] : 1);
}

/* What depends on the order of the batches. */
static void weigh(lplb__score *s) {
    const lplb__batches *batches = &s->layer->batches;
    double speed = 0;
    for (int32_t i = 0; i < s->layer->n_alive; i++)
        speed += rank_speed(s->layer, s->layer->alive[i]);
    memcpy(s->mean, batches->mean, (size_t)batches->padded * sizeof *batches->mean);
    memcpy(s->weight, batches->weight, (size_t)batches->padded * sizeof *batches->weight);
    for (int32_t k = s->blocks - 1; k >= 0; k--) {
        s->rest[k] = s->rest[k + 1];
        for (int32_t b = k * LPLB__LANES; b < (k + 1) * LPLB__LANES; b++)
            s->rest[k] += (double)batches->weight[b];
        for (int p = 0; p < PARTS; p++) {
            s->norm[k].part[p] = s->weight[k].part[p] / s->mean[k].part[p];
            s->norm2[k].part[p] = s->norm[k].part[p] / s->mean[k].part[p] / (float)speed;
        }
    }
}

lplb_status lplb__score_create(lplb__score **out, lplb__layer *layer) {
    lplb__score *s;
    LPLB_TRY(LPLB_CALLOC(s, 1));
    *out = s;
    s->layer = layer;
    s->blocks = layer->batches.padded / LPLB__LANES;
    LPLB_TRY(allocate(s));
    for (int32_t r = 0; r < layer->ranks; r++) {
        s->inverse[r] = (float)(1 / rank_speed(layer, r));
        s->rank_index[r] = -1;
    }
    for (int32_t i = 0; i < layer->slots; i++) s->slot_index[i] = -1;
    weigh(s);
    return LPLB_OK;
}

/* ---- the region around a change ---- */

static void add_rank(lplb__score *s, int32_t rank) {
    if (s->rank_index[rank] >= 0) return;
    s->rank_index[rank] = s->n_ranks;
    s->rank[s->n_ranks++] = rank;
}

static void add_pair(lplb__score *s, int32_t a, int32_t b) {
    const int32_t *slot_rank = s->layer->slot_rank;
    int32_t rank_a = slot_rank[s->slot[a]], rank_b = slot_rank[s->slot[b]];
    float sum = (float)(rank_speed(s->layer, rank_a) + rank_speed(s->layer, rank_b));
    s->pairs[s->n_pairs++] = (pair){.rank_a = s->rank_index[rank_a],
                                    .rank_b = s->rank_index[rank_b],
                                    .slot_a = a,
                                    .slot_b = b,
                                    .keep_a = (float)rank_speed(s->layer, rank_b) / sum,
                                    .keep_b = (float)rank_speed(s->layer, rank_a) / sum};
}

/* The expert's hosts; neighbours and next neighbours among them are balanced against each other. */
static void add_expert(lplb__score *s, const lplb__assignment *a, int32_t expert) {
    if (s->expert_mark[expert]) return;
    s->expert_mark[expert] = 1;
    s->expert[s->n_experts++] = expert;
    int32_t first = s->n_slots;
    for (int32_t slot = a->first[expert]; slot >= 0; slot = a->next[slot]) {
        s->slot_index[slot] = s->n_slots;
        s->slot[s->n_slots++] = slot;
        add_rank(s, s->layer->slot_rank[slot]);
    }
    for (int32_t i = first + 1; i < s->n_slots && !s->layer->even; i++) {
        add_pair(s, i - 1, i);
        if (i > first + 1) add_pair(s, i - 2, i);
    }
}

static void clear_region(lplb__score *s) {
    for (int32_t i = 0; i < s->n_ranks; i++) s->rank_index[s->rank[i]] = -1;
    for (int32_t i = 0; i < s->n_slots; i++) s->slot_index[s->slot[i]] = -1;
    for (int32_t i = 0; i < s->n_experts; i++) s->expert_mark[s->expert[i]] = 0;
    s->n_ranks = s->n_slots = s->n_experts = s->n_pairs = 0;
}

/* Experts with copies on the ranks from..to of the region. */
static void widen_region(lplb__score *s, const lplb__assignment *a, int32_t from, int32_t to) {
    const int32_t *offset = s->layer->rank_offset;
    for (int32_t i = from; i < to; i++)
        for (int32_t slot = offset[s->rank[i]]; slot < offset[s->rank[i] + 1]; slot++) {
            int32_t e = a->slot[slot];
            if (e >= 0 && a->copies[e] > 1 && s->n_pairs < PAIRS_MAX) add_expert(s, a, e);
        }
}

static void find_region(lplb__score *s, const lplb__assignment *a, const lplb__change *change) {
    clear_region(s);
    add_rank(s, s->layer->slot_rank[change->slot]);
    add_expert(s, a, change->put);
    if (change->old >= 0) add_expert(s, a, change->old);
    for (int32_t round = 0, from = 0; round < ROUNDS && !s->layer->even; round++) {
        int32_t to = s->n_ranks;
        widen_region(s, a, from, to);
        from = to;
    }
}

/* ---- one block of batches ---- */

static inline void add_lanes(lanes *to, const lanes *what, float factor) {
    for (int p = 0; p < PARTS; p++) to->part[p] += what->part[p] * factor;
}

static lanes loads_of(const lplb__score *s, int32_t expert, int32_t block) {
    const lplb__batches *batches = &s->layer->batches;
    lanes load;
    memcpy(&load, batches->load + (int64_t)expert * batches->padded + (int64_t)block * LPLB__LANES,
           sizeof load);
    return load;
}

/* Even shares are cut to whole numbers, so that sums stay exact: less than 2^-22 of the batch is
 * lost. */
static lanes even_share(lanes load, int32_t copies) {
    for (int p = 0; p < PARTS; p++) {
        v4i whole = __builtin_convertvector(load.part[p] / (float)copies, v4i);
        load.part[p] = __builtin_convertvector(whole, v4f);
    }
    return load;
}

/* All slots of the expert, whose copies changed in number, get even shares. */
static void share_evenly(lplb__score *s, const lplb__assignment *a, int32_t expert, int32_t block,
                         lanes *load, lanes *split) {
    lanes share = even_share(loads_of(s, expert, block), a->copies[expert]);
    for (int32_t slot = a->first[expert]; slot >= 0; slot = a->next[slot]) {
        int32_t rank = s->rank_index[s->layer->slot_rank[slot]];
        add_lanes(&load[rank], &split[s->slot_index[slot]], -1);
        add_lanes(&load[rank], &share, 1);
        split[s->slot_index[slot]] = share;
    }
}

/* load and split of the region before the change -> after it, before balancing. */
static void change_block(lplb__score *s, const lplb__assignment *a, const lplb__change *change,
                         int32_t block, lanes *load, lanes *split) {
    int32_t slot = s->slot_index[change->slot];
    int32_t rank = s->rank_index[s->layer->slot_rank[change->slot]];
    lanes served = split[slot];
    if (change->other >= 0) {
        int32_t other = s->slot_index[change->other];
        int32_t other_rank = s->rank_index[s->layer->slot_rank[change->other]];
        lanes theirs = split[other];
        add_lanes(&load[rank], &theirs, 1);
        add_lanes(&load[rank], &served, -1);
        add_lanes(&load[other_rank], &served, 1);
        add_lanes(&load[other_rank], &theirs, -1);
        split[slot] = theirs;
        split[other] = served;
        return;
    }
    add_lanes(&load[rank], &served, -1);
    memset(&split[slot], 0, sizeof split[slot]);
    if (s->layer->even) {
        share_evenly(s, a, change->put, block, load, split);
        if (change->old >= 0) share_evenly(s, a, change->old, block, load, split);
        return;
    }
    if (change->old < 0) return;
    float part = 1 / (float)a->copies[change->old];
    for (int32_t q = a->first[change->old]; q >= 0; q = a->next[q]) {
        add_lanes(&split[s->slot_index[q]], &served, part);
        add_lanes(&load[s->rank_index[s->layer->slot_rank[q]]], &served, part);
    }
}

/* Moves tokens from the fuller host of a pair to the emptier one, as many as it has. */
static inline void balance_pair(const pair *p, lanes *load, lanes *split) {
    lanes *a = &load[p->rank_a], *b = &load[p->rank_b];
    lanes *from = &split[p->slot_a], *to = &split[p->slot_b];
    for (int i = 0; i < PARTS; i++) {
        v4f moved = a->part[i] * p->keep_a - b->part[i] * p->keep_b;
        moved = max4(min4(moved, from->part[i]), -to->part[i]);
        a->part[i] -= moved;
        b->part[i] += moved;
        from->part[i] -= moved;
        to->part[i] += moved;
    }
}

static void balance(const lplb__score *s, lanes *load, lanes *split, int sweeps) {
    for (int sweep = 0; sweep < sweeps; sweep += 2) {
        for (int32_t i = 0; i < s->n_pairs; i++) balance_pair(&s->pairs[i], load, split);
        for (int32_t i = s->n_pairs - 1; i >= 0; i--) balance_pair(&s->pairs[i], load, split);
    }
}

/* Largest load for its speed, over the mean; region: the loads of the region's ranks. */
static double score_block(const lplb__score *s, int32_t block, const lanes *region, lanes *top) {
    const lplb__layer *layer = s->layer;
    lanes squares = {{{0}}};
    *top = s->mean[block];
    for (int32_t k = 0; k < layer->n_alive; k++) {
        int32_t r = layer->alive[k];
        const lanes *load = region && s->rank_index[r] >= 0
                                ? &region[s->rank_index[r]]
                                : &s->load[(int64_t)block * layer->ranks + r];
        for (int p = 0; p < PARTS; p++) {
            v4f value = load->part[p] * s->inverse[r];
            top->part[p] = max4(top->part[p], value);
            squares.part[p] += load->part[p] * value;
        }
    }
    v4f sum = {0};
    for (int p = 0; p < PARTS; p++)
        sum += top->part[p] * s->norm[block].part[p] +
               VARIANCE_WEIGHT[layer->even] *
                   (squares.part[p] * s->norm2[block].part[p] - s->weight[block].part[p]);
    return ((double)sum[0] + (double)sum[1]) + ((double)sum[2] + (double)sum[3]);
}

/* ---- changes ---- */

/* Score of a block after balancing, which goes on while it pays: sweeps gain less and less, so a
 * block is given up when even once more the last gain would not bring it below `room`. */
static double balanced_score(lplb__score *s, int32_t block, lanes *load, lanes *split,
                             double room) {
    lanes top;
    s->work += (int64_t)s->n_pairs * SWEEPS * WORK_PAIR;
    balance(s, load, split, SWEEPS);
    double score = score_block(s, block, load, &top);
    for (int sweeps = SWEEPS; sweeps < SWEEPS_MAX && s->n_pairs; sweeps += SWEEPS) {
        s->work += (int64_t)s->n_pairs * SWEEPS * WORK_PAIR;
        balance(s, load, split, SWEEPS);
        double last = score;
        score = score_block(s, block, load, &top);
        if (last - score < SETTLED || score - (last - score) > room) break;
    }
    return score;
}

double lplb__score_try(lplb__score *s, const lplb__assignment *a, const lplb__change *change,
                       double limit) {
    double score = 0;
    find_region(s, a, change);
    s->work += WORK_TRY + (int64_t)(s->n_ranks + s->n_slots) * WORK_ROW;
    for (int32_t block = 0; block < s->blocks; block++) {
        lanes *load = s->new_load + (int64_t)block * s->layer->ranks;
        lanes *split = s->new_split + (int64_t)block * s->layer->slots;
        s->work += (int64_t)(s->layer->n_alive + s->n_ranks + s->n_slots) * WORK_ROW;
        for (int32_t i = 0; i < s->n_ranks; i++)
            load[i] = s->load[(int64_t)block * s->layer->ranks + s->rank[i]];
        for (int32_t i = 0; i < s->n_slots; i++)
            split[i] = s->split[(int64_t)block * s->layer->slots + s->slot[i]];
        change_block(s, a, change, block, load, split);
        score += balanced_score(s, block, load, split, limit - score - s->rest[block + 1]);
        /* no batch scores below its weight */
        if (score + s->rest[block + 1] > limit) return DBL_MAX;
    }
    return score;
}

double lplb__score_guess(lplb__score *s, const lplb__assignment *a, int32_t from, int32_t to,
                         bool swap, int32_t block) {
    const lplb__layer *layer = s->layer;
    const lanes *load = s->load + (int64_t)block * layer->ranks;
    const lanes *split = s->split + (int64_t)block * layer->slots;
    int32_t r = layer->slot_rank[from], u = layer->slot_rank[to];
    float copies = (float)a->copies[a->slot[from]];
    float gives = swap ? 1 : 1 / (copies + 1), takes = swap ? 1 : copies / (copies + 1);
    float returns = swap ? 1 : 0; /* what `to` served goes to `from`, or elsewhere */
    v4f sum = {0};
    s->work += WORK_GUESS;
    for (int p = 0; p < PARTS; p++) {
        v4f x = load[r].part[p], y = load[u].part[p];
        v4f there = split[from].part[p], here = split[to].part[p];
        v4f x2 = x - there * gives + here * returns, y2 = y + there * takes - here;
        v4f before = max4(x * s->inverse[r], y * s->inverse[u]);
        v4f after = max4(x2 * s->inverse[r], y2 * s->inverse[u]);
        sum += (after - before) * s->norm[block].part[p];
    }
    return ((double)sum[0] + (double)sum[1]) + ((double)sum[2] + (double)sum[3]);
}

int64_t lplb__score_work(const lplb__score *s) { return s->work; }

void lplb__score_apply(lplb__score *s) {
    for (int32_t block = 0; block < s->blocks; block++) {
        const lanes *load = s->new_load + (int64_t)block * s->layer->ranks;
        const lanes *split = s->new_split + (int64_t)block * s->layer->slots;
        for (int32_t i = 0; i < s->n_ranks; i++)
            s->load[(int64_t)block * s->layer->ranks + s->rank[i]] = load[i];
        for (int32_t i = 0; i < s->n_slots; i++)
            s->split[(int64_t)block * s->layer->slots + s->slot[i]] = split[i];
    }
}

/* ---- refresh ---- */

/* The dearest batches come first, so that bad changes are seen through early. */
static void sort_batches(lplb__score *s) {
    lplb__batches *batches = &s->layer->batches;
    for (int32_t i = 0; i < batches->count; i++) {
        float excess = batches->weight[i] * (s->value[i] - 1);
        int32_t j = i;
        for (; j > 0; j--) {
            int32_t before = s->column[j - 1];
            if (batches->weight[before] * (s->value[before] - 1) >= excess) break;
            s->column[j] = before;
        }
        s->column[j] = i;
    }
    for (int32_t e = -2; e < s->layer->experts; e++) {
        float *row = e == -2   ? batches->mean
                     : e == -1 ? batches->weight
                               : batches->load + (int64_t)e * batches->padded;
        for (int32_t i = 0; i < batches->count; i++) s->line[i] = row[s->column[i]];
        memcpy(row, s->line, (size_t)batches->count * sizeof *row);
    }
    weigh(s);
}

static float *lane_of(lanes *rows, int64_t row, int32_t b) {
    return (float *)&rows[row] + b % LPLB__LANES;
}

static void list_hosts(lplb__score *s, const lplb__assignment *a, lplb_hosts *hosts) {
    const lplb__layer *layer = s->layer;
    int64_t n = 0;
    for (int32_t e = 0; e < layer->experts; e++) {
        for (int32_t slot = a->first[e]; slot >= 0; slot = a->next[slot]) {
            s->host_slot[n] = slot;
            s->host[n++] = layer->slot_rank[slot];
        }
        s->offset[e + 1] = n;
    }
    *hosts = (lplb_hosts){
        .ranks = layer->ranks, .experts = layer->experts, .offset = s->offset, .rank = s->host};
}

/* The exact optimum of every batch; sweeps over all experts then spread its loads evenly below the
 * maximum, which they cannot raise. */
static lplb_status solve_all(lplb__score *s, const lplb__assignment *a) {
    const lplb__layer *layer = s->layer;
    const lplb__batches *batches = &layer->batches;
    lplb_plan_config config = {.struct_size = sizeof config, .speed = layer->speed};
    lplb_planner *planner;
    list_hosts(s, a, &config.hosts);
    LPLB_TRY(lplb_planner_create(&config, &planner));
    lplb_status status = LPLB_OK;
    for (int32_t b = 0; b < batches->count && status == LPLB_OK; b++) {
        int64_t block = b / LPLB__LANES;
        for (int32_t e = 0; e < layer->experts; e++)
            s->tokens[e] = (int64_t)batches->load[(int64_t)e * batches->padded + b];
        lplb_plan_input input = {.tokens = s->tokens};
        lplb_plan plan = {.split = s->serve};
        status = lplb_plan_solve(planner, &input, &plan);
        for (int64_t i = 0; i < s->offset[layer->experts]; i++) {
            *lane_of(s->split, block * layer->slots + s->host_slot[i], b) = (float)s->serve[i];
            *lane_of(s->load, block * layer->ranks + s->host[i], b) += (float)s->serve[i];
        }
    }
    lplb_planner_destroy(planner);
    clear_region(s);
    for (int32_t i = 0; i < layer->n_alive; i++) add_rank(s, layer->alive[i]);
    for (int32_t e = 0; e < layer->experts; e++) add_expert(s, a, e);
    return status;
}

static void share_all(lplb__score *s, const lplb__assignment *a) {
    clear_region(s);
    for (int32_t i = 0; i < s->layer->n_alive; i++) add_rank(s, s->layer->alive[i]);
    for (int32_t e = 0; e < s->layer->experts; e++) add_expert(s, a, e);
}

lplb_status lplb__score_refresh(lplb__score *s, const lplb__assignment *a, double *score) {
    const lplb__layer *layer = s->layer;
    int32_t n = s->refreshes++;
    if (n && !(n & (n - 1))) sort_batches(s); /* at 1, 2, 4, 8, ... */
    memset(s->load, 0, (size_t)s->blocks * (size_t)layer->ranks * sizeof *s->load);
    memset(s->split, 0, (size_t)s->blocks * (size_t)layer->slots * sizeof *s->split);
    if (!layer->even) LPLB_TRY(solve_all(s, a));
    else share_all(s, a);
    if (!layer->even) s->work += (int64_t)layer->batches.count * layer->n_usable * WORK_PLANNED;
    s->work += ((int64_t)s->n_pairs * REFRESH_SWEEPS * WORK_PAIR +
                (int64_t)(s->n_ranks + s->n_slots) * WORK_ROW) *
               s->blocks;
    *score = 0;
    for (int32_t block = 0; block < s->blocks; block++) {
        lanes *load = s->new_load + (int64_t)block * layer->ranks, top;
        lanes *split = s->new_split + (int64_t)block * layer->slots;
        for (int32_t i = 0; i < s->n_ranks; i++)
            load[i] = s->load[(int64_t)block * layer->ranks + s->rank[i]];
        for (int32_t i = 0; i < s->n_slots; i++)
            split[i] = s->split[(int64_t)block * layer->slots + s->slot[i]];
        for (int32_t e = 0; e < layer->experts && layer->even; e++)
            share_evenly(s, a, e, block, load, split);
        balance(s, load, split, REFRESH_SWEEPS);
        *score += score_block(s, block, load, &top);
        for (int p = 0; p < LPLB__LANES; p++)
            s->value[block * LPLB__LANES + p] =
                top.part[p / 4][p % 4] / s->mean[block].part[p / 4][p % 4];
    }
    lplb__score_apply(s);
    return LPLB_OK;
}

float lplb__score_rank(const lplb__score *s, int32_t rank, int32_t b) {
    int64_t row = (int64_t)(b / LPLB__LANES) * s->layer->ranks + rank;
    return s->load[row].part[b % LPLB__LANES / 4][b % 4] * s->inverse[rank];
}
