/* An expert layer as a rank of many runs it: expert_plan makes the rows, their capacity is the worst
 * case. Results are those of the interpreter; and with 64 times the capacity the bits, the number of
 * tasks and the workspace that is touched stay the same, so nothing is done for rows that are not
 * there. On every instruction set that runs here, and on a GPU (where launches are made for the
 * capacity and blocks without live rows end at once: there the bits alone stay the same). */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "codegen/codegen.h"
#include "tests/support/check_main.h"
#include "tests/support/gpu.h"
#include "tests/support/group_run.h"
#include "tests/support/status_checks.h"

static const char *const targets[] = {"cpu", "cpu:x86-64-v4", "cpu:x86-64-v3", "cpu:x86-64",
                                      "cuda:sm_80"};
#define N_TARGETS ((int)(sizeof targets / sizeof targets[0]))
#define LEN(a)    (sizeof(a) / sizeof *(a))

enum { SHARDS = 8, WIDTH = 33, HIDDEN = 48 };

static bool on_gpu(const char *target) {
    return strncmp(target, "cuda:", 5) == 0;
}

typedef struct {
    int64_t tokens, topk, experts, ranks, chunks, ep_rank;
    MoeRouting routing;
    MoeDtype dtype; /* of the products' operands */
} Layer;

static MoeValue *input(MoeGraph *g, const char *name, MoeType t) {
    return moe_build_input(g, name, t);
}

static MoeValue *product(MoeGraph *g, MoeValue *a, MoeValue *b, int64_t grouped) {
    return moe_op_build(g, MOE_OP_MATMUL, (MoeValue *[]){a, b}, 2, moe_ai("tb", 1),
                        moe_ai("grouped", grouped), MOE_END)
        ->results[0];
}

static MoeValue *moved(MoeGraph *g, MoeOpcode op, MoeValue *x, const MoeOp *plan) {
    return moe_op_build(g, op, (MoeValue *[]){x, plan->results[2], plan->results[3]}, 3, MOE_END)
        ->results[0];
}

/* Rows that differ from each other, over the plan's received rows: what a2a_dispatch would bring. */
static MoeValue *received(MoeGraph *g, const MoeOp *plan, int64_t topk) {
    MoeValue *numbers = moe_build_convert(g, plan->results[3], MOE_F32);
    numbers = moe_build2(g, MOE_OP_MUL, numbers, moe_build_const(g, 1.0 / 256));
    return product(g, numbers, input(g, "spread", moe_type_2d(MOE_F32, moe_dim(WIDTH), topk)), 0);
}

static MoeGraph *build(MoeModule *m, const Layer *l, int64_t capacity) {
    MoeGraph *g = moe_module_add_graph(m, "layer");
    int64_t slots = (l->experts + l->ranks - 1) / l->ranks;
    slots = (slots + l->chunks - 1) / l->chunks * l->chunks;
    MoeValue *tok = input(g, "tok_ep", moe_type_segs(1, SHARDS));
    MoeValue *in[3] = {
        input(g, "ids", moe_type_2d(MOE_I32, moe_dim_ragged(capacity, tok), l->topk)),
        input(g, "place", moe_type_1d(MOE_I32, l->experts)),
        input(g, "ep_rank", moe_type_1d(MOE_I32, 1))};
    const MoeOp *plan =
        moe_op_build(g, MOE_OP_EXPERT_PLAN, in, 3, moe_ai("slots", slots),
                     moe_ai("chunks", l->chunks), moe_ai("expect_recv", l->tokens),
                     moe_ai("expect_rows", l->tokens * l->topk / l->ranks), MOE_END);
    MoeValue *x = moe_build_convert(g, received(g, plan, l->topk), l->dtype);
    MoeValue *w = moe_build1(g, MOE_OP_SIGMOID,
                             moe_build_convert(g, plan->results[3], MOE_F32)); /* 0.27 where -1 */
    MoeValue *w1 = input(g, "w1", moe_type_3d(l->dtype, slots, HIDDEN, WIDTH));
    MoeValue *w3 = input(g, "w3", moe_type_3d(l->dtype, slots, HIDDEN, WIDTH));
    MoeValue *w2 = input(g, "w2", moe_type_3d(l->dtype, slots, WIDTH, HIDDEN));
    MoeValue *xs = moved(g, MOE_OP_DISPATCH, x, plan);
    MoeValue *a = product(g, xs, w1, 1), *b = product(g, xs, w3, 1);
    MoeValue *h = moe_build2(g, MOE_OP_MUL, a, moe_build1(g, MOE_OP_SIGMOID, a));
    h = moe_build2(g, MOE_OP_MUL, h, b);
    MoeValue *scale = moved(g, MOE_OP_DISPATCH_WEIGHT, w, plan);
    h = moe_build2(g, MOE_OP_MUL, h, scale);
    MoeValue *hd = moe_build_convert(g, h, l->dtype), *y = product(g, hd, w2, 1);
    MoeValue *again = moved(g, MOE_OP_DISPATCH, x, plan);
    MoeValue *dw = moe_op_build(g, MOE_OP_WEIGHT_GRAD, (MoeValue *[]){hd, again}, 2,
                                moe_ai("grouped", 1), MOE_END)
                       ->results[0];
    moe_build_output(g, "y", y);
    moe_build_output(g, "scale", scale);
    moe_build_output(g, "dw", dw);
    moe_build_output(g, "sums", moe_build1(g, MOE_OP_COL_SUM, h));
    MoeValue *squares = moe_build2(g, MOE_OP_MUL, h, h);
    moe_build_output(g, "squares", moe_build1(g, MOE_OP_COL_SUM, squares));
    return g;
}

