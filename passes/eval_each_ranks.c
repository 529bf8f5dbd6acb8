/* --eval-each for programs of a rank: the data of the logical graph, cut for every rank; a run in lockstep; results put
 * together again. In: a sharded module, the snapshot of what it was before. Out: a snapshot to compare with that. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "ir/eval/eval_ranks.h"
#include "passes/eval_each_internal.h"
#include "passes/shard.h"

typedef struct {
    const MoeGraph *g;
    const MoeMesh *mesh;
    const MoeSnapshot *before;
    MoeSnapshot *out;
    MoeEvalRanks *ranks;
    MoeShardRules rules; /* states by value id */
    const int32_t *tok;  /* the logical segs<1,V>, NULL without one */
    int64_t shards;      /* V */
    MoeArena *a;
} Run;

static int n_ranks(const Run *r) {
    return moe_mesh_size(r->mesh);
}

static const MoeSnapshotEntry *given(const Run *r, const MoeOp *op) {
    return moe_snapshot_find(r->before, r->g->name, moe_snapshot_name(r->before, op));
}

/* ---- rows ---- */

/* Virtual shards [*first, *first + n) of `count` data ranks from `data` on. */
static int64_t shard_run(const Run *r, int data, int count, int64_t *first) {
    int64_t each = r->shards / moe_mesh_data_ranks(r->mesh);
    *first = data * each;
    return count * each;
}

/* The table with the rows of these shards alone. */
static int32_t *cut_segs(const Run *r, int data, int count) {
    int64_t first, n = shard_run(r, data, count, &first);
    int32_t *t = MOE_NEW_N(r->a, int32_t, r->shards + 1), lo = r->tok[first],
            hi = r->tok[first + n];
    for (int64_t v = 0; v <= r->shards; v++) {
        int32_t at = r->tok[v] < lo ? lo : r->tok[v] > hi ? hi : r->tok[v];
        t[v] = at - lo;
    }
    return t;
}

/* Logical rows [*first, *first + n) of this data rank. */
static int64_t token_rows(const Run *r, int data, int64_t *first) {
    int64_t v, n = shard_run(r, data, 1, &v);
    *first = r->tok[v];
    return r->tok[v + n] - r->tok[v];
}

/* ---- parameters: which element of the whole each element of a rank's buffer is ---- */

/* Expert e is in global slot e + 1: not where it is at first, so that programs cannot rely on that. */
static int64_t slot_of(const MoeMesh *m, int64_t e, int64_t experts) {
    return (e + 1) % ((int64_t)m->ep * moe_mesh_slots(m, (int)experts));
}

/* Slots that are no primary's have copies of experts from g on that the rank does not hold; a few stay empty. */
static int32_t *copies_of(const Run *r, const MoeMesh *m, int64_t experts) {
    int64_t slots = moe_mesh_slots(m, (int)experts), n = m->ep * slots;
    int32_t *held = MOE_NEW_N(r->a, int32_t, n);
    for (int64_t g = 0; g < n; g++)
        held[g] = -1;
    for (int64_t e = 0; e < experts; e++)
        held[slot_of(m, e, experts)] = (int32_t)e;
    for (int64_t g = 0; g < n; g++)
        for (int64_t i = 0; i < experts && held[g] < 0 && g % 7 != 5; i++) {
            int32_t e = (int32_t)((g + i) % experts);
            bool here = false;
            for (int64_t k = g / slots * slots; k < (g / slots + 1) * slots; k++)
                here |= held[k] == e;
            held[g] = here ? -1 : e;
        }
    return held;
}

typedef struct {
    MoeMesh mesh; /* the parameter's division, if it is an expert's */
    MoeType whole, part; /* part: of this rank's slots and tp part */
    int expert, tp_dim;
    int64_t elements; /* of the whole */
    MoeSlice slice;   /* of each row (slot) */
    int64_t rows;     /* slots; 1 */
} Cut;

