/* Rows of a load trace, in whatever order they were read, put in order and checked: every step has every source of every layer. */
#include "placement/load_internal.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/mem.h"

#define MAX_COUNTS ((int64_t)1 << 31) /* of a trace: 8 GiB */

static int order_i64(int64_t a, int64_t b) {
    return (a > b) - (a < b);
}

/* By layer, then source: to number them. */
static int by_layer(const void *a, const void *b) {
    const MoeLoadRow *x = a, *y = b;
    int c = order_i64(x->layer, y->layer);
    return c ? c : order_i64(x->source, y->source);
}

static int by_step(const void *a, const void *b) {
    const MoeLoadRow *x = a, *y = b;
    int c = order_i64(x->step, y->step);
    c = c ? c : order_i64(x->place, y->place);
    c = c ? c : order_i64(x->source, y->source);
    c = c ? c : order_i64(x->file, y->file);
    return c ? c : order_i64(x->line, y->line);
}

/* A layer's number, and the ranks that the file gives its sources. */
typedef struct {
    int64_t layer;
    const MoeLoadRow *first; /* of its rows, sorted by layer: where an error is */
    int32_t *ranks;
    size_t n, cap;
} Layer;

typedef struct {
    Layer *items;
    size_t n, cap;
} Layers;

/* Rows sorted by layer get the layer's place and their source's. */
static Layers number_rows(MoeLoadRows *r, MoeArena *a) {
    Layers all = {0};
    for (size_t i = 0; i < r->n; i++) {
        MoeLoadRow *row = &r->rows[i];
        if (!all.n || all.items[all.n - 1].layer != row->layer)
            MOE_PUSH(a, all.items, all.n, all.cap, ((Layer){.layer = row->layer, .first = row}));
        Layer *l = &all.items[all.n - 1];
        if (!l->n || l->ranks[l->n - 1] != row->source)
            MOE_PUSH(a, l->ranks, l->n, l->cap, row->source);
        row->place = (int32_t)(all.n - 1);
        row->source = (int32_t)(l->n - 1);
    }
    return all;
}

static MoeStatus check_ranks(const MoeLoadRows *r, const Layers *all) {
    const Layer *a = &all->items[0];
    for (size_t i = 0; i < all->n; i++) {
        const Layer *b = &all->items[i];
        for (size_t k = 0; k < b->n && !r->sum; k++)
            if (b->ranks[k] != (int32_t)k)
                return moe_error(MOE_E_INPUT,
                                 "%s:%lld: layer %lld has rows of rank %d and none of rank %zu; "
                                 "number ranks from 0",
                                 r->files[b->first->file], (long long)b->first->line,
                                 (long long)b->layer, b->ranks[k], k);
        if (a->n != b->n)
            return moe_error(MOE_E_INPUT,
                             "%s:%lld: layer %lld has rows of %zu ranks, layer %lld of %zu; all "
                             "layers need as many",
                             r->files[b->first->file], (long long)b->first->line,
                             (long long)b->layer, b->n, (long long)a->layer, a->n);
    }
    return NULL;
}

/* The row i is not what comes next: (step, layer, source). */
static MoeStatus missing(const MoeLoadRows *r, size_t i, const Layers *all, int64_t step,
                         size_t layer, size_t source) {
    const Layer *l = &all->items[layer];
    const MoeLoadRow *at = &r->rows[i < r->n ? i : r->n - 1];
    return moe_error(MOE_E_INPUT,
                     "%s:%lld: step %lld, layer %lld, rank %d is missing%s; every step needs a row "
                     "for each layer and rank",
                     r->files[at->file], (long long)at->line, (long long)step, (long long)l->layer,
                     l->ranks[source],
                     i < r->n ? " before this line's row" : " after this line, the last");
}

static MoeStatus again(const MoeLoadRows *r, size_t i, const Layers *all) {
    const MoeLoadRow *x = &r->rows[i], *first = &r->rows[i - 1];
    return moe_error(MOE_E_INPUT,
                     "%s:%lld: step %lld, layer %lld, rank %d a second time (first on line %lld)",
                     r->files[x->file], (long long)x->line, (long long)x->step, (long long)x->layer,
                     all->items[x->place].ranks[x->source], (long long)first->line);
}

