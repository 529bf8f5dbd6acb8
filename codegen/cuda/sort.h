/* Launches of the stable counting sort on the device (device/sort.cuh), for every kind that orders items by small keys. */
#ifndef MOE_CODEGEN_CUDA_SORT_H
#define MOE_CODEGEN_CUDA_SORT_H

#include "base/str.h"
#include "codegen/bufs.h"
#include "codegen/cuda/cuda.h"

/* A kind's launches over one list of buffers, whose texts begin with the same lines. */
typedef struct {
    MoeCudaTarget *t;
    MoeLowered *out;
    const MoeBufs *bufs;
    const char *prefix; /* of kernel names */
    uint32_t parts;     /* device parts beside those of the sort */
    const char *
        begin; /* C++ statements at the start of every kernel: declares what texts of the caller name */
    int64_t shared; /* bytes of dynamic shared memory */
    int min_blocks; /* blocks a multiprocessor; 0: as many as usual */
} MoeCudaSteps;

/* One launch of `threads` a block for the text `begin` then `body`. */
void moe_cuda_step(const MoeCudaSteps *s, const char *name, int threads, int64_t blocks,
                   const char *body);

/* begin declares `n`, the live items (i64); `keys` and `sink` as sort.cuh says; `work`, i32 * to moe_cuda_sort_bytes. */
typedef struct {
    int64_t n_keys, capacity;           /* items at most */
    const char *n, *keys, *sink, *work; /* C++ names */
} MoeCudaSort;

/* Three launches a pass; behind them work[0] holds how many items have a key. */
void moe_cuda_sort(const MoeCudaSteps *s, const MoeCudaSort *sort);
int64_t moe_cuda_sort_bytes(int64_t n_keys, int64_t capacity);
/* One launch that writes a table of `cells` cells over `rows` sorted rows: all C++ expressions. */
void moe_cuda_sort_table(const MoeCudaSteps *s, const char *name, int64_t cells, const char *before,
                         const char *rows, const char *to);

/* Bytes of a list of n i32 in a workspace that the device lays out (sort_round in sort.cuh). */
int64_t moe_cuda_list_bytes(int64_t n);

/* "NAME = the live rows of t": i64; buf: its segs table's, or -1. Rows begin at 0. */
void moe_cuda_live_rows(MoeStr *text, const char *name, const MoeType *t, int buf);

#endif
