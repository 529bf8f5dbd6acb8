/* Trying a form of cuDNN's attention: on the buffers of the plan's own step, which nothing needs between runs. See
 * cuda/cudnn.h.
 *
 * A form may be used if the rows of a sequence have the same bits wherever it stands, among however many others, each time: ranks and
 * micro-batches share sequences out in different ways, and must not change a bit (docs/NUMBERS.md). So all sequences are given the same
 * numbers, and every one's results are compared with the first's, for each number of sequences that the plan has and a few others, twice
 * each. And it must compute what the plan's kernels do, as far as bf16 goes: every row is compared. */
#include "runtime/cuda/cudnn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"

enum { MAX_BATCHES = MOE_ATTN_MAX_BATCHES + 3, MAX_RESULTS = 3, TURNS = 10 };
#define TIMED_SECONDS 0.02
#define NEAR_BF16                                                                                  \
    (1.0 / 64) /* of a row's length: P and dS are rounded to bf16, in another order of sums */
#define NEAR_LSE 1e-3 /* f32 in natural units */

/* A result: rows of the step. */
typedef struct {
    const char *name;
    MoeCuPtr at;
    int64_t cols; /* numbers of a row */
    bool half;    /* bf16 */
    double near;  /* of a row's length; lse: of a number */
} Result;

typedef struct {
    MoeDeviceCuda *d;
    MoeExec *x;
    const MoeAttnKind *k;
    const MoePlanAttn *a;
    MoeExecProgram *g;
    MoeCudnnForm form;
    int64_t batches[MAX_BATCHES];
    int n_batches;
    Result results[MAX_RESULTS];
    int n_results;
    MoeCuPtr want, flag; /* the first sequence's results, one after another */
    int64_t want_bytes;
    float *emitted[MAX_RESULTS], *have; /* [seq][cols] */
} Trial;

/* ---- memory and numbers ---- */

static MoeCuPtr value(const Trial *t, int v) {
    return moe_cuda_address(t->d, t->g->values[v]);
}

static int64_t row_bytes(const Result *r) {
    return r->cols * (r->half ? 2 : 4);
}

/* Numbers in [-1, 1), the same in every sequence. */
static MoeStatus fill(const Trial *t, int v, int64_t cols, int seed, bool half) {
    const uint64_t bufs[] = {value(t, v),
                             (uint64_t)t->a->rows,
                             (uint64_t)cols,
                             (uint64_t)t->a->seq,
                             (uint64_t)seed,
                             half,
                             0};
    return moe_cuda_runtime(t->d, MOE_RT_ID_moe_rt_rows_fill, t->d->stream, t->a->rows * cols, bufs,
                            7);
}

/* All rows of the table are live. */
static MoeStatus set_live(const Trial *t) {
    int64_t n = t->g->plan->values[t->a->values.segs].bytes / 4;
    int32_t *table = calloc((size_t)n, sizeof *table);
    if (!table)
        return moe_error(MOE_E_NOMEM, "no memory for a table of rows");
    for (int64_t i = 1; i < n; i++)
        table[i] = (int32_t)t->a->rows;
    MoeStatus st = moe_cuda_check(
        t->d, t->d->cu->copy_in(value(t, t->a->values.segs), table, (size_t)n * 4, t->d->stream),
        "copying a table of rows");
    if (!st)
        st = moe_cuda_wait(t->d);
    free(table);
    return st;
}

/* What the step reads. The gradient's o and log-sum-exp belong to no forward pass: both ways take them as they are. */
static MoeStatus fill_operands(const Trial *t) {
    const MoePlanAttn *a = t->a;
    const int64_t q = a->heads * a->head_dim, k = a->kv_heads * a->head_dim;
    MOE_TRY(fill(t, a->values.q, q, 1, true));
    MOE_TRY(fill(t, a->values.k, k, 2, true));
    MOE_TRY(fill(t, a->values.v, k, 3, true));
    if (a->grad) {
        MOE_TRY(fill(t, a->values.o, q, 4, true));
        MOE_TRY(fill(t, a->values.lse, a->heads, 5, false));
        MOE_TRY(fill(t, a->values.d_o, q, 6, true));
    }
    return set_live(t);
}

