/* Emits the product over rows (wgrad.h).
 *
 * A task owns a block of dw: `block_n` rows x some panels of columns. Slice by slice (128 rows, or a
 * leaf where that is shorter) it runs register tiles over the rows of dy and x. A leaf of several
 * slices is one chain all the same: what it has so far lies in `open` from slice to slice, so its
 * bits do not depend on the slice. f32 rows are read where they are. Pairs of bf16
 * rows are interleaved into scratch first, block columns only: strips [steps][strip] of dy and
 * panels [steps][width] of x, so that what a tile reads is contiguous. A tile starts at zero, and
 * before it is stored adds the tiles of the earlier subtrees on its way up the tree (tree.h), so
 * folding costs one pass over one block for most leaves. */
#include "codegen/cpu/wgrad.h"

#include <stdio.h>
#include <string.h>
#include "base/assert.h"
#include "codegen/cpu/kernel_table.h"
#include "codegen/cpu/wgrad_internal.h"

#define BLOCK_TILES  16
#define BLOCK_PANELS 4
#define MIN_TASKS    16
#define SLICE_ROWS   128 /* even: pairs of bf16 rows go on */

static int64_t lcm(int64_t a, int64_t b) {
    int64_t m = a;
    while (m % b)
        m += a;
    return m;
}

static int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* Leaves that a run of rows may have; runs that a group may have: its shards, or all its rows. */
static int64_t max_leaves(const MoeWgrad *w) {
    return w->leaf_rows ? ceil_div(w->rows.capacity, w->leaf_rows) : 1;
}

static int64_t runs_of(const MoeWgrad *w) {
    return w->leaf_rows ? w->rows.shards : 1;
}

static void plan(MoeWgradPlan *x, const MoeCpuTarget *t, const MoeWgrad *w) {
    x->w = w;
    x->panels = moe_panels(t, w->k);
    x->tile_rows = t->isa.tile_rows;
    x->unit = (int)lcm(t->isa.tile_rows, t->isa.lanes);
    x->strip = t->isa.lanes % x->tile_rows ? x->unit : x->tile_rows;
    int64_t n_panels = moe_panels_count(&x->panels), units = ceil_div(w->n, x->unit);
    int64_t max_units = (int64_t)x->tile_rows * BLOCK_TILES / x->unit,
            min_units = ceil_div(max_units, 4);
    int64_t block_units = units < max_units ? units : max_units;
    x->block_panels = n_panels < BLOCK_PANELS ? n_panels : BLOCK_PANELS;
    int64_t groups = w->root_slots ? w->root_slots : w->rows.groups; /* a slot rarely has many roots */
    while (groups * ceil_div(units, block_units) * ceil_div(n_panels, x->block_panels) <
           MIN_TASKS) {
        if (block_units > min_units)
            block_units = ceil_div(block_units, 2);
        else if (x->block_panels > 1)
            x->block_panels--;
        else
            break;
    }
    x->block_n = block_units * x->unit;
    x->n_blocks = ceil_div(w->n, x->block_n);
    x->k_blocks = ceil_div(n_panels, x->block_panels);
    x->direct = w->n % x->tile_rows == 0 && moe_panels_cols(&x->panels) == w->k;
    x->slice = w->leaf_rows && w->leaf_rows < SLICE_ROWS ? w->leaf_rows : SLICE_ROWS;
    x->chains = w->leaf_rows != x->slice;
    x->steps = moe_tile_steps(w->elem, x->slice);
    int64_t cols = x->block_panels * x->panels.full * x->panels.lanes;
    x->c_stride = cols * 4;
    x->slot_bytes = x->block_n * x->c_stride;
    x->pack_dy = 0;
    bool packs = w->elem == MOE_TILE_DOT; /* else tables of row pointers */
    x->pack_x = packs ? x->block_n * x->steps * 4 : x->slice * 8;
    x->slots = x->pack_x + (packs ? cols * x->steps * 4 : x->slice * 8);
    int n_slots = moe_tree_levels(max_leaves(w)) + moe_tree_levels(runs_of(w)) + 1;
    x->open = x->slots + n_slots * x->slot_bytes;
    x->scratch = x->open + (x->chains ? x->slot_bytes : 0) + 64;
}