static Cut cut_of(const Run *r, const MoeOp *param, int rank) {
    Cut c = {.expert = (int)moe_attr_i_or(param, "expert", 0),
             .tp_dim = (int)moe_attr_i_or(param, "tp_dim", -1)};
    const char *problem = moe_dims_from_text(moe_attr_s(param, "whole"), &c.whole);
    MOE_ASSERT(!problem, "eval-each: %s", problem);
    c.elements = 1;
    for (int d = 0; d < c.whole.rank; d++)
        c.elements *= c.whole.dims[d].size;
    c.part = c.whole;
    int division = (int)moe_attr_i_or(param, "mesh", 0);
    c.mesh = moe_mesh_division(r->mesh, division);
    if (c.expert)
        c.part.dims[0].size = moe_mesh_slots(&c.mesh, (int)c.whole.dims[0].size);
    if (c.tp_dim >= 0)
        c.part.dims[c.tp_dim].size /= r->mesh->tp;
    MoeMeshGroup group = c.expert ? moe_mesh_group_in(MOE_GROUP_EXPERT_SHARD, division)
                                  : MOE_GROUP_DENSE_SHARD;
    int parts = moe_mesh_group_size(r->mesh, group);
    int *members = MOE_NEW_N(r->a, int, parts);
    int64_t n = 1;
    for (int d = c.expert; d < c.part.rank; d++)
        n *= c.part.dims[d].size;
    c.slice =
        moe_slice(n, MOE_SLICE_BLOCK, parts, moe_mesh_group_ranks(r->mesh, rank, group, members));
    c.rows = c.expert ? c.part.dims[0].size : 1;
    return c;
}

/* The whole's element at element k of the part's row for expert e. */
static int64_t whole_index(const Run *r, const Cut *c, int rank, int64_t e, int64_t k) {
    int64_t at[MOE_MAX_RANK] = {0}, index = 0;
    for (int d = c->part.rank - 1; d >= c->expert; d--) {
        at[d] = k % c->part.dims[d].size;
        k /= c->part.dims[d].size;
    }
    if (c->expert)
        at[0] = e;
    if (c->tp_dim >= 0)
        at[c->tp_dim] += moe_mesh_coords(r->mesh, rank).tp * c->part.dims[c->tp_dim].size;
    for (int d = 0; d < c->whole.rank; d++)
        index = index * c->whole.dims[d].size + at[d];
    return index;
}

/* For every element of rank's buffer that is one of the whole: its index there; -1 else. */
static int64_t *cut_map(const Run *r, const MoeOp *param, int rank, int64_t *out_n,
                        int64_t *out_whole) {
    Cut c = cut_of(r, param, rank);
    int64_t experts = c.expert ? c.whole.dims[0].size : 1, ep = moe_mesh_coords(&c.mesh, rank).ep;
    *out_n = c.rows * c.slice.cap;
    *out_whole = c.elements;
    int64_t *map = MOE_NEW_N(r->a, int64_t, *out_n);
    for (int64_t i = 0; i < *out_n; i++)
        map[i] = -1;
    for (int64_t e = 0; e < experts; e++) {
        int64_t row = 0;
        if (c.expert)
            row = (c.mesh.ep > 1 ? slot_of(&c.mesh, e, experts) : e) - ep * c.rows;
        if (row < 0 || row >= c.rows)
            continue;
        for (int64_t k = 0; k < c.slice.count; k++)
            map[row * c.slice.cap + k] = whole_index(r, &c, rank, e, c.slice.first + k);
    }
    return map;
}

static const MoeOp *param_of(const Run *r, const char *name) {
    const MoeValue *v = moe_graph_find_input(r->g, name);
    return v && v->def->opcode == MOE_OP_PARAM ? v->def : NULL;
}

/* ---- giving every rank its data ---- */

static MoeStatus give_param(Run *r, const MoeOp *op, int rank) {
    const MoeOp *param = op->opcode == MOE_OP_PARAM ? op : param_of(r, moe_attr_s(op, "of"));
    const MoeSnapshotEntry *e = given(r, op);
    int64_t n, whole;
    MOE_ASSERT(param && e, "eval-each: no data for %s", moe_attr_s(op, "name"));
    int64_t *map = cut_map(r, param, rank, &n, &whole);
    MOE_ASSERT(whole == e->n, "eval-each: %s has %lld elements", moe_attr_s(op, "name"),
               (long long)e->n);
    double *x = MOE_NEW_N(r->a, double, n);
    for (int64_t i = 0; i < n; i++)
        x[i] = map[i] < 0 ? 0.0 : e->f[map[i]];
    return moe_eval_set_f(moe_eval_rank(r->ranks, rank), op->results[0], x, n);
}

/* As the layer's place says. */
static int64_t experts_of_layer(const Run *r, int layer) {
    char name[32];
    snprintf(name, sizeof name, "place.%d", layer);
    const MoeValue *place = moe_graph_find_input(r->g, name);
    MOE_ASSERT(place, "eval-each: no map of layer %d", layer);
    return place->type.dims[0].size;
}

