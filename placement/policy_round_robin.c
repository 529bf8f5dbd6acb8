/* Experts dealt to the ranks like cards, whatever their load; then copies of them, in the same order, into the slots that are left. */
#include "placement/policy.h"

static MoeStatus propose(void *state, const MoePolicyAsk *ask, MoePlaceMap *out) {
    const MoePolicySetup *s = state;
    moe_policy_clear(out);
    for (int e = 0; e < s->experts; e++)
        moe_policy_put(out, e % s->ranks, e);
    /* A rank's next copy is the next expert that it does not hold; one that holds all keeps its slots empty. */
    int next = 0, left = s->ranks * s->slots - s->experts;
    for (int turn = 0; left > 0 && turn < s->ranks * s->slots; turn++) {
        int rank = (s->experts + turn) % s->ranks;
        for (int tries = 0; tries < s->experts && moe_policy_free(out, rank); tries++) {
            int e = next;
            next = (next + 1) % s->experts;
            if (moe_policy_put(out, rank, e)) {
                left--;
                break;
            }
        }
    }
    moe_place_map_settle(out, ask->now);
    return NULL;
}

const MoePolicy moe_policy_round_robin = {
    .name = "round-robin",
    .doc = "expert e to rank e mod ranks, copies likewise, whatever the load",
    .may_replicate = true,
    .propose = propose,
};
