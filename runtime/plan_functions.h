/* Functions of this program that the kernels of plans call by name (base/split_rows.h). The program need not export them: whoever links
 * object code of a plan says where they are. */
#ifndef MOE_RUNTIME_PLAN_FUNCTIONS_H
#define MOE_RUNTIME_PLAN_FUNCTIONS_H

#include <llvm-c/Error.h>
#include <llvm-c/LLJIT.h>

/* Defines them in the main library of the JIT. NULL, or an error that the caller consumes. */
LLVMErrorRef moe_plan_define_functions(LLVMOrcLLJITRef jit);

#endif
