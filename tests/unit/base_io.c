/* base/io.h and base/json.h: files, directories, durable writes under failure, JSON with good
 * errors. */
#include <check.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/io.h"
#include "base/json.h"
#include "tests/support/check_main.h"
#include "tests/support/files.h"
#include "tests/support/status_checks.h"

START_TEST(test_read) {
    const char *path = moe_test_file("r", "hello", 5);
    char *data;
    size_t n;
    OK(moe_file_read(path, 5, &data, &n));
    ck_assert(n == 5 && !strcmp(data, "hello"));
    free(data);
    FAILS(moe_file_read(path, 4, &data, &n), MOE_E_INPUT, path, "4 B");
    FAILS(moe_file_read(moe_test_path("none"), 4, &data, &n), MOE_E_IO, "/none", "No such file");
    FAILS(moe_file_read(moe_test_dir(), 4, &data, &n), MOE_E_INPUT, "directory");
    OK(moe_file_read(moe_test_file("e", "", 0), 0, &data, &n));
    ck_assert(n == 0 && data[0] == 0);
    free(data);
    OK(moe_file_read("/proc/self/status", 1 << 20, &data, &n)); /* its stat size is 0 */
    ck_assert(n > 100 && strlen(data) == n);
    free(data);
    FAILS(moe_file_read("/dev/zero", 100000, &data, &n), MOE_E_INPUT, "/dev/zero"); /* endless */
}
END_TEST

START_TEST(test_map) {
    MoeMap m;
    OK(moe_map_open(moe_test_file("m", "abc", 3), &m));
    ck_assert(m.n == 3 && !memcmp(m.data, "abc", 3));
    moe_map_close(&m);
    OK(moe_map_open(moe_test_file("m0", "", 0), &m));
    ck_assert(m.n == 0 && m.data);
    moe_map_close(&m);
    FAILS(moe_map_open(moe_test_path("none"), &m), MOE_E_IO, "none");
    FAILS(moe_map_open(moe_test_dir(), &m), MOE_E_INPUT, "directory");
    FAILS(moe_map_open("/dev/zero", &m), MOE_E_INPUT, "regular");
}
END_TEST

START_TEST(test_write_atomic) {
    const char *path = moe_test_path("w/plan.json");
    OK(moe_dir_make(moe_test_path("w")));
    OK(moe_file_write_atomic(path, "one", 3));
    OK(moe_file_write_atomic(path, "two", 3));
    char *data, **names;
    size_t n;
    OK(moe_file_read(path, 100, &data, &n));
    ck_assert_str_eq(data, "two");
    free(data);
    OK(moe_dir_list(moe_test_path("w"), &names, &n)); /* no temporary is left */
    ck_assert(n == 1 && !strcmp(names[0], "plan.json"));
    moe_dir_list_free(names, n);
    FAILS(moe_file_write_atomic(moe_test_path("none/x"), "a", 1), MOE_E_IO, "none/x",
          "No such file");
    FAILS(moe_file_write_atomic(moe_test_path("w"), "a", 1), MOE_E_IO,
          "rename"); /* onto a directory */
    OK(moe_dir_list(moe_test_dir(), &names, &n));
    for (size_t i = 0; i < n; i++)
        ck_assert_msg(!strstr(names[i], ".tmp-"), "%s is left over", names[i]);
    moe_dir_list_free(names, n);
}
END_TEST

/* A write that fails half way (the file size limit stands in for a full disk) leaves the old file
 * and no temporary. */
START_TEST(test_write_fails) {
    static char big[100000];
    const char *path = moe_test_path("keep/plan.json");
    OK(moe_dir_make(moe_test_path("keep")));
    OK(moe_file_write_atomic(path, "old", 3));
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit before, limit;
    getrlimit(RLIMIT_FSIZE, &before);
    limit = before;
    limit.rlim_cur = 50000;
    setrlimit(RLIMIT_FSIZE, &limit);
    MoeStatus st = moe_file_write_atomic(path, big, sizeof big);
    setrlimit(RLIMIT_FSIZE, &before);
    FAILS(st, MOE_E_IO, "plan.json", "after 50000 bytes", "File too large");
    char *data, **names;
    size_t n;
    OK(moe_file_read(path, 100, &data, &n));
    ck_assert_str_eq(data, "old");
    free(data);
    OK(moe_dir_list(moe_test_path("keep"), &names, &n));
    ck_assert_uint_eq(n, 1);
    moe_dir_list_free(names, n);
}
END_TEST

