/* fuse: what is grouped and what is not, on whole models and on cases made for one rule each. That values stay the same is
 * checked by the pipeline's tests (--eval-each). */
#include <check.h>
#include <string.h>
#include "ir/text.h"
#include "passes/group.h"
#include "passes/pipeline.h"
#include "tests/support/check_main.h"
#include "tests/support/pass_model.h"

static void ok(MoeStatus st) {
    ck_assert_msg(!st, "%s", moe_status_message(st));
}

static MoeGraph *train(const MoePassModel *m) {
    return moe_module_find(m->cx.module, "train");
}

static MoePassModel fused(const MoePassModelOptions *o) {
    MoePassModelOptions with = *o;
    with.passes = "grad,decompose,recompute,fuse";
    MoePassModel m;
    ok(moe_pass_model_make(&with, &m));
    return m;
}

static int count(const MoeGroup *g, MoeOpcode op) {
    int n = 0;
    for (size_t i = 0; i < g->n_ops; i++)
        n += g->ops[i]->opcode == op;
    return n;
}

/* The group in which an op of graph text stands, by the name of its first result. */
static int group_of(const MoeGraph *g, const char *name) {
    for (size_t i = 0; i < g->n_ops; i++)
        for (int k = 0; k < g->ops[i]->n_results; k++)
            if (g->ops[i]->results[k]->name && !strcmp(g->ops[i]->results[k]->name, name))
                return g->ops[i]->group;
    ck_abort_msg("no value %%%s", name);
}

static MoeModule *fuse_text(const char *text, MoeFakeTarget *t) {
    MoeDiag d = {.file = "case", .source = text};
    MoeModule *m = moe_parse(&d);
    ck_assert_msg(m, "%s", moe_str_c(&d.text));
    MoePassContext cx = {.module = m, .target = &t->base, .arena = m->arena};
    MoePipelineOptions o = {.passes = "fuse",
                            .verify_each = true,
                            .eval_each = true,
                            .out = stderr,
                            .err = fopen("/dev/null", "w")};
    ok(moe_pipeline_run(&cx, &o));
    fclose(o.err);
    moe_diag_free(&d);
    return m;
}

/* ---- whole models ---- */

START_TEST(test_every_op_in_one_phase_group) {
    for (int bits = 0; bits < 16; bits++) {
        MoePassModelOptions o = {.dense = bits & 1,
                                 .bf16 = bits & 2,
                                 .micro_batches = bits & 4 ? 2 : 1,
                                 .recompute = bits & 8 ? MOE_RECOMPUTE_CHEAP : MOE_RECOMPUTE_NONE};
        MoePassModel m = fused(&o);
        for (size_t i = 0; i < m.cx.module->n_graphs; i++) {
            const MoeGraph *g = m.cx.module->graphs[i];
            MoeGroups gs = moe_groups_of(
                g, m.cx.arena); /* asserts consecutive, one phase, none without a group */
            ck_assert_uint_gt(gs.n_groups, 0);
            for (size_t s = 0; s < gs.n_groups; s++) {
                const MoeGroup *grp = &gs.groups[s];
                ck_assert_int_eq(grp->ops[0]->group, (int)s);
                for (size_t k = 1; k < grp->n_ops; k++)
                    ck_assert(m.target.base.can_join(&m.target.base, grp->ops, k, grp->ops[k]));
            }
        }
        moe_pass_model_free(&m);
    }
}
END_TEST

START_TEST(test_update_is_one_group_a_parameter) {
    for (int dense = 0; dense < 2; dense++) {
        MoePassModelOptions o = {.dense = dense};
        MoePassModel m = fused(&o);
        const MoeGraph *g = train(&m);
        MoeGroups gs = moe_groups_of(g, m.cx.arena);
        size_t n_params = 0, n_updates = 0;
        for (size_t i = 0; i < g->n_ops; i++)
            n_params += g->ops[i]->opcode == MOE_OP_PARAM;
        for (size_t s = 0; s < gs.n_groups; s++) {
            if (gs.groups[s].ops[0]->phase != MOE_PHASE_UPDATE)
                continue;
            n_updates++;
            ck_assert_uint_eq(gs.groups[s].n_outputs, 3); /* p', m', v' */
        }
        ck_assert_uint_eq(n_updates, n_params);
        moe_pass_model_free(&m);
    }
}
END_TEST

