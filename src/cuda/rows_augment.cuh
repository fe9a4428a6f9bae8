/* Steps 3 and 4 of the exact planner (src/plan/exact.c) for any placement: the limit by Newton's
 * method, tokens moved along breadth-first levels. One component at a time, all warps on it. */
#ifndef LPLB_CUDA_ROWS_AUGMENT_CUH
#define LPLB_CUDA_ROWS_AUGMENT_CUH

#include "cuda/rows.cuh"

enum { NOT_REACHED = 65535 };
static const uint64_t NO_WAY = UINT64_MAX;

/* ---- limits ---- */

template <typename K> DEVICE bool limit_less(limit a, limit b) {
    if (!K::speeds) return a.numerator < b.numerator;
    return (wide)a.numerator * b.denominator < (wide)b.numerator * a.denominator;
}

template <typename K> DEVICE limit warp_max_limit(limit t) {
    for (int d = 16; d; d >>= 1) {
        limit other = {shuffle_xor(t.numerator, d), K::speeds ? shuffle_xor(t.denominator, d) : 1};
        if (limit_less<K>(t, other)) t = other;
    }
    return t;
}

/* The ranks that limit_of_set looks at. */
typedef struct rank_set {
    int32_t first, ranks;
    bool reached_only;
} rank_set;

template <typename K> DEVICE bool in_set(const rows<K> *r, rank_set set, int32_t q) {
    return !set.reached_only || r->depth[q] != NOT_REACHED;
}

/* Of this lane's ranks the one whose next token comes first. */
template <typename K> DEVICE limit next_token(const rows<K> *r, rank_set set, int32_t *rank) {
    limit best = {1, 0};
    *rank = -1;
    ROLLED
    for (int32_t q = set.first + lane_index(); q < set.first + set.ranks; q += 32) {
        if (!in_set(r, set, q)) continue;
        limit own = {(int64_t)r->level[q] + 1, r->speed[q]};
        if (*rank >= 0 && !limit_less<K>(own, best)) continue;
        best = own;
        *rank = q;
    }
    return best;
}

/* Least t with sum of floor(t * speed) >= tokens, as in limits.c: floors at the mean, then token by
 * token to the rank where it comes first. level is scratch. */
template <typename K> DEVICE limit speed_limit(const rows<K> *r, rank_set set, int64_t tokens) {
    int64_t speeds = 0, held = 0;
    limit most = {0, 1};
    ROLLED
    for (int32_t q = set.first + lane_index(); q < set.first + set.ranks; q += 32)
        if (in_set(r, set, q)) speeds += r->speed[q];
    speeds = warp_sum(speeds);
    ROLLED
    for (int32_t q = set.first + lane_index(); q < set.first + set.ranks; q += 32) {
        if (!in_set(r, set, q)) continue;
        r->level[q] = divide_wide((wide)tokens * r->speed[q], speeds);
        held += r->level[q];
    }
    ROLLED
    for (held = warp_sum(held); held < tokens; held++) {
        int32_t rank, winner = lane_index();
        limit best = next_token(r, set, &rank);
        for (int d = 16; d; d >>= 1) {
            limit other = {shuffle_xor(best.numerator, d), shuffle_xor(best.denominator, d)};
            int32_t lane = shuffle_xor(winner, d);
            if (limit_less<K>(other, best) || (!limit_less<K>(best, other) && lane < winner)) {
                best = other;
                winner = lane;
            }
        }
        if (lane_index() == winner) r->level[rank]++;
    }
    ROLLED
    for (int32_t q = set.first + lane_index(); q < set.first + set.ranks; q += 32) {
        limit own = {in_set(r, set, q) ? (int64_t)r->level[q] : 0, r->speed[q]};
        if (limit_less<K>(most, own)) most = own;
    }
    return warp_max_limit<K>(most);
}

/* By one warp: the least t at which the set's ranks hold `tokens`. */
template <typename K> DEVICE limit limit_of_set(const rows<K> *r, rank_set set, int64_t tokens) {
    if (K::speeds) return speed_limit(r, set, tokens);
    int32_t members = 0;
    ROLLED
    for (int32_t q = set.first + lane_index(); q < set.first + set.ranks; q += 32)
        members += in_set(r, set, q);
    members = warp_sum(members);
    limit t = {(tokens + members - 1) / members, 1};
    return t;
}

