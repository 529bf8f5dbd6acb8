/* What plan.json says of rows of experts (docs/PLAN.md): "live", how a step's work goes by them; "placement", what the layers' maps
 * cost. */
#include <stdio.h>

#include "base/arena.h"
#include "runtime/plan_reader.h"

void moe_plan_read_live(MoePlanReader *r, const json_t *o, MoePlanProgram *g, size_t i) {
    MoePlanStep *s = &g->steps[i];
    const json_t *e = json_object_get(o, "live");
    s->live = (MoePlanLive){.rows = -1};
    if (!e)
        return;
    moe_plan_at(r, "programs.%s.steps[%zu].live", g->name, i);
    s->live.rows = moe_plan_value(r, json_object_get(e, "rows"), g, "rows");
    s->live.expect = moe_plan_num(r, e, "expect", true);
    s->live.flops = moe_plan_num(r, e, "flops", true);
    s->live.bytes = moe_plan_num(r, e, "bytes", true);
    if (!r->st && g->values[s->live.rows].bytes < 8)
        moe_plan_fail(r, "rows", "%d is too small for a table of rows", s->live.rows);
    moe_plan_at(r, "programs.%s.steps[%zu]", g->name, i);
}

static void read_layer(MoePlanReader *r, const json_t *o, MoePlaceCost *c) {
    const struct {
        const char *key;
        double *to;
    } rows[] = {{"row_seconds", &c->row_seconds},     {"token_bytes", &c->token_bytes},
                {"row_bytes", &c->row_bytes},         {"copy_bytes", &c->copy_bytes},
                {"root_bytes", &c->root_bytes},       {"move_bytes", &c->move_bytes},
                {"fixed_seconds", &c->fixed_seconds}, {"hidden", &c->hidden}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        *rows[i].to = moe_plan_num(r, o, rows[i].key, true);
    c->exchanges = (int)moe_plan_int(r, o, "exchanges", 0, 1 << 20);
    if (c->hidden > 1)
        moe_plan_fail(r, "hidden", "is %g, expected 0 to 1", c->hidden);
    if (r->st)
        return;
    MoeStatus bad = moe_cluster_read(json_object_get(o, "cluster"), "cluster", &c->cluster);
    if (bad)
        moe_plan_fail(r, "", "%s", moe_status_message(bad));
    moe_status_free(bad);
}

void moe_plan_read_placement(MoePlanReader *r, const json_t *root) {
    MoePlan *p = r->plan;
    size_t n;
    r->at[0] = 0;
    if (!json_object_get(root, "placement"))
        return;
    const json_t *a = moe_plan_array(r, root, "placement", &n);
    if (!r->st && n != p->n_moe_layers)
        moe_plan_fail(r, "placement", "has %zu layers, expected %zu", n, p->n_moe_layers);
    if (r->st)
        return;
    p->place_costs = MOE_NEW_N(p->arena, MoePlaceCost, n);
    for (size_t i = 0; i < n && !r->st; i++) {
        const json_t *o = json_array_get(a, i);
        moe_plan_at(r, "placement[%zu]", i);
        int layer = (int)moe_plan_int(r, o, "layer", 0, 1 << 20);
        if (!r->st && layer != p->moe_layers[i])
            moe_plan_fail(r, "layer", "is %d, expected %d", layer, p->moe_layers[i]);
        p->place_costs[i].top_k = p->experts_per_token;
        read_layer(r, o, &p->place_costs[i]);
    }
    r->at[0] = 0;
}
