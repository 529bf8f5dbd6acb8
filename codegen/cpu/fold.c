/* fold.h: the stack lives in memory of the function's frame; items are folded lower index first. */
#include "codegen/cpu/fold.h"

enum { LEVELS = 48 };

void moe_fold_create(MoeEmit *e, MoeFold *f, LLVMTypeRef type) {
    f->type = type;
    f->items = moe_alloca(e, type, LEVELS);
    f->present = moe_alloca(e, e->i8, LEVELS);
    f->depth = moe_alloca(e, e->i64, 1);
    f->count = moe_alloca(e, e->i64, 1);
}

static MoeVal get(MoeEmit *e, MoeVal slot) {
    return LLVMBuildLoad2(e->b, e->i64, slot, "");
}
static void set(MoeEmit *e, MoeVal slot, MoeVal v) {
    LLVMBuildStore(e->b, v, slot);
}

static MoeVal item_at(MoeEmit *e, MoeFold *f, MoeVal level) {
    return LLVMBuildInBoundsGEP2(e->b, f->type, f->items, &level, 1, "");
}

static MoeVal flag_at(MoeEmit *e, MoeFold *f, MoeVal level) {
    return moe_at(e, f->present, level, 1);
}

void moe_fold_reset(MoeEmit *e, MoeFold *f) {
    set(e, f->depth, moe_k64(e, 0));
    set(e, f->count, moe_k64(e, 0));
}

/* The two on top become one. */
static void fold_top(MoeEmit *e, MoeFold *f) {
    MoeVal depth = get(e, f->depth);
    MoeVal left = moe_isub(e, depth, moe_k64(e, 2)), right = moe_isub(e, depth, moe_k64(e, 1));
    MoeVal a = LLVMBuildLoad2(e->b, f->type, item_at(e, f, left), "");
    MoeVal b = LLVMBuildLoad2(e->b, f->type, item_at(e, f, right), "");
    MoeVal fa = LLVMBuildLoad2(e->b, e->i8, flag_at(e, f, left), "");
    MoeVal fb = LLVMBuildLoad2(e->b, e->i8, flag_at(e, f, right), "");
    MoeVal none = LLVMConstInt(e->i8, 0, 0);
    MoeVal has_a = LLVMBuildICmp(e->b, LLVMIntNE, fa, none, ""),
           has_b = LLVMBuildICmp(e->b, LLVMIntNE, fb, none, "");
    MoeVal sum = LLVMBuildSelect(e->b, has_b, LLVMBuildFAdd(e->b, a, b, ""), a, "");
    LLVMBuildStore(e->b, LLVMBuildSelect(e->b, has_a, sum, b, ""), item_at(e, f, left));
    LLVMBuildStore(e->b, LLVMBuildOr(e->b, fa, fb, ""), flag_at(e, f, left));
    set(e, f->depth, right);
}

void moe_fold_push(MoeEmit *e, MoeFold *f, MoeVal item, MoeVal present) {
    MoeVal depth = get(e, f->depth), one = moe_k64(e, 1);
    MoeVal flag = present ? LLVMBuildZExt(e->b, present, e->i8, "") : LLVMConstInt(e->i8, 1, 0);
    LLVMBuildStore(e->b, item, item_at(e, f, depth));
    LLVMBuildStore(e->b, flag, flag_at(e, f, depth));
    set(e, f->depth, moe_iadd(e, depth, one));
    MoeVal count = moe_iadd(e, get(e, f->count), one);
    set(e, f->count, count);
    MoeVal args[] = {count, LLVMConstInt(e->i1, 1, 0)}; /* count is never 0 */
    MoeVal folds = moe_intrinsic(e, "llvm.cttz", e->i64, args, 2);
    MoeLoop l;
    moe_loop_begin(e, &l, moe_k64(e, 0), folds, one);
    fold_top(e, f);
    moe_loop_end(e, &l);
}

MoeVal moe_fold_finish(MoeEmit *e, MoeFold *f, MoeVal *out_present) {
    MoeLoop l;
    MoeVal zero = moe_k64(e, 0);
    moe_loop_begin(e, &l, moe_k64(e, 1), get(e, f->depth), moe_k64(e, 1));
    fold_top(e, f);
    moe_loop_end(e, &l);
    MoeVal some = LLVMBuildICmp(e->b, LLVMIntNE, get(e, f->depth), zero, "");
    MoeVal flag = LLVMBuildLoad2(e->b, e->i8, flag_at(e, f, zero), "");
    flag = LLVMBuildSelect(e->b, some, flag, LLVMConstInt(e->i8, 0, 0), "");
    MoeVal present = LLVMBuildICmp(e->b, LLVMIntNE, flag, LLVMConstInt(e->i8, 0, 0), "");
    if (out_present)
        *out_present = present;
    MoeVal root = LLVMBuildLoad2(e->b, f->type, item_at(e, f, zero), "");
    return LLVMBuildSelect(e->b, present, root, LLVMConstNull(f->type), "");
}
