/* Causal attention, backward: dq, dk, dv (f32) from q, k, v, o, lse, do.
 *
 * With P = e^(S - lse) and D = rowsum(do * o): dv = P^T do, dP = do v^T, dS = P * (dP - D), dq = scale dS k, dk = scale dS^T q (Dao et al., 2022).
 * A task owns one sequence and one key/value head: dk and dv are summed over its query heads and blocks in ascending order in scratch. */
#include "codegen/cpu/attn.h"

enum { BUF_Q, BUF_K, BUF_V, BUF_O, BUF_LSE, BUF_DO, BUF_SEG, BUF_DQ, BUF_DK, BUF_DV };

typedef struct {
    int64_t k, v, dk, dv, q, d_o, qt, dot, p, ds, lse, delta, total;
} Scratch;

static Scratch layout(const MoeAttn *a) {
    Scratch s = {0};
    s.k = moe_attn_take(&s.total, a->sp * a->dp);
    s.v = moe_attn_take(&s.total, a->sp * a->dp);
    s.dk = moe_attn_take(&s.total, a->sp * a->dp);
    s.dv = moe_attn_take(&s.total, a->sp * a->dp);
    s.q = moe_attn_take(&s.total, a->qb * a->dp);
    s.d_o = moe_attn_take(&s.total, a->qb * a->dp);
    s.qt = moe_attn_take(&s.total, a->dp * a->qb);
    s.dot = moe_attn_take(&s.total, a->dp * a->qb);
    s.p = moe_attn_take(&s.total, (a->sp + a->rows) * a->qb);
    s.ds = moe_attn_take(&s.total, (a->sp + a->rows) * a->qb);
    s.lse = moe_attn_take(&s.total, a->qb);
    s.delta = moe_attn_take(&s.total, a->qb);
    return s;
}

static MoeVal place(MoeEmit *e, int64_t offset) {
    return moe_at_bytes(e, e->scratch, moe_k64(e, offset));
}

typedef struct {
    MoeVal row0, len, q0, head;
} Block;

/* lse and D of the block's queries; zero for those past the end. */
static void load_lse_and_delta(MoeEmit *e, const MoeAttn *a, const Scratch *s, const Block *b,
                               MoeVal n) {
    MoeVal lse = place(e, s->lse), delta = place(e, s->delta), d_o = place(e, s->d_o);
    for (int v = 0; v < a->vectors; v++) {
        MoeVal at = moe_k64(e, (int64_t)v * a->lanes);
        moe_vstore(e, MOE_F32, moe_vconst(e, 0), lse, at, NULL);
        moe_vstore(e, MOE_F32, moe_vconst(e, 0), delta, at, NULL);
    }
    MoeLoop i;
    moe_loop_begin(e, &i, moe_k64(e, 0), n, moe_k64(e, 1));
    MoeVal row = moe_iadd(e, b->row0, moe_iadd(e, b->q0, i.index));
    moe_sstore(e, MOE_F32,
               moe_sload(e, MOE_F32, moe_emit_buf(e, BUF_LSE),
                         moe_iadd(e, moe_imul(e, row, moe_k64(e, a->heads)), b->head)),
               lse, i.index);
    MoeVal at = moe_iadd(e, moe_imul(e, row, moe_k64(e, a->heads * a->head_dim)),
                         moe_imul(e, b->head, moe_k64(e, a->head_dim)));
    MoeVal sum = moe_vconst(e, 0);
    for (int64_t d = 0; d < a->dp; d += a->lanes) {
        int64_t left = a->head_dim - d;
        MoeVal mask = left >= a->lanes ? NULL : moe_mask(e, moe_k64(e, left));
        MoeVal o =
            moe_vload(e, a->dtype, moe_emit_buf(e, BUF_O), moe_iadd(e, at, moe_k64(e, d)), mask);
        MoeVal g =
            moe_vload(e, MOE_F32, d_o,
                      moe_iadd(e, moe_imul(e, i.index, moe_k64(e, a->dp)), moe_k64(e, d)), NULL);
        sum = moe_fma(e, o, g, sum);
    }
    moe_sstore(e, MOE_F32, moe_hsum(e, sum), delta, i.index);
    moe_loop_end(e, &i);
}

