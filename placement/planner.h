/* The offline planner: which division of training over ranks is fastest on a cluster, with the load that its gates send. Pure
 * arithmetic over a summary of the model (passes/summary.h makes it): all divisions are enumerated, those that do not fit are dropped,
 * the rest is scored (SmartMoE's offline half, ATC 2023: the slowest rank's compute and the busiest link's exchanges, by the load and
 * not by its mean). The scores choose what is looked at closely: a shortlist goes through the compiler and its simulator
 * (cli/auto_strategy.h), whose seconds decide.
 *
 * A pool, in SmartMoE's sense, is what can be changed into one another by moving experts alone: a candidate here, with all
 * maps of experts to its slots. */
#ifndef MOE_PLACEMENT_PLANNER_H
#define MOE_PLACEMENT_PLANNER_H

#include "base/arena.h"
#include "base/mesh.h"
#include "base/str.h"
#include "placement/cluster.h"
#include "placement/load.h"

/* How much is computed again in the backward phase, as the compiler knows it. */
typedef enum { MOE_PLAN_KEEP, MOE_PLAN_CHEAP, MOE_PLAN_LAYER, MOE_N_PLAN_LEVELS } MoePlanLevel;
const char *moe_plan_level_name(MoePlanLevel l); /* "none", "cheap", "layer": of --recompute */

/* One rank that trains the whole batch at once, by compiling just that. */
typedef struct {
    double dense, expert; /* seconds of forward and backward: of everything else, of the rows of experts */
    double activations;   /* bytes at the peak that go by tokens: kept, and in between */
} MoePlanWork;

typedef struct {
    int64_t batch, seq;
    int virtual_shards;
    int layers, moe_layers, experts, top_k;
    int64_t hidden;
    int64_t tp_divides; /* the greatest tensor parallel degree that heads and widths divide by: tp divides it */
    int element_bytes;  /* of rows and weights as they travel */
    double dense_params, expert_params;
    double state_bytes; /* of a parameter: master weight and optimiser state */
    double update;      /* seconds to update all parameters */
    double workspace;   /* bytes that do not go by tokens */
    MoePlanWork work[MOE_N_PLAN_LEVELS];
} MoeModelSummary;

/* What is asked. 0, or all levels: not given, enumerated. */
typedef struct {
    int ep, shard, tp, dense_shard, micro_batches;
    int least_extra, most_extra; /* extra slots a rank, where ep > 1 */
    bool levels[MOE_N_PLAN_LEVELS];
    double memory_limit; /* bytes a rank; 0: none */
    bool placed;         /* a policy will place experts by the load */
} MoePlanWish;

typedef struct {
    MoeMesh mesh;
    int micro_batches, extra; /* extra: mesh.extra_slots */
    bool placed;
    MoePlanLevel level;
    double seconds, memory; /* estimated: of a step; bytes of a rank */
    double compute, exchange, other; /* parts of seconds: busiest rank; rows of experts, other exchanges, as far as exposed */
    double imbalance;       /* the busiest rank's rows over the mean, mean over layers, with the usual map, or what
                             * placing leaves of it */
} MoePlanCandidate;

/* All candidates that the rules permit and that may fit (an estimate of a quarter above the limit is let pass), best first; equal ones in the order of fewer divisions. load: MoE layers as the model
 * has them, or NULL: balanced. In `a`. *dropped: how many do not fit; *least: what the smallest of all needs. Returns how many. */
size_t moe_planner_enumerate(const MoeModelSummary *m, const MoeCluster *c, const MoeLoad *load, const MoePlanWish *w,
                             MoeArena *a, MoePlanCandidate **out, size_t *dropped, double *least);

/* Estimates seconds and memory of mesh, micro_batches, extra, level. */
void moe_planner_score(const MoeModelSummary *m, const MoeCluster *c, const MoeLoad *load, MoePlanCandidate *x);

/* "expert parallel 4 x shard 2, 2 micro-batches, layers recomputed", appended. */
void moe_planner_text(const MoePlanCandidate *x, MoeStr *out);

#endif
