/* plan.json -> MoePlan. Nothing in the file is trusted: every index, size, offset and name is
 * checked, and the first fault is reported with the path of its entry
 * ("programs.train.steps[12].bufs[3]"). */
#include "runtime/plan_read.h"

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/mem.h"
#include "runtime/plan_reader.h"

#define FORMAT_VERSION 1

static void read_buffers(MoePlanReader *r, const json_t *root) {
    MoePlan *p = r->plan;
    const json_t *a = moe_plan_array(r, root, "buffers", &p->n_buffers);
    p->buffers = MOE_NEW_N(p->arena, MoePlanBuffer, p->n_buffers);
    for (size_t i = 0; i < p->n_buffers && !r->st; i++) {
        const json_t *o = json_array_get(a, i);
        MoePlanBuffer *b = &p->buffers[i];
        moe_plan_at(r, "buffers[%zu]", i);
        b->name = moe_plan_str(r, o, "name");
        b->dtype = moe_plan_dtype(r, o);
        moe_plan_dims(r, o, &b->rank, b->dims, &b->elements);
        b->bytes = moe_plan_int(r, o, "bytes", 0, MOE_PLAN_MAX_BYTES);
        if (b->bytes < b->elements * (int64_t)moe_plan_dtype_bytes(b->dtype))
            moe_plan_fail(r, "bytes", "is %lld, too small for its dims", (long long)b->bytes);
    }
}

/* A parameter's or state's buffer: f32, of the parameter's elements, used once. */
static int read_param_buffer(MoePlanReader *r, const json_t *o, bool *used, int64_t elements) {
    MoePlan *p = r->plan;
    int b = (int)moe_plan_int(r, o, "buffer", 0, (int64_t)p->n_buffers - 1);
    if (r->st)
        return 0;
    if (p->buffers[b].dtype != MOE_PLAN_F32 || p->buffers[b].elements != elements)
        moe_plan_fail(r, "buffer", "%d (%s) is not f32 of %lld elements", b, p->buffers[b].name,
                      (long long)elements);
    if (used[b])
        moe_plan_fail(r, "buffer", "%d (%s) belongs to another parameter or state too", b,
                      p->buffers[b].name);
    used[b] = true;
    return b;
}

/* What a rank's buffer of the parameter holds: its slots, of those its part along tp_dim, of that a slice, flat;
 * with one part the shape stays. */
static int local_dims(const MoePlan *p, const MoePlanParam *q, int64_t out[8]) {
    MoeMesh d = moe_mesh_division(&p->mesh, q->division);
    int parts = q->expert ? d.shard : d.dense_shard, lead = q->expert ? 1 : 0;
    int64_t n = 1;
    for (int i = 0; i < q->rank; i++) {
        out[i] = q->expert && i == 0 ? moe_mesh_slots(&d, p->experts) : q->dims[i];
        if (i == q->tp_dim)
            out[i] /= p->mesh.tp;
        n *= i < lead ? 1 : out[i];
    }
    if (parts == 1)
        return q->rank;
    out[lead] = moe_slice(n, MOE_SLICE_BLOCK, parts, 0).cap;
    return lead + 1;
}

/* The whole tensor's dims and how ranks share it out; absent: one rank's. */
static void read_layout(MoePlanReader *r, const json_t *o, MoePlanParam *q) {
    const MoePlan *p = r->plan;
    moe_plan_dims(r, o, &q->rank, q->dims, &q->elements);
    if (q->rank == 0 || (q->stacked && q->rank < 2))
        moe_plan_fail(r, "dims", "has rank %d", q->rank);
    q->expert = json_object_get(o, "expert") && moe_plan_bool(r, o, "expert");
    q->tp_dim = -1;
    if (json_object_get(o, "tp_dim"))
        q->tp_dim = (int)moe_plan_int(r, o, "tp_dim", -1, q->rank - 1);
    if (json_object_get(o, "mesh"))
        q->division = (int)moe_plan_int(r, o, "mesh", 0, p->mesh.n_ranges);
    if (q->division && !q->expert)
        moe_plan_fail(r, "mesh", "is %d, but the parameter is no expert's", q->division);
    if (q->expert && (!q->stacked || q->dims[0] != p->experts))
        moe_plan_fail(r, "expert", "is true, but dim 0 is not the %d experts", p->experts);
    if (q->tp_dim >= 0 && (q->dims[q->tp_dim] % p->mesh.tp || (q->expert && q->tp_dim == 0)))
        moe_plan_fail(r, "tp_dim", "is %d, which %d ranks cannot share", q->tp_dim, p->mesh.tp);
}

