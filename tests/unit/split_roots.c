/* Roots of a run of rows: gradients of the parts, folded by the tree, are those of the whole, bit by bit (docs/NUMBERS.md rule 4).
 * MOE_SPLIT_CASES multiplies the random cases. */
#include <check.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "base/rng.h"
#include "base/split.h"
#include "tests/support/check_main.h"
#include "tests/support/status_checks.h"

static uint64_t counter;

static int below(int n) {
    return (int)moe_rng_below(7, 2, counter++, (uint64_t)n);
}

/* A sum of f32 with a present flag: what a weight gradient's tree does to one element. */
typedef struct {
    bool there;
    float value;
} Sum;

static Sum add(Sum a, Sum b) {
    if (!a.there || !b.there)
        return a.there ? a : b;
    return (Sum){true, a.value + b.value};
}

/* The tree over items [first, first + size) of n. */
static Sum tree(const Sum *items, int first, int size, int n) {
    if (first >= n)
        return (Sum){false, 0};
    if (size == 1)
        return items[first];
    return add(tree(items, first, size / 2, n), tree(items, first + size / 2, size / 2, n));
}

static int power(int n) {
    int p = 1;
    while (p < n)
        p *= 2;
    return p;
}

enum { MOST_SHARDS = 40, MOST_LEAVES = 64 };

/* weight_grad of one group: rows [begin, end) of an expert, x[row]; shard v's from start[v] on. Leaves count from the first row
 * of each (group, shard). */
static Sum weight_grad(const float *x, const int32_t *start, int shards, int leaf, int32_t begin,
                       int32_t end) {
    Sum by_shard[MOST_SHARDS], leaves[MOST_LEAVES];
    for (int v = 0; v < shards; v++) {
        int32_t lo = start[v] > begin ? start[v] : begin,
                hi = start[v + 1] < end ? start[v + 1] : end;
        int n = 0;
        for (int32_t at = lo; at < hi; at += leaf, n++) {
            leaves[n] = (Sum){true, 0};
            for (int32_t r = at; r < at + leaf && r < hi; r++)
                leaves[n].value += x[r];
        }
        by_shard[v] = n ? tree(leaves, 0, power(n), n) : (Sum){false, 0};
    }
    return tree(by_shard, 0, power(shards), shards);
}

typedef struct {
    const int32_t *start;
    int shards, leaf, n_roots;
    const MoeSplitRoot *roots;
    const Sum *sums;
} Fold;

static const Sum *root_of(const Fold *f, int32_t begin, int32_t end) {
    for (int i = 0; i < f->n_roots; i++)
        if (f->roots[i].begin == begin && f->roots[i].end == end)
            return &f->sums[i];
    return NULL;
}

static Sum fold_leaves(const Fold *f, int v, int first, int size) {
    int32_t rows = f->start[v + 1] - f->start[v], lo = first * f->leaf,
            hi = (first + size) * f->leaf;
    if (lo >= rows)
        return (Sum){false, 0};
    const Sum *root = root_of(f, f->start[v] + lo, f->start[v] + (hi < rows ? hi : rows));
    if (root)
        return *root;
    CHECK_EACH(size > 1, "leaf %d of shard %d is in no root", first, v);
    return add(fold_leaves(f, v, first, size / 2), fold_leaves(f, v, first + size / 2, size / 2));
}

static Sum fold_shards(const Fold *f, int first, int size) {
    int end = first + size < f->shards ? first + size : f->shards;
    if (first >= f->shards || f->start[first] == f->start[end])
        return (Sum){false, 0};
    const Sum *root = root_of(f, f->start[first], f->start[end]);
    if (root)
        return *root;
    if (size == 1)
        return fold_leaves(f, first, 0,
                           power((f->start[first + 1] - f->start[first] + f->leaf - 1) / f->leaf));
    return add(fold_shards(f, first, size / 2), fold_shards(f, first + size / 2, size / 2));
}

