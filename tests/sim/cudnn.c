/* cudnn.h: the library's entry points; descriptors and what they take. */
#include "tests/sim/cudnn.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LEN(a) ((int)(sizeof(a) / sizeof *(a)))

/* Stages that an engine's knobs must have been set to. */
enum { ENGINE_BROKEN = 99, ENGINE_USUAL = 1, ENGINE_SM100 = 5, ENGINE_ORDERED = 6, MAX_ATTRS = 12 };

/* ---- errors ---- */

static _Thread_local char last[512];

MoeCudnnResult sim_cudnn_say(MoeCudnnResult r, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(last, sizeof last, fmt, ap);
    va_end(ap);
    return r;
}

bool sim_cudnn_fault(const char *word) {
    const char *s = getenv("MOE_SIM_CUDNN");
    size_t n = strlen(word);
    for (; s && *s; s += strcspn(s, ","), s += *s == ',')
        if (strcspn(s, ",") == n && !strncmp(s, word, n))
            return true;
    return false;
}

MOE_SIM_EXPORT size_t cudnnGetVersion(void) {
    const char *s = getenv("MOE_SIM_CUDNN_VERSION");
    return s && *s ? (size_t)atol(s) : 92600;
}
MOE_SIM_EXPORT const char *cudnnGetErrorString(MoeCudnnResult r) {
    return r / 1000 == 2   ? "CUDNN_STATUS_BAD_PARAM"
           : r / 1000 == 3 ? "CUDNN_STATUS_NOT_SUPPORTED"
           : r / 1000 == 5 ? "CUDNN_STATUS_EXECUTION_FAILED"
           : r / 1000 == 1 ? "CUDNN_STATUS_NOT_INITIALIZED"
           : r             ? "CUDNN_STATUS_INTERNAL_ERROR"
                           : "CUDNN_STATUS_SUCCESS";
}
MOE_SIM_EXPORT void cudnnGetLastErrorString(char *out, size_t n) {
    snprintf(out, n, "%s", last);
    *last = 0;
}

/* ---- descriptors ---- */

