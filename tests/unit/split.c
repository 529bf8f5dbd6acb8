/* Splitting the rows of experts among their copies: exact with cuts anywhere, close with cuts at leaf edges, conserving, the same each
 * time. MOE_SPLIT_CASES multiplies the random cases. */
#include <check.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/pool.h"
#include "base/rng.h"
#include "base/split.h"
#include "base/split_flow.h"
#include "tests/support/check_main.h"
#include "tests/support/status_checks.h"

static uint64_t counter;

static int below(int n) {
    return (int)moe_rng_below(7, 1, counter++, (uint64_t)n);
}

static int cases(int n) {
    const char *times = getenv("MOE_SPLIT_CASES");
    return times ? n * atoi(times) : n;
}

typedef struct {
    MoeSplit in;
    int32_t *copies, *counts;
    MoeSplitRun *runs;
    void *scratch;
    int64_t n_scratch;
} Case;

/* skew: how much more the hottest expert has. Every expert has a slot; each further slot has a copy with likelihood 1 - 1/empty. */
static Case make(int experts, int ranks, int extra, int shards, int mean, int skew, int empty,
                 int grain) {
    int slots = (experts + ranks - 1) / ranks + extra;
    Case c = {.in = {experts, ranks, slots, NULL, shards, NULL, grain}};
    size_t global = (size_t)ranks * (size_t)slots, n = (size_t)experts * (size_t)shards;
    c.copies = malloc(global * 4);
    c.counts = malloc(n * 4);
    c.runs = malloc(global * sizeof *c.runs);
    c.n_scratch = moe_split_scratch(experts, ranks, slots, shards);
    c.scratch = malloc((size_t)c.n_scratch);
    memset(c.copies, 0xff, global * 4);
    int first = below(ranks);
    for (int e = 0; e < experts; e++)
        c.copies[(e + first) % ranks * slots + e / ranks] = e;
    for (int r = 0; r < ranks; r++)
        for (int s = 0; s < slots; s++) {
            int e = below(experts);
            bool there = c.copies[r * slots + s] >= 0 || below(empty) == 0;
            for (int t = 0; t < slots; t++)
                there = there || c.copies[r * slots + t] == e;
            if (!there)
                c.copies[r * slots + s] = e;
        }
    for (int e = 0; e < experts; e++) {
        int scale = below(4) == 0 ? mean * (1 + below(skew)) : mean;
        for (int v = 0; v < shards; v++)
            c.counts[e * shards + v] = below(3) == 0 ? 0 : below(2 * scale + 1);
    }
    c.in.copies = c.copies;
    c.in.counts = c.counts;
    return c;
}

static void drop(Case *c) {
    free(c->copies);
    free(c->counts);
    free(c->runs);
    free(c->scratch);
}

static int64_t expert_rows(const MoeSplit *in, int e) {
    int64_t n = 0;
    for (int v = 0; v < in->shards; v++)
        n += in->counts[e * in->shards + v];
    return n;
}

static int64_t busiest(const MoeSplit *in, const MoeSplitRun *runs) {
    int64_t most = 0;
    for (int r = 0; r < in->ranks; r++) {
        int64_t load = 0;
        for (int s = 0; s < in->slots; s++)
            load += runs[r * in->slots + s].end - runs[r * in->slots + s].begin;
        most = load > most ? load : most;
    }
    return most;
}

/* The least possible: by Hall's theorem, over all sets of ranks, the rows that can go nowhere else over the size of the set. */
static int64_t bound(const MoeSplit *in) {
    int64_t most = 0;
    for (int set = 1; set < 1 << in->ranks; set++) {
        int64_t rows = 0;
        for (int e = 0; e < in->experts; e++) {
            bool inside = true;
            for (int g = 0; g < in->ranks * in->slots; g++)
                inside = inside && (in->copies[g] != e || (set >> g / in->slots & 1));
            rows += inside ? expert_rows(in, e) : 0;
        }
        int n = __builtin_popcount((unsigned)set);
        most = (rows + n - 1) / n > most ? (rows + n - 1) / n : most;
    }
    return most;
}

/* Runs tile each expert in the order of its slots, and nothing else has rows; a second time, from other scratch, is the same. */
static void check_runs(Case *c) {
    const MoeSplit *in = &c->in;
    int global = in->ranks * in->slots;
    moe_split(in, c->scratch, c->runs);
    for (int e = 0; e < in->experts; e++) {
        int64_t at = 0;
        for (int g = 0; g < global; g++)
            if (in->copies[g] == e) {
                HOLD(c->runs[g].begin == at);
                HOLD(c->runs[g].end >= at);
                at = c->runs[g].end;
            }
        HOLD(at == expert_rows(in, e));
    }
    for (int g = 0; g < global; g++)
        if (in->copies[g] < 0)
            HOLD(c->runs[g].begin == 0 && c->runs[g].end == 0);
    MoeSplitRun *again = malloc((size_t)global * sizeof *again);
    memset(c->scratch, below(256), (size_t)c->n_scratch);
    moe_split(in, c->scratch, again);
    HOLD(memcmp(again, c->runs, (size_t)global * sizeof *again) == 0);
    free(again);
}

