/* See compile_load.h. */
#include "cli/compile_load.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "placement/gate.h"
#include "placement/synthetic.h"

enum { STEPS = 16 }; /* of a load made by rule that changes from step to step */

MoeStatus moe_compile_load_options(const MoeOptions *o, MoeDriverOptions *d) {
    d->trace = moe_opt(o, OPT_TRACE);
    d->load = moe_opt(o, OPT_LOAD);
    if (*d->trace && *d->load)
        return moe_error(MOE_E_MISUSE, "--trace and --load: give one of them; a trace is a load");
    const char *policy = moe_opt(o, OPT_FIRST_PLACEMENT);
    d->pass.first_placement = *policy ? policy : *d->trace ? "best" : NULL;
    if (*policy && !*d->trace && !*d->load)
        return moe_error(MOE_E_MISUSE, "--first-placement %s: it goes by a load; give --trace or --load", policy);
    return NULL;
}

/* A trace names the model's layers by their numbers, or just has as many. */
static MoeStatus fit_trace(const MoeCompiled *c, const char *path, MoeLoad *l) {
    const MoePlanInfo *info = &c->info;
    if (l->layers != (int)info->n_moe_layers)
        return moe_error(MOE_E_INPUT, "%s: %d layers, the model has %zu with experts", path, l->layers,
                         info->n_moe_layers);
    if (l->experts > info->experts)
        return moe_error(MOE_E_INPUT, "%s: %d experts, the model has %d", path, l->experts, info->experts);
    return moe_load_widen(l, info->experts, c->arena);
}

/* "gate:1.25" -> 1.25; "gate": no capacity. */
static MoeStatus read_factor(const char *kind, double *out) {
    char *end = NULL;
    *out = INFINITY;
    if (kind[4] == 0)
        return NULL;
    *out = strtod(kind + 5, &end);
    if (kind[4] != ':' || end == kind + 5 || *end)
        return moe_error(MOE_E_MISUSE, "--load %s: expected gate:CF, CF the gate's capacity factor", kind);
    return NULL;
}

static MoeStatus by_rule(const char *kind, MoeCompiled *c, MoeLoad *out) {
    const MoePassOptions *o = &c->cx.options;
    const MoePlanInfo *info = &c->info;
    MoeMesh mesh = moe_pass_mesh(o), d = moe_mesh_division(&mesh, 0);
    MoeGateSizes g = {.experts = info->experts, .layers = (int)info->n_moe_layers, .sources = o->virtual_shards,
                      .top_k = info->experts_per_token, .tokens = o->batch * o->seq, .groups = d.dp * d.shard,
                      .ep = d.ep};
    if (strncmp(kind, "gate", 4) == 0) {
        double factor;
        MOE_TRY(read_factor(kind, &factor));
        return moe_gate_capacity(factor, &g, c->arena, out);
    }
    if (strcmp(kind, "topology") == 0) {
        MoeCluster cluster = moe_pass_cluster(o), group = moe_cluster_of_group(&cluster, &d);
        return moe_gate_topology(&group, &g, c->arena, out);
    }
    MoeSyntheticSizes s = {.experts = g.experts, .layers = g.layers, .steps = STEPS, .sources = g.sources,
                           .top_k = g.top_k, .tokens = g.tokens, .seed = 1};
    return moe_status_prefix(moe_synthetic_make(kind, &s, c->arena, out), "--load (or gate:CF, topology)");
}

MoeStatus moe_compile_load(const MoeDriverOptions *o, MoeCompiled *c) {
    bool trace = o->trace && *o->trace, rule = o->load && *o->load;
    if ((!trace && !rule) || !c->info.n_moe_layers)
        return NULL;
    MoeLoad *l = MOE_NEW(c->arena, MoeLoad);
    if (trace) {
        MOE_TRY(moe_load_read(o->trace, c->arena, l));
        MOE_TRY(fit_trace(c, o->trace, l));
    } else {
        MOE_TRY(by_rule(o->load, c, l));
    }
    c->cx.options.load = l;
    return NULL;
}
