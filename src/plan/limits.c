#include "plan/limits.h"

#include <math.h>
#include <string.h>

#include "base/bits.h"

void lplb__limits_reserve(const lplb_hosts *hosts, lplb__arena *arena) {
    lplb__arena_reserve(arena, hosts->ranks, sizeof(int64_t));
    lplb__arena_reserve(arena, hosts->ranks, sizeof(double *));
    lplb__arena_reserve(arena, hosts->ranks, sizeof(int64_t));
}

void lplb__limits_init(lplb__limits *limits, const lplb_hosts *hosts, const int64_t *speed,
                       const double *cost, int64_t cost_entries, const int32_t *rank_id,
                       lplb__arena *arena) {
    int32_t G = hosts->ranks;
    limits->ranks = G;
    limits->cost_entries = cost_entries;
    limits->speed = lplb__arena_take(arena, G, sizeof(int64_t));
    limits->table = lplb__arena_take(arena, G, sizeof(double *));
    limits->share = lplb__arena_take(arena, G, sizeof(int64_t));
    limits->kind = LIMIT_UNIT;
    if (cost) limits->kind = LIMIT_COST;
    for (int32_t q = 0; q < G; q++) {
        limits->speed[q] = speed ? speed[rank_id[q]] : 1;
        limits->table[q] = cost ? cost + rank_id[q] * cost_entries : NULL;
        if (!cost && limits->speed[q] != limits->speed[0]) limits->kind = LIMIT_SPEED;
    }
    /* Equal speeds s are the unit case; only the value of t is divided by s. */
}

/* Doubles of either sign as integers in the same order (IEEE 754 bit patterns). */
static int64_t key_of_double(double value) {
    int64_t bits;
    value += 0.0; /* -0 becomes 0 */
    memcpy(&bits, &value, sizeof bits);
    return bits >= 0 ? bits : INT64_MIN - bits;
}
static double double_of_key(int64_t key) {
    int64_t bits = key >= 0 ? key : INT64_MIN - key;
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

bool lplb__limit_less(const lplb__limits *limits, lplb__limit a, lplb__limit b) {
    if (limits->kind != LIMIT_SPEED) return a.numerator < b.numerator;
    return (__int128)a.numerator * b.denominator < (__int128)b.numerator * a.denominator;
}

lplb_status lplb__limit_of_load(const lplb__limits *limits, int32_t q, int64_t load,
                                lplb__limit *t) {
    *t = (lplb__limit){load, 1};
    if (limits->kind == LIMIT_SPEED) t->denominator = limits->speed[q];
    if (limits->kind == LIMIT_COST) {
        if (load >= limits->cost_entries)
            return LPLB_FAIL(LPLB_INFEASIBLE,
                             "a rank must hold %lld tokens but the cost table ends at %lld; give "
                             "a longer table",
                             (long long)load, (long long)limits->cost_entries - 1);
        t->numerator = key_of_double(limits->table[q][load]);
    }
    return LPLB_OK;
}

/* Most tokens with table[tokens] <= time; -1 if even none. */
static int64_t tokens_within(const double *table, int64_t entries, double time) {
    int64_t low = 0, high = entries; /* first entry above time is in [low, high] */
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (table[middle] <= time) low = middle + 1;
        else high = middle;
    }
    return low - 1;
}

static lplb_status cost_limit_of_set(const lplb__limits *limits, const uint64_t *set, int32_t first,
                                     int32_t ranks, int64_t tokens, lplb__limit *t) {
    int64_t low = INT64_MAX, high = INT64_MIN;
    __int128 most = 0;
    for (int32_t q = first; q < first + ranks; q++) {
        if (!lplb__bit_test(set, q)) continue;
        int64_t least = key_of_double(limits->table[q][0]);
        int64_t largest = key_of_double(limits->table[q][limits->cost_entries - 1]);
        if (least < low) low = least;
        if (largest > high) high = largest;
        most += limits->cost_entries - 1;
    }
    if (most < tokens)
        return LPLB_FAIL(LPLB_INFEASIBLE,
                         "%lld tokens must stay on ranks whose cost tables end at %lld in total; "
                         "give longer tables",
                         (long long)tokens, (long long)most);
    while (low < high) {
        int64_t middle = (int64_t)(((__int128)low + high) >> 1);
        double time = double_of_key(middle);
        __int128 held = 0;
        for (int32_t q = first; q < first + ranks; q++)
            if (lplb__bit_test(set, q)) {
                int64_t n = tokens_within(limits->table[q], limits->cost_entries, time);
                held += n > 0 ? n : 0;
            }
        if (held >= tokens) high = middle;
        else low = middle + 1;
    }
    *t = (lplb__limit){high, 1};
    return LPLB_OK;
}

