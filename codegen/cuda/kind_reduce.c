/* sum_squares, by docs/NUMBERS.md 6, and its halves block_squares and block_tree; col_sum alone runs as a row group.
 *
 * First launch: the sum over each block of 4096 elements, a warp a block (device/tree.cuh says in which order). Second: the
 * tree over the blocks of each slice, a block of threads a slice. Third, where there are several slices: the tree over
 * them. block_squares is the first launch alone, block_tree the others, with the slices in any order. */
#include "base/assert.h"
#include "codegen/cuda/cuda.h"
#include "codegen/norm_cut.h"
#include "ir/numbers.h"

enum { SQUARES_THREADS = 256, TREE_THREADS = 256, SQUARES_WAVES = 8, WORK_ALIGN = 256 };

static MoeNormCut cut_of_tree(const MoeType *t) { /* [B] or [G,B] */
    MoeNormCut c = moe_norm_cut(t, t->rank == 2);
    c.blocks = c.slice;
    return c;
}

/* Blocks of all slices, then slices: f32s, each at a multiple of WORK_ALIGN bytes. */
static int64_t bytes_of(int64_t n) {
    return (n * 4 + WORK_ALIGN - 1) / WORK_ALIGN * WORK_ALIGN;
}

static void launch_squares(MoeCudaTarget *t, const MoeValue *x, const MoeNormCut *c, MoeBufRef sums,
                           MoeLowered *out) {
    MoeStr s = {0};
    moe_str_printf(&s,
                   "    moe::block_squares<%d>(moe::buf<const %s>(a, 0), moe::buf<float>(a, 1), "
                   "%lld, %lld, %lld);\n",
                   SQUARES_THREADS, x->type.dtype == MOE_BF16 ? "moe::bf16" : "float",
                   (long long)c->slices, (long long)c->slice, (long long)c->blocks);
    MoeCudaKernelText k = {.prefix = "squares",
                           .note = "sums of squares of blocks of 4096 elements",
                           .n_bufs = 2,
                           .threads = SQUARES_THREADS,
                           .min_blocks = 1,
                           .parts = 1u << MOE_CUDA_PART_tree,
                           .body = moe_str_c(&s)};
    int64_t per_block = SQUARES_THREADS / 32, all = c->slices * c->blocks;
    MoeBufRef refs[] = {moe_ref(x), sums};
    moe_cuda_launch(t, out, moe_cuda_kernel(t, &k),
                    moe_cuda_blocks(t, (all + per_block - 1) / per_block, SQUARES_WAVES), refs, 2);
    moe_str_free(&s);
}

/* rows trees over n items each, item i of row r at items[at * n + i], at = order[r], or r without order. */
static void launch_trees(MoeCudaTarget *t, MoeBufRef items, int64_t rows, int64_t n,
                         const MoeValue *order, MoeBufRef sums, MoeLowered *out) {
    MoeStr s = {0};
    int levels = 0; /* of the run of items that a thread folds */
    while (((int64_t)TREE_THREADS << levels) < n)
        levels++;
    moe_str_printf(&s,
                   "    moe::block_trees<%d, %d>(moe::buf<const float>(a, 0), %lld, %lld, %s, "
                   "moe::buf<float>(a, 1));\n",
                   TREE_THREADS, levels, (long long)rows, (long long)n,
                   order ? "moe::buf<const moe::i32>(a, 2)" : "nullptr");
    MoeCudaKernelText k = {.prefix = "tree",
                           .note = "trees over sums of blocks",
                           .n_bufs = order ? 3 : 2,
                           .threads = TREE_THREADS,
                           .min_blocks = 1,
                           .parts = 1u << MOE_CUDA_PART_tree,
                           .body = moe_str_c(&s)};
    MoeBufRef refs[] = {items, sums, moe_ref(order)};
    moe_cuda_launch(t, out, moe_cuda_kernel(t, &k), moe_cuda_blocks(t, rows, 8), refs,
                    order ? 3 : 2);
    moe_str_free(&s);
}

/* The tree over each slice's blocks, then the tree over slices; work: where the slices' sums may lie. */
static void launch_slices(MoeCudaTarget *t, MoeBufRef blocks, const MoeNormCut *c,
                          const MoeValue *order, int64_t work, const MoeValue *result,
                          MoeLowered *out) {
    int64_t n = order ? order->type.dims[0].size : c->slices;
    if (n == 1) {
        launch_trees(t, blocks, 1, c->blocks, order, moe_ref(result), out);
        return;
    }
    launch_trees(t, blocks, n, c->blocks, order, moe_ref_work(work), out);
    launch_trees(t, moe_ref_work(work), 1, n, NULL, moe_ref(result), out);
}

static int64_t slices_of(const MoeOp *op, const MoeNormCut *c) {
    return op->n_operands > 1 ? op->operands[1]->type.dims[0].size : c->slices;
}

int64_t moe_cuda_reduce_workspace(MoeCudaTarget *t, const MoeGroup *g) {
    const MoeOp *op = g->ops[0];
    if (op->opcode == MOE_OP_COL_SUM)
        return moe_cuda_row_workspace(t, g);
    const MoeType *x = &op->operands[0]->type;
    if (op->opcode == MOE_OP_BLOCK_TREE) {
        MoeNormCut c = cut_of_tree(x);
        return bytes_of(slices_of(op, &c));
    }
    if (op->opcode != MOE_OP_SUM_SQUARES)
        return 0;
    MoeNormCut c = moe_norm_cut(x, x->rank == 3);
    return bytes_of(c.slices * c.blocks) + bytes_of(c.slices);
}

MoeStatus moe_cuda_reduce_lower(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out) {
    const MoeOp *op = g->ops[0];
    if (op->opcode == MOE_OP_COL_SUM)
        return moe_cuda_row_lower(t, g, out);
    MOE_ASSERT(g->n_ops == 1, "reduce: a group of %zu ops", g->n_ops);
    const MoeValue *x = op->operands[0], *y = op->results[0];
    if (op->opcode == MOE_OP_BLOCK_SQUARES) { /* [cap], or [L,...] */
        MoeNormCut c = moe_norm_cut(&x->type, x->type.rank > 1);
        launch_squares(t, x, &c, moe_ref(y), out);
    } else if (op->opcode == MOE_OP_BLOCK_TREE) {
        MoeNormCut c = cut_of_tree(&x->type);
        launch_slices(t, moe_ref(x), &c, op->n_operands > 1 ? op->operands[1] : NULL, 0, y, out);
    } else {
        MOE_ASSERT(op->opcode == MOE_OP_SUM_SQUARES, "reduce: op %s",
                   moe_op_info(op->opcode)->name);
        MoeNormCut c = moe_norm_cut(&x->type, x->type.rank == 3);
        launch_squares(t, x, &c, moe_ref_work(0), out);
        launch_slices(t, moe_ref_work(0), &c, NULL, bytes_of(c.slices * c.blocks), y, out);
    }
    return NULL;
}
