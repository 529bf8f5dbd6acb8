#include "placement/policy_eplb.h"

#include <string.h>

#include "base/assert.h"
#include "placement/policy.h"

/* n things into packs of n / packs each, the heaviest first into the lightest pack with room: pack and place in it of each. */
static void pack(const float *weight, int n, int packs, MoeArena *a, int32_t *of, int32_t *at) {
    int per = n / packs;
    if (per == 1) {
        for (int i = 0; i < n; i++) {
            of[i] = i;
            at[i] = 0;
        }
        return;
    }
    double *w = MOE_NEW_N(a, double, n);
    float *sum = MOE_NEW_N(a, float, packs);
    int32_t *order = MOE_NEW_N(a, int32_t, n), *held = MOE_NEW_N(a, int32_t, packs);
    for (int i = 0; i < n; i++)
        w[i] = weight[i];
    moe_policy_order(w, n, order);
    for (int i = 0; i < n; i++) {
        int best = -1;
        for (int p = 0; p < packs; p++)
            if (held[p] < per && (best < 0 || sum[p] < sum[best]))
                best = p;
        of[order[i]] = best;
        at[order[i]] = held[best]++;
        sum[best] += weight[order[i]];
    }
}

/* One node: its experts (by their order there) and replicas over its gpus. local [replicas]. */
static void node(const float *weight, int experts, int replicas, int gpus, MoeArena *a,
                 int32_t *local) {
    int32_t *copies = MOE_NEW_N(a, int32_t, experts), *of = MOE_NEW_N(a, int32_t, replicas),
            *pack_of = MOE_NEW_N(a, int32_t, replicas), *at = MOE_NEW_N(a, int32_t, replicas);
    float *share = MOE_NEW_N(a, float, replicas);
    for (int i = 0; i < replicas; i++) {
        int e = i < experts ? i : 0;
        if (i >= experts) /* one more of that with the most for each */
            for (int k = 1; k < experts; k++)
                e = weight[k] / (float)copies[k] > weight[e] / (float)copies[e] ? k : e;
        of[i] = e;
        copies[e]++;
    }
    for (int i = 0; i < replicas; i++)
        share[i] = weight[of[i]] / (float)copies[of[i]];
    pack(share, replicas, gpus, a, pack_of, at);
    for (int i = 0; i < replicas; i++)
        local[pack_of[i] * (replicas / gpus) + at[i]] = of[i];
}

void moe_eplb(const float *weight, int experts, int replicas, int groups, int nodes, int gpus,
              int32_t *slot) {
    if (groups % nodes != 0 || experts % groups != 0)
        groups = nodes = 1;
    MOE_ASSERT(replicas >= experts && replicas % gpus == 0 && gpus % nodes == 0,
               "%d replicas of %d experts on %d gpus of %d nodes", replicas, experts, gpus, nodes);
    MoeArena *a = moe_arena_create();
    int size = experts / groups, per_node = experts / nodes, slots_node = replicas / nodes;
    float *group = MOE_NEW_N(a, float, groups), *w = MOE_NEW_N(a, float, experts);
    int32_t *of = MOE_NEW_N(a, int32_t, groups), *at = MOE_NEW_N(a, int32_t, groups),
            *id = MOE_NEW_N(a, int32_t, experts); /* experts in the order of nodes */
    for (int e = 0; e < experts; e++)
        group[e / size] += weight[e];
    pack(group, groups, nodes, a, of, at);
    for (int e = 0; e < experts; e++) {
        int g = e / size, i = (of[g] * (groups / nodes) + at[g]) * size + e % size;
        id[i] = e;
        w[i] = weight[e];
    }
    for (int n = 0; n < nodes; n++) {
        int32_t *local = slot + n * slots_node;
        node(w + n * per_node, per_node, slots_node, gpus / nodes, a, local);
        for (int i = 0; i < slots_node; i++)
            local[i] = id[n * per_node + local[i]];
    }
    moe_arena_destroy(a);
}

/* What EPLB puts into each slot. */
static int32_t *assign(const MoePolicySetup *s, const MoePolicyAsk *ask, MoeArena *a) {
    int n = s->ranks * s->slots, nodes = s->cost->cluster.nodes;
    double *w = MOE_NEW_N(a, double, s->experts);
    float *weight = MOE_NEW_N(a, float, s->experts);
    int32_t *slot = MOE_NEW_N(a, int32_t, n);
    moe_policy_rows(s, ask, w);
    for (int e = 0; e < s->experts; e++)
        weight[e] = (float)w[e];
    bool nested = nodes > 1 && s->ranks % nodes == 0 && s->experts % nodes == 0;
    moe_eplb(weight, s->experts, n, nested ? s->experts : 1, nested ? nodes : 1, s->ranks, slot);
    return slot;
}

static MoeStatus propose(void *state, const MoePolicyAsk *ask, MoePlaceMap *out) {
    const MoePolicySetup *s = state;
    MoeArena *a = moe_arena_create();
    const int32_t *slot = assign(s, ask, a);
    moe_policy_clear(out);
    for (int i = 0; i < s->ranks * s->slots;
         i++) /* a second copy on a rank is none: its slot stays empty */
        moe_policy_put(out, i / s->slots, slot[i]);
    moe_place_map_settle(out, ask->now);
    moe_arena_destroy(a);
    return NULL;
}

static void replicas(const MoePolicySetup *s, const MoePolicyAsk *ask, int32_t *out) {
    MoeArena *a = moe_arena_create();
    const int32_t *slot = assign(s, ask, a);
    memset(out, 0, sizeof *out * (size_t)s->ranks * (size_t)s->experts);
    for (int i = 0; i < s->ranks * s->slots; i++)
        out[(size_t)(i / s->slots) * (size_t)s->experts + (size_t)slot[i]]++;
    moe_arena_destroy(a);
}

const MoePolicy moe_policy_eplb = {
    .name = "eplb",
    .doc = "DeepSeek's EPLB: copies of the hottest, packed by falling load; by nodes first if the "
           "cluster has several",
    .may_replicate = true,
    .propose = propose,
    .replicas = replicas,
};
