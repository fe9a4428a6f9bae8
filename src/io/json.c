#include "io/json.h"

#include <math.h>
#include <string.h>

lplb_status lplb__json_parse(const char *text, int64_t bytes, const char *name, int64_t *rest,
                             json_t **out) {
    json_error_t error;
    size_t flags = JSON_REJECT_DUPLICATES | JSON_DECODE_ANY;
    *out = json_loadb(text, (size_t)bytes, flags | (rest ? JSON_DISABLE_EOF_CHECK : 0), &error);
    if (!*out)
        return LPLB_FAIL(json_error_code(&error) == json_error_out_of_memory ? LPLB_NO_MEMORY
                                                                             : LPLB_FORMAT,
                         "%s, line %d, column %d (byte %d): %s", name, error.line, error.column,
                         error.position, error.text);
    if (!rest) return LPLB_OK;
    int64_t at = error.position; /* where the document ended */
    while (at < bytes && memchr(" \t\r\n", text[at], 4)) at++;
    *rest = at < bytes ? at : -1;
    return LPLB_OK;
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
        return LPLB_FAIL(
            LPLB_FORMAT, "%s: %s is %s, a whole number is wanted", name, path,
            !value ? "missing"
            : json_is_null(value)
                ? "null"
                : (json_is_string(value)
                       ? "a text"
                       : (json_is_boolean(value) ? "true or false" : "a list or object")));
    }
    if (number < low || number > high)
        return LPLB_FAIL(LPLB_RANGE, "%s: %s is %lld, outside [%lld, %lld]", name, path,
                         (long long)number, (long long)low, (long long)high);
    *out = number;
    return LPLB_OK;
}
