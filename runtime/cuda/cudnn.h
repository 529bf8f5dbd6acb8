/* Attention of a GPU by cuDNN (docs/GPU.md, "Attention"): what cuda/cudnn.c (the library, plans, launches),
 * cuda/cudnn_try.c (whether a form may be used, how fast it is) and cuda/cudnn_choose.c (which runs an attention, on
 * all ranks) share. Graphs and plans themselves: cuda/cudnn_attn.h. */
#ifndef MOE_RUNTIME_CUDA_CUDNN_H
#define MOE_RUNTIME_CUDA_CUDNN_H

#include "runtime/cuda/device.h"
#include "runtime/cuda/cudnn_attn.h"

#define MOE_ATTN_KIND "attention" /* of choices */

/* Bytes that a plan may take as workspace: where sequences at once would need more, they go by parts of equal size. */
#define MOE_CUDNN_WORKSPACE ((int64_t)1 << 30)

/* Plans of cuDNN are made once for all steps that are the same. */
typedef struct {
    int64_t batch; /* sequences of a run */
    MoeCudnnAttn attn;
} MoeCudaAttnPlan;

/* Where memory of a run lies in the staging memory: bytes from its start. */
typedef struct {
    int64_t stats, sums, dq_sums, o, dq, dk, dv, workspace, bytes; /* bytes: of all */
} MoeCudaAttnRoom;

/* A step that cuDNN runs, with those behind it. */
typedef struct MoeCudaAttn {
    const MoePlanAttn *of; /* NULL: the plan's kernels run it */
    bool passed;           /* it belongs to one before it */
    bool staged;           /* results come out by kernels that heed the stop flag */
    int64_t batch;         /* sequences of all */
    const MoeCudaAttnPlan *plan;
    MoeCudnnDesc *packs; /* [batch / plan->batch]; the plan's own */
    MoeCuPtr q, k, v, o, lse, d_o, dq, dk, dv;
    MoeCudaAttnRoom room;
} MoeCudaAttn;

/* What is chosen for an attention: by its form of cuDNN, or the plan's kernels. */
typedef struct {
    bool library;
    MoeCudnnForm form;
    size_t version;          /* of the library */
    double seconds, emitted; /* as measured; 0: unknown */
} MoeAttnChoice;

enum { MOE_ATTN_KEY_BYTES = 96, MOE_ATTN_MAX_BATCHES = 16 };

/* Steps of any program that differ in nothing but their heads and rows. */
typedef struct {
    const MoePlanAttn *of; /* the step with the most rows */
    size_t program, step;
    char key[MOE_ATTN_KEY_BYTES];
    int64_t batches[MOE_ATTN_MAX_BATCHES]; /* of these steps, each number once, descending */
    int n_batches;
    MoeAttnChoice choice;
} MoeAttnKind;

typedef struct MoeCudaCudnn {
    const MoeCudnn *c;
    size_t version;
    int capability; /* 90 */
    MoeCudnnHandle handle;
    MoeCuPtr staging;
    int64_t staging_bytes;
    MoeCudaAttnPlan **plans; /* [n_plans] */
    size_t n_plans, cap_plans;
    MoeAttnKind *kinds;
    size_t n_kinds;
} MoeCudaCudnn;

/* ---- cuda/cudnn.c ---- */

/* The kinds of attention of a plan, in order of first use (malloc'd; NULL: none). */
MoeStatus moe_attn_kinds(const MoePlan *p, MoeAttnKind **out, size_t *out_n);

/* The library, with a handle on the device's stream, and the plan's kinds of attention (none: n_kinds 0). */
MoeStatus moe_cuda_cudnn_open(MoeDeviceCuda *d);
/* Step i of program g by that form, over the first `batch` sequences; no addresses yet. MOE_E_INPUT: cuDNN does not take it. The
 * caller frees *out in any case. */
MoeStatus moe_cudnn_step_prepare(MoeDeviceCuda *d, const MoeExecProgram *g, size_t i,
                                 MoeCudnnForm form, int64_t batch, bool staged, MoeCudaAttn *out);
/* At least so much staging memory; what was bound before is to be bound again where it grew. */
MoeStatus moe_cudnn_step_staging(MoeDeviceCuda *d, int64_t bytes);
MoeStatus moe_cudnn_step_bind(MoeDeviceCuda *d, MoeCudaAttn *a);
MoeStatus moe_cudnn_step_launch(MoeDeviceCuda *d, const MoeCudaAttn *a);
void moe_cudnn_step_release(MoeCudaAttn *a);
/* From now on steps whose kind's choice is the library go by it, in place of what was so before. */
MoeStatus moe_cuda_cudnn_bind(MoeDeviceCuda *d, MoeExec *x);

/* ---- cuda/cudnn_try.c ---- */

/* Whether the form computes kind k on this device: near the plan's kernels, with bits of a sequence that depend on that sequence
 * alone, twice the same. *out_seconds: of a run with the most rows; *out_emitted: of the plan's kernels. */
MoeStatus moe_cuda_cudnn_try(MoeDeviceCuda *d, MoeExec *x, const MoeAttnKind *k, MoeCudnnForm form,
                             bool *out_good, double *out_seconds, double *out_emitted);

/* ---- cuda/cudnn_choose.c ---- */

/* "emitted seconds=..", or "cudnn whole version=92600 seconds=.. emitted=..". */
void moe_attn_choice_text(const MoeAttnChoice *c, char out[MOE_CHOICE_BYTES]);
bool moe_attn_choice_read(const char *text, MoeAttnChoice *out); /* false: it is no such text */

#endif
