/* How the ranks of a job find rank 0 and learn of each other: see comm_watch.h. Rank 0 accepts; the others try the places
 * that they were given until one answers with the token. When all are there rank 0 sends each the table of all. */
#include "runtime/comm_watch_internal.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/cores.h"
#include "base/io.h"
#include "base/pool.h"
#include "base/str.h"

#define MAGIC          0x316863746177656dull /* "mewatch1" */
#define ANSWER_SECONDS 3.0 /* a stranger at the other end says nothing, or something else */

typedef struct {
    uint64_t magic;
    unsigned char token[MOE_WATCH_TOKEN], card[MOE_WATCH_CARD];
    int64_t rank;
    WatchProcess process;
} Hello;

typedef struct {
    uint64_t magic;
    unsigned char token[MOE_WATCH_TOKEN];
} Answer;

typedef struct {
    int64_t guard;
    WatchProcess process; /* of rank 0 */
} Welcome;

static uint64_t start_of(int64_t pid) {
    char path[64], *text = NULL;
    size_t n = 0;
    snprintf(path, sizeof path, "/proc/%lld/stat", (long long)pid);
    MoeStatus st = moe_file_read(path, 1 << 16, &text, &n);
    if (st) {
        moe_status_free(st);
        return 0;
    }
    /* Field 22; the second is the name in brackets, which may hold spaces. */
    const char *p = strrchr(text, ')');
    unsigned long long start = 0;
    for (int field = 2; p && field < 22; field++)
        p = strchr(p + 1, ' ');
    if (p)
        start = strtoull(p, NULL, 10);
    free(text);
    return start;
}

WatchProcess moe_watch_process(void) {
    WatchProcess p = {.pid = getpid()};
    p.start = start_of(p.pid);
    p.host = moe_host_id(); /* 0: nobody kills it */
    return p;
}

void moe_watch_kill(const WatchProcess *p) {
    if (p->pid > 1 && p->start && start_of(p->pid) == p->start)
        kill((pid_t)p->pid, SIGKILL);
}

/* There may be a connection to each other rank, or two. */
static void raise_file_limit(int size) {
    struct rlimit l;
    if (getrlimit(RLIMIT_NOFILE, &l) != 0)
        return;
    rlim_t need = (rlim_t)size * 2 + 256;
    if (l.rlim_cur < need) {
        l.rlim_cur = need < l.rlim_max ? need : l.rlim_max;
        setrlimit(RLIMIT_NOFILE, &l);
    }
}

static MoeStatus missing_ranks(const MoeWatch *w, const MoeWatchInit *init, int missing) {
    MoeStr s = {0};
    int named = 0;
    for (int r = 1; r < w->size && named < 8; r++)
        if (w->links[r].fd < 0)
            moe_str_printf(&s, "%s%d", named++ ? ", " : "", r);
    MoeStatus st = moe_error(
        MOE_E_PEER,
        "%d of %d ranks did not come to %s within %.0f s (missing: %s%s); were all started, "
        "and can their hosts reach this one?",
        missing, w->size, init->meeting, init->join_seconds, moe_str_c(&s),
        missing > named ? ", ..." : "");
    moe_str_free(&s);
    return st;
}

/* One connection: a rank's if it says the token, else a stranger's. */
static MoeStatus admit(MoeWatch *w, const MoeWatchInit *init, MoeWatchPeer *peers, int fd,
                       const MoeAddress *from, int *missing) {
    Hello h;
    Answer a = {.magic = MAGIC};
    memcpy(a.token, init->token, sizeof a.token);
    if (!moe_socket_receive(fd, &h, sizeof h, ANSWER_SECONDS) || h.magic != MAGIC ||
        memcmp(h.token, init->token, sizeof h.token) != 0 ||
        !moe_socket_send(fd, &a, sizeof a, ANSWER_SECONDS)) {
        close(fd);
        return NULL;
    }
    if (h.rank < 1 || h.rank >= w->size || w->links[h.rank].fd >= 0) {
        close(fd);
        char text[80];
        moe_address_text(from, text);
        if (h.rank < 1 || h.rank >= w->size)
            return moe_error(MOE_E_PEER, "a process at %s says that it is rank %lld of %d", text,
                             (long long)h.rank, w->size);
        return moe_error(MOE_E_PEER, "two processes say that they are rank %lld (the second at %s)",
                         (long long)h.rank, text);
    }
    w->links[h.rank].fd = fd;
    w->links[h.rank].process = h.process;
    memcpy(peers[h.rank].card, h.card, sizeof h.card);
    peers[h.rank].address = *from;
    --*missing;
    return NULL;
}

