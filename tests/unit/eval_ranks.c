/* The interpreter between ranks: every COMM op on small meshes against values worked out by hand, the plans of rows, the
 * gradient norm of slices, and what is said when ranks do not fit together. */
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "ir/eval/eval_ranks.h"
#include "ir/text.h"
#include "tests/support/check_main.h"
#include "tests/support/mesh.h"
#include "tests/support/status_checks.h"

/* ---- a graph from text on a mesh ---- */

typedef struct {
    MoeModule *m;
    MoeGraph *g;
    MoeEvalRanks *r;
} Rig;

static Rig open_rig(MoeMesh mesh, const char *body) {
    MoeStr text = {0};
    moe_str_printf(&text, "moe 1\ngraph @t {\n%s}\n", body);
    MoeDiag d = {.file = "test", .source = moe_str_c(&text)};
    MoeModule *m = moe_parse(&d);
    ck_assert_msg(m != NULL, "%s", moe_str_c(&d.text));
    moe_diag_free(&d);
    moe_str_free(&text);
    return (Rig){m, m->graphs[0], moe_eval_ranks_create(m->graphs[0], &mesh)};
}

static void close_rig(Rig *t) {
    moe_eval_ranks_destroy(t->r);
    moe_module_destroy(t->m);
}

static const MoeValue *input(const Rig *t, const char *name) {
    const MoeValue *v = moe_graph_find_input(t->g, name);
    ck_assert_msg(v != NULL, "no input %s", name);
    return v;
}

static void give_f(Rig *t, int rank, const char *name, int64_t n, const double *x) {
    OK(moe_eval_set_f(moe_eval_rank(t->r, rank), input(t, name), x, n));
}

static void give_i(Rig *t, int rank, const char *name, int64_t n, const int32_t *x) {
    OK(moe_eval_set_i(moe_eval_rank(t->r, rank), input(t, name), x, n));
}

static void give_all_i(Rig *t, const char *name, int64_t n, const int32_t *x) {
    for (int p = 0; p < moe_eval_ranks_size(t->r); p++)
        give_i(t, p, name, n, x);
}

static const MoeTensor *output(Rig *t, int rank, const char *name, int64_t n) {
    const MoeTensor *x = moe_eval_get(moe_eval_rank(t->r, rank), moe_graph_find_output(t->g, name));
    ck_assert_msg(x && x->n == n, "rank %d: %s has %lld elements, expected %lld", rank, name,
                  x ? (long long)x->n : -1, (long long)n);
    return x;
}

static void expect_f(Rig *t, int rank, const char *name, int64_t n, const double *want) {
    const MoeTensor *x = output(t, rank, name, n);
    for (int64_t k = 0; k < n; k++)
        ck_assert_msg(x->f[k] == want[k], "rank %d: %s[%lld] is %.17g, expected %.17g", rank, name,
                      (long long)k, x->f[k], want[k]);
}

static void expect_i(Rig *t, int rank, const char *name, int64_t n, const int32_t *want) {
    const MoeTensor *x = output(t, rank, name, n);
    for (int64_t k = 0; k < n; k++)
        ck_assert_msg(x->i[k] == want[k], "rank %d: %s[%lld] is %d, expected %d", rank, name,
                      (long long)k, x->i[k], want[k]);
}

#define F(...) ((const double[]){__VA_ARGS__})
#define I(...) ((const int32_t[]){__VA_ARGS__})

/* ---- slices ---- */

static const MoeMesh shard4 = MESH(1, 4, 1, 1, 4);
static const MoeMesh ep2 = MESH(1, 1, 2, 1, 2);
static const MoeMesh dp2_shard2_ep2 = MESH(2, 2, 2, 1, 4);

