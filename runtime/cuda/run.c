/* Launches: kernels of steps, what the runtime itself does to values, and guards. See cuda/device.h. */
#include <string.h>

#include "base/assert.h"
#include "runtime/cuda/nccl.h"
#include "runtime/cuda/peer.h"

#define MOST_BLOCKS 4096 /* of a kernel of the runtime */

/* ---- kernels of the runtime ---- */

/* n: elements, one a thread as far as blocks go. args: buffers and numbers. */
MoeStatus moe_cuda_runtime_under(MoeDeviceCuda *d, MoeRtKernel k, MoeCuPtr stop, MoeCuStream stream,
                                 int64_t n, const uint64_t *bufs, size_t n_bufs) {
    static const size_t counts[] = {
#define X(name, bufs) bufs,
        MOE_RT_KERNELS(X)
#undef X
    };
    uint64_t args[1 + 4 + MOE_RT_SLOTS] = {stop};
    void *params[] = {args};
    int64_t blocks = (n + MOE_RT_THREADS - 1) / MOE_RT_THREADS;
    MOE_ASSERT(n_bufs <= counts[k] && counts[k] < sizeof args / sizeof *args, "%zu buffers", n_bufs);
    memcpy(args + 1, bufs, n_bufs * sizeof *bufs);
    blocks = blocks < 1 ? 1 : blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS;
    return moe_cuda_check(d,
                          d->cu->launch(d->runtime[k], (unsigned)blocks, 1, 1, MOE_RT_THREADS, 1, 1,
                                        0, stream, params, NULL),
                          "launching a kernel of the runtime, behind step %s",
                          d->step ? d->step : "none");
}

MoeStatus moe_cuda_runtime(MoeDeviceCuda *d, MoeRtKernel k, MoeCuStream stream, int64_t n,
                           const uint64_t *bufs, size_t n_bufs) {
    return moe_cuda_runtime_under(d, k, d->stop, stream, n, bufs, n_bufs);
}

static MoeStatus launch_runtime(MoeDeviceCuda *d, MoeRtKernel k, int64_t n, const uint64_t *bufs,
                                size_t n_bufs) {
    return moe_cuda_runtime(d, k, d->stream, n, bufs, n_bufs);
}

MoeStatus moe_cuda_fold(MoeDevice *base, MoeExec *x, MoeExecProgram *g, int m) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    MOE_TRY(moe_cuda_enter(d));
    for (size_t i = 0; i < g->plan->n_accumulates; i++) {
        const MoePlanAccumulate *a = &g->plan->accumulates[i];
        int n = moe_exec_fold_depth(m), last = m == x->plan->micro_batches - 1;
        uint64_t bufs[4 + MOE_RT_SLOTS] = {
            moe_cuda_address(d, g->values[a->source]),
            moe_cuda_address(d, g->values[last ? a->value : a->slots[n]]), (uint64_t)a->elements,
            (uint64_t)n};
        MOE_ASSERT(n <= MOE_RT_SLOTS, "micro-batch %d", m);
        for (int s = 0; s < n; s++)
            bufs[4 + s] = moe_cuda_address(d, g->values[a->slots[s]]);
        MOE_TRY(launch_runtime(d, MOE_RT_ID_moe_rt_fold, a->elements, bufs, 4 + (size_t)n));
    }
    return NULL;
}

MoeStatus moe_cuda_clear_sums(MoeDevice *base, MoeExec *x, MoeExecProgram *g) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    (void)x;
    MOE_TRY(moe_cuda_enter(d));
    for (size_t i = 0; i < g->plan->n_batch_sums; i++) {
        const MoePlanAccumulate *a = &g->plan->batch_sums[i];
        MOE_TRY(moe_cuda_check(d,
                               d->cu->set_bytes(moe_cuda_address(d, g->values[a->value]), 0,
                                                (size_t)a->elements * sizeof(int32_t), d->stream),
                               "cuMemsetD8Async of the batch's sums"));
    }
    return NULL;
}