template <typename K> DEVICE int64_t load_of_set(const rows<K> *r, rank_set set) {
    int64_t tokens = 0;
    ROLLED
    for (int32_t q = set.first + lane_index(); q < set.first + set.ranks; q += 32)
        if (in_set(r, set, q)) tokens += r->load[q];
    return warp_sum(tokens);
}

template <typename K>
DEVICE void set_capacities(const rows<K> *r, rank_set set, limit t, int32_t from, int32_t step) {
    ROLLED
    for (int32_t q = set.first + from; q < set.first + set.ranks; q += step)
        r->capacity[q] =
            K::speeds ? divide_wide((wide)t.numerator * r->speed[q], t.denominator) : t.numerator;
}

DEVICE rank_set ranks_of(const lplb__cuda_component component, bool reached_only) {
    rank_set set = {component.first_rank, component.ranks, reached_only};
    return set;
}

/* The fullest rank, ties to the lower one, by one warp; rank < 0: none. */
template <typename K> DEVICE limit fullest_rank(const rows<K> *r, rank_set set, int32_t *rank) {
    limit most = {-1, 1};
    *rank = INT32_MAX;
    ROLLED
    for (int32_t q = set.first + lane_index(); q < set.first + set.ranks; q += 32) {
        limit own = {r->load[q], K::speeds ? r->speed[q] : 1};
        if (!limit_less<K>(most, own)) continue;
        most = own;
        *rank = q;
    }
    for (int d = 16; d; d >>= 1) {
        limit other = {shuffle_xor(most.numerator, d), shuffle_xor(most.denominator, d)};
        int32_t q = shuffle_xor(*rank, d);
        if (limit_less<K>(most, other) || (!limit_less<K>(other, most) && q < *rank)) {
            most = other;
            *rank = q;
        }
    }
    return most;
}

/* The bounds known before pouring, and the capacities at them. movable [components]: the tokens of
 * each component's movable experts. One warp a component. */
template <typename K> DEVICE void first_limits(const rows<K> *r, const int64_t *movable) {
    ROLLED
    for (int32_t c = warp_index(); c < r->components; c += r->threads / 32) {
        int32_t rank;
        rank_set set = ranks_of(r->component[c], false);
        limit t = limit_of_set(r, set, load_of_set(r, set) + movable[c]);
        limit own = fullest_rank(r, set, &rank);
        if (limit_less<K>(t, own)) t = own;
        set_capacities(r, set, t, lane_index(), 32);
        if (lane_index() == 0) r->limits[c] = t;
    }
}

/* ---- search ---- */

/* How a rank is reached, in the order in which ways are preferred: lowest rank that gives, first
 * row; then where the tokens arrive and where they come from. */
DEVICE uint64_t way_key(int32_t giver, int32_t row, int32_t to_host, int32_t from_host) {
    return (uint64_t)giver << 48 | (uint64_t)row << 32 | (uint64_t)to_host << 16 |
           (uint64_t)from_host;
}
DEVICE int32_t way_giver(uint64_t key) { return (int32_t)(key >> 48); }
DEVICE int32_t way_to(uint64_t key) { return (int32_t)(key >> 16 & 65535); }
DEVICE int32_t way_from(uint64_t key) { return (int32_t)(key & 65535); }

/* Roots: the given rank, or (-1) all ranks over capacity; false if there are none. */
template <typename K> DEVICE bool start_search(const rows<K> *r, rank_set set, int32_t rank) {
    bool any = false;
    ROLLED
    for (int32_t q = set.first + thread_index(); q < set.first + set.ranks; q += r->threads) {
        bool root = rank < 0 ? r->load[q] > r->capacity[q] : q == rank;
        r->depth[q] = root ? 0 : NOT_REACHED;
        r->key[q] = NO_WAY;
        r->owner[q] = INT32_MAX;
        any |= root;
    }
    return rows_any(r, any);
}

