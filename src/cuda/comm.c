/* Making and ending communicators. */
#include "cuda/comm.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "cuda/planner.h"

static const uint64_t COMM_MAGIC = 0x6c706c626770756du; /* "lplbgpum" */
static const int64_t DEFAULT_TIMEOUT_NS = 10000000000;
enum { LIST_BYTES = 64, MESSAGE_BYTES = 256, VALUES = 5 };

_Static_assert(sizeof(lplb__cuda_card) <= 256, "the exchange carries 256 bytes");

const char *lplb_cuda_transport_name(lplb_cuda_transport transport) {
    static const char *const names[] = {"auto", "p2p", "nccl", "hierarchical", "nvshmem", "custom"};
    return (unsigned)transport < 6 ? names[transport] : "unknown";
}

/* Without these a rank cannot even tell the others that it fails. */
static lplb_status check_meeting(const lplb_cuda_comm_config *c) {
    if (c->struct_size != sizeof *c)
        return LPLB_FAIL(LPLB_INVALID, "config.struct_size is %zu, must be %zu", c->struct_size,
                         sizeof *c);
    if (c->ranks < 1 || c->rank < 0 || c->rank >= c->ranks)
        return LPLB_FAIL(LPLB_RANGE, "rank %d is outside [0, %d)", c->rank, c->ranks);
    if (!c->exchange) return LPLB_FAIL(LPLB_INVALID, "exchange is NULL");
    return LPLB_OK;
}

static lplb_status check_config(const lplb_cuda_comm_config *c) {
    if (c->experts < 1 || c->experts > LPLB__CUDA_MAX_EXPERTS)
        return LPLB_FAIL(LPLB_RANGE, "%d experts; from 1 to %d", c->experts,
                         (int)LPLB__CUDA_MAX_EXPERTS);
    if ((unsigned)c->transport > LPLB_CUDA_TRANSPORT_CUSTOM)
        return LPLB_FAIL(LPLB_INVALID, "transport %d is not known", (int)c->transport);
    bool custom = c->transport == LPLB_CUDA_TRANSPORT_CUSTOM;
    if (custom != (c->all_gather != NULL) || custom != (c->abort != NULL))
        return LPLB_FAIL(LPLB_INVALID, "all_gather and abort are for the transport custom, which "
                                       "needs both");
    if (c->ranks_per_node < 0 || (c->ranks_per_node > 0 && c->ranks % c->ranks_per_node))
        return LPLB_FAIL(LPLB_RANGE, "%d ranks a node do not divide %d ranks", c->ranks_per_node,
                         c->ranks);
    if (c->timeout_ns < 0)
        return LPLB_FAIL(LPLB_RANGE, "timeout_ns is %lld, must not be negative",
                         (long long)c->timeout_ns);
    return LPLB_OK;
}

/* The same for processes of one running host. FNV-1a (Fowler, Noll, Vo), 64 bits. */
static uint64_t host_number(void) {
    char name[256] = "";
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (file) {
        if (!fgets(name, sizeof name, file)) name[0] = '\0';
        fclose(file);
    }
    if (!name[0] && gethostname(name, sizeof name - 1) != 0) name[0] = '\0';
    uint64_t hash = 0xcbf29ce484222325u;
    for (const char *c = name; *c; c++) hash = (hash ^ (unsigned char)*c) * 0x100000001b3u;
    return hash;
}

/* The exchange's own message is out of our reach. */
lplb_status lplb__cuda_meet(const lplb_cuda_comm *comm, const void *send, void *receive,
                            size_t bytes) {
    lplb_status status = comm->config.exchange(comm->config.state, send, receive, (int64_t)bytes);
    if (status == LPLB_OK) return LPLB_OK;
    return LPLB_FAIL(status, "the exchange among the ranks' hosts failed: %s",
                     lplb_status_text(status));
}

lplb_status lplb__cuda_all_agree(const lplb_cuda_comm *comm, lplb_status own, const char *what) {
    lplb_status status = LPLB_OK;
    char message[MESSAGE_BYTES];
    int32_t mine = own, *all, failed = -1;
    snprintf(message, sizeof message, "%s", own == LPLB_OK ? "" : lplb_error_message());
    LPLB_TRY(LPLB_CALLOC(all, comm->config.ranks));
    LPLB_TRY_GOTO(status, lplb__cuda_meet(comm, &mine, all, sizeof mine), done);
    for (int32_t r = comm->config.ranks - 1; r >= 0; r--)
        if (all[r] != LPLB_OK) failed = r;
    if (own != LPLB_OK) status = LPLB_FAIL(own, "%s", message);
    else if (failed >= 0)
        status = LPLB_FAIL((lplb_status)all[failed], "rank %d cannot %s; its own message says why",
                           failed, what);
done:
    lplb__free(all);
    return status;
}

