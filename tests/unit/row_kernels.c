/* The row, reduce, route, move, embed and rope kernels of the CPU and CUDA targets against the interpreter,
 * on every instruction set that runs here and on the simulated GPU: chains as training has them (fused greedily), random chains
 * (fused and not: the same bits). Op by op: ops.c. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/half.h"
#include "base/rng.h"
#include "codegen/codegen.h"
#include "ir/numbers.h"
#include "ir/op.h"
#include "tests/support/check_main.h"
#include "tests/support/gpu.h"
#include "tests/support/group_run.h"
#include "tests/support/status_checks.h"

static const char *const targets[] = {"cpu", "cpu:x86-64-v3", "cpu:x86-64", "cuda:sm_80"};
#define N_TARGETS ((int)(sizeof targets / sizeof targets[0]))

/* ---- math, against libm in double ---- */

static double ulp_of(double x) {
    int e;
    if (fabs(x) < 0x1p-126)
        return 0x1p-149;
    frexp(x, &e);
    return ldexp(1, e - 24);
}

static double exact_sigmoid(double x) {
    return x < 0 ? exp(x) / (1 + exp(x)) : 1 / (1 + exp(-x));
}

/* Error in units of the last place of the correctly rounded result; 0 where both are the same
 * infinity or NaN. */
static double ulps(float got, double want) {
    float rounded = (float)want;
    if (isnan(want))
        return isnan(got) ? 0 : 1e9;
    if (isinf(rounded) || isinf(got))
        return got == rounded ? 0 : isinf(rounded) && fabsf(got) > 3.4e38f ? 1 : 1e9;
    return fabs((double)got - want) / ulp_of(want);
}

static float from_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static void check_math(const char *target, MoeOpcode op, double (*exact)(double), double lo,
                       double hi, double bound) {
    enum { N = 1 << 18 };
    MoeModule *m = moe_module_create();
    MoeGraph *g = moe_module_add_graph(m, "math");
    MoeValue *x = moe_build_input(g, "x", moe_type_1d(MOE_F32, N));
    MoeValue *y = moe_build1(g, op, x);
    moe_build_output(g, "y", y);
    double *data = MOE_NEW_N(m->arena, double, N);
    static const float special[] = {0.0f,      -0.0f,   1.0f,      -1.0f,          INFINITY,
                                    -INFINITY, NAN,     0x1p-126f, 0x1p-149f,      0x1.fffffep127f,
                                    -104.0f,   -103.9f, -87.4f,    -88.0f,         88.7f,
                                    88.72283f, 88.8f,   1e-30f,    0x1.fffffep-1f, 0x1.000002p0f};
    for (int i = 0; i < N; i++) {
        uint64_t u = moe_rng_u64(7, (uint64_t)op, (uint64_t)i);
        float f = i % 2 ? from_bits((uint32_t)u)
                        : (float)(lo + (hi - lo) * moe_rng_uniform(8, (uint64_t)op, (uint64_t)i));
        data[i] = i < (int)(sizeof special / sizeof *special) ? special[i] : f;
    }
    MoeInputData item = {x, {.dtype = MOE_F32, .rank = 1, .dims = {N}, .n = N, .f = data}};
    MoeInputs in = {&item, 1};
    MoeGroupRun *run;
    OK(moe_group_run_create(g, &(MoeGroupRunOptions){.target = target}, &run));
    OK(moe_group_run(run, &in));
    const float *got = moe_group_run_data(run, y);
    double worst = 0;
    for (int i = 0; i < N; i++) {
        double e = ulps(got[i], exact(data[i]));
        CHECK_EACH(e <= bound, "%s %s(%a) = %a, not %a (%g ulp)", target, moe_op_info(op)->name,
                   data[i], (double)got[i], exact(data[i]), e);
        worst = e > worst ? e : worst;
    }
    if (getenv("MOE_VERBOSE"))
        printf("%s %s: %.3f ulp\n", target, moe_op_info(op)->name, worst);
    moe_group_run_destroy(run);
    moe_module_destroy(m);
}

static double exact_rsqrt(double x) {
    return 1 / sqrt(x);
}

