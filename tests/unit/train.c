/* runtime/train.h over the tiny plan: log, trace, checkpoints, resume, kills, signals, skipped
 * steps, full disk, misuse; and the schedule, the cutting back of logs, and sampling. */
#include <check.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/io.h"
#include "base/log.h"
#include "runtime/log.h"
#include "runtime/ranks.h"
#include "runtime/run_config.h"
#include "runtime/sample.h"
#include "runtime/train.h"
#include "runtime/weights.h"
#include "tests/support/check_main.h"
#include "tests/support/fake_plan.h"
#include "tests/support/files.h"
#include "tests/support/status_checks.h"

enum { V = 4 };
static MoePlan *plan;
static MoeTrainOptions o;
static MoeTrainReport report;
static char out_dir[600], data_path[600];

static void make_plan(int micro_batches, const char *extra) {
    moe_plan_free(plan);
    plan = fake_plan(&(FakePlanOptions){.batch = 6,
                                        .seq = 16,
                                        .virtual_shards = V,
                                        .micro_batches = micro_batches,
                                        .extra_model = extra});
}

static void set_out(const char *name) {
    snprintf(out_dir, sizeof out_dir, "%s/%s", moe_test_dir(), name);
    o.out_dir = out_dir;
}

static void setup(void) {
    char text[5000];
    unsigned s = 1;
    for (size_t i = 0; i < sizeof text; i++) {
        s = s * 1664525u + 1013904223u;
        text[i] = (char)('a' + (s >> 28));
    }
    snprintf(data_path, sizeof data_path, "%s", moe_test_file("data.txt", text, sizeof text));
    make_plan(2, "");
    moe_train_options_default(&o);
    o.data_path = data_path;
    o.steps = 12;
    o.lr = 0.1;
    o.threads = 1;
    o.eval_every = 5;
    o.eval_batches = 1;
    o.checkpoint_every = 4;
    o.keep = 2;
    o.quiet = true;
    set_out("run");
}

static void teardown(void) {
    moe_train_report_free(&report);
    moe_plan_free(plan);
    plan = NULL;
}

/* The log's objects. */
static size_t read_log(const char *dir, json_t **out, size_t max) {
    char *path = moe_path_join(dir, "log.jsonl"), *text;
    size_t n, count = 0;
    OK(moe_file_read(path, 1 << 24, &text, &n));
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        ck_assert(count < max);
        OK(moe_json_load_text(line, strlen(line), "log", &out[count++]));
    }
    free(text);
    free(path);
    return count;
}

