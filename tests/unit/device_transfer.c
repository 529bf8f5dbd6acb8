/* runtime/cuda/transfer.c and what a step asks of the device, on the simulated GPU: a step without exchanges waits for the device
 * once, for its results; inputs and results keep their values however late they are copied; memory is what the plan says. */
#include <check.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/kernel_abi.h"
#include "runtime/cuda/device.h"
#include "runtime/touched.h"
#include "tests/support/check_main.h"
#include "tests/support/fake_cuda.h"
#include "tests/support/fake_steps.h"
#include "tests/support/gpu.h"
#include "tests/support/status_checks.h"

enum { SEQ = 3, BATCH = 64, V = 32, STEPS = 5, MOST = SEQ * BATCH };

static int32_t ids[MOST], labels[MOST];

static MoePlan *plan_of(const char *target, int micro_batches) {
    FakePlanOptions o = {.batch = BATCH,
                         .seq = SEQ,
                         .virtual_shards = V,
                         .micro_batches = micro_batches,
                         .target = target};
    return target ? fake_cuda_plan(&o) : fake_plan(&o);
}

static long waits(void) {
    long (*count)(void);
    void *at = dlsym(RTLD_DEFAULT, "moe_sim_waits");
    ck_assert_ptr_nonnull(at);
    memcpy(&count, &at, sizeof count);
    return count();
}

static void step(MoeExec *x, int s, MoeStepResult *r) {
    MoeHyper h = fake_hyper(s);
    fake_batch(s, ids, labels, MOST);
    OK(moe_exec_train_step(x, &(MoeBatch){ids, labels, BATCH}, &h, r));
    memset(ids, 0, sizeof ids); /* the batch is the caller's again */
    memset(labels, 0, sizeof labels);
    ck_assert(r->updated);
    r->seconds = r->compute_seconds = 0;
}

/* Once a step: neither for batches and their micro-batches, nor for tables of rows, nor for single losses. */
START_TEST(test_waits) {
    for (int m = 1; m <= 8; m *= 2) {
        MoePlan *p = plan_of("cuda:sm_80", m);
        MoeExec *x = fake_exec(p, NULL, NULL);
        MoeStepResult r;
        step(x, 0, &r); /* graphs are captured */
        for (int s = 1; s < STEPS; s++) {
            long before = waits();
            step(x, s, &r);
            ck_assert_msg(waits() - before == 1, "%d micro-batches, step %d: %ld waits", m, s,
                          waits() - before);
        }
        moe_exec_destroy(x);
        moe_plan_free(p);
    }
}
END_TEST

typedef struct {
    MoeStepResult r[STEPS];
    int32_t load[STEPS][V * FAKE_EXPERTS];
    float w[8];
} Outcome;

static void train(const MoePlan *p, Outcome *o) {
    MoeExec *x = fake_exec(p, NULL, NULL);
    memset(o, 0, sizeof *o);
    for (int s = 0; s < STEPS; s++) {
        step(x, s, &o->r[s]);
        memcpy(o->load[s], moe_exec_load(x), sizeof o->load[s]);
    }
    OK(moe_exec_fetch(x, moe_exec_buffer(x, 0), sizeof o->w));
    memcpy(o->w, moe_exec_buffer(x, 0), sizeof o->w);
    moe_exec_destroy(x);
}

/* Streams run as late as they may, so a slot of the ring that is taken too early shows: 32 micro-batches, counted and run, are four
 * rounds of it. Also where there is no pinned memory. */
START_TEST(test_late_copies) {
    static Outcome want, have;
    for (int m = 1; m <= V; m *= 8) {
        MoePlan *cpu = plan_of(NULL, m), *gpu = plan_of("cuda:sm_80", m);
        train(cpu, &want);
        for (int pinned = 0; pinned < 2; pinned++) {
            if (pinned)
                unsetenv("MOE_SIM_NO_PINNED");
            else
                setenv("MOE_SIM_NO_PINNED", "1", 1);
            train(gpu, &have);
            ck_assert_msg(!memcmp(&want, &have, sizeof want),
                          "%d micro-batches, pinned %d: loss %g and %g, load %d and %d", m, pinned,
                          want.r[STEPS - 1].loss, have.r[STEPS - 1].loss, want.load[0][0],
                          have.load[0][0]);
        }
        moe_plan_free(cpu);
        moe_plan_free(gpu);
    }
}
END_TEST