START_TEST(cuts_anywhere_are_optimal) {
    for (int i = 0; i < cases(200000); i++) {
        int ranks = 1 + below(6);
        Case c =
            make(1 + below(10), ranks, below(4), 1 + below(3), 1 + below(40), 8, 1 + below(9), 1);
        check_runs(&c);
        int64_t got = busiest(&c.in, c.runs), best = bound(&c.in);
        CHECK_EACH(got == best, "case %d: %d rows, %d are possible", i, (int)got, (int)best);
        drop(&c);
    }
}
END_TEST

/* Rows of a rank by the flow's amounts, which must not go where no copy is. */
static int64_t flow_load(const MoeFlow *f, const int32_t *copies, int rank) {
    int64_t sum = 0;
    for (int g = rank * f->slots; g < (rank + 1) * f->slots; g++) {
        HOLD(f->amount[g] >= 0 && (copies[g] >= 0 || f->amount[g] == 0));
        sum += f->amount[g];
    }
    return sum;
}

/* Copies come and go: the level stays the least, and is the reason given. */
START_TEST(a_flow_follows_changes) {
    for (int i = 0; i < cases(6000); i++) {
        int ranks = 1 + below(6), experts = 1 + below(10);
        Case c =
            make(experts, ranks, 1 + below(3), 1 + below(3), 1 + below(40), 8, 1 + below(9), 1);
        MoeFlow f;
        void *scratch = malloc((size_t)moe_flow_scratch(experts, ranks, c.in.slots));
        moe_flow_init(&f, experts, ranks, c.in.slots, scratch);
        moe_flow_divide(&f, c.copies, c.counts, c.in.shards);
        for (int k = 0; k < 20; k++) {
            int g = below(ranks * c.in.slots), e = below(experts + 1) - 1, held = c.copies[g],
                n = 0;
            bool twice = false;
            for (int h = 0; h < ranks * c.in.slots; h++) {
                n += c.copies[h] == held;
                twice = twice || (e >= 0 && h / c.in.slots == g / c.in.slots && c.copies[h] == e);
            }
            if (twice || (held >= 0 && n == 1))
                continue;
            c.copies[g] = e;
            moe_flow_again(&f, c.copies);
            HOLD(f.level == bound(&c.in));
            for (int r = 0; r < ranks; r++) {
                HOLD(f.load[r] == flow_load(&f, c.copies, r));
                HOLD(f.load[r] <= f.level);
            }
            int64_t inside = 0;
            for (int r = 0; r < f.n_tight; r++)
                inside += f.load[f.tight[r]];
            if (f.n_tight)
                HOLD(((inside + f.n_tight - 1) / f.n_tight) == f.level);
        }
        free(scratch);
        drop(&c);
    }
}
END_TEST

/* Whether `row` is at a leaf's edge of the expert. */
static bool is_edge(const int32_t *counts, int shards, int leaf, int32_t row) {
    int32_t at = 0;
    for (int v = 0; v < shards; at += counts[v++])
        if (row >= at && row <= at + counts[v] && ((row - at) % leaf == 0 || row == at + counts[v]))
            return true;
    return row == at;
}

/* The fewest rows of the busiest of two ranks that share one expert, over all edges that keep to the number of roots. */
static int64_t best_pair(const MoeSplit *in, int64_t other0, int64_t other1) {
    int64_t rows = expert_rows(in, 0), best = INT64_MAX;
    for (int32_t cut = 0; cut <= rows; cut++) {
        if (!is_edge(in->counts, in->shards, in->grain, cut) ||
            moe_split_roots(in->counts, in->shards, in->grain, (MoeSplitRun){0, cut}, NULL, 0) >
                MOE_COPY_ROOTS ||
            moe_split_roots(in->counts, in->shards, in->grain, (MoeSplitRun){cut, (int32_t)rows},
                            NULL, 0) > MOE_COPY_ROOTS)
            continue;
        int64_t a = other0 + cut, b = other1 + rows - cut, most = a > b ? a : b;
        best = most < best ? most : best;
    }
    return best;
}