static double number(const json_t *o_, const char *key) {
    const json_t *v = json_object_get(o_, key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

static size_t count_lines(const char *dir, const char *name) {
    char *path = moe_path_join(dir, name), *text;
    size_t n, lines = 0;
    OK(moe_file_read(path, 1 << 24, &text, &n));
    for (size_t i = 0; i < n; i++)
        lines += text[i] == '\n';
    free(text);
    free(path);
    return lines;
}

START_TEST(test_run) {
    OK(moe_train_run(plan, NULL, &o, &report));
    ck_assert(report.reason == MOE_STOP_DONE && report.state.step == 12 &&
              report.state.updates == 12 && report.first_step == 1);
    ck_assert(report.has_eval && report.eval_bits_per_byte > 0 && !report.checkpoint_failed &&
              report.mfu > 0);
    ck_assert(fabs(report.eval_bits_per_byte - report.eval_loss / log(2)) < 1e-12);
    json_t *log[20];
    size_t n = read_log(out_dir, log, 20);
    ck_assert_int_eq(n, 12);
    static const char *const keys[] = {
        "step",   "loss",    "ce_loss", "aux_loss",          "grad_norm",   "lr",
        "tokens", "seconds", "mfu",     "tokens_per_second", "memory_bytes"};
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
            ck_assert_msg(isfinite(number(log[i], keys[k])), "step %zu: %s", i + 1, keys[k]);
        ck_assert(number(log[i], "step") == (double)(i + 1) && number(log[i], "tokens") == 6 * 16);
        ck_assert(number(log[i], "lr") == moe_train_lr(&o, (int64_t)i + 1));
        ck_assert(json_array_size(json_object_get(log[i], "imbalance")) == 1);
        ck_assert(json_number_value(json_array_get(json_object_get(log[i], "imbalance"), 0)) == 1);
        ck_assert(
            json_number_value(json_array_get(json_object_get(log[i], "expert_imbalance"), 0)) >= 1);
        bool evaluated = i + 1 == 5 || i + 1 == 10 || i + 1 == 12;
        ck_assert(isfinite(number(log[i], "eval_bits_per_byte")) == evaluated);
        ck_assert(!json_object_get(log[i], "skipped"));
    }
    ck_assert(number(log[11], "eval_tokens") ==
              16 * 16); /* the last one reads all: 312 windows, 5% */
    ck_assert(number(log[4], "eval_tokens") == 6 * 16);
    ck_assert(number(log[11], "loss") < number(log[0], "loss"));
    ck_assert_int_eq(count_lines(out_dir, "trace.csv"), 1 + 12 * V);
    ck_assert(report.load[0] + report.load[1] + report.load[2] + report.load[3] == 12 * 96);
    MoeCheckpointRef *refs;
    OK(moe_checkpoint_list(out_dir, &refs, &n));
    ck_assert(n == 2 && refs[0].step == 12 && refs[1].step == 8);
    ck_assert_str_eq(report.checkpoint, refs[0].path);
    moe_checkpoint_list_free(refs, n);
    MoeRunConfig c;
    OK(moe_run_config_read(out_dir, &c));
    ck_assert_ptr_nonnull(strstr(c.data_path, "data.txt"));
    moe_run_config_free(&c);
    for (size_t i = 0; i < 12; i++)
        json_decref(log[i]);
    /* Again: nothing left to do, and it says so by doing none. */
    int64_t load[FAKE_EXPERTS];
    memcpy(load, report.load, sizeof load);
    moe_train_report_free(&report);
    OK(moe_train_run(plan, NULL, &o, &report));
    ck_assert(report.first_step == 13 && report.state.step == 12 && report.has_eval);
    for (int e = 0; e < FAKE_EXPERTS; e++)
        ck_assert_int_eq(report.load[e], load[e]); /* of the whole run, from its trace */
    ck_assert_int_eq(count_lines(out_dir, "log.jsonl"), 12);
    ck_assert_ptr_nonnull(report.checkpoint);
    /* More steps: it goes on. */
    moe_train_report_free(&report);
    o.steps = 14;
    OK(moe_train_run(plan, NULL, &o, &report));
    ck_assert(report.first_step == 13 && report.state.step == 14);
    ck_assert_int_eq(count_lines(out_dir, "log.jsonl"), 14);
    ck_assert_int_eq(count_lines(out_dir, "trace.csv"), 1 + 14 * V);
}
END_TEST

/* What must agree between two runs: losses and norms of every step, and the hash of every weight
 * and state at the end. */
static void same_runs(const char *a, const char *b, int64_t steps) {
    static const char *const keys[] = {"loss", "ce_loss", "aux_loss", "grad_norm", "lr", "tokens"};
    json_t *x[200], *y[200], *m[2];
    ck_assert_int_eq(read_log(a, x, 200), steps);
    ck_assert_int_eq(read_log(b, y, 200), steps);
    for (int64_t i = 0; i < steps; i++) {
        for (int k = 0; k < 6; k++)
            ck_assert_msg(
                json_equal(json_object_get(x[i], keys[k]), json_object_get(y[i], keys[k])),
                "step %d: %s", (int)i + 1, keys[k]);
        json_decref(x[i]);
        json_decref(y[i]);
    }
    for (int k = 0; k < 2; k++) {
        char path[800];
        snprintf(path, sizeof path, "%s/checkpoints/step-%lld", k ? b : a, (long long)steps);
        OK(moe_checkpoint_verify(path, &m[k]));
    }
    ck_assert(json_equal(json_object_get(m[0], "census"), json_object_get(m[1], "census")));
    json_t *data[2] = {json_object_get(json_object_get(m[0], "state"), "data"),
                       json_object_get(json_object_get(m[1], "state"), "data")};
    ck_assert(json_equal(data[0], data[1]));
    json_decref(m[0]);
    json_decref(m[1]);
    char *ta, *tb, *pa = moe_path_join(a, "trace.csv"), *pb = moe_path_join(b, "trace.csv");
    size_t na, nb;
    OK(moe_file_read(pa, 1 << 24, &ta, &na));
    OK(moe_file_read(pb, 1 << 24, &tb, &nb));
    ck_assert(na == nb && !memcmp(ta, tb, na));
    free(ta);
    free(tb);
    free(pa);
    free(pb);
}

/* Runs in a child; returns its pid. The child exits 0 when training ended well, 1 on error. */
static pid_t run_child(void) {
    pid_t pid = fork();
    if (pid)
        return pid;
    MoeTrainReport r;
    MoeStatus st = moe_train_run(plan, NULL, &o, &r);
    _exit(st ? 1 : 0);
}

/* ---- ranks ---- */

static MoeTrainReport reports[V];

static MoeStatus train_rank(void *ctx, MoeComm *comm) {
    (void)ctx;
    return moe_train_run(plan, comm, &o, &reports[comm->rank]);
}

static void make_ranks(int ranks, int micro_batches) {
    moe_plan_free(plan);
    plan = fake_plan(&(FakePlanOptions){.batch = 6,
                                        .seq = 16,
                                        .virtual_shards = V,
                                        .micro_batches = micro_batches,
                                        .extra_model = "",
                                        .ranks = ranks});
}

static void free_reports(void) {
    for (int r = 0; r < V; r++)
        moe_train_report_free(&reports[r]);
}

/* Ranks write one log, one trace, one chain of checkpoints: those of one rank. Stopped on the way and continued on other
 * numbers of ranks. */
START_TEST(test_ranks) {
    set_out("one");
    OK(moe_train_run(plan, NULL, &o, &report));
    set_out("two");
    make_ranks(2, 2);
    OK(moe_ranks_run(2, 0, train_rank, NULL));
    for (int r = 0; r < 2; r++)
        ck_assert(reports[r].reason == MOE_STOP_DONE && reports[r].state.step == 12 &&
                  reports[r].eval_loss == report.eval_loss && reports[r].loss == report.loss &&
                  reports[r].memory_bytes_max >= reports[r].memory_bytes);
    ck_assert(!memcmp(reports[0].load, report.load, sizeof(int64_t) * FAKE_EXPERTS));
    same_runs(moe_test_path("one"), moe_test_path("two"), 12);
    free_reports();
    set_out("moved");
    o.stop_after_step = 3; /* neither an evaluation nor a checkpoint is due here */
    make_ranks(4, 1);
    OK(moe_ranks_run(4, 0, train_rank, NULL));
    ck_assert(reports[3].reason == MOE_STOP_STEP && reports[0].state.step == 3 &&
              !reports[0].has_eval);
    ck_assert_ptr_nonnull(strstr(reports[0].checkpoint, "step-3"));
    free_reports();
    o.stop_after_step = 7;
    make_ranks(2, 1);
    OK(moe_ranks_run(2, 0, train_rank, NULL));
    ck_assert(reports[1].first_step == 4 && reports[1].state.step == 7);
    free_reports();
    o.stop_after_step = 0;
    make_plan(1, "");
    moe_train_report_free(&report);
    OK(moe_train_run(plan, NULL, &o, &report));
    same_runs(moe_test_path("one"), moe_test_path("moved"), 12);
}
END_TEST

/* One rank's trouble is everybody's, and is said once. */
START_TEST(test_ranks_errors) {
    make_ranks(4, 1);
    MoeTrainOptions good = o;
    o.data_path = moe_test_file("short.txt", "abc", 3);
    FAILS(moe_ranks_run(4, 0, train_rank, NULL), MOE_E_INPUT, "short.txt", "too few");
    o = good;
    set_out("stranger");
    OK(moe_dir_make(out_dir));
    moe_test_file("stranger/a_file", "x", 1);
    FAILS(moe_ranks_run(4, 0, train_rank, NULL), MOE_E_INPUT, "not a run directory",
          "another --out");
    set_out("other");
    FAILS(moe_ranks_run(2, 0, train_rank, NULL), MOE_E_MISUSE, "for 4 ranks", "2 are there");
    free_reports();
}
END_TEST

/* A signal to the process, a time budget: all ranks end after the same step, with a checkpoint. */
START_TEST(test_ranks_stop) {
    make_ranks(4, 1);
    fake_sleep_us = 2000;
    o.steps = 100000;
    pid_t self = getpid(), child = fork();
    if (!child) {
        usleep(150000);
        kill(self, SIGUSR1);
        _exit(0);
    }
    OK(moe_ranks_run(4, 0, train_rank, NULL));
    waitpid(child, NULL, 0);
    int64_t step = reports[0].state.step;
    ck_assert(step > 0 && step < 100000);
    for (int r = 0; r < 4; r++)
        ck_assert(reports[r].reason == MOE_STOP_SIGNAL && reports[r].state.step == step &&
                  !reports[r].checkpoint_failed);
    free_reports();
    o.max_seconds = 0.2;
    OK(moe_ranks_run(4, 0, train_rank, NULL));
    for (int r = 0; r < 4; r++)
        ck_assert(reports[r].reason == MOE_STOP_TIME &&
                  reports[r].state.step == reports[0].state.step && reports[r].state.step > step);
    ck_assert_int_eq(count_lines(out_dir, "log.jsonl"), reports[0].state.step);
    free_reports();
    fake_sleep_us = 0;
}
END_TEST

/* Killed at any moment, again and again, and resumed with another division into micro-batches: the
 * same bits as never killed. */
START_TEST(test_kill_and_resume) {
    o.steps = 60;
    o.checkpoint_every = 3;
    set_out("whole");
    OK(moe_train_run(plan, NULL, &o, &report));
    fake_sleep_us = 2000;
    set_out("killed");
    unsigned s = (unsigned)_i * 77 + 1;
    int kills = 0;
    for (;; kills++) {
        make_plan(kills % 2 ? 4 : 1, "");
        pid_t pid = run_child();
        s = s * 1664525u + 1013904223u;
        usleep(20000 + (s >> 16) % 50000);
        bool last = kills >= 8;
        if (!last)
            kill(pid, SIGKILL);
        int status;
        waitpid(pid, &status, 0);
        if (WIFEXITED(status)) {
            ck_assert_int_eq(WEXITSTATUS(status), 0);
            break;
        }
    }
    ck_assert_int_gt(kills, 0);
    char whole[700];
    snprintf(whole, sizeof whole, "%s/whole", moe_test_dir());
    same_runs(whole, out_dir, 60);
}
END_TEST

static int log_steps(void) {
    return (int)count_lines(out_dir, "log.jsonl");
}

START_TEST(test_signals) {
    static const int signals[] = {SIGTERM, SIGINT, SIGUSR1};
    o.steps = 100000;
    o.checkpoint_every = 0;
    fake_sleep_us = 5000;
    for (int i = 0; i < 3; i++) {
        pid_t pid = run_child();
        usleep(300000);
        kill(pid, signals[i]);
        int status;
        waitpid(pid, &status, 0);
        ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        char *dir;
        int64_t step;
        OK(moe_checkpoint_find(out_dir, &dir, &step));
        ck_assert_int_gt(step, 0);
        ck_assert_int_eq(step, log_steps());
        free(dir);
    }
    /* A second one exits at once, in the middle of a step. */
    fake_sleep_us = 3000000;
    pid_t pid = run_child();
    usleep(500000);
    double start = moe_now();
    kill(pid, SIGTERM);
    usleep(50000);
    kill(pid, SIGTERM);
    int status;
    waitpid(pid, &status, 0);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 128 + SIGTERM);
    ck_assert(moe_now() - start < 2);
}
END_TEST

