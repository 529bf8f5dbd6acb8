/* runtime/checkpoint.h: round trip, damage at every byte, falling back, pruning, failing system
 * calls, and kills at every system call (where strace is installed: this program runs itself under
 * it with --save DIR STEP). */
#include <check.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/io.h"
#include "runtime/checkpoint.h"
#include "tests/support/check_main.h"
#include "tests/support/fake_plan.h"
#include "tests/support/files.h"
#include "tests/support/status_checks.h"

static const char *program; /* argv[0] */
static MoePlan *plan;
static MoeExec *x;
static char run[600];

static void make_model(void) {
    plan = fake_plan(
        &(FakePlanOptions){.batch = 4, .seq = 8, .virtual_shards = 4, .micro_batches = 1});
    MoeStatus st = moe_exec_create(plan, NULL, 1, &x);
    if (st)
        abort();
}

static void setup(void) {
    make_model();
    snprintf(run, sizeof run, "%s/run", moe_test_dir());
    OK(moe_dir_remove(run));
    OK(moe_dir_make(run));
}

static void teardown(void) {
    moe_exec_destroy(x);
    moe_plan_free(plan);
}

/* What the buffers hold at a step. */
static void fill(int64_t step) {
    for (int b = 0; b < 6; b++)
        for (int64_t i = 0; i < plan->buffers[b].elements; i++)
            ((float *)moe_exec_buffer(x, b))[i] = (float)step * 100 + (float)b + (float)i / 64;
}

static bool holds(int64_t step) {
    for (int b = 0; b < 6; b++)
        for (int64_t i = 0; i < plan->buffers[b].elements; i++)
            if (((float *)moe_exec_buffer(x, b))[i] != (float)step * 100 + (float)b + (float)i / 64)
                return false;
    return true;
}

static MoeTrainState state_of(int64_t step) {
    return (MoeTrainState){.step = step,
                           .updates = step - 1,
                           .skipped = 1,
                           .skipped_in_row = 1,
                           .tokens = step * 32,
                           .train_seconds = 1.0 / 3,
                           .seed = UINT64_MAX - 5,
                           .data = {2, step},
                           .data_fingerprint = "0123456789abcdef0123456789abcdef",
                           .checkpoint_failures = 4};
}

static MoeStatus save(int64_t step) {
    MoeTrainState s = state_of(step);
    fill(step);
    return moe_checkpoint_save(plan, x, run, &s);
}

/* The newest intact one; 0 = none. Checks that what it holds is of its step. */
static int64_t newest(void) {
    MoeTrainState s;
    bool found;
    fill(-1);
    OK(moe_checkpoint_load_newest(plan, x, run, true, &s, &found));
    if (!found)
        return 0;
    ck_assert(holds(s.step));
    MoeTrainState want = state_of(s.step);
    ck_assert(s.updates == want.updates && s.skipped == 1 && s.skipped_in_row == 1 &&
              s.tokens == want.tokens && s.train_seconds == want.train_seconds &&
              s.seed == want.seed && s.data.epoch == 2 && s.data.index == s.step &&
              !strcmp(s.data_fingerprint, want.data_fingerprint) && s.checkpoint_failures == 4);
    return s.step;
}

static const char *in_run(const char *name) {
    char path[800];
    snprintf(path, sizeof path, "run/checkpoints/%s", name);
    return moe_test_path(path);
}

