/* The helper thread that keeps the ranks of a job informed of each other: see comm_watch.h. Messages are small and sockets
 * nonblocking, so that a stopped rank holds nobody up. */
#include "runtime/comm_watch_internal.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/pool.h"

#define STALL_LIMITS 40  /* silence limits without progress of any rank that are a failure */
#define SAY_AFTER    0.2 /* seconds until the thread says what the main thread does not */
#define KILL_AFTER   1.0 /* ... until a silent process is killed: the launcher may do it first */
#define EXIT_UNKNOWN                                                                               \
    4.0 /* ... until a process ends whose main thread does not come to hear of a failure */
#define EXIT_KNOWN 30.0 /* ... or heard of it, and does not end */

static double limit_of(const MoeWatch *w) {
    return atomic_load(&w->limit_ms) / 1000.0;
}

double moe_watch_interval(const MoeWatch *w) {
    return fmin(fmax(limit_of(w) / 8, 0.02), 0.5);
}

/* Sending and receiving. */

void moe_watch_drop(WatchLink *l) {
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

void moe_watch_fail_job(MoeWatch *w, const WatchFailure *f) {
    pthread_mutex_lock(&w->lock);
    if (!atomic_load(&w->failed)) {
        w->failure = *f;
        w->failed_at = moe_now();
        atomic_store(&w->failed, true);
        pthread_cond_broadcast(&w->changed);
    }
    pthread_mutex_unlock(&w->lock);
}

static void MOE_PRINTF(3, 4) fail_about(MoeWatch *w, int rank, const char *fmt, ...) {
    WatchFailure f = {.code = MOE_E_PEER, .party = {-1, -1}, .about = rank};
    va_list args;
    va_start(args, fmt);
    vsnprintf(f.text, sizeof f.text, fmt, args);
    va_end(args);
    moe_watch_fail_job(w, &f);
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
        moe_watch_fail_job(w, &f);
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
        moe_watch_drop(l); /* the end, an error, or nonsense */
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

/* What the main thread asked for, and what all must hear. True if the thread shall end. */
static bool serve_requests(MoeWatch *w) {
    pthread_mutex_lock(&w->lock);
    bool stop = w->stop, leaving = w->leaving, told = w->told;
    WatchFailure own = w->own;
    pthread_mutex_unlock(&w->lock);
    if (told && !w->said_own) {
        w->said_own = true;
        if (w->rank == 0)
            moe_watch_fail_job(w, &own);
        else
            post_all(w, failure_message(WATCH_FAIL, &own), own.text);
    }
    if (w->rank == 0 && atomic_load(&w->failed) && !w->told_all) {
        w->told_all = true;
        post_all(w, failure_message(WATCH_FAILED, &w->failure), w->failure.text);
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

static bool asked_to_beat(MoeWatch *w) {
    pthread_mutex_lock(&w->lock);
    bool asked = isinf(w->beaten);
    pthread_mutex_unlock(&w->lock);
    return asked;
}

void *moe_watch_thread(void *arg) {
    MoeWatch *w = arg;
    struct pollfd *p = calloc((size_t)w->n_links + 1, sizeof *p);
    w->last_round = w->moved = moe_now();
    for (int i = 0; i < w->n_links; i++)
        w->links[i].heard = w->links[i].moved = w->last_round;
    while (p && !serve_requests(w)) {
        double now = moe_now();
        if (now >= w->next_beat || asked_to_beat(w)) {
            beat(w, now);
            w->next_beat = now + moe_watch_interval(w);
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
