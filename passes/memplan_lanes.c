/* Lanes: places for values whose size is known only at run time (docs/RANKS.md, "Dropless").
 *
 * A lane has address space for the worst case of its largest value, and every value in it starts at its base, so the memory that
 * a lane touches is the largest live size of its values, whatever the routing. Which values share a lane is a colouring of their
 * lifetimes; the sum over lanes of the largest expected size is what the program is expected to touch. */
#include "passes/memplan.h"

#include <stdlib.h>

static int by_size(const void *a, const void *b) {
    const MoeElastic *x = *(MoeElastic *const *)a, *y = *(MoeElastic *const *)b;
    if (x->expect != y->expect)
        return x->expect < y->expect ? 1 : -1;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? 1 : -1;
    if (x->start != y->start)
        return x->start < y->start ? -1 : 1;
    return (x > y) - (x < y); /* of one array: the order given */
}

/* The first lane whose values, all placed before, do not live when v does. */
static size_t free_lane(MoeElastic *const *placed, size_t n, const MoeElastic *v, size_t n_lanes,
                        bool *taken) {
    for (size_t l = 0; l < n_lanes; l++)
        taken[l] = false;
    for (size_t i = 0; i < n; i++)
        if (placed[i]->start <= v->end && v->start <= placed[i]->end)
            taken[placed[i]->lane] = true;
    size_t l = 0;
    while (l < n_lanes && taken[l])
        l++;
    return l;
}

size_t moe_place_lanes(MoeElastic *v, size_t n, MoeLane **out, MoeArena *a) {
    MoeElastic **order = MOE_NEW_N(a, MoeElastic *, n);
    MoeLane *lanes = MOE_NEW_N(a, MoeLane, n);
    bool *taken = MOE_NEW_N(a, bool, n);
    size_t n_lanes = 0;
    for (size_t i = 0; i < n; i++)
        order[i] = &v[i];
    if (n)
        qsort(order, n, sizeof *order, by_size);
    for (size_t i = 0; i < n; i++) {
        MoeElastic *e = order[i];
        e->lane = free_lane(order, i, e, n_lanes, taken);
        MoeLane *l = &lanes[e->lane];
        n_lanes += e->lane == n_lanes;
        l->bytes = e->bytes > l->bytes ? e->bytes : l->bytes;
        l->expect = e->expect > l->expect ? e->expect : l->expect;
    }
    for (size_t i = 1; i < n_lanes; i++)
        lanes[i].offset = lanes[i - 1].offset + lanes[i - 1].bytes;
    *out = lanes;
    return n_lanes;
}
