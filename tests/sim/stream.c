/* driver.h: streams, events, graphs. A stream is a queue that runs when somebody waits for it, no earlier; what it needs of
 * other streams (events) runs first, and nothing else: who forgot a wait sees old data. The legacy stream (NULL) runs at
 * once, after all streams that it waits for. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "tests/sim/driver.h"

typedef struct {
    MoeSimOp *ops;
    size_t n, cap;
} Ops;

struct CUgraph_st {
    Ops ops;
    CUstream origin;
    int mode;
    bool broken;
    bool ended;
};

struct CUgraphExec_st {
    Ops ops;
};

struct CUstream_st {
    CUcontext context;
    unsigned flags;
    Ops queue;
    size_t next;     /* of queue: runs next */
    uint64_t issued; /* ops ever issued; those that ran: issued - (queue.n - next) */
    CUgraph graph;   /* captured into */
    size_t captured; /* ops of this stream in that graph */
    bool joined;     /* the origin waits for its last op */
    CUstream after;  /* in the list of all streams */
    bool destroyed;  /* off the list, but kept: events may name it */
};

struct CUevent_st {
    CUcontext context;
    unsigned flags;
    CUstream stream; /* recorded in, at this number; NULL: never */
    uint64_t number;
    double time;   /* seconds, once it ran */
    CUgraph graph; /* recorded while captured: into this graph, after so many of the stream's ops */
    size_t captured;
};

static CUstream streams;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void add(Ops *list, const MoeSimOp *op) {
    if (list->n == list->cap) {
        list->cap = list->cap ? 2 * list->cap : 32;
        list->ops = realloc(list->ops, list->cap * sizeof *list->ops);
        if (!list->ops)
            abort();
    }
    list->ops[list->n++] = *op;
}

static void op_free(MoeSimOp *op) {
    free(op->staged);
    free(op->call.params);
}

/* ---- running ---- */

static CUresult run_until(CUstream s, uint64_t number);

static CUresult run_op(const MoeSimOp *op) {
    switch (op->kind) {
    case OP_LAUNCH:
        return moe_sim_call_run(op->context, &op->call);
    case OP_COPY:
        moe_sim_memory_range(op->to, op->bytes, true);
        moe_sim_memory_range(op->from, op->bytes, true);
        memmove(op->to, op->staged ? op->staged : op->from, op->bytes);
        moe_sim_memory_range(op->to, op->bytes, false);
        moe_sim_memory_range(op->from, op->bytes, false);
        return CUDA_SUCCESS;
    case OP_SET:
        moe_sim_memory_range(op->to, op->bytes, true);
        memset(op->to, op->value, op->bytes);
        moe_sim_memory_range(op->to, op->bytes, false);
        return CUDA_SUCCESS;
    case OP_RECORD:
        op->event->time = now();
        return CUDA_SUCCESS;
    case OP_WAIT:
        return op->stream ? run_until(op->stream, op->number) : CUDA_SUCCESS;
    }
    return CUDA_ERROR_UNKNOWN;
}

/* What was asked of s, up to its op of that number. From the first kernel on memory stays open. */
static CUresult run_until(CUstream s, uint64_t number) {
    CUresult r = s->context->error;
    bool open = false;
    while (s->next < s->queue.n && s->issued - (s->queue.n - s->next) < number) {
        MoeSimOp op = s->queue.ops[s->next++];
        if (s->next == s->queue.n)
            s->next = s->queue.n = 0;
        if (op.kind == OP_LAUNCH && !open) {
            moe_sim_memory_open();
            open = true;
        }
        if (!r)
            r = run_op(&op);
        op_free(&op);
    }
    if (open)
        moe_sim_memory_close();
    return r;
}

static bool done(CUstream s, uint64_t number) {
    return !s || s->issued - (s->queue.n - s->next) >= number;
}

CUresult moe_sim_flush(CUcontext c) {
    CUresult r = c ? c->error : CUDA_SUCCESS;
    for (CUstream s = streams; s; s = s->after)
        if (!c || s->context == c) {
            CUresult one = run_until(s, s->issued);
            r = r ? r : one;
        }
    return r;
}

/* ---- asking ---- */

static CUresult break_capture(CUgraph g, CUresult r) {
    g->broken = true;
    return r;
}

