#include "train/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "train/tensors.h"

enum { STATES = 3 /* weights, two moments */ };

/* ---- what a checkpoint holds: visited in file order by writer and reader ---- */

static const char where[] = "at the checkpoint";
static const char *const moment[] = {"", "optimizer.m1.", "optimizer.m2."};

static void expert_name(const trainer *t, int32_t layer, int32_t expert, int part, int state,
                        char *name) {
    static const char *const parts[] = {"gate", "up", "down"};
    const param_layout *p = &t->model->layout;
    int32_t l = 0;
    while (p->layer[l].moe != layer) l++;
    snprintf(name, TENSOR_NAME_BYTES, "%smodel.layers.%d.mlp.experts.%d.%s_proj.weight",
             moment[state], l, expert, parts[part]);
}

static void expert_shape(const trainer *t, int part, int64_t *rows, int64_t *cols) {
    int64_t D = t->config.model.width, F = t->config.model.expert_width;
    *rows = part == 2 ? D : F;
    *cols = part == 2 ? F : D;
}

/* ---- writing ---- */

/* states: STATES of a checkpoint, 1 for weights alone. */
static lplb_status declare_replicated(tensor_writer *w, const param_layout *p, int states) {
    char name[TENSOR_NAME_BYTES];
    for (int s = 0; s < states; s++)
        for (int32_t i = 0; i < p->n_params; i++) {
            snprintf(name, sizeof name, "%s%s", moment[s], p->param[i].name);
            LPLB_TRY(tensor_declare(w, name, REAL_CODE, p->param[i].rows, p->param[i].cols,
                                    sizeof(real)));
        }
    return LPLB_OK;
}

static lplb_status declare_experts(tensor_writer *w, const trainer *t, int states) {
    char name[TENSOR_NAME_BYTES];
    for (int32_t l = 0; l < t->model->layout.moe_layers; l++)
        for (int32_t e = 0; e < t->config.model.experts; e++)
            for (int s = 0; s < states; s++)
                for (int part = 0; part < 3; part++) {
                    int64_t rows, cols;
                    expert_name(t, l, e, part, s, name);
                    expert_shape(t, part, &rows, &cols);
                    LPLB_TRY(tensor_declare(w, name, REAL_CODE, rows, cols, sizeof(real)));
                }
    return LPLB_OK;
}

static lplb_status put_header(tensor_writer *w, const trainer *t) {
    const param_layout *p = &t->model->layout;
    const lplb_placement *placement = t->model->experts->placement;
    char step[32], ranks[32], seed[32], sequences[32], context[32];
    char shape[IDENTITY_BYTES], training[IDENTITY_BYTES];
    LPLB_TRY(declare_replicated(w, p, STATES));
    LPLB_TRY(declare_experts(w, t, STATES));
    LPLB_TRY(tensor_declare(w, "lplb.selection_bias", REAL_CODE, p->moe_layers,
                            t->config.model.experts, sizeof(real)));
    LPLB_TRY(tensor_declare(w, "lplb.placement", "I32", placement->layers, placement->slots,
                            sizeof(int32_t)));
    if (t->balancer)
        LPLB_TRY(tensor_declare(w, "lplb.manager", "U8", 1, balancer_save_bytes(t->balancer), 1));
    LPLB_TRY(tensor_declare_sum(w));
    snprintf(step, sizeof step, "%lld", (long long)t->step);
    snprintf(ranks, sizeof ranks, "%d", t->model->experts->group->size);
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)t->config.seed);
    snprintf(sequences, sizeof sequences, "%lld", (long long)t->config.global_batch);
    snprintf(context, sizeof context, "%d", t->config.model.context);
    identity_model(&t->config.model, shape);
    identity_training(&t->config, training);
    return tensor_put_header(w, json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "schema",
                                          "lplb.checkpoint/1", "step", step, "expert_ranks", ranks,
                                          "model", shape, "training", training, "seed", seed,
                                          "global_batch", sequences, "context", context,
                                          "text_sha256", t->config.text_digest));
}