START_TEST(test_full_disk) {
    MoeFileOut *f;
    OK(moe_out_create("/dev/full", &f));
    FAILS(moe_out_write(f, "x", 1), MOE_E_IO, "/dev/full", "No space left");
    moe_out_abandon(f);
    moe_out_abandon(NULL);
    FAILS(moe_out_create(moe_test_path("none/x"), &f), MOE_E_IO, "none/x");
}
END_TEST

static void on_signal(int sig) {
    (void)sig;
}

/* A slow pipe with a timer firing: short writes and EINTR. fsync of a pipe fails, and that must be
 * reported. */
START_TEST(test_short_writes) {
    enum { N = 3 << 20 };
    const char *path = moe_test_path("fifo");
    ck_assert_int_eq(mkfifo(path, 0600), 0);
    unsigned char *data = malloc(N);
    for (size_t i = 0; i < N; i++)
        data[i] = (unsigned char)(i * 2654435761u >> 13);
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        FILE *in = fopen(path, "rb");
        for (size_t i = 0; i < N; i++) {
            int c = getc(in);
            if (c != data[i])
                _exit(1);
            if (i % 300000 == 0)
                usleep(5000);
        }
        _exit(getc(in) == EOF ? 0 : 2);
    }
    struct sigaction action = {.sa_handler = on_signal}; /* no SA_RESTART */
    sigaction(SIGALRM, &action, NULL);
    MoeFileOut *f;
    OK(moe_out_create(path, &f));
    ualarm(500, 500);
    OK(moe_out_write(f, data, N));
    ualarm(0, 0);
    FAILS(moe_out_finish(f, NULL, NULL), MOE_E_IO, "sync", "fifo");
    int rc;
    waitpid(child, &rc, 0);
    ck_assert_int_eq(rc, 0);
    free(data);
}
END_TEST

START_TEST(test_out_hash) {
    char whole[33], running[33];
    unsigned char data[5000];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (unsigned char)(i * 7);
    MoeFileOut *f;
    uint64_t n = 0;
    OK(moe_out_create(moe_test_path("h"), &f));
    for (size_t at = 0, step = 1; at < sizeof data; at += step, step = step % 700 + 13)
        OK(moe_out_write(f, data + at, at + step < sizeof data ? step : sizeof data - at));
    OK(moe_out_finish(f, &n, running));
    moe_hash_hex(data, sizeof data, whole);
    ck_assert_str_eq(running, whole);
    ck_assert_uint_eq(n, sizeof data);
    MoeMap m;
    OK(moe_map_open(moe_test_path("h"), &m));
    ck_assert(m.n == sizeof data && !memcmp(m.data, data, m.n));
    moe_map_close(&m);
    moe_hash_hex("", 0, whole);
    ck_assert_str_eq(whole,
                     "99aa06d3014798d86001c324468d497f"); /* XXH3-128 of nothing, published */
}
END_TEST

