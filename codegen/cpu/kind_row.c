/* Row groups, row by row (kind_row.h). In: a MoeRowPlan. Out: one kernel; its tasks are blocks of
 * rows, or, where the group has col_sums, the leaves of the tree over rows (docs/NUMBERS.md, 4),
 * whose partial sums go to the workspace for a second launch to fold.
 *
 * Vectors are loaded whole even where a row ends inside one (memory may be read 64 bytes past its
 * end); stores and reductions are masked. */
#include "codegen/cpu/kind_row.h"

#include <string.h>
#include "base/assert.h"
#include "codegen/cpu/kind_row_local.h"
#include "ir/numbers.h"

enum { MAX_SUMS = 16, WAYS = 4, UNROLL_UP_TO = 8 };

typedef struct {
    MoeEmit *e;
    const MoeRowPlan *p;
    MoeVal row;         /* i64 */
    MoeVal slot;        /* leaf number, where there are col_sums */
    MoeVal *at_in;      /* by value: where its row starts in memory (external) */
    MoeVal *at_out;     /* by value: its output row */
    MoeVal *at_kept;    /* by value: its row buffer, else its output row */
    MoeVal *scalar;     /* by value: UNIFORM and SCALAR, once known */
    MoeVal *reg;        /* by value: vectors of the current iteration */
    MoeVal *sums[WAYS]; /* by op: accumulators of the current loop */
    int stage;
} Rows;

/* ---- where things lie ---- */

/* The row of operand x that goes with row r of the group: leading dims of size 1 (or missing ones)
 * repeat. */
static MoeVal operand_row(Rows *w, const MoeRowValue *x, MoeVal r) {
    MoeEmit *e = w->e;
    const MoeRowPlan *p = w->p;
    const MoeType *t = &x->v->type;
    int shift;
    MoeRowMatch match = moe_row_match(p, x, &shift);
    if (match != MOE_ROW_MIXED)
        return match == MOE_ROW_SAME ? r : moe_k64(e, 0);
    MoeVal row = moe_k64(e, 0), rest = r;
    int64_t step = 1;
    for (int d = p->lead_rank - 1; d >= shift; d--) {
        MoeVal size = moe_k64(e, p->lead[d]);
        if (t->dims[d - shift].size != 1)
            row = moe_iadd(e, row, moe_imul(e, moe_irem(e, rest, size), moe_k64(e, step)));
        rest = moe_idiv(e, rest, size);
        step *= t->dims[d - shift].size;
    }
    return row;
}

static MoeDtype kept_dtype(const MoeRowValue *x) {
    if (x->buf_out >= 0 && x->scratch < 0)
        return x->dtype;
    return x->dtype == MOE_I32 ? MOE_I32 : MOE_F32;
}

static void find_row_memory(Rows *w) {
    MoeEmit *e = w->e;
    for (int i = 0; i < w->p->n_values; i++) {
        const MoeRowValue *x = &w->p->values[i];
        if (x->cls == MOE_ROW_SEG || x->is_const)
            continue;
        int64_t bytes = x->cols * moe_dtype_bytes(x->dtype);
        if (x->def < 0)
            w->at_in[i] = x->cls == MOE_ROW_UNIFORM ? moe_emit_buf(e, x->buf_in)
                                                    : moe_at(e, moe_emit_buf(e, x->buf_in),
                                                             operand_row(w, x, w->row), bytes);
        if (x->buf_out >= 0 && x->cls != MOE_ROW_UNIFORM)
            w->at_out[i] = moe_at(e, moe_emit_buf(e, x->buf_out), w->row, bytes);
        w->at_kept[i] =
            x->scratch >= 0 ? moe_at_bytes(e, e->scratch, moe_k64(e, x->scratch)) : w->at_out[i];
        if (x->def < 0 && x->cls == MOE_ROW_SCALAR)
            w->scalar[i] = moe_row_sload(e, x->dtype, w->at_in[i], moe_k64(e, 0));
    }
}

/* ---- scalars of the row ---- */

static void set_scalar(Rows *w, int at, MoeVal v) {
    const MoeRowValue *x = &w->p->values[at];
    w->scalar[at] = v;
    if (x->kept || x->buf_out >= 0)
        moe_row_sstore(w->e, kept_dtype(x), v, w->at_kept[at], moe_k64(w->e, 0));
}

