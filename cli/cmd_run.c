/* moec run PLAN --data FILE: trains, then says what came out: held-out bits per byte, expert load, where everything lies. */
#include "cli/commands.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/io.h"
#include "base/log.h"
#include "base/pool.h"
#include "cli/driver.h"
#include "runtime/emulate.h"
#include "runtime/launch.h"
#include "runtime/ranks.h"
#include "runtime/train.h"

/* runs/NAME for NAME.plan. */
static void default_out(const char *plan, char *out, size_t n) {
    size_t len = strlen(plan);
    while (len > 1 && plan[len - 1] == '/')
        len--;
    size_t from = len;
    while (from > 0 && plan[from - 1] != '/')
        from--;
    if (len - from > 5 && strncmp(plan + len - 5, ".plan", 5) == 0)
        len -= 5;
    snprintf(out, n, "runs/%.*s", (int)(len - from), plan + from);
}

static MoeStatus options_of(const MoeOptions *o, const char *plan, const char *out_dir,
                            json_t *resolved, MoeTrainOptions *t) {
    moe_train_options_default(t);
    t->plan_dir = plan;
    t->data_path = moe_opt(o, OPT_DATA);
    MOE_ASSERT(moe_data_format_from_name(moe_opt(o, OPT_FORMAT), &t->data_format), "format %s",
               moe_opt(o, OPT_FORMAT));
    t->eval_fraction = moe_opt_f(o, OPT_EVAL_FRACTION);
    t->steps = moe_opt_i(o, OPT_STEPS);
    t->lr = moe_opt_f(o, OPT_LR);
    t->min_lr = moe_opt_f(o, OPT_MIN_LR);
    t->warmup = moe_opt_i(o, OPT_WARMUP);
    t->beta1 = moe_opt_f(o, OPT_BETA1);
    t->beta2 = moe_opt_f(o, OPT_BETA2);
    t->eps = moe_opt_f(o, OPT_EPS);
    t->weight_decay = moe_opt_f(o, OPT_WEIGHT_DECAY);
    t->max_grad_norm = moe_opt_f(o, OPT_CLIP);
    t->seed = (uint64_t)moe_opt_i(o, OPT_SEED);
    t->eval_every = moe_opt_i(o, OPT_EVAL_EVERY);
    t->eval_batches = moe_opt_i(o, OPT_EVAL_BATCHES);
    t->checkpoint_every = moe_opt_i(o, OPT_CHECKPOINT_EVERY);
    t->max_seconds = moe_opt_f(o, OPT_MAX_SECONDS);
    t->profile_step = moe_opt_i(o, OPT_PROFILE_STEP);
    t->stop_after_step = moe_opt_i(o, OPT_STOP_AFTER_STEP);
    t->out_dir = out_dir;
    t->offload_to = *moe_opt(o, OPT_OFFLOAD_TO) ? moe_opt(o, OPT_OFFLOAD_TO) : NULL;
    t->init_from = *moe_opt(o, OPT_INIT_FROM) ? moe_opt(o, OPT_INIT_FROM) : NULL;
    t->quiet = moe_opt_b(o, OPT_QUIET);
    t->place.policy = moe_opt(o, OPT_PLACEMENT);
    t->place.program = *moe_opt(o, OPT_PLACEMENT_PROGRAM) ? moe_opt(o, OPT_PLACEMENT_PROGRAM) : NULL;
    t->place.from = *moe_opt(o, OPT_PLACEMENT_FROM) ? moe_opt(o, OPT_PLACEMENT_FROM) : NULL;
    t->place.every = moe_opt_i(o, OPT_PLACEMENT_EVERY);
    t->place.window = moe_opt_i(o, OPT_PLACEMENT_WINDOW);
    t->place.drift = moe_opt_f(o, OPT_PLACEMENT_DRIFT);
    t->place.hysteresis = moe_opt_f(o, OPT_PLACEMENT_HYSTERESIS);
    t->place.program_seconds = moe_opt_f(o, OPT_PLACEMENT_PROGRAM_SECONDS);
    int64_t staging = moe_opt_i(o, OPT_PLACEMENT_STAGING);
    t->place.staging_bytes = staging < 1 << 20 ? staging << 20 : (int64_t)1 << 40;
    t->resolved = resolved;
    const char *resume = moe_opt(o, OPT_RESUME);
    t->resume = strcmp(resume, "auto") == 0    ? MOE_RESUME_AUTO
                : strcmp(resume, "never") == 0 ? MOE_RESUME_NEVER
                                               : MOE_RESUME_DIR;
    t->resume_dir = t->resume == MOE_RESUME_DIR ? resume : NULL;
    int64_t keep = moe_opt_i(o, OPT_KEEP), threads = moe_opt_i(o, OPT_THREADS);
    if (keep < 1 || keep > 1 << 20)
        return moe_error(MOE_E_MISUSE, "--keep %lld: expected at least 1", (long long)keep);
    if (threads < 0 || threads > 4096)
        return moe_error(MOE_E_MISUSE, "--threads %lld: expected 0 (one a core) to 4096",
                         (long long)threads);
    MOE_TRY(moe_device_option(o, &t->device));
    t->keep = (int)keep;
    t->threads = (int)threads;
    return moe_train_options_check(t);
}

