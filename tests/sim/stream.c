/* driver.h: streams and events. A stream is a queue that runs when somebody waits for it, no earlier; what it needs of
 * other streams (events) runs first, and nothing else: who forgot a wait sees old data. Only where it waits for a value in
 * memory all other streams go on until it is there. The legacy stream (NULL) runs at once, after all streams that it waits
 * for. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "tests/sim/stream_internal.h"

CUstream moe_sim_streams;

enum { OPS_A_QUERY = 64 };
enum { PATIENCE = 60 }; /* seconds in which nothing happens at all until a wait is given up */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double added; /* seconds that events believe */

void moe_sim_clock_add(double seconds) {
    added += seconds;
}

static double launch_seconds(void) {
    const char *s = getenv("MOE_SIM_LAUNCH_SECONDS");
    return s ? atof(s) : 0;
}

void moe_sim_ops_add(Ops *list, const MoeSimOp *op) {
    if (list->n == list->cap) {
        list->cap = list->cap ? 2 * list->cap : 32;
        list->ops = realloc(list->ops, list->cap * sizeof *list->ops);
        if (!list->ops)
            abort();
    }
    list->ops[list->n++] = *op;
}

void moe_sim_op_free(MoeSimOp *op) {
    free(op->staged);
    free(op->values);
    free(op->call.params);
}

/* ---- running ---- */

static CUresult run_op(const MoeSimOp *op) {
    switch (op->kind) {
    case OP_LAUNCH:
        added += launch_seconds();
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
        op->event->time = now() + added;
        return CUDA_SUCCESS;
    case OP_CALL: {
        moe_sim_memory_open(op->context);
        CUresult r = op->run(op->staged);
        moe_sim_memory_close();
        return r ? op->context->error = r : CUDA_SUCCESS;
    }
    case OP_WAIT:
    case OP_VALUES:
    case OP_POLL:
        return CUDA_SUCCESS; /* that it is ready is all of it */
    }
    return CUDA_ERROR_UNKNOWN;
}

static bool done(CUstream s, uint64_t number) {
    return !s || s->issued - (s->queue.n - s->next) >= number;
}

/* Whether op can run; may take a part of it, or of what it waits for, one step further (*out_moved). */
static CUresult look(MoeSimOp *op, bool *out_ready, bool *out_moved) {
    *out_ready = true;
    if (op->kind == OP_VALUES)
        *out_ready = moe_sim_values_go_on(op, out_moved);
    if (op->kind == OP_POLL)
        *out_ready = op->poll(op->ctx);
    if (op->kind == OP_WAIT && !done(op->stream, op->number)) {
        *out_ready = false;
        return moe_sim_step(op->stream, out_moved);
    }
    return CUDA_SUCCESS;
}

/* The next op of s, which has one. *out_moved: something happened; else it waits for what has not. */
CUresult moe_sim_step(CUstream s, bool *out_moved) {
    CUresult r = s->context->error;
    bool ready = true;
    *out_moved = false;
    if (!r)
        r = look(&s->queue.ops[s->next], &ready, out_moved);
    if (!ready && !r) {
        if (*out_moved)
            moe_sim_changed();
        return r;
    }
    MoeSimOp op = s->queue.ops[s->next];
    *out_moved = true;
    if (!r && op.kind == OP_LAUNCH)
        moe_sim_memory_stay(op.context);
    if (!r)
        r = run_op(&op);
    if (++s->next == s->queue.n)
        s->next = s->queue.n = 0;
    moe_sim_op_free(&op);
    moe_sim_changed();
    return r;
}

/* One op of any stream that has one which can run; false: none has. */
static bool drive(const struct CUstream_st *but) {
    for (CUstream s = moe_sim_streams; s; s = s->after) {
        bool moved = false;
        if (s == but || s->next == s->queue.n)
            continue;
        (void)moe_sim_step(s, &moved); /* its error stays with its context */
        if (moved)
            return true;
    }
    return false;
}

/* Nothing can run: until another thread asks for something. */
static CUresult wait_for_others(CUstream s) {
    moe_sim_memory_leave();
    for (int slept = 0; slept < 1000 * PATIENCE; slept += 20)
        if (moe_sim_wait_change(0.02) || s->next == s->queue.n ||
            s->queue.ops[s->next].kind == OP_POLL)
            return CUDA_SUCCESS;
    return moe_sim_complain(CUDA_ERROR_UNKNOWN, "a stream waits for a value that nobody writes");
}

/* What was asked of s, up to its op of that number. From the first kernel on memory stays open. */
CUresult moe_sim_run_until(CUstream s, uint64_t number) {
    CUresult r = s->context->error;
    while (s->next < s->queue.n && !done(s, number)) {
        bool moved;
        CUresult one = moe_sim_step(s, &moved);
        if (!one && !moved && !drive(s))
            one = wait_for_others(s);
        r = r ? r : one;
        if (one && !moved)
            break;
    }
    moe_sim_memory_leave();
    return r ? r : s->context->error;
}

/* One op of a stream of c. *out_left: there are any. */
static CUresult step_any(CUcontext c, bool *out_left, bool *out_moved) {
    CUresult r = CUDA_SUCCESS;
    *out_left = *out_moved = false;
    for (CUstream s = moe_sim_streams; s && !r && !*out_moved; s = s->after)
        if (s->context == c && s->next < s->queue.n) {
            *out_left = true;
            r = moe_sim_step(s, out_moved);
        }
    return r;
}

