/* base/pool.h: every task runs exactly once, on a thread in range, for many launches and thread
 * counts. */
#include <check.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cores.h"
#include "base/pool.h"
#include "tests/support/check_main.h"
#include "tests/support/files.h"

enum { MAX_TASKS = 5000 };

typedef struct {
    atomic_int runs[MAX_TASKS];
    atomic_int bad_thread;
    int n_threads;
    atomic_int
        busy[64]; /* a thread number is never in use twice at a time: scratch depends on it */
    unsigned sleep_us;
} Job;

static void count_task(void *ctx, int64_t task, int thread) {
    Job *j = ctx;
    if (thread < 0 || thread >= j->n_threads || atomic_fetch_add(&j->busy[thread], 1) != 0)
        atomic_fetch_add(&j->bad_thread, 1);
    atomic_fetch_add(&j->runs[task], 1);
    if (j->sleep_us)
        usleep(j->sleep_us);
    atomic_fetch_sub(&j->busy[thread], 1);
}

static void check_launches(MoePool *p, Job *j, int64_t n_tasks, int launches) {
    memset(j->runs, 0, sizeof j->runs);
    for (int i = 0; i < launches; i++)
        moe_pool_run(p, n_tasks, count_task, j);
    for (int64_t t = 0; t < MAX_TASKS; t++)
        ck_assert_int_eq(j->runs[t], t < n_tasks ? launches : 0);
    ck_assert_int_eq(j->bad_thread, 0);
}

START_TEST(test_every_task_once) {
    static const int threads[] = {1, 2, 3, 4, 16, 61};
    static const int64_t tasks[] = {0, 1, 2, 3, 17, 1000, MAX_TASKS};
    static Job job;
    for (size_t t = 0; t < sizeof threads / sizeof *threads; t++) {
        MoePool *p;
        ck_assert_ptr_null(moe_pool_create(threads[t], &p));
        ck_assert_int_eq(moe_pool_threads(p), threads[t]);
        memset(&job, 0, sizeof job);
        job.n_threads = threads[t];
        for (size_t k = 0; k < sizeof tasks / sizeof *tasks; k++)
            check_launches(p, &job, tasks[k], tasks[k] > 100 ? 5 : 500);
        moe_pool_destroy(p);
    }
    moe_pool_destroy(NULL);
}
END_TEST

/* Launches of changing size and context back to back: a thread that comes late must not take a task
 * of the wrong launch, nor run a right one with the context or the count of another. */
START_TEST(test_changing_launches) {
    static Job jobs[2];
    static int expected[2][MAX_TASKS];
    MoePool *p;
    int n_threads = _i ? 4 : 2; /* 2: spinning wherever there are two cores */
    ck_assert_ptr_null(moe_pool_create(n_threads, &p));
    jobs[0].n_threads = jobs[1].n_threads = n_threads;
    for (int i = 0; i < 300000; i++) {
        int n = 2 + (int)((unsigned)i * 2654435761u >> 29);
        moe_pool_run(p, n, count_task, &jobs[i % 2]);
        for (int t = 0; t < n; t++)
            expected[i % 2][t]++;
    }
    for (int j = 0; j < 2; j++) {
        for (int t = 0; t < MAX_TASKS; t++)
            ck_assert_int_eq(jobs[j].runs[t], expected[j][t]);
        ck_assert_int_eq(jobs[j].bad_thread, 0);
    }
    moe_pool_destroy(p);
}
END_TEST

/* Sleeping threads are woken, and the caller sleeps too while others finish. */
START_TEST(test_sleep_and_wake) {
    static Job job;
    MoePool *p;
    ck_assert_ptr_null(moe_pool_create(3, &p));
    job.n_threads = 3;
    for (int i = 0; i < 30; i++) {
        usleep(2000); /* long after the spin: all asleep */
        job.sleep_us = i % 2 ? 1500 : 0;
        moe_pool_run(p, 2 + i % 5, count_task, &job);
    }
    for (int t = 0; t < 2; t++)
        ck_assert_int_eq(job.runs[t], 30);
    ck_assert_int_eq(job.bad_thread, 0);
    usleep(2000);
    moe_pool_destroy(p); /* while asleep */
}
END_TEST

static void meet(void *ctx, int64_t task, int thread) {
    (void)task, (void)thread;
    atomic_int *arrived = ctx;
    atomic_fetch_add(arrived, 1);
    while (*arrived < 3) /* ends only if three tasks are under way at once */
        usleep(100);
}

