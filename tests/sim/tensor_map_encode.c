/* cuTensorMapEncodeTiled: a map is checked as the driver does, then written (tensor_map.h). Drivers of CUDA 11 have no such. */
#include <string.h>
#include "tests/sim/driver.h"
#include "tests/sim/tensor_map.h"

#if MOE_SIM_DRIVER_VERSION >= 12000

static const char *bad_map(unsigned element, uint32_t rank, CUdeviceptr address,
                           const uint64_t *dims, const uint64_t *strides, const uint32_t *box,
                           const uint32_t *steps, unsigned swizzle) {
    if (!element)
        return "a data type that is not simulated";
    if (rank < 1 || rank > 5)
        return "a rank that is not 1 to 5";
    if (address % 16)
        return "an address that is no multiple of 16";
    for (uint32_t i = 0; i < rank; i++) {
        if (dims[i] == 0 || dims[i] > (uint64_t)1 << 32)
            return "a dimension that is not 1 to 2^32";
        if (box[i] == 0 || box[i] > 256)
            return "a box that is not 1 to 256 in a dimension";
        if (steps[i] != 1)
            return "element strides that are not 1";
        if (i > 0 && (strides[i - 1] % 16 || strides[i - 1] >= (uint64_t)1 << 40))
            return "a stride that is no multiple of 16 below 2^40";
    }
    if (box[0] * element % 16)
        return "a box whose rows are no multiple of 16 bytes";
    if (swizzle && box[0] * element > swizzle)
        return "a box whose rows are longer than its swizzle";
    return NULL;
}

MOE_SIM_EXPORT CUresult cuTensorMapEncodeTiled(void *out, int type, uint32_t rank, void *address,
                                               const uint64_t *dims, const uint64_t *strides,
                                               const uint32_t *box, const uint32_t *steps,
                                               int interleave, int swizzle, int promotion,
                                               int oob) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuTensorMapEncodeTiled", &c);
    static const unsigned bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
    unsigned element = type >= 0 && type < 10 ? bytes[type] : 0;
    if (r)
        return moe_sim_leave(r);
    if (moe_sim_device(c)->capability < 90)
        return moe_sim_leave(moe_sim_complain(CUDA_ERROR_NOT_SUPPORTED,
                                              "tensor maps on a device of capability %d",
                                              moe_sim_device(c)->capability));
    if ((uintptr_t)out % 64 || interleave || swizzle < 0 || swizzle > 3 || promotion < 0 ||
        promotion > 3 || oob)
        return moe_sim_leave(moe_sim_complain(
            CUDA_ERROR_INVALID_VALUE, "cuTensorMapEncodeTiled: the map's address is no multiple of "
                                      "64, or an option that is not simulated"));
    const char *bad = bad_map(element, rank, (uintptr_t)address, dims, strides, box, steps,
                              swizzle ? 16u << swizzle : 0);
    if (bad)
        return moe_sim_leave(
            moe_sim_complain(CUDA_ERROR_INVALID_VALUE, "cuTensorMapEncodeTiled: %s", bad));
    MoeSimTensorMap m;
    memset(&m, 0, sizeof m);
    m.element_bytes = (uint8_t)element;
    m.rank = (uint8_t)rank;
    m.type = (uint8_t)type;
    m.swizzle = (uint8_t)(swizzle ? 16 << swizzle : 0);
    m.address = address;
    for (uint32_t i = 0; i < rank; i++) {
        m.dims[i] = dims[i];
        m.box[i] = (uint16_t)box[i];
        if (i > 0)
            m.strides[i - 1] = strides[i - 1];
    }
    moe_sim_tensor_map_write(&m, out);
    return moe_sim_leave(CUDA_SUCCESS);
}
#endif
