#include "cuda/watch.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/mem.h"

struct lplb__cuda_watch {
    lplb__cuda_gatherer gatherer;
    const uint64_t *beat;
    uint64_t timeout_ns;
    int32_t device;
    pthread_t thread;
    pthread_mutex_t gathering; /* held while something is put on a stream */
    pthread_mutex_t lock;      /* of ends */
    pthread_cond_t ended;
    bool ends;
    atomic_bool aborted;
    atomic_int users; /* the owner and the thread; the last one frees */
};

static void release(lplb__cuda_watch *w) {
    if (atomic_fetch_sub(&w->users, 1) > 1) return;
    pthread_cond_destroy(&w->ended);
    pthread_mutex_destroy(&w->lock);
    pthread_mutex_destroy(&w->gathering);
    lplb__free(w);
}

static struct timespec time_after(clockid_t clock, int64_t ns) {
    struct timespec t;
    clock_gettime(clock, &t);
    ns += t.tv_nsec;
    t.tv_sec += ns / 1000000000;
    t.tv_nsec = ns % 1000000000;
    return t;
}

/* Looks at the beat until the watch ends (false) or a turn has taken too long (true). */
static bool watch_beat(lplb__cuda_watch *w) {
    enum { LEAST_NS = 1000000, MOST_NS = 50000000 };
    int64_t period = (int64_t)(w->timeout_ns / 8), since = lplb__now_ns();
    uint64_t counted = 0, used = 0;
    period = period < LEAST_NS ? LEAST_NS : period > MOST_NS ? MOST_NS : period;
    while (!w->ends) {
        struct timespec until = time_after(CLOCK_MONOTONIC, period);
        pthread_cond_timedwait(&w->ended, &w->lock, &until);
        uint64_t counted_now = __atomic_load_n(&w->beat[0], __ATOMIC_RELAXED);
        uint64_t used_now = __atomic_load_n(&w->beat[1], __ATOMIC_RELAXED);
        bool moved = counted_now != counted || used_now != used;
        counted = counted_now;
        used = used_now;
        if (moved || counted == used) since = lplb__now_ns();
        else if ((uint64_t)(lplb__now_ns() - since) > w->timeout_ns) return true;
    }
    return false;
}

/* A host that runs ahead can be stuck in the gathering itself, because the stream is full: then it
 * is the abort that frees it. Another thread's capture must take no notice of all this. */
static void abort_gatherer(lplb__cuda_watch *w) {
    enum { PATIENCE_NS = 100000000 };
    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    struct timespec until = time_after(CLOCK_REALTIME, PATIENCE_NS);
    bool locked = pthread_mutex_timedlock(&w->gathering, &until) == 0;
    atomic_store(&w->aborted, true);
    if (locked) pthread_mutex_unlock(&w->gathering);
    cudaSetDevice(w->device);
    cudaThreadExchangeStreamCaptureMode(&mode);
    w->gatherer.abort(w->gatherer.state);
    cudaThreadExchangeStreamCaptureMode(&mode);
}

static void *watch(void *argument) {
    lplb__cuda_watch *w = argument;
    pthread_mutex_lock(&w->lock);
    bool late = watch_beat(w);
    pthread_mutex_unlock(&w->lock);
    if (late) abort_gatherer(w);
    release(w);
    return NULL;
}

static int start_thread(lplb__cuda_watch *w) {
    pthread_condattr_t monotonic;
    int error = pthread_condattr_init(&monotonic);
    if (error) return error;
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&w->lock, NULL);
    pthread_mutex_init(&w->gathering, NULL);
    pthread_cond_init(&w->ended, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return pthread_create(&w->thread, NULL, watch, w);
}

lplb_status lplb__cuda_watch_create(const lplb__cuda_gatherer *gatherer, const uint64_t *beat,
                                    uint64_t timeout_ns, int32_t device, lplb__cuda_watch **out) {
    lplb__cuda_watch *w;
    LPLB_TRY(LPLB_CALLOC(w, 1));
    w->gatherer = *gatherer;
    w->beat = beat;
    w->timeout_ns = timeout_ns;
    w->device = device;
    atomic_init(&w->users, 2);
    int error = start_thread(w);
    if (error) {
        lplb__free(w);
        return LPLB_FAIL(LPLB_NO_MEMORY, "no thread to watch the gathering: error %d", error);
    }
    *out = w;
    return LPLB_OK;
}

lplb_status lplb__cuda_watch_gather(lplb__cuda_watch *w, const void *send, void *receive,
                                    int64_t bytes, cudaStream_t stream) {
    lplb_status status = LPLB_OK;
    pthread_mutex_lock(&w->gathering);
    if (!atomic_load(&w->aborted))
        status = w->gatherer.all_gather(w->gatherer.state, send, receive, bytes, stream);
    pthread_mutex_unlock(&w->gathering);
    return atomic_load(&w->aborted) ? LPLB_OK : status;
}

bool lplb__cuda_watch_aborted(const lplb__cuda_watch *w) { return atomic_load(&w->aborted); }

void lplb__cuda_watch_destroy(lplb__cuda_watch *w) {
    if (!w) return;
    pthread_mutex_lock(&w->lock);
    w->ends = true;
    pthread_cond_signal(&w->ended);
    pthread_mutex_unlock(&w->lock);
    /* With graphs that hold its all-gather NCCL's abort returns only when they are gone. */
    if (atomic_load(&w->aborted)) {
        pthread_detach(w->thread);
    } else {
        pthread_join(w->thread, NULL);
        if (!atomic_load(&w->aborted) && w->gatherer.destroy)
            w->gatherer.destroy(w->gatherer.state);
    }
    release(w);
}