/* 10 elements in 4 parts: 2, 3, 2, 3 of them. What lies behind a slice's own elements is not read. */
START_TEST(all_gather_takes_own_elements) {
    Rig t = open_rig(shard4, "%x = input {name = \"x\"} : f32[3]\n"
                             "%y = input {name = \"y\"} : f32[2, 3]\n"
                             "%0 = all_gather %x {group = \"expert_shard\", unit = 1, dims = "
                             "\"2,5\"} : f32[2, 5]\n"
                             "%1 = all_gather %y {group = \"dense_shard\", unit = 1, dims = "
                             "\"2,10\"} : f32[2, 10]\n"
                             "output %0 {name = \"whole\"}\noutput %1 {name = \"rows\"}\n");
    static const double x[4][3] = {{0, 1, 99}, {2, 3, 4}, {5, 6, 99}, {7, 8, 9}};
    for (int p = 0; p < 4; p++) {
        give_f(&t, p, "x", 3, x[p]);
        double y[6];
        for (int k = 0; k < 6; k++)
            y[k] = k < 3 ? x[p][k] : -x[p][k - 3];
        give_f(&t, p, "y", 6, y);
    }
    OK(moe_eval_ranks_run(t.r));
    for (int p = 0; p < 4; p++) {
        expect_f(&t, p, "whole", 10, F(0, 1, 2, 3, 4, 5, 6, 7, 8, 9));
        expect_f(&t, p, "rows", 20,
                 F(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, -0.0, -1, -2, -3, -4, -5, -6, -7, -8, -9));
    }
    close_rig(&t);
}
END_TEST

/* Fewer blocks than parts: some slices are empty. Integers and bf16 move as they are. */
START_TEST(all_gather_of_empty_slices) {
    Rig t = open_rig(shard4, "%x = input {name = \"x\"} : i32[2]\n"
                             "%y = input {name = \"y\"} : bf16[2]\n"
                             "%0 = all_gather %x {group = \"world\", unit = 2, dims = \"3\"} : "
                             "i32[3]\n"
                             "%1 = all_gather %y {group = \"world\", unit = 2, dims = \"3,1\"} : "
                             "bf16[3, 1]\n"
                             "output %0 {name = \"i\"}\noutput %1 {name = \"b\"}\n");
    /* blocks {0,1} and {2}: parts 0..3 have blocks 0*2/4.., that is 0, 1, 0, 1 of them */
    static const int32_t x[4][2] = {{7, 7}, {1, 2}, {7, 7}, {3, 7}};
    for (int p = 0; p < 4; p++) {
        give_i(&t, p, "x", 2, x[p]);
        give_f(&t, p, "y", 2, F(x[p][0], x[p][1]));
    }
    OK(moe_eval_ranks_run(t.r));
    for (int p = 0; p < 4; p++) {
        expect_i(&t, p, "i", 3, I(1, 2, 3));
        expect_f(&t, p, "b", 3, F(1, 2, 3));
    }
    close_rig(&t);
}
END_TEST

/* On dp 2 x shard 2 x ep 2 the ranks of EP rank e are e, e+2, e+4, e+6: summed in that order (the terms are such that
 * another order gives another sum), of which shard s keeps its slice. */
