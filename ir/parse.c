/* The text form, in: modules, graphs, phase labels, recovery from mistakes. Op lines:
 * ir/parse_op.c. In: text from people or from a plan, trusted in nothing. Out: a verified module,
 * or all that is wrong with it. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "ir/numbers.h"
#include "ir/parse_internal.h"
#include "ir/text.h"
#include "ir/verify.h"

#define MAX_FILE_BYTES ((size_t)256 << 20)

void moe_parser_advance(MoeParser *p) {
    p->tok = moe_lex_next(&p->lx);
}

bool moe_parser_at(const MoeParser *p, MoeTokKind kind, const char *text) {
    return p->tok.kind == kind && (!text || strcmp(p->tok.text, text) == 0);
}

bool moe_parser_accept(MoeParser *p, MoeTokKind kind, const char *text) {
    if (!moe_parser_at(p, kind, text))
        return false;
    moe_parser_advance(p);
    return true;
}

const char *moe_parser_found(MoeParser *p) {
    const MoeTok *t = &p->tok;
    if (t->kind == MOE_TOK_END)
        return "the end of the text";
    if (t->kind == MOE_TOK_LINE)
        return "the end of the line";
    if (t->kind == MOE_TOK_AT_MOST)
        return "'<='";
    if (t->kind == MOE_TOK_STRING)
        return "a string";
    return moe_arena_printf(p->scratch, "'%s%.40s'", t->kind == MOE_TOK_VALUE ? "%" : "", t->text);
}

bool moe_parser_expect(MoeParser *p, MoeTokKind kind, const char *text, const char *what) {
    if (moe_parser_accept(p, kind, text))
        return true;
    if (p->tok.kind == MOE_TOK_BAD)
        moe_diag_error(p->d, p->tok.loc, "%s", p->tok.text);
    else
        moe_diag_error(p->d, p->tok.loc, "expected %s, found %s", what, moe_parser_found(p));
    return false;
}

void moe_parser_unknown(MoeParser *p, MoeLoc loc, const char *what, const char *prefix,
                        const char *name, const char *const *known, size_t n_known) {
    moe_diag_error(p->d, loc, "unknown %s %s%.60s", what, prefix, name);
    const char *near = moe_nearest_name(name, known, n_known);
    if (near)
        moe_diag_hint(p->d, "did you mean %s%.60s?", prefix, near);
}

static bool too_many_errors(const MoeParser *p) {
    return p->d->n_errors >= (p->d->max_errors ? p->d->max_errors : 20);
}

/* Past the end of this line, whatever is left on it. */
static void next_line(MoeParser *p) {
    if (p->tok.kind != MOE_TOK_LINE && p->tok.kind != MOE_TOK_END) {
        moe_lex_skip_line(&p->lx);
        moe_parser_advance(p);
    }
    if (p->tok.kind == MOE_TOK_LINE)
        moe_parser_advance(p);
}

static void skip_blank_lines(MoeParser *p) {
    while (p->tok.kind == MOE_TOK_LINE)
        moe_parser_advance(p);
}

/* The line must end here; the first mistake on a line is the one that is told. */
static void end_line(MoeParser *p, size_t errors_before) {
    if (p->d->n_errors == errors_before && p->tok.kind != MOE_TOK_LINE &&
        p->tok.kind != MOE_TOK_END)
        moe_parser_expect(p, MOE_TOK_LINE, NULL, "the end of the line");
    next_line(p);
}

