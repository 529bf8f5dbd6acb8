/* The gradient rules against central differences of the f64 interpreter: every differentiable op of
 * the case table, then the blocks of a model. The loss is the sum of the results weighted by random
 * cotangents (the plain sum of a softmax has no gradient, so a check with it would pass whatever
 * the rule says). No bf16: its rounding has no derivative. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "ir/verify.h"
#include "passes/grad.h"
#include "tests/support/check_main.h"
#include "tests/support/op_cases.h"

static void ok(MoeStatus st, const char *what) {
    ck_assert_msg(st == NULL, "%s: %s", what, moe_status_message(st));
}

/* ---- losses ---- */

static MoeValue *times(MoeGraph *g, MoeValue *a, MoeValue *b) {
    return moe_build2(g, MOE_OP_MUL, a, b);
}

/* The sum of y's elements weighted by an input of its type: [T,C] or [C] -> [1]. */
static MoeValue *weigh(MoeGraph *g, MoeValue *y, const char *name) {
    MoeValue *s = moe_build1(g, MOE_OP_ROW_SUM, times(g, y, moe_build_input(g, name, y->type)));
    return y->type.rank == 2 ? moe_build1(g, MOE_OP_COL_SUM, s) : s;
}

static bool can_weigh(const MoeType *t) {
    return t->kind == MOE_TYPE_TENSOR && t->dtype == MOE_F32 &&
           (t->rank == 1 ? !t->dims[0].seg : t->rank == 2 && t->dims[0].seg);
}

/* ---- the check ---- */

/* Builds a graph with a loss, which it returns; called twice, for the forward graph and the one
 * that is differentiated. */
typedef MoeValue *(*BuildFn)(MoeModule *m, const void *arg);

typedef struct {
    const char *what;
    BuildFn build;
    const void *arg;
    MoeRandomOptions random;
    void (*prepare)(const MoeInputs *inputs); /* changes the random data, or NULL */
} Check;

/* Elements of one input that are checked: all of a small one, a sample of a large one. */
enum { MAX_SAMPLES = 24, MAX_WRT = 64 };

static double run_loss(MoeEval *ev, const MoeValue *loss, const char *what) {
    ok(moe_eval_run(ev), what);
    return moe_eval_get(ev, loss)->f[0];
}

/* d loss / d x[at], by the five-point rule with step h: off by h^4/30 times the fifth derivative.
 */
static double difference(MoeEval *ev, const MoeValue *loss, const MoeInputData *in, int64_t at,
                         const char *what) {
    static const double steps[4] = {-2, -1, 1, 2}, weights[4] = {1, -8, 8, -1};
    const double h = 1e-3, x = in->t.f[at];
    double sum = 0;
    for (int i = 0; i < 4; i++) {
        in->t.f[at] = x + steps[i] * h;
        ok(moe_eval_set_f(ev, in->value, in->t.f, in->t.n), what);
        sum += weights[i] * run_loss(ev, loss, what);
    }
    in->t.f[at] = x;
    ok(moe_eval_set_f(ev, in->value, in->t.f, in->t.n), what);
    return sum / (12 * h);
}

/* Not the cotangents ("c", "c0", ..): the loss is linear in them, and their gradients are values of
 * the graph, which may wait for an accumulate. */
static bool is_float_input(const MoeOp *op) {
    return (op->opcode == MOE_OP_INPUT || op->opcode == MOE_OP_PARAM) &&
           op->results[0]->type.kind == MOE_TYPE_TENSOR && op->results[0]->type.dtype == MOE_F32 &&
           moe_attr_s(op, "name")[strspn(moe_attr_s(op, "name"), "c012")] != 0;
}

static MoeValue *same_input(const MoeGraph *g, const MoeValue *v) {
    MoeValue *w = moe_graph_find_input(g, moe_attr_s(v->def, "name"));
    ck_assert_msg(w != NULL, "no input %s", moe_attr_s(v->def, "name"));
    return w;
}

