/* Random inputs by use; see the header. First the roles of all values are read off their consumers,
 * then the segment tables are made (token tables, then the plans of move ops, then other tables),
 * then everything else. */
#include "tests/support/random_graph.h"

#include <math.h>
#include <string.h>
#include "base/assert.h"
#include "base/rng.h"

typedef enum {
    ROLE_NORMAL,
    ROLE_POSITIVE,
    ROLE_DIVISOR,
    ROLE_SQUARE,
    ROLE_TIES,
    ROLE_SMALL,
    ROLE_FIXED,
    ROLE_IDS,
    ROLE_DISTINCT,
    ROLE_LABELS,
    ROLE_COUNT,
    ROLE_WIDE,
    ROLE_PLAN,
    ROLE_PLACE,
    ROLE_COPIES,
    ROLE_RANK,
    ROLE_SUMS,
    ROLE_LSE,
    ROLE_DERIVED
} RoleKind;

typedef struct {
    RoleKind kind;
    int64_t range; /* ids: below this; 0: unknown */
    double fixed;  /* ROLE_FIXED; ROLE_COPIES: slots of a rank */
} Role;

/* Tables of segments: made by themselves, or together with the src and inv of a plan. */
typedef enum { PLAN_NONE, PLAN_WANTED, PLAN_FILLED } PlanState;

typedef struct {
    const MoeGraph *g;
    const MoeRandomOptions *o;
    MoeArena *a;
    MoeInputs *out;
    Role *roles;        /* by value id */
    PlanState *planned; /* by value id */
    int64_t seq;        /* rows of a sequence: shards hold whole ones; 1 without attention */
} Fill;

static uint64_t stream_of(const MoeValue *v) {
    const MoeAttr *name = moe_attr(v->def, "name");
    return moe_hash_name(name ? name->s : "value") ^ (uint64_t)(v->def->opcode == MOE_OP_STATE);
}

static void set_role(Fill *f, const MoeValue *v, RoleKind kind, int64_t range) {
    Role *r = &f->roles[v->id];
    if (r->kind == ROLE_DISTINCT && kind == ROLE_IDS)
        kind = ROLE_DISTINCT; /* the stricter of two uses */
    r->kind = kind;
    if (range && (!r->range || range < r->range))
        r->range = range;
}

/* Scalars of an optimiser step, by operand of adamw and by input name. */
static const struct {
    const char *name;
    double value;
} scalars[] = {{"clip", 0.7},   {"lr", 0.1},       {"beta1", 0.9},
               {"beta2", 0.95}, {"eps", 1e-8},     {"weight_decay", 0.1},
               {"bias1", 0.19}, {"bias2", 0.0975}, {"max_grad_norm", 1.0}};

static void set_fixed(Fill *f, const MoeValue *v, double value) {
    f->roles[v->id] = (Role){ROLE_FIXED, 0, value};
}

static bool is_move(const MoeOp *op) {
    return moe_op_info(op->opcode)->kind == MOE_KIND_MOVE;
}

/* send_plan, expert_plan, block_tree: experts and their slots. */
static void read_place_roles(Fill *f, const MoeOp *op) {
    MoeValue *const *in = op->operands;
    if (op->opcode == MOE_OP_BLOCK_TREE) {
        if (op->n_operands > 1)
            set_role(f, in[1], ROLE_PLACE, in[0]->type.dims[0].size);
        return;
    }
    bool send = op->opcode == MOE_OP_SEND_PLAN;
    if (op->n_operands < (send ? 2 : 3)) { /* choices by global slot: another plan made them */
        if (!send)
            set_role(f, in[1], ROLE_RANK, 0);
        return;
    }
    int64_t experts = in[1]->type.dims[0].size, slots = moe_attr_i(op, "slots");
    int64_t ranks = send ? moe_attr_i(op, "ranks") : (experts + slots - 1) / slots;
    int64_t all = f->o->slots ? f->o->slots : ranks * slots;
    set_role(f, in[0], ROLE_DISTINCT, experts);
    set_role(f, in[1], ROLE_PLACE, all);
    if (!send)
        set_role(f, in[2], ROLE_RANK, 0);
}