START_TEST(reduce_scatter_in_group_order) {
    Rig t = open_rig(dp2_shard2_ep2,
                     "%x = input {name = \"x\"} : f32[3]\n"
                     "%y = input {name = \"y\"} : f32[2, 3]\n"
                     "%0 = reduce_scatter %x {sum = \"expert_data\", scatter = \"expert_shard\", "
                     "unit = 1, parts = 2, outer = 0} : f32[2]\n"
                     "%1 = reduce_scatter %y {sum = \"expert_data\", scatter = \"expert_shard\", "
                     "unit = 2, parts = 2, outer = 1} : f32[2, 2]\n"
                     "%2 = reduce_scatter %y {sum = \"data\", scatter = \"tp\", unit = 1, parts = "
                     "1, outer = 0} : f32[2, 3]\n"
                     "%3 = all_reduce %x {group = \"expert_data\"} : f32[3]\n"
                     "output %0 {name = \"slice\"}\noutput %1 {name = \"rows\"}\n"
                     "output %2 {name = \"whole\"}\noutput %3 {name = \"all\"}\n");
    static const double order[4] = {1e16, 1, -1e16, 1}; /* in order 1: 1e16 + 1 is 1e16 */
    for (int p = 0; p < 8; p++) {
        int e = p % 2, i = p / 2;
        give_f(&t, p, "x", 3, F(order[i], 10 * e + i, e ? i : -i));
        give_f(&t, p, "y", 6, F(p, 1, e, 100 * p, 100, 7));
    }
    OK(moe_eval_ranks_run(t.r));
    for (int p = 0; p < 8; p++) {
        int e = p % 2, s = p / 2 % 2;
        double sum[3] = {1, 40 * e + 6, e ? 6 : -6};
        expect_f(&t, p, "all", 3, sum);
        /* 3 elements in 2 parts: 1 and 2 */
        expect_f(&t, p, "slice", 2, s ? F(sum[1], sum[2]) : F(sum[0], 0));
        /* blocks of 2: elements 0, 1 and 2, the rest of the buffer is zero */
        double first = 12 + 4 * e;
        expect_f(&t, p, "rows", 4, s ? F(4 * e, 0, 28, 0) : F(first, 4, 100 * first, 400));
        expect_f(&t, p, "whole", 6, F(28, 8, 4, 2800, 800, 56));
    }
    close_rig(&t);
}
END_TEST

START_TEST(all_reduce_counts) {
    MoeMesh mesh = MESH(1, 2, 1, 2, 1); /* tp: two ranks of the same data */
    Rig t = open_rig(mesh, "%n = input {name = \"n\"} : i32[2]\n"
                           "%0 = all_reduce %n {group = \"data\"} : i32[2]\n"
                           "%1 = all_reduce %n {group = \"tp\"} : i32[2]\n"
                           "output %0 {name = \"data\"}\noutput %1 {name = \"tp\"}\n");
    for (int p = 0; p < 4; p++)
        give_i(&t, p, "n", 2, I(1 << p, -p));
    OK(moe_eval_ranks_run(t.r));
    expect_i(&t, 0, "data", 2, I(1 + 4, -2));
    expect_i(&t, 1, "data", 2, I(2 + 8, -4));
    expect_i(&t, 2, "data", 2, I(1 + 4, -2));
    expect_i(&t, 1, "tp", 2, I(1 + 2, -1));
    expect_i(&t, 3, "tp", 2, I(4 + 8, -5));
    close_rig(&t);
}
END_TEST

/* ---- rows ---- */

static const char gather_rows[] =
    "%tok = input {name = \"tok\"} : segs<1,4>\n%all = input {name = \"all\"} : segs<1,4>\n"
    "%x = input {name = \"x\"} : f32[r<=4 @%tok, 2]\n%k = input {name = \"k\"} : i32[2]\n"
    "%0 = all_gather_rows %x, %all {group = \"ep\", ranks = 2} : f32[r<=8 @%all, 2]\n"
    "%1 = all_gather_rows %k {group = \"ep\", ranks = 2} : i32[4]\n"
    "%2 = wait %0 : f32[r<=8 @%all, 2]\n"
    "output %2 {name = \"rows\"}\noutput %1 {name = \"static\"}\n";

START_TEST(all_gather_rows_in_shard_order) {
    Rig t = open_rig(ep2, gather_rows);
    give_i(&t, 0, "tok", 5, I(0, 1, 3, 3, 3));
    give_i(&t, 1, "tok", 5, I(0, 0, 0, 0, 1));
    give_all_i(&t, "all", 5, I(0, 1, 3, 3, 4));
    give_f(&t, 0, "x", 6, F(1, 2, 3, 4, 5, 6));
    give_f(&t, 1, "x", 2, F(7, 8));
    give_i(&t, 0, "k", 2, I(-1, -2));
    give_i(&t, 1, "k", 2, I(-3, -4));
    OK(moe_eval_ranks_run(t.r));
    for (int p = 0; p < 2; p++) {
        expect_f(&t, p, "rows", 8, F(1, 2, 3, 4, 5, 6, 7, 8));
        expect_i(&t, p, "static", 4, I(-1, -2, -3, -4));
    }
    /* nothing anywhere */
    give_all_i(&t, "tok", 5, I(0, 0, 0, 0, 0));
    give_all_i(&t, "all", 5, I(0, 0, 0, 0, 0));
    give_f(&t, 0, "x", 0, NULL);
    give_f(&t, 1, "x", 0, NULL);
    OK(moe_eval_ranks_run(t.r));
    expect_f(&t, 1, "rows", 0, NULL);
    close_rig(&t);
}
END_TEST

