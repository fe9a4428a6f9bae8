/* The exact planner for any placement: the first warps of a block work through the rows (colours)
 * of the tables, one lane a host. Loads and shares are in shared memory. Follows src/plan/exact.c:
 * this file has steps 1 and 2, rows_augment.cuh has 3 and 4. */
#ifndef LPLB_CUDA_ROWS_CUH
#define LPLB_CUDA_ROWS_CUH

#include "cuda/pairs.cuh"
#include "cuda/simt.cuh"
#include "cuda/tables.h"

__extension__ typedef __int128 wide;

/* The arithmetic of a problem: below 2^28 tokens, any, any with speeds. */
struct narrow_loads {
    typedef int32_t number;
    enum { speeds = 0 };
};
struct wide_loads {
    typedef int64_t number;
    enum { speeds = 0 };
};
struct speed_loads {
    typedef int64_t number;
    enum { speeds = 1 };
};

DEVICE_CALL int64_t divide_wide(wide a, int64_t b) { return (int64_t)(a / b); }

/* A limit as in src/plan/limits.h: tokens over speed, over 1 where speeds are equal. */
typedef struct limit {
    int64_t numerator, denominator;
} limit;

typedef struct rows_result {
    limit t;
    int32_t rank;
} rows_result;

/* What a component still does; bits of status. */
enum { COMPONENT_SWEEPS = 1, COMPONENT_CHANGED = 2, COMPONENT_OVER = 4 };
enum { ROWS_BARRIER = 1, LANES = LPLB__CUDA_LANES };

template <typename K> struct rows {
    typedef typename K::number T;
    const lplb__cuda_component *component;
    const uint16_t *component_of; /* [G] */
    const uint32_t *row;
    const uint8_t *chunk;
    const lplb__cuda_lane *lane;
    const int64_t *speed;  /* [G] */
    const int64_t *tokens; /* [E] */
    T *load, *x, *saved_load, *saved_x, *capacity, *level;
    uint64_t *key;
    uint16_t *depth;
    int32_t *owner;
    uint32_t *status;    /* [components] */
    limit *limits;       /* [components] the first ones */
    rows_result *result; /* what one warp tells the others */
    int32_t ranks, hosts, components, n_rows, chunks;
    int32_t threads; /* of the warps that work */
};

template <typename K> DEVICE void rows_barrier(const rows<K> *r) {
    if (r->threads == 32) warp_barrier();
    else part_barrier(ROWS_BARRIER, r->threads);
}
template <typename K> DEVICE bool rows_any(const rows<K> *r, bool predicate) {
    if (r->threads == 32) {
        bool any = votes(predicate) != 0;
        warp_barrier();
        return any;
    }
    return part_any(ROWS_BARRIER, r->threads, predicate);
}

/* One expert's lanes in an aligned group of a warp. */
typedef struct group {
    uint32_t lanes; /* mask */
    int32_t width;
} group;

DEVICE group group_of(int32_t log2_width) {
    group g;
    g.width = 1 << log2_width;
    uint32_t ones = log2_width >= 5 ? 0xffffffffu : (1u << g.width) - 1;
    g.lanes = ones << (lane_index() & ~(g.width - 1));
    return g;
}

/* Over the group's lanes; largest = lanes of the warp's largest group. */
template <typename T> DEVICE T group_sum(group g, int32_t largest, T value) {
    if (largest == LANES) return warp_sum(value); /* the only group */
#pragma unroll
    for (int32_t d = 1; d < LANES / 2; d <<= 1) {
        if (d >= largest) break;
        T other = shuffle_xor(value, d);
        if (d < g.width) value += other;
    }
    return value;
}

/* Of numbers that are not negative. */
DEVICE int32_t divide_positive(int32_t a, int32_t b) {
    return (int32_t)((uint32_t)a / (uint32_t)b);
}
DEVICE int64_t divide_positive(int64_t a, int64_t b) {
    return (int64_t)((uint64_t)a / (uint64_t)b);
}

