/* Trying the library's algorithms on one product: on the buffers of the plan's own step, which nothing needs between runs. See
 * cuda/blaslt.h.
 *
 * An algorithm may be used if a row of the result has the same bits wherever it stands, among whatever other rows, however many there
 * are: ranks and micro-batches share rows out in different ways, and must not change a bit (docs/NUMBERS.md). So the operand's rows
 * repeat a few random ones, and the rows of each result are compared with those of the first. Nothing of split-K, which sums in another
 * order with another number of parts, is tried at all. */
#include "runtime/cuda/blaslt.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PERIOD = 61, MAX_TRIES = 32, MAX_CANDIDATES = 24, MOST_TURNS = 20 };
#define TIMED_SECONDS 0.01

/* One product under trial. */
typedef struct {
    MoeDeviceCuda *d;
    size_t product;
    const MoeDenseProduct *of;
    const MoeCudaProduct *run;
    const MoePlanStep *s;
    const MoeCudaLaunch *kernel;
    MoeCudaDense at;          /* addresses, and the layouts of tries[0] */
    int64_t tries[MAX_TRIES]; /* rows, the most first */
    MoeCudaDense each[MAX_TRIES];
    int n_tries;
    int64_t period, row_bytes; /* different rows of the operand; of a row of the result */
    bool parameter;            /* b is one */
    MoeCuPtr want, flag;
    float *emitted, *plain; /* [period][n]: the result by the plan's kernel; without c */
} Trial;

/* ---- memory and numbers ---- */

enum { PLAIN, MIRROR_COLS, MIRROR_ROWS, MIRROR_SIGNED }; /* base/cuda_abi.h */

static MoeStatus fill(const Trial *t, MoeCuPtr at, int64_t rows, int64_t cols, int64_t period,
                      int seed, MoePlanDtype dtype, int mirror) {
    uint64_t bufs[] = {at,
                       (uint64_t)rows,
                       (uint64_t)cols,
                       (uint64_t)period,
                       (uint64_t)seed,
                       dtype == MOE_PLAN_BF16,
                       (uint64_t)mirror};
    return moe_cuda_runtime(t->d, MOE_RT_ID_moe_rt_rows_fill, t->d->stream, rows * cols, bufs, 7);
}

/* The result's memory before a launch: what is added, where that lies there, else no number. */
static MoeStatus prepare(const Trial *t) {
    int64_t rows = t->tries[0];
    if (t->at.at_c == t->at.at_out)
        return fill(t, t->at.at_c, rows, t->of->shape.n, t->period, 3, MOE_PLAN_F32, PLAIN);
    return moe_cuda_check(
        t->d, t->d->cu->set_bytes(t->at.at_out, 0xff, (size_t)(rows * t->row_bytes), t->d->stream),
        "cuMemsetD8Async of a product");
}

/* The first `period` rows of the result, as floats. */
static MoeStatus fetch(const Trial *t, float *out) {
    size_t n = (size_t)(t->period * t->of->shape.n), bytes = (size_t)(t->period * t->row_bytes);
    MOE_TRY(moe_cuda_check(t->d, t->d->cu->copy_out(out, t->at.at_out, bytes, t->d->stream),
                           "copying a product"));
    MOE_TRY(moe_cuda_wait(t->d));
    const char *halves = (const char *)out;
    for (size_t i = n; t->of->shape.out_dtype == MOE_PLAN_BF16 && i-- > 0;) {
        uint16_t half;
        memcpy(&half, halves + i * sizeof half, sizeof half);
        uint32_t word = (uint32_t)half << 16; /* goes behind what is read later */
        memcpy(&out[i], &word, sizeof word);
    }
    return NULL;
}

