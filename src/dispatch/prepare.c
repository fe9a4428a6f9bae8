/* Which of an expert's tokens go to which slot, for one source. docs/math.md, "Dispatch", states
 * the rule; every source computes its own part of it from the gathered counts. */
#include "dispatch/dispatch.h"

void lplb__segments_begin(lplb_dispatcher *d, int32_t e) {
    /* every expert before e has at most its slots and one end */
    d->segment_end = (int32_t)(d->slot_begin[d->offset[e]] + e);
    d->segment_begin[e] = d->segment_end;
}

void lplb__segments_add(lplb_dispatcher *d, int64_t h, int64_t share, int64_t first, int64_t n) {
    int64_t slots = d->slot_begin[h + 1] - d->slot_begin[h];
    int64_t each = share / slots, extra = share % slots, begin = 0;
    for (int64_t k = 0; k < slots && n > 0; k++) {
        int64_t end = begin + each + (k < extra);
        if (end > first) {
            int64_t take = end - first < n ? end - first : n;
            d->segment[d->segment_end++] =
                (lplb__segment){.tokens = take, .slot = d->slot[d->slot_begin[h] + k]};
            first += take;
            n -= take;
        }
        begin = end;
    }
}

void lplb__segments_end(lplb_dispatcher *d) {
    d->segment[d->segment_end++] = (lplb__segment){.tokens = LPLB__ENDLESS, .slot = -1};
}

/* total[e], before[e] and local[e]; refuses negative and excessive counts. */
static lplb_status sum_sources(lplb_dispatcher *d, const int64_t *counts, int32_t source) {
    int32_t E = d->experts;
    /* Bits of every count and running sum: a sum of two values below 2^63 cannot wrap, and any
     * value of 2^62 or more leaves a trace, so one look at the end tells whether to look closer. */
    uint64_t seen = 0;
    for (int32_t e = 0; e < E; e++) d->total[e] = 0;
    for (int32_t s = 0; s < d->sources; s++) {
        const int64_t *row = counts + (int64_t)s * E;
        for (int32_t e = 0; e < E && s == source; e++) {
            d->before[e] = d->total[e];
            d->local[e] = row[e];
        }
        for (int32_t e = 0; e < E; e++) {
            uint64_t sum = (uint64_t)d->total[e] + (uint64_t)row[e];
            seen |= sum | (uint64_t)row[e];
            d->total[e] = (int64_t)sum;
        }
    }
    if (seen < (uint64_t)LPLB_MAX_TOKENS) return LPLB_OK;
    for (int32_t e = 0; e < E; e++) {
        int64_t total = 0;
        for (int32_t s = 0; s < d->sources; s++) {
            int64_t count = counts[(int64_t)s * E + e];
            if (count < 0)
                return LPLB_FAIL(LPLB_RANGE, "source %d counts %lld tokens of expert %d", s,
                                 (long long)count, e);
            if (count > LPLB_MAX_TOKENS - total)
                return LPLB_FAIL(LPLB_OVERFLOW, "expert %d has more than 2^62 tokens", e);
            total += count;
        }
    }
    return LPLB_OK;
}

static lplb_status check_split(const lplb_dispatcher *d, const int64_t *split) {
    for (int32_t e = 0; e < d->experts; e++) {
        int64_t left = d->total[e];
        for (int64_t h = d->offset[e]; h < d->offset[e + 1]; h++) {
            if (split[h] < 0)
                return LPLB_FAIL(LPLB_RANGE, "expert %d, rank %d: a share of %lld tokens", e,
                                 d->rank[h], (long long)split[h]);
            if (split[h] > left) {
                left = -1;
                break;
            }
            left -= split[h];
        }
        if (left != 0)
            return LPLB_FAIL(LPLB_INVALID,
                             "expert %d: the sources count %lld tokens, the split has %s", e,
                             (long long)d->total[e], left > 0 ? "fewer" : "more");
    }
    return LPLB_OK;
}

/* Without locality: hosts take consecutive intervals of the expert's tokens, numbered source by
 * source. */