/* Buffers larger than the ring come back as they went. */
START_TEST(test_large) {
    MoePlan *p = plan_of("cuda:sm_80", 1);
    MoeDevice *d;
    const int64_t bytes = ((int64_t)20 << 20) + 12;
    unsigned char *at, seed = 1;
    OK(moe_device_open(p, &(MoeDevicePlace){.device = -1, .local = 0}, &d));
    OK(d->ops->alloc(d, bytes, "a test", (char **)&at));
    for (int turn = 0; turn < 2; turn++) {
        for (int64_t i = 0; i < bytes; i++)
            at[i] = (unsigned char)(seed += (unsigned char)(17 + i % 3));
        unsigned char *kept = malloc((size_t)bytes);
        memcpy(kept, at, (size_t)bytes);
        OK(moe_device_write(d, at, bytes));
        memset(at, 0, (size_t)bytes);
        const void *part, *end;
        OK(moe_device_ask(d, at + 4096, 600 << 10, &part));
        OK(moe_device_ask(d, at + bytes - 4, 4, &end));
        OK(moe_device_asked(d));
        OK(moe_device_read(d, at, bytes));
        OK(moe_device_answers(d));
        ck_assert(!memcmp(at, kept, (size_t)bytes));
        ck_assert(!memcmp(part, kept + 4096, 600 << 10) && !memcmp(end, kept + bytes - 4, 4));
        free(kept);
    }
    d->ops->release(d, (char *)at, bytes);
    moe_device_close(d);
    moe_plan_free(p);
}
END_TEST

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

/* What the execution says it takes is what the device has less: parameters, states, the slab, inputs; beside that each of four
 * allocations (the stop flag is the fourth) has slack and is rounded by the driver, and so is each input. */
START_TEST(test_memory) {
    for (int m = 1; m <= 2; m++) {
        MoePlan *p = plan_of("cuda:sm_80", m);
        const MoeCudaDriver *cu;
        size_t before, after, total;
        MoeExec *open = fake_exec(p, NULL, NULL), *x; /* a context for cuMemGetInfo */
        OK(moe_cuda_driver(&cu));
        ck_assert_int_eq(cu->mem_info(&before, &total), MOE_CU_SUCCESS);
        x = fake_exec(p, NULL, NULL);
        ck_assert_int_eq(cu->mem_info(&after, &total), MOE_CU_SUCCESS);
        int64_t taken = (int64_t)(before - after), said = moe_exec_memory_bytes(x), buffers = 0,
                slab = moe_plan_fixed_bytes(p);
        for (size_t i = 0; i < p->n_buffers; i++)
            buffers += moe_plan_buffer_bytes(&p->buffers[i]);
        int64_t inputs = said - buffers - slab;
        ck_assert_msg(inputs >= 2 * 4 * MOST / m && inputs < 16 * MOST, "%lld bytes of inputs",
                      (long long)inputs);
        int64_t least = round_up(buffers + MOE_BUFFER_SLACK, 256) +
                        round_up(slab + MOE_BUFFER_SLACK, 256) + 256;
        ck_assert_msg(taken >= least + inputs && taken <= least + inputs + 20 * 128 + 256,
                      "%lld bytes taken, %lld said: %lld, %lld and %lld", (long long)taken,
                      (long long)said, (long long)buffers, (long long)slab, (long long)inputs);
        moe_exec_destroy(x);
        ck_assert_int_eq(cu->mem_info(&after, &total), MOE_CU_SUCCESS);
        ck_assert_uint_eq(after, before);
        moe_exec_destroy(open);
        moe_plan_free(p);
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("device_transfer");
    TCase *t = tcase_create("device_transfer");
    tcase_set_timeout(t, 240);
    if (moe_test_simulate("80")) {
        tcase_add_test(t, test_waits);
        tcase_add_test(t, test_late_copies);
        tcase_add_test(t, test_large);
        tcase_add_test(t, test_memory);
    } else {
        printf("no simulated GPU was built: nothing is tested\n");
    }
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
