/* JSON through jansson, with bounded input and messages that name the place. */
#ifndef LPLB_IO_JSON_H
#define LPLB_IO_JSON_H

#include <jansson.h>
#include <stdint.h>

#include "io/input.h"

/* jansson's tree takes up to about 100 bytes for one byte of text ("{},{},..."). */
enum { LPLB__JSON_EXPANSION = 64 };

/* One document. *rest, if not NULL, is the byte after the document when more text follows it
 * (lines of JSON), else -1; without rest, more text is an error. */
lplb_status lplb__json_parse(const char *text, int64_t bytes, const char *name, int64_t *rest,
                             json_t **out);

/* A whole number, also when written as 12.0; path names it in the message: "split[3]". */
lplb_status lplb__json_whole(const json_t *value, const char *name, const char *path, int64_t low,
                             int64_t high, int64_t *out);

#endif
