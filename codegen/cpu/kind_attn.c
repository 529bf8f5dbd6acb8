/* Causal attention, forward: o = softmax(scale q k^T) v per query, lse saved, no [seq, seq] memory. In: q [T, heads*d], k, v [T, kv_heads*d],
 * token segments. Out: o in q's dtype, lse f32 [T, heads].
 *
 * For a block of queries: the strip S^T, a pass for the mask and the maximum, a pass for e^(s-max) and its sum (keys ascending), one product with v. */
#include "codegen/cpu/attn.h"

#include <math.h>

typedef struct {
    MoeVal o, row0, len, q0, head, inverse; /* inverse: 1 / sum, [qb] in scratch */
} StoreCtx;

/* o rows = acc / sum */
static void store_o(MoeEmit *e, const MoeAttn *a, MoeVal query, int rows, int first, int vecs,
                    MoeVal *acc, void *ctx) {
    StoreCtx *s = ctx;
    for (int r = 0; r < rows; r++) {
        MoeVal i = moe_iadd(e, query, moe_k64(e, r)), pos = moe_iadd(e, s->q0, i);
        MoeIf live;
        moe_if_begin(e, &live, LLVMBuildICmp(e->b, LLVMIntSLT, pos, s->len, ""));
        MoeVal inv = moe_splat(e, moe_sload(e, MOE_F32, s->inverse, i));
        MoeVal at =
            moe_iadd(e, moe_imul(e, moe_iadd(e, s->row0, pos), moe_k64(e, a->heads * a->head_dim)),
                     moe_imul(e, s->head, moe_k64(e, a->head_dim)));
        for (int v = 0; v < vecs; v++) {
            int64_t d = (int64_t)(first + v) * a->lanes, left = a->head_dim - d;
            moe_vstore(e, a->dtype, LLVMBuildFMul(e->b, acc[r * vecs + v], inv, ""), s->o,
                       moe_iadd(e, at, moe_k64(e, d)),
                       left >= a->lanes ? NULL : moe_mask(e, moe_k64(e, left)));
        }
        moe_if_end(e, &live);
    }
}

/* Keys [lo, hi) of the strip into the running maximum; masked: those that a query does not see become -inf. */
static void take_max(MoeEmit *e, const MoeAttn *a, MoeVal strip, MoeVal q0, MoeVal lo, MoeVal hi,
                     bool masked, MoeVal *max) {
    MoeCarryLoop j;
    moe_carry_begin(e, &j, lo, hi, moe_k64(e, 1), max, a->vectors);
    MoeVal row = moe_at(e, strip, j.l.index, a->qb * 4);
    for (int v = 0; v < a->vectors; v++) {
        MoeVal at = moe_k64(e, (int64_t)v * a->lanes), s = moe_vload(e, MOE_F32, row, at, NULL);
        if (masked) {
            s = LLVMBuildSelect(e->b, moe_attn_sees(e, a, q0, v, j.l.index), s,
                                moe_vconst(e, -INFINITY), "");
            moe_vstore(e, MOE_F32, s, row, at, NULL);
        }
        max[v] = moe_math_max(e, max[v], s);
    }
    moe_carry_end(e, &j, max);
}

/* Masks the strip and leaves its maximum over keys in max[vectors]. */
static void mask_and_max(MoeEmit *e, const MoeAttn *a, MoeVal strip, MoeVal q0, MoeVal lo,
                         MoeVal hi, MoeVal *max) {
    for (int v = 0; v < a->vectors; v++)
        max[v] = moe_vconst(e, -INFINITY);
    MoeVal all =
        a->window ? lo : q0; /* without a window every query of the block sees the keys before it */
    take_max(e, a, strip, q0, lo, all, false, max);
    take_max(e, a, strip, q0, all, hi, true, max);
}

/* strip = e^(strip - max); sums over keys ascending in sum[vectors]. */
static void exp_and_sum(MoeEmit *e, const MoeAttn *a, MoeVal strip, MoeVal lo, MoeVal hi,
                        const MoeVal *max, MoeVal *sum) {
    MoeCarryLoop j;
    for (int v = 0; v < a->vectors; v++)
        sum[v] = moe_vconst(e, 0);
    moe_carry_begin(e, &j, lo, hi, moe_k64(e, 1), sum, a->vectors);
    MoeVal row = moe_at(e, strip, j.l.index, a->qb * 4);
    for (int v = 0; v < a->vectors; v++) {
        MoeVal at = moe_k64(e, (int64_t)v * a->lanes);
        MoeVal p =
            moe_math_exp(e, LLVMBuildFSub(e->b, moe_vload(e, MOE_F32, row, at, NULL), max[v], ""));
        moe_vstore(e, MOE_F32, p, row, at, NULL);
        sum[v] = LLVMBuildFAdd(e->b, sum[v], p, "");
    }
    moe_carry_end(e, &j, sum);
}

enum { BUF_Q, BUF_K, BUF_V, BUF_SEG, BUF_O, BUF_LSE };

typedef struct {
    int64_t k, v, q, qt, strip, inverse, lse, total;
} Scratch;

static Scratch layout(const MoeAttn *a) {
    Scratch s = {0};
    s.k = moe_attn_take(&s.total, a->sp * a->dp);
    s.v = moe_attn_take(&s.total, a->sp * a->dp);
    s.q = moe_attn_take(&s.total, a->qb * a->dp);
    s.qt = moe_attn_take(&s.total, a->dp * a->qb);
    s.strip = moe_attn_take(&s.total, (a->sp + a->rows) * a->qb);
    s.inverse = moe_attn_take(&s.total, a->qb);
    s.lse = moe_attn_take(&s.total, a->qb);
    return s;
}

