/* What the gradient rules share. A rule gets the cotangents d[] of its op's results (NULL where the
 * loss does not depend on that one; f32, of the result's shape) and gives contributions to its
 * operands. One rule for each name in the grad column of ops.def; a missing one is a link error.
 * Called by passes/grad.c alone. */
#ifndef MOE_PASSES_GRAD_RULES_H
#define MOE_PASSES_GRAD_RULES_H

#include "ir/graph.h"

#define MOE_GRAD_CONSTS 8

typedef struct {
    MoeGraph *g;
    MoeArena *scratch;
    int n_ids;      /* values of the graph before differentiation have ids below this */
    MoeValue **cot; /* by id: the sum of the contributions so far, or NULL */
    bool *active;   /* by id: depends on a value that gradients are asked for */
    struct {
        double value;
        MoeValue *v;
    } consts[MOE_GRAD_CONSTS]; /* shared constants */
    size_t n_consts;
} MoeGrad;

typedef MoeStatus (*MoeGradFn)(MoeGrad *gr, MoeOp *op, MoeValue *const *d);
#define OP(id, name, min_in, max_in, n_out, kind, attrs, infer, grad, decomp, shard, cost, doc)    \
    MoeStatus moe_grad_##grad(MoeGrad *gr, MoeOp *op, MoeValue *const *d);
#include "ir/ops.def"
#undef OP

/* Whether a contribution to v is needed at all. */
bool moe_grad_wants(const MoeGrad *gr, const MoeValue *v);
/* Adds a contribution to v's cotangent: c has v's shape, or a shape that v broadcasts to (then it
 * is summed down). */
MoeStatus moe_grad_give(MoeGrad *gr, MoeValue *v, MoeValue *c);
/* d repeated to the (larger) shape of t: the gradient of a sum. */
MoeValue *moe_grad_expand(MoeGrad *gr, MoeValue *d, const MoeType *t);
MoeValue *moe_grad_const(MoeGrad *gr, double value);
/* v itself if f32, else widened. */
MoeValue *moe_grad_f32(MoeGrad *gr, MoeValue *v);

#endif
