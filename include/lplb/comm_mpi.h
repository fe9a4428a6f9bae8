/* Communicators over MPI: in the library lplb_mpi, so that lplb itself needs no MPI. */
#ifndef LPLB_COMM_MPI_H
#define LPLB_COMM_MPI_H

#include <lplb/comm.h>

LPLB_BEGIN_DECLS

/* comm: MPI_Comm_c2f() of the ranks' communicator (mpi4py: comm.py2f()); it is duplicated, a
 * collective call. max_bytes as in lplb_transport, at most 2^31 - 1. After a timeout the library
 * cannot take its message back: what MPI still holds is left to it, and MPI_Finalize may wait for
 * the missing rank; end such a job with MPI_Abort. Destroy it before MPI_Finalize. */
LPLB_API lplb_status lplb_comm_create_mpi(int comm, int64_t max_bytes, int64_t timeout_ns,
                                          lplb_comm **out);

LPLB_END_DECLS

#endif