START_TEST(all_gather_rows_errors) {
    Rig t = open_rig(ep2, gather_rows);
    give_all_i(&t, "k", 2, I(0, 0));
    give_f(&t, 0, "x", 2, F(1, 2));
    give_f(&t, 1, "x", 2, F(3, 4));
    give_i(&t, 0, "tok", 5, I(0, 1, 1, 1, 1));
    give_i(&t, 1, "tok", 5, I(0, 0, 0, 1, 1));
    give_all_i(&t, "all", 5, I(0, 1, 1, 1, 2)); /* the row of shard 2 in shard 3 */
    FAILS(moe_eval_ranks_run(t.r), MOE_E_INPUT, "rank 0", "all_gather_rows",
          "rank 1 has 1 rows of virtual shard 2, the table of all rows 0");
    give_i(&t, 0, "tok", 5, I(0, 0, 0, 0, 1)); /* rank 0's shard comes after rank 1's */
    give_all_i(&t, "all", 5, I(0, 0, 0, 1, 2));
    FAILS(moe_eval_ranks_run(t.r), MOE_E_INPUT, "rank 1 has 1 rows of virtual shard 2",
          "do not ascend");
    give_i(&t, 0, "tok", 5, I(0, 1, 1, 1, 1));
    give_all_i(&t, "all", 5, I(0, 1, 2, 3, 3)); /* a row that nobody has */
    FAILS(moe_eval_ranks_run(t.r), MOE_E_INPUT, "group ep", "do not have the 3 rows");
    give_all_i(&t, "all", 5, I(0, 1, 1, 2, 2));
    OK(moe_eval_ranks_run(t.r));
    give_i(&t, 1, "all", 5, I(0, 1, 2, 2, 2));
    FAILS(moe_eval_ranks_run(t.r), MOE_E_INPUT,
          "rank 1: ", "the table of all rows is not that of rank 0");
    close_rig(&t);
}
END_TEST

/* Tokens 0: experts 0, 1; 1: 1, 3; 2: 2, 3; 3: 0, 2. Two ranks of two slots, a chunk each; shards of two tokens. */
static const char plans[] =
    "%tok = input {name = \"tok\"} : segs<1,2>\n%ids = input {name = \"ids\"} : i32[r<=5 @%tok, "
    "2]\n"
    "%place = input {name = \"place\"} : i32[4]\n%rank = input {name = \"rank\"} : i32[1]\n"
    "%send, %idx = send_plan %ids, %place {slots = 2, ranks = 2, chunks = 2, expect = 6} : "
    "segs<2,2>, i32[r<=10 @%send]\n"
    "%recv, %seg, %src, %inv = expert_plan %ids, %place, %rank {slots = 2, chunks = 2, "
    "expect_recv = 3, expect_rows = 4} : segs<2,2>, segs<2,2>, i32[r<=10 @%seg], i32[r<=5 @%recv, "
    "2]\n"
    "output %send {name = \"send\"}\noutput %idx {name = \"idx\"}\noutput %recv {name = \"recv\"}\n"
    "output %seg {name = \"seg\"}\noutput %src {name = \"src\"}\noutput %inv {name = \"inv\"}\n";

