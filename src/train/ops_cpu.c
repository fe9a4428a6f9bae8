#include "train/ops.h"

#include <string.h>

#include "train/ops_sums.h"

REAL_WIDE static double square_sum(const real *x, int64_t n) {
    double lane[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lane[j] += (double)x[i + j] * (double)x[i + j];
    for (int j = 0; i + j < n; j++) lane[j] += (double)x[i + j] * (double)x[i + j];
    for (int j = 0; j < LANES; j++) sum += lane[j];
    return sum;
}

/* ---- embedding, norm, positions ---- */

static void embed_forward(real *out, const int32_t *token, const real *table, int64_t N,
                          int64_t D) {
    for (int64_t n = 0; n < N; n++)
        memcpy(out + n * D, table + token[n] * D, sizeof(real) * (size_t)D);
}

static void embed_backward(real *dtable, const real *dout, const int32_t *token, int64_t N,
                           int64_t D) {
    for (int64_t n = 0; n < N; n++) {
        real *row = dtable + token[n] * D;
        for (int64_t i = 0; i < D; i++) row[i] += dout[n * D + i];
    }
}

/* With y = x r g and r = (mean x^2 + eps)^(-1/2): dx = r (g dy - x r^2 mean(g dy x)). */
REAL_WIDE static void rmsnorm_backward(real *dx, real *dgain, const real *dout, const real *x,
                                       const real *rstd, const real *gain, int64_t N, int64_t D) {
    for (int64_t n = 0; n < N; n++, x += D, dx += D, dout += D) {
        real r = rstd[n], dot = 0;
        for (int64_t i = 0; i < D; i++) dot += dout[i] * gain[i] * x[i];
        real back = dot * r * r * r / (real)D;
        for (int64_t i = 0; i < D; i++) {
            dx[i] += dout[i] * gain[i] * r - x[i] * back;
            dgain[i] += dout[i] * x[i] * r;
        }
    }
}

static void rope(real *x, const int32_t *position, const real *rotation, int64_t N, int64_t heads,
                 int64_t d, int inverse) {
    int64_t half = d / 2;
    real sign = inverse ? -1 : 1;
    for (int64_t n = 0; n < N; n++) {
        const real *cosine = rotation + position[n] * d, *sine = cosine + half;
        for (int64_t h = 0; h < heads; h++) {
            real *a = x + (n * heads + h) * d, *b = a + half;
            for (int64_t i = 0; i < half; i++) {
                real u = a[i], v = b[i], s = sign * sine[i];
                a[i] = u * cosine[i] - v * s;
                b[i] = u * s + v * cosine[i];
            }
        }
    }
}

/* ---- attention ---- */

/* row[i] = exp(row[i] * scale - top); returns the sum. */
REAL_WIDE static real exp_row(real *row, int64_t n, real top, real scale) {
    for (int64_t i = 0; i < n; i++) row[i] = real_exp(row[i] * scale - top);
    return sum_row(row, n);
}

REAL_WIDE static real top_row(const real *row, int64_t n) { return top_of(row, n); }

REAL_WIDE static void scale_row(real *row, int64_t n, real scale) {
    for (int64_t i = 0; i < n; i++) row[i] *= scale;
}

/* Queries are taken ATTENTION_ROWS at a time, with the keys that any of them sees: no T x T matrix
 * is ever there, and most of what the mask would hide is not computed. */
typedef struct query_block {
    int64_t t0, rows;  /* queries [t0, t0 + rows) */
    int64_t key, keys; /* keys [key, key + keys) */
} query_block;

static query_block block_at(const int32_t *first, int64_t t0, int64_t T) {
    query_block b = {
        .t0 = t0, .rows = T - t0 < ATTENTION_ROWS ? T - t0 : ATTENTION_ROWS, .key = t0};
    for (int64_t t = t0; t < t0 + b.rows; t++) b.key = first[t] < b.key ? first[t] : b.key;
    b.keys = t0 + b.rows - b.key;
    return b;
}

/* Row of softmax over [from, to), zero elsewhere; returns log sum exp of the scaled scores. */
static real softmax_row(real *row, int64_t from, int64_t to, int64_t keys, real scale) {
    real top = top_row(row + from, to - from) * scale;
    real sum = exp_row(row + from, to - from, top, scale);
    scale_row(row + from, to - from, 1 / sum);
    memset(row, 0, sizeof(real) * (size_t)from);
    memset(row + to, 0, sizeof(real) * (size_t)(keys - to));
    return top + (real)log((double)sum);
}

static void attention_forward(real *out, real *log_sum, real *scratch, const real *q, const real *k,
                              const real *v, const int32_t *first, attention_shape s) {
    int64_t T = s.T, d = s.d, q_row = s.H * d, k_row = s.G * d;
    real scale = 1 / real_sqrt((real)d);
    for (int64_t head = 0; head < s.B * s.H; head++) {
        int64_t b = head / s.H, h = head % s.H, g = h * s.G / s.H;
        for (int64_t t0 = 0; t0 < T; t0 += ATTENTION_ROWS) {
            query_block c = block_at(first + b * T, t0, T);
            int64_t at_q = (b * T + t0) * q_row + h * d, at_k = (b * T + c.key) * k_row + g * d;
            gemm_nt(c.rows, c.keys, d, q + at_q, q_row, k + at_k, k_row, 0, scratch, c.keys);
            for (int64_t r = 0; r < c.rows; r++)
                log_sum[head * T + t0 + r] =
                    softmax_row(scratch + r * c.keys, first[b * T + t0 + r] - c.key,
                                t0 + r + 1 - c.key, c.keys, scale);
            gemm_nn(c.rows, d, c.keys, scratch, c.keys, v + at_k, k_row, 0, out + at_q, q_row);
        }
    }
}

/* Scores to probabilities p, and dp to ds = p (dp - sum(p dp)) scale, over [from, to). */
REAL_WIDE static void softmax_row_backward(real *p, real *dp, int64_t from, int64_t to,
                                           int64_t keys, real log_sum, real scale) {
    for (int64_t i = from; i < to; i++) p[i] = real_exp(p[i] * scale - log_sum);
    real dot = dot_rows(p + from, dp + from, to - from);
    for (int64_t i = from; i < to; i++) dp[i] = p[i] * (dp[i] - dot) * scale;
    for (int64_t i = 0; i < from; i++) p[i] = dp[i] = 0;
    for (int64_t i = to; i < keys; i++) p[i] = dp[i] = 0;
}

/* dP = dO V^T, dV += P^T dO, dQ = dS K, dK += dS^T Q. */
static void attention_backward(real *dq, real *dk, real *dv, real *scratch, const real *dout,
                               const real *log_sum, const real *q, const real *k, const real *v,
                               const int32_t *first, attention_shape s) {
    int64_t T = s.T, d = s.d, q_row = s.H * d, k_row = s.G * d;
    real scale = 1 / real_sqrt((real)d), *p = scratch, *dp = scratch + ATTENTION_ROWS * T;
    memset(dk, 0, sizeof(real) * (size_t)(s.B * T * k_row));
    memset(dv, 0, sizeof(real) * (size_t)(s.B * T * k_row));
    for (int64_t head = 0; head < s.B * s.H; head++) {
        int64_t b = head / s.H, h = head % s.H, g = h * s.G / s.H;
        for (int64_t t0 = 0; t0 < T; t0 += ATTENTION_ROWS) {
            query_block c = block_at(first + b * T, t0, T);
            int64_t at_q = (b * T + t0) * q_row + h * d, at_k = (b * T + c.key) * k_row + g * d;
            gemm_nt(c.rows, c.keys, d, q + at_q, q_row, k + at_k, k_row, 0, p, c.keys);
            gemm_nt(c.rows, c.keys, d, dout + at_q, q_row, v + at_k, k_row, 0, dp, c.keys);
            for (int64_t r = 0; r < c.rows; r++)
                softmax_row_backward(p + r * c.keys, dp + r * c.keys, first[b * T + t0 + r] - c.key,
                                     t0 + r + 1 - c.key, c.keys, log_sum[head * T + t0 + r], scale);
            gemm_tn(c.keys, d, c.rows, p, c.keys, dout + at_q, q_row, 1, dv + at_k, k_row);
            gemm_nn(c.rows, d, c.keys, dp, c.keys, k + at_k, k_row, 0, dq + at_q, q_row);
            gemm_tn(c.keys, d, c.rows, dp, c.keys, q + at_q, q_row, 1, dk + at_k, k_row);
        }
    }
}

/* ---- the rest ---- */

static double cross_entropy(real *logits, const int32_t *target, int64_t N, int64_t V, real scale) {
    double loss = 0;
    for (int64_t n = 0; n < N; n++) {
        real *row = logits + n * V;
        if (target[n] < 0) {
            memset(row, 0, sizeof(real) * (size_t)V);
            continue;
        }
        real top = top_row(row, V), hit = row[target[n]] - top, sum = exp_row(row, V, top, 1);
        loss += log((double)sum) - (double)hit;
        scale_row(row, V, scale / sum);
        row[target[n]] -= scale;
    }
    return loss;
}

REAL_WIDE static void adamw(const adamw_step *s, real *restrict w, kept *as,
                            const real *restrict gradient, real *restrict m1, real *restrict m2,
                            int64_t n) {
    real b1 = (real)s->beta1, b2 = (real)s->beta2, eps = (real)s->eps, scale = (real)s->scale;
    real shrink = (real)s->shrink, rate = (real)(s->rate * s->correct1);
    real correct2 = (real)s->correct2;
    (void)as; /* the weights themselves */
    for (int64_t i = 0; i < n; i++) {
        real g = gradient[i] * scale;
        m1[i] = b1 * m1[i] + (1 - b1) * g;
        m2[i] = b2 * m2[i] + (1 - b2) * g * g;
        w[i] = w[i] * shrink - rate * m1[i] / (real_sqrt(m2[i] * correct2) + eps);
    }
}

/* ---- what is kept as reals ---- */

static void keep(kept *out, const real *x, int64_t n) {
    if ((real *)(void *)out != x) memcpy(out, x, sizeof(real) * (size_t)n);
}

static const kept *operand(kept *scratch, const real *x, int64_t n) {
    (void)scratch, (void)n;
    return (const kept *)(const void *)x;
}

static const real *widen(real *scratch, const kept *x, int64_t n) {
    (void)scratch, (void)n;
    return (const real *)(const void *)x;
}

typedef real cell;
static inline real load_cell(cell x) { return x; }
static inline cell store_cell(real x) { return x; }

static void multiply(const gemm_shape *s, const kept *a, const kept *b, real beta, real *c) {
    gemm_real(s, (const real *)(const void *)a, (const real *)(const void *)b, beta, c);
}

#include "train/ops_kept.h"

REAL_WIDE static void swiglu_forward(kept *out, const kept *gate, const kept *up, int64_t n) {
    real *y = cells_of(out);
    const real *a = cells(gate), *b = cells(up);
    for (int64_t i = 0; i < n; i++) y[i] = a[i] / (1 + real_exp(-a[i])) * b[i];
}

REAL_WIDE static void swiglu_backward(kept *dgate, kept *dup, const real *dout, const kept *gate,
                                      const kept *up, int64_t n) {
    real *da = cells_of(dgate), *db = cells_of(dup);
    const real *a = cells(gate), *b = cells(up);
    for (int64_t i = 0; i < n; i++) {
        real g = a[i], u = b[i], sigmoid = 1 / (1 + real_exp(-g));
        real slope = sigmoid * (1 + g * (1 - sigmoid));
        da[i] = dout[i] * u * slope;
        db[i] = dout[i] * g * sigmoid;
    }
}

/* ---- the table ---- */

lplb_status ops_cpu(kept_kind kind, const ops **out) {
    static ops table = {.name = "cpu, " REAL_NAME,
                        .kept_bytes = sizeof(cell),
                        .keep = keep,
                        .operand = operand,
                        .widen = widen,
                        .gemm = gemm_real,
                        .route_forward = route_forward,
                        .route_backward = route_backward,
                        .adamw = adamw,
                        .embed_forward = embed_forward,
                        .embed_backward = embed_backward,
                        .rmsnorm_backward = rmsnorm_backward,
                        .rope = rope,
                        .attention_forward = attention_forward,
                        .attention_backward = attention_backward,
                        .swiglu_forward = swiglu_forward,
                        .swiglu_backward = swiglu_backward,
                        .cross_entropy = cross_entropy,
                        .square_sum = square_sum};
    static ops rounding;
    set_kept_operations(&table);
    *out = &table;
    if (kind == KEPT_REAL) return LPLB_OK;
    LPLB_TRY(gemm_bf16_check());
    rounding = table;
    ops_cpu_bf16(&rounding);
    *out = &rounding;
    return LPLB_OK;
}
