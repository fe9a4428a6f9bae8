/* Memory that the ranks of a node write into, mapped by CUDA IPC. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cuda/comm.h"
#include "cuda/planner.h"

/* The driver shares memory in pieces of this size: a smaller one would share others' data too. */
static const int64_t PIECE_BYTES = 2 << 20;
enum { TURNS_BYTES = 256 };

int64_t lplb__cuda_peers_bytes(const lplb_cuda_comm *comm) {
    int64_t words = 2 * (int64_t)comm->peers.row_words * comm->config.ranks + LPLB__CUDA_MAX_PEERS;
    return TURNS_BYTES + words * (int64_t)sizeof(uint64_t);
}

uint64_t *lplb__cuda_peers_words(void *memory) {
    return (uint64_t *)((unsigned char *)memory + TURNS_BYTES);
}

void lplb__cuda_peers_place(lplb_cuda_comm *comm, void *memory) {
    comm->peers.turns = memory;
    comm->peers.words = lplb__cuda_peers_words(memory);
    comm->peers.turn_words = (int64_t)comm->config.ranks * comm->peers.row_words;
}

lplb_status lplb__cuda_peers_prepare(lplb_cuda_comm *comm, lplb__cuda_card *card) {
    comm->bytes = (lplb__cuda_peers_bytes(comm) + PIECE_BYTES - 1) / PIECE_BYTES * PIECE_BYTES;
    LPLB_CUDA_TRY(cudaMalloc((void **)&comm->memory, (size_t)comm->bytes));
    LPLB_CUDA_TRY(cudaMemsetAsync(comm->memory, 0, (size_t)comm->bytes, comm->stream));
    LPLB_CUDA_TRY(cudaStreamSynchronize(comm->stream));
    LPLB_CUDA_TRY(cudaIpcGetMemHandle(&card->handle, comm->memory));
    card->memory = comm->memory;
    lplb__cuda_peers_place(comm, comm->memory);
    return LPLB_OK;
}

/* In one process addresses are the same everywhere, once the devices reach each other. */
static lplb_status reach_device(int32_t own, int32_t other) {
    int can = 1;
    if (own == other) return LPLB_OK;
    LPLB_CUDA_TRY(cudaDeviceCanAccessPeer(&can, own, other));
    if (!can)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "device %d cannot reach the memory of device %d", own,
                         other);
    cudaError_t error = cudaDeviceEnablePeerAccess(other, 0);
    if (error == cudaErrorPeerAccessAlreadyEnabled) {
        cudaGetLastError();
        return LPLB_OK;
    }
    return lplb__cuda_check(error, "cudaDeviceEnablePeerAccess");
}

static lplb_status open_peer(lplb_cuda_comm *comm, const lplb__cuda_card *card, int32_t p) {
    void *memory = card->memory;
    if (card->pid == (int32_t)getpid()) {
        LPLB_TRY(reach_device(comm->config.device, card->device));
    } else {
        cudaError_t error =
            cudaIpcOpenMemHandle(&memory, card->handle, cudaIpcMemLazyEnablePeerAccess);
        if (error != cudaSuccess) {
            cudaGetLastError();
            return LPLB_FAIL(LPLB_UNSUPPORTED,
                             "the memory of the GPU %s cannot be mapped here (%s): its process "
                             "must be on this host, with this GPU in reach and visible to both",
                             card->bus, cudaGetErrorString(error));
        }
        comm->opened[p] = true;
    }
    comm->peers.target[p] = lplb__cuda_peers_words(memory);
    return LPLB_OK;
}

lplb_status lplb__cuda_peers_open(lplb_cuda_comm *comm, const lplb__cuda_card *cards) {
    comm->peers.nodes = comm->nodes;
    comm->peers.node = comm->node;
    comm->peers.ranks = comm->node_ranks;
    comm->peers.local = comm->local;
    comm->peers.timeout_ns = comm->timeout_ns;
    comm->peers.target[comm->local] = comm->peers.words;
    for (int32_t p = 0; p < comm->node_ranks; p++)
        if (p != comm->local)
            LPLB_TRY(open_peer(comm, &cards[comm->node * comm->node_ranks + p], p));
    return LPLB_OK;
}

/* To those that have not left themselves, for they may have freed their memory since. */
static void tell_that_we_leave(const lplb_cuda_comm *comm) {
    const uint64_t one = 1;
    uint64_t stopped[LPLB__CUDA_MAX_PEERS];
    int64_t at = 2 * comm->peers.turn_words;
    if (cudaMemcpyAsync(stopped, comm->peers.words + at, sizeof stopped, cudaMemcpyDeviceToHost,
                        comm->stream) != cudaSuccess ||
        cudaStreamSynchronize(comm->stream) != cudaSuccess)
        return;
    for (int32_t p = 0; p < comm->peers.ranks; p++)
        if (comm->peers.target[p] && p != comm->local && !stopped[p])
            cudaMemcpyAsync(comm->peers.target[p] + at + comm->local, &one, sizeof one,
                            cudaMemcpyHostToDevice, comm->stream);
    cudaStreamSynchronize(comm->stream);
}

void lplb__cuda_peers_close(lplb_cuda_comm *comm) {
    if (comm->peers.ranks > 0) tell_that_we_leave(comm);
    for (int32_t p = 0; p < LPLB__CUDA_MAX_PEERS; p++)
        if (comm->opened[p])
            cudaIpcCloseMemHandle((unsigned char *)comm->peers.target[p] - TURNS_BYTES);
    cudaFree(comm->memory);
    comm->memory = NULL;
    memset(comm->opened, 0, sizeof comm->opened);
    comm->peers = (lplb__cuda_peers){.row_words = comm->peers.row_words, .ends = 1};
    cudaGetLastError();
}
