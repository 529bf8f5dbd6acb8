/* plan.json (docs/PLAN.md) from a module that all passes have run over.
 *
 * In: graphs, memory plans and steps. Out: one JSON value; the same module gives the same bytes. Shared buffers are the
 * parameters and states of all graphs, in order of definition; values are numbered in order of first mention. */
#include "passes/plan_json.h"

#include <string.h>
#include "base/assert.h"
#include "base/kernel_abi.h"
#include "passes/group.h"
#include "passes/plan_json_internal.h"

#define PLAN_FORMAT_VERSION 1

typedef MoePlanJson Plan;
typedef MoePlanWriter Writer;

/* ---- programs ---- */

static int add_slab(Writer *w, int64_t offset, int64_t bytes) {
    json_t *o = json_object();
    set_i(o, "slab", offset);
    set_i(o, "bytes", bytes);
    json_array_append_new(w->values, o);
    return (int)json_array_size(w->values) - 1;
}

/* The same, elastic: rows over the table `seg`, of row_bytes each. */
static int add_elastic(Writer *w, int64_t offset, int64_t bytes, int64_t expect,
                       const MoeValue *seg, int64_t row_bytes) {
    int rows = moe_plan_value_entry(w, seg), at = add_slab(w, offset, bytes);
    json_t *o = json_array_get(w->values, (size_t)at);
    set_i(o, "expect", expect);
    set_i(o, "rows", rows);
    set_i(o, "row_bytes", row_bytes);
    return at;
}

int moe_plan_value_entry(Writer *w, const MoeValue *v) {
    while (w->p->memory.values[v->id].alias)
        v = w->p->memory.values[v->id].alias;
    if (w->index[v->id] >= 0)
        return w->index[v->id];
    const MoeOp *d = v->def;
    if (d->opcode == MOE_OP_PARAM || d->opcode == MOE_OP_STATE) {
        json_t *o = json_object();
        set_i(o, "buffer",
              moe_plan_find_shared(w->plan, moe_plan_shared_name(d, w->plan->cx->arena)));
        json_array_append_new(w->values, o);
        return w->index[v->id] = (int)json_array_size(w->values) - 1;
    }
    if (d->opcode == MOE_OP_INPUT) {
        json_t *o = json_object();
        set_s(o, "input", moe_attr_s(d, "name"));
        set_i(o, "bytes", moe_type_bytes(&v->type));
        json_array_append_new(w->values, o);
        return w->index[v->id] = (int)json_array_size(w->values) - 1;
    }
    const MoeValueMemory *m = &w->p->memory.values[v->id];
    MOE_ASSERT(m->offset >= 0, "plan: @%s: the result of %s has no memory", w->p->graph->name,
               moe_op_info(d->opcode)->name);
    if (m->expect < 0)
        return w->index[v->id] = add_slab(w, m->offset, m->bytes);
    const MoeDim *rows = &v->type.dims[0];
    int at = add_elastic(w, m->offset, m->bytes, m->expect, rows->seg, m->bytes / rows->size);
    return w->index[v->id] = at;
}

/* -1: the step has no workspace. Elastic ones grow with the rows that the group works on. */
static int workspace_entry(Writer *w, size_t step) {
    const MoeMemoryPlan *m = &w->p->memory;
    int64_t bytes = m->workspace_bytes[step], expect = m->workspace_expect[step];
    if (!bytes)
        return -1;
    if (expect < 0)
        return add_slab(w, m->workspace_offset[step], bytes);
    const MoeGroup *g = &w->p->steps[step].group;
    /* Outputs first: inputs that are gathered have rows of their own. */
    for (size_t i = 0; i < g->n_outputs + g->n_inputs; i++) {
        const MoeValue *v = i < g->n_outputs ? g->outputs[i] : g->inputs[i - g->n_outputs];
        const MoeDim *rows = &v->type.dims[0];
        if (v->type.kind != MOE_TYPE_TENSOR || !rows->seg)
            continue;
        int64_t n = moe_segs_expected_rows(rows->seg, rows->size);
        if (n < rows->size)
            return add_elastic(w, m->workspace_offset[step], bytes, expect, rows->seg,
                               n ? (expect + n - 1) / n : bytes / rows->size);
    }
    MOE_ASSERT(false, "plan: @%s: step %zu has an elastic workspace, but no elastic rows",
               w->p->graph->name, step);
    return -1;
}