START_TEST(plans_by_hand) {
    Rig t = open_rig(moe_mesh_one(), plans);
    give_i(&t, 0, "tok", 3, I(0, 2, 4));
    give_i(&t, 0, "ids", 8, I(0, 1, 1, 3, 2, 3, 0, 2));
    give_i(&t, 0, "place", 4, I(0, 1, 2, 3));
    give_i(&t, 0, "rank", 1, I(1));
    OK(moe_eval_ranks_run(t.r));
    /* to rank 0: 0, 3 for slot 0 (token 0 goes once), 1 for slot 1; to rank 1: 2, 3 and 1 */
    expect_i(&t, 0, "send", 5, I(0, 2, 3, 5, 6));
    expect_i(&t, 0, "idx", 6, I(0, 3, 1, 2, 3, 1));
    /* on rank 1: received are tokens 2, 3 (chunk 0, shard 1) and 1 (chunk 1, shard 0) */
    expect_i(&t, 0, "recv", 5, I(0, 0, 2, 3, 3));
    expect_i(&t, 0, "seg", 5, I(0, 0, 2, 3, 4)); /* expert 2: tokens 2, 3; expert 3: 1 | 2 */
    expect_i(&t, 0, "src", 4, I(0, 3, 5, 1));
    expect_i(&t, 0, "inv", 6, I(0, 3, -1, 1, -1, 2));
    /* Experts 2, 0 on rank 0 and 3, 1 on rank 1. */
    give_i(&t, 0, "place", 4, I(1, 3, 0, 2));
    OK(moe_eval_ranks_run(t.r));
    expect_i(&t, 0, "send", 5, I(0, 2, 3, 5, 6)); /* 2, 3 want expert 2; 0 expert 0; 1, 2 | 0 */
    expect_i(&t, 0, "idx", 6, I(2, 3, 0, 1, 2, 0));
    expect_i(&t, 0, "recv", 5, I(0, 1, 2, 3, 3));
    expect_i(&t, 0, "seg", 5, I(0, 1, 2, 4, 4)); /* expert 3: 1 | 2; expert 1: 0, 1 */
    expect_i(&t, 0, "src", 4, I(1, 3, 5, 0));
    expect_i(&t, 0, "inv", 6, I(3, 0, -1, 1, -1, 2));
    close_rig(&t);
}
END_TEST

START_TEST(plan_errors) {
    Rig t = open_rig(moe_mesh_one(), plans);
    give_i(&t, 0, "tok", 3, I(0, 1, 1));
    give_i(&t, 0, "rank", 1, I(0));
    give_i(&t, 0, "ids", 2, I(0, 4));
    give_i(&t, 0, "place", 4, I(0, 1, 2, 3));
    FAILS(moe_eval_ranks_run(t.r), MOE_E_INPUT, "send_plan", "expert id 4 at position 1", "0..3");
    give_i(&t, 0, "ids", 2, I(0, 3));
    give_i(&t, 0, "place", 4, I(0, 1, 2, 4));
    FAILS(moe_eval_ranks_run(t.r), MOE_E_INPUT, "slot 4 at position 3", "0..3");
    give_i(&t, 0, "place", 4, I(0, 1, 2, 1));
    FAILS(moe_eval_ranks_run(t.r), MOE_E_INPUT, "experts 1 and 3 into slot 1");
    give_i(&t, 0, "place", 4, I(0, 1, 2, 3));
    give_i(&t, 0, "rank", 1, I(-1));
    FAILS(moe_eval_ranks_run(t.r), MOE_E_INPUT, "expert_plan", "ep_rank -1");
    close_rig(&t);
}
END_TEST

/* ---- dispatch with choices that are elsewhere ---- */

static const char partial_move[] =
    "%tok = input {name = \"tok\"} : segs<1,1>\n%seg = input {name = \"seg\"} : segs<2,1>\n"
    "%x = input {name = \"x\"} : f32[r<=3 @%tok, 1]\n%w = input {name = \"w\"} : f32[r<=3 @%tok, "
    "2]\n"
    "%src = input {name = \"src\"} : i32[r<=6 @%seg]\n"
    "%inv = input {name = \"inv\"} : i32[r<=3 @%tok, 2]\n"
    "%0 = dispatch %x, %src, %inv : f32[r<=6 @%seg, 1]\n"
    "%1 = dispatch_weight %w, %src, %inv : f32[r<=6 @%seg, 1]\n"
    "output %0 {name = \"x\"}\noutput %1 {name = \"w\"}\n";

