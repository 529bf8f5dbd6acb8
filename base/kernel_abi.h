/* The binary interface between compiled kernels and the runtime. A plan's step is one launch of one kernel.
 *
 * Every kernel NAME exports two symbols:
 *   int64_t NAME_tasks(void *const *bufs)                              how many tasks this launch has now (live extents)
 *   void    NAME(void *const *bufs, int64_t task, void *scratch)       runs one of them
 * bufs: pointers to the buffers of the step in the plan's order (operands, results, workspace); constants of the launch
 * are baked into the code. Tasks write disjoint memory and may run in any order on any thread; launches run one after
 * another. scratch: per-thread memory of the program's scratch_bytes, 64-byte aligned, contents undefined.
 * Buffers are 64-byte aligned and may be read up to 64 bytes past their end, never written there.
 * Layout: row-major, dense; bf16 as uint16; a scalar is one element. A segs buffer is int32[G*V+1]. */
#ifndef MOE_BASE_KERNEL_ABI_H
#define MOE_BASE_KERNEL_ABI_H

#include <stdint.h>

#define MOE_KERNEL_ABI_VERSION 1
#define MOE_BUFFER_ALIGN       64
#define MOE_BUFFER_SLACK       64

typedef int64_t (*MoeKernelTasksFn)(void *const *bufs);
typedef void (*MoeKernelFn)(void *const *bufs, int64_t task, void *scratch);

#endif
