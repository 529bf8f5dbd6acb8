/* Attention's graphs: see cuda/cudnn_attn.h. The engines of cuDNN that fuse attention look for certain graphs; these are
 * the ones that NVIDIA's cudnn-frontend makes of its SDPA nodes (github.com/NVIDIA/cudnn-frontend,
 * node/scaled_dot_product_flash_attention.h), where also the engines and knobs of ORDERED are from.
 *
 * Forward:  s = q k^T * scale, masked; m = max s; z = sum e^(s - m); stats = m + ln z; p = e^(s - m) / z; o = p v
 * Backward: d = sum do * o; p = e^(s - stats); dv = p^T do; ds = (do v^T - d) * p * scale; dk = ds^T q; dq = ds k */
#include "runtime/cuda/cudnn_attn.h"

#include <float.h>

enum { /* uids */
       UID_Q = 1,
       UID_K,
       UID_V,
       UID_O,
       UID_STATS,
       UID_DO,
       UID_DQ,
       UID_DK,
       UID_DV,
       UID_SUMS,
       UID_DQ_SUMS,
       UID_SCALE,
       UID_LEAST,
       UID_WINDOW,
       UID_ONE
};

#define F32  MOE_CUDNN_FLOAT
#define BF16 MOE_CUDNN_BFLOAT16

const char *moe_cudnn_form_name(MoeCudnnForm f) {
    static const char *const names[] = {[MOE_CUDNN_FORWARD] = "forward",
                                        [MOE_CUDNN_GRAD_WHOLE] = "whole",
                                        [MOE_CUDNN_GRAD_ORDERED] = "ordered"};
    return names[f];
}

/* What the makers of the graphs share. */
typedef struct {
    MoeCudnnBuild *b;
    const MoeAttnShape *s;
    int64_t batch;
    MoeCudnnTensor q, kt, scale, least, window;
} Maker;

typedef struct {
    int64_t v[4];
} Dims;

static Dims dims4(int64_t a, int64_t b, int64_t c, int64_t d) {
    return (Dims){{a, b, c, d}};
}

/* Rows of `heads` heads as [batch, heads, seq, head_dim], or, transposed, [batch, heads, head_dim, seq]. */
static MoeCudnnTensor rows(Maker *m, int64_t uid, int64_t heads, bool transposed) {
    const int64_t s = m->s->seq, d = m->s->head_dim, width = heads * d;
    Dims dims = transposed ? dims4(m->batch, heads, d, s) : dims4(m->batch, heads, s, d);
    Dims strides = transposed ? dims4(s * width, d, 1, width) : dims4(s * width, d, width, 1);
    return moe_cudnn_tensor(m->b, uid, BF16, dims.v, strides.v);
}

/* A number a row and head, packed. */
static MoeCudnnTensor row_numbers(Maker *m, int64_t uid) {
    const int64_t s = m->s->seq, h = m->s->heads;
    Dims dims = dims4(m->batch, h, s, 1), strides = dims4(h * s, s, 1, 1);
    return moe_cudnn_tensor(m->b, uid, F32, dims.v, strides.v);
}

static MoeCudnnTensor virtual_like(Maker *m, int type, int64_t rows_, int64_t cols) {
    Dims dims = dims4(m->batch, m->s->heads, rows_, cols);
    return moe_cudnn_virtual(m->b, type, dims.v, NULL);
}

static MoeCudnnTensor two(Maker *m, int mode, const MoeCudnnTensor *x, const MoeCudnnTensor *y) {
    return moe_cudnn_pointwise(m->b, mode, F32, -1, F32, x, y, NULL);
}
static MoeCudnnTensor one_of(Maker *m, int mode, const MoeCudnnTensor *x) {
    return moe_cudnn_pointwise(m->b, mode, F32, -1, F32, x, NULL, NULL);
}

static void make_common(Maker *m) {
    m->q = rows(m, UID_Q, m->s->heads, false);
    m->kt = rows(m, UID_K, m->s->kv_heads, true);
    m->scale = moe_cudnn_scalar(m->b, UID_SCALE, F32);
    m->least = moe_cudnn_scalar(m->b, UID_LEAST, F32);
    if (m->s->window)
        m->window = moe_cudnn_scalar(m->b, UID_WINDOW, F32);
}

/* s = q k^T * scale. */
static MoeCudnnTensor scores(Maker *m) {
    MoeCudnnTensor s = virtual_like(m, F32, m->s->seq, m->s->seq);
    moe_cudnn_matmul(m->b, &m->q, &m->kt, &s);
    return two(m, MOE_CUDNN_MUL, &s, &m->scale);
}

