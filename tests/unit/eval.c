/* The interpreter, op by op, against values worked out by hand or by another program (PyTorch in
 * f64 for attention, cross entropy, rope, norms and AdamW, on x_i = sin(a i + b)), and its errors.
 */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "ir/text.h"
#include "tests/support/check_main.h"
#include "tests/support/op_cases.h"

/* ---- a graph from text, its data, its outputs ---- */

typedef struct {
    MoeModule *m;
    MoeGraph *g;
    MoeEval *ev;
} Rig;

static Rig open_rig(const char *body) {
    MoeStr text = {0};
    moe_str_printf(&text, "moe 1\ngraph @t {\n%s}\n", body);
    MoeDiag d = {.file = "test", .source = moe_str_c(&text)};
    MoeModule *m = moe_parse(&d);
    ck_assert_msg(m != NULL, "%s", moe_str_c(&d.text));
    moe_diag_free(&d);
    moe_str_free(&text);
    return (Rig){m, m->graphs[0], moe_eval_create(m->graphs[0])};
}

static void close_rig(Rig *r) {
    moe_eval_destroy(r->ev);
    moe_module_destroy(r->m);
}

static void ok(MoeStatus st) {
    ck_assert_msg(st == NULL, "%s", moe_status_message(st));
}

static const MoeValue *input_named(const Rig *r, const char *name) {
    const MoeValue *v = moe_graph_find_input(r->g, name);
    ck_assert_msg(v != NULL, "no input %s", name);
    return v;
}

static void give_f(Rig *r, const char *name, int64_t n, const double *x) {
    ok(moe_eval_set_f(r->ev, input_named(r, name), x, n));
}

static void give_i(Rig *r, const char *name, int64_t n, const int32_t *x) {
    ok(moe_eval_set_i(r->ev, input_named(r, name), x, n));
}

/* x_i = sin(a i + b) */
static void give_wave(Rig *r, const char *name, int64_t n, double a, double b) {
    double x[64];
    for (int64_t i = 0; i < n; i++)
        x[i] = sin(a * (double)i + b);
    give_f(r, name, n, x);
}

#define F(...) ((const double[]){__VA_ARGS__})
#define I(...) ((const int32_t[]){__VA_ARGS__})

static const MoeTensor *output(const Rig *r, const char *name, int64_t n) {
    const MoeValue *v = moe_graph_find_output(r->g, name);
    ck_assert_msg(v != NULL, "no output %s", name);
    const MoeTensor *t = moe_eval_get(r->ev, v);
    ck_assert_msg(t && t->n == n, "%s has %lld elements, expected %lld", name,
                  t ? (long long)t->n : -1, (long long)n);
    return t;
}

static void expect_f(const Rig *r, const char *name, int64_t n, const double *want) {
    const MoeTensor *t = output(r, name, n);
    for (int64_t k = 0; k < n; k++)
        ck_assert_msg(t->f[k] == want[k] || fabs(t->f[k] - want[k]) <= 1e-13 * (1 + fabs(want[k])),
                      "%s[%lld] is %.17g, expected %.17g", name, (long long)k, t->f[k], want[k]);
}

static void expect_i(const Rig *r, const char *name, int64_t n, const int32_t *want) {
    const MoeTensor *t = output(r, name, n);
    for (int64_t k = 0; k < n; k++)
        ck_assert_msg(t->i[k] == want[k], "%s[%lld] is %d, expected %d", name, (long long)k,
                      t->i[k], want[k]);
}

/* The run fails with a message that holds every one of the texts. */
static void expect_error(Rig *r, const char *a, const char *b) {
    MoeStatus st = moe_eval_run(r->ev);
    ck_assert_msg(st != NULL, "the run should have failed with '%s'", a);
    const char *text = moe_status_message(st);
    ck_assert_msg(strstr(text, a) && strstr(text, b), "'%s' lacks '%s' or '%s'", text, a, b);
    ck_assert_int_eq(moe_status_code(st), MOE_E_INPUT);
    moe_status_free(st);
}

/* ---- elementwise ---- */

START_TEST(elementwise_broadcasts) {
    Rig r = open_rig("%x = input {name = \"x\"} : f32[2, 3]\n"
                     "%c = input {name = \"c\"} : f32[3]\n"
                     "%w = input {name = \"w\"} : f32[2, 1]\n"
                     "%s = input {name = \"s\"} : f32[1]\n"
                     "%0 = add %x, %c : f32[2, 3]\n"
                     "%1 = sub %x, %w : f32[2, 3]\n"
                     "%2 = mul %s, %x : f32[2, 3]\n"
                     "%3 = div %w, %c : f32[2, 3]\n"
                     "%4 = max %x, %c : f32[2, 3]\n"
                     "%5 = min %x, %s : f32[2, 3]\n"
                     "output %0 {name = \"add\"}\noutput %1 {name = \"sub\"}\n"
                     "output %2 {name = \"mul\"}\noutput %3 {name = \"div\"}\n"
                     "output %4 {name = \"max\"}\noutput %5 {name = \"min\"}\n");
    give_f(&r, "x", 6, F(1, 2, 3, 4, 5, 6));
    give_f(&r, "c", 3, F(10, 1, 4));
    give_f(&r, "w", 2, F(100, -1));
    give_f(&r, "s", 1, F(3));
    ok(moe_eval_run(r.ev));
    expect_f(&r, "add", 6, F(11, 3, 7, 14, 6, 10));
    expect_f(&r, "sub", 6, F(-99, -98, -97, 5, 6, 7));
    expect_f(&r, "mul", 6, F(3, 6, 9, 12, 15, 18));
    expect_f(&r, "div", 6, F(10, 100, 25, -0.1, -1, -0.25));
    expect_f(&r, "max", 6, F(10, 2, 4, 10, 5, 6));
    expect_f(&r, "min", 6, F(1, 2, 3, 3, 3, 3));
    close_rig(&r);
}
END_TEST

