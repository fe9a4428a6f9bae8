#include "train/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

#include "io/output.h"

#ifdef LPLB_TRAIN_F64
#define REAL_CODE "F64"
#else
#define REAL_CODE "F32"
#endif

enum { NAME_BYTES = 160, PATH_SIZE = 1024, MODEL_BYTES = 512 };

/* ---- what a checkpoint holds: visited in file order by writer and reader ---- */

static const char where[] = "at the checkpoint";
static const char *const moment[] = {"", "optimizer.m1.", "optimizer.m2."};

static void expert_name(const trainer *t, int32_t layer, int32_t expert, int part, int state,
                        char *name) {
    static const char *const parts[] = {"gate", "up", "down"};
    const param_layout *p = &t->model->layout;
    int32_t l = 0;
    while (p->layer[l].moe != layer) l++;
    snprintf(name, NAME_BYTES, "%smodel.layers.%d.mlp.experts.%d.%s_proj.weight", moment[state], l,
             expert, parts[part]);
}

static void expert_shape(const trainer *t, int part, int64_t *rows, int64_t *cols) {
    int64_t D = t->config.model.width, F = t->config.model.expert_width;
    *rows = part == 2 ? D : F;
    *cols = part == 2 ? F : D;
}

/* What the shapes of the tensors do not tell, but the model's function depends on. */
static void describe(const model_config *c, char text[MODEL_BYTES]) {
    snprintf(text, MODEL_BYTES,
             "layers=%d width=%d heads=%d kv_heads=%d vocab=%d experts=%d topk=%d expert_width=%d "
             "shared_width=%d dense_layers=%d dense_width=%d tied=%d router=%s normalize_gates=%d "
             "rope_theta=%.17g norm_eps=%.17g",
             c->layers, c->width, c->heads, c->kv_heads, c->vocab, c->experts, c->topk,
             c->expert_width, c->shared_width, c->dense_layers,
             c->dense_layers ? c->dense_width : 0, c->tied != 0,
             c->router == ROUTER_SOFTMAX ? "softmax" : "sigmoid", c->normalize_gates != 0,
             c->rope_theta, c->norm_eps);
}

/* ---- writing ---- */

typedef struct writer {
    lplb__output output;
    json_t *header;
    int64_t offset;
    uint32_t crc;
} writer;

static void declare(writer *w, const char *name, const char *code, int64_t rows, int64_t cols,
                    int64_t item_bytes) {
    int64_t end = w->offset + rows * cols * item_bytes;
    json_t *shape = rows == 1 ? json_pack("[I]", (json_int_t)cols)
                              : json_pack("[I, I]", (json_int_t)rows, (json_int_t)cols);
    json_object_set_new(w->header, name,
                        json_pack("{s:s, s:o, s:[I, I]}", "dtype", code, "shape", shape,
                                  "data_offsets", (json_int_t)w->offset, (json_int_t)end));
    w->offset = end;
}

static void declare_all(writer *w, const trainer *t) {
    const param_layout *p = &t->model->layout;
    const lplb_placement *placement = t->model->experts->placement;
    char name[NAME_BYTES];
    for (int s = 0; s < 3; s++)
        for (int32_t i = 0; i < p->n_params; i++) {
            snprintf(name, sizeof name, "%s%s", moment[s], p->param[i].name);
            declare(w, name, REAL_CODE, p->param[i].rows, p->param[i].cols, sizeof(real));
        }
    for (int32_t l = 0; l < p->moe_layers; l++)
        for (int32_t e = 0; e < t->config.model.experts; e++)
            for (int s = 0; s < 3; s++)
                for (int part = 0; part < 3; part++) {
                    int64_t rows, cols;
                    expert_name(t, l, e, part, s, name);
                    expert_shape(t, part, &rows, &cols);
                    declare(w, name, REAL_CODE, rows, cols, sizeof(real));
                }
    declare(w, "lplb.selection_bias", REAL_CODE, p->moe_layers, t->config.model.experts,
            sizeof(real));
    declare(w, "lplb.placement", "I32", placement->layers, placement->slots, sizeof(int32_t));
    if (t->balancer) declare(w, "lplb.manager", "U8", 1, balancer_save_bytes(t->balancer), 1);
}