static MoeVal partial_at(Rows *w, const MoeRowOp *o) {
    MoeEmit *e = w->e;
    MoeVal base = moe_at_bytes(e, moe_emit_buf(e, w->p->n_bufs - 1), moe_k64(e, o->partial));
    return moe_at_bytes(e, base, moe_imul(e, w->slot, moe_k64(e, w->p->slot_bytes)));
}

static MoeRowMemory memory_of(Rows *w, int at) {
    const MoeRowValue *x = &w->p->values[at];
    if (x->is_const) { /* a constant read as a row of one element */
        MoeVal slot = moe_alloca(w->e, w->e->f32, 1);
        moe_row_sstore(w->e, x->dtype, w->scalar[at], slot, moe_k64(w->e, 0));
        return (MoeRowMemory){slot, x->dtype, x->cols};
    }
    if (x->def < 0)
        return (MoeRowMemory){w->at_in[at], x->dtype, x->cols};
    return (MoeRowMemory){w->at_kept[at], kept_dtype(x), x->cols};
}

static void emit_local(Rows *w, const MoeRowOp *o) {
    MoeEmit *e = w->e;
    MoeRowMemory out = memory_of(w, o->out), a = memory_of(w, o->in[0]);
    if (o->op->opcode == MOE_OP_TOPK)
        moe_row_emit_topk(e, a, out);
    else if (o->op->opcode == MOE_OP_TAKE)
        moe_row_emit_take(e, a, memory_of(w, o->in[1]), out);
    else
        moe_row_emit_put(e, a, memory_of(w, o->in[1]), out);
    if (w->p->values[o->out].cls == MOE_ROW_SCALAR)
        w->scalar[o->out] = moe_row_sload(e, out.dtype, out.at, moe_k64(e, 0));
}

/* Ops of the stage that are not part of a vector loop. */
static void emit_scalar_op(Rows *w, const MoeRowOp *o) {
    MoeEmit *e = w->e;
    MoeOpcode code = o->op->opcode;
    const MoeRowValue *out = &w->p->values[o->out];
    MoeVal in[3] = {NULL, NULL, NULL};
    if (out->cls == MOE_ROW_UNIFORM)
        return;
    if (moe_op_info(code)->kind == MOE_KIND_EW) {
        for (int n = 0; n < o->n_in; n++)
            in[n] = w->scalar[o->in[n]];
        set_scalar(w, o->out, moe_math_ew(e, o->op, in));
    } else if (code == MOE_OP_ROW_SUM) {
        set_scalar(w, o->out, LLVMBuildFAdd(e->b, moe_kf(e, 0.0), w->scalar[o->in[0]], ""));
    } else if (code == MOE_OP_ROW_MAX) {
        set_scalar(w, o->out, w->scalar[o->in[0]]);
    } else if (code == MOE_OP_COL_SUM) {
        MoeVal at = partial_at(w, o), zero = moe_k64(e, 0);
        MoeVal sum = LLVMBuildFAdd(e->b, moe_sload(e, MOE_F32, at, zero), w->scalar[o->in[0]], "");
        moe_sstore(e, MOE_F32, sum, at, zero);
    } else {
        emit_local(w, o);
    }
}

/* ---- vectors of the row ---- */

static MoeVal emit_ew(Rows *w, const MoeRowOp *o, MoeVal index);

static MoeVal vector_of(Rows *w, int at, MoeVal index) {
    MoeEmit *e = w->e;
    const MoeRowValue *x = &w->p->values[at];
    if (w->reg[at])
        return w->reg[at];
    if (x->cls != MOE_ROW_VECTOR) {
        w->reg[at] = moe_splat(e, w->scalar[at]);
    } else if (x->def < 0) {
        w->reg[at] = moe_row_vload(e, x->dtype, w->at_in[at], index, NULL);
    } else if (x->in_loop && !x->kept) {
        w->reg[at] = emit_ew(w, &w->p->ops[x->def], index); /* computed again */
    } else {
        w->reg[at] = moe_row_vload(e, kept_dtype(x), w->at_kept[at], index, NULL);
    }
    return w->reg[at];
}

