/* Ops that know tokens and their order: embedding, rotary positions, attention and their gradients.
 */
#include "base/mesh.h"
#include "ir/eval/eval_internal.h"

#include <math.h>
#include <string.h>

MoeStatus moe_eval_part_first(MoeEvalOp *e, int i, int64_t rows, int64_t *out_first) {
    *out_first = 0;
    if (i >= e->op->n_operands)
        return NULL;
    MOE_TRY(moe_eval_check_index("part", e->in[i]->i[0], 0, MOE_MAX_RANKS));
    *out_first = e->in[i]->i[0] * rows;
    return NULL;
}

/* Row of id t in a table of n rows from `first` on; -1: it is in another part, which only a table in parts has. */
static MoeStatus table_row(MoeEvalOp *e, int64_t t, int64_t first, int64_t n, int64_t *out_row) {
    bool in_parts = e->op->n_operands > 2;
    int64_t id = e->in[1]->i[t];
    MOE_TRY(moe_eval_check_index("token id", id, t, in_parts ? INT32_MAX : n));
    *out_row = id >= first && id < first + n ? id - first : -1;
    return NULL;
}

MoeStatus moe_eval_embedding(MoeEvalOp *e) {
    const MoeTensor *table = e->in[0], *ids = e->in[1];
    int64_t cols = table->dims[1], first, row;
    MOE_TRY(moe_eval_part_first(e, 2, table->dims[0], &first));
    for (int64_t t = 0; t < ids->n; t++) {
        MOE_TRY(table_row(e, t, first, table->dims[0], &row));
        if (row >= 0)
            memcpy(e->out->f + t * cols, table->f + row * cols, (size_t)cols * sizeof(double));
    }
    return NULL;
}

MoeStatus moe_eval_embedding_grad(MoeEvalOp *e) {
    const MoeTensor *dy = e->in[0], *ids = e->in[1];
    int64_t cols = dy->dims[1], first, row;
    MOE_TRY(moe_eval_part_first(e, 2, e->out->dims[0], &first));
    for (int64_t t = 0; t < ids->n; t++) {
        MOE_TRY(table_row(e, t, first, e->out->dims[0], &row));
        for (int64_t c = 0; c < cols && row >= 0; c++)
            e->out->f[row * cols + c] += dy->f[t * cols + c];
    }
    return NULL;
}

/* Su et al., RoFormer, in the rotate-half form of transformers: pairs (i, i + head_dim/2). */
MoeStatus moe_eval_rope(MoeEvalOp *e) {
    int64_t heads = moe_attr_i(e->op, "heads"), dim = moe_attr_i(e->op, "head_dim");
    int64_t seq = moe_attr_i(e->op, "seq"), half = dim / 2;
    double theta = moe_attr_f(e->op, "theta"), sign = moe_attr_i_or(e->op, "inverse", 0) ? -1 : 1;
    for (int64_t t = 0; t < e->in[0]->dims[0]; t++)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t i = 0; i < half; i++) {
                int64_t at = (t * heads + h) * dim + i;
                double angle = (double)(t % seq) * pow(theta, -2.0 * (double)i / (double)dim);
                double c = cos(angle), s = sign * sin(angle);
                double a = e->in[0]->f[at], b = e->in[0]->f[at + half];
                e->out->f[at] = a * c - b * s;
                e->out->f[at + half] = b * c + a * s;
            }
    return NULL;
}

/* The shape of an attention op and the keys that one query sees. */
typedef struct {
    int64_t heads, kv_heads, dim, seq, window;
    double scale;
} Attn;

static Attn attn_of(const MoeOp *op) {
    return (Attn){moe_attr_i(op, "heads"), moe_attr_i(op, "kv_heads"), moe_attr_i(op, "head_dim"),
                  moe_attr_i(op, "seq"),   moe_attr_i(op, "window"),   moe_attr_f(op, "scale")};
}

/* Query row t sees keys first_key(t) .. t: its own run of seq rows, at most `window` of them. */
static int64_t first_key(const Attn *a, int64_t t) {
    int64_t lo = t / a->seq * a->seq;
    return a->window > 0 && t - a->window + 1 > lo ? t - a->window + 1 : lo;
}

static double dot(const double *a, const double *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* q (T, heads, dim), k and v (T, kv_heads, dim); query head h reads key head h / (heads /
 * kv_heads). */
MoeStatus moe_eval_attention(MoeEvalOp *e) {
    const Attn a = attn_of(e->op);
    const double *q = e->in[0]->f, *k = e->in[1]->f, *v = e->in[2]->f;
    int64_t rows = e->in[0]->dims[0];
    double *p = MOE_NEW_N(e->arena, double, a.seq < rows ? a.seq : rows);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t h = 0; h < a.heads; h++) {
            int64_t at = (t * a.heads + h) * a.dim, kv = h / (a.heads / a.kv_heads);
            int64_t lo = first_key(&a, t);
            double top = -INFINITY, sum = 0;
            for (int64_t s = lo; s <= t; s++) {
                p[s - lo] = a.scale * dot(q + at, k + (s * a.kv_heads + kv) * a.dim, a.dim);
                top = fmax(top, p[s - lo]);
            }
            for (int64_t s = lo; s <= t; s++)
                sum += exp(p[s - lo] - top);
            double lse = top + log(sum);
            for (int64_t s = lo; s <= t; s++)
                for (int64_t i = 0; i < a.dim; i++)
                    e->out[0].f[at + i] +=
                        exp(p[s - lo] - lse) * v[(s * a.kv_heads + kv) * a.dim + i];
            e->out[1].f[t * a.heads + h] = lse;
        }
    return NULL;
}

/* With P = exp(scale q.k - lse), D = do.o: dv += P do; dS = P (do.v - D); dq += scale dS k; dk +=
 * scale dS q. (Dao et al., FlashAttention, appendix B.) */
MoeStatus moe_eval_attention_grad(MoeEvalOp *e) {
    const Attn a = attn_of(e->op);
    const double *q = e->in[0]->f, *k = e->in[1]->f, *v = e->in[2]->f;
    const double *o = e->in[3]->f, *lse = e->in[4]->f, *go = e->in[5]->f;
    double *dq = e->out[0].f, *dk = e->out[1].f, *dv = e->out[2].f;
    for (int64_t t = 0; t < e->in[0]->dims[0]; t++)
        for (int64_t h = 0; h < a.heads; h++) {
            int64_t at = (t * a.heads + h) * a.dim, kv = h / (a.heads / a.kv_heads);
            double d = dot(go + at, o + at, a.dim);
            for (int64_t s = first_key(&a, t); s <= t; s++) {
                int64_t ks = (s * a.kv_heads + kv) * a.dim;
                double score = a.scale * dot(q + at, k + ks, a.dim);
                double p = exp(score - lse[t * a.heads + h]);
                double ds = p * (dot(go + at, v + ks, a.dim) - d);
                for (int64_t i = 0; i < a.dim; i++) {
                    dv[ks + i] += p * go[at + i];
                    dq[at + i] += a.scale * ds * k[ks + i];
                    dk[ks + i] += a.scale * ds * q[at + i];
                }
            }
        }
    return NULL;
}
