/* Copies of experts between ranks (runtime/exec_comm_copies.c): weights reach the slots of copies, and the roots that copies computed
 * become the sum that one rank has, to the bit, whatever the map and the rows. Leaves of few rows make deep trees cheap. */
#include <check.h>
#include <stdio.h>
#include <string.h>

#include "base/rng.h"
#include "base/split_rows.h"
#include "base/str.h"
#include "runtime/exec_comm.h"
#include "runtime/plan.h"
#include "runtime/ranks.h"
#include "tests/support/exchange_gpu.h"
#include "tests/support/status_checks.h"

enum { E = 6, RANKS = 4, SLOTS = 4, G = RANKS * SLOTS, V = 8, LEAF = 4, COLS = 600, MOST = 64 };

/* What all ranks know. */
typedef struct {
    const MoePlan *plan;
    uint64_t seed;
    int32_t copies[G], place[E], counts[E * V];
    MoeSplitRun runs[G];
} Case;

static int draw(const Case *c, uint64_t stream, uint64_t i, int below) {
    return (int)moe_rng_below(c->seed, stream, i, (uint64_t)below);
}

/* ---- the sums of one rank ---- */

/* Column k of a leaf's sum. */
static float term(const Case *c, int e, int v, int leaf, int k) {
    uint32_t h = (uint32_t)draw(c, 7, (uint64_t)(((e * V + v) * MOST + leaf) * COLS + k), 1 << 30);
    return (float)(int32_t)(h - (1 << 29)) / (float)(1 << (h % 30));
}

/* The tree over n items padded to a power of two; `at`: the item's value, false if it is absent. */
typedef struct {
    const Case *c;
    int e, v, first, k; /* v: of leaves from `first` on; -1: items are shards from `first` on */
} Items;

static bool tree(const Items *it, int lo, int n, int size, float *out);

static bool item(const Items *it, int i, float *out) {
    if (it->v >= 0) {
        *out = term(it->c, it->e, it->v, it->first + i, it->k);
        return true;
    }
    Items leaves = {it->c, it->e, it->first + i, 0, it->k};
    int n = (it->c->counts[it->e * V + leaves.v] + LEAF - 1) / LEAF, size = 1;
    while (size < n)
        size *= 2;
    return tree(&leaves, 0, n, size, out);
}

static bool tree(const Items *it, int lo, int n, int size, float *out) {
    float right;
    if (lo >= n)
        return false;
    if (size == 1)
        return item(it, lo, out);
    bool left = tree(it, lo, n, size / 2, out);
    if (!tree(it, lo + size / 2, n, size / 2, left ? &right : out))
        return left;
    if (left)
        *out = *out + right;
    return true;
}

static float sum_of(const Items *it, int n) {
    float sum = 0;
    int size = 1;
    while (size < n)
        size *= 2;
    return tree(it, 0, n, size, &sum) ? sum : 0;
}

static float root_sum(const Case *c, int e, const MoeSplitRoot *r, int k) {
    bool part = r->leaf_end > r->leaf_begin;
    Items it = {c, e, part ? r->shard : -1, part ? r->leaf_begin : r->shard, k};
    return sum_of(&it, part ? r->leaf_end - r->leaf_begin : r->shards);
}

/* ---- cases ---- */

static void make_map(Case *c) {
    for (int g = 0; g < G; g++)
        c->copies[g] = -1;
    for (int e = 0; e < E; e++) {
        int g = draw(c, 1, (uint64_t)e, G);
        while (c->copies[g] >= 0)
            g = (g + 1) % G;
        c->copies[g] = e;
        c->place[e] = g;
    }
    for (int g = 0; g < G; g++) {
        int e = draw(c, 2, (uint64_t)g, E + 2);
        bool taken = e >= E || c->copies[g] >= 0;
        for (int k = g / SLOTS * SLOTS; k < (g / SLOTS + 1) * SLOTS; k++)
            taken |= c->copies[k] == e;
        c->copies[g] = taken ? c->copies[g] : e;
    }
    for (int e = 0; e < E; e++) /* any of its copies may be the primary */
        for (int g = 0; g < G; g++)
            if (c->copies[g] == e && draw(c, 3, (uint64_t)(e * G + g), 2))
                c->place[e] = g;
}