START_TEST(elementwise_unary) {
    static const char *const names[] = {"neg",   "exp",     "log",  "sqrt",
                                        "rsqrt", "sigmoid", "silu", "softmax"};
    MoeStr s = {0};
    moe_str_append(&s, "%x = input {name = \"x\"} : f32[3]\n");
    for (int i = 0; i < 8; i++)
        moe_str_printf(&s, "%%y%d = %s %%x : f32[3]\noutput %%y%d {name = \"%s\"}\n", i, names[i],
                       i, names[i]);
    Rig r = open_rig(moe_str_c(&s));
    moe_str_free(&s);
    give_f(&r, "x", 3, F(0.25, 1, 4));
    ok(moe_eval_run(r.ev));
    expect_f(&r, "neg", 3, F(-0.25, -1, -4));
    expect_f(&r, "exp", 3, F(1.2840254166877414, 2.718281828459045, 54.598150033144236));
    expect_f(&r, "log", 3, F(-1.3862943611198906, 0, 1.3862943611198906));
    expect_f(&r, "sqrt", 3, F(0.5, 1, 2));
    expect_f(&r, "rsqrt", 3, F(2, 1, 0.5));
    expect_f(&r, "sigmoid", 3, F(0.5621765008857981, 0.7310585786300049, 0.9820137900379085));
    expect_f(&r, "silu", 3, F(0.14054412522144953, 0.7310585786300049, 3.928055160151634));
    expect_f(&r, "softmax", 3, F(0.02191152554646392, 0.046386699945873168, 0.93170177450766289));
    close_rig(&r);
}
END_TEST

START_TEST(integers_wrap_and_convert) {
    Rig r =
        open_rig("%a = input {name = \"a\"} : i32[3]\n"
                 "%b = const {value = 1} : i32[1]\n"
                 "%0 = add %a, %b : i32[3]\n%1 = convert %a {to = \"f32\"} : f32[3]\n"
                 "%2 = batch_sum %a : i32[3]\n"
                 "output %0 {name = \"y\"}\noutput %1 {name = \"f\"}\noutput %2 {name = \"s\"}\n");
    give_i(&r, "a", 3, I(5, -7, INT32_MAX));
    ok(moe_eval_run(r.ev));
    expect_i(&r, "y", 3, I(6, -6, INT32_MIN));
    expect_f(&r, "f", 3, F(5, -7, 2147483647));
    expect_i(&r, "s", 3, I(5, -7, INT32_MAX));
    close_rig(&r);
}
END_TEST

/* Against the definition on 16-bit patterns: every bf16 is itself, midpoints go to the even
 * neighbour. */
START_TEST(bf16_rounds_once) {
    for (uint32_t h = 0; h < 0x7f7f; h++) { /* positive finite, with a finite successor */
        double lo = moe_bf16_to_f32((uint16_t)h), hi = moe_bf16_to_f32((uint16_t)(h + 1));
        double mid = lo / 2 + hi / 2, even = h % 2 ? hi : lo;
        bool good = moe_eval_round_bf16(lo) == lo && moe_eval_round_bf16(-lo) == -lo &&
                    moe_eval_round_bf16(mid) == even && moe_eval_round_bf16(-mid) == -even &&
                    moe_eval_round_bf16(nextafter(mid, hi)) == hi && /* through f32 it would tie */
                    moe_eval_round_bf16(nextafter(mid, lo)) == lo;
        if (!good) /* not an assertion for each: Check logs every one */
            ck_abort_msg("around bf16 0x%04x", h);
    }
    double top = moe_bf16_to_f32(0x7f7f), half_ulp = 0x1p119;
    ck_assert(moe_eval_round_bf16(nextafter(top + half_ulp, 0)) == top);
    ck_assert(isinf(moe_eval_round_bf16(top + half_ulp)));
    ck_assert(isinf(moe_eval_round_bf16(-1e300)) && moe_eval_round_bf16(-1e300) < 0);
    ck_assert(isnan(moe_eval_round_bf16(NAN)));
    ck_assert(signbit(moe_eval_round_bf16(-0.0)) && moe_eval_round_bf16(1e-300) == 0);
}
END_TEST

/* Values of type bf16 are rounded whenever they are produced, f32 only on request. */
START_TEST(rounding_follows_types) {
    Rig r =
        open_rig("%x = input {name = \"x\"} : f32[1]\n%b = convert %x {to = \"bf16\"} : bf16[1]\n"
                 "%q = input {name = \"q\"} : bf16[1]\n%s = add %b, %q : bf16[1]\n"
                 "%f = add %x, %x : f32[1]\n"
                 "output %b {name = \"b\"}\noutput %s {name = \"s\"}\noutput %f {name = \"f\"}\n"
                 "output %q {name = \"q\"}\n");
    give_f(&r, "x", 1, F(1.0 / 3));
    give_f(&r, "q", 1, F(256.7)); /* becomes 256 or 258: 8 bits */
    ok(moe_eval_run(r.ev));
    expect_f(&r, "b", 1, F(0.333984375));
    expect_f(&r, "q", 1, F(256));
    expect_f(&r, "s", 1, F(256));
    ck_assert(output(&r, "f", 1)->f[0] == 2.0 / 3);
    moe_eval_set_flags(r.ev, MOE_EVAL_ROUND_F32);
    ok(moe_eval_run(r.ev));
    ck_assert(output(&r, "f", 1)->f[0] == (double)((float)(1.0 / 3) * 2.0f));
    close_rig(&r);
}
END_TEST

