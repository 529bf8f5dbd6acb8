/* Graphs in memory: builders, attributes, cloning, rewriting, and what the verifier says about
 * broken ones. */
#include <check.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "ir/infer.h"
#include "ir/text.h"
#include "ir/verify.h"
#include "tests/support/check_main.h"

static MoeModule *m;
static MoeGraph *g;
static MoeValue *tok, *x, *w,
    *ids; /* segs<1,8>, f32[r<=64 @tok, 8], f32[4, 8], i32[r<=64 @tok, 2] */

static void setup(void) {
    m = moe_module_create();
    g = moe_module_add_graph(m, "train");
    tok = moe_build_input(g, "tok", moe_type_segs(1, 8));
    x = moe_build_input(g, "x", moe_type_2d(MOE_F32, moe_dim_ragged(64, tok), 8));
    w = moe_build_input(g, "w", moe_type_2d(MOE_F32, moe_dim(4), 8));
    ids = moe_build_input(g, "ids", moe_type_2d(MOE_I32, moe_dim_ragged(64, tok), 2));
}

static void teardown(void) {
    moe_module_destroy(m);
}

static MoeOp *route(MoeValue *of) {
    return moe_op_build(g, MOE_OP_ROUTE_PLAN, &of, 1, moe_ai("experts", 4), MOE_END);
}

static MoeValue *linear(MoeValue *a, MoeValue *b) {
    return moe_build(g, MOE_OP_MATMUL, (MoeValue *[]){a, b}, 2, moe_ai("grouped", 0),
                     moe_ai("tb", 1), MOE_END);
}

static void expect_text(const char *want) {
    MoeStr out = {0};
    moe_print_graph(g, &out);
    ck_assert_str_eq(moe_str_c(&out), want);
    moe_str_free(&out);
}

static void expect_sound(void) {
    MoeDiag d = {.file = "t"};
    ck_assert_msg(moe_verify(m, &d), "%s", moe_str_c(&d.text));
    moe_diag_free(&d);
}

/* The verifier refuses the module and says so. */
static void expect_broken(const char *said) {
    MoeDiag d = {.file = "t"};
    ck_assert_msg(!moe_verify(m, &d), "accepted; expected: %s", said);
    ck_assert_msg(strstr(moe_str_c(&d.text), said), "said %s", moe_str_c(&d.text));
    moe_diag_free(&d);
}

START_TEST(test_builders) {
    g->layer = 2;
    MoeValue *y = linear(x, w); // (T, 4)
    g->layer = -1;
    MoeValue *half = moe_build_convert(g, y, MOE_BF16);
    ck_assert_ptr_eq(moe_build_convert(g, half, MOE_BF16), half);
    g->phase = MOE_PHASE_BACKWARD;
    MoeValue *one = moe_build_const(g, 1);
    moe_build_output(g, "y", moe_build2(g, MOE_OP_ADD, y, one));
    expect_text("graph @train {\n"
                "  %tok = input {name = \"tok\"} : segs<1,8>\n"
                "  %x = input {name = \"x\"} : f32[r<=64 @%tok, 8]\n"
                "  %w = input {name = \"w\"} : f32[4, 8]\n"
                "  %ids = input {name = \"ids\"} : i32[r<=64 @%tok, 2]\n"
                "  %0 = matmul %x, %w {tb = 1, grouped = 0, layer = 2} : f32[r<=64 @%tok, 4]\n"
                "  %1 = convert %0 {to = \"bf16\"} : bf16[r<=64 @%tok, 4]\n"
                "backward:\n"
                "  %2 = const {value = 1.0} : f32[1]\n"
                "  %3 = add %0, %2 : f32[r<=64 @%tok, 4]\n"
                "  output %3 {name = \"y\"}\n"
                "}\n");
    expect_sound();
    ck_assert_int_eq(moe_attr(y->def, "tb")->type, 'b');
    ck_assert_ptr_eq(moe_graph_find_input(g, "w"), w);
    ck_assert_ptr_null(moe_graph_find_input(g, "y"));
    ck_assert_ptr_eq(moe_graph_find_output(g, "y")->def->operands[0], y);
    ck_assert_ptr_eq(moe_module_find(m, "train"), g);
    ck_assert_ptr_null(moe_module_find(m, "eval"));
}
END_TEST

