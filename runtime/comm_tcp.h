/* The connections between ranks over TCP: what comm_tcp.c (messages on them) and comm_tcp_meet.c (how they are made) share. */
#ifndef MOE_RUNTIME_COMM_TCP_H
#define MOE_RUNTIME_COMM_TCP_H

#include <poll.h>
#include "runtime/comm_wire.h"

typedef struct {
    uint32_t magic, channel;
    int64_t bytes;
} MoeTcpHead; /* what a message begins with */
#define MOE_TCP_MAGIC 0x3170636du

typedef struct {
    MoeWireOp *first, **last;
} MoeTcpQueue;

typedef struct {
    int fd; /* -1: this rank itself */
    MoeTcpQueue sends, receives[MOE_N_WIRE_CHANNELS];
    MoeTcpHead out, in;  /* of the first send; of the message that is coming */
    int64_t n_out, n_in; /* bytes of head and data that went and came */
} MoeTcpLink;

typedef struct {
    MoeTransport base;
    int rank, size;
    MoeTcpLink *links; /* by rank */
    struct pollfd *polls;
    MoeTcpQueue done;
} MoeTcp;

/* A transport without connections: links[p].fd is -1 for all p. */
MoeStatus moe_tcp_transport(int rank, int size, MoeTcp **out);

#endif