static MoeCudnnTensor select_seen(Maker *m, const MoeCudnnTensor *x, const MoeCudnnTensor *seen) {
    return moe_cudnn_pointwise(m->b, MOE_CUDNN_BINARY_SELECT, F32, -1, F32, x, &m->least, seen);
}

/* The least number where the query does not see the key: query >= key, and with a window key + window > query. */
static MoeCudnnTensor mask(Maker *m, MoeCudnnTensor x) {
    MoeCudnnBuild *b = m->b;
    MoeCudnnTensor row = moe_cudnn_pointwise(b, MOE_CUDNN_GEN_INDEX, MOE_CUDNN_INT32, 2,
                                             MOE_CUDNN_INT32, &x, NULL, NULL);
    MoeCudnnTensor col = moe_cudnn_pointwise(b, MOE_CUDNN_GEN_INDEX, MOE_CUDNN_INT32, 3,
                                             MOE_CUDNN_INT32, &x, NULL, NULL);
    MoeCudnnTensor seen = moe_cudnn_pointwise(b, MOE_CUDNN_CMP_GE, MOE_CUDNN_BOOLEAN, -1,
                                              MOE_CUDNN_BOOLEAN, &row, &col, NULL);
    x = select_seen(m, &x, &seen);
    if (!m->s->window)
        return x;
    row = moe_cudnn_pointwise(b, MOE_CUDNN_GEN_INDEX, F32, 2, F32, &x, NULL, NULL);
    col = moe_cudnn_pointwise(b, MOE_CUDNN_GEN_INDEX, F32, 3, F32, &x, NULL, NULL);
    col = two(m, MOE_CUDNN_ADD, &col, &m->window);
    seen = moe_cudnn_pointwise(b, MOE_CUDNN_CMP_GT, MOE_CUDNN_BOOLEAN, -1, MOE_CUDNN_BOOLEAN, &col,
                               &row, NULL);
    return select_seen(m, &x, &seen);
}

static void make_forward(Maker *m) {
    MoeCudnnBuild *b = m->b;
    MoeCudnnTensor v = rows(m, UID_V, m->s->kv_heads, false),
                   o = rows(m, UID_O, m->s->heads, false), stats = row_numbers(m, UID_STATS);
    MoeCudnnTensor s = mask(m, scores(m));
    MoeCudnnTensor top = virtual_like(m, F32, m->s->seq, 1),
                   sum = virtual_like(m, F32, m->s->seq, 1);
    moe_cudnn_reduce(b, MOE_CUDNN_REDUCE_MAX, &s, &top);
    s = two(m, MOE_CUDNN_SUB, &s, &top);
    s = one_of(m, MOE_CUDNN_EXP, &s);
    moe_cudnn_reduce(b, MOE_CUDNN_REDUCE_ADD, &s, &sum);
    MoeCudnnTensor ln = one_of(m, MOE_CUDNN_LOG, &sum);
    moe_cudnn_pointwise_to(b, MOE_CUDNN_ADD, F32, -1, &top, &ln, NULL, &stats);
    MoeCudnnTensor p = moe_cudnn_pointwise(b, MOE_CUDNN_DIV, F32, -1, BF16, &s, &sum, NULL);
    moe_cudnn_matmul(b, &p, &v, &o);
}

/* x [.., seq, seq] as bf16 with its last dims exchanged. */
static MoeCudnnTensor transposed(Maker *m, const MoeCudnnTensor *x) {
    const int64_t s = m->s->seq, h = m->s->heads;
    Dims dims = dims4(m->batch, h, s, s), strides = dims4(h * s * s, s * s, 1, s);
    MoeCudnnTensor y = moe_cudnn_virtual(m->b, BF16, dims.v, strides.v);
    moe_cudnn_reshape(m->b, x, &y);
    return y;
}

/* out = x^T y; of fewer heads than y's: summed over the query heads of a key head. */
static void product_by_keys(Maker *m, const MoeCudnnTensor *x, const MoeCudnnTensor *y,
                            const MoeCudnnTensor *out) {
    MoeCudnnTensor xt = transposed(m, x);
    if (m->s->heads == m->s->kv_heads) {
        moe_cudnn_matmul(m->b, &xt, y, out);
        return;
    }
    MoeCudnnTensor all = virtual_like(m, BF16, m->s->seq, m->s->head_dim);
    moe_cudnn_matmul(m->b, &xt, y, &all);
    moe_cudnn_reduce(m->b, MOE_CUDNN_REDUCE_ADD, &all, out);
}

