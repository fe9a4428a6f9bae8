/* The exact planner where a component has at most 64 ranks: one warp a component, sets of ranks are
 * words of 64 bits. While tokens are poured there is one lane a host, as in rows.cuh; in searches a
 * lane looks after two ranks and two experts, so that a level is a few instructions and one
 * reduction. Fewer than 2^28 tokens, equal speeds. Follows src/plan/exact.c. */
#ifndef LPLB_CUDA_SETS_CUH
#define LPLB_CUDA_SETS_CUH

#include "cuda/rows.cuh"

enum { OWN_EXPERTS = LPLB__CUDA_SET_EXPERTS / 32, OWN_RANKS = 2 };

/* What a lane knows of its host in a chunk: 16 bytes of shared memory, read at once. */
typedef struct alignas(16) set_host {
    int32_t tokens, share;
    uint16_t host, rank; /* host NO_HOST: none */
    uint16_t kind, log2; /* lanes of the chunk's largest group, log2(lanes of this group) */
} set_host;

/* One component, as its warp sees it. Ranks are numbered within the component. */
typedef struct sets {
    set_host *host;        /* [chunks][32] this lane's of the first, chunks by colour */
    const int64_t *tokens; /* [E] */
    int32_t *load;         /* [ranks] of the component */
    int32_t *x, *saved_x;  /* of all hosts */
    uint64_t *level;       /* [ranks] what a search reached at each depth */
    int32_t ranks, chunks;
    uint32_t inverse;            /* floor((2^32 - 1) / (lane + 1)) */
    uint64_t hosts[OWN_EXPERTS]; /* of this lane's experts: movables lane and lane + 32 */
    uint64_t holds[OWN_EXPERTS]; /* hosts with tokens, when the phase began; */
    uint64_t now[OWN_EXPERTS];   /* and since */
    int32_t first[OWN_EXPERTS];  /* host */
    int32_t loads[OWN_RANKS];    /* of ranks lane and lane + 32, during searches */
} sets;

DEVICE uint64_t bits_below(int32_t bit) { return ((uint64_t)1 << bit) - 1; }
DEVICE int32_t bits_set(uint64_t word) {
    return bits_set((uint32_t)word) + bits_set((uint32_t)(word >> 32));
}
DEVICE int32_t lowest_bit(uint64_t word) {
    return (uint32_t)word ? lowest_bit((uint32_t)word) : 32 + lowest_bit((uint32_t)(word >> 32));
}
DEVICE uint64_t warp_union(uint64_t set) {
    return (uint64_t)warp_or((uint32_t)(set >> 32)) << 32 | warp_or((uint32_t)set);
}
/* Bit q: what this lane says of its rank q. */
DEVICE uint64_t rank_votes(bool low, bool high) { return (uint64_t)votes(high) << 32 | votes(low); }

DEVICE uint64_t all_ranks(const sets *s) { return ~(uint64_t)0 >> (64 - s->ranks); }

/* ---- steps 1 and 2: start and sweep ---- */

/* sum / members, for up to 32 members and sums below 2^30; inverse is that of the members. The
 * product's upper half is the quotient or one less. */
DEVICE int32_t divide_by_members(int32_t sum, int32_t members, uint32_t inverse) {
    int32_t quotient = (int32_t)((uint64_t)(uint32_t)sum * inverse >> 32);
    return quotient + (sum - quotient * members >= members);
}

/* The common level of the hosts that stay below it, as pour_group of rows.cuh; WIDTH: lanes of the
 * largest group at most. */
template <int WIDTH>
DEVICE int32_t pour_members(const sets *s, const set_host &h, bool used, int32_t level) {
    group g = group_of(h.log2);
    uint32_t hosts = votes(used) & g.lanes, takers = votes(used && h.share > 0) & g.lanes;
    bool in = used && (!takers || h.share > 0);
    if (!takers) takers = hosts;
    for (;;) {
        int32_t members = larger(bits_set(takers), 1); /* lanes without an expert have none */
        uint32_t inverse = shuffle(s->inverse, members - 1);
        int32_t sum = group_sum(g, WIDTH, in ? level : 0) + h.tokens;
        int32_t height = divide_by_members(sum, members, inverse);
        bool stays = used && level <= height;
        if (!votes(stays != in)) {
            int32_t before = bits_set(takers & lanes_below());
            return in ? height - level + (before < sum - height * members) : 0;
        }
        in = stays;
        takers = votes(in) & g.lanes;
    }
}