/* Compares the gradients of all float inputs; returns the largest entry seen. */
static double compare(const Check *c, MoeEval *forward, const MoeValue *loss,
                      const MoeInputs *inputs, MoeEval *backward, MoeValue *const *wrt,
                      MoeValue *const *grads, size_t n_wrt) {
    double scale = 1 + fabs(run_loss(forward, loss, c->what)), seen = 0;
    for (size_t i = 0; i < n_wrt; i++) {
        const char *name = moe_attr_s(wrt[i]->def, "name");
        const MoeInputData *in = NULL;
        for (size_t k = 0; k < inputs->n; k++)
            if (!strcmp(moe_attr_s(inputs->items[k].value->def, "name"), name))
                in = &inputs->items[k];
        ck_assert(in != NULL);
        const MoeTensor *grad = grads[i] ? moe_eval_get(backward, grads[i]) : NULL;
        double top = 0;
        for (int64_t k = 0; grad && k < grad->n; k++)
            top = fmax(top, fabs(grad->f[k]));
        seen = fmax(seen, top);
        if (grad && (grad->n != in->t.n || grad->dtype != MOE_F32))
            ck_abort_msg("%s: the gradient of %s has another type", c->what, name);
        int64_t n = in->t.n < MAX_SAMPLES ? in->t.n : MAX_SAMPLES;
        for (int64_t k = 0; k < n; k++) {
            int64_t at = in->t.n <= MAX_SAMPLES
                             ? k
                             : (int64_t)moe_rng_below(1, i, (uint64_t)k, (uint64_t)in->t.n);
            double want = difference(forward, loss, in, at, c->what);
            double got = grad ? grad->f[at] : 0;
            if (!(fabs(got - want) <= 1e-6 * top + 1e-10 * scale))
                ck_abort_msg("%s: d loss / d %s[%lld] is %.12g, differences say %.12g%s", c->what,
                             name, (long long)at, got, want, grad ? "" : " (no gradient)");
        }
    }
    return seen;
}

static double check_gradients(const Check *c) {
    MoeModule *fm = moe_module_create(), *bm = moe_module_create();
    MoeArena *arena = moe_arena_create();
    MoeValue *loss = c->build(fm, c->arg), *b_loss = c->build(bm, c->arg);
    MoeGraph *f = fm->graphs[0], *b = bm->graphs[0];
    MoeInputs inputs;
    ok(moe_random_inputs(f, &c->random, arena, &inputs), c->what);
    if (c->prepare)
        c->prepare(&inputs);
    MoeValue *wrt[MAX_WRT], *grads[MAX_WRT];
    size_t n_wrt = 0;
    for (size_t k = 0; k < b->n_ops; k++)
        if (is_float_input(b->ops[k]) && n_wrt < MAX_WRT)
            wrt[n_wrt++] = b->ops[k]->results[0];
    ok(moe_grad_graph(b, b_loss, wrt, n_wrt, grads), c->what);
    ok(moe_verify_after(bm, "grad"), c->what);
    MoeEval *fe = moe_eval_create(f), *be = moe_eval_create(b);
    ok(moe_inputs_give(&inputs, fe), c->what);
    for (size_t i = 0; i < inputs.n; i++) {
        MoeInputs one = {&(MoeInputData){same_input(b, inputs.items[i].value), inputs.items[i].t},
                         1};
        ok(moe_inputs_give(&one, be), c->what);
    }
    ok(moe_eval_run(be), c->what);
    double seen = compare(c, fe, loss, &inputs, be, wrt, grads, n_wrt);
    moe_eval_destroy(fe);
    moe_eval_destroy(be);
    moe_arena_destroy(arena);
    moe_module_destroy(fm);
    moe_module_destroy(bm);
    return seen;
}

/* ---- op by op ---- */