START_TEST(test_round_trip) {
    ck_assert_int_eq(newest(), 0);
    OK(save(3));
    ck_assert_int_eq(newest(), 3);
    OK(save(12));
    OK(save(100)); /* numbers, not names, order them */
    ck_assert_int_eq(newest(), 100);
    OK(save(100)); /* again over itself */
    ck_assert_int_eq(newest(), 100);
    MoeCheckpointRef *refs;
    size_t n;
    OK(moe_checkpoint_list(run, &refs, &n));
    ck_assert_int_eq(n, 3);
    ck_assert(refs[0].step == 100 && refs[1].step == 12 && refs[2].step == 3);
    OK(moe_checkpoint_load(plan, x, refs[1].path, true, NULL));
    ck_assert(holds(12));
    fill(7); /* weights only: states stay */
    OK(moe_checkpoint_load(plan, x, refs[1].path, false, NULL));
    ck_assert(((float *)moe_exec_buffer(x, 0))[0] == 1200 &&
              ((float *)moe_exec_buffer(x, 3))[1] == 1203 + 1.0f / 64);
    ck_assert(((float *)moe_exec_buffer(x, 1))[0] == 701);
    moe_checkpoint_list_free(refs, n);
    OK(moe_checkpoint_set_newer_aside(run, 12));
    ck_assert_int_eq(newest(), 12);
    char **names; /* put aside, not deleted */
    OK(moe_dir_list(moe_test_path("run/checkpoints"), &names, &n));
    ck_assert_int_eq(n, 3);
    ck_assert(!strncmp(names[0], "aside-step-100-", 15));
    moe_dir_list_free(names, n);
}
END_TEST

START_TEST(test_prune_and_clean) {
    for (int s = 1; s <= 5; s++)
        OK(save(s));
    OK(moe_dir_make(in_run("step-6.tmp-77")));
    OK(moe_dir_make(in_run(".trash-step-1-77")));
    OK(moe_dir_make(in_run("mine")));
    OK(moe_checkpoint_prune(run, 2));
    moe_checkpoint_clean(run);
    char **names;
    size_t n;
    OK(moe_dir_list(moe_test_path("run/checkpoints"), &names, &n));
    ck_assert_int_eq(n, 3);
    ck_assert(!strcmp(names[0], "mine") && !strcmp(names[1], "step-4") &&
              !strcmp(names[2], "step-5"));
    moe_dir_list_free(names, n);
    ck_assert_int_eq(newest(), 5);
    OK(moe_checkpoint_prune(run, 0)); /* one stays in any case */
    ck_assert_int_eq(newest(), 5);
}
END_TEST

/* Another model is not damage: no falling back, both values named. */
START_TEST(test_other_plan) {
    OK(save(2));
    static const struct {
        FakePlanOptions o;
        const char *named, *value;
    } cases[] = {{{.batch = 4, .seq = 8, .virtual_shards = 8, .micro_batches = 1}, "virtual_shards", "8"},
                 {{.batch = 4,
                   .seq = 8,
                   .virtual_shards = 4,
                   .micro_batches = 1,
                   .extra_model = ", \"num_attention_heads\": 3"},
                  "num_attention_heads",
                  "3"}};
    MoeTrainState s;
    bool found;
    for (int i = 0; i < 2; i++) {
        teardown();
        plan = fake_plan(&cases[i].o);
        OK(moe_exec_create(plan, NULL, 1, &x));
        FAILS(moe_checkpoint_load_newest(plan, x, run, true, &s, &found), MOE_E_INPUT,
              "another model or plan", cases[i].named, cases[i].value, "another --out");
    }
    teardown(); /* another batch, sequence length or number of micro-batches may go on */
    plan = fake_plan(
        &(FakePlanOptions){.batch = 8, .seq = 16, .virtual_shards = 4, .micro_batches = 2});
    OK(moe_exec_create(plan, NULL, 1, &x));
    ck_assert_int_eq(newest(), 2);
}
END_TEST

/* ---- damage ---- */

static void read_file(const char *path, char **data, size_t *n) {
    OK(moe_file_read(path, 1 << 24, data, n));
}

static void write_file(const char *path, const char *data, size_t n) {
    FILE *f = fopen(path, "wb");
    ck_assert(f && fwrite(data, 1, n, f) == n && !fclose(f));
}

