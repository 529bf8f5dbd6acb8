/* moec sample RUN: text from a run's newest checkpoint. */
#include "cli/commands.h"

#include <stdio.h>
#include <string.h>

#include "base/pool.h"
#include "cli/driver.h"
#include "runtime/checkpoint.h"
#include "runtime/ranks.h"
#include "runtime/run_config.h"
#include "runtime/sample.h"

static bool print_piece(void *ctx, const unsigned char *bytes, size_t n) {
    (void)ctx;
    return fwrite(bytes, 1, n, stdout) == n && fflush(stdout) == 0;
}

typedef struct {
    const MoePlan *plan;
    const MoeSampleOptions *options;
    const char *run;
    int threads; /* of each rank */
    MoeDevicePlace device;
} Sample;

/* One rank of the plan, from the run's newest checkpoint; rank 0 prints. */
static MoeStatus sample_rank(void *ctx, MoeComm *comm) {
    const Sample *s = ctx;
    MoeExec *x = NULL;
    bool found = false;
    MOE_TRY(moe_exec_create_on(s->plan, comm, s->threads, &s->device, &x));
    MoeStatus st = moe_checkpoint_load_newest(s->plan, x, s->run, false, NULL, &found);
    if (!st && !found)
        st = moe_error(MOE_E_INPUT, "%s has no checkpoint yet", s->run);
    if (!st && comm->rank == 0)
        fputs(s->options->prompt, stdout);
    if (!st)
        st = moe_sample_run(s->plan, x, s->options, print_piece, NULL);
    if (comm->rank == 0)
        putchar('\n');
    moe_exec_destroy(x);
    return st;
}

MoeStatus moe_cmd_sample(const MoeOptions *o) {
    MOE_TRY(moe_options_expect(o, 1));
    const char *run = o->positionals[0];
    MoeSampleOptions s;
    moe_sample_options_default(&s);
    s.prompt = moe_opt(o, OPT_PROMPT);
    s.prompt_bytes = strlen(s.prompt);
    s.n_tokens = moe_opt_i(o, OPT_TOKENS);
    s.temperature = moe_opt_f(o, OPT_TEMPERATURE);
    s.top_k = moe_opt_i(o, OPT_TOP_K);
    s.seed = (uint64_t)moe_opt_i(o, OPT_SEED);
    if (s.n_tokens < 0 || s.temperature < 0 || s.top_k < 0)
        return moe_error(MOE_E_MISUSE,
                         "moec sample: --tokens, --temperature and --top-k must not be negative");
    int64_t threads = moe_opt_i(o, OPT_THREADS);
    MoeRunConfig config = {0};
    MoePlan *plan = NULL;
    MoeStatus st = moe_run_config_read(run, &config);
    if (!st && !config.plan_dir)
        st = moe_error(MOE_E_INPUT, "%s/config.json does not name the plan", run);
    if (!st)
        st = moe_driver_open_plan(config.plan_dir, &plan);
    if (!st) {
        int all = threads > 0 ? (int)threads : moe_cpu_count();
        Sample ctx = {plan, &s, run, all / plan->ranks > 1 ? all / plan->ranks : 1, {.device = -1, .local = -1}};
        st = moe_device_option(o, &ctx.device);
        if (!st)
            st = moe_ranks_run(plan->ranks, 0, sample_rank, &ctx);
    }
    if (plan)
        moe_plan_free(plan);
    moe_run_config_free(&config);
    return st;
}
