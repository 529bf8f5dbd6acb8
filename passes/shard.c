/* Pass shard: the program that every rank runs (docs/RANKS.md). In: logical graphs, as if on one device. Out: the same
 * graphs on one rank's rows, slots and slices, with collectives where a value's state changes; with one rank nothing
 * changes. The ops are walked in order: each is built again from what its operands have become, and its results' states
 * are derived by the rules that the verifier uses (shard.h). What an op cannot read in the state it has, is converted:
 * a slice is gathered (once a phase), a term of a sum reduced.
 *
 *   %w = param {...} : f32[64, 64]                   %w = param {..., whole = "64,64"} : f32[4096]
 *   %y = matmul %x, %w {...}                  ->     %0 = all_gather %w {group = "dense_shard", unit = 4096, dims = "64,64"}
 *                                                    %y = matmul %x, %0 {...}
 *   %d = weight_grad %dy, %x                         %d = weight_grad %dy, %x
 *   %a = accumulate %d                               %1 = reduce_scatter %d {sum = "data", scatter = "dense_shard", ...}
 *                                                    %a = accumulate %1 : f32[4096]
 */
#include <string.h>

#include "base/assert.h"
#include "base/str.h"
#include "passes/phases.h"
#include "passes/shard_build.h"

/* ---- declarations ---- */

static const char *dims_text(MoeArena *a, const MoeType *t) {
    MoeStr text = {0};
    moe_dims_to_text(t, &text);
    const char *kept = moe_arena_strdup(a, moe_str_c(&text));
    moe_str_free(&text);
    return kept;
}

static MoeStatus declared(MoeShard *s, const MoeOp *op, MoeOp *now) {
    now->loc = op->loc;
    now->results[0]->name = op->results[0]->name;
    s->map[op->results[0]->id].now = now->results[0];
    return moe_shard_note(s, now);
}

/* Rows of tokens: at most those of one data rank in a micro-batch. */
static MoeStatus input(MoeShard *s, const MoeOp *op) {
    MoeType t = op->results[0]->type;
    if (t.kind == MOE_TYPE_TENSOR && t.dims[0].seg) {
        const MoeValue *seg = s->map[t.dims[0].seg->id].now;
        MOE_ASSERT(seg, "shard: the segs of input %s come after it", moe_attr_s(op, "name"));
        if (seg == s->tok && t.dims[0].size > s->rows)
            t.dims[0].size = s->rows;
        t.dims[0].seg = seg;
    }
    MoeOp *now = moe_op_build_v(s->g, MOE_OP_INPUT, NULL, 0, op->attrs, op->n_attrs, &t, NULL);
    if (t.kind == MOE_TYPE_SEGS && t.groups == 1 && !s->tok)
        s->tok = now->results[0];
    return declared(s, op, now);
}

static MoeStatus param(MoeShard *s, const MoeOp *op) {
    const MoeShardParam *p = moe_shard_param(s->params, moe_attr_s(op, "name"));
    MoeAttr attrs[MOE_MAX_ATTRS];
    int n = 0;
    for (int i = 0; i < op->n_attrs; i++)
        attrs[n++] = op->attrs[i];
    attrs[n++] = moe_as("whole", dims_text(s->a, &p->whole));
    if (p->expert)
        attrs[n++] = moe_ai("expert", 1);
    if (p->division)
        attrs[n++] = moe_ai("mesh", p->division);
    if (p->tp_dim >= 0)
        attrs[n++] = moe_ai("tp_dim", p->tp_dim);
    return declared(s, op, moe_op_build_v(s->g, MOE_OP_PARAM, NULL, 0, attrs, n, &p->local, NULL));
}

static MoeStatus state(MoeShard *s, const MoeOp *op) {
    const MoeShardParam *p = moe_shard_param(s->params, moe_attr_s(op, "of"));
    if (!p || !moe_type_same_shape(&p->whole, &op->results[0]->type))
        return moe_error(MOE_E_INPUT, "shard: state %s of %s is not shaped like that parameter",
                         moe_attr_s(op, "name"), moe_attr_s(op, "of"));
    MoeType t = p->local;
    t.dtype = op->results[0]->type.dtype;
    return declared(s, op,
                    moe_op_build_v(s->g, MOE_OP_STATE, NULL, 0, op->attrs, op->n_attrs, &t, NULL));
}

