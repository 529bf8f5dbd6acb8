/* The device's side of group_run.h: kernels of a container on the first device, memory with addresses of its own. Everything
 * is in one stream, and waited for. */
#ifndef MOE_TESTS_GROUP_GPU_H
#define MOE_TESTS_GROUP_GPU_H

#include "base/cuda_driver.h"
#include "ir/target.h"

typedef struct MoeGroupGpu MoeGroupGpu;

/* object: the container that the target's finish made (base/cubins.h), which this takes over. */
MoeStatus moe_group_gpu_create(void *object, size_t n, MoeGroupGpu **out);
MoeStatus moe_group_gpu_alloc(MoeGroupGpu *g, size_t bytes, MoeCuPtr *out); /* until destroy */
MoeStatus moe_group_gpu_write(MoeGroupGpu *g, MoeCuPtr to, const void *from, size_t bytes);
MoeStatus moe_group_gpu_read(MoeGroupGpu *g, void *to, MoeCuPtr from, size_t bytes);
/* One launch with the addresses of its buffers; returns when it has run. */
MoeStatus moe_group_gpu_launch(MoeGroupGpu *g, const MoeLaunch *l, const MoeCuPtr *bufs);
/* Seconds that it took on the device. */
MoeStatus moe_group_gpu_time(MoeGroupGpu *g, const MoeLaunch *l, const MoeCuPtr *bufs,
                             double *out_s);
void moe_group_gpu_destroy(MoeGroupGpu *g); /* NULL is fine */

#endif