static MoeDenseMode dense_mode(const char *name) {
    static const char *const names[] = {[MOE_DENSE_EMITTED] = "emitted",
                                        [MOE_DENSE_CUBLASLT] = "cublaslt",
                                        [MOE_DENSE_AUTO] = "auto",
                                        [MOE_DENSE_SAME] = "same"};
    MoeDenseMode m = MOE_DENSE_EMITTED;
    while (strcmp(names[m], name))
        m++;
    return m;
}

static MoeAttentionMode attention_mode(const char *name) {
    return !strcmp(name, "auto")    ? MOE_ATTENTION_AUTO
           : !strcmp(name, "cudnn") ? MOE_ATTENTION_CUDNN
                                    : MOE_ATTENTION_EMITTED;
}

MoeStatus moe_device_option(const MoeOptions *o, MoeDevicePlace *out) {
    int64_t n = moe_opt_i(o, OPT_DEVICE);
    if (n < -1 || n > 1 << 20)
        return moe_error(MOE_E_MISUSE, "--device %lld: expected the number of a GPU, or -1",
                         (long long)n);
    static const char *const ways[] = {"auto", "peer", "nccl", "host"};
    MoeExchange way = MOE_EXCHANGE_AUTO;
    while (strcmp(ways[way], moe_opt(o, OPT_EXCHANGE)))
        way++;
    *out = (MoeDevicePlace){.device = (int)n,
                            .local = -1,
                            .exchange = way,
                            .dense = dense_mode(moe_opt(o, OPT_DENSE)),
                            .attention = attention_mode(moe_opt(o, OPT_ATTENTION))};
    return NULL;
}

/* Share of the tokens each expert got, layer by layer, with the busiest over the mean. */
static void print_load(const MoePlan *plan, const MoeTrainReport *r) {
    if (!r->n_layers || !r->load)
        return;
    printf("\nexpert load (%% of each layer's routed tokens; even would be %.1f):\n  layer",
           100.0 / (double)r->n_experts);
    size_t shown = r->n_experts < 16 ? r->n_experts : 16;
    for (size_t e = 0; e < shown; e++)
        printf("  %5s%zu", "e", e);
    printf("%s  max/mean\n", shown < r->n_experts ? "  ..." : "");
    for (size_t l = 0; l < r->n_layers; l++) {
        const int64_t *row = r->load + l * r->n_experts;
        double sum = 0, most = 0;
        for (size_t e = 0; e < r->n_experts; e++) {
            sum += (double)row[e];
            most = fmax(most, (double)row[e]);
        }
        printf("  %5d", plan->moe_layers[l]);
        for (size_t e = 0; e < shown; e++)
            printf("  %*.1f", e < 10 ? 6 : 7, sum > 0 ? 100.0 * (double)row[e] / sum : 0.0);
        printf("%s  %8.2f\n", shown < r->n_experts ? "  ..." : "",
               sum > 0 ? most * (double)r->n_experts / sum : 0.0);
    }
}

