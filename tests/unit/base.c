/* base/: statuses, arenas, strings and numbers as text, diagnostics, half precision, random
 * numbers. */
#include <check.h>
#include <math.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/assert.h"
#include "base/diag.h"
#include "base/half.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/str.h"
#include "tests/support/check_main.h"
#include "tests/support/files.h"
#include "tests/support/status_checks.h"

START_TEST(test_status) {
    MoeStatus st = moe_error(MOE_E_INPUT, "key \"%s\": %d", "lr", 3);
    ck_assert_str_eq(moe_status_message(st), "key \"lr\": 3");
    ck_assert_int_eq(moe_status_code(st), MOE_E_INPUT);
    ck_assert_int_eq(moe_status_exit_code(st), 1);
    st = moe_status_prefix(st, "%s", "config.json");
    ck_assert_str_eq(moe_status_message(st), "config.json: key \"lr\": 3");
    moe_status_free(st);
    ck_assert_int_eq(moe_status_exit_code(NULL), 0);
    ck_assert_ptr_null(moe_status_prefix(NULL, "x"));
    st = moe_error(MOE_E_MISUSE, "no");
    ck_assert_int_eq(moe_status_exit_code(st), 2);
    moe_status_free(st);
    errno = ENOSPC;
    st = moe_error_errno("writing %s", "a");
    ck_assert_str_eq(moe_status_message(st), "writing a: No space left on device");
    ck_assert_int_eq(moe_status_code(st), MOE_E_IO);
    moe_status_free(st);
    errno = ENOMEM;
    ck_assert_ptr_null(moe_test_error(moe_error_errno("x"), MOE_E_NOMEM, "x: ", NULL));
    char *big = malloc(100000); /* messages are not cut */
    memset(big, 'y', 99999);
    big[99999] = 0;
    st = moe_error(MOE_E_INPUT, "%s", big);
    ck_assert_uint_eq(strlen(moe_status_message(st)), 99999);
    moe_status_free(st);
    free(big);
}
END_TEST

START_TEST(test_assert_aborts) {
    int x = 1;
    MOE_ASSERT(x == 2, "x is %d", x);
}
END_TEST

START_TEST(test_arena) {
    MoeArena *a = moe_arena_create();
    unsigned char *last = NULL;
    for (size_t n = 0; n < 40000; n += 97) { /* small and large ones mixed */
        unsigned char *p = moe_arena_alloc(a, n);
        ck_assert_uint_eq((uintptr_t)p % 16, 0);
        ck_assert_ptr_ne(p, last);
        for (size_t i = 0; i < n; i++)
            CHECK_EACH(p[i] == 0, "byte %zu of %zu is %d", i, n, p[i]);
        memset(p, 0xff, n);
        last = p;
    }
    ck_assert_str_eq(moe_arena_strdup(a, "hello"), "hello");
    ck_assert_str_eq(moe_arena_strndup(a, "hello", 2), "he");
    ck_assert_str_eq(moe_arena_strndup(a, "h", 20), "h");
    ck_assert_str_eq(moe_arena_printf(a, "%d-%s", 7, "z"), "7-z");
    int *items = NULL;
    size_t n = 0, cap = 0;
    for (int i = 0; i < 1000; i++)
        MOE_PUSH(a, items, n, cap, i * 3);
    ck_assert_uint_eq(n, 1000);
    for (int i = 0; i < 1000; i++)
        ck_assert_int_eq(items[i], i * 3);
    moe_arena_destroy(a);
    moe_arena_destroy(NULL);
}
END_TEST

START_TEST(test_str) {
    MoeStr s = {0};
    ck_assert_str_eq(moe_str_c(&s), "");
    for (int i = 0; i < 1000; i++)
        moe_str_printf(&s, "%d,", i);
    ck_assert_uint_eq(s.len, 10 * 2 + 90 * 3 + 900 * 4);
    ck_assert_uint_eq(strlen(s.data), s.len);
    moe_str_clear(&s);
    moe_str_append(&s, "a");
    moe_str_putc(&s, 'b');
    moe_str_append_n(&s, "cdef", 2);
    moe_str_printf(&s, "%0200d", 5); /* longer than the room left */
    ck_assert_uint_eq(s.len, 204);
    ck_assert_int_eq(s.data[203], '5');
    ck_assert_int_eq(strncmp(s.data, "abcd000", 7), 0);
    moe_str_free(&s);
}
END_TEST

