/* Blocks of the gradient norm. */
#include "codegen/norm_cut.h"

#include "base/assert.h"
#include "ir/numbers.h"

MoeNormCut moe_norm_cut(const MoeType *t, bool sliced) {
    MoeNormCut c = {1, moe_type_elements(t), 0};
    MOE_ASSERT(t->rank < 1 || !t->dims[0].seg, "sum_squares: of a ragged tensor");
    if (sliced) {
        c.slices = t->dims[0].size;
        c.slice = c.slices ? c.slice / c.slices : 0;
    }
    c.blocks = (c.slice + MOE_NORM_BLOCK - 1) / MOE_NORM_BLOCK;
    return c;
}
