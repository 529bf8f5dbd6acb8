/* The steps between ranks in plan.json: exchanges and the waits for them (docs/PLAN.md). Sizes are
 * checked against the mesh, so that the execution need not look again; what depends on live rows
 * (tables of segs) it checks itself. */
#include "runtime/plan_reader.h"

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/split.h"

#define MAX_COUNT ((int64_t)1 << 31)

static const struct {
    const char *name;
    size_t least, most; /* operands */
} comm_ops[] = {
#define X(id, name, least, most) {#name, least, most},
    MOE_PLAN_COMM_OPS(X)
#undef X
};

const char *moe_plan_comm_op_name(MoePlanCommOp op) {
    return comm_ops[op].name;
}

static MoeMeshGroup read_group(MoePlanReader *r, const json_t *o, const char *key) {
    MoeMeshGroup g = MOE_GROUP_WORLD;
    const char *name = moe_plan_str(r, o, key);
    if (!r->st && !moe_mesh_group_from_name(name, &g))
        moe_plan_fail(r, key, "is \"%.40s\", which is no group of ranks", name);
    if (!r->st && !moe_mesh_has_group(&r->plan->mesh, g)) {
        moe_plan_fail(r, key, "is \"%.40s\", but the mesh has %d ranges of layers", name,
                      r->plan->mesh.n_ranges);
        return MOE_GROUP_WORLD; /* sizes are asked of it before anybody looks */
    }
    return g;
}

/* Value v holds at least n things of `bytes` bytes. */
static void need(MoePlanReader *r, const MoePlanProgram *g, const char *key, int v, int64_t n,
                 int64_t bytes) {
    if (!r->st && g->values[v].bytes / bytes < n)
        moe_plan_fail(r, key, "%d has %lld bytes, too few for %lld of %lld bytes", v,
                      (long long)g->values[v].bytes, (long long)n, (long long)bytes);
}

static void read_sliced(MoePlanReader *r, const json_t *o, MoePlanComm *c) {
    c->unit = moe_plan_int(r, o, "unit", 1, MOE_PLAN_MAX_DIM);
    c->outer = moe_plan_int(r, o, "outer", 1, MAX_COUNT);
    c->elements = moe_plan_int(r, o, "elements", 0, MOE_PLAN_MAX_DIM / c->outer);
}

static void read_all_gather(MoePlanReader *r, const json_t *o, const MoePlanProgram *g,
                            MoePlanComm *c) {
    const MoeMesh *m = &r->plan->mesh;
    c->group = read_group(r, o, "group");
    c->dtype = moe_plan_dtype(r, o);
    read_sliced(r, o, c);
    int64_t size = (int64_t)moe_plan_dtype_bytes(c->dtype),
            cap = moe_slice(c->elements, c->unit, moe_mesh_group_size(m, c->group), 0).cap;
    need(r, g, "in", c->in[0], c->outer * cap, size);
    need(r, g, "out", c->out, c->outer * c->elements, size);
}

/* Ranks that share a slice are among those that add up: in rank 0's groups, and so in all. */
static bool is_within(const MoeMesh *m, MoeMeshGroup inner, MoeMeshGroup outer) {
    int a[MOE_MAX_RANKS], b[MOE_MAX_RANKS], n = moe_mesh_group_size(m, inner),
                                            most = moe_mesh_group_size(m, outer), k = 0;
    moe_mesh_group_ranks(m, 0, inner, a);
    moe_mesh_group_ranks(m, 0, outer, b);
    for (int i = 0; i < most && k < n; i++)
        k += a[k] == b[i];
    return k == n;
}

static void read_reduce_scatter(MoePlanReader *r, const json_t *o, const MoePlanProgram *g,
                                MoePlanComm *c) {
    const MoeMesh *m = &r->plan->mesh;
    c->group = read_group(r, o, "sum");
    c->scatter = read_group(r, o, "scatter");
    read_sliced(r, o, c);
    if (!r->st && !is_within(m, c->scatter, c->group))
        moe_plan_fail(r, "scatter", "%s is not inside %s", moe_mesh_group_name(c->scatter),
                      moe_mesh_group_name(c->group));
    int64_t cap = moe_slice(c->elements, c->unit, moe_mesh_group_size(m, c->scatter), 0).cap;
    need(r, g, "in", c->in[0], c->outer * c->elements, 4);
    need(r, g, "out", c->out, c->outer * cap, 4);
}

