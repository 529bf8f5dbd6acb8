/* formats/safetensors.h: what is written reads back; shards; and headers that lie in every way we
 * know of. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "formats/safetensors.h"
#include "tests/support/check_main.h"
#include "tests/support/files.h"
#include "tests/support/status_checks.h"

#define REFUSED(expr, ...) FAILS(expr, MOE_E_INPUT, __VA_ARGS__)

static MoeSafetensors *model;

/* A file with this length field, header text and n_data zero bytes. */
static const char *raw_file(const char *name, uint64_t length, const char *header, size_t n_data) {
    size_t n = strlen(header);
    unsigned char *bytes = calloc(1, 8 + n + n_data + 1);
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(length >> (8 * i));
    memcpy(bytes + 8, header, n);
    const char *path = moe_test_file(name, bytes, 8 + n + n_data);
    free(bytes);
    return path;
}

static MoeStatus open_header(const char *header, size_t n_data) {
    return moe_st_open(raw_file("h.safetensors", strlen(header), header, n_data), &model);
}

static const char *hex_bytes(const MoeStTensor *t) {
    static char text[256];
    text[0] = 0;
    for (size_t i = 0; i < t->n_bytes && i < 100; i++)
        sprintf(text + 2 * i, "%02x", ((const unsigned char *)t->data)[i]);
    return text;
}

typedef struct {
    int calls;
    int64_t next;
    bool fail;
} Source;

/* Element i of the filled tensor is i. */
static MoeStatus fill_counting(void *ctx, size_t tensor, int64_t first, int64_t n, void *out) {
    Source *s = ctx;
    ck_assert_uint_eq(tensor, 2);
    ck_assert_int_eq(first, s->next);
    s->next = first + n;
    s->calls++;
    if (s->fail && s->calls == 2)
        return moe_error(MOE_E_INPUT, "the source broke");
    for (int64_t i = 0; i < n; i++)
        ((float *)out)[i] = (float)(first + i);
    return NULL;
}

START_TEST(test_round_trip) {
    enum { BIG = 3000000 };
    static const float w[6] = {1, -2, 0.5f, INFINITY, 1e-40f, 3};
    static const int64_t ids[2] = {-5, INT64_MAX};
    static const uint16_t halves[3] = {0x3f80, 0xc000, 0x7f80};
    const char *metadata[] = {"format", "pt", "a \"quoted\" key", "\xc3\xa9\n"};
    const MoeStOut out[] = {
        {"w", MOE_ST_F32, 2, {2, 3}, w},           {"h", MOE_ST_BF16, 1, {3}, halves},
        {"big", MOE_ST_F32, 1, {BIG}, NULL},       {"scalar", MOE_ST_I64, 0, {0}, ids},
        {"empty", MOE_ST_F32, 3, {2, 0, 5}, NULL}, {"ids \"\xc3\xa9\"", MOE_ST_I64, 1, {2}, ids},
        {"mask", MOE_ST_BOOL, 1, {1}, "\1"}};
    const size_t n = sizeof out / sizeof *out;
    const char *path = moe_test_path("rt.safetensors");
    uint64_t n_bytes = 0;
    char hex[33], expected_hex[33];
    Source source = {0};
    OK(moe_st_write(path, out, n, metadata, 2, fill_counting, &source, &n_bytes, hex));
    ck_assert_int_ge(source.calls, 2);
    MoeMap m;
    OK(moe_map_open(path, &m));
    moe_hash_hex(m.data, m.n, expected_hex);
    ck_assert_uint_eq(m.n, n_bytes);
    ck_assert_str_eq(hex, expected_hex);
    uint64_t header_n;
    memcpy(&header_n, m.data, 8);
    ck_assert_uint_eq(header_n % 8, 0);
    ck_assert_int_eq(memcmp(m.data + 8, "{\"__metadata__\":{\"format\":\"pt\"", 29), 0);
    moe_map_close(&m);

    OK(moe_st_open(path, &model));
    ck_assert_uint_eq(moe_st_count(model), n);
    for (size_t i = 0; i < n; i++) {
        const MoeStTensor *t = moe_st_find(model, out[i].name);
        ck_assert_msg(t, "%s is lost", out[i].name);
        ck_assert(t->dtype == out[i].dtype && t->rank == out[i].rank);
        for (int d = 0; d < t->rank; d++)
            ck_assert_int_eq(t->dims[d], out[i].dims[d]);
        ck_assert_uint_eq(t->n_bytes, (size_t)t->elements * moe_st_dtype_bytes(t->dtype));
        if (out[i].data)
            ck_assert_int_eq(memcmp(t->data, out[i].data, t->n_bytes), 0);
    }
    ck_assert_ptr_null(moe_st_find(model, "W"));
    ck_assert_ptr_null(moe_st_find(model, "__metadata__"));
    ck_assert_str_eq(moe_st_metadata(model, "format"), "pt");
    ck_assert_str_eq(moe_st_metadata(model, "a \"quoted\" key"), "\xc3\xa9\n");
    ck_assert_ptr_null(moe_st_metadata(model, "other"));
    ck_assert_int_eq(moe_st_find(model, "scalar")->elements, 1);
    ck_assert_int_eq(moe_st_find(model, "empty")->elements, 0);
    float *big = malloc(BIG * sizeof *big), some[2];
    OK(moe_st_read_f32(moe_st_find(model, "big"), 0, BIG, big));
    for (int i = 0; i < BIG; i++)
        CHECK_EACH(big[i] == (float)i, "element %d is %g", i, (double)big[i]);
    OK(moe_st_read_f32(moe_st_find(model, "h"), 1, 2, some));
    ck_assert(some[0] == -2 && some[1] == INFINITY);
    OK(moe_st_read_f32(moe_st_find(model, "empty"), 0, 0, NULL));
    free(big);
    moe_st_close(model);
    moe_st_close(NULL);
}
END_TEST

