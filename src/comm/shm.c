/* Ranks of one host over POSIX shared memory.
 *
 * Every rank has two slots, used in turn by the parity of the call's number (epoch). A rank writes
 * its bytes, then its slot's epoch; the others wait for that epoch. Two slots are enough and no
 * barrier is needed at the end: whoever writes epoch t+2 has seen every other rank's epoch t+1,
 * which a rank writes only after it has read all of epoch t. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "comm/comm.h"

enum {
    LINE = 64,
    NAME_MOST = 200,
    LIST_BYTES = 64,
};
enum { SEAT_EMPTY = 0, SEAT_TAKEN = 1, SEAT_LEFT = 2 };

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2,
               "processes can share lock-free atomics only");

/* What is in the memory; fresh memory is zero, which is a valid state of everything. */
typedef struct shm_head {
    _Alignas(LINE) atomic_uint ready;
    int32_t ranks;
    int64_t max_bytes;
} shm_head;
typedef struct shm_seat {
    _Alignas(LINE) atomic_uint state;
} shm_seat;
typedef struct shm_slot { /* max_bytes, rounded up to whole lines, follow */
    _Alignas(LINE) atomic_ullong epoch;
    int64_t bytes;
} shm_slot;

typedef struct shm_state {
    char path[NAME_MOST + 8]; /* "/lplb-NAME" */
    bool linked;              /* the name may still be there */
    pid_t owner;              /* a forked child must not leave in its parent's name */
    int32_t rank, ranks;
    int64_t max_bytes;
    size_t slot_bytes, total_bytes;
    uint64_t epoch;
    unsigned char *base; /* NULL until mapped */
} shm_state;

static shm_seat *seat_of(const shm_state *s, int32_t rank) {
    return (shm_seat *)(s->base + sizeof(shm_head)) + rank;
}

static shm_slot *slot_of(const shm_state *s, uint64_t epoch, int32_t rank) {
    size_t first = sizeof(shm_head) + (size_t)s->ranks * sizeof(shm_seat);
    size_t row = (size_t)(epoch & 1) * (size_t)s->ranks + (size_t)rank;
    return (shm_slot *)(s->base + first + row * s->slot_bytes);
}

/* ---- waiting ---- */

typedef struct waiting {
    int64_t begin_ns, timeout_ns, asked_ns;
    int32_t turns;
} waiting;

typedef int32_t (*interrupt_hook)(void);
static _Atomic(interrupt_hook) interrupt;

void lplb_comm_set_interrupt(int32_t (*interrupted)(void)) {
    atomic_store(&interrupt, interrupted);
}

static waiting wait_begin(int64_t timeout_ns) {
    int64_t now = lplb__now_ns();
    return (waiting){.begin_ns = now, .timeout_ns = timeout_ns, .asked_ns = now};
}

/* Between two looks: first spin, as the others are usually microseconds away, then give the
 * processor away. False once the time is up. */
static bool wait_more(waiting *w) {
    enum { SPINS = 500, YIELDS = 200, ASK_NS = 50000000 };
    if (++w->turns <= SPINS) {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield");
#endif
        return true;
    }
    if (w->turns <= SPINS + YIELDS) {
        sched_yield();
    } else {
        struct timespec nap = {.tv_nsec = 50000};
        nanosleep(&nap, NULL);
    }
    int64_t now = lplb__now_ns();
    if (now - w->asked_ns >= ASK_NS) {
        interrupt_hook interrupted = atomic_load(&interrupt);
        w->asked_ns = now;
        if (interrupted && interrupted()) return false;
    }
    return now - w->begin_ns < w->timeout_ns;
}

/* ---- one call ---- */

static void leave(shm_state *s) { atomic_store(&seat_of(s, s->rank)->state, SEAT_LEFT); }

/* Waits for `rank`'s bytes of this epoch; LPLB_REMOTE if it left before it gave them. */
static lplb_status wait_for(const shm_state *s, int32_t rank, waiting *w) {
    shm_slot *slot = slot_of(s, s->epoch, rank);
    for (;;) {
        bool left = atomic_load(&seat_of(s, rank)->state) == SEAT_LEFT; /* before the epoch */
        if (atomic_load_explicit(&slot->epoch, memory_order_acquire) == s->epoch) return LPLB_OK;
        if (left) return LPLB_REMOTE;
        if (!wait_more(w)) return LPLB_TIMEOUT;
    }
}

