/* Plans between ranks: which token rows go to which rank, and how the rows that arrive are sorted for
 * the experts here. Caller: kind_route.c. */
#ifndef MOE_CODEGEN_CPU_KIND_EXPERT_PLAN_H
#define MOE_CODEGEN_CPU_KIND_EXPERT_PLAN_H

#include "codegen/cpu/cpu.h"

/* A group of one send_plan or expert_plan: one launch of one task. */
MoeStatus moe_cpu_send_plan_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out);
MoeStatus moe_cpu_expert_plan_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out);

#endif
