/* moec's own policy: placement, copies, splitting, prediction and the price of changes together.
 *
 * A map is judged by what the exact division (base/split_flow.h) makes of it with each of the last few steps' loads: the busiest rank's
 * rows over the mean, averaged. Several steps, not their mean: a map must have slack for how much load scatters. When that is
 * worse than a tolerance, small changes are tried, one after another: the flow says which ranks are tight and which experts are confined
 * to them, so a change brings one of these out: a copy in an empty slot or in place of another copy, or an exchange of two slots. Then
 * the beginning of that sequence is taken which gains most after the price of what arrives on a rank and of what moves.
 * It is asked at each step, so it can wait until a change pays and need not do everything at once. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/split_flow.h"
#include "placement/policy.h"

enum {
    STEPS = 3,    /* the last ones, that a map is judged by */
    SAMPLES = 4,  /* and the load that their trend leads to */
    TREND = 4,    /* steps whose mean is compared with that of as many before */
    AHEAD = 1,    /* steps that the trend is followed */
    CHANGES = 64, /* in one decision at most */
    EXPERTS = 6,  /* that are tried, of those confined to tight ranks */
    TARGETS = 7,  /* ranks that are tried for each */
    WORK = 60000, /* of a decision: flows times their size */
    HORIZON = 50, /* steps that a change should last, when it is priced in seconds */
};
#define TOLERANCE     0.02  /* a map this near to level is left alone */
#define PRICE_ARRIVAL 0.01  /* imbalance that an expert new on a rank must save */
#define PRICE_MOVE    0.055 /* and more if its weights and states move there */

typedef struct {
    const MoePolicySetup *s;
    MoeArena *arena;
    MoeFlow flow[SAMPLES];
    double mean[SAMPLES];  /* rows of a rank */
    int n;                 /* samples */
    int work;              /* left of this decision */
    MoePlaceMap map, best; /* as changed so far; the best on the way */
    int32_t *n_copies;     /* [experts] in map */
    int8_t *tight;         /* [ranks] in the worst sample */
    int32_t *ahead;        /* [experts] what the trend leads to */
    int32_t *experts;      /* [EXPERTS] candidates */
    int32_t *targets;      /* [TARGETS] */
    int n_experts, n_targets;
} State;

/* Slot `at` gets expert `gets`, and if `other` >= 0 that slot gets what was in `at`. */
typedef struct {
    int at, gets, other;
    double value; /* imbalance saved less price */
    double imbalance;
} Change;

static MoeStatus create(const MoePolicySetup *s, void **out) {
    MoeArena *a = moe_arena_create();
    State *st = MOE_NEW(a, State);
    st->s = s;
    st->arena = a;
    for (int k = 0; k < SAMPLES; k++)
        moe_flow_init(&st->flow[k], s->experts, s->ranks, s->slots,
                      moe_arena_alloc(a, (size_t)moe_flow_scratch(s->experts, s->ranks, s->slots)));
    st->n_copies = MOE_NEW_N(a, int32_t, s->experts);
    st->tight = MOE_NEW_N(a, int8_t, s->ranks);
    st->ahead = MOE_NEW_N(a, int32_t, s->experts);
    st->experts = MOE_NEW_N(a, int32_t, EXPERTS);
    st->targets = MOE_NEW_N(a, int32_t, TARGETS);
    *out = st;
    MoeStatus status = moe_place_map_create(s->experts, s->ranks, s->slots, a, &st->map);
    return status ? status : moe_place_map_create(s->experts, s->ranks, s->slots, a, &st->best);
}

static void destroy(void *state) {
    moe_arena_destroy(((State *)state)->arena);
}

static double imbalance(const State *st, int k) {
    return st->mean[k] > 0 ? (double)st->flow[k].level / st->mean[k] : 1;
}

static double average(const State *st) {
    double sum = 0;
    for (int k = 0; k < st->n; k++)
        sum += imbalance(st, k);
    return sum / st->n;
}

/* The division anew after st->map changed. */
static void again(State *st, int k) {
    const MoePolicySetup *s = st->s;
    moe_flow_again(&st->flow[k], st->map.expert);
    st->work -= s->experts + s->ranks * (s->slots + 1);
}

static int worst_sample(const State *st) {
    int worst = 0;
    for (int k = 1; k < st->n; k++)
        worst = imbalance(st, k) > imbalance(st, worst) ? k : worst;
    return worst;
}

/* ---- what a change costs ---- */

static bool held(const State *st, const MoePlaceMap *now, int rank, int e) {
    (void)st;
    return moe_policy_holds(now, rank, e);
}

/* Of the whole map against that of now. */
static double price(const State *st, const MoePlaceMap *now, const MoePlaceMap *m) {
    int moves = 0;
    for (int e = 0; e < m->experts; e++)
        moves += !held(st, m, now->primary[e] / now->slots, e);
    return PRICE_ARRIVAL * moe_place_map_arrivals(now, m) + PRICE_MOVE * moves;
}

