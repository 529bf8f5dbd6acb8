/* Shape rules: declarations, elementwise ops, ops on rows, AdamW. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "ir/infer_util.h"

/* input, param, state, const: the type stands in the text; here it is only checked. */
const char *moe_infer_decl(MoeGraph *g, MoeOp *op) {
    const MoeType *t = &op->results[0]->type;
    const char *name = moe_op_info(op->opcode)->name;
    const char *problem = moe_type_check(t);
    if (problem)
        return moe_infer_fail(g, "type of %s: %s", name, problem);
    if (op->opcode == MOE_OP_INPUT)
        return NULL;
    if (t->kind == MOE_TYPE_SEGS || t->dims[0].seg)
        return moe_infer_fail(g, "type of %s: expected a tensor without ragged dims, found %s",
                              name, moe_type_text(g, t));
    if (op->opcode == MOE_OP_CONST) {
        double v = moe_attr_f(op, "value");
        if (t->rank != 1 || t->dims[0].size != 1 || t->dtype == MOE_BF16)
            return moe_infer_fail(g, "a const is f32[1] or i32[1], not %s", moe_type_text(g, t));
        if (t->dtype == MOE_I32 && !(v >= INT32_MIN && v <= INT32_MAX && v == floor(v)))
            return moe_infer_fail(g, "an i32 const needs a whole number within 32 bits");
        return NULL;
    }
    if (!moe_dtype_is_float(t->dtype))
        return moe_infer_fail(g, "a %s holds floats, not %s", name, moe_type_text(g, t));
    if (op->opcode != MOE_OP_PARAM)
        return NULL;
    const char *init = moe_attr_s(op, "init");
    if (strcmp(init, "normal") != 0 && strcmp(init, "ones") != 0 && strcmp(init, "zeros") != 0)
        return moe_infer_fail(g, "init is \"normal\", \"ones\" or \"zeros\", not \"%.40s\"", init);
    if (strcmp(init, "normal") == 0) {
        const MoeAttr *std = moe_attr(op, "std");
        if (!std || !(std->f >= 0) || isinf(std->f))
            return moe_infer_fail(g, "init = \"normal\" needs std, a finite number >= 0");
    }
    const char *star = strchr(moe_attr_s(op, "name"), '*');
    bool one_star = star && !strchr(star + 1, '*');
    if (moe_attr_i_or(op, "stacked", 0) ? !one_star || t->rank < 2 : star != NULL)
        return moe_infer_fail(g,
                              "stacked = 1 goes with one '*' in the name and rank >= 2; otherwise "
                              "the name holds no '*'");
    return NULL;
}

const char *moe_infer_none(MoeGraph *g, MoeOp *op) {
    (void)g;
    (void)op;
    return NULL;
}

const char *moe_infer_assign(MoeGraph *g, MoeOp *op) {
    const MoeOp *target = op->operands[0]->def;
    if (target->opcode != MOE_OP_PARAM && target->opcode != MOE_OP_STATE)
        return moe_infer_fail(g,
                              "assign needs a param or state as its first operand, found a result "
                              "of %s",
                              moe_op_info(target->opcode)->name);
    return moe_need_same_type(g, op, 0, 1);
}

/* The extent of one dim of a broadcast result: dims agree, or one of them is a static 1. */
static bool broadcast_dim(MoeDim a, MoeDim b, MoeDim *out) {
    bool a_repeats = !a.seg && a.size == 1;
    bool b_repeats = !b.seg && b.size == 1;
    *out = a_repeats ? b : a;
    return a_repeats || b_repeats || moe_dim_equal(a, b);
}

const char *moe_infer_ew2(MoeGraph *g, MoeOp *op) {
    int dtypes = op->opcode == MOE_OP_ADD ? IS_ANY : IS_FLOAT;
    CHECK(moe_need_tensor(g, op, 0, "a", dtypes, 0));
    CHECK(moe_need_tensor(g, op, 1, "b", dtypes, 0));
    CHECK(moe_need_same_dtype(g, op, 0, 1));
    const MoeType *a = operand_type(op, 0), *b = operand_type(op, 1);
    const MoeType *longer = a->rank >= b->rank ? a : b, *shorter = longer == a ? b : a;
    MoeType t = *longer;
    int shift = longer->rank - shorter->rank;
    for (int i = 0; i < shorter->rank; i++) {
        if (!broadcast_dim(longer->dims[shift + i], shorter->dims[i], &t.dims[shift + i]) ||
            (t.dims[shift + i].seg && shift + i > 0))
            return moe_infer_fail(g, "%s cannot broadcast %s and %s (dims align at the right)",
                                  moe_op_info(op->opcode)->name, moe_type_text(g, a),
                                  moe_type_text(g, b));
    }
    return set_result(op, 0, t);
}

const char *moe_infer_ew1(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "x", op->opcode == MOE_OP_SOFTMAX ? IS_F32 : IS_FLOAT, 0));
    const MoeType *x = operand_type(op, 0);
    if (op->opcode == MOE_OP_SOFTMAX && (x->dims[x->rank - 1].seg || moe_type_cols(x) == 0))
        return moe_infer_fail(g,
                              "softmax needs a last dim that is neither ragged nor empty, found %s",
                              moe_type_text(g, x));
    return set_result(op, 0, *x);
}

