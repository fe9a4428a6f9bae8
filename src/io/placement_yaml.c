/* TensorRT-LLM's moe_load_balancer.yaml: {initial_global_assignments: {LAYER: [P]}, num_slots,
 * layer_updates_per_iter[, ep_size]}. Layers are kept in ascending order of their numbers. Only the
 * events of libyaml are used and aliases are refused, so a small file stays small in memory. */
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "base/mem.h"
#include "io/placement_file.h"

typedef struct layer_row {
    int64_t number, first; /* in ids */
} layer_row;

typedef struct reader {
    const lplb__input *input;
    yaml_parser_t parser;
    yaml_event_t event;
    int32_t *ids;
    int64_t n_ids, id_capacity;
    layer_row *layer;
    int64_t layers, layer_capacity;
    int64_t slots, num_slots, ep_size;
} reader;

static lplb_status at_mark(const reader *r, const char *what) {
    return LPLB_FAIL(LPLB_FORMAT, "%s, line %zu: %s", r->input->name, r->event.start_mark.line + 1,
                     what);
}

static lplb_status next(reader *r) {
    yaml_event_delete(&r->event);
    if (!yaml_parser_parse(&r->parser, &r->event)) {
        lplb_status code = r->parser.error == YAML_MEMORY_ERROR ? LPLB_NO_MEMORY : LPLB_FORMAT;
        return LPLB_FAIL(code, "%s, line %zu: %s", r->input->name, r->parser.problem_mark.line + 1,
                         r->parser.problem ? r->parser.problem : "bad YAML");
    }
    if (r->event.type == YAML_ALIAS_EVENT) return at_mark(r, "aliases are not read");
    return LPLB_OK;
}

static const char *text_of(const reader *r) {
    return r->event.type == YAML_SCALAR_EVENT ? (const char *)r->event.data.scalar.value : NULL;
}

static lplb_status whole(const reader *r, int64_t low, int64_t *out) {
    const char *text = text_of(r);
    char *end;
    long long value = text ? strtoll(text, &end, 10) : 0;
    if (!text || end == text || *end || value < low || value >= INT32_MAX)
        return at_mark(r, "a whole number is wanted");
    *out = value;
    return LPLB_OK;
}

/* The value that starts at the present event, whatever it is. */
static lplb_status skip_value(reader *r) {
    int64_t depth = 0;
    for (;;) {
        yaml_event_type_t type = r->event.type;
        depth += type == YAML_MAPPING_START_EVENT || type == YAML_SEQUENCE_START_EVENT;
        depth -= type == YAML_MAPPING_END_EVENT || type == YAML_SEQUENCE_END_EVENT;
        if (depth == 0) return LPLB_OK;
        LPLB_TRY(next(r));
    }
}

/* Room for one more item; capacity in items. */
static lplb_status grow(const reader *r, void **items, int64_t used, int64_t *capacity,
                        size_t item_bytes) {
    if (used < *capacity) return LPLB_OK;
    int64_t wanted = *capacity ? 2 * *capacity : 256;
    if (wanted > r->input->max_bytes / (int64_t)item_bytes)
        return LPLB_FAIL(LPLB_RANGE, "%s needs more than the limit of %lld bytes", r->input->name,
                         (long long)r->input->max_bytes);
    void *grown = lplb__realloc(*items, (size_t)wanted * item_bytes);
    if (!grown) return LPLB_FAIL(LPLB_NO_MEMORY, "%s: not enough memory", r->input->name);
    *items = grown;
    *capacity = wanted;
    return LPLB_OK;
}

/* [e, e, ...] */
static lplb_status read_row(reader *r) {
    if (r->event.type != YAML_SEQUENCE_START_EVENT)
        return at_mark(r, "a list of experts is wanted");
    int64_t first = r->n_ids;
    for (;;) {
        LPLB_TRY(next(r));
        if (r->event.type == YAML_SEQUENCE_END_EVENT) break;
        int64_t id = 0;
        LPLB_TRY(whole(r, 0, &id));
        LPLB_TRY(grow(r, (void **)&r->ids, r->n_ids, &r->id_capacity, sizeof *r->ids));
        r->ids[r->n_ids++] = (int32_t)id;
    }
    if (r->layers == 1) r->slots = r->n_ids - first;
    if (r->n_ids - first != r->slots || r->slots == 0)
        return at_mark(r, "the layers must list equally many slots, at least one");
    return LPLB_OK;
}

