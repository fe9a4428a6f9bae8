#include "train/blas.h"

#include <cblas.h>
#include <stdlib.h>
#include <strings.h>
#include <unistd.h>

const char *blas_better_core(const char *chosen, bool has_avx512) {
    bool avx2 = !strcasecmp(chosen, "Haswell") || !strcasecmp(chosen, "Zen");
    return avx2 && has_avx512 ? "SKYLAKEX" : NULL;
}

static bool has_avx512(void) {
#if defined(__x86_64__) && defined(__GNUC__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
    return false;
#endif
}

void blas_choose_core(char **argv) {
    const char *better = blas_better_core(blas_core(), has_avx512());
    bool again = better && !setenv("OPENBLAS_CORETYPE", better, 0);
    if (getenv("LPLB_TRAIN_STARTED")) return;
    /* oneDNN's threads spin at every barrier, on a shared machine while others wait for the
     * processor: GNU's OpenMP reads how long when the program starts. */
    if (!getenv("OMP_WAIT_POLICY")) again |= !setenv("GOMP_SPINCOUNT", "2000", 0);
    if (again && !setenv("LPLB_TRAIN_STARTED", "1", 1)) execv("/proc/self/exe", argv);
}

const char *blas_core(void) { return openblas_get_corename(); }
