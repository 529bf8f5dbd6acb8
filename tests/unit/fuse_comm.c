/* fuse, what passes between ranks: which collectives become one exchange, where they come to stand, and that nothing is read
 * before it has arrived. Graphs are written by hand, a rule each; whole models are in tests/unit/memplan.c. */
#include <check.h>
#include <string.h>
#include "ir/text.h"
#include "passes/group.h"
#include "passes/pipeline.h"
#include "tests/support/check_main.h"
#include "tests/support/fake_target.h"

static MoeFakeTarget target;

static MoeModule *fuse_text(const char *text) {
    MoeDiag d = {.file = "case", .source = text};
    MoeModule *m = moe_parse(&d);
    ck_assert_msg(m, "%s", moe_str_c(&d.text));
    moe_fake_target_init(&target);
    MoePassContext cx = {.module = m, .target = &target.base, .arena = m->arena};
    MoePipelineOptions o = {.passes = "fuse", .verify_each = true, .out = stdout, .err = stderr};
    MoeStatus st = moe_pipeline_run(&cx, &o);
    ck_assert_msg(!st, "%s", moe_status_message(st));
    moe_diag_free(&d);
    return m;
}

/* The group of the op that makes the value. */
static int group_of(const MoeModule *m, const char *name) {
    const MoeGraph *g = m->graphs[0];
    for (size_t i = 0; i < g->n_ops; i++)
        for (int k = 0; k < g->ops[i]->n_results; k++)
            if (g->ops[i]->results[k]->name && !strcmp(g->ops[i]->results[k]->name, name))
                return g->ops[i]->group;
    ck_abort_msg("no value %%%s", name);
}

static int count_exchanges(const MoeModule *m) {
    MoeGroups gs = moe_groups_of(m->graphs[0], m->arena);
    int n = 0;
    for (size_t s = 0; s < gs.n_groups; s++)
        n += gs.groups[s].ops[0]->opcode != MOE_OP_WAIT && moe_group_is_comm(&gs.groups[s]);
    return n;
}

#define TOKENS                                                                                     \
    "moe 1\ngraph @train {\n"                                                                      \
    "  %tok = input {name = \"tok\"} : segs<1,2>\n"                                                \
    "  %x = input {name = \"x\"} : f32[r<=8 @%tok, 16]\n"
#define SLICE(v) "  %" v " = param {name = \"" v "\", init = \"ones\", decay = 1} : f32[128]\n"
#define GATHER(to, from, layer)                                                                    \
    "  %" to " = all_gather %" from " {group = \"dense_shard\", unit = 4096, dims = \"16,16\", "   \
    "layer = " layer "} : f32[16, 16]\n"
#define MATMUL(to, a, b, layer)                                                                    \
    "  %" to " = matmul %" a ", %" b " {tb = 1, grouped = 0, layer = " layer                       \
    "} : f32[r<=8 @%tok, 16]\n"
#define WGRAD(to, dy, x, layer)                                                                    \
    "  %" to " = weight_grad %" dy ", %" x " {grouped = 0, layer = " layer "} : f32[16, 16]\n"
#define REDUCE(to, from, layer)                                                                    \
    "  %" to " = reduce_scatter %" from " {sum = \"data\", scatter = \"dense_shard\", unit = "     \
    "128, parts = 2, outer = 0, layer = " layer "} : f32[128]\n"
#define OUTPUT(v) "  output %" v " {name = \"" v "\"}\n"

START_TEST(test_gathers_of_one_layer_are_one_exchange) {
    MoeModule *m = fuse_text(TOKENS SLICE("q") SLICE("k") GATHER("wq", "q", "0") MATMUL(
        "y", "x", "wq", "0") GATHER("wk", "k", "0") MATMUL("z", "y", "wk", "0") OUTPUT("z") "}\n");
    ck_assert_int_eq(group_of(m, "wq"), group_of(m, "wk"));
    ck_assert_int_lt(group_of(m, "wk"), group_of(m, "y"));
    moe_module_destroy(m);
    m = fuse_text(TOKENS SLICE("q") SLICE("k") GATHER("wq", "q", "0") MATMUL("y", "x", "wq", "0")
                      GATHER("wk", "k", "1") MATMUL("z", "y", "wk", "1") OUTPUT("z") "}\n");
    ck_assert_int_eq(count_exchanges(m), 2); /* the next layer's is needed later */
    ck_assert_int_gt(group_of(m, "wk"), group_of(m, "y"));
    moe_module_destroy(m);
}
END_TEST

