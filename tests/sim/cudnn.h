/* The simulated cuDNN (libcudnn.so.9): descriptors of the backend interface (cudnn.c), what graphs of them mean (cudnn_graph.c),
 * and running them (cudnn_run.c). Names and values are base/cudnn.h's, which are those of cudnn_graph.h.
 *
 * It is as strict as the real one where moec could go wrong: a descriptor takes the attributes that it has, of their type and
 * number, before it is finalized, and is finalized when all that it needs is there and fits. A graph means what its operations
 * say, one after another: no form of attention is looked for. Virtual tensors of bf16 are rounded.
 *
 * Environment, read when it counts:
 *   MOE_SIM_CUDNN_VERSION=92600   the version that it says it is
 *   MOE_SIM_CUDNN                 not set: no handle can be made, as without a device; else a list of faults, or "on":
 *                                 none: no engine takes a graph; nograd: none takes a gradient's; fail: running does not work;
 *                                 batch: rows depend on how many sequences there are, place: on which a sequence is; random:
 *                                 no two runs are the same; wrong: results are off by far; slow: each run takes 50 ms */
#ifndef MOE_TESTS_SIM_CUDNN_H
#define MOE_TESTS_SIM_CUDNN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/cudnn.h"
#include "tests/sim/driver.h"

enum { SIM_CUDNN_TENSORS = 96, SIM_CUDNN_OPS = 64 };

typedef struct {
    int64_t uid, dims[4], strides[4];
    int type; /* cudnnDataType_t */
    int64_t alignment;
    bool is_virtual, by_value;
} SimTensor;

typedef enum { SIM_POINTWISE, SIM_MATMUL, SIM_REDUCE, SIM_RESHAPE } SimOpKind;

/* x, y, t, out: indices of tensors; -1: none. */
typedef struct {
    SimOpKind kind;
    int mode, axis;
    int x, y, t, out;
} SimOp;

/* A graph that was finalized; kept to the end of the process, since a stream may still run it. */
typedef struct {
    SimTensor tensors[SIM_CUDNN_TENSORS];
    int n_tensors;
    SimOp ops[SIM_CUDNN_OPS];
    int n_ops;
    bool grad; /* five products */
} SimGraph;

/* A run of it: addresses by tensor (values of those that are by value). */
typedef struct {
    const SimGraph *g;
    void *at[SIM_CUDNN_TENSORS];
    float value[SIM_CUDNN_TENSORS];
    int64_t workspace_bytes;
    void *workspace;
    int batch_fault, place_fault, random_fault, wrong_fault;
} SimRun;

/* Whether MOE_SIM_CUDNN has that word. */
bool sim_cudnn_fault(const char *word);
/* Puts text where cudnnGetLastErrorString finds it; returns r. */
MoeCudnnResult sim_cudnn_say(MoeCudnnResult r, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* A graph out of finalized operations. *out NULL unless it makes sense. */
MoeCudnnResult sim_cudnn_graph(const MoeCudnnDesc *ops, int64_t n, SimGraph **out);
int64_t sim_cudnn_workspace(const SimGraph *g, int engine);
/* As an op of a stream: SimRun. */
CUresult sim_cudnn_run(void *ctx);

/* ---- cudnn.c: reading descriptors ---- */

int sim_desc_type(MoeCudnnDesc d);
/* The elements of an attribute; NULL: not set. */
const void *sim_desc_attr(MoeCudnnDesc d, int name, int64_t *n);

#endif
