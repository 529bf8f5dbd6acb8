/* Valid random inputs for any graph, for --eval-each and tests. In: a graph. Out: values given to
 * its interpreter. What an i32 input means is read from the ops that use it. */
#include <math.h>
#include <string.h>
#include "base/rng.h"
#include "passes/eval_each.h"

/* One ignored label in this many. */
enum { IGNORED_EVERY = 8 };

/* Rows of a sequence, where an op says so; 1 else. */
static int64_t sequence_rows(const MoeGraph *g) {
    for (size_t i = 0; i < g->n_ops; i++) {
        int64_t seq = moe_attr_i_or(g->ops[i], "seq", 0);
        if (seq > 0)
            return seq;
    }
    return 1;
}

/* The smallest capacity of the values whose rows are ragged over seg; 0 if there is none. */
static int64_t capacity_over(const MoeGraph *g, const MoeValue *seg) {
    int64_t least = INT64_MAX;
    for (size_t i = 0; i < g->n_ops; i++)
        for (int r = 0; r < g->ops[i]->n_results; r++) {
            const MoeType *t = &g->ops[i]->results[r]->type;
            if (t->kind == MOE_TYPE_TENSOR && t->dims[0].seg == seg && t->dims[0].size < least)
                least = t->dims[0].size;
        }
    return least == INT64_MAX ? 0 : least;
}

/* Live rows: whole sequences, one fewer than fit where several do, so that raggedness matters. Segments that a
 * route_plan makes hold one row for each entry of its ids. */
static int64_t live_rows(const MoeGraph *g, const MoeValue *seg) {
    int64_t per_token = 1;
    if (seg->def->opcode == MOE_OP_ROUTE_PLAN) {
        const MoeType *ids = &seg->def->operands[0]->type;
        per_token = moe_type_cols(ids);
        seg = ids->dims[0].seg;
        if (!seg)
            return ids->dims[0].size * per_token;
    }
    int64_t seq = sequence_rows(g), n = capacity_over(g, seg) / seq;
    return seq * (n > 2 ? n - 1 : n) * per_token;
}

static MoeStatus fill_segs(MoeEval *ev, const MoeGraph *g, const MoeValue *v, MoeArena *a) {
    int64_t cells = v->type.groups * v->type.shards, seq = sequence_rows(g);
    int64_t n = live_rows(g, v) / seq;
    int32_t *table = MOE_NEW_N(a, int32_t, cells + 1);
    for (int64_t c = 0; c <= cells; c++)
        table[c] = (int32_t)(c * n / cells * seq); /* shard v of docs/NUMBERS.md */
    return moe_eval_set_i(ev, v, table, cells + 1);
}

typedef enum { IDS_BELOW, IDS_DISTINCT, IDS_LABELS, IDS_PERMUTATION } IdsKind;

/* What the users of an i32 input expect: ids below *out_n; distinct in a row; labels; or row
 * indices. */
static IdsKind ids_kind(const MoeGraph *g, const MoeValue *v, int64_t *out_n) {
    *out_n = 2;
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        for (int k = 0; k < op->n_operands; k++) {
            if (op->operands[k] != v)
                continue;
            const MoeType *first = &op->operands[0]->type;
            switch (moe_op_info(op->opcode)->kind) {
            case MOE_KIND_EMBED:
                *out_n = first->dims[0].size;
                return IDS_BELOW;
            case MOE_KIND_EMBED_GRAD:
                *out_n = moe_attr_i(op, "vocab");
                return IDS_BELOW;
            case MOE_KIND_XENT:
                *out_n = op->operands[1]->type.dims[0].size;
                return IDS_LABELS;
            case MOE_KIND_MOVE:
                return IDS_PERMUTATION;
            case MOE_KIND_ROW:
                *out_n = op->opcode == MOE_OP_PUT ? moe_attr_i(op, "cols") : moe_type_cols(first);
                return IDS_DISTINCT;
            case MOE_KIND_ROUTE:
                if (op->opcode == MOE_OP_COUNT_VALID)
                    break;
                *out_n = moe_attr_i_or(op, "experts", 2);
                return IDS_DISTINCT;
            case MOE_KIND_DECL:
            case MOE_KIND_EW:
            case MOE_KIND_REDUCE:
            case MOE_KIND_SYNC:
            case MOE_KIND_COMM:
            case MOE_KIND_STORE:
            case MOE_KIND_GEMM:
            case MOE_KIND_WGRAD:
            case MOE_KIND_ROPE:
            case MOE_KIND_ATTN:
            case MOE_KIND_ATTN_GRAD:
            case MOE_KIND_COMPOSITE:
            case MOE_N_KINDS:
                break;
            }
        }
    }
    return IDS_BELOW;
}

