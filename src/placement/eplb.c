/* EPLB, the published algorithm (github.com/deepseek-ai/EPLB): pack expert groups on nodes, copy
 * the experts with the most load per copy, pack the copies on ranks.
 *
 * Loads and sums are float32 as published, so results agree bit by bit; ties, which the published
 * sort and max leave open, go to the lower index. Non-negative floats order like their bit
 * patterns, so a (load, index) pair is one 64-bit integer and every comparison, ties included, is
 * one instruction:
 *   falling key = ~bits << 32 | index : ascending keys are falling loads, ties by rising index
 *   rising key  =  bits << 32 | index : ascending keys are rising loads, ties by rising index */
#include <float.h>
#include <stdbool.h>
#include <string.h>

#include "base/mem.h"
#include "placement/placement.h"

enum {
    INSERTION_MAX = 40, /* radix passes cost about 1,300 steps whatever the size */
    RADIX = 256,
    BUCKETS = 512,
    BUCKET_MAX = 32
};

static inline uint32_t bits_of(float load) {
    uint32_t bits;
    memcpy(&bits, &load, sizeof bits);
    return bits;
}

static inline float load_of(uint32_t bits) {
    float load;
    memcpy(&load, &bits, sizeof load);
    return load;
}

static inline uint64_t falling_key(float load, uint32_t index) {
    return (uint64_t)~bits_of(load) << 32 | index;
}

static inline float falling_load(uint64_t key) { return load_of(~(uint32_t)(key >> 32)); }

/* Scratch for one layer; n = most items of a packing, logical = most experts replicated. */
typedef struct eplb_scratch {
    uint64_t *keys, *spare;  /* [n] */
    uint64_t *copies;        /* [n + 1] copies of replicated experts, before merging */
    uint64_t *merged;        /* [n] */
    uint64_t *heap;          /* [logical + 1] */
    uint64_t *tree;          /* [2 * leaves], leaves < 2 * packs */
    int32_t *fill;           /* [packs] */
    int32_t *count;          /* [logical] copies of each expert of the node */
    int32_t *redundant;      /* [n] expert of each redundant copy */
    int32_t *replica;        /* [n] which copy of its expert it is */
    float *load;             /* [max(n, E)] gathered loads of a node, or of the groups */
    int32_t *group_node;     /* [groups] */
    int32_t *group_position; /* [groups] in its node */
    int32_t *member;         /* [E] logical id of each expert in node order */
    int32_t leaves;          /* of the tree: a power of two, at least the number of packs */
} eplb_scratch;

static void scratch_destroy(eplb_scratch *s) {
    lplb__free(s->keys);
    lplb__free(s->spare);
    lplb__free(s->copies);
    lplb__free(s->merged);
    lplb__free(s->heap);
    lplb__free(s->tree);
    lplb__free(s->fill);
    lplb__free(s->count);
    lplb__free(s->redundant);
    lplb__free(s->replica);
    lplb__free(s->load);
    lplb__free(s->group_node);
    lplb__free(s->group_position);
    lplb__free(s->member);
}

static lplb_status scratch_create(eplb_scratch *s, int32_t n, int32_t experts, int32_t packs,
                                  int32_t groups) {
    *s = (eplb_scratch){0};
    LPLB_TRY(LPLB_CALLOC(s->keys, n));
    LPLB_TRY(LPLB_CALLOC(s->spare, n));
    LPLB_TRY(LPLB_CALLOC(s->copies, (int64_t)n + 1));
    LPLB_TRY(LPLB_CALLOC(s->merged, n));
    LPLB_TRY(LPLB_CALLOC(s->heap, (int64_t)experts + 1));
    LPLB_TRY(LPLB_CALLOC(s->tree, 4 * (int64_t)packs));
    LPLB_TRY(LPLB_CALLOC(s->fill, packs));
    LPLB_TRY(LPLB_CALLOC(s->count, experts));
    LPLB_TRY(LPLB_CALLOC(s->redundant, n));
    LPLB_TRY(LPLB_CALLOC(s->replica, n));
    LPLB_TRY(LPLB_CALLOC(s->load, n > experts ? n : experts));
    LPLB_TRY(LPLB_CALLOC(s->group_node, groups));
    LPLB_TRY(LPLB_CALLOC(s->group_position, groups));
    return LPLB_CALLOC(s->member, experts);
}

/* ---- sorting ---- */

