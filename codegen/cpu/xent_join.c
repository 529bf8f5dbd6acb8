/* cross_entropy_join: for each row the parts' largest logits m, sums s of e^(logit - m), and the label's
 * logit, which is 0 in all parts but one -> lse = M + ln S and nll = ln S + (M - label's), where M is
 * the largest m and S = sum s e^(m - M), parts ascending. */
#include <math.h>
#include "codegen/cpu/live.h"
#include "codegen/cpu/xent.h"

typedef struct {
    int sums, labels, nll, lse; /* buffers; -1: not wanted */
    int64_t cols;
} Join;

static MoeVal at(MoeEmit *e, MoeVal row, MoeVal part, int which) {
    return moe_sload(e, MOE_F32, row, moe_iadd(e, part, moe_k64(e, which)));
}

static void store(MoeEmit *e, int buf, MoeVal v, MoeVal row) {
    if (buf >= 0)
        moe_sstore(e, MOE_F32, v, moe_emit_buf(e, buf), row);
}

static void join_row(MoeEmit *e, const Join *j, MoeVal row) {
    MoeVal sums = moe_at(e, moe_emit_buf(e, j->sums), row, j->cols * 4);
    MoeVal zero = moe_k64(e, 0), end = moe_k64(e, j->cols), step = moe_k64(e, 3);
    MoeVal top = moe_kf(e, -INFINITY), vals[] = {moe_kf(e, 0), moe_kf(e, 0)};
    MoeCarryLoop l;
    moe_carry_begin(e, &l, zero, end, step, &top, 1);
    top = moe_math_max(e, top, at(e, sums, l.l.index, 0));
    moe_carry_end(e, &l, &top);
    moe_carry_begin(e, &l, zero, end, step, vals, 2);
    MoeVal less = LLVMBuildFSub(e->b, at(e, sums, l.l.index, 0), top, "");
    MoeVal sum = LLVMBuildFMul(e->b, at(e, sums, l.l.index, 1), moe_math_exp(e, less), "");
    vals[0] = LLVMBuildFAdd(e->b, vals[0], sum, "");
    vals[1] = LLVMBuildFAdd(e->b, vals[1], at(e, sums, l.l.index, 2), "");
    moe_carry_end(e, &l, vals);
    MoeVal log_sum = moe_math_log(e, vals[0]);
    MoeVal above = LLVMBuildFSub(e->b, top, vals[1], "");
    store(e, j->nll, LLVMBuildFAdd(e->b, log_sum, above, ""), row);
    store(e, j->lse, LLVMBuildFAdd(e->b, top, log_sum, ""), row);
}

static void emit_rows(MoeEmit *e, const Join *j, const MoeType *rows, int seg, int64_t per_task) {
    moe_emit_tasks_body(e);
    moe_live_tasks(e, moe_live_rows(e, rows, seg), per_task);
    moe_emit_kernel_body(e);
    MoeLoop l;
    moe_live_loop(e, &l, moe_live_rows(e, rows, seg), per_task);
    MoeVal label = moe_load_index(e, moe_emit_buf(e, j->labels), l.index);
    MoeIf live;
    moe_if_begin(e, &live, LLVMBuildICmp(e->b, LLVMIntSGE, label, moe_k64(e, 0), ""));
    join_row(e, j, l.index);
    moe_if_else(e, &live);
    store(e, j->nll, moe_kf(e, 0), l.index);
    store(e, j->lse, moe_kf(e, 0), l.index);
    moe_if_end(e, &live);
    moe_loop_end(e, &l);
    moe_emit_end(e);
}

void moe_xent_lower_join(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out) {
    const MoeOp *op = g->ops[0];
    const MoeType *rows = &op->operands[0]->type;
    MoeBufs bufs = {.n = 0};
    Join j = {.cols = moe_type_cols(rows)};
    j.sums = moe_bufs_add(&bufs, op->operands[0]);
    j.labels = moe_bufs_add(&bufs, op->operands[1]);
    j.nll = moe_bufs_add_output(&bufs, g, 0);
    j.lse = moe_bufs_add_output(&bufs, g, 1);
    int seg = moe_bufs_add_seg(&bufs, rows);
    MoeStr key = {0};
    MoeEmit e;
    const char *name;
    moe_str_printf(&key, "xent_join %d%d", j.nll, j.lse);
    moe_live_key(&key, rows);
    if (moe_emit_begin(t, moe_str_c(&key), "xent_join", &e, &name))
        emit_rows(&e, &j, rows, seg, moe_live_block(16 * j.cols));
    moe_str_free(&key);
    moe_cpu_launch(out, name, bufs.refs, (size_t)bufs.n);
}
