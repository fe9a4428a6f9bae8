/* Reads the placement files of the engines; also maps in npy, npz and safetensors. */
#include <lplb/trace.h>
#include <string.h>

#include "base/mem.h"
#include "io/array.h"
#include "io/placement_file.h"
#include "io/recognise.h"

lplb_status lplb__slot_map_create(lplb__slot_map *map, const lplb__input *input, int64_t layers,
                                  int64_t slots) {
    int64_t limit = input->max_bytes / (int64_t)sizeof *map->map;
    if (layers < 1 || slots < 1 || layers > INT32_MAX || slots > INT32_MAX ||
        layers > limit / slots)
        return LPLB_FAIL(LPLB_RANGE,
                         "%s: a map of %lld layers and %lld slots is impossible or "
                         "above the limit of %lld bytes",
                         input->name, (long long)layers, (long long)slots,
                         (long long)input->max_bytes);
    map->name = input->name;
    map->layers = layers;
    map->slots = slots;
    return LPLB_CALLOC(map->map, layers * slots);
}

void lplb__slot_map_destroy(lplb__slot_map *map) {
    lplb__free(map->map);
    lplb__free(map->slots_per_rank);
    *map = (lplb__slot_map){0};
}

/* The failure again, with the file in front. */
static lplb_status in_file(const char *name, lplb_status status) {
    if (status == LPLB_OK) return LPLB_OK;
    return LPLB_FAIL(status, "%s: %s", name, lplb_error_message());
}

lplb_status lplb__slot_map_finish(const lplb__slot_map *map, int32_t wanted_ranks,
                                  lplb_placement **out) {
    *out = NULL;
    if (map->ranks && wanted_ranks && map->ranks != wanted_ranks)
        return LPLB_FAIL(LPLB_INVALID, "%s has %lld ranks, not %d", map->name,
                         (long long)map->ranks, wanted_ranks);
    int64_t ranks = map->ranks ? map->ranks : wanted_ranks;
    if (!ranks)
        return LPLB_FAIL(LPLB_INVALID,
                         "%s does not say over how many ranks its %lld slots are "
                         "spread; give the number of ranks (--ranks)",
                         map->name, (long long)map->slots);
    int64_t experts = map->experts, cells = map->layers * map->slots;
    for (int64_t i = 0; i < cells && !map->experts; i++)
        if (map->map[i] >= experts) experts = (int64_t)map->map[i] + 1;
    /* Before anything of the size of experts or ranks is allocated. */
    if (experts < 1 || experts > map->slots)
        return LPLB_FAIL(LPLB_FORMAT, "%s: %lld experts cannot have a slot each, there are %lld",
                         map->name, (long long)experts, (long long)map->slots);
    if (ranks > LPLB_MAX_RANKS)
        return LPLB_FAIL(LPLB_FORMAT, "%s: %lld ranks, at most %d", map->name, (long long)ranks,
                         LPLB_MAX_RANKS);
    lplb_placement *placement;
    LPLB_TRY(in_file(map->name, lplb_placement_create((int32_t)map->layers, (int32_t)experts,
                                                      (int32_t)map->slots, (int32_t)ranks,
                                                      map->slots_per_rank, &placement)));
    memcpy(placement->physical_to_logical, map->map, (size_t)cells * sizeof *map->map);
    lplb_status status = in_file(map->name, lplb_placement_validate(placement));
    if (status != LPLB_OK) lplb_placement_destroy(placement);
    else *out = placement;
    return status;
}

/* ---- arrays ---- */

/* [L][P] of expert ids, -1 = empty. */
static lplb_status read_map(const lplb__arrays *arrays, const lplb__array *array, int32_t ranks,
                            lplb_placement **out) {
    if (array->dims != 2)
        return LPLB_FAIL(LPLB_FORMAT, "%s: %s has %d dimensions, [layers][slots] is wanted",
                         arrays->input->name, array->name, array->dims);
    lplb__slot_map map = {0};
    int64_t *values = NULL;
    lplb_status status;
    LPLB_TRY_GOTO(
        status, lplb__slot_map_create(&map, arrays->input, array->shape[0], array->shape[1]), done);
    LPLB_TRY_GOTO(status, lplb__array_read(arrays, array, map.layers * map.slots, &values), done);
    for (int64_t i = 0; i < array->items; i++) {
        if (values[i] < -1 || values[i] >= INT32_MAX)
            LPLB_FAIL_GOTO(status, done, LPLB_RANGE, "%s: layer %lld, slot %lld: expert %lld",
                           arrays->input->name, (long long)(i / map.slots),
                           (long long)(i % map.slots), (long long)values[i]);
        map.map[i] = (int32_t)values[i];
    }
    status = lplb__slot_map_finish(&map, ranks, out);
done:
    lplb__free(values);
    lplb__slot_map_destroy(&map);
    return status;
}

/* omni-infer: [G][L][E], 1 where the rank has the expert. Ranks may hold fewer in some layers; the
 * rest of their slots is then empty. */
