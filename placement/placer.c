/* See placer.h. In: counts of steps; out: maps. A policy's answer goes through three gates: it is a map; it is another one; what it
 * gains until the next decision is more than what it costs, both by the cost model on the last steps' loads. */
#include "placement/placer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/mem.h"
#include "base/pool.h"

enum { GAIN_STEPS = 4 }; /* the last steps, on whose mean load a gain is predicted */

struct MoePlacer {
    const MoePolicy *policy;
    MoePolicySetup setup;
    MoePlacerGate gate;
    void *state; /* the policy's */
    MoeArena *arena;
    /* A ring of `window` steps, the newest at (n - 1) % window: [layers][experts][sources]; [layers][experts]. */
    int32_t *loads, *totals;
    size_t load_bytes;                       /* of the whole ring */
    int64_t n;                               /* steps observed */
    const int32_t **ask_loads, **ask_totals; /* [window] of a layer, oldest first */
    MoePlaceMap proposal;
    int32_t *recent; /* [experts][sources] */
    /* Splitting one EP group's rows. */
    int32_t *group; /* [experts][sources / groups] */
    MoeSplitRun *runs;
    void *scratch;
    /* Imbalances since the last decision: the sum of the first few, a ring of the last few. */
    double first, last[MOE_PLACER_DRIFT_STEPS];
    int64_t n_since;
    double seconds;
};

static MoeStatus check_setup(const MoePolicySetup *s, const MoePlacerGate *g) {
    if (s->layers < 1 || s->experts < 1 || s->ranks < 1 || s->slots < 1 || s->groups < 1 ||
        s->sources < 1 || s->grain < 1 || s->every < 1 || s->window < 1)
        return moe_error(MOE_E_MISUSE,
                         "placement of %d layers of %d experts on %d ranks with %d slots, %d "
                         "groups, %d sources, cuts every %d "
                         "rows, every %d steps by the last %d: all must be at least 1",
                         s->layers, s->experts, s->ranks, s->slots, s->groups, s->sources, s->grain,
                         s->every, s->window);
    if (s->sources % s->groups != 0)
        return moe_error(MOE_E_MISUSE,
                         "%d sources of load cannot be divided among %d expert parallel groups",
                         s->sources, s->groups);
    if ((int64_t)s->ranks * s->slots < s->experts)
        return moe_error(MOE_E_MISUSE, "%d experts do not fit %d ranks with %d slots each",
                         s->experts, s->ranks, s->slots);
    if (!(g->hysteresis >= 0) || !(g->drift >= 0))
        return moe_error(MOE_E_MISUSE, "hysteresis %g, drift %g: neither may be negative",
                         g->hysteresis, g->drift);
    return NULL;
}

static MoeStatus allocate(MoePlacer *p) {
    const MoePolicySetup *s = &p->setup;
    size_t per_layer = (size_t)s->experts * (size_t)s->sources;
    if (!moe_mul_size(per_layer * 4, (size_t)s->layers * (size_t)s->window, &p->load_bytes))
        return moe_error(MOE_E_NOMEM, "the history of %d steps' loads has no size", s->window);
    MOE_TRY(moe_alloc_big(p->load_bytes, "the history of loads", (void **)&p->loads));
    p->arena = moe_arena_create();
    p->totals =
        MOE_NEW_N(p->arena, int32_t, (size_t)s->window * (size_t)s->layers * (size_t)s->experts);
    p->ask_loads = MOE_NEW_N(p->arena, const int32_t *, s->window);
    p->ask_totals = MOE_NEW_N(p->arena, const int32_t *, s->window);
    p->recent = MOE_NEW_N(p->arena, int32_t, per_layer);
    p->group = MOE_NEW_N(p->arena, int32_t, per_layer / (size_t)s->groups);
    p->runs = MOE_NEW_N(p->arena, MoeSplitRun, (size_t)s->ranks * (size_t)s->slots);
    p->scratch = moe_arena_alloc(p->arena, (size_t)moe_split_scratch(s->experts, s->ranks, s->slots,
                                                                     s->sources / s->groups));
    return moe_place_map_create(s->experts, s->ranks, s->slots, p->arena, &p->proposal);
}