/* {layer: [..], ...} */
static lplb_status read_assignments(reader *r) {
    if (r->event.type != YAML_MAPPING_START_EVENT)
        return at_mark(r, "initial_global_assignments must map layers to lists");
    if (r->layers) return at_mark(r, "initial_global_assignments comes twice");
    for (;;) {
        LPLB_TRY(next(r));
        if (r->event.type == YAML_MAPPING_END_EVENT) return LPLB_OK;
        int64_t number = 0;
        LPLB_TRY(whole(r, 0, &number));
        LPLB_TRY(grow(r, (void **)&r->layer, r->layers, &r->layer_capacity, sizeof *r->layer));
        r->layer[r->layers++] = (layer_row){number, r->n_ids};
        LPLB_TRY(next(r));
        LPLB_TRY(read_row(r));
    }
}

static lplb_status read_document(reader *r) {
    do LPLB_TRY(next(r));
    while (r->event.type == YAML_STREAM_START_EVENT || r->event.type == YAML_DOCUMENT_START_EVENT);
    if (r->event.type != YAML_MAPPING_START_EVENT)
        return at_mark(r, "no placement: keys like initial_global_assignments are wanted");
    for (;;) {
        LPLB_TRY(next(r));
        if (r->event.type == YAML_MAPPING_END_EVENT) break;
        const char *key = text_of(r);
        if (!key) return at_mark(r, "a plain key is wanted");
        bool assignments = !strcmp(key, "initial_global_assignments");
        int64_t *number = !strcmp(key, "num_slots") ? &r->num_slots
                          : !strcmp(key, "ep_size") ? &r->ep_size
                                                    : NULL;
        LPLB_TRY(next(r));
        LPLB_TRY(assignments ? read_assignments(r) : number ? whole(r, 1, number) : skip_value(r));
    }
    if (!r->layers)
        return LPLB_FAIL(LPLB_FORMAT, "%s: YAML without initial_global_assignments",
                         r->input->name);
    if (r->num_slots && r->num_slots != r->slots)
        return LPLB_FAIL(LPLB_FORMAT, "%s: num_slots is %lld, the layers list %lld", r->input->name,
                         (long long)r->num_slots, (long long)r->slots);
    return LPLB_OK;
}

static int compare_layers(const void *a, const void *b) {
    int64_t x = ((const layer_row *)a)->number, y = ((const layer_row *)b)->number;
    return (x > y) - (x < y);
}

static lplb_status build(reader *r, int32_t ranks, lplb_placement **out) {
    lplb__slot_map map = {0};
    qsort(r->layer, (size_t)r->layers, sizeof *r->layer, compare_layers);
    for (int64_t l = 1; l < r->layers; l++)
        if (r->layer[l].number == r->layer[l - 1].number)
            return LPLB_FAIL(LPLB_FORMAT, "%s: layer %lld comes twice", r->input->name,
                             (long long)r->layer[l].number);
    lplb_status status = lplb__slot_map_create(&map, r->input, r->layers, r->slots);
    for (int64_t l = 0; l < r->layers && status == LPLB_OK; l++)
        memcpy(map.map + l * r->slots, r->ids + r->layer[l].first,
               (size_t)r->slots * sizeof *map.map);
    map.ranks = r->ep_size;
    if (status == LPLB_OK) status = lplb__slot_map_finish(&map, ranks, out);
    lplb__slot_map_destroy(&map);
    return status;
}

lplb_status lplb__placement_from_yaml(const lplb__input *input, int32_t ranks,
                                      lplb_placement **out) {
    char *text;
    LPLB_TRY(lplb__input_load(input, &text));
    reader r = {.input = input};
    lplb_status status;
    if (yaml_parser_initialize(&r.parser)) {
        yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, (size_t)input->bytes);
        status = read_document(&r);
        if (status == LPLB_OK) status = build(&r, ranks, out);
        yaml_event_delete(&r.event);
        yaml_parser_delete(&r.parser);
    } else {
        status = LPLB_FAIL(LPLB_NO_MEMORY, "cannot start the YAML parser");
    }
    lplb__free(r.ids);
    lplb__free(r.layer);
    lplb__free(text);
    return status;
}
