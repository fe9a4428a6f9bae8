/* Placements in JSON:
 *     {"physical_to_logical_map": [L][P]}                       SGLang, vLLM forks, this library
 *         (ours adds "ranks", "experts", "slots_per_rank")
 *     {"model_maps": {"NAME": {"physical_to_logical_map": ...}}}   vLLM forks, several models
 *     {"initial_global_assignments": {"LAYER": [P]}}            vLLM, TensorRT-LLM's keys
 *     {"layer_list": [{"device_list": [{"device_expert": [..]}]}]}   vllm-ascend */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "io/json.h"
#include "io/placement_file.h"

/* One row of slots. */
static lplb_status read_row(const json_t *list, const char *name, const char *path, int64_t n,
                            int32_t *out) {
    if (!json_is_array(list) || (int64_t)json_array_size(list) != n)
        return LPLB_FAIL(LPLB_FORMAT, "%s: %s must be a list of %lld expert ids, as the first one",
                         name, path, (long long)n);
    for (int64_t i = 0; i < n; i++) {
        char where[128];
        int64_t id;
        snprintf(where, sizeof where, "%s[%lld]", path, (long long)i);
        LPLB_TRY(
            lplb__json_whole(json_array_get(list, (size_t)i), name, where, -1, INT32_MAX - 1, &id));
        out[i] = (int32_t)id;
    }
    return LPLB_OK;
}

/* An optional number; 0 if the key is missing. */
static lplb_status read_number(const json_t *object, const char *name, const char *key,
                               int64_t *out) {
    const json_t *value = json_object_get(object, key);
    *out = 0;
    return value ? lplb__json_whole(value, name, key, 1, INT32_MAX, out) : LPLB_OK;
}

static lplb_status read_slots_per_rank(const json_t *document, lplb__slot_map *map) {
    const json_t *list = json_object_get(document, "slots_per_rank");
    if (!list) return LPLB_OK;
    if (!map->ranks || (int64_t)json_array_size(list) != map->ranks)
        return LPLB_FAIL(LPLB_FORMAT, "%s: slots_per_rank must list the slots of every rank",
                         map->name);
    LPLB_TRY(LPLB_CALLOC(map->slots_per_rank, map->ranks));
    for (int64_t r = 0; r < map->ranks; r++) {
        int64_t slots;
        LPLB_TRY(lplb__json_whole(json_array_get(list, (size_t)r), map->name, "slots_per_rank", 0,
                                  INT32_MAX, &slots));
        map->slots_per_rank[r] = (int32_t)slots;
    }
    return LPLB_OK;
}

static lplb_status read_map(const json_t *document, const json_t *list, const lplb__input *input,
                            lplb__slot_map *map) {
    int64_t layers = (int64_t)json_array_size(list);
    int64_t slots = (int64_t)json_array_size(json_array_get(list, 0));
    LPLB_TRY(lplb__slot_map_create(map, input, layers, slots));
    for (int64_t l = 0; l < layers; l++) {
        char path[64];
        snprintf(path, sizeof path, "physical_to_logical_map[%lld]", (long long)l);
        LPLB_TRY(read_row(json_array_get(list, (size_t)l), input->name, path, slots,
                          map->map + l * slots));
    }
    LPLB_TRY(read_number(document, input->name, "ranks", &map->ranks));
    LPLB_TRY(read_number(document, input->name, "experts", &map->experts));
    if (!map->experts)
        LPLB_TRY(read_number(document, input->name, "num_logical_experts", &map->experts));
    return read_slots_per_rank(document, map);
}

/* Several models in one file: only a single one leaves no doubt. */
static lplb_status read_models(const json_t *models, const lplb__input *input,
                               lplb__slot_map *map) {
    char names[256] = "";
    const char *key;
    json_t *model;
    const json_t *only = NULL;
    size_t used = 0;
    json_object_foreach((json_t *)models, key, model) {
        only = model;
        if (used < sizeof names)
            used += (size_t)snprintf(names + used, sizeof names - used, "%s%.60s", used ? ", " : "",
                                     key);
    }
    const json_t *list = json_object_get(only, "physical_to_logical_map");
    if (json_object_size(models) != 1 || !list)
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "%s: model_maps must hold the physical_to_logical_map "
                         "of one model; it holds: %s",
                         input->name, names);
    return read_map(only, list, input, map);
}

typedef struct numbered_layer {
    int64_t number;
    const json_t *list;
} numbered_layer;

static int compare_layers(const void *a, const void *b) {
    int64_t x = ((const numbered_layer *)a)->number, y = ((const numbered_layer *)b)->number;
    return (x > y) - (x < y);
}

