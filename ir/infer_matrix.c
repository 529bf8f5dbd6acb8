/* Shape rules: reductions over rows, contractions, head and loss. T: token rows, R: expert rows. */
#include "base/mesh.h"
#include "ir/infer_util.h"

/* f32[T,C] -> f32[C] */
const char *moe_infer_col_sum(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "x", IS_F32, 2));
    CHECK(moe_need_ragged(g, op, 0, "x", 0));
    return set_result(op, 0, moe_type_1d(MOE_F32, moe_type_cols(operand_type(op, 0))));
}

/* f32[...] -> f32[1] */
const char *moe_infer_sum_squares(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "x", IS_F32, 0));
    CHECK(moe_need_static(g, op, 0, "x"));
    return set_result(op, 0, moe_type_1d(MOE_F32, 1));
}

/* accumulate: f32[...] -> the same */
const char *moe_infer_identity(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "x", IS_F32, 0));
    CHECK(moe_need_static(g, op, 0, "x"));
    return set_result(op, 0, *operand_type(op, 0));
}

/* i32[...] -> the same */
const char *moe_infer_batch_sum(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "x", IS_I32, 0));
    CHECK(moe_need_static(g, op, 0, "x"));
    return set_result(op, 0, *operand_type(op, 0));
}

/* a [T,k], b [n,k] (tb) or [k,n] -> f32[T,n]; grouped: rows over segs<E,V>, b with a leading [E].
 */
const char *moe_infer_matmul(MoeGraph *g, MoeOp *op) {
    bool tb = moe_attr_i(op, "tb"), grouped = moe_attr_i(op, "grouped");
    CHECK(moe_need_tensor(g, op, 0, "a", IS_FLOAT, 2));
    CHECK(moe_need_tensor(g, op, 1, "b", IS_FLOAT, grouped ? 3 : 2));
    CHECK(moe_need_same_dtype(g, op, 0, 1));
    CHECK(moe_need_static(g, op, 1, "b"));
    const MoeType *a = operand_type(op, 0), *b = operand_type(op, 1);
    if (grouped)
        CHECK(moe_need_ragged(g, op, 0, "a", b->dims[0].size));
    int first = grouped; /* first matrix dim of b */
    CHECK(moe_need_dim(g, op, 1, tb ? first + 1 : first, moe_type_cols(a), "columns of a"));
    return set_result(op, 0,
                      moe_type_2d(MOE_F32, a->dims[0], b->dims[tb ? first : first + 1].size));
}

/* dy [T,n], x [T,k] -> f32[n,k]; grouped, rows over segs<E,V>: f32[E,n,k]. */
const char *moe_infer_weight_grad(MoeGraph *g, MoeOp *op) {
    bool grouped = moe_attr_i(op, "grouped");
    CHECK(moe_need_tensor(g, op, 0, "dy", IS_FLOAT, 2));
    CHECK(moe_need_tensor(g, op, 1, "x", IS_FLOAT, 2));
    CHECK(moe_need_same_dtype(g, op, 0, 1));
    CHECK(moe_need_same_rows(g, op, 0, 1));
    CHECK(moe_need_ragged(g, op, 0, "dy", grouped ? 0 : 1));
    const MoeType *dy = operand_type(op, 0), *x = operand_type(op, 1);
    int64_t n = moe_type_cols(dy), k = moe_type_cols(x);
    return set_result(op, 0,
                      grouped ? moe_type_3d(MOE_F32, dy->dims[0].seg->type.groups, n, k)
                              : moe_type_2d(MOE_F32, moe_dim(n), k));
}