/* p: S -> P; ds: dP -> dS, for keys [lo, hi). masked: zeros where a query does not see a key. Queries past the end have zero
 * q and do, so that they add nothing. */
static void softmax_grad_keys(MoeEmit *e, const MoeAttn *a, const Scratch *s, const Block *b,
                              MoeVal lo, MoeVal hi, bool masked, const MoeVal *lse,
                              const MoeVal *delta) {
    MoeVal zero = moe_vconst(e, 0), p_strip = place(e, s->p), ds_strip = place(e, s->ds);
    MoeLoop j;
    moe_loop_begin(e, &j, lo, hi, moe_k64(e, 1));
    MoeVal p_row = moe_at(e, p_strip, j.index, a->qb * 4),
           ds_row = moe_at(e, ds_strip, j.index, a->qb * 4);
    for (int v = 0; v < a->vectors; v++) {
        MoeVal at = moe_k64(e, (int64_t)v * a->lanes);
        MoeVal p = moe_math_exp(
            e, LLVMBuildFSub(e->b, moe_vload(e, MOE_F32, p_row, at, NULL), lse[v], ""));
        MoeVal ds = LLVMBuildFSub(e->b, moe_vload(e, MOE_F32, ds_row, at, NULL), delta[v], "");
        if (masked) {
            MoeVal sees = moe_attn_sees(e, a, b->q0, v, j.index);
            p = LLVMBuildSelect(e->b, sees, p, zero, "");
            ds = LLVMBuildSelect(e->b, sees, ds, zero, "");
        }
        moe_vstore(e, MOE_F32, p, p_row, at, NULL);
        moe_vstore(e, MOE_F32, LLVMBuildFMul(e->b, p, ds, ""), ds_row, at, NULL);
    }
    moe_loop_end(e, &j);
}

static void softmax_grad(MoeEmit *e, const MoeAttn *a, const Scratch *s, const Block *b, MoeVal lo,
                         MoeVal hi) {
    MoeVal lse[8], delta[8];
    for (int v = 0; v < a->vectors; v++) {
        lse[v] = moe_vload(e, MOE_F32, place(e, s->lse), moe_k64(e, (int64_t)v * a->lanes), NULL);
        delta[v] =
            moe_vload(e, MOE_F32, place(e, s->delta), moe_k64(e, (int64_t)v * a->lanes), NULL);
    }
    MoeVal all =
        a->window ? lo
                  : b->q0; /* without a window every query of the block sees the keys before it */
    softmax_grad_keys(e, a, s, b, lo, all, false, lse, delta);
    softmax_grad_keys(e, a, s, b, all, hi, true, lse, delta);
}

/* dst[j] += sum over the block's queries i ascending of strip[j][i] * x[i], for keys j in [lo, hi). */
static void add_to_keys(MoeEmit *e, const MoeAttn *a, MoeVal strip, MoeVal x, MoeVal dst, MoeVal q0,
                        MoeVal lo, MoeVal hi) {
    int sizes[64], n = moe_attn_chunks(a, a->vectors, sizes);
    MoeVal acc[64], a_rows[16];
    MoeLoop j;
    moe_loop_begin(e, &j, lo, hi, moe_k64(e, a->rows));
    MoeVal first_row = moe_at(e, strip, j.index, a->qb * 4),
           out = moe_at(e, dst, j.index, a->dp * 4);
    for (int r = 0; r < a->rows; r++)
        a_rows[r] = moe_at_bytes(e, first_row, moe_k64(e, r * a->qb * 4));
    MoeVal from = moe_imax(
        e, moe_k64(e, 0), moe_isub(e, j.index, q0)); /* queries before these keys do not see them */
    for (int c = 0, first = 0; c < n; first += sizes[c++]) {
        for (int r = 0; r < a->rows; r++)
            for (int v = 0; v < sizes[c]; v++)
                acc[r * sizes[c] + v] = moe_vload(
                    e, MOE_F32, out, moe_k64(e, r * a->dp + (int64_t)(first + v) * a->lanes), NULL);
        MoeVal b = moe_at_bytes(e, x, moe_k64(e, (int64_t)first * a->lanes * 4));
        moe_attn_product(e, a->rows, sizes[c], from, moe_k64(e, a->qb), a_rows, 4, b, a->dp * 4,
                         acc);
        for (int r = 0; r < a->rows; r++)
            for (int v = 0; v < sizes[c]; v++)
                moe_vstore(e, MOE_F32, acc[r * sizes[c] + v], out,
                           moe_k64(e, r * a->dp + (int64_t)(first + v) * a->lanes), NULL);
    }
    moe_loop_end(e, &j);
}