/* ---- who is where ---- */

static void put_values(const lplb__cuda_card *card, int64_t *value) {
    value[0] = card->ranks;
    value[1] = card->experts;
    value[2] = card->transport;
    value[3] = card->ranks_per_node;
    value[4] = card->timeout_ns;
}

static lplb_status compare_cards(const lplb_cuda_comm *comm, const lplb__cuda_card *cards) {
    static const char *const names[VALUES] = {"ranks", "experts", "transport", "ranks_per_node",
                                              "timeout_ns"};
    int64_t first[VALUES], other[VALUES];
    put_values(&cards[0], first);
    for (int32_t r = 1; r < comm->config.ranks; r++) {
        put_values(&cards[r], other);
        for (int i = 0; i < VALUES; i++)
            if (first[i] != other[i])
                return LPLB_FAIL(LPLB_DISAGREE, "%s is %lld on rank %d but %lld on rank 0",
                                 names[i], (long long)other[i], r, (long long)first[i]);
    }
    return LPLB_OK;
}

/* Nodes in the order of their first ranks; node_ranks 0 unless all have equally many, numbered node
 * by node. */
static void find_nodes(lplb_cuda_comm *comm, const lplb__cuda_card *cards) {
    int32_t ranks = comm->config.ranks, each = comm->config.ranks_per_node;
    bool given = each > 0;
    if (!given)
        for (each = 1; each < ranks && cards[each].host == cards[0].host;) each++;
    bool regular = ranks % each == 0;
    for (int32_t r = 0; r < ranks && regular && !given; r++) {
        regular = cards[r].host == cards[r / each * each].host;
        for (int32_t q = 0; q < r / each && regular; q++)
            regular = cards[q * each].host != cards[r].host;
    }
    comm->node_ranks = regular ? each : 0;
    comm->nodes = regular ? ranks / each : 2;
    comm->node = regular ? comm->config.rank / each : 0;
    comm->local = regular ? comm->config.rank % each : 0;
}

/* ---- transports ---- */

static lplb_status check_p2p(const lplb_cuda_comm *comm, bool across) {
    if (!comm->node_ranks || (!across && comm->nodes > 1))
        return LPLB_FAIL(LPLB_UNSUPPORTED, "%s",
                         across ? "hierarchical wants equally many ranks on all nodes, numbered "
                                  "node by node: use nccl"
                                : "p2p works inside a node, and these ranks are on several: use "
                                  "nccl or hierarchical");
    if (comm->node_ranks > LPLB__CUDA_MAX_PEERS)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "%d ranks on a node; p2p takes at most %d",
                         comm->node_ranks, (int)LPLB__CUDA_MAX_PEERS);
    return LPLB_OK;
}

static lplb_status join_p2p(lplb_cuda_comm *comm, const lplb__cuda_card *cards, bool across) {
    lplb_status status = check_p2p(comm, across);
    if (status == LPLB_OK && comm->bytes == 0)
        status = LPLB_FAIL(LPLB_UNSUPPORTED, "the memory to share could not be made");
    if (status == LPLB_OK) status = lplb__cuda_peers_open(comm, cards);
    return lplb__cuda_all_agree(comm, status, "reach its peers' memory");
}

static lplb_status join(lplb_cuda_comm *comm, const lplb__cuda_card *cards) {
    lplb_cuda_transport asked = comm->config.transport;
    bool choose = asked == LPLB_CUDA_TRANSPORT_AUTO;
    if (choose) {
        asked = comm->nodes == 1 ? LPLB_CUDA_TRANSPORT_P2P : LPLB_CUDA_TRANSPORT_NCCL;
        if (comm->nodes > 1 && comm->node_ranks > 1) asked = LPLB_CUDA_TRANSPORT_HIERARCHICAL;
    }
    bool across = asked == LPLB_CUDA_TRANSPORT_HIERARCHICAL;
    comm->transport = asked;
    if (asked == LPLB_CUDA_TRANSPORT_NCCL) return lplb__cuda_join_nccl(comm, cards, false);
    if (asked == LPLB_CUDA_TRANSPORT_NVSHMEM) return lplb__cuda_join_nvshmem(comm);
    if (asked == LPLB_CUDA_TRANSPORT_CUSTOM) return lplb__cuda_join_custom(comm);
    lplb_status status = join_p2p(comm, cards, across);
    if (status == LPLB_OK && across) status = lplb__cuda_join_nccl(comm, cards, true);
    if (status != LPLB_UNSUPPORTED || !choose) return status;
    comm->transport = LPLB_CUDA_TRANSPORT_NCCL; /* alike on all ranks: all saw the refusal */
    return lplb__cuda_join_nccl(comm, cards, false);
}

