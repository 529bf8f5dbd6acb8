/* Head and loss, and the optimiser: cross entropy over h w^T, its gradient, AdamW. */
#include "ir/eval/eval_internal.h"

#include <math.h>

/* Logits of one row h (C) against w (N, C), and their log-sum-exp. */
static double row_logits(const double *h, const MoeTensor *w, double *logits) {
    int64_t n = w->dims[0], cols = w->dims[1];
    double top = -INFINITY, sum = 0;
    for (int64_t j = 0; j < n; j++) {
        logits[j] = 0;
        for (int64_t c = 0; c < cols; c++)
            logits[j] += h[c] * w->f[j * cols + c];
        top = fmax(top, logits[j]);
    }
    for (int64_t j = 0; j < n; j++)
        sum += exp(logits[j] - top);
    return top + log(sum);
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
        for (int64_t j = 0; j < n; j++) {
            double d = (exp(logits[j] - lse) - (j == label)) * dnll->f[t];
            if (h->dtype == MOE_BF16) /* a rounding point of the op: its GEMMs take bf16 operands */
                d = moe_eval_round_bf16(d);
            for (int64_t c = 0; c < cols; c++) {
                dh->f[t * cols + c] += d * w->f[j * cols + c];
                dw->f[j * cols + c] += d * row[c];
            }
        }
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
