/* Shape rules: one function for each name in the infer column of ops.def. Each checks operands and attributes and
 * writes the types of the results; op->results[i] exist already. On failure it returns a message (in the graph's
 * arena) that says what was expected and what was found, else NULL. */
#ifndef MOE_IR_INFER_H
#define MOE_IR_INFER_H

#include "ir/graph.h"

typedef const char *(*MoeInferFn)(MoeGraph *g, MoeOp *op);
const char *moe_infer(MoeGraph *g, MoeOp *op); /* dispatches by opcode */

#endif
