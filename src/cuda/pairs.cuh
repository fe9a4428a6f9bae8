/* The exact planner where every movable expert has two hosts and a component fits a warp: one warp
 * a component, one lane a rank, loads and shares in registers. Follows src/plan/exact.c. */
#ifndef LPLB_CUDA_PAIRS_CUH
#define LPLB_CUDA_PAIRS_CUH

#include "cuda/simt.cuh"
#include "cuda/tables.h"
#include "plan/exact_layout.h"

enum { COLOURS = LPLB__CUDA_PAIR_COLOURS };

/* What the planner reports; summed over the components. */
typedef struct effort {
    int32_t sweeps, augmentations, restarts;
} effort;

/* One lane. Colours without an expert have partner = self and no tokens. */
typedef struct pairs {
    int32_t load;
    int32_t x[COLOURS];      /* own share of the colour's expert */
    int32_t weight[COLOURS]; /* its tokens */
    uint32_t partners[2];    /* the lanes with the rest, 8 bits each */
    uint32_t lower;          /* bit c: the odd token is ours */
    uint32_t used;           /* bit c: there is an expert */
} pairs;

DEVICE int32_t partner_of(const pairs *p, int32_t colour) {
    return (int32_t)(p->partners[colour / 4] >> 8 * (colour % 4) & 255);
}

/* Both hosts find the same: 5/8 of the difference of their loads moves to the lower rank, rounded
 * as in pour_pair of exact.c, within what there is. What does not depend on the other's load is
 * computed while it is under way. */
template <int N> DEVICE bool sweep_pairs(pairs *p) {
    int32_t changed = 0;
#pragma unroll
    for (int c = 0; c < N; c++) {
        int32_t other = shuffle(p->load, partner_of(p, c));
        int32_t rest = p->load - p->x[c], own = 1 + 5 * (int32_t)(p->lower >> c & 1) - 5 * p->load;
        int32_t share = add_clamped(p->x[c], (5 * other + own) >> 3, p->weight[c]);
        changed |= share ^ p->x[c];
        p->x[c] = share;
        p->load = rest + share;
    }
    return changed != 0;
}

/* From even shares, until no rank is above the limit, or nothing changes any more, or long enough;
 * before, the load is what cannot move. Returns the sweeps
 * that changed something. The votes on a sweep are cast while the next one is under way, which is
 * taken back if it was one too many. */
template <int N> DEVICE int32_t sweep_colours(pairs *p, int32_t limit) {
    bool changed = true;
#pragma unroll
    for (int c = 0; c < N; c++) {
        p->x[c] = (p->weight[c] + (int32_t)(p->lower >> c & 1)) >> 1;
        p->load += p->x[c];
    }
    ROLLED
    for (int32_t sweeps = 0;; sweeps++) {
        bool moved = warp_any(changed), over = warp_any(sweeps == 0 || p->load > limit);
        int32_t load = p->load, x[N];
#pragma unroll
        for (int c = 0; c < N; c++) x[c] = p->x[c];
        changed = sweep_pairs<N>(p);
        if (moved && over && sweeps < LPLB__MAX_SWEEPS) continue;
        p->load = load;
#pragma unroll
        for (int c = 0; c < N; c++) p->x[c] = x[c];
        return moved ? sweeps : sweeps - 1;
    }
}

DEVICE int32_t sweep_until_level(pairs *p, int32_t colours, int32_t limit) {
    warp_barrier(); /* a warp that has diverged shuffles slowly */
    switch (colours) {
    case 1: return sweep_colours<1>(p, limit);
    case 2: return sweep_colours<2>(p, limit);
    case 3: return sweep_colours<3>(p, limit);
    case 4: return sweep_colours<4>(p, limit);
    case 5: return sweep_colours<5>(p, limit);
    case 6: return sweep_colours<6>(p, limit);
    case 7: return sweep_colours<7>(p, limit);
    default: return sweep_colours<8>(p, limit);
    }
}

/* The lanes that have tokens of an expert that is also ours. */
DEVICE uint32_t givers_of(const pairs *p) {
    uint32_t givers = 0;
#pragma unroll
    for (int c = 0; c < COLOURS; c++)
        if (p->weight[c] > p->x[c]) givers |= 1u << partner_of(p, c);
    return givers;
}

