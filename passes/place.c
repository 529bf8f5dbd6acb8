/* place: which rank holds which expert when training starts, and what the load does to predictions (docs/PLACEMENT.md).
 *
 * In: logical graphs, options.load. Out: cx->routes, cx->maps, cx->skew; the graphs are left as they are: maps are values of the
 * run, the plan carries the first ones as placement.json. */
#include "passes/skew.h"

MoeStatus moe_pass_place(MoePassContext *cx) {
    MoeMesh mesh = moe_pass_mesh(&cx->options);
    moe_skew_note_routes(cx);
    if (!cx->options.load)
        return NULL;
    MoePlaceMap *maps = MOE_NEW_N(cx->arena, MoePlaceMap, cx->n_routes);
    for (size_t i = 0; i < cx->n_routes; i++) {
        const MoeSkewRoute *r = &cx->routes[i];
        MoeMesh d = moe_mesh_division(&mesh, moe_mesh_of_layer(&mesh, r->layer));
        maps[i] = moe_skew_usual_map(r, &d, cx->arena);
    }
    cx->maps = maps;
    return moe_skew_make(cx, maps, &cx->skew);
}
