/* The shared parts of the attention kinds: see attn.h. */
#include "codegen/cuda/attn.h"

#include "base/arena.h"
#include "base/assert.h"
#include "base/str.h"
#include "codegen/bufs.h"

#define MMA_MAX_DIM 256 /* a block's accumulators hold no wider head */
#define MAX_BLOCKS  ((int64_t)1 << 30)

static int64_t round_up(int64_t v, int64_t unit) {
    return (v + unit - 1) / unit * unit;
}

MoeStatus moe_cuda_attn_shape(const MoeOp *op, MoeCudaAttn *out) {
    const MoeType *q = &op->operands[0]->type;
    const MoeValue *seg = moe_rows_seg(q);
    MOE_ASSERT(seg, "attention: rows must be ragged over the token segments");
    MoeCudaAttn a = {.heads = moe_attr_i(op, "heads"),
                     .kv_heads = moe_attr_i(op, "kv_heads"),
                     .head_dim = moe_attr_i(op, "head_dim"),
                     .seq = moe_attr_i(op, "seq"),
                     .window = moe_attr_i(op, "window"),
                     .scale = (float)moe_attr_f(op, "scale"),
                     .dtype = q->dtype,
                     .shards = seg->type.groups * seg->type.shards,
                     .capacity = q->dims[0].size};
    if (a.head_dim > MOE_CUDA_ATTN_MAX_DIM)
        return moe_error(
            MOE_E_INPUT, "%s: head_dim %lld; CUDA targets have kernels for heads of up to %d",
            moe_op_info(op->opcode)->name, (long long)a.head_dim, MOE_CUDA_ATTN_MAX_DIM);
    /* The maximum of the tensor cores' softmax is taken before scaling. */
    a.mma = a.dtype == MOE_BF16 && a.head_dim <= MMA_MAX_DIM && a.scale > 0;
    a.padded = round_up(a.head_dim, a.mma && a.head_dim > 128 ? 32 : 16);
    a.stride = a.padded + (a.mma ? 8 : 4);
    *out = a;
    return NULL;
}

void moe_cuda_attn_launch(MoeCudaTarget *t, const MoeCudaAttn *a, const MoeCudaAttnKernel *k,
                          const MoeBufRef *refs, size_t n, MoeLowered *out) {
    MoeStr body = {0}, note = {0};
    moe_str_printf(&body, "using namespace moe;\ntypedef %s T;\n",
                   a->dtype == MOE_BF16 ? "bf16" : "float");
    if (k->shared_bytes)
        moe_str_append(&body, "MOE_SHARED(shared);\n");
    moe_str_printf(&body, "%s<AttnShape<%lld, %lld, %lld, %lld, %lld, %lld>, %s;\n", k->function,
                   (long long)a->heads, (long long)a->kv_heads, (long long)a->head_dim,
                   (long long)a->seq, (long long)a->window, (long long)a->shards, k->call);
    moe_str_printf(&note, "%s, %lld heads over %lld of %lld, sequences of %lld",
                   moe_dtype_name(a->dtype), (long long)a->heads, (long long)a->kv_heads,
                   (long long)a->head_dim, (long long)a->seq);
    if (a->window)
        moe_str_printf(&note, ", the last %lld keys", (long long)a->window);
    const char *name = moe_cuda_kernel(
        t, &(MoeCudaKernelText){
               .prefix = k->prefix,
               .note = moe_str_c(&note),
               .n_bufs = (int)n,
               .threads = k->threads,
               .min_blocks = 1, /* unsaid, ptxas spills for occupancy */
               .shared_bytes = k->shared_bytes,
               .parts = 1u << MOE_CUDA_PART_attn |
                        1u << (a->mma ? MOE_CUDA_PART_attn_mma : MOE_CUDA_PART_attn_simt),
               .body = moe_str_c(&body)});
    moe_str_free(&body);
    moe_str_free(&note);
    moe_cuda_launch(t, out, name, k->blocks, refs, n);
}

int64_t moe_cuda_attn_blocks(const MoeCudaAttn *a, int64_t heads, int64_t tile, int64_t parts) {
    int64_t sequences = round_up(a->capacity, a->seq) / a->seq;
    int64_t n = sequences * heads * (round_up(a->seq, tile) / tile) * parts;
    return n < 1 ? 1 : n < MAX_BLOCKS ? n : MAX_BLOCKS;
}

void moe_cuda_attn_note(const MoeCudaAttn *a, const MoeOp *op, size_t first, MoeLowered *out) {
    bool grad = op->opcode == MOE_OP_ATTENTION_GRAD;
    if (!a->mma || a->head_dim % 8 || a->capacity < a->seq || a->capacity % a->seq)
        return;
    MoeAttention n = {.grad = grad,
                      .launches = (int)(out->n_launches - first),
                      .heads = a->heads,
                      .kv_heads = a->kv_heads,
                      .head_dim = a->head_dim,
                      .seq = a->seq,
                      .window = a->window < a->seq ? a->window : 0, /* wider than all: none */
                      .rows = a->capacity,
                      .scale = (double)a->scale};
    int k = 0;
    for (int i = 0; i < 3; i++) /* q, k, v */
        n.bufs[k++] = moe_ref(op->operands[i]);
    for (int i = 0; i < 2; i++) /* o, lse */
        n.bufs[k++] = moe_ref(grad ? op->operands[3 + i] : op->results[i]);
    n.bufs[k++] = moe_ref(moe_rows_seg(&op->operands[0]->type));
    if (grad)
        n.bufs[k++] = moe_ref(op->operands[5]);
    for (int i = 0; i < 3 && grad; i++)
        n.bufs[k++] = moe_ref(op->results[i]);
    out->launches[first].attention = moe_arena_copy(out->arena, &n, sizeof n);
}
