/* Process groups over MPI. */
#ifndef LPLB_COMM_MPI_GROUP_MPI_H
#define LPLB_COMM_MPI_GROUP_MPI_H

#include <stdbool.h>

#include "comm/group.h"

/* Starts MPI if it is not started, and makes the group of all processes. */
lplb_status lplb__group_mpi_world(int *argc, char ***argv, lplb__group **out);
/* Ends MPI if this library started it. No group may be used afterwards. */
void lplb__group_mpi_finish(void);
/* Called by a rank that cannot go on. Waits `seconds` for all others to come here too; then *alone
 * is false, *speaker the rank whose message says most, the lowest one whose failure is its own, and
 * *code (0-255) becomes that rank's. Otherwise *alone is true: others still work, and only an abort
 * ends them. */
void lplb__group_mpi_failed(lplb__group *world, bool own, double seconds, bool *alone, int *speaker,
                            int *code);
/* Ends the whole job at once, because one rank cannot go on; does not return. */
void lplb__group_mpi_abort(int code) __attribute__((noreturn));

#endif
