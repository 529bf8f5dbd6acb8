/* driver.h: capturing streams into graphs, and launching those. */
#include <stdlib.h>
#include <string.h>
#include "tests/sim/stream_internal.h"

MOE_SIM_EXPORT CUresult cuStreamBeginCapture_v2(CUstream s, int mode) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuStreamBeginCapture", &c);
    if (!r)
        r = moe_sim_check_stream(s);
    if (!r && !s)
        r = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (!r && (s->graph || mode < 0 || mode > 2))
        r = CUDA_ERROR_INVALID_VALUE;
    CUgraph g = r ? NULL : calloc(1, sizeof *g);
    if (!r && !g)
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (!r) {
        g->origin = s;
        g->mode = mode;
        s->graph = g;
        s->captured = 0;
    }
    return moe_sim_leave(r);
}

MOE_SIM_EXPORT CUresult cuStreamIsCapturing(CUstream s, int *out) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuStreamIsCapturing", &c);
    *out = s && s->graph ? s->graph->broken ? 2 : 1 : 0;
    return moe_sim_leave(r);
}

MOE_SIM_EXPORT CUresult cuStreamEndCapture(CUstream s, CUgraph *out) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuStreamEndCapture", &c);
    *out = NULL;
    if (!s || !s->graph)
        return moe_sim_leave(r ? r : CUDA_ERROR_INVALID_VALUE);
    CUgraph g = s->graph;
    if (g->origin != s)
        return moe_sim_leave(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
    for (CUstream o = moe_sim_streams; o; o = o->after)
        if (o->graph == g) {
            if (!r && o != s && !o->joined)
                r = moe_sim_complain(CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
                                     "a stream that joined a capture is not waited for at its end");
            o->graph = NULL;
        }
    g->ended = true;
    if (!r && g->broken)
        r = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (!r)
        *out = g;
    return moe_sim_leave(r);
}

static void copy_op(MoeSimOp *to, const MoeSimOp *from) {
    *to = *from;
    to->staged = NULL;
    if (from->kind == OP_CALL) {
        to->staged = malloc(from->bytes);
        if (!to->staged)
            abort();
        memcpy(to->staged, from->staged, from->bytes);
    }
    if (from->values) {
        to->values = malloc(from->n_values * sizeof *to->values);
        if (!to->values)
            abort();
        memcpy(to->values, from->values, from->n_values * sizeof *to->values);
    }
    MoeSimCall *call = &to->call;
    if (from->kind != OP_LAUNCH || !from->call.params)
        return;
    size_t n = *(const size_t *)from->call.params; /* its own size comes first (module.c) */
    call->params = aligned_alloc(64, n);
    if (!call->params)
        abort();
    memcpy(call->params, from->call.params, n);
}

MOE_SIM_EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec *out, CUgraph g,
                                                    unsigned long long flags) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuGraphInstantiate", &c);
    (void)flags;
    *out = NULL;
    if (!r && !g)
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r && !(*out = calloc(1, sizeof **out)))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    for (size_t i = 0; !r && i < g->ops.n; i++) {
        MoeSimOp op;
        copy_op(&op, &g->ops.ops[i]);
        moe_sim_ops_add(&(*out)->ops, &op);
    }
    return moe_sim_leave(r);
}

MOE_SIM_EXPORT CUresult cuGraphLaunch(CUgraphExec g, CUstream s) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuGraphLaunch", &c);
    if (!r)
        r = g ? moe_sim_check_stream(s) : CUDA_ERROR_INVALID_VALUE;
    moe_sim_count(COUNT_GRAPHS, 1);
    for (size_t i = 0; !r && i < g->ops.n; i++) {
        MoeSimOp op;
        copy_op(&op, &g->ops.ops[i]);
        r = moe_sim_issue(s, &op);
    }
    return moe_sim_leave(r);
}

static void ops_free(Ops *ops) {
    for (size_t i = 0; i < ops->n; i++)
        moe_sim_op_free(&ops->ops[i]);
    free(ops->ops);
}

MOE_SIM_EXPORT CUresult cuGraphExecDestroy(CUgraphExec g) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuGraphExecDestroy", &c);
    if (!g)
        return moe_sim_leave(CUDA_ERROR_INVALID_VALUE);
    ops_free(&g->ops);
    free(g);
    return moe_sim_leave(r);
}

MOE_SIM_EXPORT CUresult cuGraphDestroy(CUgraph g) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuGraphDestroy", &c);
    if (!g)
        return moe_sim_leave(CUDA_ERROR_INVALID_VALUE);
    ops_free(&g->ops);
    g->ops = (Ops){0}; /* the rest is kept: events may name it */
    return moe_sim_leave(r);
}
