/* rope: rotary positions in the rotate-half form.
 *
 * Angles follow transformers step by step in f32: inv_freq_i = 1 / theta^(2i/d), angle = pos *
 * inv_freq_i, then cos and sin of that f32. They are therefore off the exact angle by up to about
 * pos * 1e-7 radians. Where the table of cos and sin over all positions has at most MAX_TABLE bytes
 * it is a constant of the module, [seq][cos d/2, sin d/2]; beyond that each row computes its own
 * into the scratch memory, in f64: reduction by multiples of pi/2, then Taylor polynomials. */
#include <math.h>
#include <stdlib.h>
#include "base/assert.h"
#include "base/kernel_abi.h"
#include "codegen/cpu/live.h"

#define MAX_TABLE (16 << 20)

typedef struct {
    int64_t heads, dim, half, seq, table_row; /* table_row: f32s of a position */
    double theta;
    bool inverse, computed;
} Rope;

static float inv_freq(const Rope *r, int64_t i) {
    float exponent = (float)(2 * i) / (float)r->dim;
    return 1.0f / (float)pow((double)(float)r->theta, (double)exponent);
}

static MoeVal constant_floats(MoeEmit *e, const float *data, size_t n, const char *name) {
    MoeVal bytes =
        LLVMConstStringInContext(e->c, (const char *)data, (unsigned)(n * sizeof *data), true);
    MoeVal global = LLVMAddGlobal(e->m, LLVMTypeOf(bytes), name);
    LLVMSetInitializer(global, bytes);
    LLVMSetGlobalConstant(global, true);
    LLVMSetLinkage(global, LLVMPrivateLinkage);
    LLVMSetAlignment(global, 64);
    return global;
}

/* The table of positions 0 .. seq-1, cos then sin, as a constant global. */
static MoeVal make_table(MoeEmit *e, const Rope *r, const char *name) {
    size_t n = (size_t)(r->seq * r->table_row) +
               MOE_BUFFER_SLACK / 4; /* whole vectors are loaded at its end too */
    float *data = calloc(n, sizeof *data);
    MOE_ASSERT(data, "rope: no memory for a table of %zu entries", n);
    for (int64_t p = 0; p < r->seq; p++)
        for (int64_t i = 0; i < r->half; i++) {
            float angle = (float)p * inv_freq(r, i);
            data[p * r->table_row + i] = (float)cos((double)angle);
            data[p * r->table_row + r->half + i] = (float)sin((double)angle);
        }
    MoeVal global = constant_floats(e, data, n, name);
    free(data);
    return global;
}

/* ---- cos and sin in f64 ---- */

static MoeVal kd(MoeEmit *e, double v) {
    return LLVMConstReal(e->f64, v);
}

/* c[0] + c[1] z + ... + c[n-1] z^(n-1) */
static MoeVal poly(MoeEmit *e, MoeVal z, const double *c, int n) {
    MoeVal v = kd(e, c[n - 1]);
    for (int i = n - 2; i >= 0; i--)
        v = LLVMBuildFAdd(e->b, LLVMBuildFMul(e->b, v, z, ""), kd(e, c[i]), "");
    return v;
}

