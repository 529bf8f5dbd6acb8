/* runtime/exec.h over a tiny plan with kernels in C: micro-batches, the counting pass, folds,
 * threads, phases, skipped updates. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/exec.h"
#include "runtime/ranks.h"
#include "tests/support/check_main.h"
#include "tests/support/fake_plan.h"
#include "tests/support/status_checks.h"

enum { SEQ = 5, BATCH = 19, V = 8, STEPS = 4, MAX_T = SEQ * BATCH };

static int32_t all_ids[STEPS][MAX_T], all_labels[STEPS][MAX_T]; /* of each step */
static int32_t *ids, *labels;                                   /* of the last one made */

static void make_batch(int step) {
    unsigned s = 12345u + (unsigned)step;
    ids = all_ids[step];
    labels = all_labels[step];
    for (int i = 0; i < MAX_T; i++) {
        s = s * 1664525u + 1013904223u;
        ids[i] = (int32_t)(s >> 24);
        labels[i] = s % 17 == 0 ? -100 : (int32_t)((s >> 16) & 255);
    }
}

typedef struct {
    MoeStepResult r[STEPS];
    float w[8], m[8], v[8], u[24], nll;
    int64_t tokens;
    int32_t load[V * FAKE_EXPERTS];
} Outcome;

static void copy_out(MoeExec *x, Outcome *o) {
    memcpy(o->w, moe_exec_buffer(x, 0), sizeof o->w);
    memcpy(o->m, moe_exec_buffer(x, 1), sizeof o->m);
    memcpy(o->v, moe_exec_buffer(x, 2), sizeof o->v);
    memcpy(o->u, moe_exec_buffer(x, 3), sizeof o->u);
    memcpy(o->load, moe_exec_load(x), sizeof o->load);
}

static const MoeHyper hyper = {.lr = 0.01,
                               .beta1 = 0.9,
                               .beta2 = 0.95,
                               .eps = 1e-8,
                               .weight_decay = 0.1,
                               .max_grad_norm = 1.0,
                               .step = 1};

typedef struct {
    const MoePlan *plan;
    int threads;
    int64_t n_seqs;
    Outcome *o; /* of each rank */
} Job;

/* What does not depend on the clock, member by member: outcomes are compared byte by byte, and bytes between members hold anything. */
static void keep(const MoeStepResult *r, MoeStepResult *out) {
    out->loss = r->loss;
    out->ce_loss = r->ce_loss;
    out->aux_loss = r->aux_loss;
    out->grad_norm = r->grad_norm;
    out->tokens = r->tokens;
    out->has_aux = r->has_aux;
    out->updated = r->updated;
}

static MoeStatus run_rank(void *ctx, MoeComm *comm) {
    const Job *job = ctx;
    Outcome *o = &job->o[comm->rank];
    MoeExec *x;
    OK(moe_exec_create(job->plan, comm, job->threads, &x));
    ck_assert_int_eq(moe_exec_threads(x), job->threads);
    ck_assert(moe_exec_rank(x) == comm->rank && moe_exec_comm(x) == comm);
    float *w = moe_exec_buffer(x, 0);
    for (int i = 0; i < 8; i++)
        w[i] = 0.3f + 0.17f * (float)i;
    for (int s = 0; s < STEPS; s++) {
        MoeHyper h = hyper;
        h.step = s + 1;
        MoeStepResult r;
        OK(moe_exec_train_step(x, &(MoeBatch){all_ids[s], all_labels[s], job->n_seqs}, &h, &r));
        ck_assert(r.updated);
        keep(&r, &o->r[s]);
    }
    copy_out(x, o);
    double nll;
    OK(moe_exec_eval(x, &(MoeBatch){ids, labels, job->n_seqs}, &nll, &o->tokens));
    o->nll = (float)nll;
    moe_exec_destroy(x);
    return NULL;
}

static void run(int ranks, int micro_batches, int threads, int64_t n_seqs, Outcome *o) {
    static Outcome all[V];
    MoePlan *p = fake_plan(&(FakePlanOptions){.batch = BATCH,
                                              .seq = SEQ,
                                              .virtual_shards = V,
                                              .micro_batches = micro_batches,
                                              .ranks = ranks});
    Job job = {p, threads, n_seqs, all};
    memset(all, 0, sizeof all);
    for (int s = 0; s < STEPS; s++)
        make_batch(s);
    OK(moe_ranks_run(ranks, 0, run_rank, &job));
    *o = all[0];
    for (int r = 1; r < ranks; r++) { /* all have the same but the load: their own tokens' */
        memcpy(all[r].load, all[0].load, sizeof all[0].load);
        ck_assert_msg(!memcmp(&all[r], o, sizeof *o), "rank %d differs from rank 0", r);
    }
    moe_plan_free(p);
}