START_TEST(test_time_budget) {
    o.steps = 100000;
    o.max_seconds = 0.3;
    fake_sleep_us = 2000;
    OK(moe_train_run(plan, NULL, &o, &report));
    ck_assert(report.reason == MOE_STOP_TIME && report.has_eval && report.state.step > 0 &&
              report.state.step < 1000);
    ck_assert_int_eq(report.state.step, log_steps());
    ck_assert_ptr_nonnull(report.checkpoint);
}
END_TEST

START_TEST(test_not_finite) {
    fake_poison_steps = 9;
    OK(moe_train_run(plan, NULL, &o, &report)); /* nine in a row are borne */
    ck_assert(report.state.skipped == 9 && report.state.updates == 3 &&
              report.state.skipped_in_row == 0);
    json_t *log[20];
    size_t n = read_log(out_dir, log, 20);
    ck_assert_int_eq(n, 12);
    for (size_t i = 0; i < n; i++) {
        ck_assert(json_is_true(json_object_get(log[i], "skipped")) == (i < 9));
        ck_assert(json_is_null(json_object_get(log[i], "loss")) == (i < 9));
        json_decref(log[i]);
    }
    moe_train_report_free(&report);
    fake_poison_steps = 10;
    o.steps = 40;
    FAILS(moe_train_run(plan, NULL, &o, &report), MOE_E_INPUT, "10 steps in a row", "step-20",
          "--lr");
    char *dir;
    int64_t step;
    OK(moe_checkpoint_find(out_dir, &dir,
                           &step)); /* untouched by the bad steps: the same weights as at step 12 */
    ck_assert_int_eq(step, 20);
    json_t *a, *b;
    char first[800];
    snprintf(first, sizeof first, "%s/checkpoints/step-16", out_dir);
    OK(moe_checkpoint_verify(dir, &a));
    OK(moe_checkpoint_verify(first, &b));
    ck_assert(json_equal(json_object_get(a, "census"), json_object_get(b, "census")));
    json_decref(a);
    json_decref(b);
    free(dir);
}
END_TEST

