/* Causal attention as graphs of cuDNN, forward and backward: what device/attn.cuh computes, for sequences of equal length.
 *
 * q, o, do, dq: bf16 [batch * seq, heads * head_dim]; k, v, dk, dv: bf16 [batch * seq, kv_heads * head_dim]; query head h reads
 * key head h / (heads / kv_heads); window > 0: a query sees its last `window` keys, its own included. stats: f32 [batch, heads,
 * seq], the natural logarithm of the sum of e^(scale q.k): what the kernels of plans call lse, [batch * seq, heads]. */
#ifndef MOE_RUNTIME_CUDA_CUDNN_ATTN_H
#define MOE_RUNTIME_CUDA_CUDNN_ATTN_H

#include "runtime/cuda/cudnn_desc.h"

typedef struct {
    int64_t heads, kv_heads, head_dim, seq, window;
    float scale;
} MoeAttnShape;

/* The forms of a graph that are tried.
 * FORWARD   o and stats
 * WHOLE     gradient; dS of a whole pass over the keys is written down, dq is a product of it: repeatable, a workspace that goes
 *           by seq^2
 * ORDERED   gradient; dq is summed over tiles of keys in f32, in order, by engines that do so: repeatable, workspace by seq */
typedef enum {
    MOE_CUDNN_FORWARD,
    MOE_CUDNN_GRAD_WHOLE,
    MOE_CUDNN_GRAD_ORDERED,
    MOE_N_CUDNN_FORMS
} MoeCudnnForm;
const char *moe_cudnn_form_name(MoeCudnnForm f);

/* Addresses for a run: device memory, 16-byte aligned. NULL: not of this form. */
typedef struct {
    void *q, *k, *v, *o, *stats; /* forward writes o and stats */
    void *d_o, *dq, *dk, *dv;    /* gradient alone */
    void *sums,
        *dq_sums; /* gradient: f32 [batch, heads, seq]; ORDERED: f32 [batch, heads, seq, head_dim] */
    void *workspace; /* the plan's */
} MoeCudnnAttnBufs;

/* A graph and its plan. */
typedef struct {
    MoeCudnnBuild build;
    MoeAttnShape shape;
    MoeCudnnForm form;
    bool dq_sums; /* takes memory for f32 sums of dq */
    MoeCudnnPlan plan;
    float scale, least, window, one; /* numbers that the graph gets by value */
} MoeCudnnAttn;

/* A plan for `batch` sequences. capability: of the device, 90 for sm_90 (engines of ORDERED are named by it). MOE_E_INPUT: cuDNN
 * does not take the form. The caller frees *out in any case. */
MoeStatus moe_cudnn_attn_plan(const MoeCudnn *c, const MoeAttnShape *shape, MoeCudnnForm form,
                              int64_t batch, int capability, MoeCudnnPlace where,
                              MoeCudnnAttn *out);
void moe_cudnn_attn_free(MoeCudnnAttn *a);
/* A list of the addresses of a run, kept to the end of *a, which stays where it is from then on. */
MoeStatus moe_cudnn_attn_bind(MoeCudnnAttn *a, const MoeCudnnAttnBufs *bufs, MoeCudnnDesc *out);
/* Starts the run on the handle's stream. */
MoeStatus moe_cudnn_attn_run(const MoeCudnnAttn *a, MoeCudnnHandle handle, MoeCudnnDesc pack);

#endif
