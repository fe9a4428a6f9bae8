/* The published form (github.com/deepseek-ai/LPLB, csrc-tmpl/minilp.cu; the form for any placement
 * is that of sgl-project/sglang#24515): single precision, 5 iterations of step 0.999 from x = 1,
 * loads divided by that of the largest expert, Big-M with M = 1000, dense normal equations.
 *
 *   rows:    one a rank:    sum of w_e p_er + s_r - M = -fixed_r
 *            one an expert: sum of p_er = 1
 *   columns: p, s, M, and Big-M's artificial column a = b - A 1, so that x = 1 solves A x = b
 *   cost:    M + 1000 x_a
 *
 * The published kernel overwrites d_max in a loop where it should keep the largest, and so is right
 * only up to 32 columns; here d_max is the maximum. Its acceptance rule stands, and as there, what
 * it refuses is split evenly; but the caller is told. */
#include <math.h>
#include <string.h>

#include "plan/ipm.h"

static const float BIG_M = 1000;
static const float STEP = 0.999f;

/* One part's program: rows are ranks, then experts; columns are hosts, slacks, M, artificial. */
typedef struct program {
    lplb__ipm *ipm;
    const ipm_part *part;
    int64_t rows, hosts, columns, first; /* first: of the part's columns in the lists */
} program;

/* A NaN wins and stays, so that it is refused in the end. */
static float larger(float most, float value) { return value > most || isnan(value) ? value : most; }

static int64_t expert_row(const program *p, int32_t k) {
    return p->part->ranks + (k - p->part->expert0);
}

/* out = A x without the artificial column. */
static void multiply(const program *p, const float *x, float *out) {
    const lplb__ipm *ipm = p->ipm;
    const ipm_part *part = p->part;
    for (int64_t r = 0; r < part->ranks; r++) out[r] = x[p->hosts + r] - x[p->columns - 2];
    for (int32_t k = part->expert0; k < part->expert0 + part->experts; k++) {
        float sum = 0;
        for (int64_t c = ipm->column[k]; c < ipm->column[k + 1]; c++) {
            out[ipm->row[c]] += (float)ipm->tokens[k] * x[c - p->first];
            sum += x[c - p->first];
        }
        out[expert_row(p, k)] = sum;
    }
}

static void set_up(const program *p) {
    lplb__ipm *ipm = p->ipm;
    for (int64_t r = 0; r < p->part->ranks; r++)
        ipm->bound[r] = -(float)ipm->fixed[p->part->rank0 + r];
    for (int64_t i = p->part->ranks; i < p->rows; i++) ipm->bound[i] = 1;
    for (int64_t j = 0; j < p->columns; j++) ipm->x[j] = 1;
    multiply(p, ipm->x, ipm->artificial);
    for (int64_t i = 0; i < p->rows; i++) ipm->artificial[i] = ipm->bound[i] - ipm->artificial[i];
}

/* Lower triangle of A D^2 A' and y = A D^2 c. A host column has two entries, a slack one, M one a
 * rank, the artificial one a row. */
static void build_normal(const program *p) {
    lplb__ipm *ipm = p->ipm;
    const ipm_part *part = p->part;
    const float *x = ipm->x, *a = ipm->artificial;
    int64_t n = p->rows;
    float *normal = ipm->normal;
    float m2 = x[p->columns - 2] * x[p->columns - 2], a2 = x[p->columns - 1] * x[p->columns - 1];
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j <= i; j++) normal[i * n + j] = a2 * a[i] * a[j];
        ipm->y[i] = BIG_M * a2 * a[i];
    }
    for (int64_t i = 0; i < part->ranks; i++) {
        for (int64_t j = 0; j <= i; j++) normal[i * n + j] += m2;
        normal[i * n + i] += x[p->hosts + i] * x[p->hosts + i];
        ipm->y[i] -= m2;
    }
    for (int32_t k = part->expert0; k < part->expert0 + part->experts; k++) {
        int64_t e = expert_row(p, k);
        float w = (float)ipm->tokens[k];
        for (int64_t c = ipm->column[k]; c < ipm->column[k + 1]; c++) {
            float x2 = x[c - p->first] * x[c - p->first];
            int64_t r = ipm->row[c];
            normal[r * n + r] += w * w * x2;
            normal[e * n + r] += w * x2;
            normal[e * n + e] += x2;
        }
    }
}

