/* runtime/emulate.h: emulated times against times worked out by hand, the same whatever threads do; measured compute;
 * cluster files; the conformance suite over emulated links. */
#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/rng.h"
#include "runtime/emulate.h"
#include "placement/links.h"
#include "tests/support/check_main.h"
#include "tests/support/comm_suite.h"
#include "tests/support/status_checks.h"

/* Inside a node 1 ms + 1 us a byte, between nodes 10 ms + 10 us a byte; a FLOP takes 1 ms. */
static const MoeCluster two_by_two = {
    .nodes = 2, .ranks_per_node = 2, .links = {{1e-3, 1e6}, {10e-3, 1e5}}, .flops = 1e3};
static const MoeCluster one_node = {
    .nodes = 1, .ranks_per_node = 3, .links = {{1e-3, 1e6}, {0, 0}}, .flops = 1e3};

enum { MOST = 4 };
#define NEAR(a, b) ck_assert_double_eq_tol(a, b, 1e-12)

static void open_emulated(const MoeCluster *cluster, MoeComm **c) {
    OK(moe_comm_threads_emulated(moe_cluster_ranks(cluster), cluster, c));
}

typedef struct {
    MoeComm *c;
    void (*run)(MoeComm *c, void *arg);
    void *arg;
} Rank;

static void *rank_main(void *arg) {
    Rank *r = arg;
    r->run(r->c, r->arg);
    return NULL;
}

/* run on a thread for each rank; then what each rank's clocks say. */
static void on_ranks(const MoeCluster *cluster, void (*run)(MoeComm *c, void *arg), void *arg,
                     MoeEmulateStats *out) {
    int n = moe_cluster_ranks(cluster);
    MoeComm *c[MOST];
    Rank ranks[MOST];
    pthread_t threads[MOST];
    open_emulated(cluster, c);
    for (int i = 0; i < n; i++) {
        ranks[i] = (Rank){c[i], run, arg};
        ck_assert_int_eq(pthread_create(&threads[i], NULL, rank_main, &ranks[i]), 0);
    }
    for (int i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < n; i++) {
        out[i] = moe_emulate_stats(c[i]);
        moe_comm_destroy(c[i]);
    }
}

static char data[1 << 16], place[MOST][1 << 16];

static MoeRequest *start(MoeComm *c, const int64_t *to, const int64_t *from) {
    MoeBlock sends[MOST], recvs[MOST];
    size_t n_sends = 0, n_recvs = 0;
    for (int q = 0; q < c->size; q++) {
        if (to && to[q])
            sends[n_sends++] = (MoeBlock){.peer = q, .base = data, .row_bytes = 1, .n = to[q]};
        if (from && from[q])
            recvs[n_recvs++] =
                (MoeBlock){.peer = q, .base = place[c->rank], .row_bytes = 1, .n = from[q]};
    }
    MoeRequest *r;
    OK(moe_comm_start(c, sends, n_sends, recvs, n_recvs, "x", &r));
    return r;
}

/* 1000 bytes from each to each: inside a node one transfer each way, [0, 1 ms) + 1 ms; between nodes two, [0, 10) and
 * [10, 20), + 10 ms. The receive buffers of this test overlap, which nobody looks at. */
static void all_to_all(MoeComm *c, void *arg) {
    (void)arg;
    int64_t bytes[MOST] = {1000, 1000, 1000, 1000};
    bytes[c->rank] = 1; /* to itself: no time */
    OK(moe_comm_wait(c, start(c, bytes, bytes)));
}

START_TEST(test_all_to_all) {
    MoeEmulateStats s[MOST];
    on_ranks(&two_by_two, all_to_all, NULL, s);
    for (int r = 0; r < MOST; r++) {
        NEAR(s[r].clock, 30e-3);
        NEAR(s[r].exposed, 30e-3);
        NEAR(s[r].communication, 30e-3);
        NEAR(s[r].late, 0);
        NEAR(s[r].compute, 0);
    }
}
END_TEST

/* Rank r computes r ms before it: inter transfers start at 1 (0-1 is intra), 2 and 3 ms. By (ready, distance, sender):
 *   intra: 0>1, 1>0 ready 1: [1,2) arrive 3;  2>3, 3>2 ready 3: [3,4) arrive 5
 *   inter, ready 2: 1>2 [2,12) arrive 22, then 0>2 (waits for 2's incoming link) [12,22) arrive 32,
 *                   2>0 [2,12) arrive 22, then 2>1 (2's outgoing link) [12,22) arrive 32
 *   inter, ready 3: 3>0 (0's incoming) [12,22) arrive 32; 1>3 (1's outgoing) [12,22) arrive 32; 3>1: 3's outgoing is free
 *                   in [3,12) only, 9 ms, and 1's incoming is busy [12,22): [22,32) arrive 42; 0>3: 0's outgoing is
 *                   free in [3,12), 9 ms: [22,32) arrive 42. */
