/* See split_rows.h. */
#include "base/split_rows.h"

#include <stdbool.h>
#include <string.h>

#include "base/assert.h"

/* ---- who goes where ---- */

/* Behind it in the scratch memory: what moe_split wants. */
typedef struct {
    int32_t
        *first; /* [experts]: the expert's first slot, then the one that takes rows now; -1 none */
    int32_t *next; /* [ranks*slots]: the next slot of the same expert, -1 none */
    int32_t *rows; /* [experts]: rows dealt out */
    void *split;
} CopyPlan;

static int64_t plan_ints(int64_t experts, int64_t all_slots) {
    int64_t n = 2 * experts + all_slots;
    return n + n % 2;
}

int64_t moe_split_plan_scratch(int64_t experts, int64_t ranks, int64_t slots, int64_t shards) {
    return plan_ints(experts, ranks * slots) * 4 +
           moe_split_scratch((int)experts, (int)ranks, (int)slots, (int)shards);
}

static CopyPlan plan_in(void *scratch, int64_t experts, int64_t all_slots) {
    CopyPlan p = {.first = scratch};
    p.next = p.first + experts;
    p.rows = p.next + all_slots;
    p.split = p.first + plan_ints(experts, all_slots);
    return p;
}

static void count_rows(const int32_t *ids, const int32_t *tok, int64_t experts, int64_t shards,
                       int64_t k, int32_t *counts) {
    memset(counts, 0, (size_t)(experts * shards) * sizeof *counts);
    for (int64_t v = 0; v < shards; v++)
        for (int64_t p = tok[v] * k; p < tok[v + 1] * k; p++)
            counts[ids[p] * shards + v]++;
}

/* The slots of each expert, ascending. */
static void list_copies(CopyPlan *p, const int32_t *copies, int64_t experts, int64_t all_slots) {
    for (int64_t e = 0; e < experts; e++)
        p->first[e] = -1;
    for (int64_t g = all_slots; g-- > 0;)
        if (copies[g] >= 0) {
            p->next[g] = p->first[copies[g]];
            p->first[copies[g]] = (int32_t)g;
        }
    memset(p->rows, 0, (size_t)experts * sizeof *p->rows);
}

void moe_split_copy_plan(const int32_t *ids, const int32_t *tok, const int32_t *copies, int32_t *to,
                         int32_t *counts, int32_t *runs, int64_t experts, int64_t ranks,
                         int64_t slots, int64_t shards, int64_t k, int64_t leaf, void *scratch) {
    CopyPlan p = plan_in(scratch, experts, ranks * slots);
    MoeSplitRun *run = (MoeSplitRun *)(void *)runs;
    _Static_assert(sizeof(MoeSplitRun) == 2 * sizeof(int32_t), "a run is two numbers of a table");
    count_rows(ids, tok, experts, shards, k, counts);
    MoeSplit in = {.experts = (int)experts,
                   .ranks = (int)ranks,
                   .slots = (int)slots,
                   .copies = copies,
                   .shards = (int)shards,
                   .counts = counts,
                   .grain = (int)leaf};
    moe_split(&in, p.split, run);
    list_copies(&p, copies, experts, ranks * slots);
    for (int64_t i = 0, n = tok[shards] * k; i < n; i++) {
        int32_t e = ids[i], row = p.rows[e]++, at = p.first[e];
        while (at >= 0 && row >= run[at].end)
            at = p.next[at];
        MOE_ASSERT(at >= 0 && row >= run[at].begin, "row %d of expert %d is in no copy's run", row,
                   e);
        p.first[e] = at;
        to[i] = at;
    }
}

/* ---- roots ---- */

/* The rows of root r by shard, into groups[1..shards] behind groups[0]. */
static void put_group(const MoeSplitRoot *r, const int32_t *counts, int64_t shards,
                      int32_t *group) {
    bool part = r && r->leaf_end > r->leaf_begin;
    for (int64_t v = 0; v < shards; v++) {
        bool in = r && v >= r->shard && v < r->shard + r->shards;
        group[v + 1] = group[v] + (!in ? 0 : part ? r->end - r->begin : counts[v]);
    }
}

