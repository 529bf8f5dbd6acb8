/* The climb of tree.h, as one internal function that kernels call. */
#include "codegen/cpu/tree.h"

#include "codegen/cpu/kernel_table.h"

int moe_tree_levels(int64_t n_items) {
    int levels = 0;
    while (((int64_t)1 << levels) < n_items)
        levels++;
    return levels;
}

MoeTree moe_tree_create(MoeEmit *e, int64_t n_items) {
    MoeTree t = {.levels = moe_tree_levels(n_items)};
    t.present = moe_alloca(e, e->i64, t.levels + 1);
    return t;
}

void moe_tree_reset(MoeEmit *e, const MoeTree *t) {
    for (int i = 0; i <= t->levels; i++)
        LLVMBuildStore(e->b, moe_k64(e, 0), moe_at(e, t->present, moe_k64(e, i), 8));
}

MoeTreeList moe_tree_list_create(MoeEmit *e, int cap) {
    return (MoeTreeList){.items = moe_alloca(e, e->i64, cap), .count = moe_alloca(e, e->i64, 1)};
}

void moe_tree_list_clear(MoeEmit *e, const MoeTreeList *l) {
    LLVMBuildStore(e->b, moe_k64(e, 0), l->count);
}

MoeVal moe_tree_list_count(MoeEmit *e, const MoeTreeList *l) {
    return LLVMBuildLoad2(e->b, e->i64, l->count, "");
}

/* void climb(pos, next, levels, ptr present, handle, unit, ptr items, ptr count, ptr out_level) */
static MoeVal climb_fn(MoeCpuTarget *target) {
    MoeEmit emit, *e = &emit;
    LLVMTypeRef ptr = LLVMPointerTypeInContext(target->context, 0);
    LLVMTypeRef i64 = LLVMInt64TypeInContext(target->context);
    LLVMTypeRef args[] = {i64, i64, i64, ptr, i64, i64, ptr, ptr, ptr};
    MoeVal fn;
    if (!moe_emit_helper(target, "tree_climb", "tree_climb", args, 9, e, &fn))
        return fn;
    MoeVal pos = LLVMGetParam(fn, 0), next = LLVMGetParam(fn, 1), levels = LLVMGetParam(fn, 2);
    MoeVal present = LLVMGetParam(fn, 3), out_level = LLVMGetParam(fn, 8);
    MoeVal zero = moe_k64(e, 0), one = moe_k64(e, 1);
    /* vals: whether it still climbs; the level. */
    MoeVal vals[] = {one, zero};
    MoeCarryLoop l;
    moe_carry_begin(e, &l, zero, levels, one, vals, 2);
    MoeVal level = l.l.index;
    MoeVal climbs = LLVMBuildICmp(e->b, LLVMIntNE, vals[0], zero, "");
    MoeVal at = LLVMBuildLShr(e->b, pos, level, "");
    MoeVal is_right = LLVMBuildICmp(e->b, LLVMIntNE, LLVMBuildAnd(e->b, at, one, ""), zero, "");
    /* Left child: the right sibling holds places up to (at + 2) << level. */
    MoeVal end = LLVMBuildShl(e->b, moe_iadd(e, at, moe_k64(e, 2)), level, "");
    MoeVal alone = LLVMBuildICmp(e->b, LLVMIntSGE, next, end, "");
    MoeVal slot = moe_at(e, present, level, 8);
    MoeVal stored = LLVMBuildICmp(e->b, LLVMIntNE, LLVMBuildLoad2(e->b, e->i64, slot, ""), zero, "");
    MoeVal adds = LLVMBuildAnd(e->b, LLVMBuildAnd(e->b, climbs, is_right, ""), stored, "");
    MoeIf add;
    moe_if_begin(e, &add, adds);
    MoeVal count = LLVMGetParam(fn, 7), n = LLVMBuildLoad2(e->b, e->i64, count, "");
    MoeVal handle = moe_iadd(e, LLVMGetParam(fn, 4), moe_imul(e, level, LLVMGetParam(fn, 5)));
    LLVMBuildStore(e->b, handle, moe_at(e, LLVMGetParam(fn, 6), n, 8));
    LLVMBuildStore(e->b, moe_iadd(e, n, one), count);
    LLVMBuildStore(e->b, zero, slot);
    moe_if_end(e, &add);
    MoeVal on = LLVMBuildAnd(e->b, climbs, LLVMBuildOr(e->b, is_right, alone, ""), "");
    vals[0] = LLVMBuildZExt(e->b, on, e->i64, "");
    vals[1] = moe_iadd(e, vals[1], vals[0]);
    moe_carry_end(e, &l, vals);
    LLVMBuildStore(e->b, vals[1], out_level);
    LLVMBuildStore(e->b, one, moe_at(e, present, vals[1], 8)); /* stored there (the root's slot is a dummy) */
    moe_emit_end(e);
    return fn;
}

MoeVal moe_tree_climb(MoeEmit *e, const MoeTree *t, MoeVal pos, MoeVal next, MoeVal handle, int64_t unit,
                      const MoeTreeList *l) {
    MoeVal fn = climb_fn(e->t), level = moe_alloca(e, e->i64, 1);
    MoeVal args[] = {pos,    next,     moe_k64(e, t->levels), t->present, handle, moe_k64(e, unit),
                     l->items, l->count, level};
    moe_emit_call(e, fn, args, 9);
    return LLVMBuildLoad2(e->b, e->i64, level, "");
}

MoeVal moe_tree_next_run(MoeEmit *e, MoeVal segs, MoeVal first, MoeVal pos, int64_t n_places, int levels) {
    MoeVal none = moe_k64(e, (int64_t)1 << levels), one = moe_k64(e, 1), found = none;
    MoeCarryLoop l;
    moe_carry_begin(e, &l, moe_iadd(e, pos, one), moe_k64(e, n_places), one, &found, 1);
    MoeVal at = moe_iadd(e, first, l.l.index);
    MoeVal rows = LLVMBuildICmp(e->b, LLVMIntSGT, moe_load_index(e, segs, moe_iadd(e, at, one)),
                                moe_load_index(e, segs, at), "");
    MoeVal is_first = LLVMBuildAnd(e->b, rows, LLVMBuildICmp(e->b, LLVMIntEQ, found, none, ""), "");
    found = LLVMBuildSelect(e->b, is_first, l.l.index, found, "");
    moe_carry_end(e, &l, &found);
    return found;
}
