/* The vocabulary in parts, as tensor-parallel ranks have it (docs/RANKS.md), against the ops that have
 * all of it: what the embedding gives and takes has the same bits; losses and gradients of the head
 * are the same numbers, summed in another order. On every instruction set that runs here; and as the
 * program of two ranks in the interpreter, whose states the shard verifier follows. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "ir/eval/eval_ranks.h"
#include "ir/text.h"
#include "passes/shard.h"
#include "tests/support/check_main.h"
#include "tests/support/gpu.h"
#include "tests/support/group_run.h"
#include "tests/support/status_checks.h"

static const char *const targets[] = {"cpu", "cpu:x86-64-v4", "cpu:x86-64-v3", "cpu:x86-64",
                                      "cuda:sm_80"};
#define N_TARGETS ((int)(sizeof targets / sizeof targets[0]))
#define LEN(a)    (sizeof(a) / sizeof *(a))

enum { MAX_PARTS = 8, SHARDS = 4 };

typedef struct {
    int64_t rows, cols, vocab, parts;
    MoeDtype dtype;
    int64_t spare; /* rows of capacity that stay empty, beside two */
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
    j->rows = moe_dim_ragged(h->rows + 2 + h->spare, tok);
    MoeType ids = moe_type_1d(MOE_I32, j->rows.size);
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

/* The loss of the whole vocabulary and its gradients, and how a part's sums come out: nll, dh, dw, sums. */
static void run_loss(Job *j, const Head *h, const char *target, MoeValue *out[4]) {
    open_job(j, h, h->dtype);
    MoeValue *x = moe_build_input(j->g, "h", by_rows(j, h->dtype, h->cols));
    MoeValue *dnll = moe_build_input(j->g, "dnll", by_rows(j, MOE_F32, 1));
    MoeOp *whole = moe_op_build(j->g, MOE_OP_LINEAR_CROSS_ENTROPY_GRAD,
                                (MoeValue *[]){x, j->whole, j->ids, dnll}, 4, MOE_END);
    for (int r = 0; r < 3; r++)
        out[r] = whole->results[r];
    out[3] = moe_build(j->g, MOE_OP_LINEAR_CROSS_ENTROPY_PART,
                       (MoeValue *[]){x, j->parts[0], j->ids, j->numbers[0]}, 4,
                       moe_ai("parts", h->parts), MOE_END);
    for (int r = 0; r < 4; r++)
        keep(j, out[r]);
    run_job(j, target);
}

/* More rows of capacity make a target cut the vocabulary into narrower chunks (codegen/cuda/kind_xent.c): 5000 columns at once with
 * 39, chunks of 3072 with 40039 rows of bf16. */
static void check_chunks(const char *target) {
    Head few = {37, 16, 5000, 1, MOE_BF16, 0}, many = few;
    many.spare = 40000;
    const int64_t n[] = {few.rows, few.rows * few.cols, few.vocab * few.cols, 3 * few.rows};
    MoeValue *a[4], *b[4];
    Job one, other;
    run_loss(&one, &few, target, a);
    run_loss(&other, &many, target, b);
    for (int r = 0; r < 4; r++)
        ck_assert_msg(!memcmp(data(&one, a[r]), data(&other, b[r]), (size_t)n[r] * 4),
                      "%s: result %d has other bits in narrower chunks", target, r);
    close_job(&one);
    close_job(&other);
}

static const Head heads[] = {{0, 16, 12, 2, MOE_F32, 0},     {1, 7, 5, 1, MOE_F32, 0},
                             {37, 33, 99, 3, MOE_F32, 0},    {300, 48, 1000, 8, MOE_F32, 0},
                             {131, 130, 64, 2, MOE_BF16, 0}, {300, 24, 1000, 4, MOE_BF16, 0}};

START_TEST(embedding_in_parts_has_the_bits) {
    if (moe_test_runs(targets[_i]))
        for (size_t i = 0; i < LEN(heads); i++)
            check_embedding(&heads[i], targets[_i]);
}
END_TEST

