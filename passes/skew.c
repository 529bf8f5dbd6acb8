/* See skew.h. In: a load, maps, mesh and cluster. Out: by layer, how much more the busiest rank and link have. */
#include "passes/skew.h"

#include "base/assert.h"
#include "passes/plan_json.h"

enum { MOST_STEPS = 24 };

void moe_skew_note_routes(MoePassContext *cx) {
    const MoeGraph *g = moe_module_find(cx->module, "train");
    MoeSkewRoute *routes = MOE_NEW_N(cx->arena, MoeSkewRoute, g ? g->n_ops : 0);
    size_t n = 0;
    for (size_t i = 0; g && i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        if (op->opcode != MOE_OP_ROUTE_PLAN)
            continue;
        routes[n] = (MoeSkewRoute){.layer = (int)moe_attr_i_or(op, "layer", (int64_t)n),
                                   .experts = (int)moe_attr_i(op, "experts"),
                                   .top_k = (int)moe_type_cols(&op->operands[0]->type)};
        n++;
    }
    cx->routes = routes;
    cx->n_routes = n;
}

MoePlaceMap moe_skew_usual_map(const MoeSkewRoute *r, const MoeMesh *division, MoeArena *a) {
    MoePlaceMap m;
    MoeStatus st = moe_place_map_create(r->experts, division->ep, moe_mesh_slots(division, r->experts), a, &m);
    MOE_ASSERT(!st, "layer %d: %s", r->layer, moe_status_message(st));
    return m;
}

MoeStatus moe_skew_check(const MoePassContext *cx) {
    const MoeLoad *l = cx->options.load;
    const MoeSkewRoute *routes = cx->routes;
    if ((size_t)l->layers != cx->n_routes)
        return moe_error(MOE_E_INPUT, "the load is of %d MoE layers, the model has %zu", l->layers, cx->n_routes);
    for (size_t i = 0; i < cx->n_routes; i++)
        if (l->experts != routes[i].experts)
            return moe_error(MOE_E_INPUT, "the load is of %d experts, layer %d has %d", l->experts,
                             routes[i].layer, routes[i].experts);
    return NULL;
}

MoeSpread moe_skew_spread(const MoePassContext *cx, int index, const MoePlaceMap *map) {
    const MoePassOptions *o = &cx->options;
    const MoeSkewRoute *route = &cx->routes[index];
    MoeMesh mesh = moe_pass_mesh(o), d = moe_mesh_division(&mesh, moe_mesh_of_layer(&mesh, route->layer));
    MoeCluster cluster = moe_pass_cluster(o);
    MoeSpreadWhere w = {.cluster = moe_cluster_of_group(&cluster, &d),
                        .groups = d.dp * d.shard,
                        .top_k = route->top_k,
                        .micro_batches = o->micro_batches > 1 ? o->micro_batches : 1,
                        .shards = o->virtual_shards,
                        .grain = moe_module_leaf_rows(cx->module)};
    double rows = (double)o->batch * (double)o->seq * route->top_k / w.micro_batches;
    return moe_spread(o->load, index, map, &w, rows, MOST_STEPS);
}

const MoeSkew *moe_skew_make(const MoePassContext *cx, const MoePlaceMap *maps) {
    MoeMesh mesh = moe_pass_mesh(&cx->options);
    MoeSkewLayer *layers = MOE_NEW_N(cx->arena, MoeSkewLayer, cx->n_routes);
    MoeSkew *s = MOE_NEW_N(cx->arena, MoeSkew, 1);
    for (size_t i = 0; i < cx->n_routes; i++)
        if (moe_mesh_division(&mesh, moe_mesh_of_layer(&mesh, cx->routes[i].layer)).ep > 1)
            layers[s->n_layers++] = (MoeSkewLayer){cx->routes[i].layer, moe_skew_spread(cx, (int)i, &maps[i])};
    s->layers = layers;
    return s;
}

const MoeSkewLayer *moe_skew_of(const MoeSkew *s, const MoeGroup *g) {
    int64_t layer = s ? moe_plan_step_layer(g) : -1;
    for (size_t i = 0; s && i < s->n_layers; i++)
        if (s->layers[i].layer == layer)
            return &s->layers[i];
    return NULL;
}
