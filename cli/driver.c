/* Compiles a model: reads it, runs the passes, hands the result to the plan writer or loader. */
#include "cli/driver.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/io.h"
#include "base/json.h"
#include "base/log.h"
#include "cli/cluster_options.h"
#include "cli/compile_load.h"
#include "codegen/codegen.h"
#include "ir/numbers.h"
#include "ir/text.h"

static const struct {
    const char *name;
    MoeRecompute value;
} recompute_names[] = {{"auto", MOE_RECOMPUTE_AUTO},
                       {"none", MOE_RECOMPUTE_NONE},
                       {"cheap", MOE_RECOMPUTE_CHEAP},
                       {"layer", MOE_RECOMPUTE_LAYER}};

MoeRecompute moe_recompute_from_name(const char *name) {
    for (size_t i = 0; i < sizeof recompute_names / sizeof *recompute_names; i++)
        if (strcmp(name, recompute_names[i].name) == 0)
            return recompute_names[i].value;
    MOE_ASSERT(0, "recompute level \"%s\"", name);
    return MOE_RECOMPUTE_AUTO;
}

void moe_driver_defaults(MoeDriverOptions *o) {
    *o = (MoeDriverOptions){.target = "cpu", .tokenizer = "byte", .compile_line = "moec compile"};
    o->frontend = (MoeFrontendOptions){.batch = 8,
                                       .virtual_shards = MOE_DEFAULT_SHARDS,
                                       .micro_batches = 1,
                                       .mixed_from_config = true};
    o->pass.recompute = MOE_RECOMPUTE_AUTO;
    o->pass.overlap = true;
    o->pass.loading_horizon = 1;
    o->pipeline.verify_each = true;
    o->pipeline.out = stdout;
    o->pipeline.err = stderr;
}

static bool is_power_of_two(int64_t n) {
    return n > 0 && (n & (n - 1)) == 0;
}

static MoeStatus check_options(const MoeDriverOptions *o) {
    const MoeFrontendOptions *f = &o->frontend;
    if (!is_power_of_two(f->virtual_shards) || f->virtual_shards > MOE_MAX_SHARDS)
        return moe_error(MOE_E_MISUSE, "--virtual-shards %d: expected a power of two from 1 to %d",
                         f->virtual_shards, MOE_MAX_SHARDS);
    if (!is_power_of_two(f->micro_batches) || f->micro_batches > f->virtual_shards)
        return moe_error(
            MOE_E_MISUSE,
            "--micro-batches %d: expected a power of two that is at most the %d virtual shards",
            f->micro_batches, f->virtual_shards);
    if (o->leaf_rows && !moe_leaf_rows_valid(o->leaf_rows))
        return moe_error(MOE_E_MISUSE, "--leaf-rows %d: expected auto, or a power of two from %d to %d",
                         o->leaf_rows, MOE_MIN_LEAF_ROWS, MOE_MAX_LEAF_ROWS);
    if (f->batch < 1 || f->batch > 1 << 24)
        return moe_error(MOE_E_MISUSE, "--batch %lld: expected 1 to %d sequences",
                         (long long)f->batch, 1 << 24);
    if (f->seq < 0 || f->seq > 1 << 24)
        return moe_error(MOE_E_MISUSE, "--seq %lld: expected 1 to %d tokens", (long long)f->seq,
                         1 << 24);
    if (strcmp(o->tokenizer, "byte") != 0)
        return moe_error(MOE_E_MISUSE,
                         "--tokenizer %s: only \"byte\" is known; train other tokenizers' output "
                         "from token files",
                         o->tokenizer);
    return NULL;
}

/* A .moe model says its sizes itself: V from tok, the sequence length from attention or rope, the batch from the rows. */
static MoeStatus options_from_graph(const char *path, const MoeModule *m, MoeFrontendOptions *f) {
    const MoeGraph *g = moe_module_find(m, "train");
    const MoeValue *tok = g ? moe_graph_find_input(g, "tok") : NULL,
                   *ids = g ? moe_graph_find_input(g, "ids") : NULL;
    if (!tok || !ids || tok->type.kind != MOE_TYPE_SEGS)
        return moe_error(MOE_E_INPUT,
                         "%s: expected graph @train with inputs \"tok\" : segs<1,V> and \"ids\"",
                         path);
    f->virtual_shards = (int)tok->type.shards;
    int64_t seq = f->seq;
    for (size_t i = 0; i < g->n_ops; i++)
        if (moe_attr(g->ops[i], "seq"))
            seq = moe_attr_i(g->ops[i], "seq");
    if (seq < 1)
        return moe_error(MOE_E_INPUT, "%s: no op says the sequence length; pass --seq", path);
    f->seq = seq;
    int64_t capacity = ids->type.dims[0].size;
    while (moe_token_capacity(f->batch, seq, f->micro_batches) > capacity &&
           f->batch > 1)
        f->batch--;
    if (moe_token_capacity(f->batch, seq, f->micro_batches) > capacity)
        return moe_error(MOE_E_INPUT, "%s: room for %lld tokens is less than one sequence of %lld",
                         path, (long long)capacity, (long long)seq);
    return NULL;
}

