/* Building graphs: modules, ops, attributes, declarations. Rewriting is in ir/rewrite.c. */
#include "ir/graph.h"

#include <stdarg.h>
#include <string.h>

#include "base/assert.h"
#include "ir/infer.h"
#include "ir/internal.h"
#include "ir/numbers.h"

static const char *const phase_names[MOE_N_PHASES] = {
#define X(id, name) [MOE_PHASE_##id] = #name,
    MOE_PHASES(X)
#undef X
};

const char *moe_phase_name(MoePhase p) {
    MOE_ASSERT((unsigned)p < MOE_N_PHASES, "phase %d", (int)p);
    return phase_names[p];
}

MoeModule *moe_module_create(void) {
    MoeArena *arena = moe_arena_create();
    MoeModule *m = MOE_NEW(arena, MoeModule);
    m->arena = arena;
    return m;
}

void moe_module_destroy(MoeModule *m) {
    if (m)
        moe_arena_destroy(m->arena); /* m itself lives there */
}

MoeGraph *moe_module_add_graph(MoeModule *m, const char *name) {
    MoeGraph *g = MOE_NEW(m->arena, MoeGraph);
    g->arena = m->arena;
    g->name = moe_arena_strdup(m->arena, name);
    g->phase = MOE_PHASE_FORWARD;
    g->layer = -1;
    MOE_PUSH(m->arena, m->graphs, m->n_graphs, m->cap_graphs, g);
    return g;
}

MoeGraph *moe_module_find(const MoeModule *m, const char *name) {
    for (size_t i = 0; i < m->n_graphs; i++) {
        if (strcmp(m->graphs[i]->name, name) == 0)
            return m->graphs[i];
    }
    return NULL;
}

int moe_graph_leaf_rows(const MoeGraph *g) {
    return g->leaf_rows ? g->leaf_rows : MOE_LEAF_ROWS;
}

int moe_module_leaf_rows(const MoeModule *m) {
    return m->n_graphs ? moe_graph_leaf_rows(m->graphs[0]) : MOE_LEAF_ROWS;
}

bool moe_leaf_rows_valid(int64_t rows) {
    return rows >= MOE_MIN_LEAF_ROWS && rows <= MOE_MAX_LEAF_ROWS && (rows & (rows - 1)) == 0;
}

/* ---- attributes ---- */

MoeAttr moe_ai(const char *key, int64_t v) {
    return (MoeAttr){.key = key, .type = 'i', .i = v};
}

MoeAttr moe_af(const char *key, double v) {
    return (MoeAttr){.key = key, .type = 'f', .f = v};
}

MoeAttr moe_as(const char *key, const char *v) {
    return (MoeAttr){.key = key, .type = 's', .s = v};
}

const MoeAttr *moe_attr(const MoeOp *op, const char *key) {
    for (int i = 0; i < op->n_attrs; i++) {
        if (strcmp(op->attrs[i].key, key) == 0)
            return &op->attrs[i];
    }
    return NULL;
}

static const MoeAttr *need_attr(const MoeOp *op, const char *key) {
    const MoeAttr *a = moe_attr(op, key);
    MOE_ASSERT(a != NULL, "op %s has no attribute %s", moe_op_info(op->opcode)->name, key);
    return a;
}

int64_t moe_attr_i(const MoeOp *op, const char *key) {
    return need_attr(op, key)->i;
}

int64_t moe_attr_i_or(const MoeOp *op, const char *key, int64_t otherwise) {
    const MoeAttr *a = moe_attr(op, key);
    return a ? a->i : otherwise;
}

double moe_attr_f(const MoeOp *op, const char *key) {
    return need_attr(op, key)->f;
}

const char *moe_attr_s(const MoeOp *op, const char *key) {
    return need_attr(op, key)->s;
}

void moe_op_normalise_attrs(MoeOp *op) {
    MoeAttrDecl decls[MOE_MAX_ATTRS];
    int n_decls = moe_op_attr_decls(op->opcode, decls), at = 0;
    for (int d = 0; d < n_decls; d++) {
        for (int i = at; i < op->n_attrs; i++) {
            MoeAttr a = op->attrs[i];
            if (strcmp(a.key, decls[d].key) != 0)
                continue;
            if (a.type == 'i' && decls[d].type == 'b')
                a.type = 'b';
            if (a.type == 'i' && decls[d].type == 'f') {
                a.type = 'f';
                a.f = (double)a.i;
            }
            memmove(&op->attrs[at + 1], &op->attrs[at], (size_t)(i - at) * sizeof a);
            op->attrs[at++] = a;
        }
    }
}