static lplb_status say_missing(const shm_state *s, lplb_status status, int32_t rank,
                               int64_t timeout_ns, char *message, size_t message_bytes) {
    char list[LIST_BYTES];
    size_t used = (size_t)snprintf(list, sizeof list, "%d", rank);
    for (int32_t r = rank + 1; r < s->ranks && status == LPLB_TIMEOUT; r++) {
        if (atomic_load(&slot_of(s, s->epoch, r)->epoch) == s->epoch) continue;
        if (used + 16 > sizeof list) {
            snprintf(list + used, sizeof list - used, ", ...");
            break;
        }
        used += (size_t)snprintf(list + used, sizeof list - used, ", %d", r);
    }
    if (status == LPLB_TIMEOUT)
        snprintf(message, message_bytes, "rank(s) %s did not call within %.3g s", list,
                 (double)timeout_ns * 1e-9);
    else snprintf(message, message_bytes, "rank %s has left", list);
    return status;
}

static lplb_status shm_all_gather(void *state, const void *send, void *receive, int64_t bytes,
                                  int64_t timeout_ns, char *message, size_t message_bytes) {
    shm_state *s = state;
    s->epoch++;
    shm_slot *own = slot_of(s, s->epoch, s->rank);
    own->bytes = bytes;
    memcpy(own + 1, send, (size_t)bytes);
    atomic_store_explicit(&own->epoch, s->epoch, memory_order_release);
    waiting w = wait_begin(timeout_ns);
    for (int32_t k = 0; k < s->ranks; k++) {
        lplb_status status = wait_for(s, k, &w);
        if (status != LPLB_OK) {
            leave(s);
            return say_missing(s, status, k, timeout_ns, message, message_bytes);
        }
        shm_slot *slot = slot_of(s, s->epoch, k);
        if (slot->bytes != bytes) {
            leave(s);
            snprintf(message, message_bytes, "rank %d gives %lld bytes, rank %d %lld", k,
                     (long long)slot->bytes, s->rank, (long long)bytes);
            return LPLB_DISAGREE;
        }
        memcpy((unsigned char *)receive + k * bytes, slot + 1, (size_t)bytes);
    }
    return LPLB_OK;
}

/* ---- joining ---- */

static void unlink_name(shm_state *s) {
    if (s->linked) shm_unlink(s->path);
    s->linked = false;
}

static void shm_destroy(void *state) {
    shm_state *s = state;
    if (s->base) {
        if (s->owner == getpid()) leave(s);
        munmap(s->base, s->total_bytes);
    }
    unlink_name(s);
    lplb__free(s);
}

static lplb_status check_arguments(const char *name, int32_t rank, int32_t ranks,
                                   int64_t max_bytes) {
    size_t length = name ? strlen(name) : 0;
    if (length < 1 || length > NAME_MOST)
        return LPLB_FAIL(LPLB_INVALID, "the name has %zu characters, must have 1 to %d", length,
                         NAME_MOST);
    for (size_t i = 0; i < length; i++) {
        char c = name[i];
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!plain && !strchr("._-", c))
            return LPLB_FAIL(LPLB_INVALID, "'%s': use letters, digits, '.', '_' and '-' only",
                             name);
    }
    if (ranks < 1 || rank < 0 || rank >= ranks)
        return LPLB_FAIL(LPLB_RANGE, "rank %d is outside [0, %d)", rank, ranks);
    if (max_bytes < LPLB__COMM_LEAST_BYTES || max_bytes > ((int64_t)1 << 40) / ranks)
        return LPLB_FAIL(LPLB_RANGE, "max_bytes of %lld for %d ranks: from %d to 2^40 in all",
                         (long long)max_bytes, ranks, LPLB__COMM_LEAST_BYTES);
    return LPLB_OK;
}