/* What the plan says of the model's experts and vocabulary, read off the graph: true for any frontend. */
static void fill_info(MoeCompiled *c) {
    MoePlanInfo *info = &c->info;
    const MoeGraph *g = moe_module_find(c->module, "train");
    int *layers = MOE_NEW_N(c->arena, int, g ? g->n_ops : 0);
    for (size_t i = 0; g && i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        if (op->opcode == MOE_OP_ROUTE_PLAN) {
            info->experts = (int)moe_attr_i(op, "experts");
            info->experts_per_token = (int)moe_type_cols(&op->operands[0]->type);
            layers[info->n_moe_layers] =
                (int)moe_attr_i_or(op, "layer", (int64_t)info->n_moe_layers);
            info->n_moe_layers++;
        } else if (op->opcode == MOE_OP_LINEAR_CROSS_ENTROPY)
            info->vocab_size = op->operands[1]->type.dims[0].size;
    }
    info->moe_layers = layers;
}

static bool ends_with(const char *s, const char *tail) {
    size_t n = strlen(s), t = strlen(tail);
    return n >= t && strcmp(s + n - t, tail) == 0;
}

static MoeStatus read_model(const MoeDriverOptions *o, MoeFrontendOptions *f, MoeCompiled *c) {
    if (ends_with(o->model, ".moe")) {
        MOE_TRY(moe_parse_file(o->model, &c->module));
        c->model = json_object();
        if (f->mixed_from_config)
            f->mixed_from_config = f->mixed_bf16 = false;
        return options_from_graph(o->model, c->module, f);
    }
    char *path =
        moe_path_is_dir(o->model) ? moe_path_join(o->model, "config.json") : strdup(o->model);
    MoeStatus st = moe_hf_config_read(path, &c->config, &c->model);
    if (!st && !o->quiet && c->config.experts && !c->config.output_router_logits &&
        f->aux == MOE_AUX_FROM_CONFIG)
        moe_warn("%s: \"output_router_logits\" is false, so the load-balancing loss is left out as "
                 "transformers does; --aux-loss on adds it",
                 path);
    if (!st && strcmp(o->tokenizer, "byte") == 0 && c->config.vocab_size < 256 && !o->quiet)
        moe_warn("%s: a vocabulary of %lld is less than the 256 bytes of text; train it from token "
                 "files",
                 path, (long long)c->config.vocab_size);
    if (!st)
        st = moe_hf_build(&c->config, f, &c->module);
    if (!st && f->mixed_from_config)
        f->mixed_bf16 = c->config.bf16;
    if (!st && f->seq == 0)
        f->seq = c->config.max_positions < 512 ? c->config.max_positions : 512;
    if (!st)
        c->info.flops_per_token = moe_hf_flops_per_token(&c->config, f->seq);
    free(path);
    return st;
}

/* How sums over rows are ordered: the options' word, else the model's text, else the target's. Graphs carry it from here on, so that
 * model.moe, from which a plan may be compiled again, has it. */
static void order_sums(const MoeDriverOptions *o, const MoeTarget *t, MoeModule *m) {
    for (size_t i = 0; i < m->n_graphs; i++) {
        MoeGraph *g = m->graphs[i];
        if (o->leaf_rows)
            g->leaf_rows = o->leaf_rows;
        else if (!g->leaf_rows && t->leaf_rows != MOE_LEAF_ROWS)
            g->leaf_rows = t->leaf_rows;
        g->fast_reduce |= o->fast_reduce;
    }
}

