/* plan.json -> MoePlan. Nothing in the file is trusted: every index, size, offset and name is checked, and the first
 * fault is reported with the path of its entry ("programs.train.steps[12].bufs[3]"). */
#include "runtime/plan_read.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/mem.h"

#define MAX_DIM ((int64_t)1 << 40)
#define MAX_BYTES ((int64_t)1 << 50)
#define MAX_ITEMS ((size_t)4 << 20)
#define FORMAT_VERSION 1

/* The first error sticks: readers go on with harmless values and the caller looks at `st` at the end of each entry. */
typedef struct {
    MoePlan *plan;
    const char *name;
    MoeStatus st;
    char at[512]; /* path of the entry being read */
} Reader;

static void fail(Reader *r, const char *key, const char *fmt, ...) MOE_PRINTF(3, 4);
static void fail(Reader *r, const char *key, const char *fmt, ...) {
    if (r->st)
        return;
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    r->st = moe_error(MOE_E_CORRUPT, "%s: damaged plan: %s%s%s %s; compile it again", r->name, r->at,
                      r->at[0] && key[0] ? "." : "", key, text);
}

static const char *kind_name(const json_t *v) {
    static const char *const names[] = {"an object", "an array", "a string", "an integer", "a number", "true", "false", "null"};
    return v ? names[json_typeof(v)] : "nothing";
}

static int64_t get_int(Reader *r, const json_t *o, const char *key, int64_t lo, int64_t hi) {
    const json_t *v = json_object_get(o, key);
    if (!json_is_integer(v)) {
        fail(r, key, "should be an integer, found %s", kind_name(v));
        return lo;
    }
    int64_t x = json_integer_value(v);
    if (x < lo || x > hi) {
        fail(r, key, "is %lld, allowed %lld..%lld", (long long)x, (long long)lo, (long long)hi);
        return lo;
    }
    return x;
}

static double get_num(Reader *r, const json_t *o, const char *key, bool required) {
    const json_t *v = json_object_get(o, key);
    if (!v && !required)
        return 0;
    if (!json_is_number(v) || !isfinite(json_number_value(v)) || json_number_value(v) < 0) {
        fail(r, key, "should be a number >= 0, found %s", kind_name(v));
        return 0;
    }
    return json_number_value(v);
}

static bool get_bool(Reader *r, const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    if (!json_is_boolean(v))
        fail(r, key, "should be true or false, found %s", kind_name(v));
    return json_is_true(v);
}

static const char *get_str(Reader *r, const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    if (!json_is_string(v) || json_string_length(v) == 0 || strlen(json_string_value(v)) != json_string_length(v)) {
        fail(r, key, "should be a text, found %s", kind_name(v));
        return "";
    }
    return json_string_value(v);
}

/* The array, its length in *out_n (0 on error). */
static const json_t *get_array(Reader *r, const json_t *o, const char *key, size_t *out_n) {
    const json_t *v = json_object_get(o, key);
    *out_n = 0;
    if (!json_is_array(v))
        fail(r, key, "should be an array, found %s", kind_name(v));
    else if (json_array_size(v) > MAX_ITEMS)
        fail(r, key, "has %zu entries, more than %zu", json_array_size(v), MAX_ITEMS);
    else
        *out_n = json_array_size(v);
    return v;
}

static MoePlanDtype get_dtype(Reader *r, const json_t *o) {
    const char *s = get_str(r, o, "dtype");
    if (!strcmp(s, "bf16"))
        return MOE_PLAN_BF16;
    if (!strcmp(s, "i32"))
        return MOE_PLAN_I32;
    if (strcmp(s, "f32"))
        fail(r, "dtype", "is \"%.40s\", expected f32, bf16 or i32", s);
    return MOE_PLAN_F32;
}

