/* The parser's state, shared by ir/parse.c (modules, graphs, lines) and ir/parse_op.c (op lines).
 */
#ifndef MOE_IR_PARSE_INTERNAL_H
#define MOE_IR_PARSE_INTERNAL_H

#include "ir/internal.h"
#include "ir/lex.h"

#define MOE_MAX_PARSED_OPS ((size_t)4 << 20)

typedef struct {
    MoeDiag *d;
    MoeLexer lx;
    MoeTok tok; /* the current token */
    MoeModule *m;
    MoeGraph *g;
    MoeArena *scratch;
    MoeNameMap values;  /* label -> MoeValue of the current graph */
    const char **names; /* the labels in order of definition, for hints */
    size_t n_names, cap_names, n_ops;
} MoeParser;

void moe_parser_advance(MoeParser *p);
bool moe_parser_at(const MoeParser *p, MoeTokKind kind,
                   const char *text); /* text NULL: any of the kind */
/* Takes the token if it is there; else reports what was expected and what is there, and returns
 * false. */
bool moe_parser_expect(MoeParser *p, MoeTokKind kind, const char *text, const char *what);
bool moe_parser_accept(MoeParser *p, MoeTokKind kind, const char *text);
/* "; found ..." part of messages: the current token for people. In scratch. */
const char *moe_parser_found(MoeParser *p);
/* Reports "unknown <what> <prefix><name>" with a hint. */
void moe_parser_unknown(MoeParser *p, MoeLoc loc, const char *what, const char *prefix,
                        const char *name, const char *const *known, size_t n_known);

/* One op line, without its line end. Reports what is wrong; the values it defines are bound in any
 * case, so that one mistake is reported once. */
void moe_parse_op(MoeParser *p);

#endif
