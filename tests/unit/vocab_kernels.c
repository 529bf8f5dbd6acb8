/* The vocabulary in parts, as tensor-parallel ranks have it (docs/RANKS.md), against the ops that have
 * all of it: what the embedding gives and takes has the same bits; losses and gradients of the head
 * are the same numbers, summed in another order. On every instruction set that runs here. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "codegen/codegen.h"
#include "tests/support/group_run.h"

static const char *const targets[] = {"cpu", "cpu:x86-64-v4", "cpu:x86-64-v3", "cpu:x86-64"};
#define N_TARGETS ((int)(sizeof targets / sizeof targets[0]))
#define LEN(a)    (sizeof(a) / sizeof *(a))

enum { MAX_PARTS = 8, SHARDS = 4 };

#define OK(expr)                                                                                   \
    do {                                                                                           \
        MoeStatus ok_ = (expr);                                                                    \
        ck_assert_msg(!ok_, "%s", moe_status_message(ok_));                                        \
    } while (0)

typedef struct {
    int64_t rows, cols, vocab, parts;
    MoeDtype dtype;
} Head;

/* The whole and every part in one graph: a part's table is an input of its own. */
typedef struct {
    const Head *h;
    MoeModule *m;
    MoeGraph *g;
    MoeInputs in;
    MoeGroupRun *run;
    MoeDim rows;
    MoeValue *ids, *whole, *parts[MAX_PARTS], *numbers[MAX_PARTS];
} Job;

static MoeType by_rows(const Job *j, MoeDtype d, int64_t cols) {
    return moe_type_2d(d, j->rows, cols);
}

static void open_job(Job *j, const Head *h, MoeDtype table) {
    *j = (Job){.h = h, .m = moe_module_create()};
    j->g = moe_module_add_graph(j->m, "g");
    MoeValue *tok = moe_build_input(j->g, "tok", moe_type_segs(1, SHARDS));
    j->rows = moe_dim_ragged(h->rows + 2, tok);
    MoeType ids = moe_type_1d(MOE_I32, h->rows + 2);
    ids.dims[0] = j->rows;
    j->ids = moe_build_input(j->g, "ids", ids);
    j->whole = moe_build_input(j->g, "whole", moe_type_2d(table, moe_dim(h->vocab), h->cols));
    for (int64_t p = 0; p < h->parts; p++) {
        char name[32];
        snprintf(name, sizeof name, "table.%d", (int)p);
        j->parts[p] =
            moe_build_input(j->g, name, moe_type_2d(table, moe_dim(h->vocab / h->parts), h->cols));
        snprintf(name, sizeof name, "part.%d", (int)p);
        j->numbers[p] = moe_build_input(j->g, name, moe_type_1d(MOE_I32, 1));
    }
}

/* Runs it, on the whole table cut into its parts. */
static void run_job(Job *j, const char *target) {
    const Head *h = j->h;
    MoeRandomOptions o = {.seed = 11,
                          .rows = h->rows,
                          .shards = MOE_SHARDS_RANDOM,
                          .ignored = 0.1,
                          .parts = h->parts};
    OK(moe_random_inputs(j->g, &o, j->m->arena, &j->in));
    const MoeTensor *whole = moe_inputs_of(&j->in, j->whole);
    for (int64_t p = 0; p < h->parts; p++) {
        MoeTensor *t = moe_inputs_of(&j->in, j->parts[p]);
        memcpy(t->f, whole->f + p * t->n, (size_t)t->n * sizeof *t->f);
        moe_inputs_of(&j->in, j->numbers[p])->i[0] = (int32_t)p;
    }
    OK(moe_group_run_create(j->g, &(MoeGroupRunOptions){.target = target}, &j->run));
    OK(moe_group_run(j->run, &j->in));
}

static void close_job(Job *j) {
    moe_group_run_destroy(j->run);
    moe_module_destroy(j->m);
}

static const float *data(const Job *j, const MoeValue *v) {
    return moe_group_run_data(j->run, v);
}

static MoeValue *op(Job *j, MoeOpcode code, MoeValue *const *in, int n, int result) {
    MoeValue *v = moe_op_build(j->g, code, in, n, MOE_END)->results[result];
    return v;
}

static void keep(Job *j, MoeValue *v) {
    char name[16];
    snprintf(name, sizeof name, "y%d", v->id);
    moe_build_output(j->g, name, v);
}

/* The sum over parts, as all_reduce {tp} gives it. */
static MoeValue *sum(Job *j, MoeValue *const *terms) {
    MoeValue *v = terms[0];
    for (int64_t p = 1; p < j->h->parts; p++)
        v = moe_build2(j->g, MOE_OP_ADD, v, terms[p]);
    return v;
}

