#include "runtime/http.h"

#include <string.h>

/* End of the headers: behind the empty line; 0 if it has not come. */
static size_t find_end(const char *bytes, size_t n) {
    for (size_t i = 1; i < n; i++) {
        if (bytes[i] != '\n') continue;
        if (bytes[i - 1] == '\n') return i + 1;
        if (i >= 3 && bytes[i - 1] == '\r' && bytes[i - 2] == '\n') return i + 1;
    }
    return 0;
}

static bool is_version(const char *text, size_t n) {
    return n == 8 && (!memcmp(text, "HTTP/1.1", 8) || !memcmp(text, "HTTP/1.0", 8));
}

/* "GET /path?query HTTP/1.1" */
static int parse_line(const char *line, size_t n, lplb__http_request *out) {
    const char *first = memchr(line, ' ', n);
    if (!first) return 400;
    size_t method = (size_t)(first - line);
    const char *target = first + 1;
    const char *second = memchr(target, ' ', n - method - 1);
    if (!second) return 400;
    size_t length = (size_t)(second - target);
    if (!is_version(second + 1, n - method - 1 - length - 1)) return 505;
    out->head = method == 4 && !memcmp(line, "HEAD", 4);
    if (!out->head && !(method == 3 && !memcmp(line, "GET", 3))) return 405;
    const char *query = memchr(target, '?', length);
    if (query) length = (size_t)(query - target);
    if (length == 0 || target[0] != '/') return 400;
    if (length >= sizeof out->path) return 414;
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)target[i] <= 0x20 || (unsigned char)target[i] >= 0x7f) return 400;
    memcpy(out->path, target, length);
    out->path[length] = '\0';
    return 200;
}

int lplb__http_parse(const char *bytes, size_t n, lplb__http_request *out) {
    *out = (lplb__http_request){0};
    size_t end = find_end(bytes, n);
    if (!end) return n >= LPLB__HTTP_REQUEST_BYTES ? 431 : 0;
    const char *newline = memchr(bytes, '\n', n);
    size_t length = (size_t)(newline - bytes);
    if (length > 0 && bytes[length - 1] == '\r') length--;
    return parse_line(bytes, length, out);
}

static const char *reason(int status) {
    switch (status) {
    case 200: return "OK";
    case 400: return "Bad Request";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 414: return "URI Too Long";
    case 431: return "Request Header Fields Too Large";
    case 505: return "HTTP Version Not Supported";
    default: return "Internal Server Error";
    }
}

void lplb__http_headers(lplb__text *out, int status, const char *type, size_t body_bytes) {
    lplb__put(out,
              "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
              "Connection: close\r\nCache-Control: no-store\r\n"
              "X-Content-Type-Options: nosniff\r\n%s\r\n",
              status, reason(status), type, body_bytes,
              status == 405 ? "Allow: GET, HEAD\r\n" : "");
}
