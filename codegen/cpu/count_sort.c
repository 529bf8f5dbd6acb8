/* count_sort.h: the count of cell c is kept at table[c + 1] until the scan. */
#include "codegen/cpu/count_sort.h"

static MoeVal next_of(MoeEmit *e, MoeVal table, MoeVal at) {
    MoeVal n = moe_load_index(e, table, at);
    moe_store_i32(e, moe_iadd(e, n, moe_k64(e, 1)), table, at);
    return n;
}

void moe_count_clear(MoeEmit *e, MoeVal table, int64_t cells) {
    MoeLoop l;
    moe_loop_begin(e, &l, moe_k64(e, 0), moe_k64(e, cells + 1), moe_k64(e, 1));
    moe_store_i32(e, moe_k64(e, 0), table, l.index);
    moe_loop_end(e, &l);
}

void moe_count_add(MoeEmit *e, MoeVal table, MoeVal cell) {
    next_of(e, table, moe_iadd(e, cell, moe_k64(e, 1)));
}

void moe_count_scan(MoeEmit *e, MoeVal table, MoeVal next, int64_t cells) {
    MoeVal sum = moe_k64(e, 0), one = moe_k64(e, 1);
    MoeCarryLoop l;
    moe_carry_begin(e, &l, moe_k64(e, 0), moe_k64(e, cells), one, &sum, 1);
    moe_store_i32(e, sum, next, l.l.index);
    MoeVal after = moe_iadd(e, l.l.index, one);
    sum = moe_iadd(e, sum, moe_load_index(e, table, after));
    moe_store_i32(e, sum, table, after);
    moe_carry_end(e, &l, &sum);
}

MoeVal moe_count_deal(MoeEmit *e, MoeVal next, MoeVal cell) {
    return next_of(e, next, cell);
}