START_TEST(chunks_change_no_bit) {
    if (moe_test_runs(targets[_i]) && moe_test_does_all(targets[_i]))
        check_chunks(targets[_i]);
}
END_TEST

START_TEST(loss_in_parts_is_the_loss) {
    if (moe_test_runs(targets[_i]))
        for (size_t i = 0; i < LEN(heads); i++)
            if (moe_test_does_all(targets[_i]) || heads[i].parts < 3)
                check_loss(&heads[i], targets[_i]);
}
END_TEST

/* ---- two ranks in the interpreter ---- */

#define INPUTS                                                                                     \
    "%tok = input {name = \"tok\"} : segs<1, 1>\n"                                                 \
    "%ids = input {name = \"ids\"} : i32[r<=5 @%tok]\n"                                            \
    "%y = input {name = \"labels\"} : i32[r<=5 @%tok]\n"                                           \
    "%d = input {name = \"dnll\"} : f32[r<=5 @%tok, 1]\n"
#define OUTPUTS                                                                                    \
    "output %e {name = \"e\"}\noutput %nll {name = \"nll\"}\noutput %dh {name = \"dh\"}\n"         \
    "output %dw {name = \"dw\"}\noutput %de {name = \"de\"}\n"
#define ROWS " : f32[r<=5 @%tok, "

static const char one_rank[] =
    "moe 1\ngraph @t {\n" INPUTS
    "%w = param {name = \"w\", init = \"ones\", decay = 1} : f32[6, 4]\n"
    "%e = embedding %w, %ids" ROWS "4]\n"
    "%nll, %dh, %dw = linear_cross_entropy_grad %e, %w, %y, %d" ROWS
    "1], f32[r<=5 @%tok, 4], f32[6, 4]\n"
    "%de = embedding_grad %dh, %ids {vocab = 6} : f32[6, 4]\n" OUTPUTS "}\n";

/* h: what the head reads: %e, or by mistake %e0, this part's rows alone. */
#define TWO_RANKS(h)                                                                               \
    "moe 1\ngraph @t {\n" INPUTS "%p = input {name = \"tp_rank\"} : i32[1]\n"                      \
    "%w = param {name = \"w\", init = \"ones\", decay = 1, whole = \"6,4\", tp_dim = 0} : "        \
    "f32[3, 4]\n"                                                                                  \
    "%e0 = embedding %w, %ids, %p" ROWS "4]\n"                                                     \
    "%e = all_reduce %e0 {group = \"tp\"}" ROWS "4]\n"                                             \
    "%s0 = linear_cross_entropy_part " h ", %w, %y, %p {parts = 2}" ROWS "6]\n"                    \
    "%s = all_reduce %s0 {group = \"tp\"}" ROWS "6]\n"                                             \
    "%nll, %lse = cross_entropy_join %s, %y" ROWS "1], f32[r<=5 @%tok, 1]\n"                       \
    "%dh0, %dw = linear_cross_entropy_part_grad " h ", %w, %y, %p, %lse, %d" ROWS                  \
    "4], f32[3, 4]\n"                                                                              \
    "%dh = all_reduce %dh0 {group = \"tp\"}" ROWS "4]\n"                                           \
    "%de = embedding_grad %dh, %ids, %p {vocab = 3} : f32[3, 4]\n" OUTPUTS "}\n"

static const MoeMesh two = {.dp = 1, .shard = 1, .ep = 1, .tp = 2, .dense_shard = 1};

static MoeModule *parse(const char *text) {
    MoeDiag d = {.file = "test", .source = text};
    MoeModule *m = moe_parse(&d);
    ck_assert_msg(m != NULL, "%s", moe_str_c(&d.text));
    moe_diag_free(&d);
    return m;
}

enum { TOKENS = 4 };

