/* Index arithmetic, pointers and structured control flow for kernels.
 *
 * Indices are i64 and never overflow (extents are checked where shapes enter), hence the nsw forms,
 * which let LLVM turn them into pointer increments. */
#include <string.h>
#include "base/assert.h"
#include "codegen/cpu/emit.h"
#include "codegen/cpu/kernel_table.h"

MoeVal moe_k64(MoeEmit *e, int64_t v) {
    return LLVMConstInt(e->i64, (unsigned long long)v, true);
}
MoeVal moe_k32(MoeEmit *e, int64_t v) {
    return LLVMConstInt(e->i32, (unsigned long long)v, true);
}
MoeVal moe_kf(MoeEmit *e, double v) {
    return LLVMConstReal(e->f32, v);
}

MoeVal moe_iadd(MoeEmit *e, MoeVal a, MoeVal b) {
    return LLVMBuildNSWAdd(e->b, a, b, "");
}
MoeVal moe_isub(MoeEmit *e, MoeVal a, MoeVal b) {
    return LLVMBuildNSWSub(e->b, a, b, "");
}
MoeVal moe_imul(MoeEmit *e, MoeVal a, MoeVal b) {
    return LLVMBuildNSWMul(e->b, a, b, "");
}
/* Operands are >= 0, so the unsigned forms (shifts for powers of two) do. */
MoeVal moe_idiv(MoeEmit *e, MoeVal a, MoeVal b) {
    return LLVMBuildUDiv(e->b, a, b, "");
}
MoeVal moe_irem(MoeEmit *e, MoeVal a, MoeVal b) {
    return LLVMBuildURem(e->b, a, b, "");
}

MoeVal moe_imin(MoeEmit *e, MoeVal a, MoeVal b) {
    MoeVal less = LLVMBuildICmp(e->b, LLVMIntSLT, a, b, "");
    return LLVMBuildSelect(e->b, less, a, b, "");
}

MoeVal moe_imax(MoeEmit *e, MoeVal a, MoeVal b) {
    MoeVal more = LLVMBuildICmp(e->b, LLVMIntSGT, a, b, "");
    return LLVMBuildSelect(e->b, more, a, b, "");
}

MoeVal moe_iceildiv(MoeEmit *e, MoeVal a, int64_t b) {
    return moe_idiv(e, moe_iadd(e, a, moe_k64(e, b - 1)), moe_k64(e, b));
}

MoeVal moe_at_bytes(MoeEmit *e, MoeVal base, MoeVal byte_offset) {
    return LLVMBuildInBoundsGEP2(e->b, e->i8, base, &byte_offset, 1, "");
}

MoeVal moe_at(MoeEmit *e, MoeVal base, MoeVal index, int64_t elem_bytes) {
    LLVMTypeRef unit = NULL;
    if (elem_bytes == 1)
        unit = e->i8;
    else if (elem_bytes == 2)
        unit = e->i16;
    else if (elem_bytes == 4)
        unit = e->i32;
    else if (elem_bytes == 8)
        unit = e->i64;
    if (unit)
        return LLVMBuildInBoundsGEP2(e->b, unit, base, &index, 1, "");
    return moe_at_bytes(e, base, moe_imul(e, index, moe_k64(e, elem_bytes)));
}

MoeVal moe_load_index(MoeEmit *e, MoeVal ptr, MoeVal index) {
    MoeVal v = LLVMBuildLoad2(e->b, e->i32, moe_at(e, ptr, index, 4), "");
    return LLVMBuildSExt(e->b, v, e->i64, "");
}

void moe_store_i32(MoeEmit *e, MoeVal value_i64, MoeVal ptr, MoeVal index) {
    LLVMBuildStore(e->b, LLVMBuildTrunc(e->b, value_i64, e->i32, ""), moe_at(e, ptr, index, 4));
}

static LLVMBasicBlockRef new_block(MoeEmit *e, const char *name) {
    return LLVMAppendBasicBlockInContext(e->c, e->fn, name);
}

