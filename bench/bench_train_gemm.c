/* Seconds of the three products of a linear layer (forward, gradient of the input, gradient of the
 * weight) of given shapes, by processor time, the shortest of several: in float, or with --bf16.
 *   bench_train_gemm [--json] [--bf16] [MxNxK ...] */
#include <lplb/lplb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "train/blas.h"
#include "train/ops.h"

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* x[M][K], w[N][K], y[M][N]; gradients are reals */
static double three_products(const ops *o, int64_t M, int64_t N, int64_t K) {
    enum { ROUNDS = 9 };
    const double flops = 6.0 * (double)M * (double)N * (double)K;
    int64_t times = 1 + (int64_t)(1e8 / flops), items[3] = {M * K, N * K, M * N};
    real *array[3];
    kept *operand[3];
    double best = 1e30;
    for (int i = 0; i < 3; i++) {
        array[i] = malloc(sizeof(real) * (size_t)items[i]);
        operand[i] = malloc(o->kept_bytes * (size_t)items[i]);
        if (!array[i] || !operand[i]) exit(1);
        for (int64_t j = 0; j < items[i]; j++) array[i][j] = (real)(j % 7) * (real)1e-3;
        o->keep(operand[i], array[i], items[i]);
    }
    for (int round = 0; round < ROUNDS; round++) {
        double start = cpu_seconds();
        for (int64_t i = 0; i < times; i++) {
            o->linear_forward(array[2], operand[0], operand[1], M, N, K, 0);
            o->linear_backward_input(array[0], operand[2], operand[1], M, N, K, 0);
            o->linear_backward_weight(array[1], operand[2], operand[0], M, N, K);
        }
        double seconds = (cpu_seconds() - start) / (double)times;
        best = seconds < best ? seconds : best;
        memset(array[1], 0, sizeof(real) * (size_t)items[1]); /* keeps the sums from growing */
    }
    for (int i = 0; i < 3; i++) {
        free(array[i]);
        free(operand[i]);
    }
    return best;
}

int main(int argc, char **argv) {
    const char *usual[] = {"256x384x384", "256x1024x384", "256x384x1024", "64x512x384"};
    bool json = argc > 1 && !strcmp(argv[1], "--json");
    bool bf16 = argc > 1 + json && !strcmp(argv[1 + json], "--bf16");
    int first = 1 + json + bf16, n = argc - first;
    const ops *o;
    char name[64];
    blas_choose_core(argv);
    gemm_share_processors(1);
    if (ops_cpu(bf16 ? KEPT_BF16 : KEPT_REAL, &o) != LPLB_OK) {
        fprintf(stderr, "bench_train_gemm: %s\n", lplb_error_message());
        return 2;
    }
    gemm_name(bf16, name, sizeof name);
    printf(json ? "{\"library\":\"%s\",\"products\":[" : "%s\n", name);
    for (int i = 0; i < (n ? n : 4); i++) {
        long long M, N, K;
        const char *text = n ? argv[first + i] : usual[i];
        if (sscanf(text, "%lldx%lldx%lld", &M, &N, &K) != 3 || M < 1 || N < 1 || K < 1) {
            fprintf(stderr, "bench_train_gemm: '%s' is no MxNxK\n", text);
            return 2;
        }
        double seconds = three_products(o, M, N, K);
        if (json)
            printf("%s{\"shape\":[%lld,%lld,%lld],\"seconds\":%.9g}", i ? "," : "", M, N, K,
                   seconds);
        else
            printf("%20s %8.1f Gflop/s\n", text,
                   6e-9 * (double)M * (double)N * (double)K / seconds);
    }
    if (json) puts("]}");
    return 0;
}
