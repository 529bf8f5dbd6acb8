/* Descriptors of cuDNN's backend interface, made and kept. See cuda/cudnn_desc.h. */
#include "runtime/cuda/cudnn_desc.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/mem.h"

#define ALIGNMENT     16   /* bytes, of every tensor's memory */
#define FIRST_VIRTUAL 1000 /* uids below are of memory */
#define MAX_ENGINES   32

void moe_cudnn_build_init(const MoeCudnn *c, MoeCudnnBuild *b) {
    *b = (MoeCudnnBuild){.c = c, .next_uid = FIRST_VIRTUAL};
}

void moe_cudnn_build_free(MoeCudnnBuild *b) {
    while (b->n)
        (void)b->c->desc_destroy(b->all[--b->n]);
    free(b->all);
    moe_status_free(b->st);
    *b = (MoeCudnnBuild){.c = b->c};
}

/* ---- descriptors ---- */

static void keep(MoeCudnnBuild *b, MoeCudnnDesc d) {
    if (MOE_ROOM(b->all, b->n, b->cap)) {
        b->all[b->n++] = d;
        return;
    }
    (void)b->c->desc_destroy(d);
    b->st = moe_error(MOE_E_NOMEM, "no memory for descriptors of cuDNN");
}

MoeCudnnDesc moe_cudnn_new(MoeCudnnBuild *b, int type, const char *what) {
    MoeCudnnDesc d = NULL;
    if (b->st)
        return NULL;
    b->st =
        moe_cudnn_status(b->c->desc_create(type, &d), "cudnnBackendCreateDescriptor of %s", what);
    if (!b->st)
        keep(b, d);
    return b->st ? NULL : d;
}

void moe_cudnn_set(MoeCudnnBuild *b, MoeCudnnDesc d, int attr, int type, int64_t n,
                   const void *elements) {
    if (!b->st)
        b->st = moe_cudnn_status(b->c->desc_set(d, attr, type, n, elements),
                                 "cudnnBackendSetAttribute %d (type %d, %lld elements)", attr, type,
                                 (long long)n);
}

void moe_cudnn_finalize(MoeCudnnBuild *b, MoeCudnnDesc d, const char *what) {
    if (!b->st)
        b->st = moe_cudnn_status(b->c->desc_finalize(d), "cudnnBackendFinalize of %s", what);
}

