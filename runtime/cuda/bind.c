/* Code and arguments of launches, worked out once: modules, functions, addresses of buffers, tensor maps, the tables of elastic
 * values. See cuda/device.h. */
#include <stdlib.h>
#include <string.h>

#include "runtime/cuda/device.h"

#define USUAL_SHARED 49152 /* bytes of shared memory that a kernel may have without asking */

static MoeStatus no_memory(void) {
    return moe_error(MOE_E_NOMEM, "no memory for the plan's tables");
}

/* ---- code ---- */

static MoeStatus load_module(MoeDeviceCuda *d, const MoeCubin *c, MoeCuModule *out) {
    for (size_t i = 0; i < d->n_modules; i++)
        if (d->modules[i].image == c->data) {
            *out = d->modules[i].module;
            return NULL;
        }
    MOE_TRY(moe_cuda_check(d, d->cu->module_load(out, c->data, 0, NULL, NULL),
                           "loading the code of %s (%zu bytes)", c->name, c->n));
    d->modules[d->n_modules++] = (MoeCudaModule){c->data, *out};
    return NULL;
}

static MoeStatus find_function(MoeDeviceCuda *d, const char *kernel, MoeCuFunction *out) {
    const MoeCubin *c = moe_cubins_find(&d->plan->cubins, kernel);
    MoeCuModule module = NULL;
    MOE_TRY(load_module(d, c, &module));
    return moe_cuda_check(d, d->cu->module_function(out, module, kernel), "finding kernel %s",
                          kernel);
}

static MoeStatus find_runtime(MoeDeviceCuda *d) {
    static const char *const names[] = {
#define X(name, bufs) #name,
        MOE_RT_KERNELS(X)
#undef X
    };
    d->modules = calloc(d->plan->cubins.n + 1, sizeof *d->modules);
    if (!d->modules)
        return no_memory();
    for (int i = 0; i < MOE_RT_N_KERNELS; i++)
        MOE_TRY(find_function(d, names[i], &d->runtime[i]));
    return NULL;
}

/* ---- launches ---- */

static MoeStatus encode_map(MoeDeviceCuda *d, const MoePlanStep *s, const MoePlanTensorMap *m,
                            MoeCuPtr at, MoeCuTensorMap *out) {
    uint64_t dims[5] = {1, 1, 1, 1, 1}, strides[4] = {0};
    uint32_t box[5] = {1, 1, 1, 1, 1}, ones[5] = {1, 1, 1, 1, 1};
    for (int k = 0; k < m->rank; k++) {
        dims[k] = (uint64_t)m->dims[k];
        box[k] = (uint32_t)m->box[k];
        if (k > 0)
            strides[k - 1] = (uint64_t)m->strides[k - 1];
    }
    int swizzle = m->swizzle == 32    ? MOE_CU_SWIZZLE_32B
                  : m->swizzle == 64  ? MOE_CU_SWIZZLE_64B
                  : m->swizzle == 128 ? MOE_CU_SWIZZLE_128B
                                      : MOE_CU_SWIZZLE_NONE;
    int type = m->dtype == MOE_PLAN_BF16 ? MOE_CU_TENSOR_BFLOAT16 : MOE_CU_TENSOR_FLOAT32;
    return moe_cuda_check(
        d,
        d->cu->tensor_map_encode(out, type, (uint32_t)m->rank, (void *)(uintptr_t)at, dims, strides,
                                 box, ones, MOE_CU_INTERLEAVE_NONE, swizzle,
                                 MOE_CU_L2_PROMOTION_128B, MOE_CU_FILL_ZEROS),
        "the tensor map of buffer %d of step %s", m->buf, s->name);
}

static MoeStatus bind_launch(MoeDeviceCuda *d, const MoeExecProgram *g, size_t i,
                             MoeCudaLaunch *out) {
    const MoePlanStep *s = &g->plan->steps[i];
    size_t n_args = 1 + (s->n_bufs ? s->n_bufs : 1);
    MOE_TRY(find_function(d, s->kernel, &out->function));
    if (s->shape.shared_bytes > USUAL_SHARED)
        MOE_TRY(moe_cuda_check(d,
                               d->cu->function_set(out->function,
                                                   MOE_CU_FUNC_MAX_DYNAMIC_SHARED_BYTES,
                                                   (int)s->shape.shared_bytes),
                               "%lld bytes of shared memory for kernel %s of step %s",
                               (long long)s->shape.shared_bytes, s->kernel, s->name));
    out->args = calloc(n_args, sizeof *out->args);
    out->params = calloc(1 + s->shape.n_maps, sizeof *out->params);
    out->maps = aligned_alloc(64, sizeof *out->maps * (s->shape.n_maps + 1));
    if (!out->args || !out->params || !out->maps)
        return no_memory();
    out->args[0] = d->stop;
    out->params[0] = out->args;
    for (size_t b = 0; b < s->n_bufs; b++)
        out->args[1 + b] = moe_cuda_address(d, g->step_bufs[i][b]);
    for (size_t m = 0; m < s->shape.n_maps; m++) {
        MOE_TRY(encode_map(d, s, &s->shape.maps[m], out->args[1 + s->shape.maps[m].buf],
                           &out->maps[m]));
        out->params[1 + m] = &out->maps[m];
    }
    return NULL;
}