/* A word followed by ':' on its own line. Returns false if this is an op line. */
static bool parse_phase_label(MoeParser *p) {
    if (p->tok.kind != MOE_TOK_WORD)
        return false;
    const char *after = p->lx.at + strspn(p->lx.at, " \t");
    if (*after != ':')
        return false;
    MoeTok label = p->tok;
    MoeOpcode op;
    if (moe_op_from_name(label.text, &op))
        return false; /* an op whose results are missing */
    moe_parser_advance(p);
    moe_parser_advance(p);
    const char *known[MOE_N_PHASES];
    for (int i = 0; i < MOE_N_PHASES; i++) {
        known[i] = moe_phase_name((MoePhase)i);
        if (strcmp(known[i], label.text) != 0)
            continue;
        if (i < (int)p->g->phase)
            moe_diag_error(p->d, label.loc, "phase %s cannot follow phase %s", label.text,
                           moe_phase_name(p->g->phase));
        else
            p->g->phase = (MoePhase)i;
        return true;
    }
    moe_parser_unknown(p, label.loc, "phase", "", label.text, known, MOE_N_PHASES);
    return true;
}

/* Labels that are numbers were kept as names while messages needed them. */
static void drop_numbers(MoeGraph *g) {
    for (size_t i = 0; i < g->n_ops; i++) {
        for (int r = 0; r < g->ops[i]->n_results; r++) {
            MoeValue *v = g->ops[i]->results[r];
            v->name = moe_value_name_valid(v->name) ? moe_arena_strdup(g->arena, v->name) : NULL;
        }
    }
}

static void parse_graph_lines(MoeParser *p) {
    for (;;) {
        skip_blank_lines(p);
        if (too_many_errors(p) || moe_parser_at(p, MOE_TOK_PUNCT, "}"))
            break;
        size_t errors = p->d->n_errors;
        if (p->tok.kind == MOE_TOK_END) {
            moe_diag_error(p->d, p->tok.loc, "the text ends inside graph @%s: '}' is missing",
                           p->g->name);
            break;
        }
        if (moe_parser_at(p, MOE_TOK_WORD, "graph")) {
            moe_diag_error(p->d, p->tok.loc, "a graph begins inside graph @%s: '}' is missing",
                           p->g->name);
            break;
        }
        if (++p->n_ops > MOE_MAX_PARSED_OPS) {
            moe_diag_error(p->d, p->tok.loc, "more than %zu ops", MOE_MAX_PARSED_OPS);
            break;
        }
        if (!parse_phase_label(p))
            moe_parse_op(p);
        end_line(p, errors);
    }
}

/* How the graph's sums are ordered. */
typedef struct {
    int64_t leaf_rows, fast_reduce;
} GraphFacts;

/* leaf_rows = 512, fast_reduce = 1: one of them, both, in any order. */
static bool parse_graph_facts(MoeParser *p, GraphFacts *f) {
    static const char *const known[] = {"leaf_rows", "fast_reduce"};
    int64_t *const values[] = {&f->leaf_rows, &f->fast_reduce};
    do {
        MoeTok key = p->tok;
        int which = 0;
        if (!moe_parser_expect(p, MOE_TOK_WORD, NULL, "leaf_rows or fast_reduce"))
            return false;
        while (which < 2 && strcmp(known[which], key.text) != 0)
            which++;
        if (which == 2) {
            moe_parser_unknown(p, key.loc, "attribute", "", key.text, known, 2);
            return false;
        }
        if (!moe_parser_expect(p, MOE_TOK_PUNCT, "=", "'='"))
            return false;
        MoeTok value = p->tok;
        if (!moe_parser_expect(p, MOE_TOK_INT, NULL, "a number"))
            return false;
        bool ok = which ? value.i == 0 || value.i == 1 : moe_leaf_rows_valid(value.i);
        if (!ok) {
            moe_diag_error(p->d, value.loc,
                           which ? "%s = %" PRId64 ": expected 0 or 1"
                                 : "%s = %" PRId64 ": expected a power of two from %d to %d",
                           known[which], value.i, MOE_MIN_LEAF_ROWS, MOE_MAX_LEAF_ROWS);
            return false;
        }
        *values[which] = value.i;
    } while (moe_parser_accept(p, MOE_TOK_PUNCT, ","));
    return true;
}