/* All rows of the kernel's table are live. */
static MoeStatus set_live(const Trial *t, const MoeExec *x) {
    int buf = t->of->shape.live;
    if (buf < 0)
        return NULL;
    const MoePlanProgram *g = &x->plan->programs[t->of->program];
    int64_t n = g->values[t->s->buf_value[buf]].bytes / 4;
    int32_t *table = calloc((size_t)n, sizeof *table);
    if (!table)
        return moe_error(MOE_E_NOMEM, "no memory for a table of rows");
    for (int64_t i = 1; i < n; i++)
        table[i] = (int32_t)t->tries[0];
    MoeStatus st = moe_cuda_check(
        t->d, t->d->cu->copy_in(t->kernel->args[1 + buf], table, (size_t)n * 4, t->d->stream),
        "copying a table of rows");
    if (!st)
        st = moe_cuda_wait(t->d);
    free(table);
    return st;
}

/* ---- opening ---- */

/* The plan's rows, and numbers that end tiles early, late and not at all. */
static void list_tries(Trial *t) {
    static const int64_t odd[] = {1, 2, 3, 8, 16, 17, 31, 64, 100, 127, 128, 129, 257, 1000};
    int64_t most = t->of->shape.rows;
    for (int i = 0; i < t->of->n_rows; i++)
        t->tries[t->n_tries++] = t->of->rows[i];
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++)
        if (odd[i] < most && t->n_tries < MAX_TRIES)
            t->tries[t->n_tries++] = odd[i];
    if (most > 1 && t->n_tries < MAX_TRIES)
        t->tries[t->n_tries++] = most - 1;
}

/* Whether b is the model's own memory: its numbers are to stay. */
static bool is_parameter(const Trial *t, const MoeExec *x) {
    const MoePlanProgram *g = &x->plan->programs[t->of->program];
    return g->values[t->s->buf_value[t->of->shape.b]].kind == MOE_VALUE_BUFFER;
}

/* nothing: sums of k terms that cancel, so that what is left is rounding. */
static MoeStatus fill_factors(const Trial *t, bool nothing) {
    const MoePlanDense *p = &t->of->shape;
    int64_t rows = p->transposed ? p->n : p->k, cols = p->transposed ? p->k : p->n;
    int mirror = p->transposed ? MIRROR_COLS : MIRROR_ROWS;
    MOE_TRY(fill(t, t->at.at_a, p->rows, p->k, t->period, 1, p->dtype,
                 nothing ? MIRROR_SIGNED : PLAIN));
    return t->parameter
               ? NULL
               : fill(t, t->at.at_b, rows, cols, rows, 2, p->dtype, nothing ? mirror : PLAIN);
}

static MoeStatus fill_operands(const Trial *t, const MoeExec *x) {
    const MoePlanDense *p = &t->of->shape;
    MOE_TRY(fill_factors(t, false));
    if (t->at.at_c && t->at.at_c != t->at.at_out)
        MOE_TRY(fill(t, t->at.at_c, p->rows, p->n, t->period, 3, MOE_PLAN_F32, PLAIN));
    return set_live(t, x);
}

static void trial_close(Trial *t) {
    for (int i = 0; i < t->n_tries; i++) {
        moe_cuda_blaslt_layout_free(t->d, t->each[i].a);
        moe_cuda_blaslt_layout_free(t->d, t->each[i].out);
    }
    if (t->want)
        (void)t->d->cu->mem_free(t->want);
    if (t->flag)
        (void)t->d->cu->mem_free(t->flag);
    free(t->emitted);
    free(t->plain);
}

static MoeStatus launch_kernel(const Trial *t) {
    const MoePlanShape *s = &t->s->shape;
    return moe_cuda_check(t->d,
                          t->d->cu->launch(t->kernel->function, (unsigned)s->grid, 1, 1,
                                           (unsigned)s->block, 1, 1, (unsigned)s->shared_bytes,
                                           t->d->stream, t->kernel->params, NULL),
                          "launching step %s (%s)", t->s->name, t->s->kernel);
}

/* Odd, so that a row comes to stand at other places of a tile, and at most half of the rows, so that each comes twice. */
static int64_t period_of(int64_t rows) {
    int64_t half = rows / 2 > PERIOD ? PERIOD : rows / 2;
    return half < 1 ? 1 : half - (half % 2 == 0);
}

