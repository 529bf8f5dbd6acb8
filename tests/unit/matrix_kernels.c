/* The matrix kernels keep the numbers contract (docs/NUMBERS.md) bit by bit, on every instruction set
 * that runs here and on a GPU: products are chains of multiply-adds, weight gradients the
 * tree over leaves and shards, the loss head's dw the same tree across chunks; nothing depends on
 * threads, on the other rows of a batch, or on what was fused. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "codegen/codegen.h"
#include "ir/numbers.h"
#include "tests/support/check_main.h"
#include "tests/support/gpu.h"
#include "tests/support/group_run.h"
#include "tests/support/status_checks.h"

static const char *const targets[] = {"cpu",        "cpu:x86-64-v4", "cpu:x86-64-v3",
                                      "cpu:x86-64", "cuda:sm_80",    "cuda:sm_90a"};
#define N_TARGETS ((int)(sizeof targets / sizeof targets[0]))

/* One graph on one target. */
typedef struct {
    MoeModule *m;
    MoeGraph *g;
    MoeArena *a;
    MoeInputs in;
    MoeGroupRun *run;
    MoeGroupRunOptions options;
} Job;

static void job_open(Job *j, const char *target) {
    memset(j, 0, sizeof *j);
    j->m = moe_module_create();
    j->g = moe_module_add_graph(j->m, "g");
    j->a = moe_arena_create();
    j->options.target = target;
}

/* Random inputs; `rows` live rows of segment tables (-1: all). */
static void job_fill(Job *j, int64_t rows, MoeShardLayout layout) {
    MoeRandomOptions o = {.seed = 7, .rows = rows, .shards = layout, .ignored = 0.1};
    OK(moe_random_inputs(j->g, &o, j->a, &j->in));
}

static void job_run(Job *j) {
    OK(moe_group_run_create(j->g, &j->options, &j->run));
    OK(moe_group_run(j->run, &j->in));
}

static const void *job_data(const Job *j, const char *output) {
    return moe_group_run_data(j->run, moe_graph_find_output(j->g, output));
}

static void job_close(Job *j) {
    moe_group_run_destroy(j->run);
    moe_arena_destroy(j->a);
    moe_module_destroy(j->m);
}

/* An input's data as a kernel sees it; the caller frees. */
static void *packed(const Job *j, const char *name) {
    const MoeTensor *t = moe_inputs_find(&j->in, name);
    ck_assert_ptr_nonnull(t);
    void *p = malloc(moe_tensor_bytes(t) + 4);
    moe_tensor_pack(t, p);
    return p;
}

static bool target_fma(const char *target) {
    return strcmp(target, "cpu:x86-64") != 0;
}

static float multiply_add(bool fma, float a, float b, float c) {
    return fma ? fmaf(a, b, c) : a * b + c;
}

static void check_bits(const float *got, const float *want, int64_t n, const char *what) {
    for (int64_t i = 0; i < n; i++)
        ck_assert_msg(memcmp(&got[i], &want[i], 4) == 0, "%s: element %lld is %.9g, expected %.9g",
                      what, (long long)i, (double)got[i], (double)want[i]);
}

static bool skip(const char *target) {
    /* sm_90a's own products are in ops and product_tiles, too. */
    return (strcmp(target, "cuda:sm_90a") == 0 && !moe_test_does_all(target)) ||
           !moe_test_runs(target);
}

/* ---- products ---- */

/* tb, k, n: k beyond one panel's steps, n with all kinds of panels and edges. */
static const struct {
    int tb;
    int64_t rows, k, n;
} products[] = {{1, 17, 33, 49},  {0, 17, 33, 49}, {1, 130, 64, 64},  {1, 5, 2500, 20},
                {0, 9, 4100, 17}, {0, 3, 1, 1},    {1, 257, 16, 112}, {0, 129, 40, 97}};

