#include "cli/problem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *name; /* of the command, for messages */

static bool read_int(const json_t *value, const char *what, int64_t index, int64_t low,
                     int64_t high, int64_t *out) {
    double real = json_is_real(value) ? json_real_value(value) : 0;
    if (json_is_integer(value)) {
        *out = json_integer_value(value);
    } else if (json_is_real(value) && real == floor(real) && fabs(real) < 9007199254740992.0) {
        *out = (int64_t)real;
    } else {
        cli_fail(name, EXIT_USAGE, "%s[%lld] must be a whole number", what, (long long)index);
        return false;
    }
    if (*out >= low && *out <= high) return true;
    cli_fail(name, EXIT_USAGE, "%s[%lld] is %lld, must be from %lld to %lld", what,
             (long long)index, (long long)*out, (long long)low, (long long)high);
    return false;
}

/* An optional array of `count` whole numbers; *out stays NULL when it is absent. */
static bool read_ints(const json_t *object, const char *key, int64_t count, int64_t low,
                      int64_t high, int64_t **out) {
    const json_t *array = json_object_get(object, key);
    if (!array || json_is_null(array)) return true;
    if (!json_is_array(array) || (int64_t)json_array_size(array) != count) {
        cli_fail(name, EXIT_USAGE, "\"%s\" must be an array of %lld numbers", key,
                 (long long)count);
        return false;
    }
    *out = cli_need((size_t)count + 1, sizeof **out);
    for (int64_t i = 0; i < count; i++)
        if (!read_int(json_array_get(array, (size_t)i), key, i, low, high, &(*out)[i]))
            return false;
    return true;
}

static bool read_cost(const json_t *document, problem *p) {
    const json_t *cost = json_object_get(document, "cost");
    if (!cost) return true;
    if (!json_is_array(cost) || json_array_size(cost) != (size_t)p->ranks)
        return cli_fail(name, EXIT_USAGE, "\"cost\" must have one row per rank"), false;
    p->cost_entries = (int64_t)json_array_size(json_array_get(cost, 0));
    if (p->cost_entries < 1)
        return cli_fail(name, EXIT_USAGE, "\"cost\"[0] must be a row of numbers"), false;
    p->cost = cli_need((size_t)(p->ranks * p->cost_entries), sizeof *p->cost);
    for (int32_t r = 0; r < p->ranks; r++) {
        const json_t *row = json_array_get(cost, (size_t)r);
        if ((int64_t)json_array_size(row) != p->cost_entries)
            return cli_fail(name, EXIT_USAGE, "\"cost\"[%d] must have %lld entries like the first",
                            r, (long long)p->cost_entries),
                   false;
        for (int64_t i = 0; i < p->cost_entries; i++) {
            const json_t *value = json_array_get(row, (size_t)i);
            if (!json_is_number(value))
                return cli_fail(name, EXIT_USAGE, "\"cost\"[%d][%lld] must be a number", r,
                                (long long)i),
                       false;
            p->cost[r * p->cost_entries + i] = json_number_value(value);
        }
    }
    return true;
}

/* Hosts of all experts; counts them first. */
static bool read_hosts(const json_t *experts, problem *p) {
    int64_t copies = 0;
    for (int32_t e = 0; e < p->experts; e++) {
        const json_t *hosts = json_object_get(json_array_get(experts, (size_t)e), "hosts");
        if (!json_is_array(hosts) || json_array_size(hosts) == 0)
            return cli_fail(name, EXIT_USAGE,
                            "expert %d needs \"hosts\", an array of at least one "
                            "rank",
                            e),
                   false;
        p->offset[e] = copies;
        copies += (int64_t)json_array_size(hosts);
    }
    p->offset[p->experts] = copies;
    p->rank = cli_need((size_t)copies + 1, sizeof *p->rank);
    p->split = cli_need((size_t)copies + 1, sizeof *p->split);
    for (int32_t e = 0; e < p->experts; e++) {
        const json_t *hosts = json_object_get(json_array_get(experts, (size_t)e), "hosts");
        for (int64_t i = p->offset[e]; i < p->offset[e + 1]; i++) {
            int64_t r;
            char what[48];
            snprintf(what, sizeof what, "experts[%d].hosts", e);
            if (!read_int(json_array_get(hosts, (size_t)(i - p->offset[e])), what, i - p->offset[e],
                          0, p->ranks - 1, &r))
                return false;
            p->rank[i] = (int32_t)r;
        }
    }
    return true;
}

