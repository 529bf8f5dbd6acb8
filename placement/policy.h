/* Placement policies: from the loads of past steps to a map. One file (policy_NAME.c) and one row of policies.def each
 * (docs/ADD_A_POLICY.md). A policy works on one layer at a time; it keeps what it learns in a state of its own. */
#ifndef MOE_PLACEMENT_POLICY_H
#define MOE_PLACEMENT_POLICY_H

#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
#include "placement/cost.h"
#include "placement/map.h"

typedef struct {
    int layers, experts, ranks, slots; /* ranks of an EP group, slots of each */
    int groups, sources;               /* EP groups; sources (virtual shards) of all groups together, consecutive for each */
    int grain;                         /* of cuts between copies (base/split.h) */
    int every, window;                 /* steps between decisions; steps of history in `loads` */
    uint64_t seed;
    const MoePlaceCost *cost; /* never NULL; borrowed, outlives the policy */
    const char *program;      /* of the policy `program`: a command line; else NULL */
} MoePolicySetup;

/* What a policy is asked. */
typedef struct {
    int64_t step; /* the next one; loads are of earlier steps alone */
    int layer;
    const MoePlaceMap *now;
    /* The last n_loads (at most `window`) steps, oldest first: loads[i] is [experts][sources]. */
    const int32_t *const *loads;
    int n_loads;
} MoePolicyAsk;

typedef struct MoePolicy {
    const char *name;
    const char *doc;    /* one line, with its source */
    bool each_step;     /* wants to be asked at every step, not every `every` */
    bool may_replicate; /* puts copies into extra slots */
    MoeStatus (*create)(const MoePolicySetup *s, void **out); /* NULL: no state, `state` is then the setup */
    /* out has now's contents; the policy changes it. Not changing it means: stay. */
    MoeStatus (*propose)(void *state, const MoePolicyAsk *ask, MoePlaceMap *out);
    void (*destroy)(void *state);
} MoePolicy;

size_t moe_policy_count(void);
const MoePolicy *moe_policy_at(size_t i);
/* MOE_E_MISUSE listing the names. */
MoeStatus moe_policy_find(const char *name, const MoePolicy **out);

#endif
