/* What arrives in exchanges between processes: fronts at the doors of the peers, bodies, and what is wrong with them. See
 * comm_wire.h. */
#include "runtime/comm_wire_internal.h"

#include <string.h>

Front *moe_wire_front(const Wire *c, int peer) {
    return (Front *)(void *)(c->fronts + (size_t)peer * FRONT_ROOM);
}

/* What a transport says becomes the job's failure. Takes st. */
static void broken(Wire *c, MoeStatus st, int peer) {
    if (!st)
        return;
    if (peer >= 0)
        moe_watch_lost(c->w, peer, moe_status_message(st));
    else
        moe_watch_fail(c->w, moe_status_code(st), c->base.rank, -1, "rank %d: %.900s", c->base.rank,
                       moe_status_message(st));
    moe_status_free(st);
}

void moe_wire_post(Wire *c, MoeWireOp *op) {
    int peer = -1;
    if (!moe_watch_failed(c->w))
        broken(c, c->t->ops->post(c->t, op, &peer), peer);
}

void moe_wire_differ(Wire *c, int64_t number, int peer, const MoeCommPlace *at, int64_t sent,
                     const char *sender_what, int64_t wanted, const char *what) {
    char a[MOE_COMM_PLACE_TEXT], b[MOE_COMM_PLACE_TEXT];
    moe_watch_fail(c->w, MOE_E_INTERNAL, peer, c->base.rank,
                   "exchange %lld: %s sends %lld bytes in \"%s\" to %s, which receives %lld in "
                   "\"%s\"; all ranks must start the same exchanges in the same order",
                   (long long)number, moe_comm_place_text(peer, at, a), (long long)sent,
                   sender_what, moe_comm_place_text(c->base.rank, &c->place, b), (long long)wanted,
                   what);
}

static void fail_left(Wire *c, int peer, int64_t number, const char *what) {
    char at[MOE_COMM_PLACE_TEXT];
    moe_watch_fail(c->w, MOE_E_PEER, -1, -1,
                   "%s has left; rank %d needs it in exchange %lld, \"%s\"",
                   moe_comm_place_text(peer, &moe_wire_front(c, peer)->place, at), c->base.rank,
                   (long long)number, what);
}

static void fail_nonsense(Wire *c, int peer) {
    moe_watch_fail(c->w, MOE_E_INTERNAL, peer, c->base.rank,
                   "rank %d got a message from rank %d that does not follow the protocol of "
                   "exchanges; do all ranks run the same build?",
                   c->base.rank, peer);
}

void moe_wire_open_door(Wire *c, int peer) {
    Door *d = &c->doors[peer];
    d->held = false;
    d->op = (MoeWireOp){.data = (char *)moe_wire_front(c, peer),
                        .bytes = FRONT_ROOM,
                        .peer = peer,
                        .channel = MOE_WIRE_FRONT};
    moe_wire_post(c, &d->op);
}

static void copy_to_rows(const char *from, int64_t n, const MoeBlock *blocks, size_t n_blocks,
                         int peer) {
    MoeStream s = moe_stream(blocks, n_blocks, peer);
    char *run;
    for (int64_t k; n > 0 && (k = moe_stream_next(&s, n, &run)) > 0; from += k, n -= k)
        memcpy(run, from, (size_t)k);
}

static Arrival *arrival_from(MoeRequest *r, int peer) {
    for (size_t i = 0; i < r->n_arrivals; i++)
        if (r->arrivals[i].peer == peer)
            return &r->arrivals[i];
    return NULL;
}

/* Is all of it here? */
static void check_arrival(Wire *c, MoeRequest *r, Arrival *a) {
    if (!a->front || a->open)
        return;
    if (a->bad) { /* the front spoke the truth about another body */
        fail_nonsense(c, a->peer);
        return;
    }
    if (a->staged)
        copy_to_rows(a->staged, a->bytes, r->blocks, r->n_blocks, a->peer);
    r->open--;
}

/* The oldest exchange that waits for a front of the peer; NULL: none. */
static MoeRequest *oldest_waiting(Wire *c, int peer, Arrival **out) {
    for (MoeRequest *r = c->first; r; r = r->next) {
        Arrival *a = arrival_from(r, peer);
        if (a && !a->front) {
            *out = a;
            return r;
        }
    }
    return NULL;
}

/* A front that has come and is not yet accepted. Its exchange may be one that this rank has yet to start: then it stays. */
static void look_at_front(Wire *c, int peer) {
    const Front *f = moe_wire_front(c, peer);
    Arrival *a = NULL;
    MoeRequest *r = oldest_waiting(c, peer, &a);
    if (c->doors[peer].left) {
        if (r)
            fail_left(c, peer, r->number, r->what);
    } else if (r && r->number < f->number) { /* the peer went past it */
        moe_wire_differ(c, r->number, peer, &f->place, 0, "(none)", a->bytes, r->what);
    } else if (r && r->number == f->number) {
        if (a->bytes != f->bytes) {
            moe_wire_differ(c, r->number, peer, &f->place, f->bytes, f->what, a->bytes, r->what);
            return;
        }
        a->front = true;
        if (a->bytes <= WIRE_INLINE)
            copy_to_rows((const char *)(f + 1), a->bytes, r->blocks, r->n_blocks, peer);
        check_arrival(c, r, a);
        moe_wire_open_door(c, peer);
    } else if (f->number < c->next) {
        moe_wire_differ(c, f->number, peer, &f->place, f->bytes, f->what, 0, "(none)");
    }
}

static void on_front(Wire *c, const MoeWireOp *op) {
    const Front *f = moe_wire_front(c, op->peer);
    int64_t data = op->bytes - (int64_t)sizeof *f;
    if (op->bad || data < 0 || f->magic != FRONT_MAGIC ||
        data != (f->bytes <= WIRE_INLINE ? f->bytes : 0)) {
        fail_nonsense(c, op->peer);
        return;
    }
    c->doors[op->peer].held = true;
    c->doors[op->peer].left = f->kind == FRONT_LEAVE;
    look_at_front(c, op->peer);
}

static void on_body(Wire *c, const MoeWireOp *op) {
    MoeRequest *r = op->request;
    Arrival *a = &r->arrivals[op->index];
    a->open--;
    a->bad = a->bad || op->bad;
    check_arrival(c, r, a);
}

static void on_done(Wire *c, MoeWireOp *op) {
    if (!op->request && op->send)
        c->leaves_open--;
    else if (!op->request)
        on_front(c, op);
    else if (op->send)
        op->request->open--;
    else
        on_body(c, op);
}

bool moe_wire_progress(Wire *c, int wait_us) {
    MoeWireOp *done = NULL;
    int peer = -1;
    MoeStatus st = c->t->ops->progress(c->t, wait_us, &done, &peer);
    bool any = done != NULL;
    while (done && !moe_watch_failed(c->w)) {
        MoeWireOp *op = done;
        done = op->next; /* on_done may post it again */
        on_done(c, op);
    }
    broken(c, st, peer);
    return any;
}

void moe_wire_meet(Wire *c, MoeRequest *r, const MoeBlock *sends, size_t n_sends) {
    for (int p = 0; p < c->base.size && !moe_watch_failed(c->w); p++) {
        if (!c->doors[p].held)
            continue;
        if (c->doors[p].left && moe_blocks_bytes(sends, n_sends, p))
            fail_left(c, p, r->number, r->what);
        else
            look_at_front(c, p);
    }
}
