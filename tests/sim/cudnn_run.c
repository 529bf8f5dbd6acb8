/* cudnn.h: runs a graph, operation by operation, on arrays of all elements: f32 arithmetic in ascending order, bf16 tensors
 * rounded to nearest even. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/half.h"
#include "tests/sim/cudnn.h"

typedef struct {
    const SimRun *run;
    float *x[SIM_CUDNN_TENSORS]; /* [dims], packed; NULL: not there yet */
} State;

static int64_t count(const SimTensor *t) {
    return t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
}

static size_t element(const SimTensor *t) {
    return t->type == MOE_CUDNN_BFLOAT16 ? 2 : 4;
}

/* Element i, counted packed, in the tensor's memory: its offset in elements. */
static int64_t offset(const SimTensor *t, int64_t i) {
    int64_t at = 0;
    for (int k = 3; k >= 0; k--) {
        at += i % t->dims[k] * t->strides[k];
        i /= t->dims[k];
    }
    return at;
}

/* Element of x for element i of `out`, in which x may be broadcast. */
static int64_t shared(const SimTensor *out, const SimTensor *x, int64_t i) {
    int64_t at = 0, stride = 1;
    for (int k = 3; k >= 0; k--) {
        int64_t c = i % out->dims[k];
        i /= out->dims[k];
        at += (x->dims[k] == 1 ? 0 : c) * stride;
        stride *= x->dims[k];
    }
    return at;
}

/* Whether all of the tensor's memory is the device's. */
static bool reachable(const SimTensor *t, const void *at) {
    return moe_sim_memory_holds((CUdeviceptr)(uintptr_t)at,
                                ((size_t)offset(t, count(t) - 1) + 1) * element(t));
}

static float *load(State *s, int t) {
    const SimTensor *x = &s->run->g->tensors[t];
    int64_t n = count(x);
    if (s->x[t])
        return s->x[t];
    float *v = s->x[t] = calloc((size_t)n, sizeof *v);
    const char *at = s->run->at[t];
    for (int64_t i = 0; v && i < n && !x->is_virtual; i++) {
        const char *p = x->by_value ? NULL : at + (size_t)offset(x, i) * element(x);
        v[i] = !p                              ? s->run->value[t]
               : x->type == MOE_CUDNN_BFLOAT16 ? moe_bf16_to_f32(*(const uint16_t *)(const void *)p)
                                               : *(const float *)(const void *)p;
    }
    return v;
}

/* Faults: what a library must not do to be chosen. By row: [sequence, head, row, column]. */
static float fault(const SimRun *r, const SimTensor *t, int64_t i, float v) {
    const float more = 1 + 1.0f / 128;
    int64_t sequence = i / (t->dims[1] * t->dims[2] * t->dims[3]);
    if (r->batch_fault && t->dims[0] > 1)
        v *= more;
    if (r->place_fault && sequence % 2)
        v *= more;
    if (r->random_fault)
        v *= 1 + (float)r->random_fault / 128;
    return r->wrong_fault ? 2 * v + 1 : v;
}

static void store(State *s, int t) {
    const SimTensor *x = &s->run->g->tensors[t];
    char *at = s->run->at[t];
    for (int64_t i = 0; i < count(x); i++) {
        float v = fault(s->run, x, i, s->x[t][i]);
        char *p = at + (size_t)offset(x, i) * element(x);
        if (x->type == MOE_CUDNN_BFLOAT16)
            *(uint16_t *)(void *)p = moe_f32_to_bf16(v);
        else
            *(float *)(void *)p = v;
    }
}

static float point(int mode, float x, float y, float t) {
    switch (mode) {
    case MOE_CUDNN_ADD:
        return x + y;
    case MOE_CUDNN_MUL:
        return x * y;
    case MOE_CUDNN_DIV:
        return x / y;
    case MOE_CUDNN_SUB:
        return x - y;
    case MOE_CUDNN_EXP:
        return expf(x);
    case MOE_CUDNN_LOG:
        return logf(x);
    case MOE_CUDNN_CMP_GT:
        return x > y;
    case MOE_CUDNN_CMP_GE:
        return x >= y;
    case MOE_CUDNN_BINARY_SELECT:
        return t != 0 ? x : y;
    default: /* IDENTITY */
        return x;
    }
}

static void pointwise(State *s, const SimOp *o, float *out) {
    const SimTensor *ts = s->run->g->tensors, *y = &ts[o->out];
    const float *a = load(s, o->x), *b = o->y >= 0 ? load(s, o->y) : NULL,
                *t = o->t >= 0 ? load(s, o->t) : NULL;
    int64_t inner = 1;
    for (int k = 3; k > o->axis && o->axis >= 0; k--)
        inner *= y->dims[k];
    for (int64_t i = 0; i < count(y); i++)
        out[i] = o->mode == MOE_CUDNN_GEN_INDEX ? (float)(i / inner % y->dims[o->axis])
                                                : point(o->mode, a[shared(y, &ts[o->x], i)],
                                                        b ? b[shared(y, &ts[o->y], i)] : 0,
                                                        t ? t[shared(y, &ts[o->t], i)] : 0);
}

