/* Op lines of the text form: `%a, %b = name %x, %y {key = v} : type, type #3`.
 * In: tokens. Out: an op in the graph, checked by its shape rule; or reports in the parser's
 * diagnostics. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "ir/infer.h"
#include "ir/parse_internal.h"

/* What a line says before it becomes an op. */
typedef struct {
    MoeTok *results;
    size_t n_results, cap_results;
    MoeTok name;
    MoeOpcode opcode;
    MoeValue **operands;
    size_t n_operands, cap_operands;
    MoeAttr attrs[MOE_MAX_ATTRS];
    int n_attrs;
    bool poisoned; /* uses a value whose own line was wrong: nothing more is reported about types */
} OpLine;

/* A value without a definition stands for the result of a line that was wrong. */
static bool is_poison(const MoeValue *v) {
    return v->def == NULL;
}

static void bind(MoeParser *p, const MoeTok *label, MoeValue *v) {
    v->name = label->text; /* numbers too, so that messages show the labels of the text; dropped at
                              the graph's end */
    if (moe_names_add(&p->values, label->text, v)) {
        MOE_PUSH(p->scratch, p->names, p->n_names, p->cap_names, label->text);
        return;
    }
    const MoeValue *first = moe_names_get(&p->values, label->text);
    if (first->def && first->def != v->def)
        moe_diag_error(p->d, label->loc, "value %%%s is defined twice (first on line %d)",
                       label->text, first->def->loc.line);
    else
        moe_diag_error(p->d, label->loc, "value %%%s is defined twice", label->text);
}

static void bind_poison(MoeParser *p, const OpLine *line, size_t from) {
    for (size_t i = from; i < line->n_results; i++) {
        if (!moe_names_get(&p->values, line->results[i].text))
            bind(p, &line->results[i], MOE_NEW(p->scratch, MoeValue));
    }
}

static MoeValue *lookup(MoeParser *p, const MoeTok *label) {
    MoeValue *v = moe_names_get(&p->values, label->text);
    if (!v)
        moe_parser_unknown(p, label->loc, "value", "%", label->text, p->names, p->n_names);
    return v;
}

static bool parse_results(MoeParser *p, OpLine *line) {
    if (!moe_parser_at(p, MOE_TOK_VALUE, NULL))
        return true;
    do {
        MoeTok label = p->tok;
        if (!moe_parser_expect(p, MOE_TOK_VALUE, NULL, "a value such as %x"))
            return false;
        MOE_PUSH(p->scratch, line->results, line->n_results, line->cap_results, label);
    } while (moe_parser_accept(p, MOE_TOK_PUNCT, ","));
    return moe_parser_expect(p, MOE_TOK_PUNCT, "=", "'=' after the results");
}

static bool parse_name(MoeParser *p, OpLine *line) {
    line->name = p->tok;
    if (!moe_parser_expect(p, MOE_TOK_WORD, NULL, "an op name"))
        return false;
    if (moe_op_from_name(line->name.text, &line->opcode))
        return true;
    const char *known[MOE_N_OPS];
    for (int i = 0; i < MOE_N_OPS; i++)
        known[i] = moe_op_info((MoeOpcode)i)->name;
    moe_parser_unknown(p, line->name.loc, "op", "", line->name.text, known, MOE_N_OPS);
    return false;
}

static bool parse_operands(MoeParser *p, OpLine *line) {
    if (!moe_parser_at(p, MOE_TOK_VALUE, NULL))
        return true;
    bool ok = true;
    do {
        MoeTok label = p->tok;
        if (!moe_parser_expect(p, MOE_TOK_VALUE, NULL, "an operand such as %x"))
            return false;
        MoeValue *v = lookup(p, &label);
        ok &= v != NULL;
        line->poisoned |= v && is_poison(v);
        MOE_PUSH(p->scratch, line->operands, line->n_operands, line->cap_operands, v);
    } while (moe_parser_accept(p, MOE_TOK_PUNCT, ","));
    return ok;
}

/* The key must be one of the op's, and be new. */
static bool check_key(MoeParser *p, const OpLine *line, const MoeTok *key) {
    MoeAttrDecl decls[MOE_MAX_ATTRS];
    const char *known[MOE_MAX_ATTRS];
    int n = moe_op_attr_decls(line->opcode, decls);
    bool found = false;
    for (int i = 0; i < n; i++) {
        known[i] = decls[i].key;
        found |= strcmp(known[i], key->text) == 0;
    }
    if (!found) {
        MoeStr what = {0};
        moe_str_printf(&what, "attribute of %s:", line->name.text);
        moe_parser_unknown(p, key->loc, moe_str_c(&what), "", key->text, known, (size_t)n);
        moe_str_free(&what);
        return false;
    }
    for (int i = 0; i < line->n_attrs; i++) {
        if (strcmp(line->attrs[i].key, key->text) == 0) {
            moe_diag_error(p->d, key->loc, "attribute %s is given twice", key->text);
            return false;
        }
    }
    return true;
}