static lplb_status put(writer *w, const void *data, int64_t bytes) {
    if (fwrite(data, 1, (size_t)bytes, w->output.file) != (size_t)bytes)
        return LPLB_FAIL(LPLB_IO, "%s: %s", w->output.path, strerror(errno));
    for (int64_t at = 0; at < bytes;) {
        uInt n = bytes - at > 1 << 30 ? 1 << 30 : (uInt)(bytes - at);
        w->crc = (uint32_t)crc32(w->crc, (const unsigned char *)data + at, n);
        at += n;
    }
    return LPLB_OK;
}

static lplb_status put_header(writer *w, const trainer *t) {
    char step[32], ranks[32], shape[MODEL_BYTES];
    snprintf(step, sizeof step, "%lld", (long long)t->step);
    snprintf(ranks, sizeof ranks, "%d", t->model->experts->group->size);
    describe(&t->config.model, shape);
    json_object_set_new(w->header, "__metadata__",
                        json_pack("{s:s, s:s, s:s, s:s}", "schema", "lplb.checkpoint/1", "step",
                                  step, "expert_ranks", ranks, "model", shape));
    declare_all(w, t);
    char *text = json_dumps(w->header, JSON_COMPACT);
    if (!text) return LPLB_FAIL(LPLB_NO_MEMORY, "no memory for the checkpoint's header");
    uint64_t bytes = strlen(text), padded = (bytes + 7) / 8 * 8; /* readers want 8-byte starts */
    unsigned char length[8];
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)(padded >> (8 * i));
    lplb_status status = put(w, length, 8);
    if (status == LPLB_OK) status = put(w, text, (int64_t)bytes);
    if (status == LPLB_OK) status = put(w, "        ", (int64_t)(padded - bytes));
    free(text);
    return status;
}

static lplb_status put_replicated(writer *w, const trainer *t) {
    const param_layout *p = &t->model->layout;
    const real *states[] = {t->model->param, t->optimizer->m1, t->optimizer->m2};
    for (int s = 0; s < 3; s++)
        for (int32_t i = 0; i < p->n_params; i++)
            LPLB_TRY(put(w, states[s] + p->param[i].offset,
                         p->param[i].rows * p->param[i].cols * (int64_t)sizeof(real)));
    return LPLB_OK;
}

/* What it takes to bring one layer's experts to rank 0; the same for every layer. */
typedef struct gathering {
    int64_t *send_rows, *recv_rows; /* [ranks] */
    int64_t *order;                 /* [experts] row of each at rank 0 */
    buffer send, recv;              /* rows: weights, first, second moments */
} gathering;

static lplb_status open_gathering(gathering *g, const trainer *t, bool leader) {
    const experts *x = t->model->experts;
    int64_t row = 3 * x->expert_items;
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
static lplb_status put_layer(writer *w, trainer *t, int32_t layer, gathering *g) {
    experts *x = t->model->experts;
    lplb__group *group = x->group;
    const lplb_placement *p = x->placement;
    const int32_t *map = p->physical_to_logical + (int64_t)layer * p->slots;
    int64_t items = x->expert_items, row = 3 * items, next = 0;
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
            for (int i = 0; i < 3; i++)
                memcpy(g->send.data + g->send_rows[0] * row + i * items, states[i] + at,
                       sizeof(real) * (size_t)items);
            g->send_rows[0]++;
        }
    LPLB_TRY(group->table->all_to_all_rows(group, g->send.data, g->send_rows, g->recv.data,
                                           g->recv_rows, row * (int64_t)sizeof(real)));
    for (int32_t e = 0; w && e < p->experts; e++)
        LPLB_TRY(put(w, g->recv.data + g->order[e] * row, row * (int64_t)sizeof(real)));
    return LPLB_OK;
}