static int64_t live_elements(const MoeGraph *g, const MoeValue *v) {
    int64_t n = moe_type_elements(&v->type), cap = v->type.dims[0].size;
    if (!v->type.dims[0].seg || cap == 0)
        return n;
    return n / cap * live_rows(g, v->type.dims[0].seg);
}

static MoeStatus fill_ids(MoeEval *ev, const MoeGraph *g, const MoeValue *v, uint64_t seed,
                          uint64_t stream, MoeArena *a) {
    int64_t below, n = live_elements(g, v), cols = v->type.rank > 1 ? moe_type_cols(&v->type) : 1;
    IdsKind kind = ids_kind(g, v, &below);
    int32_t *ids = MOE_NEW_N(a, int32_t, n);
    below = below > 0 ? below : 1;
    for (int64_t i = 0; i < n; i++) {
        uint64_t r = moe_rng_below(seed, stream, (uint64_t)i, (uint64_t)below);
        if (kind == IDS_PERMUTATION)
            ids[i] = (int32_t)i;
        else if (kind == IDS_DISTINCT && i % cols > 0) /* a run of neighbours from a random start */
            ids[i] = (int32_t)((ids[i - 1] + 1) % below);
        else
            ids[i] =
                kind == IDS_LABELS && i % IGNORED_EVERY == IGNORED_EVERY - 1 ? -100 : (int32_t)r;
    }
    return moe_eval_set_i(ev, v, ids, n);
}

/* The scalars of a training step, else 0. */
static double known_scalar(const char *name) {
    static const struct {
        const char *name;
        double value;
    } known[] = {{"lr", 1e-2},          {"beta1", 0.9},  {"beta2", 0.95}, {"eps", 1e-8},
                 {"weight_decay", 0.1}, {"bias1", 0.19}, {"bias2", 0.1},  {"max_grad_norm", 0.5}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strcmp(known[i].name, name) == 0)
            return known[i].value;
    return 0;
}

static MoeStatus fill_floats(MoeEval *ev, const MoeGraph *g, const MoeValue *v, uint64_t seed,
                             uint64_t stream, MoeArena *a) {
    const MoeOp *op = v->def;
    int64_t n = live_elements(g, v);
    double *x = MOE_NEW_N(a, double, n);
    double scalar = known_scalar(moe_attr_s(op, "name"));
    bool second_moment =
        op->opcode == MOE_OP_STATE && strcmp(moe_attr_s(op, "name"), "exp_avg_sq") == 0;
    for (int64_t i = 0; i < n; i++) {
        double r = moe_rng_normal(seed, stream, (uint64_t)i);
        if (op->opcode == MOE_OP_INPUT)
            x[i] = scalar != 0 ? scalar : r;
        else if (second_moment) /* positive, away from 0: AdamW divides by its root */
            x[i] = 0.01 + 0.01 * fabs(r);
        else
            x[i] = 0.1 * r + (op->opcode == MOE_OP_PARAM && v->type.rank == 1 ? 1.0 : 0.0);
    }
    return moe_eval_set_f(ev, v, x, n);
}

MoeStatus moe_eval_fill(MoeEval *ev, const MoeGraph *g, uint64_t seed) {
    MoeArena *a = moe_arena_create();
    MoeStatus st = NULL;
    for (size_t i = 0; i < g->n_ops && !st; i++) {
        const MoeOp *op = g->ops[i];
        if (op->opcode != MOE_OP_INPUT && op->opcode != MOE_OP_PARAM && op->opcode != MOE_OP_STATE)
            continue;
        const MoeValue *v = op->results[0];
        uint64_t stream = moe_hash_name(moe_attr_s(op, "name"));
        if (op->opcode == MOE_OP_STATE)
            stream ^= moe_hash_name(moe_attr_s(op, "of")) * 3;
        if (v->type.kind == MOE_TYPE_SEGS)
            st = fill_segs(ev, g, v, a);
        else if (v->type.dtype == MOE_I32)
            st = fill_ids(ev, g, v, seed, stream, a);
        else
            st = fill_floats(ev, g, v, seed, stream, a);
    }
    moe_arena_destroy(a);
    return st;
}