/* dims -> rank and elements. */
static void get_dims(Reader *r, const json_t *o, int *out_rank, int64_t dims[8], int64_t *out_elements) {
    size_t n;
    const json_t *a = get_array(r, o, "dims", &n);
    *out_rank = 0;
    *out_elements = 0;
    if (n > 8) {
        fail(r, "dims", "has rank %zu, at most 8", n);
        return;
    }
    int64_t e = 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(a, i);
        int64_t d = json_integer_value(v);
        if (!json_is_integer(v) || d < 0 || d > MAX_DIM || !moe_mul_i64(e, d, &e) || e > MAX_BYTES) {
            fail(r, "dims", "entry %zu is not a size", i);
            return;
        }
        dims[i] = d;
    }
    *out_rank = (int)n;
    *out_elements = e;
}

static void at(Reader *r, const char *fmt, ...) MOE_PRINTF(2, 3);
static void at(Reader *r, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(r->at, sizeof r->at, fmt, ap);
    va_end(ap);
}

static void read_buffers(Reader *r, const json_t *root) {
    MoePlan *p = r->plan;
    const json_t *a = get_array(r, root, "buffers", &p->n_buffers);
    p->buffers = MOE_NEW_N(p->arena, MoePlanBuffer, p->n_buffers);
    for (size_t i = 0; i < p->n_buffers && !r->st; i++) {
        const json_t *o = json_array_get(a, i);
        MoePlanBuffer *b = &p->buffers[i];
        at(r, "buffers[%zu]", i);
        b->name = get_str(r, o, "name");
        b->dtype = get_dtype(r, o);
        get_dims(r, o, &b->rank, b->dims, &b->elements);
        b->bytes = get_int(r, o, "bytes", 0, MAX_BYTES);
        if (b->bytes < b->elements * (int64_t)moe_plan_dtype_bytes(b->dtype))
            fail(r, "bytes", "is %lld, too small for its dims", (long long)b->bytes);
    }
}

/* A parameter's or state's buffer: f32, of the parameter's elements, used once. */
static int read_param_buffer(Reader *r, const json_t *o, bool *used, int64_t elements) {
    MoePlan *p = r->plan;
    int b = (int)get_int(r, o, "buffer", 0, (int64_t)p->n_buffers - 1);
    if (r->st)
        return 0;
    if (p->buffers[b].dtype != MOE_PLAN_F32 || p->buffers[b].elements != elements)
        fail(r, "buffer", "%d (%s) is not f32 of %lld elements", b, p->buffers[b].name, (long long)elements);
    if (used[b])
        fail(r, "buffer", "%d (%s) belongs to another parameter or state too", b, p->buffers[b].name);
    used[b] = true;
    return b;
}

static void read_param(Reader *r, const json_t *o, size_t i, bool *used) {
    MoePlan *p = r->plan;
    MoePlanParam *q = &p->params[i];
    int rank;
    int64_t dims[8] = {0}, elements;
    at(r, "params[%zu]", i);
    q->name = get_str(r, o, "name");
    q->stacked = get_bool(r, o, "stacked");
    q->decay = get_bool(r, o, "decay");
    q->init = get_str(r, o, "init");
    q->std = get_num(r, o, "std", !strcmp(q->init, "normal"));
    if (strcmp(q->init, "normal") && strcmp(q->init, "ones") && strcmp(q->init, "zeros"))
        fail(r, "init", "is \"%.40s\", expected normal, ones or zeros", q->init);
    const char *star = strchr(q->name, '*');
    if ((star != NULL) != q->stacked || (star && strchr(star + 1, '*')))
        fail(r, "name", "\"%.100s\" needs one '*' exactly when stacked", q->name);
    get_dims(r, o, &rank, dims, &elements);
    if (rank == 0 || (q->stacked && rank < 2))
        fail(r, "dims", "has rank %d", rank);
    q->buffer = read_param_buffer(r, o, used, elements);
    if (!r->st && (p->buffers[q->buffer].rank != rank || memcmp(p->buffers[q->buffer].dims, dims, sizeof dims[0] * (size_t)rank)))
        fail(r, "dims", "differ from those of buffer %d", q->buffer);
    const json_t *states = get_array(r, o, "states", &q->n_states);
    q->states = MOE_NEW_N(p->arena, MoePlanState, q->n_states);
    for (size_t k = 0; k < q->n_states && !r->st; k++) {
        at(r, "params[%zu].states[%zu]", i, k);
        q->states[k].name = get_str(r, json_array_get(states, k), "name");
        q->states[k].buffer = read_param_buffer(r, json_array_get(states, k), used, elements);
        for (size_t j = 0; j < k; j++)
            if (!strcmp(q->states[j].name, q->states[k].name))
                fail(r, "name", "\"%.40s\" appears twice", q->states[k].name);
    }
}

