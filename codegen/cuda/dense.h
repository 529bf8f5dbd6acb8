/* Products that a library could run as well: which launches are one matmul over dense rows and nothing more, and what the plan says of
 * them (MoeDense in ir/target.h, docs/PLAN.md). Called by kind_gemm.c. */
#ifndef MOE_CODEGEN_CUDA_DENSE_H
#define MOE_CODEGEN_CUDA_DENSE_H

#include "codegen/gemm_group.h"

/* Notes on the last launch of `out`, of group g, what product it is, if it is one: a matmul that is not grouped, of rows that are not
 * gathered, of all rows at once, whose result goes out as f32, or rounded to bf16, or as the sum in f32 with a matrix like it. a, b: the
 * launch's buffers of the operands; gg->values have theirs. */
void moe_cuda_dense_note(const MoeGemmGroup *gg, const MoeGroup *g, int a, int b, MoeLowered *out);

#endif