START_TEST(product_is_a_chain) {
    const char *target = targets[_i];
    if (skip(target))
        return;
    for (size_t p = 0; p < sizeof products / sizeof products[0]; p++) {
        int64_t rows = products[p].rows, k = products[p].k, n = products[p].n;
        int tb = products[p].tb;
        Job j;
        job_open(&j, target);
        MoeValue *a = moe_build_input(j.g, "a", moe_type_2d(MOE_F32, moe_dim(rows), k));
        MoeValue *b =
            moe_build_input(j.g, "b", moe_type_2d(MOE_F32, moe_dim(tb ? n : k), tb ? k : n));
        MoeValue *c = moe_build(j.g, MOE_OP_MATMUL, (MoeValue *[]){a, b}, 2, moe_ai("tb", tb),
                                moe_ai("grouped", 0), MOE_END);
        moe_build_output(j.g, "c", c);
        job_fill(&j, -1, MOE_SHARDS_EVEN);
        job_run(&j);
        float *x = packed(&j, "a"), *y = packed(&j, "b"), *want = malloc((size_t)(rows * n) * 4);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < n; i++) {
                float acc = 0;
                for (int64_t s = 0; s < k; s++)
                    acc = multiply_add(target_fma(target), x[r * k + s],
                                       tb ? y[i * k + s] : y[s * n + i], acc);
                want[r * n + i] = acc;
            }
        check_bits(job_data(&j, "c"), want, rows * n, target);
        free(x);
        free(y);
        free(want);
        job_close(&j);
    }
}
END_TEST

/* A bf16 product of `rows` rows, ragged; the first `keep` rows of the result. */
static float *bf16_rows(const char *target, int64_t rows, int64_t keep, int64_t k, int64_t n) {
    Job j;
    job_open(&j, target);
    MoeValue *tok = moe_build_input(j.g, "tok", moe_type_segs(1, 4));
    MoeValue *a = moe_build_input(j.g, "a", moe_type_2d(MOE_BF16, moe_dim_ragged(300, tok), k));
    MoeValue *b = moe_build_input(j.g, "b", moe_type_2d(MOE_BF16, moe_dim(n), k));
    MoeValue *c = moe_build(j.g, MOE_OP_MATMUL, (MoeValue *[]){a, b}, 2, moe_ai("tb", 1),
                            moe_ai("grouped", 0), MOE_END);
    moe_build_output(j.g, "c", c);
    job_fill(&j, rows, MOE_SHARDS_EVEN);
    /* The same first rows whatever the number of rows; infinities in those behind. */
    MoeTensor *t = moe_inputs_find(&j.in, "a");
    for (int64_t i = 0; i < t->n; i++)
        t->f[i] = i < keep * k ? ((double)(i * 7919 % 509) - 254) / 64 : INFINITY;
    job_run(&j);
    float *out = malloc((size_t)(keep * n) * 4);
    memcpy(out, job_data(&j, "c"), (size_t)(keep * n) * 4);
    job_close(&j);
    return out;
}

START_TEST(rows_do_not_depend_on_neighbours) {
    const char *target = targets[_i];
    if (skip(target))
        return;
    const int64_t k = 77, n = 50, keep = 3;
    float *want = bf16_rows(target, keep, keep, k, n);
    const int64_t batches[] = {4, 7, 8, 9, 128, 131, 300};
    for (size_t i = 0; i < sizeof batches / sizeof batches[0]; i++) {
        float *got = bf16_rows(target, batches[i], keep, k, n);
        check_bits(got, want, keep * n, target);
        free(got);
    }
    for (int64_t i = 0; i < keep * n; i++)
        ck_assert_msg(isfinite(want[i]), "element %lld is not finite", (long long)i);
    free(want);
}
END_TEST

/* ---- weight gradients ---- */

/* The tree over n items of `width` floats; false if none is present. */
static bool tree(const float *items, const bool *present, int64_t n, int64_t width, float *out) {
    if (n == 1) {
        memcpy(out, items, (size_t)width * 4);
        return present[0];
    }
    int64_t half = 1;
    while (half * 2 < n)
        half *= 2;
    float *right = malloc((size_t)width * 4);
    bool a = tree(items, present, half, width, out);
    bool b = tree(items + half * width, present + half, n - half, width, right);
    for (int64_t i = 0; i < width && b; i++)
        out[i] = a ? out[i] + right[i] : right[i];
    free(right);
    return a || b;
}

typedef struct {
    const float *dy, *x;
    int64_t n, k;
    bool fma;
} Grad;

static void leaf(const Grad *g, int64_t lo, int64_t hi, float *out) {
    memset(out, 0, (size_t)(g->n * g->k) * 4);
    for (int64_t r = lo; r < hi; r++)
        for (int64_t i = 0; i < g->n; i++)
            for (int64_t c = 0; c < g->k; c++)
                out[i * g->k + c] = multiply_add(g->fma, g->dy[r * g->n + i], g->x[r * g->k + c],
                                                 out[i * g->k + c]);
}