static lplb_status fill_from_flags(lplb__slot_map *map, const lplb__input *input,
                                   const int64_t *flags, int64_t ranks, int64_t layers,
                                   int64_t experts) {
    LPLB_TRY(LPLB_CALLOC(map->slots_per_rank, ranks));
    int64_t slots = 0;
    for (int64_t r = 0; r < ranks; r++) {
        for (int64_t l = 0; l < layers; l++) {
            const int64_t *row = flags + (r * layers + l) * experts;
            int32_t held = 0;
            for (int64_t e = 0; e < experts; e++) {
                if (row[e] != 0 && row[e] != 1)
                    return LPLB_FAIL(LPLB_FORMAT,
                                     "%s: rank %lld, layer %lld, expert %lld: %lld is "
                                     "neither 0 nor 1",
                                     input->name, (long long)r, (long long)l, (long long)e,
                                     (long long)row[e]);
                held += (int32_t)row[e];
            }
            if (held > map->slots_per_rank[r]) map->slots_per_rank[r] = held;
        }
        slots += map->slots_per_rank[r];
    }
    LPLB_TRY(lplb__slot_map_create(map, input, layers, slots));
    int32_t *slot = map->map;
    for (int64_t l = 0; l < layers; l++)
        for (int64_t r = 0; r < ranks; r++) {
            const int64_t *row = flags + (r * layers + l) * experts;
            int32_t *end = slot + map->slots_per_rank[r];
            for (int64_t e = 0; e < experts; e++)
                if (row[e]) *slot++ = (int32_t)e;
            while (slot < end) *slot++ = -1;
        }
    map->ranks = ranks;
    map->experts = experts;
    return LPLB_OK;
}

static lplb_status read_flags(const lplb__arrays *arrays, const lplb__array *array, int32_t ranks,
                              lplb_placement **out) {
    const lplb__input *input = arrays->input;
    if (array->dims != 3 || array->shape[0] < 1 || array->shape[1] < 1 || array->shape[2] < 1 ||
        array->items > input->max_bytes / 8 || array->items > INT32_MAX)
        return LPLB_FAIL(LPLB_FORMAT, "%s: 0/1 flags [ranks][layers][experts] are wanted",
                         input->name);
    int64_t *flags;
    LPLB_TRY(lplb__array_read(arrays, array, array->items, &flags));
    lplb__slot_map map = {0};
    lplb_status status =
        fill_from_flags(&map, input, flags, array->shape[0], array->shape[1], array->shape[2]);
    if (status == LPLB_OK) status = lplb__slot_map_finish(&map, ranks, out);
    lplb__free(flags);
    lplb__slot_map_destroy(&map);
    return status;
}

static lplb_status from_arrays(const lplb__input *input, int32_t ranks,
                               lplb_status (*open)(const lplb__input *, lplb__arrays *),
                               lplb_placement **out) {
    lplb__arrays arrays;
    LPLB_TRY(open(input, &arrays));
    const lplb__array *flags = lplb__arrays_find(&arrays, "placement");
    const lplb__array *map = lplb__arrays_find(&arrays, "physical_to_logical_map");
    const lplb__array *bare = arrays.n == 1 ? &arrays.array[0] : NULL;
    if (!flags && !map && bare && bare->dims == 3) flags = bare;
    if (!flags && !map && bare && bare->dims == 2) map = bare;
    lplb_status status;
    if (flags) status = read_flags(&arrays, flags, ranks, out);
    else if (map) status = read_map(&arrays, map, ranks, out);
    else
        status = LPLB_FAIL(LPLB_FORMAT,
                           "%s: no array is named placement or "
                           "physical_to_logical_map",
                           input->name);
    lplb__arrays_close(&arrays);
    return status;
}

/* ---- entries ---- */

lplb_status lplb__placement_read_input(const lplb__input *input, int32_t ranks,
                                       lplb_placement **out) {
    *out = NULL;
    if (ranks < 0) return LPLB_FAIL(LPLB_INVALID, "ranks must not be negative, not %d", ranks);
    lplb__content content;
    LPLB_TRY(lplb__recognise(input, &content));
    switch (content) {
    case LPLB__NPY: return from_arrays(input, ranks, lplb__arrays_open_npy, out);
    case LPLB__ZIP: return from_arrays(input, ranks, lplb__arrays_open_npz, out);
    case LPLB__SAFETENSORS: return from_arrays(input, ranks, lplb__arrays_open_safetensors, out);
    case LPLB__JSON: return lplb__placement_from_json(input, ranks, out);
    case LPLB__TEXT: return lplb__placement_from_yaml(input, ranks, out);
    }
    return LPLB_FAIL(LPLB_INTERNAL, "unknown content");
}

lplb_status lplb__placement_read_memory(const void *data, int64_t bytes, const char *name,
                                        int64_t max_bytes, int32_t ranks, lplb_placement **out) {
    lplb__input input;
    lplb__input_memory(data, bytes, name, max_bytes, &input);
    return lplb__placement_read_input(&input, ranks, out);
}

lplb_status lplb_placement_read(const char *path, int32_t ranks, lplb_placement **out) {
    *out = NULL;
    lplb__input input;
    LPLB_TRY(lplb__input_open(path, 0, &input));
    lplb_status status = lplb__placement_read_input(&input, ranks, out);
    lplb__input_close(&input);
    return status;
}
