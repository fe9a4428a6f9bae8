/* Counts shared among the GPUs of several processes, inside lplb_cuda_run (docs/multi-gpu.md). In
 * the library lplb_cuda; needs no CUDA and no NCCL headers.
 *
 * Every rank makes one communicator, names it in lplb_cuda_config.comm, and then runs every step,
 * also with zero tokens, in the same order. Several planners may share one communicator if their
 * steps are ordered by one stream, in the same order on all ranks. A step of which a rank is gone,
 * or later than the timeout, ends in the planner's report as LPLB_TIMEOUT or LPLB_REMOTE; its ids,
 * and those of all steps that follow, are spread evenly over the copies of their experts, source by
 * source, until the communicator is made again on all ranks. Ranks that plan for different things
 * find LPLB_DISAGREE in their reports; the communicator goes on. */
#ifndef LPLB_CUDA_COMM_H
#define LPLB_CUDA_COMM_H

#include <lplb/cuda.h>

LPLB_BEGIN_DECLS

typedef enum lplb_cuda_transport {
    /* P2P on one node where the GPUs reach each other's memory, HIERARCHICAL on several nodes of
     * several ranks each, else NCCL */
    LPLB_CUDA_TRANSPORT_AUTO,
    /* Pushed into peers' memory (CUDA IPC) from inside the step's kernel. Processes may share a
     * GPU. */
    LPLB_CUDA_TRANSPORT_P2P,
    /* NCCL's all-gather on the stream; libnccl.so.2, or LPLB_NCCL_LIBRARY, is loaded at run time.
     * A thread ends it (ncclCommAbort) when a turn takes longer than the timeout. */
    LPLB_CUDA_TRANSPORT_NCCL,
    /* NCCL across nodes, by the ranks of the same place on theirs, and P2P inside them. */
    LPLB_CUDA_TRANSPORT_HIERARCHICAL,
    /* NVSHMEM's symmetric memory: pushed into from inside the step's kernel where loads and stores
     * reach it on all ranks (one NVLink domain, also of several hosts), else by puts on the stream.
     * libnvshmem_host.so.3, or LPLB_NVSHMEM_LIBRARY, is loaded at run time and initialised with the
     * ranks as its processing elements unless the program has done so. ranks_per_node below the
     * number of ranks: by puts. */
    LPLB_CUDA_TRANSPORT_NVSHMEM,
    /* The caller's own all-gather, all_gather below. */
    LPLB_CUDA_TRANSPORT_CUSTOM
} lplb_cuda_transport;
LPLB_API const char *lplb_cuda_transport_name(lplb_cuda_transport transport); /* "p2p" */

/* An all-gather among the ranks' hosts, needed only while a communicator is made and by
 * lplb_cuda_comm_agree: every rank gives `bytes` (at most 256) bytes; receive [ranks][bytes]. */
typedef lplb_status (*lplb_cuda_exchange)(void *state, const void *send, void *receive,
                                          int64_t bytes);

/* Zero-initialise, set struct_size. */
typedef struct lplb_cuda_comm_config {
    size_t struct_size;
    int32_t device; /* CUDA ordinal */
    int32_t rank, ranks;
    int32_t experts; /* most of any planner that will use it */
    lplb_cuda_transport transport;
    int32_t ranks_per_node; /* 0 = by host: ranks must then be numbered node by node for
                               HIERARCHICAL */
    int64_t timeout_ns;     /* 0 = 10 s */
    lplb_cuda_exchange exchange;
    void *state; /* of exchange; both are used as long as the communicator is */
    /* CUSTOM: puts on the stream what brings `bytes` device bytes of every rank to all ranks,
     * device [ranks][bytes] by rank; waits for nothing. To be captured where steps are. */
    lplb_status (*all_gather)(void *gather_state, const void *send, void *receive, int64_t bytes,
                              lplb_cuda_stream stream);
    /* CUSTOM: called once, from another thread, when a rank was gone or late: ends what waits on
     * the device. all_gather is not called again. */
    void (*abort)(void *gather_state);
    void *gather_state;
} lplb_cuda_comm_config;

/* Collective, also for a rank whose device or options are refused: the others get its status. Only
 * without a sound struct_size, rank, ranks and exchange does a rank return before it has met them.
 * LPLB_UNSUPPORTED on all ranks where the transport cannot work, LPLB_DISAGREE where the ranks give
 * different configurations. */
LPLB_API lplb_status lplb_cuda_comm_create(const lplb_cuda_comm_config *config,
                                           lplb_cuda_comm **out);
/* After its planners and their graphs. Waits for the device, tells the others that this rank
 * leaves, and frees the memory: no other rank may still have a step to finish that needs it. NULL
 * is fine. */
LPLB_API void lplb_cuda_comm_destroy(lplb_cuda_comm *comm);

/* The one in use, never AUTO. */
LPLB_API lplb_cuda_transport lplb_cuda_comm_transport(const lplb_cuda_comm *comm);
/* Collective: LPLB_DISAGREE, naming the ranks, unless all planners have the same placement and
 * options. Every step checks the same on the device. */
LPLB_API lplb_status lplb_cuda_comm_agree(lplb_cuda_comm *comm, const lplb_cuda_planner *planner);
/* LPLB_OK while it works, else what ended it, with a message. Copies a word from the device, for
 * which it waits, but for no step that runs there. */
LPLB_API lplb_status lplb_cuda_comm_state(const lplb_cuda_comm *comm);

LPLB_END_DECLS

#endif
