/* runtime/cuda/ on the simulated GPU, over a tiny plan (fake_cuda.h): the CPU's bits, micro-batches, ranks that share a
 * device, graphs, guards, elastic memory that grows, and everything that can be wrong with driver, device or code. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cubins.h"
#include "runtime/exec.h"
#include "runtime/init.h"
#include "runtime/ranks.h"
#include "tests/support/check_main.h"
#include "tests/support/fake_cuda.h"
#include "tests/support/fake_steps.h"
#include "tests/support/gpu.h"
#include "tests/support/status_checks.h"

enum { SEQ = 5, BATCH = 19, V = 8, STEPS = 3, MOST = 128 * SEQ };

static int32_t ids[MOST], labels[MOST];

static void make_batch(int step) {
    fake_batch(step, ids, labels, MOST);
}

static FakePlanOptions options(const char *target) {
    return (FakePlanOptions){
        .batch = BATCH, .seq = SEQ, .virtual_shards = V, .micro_batches = 1, .target = target};
}

static MoePlan *plan_of(const FakePlanOptions *o) {
    return o->target ? fake_cuda_plan(o) : fake_plan(o);
}

static MoeExec *exec_of(const MoePlan *p) {
    return fake_exec(p, NULL, NULL);
}

static MoeStatus step(MoeExec *x, int s, int64_t n_seqs, MoeStepResult *r) {
    MoeHyper h = fake_hyper(s);
    make_batch(s);
    return moe_exec_train_step(x, &(MoeBatch){ids, labels, n_seqs}, &h, r);
}

/* What training leaves. */
typedef struct {
    MoeStepResult r[STEPS];
    float buffers[3 * 8 + 3 * 24], nll, logits[256];
    int32_t load[V * FAKE_EXPERTS];
    int64_t tokens;
} Outcome;

static void copy_out(const MoePlan *p, MoeExec *x, Outcome *o) {
    float *at = o->buffers;
    for (size_t b = 0; b < p->n_buffers; b++) {
        OK(moe_exec_fetch(x, moe_exec_buffer(x, (int)b), p->buffers[b].bytes));
        memcpy(at, moe_exec_buffer(x, (int)b), (size_t)p->buffers[b].bytes);
        at += p->buffers[b].elements;
    }
    memcpy(o->load, moe_exec_load(x), sizeof o->load);
}

static void train(const MoePlan *p, MoeExec *x, int64_t n_seqs, Outcome *o) {
    const float *logits;
    double nll;
    memset(o, 0, sizeof *o);
    for (int s = 0; s < STEPS; s++) {
        OK(step(x, s, n_seqs, &o->r[s]));
        ck_assert(o->r[s].updated);
        o->r[s].seconds = o->r[s].compute_seconds = 0;
    }
    copy_out(p, x, o);
    OK(moe_exec_eval(x, &(MoeBatch){ids, labels, n_seqs}, &nll, &o->tokens));
    o->nll = (float)nll;
    OK(moe_exec_logits(x, &(MoeBatch){ids, NULL, 1}, &logits));
    memcpy(o->logits, logits, sizeof o->logits);
}

static void run(const FakePlanOptions *o, int64_t n_seqs, bool profile, Outcome *out) {
    MoePlan *p = plan_of(o);
    MoeExec *x = exec_of(p);
    moe_exec_profile(x, profile);
    train(p, x, n_seqs, out);
    if (profile) { /* the eval program ran last; the training program's are of its last step */
        const double *seconds = moe_exec_profile_seconds(x, "train");
        for (size_t i = 0; i < moe_plan_program(p, "train")->n_steps; i++)
            ck_assert_msg(seconds[i] >= 0 && seconds[i] < 60, "step %zu: %g s", i, seconds[i]);
    }
    moe_exec_destroy(x);
    moe_plan_free(p);
}

