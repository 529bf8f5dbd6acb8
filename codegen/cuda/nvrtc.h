/* NVRTC, NVIDIA's compiler as a library: CUDA C++ of one kernel -> device code (a cubin). Opened by SONAME at the first use; no
 * toolkit and no GPU is needed where it runs. Called by module.c. */
#ifndef MOE_CODEGEN_CUDA_NVRTC_H
#define MOE_CODEGEN_CUDA_NVRTC_H

#include <stdbool.h>
#include <stddef.h>
#include "base/status.h"

/* What ptxas says of a kernel. Functions that were not inlined count, too. */
typedef struct {
    int registers;    /* of a thread */
    int stack_bytes;  /* of a thread's local memory */
    int spill_bytes;  /* stored and loaded for lack of registers: 0 is what is wanted */
    int shared_bytes; /* static shared memory of a block */
    int warnings; /* of NVRTC, and of ptxas about products that it had to put in a row (C75xx) */
} MoeCudaResources;

typedef struct {
    void *data; /* malloc'd */
    size_t n;
    MoeCudaResources resources;
    bool cached; /* came from the cache: nothing was compiled */
    double seconds,
        ptxas_seconds; /* that compiling took, and that ptxas says it took of these; 0: from the cache */
} MoeCudaCode;

/* Compiles a translation unit that holds kernel `name`, or takes what the cache (cache.h) has for the same text, options and
 * NVRTC. arch: "sm_90a". The text that does not compile is our bug: MOE_E_INTERNAL with NVRTC's log; MOE_E_IO: no NVRTC here.
 * Any thread. */
MoeStatus moe_nvrtc_compile(const char *arch, const char *name, const char *text, MoeCudaCode *out);

/* "13.0"; MOE_E_IO: no NVRTC here. */
MoeStatus moe_nvrtc_version(int *out_major, int *out_minor);

/* The figures in ptxas's words (--ptxas-options=-v). */
MoeCudaResources moe_nvrtc_parse_log(const char *log);
double moe_nvrtc_parse_seconds(const char *log);

#endif
