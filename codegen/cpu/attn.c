/* The shared parts of the attention kernels: see attn.h. */
#include "codegen/cpu/attn.h"

#include "base/assert.h"

int64_t moe_attn_take(int64_t *used, int64_t n_floats) {
    int64_t at = *used;
    *used += (n_floats * 4 + 63) / 64 * 64;
    return at;
}

MoeAttn moe_attn_shape(const MoeCpuTarget *t, const MoeOp *op) {
    const MoeType *q = &op->operands[0]->type;
    const MoeValue *seg = moe_rows_seg(q);
    MoeAttn a = {.heads = moe_attr_i(op, "heads"),
                 .kv_heads = moe_attr_i(op, "kv_heads"),
                 .head_dim = moe_attr_i(op, "head_dim"),
                 .seq = moe_attr_i(op, "seq"),
                 .window = moe_attr_i(op, "window"),
                 .scale = moe_attr_f(op, "scale"),
                 .dtype = q->dtype,
                 .shards = seg ? seg->type.groups * seg->type.shards : 0,
                 .lanes = t->isa.lanes,
                 .vectors = t->isa.tile_vectors,
                 .rows = t->isa.lanes == 16 ? 8 : 4};
    MOE_ASSERT(seg, "attention: rows must be ragged over the token segments");
    a.qb = (int64_t)a.lanes * a.vectors;
    a.dp = (a.head_dim + a.lanes - 1) / a.lanes * a.lanes;
    a.sp = (a.seq + a.rows - 1) / a.rows * a.rows;
    return a;
}

const char *moe_attn_key(const MoeCpuTarget *t, const MoeAttn *a, const char *kind) {
    return moe_arena_printf(t->arena, "%s h%lld kv%lld d%lld s%lld w%lld x%a %s v%lld", kind,
                            (long long)a->heads, (long long)a->kv_heads, (long long)a->head_dim,
                            (long long)a->seq, (long long)a->window, a->scale,
                            moe_dtype_name(a->dtype), (long long)a->shards);
}

static MoeVal live_rows(MoeEmit *e, const MoeAttn *a, int seg_buf) {
    return moe_load_index(e, moe_emit_buf(e, seg_buf), moe_k64(e, a->shards));
}

void moe_attn_emit_tasks(MoeEmit *e, const MoeAttn *a, int seg_buf) {
    moe_emit_tasks_body(e);
    MoeVal seqs = moe_iceildiv(e, live_rows(e, a, seg_buf), a->seq);
    moe_emit_return(e, moe_imul(e, seqs, moe_k64(e, a->kv_heads)));
}

MoeAttnTask moe_attn_task(MoeEmit *e, const MoeAttn *a, int seg_buf) {
    MoeVal kv = moe_k64(e, a->kv_heads);
    MoeAttnTask t;
    t.row0 = moe_imul(e, moe_idiv(e, e->task, kv), moe_k64(e, a->seq));
    t.kv_head = moe_irem(e, e->task, kv);
    t.len = moe_imin(e, moe_k64(e, a->seq), moe_isub(e, live_rows(e, a, seg_buf), t.row0));
    return t;
}

void moe_attn_pack(MoeEmit *e, const MoeAttn *a, MoeDtype dtype, MoeVal x, int64_t x_heads,
                   MoeVal head, MoeVal first, MoeVal n, int64_t n_padded, double factor,
                   MoeVal dst) {
    int64_t vecs = a->dp / a->lanes;
    MoeVal one = moe_k64(e, 1), zero = moe_k64(e, 0);
    MoeLoop l;
    moe_loop_begin(e, &l, zero, n, one);
    MoeVal from =
        moe_iadd(e, moe_imul(e, moe_iadd(e, first, l.index), moe_k64(e, x_heads * a->head_dim)),
                 moe_imul(e, head, moe_k64(e, a->head_dim)));
    MoeVal to = moe_imul(e, l.index, moe_k64(e, a->dp));
    for (int64_t v = 0; v < vecs; v++) {
        int64_t left = a->head_dim - v * a->lanes;
        MoeVal mask = left >= a->lanes ? NULL : moe_mask(e, moe_k64(e, left));
        MoeVal value = moe_vload(e, dtype, x, moe_iadd(e, from, moe_k64(e, v * a->lanes)), mask);
        if (factor != 1.0)
            value = LLVMBuildFMul(e->b, value, moe_vconst(e, factor), "");
        moe_vstore(e, MOE_F32, value, dst, moe_iadd(e, to, moe_k64(e, v * a->lanes)), NULL);
    }
    moe_loop_end(e, &l);
    moe_loop_begin(e, &l, n, moe_k64(e, n_padded), one);
    for (int64_t v = 0; v < vecs; v++)
        moe_vstore(e, MOE_F32, moe_vconst(e, 0), dst,
                   moe_iadd(e, moe_imul(e, l.index, moe_k64(e, a->dp)), moe_k64(e, v * a->lanes)),
                   NULL);
    moe_loop_end(e, &l);
}

