/* The exact division, with cuts anywhere: a bipartite flow. Experts send their rows to ranks that hold a copy, a rank takes at most
 * `level` rows. The least level at which all arrive is found by Newton's steps from below (Dinkelbach): when rows are stuck, the
 * ranks that they could reach by any exchange are all full, so the level must rise until these ranks alone can take them. */
#include "base/split.h"

#include <stddef.h>
#include <string.h>

#include "base/assert.h"
#include "base/split_internal.h"

static int64_t align16(int64_t n) {
    return (n + 15) / 16 * 16;
}

/* Lays the arrays out from base (NULL: only counts); returns the bytes. */
static int64_t lay_out(MoeSplitWork *w, char *base, int64_t experts, int64_t ranks, int64_t slots,
                       int64_t shards) {
    int64_t at = 0, cuts = ranks + 1;
#define PART(field, n)                                                                             \
    do {                                                                                           \
        if (base)                                                                                  \
            w->field = (void *)(base + at);                                                        \
        at += align16((int64_t)sizeof *w->field * (n));                                            \
    } while (0)
    PART(rows, experts);
    PART(left, experts);
    PART(load, ranks);
    PART(amount, ranks * slots);
    PART(first, experts + 1);
    PART(slot, ranks * slots);
    PART(order, experts);
    PART(queue, ranks);
    PART(via, ranks);
    PART(from, experts);
    PART(prefix, shards + 1);
    PART(saved, ranks);
    PART(edges, cuts * MOE_SPLIT_EDGES);
    PART(n_edges, cuts);
    PART(cost, cuts * MOE_SPLIT_EDGES);
    PART(best, cuts * MOE_SPLIT_EDGES);
#undef PART
    return at;
}

int64_t moe_split_scratch(int experts, int ranks, int slots, int shards) {
    MoeSplitWork w;
    return lay_out(&w, NULL, experts, ranks, slots, shards) + 15; /* scratch may lie anywhere */
}

/* Global slots by expert. */
static void index_copies(MoeSplitWork *w) {
    const MoeSplit *in = w->in;
    int global = in->ranks * in->slots;
    memset(w->first, 0, sizeof *w->first * ((size_t)in->experts + 1));
    for (int g = 0; g < global; g++)
        if (in->copies[g] >= 0) {
            MOE_ASSERT(in->copies[g] < in->experts, "slot %d holds expert %d of %d", g,
                       in->copies[g], in->experts);
            w->first[in->copies[g] + 1]++;
        }
    for (int e = 0; e < in->experts; e++)
        w->first[e + 1] += w->first[e];
    for (int g = 0; g < global; g++) /* first[e] runs to the end of e's slots ... */
        if (in->copies[g] >= 0)
            w->slot[w->first[in->copies[g]]++] = g;
    memmove(w->first + 1, w->first,
            sizeof *w->first * (size_t)in->experts); /* ... which is where the next one's begin */
    w->first[0] = 0;
}

/* Rows by expert; those with one copy go to it. Returns the rows of all. */
static int64_t gather_rows(MoeSplitWork *w) {
    const MoeSplit *in = w->in;
    memset(w->load, 0, sizeof *w->load * (size_t)in->ranks);
    memset(w->amount, 0, sizeof *w->amount * (size_t)in->ranks * (size_t)in->slots);
    w->n_order = 0;
    int64_t total = 0;
    for (int e = 0; e < in->experts; e++) {
        const int32_t *c = in->counts + (ptrdiff_t)e * in->shards;
        int64_t sum = 0;
        for (int v = 0; v < in->shards; v++)
            sum += c[v];
        MOE_ASSERT(sum <= INT32_MAX, "expert %d has %lld rows", e, (long long)sum);
        int copies = w->first[e + 1] - w->first[e];
        w->rows[e] = sum;
        w->left[e] = copies > 1 ? sum : 0;
        if (copies == 1) {
            int g = w->slot[w->first[e]];
            w->amount[g] = sum;
            w->load[g / in->slots] += sum;
        } else if (copies > 1 && sum > 0) {
            int at = w->n_order++;
            for (; at > 0 && w->rows[w->order[at - 1]] < sum; at--)
                w->order[at] = w->order[at - 1];
            w->order[at] = e;
        }
        total += copies ? sum : 0;
    }
    return total;
}

static int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

void moe_split_fill(MoeSplitWork *w, int e) {
    int slots = w->in->slots, lo = w->first[e], hi = w->first[e + 1];
    int64_t need = w->left[e], level = w->level;
    for (;;) { /* ranks above the level drop out, so it falls until it holds */
        int64_t sum = need, n = 0;
        for (int i = lo; i < hi; i++) {
            int64_t load = w->load[w->slot[i] / slots];
            if (load < level) {
                sum += load;
                n++;
            }
        }
        if (n == 0)
            return;
        int64_t next = ceil_div(sum, n);
        if (next >= level)
            break;
        level = next;
    }
    for (int i = lo; i < hi && need > 0; i++) {
        int64_t *load = &w->load[w->slot[i] / slots], take = level - *load;
        take = take > need ? need : take;
        if (take <= 0)
            continue;
        w->amount[w->slot[i]] += take;
        *load += take;
        need -= take;
    }
    w->left[e] = need;
}

