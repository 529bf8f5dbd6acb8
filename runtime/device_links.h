/* Exchanges that a device does itself, from its memory to that of other ranks' devices, once links to them are open: no bytes go
 * through the host. The host makes the same lists of blocks as for a communicator (exec_comm_blocks.c) and says where a step's
 * exchange begins and ends; nothing waits for the device in between. Addresses are the host's, as everywhere (device.h).
 * Implemented over NCCL by runtime/cuda/nccl*.c; used by exec_comm_device.c. */
#ifndef MOE_RUNTIME_DEVICE_LINKS_H
#define MOE_RUNTIME_DEVICE_LINKS_H

#include "runtime/device.h"

/* A copy from this rank to itself: n rows of row_bytes; index: of the source rows, NULL = in order. */
typedef struct {
    char *to;
    const char *from;
    int64_t row_bytes, n;
    const int32_t *index;
} MoeExecCopy;

/* One op's part of an exchange, as for moe_comm_start. What a pair of ranks exchanges in one op is one message, so both ends cut
 * their bytes alike. */
typedef struct {
    const MoeBlock *sends, *recvs;
    const MoeExecCopy *copies;
    size_t n_sends, n_recvs, n_copies;
} MoeDeviceBlocks;

/* Terms of a sum over ranks: own rows, and those of the others in the group's order, [n - 1][rows][columns]. Element c of row r of
 * the result is the tree over the ranks' (docs/NUMBERS.md). */
typedef struct {
    const char *own, *others;
    char *out;
    int64_t rows, columns;
    int64_t own_stride, out_stride; /* bytes from row to row */
    int n, self;
    bool integers; /* i32; else f32 */
} MoeDeviceTerms;

struct MoeDeviceLinks {
    /* Takes the op's blocks into the exchange that start() will start. What is received has memory from then on. */
    MoeStatus (*add)(MoeDevice *d, MoeExec *x, const MoeDeviceBlocks *b);
    /* Behind all that was started on the device so far. Flights 0, 1, ...: one that is under way is not started again. */
    MoeStatus (*start)(MoeDevice *d, MoeExec *x, int flight, const char *what);
    /* What is started from now on runs behind that flight's exchange. */
    MoeStatus (*finish)(MoeDevice *d, MoeExec *x, int flight);
    MoeStatus (*sum)(MoeDevice *d, const MoeDeviceTerms *t);
    /* Roots of a gradient, n floats each, added up as `program` says (base/split_rows.h); out may be one of them. */
    MoeStatus (*fold)(MoeDevice *d, const float *const *roots, const uint8_t *program,
                      int n_program, float *out, int64_t n);
    MoeStatus (*clear)(MoeDevice *d, char *at,
                       int64_t bytes); /* zeros; the mirror is not touched */
    MoeStatus (*settle)(MoeDevice *d); /* waits for all that was started */
};

#endif
