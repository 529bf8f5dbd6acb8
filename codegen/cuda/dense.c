/* See dense.h. */
#include "codegen/cuda/dense.h"

#include "base/arena.h"
#include "codegen/bufs.h"

/* The product's value and, behind it, at most one op on it. out: where the result goes; c: what is added, -1. */
static bool read_tail(const MoeGemmGroup *gg, int *c, const MoeGemmValue **result) {
    const MoeGemmValue *product = &gg->values[0];
    *c = -1;
    *result = product;
    if (gg->n_tail == 0)
        return true;
    if (gg->n_tail != 1 || product->buf_out >= 0) /* also read elsewhere */
        return false;
    const MoeOp *op = gg->tail[0];
    *result = &gg->values[moe_gemm_group_find(gg, op->results[0])];
    if (op->opcode == MOE_OP_CONVERT)
        return op->operands[0] == product->v;
    if (op->opcode != MOE_OP_ADD || op->operands[0] == op->operands[1])
        return false;
    const MoeValue *other = op->operands[op->operands[0] == product->v];
    const MoeGemmValue *x = &gg->values[moe_gemm_group_find(gg, other)];
    *c = x->buf_in;
    return x->is_input && x->level == MOE_LEVEL_TILE && other->type.dtype == MOE_F32 &&
           (*result)->v->type.dtype == MOE_F32;
}

/* The buffer of a value; -1. */
static int find_buf(const MoeLaunch *l, const MoeValue *v) {
    for (size_t i = 0; v && i < l->n_bufs; i++)
        if (l->bufs[i].value == v)
            return (int)i;
    return -1;
}

void moe_cuda_dense_note(const MoeGemmGroup *gg, const MoeGroup *g, int a, int b, MoeLowered *out) {
    const MoeOp *mm = gg->product[0];
    const MoeType *rows = &mm->operands[0]->type, *type = &mm->results[0]->type;
    const MoeGemmValue *result;
    int c;
    if (gg->n_products != 1 || gg->dispatch || g->parts || moe_attr_i(mm, "grouped") ||
        !read_tail(gg, &c, &result) || result->buf_out < 0 || result->level != MOE_LEVEL_TILE)
        return;
    const MoeValue *seg = moe_rows_seg(type);
    MoeDtype to = result->v->type.dtype;
    if ((seg && seg->type.groups != 1) || (to != MOE_F32 && to != MOE_BF16) ||
        type->dims[0].size < 1)
        return;
    MoeLaunch *l = &out->launches[out->n_launches - 1];
    MoeDense d = {.a = a,
                  .b = b,
                  .c = c,
                  .out = result->buf_out,
                  .live = find_buf(l, seg),
                  .dtype = rows->dtype,
                  .out_dtype = to,
                  .rows = type->dims[0].size,
                  .n = type->dims[1].size,
                  .k = rows->dims[1].size,
                  .transposed = moe_attr_i(mm, "tb") != 0};
    l->dense = moe_arena_copy(out->arena, &d, sizeof d);
}
