/* runtime/choices.h and the texts of runtime/dense.h: what was decided, shared by ranks, written into a manifest and read back, kept in
 * the cache on disk. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "runtime/choices.h"
#include "runtime/dense.h"
#include "runtime/ranks.h"
#include "tests/support/check_main.h"
#include "tests/support/status_checks.h"

START_TEST(test_put) {
    MoeChoices c = {0};
    char longer[MOE_CHOICE_BYTES + 1];
    ck_assert_ptr_null(moe_choices_get(&c, "dense", "a"));
    OK(moe_choices_put(&c, "dense", "a", "1"));
    OK(moe_choices_put(&c, "attention", "a", "2"));
    OK(moe_choices_put(&c, "dense", "a", "3"));
    ck_assert_str_eq(moe_choices_get(&c, "dense", "a"), "3");
    ck_assert_str_eq(moe_choices_get(&c, "attention", "a"), "2");
    ck_assert_ptr_null(moe_choices_get(&c, "attention", "b"));
    ck_assert_uint_eq(c.n, 2);
    memset(longer, 'x', sizeof longer);
    longer[MOE_CHOICE_BYTES] = 0;
    FAILS(moe_choices_put(&c, "dense", "b", longer), MOE_E_INTERNAL, "511 bytes");
    longer[MOE_CHOICE_BYTES - 1] = 0;
    OK(moe_choices_put(&c, "dense", "b", longer));
    moe_choices_free(&c);
    ck_assert_ptr_null(moe_choices_get(&c, "dense", "a"));
}
END_TEST

START_TEST(test_manifest) {
    MoeChoices c = {0}, back = {0};
    for (int i = 0; i < 40; i++) {
        char key[32], value[32];
        snprintf(key, sizeof key, "product %d", i);
        snprintf(value, sizeof value, "algorithm \"%d\"\n", i * i);
        OK(moe_choices_put(&c, i % 2 ? "dense" : "attention", key, value));
    }
    json_t *json = moe_choices_json(&c);
    OK(moe_choices_put(&back, "dense", "gone", "x"));
    OK(moe_choices_take(&back, json, "manifest"));
    ck_assert_uint_eq(back.n, c.n);
    for (size_t i = 0; i < c.n; i++) {
        const char *value = moe_choices_get(&back, c.items[i].kind, c.items[i].key);
        ck_assert_str_eq(value, c.items[i].value);
        ck_assert(moe_choices_taken(&back, c.items[i].kind, c.items[i].key));
        ck_assert(!moe_choices_taken(&c, c.items[i].kind, c.items[i].key));
    }
    ck_assert_ptr_null(moe_choices_get(&back, "dense", "gone"));
    OK(moe_choices_put(&back, "dense", "product 1", "another"));
    ck_assert(!moe_choices_taken(&back, "dense", "product 1"));
    OK(moe_choices_take(&back, NULL, "an older manifest"));
    ck_assert_uint_eq(back.n, 0);
    json_decref(json);
    moe_choices_free(&c);
    moe_choices_free(&back);
}
END_TEST

START_TEST(test_damaged_manifest) {
    static const char *const texts[] = {"{}", "[3]", "[{\"kind\": \"dense\", \"key\": \"k\"}]",
                                        "[{\"kind\": \"dense\", \"key\": 3, \"value\": \"v\"}]"};
    MoeChoices c = {0};
    OK(moe_choices_put(&c, "dense", "k", "before"));
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        json_t *json;
        OK(moe_json_load_text(texts[i], strlen(texts[i]), "text", &json));
        FAILS(moe_choices_take(&c, json, "step-3"), MOE_E_CORRUPT, "step-3", "choices");
        ck_assert_str_eq(moe_choices_get(&c, "dense", "k"), "before");
        json_decref(json);
    }
    moe_choices_free(&c);
}
END_TEST

/* ---- ranks ---- */

static MoeStatus share_rank(void *ctx, MoeComm *comm) {
    MoeChoices c = {0};
    (void)ctx;
    if (comm->rank) /* what another rank thinks does not count */
        OK(moe_choices_put(&c, "dense", "k", "mine"));
    OK(moe_choices_share(&c, comm, "dense", "k", comm->rank ? NULL : "rank 0's"));
    ck_assert_str_eq(moe_choices_get(&c, "dense", "k"), "rank 0's");
    char longer[MOE_CHOICE_BYTES + 1];
    memset(longer, 'x', sizeof longer);
    longer[MOE_CHOICE_BYTES] = 0;
    FAILS(moe_choices_share(&c, comm, "dense", "k", comm->rank ? NULL : longer), MOE_E_INTERNAL,
          "511 bytes");
    ck_assert_str_eq(moe_choices_get(&c, "dense", "k"), "rank 0's");
    moe_choices_free(&c);
    return NULL;
}