START_TEST(test_write_errors) {
    float x[4] = {0};
    MoeStOut two[2] = {{"a", MOE_ST_F32, 1, {4}, x}, {"a", MOE_ST_F32, 1, {4}, x}};
    const char *path = moe_test_path("we.safetensors");
    REFUSED(moe_st_write(path, two, 2, NULL, 0, NULL, NULL, NULL, NULL), "\"a\"", "taken");
    two[1].name = "__metadata__";
    REFUSED(moe_st_write(path, two, 2, NULL, 0, NULL, NULL, NULL, NULL), "__metadata__");
    two[1].name = "b\xff";
    REFUSED(moe_st_write(path, two, 2, NULL, 0, NULL, NULL, NULL, NULL), "UTF-8");
    two[1] = (MoeStOut){"b", MOE_ST_F32, 3, {INT64_MAX, 2, 0}, x};
    REFUSED(moe_st_write(path, two, 2, NULL, 0, NULL, NULL, NULL, NULL), "\"b\"", "shape");
    two[1] = (MoeStOut){"b", MOE_ST_F32, 1, {-1}, x};
    REFUSED(moe_st_write(path, two, 2, NULL, 0, NULL, NULL, NULL, NULL), "\"b\"", "shape");
    two[1] = (MoeStOut){"b", MOE_ST_F32, 1, {INT64_MAX / 4}, x};
    REFUSED(moe_st_write(path, two, 2, NULL, 0, NULL, NULL, NULL, NULL), "\"b\"", "overflow");
    two[1] = (MoeStOut){"b", MOE_ST_OTHER, 1, {1}, x};
    REFUSED(moe_st_write(path, two, 2, NULL, 0, NULL, NULL, NULL, NULL), "dtype");
    const char *kv[] = {"k", "1", "k", "2"};
    REFUSED(moe_st_write(path, two, 1, kv, 2, NULL, NULL, NULL, NULL), "\"k\"", "twice");
    ck_assert(!moe_path_exists(path)); /* all of that is found before the file is made */
    const MoeStOut three[] = {{"a", MOE_ST_F32, 1, {4}, x},
                              {"b", MOE_ST_F32, 1, {4}, x},
                              {"c", MOE_ST_F32, 1, {1 << 21}, NULL}};
    Source source = {.fail = true};
    REFUSED(moe_st_write(path, three, 3, NULL, 0, fill_counting, &source, NULL, NULL),
          "the source broke");
    const char *wrong =
        moe_test_error(moe_st_write("/dev/full", two, 1, NULL, 0, NULL, NULL, NULL, NULL), MOE_E_IO,
                       "/dev/full", "No space", NULL);
    ck_assert_msg(!wrong, "%s", wrong);
}
END_TEST

#define T(dtype, shape, offsets)                                                                   \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