START_TEST(two_copies_are_cut_near_the_best_edge) {
    int64_t sum = 0, sum_best = 0;
    for (int i = 0; i < cases(20000); i++) {
        Case c = make(3, 3, 1, 1 + below(9), 1 + below(60), 6, 1 << 30, 2 + below(8));
        memset(c.copies, 0xff, 24);
        c.copies[0] = c.copies[2] = 0; /* ranks 0 and 1 */
        c.copies[1] = 1;
        c.copies[3] = 2;
        check_runs(&c);
        int64_t best = best_pair(&c.in, expert_rows(&c.in, 1), expert_rows(&c.in, 2)),
                got = busiest(&c.in, c.runs);
        sum += got;
        sum_best += best;
        /* fewer roots may cost 1/256 each, at most MOE_COPY_ROOTS on either side; a path down meets not every edge */
        int64_t slack = best / 32 + 8 * c.in.grain;
        CHECK_EACH(got <= best + slack, "case %d: %d rows, %d are possible", i, (int)got, (int)best);
        drop(&c);
    }
    CHECK_EACH((double)sum <= (double)sum_best * 1.01, "%.4f of the best edges",
             (double)sum / (double)sum_best);
}
END_TEST

START_TEST(runs_end_at_edges) {
    double over = 0;
    int n = cases(30000);
    for (int i = 0; i < n; i++) {
        int grain = 2 + below(16), ranks = 1 + below(9), shards = 1 + below(12);
        Case c = make(1 + below(16), ranks, below(4), shards, 1 + below(40) * grain, 8,
                      1 + below(9), grain),
             free_cuts = c;
        check_runs(&c);
        for (int g = 0; g < ranks * c.in.slots; g++) {
            int e = c.in.copies[g];
            if (e < 0)
                continue;
            const int32_t *counts = c.in.counts + e * shards;
            HOLD(is_edge(counts, shards, grain, c.runs[g].begin) &&
                 is_edge(counts, shards, grain, c.runs[g].end));
            HOLD(moe_split_roots(counts, shards, grain, c.runs[g], NULL, 0) <= MOE_COPY_ROOTS);
        }
        int64_t got = busiest(&c.in, c.runs);
        free_cuts.in.grain = 1;
        moe_split(&free_cuts.in, c.scratch, c.runs);
        int64_t best = busiest(&c.in, c.runs);
        over += best ? (double)(got - best) / (double)(best + grain) : 0;
        drop(&c);
    }
    CHECK_EACH(over / n < 0.03, "the busiest rank has %.4f more than with cuts anywhere", over / n);
}
END_TEST

/* Gives experts with copies that many times the rows, less the others: the load is then level if the division is good. */
static void heat_copies(Case *c) {
    const MoeSplit *in = &c->in;
    for (int e = 0; e < in->experts; e++) {
        int copies = 0;
        for (int g = 0; g < in->ranks * in->slots; g++)
            copies += in->copies[g] == e;
        for (int v = 0; v < in->shards; v++)
            c->counts[e * in->shards + v] = copies > 1 ? below(150 * copies) : below(60);
    }
}

/* 256 experts on 64 ranks: the best of many runs, as the machine may be busy. */
START_TEST(a_layer_takes_microseconds) {
    for (int extra = 1; extra <= 4; extra *= 2)
        for (int grain = 1; grain <= 128; grain += 127) {
            double worst = 0, over = 0;
            for (int i = 0; i < 20; i++) {
                Case c = make(256, 64, extra, 64, 130, 10, 1 << 30, grain);
                heat_copies(&c);
                double best = 1e9;
                for (int k = 0; k < 20; k++) {
                    double t = moe_now();
                    moe_split(&c.in, c.scratch, c.runs);
                    t = (moe_now() - t) * 1e6;
                    best = t < best ? t : best;
                }
                worst = best > worst ? best : worst;
                int64_t got = busiest(&c.in, c.runs);
                c.in.grain = 1;
                moe_split(&c.in, c.scratch, c.runs);
                over += (double)got / (double)busiest(&c.in, c.runs) - 1;
                drop(&c);
            }
            printf("64 ranks, %d extra slots each, grain %d: %.0f us at most, busiest %.4f above "
                   "cuts anywhere\n",
                   extra, grain, worst, over / 20);
            if (getenv("MOE_TIMED") && (grain == 1 || extra == 1))
                CHECK_EACH(worst < 100, "%.0f us", worst);
        }
}
END_TEST

int main(void) {
    Suite *s = suite_create("split");
    TCase *t = tcase_create("split");
    tcase_set_timeout(t, 600);
    tcase_add_test(t, cuts_anywhere_are_optimal);
    tcase_add_test(t, a_flow_follows_changes);
    tcase_add_test(t, two_copies_are_cut_near_the_best_edge);
    tcase_add_test(t, runs_end_at_edges);
    tcase_add_test(t, a_layer_takes_microseconds);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
