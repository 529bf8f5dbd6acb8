/* The map whose busiest rank has the fewest rows, with copies and exact splitting, for the sum of the loads shown: branch and bound over the
 * sets of ranks that hold each expert, the largest experts first. A yardstick for small cases; nothing is charged for moves,
 * but a map of now that is as good stays. */
#include <string.h>

#include "base/split_flow.h"
#include "placement/policy.h"

enum { MOST_RANKS = 12, NODES = 3000000 }; /* nodes: some seconds */
#define MOST_MAPS 1e10 /* without bounds and symmetry, which leave few of them */

typedef struct {
    const MoePolicySetup *s;
    MoeArena *arena;
    MoeFlow flow;
    MoePlaceMap map; /* experts placed so far */
    int32_t *order, *rows, *shown, *used;
    double *weight;
    int64_t best, least; /* rows of the busiest rank: found; by the mean */
    MoePlaceMap found;
    int64_t nodes;
} Optimal;

/* How many ways there are to choose a set of ranks for each expert with at most all slots together. */
static double count_maps(const MoePolicySetup *s) {
    int global = s->ranks * s->slots;
    MoeArena *a = moe_arena_create();
    double *ways = MOE_NEW_N(a, double, global + 1), *next = MOE_NEW_N(a, double, global + 1),
           sum = 0;
    ways[0] = 1;
    for (int e = 0; e < s->experts; e++) {
        memset(next, 0, sizeof *next * ((size_t)global + 1));
        double choose = 1;
        for (int k = 1; k <= s->ranks; k++) {
            choose = choose * (s->ranks - k + 1) / k;
            for (int n = 0; n + k <= global; n++)
                next[n + k] += ways[n] * choose;
        }
        memcpy(ways, next, sizeof *ways * ((size_t)global + 1));
    }
    for (int n = 0; n <= global; n++)
        sum += ways[n];
    moe_arena_destroy(a);
    return sum;
}

static MoeStatus too_large(const MoePolicySetup *s) {
    return moe_error(
        MOE_E_MISUSE,
        "policy optimal: %d experts on %d ranks with %d slots are too many maps to try; it is for "
        "small cases, such as 8 experts on 4 ranks with 3 slots",
        s->experts, s->ranks, s->slots);
}

static MoeStatus create(const MoePolicySetup *s, void **out) {
    if (s->ranks > MOST_RANKS || count_maps(s) > MOST_MAPS)
        return too_large(s);
    MoeArena *a = moe_arena_create();
    Optimal *o = MOE_NEW(a, Optimal);
    o->s = s;
    o->arena = a;
    moe_flow_init(&o->flow, s->experts, s->ranks, s->slots,
                  moe_arena_alloc(a, (size_t)moe_flow_scratch(s->experts, s->ranks, s->slots)));
    o->order = MOE_NEW_N(a, int32_t, s->experts);
    o->rows = MOE_NEW_N(a, int32_t, s->experts);
    o->shown = MOE_NEW_N(a, int32_t, s->experts);
    o->used = MOE_NEW_N(a, int32_t, s->ranks);
    o->weight = MOE_NEW_N(a, double, s->experts);
    *out = o;
    MoeStatus st = moe_place_map_create(s->experts, s->ranks, s->slots, a, &o->map);
    return st ? st : moe_place_map_create(s->experts, s->ranks, s->slots, a, &o->found);
}

static void destroy(void *state) {
    moe_arena_destroy(((Optimal *)state)->arena);
}

/* Places the experts from order[i] on; slots: free ones of all ranks. */
static void branch(Optimal *o, int i, int slots) {
    const MoePolicySetup *s = o->s;
    if (o->best == o->least || ++o->nodes > NODES)
        return;
    if (i > 0) {
        moe_flow_divide(&o->flow, o->map.expert, o->shown, 1);
        if (o->flow.level >= o->best)
            return;
    }
    if (i == s->experts) {
        o->best = o->flow.level;
        moe_place_map_copy(&o->found, &o->map);
        return;
    }
    int e = o->order[i], left = s->experts - i - 1;
    o->shown[e] = o->rows[e];
    for (int set = 1; set < 1 << s->ranks; set++) {
        bool fits = slots - __builtin_popcount((unsigned)set) >= left;
        for (int r = 0; r < s->ranks && fits; r++)
            if (set >> r & 1) /* empty ranks are all the same: the first of them first */
                fits = o->used[r] < s->slots &&
                       (o->used[r] > 0 || r == 0 || o->used[r - 1] > 0 || set >> (r - 1) & 1);
        if (!fits)
            continue;
        for (int r = 0; r < s->ranks; r++)
            if (set >> r & 1)
                o->map.expert[r * s->slots + o->used[r]++] = e;
        branch(o, i + 1, slots - __builtin_popcount((unsigned)set));
        for (int r = 0; r < s->ranks; r++)
            if (set >> r & 1)
                o->map.expert[r * s->slots + --o->used[r]] = -1;
    }
    o->shown[e] = 0;
}

static MoeStatus propose(void *state, const MoePolicyAsk *ask, MoePlaceMap *out) {
    Optimal *o = state;
    const MoePolicySetup *s = o->s;
    double total = 0;
    moe_policy_rows(s, ask, o->weight);
    for (int e = 0; e < s->experts; e++)
        total += o->weight[e];
    double scale =
        total > 1e9 ? 1e9 / total : 1; /* rows are i32; beyond, what is lost does not matter */
    int64_t sum = 0;
    for (int e = 0; e < s->experts; e++) {
        o->rows[e] = (int32_t)(o->weight[e] * scale);
        o->shown[e] = 0;
        sum += o->rows[e];
    }
    moe_policy_order(o->weight, s->experts, o->order);
    moe_flow_divide(&o->flow, ask->now->expert, o->rows, 1);
    int64_t now = o->best = o->flow.level;
    o->least = (sum + s->ranks - 1) / s->ranks;
    o->nodes = 0;
    memset(o->used, 0, sizeof *o->used * (size_t)s->ranks);
    moe_policy_clear(&o->map);
    branch(o, 0, s->ranks * s->slots);
    if (o->nodes > NODES)
        return too_large(s);
    if (o->best == now)
        return NULL;
    moe_place_map_copy(out, &o->found);
    moe_place_map_settle(out, ask->now);
    return NULL;
}

const MoePolicy moe_policy_optimal = {
    .name = "optimal",
    .doc = "the best map for the loads shown, by trying all: small cases only",
    .may_replicate = true,
    .create = create,
    .propose = propose,
    .destroy = destroy,
};
