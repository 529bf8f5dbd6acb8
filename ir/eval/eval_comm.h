/* For eval_ranks.c: COMM ops over all ranks at once. */
#ifndef MOE_IR_EVAL_COMM_H
#define MOE_IR_EVAL_COMM_H

#include "base/mesh.h"
#include "ir/eval/eval_internal.h"

/* One COMM op on all ranks: operands checked, results allocated. */
typedef struct {
    const MoeMesh *mesh;
    const MoeOp *op;
    MoeEvalContext *at; /* by world rank */
    MoeArena *arena;
} MoeComms;

/* Computes `rank`'s result from its group's operands. */
MoeStatus moe_eval_between(const MoeComms *c, int rank);

#endif
