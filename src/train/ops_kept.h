/* Operations on what is kept for matrix products, for one type of number: ops_cpu.c includes it
 * with reals, ops_bf16.c with bf16. Before it come
 *   cell                        the type,
 *   load_cell(), store_cell()   from and to a real,
 *   multiply()                  a product of matrices of cells. */
#include "train/ops.h"
#include "train/ops_sums.h"

static inline const cell *cells(const kept *x) { return (const cell *)(const void *)x; }
static inline cell *cells_of(kept *x) { return (cell *)(void *)x; }

static void linear_forward(real *y, const kept *x, const kept *w, int64_t M, int64_t N, int64_t K,
                           real beta) {
    if (M > 0) multiply(&(gemm_shape){M, N, K, false, true, K, K, N}, x, w, beta, y);
}

static void linear_backward_input(real *dx, const kept *dy, const kept *w, int64_t M, int64_t N,
                                  int64_t K, real beta) {
    if (M > 0) multiply(&(gemm_shape){M, K, N, false, false, N, K, K}, dy, w, beta, dx);
}

static void linear_backward_weight(real *dw, const kept *dy, const kept *x, int64_t M, int64_t N,
                                   int64_t K) {
    if (M > 0) multiply(&(gemm_shape){N, K, M, true, false, N, K, K}, dy, x, 1, dw);
}

REAL_WIDE static void rmsnorm_forward(kept *out, real *rstd, const real *x, const real *gain,
                                      int64_t N, int64_t D, real eps) {
    cell *y = cells_of(out);
    for (int64_t n = 0; n < N; n++, x += D, y += D) {
        real r = 1 / real_sqrt(dot_rows(x, x, D) / (real)D + eps);
        for (int64_t i = 0; i < D; i++) y[i] = store_cell(x[i] * r * gain[i]);
        rstd[n] = r;
    }
}

/* ---- rows of experts' tokens ---- */

static void gather_rows(kept *out, const kept *in, const int32_t *position, int64_t N, int64_t K,
                        int64_t D) {
    for (int64_t i = 0; i < N * K; i++)
        if (position[i] >= 0)
            memcpy(cells_of(out) + position[i] * D, cells(in) + i / K * D,
                   sizeof(cell) * (size_t)D);
}

REAL_WIDE static void combine_rows(real *out, const kept *rows, const int32_t *position,
                                   const real *gate, int64_t N, int64_t K, int64_t D) {
    for (int64_t i = 0; i < N * K; i++) {
        if (position[i] < 0) continue;
        const cell *row = cells(rows) + position[i] * D;
        real *sum = out + i / K * D, weight = gate ? gate[i] : 1;
        for (int64_t j = 0; j < D; j++) sum[j] += weight * load_cell(row[j]);
    }
}

/* sum of d[j] row[j], and out = weight d */
static inline real dot_and_scale(cell *out, const real *d, const cell *row, real weight,
                                 int64_t D) {
    real lane[LANES] = {0};
    int64_t j = 0;
    for (; j + LANES <= D; j += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += d[j + l] * load_cell(row[j + l]);
    for (int l = 0; j + l < D; l++) lane[l] += d[j + l] * load_cell(row[j + l]);
    for (j = 0; j < D; j++) out[j] = store_cell(weight * d[j]);
    return add_lanes(lane);
}

REAL_WIDE static void combine_backward(real *dgate, kept *out, const real *dout, const kept *rows,
                                       const int32_t *position, const real *gate, int64_t N,
                                       int64_t K, int64_t D) {
    for (int64_t i = 0; i < N * K; i++) {
        dgate[i] = 0;
        if (position[i] < 0) continue;
        dgate[i] = dot_and_scale(cells_of(out) + position[i] * D, dout + i / K * D,
                                 cells(rows) + position[i] * D, gate[i], D);
    }
}

static void set_kept_operations(ops *table) {
    table->linear_forward = linear_forward;
    table->linear_backward_input = linear_backward_input;
    table->linear_backward_weight = linear_backward_weight;
    table->rmsnorm_forward = rmsnorm_forward;
    table->gather_rows = gather_rows;
    table->combine_rows = combine_rows;
    table->combine_backward = combine_backward;
}