START_TEST(test_input_names) {
    MoeValue *again = moe_build_input(g, "odd name", moe_type_1d(MOE_F32, 1));
    ck_assert_ptr_null(again->name); /* the text form cannot spell it */
    MoeValue *number = moe_build_input(g, "7", moe_type_1d(MOE_F32, 1));
    ck_assert_ptr_null(number->name);
    g->ops[2]->results[0]->name = "taken";
    MoeValue *taken = moe_build_input(g, "taken", moe_type_1d(MOE_F32, 1));
    ck_assert_ptr_null(taken->name);
    expect_sound();
}
END_TEST

START_TEST(test_failed_infer_is_returned) {
    const char *err = NULL;
    int n_values = g->n_values;
    size_t n_ops = g->n_ops;
    ck_assert_ptr_null(moe_op_build_v(g, MOE_OP_ADD, (MoeValue *[]){x, w}, 2, NULL, 0, NULL, &err));
    ck_assert_msg(err && strstr(err, "cannot broadcast"), "%s", err ? err : "no message");
    ck_assert_uint_eq(g->n_ops, n_ops);
    ck_assert_int_eq(g->n_values, n_values);
    ck_assert_ptr_nonnull(
        moe_op_build_v(g, MOE_OP_ADD, (MoeValue *[]){x, x}, 2, NULL, 0, NULL, &err));
    ck_assert_ptr_null(err);
}
END_TEST

START_TEST(test_wrong_build_aborts) {
    moe_build2(g, MOE_OP_ADD, x, w);
}
END_TEST

START_TEST(test_set_attr) {
    MoeOp *op = linear(x, w)->def;
    moe_attr_set_i(g, op, "layer", 1);
    moe_attr_set_i(g, op, "tb", 1);
    moe_attr_set_i(g, op, "layer", 5);
    ck_assert_int_eq(op->n_attrs, 3);
    ck_assert_int_eq(moe_attr_i(op, "layer"), 5);
    ck_assert_int_eq(moe_attr_i_or(op, "layer", 9), 5);
    ck_assert_int_eq(moe_attr_i_or(op, "nothing", 9), 9);
    expect_sound();
}
END_TEST

/* A cloned route_plan makes a segs value of its own. */
START_TEST(test_clone) {
    MoeOp *plan = route(ids);
    plan->results[0]->name = "seg";
    g->phase = MOE_PHASE_BACKWARD;
    MoeOp *copy = moe_op_clone(g, plan, plan->operands);
    ck_assert_int_eq(copy->phase, MOE_PHASE_BACKWARD);
    ck_assert_ptr_null(copy->results[0]->name);
    ck_assert_ptr_eq(copy->results[1]->type.dims[0].seg, copy->results[0]);
    ck_assert_int_eq(moe_attr_i(copy, "experts"), 4);
    MoeValue *c = moe_build_const(g, 0.5);
    ck_assert_double_eq(moe_attr_f(moe_op_clone(g, c->def, NULL), "value"), 0.5);
    MoeOp *input = moe_op_clone(g, x->def, NULL);
    ck_assert(moe_type_equal(&input->results[0]->type, &x->type));
    g->n_ops--; /* two inputs of one name would be refused */
    moe_graph_renumber(g);
    expect_sound();
}
END_TEST

