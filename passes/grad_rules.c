/* Gradient rules of elementwise, row and row-reducing ops, and what all rules share: adding
 * contributions, summing them down to the shape of a broadcast operand, repeating them up to the
 * shape of a summed one. In: an op and the cotangents of its results. Out: ops at the end of the
 * graph. */
#include "base/assert.h"
#include "passes/grad_rules.h"

static MoeValue *add(MoeGrad *gr, MoeValue *a, MoeValue *b) {
    return moe_build2(gr->g, MOE_OP_ADD, a, b);
}
static MoeValue *sub(MoeGrad *gr, MoeValue *a, MoeValue *b) {
    return moe_build2(gr->g, MOE_OP_SUB, a, b);
}
static MoeValue *mul(MoeGrad *gr, MoeValue *a, MoeValue *b) {
    return moe_build2(gr->g, MOE_OP_MUL, a, b);
}
static MoeValue *neg(MoeGrad *gr, MoeValue *a) {
    return moe_build1(gr->g, MOE_OP_NEG, a);
}

bool moe_grad_wants(const MoeGrad *gr, const MoeValue *v) {
    return v->id < gr->n_ids && gr->active[v->id];
}

MoeValue *moe_grad_const(MoeGrad *gr, double value) {
    for (size_t i = 0; i < gr->n_consts; i++)
        if (gr->consts[i].value == value)
            return gr->consts[i].v;
    int layer = gr->g->layer;
    gr->g->layer = -1; /* shared between layers */
    MoeValue *v = moe_build_const(gr->g, value);
    gr->g->layer = layer;
    if (gr->n_consts < MOE_GRAD_CONSTS) {
        gr->consts[gr->n_consts].value = value;
        gr->consts[gr->n_consts++].v = v;
    }
    return v;
}

MoeValue *moe_grad_f32(MoeGrad *gr, MoeValue *v) {
    return moe_build_convert(gr->g, v, MOE_F32);
}

static MoeValue *broadcast(MoeGrad *gr, MoeValue *x, int64_t rows, int64_t cols,
                           const MoeValue *seg) {
    /* A type only reads its segs value; as an operand it is one like any other. */
    MoeValue *operands[] = {x, (MoeValue *)seg};
    return moe_build(gr->g, MOE_OP_BROADCAST, operands, seg ? 2 : 1, moe_ai("rows", rows),
                     moe_ai("cols", cols), MOE_END);
}

MoeValue *moe_grad_expand(MoeGrad *gr, MoeValue *d, const MoeType *t) {
    if (moe_type_same_shape(&d->type, t))
        return d;
    MOE_ASSERT(t->rank <= 2, "grad: a sum over a tensor of rank %d", t->rank);
    return broadcast(gr, d, t->rank == 2 ? t->dims[0].size : 0, moe_type_cols(t), t->dims[0].seg);
}

/* c summed over the dims in which t has size 1, or none: what a broadcast repeated. NULL: not
 * expressible. */
static MoeValue *sum_down(MoeGrad *gr, MoeValue *c, const MoeType *t) {
    const MoeType *from = &c->type;
    if (moe_type_same_shape(from, t))
        return c;
    if (from->rank == 1) /* (C) -> (1) */
        return t->rank == 1 ? moe_build1(gr->g, MOE_OP_ROW_SUM, c) : NULL;
    if (from->rank != 2)
        return NULL;
    if (t->rank == 2 && t->dims[0].size == from->dims[0].size &&
        t->dims[0].seg == from->dims[0].seg) /* (R, C) -> (R, 1) */
        return moe_build1(gr->g, MOE_OP_ROW_SUM, c);
    if (!from->dims[0].seg) /* col_sum is over token or expert rows */
        return NULL;
    if (moe_type_cols(t) == 1 && moe_type_cols(from) != 1)
        c = moe_build1(gr->g, MOE_OP_ROW_SUM, c);
    c = moe_build1(gr->g, MOE_OP_COL_SUM, c); /* (C) or (1) */
    return t->rank == 1 ? c : broadcast(gr, c, 1, moe_type_cols(t), NULL);
}

MoeStatus moe_grad_give(MoeGrad *gr, MoeValue *v, MoeValue *c) {
    MOE_ASSERT(moe_grad_wants(gr, v), "grad: a contribution to a value without gradient");
    MOE_ASSERT(c->type.dtype == MOE_F32, "grad: cotangents are f32");
    MoeValue *summed = sum_down(gr, c, &v->type);
    if (!summed) {
        MoeStr want = {0}, have = {0};
        moe_type_print(&v->type, &want);
        moe_type_print(&c->type, &have);
        MoeStatus st =
            moe_error(MOE_E_INPUT, "the gradient of a broadcast from %s to %s is not supported",
                      moe_str_c(&want), moe_str_c(&have));
        moe_str_free(&want);
        moe_str_free(&have);
        return st;
    }
    MoeValue *have = gr->cot[v->id];
    gr->cot[v->id] = have ? add(gr, have, summed) : summed;
    return NULL;
}

/* Gives c to v if v wants it; c is an expression that is built only then. */
#define GIVE(v, c)                                                                                 \
    do {                                                                                           \
        if (moe_grad_wants(gr, (v)))                                                               \
            MOE_TRY(moe_grad_give(gr, (v), (c)));                                                  \
    } while (0)

