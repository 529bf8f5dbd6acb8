/* See gate.h. */
#include "placement/gate.h"

#include <math.h>

static void create(const MoeGateSizes *s, MoeArena *a, MoeLoad *out) {
    *out = (MoeLoad){.steps = 1, .layers = s->layers, .sources = s->sources, .experts = s->experts};
    out->layer = MOE_NEW_N(a, int32_t, s->layers);
    out->counts = MOE_NEW_N(a, int32_t, (size_t)s->layers * (size_t)s->sources * (size_t)s->experts);
    for (int l = 0; l < s->layers; l++)
        out->layer[l] = l;
}

static int32_t *row_of(const MoeLoad *l, int layer, int source) {
    return l->counts + ((size_t)layer * (size_t)l->sources + (size_t)source) * (size_t)l->experts;
}

/* Sets the counts of a source to the parts of `rows` that weights ask for, none lost: what is cut off goes to the next. */
static void share_out(int32_t *counts, const double *weights, int n, double rows) {
    double all = 0, before = 0;
    for (int e = 0; e < n; e++)
        all += weights[e];
    for (int e = 0; e < n; e++) {
        double after = before + weights[e];
        counts[e] = all > 0 ? (int32_t)(floor(rows * after / all + 0.5) - floor(rows * before / all + 0.5)) : 0;
        before = after;
    }
}

/* Every source of every layer, by the weights of its experts. */
static void fill(const MoeLoad *l, const MoeGateSizes *s, const double *weights) {
    double rows = (double)s->tokens * s->top_k / s->sources;
    for (int layer = 0; layer < l->layers; layer++)
        for (int v = 0; v < l->sources; v++)
            share_out(row_of(l, layer, v), weights, l->experts, rows);
}

MoeStatus moe_gate_capacity(double factor, const MoeGateSizes *s, MoeArena *a, MoeLoad *out) {
    if (!(factor >= 1))
        return moe_error(MOE_E_MISUSE, "a capacity factor of %g leaves rows without a place; expected 1 or more",
                         factor);
    create(s, a, out);
    double left = (double)s->tokens * s->top_k, most = factor * left / s->experts;
    double *weights = MOE_NEW_N(a, double, s->experts);
    most = most < (double)s->tokens ? most : (double)s->tokens;
    for (int e = 0; e < s->experts; e++) {
        weights[e] = left < most ? left : most;
        left -= weights[e];
    }
    fill(out, s, weights);
    return NULL;
}

MoeStatus moe_gate_topology(const MoeCluster *c, const MoeGateSizes *s, MoeArena *a, MoeLoad *out) {
    create(s, a, out);
    double *weights = MOE_NEW_N(a, double, s->experts), rows = (double)s->tokens * s->top_k / s->sources;
    int per = (s->experts + s->ep - 1) / s->ep, each = s->sources / s->groups;
    double between = c->links[MOE_LINK_INTER].bandwidth, inside = c->links[MOE_LINK_INTRA].bandwidth,
           away = between / (between + inside);
    for (int v = 0; v < s->sources; v++) {
        int rank = (int)((int64_t)(v % each) * s->ep / each), near = 0;
        for (int e = 0; e < s->experts; e++)
            near += e / per / c->ranks_per_node == rank / c->ranks_per_node;
        int far = s->experts - near;
        double leave = (double)far / s->experts < away || !near ? (double)far / s->experts : away;
        for (int e = 0; e < s->experts; e++)
            weights[e] = e / per / c->ranks_per_node == rank / c->ranks_per_node ? (1 - leave) / near : leave / far;
        for (int l = 0; l < s->layers; l++)
            share_out(row_of(out, l, v), weights, s->experts, rows);
    }
    return NULL;
}