START_TEST(test_replace_renames_segs) {
    MoeOp *plan = route(ids), *other = route(ids);
    MoeValue *rows = moe_build(g, MOE_OP_DISPATCH,
                               (MoeValue *[]){x, plan->results[1], plan->results[2]}, 3, MOE_END);
    MoeValue **map = calloc((size_t)g->n_values, sizeof *map);
    for (int i = 0; i < 3; i++)
        map[plan->results[i]->id] = other->results[i];
    /* plan's own results keep types that name each other until dce drops them */
    moe_graph_replace(g, map);
    free(map);
    ck_assert_ptr_eq(rows->type.dims[0].seg, other->results[0]);
    ck_assert_ptr_eq(rows->def->operands[1], other->results[1]);
    moe_build_output(g, "rows", rows);
    ck_assert_uint_eq(moe_graph_dce(g), 1);
    moe_graph_renumber(g);
    expect_sound();
}
END_TEST

START_TEST(test_replace_follows_chains) {
    MoeValue *a = moe_build1(g, MOE_OP_NEG, x), *b = moe_build1(g, MOE_OP_EXP, x);
    MoeValue *c = moe_build1(g, MOE_OP_SIGMOID, a);
    MoeValue **map = calloc((size_t)g->n_values, sizeof *map);
    map[a->id] = b;
    map[b->id] = x;
    moe_graph_replace(g, map);
    free(map);
    ck_assert_ptr_eq(c->def->operands[0], x);
}
END_TEST

/* dce keeps the maker of a segs value that only types name. */
START_TEST(test_dce) {
    MoeOp *plan = route(ids);
    MoeValue *seg_rows =
        moe_build(g, MOE_OP_BROADCAST, (MoeValue *[]){moe_build_const(g, 1), plan->results[0]}, 2,
                  moe_ai("rows", 128), moe_ai("cols", 3), MOE_END);
    MoeValue *y = moe_build1(g, MOE_OP_NEG, seg_rows);
    moe_build1(g, MOE_OP_EXP, y); /* dead */
    MoeValue *dead = moe_build1(g, MOE_OP_EXP, x);
    moe_build1(g, MOE_OP_LOG, dead); /* dead with its operand */
    moe_build_output(g, "y", y);
    size_t before = g->n_ops;
    ck_assert_uint_eq(moe_graph_dce(g), 3);
    ck_assert_uint_eq(g->n_ops, before - 3);
    ck_assert_uint_eq(moe_graph_dce(g), 0);
    /* Only a type names %seg: y's rows. */
    seg_rows->def->operands[1] = NULL;
    seg_rows->def->n_operands = 1;
    ck_assert_uint_eq(moe_graph_dce(g), 0);
    moe_graph_renumber(g);
    for (size_t i = 0, id = 0; i < g->n_ops; i++) {
        for (int r = 0; r < g->ops[i]->n_results; r++)
            ck_assert_int_eq(g->ops[i]->results[r]->id, (int)id++);
    }
}
END_TEST

START_TEST(test_sort_phases_is_stable) {
    static const MoePhase phases[] = {MOE_PHASE_UPDATE, MOE_PHASE_FORWARD,  MOE_PHASE_REDUCE,
                                      MOE_PHASE_UPDATE, MOE_PHASE_BACKWARD, MOE_PHASE_FORWARD};
    static const int want[] = {1, 5, 4, 2, 0, 3};
    MoeValue *made[6];
    for (int i = 0; i < 6; i++) {
        g->phase = phases[i];
        made[i] = moe_build1(g, MOE_OP_NEG, x);
    }
    expect_broken("an op of phase forward after one of phase update");
    moe_graph_sort_phases(g);
    for (int i = 0; i < 6; i++)
        ck_assert_ptr_eq(g->ops[4 + i]->results[0], made[want[i]]);
    expect_sound();
}
END_TEST