static lplb_status put_replicated(tensor_writer *w, const trainer *t, int states) {
    const param_layout *p = &t->model->layout;
    const real *state[STATES] = {t->model->param, t->optimizer->m1, t->optimizer->m2};
    for (int s = 0; s < states; s++)
        for (int32_t i = 0; i < p->n_params; i++)
            LPLB_TRY(tensor_put(w, state[s] + p->param[i].offset,
                                p->param[i].rows * p->param[i].cols * (int64_t)sizeof(real)));
    return LPLB_OK;
}

/* What it takes to bring one layer's experts to rank 0; the same for every layer. */
typedef struct gathering {
    int64_t *send_rows, *recv_rows; /* [ranks] */
    int64_t *order;                 /* [experts] row of each at rank 0 */
    int states;                     /* of a row: weights, first, second moments */
    buffer send, recv;              /* rows */
} gathering;

static lplb_status open_gathering(gathering *g, const trainer *t, bool leader) {
    const experts *x = t->model->experts;
    int64_t row = g->states * x->expert_items;
    LPLB_TRY(LPLB_CALLOC(g->send_rows, x->group->size));
    LPLB_TRY(LPLB_CALLOC(g->recv_rows, x->group->size));
    LPLB_TRY(LPLB_CALLOC(g->order, x->placement->experts));
    LPLB_TRY(buffer_need(&g->send, x->local_slots * row));
    return leader ? buffer_need(&g->recv, x->placement->experts * row) : LPLB_OK;
}

static void close_gathering(gathering *g) {
    lplb__free(g->send_rows);
    lplb__free(g->recv_rows);
    lplb__free(g->order);
    buffer_free(&g->send);
    buffer_free(&g->recv);
}

/* The experts of one layer come to rank 0 from the hosts of their lowest slots; w is NULL
 * elsewhere. */
static lplb_status put_layer(tensor_writer *w, trainer *t, int32_t layer, gathering *g) {
    experts *x = t->model->experts;
    lplb__group *group = x->group;
    const lplb_placement *p = x->placement;
    const int32_t *map = p->physical_to_logical + (int64_t)layer * p->slots;
    int64_t items = x->expert_items, row = g->states * items, next = 0;
    const real *states[] = {x->weight, t->optimizer->expert_m1, t->optimizer->expert_m2};
    memset(g->send_rows, 0, sizeof(int64_t) * (size_t)group->size);
    memset(g->recv_rows, 0, sizeof(int64_t) * (size_t)group->size);
    for (int32_t r = 0; r < group->size; r++)
        for (int32_t s = p->rank_offset[r]; s < p->rank_offset[r + 1]; s++) {
            bool lowest = map[s] >= 0;
            for (int32_t q = 0; q < s && lowest; q++) lowest = map[q] != map[s];
            if (!lowest) continue;
            g->order[map[s]] = next++;
            if (w) g->recv_rows[r]++;
            if (r != group->rank) continue;
            int64_t at = ((int64_t)layer * x->local_slots + s - x->first_slot) * items;
            for (int i = 0; i < g->states; i++)
                memcpy(g->send.data + g->send_rows[0] * row + i * items, states[i] + at,
                       sizeof(real) * (size_t)items);
            g->send_rows[0]++;
        }
    LPLB_TRY(group->table->all_to_all_rows(group, g->send.data, g->send_rows, g->recv.data,
                                           g->recv_rows, row * (int64_t)sizeof(real)));
    for (int32_t e = 0; w && e < p->experts; e++)
        LPLB_TRY(tensor_put(w, g->recv.data + g->order[e] * row, row * (int64_t)sizeof(real)));
    return LPLB_OK;
}

/* A full disk at rank 0 stops all at the same layer: nobody waits for rows that nobody takes. */
static lplb_status put_experts(tensor_writer *w, trainer *t, int states) {
    lplb__group *group = t->model->experts->group;
    gathering g = {.states = states};
    lplb_status status = open_gathering(&g, t, w != NULL);
    for (int32_t l = 0; l < t->model->layout.moe_layers; l++) {
        status = lplb__group_agree(group, status, where);
        if (status != LPLB_OK) break;
        status = put_layer(w, t, l, &g);
    }
    close_gathering(&g);
    return status;
}