void moe_carry_begin(MoeEmit *e, MoeCarryLoop *l, MoeVal lo, MoeVal hi, MoeVal step, MoeVal *vals,
                     int n) {
    MOE_ASSERT(n >= 0 && n <= 64, "kernel %s: a loop carries %d values", e->name, n);
    LLVMBasicBlockRef before = LLVMGetInsertBlock(e->b);
    l->n = n;
    l->l.step = step;
    l->l.head = new_block(e, "head");
    l->l.body = new_block(e, "body");
    l->l.exit = new_block(e, "exit");
    LLVMBuildBr(e->b, l->l.head);
    LLVMPositionBuilderAtEnd(e->b, l->l.head);
    l->l.index = LLVMBuildPhi(e->b, e->i64, "i");
    LLVMAddIncoming(l->l.index, &lo, &before, 1);
    for (int i = 0; i < n; i++) {
        l->phis[i] = LLVMBuildPhi(e->b, LLVMTypeOf(vals[i]), "");
        LLVMAddIncoming(l->phis[i], &vals[i], &before, 1);
        vals[i] = l->phis[i];
    }
    MoeVal more = LLVMBuildICmp(e->b, LLVMIntSLT, l->l.index, hi, "");
    LLVMBuildCondBr(e->b, more, l->l.body, l->l.exit);
    LLVMPositionBuilderAtEnd(e->b, l->l.body);
}

void moe_carry_end(MoeEmit *e, MoeCarryLoop *l, MoeVal *vals) {
    MoeVal next = moe_iadd(e, l->l.index, l->l.step);
    LLVMBasicBlockRef here = LLVMGetInsertBlock(e->b);
    LLVMBuildBr(e->b, l->l.head);
    LLVMAddIncoming(l->l.index, &next, &here, 1);
    for (int i = 0; i < l->n; i++) {
        LLVMAddIncoming(l->phis[i], &vals[i], &here, 1);
        vals[i] = l->phis[i];
    }
    LLVMPositionBuilderAtEnd(e->b, l->l.exit);
}

void moe_loop_begin(MoeEmit *e, MoeLoop *l, MoeVal lo, MoeVal hi, MoeVal step) {
    MoeCarryLoop carry;
    moe_carry_begin(e, &carry, lo, hi, step, NULL, 0);
    *l = carry.l;
}

void moe_loop_end(MoeEmit *e, MoeLoop *l) {
    MoeCarryLoop carry;
    carry.l = *l;
    carry.n = 0;
    moe_carry_end(e, &carry, NULL);
}

void moe_if_begin(MoeEmit *e, MoeIf *s, MoeVal cond_i1) {
    LLVMBasicBlockRef then = new_block(e, "then");
    s->other = new_block(e, "else");
    s->join = new_block(e, "join");
    s->has_else = false;
    LLVMBuildCondBr(e->b, cond_i1, then, s->other);
    LLVMPositionBuilderAtEnd(e->b, then);
}

void moe_if_else(MoeEmit *e, MoeIf *s) {
    LLVMBuildBr(e->b, s->join);
    LLVMPositionBuilderAtEnd(e->b, s->other);
    s->has_else = true;
}

void moe_if_end(MoeEmit *e, MoeIf *s) {
    LLVMBuildBr(e->b, s->join);
    if (!s->has_else) {
        LLVMPositionBuilderAtEnd(e->b, s->other);
        LLVMBuildBr(e->b, s->join);
    }
    LLVMPositionBuilderAtEnd(e->b, s->join);
}

void moe_emit_call(MoeEmit *e, MoeVal fn, const MoeVal *args, int n_args) {
    LLVMBuildCall2(e->b, LLVMGlobalGetValueType(fn), fn, (MoeVal *)args, (unsigned)n_args, "");
}

MoeVal moe_intrinsic(MoeEmit *e, const char *name, LLVMTypeRef overload, const MoeVal *args,
                     int n_args) {
    unsigned id = LLVMLookupIntrinsicID(name, strlen(name));
    MOE_ASSERT(id != 0, "kernel %s: LLVM has no intrinsic %s", e->name, name);
    size_t n_over = overload ? 1 : 0;
    MoeVal fn = LLVMGetIntrinsicDeclaration(e->m, id, &overload, n_over);
    return LLVMBuildCall2(e->b, LLVMIntrinsicGetType(e->c, id, &overload, n_over), fn,
                          (MoeVal *)args, (unsigned)n_args, "");
}