static void emit_block(MoeEmit *e, const MoeAttn *a, const Scratch *s, const MoeAttnTask *t,
                       MoeVal head, MoeVal q0) {
    MoeVal strip = moe_at_bytes(e, e->scratch, moe_k64(e, s->strip)),
           q = moe_at_bytes(e, e->scratch, moe_k64(e, s->q));
    MoeVal qt = moe_at_bytes(e, e->scratch, moe_k64(e, s->qt)),
           inverse = moe_at_bytes(e, e->scratch, moe_k64(e, s->inverse));
    MoeVal lse = moe_at_bytes(e, e->scratch, moe_k64(e, s->lse));
    MoeVal n = moe_imin(e, moe_k64(e, a->qb), moe_isub(e, t->len, q0)), lo, hi, max[8], sum[8];
    moe_attn_pack(e, a, a->dtype, moe_emit_buf(e, BUF_Q), a->heads, head, moe_iadd(e, t->row0, q0),
                  n, a->qb, a->scale, q);
    moe_attn_transpose(e, a, q, qt);
    moe_attn_range(e, a, q0, t->len, &lo, &hi);
    moe_attn_strip(e, a, moe_at_bytes(e, e->scratch, moe_k64(e, s->k)), qt, strip, lo, hi);
    mask_and_max(e, a, strip, q0, lo, hi, max);
    exp_and_sum(e, a, strip, lo, hi, max, sum);
    for (int v = 0; v < a->vectors; v++) {
        MoeVal at = moe_k64(e, (int64_t)v * a->lanes);
        moe_vstore(e, MOE_F32, LLVMBuildFDiv(e->b, moe_vconst(e, 1), sum[v], ""), inverse, at,
                   NULL);
        moe_vstore(e, MOE_F32, LLVMBuildFAdd(e->b, max[v], moe_math_log(e, sum[v]), ""), lse, at,
                   NULL);
    }
    MoeLoop i;
    moe_loop_begin(e, &i, moe_k64(e, 0), n, moe_k64(e, 1));
    MoeVal row = moe_iadd(e, t->row0, moe_iadd(e, q0, i.index));
    moe_sstore(e, MOE_F32, moe_sload(e, MOE_F32, lse, i.index), moe_emit_buf(e, BUF_LSE),
               moe_iadd(e, moe_imul(e, row, moe_k64(e, a->heads)), head));
    moe_loop_end(e, &i);
    StoreCtx ctx = {moe_emit_buf(e, BUF_O), t->row0, t->len, q0, head, inverse};
    moe_attn_rows(e, a, strip, moe_at_bytes(e, e->scratch, moe_k64(e, s->v)), q0, lo, hi, store_o,
                  &ctx);
}

static void emit_kernel(MoeEmit *e, const MoeAttn *a, const Scratch *s) {
    moe_attn_emit_tasks(e, a, BUF_SEG);
    moe_emit_kernel_body(e);
    for (int i = 0; i <= BUF_LSE; i++) /* loaded at the entry, before any branch */
        moe_emit_buf(e, i);
    MoeAttnTask t = moe_attn_task(e, a, BUF_SEG);
    moe_attn_pack(e, a, a->dtype, moe_emit_buf(e, BUF_K), a->kv_heads, t.kv_head, t.row0, t.len,
                  a->sp, 1.0, moe_at_bytes(e, e->scratch, moe_k64(e, s->k)));
    moe_attn_pack(e, a, a->dtype, moe_emit_buf(e, BUF_V), a->kv_heads, t.kv_head, t.row0, t.len,
                  a->sp, 1.0, moe_at_bytes(e, e->scratch, moe_k64(e, s->v)));
    int64_t share = a->heads / a->kv_heads; /* query heads of this key/value head */
    MoeLoop h, q;
    moe_loop_begin(e, &h, moe_k64(e, 0), moe_k64(e, share), moe_k64(e, 1));
    MoeVal head = moe_iadd(e, moe_imul(e, t.kv_head, moe_k64(e, share)), h.index);
    moe_loop_begin(e, &q, moe_k64(e, 0), t.len, moe_k64(e, a->qb));
    emit_block(e, a, s, &t, head, q.index);
    moe_loop_end(e, &q);
    moe_loop_end(e, &h);
    moe_emit_end(e);
}

int64_t moe_cpu_attn_workspace(MoeCpuTarget *t, const MoeGroup *g) {
    (void)t;
    (void)g;
    return 0;
}

MoeStatus moe_cpu_attn_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out) {
    const MoeOp *op = g->ops[0];
    MoeAttn a = moe_attn_shape(t, op);
    Scratch s = layout(&a);
    MoeEmit e;
    const char *name;
    if (moe_emit_begin(t, moe_attn_key(t, &a, "attn"), "attn", &e, &name))
        emit_kernel(&e, &a, &s);
    MoeBufRef refs[] = {moe_ref(op->operands[0]), moe_ref(op->operands[1]),
                        moe_ref(op->operands[2]), moe_ref(moe_rows_seg(&op->operands[0]->type)),
                        moe_ref(op->results[0]),  moe_ref(op->results[1])};
    moe_cpu_launch(out, name, refs, 6);
    moe_cpu_need_scratch(out, s.total);
    return NULL;
}