START_TEST(test_good_headers) {
    OK(open_header("{}", 0));
    ck_assert_uint_eq(moe_st_count(model), 0);
    ck_assert_ptr_null(moe_st_find(model, "a"));
    moe_st_close(model);
    OK(open_header("{\"__metadata__\":{}}   ", 0));
    moe_st_close(model);
    /* any order in the header, unaligned data, zero-size tensors between and at the end, rank 8 */
    OK(open_header("{\"c\":" T("F32", "[]", "[1,5]") ",\"z\":" T("F64", "[0]", "[5,5]") ",\"y\":" T(
                       "F16", "[3,0]", "[1,1]") ",\"x\":" T("I8", "[1,1,1,1,1,1,1,1]", "[0,1]") "}",
                   5));
    ck_assert_str_eq(moe_st_at(model, 0)->name, "x");
    ck_assert_str_eq(moe_st_at(model, 1)->name, "y");
    ck_assert_str_eq(moe_st_at(model, 2)->name, "c");
    ck_assert_str_eq(moe_st_at(model, 3)->name, "z");
    float x = 1;
    OK(moe_st_read_f32(moe_st_find(model, "c"), 0, 1, &x));
    ck_assert(x == 0);
    moe_st_close(model);
    /* dtypes that can be skipped but not computed with */
    OK(open_header("{\"a\":" T("F8_E4M3", "[3]", "[0,3]") ",\"b\":" T("F4", "[4]", "[3,5]") "}",
                   5));
    ck_assert_int_eq(moe_st_find(model, "b")->dtype, MOE_ST_OTHER);
    REFUSED(moe_st_read_f32(moe_st_find(model, "a"), 0, 1, &x), "\"a\"",
          "expected F64, F32, F16 or BF16");
    moe_st_close(model);
    OK(open_header(
        "{\"\":" T("U8", "[1]", "[0,1]") ",\"\xe2\x82\xac\":" T("U8", "[1]", "[1,2]") "}", 2));
    ck_assert_ptr_nonnull(moe_st_find(model, ""));
    ck_assert_ptr_nonnull(moe_st_find(model, "\xe2\x82\xac"));
    moe_st_close(model);
}
END_TEST