START_TEST(broadcast_forms) {
    Rig r = open_rig("%tok = input {name = \"tok\"} : segs<1, 2>\n"
                     "%s = input {name = \"s\"} : f32[1]\n%c = input {name = \"c\"} : f32[2]\n"
                     "%w = input {name = \"w\"} : f32[r<=4 @%tok, 1]\n"
                     "%0 = broadcast %s {rows = 0, cols = 2} : f32[2]\n"
                     "%1 = broadcast %c {rows = 2, cols = 2} : f32[2, 2]\n"
                     "%2 = broadcast %w, %tok {rows = 4, cols = 2} : f32[r<=4 @%tok, 2]\n"
                     "%3 = broadcast %s, %tok {rows = 4, cols = 1} : f32[r<=4 @%tok, 1]\n"
                     "output %0 {name = \"a\"}\noutput %1 {name = \"b\"}\n"
                     "output %2 {name = \"c2\"}\noutput %3 {name = \"d\"}\n");
    give_i(&r, "tok", 3, I(0, 1, 3));
    give_f(&r, "s", 1, F(7));
    give_f(&r, "c", 2, F(1, 2));
    give_f(&r, "w", 3, F(4, 5, 6));
    ok(moe_eval_run(r.ev));
    expect_f(&r, "a", 2, F(7, 7));
    expect_f(&r, "b", 4, F(1, 2, 1, 2));
    expect_f(&r, "c2", 6, F(4, 4, 5, 5, 6, 6));
    expect_f(&r, "d", 3, F(7, 7, 7));
    close_rig(&r);
}
END_TEST

/* ---- rows and reductions ---- */

START_TEST(row_ops) {
    Rig r =
        open_rig("%tok = input {name = \"tok\"} : segs<1, 1>\n"
                 "%x = input {name = \"x\"} : f32[r<=2 @%tok, 4]\n"
                 "%w = input {name = \"w\"} : f32[4]\n"
                 "%s = row_sum %x : f32[r<=2 @%tok, 1]\n%m = row_max %x : f32[r<=2 @%tok, 1]\n"
                 "%k = topk %x {k = 3} : i32[r<=2 @%tok, 3]\n"
                 "%t = take %x, %k : f32[r<=2 @%tok, 3]\n"
                 "%p = put %t, %k {cols = 5} : f32[r<=2 @%tok, 5]\n"
                 "%c = col_sum %x : f32[4]\n%v = row_sum %w : f32[1]\n"
                 "%q = sum_squares %w : f32[1]\n%a = accumulate %w : f32[4]\n"
                 "output %s {name = \"s\"}\noutput %m {name = \"m\"}\noutput %k {name = \"k\"}\n"
                 "output %t {name = \"t\"}\noutput %p {name = \"p\"}\noutput %c {name = \"c\"}\n"
                 "output %v {name = \"v\"}\noutput %q {name = \"q\"}\noutput %a {name = \"a\"}\n");
    give_i(&r, "tok", 2, I(0, 2));
    give_f(&r, "x", 8, F(2, 5, 5, -1, 0, 0, 0, -3)); /* ties go to the lower id */
    give_f(&r, "w", 4, F(1, -2, 3, -4));
    ok(moe_eval_run(r.ev));
    expect_f(&r, "s", 2, F(11, -3));
    expect_f(&r, "m", 2, F(5, 0));
    expect_i(&r, "k", 6, I(1, 2, 0, 0, 1, 2));
    expect_f(&r, "t", 6, F(5, 5, 2, 0, 0, 0));
    expect_f(&r, "p", 10, F(2, 5, 5, 0, 0, 0, 0, 0, 0, 0));
    expect_f(&r, "c", 4, F(2, 5, 5, -4));
    expect_f(&r, "v", 1, F(-2));
    expect_f(&r, "q", 1, F(30));
    expect_f(&r, "a", 4, F(1, -2, 3, -4));
    close_rig(&r);
}
END_TEST

START_TEST(norms) {
    Rig r = open_rig("%x = input {name = \"x\"} : f32[2, 3]\n%w = input {name = \"w\"} : f32[3]\n"
                     "%0 = rmsnorm %x, %w {eps = 1e-05} : f32[2, 3]\n%1 = softmax %x : f32[2, 3]\n"
                     "output %0 {name = \"n\"}\noutput %1 {name = \"s\"}\n");
    give_wave(&r, "x", 6, 0.37, 1.1);
    give_f(&r, "w", 3, F(1, 0.5, -2));
    ok(moe_eval_run(r.ev));
    expect_f(&r, "n", 6,
             F(0.937089392857696, 0.523073022426644, -2.02722347474188, 1.41580874031589,
               0.46972013342477, -0.671845920757241));
    expect_f(&r, "s", 6,
             F(0.313993857185899, 0.348309137756032, 0.33769700505807, 0.433738492856411,
               0.331095099169283, 0.235166407974306));
    close_rig(&r);
}
END_TEST

/* ---- contractions ---- */

