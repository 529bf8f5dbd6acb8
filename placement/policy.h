/* Placement policies: from the loads of past steps to a map. One file (policy_NAME.c) and one row of policies.def each
 * (docs/ADD_A_POLICY.md). A policy works on one layer at a time; it keeps what it learns in a state of its own. */
#ifndef MOE_PLACEMENT_POLICY_H
#define MOE_PLACEMENT_POLICY_H

#include <stdbool.h>
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
    double program_seconds;   /* that it has for an answer; 0: 10 */
} MoePolicySetup;

/* What a policy is asked. */
typedef struct {
    int64_t step; /* the next one; loads are of earlier steps alone */
    int layer;
    const MoePlaceMap *now;
    /* The last n_loads (1 to `window`) steps, oldest first: loads[i] is [experts][sources], totals[i] [experts] its sum over sources. */
    const int32_t *const *loads;
    const int32_t *const *totals;
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
    /* Optional. How many of a rank's slots the published algorithm gives to an expert, where that may be several: out [ranks][experts]. A
     * map has one copy there; but where copies share evenly (moec place --split even), they do by such slots. */
    void (*replicas)(const MoePolicySetup *s, const MoePolicyAsk *ask, int32_t *out);
} MoePolicy;

size_t moe_policy_count(void);
const MoePolicy *moe_policy_at(size_t i);
/* MOE_E_MISUSE listing the names. */
MoeStatus moe_policy_find(const char *name, const MoePolicy **out);

/* For policies. w [experts]: an expert's rows in all of ask's loads. */
void moe_policy_rows(const MoePolicySetup *s, const MoePolicyAsk *ask, double *w);
/* Ids 0..n-1, the largest w first, equal ones by id. */
void moe_policy_order(const double *w, int n, int32_t *order);
/* Nobody holds anything. */
void moe_policy_clear(MoePlaceMap *m);
/* Puts e into the first free slot of a rank that does not hold it; false if there is none or it does. The first time, that is its primary. */
bool moe_policy_put(MoePlaceMap *m, int rank, int e);
bool moe_policy_holds(const MoePlaceMap *m, int rank, int e);
int moe_policy_free(const MoePlaceMap *m, int rank); /* empty slots of a rank */
/* What an arrival costs, in rows of the busiest rank at each of the `every` steps until the next decision; 0 if the cost
 * model has no figures. */
double moe_policy_arrival_rows(const MoePolicySetup *s);

#endif
