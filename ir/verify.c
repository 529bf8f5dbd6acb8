/* The verifier. In: a module, after the parser or a pass. Out: true, or every broken invariant in
 * the diagnostics. Checked in this order, because each step relies on those before: structure (ids,
 * definitions before uses), names, then each op by its own shape rule, then what spans ops (groups,
 * assignments, names of inputs and outputs). */
#include "ir/verify.h"

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "ir/infer.h"
#include "ir/internal.h"
#include "ir/text.h"

#define MAX_RESULTS 8

typedef struct {
    const MoeGraph *g;
    MoeDiag *d;
    MoeArena *scratch;
    const MoeValue **defined; /* by id */
    bool *assigned;           /* by id */
    MoeNameMap value_names, inputs, states, outputs, groups;
} Verifier;

/* Reports at the op's place in the text where that is shown, else with the op itself. */
static void report(Verifier *v, const MoeOp *op, const char *fmt, ...) MOE_PRINTF(3, 4);
static void report(Verifier *v, const MoeOp *op, const char *fmt, ...) {
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (v->d->source && op->loc.line > 0) {
        moe_diag_error(v->d, op->loc, "graph @%s: %s", v->g->name, text);
        return;
    }
    MoeStr line = {0};
    moe_print_op(op, &line);
    moe_diag_error(v->d, (MoeLoc){0, 0}, "graph @%s: %s, in: %.400s", v->g->name, text,
                   moe_str_c(&line));
    moe_str_free(&line);
}

static bool is_defined(const Verifier *v, const MoeValue *x) {
    return x && x->id >= 0 && x->id < v->g->n_values && v->defined[x->id] == x;
}

static bool check_results(Verifier *v, const MoeOp *op) {
    if (op->n_results != moe_op_info(op->opcode)->n_out) {
        report(v, op, "%d results instead of %d", op->n_results, moe_op_info(op->opcode)->n_out);
        return false;
    }
    for (int i = 0; i < op->n_results; i++) {
        const MoeValue *x = op->results[i];
        if (x->def != op || x->result != i) {
            report(v, op, "result %d does not point back to its op", i);
            return false;
        }
        if (x->id < 0 || x->id >= v->g->n_values || v->defined[x->id]) {
            report(v, op, "result %d has the id %d, out of range or taken", i, x->id);
            return false;
        }
        v->defined[x->id] = x;
    }
    return true;
}

/* Operands, and the segs that types name, are defined above. Own results are defined by now: result
 * 1 may be ragged over result 0. */
static bool check_uses(Verifier *v, const MoeOp *op) {
    bool ok = true;
    for (int i = 0; i < op->n_operands; i++) {
        bool own = op->operands[i] && op->operands[i]->def == op;
        if (!is_defined(v, op->operands[i]) || own) {
            report(v, op, "operand %d is not defined by an earlier op", i);
            ok = false;
        }
    }
    for (int i = 0; i < op->n_results; i++) {
        const MoeType *t = &op->results[i]->type;
        for (int k = 0; t->kind == MOE_TYPE_TENSOR && k < t->rank && k < MOE_MAX_RANK; k++) {
            if (t->dims[k].seg && !is_defined(v, t->dims[k].seg)) {
                report(v, op, "the segs value of result %d is not defined above", i);
                ok = false;
            }
        }
    }
    return ok;
}

static void check_value_names(Verifier *v, const MoeOp *op) {
    for (int i = 0; i < op->n_results; i++) {
        MoeValue *x = op->results[i];
        if (!x->name)
            continue;
        if (!moe_value_name_valid(x->name))
            report(v, op, "'%.60s' cannot be the name of a value", x->name);
        else if (!moe_names_add(&v->value_names, x->name, x))
            report(v, op, "two values are named %%%.60s", x->name);
    }
}

/* Runs the shape rule again and compares; the types are put back as they were. */
static bool check_types(Verifier *v, MoeOp *op) {
    MoeType before[MAX_RESULTS];
    MOE_ASSERT(op->n_results <= MAX_RESULTS, "op %s", moe_op_info(op->opcode)->name);
    for (int i = 0; i < op->n_results; i++)
        before[i] = op->results[i]->type;
    MoeGraph scratch_graph = *v->g; /* messages go to the scratch arena */
    scratch_graph.arena = v->scratch;
    const char *problem = moe_infer(&scratch_graph, op);
    if (problem)
        report(v, op, "%s", problem);
    for (int i = 0; i < op->n_results; i++) {
        MoeType inferred = op->results[i]->type;
        op->results[i]->type = before[i];
        if (problem || moe_type_equal(&before[i], &inferred))
            continue;
        MoeStr want = {0};
        moe_type_print(&inferred, &want);
        report(v, op, "the type of result %d should be %s", i, moe_str_c(&want));
        moe_str_free(&want);
        problem = "type";
    }
    return !problem;
}

