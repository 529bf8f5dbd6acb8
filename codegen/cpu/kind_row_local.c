/* top-k, take and put on one row.
 *
 * top-k turns (value, column) into one i64 key: the value's bits mapped so that integer order is
 * float order, above the complement of the column, so that the largest key is the largest value
 * with the lowest column. k rounds take the maximum and strike it out: in registers for up to 128
 * columns or so, else in memory. */
#include "codegen/cpu/kind_row_local.h"

#include "base/assert.h"

enum { REGISTER_VECTORS = 8 };

/* x as <lanes x i64> keys for columns first + lane; lanes at or beyond n_live get the smallest key.
 */
static MoeVal make_keys(MoeEmit *e, MoeVal x, MoeVal first, MoeVal n_live) {
    LLVMBuilderRef b = e->b;
    LLVMTypeRef v64 = LLVMVectorType(e->i64, (unsigned)e->lanes);
    MoeVal lane[64];
    for (int i = 0; i < e->lanes; i++)
        lane[i] = moe_k64(e, i);
    MoeVal column =
        LLVMBuildAdd(b, LLVMConstVector(lane, (unsigned)e->lanes), moe_splat(e, first), "");
    MoeVal nan = LLVMBuildFCmp(b, LLVMRealUNO, x, x, "");
    x = LLVMBuildSelect(b, nan, moe_vconst(e, -1.0 / 0.0), x, "");
    x = LLVMBuildFAdd(b, x, moe_vconst(e, 0.0), ""); /* -0 becomes +0 */
    MoeVal bits = LLVMBuildBitCast(b, x, e->vi32, "");
    MoeVal sign = LLVMBuildAShr(b, bits, moe_splat(e, moe_k32(e, 31)), "");
    MoeVal order =
        LLVMBuildXor(b, bits, LLVMBuildAnd(b, sign, moe_splat(e, moe_k32(e, 0x7fffffff)), ""), "");
    MoeVal key =
        LLVMBuildShl(b, LLVMBuildSExt(b, order, v64, ""), moe_splat(e, moe_k64(e, 32)), "");
    key =
        LLVMBuildOr(b, key, LLVMBuildSub(b, moe_splat(e, moe_k64(e, 0xffffffff)), column, ""), "");
    return LLVMBuildSelect(b, moe_mask(e, n_live), key, moe_splat(e, moe_k64(e, INT64_MIN)), "");
}

static MoeVal larger(MoeEmit *e, MoeVal a, MoeVal b) {
    return LLVMBuildSelect(e->b, LLVMBuildICmp(e->b, LLVMIntSGT, a, b, ""), a, b, "");
}

static MoeVal largest_lane(MoeEmit *e, MoeVal keys) {
    return moe_intrinsic(e, "llvm.vector.reduce.smax", LLVMTypeOf(keys), &keys, 1);
}

/* The column that a key names. */
static MoeVal column_of(MoeEmit *e, MoeVal key) {
    MoeVal low = moe_k64(e, 0xffffffff);
    return LLVMBuildSub(e->b, low, LLVMBuildAnd(e->b, key, low, ""), "");
}

static void topk_in_registers(MoeEmit *e, MoeRowMemory x, MoeRowMemory ids) {
    MoeVal keys[REGISTER_VECTORS];
    int n = (int)((x.cols + e->lanes - 1) / e->lanes);
    for (int i = 0; i < n; i++) {
        MoeVal first = moe_k64(e, i * e->lanes);
        MoeVal v = moe_vload(e, x.dtype, x.at, first, NULL);
        keys[i] = make_keys(e, v, first, moe_k64(e, x.cols - i * e->lanes));
    }
    MoeVal struck = moe_splat(e, moe_k64(e, INT64_MIN));
    for (int64_t j = 0; j < ids.cols; j++) {
        MoeVal best = keys[0];
        for (int i = 1; i < n; i++)
            best = larger(e, best, keys[i]);
        best = largest_lane(e, best);
        moe_store_i32(e, column_of(e, best), ids.at, moe_k64(e, j));
        MoeVal all = moe_splat(e, best);
        for (int i = 0; i < n && j + 1 < ids.cols; i++)
            keys[i] = LLVMBuildSelect(e->b, LLVMBuildICmp(e->b, LLVMIntEQ, keys[i], all, ""),
                                      struck, keys[i], "");
    }
}

