/* The helper thread that keeps the ranks of a job informed of each other, and what the main thread asks of it: see
 * comm_watch.h. Messages are small and sockets nonblocking, so that a stopped rank holds nobody up. */
#include "runtime/comm_watch_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/pool.h"
#include "base/str.h"

#define STALL_LIMITS 40  /* silence limits without progress of any rank that are a failure */
#define SAY_AFTER    0.2 /* seconds until the thread says what the main thread does not */
#define KILL_AFTER   1.0 /* ... until a silent process is killed: the launcher may do it first */
#define EXIT_UNKNOWN                                                                               \
    4.0 /* ... until a process ends whose main thread does not come to hear of a failure */
#define EXIT_KNOWN 30.0 /* ... or heard of it, and does not end */

static double limit_of(const MoeWatch *w) {
    return atomic_load(&w->limit_ms) / 1000.0;
}

static double interval_of(const MoeWatch *w) {
    return fmin(fmax(limit_of(w) / 8, 0.02), 0.5);
}

/* Sending and receiving. */

static void drop(WatchLink *l) {
    if (l->fd >= 0)
        close(l->fd);
    l->fd = -1;
}

static void flush_link(WatchLink *l) {
    while (l->fd >= 0 && l->n_out) {
        ssize_t k = send(l->fd, l->out, l->n_out, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (k <= 0)
            return; /* full: later; broken: receiving will tell */
        l->n_out -= (size_t)k;
        memmove(l->out, l->out + k, l->n_out);
    }
}

static void post(WatchLink *l, WatchMessage m, const char *text) {
    if (l->fd < 0)
        return;
    flush_link(l);
    size_t n = text ? strnlen(text, WATCH_TEXT - 1) : 0;
    /* A beat can be left out, if the other end does not read. */
    if (sizeof l->out - l->n_out < sizeof m + n || (m.kind == WATCH_BEAT && l->n_out))
        return;
    m.n = (uint32_t)n;
    memcpy(l->out + l->n_out, &m, sizeof m);
    if (n)
        memcpy(l->out + l->n_out + sizeof m, text, n);
    l->n_out += sizeof m + n;
    flush_link(l);
}

static void post_all(MoeWatch *w, WatchMessage m, const char *text) {
    for (int i = 0; i < w->n_links; i++)
        post(&w->links[i], m, text);
}

/* Failure. */

static WatchMessage failure_message(WatchKind kind, const WatchFailure *f) {
    return (WatchMessage){.kind = (uint32_t)kind,
                          .code = (int32_t)f->code,
                          .party = {f->party[0], f->party[1]},
                          .about = f->about};
}

/* The job failed, for the first reason that comes. */
static void fail(MoeWatch *w, const WatchFailure *f) {
    pthread_mutex_lock(&w->lock);
    bool first = !atomic_load(&w->failed);
    if (first) {
        w->failure = *f;
        w->failed_at = moe_now();
        atomic_store(&w->failed, true);
        pthread_cond_broadcast(&w->changed);
    }
    pthread_mutex_unlock(&w->lock);
    if (first && w->rank == 0)
        post_all(w, failure_message(WATCH_FAILED, f), f->text);
}

static void MOE_PRINTF(3, 4) fail_about(MoeWatch *w, int rank, const char *fmt, ...) {
    WatchFailure f = {.code = MOE_E_PEER, .party = {-1, -1}, .about = rank};
    va_list args;
    va_start(args, fmt);
    vsnprintf(f.text, sizeof f.text, fmt, args);
    va_end(args);
    fail(w, &f);
}

/* The first rank that can kill the silent one's process is to do it. */
static void arrange_kill(MoeWatch *w, const WatchLink *silent) {
    uint64_t host = silent->process.host;
    if (!host)
        return;
    if (w->rank == 0 ? host == w->self.host : w->guard) {
        w->victim = silent->process;
        w->kill_victim = true;
        return;
    }
    WatchMessage m = {.kind = WATCH_KILL, .process = silent->process};
    for (int i = 0; w->rank == 0 && i < w->n_links; i++)
        if (&w->links[i] != silent && w->links[i].fd >= 0 && w->links[i].process.host == host) {
            post(&w->links[i], m, NULL);
            return;
        }
}

static void on_silence(MoeWatch *w, WatchLink *l, double seconds) {
    fail_about(w, l->rank,
               "%s gave no sign of life for %.1f s: its process was stopped, or its host cannot be "
               "reached",
               l->place, seconds);
    arrange_kill(w, l);
}

/* No main thread of any rank got anywhere for long: it is a rank that waits for no other that hangs, if there is one. */
static void on_stall(MoeWatch *w, bool self_waits, double seconds) {
    for (int i = 0; i < w->n_links; i++)
        if (w->links[i].fd >= 0 && !w->links[i].waiting) {
            fail_about(w, w->links[i].rank, "no rank got any further for %.0f s: %s hangs", seconds,
                       w->links[i].place);
            return;
        }
    if (!self_waits)
        fail_about(w, 0, "no rank got any further for %.0f s: rank 0 hangs", seconds);
    else
        fail_about(w, -1,
                   "no rank got any further for %.0f s: all wait for others, for instance %s",
                   seconds, w->links[w->n_links - 1].place);
}

static void on_message(MoeWatch *w, WatchLink *l, const WatchMessage *m, const char *text) {
    WatchFailure f;
    switch ((WatchKind)m->kind) {
    case WATCH_BEAT:
        snprintf(l->place, sizeof l->place, "%.319s", text);
        l->waiting = m->waiting != 0;
        if (m->calls != l->calls) {
            l->calls = m->calls;
            l->moved = moe_now();
        }
        break;
    case WATCH_FAIL:
    case WATCH_FAILED:
        f = (WatchFailure){
            .code = (MoeCode)m->code, .party = {m->party[0], m->party[1]}, .about = m->about};
        snprintf(f.text, sizeof f.text, "%s", text);
        fail(w, &f);
        break;
    case WATCH_KILL:
        w->victim = m->process;
        w->kill_victim = true;
        break;
    case WATCH_LEFT:
        l->left = true;
        break;
    }
}

/* Takes whole messages out of what has come; false if it is no message. */
static bool take_messages(MoeWatch *w, WatchLink *l) {
    while (l->n_in >= sizeof(WatchMessage)) {
        WatchMessage m;
        memcpy(&m, l->in, sizeof m);
        if (m.n >= WATCH_TEXT || m.kind > WATCH_LEFT)
            return false;
        if (l->n_in < sizeof m + m.n)
            return true;
        char text[WATCH_TEXT];
        memcpy(text, l->in + sizeof m, m.n);
        text[m.n] = 0;
        l->n_in -= sizeof m + m.n;
        memmove(l->in, l->in + sizeof m + m.n, l->n_in);
        on_message(w, l, &m, text);
    }
    return true;
}

static void receive(MoeWatch *w, WatchLink *l) {
    for (;;) {
        ssize_t k = recv(l->fd, l->in + l->n_in, sizeof l->in - l->n_in, MSG_DONTWAIT);
        if (k > 0) {
            l->heard = moe_now();
            l->n_in += (size_t)k;
            if (take_messages(w, l))
                continue;
        }
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0 && errno == EAGAIN)
            return;
        drop(l); /* the end, an error, or nonsense */
        if (!l->left)
            fail_about(w, l->rank, "%s died: its process ended", l->place);
        return;
    }
}

