/* What plan.json says of expert rows (docs/PLAN.md): "live", how a step's work goes by the rows that routing sends; "placement",
 * what a layer's map costs (placement/cost.h), by the steps of @train and their prediction. */
#include <math.h>
#include <string.h>

#include "passes/comm_cost.h"
#include "passes/plan_json_internal.h"
#include "passes/predict.h"
#include "placement/cost.h"
#include "placement/map_json.h"

/* What fold_copies sends for each copy: a few roots (base/split.h), two as a rule. */
#define ROOTS 2

void moe_plan_json_live(MoePlanWriter *w, const MoeGroup *g, json_t *o) {
    MoeElasticCost e = moe_group_elastic(g);
    if (!e.rows || !(e.expect > 0))
        return;
    double share = moe_predict_share(g, g->part, g->parts);
    json_object_set_new(o, "live",
                        json_pack("{s:i, s:f, s:f, s:f}", "rows", moe_plan_value_entry(w, e.rows), "expect",
                                  e.expect * share, "flops", e.flops / e.expect, "bytes",
                                  e.bytes / e.expect));
}

/* ---- "placement" ---- */

typedef struct {
    const MoePassContext *cx;
    const MoeProgram *train;
    MoeCommModel model;
    int micro;
    double tokens; /* of a step, all ranks */
} Costs;

/* Of a step of the layer. */
static void add_step(const Costs *x, const MoeGroup *g, MoePlaceCost *c) {
    MoeElasticCost e = moe_group_elastic(g);
    if (e.rows && e.expect > 0 && !moe_group_is_comm(g)) /* (what folds copies goes by roots, not by rows) */
        c->row_seconds += (moe_kernel_seconds(x->cx->target, g, &x->model, 2) -
                           moe_kernel_seconds(x->cx->target, g, &x->model, 1)) *
                          moe_predict_share(g, g->part, g->parts) / e.expect;
    bool moves = false;
    for (size_t i = 0; moe_group_is_comm(g) && g->part == 0 && i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        bool home = op->opcode == MOE_OP_A2A_COMBINE;
        if (!home && op->opcode != MOE_OP_A2A_DISPATCH)
            continue;
        const MoeType *t = &op->operands[0]->type;
        *(home ? &c->row_bytes : &c->token_bytes) +=
            (double)(moe_type_cols(t) * moe_dtype_bytes(t->dtype));
        moves = true;
    }
    c->exchanges += moves ? x->micro : 0;
}

/* The PARAM that the value is read from, gathered, converted, its slots of copies filled or not; NULL: it is computed. */
static const MoeOp *param_of(const MoeValue *v) {
    while (v->def->n_operands == 1 || v->def->opcode == MOE_OP_COPY_EXPERTS)
        v = v->def->operands[0];
    return v->def->opcode == MOE_OP_PARAM ? v->def : NULL;
}

static double bytes_of_states(const MoeGraph *g, const MoeOp *param) {
    double n = 0;
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i]->opcode == MOE_OP_STATE &&
            strcmp(moe_attr_s(g->ops[i], "of"), moe_attr_s(param, "name")) == 0)
            n += (double)moe_type_bytes(&g->ops[i]->results[0]->type);
    return n;
}

/* Weights and states of one expert of the layer, on one rank: of what the forward phase multiplies rows of experts with. */
static void add_params(const MoeGraph *g, int layer, const MoeMesh *division, MoePlaceCost *c, MoeArena *a) {
    const MoeOp **seen = MOE_NEW_N(a, const MoeOp *, g->n_ops);
    size_t n = 0;
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i], *p = NULL;
        if (op->opcode == MOE_OP_MATMUL && op->phase == MOE_PHASE_FORWARD && moe_attr_i(op, "grouped") &&
            moe_attr_i_or(op, "layer", -1) == layer)
            p = param_of(op->operands[1]);
        for (size_t k = 0; k < n && p; k++)
            p = seen[k] == p ? NULL : p;
        if (!p)
            continue;
        seen[n++] = p;
        double slots = (double)p->results[0]->type.dims[0].size,
               bytes = (double)moe_type_bytes(&p->results[0]->type) / slots;
        c->move_bytes += bytes + bytes_of_states(g, p) / slots;
        c->copy_bytes += bytes;
        c->root_bytes += ROOTS * bytes * division->shard;
    }
}