/* What the grad column says of each op. */
static const char *const grad_column[] = {
#define OP(id, name, min_in, max_in, n_out, kind, attrs, infer, grad, decomp, shard, cost, doc)    \
    [MOE_OP_##id] = #grad,
#include "ir/ops.def"
#undef OP
};

/* A case's graph with a loss on its results that can have one; attention's lse has no gradient by
 * contract. */
static MoeValue *case_loss(MoeModule *m, const void *arg) {
    const MoeOpCase *c = arg;
    MoeGraph *g = moe_op_case_build(m, c);
    MoeValue *loss = NULL;
    size_t n_ops = g->n_ops;
    for (size_t k = 0, r = 0; k < n_ops; k++) {
        if (g->ops[k]->opcode != MOE_OP_OUTPUT)
            continue;
        MoeValue *y = g->ops[k]->operands[0];
        static const char *const names[] = {"c0", "c1", "c2"};
        if (can_weigh(&y->type) && (c->op != MOE_OP_ATTENTION || r == 0)) {
            MoeValue *part = weigh(g, y, names[r]);
            loss = loss ? moe_build2(g, MOE_OP_ADD, loss, part) : part;
        }
        r++;
    }
    return loss;
}

/* Small f32 cases whose results make a loss. */
static bool usable(const MoeOpCase *c) {
    if (c->dtype != MOE_F32 || c->rows > 70 || c->cols * c->rows > 600 || c->n * c->k > 3000 ||
        c->vocab * c->rows > 3000 || c->head_dim * c->heads * c->rows > 2500)
        return false;
    MoeModule *m = moe_module_create();
    MoeGraph *g = moe_op_case_build(m, c);
    bool any = false;
    for (size_t k = 0; k < g->n_ops; k++)
        any =
            any || (g->ops[k]->opcode == MOE_OP_OUTPUT && can_weigh(&g->ops[k]->operands[0]->type));
    moe_module_destroy(m);
    return any;
}

START_TEST(op_gradient) {
    MoeOpcode op = (MoeOpcode)_i;
    if (!strcmp(grad_column[op], "none") || op == MOE_OP_CONVERT) /* convert: below */
        return;
    size_t n = moe_op_cases(op, NULL, 0), used = 0;
    MoeOpCase *cases = calloc(n, sizeof *cases);
    double seen = 0;
    moe_op_cases(op, cases, n);
    for (size_t i = 0; i < n; i++) {
        if (!usable(&cases[i]))
            continue;
        Check c = {cases[i].id,
                   case_loss,
                   &cases[i],
                   {.seed = 7 + i,
                    .rows = cases[i].rows,
                    .shards = cases[i].layout,
                    .routing = cases[i].routing,
                    .ignored = 0.2},
                   NULL};
        seen = fmax(seen, check_gradients(&c));
        used++;
    }
    ck_assert_msg(used > 0 && seen > 1e-3, "%s: %zu cases, largest gradient %g",
                  moe_op_info(op)->name, used, seen);
    free(cases);
}
END_TEST

/* An op without a gradient between loss and parameter is an error that names it, not a zero. */
START_TEST(no_gradient_is_an_error) {
    static const MoeOpcode ops[] = {MOE_OP_MAX, MOE_OP_MIN, MOE_OP_SQRT};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        MoeModule *m = moe_module_create();
        MoeGraph *g = moe_module_add_graph(m, "g");
        MoeValue *x = moe_build_input(g, "x", moe_type_1d(MOE_F32, 3)), *in[2] = {x, x}, *grad;
        MoeValue *y = moe_build(g, ops[i], in, moe_op_info(ops[i])->min_in, MOE_END);
        MoeStatus st = moe_grad_graph(g, weigh(g, y, "c"), &x, 1, &grad);
        ck_assert_msg(st != NULL, "%s was differentiated", moe_op_info(ops[i])->name);
        ck_assert_msg(strstr(moe_status_message(st), moe_op_info(ops[i])->name) != NULL,
                      "'%s' does not name %s", moe_status_message(st), moe_op_info(ops[i])->name);
        moe_status_free(st);
        moe_module_destroy(m);
    }
}
END_TEST

