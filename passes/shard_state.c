/* States: text, the table by value, and factor rules. See shard.h. */
#include "passes/shard.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"

static const MoeShardFn rules[MOE_N_OPS] = {
#define OP(id, name, min_in, max_in, n_out, kind, attrs, infer, grad, decomp, shard, cost, doc)    \
    [MOE_OP_##id] = moe_shard_##shard,
#include "ir/ops.def"
#undef OP
};

static const char *const row_texts[] = {
#define X(id, text) text,
    MOE_ROW_SPACES(X)
#undef X
};

MoeShardState moe_shard_whole(void) {
    return (MoeShardState){.partial = -1, .slice = -1, .tp = MOE_TP_WHOLE};
}

bool moe_shard_is_whole(const MoeShardState *s) {
    return s->slots == MOE_SLOTS_NONE && s->partial < 0 && s->slice < 0 && s->tp == MOE_TP_WHOLE &&
           !s->own;
}

bool moe_shard_state_equal(const MoeShardState *a, const MoeShardState *b) {
    return a->rows == b->rows && a->slots == b->slots && a->copies == b->copies && a->division == b->division && a->partial == b->partial &&
           a->slice == b->slice && a->unit == b->unit && a->tp == b->tp && a->own == b->own;
}

const char *moe_shard_state_text(const MoeShardState *s, MoeArena *a) {
    const char *parts[7];
    int n = 0;
    if (s->own)
        parts[n++] = "a rank's own number";
    if (s->slice >= 0)
        parts[n++] =
            moe_arena_printf(a, "a slice of group %s", moe_mesh_group_name((MoeMeshGroup)s->slice));
    if (s->partial >= 0)
        parts[n++] = moe_arena_printf(a, "a term of a sum over group %s",
                                      moe_mesh_group_name((MoeMeshGroup)s->partial));
    if (s->slots != MOE_SLOTS_NONE)
        parts[n++] = s->slots == MOE_SLOTS_ALL ? "for all slots"
                     : s->copies               ? "for this rank's slots, those of copies too"
                                               : "for this rank's slots";
    if (s->tp == MOE_TP_PARTIAL)
        parts[n++] = "a term of a sum over group tp";
    else if (s->tp != MOE_TP_WHOLE)
        parts[n++] = "divided over group tp";
    if (s->rows != MOE_ROWS_NONE)
        parts[n++] = row_texts[s->rows];
    if (s->division && n < 7)
        parts[n++] = moe_arena_printf(a, "in division %d of the ranks", s->division);
    const char *text = n ? parts[0] : "whole";
    for (int i = 1; i < n; i++)
        text = moe_arena_printf(a, "%s, %s", text, parts[i]);
    return text;
}

const char *moe_shard_fail(MoeShardRules *r, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    const char *text = moe_arena_vprintf(r->a, fmt, ap);
    va_end(ap);
    return text;
}

const char *moe_shard_needs(MoeShardRules *r, const MoeOp *op, const MoeShardState *in, int i,
                            const char *expected) {
    return moe_shard_fail(r, "operand %d of %s is %s; expected %s", i,
                          moe_op_info(op->opcode)->name, moe_shard_state_text(&in[i], r->a),
                          expected);
}

/* ---- the table ---- */

const MoeShardState *moe_shard_state(const MoeShardRules *r, const MoeValue *v) {
    MOE_ASSERT(v->id < r->cap, "shard: value %d has no state", v->id);
    return &r->states[v->id];
}

static void set_state(MoeShardRules *r, const MoeValue *v, MoeShardState s) {
    if (v->id >= r->cap) {
        int cap = v->id + 1 > 2 * r->cap ? v->id + 64 : 2 * r->cap;
        MoeShardState *more = MOE_NEW_N(r->a, MoeShardState, cap);
        if (r->cap)
            memcpy(more, r->states, (size_t)r->cap * sizeof *more);
        r->states = more;
        r->cap = cap;
    }
    r->states[v->id] = s;
}

/* Groups of divisions that the mesh has not. */
static const char *check_groups(MoeShardRules *r, const MoeOp *op) {
    static const char *const keys[] = {"group", "sum", "scatter"};
    MoeMeshGroup g;
    if (moe_op_info(op->opcode)->kind != MOE_KIND_COMM)
        return NULL;
    for (int i = 0; i < 3; i++)
        if (moe_attr(op, keys[i]) && moe_mesh_group_from_name(moe_attr_s(op, keys[i]), &g) &&
            !moe_mesh_has_group(r->mesh, g))
            return moe_shard_fail(r, "%s: group %s, but the mesh has %d ranges of layers",
                                  moe_op_info(op->opcode)->name, moe_mesh_group_name(g),
                                  r->mesh->n_ranges);
    return NULL;
}

const char *moe_shard_derive(MoeShardRules *r, const MoeOp *op) {
    MoeShardState in[MOE_SHARD_MAX_IN], out[MOE_SHARD_MAX_OUT];
    MOE_ASSERT(op->n_operands <= MOE_SHARD_MAX_IN && op->n_results <= MOE_SHARD_MAX_OUT,
               "shard: %s has %d operands", moe_op_info(op->opcode)->name, op->n_operands);
    for (int i = 0; i < op->n_operands; i++)
        in[i] = *moe_shard_state(r, op->operands[i]);
    for (int i = 0; i < op->n_results; i++)
        out[i] = moe_shard_whole();
    const char *problem = check_groups(r, op);
    if (!problem)
        problem = rules[op->opcode](r, op, in, out);
    if (problem)
        return problem;
    for (int i = 0; i < op->n_results; i++) {
        const MoeType *t = &op->results[i]->type;
        if (t->kind == MOE_TYPE_TENSOR) { /* the segs say what rows are */
            const MoeValue *seg = t->rank ? t->dims[0].seg : NULL;
            const MoeShardState *of = !seg             ? NULL
                                      : seg->def == op ? &out[seg->result]
                                                       : moe_shard_state(r, seg);
            out[i].rows = of ? of->rows : MOE_ROWS_NONE;
            if (of)
                out[i].division = of->division;
        }
        set_state(r, op->results[i], out[i]);
    }
    return NULL;
}

int moe_shard_group_size(const MoeShardRules *r, MoeMeshGroup g, int division) {
    return moe_mesh_group_size(r->mesh, moe_mesh_group_in(g, division));
}

int moe_shard_slots(const MoeShardRules *r, int division, int64_t experts) {
    MoeMesh d = moe_mesh_division(r->mesh, division);
    return moe_mesh_slots(&d, (int)experts);
}

bool moe_shard_has_copies(const MoeShardRules *r, int division) {
    MoeMesh d = moe_mesh_division(r->mesh, division);
    return moe_mesh_has_copies(&d);
}

int moe_shard_rows_group(const MoeShardRules *r, MoeRowSpace rows, int division) {
    int group = -1;
    switch (rows) {
    case MOE_ROWS_TOKENS:
    case MOE_ROWS_PAIRS:
        group = MOE_GROUP_DATA;
        break;
    case MOE_ROWS_EXPERTS:
        group = (int)moe_mesh_group_in(MOE_GROUP_EXPERT_DATA, division);
        break;
    case MOE_ROWS_RECEIVED:
    case MOE_ROWS_SENT:
    case MOE_ROWS_GROUP:
    case MOE_ROWS_ROOTS:
    case MOE_ROWS_NONE:
        break;
    }
    return group >= 0 && moe_mesh_group_size(r->mesh, (MoeMeshGroup)group) > 1 ? group : -1;
}

/* ---- factor rules ---- */

typedef struct {
    char dims[MOE_MAX_RANK + 1];
    bool linear;
} Term;

/* Splits "tk,nk->tn" into terms; returns how many stand before the arrow. */
static int parse_rule(const char *rule, Term *terms, int *out_n) {
    int n = 0, n_in = -1, at = 0;
    memset(terms, 0, sizeof *terms);
    for (const char *p = rule; *p; p++) {
        if (*p == ',' || *p == '-') {
            if (*p == '-') {
                n_in = n + 1;
                p++; /* the arrow's head */
            }
            n++;
            at = 0;
            memset(&terms[n], 0, sizeof *terms);
        } else if (*p == '+') {
            terms[n].linear = true;
        } else {
            MOE_ASSERT(at < MOE_MAX_RANK, "shard rule %s", rule);
            terms[n].dims[at++] = *p;
        }
    }
    MOE_ASSERT(n_in > 0, "shard rule %s has no arrow", rule);
    *out_n = n + 1;
    return n_in;
}

static int dim_of(const Term *t, char letter) {
    const char *p = letter ? strchr(t->dims, letter) : NULL;
    return p ? (int)(p - t->dims) : -1;
}

/* The division whose slots the operands are divided by. */
static int slots_division(const MoeShardState *in, int n) {
    for (int i = 0; i < n; i++)
        if (in[i].slots == MOE_SLOTS_MINE)
            return in[i].division;
    return 0;
}

/* Whether all that is of slots has those of copies filled. */
static bool slots_with_copies(const MoeShardState *in, int n) {
    for (int i = 0; i < n; i++)
        if (in[i].slots == MOE_SLOTS_MINE && !in[i].copies)
            return false;
    return true;
}

/* The letter divided along one axis: slots over EP, or tp. dim_in(i): the divided dim of operand i, -1. */
static const char *find_letter(MoeShardRules *r, const MoeOp *op, const Term *terms, int n_in,
                               const MoeShardState *in, bool over_tp, char *out) {
    *out = 0;
    for (int i = 0; i < n_in; i++) {
        int d = over_tp ? in[i].tp : in[i].slots == MOE_SLOTS_MINE ? 0 : -1;
        if (d < 0)
            continue;
        char letter = d < (int)strlen(terms[i].dims) ? terms[i].dims[d] : '1';
        if (!islower((unsigned char)letter))
            return moe_shard_needs(r, op, in, i, over_tp ? "it whole on each TP rank" : "it whole");
        if (*out && *out != letter)
            return moe_shard_needs(r, op, in, i, "the same dim divided in every operand");
        if (!over_tp && in[i].division != slots_division(in, n_in))
            return moe_shard_needs(r, op, in, i, "slots of the same division of ranks");
        *out = letter;
    }
    for (int i = 0; *out && i < n_in; i++) {
        int d = over_tp ? in[i].tp : in[i].slots == MOE_SLOTS_MINE ? 0 : -1;
        if (dim_of(&terms[i], *out) >= 0 && dim_of(&terms[i], *out) != d)
            return moe_shard_needs(r, op, in, i,
                                   over_tp ? "it divided over group tp like the other operands"
                                           : "it for this rank's slots");
    }
    return NULL;
}

/* The operand with a letter of ragged rows that no result has; NULL. */
static const MoeShardState *summed_rows(const Term *terms, int n_in, int result, const MoeShardState *in) {
    for (int i = 0; i < n_in; i++)
        if (in[i].rows != MOE_ROWS_NONE && terms[i].dims[0] != '*' &&
            dim_of(&terms[result], terms[i].dims[0]) < 0)
            return &in[i];
    return NULL;
}

const char *moe_shard_factors(MoeShardRules *r, const MoeOp *op, const char *rule,
                              const MoeShardState *in, MoeShardState *out) {
    Term terms[MOE_SHARD_MAX_IN + MOE_SHARD_MAX_OUT];
    int n, n_in = parse_rule(rule, terms, &n);
    MOE_ASSERT(n_in == op->n_operands && n - n_in == op->n_results, "shard rule %s for op %s", rule,
               moe_op_info(op->opcode)->name);
    bool term_of_tp = false;
    for (int i = 0; i < n_in; i++) {
        const MoeShardState *s = &in[i];
        bool is_term = s->tp == MOE_TP_PARTIAL;
        if (s->partial >= 0 || s->slice >= 0 || s->own || s->slots == MOE_SLOTS_ALL ||
            s->tp == MOE_TP_PART || (is_term && !terms[i].linear))
            return moe_shard_needs(r, op, in, i, "it whole");
        term_of_tp |= is_term;
    }
    char slot, tp;
    const char *problem = find_letter(r, op, terms, n_in, in, false, &slot);
    if (!problem)
        problem = find_letter(r, op, terms, n_in, in, true, &tp);
    if (problem)
        return problem;
    if (tp && term_of_tp)
        return moe_shard_fail(r,
                              "%s reads a term of a sum over group tp and what is divided over it",
                              moe_op_info(op->opcode)->name);
    for (int k = n_in; k < n; k++) {
        MoeShardState *s = &out[k - n_in];
        *s = moe_shard_whole();
        if (slot && dim_of(&terms[k], slot) == 0) {
            s->slots = MOE_SLOTS_MINE;
            s->division = slots_division(in, n_in);
            s->copies = slots_with_copies(in, n_in);
        }
        if (tp)
            s->tp = dim_of(&terms[k], tp) >= 0 ? dim_of(&terms[k], tp) : MOE_TP_PARTIAL;
        else if (term_of_tp && terms[k].linear)
            s->tp = MOE_TP_PARTIAL;
        const MoeShardState *summed = summed_rows(terms, n_in, k, in);
        MoeRowSpace rows = summed ? summed->rows : MOE_ROWS_NONE;
        if (rows != MOE_ROWS_NONE && rows != MOE_ROWS_TOKENS && rows != MOE_ROWS_PAIRS &&
            rows != MOE_ROWS_EXPERTS)
            return moe_shard_fail(r, "%s sums over %s", moe_op_info(op->opcode)->name,
                                  row_texts[rows]);
        s->partial = moe_shard_rows_group(r, rows, summed ? summed->division : 0);
    }
    return NULL;
}

bool moe_shard_is_sharded(const MoeGraph *g) {
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        if (moe_op_info(op->opcode)->kind == MOE_KIND_COMM ||
            (op->opcode == MOE_OP_PARAM && moe_attr(op, "whole")))
            return true;
    }
    return false;
}