/* Cholesky in place, then y = normal^-1 y. Returns 0 when a pivot is not positive. */
static int solve_normal(const program *p) {
    int64_t n = p->rows;
    float *normal = p->ipm->normal, *y = p->ipm->y;
    for (int64_t i = 0; i < n; i++) {
        float *row = normal + i * n;
        for (int64_t j = 0; j <= i; j++) {
            const float *other = normal + j * n;
            float sum = row[j];
            for (int64_t k = 0; k < j; k++) sum -= row[k] * other[k];
            if (j < i) row[j] = sum / other[j];
            else if (sum > 0) row[i] = sqrtf(sum);
            else return 0;
        }
    }
    for (int64_t i = 0; i < n; i++) {
        for (int64_t k = 0; k < i; k++) y[i] -= normal[i * n + k] * y[k];
        y[i] /= normal[i * n + i];
    }
    for (int64_t i = n - 1; i >= 0; i--) {
        for (int64_t k = i + 1; k < n; k++) y[i] -= normal[k * n + i] * y[k];
        y[i] /= normal[i * n + i];
    }
    return 1;
}

/* direction = x (c - A'y); returns the largest, at least 0. */
static float find_direction(const program *p) {
    lplb__ipm *ipm = p->ipm;
    const ipm_part *part = p->part;
    const float *y = ipm->y;
    float *d = ipm->direction, most = 0, m = 1, artificial = BIG_M;
    for (int32_t k = part->expert0; k < part->expert0 + part->experts; k++)
        for (int64_t c = ipm->column[k]; c < ipm->column[k + 1]; c++)
            d[c - p->first] = -((float)ipm->tokens[k] * y[ipm->row[c]] + y[expert_row(p, k)]);
    for (int64_t r = 0; r < part->ranks; r++) {
        d[p->hosts + r] = -y[r];
        m += y[r];
    }
    for (int64_t i = 0; i < p->rows; i++) artificial -= ipm->artificial[i] * y[i];
    d[p->columns - 2] = m;
    d[p->columns - 1] = artificial;
    for (int64_t j = 0; j < p->columns; j++) {
        d[j] *= ipm->x[j];
        most = larger(most, d[j]);
    }
    return most;
}

static float largest_residual(const program *p) {
    lplb__ipm *ipm = p->ipm;
    float most = 0, artificial = ipm->x[p->columns - 1];
    multiply(p, ipm->x, ipm->direction);
    for (int64_t i = 0; i < p->rows; i++) {
        float have = ipm->direction[i] + ipm->artificial[i] * artificial;
        most = larger(most, fabsf(have - ipm->bound[i]));
    }
    return most;
}

/* Accepted shares, made to sum to 1 (the rule lets them be off by a twentieth). Returns 0 when they
 * cannot be used. */
static int take_shares(const program *p) {
    lplb__ipm *ipm = p->ipm;
    for (int32_t k = p->part->expert0; k < p->part->expert0 + p->part->experts; k++) {
        double sum = 0;
        for (int64_t c = ipm->column[k]; c < ipm->column[k + 1]; c++)
            sum += ipm->share[c] = fmax(0, (double)ipm->x[c - p->first]);
        if (!(sum > 0) || !isfinite(sum)) return 0;
        for (int64_t c = ipm->column[k]; c < ipm->column[k + 1]; c++) ipm->share[c] /= sum;
    }
    return 1;
}

static void share_evenly(lplb__ipm *ipm, const ipm_part *part) {
    for (int32_t k = part->expert0; k < part->expert0 + part->experts; k++)
        for (int64_t c = ipm->column[k]; c < ipm->column[k + 1]; c++)
            ipm->share[c] = 1.0 / (double)(ipm->column[k + 1] - ipm->column[k]);
}

ipm_result lplb__ipm_publish(lplb__ipm *ipm, const ipm_part *part) {
    int64_t first = ipm->column[part->expert0];
    int64_t hosts = ipm->column[part->expert0 + part->experts] - first;
    program p = {ipm, part, part->ranks + part->experts, hosts, hosts + part->ranks + 2, first};
    ipm_result result = {0, -INFINITY, 0, 0};
    float most = INFINITY;
    set_up(&p);
    while (result.iterations < ipm->options.iterations) {
        result.iterations++;
        build_normal(&p);
        most = INFINITY;
        if (!solve_normal(&p)) break;
        most = find_direction(&p);
        if (!(most > 0)) break;
        for (int64_t j = 0; j < p.columns; j++) ipm->x[j] *= 1 - STEP / most * ipm->direction[j];
    }
    float artificial = ipm->x[p.columns - 1];
    result.converged = most < 0.1f && artificial >= 0 && artificial < 1e-4f &&
                       largest_residual(&p) < 0.05f && take_shares(&p);
    if (!result.converged) share_evenly(ipm, part);
    for (int64_t r = 0; r < part->ranks; r++)
        ipm->price[part->rank0 + r] = fmax(0, -(double)ipm->y[r]);
    result.bound = lplb__ipm_bound(ipm, part);
    result.objective = lplb__ipm_objective(ipm, part, ipm->share);
    return result;
}
