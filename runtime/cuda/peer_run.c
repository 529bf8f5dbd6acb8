/* Exchanges by kernels that read the other ranks' memory: started, waited for, and what a stop means for them. See cuda/peer.h.
 *
 * Words. A rank says `ready` to a peer by 1 in the peer's word; the peer waits for it and puts it back to 0. Before it says `ready` again it
 * has waited for the peer's `done`, which the peer says behind that 0 in its stream: so a 1 is never lost, no counter is needed, and
 * a captured graph can do it again and again. All exchanges of a rank are in one stream and in the order of the program, so two ranks
 * meet in the same one.
 *
 * Stops. A guard (rows that outgrew memory) sets a rank's stop word S = 1 + step, and its kernels do nothing from there on. Words and
 * waits go on, so nobody hangs. Before it is ready a rank publishes whether S is set; all members read the same words between
 * `ready` and `done`, and so agree: if one of them is stopped, nobody pulls, each notes it (`skipped`), and at the exchange's wait,
 * step j, sets its own S = 1 + j unless it is set. What stands between an exchange and its wait runs, and need not run again.
 * After the run each rank goes on from S - 1, by itself; skipped exchanges that it started before and waits for from there on are
 * started first, in their order: their operands are as they were, for nobody may touch them before the wait.
 *   Each exchange is run again by all members or by none. Skipped: a member with the exchange behind its S comes to it again; one
 * with S between exchange and wait, or at the wait, starts it again. S cannot be behind the wait, which sets it. Not skipped: nobody
 * had S set at or before it (S is set, if it is, before the step's exchange is started, in the order of the stream), so nobody comes to
 * it again. And all run theirs again in the order of the program, so they meet.
 *   Loss or norm that are not finite stop all ranks, which have the same bits, at the same place; nothing is run again. */
#include <stdlib.h>

#include "runtime/cuda/peer.h"

#define BYTES_A_THREAD 64  /* of what kernels move, roughly */
#define MOST_BLOCKS    264 /* the rest of the device computes meanwhile */

bool moe_cuda_carries(const MoeDevice *base, const MoeExec *x, const MoeExecProgram *g, size_t i) {
    const MoePlanStep *s = &g->plan->steps[i];
    (void)x;
    if (!((const MoeDeviceCuda *)base)->peers)
        return false;
    return s->n_comm || (s->wait >= 0 && g->plan->steps[s->wait].n_comm);
}

static MoePeerProgram *program_of(const MoeDeviceCuda *d, const MoeExec *x,
                                  const MoeExecProgram *g) {
    return &d->peers->programs[g - x->programs];
}

/* ---- words ---- */

static MoeCuPtr saying_word(const MoeDeviceCuda *d, const MoeExec *x, int of, MoePeerSaying what,
                            int by) {
    return moe_peer_word(d->peers->hub, of, MOE_PEER_WORDS + (int)what * x->plan->ranks + by);
}

/* Says it to all peers, waits until all have said it. */
static MoeStatus say(MoeDeviceCuda *d, const MoeExec *x, const MoePeerExchange *e,
                     MoePeerSaying what) {
    MoeCuStreamOp ops[3 * MOE_RT_PEERS] = {0};
    unsigned n = 0;
    for (int k = 0; k < e->n_peers; k++, n++) {
        ops[n].on.operation = MOE_CU_OP_WRITE_VALUE_32;
        ops[n].on.address = saying_word(d, x, e->peers[k], what, x->rank);
        ops[n].on.value = 1;
    }
    for (int k = 0; k < e->n_peers; k++, n++) {
        ops[n].on.operation = MOE_CU_OP_WAIT_VALUE_32;
        ops[n].on.address = saying_word(d, x, x->rank, what, e->peers[k]);
        ops[n].on.value = 1;
        ops[n].on.flags = MOE_CU_WAIT_VALUE_GEQ;
    }
    for (int k = 0; k < e->n_peers; k++, n++) {
        ops[n].on.operation = MOE_CU_OP_WRITE_VALUE_32;
        ops[n].on.address = saying_word(d, x, x->rank, what, e->peers[k]);
    }
    return n ? moe_cuda_check(d, d->cu->stream_ops(d->peers->stream, n, ops, 0),
                              "cuStreamBatchMemOp of an exchange with %d ranks", e->n_peers)
             : NULL;
}

/* ---- kernels ---- */

enum { FLAG, ANY_FLAG, STOP_IF };