START_TEST(math_is_accurate) {
    if (!moe_test_runs(targets[_i]))
        return;
    check_math(targets[_i], MOE_OP_EXP, exp, -110, 95, 2);
    check_math(targets[_i], MOE_OP_LOG, log, 0, 4, 2);
    check_math(targets[_i], MOE_OP_SIGMOID, exact_sigmoid, -120, 30, 2.5);
    check_math(targets[_i], MOE_OP_SQRT, sqrt, 0, 100, 0.5);
    check_math(targets[_i], MOE_OP_RSQRT, exact_rsqrt, 0, 100, 1.5);
}
END_TEST

/* ---- chains as training has them, fused as far as the target allows ---- */

typedef struct {
    MoeModule *m;
    MoeGraph *g;
    MoeValue *tok;
    MoeDim rows;
    int n_out;
} Net;

static Net net_open(int64_t capacity) {
    Net n = {.m = moe_module_create()};
    n.g = moe_module_add_graph(n.m, "net");
    n.tok = moe_build_input(n.g, "tok", moe_type_segs(1, 8));
    n.rows = moe_dim_ragged(capacity, n.tok);
    return n;
}

static MoeValue *net_in(Net *n, const char *name, int64_t cols) {
    return moe_build_input(n->g, name, moe_type_2d(MOE_F32, n->rows, cols));
}

static void net_out(Net *n, MoeValue *v) {
    char name[16];
    snprintf(name, sizeof name, "y%d", n->n_out++);
    moe_build_output(n->g, name, v);
}

static MoeValue *op1(Net *n, MoeOpcode o, MoeValue *a) {
    return moe_build1(n->g, o, a);
}
static MoeValue *op2(Net *n, MoeOpcode o, MoeValue *a, MoeValue *b) {
    return moe_build2(n->g, o, a, b);
}
static MoeValue *mul(Net *n, MoeValue *a, MoeValue *b) {
    return op2(n, MOE_OP_MUL, a, b);
}
static MoeValue *add(Net *n, MoeValue *a, MoeValue *b) {
    return op2(n, MOE_OP_ADD, a, b);
}
static MoeValue *sub(Net *n, MoeValue *a, MoeValue *b) {
    return op2(n, MOE_OP_SUB, a, b);
}
static MoeValue *konst(Net *n, double v) {
    return moe_build_const(n->g, v);
}

/* y = w x r, r = rsqrt(mean x^2 + eps); dx, dw of it; y in bf16 too. */
static void build_rmsnorm(Net *n, int64_t c) {
    MoeValue *x = net_in(n, "x", c), *dy = net_in(n, "dy", c),
             *w = moe_build_input(n->g, "w", moe_type_1d(MOE_F32, c));
    MoeValue *mean = mul(n, op1(n, MOE_OP_ROW_SUM, mul(n, x, x)), konst(n, 1.0 / (double)c));
    MoeValue *r = op1(n, MOE_OP_RSQRT, add(n, mean, konst(n, 1e-5)));
    MoeValue *y = mul(n, mul(n, x, r), w);
    net_out(n, moe_build_convert(n->g, y, MOE_BF16));
    MoeValue *xr = mul(n, x, r), *dw = op1(n, MOE_OP_COL_SUM, mul(n, dy, xr));
    MoeValue *g = mul(n, dy, w), *dot = op1(n, MOE_OP_ROW_SUM, mul(n, g, xr));
    MoeValue *dx = mul(n, r, sub(n, g, mul(n, xr, mul(n, dot, konst(n, 1.0 / (double)c)))));
    net_out(n, dx);
    net_out(n, dw);
}

/* Softmax over E, top k, renormalised; and the way back. */
static void build_router(Net *n, int64_t experts) {
    int64_t k = experts < 3 ? experts : 2;
    MoeValue *x = net_in(n, "logits", experts), *dweight = net_in(n, "dweight", k);
    MoeValue *e = op1(n, MOE_OP_EXP, sub(n, x, op1(n, MOE_OP_ROW_MAX, x)));
    MoeValue *p = op2(n, MOE_OP_DIV, e, op1(n, MOE_OP_ROW_SUM, e));
    MoeValue *ids = moe_build(n->g, MOE_OP_TOPK, &p, 1, moe_ai("k", k), MOE_END);
    MoeValue *top = op2(n, MOE_OP_TAKE, p, ids), *sum = op1(n, MOE_OP_ROW_SUM, top);
    MoeValue *weight = op2(n, MOE_OP_DIV, top, sum);
    net_out(n, ids);
    net_out(n, weight);
    net_out(n, op1(n, MOE_OP_COL_SUM, p));
    MoeValue *dot = op1(n, MOE_OP_ROW_SUM, mul(n, dweight, weight));
    MoeValue *dtop = op2(n, MOE_OP_DIV, sub(n, dweight, dot), sum);
    MoeValue *in[] = {dtop, ids};
    MoeValue *dp = moe_build(n->g, MOE_OP_PUT, in, 2, moe_ai("cols", experts), MOE_END);
    net_out(n, mul(n, p, sub(n, dp, op1(n, MOE_OP_ROW_SUM, mul(n, dp, p)))));
}

