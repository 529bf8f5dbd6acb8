/* FLAT row groups: one vector loop over the live elements, in tasks of 16K; and what both ways of
 * running a row group share (memory in its own dtype, values that are uniform over the group).
 *
 * Example, AdamW on f32[8, 1024, 512]: the step size and 1 - beta are uniform and computed once a
 * task; then one loop loads p, m, v, g, and stores p', m', v', in place where memplan says so
 * (every vector is loaded before it is stored). */
#include <string.h>
#include "base/assert.h"
#include "codegen/cpu/kind_row.h"
#include "codegen/cpu/live.h"

#define FLAT_TASK 16384 /* elements */

/* i32 memory goes through the f32 loads bit for bit. */
static MoeDtype carrier(MoeDtype d) {
    return d == MOE_I32 ? MOE_F32 : d;
}

MoeVal moe_row_sload(MoeEmit *e, MoeDtype d, MoeVal base, MoeVal index) {
    if (d == MOE_I32)
        return LLVMBuildLoad2(e->b, e->i32, moe_at(e, base, index, 4), "");
    return moe_sload(e, d, base, index);
}

void moe_row_sstore(MoeEmit *e, MoeDtype d, MoeVal v, MoeVal base, MoeVal index) {
    if (d == MOE_I32)
        LLVMBuildStore(e->b, v, moe_at(e, base, index, 4));
    else
        moe_sstore(e, d, v, base, index);
}

MoeVal moe_row_vload(MoeEmit *e, MoeDtype d, MoeVal base, MoeVal index, MoeVal mask) {
    MoeVal v = moe_vload(e, carrier(d), base, index, mask);
    return d == MOE_I32 ? LLVMBuildBitCast(e->b, v, e->vi32, "") : v;
}

void moe_row_vstore(MoeEmit *e, MoeDtype d, MoeVal v, MoeVal base, MoeVal index, MoeVal mask) {
    if (d == MOE_I32)
        v = LLVMBuildBitCast(e->b, v, e->v32, "");
    moe_vstore(e, carrier(d), v, base, index, mask);
}

MoeVal moe_row_live_rows(MoeEmit *e, const MoeRowPlan *p) {
    if (p->seg < 0)
        return moe_k64(e, p->rows);
    const MoeRowValue *seg = &p->values[p->seg];
    int64_t last = seg->v->type.groups * seg->v->type.shards;
    return moe_load_index(e, moe_emit_buf(e, seg->buf_in), moe_k64(e, last));
}

MoeVal moe_row_live_first(MoeEmit *e, const MoeRowPlan *p) {
    if (p->seg < 0)
        return moe_k64(e, 0);
    return moe_segs_first(e, &p->values[p->seg].v->type, p->values[p->seg].buf_in);
}

static MoeVal uniform_source(MoeEmit *e, const MoeRowValue *x) {
    if (!x->is_const)
        return moe_row_sload(e, x->dtype, moe_emit_buf(e, x->buf_in), moe_k64(e, 0));
    return x->dtype == MOE_I32 ? moe_k32(e, (int64_t)x->constant) : moe_kf(e, x->constant);
}

void moe_row_emit_uniform(MoeEmit *e, const MoeRowPlan *p, MoeVal *vals) {
    MoeVal zero = moe_k64(e, 0);
    for (int i = 0; i < p->n_values; i++) {
        const MoeRowValue *x = &p->values[i];
        if (x->cls != MOE_ROW_UNIFORM)
            continue;
        if (x->def < 0) {
            vals[i] = uniform_source(e, x);
        } else {
            const MoeRowOp *o = &p->ops[x->def];
            MoeVal in[3] = {NULL, NULL, NULL};
            for (int n = 0; n < o->n_in; n++)
                in[n] = vals[o->in[n]];
            vals[i] = moe_math_ew(e, o->op, in);
        }
        if (x->scratch >= 0)
            moe_row_sstore(e, x->dtype == MOE_I32 ? MOE_I32 : MOE_F32, vals[i],
                           moe_at_bytes(e, e->scratch, moe_k64(e, x->scratch)), zero);
    }
    if (!p->uniform_outputs)
        return;
    MoeIf first;
    moe_if_begin(e, &first, LLVMBuildICmp(e->b, LLVMIntEQ, e->task, zero, ""));
    for (int i = 0; i < p->n_values; i++)
        if (p->values[i].cls == MOE_ROW_UNIFORM && p->values[i].buf_out >= 0)
            moe_row_sstore(e, p->values[i].dtype, vals[i], moe_emit_buf(e, p->values[i].buf_out),
                           zero);
    moe_if_end(e, &first);
}