/* As the CPU: losses, weights, states, load, evaluation, logits; also with micro-batches, and with every step launched by itself. */
START_TEST(test_bits) {
    static Outcome want, have;
    static const int64_t sizes[] = {BATCH, 7, 1};
    for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++)
        for (int m = 1; m <= 4; m *= 2) {
            FakePlanOptions cpu = options(NULL), gpu = options("cuda:sm_80");
            cpu.micro_batches = gpu.micro_batches = m;
            run(&cpu, sizes[n], false, &want);
            for (int profile = 0; profile < 2; profile++) {
                run(&gpu, sizes[n], profile, &have);
                ck_assert_msg(!memcmp(&want, &have, sizeof want),
                              "%lld sequences, %d micro-batches, profile %d: loss %g and %g",
                              (long long)sizes[n], m, profile, want.r[STEPS - 1].loss,
                              have.r[STEPS - 1].loss);
            }
        }
}
END_TEST

static Outcome of_rank[4];
static int shared_device; /* of all ranks; -1: each has its own */

static MoeStatus run_rank(void *ctx, MoeComm *comm) {
    const MoePlan *p = ctx;
    MoeExec *x;
    OK(moe_exec_create_on(p, comm, 1, &(MoeDevicePlace){.device = shared_device, .local = -1}, &x));
    OK(moe_init_params(p, x, 7));
    OK(moe_init_states(p, x));
    Outcome *o = &of_rank[comm->rank];
    memset(o, 0, sizeof *o);
    for (int s = 0; s < STEPS; s++) {
        static int32_t all[STEPS][2][MOST]; /* as make_batch would have it, which ranks may not share */
        MoeHyper h = fake_hyper(s);
        if (comm->rank == 0) {
            make_batch(s);
            memcpy(all[s][0], ids, sizeof ids);
            memcpy(all[s][1], labels, sizeof labels);
        }
        OK(moe_comm_barrier(comm, "batch"));
        OK(moe_exec_train_step(x, &(MoeBatch){all[s][0], all[s][1], BATCH}, &h, &o->r[s]));
        o->r[s].seconds = o->r[s].compute_seconds = 0;
    }
    copy_out(p, x, o);
    moe_exec_destroy(x);
    return NULL;
}

/* Ranks as threads that share a device, or have one each; exchanges go through the host. */
START_TEST(test_ranks) {
    static Outcome one;
    FakePlanOptions o = options("cuda:sm_80");
    run(&o, BATCH, false, &one);
    for (int ranks = 2; ranks <= 4; ranks *= 2) {
        shared_device = ranks == 2 ? 0 : -1;
        o.ranks = ranks;
        MoePlan *p = fake_cuda_plan(&o);
        OK(moe_ranks_run(ranks, 0, run_rank, p));
        for (int r = 0; r < ranks; r++)
            ck_assert_msg(!memcmp(of_rank[r].buffers, one.buffers, sizeof one.buffers) &&
                              !memcmp(of_rank[r].r, one.r, sizeof one.r),
                          "rank %d of %d", r, ranks);
        ck_assert(!memcmp(of_rank[0].load, one.load, sizeof one.load));
        moe_plan_free(p);
    }
}
END_TEST

/* A loss that is not finite leaves everything as it was, and the next step runs. */
START_TEST(test_not_finite) {
    FakePlanOptions o = options("cuda:sm_80");
    for (int m = 1; m <= 2; m++) {
        static Outcome before, after;
        MoeStepResult r;
        o.micro_batches = m;
        MoePlan *p = fake_cuda_plan(&o);
        MoeExec *x = exec_of(p);
        float *w = moe_exec_buffer(x, 0), kept;
        OK(step(x, 0, BATCH, &r));
        OK(moe_exec_fetch(x, w, 32));
        kept = w[3];
        w[3] = NAN;
        OK(moe_exec_send(x, w, 32));
        copy_out(p, x, &before);
        for (int turn = 0; turn < 2; turn++) {
            OK(step(x, 1, BATCH, &r));
            ck_assert(!r.updated && isnan(r.loss));
            copy_out(p, x, &after);
            ck_assert(!memcmp(before.buffers, after.buffers, sizeof before.buffers));
        }
        w[3] = kept;
        OK(moe_exec_send(x, w, 32));
        OK(step(x, 1, BATCH, &r));
        ck_assert(r.updated);
        copy_out(p, x, &after);
        ck_assert(memcmp(before.buffers, after.buffers, sizeof before.buffers));
        moe_exec_destroy(x);
        moe_plan_free(p);
    }
}
END_TEST