START_TEST(test_gathered_rows_are_never_stored) {
    for (int bf16 = 0; bf16 < 2; bf16++) {
        MoePassModelOptions o = {.bf16 = bf16, .recompute = MOE_RECOMPUTE_CHEAP};
        MoePassModel m = fused(&o);
        MoeGroups gs = moe_groups_of(train(&m), m.cx.arena);
        int n_dispatch = 0;
        for (size_t s = 0; s < gs.n_groups; s++)
            for (size_t k = 0; k < gs.groups[s].n_ops; k++)
                if (gs.groups[s].ops[k]->opcode == MOE_OP_DISPATCH) {
                    n_dispatch++;
                    ck_assert(
                        !moe_group_has_output(&gs.groups[s], gs.groups[s].ops[k]->results[0]));
                }
        ck_assert_int_eq(
            n_dispatch,
            5 * 3); /* gate and up; their two weight gradients; down's weight and row gradients */
        moe_pass_model_free(&m);
    }
}
END_TEST

START_TEST(test_gate_and_up_are_one_kernel) {
    for (int bits = 0; bits < 4; bits++) {
        MoePassModelOptions o = {.dense = bits & 1, .bf16 = bits & 2};
        MoePassModel m = fused(&o);
        MoeGroups gs = moe_groups_of(train(&m), m.cx.arena);
        int pairs = 0;
        for (size_t s = 0; s < gs.n_groups; s++)
            if (count(&gs.groups[s], MOE_OP_MATMUL) == 2) {
                pairs++;
                ck_assert_int_eq(count(&gs.groups[s], MOE_OP_SIGMOID), 1);
                ck_assert_int_eq(gs.groups[s].ops[0]->phase, MOE_PHASE_FORWARD);
            }
        ck_assert_int_eq(pairs, 3);
        moe_pass_model_free(&m);
    }
}
END_TEST

/* The gradient of the rows' weights is a row sum of dA' and the activation: behind the product that makes dA', or behind gate and up where
 * they are computed again, however the layer is divided, since the sum's order is another one elsewhere. The products are not
 * written. */
START_TEST(test_the_weights_gradient_is_behind_its_product) {
    static const MoeMesh meshes[] = {
        {.dp = 1, .shard = 1, .ep = 1, .tp = 1, .dense_shard = 1},
        {.dp = 1, .shard = 1, .ep = 2, .tp = 1, .dense_shard = 1},
        {.dp = 2, .shard = 1, .ep = 2, .tp = 1, .dense_shard = 2},
        {.dp = 1, .shard = 2, .ep = 1, .tp = 1, .dense_shard = 2},
        {.dp = 1, .shard = 1, .ep = 1, .tp = 2, .dense_shard = 1},
        {.dp = 1, .shard = 1, .ep = 2, .tp = 1, .dense_shard = 1, .extra_slots = 1}};
    for (int i = 0; i < (int)(sizeof meshes / sizeof meshes[0]) * 6; i++) {
        MoePassModelOptions o = {.bf16 = i % 2,
                                 .row_sums = true,
                                 .recompute = (MoeRecompute)(i / 2 % 3),
                                 .mesh = meshes[i / 6],
                                 .passes = "grad,decompose,place,shard,recompute,fuse"};
        MoePassModel m;
        ok(moe_pass_model_make(&o, &m));
        MoeGroups gs = moe_groups_whole(train(&m), m.cx.arena);
        int n = 0;
        for (size_t s = 0; s < gs.n_groups; s++) {
            const MoeGroup *grp = &gs.groups[s];
            if (!count(grp, MOE_OP_MATMUL) || !count(grp, MOE_OP_ROW_SUM))
                continue;
            n++;
            for (size_t k = 0; k < grp->n_ops; k++)
                if (grp->ops[k]->opcode == MOE_OP_MATMUL)
                    ck_assert(!moe_group_has_output(grp, grp->ops[k]->results[0]));
        }
        ck_assert_msg(n == 3, "mesh %d, recompute %d: %d of 3 layers", i / 6, i / 2 % 3, n);
        moe_pass_model_free(&m);
    }
}
END_TEST

START_TEST(test_a_target_that_refuses_gets_single_ops) {
    MoePassModelOptions o = {.refuse_joins = true, .recompute = MOE_RECOMPUTE_CHEAP};
    MoePassModel m = fused(&o);
    MoeGroups gs = moe_groups_of(train(&m), m.cx.arena);
    for (size_t s = 0; s < gs.n_groups; s++)
        ck_assert_uint_eq(gs.groups[s].n_ops, 1);
    moe_pass_model_free(&m);
}
END_TEST

/* ---- one rule each ---- */

#define HEAD                                                                                       \
    "moe 1\ngraph @eval {\n"                                                                       \
    "  %tok = input {name = \"tok\"} : segs<1,2>\n"                                                \
    "  %x = input {name = \"x\"} : f32[r<=8 @%tok, 16]\n"                                          \
    "  %w = param {name = \"w\", init = \"normal\", std = 0.1, decay = 1} : f32[16, 16]\n"