/* One group: shards of segs[0..shards]. leaf_rows 0: one chain over them all. */
static void grad_reference(const Grad *g, const int32_t *segs, int64_t shards, int leaf_rows,
                           float *out) {
    int64_t width = g->n * g->k;
    if (!leaf_rows) {
        leaf(g, segs[0], segs[shards], out);
        return;
    }
    float *roots = calloc((size_t)(shards * width), 4);
    bool *there = calloc((size_t)shards, 1), all[256];
    memset(all, 1, sizeof all);
    for (int64_t v = 0; v < shards; v++) {
        int64_t lo = segs[v], hi = segs[v + 1],
                leaves = (hi - lo + leaf_rows - 1) / leaf_rows;
        float *sums = malloc((size_t)((leaves + 1) * width) * 4);
        for (int64_t i = 0; i < leaves; i++) {
            int64_t from = lo + i * leaf_rows, to = from + leaf_rows < hi ? from + leaf_rows : hi;
            leaf(g, from, to, sums + i * width);
        }
        there[v] = leaves > 0 && tree(sums, all, leaves, width, roots + v * width);
        free(sums);
    }
    if (!tree(roots, there, shards, width, out))
        memset(out, 0, (size_t)width * 4);
    free(roots);
    free(there);
}

/* 0: --fast-reduce. */
static void set_leaf(Job *j, int leaf_rows) {
    j->g->leaf_rows = leaf_rows;
    j->g->fast_reduce = leaf_rows == 0;
}

typedef struct {
    int64_t rows, shards, groups;
    MoeShardLayout layout;
} GradCase;
enum { GRAD_N = 19, GRAD_K = 37 };

static void grad_open(Job *j, const char *target, int leaf_rows, const GradCase *c) {
    job_open(j, target);
    set_leaf(j, leaf_rows);
    MoeValue *seg = moe_build_input(j->g, "seg", moe_type_segs(c->groups, c->shards));
    MoeDim rows = moe_dim_ragged(1600, seg);
    MoeValue *dy = moe_build_input(j->g, "dy", moe_type_2d(MOE_F32, rows, GRAD_N));
    MoeValue *x = moe_build_input(j->g, "x", moe_type_2d(MOE_F32, rows, GRAD_K));
    MoeValue *dw = moe_build(j->g, MOE_OP_WEIGHT_GRAD, (MoeValue *[]){dy, x}, 2,
                             moe_ai("grouped", c->groups > 1), MOE_END);
    moe_build_output(j->g, "dw", dw);
    job_fill(j, c->rows, c->layout);
    job_run(j);
}

static void check_grad(const char *target, int leaf_rows, const GradCase *c) {
    int64_t width = (int64_t)GRAD_N * GRAD_K;
    Job j;
    grad_open(&j, target, leaf_rows, c);
    float *dy = packed(&j, "dy"), *x = packed(&j, "x"),
          *want = malloc((size_t)(c->groups * width) * 4);
    int32_t *segs = packed(&j, "seg");
    Grad g = {dy, x, GRAD_N, GRAD_K, target_fma(target)};
    for (int64_t e = 0; e < c->groups; e++)
        grad_reference(&g, segs + e * c->shards, c->shards, leaf_rows, want + e * width);
    check_bits(job_data(&j, "dw"), want, c->groups * width, target);
    free(dy);
    free(x);
    free(segs);
    free(want);
    job_close(&j);
}

static const GradCase grad_cases[] = {
    {1500, 8, 1, MOE_SHARDS_RANDOM}, {900, 8, 3, MOE_SHARDS_RANDOM},  {1400, 2, 1, MOE_SHARDS_EVEN},
    {0, 8, 1, MOE_SHARDS_EVEN},      {1, 8, 1, MOE_SHARDS_LAST},      {700, 1, 1, MOE_SHARDS_EVEN},
    {1030, 4, 1, MOE_SHARDS_FIRST},  {1400, 16, 1, MOE_SHARDS_RANDOM}, {640, 8, 1, MOE_SHARDS_EVEN}};
#define N_GRAD_CASES (sizeof grad_cases / sizeof grad_cases[0])

START_TEST(weight_grad_is_the_tree) {
    const char *target = targets[_i];
    if (skip(target))
        return;
    for (size_t i = 0; i < N_GRAD_CASES; i++)
        check_grad(target, MOE_LEAF_ROWS, &grad_cases[i]);
}
END_TEST

