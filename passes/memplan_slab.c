/* The slab: buffers of known size first, behind them lanes for those whose size is known only at run time (docs/RANKS.md,
 * "Dropless").
 *
 * A lane has address space for the worst case of its largest buffer, and every elastic buffer in it starts at its base, so what a
 * lane touches is the largest live size of its buffers, whatever the routing. Which buffers share a lane is a colouring of their
 * lifetimes; the sum over lanes of the largest expected size is what they are expected to touch.
 * Between its elastic buffers a lane is memory that is there anyway: buffers of known size that would raise the peak of the first
 * part move into lanes that have room for them during their whole life, as long as they end within the lane's expected size. */
#include "passes/memplan.h"

#include <stdlib.h>
#include <string.h>
#include "base/kernel_abi.h"

typedef struct {
    int64_t offset, bytes, expect;
    MoeSlabBuffer **held; /* by ascending offset: elastic ones begin at 0 */
    size_t n_held, cap_held;
} Lane;

typedef struct {
    MoeArena *a;
    Lane *lanes;
    size_t n_lanes;
    size_t *lane_of; /* by buffer, from 1; 0: in none */
} Lanes;

static bool together(const MoeSlabBuffer *x, const MoeSlabBuffer *y) {
    return x->start <= y->end && y->start <= x->end;
}

/* ---- elastic buffers ---- */

static int by_size(const void *a, const void *b) {
    const MoeSlabBuffer *x = *(MoeSlabBuffer *const *)a, *y = *(MoeSlabBuffer *const *)b;
    if (x->expect != y->expect)
        return x->expect < y->expect ? 1 : -1;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? 1 : -1;
    if (x->start != y->start)
        return x->start < y->start ? -1 : 1;
    return (x > y) - (x < y); /* of one array: the order given */
}

static bool is_free(const Lane *l, const MoeSlabBuffer *b) {
    for (size_t i = 0; i < l->n_held; i++)
        if (together(l->held[i], b))
            return false;
    return true;
}

/* The largest first, each into the first lane that is free while it lives. */
static void place_elastic(Lanes *s, MoeSlabBuffer *v, size_t n) {
    MoeSlabBuffer **order = MOE_NEW_N(s->a, MoeSlabBuffer *, n);
    size_t n_elastic = 0;
    for (size_t i = 0; i < n; i++)
        if (v[i].expect >= 0)
            order[n_elastic++] = &v[i];
    if (n_elastic)
        qsort(order, n_elastic, sizeof *order, by_size);
    s->lanes = MOE_NEW_N(s->a, Lane, n_elastic);
    for (size_t i = 0; i < n_elastic; i++) {
        MoeSlabBuffer *b = order[i];
        size_t k = 0;
        while (k < s->n_lanes && !is_free(&s->lanes[k], b))
            k++;
        s->n_lanes += k == s->n_lanes;
        Lane *l = &s->lanes[k];
        MOE_PUSH(s->a, l->held, l->n_held, l->cap_held, b);
        l->bytes = b->bytes > l->bytes ? b->bytes : l->bytes;
        l->expect = b->expect > l->expect ? b->expect : l->expect;
        b->offset = 0;
        s->lane_of[b - v] = k + 1;
    }
}

/* ---- guests in idle lanes ---- */

/* The lowest place in the lane for a buffer of known size, beside what others there need at worst; -1: none. */
static int64_t place_in_lane(const Lane *l, const MoeSlabBuffer *b) {
    int64_t at = 0;
    if (b->bytes > l->expect)
        return -1;
    for (size_t i = 0; i < l->n_held; i++) {
        const MoeSlabBuffer *h = l->held[i];
        if (!together(h, b))
            continue;
        if (at + b->bytes <= h->offset)
            break;
        if (h->offset + h->bytes > at)
            at = h->offset + h->bytes;
    }
    return at + b->bytes <= l->expect ? at : -1;
}

static bool move_to_lane(Lanes *s, MoeSlabBuffer *v, size_t i) {
    for (size_t k = 0; k < s->n_lanes; k++) {
        Lane *l = &s->lanes[k];
        int64_t at = place_in_lane(l, &v[i]);
        if (at < 0)
            continue;
        v[i].offset = at;
        s->lane_of[i] = k + 1;
        MOE_PUSH(s->a, l->held, l->n_held, l->cap_held, &v[i]);
        for (size_t h = l->n_held - 1; h > 0 && l->held[h - 1]->offset > at; h--) {
            l->held[h] = l->held[h - 1];
            l->held[h - 1] = &v[i];
        }
        return true;
    }
    return false;
}

