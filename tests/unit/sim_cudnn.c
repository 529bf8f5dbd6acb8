/* cuDNN's way of attention on the simulated library (tests/sim): its graphs, forward and backward, against the definition in f64;
 * what the library refuses; what it does wrong on demand. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/half.h"
#include "base/rng.h"
#include "runtime/cuda/cudnn_attn.h"
#include "tests/support/check_main.h"
#include "tests/support/gpu_kernel.h"
#include "tests/support/status_checks.h"

#define GOOD(call) ck_assert_int_eq((call), 0)

static const MoeCudaDriver *cu;
static const MoeCudnn *cudnn;
static MoeCudnnHandle handle;
static MoeCuStream stream;

static void begin(const char *how) {
    OK(moe_gpu_begin("90", &cu));
    setenv("MOE_SIM_CUDNN", how, 1);
    OK(moe_cudnn(&cudnn));
    GOOD(cu->stream_create(&stream, MOE_CU_STREAM_NON_BLOCKING));
    GOOD(cudnn->create(&handle));
    GOOD(cudnn->set_stream(handle, stream));
}

/* ---- device memory ---- */

static MoeCuPtr device(const void *from, size_t bytes) {
    MoeCuPtr p;
    GOOD(cu->mem_alloc(&p, bytes ? bytes : 1));
    if (from)
        GOOD(cu->copy_in(p, from, bytes, stream));
    return p;
}

static void *at(MoeCuPtr p) {
    return (void *)(uintptr_t)p; /* NOLINT: an address of the device */
}

/* bf16 numbers of both signs, their values in f64 too. */
static uint16_t *numbers(size_t n, uint64_t seed, double **values) {
    uint16_t *h = malloc(n * sizeof *h + 1);
    *values = malloc(n * sizeof **values + 1);
    for (size_t i = 0; i < n; i++) {
        h[i] = moe_f32_to_bf16((float)(2 * moe_rng_uniform(seed, 0, i) - 1));
        (*values)[i] = (double)moe_bf16_to_f32(h[i]);
    }
    return h;
}

/* ---- one attention ---- */

typedef struct {
    MoeAttnShape s;
    int64_t batch;
    size_t n_q, n_k, n_rows; /* elements of q, of k, numbers of stats */
    double *q, *k, *v, *d_o; /* what went in */
    MoeCuPtr bq, bk, bv, bdo;
    double *o, *lse, *dq, *dk, *dv; /* what is to come out, in f64 */
} Case;

