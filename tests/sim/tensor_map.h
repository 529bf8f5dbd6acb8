/* Tensor maps of the simulator: what the driver's encode keeps in the 128 opaque bytes, and what copies read back. */
#ifndef MOE_TESTS_SIM_TENSOR_MAP_H
#define MOE_TESTS_SIM_TENSOR_MAP_H

#ifdef __cplusplus /* with a unit: no headers of C there */
typedef __UINT8_TYPE__ uint8_t;
typedef __UINT16_TYPE__ uint16_t;
typedef __UINT32_TYPE__ uint32_t;
typedef __UINT64_TYPE__ uint64_t;
#else
#include <stdint.h>
#endif

typedef struct {
    uint32_t magic;
    uint8_t element_bytes, rank;
    uint8_t swizzle; /* bytes: 0, 32, 64, 128 */
    uint8_t type;    /* CUtensorMapDataType */
    void *address;
    uint64_t dims[5];    /* innermost first, elements; 40 bits hold more than any */
    uint64_t strides[4]; /* bytes of dims 1 .. */
    uint16_t box[5];
    uint16_t check; /* of the rest: a map that was overwritten or copied in part is noticed */
} MoeSimTensorMap;

enum { MOE_SIM_MAP_BYTES = 128 };

/* Writes m, whose magic and check it fills in, to 128 bytes. */
void moe_sim_tensor_map_write(MoeSimTensorMap *m, void *out);
/* The map in these bytes, which must lie at a multiple of 64; NULL, and why. */
const MoeSimTensorMap *moe_sim_tensor_map_read(const void *p, const char **why);

#endif
