/* Symmetric systems of up to a few hundred rows, solved by a team of warps. The elimination is what
 * an iteration waits for: a turn a row, of which each needs the pivot of the one before. */
#ifndef LPLB_CUDA_IPM_MATRIX_CUH
#define LPLB_CUDA_IPM_MATRIX_CUH

#include "cuda/ipm_team.cuh"

/* Conductances between ranks, those to earth on the diagonal: a pivot is the sum of its row, so
 * that nothing is ever subtracted (src/plan/ipm_converged.c). */
struct network {
    typedef double number;
    enum { adds = 1 };
};
/* Any positive definite matrix. */
struct normal {
    typedef float number;
    enum { adds = 0 };
};

/* Lanes that add up a row of n numbers together. */
DEVICE int32_t row_lanes(int32_t n) { return n <= 8 ? 8 : n <= 16 ? 16 : 32; }

/* Sum of row[k..n) by every warp for itself. */
template <typename T> DEVICE T pivot_of(const T *row, int32_t k, int32_t n) {
    T sum = 0;
    int32_t lanes = row_lanes(n);
    ROLLED
    for (int32_t j = k + (lane_index() & (lanes - 1)); j < n; j += lanes) sum += row[j];
    ROLLED
    for (int32_t d = lanes / 2; d; d >>= 1) sum += shuffle_xor(sum, d);
    return sum;
}

/* Numbers from one row of a matrix to the next: odd, for the memory's banks. */
DEVICE int32_t stride_of(int32_t n) { return n | 1; }

/* Eliminates row after row. matrix: what is above the diagonal, and the diagonal; in the end each
 * row as it was when its turn came. inverse [n]: of the pivots; right [n]: right-hand sides,
 * changed along. Rows a and n-1-a together have n-1 numbers above the diagonal, which chunks of 32
 * lanes keep in registers; thread i has the diagonal's number i. False if a pivot is not
 * positive. */
template <typename K, int CELLS>
DEVICE_CALL bool eliminate(const team &t, int32_t n, typename K::number *matrix,
                           typename K::number *inverse, typename K::number *right) {
    typedef typename K::number T;
    T cell[CELLS], diagonal = 0, current = 0;
    int32_t at[CELLS]; /* i << 16 | j; -1 = none */
    int32_t warps = t.threads / 32, chunks = (n + 30) / 32, d = t.thread, stride = stride_of(n);
#pragma unroll
    for (int c = 0; c < CELLS; c++) {
        int32_t item = t.thread / 32 + c * warps, pair = item / chunks, other = n - 1 - pair;
        int32_t b = item % chunks * 32 + lane_index();
        int32_t i = b < other ? pair : other, j = b < other ? pair + 1 + b : b + 1;
        bool used = pair < (n + 1) / 2 && b < n - 1 && (b < other || other != pair);
        at[c] = used ? i << 16 | j : -1;
        cell[c] = used ? matrix[i * stride + j] : 0;
    }
    if (d < n) diagonal = matrix[d * stride + d];
    if (d < n) current = right[d];
    ROLLED
    for (int32_t k = 0; k < n; k++) {
        const T *row = matrix + k * stride;
        T pivot = K::adds ? pivot_of(row, k, n) : row[k], factor = reciprocal(pivot);
        if (!(pivot > 0)) return false;
#pragma unroll
        for (int c = 0; c < CELLS; c++) {
            int32_t i = at[c] >> 16, j = at[c] & 65535;
            if (i <= k) continue;
            T change = row[i] * factor * row[j];
            cell[c] += K::adds ? change : -change;
            if (i == k + 1) matrix[i * stride + j] = cell[c];
        }
        if (d > k && d < n) {
            T part = row[d] * factor;
            diagonal += K::adds ? part * row[k] : -part * row[d];
            current += K::adds ? part * right[k] : -part * right[k];
        }
        if (d == k) inverse[k] = factor;
        if (d == k + 1 && d < n) {
            matrix[d * stride + d] = diagonal;
            right[d] = current;
        }
        team_barrier(&t);
    }
    return true;
}

/* Both directions by the team's first warp, lane l for ranks l, l + 32, ...; each turn waits for
 * the number of one rank only. */
template <typename K, int SLOTS>
DEVICE void eliminate_right(int32_t n, const typename K::number *matrix,
                            const typename K::number *inverse, typename K::number *right) {
    typedef typename K::number T;
    int32_t lane = lane_index(), stride = stride_of(n);
    T current[SLOTS];
#pragma unroll
    for (int s = 0; s < SLOTS; s++) current[s] = lane + 32 * s < n ? right[lane + 32 * s] : 0;
#pragma unroll
    for (int s = 0; s < SLOTS; s++)
#pragma unroll 4
    for (int32_t k = 32 * s; k < smaller(32 * s + 32, n); k++) {
        T removed = shuffle(current[s], k & 31), factor = inverse[k];
#pragma unroll
        for (int c = s; c < SLOTS; c++) {
            int32_t i = lane + 32 * c;
            if (i <= k || i >= n) continue;
            T part = matrix[k * stride + i] * factor;
            current[c] += K::adds ? part * removed : -part * removed;
        }
    }
#pragma unroll
    for (int s = 0; s < SLOTS; s++)
        if (lane + 32 * s < n) right[lane + 32 * s] = current[s];
    warp_barrier();
}

template <typename K, int SLOTS>
DEVICE void substitute_back(int32_t n, const typename K::number *matrix,
                            const typename K::number *inverse, const typename K::number *right,
                            typename K::number *out) {
    typedef typename K::number T;
    int32_t lane = lane_index(), stride = stride_of(n);
    T value[SLOTS], own[SLOTS];
#pragma unroll
    for (int s = 0; s < SLOTS; s++) {
        int32_t i = smaller(lane + 32 * s, n - 1);
        own[s] = inverse[i];
        value[s] = right[i] * own[s];
    }
#pragma unroll
    for (int s = SLOTS - 1; s >= 0; s--)
#pragma unroll 4
    for (int32_t k = smaller(32 * s + 31, n - 1); k >= 32 * s; k--) {
        T found = shuffle(value[s], k & 31);
#pragma unroll
        for (int c = 0; c <= s; c++) {
            int32_t i = lane + 32 * c;
            if (i >= k) continue;
            T part = matrix[i * stride + k] * own[c];
            value[c] += K::adds ? part * found : -part * found;
        }
    }
#pragma unroll
    for (int s = 0; s < SLOTS; s++)
        if (lane + 32 * s < n) out[lane + 32 * s] = value[s];
}

/* out = the solution for right; `done`: which has been eliminated with the matrix. By one warp. */
template <typename K, int SLOTS>
DEVICE_CALL void solve_eliminated(int32_t n, const typename K::number *matrix,
                                  const typename K::number *inverse, typename K::number *right,
                                  typename K::number *out, bool done) {
    if (!done) eliminate_right<K, SLOTS>(n, matrix, inverse, right);
    substitute_back<K, SLOTS>(n, matrix, inverse, right, out);
}

#endif