MoeStatus moe_cuda_add_sums(MoeDevice *base, MoeExec *x, MoeExecProgram *g) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    (void)x;
    MOE_TRY(moe_cuda_enter(d));
    for (size_t i = 0; i < g->plan->n_batch_sums; i++) {
        const MoePlanAccumulate *a = &g->plan->batch_sums[i];
        uint64_t bufs[] = {moe_cuda_address(d, g->values[a->source]),
                           moe_cuda_address(d, g->values[a->value]), (uint64_t)a->elements};
        MOE_TRY(launch_runtime(d, MOE_RT_ID_moe_rt_add_i32, a->elements, bufs, 3));
    }
    return NULL;
}

static MoeStatus fill_window(MoeDeviceCuda *d, const MoeExec *x, const MoeExecProgram *g, size_t i) {
    const MoePlanStep *s = &g->plan->steps[i];
    int64_t V = x->plan->virtual_shards, entries = s->n_slots * V + 1;
    uint64_t bufs[] = {moe_cuda_address(d, g->values[s->segs]), moe_cuda_address(d, g->windows[i]),
                       (uint64_t)entries, (uint64_t)(s->slot_lo * V), (uint64_t)(s->slot_hi * V)};
    return launch_runtime(d, MOE_RT_ID_moe_rt_window, entries, bufs, 5);
}

/* ---- elastic values ---- */

/* The device's table with the limits of now; what it has seen is in `elastic` already. */
static MoeStatus send_limits(MoeDeviceCuda *d, const MoeExecProgram *g, MoeCudaProgram *c) {
    for (size_t k = 0; k < c->n_elastic; k++) {
        const MoePlanValue *v = &g->plan->values[c->value[k]];
        c->elastic[k].limit = moe_cuda_elastic_rows(v, moe_cuda_mapped(d, v->offset));
        c->elastic[k].need = 0;
    }
    MOE_TRY(moe_cuda_check(d,
                           d->cu->copy_in(c->table, c->elastic, c->n_elastic * sizeof *c->elastic,
                                          d->stream),
                           "copying the table of elastic values"));
    c->stale = false;
    return moe_cuda_wait(d);
}

static MoeStatus read_elastic(MoeDeviceCuda *d, MoeCudaProgram *c) {
    return moe_cuda_check(d,
                          d->cu->copy_out(c->elastic, c->table, c->n_elastic * sizeof *c->elastic,
                                          d->stream),
                          "copying the table of elastic values, behind step %s",
                          d->step ? d->step : "none");
}

MoeStatus moe_cuda_limits(MoeDeviceCuda *d, const MoeExecProgram *g, MoeCudaProgram *c) {
    if (!c->n_elastic)
        return NULL;
    if (d->grew)
        for (size_t k = 0; k < d->plan->n_programs; k++)
            d->programs[k].stale = true;
    d->grew = false;
    if (!c->stale)
        return NULL;
    MOE_TRY(moe_cuda_wait(d));
    MOE_TRY(read_elastic(d, c));
    MOE_TRY(moe_cuda_wait(d));
    return send_limits(d, g, c);
}

/* Values [from, end): what does not fit stops with this code; 0: they all do. */
static MoeStatus look_at(MoeDeviceCuda *d, const MoeExecProgram *g, MoeCudaProgram *c, size_t from,
                         size_t end, size_t code) {
    if (from == end)
        return NULL;
    MOE_TRY(moe_cuda_limits(d, g, c));
    uint64_t bufs[] = {c->table + from * sizeof *c->elastic, end - from, code};
    d->looked = true;
    return launch_runtime(d, MOE_RT_ID_moe_rt_guard_rows, 1, bufs, 3);
}

MoeStatus moe_cuda_look_before(MoeDeviceCuda *d, const MoeExecProgram *g, MoeCudaProgram *c, size_t i) {
    return c->n_elastic ? look_at(d, g, c, c->before[i], c->after[i], 1 + i) : NULL;
}

