/* Between split.c (how many rows each copy should get) and split_edges.c (cuts at leaf edges, roots). */
#ifndef MOE_BASE_SPLIT_INTERNAL_H
#define MOE_BASE_SPLIT_INTERNAL_H

#include "base/split.h"

/* Where a cut may fall: before leaf `leaf` of shard `shard`. With leaf 0, shard is the last one that begins at `row`: it has
 * rows, or is `shards` at the expert's end. */
typedef struct {
    int32_t row, shard, leaf;
} MoeSplitEdge;

/* Candidates of one cut: the two ends and one a level of both trees, at most 31 each. */
enum { MOE_SPLIT_EDGES = 64 };

typedef struct {
    const MoeSplit *in;
    int64_t level;   /* rows that a rank may have */
    int64_t *rows;   /* [experts] */
    int64_t *left;   /* [experts] rows that no copy has yet */
    int64_t *load;   /* [ranks] rows given to its slots */
    int64_t *amount; /* [ranks*slots] rows given to the slot */
    int32_t *first;  /* [experts+1] into slot */
    int32_t *slot;   /* global slots by expert, ascending */
    int32_t *order;  /* experts with rows and several copies, most rows first */
    int n_order;
    int32_t *queue; /* [ranks] full ranks in the order that the search met them */
    int32_t *via;   /* [ranks] the slot by which the search met it, -1: not met */
    int32_t *
        from; /* [experts] the slot by which it could give rows away, -1: has rows left, -2: not met */
    int32_t *prefix;     /* [shards+1] of one expert's counts */
    int64_t *saved;      /* [ranks] amounts of one expert */
    MoeSplitEdge *edges; /* [ranks+1][MOE_SPLIT_EDGES] where each cut of one expert may fall */
    int32_t *n_edges;    /* [ranks+1] */
    int64_t *cost;       /* [ranks+1][MOE_SPLIT_EDGES] of the best division up to the cut there */
    int32_t *best;       /* [ranks+1][MOE_SPLIT_EDGES] where the cut before is then */
} MoeSplitWork;

/* Gives left[e] rows to e's copies so that its ranks become level, none above `level`; left[e] is what then remains. */
void moe_split_fill(MoeSplitWork *w, int e);
/* Moves every amount to edges of in->grain, no run with more than MOE_COPY_ROOTS roots. */
void moe_split_to_edges(MoeSplitWork *w);

#endif
