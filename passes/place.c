/* place: which rank holds which expert when training starts, and what the load does to predictions (docs/PLACEMENT.md).
 *
 * In: logical graphs, options.load, options.first_placement. Out: cx->routes, cx->maps, cx->skew; the graphs are left as they are:
 * maps are values of the run, the plan carries the first ones as placement.json.
 *
 * The policy sees the load's steps as if they had just been run, each layer by itself, and is asked once; what it proposes is
 * taken, for nothing has to move yet. */
#include <string.h>

#include "passes/skew.h"
#include "placement/placer.h"

enum { WINDOW = 32 }; /* steps that the policy sees: the last ones */

/* "best": of each layer the map among theirs that costs least by the load. */
#define BEST "best"
static const char *const tried[] = {"moec", "lpt", "smartmoe", "eplb"};
enum { N_TRIED = sizeof tried / sizeof tried[0] };

/* Costs that policies weigh: by the layer's sizes, as far as the logical graph says them. */
static MoePlaceCost cost_of(const MoePassContext *cx, const MoeSkewRoute *r, const MoeMesh *d) {
    MoePlaceModel m = {.top_k = r->top_k, .element_bytes = cx->options.mixed_bf16 ? 2 : 4, .states = 2};
    const MoeGraph *g = moe_module_find(cx->module, "train");
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        if (op->opcode != MOE_OP_MATMUL || op->phase != MOE_PHASE_FORWARD || !moe_attr_i(op, "grouped") ||
            moe_attr_i_or(op, "layer", -1) != r->layer)
            continue;
        m.hidden = moe_type_cols(&op->operands[0]->type);
        m.intermediate = moe_type_cols(&op->results[0]->type);
    }
    MoeCluster all = moe_pass_cluster(&cx->options), group = moe_cluster_of_group(&all, d);
    MoePlaceCost c = moe_place_cost_of(&group, &m);
    c.move_bytes = 0;
    return c;
}

/* Tells the placer the load's last steps. Where EP groups differ in what they send, all of them count. */
static void observe(MoePlacer *p, const MoeLoad *l, int index, int sources, const MoePlaceMap *map,
                    MoeArena *a) {
    int32_t *counts = MOE_NEW_N(a, int32_t, (size_t)sources * (size_t)l->experts);
    int n = l->steps < WINDOW ? l->steps : WINDOW;
    for (int i = 0; i < n; i++) {
        const int32_t *at = moe_load_at(l, l->steps - n + i, index);
        moe_load_divide(at, l->sources, l->experts, sources, counts);
        moe_placer_observe(p, i, counts, map);
    }
}

static MoeStatus place_layer(const MoePassContext *cx, const MoePolicy *policy, int index,
                             const MoeMesh *d, MoePlaceMap *map) {
    const MoeSkewRoute *r = &cx->routes[index];
    MoePlaceCost cost = cost_of(cx, r, d);
    MoePolicySetup setup = {.layers = 1,
                            .experts = r->experts,
                            .ranks = d->ep,
                            .slots = map->slots,
                            .groups = d->dp * d->shard,
                            .sources = cx->options.virtual_shards,
                            .grain = moe_module_leaf_rows(cx->module),
                            .every = 100,
                            .window = WINDOW,
                            .seed = 1,
                            .cost = &cost};
    MoePlacerGate gate = {.hysteresis = 0};
    MoePlacer *p = NULL;
    MoePlaceDecision how;
    MOE_TRY(moe_placer_create(policy, &setup, gate, &p));
    observe(p, cx->options.load, index, setup.sources, map, cx->arena);
    moe_placer_decide(p, WINDOW, map, &how);
    moe_placer_destroy(p);
    return how.verdict == MOE_PLACE_REFUSED
               ? moe_error(MOE_E_INPUT, "layer %d: policy %s: %s", r->layer, policy->name, how.why)
               : NULL;
}

/* Seconds of the layer in a step, by the load. */
static double seconds_of(const MoePassContext *cx, int index, const MoeMesh *d, const MoePlaceMap *map) {
    const MoePassOptions *o = &cx->options;
    const MoeSkewRoute *r = &cx->routes[index];
    MoePlaceCost cost = cost_of(cx, r, d);
    int micro = o->micro_batches > 1 ? o->micro_batches : 1;
    MoeSpread s = moe_skew_spread(cx, index, map);
    MoePlaceTraffic t = {.mean = (double)o->batch * (double)o->seq * r->top_k / moe_mesh_data_ranks(d)};
    t.rows = t.mean * s.rows;
    for (int k = 0; k < MOE_N_LINKS; k++) {
        t.there[k] = s.there[k] * micro;
        t.home[k] = s.home[k] * micro;
    }
    return moe_place_price(&cost, &t, moe_place_copy_seconds(&cost, map)).total;
}

/* *map: the usual one, then the policy's; of BEST the cheapest. */
static MoeStatus place_by(const MoePassContext *cx, const char *name, int index, const MoeMesh *d, MoePlaceMap *map) {
    const MoePolicy *policy;
    bool best = strcmp(name, BEST) == 0;
    MoePlaceMap usual = *map, own = moe_skew_usual_map(&cx->routes[index], d, cx->arena);
    double least = best ? seconds_of(cx, index, d, map) : 0;
    for (int i = 0; i < (best ? N_TRIED : 1); i++) {
        MOE_TRY(moe_policy_find(best ? tried[i] : name, &policy));
        moe_place_map_copy(&own, &usual);
        MOE_TRY(place_layer(cx, policy, index, d, &own));
        double seconds = best ? seconds_of(cx, index, d, &own) : 0;
        if (best && !(seconds < least))
            continue;
        least = seconds;
        *map = own;
        own = moe_skew_usual_map(&cx->routes[index], d, cx->arena);
    }
    return NULL;
}

MoeStatus moe_pass_place(MoePassContext *cx) {
    MoeMesh mesh = moe_pass_mesh(&cx->options);
    const MoePolicy *known = NULL;
    const char *policy = cx->options.first_placement;
    moe_skew_note_routes(cx);
    if (!cx->options.load || !cx->n_routes)
        return NULL;
    MOE_TRY(moe_skew_check(cx));
    if (policy && strcmp(policy, BEST) != 0)
        MOE_TRY(moe_policy_find(policy, &known));
    MoePlaceMap *maps = MOE_NEW_N(cx->arena, MoePlaceMap, cx->n_routes);
    for (size_t i = 0; i < cx->n_routes; i++) {
        MoeMesh d = moe_mesh_division(&mesh, moe_mesh_of_layer(&mesh, cx->routes[i].layer));
        maps[i] = moe_skew_usual_map(&cx->routes[i], &d, cx->arena);
        if (policy && d.ep > 1)
            MOE_TRY(place_by(cx, policy, (int)i, &d, &maps[i]));
    }
    cx->maps = maps;
    cx->skew = moe_skew_make(cx, maps);
    return NULL;
}
