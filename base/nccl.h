/* NCCL, as far as moec uses it: messages between GPUs in several processes or of several threads. Functions and constants are
 * declared here, so that no header of NCCL is needed, and opened at the first need (base/dynlib.h). Interface of NCCL 2.18
 * and newer (names, values and the layout of the configuration are those of nccl.h; seen: 2.28.9, 2.30.7).
 *
 * Used by the runtime's CUDA device and by moec doctor. */
#ifndef MOE_BASE_NCCL_H
#define MOE_BASE_NCCL_H

#include <stddef.h>
#include <stdint.h>
#include "base/cuda_driver.h"
#include "base/status.h"

typedef struct MoeNcclCommRep *MoeNcclComm;

typedef struct {
    char bytes[128];
} MoeNcclId; /* ncclUniqueId */

enum { /* ncclResult_t */
       MOE_NCCL_SUCCESS = 0,
       MOE_NCCL_CUDA_ERROR = 1,
       MOE_NCCL_SYSTEM_ERROR = 2,
       MOE_NCCL_INTERNAL_ERROR = 3,
       MOE_NCCL_INVALID_ARGUMENT = 4,
       MOE_NCCL_INVALID_USAGE = 5,
       MOE_NCCL_REMOTE_ERROR = 6,
       MOE_NCCL_IN_PROGRESS = 7
};

enum { MOE_NCCL_INT8 = 0 }; /* ncclDataType_t: bytes are all that travels */

/* ncclConfig_t as 2.18 has it; later versions added members behind. */
typedef struct {
    size_t size;
    unsigned magic, version;
    int blocking, cluster_size, min_blocks, max_blocks;
    const char *net;
    int split_share;
} MoeNcclConfig;

#define MOE_NCCL_CONFIG_MAGIC   0xcafebeefu
#define MOE_NCCL_CONFIG_VERSION 21800   /* what the struct above is of */
#define MOE_NCCL_UNDEFINED      INT_MIN /* of the configuration's ints: NCCL's own choice */
#define MOE_NCCL_OLDEST         21800

/* X(type, member, name in the library, parameters) */
#define MOE_NCCL_FUNCTIONS(X)                                                                      \
    X(int, get_version, "ncclGetVersion", (int *version))                                          \
    X(int, get_id, "ncclGetUniqueId", (MoeNcclId * id))                                            \
    X(int, init_config, "ncclCommInitRankConfig",                                                  \
      (MoeNcclComm * comm, int n_ranks, MoeNcclId id, int rank, MoeNcclConfig *config))            \
    X(int, async_error, "ncclCommGetAsyncError", (MoeNcclComm comm, int *result))                  \
    X(int, finalize, "ncclCommFinalize", (MoeNcclComm comm))                                       \
    X(int, destroy, "ncclCommDestroy", (MoeNcclComm comm))                                         \
    X(int, abort, "ncclCommAbort", (MoeNcclComm comm))                                             \
    X(int, group_start, "ncclGroupStart", (void))                                                  \
    X(int, group_end, "ncclGroupEnd", (void))                                                      \
    X(int, send, "ncclSend",                                                                       \
      (const void *from, size_t n, int type, int peer, MoeNcclComm comm, MoeCuStream stream))      \
    X(int, recv, "ncclRecv",                                                                       \
      (void *to, size_t n, int type, int peer, MoeNcclComm comm, MoeCuStream stream))              \
    X(const char *, error_string, "ncclGetErrorString", (int result))                              \
    X(const char *, last_error, "ncclGetLastError", (MoeNcclComm comm))

typedef struct {
#define X(type, member, symbol, params) type(*member) params;
    MOE_NCCL_FUNCTIONS(X)
#undef X
} MoeNccl;

/* The library, opened. MOE_E_IO: it is not here, or older than 2.18; says what to do. Any thread. */
MoeStatus moe_nccl(const MoeNccl **out);
/* "2.28.9"; and the file that was opened, "" before. */
const char *moe_nccl_version(char out[24]);
const char *moe_nccl_path(void);

/* NULL for success and for "in progress", which a communicator that does not block says. Else MOE_E_IO: what was done, NCCL's
 * name for what went wrong, and its last words on it. comm: NULL if there is none yet. */
MoeStatus moe_nccl_status(int result, MoeNcclComm comm, const char *what, ...) MOE_PRINTF(3, 4);

#endif
