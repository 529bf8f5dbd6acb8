/* Column sums of a row group: the leaves of the tree over rows, and the launch that folds them.
 *
 * The row kernel's tasks are the leaves, numbered by (g, v, leaf) over the live table; leaf n's
 * partial sums lie in slot n of the workspace, so live rows touch its front alone. The fold runs
 * over blocks of columns: for each (g, v) the tree over its leaves, then the trees over v and over
 * g. */
#include "codegen/cpu/fold.h"
#include "codegen/cpu/kind_row.h"
#include "codegen/cpu/kind_row_local.h"
#include "ir/numbers.h"

enum { FOLD_VECTORS = 2 }; /* vectors of columns a task */

static MoeVal n_leaves(MoeEmit *e, MoeVal rows) {
    return moe_iceildiv(e, rows, MOE_LEAF_ROWS);
}

/* First row of entry i of the table; entry n is the end. table NULL: static rows, one entry. */
static MoeVal table_at(MoeEmit *e, MoeVal table, int64_t rows, MoeVal i) {
    if (table)
        return moe_load_index(e, table, i);
    return moe_imul(e, i, moe_k64(e, rows));
}

static MoeVal table_of(MoeEmit *e, const MoeRowPlan *p) {
    return p->seg < 0 ? NULL : moe_emit_buf(e, p->values[p->seg].buf_in);
}

static int64_t n_entries(const MoeRowPlan *p) {
    int64_t groups, shards;
    moe_row_tree_shape(p, &groups, &shards);
    return groups * shards;
}

MoeVal moe_row_emit_leaf_count(MoeEmit *e, const MoeRowPlan *p) {
    MoeVal table = table_of(e, p), count = moe_k64(e, 0), one = moe_k64(e, 1);
    MoeCarryLoop l;
    moe_carry_begin(e, &l, moe_k64(e, 0), moe_k64(e, n_entries(p)), one, &count, 1);
    MoeVal lo = table_at(e, table, p->rows, l.l.index);
    MoeVal hi = table_at(e, table, p->rows, moe_iadd(e, l.l.index, one));
    MoeVal next = moe_iadd(e, count, n_leaves(e, moe_isub(e, hi, lo)));
    moe_carry_end(e, &l, &next);
    return next;
}

void moe_row_emit_leaf_rows(MoeEmit *e, const MoeRowPlan *p, MoeVal leaf, MoeVal *out_lo,
                            MoeVal *out_hi) {
    LLVMBuilderRef b = e->b;
    MoeVal table = table_of(e, p), zero = moe_k64(e, 0), one = moe_k64(e, 1),
           size = moe_k64(e, MOE_LEAF_ROWS);
    MoeVal vals[] = {leaf, zero, zero}; /* leaves still to skip, lo, hi */
    MoeCarryLoop l;
    moe_carry_begin(e, &l, zero, moe_k64(e, n_entries(p)), one, vals, 3);
    MoeVal lo = table_at(e, table, p->rows, l.l.index);
    MoeVal hi = table_at(e, table, p->rows, moe_iadd(e, l.l.index, one));
    MoeVal n = n_leaves(e, moe_isub(e, hi, lo));
    MoeVal here = LLVMBuildAnd(b, LLVMBuildICmp(b, LLVMIntSGE, vals[0], zero, ""),
                               LLVMBuildICmp(b, LLVMIntSLT, vals[0], n, ""), "");
    MoeVal first = moe_iadd(e, lo, moe_imul(e, vals[0], size));
    MoeVal last = moe_imin(e, hi, moe_iadd(e, first, size));
    MoeVal next[] = {moe_isub(e, vals[0], n), LLVMBuildSelect(b, here, first, vals[1], ""),
                     LLVMBuildSelect(b, here, last, vals[2], "")};
    moe_carry_end(e, &l, next);
    *out_lo = next[1];
    *out_hi = next[2];
}