/* The gradient passes a rounding as it is, and stays f32. */
START_TEST(convert_is_the_identity) {
    MoeModule *m = moe_module_create();
    MoeGraph *g = moe_module_add_graph(m, "g");
    MoeValue *x = moe_build_input(g, "x", moe_type_1d(MOE_F32, 3)), *grad;
    MoeValue *y = moe_build_convert(g, moe_build_convert(g, x, MOE_BF16), MOE_F32);
    ok(moe_grad_graph(g, weigh(g, y, "c"), &x, 1, &grad), "convert");
    ck_assert(grad != NULL && grad->type.dtype == MOE_F32);
    MoeEval *ev = moe_eval_create(g);
    const double xs[] = {1, 2, 3}, cs[] = {0.1, -1.2345678, 1000.3};
    ok(moe_eval_set_f(ev, x, xs, 3), "x");
    ok(moe_eval_set_f(ev, moe_graph_find_input(g, "c"), cs, 3), "c");
    ok(moe_eval_run(ev), "convert");
    for (int i = 0; i < 3; i++)
        ck_assert(moe_eval_get(ev, grad)->f[i] == cs[i]);
    moe_eval_destroy(ev);
    moe_module_destroy(m);
}
END_TEST

/* ---- blocks ---- */

enum { V = 4, CAP = 24, SEQ = 5, HIDDEN = 6, INTER = 7, EXPERTS = 5, VOCAB = 11 };

static MoeValue *param(MoeGraph *g, const char *name, const char *init, MoeType t) {
    MoeAttr attrs[] = {moe_as("name", name), moe_as("init", init), moe_af("std", 0.5),
                       moe_ai("decay", 0)};
    return moe_op_build_v(g, MOE_OP_PARAM, NULL, 0, attrs, 4, &t, NULL)->results[0];
}

static MoeValue *weight(MoeGraph *g, const char *name, int64_t rows, int64_t cols) {
    return param(g, name, "normal", moe_type_2d(MOE_F32, moe_dim(rows), cols));
}

static MoeDim token_rows(MoeGraph *g) {
    return moe_dim_ragged(CAP, moe_build_input(g, "tok", moe_type_segs(1, V)));
}

static MoeValue *linear(MoeGraph *g, MoeValue *x, MoeValue *w, bool grouped) {
    return moe_build(g, MOE_OP_MATMUL, (MoeValue *[]){x, w}, 2, moe_ai("tb", 1),
                     moe_ai("grouped", grouped), MOE_END);
}

static MoeValue *norm(MoeGraph *g, MoeValue *x, const char *name) {
    MoeValue *w = param(g, name, "ones", moe_type_1d(MOE_F32, moe_type_cols(&x->type)));
    return moe_build(g, MOE_OP_RMSNORM, (MoeValue *[]){x, w}, 2, moe_af("eps", 1e-5), MOE_END);
}

/* silu(x w1') * (x w3'), times w2'. */
static MoeValue *swiglu(MoeGraph *g, MoeValue *x, MoeValue *w1, MoeValue *w2, MoeValue *w3,
                        MoeValue *row_scale) {
    bool grouped = w1->type.rank == 3;
    MoeValue *h =
        times(g, moe_build1(g, MOE_OP_SILU, linear(g, x, w1, grouped)), linear(g, x, w3, grouped));
    MoeValue *y = linear(g, h, w2, grouped);
    return row_scale ? times(g, y, row_scale) : y;
}

static MoeGraph *block(MoeModule *m) {
    return moe_module_add_graph(m, "block");
}

static MoeValue *mlp_loss(MoeModule *m, const void *arg) {
    (void)arg;
    MoeGraph *g = block(m);
    MoeValue *x = moe_build_input(g, "x", moe_type_2d(MOE_F32, token_rows(g), HIDDEN));
    MoeValue *y = swiglu(g, norm(g, x, "norm"), weight(g, "w1", INTER, HIDDEN),
                         weight(g, "w2", HIDDEN, INTER), weight(g, "w3", INTER, HIDDEN), NULL);
    return weigh(g, moe_build2(g, MOE_OP_ADD, x, y), "c");
}

/* Mixtral's router: softmax, top-k, renormalised weights. `gap` (T, E) keeps the logits of a row
 * apart, so that no difference step changes the choice. */
typedef struct {
    MoeValue *logits, *probs, *ids, *weights; /* (T, E), (T, E), (T, k), (T, k) */
} Routed;

