/* Cuts at leaf edges. The exact division is the target. Each cut may go to an edge on the way down both trees (over shards, over a
 * shard's leaves) to its target row: nearby ones lie deep and need many roots, those higher up fewer. A run of dynamic programming over
 * an expert's copies takes the best; experts follow each other, later ones making good what earlier ones missed, and in the end the
 * busiest ranks try again. */
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "base/assert.h"
#include "base/split_internal.h"

#define NO_COST INT64_MAX

/* The rows of one expert as trees see them. */
typedef struct {
    const int32_t *counts; /* [shards] */
    const int32_t *prefix; /* [shards+1] sums of counts; NULL: summed when needed */
    int shards, leaf;
} Rows;

/* Roots on their way out; counting only if most is 0. */
typedef struct {
    MoeSplitRoot *out;
    int n, most, enough; /* more than `enough` are not looked for */
    int32_t at;          /* row */
} Roots;

static int32_t rows_of(const Rows *x, int first, int end) {
    if (x->prefix)
        return x->prefix[end] - x->prefix[first];
    int32_t n = 0;
    for (int v = first; v < end; v++)
        n += x->counts[v];
    return n;
}

/* The largest aligned subtree that begins at item i and holds no item at `hi` or after; a tree's items end at `end`, beyond which all is
 * absent. Returns where it ends. */
static int subtree_end(int i, int hi, int end) {
    unsigned size = i ? (unsigned)i & -(unsigned)i : 1u << 31;
    if (hi < end) { /* no longer than the largest power of two that fits */
        unsigned most = 1u << (31 - __builtin_clz((unsigned)(hi - i)));
        size = size < most ? size : most;
    }
    return (int64_t)i + size < end ? (int)((unsigned)i + size) : end;
}

static inline void put_root(Roots *r, int32_t rows, MoeSplitRoot root) {
    if (r->n < r->most) {
        root.begin = r->at;
        root.end = r->at + rows;
        r->out[r->n] = root;
    }
    r->n++;
    r->at += rows;
}

static void put_leaves(const Rows *x, int shard, int lo, int hi, Roots *r) {
    int32_t count = x->counts[shard];
    int leaves = (count + x->leaf - 1) / x->leaf;
    for (int i = lo, end; i < hi && r->n <= r->enough; i = end) {
        end = subtree_end(i, hi, leaves);
        int32_t last = end == leaves ? count : end * x->leaf;
        put_root(r, last - i * x->leaf,
                 (MoeSplitRoot){.shard = shard, .shards = 1, .leaf_begin = i, .leaf_end = end});
    }
}

static void put_shards(const Rows *x, int lo, int hi, Roots *r) {
    for (int i = lo, end; i < hi && r->n <= r->enough; i = end) {
        end = subtree_end(i, hi, x->shards);
        int32_t rows = rows_of(x, i, end);
        if (rows)
            put_root(r, rows, (MoeSplitRoot){.shard = i, .shards = end - i});
    }
}

/* The roots of the rows between two edges: absent items on either side join, as they make subtrees larger. */
static void put_roots(const Rows *x, MoeSplitEdge a, MoeSplitEdge b, Roots *r) {
    if (a.row >= b.row)
        return;
    int first = a.shard;
    if (a.leaf > 0) {
        put_leaves(x, a.shard, a.leaf,
                   b.shard == a.shard ? b.leaf : (x->counts[a.shard] + x->leaf - 1) / x->leaf, r);
        if (b.shard == a.shard)
            return;
        first++;
    } else {
        while (first > 0 && x->counts[first - 1] == 0)
            first--;
    }
    put_shards(x, first, b.shard, r);
    if (b.leaf > 0)
        put_leaves(x, b.shard, 0, b.leaf, r);
}

static MoeSplitEdge edge_at(const Rows *x, int32_t row) {
    int32_t at = 0;
    int v = 0;
    for (; v < x->shards && at + x->counts[v] <= row; v++)
        at += x->counts[v];
    MOE_ASSERT((v < x->shards ? row - at : 0) % x->leaf == 0 && (v < x->shards || row == at),
               "row %d is no edge: %d rows after the start of shard %d, leaves of %d", row,
               row - at, v, x->leaf);
    return (MoeSplitEdge){row, v, v < x->shards ? (row - at) / x->leaf : 0};
}

int moe_split_roots(const int32_t *counts, int shards, int leaf, MoeSplitRun run, MoeSplitRoot *out,
                    int most) {
    Rows x = {counts, NULL, shards, leaf};
    Roots r = {.out = out, .most = most, .enough = INT32_MAX, .at = run.begin};
    if (run.begin < run.end)
        put_roots(&x, edge_at(&x, run.begin), edge_at(&x, run.end), &r);
    return r.n;
}

