/* row_space.h */
#include "codegen/row_space.h"

MoeRowSpace moe_row_space(const MoeType *rows, bool grouped, int buf) {
    const MoeValue *seg = rows->dims[0].seg;
    MoeRowSpace s = {.capacity = rows->dims[0].size, .groups = 1, .shards = 1, .buf = buf};
    s.expected = seg ? moe_segs_expected_rows(seg, s.capacity) : s.capacity;
    s.mode = !seg ? MOE_ROWS_STATIC : grouped ? MOE_ROWS_GROUPS : MOE_ROWS_LIVE;
    if (seg && grouped) {
        s.groups = seg->type.groups;
        s.shards = seg->type.shards;
    } else if (seg) {
        s.shards = seg->type.groups * seg->type.shards;
    }
    return s;
}
