/* Shape rules: embedding, rotary positions, attention. T: token rows; heads H, KV heads G, head
 * width D. */
#include <inttypes.h>
#include <math.h>

#include "base/mem.h"
#include "ir/infer_util.h"

/* Operand 2, if there: part i32[1]. */
static const char *check_part(MoeGraph *g, const MoeOp *op) {
    return op->n_operands > 2 ? moe_need_part(g, op, 2) : NULL;
}

/* table f32[N,C], ids i32[T] (, part i32[1]) -> f32[T,C] */
const char *moe_infer_embedding(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "table", IS_F32, 2));
    CHECK(moe_need_static(g, op, 0, "table"));
    CHECK(moe_need_tensor(g, op, 1, "ids", IS_I32, 1));
    CHECK(check_part(g, op));
    return set_result(
        op, 0,
        moe_type_2d(MOE_F32, operand_type(op, 1)->dims[0], moe_type_cols(operand_type(op, 0))));
}

/* dy f32[T,C], ids i32[T] (, part i32[1]) -> f32[vocab,C] */
const char *moe_infer_embedding_grad(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "dy", IS_F32, 2));
    CHECK(moe_need_tensor(g, op, 1, "ids", IS_I32, 1));
    CHECK(moe_need_same_rows(g, op, 0, 1));
    CHECK(moe_need_ragged(g, op, 0, "dy", 1));
    CHECK(moe_need_attr(g, op, "vocab", 1, INT32_MAX));
    CHECK(check_part(g, op));
    return set_result(
        op, 0,
        moe_type_2d(MOE_F32, moe_dim(moe_attr_i(op, "vocab")), moe_type_cols(operand_type(op, 0))));
}

/* Columns of heads: heads_key * head_dim. */
static const char *need_heads(MoeGraph *g, const MoeOp *op, int i, const char *heads_key) {
    int64_t cols = 0;
    if (!moe_mul_i64(moe_attr_i(op, heads_key), moe_attr_i(op, "head_dim"), &cols))
        return moe_infer_fail(g, "%s * head_dim overflows", heads_key);
    return moe_need_dim(g, op, i, 1, cols,
                        heads_key[0] == 'k' ? "kv_heads * head_dim" : "heads * head_dim");
}

/* x f32[T,H*D] -> the same */
const char *moe_infer_rope(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "x", IS_F32, 2));
    CHECK(moe_need_attr(g, op, "heads", 1, INT32_MAX));
    CHECK(moe_need_attr(g, op, "head_dim", 2, INT32_MAX));
    CHECK(moe_need_attr(g, op, "seq", 1, INT32_MAX));
    if (moe_attr_i(op, "head_dim") % 2)
        return moe_infer_fail(g, "rope turns pairs: head_dim must be even, found %" PRId64,
                              moe_attr_i(op, "head_dim"));
    double theta = moe_attr_f(op, "theta");
    if (!(theta > 0) || isinf(theta))
        return moe_infer_fail(g, "theta of rope must be a finite number > 0");
    CHECK(need_heads(g, op, 0, "heads"));
    return set_result(op, 0, *operand_type(op, 0));
}

/* q [T,H*D], k and v [T,G*D], one float dtype. */
static const char *check_qkv(MoeGraph *g, const MoeOp *op) {
    static const char *const what[] = {"q", "k", "v"};
    CHECK(moe_need_attr(g, op, "heads", 1, INT32_MAX));
    CHECK(moe_need_attr(g, op, "kv_heads", 1, INT32_MAX));
    CHECK(moe_need_attr(g, op, "head_dim", 1, INT32_MAX));
    CHECK(moe_need_attr(g, op, "seq", 1, INT32_MAX));
    CHECK(moe_need_attr(g, op, "window", 0, INT32_MAX));
    int64_t heads = moe_attr_i(op, "heads"), kv_heads = moe_attr_i(op, "kv_heads");
    if (heads % kv_heads)
        return moe_infer_fail(g, "kv_heads must divide heads, found %" PRId64 " and %" PRId64,
                              kv_heads, heads);
    if (!isfinite(moe_attr_f(op, "scale")))
        return moe_infer_fail(g, "scale of attention must be finite");
    for (int i = 0; i < 3; i++) {
        CHECK(moe_need_tensor(g, op, i, what[i], IS_FLOAT, 2));
        CHECK(moe_need_same_dtype(g, op, 0, i));
        CHECK(moe_need_same_rows(g, op, 0, i));
        CHECK(need_heads(g, op, i, i ? "kv_heads" : "heads"));
    }
    return NULL;
}

/* -> o (q's type), lse f32[T,H] */
const char *moe_infer_attention(MoeGraph *g, MoeOp *op) {
    CHECK(check_qkv(g, op));
    const MoeType *q = operand_type(op, 0);
    set_result(op, 0, *q);
    return set_result(op, 1, moe_type_2d(MOE_F32, q->dims[0], moe_attr_i(op, "heads")));
}

/* q, k, v, o, lse, do -> dq, dk, dv in f32 */
const char *moe_infer_attention_grad(MoeGraph *g, MoeOp *op) {
    CHECK(check_qkv(g, op));
    CHECK(moe_need_same_type(g, op, 0, 3));
    CHECK(moe_need_tensor(g, op, 4, "lse", IS_F32, 2));
    CHECK(moe_need_same_rows(g, op, 0, 4));
    CHECK(moe_need_dim(g, op, 4, 1, moe_attr_i(op, "heads"), "heads"));
    CHECK(moe_need_same_type(g, op, 0, 5));
    for (int i = 0; i < 3; i++) {
        MoeType t = *operand_type(op, i);
        t.dtype = MOE_F32;
        set_result(op, i, t);
    }
    return NULL;
}