/* Disk full for the checkpoints: training goes on to the end, says so, and the report tells the
 * exit status. */
START_TEST(test_disk_full) {
    struct rlimit old, now;
    o.steps = 8;
    OK(moe_train_run(plan, NULL, &o, &report));
    moe_train_report_free(&report);
    o.steps = 16;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    now = old;
    now.rlim_cur = 600; /* below any weights file; the log is longer by now too */
    setrlimit(RLIMIT_FSIZE, &now);
    MoeStatus st = moe_train_run(plan, NULL, &o, &report);
    setrlimit(RLIMIT_FSIZE, &old);
    if (st) { /* not even config.json could be written */
        ck_assert(strstr(moe_status_message(st), "config.json"));
        moe_status_free(st);
        now.rlim_cur = 1500;
        setrlimit(RLIMIT_FSIZE, &now);
        st = moe_train_run(plan, NULL, &o, &report);
        setrlimit(RLIMIT_FSIZE, &old);
    }
    OK(st);
    ck_assert(report.checkpoint_failed && report.state.step == 16 &&
              report.state.checkpoint_failures == 2);
    ck_assert(strstr(report.checkpoint, "step-8"));
    moe_train_report_free(&report);
    OK(moe_train_run(plan, NULL, &o, &report)); /* room again: from step 8 */
    ck_assert(report.first_step == 9 && report.state.step == 16 && !report.checkpoint_failed);
    ck_assert_int_eq(log_steps(), 16);
}
END_TEST

