/* recompute: activation checkpointing. Forward values that the backward pass reads are computed again there instead of
 * living through the whole step. Same op, same operands: no bit changes.
 *
 *   forward:  %s = sigmoid %g           forward:  %s = sigmoid %g
 *             %h = mul %g, %s     ->              %h = mul %g, %s
 *   backward: ... uses %g, %s, %h      backward: %1 = sigmoid %g; %2 = mul %g, %1; ... uses %g, %1, %2
 *
 * CHEAP: elementwise and row ops, dispatch and dispatch_weight, wherever that keeps fewer bytes (recompute_cut.c).
 * LAYER: in the first n layers everything but routing and top-k is computed again from what enters the layer (Chen et
 *        al. 2016); elsewhere CHEAP. The last layers are left out first: the peak is at the start of the backward phase,
 *        where their values are needed anyway.
 * AUTO:  CHEAP if that fits memory_limit, else the fewest layers that do, found by planning memory for copies of @train. Where the
 *        target gains by it and the limit has room, the bf16 copies of weights are kept, too: 2 bytes a parameter, of which
 *        rounding again reads 4 and writes 2.
 * Rows that came from other ranks are sent again (LAYER), by all ranks: it is one program; the plans of who sends what are kept.
 * A value is computed again once, just before its first reader; other readers share it. Parameters that ranks share out are
 * gathered again rather than kept: the backward phase has them anyway. */
#include "passes/recompute.h"

#include <string.h>
#include "base/assert.h"
#include "base/str.h"
#include "passes/memplan.h"
#include "passes/pass.h"

/* ---- rewriting ---- */

typedef struct {
    MoeGraph *g;
    const bool *again;
    int n_old;         /* value ids below it are of the old graph */
    MoeValue **second; /* by value id: the value computed again */
    MoeOp **ops;       /* the old list */
    size_t n_ops;
    bool *placed; /* by value id: in the new list, perhaps before its turn */
} Rewrite;

static void place_old(Rewrite *w, MoeOp *op) {
    if (op->n_results && (op->results[0]->id >= w->n_old || w->placed[op->results[0]->id]))
        return; /* a copy was appended when it was made */
    for (int i = 0; i < op->n_results; i++)
        w->placed[op->results[i]->id] = true;
    moe_graph_append(w->g, op);
}

static MoeValue *at_backward(Rewrite *w, MoeValue *v) {
    if (v->id >= w->n_old || !w->again[v->id])
        return v;
    if (w->second[v->id])
        return w->second[v->id];
    MoeOp *op = v->def;
    MoeOp *twin = moe_recompute_is_param(op) ? moe_recompute_twin(w->ops, w->n_ops, op) : NULL;
    if (twin) { /* the backward pass gathers the parameter anyway: now */
        twin->operands[0] = at_backward(w, twin->operands[0]); /* the bf16 slice */
        place_old(w, twin->operands[0]->def);
        place_old(w, twin);
        return w->second[v->id] = twin->results[0];
    }
    MoeValue *operands[16];
    MOE_ASSERT(op->n_operands <= 16, "recompute: %s has %d operands", moe_op_info(op->opcode)->name,
               op->n_operands);
    for (int i = 0; i < op->n_operands; i++)
        operands[i] = at_backward(w, op->operands[i]);
    MoeOp *copy = moe_op_clone(w->g, op, operands);
    for (int i = 0; i < op->n_results; i++)
        w->second[op->results[i]->id] = copy->results[i];
    return w->second[v->id];
}

static void rewrite(MoeGraph *g, const MoeRecomputeChoice *c, MoeArena *a) {
    Rewrite w = {.g = g, .again = c->again, .n_old = g->n_values};
    w.second = MOE_NEW_N(a, MoeValue *, g->n_values);
    w.placed = MOE_NEW_N(a, bool, g->n_values);
    w.ops = moe_graph_take_ops(g, &w.n_ops);
    g->phase = MOE_PHASE_BACKWARD;
    g->layer = -1;
    for (size_t i = 0; i < w.n_ops; i++) {
        MoeOp *op = w.ops[i];
        if (op->phase == MOE_PHASE_BACKWARD)
            for (int k = 0; k < op->n_operands; k++)
                op->operands[k] = at_backward(&w, op->operands[k]);
        place_old(&w, op);
    }
    moe_graph_dce(g);
    moe_graph_renumber(g);
}

