/* How the columns of a row lie over the threads of its team (device/row.cuh): by the column count alone, so that sums have
 * the same order in every kernel. */
#ifndef MOE_CODEGEN_CUDA_ROW_MAP_H
#define MOE_CODEGEN_CUDA_ROW_MAP_H

#include "codegen/cuda/cuda.h"

/* Thread t < width has columns (chunk * width + t) * vec + 0 .. vec-1 of chunks 0 .. chunks-1. */
typedef struct {
    int64_t cols;
    int vec;      /* columns that a thread reads at once: a divisor of cols, at most 8 */
    int width;    /* a power of two */
    int64_t chunks;
    bool whole;   /* every thread has columns in every chunk */
    bool rolled;  /* too many chunks to hold a row in registers */
} MoeCudaRowMap;

enum {
    MOE_CUDA_ROW_WIDTH = 512, /* of a team at most */
    MOE_CUDA_ROW_HELD = 16,   /* columns that a thread takes of wide rows: so many to twice that, while the width suffices */
    MOE_CUDA_ROW_COLS = 48 * MOE_CUDA_ROW_WIDTH /* of the widest row that registers hold */
};

MoeCudaRowMap moe_cuda_row_map(int64_t cols);

#endif