static void read_all_reduce(MoePlanReader *r, const json_t *o, const MoePlanProgram *g,
                            MoePlanComm *c) {
    c->group = read_group(r, o, "group");
    c->dtype = moe_plan_dtype(r, o);
    c->unit = c->outer = 1;
    c->elements = moe_plan_int(r, o, "elements", 0, MOE_PLAN_MAX_DIM);
    if (c->dtype == MOE_PLAN_BF16)
        moe_plan_fail(r, "dtype", "is bf16; sums are f32 or i32");
    need(r, g, "in", c->in[0], c->elements, 4);
    need(r, g, "out", c->out, c->elements, 4);
}

static void read_all_gather_rows(MoePlanReader *r, const json_t *o, const MoePlanProgram *g,
                                 MoePlanComm *c) {
    c->group = read_group(r, o, "group");
    c->row_bytes = moe_plan_int(r, o, "row_bytes", 1, MOE_PLAN_MAX_DIM);
    if (c->n_in == 2) {
        need(r, g, "in", c->in[1], r->plan->virtual_shards + 1, 4);
        return;
    }
    c->rows = moe_plan_int(r, o, "rows", 0, MAX_COUNT);
    need(r, g, "in", c->in[0], c->rows, c->row_bytes);
    need(r, g, "out", c->out, c->rows * moe_mesh_group_size(&r->plan->mesh, c->group),
         c->row_bytes);
}

/* "range": [lo, hi] of n slots. false: not there. */
static bool read_range(MoePlanReader *r, const json_t *o, const char *key, int64_t n, int64_t *lo,
                       int64_t *hi) {
    const json_t *a = json_object_get(o, key);
    *lo = 0;
    *hi = n;
    if (!a || r->st)
        return false;
    const json_t *from = json_array_get(a, 0), *to = json_array_get(a, 1);
    *lo = json_integer_value(from);
    *hi = json_integer_value(to);
    if (json_array_size(a) != 2 || !json_is_integer(from) || !json_is_integer(to) || *lo < 0 ||
        *hi <= *lo || *hi > n)
        moe_plan_fail(r, key, "is no range of the %lld slots", (long long)n);
    return true;
}

void moe_plan_read_slots(MoePlanReader *r, const json_t *o, MoePlanProgram *g, size_t i) {
    MoePlanStep *s = &g->steps[i];
    int64_t lo, hi;
    s->n_slots = r->plan->slots;
    if (json_object_get(o, "of"))
        s->n_slots = (int)moe_plan_int(r, o, "of", 1, r->plan->experts + r->plan->mesh.extra_slots);
    if (!read_range(r, o, "slots", s->n_slots, &lo, &hi))
        return;
    s->slot_lo = (int)lo;
    s->slot_hi = (int)hi;
    s->segs = moe_plan_value(r, json_object_get(o, "segs"), g, "segs");
    need(r, g, "segs", s->segs, (int64_t)s->n_slots * r->plan->virtual_shards + 1, 4);
}

static void read_a2a(MoePlanReader *r, const json_t *o, const MoePlanProgram *g, MoePlanComm *c) {
    const MoePlan *p = r->plan;
    const int64_t V = p->virtual_shards;
    c->group = read_group(r, o, "group");
    c->row_bytes = moe_plan_int(r, o, "row_bytes", 1, MOE_PLAN_MAX_DIM);
    const int64_t ep = moe_mesh_group_size(&p->mesh, c->group);
    if (!r->st && moe_mesh_group_kind(c->group) != MOE_GROUP_EP)
        moe_plan_fail(r, "group", "is %s, expected ep", moe_mesh_group_name(c->group));
    if (c->op == MOE_PLAN_A2A_DISPATCH) {
        c->chunks = moe_plan_int(r, o, "chunks", 1, 65536);
        c->capacity = moe_plan_int(r, o, "capacity", 0, MAX_COUNT);
        c->hi = c->chunks;
        if (json_object_get(o, "chunk")) {
            c->lo = moe_plan_int(r, o, "chunk", 0, c->chunks - 1);
            c->hi = c->lo + 1;
        }
        need(r, g, "in", c->in[1], ep * c->chunks + 1, 4);
        need(r, g, "in", c->in[3], c->chunks * V + 1, 4);
        need(r, g, "out", c->out, c->capacity, c->row_bytes);
        return;
    }
    c->slots = moe_plan_int(r, o, "slots", 1, 65536);
    c->experts = moe_plan_int(r, o, "experts", 1, c->slots * ep);
    read_range(r, o, "range", c->slots, &c->lo, &c->hi);
    need(r, g, "in", c->in[1], c->slots * V + 1, 4);
    if (c->n_in == 4)
        need(r, g, "in", c->in[2], c->experts, 4);
    else if (!r->st && c->experts != c->slots * ep)
        moe_plan_fail(r, "experts", "is %lld, but rows come home from %lld ranks of %lld slots",
                      (long long)c->experts, (long long)ep, (long long)c->slots);
    need(r, g, "in", c->in[c->n_in - 1], c->experts * V + 1, 4);
}

