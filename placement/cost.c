/* See cost.h. In: a map, counts, numbers of the layer. Out: seconds. One pass over slots and sources, no
 * allocation: policies call it while they search. */
#include "placement/cost.h"

#include <math.h>
#include <string.h>

#include "base/assert.h"
#include "base/mesh.h"

#define DEFAULT_FLOPS 1e12 /* of a cluster file without rates */

/* What a rank's links carry in one kind of exchange: tokens, rows, experts. */
typedef struct {
    double out[MOE_N_LINKS], in[MOE_N_LINKS];
} Traffic;

MoePlaceCost moe_place_cost_of(const MoeCluster *ep_group, const MoePlaceModel *m) {
    double weights = 3.0 * (double)m->hidden * (double)m->intermediate;
    double flops = ep_group->flops > 0 ? ep_group->flops : DEFAULT_FLOPS;
    return (MoePlaceCost){.cluster = *ep_group,
                          .top_k = m->top_k,
                          .exchanges = 4,
                          .row_seconds = 6 * weights / flops,
                          .token_bytes = 2.0 * m->element_bytes * (double)m->hidden,
                          .row_bytes = 2.0 * m->element_bytes * (double)m->hidden,
                          .copy_bytes = m->element_bytes * weights,
                          .root_bytes = 4 * weights,
                          .move_bytes = 4.0 * (1 + m->states) * weights};
}

static void send(Traffic *t, const MoeCluster *c, int from, int to, double n) {
    if (from == to || !(n > 0))
        return;
    MoeLinkClass k = moe_cluster_link(c, from, to);
    t[from].out[k] += n;
    t[to].in[k] += n;
}

/* What the busiest link of each class carries. */
static void busiest(const Traffic *t, int ranks, double out[MOE_N_LINKS]) {
    for (int k = 0; k < MOE_N_LINKS; k++) {
        out[k] = 0;
        for (int r = 0; r < ranks; r++) {
            out[k] = t[r].out[k] > out[k] ? t[r].out[k] : out[k];
            out[k] = t[r].in[k] > out[k] ? t[r].in[k] : out[k];
        }
    }
}

/* Seconds that the slowest class is busy with `bytes` for each of what is counted; *latency: the longest of a class that
 * carries anything. */
static double carried(const double most[MOE_N_LINKS], double bytes, const MoeCluster *c, double *latency) {
    double seconds = 0;
    *latency = 0;
    for (int k = 0; k < MOE_N_LINKS; k++) {
        if (!(most[k] > 0))
            continue;
        double busy = most[k] * bytes / c->links[k].bandwidth;
        seconds = busy > seconds ? busy : seconds;
        *latency = c->links[k].latency > *latency ? c->links[k].latency : *latency;
    }
    return seconds;
}

/* ---- rows ---- */

typedef struct {
    const MoePlaceMap *m;
    const int32_t *counts;
    const MoeSplitRun *runs;
    int sources;
    int first[MOE_MAX_RANKS + 1]; /* source of each rank, which has them up to the next one's, or a part of that one alone */
    int parts[MOE_MAX_RANKS];
    double tokens[MOE_MAX_RANKS]; /* of a source rank */
    double rows[MOE_MAX_RANKS];   /* that a rank computes */
    /* Of the rank that is looked at, by source rank: rows for it; the part of the tokens that are not wanted there. */
    double from[MOE_MAX_RANKS], stay[MOE_MAX_RANKS];
    Traffic there[MOE_MAX_RANKS], home[MOE_MAX_RANKS]; /* tokens; rows: counted, not bytes */
} Rows;

/* Rows that source rank p has, of an expert's counts. */
static inline double rows_of(const Rows *r, const int32_t *counts, int p) {
    if (r->parts[p] > 1)
        return (double)counts[r->first[p]] / r->parts[p];
    int64_t n = counts[r->first[p]];
    for (int s = r->first[p] + 1; s < r->first[p + 1]; s++)
        n += counts[s];
    return (double)n;
}

/* Which sources are whose, and how many tokens they have. With fewer sources than ranks one is several ranks', in equal parts. */
static void divide_sources(Rows *r, int top_k) {
    int64_t ranks = r->m->ranks, S = r->sources;
    for (int p = 0; p <= ranks; p++)
        r->first[p] = S < ranks ? (int)(p * S / ranks) : (int)((p * S + ranks - 1) / ranks);
    for (int p = 0; p < ranks; p++)
        r->parts[p] = S < ranks ? (int)(((r->first[p] + 1) * ranks + S - 1) / S - (r->first[p] * ranks + S - 1) / S) : 1;
    for (int e = 0; e < r->m->experts; e++) {
        const int32_t *c = r->counts + (size_t)e * (size_t)S;
        for (int p = 0; p < ranks; p++)
            r->tokens[p] += rows_of(r, c, p);
    }
    for (int p = 0; p < ranks; p++)
        r->tokens[p] /= top_k;
}

/* Takes in the rows that slot g computes, by source rank. */
static void add_slot(Rows *r, int g) {
    const MoePlaceMap *m = r->m;
    int e = m->expert[g];
    if (e < 0 || (!r->runs && m->primary[e] != g))
        return;
    const int32_t *c = r->counts + (size_t)e * (size_t)r->sources;
    double lo = r->runs ? r->runs[g].begin : 0, hi = r->runs ? r->runs[g].end : INFINITY, at = 0;
    for (int p = 0; p < m->ranks; p++) {
        double before = at;
        at += rows_of(r, c, p);
        double n = (at < hi ? at : hi) - (before > lo ? before : lo);
        if (n > 0) {
            r->from[p] += n;
            r->stay[p] *= n < r->tokens[p] ? 1 - n / r->tokens[p] : 0;
        }
        if (at >= hi) /* a copy's run is mostly of few sources */
            break;
    }
}