static const struct {
    const char *header;
    size_t n_data;
    const char *word, *word2; /* of the message */
} bad_headers[] = {
    {"", 8, "does not begin with '{'", "h.safetensors"},
    {"[]", 0, "does not begin with '{'", ""},
    {" {}", 0, "does not begin with '{'", ""},
    {"{}\n", 0, "does not end with '}' and spaces", ""},
    {"{", 0, "does not end", ""},
    {"{{}", 0, "bad JSON", "header:1:"},
    {"{} {}", 0, "bad JSON", ""},
    {"{\"a\":" T("U8", "[1]", "[0,1]") ",\"a\":" T("U8", "[1]", "[1,2]") "}", 2, "duplicate",
     "\"a\""},
    {"{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "duplicate", ""},
    {"{\"a\":" T("U8", "[1]", "[0,1],\"dtype\":\"I8\"") "}", 1, "duplicate", ""},
    {"{\"__metadata__\":{\"k\":1}}", 0, "__metadata__", "\"k\" must be a string"},
    {"{\"__metadata__\":[]}", 0, "__metadata__", "must be an object"},
    {"{\"__metadata__\":null}", 0, "__metadata__", "must be an object"},
    {"{\"a\\u0000b\":" T("U8", "[1]", "[0,1]") "}", 1, "bad JSON", ""},
    {"{\"a\xff\":" T("U8", "[1]", "[0,1]") "}", 1, "bad JSON", ""},
    {"{\"a\":5}", 0, "tensor \"a\"", "expected an object"},
    {"{\"a\":{}}", 0, "tensor \"a\"", "\"dtype\" must be a string"},
    {"{\"a\":{\"dtype\":3}}", 0, "tensor \"a\"", "\"dtype\" must be a string"},
    {"{\"a\":" T("F33", "[1]", "[0,4]") "}", 4, "tensor \"a\"", "unknown dtype \"F33\""},
    {"{\"a\":" T("f32", "[1]", "[0,4]") "}", 4, "tensor \"a\"", "unknown dtype \"f32\""},
    {"{\"a\":" T("F32", "1", "[0,4]") "}", 4, "tensor \"a\"", "\"shape\" must be an array"},
    {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "tensor \"a\"",
     "\"shape\" must be an array"},
    {"{\"a\":" T("F32", "[-1]", "[0,4]") "}", 4, "tensor \"a\"", "integers of 0 or more"},
    {"{\"a\":" T("F32", "[1.0]", "[0,4]") "}", 4, "tensor \"a\"", "integers of 0 or more"},
    {"{\"a\":" T("F32", "[\"1\"]", "[0,4]") "}", 4, "tensor \"a\"", "integers of 0 or more"},
    {"{\"a\":" T("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]") "}", 1, "tensor \"a\"", "rank 9"},
    /* products that wrap round to the right answer in 64 bits */
    {"{\"a\":" T("U8", "[4294967296,4294967296]", "[0,0]") "}", 0, "tensor \"a\"", "overflows"},
    {"{\"a\":" T("F32", "[4611686018427387904]", "[0,0]") "}", 0, "tensor \"a\"", "overflows"},
    {"{\"a\":" T("U8", "[9223372036854775807,3]", "[0,1]") "}", 1, "tensor \"a\"", "overflows"},
    {"{\"a\":" T("U8", "[9223372036854775808]", "[0,1]") "}", 1, "bad JSON", "too big"},
    {"{\"a\":" T("U8", "[1]", "[0]") "}", 1, "tensor \"a\"", "\"data_offsets\" must be"},
    {"{\"a\":" T("U8", "[1]", "[0,1,2]") "}", 1, "tensor \"a\"", "\"data_offsets\" must be"},
    {"{\"a\":" T("U8", "[1]", "[0,1.0]") "}", 1, "tensor \"a\"", "\"data_offsets\" must be"},
    {"{\"a\":" T("U8", "[1]", "{\"0\":0,\"1\":1}") "}", 1, "tensor \"a\"",
     "\"data_offsets\" must be"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "tensor \"a\"", "\"data_offsets\" must be"},
    {"{\"a\":" T("U8", "[1]", "[1,0]") "}", 1, "tensor \"a\"", "do not lie"},
    {"{\"a\":" T("U8", "[1]", "[-1,0]") "}", 1, "tensor \"a\"", "do not lie"},
    {"{\"a\":" T("U8", "[2]", "[0,2]") "}", 1, "tensor \"a\"", "do not lie in the 1 bytes"},
    {"{\"a\":" T("U8", "[9223372036854775807]", "[0,9223372036854775807]") "}", 1, "tensor \"a\"",
     "do not lie"},
    {"{\"a\":" T("F32", "[2]", "[0,4]") "}", 4, "tensor \"a\"",
     "need 8 bytes, data_offsets give 4"},
    {"{\"a\":" T("F32", "[]", "[0,8]") "}", 8, "tensor \"a\"", "need 4 bytes, data_offsets give 8"},
    {"{\"a\":" T("F32", "[0]", "[0,4]") "}", 4, "tensor \"a\"", "need 0 bytes"},
    {"{\"a\":" T("F4", "[3]", "[0,2]") "}", 2, "tensor \"a\"", "whole bytes"},
    /* holes, overlap, slack */
    {"{\"a\":" T("U8", "[1]", "[1,2]") "}", 2, "tensor \"a\"", "hole"},
    {"{\"a\":" T("U8", "[1]", "[0,1]") ",\"b\":" T("U8", "[1]", "[2,3]") "}", 3, "tensor \"b\"",
     "hole from byte 1"},
    {"{\"a\":" T("U8", "[2]", "[0,2]") ",\"b\":" T("U8", "[2]", "[1,3]") "}", 3, "tensor \"b\"",
     "overlapping"},
    {"{\"a\":" T("U8", "[2]", "[0,2]") ",\"b\":" T("U8", "[2]", "[0,2]") "}", 2, "tensor \"b\"",
     "overlapping"},
    {"{\"a\":" T("U8", "[3]", "[0,3]") ",\"b\":" T("U8", "[0]", "[1,1]") "}", 3, "tensor \"b\"",
     "overlapping"},
    {"{\"a\":" T("U8", "[1]", "[0,1]") "}", 2, "2 bytes of data", "cover only 1"},
    {"{}", 1, "1 bytes of data", "cover only 0"},
};

START_TEST(test_bad_header) {
    REFUSED(open_header(bad_headers[_i].header, bad_headers[_i].n_data), bad_headers[_i].word,
          bad_headers[_i].word2);
}
END_TEST

START_TEST(test_lying_lengths) {
    const char *h = "{\"a\":" T("U8", "[1]", "[0,1]") "}";
    REFUSED(moe_st_open(moe_test_file("l.safetensors", "", 0), &model), "too short", "l.safetensors");
    REFUSED(moe_st_open(moe_test_file("l.safetensors", "\2\0\0\0\0\0\0", 7), &model), "too short");
    REFUSED(moe_st_open(raw_file("l.safetensors", 2, "", 0), &model), "truncated");
    REFUSED(moe_st_open(raw_file("l.safetensors", 1000, h, 1), &model), "truncated", "1000 bytes");
    REFUSED(moe_st_open(raw_file("l.safetensors", 100000001, h, 1), &model),
          "header length 100000001");
    REFUSED(moe_st_open(raw_file("l.safetensors", UINT64_MAX, h, 1), &model),
          "header length 18446744073709551615");
    REFUSED(moe_st_open(raw_file("l.safetensors", (uint64_t)1 << 63, h, 1), &model), "header length");
    REFUSED(moe_st_open(raw_file("l.safetensors", strlen(h) - 1, h, 1), &model), "bad JSON");
    REFUSED(moe_st_open(raw_file("l.safetensors", strlen(h) + 1, h, 1), &model), "does not end");
    REFUSED(moe_st_open(raw_file("l.safetensors", strlen(h), h, 0), &model), "do not lie");
    REFUSED(moe_st_open(raw_file("l.safetensors", 0, h, 1), &model), "does not begin");
    char deep[6001];
    memset(deep, '[', 6000);
    memcpy(deep, "{\"a\":", 5);
    deep[5999] = '}';
    deep[6000] = 0;
    REFUSED(open_header(deep, 0), "depth");
}
END_TEST

/* Every prefix of a good file, and every single byte changed: an error or a model that is
 * consistent, never a crash. */
START_TEST(test_damaged) {
    const char *h = "{\"__metadata__\":{\"format\":\"pt\"},\"a\":" T(
        "F32", "[2,2]", "[0,16]") ",\"b\":" T("I16", "[3]", "[16,22]") "}  ";
    const char *path = raw_file("good.safetensors", strlen(h), h, 22);
    char *good;
    size_t n;
    OK(moe_file_read(path, 10000, &good, &n));
    OK(moe_st_open(path, &model));
    moe_st_close(model);
    for (size_t cut = 0; cut < n; cut++) {
        MoeStatus st = moe_st_open(moe_test_file("cut.safetensors", good, cut), &model);
        ck_assert_msg(st && moe_status_code(st) == MOE_E_INPUT, "cut to %zu bytes", cut);
        moe_status_free(st);
    }
    for (size_t at = 0; at < n - 22; at++)
        for (int flip = 1; flip < 256; flip = flip * 2 + (flip == 1)) {
            good[at] = (char)(good[at] ^ flip);
            MoeStatus st = moe_st_open(moe_test_file("flip.safetensors", good, n), &model);
            if (!st) {
                size_t total = 0;
                for (size_t i = 0; i < moe_st_count(model); i++)
                    total += moe_st_at(model, i)->n_bytes;
                ck_assert_uint_eq(total, 22);
                moe_st_close(model);
            }
            moe_status_free(st);
            good[at] = (char)(good[at] ^ flip);
        }
    free(good);
}
END_TEST

START_TEST(test_read_types) {
    unsigned char data[64] = {0};
    static const double d = -1.5;
    memcpy(data, &d, 8);
    data[8] = 0x00, data[9] = 0x3e; /* f16 1.5 */
    memset(data + 10, 0xff, 1 + 2 + 4 + 8 + 1 + 2 + 4 + 8);
    const MoeStOut out[] = {
        {"f64", MOE_ST_F64, 0, {0}, data},      {"f16", MOE_ST_F16, 0, {0}, data + 8},
        {"i8", MOE_ST_I8, 0, {0}, data + 10},   {"i16", MOE_ST_I16, 0, {0}, data + 10},
        {"i32", MOE_ST_I32, 0, {0}, data + 10}, {"u8", MOE_ST_U8, 0, {0}, data + 10},
        {"u16", MOE_ST_U16, 0, {0}, data + 10}, {"u32", MOE_ST_U32, 0, {0}, data + 10},
        {"u64", MOE_ST_U64, 0, {0}, data + 10}, {"bool", MOE_ST_BOOL, 0, {0}, "\1"}};
    const char *path = moe_test_path("types.safetensors");
    float f;
    int64_t v;
    OK(moe_st_write(path, out, sizeof out / sizeof *out, NULL, 0, NULL, NULL, NULL, NULL));
    OK(moe_st_open(path, &model));
    OK(moe_st_read_f32(moe_st_find(model, "f64"), 0, 1, &f));
    ck_assert(f == -1.5f);
    OK(moe_st_read_f32(moe_st_find(model, "f16"), 0, 1, &f));
    ck_assert(f == 1.5f);
    static const struct {
        const char *name;
        int64_t value;
    } ints[] = {{"i8", -1},     {"i16", -1},         {"i32", -1}, {"u8", 255},
                {"u16", 65535}, {"u32", 4294967295}, {"bool", 1}};
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
        OK(moe_st_read_i64(moe_st_find(model, ints[i].name), 0, 1, &v));
        ck_assert_int_eq(v, ints[i].value);
        REFUSED(moe_st_read_f32(moe_st_find(model, ints[i].name), 0, 1, &f), ints[i].name,
              "types.safetensors");
    }
    REFUSED(moe_st_read_i64(moe_st_find(model, "u64"), 0, 1, &v), "\"u64\"", "18446744073709551615");
    REFUSED(moe_st_read_i64(moe_st_find(model, "f16"), 0, 1, &v), "F16", "an integer type");
    ck_assert_str_eq(moe_st_dtype_name(MOE_ST_BF16), "BF16");
    ck_assert_uint_eq(moe_st_dtype_bytes(MOE_ST_BF16), 2);
    ck_assert_uint_eq(moe_st_dtype_bytes(MOE_ST_OTHER), 0);
    moe_st_close(model);
}
END_TEST