/* Whether an op of the graph works on a table divided over tp. */
static bool reads_tables(const MoeShard *s) {
    for (size_t i = 0; i < s->n_old; i++) {
        const MoeOp *op = s->old[i];
        bool loss = op->opcode == MOE_OP_LINEAR_CROSS_ENTROPY ||
                    op->opcode == MOE_OP_LINEAR_CROSS_ENTROPY_GRAD;
        if ((op->opcode == MOE_OP_EMBEDDING || loss) && moe_shard_is_table(s, op->operands[loss]))
            return true;
    }
    return false;
}

/* The EP group of this division: its tokens, this rank's number. */
static MoeStatus division_inputs(MoeShard *s, int k) {
    char name[32];
    if (s->tok_ep[k])
        return NULL;
    moe_mesh_input_name("tok_ep", k, name);
    s->tok_ep[k] = moe_build_input(s->g, moe_arena_strdup(s->a, name),
                                   moe_type_segs(1, s->tok->type.shards));
    MOE_TRY(moe_shard_note(s, s->tok_ep[k]->def));
    moe_mesh_input_name("ep_rank", k, name);
    s->ep_rank[k] =
        moe_build_input(s->g, moe_arena_strdup(s->a, name), moe_type_1d(MOE_I32, 1));
    return moe_shard_note(s, s->ep_rank[k]->def);
}

/* What ranks add to the inputs: with experts over ep, with a vocabulary over tp. */
static MoeStatus rank_inputs(MoeShard *s) {
    MoeGraph *g = s->g;
    if (reads_tables(s)) {
        s->tp_rank = moe_build_input(g, "tp_rank", moe_type_1d(MOE_I32, 1));
        MOE_TRY(moe_shard_note(s, s->tp_rank->def));
    }
    if (!s->n_routes)
        return NULL;
    if (!s->tok)
        return moe_error(MOE_E_INPUT, "shard: graph @%s has experts but no input segs<1,V>",
                         g->name);
    for (size_t i = 0; i < s->n_routes; i++)
        MOE_TRY(division_inputs(s, s->routes[i].division));
    for (size_t i = 0; i < s->n_routes; i++) {
        MoeShardRoute *r = &s->routes[i];
        r->place = moe_build_input(g, moe_arena_printf(s->a, "place.%d", r->layer),
                                   moe_type_1d(MOE_I32, moe_attr_i(r->logical, "experts")));
        MOE_TRY(moe_shard_note(s, r->place->def));
        if (moe_shard_has_copies(&s->rules, r->division)) {
            int64_t slots = moe_shard_slots(&s->rules, r->division, r->place->type.dims[0].size);
            r->copies = moe_build_input(g, moe_arena_printf(s->a, "copies.%d", r->layer),
                                        moe_type_1d(MOE_I32, r->ep * slots));
            MOE_TRY(moe_shard_note(s, r->copies->def));
        }
    }
    return NULL;
}

/* ---- ops ---- */

static bool is_scalar(const MoeValue *v) {
    return v->type.kind == MOE_TYPE_TENSOR && v->type.rank == 1 && v->type.dims[0].size == 1 &&
           !v->type.dims[0].seg;
}

/* Whether op works on slices as they are: what stores or passes on a value; elementwise ops of slices and single numbers. */
static bool works_on_slices(const MoeShard *s, const MoeOp *op) {
    if (op->opcode == MOE_OP_ASSIGN || op->opcode == MOE_OP_OUTPUT || op->opcode == MOE_OP_ADAMW ||
        op->opcode == MOE_OP_ACCUMULATE)
        return true;
    if (moe_op_info(op->opcode)->kind != MOE_KIND_EW || op->opcode == MOE_OP_BROADCAST)
        return false;
    for (int i = 0; i < op->n_operands; i++) {
        const MoeValue *now = s->map[op->operands[i]->id].now;
        if (moe_shard_now(s, now)->slice < 0 && !is_scalar(now))
            return false;
    }
    return true;
}

