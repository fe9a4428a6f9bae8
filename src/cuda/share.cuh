/* From the counts of the blocks to the counts of the step: what each block needs are all counts,
 * to plan, and those of the blocks before it, to number its ids.
 *
 * Blocks of a cluster write into each other's shared memory. Several clusters exchange words in
 * device memory that carry the step's epoch beside the count, so that no flag is needed; each block
 * of a cluster reads a part of them for its neighbours. */
#ifndef LPLB_CUDA_SHARE_CUH
#define LPLB_CUDA_SHARE_CUH

#include "cuda/block.cuh"

enum { ROWS_AT_ONCE = 8 };

/* To every block of the cluster: row `me` of its rows. */
DEVICE void send_to_cluster(const step &a, const uint32_t *count, int32_t row, int32_t begin,
                            int32_t end) {
    uint32_t *target = shared_array(a, rows, uint32_t) + row * a.experts;
    int32_t warps = block_threads() / 32;
    ROLLED
    for (int32_t peer = warp_index(); peer < cluster_blocks(); peer += warps) {
#pragma unroll 8
        for (int32_t e = begin + lane_index(); e < end; e += 32)
            cluster_store(&target[e], peer, count[e - begin]);
    }
}

/* Polls one word; after the timeout the count is taken as 0 and the step's error is set. */
DEVICE uint32_t await_word(const step &a, const uint64_t *word, uint32_t epoch) {
    uint64_t value = load_word(word);
    if ((uint32_t)(value >> 32) == epoch) return (uint32_t)value;
    uint64_t start = clock_ns();
    for (;;) {
        spin_pause();
        value = load_word(word);
        if ((uint32_t)(value >> 32) == epoch) return (uint32_t)value;
        if (clock_ns() - start > a.timeout_ns) {
            report_error(a, LPLB_TIMEOUT, 0);
            return 0;
        }
    }
}

/* Clusters' totals of our part of the experts: total[e - begin] in count, and before in before. */
DEVICE void gather_part(const step &a, int32_t cluster, int32_t begin, int32_t end, uint32_t epoch,
                        uint32_t *count, uint32_t *before) {
    int32_t part = end - begin;
    ROLLED
    for (int32_t e = thread_index(); e < part; e += block_threads())
        store_word(&a.words[(int64_t)cluster * a.experts + begin + e],
                   (uint64_t)epoch << 32 | count[e]);
    block_barrier();
    ROLLED
    for (int32_t e = thread_index(); e < part; e += block_threads()) count[e] = before[e] = 0;
    block_barrier();
    ROLLED
    for (int32_t i = thread_index(); i < part * a.clusters; i += block_threads()) {
        int32_t k = i / part, e = i % part;
        uint32_t value = await_word(a, &a.words[(int64_t)k * a.experts + begin + e], epoch);
        atomic_add(&count[e], value);
        if (k < cluster) atomic_add(&before[e], value);
    }
    block_barrier();
}

/* own [E] of all blocks -> mine [E] of the step, base [E] of the blocks before this one; thread t
 * writes what of them belongs to experts t, t + threads, ... The cluster's arrival that says that
 * all its blocks run was made before. epoch: of this step. */
DEVICE void share_counts(const step &a, uint32_t epoch) {
    int32_t E = a.experts, blocks = cluster_blocks(), me = cluster_rank();
    const uint32_t *own = shared_array(a, own, uint32_t);
    uint32_t *rows = shared_array(a, rows, uint32_t), *base = shared_array(a, base, uint32_t);
    int32_t *mine = shared_array(a, mine, int32_t);
    cluster_wait();
    send_to_cluster(a, own, me, 0, E);
    cluster_arrive();
    cluster_wait();
    ROLLED
    for (int32_t e = thread_index(); e < E; e += block_threads()) {
        uint32_t total = 0, before = 0;
        ROLLED
        for (int32_t first = 0; first < blocks; first += ROWS_AT_ONCE) {
            uint32_t count[ROWS_AT_ONCE];
#pragma unroll
            for (int32_t k = 0; k < ROWS_AT_ONCE; k++)
                count[k] = first + k < blocks ? rows[(first + k) * E + e] : 0;
#pragma unroll
            for (int32_t k = 0; k < ROWS_AT_ONCE; k++) {
                if (first + k < me) before += count[k];
                total += count[k];
            }
        }
        mine[e] = (int32_t)total;
        base[e] = before;
    }
    if (a.clusters == 1) return;
    /* rows 0 and 1 now take the totals of all clusters and of those before */
    int32_t part = (E + blocks - 1) / blocks, begin = smaller(part * me, E);
    int32_t end = smaller(begin + part, E), cluster = block_index() / blocks;
    uint32_t *count = shared_array(a, seen, uint32_t), *earlier = count + part; /* still unused */
    block_barrier();
    ROLLED
    for (int32_t e = begin + thread_index(); e < end; e += block_threads())
        count[e - begin] = (uint32_t)mine[e];
    block_barrier();
    gather_part(a, cluster, begin, end, epoch, count, earlier);
    cluster_arrive();
    cluster_wait(); /* nobody reads its rows any more */
    send_to_cluster(a, count, 0, begin, end);
    send_to_cluster(a, earlier, 1, begin, end);
    cluster_arrive();
    cluster_wait();
    ROLLED
    for (int32_t e = thread_index(); e < E; e += block_threads()) {
        mine[e] = (int32_t)rows[e];
        base[e] += rows[E + e];
    }
    clear_shared(a.shared.seen, 2 * part * (int32_t)sizeof(uint32_t));
}

/* Counts that were given in place of ids; thread t those of experts t, t + threads, ... */
DEVICE void take_own_counts(const step &a) {
    int32_t *mine = shared_array(a, mine, int32_t);
    ROLLED
    for (int32_t e = thread_index(); e < a.experts; e += block_threads()) {
        int64_t count = a.own_counts[e];
        if (count < 0 || count > INT32_MAX) report_error(a, LPLB_RANGE, e);
        mine[e] = (int32_t)larger((int64_t)0, smaller(count, (int64_t)INT32_MAX));
    }
}

#endif
