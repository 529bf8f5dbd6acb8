/* The simulated NCCL through the table that the runtime uses: messages between a pair go in order, whatever their sizes; sizes that
 * differ, two ranks on one GPU, calls at the wrong time and a failing rank are errors; aborting ends what stands. */
#include <check.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/nccl.h"
#include "tests/support/check_main.h"
#include "tests/support/gpu.h"
#include "tests/support/status_checks.h"

enum { RANKS = 3, MESSAGES = 5, MOST = 300000, STANDS = -1 };
static const size_t sizes[MESSAGES] = {1, 65536, 65537, 12, MOST};

typedef struct {
    MoeNcclId id;
    int rank, n, device;
    const MoeNccl *nccl;
    const MoeCudaDriver *cu;
    MoeNcclComm comm;
    MoeCuContext context;
    MoeCuStream stream;
    int patience; /* looks at a stream that does not get on */
    int result;   /* of joining, or of the exchange; STANDS */
} Rank;

/* What the communicator ends up with. */
static int ready(const Rank *r) {
    int state = MOE_NCCL_IN_PROGRESS;
    for (int i = 0; i < 100000 && state == MOE_NCCL_IN_PROGRESS; i++) {
        ck_assert_int_eq(r->nccl->async_error(r->comm, &state), MOE_NCCL_SUCCESS);
        usleep(50);
    }
    return state;
}

static void join(Rank *r) {
    MoeCuDevice d;
    MoeNcclConfig config = {.size = sizeof config,
                            .magic = MOE_NCCL_CONFIG_MAGIC,
                            .version = MOE_NCCL_CONFIG_VERSION,
                            .cluster_size = MOE_NCCL_UNDEFINED,
                            .min_blocks = MOE_NCCL_UNDEFINED,
                            .max_blocks = MOE_NCCL_UNDEFINED,
                            .split_share = MOE_NCCL_UNDEFINED};
    OK(moe_cuda_driver(&r->cu));
    OK(moe_nccl(&r->nccl));
    OK(moe_cuda_device(r->device, &d));
    ck_assert(!r->cu->context_retain(&r->context, d) && !r->cu->context_set(r->context));
    ck_assert(!r->cu->stream_create(&r->stream, MOE_CU_STREAM_NON_BLOCKING));
    r->nccl->init_config(&r->comm, r->n, r->id, r->rank, &config);
    r->result = ready(r);
}

static unsigned char byte_of(int from, int to, int message, size_t i) {
    return (unsigned char)(from * 71 + to * 31 + message * 13 + (int)(i % 251));
}

/* A group with all messages to and from all others; more: one of rank 0's is longer. */
static void exchange(Rank *r, bool more) {
    static const size_t slot = MOST + 64;
    size_t all = slot * MESSAGES * (size_t)r->n;
    MoeCuPtr out, in;
    unsigned char *host = malloc(all);
    ck_assert(host && !r->cu->mem_alloc(&out, all) && !r->cu->mem_alloc(&in, all));
    for (int p = 0; p < r->n; p++)
        for (int k = 0; k < MESSAGES; k++)
            for (size_t i = 0; i < slot; i++)
                host[((size_t)p * MESSAGES + (size_t)k) * slot + i] = byte_of(r->rank, p, k, i);
    ck_assert(!r->cu->copy_in(out, host, all, r->stream));
    r->nccl->group_start();
    for (int p = 0; p < r->n; p++)
        for (int k = 0; k < MESSAGES && p != r->rank; k++) {
            MoeCuPtr at = ((MoeCuPtr)p * MESSAGES + (MoeCuPtr)k) * slot;
            size_t n = sizes[k] + (more && r->rank == 0 && k == 3);
            ck_assert(!r->nccl->send((void *)(uintptr_t)(out + at), n, MOE_NCCL_INT8, p, r->comm,
                                     r->stream));
            ck_assert(!r->nccl->recv((void *)(uintptr_t)(in + at), sizes[k], MOE_NCCL_INT8, p,
                                     r->comm, r->stream));
        }
    ck_assert_int_eq(r->nccl->group_end(), MOE_NCCL_IN_PROGRESS);
    r->result = ready(r);
    for (int i = 0; r->cu->stream_query(r->stream) == MOE_CU_NOT_READY; i++) {
        r->result = i < r->patience ? ready(r) : STANDS;
        if (r->result != MOE_NCCL_SUCCESS)
            break;
        usleep(50);
    }
    if (r->result == MOE_NCCL_SUCCESS) {
        ck_assert(!r->cu->copy_out(host, in, all, r->stream) &&
                  !r->cu->stream_synchronize(r->stream));
        for (int p = 0; p < r->n; p++)
            for (int k = 0; k < MESSAGES && p != r->rank; k++)
                for (size_t i = 0; i < sizes[k]; i++)
                    if (host[((size_t)p * MESSAGES + (size_t)k) * slot + i] !=
                        byte_of(p, r->rank, k, i))
                        ck_abort_msg("rank %d: byte %zu of message %d from %d", r->rank, i, k, p);
        r->nccl->finalize(r->comm);
        ck_assert_int_eq(ready(r), MOE_NCCL_SUCCESS);
        ck_assert_int_eq(r->nccl->destroy(r->comm), MOE_NCCL_SUCCESS);
    } else {
        ck_assert_int_eq(r->nccl->abort(r->comm), MOE_NCCL_SUCCESS);
        ck_assert(!r->cu->stream_synchronize(r->stream)); /* what stood has ended */
    }
    free(host);
}

