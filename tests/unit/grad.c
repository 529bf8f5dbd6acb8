/* Gradients of graphs against central differences in f64, with random cotangents: every rule of
 * ops.def, then a whole small Mixtral through the grad pass, its norm, clipping and AdamW update,
 * phases, and what must be refused. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/rng.h"
#include "frontends/frontend.h"
#include "ir/verify.h"
#include "passes/eval_each.h"
#include "passes/grad.h"
#include "passes/pass.h"
#include "tests/support/check_main.h"

enum { T = 12, SEQ = 3, SHARDS = 4, C = 8, E = 3, K = 2, SEED = 7 };

/* A graph under test: rows ragged over %tok; floats made by in() are differentiated; the sum of the
 * results given to result(), each times a random input, is the loss. */
typedef struct {
    MoeModule *m;
    MoeGraph *g;
    MoeValue *tok, *loss, *wrt[16], *results[16];
    int n_wrt, n_results, n_inputs;
} Case;

static MoeDim rows(const Case *c) {
    return moe_dim_ragged(T, c->tok);
}
static MoeType type_rows(const Case *c, int64_t cols) {
    return moe_type_2d(MOE_F32, rows(c), cols);
}

static Case case_begin(void) {
    Case c = {.m = moe_module_create()};
    c.g = moe_module_add_graph(c.m, "train");
    c.tok = moe_build_input(c.g, "tok", moe_type_segs(1, SHARDS));
    return c;
}

static MoeValue *input(Case *c, MoeType type) {
    char name[32];
    snprintf(name, sizeof name, "in%d", c->n_inputs++);
    return moe_build_input(c->g, name, type);
}

static MoeValue *in(Case *c, MoeType type) {
    return c->wrt[c->n_wrt++] = input(c, type);
}
static MoeValue *in_rows(Case *c, int64_t cols) {
    return in(c, type_rows(c, cols));
}
static MoeValue *in_1d(Case *c, int64_t n) {
    return in(c, moe_type_1d(MOE_F32, n));
}
static MoeValue *ids_rows(Case *c, int64_t cols) {
    return input(c, moe_type_2d(MOE_I32, rows(c), cols));
}
static MoeValue *ids_1d(Case *c) {
    MoeType t = moe_type_1d(MOE_I32, T);
    t.dims[0] = rows(c);
    return input(c, t);
}
static void result(Case *c, MoeValue *v) {
    c->results[c->n_results++] = v;
}

static MoeValue *one(Case *c, MoeOpcode op, MoeValue *a) {
    return moe_build1(c->g, op, a);
}
static MoeValue *two(Case *c, MoeOpcode op, MoeValue *a, MoeValue *b) {
    return moe_build2(c->g, op, a, b);
}
/* x^2 + 1: positive, away from zero. */
static MoeValue *positive(Case *c, MoeValue *x) {
    return two(c, MOE_OP_ADD, two(c, MOE_OP_MUL, x, x), moe_build_const(c->g, 1.0));
}

/* The sum of all entries, (1). */
static MoeValue *total(Case *c, MoeValue *v) {
    if (v->type.rank == 2)
        v = one(c, MOE_OP_COL_SUM, moe_type_cols(&v->type) == 1 ? v : one(c, MOE_OP_ROW_SUM, v));
    else if (moe_type_cols(&v->type) != 1)
        v = one(c, MOE_OP_ROW_SUM, v);
    return v;
}

static void case_loss(Case *c) {
    for (int i = 0; i < c->n_results; i++) {
        MoeValue *y = c->results[i];
        MoeValue *part = total(c, two(c, MOE_OP_MUL, y, input(c, y->type)));
        c->loss = c->loss ? two(c, MOE_OP_ADD, c->loss, part) : part;
    }
}

/* ---- one builder a rule ---- */