static Routed route(MoeGraph *g, MoeValue *x, int64_t k) {
    MoeValue *gap = moe_build_input(g, "gap", moe_type_2d(MOE_F32, x->type.dims[0], EXPERTS));
    MoeValue *gate = weight(g, "gate", EXPERTS, HIDDEN);
    Routed r = {.logits = moe_build2(g, MOE_OP_ADD, linear(g, x, gate, false), gap)};
    r.probs = moe_build1(g, MOE_OP_SOFTMAX, r.logits);
    r.ids = moe_build(g, MOE_OP_TOPK, &r.probs, 1, moe_ai("k", k), MOE_END);
    MoeValue *top = moe_build2(g, MOE_OP_TAKE, r.probs, r.ids);
    r.weights = moe_build2(g, MOE_OP_DIV, top, moe_build1(g, MOE_OP_ROW_SUM, top));
    return r;
}

/* Rows of `gap`: a random order of 0, 3, 6, .. ; the gate's logits have a standard deviation of
 * about 0.5. */
static void set_gaps(const MoeInputs *inputs) {
    MoeTensor *gap = moe_inputs_find(inputs, "gap"), *gate = moe_inputs_find(inputs, "gate");
    int32_t order[EXPERTS * CAP];
    moe_random_expert_ids(order, gap->dims[0], EXPERTS, EXPERTS, MOE_ROUTING_RANDOM, 3, 4);
    for (int64_t k = 0; k < gap->n; k++)
        gap->f[k] = 3 * order[k];
    for (int64_t k = 0; k < gate->n; k++)
        gate->f[k] *= 0.4;
}

/* The weighted sum of each token's experts; *out_seg: the plan's table. */
static MoeValue *experts(MoeGraph *g, MoeValue *x, const Routed *r, MoeValue **out_seg) {
    MoeOp *plan = moe_op_build(g, MOE_OP_ROUTE_PLAN, (MoeValue *[]){r->ids}, 1,
                               moe_ai("experts", EXPERTS), MOE_END);
    MoeValue *src = plan->results[1], *inv = plan->results[2];
    MoeType up = moe_type_3d(MOE_F32, EXPERTS, INTER, HIDDEN);
    MoeType down = moe_type_3d(MOE_F32, EXPERTS, HIDDEN, INTER);
    MoeValue *rows = moe_build(g, MOE_OP_DISPATCH, (MoeValue *[]){x, src, inv}, 3, MOE_END);
    MoeValue *s =
        moe_build(g, MOE_OP_DISPATCH_WEIGHT, (MoeValue *[]){r->weights, src, inv}, 3, MOE_END);
    MoeValue *y = swiglu(g, rows, param(g, "e1", "normal", up), param(g, "e2", "normal", down),
                         param(g, "e3", "normal", up), s);
    *out_seg = plan->results[0];
    return moe_build(g, MOE_OP_GATHER_SUM, (MoeValue *[]){y, src, inv}, 3, MOE_END);
}

static MoeValue *router_loss(MoeModule *m, const void *arg) {
    MoeGraph *g = block(m);
    MoeValue *x = moe_build_input(g, "x", moe_type_2d(MOE_F32, token_rows(g), HIDDEN));
    return weigh(g, route(g, x, *(const int *)arg).weights, "c");
}

static MoeValue *moe_loss(MoeModule *m, const void *arg) {
    MoeGraph *g = block(m);
    MoeValue *x = moe_build_input(g, "x", moe_type_2d(MOE_F32, token_rows(g), HIDDEN)), *seg;
    MoeValue *h = norm(g, x, "norm");
    Routed r = route(g, h, *(const int *)arg);
    return weigh(g, moe_build2(g, MOE_OP_ADD, x, experts(g, h, &r, &seg)), "c");
}

static MoeValue *f32_of(MoeGraph *g, MoeValue *i32) {
    return moe_build_convert(g, moe_build1(g, MOE_OP_BATCH_SUM, i32), MOE_F32);
}

/* E sum_e (rows_e / T) (sum_t p_te / T), as transformers' load_balancing_loss_func; counts have no
 * gradient. */