START_TEST(test_take_and_append) {
    MoeValue *a = moe_build1(g, MOE_OP_NEG, x);
    size_t n;
    MoeOp **ops = moe_graph_take_ops(g, &n);
    ck_assert_uint_eq(n, 5);
    ck_assert_uint_eq(g->n_ops, 0);
    for (size_t i = 0; i < n; i++)
        moe_graph_append(g, ops[i]);
    MoeArena *scratch = moe_arena_create();
    int *uses = moe_graph_count_uses(g, scratch);
    ck_assert_int_eq(uses[x->id], 1);
    ck_assert_int_eq(uses[tok->id], 0); /* types do not count */
    ck_assert_int_eq(uses[a->id], 0);
    moe_arena_destroy(scratch);
    expect_sound();
}
END_TEST

/* ---- the verifier on graphs that no text can spell ---- */

START_TEST(test_verify_use_before_definition) {
    MoeValue *a = moe_build1(g, MOE_OP_NEG, x), *b = moe_build1(g, MOE_OP_NEG, a);
    MoeOp *swap = g->ops[4];
    g->ops[4] = g->ops[5];
    g->ops[5] = swap;
    expect_broken("operand 0 is not defined by an earlier op");
    (void)b;
}
END_TEST

START_TEST(test_verify_wrong_type) {
    MoeValue *a = moe_build1(g, MOE_OP_NEG, x);
    a->type.dims[1].size = 9;
    expect_broken("the type of result 0 should be f32[r<=64 @%tok, 8]");
    ck_assert_int_eq(a->type.dims[1].size, 9); /* it only looks */
}
END_TEST

START_TEST(test_verify_foreign_value) {
    MoeGraph *other = moe_module_add_graph(m, "eval");
    MoeValue *far = moe_build_input(other, "x", moe_type_1d(MOE_F32, 1));
    moe_build1(g, MOE_OP_NEG, x)->def->operands[0] = far;
    expect_broken("operand 0 is not defined by an earlier op");
}
END_TEST

START_TEST(test_verify_foreign_seg) {
    MoeGraph *other = moe_module_add_graph(m, "eval");
    MoeValue *far = moe_build_input(other, "tok", moe_type_segs(1, 8));
    x->type.dims[0].seg = far;
    expect_broken("the segs value of result 0 is not defined above");
}
END_TEST

START_TEST(test_verify_names) {
    MoeValue *a = moe_build1(g, MOE_OP_NEG, x);
    a->name = "12";
    expect_broken("'12' cannot be the name of a value");
    a->name = "x";
    expect_broken("two values are named %x");
    a->name = NULL;
    expect_sound();
    moe_module_add_graph(m, "train");
    expect_broken("two graphs are named @train");
}
END_TEST

START_TEST(test_verify_twice_in_the_list) {
    moe_graph_append(g, moe_build1(g, MOE_OP_NEG, x)->def);
    expect_broken("out of range or taken");
}
END_TEST

START_TEST(test_verify_attrs_and_arity) {
    MoeOp *op = linear(x, w)->def;
    op->n_attrs = 1;
    expect_broken("needs the attribute grouped");
    op->n_attrs = 2;
    op->n_operands = 1;
    expect_broken("takes 2 operands, not 1");
}
END_TEST

START_TEST(test_verify_groups) {
    MoeValue *a = moe_build1(g, MOE_OP_NEG, x), *b = moe_build1(g, MOE_OP_NEG, a),
             *c = moe_build1(g, MOE_OP_NEG, b);
    a->def->group = c->def->group = 3;
    expect_broken("kernel group 3 are not consecutive");
    b->def->group = 3;
    expect_sound();
}
END_TEST

START_TEST(test_verify_after_names_the_pass) {
    ck_assert_ptr_null(moe_verify_after(m, "fuse"));
    x->type.dims[0].seg = w;
    MoeStatus st = moe_verify_after(m, "fuse");
    ck_assert_int_eq(moe_status_code(st), MOE_E_INTERNAL);
    ck_assert_msg(strstr(moe_status_message(st), "fuse") &&
                      strstr(moe_status_message(st), "%x = input"),
                  "%s", moe_status_message(st));
    moe_status_free(st);
}
END_TEST

