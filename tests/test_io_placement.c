/* Placement files: what is written is read back in every format, and bad files are refused. */
#define _XOPEN_SOURCE 700
#include "io_helpers.h"

#include "io/placement_file.h"

static const char *const names[] = {"p.json", "p.jsonl", "p.yaml", "p2.json", "p.npy", "p3.json"};

/* Every expert once in random order, then random copies; doubles on a rank only if allowed. */
static lplb_placement *random_placement(uint64_t seed, bool doubles, bool uneven, bool empty) {
    lplb__rng rng;
    lplb__rng_seed(&rng, seed, 7);
    int32_t ranks = 1 + (int32_t)lplb__rng_below(&rng, 6);
    int32_t per_rank = 2 + (int32_t)lplb__rng_below(&rng, 5);
    int32_t experts = ranks * per_rank - (int32_t)lplb__rng_below(&rng, ranks * per_rank);
    int32_t slots_per_rank[8], slots = 0;
    for (int r = 0; r < ranks; r++) {
        slots_per_rank[r] = per_rank + (uneven ? (int32_t)lplb__rng_below(&rng, 3) : 0);
        slots += slots_per_rank[r];
    }
    lplb_placement *p;
    int32_t layers = 1 + (int32_t)lplb__rng_below(&rng, 4);
    expect_ok(lplb_placement_create(layers, experts, slots, ranks, slots_per_rank, &p));
    for (int32_t l = 0; l < p->layers; l++) {
        int32_t *map = p->physical_to_logical + l * slots;
        for (int32_t i = 0; i < slots; i++) {
            int32_t rank = 0, first;
            while (p->rank_offset[rank + 1] <= i) rank++;
            first = p->rank_offset[rank];
            map[i] = (int32_t)(i < experts ? i : lplb__rng_below(&rng, experts));
            for (int32_t tries = 0; !doubles && i >= experts && tries < 100; tries++) {
                bool again = false;
                for (int32_t j = first; j < i; j++) again |= map[j] == map[i];
                if (!again) break;
                map[i] = tries < 99 ? (int32_t)lplb__rng_below(&rng, experts) : -1;
            }
            if (empty && i >= experts && lplb__rng_below(&rng, 2)) map[i] = -1;
        }
    }
    return p;
}

static bool has_empty(const lplb_placement *p) {
    for (int32_t i = 0; i < p->layers * p->slots; i++)
        if (p->physical_to_logical[i] < 0) return true;
    return false;
}

static int compare_ids(const void *a, const void *b) {
    return *(const int32_t *)a - *(const int32_t *)b;
}

/* omni does not keep the order of the slots of a rank, nor trailing empty ones. */
static void sort_ranks(lplb_placement *p) {
    for (int32_t l = 0; l < p->layers; l++)
        for (int32_t r = 0; r < p->ranks; r++) {
            int32_t first = p->rank_offset[r], n = p->rank_offset[r + 1] - first;
            qsort(p->physical_to_logical + l * p->slots + first, (size_t)n, sizeof(int32_t),
                  compare_ids);
        }
}

static void assert_same_placement(const lplb_placement *a, const lplb_placement *b) {
    assert_int_equal(a->layers, b->layers);
    assert_int_equal(a->experts, b->experts);
    assert_int_equal(a->slots, b->slots);
    assert_int_equal(a->ranks, b->ranks);
    assert_memory_equal(a->rank_offset, b->rank_offset, ((size_t)a->ranks + 1) * sizeof(int32_t));
    assert_memory_equal(a->physical_to_logical, b->physical_to_logical,
                        (size_t)a->layers * (size_t)a->slots * sizeof(int32_t));
}