static void read_param(MoePlanReader *r, const json_t *o, size_t i, bool *used) {
    MoePlan *p = r->plan;
    MoePlanParam *q = &p->params[i];
    int64_t dims[8] = {0}, elements = 1;
    moe_plan_at(r, "params[%zu]", i);
    q->name = moe_plan_str(r, o, "name");
    q->stacked = moe_plan_bool(r, o, "stacked");
    q->decay = moe_plan_bool(r, o, "decay");
    q->init = moe_plan_str(r, o, "init");
    q->std = moe_plan_num(r, o, "std", !strcmp(q->init, "normal"));
    if (strcmp(q->init, "normal") && strcmp(q->init, "ones") && strcmp(q->init, "zeros"))
        moe_plan_fail(r, "init", "is \"%.40s\", expected normal, ones or zeros", q->init);
    const char *star = strchr(q->name, '*');
    if ((star != NULL) != q->stacked || (star && strchr(star + 1, '*')))
        moe_plan_fail(r, "name", "\"%.100s\" needs one '*' exactly when stacked", q->name);
    read_layout(r, o, q);
    if (r->st)
        return;
    int rank = local_dims(p, q, dims);
    for (int k = 0; k < rank; k++)
        elements *= dims[k];
    q->buffer = read_param_buffer(r, o, used, elements);
    if (!r->st && (p->buffers[q->buffer].rank != rank ||
                   memcmp(p->buffers[q->buffer].dims, dims, sizeof dims[0] * (size_t)rank)))
        moe_plan_fail(r, "dims", "do not go with those of buffer %d", q->buffer);
    const json_t *states = moe_plan_array(r, o, "states", &q->n_states);
    q->states = MOE_NEW_N(p->arena, MoePlanState, q->n_states);
    for (size_t k = 0; k < q->n_states && !r->st; k++) {
        moe_plan_at(r, "params[%zu].states[%zu]", i, k);
        q->states[k].name = moe_plan_str(r, json_array_get(states, k), "name");
        q->states[k].buffer = read_param_buffer(r, json_array_get(states, k), used, elements);
        for (size_t j = 0; j < k; j++)
            if (!strcmp(q->states[j].name, q->states[k].name))
                moe_plan_fail(r, "name", "\"%.40s\" appears twice", q->states[k].name);
    }
}

static int compare_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void read_params(MoePlanReader *r, const json_t *root) {
    MoePlan *p = r->plan;
    r->at[0] = 0;
    const json_t *a = moe_plan_array(r, root, "params", &p->n_params);
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
            moe_plan_at(r, "params");
            moe_plan_fail(r, "", "has \"%.200s\" twice", names[i]);
        }
}

static bool power_of_two(int64_t v) {
    return v > 0 && (v & (v - 1)) == 0;
}

