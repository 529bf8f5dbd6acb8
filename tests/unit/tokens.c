/* formats/tokens.h: text, JSONL and token files, good and bad. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/tokens.h"
#include "tests/support/check_main.h"
#include "tests/support/files.h"
#include "tests/support/status_checks.h"

#define REFUSED(expr, ...) FAILS(expr, MOE_E_INPUT, __VA_ARGS__)

static MoeTokens *tokens;

static MoeStatus open_as(const char *name, const void *data, size_t n, MoeDataFormat format,
                         int64_t vocab) {
    return moe_tokens_open(moe_test_file(name, data, n), format, "byte", vocab, &tokens);
}

static MoeStatus open_text(const char *name, const char *text) {
    return open_as(name, text, strlen(text), MOE_DATA_AUTO, 256);
}

/* Opens, compares all ids, each also on its own, closes. */
static void expect_ids(MoeStatus st, const int32_t *ids, int64_t n, double bytes_per_token) {
    ck_assert_msg(!st, "%s", moe_status_message(st));
    ck_assert_int_eq(moe_tokens_count(tokens), n);
    ck_assert_double_eq(moe_tokens_bytes_per_token(tokens), bytes_per_token);
    int32_t *all = malloc((size_t)n * sizeof *all), one;
    moe_tokens_read(tokens, 0, n, all);
    for (int64_t i = 0; i < n; i++) {
        moe_tokens_read(tokens, i, 1, &one);
        CHECK_EACH(all[i] == ids[i] && one == ids[i], "token %lld is %d, expected %d",
                   (long long)i, all[i], ids[i]);
    }
    moe_tokens_read(tokens, n, 0, NULL);
    free(all);
    moe_tokens_close(tokens);
}

static void expect_text(MoeStatus st, const char *text, size_t n) {
    int32_t *ids = malloc(n * sizeof *ids);
    for (size_t i = 0; i < n; i++)
        ids[i] = (unsigned char)text[i];
    expect_ids(st, ids, (int64_t)n, 1);
    free(ids);
}

START_TEST(test_text) {
    const char *text = "Hello,\n\xe2\x82\xac world\r\n";
    expect_text(open_text("a.txt", text), text, strlen(text));
    expect_text(open_as("a.jsonl", "{x", 2, MOE_DATA_TEXT, 300), "{x",
                2); /* the format given wins */
    expect_text(open_as("nul.txt", "a\0b", 3, MOE_DATA_AUTO, 256), "a\0b", 3);
    REFUSED(open_text("a.txt", ""), "a.txt", "no tokens");
    /* Plain text is bytes: any encoding trains, and a cut in mid-character is no error. */
    expect_text(open_text("a.txt", "th\xffree \xe2\x82"), "th\xffree \xe2\x82", 9);
    REFUSED(open_as("a.txt", "a", 1, MOE_DATA_AUTO, 255), "vocab_size", "256", "255");
    REFUSED(moe_tokens_open(moe_test_file("a.txt", "a", 1), MOE_DATA_AUTO, "bpe", 256, &tokens),
          "\"bpe\"", "\"byte\"");
    REFUSED(moe_tokens_open(moe_test_file("a.txt", "a", 1), MOE_DATA_AUTO, NULL, 256, &tokens),
          "\"byte\"");
    REFUSED(moe_tokens_open(moe_test_dir(), MOE_DATA_AUTO, "byte", 256, &tokens), "directory");
    const char *wrong = moe_test_error(
        moe_tokens_open(moe_test_path("none.txt"), MOE_DATA_AUTO, "byte", 256, &tokens), MOE_E_IO,
        "none.txt", NULL);
    ck_assert_msg(!wrong, "%s", wrong);
    moe_tokens_close(NULL);
}
END_TEST

