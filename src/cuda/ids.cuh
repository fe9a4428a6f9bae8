/* Ids: counting them, numbering each expert's ids in their order, turning them into slots.
 *
 * A block owns consecutive ids and works through them in tiles; in a tile each warp owns
 * consecutive ids and takes 32 at a time. If one tile is enough, the ids stay in shared memory from
 * counting to mapping. Only the warps from solver_warps on look after ids, so that they can number
 * them while the others plan. */
#ifndef LPLB_CUDA_IDS_CUH
#define LPLB_CUDA_IDS_CUH

#include "cuda/block.cuh"

enum { KEPT = LPLB__CUDA_KEPT_IDS, NO_EXPERT = 65535, IDS_BARRIER = 2 };

/* The part of the ids that a block owns, and this thread's place in it. */
typedef struct id_range {
    int64_t begin, end; /* of the block */
    int64_t tile;       /* ids of a tile */
    int32_t rounds;     /* of 32 ids a warp in a tile */
    int32_t warp;       /* among those that look after ids; < 0: none of them */
    int32_t threads;    /* that look after ids */
} id_range;

DEVICE int64_t ids_of_step(const step &a) {
    if (!a.n_device) return a.n;
    int64_t tokens = *a.n_device;
    return tokens <= 0 ? 0 : tokens < a.n / a.topk ? tokens * a.topk : a.n;
}

DEVICE id_range range_of_block(const step &a, int64_t n, int32_t blocks) {
    id_range range;
    int32_t warps = block_threads() / 32 - a.solver_warps;
    int64_t stripe = warps * 32;
    int64_t share = ((n + blocks - 1) / blocks + 31) / 32 * 32;
    int64_t begin = share * block_index();
    range.begin = smaller(begin, n);
    range.end = smaller(begin + share, n);
    int64_t rounds = (share + stripe - 1) / stripe;
    range.rounds = (int32_t)smaller(rounds, (int64_t)KEPT);
    range.tile = range.rounds * stripe;
    range.warp = warp_index() - a.solver_warps;
    range.threads = warps * 32;
    return range;
}

DEVICE int64_t first_id(const id_range &range, int64_t tile_begin) {
    return tile_begin + (int64_t)range.warp * range.rounds * 32 + lane_index();
}

/* This thread's ids of the present tile, `range.threads` apart: the expert in the lower half, in the
 * upper one its number among the warp's. */
DEVICE uint32_t *kept_ids(const step &a, const id_range &range) {
    return shared_array(a, kept, uint32_t) + range.warp * 32 + lane_index();
}

/* Reports the first id of the round that is none. */
DEVICE_CALL void report_id(const step &a, int64_t position) {
    report_error(a, LPLB_RANGE, position);
}

/* Reads a tile and, if count, counts it. All loads are under way before the first is needed. */
template <typename T>
DEVICE void read_ids(const step &a, const id_range &range, int64_t tile_begin, bool count) {
    const T *ids = (const T *)a.ids;
    uint32_t *own = shared_array(a, own, uint32_t), *kept = kept_ids(a, range);
    int64_t at = first_id(range, tile_begin);
    T id[KEPT];
#pragma unroll
    for (int r = 0; r < KEPT; r++) {
        bool ours = r < range.rounds && at + r * 32 < range.end;
        id[r] = ours ? ids[at + r * 32] : (T)-1;
    }
#pragma unroll
    for (int r = 0; r < KEPT; r++) {
        if (r >= range.rounds) break;
        bool is_expert = (uint64_t)(int64_t)id[r] < (uint64_t)a.experts;
        kept[r * range.threads] = is_expert ? (uint32_t)id[r] : NO_EXPERT;
        if (!count) continue;
        if (is_expert) atomic_add(&own[(uint32_t)id[r]], 1u);
        else if (id[r] != -1) report_id(a, at + r * 32);
    }
}

DEVICE void read_tile(const step &a, const id_range &range, int64_t tile_begin, bool count) {
    if (a.ids_bytes == 8) read_ids<int64_t>(a, range, tile_begin, count);
    else read_ids<int32_t>(a, range, tile_begin, count);
}

/* Counts all ids of the block; the first tile comes last and is kept. */
DEVICE void count_block(const step &a, const id_range &range) {
    if (range.warp < 0) return;
    int64_t later = range.tile ? (range.end - range.begin - 1) / range.tile : 0;
    ROLLED
    for (; later >= 0; later--) read_tile(a, range, range.begin + later * range.tile, true);
}

DEVICE int32_t number_stride(const step &a) { return (a.experts + 2) & ~1; }

DEVICE void clear_numbers(const step &a, const id_range &range) {
    uint32_t *number = shared_array(a, number, uint32_t);
    int32_t words = range.threads / 32 * number_stride(a) / 2;
    ROLLED
    for (int32_t i = thread_index() - a.solver_warps * 32; i < words; i += range.threads)
        if (i >= 0) number[i] = 0;
}

/* Numbers each kept id among the warp's ids of its expert: lanes with the same expert find each
 * other by a word of lane bits per expert. */