static json_t *json_port(Writer *w, const char *name, const MoeValue *v) {
    json_t *o = json_object();
    set_s(o, "name", name);
    set_i(o, "value", moe_plan_value_entry(w, v));
    set_s(o, "dtype", moe_dtype_name(v->type.dtype));
    set(o, "dims", moe_plan_json_dims(&v->type));
    set(o, "ragged", json_boolean(v->type.kind == MOE_TYPE_TENSOR && v->type.dims[0].seg != NULL));
    return o;
}

static MoeStatus add_ports(Writer *w, json_t *inputs, json_t *outputs) {
    const MoeGraph *g = w->p->graph;
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        if (op->opcode == MOE_OP_INPUT)
            json_array_append_new(inputs, json_port(w, moe_attr_s(op, "name"), op->results[0]));
        if (op->opcode != MOE_OP_OUTPUT)
            continue;
        if (op->operands[0]->def->opcode == MOE_OP_CONST)
            return moe_error(MOE_E_INPUT,
                             "@%s: output \"%s\" is a constant; outputs must be computed", g->name,
                             moe_attr_s(op, "name"));
        json_array_append_new(outputs, json_port(w, moe_attr_s(op, "name"), op->operands[0]));
    }
    return NULL;
}

/* What every step says. l: NULL for what passes between ranks. */
static json_t *json_step(const MoeStep *s, const MoeLaunch *l, bool first, const char *name) {
    json_t *o = json_object();
    set_s(o, "name", name);
    if (l)
        set_s(o, "kernel", l->kernel);
    set_s(o, "phase", moe_phase_name(s->phase));
    set(o, "count", json_boolean(s->count_pass));
    set_s(o, "kind", moe_plan_step_kind(&s->group));
    set_i(o, "layer", moe_plan_step_layer(&s->group));
    set(o, "flops", json_real(first ? s->flops : 0));
    set(o, "bytes", json_real(first ? s->bytes : 0));
    set(o, "seconds", json_real(first ? s->seconds : 0));
    return o;
}

static json_t *json_bufs(Writer *w, const MoeLaunch *l, int workspace) {
    json_t *bufs = json_array();
    for (size_t i = 0; i < l->n_bufs; i++) {
        const MoeBufRef *b = &l->bufs[i];
        int v = b->value ? moe_plan_value_entry(w, b->value) : workspace;
        MOE_ASSERT(v >= 0, "plan: kernel %s uses a workspace that its group did not ask for",
                   l->kernel);
        json_array_append_new(bufs, json_pack("[i, I]", v, (json_int_t)(b->value ? 0 : b->offset)));
    }
    return bufs;
}

static json_t *json_steps(Writer *w) {
    json_t *a = json_array();
    MoeArena *arena = w->plan->cx->arena;
    MoeGroups gs = moe_groups_of(w->p->graph, arena);
    const MoeOp **gradients = moe_groups_gradients(w->p->graph, &gs, arena);
    int *at = MOE_NEW_N(arena, int, w->p->n_steps); /* by group: its first step in plan.json */
    for (size_t i = 0; i < w->p->n_steps; i++) {
        const MoeStep *s = &w->p->steps[i];
        int workspace = workspace_entry(w, i);
        const char *name = moe_plan_step_name(&s->group, gradients, arena);
        at[i] = (int)json_array_size(a);
        for (size_t k = 0; k < s->lowered.n_launches; k++) {
            json_t *o = json_step(s, &s->lowered.launches[k], k == 0, name);
            set(o, "bufs", json_bufs(w, &s->lowered.launches[k], workspace));
            moe_plan_json_shape(&s->lowered.launches[k].shape, o);
            moe_plan_json_dense(s->lowered.launches[k].dense, o);
            moe_plan_json_attention(w, s->lowered.launches[k].attention, o);
            if (s->group.parts)
                moe_plan_json_slots(w, &s->group, o);
            if (k == 0)
                moe_plan_json_live(w, &s->group, o);
            json_array_append_new(a, o);
        }
        if (!moe_group_has_kernel(&s->group)) {
            json_t *o = json_step(s, NULL, true, name);
            if (moe_op_is_store(s->group.ops[0]))
                moe_plan_json_store(w, i, o);
            else
                moe_plan_json_comm(w, i, at, o);
            json_array_append_new(a, o);
        }
    }
    return a;
}