/* The same on every rank. */
static lplb_status put_manager(tensor_writer *w, const trainer *t) {
    int64_t bytes = balancer_save_bytes(t->balancer);
    if (!t->balancer) return LPLB_OK;
    unsigned char *state;
    LPLB_TRY(LPLB_CALLOC(state, bytes));
    lplb_status status = balancer_save(t->balancer, state, bytes);
    if (status == LPLB_OK) status = tensor_put(w, state, bytes);
    lplb__free(state);
    return status;
}

static lplb_status put_rest(tensor_writer *w, const trainer *t) {
    const lplb_placement *p = t->model->experts->placement;
    int64_t cells = (int64_t)p->layers * p->experts;
    LPLB_TRY(tensor_put(w, t->model->bias, cells * (int64_t)sizeof(real)));
    LPLB_TRY(tensor_put(w, p->physical_to_logical,
                        (int64_t)p->layers * p->slots * (int64_t)sizeof(int32_t)));
    LPLB_TRY(put_manager(w, t));
    return tensor_put_sum(w);
}

static void file_name(int64_t step, char *name) {
    snprintf(name, TENSOR_NAME_BYTES, "step-%08lld.safetensors", (long long)step);
}

static lplb_status write_manifest(const trainer *t, const char *folder, uint32_t crc) {
    char path[TENSOR_PATH_BYTES], name[TENSOR_NAME_BYTES];
    file_name(t->step, name);
    snprintf(path, sizeof path, "%s/latest.json", folder);
    json_t *manifest =
        json_pack("{s:s, s:s, s:I, s:I}", "schema", "lplb.checkpoint_manifest/1", "file", name,
                  "step", (json_int_t)t->step, "crc32", (json_int_t)crc);
    char *text = manifest ? json_dumps(manifest, JSON_INDENT(1)) : NULL;
    json_decref(manifest);
    if (!text) return LPLB_FAIL(LPLB_NO_MEMORY, "no memory for the manifest");
    lplb_status status = lplb__output_write(path, text, strlen(text));
    free(text);
    return status;
}

/* The steps of the folder's files in `step` [n], rising; lplb__free it. n is 0 without a folder. */
static lplb_status list_steps(const char *folder, int64_t **step, int *n) {
    struct dirent **entries;
    int found = scandir(folder, &entries, NULL, alphasort);
    *n = 0;
    lplb_status status = LPLB_CALLOC(*step, found > 0 ? found : 1);
    for (int i = 0; i < found; i++) {
        long long at;
        char name[TENSOR_NAME_BYTES];
        if (status == LPLB_OK && sscanf(entries[i]->d_name, "step-%lld.safetensors", &at) == 1) {
            file_name(at, name);
            if (!strcmp(name, entries[i]->d_name)) (*step)[(*n)++] = at;
        }
        free(entries[i]);
    }
    if (found >= 0) free(entries);
    return status;
}

/* Keeps the checkpoint of this step and this run's one before, or what is next to it where the run
 * has none; what is later is not ours. */
static lplb_status remove_old(const char *folder, int64_t step, int64_t before) {
    int64_t *steps;
    int n;
    LPLB_TRY(list_steps(folder, &steps, &n));
    for (int i = n - 1; i >= 0; i--) {
        char name[TENSOR_NAME_BYTES], path[TENSOR_PATH_BYTES];
        if (steps[i] < step && before == 0) before = steps[i];
        if (steps[i] >= step || steps[i] == before) continue;
        file_name(steps[i], name);
        snprintf(path, sizeof path, "%s/%s", folder, name);
        remove(path);
    }
    lplb__free(steps);
    return LPLB_OK;
}

static lplb_status make_folder(const char *folder) {
    if (!mkdir(folder, 0777) || errno == EEXIST) return LPLB_OK;
    return LPLB_FAIL(LPLB_IO, "cannot make the folder %s: %s", folder, strerror(errno));
}

lplb_status checkpoint_prepare(const char *folder, bool resumes, int64_t step) {
    char path[TENSOR_PATH_BYTES];
    int64_t latest;
    lplb__output probe;
    LPLB_TRY(make_folder(folder));
    if (snprintf(path, sizeof path, "%s/latest.json", folder) >= (int)sizeof path)
        return LPLB_FAIL(LPLB_INVALID, "the folder name '%.40s...' is too long", folder);
    LPLB_TRY(lplb__output_open(path, &probe));
    lplb__output_abort(&probe);
    if (step > 0) return LPLB_OK;
    LPLB_TRY(checkpoint_latest(folder, &latest));
    if (latest < 0 || resumes) return LPLB_OK;
    return LPLB_FAIL(LPLB_INVALID,
                     "%s has a checkpoint of step %lld: go on from it with --resume, or name "
                     "another folder",
                     folder, (long long)latest);
}