static void ew2(Case *c, MoeOpcode op) {
    MoeValue *a = in_rows(c, C);
    MoeValue *others[] = {in_rows(c, C), in_1d(c, C), in_rows(c, 1), in_1d(c, 1)};
    for (int i = 0; i < 4; i++) {
        result(c, two(c, op, a, positive(c, others[i])));
        result(c, two(c, op, others[i], positive(c, a))); /* broadcast on the left */
    }
    result(c, two(c, op, in_1d(c, C), positive(c, in_1d(c, 1)))); /* (C) and (1) */
    result(c, two(c, op, positive(c, a), positive(c, a)));
}
static void b_add(Case *c) {
    ew2(c, MOE_OP_ADD);
}
static void b_sub(Case *c) {
    ew2(c, MOE_OP_SUB);
}
static void b_mul(Case *c) {
    MoeValue *x = in_rows(c, C);
    ew2(c, MOE_OP_MUL);
    result(c, two(c, MOE_OP_MUL, x, x));
}
static void b_div(Case *c) {
    ew2(c, MOE_OP_DIV);
}
static void ew1(Case *c, MoeOpcode op) {
    result(c, one(c, op, positive(c, in_rows(c, C))));
}
static void b_neg(Case *c) {
    ew1(c, MOE_OP_NEG);
}
static void b_exp(Case *c) {
    result(c, one(c, MOE_OP_EXP, in_rows(c, C)));
}
static void b_log(Case *c) {
    ew1(c, MOE_OP_LOG);
}
static void b_rsqrt(Case *c) {
    ew1(c, MOE_OP_RSQRT);
}
static void b_sigmoid(Case *c) {
    result(c, one(c, MOE_OP_SIGMOID, in_rows(c, C)));
}
static void b_silu(Case *c) {
    result(c, one(c, MOE_OP_SILU, in_rows(c, C)));
}
static void b_softmax(Case *c) {
    result(c, one(c, MOE_OP_SOFTMAX, in_rows(c, C)));
}

static MoeValue *broadcast(Case *c, MoeValue *x, int64_t n_rows, bool ragged) {
    MoeValue *operands[] = {x, c->tok};
    return moe_build(c->g, MOE_OP_BROADCAST, operands, ragged ? 2 : 1, moe_ai("rows", n_rows),
                     moe_ai("cols", C), MOE_END);
}
static void b_broadcast(Case *c) {
    MoeValue *scalar = in_1d(c, 1);
    result(c, broadcast(c, scalar, T, true));
    result(c, broadcast(c, in_1d(c, C), T, true));
    result(c, broadcast(c, in_rows(c, 1), T, true));
    result(c, broadcast(c, scalar, 0, false));
}
static void b_row_sum(Case *c) {
    result(c, one(c, MOE_OP_ROW_SUM, in_rows(c, C)));
    result(c, one(c, MOE_OP_ROW_SUM, in_1d(c, C)));
    result(c, one(c, MOE_OP_ROW_SUM, in_rows(c, 1)));
}
static void b_col_sum(Case *c) {
    result(c, one(c, MOE_OP_COL_SUM, in_rows(c, C)));
}
static void b_accumulate(Case *c) {
    result(c, one(c, MOE_OP_ACCUMULATE, one(c, MOE_OP_COL_SUM, in_rows(c, C))));
}
static void b_take(Case *c) {
    result(c, two(c, MOE_OP_TAKE, in_rows(c, C), ids_rows(c, K)));
}
static void b_put(Case *c) {
    MoeValue *operands[] = {in_rows(c, K), ids_rows(c, K)};
    result(c, moe_build(c->g, MOE_OP_PUT, operands, 2, moe_ai("cols", C), MOE_END));
}