/* An op without a gradient on the way (integers never are; row_max is kept off it by find_active):
 * the gradient through it would be lost silently, so it is an error. */
MoeStatus moe_grad_none(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    (void)gr, (void)d;
    return moe_error(MOE_E_INPUT,
                     "op %s has no gradient, but the loss depends on trained parameters through it",
                     moe_op_info(op->opcode)->name);
}

MoeStatus moe_grad_decompose(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    (void)gr, (void)d;
    MOE_ASSERT(false, "grad: %s should have been decomposed", moe_op_info(op->opcode)->name);
    return NULL;
}

/* ---- elementwise ---- */

MoeStatus moe_grad_add(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    GIVE(op->operands[0], d[0]);
    GIVE(op->operands[1], d[0]);
    return NULL;
}

MoeStatus moe_grad_sub(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    GIVE(op->operands[0], d[0]);
    GIVE(op->operands[1], neg(gr, d[0]));
    return NULL;
}

/* da = d b, db = d a */
MoeStatus moe_grad_mul(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    MoeValue *a = op->operands[0], *b = op->operands[1];
    if (a == b) { /* a square: both halves are the same */
        MoeValue *half = mul(gr, d[0], moe_grad_f32(gr, a));
        GIVE(a, add(gr, half, half));
        return NULL;
    }
    GIVE(a, mul(gr, d[0], moe_grad_f32(gr, b)));
    GIVE(b, mul(gr, d[0], moe_grad_f32(gr, a)));
    return NULL;
}

/* y = a / b: da = d / b, db = -(d y) / b */
MoeStatus moe_grad_div(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    MoeValue *a = op->operands[0], *b = moe_grad_f32(gr, op->operands[1]);
    MoeValue *y = op->results[0];
    GIVE(a, moe_build2(gr->g, MOE_OP_DIV, d[0], b));
    GIVE(op->operands[1],
         neg(gr, moe_build2(gr->g, MOE_OP_DIV, mul(gr, d[0], moe_grad_f32(gr, y)), b)));
    return NULL;
}

MoeStatus moe_grad_neg(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    GIVE(op->operands[0], neg(gr, d[0]));
    return NULL;
}

MoeStatus moe_grad_exp(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    GIVE(op->operands[0], mul(gr, d[0], moe_grad_f32(gr, op->results[0])));
    return NULL;
}

MoeStatus moe_grad_log(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    MoeValue *x = op->operands[0];
    GIVE(x, moe_build2(gr->g, MOE_OP_DIV, d[0], moe_grad_f32(gr, x)));
    return NULL;
}

/* y = x^(-1/2): dx = d * (-1/2 y^3) */
MoeStatus moe_grad_rsqrt(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    MoeValue *x = op->operands[0], *y = moe_grad_f32(gr, op->results[0]);
    MoeValue *half =
        moe_grad_const(gr, -0.5); /* by itself: C orders no arguments, but ops have an order */
    GIVE(x, mul(gr, d[0], mul(gr, mul(gr, mul(gr, y, y), y), half)));
    return NULL;
}

/* y = sigmoid(x): dx = d * y (1 - y) */
MoeStatus moe_grad_sigmoid(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    MoeValue *x = op->operands[0], *y = moe_grad_f32(gr, op->results[0]);
    GIVE(x, mul(gr, d[0], mul(gr, y, sub(gr, moe_grad_const(gr, 1.0), y))));
    return NULL;
}

/* Cotangents are f32 on both sides: rounding has the gradient of the identity. */
MoeStatus moe_grad_convert(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    GIVE(op->operands[0], d[0]);
    return NULL;
}

MoeStatus moe_grad_broadcast(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    GIVE(op->operands[0], d[0]);
    return NULL;
}

/* ---- rows ---- */

MoeStatus moe_grad_row_sum(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    GIVE(op->operands[0], moe_grad_expand(gr, d[0], &op->operands[0]->type));
    return NULL;
}

/* p = softmax(x): dx = p * (d - sum(d p)), sums over the last dim */
MoeStatus moe_grad_softmax(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    MoeValue *x = op->operands[0], *p = moe_grad_f32(gr, op->results[0]); /* (R, C) */
    MoeValue *dot = moe_build1(gr->g, MOE_OP_ROW_SUM, mul(gr, d[0], p));  /* (R, 1) */
    GIVE(x, mul(gr, p, sub(gr, d[0], dot)));
    return NULL;
}

MoeStatus moe_grad_take(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    MoeValue *x = op->operands[0], *operands[] = {d[0], op->operands[1]};
    GIVE(x, moe_build(gr->g, MOE_OP_PUT, operands, 2, moe_ai("cols", moe_type_cols(&x->type)),
                      MOE_END));
    return NULL;
}

MoeStatus moe_grad_put(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    GIVE(op->operands[0], moe_build2(gr->g, MOE_OP_TAKE, d[0], op->operands[1]));
    return NULL;
}

/* ---- reductions over rows ---- */

MoeStatus moe_grad_col_sum(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    GIVE(op->operands[0], moe_grad_expand(gr, d[0], &op->operands[0]->type));
    return NULL;
}

/* Each micro-batch's part has the cotangent of the whole sum. */
MoeStatus moe_grad_accumulate(MoeGrad *gr, MoeOp *op, MoeValue *const *d) {
    GIVE(op->operands[0], d[0]);
    return NULL;
}
