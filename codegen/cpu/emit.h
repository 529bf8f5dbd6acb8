/* Building blocks for the kernel kinds of the CPU target, on LLVM's C API.
 *
 * A kind emits one kernel as a pair of functions (base/kernel_abi.h) between moe_emit_begin and
 * moe_emit_end:
 *
 *   const char *name;
 *   if (moe_emit_begin(t, key, "rope", &e, &name)) {   false: a kernel of this key exists already;
 * just use `name` moe_emit_tasks_body(&e); ... LLVMValueRef n = ...; moe_emit_return(&e, n);
 *       moe_emit_kernel_body(&e); ... use e.task, e.scratch, moe_emit_buf(&e, i) ...
 * moe_emit_end(&e);
 *   }
 *   moe_cpu_launch(out, name, refs, n_refs);
 *
 * `key` says everything the code depends on (kind, shapes, attributes, operand classes, dtypes), so
 * equal keys share code: one kernel serves all layers. Emission is deterministic. Vectors are
 * <lanes x float>; loops below are structured: begin ... end pairs, nesting freely. */
#ifndef MOE_CODEGEN_CPU_EMIT_H
#define MOE_CODEGEN_CPU_EMIT_H

#include <llvm-c/Core.h>
#include "codegen/cpu/cpu.h"

typedef LLVMValueRef MoeVal;

typedef struct MoeEmit {
    MoeCpuTarget *t;
    LLVMContextRef c;
    LLVMModuleRef m;
    LLVMBuilderRef b;
    MoeVal tasks_fn, kernel_fn, fn; /* fn: the one being emitted */
    LLVMBasicBlockRef entry;        /* entry block of fn: for allocas */
    MoeVal bufs, task, scratch;     /* arguments (task and scratch in the kernel body only) */
    LLVMTypeRef i1, i8, i16, i32, i64, f32, f64, ptr, v32, vi32,
        vbf16; /* v32: <lanes x float>; vi32 <lanes x i32>; vbf16: <lanes x i16> */
    int lanes;
    const char *name;     /* the kernel's symbol */
    MoeVal buf_cache[64]; /* buffers loaded so far in fn */
} MoeEmit;

bool moe_emit_begin(MoeCpuTarget *t, const char *key, const char *prefix, MoeEmit *e,
                    const char **out_name);
void moe_emit_tasks_body(MoeEmit *e);
void moe_emit_return(MoeEmit *e, MoeVal n_tasks);
void moe_emit_kernel_body(MoeEmit *e);
void moe_emit_end(MoeEmit *e); /* ret void, verifies the functions (assertion naming the kernel) */

/* ---- constants, arithmetic on i64 (the index type), pointers ---- */
MoeVal moe_k64(MoeEmit *e, int64_t v);
MoeVal moe_k32(MoeEmit *e, int64_t v);
MoeVal moe_kf(MoeEmit *e, double v);
MoeVal moe_iadd(MoeEmit *e, MoeVal a, MoeVal b);
MoeVal moe_isub(MoeEmit *e, MoeVal a, MoeVal b);
MoeVal moe_imul(MoeEmit *e, MoeVal a, MoeVal b);
MoeVal moe_idiv(MoeEmit *e, MoeVal a, MoeVal b); /* signed, operands >= 0 */
MoeVal moe_irem(MoeEmit *e, MoeVal a, MoeVal b);
MoeVal moe_imin(MoeEmit *e, MoeVal a, MoeVal b);
MoeVal moe_imax(MoeEmit *e, MoeVal a, MoeVal b);
MoeVal moe_iceildiv(MoeEmit *e, MoeVal a, int64_t b);
/* base + index * elem_bytes (+ constant byte offset) as a pointer. */
MoeVal moe_at(MoeEmit *e, MoeVal base, MoeVal index, int64_t elem_bytes);
MoeVal moe_at_bytes(MoeEmit *e, MoeVal base, MoeVal byte_offset);
MoeVal
moe_emit_buf(MoeEmit *e,
             int i); /* pointer of buffer i (loaded once at the entry of the current function) */
/* i64 from an i32 in memory: segs[index], ids[index]. */
MoeVal moe_load_index(MoeEmit *e, MoeVal ptr, MoeVal index);
void moe_store_i32(MoeEmit *e, MoeVal value_i64, MoeVal ptr, MoeVal index);
/* Zeroed or uninitialised stack slot at the function's entry. */
MoeVal moe_alloca(MoeEmit *e, LLVMTypeRef type, int64_t count);

