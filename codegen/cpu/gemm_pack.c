/* Packs the right operand of a matrix product into panels (gemm.h). One task a (group, panel); an expert that no row goes to is
 * left out.
 *
 * From [k][n] a panel's rows are copied; from [n][k] blocks of lanes x lanes elements are
 * transposed in registers. Edges go element by element. */
#include <stdio.h>
#include "base/assert.h"
#include "codegen/cpu/gemm.h"

typedef struct {
    MoeEmit *e;
    MoeTileElem elem;
    MoeDtype dtype;
    bool tb;
    int64_t k, n, steps;
    MoeVal src, dst; /* of this group; of this panel */
    int width;       /* vectors of this panel */
} Pack;

int64_t moe_gemm_packed_bytes(const MoeCpuTarget *t, MoeTileElem elem, int64_t groups, int64_t k,
                              int64_t n) {
    MoePanels p = moe_panels(t, n);
    int64_t bytes = groups * moe_panels_cols(&p) * moe_tile_steps(elem, k) * 4;
    return (bytes + 63) / 64 * 64;
}

/* Element (k, n) as i32 bits of its panel slot's half or whole; zero outside. */
static MoeVal element_bits(Pack *p, MoeVal k, MoeVal n) {
    MoeEmit *e = p->e;
    MoeVal inside = LLVMBuildAnd(e->b, LLVMBuildICmp(e->b, LLVMIntSLT, k, moe_k64(e, p->k), ""),
                                 LLVMBuildICmp(e->b, LLVMIntSLT, n, moe_k64(e, p->n), ""), "");
    MoeVal safe_k = LLVMBuildSelect(e->b, inside, k, moe_k64(e, 0), "");
    MoeVal safe_n = LLVMBuildSelect(e->b, inside, n, moe_k64(e, 0), "");
    MoeVal row = p->tb ? safe_n : safe_k, col = p->tb ? safe_k : safe_n;
    MoeVal index = moe_iadd(e, moe_imul(e, row, moe_k64(e, p->tb ? p->k : p->n)), col);
    MoeVal at = moe_at(e, p->src, index, moe_dtype_bytes(p->dtype));
    MoeVal bits;
    if (p->elem == MOE_TILE_DOT) {
        bits = LLVMBuildZExt(e->b, LLVMBuildLoad2(e->b, e->i16, at, ""), e->i32, "");
    } else {
        MoeVal f = moe_sload(e, p->dtype, at, moe_k64(e, 0));
        bits = LLVMBuildBitCast(e->b, f, e->i32, "");
    }
    return LLVMBuildSelect(e->b, inside, bits, moe_k32(e, 0), "");
}

/* Steps lo..hi of `cols` columns from column `first`, one element at a time. */
static void pack_elements(Pack *p, MoeVal lo, MoeVal hi, MoeVal first) {
    MoeEmit *e = p->e;
    MoeVal one = moe_k64(e, 1), two = moe_k64(e, 2);
    int64_t cols = (int64_t)p->width * e->lanes;
    MoeLoop ls, lc;
    moe_loop_begin(e, &ls, lo, hi, one);
    moe_loop_begin(e, &lc, moe_k64(e, 0), moe_k64(e, cols), one);
    MoeVal n = moe_iadd(e, first, lc.index), bits;
    if (p->elem == MOE_TILE_DOT) {
        MoeVal k = moe_imul(e, ls.index, two);
        MoeVal high = element_bits(p, moe_iadd(e, k, one), n);
        bits = LLVMBuildOr(e->b, element_bits(p, k, n),
                           LLVMBuildShl(e->b, high, moe_k32(e, 16), ""), "");
    } else {
        bits = element_bits(p, ls.index, n);
    }
    MoeVal slot = moe_iadd(e, moe_imul(e, ls.index, moe_k64(e, cols)), lc.index);
    LLVMBuildStore(e->b, bits, moe_at(e, p->dst, slot, 4));
    moe_loop_end(e, &lc);
    moe_loop_end(e, &ls);
}

static void store_slots(Pack *p, MoeVal v, MoeVal step, MoeVal col) {
    MoeEmit *e = p->e;
    MoeVal slot = moe_imul(e, step, moe_k64(e, (int64_t)p->width * e->lanes));
    LLVMSetAlignment(LLVMBuildStore(e->b, v, moe_at(e, p->dst, moe_iadd(e, slot, col), 4)), 16);
}