START_TEST(partial_plans) {
    Rig t = open_rig(moe_mesh_one(), partial_move);
    give_i(&t, 0, "tok", 2, I(0, 2));
    give_i(&t, 0, "seg", 3, I(0, 1, 2));
    give_f(&t, 0, "x", 2, F(10, 20));
    give_f(&t, 0, "w", 4, F(1, 2, 3, 4));
    give_i(&t, 0, "src", 2, I(3, 0));
    give_i(&t, 0, "inv", 4, I(1, -1, -1, 0));
    OK(moe_eval_ranks_run(t.r));
    expect_f(&t, 0, "x", 2, F(20, 10));
    expect_f(&t, 0, "w", 2, F(4, 1));
    give_i(&t, 0, "inv", 4, I(1, 1, -1, 0));
    FAILS(moe_eval_ranks_run(t.r), MOE_E_INPUT, "src has 2 rows, inv 3 entries that are not -1");
    give_i(&t, 0, "inv", 4, I(1, -2, -1, -1));
    FAILS(moe_eval_ranks_run(t.r), MOE_E_INPUT, "inv -2");
    give_i(&t, 0, "inv", 4, I(0, -1, -1, 1));
    FAILS(moe_eval_ranks_run(t.r), MOE_E_INPUT, "row 0 comes from position 3",
          "inv sends that to row 1");
    close_rig(&t);
    /* the way back takes whole plans only */
    Rig b = open_rig(moe_mesh_one(), "%tok = input {name = \"tok\"} : segs<1,1>\n"
                                     "%seg = input {name = \"seg\"} : segs<2,1>\n"
                                     "%y = input {name = \"y\"} : f32[r<=6 @%seg, 1]\n"
                                     "%src = input {name = \"src\"} : i32[r<=6 @%seg]\n"
                                     "%inv = input {name = \"inv\"} : i32[r<=3 @%tok, 2]\n"
                                     "%0 = gather_sum %y, %src, %inv : f32[r<=3 @%tok, 1]\n");
    give_i(&b, 0, "tok", 2, I(0, 1));
    give_i(&b, 0, "seg", 3, I(0, 1, 2));
    give_f(&b, 0, "y", 2, F(10, 20));
    give_i(&b, 0, "src", 2, I(1, 0));
    give_i(&b, 0, "inv", 2, I(-1, 0));
    FAILS(moe_eval_ranks_run(b.r), MOE_E_INPUT, "gather_sum", "inv -1");
    close_rig(&b);
}
END_TEST

/* ---- the gradient norm ---- */