static void read_head(MoePlanReader *r, const json_t *root) {
    MoePlan *p = r->plan;
    p->target = moe_plan_str(r, root, "target");
    p->tokenizer = moe_plan_str(r, root, "tokenizer");
    p->dtype = moe_plan_str(r, root, "dtype");
    p->model = json_object_get(root, "model");
    if (!json_is_object(p->model))
        moe_plan_fail(r, "model", "should be an object, found %s", moe_plan_kind(p->model));
    p->vocab_size = moe_plan_int(r, root, "vocab_size", 1, (int64_t)1 << 31);
    p->batch = moe_plan_int(r, root, "batch", 1, MOE_PLAN_MAX_DIM);
    p->seq = moe_plan_int(r, root, "seq", 1, MOE_PLAN_MAX_DIM);
    p->virtual_shards = (int)moe_plan_int(r, root, "virtual_shards", 1, 1 << 20);
    p->micro_batches = (int)moe_plan_int(r, root, "micro_batches", 1, 1 << 20);
    if (!power_of_two(p->virtual_shards) || !power_of_two(p->micro_batches) ||
        p->micro_batches > p->virtual_shards)
        moe_plan_fail(
            r, "micro_batches",
            "(%d) and virtual_shards (%d) should be powers of two, the first at most the second",
            p->micro_batches, p->virtual_shards);
    p->leaf_rows = 128; /* of plans that do not say it */
    if (json_object_get(root, "leaf_rows"))
        p->leaf_rows = (int)moe_plan_int(r, root, "leaf_rows", 1, 65536);
    p->fast_reduce = json_is_true(json_object_get(root, "fast_reduce"));
    int64_t tokens;
    if (!moe_mul_i64(p->batch, p->seq, &tokens) || tokens > INT32_MAX)
        moe_plan_fail(r, "batch", "times seq is more than 2^31 tokens");
    p->flops_per_token = moe_plan_num(r, root, "flops_per_token", false);
    p->peak_flops = moe_plan_num(r, root, "peak_flops", false);
    p->experts = (int)moe_plan_int(r, root, "experts", 0, 65536);
    p->experts_per_token = (int)moe_plan_int(r, root, "experts_per_token", 0, 65536);
    const json_t *layers = moe_plan_array(r, root, "moe_layers", &p->n_moe_layers);
    p->moe_layers = MOE_NEW_N(p->arena, int, p->n_moe_layers);
    for (size_t i = 0; i < p->n_moe_layers && !r->st; i++) {
        const json_t *v = json_array_get(layers, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > 4096)
            moe_plan_fail(r, "moe_layers", "entry %zu is not a layer", i);
        p->moe_layers[i] = (int)json_integer_value(v);
    }
    if (p->n_moe_layers && (p->experts < 1 || p->experts_per_token < 1))
        moe_plan_fail(r, "experts", "should be at least 1 in a model with MoE layers");
}

/* "layers": ranges that divide their experts over the ranks in a way of their own. */
static void read_ranges(MoePlanReader *r, const json_t *mesh) {
    MoeMesh *m = &r->plan->mesh;
    size_t n = 0;
    const json_t *a = json_object_get(mesh, "layers") ? moe_plan_array(r, mesh, "layers", &n) : NULL;
    if (n > MOE_MAX_RANGES)
        moe_plan_fail(r, "layers", "has %zu ranges, at most %d", n, MOE_MAX_RANGES);
    for (size_t i = 0; i < n && !r->st; i++) {
        const json_t *o = json_array_get(a, i);
        MoeMeshRange *x = &m->ranges[m->n_ranges++];
        moe_plan_at(r, "mesh.layers[%zu]", i);
        x->first = (int)moe_plan_int(r, o, "first", 0, 1 << 20);
        x->last = (int)moe_plan_int(r, o, "last", 0, 1 << 20);
        x->dp = (int)moe_plan_int(r, o, "dp", 1, MOE_MAX_RANKS);
        x->shard = (int)moe_plan_int(r, o, "shard", 1, MOE_MAX_RANKS);
        x->ep = (int)moe_plan_int(r, o, "ep", 1, MOE_MAX_RANKS);
    }
}

