/* One program of plan.json: values, ports, steps, folds. Every index is checked against the table
 * it points into, so that the execution need not look again. */
#include "runtime/plan_reader.h"

#include <string.h>

#include "base/arena.h"

int moe_plan_value(MoePlanReader *r, const json_t *v, const MoePlanProgram *g, const char *key) {
    if (!json_is_integer(v) || json_integer_value(v) < 0 ||
        json_integer_value(v) >= (json_int_t)g->n_values) {
        moe_plan_fail(r, key, "is not a value (0..%zu)", g->n_values ? g->n_values - 1 : 0);
        return 0;
    }
    return (int)json_integer_value(v);
}

/* A place in the slab: an elastic value in its end; the others before, or where nothing elastic lives at the time. */
static void read_place(MoePlanReader *r, const json_t *e, const MoePlanProgram *g,
                       MoePlanValue *v) {
    v->elastic = json_object_get(e, "expect") != NULL;
    int64_t seam = g->slab_bytes - g->elastic_bytes, lo = v->elastic ? seam : 0,
            hi = g->slab_bytes;
    v->kind = MOE_VALUE_SLAB;
    v->offset = moe_plan_int(r, e, "slab", lo, hi);
    v->bytes = moe_plan_int(r, e, "bytes", 0, hi - lo);
    if (v->offset % MOE_BUFFER_ALIGN)
        moe_plan_fail(r, "slab", "is %lld, not a multiple of %d", (long long)v->offset,
                      MOE_BUFFER_ALIGN);
    if (v->offset > hi - v->bytes)
        moe_plan_fail(r, "slab", "%lld + %lld bytes passes the end of %s (%lld)",
                      (long long)v->offset, (long long)v->bytes,
                      "the slab", (long long)hi);
    if (v->elastic) {
        v->expect = moe_plan_int(r, e, "expect", 0, v->bytes);
        v->row_bytes = moe_plan_int(r, e, "row_bytes", 1, MOE_PLAN_MAX_DIM);
        v->rows = moe_plan_value(r, json_object_get(e, "rows"), g, "rows");
    }
}

static void read_values(MoePlanReader *r, const json_t *o, MoePlanProgram *g) {
    MoePlan *p = r->plan;
    const json_t *a = moe_plan_array(r, o, "values", &g->n_values);
    g->values = MOE_NEW_N(p->arena, MoePlanValue, g->n_values);
    for (size_t i = 0; i < g->n_values && !r->st; i++) {
        const json_t *e = json_array_get(a, i);
        MoePlanValue *v = &g->values[i];
        moe_plan_at(r, "programs.%s.values[%zu]", g->name, i);
        if (json_object_get(e, "buffer")) {
            v->kind = MOE_VALUE_BUFFER;
            v->buffer = (int)moe_plan_int(r, e, "buffer", 0, (int64_t)p->n_buffers - 1);
            v->bytes = r->st ? 0 : p->buffers[v->buffer].bytes;
        } else if (json_object_get(e, "slab")) {
            read_place(r, e, g, v);
        } else {
            v->kind = MOE_VALUE_INPUT;
            v->input = moe_plan_str(r, e, "input");
            v->bytes = moe_plan_int(r, e, "bytes", 0, MOE_PLAN_MAX_BYTES);
        }
    }
    for (size_t i = 0; i < g->n_values && !r->st; i++)
        if (g->values[i].elastic && g->values[g->values[i].rows].bytes < 8) {
            moe_plan_at(r, "programs.%s.values[%zu]", g->name, i);
            moe_plan_fail(r, "rows", "%d is too small for a table of rows", g->values[i].rows);
        }
}

static void read_ports(MoePlanReader *r, const json_t *o, const char *key, MoePlanProgram *g,
                       MoePlanPort **out, size_t *out_n) {
    moe_plan_at(r, "programs.%s", g->name);
    const json_t *a = moe_plan_array(r, o, key, out_n);
    *out = MOE_NEW_N(r->plan->arena, MoePlanPort, *out_n);
    for (size_t i = 0; i < *out_n && !r->st; i++) {
        const json_t *e = json_array_get(a, i);
        MoePlanPort *q = &(*out)[i];
        moe_plan_at(r, "programs.%s.%s[%zu]", g->name, key, i);
        q->name = moe_plan_str(r, e, "name");
        q->value = moe_plan_value(r, json_object_get(e, "value"), g, "value");
        q->dtype = moe_plan_dtype(r, e);
        q->ragged = moe_plan_bool(r, e, "ragged");
        moe_plan_dims(r, e, &q->rank, q->dims, &q->elements);
        for (size_t j = 0; j < i; j++)
            if (!strcmp((*out)[j].name, q->name))
                moe_plan_fail(r, "name", "\"%.60s\" appears twice", q->name);
        if (r->st)
            return;
        if (g->values[q->value].bytes < q->elements * (int64_t)moe_plan_dtype_bytes(q->dtype))
            moe_plan_fail(r, "value", "%d has %lld bytes, too few for the dims", q->value,
                          (long long)g->values[q->value].bytes);
        if (!strcmp(key, "inputs") && g->values[q->value].kind != MOE_VALUE_INPUT)
            moe_plan_fail(r, "value", "%d is not an input", q->value);
    }
}

