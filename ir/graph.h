/* The graph: an ordered list of ops in SSA form. Everything lives in the module's arena.
 *
 * Invariants (moe_verify checks them): an operand is defined by an earlier op; phases never decrease along the list;
 * names of values are unique in a graph; result types are what the op's infer gives.
 * Passes edit in place: they build a new op list with moe_graph_begin_rewrite / moe_op_build, or append. */
#ifndef MOE_IR_GRAPH_H
#define MOE_IR_GRAPH_H

#include "base/arena.h"
#include "base/diag.h"
#include "ir/op.h"
#include "ir/type.h"

/* When an op runs in a training step. forward and backward run once a micro-batch, reduce (losses, gradient norm)
 * and update once a step. PHASE(ID, name) */
#define MOE_PHASES(X) X(FORWARD, forward) X(BACKWARD, backward) X(REDUCE, reduce) X(UPDATE, update)
typedef enum {
#define X(id, name) MOE_PHASE_##id,
    MOE_PHASES(X)
#undef X
        MOE_N_PHASES
} MoePhase;
const char *moe_phase_name(MoePhase p);

typedef struct {
    const char *key;
    char type; /* i f s b */
    int64_t i; /* i and b */
    double f;
    const char *s;
} MoeAttr;

typedef struct MoeOp MoeOp;

typedef struct MoeValue {
    const char *name; /* without '%'; NULL: printed as its number, given in order of definition */
    MoeType type;
    MoeOp *def;
    int result; /* which result of def */
    int id;     /* dense index in the graph, for side tables; stable until moe_graph_renumber */
} MoeValue;

struct MoeOp {
    MoeOpcode opcode;
    int n_operands, n_results, n_attrs;
    MoeValue **operands, **results;
    MoeAttr *attrs;
    MoePhase phase;
    int group; /* kernel group set by fuse: ops of one group are consecutive and run as one kernel; -1 = none yet */
    MoeLoc loc;
};

typedef struct MoeGraph {
    MoeArena *arena;
    const char *name; /* "train", "eval", "logits" */
    MoeOp **ops;
    size_t n_ops, cap_ops;
    int n_values;   /* ids are 0..n_values-1 */
    MoePhase phase; /* phase given to ops built from now on */
    int layer;      /* >= 0: ops built from now on get layer = this; -1 none */
    /* How sums over rows are ordered in weight gradients (docs/NUMBERS.md, 4): read by moe_graph_leaf_rows. */
    int leaf_rows;    /* rows of a leaf, a power of two; 0: not said */
    bool fast_reduce; /* no leaves and no virtual shards: one chain over all rows of a rank */
} MoeGraph;

typedef struct MoeModule {
    MoeArena *arena;
    MoeGraph **graphs;
    size_t n_graphs, cap_graphs;
} MoeModule;

MoeModule *moe_module_create(void); /* owns its arena */
void moe_module_destroy(MoeModule *m);
MoeGraph *moe_module_add_graph(MoeModule *m, const char *name);
MoeGraph *moe_module_find(const MoeModule *m, const char *name); /* NULL if absent */
/* Rows of a leaf of the weight gradients' trees, which is also where copies of experts may divide rows: what the graph says, else
 * MOE_LEAF_ROWS. Of a module: its first graph's. */
int moe_graph_leaf_rows(const MoeGraph *g);
int moe_module_leaf_rows(const MoeModule *m);
bool moe_leaf_rows_valid(int64_t rows); /* a power of two, MOE_MIN_LEAF_ROWS to MOE_MAX_LEAF_ROWS */

/* Attributes for the builders, ended by MOE_END:
 *   moe_build(g, MOE_OP_MATMUL, (MoeValue *[]){a, b}, 2, moe_ai("tb", 1), moe_ai("grouped", 0), MOE_END) */
MoeAttr moe_ai(const char *key, int64_t v); /* int or bool */
MoeAttr moe_af(const char *key, double v);
MoeAttr moe_as(const char *key, const char *v); /* copied when the op is built */
#define MOE_END ((MoeAttr){0})