/* Every number of ranks, division into micro-batches and number of threads: the same bits, for whole and short
 * batches (some ranks then have none). */
START_TEST(test_same_bits) {
    static const int64_t sizes[] = {BATCH, 8, 7, 3, 1};
    for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++) {
        Outcome one, other;
        run(1, 1, 1, sizes[n], &one);
        for (int ranks = 1; ranks <= V; ranks *= 2)
            for (int micro = 1; micro * ranks <= V; micro *= 2)
                for (int threads = 1; threads <= (ranks > 1 ? 2 : 4); threads *= 2) {
                    run(ranks, micro, threads, sizes[n], &other);
                    ck_assert_msg(!memcmp(&one, &other, sizeof one),
                                  "%lld sequences, %d ranks, %d micro-batches, %d threads differ",
                                  (long long)sizes[n], ranks, micro, threads);
                }
    }
}
END_TEST

/* What the numbers should be, worked out here in double. */
START_TEST(test_values) {
    Outcome o;
    run(1, 4, 2, BATCH, &o);
    double w[8], sum = 0;
    int64_t n = 0, by_class[8] = {0}, load[V][FAKE_EXPERTS] = {{0}};
    make_batch(0);
    for (int i = 0; i < 8; i++)
        w[i] = (double)(0.3f + 0.17f * (float)i);
    for (int i = 0; i < MAX_T; i++) {
        double e = w[ids[i] % 8] - labels[i] / 64.0;
        by_class[ids[i] % 8]++;
        n += labels[i] != -100;
        sum += labels[i] == -100 ? 0 : e * e;
    }
    double aux = 1;
    for (int k = 0; k < 8; k++)
        aux += (double)by_class[k] * (double)by_class[k] / ((double)n * (double)n + 1);
    ck_assert_int_eq(o.r[0].tokens, n);
    ck_assert(o.r[0].has_aux);
    ck_assert_double_eq_tol(o.r[0].ce_loss, sum / (double)n, 1e-6 * sum / (double)n);
    ck_assert_double_eq_tol(o.r[0].aux_loss, aux, 1e-6);
    ck_assert_double_eq_tol(o.r[0].loss, sum / (double)n + 0.01 * aux, 1e-5);
    make_batch(STEPS - 1); /* the load is the last step's */
    for (int v = 0; v < V; v++)
        for (int s = v * BATCH / V; s < (v + 1) * BATCH / V; s++)
            for (int t = 0; t < SEQ; t++)
                load[v][ids[s * SEQ + t] % FAKE_EXPERTS]++;
    for (int v = 0; v < V; v++)
        for (int e = 0; e < FAKE_EXPERTS; e++)
            ck_assert_int_eq(o.load[v * FAKE_EXPERTS + e], load[v][e]);
}
END_TEST

/* Not finite: nothing is updated, and the next step is as if the bad one had not been. */
START_TEST(test_skip) {
    MoePlan *p = fake_plan(
        &(FakePlanOptions){.batch = BATCH, .seq = SEQ, .virtual_shards = V, .micro_batches = 2});
    MoeExec *x;
    MoeStepResult r;
    Outcome before, after;
    OK(moe_exec_create(p, NULL, 2, &x));
    memset(&before, 0, sizeof before);
    memset(&after, 0, sizeof after);
    make_batch(0);
    OK(moe_exec_train_step(x, &(MoeBatch){ids, labels, BATCH}, &hyper, &r));
    copy_out(x, &before);
    int updates = fake_updates;
    fake_poison_steps = 1;
    OK(moe_exec_train_step(x, &(MoeBatch){ids, labels, BATCH}, &hyper, &r));
    copy_out(x, &after);
    ck_assert(!r.updated && isnan(r.loss));
    ck_assert_int_eq(fake_updates, updates);
    ck_assert_mem_eq(&before, &after, sizeof before);
    OK(moe_exec_train_grads(x, &(MoeBatch){ids, labels, BATCH}, &hyper, &r));
    copy_out(x, &after);
    ck_assert(!r.updated && isfinite(r.loss));
    ck_assert_mem_eq(&before, &after, sizeof before);
    OK(moe_exec_train_step(x, &(MoeBatch){ids, labels, BATCH}, &hyper, &r));
    ck_assert(r.updated && fake_updates == updates + 1);
    moe_exec_destroy(x);
    moe_plan_free(p);
}
END_TEST