/* The last tile of keys may run past hi: its strip rows must add nothing. */
static void clear_past(MoeEmit *e, const MoeAttn *a, MoeVal strip, MoeVal hi) {
    MoeLoop j;
    moe_loop_begin(e, &j, hi, moe_iadd(e, hi, moe_k64(e, a->rows)), moe_k64(e, 1));
    for (int v = 0; v < a->vectors; v++)
        moe_vstore(e, MOE_F32, moe_vconst(e, 0), moe_at(e, strip, j.index, a->qb * 4),
                   moe_k64(e, (int64_t)v * a->lanes), NULL);
    moe_loop_end(e, &j);
}

static void store_dq(MoeEmit *e, const MoeAttn *a, MoeVal query, int rows, int first, int vecs,
                     MoeVal *acc, void *ctx) {
    const Block *b = ctx;
    for (int r = 0; r < rows; r++) {
        MoeVal pos = moe_iadd(e, b->q0, moe_iadd(e, query, moe_k64(e, r)));
        MoeIf live;
        moe_if_begin(e, &live, LLVMBuildICmp(e->b, LLVMIntSLT, pos, b->len, ""));
        MoeVal at =
            moe_iadd(e, moe_imul(e, moe_iadd(e, b->row0, pos), moe_k64(e, a->heads * a->head_dim)),
                     moe_imul(e, b->head, moe_k64(e, a->head_dim)));
        for (int v = 0; v < vecs; v++) {
            int64_t d = (int64_t)(first + v) * a->lanes, left = a->head_dim - d;
            moe_vstore(e, MOE_F32,
                       LLVMBuildFMul(e->b, acc[r * vecs + v], moe_vconst(e, a->scale), ""),
                       moe_emit_buf(e, BUF_DQ), moe_iadd(e, at, moe_k64(e, d)),
                       left >= a->lanes ? NULL : moe_mask(e, moe_k64(e, left)));
        }
        moe_if_end(e, &live);
    }
}

static void emit_block(MoeEmit *e, const MoeAttn *a, const Scratch *s, const MoeAttnTask *t,
                       MoeVal head, MoeVal q0) {
    Block b = {t->row0, t->len, q0, head};
    MoeVal n = moe_imin(e, moe_k64(e, a->qb), moe_isub(e, t->len, q0)),
           first = moe_iadd(e, t->row0, q0), lo, hi;
    MoeVal q = place(e, s->q), d_o = place(e, s->d_o), qt = place(e, s->qt), dot = place(e, s->dot),
           p = place(e, s->p), ds = place(e, s->ds);
    moe_attn_pack(e, a, a->dtype, moe_emit_buf(e, BUF_Q), a->heads, head, first, n, a->qb, a->scale,
                  q);
    moe_attn_pack(e, a, a->dtype, moe_emit_buf(e, BUF_DO), a->heads, head, first, n, a->qb, 1.0,
                  d_o);
    moe_attn_transpose(e, a, q, qt);
    moe_attn_transpose(e, a, d_o, dot);
    load_lse_and_delta(e, a, s, &b, n);
    moe_attn_range(e, a, q0, t->len, &lo, &hi);
    moe_attn_strip(e, a, place(e, s->k), qt, p, lo, hi);
    moe_attn_strip(e, a, place(e, s->v), dot, ds, lo, hi);
    softmax_grad(e, a, s, &b, lo, hi);
    clear_past(e, a, p, hi);
    clear_past(e, a, ds, hi);
    add_to_keys(e, a, p, d_o, place(e, s->dv), q0, lo, hi);
    add_to_keys(e, a, ds, q, place(e, s->dk), q0, lo, hi); /* q carries the scale */
    moe_attn_rows(e, a, ds, place(e, s->k), q0, lo, hi, store_dq, &b);
}

