/* Emits the kernel of a matrix product (gemm.h).
 *
 * Tasks: group by group, blocks of columns, then blocks of BLOCK_ROWS rows, so that neighbours
 * share B panels. A task takes its panels one by one: a panel (k x 48 columns) stays in the L2
 * cache over all row tiles of the block. Finished tiles go straight to the output where nothing
 * else is to be done, else to a block of scratch, [rows][panel width], that the epilogue reads row
 * by row. */
#include "codegen/cpu/gemm.h"

#include <stdio.h>
#include <string.h>
#include "base/assert.h"
#include "codegen/cpu/kernel_table.h"

#define BLOCK_TILES     16         /* row tiles of a task: 128 rows with 8-row tiles */
#define MAX_PANEL_STEPS 2048       /* of a panel that stays in L2: 384 KiB at 48 columns */
#define TASK_FMAS       (24 << 20) /* aim: at most so many multiply-adds a task */
#define MIN_TASKS       64

typedef struct {
    const MoeGemm *g;
    MoeEmit *e;
    MoePanels panels;
    int tile_rows;
    int64_t block_rows, steps, n_col_blocks, panels_per_block;
    int64_t rows_table, blocks[2], block_bytes, scratch; /* byte offsets in the scratch memory */
    MoeVal fn[2][2];                    /* [full or tail panel][whole or half tile of rows] */
    MoeVal lo, hi, row0, n_rows, group; /* of the task: range of its group, first row, rows */
} Gemm;

void moe_row_space_range(MoeEmit *e, const MoeRowSpace *s, MoeVal group, MoeVal *lo, MoeVal *hi) {
    *lo = moe_k64(e, 0);
    if (s->mode == MOE_ROWS_STATIC) {
        *hi = moe_k64(e, s->capacity);
        return;
    }
    MoeVal table = moe_emit_buf(e, s->buf);
    if (s->mode == MOE_ROWS_LIVE) {
        *hi = moe_load_index(e, table, moe_k64(e, s->shards));
    } else if (s->mode == MOE_ROWS_RANGE) {
        *lo = moe_load_index(e, table, moe_k64(e, 0));
        *hi = moe_load_index(e, table, moe_k64(e, 1));
    } else {
        MoeVal at = moe_imul(e, group, moe_k64(e, s->shards));
        *lo = moe_load_index(e, table, at);
        *hi = moe_load_index(e, table, moe_iadd(e, at, moe_k64(e, s->shards)));
    }
}

static void plan(Gemm *x, const MoeCpuTarget *t, const MoeGemm *g) {
    x->g = g;
    x->panels = moe_panels(t, g->n);
    x->tile_rows = t->isa.tile_rows;
    x->block_rows = (int64_t)x->tile_rows * BLOCK_TILES;
    x->steps = moe_tile_steps(g->elem, g->k);
    int64_t n_panels = moe_panels_count(&x->panels);
    int64_t row_blocks =
        (g->rows.expected + x->block_rows - 1) / x->block_rows + g->rows.groups - 1;
    int64_t width = (int64_t)x->panels.full * x->panels.lanes;
    int64_t per_panel = x->block_rows * width * (g->k ? g->k : 1) * g->n_products;
    int64_t blocks = row_blocks ? (MIN_TASKS + row_blocks - 1) / row_blocks : 1;
    int64_t by_size = (n_panels * per_panel + TASK_FMAS - 1) / TASK_FMAS;
    blocks = blocks > by_size ? blocks : by_size;
    blocks = blocks > n_panels ? n_panels : blocks;
    x->panels_per_block = (n_panels + blocks - 1) / blocks;
    x->n_col_blocks = (n_panels + x->panels_per_block - 1) / x->panels_per_block;
    x->rows_table = 0;
    int64_t at = (x->block_rows * 8 + 63) / 64 * 64;
    x->block_bytes = x->block_rows * width * 4;
    for (int i = 0; i < g->n_products; i++, at += x->block_bytes)
        x->blocks[i] = at;
    x->scratch = at + 64;
}

/* Tasks of a group of n rows. */
static MoeVal group_tasks(Gemm *x, MoeVal n_rows) {
    return moe_imul(x->e, moe_iceildiv(x->e, n_rows, x->block_rows),
                    moe_k64(x->e, x->n_col_blocks));
}