static MoeStatus open_index(const char *json) {
    return moe_st_open(moe_test_file("m/model.safetensors.index.json", json, strlen(json)), &model);
}

START_TEST(test_shards) {
    OK(moe_dir_make(moe_test_path("m")));
    raw_file("m/a-1.safetensors",
             strlen("{\"x\":" T("U8", "[1]", "[0,1]") ",\"y\":" T("U8", "[1]", "[1,2]") "}"),
             "{\"x\":" T("U8", "[1]", "[0,1]") ",\"y\":" T("U8", "[1]", "[1,2]") "}", 2);
    raw_file("m/a-2.safetensors", strlen("{\"z\":" T("F32", "[1]", "[0,4]") "}"),
             "{\"z\":" T("F32", "[1]", "[0,4]") "}", 4);
    OK(open_index("{\"metadata\":{},\"weight_map\":{\"y\":\"a-1.safetensors\",\"z\":\"a-2."
                  "safetensors\",\"x\":\"a-1.safetensors\"}}"));
    ck_assert_uint_eq(moe_st_count(model), 3);
    ck_assert_ptr_nonnull(strstr(moe_st_find(model, "z")->file, "m/a-2.safetensors"));
    ck_assert_str_eq(hex_bytes(moe_st_find(model, "z")), "00000000");
    moe_st_close(model);
    OK(moe_st_open(moe_test_path("m"), &model)); /* the directory */
    ck_assert_uint_eq(moe_st_count(model), 3);
    moe_st_close(model);
    OK(open_index(
        "{\"weight_map\":{\"y\":\"a-1.safetensors\"}}")); /* x is ignored, with a warning */
    ck_assert_uint_eq(moe_st_count(model), 1);
    ck_assert_ptr_null(moe_st_find(model, "x"));
    moe_st_close(model);
    REFUSED(open_index("{\"weight_map\":{\"z\":\"a-1.safetensors\"}}"), "\"z\"",
          "should be in a-1.safetensors");
    REFUSED(open_index("{\"weight_map\":{\"x\":\"a-1.safetensors\",\"q\":\"a-2.safetensors\"}}"),
          "\"q\"", "a-2.safetensors");
    REFUSED(open_index("{\"weight_map\":{\"x\":\"a-1.safetensors\",\"x\":\"a-2.safetensors\"}}"),
          "duplicate");
    REFUSED(open_index("{\"weight_map\":{}}"), "empty");
    REFUSED(open_index("{\"weight_map\":[]}"), "must be an object");
    REFUSED(open_index("{}"), "\"weight_map\" is missing");
    REFUSED(open_index("[]"), "expected an object");
    static const char *const names[] = {
        "../m/a-1.safetensors", "/etc/passwd", "", ".", "..", "a b", "a\\\\b", "a\\nb"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char text[200];
        snprintf(text, sizeof text, "{\"weight_map\":{\"x\":\"%s\"}}", names[i]);
        REFUSED(open_index(text), "\"x\" must map to a file name");
    }
    REFUSED(open_index("{\"weight_map\":{\"x\":3}}"), "\"x\" must map to a file name");
    const char *wrong = moe_test_error(open_index("{\"weight_map\":{\"x\":\"none.safetensors\"}}"),
                                       MOE_E_IO, "none.safetensors", NULL);
    ck_assert_msg(!wrong, "%s", wrong);
    OK(moe_dir_make(moe_test_path("nothing")));
    REFUSED(moe_st_open(moe_test_path("nothing"), &model), "neither model.safetensors nor");
}
END_TEST