/* Appends an op: copies operands and attributes, runs the op's infer (which must succeed: a failure is our bug and
 * asserts, naming the op). Returns the op; results are op->results[i]. */
MoeOp *moe_op_build(MoeGraph *g, MoeOpcode opcode, MoeValue *const *operands, int n_operands, ...);
/* The same, first result. */
MoeValue *moe_build(MoeGraph *g, MoeOpcode opcode, MoeValue *const *operands, int n_operands, ...);
/* With attribute array; result types given (declarations) or NULL to infer; a failed infer is returned in *err
 * (message in arena) with NULL instead of an assertion when err != NULL. */
MoeOp *moe_op_build_v(MoeGraph *g, MoeOpcode opcode, MoeValue *const *operands, int n_operands,
                      const MoeAttr *attrs, int n_attrs, const MoeType *result_types,
                      const char **err);
/* Declarations. */
MoeValue *moe_build_input(MoeGraph *g, const char *name, MoeType type);
MoeValue *moe_build_const(MoeGraph *g, double value);
void moe_build_output(MoeGraph *g, const char *name, MoeValue *v);
/* Short forms. */
MoeValue *moe_build1(MoeGraph *g, MoeOpcode opcode, MoeValue *a);
MoeValue *moe_build2(MoeGraph *g, MoeOpcode opcode, MoeValue *a, MoeValue *b);
MoeValue *moe_build_convert(MoeGraph *g, MoeValue *a,
                            MoeDtype to); /* a itself if it has that dtype */

/* A copy of op with other operands, appended with the graph's current phase (attributes kept; result names dropped). */
MoeOp *moe_op_clone(MoeGraph *g, const MoeOp *op, MoeValue *const *operands);

const MoeAttr *moe_attr(const MoeOp *op, const char *key); /* NULL if absent */
int64_t moe_attr_i(const MoeOp *op, const char *key);      /* asserts that it is there */
int64_t moe_attr_i_or(const MoeOp *op, const char *key, int64_t otherwise);
double moe_attr_f(const MoeOp *op, const char *key);
const char *moe_attr_s(const MoeOp *op, const char *key);
void moe_attr_set_i(MoeGraph *g, MoeOp *op, const char *key, int64_t v);

/* Rewriting: takes the op list away (returned, *n) and leaves the graph empty, so that a pass appends old ops again
 * with moe_graph_append, or new ones with the builders. */
MoeOp **moe_graph_take_ops(MoeGraph *g, size_t *n);
void moe_graph_append(MoeGraph *g, MoeOp *op);
/* All operands equal to map-from become map-to: map is indexed by value id, NULL = keep. Also replaces segs in types.
 * Chains are followed (a -> b, b -> c makes a into c); a circle asserts. */
void moe_graph_replace(MoeGraph *g, MoeValue *const *map);
/* Stable sort of the op list by phase (all operands must still precede their uses; verify says so). */
void moe_graph_sort_phases(MoeGraph *g);
/* Drops ops none of whose results is used and that are no output, assign, input, param or state. Returns how many. */
size_t moe_graph_dce(MoeGraph *g);
/* Dense ids in order of definition. Invalidates side tables. */
void moe_graph_renumber(MoeGraph *g);
/* Uses per value id (an array of n_values), counting operand positions; segs named by types do not count. */
int *moe_graph_count_uses(const MoeGraph *g, MoeArena *scratch);
/* Rows over a segs value that are live when routing is balanced: what the attributes `expect*` of its plan (send_plan,
 * expert_plan) say, for other segs the capacity. At most the capacity. For costs and the memory plan. */
int64_t moe_segs_expected_rows(const MoeValue *segs, int64_t capacity);
/* Elements and bytes of a value with that many rows. */
int64_t moe_value_expected_elements(const MoeValue *v);
int64_t moe_value_expected_bytes(const MoeValue *v);
/* The named input/param/output of the graph, NULL if absent. */
MoeValue *moe_graph_find_input(const MoeGraph *g, const char *name);
MoeValue *moe_graph_find_output(const MoeGraph *g, const char *name);

#endif
