#include "placement/policy.h"

#include <string.h>

#include "base/str.h"

#define POLICY(name) extern const MoePolicy moe_policy_##name;
#include "placement/policies.def"
#undef POLICY

static const MoePolicy *const table[] = {
#define POLICY(name) &moe_policy_##name,
#include "placement/policies.def"
#undef POLICY
};

size_t moe_policy_count(void) {
    return sizeof table / sizeof *table;
}

const MoePolicy *moe_policy_at(size_t i) {
    return table[i];
}

MoeStatus moe_policy_find(const char *name, const MoePolicy **out) {
    MoeStr names = {0};
    for (size_t i = 0; i < moe_policy_count(); i++) {
        if (!strcmp(table[i]->name, name)) {
            *out = table[i];
            moe_str_free(&names);
            return NULL;
        }
        moe_str_printf(&names, "%s%s", i ? ", " : "", table[i]->name);
    }
    MoeStatus st = moe_error(MOE_E_MISUSE, "there is no placement policy '%s'; there are %s", name,
                             moe_str_c(&names));
    moe_str_free(&names);
    return st;
}

void moe_policy_rows(const MoePolicySetup *s, const MoePolicyAsk *ask, double *w) {
    for (int e = 0; e < s->experts; e++)
        w[e] = 0;
    for (int i = 0; i < ask->n_loads; i++)
        for (int e = 0; e < s->experts; e++)
            w[e] += ask->totals[i][e];
}

/* Merges the sorted halves of order[lo, hi); equal ones stay in order. */
static void sort_by(const double *w, int32_t *order, int32_t *spare, int lo, int hi) {
    if (hi - lo < 2)
        return;
    int mid = lo + (hi - lo) / 2, a = lo, b = mid, n = lo;
    sort_by(w, order, spare, lo, mid);
    sort_by(w, order, spare, mid, hi);
    while (a < mid || b < hi)
        spare[n++] = b == hi || (a < mid && w[order[a]] >= w[order[b]]) ? order[a++] : order[b++];
    memcpy(order + lo, spare + lo, sizeof *order * (size_t)(hi - lo));
}

void moe_policy_order(const double *w, int n, int32_t *order) {
    MoeArena *a = moe_arena_create();
    for (int i = 0; i < n; i++)
        order[i] = i;
    sort_by(w, order, MOE_NEW_N(a, int32_t, n), 0, n);
    moe_arena_destroy(a);
}

void moe_policy_clear(MoePlaceMap *m) {
    memset(m->expert, 0xff, sizeof *m->expert * (size_t)m->ranks * (size_t)m->slots);
    memset(m->primary, 0xff, sizeof *m->primary * (size_t)m->experts);
}

bool moe_policy_holds(const MoePlaceMap *m, int rank, int e) {
    for (int g = rank * m->slots; g < (rank + 1) * m->slots; g++)
        if (m->expert[g] == e)
            return true;
    return false;
}

int moe_policy_free(const MoePlaceMap *m, int rank) {
    int n = 0;
    for (int g = rank * m->slots; g < (rank + 1) * m->slots; g++)
        n += m->expert[g] < 0;
    return n;
}

bool moe_policy_put(MoePlaceMap *m, int rank, int e) {
    if (moe_policy_holds(m, rank, e))
        return false;
    for (int g = rank * m->slots; g < (rank + 1) * m->slots; g++)
        if (m->expert[g] < 0) {
            m->expert[g] = e;
            if (m->primary[e] < 0)
                m->primary[e] = g;
            return true;
        }
    return false;
}

double moe_policy_arrival_rows(const MoePolicySetup *s) {
    const MoePlaceCost *c = s->cost;
    MoeLinkClass link = c->cluster.nodes > 1 ? MOE_LINK_INTER : MOE_LINK_INTRA;
    double bandwidth = c->cluster.links[link].bandwidth;
    if (!(c->row_seconds > 0) || !(bandwidth > 0) || s->every < 1)
        return 0;
    return c->move_bytes / bandwidth / c->row_seconds / s->every;
}