START_TEST(test_format_double) {
    static const struct {
        double v;
        const char *text;
    } rows[] = {{0, "0.0"},
                {-0.0, "-0.0"},
                {2, "2.0"},
                {0.5, "0.5"},
                {1e-5, "1e-05"},
                {0.1, "0.1"},
                {1e22, "1e+22"},
                {-3, "-3.0"},
                {1.0 / 3, "0.3333333333333333"},
                {INFINITY, "inf"},
                {-INFINITY, "-inf"},
                {NAN, "nan"},
                {123456789, "123456789.0"}};
    char buf[32];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        ck_assert_str_eq(moe_format_double(rows[i].v, buf), rows[i].text);
    for (uint64_t i = 0; i < 200000; i++) { /* random bit patterns read back exactly */
        uint64_t bits = moe_rng_u64(1, 2, i), again;
        double v, w;
        memcpy(&v, &bits, 8);
        if (!isfinite(v))
            continue;
        ck_assert(moe_parse_double(moe_format_double(v, buf), &w));
        memcpy(&again, &w, 8);
        ck_assert_msg(bits == again, "%s", buf);
        ck_assert(strpbrk(buf, ".e") != NULL && strlen(buf) < 32);
    }
}
END_TEST

START_TEST(test_format_units) {
    char b[32];
    ck_assert_str_eq(moe_format_bytes(1536, b), "1.5 KiB");
    ck_assert_str_eq(moe_format_bytes(0, b), "0 B");
    ck_assert_str_eq(moe_format_bytes(1023, b), "1023 B");
    ck_assert_str_eq(moe_format_bytes(1024, b), "1.0 KiB");
    ck_assert_str_eq(moe_format_bytes(1024.0 * 1024 - 1, b), "1.0 MiB");
    ck_assert_str_eq(moe_format_bytes(3.5 * 1024 * 1024 * 1024, b), "3.5 GiB");
    ck_assert_str_eq(moe_format_duration(3725, b), "1h02m");
    ck_assert_str_eq(moe_format_duration(59.99, b), "1m00s");
    ck_assert_str_eq(moe_format_duration(12.34, b), "12.3s");
    ck_assert_str_eq(moe_format_duration(0.25, b), "250ms");
    ck_assert_str_eq(moe_format_duration(86400 * 2 + 3 * 3600, b), "2d03h");
    ck_assert_str_eq(moe_format_duration(NAN, b), "?");
}
END_TEST

START_TEST(test_parse) {
    int64_t i = 42;
    double d = 42;
    static const char *const bad_i[] = {"",  " 1",   "1 ", "x", "1.0", "9223372036854775808",
                                        "-", "0x10", "1e3"};
    static const char *const bad_d[] = {"", " 1", "1 ", "x", "1e999", "-1e999", "1..2"};
    for (size_t k = 0; k < sizeof bad_i / sizeof *bad_i; k++)
        ck_assert_msg(!moe_parse_i64(bad_i[k], &i) && i == 42, "\"%s\"", bad_i[k]);
    for (size_t k = 0; k < sizeof bad_d / sizeof *bad_d; k++)
        ck_assert_msg(!moe_parse_double(bad_d[k], &d) && d == 42, "\"%s\"", bad_d[k]);
    ck_assert(moe_parse_i64("-9223372036854775808", &i) && i == INT64_MIN);
    ck_assert(moe_parse_i64("9223372036854775807", &i) && i == INT64_MAX);
    ck_assert(moe_parse_double("5e-324", &d) && d == 5e-324);
    ck_assert(moe_parse_double("-.5", &d) && d == -.5);
}
END_TEST

START_TEST(test_nearest) {
    static const char *const names[] = {"matmul", "rms_norm", "softmax", "route_topk", "add"};
    ck_assert_str_eq(moe_nearest_name("matmull", names, 5), "matmul");
    ck_assert_str_eq(moe_nearest_name("sofmtax", names, 5), "softmax");
    ck_assert_str_eq(moe_nearest_name("rmsnorm", names, 5), "rms_norm");
    ck_assert_str_eq(moe_nearest_name("ad", names, 5), "add");
    ck_assert_ptr_null(moe_nearest_name("convolution", names, 5));
    ck_assert_ptr_null(moe_nearest_name("add", names, 0));
}
END_TEST

