/* COMM ops: what each moves or sums between the ranks of a group (docs/RANKS.md). In: every rank's operands. Out: one rank's
 * result. Counts that do not agree between ranks are errors: in the runtime they would be rows of somebody else. */
#include "ir/eval/eval_comm.h"

#include <string.h>
#include "base/assert.h"

/* The group of one rank in one op. */
typedef struct {
    const MoeComms *c;
    const char *name; /* "ep" */
    int n, self;      /* size, own position */
    int *ranks;       /* world ranks, in order */
} Group;

static Group group_of(const MoeComms *c, int rank, const char *key) {
    MoeMeshGroup id;
    Group g = {.c = c, .name = moe_attr_s(c->op, key)};
    MOE_ASSERT(moe_mesh_group_from_name(g.name, &id), "group %s", g.name);
    MOE_ASSERT(moe_mesh_has_group(c->mesh, id), "group %s of a mesh with %d ranges", g.name,
               c->mesh->n_ranges);
    g.n = moe_mesh_group_size(c->mesh, id);
    g.ranks = MOE_NEW_N(c->arena, int, g.n);
    g.self = moe_mesh_group_ranks(c->mesh, rank, id, g.ranks);
    return g;
}

/* Operand i of member p. */
static const MoeTensor *member(const Group *g, int p, int i) {
    return g->c->at[g->ranks[p]].in[i];
}

static MoeTensor *result(const Group *g) {
    return g->c->at[g->ranks[g->self]].out;
}

/* Member p's segment table of the rows of operand i, NULL if they are static. */
static const MoeTensor *table(const Group *g, int p, int i) {
    const MoeValue *seg = g->c->op->operands[i]->type.dims[0].seg;
    return seg ? g->c->at[g->ranks[p]].ev->tensors[seg->id] : NULL;
}

static void copy(const MoeTensor *from, int64_t from_at, MoeTensor *to, int64_t to_at, int64_t n) {
    if (n && from->f)
        memcpy(to->f + to_at, from->f + from_at, (size_t)n * sizeof(double));
    else if (n)
        memcpy(to->i + to_at, from->i + from_at, (size_t)n * sizeof(int32_t));
}

/* Elements of one row of dim 0. */
static int64_t row_size(const MoeTensor *t) {
    int64_t n = 1;
    for (int d = 1; d < t->rank; d++)
        n *= t->dims[d];
    return n;
}

/* The op was built for `n` ranks. */
static MoeStatus check_size(const Group *g, const char *what, int64_t n) {
    if (n == g->n)
        return NULL;
    return moe_error(MOE_E_INPUT, "%s says %lld ranks, the group %s of this mesh has %d", what,
                     (long long)n, g->name, g->n);
}

static MoeStatus all_gather(const Group *g) {
    MoeTensor *out = result(g);
    int64_t rows = member(g, 0, 0)->rank == 2 ? out->dims[0] : 1;
    int64_t n = rows ? out->n / rows : 0, unit = moe_attr_i(g->c->op, "unit");
    for (int p = 0; p < g->n; p++) {
        const MoeTensor *x = member(g, p, 0);
        int64_t cap = x->dims[x->rank - 1];
        MoeSlice s = moe_slice(n, unit, g->n, p);
        if (cap != s.cap)
            return moe_error(MOE_E_INPUT,
                             "a slice of %lld elements, but %lld cut at %lld over the %d ranks of "
                             "group %s makes slices of %lld",
                             (long long)cap, (long long)n, (long long)unit, g->n, g->name,
                             (long long)s.cap);
        for (int64_t r = 0; r < rows; r++)
            copy(x, r * cap, out, r * n + s.first, s.count);
    }
    return NULL;
}

/* The group's rows in order are those of the common table: shards ascend, and each has as many rows as its rank says. */
static MoeStatus check_shards(const Group *g) {
    const MoeTensor *all = member(g, 0, 1);
    int64_t shards = all->n - 1, next = 0;
    for (int p = 0; p < g->n; p++) {
        const int32_t *own = table(g, p, 0)->i;
        for (int64_t v = 0; v < shards; v++) {
            int64_t n = own[v + 1] - own[v], want = all->i[v + 1] - all->i[v];
            if (!n)
                continue;
            if (v < next || n != want)
                return moe_error(MOE_E_INPUT,
                                 "rank %d has %lld rows of virtual shard %lld, the table of all "
                                 "rows %lld%s",
                                 g->ranks[p], (long long)n, (long long)v, (long long)want,
                                 v < next ? ", and the group's shards do not ascend" : "");
            next = v + 1;
        }
    }
    return NULL;
}