static int compare_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

static void read_params(Reader *r, const json_t *root) {
    MoePlan *p = r->plan;
    r->at[0] = 0;
    const json_t *a = get_array(r, root, "params", &p->n_params);
    p->params = MOE_NEW_N(p->arena, MoePlanParam, p->n_params);
    bool *used = MOE_NEW_N(p->arena, bool, p->n_buffers + 1);
    for (size_t i = 0; i < p->n_params && !r->st; i++)
        read_param(r, json_array_get(a, i), i, used);
    if (r->st)
        return;
    const char **names = MOE_NEW_N(p->arena, const char *, p->n_params + 1);
    for (size_t i = 0; i < p->n_params; i++)
        names[i] = p->params[i].name;
    qsort(names, p->n_params, sizeof *names, compare_text);
    for (size_t i = 1; i < p->n_params; i++)
        if (!strcmp(names[i - 1], names[i])) {
            at(r, "params");
            fail(r, "", "has \"%.200s\" twice", names[i]);
        }
}

/* ---- programs ---- */

static int get_value(Reader *r, const json_t *v, const MoePlanProgram *g, const char *key) {
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= (json_int_t)g->n_values) {
        fail(r, key, "is not a value (0..%zu)", g->n_values ? g->n_values - 1 : 0);
        return 0;
    }
    return (int)json_integer_value(v);
}

static void read_values(Reader *r, const json_t *o, MoePlanProgram *g) {
    MoePlan *p = r->plan;
    const json_t *a = get_array(r, o, "values", &g->n_values);
    g->values = MOE_NEW_N(p->arena, MoePlanValue, g->n_values);
    for (size_t i = 0; i < g->n_values && !r->st; i++) {
        const json_t *e = json_array_get(a, i);
        MoePlanValue *v = &g->values[i];
        at(r, "programs.%s.values[%zu]", g->name, i);
        if (json_object_get(e, "buffer")) {
            v->kind = MOE_VALUE_BUFFER;
            v->buffer = (int)get_int(r, e, "buffer", 0, (int64_t)p->n_buffers - 1);
            v->bytes = r->st ? 0 : p->buffers[v->buffer].bytes;
        } else if (json_object_get(e, "slab")) {
            v->kind = MOE_VALUE_SLAB;
            v->offset = get_int(r, e, "slab", 0, g->slab_bytes);
            v->bytes = get_int(r, e, "bytes", 0, g->slab_bytes);
            if (v->offset % MOE_BUFFER_ALIGN)
                fail(r, "slab", "is %lld, not a multiple of %d", (long long)v->offset, MOE_BUFFER_ALIGN);
            if (v->offset > g->slab_bytes - v->bytes)
                fail(r, "slab", "%lld + %lld bytes passes the end of the slab (%lld)", (long long)v->offset, (long long)v->bytes,
                     (long long)g->slab_bytes);
        } else {
            v->kind = MOE_VALUE_INPUT;
            v->input = get_str(r, e, "input");
            v->bytes = get_int(r, e, "bytes", 0, MAX_BYTES);
        }
    }
}

