/* The table of row chunks of the loss head (xent.h, wgrad.h).
 *
 * A chunk is chunk_rows consecutive rows of a shard, counted from its start (fewer at its end).
 * chunk_rows is a power of two of leaves, so a chunk is a whole subtree of the shard's tree, and
 * the trees over chunks and over shards finish it. */
#include "codegen/cpu/xent.h"

#include <stdio.h>
#include "codegen/cpu/tree.h"

static int64_t chunks_of(int64_t rows, int64_t chunk_rows) {
    return (rows + chunk_rows - 1) / chunk_rows;
}

int moe_xent_chunk_slots(const MoeRowSpace *rows, int64_t chunk_rows) {
    return moe_tree_levels(chunks_of(rows->capacity, chunk_rows)) + moe_tree_levels(rows->shards);
}

int64_t moe_xent_max_chunks(const MoeRowSpace *rows, int64_t chunk_rows) {
    int64_t most =
        rows->capacity / chunk_rows + rows->shards; /* each shard may end in a short one */
    return most < rows->capacity ? most : rows->capacity > 0 ? rows->capacity : 1;
}

typedef struct {
    MoeEmit *e;
    const MoeRowSpace *rows;
    int64_t chunk_rows;
    MoeTree chunks, shards;
    MoeTreeSlots slots;
    MoeVal count, dest; /* chunks so far; where the current one is stored */
} Chunks;

static MoeVal field(Chunks *x, MoeVal chunk, int64_t which) {
    MoeEmit *e = x->e;
    return moe_iadd(e, moe_imul(e, chunk, moe_k64(e, MOE_CHUNK_FIELDS)), moe_k64(e, which));
}

static void set_field(Chunks *x, MoeVal chunk, int64_t which, MoeVal value) {
    moe_store_i32(x->e, value, moe_emit_buf(x->e, 0), field(x, chunk, which));
}

/* The number of a slot as the table says it: the last is the result. */
static MoeVal slot_number(Chunks *x, MoeVal slot) {
    MoeEmit *e = x->e;
    MoeVal last = moe_k64(e, x->chunks.levels + x->shards.levels - 1);
    return LLVMBuildSelect(e->b, LLVMBuildICmp(e->b, LLVMIntSGE, slot, last, ""), moe_k64(e, -1),
                           slot, "");
}

static void write_shard(Chunks *x, MoeVal lo, MoeVal hi, MoeVal shard, MoeVal next) {
    MoeEmit *e = x->e;
    MoeVal zero = moe_k64(e, 0), one = moe_k64(e, 1);
    MoeVal n = moe_iceildiv(e, moe_isub(e, hi, lo), x->chunk_rows);
    moe_tree_reset(e, &x->chunks);
    MoeLoop l, lf;
    moe_loop_begin(e, &l, zero, n, one);
    MoeVal after = moe_iadd(e, l.index, one);
    MoeVal is_last = LLVMBuildICmp(e->b, LLVMIntEQ, after, n, "");
    MoeVal end = moe_k64(e, (int64_t)1 << x->chunks.levels);
    moe_tree_way_clear(e, &x->slots);
    MoeVal next_chunk = LLVMBuildSelect(e->b, is_last, end, after, "");
    LLVMBuildStore(e->b, moe_tree_climb(e, &x->chunks, l.index, next_chunk, &x->slots), x->dest);
    MoeIf root;
    moe_if_begin(e, &root, is_last);
    LLVMBuildStore(e->b, moe_tree_climb(e, &x->shards, shard, next, &x->slots), x->dest);
    moe_if_end(e, &root);

    MoeVal chunk = LLVMBuildLoad2(e->b, e->i64, x->count, "");
    MoeVal row = moe_iadd(e, lo, moe_imul(e, l.index, moe_k64(e, x->chunk_rows)));
    MoeVal n_folds = moe_tree_way_count(e, &x->slots);
    set_field(x, chunk, MOE_CHUNK_LO, row);
    set_field(x, chunk, MOE_CHUNK_HI, moe_imin(e, hi, moe_iadd(e, row, moe_k64(e, x->chunk_rows))));
    set_field(x, chunk, MOE_CHUNK_ACTIVE, one);
    set_field(x, chunk, MOE_CHUNK_DEST, slot_number(x, LLVMBuildLoad2(e->b, e->i64, x->dest, "")));
    set_field(x, chunk, MOE_CHUNK_N_FOLDS, n_folds);
    moe_loop_begin(e, &lf, zero, n_folds, one);
    MoeVal slot = LLVMBuildLoad2(e->b, e->i64, moe_at(e, x->slots.items, lf.index, 8), "");
    MoeVal at = moe_iadd(e, field(x, chunk, MOE_CHUNK_FOLDS), lf.index);
    moe_store_i32(e, slot_number(x, slot), moe_emit_buf(e, 0), at);
    moe_loop_end(e, &lf);
    LLVMBuildStore(e->b, moe_iadd(e, chunk, one), x->count);
    moe_loop_end(e, &l);
}

