/* Writes placements as the engines read them. */
#include <lplb/trace.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "io/array.h"
#include "io/output.h"

static const char *const format_names[] = {"SGLang",      "vLLM", "TensorRT-LLM",
                                           "vllm-ascend", "omni", "lplb"};

static bool equal_ranks(const lplb_placement *p) {
    for (int32_t r = 0; r < p->ranks; r++)
        if ((int64_t)(p->rank_offset[r + 1] - p->rank_offset[r]) * p->ranks != p->slots)
            return false;
    return true;
}

/* Formats that say per rank and expert only whether it is there. */
static lplb_status check_no_doubles(const lplb_placement *p, const char *name) {
    int64_t *seen_at; /* [E] 1 + (layer, rank) of the last slot with the expert */
    LPLB_TRY(LPLB_CALLOC(seen_at, p->experts));
    lplb_status status = LPLB_OK;
    for (int32_t l = 0; l < p->layers; l++)
        for (int32_t r = 0; r < p->ranks; r++)
            for (int32_t i = p->rank_offset[r]; i < p->rank_offset[r + 1]; i++) {
                int32_t e = p->physical_to_logical[(int64_t)l * p->slots + i];
                int64_t here = 1 + (int64_t)l * p->ranks + r;
                if (e >= 0 && seen_at[e] == here && status == LPLB_OK)
                    status = LPLB_FAIL(LPLB_UNSUPPORTED,
                                       "%s cannot hold two copies of expert %d "
                                       "on rank %d (layer %d)",
                                       name, e, r, l);
                if (e >= 0) seen_at[e] = here;
            }
    lplb__free(seen_at);
    return status;
}

/* What the engines' formats have no words for. */
static lplb_status check_engine(const lplb_placement *p, lplb_placement_format format) {
    const char *name = format_names[format];
    bool omni = format == LPLB_PLACEMENT_OMNI;
    if (!omni && !equal_ranks(p))
        return LPLB_FAIL(LPLB_UNSUPPORTED, "%s cannot hold ranks with different numbers of slots",
                         name);
    for (int64_t i = 0; i < (int64_t)p->layers * p->slots && !omni; i++)
        if (p->physical_to_logical[i] < 0)
            return LPLB_FAIL(LPLB_UNSUPPORTED, "%s cannot hold empty slots (layer %lld, slot %lld)",
                             name, (long long)(i / p->slots), (long long)(i % p->slots));
    if (omni || format == LPLB_PLACEMENT_VLLM_ASCEND) return check_no_doubles(p, name);
    return LPLB_OK;
}

static void print_row(FILE *file, const int32_t *row, int32_t n) {
    putc('[', file);
    for (int32_t i = 0; i < n; i++) fprintf(file, "%s%d", i ? ", " : "", row[i]);
    putc(']', file);
}

static void print_map(FILE *file, const lplb_placement *p, const char *between) {
    fprintf(file, "\"physical_to_logical_map\": [");
    for (int32_t l = 0; l < p->layers; l++) {
        if (l) fputs(between, file);
        print_row(file, p->physical_to_logical + (int64_t)l * p->slots, p->slots);
    }
    putc(']', file);
}

/* SGLang passes the members on as arguments of a function: there must be no other key. */
static void print_sglang(FILE *file, const lplb_placement *p) {
    putc('{', file);
    print_map(file, p, ",\n");
    fprintf(file, "}\n");
}

static void print_lplb(FILE *file, const lplb_placement *p) {
    fprintf(file,
            "{\"schema\": \"lplb.placement/1\", \"ranks\": %d, \"experts\": %d,\n"
            "\"slots_per_rank\": [",
            p->ranks, p->experts);
    for (int32_t r = 0; r < p->ranks; r++)
        fprintf(file, "%s%d", r ? ", " : "", p->rank_offset[r + 1] - p->rank_offset[r]);
    fprintf(file, "],\n");
    print_map(file, p, ",\n");
    fprintf(file, "}\n");
}

/* vLLM has two proposals for a map that is read at start, a record in a line of its own and a
 * document; neither minds the other's keys, so one line serves both. */