/* Inputs that ranks add. */
static MoeStatus give_own(Run *r, const MoeOp *op, int rank, bool *done) {
    const char *name = moe_attr_s(op, "name");
    const MoeValue *v = op->results[0];
    MoeEval *ev = moe_eval_rank(r->ranks, rank);
    MoeCoords at = moe_mesh_coords(r->mesh, rank);
    *done = true;
    int k;
    bool ep_rank = moe_mesh_is_input(name, "ep_rank", &k);
    if (ep_rank || moe_mesh_is_input(name, "tok_ep", &k)) {
        MoeMesh d = moe_mesh_division(r->mesh, k);
        at = moe_mesh_coords(&d, rank);
        int32_t n = at.ep;
        return ep_rank ? moe_eval_set_i(ev, v, &n, 1)
                       : moe_eval_set_i(ev, v, cut_segs(r, at.data - at.ep, d.ep), r->shards + 1);
    }
    if (strcmp(name, "tp_rank") == 0) {
        int32_t n = at.tp;
        return moe_eval_set_i(ev, v, &n, 1);
    }
    if (strncmp(name, "place.", 6) == 0) {
        MoeMesh d = moe_mesh_division(r->mesh, moe_mesh_of_layer(r->mesh, atoi(name + 6)));
        int64_t experts = v->type.dims[0].size;
        int32_t *place = MOE_NEW_N(r->a, int32_t, experts);
        for (int64_t e = 0; e < experts; e++)
            place[e] = (int32_t)slot_of(&d, e, experts);
        return moe_eval_set_i(ev, v, place, experts);
    }
    if (strncmp(name, "copies.", 7) == 0) {
        MoeMesh d = moe_mesh_division(r->mesh, moe_mesh_of_layer(r->mesh, atoi(name + 7)));
        return moe_eval_set_i(ev, v, copies_of(r, &d, experts_of_layer(r, atoi(name + 7))),
                              v->type.dims[0].size);
    }
    *done = false;
    return NULL;
}

static MoeStatus give_input(Run *r, const MoeOp *op, int rank) {
    bool done;
    MOE_TRY(give_own(r, op, rank, &done));
    if (done)
        return NULL;
    const MoeValue *v = op->results[0];
    const MoeSnapshotEntry *e = given(r, op);
    MoeEval *ev = moe_eval_rank(r->ranks, rank);
    int data = moe_mesh_coords(r->mesh, rank).data;
    MOE_ASSERT(e, "eval-each: no data for input %s", moe_attr_s(op, "name"));
    if (v->type.kind == MOE_TYPE_SEGS && e->i == r->tok)
        return moe_eval_set_i(ev, v, cut_segs(r, data, 1), e->n);
    int64_t first = 0, n = e->n;
    if (v->type.kind == MOE_TYPE_TENSOR && v->type.dims[0].seg) {
        int64_t cols = v->type.rank > 1 ? moe_type_cols(&v->type) : 1;
        n = token_rows(r, data, &first) * cols;
        first *= cols;
    }
    return e->f ? moe_eval_set_f(ev, v, e->f + first, n) : moe_eval_set_i(ev, v, e->i + first, n);
}

static MoeStatus give_all(Run *r) {
    for (size_t i = 0; i < r->g->n_ops; i++)
        for (int rank = 0; rank < n_ranks(r); rank++) {
            const MoeOp *op = r->g->ops[i];
            if (op->opcode == MOE_OP_INPUT)
                MOE_TRY(give_input(r, op, rank));
            if (op->opcode == MOE_OP_PARAM || op->opcode == MOE_OP_STATE)
                MOE_TRY(give_param(r, op, rank));
        }
    return NULL;
}

/* ---- putting results together ---- */

static MoeStatus disagree(const Run *r, const char *name, int a, int b, int64_t i) {
    return moe_error(MOE_E_INTERNAL,
                     "%s of graph @%s should be the same on ranks %d and %d, element %lld is not",
                     name, r->g->name, a, b, (long long)i);
}

static const MoeTensor *tensor(const Run *r, int rank, const MoeValue *v) {
    const MoeTensor *t = moe_eval_get(moe_eval_rank(r->ranks, rank), v);
    MOE_ASSERT(t, "eval-each: a result of graph @%s has no value after the run", r->g->name);
    return t;
}

static bool same(const MoeTensor *a, const MoeTensor *b, int64_t i) {
    return a->f ? a->f[i] == b->f[i] || (a->f[i] != a->f[i] && b->f[i] != b->f[i])
                : a->i[i] == b->i[i];
}

