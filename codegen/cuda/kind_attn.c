/* attention: one kernel, a block for each tile of queries of a head (device/attn_mma.cuh, attn_simt.cuh). Out: o, lse. */
#include "base/str.h"
#include "codegen/bufs.h"
#include "codegen/cuda/attn.h"

enum { BUF_Q, BUF_K, BUF_V, BUF_SEG, BUF_O, BUF_LSE, N_BUFS };

/* Tiles by head_dim: the largest that spill no register; ptxas needs more of them for Blackwell. */
static const struct {
    int64_t max_dim;
    int mt, warps;         /* 16-row tiles of queries a warp, warps */
    int keys, keys_sm_100; /* of a step */
} mma_tiles[] = {{64, 2, 4, 64, 64}, {128, 2, 4, 48, 32}, {256, 1, 4, 32, 32}};
/* What fits in 163 KiB of shared memory. */
static const struct {
    int64_t max_dim;
    int queries, keys;
} simt_tiles[] = {{128, 64, 64}, {256, 32, 32}, {MOE_CUDA_ATTN_MAX_DIM, 16, 32}};

#define ARGS                                                                                       \
    "(shared, buf<T>(a, %d), buf<T>(a, %d), buf<T>(a, %d), buf<i32>(a, %d), buf<T>(a, %d), "       \
    "buf<float>(a, %d), %af)"
#define ARG_VALUES(a) BUF_Q, BUF_K, BUF_V, BUF_SEG, BUF_O, BUF_LSE, (double)(a)->scale

static void mma_kernel(const MoeCudaTarget *t, const MoeCudaAttn *a, MoeStr *call,
                       MoeCudaAttnKernel *k) {
    int i = 0;
    while (a->head_dim > mma_tiles[i].max_dim)
        i++;
    int keys = t->arch->major < 10 ? mma_tiles[i].keys : mma_tiles[i].keys_sm_100;
    int64_t queries = (int64_t)mma_tiles[i].mt * mma_tiles[i].warps * 16;
    moe_str_printf(call, "%d, %d, %d, %lld>" ARGS, mma_tiles[i].mt, mma_tiles[i].warps, keys,
                   (long long)a->padded, ARG_VALUES(a));
    k->function = "attn_forward_mma";
    k->threads = mma_tiles[i].warps * 32;
    k->shared_bytes = (queries + 2 * keys) * a->stride * 2;
    k->blocks = moe_cuda_attn_blocks(a, a->heads, queries, 1);
}

static void simt_kernel(const MoeCudaAttn *a, MoeStr *call, MoeCudaAttnKernel *k) {
    int i = 0;
    while (a->head_dim > simt_tiles[i].max_dim)
        i++;
    int64_t queries = simt_tiles[i].queries, keys = simt_tiles[i].keys;
    moe_str_printf(call, "%lld, %lld>" ARGS, (long long)queries, (long long)keys, ARG_VALUES(a));
    k->function = "attn_forward_simt";
    k->threads = 256;
    k->shared_bytes = ((queries + keys) * a->stride + queries * (keys + 4)) * 4;
    k->blocks = moe_cuda_attn_blocks(a, a->heads, queries, 1);
}

int64_t moe_cuda_attn_workspace(MoeCudaTarget *t, const MoeGroup *g) {
    (void)t;
    (void)g;
    return 0;
}

MoeStatus moe_cuda_attn_lower(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out) {
    const MoeOp *op = g->ops[0];
    MoeCudaAttn a;
    MoeStr call = {0};
    MoeCudaAttnKernel k = {.prefix = "attn"};
    MOE_TRY(moe_cuda_attn_shape(op, &a));
    if (a.mma)
        mma_kernel(t, &a, &call, &k);
    else
        simt_kernel(&a, &call, &k);
    k.call = moe_str_c(&call);
    MoeBufRef refs[N_BUFS] = {[BUF_Q] = moe_ref(op->operands[0]),
                              [BUF_K] = moe_ref(op->operands[1]),
                              [BUF_V] = moe_ref(op->operands[2]),
                              [BUF_SEG] = moe_ref(moe_rows_seg(&op->operands[0]->type)),
                              [BUF_O] = moe_ref(op->results[0]),
                              [BUF_LSE] = moe_ref(op->results[1])};
    moe_cuda_attn_launch(t, &a, &k, refs, N_BUFS, out);
    moe_cuda_attn_note(&a, op, out->n_launches - 1, out);
    moe_str_free(&call);
    return NULL;
}
