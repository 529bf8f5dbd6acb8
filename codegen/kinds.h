/* Kinds of groups: which kernel runs a group, by its anchor, and what that means for joining ops to it. Shared by the
 * targets; each has a table of functions over MOE_GROUP_KINDS.
 *
 * The kind of a group is that of its anchor: the first op that is neither EW, ROW, REDUCE nor MOVE. A group of EW, ROW and
 * REDUCE ops alone is a row group. */
#ifndef MOE_CODEGEN_KINDS_H
#define MOE_CODEGEN_KINDS_H

#include "codegen/row_plan.h"
#include "ir/target.h"

/* X(name). In each target, kind_<name>*.c has moe_<target>_<name>_lower and moe_<target>_<name>_workspace. */
#define MOE_GROUP_KINDS(X)                                                                         \
    X(row)    /* EW and ROW ops over one row space, col_sum at the end */                          \
    X(reduce) /* sum_squares, its two halves, col_sum alone */                                     \
    X(gemm)   /* matmul, dense and grouped, with gather and tail */                                \
    X(wgrad)  /* weight_grad, root_grad */                                                         \
    X(route)  /* route_plan, counts; plans between ranks, plans of copies */                       \
    X(move)   /* dispatch, gather_sum, dispatch_weight, collect_weight */                          \
    X(embed)  /* embedding, embedding_grad */                                                      \
    X(rope)                                                                                        \
    X(attn)                                                                                        \
    X(attn_grad)                                                                                   \
    X(xent) /* linear_cross_entropy and its gradient, whole or in parts of the vocabulary */

typedef enum {
#define X(name) MOE_GROUP_##name,
    MOE_GROUP_KINDS(X)
#undef X
        MOE_N_GROUP_KINDS
} MoeGroupKind;

/* MOE_N_GROUP_KINDS: nothing to run (declarations; accumulate, batch_sum and what goes between ranks, which the runtime
 * does). No composite may be left. */
MoeGroupKind moe_group_kind(MoeOp *const *ops, size_t n_ops);

/* MoeTarget.can_join: elementwise and row ops into one another, into a product's tail; gathers of rows into products; row
 * sums behind a product where t's rules have them. */
bool moe_group_can_join(const MoeTarget *t, MoeOp *const *ops, size_t n_ops, const MoeOp *op);

/* MoeTarget.can_alias where row groups go by these rules. */
bool moe_group_can_alias(const MoeRowRules *r, const MoeGroup *group, const MoeValue *input,
                         const MoeValue *output);

/* Whether the group's workspace goes by rows (column sums alone do; all others are of fixed size, or by a rank's own tokens),
 * for MoeTarget.workspace_expected: moe_row_workspace_expected then has the bytes. */
bool moe_group_works_by_rows(const MoeGroup *group);

/* MoeTarget.implements of targets that run every op but the composites. */
bool moe_implements_primitives(const MoeTarget *t, MoeOpcode op);

#endif