/* Of one more expert on a rank. */
static double price_arrival(const State *st, const MoePlaceMap *now, int rank, int e) {
    return e < 0 || held(st, now, rank, e) ? 0 : PRICE_ARRIVAL;
}

/* Of an expert's going from a rank. */
static double price_leaving(const MoePlaceMap *now, int rank, int e) {
    return e >= 0 && now->primary[e] / now->slots == rank ? PRICE_MOVE : 0;
}

static double change_price(const State *st, const MoePlaceMap *now, const Change *c) {
    int rank = c->at / now->slots, was = st->map.expert[c->at];
    double p = price_arrival(st, now, rank, c->gets) + price_leaving(now, rank, was);
    if (c->other >= 0)
        p += price_arrival(st, now, c->other / now->slots, was) +
             price_leaving(now, c->other / now->slots, c->gets);
    return p;
}

static void apply(State *st, const Change *c) {
    int was = st->map.expert[c->at];
    st->map.expert[c->at] = c->gets;
    if (c->other >= 0) {
        st->map.expert[c->other] = was;
        return;
    }
    st->n_copies[c->gets]++;
    if (was >= 0)
        st->n_copies[was]--;
}

static void undo(State *st, const Change *c, int was) {
    st->map.expert[c->at] = was;
    if (c->other >= 0) {
        st->map.expert[c->other] = c->gets;
        return;
    }
    st->n_copies[c->gets]--;
    if (was >= 0)
        st->n_copies[was]++;
}

/* Tries a change; keeps it in *best if it is better. */
static void try_change(State *st, const MoePlaceMap *now, int worst, double before, Change c,
                       Change *best) {
    if (st->work <= 0)
        return;
    int was = st->map.expert[c.at];
    double level = imbalance(st, worst), sum;
    c.value = -change_price(st, now, &c);
    apply(st, &c);
    again(st, worst);
    sum = imbalance(st, worst);
    if (sum < level) {
        for (int k = 0; k < st->n; k++)
            if (k != worst) {
                again(st, k);
                sum += imbalance(st, k);
            }
        c.imbalance = sum / st->n;
        c.value += before - c.imbalance;
        if (c.imbalance < before && c.value > best->value)
            *best = c;
    }
    undo(st, &c, was);
    for (int k = 0; k < st->n; k++)
        again(st, k);
}

/* ---- where to look ---- */

/* The experts with most rows on tight ranks: all their copies are there. */
static void find_experts(State *st, const MoeFlow *f) {
    st->n_experts = 0;
    for (int i = 0; i < f->n_tight; i++)
        for (int g = f->tight[i] * f->slots; g < (f->tight[i] + 1) * f->slots; g++) {
            int e = f->copies[g], at = st->n_experts, seen = 0;
            if (e < 0 || f->amount[g] == 0)
                continue;
            for (int j = 0; j < st->n_experts; j++)
                seen = seen || st->experts[j] == e;
            if (seen || (at == EXPERTS && f->rows[st->experts[at - 1]] >= f->rows[e]))
                continue;
            at -= at == EXPERTS;
            for (; at > 0 && f->rows[st->experts[at - 1]] < f->rows[e]; at--)
                st->experts[at] = st->experts[at - 1];
            st->experts[at] = e;
            st->n_experts += st->n_experts < EXPERTS;
        }
}

/* The ranks with the fewest rows. */
static void find_targets(State *st, const MoeFlow *f) {
    st->n_targets = 0;
    for (int r = 0; r < f->ranks; r++) {
        int at = st->n_targets;
        if (st->tight[r] || (at == TARGETS && f->load[st->targets[at - 1]] <= f->load[r]))
            continue;
        at -= at == TARGETS;
        for (; at > 0 && f->load[st->targets[at - 1]] > f->load[r]; at--)
            st->targets[at] = st->targets[at - 1];
        st->targets[at] = r;
        st->n_targets += st->n_targets < TARGETS;
    }
}

/* A slot of the rank that is empty, or whose copy has least to do and is not the only one; nor the primary, if those `stay`. */
static int spare_slot(const State *st, const MoePlaceMap *now, const MoeFlow *f, int rank,
                      bool stay) {
    int best = -1;
    for (int g = rank * f->slots; g < (rank + 1) * f->slots; g++) {
        int e = st->map.expert[g];
        if (e < 0)
            return g;
        if (st->n_copies[e] > 1 && (best < 0 || f->amount[g] < f->amount[best]) &&
            (!stay || now->primary[e] / now->slots != rank))
            best = g;
    }
    return best;
}