static void *run_alike(void *ctx) {
    join(ctx);
    ck_assert_int_eq(((Rank *)ctx)->result, MOE_NCCL_SUCCESS);
    exchange(ctx, false);
    return NULL;
}

static void *run_longer(void *ctx) {
    join(ctx);
    exchange(ctx, true);
    return NULL;
}

static void *run_join(void *ctx) {
    join(ctx);
    return NULL;
}

/* As n ranks that are threads; one_gpu: all on device 0. */
static void as_ranks(int n, bool one_gpu, int patience, void *(*run)(void *), Rank *ranks) {
    pthread_t threads[RANKS];
    const MoeNccl *nccl;
    MoeNcclId id;
    setenv("MOE_SIM_QUIET", "1", 1);
    if (!moe_test_simulate("80,80,80"))
        ck_abort_msg("no simulator");
    OK(moe_nccl(&nccl));
    ck_assert_int_eq(nccl->get_id(&id), MOE_NCCL_SUCCESS);
    for (int i = 0; i < n; i++) {
        ranks[i] =
            (Rank){.id = id, .rank = i, .n = n, .device = one_gpu ? 0 : i, .patience = patience};
        ck_assert(!pthread_create(&threads[i], NULL, run, &ranks[i]));
    }
    for (int i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
}

START_TEST(test_order) {
    Rank ranks[RANKS];
    as_ranks(RANKS, false, 200000, run_alike, ranks);
    for (int i = 0; i < RANKS; i++)
        ck_assert_int_eq(ranks[i].result, MOE_NCCL_SUCCESS);
}
END_TEST

START_TEST(test_sizes_that_differ) {
    Rank ranks[RANKS];
    as_ranks(2, false, 200000, run_longer, ranks);
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(ranks[i].result, MOE_NCCL_INVALID_USAGE);
}
END_TEST

START_TEST(test_one_gpu) {
    Rank ranks[RANKS];
    as_ranks(2, true, 0, run_join, ranks);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(ranks[i].result, MOE_NCCL_INVALID_USAGE);
        FAILS(moe_nccl_status(ranks[i].result, ranks[i].comm, "joining"), MOE_E_IO, "joining",
              "invalid usage", "Duplicate GPU");
    }
}
END_TEST

/* Between a group and the word that it is in its stream nothing else is asked of a communicator. */
static void *run_early(void *ctx) {
    Rank *r = ctx;
    MoeCuPtr at;
    join(r);
    ck_assert(!r->cu->mem_alloc(&at, 64));
    for (int i = 0; i < 2; i++) {
        r->nccl->group_start();
        r->result =
            r->nccl->send((void *)(uintptr_t)at, 8, MOE_NCCL_INT8, 1 - r->rank, r->comm, r->stream);
        r->nccl->group_end();
    }
    return NULL;
}

START_TEST(test_early) {
    Rank ranks[RANKS];
    as_ranks(2, false, 0, run_early, ranks);
    ck_assert_int_eq(ranks[0].result, MOE_NCCL_INVALID_USAGE);
}
END_TEST

START_TEST(test_faults) {
    Rank ranks[RANKS];
    setenv("MOE_SIM_NCCL_FAULT", "init:0", 1);
    as_ranks(1, false, 0, run_join, ranks);
    ck_assert_int_eq(ranks[0].result, MOE_NCCL_INTERNAL_ERROR);
    setenv("MOE_SIM_NCCL_FAULT", "group:1", 1);
    as_ranks(2, false, 1000, run_alike,
             ranks); /* one group fails, the other has nobody to talk to */
    int failed = ranks[0].result == MOE_NCCL_INTERNAL_ERROR ? 0 : 1;
    ck_assert_int_eq(ranks[failed].result, MOE_NCCL_INTERNAL_ERROR);
    ck_assert_int_eq(ranks[1 - failed].result, STANDS);
}
END_TEST

int main(void) {
    Suite *s = suite_create("sim_nccl");
    TCase *t = tcase_create("sim_nccl");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, test_order);
    tcase_add_test(t, test_sizes_that_differ);
    tcase_add_test(t, test_one_gpu);
    tcase_add_test(t, test_early);
    tcase_add_test(t, test_faults);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