START_TEST(matmuls) {
    Rig r =
        open_rig("%seg = input {name = \"seg\"} : segs<3, 2>\n"
                 "%a = input {name = \"a\"} : f32[r<=9 @%seg, 2]\n"
                 "%b = input {name = \"b\"} : f32[3, 3, 2]\n"
                 "%w = input {name = \"w\"} : f32[2, 3]\n"
                 "%0 = matmul %a, %b {tb = 1, grouped = 1} : f32[r<=9 @%seg, 3]\n"
                 "%1 = matmul %a, %w {tb = 0, grouped = 0} : f32[r<=9 @%seg, 3]\n"
                 "%2 = weight_grad %0, %a {grouped = 1} : f32[3, 3, 2]\n"
                 "output %0 {name = \"g\"}\noutput %1 {name = \"p\"}\noutput %2 {name = \"d\"}\n");
    give_i(&r, "seg", 7, I(0, 1, 2, 2, 2, 2, 3)); /* two rows, none, one */
    give_f(&r, "a", 6, F(1, 2, 3, 4, 5, 6));
    give_f(&r, "b", 18, F(1, 0, 0, 1, 1, 1, 9, 9, 9, 9, 9, 9, 2, 0, 0, 2, 1, -1));
    give_f(&r, "w", 6, F(1, 2, 3, 4, 5, 6));
    ok(moe_eval_run(r.ev));
    expect_f(&r, "g", 9, F(1, 2, 3, 3, 4, 7, 10, 12, -1));
    expect_f(&r, "p", 9, F(9, 12, 15, 19, 26, 33, 29, 40, 51));
    expect_f(&r, "d", 18, F(10, 14, 14, 20, 24, 34, 0, 0, 0, 0, 0, 0, 50, 60, 60, 72, -5, -6));
    close_rig(&r);
}
END_TEST

START_TEST(plain_weight_grad_spans_shards) {
    Rig r =
        open_rig("%tok = input {name = \"tok\"} : segs<1, 4>\n"
                 "%a = input {name = \"a\"} : f32[r<=5 @%tok, 1]\n"
                 "%b = input {name = \"b\"} : f32[r<=5 @%tok, 2]\n"
                 "%0 = weight_grad %a, %b {grouped = 0} : f32[1, 2]\noutput %0 {name = \"d\"}\n");
    give_i(&r, "tok", 5, I(0, 0, 2, 2, 3));
    give_f(&r, "a", 3, F(1, 10, 100));
    give_f(&r, "b", 6, F(1, 2, 3, 4, 5, 6));
    ok(moe_eval_run(r.ev));
    expect_f(&r, "d", 2, F(531, 642));
    close_rig(&r);
}
END_TEST

/* ---- experts ---- */

START_TEST(routing) {
    Rig r = open_rig("%tok = input {name = \"tok\"} : segs<1, 2>\n"
                     "%ids = input {name = \"ids\"} : i32[r<=8 @%tok, 2]\n"
                     "%x = input {name = \"x\"} : f32[r<=8 @%tok, 2]\n"
                     "%w = input {name = \"w\"} : f32[r<=8 @%tok, 2]\n"
                     "%labels = input {name = \"labels\"} : i32[r<=8 @%tok]\n"
                     "%seg, %src, %inv = route_plan %ids {experts = 4} : segs<4, 2>, "
                     "i32[r<=16 @%seg], i32[r<=8 @%tok, 2]\n"
                     "%n = expert_counts %seg : i32[4]\n%rows = row_count %seg : i32[1]\n"
                     "%valid = count_valid %labels : i32[1]\n"
                     "%d = dispatch %x, %src, %inv : f32[r<=16 @%seg, 2]\n"
                     "%s = gather_sum %d, %src, %inv : f32[r<=8 @%tok, 2]\n"
                     "%dw = dispatch_weight %w, %src, %inv : f32[r<=16 @%seg, 1]\n"
                     "%cw = collect_weight %dw, %src, %inv : f32[r<=8 @%tok, 2]\n"
                     "output %seg {name = \"seg\"}\noutput %src {name = \"src\"}\n"
                     "output %inv {name = \"inv\"}\noutput %n {name = \"n\"}\n"
                     "output %rows {name = \"rows\"}\noutput %valid {name = \"valid\"}\n"
                     "output %d {name = \"d\"}\noutput %s {name = \"s\"}\n"
                     "output %dw {name = \"dw\"}\noutput %cw {name = \"cw\"}\n");
    give_i(&r, "tok", 3, I(0, 2, 3));
    give_i(&r, "ids", 6, I(3, 0, 0, 2, 3, 2)); /* expert 1: none */
    give_i(&r, "labels", 3, I(0, -1, 7));
    give_f(&r, "x", 6, F(1, 2, 3, 4, 5, 6));
    give_f(&r, "w", 6, F(10, 11, 20, 21, 30, 31));
    ok(moe_eval_run(r.ev));
    expect_i(&r, "seg", 9, I(0, 2, 2, 2, 2, 3, 4, 5, 6));
    expect_i(&r, "src", 6, I(1, 2, 3, 5, 0, 4));
    expect_i(&r, "inv", 6, I(4, 0, 1, 2, 5, 3));
    expect_i(&r, "n", 4, I(2, 0, 2, 2));
    expect_i(&r, "rows", 1, I(6));
    expect_i(&r, "valid", 1, I(2));
    expect_f(&r, "d", 12, F(1, 2, 3, 4, 3, 4, 5, 6, 1, 2, 5, 6));
    expect_f(&r, "s", 6, F(2, 4, 6, 8, 10, 12));
    expect_f(&r, "dw", 6, F(11, 20, 21, 31, 10, 30));
    expect_f(&r, "cw", 6, F(10, 11, 20, 21, 30, 31));
    close_rig(&r);
}
END_TEST

/* ---- sequence ---- */

START_TEST(embeddings) {
    Rig r = open_rig(
        "%t = input {name = \"t\"} : f32[3, 2]\n%tok = input {name = \"tok\"} : segs<1, 1>\n"
        "%ids = input {name = \"ids\"} : i32[r<=4 @%tok]\n"
        "%x = embedding %t, %ids : f32[r<=4 @%tok, 2]\n"
        "%d = embedding_grad %x, %ids {vocab = 3} : f32[3, 2]\n"
        "output %x {name = \"x\"}\noutput %d {name = \"d\"}\n");
    give_f(&r, "t", 6, F(1, 2, 3, 4, 5, 6));
    give_i(&r, "tok", 2, I(0, 4));
    give_i(&r, "ids", 4, I(2, 0, 2, 2));
    ok(moe_eval_run(r.ev));
    expect_f(&r, "x", 8, F(5, 6, 1, 2, 5, 6, 5, 6));
    expect_f(&r, "d", 6, F(1, 2, 0, 0, 15, 18));
    close_rig(&r);
}
END_TEST