START_TEST(test_utf8) {
    static const struct {
        const char *s;
        int bad; /* offset, -1 = valid */
    } rows[] = {{"", -1},
                {"plain ascii, more than eight bytes", -1},
                {"h\xc3\xa9llo \xe2\x82\xac \xf0\x9f\x98\x80", -1},
                {"\xf4\x8f\xbf\xbf", -1},
                {"\xed\x9f\xbf\xee\x80\x80", -1},
                {"abc\xff", 3},
                {"\x80", 0},
                {"\xc0\xaf", 0},         /* overlong */
                {"\xe0\x9f\xbf", 0},     /* overlong */
                {"\xf0\x8f\xbf\xbf", 0}, /* overlong */
                {"ok\xed\xa0\x80", 2},   /* surrogate */
                {"\xf4\x90\x80\x80", 0}, /* past U+10FFFF */
                {"12345678\xe2\x82", 8}, /* cut */
                {"\xe2\x28\xa1", 0},
                {"\xf5\x80\x80\x80", 0}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t at = 999;
        bool ok = moe_utf8_valid(rows[i].s, strlen(rows[i].s), &at);
        ck_assert_msg(ok == (rows[i].bad < 0), "row %zu", i);
        ck_assert_uint_eq(at, ok ? 999 : (size_t)rows[i].bad);
    }
    ck_assert(!moe_utf8_valid("\xff", 1, NULL));
}
END_TEST

START_TEST(test_diag) {
    const char *source = "first line\n\tx = fooo(1)\nlast";
    MoeDiag d = {.file = "a.moe", .source = source, .max_errors = 3};
    ck_assert_ptr_null(moe_diag_status(&d));
    moe_diag_error(&d, (MoeLoc){2, 6}, "unknown op \"%s\"", "fooo");
    moe_diag_hint(&d, "did you mean \"%s\"?", "foo");
    ck_assert_str_eq(d.text.data,
                     "a.moe:2:6: error: unknown op \"fooo\"\n    \tx = fooo(1)\n    \t    ^\n"
                     "  hint: did you mean \"foo\"?\n");
    moe_diag_error(&d, (MoeLoc){3, 99}, "past the end of the line");
    moe_diag_error(&d, (MoeLoc){99, 1}, "past the end of the text");
    ck_assert_ptr_nonnull(strstr(d.text.data, "    last\n        ^\n"));
    size_t len = d.text.len;
    moe_diag_error(&d, (MoeLoc){1, 1}, "fourth");
    moe_diag_hint(&d, "of the fourth");
    moe_diag_error(&d, (MoeLoc){1, 1}, "fifth");
    ck_assert_uint_eq(d.n_errors, 5);
    ck_assert_str_eq(d.text.data + len, "a.moe: too many errors; the rest is not shown\n");
    ck_assert_ptr_null(
        moe_test_error(moe_diag_status(&d), MOE_E_INPUT, "a.moe:2:6: error: unknown", NULL));
    moe_diag_free(&d);
}
END_TEST

START_TEST(test_diag_long_line) {
    char source[5001];
    memset(source, 'a', 5000);
    source[2999] = '!';
    source[5000] = 0;
    MoeDiag d = {.file = "x.json", .source = source};
    moe_diag_error(&d, (MoeLoc){1, 3000}, "here");
    ck_assert_uint_lt(d.text.len, 600);
    const char *line = strchr(d.text.data, '\n') + 1, *caret_line = strchr(line, '\n') + 1;
    ck_assert_int_eq(line[strchr(caret_line, '^') - caret_line], '!');
    moe_diag_free(&d);
}
END_TEST

START_TEST(test_bf16) {
    for (uint32_t h = 0; h < 65536; h++) { /* every value survives the way out and back */
        float f = moe_bf16_to_f32((uint16_t)h);
        if (isnan(f))
            CHECK_EACH(isnan(moe_bf16_to_f32(moe_f32_to_bf16(f))), "bf16 %x", h);
        else
            CHECK_EACH(moe_f32_to_bf16(f) == h, "bf16 %x", h);
    }
    ck_assert_uint_eq(moe_f32_to_bf16(0x1.01p0f), 0x3f80); /* tie: to even */
    ck_assert_uint_eq(moe_f32_to_bf16(0x1.03p0f), 0x3f82);
    ck_assert_uint_eq(moe_f32_to_bf16(0x1.010002p0f), 0x3f81);
    ck_assert_uint_eq(moe_f32_to_bf16(3.4e38f), 0x7f80); /* rounds up to infinity */
    uint32_t signalling = 0x7f800001u;                   /* must not become infinity */
    float f;
    memcpy(&f, &signalling, 4);
    ck_assert(isnan(moe_bf16_to_f32(moe_f32_to_bf16(f))));
}
END_TEST

