/* From the counts of the blocks to the counts of the step: what each block needs are all counts, to
 * plan, and those of the blocks before it, to number its ids.
 *
 * Every expert has a block that adds up: the others send it their counts, it sends each of them the
 * expert's count in all blocks and in those before. Both ways go through device memory by words
 * that carry the step's epoch beside the number, so that nothing needs a flag, a fence or a barrier
 * of the grid, and each block reads and writes only as much as there are experts. */
#ifndef LPLB_CUDA_SHARE_CUH
#define LPLB_CUDA_SHARE_CUH

#include "cuda/ids.cuh"
#include "cuda/peers.cuh"

DEVICE uint64_t word_of(uint32_t epoch, uint32_t value) { return (uint64_t)epoch << 32 | value; }
DEVICE bool is_of_epoch(uint64_t word, uint32_t epoch) { return (uint32_t)(word >> 32) == epoch; }

/* Words of an expert's counts, by block, for the block that adds them up. */
DEVICE uint64_t *counts_of_blocks(const step &a, int32_t e) {
    return a.words + (int64_t)e * a.blocks;
}
/* What a block gets of an expert: its count in all blocks, and in those before this one. */
DEVICE word_pair *sums_of_block(const step &a, int32_t block, int32_t e) {
    return a.sums + (int64_t)block * a.experts + e;
}

/* Before another look at words that are not there yet; false, after the timeout: they are taken as
 * 0 and the step's error is set. */
DEVICE bool look_once_more(const step &a, uint32_t *looks, uint64_t *since) {
    enum { LOOKS = 256 }; /* for one at the clock */
    spin_pause();
    if (++*looks % LOOKS) return true;
    if (*since == 0) *since = clock_ns();
    if (clock_ns() - *since <= a.timeout_ns) return true;
    report_error(a, LPLB_TIMEOUT, 0);
    return false;
}

/* How a warp adds up: a group of lanes has an expert, a lane of it consecutive blocks. */
typedef struct block_sums {
    int32_t lanes; /* of a group */
    int32_t first; /* block of this lane, */
    int32_t n;     /* and their number */
} block_sums;

DEVICE block_sums sums_of_lane(const step &a) {
    block_sums s = {1, 0, 0};
    while (s.lanes < smaller(a.blocks, 32)) s.lanes *= 2;
    int32_t each = (a.blocks + 31) / 32;
    s.first = (lane_index() & (s.lanes - 1)) * each;
    s.n = smaller(each, a.blocks - s.first);
    return s;
}

/* By one warp: from all blocks' counts of an expert, in each group of lanes, to what each of them
 * needs. e < 0: this lane's group has none. */
DEVICE void add_up_blocks(const step &a, uint32_t epoch, const block_sums &s, int32_t e) {
    enum { MOST = (LPLB__CUDA_MAX_BLOCKS + 31) / 32 };
    int32_t n = e < 0 ? 0 : s.n, lane = lane_index() & (s.lanes - 1);
    const uint64_t *word = counts_of_blocks(a, e) + s.first;
    uint64_t value[MOST], since = 0;
    uint32_t looks = 0, before = 0, total;
#pragma unroll
    for (int k = 0; k < MOST; k++) value[k] = word_of(k < n ? ~epoch : epoch, 0);
    ROLLED
    for (;;) {
        bool missing = false;
#pragma unroll
        for (int k = 0; k < MOST; k++)
            if (!is_of_epoch(value[k], epoch)) value[k] = load_word(&word[k]);
#pragma unroll
        for (int k = 0; k < MOST; k++) missing |= !is_of_epoch(value[k], epoch);
        if (!missing || !look_once_more(a, &looks, &since)) break;
    }
#pragma unroll
    for (int k = 0; k < MOST; k++) {
        if (!is_of_epoch(value[k], epoch)) value[k] = 0;
        before += (uint32_t)value[k];
    }
    total = before;
    warp_barrier();
    ROLLED
    for (int d = 1; d < s.lanes; d *= 2) {
        uint32_t others = shuffle_up(total, d);
        if (lane >= d) total += others;
    }
    before = total - before;
    total = shuffle(total, lane_index() | (s.lanes - 1));
#pragma unroll
    for (int k = 0; k < MOST; k++) {
        if (k >= n) break;
        store_words(sums_of_block(a, s.first + k, e),
                    word_pair{word_of(epoch, total), word_of(epoch, before)});
        before += (uint32_t)value[k];
    }
    if (shares_with_peers(a) && e >= 0) push_count(a, e, total, lane, s.lanes);
}

