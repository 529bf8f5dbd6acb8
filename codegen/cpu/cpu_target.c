/* The CPU target: MoeTarget over the table of kinds (codegen/kinds.h).
 *
 * In: groups of ops. Out: launches of kernels, then one object file. A group's kind is that of its
 * anchor; a row of this table lowers it. Kernels are shared by key (emit.c). */
#include "codegen/cpu/cpu.h"

#include <llvm-c/Analysis.h>
#include <llvm-c/Error.h>
#include <llvm-c/Target.h>
#include <llvm-c/Transforms/PassBuilder.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/assert.h"
#include "codegen/cpu/kernel_table.h"
#include "codegen/cpu/kind_row.h"
#include "ir/numbers.h"

typedef struct {
    int64_t (*workspace)(MoeCpuTarget *t, const MoeGroup *g);
    MoeStatus (*lower)(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out);
} CpuKindRow;

static const CpuKindRow rows[MOE_N_GROUP_KINDS] = {
#define X(name) [MOE_GROUP_##name] = {moe_cpu_##name##_workspace, moe_cpu_##name##_lower},
    MOE_GROUP_KINDS(X)
#undef X
};

/* ---- groups ---- */

static bool target_can_alias(const MoeTarget *t, const MoeGroup *group, const MoeValue *input,
                             const MoeValue *output) {
    MoeRowRules rules = moe_cpu_row_rules((const MoeCpuTarget *)t);
    return moe_group_can_alias(&rules, group, input, output);
}

static int64_t target_workspace(MoeTarget *t, const MoeGroup *group) {
    MoeGroupKind kind = moe_group_kind(group->ops, group->n_ops);
    return kind == MOE_N_GROUP_KINDS ? 0 : rows[kind].workspace((MoeCpuTarget *)t, group);
}

static int64_t target_workspace_expected(MoeTarget *t, const MoeGroup *group) {
    MoeRowRules rules = moe_cpu_row_rules((const MoeCpuTarget *)t);
    return moe_group_works_by_rows(group) ? moe_row_workspace_expected(&rules, group)
                                          : target_workspace(t, group);
}

static MoeStatus target_lower(MoeTarget *t, const MoeGroup *group, MoeLowered *out) {
    MoeGroupKind kind = moe_group_kind(group->ops, group->n_ops);
    return kind == MOE_N_GROUP_KINDS ? NULL : rows[kind].lower((MoeCpuTarget *)t, group, out);
}

/* ---- object code ---- */

/* Kernels arrive with their vectors and loops laid out, so a light pipeline does; no pass that
 * makes calls to libc (loop idioms) or that vectorizes again. The two spellings of instcombine:
 * LLVM 18 and newer, LLVM 16 and 17. */
static const char *const pipelines[] = {
    "function(sroa,early-cse,instcombine<no-verify-fixpoint>,simplifycfg,loop(loop-rotate),"
    "loop-mssa(licm),early-cse<memssa>,instcombine<no-verify-fixpoint>,simplifycfg),globaldce",
    "function(sroa,early-cse,instcombine,simplifycfg,loop(loop-rotate),loop-mssa(licm),"
    "early-cse<memssa>,instcombine,simplifycfg),globaldce",
};

static MoeStatus optimize(MoeCpuTarget *t) {
    LLVMPassBuilderOptionsRef options = LLVMCreatePassBuilderOptions();
    LLVMErrorRef err = NULL;
    for (size_t i = 0; i < sizeof pipelines / sizeof pipelines[0]; i++) {
        if (err)
            LLVMConsumeError(err);
        err = LLVMRunPasses(t->module, pipelines[i], t->machine, options);
        if (!err)
            break;
    }
    LLVMDisposePassBuilderOptions(options);
    if (!err)
        return NULL;
    char *text = LLVMGetErrorMessage(err);
    MoeStatus st = moe_error(MOE_E_INTERNAL, "LLVM's passes failed: %s", text);
    LLVMDisposeErrorMessage(text);
    return st;
}

static MoeStatus target_finish(MoeTarget *base, bool want_text, void **out_object, size_t *out_n,
                               char **out_text) {
    MoeCpuTarget *t = (MoeCpuTarget *)base;
    char *message = NULL;
    *out_object = NULL;
    *out_text = NULL;
    if (LLVMVerifyModule(t->module, LLVMReturnStatusAction, &message)) {
        MoeStatus st = moe_error(MOE_E_INTERNAL, "the emitted module is invalid: %s", message);
        LLVMDisposeMessage(message);
        return st;
    }
    LLVMDisposeMessage(message);
    MOE_TRY(optimize(t));
    if (want_text) {
        char *text = LLVMPrintModuleToString(t->module);
        *out_text = strdup(text);
        LLVMDisposeMessage(text);
        if (!*out_text)
            return moe_error(MOE_E_NOMEM, "no memory for the kernels' text");
    }
    LLVMMemoryBufferRef object = NULL;
    message = NULL;
    if (LLVMTargetMachineEmitToMemoryBuffer(t->machine, t->module, LLVMObjectFile, &message,
                                            &object)) {
        MoeStatus st = moe_error(MOE_E_INTERNAL, "LLVM could not emit object code: %s", message);
        LLVMDisposeMessage(message);
        free(*out_text);
        *out_text = NULL;
        return st;
    }
    *out_n = LLVMGetBufferSize(object);
    *out_object = malloc(*out_n ? *out_n : 1);
    if (*out_object)
        memcpy(*out_object, LLVMGetBufferStart(object), *out_n);
    LLVMDisposeMemoryBuffer(object);
    if (!*out_object) {
        free(*out_text);
        *out_text = NULL;
        return moe_error(MOE_E_NOMEM, "no memory for %zu bytes of object code", *out_n);
    }
    return NULL;
}

