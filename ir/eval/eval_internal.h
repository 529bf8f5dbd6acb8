/* What the files of the interpreter share: its state, the per-op functions, and small checks.
 *
 * Every op of ops.def has moe_eval_<name>; the declarations below and the table in eval.c come from
 * the op table, so an op without one fails at link time by name. Functions may trust that operands
 * and results have the extents of their types (eval.c checks them); they check the data: ids,
 * positions, segment tables. */
#ifndef MOE_IR_EVAL_INTERNAL_H
#define MOE_IR_EVAL_INTERNAL_H

#include "ir/eval/eval.h"

/* The data given for one input, param or state. */
typedef struct {
    double *f;  /* malloc'd, or NULL */
    int32_t *i; /* malloc'd, or NULL */
    int64_t n;  /* elements; -1: nothing given */
} MoeEvalGiven;

struct MoeEval {
    const MoeGraph *graph;
    unsigned flags;
    int n_values;        /* of the graph when the interpreter was made */
    MoeEvalGiven *given; /* by value id */
    MoeTensor *
        *tensors; /* by value id: results of the last run, in run_arena; NULL: not computed */
    MoeArena *run_arena; /* of the last run; NULL before the first */
};

/* The ctx of MoeEvalOp. ev is NULL when one op is evaluated by itself (moe_eval_op). */
typedef struct {
    MoeEval *ev;
    const MoeOp *op;
    const MoeTensor *const *in;
    MoeTensor *out;
} MoeEvalContext;

#define OP(id, name, min_in, max_in, n_out, kind, attrs, infer, grad, decomp, shard, cost, doc)    \
    MoeStatus moe_eval_##name(MoeEvalOp *e);
#include "ir/ops.def"
#undef OP

/* A run op by op, for moe_eval_run and eval_ranks.c. begin forgets the last run. step is prepare (operands looked up and
 * checked, results allocated), the op's function, finish (tables checked, results rounded and kept). Errors name the op. */
MoeStatus moe_eval_begin(MoeEval *ev);
MoeStatus moe_eval_step(MoeEval *ev, const MoeOp *op);
MoeStatus moe_eval_prepare(MoeEval *ev, const MoeOp *op, MoeEvalContext *out);
MoeStatus moe_eval_finish(MoeEvalContext *c);
MoeStatus moe_eval_name_op(MoeStatus st, const MoeOp *op); /* NULL stays NULL */

/* The live table that the rows of operand i are ragged over, or for static rows one segment of all
 * rows (made in the arena: groups = shards = 1). *out_groups * *out_shards segments. */
MoeStatus moe_eval_row_segs(MoeEvalOp *e, int i, const int32_t **out_table, int64_t *out_groups,
                            int64_t *out_shards);
/* First row of the part that operand i numbers, where a part has `rows` rows; 0 if there is no such operand. */
MoeStatus moe_eval_part_first(MoeEvalOp *e, int i, int64_t rows, int64_t *out_first);
/* Error unless 0 <= id < n. `what` names the number: "id", "label", "position". */
MoeStatus moe_eval_check_index(const char *what, int64_t id, int64_t at, int64_t n);

#endif
