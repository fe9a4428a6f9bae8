/* CSV with the columns step, layer, expert, count in any order. Steps and layers are kept in
 * ascending order, whatever their numbers; what is missing is zero; repeated cells add up (several
 * ranks may each have logged their part). */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "io/trace_build.h"

enum { STEP, LAYER, EXPERT, COUNT, N_COLUMNS, MAX_LINE = 4096 };
static const char *const column_names[] = {"step", "layer", "expert", "count"};

typedef struct cell {
    int64_t value[N_COLUMNS];
} cell;

typedef struct reader {
    const char *name;
    lplb__stream stream;
    char *buffer; /* [MAX_LINE] */
    int64_t filled, at;
    int64_t row;              /* from 1, the heading included */
    int column_of[N_COLUMNS]; /* which of our columns stands at each place of the file */
    cell *cells;
    int64_t n, capacity, max_cells;
} reader;

/* The next line without its end, in place; *line = NULL at the end of the file. */
static lplb_status next_line(reader *r, char **line) {
    *line = NULL;
    char *end =
        r->filled > r->at ? memchr(r->buffer + r->at, '\n', (size_t)(r->filled - r->at)) : NULL;
    if (!end) {
        memmove(r->buffer, r->buffer + r->at, (size_t)(r->filled - r->at));
        r->filled -= r->at;
        r->at = 0;
        int64_t got;
        LPLB_TRY(
            lplb__stream_read(&r->stream, r->buffer + r->filled, MAX_LINE - 1 - r->filled, &got));
        r->filled += got;
        if (r->filled == 0) return LPLB_OK;
        end = memchr(r->buffer, '\n', (size_t)r->filled);
        if (!end && r->filled == MAX_LINE - 1)
            return LPLB_FAIL(LPLB_FORMAT, "%s, row %lld: longer than %d bytes", r->name,
                             (long long)r->row + 1, MAX_LINE - 2);
        if (!end) end = r->buffer + r->filled++; /* the last line may lack its end */
    }
    *end = '\0';
    *line = r->buffer + r->at;
    r->at = end + 1 - r->buffer;
    r->row++;
    if (strlen(*line) != (size_t)(end - *line))
        return LPLB_FAIL(LPLB_FORMAT, "%s, row %lld: a zero byte", r->name, (long long)r->row);
    while (end > *line && (end[-1] == '\r' || end[-1] == ' ' || end[-1] == '\t')) *--end = '\0';
    return LPLB_OK;
}

/* Cuts the text at the next comma; blanks around it go. */
static char *next_field(char **rest) {
    char *field = *rest;
    if (!field) return NULL;
    char *comma = strchr(field, ',');
    *rest = comma ? comma + 1 : NULL;
    char *end = comma ? comma : field + strlen(field);
    while (end > field && (end[-1] == ' ' || end[-1] == '\t')) end--;
    *end = '\0';
    while (*field == ' ' || *field == '\t') field++;
    return field;
}

static lplb_status read_heading(reader *r) {
    char *line;
    LPLB_TRY(next_line(r, &line));
    if (line && !strncmp(line, "\xef\xbb\xbf", 3)) line += 3; /* byte order mark */
    bool seen[N_COLUMNS] = {false};
    int n = 0;
    for (char *field; line && (field = next_field(&line)); n++) {
        int which = N_COLUMNS;
        for (int i = 0; i < N_COLUMNS; i++)
            if (!strcmp(field, column_names[i])) which = i;
        if (which == N_COLUMNS || seen[which])
            return LPLB_FAIL(LPLB_FORMAT,
                             "%s, row 1: column '%.40s'; the columns are step, layer, "
                             "expert, count",
                             r->name, field);
        seen[which] = true;
        r->column_of[n] = which;
    }
    if (n < N_COLUMNS)
        return LPLB_FAIL(LPLB_FORMAT,
                         "%s, row 1: the columns step, layer, expert, count are "
                         "wanted",
                         r->name);
    return LPLB_OK;
}

/* Digits, and for counts that a float printed a dot with zeros. */
static bool parse_number(const char *text, int64_t *out) {
    int64_t value = 0;
    const char *c = text;
    for (; *c >= '0' && *c <= '9'; c++) {
        if (value > (INT64_MAX - 9) / 10) return false;
        value = 10 * value + (*c - '0');
    }
    if (c == text) return false;
    if (*c == '.')
        for (c++; *c == '0'; c++) {}
    *out = value;
    return *c == '\0' && value <= LPLB__MAX_TOTAL;
}

