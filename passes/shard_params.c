/* How parameters are shared out, and which values are their gradients. In: the logical graphs. Out: a table of parameters,
 * a table by value.
 *
 *   q_proj [32,64]        shard 2: f32[1024] (dense_shard)
 *   experts [8,28,32]     ep 2: f32[4,28,32] in 4 slots; ep 2 x shard 2: f32[4,448] (expert_shard) */
#include "passes/shard_build.h"

#include <string.h>

#include "base/assert.h"

const MoeShardParam *moe_shard_param(const MoeShardParams *p, const char *name) {
    for (size_t i = 0; i < p->n; i++)
        if (strcmp(p->items[i].name, name) == 0)
            return &p->items[i];
    return NULL;
}

/* ---- which parameters are experts' ---- */

/* The parameter that v is, rounded or not; NULL. */
static const MoeOp *param_behind(const MoeValue *v) {
    while (v->def->opcode == MOE_OP_CONVERT)
        v = v->def->operands[0];
    return v->def->opcode == MOE_OP_PARAM ? v->def : NULL;
}

int moe_shard_layer(MoeOp *const *ops, size_t n_ops, const MoeOp *plan) {
    int n = 0;
    for (size_t i = 0; i < n_ops && ops[i] != plan; i++)
        n += ops[i]->opcode == MOE_OP_ROUTE_PLAN;
    return (int)moe_attr_i_or(plan, "layer", n);
}

static MoeStatus note_expert(const MoeGraph *g, const MoeOp *op, MoeShardParams *p) {
    const MoeOp *param = param_behind(op->operands[1]);
    const MoeValue *seg = op->operands[0]->type.dims[0].seg;
    if (!param)
        return NULL;
    MoeShardParam *x = (MoeShardParam *)moe_shard_param(p, moe_attr_s(param, "name"));
    int layer = seg && seg->def->opcode == MOE_OP_ROUTE_PLAN ? moe_shard_layer(g->ops, g->n_ops, seg->def) : -1;
    if (x->expert && x->layer != layer)
        return moe_error(
            MOE_E_INPUT,
            "shard: parameter %s belongs to the experts of layers %d and %d; each layer "
            "has its own map of experts",
            x->name, x->layer, layer);
    x->expert = true;
    x->layer = layer;
    return NULL;
}

/* Experts' tensors may be read by grouped ops alone: others would need all experts. */
static MoeStatus check_experts(const MoeGraph *g, const MoeShardParams *p) {
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        if (op->opcode == MOE_OP_CONVERT || op->phase > MOE_PHASE_BACKWARD)
            continue;
        for (int k = 0; k < op->n_operands; k++) {
            const MoeOp *param = param_behind(op->operands[k]);
            const MoeShardParam *x = param ? moe_shard_param(p, moe_attr_s(param, "name")) : NULL;
            if (x && x->expert && !(op->opcode == MOE_OP_MATMUL && moe_attr_i(op, "grouped")))
                return moe_error(MOE_E_INPUT,
                                 "shard: op %s reads the experts' parameter %s; only a matmul with "
                                 "grouped = 1 can when experts are divided over ranks",
                                 moe_op_info(op->opcode)->name, x->name);
        }
    }
    return NULL;
}

/* ---- types ---- */

static int64_t elements_from(const MoeType *t, int from) {
    int64_t n = 1;
    for (int i = from; i < t->rank; i++)
        n *= t->dims[i].size;
    return n;
}

static void set_types(MoeShardParam *x, const MoeMesh *mesh) {
    MoeMesh division = moe_mesh_division(mesh, x->division);
    x->part = x->whole;
    if (x->expert)
        x->part.dims[0].size = moe_mesh_slots(&division, (int)x->whole.dims[0].size);
    if (x->tp_dim >= 0)
        x->part.dims[x->tp_dim].size /= mesh->tp;
    x->group = x->expert ? moe_mesh_group_in(MOE_GROUP_EXPERT_SHARD, x->division)
                         : MOE_GROUP_DENSE_SHARD;
    int parts = moe_mesh_group_size(mesh, x->group);
    x->local = x->part;
    if (parts == 1)
        return;
    int64_t cap = moe_slice(elements_from(&x->part, x->expert), MOE_SLICE_BLOCK, parts, 0).cap;
    x->local = x->expert ? moe_type_2d(x->part.dtype, x->part.dims[0], cap)
                         : moe_type_1d(x->part.dtype, cap);
}

static MoeStatus add_param(const MoeGraph *g, const MoeOp *op, MoeArena *a, MoeShardParams *p) {
    MoeShardParam x = {
        .name = moe_attr_s(op, "name"), .whole = op->results[0]->type, .layer = -1, .tp_dim = -1};
    const MoeShardParam *before = moe_shard_param(p, x.name);
    if (before && !moe_type_equal(&before->whole, &x.whole))
        return moe_error(MOE_E_INPUT, "shard: parameter %s has another type in graph @%s", x.name,
                         g->name);
    if (!before)
        MOE_PUSH(a, p->items, p->n, p->cap, x);
    return NULL;
}