/* Results hold no numbers before a run. */
static MoeStatus spoil(const Trial *t) {
    for (int i = 0; i < t->n_results; i++)
        MOE_TRY(moe_cuda_check(t->d,
                               t->d->cu->set_bytes(t->results[i].at, 0xff,
                                                   (size_t)(t->a->rows * row_bytes(&t->results[i])),
                                                   t->d->stream),
                               "cuMemsetD8Async of attention"));
    return NULL;
}

/* The first sequence of a result, as floats. */
static MoeStatus fetch(const Trial *t, const Result *r, float *out) {
    size_t n = (size_t)(t->a->seq * r->cols);
    MOE_TRY(moe_cuda_check(t->d,
                           t->d->cu->copy_out(out, r->at, n * (r->half ? 2 : 4), t->d->stream),
                           "copying attention"));
    MOE_TRY(moe_cuda_wait(t->d));
    const char *halves = (const char *)out;
    for (size_t i = n; r->half && i-- > 0;) {
        uint16_t h;
        memcpy(&h, halves + i * sizeof h, sizeof h);
        out[i] = moe_bf16_to_f32(h); /* goes behind what is read later */
    }
    return NULL;
}

/* ---- opening ---- */

static void list_batches(Trial *t) {
    static const int64_t few[] = {3, 2, 1};
    for (int i = 0; i < t->k->n_batches; i++)
        t->batches[t->n_batches++] = t->k->batches[i];
    for (size_t i = 0; i < sizeof few / sizeof *few; i++)
        if (few[i] < t->k->batches[0])
            t->batches[t->n_batches++] = few[i];
}

static void list_results(Trial *t) {
    const MoePlanAttn *a = t->a;
    const int64_t q = a->heads * a->head_dim, k = a->kv_heads * a->head_dim;
    if (a->grad) {
        t->results[t->n_results++] = (Result){"dq", value(t, a->values.dq), q, false, NEAR_BF16};
        t->results[t->n_results++] = (Result){"dk", value(t, a->values.dk), k, false, NEAR_BF16};
        t->results[t->n_results++] = (Result){"dv", value(t, a->values.dv), k, false, NEAR_BF16};
    } else {
        t->results[t->n_results++] = (Result){"o", value(t, a->values.o), q, true, NEAR_BF16};
        t->results[t->n_results++] = (Result){"lse", value(t, a->values.lse), a->heads, false, 0};
    }
}

static MoeStatus launch_emitted(const Trial *t) {
    const MoeCudaProgram *c = &t->d->programs[t->k->program];
    for (size_t i = t->k->step; i < t->k->step + (size_t)t->a->steps; i++)
        MOE_TRY(moe_cuda_launch_step(t->d, t->g, c, i));
    return NULL;
}

static void trial_close(Trial *t) {
    if (t->want)
        (void)t->d->cu->mem_free(t->want);
    if (t->flag)
        (void)t->d->cu->mem_free(t->flag);
    for (int i = 0; i < t->n_results; i++)
        free(t->emitted[i]);
    free(t->have);
}

static MoeStatus trial_open(Trial *t) {
    size_t most = 0;
    list_batches(t);
    list_results(t);
    for (int i = 0; i < t->n_results; i++) {
        size_t n = (size_t)(t->a->seq * t->results[i].cols);
        most = n > most ? n : most;
        t->want_bytes += t->a->seq * row_bytes(&t->results[i]);
        t->emitted[i] = malloc(n * sizeof(float));
        if (!t->emitted[i])
            return moe_error(MOE_E_NOMEM, "no memory for rows of attention");
    }
    t->have = malloc(most * sizeof(float));
    if (!t->have)
        return moe_error(MOE_E_NOMEM, "no memory for rows of attention");
    MOE_TRY(moe_cuda_table(t->d, t->want_bytes, "rows of attention", &t->want));
    MOE_TRY(moe_cuda_table(t->d, sizeof(int32_t), "rows of attention", &t->flag));
    MOE_TRY(fill_operands(t));
    MOE_TRY(spoil(t));
    MOE_TRY(launch_emitted(t));
    for (int i = 0; i < t->n_results; i++)
        MOE_TRY(fetch(t, &t->results[i], t->emitted[i]));
    return NULL;
}

