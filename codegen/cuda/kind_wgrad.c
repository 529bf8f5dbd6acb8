/* weight_grad groups (codegen/wgrad_group.h) on NVIDIA GPUs: one launch (gemm.h, device/wgrad.cuh); a dispatch gathers rows as
 * they are read. The workspace holds what waits in the trees over leaves and shards, for each block of the grid. */
#include "codegen/wgrad_group.h"
#include <stdio.h>
#include "base/assert.h"
#include "codegen/bufs.h"
#include "codegen/cuda/gemm.h"
#include "codegen/cuda/gemm_hopper.h"
#include "codegen/gemm_group.h"

static MoeStatus analyse(const MoeGroup *g, MoeWgradGroup *group, MoeWgradShape *shape) {
    bool ok = moe_wgrad_group(g->ops, g->n_ops, NULL, group);
    MOE_ASSERT(ok && group->grad, "wgrad: the group's ops do not fit together");
    return moe_wgrad_shape(g->graph, group, shape);
}

static MoeCudaWgrad product(const MoeWgradGroup *group, const MoeWgradShape *shape) {
    return (MoeCudaWgrad){.dtype = group->grad->operands[1]->type.dtype,
                          .rows = shape->rows,
                          .leaf_rows = shape->leaf_rows,
                          /* a slot rarely has many roots */
                          .results = shape->root_slots ? shape->root_slots : shape->rows.groups,
                          .n = shape->n,
                          .k = shape->k,
                          .ld_dy = shape->n,
                          .ld_x = shape->k,
                          .gather_dy = group->dy != NULL,
                          .gather_x = group->x != NULL,
                          .maps = true};
}

int64_t moe_cuda_wgrad_workspace(MoeCudaTarget *t, const MoeGroup *g) {
    MoeWgradGroup group;
    MoeWgradShape shape;
    MoeStatus st = analyse(g, &group, &shape);
    if (st) { /* lower says it */
        moe_status_free(st);
        return 0;
    }
    MoeCudaWgrad w = product(&group, &shape);
    MoeCudaProductPlan plan;
    moe_cuda_wgrad_plan(t, &w, &plan);
    return plan.stack_bytes;
}

/* An operand's buffer (and src's) as expressions; returns how many choices a token has, 0: no gather. */
static int64_t side(MoeCudaRefs *refs, const char *type, const MoeOp *dispatch, const MoeValue *v,
                    char *p, char *src, size_t cap) {
    const MoeValue *from = dispatch ? dispatch->operands[0] : v;
    snprintf(p, cap, "buf<const %s>(a, %d)", type, moe_cuda_add_ref(refs, moe_ref(from)));
    if (!dispatch)
        return 0;
    snprintf(src, cap, "buf<const i32>(a, %d)",
             moe_cuda_add_ref(refs, moe_ref(dispatch->operands[1])));
    return dispatch->operands[2]->type.dims[1].size;
}

MoeStatus moe_cuda_wgrad_lower(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out) {
    MoeWgradGroup group;
    MoeWgradShape shape;
    MOE_TRY(analyse(g, &group, &shape));
    MOE_TRY(moe_cuda_dispatch_lower(t, g, group.dy, out));
    if (group.x != group.dy)
        MOE_TRY(moe_cuda_dispatch_lower(t, g, group.x, out));
    const MoeOp *op = group.grad;
    MoeCudaWgrad w = product(&group, &shape);
    MoeCudaProductPlan plan;
    moe_cuda_wgrad_plan(t, &w, &plan);
    MoeCudaRefs refs = {.n = 0};
    char dy[48], x[48], src_dy[48], src_x[48], table[48], stack[48] = "nullptr";
    const char *type = w.dtype == MOE_BF16 ? "bf16" : "float";
    MoeCudaWgradOperands o = {.dy = dy, .x = x, .src_dy = src_dy, .src_x = src_x, .stack = stack};
    int at_dy = refs.n;
    o.gather_dy = side(&refs, type, group.dy, op->operands[0], dy, src_dy, sizeof dy);
    int at_x = refs.n;
    o.gather_x = side(&refs, type, group.x, op->operands[1], x, src_x, sizeof x);
    if (shape.seg) {
        snprintf(table, sizeof table, "buf<const i32>(a, %d)",
                 moe_cuda_add_ref(&refs, moe_ref(shape.seg)));
        o.table = table;
    }
    if (plan.stack_bytes)
        snprintf(stack, sizeof stack, "buf<float>(a, %d)",
                 moe_cuda_add_ref(&refs, moe_ref_work(0)));
    MoeStr body = {0}, note = {0};
    moe_str_append(&body, "using namespace moe;\n");
    moe_cuda_wgrad_text(&w, &plan, &o, &body);
    int dw = moe_cuda_add_ref(&refs, moe_ref(op->results[0]));
    if (shape.root_slots) {
        int rest = moe_cuda_add_ref(&refs, moe_ref(op->results[1]));
        int more = moe_cuda_add_ref(&refs, moe_ref(op->operands[3]));
        moe_str_printf(&body,
                       "WgradRoots to = {buf<float>(a, %d), buf<float>(a, %d), %lldLL, "
                       "buf<const i32>(a, %d), %lld};\n%s(w, to.groups(), %sto);\n",
                       dw, rest, (long long)(w.n * w.k), more, (long long)shape.root_slots,
                       plan.call, plan.maps);
    } else {
        moe_str_printf(&body, "%s(w, w.groups, %sWgradGroups{buf<float>(a, %d), %lldLL});\n",
                       plan.call, plan.maps, dw, (long long)(w.n * w.k));
    }
    moe_str_append(&note, moe_op_info(op->opcode)->name);
    moe_str_append(&note, ": ");
    moe_cuda_shape_note(&op->operands[0]->type, &note);
    moe_str_append(&note, " transposed times ");
    moe_cuda_shape_note(&op->operands[1]->type, &note);
    MoeTensorMap maps[MOE_CUDA_MAX_MAPS];
    if (plan.n_maps)
        moe_cuda_hopper_wgrad_maps(&w, at_dy, at_x, maps);
    moe_cuda_product_launch(t, &plan,
                            &(MoeCudaProductKernel){.prefix = "wgrad",
                                                    .note = moe_str_c(&note),
                                                    .body = &body,
                                                    .refs = &refs,
                                                    .maps = maps},
                            out);
    moe_str_free(&note);
    return NULL;
}
