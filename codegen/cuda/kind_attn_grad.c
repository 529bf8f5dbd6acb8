/* attention_grad: row sums of do * o, then dq by a block for each tile of queries, and dk, dv by one for each tile of keys: no block adds
 * to another's result. Workspace: the sums and the log-sum-exp, head by head, f32 [2][heads][rows]. */
#include "base/str.h"
#include "codegen/bufs.h"
#include "codegen/cuda/attn.h"

enum { DQ_Q, DQ_K, DQ_V, DQ_DO, DQ_SEG, DQ_DELTA, DQ_LSE, DQ_OUT, N_DQ, DKV_V = N_DQ, N_DKV };

/* Tiles by head_dim, as in kind_attn.c; parts: of the columns of dk and dv, a block each. */
static const struct {
    int64_t max_dim;
    int mt, warps, step;
} dq_tiles[] = {{64, 2, 4, 48}, {128, 2, 4, 32}, {256, 1, 4, 32}};
static const struct {
    int64_t max_dim;
    int mt, warps, step, step_sm_100, parts;
} dkv_tiles[] = {{64, 2, 4, 32, 16, 1}, {128, 1, 4, 64, 48, 1}, {256, 1, 4, 32, 32, 2}};
static const struct {
    int64_t max_dim;
    int rows; /* of both sides */
} simt_tiles[] = {{64, 64}, {256, 32}, {MOE_CUDA_ATTN_MAX_DIM, 16}};

typedef struct {
    int64_t lse, bytes; /* offset in the workspace, after the row sums; all of it */
} Work;

static Work work_of(const MoeCudaAttn *a) {
    int64_t bytes = (a->heads * a->capacity * 4 + 255) / 256 * 256;
    return (Work){bytes, 2 * bytes};
}

int64_t moe_cuda_attn_grad_workspace(MoeCudaTarget *t, const MoeGroup *g) {
    MoeCudaAttn a;
    MoeStatus st = moe_cuda_attn_shape(g->ops[0], &a);
    (void)t;
    if (st) { /* lower says it */
        moe_status_free(st);
        return 0;
    }
    return work_of(&a).bytes;
}

static void launch_sums(MoeCudaTarget *t, const MoeCudaAttn *a, const MoeOp *op, MoeLowered *out) {
    enum { THREADS = 256, PER_BLOCK = THREADS / 8 };
    MoeStr call = {0};
    /* The tensor cores' softmax is one of powers of two. */
    moe_str_printf(&call,
                   "T>(buf<T>(a, 0), buf<T>(a, 1), buf<float>(a, 2), buf<i32>(a, 3), "
                   "buf<float>(a, 4), buf<float>(a, 5), %lld, %s)",
                   (long long)a->capacity, a->mma ? "MOE_LOG2_E" : "1.0f");
    MoeBufRef refs[] = {moe_ref(op->operands[3]), moe_ref(op->operands[5]),
                        moe_ref(op->operands[4]), moe_ref(moe_rows_seg(&op->operands[0]->type)),
                        moe_ref_work(0),          moe_ref_work(work_of(a).lse)};
    int64_t tasks = (a->capacity * a->heads + PER_BLOCK - 1) / PER_BLOCK;
    moe_cuda_attn_launch(t, a,
                         &(MoeCudaAttnKernel){.prefix = "attn_sums",
                                              .function = "attn_row_sums",
                                              .call = moe_str_c(&call),
                                              .threads = THREADS,
                                              .blocks = moe_cuda_blocks(t, tasks, 8)},
                         refs, sizeof refs / sizeof refs[0], out);
    moe_str_free(&call);
}

/* The arguments of dq (dkv false) or of dk and dv. */
static void append_args(const MoeCudaAttn *a, bool dkv, MoeStr *call) {
    moe_str_append(call, "(shared");
    for (int i = 0; i < (dkv ? N_DKV : N_DQ); i++)
        moe_str_printf(call, ", buf<%s>(a, %d)",
                       i <= DQ_DO    ? "T"
                       : i == DQ_SEG ? "i32"
                                     : "float",
                       i);
    moe_str_printf(call, ", %lld, %af)", (long long)a->capacity, (double)a->scale);
}

