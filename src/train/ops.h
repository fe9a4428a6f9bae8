/* The operations of the model, forward and backward, on plain arrays. Backward functions add to
 * gradients of parameters and say for each input whether they add or overwrite.
 * Shapes: N tokens (B sequences of T), D model width, H query heads, G key/value heads, d head
 * width, V vocabulary, E experts, K of them a token. These tables are the seam for other
 * processors: ops_cpu() is the reference.
 *
 * What matrix products read is `kept`: numbers of kept_bytes, which are reals, or bf16 (the upper
 * half of a float, rounded to nearest even) with half the memory and, with AMX, several times the
 * speed. Sums, gradients, the residual stream, attention between q, k and v, the router, norms and
 * losses are real in either. */
#ifndef LPLB_TRAIN_OPS_H
#define LPLB_TRAIN_OPS_H

#include "train/gemm.h"
#include "train/router.h"

enum { ATTENTION_ROWS = 64 }; /* queries at a time */

typedef struct attention_shape {
    int64_t B, T, H, G, d;
} attention_shape;

typedef struct kept kept; /* numbers of ops.kept_bytes, see above */

typedef enum kept_kind { KEPT_REAL, KEPT_BF16 } kept_kind;

/* One step of AdamW (Loshchilov and Hutter, 2019), corrections of the moments included. */
typedef struct adamw_step {
    double rate, beta1, beta2, eps, shrink; /* shrink: 1 - rate * weight decay */
    double correct1, correct2;              /* 1 / (1 - beta^t) */
    double scale;                           /* of the gradient */
} adamw_step;

