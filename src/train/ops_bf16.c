/* Operations on bf16: loaded and stored as such, computed in float. */
#include "train/ops.h"

typedef uint16_t cell;

static inline real load_cell(cell x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return (real)value;
}

/* To nearest, ties to even; what is not a number stays so. */
static inline cell store_cell(real x) {
    float value = (float)x;
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
    uint32_t none = bits | 0x400000; /* a quiet one, whatever its payload */
    uint32_t is_none = -(uint32_t)((bits & 0x7fffffff) > 0x7f800000);
    return (cell)(((none & is_none) | (rounded & ~is_none)) >> 16);
}

/* The double build has this table too, but never gets it: gemm_bf16_check. */
static void multiply(const gemm_shape *s, const kept *a, const kept *b, real beta, real *c) {
    gemm_bf16(s, (const cell *)(const void *)a, (const cell *)(const void *)b, (float)beta,
              (float *)(void *)c);
}

#include "train/ops_kept.h"

REAL_WIDE static void keep(kept *out, const real *x, int64_t n) {
    cell *y = cells_of(out);
    for (int64_t i = 0; i < n; i++) y[i] = store_cell(x[i]);
}

static const kept *operand(kept *scratch, const real *x, int64_t n) {
    keep(scratch, x, n);
    return scratch;
}

REAL_WIDE static const real *widen(real *scratch, const kept *x, int64_t n) {
    const cell *from = cells(x);
    for (int64_t i = 0; i < n; i++) scratch[i] = load_cell(from[i]);
    return scratch;
}

/* ---- by what there is for reals, a block that stays in the cache at a time ---- */

enum { BLOCK = 1024 };

static ops reals;

static kept *item(const kept *x, int64_t i) { return kept_at(&(ops){.kept_bytes = 2}, x, i); }
static int64_t block_at(int64_t i, int64_t n) { return n - i < BLOCK ? n - i : BLOCK; }
static kept *as_kept(real *x) { return (kept *)(void *)x; }

static void swiglu_forward(kept *out, const kept *gate, const kept *up, int64_t n) {
    real a[BLOCK], b[BLOCK];
    for (int64_t i = 0, m; i < n; i += m) {
        m = block_at(i, n);
        widen(a, item(gate, i), m);
        widen(b, item(up, i), m);
        reals.swiglu_forward(as_kept(a), as_kept(a), as_kept(b), m);
        keep(item(out, i), a, m);
    }
}

static void swiglu_backward(kept *dgate, kept *dup, const real *dout, const kept *gate,
                            const kept *up, int64_t n) {
    real a[BLOCK], b[BLOCK];
    for (int64_t i = 0, m; i < n; i += m) {
        m = block_at(i, n);
        widen(a, item(gate, i), m);
        widen(b, item(up, i), m);
        reals.swiglu_backward(as_kept(a), as_kept(b), dout + i, as_kept(a), as_kept(b), m);
        keep(item(dgate, i), a, m);
        keep(item(dup, i), b, m);
    }
}

/* Weights and moments as with reals, then the weights are rounded. */
static void adamw(const adamw_step *step, real *w, kept *as, const real *gradient, real *m1,
                  real *m2, int64_t n) {
    for (int64_t i = 0, m; i < n; i += m) {
        m = block_at(i, n);
        reals.adamw(step, w + i, NULL, gradient + i, m1 + i, m2 + i, m);
        if (as) keep(item(as, i), w + i, m);
    }
}

void ops_cpu_bf16(ops *table) {
    reals = *table;
    set_kept_operations(table);
    table->name = "cpu, bf16";
    table->kept_bytes = sizeof(cell);
    table->rounds = true;
    table->keep = keep;
    table->operand = operand;
    table->widen = widen;
    table->swiglu_forward = swiglu_forward;
    table->swiglu_backward = swiglu_backward;
    table->adamw = adamw;
}
