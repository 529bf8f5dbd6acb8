/* Emits the register tiles (tile.h). The loop over k holds one load of each B vector, one broadcast
 * for each row of A and rows x vectors multiply-adds; LLVM keeps the accumulators (phis of the
 * loop) in registers. */
#include "codegen/cpu/tile.h"

#include <stdio.h>
#include "base/assert.h"
#include "codegen/cpu/kernel_table.h"

#define MAX_ROWS    8
#define MAX_VECTORS 3

typedef struct {
    MoeEmit *e;
    MoeTileElem elem;
    int rows, vectors;
    MoeVal acc[MAX_ROWS * MAX_VECTORS];
    MoeVal a[MAX_ROWS]; /* row pointers (one for a packed A) */
    MoeVal b;
} Tile;

MoeTileElem moe_tile_elem(const MoeCpuTarget *t, MoeDtype d) {
    if (d == MOE_F32)
        return MOE_TILE_F32;
    return t->isa.bf16_dot ? MOE_TILE_DOT : MOE_TILE_WIDE;
}

int moe_tile_k_per_step(MoeTileElem elem) {
    return elem == MOE_TILE_DOT ? 2 : 1;
}

int64_t moe_tile_steps(MoeTileElem elem, int64_t k) {
    return elem == MOE_TILE_DOT ? (k + 1) / 2 : k;
}

/* acc + a * b; for DOT a and b are pairs of bf16 in i32 lanes. */
static MoeVal multiply_add(Tile *t, MoeVal a, MoeVal b, MoeVal acc) {
    MoeEmit *e = t->e;
    if (t->elem != MOE_TILE_DOT)
        return moe_fma(e, a, b, acc);
    /* The intrinsic's type for pairs differs between LLVM releases: ask for it. */
    static const char name[] = "llvm.x86.avx512bf16.dpbf16ps.512";
    unsigned id = LLVMLookupIntrinsicID(name, sizeof name - 1);
    MoeVal fn = LLVMGetIntrinsicDeclaration(e->m, id, NULL, 0);
    LLVMTypeRef pairs = LLVMTypeOf(LLVMGetParam(fn, 1));
    MoeVal args[] = {acc, LLVMBuildBitCast(e->b, a, pairs, ""),
                     LLVMBuildBitCast(e->b, b, pairs, "")};
    return LLVMBuildCall2(e->b, LLVMIntrinsicGetType(e->c, id, NULL, 0), fn, args, 3, "");
}

/* The broadcast element of row r at step `i`. */
static MoeVal broadcast_a(Tile *t, MoeVal at) {
    MoeEmit *e = t->e;
    MoeVal v;
    if (t->elem == MOE_TILE_WIDE) {
        v = moe_sload(e, MOE_BF16, at, moe_k64(e, 0));
    } else {
        v = LLVMBuildLoad2(e->b, t->elem == MOE_TILE_DOT ? e->i32 : e->f32, at, "");
        LLVMSetAlignment(v, t->elem == MOE_TILE_DOT ? 2 : 4);
    }
    return moe_splat(e, v);
}

static MoeVal load_b(Tile *t, MoeVal step, int j) {
    MoeEmit *e = t->e;
    MoeVal at = moe_at(e, t->b, moe_imul(e, step, moe_k64(e, t->vectors)), e->lanes * 4);
    at = moe_at_bytes(e, at, moe_k64(e, (int64_t)j * e->lanes * 4));
    MoeVal v = LLVMBuildLoad2(e->b, t->elem == MOE_TILE_DOT ? e->vi32 : e->v32, at, "");
    LLVMSetAlignment(v, 16);
    return v;
}

static void rank1_update(Tile *t, const MoeVal *b, int r, MoeVal a) {
    for (int j = 0; j < t->vectors; j++) {
        MoeVal *acc = &t->acc[r * t->vectors + j];
        *acc = multiply_add(t, a, b[j], *acc);
    }
}

static void zero_acc(Tile *t) {
    for (int i = 0; i < t->rows * t->vectors; i++)
        t->acc[i] = LLVMConstNull(t->e->v32);
}