/* hot: all rows are of expert 1. */
static void make_rows(Case *c, bool hot) {
    for (int i = 0; i < E * V; i++) {
        bool none = hot ? i / V != 1 : draw(c, 4, (uint64_t)i, 4) == 0;
        c->counts[i] = none ? 0 : draw(c, 5, (uint64_t)i, i / V == 1 ? MOST * LEAF : 5 * LEAF);
    }
    MoeSplit in = {E, RANKS, SLOTS, c->copies, V, c->counts, LEAF};
    int64_t scratch[4096];
    ck_assert_int_le(moe_split_scratch(E, RANKS, SLOTS, V), (int64_t)sizeof scratch);
    moe_split(&in, scratch, c->runs);
}

/* ---- the plan ---- */

static const struct {
    const char *name;
    int64_t elements;
    bool f32;
} inputs[] = {{"w", SLOTS * COLS, true},
              {"first", SLOTS * COLS, true},
              {"rest", SLOTS *(MOE_COPY_ROOTS - 1) * COLS, true},
              {"more", SLOTS + 1, false},
              {"counts", E *V, false},
              {"runs", 2 * G, false},
              {"copies", G, false},
              {"place", E, false}};
enum { N_INPUTS = sizeof inputs / sizeof inputs[0] };

static MoePlan *make_plan(bool gpu) {
    MoeStr s = {0};
    MoePlan *p;
    moe_str_printf(&s,
                   "{\"format_version\": 1, \"abi\": 1, \"target\": \"cpu:generic\", \"model\": {}, "
                   "\"tokenizer\": \"byte\", \"vocab_size\": 256, \"batch\": 8, \"seq\": 1, "
                   "\"virtual_shards\": %d, \"micro_batches\": 1, \"dtype\": \"f32\", "
                   "\"moe_layers\": [], \"experts\": %d, \"experts_per_token\": 0, \"ranks\": %d, "
                   "\"slots\": %d, \"mesh\": {\"dp\": 1, \"shard\": 1, \"ep\": %d, \"tp\": 1, "
                   "\"dense_shard\": 1, \"extra_slots\": %d}, \"buffers\": [], \"params\": [], "
                   "\"programs\": {\"t\": {\"slab_bytes\": 64, \"slab_lower_bound\": 0, "
                   "\"scratch_bytes\": 0, \"outputs\": [], \"values\": [",
                   V, E, RANKS, SLOTS, RANKS, SLOTS - (E + RANKS - 1) / RANKS);
    for (int i = 0; i < N_INPUTS; i++)
        moe_str_printf(&s, "%s{\"input\": \"%s\", \"bytes\": %lld}", i ? ", " : "", inputs[i].name,
                       (long long)inputs[i].elements * 4);
    moe_str_append(&s, "], \"inputs\": [");
    for (int i = 0; i < N_INPUTS; i++)
        moe_str_printf(&s,
                       "%s{\"name\": \"%s\", \"value\": %d, \"dtype\": \"%s\", \"dims\": [%lld], "
                       "\"ragged\": false}",
                       i ? ", " : "", inputs[i].name, i, inputs[i].f32 ? "f32" : "i32",
                       (long long)inputs[i].elements);
    moe_str_printf(&s,
                   "], \"steps\": [{\"name\": \"copy\", \"phase\": \"forward\", \"layer\": -1, "
                   "\"count\": false, \"kind\": \"comm\", \"start\": false, \"comm\": [{\"op\": "
                   "\"copy_experts\", \"in\": [0,7,6], \"out\": 0, \"group\": \"ep\", "
                   "\"row_bytes\": %d, \"slots\": %d, \"experts\": %d}]}, {\"name\": \"fold\", "
                   "\"phase\": \"backward\", \"layer\": -1, \"count\": false, \"kind\": \"comm\", "
                   "\"start\": false, \"comm\": [{\"op\": \"fold_copies\", \"in\": [1,2,3,4,5,6,7], "
                   "\"out\": 1, \"group\": \"ep\", \"row_bytes\": %d, \"slots\": %d, \"experts\": "
                   "%d, \"leaf\": %d}]}]}}}",
                   COLS * 4, SLOTS, E, COLS * 4, SLOTS, E, LEAF);
    OK(exchange_load(moe_str_c(&s), s.len, gpu, &p));
    moe_str_free(&s);
    return p;
}