/* The value of a binary16 by its definition. */
static double f16_value(uint16_t h) {
    int e = (h >> 10) & 31, m = h & 1023;
    double v = e == 31 ? (m ? (double)NAN : (double)INFINITY)
               : e     ? ldexp(1024 + m, e - 25)
                       : ldexp(m, -24);
    return h & 0x8000 ? -v : v;
}

START_TEST(test_f16) {
    for (uint32_t h = 0; h < 65536; h++) {
        float f = moe_f16_to_f32((uint16_t)h);
        double expected = f16_value((uint16_t)h);
        if (isnan(expected)) {
            CHECK_EACH(isnan(f) && isnan(moe_f16_to_f32(moe_f32_to_f16(f))), "f16 %x", h);
            continue;
        }
        CHECK_EACH((double)f == expected && !signbit(f) == !signbit(expected), "f16 %x", h);
        CHECK_EACH(moe_f32_to_f16(f) == h, "f16 %x", h);
        if ((h & 0x7fff) >= 0x7bff)
            continue;
        /* Between h and its neighbour away from zero: the middle goes to even, its neighbours to
         * their side. */
        float middle = (float)((expected + f16_value((uint16_t)(h + 1))) / 2);
        float away = copysignf(INFINITY, middle);
        CHECK_EACH(moe_f32_to_f16(middle) == h + (h & 1), "middle above f16 %x", h);
        CHECK_EACH(moe_f32_to_f16(nextafterf(middle, 0)) == h, "below the middle, f16 %x", h);
        CHECK_EACH(moe_f32_to_f16(nextafterf(middle, away)) == h + 1, "above the middle, f16 %x", h);
    }
    ck_assert_uint_eq(moe_f32_to_f16(65519.99f), 0x7bff);
    ck_assert_uint_eq(moe_f32_to_f16(65520.0f), 0x7c00);
    ck_assert_uint_eq(moe_f32_to_f16(-1e30f), 0xfc00);
}
END_TEST

START_TEST(test_philox) {
    /* The known-answer vectors of the authors' Random123 library. */
    uint32_t w[4];
    moe_philox(0, 0, 0, w);
    ck_assert(w[0] == 0x6627e8d5u && w[1] == 0xe169c58du && w[2] == 0xbc57ac4cu &&
              w[3] == 0x9b00dbd8u);
    moe_philox(UINT64_MAX, UINT64_MAX, UINT64_MAX, w);
    ck_assert(w[0] == 0x408f276du && w[1] == 0x41c83b0eu && w[2] == 0xa20bc7c6u &&
              w[3] == 0x6d5451fdu);
    moe_philox(0x299f31d0a4093822u, 0x0370734413198a2eu, 0x85a308d3243f6a88u, w);
    ck_assert(w[0] == 0xd16cfe09u && w[1] == 0x94fdccebu && w[2] == 0x5001e420u &&
              w[3] == 0x24126ea1u);
}
END_TEST

START_TEST(test_distributions) {
    enum { N = 200000 };
    double sum = 0, square = 0, third = 0, fourth = 0, uniform = 0;
    int64_t counts[10] = {0};
    for (uint64_t i = 0; i < N; i++) {
        double z = moe_rng_normal(7, 3, i), u = moe_rng_uniform(7, 4, i);
        CHECK_EACH(isfinite(z) && u >= 0 && u < 1, "draw %llu", (unsigned long long)i);
        sum += z;
        square += z * z;
        third += z * z * z;
        fourth += z * z * z * z;
        uniform += u;
        uint64_t b = moe_rng_below(7, 5, i, 10);
        ck_assert_uint_lt(b, 10);
        counts[b]++;
    }
    /* Five standard errors of each estimate. */
    ck_assert_double_lt(fabs(sum / N), 5 / sqrt(N));
    ck_assert_double_lt(fabs(square / N - 1), 5 * sqrt(2.0 / N));
    ck_assert_double_lt(fabs(third / N), 5 * sqrt(15.0 / N));
    ck_assert_double_lt(fabs(fourth / N - 3), 5 * sqrt(96.0 / N));
    ck_assert_double_lt(fabs(uniform / N - 0.5), 5 * sqrt(1.0 / 12 / N));
    for (int i = 0; i < 10; i++)
        ck_assert_double_lt(fabs((double)counts[i] - N / 10.0), 5 * sqrt(N * 0.09));
    ck_assert_uint_eq(moe_rng_below(1, 1, 1, 1), 0);
    ck_assert(moe_rng_u64(1, 2, 3) != moe_rng_u64(1, 3, 2) &&
              moe_rng_u64(1, 2, 3) != moe_rng_u64(2, 2, 3));
    ck_assert(moe_hash_name("layers.0") != moe_hash_name("layers.1"));
    ck_assert_uint_eq(moe_hash_name(""),
                      0x2d06800538d394c2u); /* XXH3-64 of nothing: stable across versions */
}
END_TEST