static double dot(const double *a, const double *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

static bool sees(const MoeAttnShape *s, int64_t query, int64_t key) {
    return key <= query && (!s->window || key > query - s->window);
}

/* The definition (docs/OPS.md); gradients of o as it is stored. */
static void expect(Case *c) {
    const MoeAttnShape *s = &c->s;
    const int64_t d = s->head_dim, w = s->heads * d, kw = s->kv_heads * d,
                  share = s->heads / s->kv_heads;
    for (int64_t t = 0; t < c->batch * s->seq; t++)
        for (int64_t h = 0; h < s->heads; h++) {
            const int64_t from = t / s->seq * s->seq, e = t * w + h * d, kh = h / share * d;
            double sum = 0, into[512] = {0};
            for (int64_t k = from; k < from + s->seq; k++)
                if (sees(s, t, k)) {
                    double p = exp(s->scale * dot(c->q + e, c->k + k * kw + kh, d));
                    sum += p;
                    for (int64_t i = 0; i < d; i++)
                        into[i] += p * c->v[k * kw + kh + i];
                }
            for (int64_t i = 0; i < d; i++)
                c->o[e + i] = into[i] / sum;
            c->lse[t * s->heads + h] = log(sum);
            double by = dot(c->d_o + e, c->o + e, d);
            for (int64_t k = from; k < from + s->seq; k++)
                if (sees(s, t, k)) {
                    double p = exp(s->scale * dot(c->q + e, c->k + k * kw + kh, d)) / sum,
                           ds = p * (dot(c->d_o + e, c->v + k * kw + kh, d) - by) * s->scale;
                    for (int64_t i = 0; i < d; i++) {
                        c->dv[k * kw + kh + i] += p * c->d_o[e + i];
                        c->dq[e + i] += ds * c->k[k * kw + kh + i];
                        c->dk[k * kw + kh + i] += ds * c->q[e + i];
                    }
                }
        }
}

static double *zeros(size_t n) {
    return calloc(n + 1, sizeof(double));
}

static Case make_case(MoeAttnShape s, int64_t batch) {
    Case c = {.s = s, .batch = batch};
    size_t rows = (size_t)(batch * s.seq);
    c.n_q = rows * (size_t)(s.heads * s.head_dim);
    c.n_k = rows * (size_t)(s.kv_heads * s.head_dim);
    c.n_rows = rows * (size_t)s.heads;
    uint16_t *q = numbers(c.n_q, 1, &c.q), *k = numbers(c.n_k, 2, &c.k),
             *v = numbers(c.n_k, 3, &c.v), *d_o = numbers(c.n_q, 4, &c.d_o);
    c.bq = device(q, 2 * c.n_q);
    c.bk = device(k, 2 * c.n_k);
    c.bv = device(v, 2 * c.n_k);
    c.bdo = device(d_o, 2 * c.n_q);
    c.o = zeros(c.n_q);
    c.lse = zeros(c.n_rows);
    c.dq = zeros(c.n_q);
    c.dk = zeros(c.n_k);
    c.dv = zeros(c.n_k);
    expect(&c);
    free(q);
    free(k);
    free(v);
    free(d_o);
    return c;
}

static void near_bf16(const char *what, MoeCuPtr p, const double *want, size_t n, double bound) {
    uint16_t *got = malloc(2 * n);
    double norm = 0, off = 0;
    GOOD(cu->copy_out(got, p, 2 * n, stream));
    for (size_t i = 0; i < n; i++) {
        double g = (double)moe_bf16_to_f32(got[i]);
        HOLD(isfinite(g));
        norm += want[i] * want[i];
        off += (g - want[i]) * (g - want[i]);
    }
    ck_assert_msg(off <= bound * bound * norm + 1e-12, "%s is off by %g of its norm", what,
                  sqrt(off / (norm > 0 ? norm : 1)));
    free(got);
}

/* stats are [batch, heads, seq]. */
static void near_stats(const Case *c, MoeCuPtr p) {
    float *got = malloc(4 * c->n_rows);
    GOOD(cu->copy_out(got, p, 4 * c->n_rows, stream));
    for (int64_t t = 0; t < c->batch * c->s.seq; t++)
        for (int64_t h = 0; h < c->s.heads; h++) {
            double g = (double)got[(t / c->s.seq * c->s.heads + h) * c->s.seq + t % c->s.seq];
            HOLD(fabs(g - c->lse[t * c->s.heads + h]) < 1e-4);
        }
    free(got);
}

static MoeStatus run_graph(const Case *c, MoeCudnnForm form, MoeCudnnAttnBufs *b) {
    MoeCudnnAttn a;
    MoeCudnnDesc pack = NULL;
    MoeStatus st = moe_cudnn_attn_plan(cudnn, &c->s, form, c->batch, 90,
                                       (MoeCudnnPlace){.handle = handle}, &a);
    if (!st) {
        b->workspace = at(device(NULL, (size_t)a.plan.workspace));
        st = moe_cudnn_attn_bind(&a, b, &pack);
    }
    if (!st)
        st = moe_cudnn_attn_run(&a, handle, pack);
    GOOD(cu->stream_synchronize(stream));
    moe_cudnn_attn_free(&a);
    return st;
}

static void check_case(MoeAttnShape s, int64_t batch) {
    Case c = make_case(s, batch);
    MoeCuPtr o = device(NULL, 2 * c.n_q), stats = device(NULL, 4 * c.n_rows);
    MoeCudnnAttnBufs b = {
        .q = at(c.bq), .k = at(c.bk), .v = at(c.bv), .o = at(o), .stats = at(stats)};
    OK(run_graph(&c, MOE_CUDNN_FORWARD, &b));
    near_bf16("o", o, c.o, c.n_q, 0x1p-7);
    near_stats(&c, stats);
    for (MoeCudnnForm f = MOE_CUDNN_GRAD_WHOLE; f < MOE_N_CUDNN_FORMS; f++) {
        MoeCuPtr dq = device(NULL, 2 * c.n_q), dk = device(NULL, 2 * c.n_k),
                 dv = device(NULL, 2 * c.n_k);
        b.d_o = at(c.bdo);
        b.dq = at(dq);
        b.dk = at(dk);
        b.dv = at(dv);
        b.sums = at(device(NULL, 4 * c.n_rows));
        b.dq_sums = at(device(NULL, 4 * c.n_q));
        OK(run_graph(&c, f, &b));
        near_bf16("dq", dq, c.dq, c.n_q, 0x1p-6);
        near_bf16("dk", dk, c.dk, c.n_k, 0x1p-6);
        near_bf16("dv", dv, c.dv, c.n_k, 0x1p-6);
    }
}

START_TEST(against_the_definition) {
    static const struct {
        MoeAttnShape s;
        int64_t batch;
    } cases[] = {
        {{4, 4, 16, 12, 0, 0.25f}, 3},
        {{4, 2, 64, 33, 0, 0.125f}, 2}, /* two query heads a key head; an odd length */
        {{6, 2, 8, 65, 16, 0.35f}, 2},  /* a window */
        {{2, 1, 128, 40, 7, 0.09f}, 1},
        /* those of the op suite with heads of a multiple of 8 (tests/support/op_cases_model.c) */
        {{1, 1, 8, 1, 0, 0.35f}, 1},
        {{4, 1, 8, 7, 0, 0.35f}, 3},
        {{4, 2, 24, 17, 0, 0.2f}, 2},
        {{4, 4, 16, 64, 0, 0.25f}, 1},
        {{2, 1, 24, 129, 1, 0.2f}, 1},
        {{3, 1, 64, 130, 64, 0.125f}, 1},
        {{4, 2, 8, 9, 3, 0.35f}, 2},
        {{8, 4, 32, 48, 0, 0.18f}, 2},
        {{2, 1, 128, 150, 40, 0.09f}, 1},
        {{3, 1, 24, 1, 0, 0.2f}, 2}};
    begin("on");
    check_case(cases[_i].s, cases[_i].batch);
}
END_TEST

/* ---- what is refused ---- */

START_TEST(strict) {
    MoeCudnnBuild b;
    const int64_t dims[4] = {1, 1, 4, 4}, none[4] = {1, 1, 0, 4};
    begin("on");
    moe_cudnn_build_init(cudnn, &b);
    MoeCudnnDesc t = moe_cudnn_new(&b, MOE_CUDNN_TENSOR, "a tensor");
    OK(b.st);
    moe_cudnn_set(&b, t, MOE_CUDNN_ATTR_TENSOR_DATA_TYPE, MOE_CUDNN_TYPE_INT64, 1, dims);
    FAILS(b.st, MOE_E_IO, "BAD_PARAM", "901");
    b.st = NULL;
    moe_cudnn_set(&b, t, MOE_CUDNN_ATTR_POINTWISE_MODE, MOE_CUDNN_TYPE_POINTWISE_MODE, 1, dims);
    FAILS(b.st, MOE_E_IO, "BAD_PARAM");
    b.st = NULL;
    moe_cudnn_finalize(&b, t, "a tensor");
    FAILS(b.st, MOE_E_IO, "lacks attribute");
    b.st = NULL;
    (void)moe_cudnn_tensor(&b, 1, MOE_CUDNN_FLOAT, none, dims);
    FAILS(b.st, MOE_E_IO, "not positive");
    b.st = NULL;
    MoeCudnnTensor x = moe_cudnn_tensor(&b, 2, MOE_CUDNN_FLOAT, dims, dims);
    OK(b.st);
    const int type = MOE_CUDNN_FLOAT;
    moe_cudnn_set(&b, x.desc, MOE_CUDNN_ATTR_TENSOR_DATA_TYPE, MOE_CUDNN_TYPE_DATA_TYPE, 1, &type);
    FAILS(b.st, MOE_E_IO, "finalized");
    b.st = NULL;
    MoeCudnnTensor y = moe_cudnn_pointwise(&b, MOE_CUDNN_EXP, MOE_CUDNN_FLOAT, -1, MOE_CUDNN_FLOAT,
                                           &x, NULL, NULL);
    (void)y;
    (void)moe_cudnn_graph(&b, (MoeCudnnPlace){.handle = handle});
    FAILS(b.st, MOE_E_INPUT, "products");
    b.st = NULL;
    moe_cudnn_build_free(&b);
}
END_TEST

START_TEST(no_engine) {
    const MoeAttnShape s = {2, 1, 16, 8, 0, 0.25f};
    MoeCudnnAttn a;
    begin("nograd");
    OK(moe_cudnn_attn_plan(cudnn, &s, MOE_CUDNN_FORWARD, 1, 90, (MoeCudnnPlace){.handle = handle},
                           &a));
    moe_cudnn_attn_free(&a);
    FAILS(moe_cudnn_attn_plan(cudnn, &s, MOE_CUDNN_GRAD_WHOLE, 1, 90,
                              (MoeCudnnPlace){.handle = handle}, &a),
          MOE_E_INPUT, "no engine");
    moe_cudnn_attn_free(&a);
    FAILS(moe_cudnn_attn_plan(cudnn, &s, MOE_CUDNN_GRAD_ORDERED, 1, 80,
                              (MoeCudnnPlace){.handle = handle}, &a),
          MOE_E_INPUT, "sm_80");
    moe_cudnn_attn_free(&a);
}
END_TEST

START_TEST(does_not_run) {
    Case c;
    begin("fail");
    c = make_case((MoeAttnShape){2, 1, 16, 8, 0, 0.25f}, 1);
    MoeCuPtr o = device(NULL, 2 * c.n_q), stats = device(NULL, 4 * c.n_rows);
    MoeCudnnAttnBufs b = {
        .q = at(c.bq), .k = at(c.bk), .v = at(c.bv), .o = at(o), .stats = at(stats)};
    FAILS(run_graph(&c, MOE_CUDNN_FORWARD, &b), MOE_E_IO, "EXECUTION_FAILED", "forward");
}
END_TEST

START_TEST(too_old) {
    OK(moe_gpu_begin("90", &cu));
    setenv("MOE_SIM_CUDNN_VERSION", "90501", 1);
    FAILS(moe_cudnn(&cudnn), MOE_E_IO, "9.5.1", "9.11");
}
END_TEST

int main(void) {
    Suite *s = suite_create("cuDNN's attention, simulated");
    TCase *t = tcase_create("graphs");
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, against_the_definition, 0, 14);
    tcase_add_test(t, strict);
    tcase_add_test(t, no_engine);
    tcase_add_test(t, does_not_run);
    tcase_add_test(t, too_old);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