static bool has_backward(const MoeGraph *g) {
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i]->phase == MOE_PHASE_BACKWARD &&
            moe_op_info(g->ops[i]->opcode)->kind != MOE_KIND_DECL)
            return true;
    return false;
}

static void apply(MoeGraph *g, MoeRecompute level, int64_t n_layers, bool keep_weights) {
    if (level == MOE_RECOMPUTE_NONE || !has_backward(g))
        return;
    MoeArena *scratch = moe_arena_create();
    moe_graph_renumber(g);
    MoeRecomputeChoice c =
        moe_recompute_choose(g, level == MOE_RECOMPUTE_LAYER ? n_layers : 0, keep_weights, scratch);
    rewrite(g, &c, scratch);
    moe_arena_destroy(scratch);
}

static int64_t count_layers(const MoeModule *m) {
    int64_t n = 0;
    for (size_t i = 0; i < m->n_graphs; i++)
        for (size_t k = 0; k < m->graphs[i]->n_ops; k++) {
            int64_t l = moe_attr_i_or(m->graphs[i]->ops[k], "layer", -1);
            n = l + 1 > n ? l + 1 : n;
        }
    return n;
}

/* ---- AUTO: what would it take? ---- */

static MoeType map_type(const MoeType *t, MoeValue *const *map) {
    MoeType out = *t;
    for (int i = 0; out.kind == MOE_TYPE_TENSOR && i < out.rank; i++)
        if (out.dims[i].seg)
            out.dims[i].seg = map[out.dims[i].seg->id];
    return out;
}

static MoeModule *copy_graph(MoeGraph *g) {
    MoeModule *m = moe_module_create();
    MoeGraph *to = moe_module_add_graph(m, g->name);
    to->leaf_rows = g->leaf_rows;
    to->fast_reduce = g->fast_reduce;
    moe_graph_renumber(g);
    MoeValue **map = MOE_NEW_N(m->arena, MoeValue *, g->n_values);
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        MoeValue **operands = MOE_NEW_N(m->arena, MoeValue *, op->n_operands);
        for (int k = 0; k < op->n_operands; k++)
            operands[k] = map[op->operands[k]->id];
        to->phase = op->phase;
        MoeType type = op->n_results ? map_type(&op->results[0]->type, map) : (MoeType){0};
        bool decl = moe_op_info(op->opcode)->kind == MOE_KIND_DECL && op->n_results == 1;
        MoeOp *copy = moe_op_build_v(to, op->opcode, operands, op->n_operands, op->attrs,
                                     op->n_attrs, decl ? &type : NULL, NULL);
        for (int k = 0; k < op->n_results; k++)
            map[op->results[k]->id] = copy->results[k];
    }
    return m;
}

/* Bytes for values that @train would need. */
static MoeStatus predict(const MoePassContext *cx, MoeGraph *train, MoeRecompute level,
                         int64_t n_layers, int64_t *out_bytes) {
    MoeModule *m = copy_graph(train);
    MoePassContext sub = {
        .module = m, .options = cx->options, .target = cx->target, .arena = m->arena};
    sub.sharded = cx->sharded;
    MoeMemoryPlan plan = {0};
    apply(m->graphs[0], level, n_layers, cx->options.keep_weights);
    MoeStatus st = moe_pass_fuse(&sub);
    if (!st)
        st = moe_pass_offload(&sub);
    if (!st)
        st = moe_pass_overlap(&sub);
    if (!st)
        st = moe_memplan_graph(cx->target, m->graphs[0], &cx->options, m->arena, &plan);
    *out_bytes = moe_memplan_expected_bytes(&plan);
    moe_module_destroy(m);
    return st;
}