static bool symbol_ok(const char *s) {
    size_t n = strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.");
    return n > 0 && s[n] == 0 && n < 256;
}

static MoePlanPhase read_phase(MoePlanReader *r, const json_t *o) {
    static const char *const phases[] = {"forward", "backward", "reduce", "update"};
    const char *phase = moe_plan_str(r, o, "phase");
    for (int k = 0; k < 4; k++)
        if (!strcmp(phase, phases[k]))
            return (MoePlanPhase)k;
    moe_plan_fail(r, "phase", "is \"%.40s\", expected forward, backward, reduce or update", phase);
    return MOE_PHASE_FWD;
}

static void read_launch(MoePlanReader *r, const json_t *o, MoePlanProgram *g, size_t i) {
    MoePlanStep *s = &g->steps[i];
    s->kernel = moe_plan_str(r, o, "kernel");
    if (!r->st && !symbol_ok(s->kernel))
        moe_plan_fail(r, "kernel", "\"%.60s\" is not a symbol name", s->kernel);
    const json_t *bufs = moe_plan_array(r, o, "bufs", &s->n_bufs);
    s->buf_value = MOE_NEW_N(r->plan->arena, int, s->n_bufs);
    s->buf_offset = MOE_NEW_N(r->plan->arena, int64_t, s->n_bufs);
    for (size_t b = 0; b < s->n_bufs && !r->st; b++) {
        const json_t *e = json_array_get(bufs, b), *off = json_array_get(e, 1);
        moe_plan_at(r, "programs.%s.steps[%zu].bufs[%zu]", g->name, i, b);
        if (json_array_size(e) != 2) {
            moe_plan_fail(r, "", "should be [value, byte offset]");
            return;
        }
        s->buf_value[b] = moe_plan_value(r, json_array_get(e, 0), g, "");
        s->buf_offset[b] = json_integer_value(off);
        if (!r->st && (!json_is_integer(off) || s->buf_offset[b] < 0 ||
                       s->buf_offset[b] > g->values[s->buf_value[b]].bytes))
            moe_plan_fail(r, "", "has no offset inside value %d", s->buf_value[b]);
    }
    moe_plan_at(r, "programs.%s.steps[%zu]", g->name, i);
    moe_plan_read_slots(r, o, g, i);
    moe_plan_read_live(r, o, g, i);
    if (moe_plan_is_cuda(r->plan)) {
        moe_plan_read_shape(r, o, g, i);
        moe_plan_read_dense(r, o, g, i);
        moe_plan_read_attn(r, o, g, i);
    }
}

static void read_step(MoePlanReader *r, const json_t *o, MoePlanProgram *g, size_t i) {
    MoePlanStep *s = &g->steps[i];
    moe_plan_at(r, "programs.%s.steps[%zu]", g->name, i);
    s->name = moe_plan_str(r, o, "name");
    s->kind = moe_plan_str(r, o, "kind");
    s->layer = (int)moe_plan_int(r, o, "layer", -1, 1 << 20);
    s->count = moe_plan_bool(r, o, "count");
    s->flops = moe_plan_num(r, o, "flops", false);
    s->bytes = moe_plan_num(r, o, "bytes", false);
    s->seconds = moe_plan_num(r, o, "seconds", false);
    s->phase = read_phase(r, o);
    s->wait = -1;
    if (i && !r->st && s->phase < g->steps[i - 1].phase)
        moe_plan_fail(r, "phase", "comes after a step of a later phase");
    if (!strcmp(s->kind, "comm"))
        moe_plan_read_comm(r, o, g, i);
    else if (!strcmp(s->kind, "store"))
        moe_plan_read_store(r, o, g, i);
    else if (!strcmp(s->kind, "wait"))
        moe_plan_read_wait(r, o, g, i);
    else
        read_launch(r, o, g, i);
}

