/* Elementwise math as LLVM IR, on f32 scalars and vectors alike (emit.h, section "math").
 *
 * In: f32 values of any one type (float or <lanes x float>). Out: values of that type. No calls
 * into libm, so a kernel's bits depend on the instruction set alone. NaN operands give NaN results
 * everywhere: a poisoned loss must be seen, never hidden.
 *
 * exp: x = n ln2 + r, |r| <= ln2/2 (Cody-Waite), a degree-6 polynomial in r (Chebyshev fit of (e^r
 * - 1 - r) / r^2, error 1e-8), times 2^n in two factors, so that results down to the smallest
 * denormal are rounded once and overflow becomes infinity by itself. log: x = 2^k m, m in
 * [sqrt(1/2), sqrt(2)); with s = f/(2+f), f = m-1: log m = f - (f^2/2 - s (f^2/2 + R(s^2))), R the
 * odd series of atanh (four terms: error 2^-28). */
#include "codegen/cpu/emit.h"
#include "base/assert.h"

/* ---- constants of the operand's type ---- */

static unsigned width_of(LLVMTypeRef t) {
    return LLVMGetTypeKind(t) == LLVMVectorTypeKind ? LLVMGetVectorSize(t) : 0;
}

static MoeVal spread(unsigned width, MoeVal k) {
    LLVMValueRef lanes[64];
    if (width == 0)
        return k;
    MOE_ASSERT(width <= 64, "codegen: vector of %u lanes", width);
    for (unsigned i = 0; i < width; i++)
        lanes[i] = k;
    return LLVMConstVector(lanes, width);
}

static MoeVal kf_like(MoeEmit *e, MoeVal like, double v) {
    return spread(width_of(LLVMTypeOf(like)), LLVMConstReal(e->f32, v));
}

static MoeVal ki_like(MoeEmit *e, MoeVal like, int64_t v) {
    return spread(width_of(LLVMTypeOf(like)), LLVMConstInt(e->i32, (uint64_t)v, 1));
}

static LLVMTypeRef int_type_like(MoeEmit *e, MoeVal x) {
    unsigned w = width_of(LLVMTypeOf(x));
    return w ? LLVMVectorType(e->i32, w) : e->i32;
}

static MoeVal as_int(MoeEmit *e, MoeVal x) {
    return LLVMBuildBitCast(e->b, x, int_type_like(e, x), "");
}

static MoeVal as_float(MoeEmit *e, MoeVal x) {
    unsigned w = width_of(LLVMTypeOf(x));
    return LLVMBuildBitCast(e->b, x, w ? LLVMVectorType(e->f32, w) : e->f32, "");
}

static MoeVal fcmp(MoeEmit *e, LLVMRealPredicate p, MoeVal a, MoeVal b) {
    return LLVMBuildFCmp(e->b, p, a, b, "");
}

static MoeVal pick(MoeEmit *e, MoeVal cond, MoeVal a, MoeVal b) {
    return LLVMBuildSelect(e->b, cond, a, b, "");
}

/* An intrinsic overloaded on the operand's type: sqrt, fabs. */
static MoeVal unary_intrinsic(MoeEmit *e, const char *name, size_t n_name, MoeVal x) {
    LLVMTypeRef t = LLVMTypeOf(x);
    unsigned id = LLVMLookupIntrinsicID(name, n_name);
    MOE_ASSERT(id != 0, "codegen: no intrinsic %s", name);
    MoeVal fn = LLVMGetIntrinsicDeclaration(e->m, id, &t, 1);
    return LLVMBuildCall2(e->b, LLVMIntrinsicGetType(e->c, id, &t, 1), fn, &x, 1, "");
}

static MoeVal root(MoeEmit *e, MoeVal x) {
    return unary_intrinsic(e, "llvm.sqrt", 9, x);
}

/* ---- exp, log, sigmoid ---- */

/* 2^k for i32 k in [-126, 127]. */
static MoeVal power_of_two(MoeEmit *e, MoeVal k) {
    MoeVal biased = LLVMBuildAdd(e->b, k, ki_like(e, k, 127), "");
    return as_float(e, LLVMBuildShl(e->b, biased, ki_like(e, k, 23), ""));
}