/* Sums the tasks of all groups; in the kernel also finds the group of e->task and its first task.
 */
static MoeVal walk_groups(Gemm *x, MoeVal *out_group, MoeVal *out_first) {
    MoeEmit *e = x->e;
    MoeVal zero = moe_k64(e, 0), lo, hi;
    if (x->g->rows.mode != MOE_ROWS_GROUPS) {
        moe_row_space_range(e, &x->g->rows, zero, &lo, &hi);
        if (out_group)
            *out_group = *out_first = zero;
        return group_tasks(x, moe_isub(e, hi, lo));
    }
    MoeVal vals[] = {zero, zero, zero};
    MoeCarryLoop l;
    moe_carry_begin(e, &l, zero, moe_k64(e, x->g->rows.groups), moe_k64(e, 1), vals, 3);
    moe_row_space_range(e, &x->g->rows, l.l.index, &lo, &hi);
    MoeVal base = vals[0];
    if (out_group) { /* the last group that starts at or before the task; groups without rows are
                        passed over */
        MoeVal here = LLVMBuildICmp(e->b, LLVMIntSGE, e->task, base, "");
        vals[1] = LLVMBuildSelect(e->b, here, l.l.index, vals[1], "");
        vals[2] = LLVMBuildSelect(e->b, here, base, vals[2], "");
    }
    vals[0] = moe_iadd(e, base, group_tasks(x, moe_isub(e, hi, lo)));
    moe_carry_end(e, &l, vals);
    if (out_group) {
        *out_group = vals[1];
        *out_first = vals[2];
    }
    return vals[0];
}

/* Pointers to the block's rows of A; behind them the last row again, for the last tile. */
static void fill_row_table(Gemm *x) {
    MoeEmit *e = x->e;
    const MoeGemm *g = x->g;
    MoeVal a = moe_emit_buf(e, g->buf_a),
           table = moe_at_bytes(e, e->scratch, moe_k64(e, x->rows_table));
    MoeVal last = moe_isub(e, x->n_rows, moe_k64(e, 1));
    MoeLoop l;
    MoeVal padded = moe_imul(e, moe_iceildiv(e, x->n_rows, x->tile_rows), moe_k64(e, x->tile_rows));
    moe_loop_begin(e, &l, moe_k64(e, 0), padded, moe_k64(e, 1));
    MoeVal row = moe_iadd(e, x->row0, moe_imin(e, l.index, last));
    if (g->a_local)
        row = moe_isub(e, row, x->lo);
    if (g->gather)
        row =
            moe_idiv(e, moe_load_index(e, moe_emit_buf(e, g->buf_src), row), moe_k64(e, g->gather));
    LLVMBuildStore(e->b, moe_at_bytes(e, a, moe_imul(e, row, moe_k64(e, g->a_stride))),
                   moe_at(e, table, l.index, 8));
    moe_loop_end(e, &l);
}

