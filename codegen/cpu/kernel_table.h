/* The kernels and helper functions that a target's module holds so far, by key; and what emit.c
 * offers beyond emit.h to kinds that share internal functions (the register tiles). */
#ifndef MOE_CODEGEN_CPU_KERNEL_TABLE_H
#define MOE_CODEGEN_CPU_KERNEL_TABLE_H

#include "codegen/cpu/emit.h"

typedef struct MoeCpuKernel {
    const char *key, *name;
} MoeCpuKernel;

/* An internal function void NAME(args) shared by the kernels of the module. false: it exists
 * already (*out_fn is set). true: emit its body (arguments: LLVMGetParam(*out_fn, i)), then
 * moe_emit_end. */
bool moe_emit_helper(MoeCpuTarget *t, const char *key, const char *prefix, const LLVMTypeRef *args,
                     int n_args, MoeEmit *e, MoeVal *out_fn);
void moe_emit_call(MoeEmit *e, MoeVal fn, const MoeVal *args, int n_args);
/* Starts a function's body: entry and start blocks. */
void moe_emit_fn_body(MoeEmit *e, MoeVal fn);
void moe_emit_fn_attrs(MoeEmit *e, MoeVal fn);

#endif