/* What each takes: {descriptor, attribute, type, elements at least, at most, needed}. */
static const struct {
    int desc, name, type, least, most;
    bool needed;
} rules[] = {
#define D(d, a, t, lo, hi, need)                                                                   \
    {MOE_CUDNN_##d, MOE_CUDNN_ATTR_##a, MOE_CUDNN_TYPE_##t, lo, hi, need},
    D(POINTWISE, POINTWISE_MODE, POINTWISE_MODE, 1, 1,
      true) D(POINTWISE, POINTWISE_MATH_PREC, DATA_TYPE, 1, 1,
              true) D(POINTWISE, POINTWISE_AXIS, INT64, 1, 1,
                      false) D(ENGINE, ENGINE_OPERATION_GRAPH, BACKEND_DESCRIPTOR, 1, 1,
                               true) D(ENGINE, ENGINE_GLOBAL_INDEX, INT64, 1, 1, true)
        D(ENGINECFG, ENGINECFG_ENGINE, BACKEND_DESCRIPTOR, 1, 1, true) D(
            ENGINECFG, ENGINECFG_KNOB_CHOICES, BACKEND_DESCRIPTOR, 1, 16,
            false) D(ENGINEHEUR, ENGINEHEUR_OPERATION_GRAPH, BACKEND_DESCRIPTOR, 1, 1, true)
            D(ENGINEHEUR, ENGINEHEUR_MODE, HEUR_MODE, 1, 1,
              true) D(EXECUTION_PLAN, EXECUTION_PLAN_HANDLE, HANDLE, 1, 1, true)
                D(EXECUTION_PLAN, EXECUTION_PLAN_ENGINE_CONFIG, BACKEND_DESCRIPTOR,
                  1, 1, true) D(KNOB_CHOICE, KNOB_CHOICE_TYPE, KNOB_TYPE, 1,
                                1, true) D(KNOB_CHOICE, KNOB_CHOICE_VALUE, INT64, 1, 1, true)
                    D(OPERATION_POINTWISE, OPERATION_POINTWISE_DESC, BACKEND_DESCRIPTOR, 1,
                      1, true) D(OPERATION_POINTWISE, OPERATION_POINTWISE_X, BACKEND_DESCRIPTOR,
                                 1, 1, true) D(OPERATION_POINTWISE, OPERATION_POINTWISE_B,
                                               BACKEND_DESCRIPTOR, 1, 1, false)
                        D(OPERATION_POINTWISE, OPERATION_POINTWISE_T, BACKEND_DESCRIPTOR, 1, 1,
                          false) D(OPERATION_POINTWISE, OPERATION_POINTWISE_Y, BACKEND_DESCRIPTOR,
                                   1, 1,
                                   true) D(OPERATIONGRAPH, OPERATIONGRAPH_HANDLE, HANDLE, 1, 1,
                                           true) D(OPERATIONGRAPH, OPERATIONGRAPH_OPS,
                                                   BACKEND_DESCRIPTOR, 1, SIM_CUDNN_OPS, true)
                            D(VARIANT_PACK, VARIANT_PACK_UNIQUE_IDS, INT64, 1,
                              SIM_CUDNN_TENSORS, true) D(VARIANT_PACK, VARIANT_PACK_DATA_POINTERS,
                                                         VOID_PTR, 1, SIM_CUDNN_TENSORS, true)
                                D(VARIANT_PACK, VARIANT_PACK_WORKSPACE, VOID_PTR, 1, 1, true) D(
                                    TENSOR, TENSOR_BYTE_ALIGNMENT, INT64, 1, 1,
                                    true) D(TENSOR, TENSOR_DATA_TYPE, DATA_TYPE, 1, 1, true)
                                    D(TENSOR, TENSOR_DIMENSIONS, INT64, 1, 8,
                                      true) D(TENSOR, TENSOR_STRIDES, INT64, 1, 8, true)
                                        D(TENSOR, TENSOR_UNIQUE_ID, INT64, 1, 1,
                                          true) D(TENSOR, TENSOR_IS_VIRTUAL, BOOLEAN, 1, 1, false)
                                            D(TENSOR, TENSOR_IS_BY_VALUE, BOOLEAN, 1, 1,
                                              false) D(MATMUL, MATMUL_COMP_TYPE, DATA_TYPE, 1, 1,
                                                       true) D(OPERATION_MATMUL, OPERATION_MATMUL_A,
                                                               BACKEND_DESCRIPTOR, 1, 1, true)
                                                D(OPERATION_MATMUL, OPERATION_MATMUL_B,
                                                  BACKEND_DESCRIPTOR, 1,
                                                  1, true) D(OPERATION_MATMUL, OPERATION_MATMUL_C,
                                                             BACKEND_DESCRIPTOR, 1, 1, true)
                                                    D(OPERATION_MATMUL, OPERATION_MATMUL_DESC,
                                                      BACKEND_DESCRIPTOR, 1,
                                                      1, true) D(REDUCTION, REDUCTION_OPERATOR,
                                                                 REDUCTION_OPERATOR, 1, 1, true)
                                                        D(REDUCTION, REDUCTION_COMP_TYPE, DATA_TYPE,
                                                          1, 1, true) D(REDUCTION,
                                                                        REDUCTION_IS_DETERMINISTIC,
                                                                        BOOLEAN, 1, 1, false)
                                                            D(OPERATION_REDUCTION,
                                                              OPERATION_REDUCTION_X,
                                                              BACKEND_DESCRIPTOR, 1, 1, true)
                                                                D(OPERATION_REDUCTION,
                                                                  OPERATION_REDUCTION_Y,
                                                                  BACKEND_DESCRIPTOR, 1, 1, true)
                                                                    D(OPERATION_REDUCTION,
                                                                      OPERATION_REDUCTION_DESC,
                                                                      BACKEND_DESCRIPTOR, 1, 1,
                                                                      true) D(OPERATION_RESHAPE,
                                                                              OPERATION_RESHAPE_X,
                                                                              BACKEND_DESCRIPTOR, 1,
                                                                              1, true)
                                                                        D(OPERATION_RESHAPE,
                                                                          OPERATION_RESHAPE_Y,
                                                                          BACKEND_DESCRIPTOR, 1, 1,
                                                                          true)
#undef D
};

typedef struct {
    int name;
    int64_t n;
    void *data;
} Attr;

typedef struct {
    int type;
    bool finalized;
    Attr attrs[MAX_ATTRS];
    int n_attrs;
    SimGraph *graph;   /* of a graph, and what is made of it */
    int engine;        /* of an engine, and what is made of it */
    int64_t workspace; /* of a plan */
} Desc;

typedef struct {
    CUstream stream;
    bool has_stream;
} Handle;

static size_t size_of(int type) {
    switch (type) {
    case MOE_CUDNN_TYPE_INT64:
    case MOE_CUDNN_TYPE_VOID_PTR:
    case MOE_CUDNN_TYPE_HANDLE:
    case MOE_CUDNN_TYPE_BACKEND_DESCRIPTOR:
        return 8;
    case MOE_CUDNN_TYPE_BOOLEAN:
    case MOE_CUDNN_TYPE_CHAR:
        return 1;
    default:
        return 4;
    }
}

int sim_desc_type(MoeCudnnDesc d) {
    return d ? ((Desc *)d)->type : -1;
}

const void *sim_desc_attr(MoeCudnnDesc d, int name, int64_t *n) {
    Desc *desc = d;
    for (int i = 0; i < desc->n_attrs; i++)
        if (desc->attrs[i].name == name) {
            if (n)
                *n = desc->attrs[i].n;
            return desc->attrs[i].data;
        }
    return NULL;
}

static Desc *desc_of(Desc *d, int name) {
    const void *p = sim_desc_attr(d, name, NULL);
    return p ? *(Desc *const *)p : NULL;
}

MOE_SIM_EXPORT MoeCudnnResult cudnnBackendCreateDescriptor(int type, MoeCudnnDesc *out) {
    bool known = false;
    for (int i = 0; i < LEN(rules); i++)
        known |= rules[i].desc == type;
    *out = NULL;
    if (!known)
        return sim_cudnn_say(MOE_CUDNN_NOT_SUPPORTED, "descriptor %d is not simulated", type);
    Desc *d = calloc(1, sizeof *d);
    if (!d)
        return 4003;
    d->type = type;
    *out = d;
    return MOE_CUDNN_SUCCESS;
}

MOE_SIM_EXPORT MoeCudnnResult cudnnBackendDestroyDescriptor(MoeCudnnDesc desc) {
    Desc *d = desc;
    if (!d)
        return MOE_CUDNN_SUCCESS;
    for (int i = 0; i < d->n_attrs; i++)
        free(d->attrs[i].data);
    free(d);
    return MOE_CUDNN_SUCCESS;
}

MOE_SIM_EXPORT MoeCudnnResult cudnnBackendSetAttribute(MoeCudnnDesc desc, int name, int type,
                                                       int64_t n, const void *elements) {
    Desc *d = desc;
    int rule = -1;
    if (!d || !elements)
        return sim_cudnn_say(2002, "a descriptor or elements that are NULL");
    if (d->finalized)
        return sim_cudnn_say(MOE_CUDNN_NOT_INITIALIZED, "descriptor %d is finalized", d->type);
    for (int i = 0; i < LEN(rules); i++)
        if (rules[i].desc == d->type && rules[i].name == name)
            rule = i;
    if (rule < 0)
        return sim_cudnn_say(MOE_CUDNN_BAD_PARAM, "descriptor %d has no attribute %d to set",
                             d->type, name);
    if (rules[rule].type != type)
        return sim_cudnn_say(2010, "attribute %d is of type %d, not %d", name, rules[rule].type,
                             type);
    if (n < rules[rule].least || n > rules[rule].most)
        return sim_cudnn_say(MOE_CUDNN_BAD_PARAM, "attribute %d has %d to %d elements, not %lld",
                             name, rules[rule].least, rules[rule].most, (long long)n);
    if (type == MOE_CUDNN_TYPE_BACKEND_DESCRIPTOR)
        for (int64_t i = 0; i < n; i++)
            if (!((Desc *const *)elements)[i] || !((Desc *const *)elements)[i]->finalized)
                return sim_cudnn_say(2004, "attribute %d: descriptor %lld is not finalized", name,
                                     (long long)i);
    Attr *a = NULL;
    for (int i = 0; i < d->n_attrs; i++)
        if (d->attrs[i].name == name)
            a = &d->attrs[i];
    if (!a)
        a = &d->attrs[d->n_attrs++];
    free(a->data);
    *a = (Attr){name, n, malloc((size_t)n * size_of(type))};
    if (!a->data)
        return 4003;
    memcpy(a->data, elements, (size_t)n * size_of(type));
    return MOE_CUDNN_SUCCESS;
}

/* ---- finalizing ---- */

static MoeCudnnResult check_tensor(Desc *d) {
    int64_t n = 0, m = 0;
    const int64_t *dims = sim_desc_attr(d, MOE_CUDNN_ATTR_TENSOR_DIMENSIONS, &n),
                  *strides = sim_desc_attr(d, MOE_CUDNN_ATTR_TENSOR_STRIDES, &m);
    if (n != 4 || m != 4)
        return sim_cudnn_say(MOE_CUDNN_NOT_SUPPORTED, "a tensor of %lld dims and %lld strides",
                             (long long)n, (long long)m);
    for (int i = 0; i < 4; i++)
        if (dims[i] < 1 || strides[i] < 1)
            return sim_cudnn_say(MOE_CUDNN_BAD_PARAM, "a dim or stride that is not positive");
    return MOE_CUDNN_SUCCESS;
}

/* Engine 1 takes all graphs by itself; 6 (Hopper) and 5 (Blackwell) gradients, with their stages set. */
static MoeCudnnResult check_config(Desc *d) {
    Desc *engine = desc_of(d, MOE_CUDNN_ATTR_ENGINECFG_ENGINE);
    int64_t n = 0, stages = -1;
    Desc *const *knobs = sim_desc_attr(d, MOE_CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, &n);
    for (int64_t i = 0; i < n; i++)
        if (*(const int *)sim_desc_attr(knobs[i], MOE_CUDNN_ATTR_KNOB_CHOICE_TYPE, NULL) ==
            MOE_CUDNN_KNOB_STAGES)
            stages =
                *(const int64_t *)sim_desc_attr(knobs[i], MOE_CUDNN_ATTR_KNOB_CHOICE_VALUE, NULL);
    d->graph = engine->graph;
    d->engine = engine->engine;
    bool in_order =
        (d->engine == ENGINE_ORDERED && stages == 4) || (d->engine == ENGINE_SM100 && stages == 2);
    if (d->engine != ENGINE_USUAL && !(in_order && d->graph->grad))
        return sim_cudnn_say(MOE_CUDNN_NOT_SUPPORTED, "engine %d with %lld stages", d->engine,
                             (long long)stages);
    return MOE_CUDNN_SUCCESS;
}

static MoeCudnnResult make_plan(Desc *d) {
    Desc *config = desc_of(d, MOE_CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
    d->graph = config->graph;
    d->engine = config->engine;
    if (d->engine == ENGINE_BROKEN)
        return sim_cudnn_say(MOE_CUDNN_NOT_SUPPORTED, "this engine takes no graph");
    d->workspace = sim_cudnn_workspace(d->graph, d->engine);
    return MOE_CUDNN_SUCCESS;
}

static MoeCudnnResult check_pack(Desc *d) {
    int64_t n = 0, m = 0;
    (void)sim_desc_attr(d, MOE_CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &n);
    (void)sim_desc_attr(d, MOE_CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, &m);
    return n == m ? MOE_CUDNN_SUCCESS
                  : sim_cudnn_say(MOE_CUDNN_BAD_PARAM, "%lld uids and %lld addresses", (long long)n,
                                  (long long)m);
}

static MoeCudnnResult make(Desc *d) {
    int64_t n = 0;
    const MoeCudnnDesc *ops;
    switch (d->type) {
    case MOE_CUDNN_TENSOR:
        return check_tensor(d);
    case MOE_CUDNN_OPERATIONGRAPH:
        ops = sim_desc_attr(d, MOE_CUDNN_ATTR_OPERATIONGRAPH_OPS, &n);
        return sim_cudnn_graph(ops, n, &d->graph);
    case MOE_CUDNN_ENGINE:
        d->graph = desc_of(d, MOE_CUDNN_ATTR_ENGINE_OPERATION_GRAPH)->graph;
        d->engine =
            (int)*(const int64_t *)sim_desc_attr(d, MOE_CUDNN_ATTR_ENGINE_GLOBAL_INDEX, NULL);
        return MOE_CUDNN_SUCCESS;
    case MOE_CUDNN_ENGINEHEUR:
        d->graph = desc_of(d, MOE_CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH)->graph;
        return MOE_CUDNN_SUCCESS;
    case MOE_CUDNN_ENGINECFG:
        return check_config(d);
    case MOE_CUDNN_EXECUTION_PLAN:
        return make_plan(d);
    case MOE_CUDNN_VARIANT_PACK:
        return check_pack(d);
    default:
        return MOE_CUDNN_SUCCESS;
    }
}

MOE_SIM_EXPORT MoeCudnnResult cudnnBackendFinalize(MoeCudnnDesc desc) {
    Desc *d = desc;
    if (!d)
        return sim_cudnn_say(2002, "a descriptor that is NULL");
    for (int i = 0; i < LEN(rules); i++)
        if (rules[i].desc == d->type && rules[i].needed && !sim_desc_attr(d, rules[i].name, NULL))
            return sim_cudnn_say(MOE_CUDNN_BAD_PARAM, "descriptor %d lacks attribute %d", d->type,
                                 rules[i].name);
    MoeCudnnResult r = make(d);
    d->finalized = r == MOE_CUDNN_SUCCESS;
    return r;
}

/* ---- asking ---- */

/* Two configurations: of an engine that then takes nothing, and of the usual one. */
static MoeCudnnResult tell_engines(Desc *d, int64_t room, int64_t *n, Desc *const *out) {
    bool none = sim_cudnn_fault("none") || (sim_cudnn_fault("nograd") && d->graph->grad);
    *n = none ? 0 : 2;
    for (int64_t i = 0; i < *n && i < room; i++) {
        if (!out[i] || out[i]->type != MOE_CUDNN_ENGINECFG || out[i]->finalized)
            return sim_cudnn_say(MOE_CUDNN_BAD_PARAM, "results go into new configurations");
        out[i]->finalized = true;
        out[i]->graph = d->graph;
        out[i]->engine = i ? ENGINE_USUAL : ENGINE_BROKEN;
    }
    return MOE_CUDNN_SUCCESS;
}

MOE_SIM_EXPORT MoeCudnnResult cudnnBackendGetAttribute(MoeCudnnDesc desc, int name, int type,
                                                       int64_t room, int64_t *n, void *out) {
    Desc *d = desc;
    if (!d || !d->finalized)
        return sim_cudnn_say(2004, "a descriptor that is not finalized");
    if (name == MOE_CUDNN_ATTR_ENGINEHEUR_RESULTS && d->type == MOE_CUDNN_ENGINEHEUR &&
        type == MOE_CUDNN_TYPE_BACKEND_DESCRIPTOR)
        return tell_engines(d, room, n, out);
    if (name == MOE_CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE &&
        d->type == MOE_CUDNN_EXECUTION_PLAN && type == MOE_CUDNN_TYPE_INT64 && room == 1) {
        *(int64_t *)out = d->workspace;
        *n = 1;
        return MOE_CUDNN_SUCCESS;
    }
    if (name == MOE_CUDNN_ATTR_ENGINECFG_ENGINE && d->type == MOE_CUDNN_ENGINECFG &&
        type == MOE_CUDNN_TYPE_BACKEND_DESCRIPTOR && room == 1) {
        Desc *engine = *(Desc **)out;
        if (!engine || engine->type != MOE_CUDNN_ENGINE)
            return sim_cudnn_say(MOE_CUDNN_BAD_PARAM, "an engine goes into an engine");
        engine->finalized = true;
        engine->graph = d->graph;
        engine->engine = d->engine;
        *n = 1;
        return MOE_CUDNN_SUCCESS;
    }
    if (name == MOE_CUDNN_ATTR_ENGINE_NUMERICAL_NOTE && d->type == MOE_CUDNN_ENGINE &&
        type == MOE_CUDNN_TYPE_NUMERICAL_NOTE) {
        *n = 0;
        return MOE_CUDNN_SUCCESS;
    }
    return sim_cudnn_say(MOE_CUDNN_NOT_SUPPORTED, "descriptor %d: asking for attribute %d", d->type,
                         name);
}

/* ---- handles, running ---- */

MOE_SIM_EXPORT MoeCudnnResult cudnnCreate(MoeCudnnHandle *out) {
    *out = NULL;
    if (!getenv("MOE_SIM_CUDNN"))
        return sim_cudnn_say(MOE_CUDNN_NOT_INITIALIZED, "MOE_SIM_CUDNN is not set");
    *out = calloc(1, sizeof(Handle));
    return *out ? MOE_CUDNN_SUCCESS : 4003;
}
MOE_SIM_EXPORT MoeCudnnResult cudnnDestroy(MoeCudnnHandle handle) {
    free(handle);
    return MOE_CUDNN_SUCCESS;
}
MOE_SIM_EXPORT MoeCudnnResult cudnnSetStream(MoeCudnnHandle handle, void *stream) {
    Handle *h = handle;
    if (!h)
        return sim_cudnn_say(2002, "a handle that is NULL");
    h->stream = stream;
    h->has_stream = true;
    return MOE_CUDNN_SUCCESS;
}

/* Addresses and numbers by tensor. */
static MoeCudnnResult bind_pack(const SimGraph *g, Desc *pack, SimRun *out) {
    int64_t n = 0;
    const int64_t *uids = sim_desc_attr(pack, MOE_CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &n);
    void *const *at = sim_desc_attr(pack, MOE_CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, NULL);
    int64_t used = 0;
    for (int t = 0; t < g->n_tensors; t++) {
        const SimTensor *x = &g->tensors[t];
        for (int64_t i = 0; i < n && !x->is_virtual; i++)
            if (uids[i] == x->uid) {
                out->at[t] = at[i];
                used++;
            }
        if (!x->is_virtual &&
            (!out->at[t] || (uintptr_t)out->at[t] % (uintptr_t)(x->by_value ? 4 : x->alignment)))
            return sim_cudnn_say(2003,
                                 "tensor %lld has no address, or one that is not aligned to %lld",
                                 (long long)x->uid, (long long)x->alignment);
        if (x->by_value)
            out->value[t] = *(const float *)out->at[t];
    }
    return used == n
               ? MOE_CUDNN_SUCCESS
               : sim_cudnn_say(MOE_CUDNN_BAD_PARAM, "%lld addresses, %lld of them the graph's",
                               (long long)n, (long long)used);
}

MOE_SIM_EXPORT MoeCudnnResult cudnnBackendExecute(MoeCudnnHandle handle, MoeCudnnDesc plan,
                                                  MoeCudnnDesc pack) {
    static int n_runs;
    Handle *h = handle;
    Desc *p = plan, *v = pack;
    if (!h || !h->has_stream || !p || !v || !p->finalized || !v->finalized ||
        p->type != MOE_CUDNN_EXECUTION_PLAN || v->type != MOE_CUDNN_VARIANT_PACK)
        return sim_cudnn_say(MOE_CUDNN_BAD_PARAM, "execute: a handle without a stream, or "
                                                  "something that is no finalized plan or pack");
    if (sim_cudnn_fault("fail"))
        return sim_cudnn_say(MOE_CUDNN_EXECUTION_FAILED, "MOE_SIM_CUDNN=fail");
    SimRun run = {.g = p->graph,
                  .workspace_bytes = p->workspace,
                  .workspace =
                      *(void *const *)sim_desc_attr(v, MOE_CUDNN_ATTR_VARIANT_PACK_WORKSPACE, NULL),
                  .batch_fault = sim_cudnn_fault("batch"),
                  .place_fault = sim_cudnn_fault("place"),
                  .random_fault = sim_cudnn_fault("random") ? 1 + n_runs++ % 7 : 0,
                  .wrong_fault = sim_cudnn_fault("wrong")};
    MoeCudnnResult r = bind_pack(p->graph, v, &run);
    if (r)
        return r;
    CUresult c = moe_sim_stream_call(h->stream, "cudnn", sim_cudnn_run, &run, sizeof run);
    return c ? sim_cudnn_say(5001, "the driver says %d", (int)c) : MOE_CUDNN_SUCCESS;
}
