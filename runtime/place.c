#include "runtime/place.h"
void moe_place_options_default(MoePlaceOptions *o) {
    *o = (MoePlaceOptions){.policy = "static", .every = 10, .window = 10, .hysteresis = 1, .staging_bytes = (int64_t)256 << 20};
}