/* One row tile of product i: rows row.. of the block, steps of k from k0 on. */
static void run_tile(Gemm *x, int i, int cls, int width, MoeVal row, MoeVal panel_col, MoeVal panel,
                     MoeVal k0) {
    MoeEmit *e = x->e;
    const MoeGemm *g = x->g;
    int per = moe_tile_k_per_step(g->elem);
    MoeVal lanes_bytes = moe_k64(e, (int64_t)width * e->lanes * 4);
    MoeVal block = moe_at_bytes(e, e->scratch, moe_k64(e, x->blocks[i]));
    MoeVal c = moe_at_bytes(e, block, moe_imul(e, row, lanes_bytes)), stride = lanes_bytes;
    MoeVal left = moe_isub(e, x->n_rows, row);
    if (g->buf_out >= 0) { /* whole tiles of whole panels need no detour */
        MoeVal end = moe_iadd(e, panel_col, moe_k64(e, (int64_t)width * e->lanes));
        MoeVal direct =
            LLVMBuildAnd(e->b, LLVMBuildICmp(e->b, LLVMIntSGE, left, moe_k64(e, x->tile_rows), ""),
                         LLVMBuildICmp(e->b, LLVMIntSLE, end, moe_k64(e, g->n), ""), "");
        MoeVal out_row = moe_iadd(e, x->row0, row);
        if (g->out_local)
            out_row = moe_isub(e, out_row, x->lo);
        MoeVal at = moe_iadd(e, moe_imul(e, out_row, moe_k64(e, g->n)), panel_col);
        c = LLVMBuildSelect(e->b, direct, moe_at(e, moe_emit_buf(e, g->buf_out), at, 4), c, "");
        stride = LLVMBuildSelect(e->b, direct, moe_k64(e, g->n * 4), stride, "");
    }
    MoeVal rows = moe_at(e, moe_at_bytes(e, e->scratch, moe_k64(e, x->rows_table)), row, 8);
    MoeVal k_left = moe_isub(e, moe_k64(e, g->k), moe_imul(e, k0, moe_k64(e, per)));
    MoeVal k = moe_imin(e, k_left, moe_k64(e, (int64_t)MAX_PANEL_STEPS * per));
    MoeVal b = moe_at_bytes(e, panel, moe_imul(e, k0, lanes_bytes));
    MoeVal a_offset = moe_imul(e, k0, moe_k64(e, (int64_t)per * moe_dtype_bytes(g->a_dtype)));
    MoeVal args[] = {rows, a_offset, k, b, c, stride, k0}; /* k0 > 0: more of the same chain */
    MoeIf small;
    int half = x->tile_rows / 2;
    moe_if_begin(e, &small, LLVMBuildICmp(e->b, LLVMIntSLE, left, moe_k64(e, half), ""));
    moe_emit_call(e, x->fn[cls][1], args, 7);
    moe_if_else(e, &small);
    moe_emit_call(e, x->fn[cls][0], args, 7);
    moe_if_end(e, &small);
}

/* One vector's place in the epilogue. mask NULL: all lanes live. */
static void finish_vector(Gemm *x, int width, MoeVal row, MoeVal panel_col, MoeVal offset,
                          MoeVal mask) {
    MoeEmit *e = x->e;
    const MoeGemm *g = x->g;
    MoeVal products[2] = {NULL, NULL};
    for (int i = 0; i < g->n_products; i++) {
        MoeVal block = moe_at_bytes(e, e->scratch, moe_k64(e, x->blocks[i]));
        MoeVal at = moe_iadd(e, moe_imul(e, row, moe_k64(e, (int64_t)width * e->lanes)), offset);
        products[i] = moe_vload(e, MOE_F32, block, at, NULL);
    }
    MoeVal col = moe_iadd(e, panel_col, offset), abs_row = moe_iadd(e, x->row0, row);
    if (g->buf_out < 0) {
        g->vector(e, g->ctx, abs_row, col, products, mask);
        return;
    }
    if (g->out_local)
        abs_row = moe_isub(e, abs_row, x->lo);
    MoeVal at = moe_iadd(e, moe_imul(e, abs_row, moe_k64(e, g->n)), col);
    moe_vstore(e, MOE_F32, products[0], moe_emit_buf(e, g->buf_out), at, mask);
}

/* The epilogue of a panel: rows from .. to of the block in scratch. */
static void finish_rows(Gemm *x, int width, MoeVal panel_col, MoeVal from, MoeVal to) {
    MoeEmit *e = x->e;
    const MoeGemm *g = x->g;
    MoeVal live = moe_imin(e, moe_isub(e, moe_k64(e, g->n), panel_col),
                           moe_k64(e, (int64_t)width * e->lanes));
    MoeVal whole = moe_imul(e, moe_idiv(e, live, moe_k64(e, e->lanes)), moe_k64(e, e->lanes));
    MoeLoop lr, lc;
    moe_loop_begin(e, &lr, from, to, moe_k64(e, 1));
    if (g->row)
        g->row(e, g->ctx, moe_iadd(e, x->row0, lr.index), panel_col);
    moe_loop_begin(e, &lc, moe_k64(e, 0), whole, moe_k64(e, e->lanes));
    finish_vector(x, width, lr.index, panel_col, lc.index, NULL);
    moe_loop_end(e, &lc);
    if (g->n % e->lanes) {
        MoeIf part;
        MoeVal rest = moe_isub(e, live, whole);
        moe_if_begin(e, &part, LLVMBuildICmp(e->b, LLVMIntSGT, rest, moe_k64(e, 0), ""));
        finish_vector(x, width, lr.index, panel_col, whole, moe_mask(e, rest));
        moe_if_end(e, &part);
    }
    moe_loop_end(e, &lr);
}

