#include "train/router.h"

#include <stdbool.h>
#include <string.h>

static void score_token(const model_config *c, const real *logit, real *score, real *log_sum) {
    int32_t E = c->experts;
    real top = logit[0], sum = 0;
    for (int32_t i = 1; i < E; i++) top = logit[i] > top ? logit[i] : top;
    for (int32_t i = 0; i < E; i++) {
        score[i] = real_exp(logit[i] - top);
        sum += score[i];
    }
    *log_sum = top + (real)log((double)sum);
    for (int32_t i = 0; i < E; i++)
        score[i] = c->router == ROUTER_SOFTMAX ? score[i] / sum : 1 / (1 + real_exp(-logit[i]));
}

/* The K highest of score + bias, falling, ties to the lower expert: insertion into a short list. */
static void choose(const model_config *c, const real *score, const real *bias, int32_t *choice) {
    int32_t K = c->topk, n = 0;
    for (int32_t e = 0; e < c->experts; e++) {
        real own = score[e] + (bias ? bias[e] : 0);
        if (n == K) {
            int32_t last = choice[K - 1];
            if (own <= score[last] + (bias ? bias[last] : 0)) continue;
            n--;
        }
        int32_t at = n++;
        for (; at > 0; at--) {
            int32_t other = choice[at - 1];
            if (own <= score[other] + (bias ? bias[other] : 0)) break;
            choice[at] = other;
        }
        choice[at] = e;
    }
}

static real gate_sum(const model_config *c, const real *score, const int32_t *choice) {
    if (!c->normalize_gates) return 1;
    real sum = 0;
    for (int32_t k = 0; k < c->topk; k++) sum += score[choice[k]];
    return sum;
}

/* The order in which an over-full expert gives up choices: lowest gates first, ties to the later
 * one; or simply the last ones. An index i = token * K + k, so earlier tokens, then first choices,
 * come first. */
static bool goes_before(const model_config *c, const real *gate, int32_t a, int32_t b) {
    if (c->drop == DROP_PROBS && gate[a] != gate[b]) return gate[a] < gate[b];
    return a > b;
}

/* Heap of n indices whose root goes last: sift down from `at`. */
static void sift(const model_config *c, const real *gate, int32_t *heap, int64_t n, int64_t at) {
    for (;;) {
        int64_t child = 2 * at + 1;
        if (child >= n) return;
        if (child + 1 < n && goes_before(c, gate, heap[child], heap[child + 1])) child++;
        if (!goes_before(c, gate, heap[at], heap[child])) return;
        int32_t swap = heap[at];
        heap[at] = heap[child];
        heap[child] = swap;
        at = child;
    }
}

/* Every expert keeps at most `capacity` of its choices: a heap of those to drop, n log(excess). */
static void drop_excess(const model_config *c, int64_t N, routing *r, int32_t e, int64_t capacity) {
    int64_t excess = r->count[e] - capacity, n = 0;
    if (excess <= 0) return;
    for (int64_t i = 0; i < N * c->topk; i++) {
        if (r->kept[i] != e) continue;
        if (n < excess) {
            r->order[n++] = (int32_t)i;
            for (int64_t at = n / 2 - 1; n == excess && at >= 0; at--)
                sift(c, r->gate, r->order, n, at);
        } else if (goes_before(c, r->gate, (int32_t)i, r->order[0])) {
            r->order[0] = (int32_t)i;
            sift(c, r->gate, r->order, n, 0);
        }
    }
    for (int64_t i = 0; i < excess; i++) {
        r->kept[r->order[i]] = -1;
        r->gate[r->order[i]] = 0;
    }
    r->dropped += excess;
}

void route_forward(const model_config *c, const real *bias, int64_t N, routing *r) {
    int32_t E = c->experts, K = c->topk;
    memset(r->count, 0, sizeof *r->count * (size_t)E);
    r->dropped = 0;
    for (int64_t n = 0; n < N; n++) {
        real *score = r->score + n * E;
        int32_t *choice = r->choice + n * K;
        score_token(c, r->logit + n * E, score, &r->log_sum[n]);
        choose(c, score, bias, choice);
        real sum = gate_sum(c, score, choice);
        for (int32_t k = 0; k < K; k++) {
            r->gate[n * K + k] = score[choice[k]] / sum;
            r->kept[n * K + k] = choice[k];
            r->count[choice[k]]++;
        }
    }
    if (c->capacity_factor <= 0) return;
    int64_t capacity = (int64_t)ceil((double)(N * K) / E * c->capacity_factor);
    for (int32_t e = 0; e < E; e++) drop_excess(c, N, r, e, capacity);
}

