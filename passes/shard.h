/* What a value is on a rank (docs/RANKS.md), and the rules that derive it op by op. One rule for each name in the shard
 * column of ops.def; a missing one is a link error. The shard pass (shard_build.h) uses the rules while it builds the
 * program of a rank, the verifier (shard_verify.c) derives everything again from the declarations of a finished one.
 *
 * Invariants: a state speaks of one value of a sharded graph. A group of one rank leaves no trace: what would be partial
 * over it, or a slice of it, is whole. */
#ifndef MOE_PASSES_SHARD_H
#define MOE_PASSES_SHARD_H

#include "base/mesh.h"
#include "ir/graph.h"

/* What a segs value counts, and with it dim 0 of the tensors that are ragged over it. ROWS(ID, text) */
#define MOE_ROW_SPACES(X)                                                                          \
    X(NONE, "no rows")                                                                             \
    X(TOKENS, "rows of this rank's tokens")                                                        \
    X(PAIRS, "rows of this rank's (expert, token) pairs")                                          \
    X(EXPERTS, "rows of the experts in this rank's slots")                                         \
    X(RECEIVED, "received rows")                                                                   \
    X(SENT, "rows to send")                                                                        \
    X(GROUP, "rows of the EP group's tokens")                                                      \
    X(ROOTS, "roots of the rows in this rank's slots")
typedef enum {
#define X(id, text) MOE_ROWS_##id,
    MOE_ROW_SPACES(X)
#undef X
} MoeRowSpace;

typedef enum {
    MOE_SLOTS_NONE, /* dim 0 is no slot */
    MOE_SLOTS_MINE, /* dim 0: the slots of this EP rank */
    MOE_SLOTS_ALL   /* dim 0: the slots of all EP ranks, in their order */
} MoeSlots;

/* MoeShardState.tp, where it is no dim */
enum {
    MOE_TP_WHOLE = -1,   /* the same on all TP ranks */
    MOE_TP_PARTIAL = -2, /* a term of a sum over TP ranks */
    MOE_TP_PART = -3     /* of this TP rank's part of a tensor, in another shape */
};

typedef struct {
    MoeRowSpace rows;
    MoeSlots slots;
    bool copies; /* this rank's slots of copies hold what their experts' primaries do */
    int division; /* of the ranks (base/mesh.h), where rows or slots depend on it; else 0 */
    int partial;  /* the MoeMeshGroup over which it is a term of a sum; -1: none */
    int slice;    /* the MoeMeshGroup that shares it out, flat; -1: none */
    int64_t unit; /* of a slice: cut at multiples of so many elements; else 0 */
    int tp; /* the dim divided over TP ranks (of the tensor before it was sliced), or one of MOE_TP_ */
    bool own; /* differs between ranks and is no data (ep_rank) */
} MoeShardState;

MoeShardState moe_shard_whole(void);
bool moe_shard_is_whole(const MoeShardState *s); /* replicated, or rows */
bool moe_shard_state_equal(const MoeShardState *a, const MoeShardState *b);
/* "a slice of group dense_shard", in the arena. */
const char *moe_shard_state_text(const MoeShardState *s, MoeArena *a);

/* What rules know: the mesh, and the states so far by value id. */
typedef struct {
    const MoeMesh *mesh;
    const MoeGraph *g;
    MoeArena *a; /* for messages and the table */
    MoeShardState *states;
    int cap;
} MoeShardRules;

/* Derives the states of op's results from those of its operands. NULL, or what the op needs and does not get. */
const char *moe_shard_derive(MoeShardRules *r, const MoeOp *op);
const MoeShardState *moe_shard_state(const MoeShardRules *r, const MoeValue *v);

typedef const char *(*MoeShardFn)(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                  MoeShardState *out);
#define OP(id, name, min_in, max_in, n_out, kind, attrs, infer, grad, decomp, shard, cost, doc)    \
    const char *moe_shard_##shard(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,      \
                                  MoeShardState *out);
#include "ir/ops.def"
#undef OP

/* For the rules. */
enum { MOE_SHARD_MAX_IN = 16, MOE_SHARD_MAX_OUT = 4 };
const char *moe_shard_fail(MoeShardRules *r, const char *fmt, ...) MOE_PRINTF(2, 3);
/* "operand 1 of matmul is a slice of group dense_shard; expected ..." */
const char *moe_shard_needs(MoeShardRules *r, const MoeOp *op, const MoeShardState *in, int i,
                            const char *expected);
/* A factor rule as text: dims by letter, "tk,nk->tn". A letter divided over TP ranks (or, in dim 0, over EP ranks: slots)
 * must be divided alike wherever it occurs, and is divided in the results; where a result lacks it, the result is partial
 * over TP. A letter of ragged rows that a result lacks makes it partial over the group that shares out those rows.
 * An upper-case letter must be whole; 1 stands for a dim of size 1, * for rows that the op moves; + behind an operand: the op is linear in it, so a term
 * of a sum over TP makes the results that have + such terms. Operands are rows or whole, never slices nor partial. */
const char *moe_shard_factors(MoeShardRules *r, const MoeOp *op, const char *rule,
                              const MoeShardState *in, MoeShardState *out);
/* The group over which a sum over such rows is partial, -1 if it has but one rank or there are no rows. */
int moe_shard_rows_group(const MoeShardRules *r, MoeRowSpace rows, int division);
/* g as the division has it; degrees of the division. */
int moe_shard_group_size(const MoeShardRules *r, MoeMeshGroup g, int division);
int moe_shard_slots(const MoeShardRules *r, int division, int64_t experts);
/* Whether the division's experts may have copies (docs/PLACEMENT.md). */
bool moe_shard_has_copies(const MoeShardRules *r, int division);

/* Whether g is the program of a rank already (its params say what they are parts of, or it has collectives). */
bool moe_shard_is_sharded(const MoeGraph *g);

/* shard_verify.c: all states of all graphs, derived anew. MOE_E_INTERNAL naming the op and what it lacks. */
MoeStatus moe_shard_verify(const MoeModule *m, const MoeMesh *mesh, const char *after_pass);

#endif