START_TEST(test_ranks) {
    OK(moe_ranks_run(3, 0, share_rank, NULL));
    OK(moe_ranks_run(1, 0, share_rank, NULL));
}
END_TEST

/* ---- the cache ---- */

/* The cache's one file. */
static char *only_entry(const char *dir) {
    char **names;
    size_t n;
    OK(moe_dir_list(dir, &names, &n));
    ck_assert_uint_eq(n, 1);
    ck_assert(!strncmp(names[0], "choice-", 7));
    char *path = moe_path_join(dir, names[0]);
    moe_dir_list_free(names, n);
    return path;
}

START_TEST(test_cache) {
    char out[MOE_CHOICE_BYTES];
    const char *dir = moe_test_path("cache");
    ck_assert_int_eq(setenv("MOEC_CACHE", dir, 1), 0);
    ck_assert(!moe_choices_cached("dense", "here", "k", out));
    moe_choices_keep("dense", "here", "k", "v");
    ck_assert(moe_choices_cached("dense", "here", "k", out));
    ck_assert_str_eq(out, "v");
    ck_assert(!moe_choices_cached("dense", "there", "k", out));
    ck_assert(!moe_choices_cached("dense", "here", "k2", out));
    ck_assert(!moe_choices_cached("attention", "here", "k", out));
    moe_choices_keep("dense", "here", "k", "w");
    ck_assert(moe_choices_cached("dense", "here", "k", out));
    ck_assert_str_eq(out, "w");
    /* Every damaged byte makes it none. */
    char *path = only_entry(dir), *data;
    size_t n;
    OK(moe_file_read(path, 1 << 16, &data, &n));
    for (size_t i = 0; i < n; i += 7) {
        data[i] ^= 1;
        OK(moe_file_write_atomic(path, data, n));
        CHECK_EACH(!moe_choices_cached("dense", "here", "k", out), "byte %zu", i);
        data[i] ^= 1;
    }
    OK(moe_file_write_atomic(path, data, n - 1));
    ck_assert(!moe_choices_cached("dense", "here", "k", out));
    OK(moe_file_write_atomic(path, data, n));
    ck_assert(moe_choices_cached("dense", "here", "k", out));
    free(data);
    free(path);
    ck_assert_int_eq(setenv("MOEC_CACHE", "", 1), 0); /* none at all */
    moe_choices_keep("dense", "here", "k", "x");
    ck_assert(!moe_choices_cached("dense", "here", "k", out));
}
END_TEST

/* ---- what is chosen for a product ---- */

START_TEST(test_dense_text) {
    MoeDenseChoice c = {.library = true,
                        .version = 130100,
                        .config = {.id = 66,
                                   .tile = 20,
                                   .split_k = 1,
                                   .swizzle = 1,
                                   .custom = UINT32_MAX,
                                   .stages = 35,
                                   .inner = 7,
                                   .cluster = UINT16_MAX},
                        .rate = 6.125e14,
                        .emitted_rate = 4.5e14},
                   back;
    char text[MOE_CHOICE_BYTES], again[MOE_CHOICE_BYTES];
    for (int i = 0; i < 8; i++)
        c.algo.data[i] = 0xfedcba9876543210u * (uint64_t)(i + 1);
    moe_dense_choice_text(&c, text);
    ck_assert(moe_dense_choice_read(text, &back));
    moe_dense_choice_text(&back, again);
    ck_assert_str_eq(text, again);
    ck_assert(!memcmp(&c.algo, &back.algo, sizeof c.algo));
    ck_assert_uint_eq(back.config.custom, UINT32_MAX);
    ck_assert_uint_eq(back.config.cluster, UINT16_MAX);
    ck_assert_double_eq(back.rate, 6.125e14);
    /* No part of it may be missing, and nothing be behind it. */
    for (int n = 0; text + n <= strrchr(text, '='); n++) {
        snprintf(again, sizeof again, "%.*s", n, text);
        CHECK_EACH(!moe_dense_choice_read(again, &back), "'%s'", again);
    }
    strcat(text, " more");
    ck_assert(!moe_dense_choice_read(text, &back));
    c = (MoeDenseChoice){.emitted_rate = 1e12};
    moe_dense_choice_text(&c, text);
    ck_assert(moe_dense_choice_read(text, &back) && !back.library && back.emitted_rate == 1e12);
    ck_assert(!moe_dense_choice_read("", &back));
    ck_assert(!moe_dense_choice_read("nonsense emitted=1", &back));
}
END_TEST

int main(void) {
    Suite *s = suite_create("choices");
    TCase *t = tcase_create("choices");
    tcase_add_test(t, test_put);
    tcase_add_test(t, test_manifest);
    tcase_add_test(t, test_damaged_manifest);
    tcase_add_test(t, test_ranks);
    tcase_add_test(t, test_cache);
    tcase_add_test(t, test_dense_text);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
