/* row_map.h, and how row groups are planned for this target. */
#include "codegen/cuda/row_map.h"

MoeCudaRowMap moe_cuda_row_map(int64_t cols) {
    MoeCudaRowMap m = {.cols = cols, .vec = 8, .width = 1};
    while (cols % m.vec)
        m.vec /= 2;
    int64_t pieces = cols / m.vec; /* of vec columns */
    if (pieces <= 32) {
        while (m.width < pieces)
            m.width *= 2;
    } else {
        m.width = 32;
        while (m.width * 2 * MOE_CUDA_ROW_HELD <= cols && m.width < MOE_CUDA_ROW_WIDTH)
            m.width *= 2;
    }
    m.chunks = (pieces + m.width - 1) / m.width;
    m.whole = m.chunks * m.width == pieces;
    m.rolled = cols > MOE_CUDA_ROW_COLS;
    return m;
}

/* A thread has 255 registers in blocks of up to 256 threads, 128 in those of 512: six values of 16 columns, or two of 48. A
 * row's scalar is read by all threads of its team: writing over it would be a race. */
MoeRowRules moe_cuda_row_rules(const MoeCudaTarget *t) {
    (void)t;
    return (MoeRowRules){.lanes = 1, .kept_values = 6, .kept_cols = MOE_CUDA_ROW_COLS};
}
