/* Tokens of the text form. The lexer never fails: what it cannot read becomes MOE_TOK_BAD with a
 * reason, and the parser reports it. Lines matter (one op a line), so their ends are tokens. Used
 * by ir/parse*.c. */
#ifndef MOE_IR_LEX_H
#define MOE_IR_LEX_H

#include "ir/graph.h"

typedef enum {
    MOE_TOK_END,   /* end of the text */
    MOE_TOK_LINE,  /* end of a line */
    MOE_TOK_WORD,  /* a letter or _, then letters, digits, _ . - */
    MOE_TOK_VALUE, /* %name or %123: text without the % */
    MOE_TOK_INT,
    MOE_TOK_FLOAT,
    MOE_TOK_STRING,  /* text holds the unescaped bytes */
    MOE_TOK_PUNCT,   /* one of = { } [ ] , : < > @ # ; text is that character */
    MOE_TOK_AT_MOST, /* <= */
    MOE_TOK_BAD      /* text says what is wrong */
} MoeTokKind;

typedef struct {
    MoeTokKind kind;
    MoeLoc loc;
    const char *text; /* in the lexer's arena */
    int64_t i;
    double f;
} MoeTok;

#define MOE_MAX_LINE_BYTES (64 * 1024)

typedef struct {
    MoeArena *arena;
    const char *at;         /* next byte */
    const char *line_start; /* of the current line */
    int line;
} MoeLexer;

void moe_lex_init(MoeLexer *lx, MoeArena *arena, const char *source);
MoeTok moe_lex_next(MoeLexer *lx);
/* Moves to the end of the current line; its MOE_TOK_LINE comes next. */
void moe_lex_skip_line(MoeLexer *lx);

#endif
