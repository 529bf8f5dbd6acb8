/* route_plan, expert_counts, row_count, count_valid: integers only, one task each.
 *
 * route_plan is a stable counting sort by (expert, virtual shard): tokens ascend within the input,
 * so the rows of an expert come sorted by token. Two passes over ids: count into seg, prefix sum,
 * then deal out rows from a copy of seg in the scratch memory. */
#include "base/assert.h"
#include "codegen/cpu/count_sort.h"
#include "codegen/cpu/kind_copy_plan.h"
#include "codegen/cpu/kind_expert_plan.h"
#include "codegen/cpu/live.h"

typedef struct {
    int ids, tok;      /* buffers in; tok -1: static rows, one shard */
    int seg, src, inv; /* buffers out; -1: not wanted */
} RouteBufs;

/* For each shard v and each flat position p of it: body(e, p, v) with `arg`. */
typedef void (*EachId)(MoeEmit *e, MoeVal p, MoeVal v, void *arg);

static void each_id(MoeEmit *e, const MoeOp *op, const RouteBufs *b, EachId body, void *arg) {
    const MoeType *t = &op->operands[0]->type;
    const MoeValue *seg = moe_rows_seg(t);
    int64_t shards = seg ? seg->type.shards : 1;
    MoeVal k = moe_k64(e, t->dims[1].size), one = moe_k64(e, 1), zero = moe_k64(e, 0);
    MoeLoop by_shard, by_id;
    moe_loop_begin(e, &by_shard, zero, moe_k64(e, shards), one);
    MoeVal lo = zero, hi = moe_k64(e, t->dims[0].size);
    if (seg) {
        MoeVal tok = moe_emit_buf(e, b->tok);
        lo = moe_load_index(e, tok, by_shard.index);
        hi = moe_load_index(e, tok, moe_iadd(e, by_shard.index, one));
    }
    moe_loop_begin(e, &by_id, moe_imul(e, lo, k), moe_imul(e, hi, k), one);
    body(e, by_id.index, by_shard.index, arg);
    moe_loop_end(e, &by_id);
    moe_loop_end(e, &by_shard);
}

typedef struct {
    const RouteBufs *b;
    MoeVal table; /* count pass: seg; deal pass: the next free row of each (expert, shard) */
    int64_t shards;
} Pass;

static MoeVal cell(MoeEmit *e, const Pass *s, MoeVal p, MoeVal v) {
    MoeVal id = moe_load_index(e, moe_emit_buf(e, s->b->ids), p);
    return moe_iadd(e, moe_imul(e, id, moe_k64(e, s->shards)), v);
}

static void count_one(MoeEmit *e, MoeVal p, MoeVal v, void *arg) {
    const Pass *s = arg;
    moe_count_add(e, s->table, cell(e, s, p, v));
}

static void deal_one(MoeEmit *e, MoeVal p, MoeVal v, void *arg) {
    const Pass *s = arg;
    MoeVal row = moe_count_deal(e, s->table, cell(e, s, p, v));
    if (s->b->src >= 0)
        moe_store_i32(e, p, moe_emit_buf(e, s->b->src), row);
    if (s->b->inv >= 0)
        moe_store_i32(e, row, moe_emit_buf(e, s->b->inv), p);
}

static void emit_route_plan(MoeEmit *e, const MoeOp *op, const RouteBufs *b) {
    const MoeType *seg_type = &op->results[0]->type;
    int64_t cells = seg_type->groups * seg_type->shards;
    /* seg in place where it is wanted, else in the scratch behind the table of next rows */
    MoeVal next = e->scratch;
    MoeVal seg =
        b->seg >= 0 ? moe_emit_buf(e, b->seg) : moe_at(e, e->scratch, moe_k64(e, cells), 4);
    Pass pass = {b, seg, seg_type->shards};
    moe_count_clear(e, seg, cells);
    each_id(e, op, b, count_one, &pass);
    moe_count_scan(e, seg, next, cells);
    pass.table = next;
    each_id(e, op, b, deal_one, &pass);
}