/* The bf16 copy of a slice moves with its gather. */
START_TEST(test_a_converted_slice_moves_with_its_gather) {
    MoeModule *m = fuse_text(TOKENS SLICE("q") SLICE("k") GATHER("wq", "q", "0") MATMUL(
        "y", "x", "wq",
        "0") "  %k16 = convert %k {to = \"bf16\"} : bf16[128]\n"
             "  %wk = all_gather %k16 {group = \"dense_shard\", unit = 4096, dims = "
             "\"16,16\", layer = 0} : bf16[16, 16]\n"
             "  %y16 = convert %y {to = \"bf16\"} : bf16[r<=8 @%tok, 16]\n" MATMUL(
                 "z", "y16", "wk", "0") OUTPUT("z") "}\n");
    ck_assert_int_eq(group_of(m, "wq"), group_of(m, "wk"));
    ck_assert_int_lt(group_of(m, "k16"), group_of(m, "wk"));
    moe_module_destroy(m);
}
END_TEST

/* More than 16 MiB: bandwidth counts, not latency, and a weight should not lie about before it is needed. */
START_TEST(test_large_gathers_stay_where_they_are_needed) {
    MoeModule *m = fuse_text(
        "moe 1\ngraph @train {\n"
        "  %x = input {name = \"x\"} : f32[8, 2048]\n"
        "  %a = param {name = \"a\", init = \"ones\", decay = 1} : f32[2097152]\n"
        "  %b = param {name = \"b\", init = \"ones\", decay = 1} : f32[2097152]\n"
        "  %wa = all_gather %a {group = \"dense_shard\", unit = 4096, dims = \"2048,2048\", layer "
        "= 0} : f32[2048, 2048]\n"
        "  %y = matmul %x, %wa {tb = 1, grouped = 0, layer = 0} : f32[8, 2048]\n"
        "  %wb = all_gather %b {group = \"dense_shard\", unit = 4096, dims = \"2048,2048\", layer "
        "= 0} : f32[2048, 2048]\n"
        "  %z = matmul %y, %wb {tb = 1, grouped = 0, layer = 0} : f32[8, 2048]\n"
        "  output %z {name = \"z\"}\n}\n");
    ck_assert_int_eq(count_exchanges(m), 2);
    ck_assert_int_gt(group_of(m, "wb"), group_of(m, "y"));
    moe_module_destroy(m);
    m = fuse_text(
        "moe 1\ngraph @train {\n"
        "  %a = param {name = \"a\", init = \"ones\", decay = 1} : f32[2097152]\n"
        "  %b = param {name = \"b\", init = \"ones\", decay = 1} : f32[2097152]\n"
        "  %wa = all_gather %a {group = \"dense_shard\", unit = 4096, dims = \"2048,2048\", layer "
        "= 0} : f32[2048, 2048]\n"
        "  %wb = all_gather %b {group = \"dense_shard\", unit = 4096, dims = \"2048,2048\", layer "
        "= 0} : f32[2048, 2048]\n"
        "  output %wa {name = \"wa\"}\n  output %wb {name = \"wb\"}\n}\n");
    ck_assert_int_eq(count_exchanges(m), 2); /* though they follow each other */
    moe_module_destroy(m);
}
END_TEST

START_TEST(test_reductions_of_one_layer_are_one_exchange) {
    MoeModule *m =
        fuse_text(TOKENS "  %d = input {name = \"d\"} : f32[r<=8 @%tok, 16]\nbackward:\n" WGRAD(
            "g1", "d", "x", "1") REDUCE("s1", "g1", "1") WGRAD("g2", "x", "d", "1")
                      REDUCE("s2", "g2", "1") WGRAD("g3", "x", "x", "0") REDUCE("s3", "g3", "0")
                          OUTPUT("s1") OUTPUT("s2") OUTPUT("s3") "}\n");
    ck_assert_int_eq(group_of(m, "s1"), group_of(m, "s2"));
    ck_assert_int_gt(group_of(m, "s1"), group_of(m, "g2"));
    ck_assert_int_lt(group_of(m, "s1"), group_of(m, "g3")); /* not held back for another layer */
    ck_assert_int_eq(count_exchanges(m), 2);
    moe_module_destroy(m);
}
END_TEST

