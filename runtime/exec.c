/* Memory of an execution: one region for parameters and states, one slab for all programs, inputs
 * by name, scratch a thread; every step's buffer pointers are worked out once. exec_run.c runs
 * them. */
#include "runtime/exec.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "runtime/emulate.h"
#include "runtime/exec_comm.h"
#include "runtime/plan_read.h"
#include "runtime/store.h"

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

static MoeStatus no_memory(void) {
    return moe_error(MOE_E_NOMEM, "no memory for the plan's tables");
}

static MoeStatus alloc_buffers(MoeExec *x) {
    const MoePlan *p = x->plan;
    int64_t total = 0;
    x->buffers = calloc(p->n_buffers + 1, sizeof *x->buffers);
    if (!x->buffers)
        return no_memory();
    for (size_t i = 0; i < p->n_buffers; i++)
        if (!moe_add_i64(total, moe_plan_buffer_bytes(&p->buffers[i]), &total))
            return moe_error(MOE_E_NOMEM, "the plan's parameters and states do not fit in memory");
    MOE_TRY(x->device->ops->alloc(x->device, total, "parameters and optimiser states", &x->region));
    x->region_bytes = total;
    char *at = x->region;
    for (size_t i = 0; i < p->n_buffers; i++) {
        x->buffers[i] = at;
        at += moe_plan_buffer_bytes(&p->buffers[i]);
    }
    return NULL;
}

static MoeExecInput *find_input(const MoeExec *x, const char *name) {
    for (size_t i = 0; i < x->n_inputs; i++)
        if (!strcmp(x->inputs[i].name, name))
            return &x->inputs[i];
    return NULL;
}

/* One run of memory, so that a device gets them all at once. */
static MoeStatus place_inputs(MoeExec *x) {
    int64_t total = 0;
    for (size_t i = 0; i < x->n_inputs; i++)
        if (!moe_add_i64(total, round_up(x->inputs[i].bytes, MOE_BUFFER_ALIGN) + MOE_BUFFER_SLACK,
                         &total))
            return moe_error(MOE_E_NOMEM, "the plan's inputs do not fit in memory");
    MOE_TRY(x->device->ops->alloc(x->device, total, "a batch", &x->input_memory));
    x->input_bytes = total;
    char *at = x->input_memory;
    for (size_t i = 0; i < x->n_inputs; i++) {
        x->inputs[i].data = at;
        at += round_up(x->inputs[i].bytes, MOE_BUFFER_ALIGN) + MOE_BUFFER_SLACK;
    }
    return NULL;
}

static MoeStatus alloc_inputs(MoeExec *x) {
    const MoePlan *p = x->plan;
    size_t most = 0;
    for (size_t g = 0; g < p->n_programs; g++)
        most += p->programs[g].n_values;
    x->inputs = calloc(most + 1, sizeof *x->inputs);
    if (!x->inputs)
        return no_memory();
    for (size_t g = 0; g < p->n_programs; g++)
        for (size_t i = 0; i < p->programs[g].n_values; i++) {
            const MoePlanValue *v = &p->programs[g].values[i];
            if (v->kind != MOE_VALUE_INPUT)
                continue;
            MoeExecInput *in = find_input(x, v->input);
            if (!in) {
                in = &x->inputs[x->n_inputs++];
                in->name = v->input;
            }
            if (v->bytes > in->bytes)
                in->bytes = v->bytes;
        }
    return place_inputs(x);
}

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static MoeStatus alloc_work(MoeExec *x) {
    const MoePlan *p = x->plan;
    void *data = NULL;
    for (size_t i = 0; i < p->n_programs; i++) {
        const MoePlanProgram *g = &p->programs[i];
        x->slab_bytes = larger(x->slab_bytes, g->slab_bytes);
        x->elastic_expect = larger(x->elastic_expect, g->elastic_expect);
    }
    x->fixed_bytes = moe_plan_fixed_bytes(p);
    MOE_TRY(x->device->ops->slab(x->device, x->slab_bytes, x->fixed_bytes, &x->slab));
    x->scratch_stride = moe_plan_scratch_bytes(p);
    x->scratch_bytes = x->scratch_stride * moe_pool_threads(x->pool);
    if (x->scratch_bytes)
        MOE_TRY(moe_alloc_big((size_t)x->scratch_bytes, "the threads' scratch memory", &data));
    x->scratch = data;
    x->load = calloc(p->n_moe_layers * (size_t)p->virtual_shards * (size_t)p->experts + 1,
                     sizeof *x->load);
    x->segs = calloc((size_t)p->micro_batches * p->n_moe_layers + 1, sizeof *x->segs);
    return x->load && x->segs ? NULL : no_memory();
}