/* ---- what came out ---- */

static double length(const float *a, const float *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double v = (double)a[i] - (b ? (double)b[i] : 0);
        sum += v * v;
    }
    return sqrt(sum);
}

/* Every row of the first sequence near the plan's kernels', as parts of its length, and of the usual row's. */
static bool is_near(const Trial *t, const Result *r, const float *want) {
    const int64_t rows = t->a->seq, cols = r->cols;
    double usual = length(want, NULL, rows * cols) / sqrt((double)rows);
    for (int64_t i = 0; i < rows; i++) {
        const float *have = t->have + i * cols, *row = want + i * cols;
        double off = length(have, row, cols);
        if (!(off <= r->near * (length(row, NULL, cols) + usual) +
                         (r->near > 0 ? 1e-6 : NEAR_LSE * sqrt((double)cols))))
            return false;
    }
    return true;
}

static MoeStatus check_near(const Trial *t, bool *good) {
    for (int i = 0; i < t->n_results && *good; i++) {
        MOE_TRY(fetch(t, &t->results[i], t->have));
        *good = is_near(t, &t->results[i], t->emitted[i]);
    }
    return NULL;
}

/* The first sequence's results to `want`. */
static MoeStatus keep_first(const Trial *t) {
    MoeCuPtr to = t->want;
    for (int i = 0; i < t->n_results; i++) {
        size_t n = (size_t)(t->a->seq * row_bytes(&t->results[i]));
        MOE_TRY(moe_cuda_check(t->d, t->d->cu->copy(to, t->results[i].at, n, t->d->stream),
                               "copying rows of attention"));
        to += n;
    }
    return moe_cuda_check(t->d, t->d->cu->set_bytes(t->flag, 0, sizeof(int32_t), t->d->stream),
                          "cuMemsetD8Async");
}

/* `batch` sequences of the results against `want`, in every bit. */
static MoeStatus compare(const Trial *t, int64_t batch) {
    MoeCuPtr want = t->want;
    for (int i = 0; i < t->n_results; i++) {
        const Result *r = &t->results[i];
        const uint64_t bufs[] = {r->at,
                                 want,
                                 (uint64_t)(batch * t->a->seq),
                                 (uint64_t)row_bytes(r),
                                 (uint64_t)t->a->seq,
                                 t->flag};
        MOE_TRY(moe_cuda_runtime(t->d, MOE_RT_ID_moe_rt_rows_differ, t->d->stream,
                                 batch * t->a->seq * row_bytes(r) / 2, bufs, 6));
        want += (MoeCuPtr)(t->a->seq * row_bytes(r));
    }
    return NULL;
}

/* ---- a form ---- */

/* The form over so many sequences, ready to be launched. *good false: cuDNN does not take it. */
static MoeStatus make_run(const Trial *t, int64_t batch, bool *good, MoeCudaAttn *out) {
    MoeStatus st = moe_cudnn_step_prepare(t->d, t->g, t->k->step, t->form, batch, false, out);
    if (!st)
        st = moe_cudnn_step_staging(t->d, out->room.bytes);
    if (!st)
        st = moe_cudnn_step_bind(t->d, out);
    *good = !st;
    if (st && moe_status_code(st) != MOE_E_INPUT && moe_status_code(st) != MOE_E_NOMEM)
        return st;
    moe_status_free(st); /* no such engine, or no room for it: another way runs it */
    return NULL;
}

