/* Exchanges between ranks that are threads of this process, by kernels that read the other ranks' memory (docs/GPU.md, "Exchanges between
 * peers"): cuda/peer.c (finding each other, leaving, waiting), cuda/peer_ops.c (what each exchange pulls),
 * cuda/peer_run.c (starting and ending one, and what a stop means). Nothing of it asks or tells the host.
 *
 * A rank has a second stream for exchanges, and a block of words in its device's memory: */
#ifndef MOE_RUNTIME_CUDA_PEER_H
#define MOE_RUNTIME_CUDA_PEER_H

#include <pthread.h>

#include "runtime/cuda/device.h"
#include "runtime/exec_comm.h"

/* The words (int32 each) of a rank. */
enum {
    MOE_PEER_ZERO, /* always 0: a stop flag for kernels that must always run */
    MOE_PEER_STOPPED, /* whether this rank was stopped when it came to the exchange under way; peers read it */
    MOE_PEER_MICRO, /* the micro-batch, and how many there are */
    MOE_PEER_MICROS,
    MOE_PEER_WORDS /* then ready[ranks], pulled[ranks], done[ranks], by who says so; then skipped[steps] of each program */
};
/* What a rank says to its peers in an exchange. */
typedef enum { MOE_PEER_READY, MOE_PEER_PULLED, MOE_PEER_DONE, MOE_PEER_SAYINGS } MoePeerSaying;

typedef struct {
    MoeDeviceCuda *device;
    MoeExec *x;
    MoeCuContext context; /* retained, so that the words outlive the rank */
    MoeCuDevice number;
    MoeCuPtr words;
    bool out;
} MoePeerRank;

/* What the ranks share; the last one to leave frees it. */
typedef struct {
    int n, left;
    pthread_mutex_t lock;
    pthread_cond_t change; /* of out and left */
    MoePeerRank ranks[];
} MoePeerHub;

/* Ops [first, first + n) of the program's table. */
typedef struct {
    size_t first, n;
    int64_t bytes; /* about what they move: how many blocks they get */
} MoePeerOps;

/* An exchange of a program. */
typedef struct {
    int *peers; /* [n_peers]: ranks, without this one */
    int n_peers;
    MoePeerOps pull, /* what is there once all are ready */
        fold,        /* of these MOE_PEER_FOLD_PLAN, each by itself */
        rejoin,      /* once all have pulled: parts of sums */
        clear;       /* once nobody reads this rank's memory any more */
    MoeCuPtr flags;  /* addresses of the peers' words STOPPED, and this rank's own */
    MoeCuEvent over;
    bool guarded; /* a guard may stop a rank before it */
    bool open;    /* started, and not yet waited for */
} MoePeerExchange;

typedef struct {
    MoePeerExchange *exchanges; /* [n_steps] */
    MoeCuPtr ops, lists;        /* the tables; NULL: no exchanges */
    MoeCuPtr work;              /* of folds */
    int64_t work_bytes;
    MoeCuPtr skipped;           /* words [n_steps] */
} MoePeerProgram;

struct MoeCudaPeers {
    MoePeerHub *hub;
    MoeCuStream stream, rescue;
    MoeCuEvent fork, idle;
    MoePeerProgram *programs; /* like plan->programs */
    int micro, micros;        /* what the words say */
    int64_t started;          /* exchanges, so far */
};

static inline MoeCuPtr moe_peer_word(const MoePeerHub *h, int rank, int word) {
    return h->ranks[rank].words + (MoeCuPtr)word * sizeof(int32_t);
}

/* Every rank calls, once. d->peers stays NULL where exchanges are not carried so; then a note says why, unless nobody would expect
 * it. MOE_E_INPUT where that was asked for and cannot be. */
MoeStatus moe_cuda_peers_open(MoeDeviceCuda *d, MoeExec *x);
/* Nothing of this rank runs on, no other rank's device touches its memory (or it is left alone: d->keep_memory). */
void moe_cuda_peers_close(MoeDeviceCuda *d, MoeExec *x);
/* While a device works on what other ranks must do their part of: a rank that failed ends it. */
MoeStatus moe_cuda_peers_await(MoeDeviceCuda *d, MoeCuEvent e);

/* cuda/peer_ops.c */
int64_t moe_cuda_peers_bytes(const MoeDeviceCuda *d); /* of the device's memory, tables aside */
/* NULL, or why exchanges of this plan cannot be carried. Static text. */
const char *moe_peer_refuses(const MoeExec *x);
MoeStatus moe_peer_tables(MoeDeviceCuda *d, MoeExec *x, struct MoeCudaPeers *p);
void moe_peer_free_tables(MoeDeviceCuda *d, struct MoeCudaPeers *p);

/* cuda/peer_run.c */
bool moe_cuda_carries(const MoeDevice *d, const MoeExec *x, const MoeExecProgram *g, size_t i);
MoeStatus moe_cuda_exchange(MoeDevice *d, MoeExec *x, MoeExecProgram *g, size_t i);
/* Before steps of a micro-batch are launched (in a graph, too). */
MoeStatus moe_cuda_peers_micro(MoeDeviceCuda *d, const MoeExec *x);
/* At a settle that goes on from step `again`, n_steps: all have run. */
MoeStatus moe_cuda_peers_settle(MoeDeviceCuda *d, MoeExec *x, MoeExecProgram *g, size_t again);

#endif
