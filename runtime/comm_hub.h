/* What the ranks of one process share (comm_threads.c): the exchanges under way, who waits, and the failure that ends them.
 * One lock guards it all; it is never held while bytes are copied. Functions marked (locked) are called with it. */
#ifndef MOE_RUNTIME_COMM_HUB_H
#define MOE_RUNTIME_COMM_HUB_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/str.h"
#include "runtime/comm_place.h"
#include "runtime/comm_stream.h"

typedef struct MoeHub MoeHub;

/* One exchange: what each rank posted, NULL until it starts it. It lives until all ranks have ended it, so that sizes can be
 * compared with those of a rank that had nothing to wait for. */
typedef struct {
    int64_t number;
    int ended;
    MoeRequest *of[]; /* by rank */
} MoeHubRound;

typedef struct {
    int64_t sends, recvs; /* bytes to this peer and from it */
    bool sent, got;       /* taken by the peer; taken from it */
} MoeHubSide;

struct MoeRequest {
    MoeRequest *next; /* of the same rank, in the order of start; or of the unused ones */
    MoeHubRound *round;
    MoeBlock *blocks; /* sends, then receives */
    size_t n_sends, n_recvs, cap_blocks;
    MoeHubSide *peers; /* by rank */
    int open;          /* transfers, either way, that have not ended */
    int readers;       /* ranks that are copying out of its rows just now */
    char what[96];
};

typedef struct {
    MoeComm base;
    MoeHub *hub;
    int64_t next;      /* number of the next exchange */
    MoeRequest *first; /* started and not yet waited for */
    uint32_t polled;   /* `events` when poll looked last */
    /* locked */
    MoeCommPlace place;
    bool in_wait, sleeping, gone;
    int64_t ticks;  /* CPU time when a peer looked last */
    double at_work; /* moe_now when a peer found it at work */
    pthread_cond_t wake;
    _Alignas(64) _Atomic uint32_t events; /* something happened that may let this rank go on */
    _Atomic int64_t sign_of_life;         /* moe_now, in ns */
    _Atomic int thread_id;
} MoeHubRank;

struct MoeHub {
    int n, n_gone;
    bool spin; /* no more ranks than cores */
    pthread_mutex_t lock;
    MoeHubRank **ranks;
    MoeHubRound **rounds; /* ring: exchange i at [i & (cap_rounds - 1)]; NULL: ended */
    size_t cap_rounds;
    int64_t oldest, newest; /* exchanges oldest .. newest - 1 are in the ring */
    MoeRequest *unused;
    _Atomic bool failed;
    /* locked */
    MoeCode code; /* for ranks `party`; MOE_E_PEER for the others */
    int party[2];
    MoeStr failure;
};

MoeStatus moe_hub_create(int n, MoeHub **out);
void moe_hub_destroy(MoeHub *h);

void moe_hub_lock(MoeHub *h);
void moe_hub_unlock(MoeHub *h);

/* (locked) A request with room for the blocks, all else zero; NULL: out of memory. */
MoeRequest *moe_hub_request(MoeHub *h, size_t n_blocks);
/* (locked) Puts it up as the rank's part of its next exchange; false: out of memory, and r goes back. */
bool moe_hub_post(MoeHubRank *me, MoeRequest *r);
/* (locked) The rank waits for r no longer. */
void moe_hub_end(MoeHubRank *me, MoeRequest *r);
/* (locked) Lets the rank look again. */
void moe_hub_notify(MoeHub *h, int rank);
/* (locked) Ends everything: the first failure is kept. Ranks a and b (-1: none) get `code`, the others MOE_E_PEER. */
void moe_hub_fail(MoeHub *h, MoeCode code, int a, int b, const char *fmt, ...) MOE_PRINTF(5, 6);
/* (locked) The failure as this rank's status; NULL if there is none. */
MoeStatus moe_hub_status(const MoeHubRank *me);

#endif