/* True if the share of this lane's host changed. */
DEVICE bool pour_set(const sets *s, const set_host &h, set_host *at) {
    bool used = h.host != LPLB__CUDA_NO_HOST;
    int32_t level = s->load[h.rank] - h.share, share; /* lanes without a host have rank 0 */
    warp_barrier(); /* a warp that has diverged shuffles slowly */
    int32_t pair = share_of_pair(h.share, level + h.share, h.tokens);
    if (h.kind == 2) share = pair;
    else if (h.kind <= 8) share = pour_members<8>(s, h, used, level);
    else if (h.kind <= 16) share = pour_members<16>(s, h, used, level);
    else share = pour_members<32>(s, h, used, level); /* one group */
    if (h.log2 == 1) share = pair;
    if (!used || share == h.share) return false;
    s->load[h.rank] = level + share;
    at->share = share;
    return true;
}

/* All chunks of the component once. */
DEVICE bool sweep_sets(const sets *s) {
    bool changed = false;
    set_host next = *s->host;
    ROLLED
    for (int32_t k = 0; k < s->chunks; k++) {
        set_host here = next;
        next = s->host[smaller(k + 1, s->chunks - 1) * LANES];
        changed |= pour_set(s, here, s->host + k * LANES);
        warp_barrier();
    }
    return votes(changed) != 0;
}

DEVICE void take_loads(sets *s) {
#pragma unroll
    for (int k = 0; k < OWN_RANKS; k++) {
        int32_t q = lane_index() + 32 * k;
        s->loads[k] = q < s->ranks ? s->load[q] : 0;
    }
}

DEVICE uint64_t ranks_above(const sets *s, int32_t limit) {
    return rank_votes(s->loads[0] > limit, s->loads[1] > limit);
}

/* Until no rank is above the limit, or nothing changes any more, or long enough. */
DEVICE void sweep_until_within(sets *s, int32_t limit, effort *spent) {
    ROLLED
    for (int32_t sweeps = 1; sweeps <= LPLB__MAX_SWEEPS; sweeps++) {
        bool changed = sweep_sets(s);
        take_loads(s);
        if (!changed) return;
        spent->sweeps++;
        if (!ranks_above(s, limit)) return;
    }
}

/* ---- steps 3 and 4: bound and augment ---- */

/* Which of its hosts hold tokens of this lane's experts. */
DEVICE void find_holders(sets *s) {
#pragma unroll
    for (int k = 0; k < OWN_EXPERTS; k++) {
        int32_t host = s->first[k];
        s->now[k] = 0;
        ROLLED
        for (uint64_t left = s->hosts[k]; left; left &= left - 1, host++)
            if (s->x[host] > 0) s->now[k] |= left & -left;
    }
}

DEVICE void begin_phase(sets *s) {
#pragma unroll
    for (int k = 0; k < OWN_EXPERTS; k++) s->holds[k] = s->now[k];
}

/* The ranks that have an expert whose tokens are on a rank of the set. */
DEVICE uint64_t reach_from(const sets *s, uint64_t set) {
    uint64_t reached = 0;
#pragma unroll
    for (int k = 0; k < OWN_EXPERTS; k++)
        if (s->holds[k] & set) reached |= s->hosts[k];
    return warp_union(reached);
}

/* All that tokens on the set can reach. */
DEVICE uint64_t closure_of(const sets *s, uint64_t set) {
    ROLLED
    for (uint64_t next = set; next;) {
        next = reach_from(s, next) & ~set;
        set |= next;
    }
    return set;
}

DEVICE int32_t load_of(const sets *s, int32_t rank) {
    return shuffle(rank < 32 ? s->loads[0] : s->loads[1], rank & 31);
}

DEVICE void add_load(sets *s, int32_t rank, int32_t tokens) {
    if (lane_index() != (rank & 31)) return;
    if (rank < 32) s->loads[0] += tokens;
    else s->loads[1] += tokens;
}

/* Share of this lane's expert k on one of its hosts. */
DEVICE int32_t *share_on(const sets *s, int k, int32_t rank) {
    return &s->x[s->first[k] + bits_set(s->hosts[k] & bits_below(rank))];
}