static MoeStatus add_sums(Writer *w, json_t *batch_sums, json_t *accumulates) {
    const MoeGraph *g = w->p->graph;
    if (w->plan->cx->options.micro_batches <= 1)
        return NULL;
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        if (op->opcode != MOE_OP_BATCH_SUM)
            continue;
        json_array_append_new(batch_sums,
                              json_pack("{s:i, s:i, s:I}", "source",
                                        moe_plan_value_entry(w, op->operands[0]), "value",
                                        moe_plan_value_entry(w, op->results[0]), "elements",
                                        (json_int_t)moe_type_elements(&op->results[0]->type)));
    }
    for (size_t i = 0; i < w->p->memory.n_accumulates; i++) {
        const MoeAccumulateMemory *m = &w->p->memory.accumulates[i];
        const MoeType *t = &m->op->results[0]->type;
        if (t->dtype != MOE_F32)
            return moe_error(MOE_E_INTERNAL,
                             "@%s: accumulate of %s: only f32 sums up over micro-batches", g->name,
                             moe_dtype_name(t->dtype));
        json_t *slots = json_array();
        for (int k = 0; k < m->n_slots; k++)
            json_array_append_new(slots,
                                  json_integer(add_slab(w, m->slot_offset[k], m->slot_bytes)));
        json_array_append_new(accumulates,
                              json_pack("{s:i, s:i, s:I, s:o}", "source",
                                        moe_plan_value_entry(w, m->op->operands[0]), "value",
                                        moe_plan_value_entry(w, m->op->results[0]), "elements",
                                        (json_int_t)moe_type_elements(t), "slots", slots));
    }
    return NULL;
}

static json_t *json_predicted(const MoePrediction *p) {
    const struct {
        const char *key;
        double value;
    } rows[] = {{"seconds", p->seconds},
                {"compute", p->compute},
                {"a2a", p->a2a},
                {"other", p->other},
                {"a2a_exposed", p->a2a_exposed},
                {"other_exposed", p->other_exposed},
                {"a2a_bound", p->a2a_bound},
                {"bound", p->bound}};
    json_t *o = json_object();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        set(o, rows[i].key, json_real(rows[i].value));
    return o;
}

static MoeStatus add_program(const Plan *plan, const MoeProgram *p, json_t *programs) {
    Writer w = {.plan = plan, .p = p, .values = json_array()};
    w.index = MOE_NEW_N(plan->cx->arena, int, p->graph->n_values);
    for (int i = 0; i < p->graph->n_values; i++)
        w.index[i] = -1;
    json_t *o = json_object(), *memory = json_object();
    json_t *inputs = json_array(), *outputs = json_array(), *sums = json_array(),
           *accs = json_array();
    set_i(o, "slab_bytes", p->memory.slab_bytes);
    set_i(o, "slab_lower_bound", p->memory.lower_bound);
    set_i(o, "elastic_bytes", p->memory.elastic_bytes);
    set_i(o, "elastic_expect", p->memory.elastic_expect);
    set_i(o, "scratch_bytes", p->scratch_bytes);
    set_i(memory, "activations", p->memory.activations);
    set_i(memory, "gradients", p->memory.gradients);
    set_i(memory, "workspace", p->memory.workspace);
    set_i(memory, "other", p->memory.other);
    set_i(memory, "communication", p->memory.comm_bytes);
    set_i(memory, "offloaded", p->memory.offloaded);
    set(o, "memory", memory);
    set(o, "predicted", json_predicted(&p->predicted));
    if (p->memory.offloaded)
        set(o, "offload_slots", moe_plan_json_offloaded(p->graph));
    set(o, "values", w.values);
    set(o, "inputs", inputs);
    set(o, "outputs", outputs);
    MoeStatus st = add_ports(&w, inputs, outputs);
    set(o, "steps", json_steps(&w));
    if (!st)
        st = add_sums(&w, sums, accs);
    set(o, "batch_sums", sums);
    set(o, "accumulates", accs);
    set(programs, p->graph->name, o);
    return st;
}

static const char *recompute_name(MoeRecompute r) {
    switch (r) {
    case MOE_RECOMPUTE_NONE:
        return "none";
    case MOE_RECOMPUTE_CHEAP:
        return "cheap";
    case MOE_RECOMPUTE_LAYER:
        return "layer";
    case MOE_RECOMPUTE_AUTO:
        return "auto";
    }
    return "auto";
}