static MoeStatus all_gather_rows(const Group *g) {
    MoeTensor *out = result(g);
    int64_t at = 0;
    MOE_TRY(check_size(g, "ranks", moe_attr_i(g->c->op, "ranks")));
    if (g->c->op->n_operands == 2) {
        const MoeTensor *mine = member(g, g->self, 1), *first = member(g, 0, 1);
        if (memcmp(mine->i, first->i, (size_t)mine->n * sizeof(int32_t)) != 0)
            return moe_error(MOE_E_INPUT, "the table of all rows is not that of rank %d",
                             g->ranks[0]);
        MOE_TRY(check_shards(g));
    }
    for (int p = 0; p < g->n; p++) {
        const MoeTensor *x = member(g, p, 0);
        if (at + x->n > out->n)
            break;
        copy(x, 0, out, at, x->n);
        at += x->n;
    }
    if (at != out->n)
        return moe_error(MOE_E_INPUT,
                         "the ranks of group %s do not have the %lld rows of the table", g->name,
                         (long long)out->dims[0]);
    return NULL;
}

/* The sum over the group of elements [at, at + n), in its order, to `to` of the result. */
static void sum_members(const Group *g, int64_t at, int64_t n, MoeTensor *out, int64_t to) {
    for (int p = 0; p < g->n; p++) {
        const MoeTensor *x = member(g, p, 0);
        for (int64_t k = 0; k < n; k++) {
            if (out->f)
                out->f[to + k] += x->f[at + k];
            else
                out->i[to + k] += x->i[at + k];
        }
    }
}

static MoeStatus all_reduce(const Group *g) {
    MoeTensor *out = result(g);
    for (int p = 0; p < g->n; p++) /* ragged rows */
        if (member(g, p, 0)->n != out->n)
            return moe_error(MOE_E_INPUT, "rank %d has %lld elements, rank %d %lld", g->ranks[p],
                             (long long)member(g, p, 0)->n, g->ranks[g->self], (long long)out->n);
    sum_members(g, 0, out->n, out, 0);
    return NULL;
}

/* g: the group of the sum. */
static MoeStatus reduce_scatter(const Group *g) {
    const MoeOp *op = g->c->op;
    MoeTensor *out = result(g);
    const MoeTensor *x = member(g, g->self, 0);
    Group to = group_of(g->c, g->ranks[g->self], "scatter");
    MOE_TRY(check_size(&to, "parts", moe_attr_i(op, "parts")));
    if (to.n == 1) {
        sum_members(g, 0, out->n, out, 0);
        return NULL;
    }
    int64_t rows = moe_attr_i(op, "outer") ? x->dims[0] : 1, n = rows ? x->n / rows : 0;
    MoeSlice s = moe_slice(n, moe_attr_i(op, "unit"), to.n, to.self);
    for (int64_t r = 0; r < rows; r++)
        sum_members(g, r * n + s.first, s.count, out, r * s.cap);
    return NULL;
}

/* x, idx over send, inv over recv: chunk by chunk, rank by rank, the rows that each member's plan sends here. */
static MoeStatus a2a_dispatch(const Group *g) {
    MoeTensor *out = result(g);
    const MoeTensor *recv = table(g, g->self, 2);
    const MoeType *recv_type = &g->c->op->operands[2]->type.dims[0].seg->type;
    int64_t chunks = recv_type->groups, cols = row_size(out), u = 0;
    MOE_TRY(check_size(g, "send_plan", g->c->op->operands[1]->type.dims[0].seg->type.groups));
    for (int64_t c = 0; c < chunks; c++) {
        int64_t end = recv->i[(c + 1) * recv_type->shards], sent = 0;
        for (int p = 0; p < g->n; p++) {
            const MoeTensor *x = member(g, p, 0), *idx = member(g, p, 1);
            const int32_t *send = table(g, p, 1)->i + g->self * chunks + c;
            sent += send[1] - send[0];
            for (int64_t s = send[0]; s < send[1] && u < end; s++, u++) {
                MOE_TRY(moe_eval_check_index("idx", idx->i[s], s, x->dims[0]));
                copy(x, idx->i[s] * cols, out, u * cols, cols);
            }
        }
        int64_t want = end - recv->i[c * recv_type->shards];
        if (sent != want)
            return moe_error(
                MOE_E_INPUT,
                "chunk %lld: the group %s sends %lld rows to rank %d, which expects %lld "
                "(do all ranks have the same place and ids?)",
                (long long)c, g->name, (long long)sent, g->ranks[g->self], (long long)want);
    }
    return NULL;
}