static MoeVal emit_ew(Rows *w, const MoeRowOp *o, MoeVal index) {
    MoeVal in[3] = {NULL, NULL, NULL};
    for (int n = 0; n < o->n_in; n++)
        in[n] = vector_of(w, o->in[n], index);
    return moe_math_ew(w->e, o->op, in);
}

static bool in_loop_of(const MoeRowOp *o, int stage, int64_t cols) {
    return o->in_loop && o->stage == stage && o->cols == cols;
}

/* One vector at `index`; `way` chooses the accumulator; mask NULL: all lanes. */
static void emit_vector(Rows *w, int64_t cols, MoeVal index, int way, MoeVal mask) {
    MoeEmit *e = w->e;
    const MoeRowPlan *p = w->p;
    memset(w->reg, 0, (size_t)p->n_values * sizeof *w->reg);
    for (int i = 0; i < p->n_ops; i++) {
        const MoeRowOp *o = &p->ops[i];
        MoeOpcode code = o->op->opcode;
        if (!in_loop_of(o, w->stage, cols))
            continue;
        if (moe_op_info(code)->kind == MOE_KIND_EW) {
            w->reg[o->out] = emit_ew(w, o, index);
            continue;
        }
        MoeVal x = vector_of(w, o->in[0], index);
        if (code == MOE_OP_COL_SUM) {
            MoeVal at = partial_at(w, o);
            MoeVal sum = LLVMBuildFAdd(e->b, moe_vload(e, MOE_F32, at, index, NULL), x, "");
            moe_vstore(e, MOE_F32, sum, at, index, mask);
            continue;
        }
        bool sum = code == MOE_OP_ROW_SUM;
        if (mask)
            x = LLVMBuildSelect(e->b, mask, x, moe_vconst(e, sum ? 0.0 : -1.0 / 0.0), "");
        MoeVal *acc = &w->sums[way][i];
        *acc = sum ? LLVMBuildFAdd(e->b, *acc, x, "") : moe_math_max(e, *acc, x);
    }
    for (int i = 0; i < p->n_ops; i++) {
        const MoeRowValue *x = &p->values[p->ops[i].out];
        if (!in_loop_of(&p->ops[i], w->stage, cols) || !x->in_loop)
            continue;
        MoeVal v = w->reg[p->ops[i].out];
        if (x->buf_out >= 0)
            moe_row_vstore(e, x->dtype, v, w->at_out[p->ops[i].out], index, mask);
        if (x->scratch >= 0)
            moe_row_vstore(e, kept_dtype(x), v, w->at_kept[p->ops[i].out], index, NULL);
    }
}

static MoeVal tail_mask(MoeEmit *e, int64_t n) {
    return moe_mask(e, moe_k64(e, n));
}

/* Runs the vectors of a loop over `cols` columns; accumulators of the n reductions `ops` end in
 * w->sums. */
static void emit_columns(Rows *w, int64_t cols, const int *ops, int n) {
    MoeEmit *e = w->e;
    int64_t whole = cols / e->lanes, done = 0;
    if (whole > UNROLL_UP_TO) {
        MoeVal carried[MAX_SUMS * WAYS];
        MoeCarryLoop loop;
        int64_t rounds = whole / WAYS;
        for (int k = 0; k < n * WAYS; k++)
            carried[k] = w->sums[k % WAYS][ops[k / WAYS]];
        moe_carry_begin(e, &loop, moe_k64(e, 0), moe_k64(e, rounds * WAYS * e->lanes),
                        moe_k64(e, WAYS * e->lanes), carried, n * WAYS);
        for (int k = 0; k < n * WAYS; k++)
            w->sums[k % WAYS][ops[k / WAYS]] = carried[k];
        for (int way = 0; way < WAYS; way++)
            emit_vector(w, cols, moe_iadd(e, loop.l.index, moe_k64(e, way * e->lanes)), way, NULL);
        for (int k = 0; k < n * WAYS; k++)
            carried[k] = w->sums[k % WAYS][ops[k / WAYS]];
        moe_carry_end(e, &loop, carried);
        for (int k = 0; k < n * WAYS; k++)
            w->sums[k % WAYS][ops[k / WAYS]] = carried[k];
        done = rounds * WAYS;
    }
    for (; done < whole; done++)
        emit_vector(w, cols, moe_k64(e, done * e->lanes), (int)(done % WAYS), NULL);
    if (cols % e->lanes)
        emit_vector(w, cols, moe_k64(e, whole * e->lanes), (int)(whole % WAYS),
                    tail_mask(e, cols % e->lanes));
}