static bool read_expert(const json_t *expert, problem *p, int32_t e, bool *any_sources) {
    const json_t *tokens = json_object_get(expert, "tokens");
    if (!read_int(tokens, "tokens of expert ", e, 0, LPLB_MAX_TOKENS, &p->tokens[e])) return false;
    int64_t *sources = NULL;
    bool fine = read_ints(expert, "sources", p->ranks, 0, LPLB_MAX_TOKENS, &sources);
    if (fine && sources && !*any_sources && e > 0)
        fine = cli_fail(name, EXIT_USAGE, "expert %d has \"sources\" but expert 0 has not", e) < 0;
    if (fine && !sources && *any_sources)
        fine = cli_fail(name, EXIT_USAGE, "expert %d has no \"sources\" but expert 0 has", e) < 0;
    if (fine && sources) {
        *any_sources = true;
        if (!p->sources) p->sources = cli_need((size_t)p->ranks * (size_t)p->experts, 8);
        for (int32_t r = 0; r < p->ranks; r++) p->sources[(int64_t)r * p->experts + e] = sources[r];
    }
    free(sources);
    return fine;
}

static bool check_keys(const json_t *object, const char *where, const char *const *known) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        bool found = false;
        for (int i = 0; known[i]; i++) found |= !strcmp(key, known[i]);
        if (!found)
            return cli_fail(name, EXIT_USAGE, "unknown key \"%s\" in %s", key, where), false;
    }
    return true;
}

static bool read_problem(const json_t *document, problem *p) {
    static const char *const keys[] = {"ranks", "speed",   "fixed",  "node",
                                       "cost",  "experts", "schema", NULL};
    static const char *const expert_keys[] = {"tokens", "hosts", "sources", NULL};
    int64_t ranks, *node = NULL;
    if (!json_is_object(document))
        return cli_fail(name, EXIT_USAGE, "the problem must be a JSON object"), false;
    if (!check_keys(document, "the problem", keys)) return false;
    if (!json_object_get(document, "ranks"))
        return cli_fail(name, EXIT_USAGE, "the problem needs \"ranks\""), false;
    if (!read_int(json_object_get(document, "ranks"), "ranks", 0, 1, LPLB_MAX_RANKS, &ranks))
        return false;
    const json_t *experts = json_object_get(document, "experts");
    if (!json_is_array(experts))
        return cli_fail(name, EXIT_USAGE, "the problem needs \"experts\", an array"), false;
    p->ranks = (int32_t)ranks;
    p->experts = (int32_t)json_array_size(experts);
    p->offset = cli_need((size_t)p->experts + 1, sizeof *p->offset);
    p->tokens = cli_need((size_t)p->experts + 1, sizeof *p->tokens);
    p->loads = cli_need((size_t)ranks, sizeof *p->loads);
    p->certificate = cli_need((size_t)(ranks + 63) / 64, 8);
    p->bottleneck = cli_need((size_t)(ranks + 63) / 64, 8);
    for (int32_t e = 0; e < p->experts; e++)
        if (!json_is_object(json_array_get(experts, (size_t)e)))
            return cli_fail(name, EXIT_USAGE, "experts[%d] must be an object", e), false;
    bool any_sources = false;
    for (int32_t e = 0; e < p->experts; e++) {
        const json_t *expert = json_array_get(experts, (size_t)e);
        if (!check_keys(expert, "an expert", expert_keys) ||
            !read_expert(expert, p, e, &any_sources))
            return false;
    }
    bool fine = read_hosts(experts, p) && read_cost(document, p) &&
                read_ints(document, "speed", ranks, 1, LPLB_MAX_SPEED, &p->speed) &&
                read_ints(document, "fixed", ranks, 0, LPLB_MAX_TOKENS, &p->fixed) &&
                read_ints(document, "node", ranks, INT32_MIN, INT32_MAX, &node);
    if (fine && node) {
        p->node = cli_need((size_t)ranks, sizeof *p->node);
        for (int64_t r = 0; r < ranks; r++) p->node[r] = (int32_t)node[r];
    }
    free(node);
    return fine;
}

bool problem_read(const char *command_name, const json_t *document, problem *out) {
    name = command_name;
    return read_problem(document, out);
}

void problem_free(problem *p) {
    void *blocks[] = {p->offset, p->tokens, p->speed, p->fixed, p->sources,     p->split,
                      p->loads,  p->rank,   p->node,  p->cost,  p->certificate, p->bottleneck};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) free(blocks[i]);
}