static MoeOp *route(Case *c) {
    MoeValue *ids = ids_rows(c, K);
    return moe_op_build(c->g, MOE_OP_ROUTE_PLAN, &ids, 1, moe_ai("experts", E), MOE_END);
}
static MoeValue *move(Case *c, MoeOpcode op, MoeValue *x, const MoeOp *plan) {
    MoeValue *operands[] = {x, plan->results[1], plan->results[2]};
    return moe_build(c->g, op, operands, 3, MOE_END);
}
static MoeValue *matmul(Case *c, MoeValue *a, MoeValue *b, int tb, int grouped) {
    return moe_build(c->g, MOE_OP_MATMUL, (MoeValue *[]){a, b}, 2, moe_ai("tb", tb),
                     moe_ai("grouped", grouped), MOE_END);
}
static void b_matmul(Case *c) {
    MoeValue *a = in_rows(c, C);
    result(c, matmul(c, a, in(c, moe_type_2d(MOE_F32, moe_dim(5), C)), 1, 0));
    result(c, matmul(c, a, in(c, moe_type_2d(MOE_F32, moe_dim(C), 5)), 0, 0));
    MoeValue *x = move(c, MOE_OP_DISPATCH, a, route(c));
    result(c, matmul(c, x, in(c, moe_type_3d(MOE_F32, E, 5, C)), 1, 1));
    result(c, matmul(c, x, in(c, moe_type_3d(MOE_F32, E, C, 5)), 0, 1));
}
static void b_dispatch(Case *c) {
    result(c, move(c, MOE_OP_DISPATCH, in_rows(c, C), route(c)));
}
static void b_gather_sum(Case *c) {
    MoeOp *plan = route(c);
    MoeValue *y = move(c, MOE_OP_DISPATCH, in_rows(c, C), plan);
    result(c, move(c, MOE_OP_GATHER_SUM, two(c, MOE_OP_MUL, y, y), plan));
}
static void b_dispatch_weight(Case *c) {
    result(c, move(c, MOE_OP_DISPATCH_WEIGHT, in_rows(c, K), route(c)));
}
static void b_collect_weight(Case *c) {
    MoeOp *plan = route(c);
    MoeValue *s = move(c, MOE_OP_DISPATCH_WEIGHT, in_rows(c, K), plan);
    result(c, move(c, MOE_OP_COLLECT_WEIGHT, two(c, MOE_OP_MUL, s, s), plan));
}
static void b_embedding(Case *c) {
    result(c, two(c, MOE_OP_EMBEDDING, in(c, moe_type_2d(MOE_F32, moe_dim(11), C)), ids_1d(c)));
}
static void b_rope(Case *c) {
    for (int inverse = 0; inverse < 2; inverse++) {
        MoeValue *x = in_rows(c, 8);
        result(c, moe_build(c->g, MOE_OP_ROPE, &x, 1, moe_ai("heads", 2), moe_ai("head_dim", 4),
                            moe_af("theta", 100.0), moe_ai("seq", SEQ), moe_ai("inverse", inverse),
                            MOE_END));
    }
}
static MoeOp *attention(Case *c, int window) {
    MoeValue *operands[] = {in_rows(c, 16), in_rows(c, 8), in_rows(c, 8)};
    return moe_op_build(c->g, MOE_OP_ATTENTION, operands, 3, moe_ai("heads", 4),
                        moe_ai("kv_heads", 2), moe_ai("head_dim", 4), moe_ai("seq", SEQ),
                        moe_ai("window", window), moe_af("scale", 0.5), MOE_END);
}
static void b_attention(Case *c) {
    result(c, attention(c, 0)->results[0]);
    result(c, attention(c, 2)->results[0]);
}
static void b_xent(Case *c) {
    MoeValue *operands[] = {in_rows(c, C), in(c, moe_type_2d(MOE_F32, moe_dim(9), C)), ids_1d(c)};
    result(c, moe_build(c->g, MOE_OP_LINEAR_CROSS_ENTROPY, operands, 3, MOE_END));
}
static void b_rmsnorm(Case *c) {
    MoeValue *operands[] = {in_rows(c, C), in_1d(c, C)};
    result(c, moe_build(c->g, MOE_OP_RMSNORM, operands, 2, moe_af("eps", 1e-5), MOE_END));
}

static const struct {
    const char *rule; /* the name in the grad column, or the op for `decompose` */
    void (*build)(Case *c);
} cases[] = {{"add", b_add},
             {"sub", b_sub},
             {"mul", b_mul},
             {"div", b_div},
             {"neg", b_neg},
             {"exp", b_exp},
             {"log", b_log},
             {"rsqrt", b_rsqrt},
             {"sigmoid", b_sigmoid},
             {"broadcast", b_broadcast},
             {"row_sum", b_row_sum},
             {"col_sum", b_col_sum},
             {"accumulate", b_accumulate},
             {"take", b_take},
             {"put", b_put},
             {"matmul", b_matmul},
             {"dispatch", b_dispatch},
             {"gather_sum", b_gather_sum},
             {"dispatch_weight", b_dispatch_weight},
             {"collect_weight", b_collect_weight},
             {"embedding", b_embedding},
             {"rope", b_rope},
             {"attention", b_attention},
             {"linear_cross_entropy", b_xent},
             {"softmax", b_softmax},
             {"silu", b_silu},
             {"rmsnorm", b_rmsnorm}};
enum { N_CASES = sizeof cases / sizeof cases[0] };

/* ---- differences ---- */

