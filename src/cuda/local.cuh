/* Locality: of what a plan gives to the hosts of an expert, each source first takes what lies on
 * its own rank, then on its node, then the rest, sources and hosts ascending each time; the same
 * integers as prepare_local_first of src/dispatch/prepare.c.
 *
 * There sources and hosts are walked through one by one. But each of the three passes matches two
 * rows of intervals, what the sources have left and what the hosts have room for, so what one
 * source gets follows from the sums over the sources before it. Those of a rank or a node are all
 * that is added up here, by one thread for each expert. */
#ifndef LPLB_CUDA_LOCAL_CUH
#define LPLB_CUDA_LOCAL_CUH

#include "cuda/peers.cuh"

/* Tokens of some sources: of all of them, and of those before this step's source. */
typedef struct source_sum {
    int64_t all, before;
} source_sum;

DEVICE int64_t tokens_of_source(const step &a, int32_t s, int32_t e) {
    if (a.source_counts) return a.source_counts[(int64_t)s * a.experts + e];
    if (!shares_with_peers(a) || s == a.source) return shared_array(a, mine, int32_t)[e];
    int64_t row = words_of_turn(a, state_of(a)->turn) + (int64_t)s * a.peers.row_words;
    return (uint32_t)load_peer_word(a.peers.words + row + LPLB__CUDA_ROW_HEAD + e);
}

/* Of sources source[begin..end). */
DEVICE source_sum sum_up_sources(const step &a, const int32_t *source, int32_t begin, int32_t end,
                                 int32_t e) {
    enum { AT_ONCE = 8 };
    source_sum sum = {0, 0};
    ROLLED
    for (int32_t first = begin; first < end; first += AT_ONCE) {
        int32_t number[AT_ONCE];
        int64_t tokens[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) number[k] = source[smaller(first + k, end - 1)];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) tokens[k] = tokens_of_source(a, number[k], e);
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            if (first + k >= end) break;
            sum.all += tokens[k];
            if (number[k] < a.source) sum.before += tokens[k];
        }
    }
    return sum;
}

/* One expert. Arrays are of its hosts. */
typedef struct local_expert {
    int32_t e, first_host, hosts, own_rank, own_node;
    const lplb__cuda_host *host;
    int64_t own;            /* tokens of this source that have no host yet */
    int64_t *room, *before; /* what the host still wants; what earlier sources gave it */
    int32_t *taken;         /* what this source gives it */
} local_expert;

DEVICE int32_t rank_of_host(const step &a, const local_expert *x, int32_t h) {
    return table(a, rank_id, uint16_t)[x->host[h].rank];
}
DEVICE int32_t node_of_host(const step &a, const local_expert *x, int32_t h) {
    return a.local.node[rank_of_host(a, x, h)];
}

/* The part below `end` of an interval of `length` that starts at `begin`. */
DEVICE int64_t part_below(int64_t end, int64_t begin, int64_t length) {
    return smaller(larger(end - begin, (int64_t)0), length);
}

DEVICE void take_from(local_expert *x, int32_t h, int64_t own_begin, int64_t own, int64_t begin) {
    int64_t before = part_below(own_begin, begin, x->room[h]);
    x->before[h] += before;
    x->taken[h] += (int32_t)(part_below(own_begin + own, begin, x->room[h]) - before);
}

/* Every host for the sources on its rank. */
DEVICE void take_on_ranks(const step &a, local_expert *x, const block_state *state) {
    int64_t own = x->own;
    ROLLED
    for (int32_t h = 0; h < x->hosts; h++) {
        int32_t rank = rank_of_host(a, x, h), begin = a.local.rank_begin[rank];
        source_sum sum =
            sum_up_sources(a, a.local.source_by_rank, begin, a.local.rank_begin[rank + 1], x->e);
        x->room[h] = host_tokens(a, state, x->first_host + h);
        x->before[h] = x->taken[h] = 0;
        if (rank == x->own_rank) take_from(x, h, sum.before, own, 0);
        else x->before[h] = part_below(sum.before, 0, x->room[h]);
        x->own -= x->taken[h];
        x->room[h] -= smaller(sum.all, x->room[h]);
    }
}

/* Every host, from host `first` on, of that one's node for the sources of that node; no host before
 * it is of this node. */
DEVICE void take_on_node(const step &a, local_expert *x, const block_state *state, int32_t first,
                         int32_t node) {
    source_sum sum = {shared_array(a, tokens, int64_t)[x->e],
                      shared_array(a, before, int64_t)[x->e]};
    int64_t begin = 0, own = node == x->own_node ? x->own : 0;
    if (a.local.nodes > 1)
        sum = sum_up_sources(a, a.local.source_by_node, a.local.node_begin[node],
                             a.local.node_begin[node + 1], x->e);
    ROLLED
    for (int32_t h = first; h < x->hosts; h++) {
        if (node_of_host(a, x, h) != node) continue;
        sum.all -= host_tokens(a, state, x->first_host + h) - x->room[h];
        sum.before -= x->before[h];
    }
    ROLLED
    for (int32_t h = first; h < x->hosts; h++) {
        if (node_of_host(a, x, h) != node) continue;
        int64_t room = x->room[h], had = x->taken[h];
        take_from(x, h, sum.before, own, begin);
        x->own -= x->taken[h] - had;
        x->room[h] -= part_below(sum.all, begin, room);
        begin += room;
    }
}

