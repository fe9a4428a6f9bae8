/* Matrix products: of reals by OpenBLAS, of bf16 by oneDNN, where the build found it. */
#ifndef LPLB_TRAIN_GEMM_H
#define LPLB_TRAIN_GEMM_H

#include <stdbool.h>

#include "base/error.h"
#include "train/real.h"

/* c[m][n] = a b + beta c in row-major order, rows *_row numbers apart; a is [m][k], or [k][m] where
 * it is taken transposed, b likewise. */
typedef struct gemm_shape {
    int64_t m, n, k;
    bool transpose_a, transpose_b;
    int64_t a_row, b_row, c_row;
} gemm_shape;

void gemm_real(const gemm_shape *s, const real *a, const real *b, real beta, real *c);
/* "oneDNN 2.6.3", or "OpenBLAS for SKYLAKEX" */
void gemm_name(bool bf16, char *name, size_t bytes);

/* Upper halves of floats; sums are float. Only where gemm_bf16_check says so. */
void gemm_bf16(const gemm_shape *s, const uint16_t *a, const uint16_t *b, float beta, float *c);
/* LPLB_UNSUPPORTED with what is missing: the library, or instructions of the processor. */
lplb_status gemm_bf16_check(void);

/* Ranks share the processors, so each computes on one thread, unless OPENBLAS_NUM_THREADS says
 * otherwise; oneDNN takes as many as OpenBLAS unless OMP_NUM_THREADS does. */
void gemm_share_processors(int ranks);

/* a as it lies times b as it lies (nn), b transposed (nt), a transposed (tn) */
static inline void gemm_nt(int64_t m, int64_t n, int64_t k, const real *a, int64_t a_row,
                           const real *b, int64_t b_row, real beta, real *c, int64_t c_row) {
    gemm_real(&(gemm_shape){m, n, k, false, true, a_row, b_row, c_row}, a, b, beta, c);
}
static inline void gemm_nn(int64_t m, int64_t n, int64_t k, const real *a, int64_t a_row,
                           const real *b, int64_t b_row, real beta, real *c, int64_t c_row) {
    gemm_real(&(gemm_shape){m, n, k, false, false, a_row, b_row, c_row}, a, b, beta, c);
}
static inline void gemm_tn(int64_t m, int64_t n, int64_t k, const real *a, int64_t a_row,
                           const real *b, int64_t b_row, real beta, real *c, int64_t c_row) {
    gemm_real(&(gemm_shape){m, n, k, true, false, a_row, b_row, c_row}, a, b, beta, c);
}

#endif
