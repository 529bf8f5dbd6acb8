/* runtime/store.h and exec_store.c: rows outside the slab, in a file and in memory, a full disk, a file cut short; what plan.json says
 * of them. */
#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "runtime/exec_internal.h"
#include "runtime/store.h"
#include "tests/support/check_main.h"
#include "tests/support/files.h"
#include "tests/support/status_checks.h"

enum { SLOTS = 6, CAP = 100000 };

static void fill(char *data, int64_t n, int seed) {
    for (int64_t i = 0; i < n; i++)
        data[i] = (char)(i * 31 + seed + i / 253);
}

static void wait_for(MoeStore *s, size_t ticket) {
    while (!moe_store_done(s, ticket, 0.02))
        ;
    OK(moe_store_result(s, ticket));
}

/* Slots of several sizes go out and come back, round after round, several under way at a time. */
static void go_round(MoeStore *s, const int64_t *bytes, int rounds) {
    static char from[SLOTS][CAP], to[SLOTS][CAP];
    for (int r = 0; r < rounds; r++) {
        for (int i = 0; i < SLOTS; i++) {
            int64_t n = bytes[i] - r; /* live rows differ from step to step */
            fill(from[i], n, r * SLOTS + i);
            memset(to[i], 0, sizeof to[i]);
            OK(moe_store_start(s, (size_t)i / 2, (size_t)i, false, from[i], n));
        }
        for (size_t t = 0; t < SLOTS / 2; t++)
            wait_for(s, t);
        for (int i = 0; i < SLOTS; i++) {
            int64_t n = bytes[i] - r;
            memset(from[i], 0, (size_t)n); /* the slab's place is someone else's now */
            OK(moe_store_start(s, SLOTS, (size_t)i, true, to[i], n));
        }
        wait_for(s, SLOTS);
        for (int i = 0; i < SLOTS; i++) {
            int64_t n = bytes[i] - r;
            fill(from[i], n, r * SLOTS + i);
            ck_assert_msg(!memcmp(from[i], to[i], (size_t)n), "round %d, slot %d", r, i);
            ck_assert(n == CAP || to[i][n] == 0);
        }
    }
}

static const int64_t sizes[SLOTS] = {CAP, 4096, 5000, CAP - 7, 64, 70000};

START_TEST(test_memory) {
    MoeStore *s;
    OK(moe_store_create(sizes, SLOTS, SLOTS + 1, &s));
    ck_assert_int_eq(moe_store_memory(s), 0);
    go_round(s, sizes, 20);
    int64_t all = 0;
    for (int i = 0; i < SLOTS; i++)
        all += sizes[i];
    ck_assert_int_eq(moe_store_memory(s), all);
    ck_assert_int_eq(moe_store_moved(s), 20 * all - SLOTS * 190);
    moe_store_destroy(s);
    moe_store_destroy(NULL);
}
END_TEST

static int n_entries(const char *dir) {
    char **names;
    size_t n;
    OK(moe_dir_list(dir, &names, &n));
    moe_dir_list_free(names, n);
    return (int)n;
}

START_TEST(test_file) {
    MoeStore *s;
    char dir[512];
    snprintf(dir, sizeof dir, "%s", moe_test_path("file"));
    OK(moe_dir_make(dir));
    OK(moe_store_create(sizes, SLOTS, SLOTS + 1, &s));
    OK(moe_store_open(s, dir, ""));
    ck_assert_int_eq(n_entries(dir), 0); /* killed, we leave nothing behind */
    go_round(s, sizes, 20);
    ck_assert_int_eq(moe_store_memory(s), 0);
    moe_store_destroy(s);
    OK(moe_store_create(sizes, SLOTS, SLOTS + 1, &s));
    FAILS(moe_store_open(s, moe_test_path("nowhere"), ""), MOE_E_IO, "nowhere", "--offload-to");
    moe_store_destroy(s);
}
END_TEST

/* Only the first slots fit: the others stay in memory, with the same bytes. */
START_TEST(test_disk_full) {
    struct rlimit before, small;
    MoeStore *s;
    ck_assert(!getrlimit(RLIMIT_FSIZE, &before));
    small = before;
    small.rlim_cur = 102400 + 4096; /* slots begin at whole pages */
    signal(SIGXFSZ, SIG_IGN);
    ck_assert(!setrlimit(RLIMIT_FSIZE, &small));
    OK(moe_store_create(sizes, SLOTS, SLOTS + 1, &s));
    OK(moe_store_open(s, moe_test_dir(), "rank 3: "));
    go_round(s, sizes, 5);
    int64_t kept = moe_store_memory(s);
    ck_assert(!setrlimit(RLIMIT_FSIZE, &before));
    ck_assert_int_eq(kept, sizes[2] + sizes[3] + sizes[4] + sizes[5]);
    moe_store_destroy(s);
}
END_TEST

