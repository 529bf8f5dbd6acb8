/* Signs of life between the processes of a job. Each rank has one TCP connection to rank 0 and a helper thread that sends
 * where the rank stands ("step 17, forward layers.3") a few times a second. Rank 0 watches all others, they watch rank 0:
 * a connection that ends means a death, silence means a process that was stopped or a host that is gone. The first failure
 * seen is told to all ranks with the rank, its phase and the reason, said on stderr, and ends the job: a main thread that
 * does not come to hear of it is ended by the helper thread; a stopped process is killed by a rank on its host.
 * A rank can also give up by itself (moe_watch_abort).
 *
 * The helper thread of a healthy process beats even if its main thread is busy for long (writing a checkpoint). But a job in
 * which no rank's main thread gets anywhere for 40 silence limits fails too.
 *
 * Used by comm_wire.c; opened by comm_mpi.c and comm_tcp.c, which differ in how ranks find rank 0. */
#ifndef MOE_RUNTIME_COMM_WATCH_H
#define MOE_RUNTIME_COMM_WATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
#include "runtime/comm_socket.h"

#define MOE_WATCH_TOKEN 16 /* bytes that keep strangers out: the same on all ranks */
#define MOE_WATCH_CARD  64 /* bytes that each rank tells all others at the start */

typedef struct {
    int rank, size;
    double silence_limit, join_seconds; /* join_seconds: how long to wait for the others to come */
    unsigned char token[MOE_WATCH_TOKEN];
    int listener; /* rank 0: listening socket, taken; others: -1 */
    const MoeAddress
        *places; /* others: where rank 0 may be; tried in turn until one answers with the token */
    size_t n_places;
    const char *meeting; /* the same for people: "10.0.0.1:29400" */
    unsigned char card[MOE_WATCH_CARD];
    bool table; /* each rank gets the cards and addresses of all; the same on all ranks */
    void (*idle)(void *context); /* rank 0: called while it waits for the others; may be NULL */
    void *context;
} MoeWatchInit;

/* What a rank knows of the others after the start. */
typedef struct {
    unsigned char card[MOE_WATCH_CARD];
    MoeAddress address; /* as rank 0 saw it; of rank 0: family 0 */
} MoeWatchPeer;

typedef struct MoeWatch MoeWatch;

/* All ranks call it; returns when all are there. MOE_E_PEER naming the ranks that did not come. out_peers (with
 * `table`; else NULL): [size], malloc'd. out_local, out_remote (ranks but 0): the ends of the connection to rank 0; may be
 * NULL. */
MoeStatus moe_watch_open(const MoeWatchInit *init, MoeWatch **out, MoeWatchPeer **out_peers,
                         MoeAddress *out_local, MoeAddress *out_remote);
/* step < 0: none. */
void moe_watch_phase(MoeWatch *w, int64_t step, const char *phase);
void moe_watch_alive(MoeWatch *w); /* the main thread got somewhere; cheap */
/* It waits for other ranks in `what` (copied); NULL: it does not any more. */
void moe_watch_waits(MoeWatch *w, const char *what);
void moe_watch_limit(MoeWatch *w, double silence_limit);
bool moe_watch_failed(MoeWatch *w); /* cheap */
/* The job's failure for this rank; only after moe_watch_failed. Tells the helper thread that the main thread knows. */
MoeStatus moe_watch_status(MoeWatch *w);
/* Fails the job: ranks a and b (-1: none) get `code`, the others MOE_E_PEER. Returns when the others were told, within a
 * second. The first failure of a job counts. */
void moe_watch_fail(MoeWatch *w, MoeCode code, int a, int b, const char *fmt, ...) MOE_PRINTF(5, 6);
/* This rank gives up: "rank 2 (step 17, forward layers.3): WHY" on all. */
void moe_watch_abort(MoeWatch *w, const char *why);
/* Rank `peer` cannot be reached (its data connection ended): waits up to two seconds for the reason, else that is the reason. */
void moe_watch_lost(MoeWatch *w, int peer, const char *why);
/* The orderly end; rank 0 returns when all others said so too (or a failure). */
void moe_watch_leave(MoeWatch *w);
/* Ends the helper thread, frees. NULL is fine. Without moe_watch_leave before it, the others take it for a death. */
void moe_watch_close(MoeWatch *w);

#endif
