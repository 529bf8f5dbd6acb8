/* When transfers run on emulated links: the rule of docs/CLUSTER.md, as arithmetic. Each rank keeps one of these and feeds
 * it the same numbers, so all find the same times. */
#ifndef MOE_PLACEMENT_LINKS_H
#define MOE_PLACEMENT_LINKS_H

#include <stddef.h>
#include <stdint.h>

#include "placement/cluster.h"

/* Times when something is busy: intervals in order, apart from each other. */
typedef struct {
    double from, to;
} MoeSpan;
typedef struct {
    MoeSpan *spans;
    size_t n, cap;
    double before; /* total length of spans that were forgotten */
} MoeTimeline;

/* The earliest t >= ready such that both are free in [t, t + seconds). */
double moe_timeline_free(const MoeTimeline *a, const MoeTimeline *b, double ready, double seconds);
/* MOE_E_NOMEM. */
MoeStatus moe_timeline_add(MoeTimeline *t, double from, double to);
/* Spans that end before `time` are only counted from now on. */
void moe_timeline_forget(MoeTimeline *t, double time);
double moe_timeline_busy(const MoeTimeline *t); /* total length */
void moe_timeline_free_all(MoeTimeline *t);

typedef struct MoeLinks MoeLinks;
MoeStatus moe_links_create(const MoeCluster *cluster, MoeLinks **out);
void moe_links_destroy(MoeLinks *l); /* NULL is fine */

/* What an exchange is for one rank; all times are emulated seconds. */
typedef struct {
    double end;   /* its last transfer has arrived; its own start if it has none */
    double ready; /* the last of the peers it has to do with has started; likewise */
} MoeLinkTimes;

/* Lays the next exchange's transfers on the links. starts[r]: rank r's clock when it started it; bytes[p * n + q]: what p
 * sends to q (what a rank sends to itself takes no time). out: by rank. under_way: the times at which a transfer of `rank`
 * is on its way are added to it. */
MoeStatus moe_links_exchange(MoeLinks *l, const double *starts, const int64_t *bytes, int rank,
                             MoeLinkTimes *out, MoeTimeline *under_way);

#endif