START_TEST(test_checked_sizes) {
    int64_t r = 5;
    size_t z = 5;
    ck_assert(!moe_mul_i64(INT64_MAX, 2, &r) && r == 5);
    ck_assert(!moe_mul_i64(INT64_MIN, -1, &r) && r == 5);
    ck_assert(!moe_add_i64(INT64_MAX, 1, &r) && r == 5);
    ck_assert(moe_mul_i64(1 << 20, 1 << 20, &r) && r == (int64_t)1 << 40);
    ck_assert(!moe_mul_size(SIZE_MAX, 2, &z) && !moe_add_size(SIZE_MAX, 1, &z) && z == 5);
    ck_assert(moe_add_size(2, 3, &z) && moe_mul_size(z, 3, &z) && z == 15);
}
END_TEST

/* Arrays that grow keep what they hold; where the size does not fit, all is as it was. */
START_TEST(test_room) {
    struct {
        char bytes[24];
    } *items = NULL;
    size_t n = 0, cap = 0, huge = SIZE_MAX / 2 + 1;
    for (; n < 1000; n++) {
        ck_assert(MOE_ROOM(items, n, cap) && cap > n);
        memset(items[n].bytes, (int)(n % 251), sizeof items[n].bytes);
    }
    for (size_t i = 0; i < n; i++)
        ck_assert_int_eq((unsigned char)items[i].bytes[23], i % 251);
    void *before = items;
    ck_assert(!MOE_ROOM(items, huge, huge) && items == before && huge == SIZE_MAX / 2 + 1);
    huge = SIZE_MAX / 32;
    ck_assert(!MOE_ROOM(items, huge, huge) && items == before && huge == SIZE_MAX / 32);
    free(items);
}
END_TEST

START_TEST(test_big) {
    size_t before = moe_rss_bytes(), n = (size_t)1 << 33;
    void *p;
    ck_assert_uint_gt(before, 0);
    ck_assert_ptr_null(moe_alloc_big(n, "a slab", &p)); /* 8 GiB that nobody touches cost nothing */
    unsigned char *bytes = p;
    ck_assert_uint_eq((uintptr_t)p % 64, 0);
    ck_assert_uint_eq(bytes[0] + bytes[n - 1] + bytes[n + 63], 0); /* and the read slack is there */
    ck_assert_uint_lt(moe_rss_bytes(), before + ((size_t)64 << 20));
    moe_free_big(p, n);
    ck_assert_ptr_null(moe_alloc_big(0, "nothing", &p));
    moe_free_big(p, 0);
    moe_free_big(NULL, 10);
    ck_assert_ptr_null(moe_test_error(moe_alloc_big((size_t)1 << 60, "the slab", &p), MOE_E_NOMEM,
                                      "1.0 EiB", "the slab", NULL));
    ck_assert_ptr_null(
        moe_test_error(moe_alloc_big(SIZE_MAX, "the slab", &p), MOE_E_NOMEM, "the slab", NULL));
    ck_assert_uint_ge(moe_rss_peak_bytes(), moe_rss_bytes() / 2);
}
END_TEST

int main(void) {
    Suite *s = suite_create("base");
    TCase *c = tcase_create("base");
    tcase_set_timeout(c, 60);
    tcase_add_test(c, test_status);
    tcase_add_test_raise_signal(c, test_assert_aborts, SIGABRT);
    tcase_add_test(c, test_arena);
    tcase_add_test(c, test_str);
    tcase_add_test(c, test_format_double);
    tcase_add_test(c, test_format_units);
    tcase_add_test(c, test_parse);
    tcase_add_test(c, test_nearest);
    tcase_add_test(c, test_utf8);
    tcase_add_test(c, test_diag);
    tcase_add_test(c, test_diag_long_line);
    tcase_add_test(c, test_bf16);
    tcase_add_test(c, test_f16);
    tcase_add_test(c, test_philox);
    tcase_add_test(c, test_distributions);
    tcase_add_test(c, test_checked_sizes);
    tcase_add_test(c, test_room);
    tcase_add_test(c, test_big);
    suite_add_tcase(s, c);
    return moe_check_main(s);
}
