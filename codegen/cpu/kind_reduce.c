/* sum_squares, by docs/NUMBERS.md 6; col_sum alone runs as a row group.
 *
 * First launch: the sum over each block of 4096 elements (lanes at stride, folded by halves) into
 * the workspace, eight blocks a task. Second launch: one task folds the tree over the blocks of
 * each slice, then the tree over slices. */
#include "base/assert.h"
#include "codegen/cpu/fold.h"
#include "codegen/cpu/live.h"
#include "ir/numbers.h"

enum { BLOCKS_A_TASK = 8 };

typedef struct {
    int64_t slices, slice; /* how many, elements of one */
    int64_t blocks;        /* of a slice */
} Cut;

static Cut cut_of(const MoeType *t) {
    Cut c = {1, moe_type_elements(t), 0};
    MOE_ASSERT(!moe_rows_seg(t), "sum_squares: of a ragged tensor");
    if (t->rank == 3) {
        c.slices = t->dims[0].size;
        c.slice = t->dims[1].size * t->dims[2].size;
    }
    c.blocks = (c.slice + MOE_NORM_BLOCK - 1) / MOE_NORM_BLOCK;
    return c;
}

/* bufs: x, partials. */
static void emit_blocks(MoeEmit *e, const Cut *c, MoeDtype d) {
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

/* bufs: partials, out. */
static void emit_tree(MoeEmit *e, const Cut *c) {
    moe_emit_tasks_body(e);
    moe_emit_return(e, moe_k64(e, 1));
    moe_emit_kernel_body(e);
    MoeVal partials = moe_emit_buf(e, 0), zero = moe_k64(e, 0), one = moe_k64(e, 1);
    MoeFold over_slices, over_blocks;
    moe_fold_create(e, &over_slices, e->f32);
    moe_fold_create(e, &over_blocks, e->f32);
    moe_fold_reset(e, &over_slices);
    MoeLoop slices, blocks;
    moe_loop_begin(e, &slices, zero, moe_k64(e, c->slices), one);
    moe_fold_reset(e, &over_blocks);
    MoeVal first = moe_imul(e, slices.index, moe_k64(e, c->blocks));
    moe_loop_begin(e, &blocks, first, moe_iadd(e, first, moe_k64(e, c->blocks)), one);
    moe_fold_push(e, &over_blocks, moe_sload(e, MOE_F32, partials, blocks.index), NULL);
    moe_loop_end(e, &blocks);
    moe_fold_push(e, &over_slices, moe_fold_finish(e, &over_blocks, NULL), NULL);
    moe_loop_end(e, &slices);
    moe_sstore(e, MOE_F32, moe_fold_finish(e, &over_slices, NULL), moe_emit_buf(e, 1), zero);
    moe_emit_end(e);
}

int64_t moe_cpu_reduce_workspace(MoeCpuTarget *t, const MoeGroup *g) {
    if (g->ops[0]->opcode != MOE_OP_SUM_SQUARES)
        return moe_cpu_row_workspace(t, g);
    Cut c = cut_of(&g->ops[0]->operands[0]->type);
    return (c.slices * c.blocks * 4 + 63) / 64 * 64;
}

MoeStatus moe_cpu_reduce_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out) {
    const MoeOp *op = g->ops[0];
    if (op->opcode != MOE_OP_SUM_SQUARES)
        return moe_cpu_row_lower(t, g, out);
    MOE_ASSERT(g->n_ops == 1, "sum_squares: in a group of %zu ops", g->n_ops);
    MoeDtype d = op->operands[0]->type.dtype;
    Cut c = cut_of(&op->operands[0]->type);
    MoeEmit e;
    const char *name;
    MoeStr key = {0};
    moe_str_printf(&key, "sum_squares %s %lldx%lld", moe_dtype_name(d), (long long)c.slices,
                   (long long)c.slice);
    if (moe_emit_begin(t, moe_str_c(&key), "sum_squares", &e, &name))
        emit_blocks(&e, &c, d);
    MoeBufRef first[] = {moe_ref(op->operands[0]), moe_ref_work(0)};
    moe_cpu_launch(out, name, first, 2);
    moe_str_clear(&key);
    moe_str_printf(&key, "sum_squares_fold %lldx%lld", (long long)c.slices, (long long)c.blocks);
    if (moe_emit_begin(t, moe_str_c(&key), "sum_squares_fold", &e, &name))
        emit_tree(&e, &c);
    MoeBufRef second[] = {moe_ref_work(0), moe_ref(op->results[0])};
    moe_cpu_launch(out, name, second, 2);
    moe_str_free(&key);
    return NULL;
}
