/* Products and weight gradients at sizes that take every tile of the CUDA target (codegen/cuda/gemm.c), on the CPU as well: dense and
 * by expert, one product and two with a tail, rows gathered, extents that are and that are not multiples of what a copy moves.
 *
 * Operands are small integers, so that every sum is exact in f32 whatever its order and results are compared bit by bit; that each
 * order is the one of docs/NUMBERS.md is for matrix_kernels.c. Row sums behind products are of numbers that do tell their order. */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include "codegen/codegen.h"
#include "tests/support/check_main.h"
#include "tests/support/gpu.h"
#include "tests/support/group_run.h"
#include "tests/support/status_checks.h"

static const char *const targets[] = {"cpu", "cuda:sm_80", "cuda:sm_90a"};
enum { N_TARGETS = sizeof targets / sizeof targets[0], SHARDS = 4, CHOICES = 2 };

/* capacity: of rows, or of tokens that are gathered; live: how many there are. */
typedef struct {
    MoeDtype dtype;
    int products;
    bool tb, gather;
    int64_t capacity, live, experts, n, k;
    bool sums; /* row sums behind it, where the target has them there */
} Product;

static const Product products[] = {
    /* 128 x 256 and 128 x 128 of bf16 */
    {MOE_BF16, 1, true, false, 1792, 1790, 1, 2048, 24, true},
    {MOE_BF16, 1, false, false, 1792, 1700, 1, 2048, 40, true},
    {MOE_BF16, 1, true, false, 1408, 1300, 1, 1288, 72, true},
    {MOE_BF16, 1, false, true, 900, 801, 5, 1160, 24, false},
    /* rows that are no multiples of 16 bytes; the last k alone in its slice */
    {MOE_BF16, 1, true, false, 1408, 1300, 1, 1283, 65, true},
    {MOE_BF16, 1, false, true, 900, 801, 5, 1161, 19, false},
    /* 64 x 64; more than 32 experts, most of them without rows */
    {MOE_BF16, 1, true, true, 70, 70, 70, 72, 200, true},
    {MOE_BF16, 1, false, true, 60, 3, 40, 67, 130, false},
    /* pairs */
    {MOE_BF16, 2, true, true, 1000, 990, 4, 1032, 24, true},
    {MOE_BF16, 2, false, false, 1408, 1390, 1, 680, 24, true},
    {MOE_BF16, 2, true, true, 1000, 977, 4, 521, 25, true},
    {MOE_BF16, 2, true, true, 40, 33, 3, 40, 136, true},
    /* f32: 128 x 128, 128 x 64 of pairs, 64 x 64 */
    {MOE_F32, 1, true, false, 1408, 1401, 1, 1284, 20, true},
    {MOE_F32, 1, false, true, 900, 801, 5, 1161, 19, false},
    {MOE_F32, 2, true, true, 1000, 990, 4, 460, 20, false},
    {MOE_F32, 2, false, false, 1408, 1390, 1, 641, 17, true},
    {MOE_F32, 1, true, true, 60, 57, 40, 70, 33, true},
};
enum { N_PRODUCTS = sizeof products / sizeof products[0] };

typedef struct {
    MoeModule *m;
    MoeGraph *g;
    MoeArena *a;
    MoeInputs in;
    MoeGroupRun *run;
} Job;

static void job_open(Job *j) {
    memset(j, 0, sizeof *j);
    j->m = moe_module_create();
    j->g = moe_module_add_graph(j->m, "g");
    j->a = moe_arena_create();
}

/* What is summed: a product's column times this, which is no integer, so that the sum tells its order. */
static double factor(int64_t col) {
    return (double)(float)((double)(col * 17 % 29 - 14) / 7);
}