/* This block's part of the experts. Warp by warp: those that plan have nothing else to do yet. */
DEVICE void add_up_part(const step &a, uint32_t epoch) {
    int32_t part = (a.experts + a.blocks - 1) / a.blocks, begin = part * block_index();
    int32_t end = smaller(begin + part, a.experts), warps = block_threads() / 32;
    block_sums s = sums_of_lane(a);
    int32_t groups = 32 / s.lanes, group = lane_index() / s.lanes;
    ROLLED
    for (int32_t e = begin + warp_index() * groups; e < end; e += warps * groups)
        add_up_blocks(a, epoch, s, e + group < end ? e + group : -1);
}

/* mine and base of an expert, which another block has added up. */
DEVICE void take_sums(const step &a, uint32_t epoch, int32_t e) {
    const word_pair *words = sums_of_block(a, block_index(), e);
    word_pair sums;
    uint64_t since = 0;
    uint32_t looks = 0;
    ROLLED
    for (;;) {
        sums = load_words(words);
        if (is_of_epoch(sums.first, epoch) && is_of_epoch(sums.second, epoch)) break;
        if (look_once_more(a, &looks, &since)) continue;
        sums = word_pair{0, 0};
        break;
    }
    shared_array(a, mine, int32_t)[e] = (int32_t)(uint32_t)sums.first;
    shared_array(a, base, uint32_t)[e] = (uint32_t)sums.second;
}

/* The block's count of an expert, to where it is added up. */
DEVICE void hand_over(const step &a, uint32_t epoch, int32_t e, uint32_t count) {
    if (e >= a.experts) return;
    if (a.blocks > 1) {
        store_word(counts_of_blocks(a, e) + block_index(), word_of(epoch, count));
        return;
    }
    shared_array(a, mine, int32_t)[e] = (int32_t)count;
    shared_array(a, base, uint32_t)[e] = 0;
}

/* From the warps' counts of the first tile to the block's; later: with those of the other tiles in
 * own, where the first tile's are left. */
template <bool later>
DEVICE void hand_over_counts(const step &a, const id_range &range, uint32_t epoch) {
    uint32_t *own = shared_array(a, own, uint32_t);
    ROLLED
    for (int32_t i = range.warp * 32 + lane_index(); 2 * i < a.experts; i += range.threads) {
        uint32_t ids = add_up_warps(a, range, i), low = ids & 65535, high = ids >> 16;
        hand_over(a, epoch, 2 * i, low + (later ? own[2 * i] : 0));
        hand_over(a, epoch, 2 * i + 1, high + (later ? own[2 * i + 1] : 0));
        if (!later) continue;
        own[2 * i] = low;
        own[2 * i + 1] = high;
    }
}

DEVICE_CALL void hand_over_tiles(const step &a, id_range range, uint32_t epoch) {
    count_later_tiles(a, range);
    part_barrier(IDS_BARRIER, range.threads);
    hand_over_counts<true>(a, range, epoch);
}

/* What the next step needs, as soon as this block has the counts of all: then every block has read
 * the old. */
DEVICE void advance_epoch(const step &a, uint32_t epoch) {
    if (block_index() == 0 && first_expert(a) == 0) a.memory->epoch = epoch;
}

/* Counts that were given in place of ids, which are one block's. */
DEVICE_CALL void take_own_counts(const step &a) {
    int32_t *mine = shared_array(a, mine, int32_t);
    ROLLED
    for (int32_t e = first_expert(a); e < a.experts; e += block_threads()) {
        int64_t count = a.own_counts[e];
        if (count < 0 || count > INT32_MAX) report_error(a, LPLB_RANGE, e);
        mine[e] = (int32_t)larger((int64_t)0, smaller(count, (int64_t)INT32_MAX));
    }
}

/* mine [E] of the step, base [E] of the blocks before this one; afterwards each thread may read
 * those from first_expert on in steps of the block's threads. */
DEVICE void share_counts(const step &a, const id_range &range) {
    uint32_t epoch = state_of(a)->epoch;
    if (shares_with_peers(a)) push_tag(a);
    if (range.warp >= 0 && has_later_tiles(range)) hand_over_tiles(a, range, epoch);
    else if (range.warp >= 0) hand_over_counts<false>(a, range, epoch);
    stamp(a, 3);
    if (a.blocks == 1) {
        block_barrier();
        if (a.own_counts) take_own_counts(a);
        if (shares_with_peers(a)) push_counts(a);
    } else {
        add_up_part(a, epoch);
        ROLLED
        for (int32_t e = first_expert(a); e < a.experts; e += block_threads())
            take_sums(a, epoch, e);
        advance_epoch(a, epoch);
    }
}

#endif