MoeStatus moe_driver_compile(const MoeDriverOptions *o, MoeCompiled *c) {
    memset(c, 0, sizeof *c);
    c->arena = moe_arena_create();
    MOE_TRY(check_options(o));
    MoeFrontendOptions f = o->frontend;
    MOE_TRY(read_model(o, &f, c));
    MOE_TRY(moe_target_create(o->target, &c->target));
    order_sums(o, c->target, c->module);
    moe_print(c->module, &c->logical_text);
    fill_info(c);
    c->info.model = c->model;
    c->info.tokenizer = o->tokenizer;
    c->info.want_text = o->want_text;
    c->info.compile_line = o->compile_line;
    c->info.planner = o->planner;
    c->info.logical_text = moe_str_c(&c->logical_text);
    if (c->config.vocab_size)
        c->info.vocab_size = c->config.vocab_size;
    c->cx = (MoePassContext){
        .module = c->module, .options = o->pass, .target = c->target, .arena = c->arena};
    c->cx.options.batch = f.batch;
    c->cx.options.seq = f.seq;
    c->cx.options.virtual_shards = f.virtual_shards;
    c->cx.options.micro_batches = f.micro_batches;
    c->cx.options.mixed_bf16 = f.mixed_bf16;
    MOE_TRY(moe_strategy_resolve(&o->strategy, c->info.experts, &c->cx.options.mesh));
    if (!o->survey)
        MOE_TRY(moe_cluster_check_mesh(&c->cx.options));
    MOE_TRY(moe_mesh_check(&c->cx.options.mesh, f.virtual_shards, f.micro_batches));
    MOE_TRY(moe_compile_load(o, c));
    MOE_TRY(moe_pipeline_run(&c->cx, &o->pipeline));
    return NULL;
}

MoeStatus moe_driver_load(MoeCompiled *c, MoePlan **out) {
    char *json = NULL, *text = NULL;
    void *object = NULL;
    size_t n = 0;
    MoeStatus st = moe_plan_build(&c->cx, &c->info, &json, &object, &n, &text);
    if (!st)
        st = moe_plan_load_memory(json, strlen(json), "plan in memory", object, n, out);
    free(json);
    free(text);
    free(object);
    return st;
}

void moe_driver_free(MoeCompiled *c) {
    if (c->target)
        c->target->destroy(c->target);
    if (c->module)
        moe_module_destroy(c->module);
    moe_str_free(&c->logical_text);
    json_decref(c->model);
    moe_arena_destroy(c->arena);
    memset(c, 0, sizeof *c);
}

/* ---- a plan made for another CPU ---- */

static MoeStatus read_ranges(const json_t *a, const char *dir, MoeMesh *m) {
    static const char *const keys[] = {"first", "last", "dp", "shard", "ep"};
    if (json_array_size(a) > MOE_MAX_RANGES)
        return moe_error(MOE_E_CORRUPT, "%s: the mesh has %zu ranges of layers; at most %d", dir,
                         json_array_size(a), MOE_MAX_RANGES);
    for (size_t i = 0; i < json_array_size(a); i++) {
        int64_t n[5] = {0};
        for (int k = 0; k < 5; k++) {
            MOE_TRY(moe_json_i64(json_array_get(a, i), dir, keys[k], true, &n[k]));
            if (n[k] < 0 || n[k] > INT32_MAX)
                return moe_error(MOE_E_CORRUPT, "%s: layers of the mesh have %s = %lld", dir,
                                 keys[k], (long long)n[k]);
        }
        m->ranges[m->n_ranges++] = (MoeMeshRange){.first = (int)n[0],
                                                  .last = (int)n[1],
                                                  .dp = (int)n[2],
                                                  .shard = (int)n[3],
                                                  .ep = (int)n[4]};
    }
    return NULL;
}

/* The plan's mesh, as a strategy that resolves to it. */
static MoeStatus read_mesh(const json_t *mesh, const char *dir, MoeStrategy *out) {
    static const char *const keys[] = {"dp", "shard", "ep", "tp", "dense_shard"};
    int64_t n[5] = {1, 1, 1, 1, 1};
    for (int i = 0; mesh && i < 5; i++) {
        MOE_TRY(moe_json_i64(mesh, dir, keys[i], true, &n[i]));
        if (n[i] < 1 || n[i] > MOE_MAX_RANKS)
            return moe_error(MOE_E_CORRUPT, "%s: the mesh has %s = %lld; expected 1 to %d", dir, keys[i],
                             (long long)n[i], MOE_MAX_RANKS);
    }
    MoeMesh m = {.dp = (int)n[0], .shard = (int)n[1], .ep = (int)n[2], .tp = (int)n[3], .dense_shard = (int)n[4]};
    int64_t extra = 0;
    if (mesh)
        MOE_TRY(moe_json_i64(mesh, dir, "extra_slots", false, &extra));
    if (extra < 0 || extra > MOE_MAX_EXTRA_SLOTS)
        return moe_error(MOE_E_CORRUPT, "%s: the mesh has extra_slots = %lld; expected 0 to %d", dir,
                         (long long)extra, MOE_MAX_EXTRA_SLOTS);
    m.extra_slots = (int)extra;
    MOE_TRY(read_ranges(json_object_get(mesh, "layers"), dir, &m));
    MOE_TRY(moe_mesh_check(&m, MOE_MAX_SHARDS, 1));
    *out = moe_strategy_of_mesh(&m);
    return NULL;
}