static lplb_status map_memory(shm_state *s, int file) {
    void *base = mmap(NULL, s->total_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (base == MAP_FAILED)
        return LPLB_FAIL(LPLB_IO, "cannot map %zu bytes of %s: %s", s->total_bytes, s->path,
                         strerror(errno));
    s->base = base;
    return LPLB_OK;
}

/* This rank came first. The space is taken at once: a full file system must fail here, not as a
 * bus error when the memory is written. */
static lplb_status make_memory(shm_state *s, int file) {
    s->linked = true;
    int error = posix_fallocate(file, 0, (off_t)s->total_bytes);
    if (error)
        return LPLB_FAIL(LPLB_IO, "cannot take %zu bytes of shared memory for %s: %s",
                         s->total_bytes, s->path, strerror(error));
    LPLB_TRY(map_memory(s, file));
    shm_head *head = (shm_head *)s->base;
    head->ranks = s->ranks;
    head->max_bytes = s->max_bytes;
    atomic_store_explicit(&head->ready, 1, memory_order_release);
    return LPLB_OK;
}

/* Another rank came first: waits until it has filled in the head and compares. */
static lplb_status join_memory(shm_state *s, int file, waiting *w) {
    struct stat info;
    do {
        if (fstat(file, &info) != 0)
            return LPLB_FAIL(LPLB_IO, "cannot look at %s: %s", s->path, strerror(errno));
        if (info.st_size >= (off_t)sizeof(shm_head)) break;
    } while (wait_more(w));
    if (info.st_size < (off_t)sizeof(shm_head)) {
        s->linked = true; /* whoever made it died at it: clear it away */
        return LPLB_TIMEOUT;
    }
    shm_head *head = mmap(NULL, sizeof *head, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (head == MAP_FAILED)
        return LPLB_FAIL(LPLB_IO, "cannot map %s: %s", s->path, strerror(errno));
    bool ready;
    do ready = atomic_load_explicit(&head->ready, memory_order_acquire) == 1;
    while (!ready && wait_more(w));
    int32_t ranks = head->ranks;
    int64_t max_bytes = head->max_bytes;
    munmap(head, sizeof *head);
    if (!ready) {
        s->linked = true;
        return LPLB_TIMEOUT;
    }
    if (ranks != s->ranks || max_bytes != s->max_bytes)
        return LPLB_FAIL(
            LPLB_DISAGREE, "%s was made for %d ranks and %lld bytes, rank %d wants %d and %lld",
            s->path, ranks, (long long)max_bytes, s->rank, s->ranks, (long long)s->max_bytes);
    s->linked = true;
    return map_memory(s, file);
}

/* Makes or opens the memory, whichever comes first. */
static lplb_status open_memory(shm_state *s, waiting *w) {
    for (;;) {
        int file = shm_open(s->path, O_RDWR | O_CREAT | O_EXCL, 0600);
        bool mine = file >= 0;
        if (!mine && errno == EEXIST) file = shm_open(s->path, O_RDWR, 0);
        if (file < 0 && errno != ENOENT)
            return LPLB_FAIL(LPLB_IO, "cannot open shared memory %s: %s", s->path, strerror(errno));
        if (file < 0) { /* unlinked in between */
            if (wait_more(w)) continue;
            return LPLB_TIMEOUT;
        }
        lplb_status status = mine ? make_memory(s, file) : join_memory(s, file, w);
        close(file);
        return status;
    }
}

static lplb_status take_seat(shm_state *s, waiting *w) {
    unsigned empty = SEAT_EMPTY;
    if (!atomic_compare_exchange_strong(&seat_of(s, s->rank)->state, &empty, SEAT_TAKEN)) {
        s->linked = false; /* somebody else's */
        munmap(s->base, s->total_bytes);
        s->base = NULL;
        return LPLB_FAIL(LPLB_INVALID,
                         "rank %d of %s is taken: two processes with one rank, or a name that an "
                         "earlier run used; choose a new name for every communicator",
                         s->rank, s->path);
    }
    for (int32_t r = 0; r < s->ranks; r++)
        while (atomic_load(&seat_of(s, r)->state) == SEAT_EMPTY)
            if (!wait_more(w)) return LPLB_TIMEOUT;
    unlink_name(s);
    return LPLB_OK;
}

lplb_status lplb_comm_create_shm(const char *name, int32_t rank, int32_t ranks, int64_t max_bytes,
                                 int64_t timeout_ns, lplb_comm **out) {
    *out = NULL;
    LPLB_TRY(check_arguments(name, rank, ranks, max_bytes));
    if (timeout_ns == 0) timeout_ns = LPLB_COMM_DEFAULT_TIMEOUT_NS;
    shm_state *s;
    LPLB_TRY(LPLB_CALLOC(s, 1));
    snprintf(s->path, sizeof s->path, "/lplb-%s", name);
    s->owner = getpid();
    s->rank = rank;
    s->ranks = ranks;
    s->max_bytes = max_bytes;
    s->slot_bytes = sizeof(shm_slot) + (size_t)(max_bytes + LINE - 1) / LINE * LINE;
    s->total_bytes = sizeof(shm_head) + (size_t)ranks * (sizeof(shm_seat) + 2 * s->slot_bytes);
    waiting w = wait_begin(timeout_ns);
    lplb_status status = open_memory(s, &w);
    if (status == LPLB_OK) status = take_seat(s, &w);
    if (status == LPLB_TIMEOUT)
        (void)LPLB_FAIL(LPLB_TIMEOUT, "not all of the %d ranks joined %s within %.3g s", ranks,
                        s->path, (double)timeout_ns * 1e-9);
    lplb_transport t = {.struct_size = sizeof t,
                        .name = "shm",
                        .rank = rank,
                        .ranks = ranks,
                        .max_bytes = max_bytes,
                        .state = s,
                        .all_gather = shm_all_gather,
                        .destroy = shm_destroy};
    if (status == LPLB_OK) status = lplb_comm_create(&t, timeout_ns, out);
    if (status != LPLB_OK) shm_destroy(s);
    return status;
}
