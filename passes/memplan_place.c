/* Placement of buffers in one slab: dynamic storage allocation with known lifetimes (NP-hard; Garey and Johnson).
 *
 * Best fit and lowest fit over the buffers in a fixed order, for several orders (size, size x life, life, start); the best
 * is kept and, while more than 1% above the lower bound, improved by seeded random moves and swaps in its order. */
#include "passes/memplan.h"

#include <stdlib.h>
#include <string.h>
#include "base/assert.h"
#include "base/rng.h"

#define MAX_MOVES 1000
#define WORK_BUDGET                                                                                \
    100000000.0 /* buffer pairs looked at by all moves: about a quarter of a second */

int64_t moe_place_lower_bound(const MoeInterval *v, size_t n, int n_steps, int *out_step) {
    int64_t *delta = calloc((size_t)n_steps + 1, sizeof *delta);
    MOE_ASSERT(delta, "memplan: out of memory for %d steps", n_steps);
    for (size_t i = 0; i < n; i++) {
        delta[v[i].start] += v[i].bytes;
        delta[v[i].end + 1] -= v[i].bytes;
    }
    int64_t live = 0, peak = 0;
    int step = 0;
    for (int s = 0; s < n_steps; s++) {
        live += delta[s];
        if (live > peak) {
            peak = live;
            step = s;
        }
    }
    free(delta);
    if (out_step)
        *out_step = step;
    return peak;
}

typedef struct {
    const MoeInterval *v;
    int32_t *placed; /* indices by ascending offset */
    int64_t *offset; /* by index */
    size_t n;
    bool lowest; /* the lowest gap that fits, not the tightest */
} Try;

/* Places in this order; returns the peak, or `stop` as soon as it is reached. */
static int64_t place_in_order(Try *t, const int32_t *order, int64_t stop) {
    size_t n_placed = 0;
    int64_t peak = 0;
    for (size_t i = 0; i < t->n; i++) {
        const MoeInterval *b = &t->v[order[i]];
        int64_t end = 0, best = -1, best_gap = INT64_MAX;
        for (size_t k = 0; k < n_placed; k++) {
            const MoeInterval *p = &t->v[t->placed[k]];
            if (p->end < b->start || p->start > b->end)
                continue;
            int64_t off = t->offset[t->placed[k]], gap = off - end;
            if (gap >= b->bytes && (t->lowest ? best < 0 : gap < best_gap)) {
                best_gap = gap;
                best = end;
            }
            if (off + p->bytes > end)
                end = off + p->bytes;
        }
        if (best < 0)
            best = end;
        t->offset[order[i]] = best;
        if (best + b->bytes > peak)
            peak = best + b->bytes;
        if (peak >= stop)
            return stop;
        size_t at = n_placed++;
        while (at > 0 && t->offset[t->placed[at - 1]] > best) {
            t->placed[at] = t->placed[at - 1];
            at--;
        }
        t->placed[at] = order[i];
    }
    return peak;
}

enum { BY_SIZE, BY_AREA, BY_LIFE, BY_START, N_ORDERS };

typedef struct {
    double key;
    int32_t index;
} Keyed;

static int compare_keyed(const void *x, const void *y) {
    const Keyed *a = x, *b = y;
    if (a->key != b->key)
        return a->key > b->key ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

static void make_order(const MoeInterval *v, size_t n, int how, Keyed *tmp, int32_t *order) {
    for (size_t i = 0; i < n; i++) {
        double life = v[i].end - v[i].start + 1, size = (double)v[i].bytes;
        double key = how == BY_SIZE   ? size
                     : how == BY_AREA ? size * life
                     : how == BY_LIFE ? life
                                      : -v[i].start;
        tmp[i] = (Keyed){key, (int32_t)i};
    }
    qsort(tmp, n, sizeof *tmp, compare_keyed);
    for (size_t i = 0; i < n; i++)
        order[i] = tmp[i].index;
}

int64_t moe_place(MoeInterval *v, size_t n, int64_t lower_bound, MoeArena *a) {
    if (n == 0)
        return 0;
    Try t = {v, MOE_NEW_N(a, int32_t, n), MOE_NEW_N(a, int64_t, n), n, false};
    int32_t *order = MOE_NEW_N(a, int32_t, n), *best_order = MOE_NEW_N(a, int32_t, n);
    Keyed *tmp = MOE_NEW_N(a, Keyed, n);
    int64_t peak = INT64_MAX;
    bool lowest = false;
    for (int how = 0; how < 2 * N_ORDERS && peak > lower_bound; how++) {
        make_order(v, n, how / 2, tmp, order);
        t.lowest = how % 2;
        int64_t p = place_in_order(&t, order, peak);
        if (p < peak) {
            peak = p;
            lowest = t.lowest;
            memcpy(best_order, order, n * sizeof *order);
            for (size_t i = 0; i < n; i++)
                v[i].offset = t.offset[i];
        }
    }
    t.lowest = lowest;
    double moves = WORK_BUDGET / ((double)n * (double)n / 4 + 1);
    int max_moves = moves > MAX_MOVES ? MAX_MOVES : (int)moves;
    for (int s = 0; s < max_moves && n > 1 && (double)peak > 1.01 * (double)lower_bound; s++) {
        size_t i = (size_t)moe_rng_below(1, 0, (uint64_t)s, n);
        if (s % 2 ==
            0) /* a buffer that reaches the peak: placed earlier, it may come to lie lower */
            for (size_t k = 0; k < n; k++)
                if (v[best_order[k]].offset + v[best_order[k]].bytes == peak)
                    i = k;
        size_t j = (size_t)moe_rng_below(1, 1, (uint64_t)s, i > 0 && s % 2 == 0 ? i : n);
        memcpy(order, best_order, n * sizeof *order);
        if (s % 4 < 2) { /* to another turn, */
            if (i > j)
                memmove(order + j + 1, order + j, (i - j) * sizeof *order);
            else
                memmove(order + i, order + i + 1, (j - i) * sizeof *order);
            order[j] = best_order[i];
        } else { /* or the two change turns */
            order[i] = best_order[j];
            order[j] = best_order[i];
        }
        int64_t p = place_in_order(&t, order, peak + 1);
        if (p > peak)
            continue;
        peak = p; /* an equal peak is taken too: it moves the search on */
        memcpy(best_order, order, n * sizeof *order);
        for (size_t k = 0; k < n; k++)
            v[k].offset = t.offset[k];
    }
    return peak;
}
