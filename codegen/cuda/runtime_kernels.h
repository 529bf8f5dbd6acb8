/* Kernels that every plan for a GPU has for the runtime: base/cuda_abi.h. Called by cuda_target.c when the last group is
 * lowered. */
#ifndef MOE_CODEGEN_CUDA_RUNTIME_KERNELS_H
#define MOE_CODEGEN_CUDA_RUNTIME_KERNELS_H

#include "codegen/cuda/cuda.h"

void moe_cuda_add_runtime(MoeCudaTarget *t);

#endif