START_TEST(test_dirs) {
    char **names;
    size_t n;
    OK(moe_dir_make(moe_test_path("d/e/f")));
    OK(moe_dir_make(moe_test_path("d/e/f/")));
    OK(moe_dir_make(moe_test_path("d//g")));
    OK(moe_dir_make("/"));
    FAILS(moe_dir_make(""), MOE_E_INPUT, "empty");
    moe_test_file("d/b", "1", 1);
    moe_test_file("d/a", "1", 1);
    moe_test_file("d/e/f/z", "1", 1);
    FAILS(moe_dir_make(moe_test_path("d/a")), MOE_E_IO, "d/a");
    FAILS(moe_dir_make(moe_test_path("d/a/x")), MOE_E_IO, "d/a");
    OK(moe_dir_list(moe_test_path("d"), &names, &n));
    ck_assert(n == 4 && !strcmp(names[0], "a") && !strcmp(names[1], "b") &&
              !strcmp(names[2], "e") && !strcmp(names[3], "g"));
    moe_dir_list_free(names, n);
    FAILS(moe_dir_list(moe_test_path("none"), &names, &n), MOE_E_IO, "none");
    OK(moe_dir_sync(moe_test_path("d")));
    FAILS(moe_dir_sync(moe_test_path("d/a")), MOE_E_IO, "d/a");
    /* A link out of the tree goes, what it points to stays. */
    OK(moe_dir_make(moe_test_path("outside")));
    moe_test_file("outside/kept", "1", 1);
    ck_assert_int_eq(symlink(moe_test_path("outside"), moe_test_path("d/e/link")), 0);
    ck_assert_int_eq(symlink(moe_test_path("outside"), moe_test_path("toplink")), 0);
    FAILS(moe_dir_remove(moe_test_path("toplink")), MOE_E_IO, "toplink");
    FAILS(moe_dir_remove(moe_test_path("toplink/")), MOE_E_IO, "toplink");
    OK(moe_dir_remove(moe_test_path("d")));
    ck_assert(!moe_path_exists(moe_test_path("d")));
    ck_assert(moe_path_exists(moe_test_path("outside/kept")));
    OK(moe_dir_remove(moe_test_path("d")));
    static const char *const refused[] = {"", "/", "//", ".", "..", "./", "a/..", "a/.", "/.."};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        FAILS(moe_dir_remove(refused[i]), MOE_E_INPUT, "refusing");
    FAILS(moe_dir_remove(moe_test_file("plain", "", 0)), MOE_E_IO, "plain");
    char *p = moe_path_join("a/b", "c"), *q = moe_path_join("a/", "c"), *r = moe_path_join("", "c");
    ck_assert(!strcmp(p, "a/b/c") && !strcmp(q, "a/c") && !strcmp(r, "c"));
    free(p);
    free(q);
    free(r);
}
END_TEST

static MoeStatus parse(const char *text, json_t **out) {
    return moe_json_load_text(text, strlen(text), "t.json", out);
}

START_TEST(test_json_bad) {
    json_t *v;
    FAILS(parse("{\"a\": 1,\n \"a\": 2}", &v), MOE_E_INPUT, "t.json:2:", "duplicate");
    FAILS(parse("{\"a\": }", &v), MOE_E_INPUT, "t.json:1:7", "unexpected token");
    FAILS(parse("{\"a\": 1} x", &v), MOE_E_INPUT, "t.json:1:", "end of file");
    FAILS(parse("", &v), MOE_E_INPUT, "t.json:1:");
    FAILS(parse("{\"a\": NaN}", &v), MOE_E_INPUT, "t.json:1:");
    FAILS(parse("{\"a\": 99999999999999999999}", &v), MOE_E_INPUT, "too big");
    FAILS(parse("{\"\xff\": 1}", &v), MOE_E_INPUT, "t.json:1:");
    char *deep = malloc(20001);
    memset(deep, '[', 20000);
    deep[20000] = 0;
    FAILS(parse(deep, &v), MOE_E_INPUT, "depth");
    free(deep);
    FAILS(moe_json_load_file(moe_test_file("j", "[1,2,3]", 7), 6, &v), MOE_E_INPUT, "/j", "6 B");
    FAILS(moe_json_load_file(moe_test_file("j", "[1,2,", 5), 60, &v), MOE_E_INPUT, "/j:1:");
    FAILS(moe_json_load_file(moe_test_path("none"), 60, &v), MOE_E_IO, "/none");
}
END_TEST

