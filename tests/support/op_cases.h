/* The case table of the op-by-op tests: for every op of ops.def a list of one-op graphs over dtypes
 * and awkward shapes. The same cases check the shape rules, the interpreter and every backend. An
 * op without a case does not compile (the switch in op_cases.c) or fails the suite.
 *
 * A case's graph: inputs, the op, outputs named y0, y1, .. for its results (segs results too). Rows
 * are ragged over inputs tok : segs<1,V> or seg : segs<E,V>, with a capacity above the live rows.
 * Typical use:
 *
 *   size_t n = moe_op_cases(MOE_OP_MATMUL, NULL, 0);          then again with room for n
 *   MoeCaseRun run;
 *   MoeStatus st = moe_case_run_open(&cases[i], seed, &run);  graph, inputs, interpreter run
 *   ... compile run.graph, moe_tensor_pack the data of run.inputs, run, moe_tensor_unpack into
 * `got` ... if (!moe_case_check(&cases[i], r, moe_case_want(&run, r), &got, &why)) report
 * cases[i].id, why moe_case_run_close(&run); */
#ifndef MOE_TESTS_OP_CASES_H
#define MOE_TESTS_OP_CASES_H

#include "tests/support/random_graph.h"

/* |got - want| <= absolute + of_max * (largest |want| of the output) + of_element * |want|. All
 * zero: equal. */
typedef struct {
    double absolute, of_max, of_element;
} MoeTolerance;

/* Shapes of the operands where an op has more than one way. FORM(ID, name) */
#define MOE_CASE_FORMS(X)                                                                          \
    X(PLAIN, plain)       /* [T,C], and [T,C] with it for binary ops */                            \
    X(COLS, cols)         /* [T,C] with [C] */                                                     \
    X(ROWS, rows)         /* [T,C] with [T,1] */                                                   \
    X(SCALAR, scalar)     /* [T,C] with [1] */                                                     \
    X(LEFT, left)         /* [1] with [T,C] */                                                     \
    X(OUTER, outer)       /* [T,1] with [C] */                                                     \
    X(VECTOR, vector)     /* [C] with [C], static */                                               \
    X(MATRIX, matrix)     /* static [3,C] with [3,C] */                                            \
    X(STACK, stack)       /* static [3,5,C] with [1] */                                            \
    X(EXPERT, expert)     /* rows over segs<E,V> */                                                \
    X(SAME, same)         /* both operands the same value */                                       \
    X(RECEIVED, received) /* moves: tokens are rows over segs<chunks,V>, some choices elsewhere */
typedef enum {
#define X(id, name) MOE_FORM_##id,
    MOE_CASE_FORMS(X)
#undef X
} MoeCaseForm;

typedef struct {
    char id[160]; /* "matmul/f32/T=17,k=33,n=49,V=8,tb=1": enough to find and run the case again */
    MoeOpcode op;
    MoeDtype dtype; /* of the main float operands; I32 for integer forms */
    MoeCaseForm form;
    int64_t rows; /* live rows: tokens, or expert rows for EXPERT forms and grouped contractions */
    int64_t capacity;
    int64_t cols, k, n;
    int64_t experts, shards, topk;
    int64_t ranks, slots, chunks,
        ep_rank; /* plans between ranks; parts of a vocabulary: ranks, ep_rank */
    int64_t heads, kv_heads, head_dim, seq, window;
    int64_t vocab;
    bool tb, grouped, inverse;
    MoeShardLayout layout;
    MoeRouting routing;
    int leaf_rows; /* of the graph (ir/graph.h); 0: not said */
    bool fast_reduce;
    MoeTolerance tolerance[3]; /* by output */
} MoeOpCase;

/* Writes up to `cap` cases of op to out (NULL if cap is 0); returns how many there are. */
size_t moe_op_cases(MoeOpcode op, MoeOpCase *out, size_t cap);
/* All cases whose id starts with `prefix` ("" for all), malloc'd; the caller frees. */
MoeOpCase *moe_op_cases_all(const char *prefix, size_t *out_n);
/* The one-op graph, named "case", in m. */
MoeGraph *moe_op_case_build(MoeModule *m, const MoeOpCase *c);
/* Its inputs. */
MoeStatus moe_case_fill(const MoeGraph *g, const MoeOpCase *c, uint64_t seed, MoeArena *a,
                        MoeInputs *out);

/* All of the above at once, and the interpreter's results. */
typedef struct {
    MoeModule *module;
    MoeGraph *graph;
    MoeArena *arena;
    MoeInputs inputs;
    MoeEval *eval;
} MoeCaseRun;
MoeStatus moe_case_run_open(const MoeOpCase *c, uint64_t seed, MoeCaseRun *out);
void moe_case_run_close(MoeCaseRun *run);
/* The expected tensor of output y<r>; NULL when there is no such output. */
const MoeTensor *moe_case_want(const MoeCaseRun *run, int r);
/* Whether `got` (n elements as want) is within the tolerance of output r; appends the worst element
 * to why if not. Integers must be equal; NaN only matches NaN, infinity only itself. */
bool moe_case_check(const MoeOpCase *c, int r, const MoeTensor *want, const MoeTensor *got,
                    MoeStr *why);

#endif