static float extra_of(MoeExec *x) {
    const float *v = moe_exec_output(x, "train", "extra", NULL);
    ck_assert_ptr_nonnull(v);
    return *v;
}

/* Rows beyond what is mapped stop the program, and it goes on where it stopped, with more memory. */
START_TEST(test_elastic) {
    static Outcome want, have;
    MoePlan *plans[2];
    MoeExec *x[2];
    MoeExecGrowth growth;
    for (int gpu = 0; gpu < 2; gpu++) {
        FakePlanOptions o = options(gpu ? "cuda:sm_80" : NULL);
        o.batch = 128;
        o.elastic = true;
        plans[gpu] = plan_of(&o);
        x[gpu] = exec_of(plans[gpu]);
    }
    for (int s = 0; s < 4; s++) {
        static const int64_t sizes[] = {2, 128, 70, 128}; /* 640 rows of 64 KiB: 40 MiB, of which 8 are there */
        MoeStepResult a, b;
        OK(step(x[0], s, sizes[s], &a));
        OK(step(x[1], s, sizes[s], &b));
        ck_assert(a.loss == b.loss && a.grad_norm == b.grad_norm && b.updated);
        ck_assert_float_eq(extra_of(x[0]), extra_of(x[1]));
        ck_assert(moe_exec_memory_bytes(x[0]) - moe_exec_memory_bytes(x[1]) < 1 << 20);
        ck_assert_int_eq(moe_exec_growth(x[1], &growth), s < 2); /* 10 rows, then 640 */
        if (s == 1)
            ck_assert_int_eq(growth.used, (int64_t)640 * FAKE_ROW_BYTES);
    }
    for (int gpu = 0; gpu < 2; gpu++) {
        copy_out(plans[gpu], x[gpu], gpu ? &have : &want);
        moe_exec_destroy(x[gpu]);
        moe_plan_free(plans[gpu]);
    }
    ck_assert(!memcmp(want.buffers, have.buffers, sizeof want.buffers));
}
END_TEST

/* No memory for it: an error that says how much and what to do, and the weights are as before. */
START_TEST(test_elastic_memory) {
    FakePlanOptions o = options("cuda:sm_80");
    MoeStepResult r;
    o.batch = 128;
    o.elastic = true;
    MoePlan *p = fake_cuda_plan(&o);
    MoeExec *x = exec_of(p);
    OK(step(x, 0, 2, &r));
    setenv("MOE_SIM_MEMORY", "16000000", 1);
    FAILS(step(x, 1, 128, &r), MOE_E_NOMEM, "rows that routing sends here", "--micro-batches");
    moe_exec_destroy(x);
    moe_plan_free(p);
}
END_TEST

START_TEST(test_no_memory) {
    FakePlanOptions o = options("cuda:sm_80");
    MoePlan *p = fake_cuda_plan(&o);
    MoeExec *x;
    setenv("MOE_SIM_MEMORY", "100", 1);
    FAILS(moe_exec_create(p, NULL, 1, &x), MOE_E_NOMEM, "GPU 0", "parameters and optimiser states",
          "--batch", "--memory-limit");
    moe_plan_free(p);
}
END_TEST

/* A kernel that fails: the step is named, and so it stays. */
START_TEST(test_failed_launch) {
    FakePlanOptions o = options("cuda:sm_80");
    MoePlan *p = fake_cuda_plan(&o);
    MoeExec *x = exec_of(p);
    MoeStepResult r;
    moe_exec_profile(x, true); /* each step by itself */
    OK(step(x, 0, BATCH, &r));
    setenv("MOE_SIM_QUIET", "1", 1);
    setenv("MOE_SIM_FAIL_LAUNCH", "k_grad", 1);
    FAILS(step(x, 1, BATCH, &r), MOE_E_IO, "GPU 0", "program train", "step");
    FAILS(step(x, 1, BATCH, &r), MOE_E_IO, "GPU 0", "program train", "step");
    moe_exec_destroy(x);
    moe_plan_free(p);
}
END_TEST