START_TEST(test_json_getters) {
    json_t *v, *array = NULL, *object = NULL;
    int64_t i = 7;
    double d = 7;
    bool b = true;
    const char *s = "old";
    OK(parse(
        "{\"i\": -3, \"d\": 0.5, \"b\": false, \"s\": \"x\", \"a\": [1], \"o\": {}, \"n\": null}",
        &v));
    OK(moe_json_i64(v, "w", "i", true, &i));
    OK(moe_json_f64(v, "w", "d", true, &d));
    ck_assert(i == -3 && d == 0.5);
    OK(moe_json_f64(v, "w", "i", true, &d));
    OK(moe_json_bool(v, "w", "b", true, &b));
    OK(moe_json_str(v, "w", "s", true, &s));
    OK(moe_json_array(v, "w", "a", true, &array));
    OK(moe_json_object(v, "w", "o", true, &object));
    ck_assert(d == -3 && !b && !strcmp(s, "x") && json_array_size(array) == 1 &&
              json_is_object(object));
    OK(moe_json_i64(v, "w", "none", false, &i)); /* absent and null keep the value */
    OK(moe_json_i64(v, "w", "n", false, &i));
    OK(moe_json_str(v, "w", "n", false, &s));
    ck_assert(i == -3 && !strcmp(s, "x"));
    FAILS(moe_json_i64(v, "w", "none", true, &i), MOE_E_INPUT, "w: \"none\" is missing",
          "an integer");
    FAILS(moe_json_str(v, "w", "n", true, &s), MOE_E_INPUT, "w: \"n\" is null", "a string");
    FAILS(moe_json_i64(v, "w", "d", false, &i), MOE_E_INPUT, "\"d\" must be an integer",
          "a real number 0.5");
    FAILS(moe_json_i64(v, "w", "s", true, &i), MOE_E_INPUT, "must be an integer", "a string \"x\"");
    FAILS(moe_json_f64(v, "w", "s", true, &d), MOE_E_INPUT, "must be a number");
    FAILS(moe_json_bool(v, "w", "i", true, &b), MOE_E_INPUT, "must be true or false",
          "an integer -3");
    FAILS(moe_json_str(v, "w", "b", true, &s), MOE_E_INPUT, "must be a string", "found false");
    FAILS(moe_json_array(v, "w", "o", true, &array), MOE_E_INPUT, "must be an array", "an object");
    FAILS(moe_json_object(v, "w", "a", true, &object), MOE_E_INPUT, "must be an object",
          "an array");
    FAILS(moe_json_i64(array, "w", "x", false, &i), MOE_E_INPUT, "w: expected an object",
          "an array");
    FAILS(moe_json_i64(NULL, "w", "x", false, &i), MOE_E_INPUT, "w: expected an object");
    json_decref(v);
}
END_TEST

START_TEST(test_json_dump) {
    json_t *v, *again;
    MoeStr text = {0};
    OK(parse("{\"z\":1,\"a\":[0.1,2.0],\"m\":{\"k\":\"\xc3\xa9\\n\"}}", &v));
    moe_json_dump(v, &text);
    ck_assert_str_eq(text.data,
                     "{\n \"z\": 1,\n \"a\": [\n  0.10000000000000001,\n  2.0\n ],\n \"m\": {\n"
                     "  \"k\": \"\xc3\xa9\\n\"\n }\n}\n");
    OK(parse(text.data, &again));
    ck_assert(json_equal(v, again));
    json_decref(v);
    json_decref(again);
    moe_str_free(&text);
}
END_TEST

int main(void) {
    moe_test_dir();
    Suite *s = suite_create("base_io");
    TCase *c = tcase_create("io");
    tcase_set_timeout(c, 60);
    tcase_add_test(c, test_read);
    tcase_add_test(c, test_map);
    tcase_add_test(c, test_write_atomic);
    tcase_add_test(c, test_write_fails);
    tcase_add_test(c, test_full_disk);
    tcase_add_test(c, test_short_writes);
    tcase_add_test(c, test_out_hash);
    tcase_add_test(c, test_dirs);
    tcase_add_test(c, test_json_bad);
    tcase_add_test(c, test_json_getters);
    tcase_add_test(c, test_json_dump);
    suite_add_tcase(s, c);
    return moe_check_main(s);
}