/* The store's file, by what the system says of our descriptors. */
static bool cut_file(const char *dir) {
    DIR *d = opendir("/proc/self/fd");
    bool found = false;
    for (struct dirent *e; d && (e = readdir(d));) {
        char at[PATH_MAX], to[PATH_MAX];
        snprintf(at, sizeof at, "/proc/self/fd/%s", e->d_name);
        ssize_t n = readlink(at, to, sizeof to - 1);
        to[n > 0 ? n : 0] = 0;
        if (strncmp(to, dir, strlen(dir)) || !strstr(to, "deleted"))
            continue;
        int fd = open(at, O_WRONLY | O_TRUNC);
        found |= fd >= 0;
        if (fd >= 0)
            close(fd);
    }
    if (d)
        closedir(d);
    return found;
}

START_TEST(test_cannot_read_back) {
    MoeStore *s;
    char data[5000];
    int64_t n = sizeof data;
    char *dir = realpath(moe_test_dir(), NULL);
    fill(data, n, 1);
    OK(moe_store_create(&n, 1, 1, &s));
    OK(moe_store_open(s, dir, ""));
    OK(moe_store_start(s, 0, 0, false, data, n));
    wait_for(s, 0);
    ck_assert(cut_file(dir));
    OK(moe_store_start(s, 0, 0, true, data, n));
    while (!moe_store_done(s, 0, 1))
        ;
    FAILS(moe_store_result(s, 0), MOE_E_IO, "read back", dir, "checkpoint");
    OK(moe_store_result(s, 0));
    moe_store_destroy(s);
    free(dir);
}
END_TEST

/* ---- steps ---- */

static const char plan_json[] =
    "{\"format_version\": 1, \"abi\": 1, \"target\": \"cpu:generic\", \"model\": {}, \"tokenizer\": \"byte\","
    " \"vocab_size\": 256, \"batch\": 4, \"seq\": 2, \"virtual_shards\": 4, \"micro_batches\": 1, \"dtype\": \"f32\","
    " \"moe_layers\": [], \"experts\": 0, \"experts_per_token\": 0, \"buffers\": [], \"params\": [],"
    " \"programs\": {\"t\": {\"slab_bytes\": 16384, \"slab_lower_bound\": 1, \"scratch_bytes\": 0, \"offload_slots\": [4096, 64],"
    "  \"values\": [{\"slab\": 0, \"bytes\": 4096}, {\"slab\": 8192, \"bytes\": 4096}, {\"slab\": 4096, \"bytes\": 64},"
    "   {\"input\": \"segs\", \"bytes\": 20}],"
    "  \"inputs\": [], \"outputs\": [], \"steps\": ["
    "   {\"name\": \"out\", \"kind\": \"store\", \"phase\": \"forward\", \"count\": false, \"layer\": 0, \"start\": true, \"store\": ["
    "    {\"op\": \"offload\", \"value\": 0, \"slot\": 0, \"bytes\": 4096, \"rows\": 3, \"row_bytes\": 64},"
    "    {\"op\": \"offload\", \"value\": 2, \"slot\": 1, \"bytes\": 64}]},"
    "   {\"name\": \"gone\", \"kind\": \"wait\", \"phase\": \"forward\", \"count\": false, \"layer\": 0, \"wait\": 0},"
    "   {\"name\": \"back\", \"kind\": \"store\", \"phase\": \"backward\", \"count\": false, \"layer\": 0, \"start\": true, \"store\": ["
    "    {\"op\": \"load\", \"value\": 1, \"slot\": 0, \"bytes\": 4096, \"rows\": 3, \"row_bytes\": 64},"
    "    {\"op\": \"load\", \"value\": 2, \"slot\": 1, \"bytes\": 64}]},"
    "   {\"name\": \"used\", \"kind\": \"wait\", \"phase\": \"backward\", \"count\": false, \"layer\": 0, \"wait\": 2}]}}}";

static MoeStatus load(const char *text, MoePlan **out) {
    return moe_plan_load_memory(text, strlen(text), "p.json", NULL, 0, out);
}

