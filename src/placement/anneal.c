/* Simulated annealing over assignments: copies are replaced and experts swapped between ranks. */
#include <float.h>
#include <string.h>

#include "base/error.h"
#include "placement/search.h"

enum {
    STEPS = 64,         /* of the temperature; the score is refreshed after each */
    BRIEF_STEPS = 8,    /* where the work is limited */
    HOPELESS_AT = 2,    /* of them without a gain: the rest would bring none */
    GUESSES_MOST = 64,  /* then changes looked at before one is tried, a quarter of the slots */
    GUESSED_OF_16 = 10, /* trials chosen so, the others as without a limit */
    STEP_WORK = 170     /* units (nanoseconds, about) of choosing a change */
};

/* Score that a change may lose, at first, and by how much that shrinks in each step. */
static const double HOT = 0.001, COOLING = 0.93, BRIEF_COOLING = 0.6;

typedef struct annealer {
    lplb__score *score;
    const lplb__layer *layer;
    lplb__assignment *now, *best;
    lplb__rng *rng;
    double current, best_cost; /* scores with the cost of moves */
} annealer;

/* The slot gets expert in place of a spare copy (or of nothing). */
static bool propose_replace(const annealer *s, int32_t slot, int32_t expert, lplb__change *change) {
    int32_t old = s->now->slot[slot], rank = s->layer->slot_rank[slot];
    if ((old >= 0 && s->now->copies[old] < 2) ||
        !lplb__assignment_allows(s->layer, s->now, expert, rank))
        return false;
    *change = (lplb__change){.slot = slot, .other = -1, .old = old, .put = expert};
    return true;
}

static bool propose_swap(const annealer *s, int32_t slot, int32_t other, lplb__change *change) {
    const lplb__layer *layer = s->layer;
    int32_t e = s->now->slot[slot], f = s->now->slot[other];
    int32_t r = layer->slot_rank[slot], u = layer->slot_rank[other];
    if (e < 0 || f < 0 || e == f || r == u || !lplb__assignment_allows(layer, s->now, e, u) ||
        !lplb__assignment_allows(layer, s->now, f, r))
        return false;
    *change = (lplb__change){.slot = slot, .other = other, .old = e, .put = f};
    return true;
}

/* Swaps empty the other slot first: an expert must not be twice on a rank. */
static void set_slots(const annealer *s, const lplb__change *change, int32_t put, int32_t old) {
    if (change->other >= 0) lplb__assignment_set(s->layer, s->now, change->other, -1);
    lplb__assignment_set(s->layer, s->now, change->slot, put);
    if (change->other >= 0) lplb__assignment_set(s->layer, s->now, change->other, old);
}

static int32_t random_slot(const annealer *s) {
    return s->layer->usable[lplb__rng_below(s->rng, s->layer->n_usable)];
}

static bool propose_random(const annealer *s, lplb__change *change) {
    int32_t slot = random_slot(s);
    if (lplb__rng_next(s->rng) >> 63)
        return propose_replace(s, slot, (int32_t)lplb__rng_below(s->rng, s->layer->experts),
                               change);
    return propose_swap(s, slot, random_slot(s), change);
}

static int32_t fullest_rank(const annealer *s, int32_t b) {
    const lplb__layer *layer = s->layer;
    int32_t fullest = layer->alive[0];
    float most = 0;
    for (int32_t i = 0; i < layer->n_alive; i++) {
        float load = lplb__score_rank(s->score, layer->alive[i], b);
        if (load <= most) continue;
        most = load;
        fullest = layer->alive[i];
    }
    return fullest;
}

/* Aims at the fullest rank of a random batch: one of its experts gets a copy, or its place,
 * elsewhere. */
static bool propose_aimed(const annealer *s, lplb__change *change) {
    const lplb__layer *layer = s->layer;
    int32_t fullest = fullest_rank(s, (int32_t)lplb__rng_below(s->rng, layer->batches.count));
    int32_t slots = layer->rank_offset[fullest + 1] - layer->rank_offset[fullest];
    int32_t from = layer->rank_offset[fullest] + (int32_t)lplb__rng_below(s->rng, slots);
    int32_t to = random_slot(s);
    if (lplb__rng_next(s->rng) >> 63)
        return s->now->slot[from] >= 0 && propose_replace(s, to, s->now->slot[from], change);
    return propose_swap(s, from, to, change);
}