void moe_attr_set_i(MoeGraph *g, MoeOp *op, const char *key, int64_t v) {
    for (int i = 0; i < op->n_attrs; i++) {
        if (strcmp(op->attrs[i].key, key) == 0) {
            op->attrs[i].i = v;
            return;
        }
    }
    char type = moe_op_attr_type(op->opcode, key, NULL);
    MOE_ASSERT(type == 'i' || type == 'b', "op %s takes no integer attribute %s",
               moe_op_info(op->opcode)->name, key);
    MoeAttr *attrs = MOE_NEW_N(g->arena, MoeAttr, op->n_attrs + 1);
    if (op->n_attrs)
        memcpy(attrs, op->attrs, (size_t)op->n_attrs * sizeof *attrs);
    attrs[op->n_attrs] = moe_ai(moe_arena_strdup(g->arena, key), v);
    op->attrs = attrs;
    op->n_attrs++;
    moe_op_normalise_attrs(op);
}

/* ---- ops ---- */

MoeOp *moe_op_new(MoeGraph *g, MoeOpcode opcode, MoeValue *const *operands, int n_operands,
                  const MoeAttr *attrs, int n_attrs) {
    const MoeOpInfo *info = moe_op_info(opcode);
    MoeOp *op = MOE_NEW(g->arena, MoeOp);
    op->opcode = opcode;
    op->phase = g->phase;
    op->group = -1;
    op->n_operands = n_operands;
    op->operands = MOE_NEW_N(g->arena, MoeValue *, n_operands);
    for (int i = 0; i < n_operands; i++)
        op->operands[i] = operands[i];
    op->n_results = info->n_out;
    op->results = MOE_NEW_N(g->arena, MoeValue *, info->n_out);
    for (int i = 0; i < info->n_out; i++) {
        MoeValue *v = MOE_NEW(g->arena, MoeValue);
        v->def = op;
        v->result = i;
        v->id = g->n_values++;
        op->results[i] = v;
    }
    op->n_attrs = n_attrs;
    op->attrs = MOE_NEW_N(g->arena, MoeAttr, n_attrs);
    for (int i = 0; i < n_attrs; i++) {
        op->attrs[i] = attrs[i];
        op->attrs[i].key = moe_arena_strdup(g->arena, attrs[i].key);
        if (attrs[i].type == 's')
            op->attrs[i].s = moe_arena_strdup(g->arena, attrs[i].s ? attrs[i].s : "");
    }
    moe_op_normalise_attrs(op);
    return op;
}

/* Types a new op and appends it; without err, failing is our bug. */
static MoeOp *finish_op(MoeGraph *g, MoeOp *op, const MoeType *result_types, const char **err) {
    for (int i = 0; result_types && i < op->n_results; i++)
        op->results[i]->type = result_types[i];
    if (!result_types && op->opcode == MOE_OP_CONST)
        op->results[0]->type = moe_type_1d(MOE_F32, 1);
    const char *problem = moe_infer(g, op);
    if (err)
        *err = problem;
    if (problem) {
        MOE_ASSERT(err != NULL, "building op %s in graph %s: %s", moe_op_info(op->opcode)->name,
                   g->name, problem);
        g->n_values -= op->n_results; /* they were the last given */
        return NULL;
    }
    moe_graph_append(g, op);
    return op;
}

MoeOp *moe_op_build_v(MoeGraph *g, MoeOpcode opcode, MoeValue *const *operands, int n_operands,
                      const MoeAttr *attrs, int n_attrs, const MoeType *result_types,
                      const char **err) {
    MoeOp *op = moe_op_new(g, opcode, operands, n_operands, attrs, n_attrs);
    if (g->layer >= 0 && !moe_attr(op, "layer"))
        moe_attr_set_i(g, op, "layer", g->layer);
    return finish_op(g, op, result_types, err);
}

static MoeOp *build_va(MoeGraph *g, MoeOpcode opcode, MoeValue *const *operands, int n_operands,
                       va_list ap) {
    MoeAttr attrs[MOE_MAX_ATTRS];
    int n = 0;
    for (MoeAttr a = va_arg(ap, MoeAttr); a.key; a = va_arg(ap, MoeAttr)) {
        MOE_ASSERT(n < MOE_MAX_ATTRS, "op %s: too many attributes (is MOE_END missing?)",
                   moe_op_info(opcode)->name);
        attrs[n++] = a;
    }
    return moe_op_build_v(g, opcode, operands, n_operands, attrs, n, NULL, NULL);
}