MoeStatus moe_placer_create(const MoePolicy *policy, const MoePolicySetup *setup,
                            MoePlacerGate gate, MoePlacer **out) {
    *out = NULL;
    MOE_TRY(check_setup(setup, &gate));
    MoePlacer *p = calloc(1, sizeof *p);
    MOE_ASSERT(p, "out of memory for a placer");
    p->policy = policy;
    p->setup = *setup;
    p->gate = gate;
    MoeStatus st = allocate(p);
    if (!st && policy->create)
        st = policy->create(&p->setup, &p->state);
    else
        p->state = &p->setup;
    if (st) {
        p->state = policy->create ? NULL : p->state;
        moe_placer_destroy(p);
        return st;
    }
    *out = p;
    return NULL;
}

void moe_placer_destroy(MoePlacer *p) {
    if (!p)
        return;
    if (p->policy->destroy && p->state)
        p->policy->destroy(p->state);
    moe_free_big(p->loads, p->load_bytes);
    if (p->arena)
        moe_arena_destroy(p->arena);
    free(p);
}

double moe_placer_seconds(const MoePlacer *p) {
    return p->seconds;
}

/* ---- history ---- */

static int32_t *load_at(const MoePlacer *p, int64_t i, int layer) {
    const MoePolicySetup *s = &p->setup;
    size_t at = (size_t)(i % s->window) * (size_t)s->layers + (size_t)layer;
    return p->loads + at * (size_t)s->experts * (size_t)s->sources;
}

static int32_t *totals_at(const MoePlacer *p, int64_t i, int layer) {
    const MoePolicySetup *s = &p->setup;
    return p->totals +
           ((size_t)(i % s->window) * (size_t)s->layers + (size_t)layer) * (size_t)s->experts;
}

/* One layer's step: rows by expert, then source. */
static void remember(MoePlacer *p, int layer, const int32_t *counts) {
    int experts = p->setup.experts, sources = p->setup.sources;
    int32_t *load = load_at(p, p->n, layer), *totals = totals_at(p, p->n, layer);
    memset(totals, 0, sizeof *totals * (size_t)experts);
    for (int v = 0; v < sources; v++)
        for (int e = 0; e < experts; e++) {
            int32_t c = counts[(size_t)v * (size_t)experts + (size_t)e];
            load[(size_t)e * (size_t)sources + (size_t)v] = c;
            totals[e] += c;
        }
}

/* A layer's step with a map: the slowest EP group's seconds, the highest imbalance. load [experts][sources]. */
static MoePlaceStep price(MoePlacer *p, const MoePlaceMap *m, const int32_t *load) {
    const MoePolicySetup *s = &p->setup;
    int sources = s->sources / s->groups;
    MoePlaceStep worst = {.total = -1};
    for (int g = 0; g < s->groups; g++) {
        for (int e = 0; e < s->experts; e++)
            memcpy(p->group + (size_t)e * (size_t)sources,
                   load + (size_t)e * (size_t)s->sources + (size_t)g * (size_t)sources,
                   sizeof *load * (size_t)sources);
        moe_split(
            &(MoeSplit){s->experts, s->ranks, s->slots, m->expert, sources, p->group, s->grain},
            p->scratch, p->runs);
        MoePlaceStep one = moe_place_step(s->cost, m, p->group, sources, p->runs);
        double imbalance = one.imbalance > worst.imbalance ? one.imbalance : worst.imbalance;
        worst = one.total > worst.total ? one : worst;
        worst.imbalance = imbalance;
    }
    return worst;
}

void moe_placer_observe(MoePlacer *p, int64_t step, const int32_t *counts,
                        const MoePlaceMap *maps) {
    const MoePolicySetup *s = &p->setup;
    (void)step;
    double imbalance = 0;
    for (int l = 0; l < s->layers; l++) {
        remember(p, l, counts + (size_t)l * (size_t)s->sources * (size_t)s->experts);
        if (p->gate.drift > 0)
            imbalance += price(p, &maps[l], load_at(p, p->n, l)).imbalance / s->layers;
    }
    p->n++;
    p->last[p->n_since % MOE_PLACER_DRIFT_STEPS] = imbalance;
    if (p->n_since < MOE_PLACER_DRIFT_STEPS)
        p->first += imbalance;
    p->n_since++;
}

