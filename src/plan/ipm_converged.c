/* The converged form, in double precision.
 *
 * Affine scaling (Dikin 1967) for: minimise M subject to fixed_r + sum of w_e p_er + s_r = M q_r
 * for every rank r of speed q_r, sum over hosts of p_er = 1 for every expert e, all p, s, M >= 0.
 * It starts at the even split with an M above it, which satisfies all equations, so Big-M's
 * artificial column is zero and is left out. Each iteration weights every variable by its distance
 * from 0, solves the normal equations A D^2 A' y = A D^2 c, and goes `step` of the way to the
 * boundary along x - D^2 (c - A'y).
 *
 * Eliminating the rows of the experts leaves one equation a rank, and what remains is an electric
 * network: between hosts i, j of an expert a conductance w^2 p_i^2 p_j^2 / sum p^2, from each rank
 * to earth s_r^2, and a current q_r into each rank. Written down as conductances and currents to
 * earth instead of as a matrix, Cholesky's elimination needs only additions of positive numbers
 * (star-mesh transform; Grassmann, Taksar, Heyman 1985), so the prices are accurate however thin a
 * slack becomes. The differences of prices that move the shares are far below the prices themselves
 * near the end; one step of refinement, kept as a separate correction, provides them. */
#include <math.h>
#include <string.h>

#include "plan/ipm.h"

/* change[c] = price of the column's rank minus the mean price of its expert, weighted by share^2;
 * prices are the sum of two arrays and differences are taken in each. Returns sum of share^2. */
static double price_differences(lplb__ipm *ipm, const ipm_part *part, int32_t k,
                                const double *correction) {
    const double *price = ipm->price + part->rank0, *share = ipm->share;
    int64_t first = ipm->column[k], end = ipm->column[k + 1], reference = first;
    double squares = 0, mean = 0;
    for (int64_t c = first; c < end; c++)
        if (share[c] > share[reference]) reference = c;
    int32_t base = ipm->row[reference];
    for (int64_t c = first; c < end; c++) {
        int32_t r = ipm->row[c];
        ipm->change[c] = price[r] - price[base];
        if (correction) ipm->change[c] += correction[r] - correction[base];
        squares += share[c] * share[c];
        mean += share[c] * share[c] * ipm->change[c];
    }
    for (int64_t c = first; c < end; c++) ipm->change[c] -= mean / squares;
    return squares;
}

/* The upper triangle of the conductances between ranks, and to earth. */
static void build_network(lplb__ipm *ipm, const ipm_part *part) {
    int64_t n = part->ranks;
    double *matrix = ipm->matrix;
    const double *share = ipm->share, *slack = ipm->slack + part->rank0;
    memset(matrix, 0, sizeof(double) * (size_t)(n * n));
    for (int64_t r = 0; r < n; r++) ipm->excess[r] = slack[r] * slack[r];
    for (int32_t k = part->expert0; k < part->expert0 + part->experts; k++) {
        double squares = 0;
        for (int64_t c = ipm->column[k]; c < ipm->column[k + 1]; c++)
            squares += share[c] * share[c];
        double factor = ipm->tokens[k] / sqrt(squares);
        for (int64_t c = ipm->column[k]; c < ipm->column[k + 1]; c++)
            for (int64_t d = c + 1; d < ipm->column[k + 1]; d++) {
                double root = factor * share[c] * share[d];
                matrix[ipm->row[c] * n + ipm->row[d]] += root * root; /* rows ascend */
            }
    }
}

/* Removes rank after rank from the network; the diagonal keeps the pivots. */
static void eliminate(lplb__ipm *ipm, int64_t n) {
    double *matrix = ipm->matrix, *excess = ipm->excess;
    for (int64_t k = 0; k < n; k++) {
        double *row = matrix + k * n, pivot = excess[k];
        for (int64_t j = k + 1; j < n; j++) pivot += row[j];
        row[k] = pivot;
        for (int64_t i = k + 1; i < n; i++) {
            double factor = row[i] / pivot, *target = matrix + i * n;
            if (factor == 0) continue;
            excess[i] += factor * excess[k];
            for (int64_t j = i + 1; j < n; j++) target[j] += factor * row[j];
        }
    }
}

static void solve_network(const lplb__ipm *ipm, int64_t n, double *right, double *out) {
    for (int64_t k = 0; k < n; k++) {
        const double *row = ipm->matrix + k * n;
        double current = right[k] / row[k];
        for (int64_t i = k + 1; i < n; i++) right[i] += row[i] * current;
    }
    for (int64_t k = n - 1; k >= 0; k--) {
        const double *row = ipm->matrix + k * n;
        double sum = right[k];
        for (int64_t j = k + 1; j < n; j++) sum += row[j] * out[j];
        out[k] = sum / row[k];
    }
}