/* ---- types and the tables ---- */

START_TEST(test_types) {
    MoeType t = moe_type_3d(MOE_BF16, 2, 3, 5), s = moe_type_segs(8, 4);
    ck_assert_int_eq(moe_type_elements(&t), 30);
    ck_assert_int_eq(moe_type_bytes(&t), 60);
    ck_assert_int_eq(moe_type_cols(&t), 5);
    ck_assert_int_eq(moe_type_elements(&s), 33);
    ck_assert_int_eq(moe_type_bytes(&s), 132);
    MoeType u = t;
    u.dtype = MOE_F32;
    ck_assert(moe_type_same_shape(&t, &u) && !moe_type_equal(&t, &u));
    ck_assert(!moe_type_same_shape(&t, &s));
    MoeType row = x->type;
    row.dims[0].seg = NULL;
    ck_assert(!moe_type_same_shape(&x->type, &row));
    MoeDtype d;
    for (int i = 0; i < MOE_N_DTYPES; i++) {
        ck_assert(moe_dtype_from_name(moe_dtype_name((MoeDtype)i), &d));
        ck_assert_int_eq((int)d, i);
    }
    ck_assert(!moe_dtype_from_name("f64", &d));
    ck_assert(moe_dtype_is_float(MOE_BF16) && !moe_dtype_is_float(MOE_I32));
}
END_TEST

/* Dims as an attribute's text, both ways; what the parser of it refuses is in tests/golden/errors/ranks.txt. */
START_TEST(test_dims_text) {
    static const char *const texts[] = {"0", "7", "8,1024,512", "1,2,3,4", "281474976710656"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        MoeType t = {0};
        MoeStr back = {0};
        const char *problem = moe_dims_from_text(texts[i], &t);
        ck_assert_msg(!problem, "%s: %s", texts[i], problem);
        moe_dims_to_text(&t, &back);
        ck_assert_str_eq(moe_str_c(&back), texts[i]);
        moe_str_free(&back);
    }
    static const char *const wrong[] = {"",
                                        ",",
                                        "1,",
                                        "1,,2",
                                        " 1",
                                        "-1",
                                        "1, 2",
                                        "1,2,3,4,5",
                                        "281474976710657",
                                        "1x",
                                        "+1",
                                        "0x10",
                                        "99999999999999999999999",
                                        "281474976710656,2"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        MoeType t = {0};
        ck_assert_msg(moe_dims_from_text(wrong[i], &t) != NULL, "'%s' was taken", wrong[i]);
    }
}
END_TEST

static void expect_rows(const MoeValue *v, int64_t elements) {
    ck_assert_int_eq(moe_value_expected_elements(v), elements);
    ck_assert_int_eq(moe_value_expected_bytes(v), elements * moe_dtype_bytes(v->type.dtype));
}