/* Weight gradients are large: they are not held back through another layer. */
START_TEST(test_reductions_do_not_cross_layers) {
    MoeModule *m = fuse_text(
        TOKENS
        "  %d = input {name = \"d\"} : f32[r<=8 @%tok, 16]\nbackward:\n" WGRAD("g1", "d", "x", "1")
            REDUCE("s1", "g1", "1") WGRAD("g3", "x", "x", "0") WGRAD("g2", "x", "d", "1")
                REDUCE("s2", "g2", "1") OUTPUT("s1") OUTPUT("s2") OUTPUT("g3") "}\n");
    ck_assert_int_lt(group_of(m, "s1"), group_of(m, "g3"));
    ck_assert_int_eq(count_exchanges(m), 2);
    moe_module_destroy(m);
}
END_TEST

/* A reduction that something reads at once stays before its reader. */
START_TEST(test_a_reduction_is_not_moved_past_its_reader) {
    MoeModule *m = fuse_text(
        TOKENS
        "  %d = input {name = \"d\"} : f32[r<=8 @%tok, 16]\nbackward:\n" WGRAD("g1", "d", "x", "1")
            REDUCE("s1", "g1", "1") "  %n = neg %s1 : f32[128]\n" WGRAD("g2", "x", "d", "1")
                REDUCE("s2", "g2", "1") OUTPUT("n") OUTPUT("s2") "}\n");
    ck_assert_int_lt(group_of(m, "s1"), group_of(m, "n"));
    ck_assert_int_ne(group_of(m, "s1"), group_of(m, "s2"));
    moe_module_destroy(m);
}
END_TEST

#define SMALL_SUM(to, from) "  %" to " = all_reduce %" from " {group = \"data\"} : f32[16]\n"

/* %a is made early, %b late; nothing large needs their sums: one exchange at the end of the phase. */
START_TEST(test_small_sums_meet_at_the_end) {
    MoeModule *m = fuse_text(
        TOKENS SLICE("q") GATHER("wq", "q", "0") "  %a = col_sum %x : f32[16]\n" SMALL_SUM(
            "sa",
            "a") "  %na = neg %sa : f32[16]\n" MATMUL("y", "x", "wq",
                                                      "0") "  %b = col_sum %y : "
                                                           "f32[16]\n" SMALL_SUM("sb",
                                                                                 "b") "  %t = add "
                                                                                      "%na, %sb : "
                                                                                      "f32[16]\n"
                                                                                      "  %u = "
                                                                                      "all_reduce "
                                                                                      "%t {group = "
                                                                                      "\"tp\"} : "
                                                                                      "f32[16]"
                                                                                      "\n" OUTPUT(
                                                                                          "u")
                                                                                          OUTPUT(
                                                                                              "y") "}\n");
    ck_assert_int_eq(group_of(m, "sa"), group_of(m, "sb"));
    ck_assert_int_gt(group_of(m, "sa"), group_of(m, "b"));
    ck_assert_int_gt(group_of(m, "u"), group_of(m, "sb")); /* it reads them: the next exchange */
    ck_assert_int_eq(count_exchanges(m), 3);
    moe_module_destroy(m);
}
END_TEST

/* The matmul's rows (128 KiB) are made with the sum: it must not wait. */
START_TEST(test_a_sum_that_large_ops_read_does_not_wait) {
    MoeModule *m = fuse_text("moe 1\ngraph @train {\n"
                             "  %tok = input {name = \"tok\"} : segs<1,2>\n"
                             "  %x = input {name = \"x\"} : f32[r<=2048 @%tok, 16]\n"
                             "  %c = input {name = \"c\"} : f32[16]\n"
                             "  %sa = all_reduce %c {group = \"data\"} : f32[16]\n"
                             "  %y = mul %x, %sa : f32[r<=2048 @%tok, 16]\n"
                             "  %b = col_sum %y : f32[16]\n"
                             "  %sb = all_reduce %b {group = \"data\"} : f32[16]\n"
                             "  output %sb {name = \"sb\"}\n  output %y {name = \"y\"}\n}\n");
    ck_assert_int_lt(group_of(m, "sa"), group_of(m, "y"));
    ck_assert_int_eq(count_exchanges(m), 2);
    moe_module_destroy(m);
}
END_TEST