/* bufs: [table], partials, out. */
static void emit_fold_kernel(MoeEmit *e, const MoeRowPlan *p, int64_t cols) {
    int64_t groups, shards;
    moe_row_tree_shape(p, &groups, &shards);
    int first = p->seg < 0 ? 0 : 1;
    int64_t block = (int64_t)e->lanes * FOLD_VECTORS;
    moe_emit_tasks_body(e);
    moe_emit_return(e, moe_k64(e, (cols + block - 1) / block));

    moe_emit_kernel_body(e);
    MoeVal zero = moe_k64(e, 0), one = moe_k64(e, 1);
    MoeVal table = p->seg < 0 ? NULL : moe_emit_buf(e, 0);
    MoeVal partials = moe_emit_buf(e, first), out = moe_emit_buf(e, first + 1);
    MoeFold over_groups, over_shards, over_leaves;
    moe_fold_create(e, &over_groups, e->v32);
    moe_fold_create(e, &over_shards, e->v32);
    moe_fold_create(e, &over_leaves, e->v32);
    MoeVal lo = moe_imul(e, e->task, moe_k64(e, block));
    MoeVal hi = moe_imin(e, moe_k64(e, cols), moe_iadd(e, lo, moe_k64(e, block)));
    MoeLoop columns, leaves;
    MoeCarryLoop by_group, by_shard;
    moe_loop_begin(e, &columns, lo, hi, moe_k64(e, e->lanes));
    MoeVal slot = zero; /* leaves so far */
    moe_fold_reset(e, &over_groups);
    moe_carry_begin(e, &by_group, zero, moe_k64(e, groups), one, &slot, 1);
    moe_fold_reset(e, &over_shards);
    moe_carry_begin(e, &by_shard, zero, moe_k64(e, shards), one, &slot, 1);
    moe_fold_reset(e, &over_leaves);
    MoeVal entry = moe_iadd(e, moe_imul(e, by_group.l.index, moe_k64(e, shards)), by_shard.l.index);
    MoeVal rows = moe_isub(e, table_at(e, table, p->rows, moe_iadd(e, entry, one)),
                           table_at(e, table, p->rows, entry));
    MoeVal end = moe_iadd(e, slot, n_leaves(e, rows));
    moe_loop_begin(e, &leaves, slot, end, one);
    MoeVal at = moe_at_bytes(e, partials, moe_imul(e, leaves.index, moe_k64(e, p->slot_bytes)));
    moe_fold_push(e, &over_leaves, moe_vload(e, MOE_F32, at, columns.index, NULL), NULL);
    moe_loop_end(e, &leaves);
    MoeVal present, v = moe_fold_finish(e, &over_leaves, &present);
    moe_fold_push(e, &over_shards, v, present);
    slot = end;
    moe_carry_end(e, &by_shard, &slot);
    v = moe_fold_finish(e, &over_shards, &present);
    moe_fold_push(e, &over_groups, v, present);
    moe_carry_end(e, &by_group, &slot);
    v = moe_fold_finish(e, &over_groups, NULL);
    moe_vstore(e, MOE_F32, v, out, columns.index,
               moe_mask(e, moe_isub(e, moe_k64(e, cols), columns.index)));
    moe_loop_end(e, &columns);
    moe_emit_end(e);
}

void moe_row_emit_fold(MoeCpuTarget *t, const MoeRowPlan *p, const MoeRowOp *op, MoeLowered *out) {
    MoeEmit e;
    const char *name;
    int64_t groups, shards;
    moe_row_tree_shape(p, &groups, &shards);
    MoeStr key = {0};
    moe_str_printf(&key, "col_fold %lld/%lld %lldx%lld", (long long)op->cols,
                   (long long)p->slot_bytes, (long long)groups, (long long)shards);
    if (p->seg < 0)
        moe_str_printf(&key, " rows%lld", (long long)p->rows);
    if (moe_emit_begin(t, moe_str_c(&key), "col_fold", &e, &name))
        emit_fold_kernel(&e, p, op->cols);
    moe_str_free(&key);
    MoeBufRef refs[3];
    size_t n = 0;
    if (p->seg >= 0)
        refs[n++] = moe_ref(p->values[p->seg].v);
    refs[n++] = moe_ref_work(op->partial);
    refs[n++] = moe_ref(op->op->results[0]);
    moe_cpu_launch(out, name, refs, n);
}
