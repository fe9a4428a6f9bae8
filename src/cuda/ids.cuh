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
    int32_t begin, end; /* of the block */
    int32_t tile;       /* ids of a tile */
    int32_t rounds;     /* of 32 ids a warp in a tile */
    int32_t warp;       /* among those that look after ids; < 0: none of them */
    int32_t threads;    /* that look after ids */
} id_range;

DEVICE int32_t ids_of_step(const step &a) {
    int64_t tokens = *a.n_device;
    return (int32_t)(tokens <= 0 ? 0 : tokens < a.n / a.topk ? tokens * a.topk : a.n);
}

DEVICE id_range range_of_block(const step &a, int32_t blocks) {
    id_range range;
    int32_t n = (int32_t)a.n, share = a.block_share;
    range.warp = warp_index() - a.solver_warps;
    range.threads = block_threads() - a.solver_warps * 32;
    range.rounds = a.rounds;
    if (a.n_device) {
        n = ids_of_step(a);
        share = ((n + blocks - 1) / blocks + 31) / 32 * 32;
        range.rounds = smaller((share + range.threads - 1) / range.threads, (int32_t)KEPT);
    }
    range.begin = smaller(share * block_index(), n);
    range.end = smaller(range.begin + share, n);
    range.tile = range.rounds * range.threads;
    return range;
}

DEVICE int32_t first_id(const id_range &range, int32_t tile_begin) {
    return tile_begin + range.warp * range.rounds * 32 + lane_index();
}

/* This thread's ids of the present tile, `range.threads` apart: the expert in the lower half, in
 * the upper one its number among the warp's. */
DEVICE uint32_t *kept_ids(const step &a, const id_range &range) {
    return shared_array(a, kept, uint32_t) + range.warp * 32 + lane_index();
}

/* Reports the first id of the round that is none. */
DEVICE_CALL void report_id(const step &a, int64_t position) {
    report_error(a, LPLB_RANGE, position);
}

/* Sends for a tile: all loads are under way before the first is needed. */
DEVICE void fetch_tile(const step &a, const id_range &range, int32_t tile_begin, uint64_t *raw) {
    int32_t at = first_id(range, tile_begin);
#pragma unroll
    for (int r = 0; r < KEPT; r++) {
        bool ours = r < range.rounds && at + r * 32 < range.end;
        raw[r] = UINT64_MAX;
        if (ours && a.ids_bytes == 8) raw[r] = ((const uint64_t *)a.ids)[at + r * 32];
        if (ours && a.ids_bytes == 4) raw[r] = ((const uint32_t *)a.ids)[at + r * 32];
    }
}

/* Keeps what was fetched and, if count, counts it. */
DEVICE void keep_tile(const step &a, const id_range &range, int32_t tile_begin, const uint64_t *raw,
                      bool count) {
    uint32_t *own = shared_array(a, own, uint32_t), *kept = kept_ids(a, range);
    uint64_t none = a.ids_bytes == 8 ? UINT64_MAX : UINT32_MAX;
#pragma unroll
    for (int r = 0; r < KEPT; r++) {
        if (r >= range.rounds) break;
        bool is_expert = raw[r] < (uint64_t)a.experts;
        kept[r * range.threads] = is_expert ? (uint32_t)raw[r] : (uint32_t)NO_EXPERT;
        if (!count) continue;
        if (is_expert) atomic_add(&own[(uint32_t)raw[r]], 1u);
        else if (raw[r] != none && raw[r] != UINT64_MAX)
            report_id(a, first_id(range, tile_begin) + r * 32);
    }
}

/* Counts all ids of the block; the first tile, already fetched, is kept. */
DEVICE void count_block(const step &a, const id_range &range, const uint64_t *fetched) {
    if (range.warp < 0) return;
    uint64_t raw[KEPT];
    int32_t later = range.tile ? (range.end - range.begin - 1) / range.tile : 0;
    ROLLED
    for (; later > 0; later--) {
        fetch_tile(a, range, range.begin + later * range.tile, raw);
        keep_tile(a, range, range.begin + later * range.tile, raw, true);
    }
    keep_tile(a, range, range.begin, fetched, true);
}

DEVICE int32_t number_stride(const step &a) { return (a.experts + 2) & ~1; }

/* By the warps that look after ids. */
DEVICE void clear_numbers(const step &a, const id_range &range) {
    uint32_t *number = shared_array(a, number, uint32_t);
    int32_t words = range.threads / 32 * number_stride(a) / 2;
    ROLLED
    for (int32_t i = range.warp * 32 + lane_index(); i < words; i += range.threads) number[i] = 0;
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
    for (int32_t i = range.warp * 32 + lane_index(); i < words; i += range.threads) {
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

/* The segment of the `number`-th token of an expert with more than two: the first that ends behind
 * it. */
DEVICE_CALL int32_t find_slot(const int32_t *end, uint32_t segments, int32_t number) {
    int32_t low = (int32_t)(segments >> 16), high = low + (int32_t)(segments & 65535), last = high;
    ROLLED
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (end[middle] > number) high = middle;
        else low = middle + 1;
    }
    return low == last ? -1 : low; /* -1: only after an error */
}

DEVICE int32_t slot_of(const step &a, uint32_t expert, int32_t number) {
    const expert_way way = shared_array(a, way, expert_way)[expert];
    if (way.segments) {
        int32_t k = find_slot(shared_array(a, end, int32_t), way.segments, number);
        if (k < 0) return k;
        if (a.local.nodes) return shared_array(a, slot, uint16_t)[k];
        return table(a, segment, lplb__cuda_segment)[k].slot;
    }
    return (int32_t)(number < way.end ? way.slots & 65535 : way.slots >> 16);
}

/* Maps a numbered tile. */
DEVICE void map_tile(const step &a, const id_range &range, int32_t tile_begin) {
    const uint16_t *number = shared_array(a, number, uint16_t) + range.warp * number_stride(a);
    const uint32_t *base = shared_array(a, base, uint32_t), *kept = kept_ids(a, range);
    int32_t at = first_id(range, tile_begin);
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
    uint64_t raw[KEPT];
    map_tile(a, range, range.begin);
    ROLLED
    for (int32_t tile = range.begin + range.tile; tile < range.end; tile += range.tile) {
        part_barrier(IDS_BARRIER, range.threads);
        ROLLED
        for (int32_t e = range.warp * 32 + lane_index(); e < a.experts; e += range.threads)
            base[e] += own[e];
        clear_numbers(a, range);
        part_barrier(IDS_BARRIER, range.threads);
        fetch_tile(a, range, tile, raw);
        keep_tile(a, range, tile, raw, false);
        number_tile(a, range);
        map_tile(a, range, tile);
    }
}

#endif