/* h = silu(a) b s in bf16; da, db, ds. */
static void build_swiglu(Net *n, int64_t c) {
    MoeValue *a = net_in(n, "a", c), *b = net_in(n, "b", c), *s = net_in(n, "s", 1),
             *dh = net_in(n, "dh", c);
    MoeValue *sig = op1(n, MOE_OP_SIGMOID, a), *silu = mul(n, a, sig), *h = mul(n, silu, b);
    net_out(n, moe_build_convert(n->g, mul(n, h, s), MOE_BF16));
    net_out(n, op1(n, MOE_OP_ROW_SUM, mul(n, dh, h)));
    MoeValue *g = mul(n, dh, s);
    net_out(n, mul(n, g, silu));
    MoeValue *slope = add(n, sig, mul(n, silu, sub(n, konst(n, 1), sig)));
    net_out(n, mul(n, mul(n, g, b), slope));
}

/* AdamW on f32[3, rows, c], as decompose writes it. */
static void build_adamw(Net *n, int64_t c) {
    static const char *const names[] = {"clip", "lr",    "beta1", "beta2",
                                        "eps",  "decay", "bias1", "bias2"};
    static const char *const tensors[] = {"p", "m", "v", "g"};
    MoeValue *t[4], *s[8], *one = konst(n, 1);
    for (int i = 0; i < 4; i++)
        t[i] = moe_build_input(n->g, tensors[i], moe_type_3d(MOE_F32, 3, n->rows.size, c));
    for (int i = 0; i < 8; i++)
        s[i] = moe_build_input(n->g, names[i], moe_type_1d(MOE_F32, 1));
    MoeValue *g = mul(n, t[3], s[0]), *m = add(n, mul(n, t[1], s[2]), mul(n, g, sub(n, one, s[2])));
    MoeValue *v = add(n, mul(n, t[2], s[3]), mul(n, mul(n, g, g), sub(n, one, s[3])));
    MoeValue *kept = mul(n, t[0], sub(n, one, mul(n, s[1], s[5])));
    MoeValue *root = op2(n, MOE_OP_DIV, op1(n, MOE_OP_SQRT, v), op1(n, MOE_OP_SQRT, s[7]));
    MoeValue *step =
        op2(n, MOE_OP_DIV, mul(n, m, op2(n, MOE_OP_DIV, s[1], s[6])), add(n, root, s[4]));
    net_out(n, sub(n, kept, step));
    net_out(n, m);
    net_out(n, v);
}

/* Loss arithmetic: [E] counts and sums, [1] scalars. */
static void build_scalars(Net *n, int64_t experts) {
    MoeValue *counts = moe_build_input(n->g, "counts", moe_type_1d(MOE_I32, experts)),
             *more = moe_build_input(n->g, "more", moe_type_1d(MOE_I32, experts));
    MoeValue *probs = moe_build_input(n->g, "probs", moe_type_1d(MOE_F32, experts)),
             *tokens = moe_build_input(n->g, "tokens", moe_type_1d(MOE_F32, 1));
    MoeValue *sum = add(n, counts, more);
    net_out(n, sum);
    MoeValue *share = op2(n, MOE_OP_DIV, moe_build_convert(n->g, sum, MOE_F32), tokens);
    MoeValue *aux = mul(n, op1(n, MOE_OP_ROW_SUM, mul(n, share, probs)), konst(n, (double)experts));
    net_out(n, op2(n, MOE_OP_MIN, konst(n, 1), op2(n, MOE_OP_MAX, aux, konst(n, 0.25))));
    net_out(n, mul(n, probs, mul(n, aux, tokens)));
}