/* Slots: those of the leaf tree, those of the shard tree, then the result. */
static MoeVal result_at(MoeWgradPlan *x) {
    MoeEmit *e = x->e;
    MoeVal handle = moe_tree_handle(e, &x->tree_slots, moe_k64(e, x->tree_slots.n - 1));
    return LLVMBuildIntToPtr(e->b, handle, e->ptr, "");
}

/* Slot `number` of the chunks' tree, [n][k]; -1: the result's own memory. */
static MoeVal chunk_slot(MoeWgradPlan *x, MoeVal slots, MoeVal number) {
    MoeEmit *e = x->e;
    MoeVal is_out = LLVMBuildICmp(e->b, LLVMIntSLT, number, moe_k64(e, 0), "");
    MoeVal at = moe_imul(e, number, moe_k64(e, x->w->n * x->w->k));
    MoeVal in_slots = LLVMBuildGEP2(e->b, e->f32, slots, &at, 1, "");
    return LLVMBuildSelect(e->b, is_out, moe_emit_buf(e, x->w->buf_out), in_slots, "");
}

/* Where the sum of this task's rows goes: the result, or a slot of the chunks' tree. */
static MoeVal chunk_result(MoeWgradPlan *x) {
    MoeEmit *e = x->e;
    if (x->w->root_slots)
        return x->root_out;
    if (x->w->rows.mode != MOE_ROWS_RANGE)
        return moe_emit_buf(e, x->w->buf_out);
    MoeVal table = moe_emit_buf(e, x->w->rows.buf);
    return chunk_slot(x, moe_emit_buf(e, x->w->buf_slots),
                      moe_load_index(e, table, moe_k64(e, MOE_CHUNK_DEST)));
}

/* Row of the result, or of the chunks' slots, that is row `row` of the block. */
static MoeVal result_row(MoeWgradPlan *x, MoeVal row) {
    MoeEmit *e = x->e;
    if (x->w->root_slots)
        return moe_iadd(e, x->root_row, moe_iadd(e, x->n0, row));
    MoeVal group = moe_imul(e, x->group, moe_k64(e, x->w->n));
    return moe_iadd(e, group, moe_iadd(e, x->n0, row));
}

/* The table of earlier chunks' slots. */
static void list_chunk_folds(MoeWgradPlan *x) {
    MoeEmit *e = x->e;
    MoeVal table = moe_emit_buf(e, x->w->rows.buf);
    x->chunk_folds = moe_alloca(e, e->ptr, MOE_CHUNK_FIELDS - MOE_CHUNK_FOLDS);
    x->n_chunk_folds = moe_load_index(e, table, moe_k64(e, MOE_CHUNK_N_FOLDS));
    MoeLoop l;
    moe_loop_begin(e, &l, moe_k64(e, 0), x->n_chunk_folds, moe_k64(e, 1));
    MoeVal number = moe_load_index(e, table, moe_iadd(e, l.index, moe_k64(e, MOE_CHUNK_FOLDS)));
    LLVMBuildStore(e->b, chunk_slot(x, moe_emit_buf(e, x->w->buf_slots), number),
                   moe_at(e, x->chunk_folds, l.index, 8));
    moe_loop_end(e, &l);
}

/* ---- tiles ---- */

/* All tiles of the block over the packed rows: added to the listed slots, stored at dest; `last`
 * (direct): stored in the result, with the slots of earlier chunks added. goes_on (NULL: never): the
 * sums start with what is in `open`. */
