/* Vectors of f32 in kernels: loads and stores of f32 and bf16 memory, masks, fused multiply-add,
 * horizontal sums.
 *
 * bf16 is widened on load (exact) and rounded to nearest even on store with integer arithmetic,
 * exactly as base/half.h does (the hardware's conversion flushes denormals, so it is not used). */
#include <stdio.h>
#include <string.h>
#include "base/assert.h"
#include "codegen/cpu/emit.h"

static bool is_vector(LLVMTypeRef t) {
    return LLVMGetTypeKind(t) == LLVMVectorTypeKind;
}

/* The integer type of `bits` with as many lanes as `like`. */
static LLVMTypeRef int_like(MoeEmit *e, LLVMTypeRef like, unsigned bits) {
    LLVMTypeRef i = LLVMIntTypeInContext(e->c, bits);
    return is_vector(like) ? LLVMVectorType(i, LLVMGetVectorSize(like)) : i;
}

static MoeVal const_int_like(LLVMTypeRef type, uint64_t v) {
    if (!is_vector(type))
        return LLVMConstInt(type, v, false);
    MoeVal lanes[64];
    unsigned n = LLVMGetVectorSize(type);
    for (unsigned i = 0; i < n; i++)
        lanes[i] = LLVMConstInt(LLVMGetElementType(type), v, false);
    return LLVMConstVector(lanes, n);
}

MoeVal moe_vconst(MoeEmit *e, double v) {
    MoeVal lanes[64];
    for (int i = 0; i < e->lanes; i++)
        lanes[i] = moe_kf(e, v);
    return LLVMConstVector(lanes, (unsigned)e->lanes);
}

MoeVal moe_splat(MoeEmit *e, MoeVal scalar) {
    LLVMTypeRef type = LLVMVectorType(LLVMTypeOf(scalar), (unsigned)e->lanes);
    MoeVal one = LLVMBuildInsertElement(e->b, LLVMGetPoison(type), scalar, moe_k32(e, 0), "");
    MoeVal zeros = LLVMConstNull(LLVMVectorType(e->i32, (unsigned)e->lanes));
    return LLVMBuildShuffleVector(e->b, one, LLVMGetPoison(type), zeros, "");
}

MoeVal moe_mask(MoeEmit *e, MoeVal n_live) {
    MoeVal lanes[64];
    for (int i = 0; i < e->lanes; i++)
        lanes[i] = moe_k32(e, i);
    MoeVal n = moe_imin(e, n_live, moe_k64(e, e->lanes));
    n = moe_splat(e, LLVMBuildTrunc(e->b, n, e->i32, ""));
    return LLVMBuildICmp(e->b, LLVMIntSLT, LLVMConstVector(lanes, (unsigned)e->lanes), n, "");
}

static MoeVal masked(MoeEmit *e, const char *what, LLVMTypeRef vec, const MoeVal *args, int n) {
    unsigned id = LLVMLookupIntrinsicID(what, strlen(what));
    LLVMTypeRef over[] = {vec, e->ptr};
    MoeVal fn = LLVMGetIntrinsicDeclaration(e->m, id, over, 2);
    return LLVMBuildCall2(e->b, LLVMIntrinsicGetType(e->c, id, over, 2), fn, (MoeVal *)args,
                          (unsigned)n, "");
}

static MoeVal load_raw(MoeEmit *e, LLVMTypeRef vec, MoeVal at, unsigned align, MoeVal mask) {
    if (mask && e->lanes == 16) {
        MoeVal args[] = {at, moe_k32(e, align), mask, LLVMConstNull(vec)};
        return masked(e, "llvm.masked.load", vec, args, 4);
    }
    MoeVal v = LLVMBuildLoad2(e->b, vec, at, "");
    LLVMSetAlignment(v, align);
    return mask ? LLVMBuildSelect(e->b, mask, v, LLVMConstNull(vec), "") : v;
}

static MoeVal widen_bf16(MoeEmit *e, MoeVal raw) {
    LLVMTypeRef i = int_like(e, LLVMTypeOf(raw), 32);
    MoeVal v = LLVMBuildShl(e->b, LLVMBuildZExt(e->b, raw, i, ""), const_int_like(i, 16), "");
    return LLVMBuildBitCast(
        e->b, v, is_vector(i) ? LLVMVectorType(e->f32, LLVMGetVectorSize(i)) : e->f32, "");
}

MoeVal moe_vload(MoeEmit *e, MoeDtype d, MoeVal base, MoeVal index, MoeVal mask) {
    MoeVal at = moe_at(e, base, index, moe_dtype_bytes(d));
    if (d == MOE_BF16)
        return widen_bf16(e, load_raw(e, e->vbf16, at, 2, mask));
    if (d == MOE_I32)
        return LLVMBuildSIToFP(e->b, load_raw(e, e->vi32, at, 4, mask), e->v32, "");
    return load_raw(e, e->v32, at, 4, mask);
}

