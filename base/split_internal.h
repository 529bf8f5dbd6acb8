/* Between split.c (rows to runs) and split_edges.c (cuts at leaf edges, roots). */
#ifndef MOE_BASE_SPLIT_INTERNAL_H
#define MOE_BASE_SPLIT_INTERNAL_H

#include "base/split.h"
#include "base/split_flow.h"

/* Where a cut may fall: before leaf `leaf` of shard `shard`. With leaf 0, shard is the last one that begins at `row`: it has
 * rows, or is `shards` at the expert's end. */
typedef struct {
    int32_t row, shard, leaf;
} MoeSplitEdge;

/* Constants of the search for cuts, also of the one on devices (codegen/cuda/device/split.cuh), which must find the same. */
enum {
    MOE_SPLIT_EDGES = 64,       /* candidates of one cut: the two ends and one a level of both trees, at most 31 each */
    MOE_SPLIT_ROOT_PRICE = 256, /* one root less is worth 1/256 of the busiest rank's rows */
    MOE_SPLIT_RETRIES = 2       /* tries to relieve a busiest rank, a rank */
};

typedef struct {
    const MoeSplit *in;
    MoeFlow flow;
    int32_t *prefix;     /* [shards+1] of one expert's counts */
    int64_t *saved;      /* [ranks] amounts of one expert */
    MoeSplitEdge *edges; /* [ranks+1][MOE_SPLIT_EDGES] where each cut of one expert may fall */
    int32_t *n_edges;    /* [ranks+1] */
    int64_t *cost;       /* [ranks+1][MOE_SPLIT_EDGES] of the best division up to the cut there */
    int32_t *best;       /* [ranks+1][MOE_SPLIT_EDGES] where the cut before is then */
} MoeSplitWork;

/* Moves every amount to edges of in->grain, no run with more than MOE_COPY_ROOTS roots. */
void moe_split_to_edges(MoeSplitWork *w);

#endif