MoeVal moe_math_exp(MoeEmit *e, MoeVal x) {
    LLVMBuilderRef b = e->b;
    /* Below -105 the result rounds to 0, above 89.5 it overflows: the clamps keep n in range.
     * Compares with NaN are false: NaN passes. */
    MoeVal top = kf_like(e, x, 89.5), bottom = kf_like(e, x, -105.0);
    x = pick(e, fcmp(e, LLVMRealOGT, x, top), top, x);
    x = pick(e, fcmp(e, LLVMRealOLT, x, bottom), bottom, x);
    /* Adding 1.5 * 2^23 rounds to an integer (nearest even) that then stands in the low mantissa
     * bits. */
    MoeVal magic = kf_like(e, x, 12582912.0);
    MoeVal t = moe_fma(e, x, kf_like(e, x, 1.44269504088896341), magic);
    MoeVal n = LLVMBuildFSub(b, t, magic, "");
    MoeVal k = LLVMBuildSub(b, as_int(e, t), as_int(e, magic), "");
    MoeVal r = moe_fma(e, n, kf_like(e, x, -0x1.62ep-1),
                       x); /* 12-bit constant: exact with or without FMA */
    r = moe_fma(e, n, kf_like(e, x, -0x1.0bfbe8p-15), r);
    MoeVal q = kf_like(e, x, 0x1.6d110ap-10);
    q = moe_fma(e, q, r, kf_like(e, x, 0x1.120b6ep-7));
    q = moe_fma(e, q, r, kf_like(e, x, 0x1.55551ap-5));
    q = moe_fma(e, q, r, kf_like(e, x, 0x1.5554dcp-3));
    q = moe_fma(e, q, r, kf_like(e, x, 0.5));
    MoeVal p = moe_fma(e, LLVMBuildFMul(b, r, r, ""), q, r);
    p = LLVMBuildFAdd(b, p, kf_like(e, x, 1.0), "");
    MoeVal k1 = LLVMBuildAShr(b, k, ki_like(e, k, 1), "");
    MoeVal k2 = LLVMBuildSub(b, k, k1, "");
    p = LLVMBuildFMul(b, p, power_of_two(e, k1), "");
    return LLVMBuildFMul(b, p, power_of_two(e, k2), "");
}

MoeVal moe_math_log(MoeEmit *e, MoeVal x) {
    LLVMBuilderRef b = e->b;
    /* Denormals are scaled into the normal range first. */
    MoeVal tiny = fcmp(e, LLVMRealOLT, x, kf_like(e, x, 0x1p-126));
    MoeVal y = pick(e, tiny, LLVMBuildFMul(b, x, kf_like(e, x, 0x1p23), ""), x);
    MoeVal bits = as_int(e, y);
    MoeVal bias = pick(e, tiny, ki_like(e, bits, 23), ki_like(e, bits, 0));
    /* Shifting the bits so that sqrt(1/2) sits on an exponent border leaves m in [sqrt(1/2),
     * sqrt(2)). */
    MoeVal base = ki_like(e, bits, 0x3f3504f3);
    MoeVal off = LLVMBuildSub(b, bits, base, "");
    MoeVal k = LLVMBuildAShr(b, off, ki_like(e, bits, 23), "");
    MoeVal m = as_float(
        e, LLVMBuildAdd(b, LLVMBuildAnd(b, off, ki_like(e, bits, 0x7fffff), ""), base, ""));
    k = LLVMBuildSub(b, k, bias, "");
    MoeVal kf = LLVMBuildSIToFP(b, k, LLVMTypeOf(x), "");
    MoeVal f = LLVMBuildFSub(b, m, kf_like(e, x, 1.0), "");
    MoeVal s = LLVMBuildFDiv(b, f, LLVMBuildFAdd(b, f, kf_like(e, x, 2.0), ""), "");
    MoeVal z = LLVMBuildFMul(b, s, s, "");
    MoeVal r = kf_like(e, x, 2.0 / 9.0);
    r = moe_fma(e, r, z, kf_like(e, x, 2.0 / 7.0));
    r = moe_fma(e, r, z, kf_like(e, x, 2.0 / 5.0));
    r = moe_fma(e, r, z, kf_like(e, x, 2.0 / 3.0));
    r = LLVMBuildFMul(b, r, z, "");
    MoeVal half = LLVMBuildFMul(b, LLVMBuildFMul(b, f, kf_like(e, x, 0.5), ""), f, "");
    MoeVal c = LLVMBuildFMul(b, s, LLVMBuildFAdd(b, half, r, ""), "");
    c = moe_fma(e, kf, kf_like(e, x, 0x1.0bfbe8p-15), c);
    MoeVal v = LLVMBuildFSub(b, f, LLVMBuildFSub(b, half, c, ""), "");
    v = moe_fma(e, kf, kf_like(e, x, 0x1.62ep-1), v);
    /* Specials: log(+-0) = -inf, log(negative) = NaN, +inf and NaN as they came. */
    MoeVal zero = kf_like(e, x, 0.0);
    v = pick(e, fcmp(e, LLVMRealOEQ, x, kf_like(e, x, 1.0 / 0.0)), x, v);
    v = pick(e, fcmp(e, LLVMRealOEQ, x, zero), kf_like(e, x, -1.0 / 0.0), v);
    return pick(e, fcmp(e, LLVMRealULT, x, zero), kf_like(e, x, 0.0 / 0.0), v);
}

