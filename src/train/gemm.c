#define _GNU_SOURCE /* RTLD_DEFAULT */
#include "train/gemm.h"

#include <cblas.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#ifdef LPLB_HAVE_DNNL
#include <oneapi/dnnl/dnnl.h>
#endif

#include "train/blas.h"

#ifdef LPLB_TRAIN_F64
#define REAL_GEMM cblas_dgemm
#else
#define REAL_GEMM cblas_sgemm
#endif

void gemm_real(const gemm_shape *s, const real *a, const real *b, real beta, real *c) {
    REAL_GEMM(CblasRowMajor, s->transpose_a ? CblasTrans : CblasNoTrans,
              s->transpose_b ? CblasTrans : CblasNoTrans, (int)s->m, (int)s->n, (int)s->k, 1, a,
              (int)s->a_row, b, (int)s->b_row, beta, c, (int)s->c_row);
}

void gemm_name(bool bf16, char *name, size_t bytes) {
    snprintf(name, bytes, "OpenBLAS for %s", blas_core());
#ifdef LPLB_HAVE_DNNL
    const dnnl_version_t *v = dnnl_version();
    if (bf16) snprintf(name, bytes, "oneDNN %d.%d.%d", v->major, v->minor, v->patch);
#else
    (void)bf16;
#endif
}

void gemm_share_processors(int ranks) {
    if (ranks > 1 && !getenv("OPENBLAS_NUM_THREADS") && !getenv("OMP_NUM_THREADS"))
        openblas_set_num_threads(1);
    /* oneDNN brings its OpenMP along, which is told so without a link to it. */
    void *symbol = dlsym(RTLD_DEFAULT, "omp_set_num_threads");
    void (*set_threads)(int);
    memcpy(&set_threads, &symbol, sizeof symbol);
    if (symbol && !getenv("OMP_NUM_THREADS")) set_threads(openblas_get_num_threads());
}

/* ---- bf16 ---- */

#ifdef LPLB_HAVE_DNNL
/* Exported by oneDNN 1.x to 3.x beside dnnl_sgemm, whose conventions it has, but in none of its
 * headers. */
extern dnnl_status_t dnnl_gemm_bf16bf16f32(char trans_a, char trans_b, dnnl_dim_t m, dnnl_dim_t n,
                                           dnnl_dim_t k, float alpha, const uint16_t *a,
                                           dnnl_dim_t a_row, const uint16_t *b, dnnl_dim_t b_row,
                                           float beta, float *c, dnnl_dim_t c_row);

static dnnl_status_t multiply_bf16(const gemm_shape *s, const uint16_t *a, const uint16_t *b,
                                   float beta, float *c) {
    return dnnl_gemm_bf16bf16f32(s->transpose_a ? 'T' : 'N', s->transpose_b ? 'T' : 'N', s->m, s->n,
                                 s->k, 1, a, s->a_row, b, s->b_row, beta, c, s->c_row);
}

void gemm_bf16(const gemm_shape *s, const uint16_t *a, const uint16_t *b, float beta, float *c) {
    multiply_bf16(s, a, b, beta, c); /* gemm_bf16_check has seen it work */
}

lplb_status gemm_bf16_check(void) {
    enum { SIDE = 16, ONE = 0x3f80 };
    uint16_t a[SIDE * SIDE];
    float c[SIDE * SIDE];
    gemm_shape s = {SIDE, SIDE, SIDE, false, false, SIDE, SIDE, SIDE};
#ifdef __x86_64__
    /* Without these instructions the library would emulate them, slower than float. */
    unsigned isa = (unsigned)dnnl_get_effective_cpu_isa(), bf16 = dnnl_cpu_isa_avx512_core_bf16;
    if ((isa & bf16) != bf16)
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "this processor has no bf16 instructions (AVX512_BF16 or AMX); train "
                         "without --dtype bf16");
#endif
    for (int i = 0; i < SIDE * SIDE; i++) a[i] = ONE;
    if (multiply_bf16(&s, a, a, 0, c) != dnnl_success || c[0] != SIDE)
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "oneDNN has no bf16 product for this processor; train without --dtype "
                         "bf16");
    return LPLB_OK;
}
#else
void gemm_bf16(const gemm_shape *s, const uint16_t *a, const uint16_t *b, float beta, float *c) {
    (void)a, (void)b, (void)beta;
    for (int64_t i = 0; i < s->m; i++)
        for (int64_t j = 0; j < s->n; j++) c[i * s->c_row + j] = NAN; /* never: see the check */
}

lplb_status gemm_bf16_check(void) {
    if (sizeof(real) == 8)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "--dtype bf16 is for float, not for --precision f64");
    return LPLB_FAIL(LPLB_UNSUPPORTED,
                     "--dtype bf16 needs oneDNN, which this build did not find (apt-get install "
                     "libdnnl-dev, then build anew)");
}
#endif