/* The exchange of a slot on a tight rank with one of `rank` that comes nearest to making them level. */
static bool find_exchange(const State *st, const MoeFlow *f, int rank, Change *out) {
    double want = (double)(f->level - f->load[rank]) * f->n_tight / (f->n_tight + 1),
           nearest = want;
    *out = (Change){.other = -1};
    for (int i = 0; i < f->n_tight; i++)
        for (int g = f->tight[i] * f->slots; g < (f->tight[i] + 1) * f->slots; g++) {
            int e = f->copies[g];
            if (e < 0 || moe_policy_holds(&st->map, rank, e))
                continue;
            for (int h = rank * f->slots; h < (rank + 1) * f->slots; h++) {
                int x = f->copies[h];
                double off = fabs((double)(f->amount[g] - f->amount[h]) - want);
                if (off >= nearest || (x >= 0 && moe_policy_holds(&st->map, f->tight[i], x)))
                    continue;
                nearest = off;
                *out = (Change){.at = h, .gets = e, .other = g};
            }
        }
    return out->other >= 0;
}

/* The best change there is, *out with value > -infinity if any. */
static void find_change(State *st, const MoePlaceMap *now, Change *out) {
    int worst = worst_sample(st);
    const MoeFlow *f = &st->flow[worst];
    double before = average(st);
    int32_t experts[EXPERTS], targets[TARGETS];
    out->value = -INFINITY;
    memset(st->tight, 0, (size_t)f->ranks);
    for (int i = 0; i < f->n_tight; i++)
        st->tight[f->tight[i]] = 1;
    find_experts(st, f);
    find_targets(st, f);
    memcpy(experts, st->experts, sizeof experts);
    memcpy(targets, st->targets, sizeof targets);
    for (int t = 0; t < st->n_targets; t++) {
        Change c;
        if (find_exchange(st, f, targets[t], &c))
            try_change(st, now, worst, before, c, out);
        for (int i = 0; i < st->n_experts; i++) {
            if (moe_policy_holds(&st->map, targets[t], experts[i]))
                continue;
            int any = spare_slot(st, now, f, targets[t], false),
                copy = spare_slot(st, now, f, targets[t], true);
            if (copy >= 0)
                try_change(st, now, worst, before, (Change){copy, experts[i], -1, 0, 0}, out);
            if (any >= 0 && any != copy)
                try_change(st, now, worst, before, (Change){any, experts[i], -1, 0, 0}, out);
        }
    }
}

/* The loads that maps are judged by; the trend's if there are steps enough. */
static void take_samples(State *st, const MoePolicyAsk *ask) {
    const MoePolicySetup *s = st->s;
    int n = ask->n_loads;
    st->n = 0;
    if (n >= 2 * TREND) {
        for (int e = 0; e < s->experts; e++) {
            double late = 0, early = 0;
            for (int i = 1; i <= TREND; i++) {
                late += (double)ask->totals[n - i][e] / TREND;
                early += (double)ask->totals[n - TREND - i][e] / TREND;
            }
            double to = late + (late - early) * (AHEAD + TREND / 2.0) / TREND;
            st->ahead[e] = to > 0 ? (int32_t)(to < 1e9 ? to : 1e9) : 0;
        }
        moe_flow_divide(&st->flow[st->n++], st->map.expert, st->ahead, 1);
    }
    for (int k = 1; k <= STEPS && k <= n; k++)
        moe_flow_divide(&st->flow[st->n++], st->map.expert, ask->totals[n - k], 1);
    for (int k = 0; k < st->n; k++) {
        st->mean[k] = 0;
        for (int e = 0; e < s->experts; e++)
            st->mean[k] += (double)st->flow[k].rows[e] / s->ranks;
    }
}

static MoeStatus propose(void *state, const MoePolicyAsk *ask, MoePlaceMap *out) {
    State *st = state;
    const MoePolicySetup *s = st->s;
    st->work = WORK;
    moe_place_map_copy(&st->map, ask->now);
    moe_place_map_copy(&st->best, ask->now);
    take_samples(st, ask);
    double first = average(st), gain = 0;
    if (first <= 1 + TOLERANCE)
        return NULL;
    memset(st->n_copies, 0, sizeof *st->n_copies * (size_t)s->experts);
    for (int g = 0; g < s->ranks * s->slots; g++)
        if (st->map.expert[g] >= 0)
            st->n_copies[st->map.expert[g]]++;
    for (int i = 0; i < CHANGES && st->work > 0; i++) {
        Change c;
        find_change(st, ask->now, &c);
        if (c.value == -INFINITY)
            break;
        apply(st, &c);
        for (int k = 0; k < st->n; k++)
            again(st, k);
        double here = first - average(st) - price(st, ask->now, &st->map);
        if (here > gain) {
            gain = here;
            moe_place_map_copy(&st->best, &st->map);
        }
        if (average(st) <= 1)
            break;
    }
    if (gain > 0) {
        moe_place_map_copy(out, &st->best);
        moe_place_map_settle(out, ask->now);
    }
    return NULL;
}

const MoePolicy moe_policy_moec = {
    .name = "moec",
    .doc = "moec's own: copies, exchanges and splitting by the exact division of the last loads, "
           "with a price for what moves",
    .each_step = true,
    .may_replicate = true,
    .create = create,
    .propose = propose,
    .destroy = destroy,
};
