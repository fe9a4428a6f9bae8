/* Mappings: validation, alignment, moves and recovery, on random ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <lplb/runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "runtime/mapping.h"

enum { MAX_P = 64, MAX_E = 24, MAX_G = 9 };

typedef struct world {
    lplb__rng rng;
    int32_t E, P, G, per_rank[MAX_G], offset[MAX_G + 1];
    uint8_t dead[MAX_G];
    lplb__slots slots;
} world;

/* Unequal ranks, some without a slot; at least E slots live. */
static void make_world(world *w, uint64_t seed, int with_dead) {
    lplb__rng_seed(&w->rng, 21, seed);
    do {
        w->E = 1 + (int32_t)lplb__rng_below(&w->rng, MAX_E);
        w->G = 1 + (int32_t)lplb__rng_below(&w->rng, MAX_G);
        w->P = 0;
        for (int32_t r = 0; r < w->G; r++) {
            w->per_rank[r] = (int32_t)lplb__rng_below(&w->rng, 8);
            w->offset[r] = w->P;
            w->dead[r] = with_dead && lplb__rng_below(&w->rng, 4) == 0;
            w->P += w->per_rank[r];
        }
        w->offset[w->G] = w->P;
        w->slots = (lplb__slots){w->E, w->P, w->G, 1, w->offset, w->dead};
    } while (w->P < 1 || lplb__live_slots(&w->slots) < w->E);
}

/* Covers every expert on live slots; `empty` leaves some slots without one. */
static void random_row(world *w, int32_t *row, int empty) {
    int32_t live[MAX_P], n = 0;
    for (int32_t r = 0; r < w->G; r++)
        for (int32_t p = w->offset[r]; p < w->offset[r + 1]; p++) {
            row[p] = -1;
            if (!w->dead[r]) live[n++] = p;
        }
    for (int32_t i = n - 1; i > 0; i--) {
        int32_t k = (int32_t)lplb__rng_below(&w->rng, i + 1), swap = live[i];
        live[i] = live[k];
        live[k] = swap;
    }
    for (int32_t i = 0; i < n; i++) {
        if (i < w->E) row[live[i]] = i;
        else if (!empty || lplb__rng_below(&w->rng, 3))
            row[live[i]] = (int32_t)lplb__rng_below(&w->rng, w->E);
    }
}

static int count_on(const world *w, const int32_t *row, int32_t rank, int32_t expert) {
    int n = 0;
    for (int32_t p = w->offset[rank]; p < w->offset[rank + 1]; p++) n += row[p] == expert;
    return n;
}

static void test_validate(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 300; seed++) {
        world w;
        make_world(&w, seed, 1);
        int32_t row[MAX_P];
        uint64_t seen[1];
        random_row(&w, row, 0);
        assert_int_equal(lplb__validate_layer(&w.slots, 3, row, true, seen), LPLB_OK);
        /* Any one of these damages is found. */
        int32_t p = (int32_t)lplb__rng_below(&w.rng, w.P), r = 0;
        while (w.offset[r + 1] <= p) r++;
        int32_t kept = row[p];
        row[p] = w.E;
        assert_int_equal(lplb__validate_layer(&w.slots, 3, row, false, seen), LPLB_RANGE);
        row[p] = -2;
        assert_int_equal(lplb__validate_layer(&w.slots, 3, row, false, seen), LPLB_RANGE);
        row[p] = w.dead[r] ? 0 : -1;
        assert_int_equal(lplb__validate_layer(&w.slots, 3, row, true, seen), LPLB_INVALID);
        assert_non_null(strstr(lplb_error_message(), "layer 3"));
        row[p] = kept;
        int32_t gone = (int32_t)lplb__rng_below(&w.rng, w.E), other = (gone + 1) % w.E;
        if (w.E == 1) continue;
        for (int32_t q = 0; q < w.P; q++)
            if (row[q] == gone) row[q] = other;
        assert_int_equal(lplb__validate_layer(&w.slots, 3, row, true, seen), LPLB_INVALID);
        assert_non_null(strstr(lplb_error_message(), "has no slot"));
    }
}