static bool parse_attr_value(MoeParser *p, MoeAttr *a) {
    MoeTok t = p->tok;
    bool word = t.kind == MOE_TOK_WORD;
    if (t.kind == MOE_TOK_INT) {
        *a = moe_ai(a->key, t.i);
    } else if (t.kind == MOE_TOK_FLOAT) {
        *a = moe_af(a->key, t.f);
    } else if (t.kind == MOE_TOK_STRING) {
        *a = moe_as(a->key, t.text);
    } else if (word && (strcmp(t.text, "inf") == 0 || strcmp(t.text, "nan") == 0)) {
        double v = 0;
        moe_parse_double(t.text, &v);
        *a = moe_af(a->key, v);
    } else {
        char what[96];
        snprintf(what, sizeof what, "a number or a string as the value of %s", a->key);
        return moe_parser_expect(p, MOE_TOK_INT, NULL, what); /* there is none: reports it */
    }
    moe_parser_advance(p);
    return true;
}

static bool parse_attrs(MoeParser *p, OpLine *line) {
    if (!moe_parser_accept(p, MOE_TOK_PUNCT, "{"))
        return true;
    do {
        MoeTok key = p->tok;
        /* Keys are known and new, so there are at most MOE_MAX_ATTRS. */
        if (!moe_parser_expect(p, MOE_TOK_WORD, NULL, "an attribute name") ||
            !check_key(p, line, &key) ||
            !moe_parser_expect(p, MOE_TOK_PUNCT, "=", "'=' after the attribute name"))
            return false;
        MoeAttr a = {.key = key.text};
        if (!parse_attr_value(p, &a))
            return false;
        line->attrs[line->n_attrs++] = a;
    } while (moe_parser_accept(p, MOE_TOK_PUNCT, ","));
    return moe_parser_expect(p, MOE_TOK_PUNCT, "}", "',' or '}' after the attribute");
}

/* ---- types ---- */

static bool parse_int(MoeParser *p, const char *what, int64_t *out) {
    *out = p->tok.i;
    return moe_parser_expect(p, MOE_TOK_INT, NULL, what);
}

/* After the name: <G,V> */
static bool parse_segs(MoeParser *p, MoeType *t) {
    int64_t groups, shards;
    bool ok = moe_parser_expect(p, MOE_TOK_PUNCT, "<", "'<' of segs<G,V>") &&
              parse_int(p, "the number of groups of segs<G,V>", &groups) &&
              moe_parser_expect(p, MOE_TOK_PUNCT, ",", "',' of segs<G,V>") &&
              parse_int(p, "the number of virtual shards of segs<G,V>", &shards) &&
              moe_parser_expect(p, MOE_TOK_PUNCT, ">", "'>' of segs<G,V>");
    if (ok)
        *t = moe_type_segs(groups, shards);
    return ok;
}

/* 512 or r<=4096 @%tok */
static bool parse_dim(MoeParser *p, OpLine *line, MoeDim *dim) {
    if (!moe_parser_accept(p, MOE_TOK_WORD, "r"))
        return parse_int(p, "a dim (a number, or r<=capacity @%segs)", &dim->size);
    if (!moe_parser_expect(p, MOE_TOK_AT_MOST, NULL, "'<=' of a ragged dim") ||
        !parse_int(p, "the capacity of a ragged dim", &dim->size) ||
        !moe_parser_expect(p, MOE_TOK_PUNCT, "@", "'@' of a ragged dim"))
        return false;
    MoeTok label = p->tok;
    if (!moe_parser_expect(p, MOE_TOK_VALUE, NULL, "a segs value such as %tok"))
        return false;
    dim->seg = lookup(p, &label);
    if (!dim->seg)
        return false;
    line->poisoned |= is_poison(dim->seg);
    return true;
}

static bool parse_type(MoeParser *p, OpLine *line, MoeType *t) {
    MoeTok name = p->tok;
    *t = (MoeType){0};
    if (!moe_parser_expect(p, MOE_TOK_WORD, NULL, "a type such as f32[8, 512]"))
        return false;
    if (strcmp(name.text, "segs") == 0) {
        if (!parse_segs(p, t))
            return false;
    } else {
        if (!moe_dtype_from_name(name.text, &t->dtype)) {
            const char *known[MOE_N_DTYPES + 1] = {"segs"};
            for (int i = 0; i < MOE_N_DTYPES; i++)
                known[i + 1] = moe_dtype_name((MoeDtype)i);
            moe_parser_unknown(p, name.loc, "type", "", name.text, known, MOE_N_DTYPES + 1);
            return false;
        }
        if (!moe_parser_expect(p, MOE_TOK_PUNCT, "[", "'[' after the dtype"))
            return false;
        do {
            MoeDim dim = {0};
            MoeLoc loc = p->tok.loc;
            if (!parse_dim(p, line, &dim))
                return false;
            if (t->rank == MOE_MAX_RANK) {
                moe_diag_error(p->d, loc, "a tensor has 1 to 4 dims");
                return false;
            }
            t->dims[t->rank++] = dim;
        } while (moe_parser_accept(p, MOE_TOK_PUNCT, ","));
        if (!moe_parser_expect(p, MOE_TOK_PUNCT, "]", "',' or ']' after the dim"))
            return false;
    }
    const char *problem = line->poisoned ? NULL : moe_type_check(t);
    if (problem)
        moe_diag_error(p->d, name.loc, "%s", problem);
    return !problem;
}

