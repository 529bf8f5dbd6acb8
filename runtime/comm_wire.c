/* The calls of communicators between processes: see comm_wire.h. */
#include "runtime/comm_wire_internal.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/pool.h"

static MoeStatus failure(Wire *c) {
    return moe_watch_failed(c->w) ? moe_watch_status(c->w) : NULL;
}

static void follow_limit(Wire *c) {
    if (c->base.silence_limit != c->limit)
        moe_watch_limit(c->w, c->limit = c->base.silence_limit);
}

/* Until *open is 0. Looks often at first, then yields the core, then sleeps. */
static MoeStatus wait_for(Wire *c, const int *open) {
    double began = moe_now();
    int idle = 0;
    for (;;) {
        if (moe_watch_failed(c->w))
            return failure(c);
        if (*open <= 0)
            return NULL;
        int wait_us = idle < 64 ? 0 : moe_now() - began < 2e-3 ? 20 : 200;
        if (moe_wire_progress(c, wait_us)) {
            idle = 0;
            moe_watch_alive(c->w);
            began = moe_now();
        } else if (idle++ >= 16 && wait_us == 0) {
            sched_yield();
        }
    }
}

/* The communicator's calls. */

static MoeStatus copy_own(Wire *c, const MoeBlock *sends, size_t n_sends, const MoeBlock *recvs,
                          size_t n_recvs, const char *what) {
    int me = c->base.rank;
    int64_t out = moe_blocks_bytes(sends, n_sends, me), in = moe_blocks_bytes(recvs, n_recvs, me);
    if (out != in) {
        moe_wire_differ(c, c->next, me, &c->place, out, what, in, what);
        return failure(c);
    }
    MoeStream from = moe_stream(sends, n_sends, me), to = moe_stream(recvs, n_recvs, me);
    moe_stream_copy(&from, &to);
    return NULL;
}

static MoeStatus wire_start(MoeComm *base, const MoeBlock *sends, size_t n_sends,
                            const MoeBlock *recvs, size_t n_recvs, const char *what,
                            MoeRequest **out) {
    Wire *c = (Wire *)base;
    follow_limit(c);
    moe_watch_alive(c->w);
    MOE_TRY(failure(c));
    MOE_TRY(copy_own(c, sends, n_sends, recvs, n_recvs, what));
    MoeRequest *r = moe_wire_request(c, sends, n_sends, recvs, n_recvs, what);
    if (!r)
        return moe_error(MOE_E_NOMEM, "out of memory for exchange \"%s\" of %zu blocks", what,
                         n_sends + n_recvs);
    moe_wire_begin(c, r, sends, n_sends);
    moe_wire_meet(c, r, sends, n_sends);
    MoeStatus st = failure(c);
    if (!st)
        *out = r;
    return st; /* on failure r stays in the list: its memory may be in use until the end */
}

static MoeStatus wire_wait(MoeComm *base, MoeRequest *r) {
    Wire *c = (Wire *)base;
    follow_limit(c);
    moe_watch_waits(c->w, r->what);
    MoeStatus st = wait_for(c, &r->open);
    moe_watch_waits(c->w, NULL);
    if (!st)
        moe_wire_end(c, r);
    return st;
}

static void wire_poll(MoeComm *base) {
    Wire *c = (Wire *)base;
    moe_watch_alive(c->w);
    if (c->first && !moe_watch_failed(c->w))
        moe_wire_progress(c, 0);
}

static MoeStatus wire_status(MoeComm *base) {
    return failure((Wire *)base);
}

static void wire_phase(MoeComm *base, int64_t step, const char *phase) {
    Wire *c = (Wire *)base;
    moe_comm_place_set(&c->place, step, phase);
    moe_watch_phase(c->w, step, phase);
}

static void wire_abort(MoeComm *base, const char *why) {
    moe_watch_abort(((Wire *)base)->w, why);
}