/* Calls an LLVM intrinsic; overload: the type it is overloaded on (NULL: none). */
MoeVal moe_intrinsic(MoeEmit *e, const char *name, LLVMTypeRef overload, const MoeVal *args,
                     int n_args);

/* ---- structured control flow ---- */
typedef struct {
    LLVMBasicBlockRef head, body, exit;
    MoeVal index; /* i64, in the body */
    MoeVal step;
} MoeLoop;
/* for (index = lo; index < hi; index += step) */
void moe_loop_begin(MoeEmit *e, MoeLoop *l, MoeVal lo, MoeVal hi, MoeVal step);
void moe_loop_end(MoeEmit *e, MoeLoop *l);
/* A loop that carries n values (accumulators): vals in: initial; in the body: current (phi). Call
 * end with the next values in vals; after end vals hold the final ones. */
typedef struct {
    MoeLoop l;
    MoeVal phis[64];
    int n;
} MoeCarryLoop;
void moe_carry_begin(MoeEmit *e, MoeCarryLoop *l, MoeVal lo, MoeVal hi, MoeVal step, MoeVal *vals,
                     int n);
void moe_carry_end(MoeEmit *e, MoeCarryLoop *l, MoeVal *vals);
typedef struct {
    LLVMBasicBlockRef other, join;
    bool has_else;
} MoeIf;
void moe_if_begin(MoeEmit *e, MoeIf *s, MoeVal cond_i1);
void moe_if_else(MoeEmit *e, MoeIf *s);
void moe_if_end(MoeEmit *e, MoeIf *s);

/* ---- vectors: f32 math; memory in f32 or bf16 ---- */
MoeVal moe_splat(MoeEmit *e, MoeVal scalar_f32);
MoeVal moe_vconst(MoeEmit *e, double v);
/* Mask <lanes x i1> of lanes i < n_live (i64, may exceed lanes). */
MoeVal moe_mask(MoeEmit *e, MoeVal n_live);
/* Load/store `lanes` elements at base[index] of the dtype (F32, BF16; loads also I32, converted) as
 * f32 vector; mask NULL = all. Masked-off lanes read 0; where the ISA has no masked loads their
 * memory is touched, so index must lie inside the buffer or its slack. */
MoeVal moe_vload(MoeEmit *e, MoeDtype d, MoeVal base, MoeVal index, MoeVal mask);
void moe_vstore(MoeEmit *e, MoeDtype d, MoeVal v, MoeVal base, MoeVal index, MoeVal mask);
MoeVal moe_sload(MoeEmit *e, MoeDtype d, MoeVal base,
                 MoeVal index); /* scalar f32 (I32: converted) */
void moe_sstore(MoeEmit *e, MoeDtype d, MoeVal v, MoeVal base, MoeVal index);
MoeVal moe_fma(MoeEmit *e, MoeVal a, MoeVal b,
               MoeVal c); /* a*b+c; mul+add where the ISA has no fma */
/* Horizontal reductions of one vector by a fixed binary tree of lane halves -> scalar f32. */
MoeVal moe_hsum(MoeEmit *e, MoeVal v);
MoeVal moe_hmax(MoeEmit *e, MoeVal v);
MoeVal moe_bf16_round(MoeEmit *e,
                      MoeVal v); /* f32 -> nearest bf16 -> f32; vector or scalar; NaN stays NaN */

/* ---- math (codegen/cpu/math.c): work on scalars and vectors alike ---- */
MoeVal moe_math_exp(MoeEmit *e, MoeVal x); /* <= 2 ulp; 0 below -104, inf above 88.8, NaN stays */
MoeVal moe_math_log(MoeEmit *e, MoeVal x);
MoeVal moe_math_sigmoid(MoeEmit *e, MoeVal x);
/* The larger, the smaller; a NaN on either side is the result. */
MoeVal moe_math_max(MoeEmit *e, MoeVal a, MoeVal b);
MoeVal moe_math_min(MoeEmit *e, MoeVal a, MoeVal b);
/* One elementwise op of ops.def on f32 operands (vector or scalar, all alike). CONVERT to bf16
 * rounds (value stays f32). i32 operands (add, sub, mul, max, min, convert, broadcast) come and go
 * as i32 values. */
MoeVal moe_math_ew(MoeEmit *e, const MoeOp *op, const MoeVal *in);

#endif