/* The search meets expert e, which has rows to give (`from`, see MoeSplitWork): so it meets e's ranks. Returns one with room, or -1. */
static int meet(MoeSplitWork *w, int e, int from, int *n_queue) {
    w->from[e] = from;
    for (int i = w->first[e]; i < w->first[e + 1]; i++) {
        int g = w->slot[i], r = g / w->in->slots;
        if (w->via[r] >= 0)
            continue;
        w->via[r] = g;
        if (w->load[r] < w->level)
            return r;
        w->queue[(*n_queue)++] = r;
    }
    return -1;
}

/* Breadth first from the experts with rows left: a full rank that they could use has rows of other experts, which could go to their
 * other copies, and so on. Returns a rank with room; else -1, and queue[0, *n_queue) are all ranks within reach. */
static int search(MoeSplitWork *w, int *n_queue) {
    const MoeSplit *in = w->in;
    *n_queue = 0;
    for (int r = 0; r < in->ranks; r++)
        w->via[r] = -1;
    for (int i = 0; i < w->n_order; i++)
        w->from[w->order[i]] = -2;
    for (int i = 0, r; i < w->n_order; i++)
        if (w->left[w->order[i]] > 0 && (r = meet(w, w->order[i], -1, n_queue)) >= 0)
            return r;
    for (int head = 0, r; head < *n_queue; head++)
        for (int s = w->queue[head] * in->slots, end = s + in->slots; s < end; s++) {
            int e = in->copies[s];
            if (e < 0 || w->amount[s] == 0 || w->first[e + 1] - w->first[e] < 2 || w->from[e] != -2)
                continue;
            if ((r = meet(w, e, s, n_queue)) >= 0)
                return r;
        }
    return -1;
}

/* Sends rows along the path that the search found to `rank`. */
static void augment(MoeSplitWork *w, int rank) {
    const MoeSplit *in = w->in;
    int64_t n = w->level - w->load[rank];
    int e = in->copies[w->via[rank]];
    for (; w->from[e] >= 0; e = in->copies[w->via[w->from[e] / in->slots]])
        n = w->amount[w->from[e]] < n ? w->amount[w->from[e]] : n;
    n = w->left[e] < n ? w->left[e] : n;
    w->left[e] -= n;
    w->load[rank] += n;
    w->amount[w->via[rank]] += n;
    for (e = in->copies[w->via[rank]]; w->from[e] >= 0;) {
        int s = w->from[e], g = w->via[s / in->slots];
        w->amount[s] -= n;
        w->amount[g] += n;
        e = in->copies[g];
    }
}

/* All rows of experts with copies, at the least possible level. */
static void divide(MoeSplitWork *w) {
    for (;;) {
        for (int i = 0; i < w->n_order; i++)
            if (w->left[w->order[i]] > 0)
                moe_split_fill(w, w->order[i]);
        int n_queue, rank;
        while ((rank = search(w, &n_queue)) >= 0)
            augment(w, rank);
        int64_t stuck = 0;
        for (int i = 0; i < w->n_order; i++)
            stuck += w->left[w->order[i]];
        if (stuck == 0)
            return;
        w->level += ceil_div(stuck, n_queue);
    }
}

static void write_runs(const MoeSplitWork *w, MoeSplitRun *out) {
    const MoeSplit *in = w->in;
    memset(out, 0, sizeof *out * (size_t)in->ranks * (size_t)in->slots);
    for (int e = 0; e < in->experts; e++) {
        int32_t at = 0;
        for (int i = w->first[e]; i < w->first[e + 1]; i++) {
            int g = w->slot[i];
            out[g].begin = at;
            at += (int32_t)w->amount[g];
            out[g].end = at;
        }
    }
}

void moe_split(const MoeSplit *in, void *scratch, MoeSplitRun *out) {
    MOE_ASSERT(in->experts > 0 && in->ranks > 0 && in->slots > 0 && in->shards > 0 && in->grain > 0,
               "%d experts, %d ranks, %d slots, %d shards, grain %d", in->experts, in->ranks,
               in->slots, in->shards, in->grain);
    MoeSplitWork w = {.in = in};
    lay_out(&w, (char *)scratch + (16 - (uintptr_t)scratch % 16) % 16, in->experts, in->ranks,
            in->slots, in->shards);
    index_copies(&w);
    w.level = ceil_div(gather_rows(&w), in->ranks);
    if (w.n_order) {
        for (int r = 0; r < in->ranks; r++)
            w.level = w.load[r] > w.level ? w.load[r] : w.level;
        divide(&w);
        if (in->grain > 1)
            moe_split_to_edges(&w);
    }
    write_runs(&w, out);
}