/* Address of vector j of row r of a C tile. */
static MoeVal c_at(Tile *t, MoeVal c, MoeVal stride, int r, int j) {
    MoeEmit *e = t->e;
    MoeVal at = moe_at_bytes(e, c, moe_imul(e, stride, moe_k64(e, r)));
    return moe_at_bytes(e, at, moe_k64(e, (int64_t)j * e->lanes * 4));
}

static MoeVal load_c(Tile *t, MoeVal c, MoeVal stride, int r, int j) {
    return moe_vload(t->e, MOE_F32, c_at(t, c, stride, r, j), moe_k64(t->e, 0), NULL);
}

static void store_c(Tile *t, MoeVal c, MoeVal stride) {
    for (int r = 0; r < t->rows; r++)
        for (int j = 0; j < t->vectors; j++)
            moe_vstore(t->e, MOE_F32, t->acc[r * t->vectors + j], c_at(t, c, stride, r, j),
                       moe_k64(t->e, 0), NULL);
}

MoeVal moe_tile_gemm(MoeCpuTarget *target, MoeTileElem elem, int rows, int vectors) {
    MoeEmit emit, *e = &emit;
    char key[64];
    snprintf(key, sizeof key, "tile_gemm %d %dx%d", (int)elem, rows, vectors);
    MOE_ASSERT(rows <= MAX_ROWS && vectors <= MAX_VECTORS, "tile %dx%d", rows, vectors);
    LLVMTypeRef ptr = LLVMPointerTypeInContext(target->context, 0);
    LLVMTypeRef i64 = LLVMInt64TypeInContext(target->context);
    LLVMTypeRef args[] = {ptr, i64, i64, ptr, ptr, i64, i64};
    MoeVal fn;
    if (!moe_emit_helper(target, key, "tile", args, 7, e, &fn))
        return fn;
    Tile t = {.e = e, .elem = elem, .rows = rows, .vectors = vectors, .b = LLVMGetParam(fn, 3)};
    MoeVal k = LLVMGetParam(fn, 2), c = LLVMGetParam(fn, 4), stride = LLVMGetParam(fn, 5);
    MoeVal more = LLVMBuildICmp(e->b, LLVMIntNE, LLVMGetParam(fn, 6), moe_k64(e, 0), "more");
    for (int r = 0; r < rows; r++) {
        MoeVal at = moe_at(e, LLVMGetParam(fn, 0), moe_k64(e, r), 8);
        t.a[r] = moe_at_bytes(e, LLVMBuildLoad2(e->b, e->ptr, at, "row"), LLVMGetParam(fn, 1));
    }
    /* The loop that runs when C holds earlier steps' sums: 0 or 1 times, to carry the accumulators
     * past the branch. */
    MoeCarryLoop l;
    zero_acc(&t);
    MoeVal zero = moe_k64(e, 0), one = moe_k64(e, 1);
    moe_carry_begin(e, &l, zero, LLVMBuildZExt(e->b, more, e->i64, ""), one, t.acc, rows * vectors);
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < vectors; j++)
            t.acc[r * vectors + j] = load_c(&t, c, stride, r, j);
    moe_carry_end(e, &l, t.acc);

    int a_bytes = elem == MOE_TILE_WIDE ? 2 : 4;
    MoeVal whole = elem == MOE_TILE_DOT ? moe_idiv(e, k, moe_k64(e, 2)) : k;
    MoeVal b[MAX_VECTORS];
    moe_carry_begin(e, &l, zero, whole, one, t.acc, rows * vectors);
    for (int j = 0; j < vectors; j++)
        b[j] = load_b(&t, l.l.index, j);
    for (int r = 0; r < rows; r++)
        rank1_update(&t, b, r, broadcast_a(&t, moe_at(e, t.a[r], l.l.index, a_bytes)));
    moe_carry_end(e, &l, t.acc);

    if (elem == MOE_TILE_DOT) { /* an odd last k: its pair is zero on both sides, whatever lies
                                   behind the row */
        moe_carry_begin(e, &l, zero, moe_irem(e, k, moe_k64(e, 2)), one, t.acc, rows * vectors);
        for (int j = 0; j < vectors; j++)
            b[j] = load_b(&t, whole, j);
        for (int r = 0; r < rows; r++) {
            MoeVal low = LLVMBuildLoad2(e->b, e->i16, moe_at(e, t.a[r], whole, 4), "");
            low = LLVMBuildZExt(e->b, low, e->i32, "");
            rank1_update(&t, b, r, moe_splat(e, low));
        }
        moe_carry_end(e, &l, t.acc);
    }
    store_c(&t, c, stride);
    moe_emit_end(e);
    return fn;
}