/* Edges on the way down to `row`: the two ends, then the middle of each subtree that has it inside. Those whose subtree is not longer
 * than `reach` rows alone, unless that is 0. */
static int candidates(const Rows *x, int32_t row, int32_t reach, MoeSplitEdge *out) {
    int n = 0, lo = 0, hi = 1, first = 0;
    while (x->counts[first] == 0)
        first++;
    out[n++] = (MoeSplitEdge){0, first, 0};
    out[n++] = (MoeSplitEdge){x->prefix[x->shards], x->shards, 0};
    while (hi < x->shards)
        hi *= 2;
    while (hi - lo > 1) {
        int mid = lo + (hi - lo) / 2, v = mid;
        if (mid >= x->shards) {
            hi = mid;
            continue;
        }
        int end = hi < x->shards ? hi : x->shards;
        int32_t at = x->prefix[mid];
        if (at > x->prefix[lo] && at < x->prefix[end] &&
            (!reach || x->prefix[end] - x->prefix[lo] <= reach)) {
            while (x->counts[v] == 0)
                v++;
            out[n++] = (MoeSplitEdge){at, v, 0};
        }
        if (row < at)
            hi = mid;
        else
            lo = mid;
    }
    int32_t start = x->prefix[lo], leaves = (x->counts[lo] + x->leaf - 1) / x->leaf, begin = 0,
            end = 1;
    while (end < leaves)
        end *= 2;
    while (end - begin > 1) {
        int32_t mid = begin + (end - begin) / 2, at = start + mid * x->leaf;
        if (mid < leaves && (!reach || (int64_t)(end - begin) * x->leaf <= reach))
            out[n++] = (MoeSplitEdge){at, lo, mid};
        if (mid >= leaves || row < at)
            end = mid;
        else
            begin = mid;
    }
    MOE_ASSERT(n <= MOE_SPLIT_EDGES, "%d edges near one row", n);
    return n;
}

/* Of giving the rows between two edges to a rank that has `load` others: the rows above the level, and a price for each root;
 * NO_COST with too many of them, or if it would not be less than `most`. */
static int64_t run_cost(const MoeSplitWork *w, const Rows *x, MoeSplitEdge a, MoeSplitEdge b,
                        int64_t load, int64_t most) {
    int64_t above = load + (b.row - a.row) - w->flow.level,
            cost = (above > 0 ? above : 0) * MOE_SPLIT_ROOT_PRICE;
    if (cost >= most)
        return NO_COST;
    Roots r = {.enough = MOE_COPY_ROOTS, .at = a.row};
    put_roots(x, a, b, &r);
    cost += r.n * w->flow.level;
    return r.n > MOE_COPY_ROOTS || cost >= most ? NO_COST : cost;
}

/* The best cuts among the candidates: cost[i][k] is that of the copies before cut i, which falls on its edge k. Writes the amounts
 * (w->flow.load is without this expert's rows); false if no choice keeps to the number of roots. */
static bool best_cuts(MoeSplitWork *w, int e, const Rows *x) {
    int copies = w->flow.first[e + 1] - w->flow.first[e];
    const int32_t *slot = w->flow.slot + w->flow.first[e];
    w->cost[0] = 0;
    for (int i = 1; i <= copies; i++) {
        const MoeSplitEdge *before = w->edges + (ptrdiff_t)(i - 1) * MOE_SPLIT_EDGES,
                           *here = w->edges + (ptrdiff_t)i * MOE_SPLIT_EDGES;
        const int64_t *cost = w->cost + (ptrdiff_t)(i - 1) * MOE_SPLIT_EDGES;
        int64_t load = w->flow.load[slot[i - 1] / w->in->slots];
        for (int k = 0; k < w->n_edges[i]; k++) {
            int64_t least = NO_COST;
            int32_t arg = -1;
            for (int j = w->n_edges[i - 1] - 1; j >= 0; j--) { /* the nearest are last */
                if (cost[j] >= least || before[j].row > here[k].row)
                    continue;
                int64_t run = run_cost(w, x, before[j], here[k], load, least - cost[j]);
                if (run < NO_COST) {
                    least = cost[j] + run;
                    arg = j;
                }
            }
            w->cost[(ptrdiff_t)i * MOE_SPLIT_EDGES + k] = least;
            w->best[(ptrdiff_t)i * MOE_SPLIT_EDGES + k] = arg;
        }
    }
    int k = 0;
    if (w->cost[(ptrdiff_t)copies * MOE_SPLIT_EDGES] == NO_COST)
        return false;
    for (int i = copies; i > 0; i--) {
        int j = w->best[(ptrdiff_t)i * MOE_SPLIT_EDGES + k];
        w->flow.amount[slot[i - 1]] = w->edges[(ptrdiff_t)i * MOE_SPLIT_EDGES + k].row -
                                      w->edges[(ptrdiff_t)(i - 1) * MOE_SPLIT_EDGES + j].row;
        k = j;
    }
    return true;
}

