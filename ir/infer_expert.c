/* Shape rules: routing rows to experts and moving them. T: token rows (ragged over segs<1,V>), R:
 * expert rows (ragged over segs<E,V>), K: experts a token. */
#include "ir/infer_util.h"

/* ids i32[T,K] -> seg segs<E,V>, src i32[r<=T*K @seg], inv i32[T,K] */
const char *moe_infer_route_plan(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "ids", IS_I32, 2));
    CHECK(moe_need_ragged(g, op, 0, "ids", 1));
    CHECK(moe_need_attr(g, op, "experts", 1, MOE_MAX_SEGS_ENTRIES));
    const MoeType *ids = operand_type(op, 0);
    MoeType src = moe_type_1d(MOE_I32, moe_type_elements(ids));
    src.dims[0].seg = op->results[0]; /* result 1 is ragged over result 0 */
    set_result(op, 0, moe_type_segs(moe_attr_i(op, "experts"), ids->dims[0].seg->type.shards));
    set_result(op, 1, src);
    return set_result(op, 2, *ids);
}

/* segs<E,V> -> i32[E] */
const char *moe_infer_expert_counts(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_segs(g, op, 0, "seg"));
    return set_result(op, 0, moe_type_1d(MOE_I32, operand_type(op, 0)->groups));
}

/* segs<G,V> -> i32[1] */
const char *moe_infer_row_count(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_segs(g, op, 0, "seg"));
    return set_result(op, 0, moe_type_1d(MOE_I32, 1));
}

/* labels i32[T] -> i32[1] */
const char *moe_infer_count_valid(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "labels", IS_I32, 1));
    return set_result(op, 0, moe_type_1d(MOE_I32, 1));
}

/* Operands 1 and 2: src i32[r<=T*K @seg], inv i32[T,K]. */
static const char *check_route(MoeGraph *g, const MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 1, "src", IS_I32, 1));
    CHECK(moe_need_ragged(g, op, 1, "src", 0));
    CHECK(moe_need_tensor(g, op, 2, "inv", IS_I32, 2));
    const MoeType *src = operand_type(op, 1), *inv = operand_type(op, 2);
    if (inv->dims[1].size < 1 || src->dims[0].size != moe_type_elements(inv))
        return moe_infer_fail(
            g, "%s: src must have room for T*K rows of inv [T,K], found %s and %s",
            moe_op_info(op->opcode)->name, moe_type_text(g, src), moe_type_text(g, inv));
    return NULL;
}

/* x [T,C], src, inv -> [R,C] */
const char *moe_infer_dispatch(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "x", IS_FLOAT, 2));
    CHECK(check_route(g, op));
    CHECK(moe_need_same_rows(g, op, 0, 2));
    const MoeType *x = operand_type(op, 0);
    return set_result(op, 0, moe_type_2d(x->dtype, operand_type(op, 1)->dims[0], moe_type_cols(x)));
}

/* y f32[R,C], src, inv -> f32[T,C] */
const char *moe_infer_gather_sum(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "y", IS_F32, 2));
    CHECK(check_route(g, op));
    CHECK(moe_need_same_rows(g, op, 0, 1));
    return set_result(
        op, 0,
        moe_type_2d(MOE_F32, operand_type(op, 2)->dims[0], moe_type_cols(operand_type(op, 0))));
}

/* w f32[T,K], src, inv -> f32[R,1] */
const char *moe_infer_dispatch_weight(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "w", IS_F32, 2));
    CHECK(check_route(g, op));
    CHECK(moe_need_same_rows(g, op, 0, 2));
    CHECK(moe_need_dim(g, op, 0, 1, moe_type_cols(operand_type(op, 2)), "columns of inv"));
    return set_result(op, 0, moe_type_2d(MOE_F32, operand_type(op, 1)->dims[0], 1));
}

/* s f32[R,1], src, inv -> f32[T,K] */
const char *moe_infer_collect_weight(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "s", IS_F32, 2));
    CHECK(check_route(g, op));
    CHECK(moe_need_same_rows(g, op, 0, 1));
    CHECK(moe_need_dim(g, op, 0, 1, 1, "one weight a row"));
    MoeType t = *operand_type(op, 2);
    t.dtype = MOE_F32;
    return set_result(op, 0, t);
}
