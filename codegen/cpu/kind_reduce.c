/* sum_squares, by docs/NUMBERS.md 6, and its halves block_squares and block_tree; col_sum alone runs
 * as a row group.
 *
 * First launch: the sum over each block of 4096 elements (lanes at stride, folded by halves) into
 * the workspace, eight blocks a task. Second launch: one task folds the tree over the blocks of
 * each slice, then the tree over slices. block_squares is the first launch alone: a block's bits do
 * not depend on where it lies, and zeros behind its end add nothing. block_tree is the second, with
 * the slices in any order. */
#include "base/assert.h"
#include "codegen/cpu/fold.h"
#include "codegen/cpu/live.h"
#include "codegen/norm_cut.h"
#include "ir/numbers.h"

enum { BLOCKS_A_TASK = 8 };

/* bufs: x, partials. */
static void emit_blocks(MoeEmit *e, const MoeNormCut *c, MoeDtype d) {
    int64_t total = c->slices * c->blocks;
    moe_emit_tasks_body(e);
    moe_live_tasks(e, moe_k64(e, total), BLOCKS_A_TASK);
    moe_emit_kernel_body(e);
    MoeVal x = moe_emit_buf(e, 0), partials = moe_emit_buf(e, 1), step = moe_k64(e, e->lanes);
    MoeLoop blocks;
    moe_live_loop(e, &blocks, moe_k64(e, total), BLOCKS_A_TASK);
    MoeVal slice = moe_idiv(e, blocks.index, moe_k64(e, c->blocks)),
           block = moe_irem(e, blocks.index, moe_k64(e, c->blocks));
    MoeVal start = moe_imul(e, slice, moe_k64(e, c->slice)),
           first = moe_imul(e, block, moe_k64(e, MOE_NORM_BLOCK));
    MoeVal lo = moe_iadd(e, start, first);
    MoeVal n = moe_imin(e, moe_k64(e, MOE_NORM_BLOCK), moe_isub(e, moe_k64(e, c->slice), first));
    MoeVal tail = moe_iadd(e, lo, moe_imul(e, moe_idiv(e, n, step), step)), hi = moe_iadd(e, lo, n);
    MoeVal sum = moe_vconst(e, 0.0);
    MoeCarryLoop l;
    moe_carry_begin(e, &l, lo, tail, step, &sum, 1);
    MoeVal v = moe_vload(e, d, x, l.l.index, NULL);
    sum = moe_fma(e, v, v, sum);
    moe_carry_end(e, &l, &sum);
    v = moe_vload(e, d, x, tail,
                  moe_mask(e, moe_isub(e, hi, tail))); /* no lanes at all, often: +0 then */
    sum = moe_fma(e, v, v, sum);
    moe_sstore(e, MOE_F32, moe_hsum(e, sum), partials, blocks.index);
    moe_loop_end(e, &blocks);
    moe_emit_end(e);
}

/* bufs: partials, out, [order]. n: slices to fold; with order (i32[n]), slice i lies at order[i]. */
static void emit_tree(MoeEmit *e, const MoeNormCut *c, int64_t n, bool ordered) {
    moe_emit_tasks_body(e);
    moe_emit_return(e, moe_k64(e, 1));
    moe_emit_kernel_body(e);
    MoeVal partials = moe_emit_buf(e, 0), zero = moe_k64(e, 0), one = moe_k64(e, 1);
    MoeFold over_slices, over_blocks;
    moe_fold_create(e, &over_slices, e->f32);
    moe_fold_create(e, &over_blocks, e->f32);
    moe_fold_reset(e, &over_slices);
    MoeLoop slices, blocks;
    moe_loop_begin(e, &slices, zero, moe_k64(e, n), one);
    moe_fold_reset(e, &over_blocks);
    MoeVal slice = ordered ? moe_load_index(e, moe_emit_buf(e, 2), slices.index) : slices.index;
    MoeVal first = moe_imul(e, slice, moe_k64(e, c->blocks));
    moe_loop_begin(e, &blocks, first, moe_iadd(e, first, moe_k64(e, c->blocks)), one);
    moe_fold_push(e, &over_blocks, moe_sload(e, MOE_F32, partials, blocks.index), NULL);
    moe_loop_end(e, &blocks);
    moe_fold_push(e, &over_slices, moe_fold_finish(e, &over_blocks, NULL), NULL);
    moe_loop_end(e, &slices);
    moe_sstore(e, MOE_F32, moe_fold_finish(e, &over_slices, NULL), moe_emit_buf(e, 1), zero);
    moe_emit_end(e);
}

