/* The converged form of the interior-point method, in double precision: src/plan/ipm_converged.c
 * has the mathematics. In single precision neither the prices' differences nor a gap of 1e-9 exist.
 * (The network's inverse
 * would make both solutions products, but it is no help: its rows agree in all but the last digits
 * near the end, and their differences are the answer.) */
#ifndef LPLB_CUDA_IPM_CONVERGE_CUH
#define LPLB_CUDA_IPM_CONVERGE_CUH

#include "cuda/ipm_matrix.cuh"

typedef struct converge {
    const step *a;
    ipm_part *p;
    const lplb__cuda_expert *expert;
    const lplb__cuda_host *host;
    const uint16_t *rank_host, *first_host;
    double *matrix; /* of the team */
    double *share, *change, *weight, *conductance;
    double *price, *correction, *right, *inverse, *slack, *load, *fixed, *speed;
} converge;

/* change[h] = price of the host's rank minus the mean price of its expert, weighted by share^2;
 * prices are the sum of two arrays and differences are taken in each. */
DEVICE void price_differences(const converge &v, const lplb__cuda_expert e, bool corrected) {
    int32_t first = e.first_host, end = first + e.hosts, base = first;
    ROLLED
    for (int32_t h = first; h < end; h++)
        if (v.share[h] > v.share[base]) base = h;
    base = v.host[base].rank;
    double squares = 0, mean = 0;
    ROLLED
    for (int32_t h = first; h < end; h++) {
        int32_t q = v.host[h].rank;
        double difference = v.price[q] - v.price[base], square = v.share[h] * v.share[h];
        if (corrected) difference += v.correction[q] - v.correction[base];
        v.change[h] = difference;
        squares += square;
        mean += square * difference;
    }
    mean /= squares;
    ROLLED
    for (int32_t h = first; h < end; h++) v.change[h] -= mean;
}

/* Conductances between the ranks, above the diagonal, and to earth: each rank's by one thread. */
DEVICE void build_network(const converge &v) {
    ipm_part *p = v.p;
    int32_t n = p->ranks, stride = stride_of(n);
    ROLLED
    for (int32_t i = p->t.thread; i < n * stride; i += p->t.threads) v.matrix[i] = 0;
    ROLLED
    for (each_expert(i, p)) {
        int32_t e = movable_of(*v.a, p, i), first = v.expert[e].first_host;
        double squares = 0;
        ROLLED
        for (int32_t h = first; h < first + v.expert[e].hosts; h++)
            squares += v.share[h] * v.share[h];
        v.conductance[e] = v.weight[e] * v.weight[e] / squares;
    }
    team_barrier(&p->t);
    ROLLED
    for (each_rank(q, p)) {
        double *row = v.matrix + (q - p->rank0) * stride - p->rank0;
        row[q] = v.slack[q] * v.slack[q];
        v.right[q] = v.speed[q];
        ROLLED
        for (int32_t c = v.first_host[q]; c < v.first_host[q + 1]; c++) {
            int32_t own = v.rank_host[c], e = v.host[own].expert, first = v.expert[e].first_host;
            double square = v.share[own] * v.share[own] * v.conductance[e];
            ROLLED
            for (int32_t h = first; h < first + v.expert[e].hosts; h++) {
                int32_t other = v.host[h].rank;
                if (other > q) row[other] += square * v.share[h] * v.share[h];
            }
        }
    }
    team_barrier(&p->t);
}

/* out [G] = the prices that the currents in right make. */
DEVICE void solve_prices(const converge &v, double *out, bool done) {
    ipm_part *p = v.p;
    int32_t n = p->ranks;
    const double *inverse = v.inverse + p->rank0;
    double *right = v.right + p->rank0;
    out += p->rank0;
    if (p->t.thread < 32) {
        if (n <= 32) solve_eliminated<network, 1>(n, v.matrix, inverse, right, out, done);
        else if (n <= 64) solve_eliminated<network, 2>(n, v.matrix, inverse, right, out, done);
        else solve_eliminated<network, 4>(n, v.matrix, inverse, right, out, done);
    }
    team_barrier(&p->t);
}