typedef struct {
    const char *name;
    void (*build)(Net *n, int64_t cols);
    size_t groups; /* at most so many launches */
    double size; /* of the terms that results are made of: where they cancel, errors are relative to
                    this */
} Chain;
static const Chain chains[] = {{"rmsnorm", build_rmsnorm, 2, 1},
                               {"router", build_router, 2, 1e-2},
                               {"swiglu", build_swiglu, 1, 1e-2},
                               {"adamw", build_adamw, 1, 1e-6},
                               {"scalars", build_scalars, 2, 1e-2}};
#define N_CHAINS ((int)(sizeof chains / sizeof chains[0]))

static void close_to(const char *what, double size, const MoeValue *v, const MoeTensor *want,
                     const void *data) {
    MoeArena *a = moe_arena_create();
    MoeTensor got = *want;
    got.f = want->f ? MOE_NEW_N(a, double, want->n + 1) : NULL;
    got.i = want->i ? MOE_NEW_N(a, int32_t, want->n + 1) : NULL;
    moe_tensor_unpack(data, &got);
    double top = size,
           eps = v->type.dtype == MOE_BF16 ? 0x1p-7 : 0; /* a bf16 may round to either side */
    for (int64_t i = 0; i < want->n && want->f; i++)
        top = fmax(top, fabs(want->f[i]));
    for (int64_t i = 0; i < want->n; i++)
        if (want->i)
            CHECK_EACH(got.i[i] == want->i[i], "%s: value %d[%lld] = %d, not %d", what, v->id,
                       (long long)i, got.i[i], want->i[i]);
        else
            CHECK_EACH(fabs(got.f[i] - want->f[i]) <= 4e-6 * top + eps * fabs(want->f[i]),
                       "%s: value %d[%lld] = %.9g, not %.9g", what, v->id, (long long)i, got.f[i],
                       want->f[i]);
    moe_arena_destroy(a);
}

static void compare_with_eval(Net *n, const MoeInputs *in, MoeGroupRun *r, const char *what,
                              double size) {
    MoeEval *ev = moe_eval_create(n->g);
    OK(moe_inputs_give(in, ev));
    OK(moe_eval_run(ev));
    for (size_t i = 0; i < n->g->n_ops; i++)
        if (n->g->ops[i]->opcode == MOE_OP_OUTPUT) {
            const MoeValue *v = n->g->ops[i]->operands[0];
            close_to(what, size, v, moe_eval_get(ev, v), moe_group_run_data(r, v));
        }
    moe_eval_destroy(ev);
}

static void positive(const MoeInputs *in, const char *name, double lo, double hi) {
    MoeTensor *t = moe_inputs_find(in, name);
    for (int64_t i = 0; t && i < t->n; i++)
        t->f[i] =
            (double)(float)(lo + (hi - lo) * moe_rng_uniform(3, moe_hash_name(name), (uint64_t)i));
}

static void check_chain(const char *target, const Chain *c, int64_t rows, int64_t cols,
                        bool alias) {
    char what[128];
    snprintf(what, sizeof what, "%s %s rows %lld cols %lld%s", target, c->name, (long long)rows,
             (long long)cols, alias ? " in place" : "");
    Net n = net_open(rows + 3);
    c->build(&n, cols);
    MoeTarget *t;
    OK(moe_target_create(target, &t));
    moe_group_greedily(n.g, t);
    t->destroy(t);
    MoeInputs in;
    OK(moe_random_inputs(n.g,
                         &(MoeRandomOptions){.seed = 5, .rows = rows, .shards = MOE_SHARDS_RANDOM},
                         n.m->arena, &in));
    positive(&in, "v", 1e-6, 1e-3);
    static const char *const positives[] = {"clip",  "lr",    "beta1", "beta2", "eps",
                                            "decay", "bias1", "bias2", "tokens"};
    for (size_t i = 0; i < sizeof positives / sizeof *positives; i++)
        positive(&in, positives[i], 0.1, 0.9);
    MoeGroupRun *r;
    OK(moe_group_run_create(n.g, &(MoeGroupRunOptions){.target = target, .alias = alias}, &r));
    ck_assert_msg(moe_group_run_launches(r) <= c->groups, "%s: %zu launches", what,
                  moe_group_run_launches(r));
    MoeStatus st = moe_group_run(r, &in);
    ck_assert_msg(!st, "%s: %s", what, moe_status_message(st));
    compare_with_eval(&n, &in, r, what, c->size);
    if (alias && rows > 0 && c->build == build_adamw)
        ck_assert_uint_eq(moe_group_run_aliases(r), 3);
    moe_group_run_destroy(r);
    moe_module_destroy(n.m);
}