/* dq = ds k, summed in memory in f32 where the engine does so. */
static void make_dq(Maker *m, bool in_memory, const MoeCudnnTensor *ds) {
    const int64_t s = m->s->seq, d = m->s->head_dim, h = m->s->heads, width = m->s->kv_heads * d;
    Dims dims = dims4(m->batch, m->s->kv_heads, s, d), strides = dims4(s * width, d, width, 1);
    MoeCudnnTensor k = moe_cudnn_virtual(m->b, BF16, dims.v, strides.v),
                   dq = rows(m, UID_DQ, h, false);
    moe_cudnn_reshape(m->b, &m->kt, &k);
    if (!in_memory) {
        moe_cudnn_matmul(m->b, ds, &k, &dq);
        return;
    }
    dims = dims4(m->batch, h, s, d);
    strides = dims4(h * s * d, s * d, d, 1);
    MoeCudnnTensor sums = moe_cudnn_tensor(m->b, UID_DQ_SUMS, F32, dims.v, strides.v);
    moe_cudnn_matmul(m->b, ds, &k, &sums);
    moe_cudnn_pointwise_to(m->b, MOE_CUDNN_IDENTITY, F32, -1, &sums, NULL, NULL, &dq);
}

static void make_grad(Maker *m, bool sums_in_memory) {
    MoeCudnnBuild *b = m->b;
    const int64_t s = m->s->seq, d = m->s->head_dim, h = m->s->heads, kv = m->s->kv_heads;
    MoeCudnnTensor vt = rows(m, UID_V, kv, true), o = rows(m, UID_O, h, false),
                   d_o = rows(m, UID_DO, h, false), stats = row_numbers(m, UID_STATS),
                   sums = row_numbers(m, UID_SUMS), dk = rows(m, UID_DK, kv, false),
                   dv = rows(m, UID_DV, kv, false), one = moe_cudnn_scalar(b, UID_ONE, F32);
    /* The row sums, which memory holds. */
    Dims dims = dims4(m->batch, h, s, d), strides = dims4(h * s * d, s * d, h * d, 1);
    MoeCudnnTensor x = moe_cudnn_virtual(b, F32, dims.v, strides.v),
                   sum = virtual_like(m, F32, s, 1);
    moe_cudnn_pointwise_to(b, MOE_CUDNN_MUL, F32, -1, &d_o, &o, NULL, &x);
    moe_cudnn_reduce(b, MOE_CUDNN_REDUCE_ADD, &x, &sum);
    moe_cudnn_pointwise_to(b, MOE_CUDNN_MUL, F32, -1, &sum, &one, NULL, &sums);
    /* p, and dv. */
    x = scores(m);
    x = two(m, MOE_CUDNN_SUB, &x, &stats);
    x = mask(m, x);
    MoeCudnnTensor p = one_of(m, MOE_CUDNN_EXP, &x);
    product_by_keys(m, &p, &d_o, &dv);
    /* ds, dk and dq. */
    x = virtual_like(m, F32, s, s);
    moe_cudnn_matmul(b, &d_o, &vt, &x);
    x = two(m, MOE_CUDNN_SUB, &x, &sums);
    x = two(m, MOE_CUDNN_MUL, &x, &p);
    MoeCudnnTensor ds = moe_cudnn_pointwise(b, MOE_CUDNN_MUL, F32, -1, F32, &x, &m->scale, NULL);
    product_by_keys(m, &ds, &m->q, &dk);
    make_dq(m, sums_in_memory, &ds);
}

/* ORDERED is a matter of engines: on Hopper the one whose dq sums wait for each other (9.25 and newer), on Blackwell the one
 * that is repeatable (9.18 and newer). engine -1: none. */