static void check_embedding(const Head *h, const char *target) {
    Job j;
    open_job(&j, h, MOE_F32);
    MoeValue *rows[MAX_PARTS], *grads[MAX_PARTS];
    MoeValue *dy = moe_build_input(j.g, "dy", by_rows(&j, MOE_F32, h->cols));
    MoeValue *y = op(&j, MOE_OP_EMBEDDING, (MoeValue *[]){j.whole, j.ids}, 2, 0);
    MoeValue *dw = moe_build(j.g, MOE_OP_EMBEDDING_GRAD, (MoeValue *[]){dy, j.ids}, 2,
                             moe_ai("vocab", h->vocab), MOE_END);
    for (int64_t p = 0; p < h->parts; p++) {
        MoeValue *in[] = {j.parts[p], j.ids, j.numbers[p]};
        rows[p] = op(&j, MOE_OP_EMBEDDING, in, 3, 0);
        in[0] = dy;
        grads[p] = moe_build(j.g, MOE_OP_EMBEDDING_GRAD, in, 3,
                             moe_ai("vocab", h->vocab / h->parts), MOE_END);
        keep(&j, grads[p]);
    }
    MoeValue *all = sum(&j, rows);
    keep(&j, y);
    keep(&j, dw);
    keep(&j, all);
    run_job(&j, target);
    ck_assert_msg(!memcmp(data(&j, y), data(&j, all), (size_t)(h->rows * h->cols) * 4),
                  "%s: the sum of %d parts is not the embedding", target, (int)h->parts);
    int64_t n = h->vocab / h->parts * h->cols;
    for (int64_t p = 0; p < h->parts; p++)
        ck_assert_msg(!memcmp(data(&j, dw) + p * n, data(&j, grads[p]), (size_t)n * 4),
                      "%s: the gradient of part %d of %d has other bits", target, (int)p,
                      (int)h->parts);
    close_job(&j);
}

/* |got - want| <= bound * (1 + the largest |want|). */
static void check_near(const float *got, const float *want, int64_t n, double bound,
                       const char *target, const char *what) {
    double top = 0;
    for (int64_t i = 0; i < n; i++)
        top = fmax(top, fabs((double)want[i]));
    for (int64_t i = 0; i < n; i++)
        ck_assert_msg(fabs((double)got[i] - (double)want[i]) <= bound * (1 + top),
                      "%s: %s[%lld] is %.9g in parts, %.9g whole", target, what, (long long)i,
                      (double)got[i], (double)want[i]);
}

static void check_loss(const Head *h, const char *target) {
    Job j;
    open_job(&j, h, h->dtype);
    MoeValue *x = moe_build_input(j.g, "h", by_rows(&j, h->dtype, h->cols));
    MoeValue *dnll = moe_build_input(j.g, "dnll", by_rows(&j, MOE_F32, 1));
    MoeOp *whole = moe_op_build(j.g, MOE_OP_LINEAR_CROSS_ENTROPY_GRAD,
                                (MoeValue *[]){x, j.whole, j.ids, dnll}, 4, MOE_END);
    MoeValue *sums[MAX_PARTS], *dh[MAX_PARTS], *dw[MAX_PARTS];
    for (int64_t p = 0; p < h->parts; p++)
        sums[p] = moe_build(j.g, MOE_OP_LINEAR_CROSS_ENTROPY_PART,
                            (MoeValue *[]){x, j.parts[p], j.ids, j.numbers[p]}, 4,
                            moe_ai("parts", h->parts), MOE_END);
    MoeOp *join = moe_op_build(j.g, MOE_OP_CROSS_ENTROPY_JOIN, (MoeValue *[]){sum(&j, sums), j.ids},
                               2, MOE_END);
    for (int64_t p = 0; p < h->parts; p++) {
        MoeValue *in[] = {x, j.parts[p], j.ids, j.numbers[p], join->results[1], dnll};
        MoeOp *grad = moe_op_build(j.g, MOE_OP_LINEAR_CROSS_ENTROPY_PART_GRAD, in, 6, MOE_END);
        dh[p] = grad->results[0];
        dw[p] = grad->results[1];
        keep(&j, dw[p]);
    }
    MoeValue *all = sum(&j, dh);
    keep(&j, join->results[0]);
    keep(&j, all);
    for (int r = 0; r < 3; r++)
        keep(&j, whole->results[r]);
    run_job(&j, target);
    double bound =
        h->dtype == MOE_BF16 ? 0x1p-8 : 1e-5; /* bf16: dlogits may round to another side */
    check_near(data(&j, join->results[0]), data(&j, whole->results[0]), h->rows, 2e-6, target,
               "nll");
    check_near(data(&j, all), data(&j, whole->results[1]), h->rows * h->cols, bound, target, "dh");
    int64_t n = h->vocab / h->parts * h->cols;
    for (int64_t p = 0; p < h->parts; p++)
        check_near(data(&j, dw[p]), data(&j, whole->results[2]) + p * n, n, bound, target, "dw");
    close_job(&j);
}

static const Head heads[] = {{0, 16, 12, 2, MOE_F32},     {1, 7, 5, 1, MOE_F32},
                             {37, 33, 99, 3, MOE_F32},    {300, 48, 1000, 8, MOE_F32},
                             {131, 130, 64, 2, MOE_BF16}, {300, 24, 1000, 4, MOE_BF16}};

START_TEST(embedding_in_parts_has_the_bits) {
    if (moe_target_runs_here(targets[_i]))
        for (size_t i = 0; i < LEN(heads); i++)
            check_embedding(&heads[i], targets[_i]);
}
END_TEST

START_TEST(loss_in_parts_is_the_loss) {
    if (moe_target_runs_here(targets[_i]))
        for (size_t i = 0; i < LEN(heads); i++)
            check_loss(&heads[i], targets[_i]);
}
END_TEST

int main(void) {
    Suite *s = suite_create("vocab_kernels");
    TCase *tc = tcase_create("vocab_kernels");
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, embedding_in_parts_has_the_bits, 0, N_TARGETS);
    tcase_add_loop_test(tc, loss_in_parts_is_the_loss, 0, N_TARGETS);
    suite_add_tcase(s, tc);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
