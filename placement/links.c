/* Transfers on emulated links. An exchange's transfers are taken in the order of (both have started, distance around the
 * ring of ranks, sender): ties go round the ring as all-to-alls do, so that equal blocks fill all links. Each is put into
 * the first gap of its sender's outgoing and its receiver's incoming link. Exchanges go in the order in which they are
 * started: a later one may use gaps, but never delays an earlier one. */
#include "placement/links.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

/* The first span that ends after `time`. */
static size_t first_after(const MoeTimeline *t, double time) {
    size_t lo = 0, hi = t->n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (t->spans[mid].to > time)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

/* A gap that is too short by a rounding error is long enough. */
static double free_in(const MoeTimeline *t, double ready, double seconds) {
    seconds *= 1 - 1e-9;
    for (size_t i = first_after(t, ready); i < t->n && t->spans[i].from < ready + seconds; i++)
        ready = t->spans[i].to;
    return ready;
}

double moe_timeline_free(const MoeTimeline *a, const MoeTimeline *b, double ready, double seconds) {
    for (;;) {
        double at = free_in(b, free_in(a, ready, seconds), seconds);
        if (at == ready)
            return at;
        ready = at;
    }
}

MoeStatus moe_timeline_add(MoeTimeline *t, double from, double to) {
    if (!MOE_ROOM(t->spans, t->n, t->cap))
        return moe_error(MOE_E_NOMEM, "out of memory for emulated transfers");
    size_t first = 0, end;
    for (size_t hi = t->n; first < hi;) { /* the first span that touches or follows [from, to] */
        size_t mid = first + (hi - first) / 2;
        if (t->spans[mid].to < from)
            first = mid + 1;
        else
            hi = mid;
    }
    for (end = first; end < t->n && t->spans[end].from <= to; end++) {
        from = t->spans[end].from < from ? t->spans[end].from : from;
        to = t->spans[end].to > to ? t->spans[end].to : to;
    }
    memmove(t->spans + first + 1, t->spans + end, (t->n - end) * sizeof *t->spans);
    t->spans[first] = (MoeSpan){from, to};
    t->n = t->n - (end - first) + 1;
    return NULL;
}

void moe_timeline_forget(MoeTimeline *t, double time) {
    size_t n = 0;
    for (; n < t->n && t->spans[n].to < time; n++)
        t->before += t->spans[n].to - t->spans[n].from;
    t->n -= n;
    if (n && t->n)
        memmove(t->spans, t->spans + n, t->n * sizeof *t->spans);
}

double moe_timeline_busy(const MoeTimeline *t) {
    double sum = t->before;
    for (size_t i = 0; i < t->n; i++)
        sum += t->spans[i].to - t->spans[i].from;
    return sum;
}

void moe_timeline_free_all(MoeTimeline *t) {
    free(t->spans);
    *t = (MoeTimeline){0};
}

typedef enum { OUTGOING, INCOMING, N_DIRECTIONS } Direction;

typedef struct {
    double ready;
    int from, to, distance;
    int64_t bytes;
} Transfer;

struct MoeLinks {
    MoeCluster cluster;
    int n;
    MoeTimeline (*lines)[MOE_N_LINKS][N_DIRECTIONS]; /* by rank */
    Transfer *transfers;                             /* of one exchange: room for all pairs */
};

MoeStatus moe_links_create(const MoeCluster *cluster, MoeLinks **out) {
    MoeLinks *l = calloc(1, sizeof *l);
    size_t n = (size_t)moe_cluster_ranks(cluster);
    if (l) {
        l->cluster = *cluster;
        l->n = (int)n;
        l->lines = calloc(n, sizeof *l->lines);
        l->transfers = malloc(n * n * sizeof *l->transfers);
    }
    if (!l || !l->lines || !l->transfers) {
        moe_links_destroy(l);
        return moe_error(MOE_E_NOMEM, "out of memory for the emulated links of %zu ranks", n);
    }
    *out = l;
    return NULL;
}

void moe_links_destroy(MoeLinks *l) {
    if (!l)
        return;
    for (int r = 0; l->lines && r < l->n; r++)
        for (int k = 0; k < MOE_N_LINKS; k++)
            for (int d = 0; d < N_DIRECTIONS; d++)
                moe_timeline_free_all(&l->lines[r][k][d]);
    free(l->lines);
    free(l->transfers);
    free(l);
}

static int by_turn(const void *a, const void *b) {
    const Transfer *x = a, *y = b;
    if (x->ready != y->ready)
        return x->ready < y->ready ? -1 : 1;
    if (x->distance != y->distance)
        return x->distance - y->distance;
    return x->from - y->from;
}

/* The exchange's transfers in the order in which links are given to them. */
static size_t list_transfers(MoeLinks *l, const double *starts, const int64_t *bytes) {
    size_t n = 0;
    for (int p = 0; p < l->n; p++)
        for (int q = 0; q < l->n; q++)
            if (p != q && bytes[p * l->n + q] > 0)
                l->transfers[n++] =
                    (Transfer){.ready = starts[p] > starts[q] ? starts[p] : starts[q],
                               .from = p,
                               .to = q,
                               .distance = (q - p + l->n) % l->n,
                               .bytes = bytes[p * l->n + q]};
    qsort(l->transfers, n, sizeof *l->transfers, by_turn);
    return n;
}

static void later(double *t, double than) {
    if (*t < than)
        *t = than;
}

/* No rank starts anything before the earliest of `starts` any more. */
static void forget(MoeLinks *l, const double *starts, MoeTimeline *under_way) {
    double earliest = starts[0];
    for (int r = 1; r < l->n; r++)
        earliest = starts[r] < earliest ? starts[r] : earliest;
    for (int r = 0; r < l->n; r++)
        for (int k = 0; k < MOE_N_LINKS; k++)
            for (int d = 0; d < N_DIRECTIONS; d++)
                moe_timeline_forget(&l->lines[r][k][d], earliest);
    moe_timeline_forget(under_way, earliest);
}

MoeStatus moe_links_exchange(MoeLinks *l, const double *starts, const int64_t *bytes, int rank,
                             MoeLinkTimes *out, MoeTimeline *under_way) {
    forget(l, starts, under_way);
    size_t n = list_transfers(l, starts, bytes);
    for (int r = 0; r < l->n; r++)
        out[r] = (MoeLinkTimes){starts[r], starts[r]};
    for (size_t i = 0; i < n; i++) {
        const Transfer *t = &l->transfers[i];
        MoeLinkClass k = moe_cluster_link(&l->cluster, t->from, t->to);
        const MoeLink *link = &l->cluster.links[k];
        MoeTimeline *a = &l->lines[t->from][k][OUTGOING], *b = &l->lines[t->to][k][INCOMING];
        double seconds = (double)t->bytes / link->bandwidth;
        double at = moe_timeline_free(a, b, t->ready, seconds), end = at + link->latency + seconds;
        MOE_TRY(moe_timeline_add(a, at, at + seconds));
        MOE_TRY(moe_timeline_add(b, at, at + seconds));
        if (rank == t->from || rank == t->to)
            MOE_TRY(moe_timeline_add(under_way, at, end));
        later(&out[t->from].end, end);
        later(&out[t->to].end, end);
        later(&out[t->from].ready, t->ready);
        later(&out[t->to].ready, t->ready);
    }
    return NULL;
}