/* copy_plan, root_plan: choices of experts, some of them with copies. */
static void read_copy_roles(Fill *f, const MoeOp *op) {
    MoeValue *const *in = op->operands;
    if (op->opcode == MOE_OP_ROOT_PLAN) {
        set_role(f, in[4], ROLE_RANK, 0);
        return;
    }
    set_role(f, in[0], ROLE_DISTINCT, moe_attr_i(op, "experts"));
    set_role(f, in[1], ROLE_DISTINCT, moe_attr_i(op, "experts"));
    set_role(f, in[2], ROLE_COPIES, moe_attr_i(op, "experts"));
    f->roles[in[2]->id].fixed = (double)moe_attr_i(op, "slots");
}

/* Rows of a vocabulary; with an operand `part`, of all its parts. */
static int64_t vocabulary(const Fill *f, int64_t rows, bool in_parts) {
    return in_parts && f->o->parts ? rows * f->o->parts : rows;
}

static void read_embedding_roles(Fill *f, const MoeOp *op) {
    MoeValue *const *in = op->operands;
    bool in_parts = op->n_operands > 2;
    int64_t rows =
        op->opcode == MOE_OP_EMBEDDING ? in[0]->type.dims[0].size : moe_attr_i(op, "vocab");
    set_role(f, in[1], ROLE_IDS, vocabulary(f, rows, in_parts));
    if (in_parts)
        set_role(f, in[2], ROLE_RANK, 0);
}

/* linear_cross_entropy and its kin: h, w, labels, then part, lse where w is a part. */
static void read_loss_roles(Fill *f, const MoeOp *op) {
    MoeValue *const *in = op->operands;
    bool in_parts = op->opcode == MOE_OP_LINEAR_CROSS_ENTROPY_PART ||
                    op->opcode == MOE_OP_LINEAR_CROSS_ENTROPY_PART_GRAD;
    set_role(f, in[1], ROLE_SMALL, 0);
    set_role(f, in[2], ROLE_LABELS, vocabulary(f, in[1]->type.dims[0].size, in_parts));
    if (in_parts)
        set_role(f, in[3], ROLE_RANK, 0);
    if (op->opcode == MOE_OP_LINEAR_CROSS_ENTROPY_PART_GRAD)
        set_role(f, in[4], ROLE_LSE, 0);
}