/* Leaves of other lengths, several slices long or shorter than one; no leaves at all. On a GPU, where kernels take long to compile, the
 * first cases. */
START_TEST(weight_grad_has_the_graphs_leaf) {
    static const int leaves[] = {64, 512, 1024, 0};
    const char *target = targets[_i];
    if (skip(target))
        return;
    size_t n = strncmp(target, "cuda", 4) == 0 ? 2 : N_GRAD_CASES;
    for (size_t l = 0; l < sizeof leaves / sizeof *leaves; l++)
        for (size_t i = 0; i < n; i++)
            check_grad(target, leaves[l], &grad_cases[i]);
}
END_TEST

/* The largest error of dw, over the sum of the terms' magnitudes, against the sum in double. */
static double grad_error(const char *target, int leaf_rows, const GradCase *c) {
    Job j;
    grad_open(&j, target, leaf_rows, c);
    float *dy = packed(&j, "dy"), *x = packed(&j, "x");
    int32_t *segs = packed(&j, "seg");
    const float *got = job_data(&j, "dw");
    double worst = 0;
    for (int64_t e = 0; e < c->groups; e++)
        for (int64_t i = 0; i < GRAD_N; i++)
            for (int64_t k = 0; k < GRAD_K; k++) {
                double sum = 0, all = 1e-30;
                for (int64_t r = segs[e * c->shards]; r < segs[(e + 1) * c->shards]; r++) {
                    double term = (double)dy[r * GRAD_N + i] * (double)x[r * GRAD_K + k];
                    sum += term;
                    all += fabs(term);
                }
                double error = fabs((double)got[(e * GRAD_N + i) * GRAD_K + k] - sum) / all;
                worst = error > worst ? error : worst;
            }
    free(dy);
    free(x);
    free(segs);
    job_close(&j);
    return worst;
}

/* --fast-reduce: within rounding of the sum. Measured here: 2.5e-8 to 4.9e-8 for the trees, 1.4e-7 for one chain of up to 1500 rows.
 * (n additions could be as bad as n 2^-24, 9e-5, if all rounded the same way.) */
#define TREE_BOUND 1e-7
#define FAST_BOUND 3e-7
START_TEST(fast_reduce_is_within_rounding) {
    const char *target = targets[_i];
    if (skip(target))
        return;
    for (size_t i = 0; i < 2; i++) {
        double of_tree = grad_error(target, MOE_LEAF_ROWS, &grad_cases[i]),
               of_chain = grad_error(target, 0, &grad_cases[i]);
        printf("%s: error of weight gradients over %lld rows: trees %.2g, one chain %.2g\n", target,
               (long long)grad_cases[i].rows, of_tree, of_chain);
        ck_assert_msg(of_tree <= TREE_BOUND, "trees: %.3g > %.3g", of_tree, TREE_BOUND);
        ck_assert_msg(of_chain <= FAST_BOUND, "one chain: %.3g > %.3g", of_chain, FAST_BOUND);
    }
}
END_TEST

/* ---- the loss head ---- */

enum { HEAD_C = 24, HEAD_N = 200, HEAD_CAPACITY = 1500 };

/* dw of rows lo..hi of `from`'s batch (all if from is NULL), over `shards` shards. */
static void head_open(Job *j, const char *target, MoeDtype d, int64_t shards, int64_t capacity) {
    job_open(j, target);
    MoeValue *tok = moe_build_input(j->g, "tok", moe_type_segs(1, shards));
    MoeDim rows = moe_dim_ragged(capacity, tok);
    MoeValue *h = moe_build_input(j->g, "h", moe_type_2d(d, rows, HEAD_C));
    MoeValue *w = moe_build_input(j->g, "w", moe_type_2d(d, moe_dim(HEAD_N), HEAD_C));
    MoeValue *labels =
        moe_build_input(j->g, "labels", (MoeType){.dtype = MOE_I32, .rank = 1, .dims = {rows}});
    MoeValue *dnll = moe_build_input(j->g, "dnll", moe_type_2d(MOE_F32, rows, 1));
    MoeOp *op = moe_op_build(j->g, MOE_OP_LINEAR_CROSS_ENTROPY_GRAD,
                             (MoeValue *[]){h, w, labels, dnll}, 4, MOE_END);
    moe_build_output(j->g, "nll", op->results[0]);
    moe_build_output(j->g, "dh", op->results[1]);
    moe_build_output(j->g, "dw", op->results[2]);
}

