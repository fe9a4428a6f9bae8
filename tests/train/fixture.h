/* What the tests of training share: a skewed made-up text, a small model, ranks. */
#ifndef LPLB_TESTS_TRAIN_FIXTURE_H
#define LPLB_TESTS_TRAIN_FIXTURE_H

#include "comm/mpi/group_mpi.h"
#include "train/trainer.h"

extern lplb__group *world; /* all ranks of mpirun */
extern corpus text;        /* of words whose letters are skewed, so that routing is uneven */

trainer_config small_config(int64_t steps, int64_t sequences);

/* Fails the test with the library's message. */
void must(lplb_status status);

/* main() of a test under mpirun: makes world and text, runs, and ends all ranks if one failed. */
int run_on_ranks(int argc, char **argv, int (*run_all)(void));

#endif