/* The common level of the hosts that stay below it, as in pour_unit of exact.c. The set of these
 * hosts is the only one that its own level gives back, so any first guess leads to it: too many
 * hosts lower the level, too few raise it above all that belong. `in`: the guess. */
template <typename T>
DEVICE T pour_group(group g, int32_t largest, bool used, bool in, T level, T tokens) {
    if (!(votes(in) & g.lanes)) in = used;
    T height, extra;
    for (;;) {
        T members = (T)bits_set(votes(in) & g.lanes);
        T sum = group_sum(g, largest, in ? level : 0) + tokens;
        if (members == 0) members = 1; /* lanes without an expert */
        height = divide_positive(sum, members);
        extra = sum - height * members;
        bool stays = used && level <= height;
        if (!votes(stays != in)) break;
        in = stays;
    }
    T before = (T)bits_set(votes(in) & g.lanes & lanes_below());
    return in ? height - level + (before < extra) : 0;
}

/* With speeds, as in pour_speed: a host is below the level when level * speeds <= sum * speed. */
DEVICE int64_t pour_group_speed(group g, int32_t largest, bool used, int64_t level, int64_t tokens,
                                int64_t speed) {
    bool in = used;
    int64_t sum, speeds;
    for (;;) {
        sum = group_sum(g, largest, in ? level : 0) + tokens;
        speeds = group_sum(g, largest, in ? speed : 0);
        bool stays = used && (wide)level * speeds <= (wide)sum * speed;
        if (!votes(stays != in)) break;
        in = stays;
    }
    int64_t height = in ? divide_wide((wide)sum * speed, speeds) : 0;
    int64_t extra = tokens - group_sum(g, largest, in ? height - level : 0);
    int64_t before = bits_set(votes(in) & g.lanes & lanes_below());
    return in ? height - level + (before < extra) : 0;
}

/* What a lane knows of its host before the rows before it are done: only its own row changes its
 * share, and its component's status changes between sweeps. */
template <typename K> struct lane_state {
    typename K::number tokens, had;
    uint32_t status;
    int64_t speed;
};

template <typename K> DEVICE lane_state<K> state_of_lane(const rows<K> *r, lplb__cuda_lane at) {
    typedef typename K::number T;
    bool used = at.host != LPLB__CUDA_NO_HOST;
    lane_state<K> s = {(T)r->tokens[at.expert], 0, r->status[at.group >> 4], 0};
    if (used) s.had = r->x[at.host];
    if (K::speeds && used) s.speed = r->speed[at.rank];
    return s;
}

/* The share of one of two hosts, the lower rank on an even lane: 5/8 of the difference of the loads
 * moves to it, rounded as in pour_pair of exact.c. */
template <typename T> DEVICE T share_of_pair(T had, T load, T tokens) {
    T more = shuffle_xor(load, 1) - load, rounding = lane_index() & 1 ? 1 : 6;
    T share = had + 5 * (more >> 3) + ((5 * (more & 7) + rounding) >> 3);
    return smaller(larger(share, (T)0), tokens);
}

/* A chunk of groups of at most 32 lanes. */
template <typename K>
DEVICE void pour_chunk(const rows<K> *r, lplb__cuda_lane at, lane_state<K> s, int32_t largest) {
    typedef typename K::number T;
    bool used = at.host != LPLB__CUDA_NO_HOST;
    bool active = used && (s.status & COMPONENT_SWEEPS);
    if (!votes(active)) return;
    T level = used ? r->load[at.rank] - s.had : 0, share;
    if (K::speeds) {
        share = (T)pour_group_speed(group_of(at.group & 15), largest, used, level, s.tokens,
                                    s.speed);
    } else {
        T pair = share_of_pair(s.had, level + s.had, s.tokens);
        share = pair;
        if (largest > 2)
            share = pour_group(group_of(at.group & 15), largest, used, s.had > 0, level, s.tokens);
        if ((at.group & 15) == 1) share = pair;
    }
    if (!active) return;
    r->load[at.rank] = level + share;
    if (share == s.had) return;
    r->x[at.host] = share;
    if (!(s.status & COMPONENT_CHANGED)) atomic_or(&r->status[at.group >> 4], COMPONENT_CHANGED);
}

