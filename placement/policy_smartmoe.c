/* SmartMoE's online greedy (Zhai et al., "SmartMoE", USENIX ATC'23, section 6; thu-pacman/SmartMoE-AE, fmoe/smartmoe/mapping.py,
 * greedy_gen_mapping_from_history): experts by falling load, each to the rank with the least that has not its full number
 * ceil(E/ranks) yet, or stays where it is if that is as good; taken if the busiest rank then has less. No charge for moves. */
#include "placement/policy.h"

static double most(const double *load, int n) {
    double m = 0;
    for (int i = 0; i < n; i++)
        m = load[i] > m ? load[i] : m;
    return m;
}

static MoeStatus propose(void *state, const MoePolicyAsk *ask, MoePlaceMap *out) {
    const MoePolicySetup *s = state;
    MoeArena *a = moe_arena_create();
    int n = s->experts, per = (n + s->ranks - 1) / s->ranks;
    double *w = MOE_NEW_N(a, double, n), *load = MOE_NEW_N(a, double, s->ranks),
           *before = MOE_NEW_N(a, double, s->ranks);
    int32_t *order = MOE_NEW_N(a, int32_t, n), *held = MOE_NEW_N(a, int32_t, s->ranks);
    moe_policy_rows(s, ask, w);
    moe_policy_order(w, n, order);
    moe_policy_clear(out);
    for (int i = 0; i < n; i++) {
        int e = order[i], now = ask->now->primary[e] / ask->now->slots, to = -1;
        before[now] += w[e];
        for (int r = 0; r < s->ranks; r++)
            if (held[r] < per && (to < 0 || load[r] < load[to]))
                to = r;
        if (held[now] < per && !(load[to] < load[now]))
            to = now;
        moe_policy_put(out, to, e);
        held[to]++;
        load[to] += w[e];
    }
    if (most(before, s->ranks) > most(load, s->ranks))
        moe_place_map_settle(out, ask->now);
    else
        moe_place_map_copy(out, ask->now);
    moe_arena_destroy(a);
    return NULL;
}

const MoePolicy moe_policy_smartmoe = {
    .name = "smartmoe",
    .doc = "SmartMoE's greedy (ATC'23): falling load to the least loaded rank, equal numbers a "
           "rank; no copies",
    .propose = propose,
};
