/* The text form: every .moe of the tree prints back to itself, mistakes are told as the golden
 * files say, and no text crashes the parser. MOE_BLESS=1 rewrites the expectations in
 * tests/golden/errors. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/rng.h"
#include "ir/text.h"
#include "ir/verify.h"
#include "tests/support/check_main.h"

static char *read_text(const char *path) {
    char *text;
    size_t n;
    MoeStatus st = moe_file_read(path, 16 << 20, &text, &n);
    ck_assert_msg(!st, "%s", moe_status_message(st));
    return text;
}

static bool ends_with(const char *s, const char *tail) {
    size_t n = strlen(s), m = strlen(tail);
    return n >= m && strcmp(s + n - m, tail) == 0;
}

/* Calls fn(path) for the files below dir whose names end in `tail`, sorted; returns how many. */
static int walk(const char *dir, const char *tail, void (*fn)(const char *path)) {
    char **names;
    size_t n;
    int found = 0;
    MoeStatus st = moe_dir_list(dir, &names, &n);
    ck_assert_msg(!st, "%s", moe_status_message(st));
    for (size_t i = 0; i < n; i++) {
        char *path = moe_path_join(dir, names[i]);
        if (moe_path_is_dir(path)) {
            if (names[i][0] != '.' && strncmp(names[i], "build", 5) != 0)
                found += walk(path, tail, fn);
        } else if (ends_with(names[i], tail)) {
            fn(path);
            found++;
        }
        free(path);
    }
    moe_dir_list_free(names, n);
    return found;
}

/* parse, print: the text again, to be freed; NULL if it does not parse (what was said goes to
 * *out_said). */
static char *print_back(const char *file, const char *text, char **out_said) {
    MoeDiag d = {.file = file, .source = text};
    MoeModule *m = moe_parse(&d);
    char *back = NULL;
    ck_assert_msg((m != NULL) == (d.n_errors == 0), "%s: a module and errors, or neither", file);
    if (m) {
        MoeStr out = {0};
        moe_print(m, &out);
        back = strdup(moe_str_c(&out));
        moe_str_free(&out);
        moe_module_destroy(m);
    }
    if (out_said)
        *out_said = strdup(moe_str_c(&d.text));
    moe_diag_free(&d);
    return back;
}

static void check_same_text(const char *path, const char *text) {
    char *said, *back = print_back(path, text, &said);
    ck_assert_msg(back != NULL, "%s", said);
    for (int line = 1, i = 0; back[i] || text[i]; i++) {
        ck_assert_msg(back[i] == text[i], "%s: line %d prints differently: %.120s", path, line,
                      back + i);
        line += text[i] == '\n';
    }
    free(back);
    free(said);
}

/* Checks the module collected so far, if there is one. */
static void end_piece(const char *path, MoeStr *piece) {
    while (piece->len > 1 && piece->data[piece->len - 2] == '\n')
        piece->data[--piece->len] = 0; /* blank lines before a comment */
    if (piece->len)
        check_same_text(path, piece->data);
    moe_str_clear(piece);
}

/* Golden files of passes hold comments on lines of their own (the command), the input, and the
 * expected text after
 * '//| '. Each module among these must print back to itself; a file of plain text is one module. */
static void round_trip_file(const char *path) {
    char *text = read_text(path);
    MoeStr plain = {0}, quoted = {0};
    for (char *line = text, *next; *line; line = next) {
        size_t n = strcspn(line, "\n");
        next = line + n + (line[n] == '\n');
        bool is_quoted = strncmp(line, "//| ", 4) == 0;
        if (strncmp(line, "//", 2) == 0)
            end_piece(path, &plain);
        else if (plain.len || n)
            moe_str_append_n(&plain, line, (size_t)(next - line));
        if (!is_quoted)
            end_piece(path, &quoted);
        else if (quoted.len || strncmp(line, "//| moe ", 8) == 0) /* errors are quoted too */
            moe_str_append_n(&quoted, line + 4, (size_t)(next - line - 4));
    }
    end_piece(path, &plain);
    end_piece(path, &quoted);
    moe_str_free(&plain);
    moe_str_free(&quoted);
    free(text);
}