/* slots: how many each entry must have. */
static void read_folds(MoePlanReader *r, const json_t *o, const char *key, MoePlanProgram *g,
                       size_t slots, MoePlanAccumulate **out, size_t *out_n) {
    moe_plan_at(r, "programs.%s", g->name);
    const json_t *a = json_object_get(o, key);
    *out_n = 0;
    if (!a)
        return;
    a = moe_plan_array(r, o, key, out_n);
    *out = MOE_NEW_N(r->plan->arena, MoePlanAccumulate, *out_n);
    if (*out_n && r->plan->micro_batches == 1)
        moe_plan_fail(r, key, "should be empty with one micro-batch");
    for (size_t i = 0; i < *out_n && !r->st; i++) {
        const json_t *e = json_array_get(a, i), *list = json_object_get(e, "slots");
        MoePlanAccumulate *q = &(*out)[i];
        moe_plan_at(r, "programs.%s.%s[%zu]", g->name, key, i);
        q->source = moe_plan_value(r, json_object_get(e, "source"), g, "source");
        q->value = moe_plan_value(r, json_object_get(e, "value"), g, "value");
        q->elements = moe_plan_int(r, e, "elements", 0, MOE_PLAN_MAX_BYTES / 4);
        q->n_slots = slots;
        q->slots = MOE_NEW_N(r->plan->arena, int, slots);
        if (slots && json_array_size(list) != slots)
            moe_plan_fail(r, "slots", "has %zu entries, expected %zu for %d micro-batches",
                          json_array_size(list), slots, r->plan->micro_batches);
        for (size_t k = 0; k < slots && !r->st; k++)
            q->slots[k] = moe_plan_value(r, json_array_get(list, k), g, "slots");
        if (r->st)
            return;
        bool fits = g->values[q->source].bytes / 4 >= q->elements &&
                    g->values[q->value].bytes / 4 >= q->elements;
        for (size_t k = 0; k < slots; k++)
            fits = fits && g->values[q->slots[k]].bytes / 4 >= q->elements;
        if (!fits)
            moe_plan_fail(r, "elements", "is %lld, more than a value holds",
                          (long long)q->elements);
    }
}

static void read_predicted(MoePlanReader *r, const json_t *o, MoePlanProgram *g) {
    MoePlanPrediction *p = &g->predicted;
    const struct {
        const char *key;
        double *to;
    } rows[] = {{"seconds", &p->seconds},         {"compute", &p->compute},
                {"a2a", &p->a2a},                 {"other", &p->other},
                {"a2a_exposed", &p->a2a_exposed}, {"other_exposed", &p->other_exposed},
                {"a2a_bound", &p->a2a_bound},     {"bound", &p->bound}};
    moe_plan_at(r, "programs.%s.predicted", g->name);
    for (size_t i = 0; i < sizeof rows / sizeof *rows && !r->st; i++)
        *rows[i].to = moe_plan_num(r, o, rows[i].key, true);
}

void moe_plan_read_program(MoePlanReader *r, const char *name, const json_t *o, MoePlanProgram *g) {
    g->name = name;
    moe_plan_at(r, "programs.%s", name);
    g->slab_bytes = moe_plan_int(r, o, "slab_bytes", 0, MOE_PLAN_MAX_BYTES);
    g->slab_lower_bound = moe_plan_int(r, o, "slab_lower_bound", 0, MOE_PLAN_MAX_BYTES);
    g->scratch_bytes = moe_plan_int(r, o, "scratch_bytes", 0, (int64_t)1 << 36);
    if (json_object_get(o, "elastic_bytes")) {
        g->elastic_bytes = moe_plan_int(r, o, "elastic_bytes", 0, g->slab_bytes);
        g->elastic_expect = moe_plan_int(r, o, "elastic_expect", 0, g->elastic_bytes);
    }
    const json_t *m = json_object_get(o, "memory");
    if (m) {
        moe_plan_at(r, "programs.%s.memory", name);
        g->mem_activations = moe_plan_int(r, m, "activations", 0, MOE_PLAN_MAX_BYTES);
        g->mem_gradients = moe_plan_int(r, m, "gradients", 0, MOE_PLAN_MAX_BYTES);
        g->mem_workspace = moe_plan_int(r, m, "workspace", 0, MOE_PLAN_MAX_BYTES);
        g->mem_other = moe_plan_int(r, m, "other", 0, MOE_PLAN_MAX_BYTES);
        if (json_object_get(m, "communication"))
            g->mem_communication = moe_plan_int(r, m, "communication", 0, MOE_PLAN_MAX_BYTES);
        if (json_object_get(m, "offloaded"))
            g->mem_offloaded = moe_plan_int(r, m, "offloaded", 0, MOE_PLAN_MAX_BYTES);
    }
    moe_plan_at(r, "programs.%s", name);
    moe_plan_read_slot_bytes(r, o, g);
    if (json_object_get(o, "predicted"))
        read_predicted(r, json_object_get(o, "predicted"), g);
    read_values(r, o, g);
    read_ports(r, o, "inputs", g, &g->inputs, &g->n_inputs);
    read_ports(r, o, "outputs", g, &g->outputs, &g->n_outputs);
    moe_plan_at(r, "programs.%s", name);
    const json_t *steps = moe_plan_array(r, o, "steps", &g->n_steps);
    g->steps = MOE_NEW_N(r->plan->arena, MoePlanStep, g->n_steps);
    for (size_t i = 0; i < g->n_steps && !r->st; i++)
        read_step(r, json_array_get(steps, i), g, i);
    moe_plan_check_waits(r, g);
    moe_plan_check_attn(r, g);
    moe_plan_check_moves(r, g);
    size_t levels = 0;
    while (((size_t)1 << levels) < (size_t)r->plan->micro_batches)
        levels++;
    read_folds(r, o, "accumulates", g, levels, &g->accumulates, &g->n_accumulates);
    read_folds(r, o, "batch_sums", g, 0, &g->batch_sums, &g->n_batch_sums);
}