static void prepare_in_order(lplb_dispatcher *d, int32_t e, const int64_t *split) {
    int64_t first = d->before[e], end = first + d->local[e], at = 0;
    for (int64_t h = d->offset[e]; h < d->offset[e + 1]; h++) {
        int64_t low = at > first ? at : first, high = at + split[h] < end ? at + split[h] : end;
        if (low < high) lplb__segments_add(d, h, split[h], low - at, high - low);
        at += split[h];
    }
}

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Source s gives up to what it has left to host h, a member of the expert's list. */
static void give(lplb_dispatcher *d, int32_t s, int32_t source, int64_t h) {
    int64_t n = smaller(d->source_left[s], d->host_left[h]);
    d->source_left[s] -= n;
    d->host_left[h] -= n;
    if (s < source) d->taken_before[h] += n;
    if (s == source) d->taken[h] += n;
}

/* How close a host is to a source: 0 the same rank, 1 the same node, 2 elsewhere. */
static int distance(const lplb_dispatcher *d, int32_t s, int32_t rank) {
    int32_t own = d->source_rank[s];
    return own == rank ? 0 : d->node[own] == d->node[rank] ? 1 : 2;
}

/* With locality: first every source fills the host on its own rank, then those of its node, then
 * the rest; sources and hosts ascending each time. Filling greedily keeps the most tokens: on a
 * rank, and then inside a node, any source may use any host, so only the sums matter. Hosts are
 * walked upward, each pass remembering which sources it has emptied: time grows with sources plus
 * hosts. */
static void prepare_local_first(lplb_dispatcher *d, int32_t e, const int64_t *counts,
                                int32_t source, const int64_t *split) {
    int64_t hosts = d->offset[e + 1] - d->offset[e];
    const int32_t *rank = d->rank + d->offset[e];
    split += d->offset[e];
    for (int32_t s = 0; s < d->sources; s++)
        d->source_left[s] = counts[(int64_t)s * d->experts + e];
    for (int64_t h = 0; h < hosts; h++) {
        int32_t n = d->node[rank[h]];
        d->host_left[h] = split[h];
        d->taken[h] = d->taken_before[h] = 0;
        d->node_cursor[n] = d->node_begin[n];
        for (int32_t i = d->rank_begin[rank[h]]; i < d->rank_begin[rank[h] + 1]; i++)
            give(d, d->source_by_rank[i], source, h);
    }
    for (int64_t h = 0; h < hosts; h++) {
        int32_t n = d->node[rank[h]], *cursor = &d->node_cursor[n];
        for (; *cursor < d->node_begin[n + 1]; (*cursor)++) {
            int32_t s = d->source_by_node[*cursor];
            give(d, s, source, h);
            if (d->source_left[s] > 0) break; /* the host is full */
        }
    }
    int32_t s = 0;
    for (int64_t h = 0; h < hosts; h++)
        for (; s < d->sources; s++) {
            give(d, s, source, h);
            if (d->source_left[s] > 0) break;
        }
    for (int near = 0; near <= 2; near++)
        for (int64_t h = 0; h < hosts; h++)
            if (d->taken[h] > 0 && distance(d, source, rank[h]) == near)
                lplb__segments_add(d, d->offset[e] + h, split[h], d->taken_before[h], d->taken[h]);
}

lplb_status lplb_dispatch_prepare(lplb_dispatcher *d, const int64_t *source_counts,
                                  const int64_t *split, int32_t source, int32_t locality) {
    d->prepared = false;
    if (source < 0 || source >= d->sources)
        return LPLB_FAIL(LPLB_RANGE, "source %d is outside [0, %d)", source, d->sources);
    if (locality && !d->has_locality)
        return LPLB_FAIL(LPLB_STATE,
                         "locality needs the rank of each of the %d sources: give source_rank to "
                         "lplb_dispatcher_create",
                         d->sources);
    LPLB_TRY(sum_sources(d, source_counts, source));
    LPLB_TRY(check_split(d, split));
    for (int32_t e = 0; e < d->experts; e++) {
        lplb__segments_begin(d, e);
        bool choice = d->offset[e + 1] - d->offset[e] > 1;
        if (locality && choice && d->local[e] > 0)
            prepare_local_first(d, e, source_counts, source, split);
        else prepare_in_order(d, e, split);
        lplb__segments_end(d);
    }
    d->prepared = true;
    return LPLB_OK;
}
