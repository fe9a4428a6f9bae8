/* The placement itself: its storage, its invariants and what is derived from it. */
#include <limits.h>
#include <string.h>

#include "base/mem.h"
#include "placement/placement.h"

static lplb_status check_shape(int32_t layers, int32_t experts, int32_t slots, int32_t ranks,
                               const int32_t *slots_per_rank) {
    if (layers < 1) return LPLB_FAIL(LPLB_INVALID, "layers must be at least 1, not %d", layers);
    if (experts < 1) return LPLB_FAIL(LPLB_INVALID, "experts must be at least 1, not %d", experts);
    if (slots < 1) return LPLB_FAIL(LPLB_INVALID, "slots must be at least 1, not %d", slots);
    if (ranks < 1 || ranks > LPLB_MAX_RANKS)
        return LPLB_FAIL(LPLB_INVALID, "ranks must be from 1 to %d, not %d", LPLB_MAX_RANKS, ranks);
    if (!slots_per_rank) {
        int32_t fewer = slots - slots % ranks;
        if (slots % ranks && fewer < experts)
            return LPLB_FAIL(LPLB_INVALID,
                             "%d slots do not divide by %d ranks (remainder %d); %d would, or give "
                             "the slots of every rank",
                             slots, ranks, slots % ranks,
                             ((slots > experts ? slots : experts) + ranks - 1) / ranks * ranks);
        if (slots % ranks)
            return LPLB_FAIL(LPLB_INVALID,
                             "%d slots do not divide by %d ranks (remainder %d); use %d or %d "
                             "slots, or give the slots of every rank",
                             slots, ranks, slots % ranks, fewer, fewer + ranks);
        return LPLB_OK;
    }
    int64_t sum = 0;
    for (int32_t r = 0; r < ranks; r++) {
        if (slots_per_rank[r] < 0)
            return LPLB_FAIL(LPLB_INVALID, "slots of rank %d must not be negative, not %d", r,
                             slots_per_rank[r]);
        sum += slots_per_rank[r];
    }
    if (sum != slots)
        return LPLB_FAIL(LPLB_INVALID, "the slots of the ranks add up to %lld, not to slots = %d",
                         (long long)sum, slots);
    return LPLB_OK;
}

lplb_status lplb_placement_create(int32_t layers, int32_t experts, int32_t slots, int32_t ranks,
                                  const int32_t *slots_per_rank, lplb_placement **out) {
    *out = NULL;
    LPLB_TRY(check_shape(layers, experts, slots, ranks, slots_per_rank));
    lplb_status status;
    lplb_placement *p;
    LPLB_TRY(LPLB_CALLOC(p, 1));
    *p = (lplb_placement){.layers = layers, .experts = experts, .slots = slots, .ranks = ranks};
    int64_t cells = (int64_t)layers * slots;
    LPLB_TRY_GOTO(status, LPLB_CALLOC(p->rank_offset, (int64_t)ranks + 1), failed);
    LPLB_TRY_GOTO(status, LPLB_CALLOC(p->physical_to_logical, cells), failed);
    for (int32_t r = 0; r < ranks; r++)
        p->rank_offset[r + 1] =
            p->rank_offset[r] + (slots_per_rank ? slots_per_rank[r] : slots / ranks);
    for (int64_t i = 0; i < cells; i++) p->physical_to_logical[i] = -1;
    *out = p;
    return LPLB_OK;
failed:
    lplb_placement_destroy(p);
    return status;
}

void lplb_placement_destroy(lplb_placement *placement) {
    if (!placement) return;
    lplb__free(placement->rank_offset);
    lplb__free(placement->physical_to_logical);
    lplb__free(placement);
}

lplb_status lplb_placement_copy(const lplb_placement *from, lplb_placement **out) {
    *out = NULL;
    lplb_status status;
    int32_t *slots_per_rank;
    LPLB_TRY(LPLB_CALLOC(slots_per_rank, from->ranks));
    for (int32_t r = 0; r < from->ranks; r++)
        slots_per_rank[r] = from->rank_offset[r + 1] - from->rank_offset[r];
    status = lplb_placement_create(from->layers, from->experts, from->slots, from->ranks,
                                   slots_per_rank, out);
    lplb__free(slots_per_rank);
    if (status == LPLB_OK)
        memcpy((*out)->physical_to_logical, from->physical_to_logical,
               (size_t)from->layers * (size_t)from->slots * sizeof(int32_t));
    return status;
}

const int32_t *lplb__placement_layer(const lplb_placement *placement, int32_t layer) {
    return placement->physical_to_logical + (int64_t)layer * placement->slots;
}