/* ---- making ---- */

static lplb_status write_card(lplb_cuda_comm *comm, lplb__cuda_card *card) {
    const lplb_cuda_comm_config *c = &comm->config;
    *card = (lplb__cuda_card){.host = host_number(),
                              .timeout_ns = c->timeout_ns,
                              .pid = (int32_t)getpid(),
                              .device = c->device,
                              .ranks = c->ranks,
                              .experts = c->experts,
                              .transport = (int32_t)c->transport,
                              .ranks_per_node = c->ranks_per_node};
    LPLB_CUDA_TRY(cudaDeviceGetPCIBusId(card->bus, sizeof card->bus, c->device));
    LPLB_CUDA_TRY(cudaStreamCreateWithFlags(&comm->stream, cudaStreamNonBlocking));
    if (c->transport != LPLB_CUDA_TRANSPORT_AUTO && c->transport != LPLB_CUDA_TRANSPORT_P2P &&
        c->transport != LPLB_CUDA_TRANSPORT_HIERARCHICAL)
        return LPLB_OK;
    lplb_status status = lplb__cuda_peers_prepare(comm, card);
    if (status == LPLB_OK || c->transport != LPLB_CUDA_TRANSPORT_AUTO) return status;
    comm->bytes = 0; /* memory that cannot be shared: NCCL it is */
    return LPLB_OK;
}

/* A rank that has failed already meets the others too, or they would wait for it. */
static lplb_status make(lplb_cuda_comm *comm, lplb_status own) {
    lplb__cuda_card card = {0}, *cards;
    char message[MESSAGE_BYTES] = "";
    LPLB_TRY(LPLB_CALLOC(cards, comm->config.ranks));
    if (own == LPLB_OK) own = write_card(comm, &card);
    if (own != LPLB_OK) snprintf(message, sizeof message, "%s", lplb_error_message());
    card.status = own;
    lplb_status status = lplb__cuda_meet(comm, &card, cards, sizeof card);
    if (own != LPLB_OK) status = LPLB_FAIL(own, "%s", message);
    for (int32_t r = 0; r < comm->config.ranks && status == LPLB_OK; r++)
        if (cards[r].status != LPLB_OK)
            status = LPLB_FAIL((lplb_status)cards[r].status,
                               "rank %d cannot prepare; its own message says why", r);
    if (status == LPLB_OK) status = compare_cards(comm, cards);
    if (status == LPLB_OK) {
        find_nodes(comm, cards);
        status = join(comm, cards);
    }
    lplb__free(cards);
    return status;
}

static void release(lplb_cuda_comm *comm) {
    lplb__cuda_gather_close(comm);
    lplb__cuda_peers_close(comm);
    if (comm->stream) cudaStreamDestroy(comm->stream);
    comm->magic = 0;
    lplb__free(comm);
}

/* On our device, and so that another thread's capture takes no notice. */
static lplb_status enter(const lplb_cuda_comm *comm, int *before,
                         enum cudaStreamCaptureMode *mode) {
    *mode = cudaStreamCaptureModeRelaxed;
    LPLB_CUDA_TRY(cudaGetDevice(before));
    LPLB_CUDA_TRY(cudaSetDevice(comm->config.device));
    return lplb__cuda_check(cudaThreadExchangeStreamCaptureMode(mode),
                            "cudaThreadExchangeStreamCaptureMode");
}
static void leave(int before, enum cudaStreamCaptureMode *mode) {
    cudaThreadExchangeStreamCaptureMode(mode);
    cudaSetDevice(before);
}

