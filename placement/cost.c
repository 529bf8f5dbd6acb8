/* See cost.h. In: a map, counts, numbers of the layer. Out: seconds. One pass over slots and sources, no
 * allocation: policies call it while they search. */
#include "placement/cost.h"

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

/* Ranks are many, sources often fewer: what goes by rank alone is walked in runs of ranks whose parts of a source are the same. A source with several
 * ranks, or the sources of one rank, are a unit. */
typedef struct {
    const MoePlaceMap *m;
    const int32_t *counts;
    const MoeSplitRun *runs;
    int sources, units;
    int first[MOE_MAX_RANKS + 1]; /* source of a unit, which ends where the next one begins */
    int rank[MOE_MAX_RANKS + 1];  /* likewise its first rank */
    double tokens[MOE_MAX_RANKS]; /* of a source rank */
    double rows[MOE_MAX_RANKS];   /* that a rank computes */
    /* Of the rank that is looked at, by source rank: rows for it; the part of the tokens that are not wanted there. Source ranks outside [begin,
     * end) have nothing for it: 0 and 1. */
    double from[MOE_MAX_RANKS], stay[MOE_MAX_RANKS];
    int begin, end;
    Traffic there[MOE_MAX_RANKS], home[MOE_MAX_RANKS]; /* tokens; rows: counted, not bytes */
} Rows;

/* Rows that a unit has, of an expert's counts. */
static inline int64_t rows_of(const Rows *r, const int32_t *counts, int unit) {
    int64_t n = counts[r->first[unit]];
    for (int s = r->first[unit] + 1; s < r->first[unit + 1]; s++)
        n += counts[s];
    return n;
}

/* Which sources are whose, and how many tokens they have. With fewer sources than ranks one is several ranks', in equal parts. */
static void divide_sources(Rows *r, int top_k) {
    int64_t ranks = r->m->ranks, S = r->sources, units = S < ranks ? S : ranks;
    r->units = (int)units;
    for (int64_t u = 0; u <= units; u++) {
        r->first[u] = (int)((u * S + units - 1) / units);
        r->rank[u] = (int)((u * ranks + units - 1) / units);
    }
    for (int u = 0; u < units; u++) {
        int64_t n = 0;
        for (int e = 0; e < r->m->experts; e++)
            n += rows_of(r, r->counts + (size_t)e * (size_t)S, u);
        for (int p = r->rank[u]; p < r->rank[u + 1]; p++)
            r->tokens[p] = (double)n / (r->rank[u + 1] - r->rank[u]) / top_k;
    }
}

/* Takes in n rows that each rank of [first, end) has for the rank that is looked at. */
static void add_rows(Rows *r, int first, int end, double n) {
    if (first >= end || !(n > 0))
        return;
    for (int p = first; p < end; p++) {
        r->from[p] += n;
        r->stay[p] *= n < r->tokens[p] ? 1 - n / r->tokens[p] : 0;
    }
    r->begin = first < r->begin ? first : r->begin;
    r->end = end > r->end ? end : r->end;
}

/* Takes in the rows [lo, hi) of the n that a unit has of an expert: consecutive ones are a rank's. */
static void add_unit(Rows *r, int unit, double n, double lo, double hi) {
    int first = r->rank[unit], parts = r->rank[unit + 1] - first;
    double each = n / parts;
    int i = (int)(lo / each), k = (int)(hi / each); /* the ranks that have the ends */
    i = i < parts ? i : parts - 1;
    k = k < parts ? k : parts;
    if (i == k) {
        add_rows(r, first + i, first + i + 1, hi - lo);
        return;
    }
    add_rows(r, first + i, first + i + 1, (i + 1) * each - lo);
    add_rows(r, first + i + 1, first + k, each);
    if (k < parts)
        add_rows(r, first + k, first + k + 1, hi - k * each);
}

/* Takes in the rows that slot g computes, by source rank. */
static void add_slot(Rows *r, int g) {
    const MoePlaceMap *m = r->m;
    int e = m->expert[g];
    if (e < 0 || (!r->runs && m->primary[e] != g))
        return;
    const int32_t *c = r->counts + (size_t)e * (size_t)r->sources;
    int64_t lo = r->runs ? r->runs[g].begin : 0, hi = r->runs ? r->runs[g].end : INT64_MAX, at = 0;
    for (int u = 0; u < r->units && at < hi; u++) { /* a copy's run is mostly of few sources */
        int64_t n = rows_of(r, c, u), end = at + n;
        if (n > 0 && end > lo)
            add_unit(r, u, (double)n, (double)(lo > at ? lo - at : 0), (double)(end < hi ? n : hi - at));
        at = end;
    }
}

/* Looks at rank q. */
static void look_at(Rows *r, int q) {
    const MoePlaceMap *m = r->m;
    for (int p = r->begin; p < r->end; p++) {
        r->from[p] = 0;
        r->stay[p] = 1;
    }
    r->begin = m->ranks;
    r->end = 0;
    for (int g = q * m->slots; g < (q + 1) * m->slots; g++)
        add_slot(r, g);
}

/* What ranks [first, end), to which q has links of one class, send to it. Nothing goes over links from q to itself. */
static void add_links(Rows *r, int q, int first, int end, MoeLinkClass k) {
    first = first > r->begin ? first : r->begin;
    end = end < r->end ? end : r->end;
    double tokens = 0, rows = 0;
    for (int p = first; p < end; p++) {
        double n = r->tokens[p] * (1 - r->stay[p]);
        r->there[p].out[k] += n;
        r->home[p].in[k] += r->from[p];
        tokens += n;
        rows += r->from[p];
    }
    r->there[q].in[k] += tokens;
    r->home[q].out[k] += rows;
    r->rows[q] += rows;
}

/* What all ranks send to rank q. */
static void add_rank(Rows *r, const MoeCluster *cl, int q) {
    look_at(r, q);
    int node = q - q % cl->ranks_per_node, next = node + cl->ranks_per_node;
    r->rows[q] += r->from[q];
    add_links(r, q, 0, node, MOE_LINK_INTER);
    add_links(r, q, node, q, MOE_LINK_INTRA);
    add_links(r, q, q + 1, next, MOE_LINK_INTRA);
    add_links(r, q, next, r->m->ranks, MOE_LINK_INTER);
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
    r->begin = 0;
    r->end = m->ranks;
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
