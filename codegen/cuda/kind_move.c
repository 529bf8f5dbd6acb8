/* dispatch, gather_sum, dispatch_weight, collect_weight: rows between token order and expert order. One launch each
 * (device/move.cuh); blocks take live rows by turns. */
#include "base/assert.h"
#include "codegen/cuda/move.h"
#include "codegen/gemm_group.h"

int moe_cuda_lanes(int64_t words) {
    int lanes = 1;
    while (lanes < 32 && lanes < words)
        lanes *= 2;
    return lanes;
}

MoeCudaWords moe_cuda_words(int64_t row_bytes) {
    static const struct {
        const char *type;
        int bytes;
    } words[] = {{"Words4", 16}, {"Words2", 8}, {"u32", 4}, {"bf16", 2}};
    size_t i = 0;
    while (row_bytes % words[i].bytes)
        i++;
    int64_t n = row_bytes / words[i].bytes;
    return (MoeCudaWords){words[i].type, n, moe_cuda_lanes(n)};
}

void moe_cuda_live_range(MoeStr *text, const char *name, const MoeType *t, int buf) {
    const MoeValue *seg = moe_rows_seg(t);
    if (seg)
        moe_str_printf(text, "const Rows %s = segs_rows(buf<i32>(a, %d), %lld);\n", name, buf,
                       (long long)(seg->type.groups * seg->type.shards));
    else
        moe_str_printf(text, "const Rows %s{0, %lldll};\n", name, (long long)t->dims[0].size);
}

typedef struct {
    MoeCudaTarget *t;
    MoeLowered *out;
    const MoeOp *op;
    const MoeType *type; /* of the result */
    int64_t k, cols;
    int x, src, inv, y; /* buffers */
    MoeCudaSteps steps;
} Move;

static void launch(const Move *m, int rows_per_block, const char *body) {
    int64_t tasks = (m->type->dims[0].size + rows_per_block - 1) / rows_per_block;
    moe_cuda_step(&m->steps, "", MOE_CUDA_MOVE_THREADS, moe_cuda_blocks(m->t, tasks, 8), body);
}

static void lower_dispatch(const Move *m) {
    MoeStr body = {0};
    MoeCudaWords w = moe_cuda_words(m->cols * moe_dtype_bytes(m->type->dtype));
    moe_str_printf(
        &body,
        "move_rows<%s, %lld, %d>(live, TokenOfRow{buf<i32>(a, %d), %lld}, buf<%s>(a, %d), "
        "buf<%s>(a, %d));\n",
        w.type, (long long)w.n, w.lanes, m->src, (long long)m->k, w.type, m->x, w.type, m->y);
    launch(m, MOE_CUDA_MOVE_THREADS / w.lanes, moe_str_c(&body));
    moe_str_free(&body);
}

static void lower_gather_sum(const Move *m) {
    MoeStr body = {0};
    bool f32 = m->op->operands[0]->type.dtype == MOE_F32;
    int64_t e = f32 ? 4 : 8;
    while (m->cols % e)
        e /= 2;
    int lanes = moe_cuda_lanes(m->cols / e);
    moe_str_printf(&body,
                   "gather_sum<%s, %lld, %lld, %lld, %d>(live, buf<%s>(a, %d), buf<i32>(a, %d), "
                   "buf<float>(a, %d));\n",
                   f32 ? "float" : "bf16", (long long)m->k, (long long)m->cols, (long long)e, lanes,
                   f32 ? "float" : "bf16", m->x, m->inv, m->y);
    launch(m, MOE_CUDA_MOVE_THREADS / lanes, moe_str_c(&body));
    moe_str_free(&body);
}

/* One element for each of `each` positions of a row, from where a buffer says. */
static void lower_pick(const Move *m, int index, int64_t each) {
    MoeStr body = {0};
    int per_block = MOE_CUDA_MOVE_THREADS / (int)(each < MOE_CUDA_MOVE_THREADS ? each : 1);
    moe_str_printf(&body,
                   "pick(live.first * %lld, live.end * %lld, buf<float>(a, %d), buf<i32>(a, %d), "
                   "buf<float>(a, %d));\n",
                   (long long)each, (long long)each, m->x, index, m->y);
    launch(m, per_block, moe_str_c(&body));
    moe_str_free(&body);
}

int64_t moe_cuda_move_workspace(MoeCudaTarget *t, const MoeGroup *g) {
    (void)t, (void)g;
    return 0;
}

MoeStatus moe_cuda_move_lower(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out) {
    const MoeOp *op = g->ops[0];
    MOE_ASSERT(g->n_ops == 1, "move: a group of %zu ops", g->n_ops);
    MoeBufs bufs = {.n = 0};
    Move m = {.t = t,
              .out = out,
              .op = op,
              .type = &op->results[0]->type,
              .k = op->operands[2]->type.dims[1].size,
              .cols = moe_type_cols(&op->operands[0]->type)};
    m.x = moe_bufs_add(&bufs, op->operands[0]);
    m.src = moe_bufs_add(&bufs, op->operands[1]);
    m.inv = moe_bufs_add(&bufs, op->operands[2]);
    m.y = moe_bufs_add(&bufs, op->results[0]);
    int seg = moe_bufs_add_seg(&bufs, m.type);
    MoeStr begin = {0};
    moe_cuda_live_range(&begin, "live", m.type, seg);
    m.steps = (MoeCudaSteps){.t = t,
                             .out = out,
                             .bufs = &bufs,
                             .prefix = moe_op_info(op->opcode)->name,
                             .parts = 1u << MOE_CUDA_PART_move,
                             .begin = moe_str_c(&begin)};
    if (op->opcode == MOE_OP_DISPATCH)
        lower_dispatch(&m);
    else if (op->opcode == MOE_OP_GATHER_SUM)
        lower_gather_sum(&m);
    else if (op->opcode == MOE_OP_DISPATCH_WEIGHT)
        lower_pick(&m, m.src, 1);
    else if (op->opcode == MOE_OP_COLLECT_WEIGHT)
        lower_pick(&m, m.inv, m.k);
    else
        MOE_ASSERT(false, "move: op %s", moe_op_info(op->opcode)->name);
    moe_str_free(&begin);
    return NULL;
}

MoeStatus moe_cuda_dispatch_lower(MoeCudaTarget *t, const MoeGroup *g, const MoeOp *dispatch,
                                  MoeLowered *out) {
    MoeGroup alone;
    MoeOp *op;
    MoeValue *result;
    return moe_group_dispatch_alone(g, dispatch, &alone, &op, &result)
               ? moe_cuda_move_lower(t, &alone, out)
               : NULL;
}