static void ok(MoeStatus st) {
    ck_assert_msg(!st, "%s", moe_status_message(st));
}

static double value_of(MoeEval *ev, const MoeValue *v) {
    ok(moe_eval_run(ev));
    return moe_eval_get(ev, v)->f[0];
}

static double *copy_of(const MoeEval *ev, const MoeValue *v, int64_t *n) {
    const MoeTensor *t = moe_eval_get(ev, v);
    double *x = malloc(sizeof *x * (size_t)(t->n + 1));
    memcpy(x, t->f, sizeof *x * (size_t)t->n);
    *n = t->n;
    return x;
}

/* Every `stride`-th entry of grad against (loss(x + h) - loss(x - h)) / 2h. ev has run on g, which
 * has both. */
static void check_differences(MoeEval *ev, const MoeValue *x, const MoeValue *grad,
                              const MoeValue *loss, int64_t stride, const char *what) {
    const double h = 1e-5;
    int64_t n, n_grad;
    ok(moe_eval_run(ev));
    double *at = copy_of(ev, x, &n), *d = copy_of(ev, grad, &n_grad), top = 0;
    ck_assert_int_eq(n, n_grad);
    for (int64_t i = 0; i < n; i++)
        top = fmax(top, fabs(d[i]));
    ck_assert_msg(top > 1e-9, "%s: the gradient is zero, the check is vacuous", what);
    for (int64_t i = 0; i < n; i += stride) {
        double old = at[i];
        at[i] = old + h;
        ok(moe_eval_set_f(ev, x, at, n));
        double up = value_of(ev, loss);
        at[i] = old - h;
        ok(moe_eval_set_f(ev, x, at, n));
        double down = value_of(ev, loss);
        at[i] = old;
        double numeric = (up - down) / (2 * h);
        ck_assert_msg(fabs(numeric - d[i]) <= 1e-6 * (top + 1e-3),
                      "%s: entry %lld: gradient %.12g, differences give %.12g", what, (long long)i,
                      d[i], numeric);
    }
    ok(moe_eval_set_f(ev, x, at, n));
    free(at);
    free(d);
}

static void verified(const MoeModule *m) {
    ok(moe_verify_after(m, "grad"));
}

START_TEST(test_rule) {
    Case c = case_begin();
    cases[_i].build(&c);
    case_loss(&c);
    MoeValue *grads[16];
    ok(moe_grad_graph(c.g, c.loss, c.wrt, (size_t)c.n_wrt, grads));
    verified(c.m);
    MoeEval *ev = moe_eval_create(c.g);
    ok(moe_eval_fill(ev, c.g, SEED));
    for (int i = 0; i < c.n_wrt; i++) {
        ck_assert_msg(grads[i], "%s: no gradient for operand %d", cases[_i].rule, i);
        ck_assert_msg(moe_type_equal(&grads[i]->type, &c.wrt[i]->type), "%s: gradient %d's type",
                      cases[_i].rule, i);
        check_differences(ev, c.wrt[i], grads[i], c.loss, 1, cases[_i].rule);
    }
    moe_eval_destroy(ev);
    moe_module_destroy(c.m);
}
END_TEST

START_TEST(test_every_rule_has_a_case) {
    static const struct {
        const char *op, *rule;
    } ops[] = {
#define OP(id, name, min_in, max_in, n_out, kind, attrs, infer, grad, decomp, shard, cost, doc)    \
    {#name, #grad},
#include "ir/ops.def"
#undef OP
    };
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++) {
        bool by_op = strcmp(ops[i].rule, "decompose") == 0, found = false;
        if (strcmp(ops[i].rule, "none") == 0 || strcmp(ops[i].rule, "convert") == 0)
            continue; /* convert has its own test: differences of a rounded value mean nothing */
        for (size_t k = 0; k < N_CASES; k++)
            found |= strcmp(cases[k].rule, by_op ? ops[i].op : ops[i].rule) == 0;
        ck_assert_msg(found, "op %s (gradient %s) has no case", ops[i].op, ops[i].rule);
    }
}
END_TEST

/* Through bf16 the cotangent passes unrounded; a bf16 matmul's gradients are the f32 ones but for
 * rounding. */
