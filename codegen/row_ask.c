/* What the target answers about row groups: whether fuse may add an op, and whether memplan may
 * reuse a buffer. */
#include "codegen/row_plan.h"

static bool is_reduce(MoeOpcode o) {
    return o == MOE_OP_ROW_SUM || o == MOE_OP_ROW_MAX;
}
static bool is_elementwise(MoeOpcode o) {
    return moe_op_info(o)->kind == MOE_KIND_EW;
}

static bool is_row_op(const MoeOp *op) {
    MoeKind k = moe_op_info(op->opcode)->kind;
    return k == MOE_KIND_EW || k == MOE_KIND_ROW || op->opcode == MOE_OP_COL_SUM;
}

/* An elementwise op on single elements. */
static bool is_single(const MoeOp *op) {
    const MoeType *t = moe_row_type(op);
    return is_elementwise(op->opcode) && moe_type_elements(t) == 1 && !moe_rows_seg(t);
}

static bool same_rows(const MoeType *a, const MoeType *b) {
    if (a->rank != b->rank || moe_rows_seg(a) != moe_rows_seg(b))
        return false;
    for (int d = 0; d + 1 < a->rank; d++)
        if (a->dims[d].size != b->dims[d].size)
            return false;
    /* Rank 1 has no rows: vectors of different lengths do not mix, but a sum over one gives a
     * single element. */
    return a->rank > 1 || moe_type_elements(a) == moe_type_elements(b);
}

static bool reads(const MoeOp *op, const MoeValue *v) {
    for (int i = 0; i < op->n_operands; i++)
        if (op->operands[i] == v)
            return true;
    return false;
}

bool moe_row_can_join(MoeOp *const *ops, size_t n_ops, const MoeOp *op) {
    enum { MAX_OPS = 64, MAX_BUFS = 48, MAX_SUMS = 8 };
    if (!is_row_op(op) || n_ops >= MAX_OPS)
        return false;
    bool single = is_single(op), all_single = true;
    int sums = !is_elementwise(op->opcode);
    size_t bufs = 2 * (size_t)op->n_operands + 2;
    const MoeType *rows = NULL;
    for (size_t i = 0; i < n_ops; i++) {
        if (!is_row_op(ops[i]))
            return false;
        if (ops[i]->opcode == MOE_OP_COL_SUM && reads(op, ops[i]->results[0]))
            return false;
        sums += is_reduce(ops[i]->opcode) || ops[i]->opcode == MOE_OP_COL_SUM;
        bufs += (size_t)ops[i]->n_operands + 1;
        if (!is_single(ops[i])) {
            all_single = false;
            rows = moe_row_type(ops[i]);
        }
    }
    if (sums > MAX_SUMS || bufs / 2 > MAX_BUFS)
        return false;
    if (single)
        return true;
    if (all_single) /* scalars computed for this op alone may come along */
        return op->n_operands > 0;
    return same_rows(rows, moe_row_type(op));
}

bool moe_row_can_alias(const MoeRowRules *rules, const MoeGroup *g, const MoeValue *input,
                       const MoeValue *output) {
    MoeArena *arena = moe_arena_create();
    const MoeRowPlan *p = moe_row_plan(arena, g, rules);
    int i = moe_row_find(p, input), o = moe_row_find(p, output);
    bool ok = i >= 0 && o >= 0 && p->values[i].def < 0 && p->values[o].buf_out >= 0;
    if (ok) {
        const MoeRowValue *in = &p->values[i], *out = &p->values[o];
        ok = in->cls == out->cls && (in->cls == MOE_ROW_VECTOR || in->cls == MOE_ROW_SCALAR) &&
             in->cols == out->cols && moe_dtype_bytes(in->dtype) == moe_dtype_bytes(out->dtype) &&
             moe_type_elements(&in->v->type) == moe_type_elements(&out->v->type) &&
             moe_rows_seg(&in->v->type) == moe_rows_seg(&out->v->type);
        /* Row scalars are read before anything of the row is written, where one thread has the row; a vector must not
         * be read after its place is. */
        if (ok && !p->flat && in->cls == MOE_ROW_VECTOR)
            ok = out->in_loop && in->last_read <= out->stage;
        if (ok && !p->flat && in->cls == MOE_ROW_SCALAR)
            ok = rules->scalars_in_place && in->last_read != MOE_ROW_READ_LATE;
    }
    moe_arena_destroy(arena);
    return ok;
}

int64_t moe_row_workspace(const MoeRowRules *rules, const MoeGroup *g) {
    MoeArena *a = moe_arena_create();
    int64_t n = moe_row_plan(a, g, rules)->workspace;
    moe_arena_destroy(a);
    return n;
}

int64_t moe_row_workspace_expected(const MoeRowRules *rules, const MoeGroup *g) {
    MoeArena *a = moe_arena_create();
    const MoeRowPlan *p = moe_row_plan(a, g, rules);
    int64_t rows = p->seg < 0 ? p->rows : moe_segs_expected_rows(p->values[p->seg].v, p->rows);
    int64_t n = moe_row_workspace_for(p, rows);
    moe_arena_destroy(a);
    return n;
}