static void skewed(MoeComm *c, void *arg) {
    moe_emulate_work(c, c->rank, 1e9);
    all_to_all(c, arg);
}

START_TEST(test_skewed) {
    static const double clock[MOST] = {42e-3, 42e-3, 32e-3, 42e-3};
    MoeEmulateStats s[MOST];
    on_ranks(&two_by_two, skewed, NULL, s);
    for (int r = 0; r < MOST; r++) {
        NEAR(s[r].clock, clock[r]);
        NEAR(s[r].compute, 1e-3 * r);
        NEAR(s[r].exposed, clock[r] - 1e-3 * r);
        NEAR(s[r].late, r < 3 ? 3e-3 - 1e-3 * r : 0);
    }
    NEAR(s[0].communication, 41e-3); /* from 1 ms on */
    NEAR(s[2].communication, 30e-3); /* from 2 ms on */
}
END_TEST

static const int64_t none[MOST], k1[MOST] = {0, 1000, 0, 0}, k0[MOST] = {1000, 0, 0, 0},
                                 k2[MOST] = {0, 0, 1000, 0};

/* 0 sends 1000 bytes to 1 under 4 ms of compute: [0,1) + 1. */
static void hidden(MoeComm *c, void *arg) {
    (void)arg;
    MoeRequest *r = start(c, c->rank == 0 ? k1 : none, c->rank == 1 ? k0 : none);
    moe_emulate_compute(c, c->rank == 0 ? 4e-3 : 1.5e-3);
    moe_comm_poll(c);
    OK(moe_comm_wait(c, r));
}

START_TEST(test_hidden) {
    MoeEmulateStats s[MOST];
    on_ranks(&one_node, hidden, NULL, s);
    NEAR(s[0].clock, 4e-3);
    NEAR(s[0].exposed, 0);
    NEAR(s[0].communication, 2e-3);
    NEAR(s[1].clock, 2e-3);
    NEAR(s[1].exposed, 0.5e-3);
    NEAR(s[1].communication, 2e-3);
    NEAR(s[2].clock, 1.5e-3);
    NEAR(s[2].communication, 0);
}
END_TEST

/* Ties go round the ring: 0 > 1 is before 0 > 2. 1000 bytes to 1: [0,1) + 1; 2000 to 2: [1,3) + 1. */
static void order(MoeComm *c, void *arg) {
    (void)arg;
    static const int64_t to[MOST] = {0, 1000, 2000, 0};
    int64_t from[MOST] = {to[c->rank], 0, 0, 0};
    OK(moe_comm_wait(c, start(c, c->rank == 0 ? to : none, from)));
}

START_TEST(test_order) {
    MoeEmulateStats s[MOST];
    on_ranks(&one_node, order, NULL, s);
    NEAR(s[0].clock, 4e-3);
    NEAR(s[1].clock, 2e-3);
    NEAR(s[2].clock, 4e-3);
}
END_TEST

/* Exchange a: 0 > 1, but 1 starts it at 10 ms. b: 0 > 2 fits before it. c: 0 > 1 again, after a on the link. */
static void gaps(MoeComm *c, void *arg) {
    (void)arg;
    if (c->rank == 1)
        moe_emulate_compute(c, 10e-3);
    MoeRequest *a = start(c, c->rank == 0 ? k1 : none, c->rank == 1 ? k0 : none);
    MoeRequest *b = start(c, c->rank == 0 ? k2 : none, c->rank == 2 ? k0 : none);
    MoeRequest *d = start(c, c->rank == 0 ? k1 : none, c->rank == 1 ? k0 : none);
    OK(moe_comm_wait(c, b));
    MoeEmulateStats s = moe_emulate_stats(c);
    NEAR(s.clock, c->rank == 1 ? 10e-3 : 2e-3);
    OK(moe_comm_wait(c, a));
    s = moe_emulate_stats(c);
    NEAR(s.clock, c->rank == 2 ? 2e-3 : 12e-3);
    NEAR(s.late, c->rank == 0 ? 8e-3 : 0);
    OK(moe_comm_wait(c, d));
}