/* Panel `col` of product i. */
static MoeVal panel_at(Gemm *x, int i, MoeVal col) {
    MoeEmit *e = x->e;
    MoeVal cols = moe_imul(e, x->group, moe_k64(e, moe_panels_cols(&x->panels)));
    MoeVal at = moe_imul(e, moe_iadd(e, cols, col), moe_k64(e, x->steps));
    return moe_at(e, moe_emit_buf(e, x->g->buf_b[i]), at, 4);
}

/* A panel whose steps fit the cache: each row tile's epilogue follows it, so that its stores drain
 * while the next tile computes, and a second product finds the rows of A in the L1 cache. */
static void run_panel_by_tiles(Gemm *x, int cls, int width, MoeVal col) {
    MoeEmit *e = x->e;
    MoeVal panels[2] = {NULL, NULL};
    for (int i = 0; i < x->g->n_products; i++)
        panels[i] = panel_at(x, i, col);
    MoeLoop lr;
    moe_loop_begin(e, &lr, moe_k64(e, 0), x->n_rows, moe_k64(e, x->tile_rows));
    for (int i = 0; i < x->g->n_products; i++)
        run_tile(x, i, cls, width, lr.index, col, panels[i], moe_k64(e, 0));
    MoeVal end = moe_iadd(e, lr.index, moe_k64(e, x->tile_rows));
    finish_rows(x, width, col, lr.index, moe_imin(e, end, x->n_rows));
    moe_loop_end(e, &lr);
}

/* Any panel: all its row tiles over MAX_PANEL_STEPS steps, then over the next ones; the epilogue
 * last. */
static void run_panel(Gemm *x, int cls, int width, MoeVal col) {
    MoeEmit *e = x->e;
    const MoeGemm *g = x->g;
    MoeLoop lk, lr;
    for (int i = 0; i < g->n_products; i++) {
        MoeVal panel = panel_at(x, i, col);
        /* k = 0: one pass over nothing, which leaves zeros */
        moe_loop_begin(e, &lk, moe_k64(e, 0), moe_k64(e, x->steps ? x->steps : 1),
                       moe_k64(e, MAX_PANEL_STEPS));
        moe_loop_begin(e, &lr, moe_k64(e, 0), x->n_rows, moe_k64(e, x->tile_rows));
        run_tile(x, i, cls, width, lr.index, col, panel, lk.index);
        moe_loop_end(e, &lr);
        moe_loop_end(e, &lk);
    }
    MoeVal from = moe_k64(e, 0);
    if (g->buf_out >= 0) { /* whole tiles of a panel that lies inside are out already */
        MoeVal end = moe_iadd(e, col, moe_k64(e, (int64_t)width * e->lanes));
        MoeVal tiles = moe_idiv(e, x->n_rows, moe_k64(e, x->tile_rows));
        MoeVal inside = LLVMBuildICmp(e->b, LLVMIntSLE, end, moe_k64(e, g->n), "");
        from =
            LLVMBuildSelect(e->b, inside, moe_imul(e, tiles, moe_k64(e, x->tile_rows)), from, "");
    }
    finish_rows(x, width, col, from, x->n_rows);
}

/* Panels lo..hi, all of one width (cls 0: full, 1: tail). */
static void run_panels(Gemm *x, int cls, MoeVal lo, MoeVal hi) {
    MoeEmit *e = x->e;
    int width = cls == 0 ? x->panels.full : x->panels.tail;
    MoeLoop l;
    moe_loop_begin(e, &l, lo, hi, moe_k64(e, 1));
    MoeVal col = moe_panels_first(e, &x->panels, l.index);
    if (x->g->buf_out < 0 && x->steps <= MAX_PANEL_STEPS)
        run_panel_by_tiles(x, cls, width, col);
    else
        run_panel(x, cls, width, col);
    moe_loop_end(e, &l);
}

