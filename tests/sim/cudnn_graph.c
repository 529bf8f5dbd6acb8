/* cudnn.h: operations as a graph: tensors by uid, shapes that fit, results that are made before they are used. */
#include <stdlib.h>
#include <string.h>
#include "tests/sim/cudnn.h"

/* The tensor's place in the graph; -1: there is another one of its uid, or too many. */
static int tensor_of(SimGraph *g, MoeCudnnDesc d) {
    SimTensor t = {.uid =
                       *(const int64_t *)sim_desc_attr(d, MOE_CUDNN_ATTR_TENSOR_UNIQUE_ID, NULL)};
    const bool *is_virtual = sim_desc_attr(d, MOE_CUDNN_ATTR_TENSOR_IS_VIRTUAL, NULL),
               *by_value = sim_desc_attr(d, MOE_CUDNN_ATTR_TENSOR_IS_BY_VALUE, NULL);
    memcpy(t.dims, sim_desc_attr(d, MOE_CUDNN_ATTR_TENSOR_DIMENSIONS, NULL), sizeof t.dims);
    memcpy(t.strides, sim_desc_attr(d, MOE_CUDNN_ATTR_TENSOR_STRIDES, NULL), sizeof t.strides);
    t.type = *(const int *)sim_desc_attr(d, MOE_CUDNN_ATTR_TENSOR_DATA_TYPE, NULL);
    t.alignment = *(const int64_t *)sim_desc_attr(d, MOE_CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, NULL);
    t.is_virtual = is_virtual && *is_virtual;
    t.by_value = by_value && *by_value;
    for (int i = 0; i < g->n_tensors; i++)
        if (g->tensors[i].uid == t.uid)
            return memcmp(g->tensors[i].dims, t.dims, sizeof t.dims) ||
                           memcmp(g->tensors[i].strides, t.strides, sizeof t.strides) ||
                           g->tensors[i].type != t.type || g->tensors[i].is_virtual != t.is_virtual
                       ? -1
                       : i;
    if (g->n_tensors == SIM_CUDNN_TENSORS)
        return -1;
    g->tensors[g->n_tensors] = t;
    return g->n_tensors++;
}

static int operand(SimGraph *g, MoeCudnnDesc op, int name, bool *ok) {
    const void *p = sim_desc_attr(op, name, NULL);
    if (!p)
        return -1;
    MoeCudnnDesc d = *(const MoeCudnnDesc *)p;
    int i = sim_desc_type(d) == MOE_CUDNN_TENSOR ? tensor_of(g, d) : -1;
    *ok &= i >= 0;
    return i;
}

static const int *mode_of(MoeCudnnDesc op, int desc, int mode) {
    return sim_desc_attr(*(const MoeCudnnDesc *)sim_desc_attr(op, desc, NULL), mode, NULL);
}

/* What the descriptor says, without looking at shapes. */
static bool read_op(SimGraph *g, MoeCudnnDesc d, SimOp *o) {
    bool ok = true;
    const int64_t *axis;
    *o = (SimOp){.axis = -1, .x = -1, .y = -1, .t = -1};
    switch (sim_desc_type(d)) {
    case MOE_CUDNN_OPERATION_POINTWISE:
        o->kind = SIM_POINTWISE;
        o->mode =
            *mode_of(d, MOE_CUDNN_ATTR_OPERATION_POINTWISE_DESC, MOE_CUDNN_ATTR_POINTWISE_MODE);
        axis = (const void *)mode_of(d, MOE_CUDNN_ATTR_OPERATION_POINTWISE_DESC,
                                     MOE_CUDNN_ATTR_POINTWISE_AXIS);
        o->axis = axis ? (int)*axis : -1;
        o->x = operand(g, d, MOE_CUDNN_ATTR_OPERATION_POINTWISE_X, &ok);
        o->y = operand(g, d, MOE_CUDNN_ATTR_OPERATION_POINTWISE_B, &ok);
        o->t = operand(g, d, MOE_CUDNN_ATTR_OPERATION_POINTWISE_T, &ok);
        o->out = operand(g, d, MOE_CUDNN_ATTR_OPERATION_POINTWISE_Y, &ok);
        return ok;
    case MOE_CUDNN_OPERATION_MATMUL:
        o->kind = SIM_MATMUL;
        o->x = operand(g, d, MOE_CUDNN_ATTR_OPERATION_MATMUL_A, &ok);
        o->y = operand(g, d, MOE_CUDNN_ATTR_OPERATION_MATMUL_B, &ok);
        o->out = operand(g, d, MOE_CUDNN_ATTR_OPERATION_MATMUL_C, &ok);
        return ok;
    case MOE_CUDNN_OPERATION_REDUCTION:
        o->kind = SIM_REDUCE;
        o->mode =
            *mode_of(d, MOE_CUDNN_ATTR_OPERATION_REDUCTION_DESC, MOE_CUDNN_ATTR_REDUCTION_OPERATOR);
        o->x = operand(g, d, MOE_CUDNN_ATTR_OPERATION_REDUCTION_X, &ok);
        o->out = operand(g, d, MOE_CUDNN_ATTR_OPERATION_REDUCTION_Y, &ok);
        return ok;
    case MOE_CUDNN_OPERATION_RESHAPE:
        o->kind = SIM_RESHAPE;
        o->x = operand(g, d, MOE_CUDNN_ATTR_OPERATION_RESHAPE_X, &ok);
        o->out = operand(g, d, MOE_CUDNN_ATTR_OPERATION_RESHAPE_Y, &ok);
        return ok;
    default:
        return false;
    }
}

