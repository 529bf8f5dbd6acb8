/* What a change of maps moves on a rank: the tensors of each layer's experts, and each expert's way from slot to slot. For
 * place_move.c. */
#ifndef MOE_RUNTIME_PLACE_HOPS_H
#define MOE_RUNTIME_PLACE_HOPS_H

#include "runtime/exec.h"

/* One tensor of a layer's experts on this rank: `bytes` a slot. base: the host's address (moe_exec_buffer). */
typedef struct {
    char *base;
    int64_t bytes;
} MoePlaceTensor;

typedef struct {
    MoePlaceTensor *tensors; /* weights, and all states of each */
    int n;
    int64_t slot_bytes; /* of all of them together */
    int slots;          /* of an EP rank */
    MoeMesh mesh;       /* the division of the layer's experts */
    int division, ep;   /* its number; this rank's place in it */
} MoePlaceLayer;

/* One expert's way from a global slot to another of its layer. */
typedef struct {
    int layer, expert, from, to; /* layer: index into plan->moe_layers */
    int next;                    /* the hop that leaves `to`; -1 none */
    bool frees;                  /* none ends in `from` */
    bool starts;                 /* the first of a chain or cycle in the list */
} MoePlaceHop;

typedef struct {
    MoePlaceLayer *layers; /* [n_moe_layers] */
    size_t n_layers;
    MoePlaceHop *hops; /* those of a cycle or chain one after another, by layer */
    int n_hops;
} MoePlaceHops;

/* From the execution's maps to these, of the same sizes. To be freed in any case. */
MoeStatus moe_place_hops(const MoePlan *plan, MoeExec *x, const MoePlaceMap *to, MoePlaceHops *out);
void moe_place_hops_free(MoePlaceHops *h);
/* The end of the batch that begins at hop lo: whole chains and cycles, as many as let no rank take in more than `limit` bytes, but at
 * least one. in: scratch of ranks * (MOE_MAX_RANGES + 1) numbers. *out_bytes: what the rank takes in that takes in the most. */
int moe_place_batch(const MoePlaceHops *h, int ranks, int lo, int64_t limit, int64_t *in,
                    int64_t *out_bytes);

#endif
