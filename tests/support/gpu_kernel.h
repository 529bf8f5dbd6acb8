/* One kernel of a test's own on the simulated GPU: compiled from its text with the device library's prelude and ptx, loaded,
 * launched with buffers of device memory that it makes. For tests of the simulator and of device code. */
#ifndef MOE_TESTS_SUPPORT_GPU_KERNEL_H
#define MOE_TESTS_SUPPORT_GPU_KERNEL_H

#include "base/cuda_driver.h"

enum { MOE_GPU_KERNEL_BUFS = 4 };

typedef struct {
    const MoeCudaDriver *cu;
    MoeCuStream stream;
    MoeCuModule module;
    MoeCuFunction f;
    MoeCuPtr stop, bufs[MOE_GPU_KERNEL_BUFS];
    size_t bytes[MOE_GPU_KERNEL_BUFS];
} MoeGpuKernel;

/* Opens the simulator with a device of that capability ("90"); its context is this thread's. */
MoeStatus moe_gpu_begin(const char *devices, const MoeCudaDriver **out);
/* text: what stands before the kernel, then the kernel's body, of a kernel "test" with 4 buffers and `maps` tensor maps. */
MoeStatus moe_gpu_kernel_make(const char *arch, const char *before, const char *body, int threads,
                              int maps, MoeGpuKernel *out);
/* Buffer i: device memory of so many bytes with these contents (NULL: as it comes). */
MoeStatus moe_gpu_kernel_buf(MoeGpuKernel *k, int i, const void *from, size_t bytes);
/* Launches and waits: what the driver says, without words. maps: as many as the kernel has. */
MoeCuResult moe_gpu_kernel_run(MoeGpuKernel *k, unsigned blocks, unsigned threads,
                               unsigned shared_bytes, const MoeCuTensorMap *maps, int n_maps);
MoeStatus moe_gpu_kernel_read(MoeGpuKernel *k, int i, void *to);
void moe_gpu_kernel_free(MoeGpuKernel *k);
/* What the simulator said of the last kernel that went wrong. */
const char *moe_gpu_last_words(void);

#endif
