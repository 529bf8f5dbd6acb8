/* embedding: rows of the table by id. embedding_grad: the sum of dy over the tokens of each id. With an
 * operand `part` the table is one of several parts: an id's row is its distance from the part's first
 * id; ids elsewhere give zeros, or are left out of the sort.
 *
 * embedding_grad, first launch (one task): a stable counting sort of the tokens by id into the
 * workspace, start i32[vocab + 1] and order i32[T]. Second launch, blocks of ids: for each virtual
 * shard the id's tokens are added in ascending order from +0, in a row of the scratch memory (V,
 * C); then the tree over shards, in which a shard without tokens of this id is absent. Rows of
 * unused ids are zero. */
#include "base/assert.h"
#include "codegen/cpu/count_sort.h"
#include "codegen/cpu/fold.h"
#include "codegen/cpu/live.h"

static void copy_row(MoeEmit *e, int64_t cols, MoeVal from, MoeVal to) {
    MoeVal whole = moe_k64(e, cols / e->lanes * e->lanes);
    MoeLoop l;
    moe_loop_begin(e, &l, moe_k64(e, 0), whole, moe_k64(e, e->lanes));
    moe_vstore(e, MOE_F32, moe_vload(e, MOE_F32, from, l.index, NULL), to, l.index, NULL);
    moe_loop_end(e, &l);
    if (cols % e->lanes)
        moe_vstore(e, MOE_F32, moe_vload(e, MOE_F32, from, whole, NULL), to, whole,
                   moe_mask(e, moe_k64(e, cols % e->lanes)));
}

/* The row of an id in part buf_part (-1: the table is whole) of n rows. out_here: i1, whether it is
 * there; NULL if it always is. */
static MoeVal table_row(MoeEmit *e, MoeVal id, int buf_part, int64_t n, MoeVal *out_here) {
    *out_here = NULL;
    if (buf_part < 0)
        return id;
    MoeVal part = moe_load_index(e, moe_emit_buf(e, buf_part), moe_k64(e, 0));
    MoeVal row = moe_isub(e, id, moe_imul(e, part, moe_k64(e, n)));
    *out_here = LLVMBuildICmp(e->b, LLVMIntULT, row, moe_k64(e, n), "");
    return row;
}

static void zero_row(MoeEmit *e, int64_t cols, MoeVal row, bool masked) {
    MoeVal end = moe_k64(e, cols);
    MoeLoop l;
    moe_loop_begin(e, &l, moe_k64(e, 0), end, moe_k64(e, e->lanes));
    MoeVal mask = masked ? moe_mask(e, moe_isub(e, end, l.index)) : NULL;
    moe_vstore(e, MOE_F32, moe_vconst(e, 0.0), row, l.index, mask);
    moe_loop_end(e, &l);
}

/* One token's row of the result. */
static void emit_lookup(MoeEmit *e, int64_t n, int64_t cols, MoeVal id, int table, int part,
                        MoeVal to) {
    MoeVal here, row = table_row(e, id, part, n, &here);
    MoeIf some;
    if (here)
        moe_if_begin(e, &some, here);
    copy_row(e, cols, moe_at(e, moe_emit_buf(e, table), row, cols * 4), to);
    if (here) {
        moe_if_else(e, &some);
        zero_row(e, cols, to, true);
        moe_if_end(e, &some);
    }
}

