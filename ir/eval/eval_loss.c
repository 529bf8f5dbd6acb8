/* Head and loss, and the optimiser: cross entropy over h w^T, its gradient, AdamW. */
#include "ir/eval/eval_internal.h"

#include <math.h>

/* Logits of one row h (C) against w (N, C), the largest, and the sum of e^(logit - largest). */
static void row_sums(const double *h, const MoeTensor *w, double *logits, double *top,
                     double *sum) {
    int64_t n = w->dims[0], cols = w->dims[1];
    *top = -INFINITY;
    *sum = 0;
    for (int64_t j = 0; j < n; j++) {
        logits[j] = 0;
        for (int64_t c = 0; c < cols; c++)
            logits[j] += h[c] * w->f[j * cols + c];
        *top = fmax(*top, logits[j]);
    }
    for (int64_t j = 0; j < n; j++)
        *sum += exp(logits[j] - *top);
}

/* Logits, and their log-sum-exp. */
static double row_logits(const double *h, const MoeTensor *w, double *logits) {
    double top, sum;
    row_sums(h, w, logits, &top, &sum);
    return top + log(sum);
}

/* dh (C) and dw (N, C) grow by what row h (C) gives: dlogits = (e^(logit - lse) - onehot) * dnll. own: the label's row of
 * w, -1 if it is in another part. */
static void add_row_gradient(const MoeTensor *h, const double *row, const MoeTensor *w,
                             const double *logits, double lse, int64_t own, double dnll, double *dh,
                             double *dw) {
    int64_t cols = w->dims[1];
    for (int64_t j = 0; j < w->dims[0]; j++) {
        double d = (exp(logits[j] - lse) - (j == own)) * dnll;
        if (h->dtype == MOE_BF16) /* a rounding point of the op: its GEMMs take bf16 operands */
            d = moe_eval_round_bf16(d);
        for (int64_t c = 0; c < cols; c++) {
            dh[c] += d * w->f[j * cols + c];
            dw[j * cols + c] += d * row[c];
        }
    }
}

MoeStatus moe_eval_linear_cross_entropy(MoeEvalOp *e) {
    const MoeTensor *h = e->in[0], *w = e->in[1], *labels = e->in[2];
    double *logits = MOE_NEW_N(e->arena, double, w->dims[0]);
    for (int64_t t = 0; t < labels->n; t++) {
        if (labels->i[t] < 0)
            continue;
        MOE_TRY(moe_eval_check_index("label", labels->i[t], t, w->dims[0]));
        double lse = row_logits(h->f + t * h->dims[1], w, logits);
        e->out->f[t] = lse - logits[labels->i[t]];
    }
    return NULL;
}

MoeStatus moe_eval_linear_cross_entropy_grad(MoeEvalOp *e) {
    const MoeTensor *h = e->in[0], *w = e->in[1], *labels = e->in[2], *dnll = e->in[3];
    MoeTensor *nll = &e->out[0], *dh = &e->out[1], *dw = &e->out[2];
    int64_t n = w->dims[0], cols = w->dims[1];
    double *logits = MOE_NEW_N(e->arena, double, n);
    for (int64_t t = 0; t < labels->n; t++) {
        int64_t label = labels->i[t];
        if (label < 0)
            continue;
        MOE_TRY(moe_eval_check_index("label", label, t, n));
        const double *row = h->f + t * cols;
        double lse = row_logits(row, w, logits);
        nll->f[t] = lse - logits[label];
        add_row_gradient(h, row, w, logits, lse, label, dnll->f[t], dh->f + t * cols, dw->f);
    }
    return NULL;
}

/* ---- w in parts ---- */

/* The label's row in the part of n rows from `first` on; -1: elsewhere. */
static int64_t own_row(int64_t label, int64_t first, int64_t n) {
    return label >= first && label < first + n ? label - first : -1;
}

MoeStatus moe_eval_linear_cross_entropy_part(MoeEvalOp *e) {
    const MoeTensor *h = e->in[0], *w = e->in[1], *labels = e->in[2];
    int64_t n = w->dims[0], parts = moe_attr_i(e->op, "parts"), first;
    double *logits = MOE_NEW_N(e->arena, double, n);
    MOE_TRY(moe_eval_part_first(e, 3, n, &first));
    MOE_TRY(moe_eval_check_index("part", e->in[3]->i[0], 0, parts));
    for (int64_t t = 0; t < labels->n; t++) {
        double *out = e->out->f + (t * parts + e->in[3]->i[0]) * 3;
        if (labels->i[t] < 0)
            continue;
        MOE_TRY(moe_eval_check_index("label", labels->i[t], t, parts * n));
        int64_t own = own_row(labels->i[t], first, n);
        row_sums(h->f + t * h->dims[1], w, logits, &out[0], &out[1]);
        out[2] = own >= 0 ? logits[own] : 0;
    }
    return NULL;
}

MoeStatus moe_eval_cross_entropy_join(MoeEvalOp *e) {
    const MoeTensor *s = e->in[0], *labels = e->in[1];
    int64_t cols = s->dims[1];
    for (int64_t t = 0; t < labels->n; t++) {
        const double *row = s->f + t * cols;
        double top = -INFINITY, sum = 0, own = 0;
        if (labels->i[t] < 0)
            continue;
        for (int64_t c = 0; c < cols; c += 3)
            top = fmax(top, row[c]);
        for (int64_t c = 0; c < cols; c += 3) {
            sum += row[c + 1] * exp(row[c] - top);
            own += row[c + 2];
        }
        e->out[0].f[t] = log(sum) + (top - own);
        e->out[1].f[t] = top + log(sum);
    }
    return NULL;
}

MoeStatus moe_eval_linear_cross_entropy_part_grad(MoeEvalOp *e) {
    const MoeTensor *h = e->in[0], *w = e->in[1], *labels = e->in[2], *lse = e->in[4];
    const MoeTensor *dnll = e->in[5];
    int64_t n = w->dims[0], cols = w->dims[1], first;
    double *logits = MOE_NEW_N(e->arena, double, n);
    MOE_TRY(moe_eval_part_first(e, 3, n, &first));
    for (int64_t t = 0; t < labels->n; t++) {
        if (labels->i[t] < 0)
            continue;
        const double *row = h->f + t * cols;
        row_logits(row, w, logits);
        add_row_gradient(h, row, w, logits, lse->f[t], own_row(labels->i[t], first, n), dnll->f[t],
                         e->out[0].f + t * cols, e->out[1].f);
    }
    return NULL;
}

/* Loshchilov and Hutter, decoupled weight decay, in the form that PyTorch computes. */
MoeStatus moe_eval_adamw(MoeEvalOp *e) {
    double s[12] = {0};
    for (int i = 4; i < 12; i++)
        s[i] = e->in[i]->f[0];
    double clip = s[4], lr = s[5], b1 = s[6], b2 = s[7], eps = s[8], decay = s[9];
    double bias1 = s[10], bias2 = s[11];
    for (int64_t k = 0; k < e->in[0]->n; k++) {
        double p = e->in[0]->f[k], g = e->in[3]->f[k] * clip;
        double m = b1 * e->in[1]->f[k] + (1 - b1) * g;
        double v = b2 * e->in[2]->f[k] + (1 - b2) * g * g;
        e->out[0].f[k] = p * (1 - lr * decay) - lr / bias1 * m / (sqrt(v) / sqrt(bias2) + eps);
        e->out[1].f[k] = m;
        e->out[2].f[k] = v;
    }
    return NULL;
}
