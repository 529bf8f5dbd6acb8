/* Longest processing time first (Graham, "Bounds on multiprocessing timing anomalies", 1969), with as many experts on a rank as it has
 * slots: no copies, but extra slots let a rank have more experts than another. */
#include "placement/policy.h"

static MoeStatus propose(void *state, const MoePolicyAsk *ask, MoePlaceMap *out) {
    const MoePolicySetup *s = state;
    MoeArena *a = moe_arena_create();
    double *w = MOE_NEW_N(a, double, s->experts), *load = MOE_NEW_N(a, double, s->ranks);
    int32_t *order = MOE_NEW_N(a, int32_t, s->experts), *held = MOE_NEW_N(a, int32_t, s->ranks);
    moe_policy_rows(s, ask, w);
    moe_policy_order(w, s->experts, order);
    moe_policy_clear(out);
    for (int i = 0; i < s->experts; i++) {
        int least = -1;
        for (int r = 0; r < s->ranks; r++)
            if (held[r] < s->slots && (least < 0 || load[r] < load[least]))
                least = r;
        moe_policy_put(out, least, order[i]);
        load[least] += w[order[i]];
        held[least]++;
    }
    moe_place_map_settle(out, ask->now);
    moe_arena_destroy(a);
    return NULL;
}

const MoePolicy moe_policy_lpt = {
    .name = "lpt",
    .doc = "experts by falling load, each to the rank with the least (Graham 1969); no copies",
    .propose = propose,
};
