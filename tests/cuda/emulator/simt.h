/* src/cuda/simt.cuh on a CPU: every thread of a launch is a fibre of one host thread, and gives way
 * where it would wait. Fibres are resumed in a seeded random order, so that a missing barrier
 * shows. */
#ifndef LPLB_TESTS_CUDA_EMULATOR_SIMT_H
#define LPLB_TESTS_CUDA_EMULATOR_SIMT_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define DEVICE      static inline
#define DEVICE_CALL static
#define KERNEL      extern "C"
#define LPLB__CUDA_BOUNDS
#define LPLB__CUDA_IPM_BOUNDS
#define LPLB__CUDA_CONSTANT

struct emulated_warp {
    uint64_t turns; /* completed collectives */
    uint64_t value[2][32];
    int arrived;
};

struct emulated_barrier {
    uint64_t turns;
    int arrived;
    bool any, result[2];
};

struct emulated_block {
    unsigned char *shared;
    int index, threads;
    emulated_barrier barrier[16];
};

struct emulated_thread {
    int index;
    emulated_block *block;
    emulated_warp *warp;
    uint64_t warp_turn;
    const uint64_t *wait; /* resume when *wait >= until */
    uint64_t until;
};

/* Host threads launch on their own: what they launch then runs side by side. */
extern thread_local emulated_thread *emulated_self;
/* Runs other fibres until *counter >= value; counter NULL: at least once around. */
void emulated_wait(const uint64_t *counter, uint64_t value);
/* Stores a word that may be under way for a while, as relaxed stores to memory that GPUs share are:
 * what the thread does next can be seen first, its own reads of the word included. */
void emulated_send(uint64_t *word, uint64_t value);
/* The values that all lanes of the warp give, by lane. */
void emulated_gather(uint64_t value, uint64_t *all);
bool emulated_barrier_any(int id, int threads, bool predicate);

DEVICE unsigned char *shared_memory() { return emulated_self->block->shared; }
DEVICE int thread_index() { return emulated_self->index; }
DEVICE int block_threads() { return emulated_self->block->threads; }
DEVICE int block_index() { return emulated_self->block->index; }
DEVICE int lane_index() { return emulated_self->index & 31; }
DEVICE int warp_index() { return emulated_self->index >> 5; }

DEVICE void warp_barrier() {
    uint64_t all[32];
    emulated_gather(0, all);
}
DEVICE uint32_t votes(bool predicate) {
    uint64_t all[32];
    uint32_t bits = 0;
    emulated_gather(predicate, all);
    for (int i = 0; i < 32; i++) bits |= (uint32_t)all[i] << i;
    return bits;
}
DEVICE bool warp_any(bool predicate) { return votes(predicate) != 0; }
template <typename T> DEVICE T shuffle(T value, int from) {
    uint64_t all[32], own = 0;
    memcpy(&own, &value, sizeof value);
    emulated_gather(own, all);
    memcpy(&value, &all[from & 31], sizeof value);
    return value;
}
template <typename T> DEVICE T shuffle_xor(T value, int mask) {
    return shuffle(value, lane_index() ^ mask);
}
template <typename T> DEVICE T shuffle_up(T value, int delta) {
    return shuffle(value, lane_index() >= delta ? lane_index() - delta : lane_index());
}
DEVICE uint32_t lanes_below() { return (1u << lane_index()) - 1; }
DEVICE int bits_set(uint32_t word) { return __builtin_popcount(word); }
DEVICE int lowest_bit(uint32_t word) { return __builtin_ffs((int)word) - 1; }
DEVICE int leading_zeros(uint32_t word) { return __builtin_clz(word); }
template <typename T> DEVICE T warp_sum(T value) {
    uint64_t all[32];
    T sum = 0;
    emulated_gather((uint64_t)(int64_t)value, all);
    for (int i = 0; i < 32; i++) sum += (T)all[i];
    return sum;
}
template <typename T> DEVICE T warp_max(T value) {
    uint64_t all[32];
    emulated_gather((uint64_t)(int64_t)value, all);
    for (int i = 0; i < 32; i++) value = (T)all[i] > value ? (T)all[i] : value;
    return value;
}
DEVICE int32_t warp_min(int32_t value) { return -warp_max(-value); }
DEVICE uint32_t warp_or(uint32_t value) {
    uint64_t all[32];
    emulated_gather(value, all);
    for (int i = 0; i < 32; i++) value |= (uint32_t)all[i];
    return value;
}
DEVICE int32_t add_clamped(int32_t a, int32_t b, int32_t limit) {
    int32_t sum = a + b < limit ? a + b : limit;
    return sum > 0 ? sum : 0;
}

DEVICE bool block_any(bool predicate) {
    return emulated_barrier_any(0, block_threads(), predicate);
}
DEVICE void block_barrier() { emulated_barrier_any(0, block_threads(), false); }
DEVICE bool part_any(int id, int threads, bool predicate) {
    return emulated_barrier_any(id, threads, predicate);
}
DEVICE void part_barrier(int id, int threads) { emulated_barrier_any(id, threads, false); }

template <typename T> DEVICE T reciprocal(T x) { return 1 / x; }

DEVICE void send_quad(void *shared, const void *global) { memcpy(shared, global, 16); }
DEVICE void await_quads() {}
DEVICE uint64_t load_word(const uint64_t *word) { return *word; }
DEVICE void store_word(uint64_t *word, uint64_t value) { *word = value; }
DEVICE uint64_t load_peer_word(const uint64_t *word) {
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}
DEVICE void store_peer_word(uint64_t *word, uint64_t value) { emulated_send(word, value); }
DEVICE void spin_pause() { emulated_wait(NULL, 0); }
uint64_t clock_ns();

template <typename T> DEVICE void atomic_add(T *at, T value) { *at += value; }
DEVICE void atomic_or(uint32_t *at, uint32_t value) { *at |= value; }
template <typename T> DEVICE void atomic_min(T *at, T value) { *at = value < *at ? value : *at; }
template <typename T> DEVICE void atomic_max(T *at, T value) { *at = value > *at ? value : *at; }

/* Runs a kernel, all blocks at once. Aborts on a deadlock. */
void emulated_launch(void (*kernel)(const void *arguments), const void *arguments, int blocks,
                     int threads, size_t shared_bytes);
/* Order of resuming; 0 = round robin. */
void emulated_seed(uint64_t seed);

#endif