static void write_table(Chunks *x) {
    MoeEmit *e = x->e;
    const MoeRowSpace *rows = x->rows;
    MoeVal zero = moe_k64(e, 0), one = moe_k64(e, 1), lo, hi;
    int64_t fields = moe_xent_max_chunks(rows, x->chunk_rows) * MOE_CHUNK_FIELDS;
    MoeLoop l;
    moe_loop_begin(e, &l, zero, moe_k64(e, fields), one);
    moe_store_i32(e, zero, moe_emit_buf(e, 0), l.index);
    moe_loop_end(e, &l);
    LLVMBuildStore(e->b, zero, x->count);
    moe_tree_reset(e, &x->shards);
    moe_row_space_range(e, rows, zero, &lo, &hi);
    if (rows->mode == MOE_ROWS_STATIC) {
        write_shard(x, lo, hi, zero, one);
    } else {
        MoeVal segs = moe_emit_buf(e, rows->buf);
        moe_loop_begin(e, &l, zero, moe_k64(e, rows->shards), one);
        MoeVal from = moe_load_index(e, segs, l.index);
        MoeVal to = moe_load_index(e, segs, moe_iadd(e, l.index, one));
        MoeIf some;
        moe_if_begin(e, &some, LLVMBuildICmp(e->b, LLVMIntSGT, to, from, ""));
        write_shard(x, from, to, l.index,
                    moe_tree_next_run(e, segs, zero, l.index, rows->shards, x->shards.levels));
        moe_if_end(e, &some);
        moe_loop_end(e, &l);
    }
    /* No rows at all: one empty chunk, whose sum, zero, is the result. */
    MoeIf none;
    moe_if_begin(e, &none, LLVMBuildICmp(e->b, LLVMIntSLE, hi, lo, ""));
    set_field(x, zero, MOE_CHUNK_ACTIVE, one);
    set_field(x, zero, MOE_CHUNK_DEST, moe_k64(e, -1));
    moe_if_end(e, &none);
}

const char *moe_xent_emit_chunks(MoeCpuTarget *t, const MoeRowSpace *rows, int64_t chunk_rows) {
    MoeEmit emit, *e = &emit;
    char key[128];
    const char *name;
    snprintf(key, sizeof key, "xent_chunks rows=%d:%d T=%lld v=%lld R=%lld", (int)rows->mode,
             rows->buf, (long long)rows->capacity, (long long)rows->shards, (long long)chunk_rows);
    if (!moe_emit_begin(t, key, "xent_chunks", e, &name))
        return name;
    moe_emit_tasks_body(e);
    moe_emit_return(e, moe_k64(e, 1));
    moe_emit_kernel_body(e);
    Chunks x = {.e = e, .rows = rows, .chunk_rows = chunk_rows};
    x.chunks = moe_tree_create(e, chunks_of(rows->capacity, chunk_rows), 0);
    x.shards = moe_tree_create(e, rows->shards, x.chunks.levels);
    x.slots = moe_tree_slots_create(e, x.chunks.levels + x.shards.levels + 1, moe_k64(e, 0), 1);
    x.count = moe_alloca(e, e->i64, 1);
    x.dest = moe_alloca(e, e->i64, 1);
    write_table(&x);
    moe_emit_end(e);
    return name;
}
