/* Tensor parallelism: which dim of each parameter is divided over TP ranks. In: the logical graphs. Out: tp_dim.
 *
 * A matmul whose rows are made elementwise, by rope or by attention from nothing but other matmuls' results is the second of
 * a pair: the first are divided by columns (q, k, v; gate, up), the second by rows (o; down), and its result is a term of a
 * sum over TP ranks (Shoeybi et al. 2019). Heads and widths must divide. Tables of the vocabulary (embedding, head of the
 * loss) are divided by rows where they divide; else every TP rank has them whole. */
#include "passes/shard_build.h"

#include "base/assert.h"

typedef struct {
    const MoeGraph *g;
    const MoeMesh *mesh;
    MoeShardParams *p;
    const MoeOp **firsts; /* matmuls behind the rows being looked at */
    size_t n_firsts;
    const MoeOp *uneven; /* attention whose heads do not divide; NULL */
    bool *seen;          /* by value id */
    MoeArena *a;
} Search;

static MoeShardParam *param_behind(const Search *s, const MoeValue *v) {
    while (v->def->opcode == MOE_OP_CONVERT)
        v = v->def->operands[0];
    return v->def->opcode == MOE_OP_PARAM
               ? (MoeShardParam *)moe_shard_param(s->p, moe_attr_s(v->def, "name"))
               : NULL;
}

static bool divides(const Search *s, int64_t n) {
    return n % s->mesh->tp == 0;
}

/* Whether all of v's columns come from matmuls with parameters; these are noted. */
static bool from_matmuls(Search *s, const MoeValue *v) {
    const MoeOp *op = v->def;
    if (s->seen[v->id])
        return true;
    s->seen[v->id] = true;
    if (op->opcode == MOE_OP_MATMUL) {
        s->firsts[s->n_firsts++] = op;
        return param_behind(s, op->operands[1]) != NULL;
    }
    bool attention = op->opcode == MOE_OP_ATTENTION;
    if (attention &&
        !(divides(s, moe_attr_i(op, "heads")) && divides(s, moe_attr_i(op, "kv_heads"))))
        s->uneven = op;
    bool through = attention || op->opcode == MOE_OP_ROPE || op->opcode == MOE_OP_SILU ||
                   (moe_op_info(op->opcode)->kind == MOE_KIND_EW && op->opcode != MOE_OP_BROADCAST);
    if (!through)
        return false;
    for (int i = 0; i < op->n_operands; i++) {
        const MoeType *t = &op->operands[i]->type;
        bool wide = attention || moe_type_cols(t) == moe_type_cols(&v->type);
        if (wide && (t->rank != 2 || !from_matmuls(s, op->operands[i])))
            return false;
    }
    return true;
}

static MoeStatus divide(MoeShardParam *p, int dim, const MoeMesh *mesh, const char *what) {
    int64_t n = p->whole.dims[dim].size;
    if (p->tp_dim >= 0 && p->tp_dim != dim)
        return moe_error(
            MOE_E_INPUT,
            "shard: parameter %s would have to be divided over tensor parallel ranks along "
            "dims %d and %d",
            p->name, p->tp_dim, dim);
    if (n % mesh->tp)
        return moe_error(MOE_E_MISUSE,
                         "tensor parallel degree %d does not divide the %s of %lld (%s)", mesh->tp,
                         what, (long long)n, p->name);
    p->tp_dim = dim;
    return NULL;
}

/* Whether nobody else reads the columns that would be divided: what reads them gives such columns again, or is a second
 * matmul itself, or sums them up in a row. */
static bool read_by_pair_alone(const Search *s) {
    for (size_t i = 0; i < s->g->n_ops; i++) {
        const MoeOp *op = s->g->ops[i];
        bool reads = false;
        for (int k = 0; k < op->n_operands && op->phase == MOE_PHASE_FORWARD; k++)
            reads |= s->seen[op->operands[k]->id];
        if (!reads || op->opcode == MOE_OP_ROW_SUM)
            continue;
        bool second = op->opcode == MOE_OP_MATMUL && s->seen[op->operands[0]->id] &&
                      param_behind(s, op->operands[1]);
        bool gives = op->n_results > 0 && s->seen[op->results[0]->id];
        if (!second && !gives)
            return false;
    }
    return true;
}