/* As aimed, but the one of many such changes that relieves the fuller of its two ranks most. */
static bool propose_guessed(const annealer *s, lplb__change *change) {
    const lplb__layer *layer = s->layer;
    int32_t b = (int32_t)lplb__rng_below(s->rng, layer->batches.count);
    int32_t fullest = fullest_rank(s, b), first = layer->rank_offset[fullest];
    int32_t slots = layer->rank_offset[fullest + 1] - first;
    int32_t guesses = layer->n_usable / 4 < GUESSES_MOST ? layer->n_usable / 4 + 1 : GUESSES_MOST;
    double best = DBL_MAX;
    for (int32_t k = 0; k < guesses; k++) {
        uint64_t bits = lplb__rng_next(s->rng); /* 31 bits, 24 bits, 1 bit of it */
        int32_t from = first + (int32_t)((bits >> 8 & 0xffffff) * (uint64_t)slots >> 24);
        int32_t to = layer->usable[(bits >> 33) * (uint64_t)layer->n_usable >> 31];
        bool swap = bits & 1;
        lplb__change one;
        if (s->now->slot[from] < 0 || (swap ? !propose_swap(s, from, to, &one)
                                            : !propose_replace(s, to, s->now->slot[from], &one)))
            continue;
        double guess = lplb__score_guess(s->score, s->now, from, to, swap, b / LPLB__LANES);
        if (guess >= best) continue;
        best = guess;
        *change = one;
    }
    return best < DBL_MAX;
}

/* Exponentially distributed, mean 1, without libm: -log2 of a uniform number from its exponent and
 * a straight line between powers of two. */
static double exponential(lplb__rng *rng) {
    uint64_t x = lplb__rng_next(rng) | 1;
    int zeros = __builtin_clzll(x);
    double mantissa = (double)(x << zeros >> 11) * 0x1.0p-53; /* in [0.5, 1) */
    return 0.6931471805599453 * (zeros + 2 * (1 - mantissa));
}

static lplb_status refresh(annealer *s) {
    double score;
    LPLB_TRY(lplb__score_refresh(s->score, s->now, &score));
    s->current = score + s->layer->move_cost * (double)s->now->moves;
    if (s->current < s->best_cost - 1e-9) {
        s->best_cost = s->current;
        lplb__assignment_copy(s->layer, s->now, s->best);
    }
    return LPLB_OK;
}

static void step(annealer *s, double temperature) {
    lplb__change change;
    uint64_t way = lplb__rng_next(s->rng);
    bool found = s->layer->work && (way & 15) < GUESSED_OF_16 ? propose_guessed(s, &change)
                 : way >> 63                                  ? propose_random(s, &change)
                                                              : propose_aimed(s, &change);
    if (!found) return;
    set_slots(s, &change, change.put, change.old);
    double moves = s->layer->move_cost * (double)s->now->moves;
    double limit = s->current + temperature * exponential(s->rng) - moves;
    double score = DBL_MAX;
    if (s->now->moves <= s->layer->max_moves)
        score = lplb__score_try(s->score, s->now, &change, limit);
    if (score <= limit) {
        lplb__score_apply(s->score);
        s->current = score + moves;
    } else {
        set_slots(s, &change, change.old, change.put);
    }
}

/* The schedule by trials. */
static lplb_status anneal_fully(annealer *s, int64_t iterations) {
    double temperature = HOT;
    for (int k = 0; k < STEPS; k++) {
        for (int64_t i = 0; i < iterations / STEPS; i++) step(s, temperature);
        temperature *= COOLING;
        LPLB_TRY(refresh(s));
    }
    return LPLB_OK;
}

/* The schedule by work. Finding nothing to try is work, too, so that this ends. */
static lplb_status anneal_briefly(annealer *s, int64_t work) {
    double temperature = HOT, start = s->best_cost;
    int64_t begin = lplb__score_work(s->score), steps = 0;
    for (int k = 0; k < BRIEF_STEPS; k++) {
        int64_t until = begin + work / BRIEF_STEPS * (k + 1);
        for (; lplb__score_work(s->score) + steps * STEP_WORK < until; steps++)
            step(s, temperature);
        temperature *= BRIEF_COOLING;
        LPLB_TRY(refresh(s));
        if (k + 1 == HOPELESS_AT && !(s->best_cost < start)) return LPLB_OK;
    }
    return LPLB_OK;
}

lplb_status lplb__anneal(lplb__score *score, const lplb__layer *layer, lplb__assignment *a,
                         lplb__rng *rng, int64_t iterations, double *result) {
    lplb__assignment best;
    lplb_status status = lplb__assignment_create(layer, &best);
    annealer s = {
        .score = score, .layer = layer, .now = a, .best = &best, .rng = rng, .best_cost = DBL_MAX};
    if (status == LPLB_OK) status = refresh(&s);
    if (status == LPLB_OK)
        status = layer->work ? anneal_briefly(&s, layer->work) : anneal_fully(&s, iterations);
    if (status == LPLB_OK) {
        lplb__assignment_copy(layer, &best, a);
        status = lplb__score_refresh(score, a, result);
    }
    lplb__assignment_destroy(&best);
    return status;
}