/* a2a_combine without place: the home order is by global slot. */
static bool has_place(const Group *g) {
    return g->c->op->n_operands == 3;
}

static int64_t n_placed(const Group *g) {
    return has_place(g) ? member(g, g->self, 1)->n : g->n * moe_attr_i(g->c->op, "slots");
}

static int64_t placed_at(const Group *g, int64_t x) {
    return has_place(g) ? member(g, g->self, 1)->i[x] : x;
}

/* Rows of expert x and shard v: in home order on member p. */
static int64_t home_rows(const Group *g, int p, int64_t x, int64_t v, int64_t shards) {
    const int32_t *home = table(g, p, g->c->op->n_operands - 1)->i + x * shards + v;
    return home[1] - home[0];
}

/* Every row of own slots goes home exactly once: member by member a shard is either another's or complete. */
static MoeStatus check_homes(const Group *g, int64_t shards) {
    const MoeOp *op = g->c->op;
    const int32_t *seg = table(g, g->self, 0)->i;
    int64_t slots = moe_attr_i(op, "slots"), home = 0;
    for (int64_t x = 0; x < n_placed(g); x++) {
        int64_t slot = placed_at(g, x) - g->self * slots;
        if (slot < 0 || slot >= slots)
            continue;
        for (int64_t v = 0; v < shards; v++) {
            int64_t n = 0, here = seg[slot * shards + v + 1] - seg[slot * shards + v];
            for (int p = 0; p < g->n; p++)
                n += home_rows(g, p, x, v, shards);
            if (n != here)
                return moe_error(MOE_E_INPUT,
                                 "expert %lld has %lld rows of virtual shard %lld, its home ranks "
                                 "wait for %lld",
                                 (long long)x, (long long)here, (long long)v, (long long)n);
            home += n;
        }
    }
    if (home != seg[slots * shards])
        return moe_error(MOE_E_INPUT, "%lld rows lie in slots that no expert has",
                         (long long)(seg[slots * shards] - home));
    return NULL;
}

static MoeStatus a2a_combine(const Group *g) {
    MoeTensor *out = result(g);
    int64_t slots = moe_attr_i(g->c->op, "slots"), cols = row_size(out), row = 0;
    int64_t shards = g->c->op->operands[0]->type.dims[0].seg->type.shards;
    int64_t homes = g->c->op->operands[g->c->op->n_operands - 1]->type.dims[0].seg->type.groups;
    if (homes != n_placed(g))
        return moe_error(MOE_E_INPUT, "%lld slots on the ranks of group %s, rows at home for %lld",
                         (long long)n_placed(g), g->name, (long long)homes);
    MOE_TRY(check_homes(g, shards));
    for (int64_t x = 0; x < n_placed(g); x++) {
        int64_t at = placed_at(g, x), slot = at % slots;
        MOE_TRY(moe_eval_check_index("slot", at, x, g->n * slots));
        int p = (int)(at / slots);
        const int32_t *seg = table(g, p, 0)->i;
        for (int64_t v = 0; v < shards; v++) {
            int64_t n = home_rows(g, g->self, x, v, shards), from = seg[slot * shards + v];
            if (n && n != seg[slot * shards + v + 1] - from)
                return moe_error(MOE_E_INPUT,
                                 "rank %d has %lld rows of expert %lld and virtual shard %lld, its "
                                 "home has %lld",
                                 g->ranks[p], (long long)(seg[slot * shards + v + 1] - from),
                                 (long long)x, (long long)v, (long long)n);
            copy(member(g, p, 0), from * cols, out, row * cols, n * cols);
            row += n;
        }
    }
    return NULL;
}

/* ---- copies of experts ---- */

