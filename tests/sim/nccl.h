/* The simulated NCCL (libnccl.so.2): what nccl.c (the interface) and nccl_wire.c (bytes between ranks) share. Ranks are threads or
 * processes of this machine, and meet in shared memory under the name that the unique id is. Only what moec uses is there: sends
 * and receives of bytes, in groups, over communicators that do not block.
 *
 * Nothing happens earlier than the interface promises: a group is in its stream only once ncclCommGetAsyncError has said "in
 * progress" once more and then success; bytes move when the stream comes to the group, and as long as the peer has not come there
 * too, the stream stands. Sizes that differ are an error (NCCL would hang, or write elsewhere). A rank that dies is
 * not noticed, as between GPUs of one machine; with MOE_SIM_NCCL_FAULT=notice it is, as over a network.
 *
 * Environment: MOE_SIM_NCCL_VERSION=22809; MOE_SIM_NCCL_FAULT=
 *   id            ncclGetUniqueId fails
 *   init:R        rank R cannot join
 *   never:R       rank R never comes
 *   group:N       the N-th group of a process ends in an error of the communicator
 *   notice        above */
#ifndef MOE_TESTS_SIM_NCCL_H
#define MOE_TESTS_SIM_NCCL_H

#include <stdatomic.h>
#include "tests/sim/driver.h"

typedef enum {
    ncclSuccess,
    ncclUnhandledCudaError,
    ncclSystemError,
    ncclInternalError,
    ncclInvalidArgument,
    ncclInvalidUsage,
    ncclRemoteError,
    ncclInProgress
} ncclResult_t;

typedef struct {
    char internal[128];
} ncclUniqueId;

enum { MOE_SIM_NCCL_MOST = 64, MOE_SIM_NCCL_CHUNK = 65536 };

/* A way from one rank to another: one chunk at a time. */
typedef struct {
    _Atomic uint64_t written, taken; /* chunks */
    int64_t total;                   /* bytes of the message that the chunk is of */
    int64_t bytes;
    char data[MOE_SIM_NCCL_CHUNK];
} MoeSimWay;

typedef struct {
    _Atomic int pid; /* 0: not there yet */
    char gpu[16];
} MoeSimSeat;

/* Shared. */
typedef struct {
    _Atomic int joined;
    _Atomic int broken; /* sizes that differ: everybody's error */
    MoeSimSeat seats[MOE_SIM_NCCL_MOST];
    MoeSimWay ways[]; /* [from * n + to] */
} MoeSimRoom;

typedef struct {
    bool send;
    int peer;
    char *at;
    size_t bytes, done;
} MoeSimMessage;

struct ncclComm {
    int rank, n;
    CUcontext context;
    MoeSimRoom *room;
    size_t room_bytes;
    char name[128];
    ncclResult_t state;
    bool joined, aborted;
    int waits; /* how often it still says "in progress" */
    char last[256];
    struct MoeSimGroup *waiting; /* to be issued */
    _Atomic int under_way;       /* groups in streams */
};
typedef struct ncclComm *ncclComm_t;

typedef struct MoeSimGroup {
    ncclComm_t comm;
    CUstream stream;
    MoeSimMessage *messages;
    size_t n, cap;
    struct MoeSimGroup *next; /* of the communicator, or under way */
    bool over;
} MoeSimGroup;

/* Says on stderr and in the communicator what went wrong; returns r, which the communicator keeps. */
ncclResult_t moe_sim_nccl_fail(ncclComm_t c, ncclResult_t r, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* The value behind "NAME:" in the environment's fault; -1: another fault, or none. */
long moe_sim_nccl_fault(const char *name);

/* ---- nccl_wire.c ---- */

bool moe_sim_nccl_enter(ncclComm_t c,
                        const char *gpu); /* the shared room; false: it cannot be had */
void moe_sim_nccl_leave(ncclComm_t c);
/* All ranks are there. */
bool moe_sim_nccl_complete(ncclComm_t c);
/* Moves what can be moved; true: the group is over. Called under the driver's lock. */
bool moe_sim_nccl_move(void *group);
/* Has the stream go on until the group is over. */
void moe_sim_nccl_drive(MoeSimGroup *g);

#endif
