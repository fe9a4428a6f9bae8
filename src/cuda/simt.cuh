/* The few things the kernels ask of the machine. Everything else in them is plain C++, so that the
 * same source also runs on a CPU, one fibre a thread (tests/cuda/emulator), where it can be tested
 * without a device and under the sanitizers.
 *
 * Warp functions are called by all 32 lanes together. */
#ifndef LPLB_CUDA_SIMT_CUH
#define LPLB_CUDA_SIMT_CUH

#include <stdint.h>

/* Before a loop that is not worth its copies in the instruction cache. */
#define ROLLED _Pragma("unroll 1")

#ifdef LPLB_CUDA_EMULATED
#include "emulator/simt.h"
#else

#define DEVICE                static __device__ __forceinline__
#define DEVICE_CALL           static __device__ __noinline__
#define KERNEL                extern "C" __global__
/* The registers of a multiprocessor are for one block of LPLB__CUDA_MAX_THREADS (step.h). */
#define LPLB__CUDA_BOUNDS     __launch_bounds__(640, 1)
#define LPLB__CUDA_IPM_BOUNDS __launch_bounds__(512, 1) /* LPLB__CUDA_IPM_THREADS (ipm.h) */
#define LPLB__CUDA_CONSTANT   __grid_constant__

extern __shared__ __align__(16) unsigned char lplb_shared[];

DEVICE unsigned char *shared_memory() { return lplb_shared; }
DEVICE int thread_index() { return (int)threadIdx.x; }
DEVICE int block_threads() { return (int)blockDim.x; }
DEVICE int block_index() { return (int)blockIdx.x; }
DEVICE int lane_index() { return (int)(threadIdx.x & 31); }
DEVICE int warp_index() { return (int)(threadIdx.x >> 5); }

/* ---- warps ---- */

DEVICE void warp_barrier() { __syncwarp(); }
DEVICE uint32_t votes(bool predicate) { return __ballot_sync(0xffffffffu, predicate); }
DEVICE bool warp_any(bool predicate) { return __any_sync(0xffffffffu, predicate); }
template <typename T> DEVICE T shuffle(T value, int from) {
    return __shfl_sync(0xffffffffu, value, from);
}
template <typename T> DEVICE T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <typename T> DEVICE T shuffle_up(T value, int delta) {
    return __shfl_up_sync(0xffffffffu, value, (unsigned)delta);
}
DEVICE uint32_t lanes_below() { return (1u << lane_index()) - 1; }
DEVICE int bits_set(uint32_t word) { return __popc(word); }
DEVICE int lowest_bit(uint32_t word) { return __ffs((int)word) - 1; }
DEVICE int leading_zeros(uint32_t word) { return __clz((int)word); }

DEVICE int32_t warp_sum(int32_t value) {
#if __CUDA_ARCH__ >= 800
    return (int32_t)__reduce_add_sync(0xffffffffu, (unsigned)value);
#else
    for (int d = 16; d; d >>= 1) value += shuffle_xor(value, d);
    return value;
#endif
}
DEVICE int64_t warp_sum(int64_t value) {
    for (int d = 16; d; d >>= 1) value += shuffle_xor(value, d);
    return value;
}
DEVICE int32_t warp_max(int32_t value) {
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(0xffffffffu, value);
#else
    for (int d = 16; d; d >>= 1) value = max(value, shuffle_xor(value, d));
    return value;
#endif
}
DEVICE int32_t warp_min(int32_t value) {
#if __CUDA_ARCH__ >= 800
    return __reduce_min_sync(0xffffffffu, value);
#else
    for (int d = 16; d; d >>= 1) value = min(value, shuffle_xor(value, d));
    return value;
#endif
}
DEVICE uint32_t warp_or(uint32_t value) {
#if __CUDA_ARCH__ >= 800
    return __reduce_or_sync(0xffffffffu, value);
#else
    for (int d = 16; d; d >>= 1) value |= shuffle_xor(value, d);
    return value;
#endif
}
DEVICE int64_t warp_max(int64_t value) {
    for (int d = 16; d; d >>= 1) value = max(value, shuffle_xor(value, d));
    return value;
}