static void insertion_sort(uint64_t *keys, int32_t n) {
    for (int32_t i = 1; i < n; i++) {
        uint64_t key = keys[i];
        int32_t j = i;
        for (; j > 0 && keys[j - 1] > key; j--) keys[j] = keys[j - 1];
        keys[j] = key;
    }
}

/* Keys come with rising low halves, so a stable sort by the high half sorts whole keys. */
static void radix_sort(uint64_t *keys, uint64_t *spare, int32_t n) {
    uint32_t start[4][RADIX];
    memset(start, 0, sizeof start);
    for (int32_t i = 0; i < n; i++)
        for (int d = 0; d < 4; d++) start[d][keys[i] >> (32 + 8 * d) & 255]++;
    uint64_t *from = keys, *to = spare;
    for (int d = 0; d < 4; d++) {
        uint32_t *place = start[d], sum = 0;
        if (place[from[0] >> (32 + 8 * d) & 255] == (uint32_t)n) continue; /* all the same */
        for (int b = 0; b < RADIX; b++) {
            uint32_t c = place[b];
            place[b] = sum;
            sum += c;
        }
        for (int32_t i = 0; i < n; i++) to[place[from[i] >> (32 + 8 * d) & 255]++] = from[i];
        uint64_t *t = from;
        from = to;
        to = t;
    }
    if (from != keys) memcpy(keys, from, (size_t)n * sizeof *keys);
}

/* One pass over buckets of equal width, then insertion: floats spread evenly enough over their bit
 * patterns (about their logarithms). False if too many fall into one bucket; keys are then as they
 * were. */
static bool bucket_sort(uint64_t *keys, uint64_t *spare, int32_t n) {
    uint32_t low = UINT32_MAX, high = 0;
    for (int32_t i = 0; i < n; i++) {
        uint32_t k = (uint32_t)(keys[i] >> 32);
        low = k < low ? k : low;
        high = k > high ? k : high;
    }
    int shift = 0;
    while ((high - low) >> shift >= BUCKETS) shift++;
    int32_t place[BUCKETS] = {0}, sum = 0, fullest = 0;
    for (int32_t i = 0; i < n; i++) place[((uint32_t)(keys[i] >> 32) - low) >> shift]++;
    for (int b = 0; b < BUCKETS; b++) {
        int32_t c = place[b];
        place[b] = sum;
        sum += c;
        fullest = c > fullest ? c : fullest;
    }
    if (fullest > BUCKET_MAX) return false;
    for (int32_t i = 0; i < n; i++)
        spare[place[((uint32_t)(keys[i] >> 32) - low) >> shift]++] = keys[i];
    insertion_sort(spare, n);
    memcpy(keys, spare, (size_t)n * sizeof *keys);
    return true;
}

/* Keys must come with rising low halves. */
static void sort_keys(uint64_t *keys, uint64_t *spare, int32_t n) {
    if (n <= INSERTION_MAX) insertion_sort(keys, n);
    else if (!bucket_sort(keys, spare, n)) radix_sort(keys, spare, n);
}

static void sort_loads(eplb_scratch *s, int32_t n) {
    for (int32_t i = 0; i < n; i++) s->keys[i] = falling_key(s->load[i], (uint32_t)i);
    sort_keys(s->keys, s->spare, n);
}

/* ---- packing: longest processing time first with packs of equal size ---- */

/* A winner tree over the rising keys of the packs: tree[1] is the emptiest pack that has room. */
static void tree_start(eplb_scratch *s, int32_t packs) {
    s->leaves = 1;
    while (s->leaves < packs) s->leaves *= 2;
    for (int32_t i = 0; i < s->leaves; i++)
        s->tree[s->leaves + i] = i < packs ? (uint64_t)i : UINT64_MAX;
    for (int32_t i = s->leaves - 1; i > 0; i--) s->tree[i] = s->tree[2 * i]; /* index order */
    memset(s->fill, 0, (size_t)packs * sizeof *s->fill);
}

/* The emptiest pack takes an item of this load; returns pack * size + position in the pack. */
static inline int32_t tree_add(eplb_scratch *s, float load, int32_t size) {
    uint64_t *tree = s->tree, best = tree[1];
    int32_t pack = (int32_t)(uint32_t)best;
    int32_t position = s->fill[pack]++;
    float sum = load_of((uint32_t)(best >> 32)) + load;
    uint64_t key =
        position + 1 == size ? UINT64_MAX : (uint64_t)bits_of(sum) << 32 | (uint32_t)pack;
    for (int32_t node = s->leaves + pack; node > 1; node /= 2) {
        tree[node] = key;
        uint64_t sibling = tree[node ^ 1];
        key = key < sibling ? key : sibling;
    }
    tree[1] = key;
    return pack * size + position;
}