/* As many tokens as fit from the target's root to the target; false if none do any more. A way uses
 * an expert once, so each lane notes what it has to move. */
DEVICE bool push_set(sets *s, int32_t depth, int32_t limit, int32_t target) {
    int32_t v = target, amount = limit - load_of(s, target), least = INT32_MAX, way[OWN_EXPERTS];
#pragma unroll
    for (int k = 0; k < OWN_EXPERTS; k++) way[k] = -1;
    uint64_t next = s->level[depth - 1];
    ROLLED
    while (depth-- > 0) {
        uint64_t givers = next;
        int32_t best = INT32_MAX;
        next = s->level[larger(depth - 1, 0)];
#pragma unroll
        for (int k = 0; k < OWN_EXPERTS; k++) {
            uint64_t from = s->holds[k] & givers;
            if (from && s->hosts[k] >> v & 1)
                best = smaller(best, lowest_bit(from) << 8 | (lane_index() + 32 * k));
        }
        best = warp_min(best);
        int32_t giver = best >> 8;
#pragma unroll
        for (int k = 0; k < OWN_EXPERTS; k++)
            if ((best & 255) == lane_index() + 32 * k) {
                way[k] = giver | v << 8;
                least = smaller(least, *share_on(s, k, giver));
            }
        v = giver;
    }
    amount = smaller(smaller(amount, load_of(s, v) - limit), warp_min(least));
    if (amount <= 0) return false; /* an earlier way of this phase took it */
#pragma unroll
    for (int k = 0; k < OWN_EXPERTS; k++)
        if (way[k] >= 0) {
            int32_t *gives = share_on(s, k, way[k] & 255);
            *gives -= amount;
            if (!*gives) s->now[k] &= ~((uint64_t)1 << (way[k] & 255));
            *share_on(s, k, way[k] >> 8) += amount;
            s->now[k] |= (uint64_t)1 << (way[k] >> 8);
        }
    add_load(s, v, -amount);
    add_load(s, target, amount);
    return true;
}

/* Phases until no rank exceeds the limit: 0. Or the ranks above it reach no room: what they do
 * reach. */
DEVICE uint64_t augment_sets(sets *s, int32_t limit, effort *spent) {
    for (;;) {
        uint64_t next = ranks_above(s, limit), visited = next, targets;
        uint64_t room = rank_votes(s->loads[0] < limit, s->loads[1] < limit);
        int32_t depth = 0;
        if (!next) return 0;
        begin_phase(s);
        warp_barrier(); /* the levels of the phase before have been read */
        ROLLED
        do {
            if (lane_index() == 0) s->level[depth] = next;
            next = reach_from(s, next) & ~visited;
            if (!next) return visited;
            visited |= next;
            targets = next & room;
            depth++;
        } while (!targets);
        warp_barrier();
        ROLLED
        for (; targets; targets &= targets - 1)
            spent->augmentations += push_set(s, depth, limit, lowest_bit(targets));
    }
}

/* ceil(mean load of the set): what its ranks cannot get below when none of its tokens can leave. */
DEVICE int32_t limit_of_members(const sets *s, uint64_t set) {
    int32_t tokens = set >> lane_index() & 1 ? s->loads[0] : 0;
    if (set >> lane_index() >> 32 & 1) tokens += s->loads[1];
    int32_t members = bits_set(set);
    return (int32_t)(((uint32_t)warp_sum(tokens) + (uint32_t)members - 1) / (uint32_t)members);
}

/* What the fullest rank's tokens can reach; after the sweeps that set is nearly level. */
DEVICE int32_t guess_set(const sets *s) {
    int32_t most = warp_max(larger(s->loads[0], s->loads[1]));
    uint64_t fullest = rank_votes(s->loads[0] == most, s->loads[1] == most) & all_ranks(s);
    return limit_of_members(s, closure_of(s, fullest & -fullest));
}

/* Copies the shares of this lane's experts. */
DEVICE void keep_shares(const sets *s, int32_t *to, const int32_t *from) {
#pragma unroll
    for (int k = 0; k < OWN_EXPERTS; k++)
        ROLLED
        for (int32_t i = 0; i < bits_set(s->hosts[k]); i++)
            to[s->first[k] + i] = from[s->first[k] + i];
}

