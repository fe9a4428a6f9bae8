#include "emulator/simt.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <ucontext.h>

#include <atomic>
#include <deque>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

thread_local emulated_thread *emulated_self;

namespace {

const size_t STACK_BYTES = 96 << 10;

struct fibre {
    emulated_thread thread;
    ucontext_t start;
    jmp_buf at;
    bool started, done;
    unsigned char *stack;
};

struct sent_word {
    uint64_t *to, value, arrives; /* round */
};

struct machine {
    void (*kernel)(const void *);
    const void *arguments;
    std::vector<fibre> fibres;
    fibre *current;
    ucontext_t back_start;
    jmp_buf back;
    uint64_t random, round;
    uint64_t delay; /* rounds that half of the words it sends are under way */
    std::deque<sent_word> sent;
};

thread_local machine *now;
std::atomic<uint64_t> host_threads;
thread_local uint64_t launches = host_threads++ << 32; /* of this thread, behind its number */
uint64_t seed;

uint64_t next_random() {
    now->random ^= now->random << 13;
    now->random ^= now->random >> 7;
    now->random ^= now->random << 17;
    return now->random;
}

#if defined(__SANITIZE_ADDRESS__)
/* The sanitizer follows a switch of stacks that it is told of; setjmp would hide it. */
thread_local void *scheduler_fake;
thread_local const void *scheduler_stack;
thread_local size_t scheduler_bytes;

void leave(fibre *f) {
    void *fake = NULL;
    __sanitizer_start_switch_fiber(f->done ? NULL : &fake, scheduler_stack, scheduler_bytes);
    swapcontext(&f->start, &now->back_start);
    __sanitizer_finish_switch_fiber(fake, &scheduler_stack, &scheduler_bytes);
}

void enter() {
    __sanitizer_finish_switch_fiber(NULL, &scheduler_stack, &scheduler_bytes);
    now->kernel(now->arguments);
    now->current->done = true;
    leave(now->current);
}

void resume(fibre *f) {
    now->current = f;
    emulated_self = &f->thread;
    if (!f->started) {
        f->started = true;
        getcontext(&f->start);
        f->start.uc_stack.ss_sp = f->stack;
        f->start.uc_stack.ss_size = STACK_BYTES;
        f->start.uc_link = NULL;
        makecontext(&f->start, enter, 0);
    }
    __sanitizer_start_switch_fiber(&scheduler_fake, f->stack, STACK_BYTES);
    swapcontext(&now->back_start, &f->start);
    __sanitizer_finish_switch_fiber(scheduler_fake, NULL, NULL);
}
#else
void leave(fibre *f) {
    if (_setjmp(f->at) == 0) _longjmp(now->back, 1);
}

void enter() {
    now->kernel(now->arguments);
    now->current->done = true;
    _longjmp(now->back, 1);
}

void resume(fibre *f) {
    now->current = f;
    emulated_self = &f->thread;
    if (_setjmp(now->back) != 0) return;
    if (f->started) _longjmp(f->at, 1);
    f->started = true;
    getcontext(&f->start);
    f->start.uc_stack.ss_sp = f->stack;
    f->start.uc_stack.ss_size = STACK_BYTES;
    f->start.uc_link = NULL;
    makecontext(&f->start, enter, 0);
    setcontext(&f->start);
}
#endif

bool is_ready(const fibre &f) {
    return !f.done && (!f.thread.wait || *f.thread.wait >= f.thread.until);
}

/* Those that have arrived by now, in the order in which they were sent. */
void deliver(uint64_t round) {
    std::deque<sent_word> &sent = now->sent;
    for (; !sent.empty() && sent.front().arrives <= round; sent.pop_front())
        __atomic_store_n(sent.front().to, sent.front().value, __ATOMIC_RELAXED);
}

/* Goes round until all are done. */
void run_all() {
    size_t n = now->fibres.size(), left = n;
    for (; left; deliver(now->round++)) {
        size_t ran = 0, start = seed ? next_random() % n : 0;
        uint64_t lazy = seed ? next_random() : 0; /* warps that pause in this round */
        for (size_t i = 0; i < n; i++) {
            fibre &f = now->fibres[(start + i) % n];
            if (!is_ready(f)) continue;
            ran++;
            if (lazy >> ((f.thread.index >> 5) & 63) & 1 && next_random() % 4) continue;
            resume(&f);
            left -= f.done;
        }
        if (!ran) {
            fprintf(stderr, "emulator: no thread of the launch can go on; a barrier is missed\n");
            abort();
        }
    }
}

} // namespace