START_TEST(test_gaps) {
    MoeEmulateStats s[MOST];
    on_ranks(&one_node, gaps, NULL, s);
    NEAR(s[0].clock, 13e-3);
    NEAR(s[1].clock, 13e-3);
    NEAR(s[2].clock, 2e-3);
    NEAR(s[0].communication, 5e-3); /* [0,2) and [10,13) */
}
END_TEST

/* Random traffic, some under way at once, waited for in an order of each rank's own. */
static void traffic(MoeComm *c, void *arg) {
    uint64_t run = *(uint64_t *)arg;
    for (uint64_t step = 0; step < 12; step++) {
        MoeRequest *r[5];
        for (uint64_t k = 0; k < 5; k++) {
            int64_t to[MOST], from[MOST];
            for (int q = 0; q < c->size; q++) {
                uint64_t x = step * 5 + k, n = (uint64_t)c->size, me = (uint64_t)c->rank;
                to[q] = (int64_t)moe_rng_below(1, x, me * n + (uint64_t)q, 3000) - 1000;
                from[q] = (int64_t)moe_rng_below(1, x, (uint64_t)q * n + me, 3000) - 1000;
                to[q] = to[q] < 0 ? 0 : to[q];
                from[q] = from[q] < 0 ? 0 : from[q];
            }
            usleep((useconds_t)moe_rng_below(run, 2, step * 64 + k * 8 + (uint64_t)c->rank, 300));
            r[k] = start(c, to, from);
            moe_emulate_work(c, moe_rng_uniform(3, step * 8 + k, (uint64_t)c->rank), 0);
        }
        for (int left = 5; left; left--) {
            size_t k =
                moe_rng_below(4, step * 8 + (uint64_t)c->rank, (uint64_t)left, (uint64_t)left);
            OK(moe_comm_wait(c, r[k]));
            r[k] = r[left - 1];
        }
        double seconds;
        OK(moe_emulate_step(c, &seconds, NULL));
        ck_assert_double_gt(seconds, 0);
    }
}

START_TEST(test_same_in_every_run) {
    MoeEmulateStats first[MOST], s[MOST];
    for (uint64_t run = 1; run <= 6; run++) {
        on_ranks(&two_by_two, traffic, &run, run == 1 ? first : s);
        if (run > 1)
            ck_assert_mem_eq(s, first, sizeof s);
    }
    for (int r = 0; r < MOST; r++) {
        ck_assert_double_gt(first[r].clock, 0.1);
        ck_assert_double_eq_tol(first[r].clock, first[r].compute + first[r].exposed, 1e-9);
        ck_assert_double_le(first[r].late, first[r].exposed);
    }
}
END_TEST

static void steps(MoeComm *c, void *arg) {
    (void)arg;
    MoeEmulateStats all[MOST];
    double seconds;
    for (int step = 0; step < 3; step++) {
        moe_emulate_compute(c, step == 0 ? 1e-3 * c->rank : 5e-3);
        OK(moe_emulate_step(c, &seconds, all));
        NEAR(seconds, step == 0 ? 2e-3 : 5e-3);
        for (int r = 0; r < c->size; r++) {
            NEAR(all[r].clock, 1e-3 * r + 5e-3 * step);
            NEAR(all[r].compute, step == 0 ? 1e-3 * r : 5e-3);
        }
    }
}

START_TEST(test_steps) {
    MoeEmulateStats s[MOST];
    on_ranks(&one_node, steps, NULL, s);
}
END_TEST

static void burn(double seconds) {
    double until = moe_thread_cpu() + seconds;
    while (moe_thread_cpu() < until)
        ;
}

static void burn_task(void *ctx, int64_t task, int thread) {
    (void)task, (void)thread;
    burn(*(double *)ctx);
}

/* CPU time counts, sleep and the calls' own work do not; a pool's threads count as side by side. */
static void measured(MoeComm *c, void *arg) {
    (void)arg;
    moe_comm_poll(c); /* from here on */
    burn(30e-3);
    moe_comm_poll(c);
    usleep(200000);
    MoeEmulateStats s = moe_emulate_stats(c);
    ck_assert_double_ge(s.compute, 29e-3);
    ck_assert_double_le(s.compute, 60e-3);
    ck_assert_double_eq(s.compute, s.clock);
    MoePool *pool;
    double each = 10e-3;
    OK(moe_pool_create(2, &pool));
    moe_emulate_pool(c, pool);
    moe_pool_run(pool, 8, burn_task, &each);
    moe_emulate_work(c, 1e12, 0); /* no rate is given */
    double spent = moe_emulate_stats(c).compute - s.compute;
    ck_assert_double_ge(spent, 39e-3);
    ck_assert_double_le(spent, 70e-3);
    moe_pool_run(pool, 1, burn_task, &each); /* not shared out: counts in full */
    moe_emulate_pool(c, NULL);
    moe_pool_destroy(pool);
    spent = moe_emulate_stats(c).compute - s.compute - spent;
    ck_assert_double_ge(spent, 9e-3);
    ck_assert_double_le(spent, 25e-3);
}