/* price = K^-1 q and its correction from the residual q - K price. */
DEVICE void find_prices(const converge &v) {
    ipm_part *p = v.p;
    build_network(v);
    int32_t first = p->rank0;
    if (p->ranks <= 64)
        eliminate<network, 4>(p->t, p->ranks, v.matrix, v.inverse + first, v.right + first);
    else eliminate<network, 16>(p->t, p->ranks, v.matrix, v.inverse + first, v.right + first);
    solve_prices(v, v.price, true);
    ROLLED
    for (each_expert(i, p)) price_differences(v, v.expert[movable_of(*v.a, p, i)], false);
    team_barrier(&p->t);
    ROLLED
    for (each_rank(q, p)) {
        double right = v.speed[q] - v.slack[q] * v.slack[q] * v.price[q];
        ROLLED
        for (int32_t c = v.first_host[q]; c < v.first_host[q + 1]; c++) {
            int32_t h = v.rank_host[c];
            double root = v.weight[v.host[h].expert] * v.share[h];
            right -= root * root * v.change[h];
        }
        v.right[q] = right;
    }
    team_barrier(&p->t);
    solve_prices(v, v.correction, false);
}

/* Fills change with the scaled directions of the shares; returns the largest of all directions.
 * sum: of price * speed. *rate is the direction of M. */
DEVICE double find_directions(const converge &v, double m, double sum, double *rate) {
    ipm_part *p = v.p;
    double factor = m * m / (1 + m * m * sum), most;
    *rate = m / (1 + m * m * sum);
    most = *rate;
    ROLLED
    for (each_rank(q, p)) most = fmax(most, v.slack[q] * v.price[q] * factor);
    ROLLED
    for (each_expert(i, p)) {
        int32_t e = movable_of(*v.a, p, i), first = v.expert[e].first_host;
        price_differences(v, v.expert[e], true);
        ROLLED
        for (int32_t h = first; h < first + v.expert[e].hosts; h++) {
            v.change[h] *= v.share[h] * v.weight[e] * factor;
            most = fmax(most, v.change[h]);
        }
    }
    return team_most(&p->t, most);
}

DEVICE void move_shares(const converge &v, double alpha) {
    ipm_part *p = v.p;
    ROLLED
    for (each_expert(i, p)) {
        const lplb__cuda_expert e = v.expert[movable_of(*v.a, p, i)];
        double sum = 0;
        ROLLED
        for (int32_t h = e.first_host; h < e.first_host + e.hosts; h++)
            sum += v.share[h] *= 1 - alpha * v.change[h];
        ROLLED
        for (int32_t h = e.first_host; h < e.first_host + e.hosts; h++) v.share[h] /= sum;
    }
    team_barrier(&p->t);
}

/* The largest load / speed that the shares make; fills load. */
DEVICE double find_objective(const converge &v) {
    ipm_part *p = v.p;
    double most = 0;
    ROLLED
    for (each_rank(q, p)) {
        double load = v.fixed[q];
        ROLLED
        for (int32_t c = v.first_host[q]; c < v.first_host[q + 1]; c++)
            load += v.weight[v.host[v.rank_host[c]].expert] * v.share[v.rank_host[c]];
        v.load[q] = load;
        most = fmax(most, load / v.speed[q]);
    }
    return team_most(&p->t, most);
}

/* Slacks from the loads themselves, so that rounding never accumulates; M stays above them. */
DEVICE double set_slacks(const converge &v, double m, double objective) {
    m = fmax(m, objective * (1 + 1e-14));
    ROLLED
    for (each_rank(q, v.p)) {
        double least = m * v.speed[q] * 1e-15; /* load 0 would allow an exact 0 */
        v.slack[q] = fmax(m * v.speed[q] - v.load[q], least);
    }
    return m;
}