/* As many tensors as the largest models have. A quadratic step would take minutes: the time limit
 * of the case catches it. */
START_TEST(test_many) {
    enum { N = 100000 };
    MoeStOut *out = calloc(N, sizeof *out);
    char(*names)[48] = calloc(N, sizeof *names);
    for (int i = 0; i < N; i++) {
        snprintf(names[i], sizeof names[i], "model.layers.%d.mlp.experts.%d.w", i / 256, i % 256);
        out[i] = (MoeStOut){names[i], MOE_ST_U8, 1, {1}, i % 2 ? "\1" : "\0"};
    }
    const char *path = moe_test_path("many.safetensors");
    OK(moe_st_write(path, out, N, NULL, 0, NULL, NULL, NULL, NULL));
    OK(moe_st_open(path, &model));
    for (int i = 0; i < N; i++) {
        const MoeStTensor *t = moe_st_find(model, names[i]);
        CHECK_EACH(t && *(const char *)t->data == i % 2, "tensor %d is not there, or not itself", i);
    }
    moe_st_close(model);
    free(names);
    free(out);
}
END_TEST

/* ---- blocks ---- */

static unsigned char pattern(size_t i) {
    return (unsigned char)(i * 131 + i / 251);
}

/* However a file is written, its blocks have the same hashes; every read is right, and proved. */
START_TEST(test_blocks) {
    static const size_t sizes[] = {0, 1, 63, 64, 65, 128, 1000};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        size_t n = sizes[s];
        unsigned char data[1000], back[1000];
        MoeBlockHashes a = {0}, b = {0};
        MoeBlockHasher *h;
        for (size_t i = 0; i < n; i++)
            data[i] = pattern(i);
        const char *path = moe_test_file("blocks", data, n);
        for (int turn = 0; turn < 2; turn++) { /* at once; in pieces of 1, 2, 3, ... bytes */
            OK(moe_block_hasher_create(64, &h));
            for (size_t at = 0, k = turn ? 1 : n; at < n; at += k, k += (size_t)turn) {
                k = k < n - at ? k : n - at;
                OK(moe_block_hasher_add(h, data + at, k));
            }
            moe_block_hasher_end(h, turn ? &b : &a);
        }
        ck_assert(a.n == (n + 63) / 64 && a.n == b.n &&
                  moe_block_count((int64_t)n, 64) == (int64_t)a.n);
        ck_assert(!a.n || !memcmp(a.hashes, b.hashes, a.n * sizeof *a.hashes));
        for (int proved = 0; proved < 2; proved++) {
            MoeBlockFile *f;
            OK(moe_block_open(path, (int64_t)n, proved ? &a : NULL, &f));
            ck_assert_int_eq(moe_block_file_bytes(f), n);
            for (size_t at = 0; at <= n; at += 7)
                for (size_t k = 0; k <= n - at; k += 29) {
                    OK(moe_block_read(f, (int64_t)at, (int64_t)k, back));
                    ck_assert(!memcmp(back, data + at, k));
                }
            const char *wrong = moe_test_error(moe_block_read(f, (int64_t)n, 1, back),
                                               MOE_E_CORRUPT, "blocks", NULL);
            ck_assert_msg(!wrong, "%s", wrong);
            moe_block_close(f);
        }
        moe_block_hashes_free(&a);
        moe_block_hashes_free(&b);
    }
}
END_TEST

