/* Drives a policy over all MoE layers: keeps the history, knows when to ask, checks proposals and weighs them. Online placement
 * (runtime) and replay (moec place) both go through it. Deterministic: the same calls give the same maps. */
#ifndef MOE_PLACEMENT_PLACER_H
#define MOE_PLACEMENT_PLACER_H

#include <stdbool.h>
#include "placement/policy.h"

typedef struct MoePlacer MoePlacer;

typedef struct {
    double hysteresis; /* a change is taken if gain > hysteresis * cost; 0: every valid change is taken. 1 by default */
    double drift; /* also ask, before `every` steps are over, when the imbalance over the last MOE_PLACER_DRIFT_STEPS is this much
                   * more than over the first as many after the last decision; 0: never */
    bool unweighed; /* without hysteresis: nobody wants to know gain, cost, before and after, which are then 0 */
} MoePlacerGate;

enum { MOE_PLACER_DRIFT_STEPS = 4 };

typedef enum { MOE_PLACE_KEPT, MOE_PLACE_CHANGED, MOE_PLACE_TOO_DEAR, MOE_PLACE_REFUSED } MoePlaceVerdict;
typedef struct {
    MoePlaceVerdict verdict;
    double gain, cost;         /* seconds: predicted until the next decision; of the move */
    double before, after;      /* predicted imbalance; both 0 if nothing else was proposed than what is */
    int arrivals, moves;       /* moe_place_map_arrivals, moe_place_map_moves */
    char why[200];             /* of a refused answer: one line */
} MoePlaceDecision;

/* `setup` is copied (what it points to is not). The policy's own errors at `create` (a program that cannot start) are returned;
 * MOE_E_NOMEM if the history does not fit; MOE_E_MISUSE if a number is impossible (sources that groups do not divide). */
MoeStatus moe_placer_create(const MoePolicy *policy, const MoePolicySetup *setup, MoePlacerGate gate, MoePlacer **out);
void moe_placer_destroy(MoePlacer *p);
/* The counts of a step that has ended: [layers][sources][experts], copied. maps: those that it ran under. */
void moe_placer_observe(MoePlacer *p, int64_t step, const int32_t *counts, const MoePlaceMap *maps);
/* Whether `decide` is due before `step`: at steps that `every` divides, at each step if the policy wants that, on drift; never without
 * a step observed. */
bool moe_placer_due(const MoePlacer *p, int64_t step);
/* Before `step`: maps [layers] are changed in place where a change is taken; out [layers] says what and why. A policy that fails
 * or answers nonsense is refused, never an error: training goes on with the old map. */
void moe_placer_decide(MoePlacer *p, int64_t step, MoePlaceMap *maps, MoePlaceDecision *out);
double moe_placer_seconds(const MoePlacer *p); /* wall time spent in decide so far */

#endif
