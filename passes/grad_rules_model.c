/* Gradient rules of the contractions, the experts' row moves, the sequence ops and the loss.
 * In: an op and the cotangents of its results. Out: ops at the end of the graph. */
#include "base/assert.h"
#include "passes/grad_rules.h"

static MoeStatus give(MoeGrad *gr, MoeValue *v, MoeValue *c) {
    return moe_grad_wants(gr, v) ? moe_grad_give(gr, v, c) : NULL;
}

/* y = a b: da = dy b', db = dy' a. With bf16 operands dy is rounded to bf16 once, for both. */
MoeStatus moe_grad_matmul(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    MoeValue *a = op->operands[0], *b = op->operands[1]; /* (T, k), (n, k) if tb, else (k, n) */
    int64_t tb = moe_attr_i(op, "tb"), grouped = moe_attr_i(op, "grouped");
    MoeValue *dy = moe_build_convert(gr->g, d[0], a->type.dtype); /* (T, n) */
    if (moe_grad_wants(gr, a))
        MOE_TRY(moe_grad_give(gr, a,
                              moe_build(gr->g, MOE_OP_MATMUL, (MoeValue *[]){dy, b}, 2,
                                        moe_ai("tb", !tb), moe_ai("grouped", grouped), MOE_END)));
    if (moe_grad_wants(gr, b)) {
        MoeValue *operands[] = {tb ? dy : a, tb ? a : dy};
        MOE_TRY(moe_grad_give(gr, b,
                              moe_build(gr->g, MOE_OP_WEIGHT_GRAD, operands, 2,
                                        moe_ai("grouped", grouped), MOE_END)));
    }
    return NULL;
}

/* The row moves come in pairs, each the other's transpose: (x, src, inv) -> opcode(d, src, inv). */
static MoeStatus moved(MoeGrad *gr, MoeOp *op, MoeValue *d, MoeOpcode opcode) {
    MoeValue *operands[] = {d, op->operands[1], op->operands[2]};
    if (!moe_grad_wants(gr, op->operands[0]))
        return NULL;
    return moe_grad_give(gr, op->operands[0], moe_build(gr->g, opcode, operands, 3, MOE_END));
}

MoeStatus moe_grad_dispatch(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    return moved(gr, op, d[0], MOE_OP_GATHER_SUM);
}

MoeStatus moe_grad_gather_sum(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    return moved(gr, op, d[0], MOE_OP_DISPATCH);
}

MoeStatus moe_grad_dispatch_weight(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    return moved(gr, op, d[0], MOE_OP_COLLECT_WEIGHT);
}

MoeStatus moe_grad_collect_weight(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    return moved(gr, op, d[0], MOE_OP_DISPATCH_WEIGHT);
}

MoeStatus moe_grad_embedding(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    MoeValue *table = op->operands[0], *operands[3] = {d[0], op->operands[1]}; /* (N, C) */
    if (!moe_grad_wants(gr, table))
        return NULL;
    if (op->n_operands > 2)
        operands[2] = op->operands[2];
    return moe_grad_give(gr, table,
                         moe_build(gr->g, MOE_OP_EMBEDDING_GRAD, operands, op->n_operands,
                                   moe_ai("vocab", table->type.dims[0].size), MOE_END));
}

/* A rotation's transpose turns back. */
MoeStatus moe_grad_rope(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    if (!moe_grad_wants(gr, op->operands[0]))
        return NULL;
    MoeOp *back = moe_op_clone(gr->g, op, (MoeValue *[]){d[0]});
    moe_attr_set_i(gr->g, back, "inverse", !moe_attr_i(op, "inverse"));
    return moe_grad_give(gr, op->operands[0], back->results[0]);
}

MoeStatus moe_grad_attention(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    if (d[1])
        return moe_error(MOE_E_INPUT, "the lse of op attention has no gradient, but the loss "
                                      "depends on trained parameters through it");
    MoeValue *q = op->operands[0], *k = op->operands[1], *v = op->operands[2];
    MoeValue *dout = moe_build_convert(gr->g, d[0], q->type.dtype);
    MoeValue *operands[] = {q, k, v, op->results[0], op->results[1], dout};
    MoeOp *back = moe_op_build(
        gr->g, MOE_OP_ATTENTION_GRAD, operands, 6, moe_ai("heads", moe_attr_i(op, "heads")),
        moe_ai("kv_heads", moe_attr_i(op, "kv_heads")),
        moe_ai("head_dim", moe_attr_i(op, "head_dim")), moe_ai("seq", moe_attr_i(op, "seq")),
        moe_ai("window", moe_attr_i(op, "window")), moe_af("scale", moe_attr_f(op, "scale")),
        MOE_END);
    MOE_TRY(give(gr, q, back->results[0]));
    MOE_TRY(give(gr, k, back->results[1]));
    return give(gr, v, back->results[2]);
}

/* The gradient op computes the loss too, from the same logits: it takes the forward op's place as
 * the definition of nll, and the forward op, whose result no longer points back at it, is dropped
 * by moe_grad_graph. */
MoeStatus moe_grad_linear_cross_entropy(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    MoeValue *h = op->operands[0], *w = op->operands[1], *nll = op->results[0];
    MoeValue *operands[] = {h, w, op->operands[2], d[0]};
    MoeOp *both = moe_op_build(gr->g, MOE_OP_LINEAR_CROSS_ENTROPY_GRAD, operands, 4, MOE_END);
    MOE_ASSERT(moe_type_equal(&nll->type, &both->results[0]->type), "grad: nll changes type");
    both->results[0] = nll;
    nll->def = both;
    nll->result = 0;
    MOE_TRY(give(gr, h, both->results[1]));
    return give(gr, w, both->results[2]);
}