/* Vector of one row of b at element `index` (unmasked): lanes slots of 4 bytes. */
static MoeVal load_slots(Pack *p, MoeVal index) {
    MoeEmit *e = p->e;
    if (p->elem != MOE_TILE_DOT)
        return LLVMBuildBitCast(e->b, moe_vload(e, p->dtype, p->src, index, NULL), e->vi32, "");
    MoeVal v = LLVMBuildLoad2(e->b, e->vi32, moe_at(e, p->src, index, 2), "");
    LLVMSetAlignment(v, 2);
    return v;
}

/* [lanes] vectors of rows -> of columns: exchanges bit by bit of the index. */
static void transpose(MoeEmit *e, MoeVal *v) {
    int n = e->lanes;
    for (int s = 1; s < n; s *= 2) {
        MoeVal lo[64], hi[64];
        for (int i = 0; i < n; i++) {
            lo[i] = moe_k32(e, i & s ? n + i - s : i);
            hi[i] = moe_k32(e, i & s ? n + i : i + s);
        }
        MoeVal take_lo = LLVMConstVector(lo, (unsigned)n),
               take_hi = LLVMConstVector(hi, (unsigned)n);
        for (int i = 0; i < n; i++) {
            if (i & s)
                continue;
            MoeVal a = v[i], b = v[i + s];
            v[i] = LLVMBuildShuffleVector(e->b, a, b, take_lo, "");
            v[i + s] = LLVMBuildShuffleVector(e->b, a, b, take_hi, "");
        }
    }
}

/* [n][k]: whole panels and whole runs of lanes steps are transposed. */
static void pack_transposed(Pack *p, MoeVal first) {
    MoeEmit *e = p->e;
    int lanes = e->lanes, per = moe_tile_k_per_step(p->elem);
    int64_t whole = p->k / per / lanes * lanes;
    MoeVal last = moe_iadd(e, first, moe_k64(e, (int64_t)p->width * lanes));
    MoeVal inside = LLVMBuildICmp(e->b, LLVMIntSLE, last, moe_k64(e, p->n), "");
    MoeVal fast = LLVMBuildSelect(e->b, inside, moe_k64(e, whole), moe_k64(e, 0), "");
    MoeLoop ls, lj;
    moe_loop_begin(e, &lj, moe_k64(e, 0), moe_k64(e, (int64_t)p->width * lanes), moe_k64(e, lanes));
    moe_loop_begin(e, &ls, moe_k64(e, 0), fast, moe_k64(e, lanes));
    MoeVal v[64];
    MoeVal k = moe_imul(e, ls.index, moe_k64(e, per));
    for (int i = 0; i < lanes; i++) {
        MoeVal row = moe_iadd(e, moe_iadd(e, first, lj.index), moe_k64(e, i));
        v[i] = load_slots(p, moe_iadd(e, moe_imul(e, row, moe_k64(e, p->k)), k));
    }
    transpose(e, v);
    for (int i = 0; i < lanes; i++)
        store_slots(p, v[i], moe_iadd(e, ls.index, moe_k64(e, i)), lj.index);
    moe_loop_end(e, &ls);
    moe_loop_end(e, &lj);
    pack_elements(p, fast, moe_k64(e, p->steps), first);
}

/* Row of [k][n], lanes columns at `col`, as i32 lanes: f32 bits, or bf16 bits in the low half. */
static MoeVal row_bits(Pack *p, MoeVal row, MoeVal col) {
    MoeEmit *e = p->e;
    MoeVal index = moe_iadd(e, moe_imul(e, row, moe_k64(e, p->n)), col);
    if (p->elem != MOE_TILE_DOT)
        return LLVMBuildBitCast(e->b, moe_vload(e, p->dtype, p->src, index, NULL), e->vi32, "");
    MoeVal v = LLVMBuildLoad2(e->b, e->vbf16, moe_at(e, p->src, index, 2), "");
    LLVMSetAlignment(v, 2);
    return LLVMBuildZExt(e->b, v, e->vi32, "");
}