static void run_tiles(MoeWgradPlan *x, const MoeWgradSide *dy, const MoeWgradSide *xs, MoeVal steps,
                      MoeVal dest, MoeVal last, MoeVal goes_on) {
    MoeEmit *e = x->e;
    MoeVal out = dest, out_stride = moe_k64(e, x->c_stride), more = x->tree_slots.items;
    MoeVal n_more = moe_k64(e, 0);
    if (x->direct) {
        out = LLVMBuildSelect(e->b, last, chunk_result(x), dest, "");
        out_stride = LLVMBuildSelect(e->b, last, moe_k64(e, x->w->k * 4), out_stride, "");
        if (x->w->rows.mode == MOE_ROWS_RANGE) {
            more = x->chunk_folds;
            n_more = LLVMBuildSelect(e->b, last, x->n_chunk_folds, n_more, "");
        }
    }
    MoeVal n_full = moe_k64(e, x->panels.n_full), n_folds = moe_tree_way_count(e, &x->tree_slots);
    for (int cls = 0; cls < 2; cls++) {
        if (!(cls == 0 ? x->panels.n_full : x->panels.n_tail))
            continue;
        MoeVal lo = cls == 0 ? x->p0 : moe_imax(e, x->p0, n_full);
        MoeVal hi = cls == 0 ? moe_imin(e, x->p1, n_full) : x->p1;
        MoeLoop lp, lt;
        moe_loop_begin(e, &lp, lo, hi, moe_k64(e, 1));
        MoeVal col = moe_isub(e, moe_panels_first(e, &x->panels, lp.index), x->col0);
        moe_loop_begin(e, &lt, moe_k64(e, 0), x->n_live, moe_k64(e, x->tile_rows));
        MoeVal offset = moe_iadd(e, moe_imul(e, lt.index, moe_k64(e, x->c_stride)),
                                 moe_imul(e, col, moe_k64(e, 4)));
        MoeVal a = moe_at_bytes(e, e->scratch, moe_k64(e, x->pack_dy)), a_at;
        MoeVal b = moe_at_bytes(e, e->scratch, moe_k64(e, x->pack_x)), b_at;
        if (x->w->elem == MOE_TILE_DOT) {
            MoeVal strip = moe_k64(e, x->strip);
            MoeVal first =
                moe_imul(e, moe_idiv(e, lt.index, strip), moe_k64(e, x->steps * x->strip));
            a = moe_at(e, a, moe_iadd(e, first, moe_irem(e, lt.index, strip)), 4);
            a_at = moe_k64(e, x->strip * 4);
            b_at = moe_imul(e, col, moe_k64(e, x->steps * 4));
        } else {
            MoeVal bytes = moe_k64(e, moe_dtype_bytes(x->w->dtype));
            a_at = moe_imul(e, moe_iadd(e, x->n0, lt.index), bytes);
            b_at = moe_imul(e, moe_iadd(e, x->col0, col), bytes);
        }
        MoeVal at = offset;
        if (x->direct) {
            MoeVal row = result_row(x, lt.index), in_row = moe_iadd(e, x->col0, col);
            MoeVal there = moe_iadd(e, moe_imul(e, row, moe_k64(e, x->w->k)), in_row);
            at = LLVMBuildSelect(e->b, last, moe_imul(e, there, moe_k64(e, 4)), offset, "");
        }
        MoeVal args[] = {a,
                         a_at,
                         b,
                         b_at,
                         steps,
                         x->tree_slots.items,
                         n_folds,
                         offset,
                         moe_k64(e, x->c_stride),
                         moe_at_bytes(e, out, at),
                         out_stride,
                         more,
                         n_more,
                         at,
                         NULL,
                         goes_on};
        if (goes_on)
            args[14] = moe_at_bytes(e, e->scratch, moe_k64(e, x->open));
        moe_wgrad_prefetch(x, dy, xs);
        moe_emit_call(e, x->fn[cls], args, goes_on ? 16 : 14);
        moe_loop_end(e, &lt);
        moe_loop_end(e, &lp);
    }
}

/* Leaf number `leaf` of a run's n_leaves is done, at place `shard` of the shard tree (next: the next place with rows): its way up
 * both trees. The slot that it is stored in goes to slot_at. */
static void end_leaf(MoeWgradPlan *x, MoeVal leaf, MoeVal is_last, MoeVal shard, MoeVal next,
                     MoeVal slot_at) {
    MoeEmit *e = x->e;
    MoeVal end = moe_k64(e, (int64_t)1 << x->leaves.levels);
    MoeVal next_leaf = LLVMBuildSelect(e->b, is_last, end, moe_iadd(e, leaf, moe_k64(e, 1)), "");
    LLVMBuildStore(e->b, moe_tree_climb(e, &x->leaves, leaf, next_leaf, &x->tree_slots), slot_at);
    MoeIf root;
    moe_if_begin(e, &root, is_last); /* it is the run's root, and goes on in the shard tree */
    LLVMBuildStore(e->b, moe_tree_climb(e, &x->shards, shard, next, &x->tree_slots), slot_at);
    moe_if_end(e, &root);
}

/* Slices of the rows lo .. hi of a run: the one at hand. */
typedef struct {
    MoeLoop l;
    MoeVal row0, rows, steps, is_last;
} Slice;