static void set_desc(MoeCudnnBuild *b, MoeCudnnDesc d, int attr, MoeCudnnDesc value) {
    moe_cudnn_set(b, d, attr, MOE_CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}
static void set_type(MoeCudnnBuild *b, MoeCudnnDesc d, int attr, int value) {
    moe_cudnn_set(b, d, attr, MOE_CUDNN_TYPE_DATA_TYPE, 1, &value);
}
static void set_bool(MoeCudnnBuild *b, MoeCudnnDesc d, int attr, bool value) {
    moe_cudnn_set(b, d, attr, MOE_CUDNN_TYPE_BOOLEAN, 1, &value);
}

/* ---- tensors ---- */

static MoeCudnnTensor make_tensor(MoeCudnnBuild *b, int64_t uid, int type, const int64_t dims[4],
                                  const int64_t strides[4], bool is_virtual, bool by_value) {
    const int64_t alignment = ALIGNMENT;
    MoeCudnnTensor t = {.type = type};
    memcpy(t.dims, dims, sizeof t.dims);
    t.desc = moe_cudnn_new(b, MOE_CUDNN_TENSOR, "a tensor");
    set_type(b, t.desc, MOE_CUDNN_ATTR_TENSOR_DATA_TYPE, type);
    moe_cudnn_set(b, t.desc, MOE_CUDNN_ATTR_TENSOR_DIMENSIONS, MOE_CUDNN_TYPE_INT64, 4, dims);
    moe_cudnn_set(b, t.desc, MOE_CUDNN_ATTR_TENSOR_STRIDES, MOE_CUDNN_TYPE_INT64, 4, strides);
    moe_cudnn_set(b, t.desc, MOE_CUDNN_ATTR_TENSOR_UNIQUE_ID, MOE_CUDNN_TYPE_INT64, 1, &uid);
    moe_cudnn_set(b, t.desc, MOE_CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, MOE_CUDNN_TYPE_INT64, 1,
                  &alignment);
    set_bool(b, t.desc, MOE_CUDNN_ATTR_TENSOR_IS_VIRTUAL, is_virtual);
    set_bool(b, t.desc, MOE_CUDNN_ATTR_TENSOR_IS_BY_VALUE, by_value);
    moe_cudnn_finalize(b, t.desc, "a tensor");
    return t;
}

MoeCudnnTensor moe_cudnn_tensor(MoeCudnnBuild *b, int64_t uid, int type, const int64_t dims[4],
                                const int64_t strides[4]) {
    MOE_ASSERT(uid > 0 && uid < FIRST_VIRTUAL, "uid %lld", (long long)uid);
    return make_tensor(b, uid, type, dims, strides, false, false);
}

MoeCudnnTensor moe_cudnn_scalar(MoeCudnnBuild *b, int64_t uid, int type) {
    static const int64_t ones[4] = {1, 1, 1, 1};
    return make_tensor(b, uid, type, ones, ones, false, true);
}

MoeCudnnTensor moe_cudnn_virtual(MoeCudnnBuild *b, int type, const int64_t dims[4],
                                 const int64_t *strides) {
    const int64_t packed[4] = {dims[1] * dims[2] * dims[3], dims[2] * dims[3], dims[3], 1};
    return make_tensor(b, b->next_uid++, type, dims, strides ? strides : packed, true, false);
}

/* ---- operations ---- */

static void add_op(MoeCudnnBuild *b, MoeCudnnDesc op, const char *what) {
    moe_cudnn_finalize(b, op, what);
    MOE_ASSERT(b->n_ops < MOE_CUDNN_MAX_OPS, "a graph of more than %d operations",
               MOE_CUDNN_MAX_OPS);
    b->ops[b->n_ops++] = op;
}

void moe_cudnn_pointwise_to(MoeCudnnBuild *b, int mode, int compute, int axis,
                            const MoeCudnnTensor *x, const MoeCudnnTensor *other,
                            const MoeCudnnTensor *mask, const MoeCudnnTensor *y) {
    MoeCudnnDesc p = moe_cudnn_new(b, MOE_CUDNN_POINTWISE, "a pointwise mode");
    moe_cudnn_set(b, p, MOE_CUDNN_ATTR_POINTWISE_MODE, MOE_CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set_type(b, p, MOE_CUDNN_ATTR_POINTWISE_MATH_PREC, compute);
    if (axis >= 0) {
        const int64_t a = axis;
        moe_cudnn_set(b, p, MOE_CUDNN_ATTR_POINTWISE_AXIS, MOE_CUDNN_TYPE_INT64, 1, &a);
    }
    moe_cudnn_finalize(b, p, "a pointwise mode");
    MoeCudnnDesc op = moe_cudnn_new(b, MOE_CUDNN_OPERATION_POINTWISE, "a pointwise operation");
    set_desc(b, op, MOE_CUDNN_ATTR_OPERATION_POINTWISE_DESC, p);
    set_desc(b, op, MOE_CUDNN_ATTR_OPERATION_POINTWISE_X, x->desc);
    if (other)
        set_desc(b, op, MOE_CUDNN_ATTR_OPERATION_POINTWISE_B, other->desc);
    if (mask)
        set_desc(b, op, MOE_CUDNN_ATTR_OPERATION_POINTWISE_T, mask->desc);
    set_desc(b, op, MOE_CUDNN_ATTR_OPERATION_POINTWISE_Y, y->desc);
    add_op(b, op, "a pointwise operation");
}

MoeCudnnTensor moe_cudnn_pointwise(MoeCudnnBuild *b, int mode, int compute, int axis, int type,
                                   const MoeCudnnTensor *x, const MoeCudnnTensor *other,
                                   const MoeCudnnTensor *mask) {
    MoeCudnnTensor y = moe_cudnn_virtual(b, type, x->dims, NULL);
    moe_cudnn_pointwise_to(b, mode, compute, axis, x, other, mask, &y);
    return y;
}

void moe_cudnn_matmul(MoeCudnnBuild *b, const MoeCudnnTensor *x, const MoeCudnnTensor *y,
                      const MoeCudnnTensor *out) {
    MoeCudnnDesc m = moe_cudnn_new(b, MOE_CUDNN_MATMUL, "a product");
    set_type(b, m, MOE_CUDNN_ATTR_MATMUL_COMP_TYPE, MOE_CUDNN_FLOAT);
    moe_cudnn_finalize(b, m, "a product");
    MoeCudnnDesc op = moe_cudnn_new(b, MOE_CUDNN_OPERATION_MATMUL, "a product's operation");
    set_desc(b, op, MOE_CUDNN_ATTR_OPERATION_MATMUL_A, x->desc);
    set_desc(b, op, MOE_CUDNN_ATTR_OPERATION_MATMUL_B, y->desc);
    set_desc(b, op, MOE_CUDNN_ATTR_OPERATION_MATMUL_C, out->desc);
    set_desc(b, op, MOE_CUDNN_ATTR_OPERATION_MATMUL_DESC, m);
    add_op(b, op, "a product's operation");
}

void moe_cudnn_reduce(MoeCudnnBuild *b, int mode, const MoeCudnnTensor *x,
                      const MoeCudnnTensor *y) {
    MoeCudnnDesc r = moe_cudnn_new(b, MOE_CUDNN_REDUCTION, "a reduction");
    moe_cudnn_set(b, r, MOE_CUDNN_ATTR_REDUCTION_OPERATOR, MOE_CUDNN_TYPE_REDUCTION_OPERATOR, 1,
                  &mode);
    set_type(b, r, MOE_CUDNN_ATTR_REDUCTION_COMP_TYPE, MOE_CUDNN_FLOAT);
    set_bool(b, r, MOE_CUDNN_ATTR_REDUCTION_IS_DETERMINISTIC, true);
    moe_cudnn_finalize(b, r, "a reduction");
    MoeCudnnDesc op = moe_cudnn_new(b, MOE_CUDNN_OPERATION_REDUCTION, "a reduction's operation");
    set_desc(b, op, MOE_CUDNN_ATTR_OPERATION_REDUCTION_X, x->desc);
    set_desc(b, op, MOE_CUDNN_ATTR_OPERATION_REDUCTION_Y, y->desc);
    set_desc(b, op, MOE_CUDNN_ATTR_OPERATION_REDUCTION_DESC, r);
    add_op(b, op, "a reduction's operation");
}

void moe_cudnn_reshape(MoeCudnnBuild *b, const MoeCudnnTensor *x, const MoeCudnnTensor *y) {
    MoeCudnnDesc op = moe_cudnn_new(b, MOE_CUDNN_OPERATION_RESHAPE, "a transposition");
    set_desc(b, op, MOE_CUDNN_ATTR_OPERATION_RESHAPE_X, x->desc);
    set_desc(b, op, MOE_CUDNN_ATTR_OPERATION_RESHAPE_Y, y->desc);
    add_op(b, op, "a transposition");
}

/* ---- graphs and plans ---- */

MoeCudnnDesc moe_cudnn_graph(MoeCudnnBuild *b, MoeCudnnPlace where) {
    MoeCudnnDesc g = moe_cudnn_new(b, MOE_CUDNN_OPERATIONGRAPH, "a graph");
    moe_cudnn_set(b, g, MOE_CUDNN_ATTR_OPERATIONGRAPH_OPS, MOE_CUDNN_TYPE_BACKEND_DESCRIPTOR,
                  (int64_t)b->n_ops, b->ops);
    if (where.handle)
        moe_cudnn_set(b, g, MOE_CUDNN_ATTR_OPERATIONGRAPH_HANDLE, MOE_CUDNN_TYPE_HANDLE, 1,
                      &where.handle);
    moe_cudnn_finalize(b, g, "a graph");
    return g;
}

/* A plan by that configuration of an engine. The handle may be missing where the device's properties stand in. */
static MoeStatus plan_by(MoeCudnnBuild *b, MoeCudnnDesc config, MoeCudnnPlace where,
                         MoeCudnnPlan *out) {
    int64_t n = 0;
    out->desc = moe_cudnn_new(b, MOE_CUDNN_EXECUTION_PLAN, "a plan");
    if (where.handle)
        moe_cudnn_set(b, out->desc, MOE_CUDNN_ATTR_EXECUTION_PLAN_HANDLE, MOE_CUDNN_TYPE_HANDLE, 1,
                      &where.handle);
    if (where.device)
        set_desc(b, out->desc, MOE_CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, where.device);
    set_desc(b, out->desc, MOE_CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
    moe_cudnn_finalize(b, out->desc, "a plan");
    if (!b->st)
        b->st =
            moe_cudnn_status(b->c->desc_get(out->desc, MOE_CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                            MOE_CUDNN_TYPE_INT64, 1, &n, &out->workspace),
                             "the size of a plan's workspace");
    MoeStatus st = b->st; /* another configuration may do */
    b->st = NULL;
    return st;
}

/* Whether the configuration's engine says that it may differ from run to run. */
static bool says_nondeterministic(MoeCudnnBuild *b, MoeCudnnDesc config) {
    int notes[16];
    int64_t n = 0;
    MoeCudnnDesc engine = moe_cudnn_new(b, MOE_CUDNN_ENGINE, "an engine");
    if (b->st || b->c->desc_get(config, MOE_CUDNN_ATTR_ENGINECFG_ENGINE,
                                MOE_CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n, &engine))
        return false;
    if (b->c->desc_get(engine, MOE_CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, MOE_CUDNN_TYPE_NUMERICAL_NOTE,
                       16, &n, notes))
        return false;
    for (int64_t i = 0; i < n && i < 16; i++)
        if (notes[i] == MOE_CUDNN_NOTE_NONDETERMINISTIC)
            return true;
    return false;
}

static MoeCudnnDesc config_of(MoeCudnnBuild *b, MoeCudnnDesc graph, MoeCudnnPlace where,
                              const MoeCudnnEngine *e) {
    MoeCudnnDesc engine = moe_cudnn_new(b, MOE_CUDNN_ENGINE, "an engine"), choices[8];
    set_desc(b, engine, MOE_CUDNN_ATTR_ENGINE_OPERATION_GRAPH, graph);
    moe_cudnn_set(b, engine, MOE_CUDNN_ATTR_ENGINE_GLOBAL_INDEX, MOE_CUDNN_TYPE_INT64, 1,
                  &e->engine);
    if (where.device)
        set_desc(b, engine, MOE_CUDNN_ATTR_ENGINE_DEVICEPROP, where.device);
    moe_cudnn_finalize(b, engine, "an engine");
    for (size_t i = 0; i < e->n_knobs; i++) {
        choices[i] = moe_cudnn_new(b, MOE_CUDNN_KNOB_CHOICE, "a knob");
        moe_cudnn_set(b, choices[i], MOE_CUDNN_ATTR_KNOB_CHOICE_TYPE, MOE_CUDNN_TYPE_KNOB_TYPE, 1,
                      &e->knobs[i].type);
        moe_cudnn_set(b, choices[i], MOE_CUDNN_ATTR_KNOB_CHOICE_VALUE, MOE_CUDNN_TYPE_INT64, 1,
                      &e->knobs[i].value);
        moe_cudnn_finalize(b, choices[i], "a knob");
    }
    MoeCudnnDesc config = moe_cudnn_new(b, MOE_CUDNN_ENGINECFG, "an engine's configuration");
    set_desc(b, config, MOE_CUDNN_ATTR_ENGINECFG_ENGINE, engine);
    if (e->n_knobs)
        moe_cudnn_set(b, config, MOE_CUDNN_ATTR_ENGINECFG_KNOB_CHOICES,
                      MOE_CUDNN_TYPE_BACKEND_DESCRIPTOR, (int64_t)e->n_knobs, choices);
    moe_cudnn_finalize(b, config, "an engine's configuration");
    return config;
}

/* Configurations that the heuristics name, best first; their number. */
static int64_t ask(MoeCudnnBuild *b, MoeCudnnDesc graph, MoeCudnnPlace where, int mode,
                   MoeCudnnDesc *configs) {
    int64_t n = 0;
    MoeCudnnDesc h = moe_cudnn_new(b, MOE_CUDNN_ENGINEHEUR, "heuristics");
    set_desc(b, h, MOE_CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
    moe_cudnn_set(b, h, MOE_CUDNN_ATTR_ENGINEHEUR_MODE, MOE_CUDNN_TYPE_HEUR_MODE, 1, &mode);
    if (where.device)
        set_desc(b, h, MOE_CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, where.device);
    moe_cudnn_finalize(b, h, "heuristics");
    for (int i = 0; i < MAX_ENGINES; i++)
        configs[i] = moe_cudnn_new(b, MOE_CUDNN_ENGINECFG, "an engine's configuration");
    if (!b->st)
        b->st = moe_cudnn_status(b->c->desc_get(h, MOE_CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                                MOE_CUDNN_TYPE_BACKEND_DESCRIPTOR, MAX_ENGINES, &n,
                                                configs),
                                 "what the heuristics say");
    return b->st ? 0 : n < MAX_ENGINES ? n : MAX_ENGINES;
}

MoeStatus moe_cudnn_plan(MoeCudnnBuild *b, MoeCudnnDesc graph, MoeCudnnPlace where,
                         const MoeCudnnEngine *engine, MoeCudnnPlan *out) {
    static const int modes[] = {MOE_CUDNN_HEUR_A, MOE_CUDNN_HEUR_FALLBACK};
    MoeCudnnDesc configs[MAX_ENGINES];
    MoeStatus st = b->st;
    b->st = NULL;
    if (st)
        return st;
    if (engine && engine->engine >= 0) {
        configs[0] = config_of(b, graph, where, engine);
        st = b->st;
        b->st = NULL;
        return st ? st : plan_by(b, configs[0], where, out);
    }
    for (size_t m = 0; m < sizeof modes / sizeof *modes; m++) {
        int64_t n = ask(b, graph, where, modes[m], configs);
        if (b->st) {
            moe_status_free(st);
            st = b->st;
            b->st = NULL;
        }
        for (int64_t i = 0; i < n; i++) {
            moe_status_free(st);
            st = plan_by(b, configs[i], where, out);
            if (!st)
                out->nondeterministic = says_nondeterministic(b, configs[i]);
            if (!st)
                return NULL;
        }
    }
    return st ? st : moe_error(MOE_E_INPUT, "cuDNN names no engine for the graph");
}

MoeCudnnDesc moe_cudnn_pack(MoeCudnnBuild *b, const int64_t *uids, void *const *at, int64_t n,
                            void *workspace) {
    MoeCudnnDesc p = moe_cudnn_new(b, MOE_CUDNN_VARIANT_PACK, "a list of addresses");
    moe_cudnn_set(b, p, MOE_CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, MOE_CUDNN_TYPE_INT64, n, uids);
    moe_cudnn_set(b, p, MOE_CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, MOE_CUDNN_TYPE_VOID_PTR, n, at);
    moe_cudnn_set(b, p, MOE_CUDNN_ATTR_VARIANT_PACK_WORKSPACE, MOE_CUDNN_TYPE_VOID_PTR, 1,
                  &workspace);
    moe_cudnn_finalize(b, p, "a list of addresses");
    return p;
}