static void target_destroy(MoeTarget *base) {
    MoeCpuTarget *t = (MoeCpuTarget *)base;
    if (t->module)
        LLVMDisposeModule(t->module);
    if (t->machine)
        LLVMDisposeTargetMachine(t->machine);
    if (t->context)
        LLVMContextDispose(t->context);
    moe_arena_destroy(t->arena);
    moe_isa_free(&t->isa);
    free(t);
}

/* ---- creation ---- */

static void init_llvm(const MoeIsa *isa) {
    if (strncmp(isa->triple, "aarch64", 7) == 0 || strncmp(isa->triple, "arm64", 5) == 0) {
        LLVMInitializeAArch64TargetInfo();
        LLVMInitializeAArch64Target();
        LLVMInitializeAArch64TargetMC();
        LLVMInitializeAArch64AsmPrinter();
    } else {
        LLVMInitializeX86TargetInfo();
        LLVMInitializeX86Target();
        LLVMInitializeX86TargetMC();
        LLVMInitializeX86AsmPrinter();
    }
}

/* Rough rates for the cost model: full vectors, two FMA pipes (one on Zen 4 at 512 bits), 3.5 GHz.
 */
static void set_rates(MoeCpuTarget *t) {
    double pipes = strcmp(t->isa.cpu, "znver4") == 0 ? 1 : 2;
    t->base.peak_flops_f32 = 2.0 * t->isa.lanes * pipes * 3.5e9;
    t->base.peak_flops_bf16 = t->base.peak_flops_f32 * (t->isa.bf16_dot ? 2 : 1);
    t->base.memory_bandwidth = 40e9;
}

MoeStatus moe_cpu_target_create(const char *cpu, MoeTarget **out) {
    *out = NULL;
    MoeCpuTarget *t = calloc(1, sizeof *t);
    if (!t)
        return moe_error(MOE_E_NOMEM, "no memory for the target");
    MoeStatus st = moe_isa_get(cpu, &t->isa);
    if (st) {
        free(t);
        return st;
    }
    t->arena = moe_arena_create();
    snprintf(t->base.name, sizeof t->base.name, "cpu:%.58s", t->isa.cpu);
    t->base.object_file = "kernels.o";
    t->base.text_file = "kernels.ll";
    t->base.fuse = (MoeFuseRules){.row = true, .gather_matmul = true, .matmul_epilogue = true};
    t->base.leaf_rows = MOE_LEAF_ROWS;
    t->base.implements = moe_implements_primitives;
    t->base.can_join = moe_group_can_join;
    t->base.workspace_bytes = target_workspace;
    t->base.workspace_expected = target_workspace_expected;
    t->base.can_alias = target_can_alias;
    t->base.lower = target_lower;
    t->base.finish = target_finish;
    t->base.destroy = target_destroy;
    set_rates(t);

    init_llvm(&t->isa);
    LLVMTargetRef llvm_target = NULL;
    char *message = NULL;
    if (LLVMGetTargetFromTriple(t->isa.triple, &llvm_target, &message)) {
        st = moe_error(MOE_E_INPUT, "this LLVM has no target for '%s': %s", t->isa.triple, message);
        LLVMDisposeMessage(message);
        target_destroy(&t->base);
        return st;
    }
    t->machine =
        LLVMCreateTargetMachine(llvm_target, t->isa.triple, t->isa.cpu, t->isa.features,
                                LLVMCodeGenLevelAggressive, LLVMRelocPIC, LLVMCodeModelSmall);
    t->context = LLVMContextCreate();
    t->module = LLVMModuleCreateWithNameInContext("kernels", t->context);
    LLVMSetTarget(t->module, t->isa.triple);
    LLVMTargetDataRef layout = LLVMCreateTargetDataLayout(t->machine);
    char *layout_text = LLVMCopyStringRepOfTargetData(layout);
    LLVMSetDataLayout(t->module, layout_text);
    LLVMDisposeMessage(layout_text);
    LLVMDisposeTargetData(layout);
    *out = &t->base;
    return NULL;
}

/* ---- launches ---- */

void moe_cpu_launch(MoeLowered *out, const char *kernel, const MoeBufRef *refs, size_t n) {
    MoeLaunch launch = {.kernel = moe_arena_strdup(out->arena, kernel),
                        .bufs = moe_arena_copy(out->arena, refs, n * sizeof *refs),
                        .n_bufs = n};
    MOE_PUSH(out->arena, out->launches, out->n_launches, out->cap_launches, launch);
}

void moe_cpu_need_scratch(MoeLowered *out, int64_t n_bytes) {
    if (n_bytes > out->scratch_bytes)
        out->scratch_bytes = n_bytes;
}