/* max(0, min(a + b, limit)) */
DEVICE int32_t add_clamped(int32_t a, int32_t b, int32_t limit) {
    return __viaddmin_s32_relu(a, b, limit);
}

/* ---- blocks ---- */

DEVICE void block_barrier() { __syncthreads(); }
DEVICE bool block_any(bool predicate) { return __syncthreads_or(predicate); }
/* The first `threads` threads of the block, or any other fixed set of that many. id 1..15. */
DEVICE void part_barrier(int id, int threads) {
    asm volatile("barrier.cta.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
DEVICE bool part_any(int id, int threads, bool predicate) {
    int any;
    asm volatile("{ .reg .pred p, q; setp.ne.u32 p, %3, 0; barrier.cta.red.or.pred q, %1, %2, p; "
                 "selp.u32 %0, 1, 0, q; }"
                 : "=r"(any)
                 : "r"(id), "r"(threads), "r"((int)predicate)
                 : "memory");
    return any != 0;
}

/* ---- numbers ---- */

/* 1 / x but for the last bit, for normal numbers that have one: shorter than a division. */
DEVICE double reciprocal(double x) {
    double r;
    asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(r) : "d"(x));
    r = fma(r, fma(-x, r, 1.0), r);
    return fma(r, fma(-x, r, 1.0), r);
}
DEVICE float reciprocal(float x) { return 1 / x; }

/* ---- memory ---- */

/* 16 bytes from device memory to our shared memory; there after await_quads by the same thread. */
DEVICE void send_quad(void *shared, const void *global) {
    uint32_t target = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(global) : "memory");
}
DEVICE void await_quads() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/* A word that carries its own flag: whole when read, ordered with nothing else. */
DEVICE uint64_t load_word(const uint64_t *word) {
    uint64_t value;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
    return value;
}
DEVICE void store_word(uint64_t *word, uint64_t value) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}
/* The same for words that other devices write or read. */
DEVICE uint64_t load_peer_word(const uint64_t *word) {
    uint64_t value;
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
    return value;
}
DEVICE void store_peer_word(uint64_t *word, uint64_t value) {
    asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}
DEVICE void spin_pause() {}
/* Ordered with barriers and memory. */
DEVICE int64_t cycles() {
    int64_t t;
    asm volatile("mov.u64 %0, %%clock64;" : "=l"(t)::"memory");
    return t;
}
DEVICE uint64_t clock_ns() {
    uint64_t t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}

DEVICE void atomic_add(uint32_t *at, uint32_t value) { atomicAdd(at, value); }
DEVICE void atomic_add(int32_t *at, int32_t value) { atomicAdd(at, value); }
DEVICE void atomic_add(int64_t *at, int64_t value) {
    atomicAdd((unsigned long long *)at, (unsigned long long)value);
}
DEVICE void atomic_add(uint64_t *at, uint64_t value) { atomicAdd((unsigned long long *)at, value); }
DEVICE void atomic_or(uint32_t *at, uint32_t value) { atomicOr(at, value); }
DEVICE void atomic_max(int32_t *at, int32_t value) { atomicMax(at, value); }
DEVICE void atomic_min(int32_t *at, int32_t value) { atomicMin(at, value); }
DEVICE void atomic_min(uint64_t *at, uint64_t value) {
    atomicMin((unsigned long long *)at, (unsigned long long)value);
}
DEVICE void atomic_max(uint64_t *at, uint64_t value) {
    atomicMax((unsigned long long *)at, (unsigned long long)value);
}

#endif

/* The same on both. */
template <typename T> DEVICE T smaller(T a, T b) { return a < b ? a : b; }
template <typename T> DEVICE T larger(T a, T b) { return a > b ? a : b; }

#endif
