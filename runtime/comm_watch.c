/* What the main thread of a rank asks of the helper thread (comm_watch_thread.c), and the start and end of both: see
 * comm_watch.h. */
#include "runtime/comm_watch_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/pool.h"

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
    int e = pthread_create(&w->thread, NULL, moe_watch_thread, w);
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

/* Seconds from a beat to the next that says of a new phase: so the others know it soon, and rank 0 can read them all. */
static double phase_interval(const MoeWatch *w) {
    return fmin(fmax(0.05, 0.0005 * w->size), moe_watch_interval(w));
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
    moe_watch_fail_job(w, &f); /* nobody heard it: the calls here fail all the same */
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
        moe_watch_drop(&w->links[i]);
    for (int i = 0; i < 2; i++)
        if (w->wake[i] >= 0)
            close(w->wake[i]);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w->links);
    free(w);
}
