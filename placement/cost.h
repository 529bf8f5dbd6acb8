/* What one MoE layer costs in a step, with a map and a load, on a cluster; what changing the map costs. Data-sensitive: it takes
 * the counts of (source, expert), not their mean. Seconds. The numbers of a layer come from a compiled plan
 * (plan.json, "placement"), from moec probe, or by hand. */
#ifndef MOE_PLACEMENT_COST_H
#define MOE_PLACEMENT_COST_H

#include "base/split.h"
#include "placement/cluster.h"
#include "placement/map.h"

typedef struct {
    MoeCluster cluster;  /* of the ranks of one EP group: EP rank r is on node r / ranks_per_node */
    double row_seconds;  /* compute of one expert row, forward and backward, on one rank */
    double row_bytes;    /* what one token's row costs on the way to a rank and back, forward and backward together */
    double copy_bytes;   /* what one further copy of an expert receives and sends each step: weights and gradient roots */
    double move_bytes;   /* one expert's weights and states, that a change of its primary sends */
    double fixed_seconds; /* the rest of the step, a layer's share: for figures of whole steps */
    double hidden;       /* the part of communication that the schedule hides behind compute, 0 to 1 */
} MoePlaceCost;

/* One layer in one step: the busiest rank's compute + the exchanges, by the (source, rank) rows over the links + what copies
 * cost. counts [experts][sources]; sources are divided over the EP ranks in order; runs: from moe_split. */
typedef struct {
    double compute, exchange, copies, total;
    double imbalance; /* busiest rank's rows over the mean; 1 if there are none */
} MoePlaceStep;
MoePlaceStep moe_place_step(const MoePlaceCost *c, const MoePlaceMap *m, const int32_t *counts, int sources,
                            const MoeSplitRun *runs);
/* Of sending what changes from one map to the other, all ranks at once. */
double moe_place_move_seconds(const MoePlaceCost *c, const MoePlaceMap *from, const MoePlaceMap *to);

#endif