static bool drifted(const MoePlacer *p) {
    double sum = 0;
    for (int i = 0; i < MOE_PLACER_DRIFT_STEPS; i++)
        sum += p->last[i];
    return p->gate.drift > 0 && p->n_since > MOE_PLACER_DRIFT_STEPS &&
           sum - p->first > p->gate.drift * MOE_PLACER_DRIFT_STEPS;
}

bool moe_placer_due(const MoePlacer *p, int64_t step) {
    return p->n > 0 && (p->policy->each_step || step % p->setup.every == 0 || drifted(p));
}

/* ---- decisions ---- */

static void refuse(MoePlaceDecision *d, MoeStatus why) {
    d->verdict = MOE_PLACE_REFUSED;
    snprintf(d->why, sizeof d->why, "%s", moe_status_message(why));
    d->why[strcspn(d->why, "\n")] = 0;
    moe_status_free(why);
}

/* The mean load of the last steps, rounded: [experts][sources]. */
static const int32_t *recent(MoePlacer *p, const MoePolicyAsk *ask) {
    size_t size = (size_t)p->setup.experts * (size_t)p->setup.sources;
    int n = ask->n_loads < GAIN_STEPS ? ask->n_loads : GAIN_STEPS;
    const int32_t *const *l = ask->loads + ask->n_loads - n;
    for (size_t i = 0; i < size; i++) {
        int64_t sum = n / 2;
        for (int k = 0; k < n; k++)
            sum += l[k][i];
        p->recent[i] = (int32_t)(sum / n);
    }
    return p->recent;
}

/* What the proposal is worth, by the last steps. */
static void weigh(MoePlacer *p, const MoePolicyAsk *ask, MoePlaceDecision *d) {
    d->arrivals = moe_place_map_arrivals(ask->now, &p->proposal);
    d->moves = moe_place_map_moves(ask->now, &p->proposal);
    if (p->gate.unweighed && p->gate.hysteresis == 0)
        return;
    const int32_t *load = recent(p, ask);
    MoePlaceStep before = price(p, ask->now, load), after = price(p, &p->proposal, load);
    d->before = before.imbalance;
    d->after = after.imbalance;
    d->gain = (before.total - after.total) * p->setup.every;
    d->cost = moe_place_move_seconds(p->setup.cost, ask->now, &p->proposal);
}

static void decide_layer(MoePlacer *p, int64_t step, int layer, MoePlaceMap *map,
                         MoePlaceDecision *d) {
    int window = p->setup.window, n = p->n < window ? (int)p->n : window;
    *d = (MoePlaceDecision){.verdict = MOE_PLACE_KEPT};
    for (int i = 0; i < n; i++) {
        p->ask_loads[i] = load_at(p, p->n - n + i, layer);
        p->ask_totals[i] = totals_at(p, p->n - n + i, layer);
    }
    MoePolicyAsk ask = {step, layer, map, p->ask_loads, p->ask_totals, n};
    moe_place_map_copy(&p->proposal, map);
    MoeStatus st = p->policy->propose(p->state, &ask, &p->proposal);
    if (!st)
        st = moe_place_map_check(&p->proposal, layer, p->policy->name);
    if (st) {
        refuse(d, st);
        return;
    }
    if (moe_place_map_equal(map, &p->proposal))
        return;
    weigh(p, &ask, d);
    if (p->gate.hysteresis > 0 && !(d->gain > p->gate.hysteresis * d->cost)) {
        d->verdict = MOE_PLACE_TOO_DEAR;
        return;
    }
    d->verdict = MOE_PLACE_CHANGED;
    moe_place_map_copy(map, &p->proposal);
}

void moe_placer_decide(MoePlacer *p, int64_t step, MoePlaceMap *maps, MoePlaceDecision *out) {
    MOE_ASSERT(p->n > 0, "decision at step %lld without a step observed", (long long)step);
    double start = moe_now();
    for (int l = 0; l < p->setup.layers; l++)
        decide_layer(p, step, l, &maps[l], &out[l]);
    p->n_since = 0;
    p->first = 0;
    p->seconds += moe_now() - start;
}
