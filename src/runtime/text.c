#include "runtime/text.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

void lplb__put(lplb__text *text, const char *format, ...) {
    size_t room = text->used < text->capacity ? text->capacity - text->used : 0;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(room ? text->buffer + text->used : NULL, room, format, args);
    va_end(args);
    if (n > 0) text->used += (size_t)n;
}

/* Bytes of the UTF-8 sequence at s, 0 if it is none (overlong forms and surrogates included). */
static int utf8_length(const unsigned char *s) {
    if (s[0] < 0x80) return 1;
    int n = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4) return 0;
    for (int i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
        (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return n;
}

void lplb__put_json_string(lplb__text *text, const char *string) {
    lplb__put(text, "\"");
    for (const unsigned char *s = (const unsigned char *)string; *s;) {
        int n = utf8_length(s);
        if (n == 0) {
            lplb__put(text, "\\ufffd");
            n = 1;
        } else if (*s == '"' || *s == '\\') {
            lplb__put(text, "\\%c", *s);
        } else if (*s < 0x20 || *s == 0x7f) {
            lplb__put(text, "\\u%04x", *s);
        } else {
            lplb__put(text, "%.*s", n, (const char *)s);
        }
        s += n;
    }
    lplb__put(text, "\"");
}

void lplb__put_json_real(lplb__text *text, double value) {
    if (isfinite(value)) lplb__put(text, "%.9g", value);
    else lplb__put(text, "null");
}
