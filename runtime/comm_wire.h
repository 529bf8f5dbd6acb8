/* Exchanges between processes, made of messages between two of them; what mpi and tcp have in common.
 *
 * In each exchange a rank sends a peer that it lists one front message (sizes, and the bytes themselves if they are few),
 * then, if they are many, the bytes. A front is received whether or not this rank expects one, so sizes that differ are
 * found as soon as both ranks have started the exchange or the later one starts its next with the same peer. Bytes that lie
 * together go from and to the rows directly; others through a staging buffer of the request, which is used again.
 * Liveness and failures: comm_watch.h. */
#ifndef MOE_RUNTIME_COMM_WIRE_H
#define MOE_RUNTIME_COMM_WIRE_H

#include "runtime/comm.h"
#include "runtime/comm_watch.h"

typedef enum { MOE_WIRE_FRONT, MOE_WIRE_BODY, MOE_N_WIRE_CHANNELS } MoeWireChannel;

/* A message. Messages from one rank to another in one channel are received in the order in which they were sent, by the
 * receives in the order in which those were posted. */
typedef struct MoeWireOp {
    struct MoeWireOp *next; /* the transport's */
    char *data;
    int64_t bytes; /* at most MOE_WIRE_MOST; receives: room, then what came */
    int peer;
    MoeWireChannel channel;
    bool send;
    bool bad;            /* more bytes came than there is room for */
    MoeRequest *request; /* that it belongs to; NULL: a standing receive of a front */
    size_t index;        /* in the request */
} MoeWireOp;

#define MOE_WIRE_MOST ((int64_t)1 << 30)

/* How messages move. Errors: MOE_E_PEER with *out_peer (-1: unknown) when a connection broke. */
typedef struct MoeTransport MoeTransport;
typedef struct {
    MoeStatus (*post)(MoeTransport *t, MoeWireOp *op, int *out_peer);
    /* Moves what can be moved. If nothing can, waits about `wait_us` microseconds (0: not at all). out_done: the messages
     * that have ended, in order, as a list through `next`; NULL if there are none. */
    MoeStatus (*progress)(MoeTransport *t, int wait_us, MoeWireOp **out_done, int *out_peer);
    /* good: all ranks ended well, no message is under way. False if memory of messages may still be touched. */
    bool (*destroy)(MoeTransport *t, bool good);
} MoeTransportOps;
struct MoeTransport {
    const MoeTransportOps *ops;
};

/* A communicator over a transport. Takes both, also on error. */
MoeStatus moe_comm_wire(const char *name, int rank, int size, MoeTransport *t, MoeWatch *w,
                        double silence_limit, MoeComm **out);

#endif
