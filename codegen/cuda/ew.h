/* Elementwise ops of the graph as CUDA C++ over device/math.cuh. */
#ifndef MOE_CODEGEN_CUDA_EW_H
#define MOE_CODEGEN_CUDA_EW_H

#include "base/str.h"
#include "ir/graph.h"

/* Appends the value of an op of kind EW as an expression over in[0] (and in[1]), expressions of its operands as floats (i32
 * operands: as i32, but for convert, whose operand may be either). A bf16 result is rounded, as everywhere. */
void moe_cuda_ew(MoeStr *out, const MoeOp *op, const char *const in[2]);
/* Appends a constant's number, of dtype f32 or i32. */
void moe_cuda_number(MoeStr *out, MoeDtype d, double v);

#endif