static void test_round_trips(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 80; seed++) {
        bool doubles = seed & 1, uneven = seed & 2, empty = seed & 4;
        lplb_placement *p = random_placement(seed, doubles, uneven, empty), *back;
        bool equal = true;
        for (int32_t r = 0; r < p->ranks; r++)
            equal &= (p->rank_offset[r + 1] - p->rank_offset[r]) * p->ranks == p->slots;
        for (int f = LPLB_PLACEMENT_SGLANG; f <= LPLB_PLACEMENT_LPLB; f++) {
            bool own = f == LPLB_PLACEMENT_LPLB, omni = f == LPLB_PLACEMENT_OMNI;
            lplb_status status =
                lplb_placement_write(p, (lplb_placement_format)f, in_folder(names[f]));
            if (!own && !omni && (!equal || has_empty(p))) {
                expect_failure(status, LPLB_UNSUPPORTED, "cannot hold");
                continue;
            }
            bool flags = omni || f == LPLB_PLACEMENT_VLLM_ASCEND;
            if (flags && status == LPLB_UNSUPPORTED) { /* only ever for two copies on a rank */
                assert_non_null(strstr(lplb_error_message(), "two copies"));
                assert_true(doubles);
                continue;
            }
            if (omni && has_empty(p)) continue; /* the slots of ranks may shrink */
            expect_ok(status);
            int32_t ranks = own || flags ? 0 : p->ranks;
            status = lplb_placement_read(in_folder(names[f]), ranks, &back);
            if (status != LPLB_OK)
                fail_msg("seed %llu, format %d: %s", (unsigned long long)seed, f,
                         lplb_error_message());
            if (omni) sort_ranks(p);
            assert_same_placement(p, back);
            lplb_placement_destroy(back);
            if (ranks) {
                expect_failure(lplb_placement_read(in_folder(names[f]), 0, &back), LPLB_INVALID,
                               "number of ranks");
            } else {
                expect_failure(lplb_placement_read(in_folder(names[f]), p->ranks + 1, &back),
                               LPLB_INVALID, "ranks, not");
            }
        }
        lplb_placement_destroy(p);
    }
}

static lplb_status read_text(const char *text, int32_t ranks, lplb_placement **out) {
    return lplb__placement_read_memory(text, (int64_t)strlen(text), "x", 1 << 20, ranks, out);
}

static void test_good_texts(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int32_t ranks, wanted_ranks, wanted[4];
    } cases[] = {
        {"{\"physical_to_logical_map\": [[0, 1], [1, 0]], \"other\": 1}", 2, 2, {0, 1, 1, 0}},
        {"{\"version\": 2, \"model_maps\": {\"A\": {\"physical_to_logical_map\": [[1, 0], [0, "
         "1]]}}}",
         1,
         1,
         {1, 0, 0, 1}},
        {"{\"initial_global_assignments\": {\"10\": [1, 0], \"9\": [0, 1]}}", 2, 2, {0, 1, 1, 0}},
        {"initial_global_assignments:\n  10: [1, 0]\n  9: [0, 1]\nnum_slots: 2\nep_size: 2\n",
         0,
         2,
         {0, 1, 1, 0}},
        {"# made by hand\nlayer_updates_per_iter: 0\nextra: {a: [1, {b: 2}]}\n"
         "initial_global_assignments:\n  3:\n  - 0\n  - 1\n  4:\n  - 1\n  - 0\n",
         2,
         2,
         {0, 1, 1, 0}},
        {"{\"moe_layer_count\": 2, \"layer_list\": ["
         "{\"device_list\": [{\"device_expert\": [0]}, {\"device_expert\": [1]}]},"
         "{\"layer_id\": 1, \"device_count\": 2, \"device_list\": ["
         "{\"device_id\": 0, \"device_expert\": [1]}, {\"device_id\": 1, \"device_expert\": "
         "[0]}]}]}",
         0,
         2,
         {0, 1, 1, 0}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        lplb_placement *p;
        lplb_status status = read_text(cases[i].text, cases[i].ranks, &p);
        if (status != LPLB_OK) fail_msg("%s: %s", cases[i].text, lplb_error_message());
        assert_int_equal(p->ranks, cases[i].wanted_ranks);
        assert_int_equal(p->experts, 2);
        assert_memory_equal(p->physical_to_logical, cases[i].wanted, sizeof cases[i].wanted);
        lplb_placement_destroy(p);
    }
}

