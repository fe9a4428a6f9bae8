/* The published form of the interior-point method, in single precision: src/plan/ipm_published.c
 * has the program and where it comes from. Rows are the part's ranks, then its experts. */
#ifndef LPLB_CUDA_IPM_PUBLISH_CUH
#define LPLB_CUDA_IPM_PUBLISH_CUH

#include "cuda/ipm_converge.cuh"

#define BIG_M 1000.0f

typedef struct publish {
    converge v; /* the scaled problem */
    const lplb__cuda_expert *expert;
    int32_t rows;    /* ranks + experts */
    float *x, *d;    /* of hosts: variables and their directions */
    float *slack;    /* of ranks, by position */
    float *matrix;   /* of the team */
    float *artificial, *y, *right, *inverse; /* [rows] */
    float m, a;      /* M and Big-M's variable, the same in all threads */
} publish;

DEVICE publish publish_of(const step &a, ipm_part *p) {
    publish u;
    int32_t n = header_of(a)->largest_rows, row0 = p->rank0 + p->first, all = a.ranks + a.experts;
    u.v = converge_of(a, p);
    u.rows = p->ranks + p->experts;
    u.expert = table(a, expert, lplb__cuda_expert);
    u.x = ipm_array(a, best, float);
    u.d = ipm_array(a, next, float); /* not change: other teams that are done round there */
    u.slack = ipm_array(a, slack, float);
    u.matrix = ipm_array(a, matrix, float) + p->t.number * n * stride_of(n);
    u.artificial = ipm_array(a, rows, float) + row0;
    u.y = u.artificial + all;
    u.right = u.y + all;
    u.inverse = u.right + all;
    u.m = u.a = 1;
    return u;
}

/* Row q of A x without the artificial column: of a rank, of an expert. */
DEVICE float rank_row(const publish &u, int32_t q) {
    float sum = u.slack[q] - u.m;
    ROLLED
    for (int32_t c = u.v.first[q]; c < u.v.first[q + 1]; c++)
        sum += (float)u.v.weight[u.v.column[c].expert] * u.x[u.v.column[c].host];
    return sum;
}
DEVICE float expert_row(const publish &u, const lplb__cuda_expert e) {
    float sum = 0;
    ROLLED
    for (int32_t h = e.first_host; h < e.first_host + e.hosts; h++) sum += u.x[h];
    return sum;
}

/* x = 1 and the artificial column b - A 1. */
DEVICE void set_up(const publish &u) {
    ipm_part *p = u.v.p;
    ROLLED
    for (int32_t i = p->t.thread; i < u.rows; i += p->t.threads) u.y[i] = 0;
    ROLLED
    for (each_expert(i, p)) {
        const lplb__cuda_expert e = u.expert[movable_of(*u.v.a, p, i)];
        ROLLED
        for (int32_t h = e.first_host; h < e.first_host + e.hosts; h++) u.x[h] = 1;
        u.artificial[p->ranks + i] = 1 - expert_row(u, e);
    }
    team_barrier(&p->t);
    ROLLED
    for (each_rank(q, p)) {
        u.slack[q] = 1;
        u.artificial[q - p->rank0] = -(float)u.v.fixed[q] - rank_row(u, q);
    }
    team_barrier(&p->t);
}

/* A D^2 A' from the diagonal up, and A D^2 c. A host column has two entries, a slack one, M one a
 * rank, the artificial one a row. */
DEVICE void build_normal(const publish &u) {
    ipm_part *p = u.v.p;
    int32_t n = u.rows, stride = stride_of(n);
    float m2 = u.m * u.m, a2 = u.a * u.a;
    ROLLED
    for (int32_t i = p->t.thread; i < n * stride; i += p->t.threads) {
        int32_t row = i / stride, column = i - row * stride;
        if (column >= n) continue;
        float both = row < p->ranks && column < p->ranks ? m2 : 0;
        u.matrix[i] = a2 * u.artificial[row] * u.artificial[column] + both;
    }
    ROLLED
    for (int32_t i = p->t.thread; i < n; i += p->t.threads)
        u.right[i] = BIG_M * a2 * u.artificial[i] - (i < p->ranks ? m2 : 0);
    team_barrier(&p->t);
    ROLLED
    for (each_expert(i, p)) {
        int32_t id = movable_of(*u.v.a, p, i), k = p->ranks + i;
        const lplb__cuda_expert e = u.expert[id];
        float squares = 0;
        ROLLED
        for (int32_t h = e.first_host; h < e.first_host + e.hosts; h++) {
            int32_t row = u.v.host[h].rank - p->rank0;
            u.matrix[row * stride + k] += (float)u.v.weight[id] * u.x[h] * u.x[h];
            squares += u.x[h] * u.x[h];
        }
        u.matrix[k * stride + k] += squares;
    }
    ROLLED
    for (each_rank(q, p)) {
        float sum = u.slack[q] * u.slack[q];
        ROLLED
        for (int32_t c = u.v.first[q]; c < u.v.first[q + 1]; c++) {
            float root = (float)u.v.weight[u.v.column[c].expert] * u.x[u.v.column[c].host];
            sum += root * root;
        }
        u.matrix[(q - p->rank0) * (stride + 1)] += sum;
    }
    team_barrier(&p->t);
}