/* Every byte of every file, one bit flipped: found, named, and the older one is taken. */
START_TEST(test_every_byte) {
    static const char *const files[] = {"step-2/manifest.json", "step-2/model.safetensors",
                                        "step-2/optimizer.safetensors"};
    OK(save(1));
    OK(save(2));
    freopen("/dev/null", "w", stderr); /* a warning each */
    for (int f = 0; f < 3; f++) {
        char *data, *path = strdup(in_run(files[f]));
        size_t n;
        read_file(path, &data, &n);
        for (size_t i = 0; i < n; i++) {
            data[i] ^= (char)(1 << (i % 8));
            write_file(path, data, n);
            MoeStatus st = moe_checkpoint_verify(in_run("step-2"), NULL);
            /* White space of the manifest may change into other white space: the content is the
             * same. */
            ck_assert_msg(st || (f == 0 && strchr(" \n\t\r", data[i])),
                          "%s: byte %zu changed unnoticed", files[f], i);
            if (st && i % 16 == 0)
                ck_assert_int_eq(newest(), 1);
            moe_status_free(st);
            data[i] ^= (char)(1 << (i % 8));
        }
        for (size_t keep = 0; keep < n; keep += 13) { /* truncated */
            write_file(path, data, keep);
            FAILS(moe_checkpoint_verify(in_run("step-2"), NULL), MOE_E_CORRUPT, "step-2");
        }
        unlink(path);
        FAILS(moe_checkpoint_verify(in_run("step-2"), NULL), MOE_E_CORRUPT, "step-2",
              strrchr(files[f], '/') + 1);
        ck_assert_int_eq(newest(), 1);
        write_file(path, data, n);
        ck_assert_int_eq(newest(), 2);
        free(data);
        free(path);
    }
    /* Files swapped between steps. */
    char *data;
    size_t n;
    read_file(in_run("step-1/model.safetensors"), &data, &n);
    write_file(in_run("step-2/model.safetensors"), data, n);
    FAILS(moe_checkpoint_verify(in_run("step-2"), NULL), MOE_E_CORRUPT, "step-2/model.safetensors",
          "XXH3");
    /* None intact: an error, not a silent new start. */
    write_file(in_run("step-1/manifest.json"), "{", 1);
    MoeTrainState s;
    bool found;
    FAILS(moe_checkpoint_load_newest(plan, x, run, true, &s, &found), MOE_E_CORRUPT,
          "none of its 2 checkpoints");
    free(data);
}
END_TEST

/* A newer format is refused with that reason. */
START_TEST(test_newer_format) {
    OK(save(1));
    char *path = strdup(in_run("step-1/manifest.json")), *data;
    size_t n;
    read_file(path, &data, &n);
    json_t *m = json_loadb(data, n, 0, NULL);
    json_object_set_new(m, "format_version", json_integer(3));
    json_object_del(m, "manifest_xxh3");
    MoeStr text = {0};
    char hash[33];
    moe_json_dump(m, &text);
    moe_hash_hex(text.data, text.len, hash);
    json_object_set_new(m, "manifest_xxh3", json_string(hash));
    moe_str_clear(&text);
    moe_json_dump(m, &text);
    write_file(path, text.data, text.len);
    FAILS(moe_checkpoint_verify(in_run("step-1"), NULL), MOE_E_INPUT, "format version 3");
    moe_str_free(&text);
    json_decref(m);
    free(data);
    free(path);
}
END_TEST

/* ---- faults ---- */

/* A file-size limit stands in for a full disk: writing stops at each size in turn. */
START_TEST(test_full_disk) {
    OK(save(1));
    signal(SIGXFSZ, SIG_IGN);
    int failed = 0;
    for (rlim_t size = 0;; size += 97) {
        struct rlimit old, now;
        getrlimit(RLIMIT_FSIZE, &old);
        now = old;
        now.rlim_cur = size;
        setrlimit(RLIMIT_FSIZE, &now);
        MoeStatus st = save(2);
        setrlimit(RLIMIT_FSIZE, &old);
        if (!st)
            break;
        failed++;
        ck_assert_msg(strstr(moe_status_message(st), "checkpoint of step 2"), "%s",
                      moe_status_message(st));
        moe_status_free(st);
        ck_assert_int_eq(newest(), 1);
        char **names; /* nothing half written stays */
        size_t n;
        OK(moe_dir_list(moe_test_path("run/checkpoints"), &names, &n));
        ck_assert_int_eq(n, 1);
        moe_dir_list_free(names, n);
    }
    ck_assert_int_gt(failed, 5);
    ck_assert_int_eq(newest(), 2);
}
END_TEST

