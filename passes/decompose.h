/* Composites into primitives: one rule for each name in the decomp column of ops.def (a missing one
 * is a link error). */
#ifndef MOE_PASSES_DECOMPOSE_H
#define MOE_PASSES_DECOMPOSE_H

#include "ir/graph.h"

/* Builds the primitives for op at the end of g and returns their values for op's results in out. */
typedef void (*MoeDecomposeFn)(MoeGraph *g, const MoeOp *op, MoeValue **out);
#define OP(id, name, min_in, max_in, n_out, kind, attrs, infer, grad, decomp, shard, cost, doc)    \
    void moe_decompose_##decomp(MoeGraph *g, const MoeOp *op, MoeValue **out);
#include "ir/ops.def"
#undef OP

/* Whether the op has a decomposition. */
bool moe_op_is_composite(MoeOpcode op);
/* Decomposes the composites for which `wanted` says so, in place: the values that the ops gave stay
 * the same objects, defined by a primitive now. Returns how many. */
size_t moe_graph_decompose(MoeGraph *g, bool (*wanted)(const void *cx, MoeOpcode op),
                           const void *cx);

#endif
