/* See explain_step.h. */
#include "cli/explain_step.h"

#include <math.h>

#include "ir/numbers.h"
#include "placement/spread.h"

enum { MOST_STEPS = 64 };

static double layer_seconds(const MoePlan *p, const MoeLoad *l, size_t i, MoeArena *a) {
    const MoePlaceCost *c = &p->place_costs[i];
    MoeMesh d = moe_mesh_division(&p->mesh, moe_mesh_of_layer(&p->mesh, p->moe_layers[i]));
    MoePlaceMap map;
    MoeStatus st = moe_place_map_create(p->experts, d.ep, moe_mesh_slots(&d, p->experts), a, &map);
    if (st) {
        moe_status_free(st);
        return NAN;
    }
    MoeSpreadWhere w = {.cluster = c->cluster,
                        .groups = d.dp * d.shard,
                        .top_k = p->experts_per_token,
                        .micro_batches = p->micro_batches,
                        .shards = p->virtual_shards,
                        .grain = MOE_LEAF_ROWS};
    double rows = (double)(p->batch * p->seq) * p->experts_per_token;
    MoeSpread s = moe_spread(l, (int)i, &map, &w, rows / p->micro_batches, MOST_STEPS);
    MoePlaceTraffic t = {.mean = rows / moe_mesh_data_ranks(&p->mesh)};
    t.rows = t.mean * s.rows;
    for (int k = 0; k < MOE_N_LINKS; k++) {
        t.there[k] = s.there[k] * p->micro_batches;
        t.home[k] = s.home[k] * p->micro_batches;
    }
    return moe_place_price(c, &t, moe_place_copy_seconds(c, &map)).total + c->fixed_seconds;
}

double moe_explain_loaded_seconds(const MoePlan *p, const MoeLoad *l) {
    if (!p->place_costs || l->layers != (int)p->n_moe_layers || l->experts != p->experts)
        return NAN;
    MoeArena *a = moe_arena_create();
    double sum = 0;
    for (size_t i = 0; i < p->n_moe_layers; i++)
        sum += layer_seconds(p, l, i, a);
    moe_arena_destroy(a);
    return sum;
}
