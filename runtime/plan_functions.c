/* See plan_functions.h. */
#include "runtime/plan_functions.h"

#include <stdint.h>

#include "base/split_rows.h"

typedef void (*Function)(void);

static LLVMOrcCSymbolMapPair define(LLVMOrcLLJITRef jit, const char *name, Function fn) {
    LLVMOrcCSymbolMapPair p = {.Name = LLVMOrcLLJITMangleAndIntern(jit, name)};
    p.Sym.Address = (LLVMOrcExecutorAddress)(uintptr_t)fn;
    p.Sym.Flags.GenericFlags =
        LLVMJITSymbolGenericFlagsExported | LLVMJITSymbolGenericFlagsCallable;
    return p;
}

LLVMErrorRef moe_plan_define_functions(LLVMOrcLLJITRef jit) {
    LLVMOrcCSymbolMapPair pairs[] = {
#define X(name) define(jit, #name, (Function)name),
        MOE_SPLIT_KERNEL_FUNCTIONS(X)
#undef X
    };
    return LLVMOrcJITDylibDefine(LLVMOrcLLJITGetMainJITDylib(jit),
                                 LLVMOrcAbsoluteSymbols(pairs, sizeof pairs / sizeof *pairs));
}