CUresult moe_sim_no_capture(void) {
    for (CUstream s = streams; s; s = s->after)
        if (s->graph && s->graph->mode == 0) {
            moe_sim_complain(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                             "this call is not allowed while a stream is captured");
            return break_capture(s->graph, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        }
    return CUDA_SUCCESS;
}

static CUresult capture(CUstream s, MoeSimOp *op) {
    if (s->graph->broken) {
        op_free(op);
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    s->captured++;
    s->joined = false;
    add(&s->graph->ops, op);
    return CUDA_SUCCESS;
}

CUresult moe_sim_issue(CUstream s, MoeSimOp *op) {
    if (s && s->graph)
        return capture(s, op);
    if (!s) { /* the legacy stream */
        CUresult r = moe_sim_no_capture();
        for (CUstream o = streams; o && !r; o = o->after)
            if (o->context == op->context && !(o->flags & 1))
                r = run_until(o, o->issued);
        r = r ? r : run_op(op);
        op_free(op);
        return r;
    }
    if (s->context != op->context) {
        op_free(op);
        return moe_sim_complain(CUDA_ERROR_INVALID_HANDLE,
                                "a stream of another context than the current one");
    }
    add(&s->queue, op);
    s->issued++;
    return CUDA_SUCCESS;
}

static CUresult wait_for(CUstream s, uint64_t number) {
    if (s->graph)
        return break_capture(s->graph, moe_sim_complain(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                                                        "waiting for a stream that is captured"));
    return run_until(s, number);
}

/* ---- streams ---- */

MOE_SIM_EXPORT CUresult cuStreamCreate(CUstream *out, unsigned flags) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuStreamCreate", &c);
    *out = NULL;
    if (!r && flags > 1)
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r && !(*out = calloc(1, sizeof **out)))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (!r) {
        **out = (struct CUstream_st){.context = c, .flags = flags, .after = streams};
        streams = *out;
    }
    return moe_sim_leave(r);
}

static CUresult check_stream(CUstream s) {
    return s && s->destroyed
               ? moe_sim_complain(CUDA_ERROR_INVALID_HANDLE, "a stream that was destroyed")
               : CUDA_SUCCESS;
}

MOE_SIM_EXPORT CUresult cuStreamDestroy_v2(CUstream s) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuStreamDestroy", &c),
             bad = s ? check_stream(s) : CUDA_ERROR_INVALID_HANDLE;
    if (bad)
        return moe_sim_leave(bad);
    CUresult ran = run_until(s, s->issued);
    free(s->queue.ops);
    s->queue = (Ops){0};
    s->destroyed = true;
    for (CUstream *at = &streams; *at; at = &(*at)->after)
        if (*at == s) {
            *at = s->after;
            break;
        }
    return moe_sim_leave(r ? r : ran);
}

MOE_SIM_EXPORT CUresult cuStreamSynchronize(CUstream s) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuStreamSynchronize", &c);
    if (!r)
        r = check_stream(s);
    if (!r)
        r = s ? wait_for(s, s->issued) : moe_sim_flush(c);
    return moe_sim_leave(r);
}

/* Somebody asks whether it is done: one more op runs. */
static CUresult query(CUstream s, uint64_t number) {
    if (!s || done(s, number))
        return CUDA_SUCCESS;
    CUresult r = run_until(s, s->issued - (s->queue.n - s->next) + 1);
    return r ? r : CUDA_ERROR_NOT_READY;
}

MOE_SIM_EXPORT CUresult cuStreamQuery(CUstream s) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuStreamQuery", &c);
    if (!r)
        r = check_stream(s);
    if (!r && s)
        r = query(s, s->issued);
    return moe_sim_leave(r);
}

/* ---- events ---- */

MOE_SIM_EXPORT CUresult cuEventCreate(CUevent *out, unsigned flags) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuEventCreate", &c);
    *out = NULL;
    if (!r && flags > 7)
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r && !(*out = calloc(1, sizeof **out)))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (!r)
        **out = (struct CUevent_st){.context = c, .flags = flags};
    return moe_sim_leave(r);
}

/* Who destroys an event early takes nothing away from streams that wait for it: they keep stream and number. */
MOE_SIM_EXPORT CUresult cuEventDestroy_v2(CUevent e) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuEventDestroy", &c);
    if (!e)
        return moe_sim_leave(CUDA_ERROR_INVALID_HANDLE);
    CUresult ran = e->stream ? run_until(e->stream, e->number) : CUDA_SUCCESS;
    free(e);
    return moe_sim_leave(r ? r : ran);
}

MOE_SIM_EXPORT CUresult cuEventRecord(CUevent e, CUstream s) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuEventRecord", &c);
    if (!r)
        r = e ? check_stream(s) : CUDA_ERROR_INVALID_HANDLE;
    if (r)
        return moe_sim_leave(r);
    if (s && s->graph) { /* a mark in the graph; nothing runs */
        e->graph = s->graph;
        e->stream = s;
        e->captured = s->captured;
        return moe_sim_leave(CUDA_SUCCESS);
    }
    e->graph = NULL;
    r = moe_sim_issue(s, &(MoeSimOp){.kind = OP_RECORD, .context = c, .event = e});
    e->stream = s;
    e->number = s ? s->issued : 0;
    return moe_sim_leave(r);
}

