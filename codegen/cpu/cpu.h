/* The CPU target: its state, its table of kinds, and the launch helpers the kinds share. */
#ifndef MOE_CODEGEN_CPU_CPU_H
#define MOE_CODEGEN_CPU_CPU_H

#include <llvm-c/Core.h>
#include <llvm-c/TargetMachine.h>
#include "codegen/bufs.h"
#include "codegen/cpu/isa.h"
#include "codegen/kinds.h"
#include "ir/target.h"

typedef struct MoeCpuTarget {
    MoeTarget base; /* first */
    MoeIsa isa;
    LLVMContextRef context;
    LLVMModuleRef module;
    LLVMTargetMachineRef machine;
    MoeArena *arena;
    struct MoeCpuKernel *kernels; /* by key */
    size_t n_kernels, cap_kernels;
} MoeCpuTarget;

/* Groups of each kind are lowered by moe_cpu_<name>_lower, their workspace asked by moe_cpu_<name>_workspace (kind_<name>.c);
 * a missing one fails at link time. */
#define X(name)                                                                                    \
    int64_t moe_cpu_##name##_workspace(MoeCpuTarget *t, const MoeGroup *g);                        \
    MoeStatus moe_cpu_##name##_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out);
MOE_GROUP_KINDS(X)
#undef X

/* cpu: "native" or a name of isa.c's table. */
MoeStatus moe_cpu_target_create(const char *cpu, MoeTarget **out);

void moe_cpu_launch(MoeLowered *out, const char *kernel, const MoeBufRef *refs, size_t n);
void moe_cpu_need_scratch(MoeLowered *out, int64_t n_bytes);

/* Writes out a dispatch that a product's group holds where its rows are read elsewhere, too (dispatch may be NULL). kind_move.c */
MoeStatus moe_cpu_dispatch_lower(MoeCpuTarget *t, const MoeGroup *g, const MoeOp *dispatch,
                                 MoeLowered *out);

#endif
