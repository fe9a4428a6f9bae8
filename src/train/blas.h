/* Which kernels OpenBLAS computes with. */
#ifndef LPLB_TRAIN_BLAS_H
#define LPLB_TRAIN_BLAS_H

#include <stdbool.h>

/* The core type to ask for instead of the one that OpenBLAS chose, NULL if that is fine. Releases
 * before 0.3.22 take processors that they do not know for Haswell or Zen, whose kernels leave half
 * of a processor with AVX-512 unused. */
const char *blas_better_core(const char *chosen, bool has_avx512);

/* Starts the program again with the better core type, which OpenBLAS reads before main(); returns
 * if there is none, if the user chose one, or if that fails (the kernels are slower then). */
void blas_choose_core(char **argv);

/* The core type in use. */
const char *blas_core(void);

#endif