/* Rows r and r + w swap their off-diagonal blocks of w x w; for w = n/2 ... 1 this transposes n x n. */
static void swap_blocks(MoeEmit *e, MoeVal *row, int n, int w) {
    MoeVal low[64], high[64];
    for (int j = 0; j < n; j++) {
        low[j] = moe_k32(e, j & w ? n + j - w : j);
        high[j] = moe_k32(e, j & w ? n + j : j + w);
    }
    MoeVal low_mask = LLVMConstVector(low, (unsigned)n),
           high_mask = LLVMConstVector(high, (unsigned)n);
    for (int r = 0; r < n; r++) {
        if (r & w)
            continue;
        MoeVal a = row[r], b = row[r + w];
        row[r] = LLVMBuildShuffleVector(e->b, a, b, low_mask, "");
        row[r + w] = LLVMBuildShuffleVector(e->b, a, b, high_mask, "");
    }
}

void moe_attn_transpose(MoeEmit *e, const MoeAttn *a, MoeVal src, MoeVal dst) {
    MoeLoop i, d;
    MoeVal zero = moe_k64(e, 0), step = moe_k64(e, a->lanes), row[64];
    moe_loop_begin(e, &i, zero, moe_k64(e, a->qb), step);
    moe_loop_begin(e, &d, zero, moe_k64(e, a->dp), step);
    for (int r = 0; r < a->lanes; r++) {
        MoeVal at = moe_imul(e, moe_iadd(e, i.index, moe_k64(e, r)), moe_k64(e, a->dp));
        row[r] = moe_vload(e, MOE_F32, src, moe_iadd(e, at, d.index), NULL);
    }
    for (int w = a->lanes / 2; w > 0; w /= 2)
        swap_blocks(e, row, a->lanes, w);
    for (int r = 0; r < a->lanes; r++) {
        MoeVal at = moe_imul(e, moe_iadd(e, d.index, moe_k64(e, r)), moe_k64(e, a->qb));
        moe_vstore(e, MOE_F32, row[r], dst, moe_iadd(e, at, i.index), NULL);
    }
    moe_loop_end(e, &d);
    moe_loop_end(e, &i);
}

void moe_attn_product(MoeEmit *e, int rows, int vecs, MoeVal lo, MoeVal hi, const MoeVal *a_rows,
                      int64_t a_step, MoeVal b, int64_t b_step, MoeVal *acc) {
    MoeCarryLoop k;
    moe_carry_begin(e, &k, lo, hi, moe_k64(e, 1), acc, rows * vecs);
    MoeVal b_row = moe_at(e, b, k.l.index, b_step), bv[8];
    for (int v = 0; v < vecs; v++)
        bv[v] = moe_vload(e, MOE_F32, b_row, moe_k64(e, (int64_t)v * e->lanes), NULL);
    for (int r = 0; r < rows; r++) {
        MoeVal av = moe_splat(
            e, moe_sload(e, MOE_F32, moe_at(e, a_rows[r], k.l.index, a_step), moe_k64(e, 0)));
        for (int v = 0; v < vecs; v++)
            acc[r * vecs + v] = moe_fma(e, av, bv[v], acc[r * vecs + v]);
    }
    moe_carry_end(e, &k, acc);
}

static void zero_tile(MoeEmit *e, MoeVal *acc, int n) {
    for (int i = 0; i < n; i++)
        acc[i] = moe_vconst(e, 0);
}

void moe_attn_strip(MoeEmit *e, const MoeAttn *a, MoeVal keys, MoeVal bt, MoeVal strip, MoeVal lo,
                    MoeVal hi) {
    MoeLoop j;
    MoeVal acc[64], a_rows[16];
    moe_loop_begin(e, &j, lo, hi, moe_k64(e, a->rows));
    MoeVal first = moe_at(e, keys, j.index, a->dp * 4);
    for (int r = 0; r < a->rows; r++)
        a_rows[r] = moe_at_bytes(e, first, moe_k64(e, r * a->dp * 4));
    zero_tile(e, acc, a->rows * a->vectors);
    moe_attn_product(e, a->rows, a->vectors, moe_k64(e, 0), moe_k64(e, a->head_dim), a_rows, 4, bt,
                     a->qb * 4, acc);
    MoeVal out = moe_at(e, strip, j.index, a->qb * 4);
    for (int r = 0; r < a->rows; r++)
        for (int v = 0; v < a->vectors; v++)
            moe_vstore(e, MOE_F32, acc[r * a->vectors + v], out,
                       moe_k64(e, r * a->qb + (int64_t)v * a->lanes), NULL);
    moe_loop_end(e, &j);
}

