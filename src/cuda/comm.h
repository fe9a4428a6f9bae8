/* Communicators, as the planner's side sees them. */
#ifndef LPLB_CUDA_COMM_INTERNAL_H
#define LPLB_CUDA_COMM_INTERNAL_H

#include <cuda_runtime_api.h>
#include <lplb/cuda_comm.h>
#include <stdbool.h>

#include "cuda/step.h"

typedef struct lplb__nccl lplb__nccl;

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
    int64_t *own, *gathered;           /* device: [E], [ranks or nodes][E] for NCCL */
    lplb__nccl *nccl;                  /* all ranks, or those of our place on the nodes */
    cudaStream_t stream;               /* for making and looking */
    lplb_status dead;                  /* NCCL: known on the host */
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

/* ---- the ranks of one node (peers.c) ---- */

/* Memory of our own and the handle on it. */
lplb_status lplb__cuda_peers_prepare(lplb_cuda_comm *comm, lplb__cuda_card *card);
/* That of the others on our node. */
lplb_status lplb__cuda_peers_open(lplb_cuda_comm *comm, const lplb__cuda_card *cards);
void lplb__cuda_peers_close(lplb_cuda_comm *comm);

/* ---- NCCL (nccl.c) ---- */

enum { LPLB__NCCL_ID_BYTES = 128 };

/* Loads the library; *version, or what is missing. */
lplb_status lplb__nccl_load(int *version);
lplb_status lplb__nccl_new_id(unsigned char *id);
lplb_status lplb__nccl_create(const unsigned char *id, int32_t rank, int32_t ranks,
                              lplb__nccl **out);
/* receive [ranks][count] of int64, on the stream. */
lplb_status lplb__nccl_all_gather(lplb__nccl *nccl, const int64_t *send, int64_t *receive,
                                  int64_t count, cudaStream_t stream);
/* abort: without waiting for the others. */
void lplb__nccl_destroy(lplb__nccl *nccl, bool abort);

/* ---- for the planner ---- */

/* Whether a planner may use it. */
lplb_status lplb__cuda_comm_fits(const lplb_cuda_comm *comm, int32_t device, int32_t sources,
                                 int32_t experts);
/* Waits for the stream, with NCCL at most the timeout; then the communicator is dead. */
lplb_status lplb__cuda_comm_wait(lplb_cuda_comm *comm, cudaStream_t stream);

#endif
