/* Text into a fixed buffer: what does not fit is counted, not written. */
#ifndef LPLB_RUNTIME_TEXT_H
#define LPLB_RUNTIME_TEXT_H

#include <stddef.h>
#include <stdint.h>

typedef struct lplb__text {
    char *buffer;
    size_t capacity; /* with room for the NUL */
    size_t used;     /* what all of it would take, without the NUL */
} lplb__text;

void lplb__put(lplb__text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* With quotes; control characters and bytes that are not UTF-8 are escaped or replaced. */
void lplb__put_json_string(lplb__text *text, const char *string);
/* Nine digits; null for NaN and infinities. */
void lplb__put_json_real(lplb__text *text, double value);

#endif
