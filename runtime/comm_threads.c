/* N ranks in one process. Who starts an exchange puts up its blocks; who receives copies them, once, from the sender's rows
 * to its own, as soon as both have started: in wait (of any exchange: all that are under way go on) and in poll. A wait ends
 * when this rank has all it receives and its peers have taken all it sends.
 *
 * Sizes are compared when the second of two ranks starts the exchange, whatever either lists. After a failure nothing more
 * is copied, and no call returns while a peer still copies out of this rank's rows.
 *
 * A rank is silent that has made no call, used no CPU time and waited for no disk; or has made no call for very long. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/assert.h"
#include "base/pool.h"
#include "base/str.h"
#include "runtime/comm_hub.h"
#include "runtime/comm_life.h"

#if defined(__x86_64__) || defined(__i386__)
#define CPU_RELAX() __builtin_ia32_pause()
#else
#define CPU_RELAX() ((void)0)
#endif

#define SPIN_SECONDS 40e-6
#define STALL_LIMITS 40 /* silence limits without a call: silent, even if at work */
#define MAX_RANKS    4096

static void alive(MoeHubRank *me) {
    atomic_store_explicit(&me->thread_id, moe_thread_id(), memory_order_relaxed);
    atomic_store_explicit(&me->sign_of_life, (int64_t)(moe_now() * 1e9), memory_order_relaxed);
}

/* Seconds since the rank gave a sign of life; one that waits itself is alive. (locked) */
static double silence(MoeHubRank *r, double limit) {
    if (r->in_wait)
        return 0;
    double now = moe_now();
    double call = now - 1e-9 * (double)atomic_load_explicit(&r->sign_of_life, memory_order_relaxed);
    if (moe_thread_at_work(atomic_load_explicit(&r->thread_id, memory_order_relaxed), &r->ticks))
        r->at_work = now;
    double work = now - r->at_work;
    return call > STALL_LIMITS * limit || call < work ? call : work;
}

static char *place_of(const MoeHub *h, int rank, char *out) {
    return moe_comm_place_text(rank, &h->ranks[rank]->place, out);
}

/* Both ranks have started the exchange: what one sends is what the other receives, or everything ends. (locked) */
static void compare(MoeHub *h, const MoeHubRound *round, int from, int to) {
    const MoeRequest *s = round->of[from], *r = round->of[to];
    int64_t sent = s->peers[to].sends, wanted = r->peers[from].recvs;
    char a[MOE_COMM_PLACE_TEXT], b[MOE_COMM_PLACE_TEXT];
    if (sent != wanted)
        moe_hub_fail(h, MOE_E_INTERNAL, from, to,
                     "exchange %lld: %s sends %lld bytes in \"%s\" to %s, which receives %lld in "
                     "\"%s\"; all ranks must start the same exchanges in the same order",
                     (long long)round->number, place_of(h, from, a), (long long)sent, s->what,
                     place_of(h, to, b), (long long)wanted, r->what);
}

static bool lists(const MoeRequest *r, int peer) {
    return r->peers[peer].sends || r->peers[peer].recvs;
}

/* Compares the new request with those of its peers and lets them look at it. (locked) */
static void meet_peers(MoeHubRank *me, const MoeRequest *r) {
    MoeHub *h = me->hub;
    const MoeHubRound *round = r->round;
    for (int q = 0; q < h->n; q++) {
        bool there = round->of[q] != NULL;
        if (there) {
            compare(h, round, me->base.rank, q);
            compare(h, round, q, me->base.rank);
            moe_hub_notify(h, me->base.rank); /* poll has something to do */
        }
        if (q != me->base.rank && (lists(r, q) || (there && lists(round->of[q], me->base.rank))))
            moe_hub_notify(h, q);
    }
}

static void fill(MoeRequest *r, const MoeBlock *sends, size_t n_sends, const MoeBlock *recvs,
                 size_t n_recvs, int n_ranks, const char *what) {
    if (n_sends)
        memcpy(r->blocks, sends, n_sends * sizeof *sends);
    if (n_recvs)
        memcpy(r->blocks + n_sends, recvs, n_recvs * sizeof *recvs);
    r->n_sends = n_sends;
    r->n_recvs = n_recvs;
    snprintf(r->what, sizeof r->what, "%s", what);
    for (size_t i = 0; i < n_sends; i++)
        r->peers[sends[i].peer].sends += sends[i].n * sends[i].row_bytes;
    for (size_t i = 0; i < n_recvs; i++)
        r->peers[recvs[i].peer].recvs += recvs[i].n * recvs[i].row_bytes;
    for (int q = 0; q < n_ranks; q++)
        r->open += (r->peers[q].sends > 0) + (r->peers[q].recvs > 0);
}