static void begin_slice(MoeWgradPlan *x, const MoeWgradSide *dy, const MoeWgradSide *xs, MoeVal lo,
                        MoeVal hi, Slice *s) {
    MoeEmit *e = x->e;
    MoeVal n = moe_iceildiv(e, moe_isub(e, hi, lo), x->slice), one = moe_k64(e, 1);
    moe_tree_reset(e, &x->leaves);
    moe_loop_begin(e, &s->l, moe_k64(e, 0), n, one);
    s->row0 = moe_iadd(e, lo, moe_imul(e, s->l.index, moe_k64(e, x->slice)));
    s->rows = moe_imin(e, moe_isub(e, hi, s->row0), moe_k64(e, x->slice));
    s->steps = moe_wgrad_load_rows(x, dy, xs, s->row0, s->rows);
    moe_tree_way_clear(e, &x->tree_slots);
    s->is_last = LLVMBuildICmp(e->b, LLVMIntEQ, moe_iadd(e, s->l.index, one), n, "");
}

/* Whether slot `number` is that of the whole group's sum. */
static MoeVal is_root(MoeWgradPlan *x, MoeVal number) {
    return LLVMBuildICmp(x->e->b, LLVMIntSGE, number, moe_k64(x->e, x->tree_slots.n - 1), "");
}

/* The leaves of one run lo .. hi (hi > lo), at place `shard` of the shard tree (next: the next
 * place with rows). Slices are leaves. */
static void run_leaves(MoeWgradPlan *x, const MoeWgradSide *dy, const MoeWgradSide *xs, MoeVal lo,
                       MoeVal hi, MoeVal shard, MoeVal next) {
    MoeEmit *e = x->e;
    MoeVal slot_at = moe_alloca(e, e->i64, 1);
    Slice s;
    begin_slice(x, dy, xs, lo, hi, &s);
    end_leaf(x, s.l.index, s.is_last, shard, next, slot_at);
    MoeVal dest = moe_tree_take(e, &x->tree_slots, LLVMBuildLoad2(e->b, e->i64, slot_at, ""));
    LLVMBuildStore(e->b, moe_iadd(e, s.row0, s.rows), x->fetched);
    MoeVal last = is_root(x, LLVMBuildLoad2(e->b, e->i64, slot_at, ""));
    run_tiles(x, dy, xs, s.steps, LLVMBuildIntToPtr(e->b, dest, e->ptr, ""), last, NULL);
    moe_loop_end(e, &s.l);
}

/* The same where a leaf has several slices. */
static void run_chains(MoeWgradPlan *x, const MoeWgradSide *dy, const MoeWgradSide *xs, MoeVal lo,
                       MoeVal hi, MoeVal shard, MoeVal next) {
    MoeEmit *e = x->e;
    MoeVal slot_at = moe_alloca(e, e->i64, 1), dest_at = moe_alloca(e, e->i64, 1);
    MoeVal zero = moe_k64(e, 0), one = moe_k64(e, 1), ends, leaf = zero, in_leaf;
    Slice s;
    begin_slice(x, dy, xs, lo, hi, &s);
    in_leaf = s.l.index;
    ends = s.is_last;
    if (x->w->leaf_rows) {
        MoeVal per = moe_k64(e, x->w->leaf_rows / x->slice);
        leaf = moe_idiv(e, s.l.index, per);
        in_leaf = moe_irem(e, s.l.index, per);
        MoeVal whole = LLVMBuildICmp(e->b, LLVMIntEQ, moe_iadd(e, in_leaf, one), per, "");
        ends = LLVMBuildOr(e->b, whole, ends, "");
    }
    MoeVal open = moe_at_bytes(e, e->scratch, moe_k64(e, x->open));
    LLVMBuildStore(e->b, moe_k64(e, -1), slot_at);
    LLVMBuildStore(e->b, LLVMBuildPtrToInt(e->b, open, e->i64, ""), dest_at);
    MoeIf done;
    moe_if_begin(e, &done, ends);
    end_leaf(x, leaf, s.is_last, shard, next, slot_at);
    LLVMBuildStore(
        e->b, moe_tree_take(e, &x->tree_slots, LLVMBuildLoad2(e->b, e->i64, slot_at, "")), dest_at);
    moe_if_end(e, &done);
    LLVMBuildStore(e->b, moe_iadd(e, s.row0, s.rows), x->fetched);
    MoeVal last = is_root(x, LLVMBuildLoad2(e->b, e->i64, slot_at, ""));
    MoeVal dest = LLVMBuildIntToPtr(e->b, LLVMBuildLoad2(e->b, e->i64, dest_at, ""), e->ptr, "");
    MoeVal goes_on = LLVMBuildICmp(e->b, LLVMIntSGT, in_leaf, zero, "");
    run_tiles(x, dy, xs, s.steps, dest, last, LLVMBuildZExt(e->b, goes_on, e->i64, ""));
    moe_loop_end(e, &s.l);
}

