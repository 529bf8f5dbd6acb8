/* Where to look for changes. In: a map and the flow of one load over it. Out: changes to try. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "placement/policy_moec.h"

#define WORTH_IT 0.02 /* of the mean: what a copy must take over at least */

void moec_apply(Moec *m, const MoecChange *c) {
    int was = m->map.expert[c->at];
    m->map.expert[c->at] = c->gets;
    if (c->other >= 0) {
        m->map.expert[c->other] = was;
        return;
    }
    m->n_copies[c->gets]++;
    if (was >= 0)
        m->n_copies[was]--;
}

/* The experts with most rows on tight ranks: all their copies are there. Returns how many. */
static int find_experts(const MoeFlow *f, int32_t *out) {
    int n = 0;
    for (int i = 0; i < f->n_tight; i++)
        for (int g = f->tight[i] * f->slots; g < (f->tight[i] + 1) * f->slots; g++) {
            int e = f->copies[g], at = n;
            bool seen = e < 0 || f->amount[g] == 0;
            for (int j = 0; j < n && !seen; j++)
                seen = out[j] == e;
            if (seen || (n == MOEC_EXPERTS && f->rows[out[n - 1]] >= f->rows[e]))
                continue;
            at -= n == MOEC_EXPERTS;
            n += n < MOEC_EXPERTS;
            for (; at > 0 && f->rows[out[at - 1]] < f->rows[e]; at--)
                out[at] = out[at - 1];
            out[at] = e;
        }
    return n;
}

/* The ranks with the fewest rows that are not tight. Returns how many. */
static int find_targets(const Moec *m, const MoeFlow *f, int32_t *out) {
    int n = 0;
    for (int r = 0; r < f->ranks; r++) {
        int at = n;
        if (m->tight[r] || (n == MOEC_TARGETS && f->load[out[n - 1]] <= f->load[r]))
            continue;
        at -= n == MOEC_TARGETS;
        n += n < MOEC_TARGETS;
        for (; at > 0 && f->load[out[at - 1]] > f->load[r]; at--)
            out[at] = out[at - 1];
        out[at] = r;
    }
    return n;
}

/* A slot of the rank that is empty, or whose copy has least to do and is not the only one; nor the primary, if those `stay`. -1: none, or
 * no copies are wanted. */
static int spare_slot(const Moec *m, const int64_t *amount, int rank, bool stay) {
    int best = -1, slots = m->map.slots;
    for (int g = rank * slots; g < (rank + 1) * slots && m->copies; g++) {
        int e = m->map.expert[g];
        if (e < 0)
            return g;
        if (m->n_copies[e] > 1 && (best < 0 || amount[g] < amount[best]) &&
            (!stay || m->now->primary[e] / slots != rank))
            best = g;
    }
    return best;
}

/* The exchange of a slot of `from` with one of `to` whose difference is nearest to `want` rows, if nearer than *nearest. */
static void find_exchange(const Moec *m, const int64_t *amount, int from, int to, double want,
                          double *nearest, MoecChange *out) {
    int slots = m->map.slots;
    for (int g = from * slots; g < (from + 1) * slots; g++) {
        int e = m->map.expert[g];
        if (e < 0 || moe_policy_holds(&m->map, to, e))
            continue;
        for (int h = to * slots; h < (to + 1) * slots; h++) {
            int x = m->map.expert[h];
            double off = fabs((double)(amount[g] - amount[h]) - want);
            if (off >= *nearest || (x >= 0 && moe_policy_holds(&m->map, from, x)))
                continue;
            *nearest = off;
            *out = (MoecChange){h, e, g};
        }
    }
}

int moec_candidates(Moec *m, int k, MoecChange *out) {
    const MoeFlow *f = &m->flow[k];
    int32_t experts[MOEC_EXPERTS], targets[MOEC_TARGETS];
    memset(m->tight, 0, (size_t)f->ranks);
    for (int i = 0; i < f->n_tight; i++)
        m->tight[f->tight[i]] = 1;
    int n_experts = find_experts(f, experts), n_targets = find_targets(m, f, targets), n = 0;
    for (int t = 0; t < n_targets; t++) {
        int to = targets[t];
        double want = (double)(f->level - f->load[to]) * f->n_tight / (f->n_tight + 1),
               nearest = want;
        MoecChange swap = {.other = -1};
        for (int i = 0; i < f->n_tight; i++)
            find_exchange(m, f->amount, f->tight[i], to, want, &nearest, &swap);
        if (swap.other >= 0)
            out[n++] = swap;
        int any = spare_slot(m, f->amount, to, false), copy = spare_slot(m, f->amount, to, true);
        for (int i = 0; i < n_experts; i++) {
            if (moe_policy_holds(&m->map, to, experts[i]))
                continue;
            if (copy >= 0)
                out[n++] = (MoecChange){copy, experts[i], -1};
            if (any >= 0 && any != copy)
                out[n++] = (MoecChange){any, experts[i], -1};
        }
    }
    return n;
}

/* ---- many ranks ---- */

/* The rows of the copy in slot g go to the least loaded rank that has another. */
static void give_back(Moec *m, int g) {
    int e = m->map.expert[g], slots = m->map.slots, to = -1;
    if (e < 0 || m->amount[g] == 0)
        return;
    for (int h = 0; h < m->map.ranks * slots; h++)
        if (h != g && m->map.expert[h] == e && (to < 0 || m->load[h / slots] < m->load[to / slots]))
            to = h;
    m->load[to / slots] += m->amount[g];
    m->amount[to] += m->amount[g];
    m->load[g / slots] -= m->amount[g];
    m->amount[g] = 0;
}