/* Looks at rank q. */
static void look_at(Rows *r, int q) {
    const MoePlaceMap *m = r->m;
    for (int p = 0; p < m->ranks; p++) {
        r->from[p] = 0;
        r->stay[p] = 1;
    }
    for (int g = q * m->slots; g < (q + 1) * m->slots; g++)
        add_slot(r, g);
}

/* What all ranks send to rank q. */
static void add_rank(Rows *r, const MoeCluster *cl, int q) {
    look_at(r, q);
    for (int p = 0; p < r->m->ranks; p++) {
        if (!(r->from[p] > 0))
            continue;
        r->rows[q] += r->from[p];
        send(r->there, cl, p, q, r->tokens[p] * (1 - r->stay[p]));
        send(r->home, cl, q, p, r->from[p]);
    }
}

/* ---- copies ---- */

double moe_place_copy_seconds(const MoePlaceCost *c, const MoePlaceMap *m) {
    Traffic t[MOE_MAX_RANKS];
    double most[MOE_N_LINKS], latency;
    memset(t, 0, (size_t)m->ranks * sizeof *t);
    for (int g = 0; g < m->ranks * m->slots; g++) {
        int e = m->expert[g];
        if (e >= 0 && m->primary[e] != g)
            send(t, &c->cluster, m->primary[e] / m->slots, g / m->slots, 1);
    }
    busiest(t, m->ranks, most); /* there and back over the same links: one count for both */
    double busy = carried(most, c->copy_bytes + c->root_bytes, &c->cluster, &latency);
    return busy + 2 * latency;
}

/* ---- a step ---- */

static void begin(Rows *r, int top_k, const MoePlaceMap *m, const int32_t *counts, int sources,
                  const MoeSplitRun *runs) {
    size_t n = (size_t)m->ranks;
    MOE_ASSERT(m->ranks <= MOE_MAX_RANKS, "a map of %d ranks", m->ranks);
    r->m = m;
    r->counts = counts;
    r->runs = runs;
    r->sources = sources;
    memset(r->there, 0, n * sizeof *r->there);
    memset(r->home, 0, n * sizeof *r->home);
    memset(r->rows, 0, n * sizeof *r->rows);
    memset(r->tokens, 0, n * sizeof *r->tokens);
    divide_sources(r, top_k > 0 ? top_k : 1);
}

void moe_place_flows(int top_k, const MoePlaceMap *m, const int32_t *counts, int sources, const MoeSplitRun *runs,
                     double *rows, double *there, double *home) {
    Rows r;
    int n = m->ranks;
    begin(&r, top_k, m, counts, sources, runs);
    for (int q = 0; q < n; q++) {
        look_at(&r, q);
        rows[q] = 0;
        for (int p = 0; p < n; p++) {
            rows[q] += r.from[p];
            there[p * n + q] = r.tokens[p] * (1 - r.stay[p]);
            home[q * n + p] = r.from[p];
        }
    }
}

MoePlaceTraffic moe_place_traffic(const MoeCluster *cluster, int top_k, const MoePlaceMap *m,
                                  const int32_t *counts, int sources, const MoeSplitRun *runs) {
    Rows r;
    begin(&r, top_k, m, counts, sources, runs);
    for (int q = 0; q < m->ranks; q++)
        add_rank(&r, cluster, q);
    MoePlaceTraffic t = {0};
    for (int q = 0; q < m->ranks; q++) {
        t.rows = r.rows[q] > t.rows ? r.rows[q] : t.rows;
        t.mean += r.rows[q] / m->ranks;
    }
    busiest(r.there, m->ranks, t.there);
    busiest(r.home, m->ranks, t.home);
    return t;
}

MoePlaceStep moe_place_price(const MoePlaceCost *c, const MoePlaceTraffic *t, double copies) {
    double latency, ignored;
    MoePlaceStep s = {.compute = t->rows * c->row_seconds,
                      .copies = copies,
                      .imbalance = t->mean > 0 ? t->rows / t->mean : 1};
    s.exchange = carried(t->there, c->token_bytes, &c->cluster, &latency) +
                 carried(t->home, c->row_bytes, &c->cluster, &ignored) + c->exchanges * latency;
    s.total = s.compute + (s.exchange + s.copies) * (1 - c->hidden);
    return s;
}

MoePlaceStep moe_place_step(const MoePlaceCost *c, const MoePlaceMap *m, const int32_t *counts, int sources,
                            const MoeSplitRun *runs) {
    MoePlaceTraffic t = moe_place_traffic(&c->cluster, c->top_k, m, counts, sources, runs);
    return moe_place_price(c, &t, moe_place_copy_seconds(c, m));
}

double moe_place_move_seconds(const MoePlaceCost *c, const MoePlaceMap *from, const MoePlaceMap *to) {
    Traffic t[MOE_MAX_RANKS];
    double most[MOE_N_LINKS], latency;
    memset(t, 0, (size_t)to->ranks * sizeof *t);
    for (int e = 0; e < to->experts; e++)
        send(t, &c->cluster, from->primary[e] / from->slots, to->primary[e] / to->slots, 1);
    busiest(t, to->ranks, most);
    double busy = carried(most, c->move_bytes, &c->cluster, &latency);
    return busy + latency;
}