template <typename K> DEVICE void offer_way(const rows<K> *r, int32_t rank, uint64_t key) {
    if (r->depth[rank] == NOT_REACHED && key < r->key[rank]) atomic_min(&r->key[rank], key);
}

template <typename K>
DEVICE void expand_chunk(const rows<K> *r, int32_t component, int32_t depth, int32_t row,
                         int32_t chunk) {
    const lplb__cuda_lane at = r->lane[chunk * LANES + lane_index()];
    bool used = at.host != LPLB__CUDA_NO_HOST && at.group >> 4 == component;
    bool gives = used && r->depth[at.rank] == depth && r->x[at.host] > 0;
    uint32_t givers = votes(gives);
    if (!givers) return;
    givers &= group_of(at.group & 15).lanes;
    int32_t from = givers ? lowest_bit(givers) : 0;
    int32_t rank = shuffle((int32_t)at.rank, from), host = shuffle((int32_t)at.host, from);
    if (used && givers) offer_way(r, at.rank, way_key(rank, row, at.host, host));
}

template <typename K>
DEVICE void expand_wide(const rows<K> *r, int32_t component, int32_t depth, int32_t row,
                        int32_t first) {
    const lplb__cuda_lane *lane = r->lane + first * LANES + lane_index();
    int32_t rank = -1, host = 0, chunks = 0;
    if (lane->group >> 4 != component) return;
    ROLLED
    do {
        const lplb__cuda_lane at = lane[chunks * LANES];
        bool gives =
            at.host != LPLB__CUDA_NO_HOST && r->depth[at.rank] == depth && r->x[at.host] > 0;
        uint32_t givers = votes(gives);
        if (givers && rank < 0) {
            rank = shuffle((int32_t)at.rank, lowest_bit(givers));
            host = shuffle((int32_t)at.host, lowest_bit(givers));
        }
        chunks++;
    } while (first + chunks < r->chunks && !r->chunk[first + chunks]);
    ROLLED
    for (int32_t k = 0; k < chunks && rank >= 0; k++) {
        const lplb__cuda_lane at = lane[k * LANES];
        if (at.host != LPLB__CUDA_NO_HOST) offer_way(r, at.rank, way_key(rank, row, at.host, host));
    }
}

enum { REACHED_NOTHING, REACHED_RANKS, REACHED_ROOM };

/* One more level. */
template <typename K>
DEVICE int expand_rows(const rows<K> *r, int32_t component, rank_set set, int32_t depth) {
    ROLLED
    for (int32_t row = 0; row < r->n_rows; row++) {
        int32_t first = (int32_t)r->row[row], end = (int32_t)r->row[row + 1];
        ROLLED
        for (int32_t chunk = first + warp_index(); chunk < end; chunk += r->threads / 32) {
            int32_t lanes = r->chunk[chunk];
            if (lanes > LANES) expand_wide(r, component, depth, row, chunk);
            else if (lanes > 0) expand_chunk(r, component, depth, row, chunk);
        }
    }
    rows_barrier(r);
    bool reached = false, room = false;
    ROLLED
    for (int32_t q = set.first + thread_index(); q < set.first + set.ranks; q += r->threads) {
        if (r->depth[q] != NOT_REACHED || r->key[q] == NO_WAY) continue;
        r->depth[q] = (uint16_t)(depth + 1);
        reached = true;
        room |= r->load[q] < r->capacity[q];
    }
    if (rows_any(r, room)) return REACHED_ROOM;
    return rows_any(r, reached) ? REACHED_RANKS : REACHED_NOTHING;
}

/* ---- moving tokens ---- */

/* Along the way from the root to the target; false if an earlier path of this phase took it. */
template <typename K> DEVICE bool push_path(const rows<K> *r, int32_t target, int32_t root) {
    typedef typename K::number T;
    T amount = r->capacity[target] - r->load[target];
    ROLLED
    for (int32_t v = target; v != root; v = way_giver(r->key[v]))
        amount = smaller(amount, r->x[way_from(r->key[v])]);
    amount = smaller(amount, (T)(r->load[root] - r->capacity[root]));
    if (amount <= 0) return false;
    ROLLED
    for (int32_t v = target; v != root; v = way_giver(r->key[v])) {
        r->x[way_from(r->key[v])] -= amount;
        r->x[way_to(r->key[v])] += amount;
    }
    r->load[root] -= amount;
    r->load[target] += amount;
    return true;
}