/* A value that a step of the host begins has its memory from then on: the host knows the rows. */
static MoeStatus make_room(MoeDeviceCuda *d, MoeExec *x, MoeExecProgram *g, int value) {
    const MoePlanValue *v = &g->plan->values[value];
    const int32_t *segs = (const int32_t *)(const void *)g->values[v->rows],
                  *last = &segs[g->plan->values[v->rows].bytes / 4 - 1];
    MOE_TRY(moe_cuda_read(&d->base, (const char *)last, sizeof *last));
    moe_exec_elastic_used(x, g, value, *last * v->row_bytes);
    return moe_cuda_map(d, v->offset, moe_cuda_elastic_bytes(v, *last));
}

MoeStatus moe_cuda_stepped(MoeDevice *base, MoeExec *x, MoeExecProgram *g, size_t i) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    MoeCudaProgram *c = moe_cuda_program(d, x, g);
    MOE_TRY(moe_cuda_enter(d));
    if (g->plan->steps[i].kernel || moe_device_carries(base, x, g, i))
        return look_at(d, g, c, c->after[i], c->before[i + 1], 0);
    for (size_t k = c->before[i]; k < c->before[i + 1]; k++)
        MOE_TRY(make_room(d, x, g, c->value[k]));
    return NULL;
}

/* ---- steps ---- */

MoeStatus moe_cuda_launch_step(MoeDeviceCuda *d, const MoeExecProgram *g, const MoeCudaProgram *c,
                               size_t i) {
    const MoePlanStep *s = &g->plan->steps[i];
    return moe_cuda_check(
        d,
        d->cu->launch(c->launches[i].function, (unsigned)s->shape.grid, 1, 1,
                      (unsigned)s->shape.block, 1, 1, (unsigned)s->shape.shared_bytes, d->stream,
                      c->launches[i].params, NULL),
        "launching step %s of program %s (%s, %lld blocks of %d threads)", s->name, g->plan->name,
        s->kernel, (long long)s->shape.grid, s->shape.block);
}

MoeStatus moe_cuda_run(MoeDevice *base, MoeExec *x, MoeExecProgram *g, size_t i) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    MoeCudaProgram *c = moe_cuda_program(d, x, g);
    const MoePlanStep *s = &g->plan->steps[i];
    bool timed = x->profile || x->watch;
    MOE_TRY(moe_cuda_enter(d));
    MOE_TRY(moe_cuda_look_before(d, g, c, i));
    if (timed)
        MOE_TRY(moe_cuda_check(d, d->cu->event_record(d->begin, d->stream), "cuEventRecord"));
    if (s->slot_hi)
        MOE_TRY(fill_window(d, x, g, i));
    d->program = g->plan->name;
    d->step = s->name;
    MOE_TRY(moe_cuda_blaslt_has(c, i)  ? moe_cuda_blaslt_run(d, c, s, i)
            : moe_cuda_cudnn_has(c, i) ? moe_cuda_cudnn_run(d, c, i)
                                       : moe_cuda_launch_step(d, g, c, i));
    if (timed)
        MOE_TRY(moe_cuda_check(d, d->cu->event_record(d->end, d->stream), "cuEventRecord"));
    d->timed = timed;
    return NULL;
}

MoeStatus moe_cuda_timed(MoeDevice *base, double *out_seconds) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    float ms = 0;
    *out_seconds = -1;
    if (!d->timed)
        return NULL;
    d->timed = false;
    MOE_TRY(moe_cuda_await(d, d->end, "a step that is timed"));
    MOE_TRY(moe_cuda_check(d, d->cu->event_ms(&ms, d->begin, d->end), "cuEventElapsedTime"));
    *out_seconds = ms * 1e-3;
    return NULL;
}

/* ---- stopping ---- */

static MoeStatus clear_stop(MoeDeviceCuda *d) {
    d->guarded = false;
    return moe_cuda_check(d, d->cu->set_bytes(d->stop, 0, sizeof(int32_t), d->stream),
                          "cuMemsetD8Async of the stop flag");
}

