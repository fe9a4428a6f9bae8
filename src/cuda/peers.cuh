/* Counts of the other ranks: each rank pushes its own into the memory of all ranks of its node and
 * waits until theirs are there (docs/multi-gpu.md). Every word carries its step's number, so
 * nothing needs a flag or a fence.
 *
 * Two turns of words, used in turn, are enough: a rank writes words of step t + 2 only after it has
 * seen all ranks' words of step t + 1, and a rank writes those only after its step t, in which all
 * of its blocks have read the words of step t, has ended. */
#ifndef LPLB_CUDA_PEERS_CUH
#define LPLB_CUDA_PEERS_CUH

#include "cuda/block.cuh"

DEVICE bool shares_with_peers(const step &a) { return a.peers.words != NULL; }

/* The number of this step, which starts at 1; 0 once sharing has ended. */
DEVICE uint64_t next_turn(const step &a) {
    uint64_t done = load_word(&a.peers.turns[0]), ended = load_word(&a.peers.turns[1]);
    return ended ? 0 : done + 1;
}

/* Whether somebody else brings the rows (gather.c): before the launch, or soon after. */
DEVICE bool is_gathered(const step &a) { return a.peers.ranks == 0; }

DEVICE int64_t words_of_turn(const step &a, uint64_t turn) {
    return (int64_t)(turn & 1) * a.peers.turn_words;
}
DEVICE int64_t stopped_words(const step &a) { return 2 * a.peers.turn_words; }

DEVICE uint64_t peer_word(uint64_t turn, uint32_t value) {
    return (uint64_t)(uint32_t)turn << 32 | value;
}

DEVICE uint64_t tag_word(const step &a, uint64_t turn) {
    return peer_word(turn, (uint32_t)state_of(a)->tag);
}
/* The row that the rank of our place on another node counted in this turn; if it did not, the words
 * say so to whoever gets them. */
DEVICE const uint64_t *rail_of(const step &a, int32_t node) {
    return a.peers.rail + (int64_t)node * a.peers.row_words;
}

/* For the watch: a row is on its way, or was used. Rows are also brought after sharing has ended,
 * and somebody may be missed then too. */
DEVICE void beat_begin(const step &a, uint64_t turn) {
    if (a.peers.beat)
        store_peer_word(&a.peers.beat[0], turn ? turn : load_peer_word(&a.peers.beat[0]) + 1);
}
DEVICE void beat_end(const step &a, uint64_t turn) {
    if (a.peers.beat)
        store_peer_word(&a.peers.beat[1], turn ? turn : load_peer_word(&a.peers.beat[0]));
}

/* By the first block of a launch that only counts. */
DEVICE void write_row(const step &a) {
    uint64_t turn = state_of(a)->turn, *row = a.peers.row + words_of_turn(a, turn);
    if (thread_index() == 0) beat_begin(a, turn);
    if (turn == 0) return;
    ROLLED
    for (int32_t e = first_expert(a); e < a.experts; e += block_threads())
        row[LPLB__CUDA_ROW_HEAD + e] = peer_word(turn, (uint32_t)shared_array(a, mine, int32_t)[e]);
    if (thread_index() == 0) row[0] = tag_word(a, turn);
}

/* To ranks from, from + step, ... of the node: an expert's count in every row that is ours to
 * bring. */
DEVICE void push_count(const step &a, int32_t e, uint32_t own, int32_t from, int32_t step) {
    uint64_t turn = state_of(a)->turn;
    if (turn == 0 || is_gathered(a)) return;
    ROLLED
    for (int32_t n = 0; n < a.peers.nodes; n++) {
        int32_t source = n * a.peers.ranks + a.peers.local;
        int64_t row = words_of_turn(a, turn) + (int64_t)source * a.peers.row_words;
        uint64_t word = peer_word(turn, own);
        if (n != a.peers.node) word = rail_of(a, n)[LPLB__CUDA_ROW_HEAD + e];
        ROLLED
        for (int32_t p = from; p < a.peers.ranks; p += step)
            store_peer_word(a.peers.target[p] + row + LPLB__CUDA_ROW_HEAD + e, word);
    }
}

/* All of mine, by the only block. */
DEVICE_CALL void push_counts(const step &a) {
    ROLLED
    for (int32_t e = first_expert(a); e < a.experts; e += block_threads())
        push_count(a, e, (uint32_t)shared_array(a, mine, int32_t)[e], 0, 1);
}

/* To all ranks of the node, by the first block: what every row that is ours to bring begins with.
 */
DEVICE void push_tag(const step &a) {
    uint64_t turn = state_of(a)->turn;
    if (block_index() != 0 || turn == 0 || thread_index() >= a.peers.ranks) return;
    ROLLED
    for (int32_t n = 0; n < a.peers.nodes; n++) {
        int32_t source = n * a.peers.ranks + a.peers.local;
        int64_t row = words_of_turn(a, turn) + (int64_t)source * a.peers.row_words;
        store_peer_word(a.peers.target[thread_index()] + row,
                        n != a.peers.node ? rail_of(a, n)[0] : tag_word(a, turn));
    }
}

