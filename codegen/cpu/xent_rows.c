/* The rows of a chunk of logits: nll = ln sum e^(z - max) + max - z[label], and in place of z the
 * gradient (e^(z - max) / sum - [label]) * dnll (xent.h). Rows whose label is negative are left
 * out: zeros. */
#include <math.h>
#include <stdio.h>
#include "codegen/cpu/xent.h"

#define TASK_ELEMENTS 32768

typedef struct {
    MoeEmit *e;
    int64_t n;
    MoeDtype grad_dtype;
    MoeVal z; /* the row */
} Row;

typedef MoeVal (*RowFn)(Row *r, MoeVal v, MoeVal acc, MoeVal arg, MoeVal index, MoeVal mask);

/* acc = fn(z[i..], acc) over the row's vectors; masked-off lanes are 0 in z. */
static MoeVal over_row(Row *r, RowFn fn, MoeVal acc, MoeVal arg) {
    MoeEmit *e = r->e;
    int64_t whole = r->n / e->lanes * e->lanes;
    MoeCarryLoop l;
    moe_carry_begin(e, &l, moe_k64(e, 0), moe_k64(e, whole), moe_k64(e, e->lanes), &acc, 1);
    acc = fn(r, moe_vload(e, MOE_F32, r->z, l.l.index, NULL), acc, arg, l.l.index, NULL);
    moe_carry_end(e, &l, &acc);
    if (r->n > whole) {
        MoeVal mask = moe_mask(e, moe_k64(e, r->n - whole)), at = moe_k64(e, whole);
        acc = fn(r, moe_vload(e, MOE_F32, r->z, at, mask), acc, arg, at, mask);
    }
    return acc;
}

static MoeVal max_fn(Row *r, MoeVal v, MoeVal acc, MoeVal arg, MoeVal index, MoeVal mask) {
    MoeEmit *e = r->e;
    (void)arg, (void)index;
    MoeVal more = LLVMBuildFCmp(e->b, LLVMRealOGT, v, acc, "");
    if (mask)
        more = LLVMBuildAnd(e->b, more, mask, "");
    return LLVMBuildSelect(e->b, more, v, acc, "");
}

/* Keeps e^(z - max) in place of z. */
static MoeVal exp_fn(Row *r, MoeVal v, MoeVal acc, MoeVal arg, MoeVal index, MoeVal mask) {
    MoeEmit *e = r->e;
    MoeVal p = moe_math_exp(e, LLVMBuildFSub(e->b, v, arg, ""));
    if (mask)
        p = LLVMBuildSelect(e->b, mask, p, LLVMConstNull(e->v32), "");
    moe_vstore(e, MOE_F32, p, r->z, index, mask);
    return LLVMBuildFAdd(e->b, acc, p, "");
}

typedef struct {
    MoeVal inverse, dnll;
} Scale;

/* bf16 results take the front half of the row: what they overwrite has been read. */
static void write_gradient(Row *r, const Scale *s) {
    MoeEmit *e = r->e;
    int64_t whole = r->n / e->lanes * e->lanes;
    MoeVal inverse = moe_splat(e, s->inverse), dnll = moe_splat(e, s->dnll);
    MoeLoop l;
    moe_loop_begin(e, &l, moe_k64(e, 0), moe_k64(e, whole), moe_k64(e, e->lanes));
    MoeVal p = LLVMBuildFMul(e->b, moe_vload(e, MOE_F32, r->z, l.index, NULL), inverse, "");
    moe_vstore(e, r->grad_dtype, LLVMBuildFMul(e->b, p, dnll, ""), r->z, l.index, NULL);
    moe_loop_end(e, &l);
    if (r->n > whole) {
        MoeVal mask = moe_mask(e, moe_k64(e, r->n - whole)), at = moe_k64(e, whole);
        p = LLVMBuildFMul(e->b, moe_vload(e, MOE_F32, r->z, at, mask), inverse, "");
        moe_vstore(e, r->grad_dtype, LLVMBuildFMul(e->b, p, dnll, ""), r->z, at, mask);
    }
}

