/* weight_grad groups: {[dispatch of dy,] [dispatch of x,] weight_grad or root_grad}. A dispatch gathers rows as
 * leaves are packed (wgrad.h). */
#include <string.h>
#include "base/assert.h"
#include "codegen/cpu/wgrad.h"

typedef struct {
    const MoeOp *dy, *x; /* dispatches, or NULL */
    const MoeOp *grad;
} WgradGroup;

static bool is_result_of(const MoeOp *op, const MoeValue *v) {
    return op->results[0] == v;
}

/* Sorts ops into w; dispatches alone are accepted as long as a weight_grad may follow. */
static bool analyse(MoeOp *const *ops, size_t n_ops, const MoeOp *more, WgradGroup *w) {
    const MoeOp *dispatches[2];
    int n = 0;
    memset(w, 0, sizeof *w);
    for (size_t i = 0; i < n_ops + (more ? 1 : 0); i++) {
        const MoeOp *op = i < n_ops ? ops[i] : more;
        if (w->grad)
            return false;
        if (op->opcode == MOE_OP_DISPATCH && n < 2)
            dispatches[n++] = op;
        else if (op->opcode == MOE_OP_WEIGHT_GRAD || op->opcode == MOE_OP_ROOT_GRAD)
            w->grad = op;
        else
            return false;
    }
    for (int i = 0; i < n && w->grad; i++) {
        if (is_result_of(dispatches[i], w->grad->operands[0]))
            w->dy = dispatches[i];
        if (is_result_of(dispatches[i], w->grad->operands[1]))
            w->x = dispatches[i];
        if (w->dy != dispatches[i] && w->x != dispatches[i])
            return false;
    }
    return true;
}

bool moe_cpu_wgrad_joins(MoeOp *const *ops, size_t n_ops, const MoeOp *op) {
    WgradGroup w;
    return analyse(ops, n_ops, op, &w);
}

int64_t moe_cpu_wgrad_workspace(MoeCpuTarget *t, const MoeGroup *g) {
    (void)t, (void)g;
    return 0;
}

/* A dispatch whose rows are read elsewhere, too, is written out by its own kernel. */
static MoeStatus lower_dispatch(MoeCpuTarget *t, const MoeGroup *g, const MoeOp *dispatch,
                                MoeLowered *out) {
    for (size_t i = 0; dispatch && i < g->n_outputs; i++) {
        if (!is_result_of(dispatch, g->outputs[i]))
            continue;
        MoeGroup alone = *g;
        MoeOp *op = g->outputs[i]->def;
        alone.ops = &op;
        alone.n_ops = 1;
        alone.outputs = &g->outputs[i];
        alone.n_outputs = 1;
        return moe_cpu_move_lower(t, &alone, out);
    }
    return NULL;
}

MoeStatus moe_cpu_wgrad_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out) {
    WgradGroup group;
    bool ok = analyse(g->ops, g->n_ops, NULL, &group);
    MOE_ASSERT(ok && group.grad, "wgrad: the group's ops do not fit together");
    const MoeOp *op = group.grad;
    const MoeType *dy = &op->operands[0]->type, *x = &op->operands[1]->type;
    MoeBufRef refs[10];
    int n = 0;
    MoeWgrad w = {.dtype = x->dtype,
                  .elem = moe_tile_elem(t, x->dtype),
                  .n = dy->dims[1].size,
                  .k = x->dims[1].size,
                  .buf_src_dy = -1,
                  .buf_src_x = -1,
                  .buf_slots = -1};
    if (w.n == 0 || w.k == 0)
        return moe_error(MOE_E_INPUT, "weight_grad: an extent of zero (n = %lld, k = %lld)",
                         (long long)w.n, (long long)w.k);
    MOE_TRY(lower_dispatch(t, g, group.dy, out));
    if (group.x != group.dy)
        MOE_TRY(lower_dispatch(t, g, group.x, out));
    w.dy_stride = w.n * moe_dtype_bytes(dy->dtype);
    w.x_stride = w.k * moe_dtype_bytes(x->dtype);
    bool roots = op->opcode == MOE_OP_ROOT_GRAD, grouped = roots || moe_attr_i(op, "grouped") != 0;
    const MoeValue *seg = roots ? op->operands[2] : moe_rows_seg(dy);
    /* One result over several groups: the tree over shards, then over groups, is one tree where V
     * is a power of two. */
    if (seg && !grouped && seg->type.groups > 1 && (seg->type.shards & (seg->type.shards - 1)))
        return moe_error(MOE_E_INPUT,
                         "weight_grad over all groups needs a power of two of shards, not %lld",
                         (long long)seg->type.shards);
    w.rows = moe_row_space(dy, grouped, -1);
    if (roots) {
        w.rows.groups = seg->type.groups;
        w.root_slots = op->operands[3]->type.groups;
    }
    w.buf_dy = n;
    refs[n++] = moe_ref(group.dy ? group.dy->operands[0] : op->operands[0]);
    w.buf_x = n;
    refs[n++] = moe_ref(group.x ? group.x->operands[0] : op->operands[1]);
    w.buf_out = n;
    refs[n++] = moe_ref(op->results[0]);
    if (seg) {
        w.rows.buf = n;
        refs[n++] = moe_ref(seg);
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
    if (roots) {
        w.buf_rest = n;
        refs[n++] = moe_ref(op->results[1]);
        w.buf_more = n;
        refs[n++] = moe_ref(op->operands[3]);
    }
    moe_cpu_launch(out, moe_wgrad_emit(t, &w, out), refs, (size_t)n);
    return NULL;
}
