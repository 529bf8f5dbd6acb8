/* copy_plan and root_plan: groups of kind ROUTE of one op each (docs/PLACEMENT.md). kind_route.c calls these. */
#ifndef MOE_CODEGEN_CPU_KIND_COPY_PLAN_H
#define MOE_CODEGEN_CPU_KIND_COPY_PLAN_H

#include "codegen/cpu/cpu.h"

MoeStatus moe_cpu_copy_plan_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out);
MoeStatus moe_cpu_root_plan_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out);

#endif