/* Launches; *good false: cuDNN will not. */
static MoeStatus launch(const Trial *t, const MoeCudaAttn *run, bool *good) {
    MoeStatus st = moe_cudnn_step_launch(t->d, run);
    *good = !st;
    if (st && t->d->failed)
        return st;
    moe_status_free(st);
    return NULL;
}

static MoeStatus check_batch(const Trial *t, int64_t batch, bool first, bool *good) {
    MoeCudaAttn run = {0};
    MoeStatus st = make_run(t, batch, good, &run);
    for (int twice = 0; twice < 2 && !st && *good; twice++) {
        st = spoil(t);
        if (!st)
            st = launch(t, &run, good);
        if (!st && *good && first && !twice)
            st = keep_first(t);
        if (!st && *good)
            st = compare(t, batch);
        if (!st && *good && first && !twice)
            st = check_near(t, good);
    }
    moe_cudnn_step_release(&run);
    return st;
}

static MoeStatus check(const Trial *t, bool *good) {
    int32_t differ = 0;
    for (int i = 0; i < t->n_batches; i++) {
        MOE_TRY(check_batch(t, t->batches[i], i == 0, good));
        if (!*good)
            return NULL;
    }
    MOE_TRY(moe_cuda_check(t->d, t->d->cu->copy_out(&differ, t->flag, sizeof differ, t->d->stream),
                           "copying a flag"));
    MOE_TRY(moe_cuda_wait(t->d));
    *good = !differ;
    return NULL;
}

/* ---- how fast ---- */

/* Seconds of a launch (run NULL: by the plan's kernels), over so many. */
static MoeStatus time_turns(const Trial *t, const MoeCudaAttn *run, int turns, double *out) {
    MoeDeviceCuda *d = t->d;
    float ms = 0;
    MOE_TRY(moe_cuda_check(d, d->cu->event_record(d->begin, d->stream), "cuEventRecord"));
    for (int i = 0; i < turns; i++)
        MOE_TRY(run ? moe_cudnn_step_launch(d, run) : launch_emitted(t));
    MOE_TRY(moe_cuda_check(d, d->cu->event_record(d->end, d->stream), "cuEventRecord"));
    MOE_TRY(moe_cuda_check(d, d->cu->event_synchronize(d->end), "timing attention %s", t->k->key));
    MOE_TRY(moe_cuda_check(d, d->cu->event_ms(&ms, d->begin, d->end), "cuEventElapsedTime"));
    *out = ms * 1e-3 / turns;
    return NULL;
}

static MoeStatus seconds_of(const Trial *t, const MoeCudaAttn *run, double *out) {
    MOE_TRY(time_turns(t, run, 1, out)); /* the first is slow in any case */
    MOE_TRY(time_turns(t, run, 1, out));
    int turns = *out > 0 ? (int)fmin(TURNS, TIMED_SECONDS / *out) : TURNS;
    return turns > 1 ? time_turns(t, run, turns, out) : NULL;
}

static MoeStatus measure(const Trial *t, bool *good, double *seconds, double *emitted) {
    MoeCudaAttn run = {0};
    MOE_TRY(check(t, good));
    MoeStatus st = seconds_of(t, NULL, emitted);
    if (!st && *good)
        st = make_run(t, t->k->batches[0], good, &run);
    if (!st && *good)
        st = seconds_of(t, &run, seconds);
    moe_cudnn_step_release(&run);
    return st;
}

MoeStatus moe_cuda_cudnn_try(MoeDeviceCuda *d, MoeExec *x, const MoeAttnKind *k, MoeCudnnForm form,
                             bool *out_good, double *out_seconds, double *out_emitted) {
    Trial t = {.d = d, .x = x, .k = k, .a = k->of, .g = &x->programs[k->program], .form = form};
    *out_good = false;
    MoeStatus st = trial_open(&t);
    if (!st)
        st = measure(&t, out_good, out_seconds, out_emitted);
    trial_close(&t);
    return st;
}