/* Plans say how many rows to count on; everything else has its capacity. */
START_TEST(test_expected_rows) {
    MoeValue *place = moe_build_input(g, "place", moe_type_1d(MOE_I32, 8));
    MoeValue *rank = moe_build_input(g, "ep_rank", moe_type_1d(MOE_I32, 1));
    MoeOp *home = route(ids);
    MoeOp *send =
        moe_op_build(g, MOE_OP_SEND_PLAN, (MoeValue *[]){ids, place}, 2, moe_ai("slots", 4),
                     moe_ai("ranks", 2), moe_ai("chunks", 1), moe_ai("expect", 96), MOE_END);
    MoeOp *plan = moe_op_build(g, MOE_OP_EXPERT_PLAN, (MoeValue *[]){ids, place, rank}, 3,
                               moe_ai("slots", 4), moe_ai("chunks", 1), moe_ai("expect_recv", 48),
                               moe_ai("expect_rows", 64), MOE_END);
    MoeValue *u =
        moe_build(g, MOE_OP_A2A_DISPATCH, (MoeValue *[]){x, send->results[1], plan->results[3]}, 3,
                  moe_as("group", "ep"), MOE_END);
    MoeValue *rows = moe_build(g, MOE_OP_DISPATCH,
                               (MoeValue *[]){u, plan->results[2], plan->results[3]}, 3, MOE_END);
    expect_sound();
    expect_rows(x, 64 * 8);
    expect_rows(home->results[0], 4 * 8 + 1);
    expect_rows(home->results[1], 64 * 2);
    expect_rows(send->results[0], 3);
    expect_rows(send->results[1], 96);
    expect_rows(plan->results[2], 64);
    expect_rows(plan->results[3], 48 * 2);
    expect_rows(u, 48 * 8);
    expect_rows(rows, 64 * 8);
    ck_assert_int_eq(moe_type_elements(&rows->type), 128 * 8);
    /* a value of less room than that */
    ck_assert_int_eq(moe_segs_expected_rows(plan->results[1], 10), 10);
}
END_TEST

START_TEST(test_op_table) {
    for (int i = 0; i < MOE_N_OPS; i++) {
        const MoeOpInfo *info = moe_op_info((MoeOpcode)i);
        MoeOpcode back;
        ck_assert(moe_op_from_name(info->name, &back));
        ck_assert_int_eq((int)back, i);
        MoeAttrDecl decls[MOE_MAX_ATTRS];
        int n = moe_op_attr_decls((MoeOpcode)i, decls);
        ck_assert_str_eq(decls[n - 1].key, "layer");
        ck_assert_msg(info->doc[0] && strcmp(moe_kind_name(info->kind), ""), "%s", info->name);
    }
    MoeOpcode op;
    ck_assert(!moe_op_from_name("ADD", &op));
    bool optional;
    ck_assert_int_eq(moe_op_attr_type(MOE_OP_PARAM, "std", &optional), 'f');
    ck_assert(optional);
    ck_assert_int_eq(moe_op_attr_type(MOE_OP_PARAM, "decay", &optional), 'b');
    ck_assert(!optional);
    ck_assert_int_eq(moe_op_attr_type(MOE_OP_ADD, "std", &optional), 0);
}
END_TEST

int main(void) {
    Suite *s = suite_create("ir_graph");
    TCase *tc = tcase_create("graph");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_builders);
    tcase_add_test(tc, test_input_names);
    tcase_add_test(tc, test_failed_infer_is_returned);
    /* Runs in a process of its own (Check forks unless CK_FORK=no). */
    tcase_add_test_raise_signal(tc, test_wrong_build_aborts, SIGABRT);
    tcase_add_test(tc, test_set_attr);
    tcase_add_test(tc, test_clone);
    tcase_add_test(tc, test_replace_renames_segs);
    tcase_add_test(tc, test_replace_follows_chains);
    tcase_add_test(tc, test_dce);
    tcase_add_test(tc, test_sort_phases_is_stable);
    tcase_add_test(tc, test_take_and_append);
    tcase_add_test(tc, test_verify_use_before_definition);
    tcase_add_test(tc, test_verify_wrong_type);
    tcase_add_test(tc, test_verify_foreign_value);
    tcase_add_test(tc, test_verify_foreign_seg);
    tcase_add_test(tc, test_verify_names);
    tcase_add_test(tc, test_verify_twice_in_the_list);
    tcase_add_test(tc, test_verify_attrs_and_arity);
    tcase_add_test(tc, test_verify_groups);
    tcase_add_test(tc, test_verify_after_names_the_pass);
    tcase_add_test(tc, test_types);
    tcase_add_test(tc, test_dims_text);
    tcase_add_test(tc, test_expected_rows);
    tcase_add_test(tc, test_op_table);
    suite_add_tcase(s, tc);
    return moe_check_main(s);
}
