/* Inside the shard pass: one graph while it becomes the program of a rank. shard.c walks the ops, shard_params.c knows how
 * parameters are shared out and which value is whose gradient, shard_convert.c changes states (gathers, reductions),
 * shard_experts.c moves rows between ranks and sums the gradient norm. */
#ifndef MOE_PASSES_SHARD_BUILD_H
#define MOE_PASSES_SHARD_BUILD_H

#include "passes/pass.h"
#include "passes/shard.h"

/* How a parameter is shared out: the same in all graphs. */
typedef struct {
    const char *name;
    MoeType whole;      /* the logical type */
    MoeType part;       /* after slots and tp, before it is sliced */
    MoeType local;      /* of the buffer */
    bool expert;        /* dim 0 are experts, used by grouped ops */
    int layer;          /* expert: the number of its layer's map, place.LAYER */
    int division;       /* expert: of its layer (base/mesh.h) */
    int tp_dim;         /* -1: none */
    bool table;         /* of the vocabulary, divided by rows over tp */
    MoeMeshGroup group; /* that shares it out */
} MoeShardParam;

typedef struct {
    MoeShardParam *items;
    size_t n, cap;
} MoeShardParams;

/* The number of a route_plan's layer: what its layer attribute says, else its place among those of a graph's n ops. */
int moe_shard_layer(MoeOp *const *ops, size_t n, const MoeOp *plan);
bool moe_shard_has_ep(const MoeMesh *mesh); /* in any division */
/* All parameters of a module's logical graphs. MOE_E_INPUT or MOE_E_MISUSE naming the numbers that do not divide. */
MoeStatus moe_shard_params_find(const MoeModule *m, const MoeMesh *mesh, MoeArena *a,
                                MoeShardParams *out);
const MoeShardParam *moe_shard_param(const MoeShardParams *p, const char *name); /* NULL: none */
/* For each value of a logical graph (by id): the parameter whose gradient it is, or is part of; NULL: none. */
const MoeShardParam **moe_shard_gradients(const MoeGraph *g, const MoeShardParams *p, MoeArena *a);
/* shard_tp.c: chooses tp_dim of each parameter. */
MoeStatus moe_shard_params_tp(const MoeModule *m, const MoeMesh *mesh, MoeArena *a,
                              MoeShardParams *p);

/* The plan of one MoE layer on a rank whose division for the layer has ep > 1. */
typedef struct {
    const MoeOp *logical;                     /* the route_plan */
    int layer;                                /* of place.LAYER */
    int division, ep;                         /* of the layer; its degree */
    MoeValue *place;                          /* i32[E] */
    MoeValue *home_seg, *home_src, *home_inv; /* this rank's pairs */
    MoeValue *idx;                            /* i32[S], rows to send */
    MoeValue *seg, *src, *inv;                /* expert rows; inv over received rows */
    /* With copies of experts (shard_copies.c); else NULL. */
    MoeValue *copies;                         /* i32[ep*slots] */
    MoeValue *choices, *all_choices;          /* of this rank and of its EP group, by global slot */
    MoeValue *counts, *runs;                  /* of copy_plan */
    MoeValue *roots, *more;                   /* of root_plan; NULL before a gradient needs it */
} MoeShardRoute;

typedef struct {
    MoeValue *now;                    /* in the new graph; NULL before it is built */
    MoeValue *gathered[MOE_N_PHASES]; /* of a slice: the whole, by phase */
    MoeValue *joined[MOE_N_PHASES];   /* of a table's part: all its rows */
    MoeValue *copied;                 /* of an experts' parameter: with the slots of copies filled */
    MoeShardRoute *route;             /* of route_plan's results, with ep > 1 */
} MoeShardMapped;

/* Token rows that travelled to the ranks of their experts, so that they do it once. */
typedef struct {
    const MoeValue *x;
    const MoeShardRoute *route;
    MoeValue *arrived;
} MoeShardSent;

typedef struct {
    MoeGraph *g;
    const MoeMesh *mesh;
    const MoeShardParams *params;
    const MoeShardParam **gradient; /* by old id */
    MoeShardMapped *map;            /* by old id */
    MoeShardRules rules;            /* states by new id */
    MoeShardRoute *routes;
    size_t n_routes;
    MoeValue *tok, *tp_rank;
    MoeValue *tok_ep[MOE_MAX_RANGES + 1], *ep_rank[MOE_MAX_RANGES + 1]; /* by division */
    int64_t rows;      /* capacity for a rank's tokens */
    MoeOp *const *old; /* the ops of the logical graph */
    size_t n_old;
    MoeArena *a; /* scratch */
    MoeShardSent *sent;
    size_t n_sent, cap_sent;
} MoeShard;

/* Derives the states of an op just built. A failure is of the input: the model's op, not ours. */
MoeStatus moe_shard_note(MoeShard *s, const MoeOp *op);
const MoeShardState *moe_shard_now(const MoeShard *s, const MoeValue *v);

/* shard_convert.c. `phase`: of the op that wants the value. */
MoeStatus moe_shard_reduce(MoeShard *s, const MoeValue *old);
MoeStatus moe_shard_gather(MoeShard *s, const MoeValue *old, MoePhase phase, MoeValue **out);
/* The reduction of a gradient just made, if it is a term of a sum. */
MoeStatus moe_shard_reduce_gradient(MoeShard *s, const MoeValue *old);

/* The plan of layer `layer`; NULL: the graph has none, or no other rank has experts of it. */
MoeShardRoute *moe_shard_route_of_layer(const MoeShard *s, int layer);

/* shard.c: the operand of a logical op, whole or as rows. */
MoeStatus moe_shard_operand(MoeShard *s, const MoeOp *op, int i, MoeValue **out);
/* The same op on operands of the new graph, its attributes made local. */
MoeStatus moe_shard_same_op(MoeShard *s, const MoeOp *op, MoeValue *const *operands);

/* Ops that become several; false in *done: the op is like any other. shard_experts.c: rows between ranks. */
MoeStatus moe_shard_expert_op(MoeShard *s, const MoeOp *op, bool *done);
/* shard_copies.c: experts with copies. The choices of a layer by global slot, from those of the EP group by expert: fills r. */
MoeStatus moe_shard_copy_plan_of(MoeShard *s, MoeValue *ids, MoeValue *all, int64_t experts,
                                 MoeShardRoute *r);
/* What an op of forward or backward reads of an experts' parameter. */
MoeStatus moe_shard_copied(MoeShard *s, const MoeValue *old, MoeValue **out);
/* weight_grad of expert rows. */
MoeStatus moe_shard_copies_grad(MoeShard *s, const MoeOp *op, MoeShardRoute *r);
/* shard_norm.c: the gradient norm of what is shared out. */
MoeStatus moe_shard_norm_op(MoeShard *s, const MoeOp *op, bool *done);
/* shard_vocab.c: embedding and loss with tables divided over tp. */
MoeStatus moe_shard_vocab_op(MoeShard *s, const MoeOp *op, bool *done);
/* Whether v is a table (or its rounded copy) divided over tp. */
bool moe_shard_is_table(const MoeShard *s, const MoeValue *old);
/* All rows of such a table. `part`: this rank's, gathered. */
MoeStatus moe_shard_join_table(MoeShard *s, const MoeValue *old, MoeValue *part, MoePhase phase,
                               MoeValue **out);

#endif
