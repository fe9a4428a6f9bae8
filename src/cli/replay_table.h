/* What lplb replay prints for people. */
#ifndef LPLB_CLI_REPLAY_TABLE_H
#define LPLB_CLI_REPLAY_TABLE_H

#include "cli/cli.h"

/* Policy with the smallest mean imbalance, ideal apart; -1 if there is none. */
int32_t best_policy(const lplb_replay_result *result);

void print_replay(const lplb_trace *trace, const lplb_replay_result *result);

/* "experts 5, 6 and 7"; after `most` of them "and N more". */
void print_experts(const int32_t *expert, int32_t n, int32_t most);
/* "ranks 5 and 7", or "all ranks but 3" when that is shorter. ascending */
void print_ranks(const int32_t *rank, int32_t n, int32_t ranks);

#endif
