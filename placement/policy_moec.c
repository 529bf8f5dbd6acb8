/* moec's own policy: placement, copies, splitting, prediction and the price of changes together.
 *
 * A map is judged by what the exact division (base/split_flow.h) makes of it with the loads of the last few steps and with that to
 * which they tend: the busiest rank's rows over the mean, averaged. Several loads, not their mean: a map must have slack for how
 * much load scatters. When that is worse than a tolerance, changes are tried one after another. The flow says which ranks
 * are tight and which experts are confined to them, so a change brings one of these out: a copy in an empty slot or in place of
 * another copy, or an exchange of two slots. Then the beginning of that sequence is taken which gains most after the price of
 * what arrives on a rank and of what moves. The policy is asked at each step: it can wait until a change pays, and what it has no
 * time for it does at the next. */
#include "placement/policy_moec.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    STEPS = 3,         /* the last ones, that a map is judged by */
    TREND = 3,         /* steps whose mean is compared with that of as many before */
    AHEAD = 1,         /* steps that the trend is followed */
    CHANGES = 64,      /* tried in one decision */
    WORK = 52000,      /* of a decision: flows times their size */
    SAMPLE_SIZE = 400, /* of flows: beyond, only two loads are looked at */
    MANY_RANKS = 8,    /* beyond, all ranks are relieved at once first; prices are of so many */
    ROUNDS = 5,        /* of that, */
};
#define TOLERANCE     0.02  /* a map this near to level is left alone */
#define WORSE         1.2   /* times what the busiest rank had too much: a rest ends early */
#define PRICE_ARRIVAL 0.01  /* imbalance that an expert new on a rank must save */
#define PRICE_MOVE    0.055 /* and more if its weights and states move there */

static MoeStatus create(const MoePolicySetup *s, void **out) {
    MoeArena *a = moe_arena_create();
    Moec *m = MOE_NEW(a, Moec);
    m->s = s;
    m->arena = a;
    for (int k = 0; k < MOEC_SAMPLES; k++)
        moe_flow_init(&m->flow[k], s->experts, s->ranks, s->slots,
                      moe_arena_alloc(a, (size_t)moe_flow_scratch(s->experts, s->ranks, s->slots)));
    m->n_copies = MOE_NEW_N(a, int32_t, s->experts);
    m->home = MOE_NEW_N(a, int32_t, s->experts);
    m->was = MOE_NEW_N(a, int32_t, s->experts);
    m->node = MOE_NEW_N(a, int32_t, s->ranks);
    for (int r = 0; r < s->ranks && s->cost->cluster.ranks_per_node > 0; r++)
        m->node[r] = r / s->cost->cluster.ranks_per_node;
    m->ahead = MOE_NEW_N(a, int32_t, s->experts);
    m->rest_until = MOE_NEW_N(a, int64_t, s->layers);
    m->rest_at = MOE_NEW_N(a, double, s->layers);
    m->changed_at = MOE_NEW_N(a, int64_t, s->layers);
    for (int l = 0; l < s->layers; l++)
        m->changed_at[l] = -1;
    m->tight = MOE_NEW_N(a, int8_t, s->ranks);
    m->between = MOE_NEW_N(a, int32_t, 2 * (size_t)s->ranks);
    m->load = MOE_NEW_N(a, int64_t, s->ranks);
    m->givers = MOE_NEW_N(a, int32_t, s->ranks);
    m->low = MOE_NEW_N(a, int32_t, s->ranks);
    m->takers = MOE_NEW_N(a, int32_t, s->ranks);
    m->amount = MOE_NEW_N(a, int64_t, (size_t)s->ranks * (size_t)s->slots);
    *out = m;
    MoeStatus st = moe_place_map_create(s->experts, s->ranks, s->slots, a, &m->map);
    return st ? st : moe_place_map_create(s->experts, s->ranks, s->slots, a, &m->best);
}

static void destroy(void *state) {
    moe_arena_destroy(((Moec *)state)->arena);
}