static void read_roles(Fill *f, const MoeOp *op) {
    MoeValue *const *in = op->operands;
    MoeOpcode c = op->opcode;
    if (c == MOE_OP_EMBEDDING || c == MOE_OP_EMBEDDING_GRAD)
        read_embedding_roles(f, op);
    else if (c == MOE_OP_TAKE)
        set_role(f, in[1], ROLE_DISTINCT, moe_type_cols(&in[0]->type));
    else if (c == MOE_OP_PUT)
        set_role(f, in[1], ROLE_DISTINCT, moe_attr_i(op, "cols"));
    else if (c == MOE_OP_ROUTE_PLAN)
        set_role(f, in[0], ROLE_DISTINCT, moe_attr_i(op, "experts"));
    else if (c == MOE_OP_SEND_PLAN || c == MOE_OP_EXPERT_PLAN || c == MOE_OP_BLOCK_TREE)
        read_place_roles(f, op);
    else if (c == MOE_OP_COPY_PLAN || c == MOE_OP_ROOT_PLAN)
        read_copy_roles(f, op);
    else if (c == MOE_OP_COUNT_VALID)
        set_role(f, in[0], ROLE_LABELS, 0);
    else if (c == MOE_OP_CROSS_ENTROPY_JOIN) {
        set_role(f, in[0], ROLE_SUMS, 0);
        set_role(f, in[1], ROLE_LABELS, 0);
    } else if (moe_op_info(c)->kind == MOE_KIND_XENT)
        read_loss_roles(f, op);
    else if (is_move(op)) {
        set_role(f, in[1], ROLE_PLAN, 0);
        set_role(f, in[2], ROLE_PLAN, 0);
    } else if (c == MOE_OP_LOG || c == MOE_OP_SQRT || c == MOE_OP_RSQRT)
        set_role(f, in[0], ROLE_POSITIVE, 0);
    else if (c == MOE_OP_DIV)
        set_role(f, in[1], ROLE_DIVISOR, 0);
    else if (c == MOE_OP_TOPK)
        set_role(f, in[0], ROLE_TIES, 0);
    else if (c == MOE_OP_EXPERT_COUNTS || c == MOE_OP_ROW_COUNT || c == MOE_OP_BATCH_SUM)
        set_role(f, in[0], ROLE_COUNT, 0);
    else if (c == MOE_OP_CONVERT)
        set_role(f, in[0], in[0]->type.dtype == MOE_I32 ? ROLE_WIDE : f->roles[in[0]->id].kind, 0);
    else if (c == MOE_OP_ATTENTION_GRAD) {
        set_role(f, in[3], ROLE_DERIVED, 0);
        set_role(f, in[4], ROLE_DERIVED, 0);
    } else if (c == MOE_OP_ADAMW) {
        set_role(f, in[2], ROLE_SQUARE, 0);
        for (int i = 4; i < 12; i++)
            set_fixed(f, in[i], scalars[i - 4].value);
    } else if (c == MOE_OP_INPUT) {
        for (size_t i = 0; i < sizeof scalars / sizeof *scalars; i++)
            if (!strcmp(moe_attr_s(op, "name"), scalars[i].name))
                set_fixed(f, op->results[0], scalars[i].value);
    } else if (c == MOE_OP_STATE && !strcmp(moe_attr_s(op, "name"), "exp_avg_sq"))
        set_role(f, op->results[0], ROLE_SQUARE, 0);
    const MoeAttr *seq = moe_attr(op, "seq");
    if (seq && seq->i > 0)
        f->seq = seq->i;
}

/* ---- segment tables ---- */

/* Live rows for a table: the option, within every capacity of a tensor ragged over it. */
static int64_t table_rows(const Fill *f, const MoeValue *seg) {
    int64_t cap = -1;
    for (size_t k = 0; k < f->g->n_ops; k++)
        for (int r = 0; r < f->g->ops[k]->n_results; r++) {
            const MoeType *t = &f->g->ops[k]->results[r]->type;
            if (t->kind == MOE_TYPE_TENSOR && t->dims[0].seg == seg &&
                (cap < 0 || t->dims[0].size < cap))
                cap = t->dims[0].size;
        }
    if (f->o->rows < 0)
        return cap < 0 ? 100 : cap;
    return cap >= 0 && f->o->rows > cap ? cap : f->o->rows;
}

/* The shard of unit b of n_units (a sequence or row), ascending in b. */
static int64_t shard_of(const Fill *f, int64_t b, int64_t n_units, int64_t shards,
                        const int64_t *cuts) {
    if (f->o->shards == MOE_SHARDS_FIRST)
        return 0;
    if (f->o->shards == MOE_SHARDS_LAST)
        return shards - 1;
    for (int64_t v = 0; v < shards; v++) {
        int64_t end = f->o->shards == MOE_SHARDS_EVEN ? (v + 1) * n_units / shards : cuts[v];
        if (b < end)
            return v;
    }
    return shards - 1;
}

/* Ascending random ends of the shards; the last is n. */
static int64_t *random_cuts(const Fill *f, int64_t n, int64_t shards, uint64_t stream) {
    int64_t *cuts = MOE_NEW_N(f->a, int64_t, shards);
    for (int64_t v = 0; v < shards; v++) {
        int64_t c = (int64_t)moe_rng_below(f->o->seed, stream, (uint64_t)v, (uint64_t)n + 1), i = v;
        for (; i > 0 && cuts[i - 1] > c; i--)
            cuts[i] = cuts[i - 1];
        cuts[i] = c;
    }
    cuts[shards - 1] = n;
    return cuts;
}