static MoeStatus word_kernel(MoeDeviceCuda *d, MoeCuPtr stop, MoeCuStream stream, uint64_t mode,
                             MoeCuPtr out, MoeCuPtr in, uint64_t n, uint64_t code) {
    uint64_t bufs[] = {mode, out, in, n, code};
    return moe_cuda_runtime_under(d, MOE_RT_ID_moe_rt_peer_word, stop, stream, 1, bufs, 5);
}

static int64_t threads_for(int64_t bytes) {
    int64_t n = bytes / BYTES_A_THREAD + 1;
    return n < MOST_BLOCKS * MOE_RT_THREADS ? n : MOST_BLOCKS * MOE_RT_THREADS;
}

static MoeStatus pull(MoeDeviceCuda *d, const MoePeerProgram *p, MoeCuPtr stop, MoePeerOps ops) {
    uint64_t bufs[] = {p->ops + ops.first * sizeof(MoeRtPeerOp), ops.n};
    return ops.n ? moe_cuda_runtime_under(d, MOE_RT_ID_moe_rt_peer_pull, stop, d->peers->stream,
                                          threads_for(ops.bytes), bufs, 2)
                 : NULL;
}

/* Gradients of experts with copies: which roots add up in what order, then the sums. Folds share their scratch memory. */
static MoeStatus folds(MoeDeviceCuda *d, const MoePeerProgram *p, MoeCuPtr stop, MoePeerOps all) {
    for (size_t k = 0; k < all.n; k++) {
        MoePeerOps one = {all.first + k, 1, 0};
        uint64_t op = p->ops + one.first * sizeof(MoeRtPeerOp);
        MOE_TRY(pull(d, p, stop, one));
        MOE_TRY(moe_cuda_runtime_under(d, MOE_RT_ID_moe_rt_peer_fold, stop, d->peers->stream,
                                       threads_for(all.bytes), &op, 1));
    }
    return NULL;
}

/* ---- starting, waiting ---- */

MoeStatus moe_cuda_peers_micro(MoeDeviceCuda *d, const MoeExec *x) {
    struct MoeCudaPeers *p = d->peers;
    int32_t now[2] = {x->micro, x->parts};
    if (p->micro == x->micro && p->micros == x->parts)
        return NULL;
    p->micro = x->micro;
    p->micros = x->parts;
    return moe_cuda_send(d, moe_peer_word(p->hub, x->rank, MOE_PEER_MICRO), (const char *)now,
                         sizeof now);
}

static MoeStatus fork_stream(MoeDeviceCuda *d) {
    MOE_TRY(moe_cuda_check(d, d->cu->event_record(d->peers->fork, d->stream), "cuEventRecord"));
    return moe_cuda_check(d, d->cu->stream_wait(d->peers->stream, d->peers->fork, 0),
                          "cuStreamWaitEvent");
}

static MoeStatus start(MoeDeviceCuda *d, const MoeExec *x, const MoeExecProgram *g, size_t i) {
    struct MoeCudaPeers *p = d->peers;
    MoePeerProgram *q = program_of(d, x, g);
    MoePeerExchange *e = &q->exchanges[i];
    MoeCuPtr zero = moe_peer_word(p->hub, x->rank, MOE_PEER_ZERO),
             skipped = q->skipped + i * sizeof(int32_t), stop = e->guarded ? skipped : zero;
    d->program = g->plan->name;
    d->step = g->plan->steps[i].name;
    MOE_TRY(fork_stream(d));
    if (e->guarded)
        MOE_TRY(word_kernel(d, zero, p->stream, FLAG,
                            moe_peer_word(p->hub, x->rank, MOE_PEER_STOPPED), d->stop, 1, 0));
    MOE_TRY(say(d, x, e, MOE_PEER_READY));
    if (e->guarded)
        MOE_TRY(word_kernel(d, zero, p->stream, ANY_FLAG, skipped, e->flags,
                            (uint64_t)e->n_peers + 1, 0));
    MOE_TRY(pull(d, q, stop, e->pull));
    MOE_TRY(folds(d, q, stop, e->fold));
    if (e->rejoin.n)
        MOE_TRY(say(d, x, e, MOE_PEER_PULLED));
    MOE_TRY(pull(d, q, stop, e->rejoin));
    MOE_TRY(say(d, x, e, MOE_PEER_DONE));
    MOE_TRY(pull(d, q, stop, e->clear));
    e->open = true;
    d->looked |= g->n_elastic > 0;
    p->started++;
    return moe_cuda_check(d, d->cu->event_record(e->over, p->stream), "cuEventRecord");
}