#define CORRUPT(expr, ...)                                                                         \
    do {                                                                                           \
        const char *wrong_ = moe_test_error((expr), MOE_E_CORRUPT, __VA_ARGS__, NULL);             \
        ck_assert_msg(!wrong_, "%s", wrong_);                                                      \
    } while (0)

/* A flipped bit is found by exactly the reads of its block. */
START_TEST(test_damaged_blocks) {
    unsigned char data[300], back[300];
    MoeBlockHashes h;
    MoeBlockHasher *hasher;
    MoeBlockFile *f;
    for (size_t i = 0; i < 300; i++)
        data[i] = pattern(i);
    OK(moe_block_hasher_create(64, &hasher));
    OK(moe_block_hasher_add(hasher, data, 300));
    moe_block_hasher_end(hasher, &h);
    for (int64_t bad = 0; bad < 300; bad += 13) {
        data[bad] ^= 16;
        const char *path = moe_test_file("blocks", data, 300);
        OK(moe_block_open(path, 300, &h, &f));
        for (int64_t i = 0; i < 5; i++) {
            int64_t n = i == 4 ? 44 : 64;
            if (bad / 64 == i) {
                CORRUPT(moe_block_read(f, 64 * i + 1, 1, back), "blocks", "XXH3", "damaged");
                CORRUPT(moe_block_check(f, i), "blocks");
            } else {
                OK(moe_block_read(f, 64 * i, n, back));
                OK(moe_block_check(f, i));
            }
        }
        CORRUPT(moe_block_read(f, 0, 300, back), "blocks");
        moe_block_close(f);
        data[bad] ^= 16;
    }
    CORRUPT(moe_block_open(moe_test_file("blocks", data, 299), 300, &h, &f),
            "299 bytes, recorded 300");
    CORRUPT(moe_block_open(moe_test_file("blocks", data, 300), 320, &h, &f), "recorded 320");
    char whole[33], want[33];
    moe_hash_hex(data, 300, want);
    OK(moe_block_open(moe_test_file("blocks", data, 300), 0, NULL, &f));
    OK(moe_block_whole_hash(f, whole));
    ck_assert_str_eq(whole, want);
    moe_block_close(f);
    /* It becomes shorter while it is open. */
    OK(moe_block_open(moe_test_path("blocks"), 0, NULL, &f));
    moe_test_file("blocks", data, 100);
    CORRUPT(moe_block_read(f, 90, 20, back), "blocks", "100");
    moe_block_close(f);
    const char *wrong = moe_test_error(moe_block_open(moe_test_path("absent"), 0, NULL, &f),
                                       MOE_E_IO, "absent", NULL);
    ck_assert_msg(!wrong, "%s", wrong);
    moe_block_hashes_free(&h);
}
END_TEST