/* The slot of a rank with most rows below `most`; -1 without one. */
static int largest(const Moec *m, int rank, int64_t most) {
    int best = -1;
    for (int g = rank * m->map.slots; g < (rank + 1) * m->map.slots; g++)
        if (m->amount[g] < most && m->amount[g] > 0 && (best < 0 || m->amount[g] > m->amount[best]))
            best = g;
    return best;
}

/* The least loaded rank that can take a copy of e into a slot with no more than `worth` rows; *at: that slot. -1: none. Ranks that can take
 * none at all leave the list. */
static int find_taker(Moec *m, int e, int64_t worth, int64_t full, int *at) {
    int best = -1, n = 0;
    for (int i = 0; i < m->n_takers; i++) {
        int r = m->takers[i], spare = -1;
        bool nearer = best < 0 || m->load[r] < m->load[best];
        if (m->load[r] >= full)
            continue;
        if (nearer) {
            spare = spare_slot(m, m->amount, r, true);
            if (spare < 0 || m->amount[spare] > worth)
                continue;
        }
        m->takers[n++] = r;
        if (nearer && !moe_policy_holds(&m->map, r, e)) {
            best = r;
            *at = spare;
        }
    }
    m->n_takers = n;
    return best;
}

/* One more copy of an expert of a rank, on the least loaded rank that can take it. */
static bool copy_away(Moec *m, int rank, int64_t mean) {
    int64_t worth = (int64_t)(WORTH_IT * (double)mean);
    for (int g = largest(m, rank, INT64_MAX); g >= 0; g = largest(m, rank, m->amount[g])) {
        int at = -1, to = find_taker(m, m->map.expert[g], worth, mean - worth, &at);
        if (to < 0)
            continue;
        int64_t shift = m->load[rank] - mean, room = mean - m->load[to];
        shift = shift < room ? shift : room;
        shift = shift < m->amount[g] ? shift : m->amount[g];
        if (shift <= worth)
            return false; /* smaller ones are worth less still */
        give_back(m, at);
        moec_apply(m, &(MoecChange){at, m->map.expert[g], -1});
        m->amount[g] -= shift;
        m->load[rank] -= shift;
        m->amount[at] = shift;
        m->load[to] += shift;
        return true;
    }
    return false;
}

/* The least loaded rank below the mean, -1 without one. It is remembered: others get below its rows only by an exchange with it, which changes
 * them. */
static int find_least(Moec *m, int64_t mean) {
    if (m->least >= 0 && m->load[m->least] == m->least_load)
        return m->least;
    int n = 0;
    m->least = -1;
    for (int i = 0; i < m->n_low; i++) {
        int r = m->low[i];
        if (m->load[r] >= mean)
            continue;
        m->low[n++] = r;
        if (m->least < 0 || m->load[r] < m->load[m->least])
            m->least = r;
    }
    m->n_low = n;
    m->least_load = m->least < 0 ? 0 : m->load[m->least];
    return m->least;
}

/* The best exchange of a rank's slot with one of the least loaded rank. */
static bool exchange_away(Moec *m, int rank, int64_t mean) {
    int to = find_least(m, mean);
    if (to < 0)
        return false;
    double want = (double)(m->load[rank] - m->load[to]) / 2,
           nearest = want - WORTH_IT * (double)mean;
    MoecChange swap = {.other = -1};
    find_exchange(m, m->amount, rank, to, want, &nearest, &swap);
    if (swap.other < 0)
        return false;
    int64_t more = m->amount[swap.other], less = m->amount[swap.at];
    moec_apply(m, &swap);
    m->amount[swap.at] = more;
    m->amount[swap.other] = less;
    m->load[to] += more - less;
    m->load[rank] -= more - less;
    if (m->load[rank] < mean)
        m->low[m->n_low++] = rank;
    return true;
}

/* Place in the list of givers of the one with most rows; -1: none is left. Who has enough to give no more leaves the list. */
static int find_busiest(Moec *m, int64_t enough) {
    int best = -1, n = 0;
    for (int i = 0; i < m->n_givers; i++) {
        int r = m->givers[i];
        if (m->load[r] <= enough)
            continue;
        m->givers[n] = r;
        if (best < 0 || m->load[r] > m->load[m->givers[best]])
            best = n;
        n++;
    }
    m->n_givers = n;
    return best;
}

int moec_relieve_all(Moec *m, int k, double above) {
    const MoeFlow *f = &m->flow[k];
    int64_t mean = (int64_t)m->mean[k], enough = mean + (int64_t)(above * m->mean[k]);
    int n = 0;
    memcpy(m->load, f->load, sizeof *m->load * (size_t)f->ranks);
    memcpy(m->amount, f->amount, sizeof *m->amount * (size_t)f->ranks * (size_t)f->slots);
    m->n_givers = m->n_low = 0;
    m->least = -1;
    for (int r = 0; r < f->ranks; r++)
        if (m->load[r] > enough)
            m->givers[m->n_givers++] = r;
        else if (m->load[r] < mean)
            m->low[m->n_low++] = r;
    m->n_takers = m->copies ? m->n_low : 0;
    memcpy(m->takers, m->low, sizeof *m->low * (size_t)m->n_takers);
    for (int tries = 0; tries < 4 * f->ranks; tries++) {
        int i = find_busiest(m, enough);
        if (i < 0)
            break;
        int busiest = m->givers[i];
        if (copy_away(m, busiest, mean) || exchange_away(m, busiest, mean))
            n++;
        else
            m->givers[i] = m->givers[--m->n_givers];
    }
    return n;
}
