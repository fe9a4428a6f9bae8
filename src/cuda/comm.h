/* Communicators, as the planner's side sees them. */
#ifndef LPLB_CUDA_COMM_INTERNAL_H
#define LPLB_CUDA_COMM_INTERNAL_H

#include <cuda_runtime_api.h>
#include <lplb/cuda_comm.h>
#include <stdbool.h>

#include "cuda/step.h"
#include "cuda/watch.h"

struct lplb_cuda_comm {
    uint64_t magic;
    lplb_cuda_comm_config config;
    lplb_cuda_transport transport;
    int32_t nodes, node, node_ranks, local; /* node_ranks: of each; 0 = they differ */
    uint64_t timeout_ns;
    unsigned char *memory; /* device: turns and words */
    int64_t bytes;
    bool opened[LPLB__CUDA_MAX_PEERS]; /* targets that must be closed */
    lplb__cuda_peers peers;            /* what every step is given */
    /* Where somebody else brings the rows (gather.c): the members are all ranks, or those of our
     * place on the nodes. */
    uint64_t *row, *rows; /* device: ours, and those of all members */
    uint64_t *beat;       /* pinned host memory */
    lplb__cuda_gatherer gatherer;
    lplb__cuda_watch *watch; /* NULL: the device itself does not wait longer than the timeout */
    cudaStream_t stream;     /* for making and looking */
};

/* What a rank tells the others about itself. */
typedef struct lplb__cuda_card {
    uint64_t host;
    int64_t timeout_ns;
    void *memory;
    cudaIpcMemHandle_t handle;
    int32_t pid, device, ranks, experts, transport, ranks_per_node;
    int32_t status; /* of what it has prepared: LPLB_OK = memory and handle are there */
    char bus[20];   /* its GPU */
} lplb__cuda_card;

/* The caller's exchange among the ranks' hosts. */
lplb_status lplb__cuda_meet(const lplb_cuda_comm *comm, const void *send, void *receive,
                            size_t bytes);
/* Every rank's status; the first that failed fails all. A failure of one's own keeps its text;
 * others: "rank 3 cannot <what>". */
lplb_status lplb__cuda_all_agree(const lplb_cuda_comm *comm, lplb_status own, const char *what);

/* ---- the ranks of one node (peers.c) ---- */

/* Memory of our own and the handle on it. */
lplb_status lplb__cuda_peers_prepare(lplb_cuda_comm *comm, lplb__cuda_card *card);
/* That of the others on our node. */
lplb_status lplb__cuda_peers_open(lplb_cuda_comm *comm, const lplb__cuda_card *cards);
void lplb__cuda_peers_close(lplb_cuda_comm *comm);
/* Bytes of such memory, and what of peers depends on where it is. */
int64_t lplb__cuda_peers_bytes(const lplb_cuda_comm *comm);
void lplb__cuda_peers_place(lplb_cuda_comm *comm, void *memory);
uint64_t *lplb__cuda_peers_words(void *memory);

/* ---- rows that somebody else brings (gather.c) ---- */

/* Joins NCCL among all ranks, or (across) among those of our place on the nodes; collective. */
lplb_status lplb__cuda_join_nccl(lplb_cuda_comm *comm, const lplb__cuda_card *cards, bool across);
/* The caller's own all-gather, among all ranks. */
lplb_status lplb__cuda_join_custom(lplb_cuda_comm *comm);
/* NVSHMEM's symmetric memory among all ranks (nvshmem.c). */
lplb_status lplb__cuda_join_nvshmem(lplb_cuda_comm *comm);
/* What a launch that only counts needs to know, and the bringing of the row. */
void lplb__cuda_row_of(const lplb_cuda_comm *comm, lplb__cuda_peers *out);
lplb_status lplb__cuda_gather(const lplb_cuda_comm *comm, cudaStream_t stream);
/* Whether the gathering was ended because a rank was gone or late. */
bool lplb__cuda_gather_ended(const lplb_cuda_comm *comm);
void lplb__cuda_gather_close(lplb_cuda_comm *comm);

/* ---- NCCL (nccl.c) ---- */

enum { LPLB__NCCL_ID_BYTES = 128 };

/* Loads the library; *version, or what is missing. */
lplb_status lplb__nccl_load(int *version);
lplb_status lplb__nccl_new_id(unsigned char *id);
lplb_status lplb__nccl_create(const unsigned char *id, int32_t rank, int32_t ranks,
                              lplb__cuda_gatherer *out);

/* ---- for the planner ---- */

/* Whether a planner may use it. */
lplb_status lplb__cuda_comm_fits(const lplb_cuda_comm *comm, int32_t device, int32_t sources,
                                 int32_t experts);

#endif
