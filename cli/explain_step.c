/* See explain_step.h. */
#include "cli/explain_step.h"

#include <math.h>

#include "cli/run_maps.h"
#include "placement/spread.h"

enum { MOST_STEPS = 64 };

/* l: of one step. */
static double layer_seconds(const MoePlan *p, const MoeLoad *l, size_t i, const MoePlaceMap *map) {
    const MoePlaceCost *c = &p->place_costs[i];
    MoeMesh d = moe_mesh_division(&p->mesh, moe_mesh_of_layer(&p->mesh, p->moe_layers[i]));
    MoeSpreadWhere w = {.cluster = c->cluster,
                        .groups = d.dp * d.shard,
                        .top_k = p->experts_per_token,
                        .micro_batches = p->micro_batches,
                        .shards = p->virtual_shards,
                        .grain = p->leaf_rows};
    double rows = (double)(p->batch * p->seq) * p->experts_per_token;
    MoeSpread s = moe_spread(l, (int)i, map, &w, rows / p->micro_batches, 1);
    MoePlaceTraffic t = {.mean = rows / moe_mesh_data_ranks(&p->mesh)};
    t.rows = t.mean * s.rows;
    for (int k = 0; k < MOE_N_LINKS; k++) {
        t.there[k] = s.there[k] * p->micro_batches;
        t.home[k] = s.home[k] * p->micro_batches;
    }
    return moe_place_price(c, &t, moe_place_copy_seconds(c, map)).total + c->fixed_seconds;
}

MoeStatus moe_explain_loaded_seconds(const MoePlan *p, const MoeLoad *l, const char *run, double *out) {
    *out = NAN;
    if (!p->place_costs || l->layers != (int)p->n_moe_layers || l->experts != p->experts)
        return NULL;
    MoeArena *a = moe_arena_create();
    MoeRunMaps where;
    MoeStatus st = moe_run_maps_open(p, run, a, &where);
    int n = l->steps < MOST_STEPS ? l->steps : MOST_STEPS;
    double sum = 0;
    for (int i = 0; i < n && !st; i++) {
        int step = (int)((int64_t)i * l->steps / n);
        MoeLoad one = *l;
        one.first_step = l->first_step + step;
        one.steps = 1;
        one.counts = l->counts + (size_t)step * (size_t)l->layers * (size_t)l->sources * (size_t)l->experts;
        moe_run_maps_step(&where, one.first_step);
        for (size_t k = 0; k < p->n_moe_layers; k++)
            sum += layer_seconds(p, &one, k, &where.maps[k]);
    }
    if (!st && n)
        *out = sum / n;
    moe_run_maps_close(&where);
    moe_arena_destroy(a);
    return st;
}
