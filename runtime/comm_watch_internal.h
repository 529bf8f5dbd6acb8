/* What comm_watch.c (the main thread's side), comm_watch_thread.c (the helper thread) and comm_watch_join.c (how ranks meet)
 * share. */
#ifndef MOE_RUNTIME_COMM_WATCH_INTERNAL_H
#define MOE_RUNTIME_COMM_WATCH_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include "runtime/comm_place.h"
#include "runtime/comm_watch.h"

#define WATCH_TEXT 1024 /* longest text of a message, its end included */

/* The process behind a rank, for the one case that needs it: a stopped one must be killed. */
typedef struct {
    int64_t pid;
    uint64_t start; /* when it started, in the kernel's ticks: pids come again */
    uint64_t host;  /* the same for processes that see each other's pids */
} WatchProcess;

typedef enum {
    WATCH_BEAT,   /* a sign of life; text: phase */
    WATCH_FAIL,   /* to rank 0: the job fails; text: why */
    WATCH_FAILED, /* from rank 0: the job failed; text: why */
    WATCH_KILL,   /* from rank 0: kill this process of your host */
    WATCH_LEFT    /* the orderly end */
} WatchKind;

/* Messages are this, then `n` bytes of text. Ranks have the same byte order: they run the same object code. */
typedef struct {
    uint32_t kind, n;
    uint64_t calls; /* of the main thread; WATCH_BEAT */
    uint32_t waiting;
    int32_t code, party[2], about; /* WATCH_FAIL, WATCH_FAILED: see WatchFailure */
    WatchProcess process;          /* WATCH_KILL */
} WatchMessage;

typedef struct {
    MoeCode code; /* for ranks `party` (-1: none); MOE_E_PEER for the others */
    int party[2];
    int about; /* the rank whose fault it is; -1 unknown */
    char text[WATCH_TEXT];
} WatchFailure;

#define WATCH_MESSAGE (sizeof(WatchMessage) + WATCH_TEXT) /* the longest */

/* A connection, and what is known of the rank at its other end. */
typedef struct {
    int rank, fd; /* fd -1: none (any more) */
    char in[WATCH_MESSAGE], out[4 * WATCH_MESSAGE];
    size_t n_in, n_out;
    WatchProcess process;
    double heard; /* its last sign of life */
    bool left;
    bool waiting;
    char place[320]; /* "rank 3 (step 17, forward layers.3)" */
    uint64_t calls;  /* of its main thread, and when they last grew */
    double moved;
} WatchLink;

struct MoeWatch {
    int rank, size;
    WatchLink *links; /* rank 0: by rank (its own has no fd); the others: one, to rank 0 */
    int n_links;
    bool guard; /* this rank kills rank 0's process if it falls silent */
    WatchProcess self;
    pthread_t thread;
    bool running;
    int wake[2]; /* a byte into this pipe wakes the helper thread */

    atomic_bool failed;
    atomic_ullong calls; /* of the main thread */
    atomic_int limit_ms; /* of silence */

    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t changed;
    bool stop, leaving, all_left; /* the thread shall end; say LEFT; it is said (rank 0: by all) */
    bool told;                    /* `own` is to be told */
    bool known;                   /* the main thread saw the failure */
    MoeCommPlace place;
    char waiting[96];
    WatchFailure own, failure; /* what this rank wants to tell; the job's */
    double failed_at, known_at;
    double beaten; /* when the last beat was sent */

    /* The helper thread's own. */
    bool said_left, said_own, said_failure, told_all, kill_victim;
    WatchProcess victim;
    double last_round, next_beat, moved;
    uint64_t seen_calls;
};

void *moe_watch_thread(void *watch); /* the helper thread */
/* The job failed, for the first reason that comes; rank 0's helper thread tells all. Any thread. */
void moe_watch_fail_job(MoeWatch *w, const WatchFailure *f);
double moe_watch_interval(const MoeWatch *w); /* seconds between beats */
void moe_watch_drop(WatchLink *l);            /* closes it */
/* This process; host 0 if it cannot be told which processes see it. */
WatchProcess moe_watch_process(void);
/* Kills it, if its pid still means the process that joined. */
void moe_watch_kill(const WatchProcess *p);
/* Connections to all ranks, cards and addresses exchanged: fills in w->links and w->guard. peers: [size], scratch without a
 * table. */
MoeStatus moe_watch_join(MoeWatch *w, const MoeWatchInit *init, MoeWatchPeer *peers);

#endif