/* One expert on several chunks: the loads without it, and the level they are filled to. */
template <typename K> struct wide_pour {
    typedef typename K::number T;
    const rows<K> *r;
    const lplb__cuda_lane *lane; /* of the first chunk, this thread's */
    T *level;                    /* likewise */
    int32_t chunks;
    T sum, height;   /* height = sum / members, with equal speeds */
    int64_t members; /* hosts below the level, or the sum of their speeds */
};

template <typename K> DEVICE typename K::number height_of(const wide_pour<K> *w, int32_t rank) {
    if (!K::speeds) return w->height;
    return (typename K::number)divide_wide((wide)w->sum * w->r->speed[rank], w->members);
}

/* Hosts at or below the level, sum and members of which become the next level; at first (guess) the
 * hosts that had tokens, or all. True while the level changes. */
template <typename K>
DEVICE bool next_level(wide_pour<K> *w, typename K::number tokens, bool guess, bool all) {
    typename K::number sum = 0;
    int64_t members = 0;
    int32_t hosts = 0;
    ROLLED
    for (int32_t k = 0; k < w->chunks; k++) {
        const lplb__cuda_lane at = w->lane[k * LANES];
        typename K::number level = w->level[k * LANES];
        bool below = at.host != LPLB__CUDA_NO_HOST;
        if (below && guess) below = all || w->r->x[at.host] > 0;
        else if (below) below = level <= height_of(w, at.rank);
        if (below) sum += level;
        if (below && K::speeds) members += w->r->speed[at.rank];
        hosts += bits_set(votes(below));
    }
    sum = warp_sum(sum) + tokens;
    members = K::speeds ? warp_sum(members) : hosts;
    bool other = sum != w->sum || members != w->members;
    w->sum = sum;
    w->members = members;
    if (!K::speeds) w->height = sum / (typename K::number)hosts;
    return other;
}

/* What is left when every host below the level has what it lacks to it. */
template <typename K>
DEVICE typename K::number tokens_left(const wide_pour<K> *w, typename K::number tokens) {
    typedef typename K::number T;
    if constexpr (K::speeds) {
        ROLLED
        for (int32_t k = 0; k < w->chunks; k++) {
            const lplb__cuda_lane at = w->lane[k * LANES];
            T lacks = height_of(w, at.rank) - w->level[k * LANES];
            tokens -= warp_sum(at.host != LPLB__CUDA_NO_HOST && lacks > 0 ? lacks : (T)0);
        }
        return tokens;
    } else {
        return w->sum - w->height * (T)w->members;
    }
}

/* Fills the hosts to the level and gives one more to each of the lowest ranks. */
template <typename K> DEVICE bool fill_level(const wide_pour<K> *w, typename K::number extra) {
    typedef typename K::number T;
    bool changed = false;
    ROLLED
    for (int32_t k = 0; k < w->chunks; k++) {
        const lplb__cuda_lane at = w->lane[k * LANES];
        T level = w->level[k * LANES], height = height_of(w, at.rank);
        bool used = at.host != LPLB__CUDA_NO_HOST, below = used && level <= height;
        uint32_t takers = votes(below);
        T share = below ? height - level + ((T)bits_set(takers & lanes_below()) < extra) : 0;
        extra -= bits_set(takers);
        if (!used) continue;
        changed |= share != w->r->x[at.host];
        w->r->x[at.host] = share;
        w->r->load[at.rank] = level + share;
    }
    return changed;
}