MoeVal moe_math_sigmoid(MoeEmit *e, MoeVal x) {
    /* z = e^-|x| never overflows; for negative x the quotient z / (1 + z) keeps full relative
     * accuracy down to the denormals. */
    MoeVal size = unary_intrinsic(e, "llvm.fabs", 9, x);
    MoeVal z = moe_math_exp(e, LLVMBuildFNeg(e->b, size, ""));
    MoeVal one = kf_like(e, x, 1.0);
    MoeVal top = pick(e, fcmp(e, LLVMRealOLT, x, kf_like(e, x, 0.0)), z, one);
    return LLVMBuildFDiv(e->b, top, LLVMBuildFAdd(e->b, one, z, ""), "");
}

MoeVal moe_math_max(MoeEmit *e, MoeVal a, MoeVal b) {
    MoeVal first = LLVMBuildOr(e->b, fcmp(e, LLVMRealUNO, a, a), fcmp(e, LLVMRealOGT, a, b), "");
    return pick(e, first, a, b);
}

MoeVal moe_math_min(MoeEmit *e, MoeVal a, MoeVal b) {
    MoeVal first = LLVMBuildOr(e->b, fcmp(e, LLVMRealUNO, a, a), fcmp(e, LLVMRealOLT, a, b), "");
    return pick(e, first, a, b);
}

/* ---- one op of the table ---- */

static MoeVal ew_i32(MoeEmit *e, const MoeOp *op, const MoeVal *in) {
    LLVMBuilderRef b = e->b;
    MoeOpcode o = op->opcode;
    if (o == MOE_OP_ADD)
        return LLVMBuildAdd(b, in[0], in[1], "");
    if (o == MOE_OP_SUB)
        return LLVMBuildSub(b, in[0], in[1], "");
    if (o == MOE_OP_MUL)
        return LLVMBuildMul(b, in[0], in[1], "");
    if (o == MOE_OP_MAX || o == MOE_OP_MIN) {
        LLVMIntPredicate p = o == MOE_OP_MAX ? LLVMIntSGT : LLVMIntSLT;
        return pick(e, LLVMBuildICmp(b, p, in[0], in[1], ""), in[0], in[1]);
    }
    if (o == MOE_OP_BROADCAST)
        return in[0];
    MOE_ASSERT(o == MOE_OP_CONVERT, "codegen: %s has no i32 form", moe_op_info(o)->name);
    if (op->results[0]->type.dtype == MOE_I32)
        return in[0];
    unsigned w = width_of(LLVMTypeOf(in[0]));
    return LLVMBuildSIToFP(b, in[0], w ? LLVMVectorType(e->f32, w) : e->f32, "");
}

static MoeVal ew_f32(MoeEmit *e, const MoeOp *op, const MoeVal *in) {
    LLVMBuilderRef b = e->b;
    MoeOpcode o = op->opcode;
    if (o == MOE_OP_ADD)
        return LLVMBuildFAdd(b, in[0], in[1], "");
    if (o == MOE_OP_SUB)
        return LLVMBuildFSub(b, in[0], in[1], "");
    if (o == MOE_OP_MUL)
        return LLVMBuildFMul(b, in[0], in[1], "");
    if (o == MOE_OP_DIV)
        return LLVMBuildFDiv(b, in[0], in[1], "");
    if (o == MOE_OP_MAX)
        return moe_math_max(e, in[0], in[1]);
    if (o == MOE_OP_MIN)
        return moe_math_min(e, in[0], in[1]);
    if (o == MOE_OP_NEG)
        return LLVMBuildFNeg(b, in[0], "");
    if (o == MOE_OP_EXP)
        return moe_math_exp(e, in[0]);
    if (o == MOE_OP_LOG)
        return moe_math_log(e, in[0]);
    if (o == MOE_OP_SQRT)
        return root(e, in[0]);
    if (o == MOE_OP_RSQRT)
        return LLVMBuildFDiv(b, kf_like(e, in[0], 1.0), root(e, in[0]), "");
    if (o == MOE_OP_SIGMOID)
        return moe_math_sigmoid(e, in[0]);
    MOE_ASSERT(o == MOE_OP_CONVERT || o == MOE_OP_BROADCAST, "codegen: %s is not elementwise",
               moe_op_info(o)->name);
    return in[0];
}

MoeVal moe_math_ew(MoeEmit *e, const MoeOp *op, const MoeVal *in) {
    MoeDtype from = op->operands[0]->type.dtype, to = op->results[0]->type.dtype;
    MoeVal v = from == MOE_I32 ? ew_i32(e, op, in) : ew_f32(e, op, in);
    if (to != MOE_BF16)
        return v;
    /* A bf16 result is rounded as it is produced; ops that only choose among bf16 values are exact.
     */
    MoeOpcode o = op->opcode;
    bool exact = from == MOE_BF16 && (o == MOE_OP_NEG || o == MOE_OP_MAX || o == MOE_OP_MIN ||
                                      o == MOE_OP_CONVERT || o == MOE_OP_BROADCAST);
    return exact ? v : moe_bf16_round(e, v);
}