/* Slots of copies: what goes between them and the primaries. */
static void read_copies(MoePlanReader *r, const json_t *o, const MoePlanProgram *g,
                        MoePlanComm *c) {
    const MoePlan *p = r->plan;
    c->group = read_group(r, o, "group");
    c->row_bytes = moe_plan_int(r, o, "row_bytes", 1, MOE_PLAN_MAX_DIM);
    const int64_t ep = moe_mesh_group_size(&p->mesh, c->group);
    if (!r->st && moe_mesh_group_kind(c->group) != MOE_GROUP_EP)
        moe_plan_fail(r, "group", "is %s, expected ep", moe_mesh_group_name(c->group));
    c->slots = moe_plan_int(r, o, "slots", 1, 65536);
    c->experts = moe_plan_int(r, o, "experts", 1, c->slots * ep);
    need(r, g, "in", c->in[0], c->slots, c->row_bytes);
    need(r, g, "out", c->out, c->slots, c->row_bytes);
    bool fold = c->op == MOE_PLAN_FOLD_COPIES;
    need(r, g, "in", c->in[fold ? 6 : 1], c->experts, 4);
    need(r, g, "in", c->in[fold ? 5 : 2], c->slots * ep, 4);
    if (!fold)
        return;
    c->leaf = moe_plan_int(r, o, "leaf", 1, 65536);
    need(r, g, "in", c->in[1], c->slots * (MOE_COPY_ROOTS - 1), c->row_bytes);
    need(r, g, "in", c->in[2], c->slots + 1, 4);
    need(r, g, "in", c->in[3], c->experts * p->virtual_shards, 4);
    need(r, g, "in", c->in[4], c->slots * ep * 2, 4);
}

static bool in_slab(const MoePlanValue *v) {
    return v->kind == MOE_VALUE_SLAB && v->bytes > 0;
}

static bool overlap(const MoePlanProgram *g, int a, int b) {
    const MoePlanValue *x = &g->values[a], *y = &g->values[b];
    if (in_slab(x) && in_slab(y))
        return x->offset < y->offset + y->bytes && y->offset < x->offset + x->bytes;
    return x->kind == MOE_VALUE_BUFFER && y->kind == MOE_VALUE_BUFFER && x->buffer == y->buffer;
}

/* The result is the first operand's memory. */
static bool in_place(const MoePlanComm *c) {
    return c->op == MOE_PLAN_COPY_EXPERTS || c->op == MOE_PLAN_FOLD_COPIES;
}

/* All ops of an exchange run at once: no result is where another op reads or writes. */
static void check_apart(MoePlanReader *r, const MoePlanProgram *g, const MoePlanStep *s) {
    for (size_t i = 0; i < s->n_comm && !r->st; i++)
        for (size_t k = 0; k < s->n_comm && !r->st; k++) {
            const MoePlanComm *a = &s->comm[i], *b = &s->comm[k];
            if (i < k && overlap(g, a->out, b->out))
                moe_plan_fail(r, "comm", "[%zu] and [%zu] have their results in one place", i, k);
            for (int n = i == k && in_place(a); n < b->n_in; n++)
                if (overlap(g, a->out, b->in[n]))
                    moe_plan_fail(r, "comm", "[%zu] has its result where [%zu] reads value %d", i,
                                  k, b->in[n]);
        }
}