static MoeStatus bind_program(MoeExec *x, const MoePlanProgram *g, MoeExecProgram *out) {
    size_t n_bufs = 0;
    for (size_t i = 0; i < g->n_steps; i++)
        n_bufs += g->steps[i].n_bufs;
    out->plan = g;
    out->values = calloc(g->n_values + 1, sizeof *out->values);
    out->step_bufs = calloc(g->n_steps + 1, sizeof *out->step_bufs);
    out->seconds = calloc(g->n_steps + 1, sizeof *out->seconds);
    void **bufs = calloc(n_bufs + 1, sizeof *bufs);
    if (!out->values || !out->step_bufs || !out->seconds || !bufs) {
        free(bufs);
        return no_memory();
    }
    for (size_t i = 0; i < g->n_values; i++) {
        const MoePlanValue *v = &g->values[i];
        out->values[i] = v->kind == MOE_VALUE_BUFFER ? x->buffers[v->buffer]
                         : v->kind == MOE_VALUE_SLAB ? x->slab + v->offset
                                                     : find_input(x, v->input)->data;
    }
    out->step_bufs[g->n_steps] = bufs; /* the block, for free */
    for (size_t i = 0; i < g->n_steps; i++) {
        out->step_bufs[i] = bufs;
        for (size_t b = 0; b < g->steps[i].n_bufs; b++)
            *bufs++ = out->values[g->steps[i].buf_value[b]] + g->steps[i].buf_offset[b];
    }
    return NULL;
}

static const MoePlanPort *find_port(const MoePlanPort *ports, size_t n, const char *name) {
    for (size_t i = 0; i < n; i++)
        if (!strcmp(ports[i].name, name))
            return &ports[i];
    return NULL;
}

/* A port that the runtime reads or writes itself: there, of this dtype, with at least (exactly) so
 * many elements. */
static MoeStatus need_port(const MoePlanProgram *g, bool input, const char *name,
                           MoePlanDtype dtype, int64_t elements, bool exact) {
    const MoePlanPort *q =
        input ? find_port(g->inputs, g->n_inputs, name) : find_port(g->outputs, g->n_outputs, name);
    if (!q || q->dtype != dtype || q->elements < elements || (exact && q->elements != elements))
        return moe_error(MOE_E_CORRUPT,
                         "damaged plan: program %s %s %s \"%s\" of %lld elements; compile it again",
                         g->name, q ? "has a wrong" : "lacks the", input ? "input" : "output", name,
                         (long long)elements);
    return NULL;
}

/* What is added with expert or tensor parallelism, where a program has it. */
static MoeStatus check_ep_ports(const MoePlan *p, const MoePlanProgram *g) {
    char name[32];
    for (int k = 0; k <= p->mesh.n_ranges; k++) {
        moe_mesh_input_name("tok_ep", k, name);
        if (find_port(g->inputs, g->n_inputs, name))
            MOE_TRY(need_port(g, true, name, MOE_PLAN_I32, p->virtual_shards + 1, true));
        moe_mesh_input_name("ep_rank", k, name);
        if (find_port(g->inputs, g->n_inputs, name))
            MOE_TRY(need_port(g, true, name, MOE_PLAN_I32, 1, true));
    }
    if (find_port(g->inputs, g->n_inputs, "tp_rank"))
        MOE_TRY(need_port(g, true, "tp_rank", MOE_PLAN_I32, 1, true));
    for (size_t k = 0; k < p->n_moe_layers; k++) {
        snprintf(name, sizeof name, "place.%d", p->moe_layers[k]);
        if (find_port(g->inputs, g->n_inputs, name))
            MOE_TRY(need_port(g, true, name, MOE_PLAN_I32, p->experts, true));
    }
    return NULL;
}

