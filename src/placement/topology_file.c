/* Topologies by name or from a file. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "placement/topology_file.h"

enum { MAX_R2O_BYTES = 1 << 30 }; /* in memory as a JSON tree; the text is far smaller */

static lplb_status read_rows(const char *path, const json_t *rows, lplb_topology **out) {
    int64_t ranks = (int64_t)json_array_size(rows);
    int64_t redundant = (int64_t)json_array_size(json_array_get(rows, 0));
    if (ranks < 1 || redundant < 1 || ranks > LPLB_MAX_RANKS || redundant > LPLB_MAX_RANKS)
        return LPLB_FAIL(LPLB_FORMAT,
                         "%s: an r2o is an array of one row a rank, each an array of ranks to copy "
                         "from, or an object with it under \"r2o\"",
                         path);
    int32_t *r2o;
    LPLB_TRY(LPLB_CALLOC(r2o, ranks * redundant));
    lplb_status status = LPLB_OK;
    for (int64_t r = 0; r < ranks; r++) {
        const json_t *row = json_array_get(rows, (size_t)r);
        if ((int64_t)json_array_size(row) != redundant)
            LPLB_FAIL_GOTO(status, done, LPLB_FORMAT, "%s: r2o[%lld] must have %lld entries", path,
                           (long long)r, (long long)redundant);
        for (int64_t k = 0; k < redundant; k++) {
            char where[64];
            int64_t from;
            snprintf(where, sizeof where, "r2o[%lld][%lld]", (long long)r, (long long)k);
            LPLB_TRY_GOTO(
                status,
                lplb__json_whole(json_array_get(row, (size_t)k), path, where, 0, ranks - 1, &from),
                done);
            r2o[r * redundant + k] = (int32_t)from;
        }
    }
    status = lplb_topology_from_r2o(r2o, (int32_t)ranks, (int32_t)redundant, out);
    if (status != LPLB_OK) status = LPLB_FAIL(status, "%s: %s", path, lplb_error_message());
done:
    lplb__free(r2o);
    return status;
}

lplb_status lplb__topology_parse(const lplb__input *input, lplb_topology **out) {
    json_t *document;
    *out = NULL;
    LPLB_TRY(lplb__json_load(input, &document));
    const json_t *rows = json_is_object(document) ? json_object_get(document, "r2o") : document;
    lplb_status status = read_rows(input->name, rows, out);
    json_decref(document);
    return status;
}

static lplb_status read_file(const char *path, lplb_topology **out) {
    lplb__input input;
    LPLB_TRY(lplb__input_open(path, MAX_R2O_BYTES, &input));
    lplb_status status = lplb__topology_parse(&input, out);
    lplb__input_close(&input);
    return status;
}

static lplb_status check_fit(const lplb_topology *t, const char *path, int32_t ranks) {
    if (ranks % t->group_size == 0) return LPLB_OK;
    return LPLB_FAIL(LPLB_INVALID, "%s: its groups of %d ranks do not divide %d ranks", path,
                     t->group_size, ranks);
}

lplb_status lplb_topology_open(const char *text, int32_t ranks, int32_t redundant,
                               lplb_topology **out) {
    static const char *const names[] = {"cube", "hypercube", "ring"};
    *out = NULL;
    if (!text || !*text || !strncmp(text, "torus:", 6))
        return lplb_topology_create(text, ranks, redundant, out);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (!strcmp(text, names[i])) return lplb_topology_create(text, ranks, redundant, out);
    FILE *file = fopen(text, "rb");
    if (!file)
        return LPLB_FAIL(LPLB_IO,
                         "no topology '%s' and no file of that name; there are cube, hypercube, "
                         "ring, torus:MxN and r2o files",
                         text);
    fclose(file);
    LPLB_TRY(read_file(text, out));
    lplb_status status = check_fit(*out, text, ranks);
    if (status == LPLB_OK) return LPLB_OK;
    lplb_topology_destroy(*out);
    *out = NULL;
    return status;
}