/* A root says where it lies in the tree. */
static void check_root(const Fold *f, const MoeSplitRoot *r) {
    HOLD(r->begin < r->end);
    if (r->leaf_end == 0) {
        HOLD(r->leaf_begin == 0);
        HOLD(r->begin == f->start[r->shard] && r->end == f->start[r->shard + r->shards]);
        int size = power(r->shards);
        HOLD(r->shard % size == 0 && (r->shards == size || r->shard + r->shards == f->shards));
        return;
    }
    int32_t at = f->start[r->shard], rows = f->start[r->shard + 1] - at,
            n = r->leaf_end - r->leaf_begin;
    int size = power(n), last = (rows + f->leaf - 1) / f->leaf;
    HOLD(r->shards == 1);
    HOLD(n > 0 && n < last && r->leaf_begin % size == 0 && (n == size || r->leaf_end == last));
    HOLD(r->begin == at + r->leaf_begin * f->leaf);
    HOLD(r->end == (r->leaf_end == last ? at + rows : at + r->leaf_end * f->leaf));
}

START_TEST(roots_fold_to_the_whole) {
    const char *times = getenv("MOE_SPLIT_CASES");
    int most_roots = 0, n_cases = 400000 * (times ? atoi(times) : 1);
    for (int i = 0; i < n_cases; i++) {
        int shards = 1 + below(MOST_SHARDS), leaf = 1 + below(4), start[MOST_SHARDS + 1] = {0},
            n_edges = 0, n_roots = 0;
        int32_t counts[MOST_SHARDS], edges[MOST_SHARDS * MOST_LEAVES];
        int longest = 1 + below(below(3) ? 12 : MOST_LEAVES * leaf), sparse = 1 + below(4);
        for (int v = 0; v < shards; v++) {
            counts[v] = below(sparse) ? 0 : below(longest + 1);
            start[v + 1] = start[v] + counts[v];
            for (int32_t at = 0; at < counts[v]; at += leaf)
                edges[n_edges++] = start[v] + at;
        }
        int32_t n = start[shards];
        float x[MOST_SHARDS * MOST_LEAVES * 4];
        for (int r = 0; r < n; r++)
            x[r] = (float)(below(1 << 20) - (1 << 19)) * (below(2) ? 1.0f : 1e-4f);
        MoeSplitRoot roots[8 * MOST_SHARDS];
        Sum sums[8 * MOST_SHARDS];
        for (int32_t at = 0; at < n;) { /* random runs, end to end */
            int32_t to = below(3) ? edges[below(n_edges)] : n;
            if (to <= at)
                continue;
            int got = moe_split_roots(counts, shards, leaf, (MoeSplitRun){at, to}, roots + n_roots,
                                      8 * MOST_SHARDS - n_roots);
            HOLD(got > 0);
            most_roots = got > most_roots ? got : most_roots;
            n_roots += got;
            HOLD(n_roots <= 8 * MOST_SHARDS);
            at = to;
        }
        Fold f = {start, shards, leaf, n_roots, roots, sums};
        int32_t at = 0;
        for (int k = 0; k < n_roots; k++) {
            check_root(&f, &roots[k]);
            HOLD(roots[k].begin == at);
            at = roots[k].end;
            sums[k] = weight_grad(x, start, shards, leaf, roots[k].begin, roots[k].end);
        }
        Sum whole = weight_grad(x, start, shards, leaf, 0, n),
            folded = fold_shards(&f, 0, power(shards));
        HOLD(whole.there == folded.there &&
             (!whole.there || memcmp(&whole.value, &folded.value, 4) == 0));
    }
    HOLD(most_roots > 6);
}
END_TEST

START_TEST(a_whole_expert_is_one_root) {
    int32_t counts[] = {0, 300, 0, 128, 0};
    MoeSplitRoot root;
    HOLD(moe_split_roots(counts, 5, 128, (MoeSplitRun){0, 428}, &root, 1) == 1);
    HOLD(root.begin == 0 && root.end == 428 && root.shard == 0 && root.shards == 5 &&
         root.leaf_end == 0);
    HOLD(moe_split_roots(counts, 5, 128, (MoeSplitRun){428, 428}, &root, 1) == 0);
    HOLD(moe_split_roots(counts, 5, 128, (MoeSplitRun){128, 428}, &root, 1) ==
         3); /* leaves 1 and 2, shard 3 */
    HOLD(root.shard == 1 && root.leaf_begin == 1 && root.leaf_end == 2);
}
END_TEST

int main(void) {
    Suite *s = suite_create("split_roots");
    TCase *t = tcase_create("split_roots");
    tcase_set_timeout(t, 600);
    tcase_add_test(t, roots_fold_to_the_whole);
    tcase_add_test(t, a_whole_expert_is_one_root);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
