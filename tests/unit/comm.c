/* runtime/comm.h: the conformance suite over self and over ranks as threads, and what is the threads' own. */
#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "runtime/comm_stream.h"
#include "tests/support/check_main.h"
#include "tests/support/comm_suite.h"
#include "tests/support/status_checks.h"

static const int rank_counts[] = {1, 2, 3, 4, 8};
enum { N_COUNTS = sizeof rank_counts / sizeof *rank_counts, MOST = 8 };

static void destroy_all(MoeComm **comms, int n) {
    for (int i = 0; i < n; i++)
        moe_comm_destroy(comms[i]);
}

static void run_case(const MoeCommCase *k, MoeComm *const *comms, int n) {
    char *wrong = moe_comm_case_threads(k, comms, n);
    ck_assert_msg(!wrong, "%s with %d ranks of %s:\n%s", k->name, n, comms[0]->ops->name, wrong);
}

/* Cases that leave the communicator usable, one after another on the same one. */
static void run_lasting(MoeComm *const *comms, int n) {
    size_t n_cases;
    const MoeCommCase *cases = moe_comm_cases(&n_cases);
    for (size_t i = 0; i < n_cases; i++)
        if (!cases[i].fatal && cases[i].where != MOE_COMM_BY_PROCESS && cases[i].min_ranks <= n)
            run_case(&cases[i], comms, n);
}

START_TEST(test_threads) {
    int n = rank_counts[_i];
    MoeComm *comms[MOST];
    OK(moe_comm_threads(n, comms));
    for (int i = 0; i < n; i++) {
        ck_assert_int_eq(comms[i]->rank, i);
        ck_assert_int_eq(comms[i]->size, n);
        ck_assert_double_eq(comms[i]->silence_limit, 15);
    }
    run_lasting(comms, n);
    destroy_all(comms, n);
}
END_TEST

START_TEST(test_threads_faults) {
    int n = rank_counts[_i];
    size_t n_cases;
    const MoeCommCase *cases = moe_comm_cases(&n_cases);
    for (size_t i = 0; i < n_cases; i++) {
        if (!cases[i].fatal || cases[i].where == MOE_COMM_BY_PROCESS || cases[i].min_ranks > n)
            continue;
        MoeComm *comms[MOST];
        OK(moe_comm_threads(n, comms));
        run_case(&cases[i], comms, n);
        destroy_all(comms, n);
    }
}
END_TEST

START_TEST(test_self) {
    size_t n_cases;
    const MoeCommCase *cases = moe_comm_cases(&n_cases);
    MoeComm *c;
    OK(moe_comm_self(&c));
    ck_assert_str_eq(c->ops->name, "self");
    run_lasting(&c, 1);
    moe_comm_destroy(c);
    for (size_t i = 0; i < n_cases; i++)
        if (cases[i].fatal && cases[i].min_ranks == 1) {
            OK(moe_comm_self(&c));
            run_case(&cases[i], &c, 1);
            moe_comm_destroy(c);
        }
    moe_comm_destroy(NULL);
}
END_TEST

START_TEST(test_self_mismatch) {
    MoeComm *c;
    OK(moe_comm_self(&c));
    char data[8] = {0};
    MoeBlock send = {.peer = 0, .base = data, .row_bytes = 1, .n = 8};
    FAILS(moe_comm_exchange(c, &send, 1, NULL, 0, "odd"), MOE_E_INTERNAL, "\"odd\"", "8 bytes");
    FAILS(moe_comm_barrier(c, "next"), MOE_E_INTERNAL, "\"odd\"");
    moe_comm_destroy(c);
}
END_TEST

/* One side lists nothing, and may be through long before the other comes: said on both all the same. The
 * ranks of this and the next tests take turns in one thread: nothing in them waits. */
START_TEST(test_one_sided) {
    char data[8] = {0};
    MoeBlock block = {.peer = 1 - _i % 2, .base = data, .row_bytes = 1, .n = 8};
    bool sends = _i < 2;
    MoeComm *c[2];
    OK(moe_comm_threads(2, c));
    MoeComm *lists = c[_i % 2], *none = c[1 - _i % 2];
    moe_comm_phase(none, 4, "update");
    OK(moe_comm_exchange(none, NULL, 0, NULL, 0, "nothing at all"));
    MoeStatus st = moe_comm_exchange(lists, &block, sends, &block, !sends, "something");
    FAILS(st, MOE_E_INTERNAL, "something", "step 4, update");
    FAILS(moe_comm_barrier(none, "later"), MOE_E_INTERNAL, "nothing at all", "8");
    destroy_all(c, 2);
}
END_TEST

