/* Compares what a module computes before and after a pass. In: a module. Out: values by name, the
 * largest difference. The random inputs are made in eval_fill.c. */
#include "passes/eval_each_internal.h"

#include <math.h>
#include <string.h>
#include "base/assert.h"
#include "passes/shard.h"

/* The interpreter does some 1e8 simple operations a second. */
#define MOST_WORK 2e9

/* Floats in f64 differ by the order of operations alone. The floor stands for tensors that are
 * exactly zero in theory (the gradient of a top-1 router): all their entries are rounding errors of
 * larger terms. */
#define TOLERANCE 1e-9
#define FLOOR     1e-12
/* An entry within rounding error of the middle of two bf16 numbers may go either way, by 2^-8 of
 * itself; what is summed from many entries sees few such flips, so 2^-6 of the largest leaves room
 * for several in a row. */
#define TOLERANCE_BF16 (1.0 / 64)

/* A rough count of the interpreter's inner loops for one op. */
static double op_work(const MoeOp *op) {
    double work = 1;
    for (int r = 0; r < op->n_results; r++)
        work += (double)moe_type_elements(&op->results[r]->type);
    const MoeType *a = op->n_operands ? &op->operands[0]->type : NULL;
    switch (moe_op_info(op->opcode)->kind) {
    case MOE_KIND_GEMM:
        return work * (double)moe_type_cols(a);
    case MOE_KIND_WGRAD: /* (n, k) results, each a sum over rows; per expert together all rows */
        return (double)a->dims[0].size * (double)moe_type_cols(a) *
               (double)moe_type_cols(&op->operands[1]->type);
    case MOE_KIND_XENT:
        return 4 * (double)a->dims[0].size * (double)moe_type_elements(&op->operands[1]->type);
    case MOE_KIND_ATTN:
    case MOE_KIND_ATTN_GRAD:
        return 4 * work * (double)moe_attr_i(op, "seq");
    case MOE_KIND_DECL:
    case MOE_KIND_EW:
    case MOE_KIND_ROW:
    case MOE_KIND_REDUCE:
    case MOE_KIND_SYNC:
    case MOE_KIND_COMM:
    case MOE_KIND_STORE:
    case MOE_KIND_ROUTE:
    case MOE_KIND_MOVE:
    case MOE_KIND_EMBED:
    case MOE_KIND_EMBED_GRAD:
    case MOE_KIND_ROPE:
    case MOE_KIND_COMPOSITE:
    case MOE_N_KINDS:
        break;
    }
    return work;
}

bool moe_snapshot_too_large(const MoeGraph *g, int n) {
    double work = 0;
    for (size_t i = 0; i < g->n_ops; i++)
        work += op_work(g->ops[i]);
    return work * n > MOST_WORK;
}

static bool has_bf16(const MoeGraph *g) {
    for (size_t i = 0; i < g->n_ops; i++)
        for (int r = 0; r < g->ops[i]->n_results; r++)
            if (g->ops[i]->results[r]->type.dtype == MOE_BF16)
                return true;
    return false;
}

MoeSnapshot *moe_snapshot_new(void) {
    MoeArena *arena = moe_arena_create();
    MoeSnapshot *s = MOE_NEW(arena, MoeSnapshot);
    s->arena = arena;
    return s;
}

void moe_snapshot_keep(MoeSnapshot *s, const MoeGraph *g, const char *name, const double *f,
                       const int32_t *i, int64_t n) {
    MoeSnapshotEntry e = {.graph = moe_arena_strdup(s->arena, g->name),
                          .name = name,
                          .given = strncmp(name, "given ", 6) == 0,
                          .rounds = has_bf16(g),
                          .n = n};
    if (f)
        e.f = moe_arena_copy(s->arena, f, (size_t)n * sizeof *f);
    else
        e.i = moe_arena_copy(s->arena, i, (size_t)n * sizeof *i);
    MOE_PUSH(s->arena, s->entries, s->n, s->cap, e);
}

const char *moe_snapshot_name(const MoeSnapshot *s, const MoeOp *op) {
    if (op->opcode == MOE_OP_OUTPUT)
        return moe_arena_printf(s->arena, "output %s", moe_attr_s(op, "name"));
    const char *what = op->opcode == MOE_OP_ASSIGN ? "new" : "given";
    const MoeOp *to = op->opcode == MOE_OP_ASSIGN ? op->operands[0]->def : op;
    const char *of = to->opcode == MOE_OP_STATE ? moe_attr_s(to, "of") : "";
    return moe_arena_printf(s->arena, "%s %s%s%s", what, moe_attr_s(to, "name"), *of ? " of " : "",
                            of);
}