/* On `parts` ranks: block sums of slices, gathered, give sum_squares of the whole. */
static void check_norm(int parts, int64_t n, bool rows) {
    MoeMesh mesh = MESH(1, parts, 1, 1, parts);
    int64_t l = rows ? 3 : 1, cap = moe_slice(n, MOE_SLICE_BLOCK, parts, 0).cap;
    int64_t blocks = (n + MOE_SLICE_BLOCK - 1) / MOE_SLICE_BLOCK, total = l * n;
    MoeModule *m = moe_module_create();
    MoeGraph *g = moe_module_add_graph(m, "t");
    MoeStr dims = {0};
    moe_str_printf(&dims, rows ? "3,%lld" : "%lld", (long long)blocks);
    MoeType slice = rows ? moe_type_2d(MOE_F32, moe_dim(l), cap) : moe_type_1d(MOE_F32, cap);
    MoeType whole = rows ? moe_type_3d(MOE_F32, l, 1, n) : moe_type_1d(MOE_F32, n);
    MoeValue *x = moe_build_input(g, "x", slice), *all = moe_build_input(g, "all", whole);
    MoeValue *b = moe_build1(g, MOE_OP_BLOCK_SQUARES, x);
    b = moe_build(g, MOE_OP_ALL_GATHER, &b, 1, moe_as("group", "expert_shard"), moe_ai("unit", 1),
                  moe_as("dims", moe_str_c(&dims)), MOE_END);
    MoeValue *sum = moe_build1(g, MOE_OP_BLOCK_TREE, b);
    MoeValue *own = moe_build1(g, MOE_OP_BLOCK_SQUARES, all);
    MoeValue *want = moe_build1(g, MOE_OP_SUM_SQUARES, all);
    double *data = calloc((size_t)(total + cap + 1), sizeof *data),
           *part = calloc((size_t)(l * cap) + 1, sizeof *part);
    for (int64_t k = 0; k < total; k++)
        data[k] = moe_rng_normal(3, 4, (uint64_t)k);
    MoeEvalRanks *r = moe_eval_ranks_create(g, &mesh);
    for (int p = 0; p < parts; p++) {
        MoeSlice s = moe_slice(n, MOE_SLICE_BLOCK, parts, p);
        for (int64_t i = 0; i < l; i++)
            for (int64_t k = 0; k < cap; k++)
                part[i * cap + k] = k < s.count ? data[i * n + s.first + k] : 0;
        OK(moe_eval_set_f(moe_eval_rank(r, p), x, part, l * cap));
        OK(moe_eval_set_f(moe_eval_rank(r, p), all, data, total));
    }
    OK(moe_eval_ranks_run(r));
    for (int p = 0; p < parts; p++) {
        const MoeTensor *got = moe_eval_get(moe_eval_rank(r, p), b),
                        *whole_blocks = moe_eval_get(moe_eval_rank(r, p), own);
        ck_assert_int_eq(got->n, l * blocks);
        ck_assert(memcmp(got->f, whole_blocks->f, (size_t)got->n * sizeof(double)) == 0);
        double a = moe_eval_get(moe_eval_rank(r, p), sum)->f[0],
               c = moe_eval_get(moe_eval_rank(r, p), want)->f[0];
        ck_assert_msg(a > c - 1e-12 * c && a < c + 1e-12 * c, "%d parts of %lld: %.17g, not %.17g",
                      parts, (long long)n, a, c);
    }
    moe_eval_ranks_destroy(r);
    free(data);
    free(part);
    moe_str_free(&dims);
    moe_module_destroy(m);
}

START_TEST(norm_of_slices) {
    static const int64_t sizes[] = {1, 4095, 4096, 4097, 20000, 8192};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int parts = 1; parts <= 4; parts *= 2) {
            check_norm(parts, sizes[i], false);
            check_norm(parts, sizes[i], true);
        }
}
END_TEST

/* Rows that no expert has do not count, and the order is that of experts. */
START_TEST(block_tree_through_place) {
    Rig t = open_rig(moe_mesh_one(), "%b = input {name = \"b\"} : f32[5, 2]\n"
                                     "%place = input {name = \"place\"} : i32[4]\n"
                                     "%0 = block_tree %b, %place : f32[1]\n"
                                     "output %0 {name = \"y\"}\n");
    give_f(&t, 0, "b", 10, F(1, 0, 1e16, 0, 99, 99, 0, 1, -1e16, 0));
    give_i(&t, 0, "place", 4, I(1, 0, 4, 3)); /* 1e16 + 1 - 1e16 + 1 */
    OK(moe_eval_ranks_run(t.r));
    expect_f(&t, 0, "y", 1, F(1));
    give_i(&t, 0, "place", 4, I(1, 4, 0, 3));
    OK(moe_eval_ranks_run(t.r));
    expect_f(&t, 0, "y", 1, F(2));
    give_i(&t, 0, "place", 4, I(1, 4, 0, 5));
    FAILS(moe_eval_ranks_run(t.r), MOE_E_INPUT, "slot 5 at position 3", "0..4");
    close_rig(&t);
}
END_TEST

/* ---- ranks that do not fit ---- */