static MoeStatus keep_replicated(Run *r, const char *name, const MoeValue *v) {
    const MoeTensor *t = tensor(r, 0, v);
    for (int rank = 1; rank < n_ranks(r); rank++)
        for (int64_t i = 0; i < t->n; i++)
            if (!same(t, tensor(r, rank, v), i))
                return disagree(r, name, 0, rank, i);
    moe_snapshot_keep(r->out, r->g, name, t->f, t->i, t->n);
    return NULL;
}

/* Every element of the whole from the ranks that have it: at least one, and they agree. */
static MoeStatus keep_parts(Run *r, const char *name, const MoeValue *v, const MoeOp *param) {
    double *whole = NULL;
    int *from = NULL;
    int64_t n, n_whole = 0;
    for (int rank = 0; rank < n_ranks(r); rank++) {
        const MoeTensor *t = tensor(r, rank, v);
        int64_t *map = cut_map(r, param, rank, &n, &n_whole);
        if (!whole) {
            whole = MOE_NEW_N(r->a, double, n_whole);
            from = MOE_NEW_N(r->a, int, n_whole); /* rank + 1 */
        }
        MOE_ASSERT(t->n == n, "eval-each: %s has %lld elements on a rank", name, (long long)t->n);
        for (int64_t i = 0; i < n; i++) {
            int64_t k = map[i];
            if (k >= 0 && from[k] && whole[k] != t->f[i] && t->f[i] == t->f[i])
                return disagree(r, name, from[k] - 1, rank, k);
            if (k < 0)
                continue;
            whole[k] = t->f[i];
            from[k] = rank + 1;
        }
    }
    for (int64_t k = 0; k < n_whole; k++)
        if (!from[k])
            return moe_error(MOE_E_INTERNAL, "no rank has element %lld of %s of graph @%s",
                             (long long)k, name, r->g->name);
    moe_snapshot_keep(r->out, r->g, name, whole, NULL, n_whole);
    return NULL;
}

/* World rank of a data rank with tp 0. */
static int of_data(const Run *r, int data) {
    return data * r->mesh->tp;
}

/* Segs over pairs: every (expert, shard) has the rows of the rank that owns the shard. */
static int32_t *join_segs(Run *r, const MoeValue *seg) {
    int64_t groups = seg->type.groups, v, per = shard_run(r, 0, 1, &v);
    int32_t *whole = MOE_NEW_N(r->a, int32_t, groups * r->shards + 1);
    for (int64_t c = 0; c < groups * r->shards; c++) {
        const int32_t *t = tensor(r, of_data(r, (int)(c % r->shards / per)), seg)->i;
        whole[c + 1] = whole[c] + t[c + 1] - t[c];
    }
    return whole;
}

/* Rows of tokens, or of pairs, in the order of the whole. */
static MoeStatus keep_rows(Run *r, const char *name, const MoeValue *v) {
    const MoeValue *seg = v->type.dims[0].seg;
    int64_t cols = v->type.rank > 1 ? moe_type_cols(&v->type) : 1, at = 0, first, per;
    int32_t *whole = join_segs(r, seg);
    int64_t cells = seg->type.groups * r->shards, n = (int64_t)whole[cells] * cols;
    bool floats = tensor(r, 0, v)->f != NULL;
    double *f = MOE_NEW_N(r->a, double, floats ? n : 0);
    int32_t *i = MOE_NEW_N(r->a, int32_t, floats ? 0 : n);
    per = shard_run(r, 0, 1, &first);
    for (int64_t c = 0; c < cells; c++) {
        int rank = of_data(r, (int)(c % r->shards / per));
        const int32_t *t = tensor(r, rank, seg)->i;
        const MoeTensor *x = tensor(r, rank, v);
        for (int64_t k = t[c] * cols; k < t[c + 1] * cols; k++, at++) {
            if (floats)
                f[at] = x->f[k];
            else
                i[at] = x->i[k];
        }
    }
    moe_snapshot_keep(r->out, r->g, name, floats ? f : NULL, i, n);
    return NULL;
}