static MoeStatus trial_open(MoeDeviceCuda *d, MoeExec *x, size_t i, Trial *t) {
    const MoeDenseProduct *of = &d->blaslt->products[i];
    const MoePlanDense *p = &of->shape;
    *t = (Trial){.d = d, .product = i, .of = of, .run = &d->blaslt->run[i]};
    t->s = &x->plan->programs[of->program].steps[of->step];
    t->kernel = &d->programs[of->program].launches[of->step];
    t->period = period_of(p->rows);
    t->row_bytes = p->n * (p->out_dtype == MOE_PLAN_BF16 ? 2 : 4);
    const uint64_t *args = t->kernel->args + 1;
    t->at = (MoeCudaDense){.product = t->run,
                           .at_a = args[p->a],
                           .at_b = args[p->b],
                           .at_c = p->c >= 0 ? args[p->c] : 0,
                           .at_out = args[p->out]};
    t->parameter = is_parameter(t, x);
    list_tries(t);
    for (int k = 0; k < t->n_tries; k++) {
        t->each[k] = t->at;
        MOE_TRY(moe_cuda_blaslt_layouts(d, of, t->tries[k], &t->each[k].a, &t->each[k].out));
    }
    size_t n = (size_t)(t->period * p->n);
    t->emitted = malloc(n * sizeof *t->emitted);
    t->plain = malloc(n * sizeof *t->plain);
    if (!t->emitted || !t->plain)
        return moe_error(MOE_E_NOMEM, "no memory for rows of a product");
    MOE_TRY(moe_cuda_table(d, t->period * t->row_bytes, "rows of a product", &t->want));
    MOE_TRY(moe_cuda_table(d, sizeof(int32_t), "rows of a product", &t->flag));
    MOE_TRY(fill_operands(t, x));
    MOE_TRY(prepare(t));
    MOE_TRY(launch_kernel(t));
    return fetch(t, t->emitted);
}

/* ---- whether an algorithm may be used ---- */

/* Whether it can run with these rows at all, in the workspace. */
static bool fits(const Trial *t, const MoeLtAlgo *algo, int k) {
    const MoeCudaBlasLt *b = t->d->blaslt;
    const MoeCudaDense *s = &t->each[k];
    MoeLtFound found = {.state = MOE_LT_SUCCESS};
    MoeLtResult r =
        b->lt->algo_check(b->handle, t->run->desc, t->run->b, s->a, s->out, s->out, algo, &found);
    return r == MOE_LT_SUCCESS && found.workspace_bytes <= (size_t)MOE_BLASLT_WORKSPACE;
}

/* Launches try k; *ran false: the library will not. */
static MoeStatus launch(const Trial *t, const MoeLtAlgo *algo, int k, bool add, bool *ran) {
    MOE_TRY(prepare(t));
    *ran = moe_cuda_blaslt_matmul(t->d, &t->each[k], algo, add, t->at.at_out) == MOE_LT_SUCCESS;
    return NULL;
}

static MoeStatus compare(const Trial *t, int k) {
    uint64_t bufs[] = {t->at.at_out,        t->want, (uint64_t)t->tries[k], (uint64_t)t->row_bytes,
                       (uint64_t)t->period, t->flag};
    return moe_cuda_runtime(t->d, MOE_RT_ID_moe_rt_rows_differ, t->d->stream,
                            t->tries[k] * t->row_bytes / 2, bufs, 6);
}

