/* Kernels begin and end: the pair of functions of base/kernel_abi.h, one pair a key.
 *
 * In: a key that says everything the code depends on. Out: two functions in the target's module.
 * The entry block of each function holds allocas and the loads of buffer pointers alone, so that
 * both dominate everything. */
#include "codegen/cpu/emit.h"

#include <llvm-c/Analysis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/assert.h"
#include "codegen/cpu/kernel_table.h"

static void add_attr(MoeEmit *e, MoeVal fn, LLVMAttributeIndex where, const char *name) {
    unsigned kind = LLVMGetEnumAttributeKindForName(name, strlen(name));
    LLVMAddAttributeAtIndex(fn, where, LLVMCreateEnumAttribute(e->c, kind, 0));
}

void moe_emit_fn_attrs(MoeEmit *e, MoeVal fn) {
    char bits[16];
    snprintf(bits, sizeof bits, "%d", e->lanes * 32);
    add_attr(e, fn, LLVMAttributeFunctionIndex, "nounwind");
    /* Vectors of the full width, also on CPUs that LLVM tunes for narrower ones. */
    static const char *const keys[] = {"prefer-vector-width", "min-legal-vector-width"};
    for (size_t i = 0; i < 2; i++)
        LLVMAddAttributeAtIndex(fn, LLVMAttributeFunctionIndex,
                                LLVMCreateStringAttribute(e->c, keys[i], (unsigned)strlen(keys[i]),
                                                          bits, (unsigned)strlen(bits)));
}

static void init_types(MoeEmit *e, MoeCpuTarget *t) {
    memset(e, 0, sizeof *e);
    e->t = t;
    e->c = t->context;
    e->m = t->module;
    e->lanes = t->isa.lanes;
    unsigned n = (unsigned)e->lanes;
    e->i1 = LLVMInt1TypeInContext(e->c);
    e->i8 = LLVMInt8TypeInContext(e->c);
    e->i16 = LLVMInt16TypeInContext(e->c);
    e->i32 = LLVMInt32TypeInContext(e->c);
    e->i64 = LLVMInt64TypeInContext(e->c);
    e->f32 = LLVMFloatTypeInContext(e->c);
    e->f64 = LLVMDoubleTypeInContext(e->c);
    e->ptr = LLVMPointerTypeInContext(e->c, 0);
    e->v32 = LLVMVectorType(e->f32, n);
    e->vi32 = LLVMVectorType(e->i32, n);
    e->vbf16 = LLVMVectorType(e->i16, n);
}

static MoeCpuKernel *find_kernel(MoeCpuTarget *t, const char *key) {
    for (size_t i = 0; i < t->n_kernels; i++)
        if (strcmp(t->kernels[i].key, key) == 0)
            return &t->kernels[i];
    return NULL;
}

static MoeCpuKernel *add_kernel(MoeCpuTarget *t, const char *key, const char *prefix) {
    MoeCpuKernel k = {.key = moe_arena_strdup(t->arena, key),
                      .name = moe_arena_printf(t->arena, "%s_%zu", prefix, t->n_kernels)};
    MOE_PUSH(t->arena, t->kernels, t->n_kernels, t->cap_kernels, k);
    return &t->kernels[t->n_kernels - 1];
}

bool moe_emit_begin(MoeCpuTarget *t, const char *key, const char *prefix, MoeEmit *e,
                    const char **out_name) {
    init_types(e, t);
    MoeCpuKernel *k = find_kernel(t, key);
    if (k) {
        *out_name = e->name = k->name;
        return false;
    }
    k = add_kernel(t, key, prefix);
    *out_name = e->name = k->name;
    LLVMTypeRef tasks_args[] = {e->ptr};
    LLVMTypeRef kernel_args[] = {e->ptr, e->i64, e->ptr};
    char *tasks_name = moe_arena_printf(t->arena, "%s_tasks", k->name);
    e->tasks_fn = LLVMAddFunction(e->m, tasks_name, LLVMFunctionType(e->i64, tasks_args, 1, false));
    e->kernel_fn = LLVMAddFunction(
        e->m, k->name, LLVMFunctionType(LLVMVoidTypeInContext(e->c), kernel_args, 3, false));
    moe_emit_fn_attrs(e, e->tasks_fn);
    moe_emit_fn_attrs(e, e->kernel_fn);
    add_attr(e, e->tasks_fn, 1, "noalias");
    add_attr(e, e->kernel_fn, 1, "noalias");
    add_attr(e, e->kernel_fn, 3, "noalias");
    e->b = LLVMCreateBuilderInContext(e->c);
    return true;
}