/* A full disk at rank 0 stops all at the same layer: nobody waits for rows that nobody takes. */
static lplb_status put_experts(writer *w, trainer *t) {
    lplb__group *group = t->model->experts->group;
    gathering g = {0};
    lplb_status status = open_gathering(&g, t, w != NULL);
    for (int32_t l = 0; l < t->model->layout.moe_layers; l++) {
        status = lplb__group_agree(group, status, where);
        if (status != LPLB_OK) break;
        status = put_layer(w, t, l, &g);
    }
    close_gathering(&g);
    return status;
}

/* The same on every rank but for what it says of times. */
static lplb_status put_manager(writer *w, const trainer *t) {
    int64_t bytes = balancer_save_bytes(t->balancer);
    if (!t->balancer) return LPLB_OK;
    unsigned char *state;
    LPLB_TRY(LPLB_CALLOC(state, bytes));
    lplb_status status = balancer_save(t->balancer, state, bytes);
    if (status == LPLB_OK) status = put(w, state, bytes);
    lplb__free(state);
    return status;
}

static lplb_status put_rest(writer *w, const trainer *t) {
    const lplb_placement *p = t->model->experts->placement;
    int64_t cells = (int64_t)p->layers * p->experts;
    LPLB_TRY(put(w, t->model->bias, cells * (int64_t)sizeof(real)));
    LPLB_TRY(
        put(w, p->physical_to_logical, (int64_t)p->layers * p->slots * (int64_t)sizeof(int32_t)));
    return put_manager(w, t);
}

static void file_name(int64_t step, char *name) {
    snprintf(name, NAME_BYTES, "step-%08lld.safetensors", (long long)step);
}

static lplb_status write_manifest(const trainer *t, const char *folder, const writer *w) {
    char path[PATH_SIZE], name[NAME_BYTES];
    file_name(t->step, name);
    snprintf(path, sizeof path, "%s/latest.json", folder);
    json_t *manifest =
        json_pack("{s:s, s:s, s:I, s:I}", "schema", "lplb.checkpoint_manifest/1", "file", name,
                  "step", (json_int_t)t->step, "crc32", (json_int_t)w->crc);
    char *text = manifest ? json_dumps(manifest, JSON_INDENT(1)) : NULL;
    json_decref(manifest);
    if (!text) return LPLB_FAIL(LPLB_NO_MEMORY, "no memory for the manifest");
    lplb_status status = lplb__output_write(path, text, strlen(text));
    free(text);
    return status;
}

/* Keeps the checkpoint of this step and the one before; what is later is not ours. */
static void remove_old(const char *folder, int64_t step) {
    struct dirent **entries;
    int n = scandir(folder, &entries, NULL, alphasort), earlier = 0;
    for (int i = n - 1; i >= 0; i--) {
        long long at;
        char name[NAME_BYTES], path[PATH_SIZE];
        if (sscanf(entries[i]->d_name, "step-%lld.safetensors", &at) == 1 && at < step) {
            file_name(at, name);
            if (!strcmp(name, entries[i]->d_name) && ++earlier > 1) {
                snprintf(path, sizeof path, "%s/%s", folder, name);
                remove(path);
            }
        }
        free(entries[i]);
    }
    if (n >= 0) free(entries);
}

static lplb_status make_folder(const char *folder) {
    if (!mkdir(folder, 0777) || errno == EEXIST) return LPLB_OK;
    return LPLB_FAIL(LPLB_IO, "cannot make the folder %s: %s", folder, strerror(errno));
}

lplb_status checkpoint_prepare(const char *folder, bool resumes) {
    char path[PATH_SIZE];
    int64_t latest;
    lplb__output probe;
    LPLB_TRY(make_folder(folder));
    if (snprintf(path, sizeof path, "%s/latest.json", folder) >= (int)sizeof path)
        return LPLB_FAIL(LPLB_INVALID, "the folder name '%.40s...' is too long", folder);
    LPLB_TRY(lplb__output_open(path, &probe));
    lplb__output_abort(&probe);
    LPLB_TRY(checkpoint_latest(folder, &latest));
    if (latest < 0 || resumes) return LPLB_OK;
    return LPLB_FAIL(LPLB_INVALID,
                     "%s has a checkpoint of step %lld: go on from it with --resume, or name "
                     "another folder",
                     folder, (long long)latest);
}

