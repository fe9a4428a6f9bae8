/* Process groups over MPI. */
#ifndef LPLB_COMM_MPI_GROUP_MPI_H
#define LPLB_COMM_MPI_GROUP_MPI_H

#include "comm/group.h"

/* Starts MPI if it is not started, and makes the group of all processes. */
lplb_status lplb__group_mpi_world(int *argc, char ***argv, lplb__group **out);
/* Ends MPI if this library started it. No group may be used afterwards. */
void lplb__group_mpi_finish(void);
/* Ends the whole job at once, because one rank cannot go on; does not return. */
void lplb__group_mpi_abort(int code) __attribute__((noreturn));

#endif
