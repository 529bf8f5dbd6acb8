/* Elementwise ops: broadcasting align-right, a missing or size-1 dim repeats; convert; broadcast.
 */
#include "ir/eval/eval_internal.h"

#include <math.h>
#include <string.h>

/* Element strides of operand t along the dims of out; 0 where it repeats. Error if extents do not
 * fit. */
static MoeStatus strides_in(const MoeTensor *t, const MoeTensor *out, int64_t st[MOE_MAX_RANK]) {
    int64_t step = 1;
    int shift = out->rank - t->rank;
    if (shift < 0)
        return moe_error(MOE_E_INPUT, "an operand of rank %d does not broadcast to rank %d",
                         t->rank, out->rank);
    for (int d = out->rank - 1; d >= 0; d--) {
        st[d] = 0;
        if (d < shift)
            continue;
        int64_t extent = t->dims[d - shift];
        if (extent != 1 && extent != out->dims[d])
            return moe_error(MOE_E_INPUT, "extent %lld does not broadcast to %lld",
                             (long long)extent, (long long)out->dims[d]);
        if (extent != 1)
            st[d] = step;
        step *= extent;
    }
    return NULL;
}

/* Calls fn for each element of out with the offsets of up to two operands. */
typedef void (*EachFn)(const MoeTensor *const *in, MoeTensor *out, int64_t o, int64_t a, int64_t b,
                       const void *fn);

static MoeStatus each(MoeEvalOp *e, int n_in, EachFn f, const void *fn) {
    MoeTensor *out = e->out;
    int64_t st[2][MOE_MAX_RANK] = {{0}}, at[MOE_MAX_RANK] = {0};
    for (int i = 0; i < n_in; i++)
        MOE_TRY(strides_in(e->in[i], out, st[i]));
    int64_t a = 0, b = 0;
    for (int64_t o = 0; o < out->n; o++) {
        f(e->in, out, o, a, b, fn);
        for (int d = out->rank - 1; d >= 0; d--) { /* the next index, odometer-wise */
            a += st[0][d];
            b += st[1][d];
            if (++at[d] < out->dims[d])
                break;
            a -= st[0][d] * at[d];
            b -= st[1][d] * at[d];
            at[d] = 0;
        }
    }
    return NULL;
}

typedef struct {
    double (*f)(double, double);
    int32_t (*i)(int32_t, int32_t); /* NULL: floats only */
} Fn2;

static void apply2(const MoeTensor *const *in, MoeTensor *out, int64_t o, int64_t a, int64_t b,
                   const void *fn) {
    const Fn2 *f = fn;
    if (out->f)
        out->f[o] = f->f(in[0]->f[a], in[1]->f[b]);
    else
        out->i[o] = f->i(in[0]->i[a], in[1]->i[b]);
}

static MoeStatus binary(MoeEvalOp *e, Fn2 fn) {
    if (e->out->i && !fn.i)
        return moe_error(MOE_E_INPUT, "not defined on i32");
    return each(e, 2, apply2, &fn);
}

/* BINARY(op, float expression, i32 expression): i32 wraps. */
#define BINARY(name, fexpr, iexpr)                                                                 \
    static double name##_f(double a, double b) {                                                   \
        return fexpr;                                                                              \
    }                                                                                              \
    static int32_t name##_i(int32_t a, int32_t b) {                                                \
        return iexpr;                                                                              \
    }                                                                                              \
    MoeStatus moe_eval_##name(MoeEvalOp *e) {                                                      \
        return binary(e, (Fn2){name##_f, name##_i});                                               \
    }
BINARY(add, a + b, (int32_t)((uint32_t)a + (uint32_t)b))
BINARY(sub, a - b, (int32_t)((uint32_t)a - (uint32_t)b))
BINARY(mul, a *b, (int32_t)((uint32_t)a *(uint32_t)b))
BINARY(max, a > b ? a : b, a > b ? a : b)
BINARY(min, a < b ? a : b, a < b ? a : b)

static double div_f(double a, double b) {
    return a / b;
}
MoeStatus moe_eval_div(MoeEvalOp *e) {
    return binary(e, (Fn2){div_f, NULL});
}

static MoeStatus unary(MoeEvalOp *e, double (*fn)(double)) {
    if (!e->out->f)
        return moe_error(MOE_E_INPUT, "not defined on i32");
    for (int64_t k = 0; k < e->out->n; k++)
        e->out->f[k] = fn(e->in[0]->f[k]);
    return NULL;
}

#define UNARY(name, expr)                                                                          \
    static double name##_f(double x) {                                                             \
        return expr;                                                                               \
    }                                                                                              \
    MoeStatus moe_eval_##name(MoeEvalOp *e) {                                                      \
        return unary(e, name##_f);                                                                 \
    }
UNARY(neg, -x)
UNARY(exp, exp(x))
UNARY(log, log(x))
UNARY(sqrt, sqrt(x))
UNARY(rsqrt, 1 / sqrt(x))
UNARY(sigmoid, 1 / (1 + exp(-x)))
UNARY(silu, x / (1 + exp(-x)))

MoeStatus moe_eval_convert(MoeEvalOp *e) {
    const MoeTensor *x = e->in[0];
    if (!e->out->f)
        return moe_error(MOE_E_INPUT, "floats do not convert to i32");
    for (int64_t k = 0; k < x->n; k++) /* the driver rounds to bf16; i32 is exact in f64 */
        e->out->f[k] = x->f ? x->f[k] : (double)x->i[k];
    return NULL;
}

static void copy1(const MoeTensor *const *in, MoeTensor *out, int64_t o, int64_t a, int64_t b,
                  const void *fn) {
    (void)b;
    (void)fn;
    if (out->f)
        out->f[o] = in[0]->f[a];
    else
        out->i[o] = in[0]->i[a];
}

MoeStatus moe_eval_broadcast(MoeEvalOp *e) {
    return each(e, 1, copy1, NULL);
}