static void clear(MoeEmit *e, const MoeAttn *a, MoeVal x) {
    MoeLoop i;
    moe_loop_begin(e, &i, moe_k64(e, 0), moe_k64(e, a->sp * a->dp), moe_k64(e, a->lanes));
    moe_vstore(e, MOE_F32, moe_vconst(e, 0), x, i.index, NULL);
    moe_loop_end(e, &i);
}

static void write_keys(MoeEmit *e, const MoeAttn *a, const MoeAttnTask *t, MoeVal src, int buf) {
    MoeLoop j;
    moe_loop_begin(e, &j, moe_k64(e, 0), t->len, moe_k64(e, 1));
    MoeVal at = moe_iadd(
        e, moe_imul(e, moe_iadd(e, t->row0, j.index), moe_k64(e, a->kv_heads * a->head_dim)),
        moe_imul(e, t->kv_head, moe_k64(e, a->head_dim)));
    for (int64_t d = 0; d < a->dp; d += a->lanes) {
        int64_t left = a->head_dim - d;
        MoeVal x =
            moe_vload(e, MOE_F32, src,
                      moe_iadd(e, moe_imul(e, j.index, moe_k64(e, a->dp)), moe_k64(e, d)), NULL);
        moe_vstore(e, MOE_F32, x, moe_emit_buf(e, buf), moe_iadd(e, at, moe_k64(e, d)),
                   left >= a->lanes ? NULL : moe_mask(e, moe_k64(e, left)));
    }
    moe_loop_end(e, &j);
}

static void emit_kernel(MoeEmit *e, const MoeAttn *a, const Scratch *s) {
    moe_attn_emit_tasks(e, a, BUF_SEG);
    moe_emit_kernel_body(e);
    for (int i = 0; i <= BUF_DV; i++) /* loaded at the entry, before any branch */
        moe_emit_buf(e, i);
    MoeAttnTask t = moe_attn_task(e, a, BUF_SEG);
    moe_attn_pack(e, a, a->dtype, moe_emit_buf(e, BUF_K), a->kv_heads, t.kv_head, t.row0, t.len,
                  a->sp, 1.0, place(e, s->k));
    moe_attn_pack(e, a, a->dtype, moe_emit_buf(e, BUF_V), a->kv_heads, t.kv_head, t.row0, t.len,
                  a->sp, 1.0, place(e, s->v));
    clear(e, a, place(e, s->dk));
    clear(e, a, place(e, s->dv));
    int64_t share = a->heads / a->kv_heads;
    MoeLoop h, q;
    moe_loop_begin(e, &h, moe_k64(e, 0), moe_k64(e, share), moe_k64(e, 1));
    MoeVal head = moe_iadd(e, moe_imul(e, t.kv_head, moe_k64(e, share)), h.index);
    moe_loop_begin(e, &q, moe_k64(e, 0), t.len, moe_k64(e, a->qb));
    emit_block(e, a, s, &t, head, q.index);
    moe_loop_end(e, &q);
    moe_loop_end(e, &h);
    write_keys(e, a, &t, place(e, s->dk), BUF_DK);
    write_keys(e, a, &t, place(e, s->dv), BUF_DV);
    moe_emit_end(e);
}

int64_t moe_cpu_attn_grad_workspace(MoeCpuTarget *t, const MoeGroup *g) {
    (void)t;
    (void)g;
    return 0;
}

MoeStatus moe_cpu_attn_grad_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out) {
    const MoeOp *op = g->ops[0];
    MoeAttn a = moe_attn_shape(t, op);
    Scratch s = layout(&a);
    MoeEmit e;
    const char *name;
    if (moe_emit_begin(t, moe_attn_key(t, &a, "attn_grad"), "attn_grad", &e, &name))
        emit_kernel(&e, &a, &s);
    MoeBufRef refs[10];
    size_t n = 0;
    for (int i = 0; i < 6; i++)
        refs[n++] = moe_ref(op->operands[i]);
    refs[n++] = moe_ref(moe_rows_seg(&op->operands[0]->type));
    for (int i = 0; i < 3; i++)
        refs[n++] = moe_ref(op->results[i]);
    moe_cpu_launch(out, name, refs, n);
    moe_cpu_need_scratch(out, s.total);
    return NULL;
}