lplb_status lplb_placement_validate(const lplb_placement *placement) {
    uint8_t *seen;
    LPLB_TRY(LPLB_CALLOC(seen, placement->experts));
    lplb_status status = LPLB_OK;
    for (int32_t layer = 0; layer < placement->layers; layer++) {
        const int32_t *map = lplb__placement_layer(placement, layer);
        memset(seen, 0, (size_t)placement->experts);
        for (int32_t p = 0; p < placement->slots; p++) {
            if (map[p] < -1 || map[p] >= placement->experts)
                LPLB_FAIL_GOTO(status, done, LPLB_RANGE,
                               "layer %d, slot %d: expert %d is outside [-1, %d)", layer, p, map[p],
                               placement->experts);
            if (map[p] >= 0) seen[map[p]] = 1;
        }
        for (int32_t e = 0; e < placement->experts; e++)
            if (!seen[e])
                LPLB_FAIL_GOTO(status, done, LPLB_INVALID, "layer %d: expert %d has no slot", layer,
                               e);
    }
done:
    lplb__free(seen);
    return status;
}

void lplb_placement_fill_trivial(lplb_placement *placement) {
    for (int32_t layer = 0; layer < placement->layers; layer++) {
        int32_t *map = placement->physical_to_logical + (int64_t)layer * placement->slots;
        for (int32_t p = 0; p < placement->slots; p++) map[p] = p % placement->experts;
    }
}

int32_t lplb_placement_replica_count(const lplb_placement *placement, int32_t *count) {
    int32_t largest = 0;
    memset(count, 0, (size_t)placement->layers * (size_t)placement->experts * sizeof *count);
    for (int32_t layer = 0; layer < placement->layers; layer++) {
        const int32_t *map = lplb__placement_layer(placement, layer);
        int32_t *row = count + (int64_t)layer * placement->experts;
        for (int32_t p = 0; p < placement->slots; p++)
            if (map[p] >= 0 && ++row[map[p]] > largest) largest = row[map[p]];
    }
    return largest;
}

lplb_status lplb_placement_logical_to_physical(const lplb_placement *placement, int32_t X,
                                               int32_t *map) {
    int32_t experts = placement->experts;
    int32_t *filled;
    lplb_status status = LPLB_OK;
    LPLB_TRY(LPLB_CALLOC(filled, experts));
    int64_t cells = (int64_t)placement->layers * experts * X;
    for (int64_t i = 0; i < cells; i++) map[i] = -1;
    for (int32_t layer = 0; layer < placement->layers; layer++) {
        const int32_t *p2l = lplb__placement_layer(placement, layer);
        int32_t *row = map + (int64_t)layer * experts * X;
        memset(filled, 0, (size_t)experts * sizeof *filled);
        for (int32_t p = 0; p < placement->slots; p++) {
            int32_t e = p2l[p];
            if (e < 0) continue;
            if (filled[e] == X)
                LPLB_FAIL_GOTO(status, done, LPLB_INVALID,
                               "layer %d: expert %d has more than X = %d copies", layer, e, X);
            row[(int64_t)e * X + filled[e]++] = p;
        }
    }
done:
    lplb__free(filled);
    return status;
}

lplb_status lplb_placement_hosts(const lplb_placement *placement, int32_t layer, int64_t *offset,
                                 int32_t *rank, lplb_hosts *hosts) {
    if (layer < 0 || layer >= placement->layers)
        return LPLB_FAIL(LPLB_RANGE, "layer %d is outside [0, %d)", layer, placement->layers);
    const int32_t *map = lplb__placement_layer(placement, layer);
    int32_t experts = placement->experts;
    /* Bucket the slots by expert, then squeeze out repeated ranks: slots ascend by rank, so two
     * slots of an expert on one rank are neighbours in its bucket. */
    memset(offset, 0, ((size_t)experts + 1) * sizeof *offset);
    for (int32_t p = 0; p < placement->slots; p++) {
        if (map[p] < -1 || map[p] >= experts)
            return LPLB_FAIL(LPLB_RANGE, "layer %d, slot %d: expert %d is outside [-1, %d)", layer,
                             p, map[p], experts);
        if (map[p] >= 0) offset[map[p] + 1]++;
    }
    for (int32_t e = 0; e < experts; e++) {
        if (!offset[e + 1])
            return LPLB_FAIL(LPLB_INVALID, "layer %d: expert %d has no slot", layer, e);
        offset[e + 1] += offset[e];
    }
    for (int32_t r = 0; r < placement->ranks; r++)
        for (int32_t p = placement->rank_offset[r]; p < placement->rank_offset[r + 1]; p++)
            if (map[p] >= 0) rank[offset[map[p]]++] = r;
    int64_t begin = 0, n = 0; /* offset[e] is now the end of bucket e */
    for (int32_t e = 0; e < experts; e++) {
        int64_t end = offset[e], first = n;
        for (int64_t i = begin; i < end; i++)
            if (n == first || rank[n - 1] != rank[i]) rank[n++] = rank[i];
        offset[e] = first;
        begin = end;
    }
    offset[experts] = n;
    *hosts =
        (lplb_hosts){.ranks = placement->ranks, .experts = experts, .offset = offset, .rank = rank};
    return LPLB_OK;
}