/* The rows of all tries, each twice, against the first's. */
static MoeStatus check_rows(const Trial *t, const MoeLtAlgo *algo, bool *good) {
    int32_t differ = 0;
    const MoeCudaDriver *cu = t->d->cu;
    bool add = t->at.at_c != 0;
    MOE_TRY(launch(t, algo, 0, add, good));
    if (!*good)
        return NULL;
    MOE_TRY(moe_cuda_check(
        t->d, cu->copy(t->want, t->at.at_out, (size_t)(t->period * t->row_bytes), t->d->stream),
        "copying rows of a product"));
    MOE_TRY(moe_cuda_check(t->d, cu->set_bytes(t->flag, 0, sizeof differ, t->d->stream),
                           "cuMemsetD8Async"));
    for (int k = 0; k < 2 * t->n_tries && *good; k++) {
        MOE_TRY(launch(t, algo, k / 2, add, good));
        if (*good)
            MOE_TRY(compare(t, k / 2));
    }
    MOE_TRY(moe_cuda_check(t->d, cu->copy_out(&differ, t->flag, sizeof differ, t->d->stream),
                           "copying a flag"));
    MOE_TRY(moe_cuda_wait(t->d));
    *good = *good && !differ;
    return NULL;
}

/* Near what the plan's kernel computes: the same product, with sums no coarser (for f32: not TF32's, whose products are off by a
 * thousandth). */
static bool is_near(const Trial *t, const float *have) {
    size_t n = (size_t)(t->period * t->of->shape.n);
    bool rounded = t->of->shape.out_dtype == MOE_PLAN_BF16;
    double sum = 0, part = t->of->shape.dtype == MOE_PLAN_F32 ? 1e-4 : 2e-3;
    for (size_t i = 0; i < n; i++)
        sum += (double)t->emitted[i] * t->emitted[i];
    double slack = part * sqrt(sum / (double)n);
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)have[i] - t->emitted[i]) <=
              slack + (rounded ? fabs((double)t->emitted[i]) / 64 : 0)))
            return false;
    return true;
}

/* Where c is added, the sum is one addition in f32 of the product's f32. */
static MoeStatus check_sum(const Trial *t, const MoeLtAlgo *algo, const float *with, bool *good) {
    size_t n = (size_t)(t->period * t->of->shape.n);
    float *c = malloc(n * sizeof *c);
    if (!c)
        return moe_error(MOE_E_NOMEM, "no memory for rows of a product");
    MoeStatus st = prepare(t); /* c, also where it lies in the result */
    if (!st)
        st = moe_cuda_check(t->d, t->d->cu->copy_out(c, t->at.at_c, n * sizeof *c, t->d->stream),
                            "copying rows of a product");
    if (!st)
        st = moe_cuda_wait(t->d);
    if (!st)
        st = launch(t, algo, 0, false, good);
    if (!st && *good)
        st = fetch(t, t->plain);
    for (size_t i = 0; i < n && !st && *good; i++) {
        float sum = t->plain[i] + c[i];
        *good = memcmp(&sum, &with[i], sizeof sum) == 0;
    }
    free(c);
    return st;
}

static MoeStatus check(const Trial *t, const MoeLtAlgo *algo, bool *good) {
    *good = moe_cuda_blaslt_allowed(t->d, t->product, algo);
    for (int k = 0; k < t->n_tries && *good; k++)
        *good = fits(t, algo, k);
    if (!*good)
        return NULL;
    MOE_TRY(check_rows(t, algo, good));
    if (*good && t->of->shape.out_dtype == MOE_PLAN_BF16 && !t->parameter) {
        MOE_TRY(
            fill_factors(t, true)); /* rounded to bf16, other sums hide nearly all that they do */
        MOE_TRY(check_rows(t, algo, good));
        MOE_TRY(fill_factors(t, false));
    }
    if (!*good)
        return NULL;
    float *with = malloc((size_t)(t->period * t->of->shape.n) * sizeof *with);
    if (!with)
        return moe_error(MOE_E_NOMEM, "no memory for rows of a product");
    MoeStatus st = launch(t, algo, 0, t->at.at_c != 0, good);
    if (!st && *good)
        st = fetch(t, with);
    *good = !st && *good && is_near(t, with);
    if (*good && t->at.at_c)
        st = check_sum(t, algo, with, good);
    free(with);
    return st;
}