/* The leader's part up to the experts. */
static lplb_status open_writer(tensor_writer *w, const trainer *t, const char *folder) {
    char path[TENSOR_PATH_BYTES], name[TENSOR_NAME_BYTES];
    LPLB_TRY(make_folder(folder));
    file_name(t->step, name);
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
        return LPLB_FAIL(LPLB_INVALID, "the folder name '%.40s...' is too long", folder);
    LPLB_TRY(tensor_writer_open(w, path));
    LPLB_TRY(put_header(w, t));
    return put_replicated(w, t, STATES);
}

lplb_status checkpoint_save(trainer *t, const char *folder) {
    lplb__group *world = t->grid.world;
    bool leader = world->rank == 0, in_first_replica = t->grid.replica->rank == 0;
    tensor_writer w = {.header = NULL};
    lplb_status status =
        lplb__group_agree(world, leader ? open_writer(&w, t, folder) : LPLB_OK, where);
    if (status == LPLB_OK && in_first_replica) status = put_experts(leader ? &w : NULL, t, STATES);
    if (leader && status == LPLB_OK) status = put_rest(&w, t);
    if (leader) status = tensor_writer_close(&w, status);
    if (leader && status == LPLB_OK) status = write_manifest(t, folder, w.crc);
    if (leader && status == LPLB_OK) status = remove_old(folder, t->step, t->saved_step);
    if (status == LPLB_OK) t->saved_step = t->step;
    return lplb__group_agree(world, status, where);
}

/* ---- reading ---- */

static lplb_status read_manifest(const char *folder, char *name, int64_t *step, int64_t *crc) {
    char path[TENSOR_PATH_BYTES];
    json_error_t error;
    const char *file = NULL;
    json_int_t at = 0, sum = 0;
    snprintf(path, sizeof path, "%s/latest.json", folder);
    json_t *manifest = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (!manifest) return LPLB_FAIL(LPLB_IO, "%s: %s", path, error.text);
    bool fine =
        !json_unpack(manifest, "{s:s, s:I, s:I}", "file", &file, "step", &at, "crc32", &sum) &&
        strlen(file) < TENSOR_NAME_BYTES && !strchr(file, '/') && at >= 0;
    if (fine) snprintf(name, TENSOR_NAME_BYTES, "%s", file);
    json_decref(manifest);
    *step = at;
    *crc = sum;
    return fine ? LPLB_OK : LPLB_FAIL(LPLB_FORMAT, "%s: no checkpoint manifest", path);
}

static lplb_status open_step(tensor_reader *r, const char *folder, const char *name) {
    char path[TENSOR_PATH_BYTES];
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
        return LPLB_FAIL(LPLB_INVALID, "the folder name '%.40s...' is too long", folder);
    return tensor_reader_open(r, path);
}

/* Of the last step before `below` whose file is whole, -1 if none is. */
static int64_t newest_whole(const char *folder, int64_t below) {
    int64_t *steps, whole = -1;
    int n;
    if (list_steps(folder, &steps, &n) != LPLB_OK) return -1;
    for (int i = n - 1; i >= 0 && whole < 0; i--) {
        char name[TENSOR_NAME_BYTES];
        tensor_reader r = {.file = NULL};
        file_name(steps[i], name);
        if (steps[i] < below && open_step(&r, folder, name) == LPLB_OK &&
            tensor_check_own_sum(&r) == LPLB_OK)
            whole = steps[i];
        tensor_reader_close(&r);
    }
    lplb__free(steps);
    return whole;
}

/* What is wrong with the latest checkpoint, and which one there is instead. To take that one is for
 * people to decide: it is of an earlier step. */
