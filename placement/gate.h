/* Loads that follow from a gate's own rule, for planning without a trace: not what it will send, but what it may send. */
#ifndef MOE_PLACEMENT_GATE_H
#define MOE_PLACEMENT_GATE_H

#include "placement/cluster.h"
#include "placement/load.h"

typedef struct {
    int experts, layers, sources, top_k;
    int64_t tokens; /* in a step, of all sources together */
    int groups, ep; /* EP groups, which have consecutive sources; ranks of each */
} MoeGateSizes;

/* One step of a gate with capacity: an expert takes at most n = min(factor * tokens * top_k / experts, tokens) rows (GShard), and as many
 * experts, in order of their ids, take just so many as there are rows for: neighbours, so one rank's. Sources are alike. A factor
 * of infinity: no capacity. */
MoeStatus moe_gate_capacity(double factor, const MoeGateSizes *sizes, MoeArena *a, MoeLoad *out);

/* One step of a gate that knows the network: of a source's rows, no more leave its node than links between nodes carry while those
 * inside carry the rest; both parts evenly over the experts there. ep_group: the cluster of an EP group's ranks; expert e
 * is on EP rank e / ceil(experts/ep). On one node: uniform. */
MoeStatus moe_gate_topology(const MoeCluster *ep_group, const MoeGateSizes *sizes, MoeArena *a, MoeLoad *out);

#endif