START_TEST(test_tree_round_trip) {
    ck_assert_int_ge(walk(MOE_SOURCE_DIR, ".moe", round_trip_file), 5);
}
END_TEST

static bool op_seen[MOE_N_OPS];

static void note_ops(const char *path) {
    MoeModule *m;
    MoeStatus st = moe_parse_file(path, &m);
    ck_assert_msg(!st, "%s", moe_status_message(st));
    for (size_t g = 0; g < m->n_graphs; g++) {
        for (size_t i = 0; i < m->graphs[g]->n_ops; i++)
            op_seen[m->graphs[g]->ops[i]->opcode] = true;
    }
    moe_module_destroy(m);
}

START_TEST(test_golden_text_has_every_op) {
    walk(MOE_SOURCE_DIR "/tests/golden/text", ".moe", note_ops);
    for (int i = 0; i < MOE_N_OPS; i++)
        ck_assert_msg(op_seen[i], "no line with op %s in tests/golden/text",
                      moe_op_info((MoeOpcode)i)->name);
}
END_TEST

/* A golden error file: text, a line of ====, what is said about it. */
static void check_errors_file(const char *path) {
    static const char mark[] = "\n====\n";
    char *text = read_text(path), *split = strstr(text, mark);
    ck_assert_msg(split != NULL, "%s: no line of ====", path);
    split[1] = 0;
    char *said, *back = print_back(strrchr(path, '/') + 1, text, &said);
    ck_assert_msg(back == NULL, "%s: this text has no mistake", path);
    if (getenv("MOE_BLESS")) {
        MoeStr out = {0};
        moe_str_printf(&out, "%s====\n%s", text, said);
        MoeStatus st = moe_file_write_atomic(path, out.data, out.len);
        ck_assert_msg(!st, "%s", moe_status_message(st));
        moe_str_free(&out);
    } else {
        const char *want = split + strlen(mark);
        ck_assert_msg(strcmp(said, want) == 0, "%s: said\n%s\nexpected\n%s", path, said, want);
    }
    free(said);
    free(text);
}

START_TEST(test_errors) {
    ck_assert_int_ge(walk(MOE_SOURCE_DIR "/tests/golden/errors", ".txt", check_errors_file), 8);
}
END_TEST

/* Texts in other spellings than the printer's. */
START_TEST(test_free_forms) {
    static const char text[] = "// a comment\n\n  moe   1 // the version\n\ngraph @g{\r\n"
                               "%7=input{name=\"\\u0061\\ud83e\\udd89\"}:f32[ 2,3 ]\n\n"
                               "  %b = rmsnorm %7, %c {eps = 1} : f32[2, 3]\n"
                               "forward:\n%x=neg %7:f32[2,3] #0 // tail\n"
                               "backward :\nupdate:\n%3=neg %x:f32[2,3]\n}";
    static const char want[] = "moe 1\ngraph @g {\n"
                               "  %0 = input {name = \"a🦉\"} : f32[2, 3]\n"
                               "  %c = input {name = \"c\"} : f32[3]\n"
                               "  %b = rmsnorm %0, %c {eps = 1.0} : f32[2, 3]\n"
                               "  %x = neg %0 : f32[2, 3] #0\n"
                               "update:\n  %1 = neg %x : f32[2, 3]\n}\n";
    MoeStr source = {0};
    const char *at = strstr(text, "  %b");
    moe_str_append_n(&source, text, (size_t)(at - text));
    moe_str_append(&source, "%c = input {name=\"c\"} : f32[3]\n");
    moe_str_append(&source, at);
    char *said, *back = print_back("free", source.data, &said);
    ck_assert_msg(back != NULL, "%s", said);
    ck_assert_str_eq(back, want);
    free(back);
    free(said);
    moe_str_free(&source);
}
END_TEST

