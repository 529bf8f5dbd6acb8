/* What one MoE layer costs in a step, with a map and a load, on a cluster; what changing the map costs. Data-sensitive: it takes
 * the counts of (source, expert), not their mean. Seconds. The numbers of a layer come from a compiled plan
 * (plan.json, "placement"), from the sizes of its experts (moe_place_cost_of), or by hand.
 *
 * The rules are those of docs/CLUSTER.md: every rank has a link to its node and one to other nodes, each carries so many bytes a
 * second in each direction. An exchange takes what its busiest link is busy, and the latency of that link's class. */
#ifndef MOE_PLACEMENT_COST_H
#define MOE_PLACEMENT_COST_H

#include "base/split.h"
#include "placement/cluster.h"
#include "placement/map.h"

typedef struct {
    MoeCluster cluster;  /* of the ranks of one EP group: EP rank r is on node r / ranks_per_node */
    int top_k;           /* experts that a token chooses; 0 counts as 1 */
    int exchanges;       /* of expert rows in a step, there and back, forward and backward: each has its latency */
    double row_seconds;  /* compute of one (token, expert) row, forward and backward, on one rank */
    double token_bytes;  /* one token to a rank, however many of its experts are wanted there; forward and backward together */
    double row_bytes;    /* one (token, expert) row back home; forward and backward together */
    double copy_bytes;   /* one expert's weights from its primary to a further copy, all uses in a step together */
    double root_bytes;   /* the gradient of a further copy back to the primary */
    double move_bytes;   /* one expert's weights and states, that a change of its primary sends */
    double fixed_seconds; /* the rest of the step, a layer's share: for figures of whole steps */
    double hidden;       /* the part of exchanges and copies that the schedule hides behind compute, 0 to 1 */
} MoePlaceCost;

/* The sizes of a layer's experts. */
typedef struct {
    int64_t hidden, intermediate;
    int top_k;
    int element_bytes;   /* of rows and weights as they travel: 2 or 4 */
    int states;          /* f32 tensors that the optimiser keeps for each weight, beside the f32 weight */
} MoePlaceModel;

/* The numbers by arithmetic alone: three products of hidden x intermediate, each three times (forward, two gradients), at the
 * cluster's rate; two exchanges each way; nothing hidden, nothing else in the step. A cluster without rates computes 1e12 FLOP/s. */
MoePlaceCost moe_place_cost_of(const MoeCluster *ep_group, const MoePlaceModel *m);

/* Who is busiest, counted: rows that the busiest rank computes and their mean over ranks; tokens that the busiest link of each
 * class carries to experts, rows that it carries home. Arguments as moe_place_step's. */
typedef struct {
    double rows, mean;
    double there[MOE_N_LINKS], home[MOE_N_LINKS];
} MoePlaceTraffic;
MoePlaceTraffic moe_place_traffic(const MoeCluster *cluster, int top_k, const MoePlaceMap *m,
                                  const int32_t *counts, int sources, const MoeSplitRun *runs);

/* The same for all ranks: rows [ranks] that each computes; there [ranks][ranks]: tokens from p to q; home: rows from p back to q. */
void moe_place_flows(int top_k, const MoePlaceMap *m, const int32_t *counts, int sources, const MoeSplitRun *runs,
                     double *rows, double *there, double *home);

/* One layer in one step: the busiest rank's compute + what is exposed of the exchanges, by the (source, rank) rows over the
 * links, and of copies. counts [experts][sources]: source s is EP rank s * ranks / sources; with fewer sources than ranks it is
 * those ranks' together, in equal parts. runs: from moe_split; NULL: all rows
 * of an expert go to its primary.
 *
 * A token goes to a rank once for all its experts there. How many do is estimated from the counts: of a source's tokens (its
 * rows / top_k) the part c/tokens chooses an expert, independently of what else it chooses. Exact for one expert a rank. */
typedef struct {
    double compute, exchange, copies, total; /* exchange, copies: exposed or not; total: with what is hidden taken off */
    double imbalance; /* busiest rank's rows over the mean; 1 if there are none */
} MoePlaceStep;
MoePlaceStep moe_place_step(const MoePlaceCost *c, const MoePlaceMap *m, const int32_t *counts, int sources,
                            const MoeSplitRun *runs);
/* The same of a traffic that is known, with the seconds of copies. */
MoePlaceStep moe_place_price(const MoePlaceCost *c, const MoePlaceTraffic *t, double copies);
/* Of the copies that the map has beside primaries, whatever the load: MoePlaceStep's `copies`. */
double moe_place_copy_seconds(const MoePlaceCost *c, const MoePlaceMap *m);
/* Of sending what changes from one map to the other, all ranks at once. */
double moe_place_move_seconds(const MoePlaceCost *c, const MoePlaceMap *from, const MoePlaceMap *to);

#endif