START_TEST(test_parallel) {
    MoePool *p;
    ck_assert_ptr_null(moe_pool_create(3, &p));
    for (int i = 0; i < 20; i++) {
        atomic_int arrived = 0;
        moe_pool_run(p, 3, meet, &arrived);
        ck_assert_int_eq(arrived, 3);
    }
    moe_pool_destroy(p);
}
END_TEST

static MoePool *nested;

static void run_nested(void *ctx, int64_t task, int thread) {
    (void)task, (void)thread;
    moe_pool_run(nested, 2, meet, ctx);
}

START_TEST(test_nested_is_a_bug) {
    ck_assert_ptr_null(moe_pool_create(1, &nested));
    moe_pool_run(nested, 1, run_nested, NULL);
}
END_TEST

START_TEST(test_limits) {
    MoePool *p;
    const char *wrong =
        moe_test_error(moe_pool_create(1 << 20, &p), MOE_E_INPUT, "1048576 threads", NULL);
    ck_assert_msg(!wrong, "%s", wrong);
    ck_assert_int_ge(moe_cpu_count(), 1);
    ck_assert_int_le(moe_cpu_count(), (int)sysconf(_SC_NPROCESSORS_CONF));
    double before = moe_now();
    usleep(2000);
    ck_assert_double_ge(moe_now() - before, 0.002);
}
END_TEST

/* Processes on hosts: threads, cores usable, first core and number of cores in the mask. */
static MoeCores process(uint64_t host, int threads, int usable, int first, int cores) {
    MoeCores c = {.host = host, .threads = threads, .usable = usable};
    for (int i = first; i < first + cores; i++)
        c.mask[i / 64] |= 1ull << (i % 64);
    return c;
}

START_TEST(test_cores) {
    MoeCores mine = moe_cores_of_process(3), again = moe_cores_of_process(3);
    ck_assert(mine.host == again.host && mine.usable == moe_cpu_count() && mine.threads == 3);
    ck_assert_int_eq(moe_cores_busy(&mine, 1), moe_cpu_count() < 3 ? moe_cpu_count() : 3);
    MoeCores shared[] = {process(1, 1, 2, 0, 2), process(1, 1, 2, 0, 2), process(1, 1, 2, 0, 2),
                         process(1, 1, 2, 0, 2)};
    ck_assert_int_eq(moe_cores_busy(shared, 1), 1);
    ck_assert_int_eq(moe_cores_busy(shared, 2), 2);
    ck_assert_int_eq(moe_cores_busy(shared, 4), 2); /* four ranks on two cores */
    MoeCores bound[] = {process(1, 1, 1, 0, 1), process(1, 1, 1, 1, 1), process(1, 1, 1, 1, 1)};
    ck_assert_int_eq(moe_cores_busy(bound, 3), 2); /* the third shares the second's core */
    MoeCores hosts[] = {process(1, 8, 8, 60, 8), process(2, 8, 8, 60, 8), process(1, 2, 8, 60, 8)};
    ck_assert_int_eq(moe_cores_busy(hosts, 3), 16);
    MoeCores quota[] = {process(1, 4, 4, 0, 64), process(1, 4, 4, 0, 64)};
    ck_assert_int_eq(moe_cores_busy(quota, 2), 4);
    MoeCores unknown[] = {process(0, 4, 2, 0, 2), process(0, 4, 2, 0, 2), process(3, 4, 9, 0, 0)};
    ck_assert_int_eq(moe_cores_busy(unknown, 3), 8);
    ck_assert_int_eq(moe_cores_busy(unknown, 0), 1);
}
END_TEST

int main(void) {
    Suite *s = suite_create("pool");
    TCase *c = tcase_create("pool");
    tcase_set_timeout(c, 120);
    tcase_add_test(c, test_every_task_once);
    tcase_add_loop_test(c, test_changing_launches, 0, 2);
    tcase_add_test(c, test_sleep_and_wake);
    tcase_add_test(c, test_parallel);
    tcase_add_test_raise_signal(c, test_nested_is_a_bug, SIGABRT);
    tcase_add_test(c, test_limits);
    tcase_add_test(c, test_cores);
    suite_add_tcase(s, c);
    return moe_check_main(s);
}
