/* The communicator: what is the same for every transport. */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "comm/comm.h"

static const uint64_t COMM_MAGIC = 0x6c706c62636f6d6du; /* "lplbcomm" */

enum { MESSAGE_BYTES = 256, LIST_BYTES = 64 };

struct lplb_comm {
    uint64_t magic;
    lplb__arena arena;
    lplb_transport transport;
    int64_t timeout_ns;
    lplb_status dead;            /* LPLB_OK while it works */
    char *name;                  /* transport.name points here */
    unsigned char *send;         /* [max_bytes] */
    unsigned char *gather;       /* [ranks][max_bytes] */
    char message[MESSAGE_BYTES]; /* of the transport, of the last call */
};

static lplb_status check_transport(const lplb_transport *t) {
    if (!t || t->struct_size != sizeof *t)
        return LPLB_FAIL(LPLB_INVALID, "transport.struct_size is %zu, must be %zu",
                         t ? t->struct_size : 0, sizeof *t);
    if (!t->name || !t->all_gather)
        return LPLB_FAIL(LPLB_INVALID, "a transport needs a name and all_gather");
    if (t->ranks < 1 || t->rank < 0 || t->rank >= t->ranks)
        return LPLB_FAIL(LPLB_RANGE, "rank %d is outside [0, %d)", t->rank, t->ranks);
    if (t->max_bytes < LPLB__COMM_LEAST_BYTES)
        return LPLB_FAIL(LPLB_RANGE, "max_bytes is %lld, must be at least %d",
                         (long long)t->max_bytes, LPLB__COMM_LEAST_BYTES);
    return LPLB_OK;
}

lplb_status lplb_comm_create(const lplb_transport *transport, int64_t timeout_ns, lplb_comm **out) {
    *out = NULL;
    LPLB_TRY(check_transport(transport));
    if (timeout_ns < 0)
        return LPLB_FAIL(LPLB_RANGE, "timeout_ns is %lld, must not be negative",
                         (long long)timeout_ns);
    int64_t name_bytes = (int64_t)strlen(transport->name) + 1, most = transport->max_bytes;
    lplb__arena arena = {0};
    lplb__arena_reserve(&arena, 1, sizeof(lplb_comm));
    lplb__arena_reserve(&arena, name_bytes, 1);
    lplb__arena_reserve(&arena, most, 1);
    lplb__arena_reserve(&arena, transport->ranks, (size_t)most);
    LPLB_TRY(lplb__arena_create(&arena));
    lplb_comm *comm = lplb__arena_take(&arena, 1, sizeof *comm);
    comm->transport = *transport;
    comm->name = lplb__arena_take(&arena, name_bytes, 1);
    memcpy(comm->name, transport->name, (size_t)name_bytes);
    comm->transport.name = comm->name;
    comm->send = lplb__arena_take(&arena, most, 1);
    comm->gather = lplb__arena_take(&arena, transport->ranks, (size_t)most);
    comm->timeout_ns = timeout_ns ? timeout_ns : LPLB_COMM_DEFAULT_TIMEOUT_NS;
    comm->arena = arena;
    comm->magic = COMM_MAGIC;
    *out = comm;
    return LPLB_OK;
}

void lplb_comm_destroy(lplb_comm *comm) {
    if (!comm || comm->magic != COMM_MAGIC) return;
    if (comm->transport.destroy) comm->transport.destroy(comm->transport.state);
    comm->magic = 0;
    lplb__arena arena = comm->arena; /* the communicator lives inside it */
    lplb__arena_destroy(&arena);
}

static lplb_status gather_alone(void *state, const void *send, void *receive, int64_t bytes,
                                int64_t timeout_ns, char *message, size_t message_bytes) {
    (void)state, (void)timeout_ns, (void)message, (void)message_bytes;
    memcpy(receive, send, (size_t)bytes);
    return LPLB_OK;
}

lplb_status lplb_comm_create_local(lplb_comm **out) {
    enum { MOST_EXPERTS = 65536 };
    lplb_transport t = {.struct_size = sizeof t,
                        .name = "local",
                        .ranks = 1,
                        .max_bytes = LPLB_COMM_COUNTS_BYTES(MOST_EXPERTS),
                        .all_gather = gather_alone};
    return lplb_comm_create(&t, 0, out);
}

int32_t lplb_comm_rank(const lplb_comm *comm) { return comm->transport.rank; }
int32_t lplb_comm_ranks(const lplb_comm *comm) { return comm->transport.ranks; }
const char *lplb_comm_transport_name(const lplb_comm *comm) { return comm->name; }
lplb_status lplb_comm_state(const lplb_comm *comm) { return comm->dead; }

lplb_status lplb_comm_all_gather(lplb_comm *comm, const void *send, void *receive, int64_t bytes) {
    if (!comm || comm->magic != COMM_MAGIC)
        return LPLB_FAIL(LPLB_INVALID, "not a communicator, or one that was destroyed");
    const lplb_transport *t = &comm->transport;
    if (bytes < 1 || bytes > t->max_bytes)
        return LPLB_FAIL(LPLB_RANGE, "%lld bytes to gather; from 1 to %lld were agreed",
                         (long long)bytes, (long long)t->max_bytes);
    if (comm->dead)
        return LPLB_FAIL(LPLB_REMOTE,
                         "the %s communicator is dead since a call failed (%s); destroy it and "
                         "make it again on all ranks",
                         comm->name, comm->message);
    comm->message[0] = '\0';
    lplb_status status = t->all_gather(t->state, send, receive, bytes, comm->timeout_ns,
                                       comm->message, sizeof comm->message);
    if (status == LPLB_OK) return LPLB_OK;
    comm->dead = status;
    if (!comm->message[0])
        snprintf(comm->message, sizeof comm->message, "%s", lplb_status_text(status));
    return LPLB_FAIL(status, "%s: %s", comm->name, comm->message);
}