START_TEST(test_refusals) {
    o.out_dir = moe_test_file("a_file", "x", 1);
    FAILS(moe_train_run(plan, NULL, &o, &report), MOE_E_INPUT, "a_file", "another --out");
    OK(moe_dir_make(moe_test_path("other")));
    moe_test_file("other/letter.txt", "x", 1);
    set_out("other");
    FAILS(moe_train_run(plan, NULL, &o, &report), MOE_E_INPUT, "not a run directory",
          "config.json");
    moe_test_file("other/config.json", "{\"model_type\": \"mixtral\"}", 25);
    FAILS(moe_train_run(plan, NULL, &o, &report), MOE_E_INPUT, "not a run directory");
    set_out("run");
    OK(moe_train_run(plan, NULL, &o, &report));
    moe_train_report_free(&report);
    o.resume = MOE_RESUME_NEVER;
    FAILS(moe_train_run(plan, NULL, &o, &report), MOE_E_INPUT, "start anew", "--out");
    o.resume = MOE_RESUME_AUTO;
    make_plan(2, ", \"num_hidden_layers\": 3");
    FAILS(moe_train_run(plan, NULL, &o, &report), MOE_E_INPUT, "num_hidden_layers", "start anew");
    make_plan(2, "");
    int fd;
    OK(moe_run_lock(out_dir, &fd));
    FAILS(moe_train_run(plan, NULL, &o, &report), MOE_E_INPUT, "another moec is training");
    moe_run_unlock(fd);
    o.data_path = moe_test_file("short.txt", "short", 5);
    FAILS(moe_train_run(plan, NULL, &o, &report), MOE_E_INPUT, "short.txt", "too few");
    o.data_path = data_path;
    o.steps = 0;
    FAILS(moe_train_run(plan, NULL, &o, &report), MOE_E_MISUSE, "--steps");
    o.steps = 12;
    o.lr = NAN;
    FAILS(moe_train_run(plan, NULL, &o, &report), MOE_E_MISUSE, "--lr");
    o.lr = 0.01;
    o.resume = MOE_RESUME_DIR;
    o.resume_dir = moe_test_path("nowhere");
    set_out("new");
    FAILS(moe_train_run(plan, NULL, &o, &report), MOE_E_INPUT, "--resume", "nowhere");
}
END_TEST

