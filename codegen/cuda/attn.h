/* What the two attention kinds share: the shape of an op, and the tiles of the device's templates (device/attn*.cuh). */
#ifndef MOE_CODEGEN_CUDA_ATTN_H
#define MOE_CODEGEN_CUDA_ATTN_H

#include "codegen/cuda/cuda.h"

#define MOE_CUDA_ATTN_MAX_DIM 512 /* of head_dim */

typedef struct {
    int64_t heads, kv_heads, head_dim, seq, window; /* window 0: none */
    int64_t shards, capacity;                       /* of the token segments; rows at most */
    float scale;
    MoeDtype dtype; /* of q, k, v, o and do */
    bool mma;       /* tensor cores (attn_mma.cuh), else attn_simt.cuh */
    int64_t padded; /* head_dim in shared memory, without what separates rows */
    int64_t stride; /* of rows in shared memory, elements */
} MoeCudaAttn;

/* MOE_E_INPUT where head_dim is above MOE_CUDA_ATTN_MAX_DIM. */
MoeStatus moe_cuda_attn_shape(const MoeOp *op, MoeCudaAttn *out);

/* A kernel of `heads` heads and tiles of `tile` rows. call: the function with its arguments after `<AttnShape<..>, `, which begins
 * with the other arguments of the template ("4, 64>(shared, ..)"). Adds it and its launch. */
typedef struct {
    const char *prefix, *function, *call;
    int threads;
    int64_t shared_bytes, blocks;
} MoeCudaAttnKernel;
void moe_cuda_attn_launch(MoeCudaTarget *t, const MoeCudaAttn *a, const MoeCudaAttnKernel *k,
                          const MoeBufRef *refs, size_t n, MoeLowered *out);

/* Notes on launch `first` of out that it and those behind it are the op, where a library could run it as well: bf16, heads of a
 * multiple of 8 columns up to 256, whole sequences. */
void moe_cuda_attn_note(const MoeCudaAttn *a, const MoeOp *op, size_t first, MoeLowered *out);

/* Blocks, one a task: tiles of `tile` rows of every sequence and head, `parts` of each. */
int64_t moe_cuda_attn_blocks(const MoeCudaAttn *a, int64_t heads, int64_t tile, int64_t parts);

#endif