static MoeStatus keep(Run *r, const MoeOp *op) {
    const char *name = moe_snapshot_name(r->out, op);
    const MoeValue *v = op->operands[op->opcode == MOE_OP_ASSIGN];
    const MoeShardState *s = moe_shard_state(&r->rules, v);
    const MoeOp *to = op->opcode == MOE_OP_ASSIGN ? op->operands[0]->def : NULL;
    const MoeOp *param = NULL;
    if (to)
        param = to->opcode == MOE_OP_STATE ? param_of(r, moe_attr_s(to, "of")) : to;
    else if (strncmp(moe_attr_s(op, "name"), "grad.", 5) == 0)
        param = param_of(r, moe_attr_s(op, "name") + 5);
    if (param)
        return keep_parts(r, name, v, param);
    if (v->type.kind == MOE_TYPE_SEGS) {
        int32_t *whole = join_segs(r, v);
        moe_snapshot_keep(r->out, r->g, name, NULL, whole, v->type.groups * r->shards + 1);
        return NULL;
    }
    if (s->rows == MOE_ROWS_TOKENS || s->rows == MOE_ROWS_PAIRS)
        return keep_rows(r, name, v);
    if (!moe_shard_is_whole(s) || s->rows != MOE_ROWS_NONE)
        return moe_error(MOE_E_INTERNAL, "%s of graph @%s is %s: it cannot be put together", name,
                         r->g->name, moe_shard_state_text(s, r->a));
    return keep_replicated(r, name, v);
}

/* ---- */

static MoeStatus run_graph(Run *r) {
    for (size_t i = 0; i < r->g->n_ops; i++) {
        const MoeOp *op = r->g->ops[i];
        const char *problem = moe_shard_derive(&r->rules, op);
        if (problem)
            return moe_error(MOE_E_INTERNAL, "%s", problem);
        if (op->opcode == MOE_OP_INPUT && op->results[0]->type.kind == MOE_TYPE_SEGS && !r->tok) {
            r->tok = given(r, op)->i;
            r->shards = op->results[0]->type.shards;
        }
    }
    MOE_TRY(give_all(r));
    MOE_TRY(moe_eval_ranks_run(r->ranks));
    for (size_t i = 0; i < r->g->n_ops; i++)
        if (r->g->ops[i]->opcode == MOE_OP_OUTPUT || r->g->ops[i]->opcode == MOE_OP_ASSIGN)
            MOE_TRY(keep(r, r->g->ops[i]));
    return NULL;
}

/* The data for the next comparison. */
static void keep_given(const MoeSnapshot *before, const MoeGraph *g, MoeSnapshot *out) {
    for (size_t i = 0; i < before->n; i++) {
        const MoeSnapshotEntry *e = &before->entries[i];
        if (e->given && strcmp(e->graph, g->name) == 0)
            moe_snapshot_keep(out, g, moe_arena_strdup(out->arena, e->name), e->f, e->i, e->n);
    }
}

/* Rows over segs that are given, but not the tokens': which rank has which is not known. */
static bool has_other_rows(const MoeGraph *g) {
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i]->opcode == MOE_OP_INPUT &&
            g->ops[i]->results[0]->type.kind == MOE_TYPE_SEGS &&
            g->ops[i]->results[0]->type.groups > 1)
            return true;
    return false;
}

static bool has_data(const MoeSnapshot *s, const char *graph) {
    for (size_t i = 0; i < s->n; i++)
        if (s->entries[i].given && strcmp(s->entries[i].graph, graph) == 0)
            return true;
    return false;
}

MoeStatus moe_snapshot_take_ranks(const MoeModule *m, const MoeMesh *mesh,
                                  const MoeSnapshot *before, MoeSnapshot **out, int *out_skipped) {
    MoeSnapshot *s = moe_snapshot_new();
    MoeStatus st = NULL;
    *out_skipped = 0;
    for (size_t i = 0; i < m->n_graphs && !st; i++) {
        const MoeGraph *g = m->graphs[i];
        if (moe_snapshot_too_large(g, moe_mesh_size(mesh)) || !has_data(before, g->name) ||
            has_other_rows(g)) {
            ++*out_skipped;
            continue;
        }
        MoeArena *a = moe_arena_create();
        Run r = {.g = g, .mesh = mesh, .before = before, .out = s, .a = a};
        r.rules = (MoeShardRules){.mesh = mesh, .g = g, .a = a};
        r.ranks = moe_eval_ranks_create(g, mesh);
        st = moe_status_prefix(run_graph(&r), "eval-each: graph @%s on %d ranks", g->name,
                               moe_mesh_size(mesh));
        if (!st)
            keep_given(before, g, s);
        moe_eval_ranks_destroy(r.ranks);
        moe_arena_destroy(a);
    }
    if (st) {
        moe_snapshot_free(s);
        return st;
    }
    *out = s;
    return NULL;
}