DEVICE void number_warp(const step &a, const id_range &range) {
    uint16_t *number = shared_array(a, number, uint16_t) + range.warp * number_stride(a);
    uint32_t *seen = shared_array(a, seen, uint32_t) + range.warp * (a.experts + 1);
    uint32_t *kept = kept_ids(a, range);
    ROLLED
    for (int r = 0; r < range.rounds; r++) {
        uint32_t id = kept[r * range.threads];
        uint32_t expert = id == NO_EXPERT ? (uint32_t)a.experts : id;
        atomic_or(&seen[expert], 1u << lane_index());
        warp_barrier();
        uint32_t lanes = seen[expert], so_far = number[expert];
        warp_barrier();
        uint32_t below = lanes & lanes_below();
        if (!below) {
            number[expert] = (uint16_t)(so_far + (uint32_t)bits_set(lanes));
            seen[expert] = 0;
        }
        warp_barrier();
        kept[r * range.threads] = id | (so_far + (uint32_t)bits_set(below)) << 16;
    }
}

/* number[warp][e]: from ids of the warp to ids of the warps before it; own[e]: of all warps. Two
 * experts at a time, in the halves of a word: a tile has fewer than 2^16 ids. */
DEVICE void add_up_warps(const step &a, const id_range &range) {
    uint32_t *number = shared_array(a, number, uint32_t), *own = shared_array(a, own, uint32_t);
    int32_t words = number_stride(a) / 2, warps = range.threads / 32;
    ROLLED
    for (int32_t i = thread_index() - a.solver_warps * 32; i < words; i += range.threads) {
        uint32_t before = 0;
        ROLLED
        for (int32_t w = 0; w < warps; w++) {
            uint32_t ids = number[w * words + i];
            number[w * words + i] = before;
            before += ids;
        }
        if (2 * i < a.experts) own[2 * i] = before & 65535;
        if (2 * i + 1 < a.experts) own[2 * i + 1] = before >> 16;
    }
}

/* Numbers the ids of a tile in the block; all warps that look after ids, none other. */
DEVICE void number_tile(const step &a, const id_range &range) {
    number_warp(a, range);
    part_barrier(IDS_BARRIER, range.threads);
    add_up_warps(a, range);
    part_barrier(IDS_BARRIER, range.threads);
}

/* The slot of the `number`-th token of an expert with more than two segments: the first one that
 * ends behind it. */
DEVICE_CALL int32_t find_slot(const step &a, uint32_t segments, int32_t number) {
    const int32_t *end = shared_array(a, end, int32_t);
    int32_t low = (int32_t)(segments >> 16), high = low + (int32_t)(segments & 65535), last = high;
    ROLLED
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (end[middle] > number) high = middle;
        else low = middle + 1;
    }
    if (low == last) return -1; /* only after an error */
    if (a.stages & LPLB__CUDA_STAGE_SEGMENTS) return shared_array(a, slot, uint16_t)[low];
    return table(a, segment, lplb__cuda_segment)[low].slot;
}

DEVICE int32_t slot_of(const step &a, uint32_t expert, int32_t number) {
    const expert_way way = shared_array(a, way, expert_way)[expert];
    if (way.segments) return find_slot(a, way.segments, number);
    return (int32_t)(number < way.end ? way.slots & 65535 : way.slots >> 16);
}

/* Maps a numbered tile. */
DEVICE void map_tile(const step &a, const id_range &range, int64_t tile_begin) {
    const uint16_t *number = shared_array(a, number, uint16_t) + range.warp * number_stride(a);
    const uint32_t *base = shared_array(a, base, uint32_t), *kept = kept_ids(a, range);
    int64_t at = first_id(range, tile_begin);
#pragma unroll 5
    for (int r = 0; r < range.rounds; r++) {
        if (at + r * 32 >= range.end) break;
        uint32_t id = kept[r * range.threads], expert = id & 65535;
        int32_t slot = -1;
        if (expert != NO_EXPERT)
            slot = slot_of(a, expert, (int32_t)(base[expert] + number[expert] + (id >> 16)));
        if (a.out_bytes == 8) ((int64_t *)a.out)[at + r * 32] = slot;
        else ((int32_t *)a.out)[at + r * 32] = slot;
    }
}

/* All tiles. The first is kept and numbered, the others are read once more. */
DEVICE void map_block(const step &a, const id_range &range) {
    if (range.warp < 0) return;
    uint32_t *own = shared_array(a, own, uint32_t), *base = shared_array(a, base, uint32_t);
    map_tile(a, range, range.begin);
    ROLLED
    for (int64_t tile = range.begin + range.tile; tile < range.end; tile += range.tile) {
        part_barrier(IDS_BARRIER, range.threads);
        ROLLED
        for (int32_t e = thread_index() - a.solver_warps * 32; e < a.experts; e += range.threads)
            base[e] += own[e];
        clear_numbers(a, range);
        part_barrier(IDS_BARRIER, range.threads);
        read_tile(a, range, tile, false);
        number_tile(a, range);
        map_tile(a, range, tile);
    }
}

#endif