/* acc = tables[i][offset] + acc for i ascending; rows of the tables stride bytes apart. */
static void add_left(Tile *t, MoeVal tables, MoeVal n, MoeVal offset, MoeVal stride) {
    MoeEmit *e = t->e;
    MoeCarryLoop l;
    moe_carry_begin(e, &l, moe_k64(e, 0), n, moe_k64(e, 1), t->acc, t->rows * t->vectors);
    MoeVal left = LLVMBuildLoad2(e->b, e->ptr, moe_at(e, tables, l.l.index, 8), "");
    left = moe_at_bytes(e, left, offset);
    for (int r = 0; r < t->rows; r++)
        for (int j = 0; j < t->vectors; j++) {
            MoeVal *acc = &t->acc[r * t->vectors + j];
            *acc = LLVMBuildFAdd(e->b, load_c(t, left, stride, r, j), *acc, "");
        }
    moe_carry_end(e, &l, t->acc);
}

static void ask_for_c(Tile *t, MoeVal c, MoeVal stride) {
    for (int r = 0; r < t->rows; r++)
        for (int j = 0; j < t->vectors; j++) {
            MoeVal line[] = {c_at(t, c, stride, r, j), moe_k32(t->e, 1), moe_k32(t->e, 3),
                             moe_k32(t->e, 1)};
            moe_intrinsic(t->e, "llvm.prefetch", t->e->ptr, line, 4);
        }
}

/* acc += A^T B over steps lo .. hi. */
static void wgrad_steps(Tile *t, MoeVal a, MoeVal a_at, MoeVal b_rows, MoeVal b_at, MoeVal lo,
                        MoeVal hi) {
    MoeEmit *e = t->e;
    MoeCarryLoop l;
    MoeVal b[MAX_VECTORS], at;
    moe_carry_begin(e, &l, lo, hi, moe_k64(e, 1), t->acc, t->rows * t->vectors);
    if (t->elem == MOE_TILE_DOT) {
        at = moe_at_bytes(e, a, moe_imul(e, l.l.index, a_at));
        for (int j = 0; j < t->vectors; j++)
            b[j] = load_b(t, l.l.index, j);
    } else {
        MoeVal x = LLVMBuildLoad2(e->b, e->ptr, moe_at(e, b_rows, l.l.index, 8), "");
        at = moe_at_bytes(e, LLVMBuildLoad2(e->b, e->ptr, moe_at(e, a, l.l.index, 8), ""), a_at);
        x = moe_at_bytes(e, x, b_at);
        for (int j = 0; j < t->vectors; j++)
            b[j] = moe_vload(e, t->elem == MOE_TILE_WIDE ? MOE_BF16 : MOE_F32, x,
                             moe_k64(e, (int64_t)j * e->lanes), NULL);
    }
    int bytes = t->elem == MOE_TILE_WIDE ? 2 : 4;
    for (int r = 0; r < t->rows; r++)
        rank1_update(t, b, r, broadcast_a(t, moe_at(e, at, moe_k64(e, r), bytes)));
    moe_carry_end(e, &l, t->acc);
}

/* acc = start[offset], n (0 or 1) times: a loop carries the accumulators past the branch. */
static void start_acc(Tile *t, MoeVal start, MoeVal n, MoeVal offset, MoeVal stride) {
    MoeEmit *e = t->e;
    MoeCarryLoop l;
    moe_carry_begin(e, &l, moe_k64(e, 0), n, moe_k64(e, 1), t->acc, t->rows * t->vectors);
    MoeVal from = moe_at_bytes(e, start, offset);
    for (int r = 0; r < t->rows; r++)
        for (int j = 0; j < t->vectors; j++)
            t->acc[r * t->vectors + j] = load_c(t, from, stride, r, j);
    moe_carry_end(e, &l, t->acc);
}