/* Runs `program --save RUN STEP` under strace with the injection; returns its wait status. */
static int run_traced(const char *inject, int step) {
    char number[32];
    snprintf(number, sizeof number, "%d", step);
    pid_t pid = fork();
    if (pid == 0) {
        freopen("/dev/null", "w", stderr);
        freopen("/dev/null", "w", stdout);
        setenv("ASAN_OPTIONS", "detect_leaks=0",
               1); /* the leak checker cannot run under a tracer */
        execlp("strace", "strace", "-qq", "-f", "-o", "/dev/null", "-e", inject, program, "--save",
               run, number, (char *)NULL);
        _exit(99);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return status;
}

static bool have_strace(void) {
    int status = system("strace -o /dev/null true >/dev/null 2>&1");
    if (!status)
        return true;
    fprintf(stderr, "strace cannot be used here: the tests that inject faults into system calls "
                    "are left out\n");
    return false;
}

static const char *const calls[] = {"mkdir",  "openat",
                                    "write",  "fsync",
                                    "rename", "unlinkat,unlink,rmdir",
                                    "close",  "ftruncate,fallocate"};

/* Killed at the n-th call of each kind: the newest intact checkpoint is the old or the new one,
 * whole; the next save works. */
START_TEST(test_kill_everywhere) {
    int kills = 0, kept_old = 0, got_new = 0;
    if (!have_strace())
        return;
    for (size_t c = 0; c < sizeof calls / sizeof *calls; c++)
        for (int n = 1;; n++) {
            char inject[200];
            ck_assert_int_lt(n, 1000);
            OK(moe_dir_remove(run));
            OK(save(1));
            snprintf(inject, sizeof inject, "inject=%s:signal=SIGKILL:when=%d", calls[c], n);
            int status = run_traced(inject, 2);
            ck_assert(!(WIFEXITED(status) && WEXITSTATUS(status) == 99));
            if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
                break;
            kills++;
            int64_t step = newest();
            ck_assert_msg(step == 1 || step == 2, "%s: step %lld", inject, (long long)step);
            kept_old += step == 1;
            got_new += step == 2;
            moe_checkpoint_clean(run);
            OK(save(3));
            ck_assert_int_eq(newest(), 3);
        }
    ck_assert_int_gt(kills, 30);
    ck_assert_int_gt(kept_old, 10);
    ck_assert_int_gt(got_new, 0);
}
END_TEST

/* The n-th call fails: an error is reported, or the checkpoint stands; never neither. */
START_TEST(test_fail_everywhere) {
    static const char *const errors[] = {"ENOSPC", "EIO"};
    static const char *const failing[] = {"mkdir", "write", "fsync", "rename"};
    int failures = 0;
    if (!have_strace())
        return;
    for (int e = 0; e < 2; e++)
        for (size_t c = 0; c < sizeof failing / sizeof *failing; c++)
            for (int n = 1; n < 100; n++) {
                char inject[200];
                OK(moe_dir_remove(run));
                OK(save(1));
                snprintf(inject, sizeof inject, "inject=%s:error=%s:when=%d", failing[c], errors[e],
                         n);
                int status = run_traced(inject, 2);
                ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) != 99, "%s", inject);
                int64_t step = newest();
                ck_assert_msg(step == 1 || step == 2, "%s", inject);
                if (WEXITSTATUS(status) == 0) {
                    ck_assert_msg(step == 2, "%s: success reported, but step %lld", inject,
                                  (long long)step);
                    break;
                }
                failures++;
            }
    ck_assert_int_gt(failures, 15);
}
END_TEST

int main(int argc, char **argv) {
    program = argv[0];
    if (argc == 4 && !strcmp(argv[1], "--save")) {
        make_model();
        snprintf(run, sizeof run, "%s", argv[2]);
        MoeStatus st = save(atoi(argv[3]));
        return st ? 1 : 0;
    }
    Suite *s = suite_create("checkpoint");
    TCase *t = tcase_create("checkpoint");
    tcase_set_timeout(t, 180);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, test_round_trip);
    tcase_add_test(t, test_prune_and_clean);
    tcase_add_test(t, test_other_plan);
    tcase_add_test(t, test_every_byte);
    tcase_add_test(t, test_newer_format);
    tcase_add_test(t, test_full_disk);
    tcase_add_test(t, test_kill_everywhere);
    tcase_add_test(t, test_fail_everywhere);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