static MoeValue *balance(MoeGraph *g, const Routed *r, MoeValue *seg) {
    MoeValue *tok = (MoeValue *)r->probs->type.dims[0].seg;
    MoeValue *rows = f32_of(g, moe_build1(g, MOE_OP_EXPERT_COUNTS, seg));
    MoeValue *tokens = f32_of(g, moe_build1(g, MOE_OP_ROW_COUNT, tok));
    MoeValue *p = moe_build1(g, MOE_OP_ACCUMULATE, moe_build1(g, MOE_OP_COL_SUM, r->probs));
    MoeValue *sum = moe_build1(g, MOE_OP_ROW_SUM, times(g, rows, p));
    sum = moe_build2(g, MOE_OP_DIV, sum, times(g, tokens, tokens));
    return times(g, sum, moe_build_const(g, EXPERTS));
}

/* The mean of (log sum e^logits)^2. */
static MoeValue *z_loss(MoeGraph *g, const Routed *r) {
    MoeValue *top = moe_build1(g, MOE_OP_ROW_MAX, r->logits); /* no gradient: it cancels */
    MoeValue *e = moe_build1(g, MOE_OP_EXP, moe_build2(g, MOE_OP_SUB, r->logits, top));
    MoeValue *lse = moe_build1(g, MOE_OP_LOG, moe_build1(g, MOE_OP_ROW_SUM, e));
    lse = moe_build2(g, MOE_OP_ADD, lse, top);
    MoeValue *sum =
        moe_build1(g, MOE_OP_ACCUMULATE, moe_build1(g, MOE_OP_COL_SUM, times(g, lse, lse)));
    MoeValue *tok = (MoeValue *)r->probs->type.dims[0].seg;
    return moe_build2(g, MOE_OP_DIV, sum, f32_of(g, moe_build1(g, MOE_OP_ROW_COUNT, tok)));
}

static MoeValue *balance_loss(MoeModule *m, const void *arg) {
    MoeGraph *g = block(m);
    MoeValue *x = moe_build_input(g, "x", moe_type_2d(MOE_F32, token_rows(g), HIDDEN)), *seg;
    Routed r = route(g, x, *(const int *)arg);
    experts(g, x, &r, &seg);
    return moe_build2(g, MOE_OP_ADD, balance(g, &r, seg), z_loss(g, &r));
}

/* Attention of 4 heads on 2 KV heads of width 4, rotated; residual. */
static MoeValue *attend(MoeGraph *g, MoeValue *x, int64_t window) {
    enum { HEADS = 4, KV = 2, DIM = 4 };
    MoeValue *h = norm(g, x, "attn.norm");
    MoeValue *q = linear(g, h, weight(g, "q", HEADS * DIM, HIDDEN), false);
    MoeValue *k = linear(g, h, weight(g, "k", KV * DIM, HIDDEN), false);
    MoeValue *v = linear(g, h, weight(g, "v", KV * DIM, HIDDEN), false);
    q = moe_build(g, MOE_OP_ROPE, &q, 1, moe_ai("heads", HEADS), moe_ai("head_dim", DIM),
                  moe_af("theta", 100), moe_ai("seq", SEQ), moe_ai("inverse", 0), MOE_END);
    k = moe_build(g, MOE_OP_ROPE, &k, 1, moe_ai("heads", KV), moe_ai("head_dim", DIM),
                  moe_af("theta", 100), moe_ai("seq", SEQ), moe_ai("inverse", 0), MOE_END);
    MoeOp *o = moe_op_build(g, MOE_OP_ATTENTION, (MoeValue *[]){q, k, v}, 3, moe_ai("heads", HEADS),
                            moe_ai("kv_heads", KV), moe_ai("head_dim", DIM), moe_ai("seq", SEQ),
                            moe_ai("window", window), moe_af("scale", 0.5), MOE_END);
    MoeValue *y = linear(g, o->results[0], weight(g, "o", HIDDEN, HEADS * DIM), false);
    return moe_build2(g, MOE_OP_ADD, x, y);
}

static MoeValue *attention_loss(MoeModule *m, const void *arg) {
    MoeGraph *g = block(m);
    MoeValue *x = moe_build_input(g, "x", moe_type_2d(MOE_F32, token_rows(g), HIDDEN));
    return weigh(g, attend(g, x, *(const int *)arg), "c");
}

/* One decoder layer from ids to the loss of a training step: mean cross entropy plus both router
 * losses; tied embeddings, so one parameter gets contributions of two kinds. */