void emulated_wait(const uint64_t *counter, uint64_t value) {
    emulated_thread *self = emulated_self;
    if (counter && *counter >= value) return;
    self->wait = counter;
    self->until = value;
    leave(now->current);
    emulated_self->wait = NULL;
}

void emulated_send(uint64_t *word, uint64_t value) {
    if (now->delay && (next_random() >> 32) % 2)
        now->sent.push_back({word, value, now->round + now->delay});
    else __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

void emulated_gather(uint64_t value, uint64_t *all) {
    emulated_thread *self = emulated_self;
    emulated_warp *warp = self->warp;
    uint64_t turn = self->warp_turn++;
    warp->value[turn & 1][self->index & 31] = value;
    if (++warp->arrived == 32) {
        warp->arrived = 0;
        warp->turns++;
    }
    emulated_wait(&warp->turns, turn + 1);
    memcpy(all, warp->value[turn & 1], sizeof warp->value[0]);
}

bool emulated_barrier_any(int id, int threads, bool predicate) {
    emulated_barrier *barrier = &emulated_self->block->barrier[id];
    uint64_t turn = barrier->turns;
    barrier->any |= predicate;
    if (++barrier->arrived == threads) {
        barrier->result[turn & 1] = barrier->any;
        barrier->any = false;
        barrier->arrived = 0;
        barrier->turns++;
    }
    emulated_wait(&barrier->turns, turn + 1);
    return barrier->result[turn & 1];
}

uint64_t clock_ns() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void emulated_seed(uint64_t value) { seed = value; }

/* One launch of four is slow to send, if the test asks for it. (splitmix64 of Vigna.) */
static uint64_t draw_delay() {
    const char *rounds = getenv("LPLB_EMULATOR_DELAY");
    uint64_t x = (seed + launches++) * 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return rounds && (x ^ x >> 31) % 4 == 0 ? strtoull(rounds, NULL, 10) : 0;
}

void emulated_launch(void (*kernel)(const void *), const void *arguments, int blocks, int threads,
                     size_t shared_bytes) {
    machine m;
    std::vector<emulated_block> block((size_t)blocks);
    std::vector<emulated_warp> warps((size_t)(blocks * (threads / 32)));
    std::vector<unsigned char> shared(shared_bytes * (size_t)blocks);
    if (!seed && getenv("LPLB_EMULATOR_SEED"))
        seed = strtoull(getenv("LPLB_EMULATOR_SEED"), NULL, 10);
    unsigned char *stack = (unsigned char *)malloc(STACK_BYTES * (size_t)(blocks * threads));
    if (!stack) abort();
    for (size_t i = 0; i < shared.size(); i++) shared[i] = 0xa5; /* nobody may count on zeros */
    m.kernel = kernel;
    m.arguments = arguments;
    m.random = seed * 2 + 1;
    m.round = 0;
    m.delay = draw_delay();
    m.fibres.resize((size_t)(blocks * threads));
    for (int b = 0; b < blocks; b++) {
        block[(size_t)b].shared = shared.data() + shared_bytes * (size_t)b;
        block[(size_t)b].index = b;
        block[(size_t)b].threads = threads;
        for (int t = 0; t < threads; t++) {
            size_t i = (size_t)(b * threads + t);
            fibre &f = m.fibres[i];
            f.thread = {t, &block[(size_t)b], &warps[i / 32], 0, NULL, 0};
            f.started = f.done = false;
            f.stack = stack + STACK_BYTES * i;
        }
    }
    machine *outer = now;
    now = &m;
    run_all();
    deliver(UINT64_MAX);
    now = outer;
    free(stack);
}