/* The thread. */

static void beat(MoeWatch *w, double now) {
    char place[320], at[MOE_COMM_PLACE_TEXT];
    pthread_mutex_lock(&w->lock);
    moe_comm_place_text(w->rank, &w->place, at);
    snprintf(place, sizeof place, "%s%s%s%s", at, w->waiting[0] ? ", waiting in \"" : "",
             w->waiting, w->waiting[0] ? "\"," : "");
    WatchMessage m = {.kind = WATCH_BEAT, .waiting = w->waiting[0] != 0};
    w->beaten = now;
    pthread_mutex_unlock(&w->lock);
    m.calls = atomic_load(&w->calls);
    if (m.calls != w->seen_calls) {
        w->seen_calls = m.calls;
        w->moved = now;
    }
    post_all(w, m, place);
}

/* What the main thread asked for. True if the thread shall end. */
static bool serve_requests(MoeWatch *w) {
    pthread_mutex_lock(&w->lock);
    bool stop = w->stop, leaving = w->leaving, told = w->told;
    WatchFailure own = w->own;
    pthread_mutex_unlock(&w->lock);
    if (told && !w->said_own) {
        w->said_own = true;
        if (w->rank == 0)
            fail(w, &own);
        else
            post_all(w, failure_message(WATCH_FAIL, &own), own.text);
    }
    bool others_left = true;
    for (int i = 0; w->rank == 0 && i < w->n_links; i++)
        others_left = others_left && (w->links[i].rank == 0 || w->links[i].left);
    if (leaving && others_left && !w->said_left) {
        w->said_left = true;
        post_all(w, (WatchMessage){.kind = WATCH_LEFT}, NULL);
        pthread_mutex_lock(&w->lock);
        w->all_left = true;
        pthread_cond_broadcast(&w->changed);
        pthread_mutex_unlock(&w->lock);
    }
    return stop;
}

