/* The CPU target: its state, its table of kinds, and the launch helpers the kinds share. */
#ifndef MOE_CODEGEN_CPU_CPU_H
#define MOE_CODEGEN_CPU_CPU_H

#include <llvm-c/Core.h>
#include <llvm-c/TargetMachine.h>
#include "codegen/bufs.h"
#include "codegen/cpu/isa.h"
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

/* KIND(ID, file): every kernel kind's group is lowered by moe_cpu_<name>_lower, its workspace asked
 * by moe_cpu_<name>_workspace. The kind of a group is that of its anchor: the first op that is
 * neither EW, ROW, DISPATCH nor DISPATCH_WEIGHT...; a group of EW, ROW and REDUCE ops alone is a
 * row group. */
#define MOE_CPU_KINDS(X)                                                                           \
    X(row)       /* kind_row.c: EW and ROW ops over one row space, col_sum at the end */           \
    X(reduce)    /* kind_reduce.c: sum_squares, its two halves, col_sum alone */                   \
    X(gemm)      /* kind_gemm.c: matmul, with gather and epilogue */                               \
    X(wgrad)     /* kind_wgrad.c */                                                                \
    X(route)     /* kind_route.c: route_plan, counts; kind_expert_plan.c: plans between ranks */   \
    X(move)      /* kind_move.c: dispatch, gather_sum, dispatch_weight, collect_weight */          \
    X(embed)     /* kind_embed.c: embedding, embedding_grad */                                     \
    X(rope)      /* kind_rope.c */                                                                 \
    X(attn)      /* kind_attn.c */                                                                 \
    X(attn_grad) /* kind_attn_grad.c */                                                            \
    X(xent)      /* kind_xent.c: linear_cross_entropy and its gradient, whole or in parts */

#define X(name)                                                                                    \
    int64_t moe_cpu_##name##_workspace(MoeCpuTarget *t, const MoeGroup *g);                        \
    MoeStatus moe_cpu_##name##_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out);
MOE_CPU_KINDS(X)
#undef X

/* What of a row group's workspace balanced routing touches, from its start. kind_row.c */
int64_t moe_cpu_row_workspace_expected(MoeCpuTarget *t, const MoeGroup *g);

/* Whether op may join a group that has a matmul, or that op (a matmul, a weight_grad) turns into
 * one. kind_gemm.c, kind_wgrad.c */
bool moe_cpu_gemm_joins(MoeOp *const *ops, size_t n_ops, const MoeOp *op);
bool moe_cpu_wgrad_joins(MoeOp *const *ops, size_t n_ops, const MoeOp *op);

/* Whether the output of a matmul's epilogue may take over a dying input of the epilogue. */
bool moe_cpu_gemm_can_alias(const MoeGroup *g, const MoeValue *input, const MoeValue *output);

/* cpu: "native" or a name of isa.c's table. */
MoeStatus moe_cpu_target_create(const char *cpu, MoeTarget **out);

void moe_cpu_launch(MoeLowered *out, const char *kernel, const MoeBufRef *refs, size_t n);
void moe_cpu_need_scratch(MoeLowered *out, int64_t n_bytes);

#endif
