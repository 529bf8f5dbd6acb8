/* What a weight_grad group holds, for every target: {[dispatch of dy,] [dispatch of x,] weight_grad or root_grad}. A dispatch
 * gathers rows as they are read. */
#ifndef MOE_CODEGEN_WGRAD_GROUP_H
#define MOE_CODEGEN_WGRAD_GROUP_H

#include "codegen/row_space.h"
#include "ir/target.h"

typedef struct {
    const MoeOp *dy, *x; /* dispatches, or NULL; perhaps the same */
    const MoeOp *grad;
} MoeWgradGroup;

/* Sorts ops, and `more` (may be NULL) behind them, into w; dispatches alone are accepted as long as a weight_grad may follow
 * (grad NULL). */
bool moe_wgrad_group(MoeOp *const *ops, size_t n_ops, const MoeOp *more, MoeWgradGroup *w);
/* Whether op may join the group. */
bool moe_wgrad_group_joins(MoeOp *const *ops, size_t n_ops, const MoeOp *op);

/* Its rows, by result and virtual shard. */
typedef struct {
    MoeRowSpace rows;
    const MoeValue *seg; /* the table of rows; NULL: static */
    int64_t root_slots;  /* > 0 (root_grad): groups are roots of so many slots (base/split_rows.h) */
    int64_t n, k;        /* of the result */
    int64_t leaf_rows;   /* of the trees over rows; 0: there are none, all rows of a result make one chain (--fast-reduce) */
} MoeWgradShape;
/* MOE_E_INPUT: an extent of zero, or shards that make no one tree. */
MoeStatus moe_wgrad_shape(const MoeGraph *g, const MoeWgradGroup *w, MoeWgradShape *out);
/* MoeWgradShape.leaf_rows of every weight gradient in g. */
int64_t moe_wgrad_leaf_rows(const MoeGraph *g);

#endif
