/* How the gradient norm cuts a tensor (docs/NUMBERS.md 6): blocks of MOE_NORM_BLOCK elements within each slice. For the kinds
 * `reduce` of all targets. */
#ifndef MOE_CODEGEN_NORM_CUT_H
#define MOE_CODEGEN_NORM_CUT_H

#include "ir/type.h"

typedef struct {
    int64_t slices, slice; /* how many, elements of one */
    int64_t blocks;        /* of a slice */
} MoeNormCut;

/* sliced: dim 0 counts slices. */
MoeNormCut moe_norm_cut(const MoeType *t, bool sliced);

#endif