/* A table over one group: whole sequences on shards. */
static void fill_token_table(const Fill *f, const MoeValue *seg, MoeTensor *t) {
    int64_t rows = table_rows(f, seg), shards = seg->type.shards;
    int64_t units = (rows + f->seq - 1) / f->seq;
    int64_t *cuts = random_cuts(f, units, shards, stream_of(seg));
    for (int64_t b = 0; b < units; b++) {
        int64_t n = b * f->seq + f->seq > rows ? rows - b * f->seq : f->seq;
        for (int64_t v = shard_of(f, b, units, shards, cuts); v < shards; v++)
            t->i[v + 1] += (int32_t)n;
    }
}

/* A table over several groups, without a plan behind it: each row falls on a group by the routing.
 */
static void fill_group_table(const Fill *f, const MoeValue *seg, MoeTensor *t) {
    int64_t rows = table_rows(f, seg), shards = seg->type.shards, groups = seg->type.groups;
    uint64_t stream = stream_of(seg);
    int32_t *id = MOE_NEW_N(f->a, int32_t, rows);
    int64_t *cuts = random_cuts(f, rows, shards, stream + 1);
    moe_random_expert_ids(id, rows, 1, groups, f->o->routing, f->o->seed, stream);
    for (int64_t r = 0; r < rows; r++) {
        int64_t s = id[r] * shards + shard_of(f, r, rows, shards, cuts);
        t->i[s + 1]++;
    }
    for (int64_t s = 0; s < groups * shards; s++)
        t->i[s + 1] += t->i[s];
}

void moe_random_expert_ids(int32_t *ids, int64_t rows, int64_t k, int64_t experts,
                           MoeRouting routing, uint64_t seed, uint64_t stream) {
    MOE_ASSERT(k <= experts, "top-%lld of %lld experts", (long long)k, (long long)experts);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t j = 0; j < k; j++) {
            bool gap = routing == MOE_ROUTING_GAP && experts - 1 >= k;
            uint64_t draw = 0;
            int64_t id;
            for (bool again = true; again;) {
                uint64_t index = (uint64_t)(t * k + j) + (draw++ << 40);
                if (routing == MOE_ROUTING_ONE)
                    id = j == 0 ? experts - 1 : j - 1;
                else
                    id = (int64_t)moe_rng_below(seed, stream, index, (uint64_t)experts);
                again = gap && id == 1;
                for (int64_t q = 0; q < j; q++)
                    again = again || ids[t * k + q] == id;
            }
            ids[t * k + j] = (int32_t)id;
        }
}

/* Plan inputs of a move op: segs<E,V> table, src (R), inv (T, K), as route_plan makes them from
 * random ids; `elsewhere`: as expert_plan does, with as many experts again on other ranks. */
static MoeStatus fill_plan(Fill *f, const MoeOp *op) {
    const MoeValue *src_v = op->operands[1], *inv_v = op->operands[2];
    MoeTensor *src = moe_inputs_of(f->out, src_v), *inv = moe_inputs_of(f->out, inv_v);
    if (!src && !inv)
        return NULL; /* computed by the graph */
    const MoeValue *seg_v = src_v->type.dims[0].seg, *tok_v = inv_v->type.dims[0].seg;
    MoeTensor *seg = seg_v ? moe_inputs_of(f->out, seg_v) : NULL;
    MoeTensor *tok = tok_v ? moe_inputs_of(f->out, tok_v) : NULL;
    if (!src || !inv || !seg || !tok)
        return moe_error(MOE_E_INPUT,
                         "random inputs: src, inv and their tables must all be inputs");
    if (f->planned[seg_v->id] == PLAN_FILLED)
        return NULL; /* at an earlier move op of the same plan */
    f->planned[seg_v->id] = PLAN_FILLED;
    if (tok_v->type.groups > 1 && f->planned[tok_v->id] == PLAN_NONE) { /* received rows by chunk */
        fill_group_table(f, tok_v, tok);
        f->planned[tok_v->id] = PLAN_FILLED;
    }
    int64_t k = inv_v->type.dims[1].size, experts = seg_v->type.groups, shards = seg_v->type.shards;
    int64_t rows = tok->i[tok->n - 1] * k, choices = f->o->elsewhere ? 2 * experts : experts;
    int32_t *ids = MOE_NEW_N(f->a, int32_t, rows), at = 0;
    moe_random_expert_ids(ids, rows / k, k, choices, f->o->routing, f->o->seed, stream_of(src_v));
    src->i = MOE_NEW_N(f->a, int32_t, rows);
    inv->i = MOE_NEW_N(f->a, int32_t, rows);
    for (int64_t p = 0; p < rows; p++)
        inv->i[p] = -1;
    for (int64_t e = 0; e < experts; e++)
        for (int64_t v = 0; v < shards; v++) {
            for (int64_t c = 0; c < tok_v->type.groups; c++)
                for (int64_t p = tok->i[c * shards + v] * k; p < tok->i[c * shards + v + 1] * k;
                     p++)
                    if (ids[p] == e) {
                        src->i[at] = (int32_t)p;
                        inv->i[p] = at++;
                    }
            seg->i[e * shards + v + 1] = at;
        }
    return NULL;
}