typedef struct ops {
    const char *name;
    size_t kept_bytes;
    bool rounds; /* kept numbers are others than reals */

    /* kept[n] = x[n] rounded; nothing to do where x is the same memory */
    void (*keep)(kept *out, const real *x, int64_t n);
    /* x as kept numbers: x itself, or rounded into scratch */
    const kept *(*operand)(kept *scratch, const real *x, int64_t n);
    /* the reverse */
    const real *(*widen)(real *scratch, const kept *x, int64_t n);

    /* A linear layer, weights w[out][in]: y[M][N] = x[M][K] w[N][K]^T + beta y */
    void (*linear_forward)(real *y, const kept *x, const kept *w, int64_t M, int64_t N, int64_t K,
                           real beta);
    /* dx[M][K] = dy[M][N] w[N][K] + beta dx */
    void (*linear_backward_input)(real *dx, const kept *dy, const kept *w, int64_t M, int64_t N,
                                  int64_t K, real beta);
    /* dw[N][K] += dy[M][N]^T x[M][K]: accumulates in place, no temporary. */
    void (*linear_backward_weight)(real *dw, const kept *dy, const kept *x, int64_t M, int64_t N,
                                   int64_t K);
    /* c = a b + beta c of reals: the router */
    void (*gemm)(const gemm_shape *s, const real *a, const real *b, real beta, real *c);
    /* see router.h */
    void (*route_forward)(const model_config *config, const real *bias, int64_t N, routing *r);
    void (*route_backward)(const model_config *config, const route_losses *losses, int64_t N,
                           const routing *r, const real *dgate, real *dlogit);
    /* w, m1, m2 updated, as[n] = w rounded unless as is NULL or w itself */
    void (*adamw)(const adamw_step *step, real *w, kept *as, const real *gradient, real *m1,
                  real *m2, int64_t n);

    /* Rows of experts' tokens, position[N*K] the row of a choice or -1:
     * out[position[i]] = in[i / K] */
    void (*gather_rows)(kept *out, const kept *in, const int32_t *position, int64_t N, int64_t K,
                        int64_t D);
    /* out[i / K] += gate[i] * rows[position[i]]; gate NULL = 1 */
    void (*combine_rows)(real *out, const kept *rows, const int32_t *position, const real *gate,
                         int64_t N, int64_t K, int64_t D);
    /* dgate[i] = dout[i / K] . rows[position[i]], or 0; out[position[i]] = gate[i] dout[i / K] */
    void (*combine_backward)(real *dgate, kept *out, const real *dout, const kept *rows,
                             const int32_t *position, const real *gate, int64_t N, int64_t K,
                             int64_t D);

    /* out[N][D] = table[token[n]] */
    void (*embed_forward)(real *out, const int32_t *token, const real *table, int64_t N, int64_t D);
    /* dtable[token[n]] += dout[n] */
    void (*embed_backward)(real *dtable, const real *dout, const int32_t *token, int64_t N,
                           int64_t D);
    /* out = x * rstd * gain, rstd[N] = 1 / sqrt(mean(x^2) + eps) (Zhang and Sennrich, 2019) */
    void (*rmsnorm_forward)(kept *out, real *rstd, const real *x, const real *gain, int64_t N,
                            int64_t D, real eps);
    /* dx += ..., dgain += ... */
    void (*rmsnorm_backward)(real *dx, real *dgain, const real *dout, const real *x,
                             const real *rstd, const real *gain, int64_t N, int64_t D);
    /* Rotates pairs (i, i + d/2) of each head by position * theta^(-2i/d) (Su et al., 2021), in
     * place on x[N][heads][d]; rotation[T][d] has d/2 cosines and d/2 sines of every position;
     * inverse != 0 rotates back, which is the backward. */
    void (*rope)(real *x, const int32_t *position, const real *rotation, int64_t N, int64_t heads,
                 int64_t d, int inverse);
    /* Causal attention inside documents: token t sees s in [first[t], t] of its sequence.
     * q[N][H][d], k, v[N][G][d], out[N][H][d]; head h reads key/value head h * G / H. log_sum
     * [B][H][T], log sum exp of a query's scaled scores, is what the backward needs to have the
     * probabilities again (Dao et al., 2022). scratch[ATTENTION_ROWS][T] */
    void (*attention_forward)(real *out, real *log_sum, real *scratch, const real *q, const real *k,
                              const real *v, const int32_t *first, attention_shape s);
    /* dq, dk, dv overwritten; scratch[2][ATTENTION_ROWS][T] */
    void (*attention_backward)(real *dq, real *dk, real *dv, real *scratch, const real *dout,
                               const real *log_sum, const real *q, const real *k, const real *v,
                               const int32_t *first, attention_shape s);
    /* out[n] = silu(gate[n]) * up[n], n items */
    void (*swiglu_forward)(kept *out, const kept *gate, const kept *up, int64_t n);
    /* dgate, dup overwritten (may alias gate, up) */
    void (*swiglu_backward)(kept *dgate, kept *dup, const real *dout, const kept *gate,
                            const kept *up, int64_t n);
    /* Sum over tokens with target >= 0 of -log softmax(logits)[target]; logits[N][V] become
     * dlogits = (softmax - onehot) * scale, zero where target < 0. Returns the sum (double). */
    double (*cross_entropy)(real *logits, const int32_t *target, int64_t N, int64_t V, real scale);
    /* Sum of squares, in a fixed order */
    double (*square_sum)(const real *x, int64_t n);
} ops;

/* LPLB_UNSUPPORTED where the processor or the build has no bf16 products. */
lplb_status ops_cpu(kept_kind kind, const ops **out);

/* bf16's table, to be asked for with ops_cpu. */
void ops_cpu_bf16(ops *table);

/* Item `at` of an array. */
static inline kept *kept_at(const ops *o, const kept *array, int64_t at) {
    return (kept *)((char *)(uintptr_t)array + at * (int64_t)o->kept_bytes);
}

/* Where a product goes that is to be kept: to its place, or to scratch, to be rounded from there
 * with keep(). */
static inline real *draft(const ops *o, kept *place, real *scratch) {
    return o->rounds ? scratch : (real *)(void *)place;
}

#endif
