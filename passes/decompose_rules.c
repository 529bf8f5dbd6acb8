/* What each composite is in terms of primitives. In: the op. Out: ops at the end of the graph, one
 * value a result. */
#include "base/assert.h"
#include "ir/op.h"
#include "passes/decompose.h"

void moe_decompose_none(MoeGraph *g, const MoeOp *op, MoeValue **out) {
    (void)g, (void)out;
    MOE_ASSERT(false, "decompose: %s is a primitive", moe_op_info(op->opcode)->name);
}

static MoeValue *add(MoeGraph *g, MoeValue *a, MoeValue *b) {
    return moe_build2(g, MOE_OP_ADD, a, b);
}
static MoeValue *sub(MoeGraph *g, MoeValue *a, MoeValue *b) {
    return moe_build2(g, MOE_OP_SUB, a, b);
}
static MoeValue *mul(MoeGraph *g, MoeValue *a, MoeValue *b) {
    return moe_build2(g, MOE_OP_MUL, a, b);
}
static MoeValue *div_(MoeGraph *g, MoeValue *a, MoeValue *b) {
    return moe_build2(g, MOE_OP_DIV, a, b);
}

/* silu(x) = x * sigmoid(x) */
void moe_decompose_silu(MoeGraph *g, const MoeOp *op, MoeValue **out) {
    MoeValue *x = op->operands[0];
    out[0] = mul(g, x, moe_build1(g, MOE_OP_SIGMOID, x));
}

/* softmax(x) = e / sum e, e = exp(x - max x), over the last dim */
void moe_decompose_softmax(MoeGraph *g, const MoeOp *op, MoeValue **out) {
    MoeValue *x = op->operands[0];                           /* (R, C) */
    MoeValue *top = moe_build1(g, MOE_OP_ROW_MAX, x);        /* (R, 1) */
    MoeValue *e = moe_build1(g, MOE_OP_EXP, sub(g, x, top)); /* (R, C) */
    out[0] = div_(g, e, moe_build1(g, MOE_OP_ROW_SUM, e));
}

/* rmsnorm(x, w) = w * x / sqrt(mean(x^2) + eps) */
void moe_decompose_rmsnorm(MoeGraph *g, const MoeOp *op, MoeValue **out) {
    MoeValue *x = op->operands[0], *w = op->operands[1];         /* (T, C), (C) */
    MoeValue *sum = moe_build1(g, MOE_OP_ROW_SUM, mul(g, x, x)); /* (T, 1) */
    MoeValue *mean = mul(g, sum, moe_build_const(g, 1.0 / (double)moe_type_cols(&x->type)));
    MoeValue *r =
        moe_build1(g, MOE_OP_RSQRT, add(g, mean, moe_build_const(g, moe_attr_f(op, "eps"))));
    out[0] = mul(g, mul(g, x, r), w);
}

/* AdamW (Loshchilov and Hutter, arXiv:1711.05101) with the gradient scaled by the clip coefficient
 * first. */
void moe_decompose_adamw(MoeGraph *g, const MoeOp *op, MoeValue **out) {
    MoeValue *const *in = op->operands;
    MoeValue *p = in[0], *m = in[1], *v = in[2];
    MoeValue *clip = in[4], *lr = in[5], *beta1 = in[6], *beta2 = in[7],
             *eps = in[8]; /* (1) each */
    MoeValue *decay = in[9], *bias1 = in[10], *bias2 = in[11];
    /* One op a line: the order in which C evaluates arguments would decide the order of the ops. */
    MoeValue *one = moe_build_const(g, 1.0);
    MoeValue *grad = mul(g, in[3], clip);

    MoeValue *m_kept = mul(g, m, beta1);
    MoeValue *m_share = sub(g, one, beta1);
    MoeValue *new_m = add(g, m_kept, mul(g, grad, m_share));

    MoeValue *v_kept = mul(g, v, beta2);
    MoeValue *v_share = sub(g, one, beta2);
    MoeValue *new_v = add(g, v_kept, mul(g, mul(g, grad, grad), v_share));

    MoeValue *p_kept = mul(g, p, sub(g, one, mul(g, lr, decay)));
    MoeValue *root = moe_build1(g, MOE_OP_SQRT, new_v);
    MoeValue *bound = add(g, div_(g, root, moe_build1(g, MOE_OP_SQRT, bias2)), eps);
    MoeValue *step = div_(g, mul(g, new_m, div_(g, lr, bias1)), bound);
    out[0] = sub(g, p_kept, step);
    out[1] = new_m;
    out[2] = new_v;
}