/* Least t with sum of floor(t * s_r) >= tokens: start from the floors at tokens / s(S), which miss
 * by less than |S|, and raise the rank whose next token comes first until they suffice. */
static void speed_limit_of_set(const lplb__limits *limits, const uint64_t *set, int32_t first,
                               int32_t ranks, int64_t tokens, lplb__limit *t) {
    int64_t total_speed = 0, held = 0;
    int64_t *share = limits->share;
    const int64_t *speed = limits->speed;
    for (int32_t q = first; q < first + ranks; q++)
        if (lplb__bit_test(set, q)) total_speed += speed[q];
    for (int32_t q = first; q < first + ranks; q++) {
        if (!lplb__bit_test(set, q)) continue;
        share[q] = (int64_t)((__int128)tokens * speed[q] / total_speed);
        held += share[q];
    }
    for (; held < tokens; held++) {
        int32_t next = -1;
        for (int32_t q = first; q < first + ranks; q++) {
            if (!lplb__bit_test(set, q)) continue;
            if (next < 0 ||
                (__int128)(share[q] + 1) * speed[next] < (__int128)(share[next] + 1) * speed[q])
                next = q;
        }
        share[next]++;
    }
    *t = (lplb__limit){0, 1};
    for (int32_t q = first; q < first + ranks; q++) {
        if (!lplb__bit_test(set, q)) continue;
        lplb__limit own = {share[q], speed[q]};
        if (lplb__limit_less(limits, *t, own)) *t = own;
    }
}

lplb_status lplb__limit_of_set(const lplb__limits *limits, const uint64_t *set, int32_t first,
                               int32_t ranks, int64_t tokens, lplb__limit *t) {
    if (limits->kind == LIMIT_COST) return cost_limit_of_set(limits, set, first, ranks, tokens, t);
    if (limits->kind == LIMIT_SPEED) {
        speed_limit_of_set(limits, set, first, ranks, tokens, t);
        return LPLB_OK;
    }
    int64_t members = 0;
    for (int64_t w = first >> 6; w <= (first + ranks - 1) >> 6; w++)
        members += lplb__bit_count(set[w]);
    *t = (lplb__limit){tokens / members + (tokens % members != 0), 1};
    return LPLB_OK;
}

void lplb__limit_capacities(const lplb__limits *limits, lplb__limit t, int32_t first, int32_t ranks,
                            int64_t *capacity) {
    for (int32_t q = first; q < first + ranks; q++) {
        if (limits->kind == LIMIT_UNIT) capacity[q] = t.numerator;
        else if (limits->kind == LIMIT_SPEED) {
            /* a fast rank may have room for more tokens than there can be, and than fit an int64 */
            __int128 room = (__int128)t.numerator * limits->speed[q] / t.denominator;
            capacity[q] = room < LPLB_MAX_TOKENS ? (int64_t)room : LPLB_MAX_TOKENS;
        } else
            capacity[q] =
                tokens_within(limits->table[q], limits->cost_entries, double_of_key(t.numerator));
    }
}

double lplb__limit_value(const lplb__limits *limits, lplb__limit t) {
    if (limits->kind == LIMIT_COST) return double_of_key(t.numerator);
    if (limits->kind == LIMIT_UNIT) return (double)t.numerator / (double)limits->speed[0];
    return (double)t.numerator / (double)t.denominator;
}