START_TEST(rope) {
    Rig r = open_rig(
        "%x = input {name = \"x\"} : f32[3, 4]\n"
        "%y = rope %x {heads = 1, head_dim = 4, theta = 100.0, seq = 2, inverse = 0} : f32[3, 4]\n"
        "%z = rope %y {heads = 1, head_dim = 4, theta = 100.0, seq = 2, inverse = 1} : f32[3, 4]\n"
        "output %y {name = \"y\"}\noutput %z {name = \"z\"}\n");
    give_wave(&r, "x", 12, 0.37, 1.1);
    ok(moe_eval_run(r.ev));
    expect_f(&r, "y", 12,
             F(0.891207360061435, 0.994924349777581, 0.963982996152448, 0.802571066246747,
               0.437059319904815, 0.241517361624929, 0.352229315758942, -0.499713774389004,
               -0.794635749757397, -0.960392488235543, -0.996164608835841, -0.897110522849642));
    double back[12];
    for (int i = 0; i < 12; i++)
        back[i] = sin(0.37 * i + 1.1);
    expect_f(&r, "z", 12, back);
    close_rig(&r);
}
END_TEST

#define ATTN "{heads = 2, kv_heads = 1, head_dim = 2, seq = 3, window = 2, scale = 0.7}"

START_TEST(attention) {
    Rig r =
        open_rig("%q = input {name = \"q\"} : f32[6, 4]\n%k = input {name = \"k\"} : f32[6, 2]\n"
                 "%v = input {name = \"v\"} : f32[6, 2]\n%g = input {name = \"g\"} : f32[6, 4]\n"
                 "%o, %l = attention %q, %k, %v " ATTN " : f32[6, 4], f32[6, 2]\n"
                 "%dq, %dk, %dv = attention_grad %q, %k, %v, %o, %l, %g " ATTN
                 " : f32[6, 4], f32[6, 2], f32[6, 2]\n"
                 "output %o {name = \"o\"}\noutput %l {name = \"l\"}\noutput %dq {name = \"dq\"}\n"
                 "output %dk {name = \"dk\"}\noutput %dv {name = \"dv\"}\n");
    give_wave(&r, "q", 24, 0.37, 1.1);
    give_wave(&r, "k", 12, 0.53, 0.2);
    give_wave(&r, "v", 12, 0.71, 0.4);
    give_wave(&r, "g", 24, 0.29, 0.9);
    ok(moe_eval_run(r.ev));
    expect_f(&r, "o", 24,
             F(0.389418342308651, 0.895698685680048, 0.389418342308651, 0.895698685680048,
               0.725539854443879, 0.709268284471565, 0.649453183985271, 0.751469893080624,
               0.283580037305394, -0.2590800876665, 0.283454318820103, -0.259232896949528,
               -0.998628011207499, -0.791454699905466, -0.998628011207499, -0.791454699905466,
               -0.700072650870408, -0.313050903384624, -0.732428952341142, -0.364898498575997,
               0.482825370661342, 0.756827103843085, 0.351229347620076, 0.704652694157193));
    expect_f(&r, "l", 12,
             F(0.588378285470854, 0.508706891529145, 1.03004324264564, 0.327209312671177,
               -0.157813785546978, -0.248558673429088, 0.28922144768399, -0.173951410367414,
               -0.0766527220544103, -0.226088574133417, 0.0230242867035388, 0.664758661346764));
    expect_f(&r, "dq", 24,
             F(0, 0, 0, 0, 0.036354297404332, 0.0149196735736936, 0.0275521791106325,
               0.0113073157212383, -0.0194772354912791, -0.0610022446556056, -0.0603569889874521,
               -0.189036673635578, 0, 0, 0, 0, 0.130938009740761, 0.0489927046259265,
               -0.00362652786949257, -0.00135692767195338, 0.0326512472483404, 0.0908225028269879,
               0.0626459219653011, 0.1742555003035));
    expect_f(&r, "dk", 12,
             F(-0.0192063344205987, 0.00987636732460484, 0.363075992605731, 0.321484707501184,
               -0.343869658185132, -0.331361074825789, 0.116057465848458, 0.156271670536885,
               -0.261953421726237, -0.178252369329117, 0.145895955877779, 0.021980698792232));
    expect_f(&r, "dv", 12,
             F(2.41523338168919, 2.32334270313737, 0.480674772682624, 0.0873533712357565,
               -0.443355358815648, -0.753230135654121, -2.44607241679839, -2.04759951415195,
               0.286190070046397, 0.63173691990674, 0.650612994429087, 0.855832245919927));
    close_rig(&r);
}
END_TEST

/* ---- loss and update ---- */