MoeVal moe_tile_wgrad(MoeCpuTarget *target, MoeTileElem elem, int rows, int vectors, bool chains) {
    MoeEmit emit, *e = &emit;
    char key[64];
    snprintf(key, sizeof key, "tile_wgrad %d %dx%d%s", (int)elem, rows, vectors,
             chains ? " chains" : "");
    MOE_ASSERT(rows <= MAX_ROWS && vectors <= MAX_VECTORS, "tile %dx%d", rows, vectors);
    LLVMTypeRef ptr = LLVMPointerTypeInContext(target->context, 0);
    LLVMTypeRef i64 = LLVMInt64TypeInContext(target->context);
    LLVMTypeRef args[] = {ptr, i64, ptr, i64, i64, ptr, i64, i64, i64, ptr, i64, ptr, i64, i64, ptr, i64};
    MoeVal fn;
    if (!moe_emit_helper(target, key, "tile", args, chains ? 16 : 14, e, &fn))
        return fn;
    MoeVal a = LLVMGetParam(fn, 0), a_at = LLVMGetParam(fn, 1), b_rows = LLVMGetParam(fn, 2),
           b_at = LLVMGetParam(fn, 3);
    MoeVal steps = LLVMGetParam(fn, 4), folds = LLVMGetParam(fn, 5), n_folds = LLVMGetParam(fn, 6);
    MoeVal offset = LLVMGetParam(fn, 7), stride = LLVMGetParam(fn, 8);
    MoeVal dest = LLVMGetParam(fn, 9), dest_stride = LLVMGetParam(fn, 10), zero = moe_k64(e, 0);
    Tile t = {
        .e = e, .elem = elem, .rows = rows, .vectors = vectors, .b = moe_at_bytes(e, b_rows, b_at)};
    /* What is added and overwritten at the end, mostly the same memory, comes in the meantime. */
    ask_for_c(&t, dest, dest_stride);
    zero_acc(&t);
    if (chains)
        start_acc(&t, LLVMGetParam(fn, 14), LLVMGetParam(fn, 15), offset, stride);
    wgrad_steps(&t, a, a_at, b_rows, b_at, zero, steps);
    /* Earlier subtrees are the left operands: of the block, then of the whole result. */
    add_left(&t, folds, n_folds, offset, stride);
    add_left(&t, LLVMGetParam(fn, 11), LLVMGetParam(fn, 12), LLVMGetParam(fn, 13), dest_stride);
    store_c(&t, dest, dest_stride);
    moe_emit_end(e);
    return fn;
}

/* ---- panels ---- */

MoePanels moe_panels(const MoeCpuTarget *t, int64_t cols) {
    int lanes = t->isa.lanes, full = t->isa.tile_vectors;
    int64_t vectors = (cols + lanes - 1) / lanes;
    MoePanels p = {.lanes = lanes, .full = full, .cols = cols, .n_full = vectors / full};
    p.tail = (int)(vectors % full);
    p.n_tail = p.tail > 0;
    if (full == 3 && p.tail == 1 && p.n_full > 0) { /* 3 + 1 -> 2 + 2 */
        p.n_full--;
        p.n_tail = 2;
        p.tail = 2;
    }
    return p;
}

int64_t moe_panels_count(const MoePanels *p) {
    return p->n_full + p->n_tail;
}

int64_t moe_panels_cols(const MoePanels *p) {
    return (p->n_full * p->full + p->n_tail * p->tail) * p->lanes;
}

int64_t moe_panels_first_const(const MoePanels *p, int64_t panel) {
    int64_t full = panel < p->n_full ? panel : p->n_full;
    return (full * p->full + (panel - full) * p->tail) * p->lanes;
}

MoeVal moe_panels_first(MoeEmit *e, const MoePanels *p, MoeVal panel) {
    MoeVal full = moe_imin(e, panel, moe_k64(e, p->n_full));
    MoeVal rest = moe_isub(e, panel, full);
    return moe_iadd(e, moe_imul(e, full, moe_k64(e, (int64_t)p->full * p->lanes)),
                    moe_imul(e, rest, moe_k64(e, (int64_t)p->tail * p->lanes)));
}