/* ---- tensors ---- */

/* Every expert in a random slot, then as many slots of other ranks as chance has it; no rank holds one twice. */
static void fill_copies(const Fill *f, MoeTensor *t, Role r, uint64_t stream) {
    int64_t slots = (int64_t)r.fixed;
    for (int64_t g = 0; g < t->n; g++)
        t->i[g] = -1;
    for (int64_t e = 0; e < r.range; e++) {
        int64_t g = (int64_t)moe_rng_below(f->o->seed, stream, (uint64_t)e, (uint64_t)t->n);
        while (t->i[g] >= 0)
            g = (g + 1) % t->n;
        t->i[g] = (int32_t)e;
    }
    for (int64_t g = 0; g < t->n; g++) {
        int32_t e = (int32_t)moe_rng_below(f->o->seed, stream + 1, (uint64_t)g, (uint64_t)r.range + 1);
        if (e % 3 == 1)
            e = 0; /* one expert in most of the free slots */
        bool here = t->i[g] >= 0 || e == r.range;
        for (int64_t k = g / slots * slots; k < (g / slots + 1) * slots; k++)
            here |= t->i[k] == e;
        t->i[g] = here ? t->i[g] : e;
    }
}

/* Experts in slots of their own: the first of the slots' numbers in a random order. */
static void fill_place(const Fill *f, MoeTensor *t, int64_t slots, uint64_t stream) {
    MOE_ASSERT(t->n <= slots, "random inputs: %lld experts in %lld slots", (long long)t->n,
               (long long)slots);
    int32_t *all = MOE_NEW_N(f->a, int32_t, slots);
    for (int64_t i = 0; i < slots; i++)
        all[i] = (int32_t)i;
    for (int64_t i = 0; i < t->n; i++) {
        int64_t j =
            i + (int64_t)moe_rng_below(f->o->seed, stream, (uint64_t)i, (uint64_t)(slots - i));
        int32_t other = all[j];
        all[j] = all[i];
        t->i[i] = all[i] = other;
    }
}

static void fill_ints(const Fill *f, const MoeValue *v, MoeTensor *t) {
    Role r = f->roles[v->id];
    uint64_t s = stream_of(v), seed = f->o->seed;
    if (r.kind == ROLE_DISTINCT) {
        moe_random_expert_ids(t->i, t->n / t->dims[t->rank - 1], t->dims[t->rank - 1], r.range,
                              f->o->routing, seed, s);
        return;
    }
    if (r.kind == ROLE_PLACE) {
        fill_place(f, t, r.range, s);
        return;
    }
    if (r.kind == ROLE_COPIES) {
        fill_copies(f, t, r, s);
        return;
    }
    uint64_t range = r.range ? (uint64_t)r.range : 1000;
    for (int64_t k = 0; k < t->n; k++) {
        int64_t x = (int64_t)moe_rng_below(seed, s, (uint64_t)k, range);
        if (r.kind == ROLE_LABELS && moe_rng_uniform(seed, s + 1, (uint64_t)k) < f->o->ignored)
            x = k % 2 ? -1 : -100;
        if (r.kind == ROLE_NORMAL) /* plain integers: of both signs */
            x -= 500;
        if (r.kind == ROLE_RANK)
            x = f->o->ep_rank;
        if (r.kind == ROLE_WIDE) /* still exact in f32 */
            x = (int64_t)moe_rng_below(seed, s, (uint64_t)k, 1u << 25) - (1 << 24);
        t->i[k] = (int32_t)x;
    }
}

