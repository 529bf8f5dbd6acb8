/* The rows of a slice of a leaf, made ready for register tiles (wgrad.c).
 *
 * f32 rows are read where they are, through tables of pointers. Pairs of bf16 rows are interleaved
 * into scratch, block columns only: strips [steps][strip] of dy, panels [steps][width] of x. */
#include "codegen/cpu/wgrad_internal.h"

static MoeVal side_row(MoeWgradPlan *x, const MoeWgradSide *s, MoeVal row) {
    MoeEmit *e = x->e;
    if (s->local)
        row = moe_isub(e, row, s->local);
    if (s->gather)
        row = moe_idiv(e, moe_load_index(e, s->src, row), moe_k64(e, s->gather));
    return moe_at_bytes(e, s->base, moe_imul(e, row, moe_k64(e, s->stride)));
}

/* Lanes of raw bf16 at row[col], widened to i32. */
static MoeVal load_raw(MoeWgradPlan *x, MoeVal row, MoeVal col, MoeVal mask) {
    MoeEmit *e = x->e;
    MoeVal f = moe_vload(e, MOE_BF16, row, col, mask); /* bits << 16 */
    MoeVal by[64];
    for (int i = 0; i < e->lanes; i++)
        by[i] = moe_k32(e, 16);
    return LLVMBuildLShr(e->b, LLVMBuildBitCast(e->b, f, e->vi32, ""),
                         LLVMConstVector(by, (unsigned)e->lanes), "");
}

/* Where packed vectors of a step go: panels of x, rows of `dst`; strips of dy from `dst` on (step:
 * which). */
typedef struct {
    MoeVal dst, step;
    bool strips;
} Target;

static void store_packed(MoeWgradPlan *x, const Target *to, MoeVal v, MoeVal at) {
    MoeEmit *e = x->e;
    if (!to->strips) {
        LLVMSetAlignment(LLVMBuildStore(e->b, v, moe_at(e, to->dst, at, 4)), 4);
        return;
    }
    int piece = x->strip < e->lanes ? x->strip : e->lanes;
    for (int i = 0; i < e->lanes; i += piece) {
        MoeVal lanes[64], part = v, strip = moe_k64(e, x->strip);
        for (int j = 0; j < piece; j++)
            lanes[j] = moe_k32(e, i + j);
        if (piece < e->lanes)
            part = LLVMBuildShuffleVector(e->b, v, LLVMGetPoison(LLVMTypeOf(v)),
                                          LLVMConstVector(lanes, (unsigned)piece), "");
        MoeVal col = moe_iadd(e, at, moe_k64(e, i));
        MoeVal row =
            moe_iadd(e, moe_imul(e, moe_idiv(e, col, strip), moe_k64(e, x->steps)), to->step);
        MoeVal slot_at = moe_iadd(e, moe_imul(e, row, strip), moe_irem(e, col, strip));
        LLVMSetAlignment(LLVMBuildStore(e->b, part, moe_at(e, to->dst, slot_at, 4)), 4);
    }
}

/* One vector of a step: the pair of rows `a`, `b` (b NULL: zero). at: column of the packed span. */
static void pack_vector(MoeWgradPlan *x, MoeVal a, MoeVal b, MoeVal col, MoeVal mask,
                        const Target *to, MoeVal at) {
    MoeEmit *e = x->e;
    MoeVal v = load_raw(x, a, col, mask);
    if (b) /* the widened load has the bits in the upper half already */
        v = LLVMBuildOr(
            e->b, v, LLVMBuildBitCast(e->b, moe_vload(e, MOE_BF16, b, col, mask), e->vi32, ""), "");
    store_packed(x, to, v, at);
}

/* `live` columns from col0 of the step's rows; `cols` of the whole operand says whether masks are
 * needed at all. */
static void pack_span(MoeWgradPlan *x, MoeVal a, MoeVal b, MoeVal col0, MoeVal live, int64_t cols,
                      const Target *to) {
    MoeEmit *e = x->e;
    MoeVal lanes = moe_k64(e, e->lanes);
    MoeVal whole = moe_imul(e, moe_idiv(e, live, lanes), lanes);
    MoeLoop l;
    moe_loop_begin(e, &l, moe_k64(e, 0), whole, lanes);
    pack_vector(x, a, b, moe_iadd(e, col0, l.index), NULL, to, l.index);
    moe_loop_end(e, &l);
    if (cols % e->lanes == 0)
        return;
    MoeIf part;
    MoeVal rest = moe_isub(e, live, whole);
    moe_if_begin(e, &part, LLVMBuildICmp(e->b, LLVMIntSGT, rest, moe_k64(e, 0), ""));
    pack_vector(x, a, b, moe_iadd(e, col0, whole), moe_mask(e, rest), to, whole);
    moe_if_end(e, &part);
}

/* The block's panels of one step of x: `cls` 0 full, 1 tail. */
static void pack_panels(MoeWgradPlan *x, MoeVal a, MoeVal b, MoeVal step, int cls) {
    MoeEmit *e = x->e;
    int width = cls == 0 ? x->panels.full : x->panels.tail;
    MoeVal n_full = moe_k64(e, x->panels.n_full), cols = moe_k64(e, (int64_t)width * e->lanes);
    MoeVal lo = cls == 0 ? x->p0 : moe_imax(e, x->p0, n_full);
    MoeVal hi = cls == 0 ? moe_imin(e, x->p1, n_full) : x->p1;
    MoeLoop l;
    moe_loop_begin(e, &l, lo, hi, moe_k64(e, 1));
    MoeVal col = moe_panels_first(e, &x->panels, l.index);
    MoeVal at = moe_imul(e, moe_isub(e, col, x->col0), moe_k64(e, x->steps));
    at = moe_iadd(e, at, moe_imul(e, step, cols));
    Target to = {.dst = moe_at(e, moe_at_bytes(e, e->scratch, moe_k64(e, x->pack_x)), at, 4)};
    MoeVal live = moe_imin(e, cols, moe_isub(e, moe_k64(e, x->w->k), col));
    pack_span(x, a, b, col, live, x->w->k, &to);
    moe_loop_end(e, &l);
}