/* Logits of one sequence, at any number of micro-batches; bad batches are named. */
START_TEST(test_logits_and_errors) {
    for (int micro = 1; micro <= V; micro *= 2) {
        MoePlan *p = fake_plan(&(FakePlanOptions){
            .batch = BATCH, .seq = SEQ, .virtual_shards = V, .micro_batches = micro});
        MoeExec *x;
        const float *logits;
        OK(moe_exec_create(p, NULL, 1, &x));
        make_batch(1);
        for (int k = 0; k < BATCH; k += 6) {
            const int32_t *one = ids + k * SEQ;
            OK(moe_exec_logits(x, &(MoeBatch){one, NULL, 1}, &logits));
            for (int64_t t = 0; t < SEQ; t++)
                for (int c = 0; c < FAKE_VOCAB; c++)
                    ck_assert_float_eq(logits[t * FAKE_VOCAB + c],
                                       c == (one[t] + 1) % FAKE_VOCAB ? 9.0f : -(float)c / 1000.0f);
        }
        MoeStatus st = moe_exec_logits(x, &(MoeBatch){ids, NULL, 2}, &logits);
        ck_assert(st && strstr(moe_status_message(st), "2 sequences at once; the plan holds 1"));
        moe_status_free(st);
        MoeStepResult r;
        st = moe_exec_train_step(x, &(MoeBatch){ids, labels, BATCH + 1}, &hyper, &r);
        ck_assert(st && strstr(moe_status_message(st), "20 sequences"));
        moe_status_free(st);
        ids[7] = 256;
        st = moe_exec_train_step(x, &(MoeBatch){ids, labels, BATCH}, &hyper, &r);
        ck_assert(st && strstr(moe_status_message(st), "token 256 at sequence 1, position 2"));
        moe_status_free(st);
        ids[7] = 0;
        labels[3] = -5;
        st = moe_exec_train_step(x, &(MoeBatch){ids, labels, BATCH}, &hyper, &r);
        ck_assert(st && strstr(moe_status_message(st), "label -5"));
        moe_status_free(st);
        moe_exec_destroy(x);
        moe_plan_free(p);
    }
}
END_TEST

START_TEST(test_profile_and_memory) {
    MoePlan *p = fake_plan(
        &(FakePlanOptions){.batch = 4, .seq = SEQ, .virtual_shards = 4, .micro_batches = 2});
    MoeExec *x;
    MoeStepResult r;
    OK(moe_exec_create(p, NULL, 1, &x));
    ck_assert_ptr_null(moe_exec_profile_seconds(x, "train"));
    moe_exec_profile(x, true);
    make_batch(0);
    OK(moe_exec_train_step(x, &(MoeBatch){ids, labels, 4}, &hyper, &r));
    const double *s = moe_exec_profile_seconds(x, "train");
    for (size_t i = 0; i < moe_plan_program(p, "train")->n_steps; i++)
        ck_assert(s[i] > 0 && s[i] < 1);
    ck_assert(moe_exec_memory_bytes(x) > 3 * (32 + 96));
    const MoePlanPort *port;
    ck_assert_ptr_nonnull(moe_exec_output(x, "train", "loss", &port));
    ck_assert_str_eq(port->name, "loss");
    ck_assert_ptr_null(moe_exec_output(x, "train", "nothing", NULL));
    ck_assert_ptr_null(moe_exec_input(x, "nothing", "tok"));
    moe_exec_destroy(x);
    moe_plan_free(p);
}
END_TEST

int main(void) {
    Suite *s = suite_create("exec_fake");
    TCase *t = tcase_create("exec");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, test_same_bits);
    tcase_add_test(t, test_values);
    tcase_add_test(t, test_skip);
    tcase_add_test(t, test_logits_and_errors);
    tcase_add_test(t, test_profile_and_memory);
    suite_add_tcase(s, t);
    return moe_check_main(s);
}