static MoeStatus threads_start(MoeComm *c, const MoeBlock *sends, size_t n_sends,
                               const MoeBlock *recvs, size_t n_recvs, const char *what,
                               MoeRequest **out) {
    MoeHubRank *me = (MoeHubRank *)c;
    MoeHub *h = me->hub;
    alive(me);
    moe_hub_lock(h);
    MoeStatus st = moe_hub_status(me);
    MoeRequest *r = st ? NULL : moe_hub_request(h, n_sends + n_recvs);
    if (r) {
        fill(r, sends, n_sends, recvs, n_recvs, h->n, what);
        if (moe_hub_post(me, r))
            meet_peers(me, r);
        else
            r = NULL;
    }
    if (!st && !r)
        st = moe_error(MOE_E_NOMEM, "out of memory for exchange \"%s\" of %zu blocks", what,
                       n_sends + n_recvs);
    moe_hub_unlock(h);
    *out = r;
    return st;
}

/* Copies what `from` sends to this rank in r. (locked; not while it copies) */
static void take(MoeHubRank *me, MoeRequest *r, int peer) {
    MoeHub *h = me->hub;
    int rank = me->base.rank;
    MoeRequest *from = r->round->of[peer];
    from->readers++;
    moe_hub_unlock(h);
    MoeStream src = moe_stream(from->blocks, from->n_sends, rank);
    MoeStream dst = moe_stream(r->blocks + r->n_sends, r->n_recvs, peer);
    moe_stream_copy(&src, &dst);
    moe_hub_lock(h);
    from->readers--;
    from->peers[rank].sent = true;
    from->open--;
    r->peers[peer].got = true;
    r->open--;
    if (peer != rank)
        moe_hub_notify(h, peer);
}

/* Copies all that can be copied, for every exchange of this rank under way. (locked) */
static void go_on(MoeHubRank *me) {
    MoeHub *h = me->hub;
    for (MoeRequest *r = me->first; r; r = r->next)
        for (int k = 0; r->open && k < h->n; k++) {
            int q = (me->base.rank + k) % h->n; /* not all from the same peer at once */
            if (h->failed)
                return;
            if (r->peers[q].recvs && !r->peers[q].got && r->round->of[q])
                take(me, r, q);
        }
}

static bool needs(const MoeRequest *r, int peer) {
    const MoeHubSide *s = &r->peers[peer];
    return (s->recvs && !s->got) || (s->sends && !s->sent);
}

/* A peer that has left will never do what r needs of it. (locked) */
static void check_gone(MoeHubRank *me, const MoeRequest *r) {
    MoeHub *h = me->hub;
    char at[MOE_COMM_PLACE_TEXT];
    for (int q = 0; h->n_gone && q < h->n; q++)
        if (h->ranks[q]->gone && needs(r, q))
            moe_hub_fail(h, MOE_E_PEER, -1, -1,
                         "%s has left; rank %d waits for it in exchange %lld, \"%s\"",
                         place_of(h, q, at), me->base.rank, (long long)r->round->number, r->what);
}

/* Looks for signs of life of the peers that r needs. The wait has lasted `waited` seconds: ends everything if that is too long
 * for one of them. (locked) */
static void check_silence(MoeHubRank *me, const MoeRequest *r, double waited) {
    MoeHub *h = me->hub;
    double limit = me->base.silence_limit;
    MoeStr who = {0};
    for (int q = 0; q < h->n; q++) {
        double s = needs(r, q) ? silence(h->ranks[q], limit) : 0;
        char at[MOE_COMM_PLACE_TEXT];
        if (s > limit && waited > limit)
            moe_str_printf(&who, "%s%s silent for %.1f s", who.len ? ", " : "", place_of(h, q, at),
                           s);
    }
    if (who.len)
        moe_hub_fail(h, MOE_E_PEER, -1, -1,
                     "%s; rank %d has waited %.1f s in exchange %lld, \"%s\" (limit %g s)",
                     moe_str_c(&who), me->base.rank, waited, (long long)r->round->number, r->what,
                     limit);
    moe_str_free(&who);
}

/* Until something has happened since `seen`: spins, then sleeps for at most `seconds`. (locked) */
static void sleep_for_event(MoeHubRank *me, uint32_t seen, double seconds) {
    MoeHub *h = me->hub;
    if (h->spin) {
        moe_hub_unlock(h);
        double until = moe_now() + SPIN_SECONDS;
        while (atomic_load(&me->events) == seen && moe_now() < until)
            for (int i = 0; i < 32 && atomic_load(&me->events) == seen; i++)
                CPU_RELAX();
        moe_hub_lock(h);
    }
    if (atomic_load(&me->events) != seen)
        return;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    int64_t ns = t.tv_nsec + (int64_t)(seconds * 1e9);
    t.tv_sec += (time_t)(ns / 1000000000);
    t.tv_nsec = (long)(ns % 1000000000);
    me->sleeping = true;
    while (atomic_load(&me->events) == seen)
        if (pthread_cond_timedwait(&me->wake, &h->lock, &t) == ETIMEDOUT)
            break;
    me->sleeping = false;
}