static void read_op(MoePlanReader *r, const json_t *o, const MoePlanProgram *g, MoePlanComm *c) {
    const char *name = moe_plan_str(r, o, "op");
    size_t k = 0, n;
    while (k < MOE_N_PLAN_COMM_OPS && strcmp(name, comm_ops[k].name))
        k++;
    if (k == MOE_N_PLAN_COMM_OPS) {
        moe_plan_fail(r, "op", "is \"%.40s\", which is no collective", name);
        return;
    }
    c->op = (MoePlanCommOp)k;
    const json_t *in = moe_plan_array(r, o, "in", &n);
    if (!r->st && (n < comm_ops[k].least || n > comm_ops[k].most))
        moe_plan_fail(r, "in", "has %zu values, expected %zu", n, comm_ops[k].most);
    if (r->st)
        return;
    for (c->n_in = 0; c->n_in < (int)n; c->n_in++)
        c->in[c->n_in] = moe_plan_value(r, json_array_get(in, (size_t)c->n_in), g, "in");
    c->out = moe_plan_value(r, json_object_get(o, "out"), g, "out");
    c->bytes = json_object_get(o, "bytes") ? moe_plan_num(r, o, "bytes", false) : 0;
    if (r->st)
        return;
    switch (c->op) {
    case MOE_PLAN_ALL_GATHER:
        read_all_gather(r, o, g, c);
        break;
    case MOE_PLAN_ALL_GATHER_ROWS:
        read_all_gather_rows(r, o, g, c);
        break;
    case MOE_PLAN_REDUCE_SCATTER:
        read_reduce_scatter(r, o, g, c);
        break;
    case MOE_PLAN_ALL_REDUCE:
        read_all_reduce(r, o, g, c);
        break;
    case MOE_PLAN_A2A_DISPATCH:
    case MOE_PLAN_A2A_COMBINE:
        read_a2a(r, o, g, c);
        break;
    case MOE_PLAN_COPY_EXPERTS:
    case MOE_PLAN_FOLD_COPIES:
        read_copies(r, o, g, c);
        break;
    case MOE_N_PLAN_COMM_OPS:
        break;
    }
}

void moe_plan_read_comm(MoePlanReader *r, const json_t *o, MoePlanProgram *g, size_t i) {
    MoePlanStep *s = &g->steps[i];
    const json_t *ops = moe_plan_array(r, o, "comm", &s->n_comm);
    s->comm = MOE_NEW_N(r->plan->arena, MoePlanComm, s->n_comm);
    s->start = json_object_get(o, "start") && moe_plan_bool(r, o, "start");
    if (!r->st && s->n_comm == 0)
        moe_plan_fail(r, "comm", "is empty");
    for (size_t k = 0; k < s->n_comm && !r->st; k++) {
        moe_plan_at(r, "programs.%s.steps[%zu].comm[%zu]", g->name, i, k);
        read_op(r, json_array_get(ops, k), g, &s->comm[k]);
    }
    if (!r->st)
        moe_plan_at(r, "programs.%s.steps[%zu]", g->name, i);
    check_apart(r, g, s);
}

/* Phases that the execution runs in one go: an exchange ends in the one it began in. */
static int stretch(MoePlanPhase p) {
    return p <= MOE_PHASE_BWD ? 0 : (int)p;
}

void moe_plan_read_wait(MoePlanReader *r, const json_t *o, MoePlanProgram *g, size_t i) {
    MoePlanStep *s = &g->steps[i];
    s->wait = (int)moe_plan_int(r, o, "wait", 0, (int64_t)i - 1);
    if (r->st)
        return;
    const MoePlanStep *begin = &g->steps[s->wait];
    if ((!begin->n_comm && !begin->n_moves) || !begin->start)
        moe_plan_fail(r, "wait", "%d is not a step that starts an exchange", s->wait);
    else if (begin->count != s->count || stretch(begin->phase) != stretch(s->phase))
        moe_plan_fail(r, "wait", "%d runs at another time than its wait", s->wait);
    for (size_t k = (size_t)s->wait + 1; k < i && !r->st; k++)
        if (g->steps[k].wait == s->wait)
            moe_plan_fail(r, "wait", "%d is waited for already, by step %zu", s->wait, k);
}

void moe_plan_check_waits(MoePlanReader *r, MoePlanProgram *g) {
    int open = 0;
    for (size_t i = 0; i < g->n_steps && !r->st; i++)
        open += g->steps[i].start - (g->steps[i].wait >= 0);
    for (size_t i = 0; i < g->n_steps && open && !r->st; i++) {
        size_t k = i + 1;
        while (g->steps[i].start && k < g->n_steps && g->steps[k].wait != (int)i)
            k++;
        moe_plan_at(r, "programs.%s.steps[%zu]", g->name, i);
        if (g->steps[i].start && k == g->n_steps)
            moe_plan_fail(r, "start", "is true, and no step waits for it");
    }
}
