/* linear_cross_entropy, its gradient, and both over a part of the vocabulary, by chunks of the vocabulary (device/xent.cuh): there is no
 * tensor of T x N, not even for the gradient.
 *
 *   table          the chunks, so that one kernel serves all of them
 *   first pass     for each chunk: the product with its logits' sums as a tail, then xent_merge into each row's; at the end nll and
 *                  lse, or what cross_entropy_join needs. A part's gradient is given lse and has no first pass
 *   second pass    for each chunk: the product again with dlogits as its tail; dh's chains go on over the chunk's columns
 *                  from where they were; the chunk's rows of dw, whole, by the tree over all rows
 *
 * The order of every sum follows from N (blocks of 1024 columns), k and the rows' shards: not from how wide chunks are.
 * Workspace: what a chunk leaves (MAX_CHUNK bytes, or 1024 columns where those are more; at most 8192 columns), 16 bytes a row, the table,
 * and what waits in dw's trees. */
#include "base/assert.h"
#include "base/str.h"
#include "codegen/bufs.h"
#include "codegen/cuda/gemm_hopper.h"
#include "codegen/wgrad_group.h"

#define MAX_CHUNK ((int64_t)256 << 20)
enum { MAX_WIDTH = 8192 }; /* columns of a chunk that fill a device with few rows, too */
enum { BLOCK = 1024, GROUP = 8, ENTRY_BYTES = 64, THREADS = 256 }; /* as in xent.cuh */

typedef struct {
    const MoeOp *op;
    bool first_pass, grad, part; /* part: of a vocabulary; then labels may be elsewhere */
    MoeDtype dtype;
    int64_t n, c, width, n_chunks,
        ld; /* h (T, c), w (n, c); columns of a chunk; between rows of what it leaves */
    const MoeValue *h, *w, *labels, *seg;
    MoeRowSpace rows;
    MoeCudaGemm logits, dh;
    MoeCudaWgrad dw;
    int64_t table, state, lse, left, stack, bytes; /* offsets in the workspace */
} Xent;

static int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

static int64_t round_up(int64_t v, int64_t unit) {
    return ceil_div(v, unit) * unit;
}

static int64_t take(Xent *x, int64_t bytes) {
    int64_t at = x->bytes;
    x->bytes = round_up(at + bytes, 256);
    return at;
}

/* Columns of a chunk: whole blocks, or all. */
static int64_t chunk_width(const Xent *x) {
    int64_t rows = x->rows.capacity > 0 ? x->rows.capacity : 1;
    int64_t width = MAX_CHUNK / (rows * moe_dtype_bytes(x->dtype)) / BLOCK * BLOCK;
    width = width > BLOCK ? width < MAX_WIDTH ? width : MAX_WIDTH : BLOCK;
    width = width < x->n ? width : x->n;
    return width > 0 ? width : 1; /* lower refuses an empty vocabulary */
}