START_TEST(chains_agree_with_the_interpreter) {
    if (!moe_test_runs(targets[_i]))
        return;
    static const int64_t shapes[][2] = {{0, 8},    {1, 1},   {5, 2},    {17, 7},   {130, 8},
                                        {300, 16}, {40, 33}, {33, 100}, {20, 160}, {3, 257}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int c = 0; c < N_CHAINS; c++)
            check_chain(targets[_i], &chains[c], shapes[s][0], shapes[s][1], s % 2);
}
END_TEST

/* Rows that many threads or chunks share, up to those that no registers hold. */
START_TEST(wide_chains_agree_with_the_interpreter) {
    static const struct {
        int64_t rows, cols;
        const char *chains; /* of these names */
    } wide[] = {{130, 600, "rmsnorm router"},
                {4, 1024, "rmsnorm swiglu router scalars"},
                {3, 4100, "rmsnorm router"},
                {2, 8200, "rmsnorm swiglu adamw"},
                {2, 24600, "rmsnorm swiglu"}};
    if (!moe_test_runs(targets[_i]))
        return;
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++)
        for (int c = 0; c < N_CHAINS; c++)
            if (strstr(wide[i].chains, chains[c].name))
                check_chain(targets[_i], &chains[c], wide[i].rows, wide[i].cols, i % 2);
}
END_TEST

/* ---- random chains: fused, unfused and in place give the same bits ---- */

static MoeValue *any(MoeValue **pool, int n, uint64_t seed, uint64_t *counter) {
    return pool[moe_rng_below(seed, 9, (*counter)++, (uint64_t)n)];
}

static void build_random(Net *n, uint64_t seed) {
    uint64_t at = 0;
    MoeValue *pool[64], *column[64];
    int n_pool = 0, n_column = 0;
    static const int64_t widths[] = {2, 5, 16, 24, 48, 130, 300, 700, 1032};
    int64_t c = widths[moe_rng_below(seed, 1, 0, 9)];
    MoeValue *w = moe_build_input(n->g, "w", moe_type_1d(MOE_F32, c)),
             *s = moe_build_input(n->g, "s", moe_type_1d(MOE_F32, 1));
    pool[n_pool++] = net_in(n, "x", c);
    pool[n_pool++] = net_in(n, "y", c);
    pool[n_pool++] = net_in(n, "z", c);
    column[n_column++] = net_in(n, "t", 1);
    int ops = 6 + (int)moe_rng_below(seed, 2, 0, 22);
    static const MoeOpcode two[] = {MOE_OP_ADD, MOE_OP_SUB, MOE_OP_MUL,
                                    MOE_OP_MAX, MOE_OP_MIN, MOE_OP_DIV};
    static const MoeOpcode one[] = {MOE_OP_NEG, MOE_OP_SIGMOID, MOE_OP_EXP, MOE_OP_SIGMOID};
    while (n_pool + n_column < ops + 4) {
        MoeValue *v = NULL, *a = any(pool, n_pool, seed, &at), *b = any(pool, n_pool, seed, &at);
        MoeValue *p = any(column, n_column, seed, &at), *q = any(column, n_column, seed, &at),
                 *fresh = NULL;
        MoeOpcode f = two[moe_rng_below(seed, 3, at, 6)], g = one[moe_rng_below(seed, 4, at, 4)];
        switch (moe_rng_below(seed, 5, at, 12)) {
        case 0:
        case 1:
        case 2:
            v = op2(n, f, a, b);
            break;
        case 3:
        case 4:
            v = op2(n, f, a, p);
            break;
        case 5:
            v = op2(n, f, a, w);
            break;
        case 6:
            v = op2(n, f, a, s);
            break;
        case 7:
            v = op1(n, g, a);
            break;
        case 8: {
            MoeValue *half = moe_build_convert(n->g, a, MOE_BF16);
            if (at % 3 == 0)
                net_out(n, half);
            v = moe_build_convert(n->g, at % 2 ? half : mul(n, half, half), MOE_F32);
            break;
        }
        case 9:
            fresh = op1(n, MOE_OP_ROW_SUM, a);
            break;
        case 10:
            fresh = op1(n, MOE_OP_ROW_MAX, a);
            break;
        default:
            fresh = op2(n, f, p, q);
            break;
        }
        if (v)
            pool[n_pool++] = v;
        if (fresh)
            column[n_column++] = fresh;
    }
    net_out(n, pool[n_pool - 1]);
    net_out(n, column[n_column - 1]);
    net_out(n, op1(n, MOE_OP_COL_SUM, any(pool, n_pool, seed, &at)));
    for (int i = 3; i < n_pool - 1; i++)
        if (moe_rng_below(seed, 6, (uint64_t)i, 4) == 0)
            net_out(n, pool[i]);
}