/* Step j waits for the exchange of step i; that may be over, or not have been needed. */
static MoeStatus join(MoeDeviceCuda *d, const MoeExec *x, const MoeExecProgram *g, size_t i,
                      size_t j) {
    MoePeerProgram *q = program_of(d, x, g);
    MoePeerExchange *e = &q->exchanges[i];
    if (!e->open)
        return NULL;
    e->open = false;
    MOE_TRY(moe_cuda_check(d, d->cu->stream_wait(d->stream, e->over, 0), "cuStreamWaitEvent"));
    return e->guarded ? word_kernel(d, d->stop, d->stream, STOP_IF, d->stop,
                                    q->skipped + i * sizeof(int32_t), 1, 1 + j)
                      : NULL;
}

MoeStatus moe_cuda_exchange(MoeDevice *base, MoeExec *x, MoeExecProgram *g, size_t i) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    const MoePlanStep *s = &g->plan->steps[i];
    bool timed = (x->profile || x->watch) && !s->start;
    MOE_TRY(moe_cuda_enter(d));
    MOE_TRY(moe_cuda_peers_micro(d, x));
    if (timed)
        MOE_TRY(moe_cuda_check(d, d->cu->event_record(d->begin, d->stream), "cuEventRecord"));
    if (s->wait < 0) {
        MOE_TRY(moe_cuda_look_before(d, g, moe_cuda_program(d, x, g), i));
        MOE_TRY(start(d, x, g, i));
    }
    if (!s->start)
        MOE_TRY(join(d, x, g, s->wait < 0 ? i : (size_t)s->wait, i));
    if (timed)
        MOE_TRY(moe_cuda_check(d, d->cu->event_record(d->end, d->stream), "cuEventRecord"));
    d->timed = timed;
    return NULL;
}

/* ---- after a stop ---- */

/* The step that waits for exchange i. */
static size_t wait_of(const MoePlanProgram *p, size_t i) {
    for (size_t j = i; p->steps[i].start && j < p->n_steps; j++)
        if (p->steps[j].wait == (int)i)
            return j;
    return i;
}

/* Starts again what was skipped and is still waited for; *out_any: something was. */
static MoeStatus start_skipped(MoeDeviceCuda *d, MoeExec *x, MoeExecProgram *g, size_t again,
                               const int32_t *skipped, bool *out_any) {
    const MoePlanProgram *p = g->plan;
    MoePeerProgram *q = program_of(d, x, g);
    *out_any = false;
    for (size_t i = 0; i < p->n_steps; i++) {
        if (!p->steps[i].n_comm || !skipped[i])
            continue;
        if (i >= again) {
            moe_exec_set_filled(x, g, i, false);
            continue;
        }
        if (!q->exchanges[i].open && (again == p->n_steps || wait_of(p, i) < again))
            continue;
        MOE_TRY(start(d, x, g, i));
        *out_any = true;
    }
    return NULL;
}

static bool any_open(const MoePeerProgram *q, size_t n_steps) {
    for (size_t i = 0; i < n_steps; i++)
        if (q->exchanges[i].open)
            return true;
    return false;
}

static MoeStatus read_skipped(MoeDeviceCuda *d, const MoePeerProgram *q, size_t n_steps,
                              int32_t *out) {
    MOE_TRY(moe_cuda_check(d, d->cu->copy_out(out, q->skipped, n_steps * sizeof *out, d->stream),
                           "reading which exchanges did not take place"));
    return moe_cuda_wait(d);
}

/* Everything that was launched has run, and exchanges that are open may still. An open one that was skipped is started again
 * until it was not: whatever stopped another rank, that rank comes to it. */
MoeStatus moe_cuda_peers_settle(MoeDeviceCuda *d, MoeExec *x, MoeExecProgram *g, size_t again) {
    const size_t n = g->plan->n_steps;
    MoePeerProgram *q = program_of(d, x, g);
    bool any = true;
    if (again == n && !any_open(q, n))
        return NULL;
    int32_t *skipped = calloc(n + 1, sizeof *skipped);
    MoeStatus st = skipped ? NULL : moe_error(MOE_E_NOMEM, "no memory for the plan's tables");
    while (any && !st) {
        st = moe_cuda_check(d, d->cu->event_record(d->peers->fork, d->peers->stream),
                            "cuEventRecord");
        if (!st)
            st = moe_cuda_await(d, d->peers->fork, "exchanges");
        if (!st)
            st = read_skipped(d, q, n, skipped);
        if (!st)
            st = start_skipped(d, x, g, again, skipped, &any);
        any = any && again == n;
    }
    free(skipped);
    return st;
}