START_TEST(test_bf16) {
    double *grads_of[2][2];
    int64_t n[2];
    for (int bf16 = 0; bf16 < 2; bf16++) {
        Case c = case_begin();
        MoeValue *a = in_rows(&c, C), *b = in(&c, moe_type_2d(MOE_F32, moe_dim(5), C)), *grads[2];
        MoeDtype dtype = bf16 ? MOE_BF16 : MOE_F32;
        result(&c, matmul(&c, moe_build_convert(c.g, a, dtype), moe_build_convert(c.g, b, dtype), 1,
                          0));
        case_loss(&c);
        ok(moe_grad_graph(c.g, c.loss, c.wrt, 2, grads));
        verified(c.m);
        int converts = 0;
        for (size_t i = 0; i < c.g->n_ops; i++)
            converts += c.g->ops[i]->opcode == MOE_OP_CONVERT;
        ck_assert_int_eq(converts,
                         bf16 ? 3 : 0); /* a, b, and the cotangent once for both products */
        MoeEval *ev = moe_eval_create(c.g);
        ok(moe_eval_fill(ev, c.g, SEED));
        ok(moe_eval_run(ev));
        for (int i = 0; i < 2; i++) {
            ck_assert_int_eq(grads[i]->type.dtype, MOE_F32);
            grads_of[bf16][i] = copy_of(ev, grads[i], &n[i]);
        }
        moe_eval_destroy(ev);
        moe_module_destroy(c.m);
    }
    for (int i = 0; i < 2; i++) {
        double top = 0, off = 0;
        for (int64_t k = 0; k < n[i]; k++) {
            top = fmax(top, fabs(grads_of[0][i][k]));
            off = fmax(off, fabs(grads_of[0][i][k] - grads_of[1][i][k]));
        }
        ck_assert_msg(off > 0 && off < top / 64, "gradient %d is off by %g of %g", i, off, top);
        free(grads_of[0][i]);
        free(grads_of[1][i]);
    }
}
END_TEST

START_TEST(test_convert) {
    Case c = case_begin();
    MoeValue *x = in_rows(&c, C), *grad;
    result(&c, moe_build_convert(c.g, moe_build_convert(c.g, x, MOE_BF16), MOE_F32));
    case_loss(&c);
    MoeValue *cotangent = moe_graph_find_input(c.g, "in1");
    ok(moe_grad_graph(c.g, c.loss, &x, 1, &grad));
    MoeEval *ev = moe_eval_create(c.g);
    ok(moe_eval_fill(ev, c.g, SEED));
    ok(moe_eval_run(ev));
    const MoeTensor *d = moe_eval_get(ev, grad), *want = moe_eval_get(ev, cotangent);
    for (int64_t i = 0; i < d->n; i++)
        ck_assert(d->f[i] == want->f[i]);
    moe_eval_destroy(ev);
    moe_module_destroy(c.m);
}
END_TEST

/* The forward op goes, its value stays: nll from the gradient op, its users after it. */
START_TEST(test_loss_op_replaced) {
    Case c = case_begin();
    b_xent(&c);
    MoeValue *nll = c.results[0], *grads[2];
    moe_build_output(c.g, "nll", nll);
    case_loss(&c);
    ok(moe_grad_graph(c.g, c.loss, c.wrt, 2, grads));
    verified(c.m);
    for (size_t i = 0; i < c.g->n_ops; i++)
        ck_assert(c.g->ops[i]->opcode != MOE_OP_LINEAR_CROSS_ENTROPY);
    ck_assert_int_eq(nll->def->opcode, MOE_OP_LINEAR_CROSS_ENTROPY_GRAD);
    ck_assert_ptr_eq(moe_graph_find_output(c.g, "nll"), nll);
    ck_assert_int_eq(c.loss->def->phase, MOE_PHASE_BACKWARD);
    moe_module_destroy(c.m);
}
END_TEST

/* ---- what must be refused ---- */

static void refused(Case *c, const char *part) {
    MoeValue *grads[16];
    MoeStatus st = moe_grad_graph(c->g, c->loss, c->wrt, (size_t)c->n_wrt, grads);
    ck_assert_msg(st, "expected an error with \"%s\"", part);
    ck_assert_int_eq(moe_status_code(st), MOE_E_INPUT);
    ck_assert_msg(strstr(moe_status_message(st), part), "\"%s\" lacks \"%s\"",
                  moe_status_message(st), part);
    moe_status_free(st);
    moe_module_destroy(c->m);
}