START_TEST(test_measured) {
    MoeCluster cluster = two_by_two;
    cluster.flops = 0;
    cluster.nodes = 1;
    MoeEmulateStats s[MOST];
    on_ranks(&cluster, measured, NULL, s);
}
END_TEST

/* A transfer of half a second takes that long; one that compute has hidden takes no more. */
static void in_real_time(MoeComm *c, void *arg) {
    (void)arg;
    double began = moe_now();
    moe_emulate_compute(c, 1); /* emulated compute takes no time */
    int64_t to[MOST] = {c->rank ? 49900 : 0, c->rank ? 0 : 49900};
    OK(moe_comm_wait(c, start(c, to, to)));
    ck_assert_double_ge(moe_now() - began, 0.5);
    MoeRequest *r = start(c, to, to);
    usleep(510000);
    double hid = moe_now();
    OK(moe_comm_wait(c, r));
    ck_assert_double_le(moe_now() - hid, 0.4);
    NEAR(moe_emulate_stats(c).clock, 2);
}

START_TEST(test_real_time) {
    MoeCluster cluster = two_by_two;
    cluster.real_time = true;
    cluster.links[MOE_LINK_INTRA].bandwidth = 1e5;
    cluster.nodes = 1;
    MoeEmulateStats s[MOST];
    on_ranks(&cluster, in_real_time, NULL, s);
}
END_TEST

START_TEST(test_not_emulated) {
    MoeComm *c;
    FAILS(moe_comm_threads_emulated(1, &two_by_two, &c), MOE_E_MISUSE, "4 ranks", "has 1");
    OK(moe_comm_self(&c));
    ck_assert(!moe_comm_emulated(c));
    moe_emulate_compute(c, 1);
    moe_emulate_work(c, 1, 1);
    moe_emulate_pool(c, NULL);
    FAILS(moe_comm_emulate(c, &two_by_two, &c), MOE_E_MISUSE, "4 ranks", "2 nodes of 2", "has 1");
    MoeCluster one = two_by_two;
    one.nodes = one.ranks_per_node = 1;
    OK(moe_comm_self(&c));
    OK(moe_comm_emulate(c, &one, &c));
    ck_assert(moe_comm_emulated(c));
    OK(moe_comm_barrier(c, "alone"));
    moe_comm_destroy(c);
}
END_TEST

START_TEST(test_suite) {
    MoeCluster cluster = two_by_two;
    cluster.flops = _i ? 1e9 : 0;
    size_t n_cases;
    const MoeCommCase *cases = moe_comm_cases(&n_cases);
    MoeComm *c[MOST];
    open_emulated(&cluster, c);
    for (size_t i = 0; i < n_cases; i++) {
        bool skip = cases[i].where == MOE_COMM_BY_PROCESS || (_i && strcmp(cases[i].name, "fuzz"));
        if (skip)
            continue;
        char *wrong = moe_comm_case_threads(&cases[i], c, MOST);
        ck_assert_msg(!wrong, "%s: %s", cases[i].name, wrong);
        if (!cases[i].fatal)
            continue;
        for (int r = 0; r < MOST; r++)
            moe_comm_destroy(c[r]);
        open_emulated(&cluster, c);
    }
    for (int r = 0; r < MOST; r++)
        moe_comm_destroy(c[r]);
}
END_TEST

START_TEST(test_timeline) {
    MoeTimeline a = {0}, b = {0};
    OK(moe_timeline_add(&a, 2, 4));
    OK(moe_timeline_add(&a, 6, 7));
    OK(moe_timeline_add(&b, 4, 5));
    NEAR(moe_timeline_free(&a, &b, 0, 2), 0);
    NEAR(moe_timeline_free(&a, &b, 0, 2.5), 7);
    NEAR(moe_timeline_free(&a, &b, 0.5, 1.5), 0.5);
    NEAR(moe_timeline_free(&a, &b, 1, 1.5), 7);
    NEAR(moe_timeline_free(&a, &b, 1, 0.5), 1);
    NEAR(moe_timeline_free(&a, &b, 3, 1), 5);
    NEAR(moe_timeline_free(&a, &b, 9, 100), 9);
    OK(moe_timeline_add(&a, 4, 6)); /* joins both */
    ck_assert_uint_eq(a.n, 1);
    OK(moe_timeline_add(&a, 9, 10));
    OK(moe_timeline_add(&a, 8, 12)); /* swallows it */
    ck_assert_uint_eq(a.n, 2);
    NEAR(moe_timeline_busy(&a), 9);
    moe_timeline_forget(&a, 7.5);
    ck_assert_uint_eq(a.n, 1);
    NEAR(moe_timeline_busy(&a), 9);
    OK(moe_timeline_add(&a, 20, 21));
    NEAR(moe_timeline_busy(&a), 10);
    moe_timeline_free_all(&a);
    moe_timeline_free_all(&b);
}
END_TEST