static lplb_status without_latest(const char *folder, int64_t latest, lplb_status status) {
    char reason[400];
    snprintf(reason, sizeof reason, "%s", lplb_error_message());
    int64_t whole = newest_whole(folder, latest);
    if (whole < 0)
        return LPLB_FAIL(status, "%s; no other checkpoint in %s is whole", reason, folder);
    return LPLB_FAIL(status,
                     "%s; the newest whole checkpoint is of step %lld: "
                     "--checkpoint-step %lld takes it",
                     reason, (long long)whole, (long long)whole);
}

lplb_status checkpoint_latest(const char *folder, int64_t *step) {
    char path[TENSOR_PATH_BYTES], name[TENSOR_NAME_BYTES];
    int64_t crc, *steps;
    int n;
    struct stat info;
    *step = -1;
    snprintf(path, sizeof path, "%s/latest.json", folder);
    if (stat(path, &info) && errno == ENOENT) {
        LPLB_TRY(list_steps(folder, &steps, &n));
        lplb__free(steps);
        if (n == 0) return LPLB_OK;
        return without_latest(
            folder, INT64_MAX,
            LPLB_FAIL(LPLB_FORMAT, "%s has checkpoints, but no latest.json", folder));
    }
    lplb_status status = read_manifest(folder, name, step, &crc);
    return status == LPLB_OK ? status : without_latest(folder, INT64_MAX, status);
}

/* A checkpoint has its own numbers, bit by bit; weights alone may come as others. */
static lplb_status get_state(tensor_reader *r, const char *name, int64_t rows, int64_t cols,
                             int states, real *out) {
    return states == STATES ? tensor_get(r, name, REAL_CODE, rows * cols, sizeof(real), out)
                            : tensor_get_real(r, name, rows, cols, out);
}

static lplb_status get_replicated(tensor_reader *r, trainer *t, int states) {
    const param_layout *p = &t->model->layout;
    real *state[STATES] = {t->model->param, t->optimizer->m1, t->optimizer->m2};
    char name[TENSOR_NAME_BYTES];
    for (int s = 0; s < states; s++)
        for (int32_t i = 0; i < p->n_params; i++) {
            const param *q = &p->param[i];
            snprintf(name, sizeof name, "%s%s", moment[s], q->name);
            LPLB_TRY(get_state(r, name, q->rows, q->cols, states, state[s] + q->offset));
        }
    return LPLB_OK;
}

static lplb_status get_experts(tensor_reader *r, trainer *t, int states) {
    experts *x = t->model->experts;
    const lplb_placement *p = x->placement;
    real *state[STATES] = {x->weight, t->optimizer->expert_m1, t->optimizer->expert_m2};
    char name[TENSOR_NAME_BYTES];
    for (int32_t l = 0; l < p->layers; l++)
        for (int32_t s = 0; s < x->local_slots; s++) {
            int32_t e = p->physical_to_logical[(int64_t)l * p->slots + x->first_slot + s];
            int64_t at = ((int64_t)l * x->local_slots + s) * x->expert_items, rows, cols;
            for (int i = 0; i < states && e >= 0; i++)
                for (int part = 0; part < 3; part++) {
                    expert_name(t, l, e, part, i, name);
                    expert_shape(t, part, &rows, &cols);
                    LPLB_TRY(get_state(r, name, rows, cols, states,
                                       state[i] + at + part * x->expert_items / 3));
                }
        }
    return LPLB_OK;
}

/* The placement of the checkpoint where it fits these ranks; else the present one stays. */
static lplb_status get_placement(tensor_reader *r, trainer *t, bool *fits) {
    experts *x = t->model->experts;
    lplb_placement *p;
    const char *ranks = tensor_metadata(r, "expert_ranks");
    const json_t *shape = json_object_get(json_object_get(r->header, "lplb.placement"), "shape");
    json_int_t slots =
        json_integer_value(json_array_get(shape, json_array_size(shape) > 1 ? 1 : 0));
    *fits = ranks && atoi(ranks) == x->group->size && slots == x->placement->slots;
    if (!*fits) return LPLB_OK;
    LPLB_TRY(lplb_placement_copy(x->placement, &p));
    lplb_status status = tensor_get(r, "lplb.placement", "I32", (int64_t)p->layers * p->slots,
                                    sizeof(int32_t), p->physical_to_logical);
    if (status == LPLB_OK) status = experts_use_placement(x, p);
    lplb_placement_destroy(p);
    return status;
}

