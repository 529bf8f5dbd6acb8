/* A GPU's links to the GPUs of other ranks over NCCL (device_links.h): rows and terms go from device memory to device memory, on a
 * stream of their own, between events of the stream that computes. NCCL moves bytes and never adds: sums are kernels in the
 * order of docs/NUMBERS.md.
 *
 * An exchange is one group of sends and receives, a message for each op and pair of ranks. Bytes that lie together go where they
 * are; others are packed into staging memory before, or unpacked from it behind, by one kernel launch each (moe_rt_gather)
 * that walks a table of copies. cuda/nccl.c opens and closes links and waits; cuda/nccl_move.c has exchanges,
 * cuda/nccl_sum.c sums. */
#ifndef MOE_RUNTIME_CUDA_NCCL_H
#define MOE_RUNTIME_CUDA_NCCL_H

#include "base/nccl.h"
#include "runtime/cuda/device.h"
#include "runtime/device_links.h"

typedef struct {
    int peer;
    bool staged;
    uint64_t at; /* address; staged: offset in the staging memory */
    int64_t bytes;
} MoeNcclMessage;

typedef struct {
    MoeNcclMessage *items;
    size_t n, cap;
} MoeNcclMessages;

/* A copy of moe_rt_gather's table, one end of which may be an offset in the staging memory. */
typedef struct {
    MoeRtCopy copy;
    bool to_stage, from_stage;
} MoeNcclCopy;

typedef struct {
    MoeNcclCopy *items;
    size_t n, cap;
} MoeNcclCopies;

/* What an op has for one rank, while it is added. */
typedef struct {
    int64_t bytes;
    size_t blocks;
    uint64_t at; /* of the only block; then of the next byte in the staging memory */
    bool direct;
} MoeNcclPeer;

/* Memory of the device that grows. */
typedef struct {
    MoeCuPtr at;
    int64_t bytes;
} MoeNcclMemory;

typedef struct {
    MoeCuEvent done;
    MoeNcclMemory table; /* copies of its exchange */
} MoeNcclFlight;

struct MoeCudaNccl {
    const MoeNccl *nccl;
    MoeNcclComm comm; /* NULL: given up */
    MoeComm *host;    /* knows what has become of the other ranks */
    MoeCuStream stream;
    MoeCuEvent fork;
    MoeNcclMessages sends, recvs; /* of the exchange that is being made */
    MoeNcclCopies before, after;  /* the messages */
    MoeNcclPeer *peers;           /* [ranks] */
    MoeRtCopy *table;
    size_t cap_table;
    int64_t staged; /* bytes of `stage` that the exchange takes */
    MoeNcclMemory stage;
    MoeNcclFlight *flights;
    int n_flights;
    MoeNcclMemory sums; /* of roots, that wait for their right neighbour */
    double told;        /* when the host's communicator was asked last */
};

/* cuda/nccl.c. Collective: opens links unless a rank cannot, two ranks share a GPU, or the run is in one process and does not
 * ask for it (then nothing happens, which rank 0 says where that may surprise). place->exchange = MOE_EXCHANGE_NCCL: that is an
 * error then. */
MoeStatus moe_cuda_nccl_open(MoeDeviceCuda *d, MoeExec *x, MoeExchange asked);
void moe_cuda_nccl_close(MoeDeviceCuda *d); /* with or without links */
int64_t moe_cuda_nccl_bytes(const MoeDeviceCuda *d); /* of the device's memory, NCCL's own aside */

/* Waits until the stream (event) is through, as long as the other ranks live: a rank that is lost, an error of NCCL or no end in
 * sight ends the links, and the status says which. Without links nothing happens. */
MoeStatus moe_cuda_nccl_wait(MoeDeviceCuda *d, MoeCuStream stream);
MoeStatus moe_cuda_nccl_await(MoeDeviceCuda *d, MoeCuEvent event);
/* A result of NCCL; one that is an error ends the links. what: "step a2a.0 ..." */
MoeStatus moe_cuda_nccl_check(MoeDeviceCuda *d, int result, const char *what);
/* Until the communicator is no longer in progress. */
MoeStatus moe_cuda_nccl_ready(MoeDeviceCuda *d, const char *what);
MoeStatus moe_cuda_nccl_grow(MoeDeviceCuda *d, MoeNcclMemory *m, int64_t bytes, const char *what);

/* cuda/nccl_move.c */
MoeStatus moe_cuda_nccl_add(MoeDevice *d, MoeExec *x, const MoeDeviceBlocks *b);
MoeStatus moe_cuda_nccl_start(MoeDevice *d, MoeExec *x, int flight, const char *what);
MoeStatus moe_cuda_nccl_finish(MoeDevice *d, MoeExec *x, int flight);

/* cuda/nccl_sum.c */
MoeStatus moe_cuda_nccl_sum(MoeDevice *d, const MoeDeviceTerms *t);
MoeStatus moe_cuda_nccl_fold(MoeDevice *d, const float *const *roots, const uint8_t *program,
                             int n_program, float *out, int64_t n);
MoeStatus moe_cuda_nccl_clear(MoeDevice *d, char *at, int64_t bytes);

#endif
