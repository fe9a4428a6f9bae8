/* lplb_plan_parse_solver: solver names with options, as the command line and policies write them.
 */
#include <stdlib.h>
#include <string.h>

#include "plan/plan.h"

enum { WORD_BYTES = 64 };

static lplb_status parse_name(const char *name, lplb_solver *solver) {
    for (int s = LPLB_SOLVER_EXACT; s <= LPLB_SOLVER_BALANCE; s++)
        if (!strcmp(name, lplb_solver_name((lplb_solver)s))) {
            *solver = (lplb_solver)s;
            return LPLB_OK;
        }
    return LPLB_FAIL(LPLB_INVALID,
                     "no solver '%s'; there are exact, ipm, ipm:published, even, "
                     "greedy, waterfill and balance",
                     name);
}

static lplb_status parse_number(const char *option, const char *value, double low, double high,
                                double *out) {
    char *end;
    *out = value ? strtod(value, &end) : 0;
    if (!value || end == value || *end || !(*out >= low && *out <= high))
        return LPLB_FAIL(LPLB_INVALID, "solver option %s wants a number from %g to %g, not '%s'",
                         option, low, high, value ? value : "");
    return LPLB_OK;
}

static lplb_status parse_ipm_option(const char *option, const char *value,
                                    lplb_plan_config *config) {
    double number;
    if (!strcmp(option, "published") && !value) {
        config->ipm.published = 1;
    } else if (!strcmp(option, "iterations")) {
        LPLB_TRY(parse_number(option, value, 1, 1000, &number));
        config->ipm.iterations = (int32_t)number;
    } else if (!strcmp(option, "tolerance")) {
        LPLB_TRY(parse_number(option, value, 1e-15, 1, &config->ipm.tolerance));
    } else if (!strcmp(option, "step")) {
        LPLB_TRY(parse_number(option, value, 1e-3, 0.999999, &config->ipm.step));
    } else {
        return LPLB_FAIL(LPLB_INVALID,
                         "ipm has no option '%s'; it has published, iterations=N, "
                         "tolerance=X and step=X",
                         option);
    }
    return LPLB_OK;
}

static lplb_status parse_option(const char *option, const char *value, lplb_plan_config *config,
                                int32_t *locality) {
    if (config->solver == LPLB_SOLVER_IPM) return parse_ipm_option(option, value, config);
    double number;
    if (!strcmp(option, "tolerance") && config->solver == LPLB_SOLVER_EVEN)
        return LPLB_FAIL(LPLB_INVALID, "even takes no tolerance: it always splits evenly");
    if (!strcmp(option, "tolerance"))
        return parse_number(option, value, 1, 1e4, &config->tolerance);
    if (!strcmp(option, "locality") && locality && config->solver == LPLB_SOLVER_EXACT) {
        LPLB_TRY(parse_number(option, value, 0, 1, &number));
        *locality = number != 0;
        return LPLB_OK;
    }
    return LPLB_FAIL(LPLB_INVALID, "%s has no option '%s'; it has tolerance=X%s",
                     lplb_solver_name(config->solver), option,
                     locality && config->solver == LPLB_SOLVER_EXACT ? " and locality=0|1" : "");
}

lplb_status lplb_plan_parse_solver(const char *text, lplb_plan_config *config, int32_t *locality) {
    char word[WORD_BYTES];
    size_t length = strcspn(text, ":");
    if (length >= sizeof word)
        return LPLB_FAIL(LPLB_INVALID, "solver name '%.20s...' is too long", text);
    memcpy(word, text, length);
    word[length] = '\0';
    LPLB_TRY(parse_name(word, &config->solver));
    config->ipm = (lplb_ipm_options){0};
    config->tolerance = 0;
    if (locality) *locality = 0;
    for (const char *at = text + length; *at;) {
        at++; /* ':' or ',' */
        length = strcspn(at, ",");
        if (length >= sizeof word)
            return LPLB_FAIL(LPLB_INVALID, "solver option '%.20s...' is too long", at);
        memcpy(word, at, length);
        word[length] = '\0';
        char *equals = strchr(word, '=');
        if (equals) *equals = '\0';
        LPLB_TRY(parse_option(word, equals ? equals + 1 : NULL, config, locality));
        at += length;
    }
    return LPLB_OK;
}
