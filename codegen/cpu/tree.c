/* The climb of tree.h, as one internal function that kernels call. */
#include "codegen/cpu/tree.h"

#include "codegen/cpu/kernel_table.h"

int moe_tree_levels(int64_t n_items) {
    int levels = 0;
    while (((int64_t)1 << levels) < n_items)
        levels++;
    return levels;
}

MoeTree moe_tree_create(MoeEmit *e, int64_t n_items, int first) {
    MoeTree t = {.levels = moe_tree_levels(n_items), .first = first};
    t.present = moe_alloca(e, e->i64, t.levels + 1);
    return t;
}

void moe_tree_reset(MoeEmit *e, const MoeTree *t) {
    for (int i = 0; i <= t->levels; i++)
        LLVMBuildStore(e->b, moe_k64(e, 0), moe_at(e, t->present, moe_k64(e, i), 8));
}

MoeTreeSlots moe_tree_slots_create(MoeEmit *e, int n, MoeVal base, int64_t unit) {
    MoeTreeSlots s = {.base = base, .unit = unit, .n = n};
    s.items = moe_alloca(e, e->i64, n);
    s.count = moe_alloca(e, e->i64, 1);
    s.last = moe_alloca(e, e->i64, 1);
    s.memory = moe_alloca(e, e->i64, n);
    for (int i = 0; i < n; i++)
        LLVMBuildStore(e->b, moe_k64(e, i), moe_at(e, s.memory, moe_k64(e, i), 8));
    return s;
}

void moe_tree_way_clear(MoeEmit *e, const MoeTreeSlots *s) {
    LLVMBuildStore(e->b, moe_k64(e, 0), s->count);
    LLVMBuildStore(e->b, moe_k64(e, -1), s->last);
}

static MoeVal load64(MoeEmit *e, MoeVal p) {
    return LLVMBuildLoad2(e->b, e->i64, p, "");
}

MoeVal moe_tree_way_count(MoeEmit *e, const MoeTreeSlots *s) {
    return load64(e, s->count);
}

MoeVal moe_tree_handle(MoeEmit *e, const MoeTreeSlots *s, MoeVal number) {
    MoeVal memory = load64(e, moe_at(e, s->memory, number, 8));
    return moe_iadd(e, s->base, moe_imul(e, memory, moe_k64(e, s->unit)));
}

MoeVal moe_tree_take(MoeEmit *e, const MoeTreeSlots *s, MoeVal number) {
    MoeVal last = load64(e, s->last);
    MoeVal none = LLVMBuildICmp(e->b, LLVMIntSLT, last, moe_k64(e, 0), "");
    MoeVal other = LLVMBuildSelect(e->b, none, number, last, "");
    MoeVal here = moe_at(e, s->memory, number, 8), there = moe_at(e, s->memory, other, 8);
    MoeVal a = load64(e, here), b = load64(e, there);
    LLVMBuildStore(e->b, b, here);
    LLVMBuildStore(e->b, a, there);
    return moe_tree_handle(e, s, number);
}

/* void climb(pos, next, levels, first, ptr present, ptr memory, base, unit, ptr items, ptr count,
 * ptr last, ptr out_number) */
static MoeVal climb_fn(MoeCpuTarget *target) {
    MoeEmit emit, *e = &emit;
    LLVMTypeRef ptr = LLVMPointerTypeInContext(target->context, 0);
    LLVMTypeRef i64 = LLVMInt64TypeInContext(target->context);
    LLVMTypeRef args[] = {i64, i64, i64, i64, ptr, ptr, i64, i64, ptr, ptr, ptr, ptr};
    MoeVal fn;
    if (!moe_emit_helper(target, "tree_climb", "tree_climb", args, 12, e, &fn))
        return fn;
    MoeVal pos = LLVMGetParam(fn, 0), next = LLVMGetParam(fn, 1), levels = LLVMGetParam(fn, 2);
    MoeVal first = LLVMGetParam(fn, 3), present = LLVMGetParam(fn, 4);
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
    MoeVal here = moe_at(e, present, level, 8);
    MoeVal stored = LLVMBuildICmp(e->b, LLVMIntNE, load64(e, here), zero, "");
    MoeIf add;
    moe_if_begin(e, &add, LLVMBuildAnd(e->b, LLVMBuildAnd(e->b, climbs, is_right, ""), stored, ""));
    MoeVal count = LLVMGetParam(fn, 9), n = load64(e, count), number = moe_iadd(e, first, level);
    MoeVal memory = load64(e, moe_at(e, LLVMGetParam(fn, 5), number, 8));
    MoeVal handle = moe_iadd(e, LLVMGetParam(fn, 6), moe_imul(e, memory, LLVMGetParam(fn, 7)));
    LLVMBuildStore(e->b, handle, moe_at(e, LLVMGetParam(fn, 8), n, 8));
    LLVMBuildStore(e->b, moe_iadd(e, n, one), count);
    LLVMBuildStore(e->b, number, LLVMGetParam(fn, 10));
    LLVMBuildStore(e->b, zero, here);
    moe_if_end(e, &add);
    MoeVal on = LLVMBuildAnd(e->b, climbs, LLVMBuildOr(e->b, is_right, alone, ""), "");
    vals[0] = LLVMBuildZExt(e->b, on, e->i64, "");
    vals[1] = moe_iadd(e, vals[1], vals[0]);
    moe_carry_end(e, &l, vals);
    LLVMBuildStore(e->b, moe_iadd(e, first, vals[1]), LLVMGetParam(fn, 11));
    LLVMBuildStore(e->b, one, moe_at(e, present, vals[1], 8)); /* the root's is not read */
    moe_emit_end(e);
    return fn;
}

MoeVal moe_tree_climb(MoeEmit *e, const MoeTree *t, MoeVal pos, MoeVal next,
                      const MoeTreeSlots *s) {
    MoeVal fn = climb_fn(e->t), number = moe_alloca(e, e->i64, 1);
    MoeVal args[] = {pos,
                     next,
                     moe_k64(e, t->levels),
                     moe_k64(e, t->first),
                     t->present,
                     s->memory,
                     s->base,
                     moe_k64(e, s->unit),
                     s->items,
                     s->count,
                     s->last,
                     number};
    moe_emit_call(e, fn, args, 12);
    return load64(e, number);
}

MoeVal moe_tree_next_run(MoeEmit *e, MoeVal segs, MoeVal first, MoeVal pos, int64_t n_places,
                         int levels) {
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