void moe_split_root_plan(const int32_t *counts, const int32_t *runs, const int32_t *copies,
                         int64_t rank, int32_t *roots, int32_t *more, int64_t slots, int64_t shards,
                         int64_t leaf) {
    int64_t group = 0, groups = slots * MOE_COPY_ROOTS;
    roots[0] = more[0] = 0;
    for (int64_t s = 0; s < slots; s++) {
        int64_t g = rank * slots + s;
        MoeSplitRoot r[MOE_COPY_ROOTS];
        const int32_t *mine = counts + (copies[g] >= 0 ? copies[g] : 0) * shards;
        int n = moe_split_roots(mine, (int)shards, (int)leaf,
                                (MoeSplitRun){runs[2 * g], runs[2 * g + 1]}, r, MOE_COPY_ROOTS);
        MOE_ASSERT(n <= MOE_COPY_ROOTS, "slot %lld: a run of %d roots", (long long)g, n);
        for (int i = 0; i < (n ? n : 1); i++, group++)
            put_group(n ? &r[i] : NULL, mine, shards, roots + group * shards);
        more[s + 1] = (int32_t)(group - s - 1);
    }
    for (int64_t c = group * shards; c < groups * shards; c++)
        roots[c + 1] = roots[c];
}

/* ---- folding ---- */

typedef struct {
    const int32_t *counts, *ends;
    int leaf, n, at, n_program; /* at: the root that comes next */
    uint8_t *program;
    bool wrong;
} Fold;

static void emit(Fold *f, int what) {
    f->program[f->n_program++] = (uint8_t)what;
}

/* Whether the rows [begin, end) are the next root, which is then pushed. Subtrees of the same rows have the same sum. */
static bool push(Fold *f, int32_t begin, int32_t end) {
    int32_t from = f->at ? f->ends[f->at - 1] : 0;
    if (f->at >= f->n || from != begin || f->ends[f->at] != end)
        return false;
    f->at++;
    emit(f, MOE_SPLIT_PUSH);
    return true;
}

/* Rows [begin, end) of a shard's leaves, padded to `size` of them; whether there are any. */
static bool fold_leaves(Fold *f, int32_t begin, int32_t end, int64_t size) {
    if (begin >= end || f->wrong)
        return false;
    if (push(f, begin, end))
        return true;
    f->wrong |= size <= 1;
    int64_t half = size / 2 * f->leaf;
    int32_t mid = begin + half < end ? (int32_t)(begin + half) : end;
    bool left = fold_leaves(f, begin, mid, size / 2), right = fold_leaves(f, mid, end, size / 2);
    if (left && right && !f->wrong)
        emit(f, MOE_SPLIT_ADD);
    return left || right;
}

/* Shards [lo, hi) of `shards`; *begin: their first row, on return the one behind them. */
static bool fold_shards(Fold *f, int lo, int hi, int shards, int32_t *begin) {
    int32_t from = *begin, end = from;
    for (int v = lo; v < hi && v < shards; v++)
        end += f->counts[v];
    if (end == from || f->wrong)
        return false;
    *begin = end;
    if (push(f, from, end))
        return true;
    if (hi - lo == 1) {
        int64_t size = 1;
        while (size * f->leaf < end - from)
            size *= 2;
        return fold_leaves(f, from, end, size);
    }
    int mid = lo + (hi - lo) / 2;
    bool left = fold_shards(f, lo, mid, shards, &from),
         right = fold_shards(f, mid, hi, shards, &from);
    if (left && right && !f->wrong)
        emit(f, MOE_SPLIT_ADD);
    return left || right;
}

int moe_split_fold(const int32_t *counts, int shards, int leaf, const int32_t *ends, int n,
                   uint8_t *program) {
    Fold f = {.counts = counts, .ends = ends, .leaf = leaf, .n = n, .program = program};
    int size = 1;
    int32_t begin = 0;
    while (size < shards)
        size *= 2;
    fold_shards(&f, 0, size, shards, &begin);
    return f.wrong || f.at != n ? -1 : f.n_program;
}
