/* Inside fuse: groups in the making, shared by fuse.c (which op goes where) and fuse_items.c (what may join what). */
#ifndef MOE_PASSES_FUSE_H
#define MOE_PASSES_FUSE_H

#include "ir/target.h"

typedef enum {
    ITEM_ROWS,   /* elementwise and row ops over one row space */
    ITEM_SCALAR, /* elementwise ops on [1] */
    ITEM_GEMM,   /* matmul, with its gather, its pair, its elementwise tail */
    ITEM_OTHER,  /* one op, or a weight_grad with its gather */
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
    int cap_values;  /* of the tables by value id; room for clones */
    int *item_of;    /* by value id: its item, -1: a declaration or not placed yet */
    bool *waiting;   /* by value id: placed only when something asks for it */
    MoeOp ***users;  /* by value id (values of the old list) */
    int *n_users;
    bool *placed;    /* by index in the old list */
    int *index_of;   /* by value id: index of its op in the old list */
    MoePhase phase;  /* being placed */
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
/* Moves all of item `from` up into row item `to`, an earlier one, if nothing in it needs what lies between and the target
 * allows it. */
bool moe_fuse_merge(Fuse *f, int to, int from);
/* Whether the target accepts this sequence as a group, op by op. */
bool moe_fuse_accepts(const Fuse *f, MoeOp *const *ops, size_t n);
/* Values that a group reads and that its own inputs suffice to compute are computed in the group instead of read. */
void moe_fuse_rematerialise(Fuse *f);

#endif