static void analyse(MoeCudaTarget *t, const MoeGroup *g, Xent *x) {
    const MoeOp *op = g->ops[0];
    MOE_ASSERT(g->n_ops == 1, "xent: a group of %zu ops", g->n_ops);
    *x = (Xent){.op = op,
                .first_pass = op->opcode != MOE_OP_LINEAR_CROSS_ENTROPY_PART_GRAD,
                .grad = op->opcode == MOE_OP_LINEAR_CROSS_ENTROPY_GRAD ||
                        op->opcode == MOE_OP_LINEAR_CROSS_ENTROPY_PART_GRAD,
                .part = op->opcode == MOE_OP_LINEAR_CROSS_ENTROPY_PART ||
                        op->opcode == MOE_OP_LINEAR_CROSS_ENTROPY_PART_GRAD,
                .h = op->operands[0],
                .w = op->operands[1],
                .labels = op->operands[2]};
    const MoeType *h = &x->h->type;
    x->dtype = h->dtype;
    x->n = x->w->type.dims[0].size;
    x->c = x->w->type.dims[1].size;
    x->seg = moe_rows_seg(h);
    x->rows = moe_row_space(h, false, -1);
    x->width = chunk_width(x);
    x->n_chunks = ceil_div(x->n, x->width);
    x->ld = round_up(x->width, GROUP);
    x->logits = (MoeCudaGemm){.dtype = x->dtype,
                              .rows = x->rows,
                              .n = x->ld,
                              .k = x->c,
                              .lda = x->c,
                              .ldb = x->c,
                              .products = 1,
                              .tb = true,
                              .maps = true};
    /* Columns past a chunk's end, up to the next multiple of 8, are zeros: rows of dlogits are whole. */
    x->dh = (MoeCudaGemm){.dtype = x->dtype,
                          .rows = x->rows,
                          .n = x->c,
                          .k = x->ld,
                          .lda = x->ld,
                          .ldb = x->c,
                          .products = 1,
                          .maps = true};
    x->dw = (MoeCudaWgrad){.dtype = x->dtype,
                           .rows = x->rows,
                           .results = 1,
                           .leaf_rows = moe_wgrad_leaf_rows(g->graph),
                           .n = x->ld,
                           .k = x->c,
                           .ld_dy = x->ld,
                           .ld_x = x->c,
                           .maps = true};
    int64_t rows = x->rows.capacity;
    x->table = take(x, x->n_chunks * ENTRY_BYTES);
    x->state = take(x, rows * 3 * 4);
    x->lse = take(x, rows * 4);
    int64_t stats = x->first_pass ? rows * (x->ld / GROUP) * 8 : 0;
    int64_t dlogits = x->grad ? rows * x->ld * moe_dtype_bytes(x->dtype) : 0;
    x->left = take(x, stats > dlogits ? stats : dlogits);
    MoeCudaProductPlan plan = {.stack_bytes = 0};
    if (x->grad)
        moe_cuda_wgrad_plan(t, &x->dw, &plan);
    x->stack = take(x, plan.stack_bytes);
}

int64_t moe_cuda_xent_workspace(MoeCudaTarget *t, const MoeGroup *g) {
    if (g->ops[0]->opcode == MOE_OP_CROSS_ENTROPY_JOIN)
        return 0;
    Xent x;
    analyse(t, g, &x);
    return x.bytes;
}

/* ---- kernels ---- */

/* A kernel while it is written. */
typedef struct {
    MoeCudaTarget *t;
    const char *note;
    MoeCudaRefs refs;
    MoeStr body;
} Kernel;

/* A buffer as an expression. */
static const char *pointer(Kernel *k, const char *type, MoeBufRef ref) {
    return moe_arena_printf(k->t->arena, "buf<%s>(a, %d)", type, moe_cuda_add_ref(&k->refs, ref));
}

/* The buffer that pointer() gave last. */
static int last_buffer(const Kernel *k) {
    return k->refs.n - 1;
}

static Kernel begin(MoeCudaTarget *t, const Xent *x) {
    Kernel k = {.t = t};
    if (x->op)
        k.note = moe_arena_printf(
            t->arena, "loss head: %s, %lld columns, vocabulary of %lld in chunks of %lld",
            moe_dtype_name(x->dtype), (long long)x->c, (long long)x->n, (long long)x->width);
    moe_str_append(&k.body, "using namespace moe;\n");
    return k;
}

/* ... that works on live rows: declares `rows`; returns the table or NULL. */
static const char *declare_rows(Kernel *k, const Xent *x) {
    const char *table = x->seg ? pointer(k, "const i32", moe_ref(x->seg)) : NULL;
    if (table)
        moe_str_printf(&k->body, "const i64 rows = %s[%lld];\n", table, (long long)x->rows.shards);
    else
        moe_str_printf(&k->body, "const i64 rows = %lldLL;\n", (long long)x->rows.capacity);
    return table;
}

/* ... and on chunk i: declares `chunk`. */
static void declare_chunk(Kernel *k, const Xent *x, int64_t i) {
    moe_str_printf(&k->body, "const XentChunk chunk = xent_chunk(%s);\n",
                   pointer(k, "const i32", moe_ref_work(x->table + i * ENTRY_BYTES)));
}

