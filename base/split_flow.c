/* See split_flow.h. The least level is found by Newton's steps from below (Dinkelbach): when rows are stuck, the ranks that they could
 * reach by any exchange are all full, so the level must rise until these ranks alone can take them. */
#include "base/split_flow.h"

#include <stddef.h>
#include <string.h>

#include "base/assert.h"

static int64_t align16(int64_t n) {
    return (n + 15) / 16 * 16;
}

/* Lays the arrays out from base (NULL: only counts); returns the bytes. */
static int64_t lay_out(MoeFlow *f, char *base, int64_t experts, int64_t ranks, int64_t slots) {
    int64_t at = 0;
#define PART(field, n)                                                                             \
    do {                                                                                           \
        if (base)                                                                                  \
            f->field = (void *)(base + at);                                                        \
        at += align16((int64_t)sizeof *f->field * (n));                                            \
    } while (0)
    PART(rows, experts);
    PART(left, experts);
    PART(load, ranks);
    PART(amount, ranks * slots);
    PART(first, experts + 1);
    PART(slot, ranks * slots);
    PART(order, experts);
    PART(tight, ranks);
    PART(queue, ranks);
    PART(via, ranks);
    PART(from, experts);
    PART(held, ranks * slots);
#undef PART
    return at;
}

int64_t moe_flow_scratch(int experts, int ranks, int slots) {
    MoeFlow f;
    return lay_out(&f, NULL, experts, ranks, slots) + 15;
}

void moe_flow_init(MoeFlow *f, int experts, int ranks, int slots, void *scratch) {
    *f = (MoeFlow){.experts = experts, .ranks = ranks, .slots = slots};
    lay_out(f, (char *)scratch + (16 - (uintptr_t)scratch % 16) % 16, experts, ranks, slots);
}

static int copies_of(const MoeFlow *f, int e) {
    return f->first[e + 1] - f->first[e];
}

/* Global slots by expert. */
static void index_copies(MoeFlow *f) {
    int global = f->ranks * f->slots;
    memset(f->first, 0, sizeof *f->first * ((size_t)f->experts + 1));
    for (int g = 0; g < global; g++)
        if (f->copies[g] >= 0) {
            MOE_ASSERT(f->copies[g] < f->experts, "slot %d holds expert %d of %d", g, f->copies[g],
                       f->experts);
            f->first[f->copies[g] + 1]++;
        }
    for (int e = 0; e < f->experts; e++)
        f->first[e + 1] += f->first[e];
    for (int g = 0; g < global; g++) /* first[e] runs to the end of e's slots ... */
        if (f->copies[g] >= 0)
            f->slot[f->first[f->copies[g]]++] = g;
    /* ... which is where the next one's begin */
    memmove(f->first + 1, f->first, sizeof *f->first * (size_t)f->experts);
    f->first[0] = 0;
}

static int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* What has one copy goes to it, the others are listed; the level is the least that this permits. Loads are of one copy each then. */
static void start(MoeFlow *f) {
    memset(f->load, 0, sizeof *f->load * (size_t)f->ranks);
    f->n_order = 0;
    int64_t total = 0;
    for (int e = 0; e < f->experts; e++) {
        int copies = copies_of(f, e);
        int64_t rows = f->rows[e];
        f->left[e] = 0;
        if (copies == 1) {
            int g = f->slot[f->first[e]];
            f->amount[g] = rows;
            f->load[g / f->slots] += rows;
        } else if (copies > 1 && rows > 0) {
            int at = f->n_order++;
            for (; at > 0 && f->rows[f->order[at - 1]] < rows; at--)
                f->order[at] = f->order[at - 1];
            f->order[at] = e;
            f->left[e] = rows;
        }
        total += copies ? rows : 0;
    }
    f->level = ceil_div(total, f->ranks);
    f->n_tight = 0;
    for (int r = 0; r < f->ranks; r++)
        if (f->load[r] > f->level) {
            f->level = f->load[r];
            f->tight[0] = r;
            f->n_tight = 1;
        }
}

