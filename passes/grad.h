/* Reverse-mode differentiation of a graph, for the grad pass and for tests.
 *
 * Invariants of what it makes: cotangents of float values are f32 whatever the value's dtype (the
 * gradient of a convert is the identity), contributions are added in the order in which the ops are
 * met from the last to the first, and no cotangent depends on the result of an accumulate (what is
 * accumulated is summed over micro-batches; a gradient must be known within one). */
#ifndef MOE_PASSES_GRAD_H
#define MOE_PASSES_GRAD_H

#include "ir/graph.h"

/* Appends, in phase backward, the gradients of `loss` (f32[1], in g) with respect to each value of
 * wrt (f32, in g): out_grads[i], of wrt[i]'s shape, or NULL where the loss does not depend on it.
 * Ops whose gradient is that of their decomposition are decomposed first; a linear_cross_entropy on
 * the way is replaced by its gradient op, which gives the loss as well. Puts the ops in order of
 * phase again (moe_graph_schedule). MOE_E_INPUT: an op on the way has no gradient, or a cotangent
 * depends on an accumulated value. */
MoeStatus moe_grad_graph(MoeGraph *g, MoeValue *loss, MoeValue *const *wrt, size_t n_wrt,
                         MoeValue **out_grads);

#endif