static MoeStatus welcome(MoeWatch *w, const MoeWatchPeer *peers, bool table) {
    int guard = 1; /* the first rank that can kill rank 0's process */
    while (guard < w->size && w->links[guard].process.host != w->self.host)
        guard++;
    for (int r = 1; r < w->size; r++) {
        Welcome hi = {.guard = r == guard && w->self.host, .process = w->self};
        if (!moe_socket_send(w->links[r].fd, &hi, sizeof hi, 30) ||
            (table && !moe_socket_send(w->links[r].fd, peers, (size_t)w->size * sizeof *peers, 30)))
            return moe_error(MOE_E_PEER, "rank %d ended while the ranks were meeting", r);
    }
    return NULL;
}

static MoeStatus join_as_first(MoeWatch *w, const MoeWatchInit *init, MoeWatchPeer *peers) {
    double deadline = moe_now() + init->join_seconds;
    int missing = w->size - 1;
    memcpy(peers[0].card, init->card, sizeof peers[0].card);
    while (missing > 0) {
        MoeAddress from;
        int fd = moe_socket_accept(init->listener, 0.01, &from);
        if (fd >= 0)
            MOE_TRY(admit(w, init, peers, fd, &from, &missing));
        else if (errno != ETIMEDOUT && errno != EAGAIN)
            return moe_error_errno("cannot accept connections at %s", init->meeting);
        if (missing > 0 && moe_now() > deadline)
            return missing_ranks(w, init, missing);
        if (init->idle)
            init->idle(init->context);
    }
    return welcome(w, peers, init->table);
}

/* A connection on which rank 0 answered, or -1. */
static int knock(const MoeWatch *w, const MoeWatchInit *init, const MoeAddress *at) {
    int fd = moe_socket_connect(at, ANSWER_SECONDS);
    if (fd < 0)
        return -1;
    Hello h = {.magic = MAGIC, .rank = w->rank, .process = w->self};
    memcpy(h.token, init->token, sizeof h.token);
    memcpy(h.card, init->card, sizeof h.card);
    Answer a;
    if (moe_socket_send(fd, &h, sizeof h, ANSWER_SECONDS) &&
        moe_socket_receive(fd, &a, sizeof a, ANSWER_SECONDS) && a.magic == MAGIC &&
        memcmp(a.token, init->token, sizeof a.token) == 0)
        return fd;
    close(fd);
    return -1;
}

static MoeStatus join_as_other(MoeWatch *w, const MoeWatchInit *init, MoeWatchPeer *peers) {
    double deadline = moe_now() + init->join_seconds;
    int fd = -1;
    while (fd < 0) {
        for (size_t i = 0; i < init->n_places && fd < 0; i++)
            fd = knock(w, init, &init->places[i]);
        if (fd < 0 && moe_now() > deadline)
            return moe_error(MOE_E_PEER,
                             "rank %d found no rank 0 at %s within %.0f s; was it started, and can "
                             "this host reach it?",
                             w->rank, init->meeting, init->join_seconds);
        if (fd < 0)
            usleep(50000);
    }
    w->links[0].fd = fd;
    Welcome hi;
    if (!moe_socket_receive(fd, &hi, sizeof hi, init->join_seconds + 30) ||
        (init->table && !moe_socket_receive(fd, peers, (size_t)w->size * sizeof *peers, 30)))
        return moe_error(MOE_E_PEER, "rank 0 ended, or waited too long for other ranks, while the "
                                     "ranks were meeting (its own message says why)");
    w->guard = hi.guard != 0;
    w->links[0].process = hi.process;
    return NULL;
}

MoeStatus moe_watch_join(MoeWatch *w, const MoeWatchInit *init, MoeWatchPeer *peers) {
    raise_file_limit(w->size);
    return w->rank == 0 ? join_as_first(w, init, peers) : join_as_other(w, init, peers);
}
