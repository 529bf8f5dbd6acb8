/* See skew.h. In: a load, maps, mesh and cluster. Out: by layer, how much more the busiest rank and link have. */
#include "passes/skew.h"

#include "base/split.h"
#include "ir/numbers.h"
#include "passes/plan_json.h"
#include "placement/cost.h"

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
    int ranks = division->ep, slots = moe_mesh_slots(division, r->experts), per = (r->experts + ranks - 1) / ranks;
    MoePlaceMap m = {r->experts, ranks, slots, MOE_NEW_N(a, int32_t, ranks * slots),
                     MOE_NEW_N(a, int32_t, r->experts)};
    for (int g = 0; g < ranks * slots; g++)
        m.expert[g] = -1;
    for (int e = 0; e < r->experts; e++) {
        m.primary[e] = e / per * slots + e % per;
        m.expert[m.primary[e]] = e;
    }
    return m;
}

static MoeStatus check_load(const MoeLoad *l, const MoeSkewRoute *routes, size_t n) {
    if ((size_t)l->layers != n)
        return moe_error(MOE_E_INPUT, "the load is of %d MoE layers, the model has %zu", l->layers, n);
    for (size_t i = 0; i < n; i++)
        if (l->experts != routes[i].experts)
            return moe_error(MOE_E_INPUT, "the load is of %d experts, layer %d has %d", l->experts,
                             routes[i].layer, routes[i].experts);
    return NULL;
}

/* One layer's work. */
typedef struct {
    const MoePlaceMap *map;
    MoeCluster cluster;
    int groups, top_k, micro, shards; /* EP groups; virtual shards of one of them in a micro-batch */
    int grain;
    int32_t *divided, *counts; /* [V][E]; [E][shards] */
    MoeSplitRun *runs;         /* NULL: nothing to split */
    void *scratch;
} Layer;

static bool has_copies(const MoePlaceMap *m) {
    int n = 0;
    for (int g = 0; g < m->ranks * m->slots; g++)
        n += m->expert[g] >= 0;
    return n > m->experts;
}

/* Of EP group `group` in micro-batch m, which has the virtual shards from `first` on. */
static MoePlaceTraffic traffic_of(const Layer *l, int first) {
    const MoePlaceMap *map = l->map;
    int E = map->experts;
    for (int e = 0; e < E; e++)
        for (int s = 0; s < l->shards; s++)
            l->counts[e * l->shards + s] = l->divided[(first + s) * E + e];
    if (l->runs) {
        MoeSplit split = {E, map->ranks, map->slots, map->expert, l->shards, l->counts, l->grain};
        moe_split(&split, l->scratch, l->runs);
    }
    return moe_place_traffic(&l->cluster, l->top_k, map, l->counts, l->shards, l->runs);
}

static double most(double a, double b) {
    return a > b ? a : b;
}

/* Adds a step's numbers; rows: (token, expert) rows of a micro-batch as the plan counts them. */
static void add_step(const Layer *l, double rows, MoeSkewLayer *out) {
    for (int m = 0; m < l->micro; m++) {
        MoePlaceTraffic all = {0};
        double total = 0;
        for (int g = 0; g < l->groups; g++) {
            MoePlaceTraffic t = traffic_of(l, (m * l->groups + g) * l->shards);
            total += t.mean * l->map->ranks;
            all.rows = most(all.rows, t.rows);
            for (int k = 0; k < MOE_N_LINKS; k++) {
                all.there[k] = most(all.there[k], t.there[k]);
                all.home[k] = most(all.home[k], t.home[k]);
            }
        }
        double scale = total > 0 ? rows / total / l->micro : 0;
        out->rows += total > 0 ? all.rows * l->groups * l->map->ranks / total / l->micro : 1.0 / l->micro;
        for (int k = 0; k < MOE_N_LINKS; k++) {
            out->there[k] += all.there[k] * scale;
            out->home[k] += all.home[k] * scale;
        }
    }
}

static MoeSkewLayer layer_of(const MoePassContext *cx, int index, const MoeSkewRoute *route,
                             const MoePlaceMap *map) {
    const MoePassOptions *o = &cx->options;
    const MoeLoad *load = o->load;
    MoeMesh mesh = moe_pass_mesh(o), d = moe_mesh_division(&mesh, moe_mesh_of_layer(&mesh, route->layer));
    MoeCluster cluster = moe_pass_cluster(o);
    int micro = o->micro_batches > 1 ? o->micro_batches : 1, V = o->virtual_shards, E = route->experts;
    MoeArena *a = moe_arena_create();
    Layer l = {.map = map, .cluster = moe_cluster_of_group(&cluster, &d), .groups = d.dp * d.shard,
               .top_k = route->top_k, .micro = micro, .grain = MOE_LEAF_ROWS};
    l.shards = V / micro / l.groups;
    l.divided = MOE_NEW_N(a, int32_t, V * E);
    l.counts = MOE_NEW_N(a, int32_t, l.shards * E);
    if (has_copies(map)) {
        l.runs = MOE_NEW_N(a, MoeSplitRun, map->ranks * map->slots);
        l.scratch = moe_arena_alloc(a, (size_t)moe_split_scratch(E, map->ranks, map->slots, l.shards));
    }
    int n = load->steps < MOST_STEPS ? load->steps : MOST_STEPS;
    MoeSkewLayer out = {.layer = route->layer};
    for (int i = 0; i < n; i++) {
        const int32_t *at = moe_load_at(load, (int)((int64_t)i * load->steps / n), index);
        moe_load_divide(at, load->sources, E, V, l.divided);
        add_step(&l, (double)o->batch * (double)o->seq * route->top_k / micro, &out);
    }
    out.rows = n ? out.rows / n : 1;
    for (int k = 0; k < MOE_N_LINKS && n; k++) {
        out.there[k] /= n;
        out.home[k] /= n;
    }
    moe_arena_destroy(a);
    return out;
}

MoeStatus moe_skew_make(const MoePassContext *cx, const MoePlaceMap *maps, const MoeSkew **out) {
    const MoeSkewRoute *routes = cx->routes;
    size_t n = cx->n_routes;
    MoeMesh mesh = moe_pass_mesh(&cx->options);
    *out = NULL;
    if (!cx->options.load || !n)
        return NULL;
    MOE_TRY(check_load(cx->options.load, routes, n));
    MoeSkewLayer *layers = MOE_NEW_N(cx->arena, MoeSkewLayer, n);
    MoeSkew *s = MOE_NEW_N(cx->arena, MoeSkew, 1);
    for (size_t i = 0; i < n; i++)
        if (moe_mesh_division(&mesh, moe_mesh_of_layer(&mesh, routes[i].layer)).ep > 1)
            layers[s->n_layers++] = layer_of(cx, (int)i, &routes[i], &maps[i]);
    s->layers = layers;
    *out = s;
    return NULL;
}

const MoeSkewLayer *moe_skew_of(const MoeSkew *s, const MoeGroup *g) {
    int64_t layer = s ? moe_plan_step_layer(g) : -1;
    for (size_t i = 0; s && i < s->n_layers; i++)
        if (s->layers[i].layer == layer)
            return &s->layers[i];
    return NULL;
}
