/* FasterMoE's dynamic shadowing (He et al., "FasterMoE", PPoPP'22, section 4; laekov/fastmoe, fmoe/fastermoe/shadow_policy.py): the
 * hottest experts are copied to all ranks, each of which then computes its own tokens for them, as long as the model of a step
 * says that this is shorter. Experts themselves do not move. The model has the rows that a rank receives (the merged code sums the
 * rows that it sends, which are the same for all, so it never shadows anything), counts of rows without the bytes of one, and
 * what a copy sends by moec's own cost model. */
#include "placement/policy.h"

typedef struct {
    const MoePolicySetup *s;
    double *
        own; /* [experts][ranks] rows of a step and EP group for the expert, from the rank itself */
    double *total;             /* [experts] */
    double *compute, *receive; /* [ranks] rows */
} Model;

static void count(Model *m, const MoePolicyAsk *ask) {
    const MoePolicySetup *s = m->s;
    int sources = s->sources / s->groups;
    double part = 1.0 / ((double)ask->n_loads * s->groups);
    for (int i = 0; i < ask->n_loads; i++)
        for (int e = 0; e < s->experts; e++)
            for (int v = 0; v < s->sources; v++) {
                double n = part * ask->loads[i][(size_t)e * (size_t)s->sources + (size_t)v];
                int rank = (int)((int64_t)(v % sources) * s->ranks / sources);
                m->own[(size_t)e * (size_t)s->ranks + (size_t)rank] += n;
                m->total[e] += n;
            }
}

/* Seconds of a step in which the experts that all ranks hold in `map` stay at home. */
static double seconds(Model *m, const MoePlaceMap *map, const int8_t *shadow) {
    const MoePolicySetup *s = m->s;
    const MoePlaceCost *c = s->cost;
    const MoeLink *link = &c->cluster.links[c->cluster.nodes > 1 ? MOE_LINK_INTER : MOE_LINK_INTRA];
    double compute = 0, receive = 0;
    for (int r = 0; r < s->ranks; r++)
        m->compute[r] = m->receive[r] = 0;
    for (int e = 0; e < s->experts; e++) {
        const double *own = m->own + (size_t)e * (size_t)s->ranks;
        int rank = map->primary[e] / map->slots;
        for (int r = 0; r < s->ranks && shadow[e]; r++)
            m->compute[r] += own[r];
        if (!shadow[e]) {
            m->compute[rank] += m->total[e];
            m->receive[rank] += m->total[e] - own[rank];
        }
    }
    for (int r = 0; r < s->ranks; r++) {
        compute = m->compute[r] > compute ? m->compute[r] : compute;
        receive = m->receive[r] > receive ? m->receive[r] : receive;
    }
    double row = c->row_seconds > 0 ? c->row_seconds : 1, sent = 0;
    if (link->bandwidth > 0)
        sent = receive * (c->token_bytes + c->row_bytes) / link->bandwidth;
    return compute * row + (1 - c->hidden) * (sent + moe_place_copy_seconds(c, map));
}

/* Copies e to every other rank; false, and nothing happens, if one has no slot. */
static bool shadow_expert(MoePlaceMap *map, int e) {
    int home = map->primary[e] / map->slots;
    for (int r = 0; r < map->ranks; r++)
        if (r != home && moe_policy_free(map, r) == 0)
            return false;
    for (int r = 0; r < map->ranks; r++)
        if (r != home)
            moe_policy_put(map, r, e);
    return true;
}

static MoeStatus propose(void *state, const MoePolicyAsk *ask, MoePlaceMap *out) {
    const MoePolicySetup *s = state;
    MoeArena *a = moe_arena_create();
    Model m = {s, MOE_NEW_N(a, double, (size_t)s->experts *(size_t)s->ranks),
               MOE_NEW_N(a, double, s->experts), MOE_NEW_N(a, double, s->ranks),
               MOE_NEW_N(a, double, s->ranks)};
    int32_t *order = MOE_NEW_N(a, int32_t, s->experts);
    int8_t *shadow = MOE_NEW_N(a, int8_t, s->experts);
    MoePlaceMap map;
    MoeStatus st = moe_place_map_create(s->experts, s->ranks, s->slots, a, &map);
    count(&m, ask);
    moe_policy_order(m.total, s->experts, order);
    moe_policy_clear(&map);
    for (int e = 0; e < s->experts; e++)
        moe_policy_put(&map, ask->now->primary[e] / s->slots, e);
    double best = seconds(&m, &map, shadow);
    moe_place_map_copy(out, &map);
    for (int i = 0; i < s->experts && s->ranks > 1 && !st; i++) {
        if (!shadow_expert(&map, order[i]))
            break;
        shadow[order[i]] = 1;
        double now = seconds(&m, &map, shadow);
        if (now <
            best) { /* a prefix of the hottest; a longer one may be better than one that is not */
            best = now;
            moe_place_map_copy(out, &map);
        }
    }
    moe_place_map_settle(out, ask->now);
    moe_arena_destroy(a);
    return st;
}

const MoePolicy moe_policy_fastermoe = {
    .name = "fastermoe",
    .doc =
        "FasterMoE's shadowing (PPoPP'22): the hottest experts on all ranks while its model gains",
    .may_replicate = true,
    .propose = propose,
};
