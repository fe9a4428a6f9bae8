/* Names of policies: "PLACEMENT[+SOLVER[:option=value,...]]". */
#include <string.h>

#include "replay/replay.h"

static const char *const PLACEMENTS = "none, eplb, topology, search, file:PATH, ideal, lplb";

static const struct {
    const char *name;
    lplb__placement_kind kind;
} placements[] = {
    {"none", LPLB__KIND_NONE},     {"eplb", LPLB__KIND_EPLB},   {"topology", LPLB__KIND_TOPOLOGY},
    {"search", LPLB__KIND_SEARCH}, {"ideal", LPLB__KIND_IDEAL},
};

static lplb_status copy_text(const char *text, size_t length, char **out) {
    LPLB_TRY(LPLB_CALLOC(*out, length + 1));
    memcpy(*out, text, length);
    return LPLB_OK;
}

static bool is_solver(const char *text, size_t length) {
    for (int s = LPLB_SOLVER_EXACT; s <= LPLB_SOLVER_BALANCE; s++) {
        const char *name = lplb_solver_name((lplb_solver)s);
        if (strlen(name) == length && !strncmp(name, text, length)) return true;
    }
    return false;
}

/* Where the solver begins: behind the last '+', which in a file's name may also be part of it. */
static const char *find_solver(const char *text, bool is_file) {
    const char *plus = strrchr(text, '+');
    if (plus && is_file && !is_solver(plus + 1, strcspn(plus + 1, ":"))) return NULL;
    return plus ? plus + 1 : NULL;
}

static lplb_status parse_placement(const char *policy, const char *name, lplb__policy *out) {
    if (!strncmp(name, "file:", 5)) {
        out->kind = LPLB__KIND_FILE;
        if (!name[5]) return LPLB_FAIL(LPLB_INVALID, "policy '%s': file: needs a path", policy);
        return copy_text(name + 5, strlen(name + 5), &out->path);
    }
    for (size_t i = 0; i < sizeof placements / sizeof placements[0]; i++)
        if (!strcmp(name, placements[i].name)) {
            out->kind = placements[i].kind;
            return LPLB_OK;
        }
    return LPLB_FAIL(LPLB_INVALID, "policy '%s': no placement '%s'; there are %s", policy, name,
                     PLACEMENTS);
}

static lplb_status parse(const char *text, lplb__policy *out) {
    if (!strcmp(text, "lplb")) return parse("topology+exact", out);
    const char *solver = find_solver(text, !strncmp(text, "file:", 5));
    size_t length = solver ? (size_t)(solver - 1 - text) : strlen(text);
    LPLB_TRY(copy_text(text, length, &out->placement_name));
    if (solver && !strcmp(out->placement_name, "lplb"))
        return LPLB_FAIL(LPLB_INVALID,
                         "policy '%s': lplb stands for topology+exact; write "
                         "topology+%s",
                         text, solver);
    LPLB_TRY(parse_placement(text, out->placement_name, out));
    if (out->kind == LPLB__KIND_IDEAL && solver)
        return LPLB_FAIL(LPLB_INVALID, "policy '%s': ideal takes no solver; write ideal", text);
    if (out->kind == LPLB__KIND_IDEAL) return copy_text("", 0, &out->solver_name);
    if (!solver) solver = "even";
    int32_t locality;
    if (lplb_plan_parse_solver(solver, &out->plan, &locality) != LPLB_OK)
        return LPLB_FAIL(LPLB_INVALID, "policy '%s': %s", text, lplb_error_message());
    out->locality = locality;
    out->solves = out->plan.solver != LPLB_SOLVER_EVEN;
    return copy_text(solver, strlen(solver), &out->solver_name);
}

lplb_status lplb__policy_parse(const char *text, lplb__policy *out) {
    *out = (lplb__policy){.plan = {.struct_size = sizeof(lplb_plan_config)}};
    lplb_status status = parse(text, out);
    if (status != LPLB_OK) lplb__policy_destroy(out);
    return status;
}

void lplb__policy_destroy(lplb__policy *policy) {
    lplb__free(policy->path);
    lplb__free(policy->placement_name);
    lplb__free(policy->solver_name);
    *policy = (lplb__policy){0};
}