/* A manager whose experts lie otherwise, or that was told otherwise, begins anew. */
static lplb_status get_manager(tensor_reader *r, trainer *t, bool fits) {
    int64_t bytes = balancer_save_bytes(t->balancer);
    json_int_t first = 0, end = -1;
    json_t *entry = json_object_get(r->header, "lplb.manager");
    bool same = fits && entry && !json_unpack(entry, "{s:[I, I]}", "data_offsets", &first, &end) &&
                end - first == bytes;
    if (!t->balancer || !same) return balancer_restore(t->balancer, NULL, 0);
    unsigned char *state;
    LPLB_TRY(LPLB_CALLOC(state, bytes));
    lplb_status status = tensor_get(r, "lplb.manager", "U8", bytes, 1, state);
    if (status == LPLB_OK) status = balancer_restore(t->balancer, state, bytes);
    lplb__free(state);
    return status;
}

/* All of it is in the numbers of the trainer that wrote it. */
static lplb_status check_precision(const tensor_reader *r) {
    const char *theirs = NULL;
    json_t *entry = json_object_get(r->header, "model.embed_tokens.weight");
    if (!entry || json_unpack(entry, "{s:s}", "dtype", &theirs) || !strcmp(theirs, REAL_CODE))
        return LPLB_OK; /* what is not there is found to be missing when it is read */
    return LPLB_FAIL(LPLB_FORMAT,
                     "%s has numbers of type %s, this trainer computes in %s: give the --precision "
                     "of the run (--export and --init carry weights from one to the other)",
                     r->path, theirs, REAL_CODE);
}

static lplb_status load_all(tensor_reader *r, trainer *t) {
    const lplb_placement *p = t->model->experts->placement;
    int64_t cells = (int64_t)p->layers * p->experts;
    bool fits;
    balancer_settle(t->balancer); /* what is staged is of what is about to be replaced */
    LPLB_TRY(get_placement(r, t, &fits));
    LPLB_TRY(get_replicated(r, t, STATES));
    LPLB_TRY(get_experts(r, t, STATES));
    LPLB_TRY(tensor_get(r, "lplb.selection_bias", REAL_CODE, cells, sizeof(real), t->model->bias));
    model_keep_weights(t->model);
    return get_manager(r, t, fits);
}

static lplb_status check_model(const tensor_reader *r, const trainer *t, const char *rule) {
    const char *theirs = tensor_metadata(r, "model");
    char ours[IDENTITY_BYTES], differences[CHANGES_BYTES] = "";
    if (!theirs) return LPLB_FAIL(LPLB_FORMAT, "%s does not say what model it is of", r->path);
    identity_model(&t->config.model, ours);
    if (!identity_differences(theirs, ours, differences, sizeof differences)) return LPLB_OK;
    return LPLB_FAIL(LPLB_FORMAT, "%s is of another model: %s; %s", r->path, differences, rule);
}

/* What decides which text comes next: with any of it changed, the run is not the one that was
 * stopped. */
static void compare_runs(const tensor_reader *r, const trainer *t, char *changed, size_t bytes) {
    char seed[32], sequences[32], context[32];
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)t->config.seed);
    snprintf(sequences, sizeof sequences, "%lld", (long long)t->config.global_batch);
    snprintf(context, sizeof context, "%d", t->config.model.context);
    const struct {
        const char *key, *name, *ours, *effect;
    } field[] = {{"seed", "seed", seed, "the text in another order"},
                 {"text_sha256", "the text's sha256", t->config.text_digest, "another text"},
                 {"global_batch", "global-batch", sequences, "from another place in the text"},
                 {"context", "context", context, "from another place in the text"}};
    for (size_t i = 0; i < sizeof field / sizeof *field; i++) {
        const char *theirs = tensor_metadata(r, field[i].key);
        size_t used = strlen(changed);
        if (theirs && !strcmp(theirs, field[i].ours)) continue;
        snprintf(changed + used, bytes - used, "%s%s was %.12s and is %.12s (%s)", used ? ", " : "",
                 field[i].name, theirs ? theirs : "not recorded", field[i].ours, field[i].effect);
    }
}