static void print_report(const MoePlan *plan, const MoeTrainOptions *t, const MoeTrainReport *r) {
    char took[32], memory[32];
    moe_format_duration(r->seconds, took);
    moe_format_bytes((double)r->memory_bytes, memory);
    const char *why = r->reason == MOE_STOP_SIGNAL ? "stopped by a signal"
                      : r->reason == MOE_STOP_TIME ? "stopped by --max-seconds"
                      : r->reason == MOE_STOP_STEP ? "stopped by --stop-after-step"
                                                   : "finished";
    printf("%s after step %lld of %lld (%s here, %.0f tokens/s", why, (long long)r->state.step,
           (long long)t->steps, took, r->tokens_per_second);
    if (!isnan(r->mfu))
        printf(", MFU %.1f%%", 100 * r->mfu);
    if (plan->ranks > 1) {
        char most[32];
        moe_format_bytes((double)r->memory_bytes_max, most);
        printf(", %d ranks of %s, at most %s)\n", plan->ranks, memory, most);
    } else
        printf(", %s)\n", memory);
    if (r->emulated)
        printf("  emulated: %.6g s a step, %.0f tokens/s on the links of --emulate\n",
               r->emulated_seconds, (double)(plan->batch * plan->seq) / r->emulated_seconds);
    if (r->state.step >= r->first_step)
        printf("  last training loss %.4f\n", r->loss);
    if (r->state.skipped)
        printf("  %lld steps were skipped: loss or gradient norm was not finite\n",
               (long long)r->state.skipped);
    if (r->has_eval) {
        printf("  held-out loss %.4f nats a token", r->eval_loss);
        if (!isnan(r->eval_bits_per_byte))
            printf(", %.4f bits per byte", r->eval_bits_per_byte);
        printf("\n");
    }
    if (r->place_changes) {
        char bytes[32], spent[32], staging[32];
        moe_format_bytes((double)r->place_bytes, bytes);
        moe_format_bytes((double)r->place_staging_bytes, staging);
        moe_format_duration(r->place_seconds, spent);
        printf("  placement %s: %lld moves took %lld experts (%s) to other ranks, in %s, with at most "
               "%s a rank on the way\n",
               t->place.policy, (long long)r->place_changes, (long long)r->place_experts, bytes,
               spent, staging);
    }
    print_load(plan, r);
    printf("\n  run         %s\n  log         %s/log.jsonl\n", t->out_dir, t->out_dir);
    if (r->n_layers && t->trace)
        printf("  load trace  %s/trace.csv\n", t->out_dir);
    if (r->checkpoint)
        printf("  checkpoint  %s\n", r->checkpoint);
}

/* ---- ranks ---- */

typedef struct {
    const MoePlan *plan;
    const MoeTrainOptions *options;
} Run;

/* One rank; rank 0 says what came out. r: of its members only `agreed` is of use afterwards. */
static MoeStatus train_rank(const Run *run, MoeComm *comm, MoeTrainReport *r) {
    MOE_TRY(moe_train_run(run->plan, comm, run->options, r));
    MoeStatus st = NULL;
    if (comm->rank == 0)
        print_report(run->plan, run->options, r);
    if (comm->rank == 0 && r->checkpoint_failed)
        st = moe_error(
            MOE_E_IO,
            "the last checkpoint could not be written (see above); the newest good one is %s",
            r->checkpoint ? r->checkpoint : "none");
    moe_train_report_free(r);
    return st;
}

static MoeStatus run_rank(void *ctx, MoeComm *comm) {
    MoeTrainReport r = {0};
    return train_rank(ctx, comm, &r);
}

/* Of a process among others on its host, when the user leaves the number to us. */
static int threads_of_process(int threads, const MoeLaunchInfo *launch) {
    int n = moe_cpu_count();
    if (threads > 0 || launch->local_size < 2 || moe_launch_bound())
        return threads;
    return n / launch->local_size > 1 ? n / launch->local_size : 1;
}