/* As lplb__ipm_bound: what prices that add up to `sum` prove. */
DEVICE double find_bound(const converge &v, double sum) {
    ipm_part *p = v.p;
    double inverse = 1 / sum, bound = 0;
    ROLLED
    for (each_rank(q, p)) bound += v.price[q] * inverse * v.fixed[q];
    ROLLED
    for (each_expert(i, p)) {
        int32_t e = movable_of(*v.a, p, i), first = v.expert[e].first_host;
        double least = v.price[v.host[first].rank];
        ROLLED
        for (int32_t h = first + 1; h < first + v.expert[e].hosts; h++)
            least = fmin(least, v.price[v.host[h].rank]);
        bound += v.weight[e] * (least * inverse);
    }
    bound = team_sum(&p->t, bound);
    if (!(sum > 0) || !isfinite(sum)) return 0;
    /* terms >= 0, so every sum is off by less than terms * 2^-53 of itself */
    return bound * (1 - (double)(2 * (p->ranks + p->experts) + 16) * 0x1p-53);
}

DEVICE void copy_shares(const converge &v, const double *from, double *to) {
    ROLLED
    for (each_expert(i, v.p)) {
        const lplb__cuda_expert e = v.expert[movable_of(*v.a, v.p, i)];
        ROLLED
        for (int32_t h = e.first_host; h < e.first_host + e.hosts; h++) to[h] = from[h];
    }
}

DEVICE converge converge_of(const step &a, ipm_part *p) {
    converge v;
    v.a = &a;
    v.p = p;
    v.expert = table(a, expert, lplb__cuda_expert);
    v.host = table(a, host, lplb__cuda_host);
    v.rank_host = cold_table(a, rank_host, uint16_t);
    v.first_host = cold_table(a, first_host, uint16_t);
    int32_t n = header_of(a)->largest_ranks;
    v.matrix = ipm_array(a, matrix, double) + p->t.number * n * stride_of(n);
    v.share = ipm_array(a, share, double);
    v.change = ipm_array(a, change, double);
    v.weight = ipm_array(a, weight, double);
    v.conductance = ipm_array(a, conductance, double);
    v.price = ipm_array(a, price, double);
    v.correction = ipm_array(a, correction, double);
    v.right = ipm_array(a, right, double);
    v.inverse = ipm_array(a, inverse, double);
    v.slack = ipm_array(a, slack, double);
    v.load = ipm_array(a, load, double);
    v.fixed = ipm_array(a, fixed, double);
    v.speed = ipm_array(a, speed, double);
    return v;
}

/* From the even split; leaves the best shares that it saw. */
DEVICE_CALL ipm_result solve_converged(const step &a, ipm_part *p) {
    converge v = converge_of(a, p);
    double *best = ipm_array(a, best, double);
    ipm_result result = {INFINITY, 0, 0, 0};
    double objective = find_objective(v), m = set_slacks(v, 1.1 * objective, objective);
    for (;;) {
        if (objective < result.objective) {
            result.objective = objective;
            copy_shares(v, v.share, best);
        }
        result.converged = result.objective <= result.bound * (1 + a.ipm.tolerance);
        if (result.converged || result.iterations == a.ipm.iterations) break;
        result.iterations++;
        find_prices(v);
        double own = 0, rate;
        ROLLED
        for (each_rank(q, p)) own += v.price[q] * v.speed[q];
        double sum = team_sum(&p->t, own);
        double most = find_directions(v, m, sum, &rate), alpha = a.ipm.step / most;
        move_shares(v, alpha);
        objective = find_objective(v);
        m = set_slacks(v, m * (1 - alpha * rate), objective);
        result.bound = fmax(result.bound, find_bound(v, sum));
    }
    copy_shares(v, best, v.share);
    return result;
}

#endif