static void lower_embedding(MoeCpuTarget *t, const MoeOp *op, MoeLowered *out) {
    const MoeType *type = &op->results[0]->type;
    MOE_ASSERT(op->operands[0]->type.dtype == MOE_F32, "embedding: a table that is not f32");
    int64_t cols = moe_type_cols(type), per_task = moe_live_block(cols * 2);
    MoeBufs bufs = {.n = 0};
    int table = moe_bufs_add(&bufs, op->operands[0]), ids = moe_bufs_add(&bufs, op->operands[1]);
    int y = moe_bufs_add(&bufs, op->results[0]), seg = moe_bufs_add_seg(&bufs, type);
    int part = op->n_operands > 2 ? moe_bufs_add(&bufs, op->operands[2]) : -1;
    int64_t n = op->operands[0]->type.dims[0].size;
    MoeStr key = {0};
    MoeEmit e;
    const char *name;
    moe_str_append(&key, "embedding");
    moe_live_key(&key, type);
    if (part >= 0)
        moe_str_printf(&key, " part %d of %lld", part, (long long)n);
    if (moe_emit_begin(t, moe_str_c(&key), "embedding", &e, &name)) {
        moe_emit_tasks_body(&e);
        moe_live_tasks(&e, moe_live_rows(&e, type, seg), per_task);
        moe_emit_kernel_body(&e);
        MoeLoop rows;
        moe_live_loop(&e, &rows, moe_live_rows(&e, type, seg), per_task);
        MoeVal id = moe_load_index(&e, moe_emit_buf(&e, ids), rows.index);
        emit_lookup(&e, n, cols, id, table, part,
                    moe_at(&e, moe_emit_buf(&e, y), rows.index, cols * 4));
        moe_loop_end(&e, &rows);
        moe_emit_end(&e);
    }
    moe_str_free(&key);
    moe_cpu_launch(out, name, bufs.refs, (size_t)bufs.n);
}

/* ---- the gradient ---- */

static int64_t round64(int64_t n) {
    return (n + 63) / 64 * 64;
}
static int64_t start_bytes(int64_t vocab) {
    return round64((vocab + 1) * 4);
}

/* bufs: ids, start, order, [tok], [part]. */
static void emit_sort(MoeEmit *e, const MoeType *ids_type, int seg, int part, int64_t vocab) {
    MoeVal ids = moe_emit_buf(e, 0), start = moe_emit_buf(e, 1), order = moe_emit_buf(e, 2);
    MoeVal one = moe_k64(e, 1), live = moe_live_rows(e, ids_type, seg);
    moe_count_clear(e, start, vocab);
    for (int deal = 0; deal < 2; deal++) {
        MoeLoop l;
        MoeIf some;
        moe_loop_begin(e, &l, moe_k64(e, 0), live, one);
        MoeVal here, row = table_row(e, moe_load_index(e, ids, l.index), part, vocab, &here);
        if (here)
            moe_if_begin(e, &some, here);
        if (deal)
            moe_store_i32(e, l.index, order, moe_count_deal(e, e->scratch, row));
        else
            moe_count_add(e, start, row);
        if (here)
            moe_if_end(e, &some);
        moe_loop_end(e, &l);
        if (!deal)
            moe_count_scan(e, start, e->scratch, vocab);
    }
}

/* row (cols) = row + x, or x + 0 for the first of a shard. */
static void add_row(MoeEmit *e, int64_t cols, MoeVal row, MoeVal x) {
    MoeLoop l;
    moe_loop_begin(e, &l, moe_k64(e, 0), moe_k64(e, cols), moe_k64(e, e->lanes));
    MoeVal v = LLVMBuildFAdd(e->b, moe_vload(e, MOE_F32, row, l.index, NULL),
                             moe_vload(e, MOE_F32, x, l.index, NULL), "");
    moe_vstore(e, MOE_F32, v, row, l.index,
               NULL); /* rows of the scratch have room for a whole last vector */
    moe_loop_end(e, &l);
}

typedef struct {
    int64_t vocab, cols, shards, row_bytes; /* row_bytes: of a scratch row */
    MoeVal table;                           /* segs of the tokens; NULL: static */
    MoeVal present;                         /* i8[shards] on the stack */
    MoeFold fold;
} Grad;

/* The tokens order[lo..hi) of one id, summed by shard into the scratch rows. Returns how many
 * shards have some; *out_last: the last of those. */