/* The leader's part up to the experts. */
static lplb_status open_writer(writer *w, const trainer *t, const char *folder) {
    char path[PATH_SIZE], name[NAME_BYTES];
    LPLB_TRY(make_folder(folder));
    file_name(t->step, name);
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
        return LPLB_FAIL(LPLB_INVALID, "the folder name '%.40s...' is too long", folder);
    w->header = json_object();
    LPLB_TRY(lplb__output_open(path, &w->output));
    LPLB_TRY(put_header(w, t));
    return put_replicated(w, t);
}

lplb_status checkpoint_save(trainer *t, const char *folder) {
    lplb__group *world = t->grid.world;
    bool leader = world->rank == 0, in_first_replica = t->grid.replica->rank == 0;
    writer w = {0};
    lplb_status status =
        lplb__group_agree(world, leader ? open_writer(&w, t, folder) : LPLB_OK, where);
    if (status == LPLB_OK && in_first_replica) status = put_experts(leader ? &w : NULL, t);
    if (leader && status == LPLB_OK) status = put_rest(&w, t);
    if (leader && status == LPLB_OK) status = lplb__output_commit(&w.output);
    else if (leader) lplb__output_abort(&w.output);
    if (leader && status == LPLB_OK) status = write_manifest(t, folder, &w);
    if (leader && status == LPLB_OK) remove_old(folder, t->step);
    json_decref(w.header);
    return lplb__group_agree(world, status, where);
}

/* ---- reading ---- */

typedef struct reader {
    char path[PATH_SIZE];
    FILE *file;
    json_t *header;
    int64_t data, bytes; /* start of the data, size of the file */
} reader;

static lplb_status read_manifest(const char *folder, char *name, int64_t *step, int64_t *crc) {
    char path[PATH_SIZE];
    json_error_t error;
    const char *file = NULL;
    json_int_t at = 0, sum = 0;
    snprintf(path, sizeof path, "%s/latest.json", folder);
    json_t *manifest = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (!manifest) return LPLB_FAIL(LPLB_IO, "%s: %s", path, error.text);
    bool fine =
        !json_unpack(manifest, "{s:s, s:I, s:I}", "file", &file, "step", &at, "crc32", &sum) &&
        strlen(file) < NAME_BYTES && !strchr(file, '/') && at >= 0;
    if (fine) snprintf(name, NAME_BYTES, "%s", file);
    json_decref(manifest);
    *step = at;
    *crc = sum;
    return fine ? LPLB_OK : LPLB_FAIL(LPLB_FORMAT, "%s: no checkpoint manifest", path);
}

lplb_status checkpoint_latest(const char *folder, int64_t *step) {
    char path[PATH_SIZE], name[NAME_BYTES];
    int64_t crc;
    struct stat info;
    *step = -1;
    snprintf(path, sizeof path, "%s/latest.json", folder);
    if (stat(path, &info) && errno == ENOENT) return LPLB_OK;
    return read_manifest(folder, name, step, &crc);
}

static lplb_status open_reader(reader *r, const char *folder, const char *name) {
    unsigned char length[8];
    uint64_t bytes = 0;
    enum { MOST = 256 << 20 };
    if (snprintf(r->path, sizeof r->path, "%s/%s", folder, name) >= (int)sizeof r->path)
        return LPLB_FAIL(LPLB_INVALID, "the folder name '%.40s...' is too long", folder);
    r->file = fopen(r->path, "rb");
    if (!r->file) return LPLB_FAIL(LPLB_IO, "%s: %s", r->path, strerror(errno));
    fseeko(r->file, 0, SEEK_END);
    r->bytes = ftello(r->file);
    rewind(r->file);
    bool read = fread(length, 1, 8, r->file) == 8;
    for (int i = 0; i < 8 && read; i++) bytes |= (uint64_t)length[i] << (8 * i);
    if (!read || bytes > MOST || (int64_t)bytes + 8 > r->bytes)
        return LPLB_FAIL(LPLB_FORMAT, "%s: no safetensors file, or cut short", r->path);
    char *text = lplb__malloc(bytes + 1);
    if (!text) return LPLB_FAIL(LPLB_NO_MEMORY, "no memory for the header of %s", r->path);
    json_error_t error;
    r->header = fread(text, 1, bytes, r->file) == bytes
                    ? json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error)
                    : NULL;
    lplb__free(text);
    r->data = 8 + (int64_t)bytes;
    if (!json_is_object(r->header))
        return LPLB_FAIL(LPLB_FORMAT, "%s: the header is no JSON object", r->path);
    return LPLB_OK;
}

