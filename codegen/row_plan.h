/* How a row group runs: the analysis that the targets' row kernels emit from, and what they answer about row groups while
 * fusing and planning memory.
 *
 * A row group is a set of EW and ROW ops over one row space [rows, ...], with any number of
 * col_sums as last readers. Two ways to run it: FLAT  only EW ops, and every value has all the
 * elements of the group's shape, or one: one loop over the live elements. ROWS  row by row.
 * An op's *stage* counts the row reductions (and other row-local ops) it waits for. A row runs
 * stage by stage: first the scalar work of the stage, then one loop for each column count
 * that occurs in it. A value lives in registers within its loop; one that a later stage
 * reads is computed again if that is cheap, else kept (or read back from its output). Row reductions
 * are summed in an order fixed by the column count alone. */
#ifndef MOE_CODEGEN_ROW_PLAN_H
#define MOE_CODEGEN_ROW_PLAN_H

#include <limits.h>
#include "codegen/bufs.h"

/* What a value of the group is. */
typedef enum {
    MOE_ROW_SEG,     /* a segs table: only its last entry (or, for leaves, its entries) is read */
    MOE_ROW_UNIFORM, /* one element for the whole group: computed once a task */
    MOE_ROW_SCALAR,  /* one element a row */
    MOE_ROW_VECTOR   /* `cols` elements a row */
} MoeRowClass;

typedef struct {
    const MoeValue *v;
    MoeRowClass cls;
    MoeDtype dtype;
    int64_t cols;
    bool is_const; /* MOE_OP_CONST: baked into the code */
    double constant;
    int buf_in;  /* kernel buffer it is read from, -1 */
    int buf_out; /* kernel buffer it is written to, -1 */
    int def;     /* index of the defining op in the group, -1: external */
    int stage;   /* VECTOR of a loop: the stage of the loop; else: from this stage on it can be read
                  */
    bool in_loop;    /* VECTOR computed by an elementwise op (in the loop of its stage) */
    bool kept;       /* lies in memory for later stages or for row-local ops */
    int64_t scratch; /* byte offset of its row buffer, -1: in its output or external (targets with such buffers) */
    int last_read;   /* VECTOR, external: the last stage that reads it; huge if row-local ops do */
} MoeRowValue;

typedef struct {
    const MoeOp *op;
    int n_in;
    int in[3]; /* values, segs operands left out */
    int out;   /* value */
    int stage; /* where it is emitted: in the loop of that stage, or before it */
    bool in_loop;
    int64_t cols;    /* of its loop */
    int64_t partial; /* COL_SUM: where its partial sums [cols] lie in a leaf's slot, bytes */
} MoeRowOp;

typedef struct {
    bool flat;
    MoeRowValue *values;
    int n_values;
    MoeRowOp *ops;
    int n_ops;
    int lanes;    /* of the vectors it runs in: the rules', fewer for narrow rows */
    int n_stages; /* stages are 0 .. n_stages-1 */
    int n_bufs; /* kernel buffers: external values, outputs, then workspace where there are col_sums
                 */
    MoeBufRef *refs; /* in that order; NULL-valued for the workspace */
    int seg;         /* value index of the rows' segs, -1: static rows */
    int64_t rows;    /* capacity */
    int lead_rank;   /* leading dims of the row space, e.g. [E, n] of a [E, n, k] */
    int64_t lead[MOE_MAX_RANK];
    int64_t flat_elements; /* FLAT with static rows */
    int64_t flat_cols;     /* FLAT: elements a row */
    bool uniform_outputs;  /* some UNIFORM value is an output: task 0 stores it */
    bool col_sums;
    int64_t slot_bytes; /* of a leaf: the partial sums of all col_sums */
    int64_t workspace;  /* slots for as many leaves as the capacity may have */
    int64_t scratch;
    char *key;
} MoeRowPlan;

/* last_read of a value that row-local ops read from memory. */
#define MOE_ROW_READ_LATE INT_MAX

/* What differs between targets. */
typedef struct {
    int lanes; /* elements that loops over a row go by; row buffers are padded to that */
    /* What a row may keep in registers for later stages: values, and their columns in all; the rest is computed again.
     * 0: any number. */
    int kept_values;
    int64_t kept_cols;
    bool scalars_in_place; /* a row scalar may be written over one that was read */
} MoeRowRules;

/* The type whose rows the op runs over: its operand's for ops that read rows whole, else its
 * result's. */
const MoeType *moe_row_type(const MoeOp *op);
/* Index of a value in the plan, -1 if it has no part in the group. */
int moe_row_find(const MoeRowPlan *p, const MoeValue *v);
/* Which row of a value goes with a row of the group: leading dims of size 1, or missing ones, repeat. */
typedef enum {
    MOE_ROW_SAME,  /* the same */
    MOE_ROW_FIRST, /* row 0 with all */
    MOE_ROW_MIXED  /* some dims repeat: dims[d] of the value goes with lead[d + shift] */
} MoeRowMatch;
/* shift (may be NULL): how many leading dims of the group's rows the value does without. */
MoeRowMatch moe_row_match(const MoeRowPlan *p, const MoeRowValue *v, int *shift);
/* Plans the group; everything is allocated in `arena`. */
MoeRowPlan *moe_row_plan(MoeArena *arena, const MoeGroup *g, const MoeRowRules *rules);
/* Bytes of workspace, from its start, that so many rows touch at the most. */
int64_t moe_row_workspace_for(const MoeRowPlan *p, int64_t rows);
/* The workspace of a row group, and what of it balanced routing touches, from its start. */
int64_t moe_row_workspace(const MoeRowRules *rules, const MoeGroup *g);
int64_t moe_row_workspace_expected(const MoeRowRules *rules, const MoeGroup *g);
/* Groups and shards of the tree over the rows: 1 and 1 for static rows. */
void moe_row_tree_shape(const MoeRowPlan *p, int64_t *out_groups, int64_t *out_shards);

/* Whether `op` may be added to the row group `ops` (MoeTarget.can_join where the group is a row
 * group). */
bool moe_row_can_join(MoeOp *const *ops, size_t n_ops, const MoeOp *op);
/* Whether the output may take over the dying input's buffer (MoeTarget.can_alias for row groups), as planned by `rules`.
 */
bool moe_row_can_alias(const MoeRowRules *rules, const MoeGroup *g, const MoeValue *input,
                       const MoeValue *output);

#endif