static MoeVal sum_by_shard(MoeEmit *e, Grad *g, MoeVal dy, MoeVal order, MoeVal lo, MoeVal hi,
                           MoeVal *out_last) {
    LLVMBuilderRef b = e->b;
    MoeVal zero = moe_k64(e, 0), one = moe_k64(e, 1),
           vals[] = {lo, zero, zero}; /* token, shards with tokens, last of them */
    MoeCarryLoop by_shard;
    moe_carry_begin(e, &by_shard, zero, moe_k64(e, g->shards), one, vals, 3);
    MoeVal at = vals[0];
    MoeVal row = moe_at(e, e->scratch, by_shard.l.index, g->row_bytes), v_end = NULL;
    if (g->table)
        v_end = moe_load_index(e, g->table, moe_iadd(e, by_shard.l.index, one));
    /* The shard's tokens stand together: count them first. */
    MoeVal end = hi;
    if (v_end) {
        MoeCarryLoop count;
        end = at;
        moe_carry_begin(e, &count, at, hi, one, &end, 1);
        MoeVal inside =
            LLVMBuildICmp(b, LLVMIntSLT, moe_load_index(e, order, count.l.index), v_end, "");
        end = moe_iadd(e, end, LLVMBuildZExt(b, inside, e->i64, ""));
        moe_carry_end(e, &count, &end);
    }
    MoeVal some = LLVMBuildICmp(b, LLVMIntSLT, at, end, "");
    LLVMBuildStore(b, LLVMBuildZExt(b, some, e->i8, ""),
                   moe_at(e, g->present, by_shard.l.index, 1));
    MoeIf any;
    moe_if_begin(e, &any, some);
    zero_row(e, g->cols, row, false);
    moe_if_end(e, &any);
    MoeLoop tokens;
    moe_loop_begin(e, &tokens, at, end, one);
    MoeVal t = moe_load_index(e, order, tokens.index);
    add_row(e, g->cols, row, moe_at(e, dy, t, g->cols * 4));
    moe_loop_end(e, &tokens);
    vals[0] = end;
    vals[1] = moe_iadd(e, vals[1], LLVMBuildZExt(b, some, e->i64, ""));
    vals[2] = LLVMBuildSelect(b, some, by_shard.l.index, vals[2], "");
    moe_carry_end(e, &by_shard, vals);
    *out_last = vals[2];
    return vals[1];
}

static void fold_shards(MoeEmit *e, Grad *g, MoeVal out_row) {
    MoeVal end = moe_k64(e, g->cols);
    MoeLoop columns, by_shard;
    moe_loop_begin(e, &columns, moe_k64(e, 0), end, moe_k64(e, e->lanes));
    moe_fold_reset(e, &g->fold);
    moe_loop_begin(e, &by_shard, moe_k64(e, 0), moe_k64(e, g->shards), moe_k64(e, 1));
    MoeVal x = moe_vload(e, MOE_F32, moe_at(e, e->scratch, by_shard.index, g->row_bytes),
                         columns.index, NULL);
    MoeVal flag = LLVMBuildLoad2(e->b, e->i8, moe_at(e, g->present, by_shard.index, 1), "");
    moe_fold_push(e, &g->fold, x,
                  LLVMBuildICmp(e->b, LLVMIntNE, flag, LLVMConstInt(e->i8, 0, 0), ""));
    moe_loop_end(e, &by_shard);
    MoeVal sum = moe_fold_finish(e, &g->fold, NULL);
    moe_vstore(e, MOE_F32, sum, out_row, columns.index,
               moe_mask(e, moe_isub(e, end, columns.index)));
    moe_loop_end(e, &columns);
}

/* bufs: dy, start, order, out, [tok]. */
static void emit_grad(MoeEmit *e, Grad *g, int seg, int64_t per_task) {
    moe_emit_tasks_body(e);
    moe_live_tasks(e, moe_k64(e, g->vocab), per_task);
    moe_emit_kernel_body(e);
    MoeVal dy = moe_emit_buf(e, 0), start = moe_emit_buf(e, 1), order = moe_emit_buf(e, 2),
           one = moe_k64(e, 1);
    g->table = seg >= 0 ? moe_emit_buf(e, seg) : NULL;
    g->present = moe_alloca(e, e->i8, g->shards);
    moe_fold_create(e, &g->fold, e->v32);
    MoeLoop ids;
    moe_live_loop(e, &ids, moe_k64(e, g->vocab), per_task);
    MoeVal lo = moe_load_index(e, start, ids.index),
           hi = moe_load_index(e, start, moe_iadd(e, ids.index, one));
    MoeVal row = moe_at(e, moe_emit_buf(e, 3), ids.index, g->cols * 4);
    MoeIf used;
    moe_if_begin(e, &used, LLVMBuildICmp(e->b, LLVMIntSLT, lo, hi, ""));
    MoeVal last, n = sum_by_shard(e, g, dy, order, lo, hi, &last);
    MoeIf alone; /* most ids of a large vocabulary occur in one shard: that one is the tree */
    moe_if_begin(e, &alone, LLVMBuildICmp(e->b, LLVMIntEQ, n, one, ""));
    copy_row(e, g->cols, moe_at(e, e->scratch, last, g->row_bytes), row);
    moe_if_else(e, &alone);
    fold_shards(e, g, row);
    moe_if_end(e, &alone);
    moe_if_else(e, &used);
    zero_row(e, g->cols, row, true);
    moe_if_end(e, &used);
    moe_loop_end(e, &ids);
    moe_emit_end(e);
}