/* Bits of the nearest bf16, in i32 lanes (upper half zero). */
static MoeVal bf16_bits(MoeEmit *e, MoeVal v) {
    LLVMTypeRef i = int_like(e, LLVMTypeOf(v), 32);
    MoeVal u = LLVMBuildBitCast(e->b, v, i, "");
    MoeVal high = LLVMBuildLShr(e->b, u, const_int_like(i, 16), "");
    MoeVal odd = LLVMBuildAnd(e->b, high, const_int_like(i, 1), "");
    MoeVal bias = LLVMBuildAdd(e->b, odd, const_int_like(i, 0x7fff), "");
    MoeVal round = LLVMBuildLShr(e->b, LLVMBuildAdd(e->b, u, bias, ""), const_int_like(i, 16), "");
    MoeVal quiet = LLVMBuildOr(e->b, high, const_int_like(i, 0x40), "");
    MoeVal nan = LLVMBuildFCmp(e->b, LLVMRealUNO, v, v, "");
    return LLVMBuildSelect(e->b, nan, quiet, round, "");
}

MoeVal moe_bf16_round(MoeEmit *e, MoeVal v) {
    MoeVal bits = bf16_bits(e, v);
    LLVMTypeRef i = LLVMTypeOf(bits);
    bits = LLVMBuildShl(e->b, bits, const_int_like(i, 16), "");
    return LLVMBuildBitCast(e->b, bits, LLVMTypeOf(v), "");
}

void moe_vstore(MoeEmit *e, MoeDtype d, MoeVal v, MoeVal base, MoeVal index, MoeVal mask) {
    MOE_ASSERT(d != MOE_I32, "kernel %s: a float vector is stored as i32", e->name);
    MoeVal at = moe_at(e, base, index, moe_dtype_bytes(d));
    unsigned align = (unsigned)moe_dtype_bytes(d);
    if (d == MOE_BF16) {
        MoeVal bits = bf16_bits(e, v);
        v = LLVMBuildTrunc(e->b, bits, int_like(e, LLVMTypeOf(bits), 16), "");
    }
    if (mask) {
        MoeVal args[] = {v, at, moe_k32(e, align), mask};
        masked(e, "llvm.masked.store", LLVMTypeOf(v), args, 4);
        return;
    }
    LLVMSetAlignment(LLVMBuildStore(e->b, v, at), align);
}

MoeVal moe_sload(MoeEmit *e, MoeDtype d, MoeVal base, MoeVal index) {
    MoeVal at = moe_at(e, base, index, moe_dtype_bytes(d));
    if (d == MOE_BF16)
        return widen_bf16(e, LLVMBuildLoad2(e->b, e->i16, at, ""));
    if (d == MOE_I32)
        return LLVMBuildSIToFP(e->b, LLVMBuildLoad2(e->b, e->i32, at, ""), e->f32, "");
    return LLVMBuildLoad2(e->b, e->f32, at, "");
}

void moe_sstore(MoeEmit *e, MoeDtype d, MoeVal v, MoeVal base, MoeVal index) {
    MoeVal at = moe_at(e, base, index, moe_dtype_bytes(d));
    if (d == MOE_BF16)
        v = LLVMBuildTrunc(e->b, bf16_bits(e, v), e->i16, "");
    LLVMBuildStore(e->b, v, at);
}

MoeVal moe_fma(MoeEmit *e, MoeVal a, MoeVal b, MoeVal c) {
    if (!e->t->isa.fma)
        return LLVMBuildFAdd(e->b, LLVMBuildFMul(e->b, a, b, ""), c, "");
    MoeVal args[] = {a, b, c};
    return moe_intrinsic(e, "llvm.fma", LLVMTypeOf(a), args, 3);
}

/* The two halves of a vector's lanes. */
static void halves(MoeEmit *e, MoeVal v, MoeVal *lo, MoeVal *hi) {
    unsigned n = LLVMGetVectorSize(LLVMTypeOf(v)) / 2;
    MoeVal lanes[2][32];
    for (unsigned i = 0; i < n; i++) {
        lanes[0][i] = moe_k32(e, i);
        lanes[1][i] = moe_k32(e, i + n);
    }
    MoeVal none = LLVMGetPoison(LLVMTypeOf(v));
    *lo = LLVMBuildShuffleVector(e->b, v, none, LLVMConstVector(lanes[0], n), "");
    *hi = LLVMBuildShuffleVector(e->b, v, none, LLVMConstVector(lanes[1], n), "");
}

MoeVal moe_hsum(MoeEmit *e, MoeVal v) {
    while (LLVMGetVectorSize(LLVMTypeOf(v)) > 1) {
        MoeVal lo, hi;
        halves(e, v, &lo, &hi);
        v = LLVMBuildFAdd(e->b, lo, hi, "");
    }
    return LLVMBuildExtractElement(e->b, v, moe_k32(e, 0), "");
}

/* The larger; a NaN in either operand wins, as in the interpreter's row_max. */
static MoeVal larger(MoeEmit *e, MoeVal a, MoeVal b) {
    MoeVal keep = LLVMBuildFCmp(e->b, LLVMRealUGT, a, b, ""); /* a > b or unordered */
    MoeVal a_or_b = LLVMBuildSelect(e->b, keep, a, b, "");
    MoeVal b_nan = LLVMBuildFCmp(e->b, LLVMRealUNO, b, b, "");
    return LLVMBuildSelect(e->b, b_nan, b, a_or_b, "");
}

MoeVal moe_hmax(MoeEmit *e, MoeVal v) {
    while (LLVMGetVectorSize(LLVMTypeOf(v)) > 1) {
        MoeVal lo, hi;
        halves(e, v, &lo, &hi);
        v = larger(e, lo, hi);
    }
    return LLVMBuildExtractElement(e->b, v, moe_k32(e, 0), "");
}
