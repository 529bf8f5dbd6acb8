/* Tokens of the text form. In: NUL-terminated text, trusted in nothing. Out: MoeTok, one at a time.
 */
#include "ir/lex.h"

#include <string.h>

#include "base/assert.h"

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

static bool is_word_start(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static bool is_word(char c) {
    return is_word_start(c) || is_digit(c) || c == '.' || c == '-';
}

static size_t word_length(const char *p) {
    size_t n = 0;
    while (is_word(p[n]))
        n++;
    return n;
}

void moe_lex_init(MoeLexer *lx, MoeArena *arena, const char *source) {
    *lx = (MoeLexer){.arena = arena, .at = source, .line_start = source, .line = 1};
}

void moe_lex_skip_line(MoeLexer *lx) {
    lx->at += strcspn(lx->at, "\n");
}

static MoeTok make(const MoeLexer *lx, MoeTokKind kind, const char *start) {
    return (MoeTok){.kind = kind, .loc = {lx->line, (int)(start - lx->line_start) + 1}, .text = ""};
}

static MoeTok bad(const MoeLexer *lx, const char *start, const char *why) {
    MoeTok t = make(lx, MOE_TOK_BAD, start);
    t.text = why;
    return t;
}

static MoeTok lex_number(MoeLexer *lx, const char *start) {
    size_t n = *start == '-';
    while (is_word(start[n]) || (start[n] == '+' && n > 0 && strchr("eE", start[n - 1])))
        n++;
    lx->at = start + n;
    char *text = moe_arena_strndup(lx->arena, start, n);
    size_t digits = strspn(text + (*text == '-'), "0123456789");
    bool integer = digits > 0 && digits == n - (*text == '-');
    MoeTok t = make(lx, integer ? MOE_TOK_INT : MOE_TOK_FLOAT, start);
    t.text = text;
    if (integer)
        return moe_parse_i64(text, &t.i) ? t : bad(lx, start, "this integer does not fit 64 bits");
    /* Decimal only: the C library would also read hexadecimal. */
    if (strpbrk(text, "xX") || !moe_parse_double(text, &t.f))
        return bad(lx, start, "this is no number");
    return t;
}

static void put_utf8(MoeStr *s, uint32_t c) {
    if (c < 0x80) {
        moe_str_putc(s, (char)c);
    } else if (c < 0x800) {
        moe_str_putc(s, (char)(0xc0 | c >> 6));
        moe_str_putc(s, (char)(0x80 | (c & 0x3f)));
    } else if (c < 0x10000) {
        moe_str_putc(s, (char)(0xe0 | c >> 12));
        moe_str_putc(s, (char)(0x80 | (c >> 6 & 0x3f)));
        moe_str_putc(s, (char)(0x80 | (c & 0x3f)));
    } else {
        moe_str_putc(s, (char)(0xf0 | c >> 18));
        moe_str_putc(s, (char)(0x80 | (c >> 12 & 0x3f)));
        moe_str_putc(s, (char)(0x80 | (c >> 6 & 0x3f)));
        moe_str_putc(s, (char)(0x80 | (c & 0x3f)));
    }
}

/* Four hex digits at p. */
static bool read_hex4(const char *p, uint32_t *out) {
    uint32_t v = 0;
    for (int i = 0; i < 4; i++) {
        static const char digits[] = "0123456789abcdef";
        char c = p[i] >= 'A' && p[i] <= 'F' ? (char)(p[i] - 'A' + 'a') : p[i];
        const char *at = c ? strchr(digits, c) : NULL;
        if (!at)
            return false;
        v = v << 4 | (uint32_t)(at - digits);
    }
    *out = v;
    return true;
}

/* After a backslash: appends what the escape stands for; returns the byte after it, NULL if it is
 * none. */
static const char *lex_escape(const char *p, MoeStr *out) {
    static const char from[] = "\"\\/ntrbf", to[] = "\"\\/\n\t\r\b\f";
    const char *simple = *p ? strchr(from, *p) : NULL;
    if (simple) {
        moe_str_putc(out, to[simple - from]);
        return p + 1;
    }
    uint32_t c, low;
    if (*p != 'u' || !read_hex4(p + 1, &c) || c == 0)
        return NULL;
    p += 5;
    if (c >= 0xd800 && c < 0xdc00) { /* the first half of a pair */
        if (p[0] != '\\' || p[1] != 'u' || !read_hex4(p + 2, &low) || low < 0xdc00 || low > 0xdfff)
            return NULL;
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
        p += 6;
    } else if (c >= 0xdc00 && c < 0xe000) {
        return NULL;
    }
    put_utf8(out, c);
    return p;
}

/* The bytes of a string that begins after `p`; returns what is wrong with it, or NULL and its end
 * in *end. */
static const char *read_string(const char *p, MoeStr *out, const char **end) {
    while (*p != '"') {
        if (!*p || *p == '\n')
            return "the string is not closed on this line";
        if ((unsigned char)*p < 0x20)
            return "a control character in a string (write \\u00XX)";
        if (*p != '\\') {
            moe_str_putc(out, *p++);
            continue;
        }
        p = lex_escape(p + 1, out);
        if (!p)
            return "unknown escape in a string (JSON's are \\\" \\\\ \\/ \\n \\t \\r \\b \\f "
                   "\\uXXXX; not "
                   "\\u0000)";
    }
    *end = p + 1;
    return moe_utf8_valid(moe_str_c(out), out->len, NULL) ? NULL : "the string is not valid UTF-8";
}

static MoeTok lex_string(MoeLexer *lx, const char *start) {
    MoeStr s = {0};
    const char *problem = read_string(start + 1, &s, &lx->at);
    MoeTok t = make(lx, MOE_TOK_STRING, start);
    if (problem) {
        moe_lex_skip_line(lx);
        t = bad(lx, start, problem);
    } else {
        t.text = moe_arena_strndup(lx->arena, moe_str_c(&s), s.len);
    }
    moe_str_free(&s);
    return t;
}

static MoeTok lex_value(MoeLexer *lx, const char *start) {
    size_t n = word_length(start + 1);
    lx->at = start + 1 + n;
    MoeTok t = make(lx, MOE_TOK_VALUE, start);
    t.text = moe_arena_strndup(lx->arena, start + 1, n);
    if (n == 0 || (!is_word_start(t.text[0]) && strspn(t.text, "0123456789") != n))
        return bad(lx, start, "a value is % with a name (a letter or _ first) or with a number");
    return t;
}

MoeTok moe_lex_next(MoeLexer *lx) {
    const char *p = lx->at;
    if (p == lx->line_start && strcspn(p, "\n") > MOE_MAX_LINE_BYTES) {
        moe_lex_skip_line(lx);
        return bad(lx, p, "the line is longer than 64 KiB");
    }
    p += strspn(p, " \t\r");
    if (p[0] == '/' && p[1] == '/')
        p += strcspn(p, "\n");
    lx->at = p;
    if (!*p)
        return make(lx, MOE_TOK_END, p);
    if (*p == '\n') {
        MoeTok t = make(lx, MOE_TOK_LINE, p);
        MOE_ASSERT(lx->line < INT32_MAX, "text of 2^31 lines");
        lx->at = lx->line_start = p + 1;
        lx->line++;
        return t;
    }
    if (is_word_start(*p)) {
        MoeTok t = make(lx, MOE_TOK_WORD, p);
        size_t n = word_length(p);
        t.text = moe_arena_strndup(lx->arena, p, n);
        lx->at = p + n;
        return t;
    }
    if (*p == '%')
        return lex_value(lx, p);
    if (*p == '"')
        return lex_string(lx, p);
    if (is_digit(*p) || *p == '-')
        return lex_number(lx, p);
    lx->at = p + 1;
    if (p[0] == '<' && p[1] == '=') {
        lx->at = p + 2;
        return make(lx, MOE_TOK_AT_MOST, p);
    }
    if (strchr("={}[],:<>@#", *p)) {
        MoeTok t = make(lx, MOE_TOK_PUNCT, p);
        t.text = moe_arena_strndup(lx->arena, p, 1);
        return t;
    }
    return bad(lx, p, "this character has no place in the text form");
}