static float element(const void *data, MoeDtype d, int64_t i) {
    return d == MOE_BF16 ? moe_bf16_to_f32(((const uint16_t *)data)[i]) : ((const float *)data)[i];
}

/* Equal bits, or NaN on both sides. */
static bool same_floats(const void *a, const void *b, MoeDtype d, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float x = element(a, d, i), y = element(b, d, i);
        if (memcmp(&x, &y, 4) != 0 && !(isnan(x) && isnan(y)))
            return false;
    }
    return true;
}

static size_t check_random(const char *target, uint64_t seed, size_t *fused) {
    Net n = net_open(140);
    build_random(&n, seed);
    moe_graph_dce(n.g);
    MoeInputs in;
    OK(moe_random_inputs(
        n.g, &(MoeRandomOptions){.seed = seed, .rows = 131, .shards = MOE_SHARDS_RANDOM},
        n.m->arena, &in));
    MoeGroupRun *r[3];
    for (int k = 0; k < 3; k++) {
        if (k == 1) {
            MoeTarget *t;
            OK(moe_target_create(target, &t));
            moe_group_greedily(n.g, t);
            t->destroy(t);
        }
        OK(moe_group_run_create(n.g, &(MoeGroupRunOptions){.target = target, .alias = k == 2},
                                &r[k]));
        MoeStatus st = moe_group_run(r[k], &in);
        ck_assert_msg(!st, "%s seed %llu way %d: %s", target, (unsigned long long)seed, k,
                      moe_status_message(st));
    }
    for (size_t i = 0; i < n.g->n_ops; i++) {
        const MoeOp *op = n.g->ops[i];
        if (op->opcode != MOE_OP_OUTPUT)
            continue;
        const MoeValue *v = op->operands[0];
        int64_t count = v->type.rank == 1 ? v->type.dims[0].size : 131 * moe_type_cols(&v->type);
        for (int k = 1; k < 3; k++)
            ck_assert_msg(same_floats(moe_group_run_data(r[0], v), moe_group_run_data(r[k], v),
                                      v->type.dtype, count),
                          "%s seed %llu: %s differs when %s", target, (unsigned long long)seed,
                          moe_attr_s(op, "name"), k == 1 ? "fused" : "in place");
    }
    size_t aliases = moe_group_run_aliases(r[2]);
    ck_assert_uint_le(moe_group_run_launches(r[1]), moe_group_run_launches(r[0]));
    *fused += moe_group_run_launches(r[0]) - moe_group_run_launches(r[1]);
    for (int k = 0; k < 3; k++)
        moe_group_run_destroy(r[k]);
    moe_module_destroy(n.m);
    return aliases;
}

START_TEST(fusing_changes_no_bit) {
    if (!moe_test_runs(targets[_i]))
        return;
    size_t aliases = 0, fused = 0;
    static const int runs_of[N_TARGETS] = {60, 15, 15, 5};
    int runs = getenv("MOE_SEEDS") ? atoi(getenv("MOE_SEEDS")) : runs_of[_i];
    for (int s = 0; s < runs; s++)
        aliases += check_random(targets[_i], (uint64_t)(1000 * _i + s), &fused);
    ck_assert_uint_gt(aliases, 0);
    ck_assert_uint_gt(fused, (size_t)runs);
}
END_TEST

/* ---- rope at far positions ---- */

static void run_one(const char *target, const MoeGraph *g, const MoeInputs *in, const MoeValue *v,
                    void *out, size_t bytes) {
    MoeGroupRun *r;
    OK(moe_group_run_create(g, &(MoeGroupRunOptions){.target = target}, &r));
    OK(moe_group_run(r, in));
    memcpy(out, moe_group_run_data(r, v), bytes);
    moe_group_run_destroy(r);
}