static void declare_labels(Kernel *k, const Xent *x) {
    const char *labels = pointer(k, "const i32", moe_ref(x->labels));
    moe_str_printf(&k->body, "const XentLabels labels = ");
    if (x->part)
        moe_str_printf(&k->body, "xent_part(%s, %lld, %s);\n", labels, (long long)x->n,
                       pointer(k, "const i32", moe_ref(x->op->operands[3])));
    else
        moe_str_printf(&k->body, "xent_whole(%s, %lld);\n", labels, (long long)x->n);
}

static void declare_state(Kernel *k, const Xent *x) {
    moe_str_printf(&k->body,
                   "float *const sums = %s;\n"
                   "const XentState state = {sums, sums + %lldLL, sums + %lldLL};\n",
                   pointer(k, "float", moe_ref_work(x->state)), (long long)x->rows.capacity,
                   (long long)(2 * x->rows.capacity));
}

static void finish(Kernel *k, const char *prefix, const MoeCudaProductPlan *plan,
                   const MoeTensorMap *maps, MoeLowered *out) {
    moe_cuda_product_launch(k->t, plan,
                            &(MoeCudaProductKernel){.prefix = prefix,
                                                    .note = k->note,
                                                    .parts = 1u << MOE_CUDA_PART_math |
                                                             1u << MOE_CUDA_PART_gemm |
                                                             1u << MOE_CUDA_PART_xent,
                                                    .body = &k->body,
                                                    .refs = &k->refs,
                                                    .maps = maps},
                            out);
}

/* ... without a product: a thread for each of `items`. */
static void finish_plain(Kernel *k, const char *prefix, int64_t items, MoeLowered *out) {
    MoeCudaProductPlan plan = {.threads = THREADS,
                               .min_blocks = 1,
                               .blocks = moe_cuda_blocks(k->t, ceil_div(items, THREADS), 8)};
    finish(k, prefix, &plan, NULL, out);
}

static void launch_table(MoeCudaTarget *t, const Xent *x, MoeLowered *out) {
    Kernel k = begin(t, x);
    moe_str_printf(&k.body, "xent_table(%s, %lld, %lld);\n",
                   pointer(&k, "i32", moe_ref_work(x->table)), (long long)x->n,
                   (long long)x->width);
    finish_plain(&k, "xent_table", 1, out);
}

/* The maps of a product of a and w: w's is one of all its rows. */
static void product_maps(const Xent *x, const MoeCudaGemm *g, const MoeCudaProductPlan *plan, int a,
                         int w, MoeTensorMap maps[MOE_CUDA_MAX_MAPS]) {
    if (!plan->n_maps)
        return;
    moe_cuda_hopper_maps(g, plan, a, &w, maps);
    maps[plan->n_maps - 1].dims[1] = x->n;
}

/* Rows of w from the chunk's first one on. */
static const char *chunk_of_w(Kernel *k, const Xent *x, const char *type) {
    return moe_arena_printf(k->t->arena, "%s + (i64)chunk.first * %lld",
                            pointer(k, type, moe_ref(x->w)), (long long)x->c);
}

/* The product of a chunk's logits with that tail. */
static void launch_logits(Kernel *k, const Xent *x, const char *table, const char *prefix,
                          const char *tail, MoeLowered *out) {
    const char *type = x->dtype == MOE_BF16 ? "bf16" : "float";
    const char *h = pointer(k, type, moe_ref(x->h));
    int at_h = last_buffer(k);
    const char *w = chunk_of_w(k, x, type);
    MoeCudaProductPlan plan;
    MoeTensorMap maps[MOE_CUDA_MAX_MAPS];
    moe_cuda_gemm_plan(k->t, &x->logits, &plan);
    product_maps(x, &x->logits, &plan, at_h, last_buffer(k), maps);
    moe_cuda_gemm_text(&x->logits, &(MoeCudaGemmOperands){.a = h, .b = {w}, .table = table},
                       &k->body);
    moe_str_printf(&k->body, "g.n = chunk.n, g.b_first = chunk.first;\n%s(g, %s%s);\n", plan.call,
                   plan.maps, tail);
    finish(k, prefix, &plan, maps, out);
}

