/* tensor_map.h */
#include "tests/sim/tensor_map.h"

#include <stddef.h>
#include <string.h>

enum { MAGIC = 0x544d6170 };
_Static_assert(sizeof(MoeSimTensorMap) <= MOE_SIM_MAP_BYTES, "a tensor map has 128 bytes");

static uint16_t check_of(const MoeSimTensorMap *m) {
    uint32_t sum = 0x5a5a;
    const unsigned char *p = (const unsigned char *)m;
    for (size_t i = 0; i < offsetof(MoeSimTensorMap, check); i++)
        sum = sum * 31 + p[i];
    return (uint16_t)(sum ^ sum >> 16);
}

void moe_sim_tensor_map_write(MoeSimTensorMap *m, void *out) {
    m->magic = MAGIC;
    m->check = check_of(m);
    memset(out, 0, MOE_SIM_MAP_BYTES);
    memcpy(out, m, sizeof *m);
}

const MoeSimTensorMap *moe_sim_tensor_map_read(const void *p, const char **why) {
    const MoeSimTensorMap *m = p;
    *why = (uintptr_t)p % 64         ? "its address is no multiple of 64"
           : m->magic != MAGIC       ? "the driver never encoded it"
           : m->check != check_of(m) ? "it was changed after the driver encoded it"
                                     : NULL;
    return *why ? NULL : m;
}