/* ---- the result ---- */

static void zero_result(MoeWgradPlan *x) {
    MoeEmit *e = x->e;
    MoeLoop l;
    moe_loop_begin(e, &l, moe_k64(e, 0), moe_k64(e, x->slot_bytes / 4), moe_k64(e, e->lanes));
    moe_vstore(e, MOE_F32, LLVMConstNull(e->v32), result_at(x), l.index, NULL);
    moe_loop_end(e, &l);
}

/* One vector of the block: in a chunk with the slots of earlier chunks added. */
static void write_vector(MoeWgradPlan *x, MoeVal row, MoeVal col, MoeVal mask, MoeVal n_folds) {
    MoeEmit *e = x->e;
    const MoeWgrad *w = x->w;
    MoeVal from = moe_iadd(e, moe_imul(e, row, moe_k64(e, x->c_stride / 4)), col);
    MoeVal v = moe_vload(e, MOE_F32, result_at(x), from, NULL);
    MoeVal at = moe_iadd(e, moe_imul(e, result_row(x, row), moe_k64(e, w->k)),
                         moe_iadd(e, x->col0, col));
    if (w->rows.mode == MOE_ROWS_RANGE) {
        MoeVal table = moe_emit_buf(e, w->rows.buf), slots = moe_emit_buf(e, w->buf_slots);
        MoeCarryLoop l;
        moe_carry_begin(e, &l, moe_k64(e, 0), n_folds, moe_k64(e, 1), &v, 1);
        MoeVal number =
            moe_load_index(e, table, moe_iadd(e, l.l.index, moe_k64(e, MOE_CHUNK_FOLDS)));
        MoeVal left = chunk_slot(x, slots, number);
        v = LLVMBuildFAdd(e->b, moe_vload(e, MOE_F32, left, at, mask), v, "");
        moe_carry_end(e, &l, &v);
    }
    moe_vstore(e, MOE_F32, v, chunk_result(x), at, mask);
}

static void write_result(MoeWgradPlan *x) {
    MoeEmit *e = x->e;
    MoeVal lanes = moe_k64(e, e->lanes), n_folds = NULL;
    if (x->w->rows.mode == MOE_ROWS_RANGE)
        n_folds = moe_load_index(e, moe_emit_buf(e, x->w->rows.buf), moe_k64(e, MOE_CHUNK_N_FOLDS));
    MoeVal whole = moe_imul(e, moe_idiv(e, x->k_live, lanes), lanes);
    MoeLoop lr, lc;
    moe_loop_begin(e, &lr, moe_k64(e, 0), x->n_live, moe_k64(e, 1));
    moe_loop_begin(e, &lc, moe_k64(e, 0), whole, lanes);
    write_vector(x, lr.index, lc.index, NULL, n_folds);
    moe_loop_end(e, &lc);
    if (x->w->k % e->lanes) {
        MoeIf part;
        MoeVal rest = moe_isub(e, x->k_live, whole);
        moe_if_begin(e, &part, LLVMBuildICmp(e->b, LLVMIntSGT, rest, moe_k64(e, 0), ""));
        write_vector(x, lr.index, whole, moe_mask(e, rest), n_folds);
        moe_if_end(e, &part);
    }
    moe_loop_end(e, &lr);
}

/* ---- the kernel ---- */

static MoeVal shard_entry(MoeWgradPlan *x, MoeVal shard) {
    MoeEmit *e = x->e;
    MoeVal base = moe_imul(e, x->group, moe_k64(e, x->w->rows.shards));
    return moe_load_index(e, moe_emit_buf(e, x->w->rows.buf), moe_iadd(e, base, shard));
}

static MoeVal next_shard(MoeWgradPlan *x, MoeVal shard) {
    MoeEmit *e = x->e;
    MoeVal first = moe_imul(e, x->group, moe_k64(e, x->w->rows.shards));
    return moe_tree_next_run(e, moe_emit_buf(e, x->w->rows.buf), first, shard, x->w->rows.shards,
                             x->shards.levels);
}