/* Live rows move, dead ones do not. */
START_TEST(test_steps) {
    MoePlan *p;
    MoeExec *x;
    OK(load(plan_json, &p));
    ck_assert(p->programs[0].n_slots == 2 && p->programs[0].steps[0].n_moves == 2);
    OK(moe_exec_create(p, NULL, 1, &x));
    if (_i)
        OK(moe_exec_offload_to(x, moe_test_dir()));
    MoeExecProgram *g = &x->programs[0];
    int32_t *segs = (int32_t *)(void *)g->values[3];
    const int live = 17;
    for (int i = 0; i < 5; i++)
        segs[i] = live * i / 4;
    fill(g->values[0], 4096, 1);
    fill(g->values[2], 64, 2);
    for (size_t i = 0; i < 2; i++)
        OK(moe_exec_store_step(x, g, i));
    ck_assert_int_eq(moe_exec_offloaded_bytes(x), live * 64 + 64);
    memset(x->slab, 0, 16384);
    for (size_t i = 2; i < 4; i++)
        OK(moe_exec_store_step(x, g, i));
    char want[4096];
    fill(want, 4096, 1);
    ck_assert(!memcmp(g->values[1], want, (size_t)live * 64) && g->values[1][live * 64] == 0);
    fill(want, 64, 2);
    ck_assert(!memcmp(g->values[2], want, 64));
    int64_t planned = x->fixed_bytes + x->scratch_bytes + 20;
    ck_assert_int_eq(moe_exec_memory_bytes(x) - planned, _i ? 0 : live * 64 + 64);
    moe_exec_destroy(x);
    moe_plan_free(p);
}
END_TEST

/* With the first `from` behind `at` replaced. */
static char *edited(const char *at, const char *from, const char *to) {
    const char *start = strstr(strstr(plan_json, at), from);
    size_t n = strlen(plan_json) + strlen(to) + 1;
    char *text = malloc(n);
    snprintf(text, n, "%.*s%s%s", (int)(start - plan_json), plan_json, to, start + strlen(from));
    return text;
}

START_TEST(test_damage) {
    static const struct {
        const char *at, *from, *to, *named;
    } cases[] = {
        {"offload_slots", "4096", "0", "no number of bytes at place 0"},
        {"offload_slots", "4096", "4095", "steps[0].store[0].slot"},
        {"offload_slots", "[4096, 64]", "7", "offload_slots"},
        {"\"out\"", "\"offload\"", "\"move\"", "steps[0].store[0].op"},
        {"\"out\"", "\"value\": 0", "\"value\": 3", "steps[0].store[0].value"},
        {"\"out\"", "\"value\": 0", "\"value\": 2", "steps[0].store[0].value"},
        {"\"out\"", "\"slot\": 0", "\"slot\": 2", "steps[0].store[0].slot"},
        {"\"out\"", "\"rows\": 3", "\"rows\": 4", "steps[0].store[0].rows"},
        {"\"input\"", "20", "4", "steps[0].store[0].rows"},
        {"\"out\"", "true", "false", "steps[0].start"},
        {"\"back\"", "\"load\"", "\"offload\"", ""},
        {"\"back\"", "\"slot\": 1", "\"slot\": 0", "other rows were offloaded"},
        {"\"back\"", "\"slot\": 0", "\"slot\": 1", "too few for 4096"},
        {"\"back\"", "\"row_bytes\": 64", "\"row_bytes\": 32", "other rows were offloaded"},
        {"\"used\"", "\"wait\": 2", "\"wait\": 1", "not a step that starts"},
        {"\"gone\"", "\"wait\": 0", "\"wait\": 2", "steps[1].wait"},
        {"\"out\"", "\"offload\"", "\"load\"", "nothing was offloaded"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = edited(cases[i].at, cases[i].from, cases[i].to);
        MoePlan *p = NULL;
        MoeStatus st = load(text, &p);
        if (*cases[i].named) {
            const char *wrong =
                moe_test_error(st, MOE_E_CORRUPT, "damaged plan", cases[i].named, NULL);
            ck_assert_msg(!wrong, "%s: %s -> %s: %s", cases[i].at, cases[i].from, cases[i].to,
                          wrong);
        } else {
            OK(st);
            moe_plan_free(p);
        }
        free(text);
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("store");
    TCase *t = tcase_create("store");
    tcase_add_test(t, test_memory);
    tcase_add_test(t, test_file);
    tcase_add_test(t, test_disk_full);
    tcase_add_test(t, test_cannot_read_back);
    tcase_add_loop_test(t, test_steps, 0, 2);
    tcase_add_test(t, test_damage);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