static MoeCudnnEngine ordered_engine(size_t version, int capability) {
    MoeCudnnEngine e = {.engine = -1};
    if (capability / 10 == 9 && version >= 92500)
        e = (MoeCudnnEngine){.engine = 6,
                             .knobs = {{MOE_CUDNN_KNOB_TILE_M, 2},
                                       {MOE_CUDNN_KNOB_TILE_N, 1},
                                       {MOE_CUDNN_KNOB_KERNEL_CFG, 2},
                                       {MOE_CUDNN_KNOB_STREAM_K, 0},
                                       {MOE_CUDNN_KNOB_TILE_CGA_M, 0},
                                       {MOE_CUDNN_KNOB_STAGES, 4}},
                             .n_knobs = 6};
    else if (capability / 10 == 10 && capability <= 103 && version >= 92300)
        e = (MoeCudnnEngine){.engine = 5,
                             .knobs = {{MOE_CUDNN_KNOB_TILE_M, 3},
                                       {MOE_CUDNN_KNOB_TILE_N, 2},
                                       {MOE_CUDNN_KNOB_KERNEL_CFG, 2},
                                       {MOE_CUDNN_KNOB_STREAM_K, 0},
                                       {MOE_CUDNN_KNOB_TILE_CGA_M, 0},
                                       {MOE_CUDNN_KNOB_STAGES, 2}},
                             .n_knobs = 6};
    else if (capability / 10 == 10 && capability <= 103 && version >= 91800)
        e = (MoeCudnnEngine){.engine = 5,
                             .knobs = {{MOE_CUDNN_KNOB_KERNEL_CFG, 31}, {MOE_CUDNN_KNOB_STAGES, 2}},
                             .n_knobs = 2};
    return e;
}

MoeStatus moe_cudnn_attn_plan(const MoeCudnn *c, const MoeAttnShape *shape, MoeCudnnForm form,
                              int64_t batch, int capability, MoeCudnnPlace where,
                              MoeCudnnAttn *out) {
    MoeCudnnEngine engine = {.engine = -1};
    *out = (MoeCudnnAttn){.shape = *shape, .form = form};
    moe_cudnn_build_init(c, &out->build);
    if (form == MOE_CUDNN_GRAD_ORDERED) {
        engine = ordered_engine(c->version(), capability);
        if (engine.engine < 0)
            return moe_error(MOE_E_INPUT, "cuDNN %zu has no ordered sums of dq for sm_%d",
                             c->version(), capability);
        out->dq_sums = capability / 10 == 9;
    }
    Maker m = {.b = &out->build, .s = &out->shape, .batch = batch};
    make_common(&m);
    if (form == MOE_CUDNN_FORWARD)
        make_forward(&m);
    else
        make_grad(&m, out->dq_sums);
    MoeCudnnDesc graph = moe_cudnn_graph(&out->build, where);
    return moe_cudnn_plan(&out->build, graph, where, &engine, &out->plan);
}

void moe_cudnn_attn_free(MoeCudnnAttn *a) {
    if (a->build.c)
        moe_cudnn_build_free(&a->build);
}

MoeStatus moe_cudnn_attn_bind(MoeCudnnAttn *a, const MoeCudnnAttnBufs *bufs, MoeCudnnDesc *out) {
    bool grad = a->form != MOE_CUDNN_FORWARD;
    a->scale = a->shape.scale;
    a->least = -FLT_MAX;
    a->window = (float)a->shape.window;
    a->one = 1;
    const struct {
        int64_t uid;
        void *at;
        bool has;
    } all[] = {{UID_Q, bufs->q, true},
               {UID_K, bufs->k, true},
               {UID_V, bufs->v, true},
               {UID_O, bufs->o, true},
               {UID_STATS, bufs->stats, true},
               {UID_DO, bufs->d_o, grad},
               {UID_DQ, bufs->dq, grad},
               {UID_DK, bufs->dk, grad},
               {UID_DV, bufs->dv, grad},
               {UID_SUMS, bufs->sums, grad},
               {UID_DQ_SUMS, bufs->dq_sums, a->dq_sums},
               {UID_SCALE, &a->scale, true},
               {UID_LEAST, &a->least, true},
               {UID_WINDOW, &a->window, a->shape.window > 0},
               {UID_ONE, &a->one, grad}};
    int64_t uids[sizeof all / sizeof *all], n = 0;
    void *at[sizeof all / sizeof *all];
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].has) {
            uids[n] = all[i].uid;
            at[n++] = all[i].at;
        }
    *out = moe_cudnn_pack(&a->build, uids, at, n, bufs->workspace);
    MoeStatus st = a->build.st;
    a->build.st = NULL;
    return st;
}

MoeStatus moe_cudnn_attn_run(const MoeCudnnAttn *a, MoeCudnnHandle handle, MoeCudnnDesc pack) {
    return moe_cudnn_status(a->build.c->execute(handle, a->plan.desc, pack),
                            "cudnnBackendExecute of attention (%s)", moe_cudnn_form_name(a->form));
}