static double shape_float(Role r, double x, int64_t k, int64_t cols) {
    if (r.kind == ROLE_POSITIVE)
        return exp(x);
    if (r.kind == ROLE_DIVISOR)
        return x < 0 ? x - 0.5 : x + 0.5;
    if (r.kind == ROLE_SUMS) /* the middle one of three columns is a sum of exponentials */
        return k % cols % 3 == 1 ? 1 + exp(x) : 2 * x;
    if (r.kind == ROLE_LSE) /* above most logits */
        return 6 + 0.5 * x;
    if (r.kind == ROLE_SQUARE)
        return x * x * 0.01;
    if (r.kind == ROLE_SMALL)
        return x * 2 / sqrt((double)cols);
    if (r.kind == ROLE_FIXED)
        return r.fixed;
    if (r.kind == ROLE_TIES && k / cols % 2)
        return nearbyint(x * 2) / 2; /* every other row: many equal values */
    return x;
}

static void fill_floats(const Fill *f, const MoeValue *v, MoeTensor *t) {
    const MoeOp *op = v->def;
    Role r = f->roles[v->id];
    int64_t cols = t->dims[t->rank - 1] > 0 ? t->dims[t->rank - 1] : 1;
    double mean = 0, std = 1;
    if (op->opcode == MOE_OP_PARAM &&
        r.kind != ROLE_FIXED) { /* near its initial value, never constant */
        const MoeAttr *given = moe_attr(op, "std");
        mean = !strcmp(moe_attr_s(op, "init"), "ones");
        std = !strcmp(moe_attr_s(op, "init"), "normal") ? (given ? given->f : 0.05) : 0.1;
    } else if (op->opcode == MOE_OP_STATE)
        std = 0.1;
    for (int64_t k = 0; k < t->n; k++) {
        double x = mean + std * moe_rng_normal(f->o->seed, stream_of(v), (uint64_t)k);
        x = shape_float(r, x, k, cols);
        t->f[k] = t->dtype == MOE_BF16 ? moe_eval_round_bf16(x) : (double)(float)x;
    }
}

/* o and lse given to attention_grad: those of its q, k, v. */
static MoeStatus fill_attention(Fill *f, const MoeOp *op) {
    MoeTensor *in[5];
    for (int i = 0; i < 5; i++)
        in[i] = moe_inputs_of(f->out, op->operands[i]);
    if (!in[3] && !in[4])
        return NULL;
    for (int i = 0; i < 5; i++)
        if (!in[i])
            return moe_error(MOE_E_INPUT, "random inputs: q, k, v, o and lse must all be inputs");
    MoeOp fwd = *op; /* the same shape attributes, as the forward op */
    MoeValue *results[2] = {op->operands[3], op->operands[4]};
    MoeTensor out[2];
    fwd.opcode = MOE_OP_ATTENTION;
    fwd.n_operands = 3;
    fwd.n_results = 2;
    fwd.results = results;
    MOE_TRY(moe_eval_op(&fwd, (const MoeTensor *const *)in, out, f->a));
    for (int64_t k = 0; k < out[1].n; k++)
        out[1].f[k] = (double)(float)out[1].f[k];
    for (int64_t k = 0; k < out[0].n; k++)
        if (out[0].dtype == MOE_F32)
            out[0].f[k] = (double)(float)out[0].f[k];
    *in[3] = out[0];
    *in[4] = out[1];
    return NULL;
}