static int64_t bytes_of_declared(const MoeGraph *g, MoeOpcode what) {
    int64_t n = 0;
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i]->opcode == what)
            n += moe_type_bytes(&g->ops[i]->results[0]->type);
    return n;
}

static MoeStatus does_not_fit(const MoePassContext *cx, int64_t params, int64_t states,
                              int64_t slab) {
    char limit[32], all[32], p[32], s[32], b[32];
    return moe_error(
        MOE_E_INPUT,
        "the memory limit of %s (%lld bytes) cannot be met: training needs at least %s "
        "(%lld bytes): parameters %s, optimiser states %s, and %s for values, with every "
        "layer computed again%s; raise the limit, or use %sa smaller batch, shorter sequences "
        "or more micro-batches",
        moe_format_bytes((double)cx->options.memory_limit, limit),
        (long long)cx->options.memory_limit,
        moe_format_bytes((double)(params + states + slab), all),
        (long long)(params + states + slab), moe_format_bytes((double)params, p),
        moe_format_bytes((double)states, s), moe_format_bytes((double)slab, b),
        cx->options.offload ? " and activations offloaded" : "",
        cx->options.offload ? "" : "--offload-activations, ");
}

/* The fewest layers that fit, by halving: more layers never need much more. */
static MoeStatus choose_auto(MoePassContext *cx, MoeGraph *train) {
    MoePassOptions *o = &cx->options;
    if (!cx->target)
        return moe_error(MOE_E_MISUSE, "recompute needs a target to keep a memory limit");
    int64_t params = bytes_of_declared(train, MOE_OP_PARAM),
            states = bytes_of_declared(train, MOE_OP_STATE);
    int64_t room = o->memory_limit - params - states, slab = 0, hi = count_layers(cx->module),
            lo = 0;
    o->recompute = MOE_RECOMPUTE_CHEAP;
    o->keep_weights = o->mixed_bf16 && cx->target->rounds_weights;
    if (o->keep_weights) {
        MOE_TRY(predict(cx, train, MOE_RECOMPUTE_CHEAP, 0, &slab));
        if (slab <= room)
            return NULL;
        o->keep_weights = false;
    }
    MOE_TRY(predict(cx, train, MOE_RECOMPUTE_CHEAP, 0, &slab));
    if (slab <= room)
        return NULL;
    int64_t cheap = slab;
    if (hi > 0)
        MOE_TRY(predict(cx, train, MOE_RECOMPUTE_LAYER, hi, &slab));
    if (slab > room)
        return does_not_fit(cx, params, states, slab < cheap ? slab : cheap);
    while (hi - lo > 1) { /* lo layers do not fit, hi do */
        int64_t mid = (lo + hi) / 2;
        MOE_TRY(predict(cx, train, MOE_RECOMPUTE_LAYER, mid, &slab));
        if (slab <= room)
            hi = mid;
        else
            lo = mid;
    }
    o->recompute = MOE_RECOMPUTE_LAYER;
    o->recompute_layers = (int)hi;
    return NULL;
}

MoeStatus moe_pass_recompute(MoePassContext *cx) {
    MoePassOptions *o = &cx->options;
    MoeGraph *train = NULL; /* the graph with a backward phase */
    for (size_t i = 0; i < cx->module->n_graphs && !train; i++)
        if (has_backward(cx->module->graphs[i]))
            train = cx->module->graphs[i];
    if (o->recompute == MOE_RECOMPUTE_AUTO) {
        if (train && o->memory_limit > 0)
            MOE_TRY(choose_auto(cx, train));
        else
            o->recompute = MOE_RECOMPUTE_CHEAP;
    }
    int64_t n_layers = o->recompute_layers > 0 ? o->recompute_layers : count_layers(cx->module);
    for (size_t i = 0; i < cx->module->n_graphs; i++)
        apply(cx->module->graphs[i], o->recompute, n_layers, o->keep_weights);
    return NULL;
}
