#include "io/json.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"

lplb__json_cursor lplb__json_begin(const char *text, int64_t bytes, const char *name,
                                   int64_t max_bytes) {
    return (lplb__json_cursor){.text = text, .bytes = bytes, .name = name, .max_bytes = max_bytes};
}

static bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

char lplb__json_peek(lplb__json_cursor *cursor) {
    while (cursor->at < cursor->bytes && is_blank(cursor->text[cursor->at])) cursor->at++;
    return cursor->at < cursor->bytes ? cursor->text[cursor->at] : '\0';
}

bool lplb__json_take(lplb__json_cursor *cursor, char wanted) {
    if (lplb__json_peek(cursor) != wanted || cursor->at == cursor->bytes) return false;
    cursor->at++;
    return true;
}

static int64_t line_at(const lplb__json_cursor *cursor, int64_t at) {
    int64_t line = 1;
    for (int64_t i = 0; i < at; i++) line += cursor->text[i] == '\n';
    return line;
}

lplb_status lplb__json_expected(const lplb__json_cursor *cursor, const char *wanted) {
    return LPLB_FAIL(LPLB_FORMAT, "%s, line %lld (byte %lld): %s expected%s", cursor->name,
                     (long long)line_at(cursor, cursor->at), (long long)cursor->at, wanted,
                     cursor->at == cursor->bytes ? ", the file ends" : "");
}

lplb_status lplb__json_next(lplb__json_cursor *cursor, char closing, bool first, bool *more) {
    *more = false;
    if (lplb__json_take(cursor, closing)) return LPLB_OK;
    if (!first && !lplb__json_take(cursor, ','))
        return lplb__json_expected(cursor, closing == '}' ? ", or }" : ", or ]");
    *more = true;
    return LPLB_OK;
}

/* End of the value that starts at `at`: quotes and brackets are matched, nothing else is checked,
 * the parser does that. */
static int64_t value_end(const lplb__json_cursor *cursor, int64_t at) {
    const char *text = cursor->text;
    int64_t depth = 0;
    for (; at < cursor->bytes; at++) {
        char c = text[at];
        if (c == '"') {
            for (at++; at < cursor->bytes && text[at] != '"'; at++)
                if (text[at] == '\\') at++;
            if (depth == 0) return at < cursor->bytes ? at + 1 : cursor->bytes;
        } else if (c == '[' || c == '{') {
            depth++;
        } else if (c == ']' || c == '}') {
            if (depth == 0) return at;
            if (--depth == 0) return at + 1;
        } else if (depth == 0 && (c == ',' || c == ':' || is_blank(c))) {
            return at;
        }
    }
    return cursor->bytes;
}

lplb_status lplb__json_value(lplb__json_cursor *cursor, json_t **out) {
    *out = NULL;
    if (lplb__json_peek(cursor) == '\0') return lplb__json_expected(cursor, "a value");
    int64_t start = cursor->at, end = value_end(cursor, start);
    if (end - start > cursor->max_bytes / LPLB__JSON_EXPANSION)
        return LPLB_FAIL(LPLB_RANGE,
                         "%s: the value at byte %lld has %lld bytes, at most %lld are read as one",
                         cursor->name, (long long)start, (long long)(end - start),
                         (long long)(cursor->max_bytes / LPLB__JSON_EXPANSION));
    json_error_t error;
    *out = json_loadb(cursor->text + start, (size_t)(end - start),
                      JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    if (!*out) {
        if (json_error_code(&error) == json_error_out_of_memory)
            return LPLB_FAIL(LPLB_NO_MEMORY, "%s: not enough memory", cursor->name);
        return LPLB_FAIL(LPLB_FORMAT, "%s, line %lld (byte %lld): %s", cursor->name,
                         (long long)(line_at(cursor, start) + error.line - 1),
                         (long long)(start + error.position), error.text);
    }
    cursor->at = end;
    return LPLB_OK;
}

lplb_status lplb__json_key(lplb__json_cursor *cursor, char *key, size_t bytes) {
    json_t *text;
    if (lplb__json_peek(cursor) != '"') return lplb__json_expected(cursor, "a key");
    LPLB_TRY(lplb__json_value(cursor, &text));
    size_t length = json_string_length(text);
    if (length >= bytes) length = bytes - 1;
    memcpy(key, json_string_value(text), length);
    key[length] = '\0';
    json_decref(text);
    return lplb__json_take(cursor, ':') ? LPLB_OK : lplb__json_expected(cursor, ":");
}

lplb_status lplb__json_end(lplb__json_cursor *cursor) {
    (void)lplb__json_peek(cursor);
    return cursor->at == cursor->bytes ? LPLB_OK : lplb__json_expected(cursor, "the end");
}

lplb_status lplb__json_load(const lplb__input *input, json_t **out) {
    *out = NULL;
    char *text;
    LPLB_TRY(lplb__input_load(input, &text));
    lplb__json_cursor cursor = lplb__json_begin(text, input->bytes, input->name, input->max_bytes);
    lplb_status status = lplb__json_value(&cursor, out);
    if (status == LPLB_OK) status = lplb__json_end(&cursor);
    if (status != LPLB_OK) {
        json_decref(*out);
        *out = NULL;
    }
    lplb__free(text);
    return status;
}

static const char *kind_of(const json_t *value) {
    if (!value) return "missing";
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "a list";
    case JSON_STRING: return "a text";
    case JSON_NULL: return "null";
    case JSON_TRUE:
    case JSON_FALSE: return "true or false";
    default: return "a number";
    }
}

lplb_status lplb__json_whole(const json_t *value, const char *name, const char *path, int64_t low,
                             int64_t high, int64_t *out) {
    int64_t number;
    if (json_is_integer(value)) {
        number = json_integer_value(value);
    } else if (json_is_real(value)) {
        double real = json_real_value(value);
        if (!(fabs(real) <= 0x1p62) || real != floor(real))
            return LPLB_FAIL(LPLB_RANGE, "%s: %s is %g, not a whole number", name, path, real);
        number = (int64_t)real;
    } else {
        return LPLB_FAIL(LPLB_FORMAT, "%s: %s is %s, a whole number is wanted", name, path,
                         kind_of(value));
    }
    if (number < low || number > high)
        return LPLB_FAIL(LPLB_RANGE, "%s: %s is %lld, outside [%lld, %lld]", name, path,
                         (long long)number, (long long)low, (long long)high);
    *out = number;
    return LPLB_OK;
}