static bool is_lane_value(const MoeRowValue *x) {
    return x->cls == MOE_ROW_VECTOR || x->cls == MOE_ROW_SCALAR;
}

/* One vector of the group at element `index`. uniform: scalars by value index. */
static void emit_vector(MoeEmit *e, const MoeRowPlan *p, const MoeVal *uniform, MoeVal index,
                        MoeVal mask) {
    MoeVal reg[512];
    MOE_ASSERT(p->n_values <= 512, "row: %d values in a group", p->n_values);
    for (int i = 0; i < p->n_values; i++) {
        const MoeRowValue *x = &p->values[i];
        reg[i] = NULL;
        if (x->cls == MOE_ROW_UNIFORM) {
            reg[i] = moe_splat(e, uniform[i]);
        } else if (is_lane_value(x) && x->def < 0) {
            reg[i] = moe_row_vload(e, x->dtype, moe_emit_buf(e, x->buf_in), index, mask);
        } else if (is_lane_value(x)) {
            const MoeRowOp *o = &p->ops[x->def];
            MoeVal in[3] = {NULL, NULL, NULL};
            for (int n = 0; n < o->n_in; n++)
                in[n] = reg[o->in[n]];
            reg[i] = moe_math_ew(e, o->op, in);
        }
    }
    for (int i = 0; i < p->n_values; i++)
        if (is_lane_value(&p->values[i]) && p->values[i].buf_out >= 0)
            moe_row_vstore(e, p->values[i].dtype, reg[i], moe_emit_buf(e, p->values[i].buf_out),
                           index, mask);
}

/* The end of the live elements, and the first. */
static MoeVal live_elements(MoeEmit *e, const MoeRowPlan *p) {
    if (p->flat_elements == 0 || p->seg < 0)
        return moe_k64(e, p->flat_elements);
    return moe_imul(e, moe_row_live_rows(e, p), moe_k64(e, p->flat_cols));
}

static MoeVal first_element(MoeEmit *e, const MoeRowPlan *p) {
    return moe_imul(e, moe_row_live_first(e, p), moe_k64(e, p->flat_cols));
}

void moe_row_emit_flat(MoeCpuTarget *t, const MoeRowPlan *p, MoeLowered *out) {
    MoeEmit e;
    const char *name;
    if (moe_emit_begin(t, p->key, "row", &e, &name)) {
        moe_emit_tasks_body(&e);
        MoeVal live = moe_isub(&e, live_elements(&e, p), first_element(&e, p));
        MoeVal n = moe_iceildiv(&e, live, FLAT_TASK);
        if (p->uniform_outputs)
            n = moe_imax(&e, n, moe_k64(&e, 1));
        moe_emit_return(&e, n);

        moe_emit_kernel_body(&e);
        MoeVal *uniform = MOE_NEW_N(t->arena, MoeVal, p->n_values);
        moe_row_emit_uniform(&e, p, uniform);
        if (p->flat_elements > 0) {
            MoeVal lo = moe_iadd(&e, first_element(&e, p),
                                 moe_imul(&e, e.task, moe_k64(&e, FLAT_TASK)));
            MoeVal hi =
                moe_imin(&e, live_elements(&e, p), moe_iadd(&e, lo, moe_k64(&e, FLAT_TASK)));
            MoeVal step = moe_k64(&e, e.lanes);
            MoeVal whole = moe_imul(
                &e, moe_idiv(&e, moe_imax(&e, moe_isub(&e, hi, lo), moe_k64(&e, 0)), step), step);
            MoeVal tail = moe_iadd(&e, lo, whole);
            MoeLoop loop;
            moe_loop_begin(&e, &loop, lo, tail, step);
            emit_vector(&e, p, uniform, loop.index, NULL);
            moe_loop_end(&e, &loop);
            MoeIf rest;
            moe_if_begin(&e, &rest, LLVMBuildICmp(e.b, LLVMIntSLT, tail, hi, ""));
            emit_vector(&e, p, uniform, tail, moe_mask(&e, moe_isub(&e, hi, tail)));
            moe_if_end(&e, &rest);
        }
        moe_emit_end(&e);
    }
    moe_cpu_launch(out, name, p->refs, (size_t)p->n_bufs);
}
