/* See device.h. */
#include "runtime/device.h"

#include <string.h>

MoeStatus moe_device_open(const MoePlan *plan, const MoeDevicePlace *place, MoeDevice **out) {
    *out = NULL;
    return moe_plan_is_cuda(plan) ? moe_device_cuda(plan, place, out) : moe_device_cpu(out);
}

void moe_device_close(MoeDevice *d) {
    if (d)
        d->ops->close(d);
}

MoeStatus moe_device_zero(MoeDevice *d, void *at, int64_t bytes) {
    if (bytes <= 0)
        return NULL;
    if (d->ops->zero)
        return d->ops->zero(d, at, bytes);
    memset(at, 0, (size_t)bytes);
    return NULL;
}