/* A wait for an event of a captured stream brings the waiting stream into the capture. */
static CUresult wait_captured(CUstream s, CUevent e) {
    if (e->graph->ended || (s && s->graph && s->graph != e->graph))
        return moe_sim_complain(CUDA_ERROR_INVALID_VALUE,
                                "cuStreamWaitEvent: the event belongs to another capture");
    if (!s)
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    if (!s->graph) {
        s->graph = e->graph;
        s->captured = 0;
    }
    if (s == s->graph->origin && e->stream != s)
        e->stream->joined = e->captured == e->stream->captured;
    else if (s != e->stream)
        s->joined = false;
    return CUDA_SUCCESS;
}

MOE_SIM_EXPORT CUresult cuStreamWaitEvent(CUstream s, CUevent e, unsigned flags) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuStreamWaitEvent", &c);
    if (!r)
        r = e && !flags ? check_stream(s) : CUDA_ERROR_INVALID_HANDLE;
    if (r)
        return moe_sim_leave(r);
    if (e->graph)
        return moe_sim_leave(wait_captured(s, e));
    if (s && s->graph)
        return moe_sim_leave(break_capture(
            s->graph,
            moe_sim_complain(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                             "a captured stream waits for an event that is not captured")));
    return moe_sim_leave(moe_sim_issue(
        s, &(MoeSimOp){.kind = OP_WAIT, .context = c, .stream = e->stream, .number = e->number}));
}

MOE_SIM_EXPORT CUresult cuEventSynchronize(CUevent e) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuEventSynchronize", &c);
    if (!r)
        r = !e ? CUDA_ERROR_INVALID_HANDLE : e->graph ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : r;
    if (!r && e->stream)
        r = wait_for(e->stream, e->number);
    return moe_sim_leave(r);
}

MOE_SIM_EXPORT CUresult cuEventQuery(CUevent e) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuEventQuery", &c);
    if (!r)
        r = !e ? CUDA_ERROR_INVALID_HANDLE : e->graph ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : r;
    if (!r)
        r = query(e->stream, e->number);
    return moe_sim_leave(r);
}

static CUresult elapsed(float *out, CUevent from, CUevent to) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuEventElapsedTime", &c);
    *out = 0;
    if (!r && (!from || !to || ((from->flags | to->flags) & 2)))
        r = moe_sim_complain(CUDA_ERROR_INVALID_HANDLE,
                             "cuEventElapsedTime of an event without time");
    if (!r && (!done(from->stream, from->number) || !done(to->stream, to->number)))
        r = CUDA_ERROR_NOT_READY;
    if (!r)
        *out = (float)(1e3 * (to->time - from->time));
    return moe_sim_leave(r);
}
MOE_SIM_EXPORT CUresult cuEventElapsedTime(float *out, CUevent from, CUevent to) {
    return elapsed(out, from, to);
}
MOE_SIM_EXPORT CUresult cuEventElapsedTime_v2(float *out, CUevent from, CUevent to) {
    return elapsed(out, from, to);
}

/* ---- copies ---- */

static CUresult copy(CUcontext c, char *to, const char *from, size_t n, bool stage, CUstream s) {
    MoeSimOp op = {.kind = OP_COPY, .context = c, .to = to, .from = from, .bytes = n};
    if (stage && !(s && s->graph)) {
        op.staged = malloc(n);
        if (!op.staged)
            return CUDA_ERROR_OUT_OF_MEMORY;
        memcpy(op.staged, from, n);
    }
    return moe_sim_issue(s, &op);
}

static CUresult outside(const char *call, CUdeviceptr p, size_t n) {
    return moe_sim_complain(CUDA_ERROR_INVALID_VALUE,
                            "%s: %zu bytes at %#llx are not all device memory", call, n,
                            (unsigned long long)p);
}

static CUresult copy_in(const char *call, CUdeviceptr to, const void *from, size_t n, CUstream s) {
    CUcontext c;
    CUresult r = moe_sim_enter(call, &c);
    if (!r)
        r = check_stream(s);
    if (!r && !moe_sim_memory_holds(to, n))
        r = outside(call, to, n);
    if (!r && moe_sim_memory_touches(from, n))
        r = moe_sim_complain(CUDA_ERROR_INVALID_VALUE, "%s: its source is device memory", call);
    if (!r && n)
        r = copy(c, (char *)(uintptr_t)to, from, n, !moe_sim_memory_pinned(from, n), s);
    return moe_sim_leave(r);
}
MOE_SIM_EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t n,
                                             CUstream s) {
    return copy_in("cuMemcpyHtoDAsync", to, from, n, s);
}
MOE_SIM_EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t n) {
    return copy_in("cuMemcpyHtoD", to, from, n, NULL);
}