/* h [T,C], w [N,C], labels i32[T] */
static const char *check_head(MoeGraph *g, const MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "h", IS_FLOAT, 2));
    CHECK(moe_need_tensor(g, op, 1, "w", IS_FLOAT, 2));
    CHECK(moe_need_tensor(g, op, 2, "labels", IS_I32, 1));
    CHECK(moe_need_same_dtype(g, op, 0, 1));
    CHECK(moe_need_static(g, op, 1, "w"));
    CHECK(moe_need_dim(g, op, 1, 1, moe_type_cols(operand_type(op, 0)), "columns of h"));
    if (operand_type(op, 1)->dims[0].size < 1)
        return moe_infer_fail(g, "%s needs at least one class, found w %s",
                              moe_op_info(op->opcode)->name, moe_type_text(g, operand_type(op, 1)));
    return moe_need_same_rows(g, op, 0, 2);
}

/* -> nll f32[T,1] */
const char *moe_infer_xent(MoeGraph *g, MoeOp *op) {
    CHECK(check_head(g, op));
    return set_result(op, 0, moe_type_2d(MOE_F32, operand_type(op, 0)->dims[0], 1));
}

/* with dnll f32[T,1] -> nll f32[T,1], dh f32[T,C], dw f32[N,C] */
const char *moe_infer_xent_grad(MoeGraph *g, MoeOp *op) {
    CHECK(check_head(g, op));
    CHECK(moe_need_ragged(g, op, 0, "h", 1));
    CHECK(moe_need_tensor(g, op, 3, "dnll", IS_F32, 2));
    CHECK(moe_need_same_rows(g, op, 0, 3));
    CHECK(moe_need_dim(g, op, 3, 1, 1, "one loss a row"));
    MoeType dh = *operand_type(op, 0), dw = *operand_type(op, 1);
    dh.dtype = dw.dtype = MOE_F32;
    set_result(op, 0, moe_type_2d(MOE_F32, dh.dims[0], 1));
    set_result(op, 1, dh);
    return set_result(op, 2, dw);
}

/* h [T,C], w [N,C], labels i32[T], part i32[1] -> f32[T,3*parts] */
const char *moe_infer_xent_part(MoeGraph *g, MoeOp *op) {
    CHECK(check_head(g, op));
    CHECK(moe_need_part(g, op, 3));
    CHECK(moe_need_attr(g, op, "parts", 1, MOE_MAX_RANKS));
    return set_result(
        op, 0, moe_type_2d(MOE_F32, operand_type(op, 0)->dims[0], 3 * moe_attr_i(op, "parts")));
}

/* s f32[T,3*parts], labels i32[T] -> nll f32[T,1], lse f32[T,1] */
const char *moe_infer_xent_join(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "s", IS_F32, 2));
    CHECK(moe_need_tensor(g, op, 1, "labels", IS_I32, 1));
    CHECK(moe_need_same_rows(g, op, 0, 1));
    const MoeType *s = operand_type(op, 0);
    if (moe_type_cols(s) < 3 || moe_type_cols(s) % 3)
        return moe_infer_fail(g, "cross_entropy_join needs three columns a part, found %s",
                              moe_type_text(g, s));
    set_result(op, 0, moe_type_2d(MOE_F32, s->dims[0], 1));
    return set_result(op, 1, moe_type_2d(MOE_F32, s->dims[0], 1));
}

/* with lse f32[T,1], dnll f32[T,1] -> dh f32[T,C], dw f32[N,C] */
const char *moe_infer_xent_part_grad(MoeGraph *g, MoeOp *op) {
    static const char *const what[] = {[4] = "lse", [5] = "dnll"};
    CHECK(check_head(g, op));
    CHECK(moe_need_ragged(g, op, 0, "h", 1));
    CHECK(moe_need_part(g, op, 3));
    for (int i = 4; i < 6; i++) {
        CHECK(moe_need_tensor(g, op, i, what[i], IS_F32, 2));
        CHECK(moe_need_same_rows(g, op, 0, i));
        CHECK(moe_need_dim(g, op, i, 1, 1, "one number a row"));
    }
    MoeType dh = *operand_type(op, 0), dw = *operand_type(op, 1);
    dh.dtype = dw.dtype = MOE_F32;
    set_result(op, 0, dh);
    return set_result(op, 1, dw);
}