/* Whether op takes terms of a sum: it is linear, and all its operands are terms. Those over data ranks: integers alone. */
static bool takes_terms(const MoeShard *s, const MoeOp *op) {
    const MoeShardState *a = moe_shard_now(s, s->map[op->operands[0]->id].now);
    if (op->opcode == MOE_OP_ADD || op->opcode == MOE_OP_SUB)
        return (a->partial < 0 || op->results[0]->type.dtype == MOE_I32) &&
               moe_shard_state_equal(a, moe_shard_now(s, s->map[op->operands[1]->id].now));
    return a->partial < 0 &&
           (op->opcode == MOE_OP_NEG || op->opcode == MOE_OP_DISPATCH ||
            op->opcode == MOE_OP_GATHER_SUM || op->opcode == MOE_OP_COLLECT_WEIGHT ||
            op->opcode == MOE_OP_DISPATCH_WEIGHT);
}

MoeStatus moe_shard_operand(MoeShard *s, const MoeOp *op, int i, MoeValue **out) {
    const MoeValue *old = op->operands[i];
    MoeShardMapped *m = &s->map[old->id];
    MOE_ASSERT(m->now, "shard: %s reads a value that is not built yet",
               moe_op_info(op->opcode)->name);
    const MoeShardState *st = moe_shard_now(s, m->now);
    if ((st->partial >= 0 || st->tp == MOE_TP_PARTIAL) && !takes_terms(s, op))
        MOE_TRY(moe_shard_reduce(s, old));
    *out = m->now;
    if (op->phase <= MOE_PHASE_BACKWARD)
        MOE_TRY(moe_shard_copied(s, old, out));
    if (moe_shard_now(s, m->now)->slice >= 0 && !works_on_slices(s, op))
        MOE_TRY(moe_shard_gather(s, old, op->phase, out));
    if (op->opcode == MOE_OP_MATMUL && i == 1 && s->mesh->tp > 1 && moe_shard_is_table(s, old))
        return moe_shard_join_table(s, old, *out, op->phase, out);
    return NULL;
}

static void set_attr(MoeAttr *attrs, int n, const char *key, int64_t v) {
    for (int i = 0; i < n; i++)
        if (strcmp(attrs[i].key, key) == 0)
            attrs[i].i = v;
}

/* Rows of a broadcast and heads of attention, as many as this rank has. */
static int local_attrs(const MoeShard *s, const MoeOp *op, MoeValue *const *operands,
                       MoeAttr *attrs) {
    int n = op->n_attrs;
    for (int i = 0; i < n; i++)
        attrs[i] = op->attrs[i];
    if (op->opcode == MOE_OP_BROADCAST && op->n_operands == 2) {
        const MoeShardRoute *r = s->map[op->operands[1]->id].route;
        int64_t rows = moe_attr_i(op, "rows");
        if (r)
            rows = r->src->type.dims[0].size;
        else if (operands[1] == s->tok && rows > s->rows)
            rows = s->rows;
        else if (operands[1]->def->opcode == MOE_OP_ROUTE_PLAN)
            rows = operands[1]->def->results[1]->type.dims[0].size;
        set_attr(attrs, n, "rows", rows);
    }
    bool heads = op->opcode == MOE_OP_ROPE || op->opcode == MOE_OP_ATTENTION ||
                 op->opcode == MOE_OP_ATTENTION_GRAD;
    if (heads && moe_shard_now(s, operands[0])->tp == 1) {
        set_attr(attrs, n, "heads", moe_attr_i(op, "heads") / s->mesh->tp);
        set_attr(attrs, n, "kv_heads", moe_attr_i_or(op, "kv_heads", 0) / s->mesh->tp);
    }
    return n;
}