/* ---- elastic values ---- */

static void add_elastic(MoeDeviceCuda *d, const MoeExecProgram *g, int value, MoeCudaProgram *c) {
    const MoePlanValue *v = &g->plan->values[value], *rows = &g->plan->values[v->rows];
    c->value[c->n_elastic] = value;
    c->elastic[c->n_elastic++] = (MoeRtElastic){
        .rows = moe_cuda_address(d, g->values[v->rows] + rows->bytes / 4 * 4 - 4)};
}

/* The last launch of step i's group: they have one name. */
static size_t group_end(const MoePlanProgram *p, size_t i) {
    while (i + 1 < p->n_steps && p->steps[i + 1].kernel &&
           !strcmp(p->steps[i].name, p->steps[i + 1].name))
        i++;
    return i;
}

/* Values that begin at step k and whose rows are known before it, or not. */
static void add_begun(MoeDeviceCuda *d, const MoeExecProgram *g, size_t k, bool known,
                      MoeCudaProgram *c) {
    for (size_t e = g->elastic_at[k]; e < g->elastic_at[k + 1]; e++)
        if (moe_cuda_rows_known(g->plan, g->elastic[e].value, k) == known)
            add_elastic(d, g, g->elastic[e].value, c);
}

/* In the order of steps, those that are looked at before a step first. */
static MoeStatus list_elastic(MoeDeviceCuda *d, const MoeExecProgram *g, MoeCudaProgram *c) {
    const MoePlanProgram *p = g->plan;
    c->elastic = calloc(g->n_elastic + 1, sizeof *c->elastic);
    c->value = calloc(g->n_elastic + 1, sizeof *c->value);
    c->before = calloc(p->n_steps + 1, sizeof *c->before);
    c->after = calloc(p->n_steps + 1, sizeof *c->after);
    if (!c->elastic || !c->value || !c->before || !c->after)
        return no_memory();
    for (size_t i = 0, from = 0; i < p->n_steps; i++) {
        c->before[i] = c->n_elastic;
        add_begun(d, g, i, true, c);
        c->after[i] = c->n_elastic;
        if (group_end(p, i) != i)
            continue;
        while (from < i && group_end(p, from) != i)
            from++;
        for (; from <= i; from++)
            add_begun(d, g, from, false, c);
    }
    c->before[p->n_steps] = c->n_elastic;
    size_t bytes = c->n_elastic * sizeof *c->elastic;
    c->stale = true; /* limits are not in it yet */
    MOE_TRY(moe_cuda_table(d, (int64_t)bytes, "the plan's tables", &c->table));
    return moe_cuda_check(d, d->cu->copy_in(c->table, c->elastic, bytes, d->stream),
                          "copying the table of elastic values");
}

static MoeStatus bind_program(MoeDeviceCuda *d, const MoeExecProgram *g, MoeCudaProgram *c) {
    c->launches = calloc(g->plan->n_steps + 1, sizeof *c->launches);
    if (!c->launches)
        return no_memory();
    for (size_t i = 0; i < g->plan->n_steps; i++)
        if (g->plan->steps[i].kernel)
            MOE_TRY(bind_launch(d, g, i, &c->launches[i]));
    return g->n_elastic ? list_elastic(d, g, c) : NULL;
}

MoeStatus moe_cuda_bind(MoeDevice *base, MoeExec *x) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    MOE_TRY(moe_cuda_enter(d));
    MOE_TRY(find_runtime(d));
    d->programs = calloc(x->plan->n_programs + 1, sizeof *d->programs);
    if (!d->programs)
        return no_memory();
    for (size_t g = 0; g < x->plan->n_programs; g++)
        MOE_TRY(bind_program(d, &x->programs[g], &d->programs[g]));
    d->grew = true;
    return moe_cuda_wait(d);
}

static void free_program(MoeDeviceCuda *d, const MoePlanProgram *p, MoeCudaProgram *c) {
    for (size_t i = 0; c->launches && i < p->n_steps; i++) {
        free(c->launches[i].args);
        free(c->launches[i].maps);
        free(c->launches[i].params);
    }
    for (int i = 0; i < c->n_graphs; i++)
        if (c->graphs[i].exec)
            (void)d->cu->graph_exec_destroy(c->graphs[i].exec);
    if (c->table)
        (void)d->cu->mem_free(c->table);
    free(c->launches);
    free(c->elastic);
    free(c->value);
    free(c->before);
    free(c->after);
}

void moe_cuda_unbind(MoeDeviceCuda *d) {
    for (size_t g = 0; d->programs && g < d->plan->n_programs; g++)
        free_program(d, &d->plan->programs[g], &d->programs[g]);
    for (size_t i = 0; i < d->n_modules; i++)
        (void)d->cu->module_unload(d->modules[i].module);
    free(d->programs);
    free(d->modules);
}
