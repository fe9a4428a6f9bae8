/* Ids: numbering each expert's ids in their order, which also counts them, and turning them into
 * slots.
 *
 * A block owns consecutive ids and works through them in tiles; in a tile each warp owns
 * consecutive ids and takes 32 at a time. The ids of the first tile stay in shared memory from
 * numbering to mapping. Only the warps from solver_warps on look after ids; the others plan. */
#ifndef LPLB_CUDA_IDS_CUH
#define LPLB_CUDA_IDS_CUH

#include "cuda/block.cuh"

/* FETCHED: rounds of which a thread has the ids under way at a time. */
enum { KEPT = LPLB__CUDA_KEPT_IDS, FETCHED = 4, IDS_BARRIER = 2 };

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
    return (int32_t)(tokens <= 0 ? 0 : tokens <= a.n / a.topk ? tokens * a.topk : a.n);
}

DEVICE id_range range_of_block(const step &a) {
    id_range range;
    int32_t n = (int32_t)a.n, share = a.block_share;
    range.warp = warp_index() - a.solver_warps;
    range.threads = block_threads() - a.solver_warps * 32;
    range.rounds = a.rounds;
    if (a.n_device) {
        n = ids_of_step(a);
        share = ((n + a.blocks - 1) / a.blocks + 31) / 32 * 32;
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
 * the upper one its number among the warp's. What is no expert's has expert E. */
DEVICE uint32_t *kept_ids(const step &a, const id_range &range) {
    return shared_array(a, kept, uint32_t) + range.warp * 32 + lane_index();
}

/* Rounds that this thread has ids for, from `round` on. */
DEVICE int32_t rounds_left(const id_range &range, int32_t tile_begin, int32_t round) {
    int32_t ids = range.end - first_id(range, tile_begin);
    return smaller(range.rounds, (ids + 31) >> 5) - round;
}

/* Sends for FETCHED rounds from `round` on; -1 where there is no id. */
DEVICE void fetch_ids(const step &a, const id_range &range, int32_t tile_begin, int32_t round,
                      int64_t *raw) {
    int32_t at = first_id(range, tile_begin) + round * 32;
    int32_t rounds = rounds_left(range, tile_begin, round);
#pragma unroll
    for (int r = 0; r < FETCHED; r++) raw[r] = -1;
    if (a.ids_bytes == 8) {
#pragma unroll
        for (int r = 0; r < FETCHED; r++)
            if (r < rounds) raw[r] = ((const int64_t *)a.ids)[at + r * 32];
    } else {
#pragma unroll
        for (int r = 0; r < FETCHED; r++)
            if (r < rounds) raw[r] = ((const int32_t *)a.ids)[at + r * 32];
    }
}

/* What is no id of an expert becomes expert E; *bad if it is not -1 either. */
DEVICE uint32_t expert_of(const step &a, int64_t raw, bool *bad) {
    *bad |= (uint64_t)raw + 1 > (uint64_t)a.experts;
    return (uint64_t)raw < (uint64_t)a.experts ? (uint32_t)raw : (uint32_t)a.experts;
}

/* Reports an id that is none. */
DEVICE_CALL void report_id(const step &a, int64_t position) {
    report_error(a, LPLB_RANGE, position);
}

/* Reports this thread's ids of a tile that are none. */
DEVICE_CALL void report_ids(const step &a, id_range range, int32_t tile_begin) {
    ROLLED
    for (int32_t r = 0; r < range.rounds; r += FETCHED) {
        int64_t raw[FETCHED];
        fetch_ids(a, range, tile_begin, r, raw);
#pragma unroll
        for (int k = 0; k < FETCHED; k++) {
            bool bad = false;
            expert_of(a, raw[k], &bad);
            if (bad) report_id(a, first_id(range, tile_begin) + (r + k) * 32);
        }
    }
}

/* ---- numbers ---- */

DEVICE uint32_t *seen_lanes(const step &a, const id_range &range) {
    return shared_array(a, seen, uint32_t) + range.warp * LPLB__CUDA_SEEN_STRIDE(a.experts);
}
DEVICE uint16_t *numbers(const step &a, const id_range &range) {
    return shared_array(a, number, uint16_t) + range.warp * LPLB__CUDA_NUMBER_STRIDE(a.experts);
}

/* The warp's own counters. */
DEVICE void clear_numbers(const step &a, const id_range &range) {
    int32_t stride = LPLB__CUDA_NUMBER_STRIDE(a.experts) * (int32_t)sizeof(uint16_t);
    clear_quads(a.shared.number + range.warp * stride, stride, lane_index(), 32);
}
DEVICE void clear_seen(const step &a, const id_range &range) {
    int32_t stride = LPLB__CUDA_SEEN_STRIDE(a.experts) * (int32_t)sizeof(uint32_t);
    clear_quads(a.shared.seen + range.warp * stride, stride, lane_index(), 32);
}

/* The number of an id among those of its expert in its warp, in the ids' order. Lanes with the same
 * expert find each other by a word of lane bits per expert. */
DEVICE uint32_t number_in_warp(uint32_t *seen, uint16_t *number, uint32_t expert) {
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
    return so_far + (uint32_t)bits_set(below);
}

/* Keeps and numbers the warp's ids of a tile, whose first rounds were sent for. */
DEVICE void number_tile(const step &a, const id_range &range, int32_t tile_begin, int64_t *raw) {
    uint32_t *seen = seen_lanes(a, range), *kept = kept_ids(a, range);
    uint16_t *number = numbers(a, range);
    bool bad = false;
    warp_barrier(); /* the counters were cleared */
    ROLLED
    for (int32_t r = 0; r < range.rounds; r += FETCHED) {
        int64_t next[FETCHED];
        fetch_ids(a, range, tile_begin, r + FETCHED, next);
#pragma unroll
        for (int k = 0; k < FETCHED; k++) {
            if (r + k >= range.rounds) break;
            uint32_t expert = expert_of(a, raw[k], &bad);
            kept[(r + k) * range.threads] = expert | number_in_warp(seen, number, expert) << 16;
        }
#pragma unroll
        for (int k = 0; k < FETCHED; k++) raw[k] = next[k];
    }
    if (bad) report_ids(a, range, tile_begin);
}

/* number[warp][pair]: from ids of the warp to ids of the warps before it; returned: of all. Two
 * experts at a time, in the halves of a word: a tile has fewer than 2^16 ids. */
DEVICE uint32_t add_up_warps(const step &a, const id_range &range, int32_t pair) {
    enum { AT_ONCE = 8 };
    uint32_t *number = shared_array(a, number, uint32_t) + pair, before = 0;
    int32_t words = LPLB__CUDA_NUMBER_STRIDE(a.experts) / 2, warps = range.threads / 32;
    ROLLED
    for (int32_t first = 0; first < warps; first += AT_ONCE) {
        uint32_t ids[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            ids[k] = first + k < warps ? number[(first + k) * words] : 0;
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            if (first + k < warps) number[(first + k) * words] = before;
            before += ids[k];
        }
    }
    return before;
}

/* ---- slots ---- */

/* The slot of an expert's nth id in the block's tile, if it has more than two segments: that of the
 * first that ends behind the id. */
DEVICE_CALL int32_t find_slot(const step &a, expert_way way, int32_t expert, int32_t nth) {
    const int32_t *end = shared_array(a, end, int32_t);
    int32_t number = (int32_t)shared_array(a, base, uint32_t)[expert] + nth;
    int32_t low = (int32_t)((uint32_t)way.end >> 16), high = low + (way.end & 65535), last = high;
    ROLLED
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (end[middle] > number) high = middle;
        else low = middle + 1;
    }
    if (low == last) return -1; /* only after an error */
    if (a.local.nodes) return shared_array(a, slot, uint16_t)[low];
    return table(a, segment, lplb__cuda_segment)[low].slot;
}

/* Maps a numbered tile. */
DEVICE void map_tile(const step &a, const id_range &range, int32_t tile_begin) {
    const uint16_t *number = numbers(a, range);
    const expert_way *ways = shared_array(a, way, expert_way);
    const uint32_t *kept = kept_ids(a, range);
    int32_t at = first_id(range, tile_begin), rounds = rounds_left(range, tile_begin, 0);
#pragma unroll 4
    for (int r = 0; r < rounds; r++) {
        uint32_t id = kept[r * range.threads], expert = id & 65535;
        int32_t nth = (int32_t)(number[expert] + (id >> 16));
        const expert_way way = ways[expert];
        int32_t slot = (int16_t)(nth < way.end ? way.slots & 65535 : way.slots >> 16);
        if (way.slots == MANY_SLOTS) slot = find_slot(a, way, (int32_t)expert, nth);
        if (a.out_bytes == 8) ((int64_t *)a.out)[at + r * 32] = slot;
        else ((int32_t *)a.out)[at + r * 32] = slot;
    }
}

/* ---- when a block has more than one tile ---- */

DEVICE bool has_later_tiles(const id_range &range) { return range.begin + range.tile < range.end; }

/* own[e]: ids of the tiles behind the first. */
DEVICE void count_later_tiles(const step &a, const id_range &range) {
    uint32_t *own = shared_array(a, own, uint32_t);
    ROLLED
    for (int32_t tile = range.begin + range.tile; tile < range.end; tile += range.tile) {
        bool bad = false;
        ROLLED
        for (int32_t r = 0; r < range.rounds; r += FETCHED) {
            int64_t raw[FETCHED];
            fetch_ids(a, range, tile, r, raw);
#pragma unroll
            for (int k = 0; k < FETCHED; k++) {
                uint32_t expert = expert_of(a, raw[k], &bad);
                if (expert < (uint32_t)a.experts) atomic_add(&own[expert], 1u);
            }
        }
        if (bad) report_ids(a, range, tile);
    }
}

/* The tiles behind the first: read and numbered once more. own: ids of the tile before. */
DEVICE_CALL void map_later_tiles(const step &a, id_range range) {
    uint32_t *own = shared_array(a, own, uint32_t), *base = shared_array(a, base, uint32_t);
    expert_way *way = shared_array(a, way, expert_way);
    int64_t raw[FETCHED];
    ROLLED
    for (int32_t tile = range.begin + range.tile; tile < range.end; tile += range.tile) {
        fetch_ids(a, range, tile, 0, raw);
        part_barrier(IDS_BARRIER, range.threads); /* the tile before is mapped */
        ROLLED
        for (int32_t e = range.warp * 32 + lane_index(); e < a.experts; e += range.threads) {
            base[e] += own[e];
            if (way[e].slots != MANY_SLOTS) way[e].end -= (int32_t)own[e];
        }
        clear_numbers(a, range);
        number_tile(a, range, tile, raw);
        part_barrier(IDS_BARRIER, range.threads);
        ROLLED
        for (int32_t i = range.warp * 32 + lane_index(); 2 * i < a.experts; i += range.threads) {
            uint32_t ids = add_up_warps(a, range, i);
            own[2 * i] = ids & 65535;
            if (2 * i + 1 < a.experts) own[2 * i + 1] = ids >> 16;
        }
        part_barrier(IDS_BARRIER, range.threads);
        map_tile(a, range, tile);
    }
}

/* All tiles. */
DEVICE void map_block(const step &a, const id_range &range) {
    map_tile(a, range, range.begin);
    if (has_later_tiles(range)) map_later_tiles(a, range);
}

#endif
