/* As much of HTTP/1.1 as reading figures takes: one GET or HEAD a connection. Pure functions. */
#ifndef LPLB_RUNTIME_HTTP_H
#define LPLB_RUNTIME_HTTP_H

#include <stdbool.h>
#include <stddef.h>

#include "runtime/text.h"

enum { LPLB__HTTP_REQUEST_BYTES = 4096 };

typedef struct lplb__http_request {
    bool head;
    char path[128]; /* without the query */
} lplb__http_request;

/* Status: 0 = not complete yet, 200 = understood, else the code to refuse it with. */
int lplb__http_parse(const char *bytes, size_t n, lplb__http_request *out);
/* Status line and headers; the body follows unless it was a HEAD. */
void lplb__http_headers(lplb__text *out, int status, const char *type, size_t body_bytes);

#endif