static void read_ports(Reader *r, const json_t *o, const char *key, MoePlanProgram *g, MoePlanPort **out, size_t *out_n) {
    at(r, "programs.%s", g->name);
    const json_t *a = get_array(r, o, key, out_n);
    *out = MOE_NEW_N(r->plan->arena, MoePlanPort, *out_n);
    for (size_t i = 0; i < *out_n && !r->st; i++) {
        const json_t *e = json_array_get(a, i);
        MoePlanPort *q = &(*out)[i];
        at(r, "programs.%s.%s[%zu]", g->name, key, i);
        q->name = get_str(r, e, "name");
        q->value = get_value(r, json_object_get(e, "value"), g, "value");
        q->dtype = get_dtype(r, e);
        q->ragged = get_bool(r, e, "ragged");
        get_dims(r, e, &q->rank, q->dims, &q->elements);
        for (size_t j = 0; j < i; j++)
            if (!strcmp((*out)[j].name, q->name))
                fail(r, "name", "\"%.60s\" appears twice", q->name);
        if (r->st)
            return;
        if (g->values[q->value].bytes < q->elements * (int64_t)moe_plan_dtype_bytes(q->dtype))
            fail(r, "value", "%d has %lld bytes, too few for the dims", q->value, (long long)g->values[q->value].bytes);
        if (!strcmp(key, "inputs") && g->values[q->value].kind != MOE_VALUE_INPUT)
            fail(r, "value", "%d is not an input", q->value);
    }
}

static bool symbol_ok(const char *s) {
    size_t n = strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.");
    return n > 0 && s[n] == 0 && n < 256;
}

static void read_step(Reader *r, const json_t *o, MoePlanProgram *g, size_t i) {
    static const char *const phases[] = {"forward", "backward", "reduce", "update"};
    MoePlanStep *s = &g->steps[i];
    at(r, "programs.%s.steps[%zu]", g->name, i);
    s->name = get_str(r, o, "name");
    s->kernel = get_str(r, o, "kernel");
    if (!r->st && !symbol_ok(s->kernel))
        fail(r, "kernel", "\"%.60s\" is not a symbol name", s->kernel);
    s->kind = get_str(r, o, "kind");
    s->layer = (int)get_int(r, o, "layer", -1, 1 << 20);
    s->count = get_bool(r, o, "count");
    s->flops = get_num(r, o, "flops", false);
    s->bytes = get_num(r, o, "bytes", false);
    s->seconds = get_num(r, o, "seconds", false);
    const char *phase = get_str(r, o, "phase");
    size_t k = 0;
    while (k < 4 && strcmp(phase, phases[k]))
        k++;
    if (k == 4) {
        fail(r, "phase", "is \"%.40s\", expected forward, backward, reduce or update", phase);
        k = 0;
    }
    s->phase = (MoePlanPhase)k;
    if (i && s->phase < g->steps[i - 1].phase)
        fail(r, "phase", "%s comes after a step of a later phase", phase);
    const json_t *bufs = get_array(r, o, "bufs", &s->n_bufs);
    s->buf_value = MOE_NEW_N(r->plan->arena, int, s->n_bufs);
    s->buf_offset = MOE_NEW_N(r->plan->arena, int64_t, s->n_bufs);
    for (size_t b = 0; b < s->n_bufs && !r->st; b++) {
        const json_t *e = json_array_get(bufs, b), *off = json_array_get(e, 1);
        at(r, "programs.%s.steps[%zu].bufs[%zu]", g->name, i, b);
        if (json_array_size(e) != 2) {
            fail(r, "", "should be [value, byte offset]");
            return;
        }
        s->buf_value[b] = get_value(r, json_array_get(e, 0), g, "");
        s->buf_offset[b] = json_integer_value(off);
        if (!r->st && (!json_is_integer(off) || s->buf_offset[b] < 0 || s->buf_offset[b] > g->values[s->buf_value[b]].bytes))
            fail(r, "", "has no offset inside value %d", s->buf_value[b]);
    }
}

