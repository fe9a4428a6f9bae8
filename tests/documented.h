/* Holding what a command prints to what docs/formats.md says it prints. For tests: include after
 * cmocka.h. */
#ifndef LPLB_TESTS_DOCUMENTED_H
#define LPLB_TESTS_DOCUMENTED_H

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cases/run_cli.h"

static inline json_t *at(const json_t *object, const char *key) {
    json_t *value = json_object_get(object, key);
    if (!value) fail_msg("no key \"%s\"", key);
    return value;
}

/* The same keys and kinds of values, recursively; of arrays the first item. Numbers and null may
 * stand for each other, and null for an object. */
static inline void check_shape(const json_t *value, const json_t *example, const char *where) {
    if (json_is_null(value) || json_is_null(example)) return;
    if (json_is_object(example)) {
        const char *key;
        json_t *part;
        json_object_foreach((json_t *)example, key, part) check_shape(at(value, key), part, key);
        if (json_object_size(value) != json_object_size(example))
            fail_msg("\"%s\" has keys that docs/formats.md does not have", where);
    } else if (json_is_array(example)) {
        assert_true(json_is_array(value));
        if (json_array_size(value) && json_array_size(example))
            check_shape(json_array_get(value, 0), json_array_get(example, 0), where);
    } else if (json_typeof(value) != json_typeof(example) &&
               !(json_is_boolean(value) && json_is_boolean(example))) {
        fail_msg("\"%s\" is of another type than in docs/formats.md", where);
    }
}

/* The example that docs/formats.md gives of this schema. */
static inline json_t *documented(const char *schema) {
    char *text = read_text(LPLB_SOURCE_DIR "/docs/formats.md", NULL), mark[64];
    snprintf(mark, sizeof mark, "```json\n{\n  \"schema\": \"%s\"", schema);
    char *begin = strstr(text, mark);
    if (!begin) fail_msg("docs/formats.md has no example of %s", schema);
    begin += strlen("```json\n");
    *strstr(begin, "```") = '\0';
    json_error_t error;
    json_t *document = json_loads(begin, JSON_REJECT_DUPLICATES, &error);
    if (!document) fail_msg("%s in docs/formats.md, line %d: %s", schema, error.line, error.text);
    free(text);
    return document;
}

static inline void check_documented(const json_t *document, const char *schema) {
    json_t *example = documented(schema);
    check_shape(document, example, schema);
    json_decref(example);
}

#endif
