/* The map that training starts with, for ever: the yardstick. */
#include "placement/policy.h"

static MoeStatus propose(void *state, const MoePolicyAsk *ask, MoePlaceMap *out) {
    (void)state;
    (void)ask;
    (void)out; /* has the map of now */
    return NULL;
}

const MoePolicy moe_policy_static = {
    .name = "static",
    .doc = "never changes the map",
    .propose = propose,
};