static void run_rows(MoeWgradPlan *x, const MoeWgradSide *dy, const MoeWgradSide *xs) {
    MoeEmit *e = x->e;
    const MoeRowSpace *rows = &x->w->rows;
    MoeVal zero = moe_k64(e, 0), one = moe_k64(e, 1), lo, hi;
    moe_row_space_range(e, rows, x->group, &lo, &hi);
    x->group_end = hi;
    MoeIf some;
    moe_if_begin(e, &some, LLVMBuildICmp(e->b, LLVMIntSGT, hi, lo, ""));
    moe_tree_reset(e, &x->shards);
    void (*run)(MoeWgradPlan *, const MoeWgradSide *, const MoeWgradSide *, MoeVal, MoeVal, MoeVal,
                MoeVal) = x->chains ? run_chains : run_leaves;
    if (rows->mode == MOE_ROWS_STATIC || rows->mode == MOE_ROWS_RANGE || !x->w->leaf_rows) {
        run(x, dy, xs, lo, hi, zero, one);
    } else {
        MoeLoop l;
        moe_loop_begin(e, &l, zero, moe_k64(e, rows->shards), one);
        lo = shard_entry(x, l.index);
        hi = shard_entry(x, moe_iadd(e, l.index, one));
        MoeIf here;
        moe_if_begin(e, &here, LLVMBuildICmp(e->b, LLVMIntSGT, hi, lo, ""));
        run(x, dy, xs, lo, hi, l.index, next_shard(x, l.index));
        moe_if_end(e, &here);
        moe_loop_end(e, &l);
    }
    if (!x->direct)
        write_result(x);
    moe_if_else(e, &some);
    zero_result(x);
    write_result(x);
    moe_if_end(e, &some);
}

/* Roots beyond the first of their slot, in the slots before s. */
static MoeVal roots_before(MoeWgradPlan *x, MoeVal s) {
    return moe_load_index(x->e, moe_emit_buf(x->e, x->w->buf_more), s);
}

/* Groups that are roots, or slots without rows. */
static MoeVal live_groups(MoeWgradPlan *x) {
    MoeVal slots = moe_k64(x->e, x->w->root_slots);
    return moe_iadd(x->e, slots, roots_before(x, slots));
}

/* Slot s's groups begin at s + roots_before(s). */
static void find_root(MoeWgradPlan *x) {
    MoeEmit *e = x->e;
    MoeVal one = moe_k64(e, 1), slot = moe_k64(e, 0);
    MoeCarryLoop l;
    moe_carry_begin(e, &l, one, moe_k64(e, x->w->root_slots), one, &slot, 1);
    MoeVal begin = moe_iadd(e, l.l.index, roots_before(x, l.l.index));
    MoeVal here = LLVMBuildICmp(e->b, LLVMIntSLE, begin, x->group, "");
    slot = LLVMBuildSelect(e->b, here, l.l.index, slot, "");
    moe_carry_end(e, &l, &slot);
    MoeVal first = moe_iadd(e, slot, roots_before(x, slot));
    MoeVal is_first = LLVMBuildICmp(e->b, LLVMIntEQ, first, x->group, "");
    MoeVal in_rest = moe_isub(e, moe_isub(e, x->group, slot), one);
    x->root_out = LLVMBuildSelect(e->b, is_first, moe_emit_buf(e, x->w->buf_out),
                                  moe_emit_buf(e, x->w->buf_rest), "");
    x->root_row = moe_imul(e, LLVMBuildSelect(e->b, is_first, slot, in_rest, ""),
                           moe_k64(e, x->w->n));
}

