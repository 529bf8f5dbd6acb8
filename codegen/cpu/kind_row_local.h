/* Parts of a row kernel (kind_row.c): row-local ops that address columns by id, and the leaves of
 * column sums. */
#ifndef MOE_CODEGEN_CPU_KIND_ROW_LOCAL_H
#define MOE_CODEGEN_CPU_KIND_ROW_LOCAL_H

#include "codegen/cpu/kind_row.h"

/* One row of a value in memory. */
typedef struct {
    MoeVal at;
    MoeDtype dtype;
    int64_t cols;
} MoeRowMemory;

/* x (cols) -> ids i32 (k): column ids of the k largest, descending; ties to the lower id; NaN
 * counts as -inf. */
void moe_row_emit_topk(MoeEmit *e, MoeRowMemory x, MoeRowMemory ids);
/* out (k): x[ids[j]]. */
void moe_row_emit_take(MoeEmit *e, MoeRowMemory x, MoeRowMemory ids, MoeRowMemory out);
/* out (cols): zeros but x[j] at ids[j]. */
void moe_row_emit_put(MoeEmit *e, MoeRowMemory x, MoeRowMemory ids, MoeRowMemory out);

/* How many leaves the live rows have; rows [lo, hi) of leaf number `leaf` (lo = hi when there is no
 * such leaf). */
MoeVal moe_row_emit_leaf_count(MoeEmit *e, const MoeRowPlan *p);
void moe_row_emit_leaf_rows(MoeEmit *e, const MoeRowPlan *p, MoeVal leaf, MoeVal *out_lo,
                            MoeVal *out_hi);

#endif