START_TEST(test_residual_joins_the_matmul_though_a_norm_follows) {
    MoeFakeTarget t;
    moe_fake_target_init(&t);
    MoeModule *m =
        fuse_text(HEAD "  %y = matmul %x, %w {tb = 1, grouped = 0} : f32[r<=8 @%tok, 16]\n"
                       "  %z = add %y, %x : f32[r<=8 @%tok, 16]\n"
                       "  %sq = mul %z, %z : f32[r<=8 @%tok, 16]\n"
                       "  %s = row_sum %sq : f32[r<=8 @%tok, 1]\n"
                       "  %n = mul %z, %s : f32[r<=8 @%tok, 16]\n"
                       "  output %n {name = \"n\"}\n}\n",
                  &t);
    const MoeGraph *g = m->graphs[0];
    ck_assert_int_eq(group_of(g, "z"), group_of(g, "y"));
    ck_assert_int_ne(group_of(g, "sq"), group_of(g, "z"));
    ck_assert_int_eq(group_of(g, "n"), group_of(g, "sq"));
    moe_module_destroy(m);
}
END_TEST

START_TEST(test_a_tail_that_row_sums_share_stays_out) {
    MoeFakeTarget t;
    moe_fake_target_init(&t);
    MoeModule *m =
        fuse_text(HEAD "  %y = matmul %x, %w {tb = 1, grouped = 0} : f32[r<=8 @%tok, 16]\n"
                       "  %a = mul %y, %x : f32[r<=8 @%tok, 16]\n"
                       "  %s = row_sum %a : f32[r<=8 @%tok, 1]\n"
                       "  %b = mul %y, %s : f32[r<=8 @%tok, 16]\n"
                       "  %c = col_sum %b : f32[16]\n"
                       "  output %b {name = \"b\"}\n  output %c {name = \"c\"}\n}\n",
                  &t);
    const MoeGraph *g = m->graphs[0];
    ck_assert_int_ne(group_of(g, "a"), group_of(g, "y"));
    ck_assert_int_eq(group_of(g, "b"), group_of(g, "a"));
    ck_assert_int_eq(group_of(g, "c"), group_of(g, "a"));
    moe_module_destroy(m);
}
END_TEST

/* A sum that only leaves may be behind the product, with what makes its other factor; where the target says so. */
START_TEST(test_a_row_sum_that_leaves_joins_the_matmul) {
    for (int sums = 0; sums < 2; sums++) {
        MoeFakeTarget t;
        moe_fake_target_init(&t);
        t.base.fuse.matmul_row_sums = sums;
        MoeModule *m =
            fuse_text(HEAD "  %y = matmul %x, %w {tb = 1, grouped = 0} : f32[r<=8 @%tok, 16]\n"
                           "  %a = sigmoid %x : f32[r<=8 @%tok, 16]\n"
                           "  %b = mul %x, %a : f32[r<=8 @%tok, 16]\n"
                           "  %c = mul %y, %b : f32[r<=8 @%tok, 16]\n"
                           "  %s = row_sum %c : f32[r<=8 @%tok, 1]\n"
                           "  %d = mul %y, %a : f32[r<=8 @%tok, 16]\n"
                           "  output %s {name = \"s\"}\n  output %b {name = \"b\"}\n"
                           "  output %d {name = \"d\"}\n}\n",
                      &t);
        const MoeGraph *g = m->graphs[0];
        ck_assert_int_eq(group_of(g, "s") == group_of(g, "y"), sums);
        ck_assert_int_eq(group_of(g, "b") == group_of(g, "y"), sums);
        ck_assert_int_eq(group_of(g, "d") == group_of(g, "y"), sums);
        ck_assert_int_eq(group_of(g, "s"), group_of(g, "d"));
        moe_module_destroy(m);
    }
}
END_TEST

START_TEST(test_nothing_in_a_group_reads_its_column_sum) {
    MoeFakeTarget t;
    moe_fake_target_init(&t);
    MoeModule *m = fuse_text(HEAD "  %a = mul %x, %x : f32[r<=8 @%tok, 16]\n"
                                  "  %c = col_sum %a : f32[16]\n"
                                  "  %b = mul %a, %c : f32[r<=8 @%tok, 16]\n"
                                  "  %d = neg %a : f32[r<=8 @%tok, 16]\n"
                                  "  output %b {name = \"b\"}\n  output %d {name = \"d\"}\n}\n",
                             &t);
    const MoeGraph *g = m->graphs[0];
    ck_assert_int_eq(group_of(g, "c"), group_of(g, "a"));
    ck_assert_int_ne(group_of(g, "b"), group_of(g, "a"));
    ck_assert_int_eq(group_of(g, "d"), group_of(g, "a")); /* joins before the column sum */
    moe_module_destroy(m);
}
END_TEST