/* Scores that the balance loss sees: probabilities that add up to 1. */
static real probability_sum(const model_config *c, const real *score) {
    if (c->router == ROUTER_SOFTMAX) return 1;
    real sum = 0;
    for (int32_t i = 0; i < c->experts; i++) sum += score[i];
    return sum;
}

void route_loss(const model_config *c, const route_losses *losses, int64_t N, const routing *r,
                double *balance, double *z) {
    *balance = *z = 0;
    for (int64_t n = 0; n < N; n++) {
        const real *score = r->score + n * c->experts;
        *z += c->z_coeff * (double)r->log_sum[n] * (double)r->log_sum[n];
        if (!losses->slope) continue;
        const real *slope = losses->slope + n / losses->scope_tokens * c->experts;
        double sum = 0;
        for (int32_t i = 0; i < c->experts; i++) sum += (double)slope[i] * (double)score[i];
        *balance += sum / (double)probability_sum(c, score);
    }
}

/* d loss / d score of one token, into dscore[E]. */
static void score_slope(const model_config *c, const route_losses *losses, int64_t n,
                        const routing *r, const real *dgate, real *dscore) {
    int32_t E = c->experts, K = c->topk;
    const real *score = r->score + n * E, *gate = r->gate + n * K;
    const int32_t *choice = r->choice + n * K, *kept = r->kept + n * K;
    memset(dscore, 0, sizeof *dscore * (size_t)E);
    if (losses->slope) {
        const real *slope = losses->slope + n / losses->scope_tokens * E;
        real sum = probability_sum(c, score), mean = 0;
        if (c->router == ROUTER_SIGMOID)
            for (int32_t i = 0; i < E; i++) mean += slope[i] * score[i] / sum;
        for (int32_t i = 0; i < E; i++)
            dscore[i] = (slope[i] - mean) / sum * losses->inverse_tokens;
    }
    real total = gate_sum(c, score, choice), mean = 0;
    if (c->normalize_gates) /* dropped choices still divide, but receive nothing themselves */
        for (int32_t k = 0; k < K; k++) mean += kept[k] < 0 ? 0 : dgate[n * K + k] * gate[k];
    for (int32_t k = 0; k < K; k++)
        dscore[choice[k]] += ((kept[k] < 0 ? 0 : dgate[n * K + k]) - mean) / total;
}

void route_backward(const model_config *c, const route_losses *losses, int64_t N, const routing *r,
                    const real *dgate, real *dlogit) {
    int32_t E = c->experts;
    for (int64_t n = 0; n < N; n++) {
        const real *score = r->score + n * E;
        real *d = dlogit + n * E;
        score_slope(c, losses, n, r, dgate, d);
        real mean = 0;
        if (c->router == ROUTER_SOFTMAX)
            for (int32_t i = 0; i < E; i++) mean += d[i] * score[i];
        real z = 2 * (real)c->z_coeff * r->log_sum[n] * losses->inverse_tokens;
        for (int32_t i = 0; i < E; i++) {
            real slope = c->router == ROUTER_SOFTMAX ? score[i] * (d[i] - mean)
                                                     : d[i] * score[i] * (1 - score[i]);
            d[i] = slope + z * real_exp(r->logit[n * E + i] - r->log_sum[n]);
        }
    }
}

void route_update_bias(real *bias, const int64_t *count, int32_t experts, double rate) {
    int64_t total = 0;
    for (int32_t i = 0; i < experts; i++) total += count[i];
    for (int32_t i = 0; i < experts; i++) {
        __int128 own = (__int128)count[i] * experts;
        if (own < total) bias[i] += (real)rate;
        if (own > total) bias[i] -= (real)rate;
    }
}