START_TEST(cross_entropy) {
    Rig r = open_rig("%tok = input {name = \"tok\"} : segs<1, 1>\n"
                     "%h = input {name = \"h\"} : f32[r<=3 @%tok, 2]\n"
                     "%w = input {name = \"w\"} : f32[4, 2]\n"
                     "%y = input {name = \"y\"} : i32[r<=3 @%tok]\n"
                     "%g = input {name = \"g\"} : f32[r<=3 @%tok, 1]\n"
                     "%0 = linear_cross_entropy %h, %w, %y : f32[r<=3 @%tok, 1]\n"
                     "%n, %dh, %dw = linear_cross_entropy_grad %h, %w, %y, %g : "
                     "f32[r<=3 @%tok, 1], f32[r<=3 @%tok, 2], f32[4, 2]\n"
                     "output %0 {name = \"a\"}\noutput %n {name = \"n\"}\n"
                     "output %dh {name = \"dh\"}\noutput %dw {name = \"dw\"}\n");
    give_i(&r, "tok", 2, I(0, 3));
    give_wave(&r, "h", 6, 0.37, 1.1);
    give_wave(&r, "w", 8, 0.53, 0.2);
    give_i(&r, "y", 3, I(2, -100, 0));
    give_f(&r, "g", 3, F(0.5, 3, -2));
    ok(moe_eval_run(r.ev));
    const double *nll = F(1.49934249388932, 0, 1.48892693096487);
    expect_f(&r, "a", 3, nll);
    expect_f(&r, "n", 3, nll);
    expect_f(
        &r, "dh", 6,
        F(-0.0119273794987765, 0.206515257455927, 0, 0, -0.716074038665698, 0.366695275230236));
    expect_f(&r, "dw", 8,
             F(0.914975344933189, 0.39561928507788, -0.140567644735063, 0.131936778014241,
               -0.64312024330977, -0.492594378347463, -0.131287456888356, -0.0349616847446572));
    close_rig(&r);
}
END_TEST

/* Two steps of torch.optim.AdamW(lr=0.01, betas=(0.9, 0.95), weight_decay=0.1); state starts at
 * zero and is committed. */
START_TEST(adamw_steps) {
    static const char *const scalars[] = {"clip", "lr",           "beta1", "beta2",
                                          "eps",  "weight_decay", "bias1", "bias2"};
    MoeStr s = {0};
    moe_str_append(&s, "%p = param {name = \"p\", init = \"zeros\", decay = 1} : f32[3]\n"
                       "%m = state {name = \"exp_avg\", of = \"p\"} : f32[3]\n"
                       "%v = state {name = \"exp_avg_sq\", of = \"p\"} : f32[3]\n"
                       "%g = input {name = \"g\"} : f32[3]\n");
    for (int i = 0; i < 8; i++)
        moe_str_printf(&s, "%%%s = input {name = \"%s\"} : f32[1]\n", scalars[i], scalars[i]);
    moe_str_append(&s, "%p1, %m1, %v1 = adamw %p, %m, %v, %g, %clip, %lr, %beta1, %beta2, %eps, "
                       "%weight_decay, %bias1, %bias2 : f32[3], f32[3], f32[3]\n"
                       "assign %p, %p1\nassign %m, %m1\nassign %v, %v1\n"
                       "output %p1 {name = \"p1\"}\noutput %m1 {name = \"m1\"}\n"
                       "output %v1 {name = \"v1\"}\noutput %p {name = \"p0\"}\n");
    Rig r = open_rig(moe_str_c(&s));
    moe_str_free(&s);
    give_wave(&r, "p", 3, 0.37, 1.1);
    for (int step = 1; step <= 2; step++) {
        const double b1 = 0.9, b2 = 0.95;
        const double values[] = {
            0.5, 0.01, b1, b2, 1e-8, 0.1, 1 - pow(b1, step), 1 - pow(b2, step)};
        for (int i = 0; i < 8; i++)
            give_f(&r, scalars[i], 1, &values[i]);
        if (step == 1)
            give_wave(&r, "g", 3, 0.31, 0.5);
        else
            give_wave(&r, "g", 3, 0.77, 0.1);
        ok(moe_eval_run(r.ev));
        if (step == 1)
            expect_f(&r, "p1", 3, F(0.88031615311854, 0.983929425703937, 0.953019013378493));
        moe_eval_commit(r.ev);
    }
    expect_f(&r, "p0", 3, F(0.88031615311854, 0.983929425703937, 0.953019013378493));
    expect_f(&r, "p1", 3, F(0.871263581003119, 0.972941852446604, 0.942065293734071));
    expect_f(&r, "m1", 3, F(0.0265658200695305, 0.0708093696979317, 0.0903848389639014));
    expect_f(&r, "v1", 3, F(0.00285403894740016, 0.0135320129922971, 0.0220611282219345));
    close_rig(&r);
}
END_TEST

/* Within a run every read of a param sees its old value: two params can swap. */
START_TEST(assign_swaps) {
    Rig r = open_rig(
        "%a = param {name = \"a\", init = \"ones\", decay = 0} : f32[1]\n"
        "%b = param {name = \"b\", init = \"ones\", decay = 0} : f32[1]\n"
        "assign %a, %b\nassign %b, %a\noutput %a {name = \"a\"}\noutput %b {name = \"b\"}\n");
    give_f(&r, "a", 1, F(1));
    give_f(&r, "b", 1, F(2));
    ok(moe_eval_run(r.ev));
    moe_eval_commit(r.ev);
    ok(moe_eval_run(r.ev));
    expect_f(&r, "a", 1, F(2));
    expect_f(&r, "b", 1, F(1));
    close_rig(&r);
}
END_TEST

/* ---- errors ---- */