/* Dims of a matmul's weight: b is [n,k] if tb, else [k,n], behind the experts if grouped. */
static int weight_dim(const MoeOp *matmul, bool columns) {
    int first = (int)moe_attr_i(matmul, "grouped");
    return first + (moe_attr_i(matmul, "tb") == columns ? 0 : 1);
}

static MoeStatus divide_pair(Search *s, const MoeOp *second) {
    MoeShardParam *w = param_behind(s, second->operands[1]);
    s->n_firsts = 0;
    s->uneven = NULL;
    for (int i = 0; i < s->g->n_values; i++)
        s->seen[i] = false;
    if (!w || !from_matmuls(s, second->operands[0]) || !s->n_firsts || !read_by_pair_alone(s))
        return NULL;
    if (s->uneven)
        return moe_error(MOE_E_MISUSE,
                         "tensor parallel degree %d does not divide %lld attention heads and %lld "
                         "key-value heads (%s)",
                         s->mesh->tp, (long long)moe_attr_i(s->uneven, "heads"),
                         (long long)moe_attr_i(s->uneven, "kv_heads"), w->name);
    for (size_t i = 0; i < s->n_firsts; i++)
        MOE_TRY(divide(param_behind(s, s->firsts[i]->operands[1]), weight_dim(s->firsts[i], true),
                       s->mesh, "width"));
    return divide(w, weight_dim(second, false), s->mesh, "width");
}

/* A table of the vocabulary. */
static void divide_table(Search *s, const MoeValue *table) {
    MoeShardParam *p = param_behind(s, table);
    if (!p || p->tp_dim >= 0 || !divides(s, p->whole.dims[0].size))
        return;
    p->tp_dim = 0;
    p->table = true;
}

static MoeStatus search(Search *s) {
    for (size_t i = 0; i < s->g->n_ops; i++) {
        const MoeOp *op = s->g->ops[i];
        if (op->phase != MOE_PHASE_FORWARD)
            continue;
        if (op->opcode == MOE_OP_MATMUL)
            MOE_TRY(divide_pair(s, op));
    }
    return NULL;
}

static void search_tables(Search *s) {
    for (size_t i = 0; i < s->g->n_ops; i++) {
        const MoeOp *op = s->g->ops[i];
        if (op->opcode == MOE_OP_EMBEDDING)
            divide_table(s, op->operands[0]);
        if (op->opcode == MOE_OP_LINEAR_CROSS_ENTROPY ||
            op->opcode == MOE_OP_LINEAR_CROSS_ENTROPY_GRAD)
            divide_table(s, op->operands[1]);
    }
}

MoeStatus moe_shard_params_tp(const MoeModule *m, const MoeMesh *mesh, MoeArena *a,
                              MoeShardParams *p) {
    MoeStatus st = NULL;
    for (int tables = 0; tables < 2 && !st; tables++)
        for (size_t i = 0; i < m->n_graphs && !st; i++) {
            Search s = {.g = m->graphs[i], .mesh = mesh, .p = p, .a = a};
            s.firsts = MOE_NEW_N(a, const MoeOp *, s.g->n_ops);
            s.seen = MOE_NEW_N(a, bool, s.g->n_values);
            if (tables)
                search_tables(&s);
            else
                st = search(&s);
        }
    if (st)
        return st;
    for (size_t i = 0; i < p->n; i++)
        if (p->items[i].tp_dim >= 0)
            return NULL;
    return moe_error(
        MOE_E_MISUSE,
        "tensor parallel degree %d, but the model has neither attention nor an MLP of pairs "
        "of matmuls to divide",
        mesh->tp);
}
