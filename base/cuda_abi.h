/* The binary interface between the runtime and the kernels of plans for NVIDIA GPUs (docs/GPU.md): what every plan's
 * kernels.cubin has beside the kernels of its steps. Made by codegen/cuda/runtime_kernels.c, launched by
 * runtime/device_cuda_*.c; their text is in codegen/cuda/device/runtime.cuh.
 *
 * A kernel gets one struct by value: the address of the stop flag (int32), then its buffers, each a 64-bit address or, where it
 * says so, a number in its place. */
#ifndef MOE_BASE_CUDA_ABI_H
#define MOE_BASE_CUDA_ABI_H

#include <stdint.h>

#define MOE_RT_THREADS 256
#define MOE_RT_SLOTS   32 /* of the tree over micro-batches, at most */

/* X(name, buffers)
 * moe_rt_fold          source, out, n (number), slots (number), slot 0 .. 31: out[i] = slot[s-1][i] + ( .. (slot[0][i] + source[i]));
 *                      f32; out may be one of the others
 * moe_rt_add_i32       source, sum, n (number): sum[i] += source[i]
 * moe_rt_window        all, window, entries (number), lo, hi (numbers: indexes into all): all[k] within [all[lo], all[hi]]
 * moe_rt_guard_rows    MoeRtElastic[], n (number), code (number): notes the rows; stop = code where they are more than fit
 * moe_rt_guard_finite  a, b: stop = MOE_RT_NOT_FINITE unless the first float of both is finite */
#define MOE_RT_KERNELS(X)                                                                          \
    X(moe_rt_fold, 4 + MOE_RT_SLOTS)                                                               \
    X(moe_rt_add_i32, 3)                                                                           \
    X(moe_rt_window, 5)                                                                            \
    X(moe_rt_guard_rows, 3)                                                                        \
    X(moe_rt_guard_finite, 2)

typedef enum {
#define X(name, bufs) MOE_RT_ID_##name,
    MOE_RT_KERNELS(X)
#undef X
        MOE_RT_N_KERNELS
} MoeRtKernel;

/* An elastic value on the device. */
typedef struct {
    uint64_t rows;      /* address of the int32 that counts the live rows */
    int64_t limit;      /* rows that there is memory for */
    int64_t seen, need; /* the most so far; of these, what did not fit */
} MoeRtElastic;

/* The stop flag: 0, step i of the program has not run and nothing since (1 + i), or this. */
#define MOE_RT_NOT_FINITE (-1)

#endif
