/* What a load does to predictions: with real routing one rank computes more rows of experts than the others, and some link
 * carries more of them. All ranks meet at each exchange of such rows, so a step takes what the busiest rank and the busiest
 * link take there. Made by place from options.load and the maps; read by the cost model (comm_cost.h). */
#ifndef MOE_PASSES_SKEW_H
#define MOE_PASSES_SKEW_H

#include "passes/pass.h"
#include "placement/spread.h"

typedef struct {
    int layer;
    MoeSpread of;
} MoeSkewLayer;

typedef struct MoeSkew {
    const MoeSkewLayer *layers; /* those with ep > 1, ascending */
    size_t n_layers;
} MoeSkew;

/* A MoE layer of the logical graph @train. */
typedef struct MoeSkewRoute {
    int layer, experts, top_k;
} MoeSkewRoute;
/* All of them, in order, into cx->routes. */
void moe_skew_note_routes(MoePassContext *cx);

/* The map that a layer has when nothing is known of its load. In `a`. */
MoePlaceMap moe_skew_usual_map(const MoeSkewRoute *r, const MoeMesh *division, MoeArena *a);

/* MOE_E_INPUT if options.load has other layers or experts than the routes. */
MoeStatus moe_skew_check(const MoePassContext *cx);
/* Of routes[index] with a map. */
MoeSpread moe_skew_spread(const MoePassContext *cx, int index, const MoePlaceMap *map);
/* Of the checked load with maps [n_routes]: the mean over its steps, of at most two dozen evenly spaced. */
const MoeSkew *moe_skew_make(const MoePassContext *cx, const MoePlaceMap *maps);
/* Of the group's layer; NULL: balanced. */
const MoeSkewLayer *moe_skew_of(const MoeSkew *s, const MoeGroup *g);

#endif
