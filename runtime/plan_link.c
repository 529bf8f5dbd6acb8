/* Linking a plan's object code with ORC (LLVM C API): one LLJIT a plan, each kernel looked up as
 * NAME and NAME_tasks. Symbols that kernels import (memcpy, libm) come from this process, functions of
 * this program by their addresses (plan_functions.h); kernel names themselves are looked up in the
 * object alone. */
#include "runtime/plan_read.h"

#include <string.h>

#include <llvm-c/Core.h>
#include <llvm-c/Error.h>
#include <llvm-c/LLJIT.h>
#include <llvm-c/Orc.h>
#include <llvm-c/Target.h>
#include <llvm-c/TargetMachine.h>
#include <llvm/Config/llvm-config.h>

#include "runtime/plan_functions.h"

/* LLVM's error as a status; consumes it. */
static MoeStatus llvm_status(LLVMErrorRef e, const char *name, const char *what) {
    if (!e)
        return NULL;
    char *text = LLVMGetErrorMessage(e);
    MoeStatus st = moe_error(MOE_E_CORRUPT, "%s: %s: %s; compile the plan again", name, what, text);
    LLVMDisposeErrorMessage(text);
    return st;
}

/* Function addresses come as integers; memcpy keeps the conversion within ISO C. */
#define SET_FUNCTION(field, address)                                                               \
    do {                                                                                           \
        void *moe_p_ = (void *)(uintptr_t)(address);                                               \
        memcpy(&(field), &moe_p_, sizeof(field));                                                  \
    } while (0)

static MoeStatus resolve(LLVMOrcLLJITRef jit, const char *name, const char *program, size_t index,
                         MoePlanStep *s) {
    char symbol[300];
    LLVMOrcExecutorAddress a = 0, b = 0;
    snprintf(symbol, sizeof symbol, "%s_tasks", s->kernel);
    LLVMErrorRef e = LLVMOrcLLJITLookup(jit, &a, s->kernel);
    if (!e)
        e = LLVMOrcLLJITLookup(jit, &b, symbol);
    if (e || !a || !b) {
        char what[512];
        snprintf(what, sizeof what, "programs.%s.steps[%zu]: kernel \"%.200s\" cannot be linked",
                 program, index, s->kernel);
        return e ? llvm_status(e, name, what) : moe_error(MOE_E_CORRUPT, "%s: %s", name, what);
    }
    SET_FUNCTION(s->run, a);
    SET_FUNCTION(s->tasks, b);
    return NULL;
}

MoeStatus moe_plan_link(MoePlan *p, const char *name, const void *object, size_t object_bytes) {
    if (LLVMInitializeNativeTarget() || LLVMInitializeNativeAsmPrinter())
        return moe_error(MOE_E_INTERNAL, "LLVM has no code generator for this machine");
    LLVMOrcLLJITRef jit = NULL;
    MOE_TRY(llvm_status(LLVMOrcCreateLLJIT(&jit, LLVMOrcCreateLLJITBuilder()), name,
                        "cannot start the linker"));
    p->jit = jit;
    LLVMOrcJITDylibRef dylib = LLVMOrcLLJITGetMainJITDylib(jit);
#if LLVM_VERSION_MAJOR < 17
    /* From 17 on LLJIT links the process's symbols by itself. */
    LLVMOrcDefinitionGeneratorRef process = NULL;
    MOE_TRY(llvm_status(LLVMOrcCreateDynamicLibrarySearchGeneratorForProcess(
                            &process, LLVMOrcLLJITGetGlobalPrefix(jit), NULL, NULL),
                        name, "cannot reach this process's symbols"));
    LLVMOrcJITDylibAddGenerator(dylib, process);
#endif
    MOE_TRY(llvm_status(moe_plan_define_functions(jit), name, "cannot name this program's functions"));
    LLVMMemoryBufferRef buffer =
        LLVMCreateMemoryBufferWithMemoryRangeCopy(object, object_bytes, "kernels.o");
    MOE_TRY(llvm_status(LLVMOrcLLJITAddObjectFile(jit, dylib, buffer), name,
                        "kernels.o is not object code"));
    for (size_t g = 0; g < p->n_programs; g++)
        for (size_t i = 0; i < p->programs[g].n_steps; i++)
            if (p->programs[g].steps[i].kernel)
                MOE_TRY(resolve(jit, name, p->programs[g].name, i, &p->programs[g].steps[i]));
    return NULL;
}

void moe_plan_unlink(MoePlan *p) {
    if (p->jit)
        LLVMConsumeError(LLVMOrcDisposeLLJIT(p->jit));
    p->jit = NULL;
}

/* What code for a named CPU certainly needs. Names that are not here are left to the command line,
 * which knows every CPU that the compiler knows and compiles again before it comes to this. */
static const struct {
    const char *cpu, *needs[6];
} cpu_needs[] = {
    {"x86-64-v2", {"+sse4.2"}},
    {"x86-64-v3", {"+avx2", "+fma", "+bmi2"}},
    {"haswell", {"+avx2", "+fma", "+bmi2"}},
    {"znver2", {"+avx2", "+fma", "+bmi2"}},
    {"znver3", {"+avx2", "+fma", "+bmi2"}},
    {"x86-64-v4", {"+avx512f", "+avx512bw", "+avx512dq", "+avx512vl"}},
    {"skylake-avx512", {"+avx512f", "+avx512bw", "+avx512dq", "+avx512vl"}},
    {"icelake-server", {"+avx512f", "+avx512bw", "+avx512vl", "+avx512vnni"}},
    {"znver4", {"+avx512f", "+avx512bw", "+avx512vl", "+avx512bf16"}},
    {"znver5", {"+avx512f", "+avx512bw", "+avx512vl", "+avx512bf16", "+avxvnni"}},
    {"sapphirerapids", {"+avx512f", "+avx512bw", "+avx512vl", "+avx512bf16", "+amx-tile"}},
};

/* "+avx2" in "+sse4.2,+avx2,-fma4", as a whole word. */
static bool has_feature(const char *list, const char *feature) {
    size_t n = strlen(feature);
    for (const char *p = list; (p = strstr(p, feature)); p += n)
        if ((p == list || p[-1] == ',') && (p[n] == 0 || p[n] == ','))
            return true;
    return false;
}

MoeStatus moe_plan_target_check(const MoePlan *p, const char *name) {
    if (strncmp(p->target, "cpu:", 4))
        return moe_error(
            MOE_E_INPUT,
            "%s was made for target %s, which this moec cannot run; compile it for cpu", name,
            p->target);
    const char *cpu = p->target + 4;
    char *host = LLVMGetHostCPUName(), *features = LLVMGetHostCPUFeatures();
    MoeStatus st = NULL;
    for (size_t i = 0; !st && i < sizeof cpu_needs / sizeof *cpu_needs && strcmp(host, cpu); i++)
        for (size_t k = 0; !st && !strcmp(cpu, cpu_needs[i].cpu) && k < 6 && cpu_needs[i].needs[k];
             k++)
            if (!has_feature(features, cpu_needs[i].needs[k]))
                st = moe_error(
                    MOE_E_INPUT,
                    "%s was made for %s, and this machine (%s) has no %s; compile it again here",
                    name, p->target, host, cpu_needs[i].needs[k] + 1);
    LLVMDisposeMessage(host);
    LLVMDisposeMessage(features);
    return st;
}