static lplb_status read_assignments(const json_t *object, const lplb__input *input,
                                    lplb__slot_map *map) {
    int64_t layers = (int64_t)json_object_size(object), n = 0;
    const char *key;
    json_t *list;
    numbered_layer *layer;
    LPLB_TRY(LPLB_CALLOC(layer, layers));
    lplb_status status = LPLB_OK;
    json_object_foreach((json_t *)object, key, list) {
        char *end;
        long long number = strtoll(key, &end, 10);
        if (end == key || *end || number < 0 || number > INT32_MAX)
            LPLB_FAIL_GOTO(status, done, LPLB_FORMAT,
                           "%s: initial_global_assignments: '%.40s' is no layer number",
                           input->name, key);
        layer[n++] = (numbered_layer){number, list};
    }
    qsort(layer, (size_t)n, sizeof *layer, compare_layers);
    int64_t slots = n ? (int64_t)json_array_size(layer[0].list) : 0;
    LPLB_TRY_GOTO(status, lplb__slot_map_create(map, input, n, slots), done);
    for (int64_t l = 0; l < n; l++) {
        char path[64];
        snprintf(path, sizeof path, "initial_global_assignments[%lld]", (long long)layer[l].number);
        LPLB_TRY_GOTO(
            status, read_row(layer[l].list, input->name, path, slots, map->map + l * slots), done);
    }
done:
    lplb__free(layer);
    return status;
}

/* ---- vllm-ascend ---- */

/* The devices of a layer; device_id, where given, must count from 0. */
static lplb_status check_devices(const json_t *layers, int64_t l, int64_t ranks, const char *name) {
    const json_t *layer = json_array_get(layers, (size_t)l);
    const json_t *devices = json_object_get(layer, "device_list");
    if (!json_is_array(devices) || (int64_t)json_array_size(devices) != ranks)
        return LPLB_FAIL(LPLB_FORMAT,
                         "%s: layer_list[%lld] must list %lld devices, as the first "
                         "layer",
                         name, (long long)l, (long long)ranks);
    for (int64_t r = 0; r < ranks; r++) {
        const json_t *device = json_array_get(devices, (size_t)r);
        const json_t *id = json_object_get(device, "device_id");
        if (id && json_integer_value(id) != r)
            return LPLB_FAIL(LPLB_FORMAT, "%s: layer_list[%lld], device %lld has another device_id",
                             name, (long long)l, (long long)r);
        if (!json_is_array(json_object_get(device, "device_expert")))
            return LPLB_FAIL(LPLB_FORMAT, "%s: layer_list[%lld], device %lld has no device_expert",
                             name, (long long)l, (long long)r);
    }
    return LPLB_OK;
}

static const json_t *device_experts(const json_t *layers, int64_t l, int64_t r) {
    const json_t *devices = json_object_get(json_array_get(layers, (size_t)l), "device_list");
    return json_object_get(json_array_get(devices, (size_t)r), "device_expert");
}

static lplb_status read_ascend(const json_t *list, const lplb__input *input, lplb__slot_map *map) {
    int64_t layers = (int64_t)json_array_size(list), slots = 0;
    int64_t ranks =
        (int64_t)json_array_size(json_object_get(json_array_get(list, 0), "device_list"));
    if (ranks < 1)
        return LPLB_FAIL(LPLB_FORMAT, "%s: layer_list[0] has no device_list", input->name);
    LPLB_TRY(LPLB_CALLOC(map->slots_per_rank, ranks));
    map->ranks = ranks;
    for (int64_t l = 0; l < layers; l++) {
        LPLB_TRY(check_devices(list, l, ranks, input->name));
        for (int64_t r = 0; r < ranks; r++) {
            int32_t held = (int32_t)json_array_size(device_experts(list, l, r));
            if (held > map->slots_per_rank[r]) map->slots_per_rank[r] = held;
        }
    }
    for (int64_t r = 0; r < ranks; r++) slots += map->slots_per_rank[r];
    LPLB_TRY(lplb__slot_map_create(map, input, layers, slots));
    int32_t *slot = map->map;
    for (int64_t l = 0; l < layers; l++)
        for (int64_t r = 0; r < ranks; r++) {
            const json_t *experts = device_experts(list, l, r);
            int64_t held = (int64_t)json_array_size(experts);
            char path[80];
            snprintf(path, sizeof path, "layer_list[%lld], device %lld", (long long)l,
                     (long long)r);
            LPLB_TRY(read_row(experts, input->name, path, held, slot));
            for (int64_t i = held; i < map->slots_per_rank[r]; i++) slot[i] = -1;
            slot += map->slots_per_rank[r];
        }
    return LPLB_OK;
}

lplb_status lplb__placement_from_json(const lplb__input *input, int32_t ranks,
                                      lplb_placement **out) {
    json_t *document;
    LPLB_TRY(lplb__json_load(input, &document));
    lplb__slot_map map = {.name = input->name};
    const json_t *list = json_object_get(document, "physical_to_logical_map");
    const json_t *models = json_object_get(document, "model_maps");
    const json_t *assignments = json_object_get(document, "initial_global_assignments");
    const json_t *layers = json_object_get(document, "layer_list");
    lplb_status status;
    if (list) status = read_map(document, list, input, &map);
    else if (models) status = read_models(models, input, &map);
    else if (assignments) status = read_assignments(assignments, input, &map);
    else if (layers) status = read_ascend(layers, input, &map);
    else
        status = LPLB_FAIL(LPLB_FORMAT,
                           "%s: JSON without physical_to_logical_map, model_maps, "
                           "initial_global_assignments or layer_list%s",
                           input->name,
                           json_object_get(document, "logical_count")
                               ? "; it holds loads: `lplb place` makes a placement of them"
                               : "");
    if (status == LPLB_OK) status = lplb__slot_map_finish(&map, ranks, out);
    lplb__slot_map_destroy(&map);
    json_decref(document);
    return status;
}