static void matmul(State *s, const SimOp *o, float *out) {
    const SimTensor *x = &s->run->g->tensors[o->x], *y = &s->run->g->tensors[o->y],
                    *z = &s->run->g->tensors[o->out];
    const float *a = load(s, o->x), *b = load(s, o->y);
    const int64_t rows = z->dims[2], cols = z->dims[3], depth = x->dims[3];
    for (int64_t m = 0; m < z->dims[0] * z->dims[1]; m++) {
        int64_t batch = m / z->dims[1], head = m % z->dims[1];
        const float *p = a + (batch * x->dims[1] + head / (z->dims[1] / x->dims[1])) * rows * depth,
                    *q = b + (batch * y->dims[1] + head / (z->dims[1] / y->dims[1])) * depth * cols;
        float *to = out + m * rows * cols;
        for (int64_t i = 0; i < rows; i++)
            for (int64_t k = 0; k < depth; k++)
                for (int64_t j = 0; j < cols; j++)
                    to[i * cols + j] = fmaf(p[i * depth + k], q[k * cols + j], to[i * cols + j]);
    }
}

static void reduce(State *s, const SimOp *o, float *out) {
    const SimTensor *x = &s->run->g->tensors[o->x], *y = &s->run->g->tensors[o->out];
    const float *a = load(s, o->x);
    bool top = o->mode == MOE_CUDNN_REDUCE_MAX;
    for (int64_t i = 0; top && i < count(y); i++)
        out[i] = -INFINITY;
    for (int64_t i = 0; i < count(x); i++) {
        int64_t rest = i, at = 0, stride = 1;
        for (int k = 3; k >= 0; k--) {
            at += rest % x->dims[k] / (x->dims[k] / y->dims[k]) * stride;
            rest /= x->dims[k];
            stride *= y->dims[k];
        }
        out[at] = top ? fmaxf(out[at], a[i]) : out[at] + a[i];
    }
}

static void transpose(State *s, const SimOp *o, float *out) {
    const SimTensor *x = &s->run->g->tensors[o->x];
    const float *a = load(s, o->x);
    const int64_t rows = x->dims[2], cols = x->dims[3];
    for (int64_t i = 0; i < count(x); i++) {
        int64_t m = i / (rows * cols), r = i / cols % rows, c = i % cols;
        out[m * rows * cols + c * rows + r] = a[i];
    }
}

static bool run_op(State *s, const SimOp *o) {
    const SimTensor *y = &s->run->g->tensors[o->out];
    float *out = calloc((size_t)count(y), sizeof *out);
    if (!out)
        return false;
    if (o->kind == SIM_POINTWISE)
        pointwise(s, o, out);
    else if (o->kind == SIM_MATMUL)
        matmul(s, o, out);
    else if (o->kind == SIM_REDUCE)
        reduce(s, o, out);
    else
        transpose(s, o, out);
    for (int64_t i = 0; y->type == MOE_CUDNN_BFLOAT16 && i < count(y); i++)
        out[i] = moe_bf16_to_f32(moe_f32_to_bf16(out[i]));
    s->x[o->out] = out;
    return true;
}

/* Workspace is scribbled over, as whoever reads it afterwards should learn. */
CUresult sim_cudnn_run(void *ctx) {
    const SimRun *run = ctx;
    State s = {.run = run};
    CUresult r = CUDA_SUCCESS;
    for (int t = 0; t < run->g->n_tensors; t++)
        if (!run->g->tensors[t].is_virtual && !run->g->tensors[t].by_value &&
            !reachable(&run->g->tensors[t], run->at[t]))
            return moe_sim_complain(CUDA_ERROR_ILLEGAL_ADDRESS,
                                    "cuDNN: tensor %lld is not all device memory",
                                    (long long)run->g->tensors[t].uid);
    if (!moe_sim_memory_holds((CUdeviceptr)(uintptr_t)run->workspace, (size_t)run->workspace_bytes))
        return moe_sim_complain(CUDA_ERROR_ILLEGAL_ADDRESS,
                                "cuDNN: the workspace is not all device memory");
    memset(run->workspace, 0xa5, (size_t)run->workspace_bytes);
    if (sim_cudnn_fault("slow"))
        nanosleep(&(struct timespec){.tv_nsec = 50 * 1000 * 1000}, NULL);
    for (int i = 0; i < run->g->n_ops && !r; i++)
        if (!run_op(&s, &run->g->ops[i]))
            r = CUDA_ERROR_OUT_OF_MEMORY;
    for (int i = 0; i < run->g->n_ops && !r; i++)
        if (!run->g->tensors[run->g->ops[i].out].is_virtual)
            store(&s, run->g->ops[i].out);
    for (int t = 0; t < run->g->n_tensors; t++)
        free(s.x[t]);
    return r;
}