static void launch_stats(MoeCudaTarget *t, const Xent *x, int64_t i, MoeLowered *out) {
    Kernel k = begin(t, x);
    const char *table = declare_rows(&k, x);
    declare_chunk(&k, x, i);
    declare_labels(&k, x);
    declare_state(&k, x);
    launch_logits(
        &k, x, table, "xent_logits",
        moe_arena_printf(t->arena, "XentStatsTail{labels, %s, %lld, state.own, chunk.first}",
                         pointer(&k, "Words2", moe_ref_work(x->left)), (long long)(x->ld / GROUP)),
        out);
}

static void launch_merge(MoeCudaTarget *t, const Xent *x, int64_t i, MoeLowered *out) {
    Kernel k = begin(t, x);
    declare_rows(&k, x);
    declare_chunk(&k, x, i);
    declare_state(&k, x);
    moe_str_printf(&k.body, "xent_merge(%s, %lld, chunk.n, rows, state, chunk.first == 0);\n",
                   pointer(&k, "const Words2", moe_ref_work(x->left)), (long long)(x->ld / GROUP));
    finish_plain(&k, "xent_merge", x->rows.capacity * 32, out);
}

/* nll and lse, or a part's sums. */
static void launch_sums(MoeCudaTarget *t, const Xent *x, MoeLowered *out) {
    Kernel k = begin(t, x);
    const char *to = pointer(&k, "float", moe_ref(x->op->results[0]));
    int64_t parts = x->part ? moe_attr_i(x->op, "parts") : 1;
    declare_rows(&k, x);
    declare_labels(&k, x);
    declare_state(&k, x);
    if (x->part)
        moe_str_printf(&k.body, "xent_sums(state, labels, rows, %s, %lld, %s);\n",
                       pointer(&k, "const i32", moe_ref(x->op->operands[3])), (long long)parts, to);
    else
        moe_str_printf(&k.body, "xent_loss(state, labels, rows, %s, %s);\n", to,
                       x->grad ? pointer(&k, "float", moe_ref_work(x->lse)) : "nullptr");
    finish_plain(&k, x->part ? "xent_sums" : "xent_loss", x->rows.capacity * parts, out);
}

static void launch_dlogits(MoeCudaTarget *t, const Xent *x, int64_t i, MoeLowered *out) {
    Kernel k = begin(t, x);
    const char *table = declare_rows(&k, x), *type = x->dtype == MOE_BF16 ? "bf16" : "float";
    declare_chunk(&k, x, i);
    declare_labels(&k, x);
    const char *lse =
        pointer(&k, "const float", x->part ? moe_ref(x->op->operands[4]) : moe_ref_work(x->lse));
    const char *dnll = pointer(&k, "const float", moe_ref(x->op->operands[x->part ? 5 : 3]));
    launch_logits(
        &k, x, table, "xent_dlogits",
        moe_arena_printf(t->arena, "XentGradTail<%s>{labels, %s, %s, %s, %lld, chunk.first}", type,
                         lse, dnll, pointer(&k, type, moe_ref_work(x->left)), (long long)x->ld),
        out);
}

static void launch_dh(MoeCudaTarget *t, const Xent *x, int64_t i, MoeLowered *out) {
    Kernel k = begin(t, x);
    const char *type = x->dtype == MOE_BF16 ? "bf16" : "float", *table = declare_rows(&k, x);
    declare_chunk(&k, x, i);
    const char *dh = pointer(&k, "float", moe_ref(x->op->results[x->part ? 0 : 1]));
    const char *dlogits = pointer(&k, type, moe_ref_work(x->left));
    int at_dlogits = last_buffer(&k);
    const char *w = chunk_of_w(&k, x, type);
    MoeCudaProductPlan plan;
    MoeTensorMap maps[MOE_CUDA_MAX_MAPS];
    moe_cuda_gemm_plan(t, &x->dh, &plan);
    product_maps(x, &x->dh, &plan, at_dlogits, last_buffer(&k), maps);
    moe_cuda_gemm_text(&x->dh, &(MoeCudaGemmOperands){.a = dlogits, .b = {w}, .table = table},
                       &k.body);
    moe_str_printf(&k.body,
                   "g.k = chunk.n, g.b_first = chunk.first;\n"
                   "g.start = chunk.first ? %s : nullptr;\n"
                   "%s(g, %sStoreTail<%s>{%s, %lld});\n",
                   dh, plan.call, plan.maps, x->c % GROUP ? "false" : "true", dh, (long long)x->c);
    finish(&k, "xent_dh", &plan, maps, out);
}