static void print_vllm(FILE *file, const lplb_placement *p) {
    fprintf(file,
            "{\"record_type\": \"eplb_initial_mapping\", \"version\": 1, "
            "\"format\": \"vllm_offline_eplb_physical_to_logical\", "
            "\"num_moe_layers\": %d, \"num_logical_experts\": %d, "
            "\"num_physical_experts\": %d, \"num_redundant_experts\": %d, "
            "\"num_slots\": %d, \"initial_global_assignments\": {",
            p->layers, p->experts, p->slots, p->slots - p->experts, p->slots);
    for (int32_t l = 0; l < p->layers; l++) {
        fprintf(file, "%s\"%d\": ", l ? ", " : "", l);
        print_row(file, p->physical_to_logical + (int64_t)l * p->slots, p->slots);
    }
    fprintf(file, "}, ");
    print_map(file, p, ", ");
    fprintf(file, "}\n");
}

/* No ep_size: current TensorRT-LLM refuses keys that it does not know. */
static void print_trtllm(FILE *file, const lplb_placement *p) {
    fprintf(file, "initial_global_assignments:\n");
    for (int32_t l = 0; l < p->layers; l++) {
        fprintf(file, "  %d: ", l);
        print_row(file, p->physical_to_logical + (int64_t)l * p->slots, p->slots);
        putc('\n', file);
    }
    fprintf(file, "layer_updates_per_iter: 0\nnum_slots: %d\n", p->slots);
}

static void print_ascend(FILE *file, const lplb_placement *p) {
    fprintf(file, "{\"moe_layer_count\": %d, \"layer_list\": [", p->layers);
    for (int32_t l = 0; l < p->layers; l++) {
        fprintf(file, "%s\n{\"layer_id\": %d, \"device_count\": %d, \"device_list\": [",
                l ? "," : "", l, p->ranks);
        const int32_t *map = p->physical_to_logical + (int64_t)l * p->slots;
        for (int32_t r = 0; r < p->ranks; r++) {
            fprintf(file, "%s\n{\"device_id\": %d, \"device_expert\": ", r ? "," : "", r);
            print_row(file, map + p->rank_offset[r], p->rank_offset[r + 1] - p->rank_offset[r]);
            putc('}', file);
        }
        fprintf(file, "]}");
    }
    fprintf(file, "]}\n");
}

static lplb_status write_omni(const lplb_placement *p, const char *path) {
    unsigned char *flags;
    int64_t layers = p->layers, experts = p->experts;
    LPLB_TRY(LPLB_CALLOC(flags, p->ranks * layers * experts));
    for (int64_t l = 0; l < layers; l++)
        for (int32_t r = 0; r < p->ranks; r++)
            for (int32_t i = p->rank_offset[r]; i < p->rank_offset[r + 1]; i++) {
                int32_t expert = p->physical_to_logical[l * p->slots + i];
                if (expert >= 0) flags[(r * layers + l) * experts + expert] = 1;
            }
    lplb__tensor tensor = {.name = "placement",
                           .dtype = LPLB_UINT8,
                           .dims = 3,
                           .shape = {p->ranks, layers, experts},
                           .items = flags};
    const char *dot = strrchr(path, '.');
    lplb_status status = dot && !strcmp(dot, ".npz") ? lplb__npz_write(path, &tensor, 1)
                                                     : lplb__npy_write(path, &tensor);
    lplb__free(flags);
    return status;
}

lplb_status lplb_placement_write(const lplb_placement *placement, lplb_placement_format format,
                                 const char *path) {
    if (format < LPLB_PLACEMENT_SGLANG || format > LPLB_PLACEMENT_LPLB)
        return LPLB_FAIL(LPLB_INVALID, "placement format %d is unknown", (int)format);
    LPLB_TRY(lplb_placement_validate(placement));
    if (format != LPLB_PLACEMENT_LPLB) LPLB_TRY(check_engine(placement, format));
    if (format == LPLB_PLACEMENT_OMNI) return write_omni(placement, path);
    static void (*const print[])(FILE *, const lplb_placement *) = {
        [LPLB_PLACEMENT_SGLANG] = print_sglang,
        [LPLB_PLACEMENT_VLLM] = print_vllm,
        [LPLB_PLACEMENT_TRTLLM] = print_trtllm,
        [LPLB_PLACEMENT_VLLM_ASCEND] = print_ascend,
        [LPLB_PLACEMENT_LPLB] = print_lplb};
    lplb__output output;
    LPLB_TRY(lplb__output_open(path, &output));
    print[format](output.file, placement);
    return lplb__output_commit(&output);
}