/* --threads is for the process: each of its ranks gets a part. */
static int threads_a_rank(int threads, int ranks) {
    int all = threads > 0 ? threads : moe_cpu_count();
    return ranks > 1 ? (all / ranks > 1 ? all / ranks : 1) : threads;
}

/* Ranks as threads on emulated links. */
static MoeStatus run_emulated(const char *path, Run *run, MoeTrainOptions *t) {
    MoeCluster cluster;
    int n = run->plan->ranks;
    MoeComm **comms = calloc((size_t)n, sizeof(MoeComm *));
    MoeStatus st = moe_cluster_load(path, &cluster);
    t->place.cluster = &cluster;
    if (!st)
        st = moe_comm_threads_emulated(n, &cluster, comms);
    if (!st)
        st = moe_ranks_run_on(comms, n, run_rank, run);
    for (int r = 0; r < n; r++)
        moe_comm_destroy(comms[r]);
    free(comms);
    return st;
}

static MoeStatus run_ranks(const MoeOptions *o, const MoePlan *plan, MoeTrainOptions *t) {
    int64_t asked = moe_opt_i(o, OPT_RUN_RANKS);
    double limit = moe_opt_f(o, OPT_SILENCE_LIMIT);
    MoeLaunchInfo launch = moe_launch_detect();
    MoeCommKind kind;
    MoeComm *comm = NULL;
    Run run = {plan, t};
    if (asked < 0 || !(limit > 0 && limit <= 1e6))
        return moe_error(MOE_E_MISUSE, asked < 0 ? "--ranks must be at least 1"
                                                 : "--silence-limit must be a number above 0");
    if (asked && asked != plan->ranks)
        return moe_error(MOE_E_MISUSE,
                         "--ranks %lld: the plan is for %d; compile it with --ranks %lld, or leave "
                         "--ranks out",
                         (long long)asked, plan->ranks, (long long)asked);
    const char *emulate = moe_opt(o, OPT_EMULATE);
    MOE_TRY(
        moe_comm_choose(*emulate ? "threads" : moe_opt(o, OPT_COMM), plan->ranks, &launch, &kind));
    if (kind == MOE_COMM_SELF || kind == MOE_COMM_THREADS) {
        t->threads = threads_a_rank(t->threads, plan->ranks);
        if (*emulate)
            return run_emulated(emulate, &run, t);
        return moe_ranks_run(plan->ranks, limit, run_rank, &run);
    }
    t->threads = threads_of_process(t->threads, &launch);
    t->device.local = launch.local_rank;
    MOE_TRY(moe_comm_open(kind, &launch, limit, &comm));
    MoeTrainReport r = {0};
    MoeStatus st = train_rank(&run, comm, &r);
    if (st && r.agreed)
        moe_launch_say(comm, st);
    moe_comm_destroy(comm);
    return st;
}

MoeStatus moe_cmd_run(const MoeOptions *o) {
    MOE_TRY(moe_options_expect(o, 1));
    if (!*moe_opt(o, OPT_DATA))
        return moe_error(MOE_E_MISUSE, "moec run: --data FILE says what to train on");
    const char *plan_dir = o->positionals[0];
    char out_dir[4096];
    if (*moe_opt(o, OPT_RUN_OUT))
        snprintf(out_dir, sizeof out_dir, "%s", moe_opt(o, OPT_RUN_OUT));
    else
        default_out(plan_dir, out_dir, sizeof out_dir);
    json_t *resolved = moe_options_json(o);
    MoeTrainOptions t;
    MoePlan *plan = NULL;
    MoeStatus st = options_of(o, plan_dir, out_dir, resolved, &t);
    if (!st)
        st = moe_driver_open_plan(plan_dir, &plan);
    if (!st)
        st = run_ranks(o, plan, &t);
    if (plan)
        moe_plan_free(plan);
    json_decref(resolved);
    return st;
}
