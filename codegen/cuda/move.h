/* What kernels that move rows share (kind_move.c, kind_embed.c): words of a row, the rows that are live. */
#ifndef MOE_CODEGEN_CUDA_MOVE_H
#define MOE_CODEGEN_CUDA_MOVE_H

#include "codegen/cuda/sort.h"

enum { MOE_CUDA_MOVE_THREADS = 256 }; /* MOVE_THREADS in device/move.cuh */

/* A row of bytes as the widest words that divide it, so that rows are aligned to them, and the threads that work on one. */
typedef struct {
    const char *type;
    int64_t n;
    int lanes;
} MoeCudaWords;
MoeCudaWords moe_cuda_words(int64_t row_bytes);
/* The power of two that is not below n, at most a warp. */
int moe_cuda_lanes(int64_t n);

/* "const Rows NAME = the live rows of t": of a window from the first on; buf: its segs table's, or -1. */
void moe_cuda_live_range(MoeStr *text, const char *name, const MoeType *t, int buf);

#endif