START_TEST(bad_data_is_named) {
    static const char body[] =
        "%t = input {name = \"t\"} : f32[3, 2]\n"
        "%tok = input {name = \"tok\"} : segs<1, 2>\n"
        "%ids = input {name = \"ids\"} : i32[r<=4 @%tok]\n"
        "%x = embedding %t, %ids : f32[r<=4 @%tok, 2]\noutput %x {name = \"x\"}\n";
    Rig r = open_rig(body);
    expect_error(&r, "%t = input", "no data");
    give_f(&r, "t", 6, F(1, 2, 3, 4, 5, 6));
    give_i(&r, "ids", 2, I(0, 3));
    give_i(&r, "tok", 3, I(1, 1, 2));
    expect_error(&r, "%tok = input", "starts at 0");
    give_i(&r, "tok", 3, I(0, 2, 1));
    expect_error(&r, "%tok = input", "decreases at entry 2");
    give_i(&r, "tok", 3, I(0, 2, 5));
    expect_error(&r, "%ids = input", "exceed the capacity 4");
    give_i(&r, "tok", 3, I(0, 2, 3));
    expect_error(&r, "'ids' was given 2", "3");
    give_i(&r, "tok", 3, I(0, 2, 2));
    expect_error(&r, "embedding %t, %ids", "token id 3 at position 1 is outside 0..2");
    give_i(&r, "ids", 2, I(-1, 0));
    expect_error(&r, "embedding", "token id -1");
    give_i(&r, "ids", 2, I(2, 0));
    ok(moe_eval_run(r.ev)); /* an interpreter survives its errors */
    expect_f(&r, "x", 4, F(5, 6, 1, 2));
    MoeStatus st = moe_eval_set_f(r.ev, input_named(&r, "t"), F(1), 1);
    ck_assert(st && strstr(moe_status_message(st), "takes 6 elements, got 1"));
    moe_status_free(st);
    st = moe_eval_set_i(r.ev, input_named(&r, "t"), I(1), 1);
    ck_assert(st && strstr(moe_status_message(st), "holds f32"));
    moe_status_free(st);
    close_rig(&r);
}
END_TEST

/* Ids, positions and labels out of range, in each op that reads some. */
START_TEST(bad_indices) {
    static const struct {
        const char *line, *error;
    } cases[] = {{"%0 = take %x, %i : f32[2, 2]\n", "id 3 at position 2"},
                 {"%0 = put %x2, %i {cols = 3} : f32[2, 3]\n", "id 3 at position 2"},
                 {"%0 = linear_cross_entropy %x, %x, %l : f32[2, 1]\n", "label 2 at position 1"}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        MoeStr s = {0};
        moe_str_printf(
            &s,
            "%%x = input {name = \"x\"} : f32[2, 3]\n%%x2 = input {name = \"x2\"} : f32[2, 2]\n"
            "%%i = input {name = \"i\"} : i32[2, 2]\n%%l = input {name = \"l\"} : i32[2]\n"
            "%soutput %%0 {name = \"y\"}\n",
            cases[c].line);
        Rig r = open_rig(moe_str_c(&s));
        moe_str_free(&s);
        give_f(&r, "x", 6, F(1, 2, 3, 4, 5, 6));
        give_f(&r, "x2", 4, F(1, 2, 3, 4));
        give_i(&r, "i", 4, I(0, 2, 3, 1));
        give_i(&r, "l", 2, I(0, 2));
        expect_error(&r, cases[c].error, "= ");
        close_rig(&r);
    }
    Rig r =
        open_rig("%x = input {name = \"x\"} : f32[1, 2]\n%i = input {name = \"i\"} : i32[1, 2]\n"
                 "%0 = put %x, %i {cols = 3} : f32[1, 3]\noutput %0 {name = \"y\"}\n");
    give_f(&r, "x", 2, F(1, 2));
    give_i(&r, "i", 2, I(1, 1));
    expect_error(&r, "stands twice", "put");
    close_rig(&r);
}
END_TEST

START_TEST(bad_plans) {
    Rig r = open_rig(
        "%tok = input {name = \"tok\"} : segs<1, 1>\n%seg = input {name = \"seg\"} : segs<2, 1>\n"
        "%x = input {name = \"x\"} : f32[r<=2 @%tok, 1]\n"
        "%src = input {name = \"src\"} : i32[r<=2 @%seg]\n"
        "%inv = input {name = \"inv\"} : i32[r<=2 @%tok, 1]\n"
        "%0 = dispatch %x, %src, %inv : f32[r<=2 @%seg, 1]\noutput %0 {name = \"y\"}\n"
        "%a, %b, %c = route_plan %inv {experts = 2} : segs<2, 1>, i32[r<=2 @%a], "
        "i32[r<=2 @%tok, 1]\n");
    give_i(&r, "tok", 2, I(0, 2));
    give_i(&r, "seg", 3, I(0, 1, 2));
    give_f(&r, "x", 2, F(1, 2));
    give_i(&r, "src", 2, I(0, 2));
    give_i(&r, "inv", 2, I(0, 1));
    expect_error(&r, "src 2 at position 1", "dispatch");
    give_i(&r, "src", 2, I(0, 1));
    give_i(&r, "inv", 2, I(0, -5));
    expect_error(&r, "inv -5 at position 1", "dispatch");
    give_i(&r, "inv", 2, I(1, 0));
    expect_error(&r, "row 0 comes from position 0, but inv sends that to row 1", "dispatch");
    give_i(&r, "inv", 2, I(0, 1));
    give_i(&r, "seg", 3, I(0, 1, 1));
    give_i(&r, "src", 1, I(0));
    expect_error(&r, "src has 1 rows, inv 2", "dispatch");
    close_rig(&r);
    r = open_rig("%tok = input {name = \"tok\"} : segs<1, 1>\n"
                 "%i = input {name = \"i\"} : i32[r<=2 @%tok, 1]\n"
                 "%a, %b, %c = route_plan %i {experts = 2} : segs<2, 1>, i32[r<=2 @%a], "
                 "i32[r<=2 @%tok, 1]\n");
    give_i(&r, "tok", 2, I(0, 1));
    give_i(&r, "i", 1, I(2));
    expect_error(&r, "expert id 2 at position 0", "route_plan");
    close_rig(&r);
}
END_TEST

