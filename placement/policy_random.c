/* A new map at random at each decision, extra slots full of copies: what luck gives, and the hardest test of everything that follows
 * maps. */
#include "base/rng.h"
#include "placement/policy.h"

static MoeStatus propose(void *state, const MoePolicyAsk *ask, MoePlaceMap *out) {
    const MoePolicySetup *s = state;
    uint64_t stream = moe_hash_name("placement.random") + (uint64_t)ask->layer;
    uint64_t i = (uint64_t)ask->step << 24;
    moe_policy_clear(out);
    for (int e = 0; e < s->experts; e++) {
        int rank = (int)moe_rng_below(s->seed, stream, i++, (uint64_t)s->ranks);
        while (!moe_policy_put(out, rank, e))
            rank = (rank + 1) % s->ranks;
    }
    for (int r = 0; r < s->ranks; r++)
        for (int n = moe_policy_free(out, r); n > 0;
             n--) { /* one that is there already: the slot stays empty */
            int e = (int)moe_rng_below(s->seed, stream, i++, (uint64_t)s->experts);
            moe_policy_put(out, r, e);
        }
    moe_place_map_settle(out, ask->now);
    return NULL;
}

const MoePolicy moe_policy_random = {
    .name = "random",
    .doc = "another map at random at each decision",
    .may_replicate = true,
    .propose = propose,
};
