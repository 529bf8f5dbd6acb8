/* The laboratory: replays a load trace through a policy, as training would: before a step the policy may change the maps, knowing
 * earlier steps alone; then the step's rows are divided among the copies and measured. Pure: `moec place` prints what comes
 * out (report.h), draws it (plot.h) and writes it down (dump.h). */
#ifndef MOE_PLACEMENT_REPLAY_H
#define MOE_PLACEMENT_REPLAY_H

#include "base/pool.h"
#include "placement/load.h"
#include "placement/placer.h"

/* What happens in a replay, told as it happens. Any may be NULL. */
typedef struct {
    void *ctx;
    /* A layer's map before `step`: at the first step, where out is NULL, and after each decision. */
    MoeStatus (*map)(void *ctx, int64_t step, int layer, const MoePlaceMap *m,
                     const MoePlaceDecision *d);
    /* How a layer's rows were divided: runs [groups][ranks*slots]. */
    MoeStatus (*division)(void *ctx, int64_t step, int layer, const MoePlaceMap *m,
                          const MoeSplitRun *runs);
    void (*progress)(void *ctx, int step,
                     int steps); /* that many of them are done; with progress_ctx */
    void *progress_ctx;
} MoeReplayObserver;

typedef struct {
    int ranks, groups; /* ranks of an EP group; EP groups that share the maps */
    int extra_slots;   /* of each rank, beyond ceil(experts / ranks) */
    int every, window; /* steps between decisions; of history */
    int warmup;        /* steps that no figure counts */
    int grain;         /* of cuts between copies (base/split.h) */
    bool even;         /* copies share evenly, as EPLB assumes, instead of by moe_split */
    MoePlacerGate gate;
    uint64_t seed;
    const char *program;      /* of the policy `program`, or NULL */
    const MoePlaceCost *cost; /* borrowed */
    int watch;                /* the layer (counted from 0) whose maps are kept; -1: none */
    MoePool *pool; /* evaluates layers side by side; changes no figure. NULL: the caller alone */
} MoeReplayOptions;

typedef struct {
    double mean, p95,
        max; /* imbalance: the busiest rank's rows over the mean, over steps and layers */
    double
        seconds; /* a step's, predicted, the mean; of all layers or of the one, with what moves take */
    double move_seconds; /* of these */
    int64_t arrivals,
        moves; /* in the whole trace: experts new on a rank; primaries that changed rank */
    double moved_bytes;
    int decisions, changes, too_dear, refused; /* of a layer at a time */
} MoeReplayFigures;

typedef struct {
    int64_t step;
    MoePlaceMap map;
} MoeReplayMap;

typedef struct {
    const char *policy;
    int steps, layers, slots; /* steps replayed; slots of a rank */
    int64_t first_step;
    int seconds_every;            /* times are of every so-manieth step: with very many ranks */
    double *imbalance;            /* [steps][layers] */
    MoeReplayFigures all, *layer; /* layer [layers] */
    double decide_seconds,
        decide_worst; /* wall time to decide on all layers: in all, the longest */
    int decide_times;
    MoeReplayMap
        *watched; /* maps of the watched layer, ascending by step, the first one at first_step */
    size_t n_watched;
    char first_refusal[256]; /* why, of the first answer that was refused; "" */
} MoeReplay;

/* MOE_E_MISUSE where the options do not go together (no step after the warm-up, more slots than experts). A trace of a single step
 * is the load of all steps: it is replayed warmup + every times. Everything in *out lives in the arena. */
MoeStatus moe_replay(const MoeLoad *load, const MoePolicy *policy, const MoeReplayOptions *o,
                     const MoeReplayObserver *see, MoeArena *a, MoeReplay *out);

/* The layer with the highest mean imbalance where experts lie in order: the one worth watching. */
int moe_replay_worst_layer(const MoeLoad *load, int ranks);

/* The cluster that costs are of when none is given: nodes of 8 ranks (or as many as divide `ranks`), 400 TFLOP/s and 2 TB/s a rank, 200 GB/s
 * and 5 us inside a node, 50 GB/s and 20 us between nodes. */
MoeCluster moe_replay_default_cluster(int ranks);
/* Mean rows that a rank computes in a layer and step of this trace. */
double moe_replay_mean_rows(const MoeLoad *load, int ranks, int groups);
/* Costs as if every row of the trace were `scale` rows. */
void moe_replay_scale(MoePlaceCost *c, double scale);

#endif