static const char *const outputs[] = {"y", "scale", "dw", "sums", "squares"};

typedef struct {
    MoeModule *m;
    MoeGraph *g;
    MoeInputs in;
    MoeGroupRun *run;
} Job;

static void open_job(Job *j, const Layer *l, int64_t capacity, const char *target) {
    j->m = moe_module_create();
    j->g = build(j->m, l, capacity);
    MoeRandomOptions o = {.seed = 3,
                          .rows = l->tokens,
                          .shards = MOE_SHARDS_RANDOM,
                          .routing = l->routing,
                          .ep_rank = l->ep_rank};
    OK(moe_random_inputs(j->g, &o, j->m->arena, &j->in));
    MoeTarget *t;
    OK(moe_target_create(target, &t));
    moe_group_greedily(j->g, t);
    t->destroy(t);
    OK(moe_group_run_create(j->g, &(MoeGroupRunOptions){.target = target}, &j->run));
    OK(moe_group_run(j->run, &j->in));
}

static void close_job(Job *j) {
    moe_group_run_destroy(j->run);
    moe_module_destroy(j->m);
}

/* Against f64, over values of the layer's own rounding: bf16 operands are off by 2^-9 each. */
static void check_values(const Job *j, const Layer *l, const char *target) {
    MoeEval *ev = moe_eval_create(j->g);
    OK(moe_inputs_give(&j->in, ev));
    OK(moe_eval_run(ev));
    double bound = l->dtype == MOE_BF16 ? 0x1p-6 : 2e-5;
    for (size_t i = 0; i < LEN(outputs); i++) {
        const MoeValue *v = moe_graph_find_output(j->g, outputs[i]);
        const MoeTensor *want = moe_eval_get(ev, v);
        const float *got = moe_group_run_data(j->run, v);
        double top = 0;
        for (int64_t k = 0; k < want->n; k++)
            top = fmax(top, fabs(want->f[k]));
        for (int64_t k = 0; k < want->n; k++)
            CHECK_EACH(fabs((double)got[k] - want->f[k]) <= bound * top,
                       "%s: %s[%lld] is %g, expected %g", target, outputs[i], (long long)k,
                       (double)got[k], want->f[k]);
    }
    moe_eval_destroy(ev);
}

static size_t live_bytes(const Job *j, const MoeValue *v) {
    const MoeValue *seg = v->type.dims[0].seg;
    int64_t bytes = moe_type_bytes(&v->type);
    if (!seg || !v->type.dims[0].size)
        return (size_t)bytes;
    const int32_t *table = moe_group_run_data(j->run, seg);
    return (size_t)(bytes / v->type.dims[0].size * table[seg->type.groups * seg->type.shards]);
}

static void check_layer(const Layer *l, const char *target) {
    Job tight, wide;
    open_job(&tight, l, l->tokens + 1, target);
    open_job(&wide, l, 64 * (l->tokens + 1), target);
    check_values(&tight, l, target);
    for (size_t i = 0; i < LEN(outputs); i++) {
        const MoeValue *a = moe_graph_find_output(tight.g, outputs[i]);
        const MoeValue *b = moe_graph_find_output(wide.g, outputs[i]);
        ck_assert_int_eq((int)live_bytes(&tight, a), (int)live_bytes(&wide, b));
        ck_assert_msg(memcmp(moe_group_run_data(tight.run, a), moe_group_run_data(wide.run, b),
                             live_bytes(&tight, a)) == 0,
                      "%s: the bits of %s depend on the capacity", target, outputs[i]);
    }
    if (!on_gpu(target)) {
        ck_assert_int_eq(moe_group_run_tasks(tight.run), moe_group_run_tasks(wide.run));
        ck_assert_int_eq((int)moe_group_run_work_used(tight.run),
                         (int)moe_group_run_work_used(wide.run));
    }
    close_job(&tight);
    close_job(&wide);
}

START_TEST(work_is_that_of_live_rows) {
    static const Layer layers[] = {
        {0, 2, 4, 2, 1, 0, MOE_ROUTING_RANDOM, MOE_F32},
        {1, 1, 4, 2, 1, 1, MOE_ROUTING_RANDOM, MOE_BF16},
        {100, 2, 4, 2, 2, 1, MOE_ROUTING_GAP, MOE_F32},
        {300, 3, 8, 3, 3, 2, MOE_ROUTING_RANDOM, MOE_BF16},
        {300, 3, 8, 3, 1, 0, MOE_ROUTING_RANDOM, MOE_F32},
        {257, 1, 5, 5, 1, 0, MOE_ROUTING_ONE, MOE_F32}, /* all or none here, by the rank */
        {257, 1, 5, 5, 1, 1, MOE_ROUTING_ONE, MOE_F32},
        {257, 1, 5, 5, 1, 2, MOE_ROUTING_ONE, MOE_F32},
        {257, 1, 5, 5, 1, 3, MOE_ROUTING_ONE, MOE_F32},
        {257, 1, 5, 5, 1, 4, MOE_ROUTING_ONE, MOE_BF16}};
    if (moe_test_runs(targets[_i]))
        for (size_t i = 0; i < LEN(layers); i += moe_test_does_all(targets[_i]) ? 1 : 6)
            check_layer(&layers[i], targets[_i]);
}
END_TEST

int main(void) {
    moe_test_compile_plainly();
    Suite *s = suite_create("received_kernels");
    TCase *tc = tcase_create("received_kernels");
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, work_is_that_of_live_rows, 0, N_TARGETS);
    suite_add_tcase(s, tc);
    return moe_check_main(s);
}
