/* Names of steps, for people: from the parameter that a step works with, else from its ops. */
#include <stdio.h>
#include <string.h>
#include "base/str.h"
#include "passes/group.h"
#include "passes/offload.h"
#include "passes/plan_json.h"

static MoeKind kind_of(const MoeOp *op) {
    return moe_op_info(op->opcode)->kind;
}

/* The parameter that v is, or is a converted copy or gathered from the ranks of. */
static const MoeOp *param_of(const MoeValue *v) {
    while (v->def->opcode == MOE_OP_CONVERT || v->def->opcode == MOE_OP_ALL_GATHER ||
           v->def->opcode == MOE_OP_WAIT || v->def->opcode == MOE_OP_COPY_EXPERTS)
        v = v->def->operands[0];
    return v->def->opcode == MOE_OP_PARAM ? v->def : NULL;
}

void moe_plan_short_name(const MoeOp *param, MoeStr *out) {
    const char *s = moe_attr_s(param, "name");
    if (strncmp(s, "model.", 6) == 0)
        s += 6;
    size_t n = strlen(s);
    if (n > 7 && strcmp(s + n - 7, ".weight") == 0)
        n -= 7;
    for (size_t i = 0; i < n; i++) {
        if (s[i] == '.' && s[i + 1] == '*')
            i++; /* the dot behind the star stays */
        else
            moe_str_putc(out, s[i]);
    }
}

static const char *last_part(const char *s) {
    const char *dot = strrchr(s, '.');
    return dot ? dot + 1 : s;
}

static bool is_plain(const MoeOp *op) {
    return kind_of(op) == MOE_KIND_EW || kind_of(op) == MOE_KIND_ROW;
}

/* The op that gives the group its kind. */
static const MoeOp *anchor(const MoeGroup *g) {
    const MoeOp *best = g->ops[0];
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        if (kind_of(op) == MOE_KIND_GEMM || kind_of(op) == MOE_KIND_WGRAD)
            return op;
        if (kind_of(best) == MOE_KIND_EW && kind_of(op) == MOE_KIND_ROW)
            best = op;
    }
    return best;
}

const char *moe_plan_step_kind(const MoeGroup *g) {
    if (g->ops[0]->opcode == MOE_OP_WAIT)
        return "wait";
    return moe_kind_name(kind_of(anchor(g)));
}

int64_t moe_plan_step_layer(const MoeGroup *g) {
    int64_t layer = moe_attr_i_or(anchor(g), "layer", -1);
    for (size_t i = 0; i < g->n_ops && layer < 0; i++)
        layer = moe_attr_i_or(g->ops[i], "layer", -1);
    return layer;
}

/* Distinct parameters that the group reads, at most two. */
static int params_read(const MoeGroup *g, const MoeOp *found[2]) {
    int n = 0;
    for (size_t i = 0; i < g->n_inputs && n < 2; i++) {
        const MoeOp *p = param_of(g->inputs[i]);
        if (p && (n == 0 || found[0] != p))
            found[n++] = p;
    }
    return n;
}

/* Whether the step only repeats a part of the forward phase: nothing of the backward phase goes in. */
static bool is_again(const MoeGroup *g) {
    for (size_t i = 0; i < g->n_inputs; i++) {
        const MoeOp *d = moe_offload_origin(g->inputs[i])->def;
        if (kind_of(d) != MOE_KIND_DECL && d->phase == MOE_PHASE_BACKWARD)
            return false;
    }
    return true;
}

/* What the step does with its parameter. */
static const char *suffix(const MoeGroup *g) {
    const MoeOp *a = anchor(g);
    if (g->ops[0]->phase == MOE_PHASE_UPDATE)
        return ".update";
    if (g->ops[0]->phase != MOE_PHASE_BACKWARD)
        return "";
    if (a->opcode ==
        MOE_OP_MATMUL) /* y = x w^T: its gradient is dy w; the same form again is computed again */
        return moe_attr_i(a, "tb") ? ".again" : ".dx";
    return is_again(g) ? ".again" : ".grad";
}

static void name_by_ops(const MoeGroup *g, MoeStr *out) {
    int64_t layer = moe_plan_step_layer(g);
    if (layer >= 0)
        moe_str_printf(out, "layers.%lld.", (long long)layer);
    const MoeOp *a = anchor(g);
    if (!is_plain(a)) {
        moe_str_append(out, moe_op_info(a->opcode)->name);
        return;
    }
    size_t start = out->len;
    int n = 0;
    for (size_t i = 0; i < g->n_ops && n < 4; i++) {
        const char *name = moe_op_info(g->ops[i]->opcode)->name;
        if (out->data && strstr(moe_str_c(out) + start, name))
            continue;
        moe_str_printf(out, "%s%s", n ? "+" : "", name);
        n++;
    }
}

const char *moe_plan_step_name(const MoeGroup *g, const MoeOp *const *gradients, MoeArena *a) {
    if (!moe_group_has_kernel(g))
        return moe_plan_comm_name(g, gradients, a);
    MoeStr s = {0};
    const MoeOp *found[2] = {NULL, NULL}, *at = anchor(g);
    const char *tail = "";
    int n = 0;
    if (at->opcode == MOE_OP_SUM_SQUARES && (found[0] = gradients[at->operands[0]->id])) {
        n = 1;
        tail = ".norm";
    } else if (kind_of(at) == MOE_KIND_WGRAD && (found[0] = gradients[at->results[0]->id])) {
        n = 1;
        tail = ".dw";
    } else {
        n = params_read(g, found);
        tail = suffix(g);
    }
    if (n == 0) {
        name_by_ops(g, &s);
    } else {
        moe_plan_short_name(found[0], &s);
        if (n == 2 && at->opcode == MOE_OP_MATMUL) {
            MoeStr other = {0};
            moe_plan_short_name(found[1], &other);
            moe_str_printf(&s, "+%s", last_part(moe_str_c(&other)));
            moe_str_free(&other);
        }
        moe_str_append(&s, tail);
    }
    const char *name = moe_arena_strdup(a, moe_str_c(&s));
    moe_str_free(&s);
    return name;
}
