/* Kernels over expert rows that get a window of their table (docs/RANKS.md, "Overlap"): some slots' rows, at their places. They
 * write just these rows, with the bits that they have when all are done at once, and do no more work than that takes. On every
 * instruction set that runs here. */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include "codegen/codegen.h"
#include "tests/support/check_main.h"
#include "tests/support/gpu.h"
#include "tests/support/group_run.h"
#include "tests/support/status_checks.h"

static const char *const targets[] = {"cpu", "cpu:x86-64-v4", "cpu:x86-64-v3", "cpu:x86-64",
                                      "cuda:sm_80"};
enum { N_TARGETS = sizeof targets / sizeof *targets, SLOTS = 4, SHARDS = 4, TOKENS = 700, TOPK = 2 };

static MoeValue *product(MoeGraph *g, MoeValue *a, MoeValue *b) {
    return moe_build(g, MOE_OP_MATMUL, (MoeValue *[]){a, b}, 2, moe_ai("tb", 1),
                     moe_ai("grouped", 1), MOE_END);
}

static MoeValue *weights(MoeGraph *g, const char *name, MoeDtype d, int64_t n, int64_t k) {
    return moe_build_input(g, name, moe_type_3d(d, SLOTS, n, k));
}

/* An expert layer from rows that arrived: gate and up with the gather, a tail, a converted copy (flat), rows by themselves, rows
 * written out, scalars by row. All tables and rows are inputs, so that a test can give any. */
static MoeGraph *build(MoeModule *m, MoeDtype d, int64_t width, int64_t hidden) {
    MoeGraph *g = moe_module_add_graph(m, "layer");
    int64_t rows = TOKENS * TOPK;
    MoeValue *tok = moe_build_input(g, "tok", moe_type_segs(1, SHARDS)),
             *seg = moe_build_input(g, "seg", moe_type_segs(SLOTS, SHARDS)),
             *x = moe_build_input(g, "x", moe_type_2d(d, moe_dim_ragged(TOKENS, tok), width)),
             *w = moe_build_input(g, "w", moe_type_2d(MOE_F32, moe_dim_ragged(TOKENS, tok), TOPK)),
             *src = moe_build_input(g, "src", moe_type_1d(MOE_I32, rows)),
             *inv = moe_build_input(g, "inv", moe_type_2d(MOE_I32, moe_dim_ragged(TOKENS, tok), TOPK));
    src->type.dims[0] = moe_dim_ragged(rows, seg);
    MoeValue *plan[3] = {NULL, src, inv};
    plan[0] = x;
    MoeValue *xs = moe_build(g, MOE_OP_DISPATCH, plan, 3, MOE_END);
    MoeValue *a = product(g, xs, weights(g, "w1", d, hidden, width)),
             *b = product(g, xs, weights(g, "w3", d, hidden, width));
    MoeValue *h = moe_build2(g, MOE_OP_MUL, moe_build1(g, MOE_OP_SIGMOID, a), b);
    plan[0] = w;
    MoeValue *s = moe_build(g, MOE_OP_DISPATCH_WEIGHT, plan, 3, MOE_END);
    MoeValue *hs = moe_build2(g, MOE_OP_MUL, h, s), *hd = moe_build_convert(g, hs, d);
    MoeValue *y = product(g, hd, weights(g, "w2", d, width, hidden));
    MoeValue *flat = moe_build1(g, MOE_OP_NEG, y), *sum = moe_build1(g, MOE_OP_ROW_SUM, y);
    plan[0] = x;
    MoeValue *copy = moe_build(g, MOE_OP_DISPATCH, plan, 3, MOE_END);
    MoeValue *out[] = {h, s, y, flat, sum, moe_build_convert(g, copy, MOE_F32), copy};
    static const char *const names[] = {"h", "s", "y", "flat", "sum", "copy", "rows"};
    for (size_t i = 0; i < sizeof out / sizeof *out; i++)
        moe_build_output(g, names[i], out[i]);
    return g;
}

typedef struct {
    MoeModule *m;
    MoeGraph *g;
    MoeInputs in;
    MoeGroupRun *run;
    MoeTensor *seg;
    int32_t whole[SLOTS * SHARDS + 1];
} Job;

static void open_job(Job *j, const char *target, MoeDtype d, int64_t width, int64_t hidden,
                     MoeRouting routing) {
    j->m = moe_module_create();
    j->g = build(j->m, d, width, hidden);
    MoeRandomOptions o = {.seed = 5, .rows = TOKENS - 3, .shards = MOE_SHARDS_RANDOM, .routing = routing};
    OK(moe_random_inputs(j->g, &o, j->m->arena, &j->in));
    MoeTarget *t;
    OK(moe_target_create(target, &t));
    moe_group_greedily(j->g, t);
    t->destroy(t);
    OK(moe_group_run_create(j->g, &(MoeGroupRunOptions){.target = target, .threads = 2}, &j->run));
    j->seg = moe_inputs_find(&j->in, "seg");
    ck_assert_int_eq(j->seg->n, SLOTS * SHARDS + 1);
    memcpy(j->whole, j->seg->i, sizeof j->whole);
}