static CUresult copy_out(const char *call, void *to, CUdeviceptr from, size_t n, CUstream s) {
    CUcontext c;
    CUresult r = moe_sim_enter(call, &c);
    if (!r)
        r = check_stream(s);
    if (!r && !moe_sim_memory_holds(from, n))
        r = outside(call, from, n);
    if (!r && moe_sim_memory_touches(to, n))
        r = moe_sim_complain(CUDA_ERROR_INVALID_VALUE, "%s: its target is device memory", call);
    if (!r && n)
        r = copy(c, to, (const char *)(uintptr_t)from, n, false, s);
    if (!r && n && s && !s->graph && !moe_sim_memory_pinned(to, n))
        r = run_until(s, s->issued); /* such a copy is waited for */
    return moe_sim_leave(r);
}
MOE_SIM_EXPORT CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t n, CUstream s) {
    return copy_out("cuMemcpyDtoHAsync", to, from, n, s);
}
MOE_SIM_EXPORT CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t n) {
    return copy_out("cuMemcpyDtoH", to, from, n, NULL);
}

static CUresult copy_within(const char *call, CUdeviceptr to, CUdeviceptr from, size_t n,
                            CUstream s) {
    CUcontext c;
    CUresult r = moe_sim_enter(call, &c);
    if (!r)
        r = check_stream(s);
    if (!r && !moe_sim_memory_holds(to, n))
        r = outside(call, to, n);
    if (!r && !moe_sim_memory_holds(from, n))
        r = outside(call, from, n);
    if (!r && n)
        r = copy(c, (char *)(uintptr_t)to, (const char *)(uintptr_t)from, n, false, s);
    return moe_sim_leave(r);
}
MOE_SIM_EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t n,
                                             CUstream s) {
    return copy_within("cuMemcpyDtoDAsync", to, from, n, s);
}
MOE_SIM_EXPORT CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t n) {
    return copy_within("cuMemcpyDtoD", to, from, n, NULL);
}

static CUresult set(const char *call, CUdeviceptr to, unsigned char value, size_t n, CUstream s) {
    CUcontext c;
    CUresult r = moe_sim_enter(call, &c);
    if (!r)
        r = check_stream(s);
    if (!r && !moe_sim_memory_holds(to, n))
        r = outside(call, to, n);
    if (!r && n)
        r = moe_sim_issue(s, &(MoeSimOp){.kind = OP_SET,
                                         .context = c,
                                         .to = (char *)(uintptr_t)to,
                                         .value = value,
                                         .bytes = n});
    return moe_sim_leave(r);
}
MOE_SIM_EXPORT CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t n, CUstream s) {
    return set("cuMemsetD8Async", to, value, n, s);
}
MOE_SIM_EXPORT CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t n) {
    return set("cuMemsetD8", to, value, n, NULL);
}

/* ---- launches ---- */

MOE_SIM_EXPORT CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz,
                                       unsigned bx, unsigned by, unsigned bz, unsigned shared_bytes,
                                       CUstream s, void **params, void **extra) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuLaunchKernel", &c);
    MoeSimOp op = {.kind = OP_LAUNCH, .context = c};
    if (!r)
        r = check_stream(s);
    if (!r && extra)
        r = moe_sim_complain(CUDA_ERROR_NOT_SUPPORTED,
                             "cuLaunchKernel with extra is not simulated");
    if (!r)
        r = moe_sim_call_make(c, f, (MoeSimDim){gx, gy, gz}, (MoeSimDim){bx, by, bz}, shared_bytes,
                              params, &op.call);
    if (!r)
        r = moe_sim_issue(s, &op);
    return moe_sim_leave(r);
}

/* ---- graphs ---- */

MOE_SIM_EXPORT CUresult cuStreamBeginCapture_v2(CUstream s, int mode) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuStreamBeginCapture", &c);
    if (!r)
        r = check_stream(s);
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
    for (CUstream o = streams; o; o = o->after)
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
        add(&(*out)->ops, &op);
    }
    return moe_sim_leave(r);
}

MOE_SIM_EXPORT CUresult cuGraphLaunch(CUgraphExec g, CUstream s) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuGraphLaunch", &c);
    if (!r)
        r = g ? check_stream(s) : CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; !r && i < g->ops.n; i++) {
        MoeSimOp op;
        copy_op(&op, &g->ops.ops[i]);
        r = moe_sim_issue(s, &op);
    }
    return moe_sim_leave(r);
}

static void ops_free(Ops *ops) {
    for (size_t i = 0; i < ops->n; i++)
        op_free(&ops->ops[i]);
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