/* From the state after the sweeps: Newton's method on the limit, then the augmenting paths. */
DEVICE int32_t meet_limit_sets(sets *s, int32_t limit, effort *spent) {
    int32_t loads[OWN_RANKS] = {s->loads[0], s->loads[1]};
    find_holders(s);
    begin_phase(s);
    limit = larger(limit, guess_set(s));
    keep_shares(s, s->saved_x, s->x);
    ROLLED
    for (uint64_t stuck; (stuck = augment_sets(s, limit, spent));) {
        limit = limit_of_members(s, stuck);
        spent->restarts++;
        warp_barrier();
        keep_shares(s, s->x, s->saved_x);
        find_holders(s);
        s->loads[0] = loads[0];
        s->loads[1] = loads[1];
    }
#pragma unroll
    for (int k = 0; k < OWN_RANKS; k++)
        if (lane_index() + 32 * k < s->ranks) s->load[lane_index() + 32 * k] = s->loads[k];
    return limit;
}

/* ---- a component ---- */

/* This lane's experts; returns their tokens. */
DEVICE int32_t take_experts(sets *s, const lplb__cuda_set *set, const lplb__cuda_expert *expert,
                            int32_t movables) {
    int32_t tokens = 0;
#pragma unroll
    for (int k = 0; k < OWN_EXPERTS; k++) {
        int32_t m = lane_index() + 32 * k;
        bool used = m < movables;
        s->hosts[k] = used ? set[m].hosts : 0;
        s->first[k] = used ? expert[set[m].expert].first_host : 0;
        if (used) tokens += (int32_t)s->tokens[set[m].expert];
    }
    return tokens;
}

/* Of the tokens of this lane's expert, which is in one group. */
DEVICE int32_t even_share(const sets *s, const set_host &h) {
    bool used = h.host != LPLB__CUDA_NO_HOST;
    uint32_t lanes = votes(used) & group_of(h.log2).lanes;
    int32_t hosts = larger(bits_set(lanes), 1);
    int32_t each = divide_by_members(h.tokens, hosts, shuffle(s->inverse, hosts - 1));
    return used ? each + (bits_set(lanes & lanes_below()) < h.tokens - each * hosts) : 0;
}

/* What the lanes have to know for pouring, and the even shares that it starts from. chunk: the
 * component's, in the table that lane is this lane's first of. */
DEVICE void take_hosts(const sets *s, const uint32_t *chunk, const lplb__cuda_lane *lane,
                       int32_t first_rank) {
#pragma unroll 4
    for (int32_t k = 0; k < s->chunks; k++) {
        lplb__cuda_lane at = lane[LPLB__CUDA_CHUNK(chunk[k]) * LANES];
        set_host h;
        h.tokens = (int32_t)s->tokens[at.expert];
        h.host = at.host;
        h.rank = at.host == LPLB__CUDA_NO_HOST ? 0 : (uint16_t)(at.rank - first_rank);
        h.kind = (uint16_t)LPLB__CUDA_CHUNK_KIND(chunk[k]);
        h.log2 = at.group & 15;
        h.share = even_share(s, h);
        if (h.share) atomic_add(&s->load[h.rank], h.share);
        s->host[k * LANES] = h;
    }
    warp_barrier();
}

DEVICE void write_shares(const sets *s) {
    ROLLED
    for (int32_t k = 0; k < s->chunks; k++) {
        const set_host h = s->host[k * LANES];
        if (h.host != LPLB__CUDA_NO_HOST) s->x[h.host] = h.share;
    }
    warp_barrier();
}

/* The bounds known at first: the mean, and each rank's load that cannot move. */
DEVICE int32_t first_limit(sets *s, int32_t movable) {
    take_loads(s);
    int32_t fixed = s->loads[0] + s->loads[1];
    int32_t all = warp_sum(fixed + movable);
    int32_t limit = (int32_t)(((uint32_t)all + (uint32_t)s->ranks - 1) / (uint32_t)s->ranks);
    return larger(limit, warp_max(larger(s->loads[0], s->loads[1])));
}

/* From even shares; x: the shares. Returns the optimal limit. */
DEVICE int32_t solve_sets(sets *s, int32_t limit, effort *spent) {
    sweep_until_within(s, limit, spent);
    write_shares(s);
    return ranks_above(s, limit) ? meet_limit_sets(s, limit, spent) : limit;
}

#endif
