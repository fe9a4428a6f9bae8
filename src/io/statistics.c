/* TensorRT-LLM expert statistics: a folder with meta_info.json and rank*.safetensors, whose tensors
 * "{iteration}_{layer}" [E] count the tokens that the rank's tokens sent to each expert. The ranks
 * add up. */
#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "io/json.h"
#include "io/trace_build.h"

enum { MAX_RANK_FILES = 4096 };

/* "12_3": iteration 12, layer 3. */
static bool parse_key(const char *key, int64_t *iteration, int64_t *layer) {
    int64_t value[2];
    for (int part = 0; part < 2; part++) {
        const char *start = key;
        value[part] = 0;
        while (*key >= '0' && *key <= '9' && key - start < 10)
            value[part] = 10 * value[part] + (*key++ - '0');
        if (key == start || *key != (part ? '\0' : '_')) return false;
        key++;
    }
    *iteration = value[0];
    *layer = value[1];
    return value[1] <= INT32_MAX;
}

bool lplb__is_statistics(const lplb__arrays *arrays) {
    int64_t iteration, layer;
    for (int64_t i = 0; i < arrays->n; i++)
        if (!parse_key(arrays->array[i].name, &iteration, &layer)) return false;
    return arrays->n > 0;
}

/* The iterations and layers of all files, ascending, and the one number of experts. */
static lplb_status survey(const lplb__arrays *files, int64_t n, const char *name, int64_t **steps,
                          int64_t *n_steps, int64_t **layers, int64_t *n_layers, int64_t *experts) {
    int64_t total = 0, used = 0;
    for (int64_t f = 0; f < n; f++) total += files[f].n;
    LPLB_TRY(LPLB_CALLOC(*steps, total));
    LPLB_TRY(LPLB_CALLOC(*layers, total));
    for (int64_t f = 0; f < n; f++)
        for (int64_t i = 0; i < files[f].n; i++, used++) {
            const lplb__array *array = &files[f].array[i];
            if (!parse_key(array->name, &(*steps)[used], &(*layers)[used]))
                return LPLB_FAIL(LPLB_FORMAT, "%s: tensor '%.80s' is not named ITERATION_LAYER",
                                 files[f].input->name, array->name);
            if (array->dims != 1 || (*experts && array->items != *experts))
                return LPLB_FAIL(LPLB_FORMAT, "%s: tensor %s has %lld items, [%lld] is wanted",
                                 files[f].input->name, array->name, (long long)array->items,
                                 (long long)*experts);
            *experts = array->items;
        }
    *n_steps = lplb__sort_unique(*steps, total);
    *n_layers = lplb__sort_unique(*layers, total);
    if (total == 0) return LPLB_FAIL(LPLB_FORMAT, "%s holds no statistics", name);
    return LPLB_OK;
}

static lplb_status add_tensor(const lplb__arrays *file, const lplb__array *array, int64_t *row) {
    int64_t *counts;
    LPLB_TRY(lplb__array_read(file, array, INT32_MAX, &counts));
    lplb_status status = LPLB_OK;
    for (int64_t e = 0; e < array->items && status == LPLB_OK; e++) {
        if (counts[e] < 0 || counts[e] > LPLB__MAX_TOTAL - row[e])
            status = LPLB_FAIL(LPLB_RANGE,
                               "%s: tensor %s, expert %lld: %lld is negative or passes "
                               "2^62",
                               file->input->name, array->name, (long long)e, (long long)counts[e]);
        else row[e] += counts[e];
    }
    lplb__free(counts);
    return status;
}

lplb_status lplb__trace_from_statistics(const lplb__arrays *files, int64_t n, const char *name,
                                        int64_t experts, const lplb_trace_options *options,
                                        lplb_trace **out) {
    int64_t *steps = NULL, *layers = NULL, n_steps = 0, n_layers = 0, step = 0, layer = 0;
    lplb_trace *trace = NULL;
    lplb_status status;
    LPLB_TRY_GOTO(status, survey(files, n, name, &steps, &n_steps, &layers, &n_layers, &experts),
                  done);
    LPLB_TRY_GOTO(
        status, lplb__trace_create_counts(name, n_steps, n_layers, experts, options, &trace), done);
    for (int64_t l = 0; l < n_layers; l++) trace->layer_id[l] = (int32_t)layers[l];
    for (int64_t f = 0; f < n; f++)
        for (int64_t i = 0; i < files[f].n; i++) {
            const lplb__array *array = &files[f].array[i];
            (void)parse_key(array->name, &step, &layer);
            int64_t s = lplb__position(steps, n_steps, step);
            int64_t l = lplb__position(layers, n_layers, layer);
            LPLB_TRY_GOTO(
                status, add_tensor(&files[f], array, &trace->counts[(s * n_layers + l) * experts]),
                done);
        }
    LPLB_TRY_GOTO(status, lplb__trace_check_counts(name, trace, options), done);
    status = lplb__trace_describe(trace, "%.200s: statistics of %lld ranks [%lld][%lld][%lld]",
                                  name, (long long)n, (long long)n_steps, (long long)n_layers,
                                  (long long)experts);
done:
    lplb__free(steps);
    lplb__free(layers);
    if (status != LPLB_OK) {
        lplb_trace_destroy(trace);
        trace = NULL;
    }
    *out = trace;
    return status;
}

