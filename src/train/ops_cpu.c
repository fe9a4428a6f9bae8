#include "train/ops.h"

#include <string.h>

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

REAL_WIDE static void rmsnorm_forward(real *out, real *rstd, const real *x, const real *gain,
                                      int64_t N, int64_t D, real eps) {
    for (int64_t n = 0; n < N; n++, x += D, out += D) {
        real sum = 0;
        for (int64_t i = 0; i < D; i++) sum += x[i] * x[i];
        real r = 1 / real_sqrt(sum / (real)D + eps);
        for (int64_t i = 0; i < D; i++) out[i] = x[i] * r * gain[i];
        rstd[n] = r;
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

/* row[i] = exp((row[i] - top) * scale) */
REAL_WIDE static void exp_row(real *row, int64_t n, real top, real scale) {
    for (int64_t i = 0; i < n; i++) row[i] = real_exp((row[i] - top) * scale);
}

/* Row t of softmax over s in [first, t], zero elsewhere. */
static void softmax_row(real *row, int64_t first, int64_t t, int64_t T, real scale) {
    real top = row[first];
    for (int64_t s = first + 1; s <= t; s++) top = row[s] > top ? row[s] : top;
    exp_row(row + first, t + 1 - first, top, scale);
    real sum = 0;
    for (int64_t s = first; s <= t; s++) sum += row[s];
    real inverse = 1 / sum;
    for (int64_t s = first; s <= t; s++) row[s] *= inverse;
    memset(row, 0, sizeof(real) * (size_t)first);
    memset(row + t + 1, 0, sizeof(real) * (size_t)(T - 1 - t));
}

static void attention_forward(real *out, real *prob, const real *q, const real *k, const real *v,
                              const int32_t *first, attention_shape s) {
    int64_t T = s.T, d = s.d, q_row = s.H * d, k_row = s.G * d;
    real scale = 1 / real_sqrt((real)d);
    for (int64_t b = 0; b < s.B; b++)
        for (int64_t h = 0; h < s.H; h++) {
            int64_t g = h * s.G / s.H;
            const real *qh = q + b * T * q_row + h * d;
            const real *kh = k + b * T * k_row + g * d, *vh = v + b * T * k_row + g * d;
            real *p = prob + (b * s.H + h) * T * T;
            REAL_GEMM(CblasRowMajor, CblasNoTrans, CblasTrans, (int)T, (int)T, (int)d, 1, qh,
                      (int)q_row, kh, (int)k_row, 0, p, (int)T);
            for (int64_t t = 0; t < T; t++) softmax_row(p + t * T, first[b * T + t], t, T, scale);
            REAL_GEMM(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)T, (int)d, (int)T, 1, p,
                      (int)T, vh, (int)k_row, 0, out + b * T * q_row + h * d, (int)q_row);
        }
}

/* dS = P o (dP - rowsum(P o dP)), dP = dO V^T. */
static void attention_backward(real *dq, real *dk, real *dv, real *scratch, const real *dout,
                               const real *prob, const real *q, const real *k, const real *v,
                               const int32_t *first, attention_shape s) {
    int64_t T = s.T, d = s.d, q_row = s.H * d, k_row = s.G * d;
    real scale = 1 / real_sqrt((real)d);
    memset(dk, 0, sizeof(real) * (size_t)(s.B * T * k_row));
    memset(dv, 0, sizeof(real) * (size_t)(s.B * T * k_row));
    for (int64_t b = 0; b < s.B; b++)
        for (int64_t h = 0; h < s.H; h++) {
            int64_t g = h * s.G / s.H, at_q = b * T * q_row + h * d, at_k = b * T * k_row + g * d;
            const real *p = prob + (b * s.H + h) * T * T;
            REAL_GEMM(CblasRowMajor, CblasTrans, CblasNoTrans, (int)T, (int)d, (int)T, 1, p, (int)T,
                      dout + at_q, (int)q_row, 1, dv + at_k, (int)k_row);
            REAL_GEMM(CblasRowMajor, CblasNoTrans, CblasTrans, (int)T, (int)T, (int)d, 1,
                      dout + at_q, (int)q_row, v + at_k, (int)k_row, 0, scratch, (int)T);
            for (int64_t t = 0; t < T; t++) {
                const real *pt = p + t * T;
                real *st = scratch + t * T, dot = 0;
                int64_t from = first[b * T + t];
                for (int64_t i = from; i <= t; i++) dot += pt[i] * st[i];
                for (int64_t i = 0; i < T; i++)
                    st[i] = i >= from && i <= t ? pt[i] * (st[i] - dot) * scale : 0;
            }
            REAL_GEMM(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)T, (int)d, (int)T, 1, scratch,
                      (int)T, k + at_k, (int)k_row, 0, dq + at_q, (int)q_row);
            REAL_GEMM(CblasRowMajor, CblasTrans, CblasNoTrans, (int)T, (int)d, (int)T, 1, scratch,
                      (int)T, q + at_q, (int)q_row, 1, dk + at_k, (int)k_row);
        }
}

REAL_WIDE static void swiglu_forward(real *out, const real *gate, const real *up, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = gate[i] / (1 + real_exp(-gate[i])) * up[i];
}

REAL_WIDE static void swiglu_backward(real *dgate, real *dup, const real *dout, const real *gate,
                                      const real *up, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        real g = gate[i], u = up[i], sigmoid = 1 / (1 + real_exp(-g));
        real slope = sigmoid * (1 + g * (1 - sigmoid));
        dgate[i] = dout[i] * u * slope;
        dup[i] = dout[i] * g * sigmoid;
    }
}

static double cross_entropy(real *logits, const int32_t *target, int64_t N, int64_t V, real scale) {
    double loss = 0;
    for (int64_t n = 0; n < N; n++) {
        real *row = logits + n * V;
        if (target[n] < 0) {
            memset(row, 0, sizeof(real) * (size_t)V);
            continue;
        }
        real top = row[0], sum = 0;
        for (int64_t i = 1; i < V; i++) top = row[i] > top ? row[i] : top;
        real hit = row[target[n]] - top;
        exp_row(row, V, top, 1);
        for (int64_t i = 0; i < V; i++) sum += row[i];
        loss += log((double)sum) - (double)hit;
        real factor = scale / sum;
        for (int64_t i = 0; i < V; i++) row[i] *= factor;
        row[target[n]] -= scale;
    }
    return loss;
}

const ops *ops_cpu(void) {
    static const ops table = {
        "cpu",        embed_forward,     embed_backward,     rmsnorm_forward, rmsnorm_backward,
        rope,         attention_forward, attention_backward, swiglu_forward,  swiglu_backward,
        cross_entropy};
    return &table;
}
