/* Row ops: each row by itself; and the reductions over all rows or elements. Sums are plain sums in
 * f64: the order that docs/NUMBERS.md fixes is for f32. */
#include "ir/eval/eval_internal.h"

#include <math.h>

/* The tensor as rows of the last dim. */
static int64_t n_cols(const MoeTensor *t) {
    return t->dims[t->rank - 1];
}

static int64_t n_rows(const MoeTensor *t) {
    int64_t n = 1;
    for (int d = 0; d + 1 < t->rank; d++)
        n *= t->dims[d];
    return n;
}

MoeStatus moe_eval_row_sum(MoeEvalOp *e) {
    int64_t rows = n_rows(e->in[0]), cols = n_cols(e->in[0]);
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0;
        for (int64_t c = 0; c < cols; c++)
            sum += e->in[0]->f[r * cols + c];
        e->out->f[r] = sum;
    }
    return NULL;
}

MoeStatus moe_eval_row_max(MoeEvalOp *e) {
    int64_t rows = n_rows(e->in[0]), cols = n_cols(e->in[0]);
    for (int64_t r = 0; r < rows; r++) {
        double best = -INFINITY;
        for (int64_t c = 0; c < cols; c++)
            best = fmax(best, e->in[0]->f[r * cols + c]);
        e->out->f[r] = best;
    }
    return NULL;
}

/* k rounds of "the largest not yet taken": strict > keeps the lower id on ties. NaN counts as -inf,
 * so that the ids are distinct whatever the data. */
MoeStatus moe_eval_topk(MoeEvalOp *e) {
    int64_t rows = n_rows(e->in[0]), cols = n_cols(e->in[0]), k = moe_attr_i(e->op, "k");
    bool *taken = MOE_NEW_N(e->arena, bool, cols);
    if (k > cols)
        return moe_error(MOE_E_INPUT, "k = %lld of %lld columns", (long long)k, (long long)cols);
    for (int64_t r = 0; r < rows; r++) {
        const double *x = e->in[0]->f + r * cols;
        for (int64_t c = 0; c < cols; c++)
            taken[c] = false;
        for (int64_t j = 0; j < k; j++) {
            int64_t best = -1;
            double top = 0;
            for (int64_t c = 0; c < cols; c++) {
                double v = isnan(x[c]) ? -INFINITY : x[c];
                if (!taken[c] && (best < 0 || v > top)) {
                    best = c;
                    top = v;
                }
            }
            taken[best] = true;
            e->out->i[r * k + j] = (int32_t)best;
        }
    }
    return NULL;
}

MoeStatus moe_eval_take(MoeEvalOp *e) {
    int64_t cols = n_cols(e->in[0]), k = n_cols(e->in[1]);
    for (int64_t p = 0; p < e->in[1]->n; p++) {
        int64_t id = e->in[1]->i[p];
        MOE_TRY(moe_eval_check_index("id", id, p, cols));
        e->out->f[p] = e->in[0]->f[p / k * cols + id];
    }
    return NULL;
}

MoeStatus moe_eval_put(MoeEvalOp *e) {
    int64_t cols = n_cols(e->out), k = n_cols(e->in[1]);
    const int32_t *ids = e->in[1]->i;
    for (int64_t p = 0; p < e->in[1]->n; p++) {
        MOE_TRY(moe_eval_check_index("id", ids[p], p, cols));
        for (int64_t q = p / k * k; q < p; q++)
            if (ids[q] == ids[p])
                return moe_error(MOE_E_INPUT, "id %d stands twice in row %lld", ids[p],
                                 (long long)(p / k));
        e->out->f[p / k * cols + ids[p]] = e->in[0]->f[p];
    }
    return NULL;
}

MoeStatus moe_eval_col_sum(MoeEvalOp *e) {
    int64_t rows = n_rows(e->in[0]), cols = n_cols(e->in[0]);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++)
            e->out->f[c] += e->in[0]->f[r * cols + c];
    return NULL;
}

MoeStatus moe_eval_sum_squares(MoeEvalOp *e) {
    double sum = 0;
    for (int64_t k = 0; k < e->in[0]->n; k++)
        sum += e->in[0]->f[k] * e->in[0]->f[k];
    e->out->f[0] = sum;
    return NULL;
}

MoeStatus moe_eval_softmax(MoeEvalOp *e) {
    int64_t rows = n_rows(e->in[0]), cols = n_cols(e->in[0]);
    for (int64_t r = 0; r < rows; r++) {
        const double *x = e->in[0]->f + r * cols;
        double *y = e->out->f + r * cols, top = -INFINITY, sum = 0;
        for (int64_t c = 0; c < cols; c++)
            top = fmax(top, x[c]);
        for (int64_t c = 0; c < cols; c++)
            sum += y[c] = exp(x[c] - top);
        for (int64_t c = 0; c < cols; c++)
            y[c] /= sum;
    }
    return NULL;
}

MoeStatus moe_eval_rmsnorm(MoeEvalOp *e) {
    int64_t rows = n_rows(e->in[0]), cols = n_cols(e->in[0]);
    double eps = moe_attr_f(e->op, "eps");
    for (int64_t r = 0; r < rows; r++) {
        const double *x = e->in[0]->f + r * cols;
        double squares = 0;
        for (int64_t c = 0; c < cols; c++)
            squares += x[c] * x[c];
        double scale = 1 / sqrt(squares / (double)cols + eps);
        for (int64_t c = 0; c < cols; c++)
            e->out->f[r * cols + c] = e->in[1]->f[c] * x[c] * scale;
    }
    return NULL;
}