static MoeStatus lose_rank(void *ctx, MoeComm *comm) {
    MoeExec *x = NULL;
    MoeStepResult r;
    MOE_TRY(moe_exec_create(ctx, comm, 1, &x));
    MoeStatus st = moe_init_params(ctx, x, 7);
    for (int s = 0; s < 50 && !st; s++) {
        MoeHyper h = fake_hyper(s);
        st = moe_exec_train_step(x, &(MoeBatch){ids, labels, BATCH}, &h, &r);
    }
    moe_exec_destroy(x);
    return st;
}

/* A device that is lost ends all ranks. */
START_TEST(test_lost) {
    FakePlanOptions o = options("cuda:sm_80");
    o.ranks = 2;
    MoePlan *p = fake_cuda_plan(&o);
    make_batch(0);
    setenv("MOE_SIM_QUIET", "1", 1);
    setenv("MOE_SIM_LOST_AFTER", "100", 1);
    MoeStatus st = moe_ranks_run(2, 0, lose_rank, p);
    ck_assert_ptr_nonnull(st);
    ck_assert_msg(strstr(moe_status_message(st), "GPU "), "%s", moe_status_message(st));
    moe_status_free(st);
    moe_plan_free(p);
}
END_TEST

/* Devices: by number, by the rank's place on its host; code for another architecture. */
START_TEST(test_devices) {
    FakePlanOptions o = options("cuda:sm_80");
    MoePlan *p = fake_cuda_plan(&o);
    MoeExec *x;
    FAILS(moe_exec_create_on(p, NULL, 1, &(MoeDevicePlace){.device = 4, .local = -1}, &x), MOE_E_INPUT, "sm_80",
          "GPU 4", "9.0", "--target=cuda:native");
    FAILS(moe_exec_create_on(p, NULL, 1, &(MoeDevicePlace){.device = -1, .local = 9}, &x), MOE_E_INPUT, "GPU 4");
    OK(moe_exec_create_on(p, NULL, 1, &(MoeDevicePlace){.device = -1, .local = 8}, &x));
    moe_exec_destroy(x);
    OK(moe_exec_create_on(p, NULL, 1, &(MoeDevicePlace){.device = 0, .local = 9}, &x));
    moe_exec_destroy(x);
    FAILS(moe_exec_create_on(p, NULL, 1, &(MoeDevicePlace){.device = 5, .local = -1}, &x), MOE_E_MISUSE, "5");
    moe_plan_free(p);
}
END_TEST

static MoeStatus load(const char *json, const void *code, size_t n) {
    MoePlan *p = NULL;
    MoeStatus st = moe_plan_load_memory(json, strlen(json), "p", code, n, &p);
    moe_plan_free(p);
    return st;
}

/* The container without one of its kernels. */
static void *without(const void *code, size_t n, const char *name, size_t *out_n) {
    MoeCubins c;
    void *out;
    size_t kept = 0;
    OK(moe_cubins_read(code, n, &c));
    for (size_t i = 0; i < c.n; i++)
        if (strcmp(c.images[i].name, name))
            c.images[kept++] = c.images[i];
    ck_assert_int_eq(kept, c.n - 1);
    OK(moe_cubins_pack(c.images, kept, &out, out_n));
    moe_cubins_free(&c);
    return out;
}

