/* Graphs of operations for cuDNN's backend interface (base/cudnn.h), and plans of them: tensors of four dims, operations that
 * make a virtual tensor each, the graph, an engine, the plan with its workspace. What is in a graph is written by
 * cuda/cudnn_attn.c. The first error sticks: after it calls do nothing, and the caller looks at `st` at the end. */
#ifndef MOE_RUNTIME_CUDA_CUDNN_DESC_H
#define MOE_RUNTIME_CUDA_CUDNN_DESC_H

#include "base/cudnn.h"

typedef struct {
    MoeCudnnDesc desc;
    int64_t dims[4];
    int type; /* cudnnDataType_t */
} MoeCudnnTensor;

enum { MOE_CUDNN_MAX_OPS = 48 };

typedef struct {
    const MoeCudnn *c;
    MoeStatus st;
    MoeCudnnDesc *all; /* made so far, in order; owned */
    size_t n, cap;
    MoeCudnnDesc ops[MOE_CUDNN_MAX_OPS];
    size_t n_ops;
    int64_t next_uid; /* of virtual tensors */
} MoeCudnnBuild;

/* Where a plan runs: a handle, or properties of a device that need not be there (for tests; a finalized descriptor). */
typedef struct {
    MoeCudnnHandle handle;
    MoeCudnnDesc device;
} MoeCudnnPlace;

/* An engine of a graph by number, with its knobs, where the heuristics are not to choose. */
typedef struct {
    int64_t engine; /* -1: as the heuristics have it */
    struct {
        int type;
        int64_t value;
    } knobs[8];
    size_t n_knobs;
} MoeCudnnEngine;

typedef struct {
    MoeCudnnDesc desc;     /* the build's */
    int64_t workspace;     /* bytes */
    bool nondeterministic; /* the engine says that it may be */
} MoeCudnnPlan;

void moe_cudnn_build_init(const MoeCudnn *c, MoeCudnnBuild *b);
void moe_cudnn_build_free(MoeCudnnBuild *b); /* all descriptors, plans included */

/* A descriptor, to be given attributes and finalized by the caller. */
MoeCudnnDesc moe_cudnn_new(MoeCudnnBuild *b, int type, const char *what);
void moe_cudnn_set(MoeCudnnBuild *b, MoeCudnnDesc d, int attr, int type, int64_t n,
                   const void *elements);
void moe_cudnn_finalize(MoeCudnnBuild *b, MoeCudnnDesc d, const char *what);

/* A tensor of memory; strides in elements. */
MoeCudnnTensor moe_cudnn_tensor(MoeCudnnBuild *b, int64_t uid, int type, const int64_t dims[4],
                                const int64_t strides[4]);
/* One number that is handed over by value with the memory's addresses. */
MoeCudnnTensor moe_cudnn_scalar(MoeCudnnBuild *b, int64_t uid, int type);
/* One that no memory holds; packed unless strides are given. */
MoeCudnnTensor moe_cudnn_virtual(MoeCudnnBuild *b, int type, const int64_t dims[4],
                                 const int64_t *strides);

/* Operations. x, other, mask: inputs, NULL where the mode has none; axis: of GEN_INDEX, else -1; compute: of the arithmetic. */
void moe_cudnn_pointwise_to(MoeCudnnBuild *b, int mode, int compute, int axis,
                            const MoeCudnnTensor *x, const MoeCudnnTensor *other,
                            const MoeCudnnTensor *mask, const MoeCudnnTensor *y);
/* Into a virtual tensor of x's dims and of that type. */
MoeCudnnTensor moe_cudnn_pointwise(MoeCudnnBuild *b, int mode, int compute, int axis, int type,
                                   const MoeCudnnTensor *x, const MoeCudnnTensor *other,
                                   const MoeCudnnTensor *mask);
void moe_cudnn_matmul(MoeCudnnBuild *b, const MoeCudnnTensor *x, const MoeCudnnTensor *y,
                      const MoeCudnnTensor *out);
void moe_cudnn_reduce(MoeCudnnBuild *b, int op, const MoeCudnnTensor *x, const MoeCudnnTensor *y);
void moe_cudnn_reshape(MoeCudnnBuild *b, const MoeCudnnTensor *x, const MoeCudnnTensor *y);

/* The graph of all operations so far. */
MoeCudnnDesc moe_cudnn_graph(MoeCudnnBuild *b, MoeCudnnPlace where);
/* A plan of it by that engine, or by the first that takes it of those that the heuristics name. */
MoeStatus moe_cudnn_plan(MoeCudnnBuild *b, MoeCudnnDesc graph, MoeCudnnPlace where,
                         const MoeCudnnEngine *engine, MoeCudnnPlan *out);
/* Addresses for a run: of the tensors with these uids, and of the plan's workspace. */
MoeCudnnDesc moe_cudnn_pack(MoeCudnnBuild *b, const int64_t *uids, void *const *at, int64_t n,
                            void *workspace);

#endif