/* Back to an older checkpoint of the same run: the newer one is put aside; into another run: both
 * go on. */
START_TEST(test_resume_dir) {
    char from[800];
    OK(moe_train_run(plan, NULL, &o, &report));
    moe_train_report_free(&report);
    snprintf(from, sizeof from, "%s/checkpoints/step-8", out_dir);
    o.resume = MOE_RESUME_DIR;
    o.resume_dir = from;
    char first[600];
    snprintf(first, sizeof first, "%s", out_dir);
    set_out("second");
    OK(moe_train_run(plan, NULL, &o, &report));
    ck_assert(report.first_step == 9 && report.state.step == 12 && log_steps() == 4);
    moe_train_report_free(&report);
    set_out("run");
    OK(moe_train_run(plan, NULL, &o, &report));
    ck_assert(report.first_step == 9 && log_steps() == 12);
    json_t *a, *b;
    OK(moe_checkpoint_verify(moe_test_path("run/checkpoints/step-12"), &a));
    OK(moe_checkpoint_verify(moe_test_path("second/checkpoints/step-12"), &b));
    ck_assert(json_equal(json_object_get(a, "census"), json_object_get(b, "census")));
    json_decref(a);
    json_decref(b);
    /* Export of a run needs no plan. */
    MoeExportOptions e = {0};
    OK(moe_export_checkpoint(first, moe_test_path("hf"), &e));
    o.resume = MOE_RESUME_AUTO;
    o.init_from = strdup(moe_test_path("hf"));
    set_out("third");
    moe_train_report_free(&report);
    o.lr = 0; /* weights in, unchanged */
    OK(moe_train_run(plan, NULL, &o, &report));
    json_t *c;
    OK(moe_checkpoint_verify(moe_test_path("run/checkpoints/step-12"), &a));
    OK(moe_checkpoint_verify(moe_test_path("third/checkpoints/step-12"), &c));
    for (size_t i = 0; i < 5; i++)
        ck_assert(json_equal(json_array_get(json_object_get(a, "census"), i),
                             json_array_get(json_object_get(c, "census"), i)));
    json_decref(a);
    json_decref(c);
}
END_TEST

START_TEST(test_schedule) {
    o.steps = 100;
    o.lr = 1;
    o.min_lr = 0.1;
    o.warmup = 10;
    ck_assert_double_eq(moe_train_lr(&o, 1), 0.1);
    ck_assert_double_eq(moe_train_lr(&o, 10), 1);
    ck_assert_double_eq_tol(moe_train_lr(&o, 55), 0.55, 1e-12);
    ck_assert_double_eq(moe_train_lr(&o, 100), 0.1);
    for (int s = 11; s <= 100; s++)
        ck_assert(moe_train_lr(&o, s) < moe_train_lr(&o, s - 1));
    o.warmup = 0;
    ck_assert(moe_train_lr(&o, 1) > 0.99);
    o.warmup = o.min_lr = -1;
    ck_assert_double_eq(moe_train_lr(&o, 5), 1);
    ck_assert_double_eq(moe_train_lr(&o, 200), 0.1);
}
END_TEST

