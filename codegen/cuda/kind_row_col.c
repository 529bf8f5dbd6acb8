/* The launch that folds column sums: partial sums by leaf, from the row kernel, by the tree of docs/NUMBERS.md, 4. A block has
 * 32 columns; its warps share the virtual shards. */
#include "codegen/cuda/kind_row.h"
#include "ir/numbers.h"

enum { FOLD_WARPS = 8 };

void moe_cuda_row_fold(MoeCudaTarget *t, const MoeRowPlan *p, const MoeRowOp *op, MoeLowered *out) {
    int64_t groups, shards, leaves = (p->rows + MOE_LEAF_ROWS - 1) / MOE_LEAF_ROWS;
    moe_row_tree_shape(p, &groups, &shards);
    int warps = 1, levels = 0;
    while (warps < shards && warps < FOLD_WARPS)
        warps *= 2;
    while ((int64_t)1 << levels < leaves)
        levels++;
    MoeBufRef refs[3];
    int n = 0;
    if (p->seg >= 0)
        refs[n++] = moe_ref(p->values[p->seg].v);
    refs[n++] = moe_ref_work(op->partial);
    refs[n++] = moe_ref(op->op->results[0]);
    MoeStr s = {0}, note = {0};
    moe_str_printf(&s, "    moe::col_fold<%d, %lld, %lld, %d>(", 32 * warps, (long long)groups,
                   (long long)shards, levels);
    moe_str_append(&s, p->seg < 0 ? "nullptr" : "moe::buf<const moe::i32>(a, 0)");
    moe_str_printf(&s, ", %lld, moe::buf<const float>(a, %d), %lld, %lld, moe::buf<float>(a, %d));\n",
                   (long long)p->rows, n - 2, (long long)(p->slot_bytes / 4), (long long)op->cols,
                   n - 1);
    moe_str_printf(&note, "column sums f32[%lld] from sums of leaves", (long long)op->cols);
    MoeCudaKernelText k = {.prefix = "col_fold",
                           .note = moe_str_c(&note),
                           .n_bufs = n,
                           .threads = 32 * warps,
                           .min_blocks = 1,
                           .parts = 1u << MOE_CUDA_PART_tree,
                           .body = moe_str_c(&s)};
    moe_cuda_launch(t, out, moe_cuda_kernel(t, &k), (op->cols + 31) / 32, refs, (size_t)n);
    moe_str_free(&s);
    moe_str_free(&note);
}
