/* Changes of state: what is a slice is gathered, what is a term of a sum is reduced. In: a value of the old graph whose
 * image in the new one has a state that does not do. Out: ops at the end of the new graph. */
#include "base/assert.h"
#include "base/str.h"
#include "passes/shard_build.h"

const MoeShardState *moe_shard_now(const MoeShard *s, const MoeValue *v) {
    return moe_shard_state(&s->rules, v);
}

MoeStatus moe_shard_note(MoeShard *s, const MoeOp *op) {
    const char *problem = moe_shard_derive(&s->rules, op);
    return problem
               ? moe_error(MOE_E_INPUT, "shard: graph @%s cannot be divided over these ranks: %s",
                           s->g->name, problem)
               : NULL;
}

static MoeStatus note(MoeShard *s, MoeValue *v, MoeValue **out) {
    *out = v;
    return moe_shard_note(s, v->def);
}

static const char *dims_text(MoeShard *s, const MoeType *t) {
    MoeStr text = {0};
    moe_dims_to_text(t, &text);
    const char *kept = moe_arena_strdup(s->a, moe_str_c(&text));
    moe_str_free(&text);
    return kept;
}

/* ---- gathers ---- */

/* The type of a sliced value when it is whole: the logical one, of this rank's slots and tp part. */
static MoeType part_of(const MoeShard *s, const MoeValue *old, const MoeValue *now) {
    const MoeShardState *st = moe_shard_now(s, now);
    MoeType t = old->type;
    if (now->type.rank == 2) /* a slice for each slot */
        t.dims[0] = now->type.dims[0];
    if (st->tp >= 0)
        t.dims[st->tp].size /= s->mesh->tp;
    return t;
}

MoeStatus moe_shard_gather(MoeShard *s, const MoeValue *old, MoePhase phase, MoeValue **out) {
    MoeShardMapped *m = &s->map[old->id];
    if (!m->gathered[phase]) {
        MoePhase before = s->g->phase;
        MoeType part = part_of(s, old, m->now);
        MoeMeshGroup group = (MoeMeshGroup)moe_shard_now(s, m->now)->slice;
        MoeValue *slice = phase <= MOE_PHASE_BACKWARD && m->copied ? m->copied : m->now;
        s->g->phase = phase;
        MoeValue *v = moe_build(
            s->g, MOE_OP_ALL_GATHER, &slice, 1, moe_as("group", moe_mesh_group_name(group)),
            moe_ai("unit", MOE_SLICE_BLOCK), moe_as("dims", dims_text(s, &part)), MOE_END);
        s->g->phase = before;
        MOE_TRY(note(s, v, &m->gathered[phase]));
    }
    *out = m->gathered[phase];
    return NULL;
}

/* ---- reductions ---- */

static MoeStatus all_reduce(MoeShard *s, MoeValue *v, MoeMeshGroup group, MoeValue **out) {
    return note(s,
                moe_build(s->g, MOE_OP_ALL_REDUCE, &v, 1,
                          moe_as("group", moe_mesh_group_name(group)), MOE_END),
                out);
}

/* Where the value was made: its phase and layer. */
typedef struct {
    MoePhase phase;
    int layer;
} Place;

static Place go_to(MoeGraph *g, const MoeValue *v) {
    Place before = {g->phase, g->layer};
    g->phase = v->def->phase;
    g->layer = (int)moe_attr_i_or(v->def, "layer", -1);
    return before;
}

static void go_back(MoeGraph *g, Place p) {
    g->phase = p.phase;
    g->layer = p.layer;
}

MoeStatus moe_shard_reduce(MoeShard *s, const MoeValue *old) {
    MoeValue **now = &s->map[old->id].now;
    Place before = go_to(s->g, *now);
    MoeStatus st = NULL;
    int group = moe_shard_now(s, *now)->partial;
    if (group >= 0)
        st = all_reduce(s, *now, (MoeMeshGroup)group, now);
    if (!st && moe_shard_now(s, *now)->tp == MOE_TP_PARTIAL)
        st = all_reduce(s, *now, MOE_GROUP_TP, now);
    go_back(s->g, before);
    return st;
}

/* The tree over data ranks first, then TP ranks: a sum over data is one of terms of the sum over tp. */
MoeStatus moe_shard_reduce_gradient(MoeShard *s, const MoeValue *old) {
    const MoeShardParam *p = s->gradient[old->id];
    MoeValue **now = &s->map[old->id].now;
    int sum = moe_shard_now(s, *now)->partial;
    if (!p || sum < 0 || (*now)->type.dtype != MOE_F32)
        return NULL;
    bool experts = moe_mesh_group_kind((MoeMeshGroup)sum) == MOE_GROUP_EXPERT_DATA;
    MoeMeshGroup scatter =
        experts ? moe_mesh_group_in(MOE_GROUP_EXPERT_SHARD, moe_mesh_group_division((MoeMeshGroup)sum))
                : MOE_GROUP_DENSE_SHARD;
    if (scatter != p->group)
        return moe_error(
            MOE_E_INPUT,
            "shard: a gradient of parameter %s comes from a grouped op, another does not", p->name);
    Place before = go_to(s->g, *now);
    MoeValue *v = moe_build(
        s->g, MOE_OP_REDUCE_SCATTER, now, 1, moe_as("sum", moe_mesh_group_name((MoeMeshGroup)sum)),
        moe_as("scatter", moe_mesh_group_name(scatter)), moe_ai("unit", MOE_SLICE_BLOCK),
        moe_ai("parts", moe_mesh_group_size(s->mesh, scatter)), moe_ai("outer", p->expert),
        MOE_END);
    go_back(s->g, before);
    return note(s, v, now);
}