static MoeStatus check_ports(const MoePlan *p) {
    const int V = p->virtual_shards;
    int64_t most = moe_mesh_most_sequences(&p->mesh, p->batch, p->micro_batches);
    for (size_t i = 0; i < p->n_programs; i++) {
        const MoePlanProgram *g = &p->programs[i];
        bool train = !strcmp(g->name, "train"), eval = !strcmp(g->name, "eval"),
             logits = !strcmp(g->name, "logits");
        if (!train && !eval && !logits)
            continue;
        MOE_TRY(need_port(g, true, "tok", MOE_PLAN_I32, V + 1, true));
        MOE_TRY(check_ep_ports(p, g));
        int64_t seqs = logits ? 1 : most;
        MOE_TRY(need_port(g, true, "ids", MOE_PLAN_I32, seqs * p->seq, false));
        if (!logits)
            MOE_TRY(need_port(g, true, "labels", MOE_PLAN_I32, most * p->seq, false));
        if (logits)
            MOE_TRY(need_port(g, false, "logits", MOE_PLAN_F32, p->seq * p->vocab_size, false));
        if (eval)
            MOE_TRY(need_port(g, false, "nll_sum", MOE_PLAN_F32, 1, true));
        if (!logits)
            MOE_TRY(need_port(g, false, "tokens", MOE_PLAN_I32, 1, true));
        if (!train)
            continue;
        MOE_TRY(need_port(g, false, "loss", MOE_PLAN_F32, 1, true));
        MOE_TRY(need_port(g, false, "ce_loss", MOE_PLAN_F32, 1, true));
        MOE_TRY(need_port(g, false, "grad_norm", MOE_PLAN_F32, 1, true));
        for (size_t k = 0; k < p->n_moe_layers; k++) {
            char name[32];
            snprintf(name, sizeof name, "segs.%d", p->moe_layers[k]);
            MOE_TRY(need_port(g, false, name, MOE_PLAN_I32, (int64_t)p->experts * V + 1, true));
        }
    }
    return NULL;
}

/* The communicator, and this rank's place in the mesh. */
static MoeStatus join(MoeExec *x, MoeComm *comm) {
    if (!comm && x->plan->ranks == 1)
        MOE_TRY(moe_comm_self(&x->own_comm));
    x->comm = comm ? comm : x->own_comm;
    int n = x->comm ? x->comm->size : 1;
    if (n != x->plan->ranks)
        return moe_error(
            MOE_E_MISUSE,
            "the plan is for %d rank%s, and %d %s there: compile it with --ranks %d, or "
            "start %d",
            x->plan->ranks, x->plan->ranks == 1 ? "" : "s", n, n == 1 ? "is" : "are", n,
            x->plan->ranks);
    x->rank = x->comm->rank;
    x->coords = moe_mesh_coords(&x->plan->mesh, x->rank);
    x->parts = 1;
    return NULL;
}

static void set_number(MoeExec *x, const char *name, int value) {
    MoeExecInput *in = find_input(x, name);
    if (in)
        *(int32_t *)(void *)in->data = value;
}

