/* The operations of the model, forward and backward, on plain arrays. Backward functions add to
 * gradients of parameters and say for each input whether they add or overwrite.
 * Shapes: N tokens (B sequences of T), D model width, H query heads, G key/value heads, d head
 * width, V vocabulary. This table is the seam for other processors: ops_cpu() is the reference. */
#ifndef LPLB_TRAIN_OPS_H
#define LPLB_TRAIN_OPS_H

#include "train/real.h"

enum { ATTENTION_ROWS = 64 }; /* queries at a time */

typedef struct attention_shape {
    int64_t B, T, H, G, d;
} attention_shape;

typedef struct ops {
    const char *name;
    /* out[N][D] = table[token[n]] */
    void (*embed_forward)(real *out, const int32_t *token, const real *table, int64_t N, int64_t D);
    /* dtable[token[n]] += dout[n] */
    void (*embed_backward)(real *dtable, const real *dout, const int32_t *token, int64_t N,
                           int64_t D);
    /* out = x * rstd * gain, rstd[N] = 1 / sqrt(mean(x^2) + eps) (Zhang and Sennrich, 2019) */
    void (*rmsnorm_forward)(real *out, real *rstd, const real *x, const real *gain, int64_t N,
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
    void (*swiglu_forward)(real *out, const real *gate, const real *up, int64_t n);
    /* dgate, dup overwritten (may alias gate, up) */
    void (*swiglu_backward)(real *dgate, real *dup, const real *dout, const real *gate,
                            const real *up, int64_t n);
    /* Sum over tokens with target >= 0 of -log softmax(logits)[target]; logits[N][V] become
     * dlogits = (softmax - onehot) * scale, zero where target < 0. Returns the sum (double). */
    double (*cross_entropy)(real *logits, const int32_t *target, int64_t N, int64_t V, real scale);
    /* Sum of squares, in a fixed order */
    double (*square_sum)(const real *x, int64_t n);
} ops;

const ops *ops_cpu(void);

#endif