static void test_bad_texts(void **state) {
    (void)state;
    static const struct {
        const char *text;
        lplb_status status;
        const char *part;
    } cases[] = {
        {"{\"physical_to_logical_map\": [[0, 1], [1]]}", LPLB_FORMAT, "map[1] must be a list of 2"},
        {"{\"physical_to_logical_map\": [[0, 1], [1, -2]]}", LPLB_RANGE, "map[1][1] is -2"},
        {"{\"physical_to_logical_map\": [[0, 1], [1, 1]]}", LPLB_INVALID, "expert 0 has no slot"},
        {"{\"physical_to_logical_map\": [[0, 1, 2]]}", LPLB_INVALID, "do not divide"},
        {"{\"physical_to_logical_map\": []}", LPLB_RANGE, "impossible"},
        {"{\"physical_to_logical_map\": 3}", LPLB_RANGE, "impossible"},
        {"{\"physical_to_logical_map\": [[0, 2000000000]]}", LPLB_FORMAT, "cannot have a slot"},
        {"{\"physical_to_logical_map\": [[0, 1]], \"slots_per_rank\": [1]}", LPLB_FORMAT,
         "slots_per_rank"},
        {"{\"model_maps\": {\"A\": {}, \"B\": {}}}", LPLB_UNSUPPORTED, "A, B"},
        {"{\"initial_global_assignments\": {\"x\": [0]}}", LPLB_FORMAT, "'x' is no layer"},
        {"{\"initial_global_assignments\": {\"0\": [0, 1], \"1\": [0]}}", LPLB_FORMAT, "2 expert"},
        {"{\"layer_list\": [{}]}", LPLB_FORMAT, "no device_list"},
        {"{\"layer_list\": [{\"device_list\": [{\"device_id\": 1, \"device_expert\": [0]}]}]}",
         LPLB_FORMAT, "device_id"},
        {"{\"layer_list\": [{\"device_list\": [{\"device_expert\": 0}]}]}", LPLB_FORMAT,
         "device_expert"},
        {"{\"logical_count\": [[1, 2]]}", LPLB_FORMAT, "lplb place"},
        {"{\"a\": [", LPLB_FORMAT, "line 1"},
        {"a: [1, 2", LPLB_FORMAT, "line"},
        {"a: &x [1]\nb: *x\n", LPLB_FORMAT, "aliases"},
        {"- 1\n- 2\n", LPLB_FORMAT, "no placement"},
        {"step,layer,expert,count\n", LPLB_FORMAT, "no placement"},
        {"num_slots: 2\n", LPLB_FORMAT, "without initial_global_assignments"},
        {"initial_global_assignments: {0: [0, 1], 1: [0]}\n", LPLB_FORMAT, "equally many"},
        {"initial_global_assignments: {0: [0, 1], 0: [0, 1]}\n", LPLB_FORMAT,
         "layer 0 comes twice"},
        {"initial_global_assignments: {0: [0, x]}\n", LPLB_FORMAT, "line 1: a whole number"},
        {"initial_global_assignments: {0: [0, 1]}\nnum_slots: 3\n", LPLB_FORMAT, "num_slots is 3"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        lplb_placement *p;
        expect_failure(read_text(cases[i].text, 2, &p), cases[i].status, cases[i].part);
        assert_null(p);
    }
    char deep[4096];
    memset(deep, '[', sizeof deep);
    lplb_placement *p;
    expect_failure(lplb__placement_read_memory(deep, sizeof deep, "deep", 1 << 20, 2, &p),
                   LPLB_FORMAT, "deep");
    memcpy(deep, "a: ", 3);
    expect_failure(lplb__placement_read_memory(deep, sizeof deep, "deep", 1 << 20, 2, &p),
                   LPLB_FORMAT, "deep");
}

static void test_recorded_placements(void **state) {
    (void)state;
    const char *data = getenv("LPLB_DATA");
    if (!data) skip();
    char path[512];
    lplb_placement *p;
    snprintf(path, sizeof path, "%s/placements_dsv3/prefill_16ranks.npz", data);
    expect_ok(lplb_placement_read(path, 0, &p));
    assert_int_equal(p->ranks, 16);
    assert_int_equal(p->layers, 58);
    assert_int_equal(p->experts, 256);
    assert_int_equal(p->slots, 256);
    lplb_placement_destroy(p);
    snprintf(path, sizeof path, "%s/placements_dsv3/gsm8k_decode_32ranks.npz", data);
    expect_ok(lplb_placement_read(path, 0, &p));
    assert_int_equal(p->ranks, 32);
    assert_int_equal(p->slots, 288);
    lplb_placement_destroy(p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trips),
        cmocka_unit_test(test_good_texts),
        cmocka_unit_test(test_bad_texts),
        cmocka_unit_test(test_recorded_placements),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
