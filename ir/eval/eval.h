/* The interpreter: the executable specification. Naive, in f64; values of type bf16 are rounded when produced, values of type f32
 * are not rounded (eval with MOE_EVAL_ROUND_F32 rounds them too, for bit-level reasoning about integers).
 *
 * One run evaluates all phases of a graph once (one micro-batch: accumulate and batch_sum are identities). */
#ifndef MOE_IR_EVAL_H
#define MOE_IR_EVAL_H

#include "ir/graph.h"

typedef struct {
    MoeDtype dtype;
    int rank;
    int64_t dims[MOE_MAX_RANK]; /* live extents: a ragged dim has its live size */
    int64_t n;                  /* product of dims; for segs rank 1, G*V+1 */
    double *f;                  /* floats (NULL for i32) */
    int32_t *i;                 /* i32 and segs (NULL for floats) */
} MoeTensor;

typedef struct MoeEval MoeEval;

MoeEval *moe_eval_create(const MoeGraph *g);
void moe_eval_destroy(MoeEval *ev);
/* Gives the value of an input, param or state by value (data copied). n elements; floats are f64. For ragged inputs n may be less than the capacity;
 * it must match the segs input when the graph runs. */
MoeStatus moe_eval_set_f(MoeEval *ev, const MoeValue *v, const double *data, int64_t n);
MoeStatus moe_eval_set_i(MoeEval *ev, const MoeValue *v, const int32_t *data, int64_t n);
/* Runs all ops. Errors name the op (ids out of range, missing inputs, segs that do not fit). */
MoeStatus moe_eval_run(MoeEval *ev);
/* The tensor of any value after the run; owned by ev. */
const MoeTensor *moe_eval_get(const MoeEval *ev, const MoeValue *v);
/* Flags of later runs. MOE_EVAL_ROUND_F32: values of type f32 are rounded to f32 whenever they are produced. */
typedef enum { MOE_EVAL_ROUND_F32 = 1 } MoeEvalFlag;
void moe_eval_set_flags(MoeEval *ev, unsigned flags);
/* The bf16 nearest to x, ties to even, in one rounding (through float would be two). */
double moe_eval_round_bf16(double x);
/* After the run: copies assigned values back into their params and states, so that the next run is the next step. */
void moe_eval_commit(MoeEval *ev);
/* Evaluates one op on given tensors, for tests: results are allocated in `scratch`. */
MoeStatus moe_eval_op(const MoeOp *op, const MoeTensor *const *operands, MoeTensor *results,
                      MoeArena *scratch);

/* For ops that need the segs of an operand's rows (col_sum, weight_grad ...) the evaluator passes them by type:
 * each eval function has this shape. segs_of(ctx, seg value) -> int32[G*V+1]. */
typedef struct {
    MoeArena *arena;
    const MoeOp *op;
    const MoeTensor *const *in;
    MoeTensor *out; /* dtype, rank, dims, n and storage are set before the call,
                                                           but for rows over a table that the op itself makes (plans): room for the most */
    const MoeTensor *(*segs)(void *ctx, const MoeValue *seg); /* the live table of a segs value */
    void *ctx;
    int leaf_rows; /* of the graph (moe_graph_leaf_rows) */
} MoeEvalOp;
typedef MoeStatus (*MoeEvalFn)(MoeEvalOp *e);

#endif
