/* weight_grad groups (codegen/wgrad_group.h) on the CPU: a dispatch gathers rows as leaves are packed (wgrad.h). */
#include "codegen/wgrad_group.h"
#include "base/assert.h"
#include "codegen/cpu/wgrad.h"
#include "codegen/gemm_group.h"

int64_t moe_cpu_wgrad_workspace(MoeCpuTarget *t, const MoeGroup *g) {
    (void)t, (void)g;
    return 0;
}

MoeStatus moe_cpu_wgrad_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out) {
    MoeWgradGroup group;
    MoeWgradShape shape;
    bool ok = moe_wgrad_group(g->ops, g->n_ops, NULL, &group);
    MOE_ASSERT(ok && group.grad, "wgrad: the group's ops do not fit together");
    MOE_TRY(moe_wgrad_shape(g->graph, &group, &shape));
    const MoeOp *op = group.grad;
    const MoeType *dy = &op->operands[0]->type, *x = &op->operands[1]->type;
    MoeBufRef refs[10];
    int n = 0;
    MoeWgrad w = {.dtype = x->dtype,
                  .elem = moe_tile_elem(t, x->dtype),
                  .rows = shape.rows,
                  .root_slots = shape.root_slots,
                  .leaf_rows = shape.leaf_rows,
                  .n = shape.n,
                  .k = shape.k,
                  .dy_stride = shape.n * moe_dtype_bytes(dy->dtype),
                  .x_stride = shape.k * moe_dtype_bytes(x->dtype),
                  .buf_src_dy = -1,
                  .buf_src_x = -1,
                  .buf_slots = -1};
    MOE_TRY(moe_cpu_dispatch_lower(t, g, group.dy, out));
    if (group.x != group.dy)
        MOE_TRY(moe_cpu_dispatch_lower(t, g, group.x, out));
    w.buf_dy = n;
    refs[n++] = moe_ref(group.dy ? group.dy->operands[0] : op->operands[0]);
    w.buf_x = n;
    refs[n++] = moe_ref(group.x ? group.x->operands[0] : op->operands[1]);
    w.buf_out = n;
    refs[n++] = moe_ref(op->results[0]);
    if (shape.seg) {
        w.rows.buf = n;
        refs[n++] = moe_ref(shape.seg);
    }
    if (group.dy) {
        w.gather_dy = group.dy->operands[2]->type.dims[1].size;
        w.buf_src_dy = n;
        refs[n++] = moe_ref(group.dy->operands[1]);
    }
    if (group.x) {
        w.gather_x = group.x->operands[2]->type.dims[1].size;
        w.buf_src_x = n;
        refs[n++] = moe_ref(group.x->operands[1]);
    }
    if (w.root_slots) {
        w.buf_rest = n;
        refs[n++] = moe_ref(op->results[1]);
        w.buf_more = n;
        refs[n++] = moe_ref(op->operands[3]);
    }
    moe_cpu_launch(out, moe_wgrad_emit(t, &w, out), refs, (size_t)n);
    return NULL;
}