/* Absent: one rank. */
static void read_mesh(MoePlanReader *r, const json_t *root) {
    MoePlan *p = r->plan;
    const json_t *o = json_object_get(root, "mesh");
    p->mesh = moe_mesh_one();
    p->ranks = 1;
    p->slots = p->experts;
    if (json_object_get(root, "ranks"))
        p->ranks = (int)moe_plan_int(r, root, "ranks", 1, MOE_MAX_RANKS);
    if (json_object_get(root, "slots"))
        p->slots = (int)moe_plan_int(r, root, "slots", 0, 65536);
    if (o || p->ranks > 1) {
        moe_plan_at(r, "mesh");
        p->mesh.dp = (int)moe_plan_int(r, o, "dp", 1, MOE_MAX_RANKS);
        p->mesh.shard = (int)moe_plan_int(r, o, "shard", 1, MOE_MAX_RANKS);
        p->mesh.ep = (int)moe_plan_int(r, o, "ep", 1, MOE_MAX_RANKS);
        p->mesh.tp = (int)moe_plan_int(r, o, "tp", 1, MOE_MAX_RANKS);
        p->mesh.dense_shard = (int)moe_plan_int(r, o, "dense_shard", 1, MOE_MAX_RANKS);
        if (!r->st && json_object_get(o, "extra_slots"))
            p->mesh.extra_slots = (int)moe_plan_int(r, o, "extra_slots", 0, MOE_MAX_EXTRA_SLOTS);
        read_ranges(r, o);
        moe_plan_at(r, "mesh");
        MoeStatus bad =
            r->st ? NULL : moe_mesh_check(&p->mesh, p->virtual_shards, p->micro_batches);
        if (bad)
            moe_plan_fail(r, "", "does not hold together: %s", moe_status_message(bad));
        moe_status_free(bad);
    }
    r->at[0] = 0;
    if (!r->st && moe_mesh_size(&p->mesh) != p->ranks)
        moe_plan_fail(r, "ranks", "is %d, but the mesh has %d", p->ranks, moe_mesh_size(&p->mesh));
    if (!r->st && p->slots != moe_mesh_slots(&p->mesh, p->experts))
        moe_plan_fail(r, "slots", "is %d, expected %d for %d experts on %d expert-parallel ranks",
                      p->slots, moe_mesh_slots(&p->mesh, p->experts), p->experts, p->mesh.ep);
}

MoeStatus moe_plan_read(MoePlan *p, const char *name) {
    MoePlanReader r = {.plan = p, .name = name};
    const json_t *root = p->json;
    if (!json_is_object(root))
        return moe_error(MOE_E_CORRUPT, "%s: damaged plan: not a JSON object; compile it again",
                         name);
    int64_t version = moe_plan_int(&r, root, "format_version", 1, INT32_MAX),
            abi = moe_plan_int(&r, root, "abi", 1, INT32_MAX);
    if (!r.st && (version > FORMAT_VERSION || abi != MOE_KERNEL_ABI_VERSION))
        return moe_error(MOE_E_INPUT,
                         "%s was made by another moec (format %lld, kernel ABI %lld; this one "
                         "reads format up to %d, ABI %d): "
                         "compile it again",
                         name, (long long)version, (long long)abi, FORMAT_VERSION,
                         MOE_KERNEL_ABI_VERSION);
    read_head(&r, root);
    if (!r.st)
        read_mesh(&r, root);
    if (!r.st)
        moe_plan_read_placement(&r, root);
    if (!r.st)
        read_buffers(&r, root);
    if (!r.st)
        read_params(&r, root);
    json_t *programs = json_object_get(root, "programs");
    r.at[0] = 0;
    if (!r.st && !json_is_object(programs))
        moe_plan_fail(&r, "programs", "should be an object, found %s", moe_plan_kind(programs));
    if (r.st)
        return r.st;
    p->programs = MOE_NEW_N(p->arena, MoePlanProgram, json_object_size(programs));
    const char *key;
    json_t *o;
    json_object_foreach(programs, key, o) {
        if (!r.st)
            moe_plan_read_program(&r, key, o, &p->programs[p->n_programs++]);
    }
    return r.st;
}