/* What did not fit gets its memory, and somewhat more for the rows of the next batches. */
static MoeStatus grow(MoeDeviceCuda *d, const MoeExecProgram *g, MoeCudaProgram *c, size_t step) {
    for (size_t k = 0; k < c->n_elastic; k++) {
        const MoePlanValue *v = &g->plan->values[c->value[k]];
        int64_t rows = c->elastic[k].need + c->elastic[k].need / 8;
        if (rows)
            MOE_TRY(moe_cuda_map(d, v->offset, moe_cuda_elastic_bytes(v, rows)));
        if (c->elastic[k].need * v->row_bytes > v->bytes)
            return moe_error(MOE_E_INTERNAL,
                             "step %s of program %s: %lld rows of an elastic value that holds %lld",
                             g->plan->steps[step].name, g->plan->name,
                             (long long)c->elastic[k].need, (long long)(v->bytes / v->row_bytes));
    }
    if (!d->grew && !d->peers) /* with peers it may be another rank that lacked it */
        return moe_error(MOE_E_INTERNAL,
                         "step %s of program %s stopped for lack of memory, and nothing lacks it",
                         g->plan->steps[step].name, g->plan->name);
    return NULL;
}

MoeStatus moe_cuda_settle(MoeDevice *base, MoeExec *x, MoeExecProgram *g, size_t *out_again) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    MoeCudaProgram *c = moe_cuda_program(d, x, g);
    int32_t stop = 0;
    *out_again = g->plan->n_steps;
    MOE_TRY(moe_cuda_enter(d));
    if (!c->n_elastic)
        return d->guarded ? clear_stop(d) : NULL;
    if (!d->looked && !d->guarded)
        return d->peers ? moe_cuda_peers_settle(d, x, g, *out_again)
                        : NULL; /* nothing can have stopped since */
    d->looked = false;
    MOE_TRY(moe_cuda_wait(d)); /* a copy to memory that is not pinned waits by itself, and hears of no failure */
    MOE_TRY(moe_cuda_check(d, d->cu->copy_out(&stop, d->stop, sizeof stop, d->stream),
                           "reading the stop flag, behind step %s", d->step ? d->step : "none"));
    MOE_TRY(read_elastic(d, c));
    MOE_TRY(moe_cuda_wait(d));
    for (size_t k = 0; k < c->n_elastic; k++)
        if (c->elastic[k].seen)
            moe_exec_elastic_used(x, g, c->value[k],
                                  c->elastic[k].seen * g->plan->values[c->value[k]].row_bytes);
    if (stop)
        MOE_TRY(clear_stop(d));
    if (stop == MOE_RT_NOT_FINITE)
        return NULL;
    if (stop) {
        MOE_ASSERT(stop > 0 && (size_t)stop <= g->plan->n_steps, "stopped by %d", stop);
        *out_again = (size_t)stop - 1;
        MOE_TRY(grow(d, g, c, *out_again));
    }
    return d->peers ? moe_cuda_peers_settle(d, x, g, *out_again) : NULL;
}

static MoeCuPtr output_address(const MoeDeviceCuda *d, const MoeExecProgram *g, const char *name) {
    for (size_t i = 0; i < g->plan->n_outputs; i++)
        if (!strcmp(g->plan->outputs[i].name, name))
            return moe_cuda_address(d, g->values[g->plan->outputs[i].value]);
    MOE_ASSERT(0, "program %s has no output %s", g->plan->name, name); /* check_ports in exec.c */
    return 0;
}

MoeStatus moe_cuda_guard(MoeDevice *base, MoeExec *x, MoeExecProgram *g) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    (void)x;
    MOE_TRY(moe_cuda_enter(d));
    uint64_t bufs[] = {output_address(d, g, "loss"), output_address(d, g, "grad_norm")};
    d->guarded = true;
    return launch_runtime(d, MOE_RT_ID_moe_rt_guard_finite, 1, bufs, 2);
}