static void copy_rows(Job *to, const Job *from, const char *name, int64_t cols, int64_t lo,
                      int64_t hi) {
    const MoeTensor *a = moe_inputs_find(&from->in, name);
    MoeTensor *b = moe_inputs_find(&to->in, name);
    for (int64_t i = 0; i < (hi - lo) * cols; i++) {
        if (a->f)
            b->f[i] = a->f[lo * cols + i];
        else
            b->i[i] = a->i[lo * cols + i];
    }
}

/* dw of each leaf alone, then the tree, against dw of all rows, which runs in several chunks. */
static void check_head(const char *target, MoeDtype d, int64_t n_rows, int64_t shards,
                       MoeShardLayout layout, int leaf_rows) {
    int64_t width = (int64_t)HEAD_N * HEAD_C;
    Job all;
    head_open(&all, target, d, shards, HEAD_CAPACITY);
    set_leaf(&all, leaf_rows);
    job_fill(&all, n_rows, layout);
    job_run(&all);
    int32_t *segs = packed(&all, "tok");
    float *roots = calloc((size_t)(shards * width), 4), *want = calloc((size_t)width, 4);
    bool there[64] = {false}, present[64];
    memset(present, 1, sizeof present);
    for (int64_t v = 0; v < shards; v++) {
        int64_t lo = segs[v], hi = segs[v + 1],
                leaves = (hi - lo + leaf_rows - 1) / leaf_rows;
        float *sums = malloc((size_t)((leaves + 1) * width) * 4);
        for (int64_t i = 0; i < leaves; i++) {
            int64_t from = lo + i * leaf_rows, to = from + leaf_rows < hi ? from + leaf_rows : hi;
            Job one;
            head_open(&one, target, d, 1, leaf_rows);
            set_leaf(&one, leaf_rows);
            job_fill(&one, to - from, MOE_SHARDS_EVEN);
            copy_rows(&one, &all, "h", HEAD_C, from, to);
            copy_rows(&one, &all, "labels", 1, from, to);
            copy_rows(&one, &all, "dnll", 1, from, to);
            copy_rows(&one, &all, "w", HEAD_C, 0, HEAD_N);
            job_run(&one);
            memcpy(sums + i * width, job_data(&one, "dw"), (size_t)width * 4);
            check_bits(job_data(&one, "nll"), (const float *)job_data(&all, "nll") + from,
                       to - from, "nll");
            check_bits(job_data(&one, "dh"), (const float *)job_data(&all, "dh") + from * HEAD_C,
                       (to - from) * HEAD_C, "dh");
            job_close(&one);
        }
        there[v] = leaves > 0 && tree(sums, present, leaves, width, roots + v * width);
        free(sums);
    }
    if (!tree(roots, there, shards, width, want))
        memset(want, 0, (size_t)width * 4);
    check_bits(job_data(&all, "dw"), want, width, "dw");
    free(segs);
    free(roots);
    free(want);
    job_close(&all);
}

START_TEST(head_is_the_tree_across_chunks) {
    const char *target = targets[_i];
    if (skip(target))
        return;
    check_head(target, MOE_F32, 1500, 8, MOE_SHARDS_RANDOM, MOE_LEAF_ROWS);
    check_head(target, MOE_BF16, 1430, 4, MOE_SHARDS_FIRST, MOE_LEAF_ROWS);
    check_head(target, MOE_F32, 700, 8, MOE_SHARDS_LAST, MOE_LEAF_ROWS);
    check_head(target, MOE_F32, 0, 8, MOE_SHARDS_EVEN, MOE_LEAF_ROWS);
    check_head(target, MOE_BF16, 1430, 2, MOE_SHARDS_EVEN, 512);
    if (strncmp(target, "cpu", 3) == 0) {
        check_head(target, MOE_F32, 700, 2, MOE_SHARDS_EVEN, 64);
        check_head(target, MOE_F32, 1500, 1, MOE_SHARDS_EVEN, 1024);
    }
}
END_TEST

/* ---- threads and fusion ---- */

/* Experts with SwiGLU, gathered, then weight gradients of the gathered rows; `fused`: as fuse
 * groups them, else op by op. */