DEVICE void take_on_nodes(const step &a, local_expert *x, const block_state *state) {
    ROLLED
    for (int32_t h = 0; h < x->hosts; h++) {
        int32_t node = node_of_host(a, x, h), earlier = 0;
        while (earlier < h && node_of_host(a, x, earlier) != node) earlier++;
        if (earlier == h) take_on_node(a, x, state, h, node);
    }
}

DEVICE void take_anywhere(const step &a, local_expert *x) {
    int64_t before = shared_array(a, before, int64_t)[x->e], begin = 0, own = x->own;
    ROLLED
    for (int32_t h = 0; h < x->hosts; h++) before -= x->before[h];
    ROLLED
    for (int32_t h = 0; h < x->hosts; h++) {
        take_from(x, h, before, own, begin);
        begin += x->room[h];
    }
}

/* 0 the same rank, 1 the same node, 2 elsewhere. */
DEVICE int32_t distance_of_host(const step &a, const local_expert *x, int32_t h) {
    if (rank_of_host(a, x, h) == x->own_rank) return 0;
    return node_of_host(a, x, h) == x->own_node ? 1 : 2;
}

/* The ends of this source's own tokens on the host's slots, behind the `number` that are there;
 * *end: the last one. */
DEVICE int32_t add_segments(const step &a, const local_expert *x, const block_state *state,
                            int32_t h, int32_t number, int32_t *end) {
    const lplb__cuda_segment *segment = table(a, segment, lplb__cuda_segment);
    int32_t first = table(a, expert, lplb__cuda_expert)[x->e].first_segment + number;
    int32_t from = x->host[h].first_segment, slots = x->host[h].slots, added = 0;
    int64_t tokens = host_tokens(a, state, x->first_host + h);
    int64_t at = x->before[h], stop = at + x->taken[h];
    ROLLED
    for (int32_t k = 0; k < slots && at < stop; k++) {
        int64_t part = smaller(end_of_part(tokens, k, slots), stop);
        if (part <= at) continue;
        *end += (int32_t)(part - at);
        at = part;
        shared_array(a, end, int32_t)[first + added] = *end;
        shared_array(a, slot, uint16_t)[first + added++] = segment[from + k].slot;
    }
    return number + added;
}

/* Whether the source's tokens of the expert have a choice to make. */
DEVICE bool is_local(const step &a, const block_state *state, int32_t e) {
    if (!a.local.nodes || a.stages & LPLB__CUDA_STAGE_SHARES || state->failed) return false;
    return table(a, expert, lplb__cuda_expert)[e].hosts > 1 &&
           shared_array(a, mine, int32_t)[e] > 0;
}

/* The way of an expert for which is_local holds, by one thread. */
DEVICE_CALL void make_local_way(const step &a, int32_t e) {
    const lplb__cuda_expert at = table(a, expert, lplb__cuda_expert)[e];
    const block_state *state = state_of(a);
    local_expert x;
    x.e = e;
    x.first_host = at.first_host;
    x.hosts = at.hosts;
    x.own_rank = a.local.source_rank[a.source];
    x.own_node = a.local.node[x.own_rank];
    x.own = shared_array(a, mine, int32_t)[e];
    x.host = table(a, host, lplb__cuda_host) + at.first_host;
    x.room = shared_array(a, local_room, int64_t) + at.choice;
    x.before = shared_array(a, local_before, int64_t) + at.choice;
    x.taken = shared_array(a, local_taken, int32_t) + at.choice;
    take_on_ranks(a, &x, state);
    take_on_nodes(a, &x, state);
    take_anywhere(a, &x);
    int32_t number = 0, end = 0;
    ROLLED
    for (int32_t distance = 0; distance <= 2; distance++) ROLLED
    for (int32_t h = 0; h < x.hosts; h++)
        if (x.taken[h] > 0 && distance_of_host(a, &x, h) == distance)
            number = add_segments(a, &x, state, h, number, &end);
    const uint16_t *slot = shared_array(a, slot, uint16_t) + at.first_segment;
    expert_way way = {INT32_MAX, slot[0]};
    int32_t base = (int32_t)shared_array(a, base, uint32_t)[e];
    if (number == 2) {
        way.end = shared_array(a, end, int32_t)[at.first_segment] - base;
        way.slots |= (uint32_t)slot[1] << 16;
    } else if (number > 2) {
        way =
            expert_way{(int32_t)((uint32_t)at.first_segment << 16 | (uint32_t)number), MANY_SLOTS};
    } else {
        way.end -= base;
    }
    shared_array(a, way, expert_way)[e] = way;
}

#endif