/* y = (A D^2 A')^-1 A D^2 c; false when a pivot is not positive. */
DEVICE bool solve_normal(const publish &u) {
    ipm_part *p = u.v.p;
    int32_t n = u.rows;
    bool positive = n <= 64 ? eliminate<normal, 4>(p->t, n, u.matrix, u.inverse, u.right)
                            : eliminate<normal, 36>(p->t, n, u.matrix, u.inverse, u.right);
    if (!positive) return false;
    if (p->t.thread < 32) {
        if (n <= 64) solve_eliminated<normal, 2>(n, u.matrix, u.inverse, u.right, u.y, true);
        else solve_eliminated<normal, 6>(n, u.matrix, u.inverse, u.right, u.y, true);
    }
    team_barrier(&p->t);
    return true;
}

/* What is not a number counts as most. */
DEVICE double larger_direction(double most, float value) {
    return value != value ? (double)INFINITY : fmax(most, (double)value);
}

/* Directions x (c - A'y), into d of the hosts; *m and *a those of M and Big-M's. The largest, at
 * least 0. */
DEVICE double find_publish_directions(const publish &u, float *m, float *a) {
    ipm_part *p = u.v.p;
    double most = 0, prices = 0, weighted = 0;
    ROLLED
    for (each_expert(i, p)) {
        int32_t id = movable_of(*u.v.a, p, i);
        const lplb__cuda_expert e = u.expert[id];
        ROLLED
        for (int32_t h = e.first_host; h < e.first_host + e.hosts; h++) {
            float price = u.y[u.v.host[h].rank - p->rank0];
            u.d[h] = -((float)u.v.weight[id] * price + u.y[p->ranks + i]) * u.x[h];
            most = larger_direction(most, u.d[h]);
        }
    }
    ROLLED
    for (int32_t i = p->t.thread; i < u.rows; i += p->t.threads) {
        weighted += u.artificial[i] * u.y[i];
        if (i >= p->ranks) continue;
        prices += u.y[i];
        most = larger_direction(most, -u.y[i] * u.slack[p->rank0 + i]);
    }
    *m = (float)(1 + team_sum(&p->t, prices)) * u.m;
    *a = (float)(BIG_M - team_sum(&p->t, weighted)) * u.a;
    most = larger_direction(larger_direction(most, *m), *a);
    return team_most(&p->t, most);
}

/* Goes `step` of the directions. */
DEVICE void move(publish *u, float step, float m, float a) {
    ipm_part *p = u->v.p;
    ROLLED
    for (each_expert(i, p)) {
        const lplb__cuda_expert e = u->expert[movable_of(*u->v.a, p, i)];
        ROLLED
        for (int32_t h = e.first_host; h < e.first_host + e.hosts; h++)
            u->x[h] *= 1 - step * (u->d[h]);
    }
    ROLLED
    for (each_rank(q, p)) u->slack[q] *= 1 - step * (-u->y[q - p->rank0] * u->slack[q]);
    u->m *= 1 - step * m;
    u->a *= 1 - step * a;
    team_barrier(&p->t);
}

DEVICE double largest_residual(const publish &u) {
    ipm_part *p = u.v.p;
    double most = 0;
    ROLLED
    for (each_rank(q, p)) {
        float have = rank_row(u, q) + u.artificial[q - p->rank0] * u.a;
        most = larger_direction(most, fabsf(have + (float)u.v.fixed[q]));
    }
    ROLLED
    for (each_expert(i, p)) {
        float have = expert_row(u, u.expert[movable_of(*u.v.a, p, i)]);
        most = larger_direction(most, fabsf(have + u.artificial[p->ranks + i] * u.a - 1));
    }
    return team_most(&p->t, most);
}

/* Accepted shares, made to sum to 1; or even ones. False when those of x cannot be used. */
DEVICE bool take_published(const publish &u, bool even) {
    ipm_part *p = u.v.p;
    bool bad = false;
    ROLLED
    for (each_expert(i, p)) {
        const lplb__cuda_expert e = u.expert[movable_of(*u.v.a, p, i)];
        double sum = 0;
        ROLLED
        for (int32_t h = e.first_host; h < e.first_host + e.hosts; h++)
            sum += u.v.share[h] = even ? 1.0 : fmax(0.0, (double)u.x[h]);
        bad |= !(sum > 0) || !isfinite(sum);
        ROLLED
        for (int32_t h = e.first_host; h < e.first_host + e.hosts; h++) u.v.share[h] /= sum;
    }
    return !(team_most(&p->t, bad) > 0);
}

DEVICE_CALL ipm_result solve_published(const step &a, ipm_part *p) {
    publish u = publish_of(a, p);
    ipm_result result = {0, 0, 0, 0};
    double most = INFINITY;
    float m, artificial;
    set_up(u);
    while (result.iterations < a.ipm.iterations) {
        result.iterations++;
        build_normal(u);
        most = INFINITY;
        if (!solve_normal(u)) break;
        most = find_publish_directions(u, &m, &artificial);
        if (!(most > 0) || !isfinite(most)) break;
        move(&u, (float)a.ipm.step / (float)most, m, artificial);
    }
    result.converged = most < 0.1f && u.a >= 0 && u.a < 1e-4f && largest_residual(u) < 0.05f &&
                       take_published(u, false);
    if (!result.converged) take_published(u, true);
    ROLLED
    for (each_rank(q, p)) u.v.price[q] = fmax(0.0, -(double)u.y[q - p->rank0]);
    find_contributions(u.v);
    find_bound(u.v, &result.bound);
    result.objective = find_objective(u.v);
    return result;
}

#endif