START_TEST(test_rows_of_two_inputs_merge) { /* a and b start apart; c needs both */
    MoeFakeTarget t;
    moe_fake_target_init(&t);
    MoeModule *m = fuse_text(HEAD "  %v = input {name = \"v\"} : f32[r<=8 @%tok, 16]\n"
                                  "  %a = exp %x : f32[r<=8 @%tok, 16]\n"
                                  "  %b = neg %v : f32[r<=8 @%tok, 16]\n"
                                  "  %c = add %a, %b : f32[r<=8 @%tok, 16]\n"
                                  "  output %c {name = \"c\"}\n}\n",
                             &t);
    const MoeGraph *g = m->graphs[0];
    ck_assert_int_eq(group_of(g, "a"), group_of(g, "c"));
    ck_assert_int_eq(group_of(g, "b"), group_of(g, "c"));
    moe_module_destroy(m);
}
END_TEST

START_TEST(test_scalars_join_their_only_reader) {
    MoeFakeTarget t;
    moe_fake_target_init(&t);
    MoeModule *m =
        fuse_text(HEAD "  %p = input {name = \"p\"} : f32[1]\n"
                       "  %q = exp %p : f32[1]\n"
                       "  %r = neg %q : f32[1]\n"
                       "  %y = mul %x, %r : f32[r<=8 @%tok, 16]\n"
                       "  %k = sigmoid %p : f32[1]\n"
                       "  %z = matmul %y, %w {tb = 1, grouped = 0} : f32[r<=8 @%tok, 16]\n"
                       "  %z2 = mul %z, %k : f32[r<=8 @%tok, 16]\n"
                       "  output %z2 {name = \"z\"}\n  output %k {name = \"k\"}\n}\n",
                  &t);
    const MoeGraph *g = m->graphs[0];
    ck_assert_int_eq(group_of(g, "q"), group_of(g, "y"));
    ck_assert_int_eq(group_of(g, "r"), group_of(g, "y"));
    ck_assert_int_ne(group_of(g, "k"), group_of(g, "z2")); /* an output reads it too */
    moe_module_destroy(m);
}
END_TEST

/* %s is made for the output; the matmul's tail reads %x anyway and computes it again. */
START_TEST(test_cheap_inputs_are_computed_again) {
    MoeFakeTarget t;
    moe_fake_target_init(&t);
    MoeModule *m =
        fuse_text(HEAD "  %s = sigmoid %x : f32[r<=8 @%tok, 16]\n"
                       "  %y = matmul %x, %w {tb = 1, grouped = 0} : f32[r<=8 @%tok, 16]\n"
                       "  %a = mul %y, %x : f32[r<=8 @%tok, 16]\n"
                       "  %b = mul %a, %s : f32[r<=8 @%tok, 16]\n"
                       "  output %b {name = \"b\"}\n  output %s {name = \"s\"}\n}\n",
                  &t);
    const MoeGraph *g = m->graphs[0];
    MoeGroups gs = moe_groups_of(g, m->arena);
    const MoeGroup *tail = &gs.groups[group_of(g, "b")];
    ck_assert_int_eq(count(tail, MOE_OP_SIGMOID), 1);
    ck_assert_int_ne(group_of(g, "s"), group_of(g, "b"));
    ck_assert_uint_eq(tail->n_outputs, 1);
    moe_module_destroy(m);
}
END_TEST

int main(void) {
    Suite *s = suite_create("fuse");
    TCase *c = tcase_create("fuse");
    tcase_set_timeout(c, 60);
    tcase_add_test(c, test_every_op_in_one_phase_group);
    tcase_add_test(c, test_update_is_one_group_a_parameter);
    tcase_add_test(c, test_gathered_rows_are_never_stored);
    tcase_add_test(c, test_gate_and_up_are_one_kernel);
    tcase_add_test(c, test_the_weights_gradient_is_behind_its_product);
    tcase_add_test(c, test_a_target_that_refuses_gets_single_ops);
    tcase_add_test(c, test_residual_joins_the_matmul_though_a_norm_follows);
    tcase_add_test(c, test_a_tail_that_row_sums_share_stays_out);
    tcase_add_test(c, test_a_row_sum_that_leaves_joins_the_matmul);
    tcase_add_test(c, test_nothing_in_a_group_reads_its_column_sum);
    tcase_add_test(c, test_rows_of_two_inputs_merge);
    tcase_add_test(c, test_scalars_join_their_only_reader);
    tcase_add_test(c, test_cheap_inputs_are_computed_again);
    suite_add_tcase(s, c);
    return moe_check_main(s);
}