/* A third rank learns of it as of a peer's failure. */
START_TEST(test_mismatch_elsewhere) {
    char data[8] = {0};
    MoeBlock block = {.peer = 1, .base = data, .row_bytes = 1, .n = 8};
    MoeComm *c[3];
    MoeRequest *r;
    OK(moe_comm_threads(3, c));
    OK(moe_comm_start(c[0], &block, 1, NULL, 0, "a", &r));
    FAILS(moe_comm_exchange(c[1], NULL, 0, NULL, 0, "b"), MOE_E_INTERNAL, "\"a\"", "\"b\"");
    FAILS(moe_comm_exchange(c[2], NULL, 0, NULL, 0, "c"), MOE_E_PEER, "\"a\"", "rank 0");
    FAILS(moe_comm_wait(c[0], r), MOE_E_INTERNAL, "\"a\"", "rank 1");
    destroy_all(c, 3);
}
END_TEST

/* A rank that is gone ends a wait for it at once, and so does one that goes in the middle. */
START_TEST(test_left) {
    char data[8] = {0};
    MoeBlock from0 = {.peer = 0, .base = data, .row_bytes = 1, .n = 8}, to1 = from0;
    to1.peer = 1;
    MoeComm *c[2];
    MoeRequest *r;
    OK(moe_comm_threads(2, c));
    if (_i) /* with an exchange under way */
        OK(moe_comm_start(c[0], NULL, 0, &to1, 1, "half", &r));
    moe_comm_destroy(c[0]);
    FAILS(moe_comm_exchange(c[1], NULL, 0, &from0, 1, "wants"), MOE_E_PEER, "rank 0", "has left");
    moe_comm_destroy(c[1]);
}
END_TEST

/* poll takes what has come, so that a sender need not wait for its peer's wait. */
START_TEST(test_poll_takes) {
    char out[64], in[64] = {0};
    memset(out, 5, sizeof out);
    MoeBlock send = {.peer = 1, .base = out, .row_bytes = 64, .n = 1};
    MoeBlock recv = {.peer = 0, .base = in, .row_bytes = 8, .n = 8};
    MoeComm *c[2];
    MoeRequest *s, *r;
    OK(moe_comm_threads(2, c));
    if (_i) {
        OK(moe_comm_start(c[0], &send, 1, NULL, 0, "to", &s));
        OK(moe_comm_start(c[1], NULL, 0, &recv, 1, "from", &r));
    } else {
        OK(moe_comm_start(c[1], NULL, 0, &recv, 1, "from", &r));
        OK(moe_comm_start(c[0], &send, 1, NULL, 0, "to", &s));
    }
    moe_comm_poll(c[1]);
    OK(moe_comm_wait(c[0], s)); /* would wait for ever */
    ck_assert_mem_eq(in, out, sizeof in);
    OK(moe_comm_wait(c[1], r));
    destroy_all(c, 2);
}
END_TEST

/* Rank 0 waits for exchange 0 while rank 1 waits for exchange 1 first, which rank 0 has not started. */
static void *wait_other_order(void *arg) {
    MoeComm *c = arg;
    char out[2] = {1, 2}, in[2] = {0};
    MoeRequest *r[2];
    for (int i = 0; i < 2; i++) {
        MoeBlock send = {.peer = 1 - c->rank, .base = out + i, .row_bytes = 1, .n = 1};
        MoeBlock recv = {.peer = 1 - c->rank, .base = in + i, .row_bytes = 1, .n = 1};
        OK(moe_comm_start(c, &send, 1, &recv, 1, "x", &r[i]));
        if (c->rank == 0)
            OK(moe_comm_wait(c, r[i]));
    }
    for (int i = 1; c->rank == 1 && i >= 0; i--)
        OK(moe_comm_wait(c, r[i]));
    ck_assert_mem_eq(in, out, 2);
    return NULL;
}

START_TEST(test_wait_in_other_order) {
    MoeComm *c[2];
    pthread_t t;
    OK(moe_comm_threads(2, c));
    for (int i = 0; i < 200; i++) {
        ck_assert_int_eq(pthread_create(&t, NULL, wait_other_order, c[1]), 0);
        wait_other_order(c[0]);
        pthread_join(t, NULL);
    }
    destroy_all(c, 2);
}
END_TEST