static void close_reader(reader *r) {
    if (r->file) fclose(r->file);
    json_decref(r->header);
}

static lplb_status check_sum(reader *r, int64_t expected) {
    unsigned char block[65536];
    uint32_t crc = 0;
    size_t n;
    rewind(r->file);
    while ((n = fread(block, 1, sizeof block, r->file)) > 0)
        crc = (uint32_t)crc32(crc, block, (uInt)n);
    if ((int64_t)crc != expected)
        return LPLB_FAIL(LPLB_FORMAT, "%s: damaged, its checksum is %08x instead of %08x", r->path,
                         crc, (unsigned)expected);
    return LPLB_OK;
}

/* Reads a whole tensor of `items` numbers. */
static lplb_status get(reader *r, const char *name, const char *code, int64_t items,
                       int64_t item_bytes, void *out) {
    const char *dtype = NULL;
    json_int_t first = -1, end = -1;
    json_t *entry = json_object_get(r->header, name);
    if (!entry ||
        json_unpack(entry, "{s:s, s:[I, I]}", "dtype", &dtype, "data_offsets", &first, &end))
        return LPLB_FAIL(LPLB_FORMAT, "%s: no tensor %s: a checkpoint of another model", r->path,
                         name);
    if (strcmp(dtype, code) || end - first != items * item_bytes || first < 0 ||
        end > r->bytes - r->data)
        return LPLB_FAIL(LPLB_FORMAT, "%s: %s is %s of %lld bytes, this model has %s of %lld bytes",
                         r->path, name, dtype, (long long)(end - first), code,
                         (long long)(items * item_bytes));
    if (fseeko(r->file, r->data + first, SEEK_SET) ||
        fread(out, (size_t)item_bytes, (size_t)items, r->file) != (size_t)items)
        return LPLB_FAIL(LPLB_IO, "%s: cannot read %s", r->path, name);
    return LPLB_OK;
}

static lplb_status get_replicated(reader *r, trainer *t) {
    const param_layout *p = &t->model->layout;
    real *states[] = {t->model->param, t->optimizer->m1, t->optimizer->m2};
    char name[NAME_BYTES];
    for (int s = 0; s < 3; s++)
        for (int32_t i = 0; i < p->n_params; i++) {
            snprintf(name, sizeof name, "%s%s", moment[s], p->param[i].name);
            LPLB_TRY(get(r, name, REAL_CODE, p->param[i].rows * p->param[i].cols, sizeof(real),
                         states[s] + p->param[i].offset));
        }
    return LPLB_OK;
}

static lplb_status get_experts(reader *r, trainer *t) {
    experts *x = t->model->experts;
    const lplb_placement *p = x->placement;
    real *states[] = {x->weight, t->optimizer->expert_m1, t->optimizer->expert_m2};
    char name[NAME_BYTES];
    for (int32_t l = 0; l < p->layers; l++)
        for (int32_t s = 0; s < x->local_slots; s++) {
            int32_t e = p->physical_to_logical[(int64_t)l * p->slots + x->first_slot + s];
            int64_t at = ((int64_t)l * x->local_slots + s) * x->expert_items;
            for (int state = 0; state < 3 && e >= 0; state++)
                for (int part = 0; part < 3; part++) {
                    int64_t third = x->expert_items / 3;
                    expert_name(t, l, e, part, state, name);
                    LPLB_TRY(get(r, name, REAL_CODE, third, sizeof(real),
                                 states[state] + at + part * third));
                }
        }
    return LPLB_OK;
}