/* Sets the type of a declaration, or compares what the line says with what the shape rule gave. */
static bool check_type(MoeParser *p, OpLine *line, MoeOp *op, int i, const MoeType *t, MoeLoc loc) {
    if (line->poisoned)
        return true;
    if (moe_op_info(op->opcode)->kind == MOE_KIND_DECL) {
        op->results[i]->type = *t;
        return true;
    }
    if (moe_type_equal(t, &op->results[i]->type))
        return true;
    MoeStr want = {0}, found = {0};
    moe_type_print(&op->results[i]->type, &want);
    moe_type_print(t, &found);
    moe_diag_error(p->d, loc, "result %d of %s is %s, not %s", i, line->name.text, moe_str_c(&want),
                   moe_str_c(&found));
    moe_str_free(&want);
    moe_str_free(&found);
    return false;
}

static bool parse_types(MoeParser *p, OpLine *line, MoeOp *op) {
    if (op->n_results == 0)
        return true;
    if (!moe_parser_expect(p, MOE_TOK_PUNCT, ":", "':' and the type of the result"))
        return false;
    bool ok = true;
    for (int i = 0; i < op->n_results; i++) {
        MoeType t;
        MoeLoc loc = p->tok.loc;
        if (i > 0 &&
            !moe_parser_expect(p, MOE_TOK_PUNCT, ",", "',' and the type of the next result"))
            return false;
        if (i > 0)
            loc = p->tok.loc;
        if (!parse_type(p, line, &t))
            return false;
        ok &= check_type(p, line, op, i, &t, loc);
    }
    return ok;
}

static bool parse_group(MoeParser *p, MoeOp *op) {
    if (!moe_parser_accept(p, MOE_TOK_PUNCT, "#"))
        return true;
    MoeTok t = p->tok;
    if (!moe_parser_expect(p, MOE_TOK_INT, NULL, "a kernel group number"))
        return false;
    if (t.i < 0 || t.i > INT32_MAX) {
        moe_diag_error(p->d, t.loc, "kernel group numbers are 0 to 2^31-1");
        return false;
    }
    op->group = (int)t.i;
    return true;
}

/* Runs the shape rule and reports at the op's name. */
static bool infer(MoeParser *p, const OpLine *line, MoeOp *op) {
    const char *problem = line->poisoned ? NULL : moe_infer(p->g, op);
    if (problem)
        moe_diag_error(p->d, line->name.loc, "%s", problem);
    return !problem;
}

/* Everything after the attributes. The results are bound before the types are read: a type may name
 * result 0. */
static bool parse_tail(MoeParser *p, OpLine *line, MoeOp *op) {
    bool declares = moe_op_info(line->opcode)->kind == MOE_KIND_DECL;
    if (!declares && !infer(p, line, op))
        return false;
    for (int i = 0; i < op->n_results; i++)
        bind(p, &line->results[i], op->results[i]);
    if (!parse_types(p, line, op) || !parse_group(p, op))
        return false;
    return !declares || infer(p, line, op);
}

void moe_parse_op(MoeParser *p) {
    OpLine line = {0};
    bool ok = parse_results(p, &line) && parse_name(p, &line) && parse_operands(p, &line) &&
              parse_attrs(p, &line);
    if (ok && (int)line.n_results != moe_op_info(line.opcode)->n_out) {
        moe_diag_error(p->d, line.name.loc, "op %s has %d results, not %zu", line.name.text,
                       moe_op_info(line.opcode)->n_out, line.n_results);
        ok = false;
    }
    if (!ok) {
        bind_poison(p, &line, 0);
        return;
    }
    MoeOp *op = moe_op_new(p->g, line.opcode, line.operands, (int)line.n_operands, line.attrs,
                           line.n_attrs);
    op->loc = line.name.loc;
    ok = parse_tail(p, &line, op);
    if (ok && !line.poisoned) {
        moe_graph_append(p->g, op);
        return;
    }
    for (int i = 0; i < op->n_results; i++)
        op->results[i]->def = NULL;
    bind_poison(p, &line, 0);
}