static void pack_step(MoeWgradPlan *x, const MoeWgradSide *dy, const MoeWgradSide *xs, MoeVal step,
                      MoeVal row, bool pair) {
    MoeEmit *e = x->e;
    MoeVal second = moe_iadd(e, row, moe_k64(e, 1));
    MoeVal a = side_row(x, dy, row), b = pair ? side_row(x, dy, second) : NULL;
    Target to = {
        .dst = moe_at_bytes(e, e->scratch, moe_k64(e, x->pack_dy)), .step = step, .strips = true};
    pack_span(x, a, b, x->n0, x->n_live, x->w->n, &to);
    a = side_row(x, xs, row);
    b = pair ? side_row(x, xs, second) : NULL;
    for (int cls = 0; cls < 2; cls++)
        if (cls == 0 ? x->panels.n_full : x->panels.n_tail)
            pack_panels(x, a, b, step, cls);
}

/* f32 rows are read where they are: tables of pointers. */
static MoeVal table_rows(MoeWgradPlan *x, const MoeWgradSide *dy, const MoeWgradSide *xs,
                         MoeVal row0, MoeVal n_rows) {
    MoeEmit *e = x->e;
    MoeLoop l;
    moe_loop_begin(e, &l, moe_k64(e, 0), n_rows, moe_k64(e, 1));
    MoeVal row = moe_iadd(e, row0, l.index);
    LLVMBuildStore(e->b, side_row(x, dy, row),
                   moe_at(e, moe_at_bytes(e, e->scratch, moe_k64(e, x->pack_dy)), l.index, 8));
    LLVMBuildStore(e->b, side_row(x, xs, row),
                   moe_at(e, moe_at_bytes(e, e->scratch, moe_k64(e, x->pack_x)), l.index, 8));
    moe_loop_end(e, &l);
    return n_rows;
}

/* Rows row0 .. row0 + n_rows; returns the number of steps. */
MoeVal moe_wgrad_load_rows(MoeWgradPlan *x, const MoeWgradSide *dy, const MoeWgradSide *xs,
                           MoeVal row0, MoeVal n_rows) {
    MoeEmit *e = x->e;
    if (x->w->elem != MOE_TILE_DOT)
        return table_rows(x, dy, xs, row0, n_rows);
    MoeVal whole = moe_idiv(e, n_rows, moe_k64(e, 2));
    MoeLoop l;
    moe_loop_begin(e, &l, moe_k64(e, 0), whole, moe_k64(e, 1));
    pack_step(x, dy, xs, l.index, moe_iadd(e, row0, moe_imul(e, l.index, moe_k64(e, 2))), true);
    moe_loop_end(e, &l);
    MoeIf odd; /* an odd last row, paired with zero */
    moe_if_begin(
        e, &odd,
        LLVMBuildICmp(e->b, LLVMIntNE, moe_irem(e, n_rows, moe_k64(e, 2)), moe_k64(e, 0), ""));
    pack_step(x, dy, xs, whole, moe_iadd(e, row0, moe_imul(e, whole, moe_k64(e, 2))), false);
    moe_if_end(e, &odd);
    return moe_iceildiv(e, n_rows, 2);
}

/* Asks for the block's columns of a row that the next slice holds. */
static void prefetch_row(MoeWgradPlan *x, const MoeWgradSide *s, MoeVal row, MoeVal col0,
                         MoeVal live) {
    MoeEmit *e = x->e;
    int64_t bytes = moe_dtype_bytes(x->w->dtype);
    MoeVal at = moe_at(e, side_row(x, s, row), col0, bytes);
    MoeLoop l;
    moe_loop_begin(e, &l, moe_k64(e, 0), moe_imul(e, live, moe_k64(e, bytes)), moe_k64(e, 64));
    MoeVal args[] = {moe_at_bytes(e, at, l.index), moe_k32(e, 0), moe_k32(e, 2), moe_k32(e, 1)};
    moe_intrinsic(e, "llvm.prefetch", e->ptr, args, 4);
    moe_loop_end(e, &l);
}

/* A tile's share of the next slice's rows: packing then finds them in the L2 cache. Rows of all
 * shards lie one behind the other. */
void moe_wgrad_prefetch(MoeWgradPlan *x, const MoeWgradSide *dy, const MoeWgradSide *xs) {
    MoeEmit *e = x->e;
    int64_t tiles = x->block_n / x->tile_rows * x->block_panels;
    MoeVal from = LLVMBuildLoad2(e->b, e->i64, x->fetched, "");
    MoeVal to = moe_imin(e, x->group_end,
                         moe_iadd(e, from, moe_k64(e, (x->slice + tiles - 1) / tiles)));
    MoeLoop l;
    moe_loop_begin(e, &l, from, to, moe_k64(e, 1));
    prefetch_row(x, dy, l.index, x->n0, x->n_live);
    prefetch_row(x, xs, l.index, x->col0, x->k_live);
    moe_loop_end(e, &l);
    LLVMBuildStore(e->b, moe_imax(e, from, to), x->fetched);
}
