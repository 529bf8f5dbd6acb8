/* What exchanges between peers rely on (docs/GPU.md), on the simulated driver: streams that wait for words of other ranks' streams, each with a
 * host thread of its own; the same in graphs; memory of another device, when it is allowed and when it is not. */
#include <pthread.h>
#include <stdlib.h>
#include "tests/support/check_main.h"
#include "tests/support/gpu_kernel.h"
#include "tests/support/status_checks.h"

#define GOOD(call) ck_assert_int_eq((call), MOE_CU_SUCCESS)
enum { TURNS = 50 };

static const MoeCudaDriver *cu;

/* One of two ranks: `words` are its own, the other one writes them. */
typedef struct {
    int device;
    MoeCuContext context;
    MoeCuStream stream;
    MoeCuPtr words, other; /* ready, done */
    MoeCuGraphExec graph;
    MoeCuResult result;
} Rank;

static MoeCuStreamOp op(int operation, MoeCuPtr at, uint32_t value) {
    MoeCuStreamOp o = {0};
    o.on.operation = operation;
    o.on.address = at;
    o.on.value = value;
    return o;
}

/* Says 1 in the other's word, waits for the own one, puts it back. */
static MoeCuResult say(Rank *r, int word) {
    MoeCuPtr at = (MoeCuPtr)word * 4;
    MoeCuStreamOp ops[] = {op(MOE_CU_OP_WRITE_VALUE_32, r->other + at, 1),
                           op(MOE_CU_OP_WAIT_VALUE_32, r->words + at, 1),
                           op(MOE_CU_OP_WRITE_VALUE_32, r->words + at, 0)};
    return cu->stream_ops(r->stream, 3, ops, 0);
}

static void make(Rank *r, int device) {
    MoeCuDevice d;
    int32_t zeros[2] = {0};
    *r = (Rank){.device = device};
    GOOD(cu->device_get(&d, device));
    GOOD(cu->context_retain(&r->context, d));
    GOOD(cu->context_set(r->context));
    GOOD(cu->stream_create(&r->stream, MOE_CU_STREAM_NON_BLOCKING));
    GOOD(cu->mem_alloc(&r->words, sizeof zeros));
    GOOD(cu->copy_in(r->words, zeros, sizeof zeros, r->stream));
    GOOD(cu->stream_synchronize(r->stream));
}

/* Turns of "ready" and "done", by themselves or as a graph. */
static void *turns(void *ctx) {
    Rank *r = ctx;
    MoeCuResult bad = cu->context_set(r->context);
    for (int i = 0; i < TURNS && !bad; i++) {
        bad = r->graph ? cu->graph_launch(r->graph, r->stream) : say(r, 0);
        if (!bad && !r->graph)
            bad = say(r, 1);
    }
    r->result = bad ? bad : cu->stream_synchronize(r->stream);
    return NULL;
}

static void run_both(Rank *ranks) {
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        ck_assert(!pthread_create(&threads[i], NULL, turns, &ranks[i]));
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 2; i++) {
        int32_t words[2] = {7, 7};
        GOOD(ranks[i].result);
        GOOD(cu->context_set(ranks[i].context));
        GOOD(cu->copy_out(words, ranks[i].words, sizeof words, ranks[i].stream));
        ck_assert_msg(words[0] == 0 && words[1] == 0, "rank %d: %d %d", i, words[0], words[1]);
    }
}

static void capture(Rank *r) {
    MoeCuGraph g;
    GOOD(cu->context_set(r->context));
    GOOD(cu->capture_begin(r->stream, MOE_CU_CAPTURE_THREAD_LOCAL));
    GOOD(say(r, 0));
    GOOD(say(r, 1));
    GOOD(cu->capture_end(r->stream, &g));
    GOOD(cu->graph_instantiate(&r->graph, g, 0));
    GOOD(cu->graph_destroy(g));
}

static void test_turns(const char *devices, int second) {
    Rank ranks[2];
    OK(moe_gpu_begin(devices, &cu));
    make(&ranks[0], 0);
    make(&ranks[1], second);
    for (int i = 0; i < 2; i++) {
        ranks[i].other = ranks[1 - i].words;
        GOOD(cu->context_set(ranks[i].context));
        if (second)
            GOOD(cu->peer_enable(ranks[1 - i].context, 0));
    }
    run_both(ranks);
    capture(&ranks[0]);
    capture(&ranks[1]);
    run_both(ranks);
}

START_TEST(one_device) {
    test_turns("80", 0);
}
END_TEST

START_TEST(two_devices) {
    test_turns("80,90", 1);
}
END_TEST

/* A stream waits until another one writes, and a query says so. */
START_TEST(waits) {
    Rank r;
    MoeCuStream writer;
    OK(moe_gpu_begin("80", &cu));
    make(&r, 0);
    GOOD(cu->stream_create(&writer, MOE_CU_STREAM_NON_BLOCKING));
    MoeCuStreamOp wait = op(MOE_CU_OP_WAIT_VALUE_32, r.words, 1),
                  write = op(MOE_CU_OP_WRITE_VALUE_32, r.words, 3);
    GOOD(cu->stream_ops(r.stream, 1, &wait, 0));
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(cu->stream_query(r.stream), MOE_CU_NOT_READY);
    GOOD(cu->stream_ops(writer, 1, &write, 0));
    GOOD(cu->stream_synchronize(r.stream)); /* the writer goes on inside it */
    GOOD(cu->stream_query(r.stream));
}
END_TEST

/* Another device's memory, without asking for it, and where it is not to be had. */
START_TEST(out_of_reach) {
    Rank ranks[2];
    int can = 1;
    OK(moe_gpu_begin("80,80", &cu));
    make(&ranks[0], 0);
    make(&ranks[1], 1);
    MoeCuStreamOp write = op(MOE_CU_OP_WRITE_VALUE_32, ranks[0].words, 1);
    ck_assert_int_eq(cu->stream_ops(ranks[1].stream, 1, &write, 0), MOE_CU_INVALID_VALUE);
    GOOD(cu->can_access_peer(&can, 0, 1));
    ck_assert_int_eq(can, 1);
    setenv("MOE_SIM_NO_PEER", "1", 1);
    GOOD(cu->can_access_peer(&can, 0, 1));
    ck_assert_int_eq(can, 0);
    ck_assert_int_eq(cu->peer_enable(ranks[0].context, 0), 217);
    unsetenv("MOE_SIM_NO_PEER");
    GOOD(cu->peer_enable(ranks[0].context, 0));
    ck_assert_int_eq(cu->peer_enable(ranks[0].context, 0), MOE_CU_PEER_ACCESS_ALREADY_ENABLED);
    GOOD(cu->stream_ops(ranks[1].stream, 1, &write, 0));
    setenv("MOE_SIM_NO_STREAM_VALUES", "1", 1);
    ck_assert_int_eq(cu->stream_ops(ranks[1].stream, 1, &write, 0), 801);
}
END_TEST

int main(void) {
    Suite *s = suite_create("sim_peers");
    TCase *tc = tcase_create("sim_peers");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, one_device);
    tcase_add_test(tc, two_devices);
    tcase_add_test(tc, waits);
    tcase_add_test(tc, out_of_reach);
    suite_add_tcase(s, tc);
    return moe_check_main(s);
}