/* The accumulators that some vector reached, folded (0 + 1) + (2 + 3), then the lanes. */
static MoeVal fold_ways(Rows *w, int op, int64_t cols, bool sum) {
    MoeEmit *e = w->e;
    int64_t vectors = (cols + e->lanes - 1) / e->lanes;
    int used = vectors < WAYS ? (int)vectors : WAYS;
    MoeVal v[WAYS];
    for (int k = 0; k < used; k++)
        v[k] = w->sums[k][op];
    for (int n = used; n > 1; n = (n + 1) / 2)
        for (int k = 0; k < n; k += 2) {
            MoeVal a = v[k], b = k + 1 < n ? v[k + 1] : NULL;
            v[k / 2] = !b ? a : sum ? LLVMBuildFAdd(e->b, a, b, "") : moe_math_max(e, a, b);
        }
    return sum ? moe_hsum(e, v[0]) : moe_hmax(e, v[0]);
}

static void emit_loop(Rows *w, int64_t cols) {
    MoeEmit *e = w->e;
    const MoeRowPlan *p = w->p;
    int ops[MAX_SUMS], n = 0;
    for (int i = 0; i < p->n_ops; i++) {
        MoeOpcode code = p->ops[i].op->opcode;
        if (!in_loop_of(&p->ops[i], w->stage, cols) ||
            (code != MOE_OP_ROW_SUM && code != MOE_OP_ROW_MAX))
            continue;
        MOE_ASSERT(n < MAX_SUMS, "row: more than %d reductions in a loop", MAX_SUMS);
        ops[n++] = i;
        for (int k = 0; k < WAYS; k++)
            w->sums[k][i] = moe_vconst(e, code == MOE_OP_ROW_SUM ? 0.0 : -1.0 / 0.0);
    }
    emit_columns(w, cols, ops, n);
    for (int k = 0; k < n; k++) {
        const MoeRowOp *o = &p->ops[ops[k]];
        set_scalar(w, o->out, fold_ways(w, ops[k], cols, o->op->opcode == MOE_OP_ROW_SUM));
    }
}

static void emit_row(Rows *w) {
    const MoeRowPlan *p = w->p;
    find_row_memory(w);
    for (w->stage = 0; w->stage < p->n_stages; w->stage++) {
        for (int i = 0; i < p->n_ops; i++)
            if (!p->ops[i].in_loop && p->ops[i].stage == w->stage)
                emit_scalar_op(w, &p->ops[i]);
        for (int i = 0; i < p->n_ops; i++) {
            const MoeRowOp *o = &p->ops[i];
            bool first = o->in_loop && o->stage == w->stage;
            for (int k = 0; k < i && first; k++)
                first = !in_loop_of(&p->ops[k], w->stage, o->cols);
            if (first)
                emit_loop(w, o->cols);
        }
    }
}

/* ---- the kernel ---- */

static int64_t rows_per_task(const MoeRowPlan *p, int lanes) {
    int64_t work = 0;
    for (int i = 0; i < p->n_ops; i++) {
        const MoeRowOp *o = &p->ops[i];
        int64_t cols = o->cols > lanes ? o->cols : lanes;
        work += o->in_loop                     ? cols
                : o->op->opcode == MOE_OP_TOPK ? cols * moe_type_cols(&o->op->results[0]->type)
                                               : 4;
    }
    int64_t n = (1 << 16) / (work ? work : 1);
    return n < 1 ? 1 : n > 1024 ? 1024 : n;
}

static void zero_partials(Rows *w) {
    MoeEmit *e = w->e;
    for (int i = 0; i < w->p->n_ops; i++) {
        const MoeRowOp *o = &w->p->ops[i];
        if (o->op->opcode != MOE_OP_COL_SUM)
            continue;
        MoeLoop loop;
        moe_loop_begin(e, &loop, moe_k64(e, 0), moe_k64(e, o->cols), moe_k64(e, 1));
        moe_sstore(e, MOE_F32, moe_kf(e, 0.0), partial_at(w, o), loop.index);
        moe_loop_end(e, &loop);
    }
}