/* Code that is damaged, or lacks a kernel, is found when the plan is loaded. */
START_TEST(test_code) {
    FakePlanOptions o = options("cuda:sm_80");
    MoeStr json = {0};
    void *code;
    size_t n, m;
    fake_plan_json(&o, &json);
    OK(fake_cuda_code("sm_80", V, &code, &n));
    OK(load(json.data, code, n));
    FAILS(load(json.data, code, 10), MOE_E_CORRUPT, "kernels.cubin");
    FAILS(load(json.data, code, n / 2), MOE_E_CORRUPT, "kernels.cubin");
    for (size_t at = 0; at < 96; at++) { /* header, first entry */
        char kept = ((char *)code)[at];
        ((char *)code)[at] = (char)(kept ^ 0x41);
        moe_status_free(load(json.data, code, n)); /* no crash, whatever it says */
        ((char *)code)[at] = kept;
    }
    void *less = without(code, n, "k_grad", &m);
    FAILS(load(json.data, less, m), MOE_E_CORRUPT, "k_grad", "steps[");
    free(less);
    less = without(code, n, "moe_rt_fold", &m);
    FAILS(load(json.data, less, m), MOE_E_CORRUPT, "moe_rt_fold");
    free(less);
    free(code);
    moe_str_free(&json);
}
END_TEST

/* Launch shapes are read with the same care as the rest of plan.json. */
START_TEST(test_shapes) {
    static const char *const wrong[][3] = {
        {"\"grid\": 2", "\"grid\": 0", "grid"},
        {"\"grid\": 2", "\"grid\": 1e9", "grid"},
        {"\"block\": 64", "\"block\": 4096", "block"},
        {"\"block\": 64", "\"block\": 64, \"shared\": -1", "shared"},
        {"\"block\": 64", "\"block\": 64, \"maps\": 3", "maps"},
        {"\"block\": 64",
         "\"block\": 64, \"maps\": [{\"buf\": 9, \"dtype\": \"f32\", \"dims\": [4], \"strides\": "
         "[], \"box\": [4], \"swizzle\": 0}]",
         "buf"},
        {"\"block\": 64",
         "\"block\": 64, \"maps\": [{\"buf\": 0, \"dtype\": \"f32\", \"dims\": [4, 99999999], "
         "\"strides\": [16], \"box\": [4, 1], \"swizzle\": 0}]",
         "reach beyond"},
        {"\"block\": 64",
         "\"block\": 64, \"maps\": [{\"buf\": 0, \"dtype\": \"f32\", \"dims\": [4, 2], "
         "\"strides\": [17], \"box\": [4, 1], \"swizzle\": 0}]",
         "multiple of 16"},
        {"\"block\": 64",
         "\"block\": 64, \"maps\": [{\"buf\": 0, \"dtype\": \"f32\", \"dims\": [4], \"strides\": "
         "[], \"box\": [4], \"swizzle\": 16}]",
         "swizzle"},
    };
    FakePlanOptions o = options("cuda:sm_80");
    MoeStr json = {0};
    fake_plan_json(&o, &json);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        MoeStr text = {0};
        char *at = strstr(json.data, wrong[i][0]);
        ck_assert_ptr_nonnull(at);
        moe_str_append_n(&text, json.data, (size_t)(at - json.data));
        moe_str_append(&text, wrong[i][1]);
        moe_str_append(&text, at + strlen(wrong[i][0]));
        FAILS(load(text.data, NULL, 0), MOE_E_CORRUPT, wrong[i][2], "steps[0]");
        moe_str_free(&text);
    }
    moe_str_free(&json);
}
END_TEST

int main(void) {
    Suite *s = suite_create("device_cuda");
    TCase *t = tcase_create("device_cuda");
    tcase_set_timeout(t, 240);
    if (moe_test_simulate("80,80,80,80,90")) {
        tcase_add_test(t, test_bits);
        tcase_add_test(t, test_ranks);
        tcase_add_test(t, test_not_finite);
        tcase_add_test(t, test_elastic);
        tcase_add_test(t, test_elastic_memory);
        tcase_add_test(t, test_no_memory);
        tcase_add_test(t, test_failed_launch);
        tcase_add_test(t, test_lost);
        tcase_add_test(t, test_devices);
        tcase_add_test(t, test_code);
    } else {
        printf("no simulated GPU was built: only plan.json is tested\n");
    }
    tcase_add_test(t, test_shapes);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