START_TEST(test_refused) {
    Case c = case_begin();
    result(&c, one(&c, MOE_OP_SQRT, positive(&c, in_rows(&c, C))));
    case_loss(&c);
    refused(&c, "op sqrt has no gradient");

    c = case_begin();
    result(&c, attention(&c, 0)->results[1]);
    case_loss(&c);
    refused(&c, "lse of op attention");

    c = case_begin();
    MoeValue *sum = one(&c, MOE_OP_ACCUMULATE, one(&c, MOE_OP_COL_SUM, in_rows(&c, 1)));
    c.loss = two(&c, MOE_OP_MUL, sum, sum);
    refused(&c, "depends on the result of an accumulate");

    c = case_begin();
    MoeValue *fixed = in(&c, moe_type_2d(MOE_F32, moe_dim(5), C));
    result(&c, one(&c, MOE_OP_ROW_SUM, in_1d(&c, C)));
    result(&c, one(&c, MOE_OP_COL_SUM,
                   matmul(&c, in_rows(&c, C), two(&c, MOE_OP_MUL, fixed, in_1d(&c, 1)), 1, 0)));
    case_loss(&c);
    refused(&c, "the gradient of a broadcast from f32[1] to f32[5, 8]");

    c = case_begin();
    b_xent(&c);
    c.loss = total(&c, two(&c, MOE_OP_MUL, c.results[0], c.results[0]));
    refused(&c, "depends on its own result");
}
END_TEST

START_TEST(test_independent) {
    Case c = case_begin();
    MoeValue *used = in_rows(&c, C), *grads[3];
    in_rows(&c, C); /* never used */
    result(&c, used);
    result(&c, one(&c, MOE_OP_ROW_MAX, in_rows(&c, C))); /* no gradient by definition */
    case_loss(&c);
    ok(moe_grad_graph(c.g, c.loss, c.wrt, 3, grads));
    ck_assert(grads[0] && !grads[1] && !grads[2]);
    moe_module_destroy(c.m);
}
END_TEST

/* ---- the pass, on a small Mixtral ---- */

static MoeModule *mixtral(int micro_batches, bool bf16) {
    MoeHfConfig config = {.model_type = "mixtral",
                          .vocab_size = 19,
                          .hidden_size = 8,
                          .intermediate_size = 6,
                          .layers = 2,
                          .heads = 4,
                          .kv_heads = 2,
                          .head_dim = 2,
                          .experts = 3,
                          .experts_per_token = 2,
                          .max_positions = 16,
                          .rope_theta = 100.0,
                          .rms_norm_eps = 1e-5,
                          .initializer_range = 0.02,
                          .router_aux_loss_coef = 0.5,
                          .output_router_logits = true};
    MoeFrontendOptions o = {.batch = 4,
                            .seq = 5,
                            .virtual_shards = 4,
                            .micro_batches = micro_batches,
                            .mixed_bf16 = bf16};
    MoeModule *m;
    ok(moe_hf_build(&config, &o, &m));
    return m;
}

static void grad_pass(MoeModule *m, int micro_batches) {
    MoePassContext cx = {.module = m, .arena = m->arena};
    cx.options = (MoePassOptions){.batch = 4,
                                  .seq = 5,
                                  .micro_batches = micro_batches,
                                  .virtual_shards = 4,
                                  .emit_grads = true};
    ok(moe_pass_grad(&cx));
    verified(m);
}

static MoeValue *grad_of(const MoeGraph *g, const MoeValue *p) {
    char name[160];
    snprintf(name, sizeof name, "grad.%s", moe_attr_s(p->def, "name"));
    return moe_graph_find_output(g, name);
}

START_TEST(test_mixtral_differences) {
    MoeModule *m = mixtral(1, false);
    grad_pass(m, 1);
    MoeGraph *g = moe_module_find(m, "train");
    MoeValue *loss = moe_graph_find_output(g, "loss");
    MoeEval *ev = moe_eval_create(g);
    ok(moe_eval_fill(ev, g, SEED));
    int n_params = 0;
    for (size_t i = 0; i < g->n_ops; i++) {
        if (g->ops[i]->opcode != MOE_OP_PARAM)
            continue;
        MoeValue *p = g->ops[i]->results[0], *grad = grad_of(g, p);
        ck_assert_msg(grad, "%s has no gradient", moe_attr_s(p->def, "name"));
        int64_t n = moe_type_elements(&p->type);
        check_differences(ev, p, grad, loss, n / 8 + 1, moe_attr_s(p->def, "name"));
        n_params++;
    }
    ck_assert_int_eq(n_params, 2 * 10 + 3);
    moe_eval_destroy(ev);
    moe_module_destroy(m);
}
END_TEST

