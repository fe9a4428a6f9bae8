/* One batch's problem as `lplb plan` and `lplb explain` read it (docs/formats.md). */
#ifndef LPLB_CLI_PROBLEM_H
#define LPLB_CLI_PROBLEM_H

#include "cli/cli.h"

typedef struct problem {
    int32_t ranks, experts;
    int64_t *offset, *tokens, *speed, *fixed, *sources, *split, *loads;
    int32_t *rank, *node;
    double *cost;
    int64_t cost_entries;
    uint64_t *certificate, *bottleneck;
} problem;

/* Reads a problem; false after printing what is wrong, naming the command. */
bool problem_read(const char *command_name, const json_t *document, problem *out);
void problem_free(problem *p);

#endif
