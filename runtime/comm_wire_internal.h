/* What the files of comm_wire share: the front message, requests and what they receive. comm_wire.c has the communicator's
 * calls, comm_wire_request.c makes requests and sends, comm_wire_arrive.c takes what comes. */
#ifndef MOE_RUNTIME_COMM_WIRE_INTERNAL_H
#define MOE_RUNTIME_COMM_WIRE_INTERNAL_H

#include "runtime/comm_place.h"
#include "runtime/comm_stream.h"
#include "runtime/comm_wire.h"

#define WIRE_INLINE 2048 /* at most so many travel with the front */
#define FRONT_MAGIC 0x6d6f6546u

typedef enum { FRONT_DATA, FRONT_LEAVE } FrontKind;
typedef struct {
    uint32_t magic, kind;
    int64_t number, bytes; /* of the exchange; all that the sender sends to this rank in it */
    MoeCommPlace place;
    char what[88];
} Front;
#define FRONT_ROOM (sizeof(Front) + WIRE_INLINE)

/* What a request receives from one peer. */
typedef struct {
    int peer;
    int64_t bytes;
    char *staged; /* where the bytes arrive, if not in their rows */
    bool front;   /* the front came */
    bool bad;     /* the body is not as long as it should be */
    int open;     /* messages of the body that have not come */
} Arrival;

struct MoeRequest {
    MoeRequest *next; /* under way, in the order of start; or unused */
    int64_t number;
    MoeBlock *blocks; /* of the receives */
    size_t n_blocks, cap_blocks;
    Arrival *arrivals; /* by peer, going down from this rank */
    size_t n_arrivals, cap_arrivals;
    MoeWireOp *ops;
    size_t n_ops, cap_ops;
    char *staging;
    size_t n_staging, cap_staging;
    int open; /* messages to be sent, and arrivals, that have not ended */
    char what[88];
};

/* The standing receive of a peer's front. */
typedef struct {
    MoeWireOp op;
    bool held; /* a front is here, of an exchange that this rank has not started */
    bool left;
} Door;

typedef struct {
    MoeComm base;
    MoeTransport *t;
    MoeWatch *w;
    int64_t next; /* number of the next exchange */
    MoeRequest *first, **last, *unused;
    Door *doors; /* by rank; this rank's own is not used */
    char *fronts;
    Front leaving;     /* what destroy tells the others */
    MoeWireOp *leaves; /* its messages */
    int leaves_open;
    MoeCommPlace place;
    double limit; /* what the watch was told last */
} Wire;

Front *moe_wire_front(const Wire *c, int peer); /* at the door of peer */
/* Posts op; a transport that refuses fails the job. */
void moe_wire_post(Wire *c, MoeWireOp *op);
void moe_wire_fill_front(const Wire *c, Front *f, FrontKind kind, int64_t number, int64_t bytes,
                         const char *what);
/* A request with room for the exchange, not yet under way; NULL: out of memory. */
MoeRequest *moe_wire_request(Wire *c, const MoeBlock *sends, size_t n_sends, const MoeBlock *recvs,
                             size_t n_recvs, const char *what);
/* Under way: numbers it, posts its receives and sends. */
void moe_wire_begin(Wire *c, MoeRequest *r, const MoeBlock *sends, size_t n_sends);
void moe_wire_end(Wire *c, MoeRequest *r); /* it has ended: to the unused ones */
void moe_wire_free_requests(MoeRequest *r);

void moe_wire_open_door(Wire *c, int peer);
/* Looks at fronts that came before r was started, and for peers that have left. */
void moe_wire_meet(Wire *c, MoeRequest *r, const MoeBlock *sends, size_t n_sends);
/* Lets messages go on and takes what came; true if anything ended. wait_us as in MoeTransportOps. */
bool moe_wire_progress(Wire *c, int wait_us);
/* The job failed because sizes differ; `peer` is the sender, this rank receives. */
void moe_wire_differ(Wire *c, int64_t number, int peer, const MoeCommPlace *at, int64_t sent,
                     const char *sender_what, int64_t wanted, const char *what);

#endif