/* The inputs, and rows 0 .. n of w (6, 4) from `first` on. */
static void give(MoeEval *ev, const MoeGraph *g, int64_t first, int64_t n) {
    static const int32_t tok[] = {0, TOKENS}, ids[] = {5, 0, 3, 2}, labels[] = {1, 4, -1, 5};
    static const double dnll[] = {0.5, -1, 2, 0.25};
    double w[24];
    for (int i = 0; i < 24; i++)
        w[i] = (i * 7 % 11 - 5) * 0.25;
    OK(moe_eval_set_i(ev, moe_graph_find_input(g, "tok"), tok, 2));
    OK(moe_eval_set_i(ev, moe_graph_find_input(g, "ids"), ids, TOKENS));
    OK(moe_eval_set_i(ev, moe_graph_find_input(g, "labels"), labels, TOKENS));
    OK(moe_eval_set_f(ev, moe_graph_find_input(g, "dnll"), dnll, TOKENS));
    OK(moe_eval_set_f(ev, moe_graph_find_input(g, "w"), w + first * 4, n * 4));
}

static void compare(MoeEval *whole, const MoeGraph *a, MoeEval *rank, const MoeGraph *b,
                    const char *name, int64_t skip) {
    const MoeTensor *want = moe_eval_get(whole, moe_graph_find_output(a, name));
    const MoeTensor *got = moe_eval_get(rank, moe_graph_find_output(b, name));
    ck_assert_int_le(skip + got->n, want->n);
    for (int64_t k = 0; k < got->n; k++)
        ck_assert_msg(fabs(got->f[k] - want->f[skip + k]) < 1e-12, "%s[%lld] is %g, expected %g",
                      name, (long long)k, got->f[k], want->f[skip + k]);
}

START_TEST(two_ranks_are_one) {
    MoeModule *one = parse(one_rank), *many = parse(TWO_RANKS("%e"));
    const MoeGraph *a = one->graphs[0], *b = many->graphs[0];
    OK(moe_shard_verify(many, &two, "test"));
    MoeEval *whole = moe_eval_create(a);
    give(whole, a, 0, 6);
    OK(moe_eval_run(whole));
    MoeEvalRanks *r = moe_eval_ranks_create(b, &two);
    for (int32_t p = 0; p < 2; p++) {
        give(moe_eval_rank(r, p), b, p * 3, 3);
        OK(moe_eval_set_i(moe_eval_rank(r, p), moe_graph_find_input(b, "tp_rank"), &p, 1));
    }
    OK(moe_eval_ranks_run(r));
    for (int p = 0; p < 2; p++) {
        static const char *const rows[] = {"e", "nll", "dh"}, *const parts[] = {"dw", "de"};
        for (size_t i = 0; i < LEN(rows); i++)
            compare(whole, a, moe_eval_rank(r, p), b, rows[i], 0);
        for (size_t i = 0; i < LEN(parts); i++)
            compare(whole, a, moe_eval_rank(r, p), b, parts[i], p * 12);
    }
    moe_eval_ranks_destroy(r);
    moe_eval_destroy(whole);
    moe_module_destroy(one);
    moe_module_destroy(many);
}
END_TEST

START_TEST(a_part_is_no_embedding) {
    MoeModule *m = parse(TWO_RANKS("%e0"));
    MoeStatus st = moe_shard_verify(m, &two, "test");
    ck_assert_msg(st && strstr(moe_status_message(st), "a term of a sum over group tp"), "%s",
                  st ? moe_status_message(st) : "no error");
    moe_status_free(st);
    moe_module_destroy(m);
}
END_TEST

int main(void) {
    moe_test_compile_plainly();
    Suite *s = suite_create("vocab_kernels");
    TCase *tc = tcase_create("vocab_kernels");
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, embedding_in_parts_has_the_bits, 0, N_TARGETS);
    tcase_add_loop_test(tc, chunks_change_no_bit, 0, N_TARGETS);
    tcase_add_loop_test(tc, loss_in_parts_is_the_loss, 0, N_TARGETS);
    tcase_add_test(tc, two_ranks_are_one);
    tcase_add_test(tc, a_part_is_no_embedding);
    suite_add_tcase(s, tc);
    return moe_check_main(s);
}