lplb_status lplb_cuda_comm_create(const lplb_cuda_comm_config *config, lplb_cuda_comm **out) {
    int before;
    enum cudaStreamCaptureMode mode;
    lplb_cuda_comm *comm;
    if (!config || !out) return LPLB_FAIL(LPLB_INVALID, "config and out must be given");
    *out = NULL;
    LPLB_TRY(check_meeting(config));
    LPLB_TRY(LPLB_CALLOC(comm, 1));
    comm->config = *config;
    comm->magic = COMM_MAGIC;
    comm->timeout_ns = (uint64_t)(config->timeout_ns ? config->timeout_ns : DEFAULT_TIMEOUT_NS);
    comm->peers.row_words = LPLB__CUDA_ROW_HEAD + config->experts;
    comm->peers.ends = 1;
    lplb_status status = check_config(config);
    if (status == LPLB_OK) status = enter(comm, &before, &mode);
    bool entered = status == LPLB_OK;
    status = make(comm, status);
    if (status == LPLB_OK) *out = comm;
    else if (entered) release(comm);
    else lplb__free(comm);
    if (entered) leave(before, &mode);
    return status;
}

void lplb_cuda_comm_destroy(lplb_cuda_comm *comm) {
    int before;
    enum cudaStreamCaptureMode mode;
    if (!comm || comm->magic != COMM_MAGIC || enter(comm, &before, &mode) != LPLB_OK) return;
    if (!lplb__cuda_gather_ended(comm)) cudaDeviceSynchronize();
    release(comm);
    leave(before, &mode);
}

/* ---- using ---- */

static lplb_status check_comm(const lplb_cuda_comm *comm) {
    if (comm && comm->magic == COMM_MAGIC) return LPLB_OK;
    return LPLB_FAIL(LPLB_INVALID, "not a communicator, or one that was destroyed");
}

lplb_cuda_transport lplb_cuda_comm_transport(const lplb_cuda_comm *comm) {
    return comm ? comm->transport : LPLB_CUDA_TRANSPORT_AUTO;
}

lplb_status lplb__cuda_comm_fits(const lplb_cuda_comm *comm, int32_t device, int32_t sources,
                                 int32_t experts) {
    LPLB_TRY(check_comm(comm));
    if (comm->config.device != device)
        return LPLB_FAIL(LPLB_INVALID, "the communicator is of device %d, the planner of %d",
                         comm->config.device, device);
    if (sources != 0 && comm->config.ranks != sources)
        return LPLB_FAIL(LPLB_INVALID, "%d sources, but the communicator has %d ranks", sources,
                         comm->config.ranks);
    if (experts > comm->config.experts)
        return LPLB_FAIL(LPLB_RANGE, "%d experts; the communicator was made for at most %d",
                         experts, comm->config.experts);
    return LPLB_OK;
}

lplb_status lplb_cuda_comm_state(const lplb_cuda_comm *comm) {
    int before;
    enum cudaStreamCaptureMode mode;
    uint64_t ended = 0;
    LPLB_TRY(check_comm(comm));
    if (lplb__cuda_gather_ended(comm))
        return LPLB_FAIL(LPLB_TIMEOUT, "a rank did not bring its counts in time: make the "
                                       "communicator again on all ranks");
    LPLB_TRY(enter(comm, &before, &mode));
    cudaError_t error = cudaMemcpyAsync(&ended, comm->peers.turns + 1, sizeof ended,
                                        cudaMemcpyDeviceToHost, comm->stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize(comm->stream);
    leave(before, &mode);
    LPLB_TRY(lplb__cuda_check(error, "cudaMemcpyAsync"));
    lplb_cuda_report report = {.error = ended};
    return lplb_cuda_report_status(&report);
}

lplb_status lplb_cuda_comm_agree(lplb_cuda_comm *comm, const lplb_cuda_planner *planner) {
    char list[LIST_BYTES] = "";
    size_t used = 0;
    int32_t own, *all;
    LPLB_TRY(check_comm(comm));
    LPLB_TRY(lplb__cuda_planner_tag(planner, &own));
    LPLB_TRY(LPLB_CALLOC(all, comm->config.ranks));
    lplb_status status = lplb__cuda_meet(comm, &own, all, sizeof own);
    for (int32_t r = 0; r < comm->config.ranks && status == LPLB_OK && used + 16 < sizeof list; r++)
        if (all[r] != all[0])
            used += (size_t)snprintf(list + used, sizeof list - used, used ? ", %d" : "%d", r);
    lplb__free(all);
    if (status != LPLB_OK || !list[0]) return status;
    return LPLB_FAIL(LPLB_DISAGREE,
                     "rank(s) %s plan for another placement, or with other options (locality, "
                     "solver), than rank 0, or could not make their planner",
                     list);
}