/* Packs s->load[items]. Packs of one item keep the item order, as published. */
static void pack_layer(eplb_scratch *s, int32_t items, int32_t packs, int32_t *pack_index,
                       int32_t *rank_in_pack) {
    int32_t size = items / packs;
    if (size == 1) {
        for (int32_t i = 0; i < items; i++) {
            pack_index[i] = i;
            rank_in_pack[i] = 0;
        }
        return;
    }
    sort_loads(s, items);
    tree_start(s, packs);
    for (int32_t i = 0; i < items; i++) {
        int32_t item = (int32_t)(uint32_t)s->keys[i];
        int32_t place = tree_add(s, falling_load(s->keys[i]), size);
        pack_index[item] = place / size;
        rank_in_pack[item] = place % size;
    }
}

/* ---- replication: each redundant slot to the expert with the most load per copy ---- */

/* A heap of falling keys, the smallest (most load, lowest index) at heap[1]. */
static void heap_push(uint64_t *heap, int32_t size, uint64_t key) {
    int32_t i = size;
    for (; i > 1 && heap[i / 2] > key; i /= 2) heap[i] = heap[i / 2];
    heap[i] = key;
}

static void heap_replace_top(uint64_t *heap, int32_t size, uint64_t key) {
    int32_t i = 1;
    for (;;) {
        int32_t child = 2 * i;
        if (child > size) break;
        if (child < size && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= key) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = key;
}

/* s->keys holds the sorted experts. They are first copied in that order, so only the next one of
 * it and the already copied ones (in the heap) compete. Fills count, redundant and replica; returns
 * how many experts have several copies: the first ones of s->keys. */
static int32_t replicate_layer(eplb_scratch *s, int32_t logical, int32_t physical) {
    int32_t copied = 0;
    for (int32_t e = 0; e < logical; e++) s->count[e] = 1;
    for (int32_t i = 0; i < physical - logical; i++) {
        bool fresh = copied < logical && (!copied || s->keys[copied] < s->heap[1]);
        uint32_t e = (uint32_t)(fresh ? s->keys[copied] : s->heap[1]);
        s->redundant[i] = (int32_t)e;
        s->replica[i] = s->count[e]++;
        uint64_t key = falling_key(s->load[e] / (float)s->count[e], e);
        if (fresh) heap_push(s->heap, ++copied, key);
        else heap_replace_top(s->heap, copied, key);
    }
    return copied;
}

/* s->merged = all copies by falling load per copy; the low half is the physical index: e for the
 * first copy of expert e, logical + i for redundant copy i. */
static void merge_copies(eplb_scratch *s, int32_t logical, int32_t physical, int32_t copied) {
    int32_t n_copies = 0;
    uint64_t *copies = s->copies;
    for (int32_t e = 0; e < logical; e++) {
        copies[n_copies] = falling_key(s->load[e] / (float)s->count[e], (uint32_t)e);
        n_copies += s->count[e] > 1;
    }
    for (int32_t i = 0; i < physical - logical; i++) {
        int32_t e = s->redundant[i];
        copies[n_copies++] = falling_key(s->load[e] / (float)s->count[e], (uint32_t)(logical + i));
    }
    sort_keys(copies, s->spare, n_copies);
    int32_t a = 0, b = copied, i = 0;
    for (; a < n_copies && b < logical; i++) {
        bool copy = copies[a] < s->keys[b];
        s->merged[i] = copy ? copies[a] : s->keys[b];
        a += copy;
        b += !copy;
    }
    memcpy(s->merged + i, copies + a, (size_t)(n_copies - a) * sizeof *copies);
    memcpy(s->merged + i + n_copies - a, s->keys + b, (size_t)(logical - b) * sizeof *copies);
}

/* ---- the three public functions ---- */

static lplb_status check_loads(const float *weight, int32_t layers, int32_t items) {
    for (int32_t layer = 0; layer < layers; layer++) {
        const float *row = weight + (int64_t)layer * items;
        for (int32_t i = 0; i < items; i++)
            if (!(row[i] >= 0 && row[i] <= FLT_MAX))
                return LPLB_FAIL(LPLB_RANGE,
                                 "layer %d, item %d: load %g must be finite and not negative",
                                 layer, i, (double)row[i]);
    }
    return LPLB_OK;
}

/* Adding zero turns -0 into +0, whose bits sort right. */
static void take_loads(eplb_scratch *s, const float *row, int32_t n) {
    for (int32_t i = 0; i < n; i++) s->load[i] = row[i] + 0.0f;
}

lplb_status lplb_eplb_balanced_packing(const float *weight, int32_t layers, int32_t items,
                                       int32_t packs, int32_t *pack_index, int32_t *rank_in_pack) {
    if (layers < 0 || items < 1 || packs < 1 || items % packs)
        return LPLB_FAIL(LPLB_INVALID, "%d items do not divide over %d packs", items, packs);
    LPLB_TRY(check_loads(weight, layers, items));
    eplb_scratch s;
    lplb_status status = scratch_create(&s, items, items, packs, 1);
    for (int32_t layer = 0; status == LPLB_OK && layer < layers; layer++) {
        int64_t row = (int64_t)layer * items;
        take_loads(&s, weight + row, items);
        pack_layer(&s, items, packs, pack_index + row, rank_in_pack + row);
    }
    scratch_destroy(&s);
    return status;
}

lplb_status lplb_eplb_replicate_experts(const float *weight, int32_t layers, int32_t n_logical,
                                        int32_t n_physical, int32_t *physical_to_logical,
                                        int32_t *replica_rank, int32_t *replica_count) {
    if (layers < 0 || n_logical < 1 || n_physical < n_logical)
        return LPLB_FAIL(LPLB_INVALID, "%d copies are too few for %d experts", n_physical,
                         n_logical);
    LPLB_TRY(check_loads(weight, layers, n_logical));
    eplb_scratch s;
    lplb_status status = scratch_create(&s, n_physical, n_logical, 1, 1);
    for (int32_t layer = 0; status == LPLB_OK && layer < layers; layer++) {
        int32_t *map = physical_to_logical + (int64_t)layer * n_physical;
        int32_t *replica = replica_rank + (int64_t)layer * n_physical;
        take_loads(&s, weight + (int64_t)layer * n_logical, n_logical);
        sort_loads(&s, n_logical);
        replicate_layer(&s, n_logical, n_physical);
        for (int32_t p = 0; p < n_physical; p++) {
            map[p] = p < n_logical ? p : s.redundant[p - n_logical];
            replica[p] = p < n_logical ? 0 : s.replica[p - n_logical];
        }
        memcpy(replica_count + (int64_t)layer * n_logical, s.count,
               (size_t)n_logical * sizeof *s.count);
    }
    scratch_destroy(&s);
    return status;
}

typedef struct eplb_shape {
    int32_t experts, slots, groups, nodes, ranks;
    int32_t copies_max; /* X */
} eplb_shape;

/* Step 1: groups to nodes. s->member lists the experts node by node, groups in packing order. */
static void assign_groups(eplb_scratch *s, const float *row, const eplb_shape *shape) {
    int32_t group_size = shape->experts / shape->groups;
    int32_t groups_per_node = shape->groups / shape->nodes;
    if (shape->groups == 1) {
        for (int32_t e = 0; e < shape->experts; e++) s->member[e] = e;
        return;
    }
    for (int32_t g = 0; g < shape->groups; g++) {
        float sum = 0;
        for (int32_t i = 0; i < group_size; i++) sum += row[g * group_size + i];
        s->load[g] = sum;
    }
    pack_layer(s, shape->groups, shape->nodes, s->group_node, s->group_position);
    for (int32_t g = 0; g < shape->groups; g++) {
        int32_t first = (s->group_node[g] * groups_per_node + s->group_position[g]) * group_size;
        for (int32_t i = 0; i < group_size; i++) s->member[first + i] = g * group_size + i;
    }
}

/* Steps 2 and 3 for one node: map [slots of the node], count [E], copy_slot [E][X] or NULL. */
static void fill_node(eplb_scratch *s, const float *row, const eplb_shape *shape, int32_t node,
                      int32_t *map, int32_t *count, int32_t *copy_slot) {
    int32_t logical = shape->experts / shape->nodes, physical = shape->slots / shape->nodes;
    int32_t packs = shape->ranks / shape->nodes, size = physical / packs;
    const int32_t *member = s->member + node * logical;
    for (int32_t i = 0; i < logical; i++) s->load[i] = row[member[i]] + 0.0f;
    sort_loads(s, logical);
    int32_t copied = replicate_layer(s, logical, physical);
    if (size > 1) merge_copies(s, logical, physical, copied);
    tree_start(s, packs);
    for (int32_t i = 0; i < physical; i++) {
        int32_t copy = size > 1 ? (int32_t)(uint32_t)s->merged[i] : i;
        int32_t slot = size > 1 ? tree_add(s, falling_load(s->merged[i]), size) : i;
        bool first = copy < logical;
        int32_t e = member[first ? copy : s->redundant[copy - logical]];
        map[slot] = e;
        if (!copy_slot) continue;
        copy_slot[(int64_t)e * shape->copies_max + (first ? 0 : s->replica[copy - logical])] =
            node * physical + slot;
    }
    if (count)
        for (int32_t i = 0; i < logical; i++) count[member[i]] = s->count[i];
}

static lplb_status check_shape(const eplb_shape *shape, int32_t layers) {
    if (layers < 0 || shape->experts < 1 || shape->ranks < 1 || shape->nodes < 1 ||
        shape->groups < 1)
        return LPLB_FAIL(LPLB_INVALID,
                         "EPLB needs experts, ranks, nodes and groups of at least 1, "
                         "not %d, %d, %d and %d",
                         shape->experts, shape->ranks, shape->nodes, shape->groups);
    if (shape->slots < shape->experts)
        return LPLB_FAIL(LPLB_INFEASIBLE, "%d slots are too few for %d experts: %d are missing",
                         shape->slots, shape->experts, shape->experts - shape->slots);
    if (shape->slots % shape->ranks)
        return LPLB_FAIL(
            LPLB_INVALID,
            "EPLB needs the same number of slots on every rank: %d slots do not divide "
            "by %d ranks (remainder %d); `search` takes unequal ranks",
            shape->slots, shape->ranks, shape->slots % shape->ranks);
    if (shape->experts % shape->groups)
        return LPLB_FAIL(LPLB_INVALID, "%d experts do not divide into %d groups", shape->experts,
                         shape->groups);
    if (shape->ranks % shape->nodes)
        return LPLB_FAIL(LPLB_INVALID, "%d ranks do not divide over %d nodes", shape->ranks,
                         shape->nodes);
    return LPLB_OK;
}

lplb_status lplb_eplb_rebalance_experts(const float *weight, int32_t layers, int32_t experts,
                                        int32_t slots, int32_t groups, int32_t nodes, int32_t ranks,
                                        int32_t *physical_to_logical, int32_t *logical_to_physical,
                                        int32_t *replica_count) {
    bool hierarchical = groups > 0 && nodes > 0 && groups % nodes == 0;
    eplb_shape shape = {.experts = experts,
                        .slots = slots,
                        .groups = hierarchical || groups < 1 ? groups : 1,
                        .nodes = hierarchical || nodes < 1 ? nodes : 1,
                        .ranks = ranks,
                        .copies_max = slots - experts + 1};
    LPLB_TRY(check_shape(&shape, layers));
    LPLB_TRY(check_loads(weight, layers, experts));
    eplb_scratch s;
    int32_t most = slots / shape.nodes > shape.groups ? slots / shape.nodes : shape.groups;
    int32_t packs = ranks / shape.nodes > shape.nodes ? ranks / shape.nodes : shape.nodes;
    lplb_status status = scratch_create(&s, most, experts, packs, shape.groups);
    int64_t copy_cells = (int64_t)experts * shape.copies_max;
    for (int32_t layer = 0; status == LPLB_OK && layer < layers; layer++) {
        const float *row = weight + (int64_t)layer * experts;
        int32_t *count = replica_count ? replica_count + (int64_t)layer * experts : NULL;
        int32_t *copy_slot = logical_to_physical ? logical_to_physical + layer * copy_cells : NULL;
        if (copy_slot) memset(copy_slot, 0xff, (size_t)copy_cells * sizeof *copy_slot); /* -1 */
        assign_groups(&s, row, &shape);
        for (int32_t node = 0; node < shape.nodes; node++)
            fill_node(&s, row, &shape, node,
                      physical_to_logical + (int64_t)layer * slots +
                          (int64_t)node * (slots / shape.nodes),
                      count, copy_slot);
    }
    scratch_destroy(&s);
    return status;
}