/* The placement of the checkpoint where it fits these ranks; else the present one stays. */
static lplb_status get_placement(reader *r, trainer *t, bool *fits) {
    experts *x = t->model->experts;
    lplb_placement *p;
    const char *ranks = json_string_value(
        json_object_get(json_object_get(r->header, "__metadata__"), "expert_ranks"));
    const json_t *shape = json_object_get(json_object_get(r->header, "lplb.placement"), "shape");
    json_int_t slots =
        json_integer_value(json_array_get(shape, json_array_size(shape) > 1 ? 1 : 0));
    *fits = ranks && atoi(ranks) == x->group->size && slots == x->placement->slots;
    if (!*fits) return LPLB_OK;
    LPLB_TRY(lplb_placement_copy(x->placement, &p));
    lplb_status status = get(r, "lplb.placement", "I32", (int64_t)p->layers * p->slots,
                             sizeof(int32_t), p->physical_to_logical);
    if (status == LPLB_OK) status = experts_use_placement(x, p);
    lplb_placement_destroy(p);
    return status;
}

/* A manager whose experts lie otherwise, or that was told otherwise, begins anew. */
static lplb_status get_manager(reader *r, trainer *t, bool fits) {
    int64_t bytes = balancer_save_bytes(t->balancer);
    json_int_t first = 0, end = -1;
    json_t *entry = json_object_get(r->header, "lplb.manager");
    bool same = fits && entry && !json_unpack(entry, "{s:[I, I]}", "data_offsets", &first, &end) &&
                end - first == bytes;
    if (!t->balancer || !same) return balancer_restore(t->balancer, NULL, 0);
    unsigned char *state;
    LPLB_TRY(LPLB_CALLOC(state, bytes));
    lplb_status status = get(r, "lplb.manager", "U8", bytes, 1, state);
    if (status == LPLB_OK) status = balancer_restore(t->balancer, state, bytes);
    lplb__free(state);
    return status;
}

static lplb_status load_all(reader *r, trainer *t) {
    const lplb_placement *p = t->model->experts->placement;
    int64_t cells = (int64_t)p->layers * p->experts;
    bool fits;
    balancer_settle(t->balancer); /* what is staged is of what is about to be replaced */
    LPLB_TRY(get_placement(r, t, &fits));
    LPLB_TRY(get_replicated(r, t));
    LPLB_TRY(get_experts(r, t));
    LPLB_TRY(get(r, "lplb.selection_bias", REAL_CODE, cells, sizeof(real), t->model->bias));
    return get_manager(r, t, fits);
}

static lplb_status check_model(const reader *r, const trainer *t) {
    const json_t *metadata = json_object_get(r->header, "__metadata__");
    const char *theirs = json_string_value(json_object_get(metadata, "model"));
    char ours[MODEL_BYTES];
    describe(&t->config.model, ours);
    if (theirs && !strcmp(theirs, ours)) return LPLB_OK;
    return LPLB_FAIL(LPLB_FORMAT, "%s is of another model: %s; this one has %s", r->path,
                     theirs ? theirs : "it does not say which", ours);
}

lplb_status checkpoint_load(trainer *t, const char *folder) {
    reader r = {.file = NULL};
    char name[NAME_BYTES];
    int64_t step = 0, crc = 0;
    lplb_status status = read_manifest(folder, name, &step, &crc);
    if (status == LPLB_OK) status = open_reader(&r, folder, name);
    if (status == LPLB_OK && t->grid.world->rank == 0) status = check_sum(&r, crc);
    if (status == LPLB_OK) status = check_model(&r, t);
    status = lplb__group_agree(t->grid.world, status, where);
    if (status == LPLB_OK) status = lplb__group_agree(t->grid.world, load_all(&r, t), where);
    close_reader(&r);
    if (status == LPLB_OK) t->step = step;
    return status;
}