/* ---- judging ---- */

static double imbalance(const Moec *m, int k) {
    return m->mean[k] > 0 ? (double)m->flow[k].level / m->mean[k] : 1;
}

static double average(const Moec *m) {
    double sum = 0;
    for (int k = 0; k < m->n; k++)
        sum += imbalance(m, k);
    return sum / m->n;
}

static int flow_size(const Moec *m) {
    return m->s->experts + m->s->ranks * (m->s->slots + 1);
}

/* Divides load k anew, after map changed. */
static void again(Moec *m, int k) {
    moe_flow_again(&m->flow[k], m->map.expert);
    m->work -= flow_size(m);
}

static void all_again(Moec *m) {
    for (int k = 0; k < m->n; k++)
        again(m, k);
}

/* The load that the last steps lead to. */
static void follow_trend(Moec *m, const MoePolicyAsk *ask) {
    int n = ask->n_loads;
    for (int e = 0; e < m->s->experts; e++) {
        double late = 0, early = 0;
        for (int i = 1; i <= TREND; i++) {
            late += (double)ask->totals[n - i][e] / TREND;
            early += (double)ask->totals[n - TREND - i][e] / TREND;
        }
        double to = late + (late - early) * (AHEAD + TREND / 2.0) / TREND;
        m->ahead[e] = to > 0 ? (int32_t)fmin(to, 1e9) : 0;
    }
}

static void take_samples(Moec *m, const MoePolicyAsk *ask) {
    int steps = flow_size(m) > SAMPLE_SIZE ? 1 : STEPS;
    m->n = 0;
    if (ask->n_loads >= 2 * TREND) {
        follow_trend(m, ask);
        moe_flow_divide(&m->flow[m->n++], m->map.expert, m->ahead, 1);
    }
    for (int i = 1; i <= steps && i <= ask->n_loads; i++)
        moe_flow_divide(&m->flow[m->n++], m->map.expert, ask->totals[ask->n_loads - i], 1);
    for (int k = 0; k < m->n; k++) {
        m->mean[k] = 0;
        for (int e = 0; e < m->s->experts; e++)
            m->mean[k] += (double)m->flow[k].rows[e] / m->s->ranks;
    }
}

/* ---- prices ---- */

/* A row on the busiest rank: its compute, and its way on the slowest links as far as it shows. */
static double row_seconds(const MoePlaceCost *c) {
    const MoeLink *link = &c->cluster.links[c->cluster.nodes > 1 ? MOE_LINK_INTER : MOE_LINK_INTRA];
    return link->bandwidth > 0 ? c->row_seconds + (1 - c->hidden) * (c->token_bytes + c->row_bytes) / link->bandwidth : 0;
}

/* Copies on the busiest link between nodes. An expert's primary stays if it can, else it is where its last copy is. */
static int copies_between(const Moec *m, const MoePlaceMap *map) {
    int slots = map->slots, most = 0;
    int32_t *in = m->between, *out = in + map->ranks, *home = m->home;
    memset(in, 0, sizeof *in * 2 * (size_t)map->ranks);
    memset(home, 0xff, sizeof *home * (size_t)map->experts);
    for (int r = 0, g = 0; r < map->ranks; r++)
        for (int end = g + slots; g < end; g++) {
            int e = map->expert[g];
            if (e >= 0 && (home[e] < 0 || home[e] != m->was[e]))
                home[e] = r;
        }
    for (int r = 0, g = 0; r < map->ranks; r++)
        for (int end = g + slots; g < end; g++) {
            int e = map->expert[g];
            if (e < 0 || m->node[home[e]] == m->node[r])
                continue;
            int a = ++in[r], b = ++out[home[e]];
            most = a > most ? a : most;
            most = b > most ? b : most;
        }
    return most;
}

/* Ranks send and receive side by side: among many of them one expert's move counts less. And in large layers, which cannot try all there is
 * at each step, it counts less the longer a map was good enough: so long its successor may last. */
