/* dispatch, gather_sum, dispatch_weight, collect_weight: rows between token order and expert order.
 * Tasks are blocks of result rows; each row is read once and written once. */
#include "base/assert.h"
#include "codegen/cpu/live.h"
#include "codegen/gemm_group.h"

enum { UNROLL_K = 16 };

typedef struct {
    int x, src, inv, out, seg; /* buffers; seg: of the result's rows */
    const MoeOp *op;
    int64_t k, cols;
} Move;

/* f32 pairs of bf16 where a row has an even number of them: bits are only copied. */
static void copy_row(MoeEmit *e, MoeDtype d, int64_t cols, MoeVal from, MoeVal to) {
    if (d == MOE_BF16 && cols % 2 == 0) {
        d = MOE_F32;
        cols /= 2;
    } else if (d == MOE_I32) {
        d = MOE_F32;
    }
    MoeVal step = moe_k64(e, e->lanes), whole = moe_k64(e, cols / e->lanes * e->lanes);
    MoeLoop l;
    moe_loop_begin(e, &l, moe_k64(e, 0), whole, step);
    moe_vstore(e, d, moe_vload(e, d, from, l.index, NULL), to, l.index, NULL);
    moe_loop_end(e, &l);
    if (cols % e->lanes) {
        MoeVal mask = moe_mask(e, moe_k64(e, cols % e->lanes));
        moe_vstore(e, d, moe_vload(e, d, from, whole, NULL), to, whole, mask);
    }
}

static void emit_dispatch_row(MoeEmit *e, const Move *m, MoeVal r) {
    MoeDtype d = m->op->operands[0]->type.dtype;
    int64_t bytes = m->cols * moe_dtype_bytes(d);
    MoeVal token = moe_idiv(e, moe_load_index(e, moe_emit_buf(e, m->src), r), moe_k64(e, m->k));
    copy_row(e, d, m->cols, moe_at(e, moe_emit_buf(e, m->x), token, bytes),
             moe_at(e, moe_emit_buf(e, m->out), r, bytes));
}

static MoeVal source_row(MoeEmit *e, const Move *m, MoeVal t, MoeVal j) {
    MoeVal p = moe_iadd(e, moe_imul(e, t, moe_k64(e, m->k)), j);
    MoeVal r = moe_load_index(e, moe_emit_buf(e, m->inv), p);
    return moe_at(e, moe_emit_buf(e, m->x), r,
                  m->cols * moe_dtype_bytes(m->op->operands[0]->type.dtype));
}

static void sum_vector(MoeEmit *e, const Move *m, MoeVal t, const MoeVal *rows, MoeVal to,
                       MoeVal at, MoeVal mask) {
    MoeDtype d = m->op->operands[0]->type.dtype;
    MoeVal zero = moe_k64(e, 0), sum;
    if (m->k <= UNROLL_K) {
        sum = moe_vload(e, d, rows[0], at, NULL);
        for (int64_t j = 1; j < m->k; j++)
            sum = LLVMBuildFAdd(e->b, sum, moe_vload(e, d, rows[j], at, NULL), "");
    } else {
        sum = moe_vload(e, d, source_row(e, m, t, zero), at, NULL);
        MoeCarryLoop l;
        moe_carry_begin(e, &l, moe_k64(e, 1), moe_k64(e, m->k), moe_k64(e, 1), &sum, 1);
        sum =
            LLVMBuildFAdd(e->b, sum, moe_vload(e, d, source_row(e, m, t, l.l.index), at, NULL), "");
        moe_carry_end(e, &l, &sum);
    }
    moe_vstore(e, MOE_F32, sum, to, at, mask);
}

static void emit_gather_row(MoeEmit *e, const Move *m, MoeVal t) {
    MoeVal rows[UNROLL_K], to = moe_at(e, moe_emit_buf(e, m->out), t, m->cols * 4);
    for (int64_t j = 0; j < m->k && m->k <= UNROLL_K; j++)
        rows[j] = source_row(e, m, t, moe_k64(e, j));
    int64_t whole = m->cols / e->lanes * e->lanes;
    MoeLoop l;
    moe_loop_begin(e, &l, moe_k64(e, 0), moe_k64(e, whole), moe_k64(e, e->lanes));
    sum_vector(e, m, t, rows, to, l.index, NULL);
    moe_loop_end(e, &l);
    if (m->cols % e->lanes)
        sum_vector(e, m, t, rows, to, moe_k64(e, whole), moe_mask(e, moe_k64(e, m->cols - whole)));
}