START_TEST(test_op_line) {
    MoeDiag d = {.file = "t",
                 .source = "moe 1\ngraph @g {\n  %9 = input {name = \"x\"} : f32[2]\n"
                           "  %y = add %9, %9 {layer = 4} : f32[2] #3\n}\n"};
    MoeModule *m = moe_parse(&d);
    ck_assert_msg(m != NULL, "%s", moe_str_c(&d.text));
    MoeStr out = {0};
    moe_print_op(m->graphs[0]->ops[1], &out);
    ck_assert_str_eq(moe_str_c(&out), "%y = add %0, %0 {layer = 4} : f32[2] #3");
    ck_assert_int_eq(m->graphs[0]->ops[1]->loc.line, 4);
    moe_str_free(&out);
    moe_module_destroy(m);
}
END_TEST

/* Sizes and lengths that would overflow or exhaust something. */
START_TEST(test_hostile_sizes) {
    static const struct {
        const char *line, *said;
    } cases[] = {
        {"%x = input {name = \"x\"} : f32[9223372036854775807, 9223372036854775807]", "2^48"},
        {"%x = input {name = \"x\"} : f32[281474976710656, 0, 281474976710656]", "2^48"},
        {"%x = input {name = \"x\"} : f32[-1]", "negative"},
        {"%x = input {name = \"x\"} : segs<9223372036854775807,64>", "2^24"},
        {"%x = input {name = \"x\"} : segs<1,0>", "1 to 64"},
        {"%x = input {name = \"x\"} : segs<0,1>", "G >= 1"},
        {"%x = input {name = \"x\"} : f32[r<=4 @%x]", "needs a segs value"},
        {"%x = input {name = \"x\"} : f32[4, r<=4 @%t]", "only dim 0"},
        {"%x = broadcast %s {rows = 281474976710656, cols = 281474976710656} : f32[1]", "2^48"},
        {"%x = broadcast %s {rows = -1, cols = 2} : f32[1]", "rows"},
        {"%x = route_plan %s {experts = 4} : f32[1]", "3 results"},
        {"%a, %b, %c = route_plan %i {experts = 16777216} : segs<1,1>, i32[1], i32[1]", "2^24"},
        {"%x = rope %r {heads = 2147483647, head_dim = 2147483646, theta = 1.0, seq = 1, inverse = "
         "0} : "
         "f32[1]",
         "heads * head_dim"},
        {"%x = rope %r {heads = 1, head_dim = 3, theta = 1.0, seq = 1, inverse = 0} : f32[1]",
         "even"},
        {"%x = const {value = 0.5} : i32[1]", "whole number"},
        {"%x = const {value = 1.0} : f32[2]", "f32[1] or i32[1]"},
        {"%x = const {value = \"1\"} : f32[1]", "is a number, not a string"},
        {"%x = neg %s {layer = -1} : f32[1]", "layer"},
        {"%x = neg %s {layer = 1, layer = 1} : f32[1]", "given twice"},
        {"output %s {name = \"\xff\"}", "UTF-8"},
        {"output %s {name = \"\\u0000\"}", "escape"},
        {"output %s {name = \"\\ud800\"}", "escape"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        MoeStr text = {0};
        moe_str_printf(
            &text,
            "moe 1\ngraph @g {\n%%t = input {name = \"t\"} : segs<1,8>\n"
            "%%s = input {name = \"s\"} : f32[1]\n%%i = input {name = \"i\"} : i32[r<=8 @%%t, 2]\n"
            "%%r = input {name = \"r\"} : f32[r<=8 @%%t, 12]\n%s\n}\n",
            cases[i].line);
        char *said, *back = print_back("t", text.data, &said);
        ck_assert_msg(back == NULL, "accepted: %s", cases[i].line);
        ck_assert_msg(strstr(said, "t:7:") && strstr(said, cases[i].said), "%s: said %s",
                      cases[i].line, said);
        free(said);
        moe_str_free(&text);
    }
}
END_TEST

START_TEST(test_long_line) {
    MoeStr text = {0};
    moe_str_append(&text, "moe 1\ngraph @g {\n  output ");
    for (int i = 0; i < 40000; i++)
        moe_str_append(&text, "%x, ");
    moe_str_append(&text, "\n}\n");
    char *said, *back = print_back("t", text.data, &said);
    ck_assert_ptr_null(back);
    ck_assert_msg(strstr(said, "64 KiB"), "%s", said);
    free(said);
    moe_str_free(&text);
}
END_TEST

START_TEST(test_too_many_errors_stop) {
    MoeStr text = {0};
    moe_str_append(&text, "moe 1\ngraph @g {\n");
    for (int i = 0; i < 5000; i++)
        moe_str_append(&text, "  nonsense\n");
    MoeDiag d = {.file = "t", .source = text.data};
    ck_assert_ptr_null(moe_parse(&d));
    ck_assert_uint_ge(d.n_errors, 20);
    ck_assert_uint_le(d.n_errors, 21);
    moe_diag_free(&d);
    moe_str_free(&text);
}
END_TEST

START_TEST(test_file_errors) {
    MoeModule *m = NULL;
    MoeStatus st = moe_parse_file(MOE_SOURCE_DIR "/tests/golden/no_such.moe", &m);
    ck_assert_ptr_nonnull(st);
    ck_assert_msg(strstr(moe_status_message(st), "no_such.moe"), "%s", moe_status_message(st));
    moe_status_free(st);
    st = moe_parse_file(MOE_SOURCE_DIR "/tests/golden/errors/names.txt", &m);
    ck_assert_int_eq(moe_status_code(st), MOE_E_INPUT);
    ck_assert_msg(strstr(moe_status_message(st), "did you mean"), "%s", moe_status_message(st));
    moe_status_free(st);
    ck_assert_ptr_null(m);
}
END_TEST

/* Whatever parses prints to text that is its own print. */
static void check_stable(const char *text) {
    char *first = print_back("mutant", text, NULL);
    if (!first)
        return;
    char *said, *second = print_back("mutant", first, &said);
    ck_assert_msg(second != NULL, "the print does not parse: %s\n%s", said, first);
    ck_assert_str_eq(first, second);
    free(second);
    free(said);
    free(first);
}

static void mutate_file(const char *path) {
    char *text = read_text(path);
    size_t n = strlen(text);
    uint64_t stream = moe_hash_name(strrchr(path, '/'));
    static const char bytes[] = "%@#{}[]<>=:,\"\\ \n0129-.rfx\xc3\x01";
    for (uint64_t i = 0; i < 150; i++) {
        char *copy = strdup(text);
        size_t n_edits = 1 + moe_rng_below(1, stream, i * 64, 3);
        for (uint64_t k = 0; k < n_edits; k++) {
            size_t at = moe_rng_below(1, stream, i * 64 + 3 * k + 1, n);
            copy[at] = bytes[moe_rng_below(1, stream, i * 64 + 3 * k + 2, sizeof bytes - 1)];
            if (moe_rng_below(1, stream, i * 64 + 3 * k + 3, 4) == 0)
                copy[at] = 0; /* truncated */
        }
        check_stable(copy);
        free(copy);
    }
    free(text);
}

START_TEST(test_mutants) {
    ck_assert_int_ge(walk(MOE_SOURCE_DIR "/tests/golden/text", ".moe", mutate_file), 5);
}
END_TEST

int main(void) {
    Suite *s = suite_create("ir_text");
    TCase *tc = tcase_create("text");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, test_tree_round_trip);
    tcase_add_test(tc, test_golden_text_has_every_op);
    tcase_add_test(tc, test_errors);
    tcase_add_test(tc, test_free_forms);
    tcase_add_test(tc, test_op_line);
    tcase_add_test(tc, test_hostile_sizes);
    tcase_add_test(tc, test_long_line);
    tcase_add_test(tc, test_too_many_errors_stop);
    tcase_add_test(tc, test_file_errors);
    tcase_add_test(tc, test_mutants);
    suite_add_tcase(s, tc);
    return moe_check_main(s);
}