static MoeStatus recompile(const char *dir, const json_t *json, MoePlan **out) {
    char *path = moe_path_join(dir, "model.moe");
    MoeDriverOptions o;
    moe_driver_defaults(&o);
    o.model = path;
    o.quiet = true;
    int64_t batch = 0, seq = 0, micro = 1, layers = 0, horizon = -1;
    const char *line = "", *dtype = "f32", *recompute = "auto";
    bool keep_weights = false;
    json_t *model = NULL, *mesh = NULL;
    MoeCompiled c = {0};
    MoeStatus st = NULL;
    MOE_TRY_GOTO(st, moe_json_i64(json, dir, "batch", true, &batch), done);
    MOE_TRY_GOTO(st, moe_json_i64(json, dir, "seq", true, &seq), done);
    MOE_TRY_GOTO(st, moe_json_i64(json, dir, "micro_batches", true, &micro), done);
    MOE_TRY_GOTO(st, moe_json_str(json, dir, "dtype", true, &dtype), done);
    MOE_TRY_GOTO(st, moe_json_str(json, dir, "compile", false, &line), done);
    MOE_TRY_GOTO(st, moe_json_object(json, dir, "model", true, &model), done);
    MOE_TRY_GOTO(st, moe_json_str(json, dir, "recompute", false, &recompute), done);
    MOE_TRY_GOTO(st, moe_json_i64(json, dir, "recompute_layers", false, &layers), done);
    MOE_TRY_GOTO(st, moe_json_bool(json, dir, "keep_weights", false, &keep_weights), done);
    MOE_TRY_GOTO(st, moe_json_i64(json, dir, "loading_horizon", false, &horizon), done);
    o.compile_line = line;
    o.pass.recompute = moe_recompute_from_name(recompute);
    o.pass.recompute_layers = (int)layers;
    o.pass.keep_weights = keep_weights;
    o.pass.offload = horizon >= 0;
    o.pass.loading_horizon = (int)horizon;
    o.frontend.batch = batch;
    o.frontend.seq = seq;
    o.frontend.micro_batches = (int)micro;
    o.frontend.mixed_from_config = false;
    o.frontend.mixed_bf16 = strcmp(dtype, "bf16") == 0;
    MOE_TRY_GOTO(st, moe_json_object(json, dir, "mesh", false, &mesh), done);
    MOE_TRY_GOTO(st, read_mesh(mesh, dir, &o.strategy), done);
    MOE_TRY_GOTO(st, moe_driver_compile(&o, &c), done);
    c.info.model = model;
    moe_json_f64(json, dir, "flops_per_token", false, &c.info.flops_per_token);
    st = moe_driver_load(&c, out);
done:
    moe_driver_free(&c);
    free(path);
    return st;
}

MoeStatus moe_driver_open_plan(const char *dir, MoePlan **out) {
    char *path = moe_path_join(dir, "plan.json");
    json_t *json = NULL;
    const char *target = NULL;
    if (!moe_path_exists(path)) {
        MoeStatus st = moe_error(
            MOE_E_INPUT, "%s: no plan here (no plan.json); 'moec compile MODEL -o %s' makes one",
            dir, dir);
        free(path);
        return st;
    }
    MoeStatus st = moe_json_load_file(path, (size_t)1 << 30, &json);
    if (!st)
        st = moe_json_str(json, path, "target", true, &target);
    /* A plan for a GPU stays one: whether that is here is found out when something is to run on it. */
    if (!st && strncmp(target, "cuda:", 5) != 0 && !moe_target_runs_here(target)) {
        moe_note("%s was compiled for %s; compiling it again for this machine", dir, target);
        st = recompile(dir, json, out);
    } else if (!st)
        st = moe_plan_load(dir, out);
    json_decref(json);
    free(path);
    return st;
}