static void close_job(Job *j) {
    moe_group_run_destroy(j->run);
    moe_module_destroy(j->m);
}

/* The window of slots lo .. hi. */
static void set_window(Job *j, int lo, int hi) {
    int32_t first = j->whole[lo * SHARDS], end = j->whole[hi * SHARDS];
    for (int i = 0; i <= SLOTS * SHARDS; i++)
        j->seg->i[i] = j->whole[i] < first ? first : j->whole[i] > end ? end : j->whole[i];
}

static size_t n_outputs(const Job *j, const MoeValue **out) {
    size_t n = 0;
    for (size_t i = 0; i < j->g->n_ops; i++)
        if (j->g->ops[i]->opcode == MOE_OP_OUTPUT)
            out[n++] = j->g->ops[i]->operands[0];
    return n;
}

static size_t row_bytes(const MoeValue *v) {
    return (size_t)(moe_type_bytes(&v->type) / v->type.dims[0].size);
}

/* Rows of the window as in `all`, the rest as it was before any kernel. */
static void check_rows(const Job *j, const MoeValue *v, const char *all, int lo, int hi) {
    const char *now = moe_group_run_data(j->run, v);
    size_t each = row_bytes(v), from = each * (size_t)j->whole[lo * SHARDS],
           to = each * (size_t)j->whole[hi * SHARDS], end = (size_t)moe_type_bytes(&v->type);
    ck_assert_msg(memcmp(now + from, all + from, to - from) == 0, "rows of slots %d..%d differ", lo,
                  hi - 1);
    for (size_t i = 0; i < end; i++)
        if (i < from || i >= to)
            CHECK_EACH((unsigned char)now[i] == 0xff, "byte %zu outside the window is written", i);
}

static void check(const char *target, MoeDtype d, int64_t width, int64_t hidden, MoeRouting routing) {
    Job j;
    const MoeValue *outputs[16];
    char *all[16];
    open_job(&j, target, d, width, hidden, routing);
    size_t n = n_outputs(&j, outputs);
    OK(moe_group_run(j.run, &j.in));
    int64_t tasks = moe_group_run_tasks(j.run), in_windows = 0;
    for (size_t i = 0; i < n; i++) {
        size_t bytes = (size_t)moe_type_bytes(&outputs[i]->type);
        all[i] = malloc(bytes);
        memcpy(all[i], moe_group_run_data(j.run, outputs[i]), bytes);
    }
    static const int windows[][2] = {{0, 1}, {1, 2}, {2, 3}, {3, 4}, {0, 2}, {2, 4}, {0, 4}};
    for (size_t k = 0; k < sizeof windows / sizeof *windows; k++) {
        int lo = windows[k][0], hi = windows[k][1];
        set_window(&j, lo, hi);
        OK(moe_group_run(j.run, &j.in));
        for (size_t i = 0; i < n; i++)
            check_rows(&j, outputs[i], all[i], lo, hi);
        int64_t now = moe_group_run_tasks(j.run);
        ck_assert_int_le(now, tasks);
        in_windows += hi - lo == 2 ? now : 0;
    }
    /* halves: no more work than the whole but for the last block of each half, and packing, which looks at all slots */
    int64_t launches = (int64_t)moe_group_run_launches(j.run);
    ck_assert_int_le(in_windows, 2 * tasks);
    if (strncmp(target, "cuda:", 5) != 0) /* whose grid is that of the capacity */
        ck_assert_int_lt(in_windows, tasks + tasks / 2 + 16 * launches);
    for (size_t i = 0; i < n; i++)
        free(all[i]);
    close_job(&j);
}

START_TEST(test_windows) {
    if (!moe_test_runs(targets[_i]))
        return;
    check(targets[_i], MOE_F32, 33, 48, MOE_ROUTING_RANDOM);
    check(targets[_i], MOE_BF16, 64, 96, MOE_ROUTING_RANDOM);
    check(targets[_i], MOE_F32, 16, 20, MOE_ROUTING_ONE);
    check(targets[_i], MOE_BF16, 17, 8, MOE_ROUTING_GAP);
}
END_TEST

int main(void) {
    Suite *s = suite_create("window_kernels");
    TCase *t = tcase_create("windows");
    tcase_set_timeout(t, 300);
    tcase_add_loop_test(t, test_windows, 0, N_TARGETS);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
