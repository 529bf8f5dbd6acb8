/* Plans between ranks: which token rows go to which rank, and how the rows that arrive are sorted for
 * the experts here. Caller: kind_route.c. */
#ifndef MOE_CODEGEN_CUDA_KIND_EXPERT_PLAN_H
#define MOE_CODEGEN_CUDA_KIND_EXPERT_PLAN_H

#include "codegen/cuda/cuda.h"

int64_t moe_cuda_send_plan_workspace(const MoeOp *op);
int64_t moe_cuda_expert_plan_workspace(const MoeOp *op);
/* A group of one send_plan or expert_plan. */
MoeStatus moe_cuda_send_plan_lower(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out);
MoeStatus moe_cuda_expert_plan_lower(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out);

#endif