static double clamp(double x, double lo, double hi) {
    return x < lo ? lo : x > hi ? hi : x;
}

/* No peer copies out of this rank's rows any more. (locked) */
static void drain(MoeHubRank *me) {
    for (MoeRequest *r = me->first; r; r = r->next)
        while (r->readers)
            sleep_for_event(me, atomic_load(&me->events), 0.01);
}

static MoeStatus threads_wait(MoeComm *c, MoeRequest *r) {
    MoeHubRank *me = (MoeHubRank *)c;
    MoeHub *h = me->hub;
    double began = moe_now(), look = clamp(c->silence_limit / 8, 0.002, 0.25), looked = began;
    moe_hub_lock(h);
    me->in_wait = true;
    for (;;) {
        uint32_t seen = atomic_load(&me->events);
        go_on(me);
        if (!r->open || h->failed)
            break;
        check_gone(me, r);
        if (moe_now() - looked > look) {
            looked = moe_now();
            check_silence(me, r, looked - began);
        }
        if (!h->failed)
            sleep_for_event(me, seen, look);
    }
    if (h->failed)
        drain(me);
    me->in_wait = false;
    MoeStatus st = moe_hub_status(me);
    moe_hub_end(me, r);
    moe_hub_unlock(h);
    alive(me);
    return st;
}

static void threads_poll(MoeComm *c) {
    MoeHubRank *me = (MoeHubRank *)c;
    alive(me);
    uint32_t events = atomic_load(&me->events);
    if (events == me->polled)
        return;
    me->polled = events;
    moe_hub_lock(me->hub);
    go_on(me);
    moe_hub_unlock(me->hub);
}

static MoeStatus threads_status(MoeComm *c) {
    MoeHubRank *me = (MoeHubRank *)c;
    if (!atomic_load(&me->hub->failed))
        return NULL;
    moe_hub_lock(me->hub);
    MoeStatus st = moe_hub_status(me);
    moe_hub_unlock(me->hub);
    return st;
}

static void threads_phase(MoeComm *c, int64_t step, const char *phase) {
    MoeHubRank *me = (MoeHubRank *)c;
    alive(me);
    moe_hub_lock(me->hub);
    moe_comm_place_set(&me->place, step, phase);
    moe_hub_unlock(me->hub);
}

static void threads_abort(MoeComm *c, const char *why) {
    MoeHubRank *me = (MoeHubRank *)c;
    char at[MOE_COMM_PLACE_TEXT];
    moe_hub_lock(me->hub);
    moe_hub_fail(me->hub, MOE_E_PEER, -1, -1, "%s: %s",
                 moe_comm_place_text(c->rank, &me->place, at), why);
    moe_hub_unlock(me->hub);
}

static void threads_destroy(MoeComm *c) {
    MoeHubRank *me = (MoeHubRank *)c;
    MoeHub *h = me->hub;
    char at[MOE_COMM_PLACE_TEXT];
    moe_hub_lock(h);
    for (MoeRequest *r = me->first; r; r = r->next)
        if (r->open)
            moe_hub_fail(h, MOE_E_PEER, -1, -1, "%s has left in exchange %lld, \"%s\"",
                         moe_comm_place_text(c->rank, &me->place, at), (long long)r->round->number,
                         r->what);
    drain(me);
    while (me->first)
        moe_hub_end(me, me->first);
    me->gone = true;
    bool last = ++h->n_gone == h->n;
    for (int i = 0; i < h->n; i++) /* they may be waiting for this rank */
        moe_hub_notify(h, i);
    moe_hub_unlock(h);
    if (last)
        moe_hub_destroy(h);
}

static const MoeCommOps threads_ops = {"threads",      threads_start, threads_wait,  threads_poll,
                                       threads_status, threads_phase, threads_abort, threads_destroy};

MoeStatus moe_comm_threads(int n, MoeComm **out) {
    MOE_ASSERT(n >= 1, "a communicator of %d ranks", n);
    if (n > MAX_RANKS)
        return moe_error(MOE_E_MISUSE, "%d ranks in one process; at most %d are supported", n,
                         MAX_RANKS);
    MoeHub *h;
    MOE_TRY(moe_hub_create(n, &h));
    for (int i = 0; i < n; i++) {
        h->ranks[i]->base.ops = &threads_ops;
        alive(h->ranks[i]);
        out[i] = &h->ranks[i]->base;
    }
    return NULL;
}