START_TEST(test_keep_bytes) {
    static const struct {
        const char *text;
        bool csv;
        int64_t last, keep;
    } cases[] = {
        {"{\"step\": 1, \"a\": 2}\n{\"step\": 2, \"a\": 2}\n", false, 1, 20},
        {"{\"step\": 1, \"a\": 2}\n{\"step\": 2, \"a\": 2}\n", false, 2, 40},
        {"{\"step\": 1, \"a\": 2}\n{\"step\": 2, \"a\"", false, 2, 20},
        {"{\"step\": 1, \"a\": 2}\njunk\n{\"step\": 2, \"a\": 2}\n", false, 2, 20},
        {"", false, 5, 0},
        {"step,layer,rank,e0\n1,0,0,5\n1,0,1,5\n2,0,0,5\n", true, 1, 35},
        {"step,layer,rank,e0\n1,0,0,5\n", true, 0, 19},
        {"step,la", true, 9, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        ck_assert_int_eq(moe_log_keep_bytes(cases[i].text, (int64_t)strlen(cases[i].text),
                                            cases[i].csv, cases[i].last),
                         cases[i].keep);
}
END_TEST

static bool collect(void *ctx, const unsigned char *bytes, size_t n) {
    moe_str_append_n(ctx, (const char *)bytes, n);
    return ((MoeStr *)ctx)->len < 60;
}

START_TEST(test_sample) {
    MoeExec *x;
    MoeStr text = {0};
    MoeSampleOptions s;
    OK(moe_exec_create(plan, NULL, 1, &x));
    moe_sample_options_default(&s);
    s.prompt = "ab";
    s.prompt_bytes = 2;
    s.temperature = 0;
    s.n_tokens = 30; /* beyond the window of 16 */
    OK(moe_sample_run(plan, x, &s, collect, &text));
    ck_assert_str_eq(moe_str_c(&text), "cdefghijklmnopqrstuvwxyz{|}~\x7f\x80");
    moe_str_clear(&text);
    s.n_tokens = 1000;
    OK(moe_sample_run(plan, x, &s, collect, &text));
    ck_assert_int_eq(text.len, 60);
    moe_str_free(&text);
    moe_exec_destroy(x);
    /* The choice: frequencies follow the softmax; top-k and limit cut; ties to the lower id. */
    const float logits[5] = {0, 1, 1, -1, 5};
    int32_t id;
    int hits[5] = {0};
    for (int i = 0; i < 10000; i++) {
        OK(moe_sample_pick(logits, 5, 4, 1.0, 0, (i + 0.5) / 10000, &id));
        hits[id]++;
    }
    double sum = 1 + 2 * exp(1) + exp(-1);
    ck_assert(abs(hits[0] - (int)(10000 / sum)) <= 2 &&
              abs(hits[1] - (int)(10000 * exp(1) / sum)) <= 2 && hits[4] == 0);
    OK(moe_sample_pick(logits, 5, 4, 0, 0, 0.99, &id));
    ck_assert_int_eq(id, 1);
    OK(moe_sample_pick(logits, 5, 5, 1.0, 1, 0.999999, &id));
    ck_assert_int_eq(id, 4);
    const float bad[2] = {NAN, NAN};
    FAILS(moe_sample_pick(bad, 2, 2, 1, 0, 0.5, &id), MOE_E_INPUT, "not finite");
}
END_TEST

int main(void) {
    moe_log_quiet(true);
    Suite *s = suite_create("train");
    TCase *t = tcase_create("train");
    tcase_set_timeout(t, 120);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, test_run);
    tcase_add_test(t, test_ranks);
    tcase_add_test(t, test_ranks_errors);
    tcase_add_test(t, test_ranks_stop);
    tcase_add_loop_test(t, test_kill_and_resume, 0, 3);
    tcase_add_test(t, test_signals);
    tcase_add_test(t, test_time_budget);
    tcase_add_test(t, test_not_finite);
    tcase_add_test(t, test_disk_full);
    tcase_add_test(t, test_refusals);
    tcase_add_test(t, test_resume_dir);
    tcase_add_test(t, test_schedule);
    tcase_add_test(t, test_keep_bytes);
    tcase_add_test(t, test_sample);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