/* price = K^-1 q and its correction from the residual q - K price. */
static void find_prices(lplb__ipm *ipm, const ipm_part *part) {
    int64_t n = part->ranks;
    double *price = ipm->price + part->rank0, *right = ipm->right;
    const double *speed = ipm->speed + part->rank0, *slack = ipm->slack + part->rank0;
    build_network(ipm, part);
    eliminate(ipm, n);
    memcpy(right, speed, sizeof(double) * (size_t)n);
    solve_network(ipm, n, right, price);
    for (int64_t r = 0; r < n; r++) right[r] = speed[r] - slack[r] * slack[r] * price[r];
    for (int32_t k = part->expert0; k < part->expert0 + part->experts; k++) {
        price_differences(ipm, part, k, NULL);
        for (int64_t c = ipm->column[k]; c < ipm->column[k + 1]; c++) {
            double root = ipm->tokens[k] * ipm->share[c];
            right[ipm->row[c]] -= root * root * ipm->change[c];
        }
    }
    solve_network(ipm, n, right, ipm->correction);
}

/* The multipliers for the present M are the prices times a factor, which is applied to differences
 * and never to the prices themselves: rounding would drown the differences. Fills change with the
 * scaled directions of the shares; returns the largest of all directions. *rate is that of M. */
static double find_directions(lplb__ipm *ipm, const ipm_part *part, double m, double *rate) {
    const double *price = ipm->price + part->rank0;
    double sum = 0;
    for (int32_t r = 0; r < part->ranks; r++) sum += price[r] * ipm->speed[part->rank0 + r];
    double factor = m * m / (1 + m * m * sum), most;
    *rate = m / (1 + m * m * sum);
    most = *rate;
    for (int32_t r = 0; r < part->ranks; r++)
        most = fmax(most, ipm->slack[part->rank0 + r] * price[r] * factor);
    for (int32_t k = part->expert0; k < part->expert0 + part->experts; k++) {
        price_differences(ipm, part, k, ipm->correction);
        for (int64_t c = ipm->column[k]; c < ipm->column[k + 1]; c++) {
            ipm->change[c] *= ipm->share[c] * ipm->tokens[k] * factor;
            most = fmax(most, ipm->change[c]);
        }
    }
    return most;
}

static void move_shares(lplb__ipm *ipm, const ipm_part *part, double alpha) {
    for (int32_t k = part->expert0; k < part->expert0 + part->experts; k++) {
        double sum = 0;
        for (int64_t c = ipm->column[k]; c < ipm->column[k + 1]; c++)
            sum += ipm->share[c] *= 1 - alpha * ipm->change[c];
        for (int64_t c = ipm->column[k]; c < ipm->column[k + 1]; c++) ipm->share[c] /= sum;
    }
}

/* Slacks from the loads themselves, so that rounding never accumulates; M stays above them. */
static double set_slacks(lplb__ipm *ipm, const ipm_part *part, double m) {
    const double *load = ipm->load + part->rank0, *speed = ipm->speed + part->rank0;
    for (int32_t r = 0; r < part->ranks; r++) m = fmax(m, load[r] * (1 + 1e-14) / speed[r]);
    for (int32_t r = 0; r < part->ranks; r++) {
        double least = m * speed[r] * 1e-15; /* load 0 would allow an exact 0 */
        ipm->slack[part->rank0 + r] = fmax(m * speed[r] - load[r], least);
    }
    return m;
}

ipm_result lplb__ipm_converge(lplb__ipm *ipm, const ipm_part *part) {
    int64_t first = ipm->column[part->expert0];
    size_t bytes = sizeof(double) * (size_t)(ipm->column[part->expert0 + part->experts] - first);
    double objective = lplb__ipm_objective(ipm, part, ipm->share);
    double m = set_slacks(ipm, part, 1.1 * objective);
    ipm_result result = {INFINITY, -INFINITY, 0, 0};
    for (;;) {
        if (objective < result.objective) {
            result.objective = objective;
            memcpy(ipm->best + first, ipm->share + first, bytes);
        }
        result.converged = result.objective <= result.bound * (1 + ipm->options.tolerance);
        if (result.converged || result.iterations == ipm->options.iterations) break;
        result.iterations++;
        find_prices(ipm, part);
        double rate, most = find_directions(ipm, part, m, &rate);
        double alpha = ipm->options.step / most;
        move_shares(ipm, part, alpha);
        objective = lplb__ipm_objective(ipm, part, ipm->share);
        m = set_slacks(ipm, part, m * (1 - alpha * rate));
        result.bound = fmax(result.bound, lplb__ipm_bound(ipm, part));
    }
    memcpy(ipm->share + first, ipm->best + first, bytes);
    return result;
}