/* ---- ranks ---- */

static float weight(int e, int k) {
    return (float)(e * 1000 + k);
}

static void give(MoeExec *x, const char *name, const void *data, size_t bytes) {
    memcpy(moe_exec_input(x, "t", name), data, bytes);
}

static void fill_rank(const Case *c, MoeExec *x) {
    float *w = moe_exec_input(x, "t", "w"), *first = moe_exec_input(x, "t", "first"),
          *rest = moe_exec_input(x, "t", "rest");
    int32_t *more = moe_exec_input(x, "t", "more");
    give(x, "counts", c->counts, sizeof c->counts);
    give(x, "runs", c->runs, sizeof c->runs);
    give(x, "copies", c->copies, sizeof c->copies);
    give(x, "place", c->place, sizeof c->place);
    memset(first, 0, sizeof(float) * SLOTS * COLS);
    more[0] = 0;
    for (int s = 0; s < SLOTS; s++) {
        int g = x->coords.ep * SLOTS + s, e = c->copies[g], n = 0;
        MoeSplitRoot r[MOE_COPY_ROOTS];
        if (e >= 0)
            n = moe_split_roots(c->counts + e * V, V, LEAF, c->runs[g], r, MOE_COPY_ROOTS);
        for (int i = 0; i < n; i++)
            for (int k = 0; k < COLS; k++)
                (i ? rest + (more[s] + i - 1) * COLS : first + s * COLS)[k] = root_sum(c, e, &r[i], k);
        more[s + 1] = more[s] + (n > 1 ? n - 1 : 0);
        for (int k = 0; k < COLS; k++)
            w[s * COLS + k] = e >= 0 && c->place[e] == g ? weight(e, k) : -1;
    }
}

/* Only a wrong element makes a check. */
#define SAME(ok, ...)                                                                              \
    do {                                                                                           \
        if (!(ok))                                                                                 \
            ck_abort_msg(__VA_ARGS__);                                                             \
    } while (0)

static void check_rank(const Case *c, MoeExec *x) {
    const float *w = moe_exec_input(x, "t", "w"), *sum = moe_exec_input(x, "t", "first");
    for (int s = 0; s < SLOTS; s++) {
        int g = x->coords.ep * SLOTS + s, e = c->copies[g];
        Items all = {c, e, -1, 0, 0};
        for (int k = 0; k < COLS; k++) {
            float want = e < 0 ? -1 : weight(e, k);
            SAME(w[s * COLS + k] == want, "seed %d: weight %d of slot %d: %g, expected %g",
                 (int)c->seed, k, g, (double)w[s * COLS + k], (double)want);
            all.k = k;
            want = e >= 0 && c->place[e] == g ? sum_of(&all, V) : 0;
            SAME(memcmp(&sum[s * COLS + k], &want, sizeof want) == 0,
                 "seed %d: gradient %d of slot %d (expert %d): %a, expected %a", (int)c->seed, k, g,
                 e, (double)sum[s * COLS + k], (double)want);
        }
    }
}

static MoeStatus rank(void *ctx, MoeComm *comm) {
    const Case *c = ctx;
    MoeExec *x;
    OK(exchange_create(c->plan, comm, 1, &x));
    fill_rank(c, x);
    moe_exec_comm_begin_run(x);
    OK(exchange_run(x));
    check_rank(c, x);
    moe_exec_destroy(x);
    return NULL;
}

static void random_cases(MoePlan *p, int first, int n) {
    int most_roots = 0;
    for (int i = 0; i < n; i++) {
        static Case c;
        c = (Case){.plan = p, .seed = (uint64_t)(first + i)};
        make_map(&c);
        make_rows(&c, i % 3 == 2);
        for (int g = 0; g < G; g++) {
            MoeSplitRoot r[MOE_COPY_ROOTS];
            int roots = c.copies[g] < 0 ? 0
                                    : moe_split_roots(c.counts + c.copies[g] * V, V, LEAF, c.runs[g],
                                                      r, MOE_COPY_ROOTS);
            most_roots = roots > most_roots ? roots : most_roots;
        }
        OK(moe_ranks_run(RANKS, 0, rank, &c));
    }
    ck_assert_msg(most_roots > 1, "no copy has more than one root: the cases are too easy");
    moe_plan_free(p);
}

