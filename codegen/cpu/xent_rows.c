/* The rows of a chunk of logits: nll = ln sum e^(z - max) + max - z[label], and in place of z the
 * gradient (e^(z - max) / sum - [label]) * dnll (xent.h). Where z is a part of the vocabulary: max,
 * the sum and z[label] for cross_entropy_join, and the gradient (e^(z - lse) - [label]) * dnll. Rows
 * whose label is negative are left out: zeros. */
#include <math.h>
#include <stdio.h>
#include "codegen/cpu/xent.h"

#define TASK_ELEMENTS 32768

typedef struct {
    MoeEmit *e;
    int64_t n;
    MoeXentRows what;
    int64_t parts;
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

/* ---- a part of the vocabulary ---- */

/* The label's column in this part of n rows; *out_here: i1, whether it is in this part. */
static MoeVal own_column(Row *r, MoeVal label, int buf_part, MoeVal *out_here) {
    MoeEmit *e = r->e;
    MoeVal part = moe_load_index(e, moe_emit_buf(e, buf_part), moe_k64(e, 0));
    MoeVal own = moe_isub(e, label, moe_imul(e, part, moe_k64(e, r->n)));
    *out_here = LLVMBuildICmp(e->b, LLVMIntULT, own, moe_k64(e, r->n), "");
    return LLVMBuildSelect(e->b, *out_here, own, moe_k64(e, 0), "");
}

/* The row's columns of all parts: zero. */
static MoeVal zero_sums(Row *r, MoeVal row) {
    MoeEmit *e = r->e;
    MoeVal out = moe_at(e, moe_emit_buf(e, 3), row, 3 * r->parts * 4);
    MoeLoop l;
    moe_loop_begin(e, &l, moe_k64(e, 0), moe_k64(e, 3 * r->parts), moe_k64(e, 1));
    moe_sstore(e, MOE_F32, moe_kf(e, 0), out, l.index);
    moe_loop_end(e, &l);
    return out;
}

static void part_row(Row *r, MoeVal label, MoeVal row) {
    MoeEmit *e = r->e;
    MoeVal here, own = own_column(r, label, 4, &here), out = zero_sums(r, row);
    MoeVal at = moe_imul(e, moe_load_index(e, moe_emit_buf(e, 4), moe_k64(e, 0)), moe_k64(e, 3));
    MoeVal top = moe_hmax(e, over_row(r, max_fn, moe_vconst(e, -INFINITY), NULL));
    MoeVal z = LLVMBuildSelect(e->b, here, moe_sload(e, MOE_F32, r->z, own), moe_kf(e, 0), "");
    MoeVal sum = moe_hsum(e, over_row(r, exp_fn, LLVMConstNull(e->v32), moe_splat(e, top)));
    moe_sstore(e, MOE_F32, top, out, at);
    moe_sstore(e, MOE_F32, sum, out, moe_iadd(e, at, moe_k64(e, 1)));
    moe_sstore(e, MOE_F32, z, out, moe_iadd(e, at, moe_k64(e, 2)));
}

/* bf16: stored in the front half of the row, what they overwrite has been read. */
static MoeVal part_gradient_fn(Row *r, MoeVal v, MoeVal acc, MoeVal arg, MoeVal index,
                               MoeVal mask) {
    MoeEmit *e = r->e;
    MoeVal lse = moe_splat(e, arg), dnll = acc;
    MoeVal p = moe_math_exp(e, LLVMBuildFSub(e->b, v, lse, ""));
    moe_vstore(e, r->grad_dtype, LLVMBuildFMul(e->b, p, dnll, ""), r->z, index, mask);
    return acc;
}

static void part_gradient(Row *r, MoeVal label, MoeVal row) {
    MoeEmit *e = r->e;
    MoeVal here, own = own_column(r, label, 5, &here), z = moe_sload(e, MOE_F32, r->z, own);
    MoeVal lse = moe_sload(e, MOE_F32, moe_emit_buf(e, 3), row);
    MoeVal dnll = moe_sload(e, MOE_F32, moe_emit_buf(e, 4), row);
    over_row(r, part_gradient_fn, moe_splat(e, dnll), lse);
    MoeVal p = moe_math_exp(e, LLVMBuildFSub(e->b, z, lse, ""));
    p = LLVMBuildFMul(e->b, LLVMBuildFSub(e->b, p, moe_kf(e, 1), ""), dnll, "");
    MoeIf mine;
    moe_if_begin(e, &mine, here);
    moe_sstore(e, r->grad_dtype, p, r->z, own);
    moe_if_end(e, &mine);
}

/* ---- rows ---- */

static bool has_gradient(MoeXentRows what) {
    return what == MOE_XENT_GRAD || what == MOE_XENT_PART_GRAD;
}

static void dead_row(Row *r, MoeVal row) {
    MoeEmit *e = r->e;
    if (r->what == MOE_XENT_PART)
        zero_sums(r, row);
    else if (r->what != MOE_XENT_PART_GRAD)
        moe_sstore(e, MOE_F32, moe_kf(e, 0), moe_emit_buf(e, 3), row);
    if (!has_gradient(r->what))
        return;
    MoeLoop l;
    moe_loop_begin(e, &l, moe_k64(e, 0), moe_k64(e, r->n), moe_k64(e, 1));
    moe_sstore(e, r->grad_dtype, moe_kf(e, 0), r->z, l.index);
    moe_loop_end(e, &l);
}

/* label: not negative. */
static void label_row(Row *r, MoeVal label, MoeVal row) {
    MoeEmit *e = r->e;
    if (r->what == MOE_XENT_PART)
        part_row(r, label, row);
    else if (r->what == MOE_XENT_PART_GRAD)
        part_gradient(r, label, row);
    else /* ids are checked where data is read */
        live_row(r, moe_imin(e, label, moe_k64(e, r->n - 1)), row, has_gradient(r->what));
}

const char *moe_xent_emit_rows(MoeCpuTarget *t, int64_t n, MoeXentRows what, int64_t parts,
                               MoeDtype d) {
    MoeEmit emit, *e = &emit;
    char key[128];
    const char *name;
    int64_t per_task = TASK_ELEMENTS / n > 1 ? TASK_ELEMENTS / n : 1;
    snprintf(key, sizeof key, "xent_rows n=%lld what=%d parts=%lld %s", (long long)n, (int)what,
             (long long)parts, moe_dtype_name(d));
    if (!moe_emit_begin(t, key, "xent_rows", e, &name))
        return name;
    moe_emit_tasks_body(e);
    MoeVal lo = moe_load_index(e, moe_emit_buf(e, 0), moe_k64(e, MOE_CHUNK_LO));
    MoeVal hi = moe_load_index(e, moe_emit_buf(e, 0), moe_k64(e, MOE_CHUNK_HI));
    moe_emit_return(e, moe_iceildiv(e, moe_isub(e, hi, lo), per_task));

    moe_emit_kernel_body(e);
    lo = moe_load_index(e, moe_emit_buf(e, 0), moe_k64(e, MOE_CHUNK_LO));
    hi = moe_load_index(e, moe_emit_buf(e, 0), moe_k64(e, MOE_CHUNK_HI));
    Row r = {.e = e, .n = n, .what = what, .parts = parts, .grad_dtype = d};
    MoeVal from = moe_iadd(e, lo, moe_imul(e, e->task, moe_k64(e, per_task)));
    MoeLoop l;
    moe_loop_begin(e, &l, from, moe_imin(e, hi, moe_iadd(e, from, moe_k64(e, per_task))),
                   moe_k64(e, 1));
    r.z = moe_at(e, moe_emit_buf(e, 1), moe_isub(e, l.index, lo), n * 4);
    MoeVal label = moe_load_index(e, moe_emit_buf(e, 2), l.index);
    MoeIf live;
    moe_if_begin(e, &live, LLVMBuildICmp(e->b, LLVMIntSGE, label, moe_k64(e, 0), ""));
    label_row(&r, label, l.index);
    moe_if_else(e, &live);
    dead_row(&r, l.index);
    moe_if_end(e, &live);
    moe_loop_end(e, &l);
    moe_emit_end(e);
    return name;
}