/* graph @name [facts] { lines } */
static void parse_graph(MoeParser *p) {
    size_t errors = p->d->n_errors;
    MoeTok name = {0};
    GraphFacts facts = {0};
    bool ok = moe_parser_expect(p, MOE_TOK_WORD, "graph", "'graph @name {'") &&
              moe_parser_expect(p, MOE_TOK_PUNCT, "@", "'@' and the graph's name");
    if (ok) {
        name = p->tok;
        ok = moe_parser_expect(p, MOE_TOK_WORD, NULL, "the graph's name") &&
             (!moe_parser_at(p, MOE_TOK_WORD, NULL) || parse_graph_facts(p, &facts)) &&
             moe_parser_expect(p, MOE_TOK_PUNCT, "{", "'{'");
    }
    if (ok && moe_module_find(p->m, name.text))
        moe_diag_error(p->d, name.loc, "graph @%s is defined twice", name.text);
    end_line(p, errors);
    if (!ok) { /* its lines would all be wrong here */
        while (p->tok.kind != MOE_TOK_END && !moe_parser_at(p, MOE_TOK_WORD, "graph"))
            next_line(p);
        return;
    }
    p->g = moe_module_add_graph(p->m, name.text);
    p->g->leaf_rows = (int)facts.leaf_rows;
    p->g->fast_reduce = facts.fast_reduce != 0;
    p->values = (MoeNameMap){.arena = p->scratch};
    p->names = NULL;
    p->n_names = p->cap_names = 0;
    parse_graph_lines(p);
    drop_numbers(p->g);
    if (!too_many_errors(p) && moe_parser_at(p, MOE_TOK_PUNCT, "}")) {
        errors = p->d->n_errors;
        moe_parser_advance(p);
        end_line(p, errors);
    }
}

static void parse_header(MoeParser *p) {
    skip_blank_lines(p);
    size_t errors = p->d->n_errors;
    MoeTok version = {0};
    bool ok = moe_parser_expect(p, MOE_TOK_WORD, "moe", "'moe 1', the format version, first");
    if (ok) {
        version = p->tok;
        ok = moe_parser_expect(p, MOE_TOK_INT, NULL, "the format version");
    }
    if (ok && version.i > MOE_IR_FORMAT_VERSION)
        moe_diag_error(p->d, version.loc,
                       "format version %" PRId64 " is newer than this moec reads (%d)", version.i,
                       MOE_IR_FORMAT_VERSION);
    else if (ok && version.i < 1)
        moe_diag_error(p->d, version.loc, "there is no format version %" PRId64, version.i);
    end_line(p, errors);
}

MoeModule *moe_parse(MoeDiag *d) {
    size_t errors = d->n_errors;
    MoeParser p = {.d = d, .scratch = moe_arena_create(), .m = moe_module_create()};
    moe_lex_init(&p.lx, p.scratch, d->source);
    moe_parser_advance(&p);
    parse_header(&p);
    /* A wrong first line is mostly another kind of file: saying more would not help. */
    while (d->n_errors == errors || (p.m->n_graphs > 0 && !too_many_errors(&p))) {
        skip_blank_lines(&p);
        if (p.tok.kind == MOE_TOK_END)
            break;
        parse_graph(&p);
    }
    moe_arena_destroy(p.scratch);
    if (d->n_errors == errors && moe_verify(p.m, d))
        return p.m;
    moe_module_destroy(p.m);
    return NULL;
}

MoeStatus moe_parse_file(const char *path, MoeModule **out) {
    char *text;
    size_t n;
    MOE_TRY(moe_file_read(path, MAX_FILE_BYTES, &text, &n));
    MoeStatus st = NULL;
    if (strlen(text) != n) {
        st =
            moe_error(MOE_E_INPUT, "%s: byte %zu is NUL: this is no text file", path, strlen(text));
    } else {
        MoeDiag d = {.file = path, .source = text};
        MoeModule *m = moe_parse(&d);
        if (m)
            *out = m;
        else
            st = moe_diag_status(&d);
        moe_diag_free(&d);
    }
    free(text);
    return st;
}