MoeStatus moe_shard_same_op(MoeShard *s, const MoeOp *op, MoeValue *const *operands) {
    MoeAttr attrs[MOE_MAX_ATTRS];
    int n = local_attrs(s, op, operands, attrs), division = 0;
    if (op->opcode == MOE_OP_ROUTE_PLAN)
        division = moe_mesh_of_layer(s->mesh, moe_shard_layer(s->old, s->n_old, op));
    if (division)
        attrs[n++] = moe_ai("mesh", division);
    const char *problem = NULL;
    MoeOp *now =
        moe_op_build_v(s->g, op->opcode, operands, op->n_operands, attrs, n, NULL, &problem);
    if (!now)
        return moe_error(MOE_E_INPUT, "shard: graph @%s cannot be divided over these ranks: %s",
                         s->g->name, problem);
    now->loc = op->loc;
    for (int i = 0; i < op->n_results; i++) {
        now->results[i]->name = op->results[i]->name;
        s->map[op->results[i]->id].now = now->results[i];
    }
    MOE_TRY(moe_shard_note(s, now));
    for (int i = 0; i < op->n_results; i++)
        MOE_TRY(moe_shard_reduce_gradient(s, op->results[i]));
    return NULL;
}

/* Counts of rows and the load trace are of this rank's own pairs. */
static bool counts_pairs(const MoeOp *op) {
    return op->opcode == MOE_OP_EXPERT_COUNTS || op->opcode == MOE_OP_ROW_COUNT ||
           op->opcode == MOE_OP_OUTPUT;
}

/* A gradient that is whole on every rank, where the parameter is a slice: no op cuts one. */
static MoeStatus check_gradient(const MoeShard *s, const MoeOp *op, MoeValue *const *operands) {
    bool any_slice = false;
    const MoeShardParam *whole = NULL;
    for (int i = 0; i < op->n_operands; i++) {
        any_slice |= moe_shard_now(s, operands[i])->slice >= 0;
        if (moe_shard_now(s, operands[i])->slice < 0 && s->gradient[op->operands[i]->id])
            whole = s->gradient[op->operands[i]->id];
    }
    if (!any_slice || !whole || op->phase < MOE_PHASE_REDUCE)
        return NULL;
    return moe_error(MOE_E_INPUT,
                     "shard: the gradient of parameter %s in graph @%s is no sum over tokens, so "
                     "ranks cannot share it out; use a hybrid and a dense shard degree of 1",
                     whole->name, s->g->name);
}

static MoeStatus any_op(MoeShard *s, const MoeOp *op) {
    MoeValue *operands[MOE_SHARD_MAX_IN];
    MOE_ASSERT(op->n_operands <= MOE_SHARD_MAX_IN, "shard: %s has %d operands",
               moe_op_info(op->opcode)->name, op->n_operands);
    for (int i = 0; i < op->n_operands; i++) {
        const MoeShardRoute *r = s->map[op->operands[i]->id].route;
        if (r && op->operands[i]->type.kind == MOE_TYPE_SEGS && counts_pairs(op))
            operands[i] = r->home_seg;
        else
            MOE_TRY(moe_shard_operand(s, op, i, &operands[i]));
    }
    for (int i = 0; i < op->n_operands;
         i++) /* a later operand's reduction may have changed an earlier one */
        if (op->operands[i]->type.kind == MOE_TYPE_TENSOR)
            MOE_TRY(moe_shard_operand(s, op, i, &operands[i]));
    MOE_TRY(check_gradient(s, op, operands));
    return moe_shard_same_op(s, op, operands);
}

static MoeStatus build(MoeShard *s, const MoeOp *op) {
    bool done;
    s->g->phase = op->phase;
    s->g->layer = (int)moe_attr_i_or(op, "layer", -1);
    if (op->opcode == MOE_OP_INPUT)
        return input(s, op);
    if (op->opcode == MOE_OP_PARAM)
        return param(s, op);
    if (op->opcode == MOE_OP_STATE)
        return state(s, op);
    MOE_TRY(moe_shard_norm_op(s, op, &done));
    if (!done)
        MOE_TRY(moe_shard_vocab_op(s, op, &done));
    if (!done)
        MOE_TRY(moe_shard_expert_op(s, op, &done));
    return done ? NULL : any_op(s, op);
}