/* Inputs that stay: the rank's number in its EP and TP group. */
static void set_numbers(MoeExec *x) {
    for (int k = 0; k <= x->plan->mesh.n_ranges; k++) {
        MoeMesh d = moe_mesh_division(&x->plan->mesh, k);
        char name[32];
        moe_mesh_input_name("ep_rank", k, name);
        set_number(x, name, moe_mesh_coords(&d, x->rank).ep);
    }
    set_number(x, "tp_rank", x->coords.tp);
}

MoeStatus moe_exec_create(const MoePlan *plan, MoeComm *comm, int n_threads, MoeExec **out) {
    return moe_exec_create_on(plan, comm, n_threads, NULL, out);
}

MoeStatus moe_exec_create_on(const MoePlan *plan, MoeComm *comm, int n_threads,
                             const MoeDevicePlace *place, MoeExec **out) {
    MoeDevicePlace at = place ? *place : (MoeDevicePlace){.device = -1, .local = -1};
    *out = NULL;
    MOE_TRY(check_ports(plan));
    MoeExec *x = calloc(1, sizeof *x);
    if (!x)
        return no_memory();
    x->plan = plan;
    x->dense = at.dense;
    x->attention = at.attention;
    MoeStatus st = NULL;
    MOE_TRY_GOTO(st, join(x, comm), fail);
    MOE_TRY_GOTO(st, moe_pool_create(n_threads > 0 ? n_threads : moe_cpu_count(), &x->pool), fail);
    moe_emulate_pool(x->comm, x->pool);
    at.local = at.local >= 0 ? at.local : x->rank;
    MOE_TRY_GOTO(st, moe_device_open(plan, &at, &x->device), fail);
    MOE_TRY_GOTO(st, alloc_buffers(x), fail);
    MOE_TRY_GOTO(st, alloc_inputs(x), fail);
    MOE_TRY_GOTO(st, alloc_work(x), fail);
    x->programs = calloc(plan->n_programs + 1, sizeof *x->programs);
    if (!x->programs) {
        st = no_memory();
        goto fail;
    }
    for (size_t g = 0; g < plan->n_programs; g++)
        MOE_TRY_GOTO(st, bind_program(x, &plan->programs[g], &x->programs[g]), fail);
    set_numbers(x);
    MOE_TRY_GOTO(st, moe_exec_place_create(x), fail);
    MOE_TRY_GOTO(st, moe_exec_windows_create(x), fail);
    MOE_TRY_GOTO(st, moe_exec_elastic_create(x), fail);
    MOE_TRY_GOTO(st, moe_exec_comm_create(x), fail);
    MOE_TRY_GOTO(st, moe_exec_store_create(x), fail);
    MOE_TRY_GOTO(st, x->device->ops->bind(x->device, x), fail);
    *out = x;
    return NULL;
fail:
    moe_exec_destroy(x);
    return st;
}

void moe_exec_destroy(MoeExec *x) {
    if (!x)
        return;
    if (x->device && x->device->ops->leave)
        x->device->ops->leave(x->device, x);
    moe_store_destroy(x->store); /* before the memory that it copies from and to */
    moe_exec_comm_destroy(x);
    moe_exec_place_destroy(x);
    moe_exec_elastic_destroy(x);
    moe_exec_windows_destroy(x);
    for (size_t g = 0; x->programs && g < x->plan->n_programs; g++) {
        MoeExecProgram *p = &x->programs[g];
        if (p->step_bufs)
            free(p->step_bufs[x->plan->programs[g].n_steps]);
        free(p->step_bufs);
        free(p->values);
        free(p->seconds);
    }
    free(x->programs);
    free(x->inputs);
    if (x->device) {
        x->device->ops->release(x->device, x->input_memory, x->input_bytes);
        x->device->ops->release(x->device, x->region, x->region_bytes);
        x->device->ops->release(x->device, x->slab, x->slab_bytes);
    }
    moe_device_close(x->device);
    moe_free_big(x->scratch, (size_t)x->scratch_bytes);
    moe_choices_free(&x->choices);
    free(x->buffers);
    free(x->load);
    free(x->segs);
    if (x->pool)
        moe_emulate_pool(x->comm, NULL);
    moe_pool_destroy(x->pool);
    moe_comm_destroy(x->own_comm);
    free(x);
}