static void mma_kernel(const MoeCudaTarget *t, const MoeCudaAttn *a, bool dkv, MoeStr *call,
                       MoeCudaAttnKernel *k) {
    int i = 0;
    while (a->head_dim > dq_tiles[i].max_dim)
        i++;
    int mt = dkv ? dkv_tiles[i].mt : dq_tiles[i].mt, step = dq_tiles[i].step;
    if (dkv)
        step = t->arch->major < 10 ? dkv_tiles[i].step : dkv_tiles[i].step_sm_100;
    int warps = dkv ? dkv_tiles[i].warps : dq_tiles[i].warps, parts = dkv ? dkv_tiles[i].parts : 1;
    int64_t tile = (int64_t)mt * warps * 16;
    moe_str_printf(call, "%d, %d, %d, %lld>", mt, warps, step, (long long)a->padded / parts);
    k->function = dkv ? "attn_dkv_mma" : "attn_dq_mma";
    k->threads = warps * 32;
    k->shared_bytes = (2 * tile + 4 * step) * a->stride * 2 + (dkv ? 4 * step * 4 : 0);
    k->blocks = moe_cuda_attn_blocks(a, dkv ? a->kv_heads : a->heads, tile, parts);
}

static void simt_kernel(const MoeCudaAttn *a, bool dkv, MoeStr *call, MoeCudaAttnKernel *k) {
    int i = 0;
    while (a->head_dim > simt_tiles[i].max_dim)
        i++;
    int64_t rows = simt_tiles[i].rows;
    moe_str_printf(call, "%lld>", (long long)rows);
    k->function = dkv ? "attn_dkv_simt" : "attn_dq_simt";
    k->threads = 256;
    k->shared_bytes = (4 * rows * a->stride + 2 * rows * (rows + 4)) * 4;
    k->blocks = moe_cuda_attn_blocks(a, dkv ? a->kv_heads : a->heads, rows, 1);
}

static void launch_grad(MoeCudaTarget *t, const MoeCudaAttn *a, const MoeOp *op, bool dkv,
                        MoeLowered *out) {
    MoeStr call = {0};
    MoeCudaAttnKernel k = {.prefix = dkv ? "attn_dkv" : "attn_dq"};
    if (a->mma)
        mma_kernel(t, a, dkv, &call, &k);
    else
        simt_kernel(a, dkv, &call, &k);
    append_args(a, dkv, &call);
    k.call = moe_str_c(&call);
    MoeBufRef refs[N_DKV] = {[DQ_Q] = moe_ref(op->operands[0]),
                             [DQ_K] = moe_ref(op->operands[1]),
                             [DQ_V] = moe_ref(op->operands[2]),
                             [DQ_DO] = moe_ref(op->operands[5]),
                             [DQ_SEG] = moe_ref(moe_rows_seg(&op->operands[0]->type)),
                             [DQ_DELTA] = moe_ref_work(0),
                             [DQ_LSE] = moe_ref_work(work_of(a).lse),
                             [DQ_OUT] = moe_ref(op->results[dkv ? 1 : 0]),
                             [DKV_V] = moe_ref(op->results[2])};
    moe_cuda_attn_launch(t, a, &k, refs, dkv ? N_DKV : N_DQ, out);
    moe_str_free(&call);
}

MoeStatus moe_cuda_attn_grad_lower(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out) {
    const MoeOp *op = g->ops[0];
    const size_t first = out->n_launches;
    MoeCudaAttn a;
    MOE_TRY(moe_cuda_attn_shape(op, &a));
    launch_sums(t, &a, op, out);
    launch_grad(t, &a, op, false, out);
    launch_grad(t, &a, op, true, out);
    moe_cuda_attn_note(&a, op, first, out);
    return NULL;
}