/* slots: how many each entry must have. */
static void read_folds(Reader *r, const json_t *o, const char *key, MoePlanProgram *g, size_t slots, MoePlanAccumulate **out,
                       size_t *out_n) {
    at(r, "programs.%s", g->name);
    const json_t *a = json_object_get(o, key);
    *out_n = 0;
    if (!a)
        return;
    a = get_array(r, o, key, out_n);
    *out = MOE_NEW_N(r->plan->arena, MoePlanAccumulate, *out_n);
    if (*out_n && r->plan->micro_batches == 1)
        fail(r, key, "should be empty with one micro-batch");
    for (size_t i = 0; i < *out_n && !r->st; i++) {
        const json_t *e = json_array_get(a, i), *list = json_object_get(e, "slots");
        MoePlanAccumulate *q = &(*out)[i];
        at(r, "programs.%s.%s[%zu]", g->name, key, i);
        q->source = get_value(r, json_object_get(e, "source"), g, "source");
        q->value = get_value(r, json_object_get(e, "value"), g, "value");
        q->elements = get_int(r, e, "elements", 0, MAX_BYTES / 4);
        q->n_slots = slots;
        q->slots = MOE_NEW_N(r->plan->arena, int, slots);
        if (slots && json_array_size(list) != slots)
            fail(r, "slots", "has %zu entries, expected %zu for %d micro-batches", json_array_size(list), slots,
                 r->plan->micro_batches);
        for (size_t k = 0; k < slots && !r->st; k++)
            q->slots[k] = get_value(r, json_array_get(list, k), g, "slots");
        if (r->st)
            return;
        bool fits = g->values[q->source].bytes / 4 >= q->elements && g->values[q->value].bytes / 4 >= q->elements;
        for (size_t k = 0; k < slots; k++)
            fits = fits && g->values[q->slots[k]].bytes / 4 >= q->elements;
        if (!fits)
            fail(r, "elements", "is %lld, more than a value holds", (long long)q->elements);
    }
}

static void read_program(Reader *r, const char *name, const json_t *o, MoePlanProgram *g) {
    g->name = name;
    at(r, "programs.%s", name);
    g->slab_bytes = get_int(r, o, "slab_bytes", 0, MAX_BYTES);
    g->slab_lower_bound = get_int(r, o, "slab_lower_bound", 0, MAX_BYTES);
    g->scratch_bytes = get_int(r, o, "scratch_bytes", 0, (int64_t)1 << 36);
    const json_t *m = json_object_get(o, "memory");
    if (m) {
        at(r, "programs.%s.memory", name);
        g->mem_activations = get_int(r, m, "activations", 0, MAX_BYTES);
        g->mem_gradients = get_int(r, m, "gradients", 0, MAX_BYTES);
        g->mem_workspace = get_int(r, m, "workspace", 0, MAX_BYTES);
        g->mem_other = get_int(r, m, "other", 0, MAX_BYTES);
    }
    read_values(r, o, g);
    read_ports(r, o, "inputs", g, &g->inputs, &g->n_inputs);
    read_ports(r, o, "outputs", g, &g->outputs, &g->n_outputs);
    at(r, "programs.%s", name);
    const json_t *steps = get_array(r, o, "steps", &g->n_steps);
    g->steps = MOE_NEW_N(r->plan->arena, MoePlanStep, g->n_steps);
    for (size_t i = 0; i < g->n_steps && !r->st; i++)
        read_step(r, json_array_get(steps, i), g, i);
    size_t levels = 0;
    while (((size_t)1 << levels) < (size_t)r->plan->micro_batches)
        levels++;
    read_folds(r, o, "accumulates", g, levels, &g->accumulates, &g->n_accumulates);
    read_folds(r, o, "batch_sums", g, 0, &g->batch_sums, &g->n_batch_sums);
}