/* Equal, or 1 where the second goes for all. */
static bool broadcasts(const SimTensor *out, const SimTensor *x) {
    for (int i = 0; i < 4; i++)
        if (x->dims[i] != out->dims[i] && x->dims[i] != 1)
            return false;
    return true;
}

static bool pointwise_fits(const SimGraph *g, const SimOp *o) {
    static const struct {
        int mode, operands;
    } modes[] = {{MOE_CUDNN_ADD, 2},       {MOE_CUDNN_MUL, 2},          {MOE_CUDNN_DIV, 2},
                 {MOE_CUDNN_SUB, 2},       {MOE_CUDNN_EXP, 1},          {MOE_CUDNN_LOG, 1},
                 {MOE_CUDNN_IDENTITY, 1},  {MOE_CUDNN_CMP_GT, 2},       {MOE_CUDNN_CMP_GE, 2},
                 {MOE_CUDNN_GEN_INDEX, 1}, {MOE_CUDNN_BINARY_SELECT, 3}};
    const SimTensor *out = &g->tensors[o->out];
    int have = 1 + (o->y >= 0) + (o->t >= 0), want = 0;
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (modes[i].mode == o->mode)
            want = modes[i].operands;
    if (have != want || (o->mode == MOE_CUDNN_GEN_INDEX && (o->axis < 0 || o->axis > 3)))
        return false;
    if (want == 3 && g->tensors[o->t].type != MOE_CUDNN_BOOLEAN)
        return false;
    return broadcasts(out, &g->tensors[o->x]) && (o->y < 0 || broadcasts(out, &g->tensors[o->y])) &&
           (o->t < 0 || broadcasts(out, &g->tensors[o->t]));
}

/* Products are of bf16 or, first, of f32 (dS k), over operands with one of the last two strides 1, as the header says. */
static bool matmul_fits(const SimGraph *g, const SimOp *o) {
    const SimTensor *x = &g->tensors[o->x], *y = &g->tensors[o->y], *out = &g->tensors[o->out];
    bool packed = (x->strides[2] == 1 || x->strides[3] == 1) &&
                  (y->strides[2] == 1 || y->strides[3] == 1) && out->strides[3] == 1;
    return packed && y->type == MOE_CUDNN_BFLOAT16 && x->dims[0] == out->dims[0] &&
           y->dims[0] == out->dims[0] && out->dims[1] % x->dims[1] == 0 &&
           out->dims[1] % y->dims[1] == 0 && x->dims[2] == out->dims[2] &&
           y->dims[3] == out->dims[3] && x->dims[3] == y->dims[2];
}

static bool op_fits(const SimGraph *g, const SimOp *o) {
    const SimTensor *x = &g->tensors[o->x], *out = &g->tensors[o->out];
    switch (o->kind) {
    case SIM_POINTWISE:
        return pointwise_fits(g, o);
    case SIM_MATMUL:
        return matmul_fits(g, o);
    case SIM_REDUCE:
        for (int i = 0; i < 4; i++)
            if (x->dims[i] % out->dims[i])
                return false;
        return o->mode == MOE_CUDNN_REDUCE_ADD || o->mode == MOE_CUDNN_REDUCE_MAX;
    case SIM_RESHAPE: /* a transposition of the last two dims */
        return x->dims[0] == out->dims[0] && x->dims[1] == out->dims[1] &&
               x->dims[2] == out->dims[3] && x->dims[3] == out->dims[2] &&
               x->strides[2] == out->strides[3] && x->strides[3] == out->strides[2];
    }
    return false;
}

MoeCudnnResult sim_cudnn_graph(const MoeCudnnDesc *ops, int64_t n, SimGraph **out) {
    SimGraph *g = calloc(1, sizeof *g);
    bool made[SIM_CUDNN_TENSORS] = {false};
    int products = 0;
    *out = NULL;
    if (!g)
        return 4003;
    for (g->n_ops = 0; g->n_ops < n; g->n_ops++) {
        SimOp *o = &g->ops[g->n_ops];
        bool ok = read_op(g, ops[g->n_ops], o) && op_fits(g, o);
        const int in[] = {o->x, o->y, o->t};
        for (int i = 0; ok && i < 3; i++)
            ok = in[i] < 0 || !g->tensors[in[i]].is_virtual || made[in[i]];
        if (!ok || made[o->out] || g->tensors[o->out].by_value) {
            int at = g->n_ops;
            free(g);
            return sim_cudnn_say(
                MOE_CUDNN_NOT_SUPPORTED + 1,
                "operation %d of the graph: shapes, types or the number of operands "
                "do not fit, or a tensor is used before it is made",
                at);
        }
        made[o->out] = true;
        products += o->kind == SIM_MATMUL;
    }
    g->grad = products == 5;
    if (products != 2 && products != 5) {
        free(g);
        return sim_cudnn_say(MOE_CUDNN_NOT_SUPPORTED + 1, "%d products are no attention", products);
    }
    *out = g;
    return MOE_CUDNN_SUCCESS;
}

/* dS of all sequences where the gradient is by the usual engine. */
int64_t sim_cudnn_workspace(const SimGraph *g, int engine) {
    int64_t most = 0;
    for (int i = 0; i < g->n_tensors; i++) {
        const int64_t *d = g->tensors[i].dims;
        int64_t n = d[0] * d[1] * d[2] * d[3];
        if (d[2] == d[3] && n > most)
            most = n;
    }
    return g->grad && engine == 1 ? 2 * most + 256 : 256;
}