/* Walks the sorted rows beside what is expected. *steps: complete ones. */
static MoeStatus check_complete(MoeLoadRows *r, const Layers *all, int64_t *steps) {
    size_t sources = all->items[0].n, i = 0, kept = 0;
    int64_t first = r->rows[0].step;
    *steps = 0;
    for (int64_t step = first; i < r->n; step++) {
        for (size_t l = 0; l < all->n; l++)
            for (size_t s = 0; s < sources; s++) {
                const MoeLoadRow *x = &r->rows[i];
                if (i == r->n && r->growing && *steps) {
                    r->n = kept;
                    return NULL;
                }
                if (i == r->n || x->step != step || x->place != (int32_t)l ||
                    x->source != (int32_t)s)
                    return missing(r, i, all, step, l, s);
                for (i++; i < r->n && r->rows[i].step == step && r->rows[i].place == x->place &&
                          r->rows[i].source == x->source;
                     i++)
                    if (!r->sum)
                        return again(r, i, all);
            }
        kept = i;
        ++*steps;
    }
    return NULL;
}

static void sort(MoeLoadRows *r, int (*order)(const void *, const void *)) {
    for (size_t i = 1; i < r->n; i++)
        if (order(&r->rows[i - 1], &r->rows[i]) > 0) {
            qsort(r->rows, r->n, sizeof *r->rows, order);
            return;
        }
}

MoeStatus moe_load_arrange(MoeLoadRows *r, MoeArena *a, MoeLoad *out) {
    MOE_ASSERT(r->n, "a trace without rows");
    sort(r, by_layer);
    Layers all = number_rows(r, a);
    MOE_TRY(check_ranks(r, &all));
    sort(r, by_step);
    int64_t steps;
    MOE_TRY(check_complete(r, &all, &steps));
    if (steps > INT32_MAX || all.n > INT32_MAX)
        return moe_error(MOE_E_INPUT, "%s: %lld steps of %zu layers are too many", r->files[0],
                         (long long)steps, all.n);
    *out = (MoeLoad){.first_step = r->rows[0].step,
                     .steps = (int)steps,
                     .layers = (int)all.n,
                     .sources = (int)all.items[0].n,
                     .layer = MOE_NEW_N(a, int32_t, all.n)};
    for (size_t i = 0; i < all.n; i++)
        out->layer[i] = (int32_t)all.items[i].layer;
    return NULL;
}

MoeStatus moe_load_allocate(const char *path, MoeArena *a, MoeLoad *l) {
    int64_t n = 0;
    if (!moe_mul_i64((int64_t)l->steps * l->layers, (int64_t)l->sources * l->experts, &n) ||
        n > MAX_COUNTS)
        return moe_error(MOE_E_INPUT,
                         "%s: %d steps x %d layers x %d ranks x %d experts are more than the %lld "
                         "counts that are read; cut the trace",
                         path, l->steps, l->layers, l->sources, l->experts, (long long)MAX_COUNTS);
    l->counts = MOE_NEW_N(a, int32_t, n);
    return NULL;
}

int32_t *moe_load_cell(const MoeLoad *l, const MoeLoadRow *r) {
    int64_t at = ((r->step - l->first_step) * l->layers + r->place) * l->sources + r->source;
    return l->counts + at * l->experts;
}

MoeStatus moe_load_check_totals(const char *path, const MoeLoad *l) {
    for (int s = 0; s < l->steps; s++)
        for (int k = 0; k < l->layers; k++) {
            const int32_t *c = moe_load_at(l, s, k);
            int64_t total = 0;
            for (int64_t i = 0; i < (int64_t)l->sources * l->experts; i++)
                total += c[i];
            if (total > INT32_MAX)
                return moe_error(
                    MOE_E_INPUT,
                    "%s: step %lld, layer %d has %lld rows in all; at most %d can be placed", path,
                    (long long)(l->first_step + s), l->layer[k], (long long)total, INT32_MAX);
        }
    return NULL;
}
