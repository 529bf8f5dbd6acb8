/* copy_plan and root_plan: groups of kind ROUTE of one op each (docs/PLACEMENT.md). kind_route.c calls these. */
#ifndef MOE_CODEGEN_CUDA_KIND_COPY_PLAN_H
#define MOE_CODEGEN_CUDA_KIND_COPY_PLAN_H

#include "codegen/cuda/cuda.h"

int64_t moe_cuda_copy_plan_workspace(const MoeOp *op);
MoeStatus moe_cuda_copy_plan_lower(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out);
MoeStatus moe_cuda_root_plan_lower(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out);

#endif
