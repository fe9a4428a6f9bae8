/* The converged form of the interior-point method, in double precision: src/plan/ipm_converged.c
 * has the mathematics. In single precision neither the prices' differences nor a gap of 1e-9 exist.
 * (The network's inverse
 * would make both solutions products, but it is no help: its rows agree in all but the last digits
 * near the end, and their differences are the answer.) */
#ifndef LPLB_CUDA_IPM_CONVERGE_CUH
#define LPLB_CUDA_IPM_CONVERGE_CUH

#include "cuda/ipm_matrix.cuh"

/* One host of a movable expert as the ranks list them. */
typedef struct alignas(8) ipm_column {
    uint16_t host, first_host, hosts, expert; /* the expert's hosts are first_host, ... */
} ipm_column;

typedef struct converge {
    const step *a;
    ipm_part *p;
    const lplb__cuda_host *host;
    const ipm_column *column;   /* by rank */
    const uint16_t *first;      /* [G+1] column of each rank */
    int32_t begin, end, widest; /* columns of the part; the most of a rank */
    double *matrix;             /* of the team */
    double *share, *next, *change;                      /* by host */
    double *contribution;                               /* by column */
    double *weight;                                     /* by expert */
    double *price, *correction, *right, *inverse;       /* by rank */
    double *slack, *load, *fixed, *speed;               /* by rank */
} converge;

/* for each of the part's columns that are this thread's */
#define each_column(c, v)                                                                          \
    int32_t c = (v).begin + (v).p->t.thread; c < (v).end; c += (v).p->t.threads

/* Price of the column's rank minus the mean price of its expert, weighted by share^2; prices are
 * the sum of two arrays and differences are taken in each. */
DEVICE double price_difference(const converge &v, const ipm_column k, bool corrected) {
    int32_t end = k.first_host + k.hosts, base = k.first_host, rank = v.host[k.host].rank;
    double squares = 0, mean = 0, own = 0;
#pragma unroll 2
    for (int32_t h = k.first_host; h < end; h++)
        if (v.share[h] > v.share[base]) base = h;
    base = v.host[base].rank;
    double reference = v.price[base], correction = corrected ? v.correction[base] : 0;
#pragma unroll 2
    for (int32_t h = k.first_host; h < end; h++) {
        int32_t q = v.host[h].rank;
        double difference = v.price[q] - reference, square = v.share[h] * v.share[h];
        if (corrected) difference += v.correction[q] - correction;
        if (q == rank) own = difference;
        squares += square;
        mean += square * difference;
    }
    return own - mean * reciprocal(squares);
}

/* Lanes that look after one rank: as many as there are threads for. */
DEVICE int32_t lanes_of_rank(const ipm_part *p) {
    int32_t lanes = 1;
    while (lanes < 32 && 2 * lanes * p->ranks <= p->t.threads) lanes *= 2;
    return lanes;
}

/* Conductances between the ranks, above the diagonal, and to earth. A rank's row is filled column
 * by column, because two of its experts may share another rank too. */