/* No stream is kept in hand over a wait: its thread may destroy it meanwhile. */
CUresult moe_sim_flush(CUcontext c) {
    CUresult r = c->error, one = CUDA_SUCCESS;
    int slept = 0; /* milliseconds in which nothing happened */
    for (bool left = true, moved = true; left && (moved || !one);) {
        one = step_any(c, &left, &moved);
        r = r ? r : one;
        if (one || moved || !left || drive(NULL))
            continue;
        moe_sim_memory_leave();
        slept = moe_sim_wait_change(0.02) ? 0 : slept + 20;
        if (slept >= 1000 * PATIENCE)
            r = one = moe_sim_complain(CUDA_ERROR_UNKNOWN, "a stream waits for what never happens");
    }
    moe_sim_memory_leave();
    return r ? r : c->error;
}

/* ---- asking ---- */

static CUresult break_capture(CUgraph g, CUresult r) {
    g->broken = true;
    return r;
}

CUresult moe_sim_no_capture(void) {
    for (CUstream s = moe_sim_streams; s; s = s->after)
        if (s->graph && s->graph->mode == 0) {
            moe_sim_complain(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                             "this call is not allowed while a stream is captured");
            return break_capture(s->graph, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        }
    return CUDA_SUCCESS;
}

static CUresult capture(CUstream s, MoeSimOp *op) {
    if (s->graph->broken) {
        moe_sim_op_free(op);
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    s->captured++;
    s->joined = false;
    moe_sim_ops_add(&s->graph->ops, op);
    return CUDA_SUCCESS;
}

CUresult moe_sim_issue(CUstream s, MoeSimOp *op) {
    if (s && s->graph)
        return capture(s, op);
    if (!s && (op->kind == OP_VALUES || op->kind == OP_POLL)) {
        moe_sim_op_free(op);
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    if (!s) { /* the legacy stream */
        CUresult r = moe_sim_no_capture();
        for (CUstream o = moe_sim_streams; o && !r; o = o->after)
            if (o->context == op->context && !(o->flags & 1))
                r = moe_sim_run_until(o, o->issued);
        r = r ? r : run_op(op);
        moe_sim_op_free(op);
        return r;
    }
    if (s->context != op->context) {
        moe_sim_op_free(op);
        return moe_sim_complain(CUDA_ERROR_INVALID_HANDLE,
                                "a stream of another context than the current one");
    }
    moe_sim_ops_add(&s->queue, op);
    s->issued++;
    moe_sim_changed();
    return CUDA_SUCCESS;
}

CUresult moe_sim_stream_call(CUstream s, const char *name, CUresult (*run)(void *ctx),
                             const void *ctx, size_t bytes) {
    CUcontext c;
    CUresult r = moe_sim_enter(name, &c);
    MoeSimOp op = {.kind = OP_CALL, .context = c, .run = run, .bytes = bytes};
    if (!r)
        r = moe_sim_check_stream(s);
    if (!r)
        r = moe_sim_launch_fault(c, name);
    if (!r && !(op.staged = malloc(bytes)))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (r)
        return moe_sim_leave(r);
    memcpy(op.staged, ctx, bytes);
    return moe_sim_leave(moe_sim_issue(s, &op));
}

static CUresult wait_for(CUstream s, uint64_t number) {
    moe_sim_count_wait();
    if (s->graph)
        return break_capture(s->graph, moe_sim_complain(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                                                        "waiting for a stream that is captured"));
    return moe_sim_run_until(s, number);
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
        **out = (struct CUstream_st){.context = c, .flags = flags, .after = moe_sim_streams};
        moe_sim_streams = *out;
    }
    return moe_sim_leave(r);
}

CUresult moe_sim_check_stream(CUstream s) {
    return s && s->destroyed
               ? moe_sim_complain(CUDA_ERROR_INVALID_HANDLE, "a stream that was destroyed")
               : CUDA_SUCCESS;
}

MOE_SIM_EXPORT CUresult cuStreamDestroy_v2(CUstream s) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuStreamDestroy", &c),
             bad = s ? moe_sim_check_stream(s) : CUDA_ERROR_INVALID_HANDLE;
    if (bad)
        return moe_sim_leave(bad);
    CUresult ran = moe_sim_run_until(s, s->issued);
    free(s->queue.ops);
    s->queue = (Ops){0};
    s->destroyed = true;
    for (CUstream *at = &moe_sim_streams; *at; at = &(*at)->after)
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
        r = moe_sim_check_stream(s);
    if (!r)
        r = s ? wait_for(s, s->issued) : moe_sim_flush(c);
    return moe_sim_leave(r);
}

/* Somebody asks whether it is done: some more ops run, its own or, where that waits, another stream's. */
static CUresult query(CUstream s, uint64_t number) {
    if (!s || done(s, number))
        return CUDA_SUCCESS;
    bool moved = true;
    CUresult r = CUDA_SUCCESS;
    for (int k = 0; k < OPS_A_QUERY && moved && !r && !done(s, number); k++) {
        r = moe_sim_step(s, &moved);
        if (!r && !moved)
            moved = drive(s);
    }
    moe_sim_memory_leave();
    return r ? r : CUDA_ERROR_NOT_READY; /* as it was when asked */
}

MOE_SIM_EXPORT CUresult cuStreamQuery(CUstream s) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuStreamQuery", &c);
    if (!r)
        r = moe_sim_check_stream(s);
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
    CUresult ran = e->stream ? moe_sim_run_until(e->stream, e->number) : CUDA_SUCCESS;
    free(e);
    return moe_sim_leave(r ? r : ran);
}

MOE_SIM_EXPORT CUresult cuEventRecord(CUevent e, CUstream s) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuEventRecord", &c);
    if (!r)
        r = e ? moe_sim_check_stream(s) : CUDA_ERROR_INVALID_HANDLE;
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
        r = e && !flags ? moe_sim_check_stream(s) : CUDA_ERROR_INVALID_HANDLE;
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