int moe_exec_threads(const MoeExec *x) {
    return moe_pool_threads(x->pool);
}

int moe_exec_rank(const MoeExec *x) {
    return x->rank;
}

MoeComm *moe_exec_comm(const MoeExec *x) {
    return x->comm;
}

int moe_exec_device(const MoeExec *x) {
    return x->device->number;
}

void moe_exec_set_step(MoeExec *x, int64_t step) {
    x->step = step;
}

void *moe_exec_buffer(MoeExec *x, int buffer) {
    return x->buffers[buffer];
}

MoeStatus moe_exec_fetch(MoeExec *x, const void *at, int64_t bytes) {
    return moe_device_read(x->device, at, bytes);
}

MoeStatus moe_exec_send(MoeExec *x, const void *at, int64_t bytes) {
    return moe_device_write(x->device, at, bytes);
}

void moe_exec_forget(MoeExec *x, void *at, int64_t bytes) {
    moe_device_forget(x->device, at, bytes);
}

MoeStatus moe_exec_zero(MoeExec *x, void *at, int64_t bytes) {
    return moe_device_zero(x->device, at, bytes);
}

bool moe_exec_on_host(const MoeExec *x) {
    return moe_device_is_host(x->device);
}

MoeExecProgram *moe_exec_program(const MoeExec *x, const char *name) {
    for (size_t g = 0; g < x->plan->n_programs; g++)
        if (!strcmp(x->plan->programs[g].name, name))
            return &x->programs[g];
    return NULL;
}

void *moe_exec_input(MoeExec *x, const char *program, const char *name) {
    MoeExecProgram *g = moe_exec_program(x, program);
    const MoePlanPort *q = g ? find_port(g->plan->inputs, g->plan->n_inputs, name) : NULL;
    return q ? g->values[q->value] : NULL;
}

int64_t moe_exec_logits_ids(const MoeExec *x) {
    const MoePlanProgram *g = moe_exec_program(x, "logits")->plan;
    return find_port(g->inputs, g->n_inputs, "ids")->elements;
}

const void *moe_exec_output(MoeExec *x, const char *program, const char *name,
                            const MoePlanPort **out_port) {
    MoeExecProgram *g = moe_exec_program(x, program);
    const MoePlanPort *q = g ? find_port(g->plan->outputs, g->plan->n_outputs, name) : NULL;
    if (out_port)
        *out_port = q;
    if (q) /* an error is final: the next run returns it */
        moe_status_free(moe_exec_fetch(x, g->values[q->value],
                                       q->elements * (int64_t)moe_plan_dtype_bytes(q->dtype)));
    return q ? g->values[q->value] : NULL;
}

const int32_t *moe_exec_load(const MoeExec *x) {
    return x->load;
}

int64_t moe_exec_memory_bytes(const MoeExec *x) {
    int64_t n = x->region_bytes + x->fixed_bytes + x->scratch_bytes + moe_exec_comm_bytes(x) +
                (x->elastic_used ? x->elastic_used : x->elastic_expect);
    for (size_t i = 0; i < x->n_inputs; i++)
        n += x->inputs[i].bytes;
    if (x->device->ops->beside)
        n += x->device->ops->beside(x->device);
    return n + (x->store ? moe_store_memory(x->store) : 0);
}

void moe_exec_profile(MoeExec *x, bool on) {
    x->profile = on;
}

void moe_exec_watch(MoeExec *x, void (*fn)(void *ctx, const MoeExecSpan *span), void *ctx) {
    x->watch = fn;
    x->watch_ctx = ctx;
}

const double *moe_exec_profile_seconds(const MoeExec *x, const char *program) {
    MoeExecProgram *g = moe_exec_program(x, program);
    return x->profile && g ? g->seconds : NULL;
}