const MoeSnapshotEntry *moe_snapshot_find(const MoeSnapshot *s, const char *graph,
                                          const char *name) {
    for (size_t i = 0; i < s->n; i++)
        if (strcmp(s->entries[i].graph, graph) == 0 && strcmp(s->entries[i].name, name) == 0)
            return &s->entries[i];
    return NULL;
}

static void keep_values(MoeSnapshot *s, const MoeGraph *g, const MoeEval *ev) {
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        bool given =
            op->opcode == MOE_OP_INPUT || op->opcode == MOE_OP_PARAM || op->opcode == MOE_OP_STATE;
        if (!given && op->opcode != MOE_OP_OUTPUT && op->opcode != MOE_OP_ASSIGN)
            continue;
        const MoeValue *v = given ? op->results[0] : op->operands[op->opcode == MOE_OP_ASSIGN];
        const MoeTensor *t = moe_eval_get(ev, v);
        const char *name = moe_snapshot_name(s, op);
        MOE_ASSERT(t, "eval-each: %s of graph @%s has no value after the run", name, g->name);
        moe_snapshot_keep(s, g, name, t->f, t->i, t->n);
    }
}

MoeStatus moe_snapshot_take(const MoeModule *m, uint64_t seed, MoeSnapshot **out,
                            int *out_skipped) {
    MoeSnapshot *s = moe_snapshot_new();
    MoeStatus st = NULL;
    *out_skipped = 0;
    for (size_t i = 0; i < m->n_graphs && !st; i++) {
        const MoeGraph *g = m->graphs[i];
        if (moe_snapshot_too_large(g, 1) || moe_shard_is_sharded(g)) {
            ++*out_skipped;
            continue;
        }
        MoeEval *ev = moe_eval_create(g);
        st = moe_eval_fill(ev, g, seed);
        if (!st)
            st = moe_eval_run(ev);
        if (!st)
            keep_values(s, g, ev);
        st = moe_status_prefix(st, "eval-each: graph @%s", g->name);
        moe_eval_destroy(ev);
    }
    if (st) {
        moe_snapshot_free(s);
        return st;
    }
    *out = s;
    return NULL;
}

void moe_snapshot_free(MoeSnapshot *s) {
    if (s)
        moe_arena_destroy(s->arena); /* s itself lives there */
}

static MoeStatus compare_entry(const MoeSnapshotEntry *a, const MoeSnapshotEntry *b,
                               const char *pass, double *largest) {
    if (a->n != b->n || !a->f != !b->f)
        return moe_error(MOE_E_INTERNAL,
                         "pass %s changed %s of graph @%s: %lld elements before, %lld after", pass,
                         a->name, a->graph, (long long)a->n, (long long)b->n);
    double top = 0;
    for (int64_t i = 0; a->f && i < a->n; i++)
        top = fmax(top, fabs(a->f[i])); /* fmax leaves NaN aside */
    double bound = (a->rounds || b->rounds ? TOLERANCE_BF16 : TOLERANCE) * top + FLOOR;
    for (int64_t i = 0; i < a->n; i++) {
        double x = a->f ? a->f[i] : a->i[i], y = a->f ? b->f[i] : b->i[i];
        bool same = x == y || (isnan(x) && isnan(y));
        if (!same && !(a->f && fabs(x - y) <= bound))
            return moe_error(MOE_E_INTERNAL,
                             "pass %s changed %s of graph @%s: element %lld of %lld is %.17g, was "
                             "%.17g (may differ by %.3g)",
                             pass, a->name, a->graph, (long long)i, (long long)a->n, y, x,
                             a->f ? bound : 0.0);
        if (!same && top > 0)
            *largest = fmax(*largest, fabs(x - y) / top);
    }
    return NULL;
}

MoeStatus moe_snapshot_compare(const MoeSnapshot *before, const MoeSnapshot *after,
                               const char *pass, double *out_largest, int *out_n) {
    *out_largest = 0;
    *out_n = 0;
    for (size_t i = 0; i < before->n; i++) {
        const MoeSnapshotEntry *a = &before->entries[i], *b = NULL;
        if (a->given)
            continue;
        bool ran = false; /* a graph that grew too large to run has no entry at all */
        for (size_t k = 0; k < after->n && !b; k++) {
            bool same_graph = strcmp(after->entries[k].graph, a->graph) == 0;
            ran |= same_graph;
            if (same_graph && strcmp(after->entries[k].name, a->name) == 0)
                b = &after->entries[k];
        }
        if (!b && !ran)
            continue;
        if (!b)
            return moe_error(MOE_E_INTERNAL, "pass %s lost %s of graph @%s", pass, a->name,
                             a->graph);
        MOE_TRY(compare_entry(a, b, pass, out_largest));
        ++*out_n;
    }
    return NULL;
}