/* To every rank of this level with room, lowest first. Ways from different roots share nothing, so
 * one target of each root at a time is served side by side. One warp. */
template <typename K>
DEVICE void push_level(const rows<K> *r, rank_set set, int32_t depth, effort *spent) {
    ROLLED
    for (int32_t base = set.first; base < set.first + set.ranks; base += 32) {
        int32_t q = base + lane_index(), root = q;
        bool pending =
            q < set.first + set.ranks && r->depth[q] == depth && r->load[q] < r->capacity[q];
        if (pending) ROLLED
        while (r->depth[root] != 0) root = way_giver(r->key[root]);
        ROLLED
        while (votes(pending)) {
            if (pending) atomic_min(&r->owner[root], lane_index());
            warp_barrier();
            bool mine = pending && r->owner[root] == lane_index();
            if (mine) spent->augmentations += push_path(r, q, root);
            warp_barrier();
            if (mine) r->owner[root] = INT32_MAX;
            pending = pending && !mine;
            warp_barrier();
        }
    }
}

/* Phases until no rank exceeds its capacity: true; or until the ranks above it reach no room. */
template <typename K>
DEVICE bool augment_rows(const rows<K> *r, int32_t component, rank_set set, effort *spent) {
    ROLLED
    while (start_search(r, set, -1)) {
        int reached = REACHED_RANKS, depth = 0;
        ROLLED
        for (; reached == REACHED_RANKS; depth++) reached = expand_rows(r, component, set, depth);
        if (reached == REACHED_NOTHING) return false;
        if (warp_index() == 0) push_level(r, set, depth, spent);
        rows_barrier(r);
    }
    return true;
}

/* The limit of what the last search reached, known to all threads. */
template <typename K> DEVICE limit limit_of_reached(const rows<K> *r, rank_set set) {
    set.reached_only = true;
    if (warp_index() == 0) {
        limit t = limit_of_set(r, set, load_of_set(r, set));
        if (lane_index() == 0) r->result->t = t;
    }
    rows_barrier(r);
    return r->result->t;
}

/* What the fullest rank's tokens can reach; after the sweeps that set is nearly level. */
template <typename K>
DEVICE limit guess_limit(const rows<K> *r, int32_t component, rank_set set, limit *first) {
    if (warp_index() == 0) {
        int32_t rank;
        fullest_rank(r, set, &rank);
        if (lane_index() == 0) r->result->rank = rank;
    }
    rows_barrier(r);
    start_search(r, set, r->result->rank);
    ROLLED
    for (int32_t depth = 0; expand_rows(r, component, set, depth) != REACHED_NOTHING;) depth++;
    limit t = limit_of_reached(r, set);
    return limit_less<K>(t, *first) ? *first : t;
}

template <typename K> DEVICE void keep_state(const rows<K> *r, bool restore) {
    ROLLED
    for (int32_t i = thread_index(); i < r->hosts; i += r->threads) {
        if (restore) r->x[i] = r->saved_x[i];
        else r->saved_x[i] = r->x[i];
    }
    ROLLED
    for (int32_t q = thread_index(); q < r->ranks; q += r->threads) {
        if (restore) r->load[q] = r->saved_load[q];
        else r->saved_load[q] = r->load[q];
    }
    rows_barrier(r);
}

/* A component after its sweeps. Returns its optimal limit; `first` is that of the capacities. */
template <typename K>
DEVICE limit meet_limit_rows(const rows<K> *r, int32_t component, limit first, effort *spent) {
    rank_set set = ranks_of(r->component[component], false);
    if (!start_search(r, set, -1)) return first;
    limit t = guess_limit(r, component, set, &first);
    keep_state(r, false);
    for (;;) {
        set_capacities(r, set, t, thread_index(), r->threads);
        rows_barrier(r);
        if (augment_rows(r, component, set, spent)) return t;
        t = limit_of_reached(r, set);
        if (thread_index() == 0) spent->restarts++;
        keep_state(r, true);
    }
}

#endif