/* copies (operand c) and place (operand p): each expert's primary is a slot that holds it, and all of the group say the same. */
static MoeStatus check_map(const Group *g, int c, int p) {
    const MoeTensor *copies = member(g, g->self, c), *place = member(g, g->self, p);
    int64_t slots = member(g, g->self, 0)->dims[0];
    MOE_TRY(check_size(g, "copies", copies->n / slots));
    for (int i = 0; i < 2; i++) {
        const MoeTensor *mine = i ? place : copies, *first = member(g, 0, i ? p : c);
        if (memcmp(mine->i, first->i, (size_t)mine->n * sizeof(int32_t)) != 0)
            return moe_error(MOE_E_INPUT, "the map of experts is not that of rank %d", g->ranks[0]);
    }
    for (int64_t x = 0; x < place->n; x++) {
        MOE_TRY(moe_eval_check_index("slot", place->i[x], x, copies->n));
        if (copies->i[place->i[x]] != x)
            return moe_error(MOE_E_INPUT, "the primary of expert %lld is slot %d, which holds %d",
                             (long long)x, place->i[x], copies->i[place->i[x]]);
    }
    return NULL;
}

/* A slot of a copy gets its expert's primary slot; empty ones keep what they have. */
static MoeStatus copy_experts(const Group *g) {
    MoeTensor *out = result(g);
    const MoeTensor *place = member(g, g->self, 1), *copies = member(g, g->self, 2);
    int64_t slots = out->dims[0], n = row_size(out);
    MOE_TRY(check_map(g, 2, 1));
    for (int64_t s = 0; s < slots; s++) {
        int64_t at = g->self * slots + s, from = copies->i[at] < 0 ? at : place->i[copies->i[at]];
        copy(member(g, (int)(from / slots), 0), from % slots * n, out, s * n, n);
    }
    return NULL;
}

/* The primary's slot: the roots of all copies; other slots: zero. */
static MoeStatus fold_copies(const Group *g) {
    MoeTensor *out = result(g);
    const MoeTensor *copies = member(g, g->self, 4), *place = member(g, g->self, 5);
    int64_t slots = out->dims[0], n = row_size(out);
    MOE_TRY(check_map(g, 4, 5));
    for (int64_t at = 0; at < copies->n; at++) {
        int64_t x = copies->i[at], to = x < 0 ? -1 : place->i[x] - g->self * slots;
        int p = (int)(at / slots);
        int64_t s = at % slots;
        const MoeTensor *first = member(g, p, 0), *rest = member(g, p, 1);
        const int32_t *more = table(g, p, 1)->i;
        for (int64_t k = 0; to >= 0 && to < slots && k < n; k++) {
            double sum = first->f[s * n + k];
            for (int64_t r = more[s]; r < more[s + 1]; r++)
                sum += rest->f[r * n + k];
            out->f[to * n + k] += sum;
        }
    }
    return NULL;
}

static const struct {
    MoeOpcode op;
    const char *group; /* the attribute that names it */
    MoeStatus (*run)(const Group *g);
} ops[] = {
    {MOE_OP_ALL_GATHER, "group", all_gather},
    {MOE_OP_ALL_GATHER_ROWS, "group", all_gather_rows},
    {MOE_OP_REDUCE_SCATTER, "sum", reduce_scatter},
    {MOE_OP_ALL_REDUCE, "group", all_reduce},
    {MOE_OP_A2A_DISPATCH, "group", a2a_dispatch},
    {MOE_OP_A2A_COMBINE, "group", a2a_combine},
    {MOE_OP_COPY_EXPERTS, "group", copy_experts},
    {MOE_OP_FOLD_COPIES, "group", fold_copies},
};

MoeStatus moe_eval_between(const MoeComms *c, int rank) {
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++)
        if (ops[i].op == c->op->opcode) {
            Group g = group_of(c, rank, ops[i].group);
            return ops[i].run(&g);
        }
    MOE_ASSERT(false, "%s is not evaluated between ranks", moe_op_info(c->op->opcode)->name);
    return NULL;
}

/* ---- by itself ---- */

/* One op alone, or a plain run, has nobody to talk to. */
static MoeStatus alone(MoeEvalOp *e) {
    return moe_error(MOE_E_INPUT,
                     "%s runs between ranks: evaluate its graph with moe_eval_ranks (one rank is "
                     "enough)",
                     moe_op_info(e->op->opcode)->name);
}

#define ALONE(name)                                                                                \
    MoeStatus moe_eval_##name(MoeEvalOp *e) {                                                      \
        return alone(e);                                                                           \
    }
ALONE(all_gather)
ALONE(all_gather_rows)
ALONE(reduce_scatter)
ALONE(all_reduce)
ALONE(a2a_dispatch)
ALONE(a2a_combine)
ALONE(copy_experts)
ALONE(fold_copies)