static void kernel_body(MoeWgradPlan *x) {
    MoeEmit *e = x->e;
    const MoeWgrad *w = x->w;
    x->leaves = moe_tree_create(e, max_leaves(w), 0);
    x->shards = moe_tree_create(e, runs_of(w), x->leaves.levels);
    x->fetched = moe_alloca(e, e->i64, 1);
    MoeVal slots = moe_at_bytes(e, e->scratch, moe_k64(e, x->slots));
    x->tree_slots =
        moe_tree_slots_create(e, x->leaves.levels + x->shards.levels + 1,
                              LLVMBuildPtrToInt(e->b, slots, e->i64, ""), x->slot_bytes);
    int64_t blocks = x->n_blocks * x->k_blocks;
    x->group = moe_idiv(e, e->task, moe_k64(e, blocks));
    MoeVal block = moe_irem(e, e->task, moe_k64(e, blocks));
    if (w->root_slots)
        find_root(x);
    x->n0 = moe_imul(e, moe_idiv(e, block, moe_k64(e, x->k_blocks)), moe_k64(e, x->block_n));
    x->n_live = moe_imin(e, moe_isub(e, moe_k64(e, w->n), x->n0), moe_k64(e, x->block_n));
    x->p0 = moe_imul(e, moe_irem(e, block, moe_k64(e, x->k_blocks)), moe_k64(e, x->block_panels));
    x->p1 = moe_imin(e, moe_iadd(e, x->p0, moe_k64(e, x->block_panels)),
                     moe_k64(e, moe_panels_count(&x->panels)));
    x->col0 = moe_panels_first(e, &x->panels, x->p0);
    MoeVal col1 = moe_imin(e, moe_panels_first(e, &x->panels, x->p1), moe_k64(e, w->k));
    x->k_live = moe_isub(e, col1, x->col0);
    MoeWgradSide dy = {
        .base = moe_emit_buf(e, w->buf_dy), .stride = w->dy_stride, .gather = w->gather_dy};
    MoeWgradSide xs = {
        .base = moe_emit_buf(e, w->buf_x), .stride = w->x_stride, .gather = w->gather_x};
    if (w->gather_dy)
        dy.src = moe_emit_buf(e, w->buf_src_dy);
    if (w->gather_x)
        xs.src = moe_emit_buf(e, w->buf_src_x);
    if (w->dy_local)
        dy.local = moe_load_index(e, moe_emit_buf(e, w->rows.buf), moe_k64(e, MOE_CHUNK_LO));
    if (x->direct && w->rows.mode == MOE_ROWS_RANGE)
        list_chunk_folds(x);
    run_rows(x, &dy, &xs);
}

static void make_key(const MoeWgrad *w, char *key, size_t cap) {
    snprintf(key, cap,
             "wgrad %d %s leaf=%lld rows=%d:%d T=%lld g=%lld v=%lld n=%lld k=%lld strides=%lld,%lld "
             "gather=%lld,%lld local=%d "
             "bufs=%d,%d,%d,%d,%d,%d",
             (int)w->elem, moe_dtype_name(w->dtype), (long long)w->leaf_rows, (int)w->rows.mode, w->rows.buf,
             (long long)w->rows.capacity, (long long)w->rows.groups, (long long)w->rows.shards,
             (long long)w->n, (long long)w->k, (long long)w->dy_stride, (long long)w->x_stride,
             (long long)w->gather_dy, (long long)w->gather_x, w->dy_local, w->buf_dy, w->buf_src_dy,
             w->buf_x, w->buf_src_x, w->buf_out, w->buf_slots);
    size_t n = strlen(key);
    if (w->root_slots)
        snprintf(key + n, cap - n, " roots=%lld:%d,%d", (long long)w->root_slots, w->buf_rest,
                 w->buf_more);
}

const char *moe_wgrad_emit(MoeCpuTarget *t, const MoeWgrad *w, MoeLowered *out) {
    MoeEmit emit, *e = &emit;
    MoeWgradPlan wgrad = {.e = e}, *x = &wgrad;
    MOE_ASSERT(w->n > 0 && w->k > 0, "wgrad: an extent of zero");
    plan(x, t, w);
    moe_cpu_need_scratch(out, x->scratch);
    char key[512];
    make_key(w, key, sizeof key);
    const char *name;
    if (!moe_emit_begin(t, key, "wgrad", e, &name))
        return name;
    if (x->panels.n_full)
        x->fn[0] = moe_tile_wgrad(t, w->elem, x->tile_rows, x->panels.full, x->chains);
    if (x->panels.n_tail)
        x->fn[1] = moe_tile_wgrad(t, w->elem, x->tile_rows, x->panels.tail, x->chains);
    moe_emit_tasks_body(e);
    MoeVal n = moe_k64(e, w->rows.groups * x->n_blocks * x->k_blocks);
    if (w->root_slots)
        n = moe_imul(e, live_groups(x), moe_k64(e, x->n_blocks * x->k_blocks));
    if (w->rows.mode == MOE_ROWS_RANGE)
        n = moe_imul(e, n,
                     moe_load_index(e, moe_emit_buf(e, w->rows.buf), moe_k64(e, MOE_CHUNK_ACTIVE)));
    moe_emit_return(e, n);
    moe_emit_kernel_body(e);
    kernel_body(x);
    moe_emit_end(e);
    return name;
}
