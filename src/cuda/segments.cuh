/* From the tokens of the hosts to the ways of the ids: an expert's slots, hosts ascending and slots
 * ascending, take consecutive intervals of its tokens (include/lplb/dispatch.h). */
#ifndef LPLB_CUDA_SEGMENTS_CUH
#define LPLB_CUDA_SEGMENTS_CUH

#include "cuda/block.cuh"
#include "cuda/local.cuh"

/* ---- other origins of the hosts' tokens than a plan ---- */

/* The caller's split, if it is one of the counts. All threads; x is in 64 bits. */
DEVICE_CALL void take_split(const step &a) {
    const lplb__cuda_expert *expert = table(a, expert, lplb__cuda_expert);
    int64_t *x = shared_array(a, x, int64_t);
    bool bad = false;
    ROLLED
    for (int32_t e = thread_index(); e < a.experts; e += block_threads()) {
        int64_t left = shared_array(a, tokens, int64_t)[e];
        int32_t first = expert[e].first_host, end = first + expert[e].hosts;
        ROLLED
        for (int32_t h = first; h < end && left >= 0; h++) {
            int64_t share = a.split_in[h];
            left = share < 0 || share > left ? -1 : left - share;
            x[h] = share;
        }
        if (left == 0) continue;
        report_error(a, LPLB_INVALID, e);
        bad = true;
    }
    if (block_any(bad) && thread_index() == 0) state_of(a)->failed = 1;
    block_barrier();
}

#ifdef LPLB_CUDA_EMULATED
#define multiplied(x, y) ((x) * (y))
#define added(x, y)      ((x) + (y))
#define divided(x, y)    ((x) / (y))
#else /* never fused: the CPU rounds after every operation */
#define multiplied(x, y) __dmul_rn((x), (y))
#define added(x, y)      __dadd_rn((x), (y))
#define divided(x, y)    __ddiv_rn((x), (y))
#endif

DEVICE double clipped(float share) { return share > 1 ? 1 : share > 0 ? share : 0; }

DEVICE_CALL double fair(float share, double sum, int32_t hosts, double count) {
    double part = sum > 0 ? divided(clipped(share), sum) : divided(1.0, (double)hosts);
    return multiplied(part, count);
}

/* One expert's own tokens by shares, rounded by systematic sampling as in src/dispatch/ratio.c. */
DEVICE void split_by_shares(const step &a, int32_t e, int64_t *x) {
    const lplb__cuda_expert at = table(a, expert, lplb__cuda_expert)[e];
    const float *share = a.share_in + at.first_host;
    int64_t count = shared_array(a, tokens, int64_t)[e], left = count, last = -1;
    double sum = 0, wheel = added(multiplied(0.7548776662466927, (double)a.source),
                                  multiplied(0.5698402909980532, (double)e));
    wheel = added(wheel, -floor(wheel));
    x += at.first_host;
    ROLLED
    for (int32_t h = 0; h < at.hosts; h++) {
        if (share[h] != share[h]) report_error(a, LPLB_INVALID, e);
        sum = added(sum, clipped(share[h]));
    }
    ROLLED
    for (int32_t h = 0; h < at.hosts; h++) {
        x[h] = (int64_t)fair(share[h], sum, at.hosts, (double)count);
        left -= x[h];
    }
    ROLLED
    for (int32_t h = 0; h < at.hosts && left > 0; h++) {
        double fraction = added(fair(share[h], sum, at.hosts, (double)count), -(double)x[h]);
        wheel = added(wheel, fraction);
        if (wheel >= 1) {
            wheel = added(wheel, -1.0);
            x[h]++;
            left--;
        } else if (fraction > 0) {
            last = h;
        }
    }
    if (left > 0 && last >= 0) x[last] += left;
}

/* All threads: x and tokens of this source alone. */
DEVICE_CALL void take_shares(const step &a) {
    ROLLED
    for (int32_t e = first_expert(a); e < a.experts; e += block_threads()) {
        shared_array(a, tokens, int64_t)[e] = shared_array(a, mine, int32_t)[e];
        shared_array(a, before, int64_t)[e] = 0;
        split_by_shares(a, e, shared_array(a, x, int64_t));
    }
    if (thread_index() == 0) state_of(a)->narrow = 0;
    block_barrier();
}

/* ---- ways ---- */

DEVICE int32_t local_end(int64_t end, int64_t before) {
    return (int32_t)smaller(larger(end - before, (int64_t)0), (int64_t)INT32_MAX);
}

DEVICE void make_way(const step &a, const block_state *state, int32_t e) {
    const lplb__cuda_expert at = table(a, expert, lplb__cuda_expert)[e];
    expert_way way = {INT32_MAX, (uint32_t)at.slot[0] | (uint32_t)at.slot[1] << 16};
    if (at.segments > 2) {
        way = expert_way{(int32_t)((uint32_t)at.first_segment << 16 | at.segments), MANY_SLOTS};
    } else {
        if (at.segments == 2) {
            int64_t tokens = at.hosts == 2 ? host_tokens(a, state, at.first_host)
                                           : end_of_part(shared_array(a, tokens, int64_t)[e], 0, 2);
            way.end = local_end(tokens, shared_array(a, before, int64_t)[e]);
        }
        way.end -= (int32_t)shared_array(a, base, uint32_t)[e];
    }
    shared_array(a, way, expert_way)[e] = way;
}

DEVICE void make_segment(const step &a, const block_state *state, int32_t k) {
    const lplb__cuda_segment at = table(a, segment, lplb__cuda_segment)[k];
    const lplb__cuda_expert expert = table(a, expert, lplb__cuda_expert)[at.expert];
    if (expert.segments <= 2) return;
    int64_t end = 0, tokens = shared_array(a, tokens, int64_t)[at.expert];
    ROLLED
    for (int32_t h = expert.first_host; h < at.host; h++) end += host_tokens(a, state, h);
    if (expert.hosts > 1) tokens = host_tokens(a, state, at.host);
    end += end_of_part(tokens, at.nth, table(a, host, lplb__cuda_host)[at.host].slots);
    shared_array(a, end, int32_t)[k] = local_end(end, shared_array(a, before, int64_t)[at.expert]);
    if (a.local.nodes) shared_array(a, slot, uint16_t)[k] = at.slot;
}

DEVICE_CALL void make_segments(const step &a, int32_t from, int32_t threads) {
    const block_state *state = state_of(a);
    ROLLED
    for (int32_t e = from; e < a.experts; e += threads)
        if (is_local(a, state, e)) make_local_way(a, e);
    ROLLED
    for (int32_t k = from; k < header_of(a)->segments; k += threads)
        if (!is_local(a, state, table(a, segment, lplb__cuda_segment)[k].expert))
            make_segment(a, state, k);
}

/* By threads from.. in steps of `threads`; a barrier must follow. */
DEVICE void make_ways(const step &a, int32_t from, int32_t threads) {
    const block_state *state = state_of(a);
    ROLLED
    for (int32_t e = from; e < a.experts; e += threads) make_way(a, state, e);
    if (from == 0) shared_array(a, way, expert_way)[a.experts] = expert_way{INT32_MAX, UINT32_MAX};
    if (header_of(a)->segmented || a.local.nodes) make_segments(a, from, threads);
}

#endif
