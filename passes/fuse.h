/* Inside fuse: groups in the making, shared by fuse.c (which op goes where),
 * fuse_items.c (what may join what), fuse_wait.c (ops that wait for their reader), fuse_comm.c (what passes between ranks)
 * and fuse_prepare.c. */
#ifndef MOE_PASSES_FUSE_H
#define MOE_PASSES_FUSE_H

#include "ir/target.h"

typedef enum {
    ITEM_ROWS,   /* elementwise and row ops over one row space */
    ITEM_SCALAR, /* elementwise ops on [1] */
    ITEM_GEMM,   /* matmul, with its gather, its pair, its elementwise tail */
    ITEM_OTHER,  /* one op, or a weight_grad with its gather */
    ITEM_COMM,   /* collectives: one exchange between ranks */
    ITEM_WAIT,   /* the end of an exchange */
    ITEM_LOOSE   /* accumulate, batch_sum: no kernel */
} ItemKind;

/* Rows that ops of one kernel walk together. rank 1: a vector, or the elements of a flat tensor. */
typedef struct {
    int rank;
    int64_t dims[MOE_MAX_RANK];
    const MoeValue *seg;
} Space;

typedef struct {
    ItemKind kind;
    MoePhase phase;
    Space space;
    MoeOp **ops;
    size_t n, cap;
} Item;

typedef struct {
    MoeGraph *g;
    const MoeTarget *t;
    MoeArena *a;
    MoeOp **ops; /* the old list */
    size_t n_ops;
    Item **items; /* the new order */
    size_t n_items, cap_items;
    int cap_values; /* of the tables by value id; room for clones */
    int *item_of;   /* by value id: its item, -1: a declaration or not placed yet */
    bool *waiting;  /* by value id: placed only when something asks for it */
    MoeOp ***users; /* by value id (values of the old list) */
    int *n_users;
    bool *placed;   /* by index in the old list */
    int *index_of;  /* by value id: index of its op in the old list */
    MoePhase phase; /* being placed */
} Fuse;

/* fuse_items.c */
Space moe_fuse_space(const MoeOp *op);
bool moe_fuse_same_space(const Space *a, const Space *b);
bool moe_fuse_is_scalar(const MoeValue *v);
Item *moe_fuse_new_item(Fuse *f, ItemKind kind, MoePhase phase);
void moe_fuse_add(Fuse *f, Item *it, MoeOp *op);
/* Where op can be at the earliest: the last item that makes something it reads. -1: anywhere. */
int moe_fuse_earliest(const Fuse *f, const MoeOp *op);
/* Adds `extra` (in order), which op reads, and op to the item, if the rules and the target allow it. */
bool moe_fuse_try_join(Fuse *f, int item, MoeOp *const *extra, size_t n_extra, MoeOp *op);
/* Moves all of row item `from` up into item `to`, an earlier one of rows or of a matmul, if nothing in it needs what lies between and
 * the target allows it. */
bool moe_fuse_merge(Fuse *f, int to, int from);
/* Whether the target accepts this sequence as a group, op by op. */
bool moe_fuse_accepts(const Fuse *f, MoeOp *const *ops, size_t n);
/* Values that a group reads and that its own inputs suffice to compute are computed in the group instead of read. */
void moe_fuse_rematerialise(Fuse *f);

/* fuse_wait.c */
bool moe_fuse_is_scalar_op(const MoeOp *op); /* elementwise, [1] in and out */
/* Places a waiting value now, at the end of the list. */
void moe_fuse_force(Fuse *f, MoeValue *v);
void moe_fuse_force_operands(Fuse *f, const MoeOp *op);
/* The waiting scalar ops that v needs, its own included, in an order in which they can run; added to a growing list. */
void moe_fuse_collect_scalars(Fuse *f, const MoeValue *v, MoeOp ***list, size_t *n, size_t *cap);
void moe_fuse_place_scalars(Fuse *f, MoeOp **ops, size_t n);
/* A copy with the same operands, in the phase being placed, placed nowhere yet. */
MoeOp *moe_fuse_copy(Fuse *f, const MoeOp *op);
/* The waiting operands that may run inside op's own group, added to a growing list: scalars only it needs, and
 * broadcasts, of which every reader gets a copy. All others are placed now. */
void moe_fuse_absorb(Fuse *f, MoeOp *op, MoeOp ***extra, size_t *n, size_t *cap);

/* fuse_comm.c */
void moe_fuse_sink_exchanges(MoeGraph *g);
/* Brings collectives together in the list of ops, before any is placed. */
void moe_fuse_order_comm(Fuse *f);
/* Places ops[first], a collective or a wait, and the collectives that follow it at once. */
void moe_fuse_place_comm(Fuse *f, size_t first);
void moe_fuse_place_collective(Fuse *f, MoeOp *op);

/* fuse_prepare.c */
void moe_fuse_sink_dispatches(MoeGraph *g);
void moe_fuse_hoist_weights(Fuse *f);
void moe_fuse_find_users(Fuse *f);

#endif