/* The f32 angle is off by about pos * 1e-7, so values are by |x| times that: 4 * 2^-24 * pos. */
static void check_rope(const char *target, int64_t rows, int64_t seq, int64_t dim, int inverse) {
    Net n = net_open(rows);
    MoeValue *x = net_in(&n, "x", 2 * dim);
    MoeValue *y = moe_build(n.g, MOE_OP_ROPE, &x, 1, moe_ai("heads", 2), moe_ai("head_dim", dim),
                            moe_af("theta", 10000.0), moe_ai("seq", seq),
                            moe_ai("inverse", inverse), MOE_END);
    net_out(&n, y);
    MoeInputs in;
    OK(moe_random_inputs(n.g, &(MoeRandomOptions){.seed = 4, .rows = rows}, n.m->arena, &in));
    MoeEval *ev = moe_eval_create(n.g);
    OK(moe_inputs_give(&in, ev));
    OK(moe_eval_run(ev));
    const MoeTensor *want = moe_eval_get(ev, y);
    float *got = MOE_NEW_N(n.m->arena, float, rows * 2 * dim);
    run_one(target, n.g, &in, y, got, (size_t)(rows * 2 * dim) * 4);
    for (int64_t i = 0; i < want->n; i++) {
        double pos = (double)(i / (2 * dim) % seq), bound = 4 * (0x1p-24 * (pos + 4) * 5);
        CHECK_EACH(fabs(got[i] - want->f[i]) <= bound,
                   "%s: rope row %lld of seq %lld: %.9g, not %.9g", target,
                   (long long)(i / (2 * dim)), (long long)seq, (double)got[i], want->f[i]);
    }
    moe_eval_destroy(ev);
    moe_module_destroy(n.m);
}

/* The rows of a table and those computed row by row agree to an ulp of cos and sin, also far out.
 */
static void check_rope_computed(const char *target) {
    enum { ROWS = 200000, DIM = 4 };
    float *got[2];
    for (int k = 0; k < 2; k++) {
        Net n = net_open(ROWS);
        MoeValue *x = net_in(&n, "x", DIM);
        MoeValue *y =
            moe_build(n.g, MOE_OP_ROPE, &x, 1, moe_ai("heads", 1), moe_ai("head_dim", DIM),
                      moe_af("theta", 100.0), moe_ai("seq", k ? (1 << 20) + 1 : ROWS),
                      moe_ai("inverse", 0), MOE_END);
        net_out(&n, y);
        MoeInputs in;
        OK(moe_random_inputs(n.g, &(MoeRandomOptions){.seed = 4, .rows = ROWS}, n.m->arena, &in));
        got[k] = malloc((size_t)ROWS * DIM * 4);
        run_one(target, n.g, &in, y, got[k], (size_t)ROWS * DIM * 4);
        moe_module_destroy(n.m);
    }
    for (int64_t i = 0; i < ROWS * DIM; i++)
        CHECK_EACH(fabsf(got[0][i] - got[1][i]) <= 6e-7f,
              "%s: rope row %lld: %.9g by table, %.9g computed", target, (long long)(i / DIM),
              (double)got[0][i], (double)got[1][i]);
    free(got[0]);
    free(got[1]);
}

START_TEST(rope_at_far_positions) {
    if (!moe_test_runs(targets[_i]))
        return;
    check_rope(targets[_i], 5000, 2500, 12, 0);
    check_rope_computed(targets[_i]);
    check_rope(targets[_i], 3000, 1 << 20, 12, 1); /* beyond the table: computed row by row */
}
END_TEST

Suite *suite(void);
Suite *suite(void) {
    Suite *s = suite_create("row_kernels");
    TCase *t = tcase_create("row_kernels");
    tcase_set_timeout(t, 300);
    tcase_add_loop_test(t, math_is_accurate, 0, N_TARGETS);
    tcase_add_loop_test(t, chains_agree_with_the_interpreter, 0, N_TARGETS);
    tcase_add_loop_test(t, wide_chains_agree_with_the_interpreter, 0, N_TARGETS);
    tcase_add_loop_test(t, fusing_changes_no_bit, 0, N_TARGETS);
    tcase_add_loop_test(t, rope_at_far_positions, 0, N_TARGETS);
    suite_add_tcase(s, t);
    return s;
}

int main(void) {
    moe_test_compile_plainly();
    return moe_check_main(suite());
}