/* grad_norm, clipping and AdamW of every parameter, by their formulas from the gradients. */
START_TEST(test_mixtral_update) {
    MoeModule *m = mixtral(1, false);
    grad_pass(m, 1);
    MoeGraph *g = moe_module_find(m, "train");
    MoeEval *ev = moe_eval_create(g);
    ok(moe_eval_fill(ev, g, SEED));
    ok(moe_eval_run(ev));
    double squares = 0;
    double s[8];
    const char *names[8] = {"lr",           "beta1", "beta2", "eps",
                            "weight_decay", "bias1", "bias2", "max_grad_norm"};
    for (int i = 0; i < 8; i++)
        s[i] = moe_eval_get(ev, moe_graph_find_input(g, names[i]))->f[0];
    for (size_t i = 0; i < g->n_ops; i++) {
        if (g->ops[i]->opcode != MOE_OP_PARAM)
            continue;
        const MoeTensor *d = moe_eval_get(ev, grad_of(g, g->ops[i]->results[0]));
        for (int64_t k = 0; k < d->n; k++)
            squares += d->f[k] * d->f[k];
    }
    double norm = moe_eval_get(ev, moe_graph_find_output(g, "grad_norm"))->f[0];
    ck_assert_double_eq_tol(norm, sqrt(squares), 1e-12 * norm);
    double clip = fmin(1.0, s[7] / (norm + 1e-6));
    ck_assert_msg(clip < 1.0, "the norm %g does not reach the clip %g: choose another seed", norm,
                  s[7]);
    int n_assigned = 0, n_undecayed = 0;
    for (size_t i = 0; i + 2 < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        if (op->opcode != MOE_OP_ASSIGN || op->operands[0]->def->opcode != MOE_OP_PARAM)
            continue;
        const MoeOp *am = g->ops[i + 1], *av = g->ops[i + 2];
        ck_assert_str_eq(moe_attr_s(am->operands[0]->def, "name"), "exp_avg");
        ck_assert_str_eq(moe_attr_s(av->operands[0]->def, "name"), "exp_avg_sq");
        const MoeValue *pv = op->operands[0];
        const MoeTensor *p = moe_eval_get(ev, pv), *p2 = moe_eval_get(ev, op->operands[1]);
        const MoeTensor *m1 = moe_eval_get(ev, am->operands[0]);
        const MoeTensor *m2 = moe_eval_get(ev, am->operands[1]);
        const MoeTensor *v1 = moe_eval_get(ev, av->operands[0]);
        const MoeTensor *v2 = moe_eval_get(ev, av->operands[1]);
        const MoeTensor *d = moe_eval_get(ev, grad_of(g, pv));
        double decay = moe_attr_i(pv->def, "decay") ? s[4] : 0.0;
        n_undecayed += decay == 0.0;
        for (int64_t k = 0; k < p->n; k++) {
            double dk = d->f[k] * clip;
            double mk = s[1] * m1->f[k] + (1 - s[1]) * dk;
            double vk = s[2] * v1->f[k] + (1 - s[2]) * dk * dk;
            double pk =
                p->f[k] * (1 - s[0] * decay) - s[0] / s[5] * mk / (sqrt(vk) / sqrt(s[6]) + s[3]);
            ck_assert_double_eq_tol(m2->f[k], mk, 1e-12);
            ck_assert_double_eq_tol(v2->f[k], vk, 1e-12);
            ck_assert_double_eq_tol(p2->f[k], pk, 1e-12);
        }
        n_assigned++;
    }
    ck_assert_int_eq(n_assigned, 2 * 10 + 3);
    ck_assert_int_eq(n_undecayed, 2 * 2 + 1); /* the norms */
    moe_eval_destroy(ev);
    moe_module_destroy(m);
}
END_TEST

/* With micro-batches every gradient is accumulated, what depends on sums waits for the reduce
 * phase, batch_sums and their users do not, and the numbers are those of one micro-batch when there
 * is only one to run. */