/* Cuts expert e near the amounts that it has now, or, if `level` or one of its ranks is above the level, near those that make its
 * ranks level. */
static void cut_expert(MoeSplitWork *w, int e, bool level) {
    const MoeSplit *in = w->in;
    int copies = w->flow.first[e + 1] - w->flow.first[e];
    const int32_t *slot = w->flow.slot + w->flow.first[e];
    Rows x = {in->counts + (ptrdiff_t)e * in->shards, w->prefix, in->shards, in->grain};
    w->prefix[0] = 0;
    for (int v = 0; v < in->shards; v++)
        w->prefix[v + 1] = w->prefix[v] + x.counts[v];
    for (int i = 0; i < copies; i++)
        level = level || w->flow.load[slot[i] / in->slots] > w->flow.level;
    for (int i = 0; i < copies; i++)
        w->flow.load[slot[i] / in->slots] -= w->flow.amount[slot[i]];
    if (level) {
        int64_t kept = w->flow.level;
        for (int i = 0; i < copies; i++)
            w->flow.amount[slot[i]] = 0;
        w->flow.left[e] = w->flow.rows[e];
        w->flow.level = INT64_MAX / 2;
        moe_flow_fill(&w->flow, e);
        w->flow.level = kept;
        for (int i = 0; i < copies; i++)
            w->flow.load[slot[i] / in->slots] -= w->flow.amount[slot[i]];
    }
    for (int wide = copies <= 3; wide < 2; wide++) { /* many copies: first the near edges alone */
        int32_t at = 0;
        for (int i = 0; i <= copies; i++) {
            MoeSplitEdge *edges = w->edges + (ptrdiff_t)i * MOE_SPLIT_EDGES;
            int64_t before = i ? w->flow.amount[slot[i - 1]] : 0,
                    after = i < copies ? w->flow.amount[slot[i]] : 0,
                    reach = 2 * (before > after ? before : after) + in->grain;
            w->n_edges[i] = candidates(
                &x, at, wide ? 0 : (int32_t)(reach < INT32_MAX ? reach : INT32_MAX), edges);
            if (i == copies)
                edges[0] = edges[1];
            if (i == 0 || i == copies)
                w->n_edges[i] = 1;
            at += (int32_t)after;
        }
        if (best_cuts(w, e, &x))
            break;
        MOE_ASSERT(!wide, "expert %d cannot be divided among %d copies", e,
                   copies); /* one copy could have all: one root */
    }
    for (int i = 0; i < copies; i++)
        w->flow.load[slot[i] / in->slots] += w->flow.amount[slot[i]];
}

static int64_t busiest_of(const MoeSplitWork *w, int e) {
    int64_t most = 0;
    for (int i = w->flow.first[e]; i < w->flow.first[e + 1]; i++) {
        int64_t load = w->flow.load[w->flow.slot[i] / w->in->slots];
        most = load > most ? load : most;
    }
    return most;
}

/* Cuts e anew, with its ranks as they are by now; puts it back as it was unless its busiest rank then has fewer rows. */
static bool retry(MoeSplitWork *w, int e) {
    int slots = w->in->slots, lo = w->flow.first[e], hi = w->flow.first[e + 1];
    int64_t before = busiest_of(w, e);
    for (int i = lo; i < hi; i++)
        w->saved[i - lo] = w->flow.amount[w->flow.slot[i]];
    cut_expert(w, e, true);
    if (busiest_of(w, e) < before)
        return true;
    for (int i = lo; i < hi; i++) {
        w->flow.load[w->flow.slot[i] / slots] += w->saved[i - lo] - w->flow.amount[w->flow.slot[i]];
        w->flow.amount[w->flow.slot[i]] = w->saved[i - lo];
    }
    return false;
}

void moe_split_to_edges(MoeSplitWork *w) {
    const MoeSplit *in = w->in;
    for (int i = 0; i < w->flow.n_order; i++)
        cut_expert(w, w->flow.order[i], false);
    for (int tries = MOE_SPLIT_RETRIES * in->ranks; tries > 0; tries--) {
        int busiest = 0;
        for (int r = 1; r < in->ranks; r++)
            busiest = w->flow.load[r] > w->flow.load[busiest] ? r : busiest;
        if (w->flow.load[busiest] <= w->flow.level)
            return;
        bool better = false;
        for (int s = busiest * in->slots; s < (busiest + 1) * in->slots && !better; s++) {
            int e = in->copies[s];
            better = e >= 0 && w->flow.rows[e] > 0 && w->flow.first[e + 1] - w->flow.first[e] > 1 &&
                     retry(w, e);
        }
        if (!better)
            return;
    }
}