static void experts_open(Job *j, const char *target, MoeDtype d, bool fused) {
    job_open(j, target);
    enum { TOKENS = 260, C = 48, F = 100, E = 5, K = 2 };
    MoeValue *tok = moe_build_input(j->g, "tok", moe_type_segs(1, 4));
    MoeDim rows = moe_dim_ragged(TOKENS, tok);
    MoeValue *x = moe_build_input(j->g, "x", moe_type_2d(d, rows, C));
    MoeValue *ids = moe_build_input(j->g, "ids", moe_type_2d(MOE_I32, rows, K));
    MoeValue *w1 = moe_build_input(j->g, "w1", moe_type_3d(d, E, F, C));
    MoeValue *w3 = moe_build_input(j->g, "w3", moe_type_3d(d, E, F, C));
    MoeValue *bias = moe_build_input(j->g, "bias", moe_type_1d(MOE_F32, F));
    MoeOp *plan = moe_op_build(j->g, MOE_OP_ROUTE_PLAN, &ids, 1, moe_ai("experts", E), MOE_END);
    MoeValue *route[] = {x, plan->results[1], plan->results[2]};
    MoeValue *scale = moe_build_input(j->g, "scale", moe_type_1d(MOE_F32, 1));
    size_t first = j->g->n_ops;
    MoeValue *xs = moe_build(j->g, MOE_OP_DISPATCH, route, 3, MOE_END);
    MoeValue *g = moe_build(j->g, MOE_OP_MATMUL, (MoeValue *[]){xs, w1}, 2, moe_ai("tb", 1),
                            moe_ai("grouped", 1), MOE_END);
    MoeValue *u = moe_build(j->g, MOE_OP_MATMUL, (MoeValue *[]){xs, w3}, 2, moe_ai("tb", 1),
                            moe_ai("grouped", 1), MOE_END);
    MoeValue *twice = moe_build2(j->g, MOE_OP_ADD, scale, scale);
    MoeValue *s = moe_build1(j->g, MOE_OP_SIGMOID, moe_build2(j->g, MOE_OP_ADD, g, bias));
    MoeValue *y = moe_build2(j->g, MOE_OP_MUL, moe_build2(j->g, MOE_OP_MUL, g, s), u);
    y = moe_build_convert(j->g, moe_build2(j->g, MOE_OP_MUL, y, twice), d);
    for (size_t i = first; i < j->g->n_ops && fused; i++)
        j->g->ops[i]->group = 1;
    first = j->g->n_ops;
    xs = moe_build(j->g, MOE_OP_DISPATCH, route, 3, MOE_END);
    MoeValue *dw = moe_build(j->g, MOE_OP_WEIGHT_GRAD, (MoeValue *[]){y, xs}, 2,
                             moe_ai("grouped", 1), MOE_END);
    for (size_t i = first; i < j->g->n_ops && fused; i++)
        j->g->ops[i]->group = 2;
    moe_build_output(j->g, "g", g);
    moe_build_output(j->g, "y", y);
    moe_build_output(j->g, "dw", dw);
    job_fill(j, TOKENS, MOE_SHARDS_RANDOM);
}

static void check_same(const Job *a, const Job *b, const char *what) {
    const char *const names[] = {"g", "y", "dw"};
    for (size_t i = 0; i < 3; i++) {
        const MoeValue *v = moe_graph_find_output(a->g, names[i]);
        ck_assert_msg(memcmp(job_data(a, names[i]), job_data(b, names[i]),
                             (size_t)moe_type_bytes(&v->type)) == 0,
                      "%s: %s differs", what, names[i]);
    }
}

START_TEST(threads_and_fusion_change_no_bit) {
    const char *target = targets[_i];
    if (skip(target))
        return;
    for (int d = 0; d < 2; d++) {
        Job want;
        experts_open(&want, target, d ? MOE_BF16 : MOE_F32, true);
        job_run(&want);
        int n_others = strncmp(target, "cpu", 3) == 0 ? 3 : 1;
        for (int i = 0; i < n_others; i++) { /* unfused; 2 and 4 threads */
            Job other;
            experts_open(&other, target, d ? MOE_BF16 : MOE_F32, i > 0);
            other.options.threads = i * 2;
            job_run(&other);
            check_same(&want, &other, i ? "threads" : "unfused");
            job_close(&other);
        }
        job_close(&want);
    }
}
END_TEST