/* ---- how fast ---- */

/* Seconds of `turns` launches of the algorithm (NULL: the plan's kernel) with the most rows. */
static MoeStatus time_turns(const Trial *t, const MoeLtAlgo *algo, int turns, double *out) {
    MoeDeviceCuda *d = t->d;
    float ms = 0;
    MOE_TRY(moe_cuda_check(d, d->cu->event_record(d->begin, d->stream), "cuEventRecord"));
    for (int i = 0; i < turns; i++)
        if (!algo)
            MOE_TRY(launch_kernel(t));
        else
            MOE_TRY(moe_cublaslt_status(
                moe_cuda_blaslt_matmul(d, &t->each[0], algo, t->at.at_c != 0, t->at.at_out),
                "product %s", t->of->key));
    MOE_TRY(moe_cuda_check(d, d->cu->event_record(d->end, d->stream), "cuEventRecord"));
    MOE_TRY(moe_cuda_check(d, d->cu->event_synchronize(d->end), "timing product %s", t->of->key));
    MOE_TRY(moe_cuda_check(d, d->cu->event_ms(&ms, d->begin, d->end), "cuEventElapsedTime"));
    *out = ms * 1e-3;
    return NULL;
}

/* FLOP/s, over enough launches for the clock. */
static MoeStatus rate_of(const Trial *t, const MoeLtAlgo *algo, double *out) {
    const MoePlanDense *p = &t->of->shape;
    double once, all;
    MOE_TRY(prepare(t));
    MOE_TRY(time_turns(t, algo, 1, &once)); /* the first is slow in any case */
    MOE_TRY(time_turns(t, algo, 1, &once));
    int turns = once > 0 ? (int)fmin(MOST_TURNS, TIMED_SECONDS / once) : MOST_TURNS;
    all = once;
    if (turns > 1)
        MOE_TRY(time_turns(t, algo, turns, &all));
    double one = turns > 1 ? all / turns : once;
    *out = 2.0 * (double)p->rows * (double)p->n * (double)p->k / fmax(one, 1e-9);
    return NULL;
}

/* ---- all of it ---- */

MoeStatus moe_cuda_blaslt_verify(MoeDeviceCuda *d, MoeExec *x, size_t i, const MoeDenseChoice *c,
                                 bool *out_good) {
    Trial t;
    *out_good = false;
    MoeStatus st = trial_open(d, x, i, &t);
    if (!st)
        st = check(&t, &c->algo, out_good);
    trial_close(&t);
    return st;
}

static MoeStatus measure(const Trial *t, MoeDenseChoice *out) {
    MoeLtAlgo candidates[MAX_CANDIDATES];
    int n = 0;
    MOE_TRY(rate_of(t, NULL, &out->emitted_rate));
    for (int k = 0; k < t->n_tries; k++) /* the choice for other rows may do for all */
        if (k < t->of->n_rows || t->tries[k] == 1 || t->tries[k] == 128)
            MOE_TRY(moe_cuda_blaslt_find(t->d, t->product, &t->each[k], candidates, MAX_CANDIDATES,
                                         &n));
    for (int i = 0; i < n; i++) {
        bool good;
        double rate;
        MOE_TRY(check(t, &candidates[i], &good));
        if (!good)
            continue;
        MOE_TRY(rate_of(t, &candidates[i], &rate));
        if (rate <= out->rate)
            continue;
        out->library = true;
        out->rate = rate;
        out->version = t->d->blaslt->version;
        out->algo = candidates[i];
        moe_cuda_blaslt_config(t->d, &candidates[i], &out->config);
    }
    return NULL;
}

MoeStatus moe_cuda_blaslt_measure(MoeDeviceCuda *d, MoeExec *x, size_t i, MoeDenseChoice *out) {
    Trial t;
    memset(out, 0, sizeof *out);
    MoeStatus st = trial_open(d, x, i, &t);
    if (!st)
        st = measure(&t, out);
    trial_close(&t);
    return st;
}
