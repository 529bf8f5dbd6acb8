/* How unevenly a load falls on the ranks of a mesh: one layer's busiest rank and busiest links, as the mean over a trace's steps of
 * what each step's busiest is. Ranks meet at each exchange, so it is the busiest that all wait for. */
#ifndef MOE_PLACEMENT_SPREAD_H
#define MOE_PLACEMENT_SPREAD_H

#include "placement/cost.h"
#include "placement/load.h"

typedef struct {
    MoeCluster cluster; /* of an EP group's ranks */
    int groups;         /* EP groups */
    int top_k, micro_batches;
    int shards; /* virtual shards: micro-batches, then groups, then ranks have consecutive ones */
    int grain;  /* of cuts between copies (base/split.h) */
} MoeSpreadWhere;

typedef struct {
    double rows;               /* of the busiest rank, over the mean */
    double there[MOE_N_LINKS]; /* tokens that the busiest link of a class carries to experts in a micro-batch */
    double home[MOE_N_LINKS];  /* (token, expert) rows that it carries home */
} MoeSpread;

/* All ranks of a group, in one step (counted from 0) and micro-batch, as moe_place_flows has them, scaled likewise: in [ep], [ep][ep]. */
typedef struct {
    double *rows, *there, *home;
} MoeFlows;
void moe_spread_flows(const MoeLoad *l, int layer, int step, int micro_batch, int group, const MoePlaceMap *map,
                      const MoeSpreadWhere *w, double rows, MoeFlows *out);

/* Of layer `layer` of the load (an index), whose counts are scaled to `rows` (token, expert) rows a micro-batch of all groups
 * together. most_steps: so many steps at most, evenly spaced. */
MoeSpread moe_spread(const MoeLoad *l, int layer, const MoePlaceMap *map, const MoeSpreadWhere *w, double rows,
                     int most_steps);

#endif
