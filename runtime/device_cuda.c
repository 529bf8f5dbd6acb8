#include "runtime/device.h"
MoeStatus moe_device_cuda(const MoePlan *plan, const MoeDevicePlace *place, MoeDevice **out) {
    (void)plan, (void)place, (void)out;
    return moe_error(MOE_E_INPUT, "plans for GPUs cannot be run yet");
}