/* Two parameters' block sums: both are computed, travel together, and only then become norms. */
START_TEST(test_the_norm_runs_in_rounds) {
    MoeModule *m = fuse_text(
        "moe 1\ngraph @train {\n"
        "  %p = input {name = \"p\"} : f32[8192]\n"
        "  %q = input {name = \"q\"} : f32[4, 4096]\n"
        "reduce:\n"
        "  %bp = block_squares %p : f32[2]\n"
        "  %gp = all_gather %bp {group = \"dense_shard\", unit = 1, dims = \"4\"} : f32[4]\n"
        "  %np = block_tree %gp : f32[1]\n"
        "  %bq = block_squares %q : f32[4, 1]\n"
        "  %gq = all_gather %bq {group = \"expert_shard\", unit = 1, dims = \"4,2\"} : f32[4, 2]\n"
        "  %rq = all_gather_rows %gq {group = \"ep\", ranks = 2} : f32[8, 2]\n"
        "  %nq = block_tree %rq : f32[1]\n"
        "  %n = add %np, %nq : f32[1]\n"
        "  output %n {name = \"n\"}\n}\n");
    ck_assert_int_eq(group_of(m, "gp"), group_of(m, "gq"));
    ck_assert_int_gt(group_of(m, "gp"), group_of(m, "bq"));
    ck_assert_int_gt(group_of(m, "rq"), group_of(m, "gq"));
    ck_assert_int_eq(count_exchanges(m), 2);
    moe_module_destroy(m);
}
END_TEST

#define ROUTED                                                                                     \
    "moe 1\ngraph @train {\n"                                                                      \
    "  %tok = input {name = \"tok\"} : segs<1,2>\n"                                                \
    "  %tok_ep = input {name = \"tok_ep\"} : segs<1,2>\n"                                          \
    "  %place = input {name = \"place.0\"} : i32[4]\n"                                             \
    "  %ep_rank = input {name = \"ep_rank\"} : i32[1]\n"                                           \
    "  %x = input {name = \"x\"} : f32[r<=8 @%tok, 64]\n"                                          \
    "  %w = input {name = \"w\"} : f32[r<=8 @%tok, 2]\n"                                           \
    "  %ids = input {name = \"ids\"} : i32[r<=8 @%tok, 2]\n"                                       \
    "  %all = all_gather_rows %ids, %tok_ep {group = \"ep\", ranks = 2} : i32[r<=16 @%tok_ep, "    \
    "2]\n"                                                                                         \
    "  %send, %idx = send_plan %ids, %place {slots = 2, ranks = 2, chunks = 1, expect = 12} : "    \
    "segs<2,1>, i32[r<=16 @%send]\n"                                                               \
    "  %recv, %seg, %src, %inv = expert_plan %all, %place, %ep_rank {slots = 2, chunks = 1, "      \
    "expect_recv = 12, expect_rows = 16} : segs<1,2>, segs<2,2>, i32[r<=32 @%seg], i32[r<=16 "     \
    "@%recv, 2]\n"
#define EXPERTS                                                                                    \
    "  %e = param {name = \"e.*\", init = \"ones\", decay = 1, stacked = 1} : f32[2, 32, 64]\n"

/* Rows and their weights travel together; the rows are gathered by the matmul as it reads them. */
START_TEST(test_rows_and_weights_are_one_exchange) {
    MoeModule *m =
        fuse_text(ROUTED EXPERTS
                  "  %xu = a2a_dispatch %x, %idx, %inv {group = \"ep\"} : f32[r<=16 @%recv, 64]\n"
                  "  %xr = dispatch %xu, %src, %inv : f32[r<=32 @%seg, 64]\n"
                  "  %wu = a2a_dispatch %w, %idx, %inv {group = \"ep\"} : f32[r<=16 @%recv, 2]\n"
                  "  %wr = dispatch_weight %wu, %src, %inv : f32[r<=32 @%seg, 1]\n"
                  "  %y = matmul %xr, %e {tb = 1, grouped = 1} : f32[r<=32 @%seg, 32]\n"
                  "  %yw = mul %y, %wr : f32[r<=32 @%seg, 32]\n"
                  "  output %yw {name = \"y\"}\n}\n");
    ck_assert_int_eq(group_of(m, "xu"), group_of(m, "wu"));
    ck_assert_int_eq(group_of(m, "yw"), group_of(m, "y"));
    const MoeOp *y = NULL;
    for (size_t i = 0; i < m->graphs[0]->n_ops; i++)
        if (m->graphs[0]->ops[i]->opcode == MOE_OP_MATMUL)
            y = m->graphs[0]->ops[i];
    const MoeOp *rows = y->operands[0]->def;
    ck_assert_int_eq(rows->opcode, MOE_OP_DISPATCH);
    ck_assert_int_eq(rows->group, y->group);
    ck_assert_int_eq(rows->operands[0]->def->opcode, MOE_OP_A2A_DISPATCH);
    moe_module_destroy(m);
}
END_TEST