/* angle >= 0 f32, below 2^27 -> cos and sin, f32. */
static void cos_sin(MoeEmit *e, MoeVal angle, MoeVal *out_cos, MoeVal *out_sin) {
    LLVMBuilderRef b = e->b;
    static const double sin_c[] = {1.0,          -1.0 / 6,        1.0 / 120,       -1.0 / 5040,
                                   1.0 / 362880, -1.0 / 39916800, 1.0 / 6227020800};
    static const double cos_c[] = {
        1.0,         -1.0 / 2,       1.0 / 24,        -1.0 / 720,
        1.0 / 40320, -1.0 / 3628800, 1.0 / 479001600, -1.0 / 87178291200};
    MoeVal x = LLVMBuildFPExt(b, angle, e->f64, "");
    MoeVal turns =
        LLVMBuildFAdd(b, LLVMBuildFMul(b, x, kd(e, 0.63661977236758134), ""), kd(e, 0.5), "");
    MoeVal n = LLVMBuildFPToSI(b, turns, e->i64, ""), nf = LLVMBuildSIToFP(b, n, e->f64, "");
    /* pi/2 in two parts, the first of 33 bits: nf times it is exact while nf < 2^20, else off by
     * 2^-52 of it */
    MoeVal y = LLVMBuildFSub(b, x, LLVMBuildFMul(b, nf, kd(e, 0x1.921fb544p+0), ""), "");
    y = LLVMBuildFSub(b, y, LLVMBuildFMul(b, nf, kd(e, 0x1.0b4611a626331p-34), ""), "");
    MoeVal z = LLVMBuildFMul(b, y, y, "");
    MoeVal s = LLVMBuildFMul(b, y, poly(e, z, sin_c, 7), ""), c = poly(e, z, cos_c, 8);
    MoeVal odd = LLVMBuildTrunc(b, n, e->i1, "");
    MoeVal two = moe_k64(e, 2), zero = moe_k64(e, 0);
    MoeVal sin_neg = LLVMBuildICmp(b, LLVMIntNE, LLVMBuildAnd(b, n, two, ""), zero, "");
    MoeVal cos_neg = LLVMBuildICmp(
        b, LLVMIntNE, LLVMBuildAnd(b, moe_iadd(e, n, moe_k64(e, 1)), two, ""), zero, "");
    MoeVal sv = LLVMBuildSelect(b, odd, c, s, ""), cv = LLVMBuildSelect(b, odd, s, c, "");
    sv = LLVMBuildSelect(b, sin_neg, LLVMBuildFNeg(b, sv, ""), sv, "");
    cv = LLVMBuildSelect(b, cos_neg, LLVMBuildFNeg(b, cv, ""), cv, "");
    *out_sin = LLVMBuildFPTrunc(b, sv, e->f32, "");
    *out_cos = LLVMBuildFPTrunc(b, cv, e->f32, "");
}

/* cos and sin of position pos into the scratch; inv_freq is a constant global. */
static void compute_row(MoeEmit *e, const Rope *r, MoeVal freqs, MoeVal pos) {
    MoeVal p = LLVMBuildSIToFP(e->b, pos, e->f32, ""), c, s;
    MoeLoop l;
    moe_loop_begin(e, &l, moe_k64(e, 0), moe_k64(e, r->half), moe_k64(e, 1));
    cos_sin(e, LLVMBuildFMul(e->b, p, moe_sload(e, MOE_F32, freqs, l.index), ""), &c, &s);
    moe_sstore(e, MOE_F32, c, e->scratch, l.index);
    moe_sstore(e, MOE_F32, s, e->scratch, moe_iadd(e, l.index, moe_k64(e, r->half)));
    moe_loop_end(e, &l);
}

static MoeVal make_freqs(MoeEmit *e, const Rope *r, const char *name) {
    float *data = malloc((size_t)r->half * sizeof *data);
    MOE_ASSERT(data, "rope: no memory for %lld frequencies", (long long)r->half);
    for (int64_t i = 0; i < r->half; i++)
        data[i] = inv_freq(r, i);
    MoeVal global = constant_floats(e, data, (size_t)r->half, name);
    free(data);
    return global;
}

/* ---- the rotation ---- */

/* Elements i .. i+lanes of both halves of one head: x' = a c - b s, b c + a s. */
static void rotate_vector(MoeEmit *e, const Rope *r, MoeDtype d, MoeVal x, MoeVal y, MoeVal table,
                          MoeVal i, MoeVal mask) {
    MoeVal j = moe_iadd(e, i, moe_k64(e, r->half));
    MoeVal a = moe_vload(e, d, x, i, NULL), b = moe_vload(e, d, x, j, NULL);
    MoeVal c = moe_vload(e, MOE_F32, table, i, NULL), s = moe_vload(e, MOE_F32, table, j, NULL);
    if (r->inverse)
        s = LLVMBuildFNeg(e->b, s, "");
    MoeVal first = moe_fma(e, LLVMBuildFNeg(e->b, b, ""), s, LLVMBuildFMul(e->b, a, c, ""));
    MoeVal second = moe_fma(e, a, s, LLVMBuildFMul(e->b, b, c, ""));
    moe_vstore(e, d, first, y, i, mask);
    moe_vstore(e, d, second, y, j, mask);
}