START_TEST(test_jsonl) {
    expect_text(
        open_text("d.jsonl", "{\"text\": \"one\"}\n{\"id\": 3, \"text\": \"two\\n\\u00e9\"}\n"),
        "one\ntwo\n\xc3\xa9\n", 11);
    /* empty lines, CRLF, a byte order mark, no newline at the end, an empty document, NUL and a
     * pair of surrogates */
    expect_text(
        open_text("d.jsonl",
                  "\xef\xbb\xbf{\"text\":\"a\"}\r\n\n  \t\r\n{\"text\":\"\"}\n{\"text\":\"\\u0000b"
                  "\\ud83d\\ude00\"}"),
        "a\n\n\0b\xf0\x9f\x98\x80\n", 10);
    REFUSED(open_text("d.jsonl", "\n \n"), "no tokens");
    REFUSED(open_text("d.jsonl", ""), "no tokens");
    REFUSED(open_text("d.jsonl", "{\"text\":\"a\"}\n{\"text\": \n"), "d.jsonl:2:", "bad JSON",
          "\"text\"");
    REFUSED(open_text("d.jsonl", "{\"text\":\"a\"}\n\n{\"txt\":\"a\"}\n"),
          "d.jsonl:3: \"text\" is missing", "a string");
    REFUSED(open_text("d.jsonl", "{\"text\":5}\n"), "d.jsonl:1: \"text\" must be a string",
          "an integer 5");
    REFUSED(open_text("d.jsonl", "{\"text\":null}\n"), "d.jsonl:1:", "null");
    REFUSED(open_text("d.jsonl", "[\"text\"]\n"), "d.jsonl:1: expected an object", "an array");
    REFUSED(open_text("d.jsonl", "\"text\"\n"), "d.jsonl:1:");
    REFUSED(open_text("d.jsonl", "plain words\n"), "d.jsonl:1:", "bad JSON");
    REFUSED(open_text("d.jsonl", "{\"text\":\"a\"} {\"text\":\"b\"}\n"), "d.jsonl:1:");
    REFUSED(open_text("d.jsonl", "{\"text\":\"a\",\"text\":\"b\"}\n"), "d.jsonl:1:", "duplicate");
    REFUSED(open_text("d.jsonl", "{\"text\":\"a\"}\n{\"text\":\"\xff\"}\n"), "d.jsonl:2:", "0xff",
          "byte 10 of the line", "offset 22");
    REFUSED(open_text("d.jsonl", "{\"text\":\"\\ud800\"}\n"), "d.jsonl:1:");
    REFUSED(open_as("d.jsonl", "{\"text\":\"a\"}", 12, MOE_DATA_AUTO, 10), "vocab_size");
}
END_TEST

/* Many lines: what is decoded is in order and complete. */
START_TEST(test_jsonl_long) {
    enum { LINES = 20000 };
    char *file = malloc(LINES * 64), *text = malloc(LINES * 64);
    size_t n = 0, m = 0;
    for (int i = 0; i < LINES; i++) {
        n += (size_t)sprintf(file + n, "{\"text\":\"doc %d \\\"q\\\" \\\\\"}\n", i);
        m += (size_t)sprintf(text + m, "doc %d \"q\" \\\n", i);
    }
    expect_text(open_as("long.jsonl", file, n, MOE_DATA_AUTO, 256), text, m);
    free(file);
    free(text);
}
END_TEST

START_TEST(test_raw) {
    static const unsigned char raw[] = {1, 0, 0xff, 0xff, 0, 0x80, 2, 1};
    static const int32_t ids16[] = {1, 65535, 32768, 258}, ids32[] = {1, 258};
    static const unsigned char raw32[] = {1, 0, 0, 0, 2, 1, 0, 0},
                               high[] = {1, 0, 0, 0, 0, 0, 0, 0x80};
    expect_ids(open_as("t.u16", raw, 8, MOE_DATA_AUTO, 65536), ids16, 4, 0);
    expect_ids(open_as("t.xyz", raw, 8, MOE_DATA_U16, 70000), ids16, 4, 0);
    expect_ids(open_as("t.u32", raw32, 8, MOE_DATA_AUTO, 259), ids32, 2, 0);
    expect_ids(moe_tokens_open(moe_test_file("t.u32", raw32, 8), MOE_DATA_AUTO, NULL, 259, &tokens),
               ids32, 2, 0);
    REFUSED(open_as("t.u32", raw32, 8, MOE_DATA_AUTO, 258), "t.u32: token 1 has id 258",
          "vocab_size is 258");
    REFUSED(open_as("t.u16", raw, 8, MOE_DATA_AUTO, 65535), "token 1 has id 65535");
    REFUSED(open_as("t.u16", raw, 7, MOE_DATA_AUTO, 65536), "7 bytes", "2-byte");
    REFUSED(open_as("t.u32", raw, 6, MOE_DATA_AUTO, 65536), "6 bytes", "4-byte");
    REFUSED(open_as("t.u32", raw, 0, MOE_DATA_AUTO, 65536), "no tokens");
    REFUSED(open_as("t.u32", high, 8, MOE_DATA_AUTO, (int64_t)1 << 40), "token 1 has id 2147483648");
    REFUSED(open_as("t.bin", raw, 8, MOE_DATA_AUTO, 65536), "t.bin", "--format u16", "u32");
    expect_ids(open_as("t.bin", raw, 8, MOE_DATA_U16, 65536), ids16, 4, 0);
}
END_TEST