template <typename K> DEVICE void pour_wide(const rows<K> *r, int32_t first, int32_t scratch) {
    typedef typename K::number T;
    wide_pour<K> w;
    w.r = r;
    w.lane = r->lane + first * LANES + lane_index();
    w.level = r->level + scratch * LANES + lane_index();
    w.chunks = 0;
    int32_t component = w.lane->group >> 4;
    if (!(r->status[component] & COMPONENT_SWEEPS)) return;
    T tokens = (T)r->tokens[w.lane->expert];
    uint32_t had = 0;
    ROLLED
    do {
        const lplb__cuda_lane at = w.lane[w.chunks * LANES];
        bool used = at.host != LPLB__CUDA_NO_HOST;
        T share = used ? r->x[at.host] : 0;
        w.level[w.chunks++ * LANES] = used ? r->load[at.rank] - share : 0;
        had |= votes(share > 0);
    } while (first + w.chunks < r->chunks && !r->chunk[first + w.chunks]);
    w.sum = w.height = 0;
    w.members = 1;
    next_level(&w, tokens, true, !had);
    ROLLED
    while (next_level(&w, tokens, false, false)) {}
    if (fill_level(&w, tokens_left(&w, tokens)))
        atomic_or(&r->status[component], COMPONENT_CHANGED);
}

/* A warp's place in a row. Where it is, is read two rows ahead; what is there, one row ahead. */
typedef struct row_place {
    int32_t first, end, chunk, kind;
    lplb__cuda_lane at;
} row_place;

template <typename K> DEVICE row_place place_in_row(const rows<K> *r, int32_t row) {
    row_place p;
    row = smaller(row, r->n_rows - 1);
    p.first = (int32_t)r->row[row];
    p.end = (int32_t)r->row[row + 1];
    p.chunk = p.first + warp_index();
    int32_t any = smaller(p.chunk, r->chunks - 1);
    p.kind = r->chunk[any];
    p.at = r->lane[any * LANES + lane_index()];
    bool ours = p.chunk < p.end && p.kind > 0 && p.kind <= LANES;
    if (!ours) p.at.host = LPLB__CUDA_NO_HOST; /* another warp writes there */
    return p;
}

template <typename K> DEVICE void sweep_rows(const rows<K> *r) {
    row_place here = place_in_row(r, 0), next = place_in_row(r, 1);
    lane_state<K> now = state_of_lane(r, here.at);
    ROLLED
    for (int32_t row = 0; row < r->n_rows; row++) {
        row_place after = place_in_row(r, row + 2);
        lane_state<K> then = state_of_lane(r, next.at);
        ROLLED
        while (here.chunk < here.end) {
            if (here.kind > LANES) pour_wide(r, here.chunk, here.chunk - here.first);
            else if (here.kind > 0) pour_chunk(r, here.at, now, here.kind);
            here.chunk += r->threads / 32;
            if (here.chunk >= here.end) break;
            here.kind = r->chunk[here.chunk];
            here.at = r->lane[here.chunk * LANES + lane_index()];
            now = state_of_lane(r, here.at);
        }
        rows_barrier(r);
        here = next;
        next = after;
        now = then;
    }
}

/* Ends the sweeping of components that gain nothing more from it; true while any goes on. */
template <typename K> DEVICE bool judge_sweep(const rows<K> *r, int32_t sweeps, effort *spent) {
    ROLLED
    for (int32_t q = thread_index(); q < r->ranks; q += r->threads) {
        int32_t c = r->component_of[q];
        if (c != LPLB__CUDA_NO_HOST && r->load[q] > r->capacity[q])
            atomic_or(&r->status[c], COMPONENT_OVER);
    }
    rows_barrier(r);
    bool goes_on = false;
    ROLLED
    for (int32_t c = thread_index(); c < r->components; c += r->threads) {
        uint32_t status = r->status[c];
        bool swept = status & COMPONENT_SWEEPS, changed = status & COMPONENT_CHANGED;
        spent->sweeps += swept && changed;
        bool more = swept && changed && (status & COMPONENT_OVER) && sweeps < LPLB__MAX_SWEEPS;
        r->status[c] = more ? COMPONENT_SWEEPS : 0;
        goes_on |= more;
    }
    return rows_any(r, goes_on);
}

/* From even shares; capacity is at the first limits. */
template <typename K> DEVICE void sweep_until_within(const rows<K> *r, effort *spent) {
    ROLLED
    for (int32_t sweeps = 1; r->n_rows > 0; sweeps++) {
        sweep_rows(r);
        if (!judge_sweep(r, sweeps, spent)) return;
    }
}

#endif
