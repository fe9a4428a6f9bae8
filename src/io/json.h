/* JSON: jansson for values, and a cursor that walks the outer objects and lists of big documents so
 * that only one of their members is in memory as a tree at a time. Messages name file, line, column
 * and byte. */
#ifndef LPLB_IO_JSON_H
#define LPLB_IO_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "io/input.h"

/* jansson's tree takes up to about this many bytes for a byte of text ("[],[],..."). */
enum { LPLB__JSON_EXPANSION = 64 };

typedef struct lplb__json_cursor {
    const char *text; /* [bytes], need not end with a zero */
    int64_t bytes, at;
    const char *name;  /* of the file */
    int64_t max_bytes; /* for the tree of one value */
} lplb__json_cursor;

lplb__json_cursor lplb__json_begin(const char *text, int64_t bytes, const char *name,
                                   int64_t max_bytes);
/* The next character that is no blank, '\0' at the end. */
char lplb__json_peek(lplb__json_cursor *cursor);
/* True if `wanted` comes next after blanks; it is then passed. */
bool lplb__json_take(lplb__json_cursor *cursor, char wanted);
/* LPLB_FORMAT at the cursor: "FILE, line 3 (byte 40): expected WANTED". */
lplb_status lplb__json_expected(const lplb__json_cursor *cursor, const char *wanted);

/* Members of the object or items of the list whose opening bracket was taken:
 *     for (bool first = true;; first = false) { next(...); if (!more) break; ... } */
lplb_status lplb__json_next(lplb__json_cursor *cursor, char closing, bool first, bool *more);
/* The key of a member and its colon; keys longer than the buffer are cut. */
lplb_status lplb__json_key(lplb__json_cursor *cursor, char *key, size_t bytes);
/* One whole value of any kind. */
lplb_status lplb__json_value(lplb__json_cursor *cursor, json_t **out);
/* Nothing but blanks may follow. */
lplb_status lplb__json_end(lplb__json_cursor *cursor);

/* A document that fits into memory whole. */
lplb_status lplb__json_load(const lplb__input *input, json_t **out);

/* A whole number, also when written as 12.0; path names it in the message: "split[3]". */
lplb_status lplb__json_whole(const json_t *value, const char *name, const char *path, int64_t low,
                             int64_t high, int64_t *out);

#endif