static void wait_for_news(MoeWatch *w, struct pollfd *p, double now) {
    for (int i = 0; i < w->n_links; i++) {
        p[i].fd = w->links[i].fd;
        p[i].events = w->links[i].n_out ? POLLIN | POLLOUT : POLLIN;
        p[i].revents = 0;
    }
    p[w->n_links] = (struct pollfd){.fd = w->wake[0], .events = POLLIN};
    double until = fmax(w->next_beat - now, 0);
    if (poll(p, (nfds_t)w->n_links + 1, (int)ceil(until * 1000)) <= 0)
        return;
    char bytes[64];
    while (read(w->wake[0], bytes, sizeof bytes) > 0)
        ;
    for (int i = 0; i < w->n_links; i++) {
        if (p[i].revents & POLLOUT)
            flush_link(&w->links[i]);
        if (p[i].revents & ~POLLOUT)
            receive(w, &w->links[i]);
    }
}

static void check_silence(MoeWatch *w, double now) {
    double limit = limit_of(w), last = now - w->last_round;
    w->last_round = now;
    for (int i = 0; i < w->n_links; i++) {
        WatchLink *l = &w->links[i];
        if (last > limit / 2)
            l->heard =
                now; /* this process itself was stopped: the others' signs are yet to be read */
        if (l->fd >= 0 && !l->left && now - l->heard > limit && !atomic_load(&w->failed))
            on_silence(w, l, now - l->heard);
    }
}

static void check_stall(MoeWatch *w, double now) {
    double newest = w->moved;
    for (int i = 0; i < w->n_links; i++)
        newest = fmax(newest, w->links[i].moved);
    if (w->rank != 0 || now - newest < STALL_LIMITS * limit_of(w))
        return;
    pthread_mutex_lock(&w->lock);
    bool self_waits = w->waiting[0] != 0;
    pthread_mutex_unlock(&w->lock);
    if (!atomic_load(&w->failed))
        on_stall(w, self_waits, now - newest);
}

/* A failed job ends, whatever its main thread does. */
static void enforce_end(MoeWatch *w, double now) {
    if (!atomic_load(&w->failed))
        return;
    pthread_mutex_lock(&w->lock);
    double since = now - w->failed_at;
    bool known = w->known, overdue = known ? now - w->known_at > EXIT_KNOWN : since > EXIT_UNKNOWN;
    pthread_mutex_unlock(&w->lock);
    /* One rank is enough to say it, and others follow it in time. */
    bool speaks = w->rank == 0 || (w->rank == 1 && w->failure.about == 0);
    if ((speaks && !known && since > SAY_AFTER && !w->said_failure) || overdue) {
        w->said_failure = true;
        moe_warn("rank %d: %s", w->rank, w->failure.text);
    }
    if (w->kill_victim && since > KILL_AFTER) {
        w->kill_victim = false;
        moe_watch_kill(&w->victim);
    }
    if (overdue)
        _exit(1);
}

/* Seconds from a beat to the next that says of a new phase: so the others know it soon, and rank 0 can read them all. */
static double phase_interval(const MoeWatch *w) {
    return fmin(fmax(0.05, 0.0005 * w->size), interval_of(w));
}