static void rotate_row(MoeEmit *e, const Rope *r, MoeDtype d, MoeVal x, MoeVal y, MoeVal table) {
    int64_t bytes = moe_dtype_bytes(d), whole = r->half / e->lanes * e->lanes;
    MoeLoop heads, l;
    moe_loop_begin(e, &heads, moe_k64(e, 0), moe_k64(e, r->heads), moe_k64(e, 1));
    MoeVal xh = moe_at(e, x, heads.index, r->dim * bytes),
           yh = moe_at(e, y, heads.index, r->dim * bytes);
    moe_loop_begin(e, &l, moe_k64(e, 0), moe_k64(e, whole), moe_k64(e, e->lanes));
    rotate_vector(e, r, d, xh, yh, table, l.index, NULL);
    moe_loop_end(e, &l);
    if (r->half % e->lanes)
        rotate_vector(e, r, d, xh, yh, table, moe_k64(e, whole),
                      moe_mask(e, moe_k64(e, r->half - whole)));
    moe_loop_end(e, &heads);
}

int64_t moe_cpu_rope_workspace(MoeCpuTarget *t, const MoeGroup *g) {
    (void)t, (void)g;
    return 0;
}

MoeStatus moe_cpu_rope_lower(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out) {
    const MoeOp *op = g->ops[0];
    MOE_ASSERT(g->n_ops == 1, "rope: a group of %zu ops", g->n_ops);
    const MoeType *type = &op->operands[0]->type;
    Rope r = {.heads = moe_attr_i(op, "heads"),
              .dim = moe_attr_i(op, "head_dim"),
              .seq = moe_attr_i(op, "seq"),
              .theta = moe_attr_f(op, "theta"),
              .inverse = moe_attr_i_or(op, "inverse", 0) != 0};
    r.half = r.dim / 2;
    r.table_row = 2 * r.half;
    r.computed = r.seq > MAX_TABLE / (r.table_row * 4);
    MoeBufs bufs = {.n = 0};
    int x = moe_bufs_add(&bufs, op->operands[0]), y = moe_bufs_add(&bufs, op->results[0]);
    int seg = moe_bufs_add_seg(&bufs, type);
    int64_t cols = moe_type_cols(type), per_task = moe_live_block(cols),
            bytes = cols * moe_dtype_bytes(type->dtype);
    MoeStr key = {0};
    MoeEmit e;
    const char *name;
    moe_str_printf(&key, "rope %lld %lld %lld %a %d", (long long)r.heads, (long long)r.dim,
                   (long long)r.seq, r.theta, r.inverse);
    moe_live_key(&key, type);
    if (moe_emit_begin(t, moe_str_c(&key), "rope", &e, &name)) {
        moe_emit_tasks_body(&e);
        moe_live_tasks(&e, moe_live_rows(&e, type, seg), per_task);
        moe_emit_kernel_body(&e);
        MoeStr table_name = {0};
        moe_str_printf(&table_name, "rope_table %lld %lld %a %d", (long long)r.dim,
                       (long long)r.seq, r.theta, r.computed);
        MoeVal table = LLVMGetNamedGlobal(e.m, moe_str_c(&table_name));
        if (!table)
            table = r.computed ? make_freqs(&e, &r, moe_str_c(&table_name))
                               : make_table(&e, &r, moe_str_c(&table_name));
        moe_str_free(&table_name);
        MoeLoop rows;
        moe_live_loop(&e, &rows, moe_live_rows(&e, type, seg), per_task);
        MoeVal pos = moe_irem(&e, rows.index, moe_k64(&e, r.seq));
        if (r.computed)
            compute_row(&e, &r, table, pos);
        MoeVal row = r.computed ? e.scratch : moe_at(&e, table, pos, r.table_row * 4);
        rotate_row(&e, &r, type->dtype, moe_at(&e, moe_emit_buf(&e, x), rows.index, bytes),
                   moe_at(&e, moe_emit_buf(&e, y), rows.index, bytes), row);
        moe_loop_end(&e, &rows);
        moe_emit_end(&e);
    }
    moe_str_free(&key);
    moe_cpu_need_scratch(out, r.computed ? r.table_row * 4 + MOE_BUFFER_SLACK : 0);
    moe_cpu_launch(out, name, bufs.refs, (size_t)bufs.n);
    return NULL;
}
