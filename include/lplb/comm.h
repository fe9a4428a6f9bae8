/* Ranks that share what they need to plan alike: one all-gather of a few kilobytes a batch.
 *
 * Every rank calls the same functions in the same order, also with zero tokens. A call that cannot
 * be completed by all ranks (one is gone, or slower than the timeout) fails on the ranks that wait
 * and leaves their communicator dead: every later call returns LPLB_REMOTE at once, until the
 * communicator is destroyed and made again on all ranks. One thread at a time per communicator. */
#ifndef LPLB_COMM_H
#define LPLB_COMM_H

#include <lplb/status.h>
#include <stdint.h>

LPLB_BEGIN_DECLS

/* How a communicator gathers. A transport of one's own (MPI, a framework's collectives) fills one
 * of these; lplb_comm adds the checks, the messages and the dead state. */
typedef struct lplb_transport {
    size_t struct_size;
    const char *name; /* for messages; copied */
    int32_t rank, ranks;
    int64_t max_bytes; /* most that one rank contributes to a call, >= 256 */
    void *state;       /* belongs to the communicator once that is made */
    /* Every rank gives `bytes` bytes (the same number); receive [ranks][bytes] by rank. Returns
     * within about timeout_ns. On failure: LPLB_TIMEOUT, LPLB_REMOTE or LPLB_DISAGREE and a
     * sentence in message, terminated. */
    lplb_status (*all_gather)(void *state, const void *send, void *receive, int64_t bytes,
                              int64_t timeout_ns, char *message, size_t message_bytes);
    void (*destroy)(void *state); /* may be NULL */
} lplb_transport;

#define LPLB_COMM_DEFAULT_TIMEOUT_NS 10000000000 /* 10 s */

typedef struct lplb_comm lplb_comm;

/* With a transport of one's own; on failure its state still belongs to the caller. timeout_ns of
 * every call, 0 = default. */
LPLB_API lplb_status lplb_comm_create(const lplb_transport *transport, int64_t timeout_ns,
                                      lplb_comm **out);
/* One rank, nothing to share. */
LPLB_API lplb_status lplb_comm_create_local(lplb_comm **out);
/* Ranks of one host over POSIX shared memory. name: 1-200 of [A-Za-z0-9._-], the same on all ranks
 * and used by nobody else (a job's id and a random part). Waits for all ranks, at most the timeout;
 * nothing is left in /dev/shm once all have joined or a rank gives up. LPLB_DISAGREE when the ranks
 * give other numbers of ranks or bytes. */
LPLB_API lplb_status lplb_comm_create_shm(const char *name, int32_t rank, int32_t ranks,
                                          int64_t max_bytes, int64_t timeout_ns, lplb_comm **out);
/* interrupted is asked about every 50 ms while a rank of this process waits in shared memory, from
 * the thread that waits; an answer other than 0 ends the wait as the timeout does. For hosts whose
 * own signal handlers do not run inside a call, as Python's. Of the whole process; NULL: none. */
LPLB_API void lplb_comm_set_interrupt(int32_t (*interrupted)(void));
/* Tells the others that this rank leaves; NULL is fine. */
LPLB_API void lplb_comm_destroy(lplb_comm *comm);

LPLB_API int32_t lplb_comm_rank(const lplb_comm *comm);
LPLB_API int32_t lplb_comm_ranks(const lplb_comm *comm);
LPLB_API const char *lplb_comm_transport_name(const lplb_comm *comm); /* "local", "shm", ... */
/* LPLB_OK while it works, else the status of the call that killed it. */
LPLB_API lplb_status lplb_comm_state(const lplb_comm *comm);

/* receive [ranks][bytes]; bytes the same on all ranks, at most the transport's max_bytes. */
LPLB_API lplb_status lplb_comm_all_gather(lplb_comm *comm, const void *send, void *receive,
                                          int64_t bytes);

/* Bytes of max_bytes that lplb_comm_gather_counts needs for E experts. */
#define LPLB_COMM_COUNTS_BYTES(experts) (((int64_t)(experts) + 2) * (int64_t)sizeof(int64_t))
/* The counts of all ranks: counts [E] of this one, source_counts [ranks][E]. tag stands for what
 * the ranks must agree on beside the counts (a hash of the placement, the layer and the options of
 * the call, say): LPLB_DISAGREE names the ranks whose tag or E differs from this one's. counts NULL
 * = this rank takes part without any, because it has refused its batch: LPLB_REMOTE on every rank
 * names it, and the next calls pair as they should. Either way all ranks fail alike and the
 * communicator lives. No allocation. */
LPLB_API lplb_status lplb_comm_gather_counts(lplb_comm *comm, uint64_t tag, const int64_t *counts,
                                             int32_t experts, int64_t *source_counts);

enum { LPLB_COMM_MAX_ITEMS = 31 };
/* Compares n named values (at most LPLB_COMM_MAX_ITEMS, texts) among the ranks. LPLB_DISAGREE on
 * every rank when any differs from rank 0's, naming the item, the ranks and this rank's value; the
 * communicator lives. */
LPLB_API lplb_status lplb_comm_agree(lplb_comm *comm, const char *const *item,
                                     const char *const *value, int32_t n);

LPLB_END_DECLS

#endif