static bool asked_to_beat(MoeWatch *w) {
    pthread_mutex_lock(&w->lock);
    bool asked = isinf(w->beaten);
    pthread_mutex_unlock(&w->lock);
    return asked;
}

static void *helper(void *arg) {
    MoeWatch *w = arg;
    struct pollfd *p = calloc((size_t)w->n_links + 1, sizeof *p);
    w->last_round = w->moved = moe_now();
    for (int i = 0; i < w->n_links; i++)
        w->links[i].heard = w->links[i].moved = w->last_round;
    while (p && !serve_requests(w)) {
        double now = moe_now();
        if (now >= w->next_beat || asked_to_beat(w)) {
            beat(w, now);
            w->next_beat = now + interval_of(w);
        }
        wait_for_news(w, p, now);
        now = moe_now();
        check_silence(w, now);
        check_stall(w, now);
        enforce_end(w, now);
    }
    if (!p)
        fail_about(w, w->rank, "rank %d is out of memory", w->rank);
    if (w->kill_victim) {
        double left = w->failed_at + KILL_AFTER - moe_now();
        if (left > 0) /* the other ranks shall find it silent, not dead */
            usleep((useconds_t)(left * 1e6));
        moe_watch_kill(&w->victim);
    }
    free(p);
    return NULL;
}

/* The main thread's side. */

static void wake(MoeWatch *w) {
    ssize_t k = write(w->wake[1], "", 1);
    (void)k; /* full: it will wake anyway */
}

/* Waits until `*flag` or a failure, at most `seconds`. Called with the lock held. */
static void wait_until(MoeWatch *w, const bool *flag, double seconds) {
    double deadline = moe_now() + seconds;
    while (!(flag && *flag) && !atomic_load(&w->failed) && moe_now() < deadline) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_nsec += 50000000;
        if (t.tv_nsec >= 1000000000) {
            t.tv_nsec -= 1000000000;
            t.tv_sec++;
        }
        pthread_cond_timedwait(&w->changed, &w->lock, &t);
    }
}