/* One element from where `index[r]` says. */
static void emit_pick(MoeEmit *e, const Move *m, int index, MoeVal r) {
    MoeVal from = moe_load_index(e, moe_emit_buf(e, index), r);
    moe_sstore(e, MOE_F32, moe_sload(e, MOE_F32, moe_emit_buf(e, m->x), from),
               moe_emit_buf(e, m->out), r);
}

static void emit_move_row(MoeEmit *e, const Move *m, MoeVal row) {
    MoeOpcode o = m->op->opcode;
    if (o == MOE_OP_DISPATCH) {
        emit_dispatch_row(e, m, row);
    } else if (o == MOE_OP_GATHER_SUM) {
        emit_gather_row(e, m, row);
    } else if (o == MOE_OP_DISPATCH_WEIGHT) {
        emit_pick(e, m, m->src, row);
    } else {
        MOE_ASSERT(o == MOE_OP_COLLECT_WEIGHT, "move: op %s", moe_op_info(o)->name);
        MoeLoop l;
        MoeVal k = moe_k64(e, m->k), first = moe_imul(e, row, k);
        moe_loop_begin(e, &l, first, moe_iadd(e, first, k), moe_k64(e, 1));
        emit_pick(e, m, m->inv, l.index);
        moe_loop_end(e, &l);
    }
}

static MoeVal live_count(MoeEmit *e, const MoeType *t, int seg) {
    return moe_isub(e, moe_live_rows(e, t, seg), moe_live_first(e, t, seg));
}

int64_t moe_cpu_move_workspace(MoeCpuTarget *t, const MoeGroup *g) {
    (void)t, (void)g;
    return 0;
}

MoeStatus moe_cpu_move_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out) {
    const MoeOp *op = g->ops[0];
    MOE_ASSERT(g->n_ops == 1, "move: a group of %zu ops", g->n_ops);
    const MoeType *type = &op->results[0]->type;
    MoeBufs bufs = {.n = 0};
    Move m = {.op = op,
              .k = op->operands[2]->type.dims[1].size,
              .cols = moe_type_cols(&op->operands[0]->type)};
    m.x = moe_bufs_add(&bufs, op->operands[0]);
    m.src = moe_bufs_add(&bufs, op->operands[1]);
    m.inv = moe_bufs_add(&bufs, op->operands[2]);
    m.out = moe_bufs_add(&bufs, op->results[0]);
    m.seg = moe_bufs_add_seg(&bufs, type);
    const char *what = moe_op_info(op->opcode)->name, *name;
    int64_t per_task =
        moe_live_block(op->opcode == MOE_OP_GATHER_SUM ? m.cols * m.k : moe_type_cols(type) * 2);
    MoeStr key = {0};
    MoeEmit e;
    moe_str_printf(&key, "%s k%lld", what, (long long)m.k);
    moe_live_key(&key, &op->operands[0]->type);
    moe_live_key(&key, type);
    for (int i = 0; i < op->n_operands; i++)
        moe_str_printf(&key, " %d", moe_bufs_add(&bufs, op->operands[i]));
    if (moe_emit_begin(t, moe_str_c(&key), what, &e, &name)) {
        moe_emit_tasks_body(&e);
        moe_live_tasks(&e, live_count(&e, type, m.seg), per_task);
        moe_emit_kernel_body(&e);
        MoeVal first = moe_live_first(&e, type, m.seg);
        MoeLoop rows;
        moe_live_loop(&e, &rows, live_count(&e, type, m.seg), per_task);
        emit_move_row(&e, &m, moe_iadd(&e, first, rows.index));
        moe_loop_end(&e, &rows);
        moe_emit_end(&e);
    }
    moe_str_free(&key);
    moe_cpu_launch(out, name, bufs.refs, (size_t)bufs.n);
    return NULL;
}

MoeStatus moe_cpu_dispatch_lower(MoeCpuTarget *t, const MoeGroup *g, const MoeOp *dispatch,
                                 MoeLowered *out) {
    MoeGroup alone;
    MoeOp *op;
    MoeValue *result;
    return moe_group_dispatch_alone(g, dispatch, &alone, &op, &result)
               ? moe_cpu_move_lower(t, &alone, out)
               : NULL;
}