/* [k][n]: copies, two rows interleaved for DOT. */
static void pack_straight(Pack *p, MoeVal first) {
    MoeEmit *e = p->e;
    int64_t cols = (int64_t)p->width * e->lanes, whole = p->k / moe_tile_k_per_step(p->elem);
    MoeVal inside =
        LLVMBuildICmp(e->b, LLVMIntSLE, moe_iadd(e, first, moe_k64(e, cols)), moe_k64(e, p->n), "");
    MoeVal fast = LLVMBuildSelect(e->b, inside, moe_k64(e, whole), moe_k64(e, 0), "");
    MoeLoop ls;
    moe_loop_begin(e, &ls, moe_k64(e, 0), fast, moe_k64(e, 1));
    for (int j = 0; j < p->width; j++) {
        MoeVal offset = moe_k64(e, (int64_t)j * e->lanes), col = moe_iadd(e, first, offset);
        MoeVal bits;
        if (p->elem == MOE_TILE_DOT) {
            MoeVal k = moe_imul(e, ls.index, moe_k64(e, 2));
            MoeVal high = row_bits(p, moe_iadd(e, k, moe_k64(e, 1)), col);
            MoeVal by[64];
            for (int i = 0; i < e->lanes; i++)
                by[i] = moe_k32(e, 16);
            high = LLVMBuildShl(e->b, high, LLVMConstVector(by, (unsigned)e->lanes), "");
            bits = LLVMBuildOr(e->b, row_bits(p, k, col), high, "");
        } else {
            bits = row_bits(p, ls.index, col);
        }
        store_slots(p, bits, ls.index, offset);
    }
    moe_loop_end(e, &ls);
    pack_elements(p, fast, moe_k64(e, p->steps), first);
}

static void pack_panel(Pack *p, MoeVal first) {
    if (p->tb)
        pack_transposed(p, first);
    else
        pack_straight(p, first);
}

/* i1: the group has rows. */
static MoeVal has_rows(MoeEmit *e, MoeVal group, int64_t shards) {
    MoeVal at = moe_imul(e, group, moe_k64(e, shards)), table = moe_emit_buf(e, 2);
    MoeVal lo = moe_load_index(e, table, at);
    MoeVal hi = moe_load_index(e, table, moe_iadd(e, at, moe_k64(e, shards)));
    return LLVMBuildICmp(e->b, LLVMIntSLT, lo, hi, "");
}

const char *moe_gemm_emit_pack(MoeCpuTarget *t, MoeTileElem elem, MoeDtype d, bool tb,
                               int64_t groups, int64_t shards, int64_t k, int64_t n) {
    MoeEmit emit, *e = &emit;
    char key[128];
    const char *name;
    snprintf(key, sizeof key, "pack %d %s tb=%d g=%lld v=%lld k=%lld n=%lld", (int)elem,
             moe_dtype_name(d), tb, (long long)groups, (long long)shards, (long long)k,
             (long long)n);
    if (!moe_emit_begin(t, key, "pack", e, &name))
        return name;
    MoePanels panels = moe_panels(t, n);
    int64_t n_panels = moe_panels_count(&panels), steps = moe_tile_steps(elem, k);
    moe_emit_tasks_body(e);
    moe_emit_return(e, moe_k64(e, groups * n_panels));

    moe_emit_kernel_body(e);
    MoeVal group = moe_idiv(e, e->task, moe_k64(e, n_panels));
    MoeVal panel = moe_irem(e, e->task, moe_k64(e, n_panels));
    MoeVal first = moe_panels_first(e, &panels, panel);
    Pack p = {.e = e, .elem = elem, .dtype = d, .tb = tb, .k = k, .n = n, .steps = steps};
    p.src =
        moe_at(e, moe_emit_buf(e, 0), moe_imul(e, group, moe_k64(e, k * n)), moe_dtype_bytes(d));
    MoeVal cols = moe_iadd(e, moe_imul(e, group, moe_k64(e, moe_panels_cols(&panels))), first);
    p.dst = moe_at(e, moe_emit_buf(e, 1), moe_imul(e, cols, moe_k64(e, steps)), 4);
    MoeIf is_full, wanted;
    if (shards)
        moe_if_begin(e, &wanted, has_rows(e, group, shards));
    moe_if_begin(e, &is_full,
                 LLVMBuildICmp(e->b, LLVMIntSLT, panel, moe_k64(e, panels.n_full), ""));
    if (panels.n_full) {
        p.width = panels.full;
        pack_panel(&p, first);
    }
    moe_if_else(e, &is_full);
    if (panels.n_tail) {
        p.width = panels.tail;
        pack_panel(&p, first);
    }
    moe_if_end(e, &is_full);
    if (shards)
        moe_if_end(e, &wanted);
    moe_emit_end(e);
    return name;
}