/* Breadth-first search over the lanes. parent is a lane, colour that of the expert by which the
 * parent's tokens reach us. */
typedef struct pairs_search {
    uint32_t visited, frontier;
    int32_t parent, colour;
} pairs_search;

/* Levels until one has room, which is returned; or 0, and visited cannot grow. The parent of a rank
 * is the lowest frontier rank that reaches it, by the first colour. */
DEVICE uint32_t search_pairs(const pairs *p, pairs_search *s, uint32_t roots, int32_t capacity) {
    uint32_t givers = givers_of(p), room;
    s->visited = s->frontier = roots;
    ROLLED
    do {
        bool reached = !(s->visited >> lane_index() & 1) && (givers & s->frontier);
        if (reached) s->parent = lowest_bit(givers & s->frontier);
        s->frontier = votes(reached);
        if (!s->frontier) return 0;
        s->visited |= s->frontier;
        room = votes(reached && p->load < capacity);
    } while (!room);
#pragma unroll
    for (int c = COLOURS - 1; c >= 0; c--)
        if (partner_of(p, c) == s->parent && p->weight[c] > p->x[c]) s->colour = c;
    return room;
}

/* Our parent's share of the expert by which it reaches us. */
DEVICE int32_t parents_share(const pairs *p, int32_t colour) {
    int32_t share = 0;
#pragma unroll
    for (int c = 0; c < COLOURS; c++)
        if (c == colour) share = p->weight[c] - p->x[c];
    return share;
}

DEVICE void give_to_colour(pairs *p, int32_t colour, int32_t amount) {
#pragma unroll
    for (int c = 0; c < COLOURS; c++)
        if (c == colour) p->x[c] += amount;
}

/* As many tokens as fit from the target's root to the target; false if none do any more. */
DEVICE bool push_pairs(pairs *p, const pairs_search *s, uint32_t roots, int32_t capacity,
                       int32_t target) {
    int32_t lane = lane_index(), way = s->parent | s->colour << 8;
    int32_t share = parents_share(p, s->colour);
    int32_t amount = capacity - shuffle(p->load, target), v = target;
    int32_t gives = -1, receives = -1; /* colours in which this lane takes part */
    ROLLED
    while (!(roots >> v & 1)) {
        int32_t step = shuffle(way, v), available = shuffle(share, v);
        int32_t parent = step & 255, colour = step >> 8;
        if (lane == v) receives = colour;
        if (lane == parent) gives = colour;
        amount = smaller(amount, available);
        v = parent;
    }
    amount = smaller(amount, shuffle(p->load, v) - capacity);
    if (amount <= 0) return false; /* an earlier path of this phase took it */
    if (receives >= 0) give_to_colour(p, receives, amount);
    if (gives >= 0) give_to_colour(p, gives, -amount);
    if (lane == v) p->load -= amount;
    if (lane == target) p->load += amount;
    return true;
}

/* Phases until no rank exceeds its capacity: true. Or the ranks above it reach no room: false, and
 * they are in s->visited. */
DEVICE bool augment_pairs(pairs *p, int32_t capacity, pairs_search *s, effort *spent) {
    for (;;) {
        uint32_t roots = votes(p->load > capacity);
        if (!roots) return true;
        uint32_t room = search_pairs(p, s, roots, capacity);
        if (!room) return false;
        ROLLED
        for (; room; room &= room - 1)
            spent->augmentations += push_pairs(p, s, roots, capacity, lowest_bit(room));
    }
}

/* The mean of some ranks, rounded up. Mostly there are 8, 16 or 32: no division then. */
DEVICE int32_t mean_of(int32_t tokens, int32_t ranks) {
    if (!(ranks & (ranks - 1))) return (tokens + ranks - 1) >> lowest_bit((uint32_t)ranks);
    return (int32_t)((uint32_t)(tokens + ranks - 1) / (uint32_t)ranks);
}

/* ceil(mean load of the set): what its ranks cannot get below when none of its tokens can leave. */
DEVICE int32_t limit_of_set(const pairs *p, uint32_t set) {
    return mean_of(warp_sum(set >> lane_index() & 1 ? p->load : 0), bits_set(set));
}