/* By step: the bytes of the first part that live then. */
static int find_peak(const int64_t *live, int n_steps) {
    int peak = 0;
    for (int s = 1; s < n_steps; s++)
        peak = live[s] > live[peak] ? s : peak;
    return peak;
}

/* As long as the peak of the first part falls: the largest buffer of that moment that a lane can take. */
static void move_guests(Lanes *s, MoeSlabBuffer *v, size_t n, int n_steps) {
    int64_t *live = MOE_NEW_N(s->a, int64_t, n_steps + 1);
    bool *refused = MOE_NEW_N(s->a, bool, n);
    for (size_t i = 0; i < n; i++)
        for (int t = v[i].start; t <= v[i].end && v[i].expect < 0; t++)
            live[t] += v[i].bytes;
    while (n_steps) {
        int peak = find_peak(live, n_steps);
        size_t best = n;
        for (size_t i = 0; i < n; i++)
            if (v[i].expect < 0 && !s->lane_of[i] && !refused[i] && v[i].start <= peak &&
                peak <= v[i].end && (best == n || v[i].bytes > v[best].bytes))
                best = i;
        if (best == n)
            return;
        refused[best] = !move_to_lane(s, v, best);
        for (int t = v[best].start; t <= v[best].end && !refused[best]; t++)
            live[t] -= v[best].bytes;
    }
}

/* ---- both ---- */

static void find_bound(const MoeSlabBuffer *v, size_t n, int n_steps, MoeSlab *out, MoeArena *a) {
    MoeInterval *all = MOE_NEW_N(a, MoeInterval, n);
    for (size_t i = 0; i < n; i++)
        all[i] = (MoeInterval){.bytes = v[i].expect >= 0 ? v[i].expect : v[i].bytes,
                               .start = v[i].start,
                               .end = v[i].end};
    out->lower_bound = moe_place_lower_bound(all, n, n_steps, &out->peak);
}

/* Buffers in no lane. Returns their peak. */
static int64_t place_fixed(const Lanes *s, MoeSlabBuffer *v, size_t n, int n_steps) {
    MoeInterval *fixed = MOE_NEW_N(s->a, MoeInterval, n);
    size_t n_fixed = 0;
    for (size_t i = 0; i < n; i++)
        if (!s->lane_of[i])
            fixed[n_fixed++] =
                (MoeInterval){.bytes = v[i].bytes, .start = v[i].start, .end = v[i].end};
    int64_t bound = moe_place_lower_bound(fixed, n_fixed, n_steps, NULL),
            peak = moe_place(fixed, n_fixed, bound, s->a);
    n_fixed = 0;
    for (size_t i = 0; i < n; i++)
        if (!s->lane_of[i])
            v[i].offset = fixed[n_fixed++].offset;
    return peak;
}

MoeSlab moe_slab_place(MoeSlabBuffer *v, size_t n, int n_steps, MoeArena *a) {
    MoeSlab slab = {0};
    Lanes s = {.a = a, .lane_of = MOE_NEW_N(a, size_t, n)};
    find_bound(v, n, n_steps, &slab, a);
    place_elastic(&s, v, n);
    if (s.n_lanes)
        move_guests(&s, v, n, n_steps);
    int64_t seam = place_fixed(&s, v, n, n_steps) + MOE_BUFFER_SLACK;
    for (size_t k = 0; k < s.n_lanes; k++) {
        s.lanes[k].offset = slab.elastic_bytes;
        slab.elastic_bytes += s.lanes[k].bytes;
        slab.elastic_expect += s.lanes[k].expect;
    }
    for (size_t i = 0; i < n; i++)
        if (s.lane_of[i])
            v[i].offset += seam + s.lanes[s.lane_of[i] - 1].offset;
    slab.elastic_bytes += s.n_lanes ? MOE_BUFFER_SLACK : 0;
    slab.slab_bytes = seam + slab.elastic_bytes;
    return slab;
}