/* This rank ends while others go on, or with an exchange under way. */
static void fail_leaving(Wire *c, int64_t number, const char *what) {
    char at[MOE_COMM_PLACE_TEXT];
    moe_watch_fail(c->w, MOE_E_PEER, -1, -1, "%s has left in exchange %lld, \"%s\"",
                   moe_comm_place_text(c->base.rank, &c->place, at), (long long)number, what);
}

static void say_leave(Wire *c) {
    moe_wire_fill_front(c, &c->leaving, FRONT_LEAVE, c->next, 0, "");
    for (int k = 1; k < c->base.size; k++) {
        MoeWireOp *op = &c->leaves[k];
        *op = (MoeWireOp){.data = (char *)&c->leaving,
                          .bytes = sizeof c->leaving,
                          .peer = (c->base.rank + k) % c->base.size,
                          .channel = MOE_WIRE_FRONT,
                          .send = true};
        c->leaves_open++;
        moe_wire_post(c, op);
    }
}

/* Ranks that have not said that they leave. One that goes on with exchanges instead ends the job. */
static int n_staying(Wire *c) {
    int n = 0;
    for (int p = 0; p < c->base.size; p++) {
        const Door *d = &c->doors[p];
        if (p == c->base.rank || d->left)
            continue;
        n++;
        if (d->held)
            fail_leaving(c, moe_wire_front(c, p)->number, moe_wire_front(c, p)->what);
    }
    return n;
}

/* All ranks tell each other that they leave, and wait for it; false after a failure. */
static bool leave(Wire *c) {
    if (c->first) {
        fail_leaving(c, c->first->number, c->first->what);
        return false;
    }
    moe_watch_waits(c->w, "the end");
    say_leave(c);
    while (!moe_watch_failed(c->w) && (c->leaves_open || n_staying(c)))
        moe_wire_progress(c, 200);
    return !moe_watch_failed(c->w);
}

static void free_wire(Wire *c) {
    if (!c)
        return;
    moe_wire_free_requests(c->first);
    moe_wire_free_requests(c->unused);
    free(c->doors);
    free(c->fronts);
    free(c->leaves);
    free(c);
}

static void wire_destroy(MoeComm *base) {
    Wire *c = (Wire *)base;
    bool good = !moe_watch_failed(c->w) && leave(c);
    bool mine = c->t->ops->destroy(c->t, good);
    if (good)
        moe_watch_leave(c->w);
    moe_watch_close(c->w);
    if (mine)
        free_wire(c);
}

static MoeStatus make(Wire **out, int size) {
    Wire *c = calloc(1, sizeof *c);
    if (c) {
        c->doors = calloc((size_t)size, sizeof *c->doors);
        c->fronts = calloc((size_t)size, FRONT_ROOM);
        c->leaves = calloc((size_t)size, sizeof *c->leaves);
    }
    *out = c;
    if (c && c->doors && c->fronts && c->leaves)
        return NULL;
    return moe_error(MOE_E_NOMEM, "out of memory for a communicator of %d ranks", size);
}

MoeStatus moe_comm_wire(const char *name, int rank, int size, MoeTransport *t, MoeWatch *w,
                        double silence_limit, MoeComm **out) {
    static const MoeCommOps mpi = {"mpi",       wire_start, wire_wait,  wire_poll,
                                   wire_status, wire_phase, wire_abort, wire_destroy},
                            tcp = {"tcp",       wire_start, wire_wait,  wire_poll,
                                   wire_status, wire_phase, wire_abort, wire_destroy};
    Wire *c;
    MoeStatus st = make(&c, size);
    if (st) {
        t->ops->destroy(t, false);
        moe_watch_close(w);
        free_wire(c);
        return st;
    }
    c->base = (MoeComm){.ops = strcmp(name, "mpi") == 0 ? &mpi : &tcp,
                        .rank = rank,
                        .size = size,
                        .silence_limit = silence_limit};
    c->t = t;
    c->w = w;
    c->limit = silence_limit;
    c->last = &c->first;
    for (int p = 0; p < size; p++)
        if (p != rank)
            moe_wire_open_door(c, p);
    *out = &c->base;
    return NULL;
}