static MoeStatus parse(const char *text, MoeCluster *out) {
    return moe_cluster_parse(text, strlen(text), "c.json", out);
}

#define LINKS "\"intra\": {\"latency\": 1e-6, \"bandwidth\": 1e9}"
#define INTER ", \"inter\": {\"latency\": 0, \"bandwidth\": 100}"
#define HEAD  "{\"format_version\": 1, \"nodes\": 2, \"ranks_per_node\": 3, "

START_TEST(test_cluster) {
    MoeCluster c;
    OK(parse(HEAD LINKS INTER ", \"flops\": 2e12, \"memory_bandwidth\": 1e9, \"real_time\": true}",
             &c));
    ck_assert_int_eq(moe_cluster_ranks(&c), 6);
    ck_assert(c.real_time && moe_cluster_predicts(&c));
    ck_assert_int_eq(moe_cluster_link(&c, 2, 0), MOE_LINK_INTRA);
    ck_assert_int_eq(moe_cluster_link(&c, 2, 3), MOE_LINK_INTER);
    NEAR(c.links[MOE_LINK_INTRA].latency, 1e-6);
    NEAR(c.links[MOE_LINK_INTER].bandwidth, 100);
    NEAR(moe_cluster_seconds(&c, 4e12, 1e9), 2);
    NEAR(moe_cluster_seconds(&c, 1e12, 3e9), 3);
    OK(parse(HEAD LINKS INTER "}", &c));
    ck_assert(!moe_cluster_predicts(&c) && !c.real_time);
    OK(parse("{\"format_version\": 1, \"nodes\": 1, \"ranks_per_node\": 1}", &c)); /* no links */
    FAILS(parse(HEAD LINKS "}", &c), MOE_E_INPUT, "c.json", "inter");
    FAILS(parse(HEAD LINKS INTER ", \"flop\": 1}", &c), MOE_E_INPUT, "flop", "flops");
    FAILS(parse(HEAD LINKS INTER ", \"flops\": 0}", &c), MOE_E_INPUT, "flops", "above 0");
    FAILS(parse(HEAD "\"intra\": {\"latency\": -1, \"bandwidth\": 1}" INTER "}", &c), MOE_E_INPUT,
          "c.json: intra", "latency", "-1");
    FAILS(parse(HEAD "\"intra\": {\"latency\": 1, \"bandwidht\": 1}" INTER "}", &c), MOE_E_INPUT,
          "bandwidht", "bandwidth");
    FAILS(parse("{\"format_version\": 2}", &c), MOE_E_INPUT, "version 2");
    FAILS(parse("{\"format_version\": 1, \"nodes\": 0, \"ranks_per_node\": 1}", &c), MOE_E_INPUT,
          "nodes", "0");
    FAILS(parse("{\"format_version\": 1, \"nodes\": 4096, \"ranks_per_node\": 4096}", &c),
          MOE_E_INPUT, "4096");
    FAILS(moe_cluster_load("no/such/file.json", &c), MOE_E_IO, "no/such/file.json");
}
END_TEST

int main(void) {
    Suite *s = suite_create("emulate");
    TCase *c = tcase_create("emulate");
    tcase_set_timeout(c, 300);
    tcase_add_test(c, test_all_to_all);
    tcase_add_test(c, test_skewed);
    tcase_add_test(c, test_hidden);
    tcase_add_test(c, test_order);
    tcase_add_test(c, test_gaps);
    tcase_add_test(c, test_same_in_every_run);
    tcase_add_test(c, test_steps);
    tcase_add_test(c, test_measured);
    tcase_add_test(c, test_real_time);
    tcase_add_test(c, test_not_emulated);
    tcase_add_loop_test(c, test_suite, 0, 2);
    tcase_add_test(c, test_timeline);
    tcase_add_test(c, test_cluster);
    suite_add_tcase(s, c);
    return moe_check_main(s);
}
