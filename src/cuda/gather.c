/* Rows that somebody else brings: every rank counts its ids into a row of words, an all-gather on
 * the stream brings all rows to all ranks, and the step takes them as if its peers had pushed them
 * (peers.cuh). A word says which turn it is of, so rows that never came, and ranks that plan for
 * something else, are found on the device. */
#include <string.h>

#include "base/mem.h"
#include "cuda/comm.h"
#include "cuda/planner.h"

/* The rows are there when the step begins, or will not come. */
static const uint64_t GATHERED_NS = 1000000;

static int64_t row_bytes(const lplb_cuda_comm *comm) {
    return comm->peers.row_words * (int64_t)sizeof(uint64_t);
}

static lplb_status allocate(lplb_cuda_comm *comm, int32_t members, bool across) {
    size_t bytes = (size_t)((members + 1) * row_bytes(comm));
    LPLB_CUDA_TRY(cudaMallocHost((void **)&comm->beat, 2 * sizeof *comm->beat));
    memset(comm->beat, 0, 2 * sizeof *comm->beat);
    LPLB_CUDA_TRY(cudaMalloc((void **)&comm->row, bytes));
    LPLB_CUDA_TRY(cudaMemsetAsync(comm->row, 0, bytes, comm->stream));
    comm->rows = comm->row + comm->peers.row_words;
    if (across) {
        comm->peers.rail = comm->rows;
    } else {
        enum { TURNS = 2 };
        lplb__cuda_peers_close(comm); /* what AUTO had prepared */
        LPLB_CUDA_TRY(cudaMalloc((void **)&comm->memory, TURNS * sizeof(uint64_t)));
        LPLB_CUDA_TRY(cudaMemsetAsync(comm->memory, 0, TURNS * sizeof(uint64_t), comm->stream));
        comm->peers.turns = (uint64_t *)comm->memory;
        comm->peers.words = comm->rows;
        comm->peers.nodes = 1;
        comm->peers.timeout_ns = GATHERED_NS;
    }
    comm->peers.beat = comm->beat;
    LPLB_CUDA_TRY(cudaStreamSynchronize(comm->stream));
    return LPLB_OK;
}

/* The first time takes longest, for connections are made then; here all ranks are known to be
 * there. For the watch it is a turn like any other. */
static lplb_status gather_once(lplb_cuda_comm *comm) {
    LPLB_TRY(lplb__cuda_watch_create(&comm->gatherer, comm->beat, comm->timeout_ns,
                                     comm->config.device, &comm->watch));
    __atomic_store_n(&comm->beat[0], 1, __ATOMIC_RELAXED);
    lplb_status status = lplb__cuda_gather(comm, comm->stream);
    if (status == LPLB_OK)
        status = lplb__cuda_check(cudaStreamSynchronize(comm->stream), "cudaStreamSynchronize");
    __atomic_store_n(&comm->beat[0], 0, __ATOMIC_RELAXED);
    if (!lplb__cuda_gather_ended(comm)) return status;
    return LPLB_FAIL(LPLB_TIMEOUT,
                     "the first all-gather over %s did not end within %.1f s: a rank "
                     "is gone or late",
                     lplb_cuda_transport_name(comm->transport), (double)comm->timeout_ns * 1e-9);
}

static lplb_status check_gpus(const lplb__cuda_card *cards, int32_t first, int32_t stride,
                              int32_t members) {
    for (int32_t i = 0; i < members; i++)
        for (int32_t j = 0; j < i; j++) {
            const lplb__cuda_card *a = &cards[first + i * stride], *b = &cards[first + j * stride];
            if (a->host == b->host && strcmp(a->bus, b->bus) == 0)
                return LPLB_FAIL(LPLB_UNSUPPORTED,
                                 "ranks %d and %d share the GPU %s, which NCCL does not allow: "
                                 "use p2p",
                                 first + j * stride, first + i * stride, a->bus);
        }
    return LPLB_OK;
}

lplb_status lplb__cuda_join_nccl(lplb_cuda_comm *comm, const lplb__cuda_card *cards, bool across) {
    int32_t ranks = comm->config.ranks, version = 0;
    int32_t first = across ? comm->local : 0, stride = across ? comm->node_ranks : 1;
    int32_t members = across ? comm->nodes : ranks, place = across ? comm->node : comm->config.rank;
    unsigned char own[LPLB__NCCL_ID_BYTES] = {0}, *ids;
    lplb_status status = lplb__nccl_load(&version);
    if (status == LPLB_OK) status = check_gpus(cards, first, stride, members);
    if (status == LPLB_OK && comm->config.rank == first) status = lplb__nccl_new_id(own);
    if (status == LPLB_OK) status = allocate(comm, members, across);
    LPLB_TRY(lplb__cuda_all_agree(comm, status, "use NCCL"));
    LPLB_TRY(LPLB_CALLOC(ids, (int64_t)ranks * LPLB__NCCL_ID_BYTES));
    status = lplb__cuda_meet(comm, own, ids, sizeof own);
    if (status == LPLB_OK)
        status = lplb__nccl_create(ids + (int64_t)first * LPLB__NCCL_ID_BYTES, place, members,
                                   &comm->gatherer);
    lplb__free(ids);
    if (status == LPLB_OK) status = gather_once(comm);
    return lplb__cuda_all_agree(comm, status, "join NCCL");
}

lplb_status lplb__cuda_join_custom(lplb_cuda_comm *comm) {
    const lplb_cuda_comm_config *c = &comm->config;
    comm->gatherer = (lplb__cuda_gatherer){
        .all_gather = c->all_gather, .abort = c->abort, .state = c->gather_state};
    lplb_status status = allocate(comm, c->ranks, false);
    LPLB_TRY(lplb__cuda_all_agree(comm, status, "allocate"));
    status = gather_once(comm);
    return lplb__cuda_all_agree(comm, status, "gather");
}

void lplb__cuda_row_of(const lplb_cuda_comm *comm, lplb__cuda_peers *out) {
    *out = (lplb__cuda_peers){.turns = comm->peers.turns,
                              .row = comm->row,
                              .beat = comm->beat,
                              .turn_words = comm->watch ? 0 : comm->peers.turn_words,
                              .row_words = comm->peers.row_words};
}

lplb_status lplb__cuda_gather(const lplb_cuda_comm *comm, cudaStream_t stream) {
    const lplb__cuda_gatherer *g = &comm->gatherer;
    if (comm->watch)
        return lplb__cuda_watch_gather(comm->watch, comm->row, comm->rows, row_bytes(comm), stream);
    return g->all_gather(g->state, comm->row, comm->rows, row_bytes(comm), stream);
}

bool lplb__cuda_gather_ended(const lplb_cuda_comm *comm) {
    return comm->watch && lplb__cuda_watch_aborted(comm->watch);
}

void lplb__cuda_gather_close(lplb_cuda_comm *comm) {
    if (comm->watch) lplb__cuda_watch_destroy(comm->watch);
    else if (comm->gatherer.destroy) comm->gatherer.destroy(comm->gatherer.state);
    if (comm->rows) cudaFree(comm->row); /* else it lies in NVSHMEM's memory, or nowhere */
    if (comm->beat) cudaFreeHost(comm->beat);
}
