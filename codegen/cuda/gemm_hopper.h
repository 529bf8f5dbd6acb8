/* Products on sm_90a (device/gemm_hopper.cuh, device/wgrad_hopper.cuh): which tile, and the tensor maps of a launch. Called by
 * gemm.c and the kinds that launch with maps.
 *
 * Whether a product runs this way depends on its dtype and extents alone, never on how many rows are expected, so that it
 * has the same bits however ranks share rows out. */
#ifndef MOE_CODEGEN_CUDA_GEMM_HOPPER_H
#define MOE_CODEGEN_CUDA_GEMM_HOPPER_H

#include "codegen/cuda/gemm.h"

/* Fills in *out if the product runs this way. */
bool moe_cuda_hopper_gemm(const MoeCudaTarget *t, const MoeCudaGemm *g, MoeCudaProductPlan *out);
bool moe_cuda_hopper_wgrad(const MoeCudaTarget *t, const MoeCudaWgrad *w, MoeCudaProductPlan *out);
/* The maps that the plan's kernel takes, plan->n_maps of them. a, b: the operands' indices among the launch's buffers. */
void moe_cuda_hopper_maps(const MoeCudaGemm *g, const MoeCudaProductPlan *plan, int a, const int *b,
                          MoeTensorMap out[MOE_CUDA_MAX_MAPS]);
/* The same of a weight gradient; of operands that are gathered there is none. */
void moe_cuda_hopper_wgrad_maps(const MoeCudaWgrad *w, int dy, int x,
                                MoeTensorMap out[MOE_CUDA_MAX_MAPS]);

#endif
