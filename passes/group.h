/* Groups: the steps of a program. fuse numbers the ops of a graph; this turns the numbers into MoeGroup, the view of a
 * kernel that targets see (ir/target.h). Called by memplan, kernels, recompute (to predict memory) and the plan writer.
 * A group of COMM ops is one exchange between ranks, a group of `wait` its end: steps without a kernel, which targets never see.
 *
 * A value is an output of its group when anything outside reads it: another group, an output, an assign, accumulate or
 * batch_sum, or a type that names it as its segs. A result that nobody reads is an output too when its op has several
 * results: the kernel writes it, so it needs memory. */
#ifndef MOE_PASSES_GROUP_H
#define MOE_PASSES_GROUP_H

#include "ir/target.h"

typedef struct {
    MoeGroup *groups; /* in program order: the steps */
    size_t n_groups;
    int *
        step_of; /* by value id: the step that defines it; -1: declarations, accumulate and batch_sum */
    int n_values;
} MoeGroups;

/* Whether the op runs as (part of) a kernel: no declaration, no accumulate or batch_sum, nothing between ranks. */
bool moe_op_has_kernel(const MoeOp *op);
/* A collective, or a wait for one. */
bool moe_op_is_comm(const MoeOp *op);
/* Whether the op is (part of) a step: a kernel, an exchange or the wait for one. */
bool moe_op_has_step(const MoeOp *op);
bool moe_group_is_comm(const MoeGroup *g);
/* All groups of g. Asserts that every op with a step has a group, that the ops of a group are consecutive and of one
 * phase. The arrays live in `a`. */
MoeGroups moe_groups_of(const MoeGraph *g, MoeArena *a);
/* Which parameter's gradient each value is: what the step that makes the new parameter reads beside declarations, in the
 * parameter's shape, and what that sums up over micro-batches and ranks. By value id, PARAM ops; NULL: none. */
const MoeOp **moe_groups_gradients(const MoeGraph *g, const MoeGroups *gs, MoeArena *a);
bool moe_group_has_input(const MoeGroup *g, const MoeValue *v);
bool moe_group_has_output(const MoeGroup *g, const MoeValue *v);

#endif