/* ---- launches ---- */

static void launch_blocks(MoeCpuTarget *t, const MoeValue *x, const MoeNormCut *c,
                          MoeBufRef partials, MoeLowered *out) {
    MoeDtype d = x->type.dtype;
    MoeEmit e;
    const char *name;
    MoeStr key = {0};
    moe_str_printf(&key, "sum_squares %s %lldx%lld", moe_dtype_name(d), (long long)c->slices,
                   (long long)c->slice);
    if (moe_emit_begin(t, moe_str_c(&key), "sum_squares", &e, &name))
        emit_blocks(&e, c, d);
    moe_str_free(&key);
    MoeBufRef refs[] = {moe_ref(x), partials};
    moe_cpu_launch(out, name, refs, 2);
}

/* order: i32[n] that says where each of the n slices to fold lies; NULL: one after the other. */
static void launch_tree(MoeCpuTarget *t, MoeBufRef partials, const MoeNormCut *c,
                        const MoeValue *order, const MoeValue *result, MoeLowered *out) {
    MoeEmit e;
    const char *name;
    MoeStr key = {0};
    int64_t n = order ? order->type.dims[0].size : c->slices;
    moe_str_printf(&key, "sum_squares_fold %lldx%lld ordered=%d", (long long)n,
                   (long long)c->blocks, order != NULL);
    if (moe_emit_begin(t, moe_str_c(&key), "sum_squares_fold", &e, &name))
        emit_tree(&e, c, n, order != NULL);
    moe_str_free(&key);
    MoeBufRef refs[] = {partials, moe_ref(result), moe_ref(order)};
    moe_cpu_launch(out, name, refs, order ? 3 : 2);
}

int64_t moe_cpu_reduce_workspace(MoeCpuTarget *t, const MoeGroup *g) {
    const MoeOp *op = g->ops[0];
    if (op->opcode == MOE_OP_COL_SUM)
        return moe_cpu_row_workspace(t, g);
    if (op->opcode != MOE_OP_SUM_SQUARES)
        return 0;
    const MoeType *x = &op->operands[0]->type;
    MoeNormCut c = moe_norm_cut(x, x->rank == 3);
    return (c.slices * c.blocks * 4 + 63) / 64 * 64;
}

MoeStatus moe_cpu_reduce_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out) {
    const MoeOp *op = g->ops[0];
    if (op->opcode == MOE_OP_COL_SUM)
        return moe_cpu_row_lower(t, g, out);
    MOE_ASSERT(g->n_ops == 1, "reduce: a group of %zu ops", g->n_ops);
    const MoeValue *x = op->operands[0], *y = op->results[0];
    if (op->opcode == MOE_OP_BLOCK_SQUARES) { /* [cap], or [L,...] */
        MoeNormCut c = moe_norm_cut(&x->type, x->type.rank > 1);
        launch_blocks(t, x, &c, moe_ref(y), out);
    } else if (op->opcode == MOE_OP_BLOCK_TREE) { /* [B] or [G,B] */
        MoeNormCut c = moe_norm_cut(&x->type, x->type.rank == 2);
        c.blocks = c.slice;
        launch_tree(t, moe_ref(x), &c, op->n_operands > 1 ? op->operands[1] : NULL, y, out);
    } else {
        MOE_ASSERT(op->opcode == MOE_OP_SUM_SQUARES, "reduce: op %s",
                   moe_op_info(op->opcode)->name);
        MoeNormCut c = moe_norm_cut(&x->type, x->type.rank == 3);
        launch_blocks(t, x, &c, moe_ref_work(0), out);
        launch_tree(t, moe_ref_work(0), &c, NULL, y, out);
    }
    return NULL;
}