/* Ends sharing, here and for whoever waits for us. */
DEVICE_CALL void stop_sharing(const step &a, lplb_status status, int64_t detail) {
    report_error(a, status, detail);
    state_of(a)->failed = 1;
    atomic_max(&a.peers.turns[1], error_word(status, detail));
    ROLLED
    for (int32_t p = 0; p < a.peers.ranks; p++)
        store_peer_word(a.peers.target[p] + stopped_words(a) + a.peers.local, 1);
}

/* A thread's patience with words that are not there yet. */
typedef struct patience {
    uint64_t since; /* 0: it has not waited long */
    int32_t looks;
    bool over; /* the next look is the last: the word may have come just before */
} patience;

/* Before another look at the words; false: `source`, of which one is missing, will not send it. */
DEVICE_CALL bool look_again(const step &a, int32_t source, patience *p) {
    enum { LOOKS = 16 }; /* at the words for one at what else may have happened */
    spin_pause();
    if (!p->over && ++p->looks % LOOKS) return true;
    if (p->since == 0) p->since = clock_ns();
    uint64_t gone = 0;
    if (!is_gathered(a))
        gone = load_peer_word(a.peers.words + stopped_words(a) + source % a.peers.ranks);
    bool late = clock_ns() - p->since > a.peers.timeout_ns;
    if (!gone && !late) return true;
    if (!p->over) return p->over = true;
    stop_sharing(a, gone ? LPLB_REMOTE : LPLB_TIMEOUT, gone ? source : source + 1);
    return false;
}

DEVICE bool is_of_turn(uint64_t word, uint64_t turn) {
    return (uint32_t)(word >> 32) == (uint32_t)turn;
}

/* Sums up the sources' words of an expert: tokens and before. All words that are missing are asked
 * for at a time: each look takes as long as memory does. */
DEVICE void take_words(const step &a, uint64_t turn, int32_t e) {
    enum { AT_ONCE = 8 };
    int64_t total = 0, earlier = 0;
    uint64_t word[AT_ONCE];
    patience waited = {0, 0, false};
    int32_t stride = a.peers.row_words;
    const uint64_t *row = a.peers.words + words_of_turn(a, turn) + LPLB__CUDA_ROW_HEAD + e;
    uint64_t own = peer_word(turn, (uint32_t)shared_array(a, mine, int32_t)[e]);
    uint64_t missing_yet = peer_word(turn + 1, 0);
    ROLLED
    for (int32_t first = 0; first < a.sources; first += AT_ONCE) {
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) word[k] = first + k == a.source ? own : missing_yet;
        ROLLED
        for (;;) {
            int32_t missing = -1;
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++)
                if (first + k < a.sources && !is_of_turn(word[k], turn))
                    word[k] = load_peer_word(row + (first + k) * stride);
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++)
                if (first + k < a.sources && !is_of_turn(word[k], turn)) missing = first + k;
            if (missing < 0 || !look_again(a, missing, &waited)) break;
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            if (first + k >= a.sources) break;
            if (first + k < a.source) earlier += (uint32_t)word[k];
            total += (uint32_t)word[k];
        }
    }
    shared_array(a, tokens, int64_t)[e] = total;
    shared_array(a, before, int64_t)[e] = earlier;
}

/* Whether a source plans for the same thing. */
DEVICE void check_tag(const step &a, uint64_t turn, int32_t source) {
    const uint64_t *word = a.peers.words + words_of_turn(a, turn) + source * a.peers.row_words;
    patience waited = {0, 0, false};
    uint64_t value = load_peer_word(word);
    ROLLED
    while (!is_of_turn(value, turn)) {
        if (!look_again(a, source, &waited)) return;
        value = load_peer_word(word);
    }
    if ((uint32_t)value == (uint32_t)state_of(a)->tag) return;
    report_error(a, LPLB_DISAGREE, source);
    state_of(a)->failed = 1;
}

/* tokens and before of this thread's experts from all sources. False if this thread found that they
 * are not to be had; then the block's state says so too. */
DEVICE_CALL bool take_peers(const step &a) {
    block_state *state = state_of(a);
    uint64_t turn = state->turn;
    if (turn == 0) {
        if (thread_index() == 0) {
            atomic_max(&a.memory->report.error, load_word(&a.peers.turns[1]));
            state->failed = 1;
        }
        return false;
    }
    /* tags fall to the threads with the fewest experts */
    ROLLED
    for (int32_t s = block_threads() - 1 - first_expert(a); s < a.sources; s += block_threads())
        check_tag(a, turn, s);
    ROLLED
    for (int32_t e = first_expert(a); e < a.experts; e += block_threads()) take_words(a, turn, e);
    return !state->failed;
}

/* By one thread of the first block, once no block can still ask for the number of this step. */
DEVICE void end_turn(const step &a) {
    uint64_t turn = state_of(a)->turn;
    if (!a.peers.ends) return;
    if (turn) store_word(&a.peers.turns[0], turn);
    beat_end(a, turn);
}

#endif