START_TEST(test_random) {
    random_cases(make_plan(false), _i * 100, 20);
}
END_TEST

/* From GPU to GPU, over a (simulated) NCCL. */
START_TEST(test_random_gpu) {
    if (exchange_gpus())
        random_cases(make_plan(true), 0, 8);
}
END_TEST

/* Micro-batches change no parameter: slots are filled once a run. */
static MoeStatus once(void *ctx, MoeComm *comm) {
    const Case *c = ctx;
    MoeExec *x;
    OK(moe_exec_create(c->plan, comm, 1, &x));
    MoeExecProgram *g = moe_exec_program(x, "t");
    fill_rank(c, x);
    float *w = moe_exec_input(x, "t", "w");
    int s = 0;
    while (s < SLOTS && (c->copies[x->coords.ep * SLOTS + s] < 0 ||
                         c->place[c->copies[x->coords.ep * SLOTS + s]] == x->coords.ep * SLOTS + s))
        s++;
    for (int i = 0; i < 3; i++) { /* two of the first run, one of the next */
        if (i != 1)
            moe_exec_comm_begin_run(x);
        w[s % SLOTS * COLS] = s < SLOTS ? -5 : w[s % SLOTS * COLS];
        OK(moe_exec_comm_step(x, g, 0));
        ck_assert(s == SLOTS || (w[s * COLS] == -5) == (i == 1));
    }
    moe_exec_destroy(x);
    return NULL;
}

START_TEST(test_once_a_run) {
    MoePlan *p = make_plan(false);
    static Case c;
    c = (Case){.plan = p, .seed = 5};
    make_map(&c);
    make_rows(&c, false);
    OK(moe_ranks_run(RANKS, 0, once, &c));
    moe_plan_free(p);
}
END_TEST

/* A primary in a slot that has another expert is found before anything moves. */
static MoeStatus wrong_map(void *ctx, MoeComm *comm) {
    const Case *c = ctx;
    MoeExec *x;
    OK(moe_exec_create(c->plan, comm, 1, &x));
    fill_rank(c, x);
    int32_t *place = moe_exec_input(x, "t", "place"), other = place[0];
    place[0] = place[1];
    place[1] = other;
    moe_exec_comm_begin_run(x);
    MoeStatus st = moe_exec_comm_step(x, moe_exec_program(x, "t"), 0);
    moe_exec_destroy(x);
    return st;
}

START_TEST(test_wrong_map) {
    MoePlan *p = make_plan(false);
    static Case c;
    c = (Case){.plan = p, .seed = 9};
    make_map(&c);
    make_rows(&c, false);
    FAILS(moe_ranks_run(RANKS, 0, wrong_map, &c), MOE_E_INTERNAL, "step copy", "has expert",
          "primary");
    moe_plan_free(p);
}
END_TEST

/* Ends that are no subtrees' are refused. */
START_TEST(test_no_roots) {
    const int32_t counts[] = {10, 0, 6};
    uint8_t program[16];
    const int32_t whole[] = {16}, halves[] = {8, 10, 16}, odd[] = {6, 16}, few[] = {10};
    ck_assert_int_eq(moe_split_fold(counts, 3, 4, whole, 1, program), 1);
    ck_assert_int_eq(moe_split_fold(counts, 3, 4, halves, 3, program), 5);
    const uint8_t want[] = {MOE_SPLIT_PUSH, MOE_SPLIT_PUSH, MOE_SPLIT_ADD, MOE_SPLIT_PUSH,
                            MOE_SPLIT_ADD};
    ck_assert_mem_eq(program, want, sizeof want);
    ck_assert_int_eq(moe_split_fold(counts, 3, 4, odd, 2, program), -1);
    ck_assert_int_eq(moe_split_fold(counts, 3, 4, few, 1, program), -1);
}
END_TEST

int main(void) {
    Suite *s = suite_create("exec_copies");
    TCase *t = tcase_create("exec_copies");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, test_random, 0, 5);
    tcase_add_test(t, test_random_gpu);
    tcase_add_test(t, test_once_a_run);
    tcase_add_test(t, test_wrong_map);
    tcase_add_test(t, test_no_roots);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