START_TEST(sizes_of_groups) {
    Rig t = open_rig(ep2, "%x = input {name = \"x\"} : f32[4]\n"
                          "%0 = all_gather_rows %x {group = \"ep\", ranks = 4} : f32[16]\n");
    for (int p = 0; p < 2; p++)
        give_f(&t, p, "x", 4, F(0, 0, 0, 0));
    FAILS(moe_eval_ranks_run(t.r), MOE_E_INPUT, "rank 0", "ranks says 4 ranks",
          "group ep of this mesh has 2");
    close_rig(&t);
    t = open_rig(ep2, "%x = input {name = \"x\"} : f32[4]\n"
                      "%0 = reduce_scatter %x {sum = \"data\", scatter = \"data\", unit = 1, parts "
                      "= 4, outer = 0} : f32[1]\n");
    for (int p = 0; p < 2; p++)
        give_f(&t, p, "x", 4, F(0, 0, 0, 0));
    FAILS(moe_eval_ranks_run(t.r), MOE_E_INPUT, "parts says 4 ranks", "group data");
    close_rig(&t);
    t = open_rig(ep2, "%x = input {name = \"x\"} : f32[4]\n"
                      "%0 = all_gather %x {group = \"ep\", unit = 1, dims = \"6\"} : f32[6]\n");
    for (int p = 0; p < 2; p++)
        give_f(&t, p, "x", 4, F(0, 0, 0, 0));
    FAILS(moe_eval_ranks_run(t.r), MOE_E_INPUT, "a slice of 4 elements", "6 cut at 1",
          "slices of 3");
    /* alone there is nobody to talk to */
    MoeEval *ev = moe_eval_create(t.g);
    OK(moe_eval_set_f(ev, input(&t, "x"), F(0, 0, 0, 0), 4));
    FAILS(moe_eval_run(ev), MOE_E_INPUT, "all_gather runs between ranks", "moe_eval_ranks");
    moe_eval_destroy(ev);
    close_rig(&t);
}
END_TEST

/* A param of each rank moves on by its own next value. */
START_TEST(commit_on_every_rank) {
    Rig t = open_rig(ep2, "%p = param {name = \"p\", init = \"zeros\", decay = 0} : f32[1]\n"
                          "%x = input {name = \"x\"} : f32[1]\n"
                          "%0 = all_reduce %x {group = \"world\"} : f32[1]\n"
                          "%1 = mul %0, %x : f32[1]\n%2 = add %p, %1 : f32[1]\n"
                          "output %2 {name = \"p\"}\nassign %p, %2\n");
    const MoeValue *param = t.g->ops[0]->results[0];
    for (int p = 0; p < 2; p++) {
        OK(moe_eval_set_f(moe_eval_rank(t.r, p), param, F(10 * p), 1));
        give_f(&t, p, "x", 1, F(p + 1));
    }
    for (int step = 1; step <= 2; step++) {
        OK(moe_eval_ranks_run(t.r));
        moe_eval_ranks_commit(t.r);
        expect_f(&t, 0, "p", 1, F(3 * step));
        expect_f(&t, 1, "p", 1, F(10 + 6 * step));
    }
    close_rig(&t);
}
END_TEST

int main(void) {
    Suite *s = suite_create("eval_ranks");
    TCase *tc = tcase_create("eval_ranks");
    tcase_add_test(tc, all_gather_takes_own_elements);
    tcase_add_test(tc, all_gather_of_empty_slices);
    tcase_add_test(tc, reduce_scatter_in_group_order);
    tcase_add_test(tc, all_reduce_counts);
    tcase_add_test(tc, all_gather_rows_in_shard_order);
    tcase_add_test(tc, all_gather_rows_errors);
    tcase_add_test(tc, plans_by_hand);
    tcase_add_test(tc, plan_errors);
    tcase_add_test(tc, partial_plans);
    tcase_add_test(tc, norm_of_slices);
    tcase_add_test(tc, block_tree_through_place);
    tcase_add_test(tc, sizes_of_groups);
    tcase_add_test(tc, commit_on_every_rank);
    suite_add_tcase(s, tc);
    return moe_check_main(s);
}