static bool is_given(const MoeOp *op) {
    return op->opcode == MOE_OP_INPUT || op->opcode == MOE_OP_PARAM || op->opcode == MOE_OP_STATE;
}

/* Extents and storage; ragged rows are known once the tables are made. */
static MoeStatus make_storage(const Fill *f, const MoeValue *v, MoeTensor *t) {
    const MoeType *type = &v->type;
    t->dtype = type->dtype;
    t->rank = type->rank;
    t->n = 1;
    for (int d = 0; d < type->rank; d++) {
        t->dims[d] = type->dims[d].size;
        if (type->dims[d].seg) {
            const MoeTensor *seg = moe_inputs_of(f->out, type->dims[d].seg);
            if (!seg)
                return moe_error(MOE_E_INPUT,
                                 "random inputs: an input is ragged over a computed table");
            t->dims[d] = seg->i[seg->n - 1];
        }
        t->n *= t->dims[d];
    }
    if (t->dtype != MOE_I32)
        t->f = MOE_NEW_N(f->a, double, t->n);
    else if (!t->i)
        t->i = MOE_NEW_N(f->a, int32_t, t->n);
    return NULL;
}

/* The list of inputs, roles of all values, and storage of the tables. */
static void list_inputs(Fill *f) {
    size_t cap = 0;
    *f->out = (MoeInputs){0};
    for (size_t k = 0; k < f->g->n_ops; k++) {
        const MoeOp *op = f->g->ops[k];
        read_roles(f, op);
        if (is_move(op) && op->operands[1]->type.dims[0].seg)
            f->planned[op->operands[1]->type.dims[0].seg->id] = PLAN_WANTED;
        if (!is_given(op))
            continue;
        MoeInputData item = {op->results[0], {0}};
        const MoeType *type = &item.value->type;
        if (type->kind == MOE_TYPE_SEGS) {
            item.t.rank = 1;
            item.t.dtype = MOE_I32;
            item.t.n = item.t.dims[0] = type->groups * type->shards + 1;
            item.t.i = MOE_NEW_N(f->a, int32_t, item.t.n);
        }
        MOE_PUSH(f->a, f->out->items, f->out->n, cap, item);
    }
}

/* Tables that belong to no plan: of tokens (one group), or of several groups. */
static void fill_tables(Fill *f, bool of_tokens) {
    for (size_t i = 0; i < f->out->n; i++) {
        const MoeValue *v = f->out->items[i].value;
        if (v->type.kind != MOE_TYPE_SEGS || f->planned[v->id] != PLAN_NONE ||
            (v->type.groups == 1) != of_tokens)
            continue;
        if (of_tokens)
            fill_token_table(f, v, &f->out->items[i].t);
        else
            fill_group_table(f, v, &f->out->items[i].t);
    }
}

MoeStatus moe_random_inputs(const MoeGraph *g, const MoeRandomOptions *o, MoeArena *a,
                            MoeInputs *out) {
    Fill f = {
        g, o, a, out, MOE_NEW_N(a, Role, g->n_values + 1), MOE_NEW_N(a, PlanState, g->n_values + 1),
        1};
    list_inputs(&f);
    fill_tables(&f, true);
    for (size_t k = 0; k < g->n_ops; k++)
        if (is_move(g->ops[k]))
            MOE_TRY(fill_plan(&f, g->ops[k]));
    fill_tables(&f, false);
    for (size_t i = 0; i < out->n; i++) {
        const MoeValue *v = out->items[i].value;
        MoeTensor *t = &out->items[i].t;
        if (v->type.kind == MOE_TYPE_SEGS)
            continue;
        MOE_TRY(make_storage(&f, v, t));
        if (f.roles[v->id].kind == ROLE_PLAN)
            continue;
        if (t->dtype == MOE_I32)
            fill_ints(&f, v, t);
        else
            fill_floats(&f, v, t);
    }
    for (size_t k = 0; k < g->n_ops; k++)
        if (g->ops[k]->opcode == MOE_OP_ATTENTION_GRAD)
            MOE_TRY(fill_attention(&f, g->ops[k]));
    return NULL;
}