static MoeStatus lower_route_plan(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out) {
    const MoeOp *op = g->ops[0];
    const MoeType *ids = &op->operands[0]->type, *seg = &op->results[0]->type;
    MoeBufs bufs = {.n = 0};
    RouteBufs b;
    b.ids = moe_bufs_add(&bufs, op->operands[0]);
    b.tok = moe_bufs_add_seg(&bufs, ids);
    b.seg = moe_bufs_add_output(&bufs, g, 0);
    b.src = moe_bufs_add_output(&bufs, g, 1);
    b.inv = moe_bufs_add_output(&bufs, g, 2);
    MOE_ASSERT(seg->shards == (moe_rows_seg(ids) ? moe_rows_seg(ids)->type.shards : 1),
               "route_plan: shards differ");
    MoeStr key = {0};
    MoeEmit e;
    const char *name;
    moe_str_printf(&key, "route_plan %lldx%lld %d%d%d", (long long)seg->groups,
                   (long long)seg->shards, b.seg, b.src, b.inv);
    moe_live_key(&key, ids);
    if (moe_emit_begin(t, moe_str_c(&key), "route_plan", &e, &name)) {
        moe_emit_tasks_body(&e);
        moe_emit_return(&e, moe_k64(&e, 1));
        moe_emit_kernel_body(&e);
        emit_route_plan(&e, op, &b);
        moe_emit_end(&e);
    }
    moe_str_free(&key);
    moe_cpu_need_scratch(out, (seg->groups * seg->shards * 2 + 1) * 4);
    moe_cpu_launch(out, name, bufs.refs, (size_t)bufs.n);
    return NULL;
}

static void emit_expert_counts(MoeEmit *e, const MoeType *seg) {
    MoeVal table = moe_emit_buf(e, 0), shards = moe_k64(e, seg->shards);
    MoeLoop l;
    moe_loop_begin(e, &l, moe_k64(e, 0), moe_k64(e, seg->groups), moe_k64(e, 1));
    MoeVal first = moe_imul(e, l.index, shards);
    MoeVal n = moe_isub(e, moe_load_index(e, table, moe_iadd(e, first, shards)),
                        moe_load_index(e, table, first));
    moe_store_i32(e, n, moe_emit_buf(e, 1), l.index);
    moe_loop_end(e, &l);
}

static void emit_count_valid(MoeEmit *e, const MoeType *labels, int seg_buf) {
    MoeVal zero = moe_k64(e, 0), one = moe_k64(e, 1), n = zero;
    MoeCarryLoop l;
    moe_carry_begin(e, &l, zero, moe_live_rows(e, labels, seg_buf), one, &n, 1);
    MoeVal label = moe_load_index(e, moe_emit_buf(e, 0), l.l.index);
    MoeVal valid = LLVMBuildICmp(e->b, LLVMIntSGE, label, zero, "");
    n = moe_iadd(e, n, LLVMBuildZExt(e->b, valid, e->i64, ""));
    moe_carry_end(e, &l, &n);
    moe_store_i32(e, n, moe_emit_buf(e, 1), zero);
}

int64_t moe_cpu_route_workspace(MoeCpuTarget *t, const MoeGroup *g) {
    (void)t, (void)g;
    return 0;
}

MoeStatus moe_cpu_route_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out) {
    const MoeOp *op = g->ops[0];
    MOE_ASSERT(g->n_ops == 1, "route: a group of %zu ops", g->n_ops);
    if (op->opcode == MOE_OP_ROUTE_PLAN)
        return lower_route_plan(t, g, out);
    if (op->opcode == MOE_OP_SEND_PLAN)
        return moe_cpu_send_plan_lower(t, g, out);
    if (op->opcode == MOE_OP_EXPERT_PLAN)
        return moe_cpu_expert_plan_lower(t, g, out);
    if (op->opcode == MOE_OP_COPY_PLAN)
        return moe_cpu_copy_plan_lower(t, g, out);
    if (op->opcode == MOE_OP_ROOT_PLAN)
        return moe_cpu_root_plan_lower(t, g, out);
    const MoeType *in = &op->operands[0]->type;
    MoeBufs bufs = {.n = 0};
    moe_bufs_add(&bufs, op->operands[0]);
    moe_bufs_add(&bufs, op->results[0]);
    int seg = op->opcode == MOE_OP_COUNT_VALID ? moe_bufs_add_seg(&bufs, in) : -1;
    const char *what = moe_op_info(op->opcode)->name, *name;
    MoeStr key = {0};
    MoeEmit e;
    moe_str_append(&key, what);
    moe_live_key(&key, in);
    if (moe_emit_begin(t, moe_str_c(&key), what, &e, &name)) {
        moe_emit_tasks_body(&e);
        moe_emit_return(&e, moe_k64(&e, 1));
        moe_emit_kernel_body(&e);
        if (op->opcode == MOE_OP_EXPERT_COUNTS) {
            emit_expert_counts(&e, in);
        } else if (op->opcode == MOE_OP_ROW_COUNT) {
            MoeVal n =
                moe_load_index(&e, moe_emit_buf(&e, 0), moe_k64(&e, in->groups * in->shards));
            moe_store_i32(&e, n, moe_emit_buf(&e, 1), moe_k64(&e, 0));
        } else {
            MOE_ASSERT(op->opcode == MOE_OP_COUNT_VALID, "route: op %s", what);
            emit_count_valid(&e, in, seg);
        }
        moe_emit_end(&e);
    }
    moe_str_free(&key);
    moe_cpu_launch(out, name, bufs.refs, (size_t)bufs.n);
    return NULL;
}