/* Inputs, with `live` rows; floats become integers from -4 to 4, so that no sum here leaves 2^24. */
static void job_run(Job *j, const char *target, int64_t live) {
    MoeRandomOptions o = {.seed = 11, .rows = live, .shards = MOE_SHARDS_RANDOM};
    OK(moe_random_inputs(j->g, &o, j->a, &j->in));
    uint32_t x = 12345;
    for (size_t i = 0; i < j->in.n; i++)
        for (int64_t e = 0; j->in.items[i].t.f && e < j->in.items[i].t.n; e++) {
            x = x * 1664525u + 1013904223u;
            j->in.items[i].t.f[e] = (double)((x >> 20) % 9) - 4;
        }
    MoeTensor *z = moe_inputs_find(&j->in, "z");
    for (int64_t e = 0; z && e < z->n; e++)
        z->f[e] = factor(e);
    OK(moe_group_run_create(j->g, &(MoeGroupRunOptions){.target = target}, &j->run));
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

/* Rows of tokens, gathered by expert or not; the values that say which (NULL: not gathered), and the experts' table. */
typedef struct {
    MoeValue *x, *seg, *src, *inv;
} Rows;

static Rows rows_open(Job *j, MoeDtype d, int64_t capacity, int64_t experts, bool gather,
                      int64_t cols) {
    Rows r = {0};
    if (!gather) {
        r.seg = moe_build_input(j->g, "tok", moe_type_segs(experts, SHARDS));
        r.x = moe_build_input(j->g, "x", moe_type_2d(d, moe_dim_ragged(capacity, r.seg), cols));
        return r;
    }
    MoeValue *tok = moe_build_input(j->g, "tok", moe_type_segs(1, SHARDS));
    MoeDim rows = moe_dim_ragged(capacity, tok);
    r.x = moe_build_input(j->g, "x", moe_type_2d(d, rows, cols));
    MoeValue *ids = moe_build_input(j->g, "ids", moe_type_2d(MOE_I32, rows, CHOICES));
    MoeOp *plan =
        moe_op_build(j->g, MOE_OP_ROUTE_PLAN, &ids, 1, moe_ai("experts", experts), MOE_END);
    r.seg = plan->results[0];
    r.src = plan->results[1];
    r.inv = plan->results[2];
    moe_build_output(j->g, "seg", r.seg);
    moe_build_output(j->g, "src", r.src);
    return r;
}

static MoeValue *gathered(Job *j, const Rows *r, MoeValue *x) {
    return r->src ? moe_build(j->g, MOE_OP_DISPATCH, (MoeValue *[]){x, r->src, r->inv}, 3, MOE_END)
                  : x;
}

/* The rows of expert e, and the row of x that row i is. */
typedef struct {
    int32_t *seg;
    const int32_t *src;
} Where;

static Where where_open(const Job *j, bool gather, int64_t entries) {
    Where w = {.seg = malloc((size_t)(entries + 1) * 4), .src = gather ? job_data(j, "src") : NULL};
    if (gather)
        memcpy(w.seg, job_data(j, "seg"), (size_t)(entries + 1) * 4);
    else
        moe_tensor_pack(moe_inputs_find(&j->in, "tok"), w.seg);
    return w;
}

static int64_t row_of(const Where *w, int64_t i) {
    return w->src ? w->src[i] / CHOICES : i;
}

static MoeValue *weights(Job *j, const Product *p, const char *name) {
    int64_t a = p->tb ? p->n : p->k, b = p->tb ? p->k : p->n;
    return moe_build_input(j->g, name,
                           p->experts > 1 ? moe_type_3d(p->dtype, p->experts, a, b)
                                          : moe_type_2d(p->dtype, moe_dim(a), b));
}

static double element(const Product *p, const double *x, const double *w, int64_t col) {
    double sum = 0;
    for (int64_t i = 0; i < p->k; i++)
        sum += x[i] * (p->tb ? w[col * p->k + i] : w[i * p->n + col]);
    return sum;
}

/* The sum of a row as device/gemm.cuh has it: pieces of 32 columns in ascending order, each four sums of 8 by halves. */
static float row_sum(const float *y, int64_t row, int64_t n) {
    float sum = 0;
    for (int64_t piece = 0; piece < n; piece += 32) {
        float part[4] = {0, 0, 0, 0};
        for (int64_t col = piece; col < n && col < piece + 32; col++)
            part[(col - piece) / 8] += y[row * n + col] * (float)factor(col);
        sum += (part[0] + part[2]) + (part[1] + part[3]);
    }
    return sum;
}

static void check_sums(const char *target, const Product *p, int which, const float *y,
                       const float *sums, int64_t rows) {
    for (int64_t i = 0; i < rows; i++) {
        float want = row_sum(y, i, p->n);
        if (memcmp(&sums[i], &want, sizeof want) != 0)
            ck_abort_msg("%s, product %d: the sum of row %lld is %.9g, not %.9g", target, which,
                         (long long)i, (double)sums[i], (double)want);
    }
}

static void check_product(const char *target, const Product *p, int which) {
    Job j;
    job_open(&j);
    Rows r = rows_open(&j, p->dtype, p->capacity, p->experts, p->gather, p->k);
    MoeValue *w[2] = {weights(&j, p, "w0"), p->products == 2 ? weights(&j, p, "w1") : NULL}, *c[2];
    bool sums = p->sums && strncmp(target, "cuda:", 5) == 0;
    MoeValue *sum = NULL, *z = NULL;
    if (sums)
        z = moe_build_input(j.g, "z", moe_type_1d(MOE_F32, p->n));
    size_t first = j.g->n_ops;
    MoeValue *a = gathered(&j, &r, r.x);
    for (int i = 0; i < p->products; i++)
        c[i] = moe_build(j.g, MOE_OP_MATMUL, (MoeValue *[]){a, w[i]}, 2, moe_ai("tb", p->tb),
                         moe_ai("grouped", p->experts > 1), MOE_END);
    MoeValue *y = p->products == 2 ? moe_build2(j.g, MOE_OP_SUB, c[0], c[1]) : c[0];
    if (sums)
        sum = moe_build1(j.g, MOE_OP_ROW_SUM, moe_build2(j.g, MOE_OP_MUL, y, z));
    for (size_t i = first; i < j.g->n_ops; i++)
        j.g->ops[i]->group = 1;
    moe_build_output(j.g, "y", y);
    if (sums)
        moe_build_output(j.g, "sum", sum);
    job_run(&j, target, p->live);
    Where where = where_open(&j, p->gather, p->experts * SHARDS);
    const double *x = moe_inputs_find(&j.in, "x")->f, *w0 = moe_inputs_find(&j.in, "w0")->f;
    const double *w1 = p->products == 2 ? moe_inputs_find(&j.in, "w1")->f : NULL;
    const float *got = job_data(&j, "y");
    int64_t seen = 0;
    for (int64_t e = 0; e < p->experts; e++)
        for (int64_t i = where.seg[e * SHARDS]; i < where.seg[(e + 1) * SHARDS]; i++, seen++)
            for (int64_t col = 0; col < p->n; col++) {
                const double *row = x + row_of(&where, i) * p->k;
                double want = element(p, row, w0 + e * p->n * p->k, col);
                want -= w1 ? element(p, row, w1 + e * p->n * p->k, col) : 0;
                if ((double)got[i * p->n + col] != want)
                    ck_abort_msg("%s, product %d: row %lld, column %lld is %g, not %g", target,
                                 which, (long long)i, (long long)col, (double)got[i * p->n + col],
                                 want);
            }
    ck_assert_int_eq(seen, p->live * (p->gather ? CHOICES : 1));
    if (sums)
        check_sums(target, p, which, got, job_data(&j, "sum"), seen);
    free(where.seg);
    job_close(&j);
}

/* The GPUs' f32 kernels are the same text: one of them is enough. Of the others each simulated GPU takes every other one. */
static bool runs(const char *target, const Product *p, int which) {
    int hopper = strcmp(target, "cuda:sm_90a") == 0;
    return (p->dtype != MOE_F32 || !hopper) &&
           (moe_test_does_all(target) || which % 2 == hopper) && moe_test_runs(target);
}

START_TEST(products_are_exact) {
    const char *target = targets[_i / N_PRODUCTS];
    if (runs(target, &products[_i % N_PRODUCTS], _i % N_PRODUCTS))
        check_product(target, &products[_i % N_PRODUCTS], _i % N_PRODUCTS);
}
END_TEST

/* ---- weight gradients ---- */

static const Product gradients[] = {
    {MOE_BF16, 1, false, false, 600, 590, 4, 640, 768, false},
    {MOE_BF16, 1, false, true, 240, 230, 5, 520, 648, false},
    {MOE_BF16, 1, false, true, 130, 120, 5, 515, 645, false},
    {MOE_BF16, 1, false, false, 1500, 1470, 1, 72, 136, false},
    {MOE_F32, 1, false, true, 150, 140, 5, 516, 648, false},
    {MOE_F32, 1, false, false, 1100, 1099, 1, 67, 70, false},
};
enum { N_GRADIENTS = sizeof gradients / sizeof gradients[0] };

static void check_gradient(const char *target, const Product *p, int which) {
    Job j;
    job_open(&j);
    Rows r = rows_open(&j, p->dtype, p->capacity, p->experts, p->gather, p->k);
    MoeValue *dy = moe_build_input(j.g, "dy", moe_type_2d(p->dtype, r.x->type.dims[0], p->n));
    size_t first = j.g->n_ops;
    MoeValue *xs = gathered(&j, &r, r.x);
    dy = gathered(&j, &r, dy);
    MoeValue *dw = moe_build(j.g, MOE_OP_WEIGHT_GRAD, (MoeValue *[]){dy, xs}, 2,
                             moe_ai("grouped", p->experts > 1), MOE_END);
    for (size_t i = first; i < j.g->n_ops; i++)
        j.g->ops[i]->group = 1;
    moe_build_output(j.g, "dw", dw);
    job_run(&j, target, p->live);
    Where where = where_open(&j, p->gather, p->experts * SHARDS);
    const double *x = moe_inputs_find(&j.in, "x")->f, *dyd = moe_inputs_find(&j.in, "dy")->f;
    const float *got = job_data(&j, "dw");
    double *want = calloc((size_t)(p->n * p->k), sizeof *want);
    for (int64_t e = 0; e < p->experts; e++) {
        memset(want, 0, (size_t)(p->n * p->k) * sizeof *want);
        for (int64_t i = where.seg[e * SHARDS]; i < where.seg[(e + 1) * SHARDS]; i++)
            for (int64_t a = 0; a < p->n; a++)
                for (int64_t b = 0; b < p->k; b++)
                    want[a * p->k + b] +=
                        dyd[row_of(&where, i) * p->n + a] * x[row_of(&where, i) * p->k + b];
        for (int64_t at = 0; at < p->n * p->k; at++)
            if ((double)got[e * p->n * p->k + at] != want[at])
                ck_abort_msg("%s, gradient %d: expert %lld, (%lld, %lld) is %g, not %g", target,
                             which, (long long)e, (long long)(at / p->k), (long long)(at % p->k),
                             (double)got[e * p->n * p->k + at], want[at]);
    }
    free(want);
    free(where.seg);
    job_close(&j);
}

START_TEST(gradients_are_exact) {
    const char *target = targets[_i / N_GRADIENTS];
    if (runs(target, &gradients[_i % N_GRADIENTS], _i % N_GRADIENTS))
        check_gradient(target, &gradients[_i % N_GRADIENTS], _i % N_GRADIENTS);
}
END_TEST

int main(void) {
    Suite *s = suite_create("product_tiles");
    TCase *tc = tcase_create("product_tiles");
    tcase_set_timeout(tc, 600);
    tcase_add_loop_test(tc, products_are_exact, 0, N_TARGETS * N_PRODUCTS);
    tcase_add_loop_test(tc, gradients_are_exact, 0, N_TARGETS * N_GRADIENTS);
    suite_add_tcase(s, tc);
    return moe_check_main(s);
}
