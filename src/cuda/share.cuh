/* From the counts of the blocks to the counts of the step: what each block needs are all counts, to
 * plan, and those of the blocks before it, to number its ids.
 *
 * The first are waited for, so each block adds its own to a sum in device memory that also counts
 * who has added: one way to memory and back. The second have time until the plan is there: every
 * expert has a block that is sent all blocks' counts and sends back sums. Words carry their own
 * flags, the number of blocks or the step's epoch beside the count, so that nothing needs a fence
 * or a barrier of the grid. */
#ifndef LPLB_CUDA_SHARE_CUH
#define LPLB_CUDA_SHARE_CUH

#include "cuda/ids.cuh"
#include "cuda/peers.cuh"

DEVICE uint64_t word_of(uint32_t epoch, uint32_t value) { return (uint64_t)epoch << 32 | value; }
DEVICE bool is_of_epoch(uint64_t word, uint32_t epoch) { return (uint32_t)(word >> 32) == epoch; }

/* What device memory says when a step begins. */
typedef struct memory_now {
    uint64_t epoch, turn;
    int32_t tag;
} memory_now;

DEVICE memory_now read_memory(const step &a) {
    memory_now now = {0, 0, 0};
    if (a.blocks > 1) now.epoch = load_word(&a.memory->epoch) + 1;
    if (!a.peers.turns) return now;
    now.turn = next_turn(a);
    now.tag = ((const lplb__cuda_header *)a.block)->tag;
    return now;
}

/* By the first `threads` threads. */
DEVICE void begin_state(const step &a, const memory_now &now, int32_t threads) {
    clear_quads(a.shared.state, sizeof(block_state), thread_index(), threads);
    warp_barrier(); /* the state's first quads were cleared by this warp */
    if (thread_index() != 0) return;
    block_state *state = state_of(a);
    state->narrow = 1;
    state->bound_denominator = 1;
    state->turn = now.turn;
    state->tag = now.tag;
    state->epoch = (uint32_t)now.epoch;
    if (a.reuse) state->cached = a.memory->cached;
    if (a.reuse) state->current = a.memory->current;
}

/* The warps that look after ids: the first tile is counted and numbered. */
DEVICE void begin_ids(const step &a, const id_range &range) {
    int64_t raw[FETCHED];
    fetch_ids(a, range, range.begin, 0, raw);
    clear_numbers(a, range);
    clear_seen(a, range);
    number_tile(a, range, range.begin, raw);
}

/* Words of an expert's counts, by block, for the block that adds them up. */
DEVICE uint64_t *counts_of_blocks(const step &a, int32_t e) {
    return a.words + (int64_t)e * a.blocks;
}
/* What a block gets of an expert: its count in the blocks before. */
DEVICE uint64_t *sum_of_block(const step &a, int32_t block, int32_t e) {
    return a.words + (int64_t)a.experts * a.blocks + (int64_t)block * a.experts + e;
}
/* Blocks << 32 | their ids of an expert. Every other step has the same words; in between they are
 * cleared. A sector of 32 bytes has a line of its own, for all blocks add to them at once. */
DEVICE uint64_t *total_word(const step &a, uint32_t epoch, int32_t e) {
    int32_t half = LPLB__CUDA_TOTAL_WORDS(a.experts) / 2;
    return a.totals + (epoch & 1 ? half : 0) + (e >> 2) * 16 + (e & 3);
}

/* The part of the experts that is this block's: part of them from begin on. */
DEVICE int32_t part_of_blocks(const step &a) { return (a.experts + a.blocks - 1) / a.blocks; }
DEVICE bool is_of_block(const step &a, int32_t e) {
    int32_t part = part_of_blocks(a), begin = part * block_index();
    return e >= begin && e < begin + part;
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
#pragma unroll
    for (int k = 0; k < MOST; k++) {
        if (k >= n) break;
        store_word(sum_of_block(a, s.first + k, e), word_of(epoch, before));
        before += (uint32_t)value[k];
    }
}

/* A word of this epoch, or 0 after the timeout. */
DEVICE uint32_t await_word(const step &a, uint32_t epoch, const uint64_t *word) {
    uint64_t value = load_word(word), since = 0;
    uint32_t looks = 0;
    ROLLED
    while (!is_of_epoch(value, epoch)) {
        if (!look_once_more(a, &looks, &since)) return 0;
        value = load_word(word);
    }
    return (uint32_t)value;
}

/* base [E] of the blocks before this one. By the warps that look after ids, while the others plan;
 * each thread may then read those from its own number on. */
DEVICE void number_blocks(const step &a, const id_range &range) {
    uint32_t epoch = state_of(a)->epoch;
    int32_t part = part_of_blocks(a), begin = part * block_index();
    int32_t end = smaller(begin + part, a.experts), warps = range.threads / 32;
    block_sums s = sums_of_lane(a);
    int32_t groups = 32 / s.lanes, group = lane_index() / s.lanes;
    ROLLED
    for (int32_t e = begin + range.warp * groups; e < end; e += warps * groups)
        add_up_blocks(a, epoch, s, e + group < end ? e + group : -1);
    ROLLED
    for (int32_t e = range.warp * 32 + lane_index(); e < a.experts; e += range.threads)
        shared_array(a, base, uint32_t)[e] =
            await_word(a, epoch, sum_of_block(a, block_index(), e));
}

/* mine of an expert, once all blocks have added to it; 0 after the timeout. */
DEVICE void take_total(const step &a, uint32_t epoch, int32_t e) {
    uint32_t total =
        await_word(a, (uint32_t)a.blocks, total_word(a, epoch, e)); /* as if it were its epoch */
    shared_array(a, mine, int32_t)[e] = (int32_t)total;
    if (!is_of_block(a, e)) return;
    store_word(total_word(a, epoch + 1, e), 0);
    if (shares_with_peers(a)) push_count(a, e, total, 0, 1);
}

/* The block's count of an expert, to where it is added up. */
DEVICE void hand_over(const step &a, uint32_t epoch, int32_t e, uint32_t count) {
    if (e >= a.experts) return;
    if (a.blocks > 1) {
        atomic_add(total_word(a, epoch, e), word_of(1, count));
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
        if (count < 0 || count > INT32_MAX) report_error(a, LPLB_RANGE, count_of(e));
        mine[e] = (int32_t)larger((int64_t)0, smaller(count, (int64_t)INT32_MAX));
    }
}

/* mine [E] of the step; afterwards each thread may read those from first_expert on in steps of the
 * block's threads. */
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
        ROLLED
        for (int32_t e = first_expert(a); e < a.experts; e += block_threads())
            take_total(a, epoch, e);
        advance_epoch(a, epoch);
    }
}

#endif