/* Rows that the experts want in bf16 are rounded before they travel, unless someone wants them as they are. */
START_TEST(test_rows_travel_rounded) {
    for (int whole = 0; whole < 2; whole++) {
        char text[8192];
        snprintf(text, sizeof text, "%s%s%s",
                 ROUTED "  %e = param {name = \"e.*\", init = \"ones\", decay = 1, stacked = 1} : "
                        "bf16[2, 32, 64]\n"
                        "  %xu = a2a_dispatch %x, %idx, %inv {group = \"ep\"} : f32[r<=16 @%recv, "
                        "64]\n"
                        "  %xr = dispatch %xu, %src, %inv : f32[r<=32 @%seg, 64]\n"
                        "  %xh = convert %xr {to = \"bf16\"} : bf16[r<=32 @%seg, 64]\n"
                        "  %y = matmul %xh, %e {tb = 1, grouped = 1} : f32[r<=32 @%seg, 32]\n",
                 whole ? "  output %xu {name = \"xu\"}\n" : "", "  output %y {name = \"y\"}\n}\n");
        MoeModule *m = fuse_text(text);
        int n = 0;
        for (size_t i = 0; i < m->graphs[0]->n_ops; i++) {
            const MoeOp *op = m->graphs[0]->ops[i];
            if (op->opcode != MOE_OP_A2A_DISPATCH)
                continue;
            n++;
            ck_assert_int_eq(op->results[0]->type.dtype, whole ? MOE_F32 : MOE_BF16);
        }
        ck_assert_int_eq(n, 1);
        moe_module_destroy(m);
    }
}
END_TEST

/* Exchanges that are started: all waits for one are one step, and readers stay behind it. */
START_TEST(test_waits_for_one_exchange_are_one_step) {
    MoeModule *m = fuse_text(TOKENS SLICE("q") SLICE("k") GATHER("sq", "q", "0") GATHER(
        "sk", "k", "0") "  %e = exp %x : f32[r<=8 @%tok, 16]\n"
                        "  %wq = wait %sq {layer = 0} : f32[16, 16]\n" MATMUL(
                            "y", "e", "wq",
                            "0") "  %wk = wait %sk {layer = 0} : f32[16, 16]\n" MATMUL("z", "y",
                                                                                       "wk", "0")
                                 OUTPUT("z") "}\n");
    ck_assert_int_eq(group_of(m, "sq"), group_of(m, "sk"));
    ck_assert_int_eq(group_of(m, "wq"), group_of(m, "wk"));
    ck_assert_int_gt(group_of(m, "wq"), group_of(m, "e"));
    ck_assert_int_lt(group_of(m, "wq"), group_of(m, "y"));
    moe_module_destroy(m);
}
END_TEST

/* One that is waited for at once, in its own step, and one that is started never share an exchange. */
START_TEST(test_started_and_not_are_apart) {
    MoeModule *m = fuse_text(
        TOKENS SLICE("q") SLICE("k") GATHER("sq", "q", "0") GATHER("wk", "k", "0")
            MATMUL("y", "x", "wk", "0") "  %wq = wait %sq {layer = 0} : f32[16, 16]\n" MATMUL(
                "z", "y", "wq", "0") OUTPUT("z") "}\n");
    ck_assert_int_ne(group_of(m, "sq"), group_of(m, "wk"));
    moe_module_destroy(m);
}
END_TEST

int main(void) {
    Suite *s = suite_create("fuse_comm");
    TCase *c = tcase_create("fuse_comm");
    tcase_add_test(c, test_gathers_of_one_layer_are_one_exchange);
    tcase_add_test(c, test_a_converted_slice_moves_with_its_gather);
    tcase_add_test(c, test_large_gathers_stay_where_they_are_needed);
    tcase_add_test(c, test_reductions_of_one_layer_are_one_exchange);
    tcase_add_test(c, test_reductions_do_not_cross_layers);
    tcase_add_test(c, test_a_reduction_is_not_moved_past_its_reader);
    tcase_add_test(c, test_small_sums_meet_at_the_end);
    tcase_add_test(c, test_a_sum_that_large_ops_read_does_not_wait);
    tcase_add_test(c, test_the_norm_runs_in_rounds);
    tcase_add_test(c, test_rows_and_weights_are_one_exchange);
    tcase_add_test(c, test_rows_travel_rounded);
    tcase_add_test(c, test_waits_for_one_exchange_are_one_step);
    tcase_add_test(c, test_started_and_not_are_apart);
    suite_add_tcase(s, c);
    return moe_check_main(s);
}