bool moe_emit_helper(MoeCpuTarget *t, const char *key, const char *prefix, const LLVMTypeRef *args,
                     int n_args, MoeEmit *e, MoeVal *out_fn) {
    init_types(e, t);
    MoeCpuKernel *k = find_kernel(t, key);
    if (k) {
        *out_fn = LLVMGetNamedFunction(t->module, k->name);
        return false;
    }
    k = add_kernel(t, key, prefix);
    e->name = k->name;
    LLVMTypeRef type =
        LLVMFunctionType(LLVMVoidTypeInContext(e->c), (LLVMTypeRef *)args, (unsigned)n_args, false);
    *out_fn = LLVMAddFunction(e->m, k->name, type);
    LLVMSetLinkage(*out_fn, LLVMInternalLinkage);
    moe_emit_fn_attrs(e, *out_fn);
    add_attr(e, *out_fn, LLVMAttributeFunctionIndex, "noinline");
    e->b = LLVMCreateBuilderInContext(e->c);
    moe_emit_fn_body(e, *out_fn);
    return true;
}

void moe_emit_fn_body(MoeEmit *e, MoeVal fn) {
    e->fn = fn;
    memset(e->buf_cache, 0, sizeof e->buf_cache);
    e->entry = LLVMAppendBasicBlockInContext(e->c, fn, "entry");
    LLVMBasicBlockRef start = LLVMAppendBasicBlockInContext(e->c, fn, "start");
    LLVMPositionBuilderAtEnd(e->b, e->entry);
    LLVMBuildBr(e->b, start);
    LLVMPositionBuilderAtEnd(e->b, start);
}

void moe_emit_tasks_body(MoeEmit *e) {
    moe_emit_fn_body(e, e->tasks_fn);
    e->bufs = LLVMGetParam(e->fn, 0);
}

void moe_emit_return(MoeEmit *e, MoeVal n_tasks) {
    LLVMBuildRet(e->b, n_tasks);
}

void moe_emit_kernel_body(MoeEmit *e) {
    moe_emit_fn_body(e, e->kernel_fn);
    e->bufs = LLVMGetParam(e->fn, 0);
    e->task = LLVMGetParam(e->fn, 1);
    e->scratch = LLVMGetParam(e->fn, 2);
}

static void check_function(MoeEmit *e, MoeVal fn) {
    if (fn && LLVMVerifyFunction(fn, LLVMPrintMessageAction)) {
        char *text = LLVMPrintValueToString(fn);
        fprintf(stderr, "%s\n", text);
        LLVMDisposeMessage(text);
        MOE_ASSERT(false, "kernel %s: invalid code was emitted", e->name);
    }
}

void moe_emit_end(MoeEmit *e) {
    LLVMBuildRetVoid(e->b);
    LLVMDisposeBuilder(e->b);
    e->b = NULL;
    check_function(e, e->tasks_fn);
    check_function(e, e->kernel_fn ? e->kernel_fn : e->fn);
}

/* The builder goes to the end of the entry block and back. */
static LLVMBasicBlockRef enter_entry(MoeEmit *e) {
    LLVMBasicBlockRef here = LLVMGetInsertBlock(e->b);
    LLVMPositionBuilderBefore(e->b, LLVMGetBasicBlockTerminator(e->entry));
    return here;
}

MoeVal moe_emit_buf(MoeEmit *e, int i) {
    MOE_ASSERT(i >= 0 && (size_t)i < sizeof e->buf_cache / sizeof e->buf_cache[0],
               "kernel %s: buffer %d is beyond the limit", e->name, i);
    if (!e->buf_cache[i]) {
        LLVMBasicBlockRef here = enter_entry(e);
        MoeVal at = moe_at(e, e->bufs, moe_k64(e, i), 8);
        e->buf_cache[i] = LLVMBuildLoad2(e->b, e->ptr, at, "buf");
        LLVMPositionBuilderAtEnd(e->b, here);
    }
    return e->buf_cache[i];
}

MoeVal moe_alloca(MoeEmit *e, LLVMTypeRef type, int64_t count) {
    LLVMBasicBlockRef here = enter_entry(e);
    MoeVal p = LLVMBuildArrayAlloca(e->b, type, moe_k64(e, count), "slot");
    LLVMSetAlignment(p, 64);
    LLVMPositionBuilderAtEnd(e->b, here);
    return p;
}