static void lower_grad(MoeCpuTarget *t, const MoeOp *op, MoeLowered *out) {
    const MoeType *dy = &op->operands[0]->type, *ids = &op->operands[1]->type;
    const MoeValue *seg = moe_rows_seg(ids);
    Grad g = {.vocab = moe_attr_i(op, "vocab"),
              .cols = moe_type_cols(dy),
              .shards = seg ? seg->type.shards : 1};
    g.row_bytes = round64((g.cols + t->isa.lanes) * 4);
    MOE_ASSERT(!seg || seg->type.groups == 1, "embedding_grad: tokens in %lld groups",
               (long long)(seg ? seg->type.groups : 1));
    MoeEmit e;
    const char *name;
    MoeStr key = {0};

    MoeBufs sort = {.n = 0};
    moe_bufs_add(&sort, op->operands[1]);
    moe_bufs_add_work(&sort, 0);
    moe_bufs_add_work(&sort, start_bytes(g.vocab));
    int tok = moe_bufs_add_seg(&sort, ids);
    int part = op->n_operands > 2 ? moe_bufs_add(&sort, op->operands[2]) : -1;
    moe_str_printf(&key, "token_sort %lld", (long long)g.vocab);
    moe_live_key(&key, ids);
    if (part >= 0)
        moe_str_printf(&key, " part %d", part);
    if (moe_emit_begin(t, moe_str_c(&key), "token_sort", &e, &name)) {
        moe_emit_tasks_body(&e);
        moe_emit_return(&e, moe_k64(&e, 1));
        moe_emit_kernel_body(&e);
        emit_sort(&e, ids, tok, part, g.vocab);
        moe_emit_end(&e);
    }
    moe_cpu_need_scratch(out, g.vocab * 4);
    moe_cpu_launch(out, name, sort.refs, (size_t)sort.n);

    MoeBufs sum = {.n = 0};
    moe_bufs_add(&sum, op->operands[0]);
    moe_bufs_add_work(&sum, 0);
    moe_bufs_add_work(&sum, start_bytes(g.vocab));
    moe_bufs_add(&sum, op->results[0]);
    tok = moe_bufs_add_seg(&sum, ids);
    moe_str_clear(&key);
    moe_str_printf(&key, "embedding_grad %lld", (long long)g.vocab);
    moe_live_key(&key, dy);
    if (moe_emit_begin(t, moe_str_c(&key), "embedding_grad", &e, &name))
        emit_grad(&e, &g, tok, g.vocab / 256 + 1);
    moe_cpu_need_scratch(out, g.shards * g.row_bytes);
    moe_cpu_launch(out, name, sum.refs, (size_t)sum.n);
    moe_str_free(&key);
}

int64_t moe_cpu_embed_workspace(MoeCpuTarget *t, const MoeGroup *g) {
    (void)t;
    const MoeOp *op = g->ops[0];
    if (op->opcode != MOE_OP_EMBEDDING_GRAD)
        return 0;
    return start_bytes(moe_attr_i(op, "vocab")) + round64(op->operands[1]->type.dims[0].size * 4);
}

MoeStatus moe_cpu_embed_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out) {
    MOE_ASSERT(g->n_ops == 1, "embed: a group of %zu ops", g->n_ops);
    if (g->ops[0]->opcode == MOE_OP_EMBEDDING_GRAD)
        lower_grad(t, g->ops[0], out);
    else
        lower_embedding(t, g->ops[0], out);
    return NULL;
}