static bool power_of_two(int64_t v) { return v > 0 && (v & (v - 1)) == 0; }

static void read_head(Reader *r, const json_t *root) {
    MoePlan *p = r->plan;
    p->target = get_str(r, root, "target");
    p->tokenizer = get_str(r, root, "tokenizer");
    p->dtype = get_str(r, root, "dtype");
    p->model = json_object_get(root, "model");
    if (!json_is_object(p->model))
        fail(r, "model", "should be an object, found %s", kind_name(p->model));
    p->vocab_size = get_int(r, root, "vocab_size", 1, (int64_t)1 << 31);
    p->batch = get_int(r, root, "batch", 1, MAX_DIM);
    p->seq = get_int(r, root, "seq", 1, MAX_DIM);
    p->virtual_shards = (int)get_int(r, root, "virtual_shards", 1, 1 << 20);
    p->micro_batches = (int)get_int(r, root, "micro_batches", 1, 1 << 20);
    if (!power_of_two(p->virtual_shards) || !power_of_two(p->micro_batches) || p->micro_batches > p->virtual_shards)
        fail(r, "micro_batches", "(%d) and virtual_shards (%d) should be powers of two, the first at most the second",
             p->micro_batches, p->virtual_shards);
    int64_t tokens;
    if (!moe_mul_i64(p->batch, p->seq, &tokens) || tokens > INT32_MAX)
        fail(r, "batch", "times seq is more than 2^31 tokens");
    p->flops_per_token = get_num(r, root, "flops_per_token", false);
    p->peak_flops = get_num(r, root, "peak_flops", false);
    p->experts = (int)get_int(r, root, "experts", 0, 65536);
    p->experts_per_token = (int)get_int(r, root, "experts_per_token", 0, 65536);
    const json_t *layers = get_array(r, root, "moe_layers", &p->n_moe_layers);
    p->moe_layers = MOE_NEW_N(p->arena, int, p->n_moe_layers);
    for (size_t i = 0; i < p->n_moe_layers && !r->st; i++) {
        const json_t *v = json_array_get(layers, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > 4096)
            fail(r, "moe_layers", "entry %zu is not a layer", i);
        p->moe_layers[i] = (int)json_integer_value(v);
    }
    if (p->n_moe_layers && (p->experts < 1 || p->experts_per_token < 1))
        fail(r, "experts", "should be at least 1 in a model with MoE layers");
}

MoeStatus moe_plan_read(MoePlan *p, const char *name) {
    Reader r = {.plan = p, .name = name};
    const json_t *root = p->json;
    if (!json_is_object(root))
        return moe_error(MOE_E_CORRUPT, "%s: damaged plan: not a JSON object; compile it again", name);
    int64_t version = get_int(&r, root, "format_version", 1, INT32_MAX), abi = get_int(&r, root, "abi", 1, INT32_MAX);
    if (!r.st && (version > FORMAT_VERSION || abi != MOE_KERNEL_ABI_VERSION))
        return moe_error(MOE_E_INPUT,
                         "%s was made by another moec (format %lld, kernel ABI %lld; this one reads format up to %d, ABI %d): "
                         "compile it again",
                         name, (long long)version, (long long)abi, FORMAT_VERSION, MOE_KERNEL_ABI_VERSION);
    read_head(&r, root);
    if (!r.st)
        read_buffers(&r, root);
    if (!r.st)
        read_params(&r, root);
    json_t *programs = json_object_get(root, "programs");
    r.at[0] = 0;
    if (!r.st && !json_is_object(programs))
        fail(&r, "programs", "should be an object, found %s", kind_name(programs));
    if (r.st)
        return r.st;
    p->programs = MOE_NEW_N(p->arena, MoePlanProgram, json_object_size(programs));
    const char *key;
    json_t *o;
    json_object_foreach(programs, key, o) {
        if (!r.st)
            read_program(&r, key, o, &p->programs[p->n_programs++]);
    }
    return r.st;
}