/* ---- graphs ---- */

static void find_routes(MoeShard *s) {
    s->routes = MOE_NEW_N(s->a, MoeShardRoute, s->n_old);
    for (size_t i = 0; i < s->n_old; i++) {
        if (s->old[i]->opcode != MOE_OP_ROUTE_PLAN)
            continue;
        MoeShardRoute r = {.logical = s->old[i],
                           .layer = moe_shard_layer(s->old, s->n_old, s->old[i])};
        r.division = moe_mesh_of_layer(s->mesh, r.layer);
        r.ep = moe_mesh_group_size(s->mesh, moe_mesh_group_in(MOE_GROUP_EP, r.division));
        if (r.ep > 1)
            s->routes[s->n_routes++] = r;
    }
}

static MoeStatus shard_graph(MoeGraph *g, const MoePassOptions *o, const MoeMesh *mesh,
                             const MoeShardParams *params, MoeArena *a) {
    moe_graph_renumber(g);
    MoeShard s = {.g = g, .mesh = mesh, .params = params, .a = a};
    s.rules = (MoeShardRules){.mesh = mesh, .g = g, .a = a};
    s.rows = moe_mesh_most_sequences(mesh, o->batch, o->micro_batches) * o->seq;
    s.gradient = moe_shard_gradients(g, params, a);
    s.map = MOE_NEW_N(a, MoeShardMapped, g->n_values);
    MoePhase phase = g->phase;
    int layer = g->layer;
    s.old = moe_graph_take_ops(g, &s.n_old);
    find_routes(&s);
    bool inputs = true;
    for (size_t i = 0; i < s.n_old; i++) {
        if (inputs && s.old[i]->opcode != MOE_OP_INPUT) {
            inputs = false;
            g->phase = MOE_PHASE_FORWARD;
            g->layer = -1;
            MOE_TRY(rank_inputs(&s));
        }
        MOE_TRY(build(&s, s.old[i]));
    }
    g->phase = phase;
    g->layer = layer;
    bool acyclic = moe_graph_schedule(g);
    MOE_ASSERT(acyclic, "shard: values of graph @%s depend on each other in a circle", g->name);
    moe_graph_dce(g);
    moe_graph_renumber(g);
    return NULL;
}

static bool has_experts(const MoeShardParams *p) {
    for (size_t i = 0; i < p->n; i++)
        if (p->items[i].expert)
            return true;
    return false;
}

MoeStatus moe_pass_shard(MoePassContext *cx) {
    MoeMesh mesh = moe_pass_mesh(&cx->options);
    if (moe_mesh_size(&mesh) == 1)
        return NULL;
    MOE_TRY(moe_mesh_check(&mesh, cx->options.virtual_shards, cx->options.micro_batches));
    for (size_t i = 0; i < cx->module->n_graphs; i++)
        if (moe_shard_is_sharded(cx->module->graphs[i])) {
            cx->sharded = true; /* a step.moe read again */
            return NULL;
        }
    MoeArena *a = moe_arena_create();
    MoeShardParams params;
    MoeStatus st = moe_shard_params_find(cx->module, &mesh, a, &params);
    if (!st && moe_shard_has_ep(&mesh) && !has_experts(&params))
        st = moe_error(MOE_E_MISUSE,
                       "expert parallel degree %d, but the model has no experts: use "
                       "--hybrid-shard-degree %d instead",
                       mesh.ep, mesh.ep * mesh.shard);
    for (size_t i = 0; !st && i < cx->module->n_graphs; i++)
        st = shard_graph(cx->module->graphs[i], &cx->options, &mesh, &params, a);
    moe_arena_destroy(a);
    cx->sharded = !st;
    return st;
}