/* Layers whose experts are divided in a way of their own. */
static void add_ranges(json_t *o, const MoeMesh *m) {
    json_t *a = json_array();
    for (int i = 0; i < m->n_ranges; i++) {
        const MoeMeshRange *r = &m->ranges[i];
        json_array_append_new(a, json_pack("{s:i, s:i, s:i, s:i, s:i}", "first", r->first, "last",
                                           r->last, "dp", r->dp, "shard", r->shard, "ep", r->ep));
    }
    if (m->n_ranges)
        set(o, "layers", json_incref(a));
    json_decref(a);
}

static void add_header(json_t *root, const MoePassContext *cx, const MoePlanInfo *info,
                       const char *hash) {
    const MoePassOptions *o = &cx->options;
    set_i(root, "format_version", PLAN_FORMAT_VERSION);
    set_i(root, "abi", MOE_KERNEL_ABI_VERSION);
    set_s(root, "target", cx->target->name);
    set_s(root, "compile", info->compile_line);
    set(root, "model", info->model ? json_deep_copy(info->model) : json_object());
    set_s(root, "tokenizer", info->tokenizer ? info->tokenizer : "byte");
    set_i(root, "vocab_size", info->vocab_size);
    set_i(root, "batch", o->batch);
    set_i(root, "seq", o->seq);
    set_i(root, "virtual_shards", o->virtual_shards);
    set_i(root, "micro_batches", o->micro_batches < 1 ? 1 : o->micro_batches);
    set_i(root, "leaf_rows", moe_module_leaf_rows(cx->module));
    if (cx->module->graphs[0]->fast_reduce)
        set(root, "fast_reduce", json_true());
    set_s(root, "dtype", o->mixed_bf16 ? "bf16" : "f32");
    MoeMesh mesh = moe_pass_mesh(o);
    set_i(root, "ranks", moe_mesh_size(&mesh));
    set(root, "mesh",
        json_pack("{s:i, s:i, s:i, s:i, s:i}", "dp", mesh.dp, "shard", mesh.shard, "ep", mesh.ep,
                  "tp", mesh.tp, "dense_shard", mesh.dense_shard));
    if (mesh.extra_slots)
        set_i(json_object_get(root, "mesh"), "extra_slots", mesh.extra_slots);
    add_ranges(json_object_get(root, "mesh"), &mesh);
    set_i(root, "slots", moe_mesh_slots(&mesh, info->experts));
    set_s(root, "recompute", recompute_name(o->recompute));
    set_i(root, "recompute_layers", o->recompute_layers);
    if (o->keep_weights)
        set(root, "keep_weights", json_true());
    set_i(root, "memory_limit", o->memory_limit);
    if (o->offload)
        set_i(root, "loading_horizon", o->loading_horizon);
    json_t *layers = json_array();
    for (size_t i = 0; i < info->n_moe_layers; i++)
        json_array_append_new(layers, json_integer(info->moe_layers[i]));
    set(root, "moe_layers", layers);
    set_i(root, "experts", info->experts);
    set_i(root, "experts_per_token", info->experts_per_token);
    set(root, "flops_per_token", json_real(info->flops_per_token));
    set(root, "peak_flops",
        json_real(o->mixed_bf16 ? cx->target->peak_flops_bf16 : cx->target->peak_flops_f32));
    set_s(root, "kernels_xxh3", hash);
}

MoeStatus moe_plan_json(MoePassContext *cx, const MoePlanInfo *info, const char *kernels_xxh3,
                        json_t **out) {
    MOE_ASSERT(cx->programs && cx->target, "plan: memplan and kernels must run first");
    Plan p = {.cx = cx};
    MOE_TRY(moe_plan_collect_shared(&p));
    json_t *root = json_object(), *programs = json_object();
    add_header(root, cx, info, kernels_xxh3);
    if (info->planner)
        set(root, "planner", json_deep_copy(info->planner));
    json_t *placement = moe_plan_json_placement(cx);
    if (placement)
        set(root, "placement", placement);
    set(root, "params", moe_plan_json_params(&p));
    set(root, "buffers", moe_plan_json_buffers(&p));
    set(root, "programs", programs);
    for (size_t i = 0; i < cx->module->n_graphs; i++) {
        MOE_ASSERT(cx->programs[i].graph == cx->module->graphs[i], "plan: @%s has no program",
                   cx->module->graphs[i]->name);
        MoeStatus st = add_program(&p, &cx->programs[i], programs);
        if (st) {
            json_decref(root);
            return st;
        }
    }
    *out = root;
    return NULL;
}