/* Every range of layers has some of the model's, and none that it has not. */
static MoeStatus set_divisions(const MoeMesh *mesh, MoeShardParams *p) {
    int last = -1;
    for (size_t i = 0; i < p->n; i++)
        last = p->items[i].layer > last ? p->items[i].layer : last;
    for (int k = 0; k < mesh->n_ranges; k++) {
        const MoeMeshRange *r = &mesh->ranges[k];
        bool any = false;
        for (size_t i = 0; i < p->n; i++)
            any |= p->items[i].layer >= r->first && p->items[i].layer <= r->last;
        if (r->last > last || !any)
            return moe_error(MOE_E_MISUSE,
                             "layers %d to %d of the strategy: %s; the last layer of the model "
                             "that has experts is %d",
                             r->first, r->last,
                             any ? "the range ends behind the model's layers"
                                 : "no layer with experts is among them",
                             last);
    }
    for (size_t i = 0; i < p->n; i++)
        if (p->items[i].expert)
            p->items[i].division = moe_mesh_of_layer(mesh, p->items[i].layer);
    return NULL;
}

/* A rank holds no expert twice. */
static MoeStatus check_slots(const MoeMesh *mesh, const MoeShardParams *p) {
    for (size_t i = 0; i < p->n; i++) {
        const MoeShardParam *x = &p->items[i];
        if (!x->expert)
            continue;
        MoeMesh division = moe_mesh_division(mesh, x->division);
        int experts = (int)x->whole.dims[0].size, slots = moe_mesh_slots(&division, experts);
        if (slots > experts)
            return moe_error(MOE_E_MISUSE,
                             "%d extra slots make %d slots a rank for the %d experts of layer %d; a rank holds no expert "
                             "twice, so at most %d",
                             mesh->extra_slots, slots, experts, x->layer, experts - slots + mesh->extra_slots);
    }
    return NULL;
}

bool moe_shard_has_ep(const MoeMesh *mesh) {
    bool any = mesh->ep > 1;
    for (int k = 0; k < mesh->n_ranges; k++)
        any |= mesh->ranges[k].ep > 1;
    return any;
}

MoeStatus moe_shard_params_find(const MoeModule *m, const MoeMesh *mesh, MoeArena *a,
                                MoeShardParams *out) {
    *out = (MoeShardParams){0};
    for (size_t i = 0; i < m->n_graphs; i++)
        for (size_t k = 0; k < m->graphs[i]->n_ops; k++)
            if (m->graphs[i]->ops[k]->opcode == MOE_OP_PARAM)
                MOE_TRY(add_param(m->graphs[i], m->graphs[i]->ops[k], a, out));
    for (size_t i = 0; i < m->n_graphs; i++)
        for (size_t k = 0; k < m->graphs[i]->n_ops; k++) {
            const MoeOp *op = m->graphs[i]->ops[k];
            if (op->opcode == MOE_OP_MATMUL && moe_attr_i(op, "grouped"))
                MOE_TRY(note_expert(m->graphs[i], op, out));
        }
    MOE_TRY(set_divisions(mesh, out));
    MOE_TRY(check_slots(mesh, out));
    for (size_t i = 0; moe_shard_has_ep(mesh) && i < m->n_graphs; i++)
        MOE_TRY(check_experts(m->graphs[i], out));
    if (mesh->tp > 1)
        MOE_TRY(moe_shard_params_tp(m, mesh, a, out));
    for (size_t i = 0; i < out->n; i++)
        set_types(&out->items[i], mesh);
    return NULL;
}

/* ---- gradients ---- */

typedef struct {
    const MoeShardParam **of;
    const MoeShardParam *param;
} Walk;

/* From a new parameter back through elementwise ops and sums over micro-batches, as far as values have its shape. */
static void walk_back(const Walk *w, const MoeValue *v) {
    if (!moe_type_same_shape(&v->type, &w->param->whole) || w->of[v->id])
        return;
    const MoeOp *op = v->def;
    if (moe_op_info(op->opcode)->kind == MOE_KIND_DECL)
        return;
    w->of[v->id] = w->param;
    bool through = moe_op_info(op->opcode)->kind == MOE_KIND_EW ||
                   op->opcode == MOE_OP_ACCUMULATE || op->opcode == MOE_OP_ADAMW;
    for (int i = 0; through && i < op->n_operands; i++)
        walk_back(w, op->operands[i]);
}

const MoeShardParam **moe_shard_gradients(const MoeGraph *g, const MoeShardParams *p, MoeArena *a) {
    Walk w = {.of = MOE_NEW_N(a, const MoeShardParam *, g->n_values)};
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i],
                    *to = op->opcode == MOE_OP_ASSIGN ? op->operands[0]->def : NULL;
        if (!to)
            continue;
        const char *name = moe_attr_s(to, to->opcode == MOE_OP_STATE ? "of" : "name");
        w.param = moe_shard_param(p, name);
        if (w.param)
            walk_back(&w, op->operands[1]);
    }
    return w.of;
}