/* What the layer's exchanges and rows are in the prediction: those of the load, else of balanced routing. */
static MoePlaceTraffic traffic_of(const Costs *x, const MoeSkewRoute *r, const MoeMesh *d,
                                  const MoeCluster *cluster, MoeArena *a) {
    enum { EACH = 1000 }; /* rows that each source has for each expert, to be scaled */
    MoePlaceTraffic t = {.mean = x->tokens * r->top_k / moe_mesh_data_ranks(d)};
    const MoeSkew *skew = x->cx->skew;
    for (size_t i = 0; skew && i < skew->n_layers; i++) {
        const MoeSkewLayer *s = &skew->layers[i];
        if (s->layer != r->layer)
            continue;
        t.rows = t.mean * s->of.rows;
        for (int k = 0; k < MOE_N_LINKS; k++) {
            t.there[k] = s->of.there[k] * x->micro;
            t.home[k] = s->of.home[k] * x->micro;
        }
        return t;
    }
    MoePlaceMap map = moe_skew_usual_map(r, d, a);
    int32_t *counts = MOE_NEW_N(a, int32_t, r->experts * d->ep);
    for (int i = 0; i < r->experts * d->ep; i++)
        counts[i] = EACH;
    MoePlaceTraffic u = moe_place_traffic(cluster, r->top_k, &map, counts, d->ep, NULL);
    double scale = u.mean > 0 ? t.mean / u.mean : 0;
    t.rows = t.mean;
    for (int k = 0; k < MOE_N_LINKS; k++) {
        t.there[k] = u.there[k] * scale;
        t.home[k] = u.home[k] * scale;
    }
    return t;
}

/* Nodes and links: what maps are weighed by. */
static json_t *json_cluster(const MoeCluster *c) {
    MoeCluster links = {.nodes = c->nodes, .ranks_per_node = c->ranks_per_node};
    memcpy(links.links, c->links, sizeof links.links);
    return moe_cluster_json(&links);
}

static json_t *json_layer(int layer, const MoePlaceCost *c) {
    return json_pack("{s:i, s:o, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "layer", layer, "cluster",
                     json_cluster(&c->cluster), "exchanges", c->exchanges, "row_seconds", c->row_seconds,
                     "token_bytes", c->token_bytes, "row_bytes", c->row_bytes, "copy_bytes", c->copy_bytes,
                     "root_bytes", c->root_bytes, "move_bytes", c->move_bytes, "fixed_seconds",
                     c->fixed_seconds, "hidden", c->hidden);
}

static MoePlaceCost cost_of(const Costs *x, const MoeSkewRoute *r, const MoeMesh *d) {
    const MoePrediction *p = &x->train->predicted;
    MoePlaceCost c = {.cluster = moe_cluster_of_group(&x->model.cluster, d), .top_k = r->top_k};
    for (size_t i = 0; i < x->train->n_steps; i++)
        if (moe_plan_step_layer(&x->train->steps[i].group) == r->layer)
            add_step(x, &x->train->steps[i].group, &c);
    add_params(x->train->graph, r->layer, d, &c, x->cx->arena);
    c.hidden = p->a2a > 0 && p->a2a_exposed < p->a2a ? 1 - p->a2a_exposed / p->a2a : 0;
    return c;
}

json_t *moe_plan_json_placement(const MoePassContext *cx) {
    Costs x = {.cx = cx, .micro = cx->options.micro_batches > 1 ? cx->options.micro_batches : 1};
    const MoeSkewRoute *routes = cx->routes;
    MoeMesh mesh = moe_pass_mesh(&cx->options);
    size_t n = cx->n_routes;
    for (size_t i = 0; i < cx->module->n_graphs; i++)
        x.train = strcmp(cx->module->graphs[i]->name, "train") == 0 ? &cx->programs[i] : x.train;
    if (!x.train || !n)
        return NULL;
    x.tokens = (double)cx->options.batch * (double)cx->options.seq;
    moe_comm_model(cx, &x.model);
    MoePlaceCost *costs = MOE_NEW_N(cx->arena, MoePlaceCost, n);
    double rest = x.train->predicted.seconds;
    for (size_t i = 0; i < n; i++) {
        MoeMesh d = moe_mesh_division(&mesh, moe_mesh_of_layer(&mesh, routes[i].layer));
        costs[i] = cost_of(&x, &routes[i], &d);
        MoePlaceTraffic t = traffic_of(&x, &routes[i], &d, &costs[i].cluster, cx->arena);
        rest -= moe_place_price(&costs[i], &t, 0).total;
    }
    json_t *layers = json_array();
    for (size_t i = 0; i < n; i++) {
        costs[i].fixed_seconds = rest > 0 ? rest / (double)n : 0;
        json_array_append_new(layers, json_layer(routes[i].layer, &costs[i]));
    }
    return layers;
}

json_t *moe_plan_json_maps(const MoePassContext *cx) {
    MoeMesh mesh = moe_pass_mesh(&cx->options);
    json_t *layers = json_array();
    for (size_t i = 0; cx->maps && i < cx->n_routes; i++) {
        MoeMesh d = moe_mesh_division(&mesh, moe_mesh_of_layer(&mesh, cx->routes[i].layer));
        MoePlaceMap usual = moe_skew_usual_map(&cx->routes[i], &d, cx->arena);
        if (!moe_place_map_equal(&usual, &cx->maps[i]))
            json_array_append_new(layers, moe_place_map_json(cx->routes[i].layer, &cx->maps[i]));
    }
    if (json_array_size(layers))
        return json_pack("{s:i, s:o}", "format_version", 1, "layers", layers);
    json_decref(layers);
    return NULL;
}