/* changes: what is otherwise than it was, and no reason to refuse. */
static lplb_status check_run(const tensor_reader *r, const trainer *t, bool same_run,
                             char changes[CHANGES_BYTES]) {
    char training[IDENTITY_BYTES];
    const char *theirs = tensor_metadata(r, "training");
    compare_runs(r, t, changes, CHANGES_BYTES);
    if (same_run && *changes)
        return LPLB_FAIL(LPLB_INVALID,
                         "%s is of another run: %s; give what it had, or --resume-changed to go on "
                         "from its weights and step like that",
                         r->path, changes);
    identity_training(&t->config, training);
    if (theirs) identity_differences(theirs, training, changes, CHANGES_BYTES);
    return LPLB_OK;
}

/* Of the step asked for, or the latest. `checks`: reads it all, to know that it is whole. */
static lplb_status open_asked(tensor_reader *r, const char *folder, int64_t *step, bool checks) {
    char name[TENSOR_NAME_BYTES];
    int64_t crc = 0;
    lplb_status status;
    if (*step > 0) {
        file_name(*step, name);
        LPLB_TRY(open_step(r, folder, name));
        return checks ? tensor_check_own_sum(r) : LPLB_OK;
    }
    LPLB_TRY(checkpoint_latest(folder, step));
    if (*step < 0) return LPLB_FAIL(LPLB_IO, "no checkpoint in %s", folder);
    LPLB_TRY(read_manifest(folder, name, step, &crc));
    status = open_step(r, folder, name);
    if (status == LPLB_OK && checks) status = tensor_check_sum(r, crc);
    return status == LPLB_OK ? status : without_latest(folder, *step, status);
}

lplb_status checkpoint_load(trainer *t, const char *folder, int64_t step, bool same_run,
                            char changes[CHANGES_BYTES]) {
    tensor_reader r = {.file = NULL};
    char differs[CHANGES_BYTES] = "";
    lplb_status status = open_asked(&r, folder, &step, t->grid.world->rank == 0);
    if (status == LPLB_OK) status = check_model(&r, t, "the options must be as they were");
    if (status == LPLB_OK) status = check_precision(&r);
    if (status == LPLB_OK) status = check_run(&r, t, same_run, differs);
    status = lplb__group_agree(t->grid.world, status, where);
    if (status == LPLB_OK) status = lplb__group_agree(t->grid.world, load_all(&r, t), where);
    tensor_reader_close(&r);
    if (status == LPLB_OK) t->step = t->saved_step = step;
    if (changes) memcpy(changes, differs, sizeof differs);
    return status;
}

lplb_status checkpoint_model(const char *folder, int64_t step, model_config *out) {
    tensor_reader r = {.file = NULL};
    model_config c = *out;
    lplb_status status = open_asked(&r, folder, &step, false);
    const char *text = status == LPLB_OK ? tensor_metadata(&r, "model") : NULL;
    const char *context = status == LPLB_OK ? tensor_metadata(&r, "context") : NULL;
    if (status == LPLB_OK && (!text || !context || identity_read_model(text, &c) != LPLB_OK))
        status = LPLB_FAIL(LPLB_FORMAT, "%s does not say what model it is of", r.path);
    if (status == LPLB_OK) {
        c.context = atoi(context);
        status = model_config_check(&c);
    }
    tensor_reader_close(&r);
    if (status == LPLB_OK) *out = c;
    return status;
}

/* ---- weights alone ---- */

/* As models with a bias that only the selection sees name it. */
static void bias_name(const trainer *t, int32_t layer, char *name) {
    const param_layout *p = &t->model->layout;
    int32_t l = 0;
    while (p->layer[l].moe != layer) l++;
    snprintf(name, TENSOR_NAME_BYTES, "model.layers.%d.mlp.gate.e_score_correction_bias", l);
}

static bool has_bias(const trainer *t) {
    int64_t cells = (int64_t)t->model->layout.moe_layers * t->config.model.experts;
    for (int64_t i = 0; i < cells; i++)
        if (t->model->bias[i] != 0) return true;
    return false;
}