static void topk_in_memory(MoeEmit *e, MoeRowMemory x, MoeRowMemory ids) {
    LLVMTypeRef v64 = LLVMVectorType(e->i64, (unsigned)e->lanes);
    MoeVal zero = moe_k64(e, 0), step = moe_k64(e, e->lanes), end = moe_k64(e, x.cols);
    MoeVal keys = moe_alloca(e, v64, (x.cols + e->lanes - 1) / e->lanes);
    MoeLoop fill, rounds;
    moe_loop_begin(e, &fill, zero, end, step);
    MoeVal v = make_keys(e, moe_vload(e, x.dtype, x.at, fill.index, NULL), fill.index,
                         moe_isub(e, end, fill.index));
    LLVMBuildStore(e->b, v, moe_at(e, keys, fill.index, 8));
    moe_loop_end(e, &fill);
    moe_loop_begin(e, &rounds, zero, moe_k64(e, ids.cols), moe_k64(e, 1));
    MoeVal best = moe_splat(e, moe_k64(e, INT64_MIN));
    MoeCarryLoop scan;
    moe_carry_begin(e, &scan, zero, end, step, &best, 1);
    MoeVal next = larger(e, best, LLVMBuildLoad2(e->b, v64, moe_at(e, keys, scan.l.index, 8), ""));
    moe_carry_end(e, &scan, &next);
    MoeVal column = column_of(e, largest_lane(e, next));
    moe_store_i32(e, column, ids.at, rounds.index);
    LLVMBuildStore(e->b, moe_k64(e, INT64_MIN), moe_at(e, keys, column, 8));
    moe_loop_end(e, &rounds);
}

void moe_row_emit_topk(MoeEmit *e, MoeRowMemory x, MoeRowMemory ids) {
    MOE_ASSERT(ids.cols <= x.cols, "topk: k is larger than the row");
    if (x.cols <= (int64_t)e->lanes * REGISTER_VECTORS && ids.cols <= 16)
        topk_in_registers(e, x, ids);
    else
        topk_in_memory(e, x, ids);
}

void moe_row_emit_take(MoeEmit *e, MoeRowMemory x, MoeRowMemory ids, MoeRowMemory out) {
    MoeLoop l;
    moe_loop_begin(e, &l, moe_k64(e, 0), moe_k64(e, ids.cols), moe_k64(e, 1));
    MoeVal v = moe_sload(e, x.dtype, x.at, moe_load_index(e, ids.at, l.index));
    moe_sstore(e, out.dtype, v, out.at, l.index);
    moe_loop_end(e, &l);
}

void moe_row_emit_put(MoeEmit *e, MoeRowMemory x, MoeRowMemory ids, MoeRowMemory out) {
    MoeVal zero = moe_k64(e, 0), end = moe_k64(e, out.cols);
    MoeLoop clear, l;
    moe_loop_begin(e, &clear, zero, end, moe_k64(e, e->lanes));
    moe_vstore(e, out.dtype, moe_vconst(e, 0.0), out.at, clear.index,
               moe_mask(e, moe_isub(e, end, clear.index)));
    moe_loop_end(e, &clear);
    moe_loop_begin(e, &l, zero, moe_k64(e, ids.cols), moe_k64(e, 1));
    MoeVal v = moe_sload(e, x.dtype, x.at, l.index);
    moe_sstore(e, out.dtype, v, out.at, moe_load_index(e, ids.at, l.index));
    moe_loop_end(e, &l);
}