static void emit_tasks(MoeEmit *e, const MoeRowPlan *p, int64_t per_task) {
    moe_emit_tasks_body(e);
    MoeVal n;
    if (p->col_sums) {
        n = moe_row_emit_leaf_count(e, p);
    } else {
        MoeVal live = moe_isub(e, moe_row_live_rows(e, p), moe_row_live_first(e, p));
        n = moe_iceildiv(e, live, per_task);
    }
    if (p->uniform_outputs)
        n = moe_imax(e, n, moe_k64(e, 1));
    moe_emit_return(e, n);
}

static void emit_kernel(MoeArena *a, MoeEmit *e, const MoeRowPlan *p, int64_t per_task) {
    Rows w = {.e = e, .p = p};
    w.at_in = MOE_NEW_N(a, MoeVal, p->n_values);
    w.at_out = MOE_NEW_N(a, MoeVal, p->n_values);
    w.at_kept = MOE_NEW_N(a, MoeVal, p->n_values);
    w.scalar = MOE_NEW_N(a, MoeVal, p->n_values);
    w.reg = MOE_NEW_N(a, MoeVal, p->n_values);
    for (int k = 0; k < WAYS; k++)
        w.sums[k] = MOE_NEW_N(a, MoeVal, p->n_ops);
    moe_emit_kernel_body(e);
    moe_row_emit_uniform(e, p, w.scalar);
    MoeVal lo, hi;
    if (p->col_sums) {
        w.slot = e->task;
        moe_row_emit_leaf_rows(e, p, e->task, &lo, &hi);
        zero_partials(&w);
    } else {
        lo = moe_iadd(e, moe_row_live_first(e, p), moe_imul(e, e->task, moe_k64(e, per_task)));
        hi = moe_imin(e, moe_row_live_rows(e, p), moe_iadd(e, lo, moe_k64(e, per_task)));
    }
    MoeLoop rows;
    moe_loop_begin(e, &rows, lo, hi, moe_k64(e, 1));
    w.row = rows.index;
    emit_row(&w);
    moe_loop_end(e, &rows);
    moe_emit_end(e);
}

static void set_lanes(MoeEmit *e, int lanes) {
    e->lanes = lanes;
    e->v32 = LLVMVectorType(e->f32, (unsigned)lanes);
    e->vi32 = LLVMVectorType(e->i32, (unsigned)lanes);
    e->vbf16 = LLVMVectorType(e->i16, (unsigned)lanes);
}

void moe_row_emit_rows(MoeCpuTarget *t, const MoeRowPlan *p, MoeLowered *out) {
    MoeEmit e;
    const char *name;
    if (moe_emit_begin(t, p->key, "row", &e, &name)) {
        MoeArena *a = moe_arena_create();
        int64_t per_task = rows_per_task(p, p->lanes);
        set_lanes(&e, p->lanes);
        emit_tasks(&e, p, per_task);
        emit_kernel(a, &e, p, per_task);
        moe_arena_destroy(a);
    }
    moe_cpu_launch(out, name, p->refs, (size_t)p->n_bufs);
    for (int i = 0; i < p->n_ops; i++)
        if (p->ops[i].op->opcode == MOE_OP_COL_SUM)
            moe_row_emit_fold(t, p, &p->ops[i], out);
}

MoeRowRules moe_cpu_row_rules(const MoeCpuTarget *t) {
    return (MoeRowRules){.lanes = t->isa.lanes, .scalars_in_place = true};
}

int64_t moe_cpu_row_workspace(MoeCpuTarget *t, const MoeGroup *g) {
    MoeRowRules rules = moe_cpu_row_rules(t);
    return moe_row_workspace(&rules, g);
}

MoeStatus moe_cpu_row_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out) {
    MoeArena *a = moe_arena_create();
    MoeRowRules rules = moe_cpu_row_rules(t);
    const MoeRowPlan *p = moe_row_plan(a, g, &rules);
    if (p->flat)
        moe_row_emit_flat(t, p, out);
    else
        moe_row_emit_rows(t, p, out);
    moe_cpu_need_scratch(out, p->scratch);
    moe_arena_destroy(a);
    return NULL;
}