static lplb_status open_weights(tensor_writer *w, const trainer *t, const char *path) {
    char shape[IDENTITY_BYTES], context[32], name[TENSOR_NAME_BYTES];
    int32_t layers = t->model->layout.moe_layers;
    LPLB_TRY(tensor_writer_open(w, path));
    LPLB_TRY(declare_replicated(w, &t->model->layout, 1));
    LPLB_TRY(declare_experts(w, t, 1));
    for (int32_t l = 0; l < layers && has_bias(t); l++) {
        bias_name(t, l, name);
        LPLB_TRY(tensor_declare(w, name, REAL_CODE, 1, t->config.model.experts, sizeof(real)));
    }
    identity_model(&t->config.model, shape);
    snprintf(context, sizeof context, "%d", t->config.model.context);
    LPLB_TRY(tensor_put_header(w, json_pack("{s:s, s:s, s:s, s:s}", "format", "pt", "schema",
                                            "lplb.weights/1", "model", shape, "context", context)));
    return put_replicated(w, t, 1);
}

lplb_status weights_save(trainer *t, const char *path) {
    lplb__group *world = t->grid.world;
    bool leader = world->rank == 0;
    tensor_writer w = {.header = NULL};
    int64_t cells = (int64_t)t->model->layout.moe_layers * t->config.model.experts;
    lplb_status status =
        lplb__group_agree(world, leader ? open_weights(&w, t, path) : LPLB_OK, "writing weights");
    if (status == LPLB_OK && t->grid.replica->rank == 0)
        status = put_experts(leader ? &w : NULL, t, 1);
    if (leader && status == LPLB_OK && has_bias(t))
        status = tensor_put(&w, t->model->bias, cells * (int64_t)sizeof(real));
    if (leader) status = tensor_writer_close(&w, status);
    return lplb__group_agree(world, status, "writing weights");
}

/* A tensor that has no place here would be lost in silence. */
static lplb_status check_names(const tensor_reader *r, const trainer *t) {
    const param_layout *p = &t->model->layout;
    char name[TENSOR_NAME_BYTES];
    const char *key;
    json_t *value, *known = json_object();
    lplb_status status = known ? LPLB_OK : LPLB_FAIL(LPLB_NO_MEMORY, "no memory for names");
    for (int32_t i = 0; i < p->n_params; i++)
        json_object_set_new(known, p->param[i].name, json_true());
    for (int32_t l = 0; l < p->moe_layers; l++) {
        bias_name(t, l, name);
        json_object_set_new(known, name, json_true());
        for (int32_t i = 0; i < 3 * t->config.model.experts; i++) {
            expert_name(t, l, i / 3, i % 3, 0, name);
            json_object_set_new(known, name, json_true());
        }
    }
    json_object_foreach(r->header, key, value) {
        bool ours = !strncmp(key, "optimizer.", 10) || !strncmp(key, "lplb.", 5) ||
                    !strcmp(key, "__metadata__") || json_object_get(known, key);
        if (!ours && status == LPLB_OK)
            status = LPLB_FAIL(
                LPLB_FORMAT,
                "%s: this model has no place for %s: the options must be those of the model "
                "that the weights are of",
                r->path, key);
    }
    json_decref(known);
    return status;
}

static lplb_status load_weights(tensor_reader *r, trainer *t) {
    char name[TENSOR_NAME_BYTES];
    int64_t E = t->config.model.experts;
    if (tensor_metadata(r, "model"))
        LPLB_TRY(
            check_model(r, t, "--init brings weights, not the model's shape: give its options"));
    LPLB_TRY(check_names(r, t));
    LPLB_TRY(get_replicated(r, t, 1));
    LPLB_TRY(get_experts(r, t, 1));
    model_keep_weights(t->model);
    if (tensor_exists(r, "lplb.selection_bias"))
        return tensor_get_real(r, "lplb.selection_bias", t->model->layout.moe_layers, E,
                               t->model->bias);
    for (int32_t l = 0; l < t->model->layout.moe_layers; l++) {
        bias_name(t, l, name);
        if (tensor_exists(r, name))
            LPLB_TRY(tensor_get_real(r, name, 1, E, t->model->bias + l * E));
    }
    return LPLB_OK;
}

lplb_status weights_load(trainer *t, const char *path) {
    tensor_reader r = {.file = NULL};
    lplb_status status = tensor_reader_open(&r, path);
    if (status == LPLB_OK) status = load_weights(&r, t);
    tensor_reader_close(&r);
    return lplb__group_agree(t->grid.world, status, "reading weights");
}