static lplb_status add_row(reader *r, char *line) {
    if (r->n == r->capacity) {
        if (r->n >= r->max_cells)
            return LPLB_FAIL(LPLB_RANGE, "%s: more than %lld rows", r->name,
                             (long long)r->max_cells);
        int64_t capacity = r->capacity ? 2 * r->capacity : 1024;
        if (capacity > r->max_cells) capacity = r->max_cells;
        cell *grown = lplb__realloc(r->cells, (size_t)capacity * sizeof *grown);
        if (!grown)
            return LPLB_FAIL(LPLB_NO_MEMORY, "cannot hold %lld rows of %s", (long long)capacity,
                             r->name);
        r->cells = grown;
        r->capacity = capacity;
    }
    cell *new_cell = &r->cells[r->n];
    int n = 0;
    for (char *field; (field = next_field(&line)); n++) {
        if (n == N_COLUMNS)
            return LPLB_FAIL(LPLB_FORMAT, "%s, row %lld: more than four fields", r->name,
                             (long long)r->row);
        int which = r->column_of[n];
        if (!parse_number(field, &new_cell->value[which]))
            return LPLB_FAIL(LPLB_FORMAT,
                             "%s, row %lld: %s '%.40s' is no whole number from 0 to "
                             "2^62",
                             r->name, (long long)r->row, column_names[which], field);
        if ((which == LAYER || which == EXPERT) && new_cell->value[which] >= INT32_MAX)
            return LPLB_FAIL(LPLB_RANGE, "%s, row %lld: %s %lld is too large", r->name,
                             (long long)r->row, column_names[which],
                             (long long)new_cell->value[which]);
    }
    if (n < N_COLUMNS)
        return LPLB_FAIL(LPLB_FORMAT, "%s, row %lld: %d fields, four are wanted", r->name,
                         (long long)r->row, n);
    r->n++;
    return LPLB_OK;
}

/* The different values of one column, ascending. */
static lplb_status distinct(const reader *r, int column, int64_t **out, int64_t *n) {
    LPLB_TRY(LPLB_CALLOC(*out, r->n));
    for (int64_t i = 0; i < r->n; i++) (*out)[i] = r->cells[i].value[column];
    *n = lplb__sort_unique(*out, r->n);
    return LPLB_OK;
}

static lplb_status build(const reader *r, const lplb_trace_options *options, lplb_trace **out) {
    int64_t *steps = NULL, *layers = NULL, n_steps, n_layers, experts = 0;
    lplb_status status;
    LPLB_TRY_GOTO(status, distinct(r, STEP, &steps, &n_steps), done);
    LPLB_TRY_GOTO(status, distinct(r, LAYER, &layers, &n_layers), done);
    for (int64_t i = 0; i < r->n; i++)
        if (r->cells[i].value[EXPERT] >= experts) experts = r->cells[i].value[EXPERT] + 1;
    if (options && options->experts > experts) experts = options->experts;
    LPLB_TRY_GOTO(
        status, lplb__trace_create_counts(r->name, n_steps, n_layers, experts, options, out), done);
    for (int64_t i = 0; i < r->n; i++) {
        const int64_t *v = r->cells[i].value;
        int64_t s = lplb__position(steps, n_steps, v[STEP]);
        int64_t l = lplb__position(layers, n_layers, v[LAYER]);
        int64_t *count = &(*out)->counts[(s * n_layers + l) * experts + v[EXPERT]];
        if (v[COUNT] > LPLB__MAX_TOTAL - *count)
            LPLB_FAIL_GOTO(status, done, LPLB_OVERFLOW,
                           "%s: step %lld, layer %lld, expert %lld adds up to more than 2^62",
                           r->name, (long long)v[STEP], (long long)v[LAYER], (long long)v[EXPERT]);
        *count += v[COUNT];
    }
    for (int64_t l = 0; l < n_layers; l++) (*out)->layer_id[l] = (int32_t)layers[l];
    LPLB_TRY_GOTO(status, lplb__trace_check_counts(r->name, *out, options), done);
    status = lplb__trace_describe(*out, "%.200s: CSV counts [%lld][%lld][%lld]", r->name,
                                  (long long)n_steps, (long long)n_layers, (long long)experts);
done:
    lplb__free(steps);
    lplb__free(layers);
    return status;
}

lplb_status lplb__trace_from_csv(const lplb__input *input, const lplb_trace_options *options,
                                 lplb_trace **out) {
    reader r = {.name = input->name, .max_cells = input->max_bytes / (int64_t)sizeof(cell)};
    lplb__stream_range(input, 0, input->bytes, input->name, &r.stream);
    lplb_trace *trace = NULL;
    lplb_status status;
    char *line;
    LPLB_TRY_GOTO(status, LPLB_CALLOC(r.buffer, MAX_LINE), done);
    LPLB_TRY_GOTO(status, read_heading(&r), done);
    for (;;) {
        LPLB_TRY_GOTO(status, next_line(&r, &line), done);
        if (!line) break;
        if (*line) LPLB_TRY_GOTO(status, add_row(&r, line), done);
    }
    if (r.n == 0)
        LPLB_FAIL_GOTO(status, done, LPLB_FORMAT, "%s has no rows below the heading", r.name);
    status = build(&r, options, &trace);
done:
    lplb__free(r.buffer);
    lplb__free(r.cells);
    if (status != LPLB_OK) {
        lplb_trace_destroy(trace);
        trace = NULL;
    }
    *out = trace;
    return status;
}