static void test_round_robin(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 200; seed++) {
        world w;
        make_world(&w, seed, 1);
        int32_t row[MAX_P];
        uint64_t seen[1];
        lplb__round_robin_layer(&w.slots, row);
        assert_int_equal(lplb__validate_layer(&w.slots, 0, row, true, seen), LPLB_OK);
    }
    lplb_placement *p;
    assert_int_equal(lplb_placement_create(2, 4, 6, 3, NULL, &p), LPLB_OK);
    assert_int_equal(lplb_mapping_round_robin(p, (uint8_t[]){0, 1, 0}), LPLB_OK);
    assert_memory_equal(p->physical_to_logical, ((int32_t[]){0, 1, -1, -1, 2, 3}), 24);
    assert_int_equal(lplb_mapping_validate(p, (uint8_t[]){0, 1, 0}, 1), LPLB_OK);
    assert_int_equal(lplb_mapping_validate(p, NULL, 1), LPLB_INVALID);
    assert_int_equal(lplb_mapping_validate(p, NULL, 0), LPLB_OK);
    assert_int_equal(lplb_mapping_round_robin(p, (uint8_t[]){1, 1, 0}), LPLB_INFEASIBLE);
    assert_non_null(strstr(lplb_error_message(), "2 slots are missing"));
    lplb_placement_destroy(p);
}

/* Alignment changes the order within ranks only, and leaves in place all that can stay. */
static void test_align_and_diff(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 2000; seed++) {
        world w;
        make_world(&w, seed, 1);
        int32_t from[MAX_P], to[MAX_P], out[MAX_P], taken[MAX_P];
        random_row(&w, from, 1);
        random_row(&w, to, seed % 2);
        lplb__align_layer(&w.slots, from, to, out, taken);
        int64_t stay = 0, could_stay = 0, pairs = 0;
        for (int32_t r = 0; r < w.G; r++)
            for (int32_t e = -1; e < w.E; e++) {
                int before = count_on(&w, from, r, e), after = count_on(&w, to, r, e);
                assert_int_equal(count_on(&w, out, r, e), after);
                if (e >= 0) could_stay += before < after ? before : after;
                if (e >= 0) pairs += !before && after;
            }
        for (int32_t p = 0; p < w.P; p++) stay += from[p] >= 0 && from[p] == out[p];
        assert_int_equal(stay, could_stay);

        int32_t head[MAX_E], next[MAX_P], sends[MAX_G], brought[MAX_E], now[MAX_P];
        lplb__diff_scratch scratch = {head, next, sends, brought};
        lplb_move moves[MAX_P];
        int64_t crossing, n = lplb__diff_layer(&w.slots, 5, from, out, &scratch, moves, &crossing);
        assert_int_equal(crossing, pairs);
        memcpy(now, from, sizeof now);
        for (int64_t i = 0; i < n; i++) {
            const lplb_move *m = &moves[i];
            assert_int_equal(m->layer, 5);
            assert_true(i == 0 || m->slot > moves[i - 1].slot);
            assert_true(m->slot >= w.offset[m->rank] && m->slot < w.offset[m->rank + 1]);
            assert_true(m->source_rank >= 0);
            int held = count_on(&w, from, m->source_rank, m->expert);
            for (int64_t k = 0; k < i; k++) /* brought before, by this list */
                held += m->source_rank == m->rank && moves[k].rank == m->rank &&
                        moves[k].expert == m->expert;
            assert_true(held > 0);
            now[m->slot] = m->expert;
        }
        for (int32_t p = 0; p < w.P; p++)
            if (out[p] >= 0) assert_int_equal(now[p], out[p]);
    }
}