/* Without a mapping the same tensors and the same numbers; written with block hashes the same bytes. */
START_TEST(test_unmapped) {
    static const MoeStDtype dtypes[] = {MOE_ST_F64, MOE_ST_F32, MOE_ST_F16, MOE_ST_BF16};
    static unsigned char data[4][8 * 20000];
    MoeStOut t[4];
    MoeBlockHashes hashes;
    uint64_t bytes[2];
    char hash[33], path[2][600];
    for (int i = 0; i < 4; i++) {
        for (size_t k = 0; k < sizeof data[i]; k++)
            data[i][k] =
                k % 8 == 7 || k % 2 ? 0x3f : pattern(k + (size_t)i); /* finite in each dtype */
        t[i] = (MoeStOut){.name = &"a\0b\0c\0d"[2 * i],
                          .dtype = dtypes[i],
                          .rank = 2,
                          .dims = {40, 500 - i},
                          .data = data[i]};
        snprintf(path[i % 2], sizeof path[0], "%s",
                 moe_test_path(i % 2 ? "b.safetensors" : "a.safetensors"));
    }
    OK(moe_st_write(path[0], t, 4, NULL, 0, NULL, NULL, &bytes[0], hash));
    OK(moe_st_write_blocks(path[1], t, 4, NULL, 0, NULL, NULL, &bytes[1], &hashes));
    MoeMap a, b;
    OK(moe_map_open(path[0], &a));
    OK(moe_map_open(path[1], &b));
    ck_assert(a.n == b.n && a.n == bytes[0] && a.n == bytes[1] && !memcmp(a.data, b.data, a.n));
    moe_map_close(&a);
    moe_map_close(&b);
    MoeSafetensors *bare;
    MoeBlockFile *f;
    OK(moe_st_open(path[0], &model));
    OK(moe_block_open(path[1], (int64_t)bytes[1], &hashes, &f));
    OK(moe_st_open_file(f, &bare));
    ck_assert_uint_eq(moe_st_count(bare), 4);
    for (size_t i = 0; i < 4; i++) {
        const MoeStTensor *x = moe_st_at(model, i), *y = moe_st_find(bare, x->name);
        static float u[20000], v[20000];
        ck_assert(y && !y->data && y->at == x->at && y->elements == x->elements &&
                  y->dtype == x->dtype);
        OK(moe_st_read_f32(x, 0, x->elements, u));
        for (int64_t n = 1; n <= x->elements; n = n * 3 + 1) {
            int64_t first = (x->elements - n) / 2;
            OK(moe_st_pread_f32(f, y, first, n, v));
            ck_assert(!memcmp(u + first, v, (size_t)n * sizeof *v));
        }
    }
    moe_st_close(bare);
    moe_block_close(f);
    moe_st_close(model);
    /* Headers that lie are refused alike. */
    OK(moe_block_open(raw_file("short", 1000, "{}", 0), 0, NULL, &f));
    REFUSED(moe_st_open_file(f, &bare), "short", "truncated");
    moe_block_close(f);
    OK(moe_block_open(raw_file("huge", UINT64_MAX, "{}", 0), 0, NULL, &f));
    REFUSED(moe_st_open_file(f, &bare), "huge", "header length");
    moe_block_close(f);
    OK(moe_block_open(moe_test_file("tiny", "abc", 3), 0, NULL, &f));
    REFUSED(moe_st_open_file(f, &bare), "tiny", "3 bytes");
    moe_block_close(f);
    moe_block_hashes_free(&hashes);
}
END_TEST

int main(void) {
    moe_test_dir();
    Suite *s = suite_create("safetensors");
    TCase *c = tcase_create("safetensors");
    tcase_set_timeout(c, 60);
    tcase_add_test(c, test_round_trip);
    tcase_add_test(c, test_write_errors);
    tcase_add_test(c, test_good_headers);
    tcase_add_loop_test(c, test_bad_header, 0, (int)(sizeof bad_headers / sizeof *bad_headers));
    tcase_add_test(c, test_lying_lengths);
    tcase_add_test(c, test_damaged);
    tcase_add_test(c, test_read_types);
    tcase_add_test(c, test_shards);
    tcase_add_test(c, test_many);
    tcase_add_test(c, test_blocks);
    tcase_add_test(c, test_damaged_blocks);
    tcase_add_test(c, test_unmapped);
    suite_add_tcase(s, c);
    return moe_check_main(s);
}
