/* route_plan, expert_counts, row_count, count_valid; plans between ranks (kind_expert_plan.c) and of copies (kind_copy_plan.c).
 *
 * route_plan is a stable sort of the choices by expert (device/sort.cuh): tokens ascend within the shards, so rows come sorted by
 * (expert, shard, token), and the first row of a cell is found by searching for the shard's first token among the expert's rows. */
#include "base/assert.h"
#include "codegen/cuda/kind_copy_plan.h"
#include "codegen/cuda/kind_expert_plan.h"
#include "codegen/cuda/sort.h"

/* Choices at most. */
static int64_t choices(const MoeType *ids) {
    return ids->dims[0].size * ids->dims[1].size;
}

/* The workspace: where the table is wanted but src is not, the sorted choices; then the sort's. */
static int64_t route_plan_workspace(const MoeOp *op) {
    const MoeType *ids = &op->operands[0]->type;
    return moe_cuda_list_bytes(choices(ids)) +
           moe_cuda_sort_bytes(op->results[0]->type.groups, choices(ids));
}

static MoeStatus lower_route_plan(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out) {
    const MoeOp *op = g->ops[0];
    const MoeType *ids = &op->operands[0]->type, *seg = &op->results[0]->type;
    const MoeValue *rows = moe_rows_seg(ids);
    MoeBufs bufs = {.n = 0};
    int in = moe_bufs_add(&bufs, op->operands[0]), tok = moe_bufs_add_seg(&bufs, ids),
        work = moe_bufs_add_work(&bufs, 0), to = moe_bufs_add_output(&bufs, g, 0),
        src = moe_bufs_add_output(&bufs, g, 1), inv = moe_bufs_add_output(&bufs, g, 2);
    MOE_ASSERT(seg->shards == (rows ? rows->type.shards : 1), "route_plan: shards differ");
    MoeStr begin = {0}, before = {0}, table = {0};
    moe_cuda_live_rows(&begin, "tokens", ids, tok);
    moe_str_printf(&begin,
                   "const i64 n = tokens * %lld;\n"
                   "i32 *listed = buf<i32>(a, %d), *work = listed + sort_round(n);\n"
                   "i32 *src = %s;\n"
                   "IdKeys keys{buf<i32>(a, %d)};\n",
                   (long long)ids->dims[1].size, work, src >= 0 ? "nullptr" : "listed", in);
    if (src >= 0)
        moe_str_printf(&begin, "src = buf<i32>(a, %d);\n", src);
    moe_str_printf(&begin, "RouteSink sink{src, ");
    if (inv >= 0)
        moe_str_printf(&begin, "buf<i32>(a, %d)};\n", inv);
    else
        moe_str_append(&begin, "nullptr};\n");
    MoeCudaSteps steps = {t, out, &bufs, "route_plan", 1u << MOE_CUDA_PART_route, moe_str_c(&begin),
                          0, 0};
    moe_cuda_sort(&steps, &(MoeCudaSort){seg->groups, choices(ids), "n", "keys", "sink", "work"});
    if (to >= 0) {
        if (rows)
            moe_str_printf(&table, "buf<i32>(a, %d)", tok);
        moe_str_printf(&before, "RouteBefore{keys.ids, src, %s, %lld, %lld}",
                       rows ? moe_str_c(&table) : "nullptr", (long long)seg->shards,
                       (long long)ids->dims[1].size);
        moe_str_clear(&table);
        moe_str_printf(&table, "buf<i32>(a, %d)", to);
        moe_cuda_sort_table(&steps, "_table", seg->groups * seg->shards, moe_str_c(&before),
                            "work[0]", moe_str_c(&table));
    }
    moe_str_free(&begin);
    moe_str_free(&before);
    moe_str_free(&table);
    return NULL;
}

/* One result of few numbers. */
static MoeStatus lower_count(MoeCudaTarget *t, const MoeOp *op, MoeLowered *out) {
    enum { THREADS = 1024 };
    const MoeType *in = &op->operands[0]->type;
    MoeBufs bufs = {.n = 0};
    int from = moe_bufs_add(&bufs, op->operands[0]), to = moe_bufs_add(&bufs, op->results[0]);
    int seg = op->opcode == MOE_OP_COUNT_VALID ? moe_bufs_add_seg(&bufs, in) : -1;
    MoeStr begin = {0}, body = {0};
    moe_str_printf(&begin, "const i32 *in = buf<i32>(a, %d);\ni32 *out = buf<i32>(a, %d);\n", from,
                   to);
    MoeCudaSteps steps = {
        t, out, &bufs, moe_op_info(op->opcode)->name, 1u << MOE_CUDA_PART_route, NULL, 0, 0};
    int64_t blocks = 1;
    int threads = 32;
    if (op->opcode == MOE_OP_EXPERT_COUNTS) {
        moe_str_printf(&body, "expert_counts(in, %lld, %lld, out);\n", (long long)in->groups,
                       (long long)in->shards);
        threads = 128;
        blocks = moe_cuda_blocks(t, (in->groups + 127) / 128, 1);
    } else if (op->opcode == MOE_OP_ROW_COUNT) {
        moe_str_printf(&body, "if (threadIdx.x == 0)\n    out[0] = in[%lld];\n",
                       (long long)(in->groups * in->shards));
    } else {
        MOE_ASSERT(op->opcode == MOE_OP_COUNT_VALID, "route: op %s", steps.prefix);
        moe_cuda_live_rows(&begin, "rows", in, seg);
        moe_str_printf(&body, "count_valid<%d>(in, rows, out);\n", THREADS);
        threads = THREADS;
    }
    steps.begin = moe_str_c(&begin);
    moe_cuda_step(&steps, "", threads, blocks, moe_str_c(&body));
    moe_str_free(&begin);
    moe_str_free(&body);
    return NULL;
}

int64_t moe_cuda_route_workspace(MoeCudaTarget *t, const MoeGroup *g) {
    const MoeOp *op = g->ops[0];
    (void)t;
    if (op->opcode == MOE_OP_ROUTE_PLAN)
        return route_plan_workspace(op);
    if (op->opcode == MOE_OP_SEND_PLAN)
        return moe_cuda_send_plan_workspace(op);
    if (op->opcode == MOE_OP_EXPERT_PLAN)
        return moe_cuda_expert_plan_workspace(op);
    if (op->opcode == MOE_OP_COPY_PLAN)
        return moe_cuda_copy_plan_workspace(op);
    return 0;
}

MoeStatus moe_cuda_route_lower(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out) {
    const MoeOp *op = g->ops[0];
    MOE_ASSERT(g->n_ops == 1, "route: a group of %zu ops", g->n_ops);
    if (op->opcode == MOE_OP_ROUTE_PLAN)
        return lower_route_plan(t, g, out);
    if (op->opcode == MOE_OP_SEND_PLAN)
        return moe_cuda_send_plan_lower(t, g, out);
    if (op->opcode == MOE_OP_EXPERT_PLAN)
        return moe_cuda_expert_plan_lower(t, g, out);
    if (op->opcode == MOE_OP_COPY_PLAN)
        return moe_cuda_copy_plan_lower(t, g, out);
    if (op->opcode == MOE_OP_ROOT_PLAN)
        return moe_cuda_root_plan_lower(t, g, out);
    return lower_count(t, op, out);
}