/* What survives stays; what does not is named, and given a slot that nobody needs. */
static void test_recover(void **state) {
    (void)state;
    int covered = 0, loaded = 0, short_of_slots = 0;
    for (uint64_t seed = 0; seed < 2000; seed++) {
        world w;
        make_world(&w, seed, 0);
        lplb_placement *p;
        assert_int_equal(lplb_placement_create(2, w.E, w.P, w.G, w.per_rank, &p), LPLB_OK);
        for (int32_t l = 0; l < 2; l++) random_row(&w, p->physical_to_logical + l * w.P, 1);
        uint8_t dead[MAX_G];
        int32_t live = 0;
        for (int32_t r = 0; r < w.G; r++) {
            dead[r] = lplb__rng_below(&w.rng, 3) == 0;
            live += dead[r] ? 0 : w.per_rank[r];
        }
        lplb_recovery *got;
        lplb_status status = lplb_recover(p, dead, NULL, &got);
        int64_t lost = 0;
        for (int32_t l = 0; l < 2; l++)
            for (int32_t e = 0; e < w.E; e++) {
                int copies = 0;
                for (int32_t r = 0; r < w.G; r++)
                    if (!dead[r]) copies += count_on(&w, p->physical_to_logical + l * w.P, r, e);
                if (copies) continue;
                assert_int_equal(got->lost[lost].layer, l);
                assert_int_equal(got->lost[lost].expert, e);
                assert_int_equal(got->lost[lost].source_rank, -1);
                lost++;
            }
        assert_int_equal(got->n_lost, lost);
        assert_int_equal(got->missing_slots, live < w.E ? w.E - live : 0);
        assert_int_equal(status, lost || live < w.E ? LPLB_INFEASIBLE : LPLB_OK);
        covered += status == LPLB_OK, loaded += lost && live >= w.E, short_of_slots += live < w.E;
        if (live < w.E) {
            assert_null(got->placement);
            assert_non_null(strstr(lplb_error_message(), "slots are missing"));
        } else {
            assert_int_equal(lplb_mapping_validate(got->placement, dead, 0), LPLB_OK);
            int64_t changed = 0;
            for (int32_t i = 0; i < 2 * w.P; i++) {
                int32_t r = 0;
                while (w.offset[r + 1] <= i % w.P) r++;
                changed +=
                    !dead[r] && got->placement->physical_to_logical[i] != p->physical_to_logical[i];
            }
            assert_int_equal(changed, lost);
            for (int64_t i = 0; i < lost; i++)
                assert_int_equal(got->placement->physical_to_logical[got->lost[i].layer * w.P +
                                                                     got->lost[i].slot],
                                 got->lost[i].expert);
            if (lost) assert_non_null(strstr(lplb_error_message(), "checkpoint"));
        }
        lplb_recovery_destroy(got);
        lplb_placement_destroy(p);
    }
    print_message("covered %d, to be loaded %d, short of slots %d\n", covered, loaded,
                  short_of_slots);
    assert_true(covered > 100 && loaded > 100 && short_of_slots > 50);
}

static void test_digest(void **state) {
    (void)state;
    lplb_placement *p;
    assert_int_equal(lplb_placement_create(3, 4, 8, 4, NULL, &p), LPLB_OK);
    lplb_placement_fill_trivial(p);
    uint64_t digest = lplb_mapping_digest(p);
    for (int i = 0; i < 24; i++)
        for (int bit = 0; bit < 32; bit++) {
            p->physical_to_logical[i] ^= (int32_t)(1u << bit);
            assert_true(lplb_mapping_digest(p) != digest);
            p->physical_to_logical[i] ^= (int32_t)(1u << bit);
        }
    assert_true(lplb_mapping_digest(p) == digest);
    lplb_placement_destroy(p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_validate),       cmocka_unit_test(test_round_robin),
        cmocka_unit_test(test_align_and_diff), cmocka_unit_test(test_recover),
        cmocka_unit_test(test_digest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