START_TEST(test_micro_batches) {
    double norm[2];
    for (int k = 0; k < 2; k++) {
        int micro_batches = k + 1;
        MoeModule *m = mixtral(1, false);
        grad_pass(m, micro_batches);
        MoeGraph *g = moe_module_find(m, "train");
        int n_accumulates = 0;
        for (size_t i = 0; i < g->n_ops; i++) {
            const MoeOp *op = g->ops[i];
            if (op->opcode == MOE_OP_ACCUMULATE) {
                n_accumulates++;
                ck_assert_int_eq(op->phase, MOE_PHASE_REDUCE);
                ck_assert(op->operands[0]->def->phase < MOE_PHASE_REDUCE);
            }
            if (op->opcode == MOE_OP_BATCH_SUM)
                ck_assert_int_eq(op->phase, MOE_PHASE_FORWARD);
            if (op->opcode == MOE_OP_ADAMW || op->opcode == MOE_OP_ASSIGN)
                ck_assert_int_eq(op->phase, MOE_PHASE_UPDATE);
        }
        ck_assert_int_eq(n_accumulates, micro_batches > 1 ? 3 + 23 : 3);
        ck_assert_int_eq(moe_graph_find_output(g, "loss")->def->phase, MOE_PHASE_REDUCE);
        ck_assert_int_eq(moe_graph_find_output(g, "grad_norm")->def->phase, MOE_PHASE_REDUCE);
        MoeEval *ev = moe_eval_create(g);
        ok(moe_eval_fill(ev, g, SEED));
        norm[k] = value_of(ev, moe_graph_find_output(g, "grad_norm"));
        moe_eval_destroy(ev);
        moe_module_destroy(m);
    }
    ck_assert(norm[0] == norm[1]);
}
END_TEST

/* @eval and @logits stay; a second run finds nothing to do. */
START_TEST(test_other_graphs) {
    MoeModule *m = mixtral(1, true);
    size_t before = moe_module_find(m, "eval")->n_ops;
    grad_pass(m, 1);
    ck_assert_uint_eq(moe_module_find(m, "eval")->n_ops, before);
    size_t train = moe_module_find(m, "train")->n_ops;
    grad_pass(m, 1);
    ck_assert_uint_eq(moe_module_find(m, "train")->n_ops, train);
    moe_module_destroy(m);
}
END_TEST

/* Frozen parameters take part in the forward pass and stay as they are. */
START_TEST(test_frozen) {
    MoeModule *m = mixtral(1, false);
    MoeGraph *g = moe_module_find(m, "train");
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i]->opcode == MOE_OP_PARAM &&
            strcmp(moe_attr_s(g->ops[i], "name"), "lm_head.weight") != 0)
            moe_attr_set_i(g, g->ops[i], "trainable", 0);
    grad_pass(m, 1);
    int n_states = 0, n_assigns = 0;
    for (size_t i = 0; i < g->n_ops; i++) {
        n_states += g->ops[i]->opcode == MOE_OP_STATE;
        n_assigns += g->ops[i]->opcode == MOE_OP_ASSIGN;
        ck_assert(g->ops[i]->opcode != MOE_OP_ATTENTION_GRAD);
    }
    ck_assert_int_eq(n_states, 2);
    ck_assert_int_eq(n_assigns, 3);
    moe_module_destroy(m);
}
END_TEST

int main(void) {
    Suite *s = suite_create("grad");
    TCase *rules = tcase_create("rules"), *pass = tcase_create("pass");
    tcase_set_timeout(rules, 60);
    tcase_set_timeout(pass, 120);
    tcase_add_loop_test(rules, test_rule, 0, N_CASES);
    tcase_add_test(rules, test_every_rule_has_a_case);
    tcase_add_test(rules, test_bf16);
    tcase_add_test(rules, test_convert);
    tcase_add_test(rules, test_loss_op_replaced);
    tcase_add_test(rules, test_refused);
    tcase_add_test(rules, test_independent);
    tcase_add_test(pass, test_mixtral_differences);
    tcase_add_test(pass, test_mixtral_update);
    tcase_add_test(pass, test_micro_batches);
    tcase_add_test(pass, test_other_graphs);
    tcase_add_test(pass, test_frozen);
    suite_add_tcase(s, rules);
    suite_add_tcase(s, pass);
    return moe_check_main(s);
}
