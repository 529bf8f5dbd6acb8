/* NVIDIA architectures that plans can be compiled for: one table (arch.c), by name. */
#ifndef MOE_CODEGEN_CUDA_ARCH_H
#define MOE_CODEGEN_CUDA_ARCH_H

#include <stdbool.h>
#include <stdint.h>
#include "base/status.h"

typedef struct {
    const char *name;          /* "sm_90a": also NVRTC's --gpu-architecture */
    int major, minor;          /* compute capability that runs it */
    bool exact;                /* an 'a' architecture: that capability alone, else any later minor of the major */
    int multiprocessors;       /* of the usual device, for grids */
    int64_t shared_bytes;      /* dynamic shared memory of a block at most */
    bool tensor_maps, wgmma;   /* copies by tensor map; warpgroup products */
    double flops_f32, flops_bf16, bandwidth; /* of the usual device: FLOP/s (dense), bytes/s */
} MoeCudaArch;

/* By name; "native": that of this machine's first device. MOE_E_MISUSE names what there is. */
MoeStatus moe_cuda_arch_get(const char *name, const MoeCudaArch **out);

#endif
