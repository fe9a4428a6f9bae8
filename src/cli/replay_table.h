/* What lplb replay prints for people. */
#ifndef LPLB_CLI_REPLAY_TABLE_H
#define LPLB_CLI_REPLAY_TABLE_H

#include "cli/cli.h"

/* Policy with the smallest mean imbalance, ideal apart; -1 if there is none. */
int32_t best_policy(const lplb_replay_result *result);

void print_replay(const lplb_trace *trace, const lplb_replay_result *result);

/* "ranks 5, 6 and 7": the list ends with "and N more" after most of them. */
void print_list(const char *one, const char *many, const int32_t *list, int32_t n, int32_t most);

#endif