MoeOp *moe_op_build(MoeGraph *g, MoeOpcode opcode, MoeValue *const *operands, int n_operands, ...) {
    va_list ap;
    va_start(ap, n_operands);
    MoeOp *op = build_va(g, opcode, operands, n_operands, ap);
    va_end(ap);
    return op;
}

MoeValue *moe_build(MoeGraph *g, MoeOpcode opcode, MoeValue *const *operands, int n_operands, ...) {
    va_list ap;
    va_start(ap, n_operands);
    MoeOp *op = build_va(g, opcode, operands, n_operands, ap);
    va_end(ap);
    MOE_ASSERT(op->n_results > 0, "op %s has no result", moe_op_info(opcode)->name);
    return op->results[0];
}

MoeValue *moe_build1(MoeGraph *g, MoeOpcode opcode, MoeValue *a) {
    return moe_build(g, opcode, (MoeValue *[]){a}, 1, MOE_END);
}

MoeValue *moe_build2(MoeGraph *g, MoeOpcode opcode, MoeValue *a, MoeValue *b) {
    return moe_build(g, opcode, (MoeValue *[]){a, b}, 2, MOE_END);
}

MoeValue *moe_build_convert(MoeGraph *g, MoeValue *a, MoeDtype to) {
    if (a->type.kind == MOE_TYPE_TENSOR && a->type.dtype == to)
        return a;
    return moe_build(g, MOE_OP_CONVERT, (MoeValue *[]){a}, 1, moe_as("to", moe_dtype_name(to)),
                     MOE_END);
}

/* ---- declarations ---- */

static bool name_taken(const MoeGraph *g, const char *name) {
    for (size_t i = 0; i < g->n_ops; i++) {
        for (int r = 0; r < g->ops[i]->n_results; r++) {
            const char *other = g->ops[i]->results[r]->name;
            if (other && strcmp(other, name) == 0)
                return true;
        }
    }
    return false;
}

MoeValue *moe_build_input(MoeGraph *g, const char *name, MoeType type) {
    MoeAttr attr = moe_as("name", name);
    MoeValue *v = moe_op_build_v(g, MOE_OP_INPUT, NULL, 0, &attr, 1, &type, NULL)->results[0];
    /* The value takes the input's name where the text form can spell it. */
    if (moe_value_name_valid(name) && !name_taken(g, name))
        v->name = moe_arena_strdup(g->arena, name);
    return v;
}

MoeValue *moe_build_const(MoeGraph *g, double value) {
    return moe_build(g, MOE_OP_CONST, NULL, 0, moe_af("value", value), MOE_END);
}

void moe_build_output(MoeGraph *g, const char *name, MoeValue *v) {
    moe_op_build(g, MOE_OP_OUTPUT, &v, 1, moe_as("name", name), MOE_END);
}

MoeOp *moe_op_clone(MoeGraph *g, const MoeOp *op, MoeValue *const *operands) {
    MoeOp *copy = moe_op_new(g, op->opcode, operands, op->n_operands, op->attrs, op->n_attrs);
    copy->loc = op->loc;
    if (moe_op_info(op->opcode)->kind != MOE_KIND_DECL || op->n_results == 0)
        return finish_op(g, copy, NULL, NULL);
    return finish_op(g, copy, &op->results[0]->type, NULL); /* declarations carry their type */
}

int64_t moe_segs_expected_rows(const MoeValue *segs, int64_t capacity) {
    const char *key = NULL;
    if (segs->def->opcode == MOE_OP_SEND_PLAN)
        key = "expect";
    else if (segs->def->opcode == MOE_OP_EXPERT_PLAN)
        key = segs->result == 0 ? "expect_recv" : "expect_rows";
    else if (segs->def->opcode == MOE_OP_ROOT_PLAN && segs->result == 1)
        key = "expect";
    int64_t n = key ? moe_attr_i(segs->def, key) : capacity;
    return n < capacity ? n : capacity;
}

int64_t moe_value_expected_elements(const MoeValue *v) {
    int64_t n = moe_type_elements(&v->type);
    const MoeDim *rows = &v->type.dims[0];
    if (v->type.kind != MOE_TYPE_TENSOR || !rows->seg || rows->size < 1)
        return n;
    return n / rows->size * moe_segs_expected_rows(rows->seg, rows->size);
}

int64_t moe_value_expected_bytes(const MoeValue *v) {
    return moe_value_expected_elements(v) * moe_dtype_bytes(v->type.dtype);
}
