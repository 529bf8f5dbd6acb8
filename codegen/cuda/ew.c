/* ew.h */
#include "codegen/cuda/ew.h"

#include <math.h>
#include "base/assert.h"

/* Ops that only choose among bf16 values give one: nothing to round. */
static bool is_exact(const MoeOp *op) {
    MoeOpcode o = op->opcode;
    return op->operands[0]->type.dtype == MOE_BF16 &&
           (o == MOE_OP_NEG || o == MOE_OP_MAX || o == MOE_OP_MIN || o == MOE_OP_CONVERT ||
            o == MOE_OP_BROADCAST);
}

void moe_cuda_ew(MoeStr *out, const MoeOp *op, const char *const in[2]) {
    const MoeOpInfo *info = moe_op_info(op->opcode);
    MoeDtype from = op->operands[0]->type.dtype, to = op->results[0]->type.dtype;
    MOE_ASSERT(info->kind == MOE_KIND_EW, "codegen: %s is not elementwise", info->name);
    bool rounds = to == MOE_BF16 && !is_exact(op);
    moe_str_append(out, rounds ? "round_bf16(" : "");
    if (op->opcode == MOE_OP_CONVERT && from == MOE_I32 && to != MOE_I32)
        moe_str_printf(out, "(float)%s", in[0]);
    else if (op->opcode == MOE_OP_CONVERT || op->opcode == MOE_OP_BROADCAST)
        moe_str_append(out, in[0]);
    else if (op->n_operands == 2)
        moe_str_printf(out, "ew_%s(%s, %s)", info->name, in[0], in[1]);
    else
        moe_str_printf(out, "ew_%s(%s)", info->name, in[0]);
    moe_str_append(out, rounds ? ")" : "");
}

void moe_cuda_number(MoeStr *out, MoeDtype d, double v) {
    char text[32];
    float f = (float)v;
    if (d == MOE_I32)
        moe_str_printf(out, "%lld", (long long)v);
    else if (isnan(f))
        moe_str_append(out, "__int_as_float(0x7fc00000)");
    else if (isinf(f))
        moe_str_append(out, f > 0 ? "MOE_INFINITY" : "-MOE_INFINITY");
    else
        moe_str_printf(out, "%sf", moe_format_double((double)f, text));
}