/* Whether a set's tokens, none of which can leave, keep a rank from less than `most`. */
DEVICE bool proves(const pairs *p, uint32_t set, int32_t most) {
    int32_t tokens = warp_sum(set >> lane_index() & 1 ? p->load : 0);
    return (int64_t)(most - 1) * bits_set(set) < tokens;
}

/* What the tokens of the lowest of the fullest ranks, those with `most`, can reach. */
DEVICE uint32_t reach_of_fullest(const pairs *p, uint32_t all, int32_t most) {
    uint32_t givers = givers_of(p), reached = votes(p->load == most) & all, visited;
    reached &= 0 - reached; /* the lowest */
    ROLLED
    do {
        visited = reached;
        reached |= votes(givers & visited);
    } while (reached != visited);
    return visited;
}

/* From the state after the sweeps: Newton's method on the limit, then the augmenting paths. Mostly
 * what the fullest rank's tokens can reach is level, and proves that nothing is left to be done. */
DEVICE int32_t meet_limit_pairs(pairs *p, uint32_t all, int32_t limit, effort *spent) {
    int32_t most = warp_max(all >> lane_index() & 1 ? p->load : -1);
    uint32_t reached = reach_of_fullest(p, all, most);
    if (proves(p, reached, most)) return most;
    limit = larger(limit, limit_of_set(p, reached));
    pairs start = *p;
    pairs_search s = {0, 0, 0, 0};
    ROLLED
    while (!augment_pairs(p, limit, &s, spent)) {
        limit = limit_of_set(p, s.visited);
        spent->restarts++;
        *p = start;
    }
    return limit;
}

/* What the tables say of this lane, and the tokens of its experts. Returns the sum of those whose
 * lower host it is. */
DEVICE int32_t load_edges(pairs *p, const uint32_t *edge, int32_t colours, const int64_t *tokens) {
    int32_t sum = 0;
    p->partners[0] = p->partners[1] = p->lower = p->used = 0;
#pragma unroll
    for (int c = 0; c < COLOURS; c++) {
        uint32_t e = c < colours ? edge[c * LPLB__CUDA_LANES + lane_index()] : 0;
        bool used = LPLB__CUDA_EDGE_USED(e);
        uint32_t partner = used ? LPLB__CUDA_EDGE_PARTNER(e) : (uint32_t)lane_index();
        p->partners[c / 4] |= partner << 8 * (c % 4);
        p->lower |= LPLB__CUDA_EDGE_LOWER(e) << c;
        p->used |= (uint32_t)used << c;
        p->x[c] = 0;
        p->weight[c] = used ? (int32_t)tokens[LPLB__CUDA_EDGE_EXPERT(e)] : 0;
        if (p->lower >> c & 1) sum += p->weight[c];
    }
    return sum;
}

/* One component. load holds what cannot move; in the end it holds all. x: tokens of the hosts.
 * Returns the optimal limit. */
DEVICE int32_t solve_pairs(const lplb__cuda_component component, const uint32_t *edge,
                           const int64_t *tokens, int32_t *load, int32_t *x,
                           const lplb__cuda_expert *expert, effort *spent) {
    pairs p;
    int32_t lane = lane_index(), ranks = component.ranks;
    uint32_t all = ranks == 32 ? 0xffffffffu : (1u << ranks) - 1;
    int32_t movable = load_edges(&p, edge, component.colours, tokens);
    load += component.first_rank;
    p.load = lane < ranks ? load[lane] : 0;
    int32_t limit = larger(mean_of(warp_sum(p.load + movable), ranks), warp_max(p.load));
    spent->sweeps += sweep_until_level(&p, component.colours, limit);
    if (votes(p.load > limit)) limit = meet_limit_pairs(&p, all, limit, spent);
    if (lane < ranks) load[lane] = p.load;
#pragma unroll
    for (int c = 0; c < COLOURS; c++)
        if (p.used >> c & 1) {
            uint32_t e = LPLB__CUDA_EDGE_EXPERT(edge[c * LPLB__CUDA_LANES + lane]);
            x[expert[e].first_host + !(p.lower >> c & 1)] = p.x[c];
        }
    return limit;
}

#endif
