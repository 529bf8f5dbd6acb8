/* Targets by name. "cpu" or "cpu:native": this machine; "cpu:x86-64-v4", "cpu:x86-64-v3" (AVX2),
 * "cpu:x86-64" (generic), "cpu:znver4" and the like: any CPU name LLVM knows. "cuda" or "cuda:native":
 * this machine's NVIDIA GPU; "cuda:sm_80", "cuda:sm_90a", "cuda:sm_100": compiled without one. Unknown names: an
 * error with the nearest known one. */
#ifndef MOE_CODEGEN_CODEGEN_H
#define MOE_CODEGEN_CODEGEN_H

#include "ir/target.h"

MoeStatus moe_target_create(const char *name, MoeTarget **out); /* owned: t->destroy(t) */
/* Whether object code for target `name` runs on this machine. Of cuda: a driver and a GPU that runs it are here. */
bool moe_target_runs_here(const char *name);

#endif