/* llm.c: 256 int32 of header, then tokens. */
static size_t make_llmc(unsigned char *out, uint32_t magic, uint32_t version, uint32_t count,
                        const void *data, size_t n) {
    memset(out, 0, 1024);
    const uint32_t fields[3] = {magic, version, count};
    for (int i = 0; i < 12; i++)
        out[i] = (unsigned char)(fields[i / 4] >> (8 * (i % 4)));
    memcpy(out + 1024, data, n);
    return 1024 + n;
}

START_TEST(test_llmc) {
    unsigned char file[1100];
    static const unsigned char data[] = {5, 0, 0x50, 0xc4, 7, 0, 0, 0};
    static const int32_t ids16[] = {5, 50256, 7, 0};
    size_t n = make_llmc(file, 20240520, 1, 4, data, 8);
    expect_ids(open_as("l.bin", file, n, MOE_DATA_AUTO, 50257), ids16, 4, 0);
    expect_ids(open_as("l.dat", file, n, MOE_DATA_LLMC, 50257), ids16, 4, 0);
    REFUSED(open_as("l.bin", file, n, MOE_DATA_AUTO, 50256), "token 1 has id 50256");
    REFUSED(open_as("l.bin", file, n - 2, MOE_DATA_AUTO, 50257), "the header says 4 tokens",
          "1032 bytes", "1030");
    REFUSED(open_as("l.bin", file, n + 1, MOE_DATA_AUTO, 50257), "the header says 4 tokens");
    REFUSED(open_as("l.bin", file, 1000, MOE_DATA_LLMC, 50257), "1000 bytes", "too short");
    REFUSED(open_as("l.bin", file, 1000, MOE_DATA_AUTO, 50257), "--format");
    static const unsigned char wide[] = {5, 0, 1, 0, 7, 0, 0, 0};
    static const int32_t wide_ids[] = {65541, 7};
    n = make_llmc(file, 20240801, 7, 2, wide, 8);
    expect_ids(open_as("l.bin", file, n, MOE_DATA_AUTO, 128256), wide_ids, 2, 0);
    n = make_llmc(file, 20240801, 7, UINT32_MAX, wide, 8);
    REFUSED(open_as("l.bin", file, n, MOE_DATA_AUTO, 128256), "the header says 4294967295 tokens");
    n = make_llmc(file, 20240801, 1, 2, wide, 8);
    REFUSED(open_as("l.bin", file, n, MOE_DATA_LLMC, 128256), "magic 20240801 version 1",
          "20240520 version 1");
    REFUSED(open_as("l.bin", file, n, MOE_DATA_AUTO, 128256), "--format");
    n = make_llmc(file, 20240520, 1, 0, wide, 0);
    REFUSED(open_as("l.bin", file, n, MOE_DATA_AUTO, 50257), "no tokens");
}
END_TEST

START_TEST(test_names) {
    MoeDataFormat f;
    ck_assert(moe_data_format_from_name("auto", &f) && f == MOE_DATA_AUTO);
    ck_assert(moe_data_format_from_name("text", &f) && f == MOE_DATA_TEXT);
    ck_assert(moe_data_format_from_name("jsonl", &f) && f == MOE_DATA_JSONL);
    ck_assert(moe_data_format_from_name("u16", &f) && f == MOE_DATA_U16);
    ck_assert(moe_data_format_from_name("u32", &f) && f == MOE_DATA_U32);
    ck_assert(moe_data_format_from_name("llmc", &f) && f == MOE_DATA_LLMC);
    ck_assert(!moe_data_format_from_name("csv", &f) && !moe_data_format_from_name("", &f));
}
END_TEST

int main(void) {
    moe_test_dir();
    Suite *s = suite_create("tokens");
    TCase *c = tcase_create("tokens");
    tcase_set_timeout(c, 60);
    tcase_add_test(c, test_text);
    tcase_add_test(c, test_jsonl);
    tcase_add_test(c, test_jsonl_long);
    tcase_add_test(c, test_raw);
    tcase_add_test(c, test_llmc);
    tcase_add_test(c, test_names);
    suite_add_tcase(s, c);
    return moe_check_main(s);
}