static void launch_dw(MoeCudaTarget *t, const Xent *x, int64_t i, MoeLowered *out) {
    Kernel k = begin(t, x);
    const char *type = x->dtype == MOE_BF16 ? "bf16" : "float", *table = declare_rows(&k, x);
    declare_chunk(&k, x, i);
    MoeCudaProductPlan plan;
    MoeTensorMap maps[MOE_CUDA_MAX_MAPS];
    moe_cuda_wgrad_plan(t, &x->dw, &plan);
    MoeCudaWgradOperands o = {
        .dy = pointer(&k, type, moe_ref_work(x->left)), .table = table, .stack = "nullptr"};
    int at_dy = last_buffer(&k);
    o.x = pointer(&k, type, moe_ref(x->h));
    if (plan.n_maps)
        moe_cuda_hopper_wgrad_maps(&x->dw, at_dy, last_buffer(&k), maps);
    if (plan.stack_bytes)
        o.stack = pointer(&k, "float", moe_ref_work(x->stack));
    moe_cuda_wgrad_text(&x->dw, &plan, &o, &k.body);
    moe_str_printf(&k.body,
                   "w.n = chunk.n;\n%s(w, 1, %sWgradGroups{%s + (i64)chunk.first * %lld, 0});\n",
                   plan.call, plan.maps,
                   pointer(&k, "float", moe_ref(x->op->results[x->part ? 1 : 2])), (long long)x->c);
    finish(&k, "xent_dw", &plan, maps, out);
}

/* ---- groups ---- */

static void lower_join(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out) {
    const MoeOp *op = g->ops[0];
    const MoeType *sums = &op->operands[0]->type;
    Xent x = {.seg = moe_rows_seg(sums), .rows = moe_row_space(sums, false, -1)};
    Kernel k = begin(t, &x);
    const char *to[2] = {"nullptr", "nullptr"};
    for (size_t i = 0; i < g->n_outputs; i++)
        for (int r = 0; r < 2; r++)
            if (g->outputs[i] == op->results[r])
                to[r] = pointer(&k, "float", moe_ref(op->results[r]));
    declare_rows(&k, &x);
    moe_str_printf(&k.body, "xent_join(%s, %s, rows, %lld, %s, %s);\n",
                   pointer(&k, "const float", moe_ref(op->operands[0])),
                   pointer(&k, "const i32", moe_ref(op->operands[1])),
                   (long long)moe_type_cols(sums) / 3, to[0], to[1]);
    finish_plain(&k, "xent_join", x.rows.capacity, out);
}

MoeStatus moe_cuda_xent_lower(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out) {
    if (g->ops[0]->opcode == MOE_OP_CROSS_ENTROPY_JOIN) {
        lower_join(t, g, out);
        return NULL;
    }
    Xent x;
    analyse(t, g, &x);
    if (x.n == 0 || x.c == 0)
        return moe_error(MOE_E_INPUT, "%s: an extent of zero (N = %lld, C = %lld)",
                         moe_op_info(x.op->opcode)->name, (long long)x.n, (long long)x.c);
    launch_table(t, &x, out);
    if (x.first_pass) {
        for (int64_t i = 0; i < x.n_chunks; i++) {
            launch_stats(t, &x, i, out);
            launch_merge(t, &x, i, out);
        }
        launch_sums(t, &x, out);
    }
    for (int64_t i = 0; x.grad && i < x.n_chunks; i++) {
        launch_dlogits(t, &x, i, out);
        launch_dh(t, &x, i, out);
        launch_dw(t, &x, i, out);
    }
    return NULL;
}
