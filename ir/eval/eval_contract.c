/* Contractions: matmul and weight_grad, plain or grouped by expert. */
#include "ir/eval/eval_internal.h"

/* out (rows, n), zero, += a (rows, k) times b: (n, k) if tb, else (k, n). Ascending k either way.
 */
static void multiply(const double *a, const double *b, double *out, int64_t rows, int64_t k,
                     int64_t n, bool tb) {
    for (int64_t r = 0; r < rows; r++) {
        if (tb) {
            for (int64_t c = 0; c < n; c++)
                for (int64_t p = 0; p < k; p++)
                    out[r * n + c] += a[r * k + p] * b[c * k + p];
        } else { /* row by row of b: the fixtures are large enough to feel a stride */
            for (int64_t p = 0; p < k; p++)
                for (int64_t c = 0; c < n; c++)
                    out[r * n + c] += a[r * k + p] * b[p * n + c];
        }
    }
}

/* out (n, k) = dy (rows, n)^T x (rows, k). */
static void outer(const double *dy, const double *x, double *out, int64_t rows, int64_t n,
                  int64_t k) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < k; j++)
                out[i * k + j] += dy[r * n + i] * x[r * k + j];
}

MoeStatus moe_eval_matmul(MoeEvalOp *e) {
    const MoeTensor *a = e->in[0], *b = e->in[1];
    bool tb = moe_attr_i_or(e->op, "tb", 0), grouped = moe_attr_i_or(e->op, "grouped", 0);
    int64_t k = a->dims[1], n = e->out->dims[1];
    if (!grouped) {
        multiply(a->f, b->f, e->out->f, a->dims[0], k, n, tb);
        return NULL;
    }
    const int32_t *table;
    int64_t groups, shards;
    MOE_TRY(moe_eval_row_segs(e, 0, &table, &groups, &shards));
    for (int64_t g = 0; g < groups; g++) {
        int64_t lo = table[g * shards], hi = table[(g + 1) * shards];
        multiply(a->f + lo * k, b->f + g * n * k, e->out->f + lo * n, hi - lo, k, n, tb);
    }
    return NULL;
}

MoeStatus moe_eval_weight_grad(MoeEvalOp *e) {
    const MoeTensor *dy = e->in[0], *x = e->in[1];
    int64_t n = dy->dims[1], k = x->dims[1];
    if (!moe_attr_i_or(e->op, "grouped", 0)) {
        outer(dy->f, x->f, e->out->f, dy->dims[0], n, k);
        return NULL;
    }
    const int32_t *table;
    int64_t groups, shards;
    MOE_TRY(moe_eval_row_segs(e, 0, &table, &groups, &shards));
    for (int64_t g = 0; g < groups; g++) {
        int64_t lo = table[g * shards], hi = table[(g + 1) * shards];
        outer(dy->f + lo * n, x->f + lo * k, e->out->f + g * n * k, hi - lo, n, k);
    }
    return NULL;
}
