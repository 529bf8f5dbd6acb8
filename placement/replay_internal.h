/* A replay under way: what its driver (replay.c) and a layer's step (replay_measure.c) share. */
#ifndef MOE_PLACEMENT_REPLAY_INTERNAL_H
#define MOE_PLACEMENT_REPLAY_INTERNAL_H

#include "placement/replay.h"

typedef struct {
    const MoeLoad *load;
    const MoeReplayOptions *o;
    const MoeReplayObserver *see;
    MoePlacer *placer;
    MoePlaceMap *maps, *before;  /* [layers] */
    MoePlaceDecision *decisions; /* [layers] */
    MoeReplay *out;
    int sources;            /* of a group */
    bool costed;            /* this step's seconds count */
    int32_t *counts;        /* of the step: [layers][groups*sources][experts] */
    int32_t *by_expert;     /* [threads][experts][sources] */
    unsigned char *scratch; /* [threads] of moe_split */
    size_t scratch_bytes;
    MoeSplitRun *runs;                   /* [layers][groups][ranks*slots] */
    double *seconds;                     /* [layers] */
    double *layer_seconds, *layer_moves; /* [layers]: sums over the steps that count */
    int step;
    /* Of even splits: what the policy says of a layer's copies since its map changed. */
    const MoePolicy *policy;
    const MoePolicySetup *setup;
    int32_t *replicas; /* [layers][ranks][experts] */
    bool *replicated;  /* [layers] */
} MoeReplayRun;

/* Divides and measures a layer at the run's step: the pool's function, ctx the run. */
void moe_replay_measure(void *ctx, int64_t layer, int thread);
/* How the layer's rows are divided in a group: [ranks*slots]. */
MoeSplitRun *moe_replay_runs(const MoeReplayRun *r, int layer, int group);

#endif