static MoeValue *model_loss(MoeModule *m, const void *arg) {
    MoeGraph *g = block(m);
    MoeDim rows = token_rows(g);
    MoeType ids = moe_type_1d(MOE_I32, CAP);
    ids.dims[0] = rows;
    MoeValue *table = weight(g, "embed", VOCAB, HIDDEN), *seg;
    MoeValue *x = moe_build2(g, MOE_OP_EMBEDDING, table, moe_build_input(g, "ids", ids));
    x = attend(g, x, 0);
    MoeValue *h = norm(g, x, "moe.norm");
    Routed r = route(g, h, *(const int *)arg);
    x = moe_build2(g, MOE_OP_ADD, x, experts(g, h, &r, &seg));
    MoeValue *labels = moe_build_input(g, "labels", ids);
    MoeValue *nll = moe_build(g, MOE_OP_LINEAR_CROSS_ENTROPY,
                              (MoeValue *[]){norm(g, x, "norm"), table, labels}, 3, MOE_END);
    MoeValue *sum = moe_build1(g, MOE_OP_ACCUMULATE, moe_build1(g, MOE_OP_COL_SUM, nll));
    MoeValue *n = f32_of(g, moe_build1(g, MOE_OP_COUNT_VALID, labels));
    MoeValue *loss = moe_build2(g, MOE_OP_DIV, sum, n);
    loss = moe_build2(g, MOE_OP_ADD, loss, times(g, balance(g, &r, seg), moe_build_const(g, 0.1)));
    return moe_build2(g, MOE_OP_ADD, loss, times(g, z_loss(g, &r), moe_build_const(g, 0.01)));
}

/* Each block at full, odd and tiny batches, shards empty or not. */
static void check_block(const char *name, BuildFn build, int arg,
                        void (*prepare)(const MoeInputs *)) {
    static const struct {
        int64_t rows;
        MoeShardLayout layout;
    } batches[] = {{-1, MOE_SHARDS_EVEN}, {15, MOE_SHARDS_RANDOM}, {5, MOE_SHARDS_LAST}};
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
        Check c = {name,
                   build,
                   &arg,
                   {.seed = 11 + i,
                    .rows = batches[i].rows,
                    .shards = batches[i].layout,
                    .ignored = 0.2},
                   prepare};
        double seen = check_gradients(&c);
        ck_assert_msg(seen > 1e-3, "%s: largest gradient %g", name, seen);
    }
}

START_TEST(mlp) {
    check_block("mlp", mlp_loss, 0, NULL);
}
END_TEST

START_TEST(router) {
    check_block("router of 2", router_loss, 2, set_gaps);
    check_block("router of 3", router_loss, 3, set_gaps);
}
END_TEST

START_TEST(moe_layer) {
    for (int k = 1; k <= 3; k++)
        check_block("moe layer", moe_loss, k, set_gaps);
}
END_TEST

START_TEST(router_losses) {
    check_block("balance and z", balance_loss, 2, set_gaps);
}
END_TEST

START_TEST(attention_layer) {
    check_block("attention", attention_loss, 0, NULL);
    check_block("attention with a window", attention_loss, 2, NULL);
}
END_TEST

START_TEST(model) {
    check_block("model", model_loss, 2, set_gaps);
}
END_TEST

int main(void) {
    Suite *s = suite_create("gradients");
    TCase *ops = tcase_create("ops"), *blocks = tcase_create("blocks");
    tcase_add_loop_test(ops, op_gradient, 0, MOE_N_OPS);
    tcase_add_test(ops, no_gradient_is_an_error);
    tcase_add_test(ops, convert_is_the_identity);
    tcase_add_test(blocks, mlp);
    tcase_add_test(blocks, router);
    tcase_add_test(blocks, moe_layer);
    tcase_add_test(blocks, router_losses);
    tcase_add_test(blocks, attention_layer);
    tcase_add_test(blocks, model);
    tcase_set_timeout(ops, 120);
    tcase_set_timeout(blocks, 120);
    suite_add_tcase(s, ops);
    suite_add_tcase(s, blocks);
    return moe_check_main(s);
}
