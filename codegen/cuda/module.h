/* The kernels of a CUDA target so far, each once: their text, as units for the compiler and as one file for people, and the
 * container of their code. Filled by moe_cuda_kernel (cuda.h), used by cuda_target.c. */
#ifndef MOE_CODEGEN_CUDA_MODULE_H
#define MOE_CODEGEN_CUDA_MODULE_H

#include "base/str.h"
#include "codegen/cuda/cuda.h"
#include "codegen/cuda/nvrtc.h"

typedef struct MoeCudaKernel {
    const char *name;
    MoeCudaKernelText text;
    MoeCudaResources resources; /* once compiled */
    bool compiled;
} MoeCudaKernel;

/* The device library as it was when moec was built; ends with a NULL name. Made by embed.cmake. */
typedef struct {
    const char *name;          /* "prelude" */
    const unsigned char *text; /* ends with a NUL */
} MoeCudaPartText;
extern const MoeCudaPartText moe_cuda_part_texts[];

/* A part's name, and its text: "" where the library has no such part yet. */
const char *moe_cuda_part_name(MoeCudaPart p);
const char *moe_cuda_part_text(MoeCudaPart p);

/* NULL: no kernel of that name. */
const MoeCudaKernel *moe_cuda_find_kernel(const MoeCudaTarget *t, const char *name);

/* The translation unit of one kernel: the parts it needs, then itself. */
void moe_cuda_unit_text(const MoeCudaKernel *k, MoeStr *out);
/* kernels.cu: each part that any kernel needs, then all kernels, with what ptxas said of them. Compiles as it is. */
void moe_cuda_module_text(const MoeCudaTarget *t, MoeStr *out);
/* Compiles all kernels, several at a time; the container kernels.cubin (base/cubins.h), malloc'd. */
MoeStatus moe_cuda_module_compile(MoeCudaTarget *t, void **out, size_t *out_n);

#endif