/* Names that the runtime looks up. */
static void check_interface(Verifier *v, MoeOp *op) {
    if (op->opcode == MOE_OP_INPUT || op->opcode == MOE_OP_PARAM) {
        if (!moe_names_add(&v->inputs, moe_attr_s(op, "name"), op))
            report(v, op, "two inputs or params are named \"%.80s\"", moe_attr_s(op, "name"));
    } else if (op->opcode == MOE_OP_STATE) {
        const char *key =
            moe_arena_printf(v->scratch, "%s\n%s", moe_attr_s(op, "of"), moe_attr_s(op, "name"));
        if (!moe_names_add(&v->states, key, op))
            report(v, op, "two states \"%.80s\" of \"%.80s\"", moe_attr_s(op, "name"),
                   moe_attr_s(op, "of"));
    } else if (op->opcode == MOE_OP_OUTPUT) {
        if (!moe_names_add(&v->outputs, moe_attr_s(op, "name"), op))
            report(v, op, "two outputs are named \"%.80s\"", moe_attr_s(op, "name"));
    }
}

/* A param or state is assigned at most once a step. */
static void check_assign(Verifier *v, const MoeOp *op) {
    if (op->opcode != MOE_OP_ASSIGN)
        return;
    int id = op->operands[0]->id;
    if (v->assigned[id])
        report(v, op, "this value is assigned twice");
    v->assigned[id] = true;
}

/* What was offloaded is outside the memory that ops read: it can only be waited for, then loaded. */
static void check_store(Verifier *v, const MoeOp *op) {
    for (int i = 0; i < op->n_operands; i++) {
        const MoeOp *d = op->operands[i]->def;
        bool waited = d->opcode == MOE_OP_WAIT && d->operands[0]->def->opcode == MOE_OP_OFFLOAD;
        if ((d->opcode == MOE_OP_OFFLOAD && op->opcode != MOE_OP_WAIT) ||
            (waited && op->opcode != MOE_OP_LOAD))
            report(v, op, "operand %d was offloaded: only a load, after a wait, may read it", i);
    }
}

/* A group is one run of consecutive ops of one phase. */
static void check_group(Verifier *v, MoeOp *op, const MoeOp *before) {
    if (op->group < 0)
        return;
    if (before && before->group == op->group) {
        if (before->phase != op->phase)
            report(v, op, "kernel group %d reaches over two phases", op->group);
        return;
    }
    if (!moe_names_add(&v->groups, moe_arena_printf(v->scratch, "%d", op->group), op))
        report(v, op, "the ops of kernel group %d are not consecutive", op->group);
}

/* False if later checks cannot rely on this op. */
static bool check_op(Verifier *v, MoeOp *op, const MoeOp *before) {
    if ((unsigned)op->opcode >= MOE_N_OPS || (unsigned)op->phase >= MOE_N_PHASES) {
        moe_diag_error(v->d, op->loc, "graph @%s: an op with opcode %d and phase %d", v->g->name,
                       (int)op->opcode, (int)op->phase);
        return false;
    }
    if (before && op->phase < before->phase)
        report(v, op, "an op of phase %s after one of phase %s", moe_phase_name(op->phase),
               moe_phase_name(before->phase));
    if (!check_results(v, op) || !check_uses(v, op))
        return false;
    check_value_names(v, op);
    if (!check_types(v, op))
        return true;
    check_interface(v, op);
    check_assign(v, op);
    check_store(v, op);
    check_group(v, op, before);
    return true;
}

bool moe_verify_graph(const MoeGraph *g, MoeDiag *d) {
    size_t errors = d->n_errors;
    MoeArena *scratch = moe_arena_create();
    Verifier v = {.g = g, .d = d, .scratch = scratch};
    v.defined = MOE_NEW_N(scratch, const MoeValue *, g->n_values + 1);
    v.assigned = MOE_NEW_N(scratch, bool, g->n_values + 1);
    MoeNameMap *maps[] = {&v.value_names, &v.inputs, &v.states, &v.outputs, &v.groups};
    for (size_t i = 0; i < sizeof maps / sizeof *maps; i++)
        maps[i]->arena = scratch;
    if (!moe_value_name_valid(g->name))
        moe_diag_error(d, (MoeLoc){0, 0}, "'%.60s' cannot be the name of a graph", g->name);
    /* After a broken op the ones that use it would all be reported: stop there. */
    size_t i = 0;
    while (i < g->n_ops && check_op(&v, g->ops[i], i ? g->ops[i - 1] : NULL))
        i++;
    moe_arena_destroy(scratch);
    return d->n_errors == errors;
}

bool moe_verify(const MoeModule *m, MoeDiag *d) {
    bool ok = true;
    for (size_t i = 0; i < m->n_graphs; i++) {
        if (moe_module_find(m, m->graphs[i]->name) != m->graphs[i]) {
            moe_diag_error(d, (MoeLoc){0, 0}, "two graphs are named @%.60s", m->graphs[i]->name);
            ok = false;
        }
        ok &= moe_verify_graph(m->graphs[i], d);
    }
    return ok;
}

MoeStatus moe_verify_after(const MoeModule *m, const char *pass) {
    char where[96];
    snprintf(where, sizeof where, "after pass %s", pass);
    MoeDiag d = {.file = where};
    MoeStatus st = NULL;
    if (!moe_verify(m, &d))
        st = moe_error(MOE_E_INTERNAL, "the IR is broken after pass %s:\n%s", pass,
                       moe_str_c(&d.text));
    moe_diag_free(&d);
    return st;
}
