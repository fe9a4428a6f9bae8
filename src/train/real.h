/* The trainer's number type and matrix products. lplb-train computes in float, lplb-train-f64 in
 * double (exactness tests); both are built from the same sources. */
#ifndef LPLB_TRAIN_REAL_H
#define LPLB_TRAIN_REAL_H

#include <cblas.h>
#include <math.h>
#include <stdint.h>

#ifdef LPLB_TRAIN_F64
typedef double real;
#define REAL_GEMM cblas_dgemm
#define REAL_NAME "f64"
static inline real real_exp(real x) { return exp(x); }
static inline real real_sqrt(real x) { return sqrt(x); }
#else
typedef float real;
#define REAL_GEMM cblas_sgemm
#define REAL_NAME "f32"
static inline real real_exp(real x) { return expf(x); }
static inline real real_sqrt(real x) { return sqrtf(x); }
#endif

/* y[M][N] = x[M][K] w[N][K]^T + beta y: a linear layer's forward, weights [out][in]. */
static inline void matmul_forward(real *y, const real *x, const real *w, int64_t M, int64_t N,
                                  int64_t K, real beta) {
    if (M == 0) return;
    REAL_GEMM(CblasRowMajor, CblasNoTrans, CblasTrans, (int)M, (int)N, (int)K, 1, x, (int)K, w,
              (int)K, beta, y, (int)N);
}
/* dx[M][K] = dy[M][N] w[N][K] + beta dx */
static inline void matmul_backward_input(real *dx, const real *dy, const real *w, int64_t M,
                                         int64_t N, int64_t K, real beta) {
    if (M == 0) return;
    REAL_GEMM(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)M, (int)K, (int)N, 1, dy, (int)N, w,
              (int)K, beta, dx, (int)K);
}
/* dw[N][K] += dy[M][N]^T x[M][K]: accumulates in place, no temporary. */
static inline void matmul_backward_weight(real *dw, const real *dy, const real *x, int64_t M,
                                          int64_t N, int64_t K) {
    if (M == 0) return;
    REAL_GEMM(CblasRowMajor, CblasTrans, CblasNoTrans, (int)N, (int)K, (int)M, 1, dy, (int)N, x,
              (int)K, 1, dw, (int)K);
}

#endif