const char *moe_infer_convert(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "x", IS_ANY, 0));
    MoeType t = *operand_type(op, 0);
    const char *name = moe_attr_s(op, "to");
    MoeDtype to;
    if (!moe_dtype_from_name(name, &to))
        return moe_infer_fail(g, "convert: unknown dtype \"%.40s\"", name);
    bool ok = (t.dtype == MOE_F32 && to == MOE_BF16) || (t.dtype == MOE_BF16 && to == MOE_F32) ||
              (t.dtype == MOE_I32 && to == MOE_F32);
    if (!ok)
        return moe_infer_fail(g, "convert goes f32 <-> bf16 or i32 -> f32, not %s -> %s",
                              moe_dtype_name(t.dtype), moe_dtype_name(to));
    t.dtype = to;
    return set_result(op, 0, t);
}

/* x [1], [cols] or [rows,1] -> [rows, cols]; rows = 0: [cols]. */
const char *moe_infer_broadcast(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "x", IS_FLOAT, 0));
    CHECK(moe_need_attr(g, op, "rows", 0, MOE_MAX_ELEMENTS));
    CHECK(moe_need_attr(g, op, "cols", 0, MOE_MAX_ELEMENTS));
    const MoeType *x = operand_type(op, 0);
    MoeDim rows = moe_dim(moe_attr_i(op, "rows"));
    int64_t cols = moe_attr_i(op, "cols");
    bool has_rows = rows.size > 0;
    if (op->n_operands == 2) {
        CHECK(moe_need_segs(g, op, 1, "rows"));
        rows.seg = op->operands[1];
        has_rows = true; /* a ragged dim may have capacity 0 */
    }
    bool scalar_or_row =
        x->rank == 1 && !x->dims[0].seg && (x->dims[0].size == 1 || x->dims[0].size == cols);
    bool column =
        has_rows && x->rank == 2 && moe_dim_equal(x->dims[0], rows) && x->dims[1].size == 1;
    if (!scalar_or_row && !column)
        return moe_infer_fail(g,
                              "broadcast to rows %" PRId64 ", cols %" PRId64
                              " needs [1], [cols] or [rows, 1], found %s",
                              rows.size, cols, moe_type_text(g, x));
    return set_result(op, 0,
                      has_rows ? moe_type_2d(x->dtype, rows, cols) : moe_type_1d(x->dtype, cols));
}

/* f32[R,C] -> [R,1], f32[C] -> [1]. */
const char *moe_infer_row_reduce(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "x", IS_F32, 0));
    MoeType t = *operand_type(op, 0);
    if (t.rank > 2 || (t.rank == 1 && t.dims[0].seg))
        return moe_infer_fail(g, "%s takes [R,C] or a static [C], found %s",
                              moe_op_info(op->opcode)->name, moe_type_text(g, &t));
    if (op->opcode == MOE_OP_ROW_MAX && moe_type_cols(&t) == 0)
        return moe_infer_fail(g, "row_max of rows without elements: %s", moe_type_text(g, &t));
    t.dims[t.rank - 1] = moe_dim(1);
    return set_result(op, 0, t);
}

/* f32[T,E] -> i32[T,k] */
const char *moe_infer_topk(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "x", IS_F32, 2));
    const MoeType *x = operand_type(op, 0);
    CHECK(moe_need_attr(g, op, "k", 1, moe_type_cols(x)));
    return set_result(op, 0, moe_type_2d(MOE_I32, x->dims[0], moe_attr_i(op, "k")));
}

/* x f32[T,E], ids i32[T,k] -> f32[T,k] */
const char *moe_infer_take(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "x", IS_F32, 2));
    CHECK(moe_need_tensor(g, op, 1, "ids", IS_I32, 2));
    CHECK(moe_need_same_rows(g, op, 0, 1));
    MoeType t = *operand_type(op, 1);
    t.dtype = MOE_F32;
    return set_result(op, 0, t);
}

/* x f32[T,k], ids i32[T,k] -> f32[T,cols] */
const char *moe_infer_put(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "x", IS_F32, 2));
    CHECK(moe_need_tensor(g, op, 1, "ids", IS_I32, 2));
    CHECK(moe_need_same_rows(g, op, 0, 1));
    const MoeType *x = operand_type(op, 0);
    CHECK(moe_need_dim(g, op, 1, 1, moe_type_cols(x), "columns of x"));
    CHECK(moe_need_attr(g, op, "cols", moe_type_cols(x), MOE_MAX_ELEMENTS));
    return set_result(op, 0, moe_type_2d(MOE_F32, x->dims[0], moe_attr_i(op, "cols")));
}

/* x f32[T,C], w f32[C] -> f32[T,C] */
const char *moe_infer_rmsnorm(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "x", IS_F32, 2));
    CHECK(moe_need_tensor(g, op, 1, "w", IS_F32, 1));
    const MoeType *x = operand_type(op, 0);
    CHECK(moe_need_dim(g, op, 1, 0, moe_type_cols(x), "columns of x"));
    double eps = moe_attr_f(op, "eps");
    if (!(eps >= 0) || isinf(eps))
        return moe_infer_fail(g, "eps of rmsnorm must be a finite number >= 0");
    return set_result(op, 0, *x);
}

/* p, m, v, g f32 of one shape, eight f32[1] -> p', m', v' */
const char *moe_infer_adamw(MoeGraph *g, MoeOp *op) {
    for (int i = 0; i < 4; i++) {
        CHECK(moe_need_tensor(g, op, i, "p, m, v, g", IS_F32, 0));
        CHECK(moe_need_static(g, op, i, "p, m, v, g"));
        CHECK(moe_need_same_type(g, op, 0, i));
    }
    for (int i = 4; i < 12; i++) {
        CHECK(moe_need_tensor(g, op, i, "a scalar", IS_F32, 1));
        CHECK(moe_need_dim(g, op, i, 0, 1, "a scalar"));
    }
    for (int i = 0; i < 3; i++)
        set_result(op, i, *operand_type(op, 0));
    return NULL;
}