static void kernel_body(Gemm *x) {
    MoeEmit *e = x->e;
    const MoeGemm *g = x->g;
    MoeVal first;
    walk_groups(x, &x->group, &first);
    moe_row_space_range(e, &g->rows, x->group, &x->lo, &x->hi);
    MoeVal n_blocks = moe_iceildiv(e, moe_isub(e, x->hi, x->lo), x->block_rows);
    if (g->one_task_at_least) /* a task without rows: no division by zero */
        n_blocks = moe_imax(e, n_blocks, moe_k64(e, 1));
    MoeVal task = moe_isub(e, e->task, first);
    MoeVal col_block = moe_idiv(e, task, n_blocks), row_block = moe_irem(e, task, n_blocks);
    x->row0 = moe_iadd(e, x->lo, moe_imul(e, row_block, moe_k64(e, x->block_rows)));
    x->n_rows = moe_imin(e, moe_isub(e, x->hi, x->row0), moe_k64(e, x->block_rows));
    if (g->task)
        g->task(e, g->ctx);
    fill_row_table(x);
    MoeVal p0 = moe_imul(e, col_block, moe_k64(e, x->panels_per_block));
    MoeVal p1 = moe_iadd(e, p0, moe_k64(e, x->panels_per_block));
    MoeVal n_full = moe_k64(e, x->panels.n_full);
    if (x->panels.n_full)
        run_panels(x, 0, p0, moe_imin(e, p1, n_full));
    if (x->panels.n_tail)
        run_panels(x, 1, moe_imax(e, p0, n_full),
                   moe_imin(e, p1, moe_k64(e, moe_panels_count(&x->panels))));
    if (g->streams) /* such stores are not ordered by the pool's signals */
        LLVMBuildFence(e->b, LLVMAtomicOrderingSequentiallyConsistent, 0, "");
}

static void make_key(const Gemm *x, MoeStr *key) {
    const MoeGemm *g = x->g;
    moe_str_printf(
        key,
        "gemm %d %s rows=%d:%d g=%lld v=%lld k=%lld n=%lld products=%d stride=%lld gather=%lld",
        (int)g->elem, moe_dtype_name(g->a_dtype), (int)g->rows.mode, g->rows.buf,
        (long long)g->rows.groups, (long long)g->rows.shards, (long long)g->k, (long long)g->n,
        g->n_products, (long long)g->a_stride, (long long)g->gather);
    moe_str_printf(key, " local=%d%d bufs=%d,%d,%d,%d,%d cols=%lld one=%d", g->a_local,
                   g->out_local, g->buf_a, g->buf_src, g->buf_b[0], g->buf_b[1], g->buf_out,
                   (long long)x->panels_per_block, g->one_task_at_least);
    if (g->rows.mode == MOE_ROWS_STATIC)
        moe_str_printf(key, " T=%lld", (long long)g->rows.capacity);
    moe_str_printf(key, " | %s", g->key);
}

const char *moe_gemm_emit(MoeCpuTarget *t, const MoeGemm *g, MoeLowered *out) {
    MoeEmit emit, *e = &emit;
    Gemm gemm = {.e = e}, *x = &gemm;
    MOE_ASSERT(g->n > 0, "gemm: a product without columns");
    plan(x, t, g);
    moe_cpu_need_scratch(out, x->scratch);
    MoeStr key = {0};
    make_key(x, &key);
    const char *name;
    bool fresh = moe_emit_begin(t, moe_str_c(&key), "gemm", e, &name);
    moe_str_free(&key);
    if (!fresh)
        return name;
    for (int half = 0; half < 2; half++) {
        int rows = half ? x->tile_rows / 2 : x->tile_rows;
        if (x->panels.n_full)
            x->fn[0][half] = moe_tile_gemm(t, g->elem, rows, x->panels.full);
        if (x->panels.n_tail)
            x->fn[1][half] = moe_tile_gemm(t, g->elem, rows, x->panels.tail);
    }
    moe_emit_tasks_body(e);
    MoeVal n = walk_groups(x, NULL, NULL);
    moe_emit_return(e, g->one_task_at_least ? moe_imax(e, n, moe_k64(e, 1)) : n);
    moe_emit_kernel_body(e);
    kernel_body(x);
    moe_emit_end(e);
    return name;
}