/* ---- the folder ---- */

/* "rank7.safetensors"; not cooccurrence_rank7.safetensors, rank7_raw.safetensors and the like. */
static bool is_rank_file(const char *file) {
    if (strncmp(file, "rank", 4)) return false;
    const char *end = file + 4;
    while (*end >= '0' && *end <= '9') end++;
    return end > file + 4 && !strcmp(end, ".safetensors");
}

static int compare_paths(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static lplb_status join(const char *folder, const char *file, char **out) {
    size_t bytes = strlen(folder) + strlen(file) + 2;
    LPLB_TRY(LPLB_CALLOC(*out, bytes));
    snprintf(*out, bytes, "%s/%s", folder, file);
    return LPLB_OK;
}

/* Sorted, so that messages and results do not depend on the folder's order. */
static lplb_status list_rank_files(const char *folder, char **paths, int64_t *n) {
    DIR *entries = opendir(folder);
    if (!entries) return LPLB_FAIL(LPLB_IO, "cannot open %s: %s", folder, strerror(errno));
    lplb_status status = LPLB_OK;
    for (struct dirent *entry; status == LPLB_OK && (entry = readdir(entries));) {
        if (!is_rank_file(entry->d_name)) continue;
        if (*n == MAX_RANK_FILES)
            status = LPLB_FAIL(LPLB_RANGE, "%s: more than %d rank files", folder, MAX_RANK_FILES);
        else if ((status = join(folder, entry->d_name, &paths[*n])) == LPLB_OK) ++*n;
    }
    closedir(entries);
    if (status == LPLB_OK && *n == 0)
        status = LPLB_FAIL(LPLB_FORMAT, "%s is a folder without rank*.safetensors", folder);
    qsort(paths, (size_t)*n, sizeof *paths, compare_paths);
    return status;
}

/* num_experts of meta_info.json; rank 0 writes it, so a folder of other ranks' files lacks it. */
static lplb_status read_meta(const char *folder, int64_t max_bytes, int64_t *experts) {
    char *path;
    lplb__input input;
    json_t *meta = NULL;
    LPLB_TRY(join(folder, "meta_info.json", &path));
    lplb_status status = LPLB_OK;
    bool exists = access(path, F_OK) == 0;
    if (exists) status = lplb__input_open(path, max_bytes, &input);
    if (exists && status == LPLB_OK) {
        status = lplb__json_load(&input, &meta);
        if (status == LPLB_OK)
            status = lplb__json_whole(json_object_get(meta, "num_experts"), path, "num_experts", 1,
                                      INT32_MAX, experts);
        json_decref(meta);
        lplb__input_close(&input);
    }
    lplb__free(path);
    return status;
}

lplb_status lplb__trace_from_folder(const char *path, const lplb_trace_options *options,
                                    lplb_trace **out) {
    int64_t n = 0, opened = 0, experts = 0, max_bytes = lplb__trace_max_bytes(options);
    char **paths = NULL;
    lplb__input *inputs = NULL;
    lplb__arrays *files = NULL;
    lplb_status status;
    LPLB_TRY_GOTO(status, LPLB_CALLOC(paths, MAX_RANK_FILES), done);
    LPLB_TRY_GOTO(status, list_rank_files(path, paths, &n), done);
    LPLB_TRY_GOTO(status, read_meta(path, max_bytes, &experts), done);
    LPLB_TRY_GOTO(status, LPLB_CALLOC(inputs, n), done);
    LPLB_TRY_GOTO(status, LPLB_CALLOC(files, n), done);
    for (; opened < n; opened++) {
        LPLB_TRY_GOTO(status, lplb__input_open(paths[opened], max_bytes, &inputs[opened]), done);
        status = lplb__arrays_open_safetensors(&inputs[opened], &files[opened]);
        if (status != LPLB_OK) {
            lplb__input_close(&inputs[opened]);
            goto done;
        }
    }
    status = lplb__trace_from_statistics(files, n, path, experts, options, out);
done:
    for (int64_t i = 0; i < opened; i++) {
        lplb__arrays_close(&files[i]);
        lplb__input_close(&inputs[i]);
    }
    for (int64_t i = 0; i < n; i++) lplb__free(paths[i]);
    lplb__free(paths);
    lplb__free(inputs);
    lplb__free(files);
    return status;
}