/* A row that counts. row: in the whole batch. */
static void live_row(Row *r, MoeVal label, MoeVal row, bool grad) {
    MoeEmit *e = r->e;
    MoeVal top = moe_hmax(e, over_row(r, max_fn, moe_vconst(e, -INFINITY), NULL));
    MoeVal own = moe_sload(e, MOE_F32, r->z, label);
    MoeVal sum = moe_hsum(e, over_row(r, exp_fn, LLVMConstNull(e->v32), moe_splat(e, top)));
    MoeVal nll = LLVMBuildFAdd(e->b, moe_math_log(e, sum), LLVMBuildFSub(e->b, top, own, ""), "");
    moe_sstore(e, MOE_F32, nll, moe_emit_buf(e, 3), row);
    if (!grad)
        return;
    MoeVal own_exp = moe_sload(e, MOE_F32, r->z, label);
    Scale s = {.inverse = LLVMBuildFDiv(e->b, moe_kf(e, 1), sum, ""),
               .dnll = moe_sload(e, MOE_F32, moe_emit_buf(e, 4), row)};
    write_gradient(r, &s);
    MoeVal p = LLVMBuildFMul(e->b, own_exp, s.inverse, "");
    p = LLVMBuildFMul(e->b, LLVMBuildFSub(e->b, p, moe_kf(e, 1), ""), s.dnll, "");
    moe_sstore(e, r->grad_dtype, p, r->z, label);
}

static void dead_row(Row *r, MoeVal row, bool grad) {
    MoeEmit *e = r->e;
    moe_sstore(e, MOE_F32, moe_kf(e, 0), moe_emit_buf(e, 3), row);
    if (!grad)
        return;
    MoeLoop l;
    moe_loop_begin(e, &l, moe_k64(e, 0), moe_k64(e, r->n), moe_k64(e, 1));
    moe_sstore(e, r->grad_dtype, moe_kf(e, 0), r->z, l.index);
    moe_loop_end(e, &l);
}

const char *moe_xent_emit_rows(MoeCpuTarget *t, int64_t n, bool grad, MoeDtype d) {
    MoeEmit emit, *e = &emit;
    char key[96];
    const char *name;
    int64_t per_task = TASK_ELEMENTS / n > 1 ? TASK_ELEMENTS / n : 1;
    snprintf(key, sizeof key, "xent_rows n=%lld grad=%d %s", (long long)n, grad, moe_dtype_name(d));
    if (!moe_emit_begin(t, key, "xent_rows", e, &name))
        return name;
    moe_emit_tasks_body(e);
    MoeVal lo = moe_load_index(e, moe_emit_buf(e, 0), moe_k64(e, MOE_CHUNK_LO));
    MoeVal hi = moe_load_index(e, moe_emit_buf(e, 0), moe_k64(e, MOE_CHUNK_HI));
    moe_emit_return(e, moe_iceildiv(e, moe_isub(e, hi, lo), per_task));

    moe_emit_kernel_body(e);
    lo = moe_load_index(e, moe_emit_buf(e, 0), moe_k64(e, MOE_CHUNK_LO));
    hi = moe_load_index(e, moe_emit_buf(e, 0), moe_k64(e, MOE_CHUNK_HI));
    Row r = {.e = e, .n = n, .grad_dtype = d};
    MoeVal from = moe_iadd(e, lo, moe_imul(e, e->task, moe_k64(e, per_task)));
    MoeLoop l;
    moe_loop_begin(e, &l, from, moe_imin(e, hi, moe_iadd(e, from, moe_k64(e, per_task))),
                   moe_k64(e, 1));
    r.z = moe_at(e, moe_emit_buf(e, 1), moe_isub(e, l.index, lo), n * 4);
    MoeVal label = moe_load_index(e, moe_emit_buf(e, 2), l.index);
    MoeIf live;
    moe_if_begin(e, &live, LLVMBuildICmp(e->b, LLVMIntSGE, label, moe_k64(e, 0), ""));
    live_row(&r, moe_imin(e, label, moe_k64(e, n - 1)), l.index,
             grad); /* ids are checked where data is read */
    moe_if_else(e, &live);
    dead_row(&r, l.index, grad);
    moe_if_end(e, &live);
    moe_loop_end(e, &l);
    moe_emit_end(e);
    return name;
}