int moe_attn_chunks(const MoeAttn *a, int most, int *sizes) {
    int total = (int)(a->dp / a->lanes), n = (total + most - 1) / most;
    MOE_ASSERT(n <= 64, "attention: head_dim %lld", (long long)a->head_dim);
    for (int c = 0; c < n; c++)
        sizes[c] = total * (c + 1) / n - total * c / n;
    return n;
}

void moe_attn_rows(MoeEmit *e, const MoeAttn *a, MoeVal strip, MoeVal x, MoeVal q0, MoeVal lo,
                   MoeVal hi, MoeAttnStore store, void *ctx) {
    MoeLoop i;
    MoeVal acc[64], a_rows[16];
    /* With 32 registers a tile may be four vectors wide (6 x 4): fewer passes over the strip than 8 x 2. */
    int sizes[64], n = moe_attn_chunks(a, a->lanes == 16 ? 4 : a->vectors, sizes);
    for (int c = 0, first = 0; c < n; first += sizes[c++]) {
        int rows = sizes[c] == 4 ? 6 : a->rows;
        moe_loop_begin(e, &i, moe_k64(e, 0), moe_k64(e, a->qb), moe_k64(e, rows));
        for (int r = 0; r < rows; r++)
            a_rows[r] = moe_at(e, strip, moe_iadd(e, i.index, moe_k64(e, r)), 4);
        /* No query of the tile sees keys after its last one: the strip is zero there. */
        MoeVal last = moe_imin(e, hi, moe_iadd(e, q0, moe_iadd(e, i.index, moe_k64(e, rows))));
        zero_tile(e, acc, rows * sizes[c]);
        MoeVal b = moe_at_bytes(e, x, moe_k64(e, (int64_t)first * a->lanes * 4));
        moe_attn_product(e, rows, sizes[c], lo, last, a_rows, a->qb * 4, b, a->dp * 4, acc);
        store(e, a, i.index, rows, first, sizes[c], acc, ctx);
        moe_loop_end(e, &i);
    }
}

void moe_attn_range(MoeEmit *e, const MoeAttn *a, MoeVal q0, MoeVal len, MoeVal *lo, MoeVal *hi) {
    *hi = moe_imin(e, len, moe_iadd(e, q0, moe_k64(e, a->qb)));
    *lo = moe_k64(e, 0);
    if (a->window) {
        MoeVal first = moe_imax(e, *lo, moe_isub(e, q0, moe_k64(e, a->window - 1)));
        *lo = moe_isub(e, first, moe_irem(e, first, moe_k64(e, a->rows)));
    }
}

MoeVal moe_attn_sees(MoeEmit *e, const MoeAttn *a, MoeVal q0, int v, MoeVal j) {
    MoeVal lane[64];
    for (int i = 0; i < a->lanes; i++)
        lane[i] = moe_k32(e, (int64_t)v * a->lanes + i);
    /* ages of the key, as seen by each query: query - key */
    MoeVal base = LLVMBuildTrunc(e->b, moe_isub(e, q0, j), e->i32, "");
    MoeVal zero = LLVMConstNull(e->vi32),
           splat = LLVMBuildInsertElement(e->b, LLVMGetUndef(e->vi32), base, moe_k32(e, 0), "");
    splat = LLVMBuildShuffleVector(e->b, splat, LLVMGetUndef(e->vi32), zero, "");
    MoeVal iota = LLVMConstVector(lane, (unsigned)a->lanes);
    MoeVal age = LLVMBuildAdd(e->b, splat, iota, "");
    MoeVal sees = LLVMBuildICmp(e->b, LLVMIntSGE, age, zero, "");
    if (a->window) {
        for (int i = 0; i < a->lanes; i++)
            lane[i] = moe_k32(e, a->window);
        sees = LLVMBuildAnd(
            e->b, sees,
            LLVMBuildICmp(e->b, LLVMIntSLT, age, LLVMConstVector(lane, (unsigned)a->lanes), ""),
            "");
    }
    return sees;
}