/* ---- the case table ---- */

/* One rank cannot run it: tests/unit/eval_ranks.c does. */
static bool between_ranks(int op) {
    return moe_op_info((MoeOpcode)op)->kind == MOE_KIND_COMM;
}

START_TEST(every_op_has_cases) {
    for (int op = 0; op < MOE_N_OPS; op++)
        ck_assert_msg(between_ranks(op) || moe_op_cases((MoeOpcode)op, NULL, 0) > 0,
                      "%s has no case", moe_op_info((MoeOpcode)op)->name);
}
END_TEST

static int by_id(const void *a, const void *b) {
    return strcmp(((const MoeOpCase *)a)->id, ((const MoeOpCase *)b)->id);
}

START_TEST(case_ids_are_unique) {
    size_t n;
    MoeOpCase *cases = moe_op_cases_all("", &n);
    qsort(cases, n, sizeof *cases, by_id);
    for (size_t i = 1; i < n; i++)
        ck_assert_msg(strcmp(cases[i - 1].id, cases[i].id) != 0, "two cases %s", cases[i].id);
    free(cases);
}
END_TEST

/* A copy of a tensor as a kernel would have left it: rounded to its dtype. */
static MoeTensor through_bytes(const MoeTensor *t, MoeArena *a) {
    MoeTensor got = *t;
    void *bytes = moe_arena_alloc(a, moe_tensor_bytes(t) + 1);
    if (t->f)
        got.f = MOE_NEW_N(a, double, t->n);
    else
        got.i = MOE_NEW_N(a, int32_t, t->n);
    moe_tensor_pack(t, bytes);
    moe_tensor_unpack(bytes, &got);
    return got;
}

/* The text of a case parses, verifies and prints back to itself. */
static void check_text(const MoeOpCase *c, const MoeModule *m) {
    MoeStr once = {0}, twice = {0};
    moe_print(m, &once);
    MoeDiag d = {.file = c->id, .source = moe_str_c(&once)};
    MoeModule *again = moe_parse(&d);
    ck_assert_msg(again != NULL, "%s", moe_str_c(&d.text));
    moe_print(again, &twice);
    ck_assert_str_eq(moe_str_c(&once), moe_str_c(&twice));
    moe_diag_free(&d);
    moe_str_free(&once);
    moe_str_free(&twice);
    moe_module_destroy(again);
}

/* Every case builds, fills, runs, prints and parses; its results pass their own check once rounded
 * to their dtypes, and fail it when an element is clearly off. */
START_TEST(case_runs) {
    size_t n = moe_op_cases((MoeOpcode)_i, NULL, 0);
    MoeOpCase *cases = calloc(n, sizeof *cases);
    moe_op_cases((MoeOpcode)_i, cases, n);
    size_t checked = 0;
    for (size_t k = 0; k < n; k++) {
        MoeCaseRun run;
        MoeStr why = {0};
        ok(moe_case_run_open(&cases[k], 1, &run));
        check_text(&cases[k], run.module);
        for (int r = 0; moe_case_want(&run, r); r++) {
            const MoeTensor *want = moe_case_want(&run, r);
            MoeTensor got = through_bytes(want, run.arena);
            ck_assert_msg(moe_case_check(&cases[k], r, want, &got, &why), "%s: %s", cases[k].id,
                          moe_str_c(&why));
            double top = 0;
            for (int64_t i = 0; want->f && i < want->n; i++) {
                if (!isfinite(want->f[i]))
                    ck_abort_msg("%s: y%d[%lld] = %g", cases[k].id, r, (long long)i, want->f[i]);
                top = fmax(top, fabs(want->f[i]));
            }
            if (!want->n)
                continue;
            if (got.f)
                got.f[want->n / 2] += 0.05 * (top + 0.01);
            else
                got.i[want->n / 2] += 1;
            ck_assert_msg(!moe_case_check(&cases[k], r, want, &got, &why), "%s: y%d is not checked",
                          cases[k].id, r);
            checked++;
        }
        moe_str_free(&why);
        moe_case_run_close(&run);
    }
    ck_assert(checked > 0 || between_ranks(_i));
    free(cases);
}
END_TEST

int main(void) {
    Suite *s = suite_create("eval");
    TCase *ops = tcase_create("ops"), *errors = tcase_create("errors"),
          *table = tcase_create("cases");
    tcase_add_test(ops, elementwise_broadcasts);
    tcase_add_test(ops, elementwise_unary);
    tcase_add_test(ops, integers_wrap_and_convert);
    tcase_add_test(ops, bf16_rounds_once);
    tcase_add_test(ops, rounding_follows_types);
    tcase_add_test(ops, broadcast_forms);
    tcase_add_test(ops, row_ops);
    tcase_add_test(ops, norms);
    tcase_add_test(ops, matmuls);
    tcase_add_test(ops, plain_weight_grad_spans_shards);
    tcase_add_test(ops, routing);
    tcase_add_test(ops, embeddings);
    tcase_add_test(ops, rope);
    tcase_add_test(ops, attention);
    tcase_add_test(ops, cross_entropy);
    tcase_add_test(ops, adamw_steps);
    tcase_add_test(ops, assign_swaps);
    tcase_add_test(errors, bad_data_is_named);
    tcase_add_test(errors, bad_indices);
    tcase_add_test(errors, bad_plans);
    tcase_add_test(table, every_op_has_cases);
    tcase_add_test(table, case_ids_are_unique);
    tcase_add_loop_test(table, case_runs, 0, MOE_N_OPS);
    tcase_set_timeout(table, 120);
    suite_add_tcase(s, ops);
    suite_add_tcase(s, errors);
    suite_add_tcase(s, table);
    return moe_check_main(s);
}