void moe_flow_fill(MoeFlow *f, int e) {
    int slots = f->slots, lo = f->first[e], hi = f->first[e + 1];
    int64_t need = f->left[e], level = f->level;
    for (;;) { /* ranks above the level drop out, so it falls until it holds */
        int64_t sum = need, n = 0;
        for (int i = lo; i < hi; i++) {
            int64_t load = f->load[f->slot[i] / slots];
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
        int64_t *load = &f->load[f->slot[i] / slots], take = level - *load;
        take = take > need ? need : take;
        if (take <= 0)
            continue;
        f->amount[f->slot[i]] += take;
        *load += take;
        need -= take;
    }
    f->left[e] = need;
}

/* The search meets expert e, which has rows to give (`from`, see MoeFlow): so it meets e's ranks. Returns one with room, or -1. */
static int meet(MoeFlow *f, int e, int from, int *n_queue) {
    f->from[e] = from;
    for (int i = f->first[e]; i < f->first[e + 1]; i++) {
        int g = f->slot[i], r = g / f->slots;
        if (f->via[r] >= 0)
            continue;
        f->via[r] = g;
        if (f->load[r] < f->level)
            return r;
        f->queue[(*n_queue)++] = r;
    }
    return -1;
}

/* Breadth first from the experts with rows left: a full rank that they could use has rows of other experts, which could go to their
 * other copies, and so on. Returns a rank with room; else -1, and queue[0, *n_queue) are all ranks within reach. */
static int search(MoeFlow *f, int *n_queue) {
    *n_queue = 0;
    for (int r = 0; r < f->ranks; r++)
        f->via[r] = -1;
    for (int i = 0; i < f->n_order; i++)
        f->from[f->order[i]] = -2;
    for (int i = 0, r; i < f->n_order; i++)
        if (f->left[f->order[i]] > 0 && (r = meet(f, f->order[i], -1, n_queue)) >= 0)
            return r;
    for (int head = 0, r; head < *n_queue; head++)
        for (int s = f->queue[head] * f->slots, end = s + f->slots; s < end; s++) {
            int e = f->copies[s];
            if (e < 0 || f->amount[s] == 0 || copies_of(f, e) < 2 || f->from[e] != -2)
                continue;
            if ((r = meet(f, e, s, n_queue)) >= 0)
                return r;
        }
    return -1;
}

/* Sends rows along the path that the search found to `rank`. */
static void augment(MoeFlow *f, int rank) {
    int64_t n = f->level - f->load[rank];
    int e = f->copies[f->via[rank]];
    for (; f->from[e] >= 0; e = f->copies[f->via[f->from[e] / f->slots]])
        n = f->amount[f->from[e]] < n ? f->amount[f->from[e]] : n;
    n = f->left[e] < n ? f->left[e] : n;
    f->left[e] -= n;
    f->load[rank] += n;
    f->amount[f->via[rank]] += n;
    for (e = f->copies[f->via[rank]]; f->from[e] >= 0;) {
        int s = f->from[e], g = f->via[s / f->slots];
        f->amount[s] -= n;
        f->amount[g] += n;
        e = f->copies[g];
    }
}

/* All rows that are left, at the least possible level. */
static void solve(MoeFlow *f) {
    for (;;) {
        for (int i = 0; i < f->n_order; i++)
            if (f->left[f->order[i]] > 0)
                moe_flow_fill(f, f->order[i]);
        int64_t stuck = 0;
        for (int i = 0; i < f->n_order; i++)
            stuck += f->left[f->order[i]];
        if (stuck == 0)
            return;
        int n_queue, rank;
        while ((rank = search(f, &n_queue)) >= 0)
            augment(f, rank);
        stuck = 0;
        for (int i = 0; i < f->n_order; i++)
            stuck += f->left[f->order[i]];
        if (stuck == 0)
            return;
        f->level += ceil_div(stuck, n_queue);
        memcpy(f->tight, f->queue, sizeof *f->tight * (size_t)n_queue);
        f->n_tight = n_queue;
    }
}

void moe_flow_divide(MoeFlow *f, const int32_t *copies, const int32_t *counts, int shards) {
    f->copies = copies;
    for (int e = 0; e < f->experts; e++) {
        const int32_t *c = counts + (ptrdiff_t)e * shards;
        int64_t sum = 0;
        for (int v = 0; v < shards; v++)
            sum += c[v];
        MOE_ASSERT(sum <= INT32_MAX, "expert %d has %lld rows", e, (long long)sum);
        f->rows[e] = sum;
    }
    size_t global = (size_t)f->ranks * (size_t)f->slots;
    memcpy(f->held, copies, sizeof *copies * global);
    memset(f->amount, 0, sizeof *f->amount * global);
    index_copies(f);
    start(f);
    solve(f);
}

void moe_flow_again(MoeFlow *f, const int32_t *copies) {
    int global = f->ranks * f->slots;
    f->copies = copies;
    for (int g = 0; g < global; g++)
        if (f->held[g] != copies[g]) {
            f->held[g] = copies[g];
            f->amount[g] = 0;
        }
    index_copies(f);
    start(f);
    for (int i = 0; i < f->n_order; i++) { /* experts keep what their ranks have room for */
        int e = f->order[i];
        for (int k = f->first[e]; k < f->first[e + 1]; k++) {
            int g = f->slot[k];
            int64_t *load = &f->load[g / f->slots], keep = f->level - *load;
            keep = keep < f->amount[g] ? keep : f->amount[g];
            keep = keep < f->left[e] ? keep : f->left[e];
            f->amount[g] = keep;
            *load += keep;
            f->left[e] -= keep;
        }
    }
    solve(f);
}