/* "1, 2, 5" of the ranks for which differs(gather row) holds; "" if none. */
static void list_ranks(char *list, const lplb_comm *comm, int64_t row_bytes,
                       const unsigned char *like, int64_t at, int64_t bytes) {
    size_t used = 0;
    list[0] = '\0';
    for (int32_t r = 0; r < comm->transport.ranks; r++) {
        if (memcmp(comm->gather + r * row_bytes + at, like + at, (size_t)bytes) == 0) continue;
        if (used + 16 > LIST_BYTES) {
            snprintf(list + used, LIST_BYTES - used, ", ...");
            return;
        }
        used += (size_t)snprintf(list + used, LIST_BYTES - used, used ? ", %d" : "%d", r);
    }
}

/* What a row of counts begins with. */
typedef struct counts_head {
    uint64_t tag;
    int32_t experts, refused;
} counts_head;

_Static_assert(sizeof(counts_head) == LPLB_COMM_COUNTS_BYTES(0), "counts follow the head");

/* Ranks that came without counts, or with another tag or number of experts. */
static lplb_status check_heads(const lplb_comm *comm, int64_t row_bytes) {
    char list[LIST_BYTES];
    const counts_head taking_part = {0};
    list_ranks(list, comm, row_bytes, (const unsigned char *)&taking_part,
               offsetof(counts_head, refused), sizeof taking_part.refused);
    if (list[0])
        return LPLB_FAIL(LPLB_REMOTE,
                         "rank(s) %s refused what they were to count, so nobody has a plan; their "
                         "own errors say why",
                         list);
    list_ranks(list, comm, row_bytes, comm->send, 0, sizeof(counts_head));
    if (list[0])
        return LPLB_FAIL(LPLB_DISAGREE,
                         "rank %d plans for another layer or placement, or with other options of "
                         "this call (locality), than rank(s) %s: give all ranks the same and call "
                         "them in the same order",
                         comm->transport.rank, list);
    return LPLB_OK;
}

lplb_status lplb_comm_gather_counts(lplb_comm *comm, uint64_t tag, const int64_t *counts,
                                    int32_t experts, int64_t *source_counts) {
    const int64_t bytes = LPLB_COMM_COUNTS_BYTES(experts), before = sizeof(counts_head);
    int64_t most = comm ? comm->transport.max_bytes : 0;
    if (experts < 0 || bytes > most)
        return LPLB_FAIL(LPLB_RANGE, "%d experts need max_bytes of %lld, the communicator has %lld",
                         experts, (long long)bytes, (long long)most);
    const counts_head head = {.tag = tag, .experts = experts, .refused = !counts};
    memcpy(comm->send, &head, sizeof head);
    if (counts) memcpy(comm->send + before, counts, (size_t)(bytes - before));
    else memset(comm->send + before, 0, (size_t)(bytes - before));
    LPLB_TRY(lplb_comm_all_gather(comm, comm->send, comm->gather, bytes));
    LPLB_TRY(check_heads(comm, bytes));
    for (int32_t r = 0; r < comm->transport.ranks; r++)
        memcpy(source_counts + (int64_t)r * experts, comm->gather + r * bytes + before,
               (size_t)(bytes - before));
    return LPLB_OK;
}

/* FNV-1a (Fowler, Noll, Vo), 64 bits. */
static uint64_t hash_text(const char *text) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (; *text; text++) hash = (hash ^ (unsigned char)*text) * 0x100000001b3u;
    return hash;
}

lplb_status lplb_comm_agree(lplb_comm *comm, const char *const *item, const char *const *value,
                            int32_t n) {
    if (n < 0 || n > LPLB_COMM_MAX_ITEMS)
        return LPLB_FAIL(LPLB_RANGE, "%d items to agree on; at most %d", n, LPLB_COMM_MAX_ITEMS);
    uint64_t hash[LPLB_COMM_MAX_ITEMS + 1] = {(uint64_t)n};
    for (int32_t i = 0; i < n; i++) hash[i + 1] = hash_text(value[i]);
    LPLB_TRY(lplb_comm_all_gather(comm, hash, comm ? comm->gather : NULL, sizeof hash));
    char list[LIST_BYTES];
    for (int32_t i = 0; i <= n; i++) {
        int64_t at = i * (int64_t)sizeof hash[0];
        list_ranks(list, comm, sizeof hash, comm->gather, at, sizeof hash[0]);
        if (list[0])
            return LPLB_FAIL(LPLB_DISAGREE,
                             "rank(s) %s do not agree with rank 0 about %s (here, on rank %d: %s)",
                             list, i ? item[i - 1] : "the number of items", comm->transport.rank,
                             i ? value[i - 1] : "another list");
    }
    return LPLB_OK;
}