static void set_prices(Moec *m, const MoePolicyAsk *ask) {
    double scale = m->s->ranks > MANY_RANKS ? (double)MANY_RANKS / m->s->ranks : 1;
    int64_t *since = &m->changed_at[ask->layer];
    if (*since < 0)
        *since = ask->step;
    if (flow_size(m) > SAMPLE_SIZE)
        scale /= 1 + (double)(ask->step - *since) / m->s->every;
    m->price_arrival = scale * PRICE_ARRIVAL;
    m->price_move = scale * PRICE_MOVE;
    m->price_between = 0;
    const MoePlaceCost *c = m->s->cost;
    double row = row_seconds(c) * m->mean[0] / m->s->groups;
    if (c->cluster.nodes > 1 && row > 0)
        m->price_between = (1 - c->hidden) * (c->copy_bytes + c->root_bytes) /
                           c->cluster.links[MOE_LINK_INTER].bandwidth / row;
    for (int e = 0; e < m->s->experts; e++)
        m->was[e] = m->now->primary[e] / m->s->slots;
    m->between_now = m->price_between > 0 ? copies_between(m, ask->now) : 0;
}

/* What the map's copies cost at each step more than those of now. */
static double copies_cost(const Moec *m) {
    return m->price_between > 0 ? m->price_between * (copies_between(m, &m->map) - m->between_now) : 0;
}

/* Of the whole map as it is by now. */
static double price(const Moec *m) {
    int moves = 0;
    for (int e = 0; e < m->map.experts; e++)
        moves += !moe_policy_holds(&m->map, m->now->primary[e] / m->now->slots, e);
    return m->price_arrival * moe_place_map_arrivals(m->now, &m->map) + m->price_move * moves + copies_cost(m);
}

/* Of e's coming to a rank. */
static double arrival(const Moec *m, int rank, int e) {
    return e < 0 || moe_policy_holds(m->now, rank, e) ? 0 : m->price_arrival;
}

/* Of e's going from a rank. */
static double leaving(const Moec *m, int rank, int e) {
    return e >= 0 && m->now->primary[e] / m->now->slots == rank ? m->price_move : 0;
}

static double change_price(const Moec *m, const MoecChange *c) {
    int was = m->map.expert[c->at], rank = c->at / m->map.slots, other = c->other / m->map.slots;
    double p = arrival(m, rank, c->gets) + leaving(m, rank, was);
    return c->other < 0 ? p : p + arrival(m, other, was) + leaving(m, other, c->gets);
}

/* ---- the sequence ---- */

/* What a change would save after its price, and nothing else happens; -infinity if it saves nothing. copies: copies_cost before it. */
static double value(Moec *m, const MoecChange *c, int worst, double worst_before, double before,
                    double copies) {
    int was = m->map.expert[c->at];
    double p = change_price(m, c), v = -INFINITY;
    moec_apply(m, c);
    again(m, worst);
    double sum = imbalance(m, worst);
    if (sum < worst_before) {
        for (int k = 0; k < m->n; k++)
            if (k != worst) {
                again(m, k);
                sum += imbalance(m, k);
            }
        if (sum / m->n < before)
            v = before - sum / m->n - p - (copies_cost(m) - copies);
    }
    if (c->other >= 0) {
        m->map.expert[c->at] = was;
        m->map.expert[c->other] = c->gets;
    } else {
        m->map.expert[c->at] = was;
        m->n_copies[c->gets]--;
        if (was >= 0)
            m->n_copies[was]++;
    }
    return v;
}

/* Makes the best change for the load that fares worst; false if none saves anything. */
static bool change_one(Moec *m) {
    MoecChange all[MOEC_CHANGES], best = {0};
    int worst = 0;
    for (int k = 1; k < m->n; k++)
        worst = imbalance(m, k) > imbalance(m, worst) ? k : worst;
    double before = average(m), worst_before = imbalance(m, worst), most = -INFINITY,
           copies = copies_cost(m);
    int n = moec_candidates(m, worst, all);
    for (int i = 0; i < n && m->work > 0; i++) {
        double v = value(m, &all[i], worst, worst_before, before, copies);
        if (v > most) {
            most = v;
            best = all[i];
        }
    }
    if (most > -INFINITY)
        moec_apply(m, &best);
    all_again(m);
    return most > -INFINITY;
}