DEVICE void build_network(const converge &v) {
    ipm_part *p = v.p;
    int32_t n = p->ranks, stride = stride_of(n), lanes = lanes_of_rank(p);
    double *conductance = v.next; /* free until the shares move */
    ROLLED
    for (int32_t i = p->t.thread; i < n * stride; i += p->t.threads) v.matrix[i] = 0;
    ROLLED
    for (each_column(c, v)) {
        const ipm_column k = v.column[c];
        double squares = 0, own = v.share[k.host] * v.weight[k.expert];
#pragma unroll 2
        for (int32_t h = k.first_host; h < k.first_host + k.hosts; h++)
            squares += v.share[h] * v.share[h];
        conductance[k.host] = own * own * reciprocal(squares);
    }
    team_barrier(&p->t);
    int32_t q = p->rank0 + p->t.thread / lanes, lane = p->t.thread & (lanes - 1);
    bool used = q < p->rank0 + n;
    double *row = v.matrix + (q - p->rank0) * stride - p->rank0;
    int32_t first = used ? v.first[q] : 0, columns = used ? v.first[q + 1] - first : 0;
    if (used && lane == 0) {
        row[q] = v.slack[q] * v.slack[q];
        v.right[q] = v.speed[q];
    }
    ROLLED
    for (int32_t i = 0; i < v.widest; i++) {
        warp_barrier();
        if (i >= columns) continue;
        const ipm_column k = v.column[first + i];
        double own = conductance[k.host];
        ROLLED
        for (int32_t h = k.first_host + lane; h < k.first_host + k.hosts; h += lanes) {
            int32_t other = v.host[h].rank;
            if (other > q) row[other] += own * v.share[h] * v.share[h];
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

/* Sum of the contributions of a rank's columns. */
DEVICE double sum_of_columns(const converge &v, int32_t q) {
    double sum = 0;
    int32_t end = v.first[q + 1];
#pragma unroll 4
    for (int32_t c = v.first[q]; c < end; c++) sum += v.contribution[c];
    return sum;
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
    for (each_column(c, v)) {
        const ipm_column k = v.column[c];
        double root = v.weight[k.expert] * v.share[k.host];
        v.contribution[c] = root * root * price_difference(v, k, false);
    }
    team_barrier(&p->t);
    ROLLED
    for (each_rank(q, p))
        v.right[q] = v.speed[q] - v.slack[q] * v.slack[q] * v.price[q] - sum_of_columns(v, q);
    team_barrier(&p->t);
    solve_prices(v, v.correction, false);
}

/* Returns the sum of price * speed; *bound as lplb__ipm_bound. */
DEVICE double find_bound(const converge &v, double *bound) {
    ipm_part *p = v.p;
    double sum = 0, proven = 0;
    ROLLED
    for (each_rank(q, p)) {
        sum += v.price[q] * v.speed[q];
        proven += v.price[q] * v.fixed[q];
    }
    ROLLED
    for (each_column(c, v)) {
        const ipm_column k = v.column[c];
        if (k.host != k.first_host) continue;
        double least = v.price[v.host[k.host].rank];
#pragma unroll 2
        for (int32_t h = k.first_host + 1; h < k.first_host + k.hosts; h++)
            least = fmin(least, v.price[v.host[h].rank]);
        proven += v.weight[k.expert] * least;
    }
    sum = team_sum(&p->t, sum);
    proven = team_sum(&p->t, proven) / sum;
    /* terms >= 0, so every sum is off by less than terms * 2^-53 of itself */
    proven *= 1 - (double)(2 * (p->ranks + p->experts) + 16) * 0x1p-53;
    *bound = sum > 0 && isfinite(proven) ? proven : 0;
    return sum;
}

/* Fills change with the scaled directions of the shares; returns the largest of all directions.
 * sum: of price * speed. *rate is the direction of M. */
DEVICE double find_directions(const converge &v, double m, double sum, double *rate) {
    ipm_part *p = v.p;
    double inverse = reciprocal(1 + m * m * sum), factor = m * m * inverse, most = m * inverse;
    *rate = most;
    ROLLED
    for (each_rank(q, p)) most = fmax(most, v.slack[q] * v.price[q] * factor);
    ROLLED
    for (each_column(c, v)) {
        const ipm_column k = v.column[c];
        double scale = v.share[k.host] * v.weight[k.expert] * factor;
        double change = price_difference(v, k, true) * scale;
        v.change[k.host] = change;
        most = fmax(most, change);
    }
    return team_most(&p->t, most);
}

/* The shares after a step, and what they put on their ranks. */
DEVICE void move_shares(converge *v, double alpha) {
    ROLLED
    for (each_column(c, *v)) {
        const ipm_column k = v->column[c];
        double sum = 0, own = v->share[k.host] * (1 - alpha * v->change[k.host]);
#pragma unroll 2
        for (int32_t h = k.first_host; h < k.first_host + k.hosts; h++)
            sum += v->share[h] * (1 - alpha * v->change[h]);
        own *= reciprocal(sum);
        v->next[k.host] = own;
        v->contribution[c] = own * v->weight[k.expert];
    }
    double *before = v->share;
    v->share = v->next;
    v->next = before;
    team_barrier(&v->p->t);
}

/* The largest load / speed that the contributions make; fills load. */
DEVICE double find_objective(const converge &v) {
    double most = 0;
    ROLLED
    for (each_rank(q, v.p)) {
        v.load[q] = v.fixed[q] + sum_of_columns(v, q);
        most = fmax(most, v.load[q] / v.speed[q]);
    }
    return team_most(&v.p->t, most);
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

DEVICE void copy_shares(const converge &v, const double *from, double *to) {
    ROLLED
    for (each_column(c, v)) to[v.column[c].host] = from[v.column[c].host];
}

/* What the present shares put on their ranks. */
DEVICE void find_contributions(const converge &v) {
    ROLLED
    for (each_column(c, v))
        v.contribution[c] = v.share[v.column[c].host] * v.weight[v.column[c].expert];
    team_barrier(&v.p->t);
}

DEVICE converge converge_of(const step &a, ipm_part *p) {
    converge v;
    int32_t n = header_of(a)->largest_ranks, widest = 0;
    v.a = &a;
    v.p = p;
    v.host = table(a, host, lplb__cuda_host);
    v.column = ipm_array(a, column, ipm_column);
    v.first = ipm_array(a, first, uint16_t);
    v.begin = v.first[p->rank0];
    v.end = v.first[p->rank0 + p->ranks];
    ROLLED
    for (each_rank(q, p)) widest = larger(widest, v.first[q + 1] - v.first[q]);
    v.widest = (int32_t)team_most(&p->t, widest);
    v.matrix = ipm_array(a, matrix, double) + p->t.number * n * stride_of(n);
    v.share = ipm_array(a, share, double);
    v.next = ipm_array(a, next, double);
    v.change = ipm_array(a, change, double);
    v.contribution = ipm_array(a, contribution, double);
    v.weight = ipm_array(a, weight, double);
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
    find_contributions(v);
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
        double rate, bound, sum = find_bound(v, &bound);
        double most = find_directions(v, m, sum, &rate), alpha = a.ipm.step / most;
        move_shares(&v, alpha);
        objective = find_objective(v);
        m = set_slacks(v, m * (1 - alpha * rate), objective);
        result.bound = fmax(result.bound, bound);
    }
    copy_shares(v, best, ipm_array(a, share, double));
    return result;
}

#endif