/* What the fused group may not do: a tail in other rows, a pair with other rows of A. */
START_TEST(groups_that_do_not_fit_are_refused) {
    MoeTarget *t;
    OK(moe_target_create("cpu", &t));
    Job j;
    job_open(&j, "cpu");
    MoeValue *a = moe_build_input(j.g, "a", moe_type_2d(MOE_F32, moe_dim(8), 4));
    MoeValue *a2 = moe_build_input(j.g, "a2", moe_type_2d(MOE_F32, moe_dim(8), 4));
    MoeValue *b = moe_build_input(j.g, "b", moe_type_2d(MOE_F32, moe_dim(6), 4));
    MoeValue *other = moe_build_input(j.g, "other", moe_type_2d(MOE_F32, moe_dim(3), 6));
    MoeAttr tb = moe_ai("tb", 1), grouped = moe_ai("grouped", 0);
    MoeOp *mm = moe_build(j.g, MOE_OP_MATMUL, (MoeValue *[]){a, b}, 2, tb, grouped, MOE_END)->def;
    MoeOp *mm2 = moe_build(j.g, MOE_OP_MATMUL, (MoeValue *[]){a2, b}, 2, tb, grouped, MOE_END)->def;
    MoeOp *pair = moe_build(j.g, MOE_OP_MATMUL, (MoeValue *[]){a, b}, 2, tb, grouped, MOE_END)->def;
    MoeOp *tail = moe_build1(j.g, MOE_OP_EXP, mm->results[0])->def;
    MoeOp *apart = moe_build1(j.g, MOE_OP_EXP, other)->def;
    MoeOp *sum = moe_build1(j.g, MOE_OP_ROW_SUM, mm->results[0])->def;
    ck_assert(t->can_join(t, &mm, 1, pair));
    ck_assert(!t->can_join(t, &mm, 1, mm2));
    ck_assert(t->can_join(t, &mm, 1, tail));
    ck_assert(!t->can_join(t, &mm, 1, apart));
    ck_assert(!t->can_join(t, &mm, 1, sum));
    MoeOp *with_tail[] = {mm, tail};
    ck_assert(!t->can_join(t, with_tail, 2, pair)); /* no product behind a tail */
    job_close(&j);
    t->destroy(t);
}
END_TEST

START_TEST(unknown_targets_name_the_nearest) {
    MoeTarget *t;
    MoeStatus st = moe_target_create("cpu:znver3x", &t);
    ck_assert(st && !t && strstr(moe_status_message(st), "znver3"));
    moe_status_free(st);
    st = moe_target_create("cpo", &t);
    ck_assert(st && !t && strstr(moe_status_message(st), "'cpu'"));
    moe_status_free(st);
    ck_assert(moe_target_runs_here("cpu") &&
              moe_target_runs_here("cpu:x86-64") == moe_target_runs_here("cpu:x86-64"));
    /* Of two CPUs neither of which is the other, at most one is this one. */
    ck_assert(!moe_target_runs_here("cpu:znver4") || !moe_target_runs_here("cpu:sapphirerapids"));
    ck_assert(!moe_target_runs_here("cpu:no-such") && !moe_target_runs_here("gpu"));
    OK(moe_target_create("cpu", &t)); /* its name makes the same target again */
    MoeTarget *again;
    OK(moe_target_create(t->name, &again));
    ck_assert_str_eq(t->name, again->name);
    ck_assert(moe_target_runs_here(t->name));
    t->destroy(t);
    again->destroy(again);
}
END_TEST

int main(void) {
    moe_test_compile_plainly();
    Suite *s = suite_create("matrix_kernels");
    TCase *tc = tcase_create("matrix_kernels");
    tcase_set_timeout(tc, 600);
    tcase_add_loop_test(tc, product_is_a_chain, 0, N_TARGETS);
    tcase_add_loop_test(tc, rows_do_not_depend_on_neighbours, 0, N_TARGETS);
    tcase_add_loop_test(tc, weight_grad_is_the_tree, 0, N_TARGETS);
    tcase_add_loop_test(tc, weight_grad_has_the_graphs_leaf, 0, N_TARGETS);
    tcase_add_loop_test(tc, fast_reduce_is_within_rounding, 0, N_TARGETS);
    tcase_add_loop_test(tc, head_is_the_tree_across_chunks, 0, N_TARGETS);
    tcase_add_loop_test(tc, threads_and_fusion_change_no_bit, 0, N_TARGETS);
    tcase_add_test(tc, groups_that_do_not_fit_are_refused);
    tcase_add_test(tc, unknown_targets_name_the_nearest);
    suite_add_tcase(s, tc);
    return moe_check_main(s);
}