/* ---- moves ---- */

typedef struct move_scan {
    const lplb_placement *from, *to;
    uint8_t *alive;        /* [from ranks] the rank still holds something in `to` */
    int64_t *reads;        /* [from ranks] copies taken from it so far, to spread them */
    int32_t *head, *next;  /* [E], [from slots]: slots of each expert in the layer of `from` */
    int32_t *from_rank;    /* [from slots] */
    int32_t *last_seen_on; /* [E] last rank of `to` where the expert was met, -1 = none */
} move_scan;

static void scan_destroy(move_scan *s) {
    lplb__free(s->alive);
    lplb__free(s->reads);
    lplb__free(s->head);
    lplb__free(s->next);
    lplb__free(s->from_rank);
    lplb__free(s->last_seen_on);
}

/* A rank beyond `to`, or one that is empty in every layer of it, is gone: nothing can be copied
 * from there. */
static void find_alive(move_scan *s) {
    for (int32_t r = 0; r < s->from->ranks && r < s->to->ranks; r++)
        for (int32_t layer = 0; layer < s->to->layers && !s->alive[r]; layer++) {
            const int32_t *map = lplb__placement_layer(s->to, layer);
            for (int32_t p = s->to->rank_offset[r]; p < s->to->rank_offset[r + 1]; p++)
                if (map[p] >= 0) s->alive[r] = 1;
        }
}

static lplb_status scan_create(move_scan *s, const lplb_placement *from, const lplb_placement *to) {
    *s = (move_scan){.from = from, .to = to};
    LPLB_TRY(LPLB_CALLOC(s->alive, from->ranks));
    LPLB_TRY(LPLB_CALLOC(s->reads, from->ranks));
    LPLB_TRY(LPLB_CALLOC(s->head, from->experts));
    LPLB_TRY(LPLB_CALLOC(s->next, from->slots));
    LPLB_TRY(LPLB_CALLOC(s->from_rank, from->slots));
    LPLB_TRY(LPLB_CALLOC(s->last_seen_on, from->experts));
    for (int32_t r = 0; r < from->ranks; r++)
        for (int32_t p = from->rank_offset[r]; p < from->rank_offset[r + 1]; p++)
            s->from_rank[p] = r;
    find_alive(s);
    return LPLB_OK;
}

/* The surviving holder that was named least often, ties to the lower rank; -2 if `rank` itself
 * holds the expert (no move), -1 if no holder survives. */
static int32_t find_source(move_scan *s, int32_t expert, int32_t rank) {
    int32_t best = -1;
    for (int32_t p = s->head[expert]; p >= 0; p = s->next[p]) {
        int32_t r = s->from_rank[p];
        if (r == rank) return -2;
        if (s->alive[r] && (best < 0 || s->reads[r] < s->reads[best])) best = r;
    }
    return best;
}

static void scan_layer(move_scan *s, int32_t layer, lplb_move *moves, int64_t capacity,
                       int64_t *n_moves) {
    const int32_t *from = lplb__placement_layer(s->from, layer);
    const int32_t *to = lplb__placement_layer(s->to, layer);
    for (int32_t e = 0; e < s->from->experts; e++) s->head[e] = s->last_seen_on[e] = -1;
    for (int32_t p = s->from->slots - 1; p >= 0; p--) {
        if (from[p] < 0) continue;
        s->next[p] = s->head[from[p]];
        s->head[from[p]] = p;
    }
    for (int32_t r = 0; r < s->to->ranks; r++)
        for (int32_t p = s->to->rank_offset[r]; p < s->to->rank_offset[r + 1]; p++) {
            int32_t e = to[p];
            if (e < 0 || s->last_seen_on[e] == r) continue;
            s->last_seen_on[e] = r;
            int32_t source = find_source(s, e, r);
            if (source == -2) continue;
            if (source >= 0) s->reads[source]++;
            if (*n_moves < capacity)
                moves[*n_moves] = (lplb_move){
                    .layer = layer, .slot = p, .expert = e, .rank = r, .source_rank = source};
            ++*n_moves;
        }
}

lplb_status lplb_placement_moves(const lplb_placement *from, const lplb_placement *to,
                                 lplb_move *moves, int64_t capacity, int64_t *n_moves) {
    *n_moves = 0;
    if (from->layers != to->layers || from->experts != to->experts)
        return LPLB_FAIL(LPLB_INVALID,
                         "the placements differ in shape: %d layers of %d experts and %d of %d",
                         from->layers, from->experts, to->layers, to->experts);
    LPLB_TRY(lplb_placement_validate(from));
    LPLB_TRY(lplb_placement_validate(to));
    move_scan scan;
    lplb_status status = scan_create(&scan, from, to);
    for (int32_t layer = 0; status == LPLB_OK && layer < to->layers; layer++)
        scan_layer(&scan, layer, moves, capacity, n_moves);
    scan_destroy(&scan);
    return status;
}