static MoeStatus start_thread(MoeWatch *w) {
    if (pipe2(w->wake, O_NONBLOCK | O_CLOEXEC) != 0)
        return moe_error_errno("cannot make a pipe");
    sigset_t all, before; /* signals are the main thread's business */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int e = pthread_create(&w->thread, NULL, helper, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (e) {
        errno = e;
        return moe_error_errno("cannot start a thread");
    }
    w->running = true;
    return NULL;
}

MoeStatus moe_watch_open(const MoeWatchInit *init, MoeWatch **out, MoeWatchPeer **out_peers,
                         MoeAddress *out_local, MoeAddress *out_remote) {
    MoeStatus st = NULL;
    MoeWatch *w = calloc(1, sizeof *w);
    MoeWatchPeer *peers = calloc((size_t)init->size, sizeof *peers);
    if (w) {
        w->rank = init->rank;
        w->size = init->size;
        w->n_links = init->rank == 0 ? init->size : 1;
        w->links = calloc((size_t)w->n_links, sizeof *w->links);
    }
    if (!w || !w->links || !peers) {
        if (w)
            free(w->links);
        free(w);
        free(peers);
        if (init->listener >= 0)
            close(init->listener);
        return moe_error(MOE_E_NOMEM, "no memory for the connections of %d ranks", init->size);
    }
    for (int i = 0; i < w->n_links; i++) {
        w->links[i].fd = -1;
        w->links[i].rank = i;
        snprintf(w->links[i].place, sizeof w->links[i].place, "rank %d (at the start)", i);
    }
    w->self = moe_watch_process();
    w->wake[0] = w->wake[1] = -1;
    moe_comm_place_set(&w->place, -1, "");
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    moe_watch_limit(w, init->silence_limit);
    st = moe_watch_join(w, init, peers);
    if (!st && out_local && w->rank)
        moe_socket_ends(w->links[0].fd, out_local, out_remote);
    if (!st)
        st = start_thread(w);
    if (init->listener >= 0)
        close(init->listener);
    if (st || !init->table) {
        free(peers);
        peers = NULL;
    }
    if (st) {
        moe_watch_close(w);
        return st;
    }
    *out = w;
    *out_peers = peers;
    return NULL;
}

void moe_watch_phase(MoeWatch *w, int64_t step, const char *phase) {
    atomic_fetch_add(&w->calls, 1);
    pthread_mutex_lock(&w->lock);
    moe_comm_place_set(&w->place, step, phase);
    bool tell = moe_now() - w->beaten > phase_interval(w);
    if (tell)
        w->beaten = INFINITY; /* until it was */
    pthread_mutex_unlock(&w->lock);
    if (tell)
        wake(w);
}

void moe_watch_alive(MoeWatch *w) {
    atomic_fetch_add_explicit(&w->calls, 1, memory_order_relaxed);
}

void moe_watch_waits(MoeWatch *w, const char *what) {
    moe_watch_alive(w);
    pthread_mutex_lock(&w->lock);
    snprintf(w->waiting, sizeof w->waiting, "%s", what ? what : "");
    pthread_mutex_unlock(&w->lock);
}

void moe_watch_limit(MoeWatch *w, double silence_limit) {
    atomic_store(&w->limit_ms, (int)fmax(fmin(silence_limit * 1000, 1e9), 1));
}

bool moe_watch_failed(MoeWatch *w) {
    return atomic_load(&w->failed);
}

MoeStatus moe_watch_status(MoeWatch *w) {
    pthread_mutex_lock(&w->lock);
    if (!w->known) {
        w->known = true;
        w->known_at = moe_now();
    }
    const WatchFailure *f = &w->failure;
    bool party = w->rank == f->party[0] || w->rank == f->party[1];
    MoeStatus st = moe_error(party ? f->code : MOE_E_PEER, "%s", f->text);
    pthread_mutex_unlock(&w->lock);
    return st;
}

void moe_watch_fail(MoeWatch *w, MoeCode code, int a, int b, const char *fmt, ...) {
    WatchFailure f = {.code = code, .party = {a, b}, .about = w->rank};
    va_list args;
    va_start(args, fmt);
    vsnprintf(f.text, sizeof f.text, fmt, args);
    va_end(args);
    pthread_mutex_lock(&w->lock);
    if (!atomic_load(&w->failed)) {
        w->own = f;
        w->told = true;
        wake(w);
        wait_until(w, NULL, 1);
    }
    pthread_mutex_unlock(&w->lock);
    fail(w, &f); /* nobody heard it: the calls here fail all the same */
}

void moe_watch_abort(MoeWatch *w, const char *why) {
    char at[MOE_COMM_PLACE_TEXT];
    pthread_mutex_lock(&w->lock);
    moe_comm_place_text(w->rank, &w->place, at);
    pthread_mutex_unlock(&w->lock);
    moe_watch_fail(w, MOE_E_PEER, -1, -1, "%s: %.800s", at, why);
}

void moe_watch_lost(MoeWatch *w, int peer, const char *why) {
    pthread_mutex_lock(&w->lock);
    wait_until(w, NULL, 2);
    pthread_mutex_unlock(&w->lock);
    if (!moe_watch_failed(w))
        moe_watch_fail(w, MOE_E_PEER, -1, -1, "rank %d lost its connection to rank %d: %.800s",
                       w->rank, peer, why);
}

void moe_watch_leave(MoeWatch *w) {
    pthread_mutex_lock(&w->lock);
    w->leaving = true;
    wake(w);
    wait_until(w, &w->all_left, INFINITY);
    pthread_mutex_unlock(&w->lock);
}

void moe_watch_close(MoeWatch *w) {
    if (!w)
        return;
    if (w->running) {
        pthread_mutex_lock(&w->lock);
        w->stop = true;
        pthread_mutex_unlock(&w->lock);
        wake(w);
        pthread_join(w->thread, NULL);
    }
    for (int i = 0; i < w->n_links; i++)
        drop(&w->links[i]);
    for (int i = 0; i < 2; i++)
        if (w->wake[i] >= 0)
            close(w->wake[i]);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w->links);
    free(w);
}
