/* What the simulated NVRTC hands out as a cubin, and the simulated driver loads: this header, then a shared object. */
#ifndef MOE_TESTS_SIM_CUBIN_H
#define MOE_TESTS_SIM_CUBIN_H

#include <stdint.h>

#define MOE_SIM_CUBIN_MAGIC "MOESIMCU"
#define MOE_SIM_CUBIN_MAGIC_BYTES                                                                  \
    { 'M', 'O', 'E', 'S', 'I', 'M', 'C', 'U' }

typedef struct {
    char magic[8];
    uint32_t version;   /* MOE_SIM_VERSION */
    int32_t capability; /* 90 */
    uint32_t exact;     /* sm_90a: that capability alone */
    uint32_t unused;
    uint64_t bytes; /* of the shared object */
} MoeSimCubin;

#endif