/* Rank 2 gives up while rank 1 still copies, row by row, what rank 0 sends: rank 0 gets its buffer back only when nobody
 * reads it any more. It unmaps it at once. */
enum { N_ROWS = 1 << 23 };

static void *give_up_amid_copy(void *arg) {
    MoeComm *c = arg;
    void *rows, *index;
    OK(moe_alloc_big(N_ROWS, "rows", &rows));
    OK(moe_alloc_big(N_ROWS * sizeof(int32_t), "index", &index));
    for (int32_t i = 0; i < N_ROWS; i++)
        ((int32_t *)index)[i] = N_ROWS - 1 - i;
    MoeBlock b = {.peer = 1 - c->rank, .base = rows, .row_bytes = 1, .n = N_ROWS, .index = index};
    OK(moe_comm_barrier(c, "go"));
    if (c->rank == 2) {
        usleep(20000);
        moe_comm_abort(c, "enough");
    } else {
        MoeStatus st = moe_comm_exchange(c, &b, c->rank == 0, &b, c->rank == 1, "rows");
        ck_assert(!st || moe_status_code(st) == MOE_E_PEER); /* done, on a fast machine */
        moe_status_free(st);
    }
    moe_free_big(rows, N_ROWS);
    moe_free_big(index, N_ROWS * sizeof(int32_t));
    return NULL;
}

START_TEST(test_buffers_come_back_unused) {
    MoeComm *c[3];
    pthread_t t[3];
    for (int k = 0; k < 5; k++) {
        OK(moe_comm_threads(3, c));
        for (int i = 0; i < 3; i++)
            ck_assert_int_eq(pthread_create(&t[i], NULL, give_up_amid_copy, c[i]), 0);
        for (int i = 0; i < 3; i++)
            pthread_join(t[i], NULL);
        destroy_all(c, 3);
    }
}
END_TEST

/* Runs of adjacent rows go as one; `most` cuts them. */
START_TEST(test_stream) {
    char data[64];
    int32_t index[] = {3, 4, 5, 0, 9};
    MoeBlock blocks[] = {{0, data, 4, 5, index}, {1, data, 1, 9, NULL}, {0, data, 8, 2, NULL}};
    char *at;
    ck_assert_int_eq(moe_blocks_bytes(blocks, 3, 0), 36);
    ck_assert_int_eq(moe_blocks_bytes(blocks, 3, 1), 9);
    ck_assert_int_eq(moe_blocks_bytes(blocks, 3, 2), 0);
    static const struct {
        int64_t most, want, offset;
    } steps[] = {{5, 5, 12},   {100, 7, 17}, {100, 4, 0},  {3, 3, 36},
                 {100, 1, 39}, {10, 10, 0},  {100, 6, 10}, {100, 0, 0}};
    MoeStream s = moe_stream(blocks, 3, 0);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        ck_assert_int_eq(moe_stream_next(&s, steps[i].most, &at), steps[i].want);
        if (steps[i].want)
            ck_assert_int_eq(at - data, steps[i].offset);
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("comm");
    TCase *c = tcase_create("comm"), *four = tcase_create("four"); /* four: alone under the thread sanitizer */
    tcase_set_timeout(c, 300);
    tcase_set_timeout(four, 300);
    for (int i = 0; i < N_COUNTS; i++) {
        TCase *of = rank_counts[i] == 4 ? four : c;
        tcase_add_loop_test(of, test_threads, i, i + 1);
        tcase_add_loop_test(of, test_threads_faults, i, i + 1);
    }
    tcase_add_test(c, test_self);
    tcase_add_test(c, test_self_mismatch);
    tcase_add_loop_test(c, test_one_sided, 0, 4);
    tcase_add_test(c, test_mismatch_elsewhere);
    tcase_add_loop_test(c, test_left, 0, 2);
    tcase_add_loop_test(c, test_poll_takes, 0, 2);
    tcase_add_test(c, test_wait_in_other_order);
    tcase_add_test(c, test_buffers_come_back_unused);
    tcase_add_test(c, test_stream);
    suite_add_tcase(s, c);
    suite_add_tcase(s, four);
    return moe_check_main(s);
}