/* Keeps the map if it is the best so far. */
static void keep_best(Moec *m, double first, double *gain) {
    double here = first - average(m) - price(m);
    if (here > *gain) {
        *gain = here;
        moe_place_map_copy(&m->best, &m->map);
    }
}

static void count_copies(Moec *m) {
    memset(m->n_copies, 0, sizeof *m->n_copies * (size_t)m->map.experts);
    for (int g = 0; g < m->map.ranks * m->map.slots; g++)
        if (m->map.expert[g] >= 0)
            m->n_copies[m->map.expert[g]]++;
}

/* to so much more than the mean: less would often do, and costs less */
static const double relieve_to[ROUNDS] = {0.4, 0.2, 0.1, 0.05, 0.02};

/* Tries changes of the map of now; what is best so far goes to m->best. Returns what that gains after its price, 0 for nothing. */
static double sequence(Moec *m, bool copies) {
    double first = average(m), gain = 0;
    m->copies = copies;
    m->work = WORK;
    count_copies(m);
    for (int i = 0; i < ROUNDS && flow_size(m) > SAMPLE_SIZE; i++) {
        if (moec_relieve_all(m, 0, relieve_to[i]) == 0)
            continue;
        all_again(m);
        keep_best(m, first, &gain);
    }
    for (int i = 0; i < CHANGES && m->work > 0 && average(m) > 1; i++) {
        if (!change_one(m))
            break;
        keep_best(m, first, &gain);
    }
    return gain;
}

/* Rows of the busiest rank without copies, of load 0. */
static int64_t busiest_primaries(Moec *m) {
    int64_t most = 0;
    memset(m->load, 0, sizeof *m->load * (size_t)m->s->ranks);
    for (int e = 0; e < m->s->experts; e++) {
        int64_t *load = &m->load[m->best.primary[e] / m->s->slots];
        *load += m->flow[0].rows[e];
        most = *load > most ? *load : most;
    }
    return most;
}

/* Whether the rows that the best map's copies take from the busiest rank are worth what they send at each step, by the cost
 * model. */
static bool copies_pay(Moec *m) {
    const MoePlaceCost *c = m->s->cost;
    double exposed = 1 - c->hidden, row = row_seconds(c);
    if (!(c->row_seconds > 0) || !(row > 0))
        return true;
    moe_flow_again(&m->flow[0], m->best.expert);
    double saved = (double)(busiest_primaries(m) - m->flow[0].level) / m->s->groups;
    return saved * row >= exposed * moe_place_copy_seconds(c, &m->best);
}

static MoeStatus propose(void *state, const MoePolicyAsk *ask, MoePlaceMap *out) {
    Moec *m = state;
    m->now = ask->now;
    moe_place_map_copy(&m->map, ask->now);
    take_samples(m, ask);
    double first = average(m);
    int64_t *until = &m->rest_until[ask->layer];
    double *at = &m->rest_at[ask->layer];
    if (first <= 1 + TOLERANCE || (ask->step < *until && first - 1 <= WORSE * (*at - 1)))
        return NULL;
    set_prices(m, ask);
    double gain = sequence(m, true);
    if (gain > 0) {
        moe_place_map_settle(&m->best, ask->now);
        if (!copies_pay(m)) {
            moe_place_map_copy(&m->map, ask->now);
            all_again(m);
            gain = sequence(m, false);
        }
    }
    if (gain > 0) {
        moe_place_map_copy(out, &m->best);
        moe_place_map_settle(out, ask->now);
        m->changed_at[ask->layer] = ask->step;
    } else if (flow_size(m) > SAMPLE_SIZE) {
        *until = ask->step + m->s->every;
        *at = first;
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
