/* Local search from the map of now: as long as it pays, the busiest rank gives an expert to a rank with a free slot or exchanges one
 * with another rank. What has moved is charged for, in rows of the busiest rank until the next decision. No copies. */
#include <math.h>

#include "placement/policy.h"

typedef struct {
    const MoePolicySetup *s;
    double *w, *load, price; /* rows of an expert, of a rank, for a move */
    int32_t *rank, *home;    /* of each expert: where it goes, where it is now */
    int32_t *held;           /* experts of a rank */
} Search;

/* Rows of the busiest rank but for two. */
static double busiest_but(const Search *x, int a, int b) {
    double most = 0;
    for (int r = 0; r < x->s->ranks; r++)
        if (r != a && r != b && x->load[r] > most)
            most = x->load[r];
    return most;
}

/* What e's going to a rank costs more than its being where it is. */
static double charge(const Search *x, int e, int to) {
    return x->price * ((to != x->home[e]) - (x->rank[e] != x->home[e]));
}

/* The best step from the busiest rank: e goes to rank *to, whose expert *back (-1: none) comes for it. False if none pays. */
static bool best_step(const Search *x, int from, int *out_e, int *to, int *back) {
    double most = 1e-9 * x->load[from], now = x->load[from];
    bool found = false;
    for (int r = 0; r < x->s->ranks; r++) {
        if (r == from)
            continue;
        double others = busiest_but(x, from, r);
        for (int e = 0; e < x->s->experts; e++)
            for (int y = -1; x->rank[e] == from && y < x->s->experts; y++) {
                if (y < 0 ? x->held[r] == x->s->slots : x->rank[y] != r)
                    continue;
                double shift = x->w[e] - (y < 0 ? 0 : x->w[y]);
                double after = fmax(others, fmax(now - shift, x->load[r] + shift));
                double gain = now - after - charge(x, e, r) - (y < 0 ? 0 : charge(x, y, from));
                if (gain > most) {
                    most = gain;
                    *out_e = e;
                    *to = r;
                    *back = y;
                    found = true;
                }
            }
    }
    return found;
}

static void go(Search *x, int e, int to) {
    x->load[x->rank[e]] -= x->w[e];
    x->held[x->rank[e]]--;
    x->rank[e] = to;
    x->load[to] += x->w[e];
    x->held[to]++;
}

static MoeStatus propose(void *state, const MoePolicyAsk *ask, MoePlaceMap *out) {
    const MoePolicySetup *s = state;
    MoeArena *a = moe_arena_create();
    Search x = {s,
                MOE_NEW_N(a, double, s->experts),
                MOE_NEW_N(a, double, s->ranks),
                moe_policy_arrival_rows(s),
                MOE_NEW_N(a, int32_t, s->experts),
                MOE_NEW_N(a, int32_t, s->experts),
                MOE_NEW_N(a, int32_t, s->ranks)};
    moe_policy_rows(s, ask, x.w);
    for (int e = 0; e < s->experts; e++) {
        x.w[e] /= (double)ask->n_loads * s->groups; /* of one step and EP group */
        x.rank[e] = x.home[e] = ask->now->primary[e] / ask->now->slots;
        x.load[x.rank[e]] += x.w[e];
        x.held[x.rank[e]]++;
    }
    for (int i = 0; i < 4 * s->experts; i++) {
        int from = 0, e, to, back;
        for (int r = 1; r < s->ranks; r++)
            from = x.load[r] > x.load[from] ? r : from;
        if (!best_step(&x, from, &e, &to, &back))
            break;
        go(&x, e, to);
        if (back >= 0)
            go(&x, back, from);
    }
    moe_policy_clear(out);
    for (int e = 0; e < s->experts; e++)
        moe_policy_put(out, x.rank[e], e);
    moe_place_map_settle(out, ask->now);
    moe_arena_destroy(a);
    return NULL;
}

const MoePolicy moe_policy_search = {
    .name = "search",
    .doc = "moves and exchanges from the map of now while they pay for what they send; no copies",
    .propose = propose,
};
